//! `POST /inject` over HTTPS, on every replica.
//!
//! Stateless: a request may be a dry run, the pod may still be refused by somebody else, and it has neither uid nor,
//! with `generateName`, a name. So nothing is written and nothing is remembered.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request as HttpRequest, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use thiserror::Error;
use tokio::{
    sync::{OwnedMutexGuard, Semaphore, SemaphorePermit},
    time::{Instant, timeout, timeout_at},
};
use tracing::{info, warn};

use super::{
    admission::{Catalogue, Freshness, Verdict, review},
    lookup::Lookup,
    review::{AdmissionResponse, Request, ReviewError, Size},
    sources::{SourceShares, SourceTurns},
};
use crate::{
    http::Admitted,
    inject::InjectionSettings,
    serving::{RequestSource, ServingBounds},
};

/// The path of the webhook, as in the `MutatingWebhookConfiguration`.
pub const INJECT_PATH: &str = "/inject";

/// What everybody may take who reaches the port.
pub const BOUNDS: ServingBounds = ServingBounds {
    // an API server asks about several pods at once, each by a connection of its own
    connections: 256,
    handshake: Duration::from_secs(5),
    head: Duration::from_secs(5),
    request: Duration::from_secs(10),
    // longer than an API server keeps one (90 s): were it closed here, a pod sent at that moment would be refused
    idle: Duration::from_mins(2),
    buffer_bytes: 16 << 10,
};
/// Longest answer: a second less than the API server waits (`timeoutSeconds: 5`), so that what it gets is a sentence.
const ANSWER_DEADLINE: Duration = Duration::from_secs(4);
/// Longest time for the body of a request to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(1);
/// Longest wait for the place of a large request: whoever has it may take [`BODY_DEADLINE`].
const PLACE_DEADLINE: Duration = Duration::from_secs(2);
/// Largest request: etcd takes 1.5 MiB per object, JSON needs more.
const LARGEST_REQUEST_BYTES: usize = 4 << 20;
/// Largest request that is read beside others: ordinary pods are a tenth of it. Larger ones are read one at a time, those of several
/// sources in turn.
const SMALL_REQUEST_BYTES: usize = 64 << 10;
/// A pod of more objects than this is decoded one at a time.
const SMALL_REQUEST_OBJECTS: usize = 1000;
/// Longest name of a pod, in bytes, as the log shows it.
const LONGEST_NAME: usize = 253;
/// Live reads at once; more wait for a place, within their deadline.
const LIVE_READS: usize = 8;
/// Pods that wait for a live read, or are read for, at once. One source has no more than it leaves to others.
const LIVE_READERS: usize = 64;

/// Why a request is not answered as a review.
#[derive(Debug, Error)]
enum RequestError {
    /// Its length is not told.
    #[error("the request has no Content-Length")]
    NoLength,
    /// It is too long.
    #[error("the request has {0} bytes; the largest that is read has {LARGEST_REQUEST_BYTES}")]
    TooLong(usize),
    /// Others are read.
    #[error("another large request is being answered; try again")]
    Busy,
    /// It did not arrive.
    #[error("the request did not arrive whole within {}s", BODY_DEADLINE.as_secs())]
    Slow,
    /// It broke off.
    #[error("reading the request: {0}")]
    Broken(#[source] axum::Error),
    /// It is something else.
    #[error(transparent)]
    Review(#[from] ReviewError),
    /// The answer could not be written.
    #[error("writing the answer: {0}")]
    Answer(#[source] serde_json::Error),
}

impl IntoResponse for RequestError {
    fn into_response(self) -> Response {
        let status = match self {
            Self::NoLength => StatusCode::LENGTH_REQUIRED,
            Self::TooLong(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::Broken(_) | Self::Review(_) => StatusCode::BAD_REQUEST,
            Self::Answer(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, format!("{self}\n")).into_response()
    }
}

type OnAdmitted = Box<dyn Fn(Admitted) + Send + Sync>;

struct Webhook<L> {
    lookup: L,
    settings: InjectionSettings,
    large_requests: Semaphore,
    large_of_source: SourceTurns,
    live_readers: SourceShares,
    live_reads: Semaphore,
    on_admitted: OnAdmitted,
}

/// The routes of the webhook. `on_admitted` hears what became of each pod, for metrics.
pub fn router<L: Lookup>(
    lookup: L,
    settings: InjectionSettings,
    on_admitted: impl Fn(Admitted) + Send + Sync + 'static,
) -> Router {
    let webhook = Arc::new(Webhook {
        lookup,
        settings,
        large_requests: Semaphore::new(1),
        large_of_source: SourceTurns::default(),
        live_readers: SourceShares::new(LIVE_READERS),
        live_reads: Semaphore::new(LIVE_READS),
        on_admitted: Box::new(on_admitted),
    });
    Router::new().route(INJECT_PATH, post(inject::<L>)).with_state(webhook)
}

async fn inject<L: Lookup>(
    State(webhook): State<Arc<Webhook<L>>>,
    request: HttpRequest,
) -> Result<Response, RequestError> {
    let text = webhook.answer(request).await?.write().map_err(RequestError::Answer)?;
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

/// Where a request comes from. One that no server has read, as in tests, comes from nowhere.
fn source_of(request: &HttpRequest) -> IpAddr {
    request.extensions().get().map_or(Ipv4Addr::UNSPECIFIED.into(), |RequestSource(source)| *source)
}

/// How long the body is, as its sender says.
fn length(headers: &HeaderMap) -> Result<usize, RequestError> {
    let told = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    match told.ok_or(RequestError::NoLength)? {
        bytes if bytes > LARGEST_REQUEST_BYTES => Err(RequestError::TooLong(bytes)),
        bytes => Ok(bytes),
    }
}

/// The body, whose length is known.
async fn read(body: Body, bytes: usize) -> Result<Vec<u8>, RequestError> {
    let reading = async {
        let mut text = Vec::new();
        let mut parts = body.into_data_stream();
        while let Some(part) = parts.next().await {
            let part = part.map_err(RequestError::Broken)?;
            // all at once, and not before something of it came
            text.reserve_exact(bytes.saturating_sub(text.len()));
            text.extend_from_slice(&part);
        }
        Ok(text)
    };
    timeout(BODY_DEADLINE, reading).await.unwrap_or(Err(RequestError::Slow))
}

impl<L: Lookup> Webhook<L> {
    async fn answer(&self, request: HttpRequest) -> Result<AdmissionResponse, RequestError> {
        let deadline = Instant::now() + ANSWER_DEADLINE;
        let source = source_of(&request);
        let bytes = length(request.headers())?;
        let mut place = None;
        if bytes > SMALL_REQUEST_BYTES {
            place = Some(self.large_place(source).await?);
        }
        let text = read(request.into_body(), bytes).await?;
        let size = Size::of(&text)?;
        if let Some(excess) = size.excess() {
            let request = Request::read_without_pod(&text)?;
            let namespace = &request.namespace;
            warn!(namespace, dry_run = request.dry_run, message = excess, "pod refused");
            (self.on_admitted)(Admitted::Denied);
            return Ok(request.deny(excess));
        }
        if place.is_none() && size.objects > SMALL_REQUEST_OBJECTS {
            place = Some(self.large_place(source).await?);
        }
        let request = Request::read(&text)?;
        drop(text);
        let answer = timeout_at(deadline, self.decide(&request, source)).await;
        drop(place);
        Ok(answer.unwrap_or_else(|_| {
            (self.on_admitted)(Admitted::Denied);
            request.deny(format!(
                "no verdict on the pod within {}s; its controller tries again",
                ANSWER_DEADLINE.as_secs()
            ))
        }))
    }

    /// The one place for a large request.
    async fn large_place(&self, source: IpAddr) -> Result<(OwnedMutexGuard<()>, SemaphorePermit<'_>), RequestError> {
        // many of one source wait behind each other, and not before those of another
        let waiting = async { (self.large_of_source.take(source).await, self.large_requests.acquire().await) };
        match timeout(PLACE_DEADLINE, waiting).await {
            Ok((turn, Ok(place))) => Ok((turn, place)),
            Ok((_, Err(_))) | Err(_) => Err(RequestError::Busy),
        }
    }

    async fn decide(&self, request: &Request, source: IpAddr) -> AdmissionResponse {
        let (true, Some(pod)) = (request.creates, &request.pod) else { return request.allow() };
        let namespace = request.namespace.as_str();
        let name = pod.metadata.name.as_ref().or(pod.metadata.generate_name.as_ref()).map_or("", String::as_str);
        // nobody has validated it yet
        let name = &name[..name.floor_char_boundary(LONGEST_NAME)];
        let verdict = match self.verdict(pod, namespace, source).await {
            Ok(verdict) => verdict,
            Err(message) => Verdict::Deny(message),
        };
        (self.on_admitted)(match verdict {
            Verdict::Inject { .. } => Admitted::Injected,
            Verdict::Leave { .. } => Admitted::Left,
            Verdict::Deny(_) | Verdict::ReadLive => Admitted::Denied,
        });
        match verdict {
            Verdict::Inject { pool, injected } => {
                info!(namespace, pod = name, pool, dry_run = request.dry_run, "pooler injected");
                request.change(&injected.patch, injected.warnings)
            }
            Verdict::Leave { patch, warnings } => request.change(&patch, warnings),
            Verdict::Deny(message) => {
                warn!(namespace, pod = name, dry_run = request.dry_run, message, "pod refused");
                request.deny(message)
            }
            Verdict::ReadLive => request.deny("the pools of the namespace could not be settled"),
        }
    }

    async fn verdict(&self, pod: &Pod, namespace: &str, source: IpAddr) -> Result<Verdict, String> {
        let review = |catalogue: &Catalogue, freshness| {
            let for_new_pods = |pool: &_| self.lookup.revision_for_new_pods(pool);
            review(pod, namespace, catalogue, freshness, for_new_pods, &self.settings)
        };
        match review(&self.lookup.cached(namespace), Freshness::Cached) {
            Verdict::ReadLive => {}
            settled => return Ok(settled),
        }
        let unreadable = |error: &dyn std::error::Error| {
            let cause = error.source().map(|source| format!(": {source}")).unwrap_or_default();
            format!("whether the pod has a ConnectionPool is unknown ({error}{cause}); its controller tries again")
        };
        // each that waits holds its pod
        let _reader = self.live_readers.take(source).ok_or(
            "whether the pod has a ConnectionPool is unknown (too many others wait to know); its controller tries again",
        )?;
        let _place = self.live_reads.acquire().await.map_err(|error| unreadable(&error))?;
        let live = self.lookup.live(namespace).await.map_err(|error| unreadable(&error))?;
        Ok(review(&live, Freshness::Live))
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
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

        fn revision_for_new_pods(&self, _: &ConnectionPool) -> Option<PoolRevision> {
            None
        }
    }

    fn settings() -> InjectionSettings {
        InjectionSettings {
            agent_image: "sluice".to_owned(),
            pgbouncer_image: "pgbouncer".to_owned(),
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            run_as_user: None,
            allowed: crate::decide::allowed::PoolAllowList::default(),
        }
    }

    async fn ask(router: &Router, request: HttpRequest) -> (StatusCode, Vec<u8>) {
        let answer = router.clone().oneshot(request).await.expect("an answer");
        let status = answer.status();
        let body = to_bytes(answer.into_body(), LARGEST_REQUEST_BYTES).await.expect("a body");
        (status, body.to_vec())
    }

    async fn send(cluster: Cluster, body: String) -> (StatusCode, Value) {
        let request = http::Request::post(INJECT_PATH).header("content-length", body.len()).body(Body::from(body));
        let (status, body) = ask(&router(cluster, settings(), |_| {}), request.expect("a request")).await;
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    fn review(operation: &str, labels: &Value) -> String {
        let pod =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": labels}, "spec": {"containers": []}});
        review_of(operation, &pod)
    }

    fn review_of(operation: &str, pod: &Value) -> String {
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "42", "operation": operation, "namespace": "shop", "name": "", "dryRun": false,
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "userInfo": {}, "options": null, "oldObject": null,
            "object": pod,
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
        let began = Instant::now();
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
        let nowhere = whole.replace("\"namespace\":\"shop\"", &format!("\"namespace\":\"{}\"", "x".repeat(64)));
        assert_ne!(nowhere, whole);
        for body in ["", "{}", "[]", "null", &whole[..100], &nowhere] {
            let (status, _) = send(Cluster::Silent, body.to_owned()).await;
            assert!(status.is_client_error(), "{body:?}: {status}");
        }
    }

    #[tokio::test]
    async fn what_is_larger_than_pods_are_is_refused_before_it_is_read() {
        let never = Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
        let request = http::Request::post(INJECT_PATH).header("content-length", 8 << 20).body(never);
        let (status, body) = ask(&router(Cluster::Silent, settings(), |_| {}), request.expect("a request")).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
        let told = String::from_utf8(body).expect("text");
        assert_eq!(told, "the request has 8388608 bytes; the largest that is read has 4194304\n");
    }

    #[tokio::test]
    async fn a_pod_that_would_become_many_times_its_text_is_denied_in_words() {
        let pod = json!({"metadata": {"labels": asking()}, "spec": {"containers": vec![json!({}); 10_000]}});
        let body = review_of("CREATE", &pod);
        assert!(body.len() < SMALL_REQUEST_BYTES);
        let (status, answer) = send(Cluster::Hanging, body).await;
        assert_eq!((status, &answer["response"]["allowed"]), (StatusCode::OK, &json!(false)));
        assert_eq!(answer["response"]["uid"], "42");
        let message = answer["response"]["status"]["message"].as_str().expect("a message");
        assert!(message.contains("10000 containers") && message.contains("may have 100"), "{message}");
    }

    #[tokio::test(start_paused = true)]
    async fn large_requests_are_read_one_at_a_time_and_hold_up_no_small_one() {
        let router = router(Cluster::Silent, settings(), |_| {});
        let never = Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
        let request = |body, bytes: usize| {
            http::Request::post(INJECT_PATH).header("content-length", bytes).body(body).expect("a request")
        };
        let slow = tokio::spawn({
            let (router, request) = (router.clone(), request(never, 1 << 20));
            async move { ask(&router, request).await }
        });
        tokio::task::yield_now().await;
        let began = Instant::now();
        let small = review("CREATE", &json!({"app": "shop"}));
        let small = request(Body::from(small.clone()), small.len());
        assert_eq!(ask(&router, small).await.0, StatusCode::OK);
        assert_eq!(began.elapsed(), Duration::ZERO);
        let large = json!({"metadata": {"annotations": {"a": "x".repeat(100 << 10)}}, "spec": {"containers": []}});
        let large = review_of("CREATE", &large);
        let large = request(Body::from(large.clone()), large.len());
        assert_eq!(ask(&router, large).await.0, StatusCode::OK, "after the one before was given up");
        assert_eq!(began.elapsed(), BODY_DEADLINE);
        assert_eq!(slow.await.expect("ended").0, StatusCode::REQUEST_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn however_many_large_requests_one_source_begins_another_waits_for_one_of_them() {
        let router = router(Cluster::Silent, settings(), |_| {});
        let ask_from = |host: u8, body, bytes: usize| {
            let request = http::Request::post(INJECT_PATH).header("content-length", bytes);
            let request = request.extension(RequestSource(IpAddr::from([10, 0, 0, host])));
            let (router, request) = (router.clone(), request.body(body).expect("a request"));
            async move { ask(&router, request).await.0 }
        };
        let slow: Vec<_> = (0..100)
            .map(|_| {
                let never = Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
                tokio::spawn(ask_from(1, never, 1 << 20))
            })
            .collect();
        for _ in 0..100 {
            tokio::task::yield_now().await; // until each of them waits
        }
        let large = json!({"metadata": {"annotations": {"a": "x".repeat(100 << 10)}}, "spec": {"containers": []}});
        let large = review_of("CREATE", &large);
        let began = Instant::now();
        assert_eq!(ask_from(2, Body::from(large.clone()), large.len()).await, StatusCode::OK);
        assert_eq!(began.elapsed(), BODY_DEADLINE, "for the one that is being read");
        for slow in slow {
            slow.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pods_that_wait_for_a_live_read_are_bounded_and_the_others_told_to_come_back() {
        let router = router(Cluster::Hanging, settings(), |_| {});
        let body = review("CREATE", &asking());
        let ask_one = |host: u8| {
            let request = http::Request::post(INJECT_PATH).header("content-length", body.len());
            let request = request.extension(RequestSource(IpAddr::from([10, 0, 0, host])));
            let (router, request) = (router.clone(), request.body(Body::from(body.clone())).expect("a request"));
            async move { ask(&router, request).await }
        };
        let waiting: Vec<_> = (0..LIVE_READERS / 2).map(|_| tokio::spawn(ask_one(1))).collect();
        for _ in 0..LIVE_READERS {
            tokio::task::yield_now().await; // until each of them waits
        }
        let began = Instant::now();
        let (_, answer) = ask_one(1).await;
        assert_eq!(began.elapsed(), Duration::ZERO, "at once");
        let answer: Value = serde_json::from_slice(&answer).expect("JSON");
        let message = answer["response"]["status"]["message"].as_str().expect("a message");
        assert!(message.contains("too many others wait") && message.contains("tries again"), "{message}");
        let other = tokio::spawn(ask_one(2));
        tokio::task::yield_now().await;
        assert!(!other.is_finished(), "another source waits for its read");
        for waiting in waiting.into_iter().chain([other]) {
            assert_eq!(waiting.await.expect("answered").0, StatusCode::OK);
        }
    }
}
