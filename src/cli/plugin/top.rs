//! `kubectl sluice top`: which pods work a pool now, and which of their clients.

use std::{collections::BTreeMap, time::Duration};

use clap::Args;
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use tokio::time::{Instant, sleep};

use super::{
    agents,
    cluster::ClusterAccess,
    error::{Conclusion, PluginError},
    options::{ClusterOptions, OutputOptions, WatchOptions},
    screen::{Screen, tell, tell_skew},
    view::{
        document::PoolDocument,
        top::{CountedLoad, PodWork, PoolClients, PoolWork, text, work},
    },
};

/// Between two looks: agents read their poolers each second.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// Arguments of `top`.
#[derive(Args, Debug)]
pub struct TopArgs {
    /// The pool.
    #[arg(value_name = "POOL")]
    pool: String,
    /// Tell too which applications and clients it is. It runs a program in the sidecars of the pods that work most, which takes the
    /// rights to get and create pods/exec.
    #[arg(long)]
    clients: bool,
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    watch: WatchOptions,
}

/// Pods in which a program is run.
const MOST_RUN_IN: usize = 20;

/// What the agents counted at one moment; none of one that did not answer.
struct Look {
    at: Instant,
    pods: Vec<Pod>,
    counted: BTreeMap<String, Option<CountedLoad>>,
}

/// Runs the verb.
///
/// # Errors
/// [`PluginError`]: there is no such pool, its pods cannot be listed, or no agent may be asked.
pub async fn run(args: TopArgs, options: &ClusterOptions) -> Result<Conclusion, PluginError> {
    let TopArgs { pool, clients, output, watch } = args;
    watch.check(output)?;
    let cluster = ClusterAccess::connect(options).await?;
    let document = cluster.pool(&pool).await?;
    tell_skew(&document);
    let end = (watch.watch && !watch.timeout.is_zero()).then(|| Instant::now() + watch.timeout);
    let screen = Screen::of_stdout();
    let mut before = look(&cluster, &document).await?;
    loop {
        sleep(LOOK_EVERY).await;
        let after = look(&cluster, &document).await?;
        let counted = before.counted.iter().filter_map(|(pod, load)| Some((pod.clone(), (*load)?))).collect();
        let pods = work(&counted, &after.counted, (after.at - before.at).as_secs_f64());
        let clients = if clients { who(&cluster, &after.pods, &pods).await } else { None };
        let work = PoolWork { pods, clients };
        match output.document() {
            Some(format) => screen.document(format, &work)?,
            None if work.pods.is_empty() => tell(&format!("{} has no pod that runs", document.key())),
            None if watch.watch && screen.is_terminal() => screen.redraw(&text(&document, &work))?,
            None => screen.print(&text(&document, &work))?,
        }
        if !watch.watch || end.is_some_and(|end| end <= Instant::now()) {
            let answered = work.pods.is_empty() || after.counted.values().any(Option::is_some);
            return Ok(if answered { Conclusion::Yes } else { Conclusion::CannotTell });
        }
        before = after;
    }
}

/// Asks every agent once. Who may not ask one may ask none.
async fn look(cluster: &ClusterAccess, document: &PoolDocument) -> Result<Look, PluginError> {
    let pods = agents::pods(cluster, document).await?;
    let mut not_read = Vec::new();
    let asked = agents::asked(&pods, document.name(), &mut not_read);
    for words in &not_read {
        tell(words);
    }
    let at = Instant::now();
    let answers = stream::iter(asked)
        .map(|pod: &Pod| async move { (agents::name(pod), agents::ask(cluster, pod, "metrics").await) });
    let answers: Vec<_> = answers.buffer_unordered(agents::ASKED_AT_ONCE).collect().await;
    let mut counted = BTreeMap::new();
    for (pod, answer) in answers {
        let load = match answer {
            Ok(page) => Some(CountedLoad::read(&page)),
            Err(error @ PluginError::NotAllowed { .. }) => return Err(error),
            Err(error) => {
                tell(&format!("{pod}: its agent: {error}"));
                None
            }
        };
        counted.insert(pod, load);
    }
    Ok(Look { at, pods, counted })
}

/// Who works those that work most. None where that may not be asked, or nobody told.
async fn who(cluster: &ClusterAccess, pods: &[Pod], works: &[PodWork]) -> Option<PoolClients> {
    let of = |work: &PodWork| pods.iter().find(|pod| agents::name(pod) == work.pod);
    let busiest: Vec<&Pod> = works.iter().filter_map(of).take(MOST_RUN_IN).collect();
    if works.len() > busiest.len() {
        tell(&format!("of {} pods the {} that work most are asked for their clients", works.len(), busiest.len()));
    }
    let asked = stream::iter(busiest)
        .map(|pod| async move { (agents::name(pod), agents::clients(cluster, pod).await) })
        .buffer_unordered(agents::ASKED_AT_ONCE);
    tokio::pin!(asked);
    let mut told = BTreeMap::new();
    while let Some((pod, answer)) = asked.next().await {
        match answer {
            Ok(report) => {
                told.insert(pod, report);
            }
            Err(error @ PluginError::NotAllowed { .. }) => {
                tell(&format!("{error}; so it is not told which applications and clients it is"));
                return None;
            }
            Err(error) => tell(&format!("{pod}: its agent: {error}")),
        }
    }
    (!told.is_empty()).then(|| PoolClients::of(told))
}
