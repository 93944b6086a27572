//! What the agent tells: `/status`, `/metrics`, `/healthz` and `/readyz`.

pub mod metrics;
pub mod server;
