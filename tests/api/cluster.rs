//! The API server of the lab: a client, namespaces of one's own, objects from YAML, waits with a deadline.

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Namespace, ServiceAccount},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use sluice::api::crds;
use tokio::time::{Instant, sleep};

/// Longest wait for a state. Nothing here takes more than a second on an idle machine; in CI it is shared with the parts.
pub const DEADLINE: Duration = Duration::from_mins(1);

/// A namespace of the test's own, in a cluster with the kinds installed.
pub struct Cluster {
    pub client: Client,
    pub namespace: String,
}

impl Cluster {
    /// A namespace with these labels and one that tells it from those of other tests.
    pub async fn new(test: &str, labels: &Value) -> Self {
        let client = client(None).await;
        install_kinds(&client).await;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let mut all = labels.clone();
        all["sluice-test"] = test.into();
        let namespace = object(json!({"metadata": {"generateName": format!("{test}-"), "labels": all}}));
        let created = namespaces.create(&PostParams::default(), &namespace).await.expect("a namespace");
        let cluster = Self { client, namespace: created.name_any() };
        // The controller that makes it in a whole cluster does not run at this level.
        let accounts: Api<ServiceAccount> = cluster.api();
        let account = object(json!({"metadata": {"name": "default"}}));
        match accounts.create(&PostParams::default(), &account).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            outcome => drop(outcome.expect("a service account")),
        }
        cluster
    }

    /// The objects of a kind in the namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// A client that acts as a service account of this namespace.
    pub async fn client_as(&self, account: &str) -> Client {
        client(Some(format!("system:serviceaccount:{}:{account}", self.namespace))).await
    }

    /// Creates an object from YAML.
    pub async fn create<K>(&self, yaml: &str) -> kube::Result<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>
            + Clone
            + serde::Serialize
            + DeserializeOwned
            + std::fmt::Debug,
        K::DynamicType: Default,
    {
        self.api().create(&PostParams::default(), &parse(yaml)).await
    }

    /// Applies a cluster-wide object, and takes it away when the test ends.
    pub async fn apply_for_now(&self, value: &Value) -> ForNow {
        let object: DynamicObject = object(value.clone());
        let types = object.types.clone().expect("apiVersion and kind");
        let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(&types).expect("a kind"));
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let name = object.name_any();
        api.patch(&name, &PatchParams::apply("tests").force(), &Patch::Apply(&object)).await.expect("applied");
        ForNow { api, name }
    }
}

/// A cluster-wide object that exists for one test. Tests end it themselves: what a panic leaves behind names a namespace
/// that nobody uses again.
pub struct ForNow {
    api: Api<DynamicObject>,
    name: String,
}

impl ForNow {
    pub async fn end(self) {
        self.api.delete(&self.name, &DeleteParams::default()).await.expect("deleted");
    }
}

async fn client(act_as: Option<String>) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = Config::infer().await;
    let mut config = config.expect("KUBECONFIG of the lab: run with `tests/lab/lab up api` and `tests/lab/lab exec`");
    config.default_retry = false;
    config.auth_info.impersonate = act_as;
    Client::try_from(config).expect("a client")
}

async fn install_kinds(client: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let options = PatchParams::apply("tests").force();
    for crd in crds() {
        let name = crd.name_any();
        definitions.patch(&name, &options, &Patch::Apply(&crd)).await.expect("the definition is accepted");
    }
    for crd in crds() {
        let name = crd.name_any();
        eventually(&format!("{name} is established"), || async {
            let found = definitions.get_status(&name).await.ok()?;
            let conditions = found.status?.conditions?;
            conditions.iter().any(|it| it.type_ == "Established" && it.status == "True").then_some(())
        })
        .await;
    }
}

/// Waits for a state.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, probe: impl FnMut() -> F) -> T {
    within(DEADLINE, what, probe).await
}

/// Waits for a state that takes its time.
pub async fn within<T, F: Future<Output = Option<T>>>(most: Duration, what: &str, mut probe: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + most;
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {}s: {what}", most.as_secs());
        sleep(Duration::from_millis(20)).await;
    }
}

/// The real kubectl.
pub fn kubectl(args: &[&str], input: &str) -> Output {
    let mut command = Command::new("kubectl");
    let child = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("kubectl is on the PATH of the lab");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("kubectl reads");
    child.wait_with_output().expect("kubectl ends")
}

/// What the chart renders for one of its templates, for a release `sluice` in the namespace.
pub fn chart(template: &str, namespace: &str) -> Vec<Value> {
    let version = env::var("SLUICE_KUBERNETES_VERSION").expect("run this through tests/run api");
    let args = [
        "template",
        "sluice",
        "charts/sluice",
        "--namespace",
        namespace,
        "--kube-version",
        &version,
        "--show-only",
        template,
    ];
    let rendered = Command::new("helm")
        .args(args)
        .args(["--set", "prometheus.servers.default.url=http://prometheus", "--set", "gateway.enabled=true"])
        .current_dir(repository())
        .output()
        .expect("helm is on the PATH of the lab");
    assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    let documents = serde_yaml::Deserializer::from_slice(&rendered.stdout);
    documents.map(|document| Value::deserialize(document).expect("YAML")).collect()
}

/// The top of the sources.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Every object of our kinds in `examples/`.
pub fn examples() -> Vec<(PathBuf, Value)> {
    let folders = fs::read_dir(repository().join("examples")).expect("examples");
    let folders = folders.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_dir());
    let files = folders.flat_map(|folder| fs::read_dir(folder).expect("a folder"));
    let files = files.map(|entry| entry.expect("an entry").path());
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .flat_map(|path| {
            let text = fs::read_to_string(&path).expect("a file");
            let documents = serde_yaml::Deserializer::from_str(&text).map(|it| Value::deserialize(it).expect("YAML"));
            documents.map(|document| (path.clone(), document)).collect::<Vec<_>>()
        })
        .filter(|(_, object)| object["apiVersion"] == "sluice.dev/v1alpha1")
        .collect()
}

pub fn parse<T: DeserializeOwned>(yaml: &str) -> T {
    serde_yaml::from_str(yaml).expect("the fixture is valid")
}

pub fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("the fixture is valid")
}

/// A pool for pods with the label `app: shop`.
pub fn pool(name: &str) -> String {
    pool_with(name, "")
}

/// The same, with more in its spec. Where that says nothing of scaling, all its pods together may open 100.
pub fn pool_with(name: &str, spec: &str) -> String {
    let scaling = if spec.contains("  scaling:") { "" } else { "  scaling: {maxAllowed: 100}\n" };
    format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: ConnectionPool\nmetadata: {{name: {name}}}\nspec:\n  \
         workload: {{selector: {{matchLabels: {{app: shop}}}}}}\n  \
         upstream: {{host: pg-main-rw.db.svc, database: shop, credentialsRef: {{name: shop-db}}}}\n\
         {scaling}{spec}"
    )
}
