//! Everything that the leader works with.

use std::{sync::Arc, time::Duration};

use kube::Client;

use super::{
    apply::writer::Writer,
    leader::Leadership,
    look_requests::LookRequests,
    memory::Memories,
    observe::{
        changed_by::Authors, pods::PodIndex, replica_failures::ReplicaFailureLister, stores::Stores,
        uninjected_pods::UninjectedPodLister,
    },
    prove::AgentPoller,
    report::events::Events,
};
use crate::{http::OperatorMetrics, inject::InjectionSettings};

/// Everything that the leader works with.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// Whether this process may write.
    pub leadership: Leadership,
    /// The stores of the watches.
    pub stores: Stores,
    /// The injected pods.
    pub pods: Arc<PodIndex>,
    /// What agents said.
    pub poller: Arc<AgentPoller>,
    /// The one place that writes.
    pub writer: Writer,
    /// The one place that publishes events.
    pub events: Events,
    /// What is remembered of the pools.
    pub memories: Memories,
    /// Which pools to look at next.
    pub requests: LookRequests,
    /// What the operator's configuration says about poolers' containers.
    pub injection: InjectionSettings,
    /// Time between two readings of Prometheus.
    pub tick: Duration,
    /// The pods without a sidecar.
    pub uninjected_pods: Arc<UninjectedPodLister>,
    /// The pods that cannot be created.
    pub replica_failures: Arc<ReplicaFailureLister>,
    /// Who changed pools.
    pub authors: Authors,
    /// Metrics of the operator.
    pub metrics: OperatorMetrics,
}
