//! PURE: what the agent decides. State, observation and now in; the next action out.

pub mod anchor;
pub mod applications;
pub mod arrivals;
pub mod busy;
pub mod circuit;
pub mod counters;
pub mod identity;
pub mod login_proof;
pub mod machine;
pub mod peaks;
pub mod pins;
pub mod problems;
pub mod quiet;
pub mod reach;
pub mod reaction;
pub mod recall;
pub mod reference_mark;
pub mod retry;
pub mod rotation;
pub mod slot_name;
pub mod switch;
pub mod troubles;
pub mod upstream;
pub mod vitals;
pub mod wish;
