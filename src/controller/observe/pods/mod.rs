//! The injected pods, trimmed to what plans are made from, by pool.
//!
//! - [`facts`]: the parser, from a pod to what is kept of it.
//! - [`index`]: what the watch has told, by pool.
//! - [`writes`]: what our own writes say, which is newer than what the watch has delivered so far.

mod facts;
mod index;
mod writes;

pub use facts::owner_of;
pub use index::PodIndex;

#[cfg(test)]
pub use index::tests::injected;
