//! A small world with processes, clients and a database, in which the production code runs and everything goes wrong.
//!
//! Faults that were planted to see that it finds them: clients steered to green before its proof; a slot that grows before the
//! other one has given up; blue ended while the number of its clients is unknown; an agent that takes up a blue with clients
//! as if it were a green; a green that is led clients to although nobody has promoted it; blue ended while somebody was just logging
//! in to it; an agent that gives away what a blue that nobody can ask may still open; a blue that refuses those who log in told to stop
//! listening while somebody does. Each failed within a second.
//!
//! Half of the worlds lead clients to one of two sockets, in the others both slots share one: there, whoever listens gets clients. In
//! half of them a process that is told to stop listening refuses those who log in, and leaves its console open.

use proptest::prelude::*;

use super::{
    division::{SlotLoad, allowed, beside, divide, trial},
    *,
};

const STEP: Millis = 50;
const DELAY: Millis = 2000;
const DRAIN: Millis = 5000;
/// How long a client takes to log in.
const LOGIN: Millis = 3000;
/// How long a process accepts nobody, and how long the agent counts on that.
const SHUT: Millis = 5000;
const COUNTED_ON: Millis = 4000;

#[derive(Clone, Copy, Debug)]
struct Config {
    version: u64,
    /// Whether the database accepts it.
    works: bool,
    /// When its console answers after the start; None: never.
    answers_after: Option<Millis>,
}

#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "what can go wrong with a process goes wrong independently")]
struct Process {
    config: Config,
    started: Millis,
    hung: bool,
    /// It ignores signals.
    deaf: bool,
    /// Where the socket is shared: it takes clients.
    listens: bool,
    /// It accepts nobody before.
    shut_until: Millis,
    /// It was told to end with its last client. Unless it is deaf it lets nobody in any more, not to its console either.
    leaving: bool,
    /// Whether an agent can ask it: one that lets nobody in by a connection from before alone.
    heard: bool,
    /// A query came back through it, or it served before it was started again.
    proven: bool,
    asked: Option<Millis>,
    bound: u32,
    held: u32,
    clients: u32,
    /// Clients that are not among `clients` before they have logged in, and when that is.
    logging_in: u32,
    logged_in_at: Millis,
    /// Of all, those that never leave by themselves.
    stay: u32,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Nothing,
    Wait(u16),
    Revise { works: bool, answers_after: Option<u16> },
    BackToThePreviousOne,
    ProcessDies(usize),
    ProcessHangs(usize),
    ProcessTurnsDeaf(usize),
    AgentDies,
    ClientsCome { some: u8, stay: u8 },
    ClientsLeave,
    Share(u8),
    Promote(Promotion),
}

struct World {
    now: Millis,
    way: Way,
    /// Whether those who log in are refused by a process that stops listening.
    refuses: bool,
    /// When the agent had the active slot's process accept nobody.
    shut_at: Option<Millis>,
    /// Configurations that a query came back through.
    worked: Vec<u64>,
    switch: Switch,
    steered: SlotName,
    had_clients: [bool; 2],
    slots: [Option<Process>; 2],
    wanted: Config,
    previous: Config,
    share: u32,
    floor: u32,
    /// What the first slot is to get.
    part: u32,
    waiting_in_queue: u32,
    late: bool,
    /// Whether green takes over once it has proven itself.
    promotion: Promotion,
}

impl Process {
    fn new(config: Config, now: Millis) -> Self {
        Self {
            config,
            started: now,
            hung: false,
            deaf: false,
            listens: false,
            shut_until: 0,
            leaving: false,
            heard: true,
            proven: false,
            asked: None,
            bound: 0,
            held: 0,
            clients: 0,
            logging_in: 0,
            logged_in_at: 0,
            stay: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.clients + self.logging_in == 0
    }

    /// Whether nobody can ask it anything any more.
    fn is_mute(&self) -> bool {
        self.leaving && !self.listens && !self.heard
    }
}

impl World {
    fn new() -> Self {
        let config = Config { version: 1, works: true, answers_after: Some(0) };
        let process = Process { proven: true, bound: 8, listens: true, ..Process::new(config, 0) };
        Self {
            now: 1,
            way: Way::Steer,
            refuses: false,
            shut_at: None,
            worked: vec![config.version],
            switch: Switch::default(),
            steered: SlotName::A,
            had_clients: [true, false],
            slots: [Some(process), None],
            wanted: config,
            previous: config,
            share: 8,
            floor: 1,
            part: 8,
            waiting_in_queue: 0,
            late: false,
            promotion: Promotion::Given,
        }
    }

    fn answers(&self, slot: usize) -> bool {
        self.slots[slot].is_some_and(|process| {
            !process.hung && process.config.answers_after.is_some_and(|after| self.now >= process.started + after)
        })
    }

    fn observation(&self) -> SlotsSeen {
        let (active, other) = (self.steered.index(), self.steered.other().index());
        let process = self.slots[other];
        let proof = match process.and_then(|process| process.asked.map(|at| (process, at))) {
            Some((process, at)) if self.now >= at + 100 && !process.hung => {
                if process.config.works {
                    GreenProof::Given
                } else {
                    GreenProof::Failed
                }
            }
            _ => GreenProof::Open,
        };
        let mute = process.is_some_and(|process| process.is_mute());
        let answers = self.answers(other) && !mute;
        let of = |slot: usize| self.slots[slot].map(|process| process.config.version);
        let wanted = if of(active) == Some(self.wanted.version) {
            Placement::Active
        } else if of(other) == Some(self.wanted.version)
            && process.is_some_and(|process| process.proven)
            && self.way == Way::Steer
        {
            Placement::Other
        } else {
            Placement::New { version: self.wanted.version }
        };
        SlotsSeen {
            active: self.steered,
            serving: self.answers(active),
            door: self.door(),
            room: self.slots[active]
                .is_some_and(|process| process.bound.max(process.held) <= beside(self.share, self.floor)),
            other: OtherSeen {
                running: process.is_some(),
                console: match (mute, answers) {
                    (true, _) => ConsoleSeen::NotAsked,
                    (false, true) => ConsoleSeen::Answered,
                    (false, false) => ConsoleSeen::Silent,
                },
                proof,
                clients: process.filter(|_| answers).map(|process| process.clients + process.logging_in),
                forlorn: false,
                hung: process.is_some_and(|process| process.hung && self.now > process.started + START_DEADLINE),
            },
            wanted,
            way: self.way,
            share: self.share,
            punctual: !self.late,
            promotion: self.promotion,
            scale_down_delay: DELAY,
            drain_timeout: DRAIN,
        }
    }

    fn door(&self) -> Door {
        let active = self.steered.index();
        if !self.refuses || !self.answers(active) {
            return Door::Clear;
        }
        match (self.shut_at.is_some_and(|at| self.now < at + COUNTED_ON), self.slots[active]) {
            (false, _) => Door::Open,
            (true, Some(process)) if process.logging_in > 0 => Door::Closed,
            (true, _) => Door::Clear,
        }
    }

    fn bounds(&self) -> u32 {
        self.slots.iter().flatten().map(|process| process.bound.max(process.held)).sum()
    }

    /// The limits, as the loop around the machine sets them.
    fn limit(&mut self) {
        let (active, other) = (self.steered.index(), self.steered.other().index());
        let loads = [0, 1].map(|slot| {
            self.slots[slot].map_or(SlotLoad::default(), |process| SlotLoad {
                bound: process.bound.max(process.held),
                active: process.held.min(process.clients),
                waiting: process.clients.saturating_sub(process.bound),
                in_use: slot == active || process.clients > 0 || process.is_mute(),
            })
        });
        let mute = self.slots[other].filter(Process::is_mute);
        let green = match self.switch.phase() {
            SwitchPhase::Proving { .. } | SwitchPhase::Replacing { .. } | SwitchPhase::Taking { .. } => {
                Some((trial(self.share, self.floor), beside(self.share, self.floor)))
            }
            SwitchPhase::MakingRoom { .. } => Some((0, beside(self.share, self.floor))),
            SwitchPhase::Starting { .. } | SwitchPhase::AwaitingPromotion { .. } => Some((0, self.share)),
            _ => None,
        };
        let parts = match green {
            Some((green, blue)) => {
                let mut parts = [0, 0];
                (parts[other], parts[active]) = (green, blue);
                parts
            }
            None if self.slots[other].is_none() => {
                let mut parts = [0, 0];
                parts[active] = self.share;
                parts
            }
            None if mute.is_some() => {
                let part = self.share.saturating_sub(loads[other].bound).max(self.share.min(1));
                let mut parts = [0, 0];
                (parts[active], parts[other]) = (part, self.share - part);
                parts
            }
            None => {
                self.part = divide(self.share, self.part, loads);
                [self.part, self.share - self.part]
            }
        };
        self.part = parts[0];
        let allowed = allowed(self.share, parts, loads);
        for slot in [0, 1] {
            let (target, answers, sum) = (allowed[slot], self.answers(slot), self.bounds());
            let Some(process) = &mut self.slots[slot] else { continue };
            if !answers || process.is_mute() {
                continue;
            }
            // busy ones close as their transactions end
            if process.held > target {
                process.held -= 1;
            }
            if process.held <= target && process.bound != target {
                if target > process.bound {
                    let grown = sum - process.bound.max(process.held) + target;
                    assert!(grown <= self.share, "{grown} of a share of {}", self.share);
                }
                process.bound = target;
            }
        }
    }

    fn act(&mut self, action: SwitchAction) {
        let on_other = |slot: SlotName, world: &Self| assert_ne!(slot, world.steered, "{action:?} of the active slot");
        match action {
            SwitchAction::Start(slot) => {
                on_other(slot, self);
                let place = &mut self.slots[slot.index()];
                assert!(place.is_none(), "a third generation");
                *place = Some(Process::new(self.wanted, self.now));
                self.had_clients[slot.index()] = false;
            }
            SwitchAction::Listen(slot) => {
                on_other(slot, self);
                let part = trial(self.share, self.floor);
                let place = &mut self.slots[slot.index()];
                assert!(place.is_none(), "a third generation");
                assert!(self.worked.contains(&self.wanted.version), "it takes clients and has not proven itself");
                *place =
                    Some(Process { listens: true, proven: true, bound: part, ..Process::new(self.wanted, self.now) });
                self.had_clients[slot.index()] = true;
                assert!(self.bounds() <= self.share, "it opens connections as soon as clients come");
            }
            SwitchAction::Prove(slot) => {
                on_other(slot, self);
                let process = self.slots[slot.index()].as_mut().expect("a process");
                process.asked = Some(self.now);
                process.bound = trial(self.share, self.floor);
                assert!(self.bounds() <= self.share, "the query needs a connection");
            }
            SwitchAction::Close(slot) => {
                assert_eq!(slot, self.steered, "green is to go on accepting");
                self.shut_at = Some(self.now);
                self.slots[slot.index()].as_mut().expect("a process").shut_until = self.now + SHUT;
            }
            SwitchAction::Steer(slot) => {
                on_other(slot, self);
                let process = self.slots[slot.index()].as_mut().expect("steered to nobody");
                let came_back = process.asked.is_some_and(|at| self.now >= at + 100) && process.config.works;
                assert!(process.proven || came_back, "steered to a slot that has not proven itself");
                assert!(
                    process.proven || self.promotion == Promotion::Given,
                    "steered to a slot that nobody has promoted"
                );
                process.proven = true;
                self.worked.push(process.config.version);
                self.steered = slot;
                self.had_clients[slot.index()] = true;
                if self.way == Way::HandOver {
                    assert!(process.listens, "nobody would listen");
                    let heard = self.refuses || self.answers(slot.other().index());
                    self.shut_at = None;
                    if let Some(left) = &mut self.slots[slot.other().index()] {
                        assert!(!self.refuses || left.hung || left.logging_in == 0, "clients were refused");
                        (left.listens, left.leaving, left.heard) = (left.deaf, true, heard);
                    }
                }
            }
            SwitchAction::CloseIdle(slot) => {
                on_other(slot, self);
                let process = self.slots[slot.index()].as_mut().expect("a process");
                let idle = process.clients.saturating_sub(process.held).min(5);
                process.clients -= idle;
                process.stay = process.stay.min(process.clients);
            }
            SwitchAction::Stop(slot) => {
                on_other(slot, self);
                let process = self.slots[slot.index()].expect("a process");
                assert!(process.is_empty(), "clients were cut");
                if !process.deaf {
                    self.slots[slot.index()] = None;
                }
            }
            SwitchAction::Kill(slot) => {
                on_other(slot, self);
                let process = self.slots[slot.index()].take().expect("a process");
                assert!(process.is_empty() || process.hung, "clients were cut");
                let came_back = process.asked.is_some_and(|at| self.now >= at + 100) && process.config.works;
                if came_back {
                    self.worked.push(process.config.version);
                }
            }
        }
    }

    /// What goes on by itself: the dead active process is started again with what it ran, clients are accepted and work.
    fn live(&mut self) {
        let active = self.steered.index();
        if let Some(process) = self.slots[active].filter(|process| process.hung) {
            self.slots[active] = None;
            self.restart(process.config);
        }
        let takes = [0, 1].map(|slot| {
            let is_meant = match self.way {
                Way::Steer => slot == active,
                Way::HandOver => {
                    self.slots[slot].is_some_and(|process| process.listens && self.now >= process.shut_until)
                }
            };
            is_meant && self.answers(slot)
        });
        for slot in [active, 1 - active] {
            if takes[slot] {
                // where both listen, each gets some
                let both = slot == active && takes[1 - slot];
                let come = if both { self.waiting_in_queue.div_ceil(2) } else { self.waiting_in_queue };
                self.waiting_in_queue -= come;
                let worked = self.worked.clone();
                let process = self.slots[slot].as_mut().expect("it answers");
                assert!(worked.contains(&process.config.version), "a client on a slot that has not proven itself");
                if come > 0 {
                    (process.logging_in, process.logged_in_at) = (process.logging_in + come, self.now + LOGIN);
                }
            }
        }
        for slot in &mut self.slots {
            if slot.is_some_and(|process| process.is_mute() && !process.hung && process.is_empty()) {
                *slot = None;
            }
        }
        for process in self.slots.iter_mut().flatten() {
            if process.logging_in > 0 && self.now >= process.logged_in_at {
                process.clients += std::mem::take(&mut process.logging_in);
            }
            let busy = process.clients.min(process.bound);
            process.held = process.held.max(busy).min(process.bound.max(process.held));
        }
    }

    fn restart(&mut self, config: Config) {
        self.slots[self.steered.index()] =
            Some(Process { proven: true, listens: true, ..Process::new(config, self.now) });
    }

    fn happen(&mut self, event: Event) {
        self.late = false;
        match event {
            Event::Nothing => self.late = true,
            Event::Wait(steps) => (0..steps).for_each(|_| self.tick()),
            Event::Revise { works, answers_after } => {
                self.previous = self.wanted;
                self.wanted = Config {
                    version: self.wanted.version.max(self.previous.version) + 1 + self.now,
                    works,
                    answers_after: answers_after.map(Millis::from),
                };
            }
            Event::BackToThePreviousOne => std::mem::swap(&mut self.wanted, &mut self.previous),
            Event::ProcessDies(slot) => {
                if let Some(process) = self.slots[slot].take()
                    && slot == self.steered.index()
                {
                    self.restart(process.config);
                }
            }
            Event::ProcessHangs(slot) => {
                if let Some(process) = &mut self.slots[slot] {
                    process.hung = true;
                }
            }
            Event::ProcessTurnsDeaf(slot) => {
                if let Some(process) = &mut self.slots[slot] {
                    process.deaf = true;
                }
            }
            Event::AgentDies => {
                let other = self.steered.other().index();
                let left = match self.slots[other] {
                    None => Left::Nothing,
                    Some(process) if self.way == Way::HandOver && process.listens && !process.leaving => {
                        Left::Listening
                    }
                    Some(_) if self.had_clients[other] => Left::WithClients,
                    Some(_) => Left::WithoutClients,
                };
                (self.switch, self.shut_at) = (Switch::resume(self.now, left), None);
                let refuses = self.refuses;
                // what the new one knows of green, the old one has asked
                if let Some(process) = &mut self.slots[other] {
                    (process.asked, process.heard) = (None, !process.leaving || process.listens || refuses);
                }
            }
            Event::ClientsCome { some, stay } => {
                self.waiting_in_queue += u32::from(some) + u32::from(stay);
                if let Some(process) = &mut self.slots[self.steered.index()] {
                    process.stay += u32::from(stay);
                }
            }
            Event::ClientsLeave => {
                for process in self.slots.iter_mut().flatten() {
                    let left = process.stay;
                    process.clients = process.clients.min(left);
                    process.logging_in = process.logging_in.min(left - process.clients);
                    process.held = process.held.min(process.clients);
                }
            }
            Event::Share(share) => self.share = share.into(),
            Event::Promote(promotion) => self.promotion = promotion,
        }
        self.tick();
    }

    fn tick(&mut self) {
        self.now += STEP;
        self.live();
        let seen = self.observation();
        if let Some(action) = self.switch.step(self.now, &seen) {
            self.act(action);
        }
        self.limit();
    }

    /// No fault any more, a configuration that works, and clients that leave: how it ends.
    fn settle(&mut self) {
        self.share = self.share.max(1);
        self.promotion = Promotion::Given;
        self.wanted.works = true;
        self.wanted.answers_after = Some(30);
        for process in self.slots.iter_mut().flatten() {
            process.stay = 0;
        }
        for _ in 0..(2 * (LONGEST_PAUSE + START_DEADLINE) / STEP) {
            self.happen(Event::ClientsLeave);
            let active = self.slots[self.steered.index()];
            let done = active.is_some_and(|process| process.config.version == self.wanted.version);
            if done && self.switch.phase() == SwitchPhase::Steady && self.slots[self.steered.other().index()].is_none()
            {
                // the whole share comes back to the one slot
                (0..60).for_each(|_| self.tick());
                assert_eq!(self.slots[self.steered.index()].map(|process| process.bound), Some(self.share));
                return;
            }
        }
        panic!("it does not come to rest: {:?} {:?} {:?}", self.switch, self.observation(), self.slots);
    }
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => Just(Event::Nothing),
        6 => (1..80u16).prop_map(Event::Wait),
        4 => (any::<bool>(), prop_oneof![3 => (0..3000u16).prop_map(Some), 1 => Just(None)])
            .prop_map(|(works, answers_after)| Event::Revise { works, answers_after }),
        1 => Just(Event::BackToThePreviousOne),
        2 => (0..2usize).prop_map(Event::ProcessDies),
        1 => (0..2usize).prop_map(Event::ProcessHangs),
        1 => (0..2usize).prop_map(Event::ProcessTurnsDeaf),
        2 => Just(Event::AgentDies),
        3 => (0..20u8, 0..4u8).prop_map(|(some, stay)| Event::ClientsCome { some, stay }),
        3 => Just(Event::ClientsLeave),
        1 => (0..12u8).prop_map(Event::Share),
        2 => prop_oneof![Just(Promotion::Given), Just(Promotion::Awaited)].prop_map(Event::Promote),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// No client on a slot that has not proven itself, none cut, never more than the share, at most two generations, and an end.
    #[test]
    fn whatever_happens_the_promises_hold_and_it_comes_to_rest(
        events in prop::collection::vec(event(), 0..60),
        floor in 0..6u32,
        shared in any::<bool>(),
        refuses in any::<bool>(),
    ) {
        let way = if shared { Way::HandOver } else { Way::Steer };
        let mut world = World { way, refuses, floor, ..World::new() };
        for event in events {
            world.happen(event);
        }
        world.settle();
    }
}

impl World {
    /// The phases that a while of calm leads through, in their order.
    fn phases(&mut self) -> Vec<String> {
        let mut phases = Vec::new();
        for _ in 0..200 {
            self.happen(Event::Wait(0));
            let name = format!("{:?}", self.switch.phase()).split(' ').next().unwrap_or_default().to_owned();
            if phases.last() != Some(&name) {
                phases.push(name);
            }
        }
        phases
    }
}

#[test]
fn a_switch_in_a_calm_world_takes_the_steps_in_their_order() {
    let mut world = World::new();
    world.happen(Event::ClientsCome { some: 3, stay: 1 });
    world.happen(Event::Revise { works: true, answers_after: Some(100) });
    assert_eq!(world.phases(), ["Starting", "MakingRoom", "Proving", "Warm", "Draining"], "one client never leaves");
    assert_eq!((world.steered, world.slots[0].map(|blue| blue.clients)), (SlotName::B, Some(4)));
    world.settle();
    assert_eq!(world.slots.map(|slot| slot.is_some()), [false, true]);
}

#[test]
fn a_green_that_nobody_has_promoted_waits_without_a_connection_and_proves_itself_anew() {
    let mut world = World { promotion: Promotion::Awaited, ..World::new() };
    world.happen(Event::ClientsCome { some: 9, stay: 0 });
    world.happen(Event::Revise { works: true, answers_after: Some(100) });
    world.happen(Event::Wait(400));
    assert!(matches!(world.switch.phase(), SwitchPhase::AwaitingPromotion { .. }), "{:?}", world.switch.phase());
    let bounds = world.slots.map(|slot| slot.map(|process| process.bound));
    assert_eq!((world.steered, bounds), (SlotName::A, [Some(8), Some(0)]), "blue has the whole share");
    // one that dies meanwhile is replaced
    world.happen(Event::ProcessDies(1));
    world.happen(Event::Wait(400));
    assert!(matches!(world.switch.phase(), SwitchPhase::AwaitingPromotion { .. }), "{:?}", world.switch.phase());
    let asked = world.slots[1].and_then(|green| green.asked);
    world.happen(Event::Promote(Promotion::Given));
    world.happen(Event::Wait(20));
    assert_eq!(world.steered, SlotName::B);
    assert!(world.slots[1].and_then(|green| green.asked) > asked, "what it proved may be long ago");
    // what is not wanted any more does not wait
    let mut world = World { promotion: Promotion::Awaited, ..World::new() };
    world.happen(Event::Revise { works: true, answers_after: Some(100) });
    world.happen(Event::Wait(100));
    world.happen(Event::BackToThePreviousOne);
    assert_eq!((world.switch.phase(), world.slots[1].is_some()), (SwitchPhase::Steady, false));
}

#[test]
fn with_a_shared_socket_what_has_proven_itself_starts_again_and_listens_alone() {
    let mut world = World { way: Way::HandOver, ..World::new() };
    world.happen(Event::ClientsCome { some: 3, stay: 1 });
    world.happen(Event::Revise { works: true, answers_after: Some(100) });
    assert_eq!(world.phases(), ["Starting", "MakingRoom", "Proving", "Replacing", "Taking", "Draining"]);
    let listens = world.slots.map(|slot| slot.is_some_and(|process| process.listens));
    assert_eq!((world.steered, listens), (SlotName::B, [false, true]));
    world.settle();
}

#[test]
fn a_configuration_that_cannot_work_is_tried_ever_more_rarely_and_never_gets_a_client() {
    for (works, answers_after) in [(false, Some(10)), (true, None)] {
        let mut world = World::new();
        world.happen(Event::Revise { works, answers_after });
        let mut starts = 0;
        for _ in 0..(600_000 / STEP) {
            let before = world.slots[1].is_some();
            world.happen(Event::Wait(0));
            starts += u32::from(!before && world.slots[1].is_some());
        }
        assert_eq!(world.steered, SlotName::A);
        assert!((5..15).contains(&starts), "{starts} starts in ten minutes");
        assert!(world.switch.given_up().is_some());
    }
}

#[test]
fn clients_that_get_nothing_any_more_are_closed_while_idle_without_a_timeout() {
    let drains = |forlorn: bool| {
        let seen = World::new().observation();
        let other =
            OtherSeen { running: true, console: ConsoleSeen::Answered, clients: Some(3), forlorn, ..seen.other };
        let seen = SlotsSeen { other, wanted: Placement::Active, drain_timeout: 0, ..seen };
        Switch::resume(0, Left::WithClients).step(60_000, &seen)
    };
    assert_eq!((drains(false), drains(true)), (None, Some(SwitchAction::CloseIdle(SlotName::B))));
}
