//! A revision as an object: a `ControllerRevision` owned by its pool. Never secrets, never rendered text.

use k8s_openapi::{
    api::apps::v1::ControllerRevision,
    apimachinery::pkg::{
        apis::meta::v1::{ObjectMeta, OwnerReference},
        runtime::RawExtension,
    },
};
use kube::{Resource, ResourceExt};
use serde::{Deserialize, Serialize};

use crate::{
    api::ConnectionPool,
    contract::{PoolRevision, Settings, names::POOL_LABEL},
    decide::plan::{NewRevision, RevisionSeen},
    fingerprint::fingerprint,
};

/// Annotation with the hash of the settings, so that equal ones are seen at a glance.
const HASH_ANNOTATION: &str = "sluice.dev/settings-hash";
/// The newest format that this build reads and the one that it writes.
const FORMAT: u32 = 1;

/// `data` of the object.
#[derive(Serialize, Deserialize)]
struct Data {
    v: u32,
    settings: Settings,
}

/// The object for a new revision.
pub fn object(pool: &ConnectionPool, new: &NewRevision) -> ControllerRevision {
    let settings = serde_json::to_value(Data { v: FORMAT, settings: new.settings.clone() }).unwrap_or_default();
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
            annotations: Some([(HASH_ANNOTATION.to_owned(), hash(&new.settings))].into()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(settings)),
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
pub fn is_of(revision: &ControllerRevision, pool: &ConnectionPool) -> bool {
    let uid = pool.uid().unwrap_or_default();
    revision.owner_references().iter().any(|owner| owner.controller == Some(true) && owner.uid == uid)
}

/// What is read from an object.
pub fn seen(revision: &ControllerRevision) -> RevisionSeen {
    RevisionSeen {
        name: revision.name_any(),
        number: u64::try_from(revision.revision).unwrap_or_default(),
        created: revision.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        settings: settings(revision),
    }
}

fn settings(revision: &ControllerRevision) -> Option<Settings> {
    let data: Data = serde_json::from_value(revision.data.as_ref()?.0.clone()).ok()?;
    (data.v <= FORMAT).then_some(data.settings)
}

/// The revision that new pods of `pool` get: the one that its status calls stable, else the newest.
pub fn stable<'a>(
    pool: &ConnectionPool,
    revisions: impl IntoIterator<Item = &'a ControllerRevision>,
) -> Option<PoolRevision> {
    let stable = pool.status.as_ref().and_then(|status| status.revision.as_ref()).map(|revision| revision.stable);
    let mut own: Vec<RevisionSeen> = revisions.into_iter().filter(|revision| is_of(revision, pool)).map(seen).collect();
    own.sort_by_key(|revision| revision.number);
    let chosen = own.iter().find(|revision| Some(revision.number) == stable).or(own.last())?;
    Some(PoolRevision { revision: chosen.number, settings: chosen.settings.clone()? })
}

fn hash(settings: &Settings) -> String {
    fingerprint(&serde_json::to_vec(settings).unwrap_or_default(), 8)
}
