//! A revision as an object: a `ControllerRevision` owned by its pool. Never secrets, never rendered text.

use std::{cmp::Reverse, sync::Arc};

use k8s_openapi::{
    api::apps::v1::ControllerRevision,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{Resource, ResourceExt};

use crate::{
    api::ConnectionPool,
    contract::{
        PoolRevision, Settings,
        names::{CAUSE_ANNOTATION, CHANGED_BY_ANNOTATION, HASH_ANNOTATION, POOL_LABEL},
    },
    decide::{
        plan::{NewRevision, RevisionSeen},
        rollout::{RevisionId, settings_hash},
    },
    objects::{WatchedRevision, revision_data},
};

/// The object for a new revision, and who changed the pool as far as that is known.
pub fn object(pool: &ConnectionPool, new: &NewRevision, changed_by: Option<&str>) -> ControllerRevision {
    let who = changed_by.map(|who| (CHANGED_BY_ANNOTATION, who.to_owned()));
    let why = [(HASH_ANNOTATION, settings_hash(&new.settings)), (CAUSE_ANNOTATION, new.cause.clone())];
    let annotations = why.into_iter().chain(who).map(|(name, value)| (name.to_owned(), value));
    let owner = OwnerReference {
        api_version: ConnectionPool::api_version(&()).into_owned(),
        kind: ConnectionPool::kind(&()).into_owned(),
        name: pool.name_any(),
        uid: pool.uid().unwrap_or_default(),
        controller: Some(true),
        // blocking the owner's deletion needs a right on its finalizers, for nothing
        block_owner_deletion: None,
    };
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(name(pool, new.number)),
            namespace: pool.namespace(),
            // never the workload's labels: a StatefulSet adopts orphans that match them
            labels: Some([(POOL_LABEL.to_owned(), pool.name_any())].into()),
            annotations: Some(annotations.collect()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        data: Some(revision_data(&new.settings)),
        revision: i64::try_from(new.number).unwrap_or(i64::MAX),
    }
}

/// Name of the object: the pool's and the number.
pub fn name(pool: &ConnectionPool, number: u64) -> String {
    format!("{}-{number}", pool.name_any())
}

/// The settings as they come back from an object: figures pass through text on the way.
pub fn normalised(settings: &Settings) -> Settings {
    let text = serde_json::to_string(settings).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_else(|_| settings.clone())
}

/// Whether the object belongs to this very pool, not to an earlier one of its name.
pub fn is_of(revision: &WatchedRevision, pool: &ConnectionPool) -> bool {
    revision.owner_uid.is_some() && revision.owner_uid == pool.metadata.uid
}

/// What is read from an object.
pub fn seen(revision: &WatchedRevision) -> RevisionSeen {
    RevisionSeen {
        name: revision.name_any(),
        number: revision.number,
        created: revision.creation_timestamp().map_or(0, |time| time.0.as_second()),
        settings: revision.settings.clone(),
        annotated_hash: revision.annotated_hash.clone(),
    }
}

/// The revision that new pods of `pool` get: the one that its status calls stable, or names for new pods; where that is gone, the newest that
/// neither failed nor is being tried. It is asked for each new pod: nothing is copied but what may be chosen.
pub fn for_new_pods(pool: &ConnectionPool, revisions: &[Arc<WatchedRevision>]) -> Option<PoolRevision> {
    let namespace = pool.metadata.namespace.as_deref();
    let status = pool.status.as_ref().and_then(|status| status.revision.as_ref());
    let own = revisions.iter().filter(|revision| revision.meta().namespace.as_deref() == namespace);
    let own = own.filter(|revision| is_of(revision, pool) && revision.name_any() == name(pool, revision.number));
    let mut own: Vec<&Arc<WatchedRevision>> = own.collect();
    // the one for new pods before the stable one, that before all others, then the newest
    let stable = status.map(|status| status.stable);
    let tried = status.and_then(|status| status.new_pods.filter(|number| *number == status.updated));
    own.sort_by_key(|revision| {
        let number = Some(revision.number);
        Reverse((number == tried, number == stable, revision.number))
    });
    own.into_iter().find_map(|revision| {
        let found = PoolRevision { revision: revision.number, settings: revision.settings.clone()? };
        let RevisionId { hash, .. } = RevisionId::of(found.revision, &found.settings);
        let Some(status) = status else { return Some(found) };
        let is_meant = if found.revision == status.stable {
            status.stable_hash.as_ref().is_none_or(|stable| *stable == hash)
        } else if Some(found.revision) == tried {
            status.updated_hash.as_ref() == Some(&hash) && !status.failed_hashes.contains(&hash)
        } else {
            found.revision != status.updated && !status.failed_hashes.contains(&hash)
        };
        is_meant.then_some(found)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::decide::effective::effective;

    fn pool(stable: Option<u64>) -> ConnectionPool {
        let mut pool = json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPool",
            "metadata": {"name": "shop", "namespace": "ns", "uid": "pool-uid"},
            "spec": {
                "workload": {"selector": {"matchLabels": {"app": "shop"}}},
                "upstream": {"host": "pg", "database": "shop", "credentialsRef": {"name": "shop-db"}},
            },
        });
        if let Some(stable) = stable {
            pool["status"] = json!({"revision": {"stable": stable, "updated": stable}});
        }
        serde_json::from_value(pool).expect("a pool")
    }

    fn stored(number: u64, namespace: &str, owner: &str) -> Arc<WatchedRevision> {
        let pool = pool(None);
        let settings = effective(&pool.spec, None).expect("valid").settings;
        let cause = "generation 1".to_owned();
        let mut object =
            object(&pool, &NewRevision { number, settings, cause, is_restored: false }, Some("kubectl-edit"));
        object.metadata.namespace = Some(namespace.to_owned());
        for reference in object.metadata.owner_references.iter_mut().flatten() {
            owner.clone_into(&mut reference.uid);
        }
        Arc::new(object.into())
    }

    #[test]
    fn new_pods_get_the_stable_revision_of_this_very_pool_and_before_there_is_one_the_newest() {
        let all = [
            stored(9, "other", "pool-uid"),
            stored(3, "ns", "pool-uid"),
            stored(8, "ns", "an earlier pool of this name"),
            stored(4, "ns", "pool-uid"),
            stored(2, "ns", "pool-uid"),
        ];
        let chosen = |stable| super::for_new_pods(&pool(stable), &all).map(|revision| revision.revision);
        assert_eq!(chosen(Some(3)), Some(3));
        assert_eq!(chosen(None), Some(4));
        assert_eq!(chosen(Some(7)), Some(4), "one that is gone");
        assert_eq!(super::for_new_pods(&pool(None), &all[..1]), None);
    }

    #[test]
    fn where_pods_take_a_revision_over_with_their_restart_alone_new_pods_get_it_as_long_as_it_is_what_was_meant() {
        let all = [1, 2].map(|number| stored(number, "ns", "pool-uid"));
        let hash = all[1].annotated_hash.clone().expect("it has one");
        let chosen = |revision: serde_json::Value| {
            let mut pool = pool(None);
            pool.status = serde_json::from_value(json!({ "revision": revision })).expect("a status");
            super::for_new_pods(&pool, &all).map(|revision| revision.revision)
        };
        assert_eq!(chosen(json!({"stable": 1, "updated": 2, "updatedHash": hash, "newPods": 2})), Some(2));
        assert_eq!(chosen(json!({"stable": 1, "updated": 2, "updatedHash": hash})), Some(1));
        assert_eq!(chosen(json!({"stable": 1, "updated": 2, "updatedHash": "another", "newPods": 2})), Some(1));
        assert_eq!(
            chosen(json!({"stable": 1, "updated": 2, "newPods": 2})),
            Some(1),
            "of which nobody says what it is"
        );
        let failed = json!({"stable": 1, "stableHash": hash, "updated": 2, "updatedHash": hash, "newPods": 2, "failedHashes": [hash]});
        assert_eq!(chosen(failed), Some(1));
        assert_eq!(chosen(json!({"stable": 1, "updated": 3, "updatedHash": hash, "newPods": 2})), Some(1));
    }

    #[test]
    fn where_the_stable_one_is_gone_or_made_anew_by_hand_new_pods_get_neither_what_is_tried_nor_what_failed() {
        let [oldest, stable, updated] = [1, 2, 3].map(|number| stored(number, "ns", "pool-uid"));
        let hash = stable.annotated_hash.clone().expect("it has one");
        let mut pool = pool(None);
        let mut chosen = |stable_hash: &str, failed: &[String], all: &[&Arc<WatchedRevision>]| {
            let revision = json!({"stable": 2, "stableHash": stable_hash, "updated": 3, "failedHashes": failed});
            pool.status = serde_json::from_value(json!({ "revision": revision })).expect("a status");
            let all: Vec<Arc<WatchedRevision>> = all.iter().map(|revision| Arc::clone(revision)).collect();
            super::for_new_pods(&pool, &all).map(|revision| revision.revision)
        };
        assert_eq!(chosen(&hash, &[], &[&oldest, &stable, &updated]), Some(2));
        assert_eq!(chosen(&hash, &[], &[&oldest, &updated]), Some(1), "it is gone");
        assert_eq!(chosen("another", &[], &[&oldest, &stable, &updated]), Some(1), "it says something else by now");
        assert_eq!(chosen("another", &[hash], &[&oldest, &stable, &updated]), None, "the spec itself");
        let mut renumbered = (*updated).clone();
        renumbered.number = 2;
        assert_eq!(chosen("", &[], &[&oldest, &Arc::new(renumbered)]), Some(1), "its name says another number");
    }
}
