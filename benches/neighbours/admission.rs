//! Who asks the webhook: the API server about a pod, whose answers are timed, and somebody whose bodies are as large as they may be.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use parking_lot::Mutex;
use reqwest::{Client, header::CONTENT_TYPE};
use serde_json::{Value, json};
use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use super::operator::webhook;
use crate::{Failure, cluster::kubectl, fleet::pool_name, process::wait_for};

/// The Service in front of the webhook: the name in its certificate.
const NAME: &str = "sluice-webhook.sluice-system.svc";
/// The API server waits so long.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Between two pods.
const POD_EVERY: Duration = Duration::from_millis(50);

/// A client that trusts the webhook's own authority alone, as the API server does by its caBundle.
pub fn client() -> Result<Client, Failure> {
    let words = ["get", "mutatingwebhookconfiguration", "sluice", "--output", "json"];
    let bundle = wait_for("the operator puts its authority into force", Duration::from_mins(1), || {
        let configuration: Value = serde_json::from_str(&kubectl(&words).ok()?).ok()?;
        STANDARD.decode(configuration["webhooks"][0]["clientConfig"]["caBundle"].as_str()?).ok()
    })?;
    let trusted = reqwest::Certificate::from_pem_bundle(&bundle)?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder().no_proxy().tls_certs_only(trusted).resolve(NAME, webhook()).timeout(TIMEOUT);
    Ok(client.build()?)
}

/// What came of the questions about pods.
#[derive(Clone, Debug, Default)]
pub struct Admissions {
    /// Of each with an answer, when it was asked, and the milliseconds that the API server waited.
    pub milliseconds: Vec<(Instant, f64)>,
    /// Those without, and those that were not let in.
    pub failed: u64,
}

/// Asks until it is dropped.
pub struct Asking {
    seen: Arc<Mutex<Admissions>>,
    task: JoinHandle<()>,
}

impl Asking {
    /// Begins to ask about pods of this namespace.
    pub fn start(client: Client, namespace: &'static str) -> Self {
        let seen = Arc::<Mutex<Admissions>>::default();
        let told = seen.clone();
        let task = tokio::spawn(async move {
            let body = Bytes::from(pod(namespace).to_string());
            let mut due = interval(POD_EVERY);
            due.set_missed_tick_behavior(MissedTickBehavior::Skip);
            loop {
                due.tick().await;
                let (client, body, told) = (client.clone(), body.clone(), told.clone());
                tokio::spawn(async move {
                    let begin = Instant::now();
                    let is_let_in = ask(&client, body).await.is_ok_and(|answer| answer["response"]["allowed"] == true);
                    let mut seen = told.lock();
                    if is_let_in {
                        seen.milliseconds.push((begin, begin.elapsed().as_secs_f64() * 1e3));
                    } else {
                        seen.failed += 1;
                    }
                });
            }
        });
        Self { seen, task }
    }

    /// What was seen since this was asked last.
    pub fn seen(&self) -> Admissions {
        std::mem::take(&mut *self.seen.lock())
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn ask(client: &Client, body: Bytes) -> Result<Value, reqwest::Error> {
    let url = format!("https://{NAME}:{}/inject", webhook().port());
    let answer = client.post(url).header(CONTENT_TYPE, "application/json").body(body).send().await?;
    let answer = answer.error_for_status()?.bytes().await?;
    Ok(serde_json::from_slice(&answer).unwrap_or_default())
}

fn review(namespace: &str, pod: &Value) -> Value {
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "42", "operation": "CREATE", "namespace": namespace, "name": "", "dryRun": false,
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "userInfo": {}, "options": null, "oldObject": null, "object": pod,
    }})
}

/// A pod of the first pool.
fn pod(namespace: &str) -> Value {
    let env = [json!({"name": "PGHOST", "value": "pg-main-rw.db.svc"})];
    review(
        namespace,
        &json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "app-", "labels": {"app": pool_name(0)}},
            "spec": {"containers": [{"name": "app", "image": "app:1", "env": env}]},
        }),
    )
}

/// A body of this size whose pod has as many containers as go into it.
fn large(namespace: &str, bytes: usize) -> Bytes {
    let mark = "CONTAINERS";
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"app": pool_name(0)}}, "spec": {"containers": [mark]}});
    let text = review(namespace, &pod).to_string();
    let quoted = format!("\"{mark}\"");
    let containers = vec!["{}"; bytes.saturating_sub(text.len()) / 3].join(",");
    Bytes::from(text.replacen(&quoted, &containers, 1))
}

/// Large bodies, so many a second, until it is dropped.
pub struct Bodies(JoinHandle<()>);

impl Bodies {
    /// Begins to send them.
    pub fn start(client: Client, namespace: &'static str, bytes: usize, per_second: u32) -> Self {
        Self(tokio::spawn(async move {
            let body = large(namespace, bytes);
            let mut due = interval(Duration::from_secs(1) / per_second);
            due.set_missed_tick_behavior(MissedTickBehavior::Skip);
            loop {
                due.tick().await;
                let (client, body) = (client.clone(), body.clone());
                // what becomes of it is its sender's matter
                tokio::spawn(async move { ask(&client, body).await });
            }
        }))
    }
}

impl Drop for Bodies {
    fn drop(&mut self) {
        self.0.abort();
    }
}
