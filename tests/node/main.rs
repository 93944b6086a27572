//! What only a whole node can show: kubelet, containerd, DNS, helm, PostgreSQL and Prometheus, all real.
#![allow(missing_docs, clippy::panic)]

mod chart;
mod cluster;
mod endings;
mod faults;
mod gateway;
mod injection;
mod operator;
mod shop;
mod switching;
#[path = "../../benches/endings/tally.rs"]
mod tally;
mod workload;
