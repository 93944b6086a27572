//! Small workloads of one container with a shell and psql, and the pool that they are given.

use std::env;

use crate::cluster::psql;

/// A namespace with credentials and a pool for pods labelled `app: NAMESPACE`, and a database of that name.
pub fn pool(namespace: &str) -> String {
    if psql("SELECT count(*) FROM pg_roles WHERE rolname = 'injection'") == "0\n" {
        psql("CREATE ROLE injection LOGIN SUPERUSER PASSWORD 'change-me'");
    }
    psql(&format!("DROP DATABASE IF EXISTS {namespace} WITH (FORCE)"));
    psql(&format!("CREATE DATABASE {namespace}"));
    let address = env::var("PGHOST").expect("run this through tests/run node");
    format!(
        r"
apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}, labels: {{pod-security.kubernetes.io/enforce: restricted}}}}
---
apiVersion: v1
kind: Secret
metadata: {{name: database, namespace: {namespace}}}
stringData: {{username: injection, password: change-me}}
---
apiVersion: sluice.dev/v1alpha1
kind: ConnectionPool
metadata: {{name: {namespace}, namespace: {namespace}}}
spec:
  workload: {{selector: {{matchLabels: {{app: {namespace}}}}}}}
  upstream: {{host: {address}, database: {namespace}, credentialsRef: {{name: database}}, tls: {{mode: Disabled}}}}
  scaling: {{minAllowed: 1, maxAllowed: 10}}
---
"
    )
}

/// A container with a shell and psql, told of the database as applications are: by name, user and password, and by a host that
/// injection replaces.
pub fn container(name: &str, namespace: &str, script: &str) -> String {
    format!(
        "name: {name}, image: 'sluice.test/shop:1', imagePullPolicy: IfNotPresent, command: [sh, -ec, {script:?}], \
         env: [{{name: PGHOST, value: nowhere.invalid}}, {{name: PGDATABASE, value: {namespace}}}, \
         {{name: PGUSER, valueFrom: {{secretKeyRef: {{name: database, key: username}}}}}}, \
         {{name: PGPASSWORD, valueFrom: {{secretKeyRef: {{name: database, key: password}}}}}}], \
         resources: {{requests: {{cpu: 10m, memory: 16Mi}}, limits: {{memory: 64Mi}}}}, \
         securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}"
    )
}

pub fn pod_spec(containers: &str, init: &str, restart: &str) -> String {
    format!(
        "{{restartPolicy: {restart}, terminationGracePeriodSeconds: 5, automountServiceAccountToken: true, \
         securityContext: {{runAsNonRoot: true, runAsUser: 65532, seccompProfile: {{type: RuntimeDefault}}}}, \
         initContainers: [{init}], containers: [{{{containers}}}]}}"
    )
}

pub fn deployment(namespace: &str, replicas: u32) -> String {
    let spec =
        pod_spec(&container("app", namespace, "while :; do psql -qXAtc 'SELECT 1'; sleep 0.2; done"), "", "Always");
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: app, namespace: {namespace}}}\nspec:\n  replicas: {replicas}\n  \
         selector: {{matchLabels: {{app: {namespace}}}}}\n  template:\n    \
         metadata: {{labels: {{app: {namespace}, sluice.dev/inject: enabled}}}}\n    spec: {spec}\n"
    )
}

/// The same namespace with a gateway of that name, `NAMESPACE-gateway`.
pub fn gateway(namespace: &str) -> String {
    let sidecar = pool(namespace);
    let workload = format!("workload: {{selector: {{matchLabels: {{app: {namespace}}}}}}}");
    assert!(sidecar.contains(&workload), "{sidecar}");
    sidecar.replace(&workload, "topology: Gateway")
}

/// A Deployment of one client that finds the gateway by its Service, as any application would.
pub fn client(namespace: &str, name: &str, script: &str) -> String {
    let container =
        container(name, namespace, script).replace("value: nowhere.invalid", &format!("value: {namespace}-gateway"));
    let spec = pod_spec(&container, "", "Always");
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
         selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec: {spec}\n"
    )
}
