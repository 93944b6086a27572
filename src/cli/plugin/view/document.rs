//! A pool as it was read: what the API server said, what this build understands of it, and what it does not.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};
use serde_json::Value;

use super::{named::named, time::age, version, vocabulary};
use crate::{
    api::{ConnectionPool, ConnectionPoolStatus, conditions},
    domain::PoolKey,
};

/// A pool as it was read.
#[derive(Clone, Debug)]
pub struct PoolDocument {
    /// What the API server said, word for word.
    pub raw: Value,
    /// What this build understands.
    pub pool: ConnectionPool,
    /// Fields and words of it that this build does not know: a newer operator's.
    pub unknown: Vec<String>,
}

/// A pool that this build cannot read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadablePool {
    /// Which.
    pub key: PoolKey,
    /// Why, and what to do.
    pub words: String,
}

impl PoolDocument {
    /// Reads what the API server said.
    ///
    /// # Errors
    /// [`UnreadablePool`]: a value that this build does not know, as a newer version writes it.
    pub fn read(raw: Value) -> Result<Self, UnreadablePool> {
        let pool: ConnectionPool = serde_json::from_value(raw.clone()).map_err(|error| {
            let text = |field: &str| raw["metadata"][field].as_str().unwrap_or_default().to_owned();
            let key = PoolKey::new(text("namespace"), text("name"));
            let words = format!(
                "ConnectionPool {key} is not understood by this plugin {}: {error}; it was written for another version of Sluice: use \
                 the plugin of the operator's version",
                env!("CARGO_PKG_VERSION")
            );
            UnreadablePool { key, words }
        })?;
        let understood = serde_json::to_value(&pool).unwrap_or_default();
        let mut unknown = Vec::new();
        for part in ["spec", "status"] {
            fields_beyond(part, &raw[part], &understood[part], &mut unknown);
        }
        let document = Self { raw, pool, unknown };
        let words = document.unknown_words();
        Ok(Self { unknown: document.unknown.into_iter().chain(words).collect(), ..document })
    }

    /// Namespace and name.
    pub fn key(&self) -> PoolKey {
        let metadata = &self.pool.metadata;
        PoolKey::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.pool.metadata.name.as_deref().unwrap_or_default()
    }

    /// Its status; the empty one where nobody has written any.
    pub fn status(&self) -> ConnectionPoolStatus {
        self.pool.status.clone().unwrap_or_default()
    }

    /// One of its conditions.
    pub fn condition(&self, type_: &str) -> Option<&Condition> {
        self.pool.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == type_)
    }

    /// Whether the status speaks of the spec as it is now.
    pub fn is_observed(&self) -> bool {
        let observed = self.pool.status.as_ref().and_then(|status| status.observed_generation);
        observed.is_some() && observed >= self.pool.metadata.generation
    }

    /// `-n NAMESPACE`, for commands that are shown.
    pub fn in_namespace(&self) -> String {
        format!("-n {}", self.key().namespace)
    }

    /// That this plugin and the operator are of different versions, by what this build does not understand and by what the operator says of
    /// itself; none where all of it is understood, and it says the same version or none.
    pub fn skew(&self) -> Option<String> {
        if !self.unknown.is_empty() {
            return Some(format!(
                "{}: this plugin {} does not know {}: the operator is newer, so use the plugin of its version",
                self.key(),
                env!("CARGO_PKG_VERSION"),
                named(&self.unknown)
            ));
        }
        let operator = self.pool.status.as_ref()?.operator_version.as_deref()?;
        let (words, todo) = version::skew(operator)?;
        Some(format!("{}: {words}: {todo}", self.key()))
    }

    /// Conditions and reasons that are in no vocabulary of this build.
    fn unknown_words(&self) -> Vec<String> {
        let known = vocabulary::reasons();
        let conditions = self.pool.status.iter().flat_map(|status| &status.conditions);
        let mut words = Vec::new();
        for condition in conditions {
            if !conditions::ALL.contains(&condition.type_.as_str()) {
                words.push(format!("the condition {}", condition.type_));
            } else if !known.contains(&condition.reason.as_str()) {
                words.push(format!("the reason {} of {}", condition.reason, condition.type_));
            }
        }
        words
    }
}

/// Paths of fields that were said and not understood. What says nothing (null, an empty list or object) is left out when it is written.
fn fields_beyond(path: &str, said: &Value, understood: &Value, found: &mut Vec<String>) {
    match (said, understood) {
        (Value::Object(said), understood) => {
            for (name, value) in said {
                let says_nothing = match value {
                    Value::Null => true,
                    Value::Array(items) => items.is_empty(),
                    Value::Object(fields) => fields.is_empty(),
                    _ => false,
                };
                match understood.get(name) {
                    Some(understood) => fields_beyond(&format!("{path}.{name}"), value, understood, found),
                    None if says_nothing => {}
                    None => found.push(format!("{path}.{name}")),
                }
            }
        }
        (Value::Array(said), Value::Array(understood)) => {
            for (said, understood) in said.iter().zip(understood) {
                fields_beyond(&format!("{path}[]"), said, understood, found);
            }
        }
        _ => {}
    }
    found.dedup();
}

/// `Ready=False/NoMetrics for 3m`.
pub fn said(condition: &Condition, now: Timestamp) -> String {
    let since = age(condition.last_transition_time.0, now);
    format!("{}={}/{} for {since}", condition.type_, condition.status, condition.reason)
}
