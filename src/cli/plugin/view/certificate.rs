//! When the certificates of a bundle end.

use k8s_openapi::jiff::Timestamp;
use rustls::pki_types::{CertificateDer, pem::PemObject};

use crate::certificate::{CertificateElements, SEQUENCE, element};

/// A time with two digits for the year (X.690, 11.8), and one with four (11.7).
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// When the certificates of a PEM bundle end, in its order.
///
/// # Errors
/// Why it is no bundle of certificates.
pub fn ends(bundle: &[u8]) -> Result<Vec<Timestamp>, String> {
    let mut ends = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(bundle) {
        let certificate = certificate.map_err(|error| format!("it is no PEM: {error}"))?;
        ends.push(end(&certificate).ok_or("a certificate in it is not understood")?);
    }
    if ends.is_empty() { Err("there is no certificate in it".to_owned()) } else { Ok(ends) }
}

/// The end of `validity`.
fn end(certificate: &[u8]) -> Option<Timestamp> {
    let (SEQUENCE, validity) = CertificateElements::of(certificate)?.validity else { return None };
    let (_, _, behind_the_beginning) = element(validity)?;
    let (tag, time, _) = element(behind_the_beginning)?;
    let time = std::str::from_utf8(time).ok().filter(|time| time.is_ascii())?;
    let (century, time) = match tag {
        GENERALIZED_TIME => time.split_at_checked(2)?,
        // two digits are of 1950 to 2049 (RFC 5280, 4.1.2.5.1)
        UTC_TIME if time.starts_with(|first: char| first < '5') => ("20", time),
        UTC_TIME => ("19", time),
        _ => return None,
    };
    let digits = time.strip_suffix('Z').filter(|digits| digits.len() == 12)?;
    let part = |at: usize| &digits[at..at + 2];
    let [year, month, day, hour, minute, second] = [0, 2, 4, 6, 8, 10].map(part);
    format!("{century}{year}-{month}-{day}T{hour}:{minute}:{second}Z").parse().ok()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn certificate(year: i32) -> String {
        let mut params = CertificateParams::new(vec!["webhook.svc".to_owned()]).expect("a name");
        params.not_after = date_time_ymd(year, 7, 9);
        let key = KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("signed").pem()
    }

    #[test]
    fn the_end_of_each_certificate_is_read_whichever_way_its_year_is_written() {
        let bundle = certificate(2031) + &certificate(2061);
        let said: Vec<String> = ends(bundle.as_bytes()).expect("a bundle").iter().map(ToString::to_string).collect();
        assert_eq!(said, ["2031-07-09T00:00:00Z", "2061-07-09T00:00:00Z"]);
    }

    #[test]
    fn what_is_no_bundle_says_so() {
        assert!(ends(b"").expect_err("empty").contains("no certificate"));
        let broken = "-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n";
        assert!(ends(broken.as_bytes()).expect_err("broken").contains("not understood"));
    }
}
