//! What is known of the pods in one interval.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::settings::BuiltIn;

/// Which revision a pod runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Track {
    /// The revision before, which the canary is compared with.
    Stable,
    /// The revision that is judged.
    Canary,
}

/// A figure that may be missing or no number. Absent is not zero, and what is no number decides nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum SampledFigure {
    /// There is none.
    #[default]
    Absent,
    /// NaN, an infinity, or below zero.
    Unusable,
    /// Finite, and not below zero.
    Value(f64),
}

impl SampledFigure {
    /// The number, if it is one.
    pub fn value(self) -> Option<f64> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Unusable => None,
        }
    }
}

impl From<f64> for SampledFigure {
    fn from(value: f64) -> Self {
        if value.is_finite() && value >= 0.0 { Self::Value(value) } else { Self::Unusable }
    }
}

impl Serialize for SampledFigure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Absent => serializer.serialize_none(),
            Self::Unusable => serializer.serialize_str("NaN"),
            Self::Value(value) => serializer.serialize_f64(*value),
        }
    }
}

impl<'de> Deserialize<'de> for SampledFigure {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl de::Visitor<'_> for Reader {
            type Value = SampledFigure;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a number, null, or \"NaN\", \"+Inf\", \"-Inf\" as Prometheus writes them")
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<SampledFigure, E> {
                Ok(value.into())
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<SampledFigure, E> {
                Ok((value as f64).into())
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<SampledFigure, E> {
                Ok((value as f64).into())
            }
            fn visit_unit<E: de::Error>(self) -> Result<SampledFigure, E> {
                Ok(SampledFigure::Absent)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<SampledFigure, E> {
                match text {
                    "NaN" | "+Inf" | "-Inf" | "Inf" => Ok(SampledFigure::Unusable),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

impl JsonSchema for SampledFigure {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SampledFigure".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number of 0 or more. Absent or null: there is none. \"NaN\", \"+Inf\", \"-Inf\" and what is below 0: no figure, and it decides nothing.",
            "anyOf": [{"type": "number"}, {"type": "null"}, {"enum": ["NaN", "+Inf", "-Inf", "Inf"]}]
        })
    }
}

/// What one pod did in one interval. Names of fields have their units; fields of other names are passed over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PodInterval {
    /// Name of the pod.
    pub pod: String,
    /// Which revision it runs.
    pub track: Track,
    /// Transactions finished in the interval.
    #[serde(default)]
    pub transactions: SampledFigure,
    /// Their mean time in milliseconds, without the wait.
    #[serde(default)]
    pub transaction_mean_ms: SampledFigure,
    /// The mean time that they waited for a server connection, in milliseconds.
    #[serde(default)]
    pub wait_mean_ms: SampledFigure,
    /// The longest that a client waits now, in milliseconds.
    #[serde(default)]
    pub wait_max_ms: SampledFigure,
    /// Errors that the pooler gave clients in the interval.
    #[serde(default)]
    pub errors: SampledFigure,
    /// Logins that failed in the interval, of clients or at the database.
    #[serde(default)]
    pub login_failures: SampledFigure,
    /// Clients that the pooler cut in the interval.
    #[serde(default)]
    pub clients_cut: SampledFigure,
}

impl PodInterval {
    /// A pod of which nothing is known yet.
    pub fn new(pod: &str, track: Track) -> Self {
        Self {
            pod: pod.to_owned(),
            track,
            transactions: SampledFigure::Absent,
            transaction_mean_ms: SampledFigure::Absent,
            wait_mean_ms: SampledFigure::Absent,
            wait_max_ms: SampledFigure::Absent,
            errors: SampledFigure::Absent,
            login_failures: SampledFigure::Absent,
            clients_cut: SampledFigure::Absent,
        }
    }

    /// The figure that a metric is made of.
    pub(super) fn figure(&self, metric: BuiltIn) -> SampledFigure {
        match metric {
            BuiltIn::TransactionTime => self.transaction_mean_ms,
            BuiltIn::WaitTime => self.wait_mean_ms,
            BuiltIn::Errors => self.errors,
            BuiltIn::LongestWait => self.wait_max_ms,
            BuiltIn::LoginFailures => self.login_failures,
            BuiltIn::ClientsCut => self.clients_cut,
        }
    }

    /// Whether it is known that the pod did nothing: its means are of nothing, and no error says nothing.
    pub(super) fn is_idle(&self) -> bool {
        self.transactions == SampledFigure::Value(0.0)
    }
}

/// What a query of the user's own returned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Measurement {
    /// The metric of the settings.
    pub name: String,
    /// Each series that the query returned. Exactly one is a measurement; none and several are not.
    pub series: Vec<MeasuredSeries>,
}

/// One series of a measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MeasuredSeries {
    /// Its labels, as the message is to name it.
    #[serde(default)]
    pub labels: String,
    /// Its value; it may be below zero. `null` and `"NaN"` are no value.
    #[serde(default, deserialize_with = "any_number")]
    #[schemars(with = "SampledFigure")]
    pub value: Option<f64>,
}

/// Unlike a figure of a pod, what a query returns may be negative.
fn any_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Any {
        Number(f64),
        Other(SampledFigure),
    }
    Ok(match Any::deserialize(deserializer)? {
        Any::Number(number) => Some(number),
        Any::Other(other) => other.value(),
    })
}

/// All that is known at one instant.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// When, in seconds on any clock that does not jump; later than the look before.
    pub at_seconds: f64,
    /// Every pod, in any order.
    pub pods: &'a [PodInterval],
    /// What the user's own queries returned since the look before.
    pub measurements: &'a [Measurement],
}
