//! Pods that the API server refuses to create, as ReplicaSets tell of them: one list of a namespace, for all its pools.
//!
//! A quota, a LimitRange or another webhook refuses a pod after ours has changed it, so nobody here hears of it, and there is no pod to
//! ask. Its ReplicaSet has the API server's sentence in the condition `ReplicaFailure`. A StatefulSet, a DaemonSet and a Job tell of it
//! in events alone, which the operator may not read: where no pod is there at all, the pool says how people can.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, OnceLock},
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Client, ResourceExt, api::ListParams, core::Request};
use serde::Deserialize;
use thiserror::Error;
use tokio::time::timeout;

use super::namespace_lists::{ListSince, NamespaceLists};
use crate::{
    api::{ConnectionPool, pool_of_labels},
    decide::plan::PodsRefused,
    objects::{self, ListPages},
};

/// Longest that one list may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// A list serves for so long.
const REUSED_FOR: Duration = Duration::from_secs(8);
/// Lists under way at once, of all namespaces.
const LISTS_AT_ONCE: usize = 2;
/// ReplicaSets in one page, and pages that are asked for. The API server keeps ten for each Deployment.
const PAGE: u32 = 250;
const PAGES: usize = 20;
/// Largest page that is read, in bytes: a template may have more than a megabyte, without a single pod. Of what does not fit a quarter is
/// asked for.
const LARGEST_PAGE: usize = 4 << 20;
/// Longest sentence that is kept, in characters.
const LONGEST: usize = 400;

/// Pods that were refused.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ReplicaFailure {
    /// Their labels, as the template has them.
    labels: BTreeMap<String, String>,
    told: PodsRefused,
}

/// The pods of one namespace that are refused.
#[derive(Debug, Default)]
pub struct NamespaceFailures {
    all: Vec<ReplicaFailure>,
    /// Where the first of each pool stands, once somebody has asked.
    by_pool: OnceLock<HashMap<String, usize>>,
}

impl NamespaceFailures {
    /// Those of the pool of this name, out of all pools of the namespace. Whose each is is looked for once for all pools that ask.
    pub fn of_pool(&self, name: &str, pools: &[Arc<ConnectionPool>]) -> Option<PodsRefused> {
        let by_pool = self.by_pool.get_or_init(|| {
            let mut by_pool = HashMap::new();
            for (index, ReplicaFailure { labels, .. }) in self.all.iter().enumerate() {
                if let Some(pool) = pool_of_labels(labels, pools.iter().map(AsRef::as_ref)) {
                    by_pool.entry(pool.name_any()).or_insert(index);
                }
            }
            by_pool
        });
        by_pool.get(name).and_then(|index| self.all.get(*index)).map(|failure| failure.told.clone())
    }
}

/// Why the ReplicaSets of a namespace could not be listed.
#[derive(Debug, Error)]
pub enum ReplicaSetListError {
    /// The API server refused or could not be reached.
    #[error("listing the ReplicaSets: {0}")]
    List(#[from] kube::Error),
    /// No answer in time.
    #[error("listing the ReplicaSets: no answer within {} s", DEADLINE.as_secs())]
    Deadline,
}

/// The lists of all namespaces.
pub struct ReplicaFailureLister {
    client: Client,
    lists: NamespaceLists<NamespaceFailures, ReplicaSetListError>,
}

impl ReplicaFailureLister {
    /// None was made yet.
    pub fn new(client: Client) -> Self {
        Self { client, lists: NamespaceLists::new(LISTS_AT_ONCE, REUSED_FOR) }
    }

    /// The pods of a namespace that are refused now. Where it cannot be read, it says so in the log, and nothing is known.
    pub async fn of(&self, namespace: &str) -> Arc<NamespaceFailures> {
        let list = || async {
            let listed = timeout(DEADLINE, self.list(namespace)).await.unwrap_or(Err(ReplicaSetListError::Deadline));
            let listed = listed.map(|all| NamespaceFailures { all, by_pool: OnceLock::new() });
            listed.inspect_err(|error| tracing::warn!(namespace, %error, "pods that are refused stay unknown"))
        };
        self.lists.of(namespace, ListSince::Lately, list).await.unwrap_or_default()
    }

    async fn list(&self, namespace: &str) -> Result<Vec<ReplicaFailure>, ReplicaSetListError> {
        let path = format!("/apis/apps/v1/namespaces/{namespace}/replicasets");
        let path = path.as_str();
        let ask = |params: ListParams| async move {
            let request = Request::new(path).list(&params).map_err(kube::Error::BuildRequest)?;
            objects::page(&self.client, request, LARGEST_PAGE).await
        };
        let mut pages = ListPages::new(ListParams::default(), PAGE, PAGES);
        let mut refused = Vec::new();
        while let Some(page) = pages.next(&ask).await? {
            refused.extend(page.into_iter().filter_map(ReplicaSet::refused));
        }
        Ok(refused)
    }
}

/// What is read of one; all else is skipped in the text.
#[derive(Deserialize)]
struct ReplicaSet {
    metadata: Named,
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    name: String,
    #[serde(default)]
    owner_references: Vec<Owner>,
}

#[derive(Deserialize)]
struct Owner {
    kind: String,
    name: String,
    #[serde(default)]
    controller: bool,
}

#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    template: Template,
}

#[derive(Default, Deserialize)]
struct Template {
    #[serde(default)]
    metadata: ObjectMeta,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
    #[serde(default)]
    message: String,
}

impl ReplicaSet {
    /// What it says of pods that it cannot create; None: it can.
    fn refused(self) -> Option<ReplicaFailure> {
        let mut conditions = self.status.conditions.into_iter();
        let failure = conditions.find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")?;
        let owner = self.metadata.owner_references.into_iter().find(|owner| owner.controller);
        let owner = owner.map_or_else(
            || format!("replicaset/{}", self.metadata.name),
            |owner| format!("{}/{}", owner.kind.to_lowercase(), owner.name),
        );
        let message = failure.message.chars().take(LONGEST).collect();
        let labels = self.spec.template.metadata.labels.unwrap_or_default();
        Some(ReplicaFailure { labels, told: PodsRefused { owner, message } })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use http::{Request as HttpRequest, Response, StatusCode};
    use kube::client::Body;
    use parking_lot::Mutex;
    use serde_json::{Value, json};
    use tokio::time::advance;
    use tower::service_fn;

    use super::*;

    fn refusals(status: StatusCode, answer: Value) -> (ReplicaFailureLister, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        let service = service_fn(move |_: HttpRequest<Body>| {
            counter.fetch_add(1, Ordering::Relaxed);
            let response = Response::builder().status(status).body(Body::from(answer.to_string().into_bytes()));
            async move { Ok::<_, Infallible>(response.expect("a response")) }
        });
        (ReplicaFailureLister::new(Client::new(service, "default")), asked)
    }

    fn replica_set(name: &str, owner: &Value, status: &str) -> Value {
        json!({
            "metadata": {"name": name, "ownerReferences": owner},
            "spec": {"template": {"metadata": {"labels": {"app": "shop"}}, "spec": {"containers": []}}},
            "status": {"replicas": 0, "conditions": [
                {"type": "ReplicaFailure", "status": status, "reason": "FailedCreate", "message": "pods \"a\" is forbidden: no"}]},
        })
    }

    #[tokio::test]
    async fn what_a_replica_set_cannot_create_is_told_with_its_owner_and_the_servers_words_and_listed_once_for_all() {
        let owner =
            json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop", "uid": "u", "controller": true}]);
        let none = json!([]);
        let items = [
            replica_set("shop-5d4f", &owner, "True"),
            replica_set("alone", &none, "True"),
            replica_set("fine", &none, "False"),
            json!({"metadata": {"name": "new"}, "spec": {}}),
        ];
        let (refusals, asked) = refusals(StatusCode::OK, json!({"metadata": {}, "items": items}));
        let found = refusals.of("ns").await;
        let owners: Vec<&str> = found.all.iter().map(|refused| refused.told.owner.as_str()).collect();
        assert_eq!(owners, ["deployment/shop", "replicaset/alone"]);
        assert_eq!(found.all[0].labels, BTreeMap::from([("app".to_owned(), "shop".to_owned())]));
        assert!(found.all[0].told.message.contains("is forbidden"), "{found:?}");
        refusals.of("ns").await;
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        let pool: ConnectionPool = serde_json::from_value(json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPool", "metadata": {"name": "shop"}, "spec": {
                "workload": {"selector": {"matchLabels": {"app": "shop"}}},
                "upstream": {"host": "pg", "database": "d", "credentialsRef": {"name": "s"}}}}))
        .expect("a pool");
        let pools = [Arc::new(pool)];
        assert_eq!(found.of_pool("shop", &pools).map(|refused| refused.owner).as_deref(), Some("deployment/shop"));
        assert_eq!(found.of_pool("cart", &pools), None);
        assert!(found.of_pool("shop", &[]).is_some(), "whose each is is not looked for again");
    }

    #[tokio::test(start_paused = true)]
    async fn of_templates_that_are_large_fewer_are_read_at_once() {
        let limits: Arc<Mutex<Vec<usize>>> = Arc::default();
        let asked = limits.clone();
        let service = service_fn(move |request: HttpRequest<Body>| {
            let query = request.uri().query().unwrap_or_default();
            let limit = query.split('&').find_map(|pair| pair.strip_prefix("limit=")?.parse().ok()).expect("a limit");
            asked.lock().push(limit);
            let mut large = replica_set("large", &json!([]), "True");
            large["spec"]["template"]["spec"]["containers"] = json!([{"name": "app", "args": ["x".repeat(300 << 10)]}]);
            let items = vec![large; limit.min(40)];
            let body = Body::from(json!({"metadata": {}, "items": items}).to_string().into_bytes());
            async move { Ok::<_, Infallible>(Response::new(body)) }
        });
        let refusals = ReplicaFailureLister::new(Client::new(service, "default"));
        assert_eq!(refusals.of("ns").await.all.len(), 3);
        assert_eq!(*limits.lock(), [250, 62, 15, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn where_they_may_not_be_listed_nothing_is_known_and_nothing_fails_and_it_is_asked_ever_more_rarely() {
        let refused = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "code": 403});
        let (refusals, asked) = refusals(StatusCode::FORBIDDEN, refused);
        for _ in 0..1800 {
            assert!(refusals.of("ns").await.all.is_empty());
            advance(Duration::from_secs(1)).await;
        }
        let asked = asked.load(Ordering::Relaxed);
        assert!((8..=14).contains(&asked), "{asked} times in half an hour");
    }
}
