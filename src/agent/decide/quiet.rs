//! PURE: when server connections may be told to end without cutting one that is just being opened. State, observation and now in;
//! the next action out.
//!
//! A RELOAD that changes how the database is reached, a RECONNECT and a PAUSE have PgBouncer close the server connections that log in at
//! that moment, and take each for a login that has failed (`tag_pool_dirty` and `disconnect_server` of its `objects.c`). No other one is
//! opened before `server_login_retry` is over. Those that work end with their transactions meanwhile, and once none is left every
//! client that asks is cut: "server login has been failing, cached error: connect string changed" (`check_fast_fail`).
//!
//! So whoever tells them to end waits until none logs in. Where clients queue one login follows the other, and one can begin between
//! the look and the command: so PgBouncer is kept from opening more, by a `default_pool_size` of what is open already, and of 1 at
//! the end, which lets none begin while one is open. Where none is open the first one is had opened and waited for, but not
//! for long: nothing is open either where logins fail, and new credentials may be what mends that.
//!
//! Times are milliseconds on a clock that does not jump.

use crate::{agent::decide::machine::Millis, contract::LimitsReadBack};

/// Longest time that logins are waited for.
pub const LONGEST: Millis = 10_000;
/// The same for a first connection: PgBouncer's maintenance, three times a second, and a login.
const FIRST: Millis = 1000;
/// Who has not looked for so long does not wait any more.
const FORGOTTEN: Millis = 1000;

/// One look at a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginsSeen {
    /// Server connections that log in, those of the session alias included.
    pub logins: u32,
    /// Server connections of the database itself, in all states.
    pub held: u32,
    /// The limits in force, read back before the look.
    pub limits: LimitsReadBack,
}

/// Bounds that PgBouncer opens server connections within, in server connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpeningBounds {
    /// `default_pool_size`; at least 1.
    pub pool_size: u32,
    /// `min_pool_size`.
    pub min_pool_size: u32,
}

impl OpeningBounds {
    fn of(limits: &LimitsReadBack) -> Self {
        Self { pool_size: limits.pool_size, min_pool_size: limits.min_pool_size }
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clearance {
    /// Set these, read them back, and look again.
    Hold(OpeningBounds),
    /// Look again in the next round.
    Wait,
    /// Nobody logs in, and nobody begins to.
    Go,
    /// Logins never ended.
    GoAnyway,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waiting {
    since: Millis,
    looked: Millis,
    /// In force before.
    before: OpeningBounds,
    bounds: OpeningBounds,
}

/// What is kept in mind of one process while its logins are waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quiet {
    waiting: Option<Waiting>,
}

impl Quiet {
    /// Takes in one look.
    pub fn step(&mut self, now: Millis, seen: &LoginsSeen) -> Clearance {
        self.expire(now);
        let in_force = OpeningBounds::of(&seen.limits);
        let start = Waiting { since: now, looked: now, before: in_force, bounds: in_force };
        let waiting = self.waiting.get_or_insert(start);
        waiting.looked = now;
        let waited = now.saturating_sub(waiting.since);
        let OpeningBounds { pool_size, min_pool_size } = waiting.before;
        waiting.bounds = if seen.limits.paused {
            // it opens none
            in_force
        } else if seen.logins > 0 {
            // 0 is "without limit" to PgBouncer
            let most = if pool_size == 0 { u32::MAX } else { pool_size };
            let pool_size = seen.held.clamp(1, most);
            OpeningBounds { pool_size, min_pool_size: min_pool_size.min(pool_size) }
        } else if seen.held > 0 {
            OpeningBounds { pool_size: 1, min_pool_size: min_pool_size.min(1) }
        } else {
            OpeningBounds { pool_size: 1, min_pool_size: 1 }
        };
        let is_held = in_force == waiting.bounds;
        if seen.logins == 0 && (seen.limits.paused || is_held && seen.held > 0 || seen.held == 0 && waited >= FIRST) {
            Clearance::Go
        } else if waited >= LONGEST {
            Clearance::GoAnyway
        } else if is_held {
            Clearance::Wait
        } else {
            Clearance::Hold(waiting.bounds)
        }
    }

    /// The command was given.
    pub fn is_over(&mut self) {
        self.waiting = None;
    }

    /// Whoever waited may have given up: what is held back is let go then.
    pub fn expire(&mut self, now: Millis) {
        if self.waiting.is_some_and(|waiting| now.saturating_sub(waiting.looked) >= FORGOTTEN) {
            self.waiting = None;
        }
    }

    /// What PgBouncer is kept within now.
    pub fn bounds(&self) -> Option<OpeningBounds> {
        self.waiting.map(|waiting| waiting.bounds)
    }

    /// The limits as they were before they were held back: what a RELOAD is to leave in force.
    pub fn without(&self, limits: LimitsReadBack) -> LimitsReadBack {
        self.waiting.map_or(limits, |Waiting { before, .. }| LimitsReadBack {
            pool_size: before.pool_size,
            min_pool_size: before.min_pool_size,
            ..limits
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: LimitsReadBack =
        LimitsReadBack { pool_size: 8, max_db_connections: 8, min_pool_size: 1, paused: false };

    fn seen(logins: u32, held: u32, (pool_size, min_pool_size): (u32, u32)) -> LoginsSeen {
        LoginsSeen { logins, held, limits: LimitsReadBack { pool_size, min_pool_size, ..LIMITS } }
    }

    fn hold(pool_size: u32, min_pool_size: u32) -> Clearance {
        Clearance::Hold(OpeningBounds { pool_size, min_pool_size })
    }

    #[test]
    fn a_pool_that_grows_is_kept_from_it_until_the_login_is_through_and_is_looked_at_once_more() {
        let mut quiet = Quiet::default();
        assert_eq!(quiet.step(0, &seen(1, 4, (8, 1))), hold(4, 1));
        assert_eq!(quiet.step(1, &seen(1, 4, (4, 1))), Clearance::Wait);
        assert_eq!(quiet.step(50, &seen(0, 4, (4, 1))), hold(1, 1));
        // one that came to its end made room for another in between
        assert_eq!(quiet.step(51, &seen(1, 4, (1, 1))), hold(4, 1));
        assert_eq!(quiet.step(100, &seen(0, 3, (4, 1))), hold(1, 1));
        assert_eq!(quiet.step(101, &seen(0, 3, (1, 1))), Clearance::Go);
        assert_eq!(quiet.without(LimitsReadBack { pool_size: 1, ..LIMITS }), LIMITS, "a RELOAD moves no limit");
    }

    #[test]
    fn the_first_connection_is_waited_for_but_not_where_none_can_be_opened() {
        let mut quiet = Quiet::default();
        assert_eq!(quiet.step(0, &seen(0, 0, (8, 0))), hold(1, 1));
        assert_eq!(quiet.step(1, &seen(0, 0, (1, 1))), Clearance::Wait);
        assert_eq!(quiet.step(300, &seen(1, 1, (1, 1))), hold(1, 0));
        assert_eq!(quiet.step(301, &seen(1, 1, (1, 0))), Clearance::Wait);
        assert_eq!(quiet.step(350, &seen(0, 1, (1, 0))), Clearance::Go);
        quiet.is_over();
        assert_eq!(quiet.step(400, &seen(0, 0, (8, 0))), hold(1, 1));
        assert_eq!(quiet.step(401, &seen(0, 0, (1, 1))), Clearance::Wait);
        assert_eq!(quiet.step(400 + FIRST, &seen(0, 0, (1, 1))), Clearance::Go, "logins fail");
        quiet.is_over();
        let paused = LimitsReadBack { paused: true, ..LIMITS };
        assert_eq!(quiet.step(5000, &LoginsSeen { logins: 0, held: 0, limits: paused }), Clearance::Go);
        quiet.is_over();
        let session = LoginsSeen { logins: 1, held: 0, limits: paused };
        assert_eq!(quiet.step(6000, &session), Clearance::Wait, "one of the session alias");
    }

    #[test]
    fn who_gives_up_holds_nothing_back_and_begins_anew() {
        let mut quiet = Quiet::default();
        assert_eq!(quiet.step(0, &seen(1, 4, (8, 1))), hold(4, 1));
        assert_eq!(quiet.bounds(), Some(OpeningBounds { pool_size: 4, min_pool_size: 1 }));
        quiet.expire(FORGOTTEN - 1);
        assert!(quiet.bounds().is_some());
        quiet.expire(FORGOTTEN);
        assert_eq!(quiet.bounds(), None);
        assert_eq!(quiet.step(2 * LONGEST, &seen(1, 4, (8, 1))), hold(4, 1));
    }

    /// A pool of PgBouncer: one login at a time, never more than its size, and never none where clients wait.
    #[derive(Clone, Copy, Debug)]
    struct Pool {
        open: u32,
        /// Until when one logs in.
        login: Option<Millis>,
        limits: LimitsReadBack,
    }

    impl Pool {
        fn held(self) -> u32 {
            self.open + u32::from(self.login.is_some())
        }

        fn run(&mut self, now: Millis, wish: Waiter) {
            if self.login.is_some_and(|until| now >= until) {
                self.login = None;
                self.open += 1;
            }
            // a connection past its lifetime
            if wish.ends && self.open > 1 {
                self.open -= 1;
            }
            let most = if wish.queue { self.limits.pool_size } else { self.limits.min_pool_size };
            if self.login.is_none() && self.held() < most {
                self.login = Some(now + wish.takes);
            }
        }
    }

    #[derive(Clone, Copy, Debug)]
    struct Waiter {
        queue: bool,
        ends: bool,
        takes: Millis,
    }

    fn wish() -> impl Strategy<Value = Waiter> {
        (prop::bool::weighted(0.8), prop::bool::weighted(0.2), 1..500_u64).prop_map(|(queue, ends, takes)| Waiter {
            queue,
            ends,
            takes,
        })
    }

    proptest! {
        #[test]
        fn nobody_logs_in_when_connections_are_told_to_end_however_clients_queue(
            open in 0..9_u32,
            pool_size in 1..9_u32,
            wishes in prop::collection::vec(wish(), 400),
        ) {
            let limits = LimitsReadBack { pool_size, ..LIMITS };
            let mut pool = Pool { open: open.min(pool_size), login: None, limits };
            let mut quiet = Quiet::default();
            let mut now = 0;
            let mut wishes = wishes.into_iter().cycle();
            'rounds: loop {
                now += 50;
                prop_assert!(now < LONGEST, "logins end");
                for _ in 0..4 {
                    now += 1;
                    pool.run(now, wishes.next().unwrap());
                    let observed = LoginsSeen {
                        logins: pool.login.is_some().into(),
                        held: pool.held(),
                        limits: pool.limits,
                    };
                    match quiet.step(now, &observed) {
                        Clearance::Hold(OpeningBounds { pool_size, min_pool_size }) => {
                            pool.limits = LimitsReadBack { pool_size, min_pool_size, ..limits };
                        }
                        Clearance::Wait => break,
                        Clearance::GoAnyway => return Err(TestCaseError::fail("before its time")),
                        Clearance::Go => break 'rounds,
                    }
                }
            }
            // until the command is there clients queue on
            for _ in 0..5 {
                now += 1;
                pool.run(now, wishes.next().unwrap());
                prop_assert!(pool.login.is_none(), "{pool:?}");
            }
            prop_assert_eq!(quiet.without(pool.limits), limits);
        }

        #[test]
        fn whatever_is_seen_it_ends_in_time(
            looks in prop::collection::vec((0..3_u32, 0..5_u32, 0..5_u32, 0..5_u32, any::<bool>()), 400)
        ) {
            let mut quiet = Quiet::default();
            let (mut looks, mut is_over) = (looks.into_iter().cycle(), false);
            for now in (0..=LONGEST).step_by(50) {
                let (logins, held, pool_size, min_pool_size, paused) = looks.next().unwrap();
                let limits = LimitsReadBack { pool_size, min_pool_size, paused, ..LIMITS };
                match quiet.step(now, &LoginsSeen { logins, held, limits }) {
                    Clearance::Go => {
                        prop_assert_eq!(logins, 0);
                        is_over = true;
                        break;
                    }
                    Clearance::GoAnyway => {
                        prop_assert!(now >= LONGEST);
                        is_over = true;
                        break;
                    }
                    Clearance::Hold(OpeningBounds { pool_size: bound, .. }) => {
                        prop_assert!(bound > 0 && bound <= held.max(pool_size).max(1));
                    }
                    Clearance::Wait => {}
                }
            }
            prop_assert!(is_over);
        }
    }
}
