//! `kubectl sluice pause`: freezes the automation of pools.

use clap::Args;

use super::{
    cluster::ClusterAccess,
    error::{Conclusion, PluginError},
    options::{ClusterOptions, OutputOptions, WriteOptions},
    screen::{Screen, agree, tell},
    view::{document::PoolDocument, switch::PauseChange},
};

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
    switch(PauseChange::Pause, &args.pools, args.write, args.output, options).await
}

/// Switches the automation of pools, of all that are named or of none: each is read before the first is changed.
pub(super) async fn switch(
    change: PauseChange,
    names: &[String],
    write: WriteOptions,
    output: OutputOptions,
    options: &ClusterOptions,
) -> Result<Conclusion, PluginError> {
    let cluster = ClusterAccess::connect(options).await?;
    let screen = Screen::of_stdout();
    let mut documents = Vec::new();
    for name in names {
        documents.push(cluster.pool(name).await.map_err(PluginError::of_change)?);
    }
    let due: Vec<&PoolDocument> = documents.iter().filter(|document| !change.is_done(document)).collect();
    for document in &due {
        tell(&change.plan(document));
    }
    if !due.is_empty() && !write.yes && write.dry_run.is_none() {
        agree(&format!(
            "{} {}?",
            change.verb(),
            due.iter().map(|document| document.name()).collect::<Vec<_>>().join(", ")
        ))?;
    }
    for document in &documents {
        let told = if change.is_done(document) {
            change.told_before(document)
        } else {
            let changed = apply(&cluster, change, document, write.dry_run.is_some()).await?;
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

/// Changes one pool as it was read. Where somebody was faster it is read again: what is so already need not be done.
async fn apply(
    cluster: &ClusterAccess,
    change: PauseChange,
    document: &PoolDocument,
    is_dry_run: bool,
) -> Result<PoolDocument, PluginError> {
    let what = format!("{} ConnectionPool {}", change.verb(), document.key());
    match cluster.patch_pool(&what, document.name(), change.operations(document), is_dry_run).await {
        Err(refused @ PluginError::NotChanged(_)) => match cluster.pool(document.name()).await {
            Ok(now) if change.is_done(&now) && now.pool.metadata.uid == document.pool.metadata.uid => Ok(now),
            _ => Err(refused),
        },
        outcome => outcome,
    }
}
