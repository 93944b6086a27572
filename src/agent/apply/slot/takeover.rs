//! What a process works with: a RELOAD where that takes it over, read back, and what only a new process would.

use std::collections::BTreeMap;

use super::{
    Slot, SlotError,
    limits::Recycling,
    logins::{LoginsLook, ends_server_connections},
};
use crate::{
    agent::{apply::files::write_configuration, decide::machine::Millis},
    pooler::pgbouncer::{
        changes::{Change, Needs, Program, Remembered, is_fixed},
        ini,
        render::{Credentials, Rendered},
    },
};

/// What is named when another user needs a new process.
pub const USER: &str = "credentials/username";
/// The parameter that has PgBouncer remember more for each client.
const TRACKED: &str = "track_extra_parameters";

/// Whether the process works with what it was given to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Follows {
    /// It started with it, or all of it was read back.
    Proven,
    /// Not read back, or other values were.
    Unproven,
    /// All but these parameters was read back; only a new process takes them over.
    NeedsRestart(Vec<String>),
}

/// What became of a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It was in force already.
    Already,
    /// It is now, read back.
    Now,
    /// Not before server connections that log in have done so: to be asked again in the next round.
    Postponed,
    /// Not before the database lets its user log in.
    Refused,
}

/// When a RELOAD that ends server connections is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At once: nobody is served by the process.
    AtOnce,
    /// As soon as none logs in, seen from this time on.
    Quiet(Millis),
    /// Not at all: what is closed could not be opened again.
    Never,
}

impl Slot {
    /// Names of the parameters that keep the process from running `rendered`, because only a new one takes them over.
    ///
    /// # Errors
    /// [`SlotError::Console`].
    pub async fn needs_process(&mut self, rendered: &Rendered) -> Result<Vec<String>, SlotError> {
        let fixed = match &mut self.fixed {
            Some(fixed) => fixed,
            unknown => {
                let config = self.console.config().await?;
                unknown.insert(config.into_iter().filter(|(name, _)| is_fixed(name)).collect())
            }
        };
        let wanted: Vec<_> = rendered.parameters.iter().filter(|(name, _)| is_fixed(name)).cloned().collect();
        let mut names = differences(&wanted, fixed);
        if self.limits.is_none() {
            self.read_limits().await?;
        }
        names.extend(self.other_alias(rendered));
        names.extend(self.other_user(rendered));
        Ok(names)
    }

    /// Whether the process goes on with its own user for as long as it lives, where this one is wanted.
    pub fn keeps_user(&self, wanted: &str) -> bool {
        let is_other = |has: &Credentials| has.username != wanted;
        self.credentials.as_ref().is_some_and(is_other) && self.program_needs(Change::User) == Needs::NewProcess
    }

    /// What to name where the process has another user than `rendered` and cannot take that one over.
    fn other_user(&self, rendered: &Rendered) -> Option<String> {
        self.keeps_user(&rendered.credentials.username).then(|| USER.to_owned())
    }

    /// Whether the process remembers this for each client; false while nothing is known of it.
    pub fn remembers(&self, what: Remembered) -> bool {
        self.with_program(|program| program.remembers(what)).unwrap_or(false)
    }

    fn program_needs(&self, change: Change<'_>) -> Needs {
        // of a process that nothing is known of, the careful answer
        self.with_program(|program| program.needs(change)).unwrap_or(Needs::NewProcess)
    }

    fn with_program<T>(&self, ask: impl FnOnce(Program<'_>) -> T) -> Option<T> {
        let given = self.parameter(TRACKED).or_else(|| self.fixed.as_ref()?.get(TRACKED).map(String::as_str));
        Some(ask(Program { version: self.version?, tracks_extra: given.unwrap_or_default() }))
    }

    /// Has the process work with `rendered`, its limits left aside (those are changed by SET). A RELOAD is asked for only
    /// when it could change something.
    ///
    /// # Errors
    /// [`SlotError`]: `RestartRequired` until a new process has taken over the rest.
    pub async fn take_over(&mut self, rendered: Rendered, when: When) -> Result<Taken, SlotError> {
        if !self.differs_from(&rendered) {
            match &self.follows {
                Follows::Proven => return Ok(Taken::Already),
                Follows::NeedsRestart(names) => return Err(SlotError::RestartRequired { names: names.clone() }),
                Follows::Unproven => {}
            }
        }
        if self.limits.is_none() {
            self.read_limits().await?;
        }
        let others: Vec<_> = self.other_alias(&rendered).into_iter().chain(self.other_user(&rendered)).collect();
        if !others.is_empty() {
            return Err(SlotError::RestartRequired { names: others });
        }
        self.keeps_databases(&rendered).await?;
        let before = self.rendered.as_ref().filter(|_| self.follows != Follows::Unproven);
        let ends_logins = ends_server_connections(before, &rendered);
        match when {
            When::Never if ends_logins => return Ok(Taken::Refused),
            When::Quiet(now) if ends_logins => {
                if self.look_for_logins(now).await? == LoginsLook::SomeLogIn {
                    return Ok(Taken::Postponed);
                }
                write_configuration(&self.directory, &rendered)?;
                // writing may have taken a while
                if !self.is_quiet(now).await? {
                    return Ok(Taken::Postponed);
                }
            }
            When::AtOnce | When::Quiet(_) | When::Never => {
                write_configuration(&self.directory, &rendered)?;
            }
        }
        self.follows = Follows::Unproven;
        self.reload(rendered).await?;
        self.follows = Follows::Proven;
        Ok(Taken::Now)
    }

    /// Whether the process was given something else.
    fn differs_from(&self, rendered: &Rendered) -> bool {
        let fixed = |rendered: &Rendered| -> Vec<(String, String)> {
            rendered.parameters.iter().filter(|(name, _)| !is_limit(name)).cloned().collect()
        };
        self.rendered.as_ref().is_none_or(|now| {
            now.auth_file != rendered.auth_file
                || now.certificates != rendered.certificates
                || databases_of(&now.ini) != databases_of(&rendered.ini)
                || fixed(now) != fixed(rendered)
        })
    }

    /// Refuses files that lack a database with clients: a RELOAD would cut them.
    async fn keeps_databases(&mut self, rendered: &Rendered) -> Result<(), SlotError> {
        // what was rendered has been read back once already
        let kept = ini::parse(&rendered.ini).unwrap_or_default();
        let is_kept = |name: &str| kept.iter().any(|entry| entry.section == "databases" && entry.key == name);
        match self.console.databases_in_use().await?.into_iter().find(|(database, _)| !is_kept(database)) {
            Some((database, clients)) => Err(SlotError::WouldDrop { database, clients }),
            None => Ok(()),
        }
    }

    /// Has the process take over the new files; everything is read back.
    async fn reload(&mut self, rendered: Rendered) -> Result<(), SlotError> {
        self.works_with(&rendered);
        let parameters = self.rendered.insert(rendered).parameters.clone();
        self.recycling = Recycling::AsConfigured;
        self.patience = None;
        self.limits = None;
        let done = self.console.reload().await;
        self.quiet.is_over();
        // from 1.25 on it says that it did not understand the file, and goes on with what it understood, as before
        let refused = match done {
            Ok(()) => None,
            Err(error) if error.is_refusal() => Some(error),
            Err(error) => return Err(error.into()),
        };
        let config = self.console.config().await?;
        let names = differences(&parameters, &config);
        let (restart, missed): (Vec<String>, Vec<String>) = names.into_iter().partition(|name| is_fixed(name));
        self.read_limits().await?;
        if !missed.is_empty() {
            return Err(SlotError::NotReloaded { names: missed });
        }
        if !restart.is_empty() {
            self.follows = Follows::NeedsRestart(restart.clone());
            return Err(SlotError::RestartRequired { names: restart });
        }
        refused.map_or(Ok(()), |error| Err(error.into()))
    }
}

fn is_limit(name: &str) -> bool {
    matches!(name, "default_pool_size" | "min_pool_size" | "max_db_connections")
}

pub(super) fn databases_of(ini: &str) -> Option<&str> {
    ini.split_once("[pgbouncer]").map(|(databases, _)| databases)
}

/// Names of the parameters whose value in force is not the rendered one.
fn differences(rendered: &[(String, String)], in_force: &BTreeMap<String, String>) -> Vec<String> {
    let same = |a: &str, b: &str| match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) => (a - b).abs() < 1e-6,
        _ => a == b,
    };
    // SHOW CONFIG cuts long values to 255 bytes and prints the mode of the socket in its own way.
    let comparable = |name: &str, value: &str| value.len() < 250 && name != "unix_socket_mode";
    rendered
        .iter()
        .filter(|(name, value)| {
            comparable(name, value) && in_force.get(name).is_none_or(|in_force| !same(value, in_force))
        })
        .map(|(name, _)| name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_compared_as_numbers_where_they_are_numbers() {
        let rendered = [("server_login_retry", "1.250"), ("pool_mode", "transaction"), ("pkt_buf", "4096")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let in_force = [("server_login_retry", "1.25"), ("pool_mode", "session")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        assert_eq!(differences(&rendered, &in_force), ["pool_mode", "pkt_buf"]);
    }
}
