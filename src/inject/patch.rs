//! Builds a JSON patch by hand.
//!
//! A computed difference would rewrite whole containers by index and lose the fields that this build does not know; every
//! operation here names one element that Sluice puts there or takes away.

use std::collections::BTreeMap;

use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation, jsonptr::PointerBuf};
use serde::Serialize;
use serde_json::Value;

/// The operations so far.
#[derive(Debug, Default)]
pub struct PatchBuilder {
    operations: Vec<PatchOperation>,
}

impl PatchBuilder {
    /// Adds a member, or an element before the index; `-` appends.
    pub fn add<const N: usize>(&mut self, path: [&str; N], value: impl Serialize) {
        self.operations.push(PatchOperation::Add(AddOperation { path: pointer(path), value: json(value) }));
    }

    /// Replaces what is there.
    pub fn replace<const N: usize>(&mut self, path: [&str; N], value: impl Serialize) {
        self.operations.push(PatchOperation::Replace(ReplaceOperation { path: pointer(path), value: json(value) }));
    }

    /// Removes what is there.
    pub fn remove<const N: usize>(&mut self, path: [&str; N]) {
        self.operations.push(PatchOperation::Remove(RemoveOperation { path: pointer(path) }));
    }

    /// Adds to a list that may not exist yet: an absent list is created with the first values.
    pub fn append_all<const N: usize, V: Serialize>(&mut self, list: [&str; N], exists: bool, values: &[V]) {
        if values.is_empty() {
            return;
        }
        if !exists {
            return self.add(list, values);
        }
        for value in values {
            let path = pointer(list).with_trailing_token("-");
            self.operations.push(PatchOperation::Add(AddOperation { path, value: json(value) }));
        }
    }

    /// Sets and removes entries of a string map of the metadata (labels, annotations), which may not exist yet.
    pub fn metadata(
        &mut self,
        map: &str,
        current: Option<&BTreeMap<String, String>>,
        wanted: &[(&str, Option<String>)],
    ) {
        let Some(current) = current else {
            let set = wanted.iter().filter_map(|(key, value)| Some((*key, value.as_ref()?)));
            let set: BTreeMap<_, _> = set.collect();
            if !set.is_empty() {
                self.add(["metadata", map], set);
            }
            return;
        };
        for (key, value) in wanted {
            match (current.get(*key), value) {
                (found, Some(value)) if found != Some(value) => self.add(["metadata", map, key], value),
                (Some(_), None) => self.remove(["metadata", map, key]),
                _ => {}
            }
        }
    }

    /// The patch.
    pub fn build(self) -> Patch {
        Patch(self.operations)
    }
}

fn pointer<const N: usize>(path: [&str; N]) -> PointerBuf {
    PointerBuf::from_tokens(path)
}

/// Everything that is put into a patch is a plain structure with string keys, which always has a JSON form.
fn json(value: impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}
