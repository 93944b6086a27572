//! Asking agents what they run.
//!
//! - [`schedule`]: who is asked, when, and what was answered.
//! - [`in_flight`]: how many requests may be under way at once, and to whom.
//! - [`status_request`]: one request, `GET http://POD:9130/status`.

mod in_flight;
mod schedule;
mod status_request;

use std::{collections::HashSet, sync::Arc, time::Duration};

use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

pub use self::schedule::HeardAnswer;
use self::schedule::{PollSchedule, PolledPods, StatusRequest};
use super::{context::Context, look_requests::LookRequests};
use crate::{
    causes::with_causes,
    contract::StatusReport,
    decide::plan::{Plan, PodFacts},
    domain::PoolKey,
    http::OperatorMetrics,
};

/// Never idle for longer, whatever is due.
const LONGEST_IDLE: Duration = Duration::from_secs(1);

/// What agents said, and the task that asks them.
#[derive(Default)]
pub struct AgentPoller {
    schedule: Mutex<PollSchedule>,
    wake: Notify,
}

/// What the agents of one pool said last. Nobody else is heard while it is held: moments only.
pub struct AgentAnswers<'a>(Option<MappedMutexGuard<'a, PolledPods>>);

impl AgentAnswers<'_> {
    /// What the agent of a pod said last.
    pub fn of(&self, uid: &str) -> HeardAnswer {
        self.0.as_ref().map_or(HeardAnswer::NOTHING, |pods| pods.heard(uid))
    }
}

impl AgentPoller {
    /// What the agents of a pool said last.
    pub fn answers(&self, pool: &PoolKey) -> AgentAnswers<'_> {
        AgentAnswers(MutexGuard::try_map(self.schedule.lock(), |schedule| schedule.of(pool)).ok())
    }

    /// Sets what the pods of a pool must be seen to run: `open` are the uids of those of which something is not proven. Pods that are
    /// not mentioned are forgotten.
    pub fn expect(&self, pool: &PoolKey, pods: &[Arc<PodFacts>], open: &HashSet<&str>) {
        self.schedule.lock().expect(pool, pods, open, Instant::now());
        self.wake.notify_one();
    }

    /// A pod is told another revision: what its agent said until now proves nothing of it.
    pub fn told(&self, pool: &PoolKey, uid: &str) {
        if let Some(polled) = self.schedule.lock().of(pool) {
            polled.outdate(uid);
        }
    }

    /// Asks for ever. A pool whose pods said something new is looked at.
    pub async fn run(self: Arc<Self>, requests: LookRequests, metrics: OperatorMetrics) {
        let client = match status_request::client() {
            Ok(client) => client,
            Err(error) => {
                tracing::error!(error = with_causes(&error), "building the client that asks agents");
                return;
            }
        };
        loop {
            while let Some(request) = self.next() {
                tokio::spawn(self.clone().ask(client.clone(), request, requests.clone(), metrics.clone()));
            }
            let now = Instant::now();
            let pause = self.schedule.lock().next_due(now).map_or(LONGEST_IDLE, |due| due - now).min(LONGEST_IDLE);
            // whoever is due and has no place is woken by the next answer
            let _ = timeout(pause, self.wake.notified()).await;
        }
    }

    /// Takes in an answer of every pod of a pool, as if each had been asked: for rehearsals.
    pub fn answer_all(&self, pool: &PoolKey, answer: impl Fn(&str) -> StatusReport) {
        let mut schedule = self.schedule.lock();
        let all = Instant::now() + Duration::from_mins(1);
        let due: Vec<StatusRequest> = std::iter::from_fn(|| {
            let request = schedule.next(all).filter(|request| request.pool == *pool)?;
            schedule.answered(&request, Ok(answer(&request.uid)), all);
            Some(request)
        })
        .collect();
        tracing::debug!(%pool, pods = due.len(), "answers taken in");
    }

    fn next(&self) -> Option<StatusRequest> {
        self.schedule.lock().next(Instant::now())
    }

    async fn ask(
        self: Arc<Self>,
        client: reqwest::Client,
        request: StatusRequest,
        requests: LookRequests,
        metrics: OperatorMetrics,
    ) {
        let answer = status_request::ask(&client, &request.address, &request.uid).await;
        metrics.asked(status_request::outcome(&answer));
        let is_new = self.schedule.lock().answered(&request, answer, Instant::now());
        self.wake.notify_one();
        if is_new {
            requests.ask(&request.pool, "proof").await;
        }
    }
}

/// Sets what the pods must be seen to run: what was open, and whatever has just been written.
pub fn expect(key: &PoolKey, context: &Context, plan: &Plan) {
    let written = plan.patches.iter().map(|patch| &*patch.uid);
    let open: HashSet<&str> = plan.open.iter().map(|uid| &**uid).chain(written).collect();
    context.poller.expect(key, &context.pods.of(key), &open);
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        net::Ipv4Addr,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use axum::{Json, Router, routing::get};
    use futures::StreamExt;
    use serde_json::{Value, json};
    use tokio::net::TcpListener;

    use super::*;
    use crate::{
        controller::{look_requests, observe::pods::PodIndex},
        decide::plan::AgentAnswer,
    };

    fn shop() -> PoolKey {
        PoolKey::new("ns", "shop")
    }

    /// What the agent of a pod answers, beside what every agent says.
    fn report(uid: &str, says: &Value) -> Value {
        let mut report = json!({
            "v": 1, "podUid": uid, "pool": "shop", "revision": 1, "wantedRevision": 1, "epoch": 1, "seq": 1, "share": 5,
            "limits": null, "held": null, "slot": "Serving", "message": "",
        });
        if let (Some(report), Some(says)) = (report.as_object_mut(), says.as_object()) {
            report.extend(says.clone());
        }
        report
    }

    /// Pods of a pool at these addresses; their uids are the addresses.
    /// Pods whose agents listen at this port.
    fn at(port: u16, mut pods: Vec<Arc<PodFacts>>) -> Vec<Arc<PodFacts>> {
        for injection in pods.iter_mut().filter_map(|pod| Arc::make_mut(pod).injection.as_mut()) {
            Arc::make_mut(injection).agent_port = port;
        }
        pods
    }

    fn pods(pool: &PoolKey, addresses: &[Ipv4Addr], version: u64) -> Vec<Arc<PodFacts>> {
        let index = PodIndex::default();
        for address in addresses {
            index.apply(&crate::controller::observe::pods::injected(pool, &address.to_string(), *address, version));
        }
        index.of(pool)
    }

    /// Has these pods asked; all of them are open, or none.
    fn expect(poller: &AgentPoller, pool: &PoolKey, pods: &[Arc<PodFacts>], is_open: bool) {
        let open = pods.iter().map(|pod| &*pod.uid).filter(|_| is_open).collect();
        poller.expect(pool, pods, &open);
    }

    /// Has one pod asked at this moment.
    fn request(poller: &AgentPoller, at: Instant) -> StatusRequest {
        let request = poller.schedule.lock().next(at).expect("somebody is due");
        assert_eq!(poller.schedule.lock().next(at), None);
        request
    }

    /// The agent answers with this: whether its pool is looked at, and whether it is asked again soon.
    fn answers(poller: &AgentPoller, says: &Value) -> (bool, bool) {
        // it is asked whenever it is due
        let request = request(poller, Instant::now() + Duration::from_mins(1));
        let report: StatusReport = serde_json::from_value(report(&request.uid, says)).expect("a status report");
        let now = Instant::now();
        let is_new = poller.schedule.lock().answered(&request, Ok(report), now);
        let next = poller.schedule.lock().next_due(now).expect("it is asked again");
        (is_new, next <= now + Duration::from_secs(5))
    }

    fn poller() -> AgentPoller {
        let poller = AgentPoller::default();
        expect(&poller, &shop(), &pods(&shop(), &[Ipv4Addr::new(10, 0, 0, 1)], 1), false);
        poller
    }

    #[test]
    fn who_tells_of_a_leak_is_asked_again_soon_and_its_pool_is_looked_at_when_the_kinds_change() {
        let poller = poller();
        let leaks = |in_transaction: u32, pinned: u32, seconds: Option<u32>, freed: u32| {
            json!({"leaks": {"inTransaction": in_transaction, "pinned": pinned, "unclear": 0, "longestPinnedSeconds": seconds,
                "freed": freed}})
        };
        assert_eq!(answers(&poller, &json!({})), (true, false), "the first answer");
        assert_eq!(answers(&poller, &json!({})), (false, false));
        assert_eq!(answers(&poller, &leaks(0, 1, Some(300), 0)), (true, true));
        assert_eq!(answers(&poller, &leaks(0, 1, Some(305), 0)), (false, true), "seconds alone are no news");
        assert_eq!(answers(&poller, &leaks(1, 1, Some(310), 0)), (true, true));
        assert_eq!(answers(&poller, &leaks(0, 0, None, 1)), (true, false), "it was freed, and that is told on");
        assert_eq!(answers(&poller, &leaks(0, 0, None, 1)), (false, false));
    }

    #[test]
    fn who_renews_connections_is_asked_again_soon_until_none_is_left() {
        let poller = poller();
        let renewed =
            |remaining: Option<u32>| json!({"reconnected": {"at": "2026-11-28T12:00:00Z", "remaining": remaining}});
        assert_eq!(answers(&poller, &renewed(None)), (true, false));
        assert_eq!(answers(&poller, &renewed(Some(2))), (true, true));
        assert_eq!(answers(&poller, &renewed(Some(2))), (false, true));
        assert_eq!(answers(&poller, &renewed(Some(0))), (true, false));
    }

    #[test]
    fn who_is_not_mentioned_any_more_is_asked_no_more_and_who_has_moved_where_it_is_now() {
        let poller = AgentPoller::default();
        let [one, two, three] = [1, 2, 3].map(|number| Ipv4Addr::new(10, 0, 0, number));
        expect(&poller, &shop(), &pods(&shop(), &[one, two], 1), true);
        expect(&poller, &shop(), &at(9131, pods(&shop(), &[two, three], 1)), true);
        let later = Instant::now() + Duration::from_mins(1);
        let asked = std::iter::from_fn(|| poller.schedule.lock().next(later)).map(|request| request.address);
        assert_eq!(asked.collect::<Vec<_>>(), ["10.0.0.2:9131", "10.0.0.3:9131"]);
    }

    /// Silent, as behind a policy that drops whatever comes: their sockets take a connection and nobody answers.
    const SILENT: usize = 300;
    /// Whoever waits for a silent pod waits for 2 s.
    const LESS_THAN_A_SILENT_ONE_TAKES: Duration = Duration::from_millis(1800);
    /// Pods that answer, in a pool of another namespace, and in another pool of the silent ones' own.
    const ANSWERING: usize = 20;

    fn address(of: u8, number: usize) -> Ipv4Addr {
        let byte = |number: usize| u8::try_from(number).expect("few");
        Ipv4Addr::new(127, of, byte(number / 250), byte(number % 250 + 1))
    }

    /// Agents at loopback addresses, all at the same port.
    struct Agents {
        port: u16,
        silent: Vec<std::net::TcpListener>,
        asked: Arc<Mutex<HashMap<Ipv4Addr, AtomicUsize>>>,
    }

    impl Agents {
        async fn start() -> Self {
            let first = std::net::TcpListener::bind((address(77, 0), 0)).expect("a socket");
            let port = first.local_addr().expect("bound").port();
            let mut silent = vec![first];
            for number in 1..SILENT {
                silent.push(std::net::TcpListener::bind((address(77, number), port)).expect("a socket"));
            }
            let asked: Arc<Mutex<HashMap<Ipv4Addr, AtomicUsize>>> = Arc::default();
            for of in [78, 79] {
                for number in 0..ANSWERING {
                    let address = address(of, number);
                    let listener = TcpListener::bind((address, port)).await.expect("a socket");
                    let asked = asked.clone();
                    let status = move || async move {
                        asked.lock().entry(address).or_default().fetch_add(1, Ordering::Relaxed);
                        Json(report(&address.to_string(), &json!({})))
                    };
                    let router = Router::new().route("/status", get(status));
                    tokio::spawn(async move { axum::serve(listener, router).await });
                }
            }
            Self { port, silent, asked }
        }

        fn asked(&self, of: u8) -> usize {
            let asked = self.asked.lock();
            asked
                .iter()
                .filter(|(address, _)| address.octets()[1] == of)
                .map(|(_, asked)| asked.load(Ordering::Relaxed))
                .sum()
        }

        /// Questions that have reached silent ones.
        fn asked_in_vain(&self) -> usize {
            let connected = |socket: &std::net::TcpListener| {
                socket.set_nonblocking(true).expect("a socket");
                std::iter::from_fn(|| socket.accept().ok()).count()
            };
            self.silent.iter().map(connected).sum()
        }
    }

    /// Waits until it holds; how long that took.
    async fn wait(what: &str, longest: Duration, holds: impl Fn() -> bool) -> Duration {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < longest, "{what}: not within {longest:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        begun.elapsed()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn hundreds_of_silent_pods_neither_block_nor_delay_the_proofs_of_others() {
        let agents = Agents::start().await;
        let poller = Arc::new(AgentPoller::default());
        let (requests, mut requested) = look_requests::requests();
        tokio::spawn(async move { while requested.next().await.is_some() {} });
        let silent: Vec<(PoolKey, Vec<Arc<PodFacts>>)> = (0..3)
            .map(|number| {
                let pool = PoolKey::new("silent", format!("pool-{number}"));
                let addresses: Vec<Ipv4Addr> =
                    (0..SILENT / 3).map(|pod| address(77, number * (SILENT / 3) + pod)).collect();
                (pool.clone(), at(agents.port, pods(&pool, &addresses, 1)))
            })
            .collect();
        for (pool, pods) in &silent {
            expect(&poller, pool, pods, true);
        }
        tokio::spawn(poller.clone().run(requests, OperatorMetrics::default()));
        let neighbour = PoolKey::new("silent", "neighbour");
        let answering = [(78, shop()), (79, neighbour)].map(|(of, pool)| {
            let addresses: Vec<Ipv4Addr> = (0..ANSWERING).map(|number| address(of, number)).collect();
            (of, pool, addresses)
        });
        let have_answered = |pool: &PoolKey, addresses: &[Ipv4Addr]| {
            let answers = poller.answers(pool);
            addresses.iter().all(|address| matches!(answers.of(&address.to_string()).answer, AgentAnswer::Report(_)))
        };
        // all of the others are asked for the first time while the silent ones are
        for (_, pool, addresses) in &answering {
            expect(&poller, pool, &at(agents.port, pods(pool, addresses, 1)), true);
        }
        let [(_, other, of_other), (_, neighbour, of_neighbour)] = &answering;
        let first =
            wait("proof in another namespace", LESS_THAN_A_SILENT_ONE_TAKES, || have_answered(other, of_other)).await;
        // its first question waits for one that nobody answers at most
        wait("proof in the same namespace", Duration::from_secs(8), || have_answered(neighbour, of_neighbour)).await;
        // and whenever there is something new to prove, that takes its pause and nothing more
        for version in 2..5 {
            let before = [78, 79].map(|of| agents.asked(of));
            for (_, pool, addresses) in &answering {
                expect(&poller, pool, &at(agents.port, pods(pool, addresses, version)), true);
            }
            let are_asked = || [78, 79].iter().zip(before).all(|(of, before)| agents.asked(*of) >= before + ANSWERING);
            let took = wait("something new to prove", LESS_THAN_A_SILENT_ONE_TAKES, are_asked).await;
            println!("{SILENT} silent pods: first proof of others {first:?}, the next {took:?}");
        }
        // silent ones are asked ever more seldom, and all of them are
        agents.asked_in_vain();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let in_vain = agents.asked_in_vain();
        assert!((1..=32).contains(&in_vain), "{in_vain} questions in vain within a second");
    }

    #[test]
    fn pauses_are_counted_from_the_answer_and_grow_for_whoever_stays_silent() {
        let poller = AgentPoller::default();
        expect(&poller, &shop(), &pods(&shop(), &[Ipv4Addr::new(10, 0, 0, 1)], 1), true);
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for version in 2..14 {
            let asked = request(&poller, now);
            // it waited long for its answer, and something new to prove came meanwhile
            now += Duration::from_secs(30);
            expect(&poller, &shop(), &pods(&shop(), &[Ipv4Addr::new(10, 0, 0, 1)], version), true);
            let unreachable = status_request::AskError::Unreachable("no answer".to_owned());
            poller.schedule.lock().answered(&asked, Err(unreachable), now);
            let next = poller.schedule.lock().next_due(now).expect("it is asked again");
            pauses.push(next - now);
            now = next;
        }
        assert!(pauses.is_sorted(), "{pauses:?}");
        assert_eq!((pauses[0], *pauses.last().expect("some")), (Duration::from_millis(200), Duration::from_secs(15)));
    }

    #[test]
    fn who_answers_and_is_silent_in_turn_is_asked_no_more_often_than_who_does_neither() {
        let poller = AgentPoller::default();
        expect(&poller, &shop(), &pods(&shop(), &[Ipv4Addr::new(10, 0, 0, 1)], 1), true);
        let begun = Instant::now();
        let mut now = begun;
        let mut asked = 0;
        while now < begun + Duration::from_mins(5) {
            let request = request(&poller, now);
            let answer = if asked % 2 == 0 {
                Ok(serde_json::from_value(report(&request.uid, &json!({}))).expect("a status report"))
            } else {
                Err(status_request::AskError::Unreachable("no answer".to_owned()))
            };
            asked += 1;
            poller.schedule.lock().answered(&request, answer, now);
            now = poller.schedule.lock().next_due(now).expect("it is asked again");
        }
        assert!((60..300).contains(&asked), "asked {asked} times in five minutes");
    }

    #[test]
    fn what_an_agent_said_before_its_pod_was_told_a_revision_proves_nothing_of_it_until_it_says_so_again() {
        let poller = poller();
        let uid = "10.0.0.1";
        let outdated = || poller.answers(&shop()).of(uid).is_outdated;
        assert_eq!(answers(&poller, &json!({})), (true, false));
        assert!(!outdated());
        poller.told(&shop(), uid);
        assert!(outdated());
        let asked_before = request(&poller, Instant::now() + Duration::from_mins(1));
        poller.told(&shop(), uid);
        let same: StatusReport = serde_json::from_value(report(uid, &json!({}))).expect("a status report");
        let now = Instant::now();
        assert!(!poller.schedule.lock().answered(&asked_before, Ok(same.clone()), now), "it was asked before");
        assert!(outdated());
        let asked_after = request(&poller, now + Duration::from_mins(1));
        assert!(poller.schedule.lock().answered(&asked_after, Ok(same), now), "the same words are news now");
        assert!(!outdated());
    }

    #[test]
    fn whose_proof_is_awaited_is_asked_at_once_when_there_is_something_new_to_prove() {
        let poller = poller();
        assert_eq!(answers(&poller, &json!({})), (true, false), "nothing is open: the sweep");
        let now = Instant::now();
        expect(&poller, &shop(), &pods(&shop(), &[Ipv4Addr::new(10, 0, 0, 1)], 2), true);
        let next = poller.schedule.lock().next_due(now).expect("it is asked");
        assert!(next - now <= Duration::from_millis(250), "{:?}", next - now);
    }
}
