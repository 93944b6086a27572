//! What was decided and what came of it, reported: status, conditions, events and metrics, all from the same plan.
//!
//! - [`status`]: the status of a pool, and when it is worth a write.
//! - [`events`]: events, each once.
//! - [`spec_changes`]: who changed a spec, from what to what.

pub mod events;
pub mod spec_changes;
pub mod status;

use std::time::Duration;

use jiff::Timestamp;
use kube::Api;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    apply::writer::WriteError,
    backoff::note,
    context::Context,
    memory::{PoolMemory, WrittenStatus},
};
use crate::{
    api::{ConnectionPool, ConnectionPoolStatus},
    decide::plan::{Plan, PoolReport},
    domain::PoolKey,
    http::PoolLabels,
};

/// How metrics name a pool.
pub fn metric_labels(key: &PoolKey) -> PoolLabels {
    PoolLabels { pool_namespace: key.namespace.clone(), pool: key.name.clone() }
}

/// Status and events, from the same plan.
pub async fn report(
    pool: &ConnectionPool,
    key: &PoolKey,
    context: &Context,
    memory: &Mutex<PoolMemory>,
    (plan, epoch): (Plan, u64),
    now: Timestamp,
) -> Result<(), WriteError> {
    // while a first count is under way, half a status would turn a condition twice; what was done is told now or never
    let is_counted = memory.lock().uninjected.is_some();
    if is_counted {
        context.metrics.conditions(&metric_labels(key), &plan.report.conditions);
    }
    for event in plan.events.into_iter().filter(|event| is_counted || !event.is_of_condition()) {
        context.events.publish(&context.writer, pool, event).await;
    }
    write_status(pool, key, context, memory, (plan.report, epoch), now).await
}

/// Writes the status where that is worth it, unless it is too soon after one that failed, or half of it is not known yet.
pub async fn write_status(
    pool: &ConnectionPool,
    key: &PoolKey,
    context: &Context,
    memory: &Mutex<PoolMemory>,
    (report, epoch): (PoolReport, u64),
    now: Timestamp,
) -> Result<(), WriteError> {
    if memory.lock().uninjected.is_none() {
        return Ok(());
    }
    if memory.lock().status_failure.as_ref().is_some_and(|backoff| !backoff.is_due(Instant::now())) {
        return Ok(());
    }
    // what another process wrote was written long ago
    let (last, since) = {
        let memory = memory.lock();
        let since = memory.written_status.as_ref().map_or(Duration::MAX, |written| written.at.elapsed());
        (memory.status(pool).cloned(), since)
    };
    let status = ConnectionPoolStatus { epoch: Some(epoch), ..status::status(pool, last.as_ref(), report, now) };
    if !status::is_due(last.as_ref(), &status, since) {
        memory.lock().status_failure = None;
        return Ok(());
    }
    let pools: Api<ConnectionPool> = Api::namespaced(context.client.clone(), &key.namespace);
    let body = status::body::<ConnectionPool>(&status);
    let outcome = context.writer.status(&pools, &key.name, &body, format!("status of ConnectionPool {key}")).await;
    let mut memory = memory.lock();
    note(&mut memory.status_failure, outcome.as_ref().err());
    outcome?;
    memory.written_status = Some(WrittenStatus { at: Instant::now(), status: Some(Box::new(status)) });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    };

    use http::{Method, Request, Response};
    use kube::{Client, client::Body};
    use serde_json::json;
    use tokio::time::advance;

    use super::*;
    use crate::{
        api::{conditions, reasons},
        controller::{
            decide,
            leader::Leadership,
            memory::UninjectedCount,
            rehearsal::{Rehearsal, Scene},
        },
        decide::plan::{EventKind, EventNote},
    };

    /// An API server that takes the status of no pool, or of all.
    #[derive(Clone, Default)]
    struct Statuses {
        taken: Arc<AtomicBool>,
        asked: Arc<AtomicUsize>,
        events: Arc<AtomicUsize>,
    }

    impl Statuses {
        fn client(&self) -> Client {
            let statuses = self.clone();
            let service = tower::service_fn(move |request: Request<Body>| {
                let statuses = statuses.clone();
                async move {
                    let is_status = request.method() == Method::PATCH && request.uri().path().ends_with("/status");
                    statuses.asked.fetch_add(usize::from(is_status), Ordering::Relaxed);
                    let is_event = request.method() == Method::POST && request.uri().path().ends_with("/events");
                    statuses.events.fetch_add(usize::from(is_event), Ordering::Relaxed);
                    let pool = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPool", "metadata": {"name": "shop"},
                        "spec": {"upstream": {"host": "pg", "database": "shop", "credentialsRef": {"name": "shop-db"}}}});
                    let refused = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403,
                        "reason": "Forbidden", "message": "no"});
                    let taken = statuses.taken.load(Ordering::Relaxed);
                    let (code, answer) = if taken { (200, pool) } else { (403, refused) };
                    Ok::<_, tower::BoxError>(
                        Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()))?,
                    )
                }
            });
            Client::new(service, "fleet")
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_status_that_is_refused_is_written_again_ever_more_rarely_and_at_once_when_it_may() {
        let statuses = Statuses::default();
        let rehearsal = Rehearsal::with_client(1, Scene::Settled, &statuses.client(), Leadership::held());
        let Rehearsal { context, pool, key, memory } = &rehearsal;
        memory.lock().uninjected =
            Some(UninjectedCount { found: None, failing: None, at: Instant::now(), generation: 1 });
        let tell = async || {
            let now = Timestamp::now();
            let plan = decide::plan(pool, key, context, memory, 7, now);
            report(pool, key, context, memory, (plan, 7), now).await.is_ok()
        };
        for _ in 0..600 {
            tell().await;
            advance(Duration::from_secs(1)).await;
        }
        let asked = || statuses.asked.load(Ordering::Relaxed);
        assert_eq!(asked(), 10, "after 1 s, 2 s, ... 256 s");
        let next = memory.lock().next_retry(Instant::now()).expect("it comes back by itself");
        statuses.taken.store(true, Ordering::Relaxed);
        advance(next - Instant::now()).await;
        assert!(tell().await);
        assert_eq!((asked(), memory.lock().next_retry(Instant::now())), (11, None));
    }

    #[tokio::test(start_paused = true)]
    async fn while_pods_are_counted_for_the_first_time_what_was_done_is_told_and_no_condition() {
        let statuses = Statuses::default();
        let rehearsal = Rehearsal::with_client(1, Scene::Settled, &statuses.client(), Leadership::held());
        let Rehearsal { context, pool, key, memory } = &rehearsal;
        memory.lock().uninjected = None;
        let now = Timestamp::now();
        let event = |reason: &str, action| EventNote {
            kind: EventKind::Normal,
            reason: reason.to_owned(),
            action,
            note: String::new(),
        };
        let mut plan = decide::plan(pool, key, context, memory, 7, now);
        plan.events =
            vec![event(reasons::REVISION_CREATED, "CreateRevision"), event(reasons::NO_PODS, conditions::INJECTED)];
        report(pool, key, context, memory, (plan, 7), now).await.expect("nothing is written");
        let (events, written) = (statuses.events.load(Ordering::Relaxed), statuses.asked.load(Ordering::Relaxed));
        assert_eq!((events, written), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_status_that_has_come_back_through_the_watch_is_kept_once_and_what_somebody_makes_of_it_is_mended() {
        let statuses = Statuses::default();
        statuses.taken.store(true, Ordering::Relaxed);
        let rehearsal = Rehearsal::with_client(1, Scene::Settled, &statuses.client(), Leadership::held());
        let Rehearsal { context, pool, key, memory } = &rehearsal;
        memory.lock().uninjected =
            Some(UninjectedCount { found: None, failing: None, at: Instant::now(), generation: 1 });
        let tell = async |pool: &ConnectionPool| {
            let now = Timestamp::now();
            let plan = decide::plan(pool, key, context, memory, 7, now);
            report(pool, key, context, memory, (plan, 7), now).await.expect("it is taken");
            let kept = memory.lock().written_status.clone().and_then(|written| written.status);
            (statuses.asked.load(Ordering::Relaxed), kept.is_some())
        };
        for _ in 0..3 {
            assert_eq!(tell(pool).await, (1, true), "the watch has not told of it yet");
        }
        let text = serde_json::to_string(&memory.lock().status(pool)).expect("JSON");
        let mut back = ConnectionPool { status: serde_json::from_str(&text).expect("a status"), ..(**pool).clone() };
        for _ in 0..3 {
            assert_eq!(tell(&back).await, (1, false));
        }
        back.status.get_or_insert_default().conditions.clear();
        assert_eq!(tell(&back).await, (2, true));
    }
}
