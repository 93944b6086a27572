//! PURE: how often pods that are alike are told apart, from what was scraped of them.

use std::{collections::BTreeMap, fmt::Write as _};

use sluice::{
    api::AnalysisSpec,
    contract::metrics,
    decide::analysis::{
        AnalysisPhase, LiveAnalysis, Outcome, RevisionFigure, RevisionScrape, RevisionSeries, RolloutAnalysis,
        SampledFigure,
    },
};

use crate::statistics::{median, rows};

/// What the pods run, and what the one that is judged runs from some second on.
const STABLE: u64 = 1;
const CANARY: u64 = 2;
/// The first change is so late, and each next one so much later, in seconds: the past of the one is the future of others, so they do not
/// count as so many trials of their own.
const PAST: f64 = 125.0;
const STEP: f64 = 60.0;
/// So long is judged, in seconds.
const EXPOSURE: f64 = 185.0;
/// Between two looks, in seconds: the operator's.
const LOOK: f64 = 5.0;
/// Lags at which seconds are compared.
const LAGS: usize = 8;
/// Most of the trials that may fail although nothing was changed.
const FALSE_ALARMS: f64 = 0.05;
/// And most that may pass although transactions take twice as long.
const MISSED: f64 = 0.05;
/// With fewer trials nothing is said.
const LEAST_TRIALS: usize = 20;
const METRICS: &str = "metrics: [{name: TransactionTime}, {name: WaitTime}, {name: Errors}]";

/// The series of a figure.
pub fn metric(figure: RevisionFigure) -> &'static str {
    match figure {
        RevisionFigure::Transactions => metrics::REVISION_TRANSACTIONS,
        RevisionFigure::BusySeconds => metrics::REVISION_BUSY_SECONDS,
        RevisionFigure::WaitSeconds => metrics::REVISION_WAIT_SECONDS,
        RevisionFigure::Assignments => metrics::REVISION_ASSIGNMENTS,
        RevisionFigure::LongestWaitSeconds => metrics::REVISION_LONGEST_WAIT,
        RevisionFigure::Errors => metrics::REVISION_ERRORS,
        RevisionFigure::LoginFailures => metrics::REVISION_LOGIN_FAILURES,
        RevisionFigure::ClientsCut => metrics::REVISION_CLIENTS_CUT,
    }
}

/// The column of a figure in the samples.
pub fn column(figure: RevisionFigure) -> String {
    metric(figure).trim_start_matches("sluice_revision_").trim_end_matches("_total").to_owned()
}

/// Scrapes of each pod.
type Scraped = BTreeMap<String, Vec<RevisionScrape>>;

/// How the trials of one kind ended.
#[derive(Default)]
struct Ended {
    worse: Vec<f64>,
    promoted: Vec<f64>,
    undecided: usize,
}

impl Ended {
    fn trials(&self) -> usize {
        self.worse.len() + self.promoted.len() + self.undecided
    }

    fn row(&self, name: &str) -> String {
        let seconds = |of: &[f64]| if of.is_empty() { "-".to_owned() } else { format!("{:.0}", median(of)) };
        format!(
            "| {name} | {} | {} | {} | {} | {} | {} |\n",
            self.trials(),
            self.worse.len(),
            seconds(&self.worse),
            self.promoted.len(),
            seconds(&self.promoted),
            self.undecided
        )
    }
}

/// The figures.
pub fn report(samples: &str) -> Result<String, String> {
    let scraped = scraped(samples)?;
    let (same, slower) = (trials(&scraped, 1.0)?, trials(&scraped, 2.0)?);
    let mut text = "# Pods that are all alike\n\nEach pod in turn, every minute of the run, judged as if it had taken a new revision then: as it was, and with its transactions twice as \
                    long from then on. Trials a minute apart share most of their seconds. Seconds are medians from the change on.\n\n\
                    | the pod that is judged | trials | worse | after s | promoted | after s | neither within 3 minutes |\n|---|---|---|---|---|---|---|\n"
        .to_owned();
    text += &same.row("as the others");
    text += &slower.row("transactions x2");
    text += "\nHow much the seconds of a pod hang together: the correlation of its mean transaction time, beside that of the other pods, with that of so many seconds before.\n\n| lag, s |";
    let lags = autocorrelations(&scraped);
    for lag in 1..=lags.len() {
        let _ = write!(text, " {lag} |");
    }
    let _ = write!(text, "\n|---|{}\n| correlation |", "---|".repeat(lags.len()));
    for value in &lags {
        let _ = write!(text, " {value:.2} |");
    }
    let part = |of: usize, all: usize| of as f64 / all.max(1) as f64;
    let judged = |part: f64, most: f64| match part {
        _ if same.trials() < LEAST_TRIALS => "too few trials",
        part if part <= most => "reached",
        _ => "MISSED",
    };
    let alarms = part(same.worse.len(), same.trials());
    let missed = part(slower.promoted.len(), slower.trials());
    let _ = write!(
        text,
        "\n\nAt most {:.0} % told worse that are not: {:.1} %, {}.\nAt most {:.0} % promoted whose transactions take twice as long: {:.1} %, {}.\n",
        100.0 * FALSE_ALARMS,
        100.0 * alarms,
        judged(alarms, FALSE_ALARMS),
        100.0 * MISSED,
        100.0 * missed,
        judged(missed, MISSED)
    );
    Ok(text)
}

fn scraped(samples: &str) -> Result<Scraped, String> {
    let mut scraped = Scraped::new();
    for row in rows(samples)? {
        let mut figures = [SampledFigure::Absent; RevisionFigure::ALL.len()];
        for figure in RevisionFigure::ALL {
            figures[figure as usize] = row.number(&column(figure))?.into();
        }
        let scrape = RevisionScrape { at_seconds: row.number("at_seconds")?, figures };
        scraped.entry(row.text("pod")?.to_owned()).or_default().push(scrape);
    }
    Ok(scraped)
}

/// Judges each pod in turn, with its transactions so many times as long from the change on.
fn trials(scraped: &Scraped, longer: f64) -> Result<Ended, String> {
    let spec: AnalysisSpec = serde_yaml::from_str(METRICS).map_err(|error| error.to_string())?;
    let wanted = RolloutAnalysis::of(&spec, AnalysisPhase::Canary)?;
    let end = scraped.values().flatten().map(|scrape| scrape.at_seconds).fold(0.0, f64::max);
    let mut ended = Ended::default();
    for pod in scraped.keys() {
        let mut change = PAST;
        while change + EXPOSURE <= end {
            let series = series(scraped, pod, change, longer);
            match judge(&wanted, &series, change)? {
                Some((Outcome::Fail, after)) => ended.worse.push(after),
                Some((_, after)) => ended.promoted.push(after),
                None => ended.undecided += 1,
            }
            change += STEP;
        }
    }
    Ok(ended)
}

/// What was scraped, as if this pod had taken another revision at some second.
fn series(scraped: &Scraped, canary: &str, change: f64, longer: f64) -> Vec<RevisionSeries> {
    let window = (change - PAST)..=(change + EXPOSURE);
    let mut all = Vec::new();
    for (pod, scrapes) in scraped {
        let within = scrapes.iter().copied().filter(|scrape| window.contains(&scrape.at_seconds));
        let is_after = |scrape: &RevisionScrape| pod == canary && scrape.at_seconds >= change;
        let (after, before): (Vec<RevisionScrape>, Vec<RevisionScrape>) = within.partition(|scrape| is_after(scrape));
        all.push(RevisionSeries { pod: pod.clone(), revision: STABLE, slot: "a".to_owned(), scrapes: before });
        if !after.is_empty() {
            let slot = "b".to_owned();
            all.push(RevisionSeries { pod: pod.clone(), revision: CANARY, slot, scrapes: lengthened(after, longer) });
        }
    }
    all
}

fn lengthened(mut scrapes: Vec<RevisionScrape>, longer: f64) -> Vec<RevisionScrape> {
    let busy = RevisionFigure::BusySeconds as usize;
    let Some(first) = scrapes.first().and_then(|scrape| scrape.figures[busy].value()) else { return scrapes };
    for scrape in &mut scrapes {
        if let SampledFigure::Value(seconds) = scrape.figures[busy] {
            scrape.figures[busy] = SampledFigure::Value(first + longer * (seconds - first));
        }
    }
    scrapes
}

/// The verdict that ends a rollout, and how long after the change it came; None while neither is proven.
fn judge(wanted: &RolloutAnalysis, series: &[RevisionSeries], change: f64) -> Result<Option<(Outcome, f64)>, String> {
    let known: Vec<RevisionSeries> = series.iter().map(|series| until(series, change)).collect();
    let live = LiveAnalysis::begin(wanted, (CANARY, STABLE), change, &known).map_err(|error| error.to_string())?;
    let mut live = live.ok_or("no pod was scraped twice")?;
    let mut now = change;
    while now <= change + EXPOSURE {
        let known: Vec<RevisionSeries> = series.iter().map(|series| until(series, now)).collect();
        live.take(&known, now);
        let verdict = live.verdict().verdict;
        if verdict != Outcome::Inconclusive {
            return Ok(Some((verdict, now - change)));
        }
        now += LOOK;
    }
    Ok(None)
}

/// What had been scraped by then.
fn until(series: &RevisionSeries, now: f64) -> RevisionSeries {
    let end = series.scrapes.partition_point(|scrape| scrape.at_seconds <= now);
    RevisionSeries { scrapes: series.scrapes[..end].to_vec(), ..series.clone() }
}

/// The correlations of a pod's seconds with those before: of the logarithm of its mean transaction time, less the mean of the other pods',
/// less its own mean over the run (rollout-and-ledger C3), over all pods together.
fn autocorrelations(scraped: &Scraped) -> Vec<f64> {
    let logs: Vec<Vec<Option<f64>>> =
        scraped.values().map(|scrapes| scrapes.windows(2).map(log_mean).collect()).collect();
    let seconds = logs.iter().map(Vec::len).min().unwrap_or(0);
    let deviations: Vec<Vec<Option<f64>>> = (0..logs.len())
        .map(|pod| {
            let beside: Vec<Option<f64>> = (0..seconds)
                .map(|second| {
                    let others: Option<Vec<f64>> =
                        logs.iter().enumerate().filter(|(other, _)| *other != pod).map(|(_, of)| of[second]).collect();
                    Some(logs[pod][second]? - mean(&others?)?)
                })
                .collect();
            let level = mean(&beside.iter().copied().flatten().collect::<Vec<_>>()).unwrap_or(0.0);
            beside.into_iter().map(|value| Some(value? - level)).collect()
        })
        .collect();
    let product = |lag: usize| {
        let pairs = deviations.iter().flat_map(|of| of.iter().zip(of.iter().skip(lag)));
        let products: Vec<f64> = pairs.filter_map(|(one, other)| Some((*one)? * (*other)?)).collect();
        mean(&products).unwrap_or(f64::NAN)
    };
    let variance = product(0);
    (1..=LAGS).map(|lag| product(lag) / variance).collect()
}

/// The logarithm of the mean transaction time between two scrapes.
fn log_mean(pair: &[RevisionScrape]) -> Option<f64> {
    let added = |figure: RevisionFigure| {
        let of = |scrape: &RevisionScrape| scrape.figures[figure as usize].value();
        Some(of(&pair[1])? - of(&pair[0])?)
    };
    let (seconds, transactions) = (added(RevisionFigure::BusySeconds)?, added(RevisionFigure::Transactions)?);
    (seconds > 0.0 && transactions > 0.0).then(|| (seconds / transactions).ln())
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}
