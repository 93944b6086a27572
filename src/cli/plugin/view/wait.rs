//! `wait`: what is waited for, whether it is so, and what is said when it does not come.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};

use serde::Serialize;

use super::{
    document::{PoolDocument, said},
    vocabulary,
};
use crate::domain::PoolKey;

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// A condition has this status.
    Condition {
        /// Its type.
        type_: &'static str,
        /// Its status.
        status: &'static str,
    },
    /// Some condition has this reason.
    Reason(&'static str),
    /// The pool is gone.
    Deletion,
}

/// How it ended: what `wait -o json` says.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WaitAnswer {
    /// Namespace of the pool.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What was waited for, in words.
    pub awaited: String,
    /// Whether it is so.
    pub is_met: bool,
    /// In a sentence.
    pub words: String,
    /// The condition that it is about; none where there is none, and of a deletion.
    pub condition: Option<Condition>,
}

impl WaitAnswer {
    /// How it ended for a pool; `document` is none where there is no such pool.
    pub fn of(awaited: &Awaited, key: PoolKey, document: Option<&PoolDocument>, words: &str) -> Self {
        Self {
            namespace: key.namespace,
            name: key.name,
            awaited: awaited.words(),
            is_met: awaited.is_met(document),
            words: words.to_owned(),
            condition: document.and_then(|document| awaited.evidence(document)).cloned(),
        }
    }
}

/// Statuses of a condition.
const STATUSES: [&str; 3] = ["True", "False", "Unknown"];

impl Awaited {
    /// Reads `condition=TYPE`, `condition=TYPE=STATUS`, `reason=REASON` or `delete`.
    ///
    /// # Errors
    /// What is wrong, and what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.split('=');
        match (parts.next().unwrap_or_default(), parts.next(), parts.next(), parts.next()) {
            ("delete", None, None, None) => Ok(Self::Deletion),
            ("reason", Some(reason), None, None) => Ok(Self::Reason(vocabulary::reason(reason)?)),
            ("condition", Some(type_), status, None) => {
                let type_ = vocabulary::condition(type_)?;
                let wanted = status.unwrap_or("True");
                let status = STATUSES.into_iter().find(|status| status.eq_ignore_ascii_case(wanted));
                let status = status.ok_or_else(|| format!("a condition is True, False or Unknown, not {wanted}"))?;
                Ok(Self::Condition { type_, status })
            }
            _ => Err(format!(
                "`{text}` is nothing to wait for; write condition=Ready, condition=Progressing=False, reason=InForce or delete"
            )),
        }
    }

    /// Whether it is so. A status that speaks of an earlier spec says nothing yet.
    pub fn is_met(&self, document: Option<&PoolDocument>) -> bool {
        let Some(document) = document else { return *self == Self::Deletion };
        match self {
            Self::Deletion => false,
            _ => document.is_observed() && self.evidence(document).is_some_and(|condition| self.holds(condition)),
        }
    }

    fn holds(&self, condition: &Condition) -> bool {
        match self {
            Self::Condition { type_, status } => condition.type_ == *type_ && condition.status == *status,
            Self::Reason(reason) => condition.reason == *reason,
            Self::Deletion => false,
        }
    }

    /// The condition that it is about.
    fn evidence<'a>(&self, document: &'a PoolDocument) -> Option<&'a Condition> {
        let conditions = &document.pool.status.as_ref()?.conditions;
        match self {
            Self::Condition { type_, .. } => conditions.iter().find(|condition| condition.type_ == *type_),
            _ => conditions.iter().find(|condition| self.holds(condition)),
        }
    }

    /// What is waited for, in words.
    pub fn words(&self) -> String {
        match self {
            Self::Condition { type_, status } => format!("{type_}={status}"),
            Self::Reason(reason) => format!("any condition with the reason {reason}"),
            Self::Deletion => "its deletion".to_owned(),
        }
    }

    /// How things stand, in a line: what is waited for, or what stands in its place.
    pub fn standing(&self, document: &PoolDocument, now: Timestamp) -> String {
        let key = document.key();
        if !document.is_observed() && *self != Self::Deletion {
            return format!("{key}: the operator has not looked at the spec of now yet");
        }
        let evidence = self.evidence(document).or_else(|| document.condition(crate::api::conditions::READY));
        match evidence {
            Some(condition) => format!("{key}: {}: {}", said(condition, now), condition.message),
            None => format!("{key}: has no such condition"),
        }
    }
}
