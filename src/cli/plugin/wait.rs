//! `kubectl sluice wait`: until a condition of a pool is so.

use std::time::Duration;

use clap::Args;
use k8s_openapi::jiff::Timestamp;

use super::{
    cluster::{ClusterAccess, PoolScope},
    error::{Conclusion, PluginError},
    follow::{FollowedNext, FollowedPools},
    options::{ClusterOptions, OutputOptions, duration},
    screen::{Screen, tell, tell_skew},
    view::{
        document::PoolDocument,
        wait::{Awaited, WaitAnswer},
    },
};
use crate::domain::PoolKey;

/// Arguments of `wait`.
#[derive(Args, Debug)]
pub struct WaitArgs {
    /// The pool.
    #[arg(value_name = "POOL")]
    pool: String,
    /// What to wait for: condition=Ready, condition=Progressing=False, reason=RolloutComplete, or delete.
    #[arg(long = "for", value_name = "WHAT", default_value = "condition=Ready", value_parser = Awaited::parse)]
    awaited: Awaited,
    /// How long to wait: 30s, 5m, 1h; 0: look once.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    output: OutputOptions,
}

/// Runs the verb.
///
/// # Errors
/// [`PluginError`].
pub async fn run(args: WaitArgs, options: &ClusterOptions) -> Result<Conclusion, PluginError> {
    let WaitArgs { pool, awaited, timeout, output } = args;
    let cluster = ClusterAccess::connect(options).await?;
    let screen = Screen::of_stdout();
    let mut document = match cluster.pool(&pool).await {
        Err(PluginError::NotFound { .. }) if awaited == Awaited::Deletion => None,
        found => Some(found?),
    };
    document.iter().for_each(tell_skew);
    let end = |document: Option<&PoolDocument>, standing: &str| match output.document() {
        Some(format) => {
            let key = PoolKey::new(cluster.namespace().to_owned(), pool.clone());
            screen.document(format, &WaitAnswer::of(&awaited, key, document, standing))
        }
        None if awaited.is_met(document) => screen.print(&format!("{standing}\n")),
        None => {
            tell(standing);
            Ok(())
        }
    };
    let mut said = String::new();
    let mut followed = FollowedPools::new(&cluster, &PoolScope::default(), Some(&pool), timeout);
    loop {
        let now = Timestamp::now();
        let standing = document.as_ref().map_or_else(
            || format!("{}/{pool} does not exist", cluster.namespace()),
            |document| awaited.standing(document, now),
        );
        if awaited.is_met(document.as_ref()) {
            end(document.as_ref(), &standing)?;
            return Ok(Conclusion::Yes);
        }
        if document.is_none() {
            end(None, &format!("{standing}; waited in vain for {}", awaited.words()))?;
            return Ok(Conclusion::No);
        }
        if timeout.is_zero() {
            end(document.as_ref(), &format!("{standing}\nit is not {}", awaited.words()))?;
            return Ok(Conclusion::No);
        }
        // ages move all the time, and are no news
        let news =
            document.as_ref().map(|document| awaited.standing(document, Timestamp::UNIX_EPOCH)).unwrap_or_default();
        if news != said {
            tell(&standing);
            said = news;
        }
        match followed.next_of_one().await? {
            FollowedNext::TimeOver => {
                end(document.as_ref(), &format!("not within {timeout:?}: {}", awaited.words()))?;
                return Ok(Conclusion::No);
            }
            FollowedNext::Pool(found) => document = Some(*found),
            FollowedNext::Deleted => document = None,
        }
    }
}
