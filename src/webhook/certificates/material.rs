//! The certificates themselves: minted, and kept as one document in a Secret.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde::{Deserialize, Serialize};

use super::plan::{AUTHORITY_LIFE, Inventory, LEAF_LIFE, RenewalStep, Validity, next_step};

/// Key of the document in the Secret.
pub const SECRET_KEY: &str = "certificates.json";
/// Most steps until nothing is left to do; more would be a circle.
const MOST_STEPS: usize = 8;

/// Authorities and server certificate with their keys.
#[derive(Clone, Serialize, Deserialize)]
pub struct Material {
    authorities: Vec<Pair>,
    leaf: Pair,
    issuer: usize,
    names: Vec<String>,
}

/// A certificate and its key, both PEM.
#[derive(Clone, Serialize, Deserialize)]
struct Pair {
    certificate: String,
    key: String,
    validity: Validity,
}

impl std::fmt::Debug for Material {
    /// Without the keys: a log must not hold them.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inventory().fmt(formatter)
    }
}

impl Material {
    /// Reads the document. None: it is not one of ours, or damaged, and everything is minted anew.
    pub fn read(document: &[u8]) -> Option<Self> {
        let material: Self = serde_json::from_slice(document).ok()?;
        (material.issuer < material.authorities.len()).then_some(material)
    }

    /// The document.
    pub fn write(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// What the API server is to trust: the certificates of all authorities.
    pub fn bundle(&self) -> String {
        self.authorities.iter().map(|authority| authority.certificate.as_str()).collect()
    }

    /// Server certificate and key, PEM.
    pub fn server_pem(&self) -> (&str, &str) {
        (&self.leaf.certificate, &self.leaf.key)
    }

    /// When the server certificate ends.
    pub const fn not_after(&self) -> Timestamp {
        self.leaf.validity.not_after
    }

    fn inventory(&self) -> Inventory {
        Inventory {
            authorities: self.authorities.iter().map(|authority| authority.validity).collect(),
            leaf: self.leaf.validity,
            issuer: self.issuer,
            names: self.names.clone(),
        }
    }

    /// Does all that is due. None: nothing was.
    ///
    /// # Errors
    /// [`rcgen::Error`] when a key could not be made or read.
    pub fn renewed(
        held: Option<&Self>,
        names: &[String],
        now: Timestamp,
    ) -> Result<Option<(Self, RenewalStep)>, rcgen::Error> {
        let mut first = None;
        let mut material = held.cloned();
        for _ in 0..MOST_STEPS {
            let inventory = material.as_ref().map(Self::inventory);
            let step = next_step(inventory.as_ref(), names, now);
            if step == RenewalStep::Keep {
                break;
            }
            first.get_or_insert(step);
            material = Some(take(step, material, names, now)?);
        }
        Ok(first.and_then(|step| Some((material?, step))))
    }
}

fn take(step: RenewalStep, held: Option<Material>, names: &[String], now: Timestamp) -> Result<Material, rcgen::Error> {
    let sign = |authorities: Vec<Pair>, issuer: usize| {
        let leaf = server_certificate(&authorities[issuer], names, now)?;
        Ok(Material { authorities, leaf, issuer, names: names.to_vec() })
    };
    match (step, held) {
        (RenewalStep::StartOver(_), _) | (_, None) => sign(vec![authority(now)?], 0),
        (RenewalStep::Keep, Some(held)) => Ok(held),
        (RenewalStep::AddAuthority, Some(mut held)) => {
            held.authorities.push(authority(now)?);
            Ok(held)
        }
        (RenewalStep::SignLeaf { issuer }, Some(held)) => sign(held.authorities, issuer),
        (RenewalStep::DropAuthority { index }, Some(mut held)) => {
            held.authorities.remove(index);
            held.issuer -= usize::from(index < held.issuer);
            Ok(held)
        }
    }
}

/// The parameters of an authority follow from its validity, so that it can sign again from its key alone. Two authorities
/// have different names: a verifier with both in its bundle finds the right one.
fn authority_params(validity: Validity) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("sluice webhook CA {}", validity.not_before.as_second()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, validity);
    Ok(params)
}

fn authority(now: Timestamp) -> Result<Pair, rcgen::Error> {
    let validity = Validity::minted(now, AUTHORITY_LIFE);
    let key = KeyPair::generate()?;
    let certificate = authority_params(validity)?.self_signed(&key)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem(), validity })
}

fn server_certificate(authority: &Pair, names: &[String], now: Timestamp) -> Result<Pair, rcgen::Error> {
    let minted = Validity::minted(now, LEAF_LIFE);
    let validity = Validity {
        not_before: minted.not_before.max(authority.validity.not_before),
        not_after: minted.not_after.min(authority.validity.not_after),
    };
    let issuer = Issuer::new(authority_params(authority.validity)?, KeyPair::from_pem(&authority.key)?);
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "sluice webhook");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, validity);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem(), validity })
}

fn set_validity(params: &mut CertificateParams, validity: Validity) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |time: Timestamp| epoch + Duration::from_secs(u64::try_from(time.as_second()).unwrap_or_default());
    params.not_before = at(validity.not_before);
    params.not_after = at(validity.not_after);
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::SignedDuration;
    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier},
        pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    };

    use super::*;

    fn names() -> Vec<String> {
        vec!["sluice-webhook.sluice-system.svc".to_owned(), "127.0.0.1".to_owned()]
    }

    fn start() -> Timestamp {
        Timestamp::from_second(1_800_000_000).expect("a time")
    }

    /// What a TLS client with this bundle says of this server at this time.
    fn verifies(bundle: &str, server: &Material, name: &str, now: Timestamp) -> bool {
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots.add(certificate.expect("PEM")).expect("an authority");
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().expect("a verifier");
        let leaf = CertificateDer::from_pem_slice(server.server_pem().0.as_bytes()).expect("PEM");
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now.as_second().unsigned_abs()));
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        verifier.verify_server_cert(&leaf, &[], &name, &[], now).is_ok()
    }

    fn renewed(held: Option<&Material>, now: Timestamp) -> Option<(Material, RenewalStep)> {
        Material::renewed(held, &names(), now).expect("minted")
    }

    #[test]
    fn what_is_minted_verifies_for_each_of_its_names_and_survives_the_secret() {
        let (minted, _) = renewed(None, start()).expect("something was due");
        let read = Material::read(&minted.write()).expect("a document");
        for name in names() {
            assert!(verifies(&minted.bundle(), &read, &name, start()), "{name}");
        }
        assert!(!verifies(&minted.bundle(), &read, "other.svc", start()));
        assert!(renewed(Some(&read), start()).is_none(), "nothing is due a second time");
    }

    #[test]
    fn an_authority_read_back_from_the_secret_signs_certificates_that_verify() {
        let (first, _) = renewed(None, start()).expect("minted");
        let first = Material::read(&first.write()).expect("a document");
        let later = start() + SignedDuration::from_hours(24 * 61);
        let (second, step) = renewed(Some(&first), later).expect("due");
        assert_eq!(step, RenewalStep::SignLeaf { issuer: 0 });
        assert_eq!(first.bundle(), second.bundle());
        assert!(verifies(&first.bundle(), &second, &names()[0], later));
    }

    #[test]
    fn over_a_rotation_of_the_authority_old_and_new_certificates_verify_with_both_bundles() {
        let mut held = renewed(None, start()).expect("minted").0;
        let mut now = start();
        let mut authorities = std::collections::BTreeSet::new();
        for _ in 0..800 * 4 {
            now += SignedDuration::from_mins(6 * 60);
            for soon in [0, 45, 90] {
                let at = now + SignedDuration::from_mins(soon);
                if let Some((next, _)) = renewed(Some(&held), at) {
                    assert!(
                        verifies(&next.bundle(), &held, &names()[0], at)
                            && verifies(&held.bundle(), &next, &names()[0], at)
                    );
                    held = next;
                }
            }
            authorities.insert(held.bundle());
        }
        assert!(authorities.len() >= 3, "the authority was rotated: {} bundles", authorities.len());
    }

    #[test]
    fn a_damaged_document_is_no_document() {
        let (minted, _) = renewed(None, start()).expect("minted");
        let document = minted.write();
        assert!(Material::read(&document[..document.len() / 2]).is_none());
        assert!(Material::read(b"{}").is_none());
        assert!(!format!("{minted:?}").contains("PRIVATE KEY"), "keys must not reach a log");
    }
}
