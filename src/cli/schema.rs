//! A value that somebody writes by hand, against the schema of the custom resource definitions: unknown fields and numbers out of their
//! range are refused with their path, as the API server would.

use serde_json::{Map, Value};

use crate::api::crds;

/// The schema of a field of a pool's spec; `Null` where there is none.
pub fn of_pool(field: &str) -> Value {
    let crds = crds();
    let pool = crds.iter().find(|crd| crd.spec.names.kind == "ConnectionPool");
    let schema = pool.and_then(|crd| crd.spec.versions.first()?.schema.as_ref()?.open_api_v3_schema.as_ref());
    let schema = serde_json::to_value(schema).unwrap_or_default();
    schema["properties"]["spec"]["properties"][field].clone()
}

/// Checks a value against what a schema says of types, fields, lists, enumerations and ranges.
///
/// # Errors
/// The path of the first value that cannot be, and what may stand there.
pub fn check(path: &str, value: &Value, schema: &Value) -> Result<(), String> {
    if value.is_null() && schema["nullable"] == true {
        return Ok(());
    }
    let wrong = |expected: String| Err(format!("{path} is {value}; expected {expected}"));
    match (schema["type"].as_str().unwrap_or_default(), value) {
        ("object", Value::Object(fields)) => check_fields(path, fields, schema),
        ("array", Value::Array(items)) => {
            let bound = |name: &str| schema[name].as_u64().and_then(|bound| usize::try_from(bound).ok());
            let (least, most) = (bound("minItems").unwrap_or(0), bound("maxItems").unwrap_or(usize::MAX));
            if !(least..=most).contains(&items.len()) {
                return wrong(format!("a list of {least} to {most}"));
            }
            let numbered = items.iter().enumerate();
            numbered
                .into_iter()
                .try_for_each(|(index, item)| check(&format!("{path}[{index}]"), item, &schema["items"]))
        }
        ("string", Value::String(text)) => match schema["enum"].as_array() {
            Some(all) if !all.contains(value) => {
                let all: Vec<&str> = all.iter().filter_map(Value::as_str).collect();
                wrong(format!("one of {}", all.join(", ")))
            }
            _ if schema["maxLength"].as_u64().is_some_and(|most| text.len() as u64 > most) => {
                wrong(format!("at most {} characters", schema["maxLength"]))
            }
            _ => Ok(()),
        },
        ("integer", Value::Number(number)) => {
            let least = schema["minimum"].as_f64().unwrap_or(f64::MIN);
            let most = schema["maximum"].as_f64().unwrap_or(f64::MAX);
            let fits = number.as_f64().is_some_and(|number| (least..=most).contains(&number));
            if fits && !number.is_f64() { Ok(()) } else { wrong(format!("a whole number from {least} to {most}")) }
        }
        (expected, _) => wrong(format!("{expected}, as in a ConnectionPool")),
    }
}

fn check_fields(path: &str, fields: &Map<String, Value>, schema: &Value) -> Result<(), String> {
    let below = |field: &str| if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
    let known = schema["properties"].as_object().cloned().unwrap_or_default();
    for (field, value) in fields {
        let Some(schema) = known.get(field) else {
            let known: Vec<&str> = known.keys().map(String::as_str).collect();
            return Err(format!("{} is no field; known are {}", below(field), known.join(", ")));
        };
        check(&below(field), value, schema)?;
    }
    let mut required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    match required.find(|field| !fields.contains_key(*field)) {
        Some(missing) => Err(format!("{} is missing", below(missing))),
        None => Ok(()),
    }
}
