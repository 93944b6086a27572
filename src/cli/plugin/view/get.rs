//! `get`: pools in a table, and why some are not ready.

use k8s_openapi::jiff::Timestamp;

use super::{
    document::{PoolDocument, UnreadablePool, said},
    table::{TextTable, cell},
    time::age,
};
use crate::api::{Mode, conditions};

/// Pools that are not ready of which is said why.
const MOST_EXPLAINED: usize = 5;

/// Which columns there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// The namespace too.
    pub namespace: bool,
    /// The further ones too.
    pub wide: bool,
}

/// The columns of `kubectl get connectionpools`.
const NARROW: [&str; 11] =
    ["NAME", "MODE", "SIZE", "TARGET", "SHARE", "DEMAND", "WAITING", "PODS", "READY", "REASON", "AGE"];
/// And those of `-o wide`.
const WIDE: [&str; 7] = ["MIN", "MAX", "UNCAPPED", "REVISION", "BUDGET", "CLASS", "LASTSCALE"];

impl Columns {
    /// The headers of these columns.
    pub fn headers(self) -> Vec<&'static str> {
        let namespace = self.namespace.then_some("NAMESPACE");
        let wide = if self.wide { &WIDE[..] } else { &[] };
        namespace.into_iter().chain(NARROW).chain(wide.iter().copied()).collect()
    }

    /// The row of a pool.
    pub fn row(self, document: &PoolDocument, now: Timestamp) -> Vec<String> {
        let (key, status) = (document.key(), document.status());
        let ready = document.condition(conditions::READY);
        let created = document.pool.metadata.creation_timestamp.as_ref();
        let mut cells = if self.namespace { vec![key.namespace] } else { Vec::new() };
        cells.extend([
            key.name,
            mode(document.pool.spec.mode).to_owned(),
            cell(status.current_size),
            cell(status.recommendation.map(|recommendation| recommendation.target)),
            cell(status.share),
            cell(status.load.as_ref().map(|load| load.demand.clone())),
            cell(status.load.as_ref().map(|load| load.waiting)),
            cell(status.pods.map(|pods| pods.matched)),
            cell(ready.map(|ready| ready.status.clone())),
            cell(ready.map(|ready| ready.reason.clone())),
            cell(created.map(|created| age(created.0, now))),
        ]);
        if self.wide {
            let effective = status.effective.as_ref();
            let budget = document.pool.spec.budget_ref.as_ref();
            cells.extend([
                cell(effective.map(|effective| effective.min_allowed)),
                cell(effective.map(|effective| effective.max_allowed)),
                cell(status.recommendation.map(|recommendation| recommendation.uncapped_target)),
                cell(status.revision.as_ref().map(|revision| revision.updated)),
                cell(budget.map(|budget| budget.name.clone())),
                cell(effective.and_then(|effective| effective.class.clone())),
                cell(status.last_scale_time.as_ref().map(|time| age(time.0, now))),
            ]);
        }
        cells
    }

    /// The table of these pools.
    pub fn table<'a>(self, pools: impl IntoIterator<Item = &'a PoolDocument>, now: Timestamp) -> TextTable {
        let mut table = TextTable::new(&self.headers());
        for pool in pools {
            table.push(self.row(pool, now));
        }
        table
    }
}

/// A mode as the API writes it.
pub const fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Apply => "Apply",
        Mode::Recommend => "Recommend",
    }
}

/// Below the table: why some pools are not ready, what could not be read, and that a plugin and an operator are of different versions.
pub fn notes<'a>(
    pools: impl IntoIterator<Item = &'a PoolDocument> + Clone,
    unreadable: &[UnreadablePool],
    now: Timestamp,
) -> String {
    let mut lines: Vec<String> = unreadable.iter().map(|pool| pool.words.clone()).collect();
    let troubled: Vec<String> = pools.clone().into_iter().filter_map(|pool| trouble(pool, now)).collect();
    let (told, more) = troubled.split_at(troubled.len().min(MOST_EXPLAINED));
    lines.extend(told.iter().cloned());
    if !more.is_empty() {
        lines.push(format!("and {} more that are not ready", more.len()));
    }
    lines.extend(pools.into_iter().find_map(PoolDocument::skew));
    if lines.is_empty() { String::new() } else { format!("\n{}\n", lines.join("\n")) }
}

/// Why a pool is not ready, in a line that ends with the command that says more; none where it is.
fn trouble(document: &PoolDocument, now: Timestamp) -> Option<String> {
    let key = document.key();
    let more = format!("kubectl sluice why {} {}", document.name(), document.in_namespace());
    let Some(ready) = document.condition(conditions::READY) else {
        return Some(format!("{key}: nobody has looked at it yet: does an operator run? See kubectl sluice check"));
    };
    (ready.status != "True").then(|| format!("{key}: {}: {}; see {more}", said(ready, now), ready.message))
}
