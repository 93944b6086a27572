//! PURE: the limit of this pod, decided once a second between floor and share with the operator's own sizing code.
//!
//! What is decided follows from the observations alone; [`Decided::line`] is the observation as `sluice decide` reads it,
//! so every decision in the log can be repeated.

use crate::{
    agent::decide::counters::Added,
    contract::{LimitSource, PodGrant, Settings},
    decide::sizing::{Decision, Observation, ObservationLine, Sizer, SizingSettings},
    domain::{Automation, Bounds, Sample},
    pooler::pgbouncer::tables::Pools,
};

/// Seconds between two decisions.
const INTERVAL_SECONDS: f64 = 1.0;

/// One reading of the pooler.
#[derive(Clone, Copy, Debug)]
pub struct PoolerReading {
    /// When, in seconds on a clock that does not jump.
    pub at_seconds: f64,
    /// Gauges.
    pub pools: Pools,
    /// What was added to the counters since the reading before.
    pub added: Added,
    /// Server connections held past the threshold by clients that do nothing, in a transaction or pinned; None
    /// where it cannot be seen.
    pub leaked: Option<u32>,
    /// Whether what is decided on it is carried out.
    pub automation: Automation,
    /// The most that the database was seen to let in, while it refuses more.
    pub refused_beyond: Option<u32>,
}

/// A decision of the agent.
#[derive(Clone, Debug)]
pub struct Decided {
    /// Identifies it in the log: number of the decision since the agent started.
    pub id: u64,
    /// The limit before.
    pub from: u32,
    /// The decision.
    pub decision: Decision,
    /// The observation that it was taken on.
    pub line: ObservationLine,
}

/// The agent's loop as a state machine.
#[derive(Debug, Default)]
pub struct Reaction {
    sizer: Sizer,
    /// Counters that never restart, so that one Sizer outlives the pooler's processes.
    totals: Added,
    limit: Option<u32>,
    decisions: u64,
}

impl Reaction {
    /// The limit under `grant`: the share where the operator decides alone, else what was decided last, within the grant.
    pub fn limit(&self, source: LimitSource, grant: PodGrant) -> u32 {
        match source {
            LimitSource::Share => grant.share,
            LimitSource::LocalReaction => {
                self.limit.unwrap_or(grant.share).clamp(grant.floor.min(grant.share), grant.share)
            }
        }
    }

    /// The pooler was taken up with this limit: what an agent before decided stays until this one decides.
    pub fn goes_on_with(&mut self, limit: u32) {
        self.limit.get_or_insert(limit);
    }

    /// Takes in a reading and decides. `current` is the limit read back from the pooler.
    ///
    /// Nothing is decided where the operator decides alone, and without a share. A reading that came late (`punctual`
    /// is false: we lack CPU, and so may the pooler) is counted and never shrinks the limit.
    pub fn feed(
        &mut self,
        settings: &Settings,
        grant: PodGrant,
        current: u32,
        reading: &PoolerReading,
        punctual: bool,
    ) -> Option<Decided> {
        self.totals = self.totals + reading.added;
        if settings.scaling.limit_source == LimitSource::Share || grant.share == 0 {
            self.limit = None;
            return None;
        }
        let from = self.limit(LimitSource::LocalReaction, grant);
        let total = &self.totals;
        let sample = Sample {
            at_seconds: reading.at_seconds,
            waiting: reading.pools.clients_waiting.into(),
            active: reading.pools.active.into(),
            leaked: reading.leaked.unwrap_or(0).into(),
            transactions: total.transactions as f64,
            abandoned: total.abandoned as f64,
            busy_seconds: total.busy_microseconds as f64 / 1e6,
            wait_seconds: total.wait_microseconds as f64 / 1e6,
            assignments: total.assignments as f64,
        };
        let observation = Observation {
            now_seconds: reading.at_seconds,
            interval_seconds: INTERVAL_SECONDS,
            pods: 1,
            current,
            target: from,
            bounds: Bounds { min: grant.floor.max(grant.least), max: grant.share, share: Some(grant.share) },
            automation: if grant.paused { Automation::Paused } else { reading.automation },
            // below the floor the limit is bounded beside this: what is decided is never less
            refused_beyond: reading.refused_beyond.map(|most| most.max(grant.floor.min(grant.share))),
            samples: &[sample],
        };
        let sizing = SizingSettings::from(settings);
        let line = ObservationLine::new(None, &sizing, &observation);
        let decision = self.sizer.decide(&sizing, &observation);
        // what would be decided is told; a pool that is paused stays where it is
        let limit = match punctual {
            _ if grant.paused => from,
            true => decision.size,
            false => decision.size.max(from),
        };
        self.limit = Some(limit.clamp(grant.floor.min(grant.share), grant.share));
        self.decisions += 1;
        Some(Decided { id: self.decisions, from, decision, line })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{agent::tests::revision, domain::Reason};

    const GRANT: PodGrant = PodGrant { seq: 1, share: 20, granted: 20, floor: 2, least: 0, paused: false };

    fn settings() -> Settings {
        let mut settings = revision(1).settings;
        settings.scaling.limit_source = LimitSource::LocalReaction;
        settings
    }

    /// A second in which `rate` transactions of `milliseconds` finished and `waiting` clients waited at its end.
    fn second(at: u32, rate: u32, milliseconds: u32, waiting: u32) -> PoolerReading {
        let busy = rate * milliseconds / 1000;
        let transactions = u64::from(rate);
        PoolerReading {
            at_seconds: f64::from(at),
            pools: Pools { active: busy, clients_waiting: waiting, ..Pools::default() },
            added: Added {
                transactions,
                busy_microseconds: transactions * u64::from(milliseconds) * 1000,
                assignments: transactions,
                ..Added::default()
            },
            leaked: None,
            automation: Automation::Apply,
            refused_beyond: None,
        }
    }

    #[test]
    fn a_pooler_that_is_taken_up_keeps_its_limit_until_there_is_a_reason() {
        let (settings, mut reaction) = (settings(), Reaction::default());
        assert_eq!(reaction.limit(LimitSource::LocalReaction, GRANT), GRANT.share, "a new pooler has all of it");
        reaction.goes_on_with(6);
        assert_eq!(reaction.limit(LimitSource::LocalReaction, GRANT), 6);
        reaction.feed(&settings, GRANT, 6, &second(0, 100, 30, 0), true);
        assert_eq!(reaction.limit(LimitSource::LocalReaction, GRANT), 6, "nobody waits");
        reaction.goes_on_with(20);
        assert_eq!(reaction.limit(LimitSource::LocalReaction, GRANT), 6, "what was decided since counts");
        let smaller = PodGrant { share: 4, granted: 4, ..GRANT };
        assert_eq!(reaction.limit(LimitSource::LocalReaction, smaller), 4, "never beyond the share");
    }

    #[test]
    fn the_limit_follows_a_burst_within_seconds_and_stays_within_the_share() {
        let (settings, mut reaction) = (settings(), Reaction::default());
        for at in 0..120 {
            reaction.feed(
                &settings,
                GRANT,
                reaction.limit(LimitSource::LocalReaction, GRANT),
                &second(at, 100, 30, 0),
                true,
            );
        }
        let calm = reaction.limit(LimitSource::LocalReaction, GRANT);
        assert!((4..=10).contains(&calm), "{calm}");
        for at in 120..123 {
            let mut burst = second(at, 800, 30, 400);
            burst.pools.active = reaction.limit(LimitSource::LocalReaction, GRANT);
            reaction.feed(&settings, GRANT, burst.pools.active, &burst, true);
        }
        assert_eq!(reaction.limit(LimitSource::LocalReaction, GRANT), GRANT.share);
    }

    #[test]
    fn a_late_loop_never_shrinks() {
        let (settings, mut reaction) = (settings(), Reaction::default());
        for at in 0..600 {
            reaction.feed(&settings, GRANT, 20, &second(at, 1, 1, 0), false);
            assert_eq!(reaction.limit(LimitSource::LocalReaction, GRANT), GRANT.share);
        }
    }

    #[test]
    fn while_the_database_takes_no_writes_the_limit_stays_and_follows_the_load_again_afterwards() {
        let (settings, mut reaction) = (settings(), Reaction::default());
        let limit = |reaction: &Reaction| reaction.limit(LimitSource::LocalReaction, GRANT);
        let mut feed = |at, rate, waiting, automation| {
            let mut reading = second(at, rate, 30, waiting);
            reading.automation = automation;
            let decided = reaction.feed(&settings, GRANT, limit(&reaction), &reading, true);
            (limit(&reaction), decided.expect("decides").decision.reason)
        };
        for at in 0..120 {
            feed(at, 100, 0, Automation::Apply);
        }
        let (before, _) = feed(120, 100, 0, Automation::Apply);
        assert!(before > GRANT.floor && before < GRANT.share, "{before}");
        for at in 121..900 {
            let (rate, waiting) = if at % 2 == 0 { (0, 0) } else { (500, 100) };
            let held = feed(at, rate, waiting, Automation::UpstreamReadOnly);
            assert_eq!(held, (before, Reason::UpstreamReadOnly), "{at}");
        }
        for at in 900..903 {
            feed(at, 800, 400, Automation::Apply);
        }
        assert_eq!(feed(903, 800, 400, Automation::Apply).0, GRANT.share);
    }

    #[test]
    fn while_the_pool_is_paused_the_limit_stays_and_follows_the_load_again_afterwards() {
        let (settings, mut reaction) = (settings(), Reaction::default());
        let limit = |reaction: &Reaction, grant| reaction.limit(LimitSource::LocalReaction, grant);
        let mut feed = |at, rate, waiting, grant| {
            let mut reading = second(at, rate, 30, waiting);
            reading.pools.active = reading.pools.active.min(limit(&reaction, grant));
            let decided = reaction.feed(&settings, grant, limit(&reaction, grant), &reading, true);
            (limit(&reaction, grant), decided.expect("decides").decision.reason)
        };
        for at in 0..120 {
            feed(at, 100, 0, GRANT);
        }
        let (before, _) = feed(120, 100, 0, GRANT);
        assert!(before > GRANT.floor && before < GRANT.share, "{before}");
        let paused = PodGrant { seq: 2, paused: true, ..GRANT };
        for at in 121..400 {
            let (rate, waiting) = if at % 2 == 0 { (0, 0) } else { (800, 400) };
            assert_eq!(feed(at, rate, waiting, paused), (before, Reason::Paused), "{at}");
        }
        // a share that makes room for a new pod counts all the same
        let smaller = PodGrant { seq: 3, share: before - 1, granted: before - 1, ..paused };
        assert_eq!(feed(400, 800, 400, smaller).0, before - 1);
        for at in 401..405 {
            feed(at, 800, 400, PodGrant { seq: 4, paused: false, ..GRANT });
        }
        assert_eq!(feed(405, 800, 400, GRANT).0, GRANT.share);
    }

    #[test]
    fn the_limit_does_not_fall_below_the_pods_part_of_min_allowed_and_follows_what_the_database_lets_in_below_it() {
        let (settings, mut reaction) = (settings(), Reaction::default());
        let grant = PodGrant { least: 9, ..GRANT };
        let limit = |reaction: &Reaction| reaction.limit(LimitSource::LocalReaction, grant);
        for at in 0..120 {
            reaction.feed(&settings, grant, limit(&reaction), &second(at, 10, 30, 0), true);
        }
        assert_eq!(limit(&reaction), 9);
        for at in 120..140 {
            let refused = PoolerReading { refused_beyond: Some(4), ..second(at, 10, 30, 0) };
            reaction.feed(&settings, grant, limit(&reaction), &refused, true);
        }
        assert_eq!(limit(&reaction), 4);
        reaction.feed(&settings, grant, 4, &second(140, 10, 30, 0), true);
        assert_eq!(limit(&reaction), 9, "and at once when it lets in more again");
    }

    #[test]
    fn with_local_reaction_disabled_the_limit_is_the_share() {
        let mut settings = settings();
        settings.scaling.limit_source = LimitSource::Share;
        let mut reaction = Reaction::default();
        assert!(reaction.feed(&settings, GRANT, 20, &second(1, 100, 30, 9), true).is_none());
        assert_eq!(reaction.limit(LimitSource::Share, GRANT), GRANT.share);
    }

    #[test]
    fn the_logged_observations_lead_to_the_same_decisions_again() {
        let (settings, mut reaction) = (settings(), Reaction::default());
        let sizing = SizingSettings::from(&settings);
        let mut replayed = Sizer::default();
        for at in 0..200 {
            let current = reaction.limit(LimitSource::LocalReaction, GRANT);
            let reading = second(at, 50 + at * 3, 25, at % 7);
            let decided = reaction.feed(&settings, GRANT, current, &reading, true).expect("decides");
            let text = serde_json::to_string(&decided.line).expect("a line");
            let line = ObservationLine::parse(&text).expect("reads back");
            let observation = line.observation().expect("in range");
            assert_eq!(replayed.decide(&sizing, &observation.observation()), decided.decision);
        }
    }

    proptest! {
        #[test]
        fn the_limit_is_never_outside_floor_and_share(
            seconds in prop::collection::vec((0..2000_u32, 0..500_u32, 0..500_u32, 0..30_u32, 0..30_u32, any::<bool>()), 1..80),
        ) {
            let (settings, mut reaction) = (settings(), Reaction::default());
            for (at, (rate, milliseconds, waiting, floor, more, punctual)) in (0..).zip(seconds) {
                let share = floor + more;
                let grant = PodGrant { seq: 1, share, granted: share, floor, least: 0, paused: false };
                let current = reaction.limit(LimitSource::LocalReaction, grant);
                reaction.feed(&settings, grant, current, &second(at, rate, milliseconds, waiting), punctual);
                let limit = reaction.limit(LimitSource::LocalReaction, grant);
                prop_assert!((floor..=share).contains(&limit), "{limit} outside {floor}..={share}");
            }
        }
    }
}
