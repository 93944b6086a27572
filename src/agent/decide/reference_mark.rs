//! PURE: tells one content of what the pod is given by reference (Secrets, CA bundles, certificates) from another, by a mark that says
//! nothing of the content.
//!
//! The operator may read no Secret, and has to know when one has changed. A plain hash of a password could be guessed by trying
//! passwords; this one cannot, without the key, which each pod makes at random and never tells. So marks of two pods are never alike, and
//! one pod's are compared with each other only.

use std::fmt;

use crate::{agent::decide::wish::Texts, fingerprint::fingerprint};

/// Bytes of a mark: two contents have the same one by chance never.
const MARK_BYTES: usize = 16;

/// What the marks of one pod are made with.
#[derive(Clone, PartialEq, Eq)]
pub struct ReferenceKey(String);

impl ReferenceKey {
    /// Random bytes that a key is made of.
    pub const BYTES: usize = 32;

    /// Of random bytes.
    pub fn of_random(random: &[u8; Self::BYTES]) -> Self {
        Self(fingerprint(random, Self::BYTES))
    }

    /// As it is kept; None where the text is no key.
    pub fn parse(text: &str) -> Option<Self> {
        let is_key = text.len() == 2 * Self::BYTES && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_key.then(|| Self(text.to_owned()))
    }

    /// As it is kept: a secret of the pod.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The mark of what the pod is given, its annotations left out.
    pub fn mark(&self, texts: &Texts) -> String {
        let Texts {
            revision: _,
            grant: _,
            username,
            password,
            server_ca,
            upstream_certificate,
            upstream_key,
            client_certificate,
            client_key,
        } = texts;
        let mut content = self.0.clone().into_bytes();
        for file in [username, password, server_ca, upstream_certificate, upstream_key, client_certificate, client_key]
        {
            // where one ends and the next begins belongs to it, and so does whether it is there
            content.extend(file.as_ref().map_or(u64::MAX, |file| file.len() as u64).to_be_bytes());
            content.extend(file.iter().flatten());
        }
        fingerprint(&content, MARK_BYTES)
    }
}

impl fmt::Debug for ReferenceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReferenceKey(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts() -> Texts {
        Texts {
            username: Some(b"shop".to_vec()),
            password: Some(b"secret".to_vec()),
            server_ca: Some(b"a bundle".to_vec()),
            ..Texts::default()
        }
    }

    #[test]
    fn the_mark_changes_with_what_is_referenced_and_with_nothing_else() {
        let key = ReferenceKey::of_random(&[7; ReferenceKey::BYTES]);
        let mark = |change: fn(&mut Texts)| {
            let mut texts = texts();
            change(&mut texts);
            key.mark(&texts)
        };
        let same = mark(|_| {});
        assert_eq!(same.len(), 2 * MARK_BYTES);
        assert_eq!(mark(|texts| texts.grant = Some("another grant".to_owned())), same);
        assert_eq!(mark(|texts| texts.revision = Some("another revision".to_owned())), same);
        let others = [
            mark(|texts| texts.password = Some(b"mended".to_vec())),
            mark(|texts| texts.password = None),
            mark(|texts| texts.username = Some(b"shops".to_vec())),
            mark(|texts| texts.server_ca = Some(b"another bundle".to_vec())),
            mark(|texts| texts.upstream_key = Some(Vec::new())),
            mark(|texts| (texts.username, texts.password) = (Some(b"shopsec".to_vec()), Some(b"ret".to_vec()))),
        ];
        let known: std::collections::BTreeSet<&String> = others.iter().chain([&same]).collect();
        assert_eq!(known.len(), others.len() + 1, "each is another one: {others:?}");
    }

    #[test]
    fn who_does_not_know_the_key_cannot_try_passwords_by_a_mark() {
        let of = |byte| ReferenceKey::of_random(&[byte; ReferenceKey::BYTES]);
        assert_ne!(of(1).mark(&texts()), of(2).mark(&texts()), "the same content in two pods");
        assert_eq!(format!("{:?}", of(1)), "ReferenceKey(secret)");
        assert_eq!(ReferenceKey::parse(of(1).as_str()), Some(of(1)));
        for no_key in ["", "5f", &"g".repeat(64), &"0".repeat(65)] {
            assert_eq!(ReferenceKey::parse(no_key), None, "{no_key}");
        }
    }
}
