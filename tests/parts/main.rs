//! What holds against the real PgBouncer, PostgreSQL and Prometheus on loopback. Run by `tests/run parts`.
// fixtures are built in place
#![allow(missing_docs, clippy::panic, clippy::unwrap_used, clippy::expect_used)]

mod agent;
mod drivers;
mod prometheus;
