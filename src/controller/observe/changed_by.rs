//! Who changed a pool last, as the API server notes it. The watch leaves that out: it is larger than the pool.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::{Api, Client, ResourceExt, api::ListParams};
use tokio::time::timeout;

use crate::api::{ConnectionPool, FIELD_MANAGER};

/// Longest wait for it: nothing depends on it.
const DEADLINE: Duration = Duration::from_secs(2);
/// Longest name that is kept, in bytes.
const NAME_BYTES: usize = 128;

/// The field manager that changed the pool last, its status and Sluice itself left aside: `kubectl-edit`, `argocd-controller`. None where
/// the API server does not say so in time.
pub async fn changed_by(client: &Client, pool: &ConnectionPool) -> Option<String> {
    let pools: Api<ConnectionPool> = Api::namespaced(client.clone(), pool.metadata.namespace.as_deref()?);
    // a list of one: the operator has no right to get one
    let only = ListParams::default().fields(&format!("metadata.name={}", pool.name_any()));
    let found = timeout(DEADLINE, pools.list_metadata(&only)).await.ok()?.ok()?;
    newest(found.items.into_iter().next()?.metadata.managed_fields?)
}

fn newest(entries: Vec<ManagedFieldsEntry>) -> Option<String> {
    let is_somebodys = |entry: &ManagedFieldsEntry| {
        entry.subresource.is_none() && entry.manager.as_ref().is_some_and(|manager| manager != FIELD_MANAGER)
    };
    let newest = entries.into_iter().filter(is_somebodys).max_by_key(|entry| entry.time.as_ref().map(|time| time.0));
    let mut manager = newest?.manager?;
    manager.truncate(manager.floor_char_boundary(NAME_BYTES));
    Some(manager)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_was_whoever_wrote_last_but_for_the_status_and_the_operator() {
        let entry = |manager: &str, subresource: Option<&str>, time: &str| json!({"manager": manager, "subresource": subresource, "time": time, "operation": "Update"});
        let entries = json!([
            entry("kubectl-create", None, "2026-11-28T10:00:00Z"),
            entry("argocd-controller", None, "2026-11-28T12:00:00Z"),
            entry("kubectl-edit", None, "2026-11-28T11:00:00Z"),
            entry("somebody", Some("status"), "2026-11-28T13:00:00Z"),
            entry(FIELD_MANAGER, None, "2026-11-28T14:00:00Z"),
        ]);
        let entries: Vec<ManagedFieldsEntry> = serde_json::from_value(entries).expect("entries");
        assert_eq!(newest(entries).as_deref(), Some("argocd-controller"));
        assert_eq!(newest(Vec::new()), None);
    }
}
