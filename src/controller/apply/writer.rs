//! Writes: paced, each with a deadline, each saying how it ended.

use std::time::Duration;

use k8s_openapi::api::{apps::v1::ControllerRevision, core::v1::Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    core::response::StatusDetails,
};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use thiserror::Error;
use tokio::time::{Instant, sleep_until, timeout};

use crate::{
    api::{ConnectionPool, FIELD_MANAGER},
    contract::{Document, names},
    controller::{
        controller_revision,
        leader::{LEASE_DURATION, Leadership, RENEW_DEADLINE},
    },
    decide::plan::{NewRevision, PodPatch},
    domain::PoolKey,
    http::{OperatorMetrics, WriteKind, WriteOutcome},
    objects::WatchedPod,
};

/// Longest that one write may take.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(4);
// what a leader sends at the last moment of its term is given up before another may write
const _: () = assert!(RENEW_DEADLINE.as_millis() + WRITE_DEADLINE.as_millis() < LEASE_DURATION.as_millis());
/// Least time between two writes on pods: each is a kubelet's sync and a fan-out to every watcher of pods.
const POD_WRITE_SPACING: Duration = Duration::from_millis(20);

/// How a write failed.
#[derive(Debug, Error)]
pub enum WriteError {
    /// Somebody else wrote first: look again.
    #[error("{what}: it changed meanwhile")]
    Conflict {
        /// What was written.
        what: String,
    },
    /// There is no such object any more, or its name has gone to another one.
    #[error("{what}: it is gone")]
    Gone {
        /// What was written.
        what: String,
    },
    /// The API server refused or could not be reached.
    #[error("{what}: {source}")]
    Failed {
        /// What was written.
        what: String,
        /// What the client said.
        #[source]
        source: Box<kube::Error>,
    },
    /// No answer in time. It may have happened.
    #[error("{what}: no answer within {} s", WRITE_DEADLINE.as_secs())]
    NoAnswer {
        /// What was written.
        what: String,
    },
    /// This process is not the leader any more.
    #[error("{what}: not written, this process is no longer the leader")]
    NotLeader {
        /// What was to be written.
        what: String,
    },
}

impl WriteError {
    /// True when the write may have happened although no answer says so.
    pub fn is_doubtful(&self) -> bool {
        match self {
            Self::NoAnswer { .. } => true,
            Self::Failed { source, .. } => !matches!(source.as_ref(), kube::Error::Api(status) if status.code < 500),
            Self::Conflict { .. } | Self::Gone { .. } | Self::NotLeader { .. } => false,
        }
    }

    /// True when something is wrong that people should know of: neither overtaken nor out of office.
    pub const fn is_told(&self) -> bool {
        matches!(self, Self::Failed { .. } | Self::NoAnswer { .. })
    }

    fn outcome(&self) -> WriteOutcome {
        match self {
            Self::Conflict { .. } | Self::Gone { .. } => WriteOutcome::Conflict,
            Self::NoAnswer { .. } => WriteOutcome::NoAnswer,
            Self::Failed { .. } | Self::NotLeader { .. } => WriteOutcome::Failed,
        }
    }
}

/// The one place that writes.
pub struct Writer {
    client: Client,
    leadership: Leadership,
    metrics: OperatorMetrics,
    next_pod_write: Mutex<Option<Instant>>,
}

impl Writer {
    /// A writer that writes only while `leadership` lasts.
    pub fn new(client: Client, leadership: Leadership, metrics: OperatorMetrics) -> Self {
        Self { client, leadership, metrics, next_pod_write: Mutex::default() }
    }

    /// Writes revision and grant of a pod as one merge patch through `pods/status`: nothing else of the pod can change
    /// that way. Uid and resourceVersion hold it to the very object that the plan was made from.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn pod(&self, pool: &PoolKey, patch: &PodPatch) -> Result<Pod, WriteError> {
        let mut annotations = Map::new();
        if let Some(revision) = &patch.revision {
            annotations.insert(names::REVISION_ANNOTATION.to_owned(), Value::String(revision.render()));
        }
        if let Some(grant) = &patch.grant {
            annotations.insert(names::GRANT_ANNOTATION.to_owned(), Value::String(grant.render()));
        }
        let body = json!({"metadata": {
            "uid": &*patch.uid, "resourceVersion": patch.resource_version, "annotations": annotations,
        }});
        self.pace().await;
        let pods: Api<WatchedPod> = Api::namespaced(self.client.clone(), &pool.namespace);
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let what = format!("grant and revision of pod {}/{}", pool.namespace, patch.name);
        let body = Patch::Merge(&body);
        let written = self.write(WriteKind::Pod, what, pods.patch_status(&patch.name, &params, &body)).await;
        written.map(|WatchedPod(pod)| pod)
    }

    /// Creates a revision, and notes who changed the pool.
    ///
    /// # Errors
    /// [`WriteError::Conflict`] when its number is taken.
    pub async fn create_revision(
        &self,
        pool: &ConnectionPool,
        new: &NewRevision,
        changed_by: Option<&str>,
    ) -> Result<ControllerRevision, WriteError> {
        let object = controller_revision::object(pool, new, changed_by);
        let namespace = pool.metadata.namespace.as_deref().unwrap_or_default();
        let revisions: Api<ControllerRevision> = Api::namespaced(self.client.clone(), namespace);
        let what = format!("ControllerRevision {namespace}/{}", controller_revision::name(pool, new.number));
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        self.write(WriteKind::Revision, what, revisions.create(&params, &object)).await
    }

    /// Deletes a revision that the history limit drops.
    ///
    /// # Errors
    /// [`WriteError`]; one that is gone already is none.
    pub async fn delete_revision(&self, namespace: &str, name: &str) -> Result<(), WriteError> {
        let revisions: Api<ControllerRevision> = Api::namespaced(self.client.clone(), namespace);
        let what = format!("ControllerRevision {namespace}/{name}");
        let params = DeleteParams::default();
        match self.write(WriteKind::Revision, what, revisions.delete(name, &params)).await {
            Ok(_) | Err(WriteError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Applies a status by server-side apply.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn status<K>(&self, api: &Api<K>, name: &str, body: &Value, what: String) -> Result<K, WriteError>
    where
        K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let params = PatchParams::apply(FIELD_MANAGER).force();
        self.write(WriteKind::Status, what, api.patch_status(name, &params, &Patch::Apply(body))).await
    }

    /// Applies an object of a gateway by server-side apply. Without `forced` it fails where somebody else has a say: for what
    /// is not known to be the gateway's.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn gateway<K>(
        &self,
        api: &Api<K>,
        name: &str,
        body: &Value,
        forced: bool,
        what: String,
    ) -> Result<K, WriteError>
    where
        K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let params = PatchParams { force: forced, ..PatchParams::apply(FIELD_MANAGER) };
        self.write(WriteKind::Gateway, what, api.patch(name, &params, &Patch::Apply(body))).await
    }

    /// Changes fields of an object of a gateway by a merge patch.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn gateway_patch<K>(&self, api: &Api<K>, name: &str, body: &Value, what: String) -> Result<K, WriteError>
    where
        K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        self.write(WriteKind::Gateway, what, api.patch(name, &params, &Patch::Merge(body))).await
    }

    /// Runs one write while this process is the leader, within the deadline, and counts how it ended.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn write<T>(
        &self,
        kind: WriteKind,
        what: String,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, WriteError> {
        let result = if self.leadership.is_held() {
            match timeout(WRITE_DEADLINE, call).await {
                Err(_) => Err(WriteError::NoAnswer { what }),
                Ok(Ok(value)) => Ok(value),
                Ok(Err(source)) if is_gone(&source, kind) => Err(WriteError::Gone { what }),
                // 409: stale resourceVersion; 404: gone
                Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
                    tracing::debug!(what, code = status.code, message = status.message, "write not taken");
                    Err(WriteError::Conflict { what })
                }
                Ok(Err(source)) => Err(WriteError::Failed { what, source: Box::new(source) }),
            }
        } else {
            Err(WriteError::NotLeader { what })
        };
        self.metrics.wrote(kind, result.as_ref().err().map_or(WriteOutcome::Done, WriteError::outcome));
        result
    }

    /// Waits for its turn: 50 writes on pods a second.
    async fn pace(&self) {
        let turn = {
            let mut next = self.next_pod_write.lock();
            let turn = next.map_or_else(Instant::now, |next| next.max(Instant::now()));
            *next = Some(turn + POD_WRITE_SPACING);
            turn
        };
        sleep_until(turn).await;
    }
}

/// Whether the API server says that the very pod which was to be written is not there any more. What a proxy answers in its place
/// has no reason of Kubernetes', and proves nothing.
fn is_gone(error: &kube::Error, kind: WriteKind) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let is_of_uid = |details: &StatusDetails| details.causes.iter().any(|cause| cause.field == "metadata.uid");
    kind == WriteKind::Pod
        && match (status.code, status.reason.as_str()) {
            (404, "NotFound") | (410, "Gone") => true,
            // its name has gone to another one
            (422, "Invalid") => status.details.as_ref().is_some_and(is_of_uid),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_is_gone_when_kubernetes_says_so_and_for_no_other_answer() {
        let is_gone = |kind, code: u16, reason: &str, field: &str| {
            let status: Status = serde_json::from_value(json!({
                "status": "Failure", "code": code, "reason": reason, "message": "said",
                "details": {"name": "shop-0", "kind": "pods", "causes": [{"field": field}]},
            }))
            .unwrap();
            is_gone(&kube::Error::Api(status.boxed()), kind)
        };
        for (code, reason, field) in [(404, "NotFound", ""), (410, "Gone", ""), (422, "Invalid", "metadata.uid")] {
            assert!(is_gone(WriteKind::Pod, code, reason, field), "{code}");
            assert!(!is_gone(WriteKind::Status, code, reason, field), "{code}");
        }
        for (code, reason, field) in
            [(404, "Failed to parse error data", ""), (409, "Conflict", ""), (422, "Invalid", "spec"), (500, "", "")]
        {
            assert!(!is_gone(WriteKind::Pod, code, reason, field), "{code} {reason}");
        }
    }
}
