//! PURE: the certificates that the pooler shows, to its clients and to the database. One that does not fit its key changes nothing.

use rustls::{
    Error, InconsistentKeys,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use thiserror::Error as ErrorMessage;

use crate::{contract::names, pooler::pgbouncer::render::PoolerCertificate};

/// The two files of a certificate in the configuration volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Files {
    certificate: &'static str,
    key: &'static str,
}

impl Files {
    /// Of what clients are shown.
    pub const FOR_CLIENTS: Self = Self { certificate: names::CLIENT_CERTIFICATE_FILE, key: names::CLIENT_KEY_FILE };
    /// Of what the database is shown.
    pub const FOR_DATABASE: Self =
        Self { certificate: names::UPSTREAM_CERTIFICATE_FILE, key: names::UPSTREAM_KEY_FILE };
}

/// Why a certificate was not taken over.
#[derive(Clone, Debug, PartialEq, Eq, ErrorMessage)]
pub enum IdentityError {
    /// A file is not there, or empty of what it should hold.
    #[error("{file} holds no {what}; {consequence}")]
    Missing {
        /// Which file.
        file: &'static str,
        /// What it should hold.
        what: &'static str,
        /// What follows.
        consequence: &'static str,
    },
    /// The key is of another kind.
    #[error("{} is of no kind that can be checked; use RSA, ECDSA (P-256, P-384) or Ed25519; {consequence}", files.key)]
    UnknownKey {
        /// Which files.
        files: Files,
        /// What follows.
        consequence: &'static str,
    },
    /// The certificate cannot be read.
    #[error("{} cannot be read: {fault}; {consequence}", files.certificate)]
    Certificate {
        /// Which files.
        files: Files,
        /// What is wrong with it.
        fault: String,
        /// What follows.
        consequence: &'static str,
    },
    /// The two are not of one pair.
    #[error("{} does not belong to the key in {}; {consequence}", files.certificate, files.key)]
    Mismatch {
        /// Which files.
        files: Files,
        /// What follows.
        consequence: &'static str,
    },
}

/// Reads a certificate and its key.
///
/// # Errors
/// [`IdentityError`], with what follows: what is `in_force` stays.
pub fn read(
    files: Files,
    chain: Option<&[u8]>,
    key: Option<&[u8]>,
    in_force: Option<&PoolerCertificate>,
) -> Result<PoolerCertificate, IdentityError> {
    let consequence = match in_force {
        Some(_) => "the certificate in force stays",
        None => "the pooler starts when it is there",
    };
    let (chain, key) = (chain.unwrap_or_default(), key.unwrap_or_default());
    let missing = |file, what| IdentityError::Missing { file, what, consequence };
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
    let certificates = certificates.ok().filter(|list| !list.is_empty());
    let certificates = certificates.ok_or_else(|| missing(files.certificate, "certificate in PEM"))?;
    let private = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_| missing(files.key, "private key in PEM that is not encrypted"))?;
    CertifiedKey::from_der(certificates, private, &ring::default_provider()).map_err(|error| match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => IdentityError::Mismatch { files, consequence },
        Error::InvalidCertificate(fault) => IdentityError::Certificate { files, fault: fault.to_string(), consequence },
        _ => IdentityError::UnknownKey { files, consequence },
    })?;
    Ok(PoolerCertificate { chain: chain.to_owned(), key: key.to_owned() })
}

/// What clients are shown.
#[derive(Debug, Default)]
pub struct Identity {
    in_force: Option<PoolerCertificate>,
}

impl Identity {
    /// Certificate and key; None before there were any that fit.
    pub fn in_force(&self) -> Option<&PoolerCertificate> {
        self.in_force.as_ref()
    }

    /// Takes over certificate and key, when they fit.
    ///
    /// # Errors
    /// [`IdentityError`]; what was in force stays.
    pub fn take(&mut self, chain: Option<&[u8]>, key: Option<&[u8]>) -> Result<(), IdentityError> {
        self.in_force = Some(read(Files::FOR_CLIENTS, chain, key, self.in_force.as_ref())?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn pair() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn take(identity: &mut Identity, chain: &str, key: &str) -> Result<(), IdentityError> {
        identity.take(Some(chain.as_bytes()), Some(key.as_bytes()))
    }

    #[test]
    fn a_certificate_that_is_not_of_its_key_changes_nothing() {
        let mut identity = Identity::default();
        let ((chain, key), (other, other_key)) = (pair(), pair());
        take(&mut identity, &chain, &key).unwrap();
        let before = identity.in_force().cloned();
        let stays = "the certificate in force stays";
        let mismatch = IdentityError::Mismatch { files: Files::FOR_CLIENTS, consequence: stays };
        assert_eq!(take(&mut identity, &other, &key), Err(mismatch));
        let told = |error: Result<(), IdentityError>| error.unwrap_err().to_string();
        assert!(
            told(identity.take(Some(chain.as_bytes()), None)).starts_with("client-tls/tls.key holds no private key")
        );
        assert!(told(identity.take(None, Some(key.as_bytes()))).starts_with("client-tls/tls.crt holds no certificate"));
        assert!(told(take(&mut identity, "none", &key)).ends_with(stays));
        let damaged = "-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n";
        assert!(told(take(&mut identity, damaged, &key)).contains("cannot be read"));
        assert_eq!(identity.in_force().cloned(), before);
        take(&mut identity, &other, &other_key).unwrap();
        assert_ne!(identity.in_force().cloned(), before);
    }

    #[test]
    fn before_there_is_one_the_pooler_waits() {
        let mut identity = Identity::default();
        let error = identity.take(None, None).unwrap_err().to_string();
        assert!(error.ends_with("the pooler starts when it is there"), "{error}");
        assert_eq!(identity.in_force(), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(chain in any::<Vec<u8>>(), cut in 0..400_usize) {
            let mut identity = Identity::default();
            let (whole, key) = pair();
            prop_assert!(identity.take(Some(&chain), Some(key.as_bytes())).is_err());
            let _ = identity.take(Some(&whole.as_bytes()[..cut.min(whole.len())]), Some(key.as_bytes()));
        }
    }
}
