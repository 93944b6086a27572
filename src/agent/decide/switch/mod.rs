//! PURE: how a pod goes from one configuration to another that needs a new process. State, observation and now in; the next
//! action out.
//!
//! The **active** slot is the one that new clients are led to; the **other** one is green while it proves itself, and blue once
//! it has been left. A configuration gets its first client after it has proven itself: its console answers, there is
//! room for it in the share, and the validation query came back through it from the database. Then clients are steered to
//! it; those that are connected stay where they are. Blue stays warm, so that a step back costs nothing, and ends when its last
//! client has gone. Until then no third configuration is tried.
//!
//! ```text
//! Steady -> Starting -> MakingRoom -> Proving -> Warm -> Draining -> Steady
//!    ^---------- green is killed ---------'        '- steered back: the slots change their places, Warm again
//! ```
//!
//! Where somebody promotes, a green that has proven itself is `AwaitingPromotion` instead of `Warm`: it gets no client and gives its
//! connections back. Promoted, it begins with `MakingRoom` again and proves itself anew, because what it proved may be long ago.
//!
//! Where the kernel leads no client to one of two sockets, both slots share one, and whoever listens gets clients
//! ([`Way::HandOver`]). Then green proves itself without that socket, ends, and starts again with it; as soon as it answers,
//! blue stops listening, for good, and drains. Where that would cut those that are just logging in, it first accepts nobody for a
//! while, until none does ([`Door`]).
//!
//! ```text
//! Steady -> Starting -> MakingRoom -> Proving -> Replacing -> Taking -> Draining -> Steady
//! ```
//!
//! Times are milliseconds on a clock that does not jump.

pub mod alias;
pub mod division;
#[cfg(test)]
mod tests;

use crate::agent::decide::{
    machine::{ConsoleSeen, Millis},
    slot_name::SlotName,
};

/// A green process that has not answered its console for so long is given up.
pub const START_DEADLINE: Millis = 10_000;
/// How long the validation query may take. With a share of 1, blue waits for it.
pub const PROOF_DEADLINE: Millis = 3000;
/// How long blue may take to give up what green needs for its proof, where blue keeps something.
pub const ROOM_DEADLINE: Millis = 30_000;
/// How long those that blue has accepted may take to log in: longer than PgBouncer lets them by default (`client_login_timeout`).
const LOGINS_DEADLINE: Millis = 70_000;
/// First pause before a configuration that failed is tried again; doubled each time.
const FIRST_PAUSE: Millis = 2000;
/// Longest pause.
const LONGEST_PAUSE: Millis = 300_000;
/// Shortest time that blue is kept: a connection that was being made when clients were steered away may still come to it.
const SETTLE: Millis = 1000;
/// A process without clients that was asked to end and has not for so long ignores signals, and is killed.
const STOP_DEADLINE: Millis = 5000;
/// Between two rounds of closing idle clients of a slot that has to make way.
const CLOSING_PACE: Millis = 200;

/// What the pod is to run, seen from its slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// What the active slot runs, or can take over while it runs.
    Active,
    /// What the other slot runs, or can take over while it runs.
    Other,
    /// What needs a new process.
    New {
        /// Tells one configuration from another.
        version: u64,
    },
}

/// Whether a green that has proven itself takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promotion {
    /// It does: by itself, or because somebody has promoted it.
    Given,
    /// It waits for somebody.
    Awaited,
}

/// How new clients come from one slot to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Each slot has a socket, and the kernel is told which one is meant.
    Steer,
    /// Both share one; the one that is left stops listening.
    HandOver,
}

/// What another agent left in the other slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// No process.
    Nothing,
    /// One that no client could come to since its start.
    WithoutClients,
    /// One that listens on the shared socket, beside the active slot's.
    Listening,
    /// One that clients came to and come to no more.
    WithClients,
}

/// Whether the active slot's process can be told to stop listening for good, where the socket is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// It accepts clients, and would refuse those that have not logged in.
    Open,
    /// It accepts nobody for a while, and those that it has accepted log in.
    Closed,
    /// It would refuse nobody.
    Clear,
}

/// Whether the process in the other slot has proven itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GreenProof {
    /// Not asked, or no answer yet.
    Open,
    /// The validation query came back and the limits are as given.
    Given,
    /// It cannot work.
    Failed,
}

/// What is seen of the other slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherSeen {
    /// Whether its process runs.
    pub running: bool,
    /// What its console said.
    pub console: ConsoleSeen,
    /// Whether it has proven itself.
    pub proof: GreenProof,
    /// Clients that are connected to it; None while unknown.
    pub clients: Option<u32>,
    /// Whether its process can open no server connection any more, and has none: its clients are better off elsewhere.
    pub forlorn: bool,
    /// Whether its process does not answer and never will.
    pub hung: bool,
}

/// One observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotsSeen {
    /// The slot that new clients are led to.
    pub active: SlotName,
    /// Whether the active slot's process answers.
    pub serving: bool,
    /// Whether the active slot's process can stop listening.
    pub door: Door,
    /// Whether the active slot holds no more than [`division::beside`] leaves it, read back.
    pub room: bool,
    /// The other slot.
    pub other: OtherSeen,
    /// What the pod is to run.
    pub wanted: Placement,
    /// How new clients come to another slot.
    pub way: Way,
    /// The share of the pod.
    pub share: u32,
    /// Whether we ourselves ran on time. When not, silence says nothing.
    pub punctual: bool,
    /// Whether a green that has proven itself takes over.
    pub promotion: Promotion,
    /// How long blue stays warm.
    pub scale_down_delay: Millis,
    /// How long a slot may keep clients once another configuration waits for its place. 0: without limit.
    pub drain_timeout: Millis,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwitchAction {
    /// Start a process with the wanted configuration. No client comes to it before it is steered to.
    Start(SlotName),
    /// Start a process with the configuration that has just proven itself, which listens on the shared socket.
    Listen(SlotName),
    /// Send the validation query through it.
    Prove(SlotName),
    /// Have the active slot's process accept nobody for a while.
    Close(SlotName),
    /// Lead new clients to it; where the socket is shared, by having the active slot stop listening.
    Steer(SlotName),
    /// Close clients that hold no server connection, a few.
    CloseIdle(SlotName),
    /// End a process that nobody is connected to.
    Stop(SlotName),
    /// Kill a process that has no client, or whose clients get no answer any more.
    Kill(SlotName),
}

/// How far the switch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwitchPhase {
    /// One slot runs.
    Steady,
    /// Green's process starts.
    Starting {
        /// Since when.
        since: Millis,
        /// What it runs.
        version: u64,
    },
    /// Blue gives up what green needs for its proof.
    MakingRoom {
        /// Since when.
        since: Millis,
        /// What green runs.
        version: u64,
    },
    /// The validation query is on its way.
    Proving {
        /// Since when.
        since: Millis,
        /// What green runs.
        version: u64,
    },
    /// Green has proven itself and waits for somebody to promote it. It holds no connection.
    AwaitingPromotion {
        /// What green runs.
        version: u64,
    },
    /// The process that has proven itself without clients ends, to be started again with the shared socket.
    Replacing {
        /// Since when.
        since: Millis,
        /// What it runs.
        version: u64,
    },
    /// Green listens on the shared socket, beside blue, as soon as it has started.
    Taking {
        /// Since when.
        since: Millis,
        /// What it runs.
        version: u64,
    },
    /// The other slot was left and is kept for a step back.
    Warm {
        /// Since when.
        since: Millis,
        /// What the active slot runs; None after a step back.
        version: Option<u64>,
    },
    /// The other slot ends with its last client.
    Draining {
        /// Since when another configuration waits for its place.
        waiting_since: Option<Millis>,
    },
}

/// Why a configuration was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwitchFailure {
    /// Its process ended.
    Ended,
    /// Its console did not answer, or does no more.
    NeverAnswered,
    /// The active slot could not give up enough.
    NoRoom,
    /// The validation query failed, or did not come back.
    NotProven,
    /// It ended or hung while the one before was still warm.
    EndedWarm,
}

/// A configuration that was given up, until it is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// Which one.
    pub version: u64,
    /// Why.
    pub failure: SwitchFailure,
    /// When it is tried again.
    pub until: Millis,
    pause: Millis,
}

/// The state of a pod's two slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    phase: SwitchPhase,
    given_up: Option<GivenUp>,
    closed_at: Millis,
    /// When new clients were led to the active slot.
    steered_at: Millis,
    /// Since when the other slot's process has been asked to end.
    stopping_since: Option<Millis>,
}

impl Default for Switch {
    fn default() -> Self {
        Self { phase: SwitchPhase::Steady, given_up: None, closed_at: 0, steered_at: 0, stopping_since: None }
    }
}

impl Switch {
    /// Steering failed at `now`: what runs beside the active slot is what it was before, if it had clients.
    pub fn not_steered(&mut self, now: Millis, left: Left) {
        *self = Self { given_up: self.given_up, ..Self::resume(now, left) };
    }

    /// Takes up at `now` what another agent left: the other slot drains if it ever had clients, and is killed at the next step
    /// if not. One that listens beside the active slot had proven itself, and is the one to go on with.
    pub fn resume(now: Millis, left: Left) -> Self {
        // no version is like its own
        let version = u64::MAX;
        let phase = match left {
            Left::Nothing => SwitchPhase::Steady,
            Left::Listening => SwitchPhase::Taking { since: now, version },
            Left::WithClients => SwitchPhase::Draining { waiting_since: None },
            // a green of unknown proof is taken back
            Left::WithoutClients => SwitchPhase::Starting { since: now, version },
        };
        Self { phase, steered_at: now, ..Self::default() }
    }

    /// How far the switch is.
    pub fn phase(&self) -> SwitchPhase {
        self.phase
    }

    /// The configuration that was given up last, unless it has worked since.
    pub fn given_up(&self) -> Option<GivenUp> {
        self.given_up
    }

    /// Takes in one observation.
    pub fn step(&mut self, now: Millis, seen: &SlotsSeen) -> Option<SwitchAction> {
        let other = seen.active.other();
        match self.phase {
            SwitchPhase::Steady => self.steady(now, seen),
            SwitchPhase::Starting { version, .. }
            | SwitchPhase::MakingRoom { version, .. }
            | SwitchPhase::Proving { version, .. }
            | SwitchPhase::AwaitingPromotion { version } => {
                if seen.wanted != (Placement::New { version }) || seen.share == 0 {
                    self.phase = SwitchPhase::Steady;
                    return seen.other.running.then_some(SwitchAction::Kill(other));
                }
                self.prove(now, version, seen)
            }
            SwitchPhase::Replacing { since, version } => self.replace(now, since, version, seen),
            SwitchPhase::Taking { since, version } => self.take(now, since, version, seen),
            SwitchPhase::Warm { since, version } => {
                if !seen.other.running {
                    self.phase = SwitchPhase::Steady;
                    return None;
                }
                if !seen.serving
                    && !seen.other.hung
                    && let Some(version) = version
                {
                    self.give_up(now, version, SwitchFailure::EndedWarm);
                    self.phase = SwitchPhase::Warm { since: now, version: None };
                    return Some(SwitchAction::Steer(other));
                }
                if seen.wanted == Placement::Other && !seen.other.hung {
                    self.phase = SwitchPhase::Warm { since: now, version: None };
                    return Some(SwitchAction::Steer(other));
                }
                let makes_way = seen.other.hung || seen.other.forlorn || matches!(seen.wanted, Placement::New { .. });
                let delay = if makes_way { SETTLE } else { seen.scale_down_delay.max(SETTLE) };
                if now.saturating_sub(since) >= delay {
                    self.stopping_since = None;
                    self.phase = SwitchPhase::Draining { waiting_since: None };
                }
                None
            }
            SwitchPhase::Draining { waiting_since } => self.drain(now, waiting_since, seen),
        }
    }

    fn steady(&mut self, now: Millis, seen: &SlotsSeen) -> Option<SwitchAction> {
        let other = seen.active.other();
        let Placement::New { version } = seen.wanted else {
            self.given_up = None;
            return None;
        };
        if seen.other.running || !seen.serving || seen.share == 0 {
            return None;
        }
        if let Some(given_up) = &mut self.given_up {
            if given_up.version != version {
                self.given_up = None;
            } else if now < given_up.until {
                return None;
            }
        }
        self.phase = SwitchPhase::Starting { since: now, version };
        Some(SwitchAction::Start(other))
    }

    fn prove(&mut self, now: Millis, version: u64, seen: &SlotsSeen) -> Option<SwitchAction> {
        let other = seen.active.other();
        if !seen.other.running {
            self.give_up(now, version, SwitchFailure::Ended);
            self.phase = SwitchPhase::Steady;
            return None;
        }
        let (since, deadline, failure) = match self.phase {
            SwitchPhase::AwaitingPromotion { .. } => {
                if seen.promotion == Promotion::Given {
                    self.phase = SwitchPhase::MakingRoom { since: now, version };
                    return None;
                }
                if !seen.other.hung {
                    return None;
                }
                (now, 0, SwitchFailure::NeverAnswered)
            }
            SwitchPhase::MakingRoom { since, .. } => {
                if seen.room {
                    self.phase = SwitchPhase::Proving { since: now, version };
                    return Some(SwitchAction::Prove(other));
                }
                let deadline = if seen.share == 1 { PROOF_DEADLINE } else { ROOM_DEADLINE };
                (since, deadline, SwitchFailure::NoRoom)
            }
            SwitchPhase::Proving { since, .. } => {
                if seen.other.proof == GreenProof::Given && seen.promotion == Promotion::Awaited {
                    self.given_up = None;
                    self.phase = SwitchPhase::AwaitingPromotion { version };
                    return None;
                }
                if seen.other.proof == GreenProof::Given {
                    if seen.way == Way::HandOver {
                        self.phase = SwitchPhase::Replacing { since: now, version };
                        return Some(SwitchAction::Kill(other));
                    }
                    self.given_up = None;
                    self.phase = SwitchPhase::Warm { since: now, version: Some(version) };
                    return Some(SwitchAction::Steer(other));
                }
                let deadline = if seen.other.proof == GreenProof::Failed { 0 } else { PROOF_DEADLINE };
                (since, deadline, SwitchFailure::NotProven)
            }
            SwitchPhase::Starting { since, .. } => {
                if seen.other.console == ConsoleSeen::Answered {
                    self.phase = SwitchPhase::MakingRoom { since: now, version };
                    return None;
                }
                (since, START_DEADLINE, SwitchFailure::NeverAnswered)
            }
            _ => return None,
        };
        // While we lack CPU so does green: but blue with a share of 1 waits for it and has the right of way.
        let patient = !seen.punctual && seen.share > 1 && failure != SwitchFailure::NotProven;
        if now.saturating_sub(since) < deadline || patient {
            return None;
        }
        self.give_up(now, version, failure);
        self.phase = SwitchPhase::Steady;
        Some(SwitchAction::Kill(other))
    }

    fn replace(&mut self, now: Millis, since: Millis, version: u64, seen: &SlotsSeen) -> Option<SwitchAction> {
        let other = seen.active.other();
        if seen.other.running {
            return Some(SwitchAction::Kill(other));
        }
        if seen.wanted != (Placement::New { version }) || seen.share == 0 {
            self.phase = SwitchPhase::Steady;
        } else if seen.room {
            self.phase = SwitchPhase::Taking { since: now, version };
            return Some(SwitchAction::Listen(other));
        } else if now.saturating_sub(since) >= if seen.share == 1 { PROOF_DEADLINE } else { ROOM_DEADLINE } {
            self.give_up(now, version, SwitchFailure::NoRoom);
            self.phase = SwitchPhase::Steady;
        }
        None
    }

    /// Clients may come to it already, so whatever is wanted meanwhile, it goes on to the end.
    fn take(&mut self, now: Millis, since: Millis, version: u64, seen: &SlotsSeen) -> Option<SwitchAction> {
        let other = seen.active.other();
        if !seen.other.running {
            self.give_up(now, version, SwitchFailure::Ended);
            self.phase = SwitchPhase::Steady;
            return None;
        }
        // of a share of 1, blue has nothing until then
        let deadline = if seen.share == 1 { START_DEADLINE } else { LOGINS_DEADLINE };
        let is_over = now.saturating_sub(since) >= deadline;
        if seen.other.console == ConsoleSeen::Answered {
            match seen.door {
                Door::Open if !is_over => return Some(SwitchAction::Close(seen.active)),
                Door::Closed if !is_over => return None,
                Door::Open | Door::Closed | Door::Clear => {}
            }
            self.given_up = None;
            (self.steered_at, self.stopping_since) = (now, None);
            self.phase = SwitchPhase::Draining { waiting_since: None };
            return Some(SwitchAction::Steer(other));
        }
        if now.saturating_sub(since) < START_DEADLINE || !seen.punctual {
            return None;
        }
        self.give_up(now, version, SwitchFailure::NeverAnswered);
        self.phase = SwitchPhase::Steady;
        Some(SwitchAction::Kill(other))
    }

    fn drain(&mut self, now: Millis, waiting_since: Option<Millis>, seen: &SlotsSeen) -> Option<SwitchAction> {
        let other = seen.active.other();
        if !seen.other.running {
            self.phase = SwitchPhase::Steady;
            return None;
        }
        if seen.wanted == Placement::Other && !seen.other.hung && seen.way == Way::Steer {
            self.phase = SwitchPhase::Warm { since: now, version: None };
            return Some(SwitchAction::Steer(other));
        }
        if seen.other.hung {
            return Some(SwitchAction::Kill(other));
        }
        // those that it is just accepting are not counted yet
        if seen.other.clients == Some(0) && now.saturating_sub(self.steered_at) >= SETTLE {
            let Some(since) = self.stopping_since else {
                self.stopping_since = Some(now);
                return Some(SwitchAction::Stop(other));
            };
            return (now.saturating_sub(since) >= STOP_DEADLINE).then_some(SwitchAction::Kill(other));
        }
        let waiting_since = matches!(seen.wanted, Placement::New { .. }).then(|| waiting_since.unwrap_or(now));
        self.phase = SwitchPhase::Draining { waiting_since };
        let is_over = waiting_since
            .is_some_and(|since| seen.drain_timeout > 0 && now.saturating_sub(since) >= seen.drain_timeout);
        if !is_over && !seen.other.forlorn || now.saturating_sub(self.closed_at) < CLOSING_PACE {
            return None;
        }
        self.closed_at = now;
        Some(SwitchAction::CloseIdle(other))
    }

    fn give_up(&mut self, now: Millis, version: u64, failure: SwitchFailure) {
        let before = self.given_up.filter(|given_up| given_up.version == version);
        let pause = before.map_or(FIRST_PAUSE, |before| (2 * before.pause).min(LONGEST_PAUSE));
        self.given_up = Some(GivenUp { version, failure, until: now.saturating_add(pause), pause });
    }
}
