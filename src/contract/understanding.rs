//! Which settings an agent understands, so that nobody takes a revision for proven that its agent could not read in full.
//!
//! An agent skips a setting that it has never heard of, runs the rest, and would tell the revision as in force. So each setting has the
//! level of the first agents that know it, an agent tells its level in [`StatusReport::understands`], and the operator compares. An
//! agent refuses by name what a newer operator asks for beyond its level. Settings are left out of a revision while they are what they
//! would be without, so an operator that is newer asks nothing of pools that do not use what is new.

use serde_json::Value;

use super::{OutageAction, RolloutSettings, Settings, StatusReport};

/// The level of this build: the highest below.
pub const SETTINGS_LEVEL: u32 = 2;

/// Every setting by its path in a revision, and the level of the first agents that know it. A new one gets a new level.
const SETTINGS: [(&str, u32); 30] = [
    ("poolMode", 1),
    ("role", 1),
    ("parameters", 1),
    ("sessionAlias.database", 1),
    ("sessionAlias.connections", 1),
    ("reconnectedAt", 1),
    ("health.validationQuery", 1),
    ("health.periodSeconds", 1),
    ("health.queryWaitTimeoutSeconds", 1),
    ("health.leakThresholdSeconds", 1),
    ("health.outageAction", 2),
    ("scaling.algorithm", 1),
    ("scaling.limitSource", 1),
    ("scaling.objective.waitMilliseconds", 1),
    ("scaling.objective.maxWaitingPercent", 1),
    ("scaling.targetUtilizationPercent", 1),
    ("scaling.behavior.scaleUp.stabilizationWindowSeconds", 1),
    ("scaling.behavior.scaleUp.selectPolicy", 1),
    ("scaling.behavior.scaleUp.policies", 1),
    ("scaling.behavior.scaleUp.tolerance", 1),
    ("scaling.behavior.scaleDown.stabilizationWindowSeconds", 1),
    ("scaling.behavior.scaleDown.selectPolicy", 1),
    ("scaling.behavior.scaleDown.policies", 1),
    ("scaling.behavior.scaleDown.tolerance", 1),
    ("rollout.autoPromotionEnabled", 1),
    ("rollout.scaleDownDelaySeconds", 1),
    ("rollout.drainTimeoutSeconds", 1),
    // of each policy; no pool has them in this place, and their names are checked all the same
    ("policy.type", 1),
    ("policy.value", 1),
    ("policy.periodSeconds", 1),
];

/// Longest names of settings that are told, and how many.
const LONGEST_NAME: usize = 80;
const MOST_NAMES: usize = 5;

/// The settings of one pool in a revision's text that this build does not know; none where the text is not a revision.
pub fn unknown_here(text: &str, pool: &str) -> Vec<String> {
    let document: Value = serde_json::from_str(text).unwrap_or_default();
    let mut unknown: Vec<String> = paths(&document["pools"][pool]["settings"]);
    unknown.retain(|path| SETTINGS.iter().all(|(known, _)| known != path));
    for path in &mut unknown {
        *path = path.chars().filter(|c| !c.is_control()).take(LONGEST_NAME).collect();
    }
    unknown.truncate(MOST_NAMES);
    unknown
}

/// The settings that the agent which says this does not know.
pub fn unknown_to(report: &StatusReport, settings: &Settings) -> Vec<&'static str> {
    // the common case, for thousands of pods
    if report.understands >= SETTINGS_LEVEL {
        return Vec::new();
    }
    if report.understands == 0 {
        return untold(report, settings);
    }
    let asked = paths(&serde_json::to_value(settings).unwrap_or_default());
    let newer = SETTINGS.iter().filter(|(_, since)| *since > report.understands);
    newer.filter(|(path, _)| asked.iter().any(|asked| asked == path)).map(|(path, _)| *path).collect()
}

/// An agent from before they told. What it says of a setting shows that it knows it.
fn untold(report: &StatusReport, settings: &Settings) -> Vec<&'static str> {
    // what is renewed has a condition of its own
    let evidence = [
        ("sessionAlias", settings.session_alias.is_some() && report.session_alias.is_none()),
        ("rollout.autoPromotionEnabled", !settings.rollout.auto_promotion_enabled && report.proof.is_none()),
        ("rollout", settings.rollout != RolloutSettings::default() && report.switching.is_none()),
        ("health.outageAction", settings.health.outage_action != OutageAction::default() && report.circuit.is_none()),
    ];
    evidence.into_iter().filter(|(_, is_unknown)| *is_unknown).map(|(path, _)| path).collect()
}

/// The paths of everything that a revision says. Parameters are named and checked elsewhere; of policies each part is named alike.
fn paths(settings: &Value) -> Vec<String> {
    fn walk(value: &Value, path: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) if path != "parameters" => {
                for (name, value) in fields {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    walk(value, &path, found);
                }
            }
            Value::Array(items) => {
                found.push(path.to_owned());
                for name in items.iter().filter_map(Value::as_object).flat_map(|fields| fields.keys()) {
                    found.push(format!("policy.{name}"));
                }
            }
            _ => found.push(path.to_owned()),
        }
    }
    let mut found = Vec::new();
    walk(settings, "", &mut found);
    found.sort();
    found.dedup();
    found.retain(|path| !path.is_empty());
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{Document, RevisionDocument};

    /// Every setting there is.
    const ALL: &str = r#"{"v":1,"pools":{"shop":{"revision":3,"settings":{"poolMode":"Session","role":"Any",
        "parameters":{"server_lifetime":"60"},"sessionAlias":{"database":"shop_session","connections":2},
        "reconnectedAt":"2026-11-28T12:00:00Z",
        "health":{"validationQuery":"select 1","periodSeconds":10,"queryWaitTimeoutSeconds":30,"leakThresholdSeconds":300,
        "outageAction":"Queue"},"scaling":{"algorithm":"Adaptive","limitSource":"Share","objective":{"waitMilliseconds":20,"maxWaitingPercent":1.0},
        "targetUtilizationPercent":70,"behavior":{
        "scaleUp":{"stabilizationWindowSeconds":0,"selectPolicy":"Max","policies":[{"type":"Percent","value":1,"periodSeconds":2}],"tolerance":0.0},
        "scaleDown":{"stabilizationWindowSeconds":0,"selectPolicy":"Max","policies":[],"tolerance":0.05}}},
        "rollout":{"autoPromotionEnabled":false,"scaleDownDelaySeconds":1,"drainTimeoutSeconds":2}}}}}"#;

    fn settings() -> Settings {
        RevisionDocument::parse(ALL).unwrap().pools.remove("shop").unwrap().settings
    }

    fn report(understands: u32) -> StatusReport {
        let text = format!(
            r#"{{"v":1,"podUid":"u","pool":"shop","revision":3,"wantedRevision":3,"epoch":1,"seq":1,"share":1,"limits":null,
                "held":null,"slot":"Serving","message":"","understands":{understands}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn every_setting_has_its_level_and_this_build_understands_the_highest() {
        let mut known: Vec<&str> = SETTINGS.iter().map(|(path, _)| *path).collect();
        known.sort_unstable();
        // what is written is what is read: a setting that is missing in the table above is one that nobody gave a level
        assert_eq!(paths(&serde_json::to_value(settings()).unwrap()), known);
        assert_eq!(SETTINGS.iter().map(|(_, level)| *level).max(), Some(SETTINGS_LEVEL));
        assert_eq!(unknown_here(ALL, "shop"), Vec::<String>::new());
    }

    #[test]
    fn what_a_newer_operator_asks_for_is_named() {
        let newer = ALL.replace(r#""poolMode""#, r#""warmStandby":{"pods":2},"poolMode""#);
        let newer = newer.replace(r#""tolerance":0.05"#, r#""tolerance":0.05,"jitter":1"#);
        assert_eq!(unknown_here(&newer, "shop"), ["scaling.behavior.scaleDown.jitter", "warmStandby.pods"]);
        assert_eq!(unknown_here(&newer, "another"), Vec::<String>::new());
        assert_eq!(unknown_here("no document", "shop"), Vec::<String>::new());
    }

    #[test]
    fn an_agent_that_does_not_tell_knows_what_it_speaks_of() {
        let settings = settings();
        assert_eq!(unknown_to(&report(SETTINGS_LEVEL), &settings), Vec::<&str>::new());
        assert_eq!(
            unknown_to(&report(0), &settings),
            ["sessionAlias", "rollout.autoPromotionEnabled", "rollout", "health.outageAction"]
        );
        assert_eq!(unknown_to(&report(1), &settings), ["health.outageAction"]);
        let usual = Settings {
            health: crate::contract::HealthSettings {
                outage_action: OutageAction::FailFast,
                ..settings.health.clone()
            },
            ..settings.clone()
        };
        assert_eq!(unknown_to(&report(1), &usual), Vec::<&str>::new(), "what is as it was is asked of nobody");
        let spoken = StatusReport {
            session_alias: Some(crate::contract::SessionAliasReport {
                database: "shop_session".to_owned(),
                connections: 2,
                held: 0,
                clients: 0,
                paused: false,
            }),
            proof: Some(crate::contract::ProofMode::Query),
            switching: Some(crate::contract::Switching::Steer),
            circuit: Some(crate::contract::CircuitReport {
                state: crate::contract::CircuitState::Closed,
                since_seconds: 0,
                why: String::new(),
            }),
            ..report(0)
        };
        assert_eq!(unknown_to(&spoken, &settings), Vec::<&str>::new());
    }
}
