//! `POST /inject` over HTTPS, on every replica.
//!
//! Stateless: a request may be a dry run, the pod may still be refused by somebody else, and it has neither uid nor,
//! with `generateName`, a name. So nothing is written and nothing is remembered.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use axum_server::{Handle, tls_rustls::RustlsConfig};
use k8s_openapi::api::core::v1::Pod;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};
use thiserror::Error;
use tokio::{sync::Semaphore, time::timeout};
use tracing::{info, warn};

use super::{
    admission::{Catalogue, Freshness, Verdict, review},
    lookup::Lookup,
};
use crate::{http::Admitted, inject::InjectionSettings};

/// The path of the webhook, as in the `MutatingWebhookConfiguration`.
pub const INJECT_PATH: &str = "/inject";

/// Longest answer: a second less than the API server waits (`timeoutSeconds: 5`), so that what it gets is a sentence.
const ANSWER_DEADLINE: Duration = Duration::from_secs(4);
/// Largest request: etcd takes 1.5 MiB per object, JSON needs more.
const LARGEST_REQUEST_BYTES: usize = 8 << 20;
/// Live reads at once; more wait for a place, within their deadline.
const LIVE_READS: usize = 8;

/// Why the server ended.
#[derive(Debug, Error)]
pub enum WebhookError {
    /// The address is taken or not ours.
    #[error("serve the webhook on {address}")]
    Serve {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

type Told = Box<dyn Fn(Admitted) + Send + Sync>;

struct Webhook<L> {
    lookup: L,
    settings: InjectionSettings,
    live_reads: Semaphore,
    told: Told,
}

/// The routes of the webhook. `told` hears what became of each pod, for metrics.
pub fn router<L: Lookup>(
    lookup: L,
    settings: InjectionSettings,
    told: impl Fn(Admitted) + Send + Sync + 'static,
) -> Router {
    let live_reads = Semaphore::new(LIVE_READS);
    let webhook = Arc::new(Webhook { lookup, settings, live_reads, told: Box::new(told) });
    Router::new()
        .route(INJECT_PATH, post(inject::<L>))
        .layer(DefaultBodyLimit::max(LARGEST_REQUEST_BYTES))
        .with_state(webhook)
}

/// Serves until `handle` is told to shut down. The certificate behind `tls` may be exchanged at any time.
///
/// # Errors
/// [`WebhookError`] when the address cannot be bound.
pub async fn serve(
    address: SocketAddr,
    tls: RustlsConfig,
    router: Router,
    handle: Handle<SocketAddr>,
) -> Result<(), WebhookError> {
    axum_server::bind_rustls(address, tls)
        .handle(handle)
        .serve(router.into_make_service())
        .await
        .map_err(|source| WebhookError::Serve { address, source })
}

async fn inject<L: Lookup>(State(webhook): State<Arc<Webhook<L>>>, Json(body): Json<AdmissionReview<Pod>>) -> Response {
    let request: AdmissionRequest<Pod> = match body.try_into() {
        Ok(request) => request,
        Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    };
    let answer = timeout(ANSWER_DEADLINE, webhook.answer(&request)).await;
    let response = answer.unwrap_or_else(|_| {
        (webhook.told)(Admitted::Denied);
        deny(
            &request,
            format!("no verdict on the pod within {}s; its controller tries again", ANSWER_DEADLINE.as_secs()),
        )
    });
    Json(response.into_review()).into_response()
}

impl<L: Lookup> Webhook<L> {
    async fn answer(&self, request: &AdmissionRequest<Pod>) -> AdmissionResponse {
        let (Operation::Create, Some(pod)) = (&request.operation, &request.object) else {
            return AdmissionResponse::from(request);
        };
        let namespace = request.namespace.as_deref().unwrap_or_default();
        let name = pod.metadata.name.as_ref().or(pod.metadata.generate_name.as_ref()).map_or("", String::as_str);
        let verdict = match self.verdict(pod, namespace).await {
            Ok(verdict) => verdict,
            Err(message) => Verdict::Deny(message),
        };
        (self.told)(match verdict {
            Verdict::Inject { .. } => Admitted::Injected,
            Verdict::Leave { .. } => Admitted::Left,
            Verdict::Deny(_) | Verdict::ReadLive => Admitted::Denied,
        });
        match verdict {
            Verdict::Inject { pool, injected } => {
                info!(namespace, pod = name, pool, dry_run = request.dry_run, "pooler injected");
                with(AdmissionResponse::from(request), request, injected.patch, injected.warnings)
            }
            Verdict::Leave { patch, warnings } => with(AdmissionResponse::from(request), request, patch, warnings),
            Verdict::Deny(message) => {
                warn!(namespace, pod = name, dry_run = request.dry_run, message, "pod refused");
                deny(request, message)
            }
            Verdict::ReadLive => deny(request, "the pools of the namespace could not be settled".to_owned()),
        }
    }

    async fn verdict(&self, pod: &Pod, namespace: &str) -> Result<Verdict, String> {
        let review = |catalogue: &Catalogue, freshness| {
            let stable = |pool: &_| self.lookup.stable_revision(pool);
            review(pod, namespace, catalogue, freshness, stable, &self.settings)
        };
        match review(&self.lookup.cached(namespace), Freshness::Cached) {
            Verdict::ReadLive => {}
            settled => return Ok(settled),
        }
        let unreadable = |error: &dyn std::error::Error| {
            let cause = error.source().map(|source| format!(": {source}")).unwrap_or_default();
            format!("whether the pod has a ConnectionPool is unknown ({error}{cause}); its controller tries again")
        };
        let _place = self.live_reads.acquire().await.map_err(|error| unreadable(&error))?;
        let live = self.lookup.live(namespace).await.map_err(|error| unreadable(&error))?;
        Ok(review(&live, Freshness::Live))
    }
}

fn with(
    mut response: AdmissionResponse,
    request: &AdmissionRequest<Pod>,
    patch: json_patch::Patch,
    warnings: Vec<String>,
) -> AdmissionResponse {
    response.warnings = (!warnings.is_empty()).then_some(warnings);
    if patch.0.is_empty() {
        return response;
    }
    response.with_patch(patch).unwrap_or_else(|error| deny(request, format!("the patch could not be written: {error}")))
}

fn deny(request: &AdmissionRequest<Pod>, message: String) -> AdmissionResponse {
    AdmissionResponse::from(request).deny(message)
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use serde_json::{Value, json};
    use tower::ServiceExt;

    use super::*;
    use crate::{api::ConnectionPool, contract::PoolRevision, webhook::lookup::LookupError};

    /// A cluster whose watches have delivered nothing.
    enum Cluster {
        Silent,
        Broken,
        Hanging,
    }

    impl Lookup for Cluster {
        fn cached(&self, _: &str) -> Catalogue {
            Catalogue::default()
        }

        async fn live(&self, namespace: &str) -> Result<Catalogue, LookupError> {
            match self {
                Self::Silent => Ok(Catalogue::default()),
                Self::Broken => Err(LookupError::Deadline { namespace: namespace.to_owned() }),
                Self::Hanging => std::future::pending().await,
            }
        }

        fn stable_revision(&self, _: &ConnectionPool) -> Option<PoolRevision> {
            None
        }
    }

    async fn send(cluster: Cluster, body: String) -> (StatusCode, Value) {
        let settings = InjectionSettings {
            agent_image: "sluice".to_owned(),
            pgbouncer_image: "pgbouncer".to_owned(),
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            run_as_user: None,
            allowed: crate::decide::allowed::Allowed::default(),
        };
        let request =
            http::Request::post(INJECT_PATH).header("content-type", "application/json").body(Body::from(body));
        let answer = router(cluster, settings, |_| {}).oneshot(request.expect("a request")).await.expect("an answer");
        let status = answer.status();
        let body = to_bytes(answer.into_body(), LARGEST_REQUEST_BYTES).await.expect("a body");
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    fn review(operation: &str, labels: &Value) -> String {
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "42", "operation": operation, "namespace": "shop", "name": "", "dryRun": false,
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "userInfo": {}, "options": null, "oldObject": null,
            "object": {"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": labels}, "spec": {"containers": []}},
        }})
        .to_string()
    }

    fn asking() -> Value {
        json!({"app": "shop", "sluice.dev/inject": "enabled"})
    }

    #[tokio::test]
    async fn a_cluster_that_cannot_be_read_keeps_the_pod_waiting_and_says_so() {
        for labels in [asking(), json!({"app": "shop"})] {
            let (status, answer) = send(Cluster::Broken, review("CREATE", &labels)).await;
            assert_eq!((status, &answer["response"]["allowed"]), (StatusCode::OK, &json!(false)));
            let message = answer["response"]["status"]["message"].as_str().expect("a message");
            assert!(message.contains("is unknown") && message.contains("tries again"), "{message}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_hangs_is_answered_before_the_api_server_gives_up() {
        let began = tokio::time::Instant::now();
        let (_, answer) = send(Cluster::Hanging, review("CREATE", &asking())).await;
        assert_eq!(answer["response"]["allowed"], false);
        assert_eq!(answer["response"]["uid"], "42");
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn a_pod_without_a_pool_starts_unless_it_asked_itself() {
        let (_, answer) = send(Cluster::Silent, review("CREATE", &json!({"app": "shop"}))).await;
        assert_eq!((&answer["response"]["allowed"], answer["response"].get("patch")), (&json!(true), None));
        let (_, answer) = send(Cluster::Silent, review("CREATE", &asking())).await;
        assert_eq!(answer["response"]["allowed"], false);
    }

    #[tokio::test]
    async fn whatever_is_not_the_creation_of_a_pod_passes_unchanged() {
        let (_, answer) = send(Cluster::Broken, review("UPDATE", &asking())).await;
        assert_eq!((&answer["response"]["allowed"], answer["response"].get("patch")), (&json!(true), None));
    }

    #[tokio::test]
    async fn what_is_no_admission_review_is_refused() {
        let whole = review("CREATE", &asking());
        for body in ["", "{}", "[]", "null", &whole[..100]] {
            let (status, _) = send(Cluster::Silent, body.to_owned()).await;
            assert!(status.is_client_error(), "{body:?}: {status}");
        }
    }
}
