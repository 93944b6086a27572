//! What the agent tells: `/status`, `/metrics`, `/healthz` and `/readyz`.

mod by_revision;
pub mod metrics;
pub mod server;
