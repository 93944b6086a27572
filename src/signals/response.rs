//! The JSON that Prometheus answers with, read without copying what is not kept.

use std::borrow::Cow;

use serde::{Deserialize, de::IgnoredAny};

/// The answer to an instant query.
#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
pub(super) struct Answer<'a> {
    pub status: Status,
    #[serde(default)]
    pub data: Option<Data<'a>>,
    #[serde(default, rename = "errorType", borrow)]
    pub error_type: Cow<'a, str>,
    #[serde(default, borrow)]
    pub error: Cow<'a, str>,
    #[serde(default)]
    pub warnings: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Success,
    Error,
}

/// What a query yielded, by type.
#[derive(Debug, Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase", bound(deserialize = "'de: 'a"))]
pub(super) enum Data<'a> {
    Vector(Vec<Series<'a>>),
    Scalar(#[serde(borrow)] Point<'a>),
    Matrix(IgnoredAny),
    String(IgnoredAny),
}

impl Data<'_> {
    pub const fn type_name(&self) -> &'static str {
        match self {
            Self::Vector(_) => "vector",
            Self::Scalar(_) => "scalar",
            Self::Matrix(_) => "matrix",
            Self::String(_) => "string",
        }
    }
}

/// One element of a vector. An element without `value` is a native histogram.
#[derive(Debug, Deserialize)]
pub(super) struct Series<'a> {
    #[serde(borrow)]
    pub metric: Labels<'a>,
    #[serde(default, borrow)]
    pub value: Option<Point<'a>>,
}

/// The labels that count; empty where absent, as in Prometheus.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Labels<'a> {
    #[serde(borrow)]
    pub pool_namespace: Cow<'a, str>,
    #[serde(borrow)]
    pub pool: Cow<'a, str>,
    #[serde(borrow)]
    pub namespace: Cow<'a, str>,
    #[serde(borrow)]
    pub pod: Cow<'a, str>,
    #[serde(borrow)]
    pub job: Cow<'a, str>,
    #[serde(borrow)]
    pub instance: Cow<'a, str>,
}

/// Time of the evaluation, which says nothing about the sample's, and the value as text.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Point<'a>(IgnoredAny, #[serde(borrow)] &'a str);

impl Point<'_> {
    /// The value, if it is one that a count or a time can have.
    pub fn value(&self) -> Result<f64, &str> {
        self.1.parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0).ok_or(self.1)
    }
}
