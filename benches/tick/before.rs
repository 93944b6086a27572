//! How the load was read once: by fourteen queries, one per figure and the times of the samples twice, each grouped by the
//! server. Played beside the reading of today, so that both figures are of one run.

use std::{net::SocketAddr, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, de::IgnoredAny};
use sluice::contract::metrics as names;
use tokio::runtime::Runtime;

use crate::Failure;

/// Queries under way at once.
const AT_ONCE: usize = 4;

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    data: Data<'a>,
}

#[derive(Deserialize)]
struct Data<'a> {
    #[serde(borrow)]
    result: Vec<Series<'a>>,
}

#[derive(Deserialize)]
struct Series<'a> {
    #[serde(borrow)]
    metric: Labels<'a>,
    #[serde(borrow)]
    value: (IgnoredAny, &'a str),
}

#[derive(Deserialize)]
struct Labels<'a> {
    pool_namespace: &'a str,
    pool: &'a str,
    namespace: &'a str,
    pod: &'a str,
    job: &'a str,
    instance: &'a str,
}

/// The queries: the times of the samples first and last.
fn queries() -> Vec<String> {
    let by = "pool_namespace, pool, namespace, pod, job, instance";
    let (servers, state) = (names::SERVER_CONNECTIONS, names::STATE);
    let times = format!("max by ({by}) ({})", names::SAMPLE_TIME);
    let mut queries = vec![
        times.clone(),
        format!("max by ({by}) ({servers}{{{state}=\"active\"}})"),
        format!("max by ({by}) ({}{{{state}=\"waiting\"}})", names::CLIENT_CONNECTIONS),
        format!("max by ({by}) ({}{{{}=\"30s\"}})", names::DEMAND_PEAK, names::WINDOW),
        format!("sum by ({by}) (max by ({by}, {state}) ({servers}))"),
    ];
    let plain = [
        names::TRANSACTIONS,
        names::BUSY_SECONDS,
        names::WAIT_SECONDS,
        names::SERVER_ASSIGNMENTS,
        names::LEAKED,
        names::LIMIT,
        names::GRANT_SEQ,
        names::SHARE,
    ];
    queries.extend(plain.map(|metric| format!("max by ({by}) ({metric})")));
    queries.push(times);
    queries
}

/// What one reading was.
pub struct Reading {
    pub queries: usize,
    pub bytes: usize,
    /// Pods with a figure in every answer.
    pub pods: usize,
}

/// The client, which keeps its connections between two readings.
pub fn client() -> Result<reqwest::Client, Failure> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(Duration::from_mins(1)).build()?)
}

/// Reads everything as of now.
pub fn read(
    runtime: &Runtime,
    client: &reqwest::Client,
    address: SocketAddr,
    now_seconds: f64,
) -> Result<Reading, Failure> {
    let ask = async |query: &String| -> Result<Vec<u8>, Failure> {
        let mut url = reqwest::Url::parse(&format!("http://{address}/api/v1/query"))?;
        url.query_pairs_mut().append_pair("query", query).append_pair("time", &format!("{now_seconds:.3}"));
        Ok(client.get(url).send().await?.bytes().await?.to_vec())
    };
    let queries = queries();
    let (Some((first, rest)), mut bytes, mut pods) = (queries.split_first(), 0, usize::MAX) else {
        return Err("there are no queries".into());
    };
    let (last, figures) = rest.split_last().ok_or("there are no figures")?;
    runtime.block_on(async {
        take(&ask(first).await?, &mut bytes, &mut pods)?;
        let mut answers = stream::iter(figures).map(&ask).buffer_unordered(AT_ONCE);
        while let Some(body) = answers.try_next().await? {
            take(&body, &mut bytes, &mut pods)?;
        }
        take(&ask(last).await?, &mut bytes, &mut pods)
    })?;
    Ok(Reading { queries: queries.len(), bytes, pods })
}

/// Parses an answer, as its reader had to.
fn take(body: &[u8], bytes: &mut usize, pods: &mut usize) -> Result<(), Failure> {
    let answer: Answer = serde_json::from_slice(body)?;
    let mut known = std::collections::HashMap::with_capacity(answer.data.result.len());
    for Series { metric, value } in &answer.data.result {
        let Labels { pool_namespace, pool, namespace, pod, job, instance } = metric;
        let value: f64 = value.1.parse()?;
        known.insert([pool_namespace, pool, namespace, pod, job, instance].map(|label| *label).join("\u{1f}"), value);
    }
    *bytes += body.len();
    *pods = (*pods).min(known.len());
    Ok(())
}
