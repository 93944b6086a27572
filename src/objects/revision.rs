//! A revision as a watch delivers it, decoded once.
//!
//! Every pool keeps several of them. The tree of the JSON in one takes ten times as much memory as the settings that it says, and was decoded
//! at each look.

use std::borrow::Cow;

use k8s_openapi::{
    api::apps::v1::ControllerRevision,
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, runtime::RawExtension},
};
use kube::Resource;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::value::RawValue;

use super::{Watched, metadata::KeptMetadata};
use crate::contract::{Settings, names};

/// The newest format of the settings in a revision that this build reads, and the one that it writes.
const FORMAT: u32 = 1;
/// More than the settings of a pool have, in bytes of text.
const LARGEST_DATA: usize = 64 << 10;

/// `data` of the object: what a revision says.
#[derive(Serialize, Deserialize)]
struct RevisionData {
    v: u32,
    settings: Settings,
}

impl RevisionData {
    /// What it says, where this build can read it.
    fn understood(self) -> Option<Settings> {
        (self.v <= FORMAT).then_some(self.settings)
    }
}

/// `data` of an object that says these settings.
pub fn revision_data(settings: &Settings) -> RawExtension {
    let data = RevisionData { v: FORMAT, settings: settings.clone() };
    RawExtension(serde_json::to_value(data).unwrap_or_default())
}

/// A `ControllerRevision`, of which is kept which it is, whose it is, and what it says.
#[derive(Clone, Debug, PartialEq)]
pub struct WatchedRevision {
    /// Which it is: labels, annotations and owners are below, as far as they are read.
    metadata: ObjectMeta,
    /// The pool that it has the label of.
    pub pool: Option<String>,
    /// Uid of its controller: another pool may have the name of this one.
    pub owner_uid: Option<String>,
    /// Its number.
    pub number: u64,
    /// The hash that its annotation says.
    pub annotated_hash: Option<String>,
    /// What it says; none where no pool owns it, or it cannot be read.
    pub settings: Option<Settings>,
}

impl WatchedRevision {
    fn new(mut metadata: ObjectMeta, revision: i64, settings: Option<Settings>) -> Self {
        let labels = metadata.labels.take();
        let annotations = metadata.annotations.take();
        let mut owners = metadata.owner_references.take().into_iter().flatten();
        Self {
            pool: labels.and_then(|mut labels| labels.remove(names::POOL_LABEL)),
            owner_uid: owners.find(|owner| owner.controller == Some(true)).map(|owner| owner.uid),
            number: u64::try_from(revision).unwrap_or_default(),
            annotated_hash: annotations.and_then(|mut annotations| annotations.remove(names::HASH_ANNOTATION)),
            settings,
            metadata,
        }
    }
}

impl<'de> Deserialize<'de> for WatchedRevision {
    fn deserialize<D: Deserializer<'de>>(text: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(text)?;
        Self::read(text.get()).map_err(D::Error::custom)
    }
}

/// As the API server answers to its creation.
impl From<ControllerRevision> for WatchedRevision {
    fn from(ControllerRevision { metadata, data, revision }: ControllerRevision) -> Self {
        let data = data.and_then(|RawExtension(data)| serde_json::from_value::<RevisionData>(data).ok());
        Self::new(metadata, revision, data.and_then(RevisionData::understood))
    }
}

/// StatefulSets and DaemonSets keep their templates in such objects, under the labels of their pods: of one that no pool owns is read which
/// it is, and so is one with more in it than the settings of a pool have.
impl Watched for WatchedRevision {
    const LARGEST: usize = 4 << 20;

    /// Those of one pool.
    fn group_in_namespace(&self) -> String {
        self.pool.clone().unwrap_or_default()
    }

    fn read(text: &str) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct RevisionText<'a> {
            #[serde(default)]
            metadata: KeptMetadata,
            #[serde(borrow)]
            data: Option<&'a RawValue>,
            revision: i64,
        }
        let RevisionText { metadata, data, revision } = serde_json::from_str(text)?;
        let data = data.filter(|data| metadata.is_of_a_pool() && data.get().len() <= LARGEST_DATA);
        let data = data.and_then(|data| serde_json::from_str::<RevisionData>(data.get()).ok());
        Ok(Self::new(metadata.into(), revision, data.and_then(RevisionData::understood)))
    }
}

impl Resource for WatchedRevision {
    type DynamicType = <ControllerRevision as Resource>::DynamicType;
    type Scope = <ControllerRevision as Resource>::Scope;

    fn kind(of: &Self::DynamicType) -> Cow<'_, str> {
        ControllerRevision::kind(of)
    }

    fn group(of: &Self::DynamicType) -> Cow<'_, str> {
        ControllerRevision::group(of)
    }

    fn version(of: &Self::DynamicType) -> Cow<'_, str> {
        ControllerRevision::version(of)
    }

    fn plural(of: &Self::DynamicType) -> Cow<'_, str> {
        ControllerRevision::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::objects::Kept;

    const POOL: (&str, &str) = ("ConnectionPool", "sluice.dev/v1alpha1");

    fn settings() -> Value {
        let rules = json!({"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [], "tolerance": 0.05});
        json!({
            "poolMode": "Session", "parameters": {"server_lifetime": "60"},
            "health": {"validationQuery": "select 1", "periodSeconds": 10, "queryWaitTimeoutSeconds": 30, "leakThresholdSeconds": 300},
            "scaling": {
                "algorithm": "Adaptive", "limitSource": "Share", "objective": {"waitMilliseconds": 20, "maxWaitingPercent": 1.0},
                "targetUtilizationPercent": 70, "behavior": {"scaleUp": rules, "scaleDown": rules},
            },
        })
    }

    fn object((kind, api_version): (&str, &str), data: &Value) -> Value {
        let owners = json!([{"kind": kind, "apiVersion": api_version, "name": "shop", "uid": "u", "controller": true}]);
        let metadata = json!({"name": "shop-4", "namespace": "ns", "resourceVersion": "7", "labels": {"sluice.dev/pool": "shop", "a": "b"},
            "annotations": {"sluice.dev/settings-hash": "8bb5", "sluice.dev/changed-by": "kubectl-edit"}, "ownerReferences": owners,
            "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:data": {}}}]});
        json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": metadata, "data": data, "revision": 4})
    }

    fn watched(owner: (&str, &str), data: &Value) -> WatchedRevision {
        let Kept(read) = serde_json::from_str(&object(owner, data).to_string()).expect("an object");
        read.expect("a revision")
    }

    #[test]
    fn a_revision_is_decoded_where_a_pool_owns_it_and_of_the_history_of_others_is_kept_only_which_it_is() {
        let data = json!({"v": 1, "settings": settings()});
        let own = watched(POOL, &data);
        assert_eq!(serde_json::to_value(&own.settings).expect("JSON"), settings());
        let which = (own.number, own.pool.as_deref(), own.owner_uid.as_deref(), own.annotated_hash.as_deref());
        assert_eq!(which, (4, Some("shop"), Some("u"), Some("8bb5")));
        let ObjectMeta { name, namespace, resource_version, .. } = own.meta();
        assert_eq!([name, namespace, resource_version].map(Option::as_deref), [Some("shop-4"), Some("ns"), Some("7")]);
        let beside =
            (&own.meta().labels, &own.meta().annotations, &own.meta().owner_references, &own.meta().managed_fields);
        assert_eq!(beside, (&None, &None, &None, &None), "what is read of these is kept above");
        let foreign = watched(("StatefulSet", "apps/v1"), &data);
        assert_eq!((foreign.settings, foreign.number, foreign.metadata.name.as_deref()), (None, 4, Some("shop-4")));
    }

    #[test]
    fn what_cannot_be_read_of_a_revision_says_nothing_and_the_revision_is_there_all_the_same() {
        let mut long = settings();
        long["parameters"] = json!({"x": "x".repeat(100 << 10)});
        let of_a_newer_build = json!({"v": 2, "settings": settings()});
        let none = [json!({"v": 1, "settings": {}}), json!(null), json!({"v": 1, "settings": long}), of_a_newer_build];
        for data in none {
            assert_eq!((watched(POOL, &data).settings, watched(POOL, &data).number), (None, 4), "{data}");
        }
    }

    #[test]
    fn what_its_creation_is_answered_with_says_what_the_watch_will_tell() {
        let object = object(POOL, &json!({"v": 1, "settings": settings()}));
        let created: ControllerRevision = serde_json::from_value(object.clone()).expect("a revision");
        let mut answered = WatchedRevision::from(created);
        answered.meta_mut().managed_fields = None;
        assert_eq!(answered, serde_json::from_str(&object.to_string()).expect("a revision"));
    }
}
