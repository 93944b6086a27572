//! `kubectl sluice pause`: freezes the automation of pools.

use clap::Args;
use k8s_openapi::jiff::Timestamp;

use super::{
    cluster::ClusterAccess,
    error::{Conclusion, PluginError},
    options::{ClusterOptions, OutputOptions, WriteOptions},
    screen::{Screen, agree, tell, tell_skew},
    view::{
        document::PoolDocument,
        switch::{PauseChange, is_unmoved},
    },
};

/// How often a change is tried: the operator writes the status of the same object meanwhile.
pub(super) const MOST_TRIES: u32 = 5;

/// Arguments of `pause`.
#[derive(Args, Debug)]
pub struct PauseArgs {
    /// Pools.
    #[arg(value_name = "POOL", required = true)]
    pools: Vec<String>,
    #[command(flatten)]
    write: WriteOptions,
    #[command(flatten)]
    output: OutputOptions,
}

/// Runs the verb.
///
/// # Errors
/// [`PluginError`].
pub async fn run(args: PauseArgs, options: &ClusterOptions) -> Result<Conclusion, PluginError> {
    pause(args, &ClusterAccess::connect(options).await?).await
}

/// What `pause` and `rollout pause` do.
pub(super) async fn pause(args: PauseArgs, cluster: &ClusterAccess) -> Result<Conclusion, PluginError> {
    switch(&PauseChange::Pause, &args.pools, (args.write, args.output), cluster).await
}

/// Switches the automation of pools, of all that are named or of none: each is read before the first is changed.
pub(super) async fn switch(
    change: &PauseChange,
    names: &[String],
    (write, output): (WriteOptions, OutputOptions),
    cluster: &ClusterAccess,
) -> Result<Conclusion, PluginError> {
    let now = Timestamp::now();
    let screen = Screen::of_stdout();
    let mut documents = Vec::new();
    for name in names {
        let document = cluster.pool(name).await.map_err(PluginError::of_change)?;
        tell_skew(&document);
        documents.push(document);
    }
    let due: Vec<&PoolDocument> = documents.iter().filter(|document| !change.is_done(document, now)).collect();
    for document in &due {
        tell(&change.plan(document, now));
    }
    if !due.is_empty() && !write.yes && write.dry_run.is_none() {
        agree(&format!(
            "{} {}?",
            change.verb(),
            due.iter().map(|document| document.name()).collect::<Vec<_>>().join(", ")
        ))?;
    }
    for document in &documents {
        let told = if change.is_done(document, now) {
            change.told_before(document)
        } else {
            let changed = apply(cluster, change, document, (now, write.dry_run.is_some())).await?;
            if let Some(format) = output.document() {
                screen.document(format, &changed.raw)?;
                continue;
            }
            change.told(&changed, write.dry_run.is_some())
        };
        screen.print(&format!("{told}\n"))?;
    }
    Ok(Conclusion::Yes)
}

/// Changes one pool as it was read. Where somebody was faster it is read again: what is so already need not be done, and where only the
/// operator was, which writes the status, it is tried again.
async fn apply(
    cluster: &ClusterAccess,
    change: &PauseChange,
    document: &PoolDocument,
    (now, is_dry_run): (Timestamp, bool),
) -> Result<PoolDocument, PluginError> {
    let what = format!("{} ConnectionPool {}", change.verb(), document.key());
    let mut read = document.clone();
    let mut tries = 1;
    loop {
        let refused = match cluster.patch_pool(&what, read.name(), change.operations(&read), is_dry_run).await {
            Err(refused @ PluginError::NotChanged(_)) => refused,
            outcome => return outcome,
        };
        let Ok(again) = cluster.pool(document.name()).await else { return Err(refused) };
        if change.is_done(&again, now) && again.pool.metadata.uid == document.pool.metadata.uid {
            return Ok(again);
        }
        let is_faster = again.pool.metadata.resource_version != read.pool.metadata.resource_version;
        if tries == MOST_TRIES || !is_faster || !is_unmoved(document, &again) {
            return Err(refused);
        }
        read = again;
        tries += 1;
    }
}
