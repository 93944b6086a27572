//! PURE: versions of PgBouncer, and what to think of them.

use std::fmt;

/// A version as `pgbouncer -V` and `SHOW VERSION` print it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number; 0 where it is missing.
    pub patch: u32,
}

/// The oldest version that is started. Earlier ones recycle every TLS connection at each RELOAD and keep no prepared
/// statements by default (PgBouncer NEWS 1.24).
pub const OLDEST: Version = Version { major: 1, minor: 24, patch: 1 };
/// The oldest version that is not warned about: the newest that every test runs with (`tests/lab/versions/newest.env`).
pub const RECOMMENDED: Version = Version { major: 1, minor: 26, patch: 1 };

/// What a version is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// Started without a word.
    Full,
    /// Started with a warning.
    Warned,
    /// Not started.
    Refused,
}

/// What a program is, as `pgbouncer -V` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Build {
    /// Its version.
    pub version: Version,
    /// Whether it takes over sockets that it inherits (socket activation).
    pub inherits_sockets: bool,
}

/// Whether `pgbouncer -V` says that it was built with systemd's socket activation.
pub fn inherits_sockets(said: &str) -> bool {
    said.lines()
        .any(|line| line.split_once(':').is_some_and(|(what, has)| what.trim() == "systemd" && has.trim() == "yes"))
}

impl Version {
    /// Reads the first `PgBouncer X.Y.Z` of a text.
    pub fn find(text: &str) -> Option<Self> {
        text.split_whitespace()
            .skip_while(|word| !word.eq_ignore_ascii_case("pgbouncer"))
            .nth(1)
            .and_then(Self::parse_number)
    }

    fn parse_number(word: &str) -> Option<Self> {
        let mut numbers = word
            .split('.')
            .map(|part| part.chars().take_while(char::is_ascii_digit).collect::<String>())
            .map_while(|digits| digits.parse().ok());
        Some(Self { major: numbers.next()?, minor: numbers.next()?, patch: numbers.next().unwrap_or(0) })
    }

    /// Whether a process that is told to end refuses those that it has accepted and that have not logged in.
    pub fn refuses_logins_at_its_end(self) -> bool {
        (self.major, self.minor) >= (1, 25)
    }

    /// What this version is good for.
    pub fn support(self) -> Support {
        if self < OLDEST {
            Support::Refused
        } else if self < RECOMMENDED {
            Support::Warned
        } else {
            Support::Full
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_pgbouncer_prints_them() {
        let printed = "PgBouncer 1.24.1\nlibevent 2.1.12-stable\nadns: c-ares 1.34.5";
        assert_eq!(Version::find(printed), Some(OLDEST));
        assert!(!inherits_sockets(printed));
        assert!(inherits_sockets(&format!("{printed}\ntls: OpenSSL 3.5.7 9 Jun 2026\nsystemd: yes\n")));
        assert!(!inherits_sockets(&format!("{printed}\nsystemd: no\n")));
        assert_eq!(Version::find("PgBouncer 1.26.0rc1"), Some(Version { major: 1, minor: 26, patch: 0 }));
        assert_eq!(Version::find("sh: not found"), None);
        assert_eq!(Version::find("PgBouncer"), None);
    }

    #[test]
    fn versions_before_1_24_1_are_refused_and_those_before_1_26_1_are_warned_about() {
        let support = |text| Version::find(text).map(Version::support);
        assert_eq!(support("PgBouncer 1.18.0"), Some(Support::Refused));
        assert_eq!(support("PgBouncer 1.24.0"), Some(Support::Refused));
        assert_eq!(support("PgBouncer 1.24.1"), Some(Support::Warned));
        assert_eq!(support("PgBouncer 1.25.2"), Some(Support::Warned));
        assert_eq!(support("PgBouncer 1.26.1"), Some(Support::Full));
        assert_eq!(support("PgBouncer 2.0"), Some(Support::Full));
    }
}
