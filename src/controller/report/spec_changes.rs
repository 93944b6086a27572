//! Who changed the spec of a pool, from what to what: an event and a line of the log for every generation that the leader sees.
//!
//! Revisions tell of what poolers are given; this tells of bounds, modes and everything else as well.

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use crate::{
    api::{ConnectionPool, reasons},
    controller::{context::Context, memory::PoolMemory, observe::changed_by::changed_by},
    decide::{
        plan::{EventKind, EventNote},
        spec_change,
    },
    domain::PoolKey,
};

/// What happened to the spec since the last look.
#[derive(Debug, PartialEq, Eq)]
struct SpecChange {
    from: i64,
    to: i64,
    /// What differs, in words; None where nobody saw what it was before.
    fields: Option<String>,
}

/// Tells of a change since the last look. Two changes between two looks are told as one.
pub async fn tell(pool: &Arc<ConnectionPool>, key: &PoolKey, context: &Context, memory: &Mutex<PoolMemory>) {
    let before = memory.lock().looked_at.replace(pool.clone());
    let Some(SpecChange { from, to, fields }) = change(before.as_deref(), pool) else { return };
    let who = changed_by(&context.client, pool).await;
    tracing::info!(pool = %key, from, to, changed_by = who, fields, "spec changed");
    let who = who.map(|who| format!(" by {who}")).unwrap_or_default();
    let what = fields.unwrap_or_else(|| "no operator saw what it was before".to_owned());
    let event = EventNote {
        kind: EventKind::Normal,
        reason: reasons::SPEC_CHANGED.to_owned(),
        action: "ChangeSpec",
        note: format!("generation {from} -> {to}{who}: {what}"),
    };
    context.events.publish(&context.writer, &**pool, event).await;
}

fn change(before: Option<&ConnectionPool>, now: &ConnectionPool) -> Option<SpecChange> {
    let to = now.metadata.generation?;
    let Some(before) = before else {
        // the first look of this process: what the one before it has seen stands in the status
        let from = now.status.as_ref()?.observed_generation?;
        return (from < to).then_some(SpecChange { from, to, fields: None });
    };
    let from = before.metadata.generation?;
    if from == to {
        return None;
    }
    let spec = |pool: &ConnectionPool| serde_json::to_value(&pool.spec).unwrap_or(Value::Null);
    let changes = spec_change::changes(&spec(before), &spec(now));
    let fields = spec_change::in_words(&changes).unwrap_or_else(|| "nothing that this version knows".to_owned());
    Some(SpecChange { from, to, fields: Some(fields) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pool(generation: i64, max_allowed: u32, observed: Option<i64>) -> ConnectionPool {
        serde_json::from_value(json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPool",
            "metadata": {"name": "shop", "generation": generation},
            "spec": {"upstream": {"host": "pg", "database": "shop", "credentialsRef": {"name": "shop-db"}},
                "scaling": {"maxAllowed": max_allowed}},
            "status": {"observedGeneration": observed},
        }))
        .expect("a pool")
    }

    #[test]
    fn a_change_is_told_once_with_what_it_was_before() {
        let (first, second) = (pool(1, 40, None), pool(2, 60, Some(1)));
        let told = change(Some(&first), &second).expect("it changed");
        assert_eq!((told.from, told.to, told.fields.as_deref()), (1, 2, Some("scaling.maxAllowed 40 -> 60")));
        assert_eq!(change(Some(&second), &second), None);
    }

    #[test]
    fn a_change_that_came_while_nobody_operated_is_told_as_one_that_nobody_saw() {
        assert_eq!(change(None, &pool(3, 40, Some(1))), Some(SpecChange { from: 1, to: 3, fields: None }));
        assert_eq!(change(None, &pool(3, 40, Some(3))), None, "the leader before has told of it");
        assert_eq!(change(None, &pool(1, 40, None)), None, "a new pool is no change");
    }
}
