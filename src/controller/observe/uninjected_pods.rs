//! Pods without a sidecar: one list of a namespace, for all its pools.
//!
//! A list per pool would make the API server look through all pods of a namespace once for each: with a thousand pools that
//! is most of what it does.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::Pod,
    apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta},
};
use kube::{
    Client, Resource,
    api::{ListParams, PartialObjectMeta},
    core::Request,
};
use parking_lot::Mutex;
use serde::Deserialize;
use thiserror::Error;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{lean::Lean, pods::owner_of};
use crate::contract::names::POOL_LABEL;

/// Longest that one page of a list may take, and all of them.
const DEADLINE_OF_A_PAGE: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(30);
/// Pause after a list that failed; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// Longest pause after a list that failed.
const LONGEST_PAUSE: Duration = Duration::from_mins(10);
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

/// What a list found, or why it did not: whoever waited for it learns the same.
type ListOutcome = Result<Arc<UninjectedPods>, Arc<UninjectedListError>>;

/// Whose news is good enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListSince {
    /// A list that begins after this question.
    Now,
    /// One of the last seconds will do.
    Lately,
}

/// A list that has ended.
struct Listing {
    began: Instant,
    found: ListOutcome,
    /// After a failure: not before then is another made.
    again: Option<ListBackoff>,
}

/// When a list is made after one that failed.
#[derive(Clone, Copy)]
struct ListBackoff {
    at: Instant,
    pause: Duration,
}

impl ListBackoff {
    /// After a failure that ends now, and the one before it.
    fn after(before: Option<Self>) -> Self {
        let pause = before.map_or(FIRST_PAUSE, |before| (before.pause * 2).min(LONGEST_PAUSE));
        Self { at: Instant::now() + pause, pause }
    }
}

impl Listing {
    fn is_recent(&self) -> bool {
        self.began.elapsed() < REUSED_FOR
    }

    /// The next one is yet to wait.
    fn is_pausing(&self) -> bool {
        self.again.is_some_and(|again| Instant::now() < again.at)
    }

    /// Whether the next one depends on it: a failure is remembered for as long as the longest pause.
    fn is_used(&self) -> bool {
        self.is_recent() || self.again.is_some_and(|again| Instant::now() < again.at + LONGEST_PAUSE)
    }
}

/// The last list of one namespace; locked by whoever makes the next.
type NamespaceList = Arc<tokio::sync::Mutex<Option<Listing>>>;

/// The lists of all namespaces.
pub struct UninjectedPodLister {
    client: Client,
    namespaces: Mutex<HashMap<String, NamespaceList>>,
    lists: Semaphore,
}

impl UninjectedPodLister {
    /// None was made yet.
    pub fn new(client: Client) -> Self {
        Self { client, namespaces: Mutex::default(), lists: Semaphore::new(LISTS_AT_ONCE) }
    }

    /// The pods of a namespace that have no sidecar and have not ended. Of several who ask at once, one lists for all. After a list that
    /// failed none is made for a while, each time longer: what failed is said again.
    ///
    /// # Errors
    /// [`UninjectedListError`].
    pub async fn of(&self, namespace: &str, since: ListSince) -> ListOutcome {
        let asked = Instant::now();
        let place = self.place(namespace);
        let mut last = place.lock().await;
        let is_fresh = |listing: &Listing| {
            listing.is_pausing()
                || match since {
                    ListSince::Now => listing.began >= asked,
                    ListSince::Lately => listing.is_recent(),
                }
        };
        if let Some(listing) = last.as_ref().filter(|listing| is_fresh(listing)) {
            return listing.found.clone();
        }
        // nobody closes the semaphore: it always gives a turn
        let turn = self.lists.acquire().await;
        let began = Instant::now();
        let found = self.list(namespace).await.map_err(Arc::new);
        drop(turn);
        let before = last.as_ref().and_then(|listing| listing.again);
        let again = found.is_err().then(|| ListBackoff::after(before));
        *last = Some(Listing { began, found: found.clone(), again });
        found
    }

    /// The place of a namespace. What is old in the others, nobody will read again.
    fn place(&self, namespace: &str) -> NamespaceList {
        let mut namespaces = self.namespaces.lock();
        namespaces.retain(|_, place| {
            let is_used = Arc::strong_count(place) > 1;
            is_used || place.try_lock().is_ok_and(|last| last.as_ref().is_some_and(Listing::is_used))
        });
        namespaces.entry(namespace.to_owned()).or_default().clone()
    }

    async fn list(&self, namespace: &str) -> Result<Arc<UninjectedPods>, UninjectedListError> {
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
            Ok(Arc::new(UninjectedPods { alike: alike.collect(), is_whole }))
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
        sync::atomic::{AtomicUsize, Ordering},
    };

    use futures::future::join_all;
    use http::{Response, StatusCode};
    use kube::client::Body;
    use serde_json::{Value, json};
    use tokio::{task::yield_now, time::advance};
    use tower::service_fn;

    use super::*;

    /// A lister of what this answer says, and how often it was asked for.
    fn lister(status: StatusCode, answer: Value) -> (UninjectedPodLister, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        let service = service_fn(move |_: http::Request<Body>| {
            counter.fetch_add(1, Ordering::Relaxed);
            let body = Body::from(answer.to_string().into_bytes());
            async move {
                yield_now().await;
                let response = Response::builder().status(status).body(body).expect("a response");
                Ok::<_, Infallible>(response)
            }
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

    #[tokio::test(start_paused = true)]
    async fn of_many_pools_that_ask_one_lists_for_all() {
        let (lister, asked) = lister(StatusCode::OK, list(&json!([])));
        let all = |since| join_all((0..1000).map(|_| lister.of("ns", since)).collect::<Vec<_>>());
        assert!(all(ListSince::Now).await.iter().all(Result::is_ok));
        assert!(
            asked.load(Ordering::Relaxed) <= 2,
            "{asked:?}: those who came while the first list was made share the second"
        );
        let before = asked.load(Ordering::Relaxed);
        all(ListSince::Lately).await;
        assert_eq!(asked.load(Ordering::Relaxed), before);
        advance(REUSED_FOR).await;
        all(ListSince::Lately).await;
        assert_eq!(asked.load(Ordering::Relaxed), before + 1);
        assert!(lister.of("other", ListSince::Lately).await.is_ok());
        assert_eq!(asked.load(Ordering::Relaxed), before + 2, "another namespace is another list");
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_fails_is_an_error_to_all_who_waited_and_is_not_repeated_for_each() {
        let refused = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "code": 403});
        let (lister, asked) = lister(StatusCode::FORBIDDEN, refused);
        let all = join_all((0..100).map(|_| lister.of("ns", ListSince::Lately)).collect::<Vec<_>>()).await;
        for found in all {
            let error = found.expect_err("it was refused").to_string();
            assert!(error.contains("listing the pods without a sidecar of namespace ns"), "{error}");
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_never_succeeds_is_made_ever_more_rarely_whoever_asks_and_a_new_pool_too() {
        let refused = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "code": 500});
        let (lister, asked) = lister(StatusCode::INTERNAL_SERVER_ERROR, refused);
        let began = Instant::now();
        let mut made = Vec::new();
        while began.elapsed() < Duration::from_hours(1) {
            let before = asked.load(Ordering::Relaxed);
            for since in [ListSince::Lately, ListSince::Now] {
                assert!(lister.of("ns", since).await.is_err());
            }
            if asked.load(Ordering::Relaxed) > before {
                made.push(began.elapsed().as_secs());
            }
            lister.of("other", ListSince::Lately).await.expect_err("of another namespace, which has its own pauses");
            advance(Duration::from_secs(10)).await;
        }
        assert_eq!(made[..7], [0, 10, 30, 70, 150, 310, 630]);
        assert!(made[7..].windows(2).all(|pair| pair[1] - pair[0] == 600), "{made:?}");
        assert!(made.len() <= 13, "{made:?}");
    }

    #[tokio::test(start_paused = true)]
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
