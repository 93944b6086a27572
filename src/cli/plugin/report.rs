//! `kubectl sluice report`: a directory with everything that somebody needs who is asked about a pool, and no secret.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use futures::{StreamExt, stream};
use k8s_openapi::{
    api::core::v1::{Event, Pod},
    jiff::Timestamp,
};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    agents,
    cluster::{ClusterAccess, beside},
    error::{Conclusion, PluginError},
    options::{ClusterOptions, duration},
    rollout::revisions,
    screen::{Screen, tell},
    view::{
        NotRead,
        document::PoolDocument,
        report::{BundleInput, README, SAMPLES, bundle, sample},
    },
    why::events,
};
use crate::cli::backtest::prometheus::{RANGE_HEADER, Range, fetch};

/// Between two samples of the agents.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// Longest that Prometheus may take.
const RANGE_DEADLINE: Duration = Duration::from_secs(30);
/// What Prometheus answered, beside the samples of the agents.
const RANGE: &str = "range.json";

/// Arguments of `report`.
#[derive(Args, Debug)]
pub struct ReportArgs {
    /// The pool.
    #[arg(value_name = "POOL")]
    pool: String,
    /// Directory to create. Default: sluice-report-NAMESPACE-POOL-TIME here.
    #[arg(long, value_name = "DIRECTORY")]
    to: Option<PathBuf>,
    /// How long to record the load from the agents, each 5 s: 30s, 5m; 0 for not at all.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    record: Duration,
    /// Keep what this Prometheus has of the load, too.
    #[arg(long, value_name = "URL")]
    prometheus: Option<String>,
    /// How far back to ask Prometheus: 6h, 48h.
    #[arg(long, value_name = "DURATION", default_value = "6h", value_parser = duration, requires = "prometheus")]
    since: Duration,
}

/// Runs the verb.
///
/// # Errors
/// [`PluginError`]: there is no such pool, or nothing can be written.
pub async fn run(args: ReportArgs, options: &ClusterOptions) -> Result<Conclusion, PluginError> {
    let cluster = ClusterAccess::connect(options).await?;
    let document = cluster.pool(&args.pool).await?;
    let now = Timestamp::now();
    let directory = args.to.clone().unwrap_or_else(|| {
        let key = document.key();
        let time = now.strftime("%Y%m%dT%H%M%SZ");
        PathBuf::from(format!("sluice-report-{}-{}-{time}", key.namespace, key.name))
    });
    // nothing of anybody's is written over
    fs::create_dir(&directory).map_err(|source| write_error(&directory, &source))?;
    let mut not_read = Vec::new();
    let (events, revisions) = futures::join!(events(&cluster, &document), revisions(&cluster, &document));
    let revisions = beside(revisions);
    let events: Result<Vec<Event>, NotRead> = events;
    let pods = beside(agents::pods(&cluster, &document).await);
    let asked = agents::asked(pods.as_deref().unwrap_or_default(), document.name(), &mut not_read);
    let agents = agents::ask_all(&cluster, &asked, &mut not_read).await;
    // whoever may not ask the agents what they say may not ask what they count either
    let counting: &[&Pod] = if agents.is_empty() { &[] } else { asked.as_slice() };
    let samples = record(&cluster, counting, args.record, &mut not_read).await;
    let range = match &args.prometheus {
        None => None,
        Some(url) => range(&document, url, args.since, &mut not_read).await,
    };
    let input = BundleInput {
        document: &document,
        revisions: revisions.as_deref(),
        events: events.as_deref(),
        pods: pods.as_deref(),
        agents: &agents,
        samples: &samples,
        not_read,
        now,
    };
    let mut files = bundle(&input);
    files.extend(range.map(|answer| (RANGE, answer)));
    for (name, text) in &files {
        let path = directory.join(name);
        fs::write(&path, text).map_err(|source| write_error(&path, &source))?;
    }
    Screen::of_stdout().print(&format!("{}\n", directory.display()))?;
    let shown = directory.join(README);
    tell(&format!(
        "{} files without secrets; {} says what is in them, and what was not read",
        files.len(),
        shown.display()
    ));
    Ok(Conclusion::Yes)
}

fn write_error(path: &Path, source: &io::Error) -> PluginError {
    let todo = if source.kind() == io::ErrorKind::AlreadyExists { "; name another directory with --to" } else { "" };
    PluginError::Print(io::Error::new(source.kind(), format!("{}: {source}{todo}", path.display())))
}

/// The load of the pods for so long, as the agents count it: lines for `sluice backtest`.
async fn record(cluster: &ClusterAccess, pods: &[&Pod], long: Duration, not_read: &mut Vec<String>) -> String {
    let mut lines = format!("{RANGE_HEADER}\n");
    if long.is_zero() || pods.is_empty() {
        return lines;
    }
    tell(&format!("recording the load of {} pods into {SAMPLES} for {long:?}; --record 0 leaves that out", pods.len()));
    let end = Instant::now() + long;
    loop {
        let next = Instant::now() + SAMPLE_EVERY;
        let at = Timestamp::now();
        let answers = stream::iter(pods)
            .map(|pod| async move { (agents::name(pod), agents::ask(cluster, pod, "metrics").await) });
        let answers: Vec<_> = answers.buffer_unordered(agents::ASKED_AT_ONCE).collect().await;
        for (pod, answer) in answers {
            match answer {
                Ok(text) => lines.extend(sample(at, &pod, &text)),
                Err(error) => {
                    let words = format!("the load of pod {pod}: {error}");
                    if !not_read.contains(&words) {
                        not_read.push(words);
                    }
                }
            }
        }
        if next > end {
            sleep_until(end).await;
            return lines;
        }
        sleep(next.saturating_duration_since(Instant::now())).await;
    }
}

/// What Prometheus has of the load.
async fn range(document: &PoolDocument, url: &str, since: Duration, not_read: &mut Vec<String>) -> Option<String> {
    let key = document.key();
    let end = Timestamp::now().as_second();
    let start = end.saturating_sub(i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    match fetch(url, &key.namespace, &key.name, Range { start, end }, RANGE_DEADLINE).await {
        Ok(answer) => Some(answer),
        Err(error) => {
            not_read.push(format!("the load by Prometheus: {}", crate::causes::with_causes(&error)));
            None
        }
    }
}
