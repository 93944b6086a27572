//! PURE: classifies what PgBouncer writes to its log, because it has no error counters of its own.
//!
//! Of a login that the database refused PgBouncer logs the words and not the SQLSTATE, and the words are in the language of the
//! server (`lc_messages`). What is not understood is [`PoolerError::ServerRefused`]: the agent then finds out by a login of its
//! own, which is told the SQLSTATE.

use crate::contract::{Between, PoolerError};

/// Of an error so many characters are told.
const MOST_WORDS: usize = 200;
/// Characters of the name of a parameter: PostgreSQL's own names are not longer.
const LONGEST_NAME: usize = 63;

/// An error in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Its class.
    pub error: PoolerError,
    /// What was said, bounded, control characters escaped, and nothing that a client sent but the name of a parameter.
    pub words: String,
    /// False when a client is told what was known before.
    pub is_news: bool,
}

impl From<PoolerError> for Logged {
    fn from(error: PoolerError) -> Self {
        Self { error, words: String::new(), is_news: true }
    }
}

/// What precedes the database's words in a line about a login that it refused.
const LOGIN: &str = "server login failed: ";
/// What precedes them in a line about a client that is told of an earlier login.
const TOLD: &str = "server login has been failing, cached error: ";
/// What precedes a startup parameter that is not passed on; its value may follow, and may be a secret.
const UNSUPPORTED: [&str; 2] = ["unsupported startup parameter in options: ", "unsupported startup parameter: "];

/// What the database says when it refuses a login, in English; the first that fits decides. Of connections that never came to
/// a login clients are told in PgBouncer's own words.
const OF_LOGIN: &[(&str, PoolerError)] = &[
    // the three texts of 53300
    ("too many connections", PoolerError::TooManyServerConnections),
    ("too many clients already", PoolerError::TooManyServerConnections),
    ("remaining connection slots are reserved", PoolerError::TooManyServerConnections),
    ("client certificate", PoolerError::ServerWantsCertificate),
    ("certificate authentication failed", PoolerError::ServerWantsCertificate),
    ("database system is", PoolerError::ServerNotReady),
    ("database system was", PoolerError::ServerNotReady),
    ("terminating connection due to administrator command", PoolerError::ServerNotReady),
    ("connect string changed", PoolerError::ServerLoginInterrupted),
    ("dns lookup failed", PoolerError::DnsFailed),
    ("server refused ssl", PoolerError::ServerTlsFailed),
    ("certificate verify failed", PoolerError::ServerTlsFailed),
    ("not present in server certificate", PoolerError::ServerTlsFailed),
    ("tls", PoolerError::ServerTlsFailed),
    ("connect failed", PoolerError::ServerUnreachable),
    ("connect timeout", PoolerError::ServerUnreachable),
    ("server conn crashed", PoolerError::ServerUnreachable),
    // 28P01, 28000, 3D000, 42501, 55000, and what PgBouncer itself finds wrong with an exchange of passwords
    ("authentication failed", PoolerError::ServerLoginRefused),
    ("pg_hba.conf", PoolerError::ServerLoginRefused),
    ("does not exist", PoolerError::ServerLoginRefused),
    ("is not permitted to log in", PoolerError::ServerLoginRefused),
    ("permission denied", PoolerError::ServerLoginRefused),
    ("is not currently accepting connections", PoolerError::ServerLoginRefused),
    ("wrong password type", PoolerError::ServerLoginRefused),
    ("server signature", PoolerError::ServerLoginRefused),
    ("sasl authentication mechanisms", PoolerError::ServerLoginRefused),
    ("failed to answer authreq", PoolerError::ServerLoginRefused),
];

/// The words to look for in all other lines, in this order; the first that fits decides.
const PATTERNS: &[(&str, PoolerError)] = &[
    ("too many connections", PoolerError::TooManyServerConnections),
    ("too many clients already", PoolerError::TooManyServerConnections),
    ("remaining connection slots are reserved", PoolerError::TooManyServerConnections),
    ("certificate authentication failed", PoolerError::ServerWantsCertificate),
    // PostgreSQL's words, which clients that waited are cut with; PgBouncer's own do not name the user
    ("authentication failed for user", PoolerError::ServerLoginRefused),
    ("valid client certificate", PoolerError::ServerWantsCertificate),
    ("too many open files", PoolerError::OutOfSlots),
    ("no more connections allowed", PoolerError::OutOfSlots),
    ("client connections exceeded", PoolerError::OutOfSlots),
    ("server refused ssl", PoolerError::ServerTlsFailed),
    ("server login failed", PoolerError::ServerRefused),
    ("cannot do scram authentication", PoolerError::ServerLoginRefused),
    ("wrong password type", PoolerError::ServerLoginRefused),
    ("dns lookup failed", PoolerError::DnsFailed),
    ("server dns lookup failed", PoolerError::DnsFailed),
    ("certificate verify failed", PoolerError::ServerTlsFailed),
    ("not present in server certificate", PoolerError::ServerTlsFailed),
    ("tls connect error", PoolerError::ServerTlsFailed),
    // PgBouncer does not say whose handshake it was; a database alerts of a client certificate alone, with TLS 1.3 after the handshake
    (" alert ", PoolerError::ClientTlsFailed),
    ("tls accept error", PoolerError::ClientTlsFailed),
    ("tls handshake error", PoolerError::ServerTlsFailed),
    ("certificate", PoolerError::ServerTlsFailed),
    ("query_wait_timeout", PoolerError::ClientTimeout),
    ("query wait timeout", PoolerError::ClientTimeout),
    ("client_idle_timeout", PoolerError::ClientTimeout),
    ("client_login_timeout", PoolerError::ClientTimeout),
    ("query timeout", PoolerError::ClientTimeout),
    ("idle transaction timeout", PoolerError::ClientTimeout),
    ("password authentication failed", PoolerError::ClientLoginRefused),
    ("no such user", PoolerError::ClientLoginRefused),
    ("no such database", PoolerError::ClientLoginRefused),
    ("sasl authentication failed", PoolerError::ClientLoginRefused),
    ("connect failed", PoolerError::ServerUnreachable),
    ("connect timeout", PoolerError::ServerUnreachable),
    ("server conn crashed", PoolerError::ServerUnreachable),
    ("connection refused", PoolerError::ServerUnreachable),
    ("connection reset", PoolerError::ServerUnreachable),
    ("connection timed out", PoolerError::ServerUnreachable),
    ("in configuration", PoolerError::Configuration),
    ("unknown parameter", PoolerError::Configuration),
    ("broken auth file", PoolerError::Configuration),
    ("auth_file", PoolerError::Configuration),
];

/// What precedes an alert that came when the handshake was over on our side. With TLS 1.3 that is how a database tells that it does
/// not accept a client certificate; a client that does not trust the pooler's breaks off earlier.
const LATE_ALERT: &str = "tls_sbufio_recv: read failed: ";
/// Words of the alerts that are about a certificate.
const OF_CERTIFICATES: [&str; 2] = ["alert unknown ca", "certificate"];

/// The line from its level on. "2026-11-21 03:36:16.000 UTC [7] WARNING text": the level is the first word of capitals that
/// follows the pid.
fn from_level(line: &str) -> Option<&str> {
    let at = ["WARNING ", "ERROR ", "FATAL ", "LOG "].iter().filter_map(|level| line.find(level)).min()?;
    line.get(at..)
}

/// Reads one line; None for what is no error.
pub fn read(line: &str) -> Option<Logged> {
    let text = from_level(line)?;
    let error = classify_text(text)?;
    let words = match error.between() {
        Between::PoolerAndDatabase => spoken(essence(line)),
        _ if error == PoolerError::UnsupportedStartupParameter => spoken(parameter(text).unwrap_or("options")),
        // what clients send says nothing about the pool
        Between::ClientsAndPooler | Between::Nobody => String::new(),
    };
    // PgBouncer logs a refusal, and then each client that is told of it
    let told = text.contains("pooler error: ");
    let is_news = !told || error.between() != Between::PoolerAndDatabase && parameter(text).is_none();
    Some(Logged { error, words, is_news })
}

/// Whether a line tells that there was no descriptor for a client.
pub fn is_refused_accept(line: &str) -> bool {
    line.contains("ERROR accept() failed: ")
}

/// Classifies one line; None for what is no error.
pub fn classify(line: &str) -> Option<PoolerError> {
    classify_text(from_level(line)?)
}

fn classify_text(text: &str) -> Option<PoolerError> {
    let text = text.to_ascii_lowercase();
    let is_log = text.starts_with("log ");
    let find = |table: &[(&str, PoolerError)], text: &str| {
        table.iter().find(|(words, _)| text.contains(words)).map(|(_, error)| *error)
    };
    if !is_log {
        // before all else: what clients send could say anything
        if parameter(&text).is_some() || text.contains("unsupported options startup parameter") {
            return Some(PoolerError::UnsupportedStartupParameter);
        }
        let said = [LOGIN, TOLD].iter().find_map(|before| text.split_once(before));
        if let Some((_, said)) = said {
            return Some(find(OF_LOGIN, said).unwrap_or(PoolerError::ServerRefused));
        }
        let alert = text.split_once(LATE_ALERT).map(|(_, alert)| alert).filter(|alert| alert.contains(" alert "));
        if alert.is_some_and(|alert| OF_CERTIFICATES.iter().any(|words| alert.contains(words))) {
            return Some(PoolerError::ServerWantsCertificate);
        }
    }
    match find(PATTERNS, &text) {
        // Plain LOG lines report closings with the same words; only those about the database are errors.
        Some(error) if is_log => {
            let counts = matches!(error, PoolerError::ServerUnreachable | PoolerError::ServerTlsFailed);
            (counts && text.contains("closing because")).then_some(error)
        }
        None if is_log => None,
        found => Some(found.unwrap_or(PoolerError::Other)),
    }
}

/// Name of the startup parameter that a line says is not passed on.
fn parameter(text: &str) -> Option<&str> {
    let (_, rest) = UNSUPPORTED.iter().find_map(|before| text.split_once(before))?;
    rest.split(['=', ' ']).next()
}

/// A line as it may be repeated in our own log: without the value of a parameter, which may be a secret.
pub fn redacted(line: &str) -> &str {
    let at = UNSUPPORTED.iter().find_map(|before| Some(line.find(before)? + before.len()));
    let end = at.and_then(|at| Some(at + line.get(at..)?.find('=')?));
    end.and_then(|end| line.get(..end)).unwrap_or(line)
}

/// Of a line of the log what is the same each time.
pub fn essence(line: &str) -> &str {
    let tail = |words: &str| line.split_once(words).map(|(_, tail)| tail);
    let tail = tail("closing because: ")
        .or_else(|| tail(TOLD))
        // the severity comes first, in the language of the server
        .or_else(|| Some(tail(LOGIN)?.split_once(' ')?.1))
        .or_else(|| tail("pooler error: "))
        .or_else(|| ["WARNING ", "ERROR ", "FATAL ", "LOG "].iter().find_map(|level| tail(level)));
    let tail = tail.unwrap_or(line);
    let tail = tail.split_once(" (age=").map_or(tail, |(tail, _)| tail);
    tail.trim_end_matches(" (server_login_retry)").trim()
}

/// Words that others chose, as they may be told: bounded, control characters escaped.
pub fn spoken(words: &str) -> String {
    let most = if words.contains(' ') { MOST_WORDS } else { LONGEST_NAME };
    words.chars().take(most).flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_are_classified_by_what_they_tell() {
        let cases = [
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING server login failed: FATAL password authentication failed for user \"shop\"",
                Some(PoolerError::ServerLoginRefused),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING server login failed: FATAL sorry, too many clients already",
                Some(PoolerError::TooManyServerConnections),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] LOG S-0x55: shop/shop@127.0.0.1:5999 closing because: connect failed (age=0s)",
                Some(PoolerError::ServerUnreachable),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING C-0x55: shop/shop@127.0.0.1:40000 pooler error: server login has been failing, cached error: connect failed (server_login_retry)",
                Some(PoolerError::ServerUnreachable),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING C-0x55: shop/shop@127.0.0.1:40000 pooler error: server login has been failing, cached error: password authentication failed for user \"shop\" (server_login_retry)",
                Some(PoolerError::ServerLoginRefused),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING C-0x55: shop/shop@127.0.0.1:40000 pooler error: server login has been failing, cached error: connect string changed (server_login_retry)",
                Some(PoolerError::ServerLoginInterrupted),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING DNS lookup failed: pg.db.svc: result=0",
                Some(PoolerError::DnsFailed),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING TLS handshake error: handshake failed: error:0A000086:SSL routines::certificate verify failed",
                Some(PoolerError::ServerTlsFailed),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING TLS handshake error: name `pg.db.svc' not present in server certificate",
                Some(PoolerError::ServerTlsFailed),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING C-0x55: shop/shop@127.0.0.1:40000 pooler error: server login has been failing, cached error: server refused SSL (server_login_retry)",
                Some(PoolerError::ServerTlsFailed),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING TLS handshake error: handshake failed: error:0A000418:SSL routines::tlsv1 alert unknown ca",
                Some(PoolerError::ClientTlsFailed),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING C-0x55: shop/shop@127.0.0.1:40000 pooler error: query_wait_timeout",
                Some(PoolerError::ClientTimeout),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING server login failed: FATAL the database system is starting up",
                Some(PoolerError::ServerNotReady),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING server login failed: FATAL zu viele Verbindungen von Rolle »shop«",
                Some(PoolerError::ServerRefused),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING server login failed: FATAL connection requires a valid client certificate",
                Some(PoolerError::ServerWantsCertificate),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING C-0x55: shop/shop@127.0.0.1:40000 pooler error: certificate authentication failed for user \"shop\"",
                Some(PoolerError::ServerWantsCertificate),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING tls_sbufio_recv: read failed: error:0A000418:SSL routines::tlsv1 alert unknown ca",
                Some(PoolerError::ServerWantsCertificate),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING tls_sbufio_recv: read failed: error:0A000415:SSL routines::ssl/tls alert certificate expired",
                Some(PoolerError::ServerWantsCertificate),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING tls_sbufio_recv: read failed: error:0A000438:SSL routines::tlsv1 alert internal error",
                Some(PoolerError::ClientTlsFailed),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING C-0x55: shop/shop@127.0.0.1:40000 pooler error: password authentication failed",
                Some(PoolerError::ClientLoginRefused),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING C-0x55: shop/shop@127.0.0.1:40000 pooler error: password authentication failed for user \"shop\"",
                Some(PoolerError::ServerLoginRefused),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING C-0x55: (nodb)/(nouser)@127.0.0.1:40000 unsupported startup parameter: search_path=too many connections",
                Some(PoolerError::UnsupportedStartupParameter),
            ),
            ("2026-11-21 03:36:16.000 UTC [7] LOG process up: PgBouncer 1.24.1", None),
            ("2026-11-21 03:36:16.000 UTC [7] WARNING something new", Some(PoolerError::Other)),
            ("", None),
        ];
        for (line, class) in cases {
            assert_eq!(classify(line), class, "{line}");
        }
    }

    #[test]
    fn every_text_of_53300_of_postgresql_15_and_18_is_known() {
        for text in [
            "too many connections for role \"shop\"",
            "too many connections for database \"shop\"",
            "sorry, too many clients already",
            "remaining connection slots are reserved for non-replication superuser connections",
            "remaining connection slots are reserved for roles with the SUPERUSER attribute",
            "remaining connection slots are reserved for roles with privileges of the \"pg_use_reserved_connections\" role",
        ] {
            let line = format!("2026-11-21 03:36:16.000 UTC [7] WARNING server login failed: FATAL {text}");
            let expected =
                Logged { error: PoolerError::TooManyServerConnections, words: text.to_owned(), is_news: true };
            assert_eq!(read(&line).as_ref(), Some(&expected));
            let told = format!(
                "2026-11-21 03:36:16.000 UTC [7] WARNING C-0x55: shop/shop@127.0.0.1:40000 pooler error: server login has been failing, cached error: {text} (server_login_retry)"
            );
            let told = read(&told).expect("an error");
            assert_eq!((told.error, told.words.as_str(), told.is_news), (expected.error, text, false));
        }
    }

    #[test]
    fn of_a_startup_parameter_its_name_is_told_and_its_value_nowhere() {
        let line = "2026-11-21 03:36:16.000 UTC [7] WARNING C-0x55: (nodb)/(nouser)@unix:1 unsupported startup parameter in options: app.key=hunter2";
        let logged = read(line).expect("an error");
        assert_eq!((logged.error, logged.words.as_str()), (PoolerError::UnsupportedStartupParameter, "app.key"));
        assert!(!redacted(line).contains("hunter2") && redacted(line).ends_with("app.key"));
        let again = "2026-11-21 03:36:16.000 UTC [7] WARNING C-0x55: (nodb)/(nouser)@unix:1 pooler error: unsupported startup parameter in options: app.key";
        assert!(read(again).is_some_and(|logged| !logged.is_news && logged.words == "app.key"));
        assert_eq!(redacted(again), again);
    }

    #[test]
    fn words_of_another_language_are_told_as_they_are_without_control_characters() {
        let line = "2026-11-21 03:36:16.000 UTC [7] WARNING server login failed: \u{412}АЖНО слишком много\u{7}";
        let logged = read(line).expect("an error");
        assert_eq!((logged.error, logged.words.as_str()), (PoolerError::ServerRefused, "слишком много\\u{7}"));
        let long = format!("2026-11-21 03:36:16.000 UTC [7] WARNING server login failed: FATAL {}", "é ".repeat(5000));
        assert!(read(&long).is_some_and(|logged| logged.words.chars().count() <= MOST_WORDS));
    }

    #[test]
    fn of_a_line_of_the_log_remains_what_is_the_same_each_time() {
        let cases = [
            (
                "2026-11-21 03:36:16.000 UTC [7] LOG S-0x55: shop/shop@127.0.0.1:5999 closing because: connect failed (age=0s)",
                "connect failed",
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING DNS lookup failed: pg.db.svc: result=0",
                "DNS lookup failed: pg.db.svc: result=0",
            ),
            ("2026-11-21 03:36:16.000 UTC [7] FATAL cannot load config file", "cannot load config file"),
            ("something", "something"),
        ];
        for (line, rest) in cases {
            assert_eq!(essence(line), rest);
        }
    }

    proptest! {
        #[test]
        fn any_line_is_classified_without_panic(line in any::<String>()) {
            let _ = (classify(&line), read(&line), redacted(&line), essence(&line));
        }
    }
}
