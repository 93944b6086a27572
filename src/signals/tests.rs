//! What no real Prometheus says on demand: broken, slow, huge and hostile answers, from a scripted server on loopback.
//! The real one stands in `tests/parts`.

use std::{
    fs,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{RawQuery, State},
    http::{HeaderMap, Response},
};
use tempfile::TempDir;

use super::{configuration::parse, *};
use crate::api;

/// What the server answers to a query, by the decoded query.
type Script = Arc<dyn Fn(&str) -> Response<Body> + Send + Sync>;

#[derive(Clone)]
struct Scripted {
    script: Script,
    seen: Arc<Mutex<Vec<(String, HeaderMap)>>>,
}

async fn answer(State(scripted): State<Scripted>, RawQuery(query): RawQuery, headers: HeaderMap) -> Response<Body> {
    let url = format!("http://x/?{}", query.unwrap_or_default());
    let url = reqwest::Url::parse(&url).unwrap();
    let query = url.query_pairs().find(|(name, _)| name == "query").unwrap().1.into_owned();
    scripted.seen.lock().unwrap().push((query.clone(), headers));
    (scripted.script)(&query)
}

/// Starts a server; the runtime of the test ends it.
async fn serve(script: impl Fn(&str) -> Response<Body> + Send + Sync + 'static) -> (Scripted, SocketAddr) {
    let scripted = Scripted { script: Arc::new(script), seen: Arc::default() };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/api/v1/query", axum::routing::get(answer)).with_state(scripted.clone());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (scripted, address)
}

fn server(address: SocketAddr) -> PrometheusServer {
    let configuration =
        ServerConfiguration { timeout_seconds: 1, ..ServerConfiguration::new(format!("http://{address}/")) };
    PrometheusServer::new("default", configuration)
}

/// Pods of the pool `shop`.
fn roster(pods: &[&str]) -> Arc<Roster> {
    Arc::new(pods.iter().map(|pod| (PoolKey::new("shop", "shop"), (*pod).to_owned())).collect())
}

fn json(status: u16, body: impl Into<Body>) -> Response<Body> {
    Response::builder().status(status).header("content-type", "application/json").body(body.into()).unwrap()
}

/// An answer with every figure of these pods, each of the same value.
fn pods(pods: &[(&str, &str)]) -> String {
    let element = |figure: &str, more: &str, pod: &str, value: &str| {
        format!(
            r#"{{"metric":{{"__name__":"{figure}","pool_namespace":"shop","pool":"shop","namespace":"shop","pod":"{pod}","job":"j","instance":"{pod}:9130"{more}}},"value":[1000.5,"{value}"]}}"#
        )
    };
    let of_pod = |(pod, value): &(&str, &str)| {
        super::query::Figure::ALL.map(|figure| {
            let more = match figure {
                super::query::Figure::Active => r#","state":"active""#,
                super::query::Figure::Waiting => r#","state":"waiting""#,
                super::query::Figure::DemandPeak => r#","window":"30s""#,
                _ => "",
            };
            element(figure.metric(), more, pod, value)
        })
    };
    pods.iter().flat_map(of_pod).collect::<Vec<_>>().join(",")
}

fn vector(series: &[(&str, &str)]) -> Response<Body> {
    json(200, format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{}]}}}}"#, pods(series)))
}

/// One message per outcome, so that a test shows what a user reads.
async fn read_error(script: impl Fn(&str) -> Response<Body> + Send + Sync + 'static) -> String {
    let (_, address) = serve(script).await;
    let error = server(address).read(1000.0, &roster(&["a"])).await.unwrap_err().to_string();
    assert!(!error.contains("127.0.0.1"), "the address is in the configuration: {error}");
    error
}

fn wanted(query: &str) -> OverrideQuery {
    OverrideQuery { pool: PoolKey::new("shop", "shop"), signal: api::Signal::WaitingClients, query: query.to_owned() }
}

#[tokio::test]
async fn a_reading_takes_the_same_number_of_queries_for_any_number_of_pods() {
    for pods in [1, 50] {
        let (scripted, address) = serve(move |_| {
            let names: Vec<String> = (0..pods).map(|pod| format!("p{pod}")).collect();
            vector(&names.iter().map(|name| (name.as_str(), "7")).collect::<Vec<_>>())
        })
        .await;
        let names: Vec<String> = (0..pods).map(|pod| format!("p{pod}")).collect();
        let roster = roster(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let readings = server(address).read(1000.0, &roster).await.unwrap();
        assert_eq!(readings.pods_of(&PoolKey::new("shop", "shop")).len(), pods);
        assert_eq!(scripted.seen.lock().unwrap().len(), QUERIES_PER_READ);
    }
}

#[test]
fn the_second_query_of_a_reading_is_for_the_pools_that_the_first_is_not_for() {
    let [first, second] = query::figures();
    assert_eq!(first.matches("pool=~").count(), 1, "{first}");
    assert_eq!(first.replace("pool=~", "pool!~"), second);
}

#[tokio::test]
async fn a_query_of_a_reading_shares_its_connection_with_no_other_so_that_one_server_answers_it() {
    type Peers = Arc<Mutex<std::collections::BTreeMap<String, std::collections::BTreeSet<SocketAddr>>>>;
    async fn note(
        axum::extract::ConnectInfo(peer): axum::extract::ConnectInfo<SocketAddr>,
        State(peers): State<Peers>,
        RawQuery(query): RawQuery,
    ) -> Response<Body> {
        let query = query.unwrap().split('&').find(|part| part.starts_with("query=")).unwrap().to_owned();
        peers.lock().unwrap().entry(query).or_default().insert(peer);
        vector(&[])
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let peers = Peers::default();
    let router = Router::new().fallback(note).with_state(peers.clone());
    let router = router.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let server = server(address);
    for _ in 0..5 {
        let overrides = ["a", "b"].map(wanted);
        let pods = roster(&["a"]);
        let (readings, _) = tokio::join!(server.read(1000.0, &pods), server.read_overrides(1000.0, &overrides));
        readings.unwrap();
        server.wait_p95_seconds(1000.0, &roster(&["a"])).await.unwrap();
    }
    let peers = peers.lock().unwrap();
    let of_readings: Vec<_> = peers.iter().filter(|(query, _)| query.contains("__name__")).collect();
    assert_eq!(of_readings.len(), QUERIES_PER_READ, "{peers:?}");
    for (query, own) in of_readings {
        let others = peers.iter().filter(|(other, _)| *other != query);
        assert!(others.flat_map(|(_, peers)| peers).all(|peer| !own.contains(peer)), "{query}: {peers:?}");
    }
}

#[tokio::test]
async fn no_series_at_all_is_an_empty_reading_and_not_a_zero() {
    let (_, address) = serve(|_| vector(&[])).await;
    let readings = server(address).read(1000.0, &roster(&["a"])).await.unwrap();
    assert!(readings.pools.is_empty() && readings.problems.is_empty());
}

#[tokio::test]
async fn answers_that_are_no_success_say_what_to_do() {
    let bad_data = r#"{"status":"error","errorType":"bad_data","error":"parse error: unexpected end"}"#;
    let messages = [
        read_error(move |_| json(400, bad_data)).await,
        read_error(|_| json(400, "unsupported path requested")).await,
        read_error(|_| json(401, "Unauthorized")).await,
        read_error(|_| json(403, "{}")).await,
        read_error(|_| json(404, "404 page not found")).await,
        read_error(|_| json(429, "")).await,
        read_error(|_| json(503, "<html>secret internals</html>")).await,
        read_error(move |_| json(200, bad_data)).await,
    ];
    insta::assert_snapshot!(messages.join("\n"), @r#"
    Prometheus "default", all signals: HTTP 400 Bad Request: bad_data: parse error: unexpected end; correct the query
    Prometheus "default", all signals: HTTP 400 Bad Request, not in the words of a Prometheus API; check scheme and path of its url
    Prometheus "default", all signals: HTTP 401 Unauthorized; check bearerTokenFile or basicAuth
    Prometheus "default", all signals: HTTP 403 Forbidden; the account may not query
    Prometheus "default", all signals: HTTP 404 Not Found; check the path of its url
    Prometheus "default", all signals: HTTP 429 Too Many Requests; it is asked again at the next tick
    Prometheus "default", all signals: HTTP 503 Service Unavailable; it is asked again at the next tick
    Prometheus "default", all signals: HTTP 200 OK: bad_data: parse error: unexpected end
    "#);
}

#[tokio::test]
async fn answers_that_cannot_be_trusted_are_not_used() {
    let messages = [
        read_error(|_| json(200, "<html>please log in</html>")).await,
        read_error(|_| json(200, r#"{"status":"success","data":{"resultType":"vector","result":["#)).await,
        read_error(|_| json(200, r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#)).await,
        read_error(|_| json(200, r#"{"status":"success","data":{"resultType":"scalar","result":[1,"2"]}}"#)).await,
        read_error(|_| json(200, r#"{"status":"success","data":{"resultType":"string","result":[1,"x"]}}"#)).await,
        read_error(|_| json(200, r#"{"status":"success"}"#)).await,
        read_error(|_| {
            json(
                200,
                r#"{"status":"success","data":{"resultType":"vector","result":[]},"warnings":["No StoreAPIs matched for this query"]}"#,
            )
        })
        .await,
        read_error(|_| {
            let some = pods(&[("a", "7")]);
            let body = format!(r#"{{"status":"success","isPartial":true,"data":{{"resultType":"vector","result":[{some}]}}}}"#);
            json(200, body)
        })
        .await,
    ];
    insta::assert_snapshot!(messages.join("\n"), @r#"
    Prometheus "default", all signals: the answer is not that of a Prometheus API (expected value at line 1 column 1); check its url
    Prometheus "default", all signals: the answer is not that of a Prometheus API (EOF while parsing a list at line 1 column 60); check its url
    Prometheus "default", all signals: the result is a matrix, needed is a vector
    Prometheus "default", all signals: the result is a scalar, needed is a vector
    Prometheus "default", all signals: the result is a string, needed is a vector
    Prometheus "default", all signals: the answer has no result; check its url
    Prometheus "default", all signals: the answer may be incomplete and is not used: No StoreAPIs matched for this query
    Prometheus "default", all signals: the answer may be incomplete and is not used: isPartial, a part of the storage did not answer
    "#);
}

#[tokio::test]
async fn a_note_about_the_query_is_no_sign_of_a_partial_answer() {
    let answer = |notes: &str| {
        json(
            200,
            format!(
                r#"{{"status":"success","data":{{"resultType":"vector","result":[{}]}},{notes}}}"#,
                pods(&[("a", "7")])
            ),
        )
    };
    for notes in [
        r#""warnings":["PromQL info: metric might not be a counter, name does not end in _total: \"x\" (1:5)"]"#,
        r#""infos":["PromQL info: metric might not be a counter"]"#,
        r#""isPartial":false"#,
        r#""stats":{"timings":{"evalTotalTime":0.1},"samples":[{"a":1}]}"#,
    ] {
        let (_, address) = serve(move |_| answer(notes)).await;
        let readings = server(address).read(1000.0, &roster(&["a"])).await.unwrap();
        assert_eq!(readings.pods_of(&PoolKey::new("shop", "shop")).len(), 1, "{notes}");
    }
    let both = r#""warnings":["PromQL info: a note","store 10.0.0.1:10901: deadline exceeded"]"#;
    let error = read_error(move |_| answer(both)).await;
    assert!(error.ends_with("may be incomplete and is not used: store 10.0.0.1:10901: deadline exceeded"), "{error}");
}

#[tokio::test]
async fn an_answer_that_does_not_end_in_time_is_given_up() {
    // never an answer, and one that drips for ever
    let silent =
        read_error(|_| json(200, Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>())));
    let dripping = read_error(|_| {
        let drip = futures::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Some((Ok::<_, std::io::Error>(b" ".to_vec()), ()))
        });
        json(200, Body::from_stream(drip))
    });
    let (silent, dripping) = tokio::join!(silent, dripping);
    assert!(silent.ends_with("no answer in 1.0 s; raise timeoutSeconds, or look at its load"), "{silent}");
    assert_eq!(
        dripping,
        "Prometheus \"default\", all signals: no answer in 1.0 s; raise timeoutSeconds, or look at its load"
    );
}

#[tokio::test]
async fn an_answer_beyond_the_bound_is_not_read() {
    for announced in [true, false] {
        let (_, address) = serve(move |_| {
            if announced {
                return json(200, vec![b' '; 100_000]);
            }
            let endless = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 1000]));
            json(200, Body::from_stream(endless))
        })
        .await;
        let configuration =
            ServerConfiguration { max_response_bytes: 50_000, ..ServerConfiguration::new(format!("http://{address}")) };
        let error = PrometheusServer::new("default", configuration).read(1000.0, &roster(&["a"])).await.unwrap_err();
        assert!(matches!(*error.failure, ReadFailure::TooLarge { limit: 50_000 }), "{error}");
    }
}

/// An answer without end, in pieces that each are what a series could be.
fn endless(status: u16, begins: &'static str) -> Response<Body> {
    let series = (r#"{"metric":{"a":"b"},"value":[1,"4"]},"#).repeat(100);
    let pieces = std::iter::once(begins.to_owned()).chain(std::iter::repeat(series));
    json(status, Body::from_stream(futures::stream::iter(pieces.map(Ok::<_, std::io::Error>))))
}

#[tokio::test]
async fn the_answer_to_a_users_own_query_is_given_up_once_it_is_more_than_a_number() {
    const VECTOR: &str = r#"{"status":"success","data":{"resultType":"vector","result":["#;
    let (_, address) = serve(|_| endless(200, VECTOR)).await;
    let results = server(address).read_overrides(1000.0, &[wanted("{__name__=~\".+\"}")]).await;
    assert_eq!(
        results[0].as_ref().unwrap_err().to_string(),
        "Prometheus \"default\", pool shop/shop, spec.scaling.metrics.overrides[WaitingClients].query \
         \"{__name__=~\\\".+\\\"}\": the answer has more than 4096 bytes, needed is one number; aggregate it, for example with \
         sum(...)"
    );
}

#[tokio::test]
async fn of_an_answer_no_more_is_kept_than_its_series_however_long_it_is() {
    let page = read_error(|_| endless(200, "<html>")).await;
    let warnings = read_error(|_| endless(200, r#"{"status":"success","warnings":["#)).await;
    let label = read_error(|_| endless(200, r#"{"data":{"result":[{"metric":{"a":["#)).await;
    for error in [page, warnings, label] {
        assert!(error.ends_with("more than 65536 bytes that are not whole series; check its url"), "{error}");
    }
    let refusal = read_error(|_| endless(503, r#"{"status":"error","error":""#)).await;
    assert!(refusal.ends_with("HTTP 503 Service Unavailable; it is asked again at the next tick"), "{refusal}");
}

#[tokio::test]
async fn a_redirect_is_not_followed_because_the_token_would_go_along() {
    let (elsewhere, other) = serve(|_| vector(&[])).await;
    let error = read_error(move |_| {
        Response::builder()
            .status(302)
            .header("location", format!("http://{other}/api/v1/query?query=x"))
            .body(Body::empty())
            .unwrap()
    })
    .await;
    assert!(error.ends_with("HTTP 302 Found; redirects are not followed: use the address that it names"), "{error}");
    assert!(elsewhere.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named_with_the_cause() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = server(address).read(1000.0, &roster(&["a"])).await.unwrap_err();
    let told = crate::causes::with_causes(&error);
    assert_eq!(told, error.to_string(), "nothing is told twice");
    assert!(
        told.contains("Connection refused") && told.contains("NetworkPolicies") && !told.contains("query="),
        "{told}"
    );
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_meanwhile_costs_no_reading() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    // one answer per connection, which then takes the next request and is closed without a word
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = connection.read(&mut request).await;
                let body = r#"{"status":"success","data":{"resultType":"vector","result":[]}}"#;
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                connection.write_all(answer.as_bytes()).await.unwrap();
                let _ = connection.read(&mut request).await;
            });
        }
    });
    server(address).read(1000.0, &roster(&["a"])).await.unwrap();
}

#[tokio::test]
async fn an_override_is_one_finite_number_or_an_error_that_names_it() {
    let (_, address) = serve(|query| {
        let result = match query {
            "scalar" => r#""scalar","result":[1,"3.5"]"#,
            "one" => r#""vector","result":[{"metric":{},"value":[1,"4"]}]"#,
            "two" => r#""vector","result":[{"metric":{"a":"1"},"value":[1,"4"]},{"metric":{},"value":[1,"4"]}]"#,
            // as Prometheus answers where the limit leaves out a third
            "three" => {
                let result = r#"[{"metric":{"a":"1"},"value":[1,"4"]},{"metric":{},"value":[1,"4"]}]"#;
                let warning = "results truncated due to limit";
                return json(200, format!(r#"{{"status":"success","data":{{"resultType":"vector","result":{result}}},"warnings":["{warning}"]}}"#));
            }
            "none" => r#""vector","result":[]"#,
            "nan" => r#""vector","result":[{"metric":{},"value":[1,"NaN"]}]"#,
            "infinite" => r#""scalar","result":[1,"+Inf"]"#,
            "negative" => r#""scalar","result":[1,"-1"]"#,
            "histogram" => r#""vector","result":[{"metric":{},"histogram":[1,{"count":"1","sum":"2"}]}]"#,
            "range" => r#""matrix","result":[{"metric":{},"values":[[1,"4"]]}]"#,
            _ => return json(400, r#"{"status":"error","errorType":"bad_data","error":"1:3: parse error"}"#),
        };
        json(200, format!(r#"{{"status":"success","data":{{"resultType":{result}}}}}"#))
    })
    .await;
    let long = format!("sum({})", "x".repeat(300));
    let queries =
        ["scalar", "one", "two", "three", "none", "nan", "infinite", "negative", "histogram", "range", long.as_str()]
            .map(wanted);
    let results = server(address).read_overrides(1000.0, &queries).await;
    let shown: Vec<String> = results
        .iter()
        .map(|result| result.as_ref().map_or_else(ToString::to_string, |value| format!("{value}")))
        .collect();
    insta::assert_snapshot!(shown.join("\n"), @r#"
    3.5
    4
    Prometheus "default", pool shop/shop, spec.scaling.metrics.overrides[WaitingClients].query "two": it yields more than one series, needed is one number; aggregate them, for example with sum(...)
    Prometheus "default", pool shop/shop, spec.scaling.metrics.overrides[WaitingClients].query "three": it yields more than one series, needed is one number; aggregate them, for example with sum(...)
    Prometheus "default", pool shop/shop, spec.scaling.metrics.overrides[WaitingClients].query "none": it yields no series, so nothing is known; let the application export a 0 where it means zero
    Prometheus "default", pool shop/shop, spec.scaling.metrics.overrides[WaitingClients].query "nan": it yields NaN; needed is a finite number of at least 0
    Prometheus "default", pool shop/shop, spec.scaling.metrics.overrides[WaitingClients].query "infinite": it yields +Inf; needed is a finite number of at least 0
    Prometheus "default", pool shop/shop, spec.scaling.metrics.overrides[WaitingClients].query "negative": it yields -1; needed is a finite number of at least 0
    Prometheus "default", pool shop/shop, spec.scaling.metrics.overrides[WaitingClients].query "histogram": the result is a histogram, needed is a scalar, or vector of one element
    Prometheus "default", pool shop/shop, spec.scaling.metrics.overrides[WaitingClients].query "range": the result is a matrix, needed is a scalar, or vector of one element
    Prometheus "default", pool shop/shop, spec.scaling.metrics.overrides[WaitingClients].query "sum(xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"...: HTTP 400 Bad Request: bad_data: 1:3: parse error; correct the query
    "#);
}

#[tokio::test]
async fn what_a_query_of_an_analysis_yields_is_taken_as_it_is_so_that_one_finite_number_alone_is_a_measurement() {
    const VECTOR: &str = r#"{"status":"success","data":{"resultType":"vector","result":["#;
    let (scripted, address) = serve(|query| {
        let partial = r#","warnings":["results may be partial: a store did not answer"]"#;
        let truncated = r#","warnings":["results truncated due to limit"]"#;
        let two = r#""vector","result":[{"metric":{"pod":"shop-a","instance":"10.0.0.1:9"},"value":[1,"4"]},{"metric":{},"value":[1,"5"]}]"#;
        let (result, beside) = match query {
            "scalar" => (r#""scalar","result":[1,"3.5"]"#, ""),
            "one" => (r#""vector","result":[{"metric":{"pod":"shop-a"},"value":[1,"-4"]}]"#, ""),
            "two" => (two, ""),
            "three" => (two, truncated),
            "none" => (r#""vector","result":[]"#, ""),
            "nan" => (r#""vector","result":[{"metric":{},"value":[1,"NaN"]}]"#, ""),
            "infinite" => (r#""scalar","result":[1,"+Inf"]"#, ""),
            "histogram" => (r#""vector","result":[{"metric":{},"histogram":[1,{"count":"1","sum":"2"}]}]"#, ""),
            "partial" => (r#""vector","result":[{"metric":{},"value":[1,"4"]}]"#, partial),
            "range" => (r#""matrix","result":[{"metric":{},"values":[[1,"4"]]}]"#, ""),
            "large" => return endless(200, VECTOR),
            _ => return json(400, r#"{"status":"error","errorType":"bad_data","error":"1:3: parse error"}"#),
        };
        json(200, format!(r#"{{"status":"success","data":{{"resultType":{result}}}{beside}}}"#))
    })
    .await;
    let server = server(address);
    let pool = PoolKey::new("shop", "shop");
    let mut shown = Vec::new();
    for query in
        ["scalar", "one", "two", "three", "none", "nan", "infinite", "histogram", "partial", "range", "large", "wrong"]
    {
        let answer = server.measure(1000.0, &pool, &[("mine".to_owned(), query.to_owned())]).await;
        shown.push(match answer {
            Ok(measured) => {
                let [measurement] = measured.as_slice() else { panic!("{measured:?}") };
                let series = measurement.series.iter().map(|series| format!("{:?} {:?}", series.labels, series.value));
                format!("{query}: {} [{}]", measurement.name, series.collect::<Vec<_>>().join(", "))
            }
            Err(error) => format!("{query}: {error}"),
        });
    }
    insta::assert_snapshot!(shown.join("\n"));
    assert_eq!(scripted.seen.lock().unwrap().len(), 12, "each is asked once");
}

#[tokio::test]
async fn the_own_queries_of_a_pool_end_together_in_time_however_slow_each_is() {
    let (scripted, address) =
        serve(|_| json(200, Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>()))).await;
    let begun = std::time::Instant::now();
    let results = server(address).read_overrides(1000.0, &vec![wanted("slow"); 100]).await;
    assert_eq!(results.len(), 100);
    assert!(results.iter().all(|result| matches!(*result.as_ref().unwrap_err().failure, ReadFailure::Deadline { .. })));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(scripted.seen.lock().unwrap().len() <= 4, "one at a time: {}", scripted.seen.lock().unwrap().len());
}

#[tokio::test]
async fn the_wait_of_a_pool_is_what_pods_of_its_namespace_say_and_of_others_nothing_is_kept() {
    let (_, address) = serve(|_| {
        let forged: Vec<String> = (0..10_000)
            .map(|number| format!(r#"{{"metric":{{"pool_namespace":"shop","pool":"p{number}","namespace":"evil"}},"value":[1,"9"]}}"#))
            .collect();
        let of = |namespace: &str, value: &str| {
            format!(r#"{{"metric":{{"pool_namespace":"shop","pool":"shop","namespace":"{namespace}"}},"value":[1,"{value}"]}}"#)
        };
        let series = [forged.join(","), of("evil", "8"), of("shop", "0.25"), of("evil", "7")].join(",");
        json(200, format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{series}]}}}}"#))
    })
    .await;
    let quantiles = server(address).wait_p95_seconds(1000.0, &roster(&["a"])).await.unwrap();
    assert_eq!(quantiles, std::collections::HashMap::from([(PoolKey::new("shop", "shop"), 0.25)]));
}

#[tokio::test]
async fn the_queries_of_an_analysis_end_together_in_time_however_slow_each_is() {
    let (scripted, address) = serve(|_| {
        let number = r#"{"status":"success","data":{"resultType":"scalar","result":[1,"2"]}}"#;
        let late = futures::stream::once(async move {
            tokio::time::sleep(Duration::from_millis(700)).await;
            Ok::<_, std::io::Error>(number)
        });
        json(200, Body::from_stream(late))
    })
    .await;
    let queries = vec![("own".to_owned(), "slow".to_owned()); 8];
    let error = server(address).measure(1000.0, &PoolKey::new("shop", "shop"), &queries).await.unwrap_err();
    assert!(matches!(*error.failure, ReadFailure::Deadline { seconds: 2.0 }), "{error}");
    assert!(scripted.seen.lock().unwrap().len() <= 3, "those that follow are not asked");
}

/// A series of what a pod of the pool `shop` did with revision 7, with these labels beside.
fn of_revision(pod: &str, more: &str, values: &str) -> String {
    format!(
        r#"{{"metric":{{"__name__":"sluice_revision_errors_total","pool_namespace":"shop","pool":"shop","pod":"{pod}","revision":"7","slot":"b"{more}}},"values":[{values}]}}"#
    )
}

const MATRIX: &str = r#"{"status":"success","data":{"resultType":"matrix","result":["#;

/// What is read of the pods `a`, `b` and `forger`.
async fn revisions_of(address: SocketAddr) -> Result<RevisionReadings, ReadError> {
    let pool = PoolKey::new("shop", "shop");
    let asked = RolloutPods { pool: &pool, pods: &["a", "b", "forger"], revisions: [7, 6] };
    let configuration =
        ServerConfiguration { timeout_seconds: 30, ..ServerConfiguration::new(format!("http://{address}/")) };
    PrometheusServer::new("default", configuration).read_revisions(1000.0, 600, asked).await
}

#[tokio::test]
async fn of_a_rollout_a_pod_that_exports_thousands_of_series_or_points_is_left_out_by_name_and_no_other() {
    let two = r#"[1,"4"],[2,"5"]"#;
    let many: Vec<String> =
        (0..5000).map(|number| of_revision("forger", &format!(r#","x":"{number}""#), two)).collect();
    // more than one series that is kept has room for, and it comes in many pieces
    let points: Vec<String> = (0..50_000).map(|at| format!(r#"[{at},"4"]"#)).collect();
    let long = of_revision("forger", "", &points.join(","));
    let foreign = of_revision("a", r#","namespace":"evil""#, &points.join(","));
    for forged in [many.join(","), long] {
        let series = [of_revision("a", "", two), foreign.clone(), forged, of_revision("b", "", two)].join(",");
        let (_, address) = serve(move |_| json(200, format!("{MATRIX}{series}]}}}}"))).await;
        let readings = revisions_of(address).await.unwrap();
        let pods: Vec<_> = readings.series.iter().map(|series| (series.pod.as_str(), series.scrapes.len())).collect();
        assert_eq!(pods, [("a", 2), ("b", 2)]);
        let refused = readings.refused.unwrap();
        assert_eq!((refused.pod.as_str(), refused.count), ("forger", 1), "{refused}");
    }
}

#[tokio::test]
async fn an_answer_about_a_rollout_without_end_is_given_up_and_says_which_pod_is_to_blame() {
    let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = sent.clone();
    let (_, address) = serve(move |_| {
        let counter = counter.clone();
        let series = (0..100).map(|number| of_revision("forger", &format!(r#","x":"{number}""#), r#"[1,"4"]"#) + ",");
        let series: String = series.collect();
        let pieces = std::iter::once(MATRIX.to_owned()).chain(std::iter::repeat(series)).map(move |piece| {
            counter.fetch_add(piece.len(), std::sync::atomic::Ordering::Relaxed);
            Ok::<_, std::io::Error>(piece)
        });
        json(200, Body::from_stream(futures::stream::iter(pieces)))
    })
    .await;
    let error = revisions_of(address).await.unwrap_err();
    assert_eq!(error.failure.fault(), Some(Fault::Query));
    assert_eq!(
        error.to_string(),
        "Prometheus \"default\", pool shop/shop, the pods of its rollout: in 600 s its pods have more than 16 MiB, or 65536 \
         scrapes, of sluice_revision_*; pod \"forger\", pool shop/shop, has more than 8 sets of sluice_revision_errors_total, or \
         labels of more than 4096 bytes; the pod is left out. Which of its labels change, or what else is on its port? Limit them \
         in the scrape configuration (examples/prometheus)"
    );
    assert!(sent.load(std::sync::atomic::Ordering::Relaxed) < 48 << 20, "{sent:?}: the connection holds some");
}

fn authorization(scripted: &Scripted) -> String {
    let seen = scripted.seen.lock().unwrap();
    seen.last()
        .and_then(|(_, headers)| headers.get("authorization"))
        .map_or_else(String::new, |value| value.to_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_rotated_token_is_used_at_the_next_tick() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("token");
    let (scripted, address) = serve(|_| vector(&[])).await;
    let configuration = ServerConfiguration {
        bearer_token_file: Some(file.clone()),
        ..ServerConfiguration::new(format!("http://{address}"))
    };
    let server = PrometheusServer::new("default", configuration);
    for token in ["first", "second"] {
        fs::write(&file, format!("{token}\n")).unwrap();
        server.read(1000.0, &roster(&["a"])).await.unwrap();
        assert_eq!(authorization(&scripted), format!("Bearer {token}"));
    }
    for (broken, why) in [("", "is not valid"), ("se\u{1}cret", "is not valid"), ("se\ncret", "is not valid")] {
        fs::write(&file, broken).unwrap();
        let error = server.read(1000.0, &roster(&["a"])).await.unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("check the Secret") && !error.contains("cret\""), "{error}");
    }
    fs::remove_file(&file).unwrap();
    let error = server.read(1000.0, &roster(&["a"])).await.unwrap_err().to_string();
    assert!(error.starts_with("Prometheus \"default\", access: reading the bearer token from "), "{error}");
}

#[tokio::test]
async fn basic_auth_and_headers_are_sent_and_never_shown() {
    let directory = TempDir::new().unwrap();
    let file = |name: &str, text: &str| {
        fs::write(directory.path().join(name), text).unwrap();
        directory.path().join(name)
    };
    let (scripted, address) = serve(|_| json(401, "")).await;
    let configuration = ServerConfiguration {
        basic_auth: Some(BasicAuthFiles {
            username_file: file("user", "reader"),
            password_file: file("password", "pässwort:1"),
        }),
        headers: BTreeMap::from([("X-Scope-OrgID".to_owned(), "tenant-7".to_owned())]),
        ..ServerConfiguration::new(format!("http://{address}"))
    };
    let server = PrometheusServer::new("default", configuration);
    let error = server.read(1000.0, &roster(&["a"])).await.unwrap_err();
    assert_eq!(authorization(&scripted), "Basic cmVhZGVyOnDDpHNzd29ydDox");
    assert_eq!(scripted.seen.lock().unwrap()[0].1["x-scope-orgid"], "tenant-7");
    for shown in [error.to_string(), format!("{error:?}"), format!("{server:?}")] {
        assert!(!shown.contains("wort:1") && !shown.contains("cmVhZGVy"), "{shown}");
    }
    assert_eq!(error.to_string().matches("bearerTokenFile or basicAuth").count(), 1);
}

#[test]
fn the_configuration_that_the_chart_writes_is_read() {
    let text = "
servers:
  archive:
    basicAuth:
      passwordFile: /etc/sluice/prometheus-secrets/archive/password
      usernameFile: /etc/sluice/prometheus-secrets/archive/username
    url: http://thanos-query.monitoring.svc:9090
  default:
    allowedNamespaces:
    - shop
    bearerTokenFile: /etc/sluice/prometheus-secrets/default/token
    caFile: /etc/sluice/prometheus-secrets/default/ca.crt
    headers:
      X-Scope-OrgID: shop
    timeoutSeconds: 3
    url: https://prometheus.example.com/tenant
";
    let servers = parse(text, "prometheus.yaml".as_ref()).unwrap();
    assert_eq!(servers.keys().collect::<Vec<_>>(), ["archive", DEFAULT_SERVER]);
    assert_eq!(servers[DEFAULT_SERVER].timeout(), Duration::from_secs(3));
    assert_eq!(servers["archive"].timeout(), Duration::from_secs(5));
    let allows = |server: &str| ["shop", "other"].map(|namespace| servers[server].allows_overrides_of(namespace));
    assert_eq!((allows(DEFAULT_SERVER), allows("archive")), ([true, false], [false, false]), "off by default");
    let open = parse("servers: {default: {url: 'http://x', allowedNamespaces: ['*']}}", "prometheus.yaml".as_ref());
    assert!(open.unwrap()[DEFAULT_SERVER].allows_overrides_of("other"));
}

#[test]
fn a_configuration_that_cannot_work_is_refused_with_the_field() {
    let messages: Vec<String> = [
        "servers: {default: {url: 'ftp://x'}}",
        "servers: {default: {url: 'prometheus:9090'}}",
        "servers: {default: {url: 'http://user:hunter2@x'}}",
        "servers: {default: {url: 'http://x/?query=1'}}",
        "servers: {default: {url: ''}}",
        "servers: {default: {}}",
        "servers: {default: {url: 'http://x', caFile: /ca}}",
        "servers: {default: {url: 'http://x', timeoutSeconds: 0}}",
        "servers: {default: {url: 'http://x', timeoutSeconds: -1}}",
        "servers: {default: {url: 'http://x', staleAfterSeconds: 1}}",
        "servers: {default: {url: 'http://x', maxResponseBytes: 1}}",
        "servers: {default: {url: 'http://x', allowedNamespaces: [shop, 'shop*']}}",
        "servers: {default: {url: 'http://x', bearerToken: hunter2}}",
        "servers: {default: {url: 'http://x', bearerTokenFile: /t, basicAuth: {usernameFile: /u, passwordFile: /p}}}",
        "servers: {default: {url: 'http://x', bearerTokenFile: /t, headers: {authorization: x}}}",
        "servers: {default: {url: 'http://x', headers: {'a b': x}}}",
        "servers: {default: {url: 'http://x', headers: {a: \"hunter2\\n\"}}}",
        "server: {}",
        "servers: [1]",
        "{",
    ]
    .into_iter()
    .map(|text| parse(text, "prometheus.yaml".as_ref()).map_or_else(|error| error.to_string(), |_| panic!("{text}")))
    .collect();
    assert!(messages.iter().all(|message| !message.contains("hunter2")), "{messages:#?}");
    insta::assert_snapshot!(messages.join("\n"), @r#"
    the Prometheus configuration prometheus.yaml, servers.default.url: "ftp://x" must begin with http:// or https:// and name a host
    the Prometheus configuration prometheus.yaml, servers.default.url: "prometheus:9090" must begin with http:// or https:// and name a host
    the Prometheus configuration prometheus.yaml, servers.default.url: must not hold a password: it would appear in logs; use basicAuth
    the Prometheus configuration prometheus.yaml, servers.default.url: "http://x/?query=1" must end with the path
    the Prometheus configuration prometheus.yaml, servers.default.url: "": relative URL without a base
    the Prometheus configuration prometheus.yaml is not valid: servers.default: missing field `url` at line 1 column 20
    the Prometheus configuration prometheus.yaml, servers.default.caFile: needs a url that begins with https://
    the Prometheus configuration prometheus.yaml, servers.default.timeoutSeconds: 0 must lie between 1 and 60
    the Prometheus configuration prometheus.yaml is not valid: servers.default.timeoutSeconds: invalid type: integer `-1`, expected u32 at line 1 column 54
    the Prometheus configuration prometheus.yaml, servers.default.staleAfterSeconds: 1 must lie between 15 and 3600
    the Prometheus configuration prometheus.yaml, servers.default.maxResponseBytes: 1 must lie between 1024 and 1073741824
    the Prometheus configuration prometheus.yaml, servers.default.allowedNamespaces: "shop*" is not the name of a namespace; "*" alone stands for every one
    the Prometheus configuration prometheus.yaml is not valid: servers.default: unknown field `bearerToken`, expected one of `url`, `bearerTokenFile`, `basicAuth`, `caFile`, `headers`, `timeoutSeconds`, `staleAfterSeconds`, `maxResponseBytes`, `allowedNamespaces` at line 1 column 38
    the Prometheus configuration prometheus.yaml, servers.default.bearerTokenFile: excludes basicAuth: both set the header Authorization
    the Prometheus configuration prometheus.yaml, servers.default.headers: Authorization is set by bearerTokenFile or basicAuth
    the Prometheus configuration prometheus.yaml, servers.default.headers: "a b" is not the name of a header
    the Prometheus configuration prometheus.yaml, servers.default.headers: the value of "a" is not that of a header
    the Prometheus configuration prometheus.yaml is not valid: unknown field `server`, expected `servers`
    the Prometheus configuration prometheus.yaml is not valid: servers: invalid type: sequence, expected a map at line 1 column 10
    the Prometheus configuration prometheus.yaml is not valid: did not find expected node content at line 2 column 1, while parsing a flow node
    "#);
}

#[test]
fn a_file_that_is_missing_is_named() {
    let error = Servers::from_file("/nowhere/prometheus.yaml".as_ref()).unwrap_err().to_string();
    assert_eq!(
        error,
        "reading the Prometheus configuration /nowhere/prometheus.yaml: No such file or directory (os error 2)"
    );
}

// ---- collecting

mod collecting {
    use proptest::prelude::*;

    use std::sync::Arc;

    use super::super::{
        PoolKey, Readings, RefusedSeries, Roster, SeriesRefusal,
        collect::{Collected, Collector},
        intake::Take as _,
        query::Figure,
        response::{Series, Splitter},
    };

    /// Pods of some pools of the namespace `shop`.
    fn roster() -> Arc<Roster> {
        let pods = [
            ("shop", "shop-1"),
            ("shop", "good"),
            ("shop", "bad"),
            ("a", "a-good"),
            ("a", "a-bad"),
            ("b", "b-good"),
            ("b", "b-bad"),
        ];
        Arc::new(pods.iter().map(|&(pool, pod)| (PoolKey::new("shop", pool), pod.to_owned())).collect())
    }

    /// Labels of a series of this figure beside those of its target.
    fn named(figure: Figure) -> String {
        let more = match figure {
            Figure::Active => r#","state":"active""#,
            Figure::Waiting => r#","state":"waiting""#,
            Figure::DemandPeak => r#","window":"30s""#,
            _ => "",
        };
        format!(r#""__name__":"{}"{more}"#, figure.metric())
    }

    fn labels(pod: &str, job: &str) -> String {
        format!(
            r#""pool_namespace":"shop","pool":"shop","namespace":"shop","pod":"{pod}","job":"{job}","instance":"10.0.0.1:9130""#
        )
    }

    /// Reads once: the same elements for every figure, sample times apart.
    fn collect(times: &[(&str, &str)], figures: impl Fn(Figure) -> Vec<(String, String)>) -> Readings {
        collect_of(&roster(), times, figures)
    }

    fn collect_of(
        roster: &Arc<Roster>,
        times: &[(&str, &str)],
        figures: impl Fn(Figure) -> Vec<(String, String)>,
    ) -> Readings {
        let times: Vec<(String, String)> = times.iter().map(|&(labels, time)| (labels.into(), time.into())).collect();
        let mut collector = Collector::of(roster.clone());
        for figure in Figure::ALL {
            let elements = if figure == Figure::SampleTime { times.clone() } else { figures(figure) };
            for (labels, value) in elements {
                let text = format!(r#"{{"metric":{{{},{labels}}},"value":[1,"{value}"]}}"#, named(figure));
                collector.take(&serde_json::from_str::<Series>(&text).unwrap());
            }
        }
        collector.taken().finish(roster, 1000.0, 0)
    }

    fn only(readings: &Readings) -> crate::decide::load::PodFigures {
        assert_eq!(readings.pools.len(), 1, "{readings:?}");
        let pods = readings.pools.values().next().unwrap();
        assert_eq!(pods.len(), 1, "{readings:?}");
        *pods.values().next().unwrap()
    }

    #[test]
    fn a_pod_that_two_jobs_scrape_counts_once_with_the_newest_set() {
        for (old, new) in [("a", "b"), ("b", "a")] {
            let (old, new) = (labels("shop-1", old), labels("shop-1", new));
            let readings = collect(&[(&old, "990"), (&new, "995")], |_| {
                vec![(old.clone(), "70".into()), (new.clone(), "7".into())]
            });
            let figures = only(&readings);
            assert_eq!(
                (figures.sample.at_seconds, figures.sample.active, figures.sample.transactions),
                (995.0, 7.0, 7.0)
            );
        }
    }

    #[test]
    fn of_two_sets_of_the_same_time_it_is_always_the_same_one() {
        let (a, b) = (labels("shop-1", "a"), labels("shop-1", "b"));
        for times in [[(a.as_str(), "990"), (b.as_str(), "990")], [(b.as_str(), "990"), (a.as_str(), "990")]] {
            let readings = collect(&times, |_| vec![(a.clone(), "1".into()), (b.clone(), "2".into())]);
            assert!((only(&readings).sample.active - 1.0).abs() < f64::EPSILON);
        }
    }

    #[test]
    fn a_figure_that_cannot_be_leaves_the_pod_out_and_is_named() {
        for value in ["NaN", "+Inf", "-Inf", "-1", "", "many"] {
            let (good, bad) = (labels("good", "j"), labels("bad", "j"));
            let readings = collect(&[(&good, "990"), (&bad, "990")], |figure| {
                let broken = if figure == Figure::BusySeconds { value } else { "1" };
                vec![(good.clone(), "1".into()), (bad.clone(), broken.into())]
            });
            assert_eq!(readings.pools.values().next().unwrap().keys().collect::<Vec<_>>(), ["good"]);
            assert_eq!(
                readings.problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
                [format!(
                    "sluice_busy_seconds_total of pod \"bad\", pool shop/shop, is {value:?}, which cannot be; the pod is left out"
                )]
            );
            assert_eq!(readings.problem_of(&super::PoolKey::new("shop", "shop")), readings.problems.first());
            assert_eq!(readings.problem_of(&super::PoolKey::new("shop", "other")), None);
        }
    }

    #[test]
    fn what_both_answers_of_a_reading_say_is_told_together() {
        let (roster, mut both) = (roster(), Collected::default());
        for (pool, values) in [("a", ["NaN", "1"]), ("b", ["-1", "2"])] {
            let mut collector = Collector::of(roster.clone());
            for (pod, value) in ["bad", "good"].into_iter().zip(values) {
                for figure in Figure::ALL {
                    let labels = labels(&format!("{pool}-{pod}"), "j")
                        .replace(r#""pool":"shop""#, &format!(r#""pool":"{pool}""#));
                    let text = format!(r#"{{"metric":{{{},{labels}}},"value":[1,"{value}"]}}"#, named(figure));
                    collector.take(&serde_json::from_str::<Series>(&text).unwrap());
                }
            }
            both.add(collector.taken());
        }
        let readings = both.finish(&roster, 1000.0, 0);
        let all = u32::try_from(Figure::ALL.len()).unwrap();
        assert!(
            matches!(&readings.problems[..], [RefusedSeries { refusal: SeriesRefusal::Value, count, value, .. }] if *count == 2 * all && value == "NaN"),
            "{:?}",
            readings.problems
        );
        for (pool, active, refused) in [("a", 1.0, "NaN"), ("b", 2.0, "-1")] {
            let pool = super::PoolKey::new("shop", pool);
            let pods: Vec<_> =
                readings.pools[&pool].iter().map(|(pod, figures)| (&**pod, figures.sample.active)).collect();
            assert_eq!(pods, [(format!("{}-good", pool.name).as_str(), active)]);
            assert_eq!(readings.problem_of(&pool).unwrap().value, refused);
        }
    }

    #[test]
    fn a_pod_speaks_for_its_own_pool_and_no_other_whoever_it_says_that_it_is() {
        let foreign = |pool: &str, namespace: &str, pod: &str| {
            format!(
                r#""pool_namespace":"shop","pool":"{pool}","namespace":"{namespace}","pod":"{pod}","job":"j","instance":"i""#
            )
        };
        for (forged, told) in [
            // of another namespace, with the name of one of the pool's own pods
            (foreign("shop", "evil", "shop-1"), true),
            // of another pool of the same namespace
            (foreign("shop", "shop", "a-bad"), true),
            // of a pod that has ended, and of a pool that there is none of
            (foreign("shop", "shop", "shop-0"), false),
            (foreign("none", "shop", "shop-1"), false),
        ] {
            let readings = collect(&[(&forged, "990")], |_| vec![(forged.clone(), "1".into())]);
            assert!(readings.pools.is_empty(), "{forged}");
            let is_told =
                matches!(readings.problems[..], [RefusedSeries { refusal: SeriesRefusal::ForeignPool, count: 1, .. }]);
            assert_eq!(is_told, told, "{forged}: {:?}", readings.problems);
        }
    }

    #[test]
    fn hundred_thousand_forged_series_leave_nothing_behind_and_stand_in_no_pods_way() {
        let mut collector = Collector::of(roster());
        let mut take = |labels: &str, value: &str| {
            let text = format!(r#"{{"metric":{{{labels}}},"value":[1,"{value}"]}}"#);
            collector.take(&serde_json::from_str::<Series>(&text).unwrap());
        };
        let sample_time = named(Figure::SampleTime);
        for number in 0..25_000 {
            let of = |pool: &str, pod: &str, more: &str| {
                format!(
                    r#"{sample_time},"pool_namespace":"shop","pool":"{pool}","namespace":"shop","pod":"{pod}","job":"j","instance":"i"{more}"#
                )
            };
            take(&of(&format!("pool-{number}"), "bad", ""), "990"); // pools that there are none of
            take(&of("shop", &format!("pod-{number}"), ""), "990"); // pods that there are none of
            take(&of("shop", "a-bad", &format!(r#","x":"{number}""#)), "NaN"); // another's pool
            take(&of("shop", "bad", &format!(r#","x":"{number}""#)), "990"); // its own, again and again
        }
        let honest = labels("good", "j");
        for figure in Figure::ALL {
            take(&format!("{},{honest}", named(figure)), "7");
        }
        let readings = collector.taken().finish(&roster(), 1000.0, 0);
        assert_eq!(readings.pods_of(&PoolKey::new("shop", "shop")).keys().collect::<Vec<_>>(), ["good"]);
        let problems: Vec<_> = readings.problems.iter().map(|problem| (problem.refusal, problem.count)).collect();
        assert_eq!(problems, [(SeriesRefusal::ForeignPool, 25_000), (SeriesRefusal::TooManySets, 1)]);
        assert!(readings.problems[1].to_string().contains("more than 8 sets"), "{}", readings.problems[1]);
        assert_eq!(readings.pools.len(), 1);
    }

    #[test]
    fn a_pod_with_labels_too_long_to_keep_is_left_out_and_named() {
        let [long, honest] = [labels("bad", &"j".repeat(5000)), labels("good", "j")];
        let readings = collect(&[(&long, "990"), (&honest, "990")], |_| {
            vec![(long.clone(), "1".into()), (honest.clone(), "1".into())]
        });
        assert_eq!(readings.pods_of(&PoolKey::new("shop", "shop")).keys().collect::<Vec<_>>(), ["good"]);
        assert!(matches!(readings.problems[..], [RefusedSeries { refusal: SeriesRefusal::TooManySets, count: 1, .. }]));
    }

    #[test]
    fn a_scrape_configuration_without_the_label_pod_is_told() {
        let bare = r#""pool_namespace":"shop","pool":"shop","job":"j","instance":"i""#;
        let readings = collect(&[(bare, "990")], |_| vec![(bare.to_owned(), "1".into())]);
        assert!(readings.pools.is_empty());
        assert_eq!(
            readings.problems[0].to_string(),
            "sluice_sample_timestamp_seconds of pool shop/shop has no label pod; add it in the scrape configuration (examples/prometheus)"
        );
    }

    #[test]
    fn what_an_agent_cannot_see_is_unknown_and_what_it_must_see_is_needed() {
        let pod = labels("shop-1", "j");
        let without = |missing: Figure| {
            collect(&[(&pod, "990")], |figure| if figure == missing { vec![] } else { vec![(pod.clone(), "3".into())] })
        };
        assert_eq!(only(&without(Figure::Leaked)).leaked, None);
        assert_eq!(only(&without(Figure::GrantSeq)).proof, None);
        assert!(
            (only(&without(Figure::Assignments)).sample.assignments - 3.0).abs() < f64::EPSILON,
            "transactions instead"
        );
        for needed in [Figure::Active, Figure::Waiting, Figure::Transactions, Figure::BusySeconds, Figure::WaitSeconds]
        {
            let readings = without(needed);
            assert!(readings.pools.is_empty());
            assert!(
                matches!(readings.problems[..], [RefusedSeries { refusal: SeriesRefusal::Incomplete, .. }]),
                "{needed:?}"
            );
        }
    }

    #[test]
    fn names_with_quotes_and_non_ascii_characters_stay_what_they_are() {
        let odd = r#""pool_namespace":"shop","pool":"sh\"op\\ \u00e9\n","namespace":"shop","pod":"p\u001f\"","job":"j","instance":"i""#;
        let pool = PoolKey::new("shop", "sh\"op\\ é\n");
        let roster = Arc::new([(pool, "p\u{1f}\"".to_owned())].into_iter().collect());
        let readings = collect_of(&roster, &[(odd, "990")], |_| vec![(odd.to_owned(), "1".into())]);
        let (pool, pods) = readings.pools.iter().next().unwrap();
        assert_eq!((pool.name.as_str(), pods.keys().next().unwrap().as_str()), ("sh\"op\\ é\n", "p\u{1f}\""));
    }

    /// An answer with every figure of one pod.
    fn answer(value: &str) -> String {
        let pod = labels("shop-1", "j");
        let elements =
            Figure::ALL.map(|figure| format!(r#"{{"metric":{{{},{pod}}},"value":[1.5,"{value}"]}}"#, named(figure)));
        let histogram = r#"{"metric":{},"histogram":[1.5e1,{"count":"1","buckets":[[-0.5,"0",null]]}]}"#;
        let elements = [&elements.join(", "), histogram].join(",\n");
        format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{elements}]}},"warnings":["a [b"]}}"#)
    }

    #[test]
    fn two_replicas_of_one_pod_are_never_mixed() {
        let [a, b] = ["a", "b"].map(|replica| format!(r#"{},"prometheus_replica":"{replica}""#, labels("shop-1", "j")));
        let readings = collect(&[(&a, "990"), (&b, "995")], |figure| {
            let newer = if figure == Figure::Active { "2" } else { "20" };
            vec![(a.clone(), "10".into()), (b.clone(), newer.into())]
        });
        let sample = only(&readings).sample;
        assert_eq!((sample.at_seconds, sample.active, sample.transactions), (995.0, 2.0, 20.0));
    }

    proptest! {
        #[test]
        fn an_answer_is_the_same_however_it_is_cut_into_pieces(size in 1_usize..80) {
            let text = answer("7");
            let mut whole: serde_json::Value = serde_json::from_str(&text).unwrap();
            let (mut elements, mut collector, mut splitter) = (Vec::new(), Collector::of(roster()), Splitter::default());
            for piece in text.as_bytes().chunks(size) {
                splitter.push(piece, |bytes| {
                    let length = Series::first_of(bytes, |series| collector.take(series))?;
                    elements.push(serde_json::from_slice::<serde_json::Value>(&bytes[..length])?);
                    Ok::<_, serde_json::Error>(length)
                }).unwrap();
            }
            prop_assert_eq!(only(&collector.taken().finish(&roster(), 1000.0, 0)).sample.transactions.to_bits(), 7.0_f64.to_bits());
            prop_assert_eq!(&serde_json::Value::Array(elements), &whole["data"]["result"]);
            whole["data"]["result"] = serde_json::json!([]);
            prop_assert_eq!(serde_json::from_slice::<serde_json::Value>(&splitter.rest()).unwrap(), whole);
        }

        #[test]
        fn damaged_answers_never_panic_and_never_yield_a_figure_that_cannot_be(
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in proptest::option::of(any::<prop::sample::Index>()),
            value in prop_oneof![Just("7".to_owned()), Just("-0".to_owned()), Just("1e400".to_owned()), "[0-9eE+.NaInf-]{0,8}"],
        ) {
            let mut bytes = answer(&value).into_bytes();
            for (index, byte) in damage {
                let index = index.index(bytes.len());
                bytes[index] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            let mut collector = Collector::of(roster());
            let mut splitter = Splitter::default();
            let _ = splitter.push(&bytes, |bytes| Series::first_of(bytes, |series| collector.take(series)));
            let _ = splitter.rest();
            for figures in collector.taken().finish(&roster(), 1000.0, 0).pools.values().flat_map(std::collections::BTreeMap::values) {
                prop_assert!(figures.sample.check().is_ok());
                prop_assert!(figures.sample.at_seconds >= 0.0);
            }
        }
    }
}
