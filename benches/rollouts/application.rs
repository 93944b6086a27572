//! What the application tells Prometheus of itself: a metric of the user's own.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use parking_lot::Mutex;

use crate::{Failure, in_pod::Met, node::NAMESPACE, pages, process::output};

/// Questions that clients have asked, with those that failed.
pub const QUESTIONS: &str = "application_questions_total";
/// Those that failed.
pub const FAILURES: &str = "application_failures_total";
/// Where the job begins that is added to the configuration of Prometheus.
const JOB: &str = "  - job_name: application\n";

/// The clients of all pods, on one page that Prometheus scrapes.
#[derive(Clone, Default)]
pub struct Application {
    /// What those of each pod have met, and where they write it.
    told: Arc<Mutex<BTreeMap<String, PathBuf>>>,
}

impl Application {
    /// Begins, with a job for it in the lab's Prometheus.
    pub fn start() -> Result<Self, Failure> {
        let application = Self::default();
        let (host, seen) = (std::env::var("PGHOST")?, application.clone());
        let address = pages::serve((&host, 0), move || seen.page())?;
        let configuration = PathBuf::from(std::env::var("SLUICE_LAB_RUN")?).join("prometheus.yaml");
        let text = fs::read_to_string(&configuration)?;
        // that of a run before has another port
        let text = text.split(JOB).next().unwrap_or_default();
        let job = format!("{JOB}    scrape_interval: 1s\n    static_configs: [{{targets: ['{address}']}}]\n");
        fs::write(&configuration, format!("{}\n{job}", text.trim_end()))?;
        let reload = format!("{}/-/reload", std::env::var("SLUICE_LAB_PROMETHEUS")?);
        output(Command::new("curl").args(["-sf", "-m", "10", "-X", "POST", &reload]))?;
        Ok(application)
    }

    /// From now on the clients of this pod are on it.
    pub fn has(&self, pod: &str, told: &Path) {
        self.told.lock().insert(pod.to_owned(), told.to_owned());
    }

    /// The clients of this pod have gone.
    pub fn has_not(&self, pod: &str) {
        self.told.lock().remove(pod);
    }

    fn page(&self) -> Result<String, Failure> {
        let mut page = format!("# TYPE {QUESTIONS} counter\n# TYPE {FAILURES} counter\n");
        for (pod, told) in self.told.lock().iter() {
            let Met { connections, queries, failures, .. } = Met::last_of(told)?;
            let labels = format!("{{namespace=\"{NAMESPACE}\",pod=\"{pod}\"}}");
            let asked = connections + queries + failures;
            // Writing to a String cannot fail.
            let _ = writeln!(page, "{QUESTIONS}{labels} {asked}\n{FAILURES}{labels} {failures}");
        }
        Ok(page)
    }
}
