//! `sluice judge`: the analysis of rollouts on lines of JSON.

use std::io::{self, BufRead, Write};

use clap::Args;
use thiserror::Error;

use super::lines::{self, PassedOver, UnreadableLines};
use crate::decide::analysis::{Analysis, JudgeLine, JudgeLineError, RolloutVerdict, VerdictLine};

/// A longer line is refused: 10,000 pods are 2 MiB.
const LONGEST_LINE: u64 = 8 << 20;

/// Judge a canary: settings and one JSON object per interval in, one verdict per line out.
///
/// The first line has the settings: {"settings": {"metrics": [{"name": "TransactionTime"}, {"name": "Errors"}]}}. Each line after it has what the pods
/// did in one second: {"t_seconds": 61, "pods": [{"pod": "a", "track": "Canary", "transactions": 120, "transaction_mean_ms": 8.4, "errors": 0}, {"pod":
/// "b", "track": "Stable", ...}]}. The verdicts are those of the operator: the same code, no clock, no randomness. A line that cannot be read is answered with an
/// "error" and decides nothing; the stream goes on, and the exit code is 1.
#[derive(Debug, Args)]
pub struct JudgeArgs {
    /// Print the JSON schemas of the lines of input and output, and end.
    #[arg(long)]
    schema: bool,
}

/// Why `judge` stopped, or what it passed over.
#[derive(Debug, Error)]
pub enum JudgeError {
    /// Nothing can be judged without settings.
    #[error("line {line}: {source}")]
    Settings {
        /// Number of the line, from 1.
        line: u64,
        /// What is wrong.
        #[source]
        source: JudgeLineError,
    },
    /// No line at all, or samples before the settings.
    #[error(
        "line {line}: no settings yet; the first line is {{\"settings\": {{\"metrics\": [{{\"name\": \"TransactionTime\"}}]}}}}"
    )]
    NoSettings {
        /// Number of the line, from 1.
        line: u64,
    },
    /// Lines that could not be read; each was answered with its error.
    #[error(transparent)]
    Unreadable(#[from] UnreadableLines),
    /// Standard input or output broke.
    #[error("cannot {doing}")]
    Stream {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Runs `sluice judge` on standard input and output.
///
/// # Errors
/// [`JudgeError`]: settings that cannot be, lines that cannot be read, or a stream that broke. Never a verdict.
pub fn run(args: &JudgeArgs) -> Result<(), JudgeError> {
    if args.schema {
        return write(&mut io::stdout().lock(), &format!("{:#}", VerdictLine::schemas()));
    }
    judge_lines(io::stdin().lock(), io::stdout().lock())
}

/// An analysis and its last line.
struct Judging {
    analysis: Analysis,
    at_seconds: Option<f64>,
    last: RolloutVerdict,
}

/// Answers every line of `input`.
///
/// # Errors
/// As [`run`].
pub fn judge_lines(mut input: impl BufRead, mut output: impl Write) -> Result<(), JudgeError> {
    let mut judging: Option<Judging> = None;
    let mut line = Vec::new();
    let mut passed_over = PassedOver::default();
    for number in 1_u64.. {
        let read = lines::read(&mut input, &mut line, LONGEST_LINE);
        if !read.map_err(|source| JudgeError::Stream { doing: "read the samples", source })? {
            if judging.is_none() {
                return Err(JudgeError::NoSettings { line: number });
            }
            break;
        }
        let text = String::from_utf8_lossy(&line);
        if text.trim().is_empty() {
            continue;
        }
        let parsed = JudgeLine::parse(text.trim_end());
        let answer = match (parsed, &mut judging) {
            (Ok(JudgeLine { settings: Some(settings), .. }), _) => {
                let begun = Analysis::new(settings).map_err(JudgeLineError::from);
                let analysis = begun.map_err(|source| JudgeError::Settings { line: number, source })?;
                let last = analysis.before();
                judging = Some(Judging { analysis, at_seconds: None, last: last.clone() });
                VerdictLine::new(None, last)
            }
            (Ok(_), None) => return Err(JudgeError::NoSettings { line: number }),
            (Err(source), None) => return Err(JudgeError::Settings { line: number, source }),
            (parsed, Some(judging)) => parsed
                .and_then(|line| judging.judge(&line))
                .unwrap_or_else(|error| VerdictLine::unreadable(passed_over.tell(number, &error), Some(&judging.last))),
        };
        let answer = serde_json::to_string(&answer)
            .map_err(|source| JudgeError::Stream { doing: "write a verdict", source: source.into() })?;
        write(&mut output, &answer)?;
    }
    Ok(passed_over.end()?)
}

impl Judging {
    fn judge(&mut self, line: &JudgeLine) -> Result<VerdictLine, JudgeLineError> {
        let Some(look) = line.look() else {
            return Err(JudgeLineError::Wrong("t_seconds is missing".to_owned()));
        };
        if let Some(before) = self.at_seconds.filter(|before| *before >= look.at_seconds) {
            let problem =
                format!("t_seconds is {}; expected more than {before}, which the line before has", look.at_seconds);
            return Err(JudgeLineError::Wrong(problem));
        }
        self.at_seconds = Some(look.at_seconds);
        let verdict = self.analysis.judge(&look);
        let answer = VerdictLine::new(Some(look.at_seconds), verdict.clone());
        self.last = verdict;
        Ok(answer)
    }
}

fn write(output: &mut impl Write, line: &str) -> Result<(), JudgeError> {
    let written = writeln!(output, "{line}").and_then(|()| output.flush());
    written.map_err(|source| JudgeError::Stream { doing: "write a verdict", source })
}
