//! PURE: everything that Sluice decides. Inputs and the time in, a value out: no clock, no IO, no client, no async.
//!
//! The same code runs in the operator, in the agent, in the backtest and in property tests.

pub mod allowed;
pub mod analysis;
pub mod behavior;
pub mod budget;
pub mod effective;
mod filling;
pub mod freeze;
pub mod guard;
pub mod load;
pub mod memory;
pub mod outage;
pub mod plan;
pub mod rollout;
pub mod shares;
pub mod sizing;
pub mod spec_change;
pub mod surge;
