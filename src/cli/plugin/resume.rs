//! `kubectl sluice resume`: lets the automation of pools go on.

use clap::Args;

use super::{
    cluster::ClusterAccess,
    error::{Conclusion, PluginError},
    options::{ClusterOptions, OutputOptions, WriteOptions},
    pause::switch,
    view::switch::PauseChange,
};

/// Arguments of `resume`.
#[derive(Args, Debug)]
pub struct ResumeArgs {
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
pub async fn run(args: ResumeArgs, options: &ClusterOptions) -> Result<Conclusion, PluginError> {
    resume(args, &ClusterAccess::connect(options).await?).await
}

/// What `resume` and `rollout resume` do.
pub(super) async fn resume(args: ResumeArgs, cluster: &ClusterAccess) -> Result<Conclusion, PluginError> {
    switch(&PauseChange::Resume, &args.pools, (args.write, args.output), cluster).await
}
