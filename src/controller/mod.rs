//! The shell around `decide`: observe, decide, apply, prove, report.
//!
//! ```text
//! watches (a task each) ──┐                     ┌─▶ pods/status, ControllerRevisions (apply, paced)
//! agents' answers (prove) ┼─▶ requests ─▶ look ─┼─▶ agents to ask (prove)
//! tick: load, sizing ─────┘     plan = decide   └─▶ status, events (report, only when something is new)
//! ```
//! [`reconcile`] goes through one look at one pool in that order, a module for each step:
//! - [`observe`]: the only reader. Stores of the watches, the index of pods, what Prometheus says, what cannot be watched.
//! - [`decide`]: what is to be done, by the pure functions of [`crate::decide`].
//! - [`apply`]: the only writer. Revisions, pods, what the history limit drops.
//! - [`prove`]: agents are asked what they run.
//! - [`report`]: status, conditions, events, metrics.
//!
//! Every replica watches pools, classes and revisions, serves the webhook ([`admit`]) and answers for its health ([`process`]). Only the
//! leader watches pods and writes ([`leader`], [`lead`]). Nothing is remembered ([`memory`]) that cannot be rebuilt from annotations,
//! status and the agents.

mod admit;
mod apply;
mod backoff;
mod boot_time;
mod budgets;
mod classes;
mod context;
mod controller_revision;
mod decide;
mod error;
mod gateway;
mod judging;
mod lead;
mod leader;
mod look_requests;
mod memory;
mod observe;
mod options;
mod process;
mod prove;
mod reconcile;
pub mod rehearsal;
mod report;
mod resource_version;
mod tick;
mod work_queue;
mod workers;

pub use error::OperatorError;
pub use options::{Gateways, OperatorArgs, SidecarUser};
pub use process::run;
