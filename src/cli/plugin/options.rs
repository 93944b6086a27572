//! What every verb is told: which cluster, how to answer, for how long.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use super::error::PluginError;

/// Heading of the flags that all verbs have.
const CLUSTER: &str = "Cluster";

/// Which cluster, and as whom.
#[derive(Args, Clone, Debug)]
pub struct ClusterOptions {
    /// Namespace. Default: that of the context.
    #[arg(short, long, global = true, value_name = "NAMESPACE", help_heading = CLUSTER)]
    pub namespace: Option<String>,
    /// Context of the kubeconfig. Default: the current one.
    #[arg(long, global = true, value_name = "CONTEXT", help_heading = CLUSTER)]
    pub context: Option<String>,
    /// File that says where clusters are. Default: $KUBECONFIG, else ~/.kube/config, else the pod's service account.
    #[arg(long, global = true, value_name = "FILE", help_heading = CLUSTER)]
    pub kubeconfig: Option<PathBuf>,
    /// User to act as, which takes the right to impersonate.
    #[arg(long = "as", global = true, value_name = "USER", help_heading = CLUSTER)]
    pub act_as: Option<String>,
    /// Longest that one request to the API server may take: 500ms, 10s, 1m.
    #[arg(long, global = true, value_name = "DURATION", default_value = "10s", value_parser = deadline, help_heading = CLUSTER)]
    pub request_timeout: Duration,
}

/// How a reading verb answers.
#[derive(Args, Clone, Copy, Debug)]
pub struct OutputOptions {
    /// How to answer. Default: a table for people.
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    pub output: Option<OutputFormat>,
}

/// How to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// The table with more columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

impl OutputOptions {
    /// Whether the table has its further columns.
    pub fn is_wide(self) -> bool {
        self.output == Some(OutputFormat::Wide)
    }

    /// The format of a document, where one is asked for.
    pub fn document(self) -> Option<OutputFormat> {
        self.output.filter(|format| *format != OutputFormat::Wide)
    }
}

/// Whether a verb goes on, and for how long.
#[derive(Args, Clone, Copy, Debug)]
pub struct WatchOptions {
    /// Go on and show what changes: redrawn in a terminal, lines elsewhere.
    #[arg(short, long)]
    pub watch: bool,
    /// How long to go on with --watch: 30s, 5m, 1h30m; 0 for ever.
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = duration, requires = "watch")]
    pub timeout: Duration,
}

impl WatchOptions {
    /// Refuses to show a document again and again: it would be no document.
    ///
    /// # Errors
    /// Both are asked for.
    pub fn check(self, output: OutputOptions) -> Result<(), PluginError> {
        if self.watch && output.document().is_some() {
            let words = "--watch shows text: leave -o json or -o yaml out, or --watch";
            return Err(PluginError::Usage(words.to_owned()));
        }
        Ok(())
    }
}

/// How a verb that writes does it.
#[derive(Args, Clone, Copy, Debug)]
pub struct WriteOptions {
    /// Ask the API server whether it would take the change, and change nothing.
    #[arg(long, value_enum, value_name = "WHERE", num_args = 0..=1, require_equals = true, default_missing_value = "server")]
    pub dry_run: Option<DryRun>,
    /// Do not ask before writing. Needed where nobody can answer.
    #[arg(short, long)]
    pub yes: bool,
}

/// Where a change is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    /// By the API server: admission and validation say what they would say.
    Server,
}

/// A length of time as kubectl writes it: 500ms, 30s, 5m, 1h30m; 0 needs no unit.
///
/// # Errors
/// What is wrong, and what to write.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no length of time; write for instance 500ms, 30s, 5m or 1h30m");
    let mut rest = text;
    let mut total = Duration::ZERO;
    if text == "0" {
        return Ok(total);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|digits| *digits > 0).ok_or_else(wrong)?;
        let (number, behind) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let letters = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(letters);
        let seconds = |each: u64| number.checked_mul(each).map(Duration::from_secs).ok_or_else(wrong);
        let part = match unit {
            "ms" => Duration::from_millis(number),
            "s" => seconds(1)?,
            "m" => seconds(60)?,
            "h" => seconds(3600)?,
            _ => return Err(wrong()),
        };
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = behind;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// A deadline: every request has one.
fn deadline(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        none if none.is_zero() => Err("every request has a deadline: name one, as 10s".to_owned()),
        some => Ok(some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_has_its_unit_and_parts_add_up() {
        let seconds = |seconds| Ok(Duration::from_secs(seconds));
        assert_eq!(duration("30s"), seconds(30));
        assert_eq!(duration("1h30m5s"), seconds(5405));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("0"), seconds(0));
        for wrong in ["", "30", "s", "5x", "1m30", "-3s", "99999999999999999999s", "1.5s", "18446744073709551615h"] {
            let said = duration(wrong).expect_err(wrong);
            assert!(said.contains("30s, 5m"), "{said}");
        }
        assert!(deadline("0").expect_err("none").contains("has a deadline"));
    }
}
