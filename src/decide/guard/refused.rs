//! No more than the database was seen to let in.
//!
//! A server that has no connection left for a role, a database or anybody (`53300`) refuses one login after the other. What is
//! open then is what it carries: the pool is held there, and one connection more is tried from time to time, ever more rarely
//! while that is refused. A neighbour may have had the connections, so once one more is let in, the next are tried at once,
//! twice as many each time. What was not refused for a while, although it could have been tried, is forgotten.
//!
//! Each agent learns from its own refusals; of a pool counts what its pods hold together.

use serde::{Deserialize, Serialize};

use super::Limit;
use crate::{
    contract::{ServerFull, StatusReport},
    domain::Reason,
};

/// From a refusal to the first try.
pub const FIRST_PAUSE_SECONDS: f64 = 5.0;
/// Longest pause between two tries, without the part that differs from pod to pod.
pub const LONGEST_PAUSE_SECONDS: f64 = 120.0;
/// Refusals so soon after another are of the same try: of each login that was under way, and of each client that is told.
const SAME_SECONDS: f64 = 3.0;
/// Without a refusal for so long, nobody wanted more or the server lets in more.
pub const FORGOTTEN_SECONDS: f64 = 300.0;
/// The same once more was let in, from then on.
const PASSED_SECONDS: f64 = 30.0;
/// Most connections that are tried at once.
const MOST_AT_ONCE: u32 = 64;

/// What one pod was refused.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct LearnedCeiling {
    /// Held then.
    held: u32,
    /// Allowed now.
    ceiling: u32,
    /// When more was let in last, since then.
    passed_seconds: Option<f64>,
    /// Tried next, on top of what was let in.
    step: u32,
    pause_seconds: f64,
    /// When more is tried.
    due_seconds: f64,
    /// When the last try was refused, and when the last refusal was heard.
    begun_seconds: f64,
    heard_seconds: f64,
}

/// What the database was seen to refuse. Times are seconds on a clock that does not jump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    refusal: Option<LearnedCeiling>,
    /// A refusal was heard, and it is not known yet what was open then.
    is_heard: bool,
    spread_percent: u8,
}

impl Refused {
    /// Nothing yet. `spread_percent` makes the pauses of pods differ.
    pub fn new(spread_percent: u8) -> Self {
        Self { spread_percent, ..Self::default() }
    }

    /// The database refused another connection; the next observation says how many were open.
    pub fn hear(&mut self) {
        self.is_heard = true;
    }

    /// The database refused one connection more than the `held` ones.
    fn refused(&mut self, now_seconds: f64, held: u32) {
        let before = self.refusal;
        if let Some(refusal) = &mut self.refusal
            && now_seconds - refusal.begun_seconds < SAME_SECONDS
        {
            refusal.held = held;
            refusal.ceiling = refusal.ceiling.min(held.max(1));
            (refusal.heard_seconds, refusal.passed_seconds) = (now_seconds, None);
            return;
        }
        let pause = before.map_or(FIRST_PAUSE_SECONDS, |before| {
            (2.0 * before.pause_seconds).clamp(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        });
        self.refusal = Some(LearnedCeiling {
            held,
            // with none at all one is tried as often as the pooler does by itself: a limit of 0 would be a pause
            ceiling: held.max(1),
            passed_seconds: None,
            step: 1,
            pause_seconds: pause,
            due_seconds: now_seconds + pause * (1.0 + f64::from(self.spread_percent) / 100.0),
            begun_seconds: now_seconds,
            heard_seconds: now_seconds,
        });
    }

    /// So many are open, logged in.
    pub fn observe(&mut self, now_seconds: f64, held: u32) {
        if std::mem::take(&mut self.is_heard) {
            return self.refused(now_seconds, held);
        }
        let Some(refusal) = &mut self.refusal else { return };
        // the last refusal may be minutes ago when one is let in at last, and the next may be refused again
        let forgotten_seconds = refusal
            .passed_seconds
            .map_or(refusal.heard_seconds + FORGOTTEN_SECONDS, |passed_seconds| passed_seconds + PASSED_SECONDS);
        if now_seconds >= forgotten_seconds {
            self.refusal = None;
        } else if held > refusal.held {
            (refusal.held, refusal.passed_seconds) = (held, Some(now_seconds));
            refusal.ceiling = refusal.ceiling.max(held.saturating_add(refusal.step));
            refusal.step = (2 * refusal.step).min(MOST_AT_ONCE);
            refusal.pause_seconds = 0.0;
        } else if now_seconds >= refusal.due_seconds {
            refusal.ceiling = refusal.ceiling.max(refusal.held.saturating_add(1));
        }
    }

    /// The most that may be open; None: no bound is known.
    pub fn ceiling(&self) -> Option<u32> {
        self.refusal.map(|refusal| refusal.ceiling)
    }

    /// What was open when another one was refused; None once more was let in.
    pub fn held(&self) -> Option<u32> {
        self.refusal.filter(|refusal| refusal.passed_seconds.is_none()).map(|refusal| refusal.held)
    }

    /// The most that was seen to be let in: what was open when another one was refused, or more since.
    pub fn let_in(&self) -> Option<u32> {
        self.refusal.map(|refusal| refusal.held)
    }
}

/// What is known of one pod of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodCeiling {
    /// [`Refused::ceiling`] of its agent.
    pub ceiling: Option<u32>,
    /// What it holds, or the most that it may hold where that is not known; sessions not, which the ceiling does not count either.
    pub held: u32,
}

impl PodCeiling {
    /// What its agent reported, and what the database refuses it as far as that still counts; of one that has not reported the
    /// share counts. `for_sessions`: what of the share is for the session alias.
    pub fn of(report: Option<&StatusReport>, full: Option<&ServerFull>, share: u32, for_sessions: u32) -> Self {
        let held = report.and_then(|report| {
            let of_sessions = report.session_alias.as_ref().map_or(0, |alias| alias.held);
            Some(report.held?.held.saturating_sub(of_sessions))
        });
        Self {
            ceiling: full.map(|full| full.at_most),
            held: held.unwrap_or_else(|| share.saturating_sub(for_sessions)),
        }
    }
}

/// What the whole pool may hold beside its sessions, while the database refuses more to one of its pods.
pub fn of_pool(pods: impl Iterator<Item = PodCeiling>) -> Option<u32> {
    let (mut most, mut is_refused) = (0_u32, false);
    for pod in pods {
        is_refused |= pod.ceiling.is_some();
        most = most.saturating_add(pod.ceiling.unwrap_or(pod.held));
    }
    is_refused.then_some(most)
}

/// Takes a wish back to what the database lets in. It wins over every bound but the share.
pub fn check(wish: u32, ceiling: Option<u32>) -> Option<Limit> {
    let size = ceiling.filter(|ceiling| wish > *ceiling)?;
    let message = format!(
        "the database refuses server connections beyond {size}: {size} instead of {wish}; one more is tried from time to time"
    );
    Some(Limit { size, reason: Reason::ServerFull, message })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A server that lets in `room`, and one second after the other, in which the pod opens what it may and wants.
    fn run(refused: &mut Refused, seconds: std::ops::Range<u32>, room: u32, wanted: u32) -> (u32, u32) {
        let (mut open, mut refusals) = (0, 0);
        for now in seconds {
            let now = f64::from(now);
            let aim = wanted.min(refused.ceiling().unwrap_or(u32::MAX));
            open = aim.min(room);
            if aim > room {
                refusals += 1;
                refused.hear();
            }
            refused.observe(now, open);
        }
        (open, refusals)
    }

    #[test]
    fn a_pod_is_held_at_what_was_let_in_and_tries_one_more_ever_more_rarely() {
        let mut refused = Refused::new(0);
        let (open, refusals) = run(&mut refused, 0..1800, 3, 20);
        assert_eq!((open, refused.held()), (3, Some(3)));
        assert!((10..25).contains(&refusals), "{refusals}");
        assert!(refused.ceiling().is_some_and(|ceiling| ceiling <= 4));
    }

    #[test]
    fn a_refusal_that_passes_is_forgotten_within_seconds_of_the_next_try() {
        let mut refused = Refused::new(0);
        run(&mut refused, 0..8, 3, 20);
        let (open, refusals) = run(&mut refused, 8..30, 20, 20);
        assert_eq!((open, refusals), (20, 0));
    }

    #[test]
    fn after_a_long_pause_too_more_is_tried_step_by_step_once_one_was_let_in() {
        for (room, wanted) in [(4, 4), (4, 20)] {
            let mut refused = Refused::new(0);
            run(&mut refused, 0..300, 3, 20);
            let passed =
                (300..600).find(|&now| run(&mut refused, now..now + 1, 4, 20).0 == 4).expect("one more is tried");
            for now in passed + 1..passed + 30 {
                assert!(refused.ceiling().is_some_and(|ceiling| ceiling <= 6), "{now}: {refused:?}");
                assert_eq!(refused.let_in(), Some(4), "{now}");
                run(&mut refused, now..now + 1, room, wanted);
            }
        }
    }

    #[test]
    fn what_nobody_wants_more_of_is_forgotten_after_minutes() {
        let mut refused = Refused::new(0);
        refused.refused(0.0, 3);
        run(&mut refused, 1..299, 20, 2);
        assert!(refused.ceiling().is_some());
        run(&mut refused, 299..302, 20, 2);
        assert_eq!(refused.ceiling(), None);
    }

    #[test]
    fn a_pod_that_is_let_in_nothing_may_still_try_one() {
        let mut refused = Refused::new(0);
        refused.refused(0.0, 0);
        assert_eq!((refused.ceiling(), refused.held()), (Some(1), Some(0)));
        refused.observe(1.0, 1);
        assert_eq!((refused.ceiling(), refused.held()), (Some(2), None), "it has passed");
    }

    #[test]
    fn refusals_of_one_try_count_once() {
        let mut refused = Refused::new(0);
        for now in [0.0, 0.5, 2.0] {
            refused.refused(now, 4);
        }
        refused.observe(FIRST_PAUSE_SECONDS, 4);
        assert_eq!(refused.ceiling(), Some(5));
    }

    #[test]
    fn of_a_pool_counts_what_its_pods_hold_together() {
        let pod = |ceiling, held| PodCeiling { ceiling, held };
        assert_eq!(of_pool([pod(None, 3), pod(None, 9)].into_iter()), None);
        assert_eq!(of_pool([pod(Some(4), 3), pod(None, 9)].into_iter()), Some(13));
        assert_eq!(check(20, Some(13)).map(|limit| (limit.size, limit.reason)), Some((13, Reason::ServerFull)));
        assert_eq!(check(13, Some(13)), None);
    }

    proptest! {
        #[test]
        fn never_more_than_one_beyond_a_refusal_before_one_was_let_in(
            rooms in prop::collection::vec((1..400_u32, 0..30_u32, 0..60_u32), 1..20),
        ) {
            let mut refused = Refused::new(20);
            let mut now = 0;
            for (seconds, room, wanted) in rooms {
                run(&mut refused, now..now + seconds, room, wanted);
                now += seconds;
                if let (Some(ceiling), Some(held)) = (refused.ceiling(), refused.held()) {
                    prop_assert!(ceiling >= 1 && ceiling <= held.max(1) + MOST_AT_ONCE);
                }
            }
        }
    }
}
