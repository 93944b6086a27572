//! The webhook of a replica: its certificate, its port, and what it answers from.

use std::{net::SocketAddr, time::Duration};

use kube::{Client, ResourceExt};
use tokio::{net::TcpListener, task::JoinSet, time::sleep};

use super::{
    controller_revision,
    observe::{stores::Stores, watch::Instruments},
    options::OperatorArgs,
};
use crate::{
    api::ConnectionPool,
    causes::with_causes,
    http::Readiness,
    serving::{Drain, HttpServer},
    webhook::{
        certificates::{CertificateKeeper, CertificateSettings, CertificateTrust},
        lookup::ClusterLookup,
        server,
    },
};

/// The gate of the webhook's certificate.
const CERTIFICATE_GATE: &str = "webhook";
/// The gate of the webhook's port.
const LISTENER_GATE: &str = "webhook port";
/// First pause before what the webhook cannot begin without, its certificate and its address, is tried again; it doubles each time.
const SHORTEST_RETRY: Duration = Duration::from_secs(1);
/// Longest pause before that.
const LONGEST_RETRY: Duration = Duration::from_secs(15);

/// Serves the webhook until the drain is over.
pub async fn admit(client: Client, stores: Stores, args: OperatorArgs, instruments: Instruments, drain: Drain) {
    tokio::select! {
        (server, _keeping) = webhook(client, stores, args, instruments) => server.run(drain).await,
        () = drain.over() => {}
    }
}

/// The webhook, as soon as it can be served, and the task that keeps its certificate alive.
async fn webhook(
    client: Client,
    stores: Stores,
    args: OperatorArgs,
    instruments: Instruments,
) -> (HttpServer, JoinSet<()>) {
    instruments.readiness.wait(CERTIFICATE_GATE, "no certificate yet");
    instruments.readiness.wait(LISTENER_GATE, "no certificate yet");
    let settings = CertificateSettings::for_service(
        &args.namespace,
        &args.webhook_service,
        &args.webhook_secret,
        &args.webhook_configuration,
    );
    let mut retry = SHORTEST_RETRY;
    let keeper = loop {
        match CertificateKeeper::start(client.clone(), settings.clone()).await {
            Ok(keeper) => break keeper,
            Err(error) => {
                let error = with_causes(&error);
                tracing::warn!(error, "no certificate for the webhook; trying again");
                instruments.readiness.wait(CERTIFICATE_GATE, &format!("no certificate: {error}"));
                sleep(retry).await;
                retry = (retry * 2).min(LONGEST_RETRY);
            }
        }
    };
    let tls = keeper.tls();
    let (readiness, metrics) = (instruments.readiness.clone(), instruments.metrics.clone());
    let mut keeping = JoinSet::new();
    keeping.spawn(keeper.run(move |standing| match standing {
        CertificateTrust::Trusted(serving) => {
            metrics.certificate_ends(serving.not_after.as_second());
            readiness.open(CERTIFICATE_GATE);
        }
        CertificateTrust::Untrusted(error) => readiness.wait(CERTIFICATE_GATE, &with_causes(error)),
    }));
    let revisions = stores.revisions.clone();
    let for_new_pods = move |pool: &ConnectionPool| {
        let own = revisions.of(&pool.namespace().unwrap_or_default(), &pool.name_any());
        controller_revision::for_new_pods(pool, &own)
    };
    let lookup = ClusterLookup::new(client, stores.pools, stores.classes, for_new_pods);
    let metrics = instruments.metrics.clone();
    let routes = server::router(lookup, args.injection(), move |admitted| metrics.admitted(admitted));
    let listener = listen(args.webhook_bind, &instruments.readiness).await;
    (HttpServer::new(listener, routes, server::BOUNDS).with_tls(tls), keeping)
}

/// Takes the webhook's address. While it cannot be had this replica is not ready, so that pods are sent to others.
async fn listen(address: SocketAddr, readiness: &Readiness) -> TcpListener {
    let mut retry = SHORTEST_RETRY;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                readiness.open(LISTENER_GATE);
                return listener;
            }
            Err(error) => {
                let why = format!(
                    "the webhook cannot listen on {address} (--webhook-bind): {error}; free the address or choose another"
                );
                tracing::error!("{why}; trying again");
                readiness.wait(LISTENER_GATE, &why);
                sleep(retry).await;
                retry = (retry * 2).min(LONGEST_RETRY);
            }
        }
    }
}
