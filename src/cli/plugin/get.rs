//! `kubectl sluice get`: pools in a table.

use std::time::Duration;

use clap::Args;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::{
    cluster::{ClusterAccess, PoolList, PoolScope},
    error::{Conclusion, PluginError},
    follow::{FollowedPools, PoolChange},
    options::{ClusterOptions, OutputOptions, WatchOptions},
    screen::{Screen, tell},
    view::{
        get::{Columns, notes},
        table,
    },
};

/// Ages move without any change.
const REDRAWN_EVERY: Duration = Duration::from_secs(5);

/// Arguments of `get`.
#[derive(Args, Debug)]
pub struct GetArgs {
    /// Pools. None: all of the namespace.
    #[arg(value_name = "POOL")]
    pools: Vec<String>,
    /// Those of every namespace.
    #[arg(short = 'A', long, conflicts_with = "pools")]
    all_namespaces: bool,
    /// Those with these labels: a=b,c.
    #[arg(short = 'l', long, conflicts_with = "pools")]
    selector: Option<String>,
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    watch: WatchOptions,
}

/// Runs the verb.
///
/// # Errors
/// [`PluginError`].
pub async fn run(args: GetArgs, options: &ClusterOptions) -> Result<Conclusion, PluginError> {
    let GetArgs { pools, all_namespaces, selector, output, watch } = args;
    if watch.watch && output.document().is_some() {
        return Err(PluginError::Usage("--watch shows a table: leave -o json or -o yaml out, or --watch".to_owned()));
    }
    if watch.watch && pools.len() > 1 {
        return Err(PluginError::Usage("--watch follows one pool or all: name one, or none".to_owned()));
    }
    let cluster = ClusterAccess::connect(options).await?;
    let scope = PoolScope { all_namespaces, selector };
    let columns = Columns { namespace: all_namespaces, wide: output.is_wide() };
    let list = if pools.is_empty() {
        cluster.list_pools(&scope).await?
    } else {
        let mut list = PoolList::default();
        for name in &pools {
            list.pools.push(cluster.pool(name).await?);
        }
        list
    };
    if watch.watch {
        let followed = FollowedPools::new(&cluster, &scope, pools.first().map(String::as_str), watch.timeout);
        return follow(columns, followed).await;
    }
    let screen = Screen::of_stdout();
    if let Some(format) = output.document() {
        let raw: Vec<_> = list.pools.iter().map(|pool| &pool.raw).collect();
        for pool in &list.unreadable {
            tell(&pool.words);
        }
        match (pools.len(), raw.as_slice()) {
            (1, [one]) => screen.document(format, one)?,
            _ => screen.document(format, &json!({"apiVersion": "v1", "kind": "List", "items": raw}))?,
        }
        return Ok(Conclusion::Yes);
    }
    let now = Timestamp::now();
    if list.pools.is_empty() && list.unreadable.is_empty() {
        let place =
            if all_namespaces { "any namespace".to_owned() } else { format!("namespace {}", cluster.namespace()) };
        tell(&format!("there are no pools in {place}"));
        return Ok(Conclusion::Yes);
    }
    screen.print(&columns.table(&list.pools, now).text())?;
    screen.print(&notes(&list.pools, &list.unreadable, now))?;
    Ok(Conclusion::Yes)
}

/// Shows the table again and again, or a line for each pool that changes.
async fn follow(columns: Columns, mut followed: FollowedPools) -> Result<Conclusion, PluginError> {
    let screen = Screen::of_stdout();
    let mut widths: Option<Vec<usize>> = None;
    loop {
        let change = followed.next_within(REDRAWN_EVERY).await;
        let now = Timestamp::now();
        match &change {
            Some(PoolChange::TimeOver) => return Ok(Conclusion::Yes),
            Some(PoolChange::Trouble(words)) => tell(words),
            Some(PoolChange::Unreadable(pool)) => tell(&pool.words),
            _ => {}
        }
        if screen.is_terminal() {
            let pools = followed.pools.values();
            screen.redraw(&(columns.table(pools.clone(), now).text() + &notes(pools, &[], now)))?;
            continue;
        }
        match (change, &widths) {
            (Some(PoolChange::Listed), None) => {
                let table = columns.table(followed.pools.values(), now);
                screen.print(&table.text())?;
                widths = Some(table.widths());
            }
            // after a watch that was broken: nobody knows what has changed
            (Some(PoolChange::Listed), Some(widths)) => {
                for pool in followed.pools.values() {
                    screen.print(&table::line(&columns.row(pool, now), widths))?;
                }
            }
            (Some(PoolChange::Changed(key)), Some(widths)) => {
                if let Some(pool) = followed.pools.get(&key) {
                    screen.print(&table::line(&columns.row(pool, now), widths))?;
                }
            }
            (Some(PoolChange::Deleted(key)), Some(_)) => screen.print(&format!("{key} deleted\n"))?,
            _ => {}
        }
    }
}
