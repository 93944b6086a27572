//! Points in time.

/// Unix time in whole seconds.
pub type UnixSeconds = i64;
