//! PURE: a content as a short text, the same wherever it is taken.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// The first bytes of the SHA-256 of a content, in hex: all 32, or as many as a name has room for.
pub(crate) fn fingerprint(content: &[u8], bytes: usize) -> String {
    Sha256::digest(content).iter().take(bytes).fold(String::new(), |mut hex, byte| {
        // writing to a String cannot fail
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_the_beginning_of_the_sha_256_in_hex() {
        // FIPS 180-2, B.1
        let whole = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(fingerprint(b"abc", 32), whole);
        assert_eq!(fingerprint(b"abc", 6), whole[..12]);
    }
}
