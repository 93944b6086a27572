//! `kubectl sluice wait`: until a condition of a pool is so.

use std::time::Duration;

use clap::Args;
use k8s_openapi::jiff::Timestamp;

use super::{
    cluster::{ClusterAccess, PoolScope},
    error::{Conclusion, PluginError},
    follow::{FollowedNext, FollowedPools},
    options::{ClusterOptions, duration},
    screen::{Screen, tell},
    view::wait::Awaited,
};

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
}

/// Runs the verb.
///
/// # Errors
/// [`PluginError`].
pub async fn run(args: WaitArgs, options: &ClusterOptions) -> Result<Conclusion, PluginError> {
    let WaitArgs { pool, awaited, timeout } = args;
    let cluster = ClusterAccess::connect(options).await?;
    let screen = Screen::of_stdout();
    let mut document = match cluster.pool(&pool).await {
        Err(PluginError::NotFound { .. }) if awaited == Awaited::Deletion => None,
        found => Some(found?),
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
            screen.print(&format!("{standing}\n"))?;
            return Ok(Conclusion::Yes);
        }
        if document.is_none() {
            tell(&format!("{standing}; waited in vain for {}", awaited.words()));
            return Ok(Conclusion::No);
        }
        if timeout.is_zero() {
            tell(&format!("{standing}\nit is not {}", awaited.words()));
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
                tell(&format!("not within {timeout:?}: {}", awaited.words()));
                return Ok(Conclusion::No);
            }
            FollowedNext::Pool(pool) => document = Some(*pool),
            FollowedNext::Deleted => document = None,
        }
    }
}
