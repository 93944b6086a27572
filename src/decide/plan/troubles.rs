//! What the poolers logged, as conditions: what keeps them from the database, and clients from them.

use std::cmp::Reverse;

use super::{
    conditions::{CALM, no, yes},
    observed::{AgentAnswer, Observed, PodSeen},
};
use crate::{
    api::{
        conditions::{CLIENTS_ACCEPTED, ObservedCondition as Condition, UPSTREAM_HEALTHY},
        reasons,
    },
    contract::{Between, PoolerError, ServerFull, StatusReport, TroubleSeen},
};

/// The pods whose agents answer, and what they say.
pub(super) fn reports<'a>(observed: &'a Observed) -> impl Iterator<Item = (&'a PodSeen, &'a StatusReport)> + Clone {
    observed.pods.iter().filter_map(|pod| match &pod.answer {
        AgentAnswer::Report(report) => Some((pod, &**report)),
        AgentAnswer::NotAsked | AgentAnswer::Unreachable { .. } => None,
    })
}

/// The database refuses further server connections.
pub(super) fn server_full(observed: &Observed) -> Option<Condition> {
    let full: Vec<(&PodSeen, &ServerFull)> =
        observed.pods.iter().filter_map(|pod| Some((pod, pod.answer.server_full(observed.now)?))).collect();
    let (pod, first) = full.first()?;
    let all = observed.pods.iter().filter(|pod| pod.answer.report().is_some()).count();
    let held = full.iter().fold(0, |sum: u32, (_, full)| sum.saturating_add(full.refused_beyond));
    Some(no(
        UPSTREAM_HEALTHY,
        PoolerError::TooManyServerConnections.as_str(),
        format!(
            "on {} of {all} pods, {} among them, the database refuses server connections beyond the {held} that they have \
             together ({}); the target stays there, and one more is tried from time to time; raise the CONNECTION LIMIT of the \
             role or the database, or max_connections, or lower spec.scaling.maxAllowed",
            full.len(),
            pod.name,
            first.words,
        ),
    ))
}

/// One class of what was logged.
struct Class<'a> {
    /// How many pods have it.
    pods: usize,
    /// The first of them, and what it says.
    pod: &'a PodSeen,
    trouble: &'a TroubleSeen,
}

/// The classes of one kind, the worst first: what `Ready` counts before what it does not, then what most pods have, the first of equals.
fn classes<'a>(observed: &'a Observed, between: Between) -> Vec<Class<'a>> {
    let mut classes: Vec<Class<'_>> = Vec::new();
    for (pod, report) in reports(observed) {
        for trouble in report.troubles.iter().filter(|trouble| trouble.reason.between() == between) {
            match classes.iter_mut().find(|class| class.trouble.reason == trouble.reason) {
                Some(class) => class.pods += 1,
                None => classes.push(Class { pods: 1, pod, trouble }),
            }
        }
    }
    classes.sort_by_key(|class| (CALM.contains(&class.trouble.reason.as_str()), Reverse(class.pods)));
    classes
}

/// What else keeps poolers from the database.
pub(super) fn server(observed: &Observed) -> Option<Condition> {
    let classes = classes(observed, Between::PoolerAndDatabase);
    let (worst, others) = classes.split_first()?;
    let (what, todo) = match worst.trouble.reason {
        PoolerError::ServerLoginRefused if shows_certificate(observed) => (
            "the database refuses to let them in",
            "correct the Secret of spec.upstream.credentialsRef, the role, pg_hba.conf, or the certificate of \
             spec.upstream.tls.clientCertRef: with clientcert=verify-full its CN must be the role",
        ),
        PoolerError::ServerLoginRefused => (
            "the database refuses to let them in",
            "correct the Secret of spec.upstream.credentialsRef, the role, or pg_hba.conf",
        ),
        PoolerError::ServerWantsCertificate if shows_certificate(observed) => (
            "the database does not accept the client certificate that they show",
            "see the Secret of spec.upstream.tls.clientCertRef: a CA of the server's ssl_ca_file must have signed its certificate, \
             whose CN must be the role where pg_hba.conf says cert or clientcert=verify-full; pods that were created before \
             clientCertRef was named show none",
        ),
        PoolerError::ServerWantsCertificate => (
            "the database wants a client certificate",
            "name a Secret with its tls.crt and tls.key in spec.upstream.tls.clientCertRef and restart the workload, or take \
             clientcert or cert out of the line of pg_hba.conf that they come by",
        ),
        PoolerError::ServerRefused => (
            "the database refuses them in words that are not understood, and nothing is held back for that",
            "lc_messages = 'C' of the role or the server makes it say so in English",
        ),
        PoolerError::TooManyServerConnections => (
            "the database has no connection left",
            "raise the CONNECTION LIMIT of the role or the database, or max_connections, or lower spec.scaling.maxAllowed",
        ),
        PoolerError::ServerNotReady => ("the database lets nobody in yet, or any more", "see the log of the server"),
        PoolerError::DnsFailed => ("the database's name does not resolve", "see spec.upstream.host"),
        PoolerError::ServerTlsFailed => (
            "TLS with the database fails",
            "see spec.upstream.tls, and /status of the agent for what is wrong with the certificate",
        ),
        _ => ("the database does not answer", "see spec.upstream.host and port, and what stands between"),
    };
    Some(condition(observed, UPSTREAM_HEALTHY, (worst, others), what, todo))
}

/// Whether new pods show the database a certificate.
fn shows_certificate(observed: &Observed) -> bool {
    observed.effective.as_ref().is_ok_and(|effective| effective.pod.upstream_certificate.is_some())
}

/// Whether poolers take clients.
pub(super) fn clients_accepted(observed: &Observed) -> Condition {
    let classes = classes(observed, Between::ClientsAndPooler);
    let Some((worst, others)) = classes.split_first() else {
        return yes(CLIENTS_ACCEPTED, reasons::NONE_REFUSED, "no pooler has turned a client away in the last minutes");
    };
    let (what, todo) = match worst.trouble.reason {
        PoolerError::UnsupportedStartupParameter => (
            "clients were refused because they ask for a startup parameter that PgBouncer does not pass on",
            "take it out of PGOPTIONS, the options of the URL or the driver's settings, and set it for the role instead (ALTER \
             ROLE ... SET); or name it in spec.pgbouncer.parameters.ignore_startup_parameters if it may be ignored",
        ),
        PoolerError::ClientTimeout => (
            "clients were cut by a timeout of the pooler",
            "see why they wait: ScalingLimited, UpstreamHealthy, LeakDetected; spec.health.queryWaitTimeoutSeconds is how long \
             they may",
        ),
        PoolerError::OutOfSlots => {
            ("clients were turned away because the pooler has no place for more", "raise spec.client.maxConnections")
        }
        PoolerError::ClientTlsFailed => (
            "clients broke off TLS with the pooler",
            "they do not trust the certificate of spec.client.tls.certificateRef, or have another name for the pooler",
        ),
        _ => (
            "clients were refused for their user, password or database",
            "they must use those of spec.upstream and its Secret",
        ),
    };
    condition(observed, CLIENTS_ACCEPTED, (worst, others), what, todo)
}

fn condition(
    observed: &Observed,
    type_: &'static str,
    (worst, others): (&Class<'_>, &[Class<'_>]),
    what: &str,
    todo: &str,
) -> Condition {
    let all = reports(observed).count();
    let Class { pods, pod, trouble } = worst;
    let others: Vec<String> =
        others.iter().map(|class| format!("{} on {}", class.trouble.reason.as_str(), class.pods)).collect();
    let besides = if others.is_empty() { String::new() } else { format!("; besides: {}", others.join(", ")) };
    let words = if trouble.words.is_empty() { String::new() } else { format!(" ({})", trouble.words) };
    no(
        type_,
        trouble.reason.as_str(),
        format!("on {pods} of {all} pods, {} among them, {what}{words}; {todo}{besides}", pod.name),
    )
}
