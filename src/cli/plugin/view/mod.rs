//! PURE: what a verb shows. Objects as they were read and the time in, text out.

pub mod certificate;
pub mod check;
pub mod completion;
pub mod document;
pub mod exposition;
pub mod get;
pub mod recommend;
pub mod report;
pub mod rollout;
pub mod rollout_request;
pub mod status;
pub mod switch;
pub mod table;
#[cfg(test)]
mod tests;
pub mod time;
pub mod top;
pub mod vocabulary;
pub mod wait;
pub mod why;

/// Something that could not be read, in a sentence for whoever asked: rights that are missing, an API server that is slow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotRead(pub String);
