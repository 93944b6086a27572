//! Why the automation of a pool is frozen: `spec.paused`, which lasts until somebody takes it back, or the annotation `sluice.dev/freeze`,
//! which says until when, and why, as `2026-12-01T06:00:00Z the sale`.
//!
//! An annotation that cannot be read freezes too: somebody wanted it, and nobody knows for how long.

use std::fmt;

use k8s_openapi::jiff::Timestamp;
use thiserror::Error;

use crate::{
    api::{ConnectionPool, FREEZE_ANNOTATION, reasons},
    domain::UnixSeconds,
};

/// Longest annotation that is read, in bytes.
pub const LONGEST_FREEZE_BYTES: usize = 256;

/// A freeze with its end, as the annotation says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolFreeze {
    /// When it ends.
    pub until: Timestamp,
    /// Why, in the words of whoever asked.
    pub reason: String,
}

/// Why an annotation is no freeze.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FreezeError {
    /// The first word is no time.
    #[error("{word:?} is no time; write when it ends, and why, as: 2026-12-01T06:00:00Z the sale")]
    NoEnd {
        /// That word.
        word: String,
    },
    /// Nothing stands behind the time.
    #[error("it does not say why; write when it ends, and why, as: 2026-12-01T06:00:00Z the sale")]
    NoReason,
    /// It is longer than any freeze.
    #[error(
        "it is longer than {LONGEST_FREEZE_BYTES} bytes; write when it ends, and why, as: 2026-12-01T06:00:00Z the sale"
    )]
    TooLong,
}

impl PoolFreeze {
    /// Reads an annotation.
    ///
    /// # Errors
    /// [`FreezeError`].
    pub fn parse(text: &str) -> Result<Self, FreezeError> {
        if text.len() > LONGEST_FREEZE_BYTES {
            return Err(FreezeError::TooLong);
        }
        let mut words = text.split_whitespace();
        let word = words.next().unwrap_or_default();
        let until = word.parse().map_err(|_| FreezeError::NoEnd { word: word.to_owned() })?;
        let reason = words.collect::<Vec<_>>().join(" ");
        if reason.is_empty() { Err(FreezeError::NoReason) } else { Ok(Self { until, reason }) }
    }
}

/// The annotation.
impl fmt::Display for PoolFreeze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.until, self.reason)
    }
}

/// Why the automation of a pool is frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frozen {
    /// `spec.paused` is true.
    ByPause,
    /// Somebody froze it, and it has not ended.
    Until(PoolFreeze),
    /// Somebody wanted to freeze it, and nobody knows for how long.
    Unreadable(FreezeError),
}

impl Frozen {
    /// Why the automation of this pool is frozen now; none where it is not.
    pub fn of(pool: &ConnectionPool, now: UnixSeconds) -> Option<Self> {
        if pool.spec.paused {
            return Some(Self::ByPause);
        }
        match PoolFreeze::parse(pool.metadata.annotations.as_ref()?.get(FREEZE_ANNOTATION)?) {
            Ok(freeze) => (now < freeze.until.as_second()).then_some(Self::Until(freeze)),
            Err(error) => Some(Self::Unreadable(error)),
        }
    }

    /// As conditions say it.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::ByPause => reasons::PAUSED,
            Self::Until(_) | Self::Unreadable(_) => reasons::FROZEN,
        }
    }

    /// In words: by what, until when, why.
    pub fn words(&self) -> String {
        match self {
            Self::ByPause => "spec.paused is true".to_owned(),
            Self::Until(PoolFreeze { until, reason }) => {
                format!("frozen until {until} by the annotation {FREEZE_ANNOTATION}: {reason}")
            }
            Self::Unreadable(error) => format!(
                "frozen by the annotation {FREEZE_ANNOTATION}, of which nobody knows until when: {error}; or take it away"
            ),
        }
    }

    /// In so many seconds it ends by itself; none where it does not.
    pub fn ends_in_seconds(&self, now: UnixSeconds) -> Option<u32> {
        let Self::Until(freeze) = self else { return None };
        let left = freeze.until.as_second().saturating_sub(now).max(1);
        Some(u32::try_from(left).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pool(paused: bool, freeze: Option<&str>) -> ConnectionPool {
        let annotations = freeze.map(|freeze| json!({FREEZE_ANNOTATION: freeze}));
        let pool = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPool", "metadata": {"name": "shop", "annotations": annotations},
            "spec": {"paused": paused, "upstream": {"host": "pg", "database": "shop", "credentialsRef": {"name": "shop-db"}}}});
        serde_json::from_value(pool).expect("a pool")
    }

    #[test]
    fn a_freeze_ends_by_itself_at_the_time_that_it_names() {
        let text = "2026-12-01T06:00:00Z the  sale (anna)";
        let end = "2026-12-01T06:00:00Z".parse::<Timestamp>().expect("a time").as_second();
        let frozen = pool(false, Some(text));
        let before = Frozen::of(&frozen, end - 90).expect("frozen");
        assert_eq!((before.reason(), before.ends_in_seconds(end - 90)), (reasons::FROZEN, Some(90)));
        assert_eq!(
            before.words(),
            "frozen until 2026-12-01T06:00:00Z by the annotation sluice.dev/freeze: the sale (anna)"
        );
        assert_eq!(Frozen::of(&frozen, end), None);
        assert_eq!(
            PoolFreeze::parse(text).map(|freeze| freeze.to_string()).as_deref(),
            Ok("2026-12-01T06:00:00Z the sale (anna)")
        );
        assert_eq!(Frozen::of(&pool(false, None), end), None);
        assert_eq!(Frozen::of(&pool(true, Some(text)), end), Some(Frozen::ByPause), "which has no end");
        assert_eq!(Frozen::ByPause.ends_in_seconds(end), None);
    }

    #[test]
    fn what_cannot_be_read_freezes_until_it_can_and_says_what_to_write() {
        let long = format!("2026-12-01T06:00:00Z {}", "x".repeat(LONGEST_FREEZE_BYTES));
        for (text, said) in [
            ("", "\"\" is no time"),
            ("tomorrow the sale", "\"tomorrow\" is no time"),
            ("2026-12-01 the sale", "\"2026-12-01\" is no time"),
            ("2026-12-01T06:00:00Z", "does not say why"),
            (long.as_str(), "longer than 256 bytes"),
        ] {
            let frozen = Frozen::of(&pool(false, Some(text)), i64::MAX).expect(text);
            assert!(frozen.words().contains(said) && frozen.words().contains("as: "), "{}", frozen.words());
            assert_eq!((frozen.reason(), frozen.ends_in_seconds(0)), (reasons::FROZEN, None));
        }
    }
}
