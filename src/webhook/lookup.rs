//! Where the webhook finds pools, classes and the revisions that new pods get.

use std::{future::Future, sync::Arc, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube::{Client, Resource, api::ListParams, core::Request};
use serde::{Deserialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::time::timeout;

use super::admission::Catalogue;
use crate::{
    api::{ConnectionPool, ConnectionPoolClass},
    contract::PoolRevision,
    objects::{self, GroupedStore, Lean},
};

/// How long a live read may take: the API server waits 5 s for the whole answer.
const LIVE_READ_DEADLINE: Duration = Duration::from_secs(2);
/// Most objects of one kind that a live read takes.
const LIVE_READ_LIMIT: u32 = 1000;
/// And the most that they have together, in bytes: several are under way at once.
const LIVE_READ_BYTES: usize = 4 << 20;

/// Why a live read failed.
#[derive(Debug, Error)]
pub enum LookupError {
    /// The API server refused or could not be reached.
    #[error("list {what} in namespace {namespace}")]
    List {
        /// Which kind.
        what: &'static str,
        /// In which namespace.
        namespace: String,
        /// What the client said.
        #[source]
        source: Box<kube::Error>,
    },
    /// There are more than are read: what is missing may be what is looked for.
    #[error(
        "list {what} in namespace {namespace}: there are more than {LIVE_READ_LIMIT}, or they have more than {} MiB together; \
         remove some, or take large annotations off them",
        LIVE_READ_BYTES >> 20
    )]
    TooMany {
        /// Which kind.
        what: &'static str,
        /// In which namespace.
        namespace: String,
    },
    /// The API server did not answer in time.
    #[error("list pools and classes for namespace {namespace}: no answer within {}s", LIVE_READ_DEADLINE.as_secs())]
    Deadline {
        /// In which namespace.
        namespace: String,
    },
}

/// What the webhook needs to know about the cluster.
pub trait Lookup: Send + Sync + 'static {
    /// Pools of a namespace and all classes, as the watches have delivered them.
    fn cached(&self, namespace: &str) -> Catalogue;

    /// The same, read now.
    fn live(&self, namespace: &str) -> impl Future<Output = Result<Catalogue, LookupError>> + Send;

    /// The revision that new pods of the pool get; none while it has none.
    fn revision_for_new_pods(&self, pool: &ConnectionPool) -> Option<PoolRevision>;
}

/// [`Lookup`] over the stores of the operator's watches.
pub struct ClusterLookup<R> {
    client: Client,
    pools: GroupedStore<ConnectionPool>,
    classes: GroupedStore<ConnectionPoolClass>,
    revision_for_new_pods: R,
}

impl<R> ClusterLookup<R> {
    /// `revision_for_new_pods` answers from the operator's cache of revisions.
    pub const fn new(
        client: Client,
        pools: GroupedStore<ConnectionPool>,
        classes: GroupedStore<ConnectionPoolClass>,
        revision_for_new_pods: R,
    ) -> Self {
        Self { client, pools, classes, revision_for_new_pods }
    }

    async fn list(&self, namespace: &str) -> Result<Catalogue, LookupError> {
        let (pools, classes) = tokio::try_join!(
            all(&self.client, ConnectionPool::url_path(&(), Some(namespace)), ("ConnectionPools", namespace)),
            all(&self.client, ConnectionPoolClass::url_path(&(), None), ("ConnectionPoolClasses", namespace)),
        )?;
        Ok(Catalogue { pools, classes })
    }
}

/// A list, whole.
#[derive(Deserialize)]
struct Listed<K> {
    metadata: ListMeta,
    items: Option<Vec<Lean<K>>>,
}

/// All objects at a path. `what` they are, for a pod of this namespace.
async fn all<K: DeserializeOwned>(
    client: &Client,
    path: String,
    (what, namespace): (&'static str, &str),
) -> Result<Vec<Arc<K>>, LookupError> {
    let failed = |source| LookupError::List { what, namespace: namespace.to_owned(), source: Box::new(source) };
    let request = Request::new(path).list(&ListParams::default().limit(LIVE_READ_LIMIT));
    let request = request.map_err(|source| failed(kube::Error::BuildRequest(source)))?;
    let listed: Option<Listed<K>> = objects::page(client, request, LIVE_READ_BYTES).await.map_err(failed)?;
    let whole = listed.filter(|listed| listed.metadata.continue_.as_ref().is_none_or(String::is_empty));
    let whole = whole.ok_or_else(|| LookupError::TooMany { what, namespace: namespace.to_owned() })?;
    Ok(whole.items.into_iter().flatten().map(|Lean(object)| Arc::new(object)).collect())
}

impl<R> Lookup for ClusterLookup<R>
where
    R: Fn(&ConnectionPool) -> Option<PoolRevision> + Send + Sync + 'static,
{
    fn cached(&self, namespace: &str) -> Catalogue {
        Catalogue { pools: self.pools.of(namespace, ""), classes: self.classes.state() }
    }

    async fn live(&self, namespace: &str) -> Result<Catalogue, LookupError> {
        let read = timeout(LIVE_READ_DEADLINE, self.list(namespace)).await;
        read.unwrap_or_else(|_| Err(LookupError::Deadline { namespace: namespace.to_owned() }))
    }

    fn revision_for_new_pods(&self, pool: &ConnectionPool) -> Option<PoolRevision> {
        (self.revision_for_new_pods)(pool)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::Response;
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn a_list_that_is_cut_off_or_larger_than_is_read_settles_nothing() {
        for (metadata, settles) in [
            (json!({}), true),
            (json!({"continue": "more"}), false),
            (json!({"selfLink": "x".repeat(LIVE_READ_BYTES)}), false),
        ] {
            let service = tower::service_fn(move |_: http::Request<Body>| {
                let list = json!({"metadata": metadata, "items": null}).to_string();
                async move { Ok::<_, Infallible>(Response::new(Body::from(list.into_bytes()))) }
            });
            let client = Client::new(service, "default");
            let read = all::<ConnectionPool>(&client, "/pools".to_owned(), ("ConnectionPools", "shop")).await;
            assert_eq!(read.is_ok(), settles, "{read:?}");
            assert!(settles || matches!(read, Err(LookupError::TooMany { .. })), "{read:?}");
        }
    }
}
