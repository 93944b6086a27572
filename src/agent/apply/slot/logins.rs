//! Server connections that log in, and what must not be done to them: the shell around [`crate::agent::decide::quiet`].

use super::{Slot, SlotError, limits::Recycling, takeover::databases_of};
use crate::{
    agent::decide::{
        machine::Millis,
        quiet::{self, Clearance, LoginsSeen, OpeningBounds},
    },
    contract::{LimitsReadBack, PoolRevision},
    pooler::pgbouncer::{console::ConsoleError, render::Rendered},
};

/// The parameter that has PgBouncer close what is to be renewed although a client holds it, outside of a transaction.
const FAST_CLOSE: &str = "server_fast_close";
/// Looks taken in one go; the next ones are for the next round.
const MOST_LOOKS: usize = 4;

/// What logins are seen of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LoginsLook {
    /// Some log in, or could begin to.
    SomeLogIn,
    /// Nobody does, and nobody begins to.
    NobodyLogsIn,
    /// Some do, and have been waited for long enough.
    TimeIsOver,
}

impl Slot {
    /// The limits that a RELOAD is to leave in force; None while they are unknown.
    pub fn limits_to_keep(&self) -> Option<LimitsReadBack> {
        self.limits.map(|limits| self.quiet.without(limits))
    }

    /// Whether server connections may be told to end now: none logs in, and until the command is there none begins to. What that
    /// needs is held back from the first call on that says no, as long as calls follow.
    ///
    /// # Errors
    /// [`SlotError::Console`].
    pub async fn is_quiet(&mut self, now: Millis) -> Result<bool, SlotError> {
        let seen = self.look_for_logins(now).await?;
        if seen == LoginsLook::TimeIsOver {
            tracing::warn!(
                slot = self.name.as_str(),
                "server connections are told to end although some still log in after {} s: clients may be cut",
                quiet::LONGEST / 1000
            );
        }
        Ok(seen != LoginsLook::SomeLogIn)
    }

    pub(super) async fn look_for_logins(&mut self, now: Millis) -> Result<LoginsLook, SlotError> {
        for _ in 0..MOST_LOOKS {
            let limits = match self.limits {
                Some(limits) => limits,
                None => self.read_limits().await?,
            };
            let (pools, alias) = self.console.pools(&self.database).await?;
            let logins = pools.login.saturating_add(alias.login);
            match self.quiet.step(now, &LoginsSeen { logins, held: pools.held(), limits }) {
                Clearance::Hold(bounds) => self.hold(bounds, limits).await?,
                Clearance::Wait => break,
                Clearance::Go => return Ok(LoginsLook::NobodyLogsIn),
                Clearance::GoAnyway => return Ok(LoginsLook::TimeIsOver),
            }
        }
        Ok(LoginsLook::SomeLogIn)
    }

    /// Has PgBouncer open no more than this, and keeps what is open from ending by its age.
    async fn hold(&mut self, bounds: OpeningBounds, limits: LimitsReadBack) -> Result<(), SlotError> {
        // what it was given is needed to bring the times back
        if self.recycling == Recycling::AsConfigured && self.rendered.is_some() {
            self.recycle(Recycling::Never).await?;
        }
        // what fails half-way is read back before anything else is done
        self.limits = None;
        let figures = [
            ("min_pool_size", limits.min_pool_size, bounds.min_pool_size),
            ("default_pool_size", limits.pool_size, bounds.pool_size),
        ];
        for (name, _, wanted) in figures.into_iter().filter(|(_, in_force, wanted)| in_force != wanted) {
            self.console.set(name, &wanted.to_string()).await?;
        }
        self.read_limits().await.map(|_| ())
    }

    /// Closes the database's server connections as their transactions end, and has clients queue. See [`Slot::is_quiet`].
    pub(super) async fn pause(&mut self) -> Result<(), SlotError> {
        let done = self.console.pause(&self.database).await;
        self.quiet.is_over();
        done?;
        Ok(())
    }

    /// The latest `reconnectedAt` that was done: server connections were renewed for it, or the process began with it and has none
    /// that are older.
    pub fn reconnected_at(&self) -> Option<&str> {
        let began_with = self.runs.as_ref().and_then(|runs| runs.settings.reconnected_at.as_deref());
        began_with.max(self.reconnected_at.as_deref())
    }

    /// Whether server connections may be older than this `reconnectedAt`.
    pub fn owes_reconnect(&self, at: &str) -> bool {
        self.reconnected_at().is_none_or(|done| done < at)
    }

    /// The process goes on with another revision. What was done for a later `reconnectedAt` than it names stays known.
    pub fn goes_on_with(&mut self, revision: PoolRevision) {
        self.reconnected_at = self.reconnected_at().map(str::to_owned);
        self.runs = Some(revision);
    }

    /// Has them renewed for it. See [`Slot::is_quiet`].
    ///
    /// # Errors
    /// [`SlotError::Console`].
    pub async fn reconnect_for(&mut self, at: &str) -> Result<(), SlotError> {
        self.reconnect().await?;
        self.reconnected_at = Some(at.to_owned());
        Ok(())
    }

    /// Has server connections closed as their transactions end, and others opened. See [`Slot::is_quiet`].
    ///
    /// # Errors
    /// [`SlotError::Console`].
    pub async fn reconnect(&mut self) -> Result<(), SlotError> {
        let done = self.console.reconnect().await;
        self.quiet.is_over();
        done?;
        Ok(())
    }

    /// Has server connections closed that a client holds outside of a transaction, or a session idle, until [`Slot::stop_closing_idle`]; the
    /// session alias's only if they are to be renewed by then. See [`Slot::is_quiet`].
    ///
    /// # Errors
    /// [`SlotError::Console`]; it may be in force then.
    pub async fn close_idle(&mut self) -> Result<(), SlotError> {
        self.console.set(FAST_CLOSE, "1").await?;
        let done = self.console.reconnect_database(&self.database).await;
        self.quiet.is_over();
        done?;
        Ok(())
    }

    /// Has them closed as the settings say.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub async fn stop_closing_idle(&mut self) -> Result<(), ConsoleError> {
        let configured = self.parameter(FAST_CLOSE).unwrap_or("0").to_owned();
        self.console.set(FAST_CLOSE, &configured).await
    }
}

/// Whether a RELOAD ends server connections: the database is reached in another way, or as another user, or TLS is another one
/// (`parse_database` of PgBouncer's `loader.c`, `sbuf_tls_setup` of its `sbuf.c`). Another password in the auth file ends none. None:
/// what the process was given is not known.
pub(super) fn ends_server_connections(before: Option<&Rendered>, after: &Rendered) -> bool {
    fn tls(rendered: &Rendered) -> impl Iterator<Item = &(String, String)> {
        rendered.parameters.iter().filter(|(name, _)| name.starts_with("server_tls_"))
    }
    before.is_none_or(|before| databases_of(&before.ini) != databases_of(&after.ini) || !tls(before).eq(tls(after)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pooler::pgbouncer::render::Credentials;

    fn rendered(user: &str, password: &str, parameters: &[(&str, &str)]) -> Rendered {
        let parameters: Vec<_> =
            parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Rendered {
            ini: format!("[databases]\nshop = host='db' user='{user}'\n\n[pgbouncer]\n{parameters:?}"),
            auth_file: format!("\"{user}\" \"{password}\"\n"),
            certificates: Vec::new(),
            parameters,
            session_alias: None,
            credentials: Credentials { username: user.to_owned(), password: password.to_owned() },
        }
    }

    #[test]
    fn another_user_another_ca_and_another_certificate_end_server_connections_and_a_password_or_a_limit_does_not() {
        let file =
            [("server_tls_sslmode", "verify-full"), ("server_tls_ca_file", "/run/ca-1"), ("default_pool_size", "4")];
        let before = rendered("shop", "one", &file);
        let ends = |after: &Rendered| ends_server_connections(Some(&before), after);
        assert!(ends_server_connections(None, &before), "of a process that was taken up nothing is known");
        assert!(!ends(&before));
        assert!(!ends(&rendered("shop", "two", &file)));
        assert!(!ends(&rendered("shop", "one", &[file[0], file[1], ("default_pool_size", "9")])));
        assert!(ends(&rendered("shop_2", "one", &file)));
        assert!(ends(&rendered("shop", "one", &[file[0], ("server_tls_ca_file", "/run/ca-2"), file[2]])));
        assert!(ends(&rendered("shop", "one", &[("server_tls_sslmode", "require"), file[2]])));
        let shows = [file[0], file[1], ("server_tls_cert_file", "/run/shop.crt"), file[2]];
        assert!(ends(&rendered("shop", "one", &shows)));
    }
}
