//! Keeps the samples, the machine and the printed figures together in one directory.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use crate::Failure;

/// What was measured; where PgBouncer takes part in it, it is kept by its version.
pub struct Results {
    /// Name of the figure.
    pub name: &'static str,
    /// The machine, the commit, and what else must be known to repeat it.
    pub setting: Map<String, Value>,
    /// Raw samples as CSV.
    pub samples: Samples,
    /// The printed figures, computed from the samples.
    pub figures: String,
    /// Where to keep it; none: it is only printed.
    pub keep: Option<PathBuf>,
}

impl Results {
    /// Prints the figures and keeps everything where that was asked for.
    pub fn tell(self) -> Result<(), Failure> {
        println!("{}", self.figures);
        let Some(keep) = self.keep else { return Ok(()) };
        let mut directory = keep.join(self.name);
        // beside those of other versions
        if let Some(pgbouncer) = self.setting.get("pgbouncer").and_then(Value::as_str) {
            directory.push(pgbouncer.to_lowercase().replace(' ', "-"));
        }
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("samples.csv"), self.samples.text())?;
        fs::write(directory.join("setting.json"), serde_json::to_string_pretty(&self.setting)? + "\n")?;
        fs::write(directory.join("figures.md"), self.figures)?;
        eprintln!("kept in {}", directory.display());
        Ok(())
    }
}

/// Where results are committed: `SLUICE_RESULTS`, or `benches/results`.
pub fn committed() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results");
    env::var_os("SLUICE_RESULTS").map_or_else(own, PathBuf::from)
}

/// Raw samples as CSV, shown while they are taken.
pub struct Samples(String);

impl Samples {
    /// No samples yet, of these columns.
    pub fn of(header: &str) -> Self {
        eprintln!("{header}");
        Self(format!("{header}\n"))
    }

    /// Adds a row.
    pub fn add(&mut self, row: &str) {
        eprintln!("{row}");
        self.0.push_str(row);
        self.0.push('\n');
    }

    /// As CSV.
    pub fn text(&self) -> &str {
        &self.0
    }
}
