//! Whose fault an error is.

use std::collections::BTreeMap;

use super::program::{Told, Way};

/// Why an operation fails that is none of ours to mend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// One client's statements run on many server connections.
    TransactionPooling,
    /// It fails without a pooler too.
    Driver,
    /// A fault of PgBouncer before 1.26.1, which spoils the server connection for whoever gets it next. So the operation is left out
    /// with an older one.
    OldPooler,
}

/// An operation that is known to fail.
pub struct Known {
    pub driver: &'static str,
    pub operation: &'static str,
    pub cause: Cause,
    /// What the table shows.
    pub code: &'static str,
}

const fn known(driver: &'static str, operation: &'static str, cause: Cause, code: &'static str) -> Known {
    Known { driver, operation, cause, code }
}

/// All of them; docs/drivers.md says what to do about each.
pub const KNOWN: &[Known] = &[
    known("asyncpg", "empty", Cause::Driver, "AttributeError"),
    known("django", "iterator", Cause::TransactionPooling, "34000"),
    known("pgx", "describe_exec", Cause::TransactionPooling, "wrong answers"),
    known("postgres.js", "copy", Cause::OldPooler, ""),
    known("psycopg", "hold_cursor", Cause::TransactionPooling, "34000"),
    known("sqlx", "copy_refused", Cause::OldPooler, ""),
    known("sqlx", "many_prepared", Cause::OldPooler, ""),
    known("sqlx", "prepared", Cause::OldPooler, ""),
];

/// What of a driver cannot be run with this version of PgBouncer.
pub fn left_out(driver: &str, pooler_has_old_faults: bool) -> Vec<&'static str> {
    let old = KNOWN.iter().filter(|known| pooler_has_old_faults && known.cause == Cause::OldPooler);
    old.filter(|known| known.driver == driver).map(|known| known.operation).collect()
}

/// The cause that is known for an error of this operation.
pub fn cause(driver: &str, told: &Told) -> Option<Cause> {
    let known = KNOWN.iter().find(|known| known.driver == driver && known.operation == told.operation)?;
    match known.cause {
        Cause::TransactionPooling => (told.way == Way::Pool).then_some(known.cause),
        Cause::Driver => Some(known.cause),
        Cause::OldPooler => None,
    }
}

/// Whether a login was refused because of its password.
pub fn is_refused_login(told: &Told) -> bool {
    let message = told.message.as_deref().unwrap_or_default();
    ["password authentication failed", "SASL authentication failed"].iter().any(|words| message.contains(words))
}

/// Whether a query went on to its end through the pool although it was cancelled.
pub fn is_lost_cancel(told: &Told) -> bool {
    let message = told.message.as_deref().unwrap_or_default();
    told.way == Way::Pool && told.code.as_deref() == Some("WRONG") && message.contains("57014")
}

/// Errors by driver, way, operation and code, with how often and what the first said.
#[derive(Debug, Default)]
pub struct Errors(BTreeMap<(String, Way, String, String), (u32, String)>);

impl Errors {
    pub fn add(&mut self, driver: &str, told: &Told) {
        let code = told.code.clone().unwrap_or_default();
        let entry = self.0.entry((driver.to_owned(), told.way, told.operation.clone(), code));
        let (count, _) = entry.or_insert_with(|| (0, told.message.clone().unwrap_or_default()));
        *count += 1;
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an operation has failed on its way.
    pub fn has(&self, driver: &str, operation: &str, way: Way) -> bool {
        self.0.keys().any(|(by, on, what, _)| by == driver && *on == way && what == operation)
    }
}
