//! Pods without a sidecar: one list of a namespace, for all its pools.
//!
//! A list per pool would make the API server look through all pods of a namespace once for each: with a thousand pools that
//! is most of what it does.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, OnceLock},
    time::Duration,
};

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Client, Resource, ResourceExt,
    api::{ListParams, PartialObjectMeta},
    core::Request,
};
use thiserror::Error;
use tokio::time::timeout;

use super::{
    namespace_lists::{ListOutcome, ListSince, NamespaceLists},
    pods::owner_of,
};
use crate::{
    api::{ConnectionPool, pool_of_labels},
    contract::names::POOL_LABEL,
    objects::{self, Lean, ListPages, Page},
};

/// Longest that one page of a list may take, and all of them.
const DEADLINE_OF_A_PAGE: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(30);
/// A list that began this long ago serves who only looks again.
const REUSED_FOR: Duration = Duration::from_secs(5);
/// Lists under way at once, of all namespaces.
const LISTS_AT_ONCE: usize = 4;
/// Pods that are looked at: beyond that nobody wants the exact number.
const MOST_PODS: usize = 10_000;
/// Pods in one page, and the largest page that is read, in bytes. The metadata of a pod may have a megabyte: of what does not fit a quarter
/// is asked for.
const PAGE: u32 = 500;
const LARGEST_PAGE: usize = 4 << 20;
/// Pages that are asked for in one list.
const PAGES: usize = 60;
/// Owners that are named.
const OWNERS: usize = 5;

/// Why the pods could not be listed.
#[derive(Debug, Error)]
pub enum UninjectedListError {
    /// The API server refused or could not be reached.
    #[error("listing the pods without a sidecar of namespace {namespace}: {source}")]
    List {
        /// Which namespace.
        namespace: String,
        /// What the client said.
        #[source]
        source: Box<kube::Error>,
    },
    /// No answer in time.
    #[error("listing the pods without a sidecar of namespace {namespace}: no answer within {} s", within.as_secs())]
    Deadline {
        /// Which namespace.
        namespace: String,
        /// Within what time.
        within: Duration,
    },
    /// More pods than are looked at.
    #[error(
        "the namespace {namespace} has more pods without a sidecar than are looked at ({}), and those that were are none of this pool's",
        MOST_PODS
    )]
    TooMany {
        /// Which namespace.
        namespace: String,
    },
}

/// Pods without a sidecar that have the same labels and the same owner.
#[derive(Clone, Debug, PartialEq, Eq)]
struct UninjectedGroup {
    labels: BTreeMap<String, String>,
    /// What restarts them, by kind and name.
    owner: Option<String>,
    /// How many they are.
    pods: u32,
}

/// The pods without a sidecar of one namespace.
#[derive(Debug)]
pub struct UninjectedPods {
    /// Those that are alike together.
    alike: Vec<UninjectedGroup>,
    /// Whether these are all.
    pub is_whole: bool,
    /// By pool, once somebody has asked.
    by_pool: OnceLock<HashMap<String, PoolUninjected>>,
}

/// The pods without a sidecar of one pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolUninjected {
    /// How many.
    pub pods: u32,
    /// What restarts some of them, by kind and name.
    pub owners: Vec<String>,
}

impl UninjectedPods {
    /// Those of the pool of this name, out of all pools of the namespace. Whose each pod is is looked for once for all pools that ask: by
    /// each of a thousand pools it would take as many times as long.
    pub fn of_pool(&self, name: &str, pools: &[Arc<ConnectionPool>]) -> PoolUninjected {
        let by_pool = self.by_pool.get_or_init(|| {
            let mut by_pool: HashMap<String, PoolUninjected> = HashMap::new();
            for UninjectedGroup { labels, owner, pods } in &self.alike {
                let Some(pool) = pool_of_labels(labels, pools.iter().map(AsRef::as_ref)) else { continue };
                let of_pool = by_pool.entry(pool.name_any()).or_default();
                of_pool.pods = of_pool.pods.saturating_add(*pods);
                if let Some(owner) = owner
                    && of_pool.owners.len() < OWNERS
                    && !of_pool.owners.contains(owner)
                {
                    of_pool.owners.push(owner.clone());
                }
            }
            by_pool
        });
        by_pool.get(name).cloned().unwrap_or_default()
    }
}

/// The lists of all namespaces.
pub struct UninjectedPodLister {
    client: Client,
    lists: NamespaceLists<UninjectedPods, UninjectedListError>,
}

impl UninjectedPodLister {
    /// None was made yet.
    pub fn new(client: Client) -> Self {
        Self { client, lists: NamespaceLists::new(LISTS_AT_ONCE, REUSED_FOR) }
    }

    /// The pods of a namespace that have no sidecar and have not ended.
    ///
    /// # Errors
    /// [`UninjectedListError`], also of the last list if that is too short ago to make another.
    pub async fn of(&self, namespace: &str, since: ListSince) -> ListOutcome<UninjectedPods, UninjectedListError> {
        self.lists.of(namespace, since, || self.list(namespace)).await
    }

    async fn list(&self, namespace: &str) -> Result<UninjectedPods, UninjectedListError> {
        let params = ListParams::default()
            .labels(&format!("!{POOL_LABEL}"))
            .fields("status.phase!=Succeeded,status.phase!=Failed");
        let late = |within| UninjectedListError::Deadline { namespace: namespace.to_owned(), within };
        let ask = |params: ListParams| async move {
            let page = timeout(DEADLINE_OF_A_PAGE, self.page(namespace, &params));
            page.await.map_err(|_| late(DEADLINE_OF_A_PAGE))?
        };
        let listed = async {
            let mut pages = ListPages::new(params, PAGE, PAGES);
            let (mut alike, mut looked_at) = (BTreeMap::new(), 0);
            while looked_at < MOST_PODS
                && let Some(pods) = pages.next(&ask).await?
            {
                looked_at += pods.len();
                count(&mut alike, pods.into_iter().map(|Lean(pod)| pod.metadata));
            }
            let is_whole = pages.is_whole();
            let alike = alike.into_iter().map(|((labels, owner), pods)| UninjectedGroup { labels, owner, pods });
            Ok(UninjectedPods { alike: alike.collect(), is_whole, by_pool: OnceLock::new() })
        };
        timeout(DEADLINE, listed).await.unwrap_or_else(|_| Err(late(DEADLINE)))
    }

    /// None: it is larger than is read.
    async fn page(
        &self,
        namespace: &str,
        params: &ListParams,
    ) -> Result<Option<Page<PodMetadata>>, UninjectedListError> {
        let failed = |source| UninjectedListError::List { namespace: namespace.to_owned(), source: Box::new(source) };
        let url = Pod::url_path(&(), Some(namespace));
        let request =
            Request::new(url).list_metadata(params).map_err(|source| failed(kube::Error::BuildRequest(source)))?;
        objects::page(&self.client, request, LARGEST_PAGE).await.map_err(failed)
    }
}

/// The metadata of a pod. Decoded with what each manager of a pod has set, it would be some hundred times as large.
type PodMetadata = Lean<PartialObjectMeta<Pod>>;

/// Adds pods that are not about to end.
fn count(
    alike: &mut BTreeMap<(BTreeMap<String, String>, Option<String>), u32>,
    pods: impl IntoIterator<Item = ObjectMeta>,
) {
    for pod in pods.into_iter().filter(|pod| pod.deletion_timestamp.is_none()) {
        let owner = owner_of(&pod);
        *alike.entry((pod.labels.unwrap_or_default(), owner)).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use http::{Response, StatusCode};
    use kube::client::Body;
    use parking_lot::Mutex;
    use serde_json::{Value, json};
    use tower::service_fn;

    use super::*;

    /// A lister of what this answer says, and how often it was asked for.
    fn lister(status: StatusCode, answer: Value) -> (UninjectedPodLister, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        let service = service_fn(move |_: http::Request<Body>| {
            counter.fetch_add(1, Ordering::Relaxed);
            let body = Body::from(answer.to_string().into_bytes());
            let response = Response::builder().status(status).body(body).expect("a response");
            async move { Ok::<_, Infallible>(response) }
        });
        (UninjectedPodLister::new(Client::new(service, "default")), asked)
    }

    fn list(pods: &Value) -> Value {
        json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": {}, "items": pods})
    }

    fn pod(name: &str, more: &Value) -> Value {
        let mut metadata =
            json!({"name": name, "namespace": "ns", "labels": {"app": "shop", "pod-template-hash": "5d4f"}});
        json_patch::merge(&mut metadata, more);
        json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata})
    }

    #[tokio::test]
    async fn pods_that_are_alike_are_one_entry_and_those_that_end_are_none() {
        let owner = json!({"ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "shop-5d4f", "uid": "u", "controller": true}]});
        let ends = json!({"deletionTimestamp": "2026-11-21T09:00:00Z"});
        let pods = json!([pod("a", &owner), pod("b", &owner), pod("c", &json!({})), pod("d", &ends)]);
        let (lister, _) = lister(StatusCode::OK, list(&pods));
        let found = lister.of("ns", ListSince::Now).await.expect("a list");
        let labels =
            [("app", "shop"), ("pod-template-hash", "5d4f")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let labels = BTreeMap::from(labels);
        let alike = |owner: Option<&str>, pods| UninjectedGroup {
            labels: labels.clone(),
            owner: owner.map(str::to_owned),
            pods,
        };
        assert_eq!(found.alike, [alike(None, 1), alike(Some("deployment/shop"), 2)]);
        assert!(found.is_whole);
    }

    #[tokio::test]
    async fn whose_each_pod_is_is_looked_for_once_for_all_pools_of_the_namespace() {
        let owner = json!({"ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "shop-5d4f", "uid": "u", "controller": true}]});
        let cart = json!({"labels": {"app": "cart"}});
        let pods = json!([
            pod("a", &owner),
            pod("b", &json!({})),
            pod("c", &cart),
            pod("d", &json!({"labels": {"app": "none"}}))
        ]);
        let (lister, _) = lister(StatusCode::OK, list(&pods));
        let found = lister.of("ns", ListSince::Now).await.expect("a list");
        let pools = ["shop", "cart"].map(|name| {
            let pool = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPool", "metadata": {"name": name}, "spec": {
                "workload": {"selector": {"matchLabels": {"app": name}}},
                "upstream": {"host": "pg", "database": "d", "credentialsRef": {"name": "s"}}}});
            Arc::new(serde_json::from_value::<ConnectionPool>(pool).expect("a pool"))
        });
        let shop = PoolUninjected { pods: 2, owners: vec!["deployment/shop".to_owned()] };
        assert_eq!(found.of_pool("shop", &pools), shop);
        assert_eq!(found.of_pool("cart", &pools).pods, 1);
        assert_eq!(found.of_pool("other", &pools), PoolUninjected::default());
        assert_eq!(found.of_pool("shop", &[]), shop, "it is not looked for again");
    }

    #[tokio::test]
    async fn a_namespace_without_pods_has_none_as_the_api_server_says_it() {
        for nothing in [json!([]), Value::Null] {
            let (lister, _) = lister(StatusCode::OK, list(&nothing));
            let found = lister.of("ns", ListSince::Now).await.expect("a list");
            assert!(found.alike.is_empty() && found.is_whole);
        }
    }

    #[tokio::test]
    async fn a_list_that_is_refused_says_of_which_namespace() {
        let refused = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "code": 403});
        let (lister, _) = lister(StatusCode::FORBIDDEN, refused);
        let error = lister.of("ns", ListSince::Now).await.expect_err("it was refused").to_string();
        assert!(error.contains("listing the pods without a sidecar of namespace ns"), "{error}");
    }

    #[tokio::test]
    async fn of_a_namespace_with_more_pods_than_are_looked_at_the_list_ends_and_says_that_it_is_not_whole() {
        let pods = json!([pod("a", &json!({})), pod("b", &json!({}))]);
        let mut page = list(&pods);
        page["metadata"] = json!({"continue": "more"});
        let (lister, asked) = lister(StatusCode::OK, page);
        let found = lister.of("ns", ListSince::Now).await.expect("what was looked at");
        assert_eq!((asked.load(Ordering::Relaxed), found.is_whole), (PAGES, false));
        assert_eq!(found.alike[0].pods, 2 * u32::try_from(PAGES).unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn of_pods_that_are_large_fewer_are_read_at_once_and_of_one_that_is_larger_than_any_is_nothing() {
        let pods = |count: usize, bytes: usize| -> Vec<Value> {
            let large = json!({"annotations": {"a": "x".repeat(bytes)}});
            (0..count).map(|number| pod(&format!("pod-{number}"), &large)).collect()
        };
        let limits: Arc<Mutex<Vec<usize>>> = Arc::default();
        let asked = limits.clone();
        let service = service_fn(move |request: http::Request<Body>| {
            let query = request.uri().query().unwrap_or_default();
            let limit = query.split('&').find_map(|pair| pair.strip_prefix("limit=")?.parse().ok()).expect("a limit");
            asked.lock().push(limit);
            let body = Body::from(list(&pods(limit.min(40), 300 << 10).into()).to_string().into_bytes());
            async move { Ok::<_, Infallible>(Response::new(body)) }
        });
        let lister = UninjectedPodLister::new(Client::new(service, "default"));
        let found = lister.of("ns", ListSince::Now).await.expect("what fits");
        assert_eq!((found.alike[0].pods, found.is_whole), (7, true));
        assert_eq!(*limits.lock(), [500, 125, 31, 7]);
    }
}
