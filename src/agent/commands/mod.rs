//! The other things that `sluice-agent` can be asked to do, each a program of its own that ends.

pub mod clients;
pub mod drain;
pub mod install;
pub mod probe;
