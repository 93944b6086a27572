//! Drivers: what Sluice knows about one pooler each. PgBouncer is the one for PostgreSQL.

pub mod pgbouncer;
