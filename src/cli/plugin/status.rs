//! `kubectl sluice status`: a pool as a tree of its revisions and pods.

use std::{collections::BTreeMap, time::Duration};

use clap::Args;
use k8s_openapi::jiff::Timestamp;

use super::{
    agents,
    cluster::{ClusterAccess, PoolScope, beside},
    error::{Conclusion, PluginError},
    follow::{FollowedPools, PoolChange},
    options::{ClusterOptions, OutputOptions, WatchOptions},
    screen::{Screen, tell},
    view::{
        document::PoolDocument,
        status::{PoolTree, TreeInput, line},
    },
};
use crate::api::conditions;

/// What agents say moves without any change of the pool.
const REDRAWN_EVERY: Duration = Duration::from_secs(2);

/// Arguments of `status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// The pool.
    #[arg(value_name = "POOL")]
    pool: String,
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    watch: WatchOptions,
}

/// Runs the verb.
///
/// # Errors
/// [`PluginError`].
pub async fn run(args: StatusArgs, options: &ClusterOptions) -> Result<Conclusion, PluginError> {
    let StatusArgs { pool, output, watch } = args;
    watch.check(output)?;
    let cluster = ClusterAccess::connect(options).await?;
    let document = cluster.pool(&pool).await?;
    if watch.watch {
        let followed = FollowedPools::new(&cluster, &PoolScope::default(), Some(&pool), watch.timeout);
        return follow(&cluster, document, followed).await;
    }
    let tree = gather(&cluster, &document).await;
    let screen = Screen::of_stdout();
    match output.document() {
        Some(format) => screen.document(format, &tree)?,
        None => screen.print(&tree.text(&document, Timestamp::now()))?,
    }
    Ok(conclusion(&document))
}

/// Ready, not ready, or nobody can tell.
fn conclusion(document: &PoolDocument) -> Conclusion {
    let ready = document.condition(conditions::READY).filter(|_| document.is_observed());
    match ready.map(|ready| ready.status.as_str()) {
        Some("True") => Conclusion::Yes,
        Some("False") => Conclusion::No,
        _ => Conclusion::CannotTell,
    }
}

/// Shows the tree again and again, or a line whenever it reads otherwise.
async fn follow(
    cluster: &ClusterAccess,
    mut document: PoolDocument,
    mut followed: FollowedPools,
) -> Result<Conclusion, PluginError> {
    let screen = Screen::of_stdout();
    let mut said = String::new();
    loop {
        if screen.is_terminal() {
            let tree = gather(cluster, &document).await;
            screen.redraw(&tree.text(&document, Timestamp::now()))?;
        } else {
            let says = line(&document);
            if says != said {
                let now = Timestamp::now();
                let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
                screen.print(&format!("{now} {says}\n"))?;
                said = says;
            }
        }
        match followed.next_within(REDRAWN_EVERY).await {
            Some(PoolChange::TimeOver) => return Ok(conclusion(&document)),
            Some(PoolChange::Deleted(key)) => {
                screen.print(&format!("{key} deleted\n"))?;
                return Ok(Conclusion::No);
            }
            Some(PoolChange::Trouble(words)) => tell(&words),
            Some(PoolChange::Unreadable(pool)) => return Err(PluginError::Unreadable(pool.words)),
            Some(PoolChange::Listed | PoolChange::Changed(_)) => match followed.pools.values().next() {
                Some(pool) => document = pool.clone(),
                None => return Ok(Conclusion::No),
            },
            None => {}
        }
    }
}

/// Reads what the tree is made of.
async fn gather(cluster: &ClusterAccess, document: &PoolDocument) -> PoolTree {
    let pods = beside(agents::pods(cluster, document).await);
    let mut not_read = Vec::new();
    let mut agents = BTreeMap::new();
    if let Ok(pods) = &pods {
        let asked = agents::asked(pods, document.name(), &mut not_read);
        agents = agents::ask_all(cluster, &asked, &mut not_read).await;
    }
    PoolTree::new(TreeInput { document, pods: pods.as_deref(), agents: &agents, not_read })
}
