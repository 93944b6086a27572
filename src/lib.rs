//! Sluice: a Kubernetes operator that sizes database connection pools.
//!
//! ```text
//! Prometheus ──signals──▶ decide ──plan──▶ controller ──annotations──▶ kubelet ──files──▶ agent ──▶ PgBouncer
//!      ▲                                       ▲                                            │
//!      └──────────────── metrics ──────────────┼──────────── GET /status (proof) ◀──────────┘
//! ```
//!
//! [`contract`], `decide` and the machine of the agent are pure: values in, values out, the time as an argument.
//! `tests/pure/purity.rs` holds them to it. Everything that touches the world is a shell around them.

pub mod agent;
pub mod api;
#[cfg(feature = "operator")]
mod causes;
pub mod certificate;
#[cfg(feature = "operator")]
pub mod cli;
pub mod contract;
#[cfg(feature = "operator")]
pub mod controller;
pub mod decide;
pub mod domain;
mod fingerprint;
pub mod http;
#[cfg(feature = "operator")]
pub mod inject;
#[cfg(feature = "operator")]
pub mod objects;
pub mod pooler;
pub mod serving;
pub mod signals;
pub mod telemetry;
#[cfg(feature = "operator")]
pub mod webhook;
