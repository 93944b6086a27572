//! The driver for PgBouncer: what it is given to read ([`render`], pure), what it says on its console ([`tables`],
//! pure; [`console`], the socket), in its log ([`log`], pure), what its version can do ([`version`], pure), and what a change needs of it ([`changes`],
//! pure).
//!
//! Sluice uses one `[databases]` entry with a forced user per pool, so that exactly one PgBouncer pool exists, and bounds
//! it with `default_pool_size` (the limit) and `max_db_connections` (the share). In PgBouncer a 0 in either means
//! "without limit", so neither is ever rendered or set as 0; a share of 0 is `PAUSE`.

pub mod changes;
pub mod console;
pub mod ini;
pub mod limits;
pub mod log;
pub mod parameters;
pub mod render;
pub mod tables;
pub mod version;
