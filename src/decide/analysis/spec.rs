//! What a pool's `rollout.analysis` or `rollout.postPromotionAnalysis` says, as settings of an analysis.

use super::settings::{AnalysisError, AnalysisSettings, BuiltIn, JudgedMetric, LATEST_DEADLINE_SECONDS};
use crate::api::{AnalysisMetric, AnalysisSpec};

/// Fields of the settings, and what the spec calls them; `FIELD` is the field of the phase. The longer before those that they begin with.
const NAMES: [(&str, &str); 9] = [
    ("settings.metrics", "FIELD.metrics"),
    ("settings.max_exposure_seconds", "FIELD.maxExposureSeconds"),
    ("settings.min_exposure_seconds", "FIELD.plannedExposureSeconds"),
    ("settings.min_transactions", "FIELD.minTransactions"),
    ("limit_ms", "limitMilliseconds"),
    ("limit_count", "limitCount"),
    ("success_condition", "successCondition"),
    ("failure_condition", "failureCondition"),
    ("failure_limit", "failureLimit"),
];
/// Nothing passes on fewer rows than this, and a row is a scrape.
const PLANNED_SCRAPES: f64 = 6.0;
/// And nothing is given up on fewer.
const MOST_SCRAPES: f64 = 24.0;
/// Scrapes before the change that are looked at: each pod's own level is known from 20 on.
const PAST_SCRAPES: f64 = 24.0;
/// The past of an analysis after the promotion begins this long before it, in seconds, or so many scrapes: what all pods take one after
/// the other, the last ones left only just before. And no earlier than an analysis may.
const PAST_OF_PROMOTED_SECONDS: f64 = 600.0;
const PAST_OF_PROMOTED_SCRAPES: f64 = 40.0;
const LONGEST_PAST_SECONDS: f64 = 3600.0;
/// What was sampled is in Prometheus, and was looked at, after this many seconds.
const KNOWN_AFTER_SECONDS: f64 = 10.0;

/// When a revision is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AnalysisPhase {
    /// While it is rolled out: its canary's pods beside those that run the revision before.
    Canary,
    /// Once it runs on all pods and was promoted: against what the same pods did on the revision before.
    PostPromotion,
}

impl AnalysisPhase {
    /// The field of the spec that asks for it.
    pub const fn field(self) -> &'static str {
        match self {
            Self::Canary => "spec.rollout.analysis",
            Self::PostPromotion => "spec.rollout.postPromotionAnalysis",
        }
    }
}

/// The analysis that a pool asks for, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutAnalysis {
    phase: AnalysisPhase,
    settings: AnalysisSettings,
    /// Names of the user's own metrics, and their queries.
    queries: Vec<(String, String)>,
}

impl RolloutAnalysis {
    /// Reads what the spec says.
    ///
    /// # Errors
    /// What of it cannot be judged by, where, and what to write.
    pub fn of(spec: &AnalysisSpec, phase: AnalysisPhase) -> Result<Self, String> {
        let AnalysisSpec { metrics, min_transactions, planned_exposure_seconds, max_exposure_seconds } = spec;
        let defaults = AnalysisSettings::default();
        let planned = planned_exposure_seconds.map_or(defaults.planned_exposure_seconds, f64::from);
        let settings = AnalysisSettings {
            metrics: metrics.iter().map(judged).collect(),
            min_transactions: min_transactions.map_or(defaults.min_transactions, f64::from),
            planned_exposure_seconds: planned,
            min_exposure_seconds: defaults.min_exposure_seconds.min(planned),
            max_exposure_seconds: max_exposure_seconds
                .map_or_else(|| defaults.max_exposure_seconds.max(planned), f64::from),
            // the rollout's own deadline counts, which stands still in pauses
            deadline_seconds: LATEST_DEADLINE_SECONDS,
            ..defaults
        };
        settings.check().map_err(|error| in_words_of_the_spec(&error, phase))?;
        for (index, AnalysisMetric { name, query, .. }) in metrics.iter().enumerate() {
            let problem = match (BuiltIn::of(name), query) {
                (Some(_), Some(_)) => "a metric that Sluice measures has no query; give your own another name",
                (None, None) => "a metric of your own needs a query",
                _ => continue,
            };
            return Err(format!("{}.metrics[{index}] ({name}): {problem}", phase.field()));
        }
        let own = metrics.iter().filter_map(|metric| Some((metric.name.clone(), metric.query.clone()?)));
        Ok(Self { phase, settings, queries: own.collect() })
    }

    /// When it judges.
    pub fn phase(&self) -> AnalysisPhase {
        self.phase
    }

    /// Seconds of samples without which what is neither proven harmless nor worse does not pass. They are more where pods are scraped
    /// rarely.
    pub fn planned_exposure_seconds(&self) -> u32 {
        whole(self.settings.planned_exposure_seconds)
    }

    /// Seconds that it takes at the least until what is neither proven harmless nor worse passes: those in which a process is cold, those
    /// of samples, and those until samples are known. They are more where pods are scraped rarely.
    pub fn least_seconds(&self) -> u32 {
        whole(least_seconds(&self.settings))
    }

    /// The same in words.
    pub fn least_words(&self) -> String {
        let AnalysisSettings { warm_up_seconds, planned_exposure_seconds, .. } = self.settings;
        format!(
            "{warm_up_seconds:.0} s in which a process is cold, plannedExposureSeconds {planned_exposure_seconds:.0}, and \
             {KNOWN_AFTER_SECONDS:.0} s until samples are in Prometheus and looked at"
        )
    }

    /// The settings for samples of this interval, in seconds: what is counted in seconds is a number of samples.
    pub fn settings(&self, interval_seconds: f64) -> AnalysisSettings {
        let settings = &self.settings;
        let planned = settings.planned_exposure_seconds.max(PLANNED_SCRAPES * interval_seconds);
        let past_seconds = match self.phase {
            AnalysisPhase::Canary => settings.past_seconds.max(PAST_SCRAPES * interval_seconds),
            AnalysisPhase::PostPromotion => {
                let scrapes = PAST_OF_PROMOTED_SCRAPES * interval_seconds;
                PAST_OF_PROMOTED_SECONDS.max(scrapes).min(LONGEST_PAST_SECONDS)
            }
        };
        AnalysisSettings {
            interval_seconds,
            past_seconds,
            planned_exposure_seconds: planned,
            max_exposure_seconds: settings.max_exposure_seconds.max(MOST_SCRAPES * interval_seconds).max(planned),
            ..settings.clone()
        }
    }

    /// Names of the user's own metrics, and their queries for these two revisions and the pods that run the canary.
    pub fn queries(&self, canary: u64, stable: u64, canary_pods: &[&str]) -> Vec<(String, String)> {
        // a name may have dots, and no other character that means anything to a regular expression
        let pods = canary_pods.join("|").replace('.', "[.]");
        let fill = |query: &String| {
            let query = query.replace("$revision", &canary.to_string());
            query.replace("$stableRevision", &stable.to_string()).replace("$canaryPods", &pods)
        };
        self.queries.iter().map(|(name, query)| (name.clone(), fill(query))).collect()
    }
}

fn judged(metric: &AnalysisMetric) -> JudgedMetric {
    JudgedMetric {
        name: metric.name.clone(),
        compare: metric.compare,
        limit_ms: metric.limit_milliseconds.map(f64::from),
        limit_count: metric.limit_count.map(f64::from),
        success_condition: metric.success_condition.clone(),
        failure_condition: metric.failure_condition.clone(),
        failure_limit: metric.failure_limit.unwrap_or(0),
        min_measurements: None,
    }
}

/// Seconds from the first sample of a pod on until what is neither proven harmless nor worse passes.
pub(super) fn least_seconds(settings: &AnalysisSettings) -> f64 {
    settings.warm_up_seconds + settings.planned_exposure_seconds + KNOWN_AFTER_SECONDS
}

fn in_words_of_the_spec(error: &AnalysisError, phase: AnalysisPhase) -> String {
    let field = phase.field();
    if *error == AnalysisError::NoMetric {
        return format!(
            "{field}.metrics is empty: an analysis without a metric would promote anything; name at least one, such as \
             {{name: TransactionTime}}"
        );
    }
    NAMES.iter().fold(error.to_string(), |text, (setting, name)| text.replace(setting, &name.replace("FIELD", field)))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // bounded by the check of the settings; saturates
fn whole(seconds: f64) -> u32 {
    seconds.ceil() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(spec: &str, phase: AnalysisPhase) -> String {
        let spec: AnalysisSpec = serde_yaml::from_str(spec).expect("a spec");
        RolloutAnalysis::of(&spec, phase).expect_err("it is refused")
    }

    #[test]
    fn an_analysis_that_nothing_can_be_judged_by_is_refused_with_the_place_and_what_to_write() {
        for (spec, said) in [
            ("{}", "spec.rollout.analysis.metrics is empty"),
            ("metrics: [{name: WaitP95}]", "metrics[0] (WaitP95): unknown metric: known are TransactionTime"),
            ("metrics: [{name: LoginFailures}]", "nothing would be judged: give it limitCount"),
            ("metrics: [{name: Errors, limitMilliseconds: 3}]", "write limitCount in place of limitMilliseconds"),
            (
                "metrics: [{name: Errors}, {name: mine, query: up, successCondition: result << 1}]",
                "spec.rollout.analysis.metrics[1] (mine): successCondition: at character 9",
            ),
            ("metrics: [{name: mine, successCondition: result < 1}]", "(mine): a metric of your own needs a query"),
            ("metrics: [{name: Errors, query: up}]", "(Errors): a metric that Sluice measures has no query"),
            ("metrics: [{name: Errors}, {name: Errors}]", "metrics[1] (Errors): another metric has this name"),
            (
                "{metrics: [{name: Errors}], plannedExposureSeconds: 60, maxExposureSeconds: 30}",
                "spec.rollout.analysis.maxExposureSeconds is 30; expected 60",
            ),
        ] {
            let error = refused(spec, AnalysisPhase::Canary);
            assert!(error.contains(said), "{spec}: {error}");
            assert!(error.starts_with("spec.rollout.analysis") && !error.contains("settings"), "{spec}: {error}");
            let after = refused(spec, AnalysisPhase::PostPromotion);
            assert_eq!(after, error.replace("rollout.analysis", "rollout.postPromotionAnalysis"));
        }
    }

    #[test]
    fn a_query_names_the_revisions_and_the_pods_that_are_judged() {
        let spec = "metrics: [{name: mine, query: 'x{pod=~\"$canaryPods\"} / $revision / $stableRevision', successCondition: result < 1}]";
        let spec: AnalysisSpec = serde_yaml::from_str(spec).expect("a spec");
        let analysis = RolloutAnalysis::of(&spec, AnalysisPhase::Canary).expect("accepted");
        let expected = "x{pod=~\"shop-1|shop[.]2\"} / 7 / 6".to_owned();
        assert_eq!(analysis.queries(7, 6, &["shop-1", "shop.2"]), [("mine".to_owned(), expected)]);
    }

    #[test]
    fn what_is_counted_in_seconds_is_enough_samples_however_rarely_pods_are_scraped() {
        let spec: AnalysisSpec = serde_yaml::from_str("metrics: [{name: TransactionTime}]").expect("a spec");
        let analysis = RolloutAnalysis::of(&spec, AnalysisPhase::Canary).expect("accepted");
        let figures = |interval| {
            let settings = analysis.settings(interval);
            settings.check().expect("it can be");
            [settings.past_seconds, settings.planned_exposure_seconds, settings.max_exposure_seconds].map(f64::to_bits)
        };
        assert_eq!(figures(1.0), [120.0, 30.0, 180.0].map(f64::to_bits));
        assert_eq!(figures(15.0), [360.0, 90.0, 360.0].map(f64::to_bits));
        assert_eq!(figures(60.0), [1440.0, 360.0, 1440.0].map(f64::to_bits));
    }

    #[test]
    fn after_the_promotion_the_past_reaches_back_to_the_first_of_the_pods_that_took_it_lately() {
        let spec: AnalysisSpec = serde_yaml::from_str("metrics: [{name: TransactionTime}]").expect("a spec");
        let analysis = RolloutAnalysis::of(&spec, AnalysisPhase::PostPromotion).expect("accepted");
        let past = |interval| {
            let settings = analysis.settings(interval);
            settings.check().expect("it can be");
            settings.past_seconds.to_bits()
        };
        assert_eq!([1.0, 15.0, 60.0, 120.0].map(past), [600.0, 600.0, 2400.0, 3600.0].map(f64::to_bits));
        assert_eq!((analysis.planned_exposure_seconds(), analysis.least_seconds()), (30, 45));
    }
}
