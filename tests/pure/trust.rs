//! An https server is asked from an image that has no CA certificates, as the shipped one has none.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    process::Command,
    sync::Arc,
    thread,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::{
    ServerConfig, ServerConnection, Stream,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
};

/// Serves over TLS at 127.0.0.1 with a certificate of a CA of its own. Returns the port and the CA.
fn server() -> (u16, String) {
    let (ca_key, key) = (KeyPair::generate().expect("a server"), KeyPair::generate().expect("a server"));
    let mut params = CertificateParams::new(Vec::new()).expect("a server");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).expect("a server").pem();
    let params_of_server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a server");
    let certificate = params_of_server.signed_by(&key, &Issuer::new(params, ca_key)).expect("a server");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("a server")
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from(certificate.der().to_vec())],
            PrivateKeyDer::try_from(key.serialize_der()).expect("a server"),
        )
        .expect("a server");
    let (config, listener) = (Arc::new(config), TcpListener::bind("127.0.0.1:0").expect("a server"));
    let port = listener.local_addr().expect("a server").port();
    thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let mut tls = ServerConnection::new(config.clone()).expect("a server");
            let mut stream = Stream::new(&mut tls, &mut socket);
            if stream.read(&mut [0; 4096]).is_ok() {
                let _ = stream.write_all(b"HTTP/1.1 418 \r\ncontent-length: 6\r\nconnection: close\r\n\r\nteapot");
                let _ = stream.flush();
            }
        }
    });
    (port, ca)
}

/// What `sluice backtest` says about the server, with these CAs and no others on the machine.
fn asked(port: u16, cas: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(["backtest", "--prometheus", &format!("https://127.0.0.1:{port}"), "--pool", "shop/shop"])
        .args(["--start", "2026-11-01T00:00:00Z", "--end", "2026-11-01T01:00:00Z"])
        .env("SSL_CERT_FILE", cas)
        .env("SSL_CERT_DIR", "/nowhere")
        .output()
        .expect("it runs");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn without_cas_on_the_machine_those_of_mozilla_are_believed_and_with_some_they_alone() {
    let (port, ca) = server();
    let told = asked(port, Path::new("/nowhere"));
    // a server whose certificate is of no public CA: the handshake is tried, and what is wrong is told
    assert!(told.contains("UnknownIssuer") && !told.contains("No CA certificates"), "{told}");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.crt");
    fs::write(&file, ca).unwrap();
    let told = asked(port, &file);
    assert!(told.contains("418"), "{told}");
}
