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
    inject::InjectionSettings,
    lookup::Lookup,
};

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

struct Webhook<L> {
    lookup: L,
    settings: InjectionSettings,
    live_reads: Semaphore,
}

/// The routes of the webhook.
pub fn router<L: Lookup>(lookup: L, settings: InjectionSettings) -> Router {
    let webhook = Arc::new(Webhook { lookup, settings, live_reads: Semaphore::new(LIVE_READS) });
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
