//! Completion: kubectl runs `kubectl_complete-sluice` on TAB.

use std::time::Duration;

use clap::{Command, Parser};
use tokio::time::timeout;

use super::{
    cluster::{ClusterAccess, PoolScope},
    options::ClusterOptions,
    view::{
        completion::{Offer, offer, text},
        document::PoolDocument,
    },
};

/// Somebody waits at the keyboard.
const DEADLINE: Duration = Duration::from_secs(2);

/// The flags of the cluster, as they stand among the words that were typed.
#[derive(Parser)]
struct TypedCluster {
    #[command(flatten)]
    cluster: ClusterOptions,
}

/// What kubectl is answered for these words.
pub async fn answer(root: &Command, words: &[String]) -> String {
    let offer = offer(root, words);
    let pools = match &offer {
        Offer::Pools { cluster, .. } => timeout(DEADLINE, pools(cluster)).await.ok().flatten().unwrap_or_default(),
        _ => Vec::new(),
    };
    text(&offer, &pools)
}

/// The names of the pools; none where they cannot be listed.
async fn pools(cluster: &[String]) -> Option<Vec<String>> {
    let words = ["kubectl-sluice".to_owned()].into_iter().chain(cluster.iter().cloned());
    let options = TypedCluster::try_parse_from(words).ok()?.cluster;
    let cluster = ClusterAccess::connect(&options).await.ok()?;
    let list = cluster.list_pools(&PoolScope::default()).await.ok()?;
    Some(list.pools.iter().map(PoolDocument::name).map(str::to_owned).collect())
}
