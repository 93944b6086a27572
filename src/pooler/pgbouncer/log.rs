//! PURE: classifies what PgBouncer writes to its log, because it has no error counters of its own.

/// What a line tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PoolerError {
    /// The database refused a login (`28P01`, `28000`, unknown role or database).
    ServerLoginRefused,
    /// The database has no connection left (`53300`).
    TooManyServerConnections,
    /// A server connection was told to end while it logged in, and clients were cut for want of another.
    ServerLoginInterrupted,
    /// No connection to the database: refused, reset, timed out.
    ServerUnreachable,
    /// The database's name does not resolve.
    DnsFailed,
    /// No name server gave an answer about it; one from before is used, if there is one. The agent finds that out itself.
    NameServerFailed,
    /// TLS towards the database failed.
    ServerTlsFailed,
    /// A client broke off TLS.
    ClientTlsFailed,
    /// A client gave a wrong password or user.
    ClientLoginRefused,
    /// A client was turned away or cut by a timeout of the pooler.
    ClientTimeout,
    /// No client slot or file descriptor left.
    OutOfSlots,
    /// The configuration was not understood.
    Configuration,
    /// Some other warning or error.
    Other,
}

impl PoolerError {
    /// The value of the label `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ServerLoginRefused => "ServerLoginRefused",
            Self::TooManyServerConnections => "TooManyServerConnections",
            Self::ServerLoginInterrupted => "ServerLoginInterrupted",
            Self::ServerUnreachable => "ServerUnreachable",
            Self::DnsFailed => "DnsFailed",
            Self::NameServerFailed => "NameServerFailed",
            Self::ServerTlsFailed => "ServerTlsFailed",
            Self::ClientTlsFailed => "ClientTlsFailed",
            Self::ClientLoginRefused => "ClientLoginRefused",
            Self::ClientTimeout => "ClientTimeout",
            Self::OutOfSlots => "OutOfSlots",
            Self::Configuration => "Configuration",
            Self::Other => "Other",
        }
    }
}

/// The words to look for, in this order; the first that fits decides.
const PATTERNS: &[(&str, PoolerError)] = &[
    ("too many connections", PoolerError::TooManyServerConnections),
    ("too many clients already", PoolerError::TooManyServerConnections),
    ("remaining connection slots are reserved", PoolerError::TooManyServerConnections),
    ("too many open files", PoolerError::OutOfSlots),
    ("no more connections allowed", PoolerError::OutOfSlots),
    // clients are told with these words of connections that never came to a login
    ("server refused ssl", PoolerError::ServerTlsFailed),
    ("cached error: server conn crashed", PoolerError::ServerUnreachable),
    ("cached error: connect failed", PoolerError::ServerUnreachable),
    ("cached error: server dns lookup failed", PoolerError::DnsFailed),
    ("cached error: connect string changed", PoolerError::ServerLoginInterrupted),
    ("server login failed", PoolerError::ServerLoginRefused),
    ("server login has been failing", PoolerError::ServerLoginRefused),
    ("cannot do scram authentication", PoolerError::ServerLoginRefused),
    ("wrong password type", PoolerError::ServerLoginRefused),
    ("dns lookup failed", PoolerError::DnsFailed),
    ("server dns lookup failed", PoolerError::DnsFailed),
    ("certificate verify failed", PoolerError::ServerTlsFailed),
    ("not present in server certificate", PoolerError::ServerTlsFailed),
    ("tls connect error", PoolerError::ServerTlsFailed),
    // PgBouncer does not say whose handshake it was; a database has no reason to send an alert
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

/// Whether a line tells that there was no descriptor for a client.
pub fn is_refused_accept(line: &str) -> bool {
    line.contains("ERROR accept() failed: ")
}

/// Classifies one line; None for what is no error.
pub fn classify(line: &str) -> Option<PoolerError> {
    // "2026-11-21 03:36:16.000 UTC [7] WARNING text": the level is the first word of capitals that follows the pid.
    let level_at = ["WARNING ", "ERROR ", "FATAL ", "LOG "].iter().filter_map(|level| line.find(level)).min()?;
    let text = line[level_at..].to_ascii_lowercase();
    if let Some((_, error)) = PATTERNS.iter().find(|(words, _)| text.contains(words)) {
        // Plain LOG lines report closings with the same words; only those about the database are errors.
        let is_log = text.starts_with("log ");
        let told_as_log = matches!(error, PoolerError::ServerUnreachable | PoolerError::ServerTlsFailed);
        return (!is_log || (told_as_log && text.contains("closing because"))).then_some(*error);
    }
    (!text.starts_with("log ")).then_some(PoolerError::Other)
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
            ("2026-11-21 03:36:16.000 UTC [7] LOG process up: PgBouncer 1.24.1", None),
            ("2026-11-21 03:36:16.000 UTC [7] WARNING something new", Some(PoolerError::Other)),
            ("", None),
        ];
        for (line, class) in cases {
            assert_eq!(classify(line), class, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_classified_without_panic(line in any::<String>()) {
            let _ = classify(&line);
        }
    }
}
