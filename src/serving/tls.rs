//! What a server proves itself with.

use std::sync::Arc;

use parking_lot::RwLock;
use rustls::{
    ServerConfig,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};
use thiserror::Error;

/// HTTP/1.1 alone: one request a connection at a time, so that the bounds of connections are those of requests too, and a client
/// whose server died with its node loses one request to it and not all.
const PROTOCOL: &[u8] = b"http/1.1";

/// Why a certificate cannot be served.
#[derive(Debug, Error)]
pub enum TlsIdentityError {
    /// It is no PEM.
    #[error("the certificate cannot be read: {0}")]
    Certificate(#[source] pem::Error),
    /// The key is no PEM.
    #[error("the private key cannot be read: {0}")]
    Key(#[source] pem::Error),
    /// They do not fit together.
    #[error("certificate and private key: {0}")]
    Pair(#[source] rustls::Error),
}

/// A certificate and its key, exchanged while it is served; cheap to clone.
#[derive(Clone)]
pub struct TlsIdentity {
    config: Arc<RwLock<Arc<ServerConfig>>>,
}

impl TlsIdentity {
    /// From PEM text: the certificate with its chain, and the key.
    ///
    /// # Errors
    /// [`TlsIdentityError`].
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, TlsIdentityError> {
        Ok(Self { config: Arc::new(RwLock::new(config(certificate, key)?)) })
    }

    /// New handshakes get this one. Connections that stand keep theirs.
    ///
    /// # Errors
    /// [`TlsIdentityError`]: what is served stays.
    pub fn exchange(&self, certificate: &str, key: &str) -> Result<(), TlsIdentityError> {
        let new = config(certificate, key)?;
        *self.config.write() = new;
        Ok(())
    }

    /// What the next handshake gets.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.config.read().clone()
    }
}

fn config(certificate: &str, key: &str) -> Result<Arc<ServerConfig>, TlsIdentityError> {
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(TlsIdentityError::Certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(TlsIdentityError::Key)?;
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
    let mut config = config.map_err(TlsIdentityError::Pair)?;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(Arc::new(config))
}
