//! A database that is away, as the circuit breakers of the pods of a pool have it.
//!
//! A breaker opens by what the database answers before a password, at the address that was fixed when the pod was created: that is never a
//! revision's fault. So a rollout stands still while any pod finds it away, from the first seconds on. Sizes stand still only where half of
//! the pods do: one pod that a broken network cuts off must not keep all the others from following their load.

use crate::{
    contract::{CircuitReport, CircuitState, StatusReport},
    domain::UnixSeconds,
};

/// One time without the database follows another within so many seconds: what is between them is not looked at on its own.
const ONE_SECONDS: i64 = 600;
/// Before a breaker knows, and after it has closed, by as much do clients notice, clocks differ, and figures come late.
const MARGIN_SECONDS: f64 = 10.0;

/// A time in which the database was away, or came and went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OutageSpan {
    /// When it was seen to work last before.
    pub from: UnixSeconds,
    /// When it was seen to be away last.
    pub until: UnixSeconds,
}

impl OutageSpan {
    /// With the one before it, if that is the same or was lately: it is away since then, and now.
    pub fn with(before: Option<Self>, since: UnixSeconds, now: UnixSeconds) -> Self {
        let from =
            before.filter(|before| since - before.until <= ONE_SECONDS).map_or(since, |before| before.from.min(since));
        Self { from, until: now }
    }

    /// Whether what was done between these times, in Unix seconds, was done in it, or partly.
    pub fn overlaps(&self, from_seconds: f64, until_seconds: f64) -> bool {
        from_seconds <= self.until as f64 + MARGIN_SECONDS && until_seconds >= self.from as f64 - MARGIN_SECONDS
    }
}

/// Since when it is away, by whoever has found it away for longest; None while nobody does.
pub fn began<'a>(reports: impl Iterator<Item = &'a StatusReport>, now: UnixSeconds) -> Option<UnixSeconds> {
    let longest = reports.filter_map(of_pod).map(|circuit| circuit.since_seconds).max()?;
    Some(now.saturating_sub(i64::try_from(longest).unwrap_or(i64::MAX)))
}

/// What the breaker of a pod says, if it is not closed.
pub fn of_pod(report: &StatusReport) -> Option<&CircuitReport> {
    report.circuit.as_ref().filter(|circuit| circuit.state != CircuitState::Closed)
}

/// What the breaker of a pod says, if clients were told: it is open, or has yet to prove that it may close.
pub fn is_told(report: &StatusReport) -> Option<&CircuitReport> {
    of_pod(report).filter(|circuit| circuit.state != CircuitState::Holding)
}

/// Whether half of the pods or more find it away, of those whose agents answer (None: it does not) and have a breaker.
pub fn is_everywhere<'a>(reports: impl Iterator<Item = Option<&'a StatusReport>>) -> bool {
    let (mut away, mut all) = (0_usize, 0_usize);
    for report in reports.flatten().filter(|report| report.circuit.is_some()) {
        all += 1;
        away += usize::from(of_pod(report).is_some());
    }
    away > 0 && 2 * away >= all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(state: Option<CircuitState>) -> StatusReport {
        let circuit = state.map(|state| CircuitReport { state, since_seconds: 7, why: "refused".to_owned() });
        StatusReport { circuit, ..StatusReport::beginning("u".to_owned(), "shop".to_owned()) }
    }

    #[test]
    fn a_time_without_it_goes_from_when_it_worked_last_to_when_it_was_away_last_and_takes_in_what_was_shortly_before() {
        let away = report(Some(CircuitState::Open));
        let since = began([&away, &report(Some(CircuitState::Closed))].into_iter(), 1000).expect("it is away");
        assert_eq!((since, began([&report(None)].into_iter(), 1000)), (993, None));
        let first = OutageSpan::with(None, since, 1000);
        assert_eq!(OutageSpan::with(Some(first), 993, 1060), OutageSpan { from: 993, until: 1060 });
        assert_eq!(OutageSpan::with(Some(first), 1500, 1510), OutageSpan { from: 993, until: 1510 });
        assert_eq!(OutageSpan::with(Some(first), 5000, 5010), OutageSpan { from: 5000, until: 5010 });
        assert!(first.overlaps(900.0, 990.0) && first.overlaps(995.0, 996.0) && first.overlaps(1005.0, 1100.0));
        assert!(!first.overlaps(900.0, 980.0) && !first.overlaps(1011.0, 1026.0));
    }

    #[test]
    fn sizes_stand_still_where_half_of_the_pods_that_can_tell_find_it_away() {
        use CircuitState::{Closed, HalfOpen, Holding, Open};
        let everywhere = |states: &[Option<CircuitState>]| {
            let reports: Vec<StatusReport> = states.iter().map(|state| report(*state)).collect();
            is_everywhere(reports.iter().map(Some).chain([None]))
        };
        assert!(!everywhere(&[]) && !everywhere(&[Some(Closed)]) && !everywhere(&[None]));
        for state in [Holding, Open, HalfOpen] {
            assert!(everywhere(&[Some(state)]) && everywhere(&[Some(state), Some(Closed), None]), "{state:?}");
            assert!(!everywhere(&[Some(state), Some(Closed), Some(Closed)]), "{state:?}");
        }
        assert!(is_told(&report(Some(Holding))).is_none() && of_pod(&report(Some(Holding))).is_some());
        assert!(is_told(&report(Some(HalfOpen))).is_some() && of_pod(&report(Some(Closed))).is_none());
    }
}
