//! PURE: what to do about the webhook's certificates, given what there is and the time.
//!
//! The API server trusts a bundle of at most two authorities. A new authority is put into the bundle an hour before it
//! signs anything, and an old one stays for an hour after it signed last: replicas read the Secret every half minute, so
//! whichever certificate one of them still serves, the bundle vouches for it.

use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// Life of an authority.
pub const AUTHORITY_LIFE: SignedDuration = SignedDuration::from_hours(730 * 24);
/// Life of a server certificate.
pub const LEAF_LIFE: SignedDuration = SignedDuration::from_hours(90 * 24);
/// A third of its life before it ends, each is renewed.
const AUTHORITY_RENEWAL: SignedDuration = SignedDuration::from_hours(243 * 24);
const LEAF_RENEWAL: SignedDuration = SignedDuration::from_hours(30 * 24);
/// How long an authority is in the bundle before it signs, and after it signed last.
pub const OVERLAP: SignedDuration = SignedDuration::from_hours(1);
/// Certificates begin this long before they are minted, for API servers whose clock is behind ours.
pub const BACKDATED: SignedDuration = SignedDuration::from_hours(1);

/// From when to when a certificate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Validity {
    /// From here,
    pub not_before: Timestamp,
    /// to here.
    pub not_after: Timestamp,
}

impl Validity {
    /// Of a certificate that is minted now.
    pub fn minted(now: Timestamp, life: SignedDuration) -> Self {
        Self { not_before: now - BACKDATED, not_after: now + life }
    }

    fn minted_at(self) -> Timestamp {
        self.not_before + BACKDATED
    }

    fn holds(self, now: Timestamp) -> bool {
        self.not_before <= now && now < self.not_after
    }

    fn ends_within(self, left: SignedDuration, now: Timestamp) -> bool {
        self.not_after.duration_since(now) < left
    }
}

/// What is known of the certificates that there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// The authorities of the bundle, oldest first.
    pub authorities: Vec<Validity>,
    /// The server certificate.
    pub leaf: Validity,
    /// Which of the authorities signed it.
    pub issuer: usize,
    /// The names that it is for.
    pub names: Vec<String>,
}

/// What to do next. After each but [`RenewalStep::Keep`] the question is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenewalStep {
    /// Nothing.
    Keep,
    /// A new authority and a certificate signed by it, at once: nothing that is there can be trusted any more.
    StartOver(StartOverReason),
    /// One more authority for the bundle; it signs nothing yet.
    AddAuthority,
    /// A new server certificate, signed by this authority.
    SignLeaf {
        /// Index of the authority.
        issuer: usize,
    },
    /// Takes an authority out of the bundle.
    DropAuthority {
        /// Its index.
        index: usize,
    },
}

/// Why everything is minted anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartOverReason {
    /// There is nothing yet, or nothing that can be read.
    Absent,
    /// It has expired: no replica ran for a long time.
    Expired,
    /// It begins in the future: this clock or that of the replica that minted it is wrong.
    NotYetValid,
}

/// The next step. `names` are those that the server certificate must be for.
pub fn next_step(inventory: Option<&Inventory>, names: &[String], now: Timestamp) -> RenewalStep {
    let Some(Inventory { authorities, leaf, issuer, names: held_names }) = inventory else {
        return RenewalStep::StartOver(StartOverReason::Absent);
    };
    let (Some(signer), Some(newest)) = (authorities.get(*issuer), authorities.last()) else {
        return RenewalStep::StartOver(StartOverReason::Absent);
    };
    if now < signer.not_before || now < leaf.not_before {
        return RenewalStep::StartOver(StartOverReason::NotYetValid);
    }
    if !signer.holds(now) && !newest.holds(now) {
        return RenewalStep::StartOver(StartOverReason::Expired);
    }
    let last = authorities.len() - 1;
    let rested = |since: Timestamp| now.duration_since(since) >= OVERLAP;
    // An authority that no certificate rests on any more.
    let obsolete = |(index, authority): (usize, &Validity)| {
        let unused = index != *issuer && index != last && (rested(leaf.minted_at()) || !authority.holds(now));
        unused.then_some(index)
    };
    if let Some(index) = authorities.iter().enumerate().find_map(obsolete) {
        return RenewalStep::DropAuthority { index };
    }
    if newest.ends_within(AUTHORITY_RENEWAL, now) {
        return RenewalStep::AddAuthority;
    }
    // The newest authority, once every API server has had the time to learn of it; at once when the signer has expired.
    let may_sign = rested(newest.minted_at()) || last == 0 || !signer.holds(now);
    let next_issuer = if may_sign { last } else { *issuer };
    if next_issuer != *issuer || leaf.ends_within(LEAF_RENEWAL, now) && may_renew(signer, leaf) || held_names != names {
        return RenewalStep::SignLeaf { issuer: next_issuer };
    }
    RenewalStep::Keep
}

/// A certificate cannot outlive its authority: one that ends with it is renewed by the next authority only.
fn may_renew(signer: &Validity, leaf: &Validity) -> bool {
    leaf.not_after < signer.not_after
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names() -> Vec<String> {
        vec!["sluice-webhook.sluice-system.svc".to_owned()]
    }

    fn hours(count: i64) -> SignedDuration {
        SignedDuration::from_hours(count)
    }

    /// Does what a step says, as `mint` does with keys.
    fn take(step: RenewalStep, held: Option<Inventory>, now: Timestamp) -> Inventory {
        let authority = Validity::minted(now, AUTHORITY_LIFE);
        let leaf = |signer: &Validity| Validity {
            not_after: (now + LEAF_LIFE).min(signer.not_after),
            ..Validity::minted(now, LEAF_LIFE)
        };
        match (step, held) {
            (RenewalStep::StartOver(_), _) | (_, None) => {
                Inventory { authorities: vec![authority], leaf: leaf(&authority), issuer: 0, names: names() }
            }
            (RenewalStep::Keep, Some(held)) => held,
            (RenewalStep::AddAuthority, Some(mut held)) => {
                held.authorities.push(authority);
                held
            }
            (RenewalStep::SignLeaf { issuer }, Some(held)) => {
                Inventory { leaf: leaf(&held.authorities[issuer]), issuer, names: names(), ..held }
            }
            (RenewalStep::DropAuthority { index }, Some(mut held)) => {
                held.authorities.remove(index);
                held.issuer -= usize::from(index < held.issuer);
                held
            }
        }
    }

    fn settle(mut held: Option<Inventory>, now: Timestamp) -> (Inventory, Vec<RenewalStep>) {
        let mut steps = Vec::new();
        for _ in 0..8 {
            let step = next_step(held.as_ref(), &names(), now);
            if step == RenewalStep::Keep {
                return (held.expect("kept"), steps);
            }
            steps.push(step);
            held = Some(take(step, held, now));
        }
        panic!("does not settle: {steps:?}");
    }

    const START: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn nothing_is_minted_once_and_then_kept() {
        let (held, steps) = settle(None, START);
        assert_eq!(steps, [RenewalStep::StartOver(StartOverReason::Absent)]);
        assert_eq!(settle(Some(held), START + hours(24)).1, []);
    }

    #[test]
    fn another_name_is_signed_by_the_same_authority() {
        let (mut held, _) = settle(None, START);
        held.names = vec!["old.svc".to_owned()];
        assert_eq!(settle(Some(held), START).1, [RenewalStep::SignLeaf { issuer: 0 }]);
    }

    #[test]
    fn a_clock_that_went_back_starts_over_rather_than_serve_what_nobody_accepts() {
        let (held, _) = settle(None, START + hours(48));
        assert_eq!(settle(Some(held), START).1, [RenewalStep::StartOver(StartOverReason::NotYetValid)]);
    }

    #[test]
    fn after_years_without_a_replica_everything_is_new() {
        let (held, _) = settle(None, START);
        assert_eq!(settle(Some(held), START + hours(24 * 800)).1, [RenewalStep::StartOver(StartOverReason::Expired)]);
    }

    #[test]
    fn an_expired_certificate_of_a_living_authority_is_renewed_by_it() {
        let (held, _) = settle(None, START);
        assert_eq!(settle(Some(held), START + hours(24 * 100)).1, [RenewalStep::SignLeaf { issuer: 0 }]);
    }

    proptest! {
        /// Whatever a replica serves that has not looked for less than the overlap, the bundle of now vouches for, and the
        /// other way round: what is served now, the bundle of an hour ago vouched for.
        #[test]
        fn no_replica_ever_serves_what_the_bundle_does_not_vouch_for(gaps in proptest::collection::vec(1_i64..600, 400..800)) {
            let (mut held, _) = settle(None, START);
            let mut now = START;
            let mut before = (now, held.clone());
            for gap in gaps {
                // Replicas look every half minute; time passes in hours here, so each look is also taken just after the last.
                let soon = now + SignedDuration::from_mins(30);
                let (next, _) = settle(Some(held.clone()), soon);
                prop_assert!(next.authorities.contains(&held.authorities[held.issuer]), "the old certificate lost its authority");
                prop_assert!(held.authorities.contains(&next.authorities[next.issuer]), "the new authority came out of nowhere");
                held = next;
                now += hours(gap);
                let (next, steps) = settle(Some(held.clone()), now);
                prop_assert!(steps.iter().all(|step| !matches!(step, RenewalStep::StartOver(_))), "{steps:?}");
                prop_assert!(next.leaf.holds(now) && next.authorities[next.issuer].holds(now));
                prop_assert!(next.leaf.not_after <= next.authorities[next.issuer].not_after);
                prop_assert!(next.authorities.len() <= 2, "a bundle of {}", next.authorities.len());
                prop_assert!(next.authorities.contains(&held.authorities[held.issuer]) || now.duration_since(before.0) >= OVERLAP);
                before = (now, next.clone());
                held = next;
            }
        }
    }
}
