//! `recommend`: what the load asks for beside what there is, and the patch that follows it.

use serde::Serialize;
use serde_json::{Value, json};

use super::{
    document::PoolDocument,
    get::{Columns, mode},
    table::{TextTable, cell},
};
use crate::api::{Confidence, Mode, Recommendation, conditions};

/// What is recommended for one pool. Figures are server connections.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolAdvice {
    /// Namespace of the pool.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its mode.
    pub mode: &'static str,
    /// Sum of the limits of its pods.
    pub current_size: Option<u32>,
    /// What all its pods together may open.
    pub may_open: Option<u32>,
    /// What the load asks for; none while that is not known.
    pub recommendation: Option<Recommendation>,
    /// In a sentence.
    pub words: String,
    /// A merge patch of the pool that follows it; none where nothing has to change.
    pub patch: Option<Value>,
}

impl PoolAdvice {
    /// What is recommended for a pool.
    pub fn of(document: &PoolDocument) -> Self {
        let (key, status) = (document.key(), document.status());
        let may_open = may_open(document);
        let (words, patch) = match status.recommendation {
            None => ("nothing yet: the load is not known; see kubectl sluice why".to_owned(), None),
            Some(recommendation) => advice(document, recommendation, may_open),
        };
        Self {
            namespace: key.namespace,
            name: key.name,
            mode: mode(document.pool.spec.mode),
            current_size: status.current_size,
            may_open,
            recommendation: status.recommendation,
            words,
            patch,
        }
    }
}

/// What all pods together may open: in mode Recommend the fixed limits, which are their shares; else maxAllowed.
pub fn may_open(document: &PoolDocument) -> Option<u32> {
    let status = document.status();
    match document.pool.spec.mode {
        Mode::Recommend => status.share,
        Mode::Apply => status.effective.map(|effective| effective.max_allowed),
    }
}

fn advice(document: &PoolDocument, recommendation: Recommendation, may_open: Option<u32>) -> (String, Option<Value>) {
    let Recommendation { target, uncapped_target, lower_bound, upper_bound, .. } = recommendation;
    let stale = document.condition(conditions::SCALING_ACTIVE).is_some_and(|active| active.status == "False");
    let stale = if stale { "; it is of a load that is not known any more, see ScalingActive" } else { "" };
    let Some(may_open) = may_open else { return (format!("{target} connections{stale}"), None) };
    match document.pool.spec.mode {
        Mode::Recommend => {
            let freed = may_open.saturating_sub(target);
            // what the pods may open today is what the database carries today: nothing grows past it unasked
            let patch = json!({"spec": {"mode": "Apply", "scaling": {"fixedLimitPerPod": null, "minAllowed": lower_bound.clamp(1, may_open.max(1)),
                "maxAllowed": may_open.max(1)}}});
            let words = match uncapped_target {
                more if more > may_open => format!(
                    "the load asks for {more}, and all pods together may open {may_open}: clients wait; raise maxAllowed of the patch where \
                     the database can spare them"
                ),
                _ => format!("{target} of the {may_open} that all pods together may open; {freed} fewer would do"),
            };
            (words + stale, Some(patch))
        }
        Mode::Apply if uncapped_target > may_open => {
            let patch = json!({"spec": {"scaling": {"maxAllowed": uncapped_target}}});
            let words = format!(
                "the load asks for {uncapped_target} and maxAllowed is {may_open}: raise it where the database can spare them"
            );
            (words + stale, Some(patch))
        }
        Mode::Apply => {
            let spare = may_open.saturating_sub(upper_bound.max(target));
            (
                format!(
                    "nothing to do: sizes follow the load; of maxAllowed {may_open} up to {spare} are not needed now{stale}"
                ),
                None,
            )
        }
    }
}

/// `kubectl patch` of a pool's spec.
pub fn patch_command(document: &PoolDocument, spec: &str) -> String {
    let (name, namespace) = (document.name(), document.in_namespace());
    format!("kubectl {namespace} patch cpool {name} --type merge -p '{{\"spec\":{spec}}}'")
}

/// The table of what is recommended.
pub fn table(advice: &[PoolAdvice], columns: Columns) -> TextTable {
    let headers = ["NAME", "MODE", "SIZE", "MAY OPEN", "TARGET", "LOWER", "UPPER", "UNCAPPED", "CONFIDENCE"];
    let headers: Vec<&str> = columns.namespace.then_some("NAMESPACE").into_iter().chain(headers).collect();
    let mut table = TextTable::new(&headers);
    for pool in advice {
        let of = |of: fn(&Recommendation) -> u32| cell(pool.recommendation.as_ref().map(of));
        let mut row = if columns.namespace { vec![pool.namespace.clone()] } else { Vec::new() };
        row.extend([
            pool.name.clone(),
            pool.mode.to_owned(),
            cell(pool.current_size),
            cell(pool.may_open),
            of(|recommendation| recommendation.target),
            of(|recommendation| recommendation.lower_bound),
            of(|recommendation| recommendation.upper_bound),
            of(|recommendation| recommendation.uncapped_target),
            cell(pool.recommendation.map(|recommendation| confidence(recommendation.confidence))),
        ]);
        table.push(row);
    }
    table
}

/// What is recommended for one pool, in words, with the command that follows it.
pub fn text(document: &PoolDocument, advice: &PoolAdvice) -> String {
    let mut text = format!("\n{}: {}\n", document.key(), advice.words);
    if let Some(spec) = advice.patch.as_ref().map(|patch| &patch["spec"]) {
        text = text + "to follow it:\n  " + &patch_command(document, &spec.to_string()) + "\n";
    }
    if let Some(words) = document.skew() {
        text = text + "\n" + &words + "\n";
    }
    text
}

const fn confidence(confidence: Confidence) -> &'static str {
    match confidence {
        Confidence::Low => "Low",
        Confidence::Medium => "Medium",
        Confidence::High => "High",
    }
}
