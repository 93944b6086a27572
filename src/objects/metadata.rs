//! The metadata of an object, as far as anybody here needs them.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

use super::only::only;
use crate::contract::names;

/// Labels that are kept beside our own: no selector names more.
const MOST_LABELS: usize = 64;
/// Longest annotation of ours that is kept, in bytes: the longest that Sluice writes, a revision with every parameter, has half of it. A
/// longer one is kept empty, which is none that can be read.
const LONGEST_ANNOTATION: usize = 64 << 10;

/// Which object it is, what it is called by, and whose it is.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct KeptMetadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    #[serde(deserialize_with = "few_labels")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "own_annotations")]
    annotations: BTreeMap<String, String>,
    /// The controller alone.
    #[serde(deserialize_with = "controllers")]
    owner_references: Vec<OwnerReference>,
}

impl KeptMetadata {
    /// Whether a ConnectionPool owns it.
    pub(super) fn is_of_a_pool(&self) -> bool {
        let owners = &self.owner_references;
        owners.iter().any(|owner| owner.kind == "ConnectionPool" && owner.api_version.starts_with(names::PREFIX))
    }
}

impl From<KeptMetadata> for ObjectMeta {
    fn from(kept: KeptMetadata) -> Self {
        Self {
            name: kept.name,
            namespace: kept.namespace,
            uid: kept.uid,
            resource_version: kept.resource_version,
            generation: kept.generation,
            creation_timestamp: kept.creation_timestamp,
            deletion_timestamp: kept.deletion_timestamp,
            labels: Some(kept.labels),
            annotations: Some(kept.annotations),
            owner_references: Some(kept.owner_references),
            ..Self::default()
        }
    }
}

fn controllers<'de, D: Deserializer<'de>>(text: D) -> Result<Vec<OwnerReference>, D::Error> {
    only(text, |owner: &OwnerReference| owner.controller == Some(true))
}

fn few_labels<'de, D: Deserializer<'de>>(text: D) -> Result<BTreeMap<String, String>, D::Error> {
    let keeps = |name: &str, kept: &BTreeMap<_, _>| name.starts_with(names::PREFIX) || kept.len() < MOST_LABELS;
    text.deserialize_any(Entries { keeps, longest: usize::MAX })
}

fn own_annotations<'de, D: Deserializer<'de>>(text: D) -> Result<BTreeMap<String, String>, D::Error> {
    let keeps = |name: &str, _: &BTreeMap<_, _>| name.starts_with(names::PREFIX);
    text.deserialize_any(Entries { keeps, longest: LONGEST_ANNOTATION })
}

/// Reads the entries of a map that are kept.
struct Entries<F> {
    keeps: F,
    longest: usize,
}

impl<'de, F: Fn(&str, &BTreeMap<String, String>) -> bool> Visitor<'de> for Entries<F> {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of texts")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(BTreeMap::new())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut kept = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if (self.keeps)(&name, &kept) {
                let value: String = map.next_value()?;
                kept.insert(name, if value.len() <= self.longest { value } else { String::new() });
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(kept)
    }
}
