//! Who is asked, when, and what was answered.
//!
//! Pods with something unproven are asked often, all others in a slow sweep. Of those that are due, pools take turns; who may
//! be asked at once is bounded by [`PollsInFlight`]. A pause begins with the answer, or with its absence, so that a pod which does not
//! answer is asked ever more seldom however long it waits for its turn.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    in_flight::{PollsInFlight, Responsiveness},
    status_request::AskError,
};
use crate::{
    contract::{StatusReport, UpstreamState, names::METRICS_PORT},
    decide::{
        outage,
        plan::{AgentAnswer, PodFacts, SidecarSeen},
    },
    domain::PoolKey,
};

/// First pause before an unproven pod is asked again; it grows by half each time.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause before an unproven pod is asked again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Longest pause before a pod is asked again that does not answer.
const LONGEST_SILENT_PAUSE: Duration = Duration::from_secs(15);
/// All pods are asked this often.
const SWEEP: Duration = Duration::from_mins(1);

/// What a pod said last.
#[derive(Clone, Debug)]
enum LastAnswer {
    /// It was not asked yet.
    Nothing,
    /// An answer.
    Report(Arc<StatusReport>),
    /// No answer.
    Silence { since: Instant, error: String, last: Option<Arc<StatusReport>> },
}

impl LastAnswer {
    fn report(&self) -> Option<&StatusReport> {
        match self {
            Self::Report(report) | Self::Silence { last: Some(report), .. } => Some(report),
            Self::Nothing | Self::Silence { last: None, .. } => None,
        }
    }

    const fn responsiveness(&self) -> Responsiveness {
        match self {
            Self::Nothing => Responsiveness::Untried,
            Self::Report(_) => Responsiveness::Answers,
            Self::Silence { .. } => Responsiveness::Silent,
        }
    }
}

/// What the agent of a pod said last, as a plan reads it.
#[derive(Clone, Debug)]
pub struct HeardAnswer {
    /// The answer, or that there is none.
    pub answer: AgentAnswer,
    /// Whether the pod was told another revision since.
    pub is_outdated: bool,
}

impl HeardAnswer {
    /// Nothing, of a pod that was not asked.
    pub const NOTHING: Self = Self { answer: AgentAnswer::NotAsked, is_outdated: false };
}

/// Whether a pod waits to be asked, or for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PollState {
    /// Not before this.
    Due(Instant),
    /// The request is under way; whether something new to prove has come since.
    Asked { has_news: bool },
}

/// One pod.
struct PolledPod {
    /// As it was when it was last said what it must be seen to run.
    pod: Arc<PodFacts>,
    /// When that was: [`PolledPods::round`].
    mentioned: u64,
    is_open: bool,
    turn: PollState,
    pause: Duration,
    /// When it began or ceased to answer last so that a new row of pauses began.
    turned: Option<Instant>,
    heard: LastAnswer,
    /// Whether it was told another revision since it was asked what is heard of it: that may be of the one before, also where the
    /// numbers are the same.
    is_outdated: bool,
}

/// The pods of one pool.
#[derive(Default)]
pub(super) struct PolledPods {
    of: HashMap<Arc<str>, PolledPod>,
    /// How often it was said what the pods must be seen to run: who was not mentioned the last time is gone.
    round: u64,
    /// Those that wait to be asked, by what is known of them.
    due: [BTreeSet<(Instant, Arc<str>)>; 3],
    /// How many have answered last.
    answer: usize,
    /// How many have not.
    silent: usize,
}

/// All pods.
#[derive(Default)]
pub(super) struct PollSchedule {
    pools: BTreeMap<PoolKey, PolledPods>,
    in_flight: PollsInFlight,
    /// The pool that was served last, by responsiveness.
    served: [Option<PoolKey>; 3],
}

/// A request that holds a place until it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StatusRequest {
    pub(super) pool: PoolKey,
    pub(super) uid: Arc<str>,
    pub(super) address: String,
    responsiveness: Responsiveness,
}

impl PollSchedule {
    /// The pods of a pool.
    pub(super) fn of(&mut self, pool: &PoolKey) -> Option<&mut PolledPods> {
        self.pools.get_mut(pool)
    }

    /// Sets what the pods of a pool must be seen to run: `open` are the uids of those of which something is not proven. Pods that are
    /// not mentioned are forgotten.
    pub(super) fn expect(&mut self, pool: &PoolKey, pods: &[Arc<PodFacts>], open: &HashSet<&str>, now: Instant) {
        let polled = self.pools.entry(pool.clone()).or_default();
        polled.round += 1;
        let mut mentioned = 0;
        for pod in pods.iter().filter(|pod| pod.address.is_some() && pod.sidecar == SidecarSeen::Running) {
            polled.expect(pod, open.contains(&*pod.uid), now);
            mentioned += 1;
        }
        if polled.of.len() > mentioned {
            let is_gone = |(_, entry): &(&Arc<str>, &PolledPod)| entry.mentioned != polled.round;
            let gone: Vec<Arc<str>> = polled.of.iter().filter(is_gone).map(|(uid, _)| uid.clone()).collect();
            for uid in gone {
                polled.forget(&uid);
            }
        }
        if polled.of.is_empty() {
            self.pools.remove(pool);
        }
    }

    /// The next request, if anybody is due and has a place: pools take turns.
    pub(super) fn next(&mut self, now: Instant) -> Option<StatusRequest> {
        Responsiveness::ALL.into_iter().find_map(|responsiveness| self.next_of(responsiveness, now))
    }

    fn next_of(&mut self, responsiveness: Responsiveness, now: Instant) -> Option<StatusRequest> {
        if !self.in_flight.has_any(responsiveness) {
            return None;
        }
        let in_flight = &self.in_flight;
        let is_next = |(pool, polled): &(&PoolKey, &PolledPods)| {
            polled.first_due(responsiveness).is_some_and(|(due, _)| *due <= now)
                && in_flight.has_for(responsiveness, pool)
        };
        let after = match &self.served[responsiveness as usize] {
            Some(served) => (Bound::Excluded(served.clone()), Bound::Unbounded),
            None => (Bound::Unbounded, Bound::Unbounded),
        };
        let (pool, _) = self.pools.range(after).find(is_next).or_else(|| self.pools.iter().find(is_next))?;
        let pool = pool.clone();
        let (uid, address) = self.pools.get_mut(&pool)?.take(responsiveness)?;
        self.in_flight.take(responsiveness, &pool);
        self.served[responsiveness as usize] = Some(pool.clone());
        Some(StatusRequest { pool, uid, address, responsiveness })
    }

    /// When somebody is due next who is not yet.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        let last: (Instant, Arc<str>) = (now, char::MAX.to_string().into());
        let later = (Bound::Excluded(&last), Bound::Unbounded);
        let lines = self.pools.values().flat_map(|polled| &polled.due);
        lines.filter_map(|due| due.range(later).next().map(|(due, _)| *due)).min()
    }

    /// Takes in an answer and gives the place back. True when it says something new.
    pub(super) fn answered(
        &mut self,
        request: &StatusRequest,
        answer: Result<StatusReport, AskError>,
        now: Instant,
    ) -> bool {
        self.in_flight.give_back(request.responsiveness, &request.pool);
        self.pools.get_mut(&request.pool).is_some_and(|polled| polled.answered(&request.uid, answer, now))
    }
}

impl PolledPods {
    /// What the agent of a pod said last.
    pub(super) fn heard(&self, uid: &str) -> HeardAnswer {
        let Some(entry) = self.of.get(uid) else { return HeardAnswer::NOTHING };
        let answer = match &entry.heard {
            LastAnswer::Nothing => AgentAnswer::NotAsked,
            LastAnswer::Report(report) => AgentAnswer::Report(report.clone()),
            LastAnswer::Silence { since, error, last } => {
                let seconds = i64::try_from(since.elapsed().as_secs()).unwrap_or(i64::MAX);
                let since = Timestamp::now().as_second().saturating_sub(seconds);
                AgentAnswer::Unreachable { since, error: error.clone(), last: last.clone() }
            }
        };
        HeardAnswer { answer, is_outdated: entry.is_outdated }
    }

    /// A pod is told another revision: what was heard of it, or is on its way, may be of the one before.
    pub(super) fn outdate(&mut self, uid: &str) {
        if let Some(entry) = self.of.get_mut(uid) {
            entry.is_outdated = true;
            if let PollState::Asked { has_news } = &mut entry.turn {
                *has_news = true;
            }
        }
    }

    fn expect(&mut self, pod: &Arc<PodFacts>, is_open: bool, now: Instant) {
        let Some(entry) = self.of.get_mut(&pod.uid) else {
            let entry = PolledPod {
                pod: pod.clone(),
                mentioned: self.round,
                is_open,
                turn: PollState::Due(now),
                pause: FIRST_PAUSE,
                turned: None,
                heard: LastAnswer::Nothing,
                is_outdated: false,
            };
            self.due[Responsiveness::Untried as usize].insert((now, pod.uid.clone()));
            self.of.insert(pod.uid.clone(), entry);
            return;
        };
        entry.mentioned = self.round;
        // the common case, for thousands of pods
        if Arc::ptr_eq(&entry.pod, pod) && entry.is_open == is_open {
            return;
        }
        let has_news = is_open && (entry.pod.resource_version != pod.resource_version || !entry.is_open);
        let has_moved = agent_of(&entry.pod) != agent_of(pod);
        entry.pod = pod.clone();
        entry.is_open = is_open;
        let responsiveness = entry.heard.responsiveness();
        match &mut entry.turn {
            PollState::Asked { has_news: known } => *known |= has_news || has_moved,
            // something new to prove: be quick again. Who does not answer is no quicker to ask about more
            PollState::Due(due) if (has_news && responsiveness != Responsiveness::Silent) || has_moved => {
                entry.pause = FIRST_PAUSE;
                let soon = now + FIRST_PAUSE;
                if soon < *due {
                    let mut key = (*due, pod.uid.clone());
                    self.due[responsiveness as usize].remove(&key);
                    key.0 = soon;
                    self.due[responsiveness as usize].insert(key);
                    *due = soon;
                }
            }
            PollState::Due(_) => {}
        }
    }

    fn forget(&mut self, uid: &Arc<str>) {
        let Some(entry) = self.of.remove(uid) else { return };
        self.count(entry.heard.responsiveness(), false);
        if let PollState::Due(due) = entry.turn {
            self.due[entry.heard.responsiveness() as usize].remove(&(due, uid.clone()));
        }
    }

    fn count(&mut self, responsiveness: Responsiveness, is_more: bool) {
        let count = match responsiveness {
            Responsiveness::Answers => &mut self.answer,
            Responsiveness::Silent => &mut self.silent,
            Responsiveness::Untried => return,
        };
        *count = if is_more { *count + 1 } else { count.saturating_sub(1) };
    }

    /// Whose due entries a budget pays for: where nobody has answered, those that were not asked yet will hardly.
    fn budget(&self, kept: Responsiveness) -> Responsiveness {
        match kept {
            Responsiveness::Untried if self.silent > 0 && self.answer == 0 => Responsiveness::Silent,
            kept => kept,
        }
    }

    /// Which entries are the first that a budget pays for, and when they are due.
    fn first_due(&self, budget: Responsiveness) -> Option<(&Instant, Responsiveness)> {
        let paid = Responsiveness::ALL.into_iter().filter(|kept| self.budget(*kept) == budget);
        let firsts = paid.filter_map(|kept| self.due[kept as usize].first().map(|(due, _)| (due, kept)));
        firsts.min_by_key(|(due, _)| **due)
    }

    /// Takes the first that the budget pays for out of the line: its uid and address.
    fn take(&mut self, budget: Responsiveness) -> Option<(Arc<str>, String)> {
        let (_, kept) = self.first_due(budget)?;
        let (_, uid) = self.due[kept as usize].pop_first()?;
        let entry = self.of.get_mut(&uid)?;
        entry.turn = PollState::Asked { has_news: false };
        let address = address_of_agent(&entry.pod);
        Some((uid, address))
    }

    /// Takes in an answer. True when it says something new.
    fn answered(&mut self, uid: &Arc<str>, answer: Result<StatusReport, AskError>, now: Instant) -> bool {
        let Some(entry) = self.of.get_mut(uid) else { return false };
        let before = entry.heard.responsiveness();
        // its sidecar ended and began anew meanwhile: the answer may be of either
        if let PollState::Due(due) = entry.turn {
            self.due[before as usize].remove(&(due, uid.clone()));
        }
        let heard = match answer {
            Ok(report) => LastAnswer::Report(Arc::new(report)),
            Err(AskError::OtherPod) => silence(&entry.heard, "another pod answers at its address".to_owned(), now),
            Err(AskError::Unreachable(error)) => silence(&entry.heard, error, now),
        };
        let was_overtaken = matches!(entry.turn, PollState::Asked { has_news: true });
        let is_new = differs(&entry.heard, &heard) || (entry.is_outdated && !was_overtaken);
        entry.is_outdated &= was_overtaken;
        entry.heard = heard;
        let responsiveness = entry.heard.responsiveness();
        let has_news =
            matches!(entry.turn, PollState::Asked { has_news: true }) && responsiveness != Responsiveness::Silent;
        // who begins to answer, or ends, begins a new row of pauses; who does so again and again does not
        let has_turned = before != responsiveness
            && entry.turned.is_none_or(|turned| now.saturating_duration_since(turned) >= LONGEST_SILENT_PAUSE);
        if has_turned {
            entry.turned = Some(now);
        }
        if has_news || has_turned {
            entry.pause = FIRST_PAUSE;
        }
        let pause = if has_news {
            FIRST_PAUSE
        } else if responsiveness == Responsiveness::Silent || entry.is_open || complains(&entry.heard) {
            let longest = if responsiveness == Responsiveness::Silent { LONGEST_SILENT_PAUSE } else { LONGEST_PAUSE };
            let pause = entry.pause;
            entry.pause = (pause * 3 / 2).min(longest);
            pause
        } else {
            entry.pause = FIRST_PAUSE;
            spread(uid)
        };
        entry.turn = PollState::Due(now + pause);
        self.due[responsiveness as usize].insert((now + pause, uid.clone()));
        self.count(before, false);
        self.count(responsiveness, true);
        is_new
    }
}

/// Whether an agent says something that passes: it is asked whether it still does.
fn complains(heard: &LastAnswer) -> bool {
    let LastAnswer::Report(report) = heard else { return false };
    let upstream = report.upstream.as_ref().map(|upstream| upstream.state);
    let troubled = report.server_full.is_some() || !report.troubles.is_empty();
    let leaks = report.leaks.as_ref().is_some_and(|kinds| kinds.count() > 0);
    // old connections have transactions to finish
    let renews = report.reconnected.as_ref().is_some_and(|told| told.remaining.is_some_and(|count| count > 0));
    let is_primary = upstream.is_none_or(|state| state == UpstreamState::Primary);
    let is_away = outage::of_pod(report).is_some();
    let is_held_back = report.memory.is_some_and(|memory| memory.holds_back);
    troubled || leaks || renews || is_away || is_held_back || !report.message.is_empty() || !is_primary
}

/// The sweep, spread so that pods which started together are not asked together for ever.
fn spread(uid: &str) -> Duration {
    let sum: u32 = uid.bytes().fold(0, |sum: u32, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    SWEEP.saturating_sub(Duration::from_millis(u64::from(sum % 15_000)))
}

fn silence(before: &LastAnswer, error: String, now: Instant) -> LastAnswer {
    let (since, last) = match before {
        LastAnswer::Silence { since, last, .. } => (*since, last.clone()),
        LastAnswer::Report(report) => (now, Some(report.clone())),
        LastAnswer::Nothing => (now, None),
    };
    LastAnswer::Silence { since, error, last }
}

/// Where the agent of a pod listens: address and port.
fn agent_of(pod: &PodFacts) -> (&str, u16) {
    let port = pod.injection.as_ref().map_or(METRICS_PORT, |injection| injection.agent_port);
    (pod.address.as_deref().unwrap_or_default(), port)
}

/// The same, as it is written in a URL.
fn address_of_agent(pod: &PodFacts) -> String {
    let (address, port) = agent_of(pod);
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// Whether a plan could come out otherwise. Who is busy changes every second and does not matter.
fn differs(before: &LastAnswer, after: &LastAnswer) -> bool {
    std::mem::discriminant(before) != std::mem::discriminant(after) || essence(before) != essence(after)
}

/// What of an answer a plan may depend on.
fn essence(heard: &LastAnswer) -> Option<impl PartialEq + '_> {
    heard.report().map(|report| {
        let held = report.held.map(|held| held.held);
        let upstream = report.upstream.as_ref().map(|upstream| (upstream.state, upstream.silent));
        let in_force = (report.revision, report.epoch, report.seq, report.share, report.limits);
        let full = report.server_full.as_ref().map(|full| (full.refused_beyond, full.at_most));
        let troubles: Vec<_> = report.troubles.iter().map(|trouble| (trouble.reason, &trouble.words)).collect();
        // for how long one has been pinned changes every second too
        let leaks = report.leaks.as_ref();
        let leaks = leaks
            .map(|kinds| (kinds.in_transaction, kinds.pinned, kinds.unclear, kinds.freed, kinds.client.as_deref()));
        let proof = (report.proof, report.other.is_some_and(|other| other.awaiting_promotion));
        let room = (report.memory.map(|memory| (memory.allows, memory.holds_back)), &report.trust);
        (
            in_force,
            held,
            upstream,
            full,
            troubles,
            &report.message,
            leaks,
            &report.reconnected,
            proof,
            room,
            (
                &report.bypass,
                &report.reference_mark,
                report.circuit.as_ref().map(|circuit| (circuit.state, &circuit.why)),
            ),
        )
    })
}
