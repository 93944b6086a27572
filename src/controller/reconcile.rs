//! One look at one pool: observe, decide, apply, prove, report.

use std::{collections::HashSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use tokio::time::Instant;

use super::{
    apply::{self, CarriedOut, Wrote, writer::WriteError},
    backoff::pause_after,
    context::Context,
    decide, leader,
    observe::uninjected_count,
    prove,
    report::{self, metric_labels},
    work_queue::Requeue,
};
use crate::{api::ConnectionPool, domain::PoolKey};

/// Look again after this long when somebody else wrote first: the watch brings the news as well. It doubles each time.
const AFTER_CONFLICT: Duration = Duration::from_millis(250);
/// And after this long at most: a watch may be silent for a while.
const LONGEST_AFTER_CONFLICT: Duration = Duration::from_secs(30);
/// Look again this long after a write if nothing else asks for it: a proof does, and usually comes before.
const AFTER_WRITE: Duration = Duration::from_secs(1);

/// Looks at the pool of this name as the store has it now, and says when to look again. One that is gone is forgotten.
pub async fn look_at(key: &PoolKey, context: &Context) -> Requeue {
    let Some(pool) = context.stores.pools.get(&ObjectRef::new(&key.name).within(&key.namespace)) else {
        forget(key, context);
        return Requeue::WhenAsked;
    };
    let started = Instant::now();
    let (again, error) = look(&pool, key, context).await;
    context.metrics.reconciled(started.elapsed(), error.as_ref().map(category));
    match error {
        Some(error) if error.is_told() => tracing::warn!(pool = %key, %error, "a change failed"),
        Some(error) => tracing::debug!(pool = %key, %error, "look again"),
        None => {}
    }
    again
}

/// A pool is gone: its pods keep their last grant, and nobody asks them any more.
fn forget(key: &PoolKey, context: &Context) {
    context.memories.forget(key);
    context.poller.expect(key, &[], &HashSet::new());
    context.metrics.pool_gone(&metric_labels(key));
}

/// A stable name of what failed, for metrics.
fn category(error: &WriteError) -> &'static str {
    match error {
        WriteError::Conflict { .. } => "Conflict",
        WriteError::Gone { .. } => "Gone",
        WriteError::Failed { .. } => "WriteFailed",
        WriteError::NoAnswer { .. } => "NoAnswer",
        WriteError::NotLeader { .. } => "NotLeader",
    }
}

/// Looks at one pool. What was written before a write that fails stands, and the next look goes on from there.
async fn look(pool: &Arc<ConnectionPool>, key: &PoolKey, context: &Context) -> (Requeue, Option<WriteError>) {
    if !context.pods.is_synced() {
        // counting pods now would find too few, and hand out what others have
        return (Requeue::After(AFTER_CONFLICT), None);
    }
    let epoch = context.leadership.epoch_after(|| newest_epoch(context));
    let Some(epoch) = epoch else { return (Requeue::WhenAsked, None) };
    if pool.metadata.deletion_timestamp.is_some() {
        // a finalizer may keep it for as long as it likes: nothing is measured of it any more
        context.metrics.pool_gone(&metric_labels(key));
        return (Requeue::WhenAsked, None);
    }
    let memory = context.memories.of(key, pool);
    uninjected_count::renew(pool, key, context, &memory);
    report::spec_changes::notice(pool, key, context, &memory);

    let now = Timestamp::now();
    // observes the pool, and decides on what it has seen
    let plan = decide::plan(pool, key, context, &memory, epoch, now);
    let look_again = plan.look_again_seconds.map(|seconds| Duration::from_secs(seconds.into()));
    if plan.remember_first {
        // what cannot be found out again is written down before anybody acts on it; where that fails it is acted on all the same
        let remembered = report::write_status(pool, key, context, &memory, (plan.report.clone(), epoch), now).await;
        if let Err(error) = remembered {
            tracing::warn!(pool = %key, %error, "a failed revision is not in the status yet");
        }
    }
    let CarriedOut { plan, wrote, error } = apply::carry_out(pool, key, context, &memory, plan).await;
    prove::expect(key, context, &plan);
    // writing its objects may take seconds, and no proof waits for that
    apply::gateway_objects::mend(pool, key, context, &memory).await;
    let reported = report::report(pool, key, context, &memory, (plan, epoch), now).await;
    report::spec_changes::tell(pool, key, context, &memory).await;
    let error = error.or(reported.err());
    let (retry, overtaken) = {
        let mut memory = memory.lock();
        let is_overtaken = error.as_ref().is_some_and(|error| !error.is_told());
        memory.overtaken = if is_overtaken { memory.overtaken.saturating_add(1) } else { 0 };
        (memory.next_retry(Instant::now()), memory.overtaken)
    };
    let retry = retry.map(|at| at.saturating_duration_since(Instant::now()));
    (again(wrote, overtaken, [retry, look_again].into_iter().flatten().min()), error)
}

/// When to look again if nothing asks for it before. `overtaken`: looks in a row, this one included, in which somebody else wrote first;
/// `later`: until something that failed is tried again, or a rollout goes on by itself.
fn again(wrote: Wrote, overtaken: u32, later: Option<Duration>) -> Requeue {
    let more = match wrote {
        Wrote::Nothing => None,
        Wrote::Everything => Some(AFTER_WRITE),
        Wrote::Batch => Some(Duration::ZERO),
    };
    let overtaken = (overtaken > 0).then(|| pause_after(overtaken, AFTER_CONFLICT, LONGEST_AFTER_CONFLICT));
    let pause = [more, overtaken, later].into_iter().flatten().min();
    pause.map_or(Requeue::WhenAsked, Requeue::After)
}

/// The newest epoch that an operator has written.
fn newest_epoch(context: &Context) -> u64 {
    let pools = context.stores.pools.state();
    let in_status = pools.iter().filter_map(|pool| pool.status.as_ref()?.epoch);
    leader::newest_written(in_status, context.pods.epochs())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::{Method, Request, Response};
    use kube::{Client, client::Body};
    use parking_lot::Mutex;
    use serde_json::{Value, json};
    use tokio::time::{advance, sleep};

    use super::*;
    use crate::{
        contract::names::CHANGED_BY_ANNOTATION,
        controller::{
            leader::Leadership,
            memory::UninjectedCount,
            rehearsal::{Rehearsal, Scene},
        },
    };

    /// Longer than anybody waits to hear who changed a pool.
    const NEVER: Duration = Duration::from_mins(10);

    /// An API server that takes all but writes on pods, and says so late who changed a pool.
    #[derive(Default)]
    struct Api {
        says_who_after: Duration,
        asked_who: AtomicUsize,
        pods: AtomicUsize,
        statuses: AtomicUsize,
        revisions: Mutex<Vec<Value>>,
        events: Mutex<Vec<String>>,
    }

    impl Api {
        fn client(self: &Arc<Self>) -> Client {
            let api = self.clone();
            let service = tower::service_fn(move |request: Request<Body>| {
                let api = api.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect_bytes().await?;
                    let sent: Value = serde_json::from_slice(&body).unwrap_or_default();
                    let (code, answer) = api.answer(&head.method, head.uri.path(), sent).await;
                    let response = Response::builder().status(code).header("content-type", "application/json");
                    Ok::<_, tower::BoxError>(response.body(Body::from(answer.to_string().into_bytes()))?)
                }
            });
            Client::new(service, "fleet")
        }

        async fn answer(&self, method: &Method, path: &str, sent: Value) -> (u16, Value) {
            let count = |counter: &AtomicUsize| counter.fetch_add(1, Ordering::Relaxed);
            match path.rsplit('/').next() {
                Some("connectionpools") if method == Method::GET => {
                    count(&self.asked_who);
                    sleep(self.says_who_after).await;
                    let written =
                        json!({"manager": "kubectl-edit", "time": "2026-12-01T12:00:00Z", "operation": "Update"});
                    let found = json!({"metadata": {"name": "shop", "managedFields": [written]}});
                    (
                        200,
                        json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": {}, "items": [found]}),
                    )
                }
                Some("controllerrevisions") if method == Method::POST => {
                    self.revisions.lock().push(sent.clone());
                    (201, sent)
                }
                Some("events") if method == Method::POST => {
                    let note = sent["note"].as_str().unwrap_or_default();
                    let told = format!("{}: {note}", sent["reason"].as_str().unwrap_or_default());
                    self.events.lock().push(told);
                    (201, sent)
                }
                Some("status") if path.contains("/connectionpools/") => {
                    count(&self.statuses);
                    (
                        200,
                        json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPool", "metadata": {"name": "shop"},
                        "spec": {"upstream": {"host": "pg", "database": "shop", "credentialsRef": {"name": "shop-db"}}}}),
                    )
                }
                _ => {
                    if method == Method::PATCH {
                        count(&self.pods);
                    }
                    (
                        403,
                        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden", "message": "no"}),
                    )
                }
            }
        }

        fn counted(counter: &AtomicUsize) -> usize {
            counter.load(Ordering::Relaxed)
        }

        fn told(&self, reason: &str) -> Vec<String> {
            self.events.lock().iter().filter(|told| told.starts_with(reason)).cloned().collect()
        }
    }

    /// A pool with pods whose spec somebody changes: its next looks at that.
    struct Changed {
        rehearsal: Rehearsal,
        pool: Arc<ConnectionPool>,
    }

    impl Changed {
        fn new(api: &Arc<Api>) -> Self {
            let rehearsal = Rehearsal::with_client(4, Scene::LoadShifted, &api.client(), Leadership::held());
            {
                let mut memory = rehearsal.memory.lock();
                memory.looked_at = Some(rehearsal.pool.clone());
                memory.uninjected =
                    Some(UninjectedCount { found: None, failing: None, at: Instant::now(), generation: 2 });
            }
            let mut pool = (*rehearsal.pool).clone();
            pool.metadata.generation = Some(2);
            pool.spec.health = serde_json::from_value(json!({"queryWaitTimeoutSeconds": 7})).expect("a part of a spec");
            Self { rehearsal, pool: Arc::new(pool) }
        }

        /// How long one took.
        async fn look(&self) -> Duration {
            let began = Instant::now();
            look(&self.pool, &self.rehearsal.key, &self.rehearsal.context).await;
            began.elapsed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn neither_grants_nor_status_wait_to_hear_who_changed_a_spec_and_its_revision_only_so_long() {
        let api = Arc::new(Api { says_who_after: NEVER, ..Api::default() });
        let changed = Changed::new(&api);
        let took = changed.look().await;
        assert!(took < Duration::from_millis(500), "{took:?}");
        assert!(Api::counted(&api.pods) > 0 && Api::counted(&api.statuses) == 1);
        assert_eq!(api.revisions.lock().len(), 0, "it is to carry who made it");
        assert_eq!(api.told("SpecChanged"), Vec::<String>::new());
        advance(Duration::from_secs(2)).await;
        sleep(Duration::from_millis(1)).await;
        let took = changed.look().await;
        assert!(took < Duration::from_millis(500), "{took:?}");
        let created = api.revisions.lock().clone();
        assert_eq!(created.len(), 1);
        assert_eq!(created[0]["metadata"]["annotations"][CHANGED_BY_ANNOTATION], Value::Null);
        let told = ["SpecChanged: generation 1 -> 2: health.queryWaitTimeoutSeconds unset -> 7"];
        assert_eq!(api.told("SpecChanged"), told, "nobody is named");
        changed.look().await;
        assert_eq!((Api::counted(&api.asked_who), api.told("SpecChanged").len()), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn who_changed_a_spec_is_asked_once_and_named_by_the_events_and_by_the_revision() {
        let api = Arc::new(Api { says_who_after: Duration::from_secs(1), ..Api::default() });
        let changed = Changed::new(&api);
        changed.look().await;
        sleep(Duration::from_millis(1001)).await;
        for _ in 0..3 {
            changed.look().await;
        }
        assert_eq!(Api::counted(&api.asked_who), 1);
        let created = api.revisions.lock().clone();
        assert_eq!(created.len(), 1);
        assert_eq!(created[0]["metadata"]["annotations"][CHANGED_BY_ANNOTATION], "kubectl-edit");
        let told = "SpecChanged: generation 1 -> 2 by kubectl-edit: health.queryWaitTimeoutSeconds unset -> 7";
        assert_eq!(api.told("SpecChanged"), [told]);
        let told = api.told("RevisionCreated");
        assert!(told.len() == 1 && told[0].ends_with(", changed by kubectl-edit"), "{told:?}");
    }

    #[test]
    fn what_is_left_goes_on_at_once_and_what_failed_comes_back_by_itself() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(again(Wrote::Nothing, 0, None), Requeue::WhenAsked);
        assert_eq!(again(Wrote::Nothing, 0, seconds(7)), Requeue::After(Duration::from_secs(7)));
        assert_eq!(again(Wrote::Everything, 0, seconds(7)), Requeue::After(AFTER_WRITE));
        assert_eq!(again(Wrote::Batch, 0, seconds(7)), Requeue::After(Duration::ZERO), "one pod holds up none");
    }

    #[test]
    fn who_is_overtaken_again_and_again_looks_ever_more_rarely() {
        let pauses = [1, 2, 3, 7, 8, u32::MAX].map(|overtaken| again(Wrote::Nothing, overtaken, None));
        let expected = [250, 500, 1_000, 16_000, 30_000, 30_000];
        assert_eq!(pauses, expected.map(|milliseconds| Requeue::After(Duration::from_millis(milliseconds))));
    }
}
