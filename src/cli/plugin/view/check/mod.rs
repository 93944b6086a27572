//! `check`: what was found of an installation, part by part, each line with what to do about it.

pub mod autoscalers;
pub mod capacity;
pub mod definitions;
pub mod kubernetes;
pub mod operator;
pub mod policies;
pub mod pools;
pub mod rights;
pub mod sidecars;
pub mod webhook;

use serde::Serialize;

use super::NotRead;

/// How a part stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum FindingLevel {
    /// As it should be.
    Ok,
    /// Worth knowing, and nothing is wrong.
    Note,
    /// It could not be looked at.
    NotRead,
    /// It works, and will not for ever or not for all.
    Warning,
    /// It does not work.
    Failed,
}

/// What was found of one part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How it stands.
    pub level: FindingLevel,
    /// What was found.
    pub words: String,
    /// What to do; none where there is nothing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub todo: Option<String>,
}

/// The findings of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckSection {
    /// What they are of.
    pub title: &'static str,
    /// What was found.
    pub findings: Vec<Finding>,
}

/// Everything that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckReport {
    /// By kind.
    pub sections: Vec<CheckSection>,
}

impl Finding {
    /// Something that is as it should be.
    pub fn ok(words: impl Into<String>) -> Self {
        Self { level: FindingLevel::Ok, words: words.into(), todo: None }
    }

    /// Something worth knowing.
    pub fn note(words: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { level: FindingLevel::Note, words: words.into(), todo: Some(todo.into()) }
    }

    /// Something that will not go well for ever, or not for all.
    pub fn warning(words: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { level: FindingLevel::Warning, words: words.into(), todo: Some(todo.into()) }
    }

    /// Something that does not work.
    pub fn failed(words: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { level: FindingLevel::Failed, words: words.into(), todo: Some(todo.into()) }
    }

    /// Something that could not be looked at.
    pub fn not_read(NotRead { words, todo }: &NotRead) -> Self {
        Self { level: FindingLevel::NotRead, words: words.clone(), todo: Some((*todo).to_owned()) }
    }

    fn text(&self) -> String {
        let word = match self.level {
            FindingLevel::Ok => "ok",
            FindingLevel::Note => "note",
            FindingLevel::NotRead => "not read",
            FindingLevel::Warning => "warning",
            FindingLevel::Failed => "FAILED",
        };
        let todo = self.todo.as_ref().map_or_else(String::new, |todo| format!("  {:8}  to do: {todo}\n", ""));
        format!("  {word:8}  {}\n{todo}", self.words)
    }
}

impl CheckReport {
    /// Adds what was found of a kind.
    pub fn add(&mut self, title: &'static str, findings: Vec<Finding>) {
        self.sections.push(CheckSection { title, findings });
    }

    /// The worst that was found.
    pub fn worst(&self) -> FindingLevel {
        let all = self.sections.iter().flat_map(|section| &section.findings);
        all.map(|finding| finding.level).max().unwrap_or(FindingLevel::Ok)
    }

    /// Whether something is of a level.
    pub fn has(&self, level: FindingLevel) -> bool {
        self.count(level) > 0
    }

    /// How many findings are of a level.
    fn count(&self, level: FindingLevel) -> usize {
        self.sections.iter().flat_map(|section| &section.findings).filter(|finding| finding.level == level).count()
    }

    /// All of it as text.
    pub fn text(&self) -> String {
        let sections = self.sections.iter().map(|section| {
            let findings: String = section.findings.iter().map(Finding::text).collect();
            format!("{}\n{findings}\n", section.title)
        });
        let count = |level| self.count(level);
        let summary = format!(
            "{} ok, {} to note, {} not read, {} warnings, {} failed\n",
            count(FindingLevel::Ok),
            count(FindingLevel::Note),
            count(FindingLevel::NotRead),
            count(FindingLevel::Warning),
            count(FindingLevel::Failed)
        );
        sections.collect::<String>() + &summary
    }
}
