//! PURE: what a verb shows. Objects as they were read and the time in, text out.

pub mod certificate;
pub mod check;
pub mod completion;
pub mod document;
pub mod exposition;
pub mod get;
pub mod in_course;
pub mod named;
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
pub mod version;
pub mod vocabulary;
pub mod wait;
pub mod why;

/// Something that could not be read: rights that are missing, an API server that is slow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotRead {
    /// What, and why, in a sentence for whoever asked.
    pub words: String,
    /// What to do about it.
    pub todo: &'static str,
}
