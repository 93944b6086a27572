//! Pods without a sidecar: one list of a namespace, for all its pools.
//!
//! A list per pool would make the API server look through all pods of a namespace once for each: with a thousand pools that
//! is most of what it does.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, api::ListParams};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::pods::owner_of;
use crate::contract::names::POOL_LABEL;

/// Longest that one list may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// A list that began this long ago serves who only looks again.
const REUSED_FOR: Duration = Duration::from_secs(5);
/// Lists under way at once, of all namespaces.
const LISTS_AT_ONCE: usize = 4;
/// Pods in one page, and pages that are read: beyond that nobody wants the exact number.
const PAGE: u32 = 500;
const PAGES: usize = 20;

/// Why the pods could not be listed.
#[derive(Debug, Error)]
pub enum CensusError {
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
    #[error("listing the pods without a sidecar of namespace {namespace}: no answer within {} s", DEADLINE.as_secs())]
    Deadline {
        /// Which namespace.
        namespace: String,
    },
}

/// Pods without a sidecar that have the same labels and the same owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alike {
    /// Their labels.
    pub labels: BTreeMap<String, String>,
    /// What restarts them, by kind and name.
    pub owner: Option<String>,
    /// How many they are.
    pub pods: u32,
}

/// What a list found, or why it did not: whoever waited for it learns the same.
type Found = Result<Arc<[Alike]>, Arc<CensusError>>;

/// Whose news is good enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// A list that begins after this question.
    Now,
    /// One of the last seconds will do.
    Lately,
}

/// A list that has ended.
struct Listing {
    began: Instant,
    found: Found,
}

impl Listing {
    fn is_recent(&self) -> bool {
        self.began.elapsed() < REUSED_FOR
    }
}

/// The last list of one namespace; locked by whoever makes the next.
type Place = Arc<tokio::sync::Mutex<Option<Listing>>>;

/// The lists of all namespaces.
pub struct Census {
    client: Client,
    namespaces: Mutex<HashMap<String, Place>>,
    lists: Semaphore,
}

impl Census {
    /// None was made yet.
    pub fn new(client: Client) -> Self {
        Self { client, namespaces: Mutex::default(), lists: Semaphore::new(LISTS_AT_ONCE) }
    }

    /// The pods of a namespace that have no sidecar and have not ended. Of several who ask at once, one lists for all.
    ///
    /// # Errors
    /// [`CensusError`].
    pub async fn of(&self, namespace: &str, since: Since) -> Found {
        let asked = Instant::now();
        let place = self.place(namespace);
        let mut last = place.lock().await;
        let is_fresh = |listing: &Listing| match since {
            Since::Now => listing.began >= asked,
            Since::Lately => listing.is_recent(),
        };
        if let Some(listing) = last.as_ref().filter(|listing| is_fresh(listing)) {
            return listing.found.clone();
        }
        // nobody closes the semaphore: it always gives a turn
        let turn = self.lists.acquire().await;
        let began = Instant::now();
        let found = self.list(namespace).await.map_err(Arc::new);
        drop(turn);
        *last = Some(Listing { began, found: found.clone() });
        found
    }

    /// The place of a namespace. What is old in the others, nobody will read again.
    fn place(&self, namespace: &str) -> Place {
        let mut namespaces = self.namespaces.lock();
        namespaces.retain(|_, place| {
            let is_used = Arc::strong_count(place) > 1;
            is_used || place.try_lock().is_ok_and(|last| last.as_ref().is_some_and(Listing::is_recent))
        });
        namespaces.entry(namespace.to_owned()).or_default().clone()
    }

    async fn list(&self, namespace: &str) -> Result<Arc<[Alike]>, CensusError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let mut params = ListParams::default()
            .labels(&format!("!{POOL_LABEL}"))
            .fields("status.phase!=Succeeded,status.phase!=Failed")
            .limit(PAGE);
        let listed = async {
            let mut alike = BTreeMap::new();
            for _ in 0..PAGES {
                let page = pods.list_metadata(&params).await.map_err(|source| CensusError::List {
                    namespace: namespace.to_owned(),
                    source: Box::new(source),
                })?;
                count(&mut alike, page.items.into_iter().map(|pod| pod.metadata));
                params.continue_token = page.metadata.continue_;
                if params.continue_token.as_ref().is_none_or(String::is_empty) {
                    break;
                }
            }
            Ok(alike.into_iter().map(|((labels, owner), pods)| Alike { labels, owner, pods }).collect())
        };
        let late = CensusError::Deadline { namespace: namespace.to_owned() };
        timeout(DEADLINE, listed).await.unwrap_or(Err(late))
    }
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
        sync::atomic::{AtomicUsize, Ordering},
    };

    use futures::future::join_all;
    use http::{Request, Response, StatusCode};
    use kube::client::Body;
    use serde_json::{Value, json};
    use tokio::{task::yield_now, time::advance};
    use tower::service_fn;

    use super::*;

    /// A census of what this answer says, and how often it was asked for.
    fn census(status: StatusCode, answer: Value) -> (Census, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        let service = service_fn(move |_: Request<Body>| {
            counter.fetch_add(1, Ordering::Relaxed);
            let body = Body::from(answer.to_string().into_bytes());
            async move {
                yield_now().await;
                let response = Response::builder().status(status).body(body).expect("a response");
                Ok::<_, Infallible>(response)
            }
        });
        (Census::new(Client::new(service, "default")), asked)
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
        let (census, _) = census(StatusCode::OK, list(&pods));
        let found = census.of("ns", Since::Now).await.expect("a list");
        let labels =
            [("app", "shop"), ("pod-template-hash", "5d4f")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let labels = BTreeMap::from(labels);
        let alike = |owner: Option<&str>, pods| Alike { labels: labels.clone(), owner: owner.map(str::to_owned), pods };
        assert_eq!(found.to_vec(), [alike(None, 1), alike(Some("deployment/shop"), 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_pools_that_ask_one_lists_for_all() {
        let (census, asked) = census(StatusCode::OK, list(&json!([])));
        let all = |since| join_all((0..1000).map(|_| census.of("ns", since)).collect::<Vec<_>>());
        assert!(all(Since::Now).await.iter().all(Result::is_ok));
        assert!(
            asked.load(Ordering::Relaxed) <= 2,
            "{asked:?}: those who came while the first list was made share the second"
        );
        let before = asked.load(Ordering::Relaxed);
        all(Since::Lately).await;
        assert_eq!(asked.load(Ordering::Relaxed), before);
        advance(REUSED_FOR).await;
        all(Since::Lately).await;
        assert_eq!(asked.load(Ordering::Relaxed), before + 1);
        assert!(census.of("other", Since::Lately).await.is_ok());
        assert_eq!(asked.load(Ordering::Relaxed), before + 2, "another namespace is another list");
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_fails_is_an_error_to_all_who_waited_and_is_not_repeated_for_each() {
        let refused = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "code": 403});
        let (census, asked) = census(StatusCode::FORBIDDEN, refused);
        let all = join_all((0..100).map(|_| census.of("ns", Since::Lately)).collect::<Vec<_>>()).await;
        for found in all {
            let error = found.expect_err("it was refused").to_string();
            assert!(error.contains("listing the pods without a sidecar of namespace ns"), "{error}");
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }
}
