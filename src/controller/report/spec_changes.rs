//! Who changed the spec of a pool, from what to what: an event and a line of the log for every generation that the leader sees.
//!
//! Revisions tell of what poolers are given; this tells of bounds, modes and everything else as well. Nothing waits for it: it is told in
//! the look after the API server has said who it was, or has not in time.

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use crate::{
    api::{ConnectionPool, reasons},
    controller::{
        context::Context,
        memory::PoolMemory,
        observe::changed_by::{Author, author},
    },
    decide::{
        plan::{EventKind, EventNote},
        spec_change,
    },
    domain::PoolKey,
};

/// A change that is not told yet.
pub struct Untold {
    /// The pool as it was; None where nobody saw that.
    before: Option<Arc<ConnectionPool>>,
    change: SpecChange,
}

/// What happened to the spec since the last look.
#[derive(Debug, PartialEq, Eq)]
struct SpecChange {
    from: i64,
    to: i64,
    /// What differs, in words; None where nobody saw what it was before.
    fields: Option<String>,
}

/// Takes in a change since the last look, and has it asked who made it. Changes that are not told yet are told as one.
pub fn notice(pool: &Arc<ConnectionPool>, key: &PoolKey, context: &Context, memory: &Arc<Mutex<PoolMemory>>) {
    let is_untold = {
        let mut memory = memory.lock();
        let before = memory.looked_at.replace(pool.clone());
        let untold = memory.untold.take();
        memory.untold = together(untold, before, pool);
        memory.untold.is_some()
    };
    if is_untold {
        author(pool, key, context, memory);
    }
}

/// What is to be told now: what was to be told already, and what has changed since the last look.
fn together(untold: Option<Untold>, before: Option<Arc<ConnectionPool>>, now: &Arc<ConnectionPool>) -> Option<Untold> {
    let Some(Untold { before: first, change: known }) = untold else {
        return change(before.as_deref(), now).map(|change| Untold { before, change });
    };
    let change = match &first {
        _ if now.metadata.generation == Some(known.to) => known,
        Some(first) => change(Some(first), now)?,
        None => SpecChange { to: now.metadata.generation.unwrap_or(known.to), ..known },
    };
    Some(Untold { before: first, change })
}

/// Tells of a change once it is known who made it, or that nobody can say.
pub async fn tell(pool: &Arc<ConnectionPool>, key: &PoolKey, context: &Context, memory: &Arc<Mutex<PoolMemory>>) {
    if memory.lock().untold.is_none() {
        return;
    }
    let Author::Known(who) = author(pool, key, context, memory) else { return };
    let untold = memory.lock().untold.take();
    let Some(SpecChange { from, to, fields }) = untold.map(|untold| untold.change) else { return };
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
    fn changes_that_come_before_the_first_is_told_are_told_as_one() {
        let pools = [pool(1, 40, None), pool(2, 60, Some(1)), pool(3, 80, Some(2))].map(Arc::new);
        let [first, second, third] = &pools;
        let then = |untold, before: &Arc<ConnectionPool>, now| together(untold, Some(before.clone()), now);
        let told = then(then(then(None, first, second), second, second), second, third).expect("it changed").change;
        assert_eq!((told.from, told.to, told.fields.as_deref()), (1, 3, Some("scaling.maxAllowed 40 -> 80")));
        // of what nobody saw, nobody knows more after a further change
        let unseen = together(None, None, second);
        let told = then(unseen, second, third).expect("it changed").change;
        assert_eq!(told, SpecChange { from: 1, to: 3, fields: None });
    }

    #[test]
    fn a_change_that_came_while_nobody_operated_is_told_as_one_that_nobody_saw() {
        assert_eq!(change(None, &pool(3, 40, Some(1))), Some(SpecChange { from: 1, to: 3, fields: None }));
        assert_eq!(change(None, &pool(3, 40, Some(3))), None, "the leader before has told of it");
        assert_eq!(change(None, &pool(1, 40, None)), None, "a new pool is no change");
    }
}
