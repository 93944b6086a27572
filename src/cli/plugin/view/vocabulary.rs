//! The words of conditions, events, decisions and metrics: whoever writes one can be asked whether it exists.

use crate::{
    api::{conditions, reasons},
    contract::PoolerError,
    decide::load::HoldReason,
    domain::Reason,
};

/// Why a spec is not accepted: these come with the refusal.
const REFUSALS: [&str; 11] = [
    "AdaptiveNeedsTransactionMode",
    "ClassNotFound",
    "EnvironmentNotAllowed",
    "ImageNotAllowed",
    "InvalidAnalysis",
    "InvalidBounds",
    "InvalidName",
    "InvalidNumber",
    "MaxAllowedMissing",
    "PortTaken",
    "UpstreamIsThePooler",
];
/// Why the load of a pool is not known, beside those that the judgement of a reading has.
const READINGS: [&str; 2] = ["PodsNotReporting", "PrometheusNotConfigured"];
/// Why the load of a pool cannot be judged.
const HOLDS: [HoldReason; 8] = [
    HoldReason::PrometheusUnavailable,
    HoldReason::Starting,
    HoldReason::NoMetrics,
    HoldReason::StaleMetrics,
    HoldReason::TooFewPodsReport,
    HoldReason::InvalidOverride,
    HoldReason::OverrideNotAllowed,
    HoldReason::NoPods,
];

/// Every reason that a condition, an event or a decision of this version can have, in the order of the alphabet.
pub fn reasons() -> Vec<&'static str> {
    let decisions = Reason::ALL.iter().map(|reason| reason.as_str());
    let errors = PoolerError::ALL.iter().map(|error| error.as_str());
    let holds = HOLDS.iter().map(|hold| hold.as_str());
    let mut all: Vec<&str> = reasons::ALL.into_iter().chain(REFUSALS).chain(READINGS).collect();
    all.extend(decisions.chain(errors).chain(holds));
    all.sort_unstable();
    all.dedup();
    all
}

/// The condition type that somebody means, whatever its case.
///
/// # Errors
/// There is none of this name: what there is.
pub fn condition(word: &str) -> Result<&'static str, String> {
    known(word, "condition", &conditions::ALL)
}

/// The reason that somebody means, whatever its case.
///
/// # Errors
/// There is none of this name: those that come nearest.
pub fn reason(word: &str) -> Result<&'static str, String> {
    known(word, "reason", &reasons())
}

fn known(word: &str, what: &str, all: &[&'static str]) -> Result<&'static str, String> {
    if let Some(known) = all.iter().find(|known| known.eq_ignore_ascii_case(word)) {
        return Ok(known);
    }
    let mut near: Vec<&str> = all.iter().copied().filter(|known| is_near(known, word)).collect();
    if near.is_empty() {
        near = all.to_vec();
    }
    Err(format!("no {what} is called {word}; there are {}", near.join(", ")))
}

/// Whether a word is part of the other one, or begins alike.
fn is_near(known: &str, word: &str) -> bool {
    let (known, word) = (known.to_ascii_lowercase(), word.to_ascii_lowercase());
    let beginning = word.chars().take(4).collect::<String>();
    known.contains(&word) || word.contains(&known) || known.starts_with(&beginning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_found_whatever_its_case_and_what_is_misspelt_is_answered_with_what_comes_nearest() {
        assert_eq!(condition("scalingactive"), Ok("ScalingActive"));
        assert_eq!(reason("NoMetrics"), Ok("NoMetrics"));
        assert_eq!(reason("NoMetric"), Err("no reason is called NoMetric; there are NoMetrics".to_owned()));
        let unknown = condition("Healthy").expect_err("unknown");
        assert_eq!(unknown, "no condition is called Healthy; there are UpstreamHealthy");
        let far = condition("Xyz").expect_err("unknown");
        assert!(far.contains("Ready, Accepted"), "all of them: {far}");
    }
}
