//! The stores of the watches, and what fills them.

use std::sync::Arc;

use kube::{Client, ResourceExt};

use super::watch::{self, Instruments};
use crate::{
    api::{ConnectionBudget, ConnectionPool, ConnectionPoolClass},
    contract::names::POOL_LABEL,
    controller::{
        controller_revision,
        gateway::{self, GatewayStores},
        look_requests::LookRequests,
        options::{Gateways, OperatorArgs},
    },
    decide::effective::{EffectivePool, PoolRefusal, class_of, effective},
    domain::PoolKey,
    inject::InjectionSettings,
    objects::{GroupedStore, WatchedRevision},
};

/// The stores of the watches.
#[derive(Clone)]
pub struct Stores {
    /// Pools.
    pub pools: GroupedStore<ConnectionPool>,
    /// Classes.
    pub classes: GroupedStore<ConnectionPoolClass>,
    /// Budgets.
    pub budgets: GroupedStore<ConnectionBudget>,
    /// Revisions of ours.
    pub revisions: GroupedStore<WatchedRevision>,
    /// The objects of gateways; none where this operator keeps no gateways.
    pub gateways: Option<GatewayStores>,
    /// What the operator's configuration says about poolers' containers, and about what pools may say of them.
    pub injection: Arc<InjectionSettings>,
}

impl Stores {
    /// What is in force for a pool.
    pub fn effective(&self, pool: &ConnectionPool) -> Result<EffectivePool, PoolRefusal> {
        if let Some(refusal) = gateway::refusal(pool) {
            return Err(refusal);
        }
        let classes = self.classes.state();
        let class = class_of(&pool.spec, classes.iter().map(AsRef::as_ref))?;
        self.injection.allowed.check(&pool.spec, class, &self.injection.pgbouncer_image)?;
        let mut merged = effective(&pool.spec, class)?;
        merged.settings = controller_revision::normalised(&merged.settings);
        Ok(merged)
    }

    /// The pools of a namespace that put poolers into pods.
    pub fn pools_of(&self, namespace: &str) -> Vec<Arc<ConnectionPool>> {
        self.pools.of(namespace, "")
    }
}

/// The watches that every replica has. What changes asks for a look at the pools that it concerns.
pub fn watch_all(client: &Client, requests: &LookRequests, args: &OperatorArgs, instruments: &Instruments) -> Stores {
    let asking = requests.clone();
    let mut news = watch::PoolNews::default();
    let pools =
        watch::into_store(client.clone(), None, "ConnectionPool", instruments.clone(), move |pool, presence| {
            let concerned = news.of(&pool, presence);
            let asking = asking.clone();
            async move {
                if let Some(pool) = concerned {
                    asking.ask(&pool, "pool").await;
                }
            }
        });
    // an edit of a class is an edit of each pool that names it, or that names none
    let (asking, known) = (requests.clone(), pools.clone());
    let classes = watch::into_store(
        client.clone(),
        None,
        "ConnectionPoolClass",
        instruments.clone(),
        move |class: ConnectionPoolClass, _| {
            let concerned = pools_where(&known, |pool| {
                pool.spec.class_ref.as_ref().is_none_or(|named| named.name == class.name_any())
            });
            let asking = asking.clone();
            async move {
                for pool in concerned {
                    asking.ask(&pool, "class").await;
                }
            }
        },
    );
    let (asking, known) = (requests.clone(), pools.clone());
    let budgets = watch::into_store(
        client.clone(),
        None,
        "ConnectionBudget",
        instruments.clone(),
        move |budget: ConnectionBudget, _| {
            let concerned = pools_where(&known, |pool| {
                pool.spec.budget_ref.as_ref().is_some_and(|named| named.name == budget.name_any())
            });
            let asking = asking.clone();
            async move {
                for pool in concerned {
                    asking.ask(&pool, "budget").await;
                }
            }
        },
    );
    let asking = requests.clone();
    let revisions = watch::into_store(
        client.clone(),
        Some(POOL_LABEL),
        "ControllerRevision",
        instruments.clone(),
        move |revision: WatchedRevision, _| {
            let concerned = watch::pool_of_revision(&revision);
            let asking = asking.clone();
            async move {
                if let Some(pool) = concerned {
                    asking.ask(&pool, "revision").await;
                }
            }
        },
    );
    let gateways = match args.gateways {
        Gateways::Enabled => Some(gateway::watch_all(client, requests, instruments)),
        Gateways::Disabled => None,
    };
    Stores { pools, classes, budgets, revisions, gateways, injection: Arc::new(args.injection()) }
}

/// The pools that are known now and of which this is true.
fn pools_where(known: &GroupedStore<ConnectionPool>, concerns: impl Fn(&ConnectionPool) -> bool) -> Vec<PoolKey> {
    let pools = known.state().into_iter().filter(|pool| concerns(pool));
    pools.filter_map(|pool| Some(PoolKey { namespace: pool.namespace()?, name: pool.name_any() })).collect()
}
