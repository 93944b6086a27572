//! What a pod may open at the database.

use serde::{Deserialize, Serialize};

use super::{ByPool, ContractError, Document};

/// How many epochs there are: as many as a Lease can count, an `i32`. Every epoch is smaller.
pub const EPOCHS: u64 = 1 << 31;
/// The largest number of a grant: every reader of JSON holds it exactly.
pub const LARGEST_SEQ: u64 = (1 << 53) - 1;

/// The annotation `sluice.dev/grant`: what this pod may open, keyed by pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantDocument {
    /// Version of the document.
    pub v: u32,
    /// Term of the leader that wrote it: every new leader counts on, so a late write of an old one is recognised.
    pub epoch: u64,
    /// One grant per pool of the pod.
    pub pools: ByPool<PodGrant>,
}

/// One pool's grant to one pod, in server connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodGrant {
    /// Counts the operator's writes to this pod; the agent reports the newest that it applied.
    pub seq: u64,
    /// What the pod may open from now on. 0: the pooler is paused and clients queue.
    pub share: u32,
    /// What is still counted for the pod: at least `share`, and more while a shrink is not proven.
    pub granted: u32,
    /// What the pod may always hold: the lower bound of its limit, whoever decides it, and what is kept open. At most `share`.
    pub floor: u32,
    /// The pod's part of `scaling.minAllowed`: its limit is never decided below it, nor is any server connection opened for it. 0: the
    /// floor says it all. Left out then, so that agents of earlier days see what they always saw; they pass over it.
    #[serde(default, skip_serializing_if = "super::revision::is_default")]
    pub least: u32,
    /// True while the pool is paused: the agent leaves its limit where it is, within floor and share. Left out while it is not, so that
    /// agents of earlier days see what they always saw.
    #[serde(default, skip_serializing_if = "super::revision::is_default")]
    pub paused: bool,
}

impl PodGrant {
    /// What pods with these grants may open together, in server connections. What somebody makes up is added without an end.
    pub fn sum_of_shares<'a>(grants: impl IntoIterator<Item = &'a Self>) -> u32 {
        grants.into_iter().fold(0, |sum: u32, grant| sum.saturating_add(grant.share))
    }
}

/// Where a grant stands among those of its pod: a later one takes effect, an earlier one is refused.
///
/// Epochs are compared as serial numbers (RFC 1982): of two, the one that follows within half of all is the later one. So none is
/// the last: whatever somebody forged is followed by another grant, and neither number is ever counted past its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Term of the leader that wrote it.
    pub epoch: u64,
    /// Its number. 0: nothing was granted yet.
    pub seq: u64,
}

impl Stamp {
    /// Whether it was written after `other`.
    pub const fn is_after(self, other: Self) -> bool {
        if self.epoch % EPOCHS == other.epoch % EPOCHS {
            self.seq > other.seq
        } else {
            other.seq == 0 || is_later_epoch(self.epoch, other.epoch)
        }
    }

    /// The stamp of the next grant, in the term `epoch`. Where a later term than that was seen, the grant stays in it: it would be
    /// refused as an earlier one.
    #[must_use]
    pub const fn next(self, epoch: u64) -> Self {
        let before = self.epoch % EPOCHS;
        let epoch = if self.seq == 0 || is_later_epoch(epoch, before) { epoch % EPOCHS } else { before };
        match self.seq {
            seq if seq < LARGEST_SEQ => Self { epoch, seq: seq + 1 },
            _ if epoch != before => Self { epoch, seq: 1 },
            _ => Self { epoch: (before + 1) % EPOCHS, seq: 1 },
        }
    }
}

/// Whether an epoch comes after another one.
pub const fn is_later_epoch(epoch: u64, other: u64) -> bool {
    let ahead = (epoch % EPOCHS + EPOCHS - other % EPOCHS) % EPOCHS;
    0 < ahead && ahead < EPOCHS / 2
}

impl GrantDocument {
    /// Where the grant to a pool stands; None when there is none.
    pub fn stamp(&self, pool: &str) -> Option<Stamp> {
        self.pools.get(pool).map(|grant| Stamp { epoch: self.epoch, seq: grant.seq })
    }
}

impl Document for GrantDocument {
    const NAME: &'static str = "annotation sluice.dev/grant";
    const VERSION: u32 = 1;

    fn check(&self) -> Result<(), ContractError> {
        if self.epoch >= EPOCHS {
            return Err(ContractError::Inconsistent {
                document: Self::NAME,
                message: format!("epoch {} is beyond {}, the last that a Lease counts", self.epoch, EPOCHS - 1),
            });
        }
        for (pool, grant) in &self.pools {
            if grant.seq > LARGEST_SEQ {
                return Err(ContractError::Inconsistent {
                    document: Self::NAME,
                    message: format!("pool {pool}: seq {} is beyond {LARGEST_SEQ}", grant.seq),
                });
            }
            if grant.share > grant.granted || grant.floor > grant.share || grant.least > grant.share {
                return Err(ContractError::Inconsistent {
                    document: Self::NAME,
                    message: format!(
                        "pool {pool}: floor {} and least {} <= share {} <= granted {} does not hold",
                        grant.floor, grant.least, grant.share, grant.granted
                    ),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LAST: Stamp = Stamp { epoch: EPOCHS - 1, seq: LARGEST_SEQ };

    #[test]
    fn a_later_epoch_or_a_higher_number_within_it_is_later() {
        let stamp = |epoch, seq| Stamp { epoch, seq };
        assert!(stamp(1, 3).is_after(stamp(1, 2)) && !stamp(1, 2).is_after(stamp(1, 3)));
        assert!(!stamp(1, 2).is_after(stamp(1, 2)));
        assert!(stamp(2, 1).is_after(stamp(1, 9)) && !stamp(1, 9).is_after(stamp(2, 1)));
        assert!(stamp(EPOCHS - 2, 1).is_after(Stamp::default()), "nothing granted yet gives way to whatever is");
    }

    #[test]
    fn what_bounds_the_limit_from_below_is_said_only_where_it_is_more_than_the_floor_and_is_never_more_than_the_share()
    {
        let grant = PodGrant { seq: 1, share: 8, granted: 8, floor: 1, least: 0, paused: false };
        let text = serde_json::to_string(&grant).expect("JSON");
        assert_eq!(text, r#"{"seq":1,"share":8,"granted":8,"floor":1}"#);
        let check = |least| {
            GrantDocument { v: 1, epoch: 1, pools: [("shop".to_owned(), PodGrant { least, ..grant })].into() }.check()
        };
        assert!(check(8).is_ok());
        assert!(check(9).is_err());
    }

    #[test]
    fn the_largest_epoch_and_number_are_followed_and_what_lies_beyond_is_refused() {
        assert!(LAST.next(3).is_after(LAST), "{:?}", LAST.next(3));
        assert!(LAST.next(3).epoch < EPOCHS && LAST.next(3).seq == 1);
        let document = |epoch, seq| {
            let grant = PodGrant { seq, share: 1000, granted: 1000, floor: 0, least: 0, paused: false };
            GrantDocument { v: 1, epoch, pools: [("shop".to_owned(), grant)].into() }
        };
        assert!(document(LAST.epoch, LAST.seq).check().is_ok());
        for forged in [document(EPOCHS, 1), document(1, LARGEST_SEQ + 1), document(u64::MAX, u64::MAX)] {
            let refused = forged.check().expect_err("refused");
            assert!(matches!(refused, ContractError::Inconsistent { .. }), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn whatever_was_seen_the_next_grant_is_later_and_lies_within_the_bounds(
            epoch in prop_oneof![0..100_u64, EPOCHS / 2 - 2..EPOCHS / 2 + 2, EPOCHS - 2..EPOCHS, any::<u64>()],
            seq in prop_oneof![0..100_u64, LARGEST_SEQ - 2..=LARGEST_SEQ, any::<u64>()],
            term in prop_oneof![0..100_u64, 0..EPOCHS],
        ) {
            let seen = Stamp { epoch, seq };
            let next = seen.next(term);
            prop_assert!(next.is_after(seen), "{next:?} after {seen:?}");
            prop_assert!(!seen.is_after(next) || seen.seq == 0, "{seen:?} after {next:?}");
            prop_assert!(next.epoch < EPOCHS && (1..=LARGEST_SEQ).contains(&next.seq));
        }
    }
}
