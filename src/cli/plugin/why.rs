//! `kubectl sluice why`: the last decision of a pool in words.

use clap::Args;
use k8s_openapi::{api::core::v1::Event, jiff::Timestamp};
use kube::api::ListParams;

use super::{
    cluster::{ClusterAccess, beside},
    error::{Conclusion, PluginError},
    options::{ClusterOptions, OutputOptions},
    rollout::revisions,
    screen::Screen,
    view::{NotRead, document::PoolDocument, rollout::in_force, why},
};

/// Arguments of `why`.
#[derive(Args, Debug)]
pub struct WhyArgs {
    /// The pool.
    #[arg(value_name = "POOL")]
    pool: String,
    #[command(flatten)]
    output: OutputOptions,
}

/// Runs the verb.
///
/// # Errors
/// [`PluginError`].
pub async fn run(args: WhyArgs, options: &ClusterOptions) -> Result<Conclusion, PluginError> {
    let cluster = ClusterAccess::connect(options).await?;
    let document = cluster.pool(&args.pool).await?;
    let (events, revisions) = futures::join!(events(&cluster, &document), revisions(&cluster, &document));
    let settings = beside(revisions).map(|revisions| in_force(&revisions));
    let screen = Screen::of_stdout();
    let (settings, events, now) = (settings.as_ref().map(Option::as_ref), events.as_deref(), Timestamp::now());
    match args.output.document() {
        Some(format) => screen.document(format, &why::WhyAnswer::of(&document, settings, events, now))?,
        None => screen.print(&why::text(&document, settings, events, now))?,
    }
    Ok(Conclusion::Yes)
}

/// The events about this very pool, not about an earlier one of its name.
pub(super) async fn events(cluster: &ClusterAccess, document: &PoolDocument) -> Result<Vec<Event>, NotRead> {
    let namespace = document.key().namespace;
    let uid = document.pool.metadata.uid.as_deref().unwrap_or_default();
    let params = ListParams::default().fields(&format!("involvedObject.uid={uid}"));
    beside(cluster.list(&format!("list events in {namespace}"), &cluster.of(&namespace), params).await)
}
