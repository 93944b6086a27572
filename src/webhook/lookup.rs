//! Where the webhook finds pools, classes and the revisions that new pods get.

use std::{future::Future, sync::Arc, time::Duration};

use kube::{Api, Client, api::ListParams, runtime::reflector::Store};
use thiserror::Error;
use tokio::time::timeout;

use super::admission::Catalogue;
use crate::{
    api::{ConnectionPool, ConnectionPoolClass},
    contract::PoolRevision,
};

/// How long a live read may take: the API server waits 5 s for the whole answer.
const LIVE_READ_DEADLINE: Duration = Duration::from_secs(2);
/// Most objects of one kind that a live read takes.
const LIVE_READ_LIMIT: u32 = 1000;

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
    pools: Store<ConnectionPool>,
    classes: Store<ConnectionPoolClass>,
    revision_for_new_pods: R,
}

impl<R> ClusterLookup<R> {
    /// `revision_for_new_pods` answers from the operator's cache of revisions.
    pub const fn new(
        client: Client,
        pools: Store<ConnectionPool>,
        classes: Store<ConnectionPoolClass>,
        revision_for_new_pods: R,
    ) -> Self {
        Self { client, pools, classes, revision_for_new_pods }
    }

    async fn list(&self, namespace: &str) -> Result<Catalogue, LookupError> {
        let failed =
            |what| move |source| LookupError::List { what, namespace: namespace.to_owned(), source: Box::new(source) };
        let page = ListParams::default().limit(LIVE_READ_LIMIT);
        let pools: Api<ConnectionPool> = Api::namespaced(self.client.clone(), namespace);
        let classes: Api<ConnectionPoolClass> = Api::all(self.client.clone());
        let (pools, classes) =
            tokio::try_join!(async { pools.list(&page).await.map_err(failed("ConnectionPools")) }, async {
                classes.list(&page).await.map_err(failed("ConnectionPoolClasses"))
            },)?;
        Ok(Catalogue {
            pools: pools.items.into_iter().map(Arc::new).collect(),
            classes: classes.items.into_iter().map(Arc::new).collect(),
        })
    }
}

impl<R> Lookup for ClusterLookup<R>
where
    R: Fn(&ConnectionPool) -> Option<PoolRevision> + Send + Sync + 'static,
{
    fn cached(&self, namespace: &str) -> Catalogue {
        let pools = self.pools.state().into_iter();
        Catalogue {
            pools: pools.filter(|pool| pool.metadata.namespace.as_deref() == Some(namespace)).collect(),
            classes: self.classes.state(),
        }
    }

    async fn live(&self, namespace: &str) -> Result<Catalogue, LookupError> {
        let read = timeout(LIVE_READ_DEADLINE, self.list(namespace)).await;
        read.unwrap_or_else(|_| Err(LookupError::Deadline { namespace: namespace.to_owned() }))
    }

    fn revision_for_new_pods(&self, pool: &ConnectionPool) -> Option<PoolRevision> {
        (self.revision_for_new_pods)(pool)
    }
}
