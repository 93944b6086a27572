//! PURE: classifies what PgBouncer writes to its log, because it has no error counters of its own.
//!
//! Of a login that the database refused PgBouncer logs the words and not the SQLSTATE, and the words are in the language of the
//! server (`lc_messages`). What is not understood is [`PoolerError::ServerRefused`]: the agent then finds out by a login of its
//! own, which is told the SQLSTATE.
//!
//! Clients write here too, before they have logged in: their user's name stands in each line about them, and a newline in what they
//! sent begins another line, which PgBouncer indents. So a line counts by its beginning, and of one about a client only what PgBouncer
//! tells it.

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
    ("tls startup failed", PoolerError::ServerTlsFailed),
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

/// A line of the log: "2026-11-21 03:36:16.000 UTC [7] WARNING text".
#[derive(Clone, Copy)]
struct Line<'a> {
    level: &'a str,
    text: &'a str,
}

impl<'a> Line<'a> {
    /// None for what PgBouncer did not begin: another line of something that it was sent.
    fn parse(line: &'a str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        let (date, time, _zone, pid) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let is_of = |text: &str, marks: &str| {
            !text.is_empty() && text.chars().all(|character| character.is_ascii_digit() || marks.contains(character))
        };
        let pid = pid.strip_prefix('[')?.strip_suffix(']')?;
        let begins = is_of(date, "-") && is_of(time, ":.") && is_of(pid, "");
        let (level, text) = (words.next()?, words.next()?);
        (begins && ["WARNING", "ERROR", "FATAL", "LOG"].contains(&level)).then_some(Self { level, text })
    }

    fn is_log(self) -> bool {
        self.level == "LOG"
    }

    /// Whether it is about a client, and holds what that sent.
    fn is_of_client(self) -> bool {
        self.text.starts_with("C-")
    }

    /// What PgBouncer tells a client that has a pool, which has a user that is known; None in all other lines.
    fn told(self) -> Option<&'a str> {
        let (_, socket) = self.text.split_once(": ").filter(|_| self.is_of_client())?;
        if socket.starts_with("(nodb)") {
            return None;
        }
        // the name of a user may have spaces
        let is_address = |word: &str| {
            let port = word.split_once('@').and_then(|(_, address)| address.rsplit_once(':'));
            port.is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
        };
        let address = socket.split(' ').find(|word| is_address(word))?;
        let (_, said) = socket.split_once(address)?;
        said.strip_prefix(" pooler error: ")
    }

    /// What the database, or PgBouncer about it, said: nothing that a client sent is in it.
    fn said(self) -> Option<&'a str> {
        if self.is_of_client() { self.told() } else { Some(self.text) }
    }

    /// None for what is no error.
    fn classify(self) -> Option<PoolerError> {
        let text = self.text.to_ascii_lowercase();
        let find = |table: &[(&str, PoolerError)], text: &str| {
            table.iter().find(|(words, _)| text.contains(words)).map(|(_, error)| *error)
        };
        if self.is_log() {
            // Closings are reported with the same words; only those about the database are errors.
            let is_closing = !self.is_of_client() && text.contains("closing because");
            let counts =
                |error: &PoolerError| matches!(error, PoolerError::ServerUnreachable | PoolerError::ServerTlsFailed);
            return find(PATTERNS, &text).filter(|error| is_closing && counts(error));
        }
        if parameter(&text).is_some() || text.contains("unsupported options startup parameter") {
            return Some(PoolerError::UnsupportedStartupParameter);
        }
        let Some(said) = self.said().map(str::to_ascii_lowercase) else {
            // it may have any name, and may have sent anything
            let told = text.rsplit_once("pooler error: ").and_then(|(_, told)| find(PATTERNS, told));
            let counts = |error: &PoolerError| {
                matches!(error, PoolerError::ClientLoginRefused | PoolerError::ClientTimeout | PoolerError::OutOfSlots)
            };
            return Some(told.filter(counts).unwrap_or(PoolerError::Other));
        };
        let before = if self.is_of_client() { TOLD } else { LOGIN };
        if let Some(words) = said.strip_prefix(before) {
            return Some(find(OF_LOGIN, words).unwrap_or(PoolerError::ServerRefused));
        }
        let alert = said.strip_prefix(LATE_ALERT).filter(|alert| alert.contains(" alert "));
        if alert.is_some_and(|alert| OF_CERTIFICATES.iter().any(|words| alert.contains(words))) {
            return Some(PoolerError::ServerWantsCertificate);
        }
        Some(find(PATTERNS, &said).unwrap_or(PoolerError::Other))
    }
}

/// Reads one line; None for what is no error.
pub fn read(line: &str) -> Option<Logged> {
    let line = Line::parse(line)?;
    let error = line.classify()?;
    let words = match error.between() {
        Between::PoolerAndDatabase => line.said().map(|said| spoken(essence(said))).unwrap_or_default(),
        _ if error == PoolerError::UnsupportedStartupParameter => spoken(parameter(line.text).unwrap_or("options")),
        // what clients send says nothing about the pool
        Between::ClientsAndPooler | Between::Nobody => String::new(),
    };
    // PgBouncer logs a refusal, and then each client that is told of it
    let told = line.is_of_client() && line.text.contains("pooler error: ");
    let is_news = !told || error.between() != Between::PoolerAndDatabase && parameter(line.text).is_none();
    Some(Logged { error, words, is_news })
}

/// Whether a line tells that there was no descriptor for a client.
pub fn is_refused_accept(line: &str) -> bool {
    Line::parse(line).is_some_and(|line| line.level == "ERROR" && line.text.starts_with("accept() failed: "))
}

/// Classifies one line; None for what is no error.
pub fn classify(line: &str) -> Option<PoolerError> {
    Line::parse(line)?.classify()
}

/// Name of the startup parameter that a line says is not passed on.
fn parameter(text: &str) -> Option<&str> {
    let (_, rest) = UNSUPPORTED.iter().find_map(|before| text.split_once(before))?;
    rest.split(['=', ' ']).next()
}

/// A line as it may be repeated in our own log: without the value of a parameter, which may be a secret and go on in other lines;
/// None for those.
pub fn redacted(line: &str) -> Option<&str> {
    if line.starts_with('\t') {
        return None;
    }
    let at = UNSUPPORTED.iter().find_map(|before| Some(line.find(before)? + before.len()));
    let end = at.and_then(|at| Some(at + line.get(at..)?.find('=')?));
    Some(end.and_then(|end| line.get(..end)).unwrap_or(line))
}

/// Of a line of the log, or of what PgBouncer tells a client, what is the same each time.
pub fn essence(line: &str) -> &str {
    let line = Line::parse(line).map_or(line, |line| line.text);
    let tail = |words: &str| line.split_once(words).map(|(_, tail)| tail);
    let tail = tail("closing because: ")
        .or_else(|| tail(TOLD))
        // the severity comes first, in the language of the server
        .or_else(|| Some(tail(LOGIN)?.split_once(' ')?.1))
        .or_else(|| tail("pooler error: "));
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
    fn a_role_with_tls_in_its_name_is_refused_for_what_the_database_says() {
        let refused = "2026-11-21 03:36:16.000 UTC [7] WARNING server login failed: FATAL password authentication failed for user \"mtls_shop\"";
        assert_eq!(classify(refused), Some(PoolerError::ServerLoginRefused));
        let tls = "2026-11-21 03:36:16.000 UTC [7] WARNING C-0x55: shop/mtls_shop@127.0.0.1:40000 pooler error: server login has been failing, cached error: TLS startup failed (server_login_retry)";
        assert_eq!(classify(tls), Some(PoolerError::ServerTlsFailed));
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
        assert!(redacted(line).is_some_and(|line| !line.contains("hunter2") && line.ends_with("app.key")));
        let again = "2026-11-21 03:36:16.000 UTC [7] WARNING C-0x55: (nodb)/(nouser)@unix:1 pooler error: unsupported startup parameter in options: app.key";
        assert!(read(again).is_some_and(|logged| !logged.is_news && logged.words == "app.key"));
        assert_eq!(redacted(again), Some(again));
    }

    #[test]
    fn what_a_client_sent_is_never_taken_for_what_pgbouncer_or_the_database_said() {
        let lines = [
            // as PgBouncer 1.24.1 and 1.26.1 log a parameter whose value has a newline, and users that they do not know
            (
                "\t2026-11-21 03:36:16.000 UTC [7] WARNING server login failed: FATAL sorry, too many clients already",
                None,
            ),
            ("\tWARNING server login failed: FATAL sorry, too many clients already", None),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING C-0x5: (nodb)/server login failed: FATAL authentication failed@127.0.0.1:40000 pooler error: SASL authentication failed",
                Some(PoolerError::ClientLoginRefused),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] ERROR C-0x5: (nodb)/server login failed: FATAL authentication failed@127.0.0.1:40000 invalid SCRAM response (nonce does not match)",
                Some(PoolerError::Other),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING C-0x5: (nodb)/a@127.0.0.1:1 pooler error: server login has been failing, cached error: connect failed",
                Some(PoolerError::Other),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING C-0x5: (nodb)/(nouser)@127.0.0.1:1 pooler error: no such database: pooler error: sorry, too many clients already",
                Some(PoolerError::Other),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] WARNING C-0x5: (nodb)/shop@127.0.0.1:1 pooler error: no such database: an alert of certificates",
                Some(PoolerError::Other),
            ),
            (
                "2026-11-21 03:36:16.000 UTC [7] LOG C-0x5: (nodb)/(nouser)@127.0.0.1:1 no such user: closing because: connect failed",
                None,
            ),
            // by its name
            (
                "2026-11-21 03:36:16.000 UTC [7] ERROR C-0x5: shop/shop@127.0.0.1:1 prepared statement 'a@1:1 pooler error: sorry, too many clients already' not found",
                Some(PoolerError::Other),
            ),
        ];
        for (line, class) in lines {
            assert_eq!(read(line).map(|logged| logged.error), class, "{line}");
            assert!(read(line).is_none_or(|logged| logged.words.is_empty()), "{line}");
        }
        assert_eq!(redacted("\trest of a secret"), None, "the value goes on there");
        let spaces = "2026-11-21 03:36:16.000 UTC [7] WARNING C-0x5: shop/the shop@[::1]:40000 pooler error: server login has been failing, cached error: connect failed (server_login_retry)";
        assert!(read(spaces).is_some_and(|logged| logged.error == PoolerError::ServerUnreachable && !logged.is_news));
        assert!(is_refused_accept("2026-11-21 03:36:16.000 UTC [7] ERROR accept() failed: Too many open files"));
        let named =
            "2026-11-21 03:36:16.000 UTC [7] ERROR C-0x5: (nodb)/ERROR accept() failed: @127.0.0.1:1 bad packet";
        assert!(!is_refused_accept(named));
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
