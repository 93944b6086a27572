//! Objects as a watch delivers them, within the bounds of their kinds.
//!
//! One that cannot be read, or is larger than any of its kind has reason to be, is told with its name: the others are followed. What is
//! kept of one that can be read is what somebody here reads.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Service},
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Resource, core::error_boundary::InvalidObject};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _},
};
use serde_json::value::RawValue;

use super::{Lean, metadata::KeptMetadata};
use crate::{
    api::{ConnectionBudget, ConnectionPool, ConnectionPoolClass, FREEZE_ANNOTATION, ROLLOUT_ANNOTATION},
    contract::names,
};

/// Bytes that are kept of an annotation of a pool: more than one may have.
const LONGEST_ANNOTATION: usize = 512;
/// The annotations that are read of a pool: what is asked of its rollout, until when it is frozen, and why it was changed.
const READ_OF_POOLS: [&str; 3] = [ROLLOUT_ANNOTATION, FREEZE_ANNOTATION, names::CAUSE_ANNOTATION];

/// A kind that is watched.
pub trait Watched: Resource + DeserializeOwned {
    /// Largest object that is read, in bytes of its text.
    const LARGEST: usize;

    /// With which others of its namespace it belongs together; all of them, where nothing else is said.
    fn group_in_namespace(&self) -> String {
        String::new()
    }

    /// Reads an object, as far as anybody here needs it.
    ///
    /// # Errors
    /// The text is none of this kind.
    fn read(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text).map(|Lean(object)| object)
    }
}

/// Its definition bounds every field; its labels and annotations are whatever somebody likes, and a few annotations are all that is
/// read of them.
impl Watched for ConnectionPool {
    const LARGEST: usize = 1 << 20;

    fn read(text: &str) -> Result<Self, serde_json::Error> {
        let Lean(mut pool): Lean<Self> = serde_json::from_str(text)?;
        let mut all = pool.metadata.annotations.take().unwrap_or_default();
        let read = READ_OF_POOLS.into_iter().filter_map(|name| {
            let mut value = all.remove(name)?;
            // a longer one is refused or cut all the same
            value.truncate(value.floor_char_boundary(LONGEST_ANNOTATION));
            value.shrink_to_fit();
            Some((name.to_owned(), value))
        });
        pool.metadata.annotations = Some(read.collect()).filter(|read: &BTreeMap<_, _>| !read.is_empty());
        pool.metadata.labels = None;
        Ok(pool)
    }
}

impl Watched for ConnectionPoolClass {
    const LARGEST: usize = 1 << 20;
}

impl Watched for ConnectionBudget {
    const LARGEST: usize = 1 << 20;
}

/// Where it stands and whose it is.
#[derive(Deserialize)]
struct Headed {
    #[serde(default)]
    metadata: KeptMetadata,
}

/// A kind of which gateways have objects. Of an object that no pool owns is read which it is: its name is taken.
macro_rules! of_gateways {
    ($kind:ident, $largest:expr) => {
        impl Watched for $kind {
            const LARGEST: usize = $largest;

            fn read(text: &str) -> Result<Self, serde_json::Error> {
                let Headed { metadata } = serde_json::from_str(text)?;
                if metadata.is_of_a_pool() {
                    return serde_json::from_str(text).map(|Lean(object)| object);
                }
                Ok(Self { metadata: metadata.into(), ..Self::default() })
            }
        }
    };
}

of_gateways!(Deployment, 256 << 10);
of_gateways!(Service, 64 << 10);
of_gateways!(PodDisruptionBudget, 64 << 10);
of_gateways!(ConfigMap, 64 << 10);

/// An object, or why it cannot be read and which it is.
#[derive(Clone, Debug)]
pub struct Kept<K>(pub Result<K, InvalidObject>);

impl<'de, K: Watched> Deserialize<'de> for Kept<K> {
    fn deserialize<D: Deserializer<'de>>(text: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(text)?;
        let text = text.get();
        let read = if text.len() > K::LARGEST {
            Err(format!("it has {} bytes, and the largest that is read has {}", text.len(), K::LARGEST))
        } else {
            K::read(text).map_err(|error| error.to_string())
        };
        Ok(Self(match read {
            Ok(object) => Ok(object),
            Err(error) => {
                let Headed { metadata } = serde_json::from_str(text).map_err(D::Error::custom)?;
                Err(InvalidObject { error, metadata: metadata.into() })
            }
        }))
    }
}

impl<K: Resource> Resource for Kept<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(of: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(of)
    }

    fn group(of: &Self::DynamicType) -> Cow<'_, str> {
        K::group(of)
    }

    fn version(of: &Self::DynamicType) -> Cow<'_, str> {
        K::version(of)
    }

    fn plural(of: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.as_ref().map_or_else(|invalid| &invalid.metadata, K::meta)
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.as_mut().map_or_else(|invalid| &mut invalid.metadata, K::meta_mut)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn kept<K: Watched>(object: &Value) -> Kept<K> {
        serde_json::from_str(&object.to_string()).expect("an object")
    }

    fn owner(kind: &str, api_version: &str) -> Value {
        json!([{"kind": kind, "apiVersion": api_version, "name": "shop", "uid": "u", "controller": true}])
    }

    fn managed() -> Value {
        json!([{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}])
    }

    #[test]
    fn of_an_object_that_has_the_label_of_a_gateways_and_is_nobodys_is_kept_that_its_name_is_taken() {
        let config = |owners: Value| {
            let metadata = json!({"name": "shop-gateway", "namespace": "ns", "labels": {"sluice.dev/pool": "shop"}, "ownerReferences": owners});
            let object = json!({"metadata": metadata, "data": {"host": "x"}});
            kept::<ConfigMap>(&object).0.expect("it is one")
        };
        assert!(config(owner("ConnectionPool", "sluice.dev/v1alpha1")).data.is_some());
        let foreign = config(json!([]));
        assert_eq!((foreign.data, foreign.metadata.name.as_deref()), (None, Some("shop-gateway")));
    }

    #[test]
    fn what_is_larger_than_its_kind_has_reason_to_be_is_named_and_not_read() {
        let metadata = json!({"name": "shop", "namespace": "ns", "uid": "u", "resourceVersion": "9", "annotations": {"a": "x".repeat(2 << 20)}});
        let pool = json!({"metadata": metadata, "spec": {}});
        let Kept(read) = kept::<ConnectionPool>(&pool);
        let invalid = read.expect_err("it is too large");
        assert!(invalid.error.contains("the largest that is read has 1048576"), "{}", invalid.error);
        let named = (invalid.metadata.name.as_deref(), invalid.metadata.resource_version.as_deref());
        assert_eq!(named, (Some("shop"), Some("9")));
        assert_eq!(invalid.metadata.annotations, Some([].into()), "nothing of it is kept");
    }

    #[test]
    fn of_a_pool_is_kept_what_it_says_and_nothing_that_anybody_writes_beside_it() {
        let mut pool = json!({
            "metadata": {"name": "shop", "namespace": "ns", "generation": 3, "managedFields": managed(),
                "labels": {"a": "b"}, "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}},
            "spec": {
                "workload": {"selector": {"matchLabels": {"app": "shop"}}},
                "upstream": {"host": "pg", "database": "shop", "credentialsRef": {"name": "shop-db"}},
            },
        });
        let read = kept::<ConnectionPool>(&pool).0.expect("a pool");
        assert_eq!((read.metadata.generation, read.spec.upstream.host.as_str()), (Some(3), "pg"));
        assert_eq!((read.metadata.annotations, read.metadata.labels, read.metadata.managed_fields), (None, None, None));
        // but what is asked of its rollout, until when it is frozen, and why it was changed
        for (request, kept_bytes) in [("promote 7".to_owned(), 9), ("promote 7 ".repeat(1000), LONGEST_ANNOTATION)] {
            pool["metadata"]["annotations"][ROLLOUT_ANNOTATION] = json!(request);
            let read = kept::<ConnectionPool>(&pool).0.expect("a pool");
            let annotations = read.metadata.annotations.expect("a request");
            let is_begun = annotations[ROLLOUT_ANNOTATION].starts_with("promote 7");
            assert_eq!((annotations.len(), annotations[ROLLOUT_ANNOTATION].len(), is_begun), (1, kept_bytes, true));
        }
        pool["metadata"]["annotations"] = json!({"sluice.dev/freeze": "2026-12-01T06:00:00Z the sale",
            "kubernetes.io/change-cause": "more for the sale", "a": "b"});
        let annotations = kept::<ConnectionPool>(&pool).0.expect("a pool").metadata.annotations.expect("two");
        assert_eq!((annotations.len(), annotations.contains_key("a")), (2, false));
    }
}
