//! The custom resource definitions, from the types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use super::{ConnectionBudget, ConnectionPool, ConnectionPoolClass};

/// The custom resource definitions of this version, in the order in which they are installed.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![ConnectionPoolClass::crd(), ConnectionBudget::crd(), ConnectionPool::crd()]
}

/// Name of the file and YAML of each definition, as committed under `crds/`.
///
/// # Errors
/// Never in practice: the definitions are built from constants.
pub fn crds_yaml() -> Result<Vec<(String, String)>, serde_yaml::Error> {
    crds()
        .into_iter()
        .map(|crd| Ok((format!("{}.yaml", crd.spec.names.plural), serde_yaml::to_string(&crd)?)))
        .collect()
}
