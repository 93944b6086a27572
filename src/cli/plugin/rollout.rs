//! `kubectl sluice rollout`: how far a change of the settings has come, which revisions there are, and what somebody asks of it.

use std::time::Duration;

use clap::{Args, Subcommand};
use k8s_openapi::{api::apps::v1::ControllerRevision, jiff::Timestamp};
use kube::api::ListParams;

use super::{
    cluster::{ClusterAccess, PoolScope},
    error::{Conclusion, PluginError},
    follow::{FollowedNext, FollowedPools},
    options::{ClusterOptions, OutputFormat, OutputOptions, duration},
    pause::{self, PauseArgs},
    resume::{self, ResumeArgs},
    rollout_request::{self, PromoteArgs, RequestArgs, UndoArgs},
    screen::{Screen, tell, tell_skew},
    view::{
        document::PoolDocument,
        rollout::{RevisionEntry, RolloutStanding, history, table},
    },
};
use crate::contract::names::POOL_LABEL;

/// Arguments of `rollout`.
#[derive(Args, Debug)]
pub struct RolloutArgs {
    #[command(subcommand)]
    verb: RolloutSubcommand,
}

#[derive(Debug, Subcommand)]
enum RolloutSubcommand {
    /// Tell how far the newest revision has come, until it is through or does not get through.
    Status(RolloutStatusArgs),
    /// List the revisions of a pool, with what each has changed.
    History(RolloutHistoryArgs),
    /// Let the revision that waits in a pause go on.
    Promote(PromoteArgs),
    /// Take the revision that is rolled out back from every pod, and remember it as failed.
    Abort(RequestArgs),
    /// Roll out again what the spec says, after it failed or was undone.
    Retry(RequestArgs),
    /// Go back to an earlier revision, until the spec changes.
    Undo(UndoArgs),
    /// Stop the rollout of pools where it is, and the rest of their automation with it: what `kubectl sluice pause` does.
    Pause(PauseArgs),
    /// Let the rollout of pools go on, and the rest of their automation with it: what `kubectl sluice resume` does.
    Resume(ResumeArgs),
}

/// Arguments of `rollout status`.
#[derive(Args, Debug)]
pub struct RolloutStatusArgs {
    /// The pool.
    #[arg(value_name = "POOL")]
    pool: String,
    /// Whether to go on until it is through; --watch=false looks once.
    #[arg(short, long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    watch: bool,
    /// How long to go on: 30s, 5m, 1h; 0 for ever.
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    output: OutputOptions,
}

/// Arguments of `rollout history`.
#[derive(Args, Debug)]
pub struct RolloutHistoryArgs {
    /// The pool.
    #[arg(value_name = "POOL")]
    pool: String,
    /// The settings of this revision alone.
    #[arg(long, value_name = "NUMBER")]
    revision: Option<i64>,
    #[command(flatten)]
    output: OutputOptions,
}

/// Runs the verb.
///
/// # Errors
/// [`PluginError`].
pub async fn run(args: RolloutArgs, options: &ClusterOptions) -> Result<Conclusion, PluginError> {
    let cluster = ClusterAccess::connect(options).await?;
    match args.verb {
        RolloutSubcommand::Status(args) => status(args, &cluster).await,
        RolloutSubcommand::History(args) => tell_history(args, &cluster).await,
        RolloutSubcommand::Promote(args) => rollout_request::promote(args, &cluster).await,
        RolloutSubcommand::Abort(args) => rollout_request::abort(args, &cluster).await,
        RolloutSubcommand::Retry(args) => rollout_request::retry(args, &cluster).await,
        RolloutSubcommand::Undo(args) => rollout_request::undo(args, &cluster).await,
        RolloutSubcommand::Pause(args) => pause::pause(args, &cluster).await,
        RolloutSubcommand::Resume(args) => resume::resume(args, &cluster).await,
    }
}

async fn status(args: RolloutStatusArgs, cluster: &ClusterAccess) -> Result<Conclusion, PluginError> {
    let RolloutStatusArgs { pool, watch, timeout, output } = args;
    let mut document = cluster.pool(&pool).await?;
    tell_skew(&document);
    let screen = Screen::of_stdout();
    let mut followed = FollowedPools::new(cluster, &PoolScope::default(), Some(&pool), timeout);
    let mut said = String::new();
    // a document is printed once, when there is nothing more to come; lines before it would be no document
    let end = |document: &PoolDocument, conclusion| -> Result<Conclusion, PluginError> {
        if let Some(format) = output.document() {
            let now = Timestamp::now();
            screen.document(format, &RolloutStanding::of(document, now).answer(document, now))?;
        }
        Ok(conclusion)
    };
    loop {
        let standing = RolloutStanding::of(&document, Timestamp::now());
        // ages move all the time, and are no news
        let news = RolloutStanding::of(&document, Timestamp::UNIX_EPOCH).words().to_owned();
        if news != said {
            if output.document().is_none() {
                screen.print(&format!("{}\n", standing.words()))?;
            }
            said = news;
        }
        match standing {
            RolloutStanding::Complete(_) => return end(&document, Conclusion::Yes),
            RolloutStanding::Stuck(_) => return end(&document, Conclusion::No),
            RolloutStanding::UnderWay(_) if !watch => return end(&document, Conclusion::No),
            RolloutStanding::UnderWay(_) => {}
        }
        match followed.next_of_one().await? {
            FollowedNext::TimeOver => {
                tell(&format!("not within {timeout:?}"));
                return end(&document, Conclusion::No);
            }
            FollowedNext::Pool(pool) => document = *pool,
            FollowedNext::Deleted => {
                tell(&format!("{} was deleted", document.key()));
                return Ok(Conclusion::No);
            }
        }
    }
}

async fn tell_history(args: RolloutHistoryArgs, cluster: &ClusterAccess) -> Result<Conclusion, PluginError> {
    let RolloutHistoryArgs { pool, revision, output } = args;
    let document = cluster.pool(&pool).await?;
    tell_skew(&document);
    let entries = revisions(cluster, &document).await?;
    let screen = Screen::of_stdout();
    if let Some(number) = revision {
        let Some(entry) = entries.iter().find(|entry| entry.revision == number) else {
            let kept: Vec<String> = entries.iter().map(|entry| entry.revision.to_string()).collect();
            return Err(PluginError::NotFound {
                what: format!("revision {number} of {}", document.key()),
                hint: format!("; kept are {}", kept.join(", ")),
            });
        };
        screen.document(output.document().unwrap_or(OutputFormat::Yaml), entry)?;
        return Ok(Conclusion::Yes);
    }
    match output.document() {
        Some(format) => screen.document(format, &entries)?,
        None if entries.is_empty() => tell(&format!("{} has no revision yet", document.key())),
        None => screen.print(&table(&entries, Timestamp::now()).text())?,
    }
    Ok(Conclusion::Yes)
}

/// The revisions of a pool, the oldest first.
pub(super) async fn revisions(
    cluster: &ClusterAccess,
    document: &PoolDocument,
) -> Result<Vec<RevisionEntry>, PluginError> {
    let namespace = document.key().namespace;
    let params = ListParams::default().labels(&format!("{POOL_LABEL}={}", document.name()));
    let what = format!("list ControllerRevisions in {namespace}");
    let revisions: Vec<ControllerRevision> = cluster.list(&what, &cluster.of(&namespace), params).await?;
    Ok(history(document, &revisions))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Rollout {
        #[command(flatten)]
        args: RolloutArgs,
    }

    #[derive(Debug, Parser)]
    struct Pause {
        #[command(flatten)]
        args: PauseArgs,
    }

    #[derive(Debug, Parser)]
    struct Resume {
        #[command(flatten)]
        args: ResumeArgs,
    }

    #[test]
    fn rollout_pause_and_resume_take_what_pause_and_resume_take() {
        let words = ["shop", "cart", "--yes", "--dry-run=server", "-o", "json"];
        let of = |verbs: &[&'static str]| {
            ["kubectl-sluice"].into_iter().chain(verbs.to_owned()).chain(words).collect::<Vec<_>>()
        };
        match Rollout::try_parse_from(of(&["pause"])).expect("understood").args.verb {
            RolloutSubcommand::Pause(args) => {
                let pause = Pause::try_parse_from(of(&[])).expect("understood").args;
                assert_eq!(format!("{args:?}"), format!("{pause:?}"));
            }
            other => panic!("{other:?}"),
        }
        match Rollout::try_parse_from(of(&["resume"])).expect("understood").args.verb {
            RolloutSubcommand::Resume(args) => {
                let resume = Resume::try_parse_from(of(&[])).expect("understood").args;
                assert_eq!(format!("{args:?}"), format!("{resume:?}"));
            }
            other => panic!("{other:?}"),
        }
    }
}
