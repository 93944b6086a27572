//! The limits of a process: brought to what is wanted step by step, each read back, and server connections that have to go, or to stay.

use super::{Slot, SlotError};
use crate::{
    agent::decide::machine::Millis,
    contract::LimitsReadBack,
    pooler::pgbouncer::limits::{LimitStep, WantedLimits, next_step},
};

/// `server_lifetime` of connections that are kept: 30 days, the longest that a user may set.
const LONGEST_LIFETIME: &str = "2592000";
/// Steps taken in one go; more would mean that the console plays with us.
const MOST_STEPS: usize = 12;

/// How far the limits are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// As wanted, read back.
    InForce,
    /// More is held than the share allows; transactions have to end first.
    Releasing {
        /// Server connections that have to go.
        excess: u32,
    },
}

/// When server connections end although nothing is wrong with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recycling {
    /// As the settings say.
    AsConfigured,
    /// As soon as their transactions end.
    Soon,
    /// Not before it can be done again.
    Never,
}

/// Whether server connections are kept although their time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// They end as the settings say.
    No,
    /// Unless the share needs their place: others may not be let in soon.
    UnlessInTheWay,
    /// No other could be opened.
    Always,
}

impl Slot {
    /// Reads the limits back.
    ///
    /// # Errors
    /// [`SlotError::Console`].
    pub async fn read_limits(&mut self) -> Result<LimitsReadBack, SlotError> {
        let (limits, alias) = self.console.limits(&self.database).await?;
        (self.limits, self.alias) = (Some(limits), alias);
        Ok(limits)
    }

    /// Brings the limits to what is wanted, step by step, each read back. While logins are waited for, no further than that allows.
    ///
    /// # Errors
    /// [`SlotError`]; what was read back last stays in [`Slot::limits`].
    pub async fn converge(
        &mut self,
        at: Millis,
        wanted: WantedLimits,
        mut held: Option<u32>,
    ) -> Result<Progress, SlotError> {
        self.quiet.expire(at);
        let bounds = self.quiet.bounds();
        let wanted = bounds.map_or(wanted, |bounds| WantedLimits {
            limit: wanted.limit.min(bounds.pool_size),
            warm: bounds.min_pool_size,
            ..wanted
        });
        let mut now = match self.limits {
            Some(limits) => limits,
            None => self.read_limits().await?,
        };
        if self.keep == Keep::Always || self.keep == Keep::UnlessInTheWay && self.recycling != Recycling::Soon {
            self.recycle(Recycling::Never).await?;
        }
        let mut last = LimitStep::Done;
        for _ in 0..MOST_STEPS {
            let step = next_step(&now, held, wanted);
            if step != LimitStep::Done && step == last {
                return Err(SlotError::NotApplied { step, limits: now });
            }
            match step {
                LimitStep::Done => {
                    self.was_open |= wanted.share > 0;
                    let kept = self.keep != Keep::No || bounds.is_some() && self.recycling == Recycling::Never;
                    self.recycle(if kept { Recycling::Never } else { Recycling::AsConfigured }).await?;
                    return Ok(Progress::InForce);
                }
                LimitStep::AwaitRelease { excess } => {
                    return Ok(Progress::Releasing { excess });
                }
                LimitStep::Pause => {
                    let (pools, _) = self.console.pools(&self.database).await?;
                    let is_used = pools.held() > 0 || pools.clients_active > 0 || pools.clients_waiting > 0;
                    if self.was_open && is_used && !self.is_quiet(at).await? {
                        return Ok(Progress::Releasing { excess: pools.held().max(1) });
                    }
                    self.pause().await?;
                }
                LimitStep::Resume => self.console.resume(&self.database).await?,
                LimitStep::PoolSize(n) => self.console.set("default_pool_size", &n.to_string()).await?,
                LimitStep::MinPoolSize(n) => self.console.set("min_pool_size", &n.to_string()).await?,
                LimitStep::MaxDbConnections(n) => self.console.set("max_db_connections", &n.to_string()).await?,
            }
            last = step;
            now = self.read_limits().await?;
            held = Some(self.console.pools(&self.database).await?.0.held());
        }
        Err(SlotError::NotApplied { step: last, limits: now })
    }

    /// Makes busy server connections close as their transactions end, although clients wait for them: PgBouncer closes a
    /// connection past `server_lifetime` instead of handing it on, about one per `1 s / pool size`. Not while connections are
    /// kept.
    ///
    /// # Errors
    /// [`SlotError::Console`].
    pub async fn shorten_lifetime(&mut self) -> Result<(), SlotError> {
        if self.keep == Keep::Always { Ok(()) } else { self.recycle(Recycling::Soon).await }
    }

    pub(super) async fn recycle(&mut self, wanted: Recycling) -> Result<(), SlotError> {
        if self.recycling == wanted {
            return Ok(());
        }
        let configured = |name: &str| {
            let parameters = &self.rendered.as_ref()?.parameters;
            parameters.iter().find(|(parameter, _)| parameter == name).map(|(_, value)| value.clone())
        };
        let lifetime = match wanted {
            Recycling::AsConfigured => configured("server_lifetime"),
            Recycling::Soon => Some("1".to_owned()),
            Recycling::Never => Some(LONGEST_LIFETIME.to_owned()),
        };
        let idle_timeout = match (self.recycling, wanted) {
            (_, Recycling::Never) => Some("0".to_owned()),
            (Recycling::Never, _) => configured("server_idle_timeout"),
            _ => None,
        };
        for (name, value) in [("server_lifetime", lifetime), ("server_idle_timeout", idle_timeout)] {
            if let Some(value) = value {
                self.console.set(name, &value).await?;
            }
        }
        self.recycling = wanted;
        Ok(())
    }
}
