//! `kubectl sluice rollout promote`, `abort`, `retry` and `undo`: asks the operator, and tells what it answered.

use std::time::Duration;

use clap::Args;
use k8s_openapi::jiff::Timestamp;

use super::{
    cluster::{ClusterAccess, PoolScope, beside},
    error::{Conclusion, PluginError},
    follow::{FollowedNext, FollowedPools},
    options::{OutputOptions, WriteOptions, duration},
    pause::MOST_TRIES,
    rollout::revisions,
    screen::{Screen, agree, tell, tell_skew},
    view::{
        document::PoolDocument,
        rollout_request::{RequestOutcome, RolloutRequest, is_unmoved},
    },
};
use crate::decide::rollout::RolloutVerb;

/// Arguments of `rollout promote`.
#[derive(Args, Debug)]
pub struct PromoteArgs {
    /// The pool.
    #[arg(value_name = "POOL")]
    pool: String,
    /// End all pauses, not only the one that it waits in.
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    request: RequestOptions,
}

/// Arguments of `rollout abort` and `rollout retry`.
#[derive(Args, Debug)]
pub struct RequestArgs {
    /// The pool.
    #[arg(value_name = "POOL")]
    pool: String,
    #[command(flatten)]
    request: RequestOptions,
}

/// Arguments of `rollout undo`.
#[derive(Args, Debug)]
pub struct UndoArgs {
    /// The pool.
    #[arg(value_name = "POOL")]
    pool: String,
    /// The revision to go back to. Default: the one before.
    #[arg(value_name = "REVISION", value_parser = clap::value_parser!(u64).range(1..))]
    revision: Option<u64>,
    #[command(flatten)]
    request: RequestOptions,
}

/// How something is asked of the operator.
#[derive(Args, Clone, Copy, Debug)]
struct RequestOptions {
    /// Whether to wait until the operator has answered; --wait=false only asks.
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    wait: bool,
    /// How long to wait for the answer: 30s, 5m; 0 for ever.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    write: WriteOptions,
    #[command(flatten)]
    output: OutputOptions,
}

/// What is asked.
#[derive(Debug)]
struct Asked {
    verb: RolloutVerb,
    to: Option<u64>,
    pool: String,
    options: RequestOptions,
}

/// Runs `rollout promote`.
///
/// # Errors
/// [`PluginError`].
pub async fn promote(args: PromoteArgs, cluster: &ClusterAccess) -> Result<Conclusion, PluginError> {
    let verb = if args.full { RolloutVerb::PromoteFull } else { RolloutVerb::Promote };
    Asked { verb, to: None, pool: args.pool, options: args.request }.run(cluster).await
}

/// Runs `rollout abort`.
///
/// # Errors
/// [`PluginError`].
pub async fn abort(args: RequestArgs, cluster: &ClusterAccess) -> Result<Conclusion, PluginError> {
    Asked { verb: RolloutVerb::Abort, to: None, pool: args.pool, options: args.request }.run(cluster).await
}

/// Runs `rollout retry`.
///
/// # Errors
/// [`PluginError`].
pub async fn retry(args: RequestArgs, cluster: &ClusterAccess) -> Result<Conclusion, PluginError> {
    Asked { verb: RolloutVerb::Retry, to: None, pool: args.pool, options: args.request }.run(cluster).await
}

/// Runs `rollout undo`.
///
/// # Errors
/// [`PluginError`].
pub async fn undo(args: UndoArgs, cluster: &ClusterAccess) -> Result<Conclusion, PluginError> {
    Asked { verb: RolloutVerb::Undo, to: args.revision, pool: args.pool, options: args.request }.run(cluster).await
}

impl Asked {
    async fn run(self, cluster: &ClusterAccess) -> Result<Conclusion, PluginError> {
        let Self { pool, options: RequestOptions { wait, timeout, write, output }, .. } = &self;
        let is_dry_run = write.dry_run.is_some();
        let document = cluster.pool(pool).await.map_err(PluginError::of_change)?;
        tell_skew(&document);
        let request = self.request(cluster, &document).await?;
        let (request, asked) = if let Some(open) = request.open(&document) {
            (open, document)
        } else {
            tell(&request.plan(&document));
            if !write.yes && !is_dry_run {
                agree(&format!("{} of {pool}?", request.words()))?;
            }
            make(cluster, request, document, is_dry_run).await?
        };
        let screen = Screen::of_stdout();
        match output.document() {
            Some(format) => screen.document(format, &asked.raw)?,
            None => screen.print(&format!("{}\n", request.told(&asked, is_dry_run)))?,
        }
        if is_dry_run || !wait {
            return Ok(Conclusion::Yes);
        }
        answer(cluster, &request, asked, *timeout).await
    }

    async fn request(&self, cluster: &ClusterAccess, document: &PoolDocument) -> Result<RolloutRequest, PluginError> {
        let who = cluster.who_asks().await;
        let revisions = match self.verb {
            RolloutVerb::Undo => beside(revisions(cluster, document).await),
            _ => Ok(Vec::new()),
        };
        let of = (who.as_deref(), Timestamp::now());
        let request = RolloutRequest::of(self.verb, self.to, document, revisions.as_deref(), of);
        request.map_err(PluginError::CannotBe)
    }
}

/// Makes the request of the pool as it was read. Where only the operator was faster, which writes the status, it is made again; where
/// somebody else made the same one, that is it.
async fn make(
    cluster: &ClusterAccess,
    request: RolloutRequest,
    mut document: PoolDocument,
    is_dry_run: bool,
) -> Result<(RolloutRequest, PoolDocument), PluginError> {
    let what = format!("ask for {} of ConnectionPool {}", request.words(), document.key());
    let mut tries = 1;
    loop {
        let operations = request.operations(&document);
        let refused = match cluster.patch_pool(&what, document.name(), operations, is_dry_run).await {
            Ok(asked) => return Ok((request, asked)),
            Err(refused @ PluginError::NotChanged(_)) => refused,
            Err(error) => return Err(error),
        };
        let now = cluster.pool(document.name()).await.map_err(PluginError::of_change)?;
        let is_faster = now.pool.metadata.resource_version != document.pool.metadata.resource_version;
        if !is_faster || tries == MOST_TRIES {
            return Err(refused);
        }
        if !is_unmoved(&document, &now) {
            return match request.made(&now) {
                Some(same) => Ok((same, now)),
                None => Err(PluginError::CannotBe(format!(
                    "{}: somebody changed the pool meanwhile, so it is not known whether {} is still meant: look at kubectl sluice rollout \
                     status, and ask again",
                    now.key(),
                    request.words()
                ))),
            };
        }
        document = now;
        tries += 1;
    }
}

/// Waits until the operator has answered.
async fn answer(
    cluster: &ClusterAccess,
    request: &RolloutRequest,
    mut document: PoolDocument,
    timeout: Duration,
) -> Result<Conclusion, PluginError> {
    let name = document.name().to_owned();
    let mut followed = FollowedPools::new(cluster, &PoolScope::default(), Some(&name), timeout);
    loop {
        let outcome = request.outcome(&document);
        match outcome {
            RequestOutcome::Open => {}
            RequestOutcome::Done => {
                tell(&request.told_outcome(&outcome, &document));
                return Ok(Conclusion::Yes);
            }
            RequestOutcome::Refused(_) | RequestOutcome::Replaced(_) => {
                tell(&request.told_outcome(&outcome, &document));
                return Ok(Conclusion::No);
            }
        }
        match followed.next_of_one().await? {
            FollowedNext::TimeOver => {
                tell(&format!("not within {timeout:?}: {}", request.told_outcome(&outcome, &document)));
                return Ok(Conclusion::No);
            }
            FollowedNext::Pool(pool) => document = *pool,
            FollowedNext::Deleted => {
                tell(&format!("{} was deleted", document.key()));
                return Ok(Conclusion::No);
            }
        }
    }
}
