//! Whose certificate is believed where nobody names a CA bundle: the system's CAs, and where it has none those of Mozilla.
//!
//! The image of the operator holds two binaries and nothing else. Without a list of its own no server with a certificate of a
//! public CA could be asked. A file or directory of CAs (`SSL_CERT_FILE`, `SSL_CERT_DIR`, or where the system keeps them) is
//! believed in its place, and not beside it.

use reqwest::{Certificate, Client, ClientBuilder};

/// A client that believes the system's CAs, or Mozilla's where the system has none. `builder` is asked for each attempt.
///
/// # Errors
/// What the TLS library says.
pub fn client(builder: impl Fn() -> ClientBuilder) -> reqwest::Result<Client> {
    builder().build().or_else(|_| builder().tls_certs_merge(mozilla()).build())
}

/// The CAs of Mozilla's programme, as of the build.
fn mozilla() -> Vec<Certificate> {
    webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().filter_map(|der| Certificate::from_der(der).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cas_that_public_servers_have_certificates_of_are_known() {
        let roots = webpki_root_certs::TLS_SERVER_ROOT_CERTS;
        let mut store = rustls::RootCertStore::empty();
        let (added, ignored) = store.add_parsable_certificates(roots.iter().cloned());
        assert_eq!((added, ignored, mozilla().len()), (roots.len(), 0, roots.len()));
        for ca in ["ISRG Root X1", "DigiCert Global Root G2", "Amazon Root CA 1"] {
            assert!(roots.iter().any(|der| der.windows(ca.len()).any(|part| part == ca.as_bytes())), "{ca}");
        }
    }
}
