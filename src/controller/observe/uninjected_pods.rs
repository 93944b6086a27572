//! Pods without a sidecar: one list of a namespace, for all its pools.
//!
//! A list per pool would make the API server look through all pods of a namespace once for each: with a thousand pools that
//! is most of what it does.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::core::v1::Pod,
    apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta},
};
use kube::{
    Client, Resource,
    api::{ListParams, PartialObjectMeta},
    core::Request,
};
use serde::Deserialize;
use thiserror::Error;
use tokio::time::timeout;

use super::{
    namespace_lists::{ListOutcome, ListSince, NamespaceLists},
    pods::owner_of,
};
use crate::{contract::names::POOL_LABEL, objects::Lean};

/// Longest that one page of a list may take, and all of them.
const DEADLINE_OF_A_PAGE: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(30);
/// A list that began this long ago serves who only looks again.
const REUSED_FOR: Duration = Duration::from_secs(5);
/// Lists under way at once, of all namespaces.
const LISTS_AT_ONCE: usize = 4;
/// Pods in one page, and pages that are read: beyond that nobody wants the exact number.
const PAGE: u32 = 500;
const PAGES: usize = 20;
const MOST_PODS: usize = PAGE as usize * PAGES;

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
        "the namespace {namespace} has more than {} pods without a sidecar, and those that were looked at are none of this pool's",
        MOST_PODS
    )]
    TooMany {
        /// Which namespace.
        namespace: String,
    },
}

/// Pods without a sidecar that have the same labels and the same owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UninjectedGroup {
    /// Their labels.
    pub labels: BTreeMap<String, String>,
    /// What restarts them, by kind and name.
    pub owner: Option<String>,
    /// How many they are.
    pub pods: u32,
}

/// The pods without a sidecar of one namespace.
#[derive(Debug, PartialEq, Eq)]
pub struct UninjectedPods {
    /// Those that are alike together.
    pub alike: Vec<UninjectedGroup>,
    /// Whether these are all.
    pub is_whole: bool,
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
        let mut params = ListParams::default()
            .labels(&format!("!{POOL_LABEL}"))
            .fields("status.phase!=Succeeded,status.phase!=Failed")
            .limit(PAGE);
        let late = |within| UninjectedListError::Deadline { namespace: namespace.to_owned(), within };
        let listed = async {
            let mut alike = BTreeMap::new();
            let mut is_whole = false;
            for _ in 0..PAGES {
                let page = timeout(DEADLINE_OF_A_PAGE, self.page(namespace, &params));
                let page = page.await.map_err(|_| late(DEADLINE_OF_A_PAGE))??;
                count(&mut alike, page.items.into_iter().flatten().map(|Lean(pod)| pod.metadata));
                params.continue_token = page.metadata.continue_;
                if params.continue_token.as_ref().is_none_or(String::is_empty) {
                    is_whole = true;
                    break;
                }
            }
            let alike = alike.into_iter().map(|((labels, owner), pods)| UninjectedGroup { labels, owner, pods });
            Ok(UninjectedPods { alike: alike.collect(), is_whole })
        };
        timeout(DEADLINE, listed).await.unwrap_or_else(|_| Err(late(DEADLINE)))
    }

    async fn page(&self, namespace: &str, params: &ListParams) -> Result<Page, UninjectedListError> {
        let failed = |source| UninjectedListError::List { namespace: namespace.to_owned(), source: Box::new(source) };
        let url = Pod::url_path(&(), Some(namespace));
        let request =
            Request::new(url).list_metadata(params).map_err(|source| failed(kube::Error::BuildRequest(source)))?;
        self.client.request(request).await.map_err(failed)
    }
}

/// A page of a list of metadata. Decoded with what each manager of a pod has set, it would be some hundred times as large.
#[derive(Deserialize)]
struct Page {
    metadata: ListMeta,
    /// The API server says `null` where there is none.
    items: Option<Vec<Lean<PartialObjectMeta<Pod>>>>,
}

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
}
