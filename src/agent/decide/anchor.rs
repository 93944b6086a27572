//! PURE: which certificate of a bundle stands for the whole bundle.
//!
//! PgBouncer reads its CA file anew for every server connection and keeps a copy of it for as long as that is open: some 7 KiB for each
//! certificate, 1 MiB for the trust store of an image ([`crate::decide::memory`]). A handshake of our own finds the certificate that
//! the database's chain ends in, and PgBouncer is given a file of that one alone.
//!
//! ```text
//! Whole --found--> One --refused twice--> the next that verifies it --none is left--> Whole
//! ```
//!
//! A bundle of few certificates is given as it is: it costs next to nothing, and a database that goes from one of its CAs to another one,
//! as in a rotation, is trusted at every moment, where a new certificate has to be noticed first.
//!
//! PgBouncer judges by another library than we do. What it refuses although we do not is not given to it again, and where nothing else
//! verifies the database, it has the whole bundle, and that is told. Times are milliseconds on a clock that does not jump.

use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::machine::Millis;
use crate::{
    certificate::{CertificateElements, element},
    decide::memory::Bundle,
};

const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
const END: &[u8] = b"-----END CERTIFICATE-----";
/// A bundle of so many certificates is given whole.
const FEW: u32 = 4;
/// First pause between two looks while the whole bundle is in use; doubled each time.
const FIRST_PAUSE: Millis = 5000;
/// Longest pause.
const LONGEST_PAUSE: Millis = 600_000;
/// After another certificate is in force, failures of connections that were under way with the one before are no news.
const UNDER_WAY: Millis = 4000;
/// So often PgBouncer refuses it before it has another: the database's certificate may have changed between two looks.
const STRIKES: u8 = 2;
/// Certificates that PgBouncer refused, which are remembered.
const MOST_REFUSED: usize = 8;

/// `id-at-commonName` and `id-at-organizationName`, as they are encoded.
const NAMES: [&[u8]; 2] = [&[0x06, 0x03, 0x55, 0x04, 0x03], &[0x06, 0x03, 0x55, 0x04, 0x0a]];
/// Characters of a name that are told.
const LONGEST_NAME: usize = 64;

/// A certificate of a bundle that signed itself: what OpenSSL needs a chain to end in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    der: CertificateDer<'static>,
    pem: Vec<u8>,
}

impl Anchor {
    /// The file for PgBouncer.
    pub fn pem(&self) -> &[u8] {
        &self.pem
    }

    /// Whose certificate it is, in a word.
    pub fn name(&self) -> String {
        let (_, subject) = names(&self.der).unwrap_or_default();
        let named = NAMES.iter().find_map(|id| {
            let at = subject.windows(id.len()).position(|window| window == *id)?;
            let (_, name, _) = element(subject.get(at + id.len()..)?)?;
            Some(String::from_utf8_lossy(name).chars().filter(|c| !c.is_control()).take(LONGEST_NAME).collect())
        });
        named.unwrap_or_else(|| "a CA without a name".to_owned())
    }

    /// Whether a bundle holds it.
    pub fn is_in(&self, bundle: &[u8]) -> bool {
        anchors(bundle).contains(self)
    }
}

/// What a file of certificates holds, of whatever kind: what each server connection has a copy of.
pub fn size(bundle: &[u8]) -> Bundle {
    let blocks = blocks(bundle);
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Bundle { certificates: number(blocks.len()), pem_bytes: number(blocks.iter().map(|block| block.len()).sum()) }
}

/// The certificates of a bundle that signed themselves, in its order.
pub fn anchors(bundle: &[u8]) -> Vec<Anchor> {
    let certificates = blocks(bundle).into_iter().filter_map(|pem| {
        let der = CertificateDer::from_pem_slice(pem).ok()?;
        Some(Anchor { der, pem: [pem, b"\n"].concat() })
    });
    certificates.filter(|anchor| names(&anchor.der).is_some_and(|(issuer, subject)| issuer == subject)).collect()
}

/// The texts of the certificates in a bundle.
fn blocks(bundle: &[u8]) -> Vec<&[u8]> {
    let find = |text: &[u8], words: &[u8]| text.windows(words.len()).position(|window| window == words);
    let mut blocks = Vec::new();
    let mut rest = bundle;
    while let Some(begin) = find(rest, BEGIN) {
        rest = &rest[begin..];
        let Some(end) = find(rest, END) else { break };
        let (block, behind) = rest.split_at(end + END.len());
        blocks.push(block);
        rest = behind;
    }
    blocks
}

/// Issuer and subject of a certificate.
fn names(certificate: &[u8]) -> Option<(&[u8], &[u8])> {
    CertificateElements::of(certificate).map(|elements| (elements.issuer.1, elements.subject.1))
}

/// What verifies the database's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// All of the bundle.
    Whole(Why),
    /// One certificate of it.
    One(Anchor),
}

/// Why all of the bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The database has not shown its certificate yet.
    NotSeen,
    /// The bundle is small.
    Few,
    /// No certificate of the bundle that signed itself verifies it alone.
    NoAnchor,
    /// PgBouncer refused the one that does.
    Refused(String),
}

/// What is known of the database's certificate, and when it is looked at again.
#[derive(Clone, Debug)]
pub struct Anchoring {
    trust: Trust,
    refused: Vec<Anchor>,
    /// Failures of PgBouncer with the one in force, each of which our own look contradicted.
    strikes: u8,
    doubted: bool,
    deaf_until: Millis,
    next_look: Millis,
    pause: Millis,
}

impl Anchoring {
    /// Begins with what a process in this pod was given before, if that is known.
    pub fn new(left: Option<Anchor>) -> Self {
        Self {
            trust: left.map_or(Trust::Whole(Why::NotSeen), Trust::One),
            refused: Vec::new(),
            strikes: 0,
            doubted: false,
            deaf_until: 0,
            next_look: 0,
            pause: FIRST_PAUSE,
        }
    }

    /// What verifies the database's certificate now.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The one certificate; None while it is the whole bundle.
    pub fn anchor(&self) -> Option<&Anchor> {
        match &self.trust {
            Trust::One(anchor) => Some(anchor),
            Trust::Whole(_) => None,
        }
    }

    /// Whether the whole bundle is as good as one of its certificates.
    fn is_small(&self) -> bool {
        self.trust == Trust::Whole(Why::Few)
    }

    /// Another bundle is in force. Answers whether another trust is.
    pub fn bundle_is(&mut self, now: Millis, bundle: &[u8]) -> bool {
        (self.refused, self.strikes, self.pause, self.next_look) = (Vec::new(), 0, FIRST_PAUSE, now);
        let is_small = size(bundle).certificates <= FEW;
        match &self.trust {
            Trust::One(anchor) if !is_small && anchor.is_in(bundle) => false,
            before => {
                let changes = matches!(before, Trust::One(_));
                self.trust = Trust::Whole(if is_small { Why::Few } else { Why::NotSeen });
                changes
            }
        }
    }

    /// PgBouncer could not verify the database's certificate.
    pub fn failed(&mut self, now: Millis) {
        if now >= self.deaf_until && self.anchor().is_some() && !self.doubted {
            (self.doubted, self.next_look, self.pause) = (true, now, FIRST_PAUSE);
        }
    }

    /// A server connection was opened: what PgBouncer has is right.
    pub fn verified(&mut self) {
        self.strikes = 0;
    }

    /// Whether the database is to be asked for its certificate.
    pub fn wants_look(&self, now: Millis) -> bool {
        now >= self.next_look && (self.doubted || self.anchor().is_none()) && !self.is_small()
    }

    /// It is being asked.
    pub fn looks(&mut self, now: Millis) {
        self.next_look = now.saturating_add(self.pause);
        self.pause = (2 * self.pause).min(LONGEST_PAUSE);
    }

    /// The whole bundle verifies its certificate, and so does each of these alone. Answers whether another trust is in force.
    pub fn saw(&mut self, now: Millis, found: Vec<Anchor>) -> bool {
        let doubted = std::mem::take(&mut self.doubted);
        if self.is_small() {
            return false;
        }
        if let Trust::One(anchor) = &self.trust
            && found.contains(anchor)
        {
            self.strikes = if doubted { self.strikes.saturating_add(1) } else { self.strikes };
            if self.strikes < STRIKES {
                return false;
            }
            if self.refused.len() >= MOST_REFUSED {
                self.refused.remove(0);
            }
            self.refused.push(anchor.clone());
        }
        let refused = found.iter().find(|anchor| self.refused.contains(anchor)).map(Anchor::name);
        let next = found.into_iter().find(|anchor| !self.refused.contains(anchor));
        let trust = match (next, refused) {
            (Some(anchor), _) => Trust::One(anchor),
            (None, Some(name)) => Trust::Whole(Why::Refused(name)),
            (None, None) => Trust::Whole(Why::NoAnchor),
        };
        let changes = std::mem::replace(&mut self.trust, trust) != self.trust;
        if changes {
            (self.strikes, self.deaf_until) = (0, now.saturating_add(UNDER_WAY));
        }
        changes
    }

    /// The whole bundle does not verify it either: what PgBouncer said is explained.
    pub fn was_not_verified(&mut self) {
        self.doubted = false;
    }
}

#[cfg(test)]
mod tests;
