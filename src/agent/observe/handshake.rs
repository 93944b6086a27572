//! A look at the database's certificate: the TLS handshake that PgBouncer makes, without a login.
//!
//! PgBouncer says of a certificate that it does not accept only that much. So the agent looks itself, to say what is wrong:
//! another CA, another name, expired. A handshake that ends before the login occupies none of the server's connections.

use std::{
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    sync::{Arc, OnceLock},
    time::Duration,
};

use jiff::Timestamp;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use thiserror::Error as ErrorMessage;

use crate::{
    agent::decide::anchor::{Anchor, anchors},
    contract::{ServerTlsMode, Upstream},
    pooler::pgbouncer::console::SSL_REQUEST,
};

/// How long each of connecting, reading and writing may take.
const DEADLINE: Duration = Duration::from_secs(3);

/// Why the database's certificate is not known to be good.
#[derive(Debug, ErrorMessage)]
pub enum HandshakeError {
    /// The certificate is not good enough for the mode.
    #[error("the certificate of {host} {fault}")]
    Certificate {
        /// Whose.
        host: String,
        /// What is wrong with it.
        fault: String,
    },
    /// The database speaks plain text only.
    #[error("{host} offers no TLS; turn it on there, or set upstream.tls.mode to Disabled")]
    NotOffered {
        /// Which one.
        host: String,
    },
    /// There is nothing to verify with.
    #[error("the CA bundle holds no certificate; it must be PEM, with BEGIN CERTIFICATE")]
    EmptyBundle,
    /// Nothing was learnt about the certificate.
    #[error("{host}: {reason}")]
    NoAnswer {
        /// Which one.
        host: String,
        /// What happened.
        reason: String,
    },
}

impl HandshakeError {
    /// Whether it says something about the certificate or the bundle, and is not just an outage.
    pub fn is_verdict(&self) -> bool {
        !matches!(self, Self::NoAnswer { .. })
    }
}

/// Meets the database and judges its certificate as PgBouncer does with this mode and bundle. Answers the certificates of the bundle
/// each of which alone verifies it as well; none where it is not verified. Blocks, at most for some multiple of 3 s.
///
/// # Errors
/// [`HandshakeError`].
pub fn examine(upstream: &Upstream, bundle: &[u8]) -> Result<Vec<Anchor>, HandshakeError> {
    let host = &upstream.host;
    let no_answer = |reason: &dyn std::fmt::Display| HandshakeError::NoAnswer {
        host: format!("{host}:{}", upstream.port),
        reason: reason.to_string(),
    };
    let judge = Arc::new(Judge::new(upstream.tls.mode, bundle)?);
    let config = judge.clone().config().map_err(|error| no_answer(&error))?;
    let name = ServerName::try_from(host.clone()).map_err(|error| no_answer(&error))?;
    let mut connection = ClientConnection::new(config, name).map_err(|error| no_answer(&error))?;

    let mut stream = connect(upstream).map_err(|error| no_answer(&error))?;
    let mut answer = [0];
    let asked = stream.write_all(&SSL_REQUEST).and_then(|()| stream.read_exact(&mut answer));
    asked.map_err(|error| no_answer(&error))?;
    match answer {
        [b'S'] => {}
        [b'N'] => return Err(HandshakeError::NotOffered { host: host.clone() }),
        [_] => return Err(no_answer(&"it does not answer as PostgreSQL does")),
    }
    let met = connection.complete_io(&mut stream).map(|_| judge.found.get().cloned().unwrap_or_default());
    met.map_err(|error| match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(fault)) => {
            HandshakeError::Certificate { host: host.clone(), fault: told(fault, upstream) }
        }
        _ => no_answer(&error),
    })
}

/// What a client of ours speaks TLS with that accepts what PgBouncer accepts with this mode and bundle. It shows no certificate.
///
/// # Errors
/// [`HandshakeError`]: there is nothing to verify with.
pub fn client_config(upstream: &Upstream, bundle: &[u8]) -> Result<Arc<ClientConfig>, HandshakeError> {
    let judge = Arc::new(Judge::new(upstream.tls.mode, bundle)?);
    judge.config().map_err(|error| HandshakeError::NoAnswer { host: upstream.host.clone(), reason: error.to_string() })
}

fn connect(upstream: &Upstream) -> std::io::Result<TcpStream> {
    let mut failed = std::io::Error::other("its name has no address");
    for address in (upstream.host.as_str(), upstream.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, DEADLINE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(DEADLINE))?;
                stream.set_write_timeout(Some(DEADLINE))?;
                return Ok(stream);
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn told(fault: &CertificateError, upstream: &Upstream) -> String {
    let day = |time: &UnixTime| {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        Timestamp::from_second(seconds).map_or_else(|_| format!("second {seconds}"), |time| time.to_string())
    };
    match fault {
        CertificateError::ExpiredContext { not_after, .. } => format!("expired at {}", day(not_after)),
        CertificateError::NotValidYetContext { not_before, .. } => format!("is valid from {} only", day(not_before)),
        CertificateError::NotValidForNameContext { presented, .. } if !presented.is_empty() => {
            format!("is not for this name, but for {}", presented.join(", "))
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "is not for this name".to_owned()
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature if upstream.tls.own_ca => {
            "is not signed by a CA of the bundle in upstream.tls.caRef".to_owned()
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "is not signed by a CA that the pooler's image trusts; name its CA in upstream.tls.caRef".to_owned()
        }
        other => format!("is not accepted: {other}"),
    }
}

/// Judges as PgBouncer does.
#[derive(Debug)]
struct Judge {
    mode: ServerTlsMode,
    provider: Arc<CryptoProvider>,
    trusted: Vec<CertificateDer<'static>>,
    verifier: Option<Arc<WebPkiServerVerifier>>,
    /// The certificates of the bundle that may stand for it.
    anchors: Vec<Anchor>,
    /// Of them, those that verify what the database has shown.
    found: OnceLock<Vec<Anchor>>,
}

impl Judge {
    fn new(mode: ServerTlsMode, bundle: &[u8]) -> Result<Self, HandshakeError> {
        let provider = Arc::new(ring::default_provider());
        let checks_chain = matches!(mode, ServerTlsMode::VerifyCa | ServerTlsMode::VerifyFull);
        let trusted: Vec<_> = CertificateDer::pem_slice_iter(bundle).filter_map(Result::ok).collect();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(trusted.iter().cloned());
        let verifier = checks_chain
            .then(|| WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build())
            .transpose()
            .map_err(|_| HandshakeError::EmptyBundle)?;
        let anchors = if checks_chain { anchors(bundle) } else { Vec::new() };
        Ok(Self { mode, provider, trusted, verifier, anchors, found: OnceLock::new() })
    }

    fn config(self: Arc<Self>) -> Result<Arc<ClientConfig>, Error> {
        let config =
            ClientConfig::builder_with_provider(self.provider.clone()).with_safe_default_protocol_versions()?;
        Ok(Arc::new(config.dangerous().with_custom_certificate_verifier(self).with_no_client_auth()))
    }

    fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(verifier) = &self.verifier else { return Ok(ServerCertVerified::assertion()) };
        let answer = verifier.verify_server_cert(end_entity, intermediates, server_name, &[], now);
        let Err(Error::InvalidCertificate(fault)) = &answer else { return answer };
        let accepted = match fault {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                self.mode == ServerTlsMode::VerifyCa
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => false,
            // a self-signed certificate that is itself in the bundle, which OpenSSL takes and rustls does not
            _ => self.trusted.iter().any(|trusted| trusted.as_ref() == end_entity.as_ref()),
        };
        if accepted { Ok(ServerCertVerified::assertion()) } else { answer }
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.judge(end_entity, intermediates, server_name, now)?;
        let suffices = |anchor: &&Anchor| {
            let alone = Self::new(self.mode, anchor.pem());
            alone.is_ok_and(|alone| alone.judge(end_entity, intermediates, server_name, now).is_ok())
        };
        self.found.get_or_init(|| self.anchors.iter().filter(suffices).cloned().collect());
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::ServerTls;

    #[test]
    fn a_bundle_without_a_certificate_is_a_verdict_before_anybody_is_asked() {
        let tls = ServerTls { mode: ServerTlsMode::VerifyFull, own_ca: true, own_certificate: false };
        let upstream = Upstream { host: "256.256.256.256".into(), port: 1, database: "shop".into(), tls };
        for bundle in ["", "no certificate", "-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n"] {
            let error = examine(&upstream, bundle.as_bytes()).unwrap_err();
            assert!(matches!(error, HandshakeError::EmptyBundle), "{error}");
            assert!(error.is_verdict());
        }
    }

    #[test]
    fn a_database_that_cannot_be_asked_is_no_verdict() {
        let tls = ServerTls { mode: ServerTlsMode::Require, own_ca: false, own_certificate: false };
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let upstream = Upstream { host: "127.0.0.1".into(), port: closed, database: "shop".into(), tls };
        assert!(!examine(&upstream, b"").unwrap_err().is_verdict());
    }
}
