//! PURE: what the pod is asked to run, out of the texts in the configuration volume.
//!
//! Each of the three (revision, grant, credentials) is taken over alone. What is missing, malformed, of a newer version
//! or older than what is in force changes nothing, and the reason is kept for `/status` and a metric.

use thiserror::Error;

use crate::{
    agent::{
        apply::last_good::LastGood,
        decide::identity::{self, Files, IdentityError},
    },
    contract::{
        ContractError, Document, GrantDocument, PodGrant, PoolRevision, RevisionDocument, ServerTls, Stamp, names,
        unknown_here,
    },
    pooler::pgbouncer::{
        parameters::{self, ParameterError},
        render::{self, Credentials, PoolerCertificate, RenderError},
        version::Version,
    },
};

/// The texts of the configuration volume; None where a file is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Texts {
    /// The revision annotation.
    pub revision: Option<String>,
    /// The grant annotation.
    pub grant: Option<String>,
    /// The user name.
    pub username: Option<Vec<u8>>,
    /// The password.
    pub password: Option<Vec<u8>>,
    /// The CA bundle.
    pub server_ca: Option<Vec<u8>>,
    /// The certificate that the database is shown.
    pub upstream_certificate: Option<Vec<u8>>,
    /// Its key.
    pub upstream_key: Option<Vec<u8>>,
    /// The certificate that clients are shown.
    pub client_certificate: Option<Vec<u8>>,
    /// Its key.
    pub client_key: Option<Vec<u8>>,
}

/// Why a text was not taken over.
#[derive(Debug, Error)]
pub enum DocumentRefusal {
    /// Not there, or empty.
    #[error("{what} is missing; {consequence}")]
    Missing {
        /// What is missing.
        what: &'static str,
        /// What follows.
        consequence: &'static str,
    },
    /// Malformed, newer, or inconsistent.
    #[error(transparent)]
    Contract(#[from] ContractError),
    /// It says nothing about our pool.
    #[error("{document} does not mention pool {pool}; what was in force stays")]
    OtherPool {
        /// Which document.
        document: &'static str,
        /// Our pool.
        pool: String,
    },
    /// A leader that is no longer the leader wrote it, or it was put back.
    #[error(
        "annotation sluice.dev/grant has epoch {epoch} and seq {seq}, older than {newest_epoch} and {newest_seq} in force; it was ignored"
    )]
    OlderGrant {
        /// What it says.
        epoch: u64,
        /// What it says.
        seq: u64,
        /// What is in force.
        newest_epoch: u64,
        /// What is in force.
        newest_seq: u64,
    },
    /// The number of the grant in force with other figures: nobody of ours writes that.
    #[error("annotation sluice.dev/grant repeats epoch {epoch} and seq {seq} with other figures; it was ignored")]
    ForgedGrant {
        /// What it says.
        epoch: u64,
        /// What it says.
        seq: u64,
    },
    /// A parameter that is not allowed.
    #[error("annotation sluice.dev/revision: {0}; what was in force stays")]
    Parameter(#[from] ParameterError),
    /// Settings that this agent has never heard of.
    #[error(
        "annotation sluice.dev/revision: this sluice-agent, version {}, does not know {}; the last revision that worked stays in force; \
         restart the pod to get the agent of the operator that asks for it",
        env!("CARGO_PKG_VERSION"),
        names.join(", ")
    )]
    UnknownSetting {
        /// Their paths.
        names: Vec<String>,
    },
    /// User name or password that the pooler cannot represent.
    #[error("{0}; the credentials in force stay")]
    Credentials(RenderError),
    /// What the database is shown is no certificate with its key.
    #[error(transparent)]
    Certificate(#[from] IdentityError),
    /// Not UTF-8.
    #[error("{field} is not UTF-8, which PgBouncer cannot be given; the credentials in force stay")]
    NotUtf8 {
        /// The file.
        field: &'static str,
    },
}

impl DocumentRefusal {
    /// The value of the label `reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } | Self::Certificate(IdentityError::Missing { .. }) => "Missing",
            Self::Contract(ContractError::Malformed { .. }) => "Malformed",
            Self::Contract(ContractError::NewerVersion { .. }) => "NewerVersion",
            Self::Contract(ContractError::Inconsistent { .. }) => "Inconsistent",
            Self::OtherPool { .. } => "OtherPool",
            Self::OlderGrant { .. } => "OlderGrant",
            Self::ForgedGrant { .. } => "ForgedGrant",
            Self::Parameter(_) => "Parameter",
            Self::UnknownSetting { .. } => "UnknownSetting",
            Self::Credentials(_) | Self::NotUtf8 { .. } => "Credentials",
            Self::Certificate(_) => "Certificate",
        }
    }
}

/// A grant with the term of the leader that wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Epoch of the document.
    pub epoch: u64,
    /// The grant.
    pub grant: PodGrant,
}

impl Granted {
    /// Where it stands among the grants of the pod.
    pub const fn stamp(&self) -> Stamp {
        Stamp { epoch: self.epoch, seq: self.grant.seq }
    }
}

/// What a server connection is opened with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// User and password.
    pub credentials: Credentials,
    /// The bundle that verifies the database's certificate, where the pool names one.
    pub server_ca: Option<Vec<u8>>,
    /// What the database is shown, where the pool names a certificate for it.
    pub certificate: Option<PoolerCertificate>,
}

/// What the pod is asked to run, as far as it could be understood.
#[derive(Debug)]
pub struct Wish {
    pool: String,
    /// Whether the pool names a CA bundle of its own, and a certificate for the database.
    tls: ServerTls,
    /// The pooler's version; None until it has told it.
    pub version: Option<Version>,
    /// The revision to run.
    pub revision: Option<PoolRevision>,
    /// What it may open. None: nothing was ever granted, which counts as a share of 0.
    pub granted: Option<Granted>,
    /// User and password.
    pub credentials: Option<Credentials>,
    /// The CA bundle.
    pub server_ca: Option<Vec<u8>>,
    /// What the database is shown.
    pub certificate: Option<PoolerCertificate>,
    /// Why the newest revision, grant, credentials were not taken over.
    pub refusals: [Option<DocumentRefusal>; 3],
}

impl Wish {
    /// Nothing known yet but, perhaps, what worked last.
    pub fn new(pool: &str, tls: ServerTls, last_good: Option<LastGood>) -> Self {
        let (revision, granted) = last_good
            .map_or((None, None), |last| (Some(last.revision), Some(Granted { epoch: last.epoch, grant: last.grant })));
        Self {
            pool: pool.to_owned(),
            tls,
            version: None,
            revision,
            granted,
            credentials: None,
            server_ca: None,
            certificate: None,
            refusals: [None, None, None],
        }
    }

    /// Takes over what the volume holds now.
    pub fn take(&mut self, texts: &Texts) {
        let credentials = self.take_credentials(texts.username.as_deref(), texts.password.as_deref());
        let server_ca = self.take_server_ca(texts.server_ca.as_deref());
        let certificate = self.take_certificate(texts.upstream_certificate.as_deref(), texts.upstream_key.as_deref());
        self.refusals = [
            self.take_revision(texts.revision.as_deref()).err(),
            self.take_grant(texts.grant.as_deref()).err(),
            credentials.and(server_ca).and(certificate).err(),
        ];
    }

    /// What server connections are to be opened with; None while a part is missing.
    pub fn access(&self) -> Option<Access> {
        let server_ca = if self.tls.own_ca { Some(self.server_ca.clone()?) } else { None };
        let certificate = if self.tls.own_certificate { Some(self.certificate.clone()?) } else { None };
        Some(Access { credentials: self.credentials.clone()?, server_ca, certificate })
    }

    /// Whether all parts are there and differ from what is in force.
    pub fn wants_other(&self, in_force: &Access) -> bool {
        let ServerTls { own_ca, own_certificate, .. } = self.tls;
        let complete = self.credentials.is_some()
            && (!own_ca || self.server_ca.is_some())
            && (!own_certificate || self.certificate.is_some());
        let same_tls = (!own_ca || self.server_ca == in_force.server_ca)
            && (!own_certificate || self.certificate == in_force.certificate);
        complete && !(same_tls && self.credentials.as_ref() == Some(&in_force.credentials))
    }

    /// The share in force; 0 while nothing was granted.
    pub fn grant(&self) -> PodGrant {
        self.granted.map_or_else(PodGrant::default, |granted| granted.grant)
    }

    fn take_revision(&mut self, text: Option<&str>) -> Result<(), DocumentRefusal> {
        let consequence = match self.revision {
            Some(_) => "the last revision that worked stays in force",
            None => "the pooler starts when it is there",
        };
        let text = present(text).ok_or(DocumentRefusal::Missing { what: RevisionDocument::NAME, consequence })?;
        let mut document = RevisionDocument::parse(text)?;
        let revision = document
            .pools
            .remove(&self.pool)
            .ok_or_else(|| DocumentRefusal::OtherPool { document: RevisionDocument::NAME, pool: self.pool.clone() })?;
        let names = unknown_here(text, &self.pool);
        if !names.is_empty() {
            return Err(DocumentRefusal::UnknownSetting { names });
        }
        parameters::check_all(&revision.settings.parameters, self.version)?;
        self.revision = Some(revision);
        Ok(())
    }

    fn take_grant(&mut self, text: Option<&str>) -> Result<(), DocumentRefusal> {
        let consequence = match self.granted {
            Some(_) => "the last share stays in force",
            None => "clients wait until a share is granted",
        };
        let text = present(text).ok_or(DocumentRefusal::Missing { what: GrantDocument::NAME, consequence })?;
        let document = GrantDocument::parse(text)?;
        let grant = *document
            .pools
            .get(&self.pool)
            .ok_or_else(|| DocumentRefusal::OtherPool { document: GrantDocument::NAME, pool: self.pool.clone() })?;
        let new = Granted { epoch: document.epoch, grant };
        if let Some(newest) = self.granted {
            let is_same = new.stamp() == newest.stamp();
            if !is_same && !new.stamp().is_after(newest.stamp()) {
                return Err(DocumentRefusal::OlderGrant {
                    epoch: new.epoch,
                    seq: grant.seq,
                    newest_epoch: newest.epoch,
                    newest_seq: newest.grant.seq,
                });
            }
            if is_same && grant != newest.grant {
                return Err(DocumentRefusal::ForgedGrant { epoch: new.epoch, seq: grant.seq });
            }
        }
        self.granted = Some(new);
        Ok(())
    }

    fn take_server_ca(&mut self, bundle: Option<&[u8]>) -> Result<(), DocumentRefusal> {
        if !self.tls.own_ca {
            return Ok(());
        }
        let consequence = match self.server_ca {
            Some(_) => "the CA bundle in force stays",
            None => "the pooler starts when it is there",
        };
        let bundle = bundle.filter(|bundle| !bundle.is_empty());
        self.server_ca =
            Some(bundle.ok_or(DocumentRefusal::Missing { what: names::SERVER_CA_FILE, consequence })?.to_vec());
        Ok(())
    }

    fn take_certificate(&mut self, chain: Option<&[u8]>, key: Option<&[u8]>) -> Result<(), DocumentRefusal> {
        if self.tls.own_certificate {
            self.certificate = Some(identity::read(Files::FOR_DATABASE, chain, key, self.certificate.as_ref())?);
        }
        Ok(())
    }

    fn take_credentials(&mut self, username: Option<&[u8]>, password: Option<&[u8]>) -> Result<(), DocumentRefusal> {
        let consequence = match self.credentials {
            Some(_) => "the credentials in force stay",
            None => "the pooler starts when it is there",
        };
        let read = |field: &'static str, bytes: Option<&[u8]>| -> Result<String, DocumentRefusal> {
            let bytes = bytes.ok_or(DocumentRefusal::Missing { what: field, consequence })?;
            String::from_utf8(bytes.to_vec()).map_err(|_| DocumentRefusal::NotUtf8 { field })
        };
        let credentials = Credentials {
            username: read(names::USERNAME_FILE, username)?,
            password: read(names::PASSWORD_FILE, password)?,
        };
        render::check_credentials(&credentials).map_err(DocumentRefusal::Credentials)?;
        self.credentials = Some(credentials);
        Ok(())
    }
}

/// The downward API writes an empty file for an annotation that is not there.
fn present(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use crate::{
        agent::tests::{grant_text, revision_text},
        contract::{EPOCHS, LARGEST_SEQ, ServerTlsMode},
    };

    const OWN_NOTHING: ServerTls = ServerTls { mode: ServerTlsMode::VerifyFull, own_ca: false, own_certificate: false };

    /// A certificate and its key.
    fn pair() -> (Option<Vec<u8>>, Option<Vec<u8>>) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::default().self_signed(&key).unwrap();
        (Some(certificate.pem().into_bytes()), Some(key.serialize_pem().into_bytes()))
    }

    fn texts() -> Texts {
        Texts {
            revision: Some(revision_text(1)),
            grant: Some(grant_text(1, 1, 5)),
            username: Some(b"shop".to_vec()),
            password: Some(b"secret".to_vec()),
            ..Texts::default()
        }
    }

    fn taken() -> Wish {
        let mut wish = Wish::new("shop", OWN_NOTHING, None);
        wish.take(&texts());
        assert!(wish.refusals.iter().all(Option::is_none), "{:?}", wish.refusals);
        wish
    }

    #[test]
    fn bad_annotations_change_nothing_and_are_told() {
        let cases = [
            (None, "Missing"),
            (Some(String::new()), "Missing"),
            (Some(revision_text(2)[..40].to_owned()), "Malformed"),
            (Some("[]".to_owned()), "Malformed"),
            (Some(revision_text(2).replacen("\"v\":1", "\"v\":2", 1)), "NewerVersion"),
            (Some(revision_text(2).replacen("\"shop\":", "\"other\":", 1)), "OtherPool"),
            (
                Some(revision_text(2).replacen("\"parameters\":{}", "\"parameters\":{\"auth_file\":\"x\"}", 1)),
                "Parameter",
            ),
            (Some(revision_text(2).replacen("\"waitMilliseconds\":20", "\"waitMilliseconds\":0", 1)), "Inconsistent"),
        ];
        for (text, reason) in cases {
            let mut wish = taken();
            wish.take(&Texts { revision: text.clone(), ..texts() });
            assert_eq!(wish.refusals[0].as_ref().map(DocumentRefusal::reason), Some(reason), "{text:?}");
            assert_eq!(wish.revision.map(|revision| revision.revision), Some(1));
        }
    }

    #[test]
    fn grants_of_an_older_epoch_or_seq_are_ignored() {
        let mut wish = taken();
        let mut take = |text: String| {
            wish.take(&Texts { grant: Some(text), ..texts() });
            (wish.grant().share, wish.refusals[1].as_ref().map(DocumentRefusal::reason))
        };
        assert_eq!(take(grant_text(1, 3, 7)), (7, None));
        assert_eq!(take(grant_text(1, 2, 9)), (7, Some("OlderGrant")));
        assert_eq!(take(grant_text(0, 9, 9)), (7, Some("OlderGrant")));
        assert_eq!(take(grant_text(1, 3, 9)), (7, Some("ForgedGrant")));
        assert_eq!(take(grant_text(2, 1, 4)), (4, None));
    }

    #[test]
    fn a_forged_grant_is_followed_by_the_operators_whatever_its_numbers() {
        for (epoch, seq) in [(EPOCHS - 1, LARGEST_SEQ), (EPOCHS / 2, LARGEST_SEQ), (40, LARGEST_SEQ), (40, 7)] {
            let mut wish = taken();
            let mut take = |text: String| {
                wish.take(&Texts { grant: Some(text), ..texts() });
                (wish.grant().share, wish.refusals[1].as_ref().map(DocumentRefusal::reason))
            };
            take(grant_text(epoch, seq, 1000));
            let next = Stamp { epoch, seq }.next(3);
            assert_eq!(take(grant_text(next.epoch, next.seq, 4)), (4, None), "after {epoch} and {seq}");
            assert_eq!(take(grant_text(u64::MAX, u64::MAX, 1000)), (4, Some("Inconsistent")));
        }
    }

    #[test]
    fn without_any_grant_the_share_is_zero() {
        let mut wish = Wish::new("shop", OWN_NOTHING, None);
        wish.take(&Texts { grant: None, ..texts() });
        assert_eq!(wish.grant().share, 0);
    }

    #[test]
    fn a_secret_that_loses_a_key_changes_nothing_and_is_told_with_the_key() {
        let mut wish = Wish::new("shop", ServerTls { own_ca: true, own_certificate: true, ..OWN_NOTHING }, None);
        wish.take(&texts());
        assert_eq!((wish.access(), wish.refusals[2].as_ref().map(DocumentRefusal::reason)), (None, Some("Missing")));
        let (upstream_certificate, upstream_key) = pair();
        let without_certificate = Texts { server_ca: Some(b"-----BEGIN".to_vec()), ..texts() };
        wish.take(&without_certificate);
        assert_eq!((wish.access(), wish.refusals[2].as_ref().map(DocumentRefusal::reason)), (None, Some("Missing")));
        let whole = Texts { upstream_certificate, upstream_key, ..without_certificate };
        wish.take(&whole);
        let access = wish.access().expect("all is there");
        assert!(!wish.wants_other(&access));
        assert_eq!(wish.refusals[2].as_ref().map(DocumentRefusal::reason), None);
        for (lost, key) in [
            (Texts { username: None, ..whole.clone() }, "credentials/username"),
            (Texts { password: None, ..whole.clone() }, "credentials/password"),
            (Texts { server_ca: None, ..whole.clone() }, "server-ca/ca.crt"),
            (Texts { upstream_certificate: None, ..whole.clone() }, "upstream-tls/tls.crt"),
            (Texts { upstream_key: None, ..whole.clone() }, "upstream-tls/tls.key"),
        ] {
            wish.take(&lost);
            let told = wish.refusals[2].as_ref().map(ToString::to_string).unwrap_or_default();
            assert!(told.contains(key) && told.contains("in force stay"), "{told}");
            assert_eq!(wish.access().as_ref(), Some(&access));
        }
        for (echoed, key) in [
            (Texts { username: Some(b"shop\n".to_vec()), ..whole.clone() }, "credentials/username"),
            (Texts { password: Some(b"hush-hush\n".to_vec()), ..whole.clone() }, "credentials/password"),
        ] {
            wish.take(&echoed);
            assert_eq!(wish.refusals[2].as_ref().map(DocumentRefusal::reason), Some("Credentials"));
            let told = wish.refusals[2].as_ref().map(ToString::to_string).unwrap_or_default();
            assert!(told.starts_with(key) && told.contains("ends with a line break"), "{told}");
            assert!(told.contains("--from-literal") && told.contains("printf %s") && !told.contains("hush"), "{told}");
            assert_eq!(wish.access().as_ref(), Some(&access), "what was in force stays");
        }
        let (renewed, its_key) = pair();
        wish.take(&Texts { upstream_certificate: renewed.clone(), ..whole.clone() });
        let refusal = wish.refusals[2].as_ref();
        assert_eq!(refusal.map(DocumentRefusal::reason), Some("Certificate"), "{refusal:?}");
        let told = refusal.map(ToString::to_string).unwrap_or_default();
        assert_eq!(
            told,
            "upstream-tls/tls.crt does not belong to the key in upstream-tls/tls.key; the certificate in force stays"
        );
        assert_eq!(wish.access().as_ref(), Some(&access));
        for other in [
            Texts { username: Some(b"other".to_vec()), ..whole.clone() },
            Texts { password: Some(b"other".to_vec()), ..whole.clone() },
            Texts { upstream_certificate: renewed, upstream_key: its_key, ..whole.clone() },
            Texts { server_ca: Some(b"other".to_vec()), ..whole },
        ] {
            wish.take(&other);
            assert!(wish.wants_other(&access), "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_or_lowers_the_newest_grant(grant in any::<String>(), cut in 0..200usize) {
            let mut wish = taken();
            let truncated: String = grant_text(9, 9, 9).chars().take(cut).collect();
            for text in [grant, truncated] {
                wish.take(&Texts { grant: Some(text.clone()), revision: Some(text), ..texts() });
                prop_assert!(wish.granted.is_some_and(|granted| granted.epoch >= 1));
            }
        }
    }
}
