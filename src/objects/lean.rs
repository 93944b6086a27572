//! Objects as a list or a watch delivers them, without `metadata.managedFields`.
//!
//! Decoded, that field is larger than all the rest of an object: a tree of maps with one entry each, a quarter of a
//! megabyte for an ordinary pod. Nobody here reads it, so it is skipped in the text instead of being thrown away later:
//! otherwise the first list of the pods would decide how much memory the operator keeps.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, IntoDeserializer, MapAccess, Visitor, value::StringDeserializer},
    forward_to_deserialize_any,
};

/// An object without its managed fields.
#[derive(Clone, Debug)]
pub struct Lean<K>(pub K);

impl<'de, K: Deserialize<'de>> Deserialize<'de> for Lean<K> {
    fn deserialize<D: Deserializer<'de>>(text: D) -> Result<Self, D::Error> {
        K::deserialize(Without { text, at: At::Object }).map(Self)
    }
}

/// Where in the object we are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Object,
    Metadata,
}

/// A part of the text, read without managed fields.
struct Without<T> {
    text: T,
    at: At,
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Without<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.text.deserialize_any(Without { text: visitor, at: self.at })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.text.deserialize_option(Without { text: visitor, at: self.at })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Without<V> {
    type Value = V::Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.expecting(formatter)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.text.visit_none()
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.text.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, text: D) -> Result<V::Value, D::Error> {
        self.text.visit_some(Without { text, at: self.at })
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<V::Value, A::Error> {
        self.text.visit_map(Fields { text: fields, at: self.at, metadata_is_next: false })
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Without<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, text: D) -> Result<S::Value, D::Error> {
        self.text.deserialize(Without { text, at: self.at })
    }
}

/// The fields of the object or of its metadata.
struct Fields<A> {
    text: A,
    at: At,
    metadata_is_next: bool,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Fields<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        while let Some(name) = self.text.next_key::<String>()? {
            if self.at == At::Metadata && name == "managedFields" {
                self.text.next_value::<IgnoredAny>()?;
                continue;
            }
            self.metadata_is_next = self.at == At::Object && name == "metadata";
            let name: StringDeserializer<A::Error> = name.into_deserializer();
            return seed.deserialize(name).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        if self.metadata_is_next {
            self.text.next_value_seed(Without { text: seed, at: At::Metadata })
        } else {
            self.text.next_value_seed(seed)
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::Lean;
    use crate::api::ConnectionPool;

    #[test]
    fn an_object_is_read_whole_but_for_its_managed_fields() {
        let managed = json!([{"manager": "kubelet", "operation": "Update", "fieldsV1": {"f:status": {"f:phase": {}}}}]);
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "shop-1", "namespace": "shop", "uid": "u", "labels": {"managedFields": "kept"}, "managedFields": managed},
            "spec": {"containers": [{"name": "app", "image": "app:1", "env": [{"name": "A", "value": "metadata"}]}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1"},
        });
        let Lean(lean): Lean<Pod> = serde_json::from_str(&pod.to_string()).unwrap();
        pod["metadata"].as_object_mut().unwrap().remove("managedFields");
        assert_eq!(lean, serde_json::from_value::<Pod>(pod).unwrap());
    }

    #[test]
    fn a_kind_of_ours_is_read_in_the_same_way() {
        let pool = json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPool",
            "metadata": {"name": "shop", "namespace": "shop", "managedFields": [{"manager": "kubectl"}]},
            "spec": {
                "engine": "PostgreSQL", "topology": "Sidecar", "mode": "Apply",
                "workload": {"selector": {"matchLabels": {"app": "shop"}}},
                "upstream": {"host": "pg", "database": "shop", "credentialsRef": {"name": "shop-db"}},
            },
        });
        let Lean(lean): Lean<ConnectionPool> = serde_json::from_str(&pool.to_string()).unwrap();
        assert_eq!(lean.metadata.managed_fields, None);
        assert_eq!(lean.metadata.name.as_deref(), Some("shop"));
        assert_eq!(lean.spec.upstream.host, "pg");
    }
}
