//! The gateways: what a pool of topology Gateway has in the cluster is what it should have.
//!
//! Four objects, owned by the pool and rendered by [`render`]. They are applied when one is missing or differs from what is
//! wanted, by server-side apply: what somebody adds beside stays, what somebody changes of ours is mended. An object of the same
//! name that belongs to somebody else is left alone and told of.

mod render;

use std::{collections::BTreeMap, fmt::Debug, sync::Arc, time::Duration};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, Resource,
    core::NamespaceResourceScope,
    runtime::reflector::{Lookup, ObjectRef, Store},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::Instant;

use self::render::Objects;
use super::{
    apply::writer::{WriteError, Writer},
    backoff::Backoff,
    look_requests::LookRequests,
    observe::watch::{self, Instruments},
};
use crate::{
    api::{ConnectionPool, Topology, reasons},
    contract::names::POOL_LABEL,
    decide::{
        effective::{EffectivePool, PoolRefusal},
        plan::{GatewaySeen, Poolers, Trouble},
    },
    domain::PoolKey,
    inject::{InjectionSettings, PodPool},
    objects::Watched,
};

/// What allows gateways, for the names that the guides install by.
const ALLOW: &str =
    "helm upgrade sluice charts/sluice --namespace sluice-system --reuse-values --set gateway.enabled=true";
/// Longest pause before what failed is tried again: whoever mends a quota or a name still looks.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// The stores of the watches of gateways' objects.
#[derive(Clone)]
pub struct GatewayStores {
    deployments: Store<Deployment>,
    services: Store<Service>,
    disruption_budgets: Store<PodDisruptionBudget>,
    connection_infos: Store<ConfigMap>,
}

/// What is remembered of a gateway between two looks.
#[derive(Default)]
pub struct GatewayMemory {
    /// What was applied last of each object, and the version that it had then: as long as that is so, nothing differs,
    /// whatever the API server made of the figures in it.
    settled: BTreeMap<&'static str, (Value, String)>,
    /// Why the objects are not as they should be.
    trouble: Option<Trouble>,
    /// When that is tried again: nothing is written before.
    backoff: Option<Backoff>,
}

/// Watches the objects of all gateways. Whatever happens to one asks for a look at its pool.
pub fn watch_all(client: &Client, requests: &LookRequests, instruments: &Instruments) -> GatewayStores {
    GatewayStores {
        deployments: watch_kind(client, requests, instruments, "Deployment"),
        services: watch_kind(client, requests, instruments, "Service"),
        disruption_budgets: watch_kind(client, requests, instruments, "PodDisruptionBudget"),
        connection_infos: watch_kind(client, requests, instruments, "ConfigMap"),
    }
}

fn watch_kind<K>(client: &Client, requests: &LookRequests, instruments: &Instruments, name: &'static str) -> Store<K>
where
    K: Watched + Lookup + Clone + Debug + Send + Sync + 'static,
    <K as Resource>::DynamicType: Default + Eq + std::hash::Hash + Clone + Send,
    <K as Lookup>::DynamicType: Default + Eq + std::hash::Hash + Clone + Send + Sync,
{
    let asking = requests.clone();
    let store = watch::into_store(client.clone(), Some(POOL_LABEL), name, instruments.clone(), move |object: K, _| {
        let meta = object.meta();
        let pool = meta.labels.as_ref().and_then(|labels| labels.get(POOL_LABEL));
        let concerned = pool.zip(meta.namespace.as_ref());
        let concerned = concerned.map(|(name, namespace)| PoolKey { namespace: namespace.clone(), name: name.clone() });
        let asking = asking.clone();
        async move {
            if let Some(pool) = concerned {
                asking.ask(&pool, "gateway").await;
            }
        }
    });
    Store::clone(&store)
}

/// What is known of the gateway of a pool. None: the pool has another topology.
pub fn seen(
    stores: Option<&GatewayStores>,
    key: &PoolKey,
    pool: &ConnectionPool,
    effective: Option<&EffectivePool>,
    memory: &GatewayMemory,
) -> Option<GatewaySeen> {
    if pool.spec.topology != Topology::Gateway {
        return None;
    }
    let port = effective.map_or(pool.spec.upstream.port, |effective| effective.pod.client_port);
    let selector: Vec<String> =
        render::selector(&key.name).into_iter().map(|(label, value)| format!("{label}={value}")).collect();
    let deployment = stores.and_then(|stores| get(&stores.deployments, key)).filter(|object| is_of(&**object, pool));
    let poolers = deployment.map(|deployment| {
        let count = |count: Option<i32>| count.and_then(|count| u32::try_from(count).ok()).unwrap_or_default();
        let status = deployment.status.clone().unwrap_or_default();
        Poolers {
            wanted: count(deployment.spec.as_ref().and_then(|spec| spec.replicas)),
            exist: count(status.replicas),
            ready: count(status.ready_replicas),
        }
    });
    let trouble = match stores {
        None => Some(Trouble {
            reason: reasons::GATEWAY_DISABLED,
            message: format!(
                "this operator keeps no gateways; allow it with: {ALLOW} (`helm list -A` says where release and namespace have \
                 other names)"
            ),
        }),
        Some(_) => memory.trouble.clone(),
    };
    Some(GatewaySeen {
        address: format!("{}:{port}", render::host(&key.name, &key.namespace)),
        selector: selector.join(","),
        poolers,
        trouble,
    })
}

/// Why a gateway of this name cannot be put into force, if so.
pub fn refusal(pool: &ConnectionPool) -> Option<PoolRefusal> {
    let (name, namespace) = (pool.metadata.name.as_deref()?, pool.metadata.namespace.as_deref()?);
    if pool.spec.topology == Topology::Gateway && !render::can_name_a_service(name) {
        return Some(PoolRefusal {
            reason: "InvalidName",
            message: format!(
                "metadata.name {name}: the Service of a gateway is named after the pool, with -gateway, and its name begins with a \
                 letter and has letters, digits and hyphens after it, no dots; create the pool with such a name"
            ),
        });
    }
    let host = &pool.spec.upstream.host;
    let is_own = pool.spec.topology == Topology::Gateway && render::is_own_host(host, name, namespace);
    is_own.then(|| PoolRefusal {
        reason: "UpstreamIsThePooler",
        message: format!(
            "spec.upstream.host {host} is the Service of this very gateway: its poolers would connect to themselves; name \
             the database's address"
        ),
    })
}

/// Looks at the objects of a gateway and mends what is not as it should be. Returns what is to be remembered; none: there is
/// nothing new.
pub async fn keep(
    client: &Client,
    writer: &Writer,
    stores: &GatewayStores,
    plan: &PodPool<'_>,
    settings: &InjectionSettings,
    mut memory: GatewayMemory,
) -> GatewayMemory {
    let pool = plan.pool;
    let key = PoolKey { namespace: pool.metadata.namespace.clone().unwrap_or_default(), name: plan.name() };
    if memory.backoff.as_ref().is_some_and(|backoff| !backoff.is_due(Instant::now())) {
        return memory;
    }
    let deployment = get(&stores.deployments, &key);
    let wanted = render::render(plan, settings, deployment.as_deref().filter(|object| is_of(*object, pool)));
    let Objects { deployment: pods, service, disruption_budget, connection_info } = wanted;
    let keeper = GatewayKeeper { client, writer, pool, key: &key };
    let settled = &mut memory.settled;
    // the address first: clients may have been told of it already
    let outcome = async {
        keeper.keep(get(&stores.services, &key), service, "Service", settled).await?;
        keeper.keep(get(&stores.connection_infos, &key), connection_info, "ConfigMap", settled).await?;
        keeper.keep(get(&stores.disruption_budgets, &key), disruption_budget, "PodDisruptionBudget", settled).await?;
        keeper.strip(deployment.as_deref()).await?;
        keeper.keep(deployment, pods, "Deployment", settled).await
    }
    .await;
    memory.trouble = outcome.err().inspect(|trouble| {
        tracing::warn!(pool = %key, reason = trouble.reason, "{}", trouble.message);
    });
    let failed = memory.trouble.as_ref().map(|trouble| trouble.message.clone());
    memory.backoff = failed.map(|error| Backoff::after(memory.backoff.as_ref(), error, LONGEST_PAUSE, Instant::now()));
    memory
}

impl GatewayMemory {
    /// Why the objects are not as they should be.
    pub const fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// When they are mended again, if they could not be.
    pub const fn backoff(&self) -> Option<&Backoff> {
        self.backoff.as_ref()
    }
}

struct GatewayKeeper<'a> {
    client: &'a Client,
    writer: &'a Writer,
    pool: &'a ConnectionPool,
    key: &'a PoolKey,
}

impl GatewayKeeper<'_> {
    /// Takes annotations of ours off the template: what somebody else wrote there stays in a server-side apply.
    async fn strip(&self, live: Option<&Deployment>) -> Result<(), Trouble> {
        let Some(live) = live.filter(|live| is_of(*live, self.pool)) else { return Ok(()) };
        let keys = render::brought_along(live);
        if keys.is_empty() {
            return Ok(());
        }
        let name = render::name(&self.key.name);
        let what = format!("Deployment {}/{name}", self.key.namespace);
        let annotations: serde_json::Map<_, _> = keys.iter().map(|key| (key.clone(), Value::Null)).collect();
        let body = json!({
            "metadata": {"uid": live.metadata.uid, "resourceVersion": live.metadata.resource_version},
            "spec": {"template": {"metadata": {"annotations": annotations}}},
        });
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &self.key.namespace);
        match self.writer.gateway_patch(&api, &name, &body, what).await {
            Ok(_) => {
                tracing::warn!(pool = %self.key, ?keys, "annotations of Sluice's own were taken off the gateway's template");
                Ok(())
            }
            // it changed meanwhile: the watch brings the news
            Err(WriteError::Conflict { .. }) => Ok(()),
            Err(error) => Err(Trouble {
                reason: reasons::GATEWAY_NOT_APPLIED,
                message: format!("{}; tried again", crate::causes::with_causes(&error)),
            }),
        }
    }

    async fn keep<K>(
        &self,
        live: Option<Arc<K>>,
        mut wanted: Value,
        kind: &'static str,
        settled: &mut BTreeMap<&'static str, (Value, String)>,
    ) -> Result<(), Trouble>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + Serialize + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let name = render::name(&self.key.name);
        let what = format!("{kind} {}/{name}", self.key.namespace);
        let foreign = || Trouble {
            reason: reasons::GATEWAY_NAME_TAKEN,
            message: format!(
                "{what} exists and is not this pool's: remove or rename it, or create a ConnectionPool of another name"
            ),
        };
        if let Some(live) = &live {
            if !is_of(&**live, self.pool) {
                return Err(foreign());
            }
            let version = live.meta().resource_version.clone().unwrap_or_default();
            let is_settled = settled.get(kind).is_some_and(|(body, at)| *body == wanted && *at == version);
            if is_settled || contains(&serde_json::to_value(&**live).unwrap_or_default(), &wanted) {
                return Ok(());
            }
            // another object of the name is not meant
            wanted["metadata"]["uid"] = live.meta().uid.clone().into();
        }
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.key.namespace);
        let applied = self.writer.gateway(&api, &name, &wanted, live.is_some(), what.clone()).await;
        match applied {
            Ok(object) => {
                tracing::info!(pool = %self.key, kind, "object of the gateway applied");
                if let Some(metadata) = wanted["metadata"].as_object_mut() {
                    metadata.remove("uid");
                }
                settled.insert(kind, (wanted, object.meta().resource_version.clone().unwrap_or_default()));
                Ok(())
            }
            // without force nobody else's fields are taken
            Err(WriteError::Conflict { .. }) if live.is_none() => Err(foreign()),
            Err(error) => Err(Trouble {
                reason: reasons::GATEWAY_NOT_APPLIED,
                message: format!("{}; tried again", crate::causes::with_causes(&error)),
            }),
        }
    }
}

fn get<K>(store: &Store<K>, key: &PoolKey) -> Option<Arc<K>>
where
    K: Lookup + Clone + 'static,
    K::DynamicType: Default + Eq + std::hash::Hash + Clone,
{
    store.get(&ObjectRef::new(&render::name(&key.name)).within(&key.namespace))
}

/// Whether an object belongs to this very pool, not to an earlier one of its name.
fn is_of<K: Resource>(object: &K, pool: &ConnectionPool) -> bool {
    let owners = object.meta().owner_references.iter().flatten();
    owners.into_iter().any(|owner| owner.controller == Some(true) && Some(&owner.uid) == pool.metadata.uid.as_ref())
}

/// Fields that belong as a whole to whoever sets them: something more in them means something else.
const ATOMIC: [&str; 3] = ["selector", "matchLabels", "nodeSelector"];

/// Whether everything that is wanted is there. What the API server or somebody else added is no difference.
fn contains(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted.iter().all(|(field, wanted)| {
            live.get(field).is_some_and(|live| {
                if ATOMIC.contains(&field.as_str()) { live == wanted } else { contains(live, wanted) }
            })
        }),
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && wanted.iter().zip(live).all(|(wanted, live)| contains(live, wanted))
        }
        _ => live == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::{contains, json};

    #[test]
    fn what_is_added_beside_is_no_difference_and_what_is_changed_or_missing_is() {
        let wanted = json!({"spec": {"replicas": 2, "ports": [{"name": "a", "port": 1}]}});
        let live = |replicas, ports| json!({"spec": {"replicas": replicas, "ports": ports, "type": "ClusterIP"}, "status": {}});
        assert!(contains(&live(2, json!([{"name": "a", "port": 1, "protocol": "TCP"}])), &wanted));
        assert!(!contains(&live(3, json!([{"name": "a", "port": 1}])), &wanted));
        assert!(!contains(&live(2, json!([{"name": "a"}])), &wanted));
        assert!(!contains(&live(2, json!([{"name": "a", "port": 1}, {"name": "b"}])), &wanted));
        assert!(!contains(&json!({}), &wanted));
        let [selector, wider] =
            [json!({"a": "b"}), json!({"a": "b", "c": "d"})].map(|labels| json!({"selector": labels}));
        assert!(contains(&selector, &selector) && !contains(&wider, &selector), "it selects other pods");
    }
}
