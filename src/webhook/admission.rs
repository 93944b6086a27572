//! PURE: whether a pod gets a pooler, which pool's, and what its creator is told.

use std::sync::Arc;

use json_patch::Patch;
use k8s_openapi::api::core::v1::Pod;

use crate::{
    api::{ConnectionPool, ConnectionPoolClass, pool_of_labels, reasons},
    contract::{PoolRevision, names},
    decide::effective::{class_of, effective},
    inject::{self, Injected, InjectionSettings, PodPool, Unsupported},
    pooler::pgbouncer::render::cannot_render,
};

/// The pools of a namespace and the classes, from a cache or read a moment ago.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    /// The pools of the pod's namespace.
    pub pools: Vec<Arc<ConnectionPool>>,
    /// All classes.
    pub classes: Vec<Arc<ConnectionPoolClass>>,
}

/// Whether what is missing from a [`Catalogue`] is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// A watch may not have delivered an object that was created a moment ago: `kubectl apply -f directory/` creates pool
    /// and pod within a second.
    Cached,
    /// It was read for this request.
    Live,
}

/// Who asked for a pooler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptIn {
    /// The pod itself, by its label: it must not start without.
    Pod,
    /// Its namespace, for all pods that have a pool.
    Namespace,
}

impl OptIn {
    /// Who asked, for a pod that reached the webhook.
    pub fn of(pod: &Pod) -> Self {
        let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(names::INJECT_LABEL));
        if label.is_some_and(|value| value == names::INJECT_ENABLED) { Self::Pod } else { Self::Namespace }
    }
}

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It gets the pooler of this pool.
    Inject {
        /// Name of the pool.
        pool: String,
        /// The change and the warnings.
        injected: Injected,
    },
    /// It starts without a pooler.
    Leave {
        /// Takes labels and annotations of ours off it.
        patch: Patch,
        /// Why, where the user may have expected otherwise.
        warnings: Vec<String>,
    },
    /// It is refused, with a sentence that tells what to do. Its controller tries again.
    Deny(String),
    /// The cache does not settle it: read live and ask again. Never the answer to [`Freshness::Live`].
    ReadLive,
}

/// Decides about one pod. `revision_for_new_pods` gives the revision that new pods of a pool get; none: the pool has none yet,
/// and the pod starts with what is in force, as revision 0.
pub fn review(
    pod: &Pod,
    namespace: &str,
    catalogue: &Catalogue,
    freshness: Freshness,
    revision_for_new_pods: impl FnOnce(&ConnectionPool) -> Option<PoolRevision>,
    settings: &InjectionSettings,
) -> Verdict {
    if let Some(unsupported) = pod.spec.as_ref().and_then(Unsupported::of) {
        return Verdict::Leave { patch: inject::disown(pod), warnings: vec![unsupported.warning()] };
    }
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let Some(pool) = pool_of_labels(&labels, catalogue.pools.iter().map(Arc::as_ref)) else {
        return match (freshness, OptIn::of(pod)) {
            (Freshness::Cached, _) => Verdict::ReadLive,
            (Freshness::Live, OptIn::Namespace) => Verdict::Leave { patch: inject::disown(pod), warnings: Vec::new() },
            (Freshness::Live, OptIn::Pod) => Verdict::Deny(format!(
                "the pod asks for a pooler ({}={}) and no ConnectionPool in namespace {namespace} selects its labels; create one whose spec.workload.selector matches them, or remove the label",
                names::INJECT_LABEL,
                names::INJECT_ENABLED
            )),
        };
    };
    let name = pool.metadata.name.clone().unwrap_or_default();
    let resolved = class_of(&pool.spec, catalogue.classes.iter().map(Arc::as_ref)).and_then(|class| {
        settings.allowed.check(&pool.spec, class, &settings.pgbouncer_image)?;
        effective(&pool.spec, class)
    });
    let effective = match resolved {
        Ok(effective) => effective,
        Err(_) if freshness == Freshness::Cached => return Verdict::ReadLive,
        Err(refusal) => {
            return Verdict::Deny(format!(
                "ConnectionPool {namespace}/{name} is not accepted ({}): {}",
                refusal.reason, refusal.message
            ));
        }
    };
    let revision = revision_for_new_pods(pool)
        .unwrap_or_else(|| PoolRevision { revision: 0, settings: effective.settings.clone() });
    let plan = PodPool { pool, effective: &effective, revision };
    if let Some(why) = cannot_render(&plan.revision.settings, &plan.injection()) {
        return Verdict::Deny(format!(
            "ConnectionPool {namespace}/{name} is not accepted ({}): {why}",
            reasons::CANNOT_RENDER
        ));
    }
    match inject::inject(pod, &plan, settings) {
        Ok(injected) => Verdict::Inject { pool: name, injected },
        Err(error) => Verdict::Deny(format!("ConnectionPool {namespace}/{name}: {error}")),
    }
}
