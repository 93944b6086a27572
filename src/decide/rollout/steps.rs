//! The steps of a rollout: how many pods may run the new revision at each of them, and what it waits for.

use crate::fingerprint::fingerprint;

/// Seconds that the first pod runs a revision before the rest follow, where a pool names no steps.
pub const DEFAULT_PAUSE_SECONDS: u32 = 10;
/// What a pool gets that names no steps: one pod, a pause, then the rest.
pub const DEFAULT_STEPS: [RolloutStep; 2] =
    [RolloutStep::OnePod, RolloutStep::Pause { seconds: Some(DEFAULT_PAUSE_SECONDS) }];
/// The same of a pool with an analysis, which is waited for in place of the pause.
pub const JUDGED_STEPS: [RolloutStep; 2] = [RolloutStep::OnePod, RolloutStep::Analysis];

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RolloutStep {
    /// One pod runs the new revision.
    OnePod,
    /// So many percent of the pods run it: at least one pod, and below 100 never all of several.
    SetWeight {
        /// 1 to 100.
        percent: u32,
    },
    /// It waits, once the pods of the step before are proven.
    Pause {
        /// For so long; None: until somebody promotes.
        seconds: Option<u32>,
    },
    /// It waits for the judgement of the analysis.
    Analysis,
}

impl RolloutStep {
    /// How many of `members` may run the new revision; None for a step that changes nothing of it.
    fn pods(self, members: usize) -> Option<usize> {
        match self {
            Self::OnePod => Some(members.min(1)),
            Self::SetWeight { percent } if percent >= 100 => Some(members),
            Self::SetWeight { percent } => {
                let share = members.saturating_mul(usize::try_from(percent).unwrap_or(100)).div_ceil(100);
                // whoever is compared with must be left, unless there is nobody
                Some(share.clamp(members.min(1), members.saturating_sub(1).max(members.min(1))))
            }
            Self::Pause { .. } | Self::Analysis => None,
        }
    }

    fn word(self) -> String {
        match self {
            Self::OnePod => "one".to_owned(),
            Self::SetWeight { percent } => format!("{percent}%"),
            Self::Pause { seconds: Some(seconds) } => format!("{seconds}s"),
            Self::Pause { seconds: None } => "pause".to_owned(),
            Self::Analysis => "analysis".to_owned(),
        }
    }
}

/// How many of `members` may run the new revision while the step at `index` is in course; all of them behind the last step.
pub fn allowed_pods(steps: &[RolloutStep], index: usize, members: usize) -> usize {
    match steps.get(..=index) {
        None => members,
        Some(so_far) => so_far.iter().rev().find_map(|step| step.pods(members)).unwrap_or(0),
    }
}

/// The weight that is asked for at `index`, in percent of `members`.
pub fn weight_percent(steps: &[RolloutStep], index: usize, members: usize) -> u32 {
    let Some(so_far) = steps.get(..=index) else { return 100 };
    so_far
        .iter()
        .rev()
        .find_map(|step| match step {
            RolloutStep::OnePod => Some(percent_of(members.min(1), members)),
            RolloutStep::SetWeight { percent } => Some(*percent),
            RolloutStep::Pause { .. } | RolloutStep::Analysis => None,
        })
        .unwrap_or(0)
}

/// `part` of `whole`, in percent, rounded down; of nothing 0.
pub fn percent_of(part: usize, whole: usize) -> u32 {
    let percent = part.saturating_mul(100).checked_div(whole).unwrap_or(0);
    u32::try_from(percent).unwrap_or(u32::MAX)
}

/// Tells one list of steps from another: an index means nothing in another list.
pub fn steps_hash(steps: &[RolloutStep]) -> String {
    let words: Vec<String> = steps.iter().map(|step| step.word()).collect();
    fingerprint(words.join(" ").as_bytes(), 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_at_least_one_pod_and_below_a_hundred_never_all_of_several() {
        let pods = |percent, members| allowed_pods(&[RolloutStep::SetWeight { percent }], 0, members);
        assert_eq!([pods(1, 0), pods(1, 1), pods(99, 1), pods(100, 1)], [0, 1, 1, 1]);
        assert_eq!([pods(1, 2), pods(50, 2), pods(99, 2), pods(100, 2)], [1, 1, 1, 2]);
        assert_eq!([pods(10, 10), pods(11, 10), pods(99, 10), pods(100, 10)], [1, 2, 9, 10]);
    }

    #[test]
    fn a_pause_keeps_the_weight_before_it_and_behind_the_last_step_are_all() {
        let steps = [
            RolloutStep::Pause { seconds: None },
            RolloutStep::SetWeight { percent: 20 },
            RolloutStep::Analysis,
            RolloutStep::SetWeight { percent: 60 },
        ];
        let allowed: Vec<usize> = (0..6).map(|index| allowed_pods(&steps, index, 10)).collect();
        assert_eq!(allowed, [0, 2, 2, 6, 10, 10]);
        let weights: Vec<u32> = (0..5).map(|index| weight_percent(&steps, index, 10)).collect();
        assert_eq!(weights, [0, 20, 20, 60, 100]);
        assert_eq!(allowed_pods(&[], 0, 3), 3, "without steps all may, a few at a time");
        assert_eq!([weight_percent(&DEFAULT_STEPS, 1, 3), percent_of(1, 0)], [33, 0]);
    }

    #[test]
    fn other_steps_have_another_hash() {
        let pause = |seconds| [RolloutStep::OnePod, RolloutStep::Pause { seconds }];
        assert_ne!(steps_hash(&pause(Some(10))), steps_hash(&pause(None)));
        assert_eq!(steps_hash(&pause(Some(DEFAULT_PAUSE_SECONDS))), steps_hash(&DEFAULT_STEPS));
    }
}
