//! Logging in, and whom to believe: Prometheus' own TLS and users, and a proxy that wants a token.

use std::{collections::BTreeMap, fs, net::SocketAddr};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, Response, StatusCode, Uri},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use sluice::signals::{BasicAuthFiles, PrometheusServer, ReadFailure, ServerConfiguration};
use tempfile::TempDir;

use super::{
    Agents, Prometheus, read, read_until,
    server::{Agent, http_get},
};

/// bcrypt of "correct horse", cheap for the test.
const HASH: &str = "$2b$04$abcdefghijklmnopqrstuujydOTSfIH/d5oUHpsygqV5X9xJLQc6e";

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate of a server at this name, and its key.
    fn certify(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

#[tokio::test]
#[ignore = "needs Prometheus: tests/run parts"]
async fn a_prometheus_with_tls_and_users_is_read_with_its_ca_and_password_alone() {
    let authority = Authority::new();
    let (certificate, key) = authority.certify("127.0.0.1");
    let agent = Agent::start("shop-1").await;
    let web = format!(
        "tls_server_config: {{cert_file: server.crt, key_file: server.key}}\nbasic_auth_users: {{reader: \"{HASH}\"}}\n"
    );
    let prometheus =
        Prometheus::start_guarded(&Agents::of([&agent]), &[("server.crt", &certificate), ("server.key", &key)], &web)
            .await;
    let directory = TempDir::new().unwrap();
    let file = |name: &str, text: &str| {
        fs::write(directory.path().join(name), text).unwrap();
        directory.path().join(name)
    };
    let configuration = ServerConfiguration {
        basic_auth: Some(BasicAuthFiles {
            username_file: file("username", "reader\n"),
            password_file: file("password", "correct horse"),
        }),
        ca_file: Some(file("ca.crt", &authority.pem)),
        ..prometheus.configuration()
    };
    let server = PrometheusServer::new("default", configuration.clone());
    read_until(&server, |pods| pods.len() == 1).await;

    // files that change are read again, by the same server
    file("password", "wrong horse");
    let error = read(&server).await.unwrap_err();
    assert!(matches!(*error.failure, ReadFailure::Status { status: 401, .. }), "{error}");
    file("password", "correct horse");
    file("ca.crt", &Authority::new().pem);
    let error = read(&server).await.unwrap_err();
    assert!(error.to_string().contains("invalid peer certificate"), "{error}");
    file("ca.crt", "no certificate");
    let error = read(&server).await.unwrap_err();
    assert!(matches!(*error.failure, ReadFailure::InvalidFile { what: "the CA bundle", .. }), "{error}");
    // a bundle of two, as while a CA is rotated
    file("ca.crt", &format!("{}{}", Authority::new().pem, authority.pem));
    read(&server).await.unwrap();

    // not the system's CAs, nor another name, nor plain text
    let error = read(&PrometheusServer::new("default", ServerConfiguration { ca_file: None, ..configuration.clone() }))
        .await
        .unwrap_err();
    assert!(matches!(*error.failure, ReadFailure::Connection { .. } | ReadFailure::Client { .. }), "{error}");
    let port = prometheus.address.port();
    let named = ServerConfiguration { url: format!("https://localhost:{port}"), ..configuration.clone() };
    let error = read(&PrometheusServer::new("default", named)).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    let plain = ServerConfiguration { url: format!("http://127.0.0.1:{port}"), ca_file: None, ..configuration };
    let error = read(&PrometheusServer::new("default", plain)).await.unwrap_err();
    assert!(matches!(*error.failure, ReadFailure::NotPrometheus { status: 400 }), "{error}");
}

/// What stands before many a Prometheus: without the token, 401; without the tenant, 403.
async fn proxy(upstream: SocketAddr) -> SocketAddr {
    async fn forward(State(upstream): State<SocketAddr>, headers: HeaderMap, uri: Uri) -> Response<Body> {
        let refuse = |status| Response::builder().status(status).body(Body::empty()).unwrap();
        let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        if header("authorization").as_deref() != Some("Bearer t0ken") {
            return refuse(StatusCode::UNAUTHORIZED);
        }
        if header("x-scope-orgid").as_deref() != Some("shop") {
            return refuse(StatusCode::FORBIDDEN);
        }
        let path = uri.path_and_query().unwrap().as_str().strip_prefix("/tenant").unwrap().to_owned();
        let answer = http_get(&format!("http://{upstream}{path}")).await.unwrap();
        Response::new(Body::from(answer.bytes().await.unwrap()))
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(forward).with_state(upstream);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

#[tokio::test]
#[ignore = "needs Prometheus: tests/run parts"]
async fn behind_a_proxy_token_tenant_and_path_are_sent() {
    let agent = Agent::start("shop-1").await;
    let prometheus = Prometheus::start(&Agents::of([&agent])).await;
    let address = proxy(prometheus.address).await;
    let directory = TempDir::new().unwrap();
    let token = directory.path().join("token");
    fs::write(&token, "t0ken\n").unwrap();
    let configuration = ServerConfiguration {
        bearer_token_file: Some(token.clone()),
        headers: BTreeMap::from([("X-Scope-OrgID".to_owned(), "shop".to_owned())]),
        ..ServerConfiguration::new(format!("http://{address}/tenant/"))
    };
    let server = PrometheusServer::new("default", configuration.clone());
    read_until(&server, |pods| pods.len() == 1).await;
    fs::write(&token, "revoked").unwrap();
    let error = read(&server).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "Prometheus \"default\", all signals: HTTP 401 Unauthorized; check bearerTokenFile or basicAuth"
    );
    fs::write(&token, "t0ken").unwrap();
    let without = PrometheusServer::new("default", ServerConfiguration { headers: BTreeMap::new(), ..configuration });
    let error = read(&without).await.unwrap_err();
    assert!(matches!(*error.failure, ReadFailure::Status { status: 403, .. }), "{error}");
}
