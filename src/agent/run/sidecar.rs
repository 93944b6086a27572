//! The container that the agent runs in: what it was given, and what does not change.

use std::{net::IpAddr, path::PathBuf, time::Instant};

use super::{Configuration, place};
use crate::{
    agent::{
        apply::process::{self, ProcessError},
        decide::{machine::Millis, switch::Way, wish::Wish},
        keeper::{Link, Listening, Order},
        options::RunOptions,
    },
    contract::Injection,
    pooler::pgbouncer::{
        render::PoolerCertificate,
        version::{Build, RECOMMENDED, Support, Version},
    },
};

/// What the container was given, and does not change while the agent runs.
pub(super) struct Sidecar {
    pub(super) options: RunOptions,
    pub(super) injection: Injection,
    pub(super) link: Link,
    /// Addresses that clients come to.
    pub(super) addresses: Vec<IpAddr>,
    /// Configuration that leads the pooler to our own name server; None: it asks the pod's.
    pub(super) resolver: Option<PathBuf>,
    /// The pooler's program; None until it was found.
    pub(super) program: Option<PathBuf>,
    pub(super) build: Option<Build>,
    begin: Instant,
}

impl Sidecar {
    /// Its time begins now.
    pub(super) fn new(options: RunOptions, injection: Injection, link: Link, resolver: Option<PathBuf>) -> Self {
        Self {
            addresses: place::addresses(injection.client.reach),
            resolver,
            program: None,
            build: None,
            begin: Instant::now(),
            link,
            options,
            injection,
        }
    }

    /// This very moment, on the clock of the agent.
    pub(super) fn now(&self) -> Millis {
        Millis::try_from(self.begin.elapsed().as_millis()).unwrap_or(Millis::MAX)
    }

    /// The same in seconds.
    pub(super) fn seconds(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }

    /// Finds the pooler's program.
    ///
    /// # Errors
    /// [`ProcessError`]: there is none, or none that works.
    pub(super) async fn find_program(&mut self) -> Result<Version, ProcessError> {
        let path = std::env::var_os("PATH");
        let program = process::find(self.options.pgbouncer.as_deref(), path.as_deref())?;
        let build = process::version(&program).await?;
        let version = build.version;
        if version.support() == Support::Warned {
            tracing::warn!(
                "PgBouncer {version} is older than {RECOMMENDED}, which every test runs with; before 1.25.2 known vulnerabilities are open (CVE-2026-6664 to -6667): use an image with {RECOMMENDED} or later"
            );
        }
        (self.program, self.build) = (Some(program), Some(build));
        Ok(version)
    }

    /// Whether the pooler takes over the sockets that clients come to. One that does not listens by itself.
    pub(super) fn inherits_sockets(&self) -> bool {
        self.build.is_some_and(|build| build.inherits_sockets)
    }

    /// Whether a second process can take over clients without losing one.
    pub(super) fn can_switch(&self) -> bool {
        self.inherits_sockets() && !matches!(self.link.listening(), Listening::Failed { .. })
    }

    /// How new clients come from one slot to the other.
    pub(super) fn way(&self) -> Way {
        if matches!(self.link.listening(), Listening::Shared { .. }) { Way::HandOver } else { Way::Steer }
    }

    /// Opens the sockets that clients come to, once.
    pub(super) async fn listen(&self) -> Result<(), String> {
        if !self.inherits_sockets() {
            return Ok(());
        }
        let order = Order::Listen {
            addresses: self.addresses.clone(),
            port: self.injection.client.port,
            may_steer: !self.options.shared_listener,
        };
        match self.link.order(&order).await.map_err(|error| error.to_string())?.listening {
            Listening::Failed { reason } => {
                Err(format!("listening for clients on port {}: {reason}", self.injection.client.port))
            }
            Listening::Closed | Listening::Steering | Listening::Shared { .. } => Ok(()),
        }
    }
}

/// What a step takes as it is: the container, and what the pod is asked to run.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    pub(super) sidecar: &'a Sidecar,
    pub(super) wish: &'a Wish,
    /// What clients are shown.
    pub(super) shown: Option<&'a PoolerCertificate>,
    /// When the round began. [`Sidecar::now`] is the moment.
    pub(super) now: Millis,
}

impl<'a> Given<'a> {
    /// In the round that began then.
    pub(super) fn new(sidecar: &'a Sidecar, configuration: &'a Configuration, now: Millis) -> Self {
        Self { sidecar, wish: configuration.wish(), shown: configuration.shown(), now }
    }
}
