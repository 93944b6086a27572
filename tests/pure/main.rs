//! What `cargo test` proves with Rust alone: properties, snapshots, purity and drift.
#![allow(missing_docs, clippy::panic)]

mod allocator;
mod analysis;
mod chart;
mod class;
mod crds;
mod demo_bench;
mod divide_command;
mod documents;
mod drivers;
mod examples;
mod fields;
mod figures;
mod inject;
mod judge_command;
mod nouns;
mod places;
mod plugin;
mod purity;
mod rollout;
mod sizing;
mod source;
mod strangers;
mod trust;
mod versions;
