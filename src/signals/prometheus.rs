//! Asking Prometheus.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use prometheus_http_query::Client;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
    try_join,
};

use super::{
    PoolKey, Readings,
    collect::{Collector, RefusedSeries},
    configuration::{self, ConfigurationError, ServerConfiguration},
    error::{ReadError, ReadFailure, ReadSubject},
    intake::{ArrivedResponse, Body, Intake, Receive, Take},
    query::{self, QUERIES_PER_READ},
    response::{Labels, QueryResponse, ResponseData, ResponseStatus, Series},
    revisions::{CollectedRevisions, MOST_SCRAPES_OF_ALL, RevisionCollector, RevisionReadings, RolloutPods},
    roster::Roster,
    trust,
};
use crate::{
    api,
    contract::metrics,
    decide::analysis::{MeasuredSeries, Measurement},
};

/// Times that a query is sent again because a connection that was kept has been closed meanwhile.
const MOST_KEPT: usize = 4;
/// The queries of a reading, and all of a pool's own, may take this many times as long as one.
const QUERY_TIMES_FOR_ALL: u32 = 2;
/// The quantile of the wait that is told.
const WAIT_QUANTILE: f64 = 0.95;
/// Longest text of an error that is kept, in characters.
const KEPT_CHARACTERS: usize = 300;
/// Largest refusal that is kept, in bytes; and of a reading what is not a series.
const LARGEST_KEPT: usize = 64 << 10;
/// Largest answer to a user's own query, in bytes: one number is needed, with a few labels and notes. Whoever may write a pool may write
/// a query that yields everything there is.
const LARGEST_NUMBER: usize = 4 << 10;
/// Series that such a query may yield: the second says that there are too many.
const MOST_SERIES: u32 = 2;
/// Largest answer about the pods of a rollout, in bytes: 60 pods that four targets are scraped of every 15 s for half an hour take 9 MB.
/// It is taken in series by series: this bounds what it costs to read it, not what is kept.
const LARGEST_ROLLOUT: usize = 16 << 20;
/// Largest series of such an answer, in bytes: half an hour with two scrapes a second takes 130 KB.
const LARGEST_RANGE: usize = 256 << 10;
/// Largest file with a secret, in bytes.
const LARGEST_SECRET: u64 = 1 << 20;

/// The servers of the configuration, by name.
#[derive(Clone, Debug, Default)]
pub struct Servers {
    by_name: BTreeMap<String, Arc<PrometheusServer>>,
}

impl Servers {
    /// Reads the configuration file. The servers are not asked yet.
    ///
    /// # Errors
    /// [`ConfigurationError`] names the file, the server and the field.
    pub fn from_file(path: &Path) -> Result<Self, ConfigurationError> {
        Ok(configuration::read(path)?.into_iter().map(|(name, server)| PrometheusServer::new(name, server)).collect())
    }

    /// The server of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<PrometheusServer>> {
        self.by_name.get(name)
    }
}

impl FromIterator<PrometheusServer> for Servers {
    fn from_iter<I: IntoIterator<Item = PrometheusServer>>(servers: I) -> Self {
        Self { by_name: servers.into_iter().map(|server| (server.name.clone(), Arc::new(server))).collect() }
    }
}

/// One Prometheus, or whatever speaks its HTTP API (Thanos, Mimir, VictoriaMetrics).
#[derive(Debug)]
pub struct PrometheusServer {
    name: String,
    configuration: ServerConfiguration,
    connection: Mutex<Option<Connection>>,
}

/// Clients, and the CA bundle that they were made with.
struct Connection {
    ca: Option<Vec<u8>>,
    clients: Clients,
}

/// A client keeps connections, and each has one server behind its address. A query of a reading has a client to itself, so that it
/// asks the server that it asked before.
#[derive(Clone)]
struct Clients {
    reading: [Client; QUERIES_PER_READ],
    other: Client,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

/// The user's own query in place of a signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverrideQuery {
    /// The pool that it is for.
    pub pool: PoolKey,
    /// The signal that it replaces.
    pub signal: api::Signal,
    /// PromQL that yields one number for the whole pool.
    pub query: String,
}

impl PrometheusServer {
    /// A server of the configuration. It is not asked yet.
    pub fn new(name: impl Into<String>, configuration: ServerConfiguration) -> Self {
        Self { name: name.into(), configuration, connection: Mutex::default() }
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it is reached.
    pub fn configuration(&self) -> &ServerConfiguration {
        &self.configuration
    }

    /// Reads the figures of every pod of the roster as of `now_seconds` (Unix time), with
    /// [`QUERIES_PER_READ`](super::QUERIES_PER_READ) queries at once: what is read of a pool is one moment of one server, whoever
    /// answers behind its address. Of what others export nothing is kept.
    ///
    /// # Errors
    /// [`ReadError`]: a query that fails fails the whole.
    pub async fn read(&self, now_seconds: f64, roster: &Arc<Roster>) -> Result<Readings, ReadError> {
        let session = self.session(now_seconds, self.deadline_of_all()).await?;
        let [first, second] = query::figures();
        let [one, other] = &session.clients.reading;
        let (first, second) = try_join!(
            session.take(one, &first, ReadSubject::All, Collector::of(roster.clone())),
            session.take(other, &second, ReadSubject::All, Collector::of(roster.clone())),
        )?;
        let bytes = first.bytes + second.bytes;
        let mut collected = first.kept;
        collected.add(second.kept);
        Ok(collected.finish(roster, now_seconds, bytes))
    }

    /// The 95th percentile of the wait for a server connection over the last two minutes, in seconds, by pool; from means
    /// of one second. Pools without traffic are missing, and those without a pod in the roster. For the status: once a minute is
    /// often enough.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn wait_p95_seconds(
        &self,
        now_seconds: f64,
        roster: &Arc<Roster>,
    ) -> Result<HashMap<PoolKey, f64>, ReadError> {
        let session = self.session(now_seconds, self.deadline_of_all()).await?;
        let asked = ReadSubject::Metric(metrics::WAIT_HISTOGRAM);
        let quantiles = Quantiles { roster: roster.clone(), by_pool: HashMap::new() };
        let query = query::wait_quantile(WAIT_QUANTILE);
        Ok(session.take(&session.clients.other, &query, asked, quantiles).await?.kept)
    }

    /// Asks the own queries of one pool as of `now_seconds` (Unix time), one after the other; all of them within twice the time of
    /// one query. The results are in the order of the queries. Of an answer no more is taken than one number has.
    ///
    /// What the age of such a value is cannot be seen: Prometheus uses samples of up to five minutes ago.
    pub async fn read_overrides(&self, now_seconds: f64, queries: &[OverrideQuery]) -> Vec<Result<f64, ReadError>> {
        let deadline = self.deadline_of_all();
        let mut read = Vec::with_capacity(queries.len());
        for query in queries {
            read.push(match self.session(now_seconds, deadline).await {
                Ok(session) => session.read_override(query).await,
                Err(error) => Err(error),
            });
        }
        read
    }

    /// What these pods of a pool did with two revisions in the last seconds, scrape by scrape, as of `now_seconds` (Unix time). Of a pod that
    /// exports more than is kept there is nothing, and it is named.
    ///
    /// # Errors
    /// [`ReadError`]; with [`ReadFailure::TooLargeRollout`] it may be asked for less.
    pub async fn read_revisions(
        &self,
        now_seconds: f64,
        window_seconds: u32,
        asked: RolloutPods<'_>,
    ) -> Result<RevisionReadings, ReadError> {
        let subject = ReadSubject::Rollout { pool: asked.pool.clone() };
        let session = self.session(now_seconds, self.deadline_of_all()).await?;
        let mut intake = Intake::new(LARGEST_RANGE, RevisionCollector::of(asked));
        let query = asked.query(window_seconds);
        let question = Question { largest: LARGEST_ROLLOUT, ..Question::of(&session.clients.other, &query) };
        let too_large = |refused: Option<RefusedSeries>| {
            let (limit, scrapes) = (LARGEST_ROLLOUT, MOST_SCRAPES_OF_ALL);
            ReadFailure::TooLargeRollout { window_seconds, limit, scrapes, refused: refused.map(Box::new) }
        };
        match session.ask(question, &subject, &mut intake).await {
            Ok(()) => {}
            Err(error) if matches!(*error.failure, ReadFailure::TooLarge { limit: LARGEST_ROLLOUT }) => {
                // who is left out by then is most of it
                let refused = intake.finish().await.ok().and_then(|arrived| arrived.kept.readings.refused);
                return Err(session.failed(subject, too_large(refused)));
            }
            Err(error) => return Err(error),
        }
        let read = intake.finish().await.and_then(|arrived| {
            is_whole(&arrived.rest, "matrix")?;
            let CollectedRevisions { readings, is_too_much } = arrived.kept;
            if is_too_much { Err(too_large(readings.refused)) } else { Ok(readings) }
        });
        read.map_err(|failure| session.failed(subject, failure))
    }

    /// What queries of the user's own return for metrics of an analysis of this pool, each with the name of its metric, one after the other;
    /// all of them within twice the time of one query. Whatever series there are, for one alone is a measurement.
    ///
    /// # Errors
    /// [`ReadError`] of the first that fails; those after it are not asked.
    pub async fn measure(
        &self,
        now_seconds: f64,
        pool: &PoolKey,
        queries: &[(String, String)],
    ) -> Result<Vec<Measurement>, ReadError> {
        let deadline = self.deadline_of_all();
        let mut measured = Vec::with_capacity(queries.len());
        for (metric, query) in queries {
            let session = self.session(now_seconds, deadline).await?;
            measured.push(session.measure(pool, metric, query).await?);
        }
        Ok(measured)
    }

    fn deadline_of_all(&self) -> Instant {
        Instant::now() + self.configuration.timeout() * QUERY_TIMES_FOR_ALL
    }

    /// Everything that one tick needs. Secrets are read anew: they change under running processes.
    async fn session(&self, now_seconds: f64, deadline: Instant) -> Result<Session<'_>, ReadError> {
        let configuration = &self.configuration;
        let authorization = if let Some(path) = &configuration.bearer_token_file {
            let token = self.secret("the bearer token", path).await?;
            Some(self.header("the bearer token", path, format!("Bearer {token}"))?)
        } else if let Some(files) = &configuration.basic_auth {
            let name = self.secret("the user name", &files.username_file).await?;
            let password = self.secret("the password", &files.password_file).await?;
            let login = STANDARD.encode(format!("{name}:{password}"));
            Some(self.header("the password", &files.password_file, format!("Basic {login}"))?)
        } else {
            None
        };
        let clients = self.clients().await?;
        Ok(Session { server: self, clients, authorization, now_seconds, deadline })
    }

    /// The clients, made anew when the CA bundle has changed.
    async fn clients(&self) -> Result<Clients, ReadError> {
        let ca = match &self.configuration.ca_file {
            Some(path) => Some(self.file("the CA bundle", path).await?),
            None => None,
        };
        let mut connection = self.connection.lock().await;
        if let Some(connection) = connection.as_ref().filter(|connection| connection.ca == ca) {
            return Ok(connection.clients.clone());
        }
        let client = || self.client(ca.as_deref());
        let clients = Clients { reading: [client()?, client()?], other: client()? };
        *connection = Some(Connection { ca, clients: clients.clone() });
        Ok(clients)
    }

    fn client(&self, ca: Option<&[u8]>) -> Result<Client, ReadError> {
        // whoever links this may have installed one already: then that one is used
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = || {
            reqwest::Client::builder()
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .user_agent(concat!("sluice/", env!("CARGO_PKG_VERSION")))
                .pool_idle_timeout(Duration::from_mins(1))
                .default_headers(self.headers())
        };
        let client = if let (Some(pem), Some(path)) = (ca, &self.configuration.ca_file) {
            let certificates = reqwest::Certificate::from_pem_bundle(pem).unwrap_or_default();
            if certificates.is_empty() {
                return Err(self.invalid("the CA bundle", path));
            }
            builder().tls_certs_only(certificates).build()
        } else if self.configuration.is_tls() {
            trust::client(builder)
        } else {
            // nobody's certificate is looked at
            builder().tls_certs_only([]).build()
        };
        let client = client.map_err(|source| self.failed(ReadFailure::Client { source }))?;
        Client::from(client, self.configuration.url.trim_end_matches('/'))
            .map_err(|source| self.failed(ReadFailure::Url { source }))
    }

    fn headers(&self) -> HeaderMap {
        let headers = self.configuration.headers.iter().filter_map(|(name, value)| {
            let mut value = HeaderValue::try_from(value).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::try_from(name).ok()?, value))
        });
        headers.collect()
    }

    fn header(&self, what: &'static str, path: &Path, text: String) -> Result<HeaderValue, ReadError> {
        let mut value = HeaderValue::try_from(text).map_err(|_| self.invalid(what, path))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// A secret in a file, without the line end that editors add.
    async fn secret(&self, what: &'static str, path: &Path) -> Result<String, ReadError> {
        let bytes = self.file(what, path).await?;
        let text = String::from_utf8(bytes).map_err(|_| self.invalid(what, path))?;
        let text = text.trim_end_matches(['\r', '\n']);
        if text.is_empty() { Err(self.invalid(what, path)) } else { Ok(text.to_owned()) }
    }

    async fn file(&self, what: &'static str, path: &Path) -> Result<Vec<u8>, ReadError> {
        let failed = |source| self.failed(ReadFailure::File { what, path: path.to_owned(), source });
        if tokio::fs::metadata(path).await.map_err(failed)?.len() > LARGEST_SECRET {
            return Err(self.invalid(what, path));
        }
        tokio::fs::read(path).await.map_err(failed)
    }

    fn invalid(&self, what: &'static str, path: &Path) -> ReadError {
        self.failed(ReadFailure::InvalidFile { what, path: path.to_owned() })
    }

    fn failed(&self, failure: ReadFailure) -> ReadError {
        ReadError { server: self.name.clone(), asked: ReadSubject::Access, failure: Box::new(failure) }
    }
}

/// One query, and by which connections it is sent.
#[derive(Clone, Copy)]
struct Question<'a> {
    client: &'a Client,
    query: &'a str,
    /// Series that the server shall send at most, where it knows how to.
    most_series: Option<u32>,
    /// Largest answer that is read, in bytes, where that is less than of any.
    largest: usize,
}

impl<'a> Question<'a> {
    /// Of whatever size the server's answers may have.
    const fn of(client: &'a Client, query: &'a str) -> Self {
        Self { client, query, most_series: None, largest: usize::MAX }
    }
}

/// One tick's dealings with a server.
struct Session<'a> {
    server: &'a PrometheusServer,
    clients: Clients,
    authorization: Option<HeaderValue>,
    now_seconds: f64,
    deadline: Instant,
}

impl Session<'_> {
    /// Takes in the answer to one of Sluice's own queries, series by series.
    async fn take<T: Take>(
        &self,
        client: &Client,
        query: &str,
        asked: ReadSubject,
        take: T,
    ) -> Result<ArrivedResponse<T::Taken>, ReadError> {
        let mut intake = Intake::new(LARGEST_KEPT, take);
        let question = Question::of(client, query);
        self.ask(question, &asked, &mut intake).await?;
        let taken = intake.finish().await;
        let whole = taken.and_then(|taken| is_whole(&taken.rest, "vector").map(|()| taken));
        whole.map_err(|failure| self.failed(asked, failure))
    }

    /// Sends one query and passes on the answer piece by piece, within the deadline and the bound on its size.
    async fn ask(
        &self,
        question: Question<'_>,
        asked: &ReadSubject,
        receive: &mut impl Receive,
    ) -> Result<(), ReadError> {
        let timeout = self.server.configuration.timeout();
        let own = Instant::now() + timeout;
        match timeout_at(own.min(self.deadline), self.exchange(question, receive)).await {
            Ok(answer) => answer.map_err(|failure| self.failed(asked.clone(), failure)),
            // the time of all may have ended before that of this one
            Err(_) if self.deadline < own => {
                let seconds = (timeout * QUERY_TIMES_FOR_ALL).as_secs_f64();
                Err(self.failed(asked.clone(), ReadFailure::Deadline { seconds }))
            }
            Err(_) => Err(self.failed(asked.clone(), ReadFailure::Deadline { seconds: timeout.as_secs_f64() })),
        }
    }

    fn failed(&self, asked: ReadSubject, failure: ReadFailure) -> ReadError {
        ReadError { server: self.server.name.clone(), asked, failure: Box::new(failure) }
    }

    async fn send(&self, question: Question<'_>) -> Result<reqwest::Response, prometheus_http_query::Error> {
        let Question { client, query, most_series, .. } = question;
        let timeout = self.server.configuration.timeout().as_millis();
        let mut request = client
            .query(query)
            .query("time", format!("{:.3}", self.now_seconds))
            .timeout(i64::try_from(timeout).unwrap_or(i64::MAX))
            // VictoriaMetrics would answer as of half a minute ago, and say that it is now; others do not know it
            .query("nocache", "1");
        if let Some(most) = most_series {
            request = request.query("limit", most.to_string());
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        request.get_raw().await
    }

    async fn exchange(&self, question: Question<'_>, receive: &mut impl Receive) -> Result<(), ReadFailure> {
        let limit = self.server.configuration.max_response_bytes.min(question.largest);
        let failed = |source| ReadFailure::Connection { source };
        let mut attempts = 0;
        let mut response = loop {
            attempts += 1;
            match self.send(question).await {
                Ok(response) => break response,
                // a connection that was kept from the last tick may have been closed meanwhile, as may all that are kept; a
                // query can be asked again
                Err(prometheus_http_query::Error::Client(error))
                    if attempts <= MOST_KEPT && !error.inner().is_some_and(reqwest::Error::is_connect) => {}
                Err(error) => return Err(failed(error.into())),
            }
        };
        let status = response.status();
        let announced = usize::try_from(response.content_length().unwrap_or(0)).unwrap_or(usize::MAX);
        if announced > limit {
            return Err(ReadFailure::TooLarge { limit });
        }
        let mut read = 0;
        let mut refusal = Vec::new();
        loop {
            let piece = match response.chunk().await {
                Ok(Some(piece)) => piece,
                Ok(None) => break,
                // who refuses may hang up without waiting for its words to be read: the status says enough
                Err(_) if !status.is_success() => break,
                Err(error) => return Err(failed(error.into())),
            };
            read += piece.len();
            if read > limit {
                return Err(ReadFailure::TooLarge { limit });
            }
            if status.is_success() {
                receive.receive(piece).await?;
            } else if refusal.len() + piece.len() > LARGEST_KEPT {
                // no words of a Prometheus API: the status says enough
                break;
            } else {
                refusal.extend_from_slice(&piece);
            }
        }
        if status.is_success() {
            return Ok(());
        }
        let status = status.as_u16();
        // what is not Prometheus' JSON may be anything, a login page among others: it is not shown
        Err(match serde_json::from_slice::<QueryResponse>(&refusal) {
            Ok(answer) => ReadFailure::Status { status, message: message(&answer) },
            Err(_) if matches!(status, 400 | 422) => ReadFailure::NotPrometheus { status },
            Err(_) => ReadFailure::Status { status, message: String::new() },
        })
    }

    async fn read_override(&self, wanted: &OverrideQuery) -> Result<f64, ReadError> {
        let OverrideQuery { pool, signal, query } = wanted;
        let asked = ReadSubject::Override { pool: pool.clone(), signal: *signal, query: query.clone() };
        let question = Question { most_series: Some(MOST_SERIES), ..Question::of(&self.clients.other, query) };
        let mut body = Body { bytes: Vec::new(), limit: LARGEST_NUMBER };
        self.ask(question, &asked, &mut body).await?;
        one_number(&body.bytes).map_err(|failure| self.failed(asked, failure))
    }

    async fn measure(&self, pool: &PoolKey, metric: &str, query: &str) -> Result<Measurement, ReadError> {
        let (pool, name, text) = (pool.clone(), metric.to_owned(), query.to_owned());
        let asked = ReadSubject::Measurement { pool, metric: name.as_str().into(), query: text.into() };
        let question = Question { most_series: Some(MOST_SERIES), ..Question::of(&self.clients.other, query) };
        let mut body = Body { bytes: Vec::new(), limit: LARGEST_NUMBER };
        self.ask(question, &asked, &mut body).await?;
        let series = measured(&body.bytes).map_err(|failure| self.failed(asked, failure))?;
        Ok(Measurement { name, series })
    }
}

/// Takes in the quantile of each pool.
struct Quantiles {
    roster: Arc<Roster>,
    by_pool: HashMap<PoolKey, f64>,
}

impl Take for Quantiles {
    type Taken = HashMap<PoolKey, f64>;

    fn take(&mut self, series: &Series) {
        let Series { metric: Labels { pool_namespace, pool, namespace, .. }, value: Some(value), .. } = series else {
            return;
        };
        let key = PoolKey::new(&**pool_namespace, &**pool);
        if (namespace.is_empty() || namespace == pool_namespace)
            && self.roster.has_pool(&key)
            && let Ok(seconds) = value.value()
        {
            self.by_pool.insert(key, seconds);
        }
    }

    fn taken(self) -> Self::Taken {
        self.by_pool
    }
}

/// The result in an answer, and what it says about being partial.
fn data(body: &[u8]) -> Result<(ResponseData<'_>, Option<ReadFailure>), ReadFailure> {
    let answer: QueryResponse = serde_json::from_slice(body).map_err(|source| ReadFailure::Malformed { source })?;
    if answer.status == ResponseStatus::Error {
        return Err(ReadFailure::Status { status: 200, message: message(&answer) });
    }
    let partial = answer.warning().map(|warning| ReadFailure::Warning { warning: shorten(warning) });
    match (answer.data, partial) {
        (Some(data), partial) => Ok((data, partial)),
        (None, Some(partial)) => Err(partial),
        (None, None) => Err(ReadFailure::NoResult),
    }
}

/// Whether the answer to one of Sluice's own queries, whose series have been taken out, is one of this type.
fn is_whole(rest: &[u8], needed: &'static str) -> Result<(), ReadFailure> {
    match data(rest)? {
        (_, Some(partial)) => Err(partial),
        (data, None) if data.type_name() == needed => Ok(()),
        (other, None) => Err(ReadFailure::ResultType { found: other.type_name(), needed }),
    }
}

/// The number in an answer: a scalar, or the one element of a vector.
fn one_number(body: &[u8]) -> Result<f64, ReadFailure> {
    let (data, partial) = data(body)?;
    // a server that left out what is beyond the limit says so in a warning
    if matches!(&data, ResponseData::Vector(series) if series.len() > 1) {
        return Err(ReadFailure::SeveralSeries);
    }
    if let Some(partial) = partial {
        return Err(partial);
    }
    let (found, point) = match data {
        ResponseData::Scalar(point) => ("scalar", Some(point)),
        ResponseData::Vector(series) => ("histogram", series.first().ok_or(ReadFailure::NoSeries)?.value),
        other => (other.type_name(), None),
    };
    let point = point.ok_or(ReadFailure::ResultType { found, needed: "scalar, or vector of one element" })?;
    point.value().map_err(|value| ReadFailure::Value { value: shorten(value) })
}

/// The series in an answer, a scalar as one.
fn measured(body: &[u8]) -> Result<Vec<MeasuredSeries>, ReadFailure> {
    let series = match data(body)? {
        (ResponseData::Vector(series), partial) if series.len() > 1 || partial.is_none() => series,
        (ResponseData::Scalar(point), None) => {
            return Ok(vec![MeasuredSeries { labels: String::new(), value: point.any_value() }]);
        }
        (_, Some(partial)) => return Err(partial),
        (other, None) => {
            let needed = "scalar, or vector of one element";
            return Err(ReadFailure::ResultType { found: other.type_name(), needed });
        }
    };
    let one = |series: &Series| MeasuredSeries {
        labels: shorten(&format!("{} {}", series.metric.pod, series.metric.instance)).trim().to_owned(),
        value: series.value.and_then(|point| point.any_value()),
    };
    Ok(series.iter().map(one).collect())
}

/// What the server said about a failure.
fn message(answer: &QueryResponse) -> String {
    let texts = [answer.error_type.as_ref(), answer.error.as_ref()];
    shorten(&texts.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(": "))
}

fn shorten(text: &str) -> String {
    text.chars().take(KEPT_CHARACTERS).collect()
}
