//! The three classes that ship with Sluice: created when absent, never overwritten.

use kube::{Api, Client, ResourceExt, api::PostParams};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::{
    apply::writer::{WriteError, Writer},
    backoff::Backoff,
};
use crate::{
    api::{ConnectionPoolClass, FIELD_MANAGER},
    http::WriteKind,
};

/// Name, bounds in server connections, and seconds that a client waits.
const CLASSES: [(&str, u32, u32, u32); 3] =
    [("development", 5, 10, 10), ("staging", 10, 20, 30), ("production", 20, 50, 30)];

/// The classes as objects.
pub fn shipped() -> Vec<ConnectionPoolClass> {
    CLASSES
        .iter()
        .filter_map(|(name, min, max, timeout)| {
            let object = json!({
                "apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPoolClass", "metadata": {"name": name},
                "spec": {
                    "scaling": {"minAllowed": min, "maxAllowed": max},
                    "health": {"queryWaitTimeoutSeconds": timeout},
                },
            });
            serde_json::from_value(object).ok()
        })
        .collect()
}

/// Creates those that are absent, and tries again until all are there.
pub async fn ensure(client: &Client, writer: &Writer) {
    let classes: Api<ConnectionPoolClass> = Api::all(client.clone());
    let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    for class in shipped() {
        let mut backoff = None;
        loop {
            let what = format!("ConnectionPoolClass {}", class.name_any());
            match writer.write(WriteKind::Class, what, classes.create(&params, &class)).await {
                Ok(_) => {
                    tracing::info!(class = class.name_any(), "class created");
                    break;
                }
                // it exists: it may have been edited, and is its owner's
                Err(WriteError::Conflict { .. }) => break,
                Err(error) => {
                    tracing::warn!(%error, "creating a class; trying again");
                    let next = Backoff::after_write(backoff.as_ref(), &error, Instant::now());
                    sleep_until(next.at).await;
                    backoff = Some(next);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_classes_have_the_bounds_and_timeouts_that_were_promised() {
        let classes = shipped();
        assert_eq!(classes.len(), CLASSES.len(), "every class reads back as one");
        let production = classes.iter().find(|class| class.name_any() == "production").expect("production");
        let scaling = production.spec.scaling.as_ref().expect("bounds");
        assert_eq!((scaling.min_allowed, scaling.max_allowed), (Some(20), Some(50)));
    }
}
