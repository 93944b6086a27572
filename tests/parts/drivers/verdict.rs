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
    /// What it fails with, and with nothing else: SQLSTATE, or what the driver's program has in its place.
    pub codes: &'static [&'static str],
}

/// What programs say where the driver gave an answer, and that was wrong.
pub const WRONG: &str = "WRONG";

const fn known(driver: &'static str, operation: &'static str, cause: Cause, codes: &'static [&'static str]) -> Known {
    Known { driver, operation, cause, codes }
}

/// What whoever runs the unnamed statement of another client is told beside its wrong answers: how codes begin, and what else is said,
/// as PgBouncer has `08P01` for whom it cuts.
const ANOTHER_STATEMENT: [(&str, &str); 6] = [
    ("08P01", "bind message"),
    ("22", ""),
    // where the driver has no SQLSTATE: an answer of another shape
    ("ERROR", "no rows in result set"),
    ("ERROR", "can't scan into dest"),
    ("ERROR", "number of field descriptions"),
    ("ERROR", "mismatched param and argument count"),
];

/// All of them; docs/drivers.md says what to do about each.
pub const KNOWN: &[Known] = &[
    known("asyncpg", "empty", Cause::Driver, &["AttributeError"]),
    known("django", "iterator", Cause::TransactionPooling, &["34000"]),
    known("pgx", "describe_exec", Cause::TransactionPooling, &["26000", WRONG]),
    known("postgres.js", "copy", Cause::OldPooler, &[]),
    known("psycopg", "hold_cursor", Cause::TransactionPooling, &["34000", "42P03"]),
    known("sqlx", "copy_refused", Cause::OldPooler, &[]),
    known("sqlx", "many_prepared", Cause::OldPooler, &[]),
    known("sqlx", "prepared", Cause::OldPooler, &[]),
];

/// What of a driver cannot be run with this version of PgBouncer.
pub fn left_out(driver: &str, pooler_has_old_faults: bool) -> Vec<&'static str> {
    let old = KNOWN.iter().filter(|known| pooler_has_old_faults && known.cause == Cause::OldPooler);
    old.filter(|known| known.driver == driver).map(|known| known.operation).collect()
}

/// The cause that is known for this error of the operation. Another error of it, a cut connection among them, has none.
pub fn cause(driver: &str, told: &Told) -> Option<Cause> {
    let is_it = |known: &&Known| known.driver == driver && known.operation == told.operation;
    let code = told.code.as_deref()?;
    let words = told.message.as_deref().unwrap_or_default();
    let is_another = ANOTHER_STATEMENT.iter().any(|(begin, said)| code.starts_with(begin) && words.contains(said));
    let is_known = |known: &&Known| known.codes.contains(&code) || known.codes.contains(&WRONG) && is_another;
    let known = KNOWN.iter().find(is_it).filter(is_known)?;
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
    told.way == Way::Pool && told.code.as_deref() == Some(WRONG) && message.contains("57014")
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

fn told(way: Way, operation: &str, code: &str) -> Told {
    let (operation, code) = (operation.to_owned(), Some(code.to_owned()));
    Told { way, worker: "a client".to_owned(), operation, milliseconds: 1, code, message: None }
}

#[test]
fn what_is_known_of_an_operation_forgives_that_error_and_not_a_cut_connection() {
    for known in KNOWN.iter().filter(|known| known.cause != Cause::OldPooler) {
        let of = |way, code: &str| cause(known.driver, &told(way, known.operation, code));
        let without_pooler = (known.cause == Cause::Driver).then_some(Cause::Driver);
        assert!(!known.codes.is_empty(), "{} of {}", known.operation, known.driver);
        for code in known.codes {
            assert_eq!(of(Way::Pool, code), Some(known.cause), "{} of {}", known.operation, known.driver);
            assert_eq!(of(Way::Direct, code), without_pooler, "{} of {}", known.operation, known.driver);
        }
        for cut in ["08006", "08P01", "57P01", "ConnectionDoesNotExistError", "OperationalError", "ERROR", "DEADLINE"] {
            assert_eq!(of(Way::Pool, cut), None, "{} of {}: {cut}", known.operation, known.driver);
        }
    }
}

#[test]
fn what_is_known_of_an_older_pooler_forgives_nothing() {
    for known in KNOWN.iter().filter(|known| known.cause == Cause::OldPooler) {
        assert_eq!(cause(known.driver, &told(Way::Pool, known.operation, "42P05")), None);
    }
}

#[test]
fn an_answer_of_another_shape_is_that_of_another_statement_and_a_connection_that_ended_is_none() {
    let of = |words: &str| {
        let said = Told { message: Some(words.to_owned()), ..told(Way::Pool, "describe_exec", "ERROR") };
        cause("pgx", &said)
    };
    for words in ["can't scan into dest[0]: int4: invalid length: expected 4 bytes, got 1", "no rows in result set"] {
        assert_eq!(of(words), Some(Cause::TransactionPooling), "{words}");
    }
    for words in ["failed to receive message: unexpected EOF", "conn closed", "read: connection reset by peer"] {
        assert_eq!(of(words), None, "{words}");
    }
}
