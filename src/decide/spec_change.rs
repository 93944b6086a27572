//! PURE: what of a spec somebody changed, field by field.

use std::{collections::BTreeSet, fmt};

use serde_json::Value;

/// Most fields that are told one by one.
const MOST_FIELDS: usize = 12;
/// Longest value that is told, in characters: a query may have thousands.
const LONGEST_VALUE: usize = 60;
/// Whose values are told to nobody: templates of environment variables may hold passwords.
const WITHHELD: [&str; 1] = ["client.env"];

/// A field that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldChange {
    /// Its path below `spec`: `scaling.maxAllowed`. A list is a field as a whole.
    pub path: String,
    /// What it was, and what it is, as much of it as is told; None where it was not, or is not, set.
    pub values: FieldValues,
}

/// What a field was, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldValues {
    /// These.
    Told {
        /// What it was; None: not set.
        before: Option<String>,
        /// What it is; None: not set.
        after: Option<String>,
    },
    /// They are told to nobody.
    Withheld,
}

impl fmt::Display for FieldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, values } = self;
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "unset".to_owned());
        match values {
            FieldValues::Told { before, after } => write!(f, "{path} {} -> {}", shown(before), shown(after)),
            FieldValues::Withheld => write!(f, "{path} (not told: it may hold secrets)"),
        }
    }
}

/// What differs between two specs, in the order of the alphabet.
pub fn changes(before: &Value, after: &Value) -> Vec<FieldChange> {
    let mut found = Vec::new();
    compare("", Some(before), Some(after), &mut found);
    found
}

/// The same in words, `None` where nothing differs.
pub fn in_words(changes: &[FieldChange]) -> Option<String> {
    let (told, others) = changes.split_at(changes.len().min(MOST_FIELDS));
    let mut words: Vec<String> = told.iter().map(ToString::to_string).collect();
    if !others.is_empty() {
        words.push(format!("and {} more", others.len()));
    }
    (!words.is_empty()).then(|| words.join(", "))
}

fn compare(path: &str, before: Option<&Value>, after: Option<&Value>, found: &mut Vec<FieldChange>) {
    // what is absent and what is null is the same to the API server
    let (before, after) = (before.filter(|value| !value.is_null()), after.filter(|value| !value.is_null()));
    if before == after {
        return;
    }
    if WITHHELD.contains(&path) {
        found.push(FieldChange { path: path.to_owned(), values: FieldValues::Withheld });
        return;
    }
    let (fields_before, fields_after) = (before.and_then(Value::as_object), after.and_then(Value::as_object));
    let is_value = |value: Option<&Value>| value.is_some_and(|value| !value.is_object());
    if is_value(before) || is_value(after) {
        let values = FieldValues::Told { before: before.map(shown), after: after.map(shown) };
        found.push(FieldChange { path: path.to_owned(), values });
        return;
    }
    let names: BTreeSet<&String> =
        [fields_before, fields_after].into_iter().flatten().flat_map(|of| of.keys()).collect();
    if names.is_empty() {
        let values = FieldValues::Told { before: before.map(shown), after: after.map(shown) };
        found.push(FieldChange { path: path.to_owned(), values });
    }
    for name in names {
        let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        compare(&below, fields_before.and_then(|of| of.get(name)), fields_after.and_then(|of| of.get(name)), found);
    }
}

fn shown(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut shown: String = text.chars().take(LONGEST_VALUE).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(before: &Value, after: &Value) -> Option<String> {
        in_words(&changes(before, after))
    }

    #[test]
    fn every_field_that_differs_is_told_with_both_values() {
        let before = json!({"mode": "Recommend", "scaling": {"maxAllowed": 40, "minAllowed": 2}, "paused": false});
        let after =
            json!({"mode": "Apply", "scaling": {"maxAllowed": 60, "minAllowed": 2, "floorPerPod": 1}, "paused": null});
        let expected = "mode Recommend -> Apply, paused false -> unset, scaling.floorPerPod unset -> 1, scaling.maxAllowed 40 -> 60";
        assert_eq!(told(&before, &after).as_deref(), Some(expected));
        assert_eq!(told(&before, &before), None);
    }

    #[test]
    fn an_object_that_appears_or_goes_is_told_field_by_field_and_a_list_as_a_whole() {
        let (without, with) =
            (json!({}), json!({"behavior": {"scaleUp": {"policies": [{"type": "Pods"}]}}, "empty": {}}));
        let expected = r#"behavior.scaleUp.policies unset -> [{"type":"Pods"}], empty unset -> {}"#;
        assert_eq!(told(&without, &with).as_deref(), Some(expected));
        let back = r#"behavior.scaleUp.policies [{"type":"Pods"}] -> unset, empty {} -> unset"#;
        assert_eq!(told(&with, &without).as_deref(), Some(back));
        assert_eq!(told(&json!({"a": {"b": 1}}), &json!({"a": 1})).as_deref(), Some(r#"a {"b":1} -> 1"#));
    }

    #[test]
    fn what_is_put_into_environments_is_told_to_nobody() {
        let of = |password: &str| json!({"client": {"env": [{"name": "URL", "template": format!("postgres://a:{password}@h")}], "port": 6432}});
        let words = told(&of("hunter2"), &of("hunter3")).expect("it differs");
        assert_eq!(words, "client.env (not told: it may hold secrets)");
        let words = told(&json!({}), &of("hunter2")).expect("it differs");
        assert!(!words.contains("hunter2") && words.contains("client.port unset -> 6432"), "{words}");
    }

    #[test]
    fn long_values_and_many_fields_are_cut_and_counted() {
        let long = told(&json!({"query": "a"}), &json!({"query": "x\n".repeat(500)})).expect("it differs");
        assert!(long.len() < 100 && long.ends_with("...") && !long.contains('\n'), "{long}");
        let many: Value =
            (0..50).map(|at| (format!("f{at}"), Value::from(at))).collect::<serde_json::Map<_, _>>().into();
        let words = told(&json!({}), &many).expect("it differs");
        assert!(words.ends_with(", and 38 more"), "{words}");
    }
}
