//! `kubectl sluice recommend`: what the load asks for beside what there is.

use clap::Args;

use super::{
    cluster::{ClusterAccess, PoolScope},
    error::{Conclusion, PluginError},
    options::{ClusterOptions, OutputOptions},
    screen::{Screen, tell},
    view::{
        get::Columns,
        recommend::{PoolAdvice, table, text},
    },
};

/// Arguments of `recommend`.
#[derive(Args, Debug)]
pub struct RecommendArgs {
    /// Pools. None: all of the namespace.
    #[arg(value_name = "POOL")]
    pools: Vec<String>,
    /// Those of every namespace.
    #[arg(short = 'A', long, conflicts_with = "pools")]
    all_namespaces: bool,
    #[command(flatten)]
    output: OutputOptions,
}

/// Runs the verb.
///
/// # Errors
/// [`PluginError`].
pub async fn run(args: RecommendArgs, options: &ClusterOptions) -> Result<Conclusion, PluginError> {
    let RecommendArgs { pools: names, all_namespaces, output } = args;
    let cluster = ClusterAccess::connect(options).await?;
    let mut pools = Vec::new();
    for name in &names {
        pools.push(cluster.pool(name).await?);
    }
    if names.is_empty() {
        let list = cluster.list_pools(&PoolScope { all_namespaces, selector: None }).await?;
        for pool in &list.unreadable {
            tell(&pool.words);
        }
        pools = list.pools;
    }
    let advice: Vec<PoolAdvice> = pools.iter().map(PoolAdvice::of).collect();
    let screen = Screen::of_stdout();
    if let Some(format) = output.document() {
        screen.document(format, &advice)?;
        return Ok(Conclusion::Yes);
    }
    if pools.is_empty() {
        tell("there are no pools");
        return Ok(Conclusion::Yes);
    }
    screen.print(&table(&advice, Columns { namespace: all_namespaces, wide: false }).text())?;
    // what is to be done is said of those that were named, and of all where more is asked for
    if !names.is_empty() || output.is_wide() {
        for (pool, advice) in pools.iter().zip(&advice) {
            screen.print(&text(pool, advice))?;
        }
    }
    Ok(Conclusion::Yes)
}
