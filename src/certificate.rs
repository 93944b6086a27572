//! PURE: what an X.509 certificate consists of, in DER (X.690), as far as anybody here asks: who issued it, whose it is, how long it holds.

/// Tag of an element that consists of others.
pub const SEQUENCE: u8 = 0x30;
/// The version of a certificate, which comes first where it is not the first one.
const VERSION: u8 = 0xa0;

/// Tag and content of the first element of DER, and what follows it.
pub fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match usize::from(first) {
        short @ 0..0x80 => (short, rest),
        long => {
            let (bytes, rest) =
                rest.split_at_checked(long & 0x7f).filter(|(bytes, _)| (1..=4).contains(&bytes.len()))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// Elements of a certificate (RFC 5280, 4.1), each by its tag and content.
pub struct CertificateElements<'a> {
    /// Who signed it.
    pub issuer: (u8, &'a [u8]),
    /// From when until when it holds.
    pub validity: (u8, &'a [u8]),
    /// Whose it is.
    pub subject: (u8, &'a [u8]),
}

impl<'a> CertificateElements<'a> {
    /// Of a certificate in DER; None: it is none.
    pub fn of(certificate: &'a [u8]) -> Option<Self> {
        let (SEQUENCE, certificate, _) = element(certificate)? else { return None };
        let (SEQUENCE, mut signed, _) = element(certificate)? else { return None };
        let mut next = || {
            let (tag, content, rest) = element(signed)?;
            signed = rest;
            Some((tag, content))
        };
        let (first, _) = next()?;
        // the serial number is behind the version, where there is one
        if first == VERSION {
            next()?;
        }
        let (_algorithm, issuer, validity, subject) = (next()?, next()?, next()?, next()?);
        Some(Self { issuer, validity, subject })
    }
}
