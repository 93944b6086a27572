//! PURE: what a PgBouncer that runs needs for a change, by its version.
//!
//! What it gives back to a client with each server connection ([`Remembered`]) decides over some of it: a client that was let in as
//! one role is that role for as long as it stays, and a server connection of another one is of no use to it.

use super::{
    parameters::{self, Effect},
    version::Version,
};

/// What is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// The limit, the share, or what is kept open without clients.
    Limits,
    /// A parameter of `[pgbouncer]`, by its name.
    Parameter(&'a str),
    /// The password of the user.
    Password,
    /// The user that server connections are opened as.
    User,
    /// The bundle that verifies the database's certificate.
    ServerCa,
    /// What the database is shown.
    UpstreamCertificate,
    /// What clients are shown.
    ClientCertificate,
    /// Name or size of the session alias: clients of an entry that is gone are cut.
    SessionAlias,
}

/// What it needs, so that no client that is connected notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// `SET` on the console.
    Set,
    /// New files and a `RELOAD`.
    Reload,
    /// A new process; who is connected stays with the one before.
    NewProcess,
}

/// A program, as far as it decides what a change needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program<'a> {
    /// Its version.
    pub version: Version,
    /// Its `track_extra_parameters`.
    pub tracks_extra: &'a str,
}

/// A parameter of a database session that PgBouncer may remember for each client. It learns it when the client logs in, and again
/// whenever the database reports another value to it, and sets it on every server connection that it gives the client. Nothing
/// makes it forget: neither RELOAD nor RECONNECT nor a reset of the server connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remembered {
    /// The role. Setting it on a connection of another role fails, and cuts the client; where that other role is a superuser it
    /// works, and the client goes on as the one before.
    Role,
    /// Whether transactions are read-only by default.
    ReadOnly,
}

/// Since when each is remembered without being asked for (PgBouncer's pull requests 1573 and 1580). The database reports the role in
/// all versions, and `default_transaction_read_only` since PostgreSQL 14.
const REMEMBERED_SINCE: [(Remembered, &str, Version); 2] = [
    (Remembered::Role, "session_authorization", Version { major: 1, minor: 26, patch: 0 }),
    (Remembered::ReadOnly, "default_transaction_read_only", Version { major: 1, minor: 26, patch: 0 }),
];

/// Settings that Sluice decides over and that only a new process takes over.
const FIXED: [&str; 5] = ["listen_addr", "listen_port", "unix_socket_dir", "unix_socket_mode", "resolv_conf"];

impl Program<'_> {
    /// Whether it remembers this for each client.
    pub fn remembers(self, what: Remembered) -> bool {
        let asked_for = |name: &str| self.tracks_extra.split(',').any(|extra| extra.trim().eq_ignore_ascii_case(name));
        REMEMBERED_SINCE
            .iter()
            .any(|(remembered, name, since)| *remembered == what && (self.version >= *since || asked_for(name)))
    }

    /// What a change needs.
    pub fn needs(self, change: Change<'_>) -> Needs {
        match change {
            Change::Limits => Needs::Set,
            Change::Parameter(name) if is_fixed(name) => Needs::NewProcess,
            Change::User if self.remembers(Remembered::Role) => Needs::NewProcess,
            Change::Parameter(_)
            | Change::Password
            | Change::User
            | Change::ServerCa
            | Change::UpstreamCertificate
            | Change::ClientCertificate => Needs::Reload,
            Change::SessionAlias => Needs::NewProcess,
        }
    }
}

/// Whether a parameter keeps its value for the life of a process, in every version.
pub fn is_fixed(name: &str) -> bool {
    FIXED.contains(&name) || parameters::find(name).is_some_and(|parameter| parameter.effect == Effect::Restart)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(text: &str, tracks_extra: &'static str) -> Program<'static> {
        Program { version: Version::find(&format!("PgBouncer {text}")).unwrap(), tracks_extra }
    }

    #[test]
    fn another_user_needs_a_new_process_where_clients_are_bound_to_their_role() {
        let of = |text, extra| program(text, extra).needs(Change::User);
        assert_eq!(of("1.24.1", "IntervalStyle"), Needs::Reload);
        assert_eq!(of("1.25.2", "IntervalStyle"), Needs::Reload);
        assert_eq!(of("1.26.0", "IntervalStyle"), Needs::NewProcess);
        assert_eq!(of("1.26.1", ""), Needs::NewProcess);
        assert_eq!(of("2.0.0", ""), Needs::NewProcess);
        assert_eq!(of("1.24.1", "IntervalStyle, SESSION_AUTHORIZATION"), Needs::NewProcess);
        assert_eq!(of("1.24.1", "session_authorization_x"), Needs::Reload);
    }

    #[test]
    fn what_was_read_only_is_remembered_by_those_versions_and_where_that_was_asked_for() {
        let of = |text, extra| program(text, extra).remembers(Remembered::ReadOnly);
        assert!(!of("1.25.2", "IntervalStyle,search_path"));
        assert!(of("1.25.2", "IntervalStyle,default_transaction_read_only"));
        assert!(of("1.26.1", ""));
    }

    #[test]
    fn passwords_certificates_and_most_parameters_are_reloaded_and_limits_are_set_in_every_version() {
        for text in ["1.24.1", "1.25.2", "1.26.1"] {
            let needs = |change| program(text, "").needs(change);
            assert_eq!(needs(Change::Limits), Needs::Set);
            let read_anew =
                [Change::Password, Change::ServerCa, Change::UpstreamCertificate, Change::ClientCertificate];
            for change in read_anew {
                assert_eq!(needs(change), Needs::Reload, "{change:?}");
            }
            assert_eq!(needs(Change::Parameter("server_lifetime")), Needs::Reload);
            assert_eq!(needs(Change::Parameter("pkt_buf")), Needs::NewProcess);
            assert_eq!(needs(Change::Parameter("unix_socket_dir")), Needs::NewProcess);
            assert_eq!(needs(Change::SessionAlias), Needs::NewProcess);
        }
    }
}
