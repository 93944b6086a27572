use std::{fmt::Write as _, sync::Arc};

use proptest::prelude::*;

use super::*;
use crate::{
    api::{
        Confidence, ConnectionPool, ConnectionPoolStatus, FREEZE_ANNOTATION, Recommendation, SecretRef,
        conditions::{
            ACCEPTED, ConditionStatus, INJECTED, LEAK_DETECTED, PROVEN, READY, RECONNECTED, SCALING_LIMITED, merge,
        },
        reasons,
    },
    contract::{
        Between, Bypass, CircuitReport, CircuitState, ClientSide, ClientTlsMode, EPOCHS, ForeignListeners, Held,
        Injection, LARGEST_SEQ, LeakKinds, LimitsReadBack, MemoryReport, OtherRole, OtherSlot, PodGrant, PoolRevision,
        PoolerError, ProofMode, Reach, Reconnected, RevisionWait, SETTINGS_LEVEL, ServerFull, ServerTls, ServerTlsMode,
        SessionAlias, SessionAliasReport, SlotStatus, Stamp, StatusReport, TroubleSeen, TrustReport, Upstream,
        UpstreamSeen, UpstreamState,
    },
    decide::{
        analysis::AnalysisPhase,
        effective::{EffectivePool, PoolRefusal, effective},
        rollout::{DEFAULT_PAUSE_SECONDS, JudgedTry, RolloutJudgement, RolloutMemory, settings_hash},
        shares::{self, PodPhase},
        sizing::{Decision, Explanation},
    },
    domain::Reason,
};

const NOW: UnixSeconds = 1_763_700_000;

/// A small cluster: one pool, its pods as the API server and their agents show them.
struct World {
    pool: ConnectionPool,
    effective: EffectivePool,
    pods: Vec<PodSeen>,
    revisions: Vec<RevisionSeen>,
    status: ConnectionPoolStatus,
    sizing: Option<SizingSeen>,
    judged: Option<JudgedSeen>,
    rollout: Option<RolloutMemory>,
    epoch: u64,
    now: UnixSeconds,
    next_pod: u32,
}

impl World {
    fn new(spec: &str) -> Self {
        let pool = pool(spec);
        let effective = effective(&pool.spec, None).expect("the fixture is accepted");
        Self {
            pool,
            effective,
            pods: Vec::new(),
            revisions: Vec::new(),
            status: ConnectionPoolStatus::default(),
            sizing: None,
            judged: None,
            rollout: None,
            epoch: 3,
            now: NOW,
            next_pod: 0,
        }
    }

    fn change(&mut self, spec: &str) {
        self.pool = pool(spec);
        self.effective = effective(&self.pool.spec, None).expect("the fixture is accepted");
    }

    /// A pod as the webhook admits it.
    fn admit(&mut self) -> &mut PodSeen {
        let number = self.next_pod;
        self.next_pod += 1;
        let revision = PoolRevision { revision: 0, settings: self.effective.settings.clone() };
        let revision = RevisionDocument { v: 1, pools: [("shop".to_owned(), revision)].into() };
        let grant = GrantDocument { v: 1, epoch: 0, pools: [("shop".to_owned(), PodGrant::default())].into() };
        let facts = PodFacts {
            name: format!("shop-{number}"),
            owner: Some("deployment/shop".to_owned()),
            uid: format!("uid-{number}").into(),
            resource_version: "1".to_owned(),
            created: self.now + i64::from(number),
            phase: PodPhase::Running,
            sidecar: SidecarSeen::Running,
            injection: None,
            revision: Annotation::Read(Arc::new(revision)),
            grant: Annotation::Read(grant),
            doubtful_granted: 0,
            address: None,
        };
        self.pods.push(PodSeen {
            facts: Arc::new(facts),
            answer: AgentAnswer::NotAsked,
            is_answer_outdated: false,
            measured: None,
            demand: None,
            reporting: false,
            failure: None,
        });
        self.pods.last_mut().expect("just pushed")
    }

    fn plan(&self) -> Plan {
        self.plan_that(|_| {}, None)
    }

    fn plan_that<'a>(&'a self, change: impl FnOnce(&mut Observed<'a>), cannot_render: Option<&str>) -> Plan {
        let mut observed = Observed {
            gateway: None,
            now: self.now,
            epoch: self.epoch,
            pool: &self.pool,
            status: Some(&self.status),
            effective: Ok(&self.effective),
            budget: BudgetSeen::NotNamed,
            rival: None,
            pods: &self.pods,
            uninjected: Some(Uninjected::default()),
            uncounted: None,
            injection: None,
            revisions: &self.revisions,
            taken_numbers: &[],
            sizing: self.sizing.as_ref(),
            judged: self.judged.as_ref(),
            failure: None,
            most_writes: usize::MAX,
        };
        change(&mut observed);
        plan(&observed, self.rollout.as_ref(), cannot_render)
    }

    /// What the shell does with the whole plan, but for the patches that `takes` refuses.
    fn carry_out(&mut self, plan: &Plan, mut takes: impl FnMut(usize) -> bool) {
        self.rollout.clone_from(&plan.rollout);
        if let Some(NewRevision { number, settings, .. }) = &plan.create {
            let annotated_hash = Some(settings_hash(settings));
            let settings = Some(settings.clone());
            self.revisions.push(RevisionSeen {
                name: format!("shop-{number}"),
                number: *number,
                created: self.now,
                settings,
                annotated_hash,
            });
        }
        for (index, patch) in plan.patches.iter().enumerate() {
            if takes(index)
                && let Some(pod) = self.pods.iter_mut().find(|pod| pod.uid == patch.uid)
            {
                if let Some(revision) = &patch.revision {
                    pod.revision = Annotation::Read(revision.clone());
                }
                if let Some(grant) = &patch.grant {
                    pod.grant = Annotation::Read(grant.clone());
                }
            }
        }
        self.revisions.retain(|revision| !plan.prune.contains(&revision.name));
        self.status.revision.clone_from(&plan.report.revision);
        self.status.rollout.clone_from(&plan.report.rollout);
    }

    /// The agent of a pod does what its annotations say and tells so. It never takes an older grant for a newer one.
    fn obey(&mut self, index: usize) {
        let pod = &mut self.pods[index];
        let (Annotation::Read(grant), Annotation::Read(revision)) = (&pod.grant, &pod.revision) else { return };
        let (Some(pod_grant), Some(revision)) = (grant.pools.get("shop"), revision.pools.get("shop")) else { return };
        let newest =
            pod.answer.report().map_or_else(Stamp::default, |report| Stamp { epoch: report.epoch, seq: report.seq });
        let stamp = Stamp { epoch: grant.epoch, seq: pod_grant.seq };
        assert!(stamp == newest || stamp.is_after(newest), "the agent would refuse the grant as an old one");
        pod.answer = AgentAnswer::Report(Arc::new(report(&pod.uid, revision.revision, grant.epoch, *pod_grant)));
    }

    fn granted(&self) -> u32 {
        let grants = self.pods.iter().filter_map(|pod| pod.grant.last_known()?.pools.get("shop"));
        grants.map(|grant| grant.granted.max(grant.share)).sum()
    }

    /// Goes on until there is nothing left to do, whatever time that takes.
    fn settle(&mut self) {
        for _ in 0..60 {
            for pod in 0..self.pods.len() {
                self.obey(pod);
            }
            let plan = self.plan();
            let is_in_course = plan.report.rollout.as_ref().is_some_and(|told| told.current_step_index.is_some());
            let goes_on = is_in_course && plan.look_again_seconds.is_some();
            if plan.patches.is_empty() && plan.create.is_none() && !goes_on {
                self.carry_out(&plan, |_| true);
                return;
            }
            self.now += i64::from(plan.look_again_seconds.unwrap_or(0).min(DEFAULT_PAUSE_SECONDS));
            self.carry_out(&plan, |_| true);
        }
        panic!("it does not settle: {:?}", self.plan().patches);
    }

    fn shares(&self) -> Vec<u32> {
        self.pods.iter().map(|pod| pod.grant.last_known().map_or(0, |grant| grant.pools["shop"].share)).collect()
    }

    fn revision_numbers(&self) -> Vec<u64> {
        self.pods.iter().map(|pod| pod.revision.last_known().map_or(0, |known| known.pools["shop"].revision)).collect()
    }
}

fn pool(spec: &str) -> ConnectionPool {
    serde_yaml::from_str(&format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: ConnectionPool\n\
         metadata: {{name: shop, namespace: ns, uid: pool-uid, generation: 4}}\nspec:\n  \
         workload: {{selector: {{matchLabels: {{app: shop}}}}}}\n  \
         upstream: {{host: pg, database: shop, credentialsRef: {{name: shop-db}}}}\n{spec}"
    ))
    .expect("the fixture is a pool")
}

fn report(uid: &str, revision: u64, epoch: u64, grant: PodGrant) -> StatusReport {
    StatusReport {
        revision: Some(revision),
        wanted_revision: Some(revision),
        epoch,
        seq: grant.seq,
        share: grant.share,
        limits: Some(LimitsReadBack {
            pool_size: grant.share.max(1),
            max_db_connections: grant.share.max(1),
            min_pool_size: 0,
            paused: grant.share == 0,
        }),
        held: Some(Held { held: grant.share, ..Held::default() }),
        slot: SlotStatus::Serving,
        ..StatusReport::beginning(uid.to_owned(), "shop".to_owned())
    }
}

fn sized(target: u32, reason: Reason) -> SizingSeen {
    SizingSeen {
        decision: Decision {
            size: target,
            reason,
            message: "7.2 busy on 3 pods, at 70 % utilization: 11".to_owned(),
            recommendation: Recommendation {
                target,
                lower_bound: 8,
                upper_bound: 14,
                uncapped_target: target,
                confidence: Confidence::Medium,
            },
            base: target,
            explanation: Explanation {
                demand: 7.2,
                service_seconds: 0.01,
                setting: None,
                price: None,
                learned_seconds: 0.0,
                lower: 3,
                upper: 5,
            },
            limits: Vec::new(),
        },
        load: Some(LoadSeen { demand: 7.2, held: 9, active: 7, age_seconds: 6, ..LoadSeen::default() }),
        trouble: None,
        alternation: None,
        change: Some(TargetChange {
            id: "d-7f3a01".to_owned(),
            reason: reason.to_string(),
            from: 6,
            to: target,
            message: "7.2 busy on 3 pods, at 70 % utilization: 11".to_owned(),
            at: NOW - 3,
        }),
    }
}

const SHARED: &str =
    "  scaling: {minAllowed: 6, maxAllowed: 12, algorithm: TargetUtilization, localReaction: Disabled}\n";
const LOCAL: &str = "  scaling: {minAllowed: 2, maxAllowed: 12}\n";

/// The report as a page, without what changes with every word of a message.
fn page(plan: &Plan) -> String {
    let mut page = format!("{}\n\n", plan.report.summary);
    for condition in &plan.report.conditions {
        let _ = writeln!(
            page,
            "{} {}/{}: {}",
            condition.type_,
            condition.status.as_str(),
            condition.reason,
            condition.message
        );
    }
    for event in &plan.events {
        let _ = write!(page, "\n{:?} {} {}: {}", event.kind, event.reason, event.action, event.note);
    }
    page
}

#[test]
fn figures_that_pods_make_up_are_added_without_an_end() {
    let mut world = World::new(LOCAL);
    for _ in 0..2 {
        world.admit();
    }
    world.settle();
    for pod in &mut world.pods {
        let AgentAnswer::Report(report) = &mut pod.answer else { panic!("it answers") };
        let report = Arc::make_mut(report);
        report.limits = Some(LimitsReadBack {
            pool_size: u32::MAX,
            max_db_connections: u32::MAX,
            min_pool_size: u32::MAX,
            paused: false,
        });
        report.held = Some(Held { held: u32::MAX, active: u32::MAX, leaked: Some(u32::MAX), waiting: u32::MAX });
        report.server_full =
            Some(ServerFull { refused_beyond: u32::MAX, at_most: u32::MAX, words: "too many".to_owned() });
        report.session_alias = Some(SessionAliasReport {
            database: "shop_session".to_owned(),
            connections: u32::MAX,
            held: u32::MAX,
            clients: u32::MAX,
            paused: false,
        });
        report.leaks =
            Some(LeakKinds { in_transaction: u32::MAX, pinned: u32::MAX, unclear: u32::MAX, ..LeakKinds::default() });
        report.bypass = Some(Bypass { connections: u32::MAX, address: None });
    }
    let mut sizing = sized(5, Reason::Demand);
    sizing.load = Some(LoadSeen { demand: 1e300, ..LoadSeen::default() });
    world.sizing = Some(sizing);
    let plan = world.plan();
    assert_eq!(plan.report.current_size, Some(u32::MAX));
    let demand = plan.report.load.expect("it is known").demand;
    assert!(demand.len() <= 16, "the API server would refuse the whole status: {demand}");
    let told =
        plan.report.conditions.iter().find(|condition| condition.type_ == "UpstreamHealthy").expect("it is told");
    assert!(told.message.contains("beyond the 4294967295 that they have"), "{}", told.message);
}

#[test]
fn a_decision_starts_from_the_size_that_the_status_tells_and_a_paused_pooler_adds_nothing_to_it() {
    let mut world = World::new(SHARED);
    for _ in 0..3 {
        world.admit();
    }
    let size = |world: &World| {
        let size = current_size(world.pods.iter().map(|pod| &pod.answer));
        assert_eq!(world.plan().report.current_size, size, "the status and the sizing tell the same");
        size
    };
    assert_eq!(size(&world), None, "no agent was asked");
    let limited = |world: &mut World, pod: usize, pool_size: u32, paused: bool| {
        let limits = LimitsReadBack { pool_size, max_db_connections: pool_size, min_pool_size: 0, paused };
        let pod = &mut world.pods[pod];
        let told = StatusReport::beginning(pod.uid.to_string(), "shop".to_owned());
        pod.answer = AgentAnswer::Report(Arc::new(StatusReport { limits: Some(limits), ..told }));
    };
    // PgBouncer opens nothing for a pool that is paused, whatever its size was before
    limited(&mut world, 0, 9, true);
    assert_eq!(size(&world), Some(0));
    limited(&mut world, 1, 4, false);
    assert_eq!(size(&world), Some(4));
    let last = world.pods[1].answer.report().cloned().map(Arc::new);
    world.pods[1].answer = AgentAnswer::Unreachable { since: NOW, error: "connection refused".to_owned(), last };
    assert_eq!(size(&world), Some(0), "what an agent said before it fell silent is not the size now");
}

#[test]
fn a_pool_that_works_reads_like_this() {
    let mut world = World::new(SHARED);
    for _ in 0..3 {
        world.admit();
    }
    world.sizing = Some(sized(11, Reason::Demand));
    world.settle();
    insta::assert_snapshot!(page(&world.plan()));
}

#[test]
fn a_pool_without_pods_says_how_to_see_whether_they_are_refused() {
    let plan = World::new(SHARED).plan();
    let injected = plan.report.conditions.iter().find(|condition| condition.type_ == INJECTED).expect("it is told");
    assert_eq!((injected.status, injected.reason), (ConditionStatus::Unknown, reasons::NO_PODS));
    for words in ["matches no pod in namespace ns", "kubectl -n ns get events --field-selector reason=FailedCreate"] {
        assert!(injected.message.contains(words), "{}", injected.message);
    }
}

#[test]
fn a_target_that_is_only_recommended_is_told_as_that() {
    let mut world = World::new("  scaling: {fixedLimitPerPod: 4}\n  mode: Recommend\n");
    for _ in 0..3 {
        world.admit();
    }
    world.sizing = Some(sized(11, Reason::Demand));
    world.settle();
    let plan = world.plan();
    let ready = &plan.report.conditions[0];
    assert_eq!((ready.status, ready.reason), (ConditionStatus::True, reasons::IN_FORCE));
    assert!(ready.message.contains("its fixed limit") && ready.message.contains("recommended only"), "{ready:?}");
    let event = plan.events.iter().find(|event| event.reason == reasons::TARGET_CHANGED).expect("an event");
    assert!(event.note.starts_with("target 6 -> 11 (recommended only) (Demand): "), "{event:?}");
}

#[test]
fn a_pool_in_trouble_reads_like_this() {
    let mut world = World::new(SHARED);
    for _ in 0..3 {
        world.admit();
    }
    world.settle();
    let mut sizing = sized(6, Reason::NoData);
    sizing.load = None;
    sizing.trouble =
        Some(Trouble { reason: "PrometheusUnavailable", message: "the server default does not answer".to_owned() });
    world.sizing = Some(sizing);
    world.pods[1].answer =
        AgentAnswer::Unreachable { since: NOW - 60, error: "connection refused".to_owned(), last: None };
    let plan = world.plan_that(
        |observed| {
            observed.uninjected =
                Some(Uninjected { pods: 2, owners: vec!["deployment/shop".to_owned()], refused: None });
            observed.budget = BudgetSeen::Missing("pg-main".to_owned());
        },
        None,
    );
    insta::assert_snapshot!(page(&plan));
}

#[test]
fn pods_that_cannot_be_counted_are_told_as_that_and_not_as_none_and_make_no_pool_unready() {
    let mut world = World::new(SHARED);
    world.admit();
    world.sizing = Some(sized(11, Reason::Demand));
    world.settle();
    let injected = |pods: Option<u32>| {
        let plan = world.plan_that(
            |observed| {
                observed.uninjected = pods.map(|pods| Uninjected { pods, ..Uninjected::default() });
                observed.uncounted = Some("no answer within 5 s");
            },
            None,
        );
        let of = |type_| plan.report.conditions.iter().find(|condition| condition.type_ == type_).expect("a condition");
        assert_eq!(of(READY).reason == reasons::IN_FORCE, pods.unwrap_or_default() == 0);
        (of(INJECTED).status, of(INJECTED).reason, of(INJECTED).message.clone())
    };
    for pods in [None, Some(0)] {
        let (status, reason, message) = injected(pods);
        assert_eq!((status, reason), (ConditionStatus::Unknown, reasons::COUNT_FAILED));
        assert!(message.contains("no answer within 5 s; they are counted again"), "{message}");
    }
    assert_eq!(injected(Some(2)).1, reasons::PODS_WITHOUT_SIDECAR, "what was seen is still to be mended");
}

#[test]
fn an_application_that_is_connected_past_its_pooler_keeps_the_pool_from_being_ready_and_its_pod_is_named() {
    let mut world = World::new(SHARED);
    for _ in 0..3 {
        world.admit();
    }
    world.sizing = Some(sized(11, Reason::Demand));
    world.settle();
    let conditions = |world: &World| {
        let plan = world.plan();
        ["Ready", "ClientsPooled"].map(|type_| {
            let all = &plan.report.conditions;
            all.iter().find(|condition| condition.type_ == type_).cloned().expect("the condition")
        })
    };
    let say = |world: &mut World, pod: usize, connections: u32| {
        let AgentAnswer::Report(report) = &mut world.pods[pod].answer else { panic!("it was asked") };
        let address = (connections > 0).then(|| "10.0.0.7:5432".to_owned());
        Arc::make_mut(report).bypass = Some(Bypass { connections, address });
    };
    let [ready, pooled] = conditions(&world);
    assert_eq!((pooled.status, pooled.reason), (ConditionStatus::Unknown, reasons::NOT_OBSERVED));
    assert_eq!(ready.reason, reasons::IN_FORCE, "agents of an earlier version see nothing");
    (0..3).for_each(|pod| say(&mut world, pod, 0));
    let [ready, pooled] = conditions(&world);
    assert_eq!((ready.reason, pooled.reason), (reasons::IN_FORCE, reasons::ALL_POOLED));
    say(&mut world, 1, 8);
    say(&mut world, 2, 1);
    let [ready, pooled] = conditions(&world);
    assert_eq!((ready.status, ready.reason), (ConditionStatus::False, reasons::CONNECTED_PAST_POOLER));
    let told = "in 2 of 3 pods, shop-1 among them, the application is or was lately connected to the database past its pooler: 9 \
                connections to 10.0.0.7:5432";
    assert!(pooled.message.contains(told), "{}", pooled.message);
    let events = world.plan().events;
    assert!(events.iter().any(|event| event.reason == reasons::CONNECTED_PAST_POOLER), "{events:?}");
    world.change(&format!("{SHARED}  health: {{bypassAction: Ignore}}\n"));
    let [ready, pooled] = conditions(&world);
    assert_eq!(ready.reason, reasons::IN_FORCE, "who says that it is meant to be so has a pool that is ready");
    assert_eq!((pooled.status, pooled.reason), (ConditionStatus::False, reasons::BYPASS_IGNORED));
    assert!(pooled.message.contains(told), "and is told all the same: {}", pooled.message);
    let events = world.plan().events;
    assert!(events.iter().all(|event| event.action != "ClientsPooled"), "{events:?}");
}

#[test]
fn a_process_that_listens_beside_a_pooler_is_told_as_that_with_its_pod_its_address_and_what_ends_it() {
    let mut world = World::new(SHARED);
    for _ in 0..3 {
        world.admit();
    }
    world.sizing = Some(sized(11, Reason::Demand));
    world.settle();
    let AgentAnswer::Report(report) = &mut world.pods[1].answer else { panic!("it was asked") };
    let report = Arc::make_mut(report);
    report.message = "1 socket of another process listens on 127.0.0.1:5432 too".to_owned();
    report.foreign_listeners = Some(ForeignListeners { address: "127.0.0.1:5432".to_owned(), sockets: 1 });
    let conditions = world.plan().report.conditions;
    assert_eq!((conditions[0].status, conditions[0].reason), (ConditionStatus::False, reasons::PORT_SHARED));
    let proven = conditions.iter().find(|condition| condition.type_ == "Proven").expect("the condition");
    for words in
        ["in 1 of 3 pods", "in shop-1 with a socket on 127.0.0.1:5432", "delete pod shop-1", "spec.client.port"]
    {
        assert!(proven.message.contains(words), "{words}: {}", proven.message);
    }
}

#[test]
fn pods_that_the_api_server_refuses_are_told_in_its_words_and_with_what_to_set() {
    let world = World::new(SHARED);
    let told = |message: &str| {
        let refused = PodsRefused { owner: "deployment/shop".to_owned(), message: message.to_owned() };
        let plan = world.plan_that(
            |observed| observed.uninjected = Some(Uninjected { refused: Some(refused), ..Uninjected::default() }),
            None,
        );
        let conditions = plan.report.conditions;
        assert_eq!((conditions[0].status, conditions[0].reason), (ConditionStatus::False, reasons::PODS_REFUSED));
        conditions.into_iter().find(|condition| condition.type_ == "Injected").expect("the condition").message
    };
    let quota = "pods \"shop-x\" is forbidden: failed quota: q: must specify limits.cpu for: sluice,sluice-bin";
    let message = told(quota);
    assert!(message.contains("deployment/shop") && message.contains(quota), "{message}");
    assert!(message.contains("spec.sidecar.resources of the pool or its class"), "{message}");
    let message = told("admission webhook \"other.example\" denied the request: no");
    assert!(message.contains("kubectl -n ns describe deployment/shop"), "{message}");
}

#[test]
fn a_database_that_takes_no_writes_or_answers_nobody_is_told_first_and_one_that_nobody_could_ask_is_not() {
    let mut world = World::new(SHARED);
    for _ in 0..3 {
        world.admit();
    }
    world.sizing = Some(sized(11, Reason::Demand));
    world.settle();
    let say = |world: &mut World, pod: usize, state: UpstreamState, silent: Option<bool>, message: &str| {
        let AgentAnswer::Report(report) = &mut world.pods[pod].answer else { panic!("it was asked") };
        let report = Arc::make_mut(report);
        report.upstream = Some(UpstreamSeen { state, message: message.to_owned(), silent });
    };
    // what is told now, and was not told before
    let told = |world: &mut World| {
        let plan = world.plan();
        let of =
            |type_: &str| plan.report.conditions.iter().find(|condition| condition.type_ == type_).cloned().unwrap();
        let (ready, upstream) = (of("Ready"), of("UpstreamHealthy"));
        let events: Vec<_> = plan.events.iter().filter(|event| event.action == "UpstreamHealthy").cloned().collect();
        let events: Vec<_> = events.into_iter().map(|event| (event.kind, event.reason)).collect();
        world.status.conditions = merge(&[], plan.report.conditions, None, k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        (ready, upstream, events)
    };
    let (ready, upstream, events) = told(&mut world);
    assert_eq!((ready.reason, upstream.reason, events), (reasons::IN_FORCE, reasons::NOT_OBSERVED, Vec::new()));

    say(&mut world, 0, UpstreamState::Unknown, Some(false), "no server connection was free for that");
    let (ready, upstream, events) = told(&mut world);
    assert_eq!((ready.reason, upstream.reason, events), (reasons::IN_FORCE, reasons::NOT_OBSERVED, Vec::new()));
    assert!(upstream.message.contains("on 1 pods, shop-0") && upstream.message.contains("was free"), "{upstream:?}");

    say(&mut world, 1, UpstreamState::Unknown, Some(true), "no answer within 31 s");
    let (ready, upstream, events) = told(&mut world);
    assert_eq!([ready.reason, upstream.reason], [reasons::UPSTREAM_SILENT; 2]);
    assert_eq!((ready.status, upstream.status), (ConditionStatus::False, ConditionStatus::Unknown));
    assert!(
        upstream.message.contains("on 1 of 1 pods, shop-1") && upstream.message.contains("no answer"),
        "{upstream:?}"
    );
    assert_eq!(events, [(EventKind::Warning, "UpstreamSilent".to_owned())]);
    assert!(told(&mut world).2.is_empty(), "once");

    // an agent of an earlier version does not say whether it could ask
    say(&mut world, 0, UpstreamState::Unknown, None, "no answer within 31 s");
    assert!(told(&mut world).1.message.contains("on 2 of 2 pods"));

    say(&mut world, 0, UpstreamState::Primary, Some(false), "");
    let (ready, upstream, events) = told(&mut world);
    assert_eq!((ready.reason, upstream.reason), (reasons::IN_FORCE, reasons::TAKES_WRITES));
    assert!(upstream.message.contains("on 1, shop-1 among them: no answer"), "{}", upstream.message);
    assert_eq!(events, [(EventKind::Normal, "TakesWrites".to_owned())]);

    let standby = "the database takes no writes: it is in recovery";
    say(&mut world, 2, UpstreamState::ReadOnly, Some(false), standby);
    let (ready, upstream, events) = told(&mut world);
    assert_eq!([ready.reason, upstream.reason], [reasons::UPSTREAM_READ_ONLY; 2]);
    assert_eq!([ready.status, upstream.status], [ConditionStatus::False; 2]);
    assert!(upstream.message.contains("1 of 3 pods, shop-2 among them") && upstream.message.contains("in recovery"));
    assert_eq!(events, [(EventKind::Warning, "UpstreamReadOnly".to_owned())]);
}

/// What the breakers of the first pods say.
fn circuits(world: &mut World, states: &[CircuitState], since_seconds: u64) {
    for (pod, state) in world.pods.iter_mut().zip(states) {
        let AgentAnswer::Report(report) = &mut pod.answer else { panic!("it was asked") };
        let why = if *state == CircuitState::Closed { "" } else { "10.0.0.7:5432: Connection refused" };
        let circuit = CircuitReport { state: *state, since_seconds, why: why.to_owned() };
        Arc::make_mut(report).circuit = Some(circuit);
    }
}

#[test]
fn a_database_that_is_away_is_told_once_with_how_many_pods_find_it_so_and_is_over_when_they_do_not() {
    use CircuitState::{Closed, HalfOpen, Holding, Open};
    let mut world = World::new(SHARED);
    for _ in 0..3 {
        world.admit();
    }
    world.sizing = Some(sized(11, Reason::Demand));
    world.settle();
    let told = |world: &mut World, states: [CircuitState; 3]| {
        circuits(world, &states, 7);
        let plan = world.plan();
        let (_, reason, message) = condition(&plan, "UpstreamHealthy");
        let ready = condition(&plan, "Ready").1;
        let events: Vec<_> = plan.events.iter().filter(|event| event.action == "UpstreamHealthy").cloned().collect();
        world.status.conditions = merge(&[], plan.report.conditions, None, k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        (ready, reason, message, events.len())
    };
    assert_eq!(told(&mut world, [Closed; 3]).0, reasons::IN_FORCE);
    assert_eq!(told(&mut world, [Holding; 3]).0, reasons::IN_FORCE, "it may be a switchover");
    let (ready, reason, message, events) = told(&mut world, [Open, Open, Closed]);
    assert_eq!(([ready, reason], events), ([reasons::CIRCUIT_OPEN; 2], 1));
    for words in ["on 2 of 3 pods, shop-0 among them", "Connection refused", "sizes and rollouts stand still"] {
        assert!(message.contains(words), "{words}: {message}");
    }
    assert_eq!(told(&mut world, [Open, Open, Closed]).3, 0, "once");
    let (_, reason, message, _) = told(&mut world, [HalfOpen, Closed, Closed]);
    assert!(reason == reasons::CIRCUIT_OPEN && message.contains("the other pods follow their load"), "{message}");
    let (ready, _, _, events) = told(&mut world, [Closed; 3]);
    assert_eq!((ready, events), (reasons::IN_FORCE, 0), "nobody was asked whether it takes writes, which is no event");
}

#[test]
fn pods_without_any_connection_are_held_against_the_pool_and_a_bound_a_leak_a_pause_and_recommend_are_not() {
    let spec = |more: &str| format!("  scaling: {{minAllowed: 1, maxAllowed: 2{more}}}\n");
    let mut world = World::new(&spec(""));
    for _ in 0..3 {
        world.admit();
    }
    world.sizing = Some(sized(2, Reason::Demand));
    world.settle();
    let ready = |world: &World| {
        let ready = world.plan().report.conditions[0].clone();
        (ready.status, ready.reason)
    };
    assert_eq!(ready(&world), (ConditionStatus::False, reasons::TOO_MANY_PODS));
    let in_force = (ConditionStatus::True, reasons::IN_FORCE);
    world.pods.pop();
    world.settle();
    assert_eq!(ready(&world), in_force);

    let sizing = world.sizing.as_mut().expect("it was sized");
    sizing.load.as_mut().expect("it is known").leaked = Some(2);
    let (reason, message) = (Reason::MaxSize, "maxAllowed is 2".to_owned());
    sizing.decision.limits = vec![crate::decide::guard::Limit { size: 2, reason, message }];
    let conditions = world.plan().report.conditions;
    for (type_, reason) in [("ScalingLimited", "MaxSize"), (LEAK_DETECTED, reasons::HELD_WITHOUT_WORK)] {
        let told = conditions.iter().find(|condition| condition.type_ == type_).expect("always told");
        assert_eq!((told.status, told.reason), (ConditionStatus::True, reason));
    }
    assert_eq!(ready(&world), in_force);
    world.change(&format!("{}  paused: true\n", spec("")));
    assert_eq!(ready(&world), in_force);
    world.change(&format!("{}  mode: Recommend\n", spec(", fixedLimitPerPod: 1")));
    world.settle();
    assert_eq!(ready(&world), in_force);
}

#[test]
fn the_guide_says_what_ready_sums_up_in_its_order_what_it_leaves_out_and_what_makes_no_event() {
    let guide = include_str!("../../../docs/operations.md");
    let paragraph = |begin: &str| guide.split("\n\n").find(|text| text.starts_with(begin)).expect("it is in the guide");
    let quoted = |words: &[&str]| words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>();
    let (of_ready, of_events) = (paragraph("`Ready` carries"), paragraph("Events: "));
    let order = quoted(&conditions::SUMMED_UP).join(", ");
    assert!(of_ready.contains(&order), "{order}: {of_ready}");
    for reason in quoted(&conditions::CALM) {
        assert!(of_ready.contains(&reason), "{reason}: {of_ready}");
    }
    for reason in quoted(&report::WITHOUT_EVENT) {
        assert!(of_events.contains(&reason), "{reason}: {of_events}");
    }
}

#[test]
fn a_reconnect_goes_a_few_pods_at_a_time_and_its_end_is_told_once() {
    const AT: &str = "2026-11-28T12:00:00Z";
    let mut world = World::new(SHARED);
    for _ in 0..3 {
        world.admit();
    }
    world.sizing = Some(sized(11, Reason::Demand));
    world.settle();
    let condition = |plan: &Plan| plan.report.conditions.iter().find(|told| told.type_ == RECONNECTED).cloned();
    assert_eq!(condition(&world.plan()), None, "nobody asked for it");
    world.now += 60;
    world.change(&format!("{SHARED}  pgbouncer: {{reconnectedAt: '{AT}'}}\n"));
    let plan = world.plan();
    let told = condition(&plan).unwrap();
    assert_eq!((told.status, told.reason), (ConditionStatus::False, reasons::RECONNECTING));
    assert!(told.message.contains("0 of 3 pods"), "{}", told.message);
    assert_eq!(plan.patches.iter().filter(|patch| patch.revision.is_some()).count(), 1, "the next after the first");
    world.settle();
    let told = condition(&world.plan()).unwrap();
    assert_eq!(told.reason, reasons::AGENT_OUTDATED, "agents that run it and say nothing of it: {}", told.message);
    let say = |world: &mut World, remaining: [Option<u32>; 3]| {
        for (pod, remaining) in world.pods.iter_mut().zip(remaining) {
            let AgentAnswer::Report(report) = &mut pod.answer else { panic!("it was asked") };
            let report = Arc::make_mut(report);
            report.reconnected = Some(Reconnected { at: AT.to_owned(), remaining });
        }
        world.plan()
    };
    assert_eq!(condition(&say(&mut world, [Some(0), None, Some(0)])).unwrap().reason, reasons::RECONNECTING);
    let plan = say(&mut world, [Some(0), Some(2), Some(1)]);
    let told = condition(&plan).unwrap();
    assert_eq!((told.status, told.reason), (ConditionStatus::False, reasons::AWAITING_TRANSACTIONS));
    assert!(told.message.contains("but 3"), "{}", told.message);
    let of = |plan: &Plan| plan.events.iter().filter(|event| event.reason == reasons::ALL_RECONNECTED).count();
    assert_eq!(of(&plan), 0);
    let plan = say(&mut world, [Some(0); 3]);
    assert_eq!(condition(&plan).unwrap().reason, reasons::ALL_RECONNECTED);
    assert_eq!(of(&plan), 1);
    world.status.conditions = merge(&[], plan.report.conditions, None, k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(of(&world.plan()), 0, "once");

    // whoever comes later has no older connection, and a pod that leaves takes its own along
    world.now += 60;
    world.admit();
    let pending = world.admit();
    (pending.sidecar, pending.phase) = (SidecarSeen::NotRunning, PodPhase::Unscheduled);
    world.pods[0].phase = PodPhase::Terminating;
    let plan = world.plan();
    let told = condition(&plan).unwrap();
    assert_eq!((told.status, told.reason, of(&plan)), (ConditionStatus::True, reasons::ALL_RECONNECTED, 0));
    assert!(told.message.contains("connection of 2 pods"), "{}", told.message);
    let AgentAnswer::Report(first) = world.pods[1].answer.clone() else { panic!("it was asked") };
    world.pods[3].answer = AgentAnswer::Report(first);
    let told = condition(&world.plan()).unwrap();
    assert!(told.message.contains("connection of 3 pods"), "it counts once it says so: {}", told.message);
    world.pods[1].answer = AgentAnswer::NotAsked;
    let told = condition(&world.plan()).unwrap();
    assert_eq!(told.reason, reasons::RECONNECTING, "of an old one it is not known yet: {}", told.message);
}

#[test]
fn no_condition_has_a_hole_in_its_words() {
    let mut world = World::new(&format!("{SHARED}  pgbouncer: {{reconnectedAt: '2025-11-21T04:00:00Z'}}\n"));
    world.admit();
    let check = |world: &World| {
        for told in world.plan().report.conditions {
            assert!(!told.message.contains("  "), "{}: {:?}", told.type_, told.message);
        }
    };
    check(&world);
    world.settle();
    check(&world);
    for remaining in [None, Some(2), Some(0)] {
        let AgentAnswer::Report(report) = &mut world.pods[0].answer else { panic!("it was asked") };
        let report = Arc::make_mut(report);
        report.reconnected = Some(Reconnected { at: "2025-11-21T04:00:00Z".to_owned(), remaining });
        check(&world);
    }
}

#[test]
fn what_was_renewed_for_a_later_time_is_not_told_as_renewed_for_this_one() {
    const EARLIER: &str = "2025-11-21T11:45:00Z";
    const LATER: &str = "2025-11-21T12:30:00Z";
    let asks = |at: &str| format!("{SHARED}  pgbouncer: {{reconnectedAt: '{at}'}}\n");
    let mut world = World::new(&asks(LATER));
    for _ in 0..2 {
        world.admit();
    }
    world.settle();
    let say = |world: &mut World, at: [&str; 2]| {
        for (pod, at) in world.pods.iter_mut().zip(at) {
            let AgentAnswer::Report(report) = &mut pod.answer else { panic!("it was asked") };
            let report = Arc::make_mut(report);
            report.reconnected = Some(Reconnected { at: at.to_owned(), remaining: Some(0) });
        }
        world.plan().report.conditions.into_iter().find(|told| told.type_ == RECONNECTED).unwrap()
    };
    let told = say(&mut world, [LATER; 2]);
    assert_eq!((told.status, told.reason), (ConditionStatus::True, reasons::ALL_RECONNECTED));
    assert!(told.message.starts_with("pgbouncer.reconnectedAt lies ahead of now"), "{}", told.message);
    assert!(told.message.ends_with(LATER), "by which its event is told once: {}", told.message);
    world.now += 24 * 3600;
    assert!(say(&mut world, [LATER; 2]).message.starts_with("no server connection of 2 pods"));

    world.change(&asks(EARLIER));
    world.settle();
    let told = say(&mut world, [EARLIER, LATER]);
    assert_eq!((told.status, told.reason), (ConditionStatus::False, reasons::NOT_LATER));
    for words in ["1 of 2 pods", EARLIER, LATER] {
        assert!(told.message.contains(words), "{}", told.message);
    }
    assert_eq!(say(&mut world, [EARLIER; 2]).reason, reasons::ALL_RECONNECTED);
}

#[test]
fn a_database_that_refuses_more_is_told_the_target_stays_at_what_it_lets_in_and_a_pod_without_any_gets_its_floor() {
    let mut world = World::new("  scaling: {minAllowed: 6, maxAllowed: 20}\n");
    for _ in 0..2 {
        world.admit();
    }
    world.sizing = Some(sized(20, Reason::WaitingClients));
    world.settle();
    let refuse = |world: &mut World, pod: usize, refused_beyond: u32, at_most: u32| {
        let AgentAnswer::Report(report) = &mut world.pods[pod].answer else { panic!("it was asked") };
        let report = Arc::make_mut(report);
        report.held = Some(Held { held: refused_beyond, ..Held::default() });
        let words = "too many connections for role \"shop\"".to_owned();
        report.server_full = Some(ServerFull { refused_beyond, at_most, words });
    };
    refuse(&mut world, 0, 3, 4);
    let AgentAnswer::Report(other) = &mut world.pods[1].answer else { panic!("it was asked") };
    Arc::make_mut(other).held = Some(Held { held: 1, ..Held::default() });
    let plan = world.plan();
    let of = |plan: &Plan, type_: &str| plan.report.conditions.iter().find(|it| it.type_ == type_).cloned().unwrap();
    let (ready, upstream) = (of(&plan, "Ready"), of(&plan, "UpstreamHealthy"));
    assert_eq!((ready.reason, upstream.reason), ("TooManyServerConnections", "TooManyServerConnections"));
    assert!(
        upstream.message.contains("1 of 2 pods, shop-0") && upstream.message.contains("beyond the 3 "),
        "{}",
        upstream.message
    );
    assert!(plan.events.iter().any(|event| event.reason == "TooManyServerConnections"));
    let shares = |plan: &Plan| plan.patches.iter().filter(|patch| patch.makes_room()).count();
    assert_eq!(shares(&plan), 0, "each has some: nothing is taken from anybody");

    // the other gets nothing of it
    refuse(&mut world, 1, 0, 1);
    let plan = world.plan();
    assert!(shares(&plan) > 0, "what one holds is divided: {:?}", plan.patches);

    // what agents said whose nodes are gone does not hold the others for ever
    for (pod, seconds, is_told) in [(0, 30, true), (0, 600, true), (1, 600, false)] {
        let last = world.pods[pod].answer.report().cloned().map(Arc::new);
        let since = world.now - seconds;
        world.pods[pod].answer = AgentAnswer::Unreachable { since, error: "no route to host".to_owned(), last };
        let plan = world.plan();
        assert_eq!(of(&plan, "UpstreamHealthy").reason == "TooManyServerConnections", is_told, "{pod}, {seconds} s");
        assert_eq!(shares(&plan) > 0, is_told, "{pod}, {seconds} s: {:?}", plan.patches);
    }
    let mut beyond = Some(0);
    world.plan_that(|observed| beyond = beyond_of(observed), None);
    assert_eq!(beyond, None, "the target is what the load asks for");
}

/// What the database lets in of the pool.
fn beyond_of(observed: &Observed) -> Option<u32> {
    refused_beyond(observed, observed.effective.expect("accepted"), "shop")
}

#[test]
fn sessions_are_no_part_of_what_a_database_that_refuses_more_lets_the_pool_open() {
    let mut world = World::new(
        "  scaling: {minAllowed: 6, maxAllowed: 30, floorPerPod: 4}\n  pgbouncer: {sessionAlias: {database: shop_session, connections: 2}}\n",
    );
    for _ in 0..3 {
        world.admit();
    }
    world.settle();
    let words = "too many connections for role \"shop\"".to_owned();
    for (pod, held, server_full) in [(0, 3, Some(ServerFull { refused_beyond: 3, at_most: 3, words })), (1, 7, None)] {
        let AgentAnswer::Report(report) = &mut world.pods[pod].answer else { panic!("it was asked") };
        let report = Arc::make_mut(report);
        (report.held, report.server_full) = (Some(Held { held, ..Held::default() }), server_full);
        let database = "shop_session".to_owned();
        let of_sessions = if pod == 1 { 2 } else { 0 };
        report.session_alias =
            Some(SessionAliasReport { database, connections: 2, held: of_sessions, clients: 2, paused: false });
    }
    let silent = world.pods.pop().expect("the third");
    let mut beyond = None;
    world.plan_that(|observed| beyond = beyond_of(observed), None);
    assert_eq!(beyond, Some(8), "3 and 5: the 2 of sessions come on top of each share");

    // of one that has not answered its share counts, less what of it is for sessions
    let share = silent.grant.last_known().expect("granted").pools["shop"].share;
    world.pods.push(PodSeen { answer: AgentAnswer::NotAsked, ..silent });
    world.plan_that(|observed| beyond = beyond_of(observed), None);
    assert_eq!(beyond, Some(8 + share - 2));
}

#[test]
fn where_limits_are_shares_a_pod_that_is_refused_more_keeps_what_it_has_and_can_try_one_more() {
    let spec = "  scaling: {minAllowed: 6, maxAllowed: 20, algorithm: TargetUtilization, localReaction: Disabled}\n";
    let mut world = World::new(spec);
    for _ in 0..2 {
        world.admit();
    }
    world.sizing = Some(sized(20, Reason::WaitingClients));
    world.settle();
    assert_eq!(world.shares(), [10, 10]);
    // the first wants all that it may have, and the database has room for twelve
    let settle = |world: &mut World, at_most: u32, holds: [u32; 2]| {
        for _ in 0..20 {
            for (pod, holds) in holds.into_iter().enumerate() {
                world.obey(pod);
                let AgentAnswer::Report(report) = &mut world.pods[pod].answer else { panic!("it was asked") };
                let report = Arc::make_mut(report);
                report.held = Some(Held { held: holds.min(report.share), ..Held::default() });
                let words = "too many connections for role \"shop\"".to_owned();
                report.server_full = (pod == 0).then_some(ServerFull { refused_beyond: 8, at_most, words });
            }
            let plan = world.plan();
            if plan.patches.is_empty() {
                return world.shares();
            }
            world.carry_out(&plan, |_| true);
        }
        panic!("it does not settle: {:?}", world.shares());
    };
    assert_eq!(settle(&mut world, 8, [8, 4]), [8, 4]);
    assert_eq!(settle(&mut world, 9, [8, 4]), [9, 4], "one more is tried");
    assert_eq!(settle(&mut world, 8, [8, 4]), [8, 4], "and was refused");
    assert_eq!(settle(&mut world, 9, [1, 4]), [7, 6], "what it no longer needs is divided as ever");
}

#[test]
fn a_pod_that_waits_for_a_secret_is_told_after_half_a_minute_with_what_its_sidecar_needs() {
    let mut world = World::new("  scaling: {maxAllowed: 20}\n");
    world.admit();
    world.settle();
    let since = |world: &mut World, seconds: i64| {
        world.pods[0].sidecar = SidecarSeen::NotStartable { since: world.now - seconds };
        world.pods[0].answer = AgentAnswer::NotAsked;
        let plan = world.plan();
        let of = |type_: &str| plan.report.conditions.iter().find(|it| it.type_ == type_).cloned().unwrap();
        (of("Ready"), of("Proven"))
    };
    assert_eq!(since(&mut world, 29).1.reason, reasons::AWAITING_PROOF);
    let (ready, proven) = since(&mut world, 30);
    assert_eq!([ready.reason, proven.reason], [reasons::FAILED_MOUNT; 2]);
    let says = |words: &str| assert!(proven.message.contains(words), "{}", proven.message);
    says("shop-db with the keys username and password");
    says("describe pod shop-0");
}

#[test]
fn what_poolers_log_is_told_by_its_class_and_what_single_clients_get_wrong_is_not_the_pools_fault() {
    let mut world = World::new(SHARED);
    world.admit();
    world.sizing = Some(sized(11, Reason::Demand));
    world.settle();
    let say = |world: &mut World, reason: PoolerError, words: &str| {
        let AgentAnswer::Report(report) = &mut world.pods[0].answer else { panic!("it was asked") };
        let report = Arc::make_mut(report);
        report.troubles = vec![TroubleSeen { reason, lines: 3, words: words.to_owned() }];
    };
    for reason in PoolerError::ALL {
        say(&mut world, reason, "what was said");
        let plan = world.plan();
        let of = |type_: &str| plan.report.conditions.iter().find(|it| it.type_ == type_).cloned().unwrap();
        let (ready, upstream, clients) = (of("Ready"), of("UpstreamHealthy"), of("ClientsAccepted"));
        let name = reason.as_str();
        let forgiven = matches!(reason, PoolerError::ClientLoginRefused | PoolerError::ClientTlsFailed);
        match reason.between() {
            Between::PoolerAndDatabase => assert_eq!([ready.reason, upstream.reason], [name, name]),
            Between::ClientsAndPooler => {
                assert_eq!((clients.reason, ready.reason == name), (name, !forgiven));
                assert!(plan.events.iter().any(|event| event.reason == name && event.note.contains("shop-0")));
            }
            Between::Nobody => assert_eq!([ready.reason, clients.reason], [reasons::IN_FORCE, reasons::NONE_REFUSED]),
        }
    }
}

#[test]
fn a_revision_is_not_proven_by_an_agent_that_has_never_heard_of_a_setting_in_it() {
    let mut world = World::new(SHARED);
    world.admit();
    world.sizing = Some(sized(11, Reason::Demand));
    world.effective.settings.session_alias = Some(SessionAlias { database: "shop_session".to_owned(), connections: 1 });
    world.settle();
    let mut told_by = |understands: u32| {
        let AgentAnswer::Report(report) = &mut world.pods[0].answer else { panic!("it was asked") };
        Arc::make_mut(report).understands = understands;
        let plan = world.plan();
        let proven = plan.report.conditions.iter().find(|it| it.type_ == PROVEN).cloned().unwrap();
        (proven, plan.open.contains(&world.pods[0].uid))
    };
    let (proven, is_open) = told_by(SETTINGS_LEVEL);
    assert_eq!((proven.reason, is_open), (reasons::ALL_PROVEN, false));
    // one of before agents told, and says nothing of a session alias
    let (proven, is_open) = told_by(0);
    assert_eq!((proven.reason, proven.status, is_open), (reasons::AGENT_OUTDATED, ConditionStatus::False, true));
    for words in ["shop-0 among them", "does not know sessionAlias of the revision", "rollout restart"] {
        assert!(proven.message.contains(words), "{}", proven.message);
    }
}

#[test]
fn memory_that_holds_a_limit_back_is_held_against_the_pool_and_a_share_that_nobody_needs_or_a_whole_trust_store_is_told()
 {
    let mut world = World::new(SHARED);
    world.admit();
    world.sizing = Some(sized(11, Reason::Demand));
    world.settle();
    let mut say = |memory: Option<(u32, bool)>, whole: Option<&str>| {
        let AgentAnswer::Report(report) = &mut world.pods[0].answer else { panic!("it was asked") };
        let mib = |mib: u64| mib << 20;
        let report = Arc::make_mut(report);
        report.memory = memory.map(|(allows, holds_back)| MemoryReport {
            limit_bytes: mib(64),
            needed_bytes: mib(70),
            limit_needed_bytes: mib(96),
            allows,
            holds_back,
        });
        report.trust = Some(TrustReport { certificates: 145, ca: None, whole: whole.map(str::to_owned) });
        let plan = world.plan();
        let of = |type_: &str| plan.report.conditions.iter().find(|it| it.type_ == type_).cloned();
        (of("Ready").unwrap().reason, of("SidecarMemory"), plan.events)
    };
    assert_eq!(say(None, None).1, None, "no agent tells");
    let (ready, memory, _) = say(Some((500, false)), None);
    assert_eq!((ready, memory.unwrap().reason), (reasons::IN_FORCE, reasons::MEMORY_SUFFICES));
    let (ready, memory, _) = say(Some((500, false)), Some("PgBouncer keeps all 145 CAs"));
    let memory = memory.unwrap();
    assert_eq!(
        (ready, memory.reason, memory.status),
        (reasons::IN_FORCE, reasons::WHOLE_TRUST_STORE, ConditionStatus::True)
    );
    assert!(memory.message.contains("shop-0") && memory.message.contains("all 145 CAs"), "{}", memory.message);
    let (ready, memory, _) = say(Some((2, false)), None);
    assert_eq!((ready, memory.unwrap().reason), (reasons::IN_FORCE, reasons::SHARE_EXCEEDS_MEMORY));
    let (ready, memory, events) = say(Some((2, true)), Some("PgBouncer keeps all 145 CAs"));
    let message = memory.unwrap().message;
    assert_eq!(ready, reasons::LIMITED_BY_MEMORY);
    for words in ["64 MiB has room for 2 server connections", "limits.memory of the pool to 96Mi", "all 145 CAs"] {
        assert!(message.contains(words), "{message}");
    }
    assert!(events.iter().any(|event| event.reason == reasons::LIMITED_BY_MEMORY), "{events:?}");
}

#[test]
fn what_many_clients_get_wrong_hides_nothing_that_ready_counts_and_every_class_is_named() {
    use PoolerError::{
        ClientLoginRefused as Refused, ClientTimeout as Timeout, DnsFailed, ServerUnreachable,
        UnsupportedStartupParameter as Parameter,
    };
    let mut world = World::new(SHARED);
    for _ in 0..3 {
        world.admit();
    }
    world.sizing = Some(sized(11, Reason::Demand));
    world.settle();
    let mut say = |reasons: [&[PoolerError]; 3]| {
        for (pod, reasons) in world.pods.iter_mut().zip(reasons) {
            let AgentAnswer::Report(report) = &mut pod.answer else { panic!("it was asked") };
            let report = Arc::make_mut(report);
            let seen =
                |reason: &PoolerError| TroubleSeen { reason: *reason, lines: 3, words: reason.as_str().to_lowercase() };
            report.troubles = reasons.iter().map(seen).collect();
        }
        let conditions = world.plan().report.conditions;
        let of = |type_: &str| conditions.iter().find(|it| it.type_ == type_).cloned().unwrap();
        (of("Ready").reason, of("ClientsAccepted"), of("UpstreamHealthy"))
    };
    let (ready, clients, _) = say([&[Refused], &[Refused, Parameter], &[Refused]]);
    assert_eq!([ready, clients.reason], ["UnsupportedStartupParameter"; 2]);
    let told = clients.message;
    assert!(told.starts_with("on 1 of 3 pods, shop-1 among them, clients were refused because they ask"), "{told}");
    assert!(
        told.contains("(unsupportedstartupparameter)") && told.ends_with("; besides: ClientLoginRefused on 3"),
        "{told}"
    );

    let (ready, clients, _) = say([&[Refused, Parameter], &[Refused, Timeout], &[Timeout]]);
    assert_eq!([ready, clients.reason], ["ClientTimeout"; 2], "what most pods have");
    let told = clients.message;
    assert!(told.ends_with("; besides: UnsupportedStartupParameter on 1, ClientLoginRefused on 2"), "{told}");

    let (ready, clients, _) = say([&[Refused], &[], &[]]);
    assert_eq!((ready, clients.reason), (reasons::IN_FORCE, "ClientLoginRefused"));
    assert!(!clients.message.contains("besides"), "{}", clients.message);

    let (_, _, upstream) = say([&[DnsFailed], &[ServerUnreachable], &[ServerUnreachable]]);
    assert_eq!(upstream.reason, "ServerUnreachable");
    assert!(upstream.message.ends_with("; besides: DnsFailed on 1"), "{}", upstream.message);
}

#[test]
fn a_database_that_wants_a_client_certificate_is_told_with_the_field_and_one_that_refuses_it_with_what_it_must_hold() {
    let said = |shown: Option<&str>| {
        let mut world = World::new(SHARED);
        world.effective.pod.upstream_certificate = shown.map(|name| SecretRef { name: name.to_owned() });
        world.admit();
        world.sizing = Some(sized(11, Reason::Demand));
        world.settle();
        let AgentAnswer::Report(report) = &mut world.pods[0].answer else { panic!("it was asked") };
        let report = Arc::make_mut(report);
        let words = "connection requires a valid client certificate".to_owned();
        report.troubles = vec![TroubleSeen { reason: PoolerError::ServerWantsCertificate, lines: 3, words }];
        let conditions = world.plan().report.conditions;
        conditions.into_iter().find(|it| it.type_ == "UpstreamHealthy").unwrap().message
    };
    let asked = said(None);
    assert!(asked.contains("wants a client certificate") && asked.contains("tls.clientCertRef"), "{asked}");
    let refused = said(Some("shop-db-client"));
    assert!(refused.contains("does not accept") && refused.contains("CN must be the role"), "{refused}");
}

#[test]
fn a_leak_is_told_as_what_it_is_and_a_pinned_one_with_its_client() {
    let mut world = World::new(SHARED);
    for _ in 0..2 {
        world.admit();
    }
    world.sizing = Some(sized(11, Reason::Demand));
    world.settle();
    let told = |world: &mut World, leaked: u32, kinds: [LeakKinds; 2]| {
        world.sizing.as_mut().unwrap().load.as_mut().unwrap().leaked = Some(leaked);
        for (pod, kinds) in world.pods.iter_mut().zip(kinds) {
            let AgentAnswer::Report(report) = &mut pod.answer else { panic!("it was asked") };
            let report = Arc::make_mut(report);
            report.leaks = Some(kinds);
        }
        let conditions = world.plan().report.conditions;
        conditions.into_iter().find(|condition| condition.type_ == LEAK_DETECTED).unwrap()
    };
    let pinned = |pinned, seconds: u32, client: &str| LeakKinds {
        pinned,
        longest_pinned_seconds: Some(seconds),
        client: Some(client.to_owned()),
        ..LeakKinds::default()
    };
    let none = LeakKinds::default();
    let condition = told(&mut world, 2, [LeakKinds { in_transaction: 2, ..none.clone() }, none.clone()]);
    assert_eq!(condition.reason, reasons::IDLE_IN_TRANSACTION);
    assert!(condition.message.starts_with("2 server connections") && !condition.message.contains("pinned"));

    let condition = told(&mut world, 3, [pinned(1, 400, "127.0.0.1:4001"), pinned(2, 900, "127.0.0.1:4002")]);
    assert_eq!((condition.status, condition.reason), (ConditionStatus::True, reasons::PINNED_AFTER_COPY));
    assert!(
        condition.message.contains("3 pinned")
            && condition.message.contains("900 s by client 127.0.0.1:4002 of pod shop-1")
    );
    assert!(!condition.message.contains("in a transaction"), "{}", condition.message);

    let both = LeakKinds { in_transaction: 1, unclear: 1, ..pinned(1, 400, "127.0.0.1:4001") };
    let condition = told(&mut world, 3, [both, none.clone()]);
    assert_eq!(condition.reason, reasons::IDLE_IN_TRANSACTION);
    let says = |words: &str| assert!(condition.message.contains(words), "{}", condition.message);
    says("1 server connections have been held in a transaction that waits for its client");
    says("state like 'idle in transaction%' or (state = 'active' and wait_event in ('ClientRead', 'ClientWrite'))");
    says("1 pinned");
    says("1 server connections have been held");
    says("1 of them since their agents have no connection to ask the database by");

    let condition = told(&mut world, 0, [LeakKinds { freed: 4, ..none.clone() }, none]);
    assert_eq!((condition.status, condition.reason), (ConditionStatus::False, reasons::NO_LEAK));
    assert!(condition.message.contains("4 that were pinned were freed"), "{}", condition.message);
}

#[test]
fn what_no_agent_has_told_of_is_told_as_a_transaction_by_nobody_and_its_agent_is_asked_at_once() {
    let mut world = World::new(SHARED);
    for _ in 0..3 {
        world.admit();
    }
    world.sizing = Some(sized(11, Reason::Demand));
    world.settle();
    let say = |world: &mut World, leaked: u32, kinds: [Option<LeakKinds>; 2]| {
        world.sizing.as_mut().unwrap().load.as_mut().unwrap().leaked = Some(leaked);
        for (pod, kinds) in world.pods.iter_mut().zip(kinds) {
            let AgentAnswer::Report(report) = &mut pod.answer else { panic!("it was asked") };
            let report = Arc::make_mut(report);
            report.leaks = kinds;
        }
        // what an agent said that does not answer any more may be over
        let mut last = report("uid-2", 1, 1, PodGrant::default());
        last.leaks = Some(LeakKinds { in_transaction: 5, ..LeakKinds::default() });
        let (since, error) = (NOW - 20, "connection refused".to_owned());
        world.pods[2].answer = AgentAnswer::Unreachable { since, error, last: Some(Arc::new(last)) };
        world.plan()
    };
    let told = |plan: &Plan| plan.report.conditions.iter().find(|told| told.type_ == LEAK_DETECTED).cloned().unwrap();
    let asked = |plan: &Plan| ["uid-0", "uid-1"].map(|uid| plan.open.iter().any(|open| **open == *uid));

    let plan = say(&mut world, 0, [None, None]);
    assert_eq!((told(&plan).reason, asked(&plan)), (reasons::NO_LEAK, [false, false]));

    let plan = say(&mut world, 2, [None, None]);
    let condition = told(&plan);
    assert_eq!((condition.status, condition.reason), (ConditionStatus::True, reasons::HELD_WITHOUT_WORK));
    assert!(
        condition.message.contains("2 server connections have been held") && condition.message.contains("not known")
    );
    assert!(!condition.message.contains("held in a transaction"), "{}", condition.message);
    assert_eq!(asked(&plan), [true, true]);
    let of_leaks = |plan: &Plan| plan.events.iter().filter(|event| event.action == LEAK_DETECTED).count();
    assert_eq!(of_leaks(&plan), 1);

    let plan = say(&mut world, 2, [Some(LeakKinds { pinned: 1, ..LeakKinds::default() }), None]);
    let condition = told(&plan);
    assert_eq!(condition.reason, reasons::PINNED_AFTER_COPY);
    assert!(
        condition.message.contains("1 pinned") && condition.message.contains("1 server connections have been held")
    );
    assert_eq!(asked(&plan), [false, true], "who told of one is asked often as it is");

    let one = Some(LeakKinds { in_transaction: 1, ..LeakKinds::default() });
    let plan = say(&mut world, 2, [one, Some(LeakKinds { unclear: 1, ..LeakKinds::default() })]);
    assert_eq!((told(&plan).reason, asked(&plan)), (reasons::IDLE_IN_TRANSACTION, [false, false]), "all is told");

    // it is over, and Prometheus has not seen that yet
    world.status.conditions = merge(&[], plan.report.conditions, None, k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
    let plan = say(&mut world, 2, [None, None]);
    assert_eq!((told(&plan).reason, of_leaks(&plan)), (reasons::HELD_WITHOUT_WORK, 0));
}

#[test]
fn a_refused_pool_changes_nothing_and_says_why() {
    let mut world = World::new(LOCAL);
    world.admit();
    let refusal = PoolRefusal { reason: "ClassNotFound", message: "spec.classRef.name: no such class".to_owned() };
    let plan = world.plan_that(|observed| observed.effective = Err(&refusal), None);
    assert!(plan.create.is_none() && plan.patches.is_empty() && plan.prune.is_empty());
    let ready = &plan.report.conditions[0];
    assert_eq!((ready.status, ready.reason), (ConditionStatus::False, "ClassNotFound"));

    world.sizing = Some(sized(11, Reason::Demand));
    let plan = world.plan_that(|observed| observed.effective = Err(&refusal), None);
    let summary = &plan.report.summary;
    assert!(summary.contains("no such class") && !summary.contains("target"), "{summary}");
}

#[test]
fn a_pod_that_was_created_with_something_else_is_told_of_with_the_command_that_renews_it() {
    let injection = |hash: &str| -> Injection {
        let tls = ServerTls { mode: ServerTlsMode::VerifyFull, own_ca: false, own_certificate: false };
        Injection {
            v: 1,
            pool: "shop".to_owned(),
            namespace: "ns".to_owned(),
            upstream: Upstream { host: "pg".to_owned(), port: 5432, database: "shop".to_owned(), tls },
            client: ClientSide { port: 5432, max_connections: 1000, reach: Reach::Pod, tls: ClientTlsMode::Disabled },
            agent_port: 9130,
            fixed_hash: hash.to_owned(),
        }
    };
    let mut world = World::new(LOCAL);
    for hash in ["old", "new", "old"] {
        world.admit().injection = Some(Arc::new(injection(hash)));
    }
    world.pods[2].owner = Some("statefulset/other".to_owned());
    let now = injection("new");
    let told = |world: &World| {
        let plan = world.plan_that(|observed| observed.injection = Some(&now), None);
        let condition = plan.report.conditions.iter().find(|it| it.type_ == "PodsCurrent").cloned();
        (condition.expect("it is told"), plan.report.pods.current)
    };
    let (condition, current) = told(&world);
    assert_eq!((condition.status, condition.reason, current), (ConditionStatus::False, "RestartRequired", 1));
    let message = &condition.message;
    assert!(message.contains("2 of 3 pods"), "{message}");
    assert!(message.contains("kubectl -n ns rollout restart deployment/shop statefulset/other"), "{message}");
    world.pods[0].owner = Some("rollout/shop".to_owned());
    let (condition, _) = told(&world);
    let commands = "run: kubectl -n ns rollout restart statefulset/other; kubectl argo rollouts -n ns restart shop";
    assert!(condition.message.contains(commands), "{}", condition.message);
    for pod in &mut world.pods {
        pod.injection = Some(Arc::new(injection("new")));
    }
    let (condition, current) = told(&world);
    assert_eq!((condition.status, condition.reason, current), (ConditionStatus::True, "UpToDate", 3));
}

#[test]
fn the_target_is_divided_and_told_as_one_sum() {
    let mut world = World::new(SHARED);
    for _ in 0..3 {
        world.admit();
    }
    world.sizing = Some(sized(11, Reason::Demand));
    world.settle();
    assert_eq!(world.shares(), [4, 4, 3]);
    let plan = world.plan();
    assert_eq!((plan.report.share, plan.report.current_size, plan.report.pods.proven), (11, Some(11), 3));
}

#[test]
fn what_a_session_alias_has_in_each_pod_comes_on_top_of_the_target() {
    let spec = SHARED.replace("maxAllowed: 12", "maxAllowed: 20");
    let alias = "  pgbouncer: {sessionAlias: {database: shop_session, connections: 2}}\n";
    let mut world = World::new(&format!("{spec}{alias}"));
    for _ in 0..3 {
        world.admit();
    }
    world.sizing = Some(sized(11, Reason::Demand));
    world.settle();
    assert_eq!(world.shares(), [6, 6, 5]);
}

#[test]
fn a_paused_pool_keeps_what_runs_and_lets_new_pods_start() {
    let mut world = World::new(LOCAL);
    world.admit();
    world.settle();
    let before = world.shares();
    world.change(&format!("{LOCAL}  paused: true\n  health: {{periodSeconds: 3}}\n"));
    world.admit();
    world.settle();
    assert_eq!(world.shares()[0], before[0]);
    assert!(world.shares()[1] > 0, "automation is frozen, traffic is not");
    assert_eq!(world.revision_numbers()[0], 1, "the change of the settings waits");
}

#[test]
fn a_freeze_holds_as_a_pause_does_until_its_end_and_says_why_and_until_when() {
    let mut world = World::new(LOCAL);
    world.admit();
    world.settle();
    let end = k8s_openapi::jiff::Timestamp::from_second(world.now + 600).expect("a time");
    let annotations = [(FREEZE_ANNOTATION.to_owned(), format!("{end} the sale"))];
    world.change(&format!("{LOCAL}  health: {{periodSeconds: 3}}\n"));
    world.pool.metadata.annotations = Some(annotations.into());
    let plan = world.plan();
    let words = format!("frozen until {end} by the annotation sluice.dev/freeze: the sale");
    for (type_, status) in [("Paused", ConditionStatus::True), ("AbleToScale", ConditionStatus::False)] {
        let (found, reason, message) = condition(&plan, type_);
        assert_eq!((found, reason), (status, reasons::FROZEN), "{type_}");
        assert!(message.starts_with(&words), "{message}");
    }
    assert_eq!(event_notes(&plan, reasons::FROZEN).len(), 1);
    assert_eq!(plan.look_again_seconds, Some(600), "nobody has to ask for the look that ends it");
    world.status.conditions = merge(&[], plan.report.conditions, None, k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
    for _ in 0..5 {
        let plan = world.plan();
        world.carry_out(&plan, |_| true);
        world.obey(0);
        world.now += 30;
    }
    assert_eq!(world.revision_numbers(), [1], "the change of the settings waits");
    assert_eq!(event_notes(&world.plan(), reasons::FROZEN).len(), 0, "once");

    world.now = end.as_second();
    let plan = world.plan();
    assert_eq!(condition(&plan, "Paused").1, reasons::NOT_PAUSED);
    assert_eq!(event_notes(&plan, reasons::NOT_PAUSED).len(), 1);
    world.settle();
    assert_eq!(world.revision_numbers(), [2]);
}

#[test]
fn agents_that_decide_themselves_are_told_of_a_pause_and_of_its_end() {
    let mut world = World::new(LOCAL);
    world.admit();
    world.admit();
    world.settle();
    let paused = |world: &World| -> Vec<bool> {
        world.pods.iter().map(|pod| pod.grant.last_known().is_some_and(|grant| grant.pools["shop"].paused)).collect()
    };
    let before = world.shares();
    assert_eq!(paused(&world), [false, false]);
    world.change(&format!("{LOCAL}  paused: true\n"));
    world.admit();
    world.settle();
    assert_eq!(paused(&world), [true, true, true], "whoever starts meanwhile too");
    assert_eq!(world.shares()[..2], before[..2]);
    world.change(LOCAL);
    world.settle();
    assert_eq!(paused(&world), [false, false, false]);
}

#[test]
fn agents_that_only_follow_the_operator_are_written_nothing_for_a_pause() {
    let mut world = World::new(SHARED);
    world.admit();
    world.settle();
    world.change(&format!("{SHARED}  paused: true\n"));
    assert!(world.plan().patches.is_empty(), "{:?}", world.plan().patches);
}

#[test]
fn an_older_annotation_that_comes_back_counts_as_what_the_agent_still_runs_and_is_written_anew() {
    let mut world = World::new(LOCAL);
    world.admit();
    world.admit();
    world.settle();
    for pod in &mut world.pods {
        let AgentAnswer::Report(report) = &mut pod.answer else { panic!("it was asked") };
        Arc::make_mut(report).held = Some(Held::default());
    }
    let runs = world.pods[0].answer.report().map(|report| (report.seq, report.share)).expect("it was asked");
    assert!(runs.1 > 2, "{runs:?}");
    // from a backup
    let old = PodGrant { seq: 1, share: 1, granted: 1, floor: 1, least: 0, paused: false };
    let old = GrantDocument { v: 1, epoch: 0, pools: [("shop".to_owned(), old)].into() };
    world.pods[0].grant = Annotation::Read(old.clone());
    world.admit();
    for round in 0..20 {
        let plan = world.plan();
        world.carry_out(&plan, |_| true);
        let newest = world.pods[0].grant.last_known().expect("it was written").pools["shop"];
        assert!(newest.seq > runs.0, "{newest:?}: the agent would take it for an old one");
        let counted = |pod: &PodSeen| {
            let runs = pod.answer.report().map_or(0, |report| report.share);
            pod.grant.last_known().map_or(0, |grant| grant.pools["shop"].granted).max(runs)
        };
        let sum: u32 = world.pods.iter().map(counted).sum();
        assert!(sum <= 12, "round {round}: {sum} can be opened");
        for pod in 0..world.pods.len() {
            world.obey(pod);
        }
    }
    world.settle();
    // the same by what Prometheus shows, where the agent cannot be asked
    let newest = world.pods[0].grant.last_known().expect("it was written").pools["shop"];
    world.pods[0].measured = Some(shares::GrantProof { seq: newest.seq, share: newest.share, held: 0 });
    world.pods[0].answer = AgentAnswer::NotAsked;
    world.pods[0].grant = Annotation::Read(old);
    let plan = world.plan();
    world.carry_out(&plan, |_| true);
    let of_others =
        world.pods[1..].iter().map(|pod| pod.grant.last_known().map_or(0, |grant| grant.pools["shop"].granted));
    let written = world.pods[0].grant.last_known().map_or(0, |grant| grant.pools["shop"].granted);
    assert!(of_others.sum::<u32>() + written.max(newest.share) <= 12, "{:?}", plan.patches);
}

#[test]
fn what_prometheus_shows_of_a_number_that_was_never_written_proves_nothing() {
    let mut world = World::new(LOCAL);
    world.admit();
    world.admit();
    world.settle();
    // its share shrinks, and it cannot be asked; the figures under its name are of the pod before it
    let grant = PodGrant { seq: 3, share: 2, granted: 9, floor: 1, least: 0, paused: false };
    let document = GrantDocument { v: 1, epoch: 1, pools: [("shop".to_owned(), grant)].into() };
    world.pods[0].grant = Annotation::Read(document);
    world.pods[0].answer = AgentAnswer::NotAsked;
    world.pods[0].measured = Some(shares::GrantProof { seq: 40, share: 2, held: 0 });
    let plan = world.plan();
    let settles = plan.patches.iter().find(|patch| patch.name == "shop-0").and_then(|patch| patch.grant.clone());
    let granted = settles.map_or(grant.granted, |grant| grant.pools["shop"].granted);
    assert_eq!(granted, 9, "{:?}", plan.patches);
    world.pods[0].measured = Some(shares::GrantProof { seq: 3, share: 2, held: 0 });
    let settles = |patch: &PodPatch| patch.name == "shop-0" && patch.granted.is_some_and(|granted| granted < 9);
    assert!(world.plan().patches.iter().any(settles), "its own does");
}

#[test]
fn settings_that_cannot_be_rendered_never_reach_a_pod() {
    let mut world = World::new(SHARED);
    world.admit();
    world.settle();
    world.change(&format!("{SHARED}  health: {{periodSeconds: 3}}\n"));
    let plan = world.plan_that(|_| {}, Some("PgBouncer cannot be given these settings"));
    assert!(plan.create.is_none() && plan.patches.is_empty());
    let accepted = plan.report.conditions.iter().find(|condition| condition.type_ == "Accepted").expect("Accepted");
    assert_eq!(accepted.reason, reasons::CANNOT_RENDER);
}

#[test]
fn a_proof_by_login_alone_is_told() {
    let mut world = World::new(SHARED);
    world.admit();
    world.admit();
    world.settle();
    let proven = |world: &World| {
        let conditions = world.plan().report.conditions;
        conditions.into_iter().find(|condition| condition.type_ == PROVEN).expect("always told")
    };
    assert_eq!(proven(&world).reason, reasons::ALL_PROVEN);
    if let AgentAnswer::Report(report) = &mut world.pods[0].answer {
        let report = Arc::make_mut(report);
        report.proof = Some(ProofMode::ConnectOnly);
    }
    let told = proven(&world);
    assert_eq!((told.status, told.reason), (ConditionStatus::True, reasons::CONNECT_ONLY));
    assert!(told.message.contains("in 1 of them") && told.message.contains("validationQuery"), "{}", told.message);
}

#[test]
fn a_change_of_the_settings_goes_to_one_pod_first_then_one_at_a_time_and_new_pods_get_the_proven_one() {
    let mut world = World::new(SHARED);
    for _ in 0..3 {
        world.admit();
    }
    world.settle();
    assert_eq!(world.revision_numbers(), [1, 1, 1]);
    world.change(&format!("{SHARED}  health: {{periodSeconds: 3}}\n"));
    for told in 1..=3 {
        let plan = world.plan();
        assert_eq!(plan.report.revision.as_ref().map(|known| known.stable), Some(1), "not before all are proven");
        world.carry_out(&plan, |_| true);
        let changed = |world: &World| world.revision_numbers().iter().filter(|number| **number == 2).count();
        assert_eq!(changed(&world), told);
        world.carry_out(&world.plan(), |_| true);
        assert_eq!(changed(&world), told, "the next waits for the proof of this one");
        for pod in 0..3 {
            world.obey(pod);
        }
        if told == 1 {
            world.carry_out(&world.plan(), |_| true);
            assert_eq!(changed(&world), told, "and for the pause");
            world.now += i64::from(DEFAULT_PAUSE_SECONDS);
        }
    }
    let revision = world.plan().report.revision.expect("told");
    assert_eq!((revision.stable, revision.updated), (2, 2));
    let hash = settings_hash(&world.effective.settings);
    assert_eq!((revision.stable_hash, revision.updated_hash), (Some(hash.clone()), Some(hash)));
}

#[test]
fn a_revision_that_waits_for_its_promotion_is_told_as_paused_and_never_as_stuck() {
    let by_hand = |change: &str, promote: bool| {
        format!(
            "{SHARED}  pgbouncer: {{parameters: {{{change}}}}}\n  rollout: {{progressDeadlineSeconds: 30, blueGreen: {{autoPromotionEnabled: {promote}}}}}\n"
        )
    };
    let mut world = World::new(&by_hand("", false));
    world.admit();
    world.admit();
    world.settle();
    world.change(&by_hand("pkt_buf: '8192'", false));
    world.carry_out(&world.plan(), |_| true);
    let first = world.revision_numbers().iter().position(|number| *number == 2).expect("one pod gets it");
    let other = OtherSlot { role: OtherRole::Green, revision: Some(2), clients: Some(0), awaiting_promotion: true };
    if let AgentAnswer::Report(report) = &mut world.pods[first].answer {
        let report = Arc::make_mut(report);
        (report.wanted_revision, report.other) = (Some(2), Some(other));
    }
    let told = |world: &World, type_: &str| {
        let conditions = world.plan().report.conditions;
        conditions.into_iter().find(|condition| condition.type_ == type_).expect("always told")
    };
    for _ in 0..3 {
        world.now += 100;
        let plan = world.plan();
        assert!(plan.patches.is_empty(), "the other pod waits");
        world.carry_out(&plan, |_| true);
        let progressing = told(&world, "Progressing");
        assert_eq!((progressing.status, progressing.reason), (ConditionStatus::Unknown, reasons::BLUE_GREEN_PAUSE));
        assert!(progressing.message.contains("1 of 2 pods"), "{}", progressing.message);
        assert_eq!(told(&world, PROVEN).reason, reasons::AWAITING_PROOF);
        assert_ne!(told(&world, "Ready").reason, reasons::BLUE_GREEN_PAUSE);
    }
    world.change(&by_hand("pkt_buf: '8192'", true));
    world.settle();
    assert_eq!(world.revision_numbers(), [3, 3]);
    assert_eq!(told(&world, "Progressing").reason, reasons::ROLLOUT_COMPLETE);
}

/// A condition of a plan: status, reason and message.
fn condition(plan: &Plan, type_: &str) -> (ConditionStatus, &'static str, String) {
    let told = plan.report.conditions.iter().find(|condition| condition.type_ == type_).expect("always told");
    (told.status, told.reason, told.message.clone())
}

fn event_notes(plan: &Plan, reason: &str) -> Vec<String> {
    plan.events.iter().filter(|event| event.reason == reason).map(|event| event.note.clone()).collect()
}

/// Three pods that run revision 1, and the wish for another that none of them has proven.
fn rolling(rollout: &str) -> World {
    let mut world = World::new(&format!("{SHARED}  rollout: {{{rollout}}}\n"));
    for _ in 0..3 {
        world.admit();
    }
    world.sizing = Some(sized(11, Reason::Demand));
    world.settle();
    world.change(&format!("{SHARED}  health: {{periodSeconds: 3}}\n  rollout: {{{rollout}}}\n"));
    world.carry_out(&world.plan(), |_| true);
    world
}

impl World {
    /// Asks something of the rollout.
    fn ask(&mut self, command: &str) {
        let annotations = self.pool.metadata.annotations.get_or_insert_default();
        annotations.insert("sluice.dev/rollout".to_owned(), command.to_owned());
    }
}

#[test]
fn a_rollout_that_comes_no_further_goes_back_by_itself_after_its_deadline_and_says_so() {
    let mut world = rolling("progressDeadlineSeconds: 30");
    world.now += 30;
    assert_eq!(condition(&world.plan(), "Progressing").1, reasons::ROLLING_OUT);
    world.now += 1;
    let plan = world.plan();
    let (status, reason, message) = condition(&plan, "Progressing");
    assert_eq!((status, reason), (ConditionStatus::False, reasons::PROGRESS_DEADLINE_EXCEEDED));
    assert!(
        message.contains("proven on 0 of 3 pods") && message.contains("have yet to be back on revision 1"),
        "{message}"
    );
    assert!(plan.remember_first && plan.rollouts_ended == [reasons::PROGRESS_DEADLINE_EXCEEDED]);
    assert_eq!(event_notes(&plan, reasons::PROGRESS_DEADLINE_EXCEEDED).len(), 1);
    world.carry_out(&plan, |_| true);
    assert_eq!(world.revision_numbers(), [1, 1, 1]);
    for pod in 0..3 {
        world.obey(pod);
    }
    let plan = world.plan();
    let (_, reason, message) = condition(&plan, "Ready");
    assert_eq!(reason, reasons::PROGRESS_DEADLINE_EXCEEDED, "what the spec says is not in force");
    assert!(
        message.contains("every pod that took it is back on revision 1") && message.contains("'retry 2 after "),
        "{message}"
    );
    assert_eq!(event_notes(&plan, reasons::ROLLBACK_COMPLETE).len(), 1);
    world.carry_out(&plan, |_| true);

    // another operator, and another day
    (world.rollout, world.now) = (None, world.now + 86_400);
    let plan = world.plan();
    assert!(plan.patches.is_empty() && plan.create.is_none(), "{:?}", plan.patches);
    let revision = plan.report.revision.expect("told");
    assert_eq!((revision.stable, revision.updated, revision.failed_hashes.len()), (1, 2, 1));
    let failure = plan.report.rollout.and_then(|rollout| rollout.failure).expect("told");
    assert_eq!((failure.revision, failure.rolled_back_at.is_some()), (2, true));
}

#[test]
fn a_rollout_that_waits_in_a_pause_says_with_which_words_it_goes_on_and_these_are_done_once() {
    let mut world =
        rolling("canary: {steps: [{setWeight: 30}, {pause: {}}, {setWeight: 60}, {pause: {duration: 1h}}]}");
    for pod in 0..3 {
        world.obey(pod);
    }
    let plan = world.plan();
    let (status, reason, message) = condition(&plan, "Progressing");
    assert_eq!((status, reason), (ConditionStatus::Unknown, reasons::ROLLOUT_PAUSED));
    let words = "annotate connectionpool shop --overwrite sluice.dev/rollout='promote 2 in step 1'";
    assert!(message.contains(words) && message.contains("1 of 3 pods, in step 1 of 4 (30 % of the pods)"), "{message}");
    assert_eq!(condition(&plan, "Paused").1, reasons::ROLLOUT_PAUSED);
    assert_eq!(condition(&plan, "Ready").0, ConditionStatus::True, "it was asked for");
    assert_eq!(event_notes(&plan, reasons::ROLLOUT_PAUSED), [message]);
    world.carry_out(&plan, |_| true);
    world.status.conditions = merge(&[], plan.report.conditions, None, k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(event_notes(&world.plan(), reasons::ROLLOUT_PAUSED).len(), 0, "once");
    let told = world.plan().report.rollout.expect("told");
    assert_eq!((told.current_step_index, told.set_weight, told.actual_weight, told.updated_pods), (Some(1), 30, 33, 1));

    world.ask("promote 2 in step 1");
    let plan = world.plan();
    assert_eq!(
        event_notes(&plan, reasons::ROLLOUT_COMMAND),
        ["promote 2: done, as sluice.dev/rollout asks: \"promote 2 in step 1\""]
    );
    world.carry_out(&plan, |_| true);
    for pod in 0..3 {
        world.obey(pod);
    }
    let plan = world.plan();
    let (_, reason, message) = condition(&plan, "Progressing");
    assert!(reason == reasons::ROLLOUT_PAUSED && message.contains("in step 3 of 4"), "{message}");
    assert!(message.contains("it goes on at 20"), "when that is: {message}");
    assert_eq!(plan.look_again_seconds, Some(3600));
    world.carry_out(&plan, |_| true);
    // the same words are the same request, for another operator too
    world.rollout = None;
    assert!(event_notes(&world.plan(), reasons::ROLLOUT_COMMAND).is_empty());
    world.now += 3600;
    world.settle();
    assert_eq!(world.revision_numbers(), [2, 2, 2]);
}

#[test]
fn a_request_that_makes_no_sense_is_told_until_another_stands_in_its_place() {
    let mut world = World::new(SHARED);
    world.admit();
    world.settle();
    world.ask("abort 1");
    let plan = world.plan();
    let (status, reason, message) = condition(&plan, "Progressing");
    assert_eq!((status, reason), (ConditionStatus::True, reasons::ROLLOUT_COMPLETE));
    assert!(message.contains("\"abort 1\" was refused: nothing is being rolled out"), "{message}");
    assert_eq!(event_notes(&plan, reasons::ROLLOUT_COMMAND_REFUSED).len(), 1);
    world.carry_out(&plan, |_| true);
    let plan = world.plan();
    assert!(event_notes(&plan, reasons::ROLLOUT_COMMAND_REFUSED).is_empty(), "once");
    let told = plan.report.rollout.expect("told");
    assert_eq!(told.last_command.as_deref(), Some("abort 1"));
    assert!(told.last_command_outcome.is_some_and(|outcome| outcome.contains("nothing is being rolled out")));
    world.pool.metadata.annotations = None;
    assert!(!condition(&world.plan(), "Progressing").2.contains("refused"));
}

#[test]
fn a_database_that_fails_everybody_is_held_against_no_revision() {
    for (state, silent) in [(UpstreamState::ReadOnly, None), (UpstreamState::Unknown, Some(true))] {
        let mut world = rolling("progressDeadlineSeconds: 30");
        let all = |world: &mut World, upstream: &Option<UpstreamSeen>| {
            for pod in &mut world.pods {
                let AgentAnswer::Report(report) = &mut pod.answer else { panic!("it was asked") };
                Arc::make_mut(report).upstream.clone_from(upstream);
            }
        };
        all(&mut world, &Some(UpstreamSeen { state, message: "it does not work".to_owned(), silent }));
        for _ in 0..3 {
            world.now += 31;
            let plan = world.plan();
            let (_, reason, message) = condition(&plan, "Progressing");
            assert!(reason == reasons::ROLLING_OUT && message.contains("see UpstreamHealthy"), "{reason}: {message}");
            assert!(plan.patches.is_empty());
            world.carry_out(&plan, |_| true);
        }
        all(&mut world, &None);
        world.now += 30;
        assert_eq!(condition(&world.plan(), "Progressing").1, reasons::ROLLING_OUT, "its time begins anew");
        world.now += 1;
        assert_eq!(condition(&world.plan(), "Progressing").1, reasons::PROGRESS_DEADLINE_EXCEEDED);
    }
}

#[test]
fn a_database_that_is_away_is_held_against_no_revision_whoever_finds_it_so() {
    use CircuitState::{Closed, Holding, Open};
    for states in [[Open, Open, Open], [Open, Closed, Closed], [Closed, Closed, Holding]] {
        let mut world = rolling("progressDeadlineSeconds: 30");
        for away_seconds in [31, 62, 93] {
            world.now += 31;
            circuits(&mut world, &states, away_seconds);
            let plan = world.plan();
            let (_, reason, message) = condition(&plan, "Progressing");
            assert!(reason == reasons::ROLLING_OUT && message.contains("CircuitOpen"), "{reason}: {message}");
            assert!(plan.patches.is_empty());
            world.carry_out(&plan, |_| true);
        }
        let outage = world.rollout.as_ref().and_then(|rollout| rollout.outage).expect("it was seen");
        assert_eq!(outage.until - outage.from, 93);
        circuits(&mut world, &[Closed; 3], 0);
        world.now += 30;
        assert_eq!(condition(&world.plan(), "Progressing").1, reasons::ROLLING_OUT, "its time begins anew");
        world.now += 1;
        assert_eq!(condition(&world.plan(), "Progressing").1, reasons::PROGRESS_DEADLINE_EXCEEDED);
    }
}

#[test]
fn some_pods_that_run_what_is_rolled_out_are_asked_often_whether_the_database_is_away() {
    let mut world = rolling("canary: {steps: [{setWeight: 40}, {pause: {}}]}");
    world.settle();
    let took = world.pods.iter().zip(world.revision_numbers()).filter(|(_, number)| *number == 2);
    let took: Vec<_> = took.map(|(pod, _)| pod.uid.clone()).collect();
    assert_eq!(took.len(), 2);
    assert_eq!(world.plan().open, took);
}

#[test]
fn a_judgement_that_rests_on_a_time_without_the_database_counts_for_nothing() {
    let mut world = rolling("analysis: {metrics: [{name: Errors}]}");
    world.carry_out(&world.plan(), |_| true);
    for pod in 0..world.pods.len() {
        world.obey(pod);
    }
    let phase = AnalysisPhase::Canary;
    let rollout = world.plan().rollout.expect("remembered");
    let revision = rollout.updated.clone().expect("rolled out");
    let begun = rollout.try_begun(phase).expect("tried");
    let judged = |outage| JudgedSeen {
        of: JudgedTry { revision: revision.clone(), phase, begun },
        outage,
        judgement: RolloutJudgement::Fail { why: "Errors".to_owned() },
        words: String::new(),
        least_seconds: None,
    };
    circuits(&mut world, &[CircuitState::Open; 3], 9);
    world.carry_out(&world.plan(), |_| true);
    circuits(&mut world, &[CircuitState::Closed; 3], 0);
    world.judged = Some(judged(None));
    let plan = world.plan();
    assert!(!plan.remember_first, "{:?}", condition(&plan, "Progressing"));
    world.judged = Some(judged(world.rollout.as_ref().and_then(|rollout| rollout.outage)));
    assert_eq!(condition(&world.plan(), "Progressing").1, reasons::ANALYSIS_FAILED, "what was measured since counts");
}

#[test]
fn a_pool_of_one_pod_is_told_to_have_no_canary() {
    let mut world = World::new(SHARED);
    world.admit();
    world.settle();
    world.change(&format!("{SHARED}  health: {{periodSeconds: 3}}\n"));
    world.carry_out(&world.plan(), |_| true);
    world.obey(0);
    let (status, reason, message) = condition(&world.plan(), "Progressing");
    assert_eq!(
        (status, reason),
        (ConditionStatus::True, reasons::ROLLING_OUT),
        "nobody has to know of a pause of ours"
    );
    assert!(message.contains("there is no canary"), "{message}");
}

#[test]
fn settings_that_were_there_before_are_the_revision_that_they_were() {
    let mut world = World::new(SHARED);
    world.admit();
    world.settle();
    let changed = format!("{SHARED}  health: {{periodSeconds: 3}}\n");
    for (spec, number) in [(changed.as_str(), 2), (SHARED, 1), (&changed, 2)] {
        world.change(spec);
        world.settle();
        assert_eq!((world.revision_numbers(), world.revisions.len()), (vec![number], world.revisions.len().min(2)));
    }
}

#[test]
fn an_undo_brings_an_earlier_revision_back_and_says_that_the_spec_says_otherwise() {
    let mut world = World::new(SHARED);
    world.admit();
    world.settle();
    world.change(&format!("{SHARED}  health: {{periodSeconds: 3}}\n"));
    world.settle();
    world.ask("undo 1");
    world.settle();
    assert_eq!(world.revision_numbers(), [1]);
    let plan = world.plan();
    let (status, reason, message) = condition(&plan, "Progressing");
    assert_eq!((status, reason), (ConditionStatus::True, reasons::ROLLOUT_UNDONE));
    assert!(message.contains("instead of revision 2") && message.contains("'retry 2'"), "{message}");
    world.ask("undo 7");
    let (_, _, message) = condition(&world.plan(), "Progressing");
    assert!(message.contains("there is no revision 7") && message.contains("there are 1, 2"), "{message}");
    world.ask("retry 2");
    world.settle();
    assert_eq!(world.revision_numbers(), [2]);
}

#[test]
fn a_revision_that_was_made_anew_by_hand_is_followed_by_nobody_and_the_pods_that_have_it_keep_it() {
    let mut world = World::new(SHARED);
    for _ in 0..2 {
        world.admit();
    }
    world.settle();
    // deleted, and created with something else under the same name and number
    world.revisions[0].settings.as_mut().expect("read").health.validation_query = "drop table orders".to_owned();
    let plan = world.plan();
    assert!(plan.patches.is_empty() && plan.create.is_none(), "{:?}", plan.create);
    let (_, _, message) = condition(&plan, "Progressing");
    assert!(message.contains("ControllerRevision shop-1 is not what was written"), "{message}");
    // its annotation was made to match: the status knows better
    let forged = settings_hash(world.revisions[0].settings.as_ref().expect("read"));
    world.revisions[0].annotated_hash = Some(forged);
    assert!(world.plan().patches.is_empty());
    // a new pod is told what the pods have
    world.admit();
    let plan = world.plan();
    let told = plan.patches.iter().find_map(|patch| patch.revision.as_ref()).expect("it is told");
    assert_eq!(told.pools["shop"].settings, world.effective.settings);
    // and another change gets a number of its own
    world.change(&format!("{SHARED}  health: {{periodSeconds: 3}}\n"));
    assert_eq!(world.plan().create.map(|new| new.number), Some(2));
}

#[test]
fn a_revision_that_was_deleted_is_kept_anew_as_long_as_a_pod_has_it() {
    let mut world = World::new(SHARED);
    world.admit();
    world.settle();
    let kept = world.revisions.clone();
    world.revisions.clear();
    let plan = world.plan();
    let create = plan.create.as_ref().expect("it is created");
    assert_eq!((create.number, create.is_restored), (1, true));
    assert!(event_notes(&plan, reasons::REVISION_CREATED)[0].contains("revision 1 is kept again"));
    let told = plan.clone().created_by(Some("argocd-controller"));
    assert!(event_notes(&told, reasons::REVISION_CREATED)[0].ends_with(", changed by argocd-controller"));
    let failed = plan.without_creation();
    assert!(failed.create.is_none() && failed.patches.is_empty());
    world.carry_out(&world.plan(), |_| true);
    assert_eq!(world.revisions[0].settings, kept[0].settings);
    // renumbered by hand: its name says what it is
    world.revisions[0].number = 5;
    let plan = world.plan();
    assert!(plan.create.is_none() && plan.patches.is_empty(), "its name is taken: {:?}", plan.create);
    assert!(condition(&plan, "Progressing").2.contains("shop-1"));
}

#[test]
fn why_there_is_a_revision_is_what_whoever_changed_the_pool_says() {
    let mut world = World::new(SHARED);
    assert_eq!(world.plan().create.expect("the first").cause, "generation 4");
    let annotations = world.pool.metadata.annotations.get_or_insert_default();
    annotations.insert("kubernetes.io/change-cause".to_owned(), "longer waits, OPS-17".to_owned());
    assert_eq!(world.plan().create.expect("the first").cause, "longer waits, OPS-17");
}

#[test]
fn the_history_is_bounded_and_keeps_what_is_in_use() {
    let mut world = World::new(SHARED);
    world.admit();
    for period in 1..30 {
        world.change(&format!(
            "{SHARED}  health: {{periodSeconds: {period}}}\n  rollout: {{revisionHistoryLimit: 4}}\n"
        ));
        world.settle();
        world.carry_out(&world.plan(), |_| true);
        assert!(world.revisions.len() <= 4, "{}", world.revisions.len());
    }
    let newest = world.revisions.iter().map(|revision| revision.number).max();
    assert_eq!(newest, Some(29));
    assert_eq!(world.revision_numbers(), [29]);
}

#[test]
fn a_class_says_how_many_pods_change_at_once_how_long_that_may_take_and_how_many_revisions_are_kept() {
    let class = "apiVersion: sluice.dev/v1alpha1\nkind: ConnectionPoolClass\nmetadata: {name: brisk}\n\
                 spec: {rollout: {canary: {maxUnavailable: 2, steps: []}, progressDeadlineSeconds: 30, revisionHistoryLimit: 4}}";
    let class = serde_yaml::from_str(class).expect("the fixture is a class");
    let change = |world: &mut World, period: u32| {
        world.change(&format!("{SHARED}  health: {{periodSeconds: {period}}}\n"));
        world.effective = effective(&world.pool.spec, Some(&class)).expect("the fixture is accepted");
    };
    let mut world = World::new(SHARED);
    for _ in 0..3 {
        world.admit();
    }
    world.settle();
    change(&mut world, 1);
    let plan = world.plan();
    assert_eq!(plan.patches.iter().filter(|patch| patch.revision.is_some()).count(), 2);
    world.carry_out(&plan, |_| true);
    world.now += 31;
    assert_eq!(condition(&world.plan(), "Progressing").1, reasons::PROGRESS_DEADLINE_EXCEEDED);
    world.settle();
    for period in 2..9 {
        change(&mut world, period);
        world.settle();
        world.carry_out(&world.plan(), |_| true);
    }
    assert!(world.revisions.len() <= 4, "{} are kept", world.revisions.len());
}

#[test]
fn a_number_that_an_earlier_pool_of_the_name_left_behind_is_not_used_again() {
    let world = World::new(SHARED);
    let plan = world.plan_that(|observed| observed.taken_numbers = &[7], None);
    assert_eq!(plan.create.map(|new| new.number), Some(8));
}

#[test]
fn settings_that_somebody_wrote_onto_a_pod_are_taken_back() {
    let mut world = World::new(SHARED);
    world.admit();
    world.settle();
    if let Annotation::Read(document) = &mut world.pods[0].revision {
        let revision = Arc::make_mut(document).pools.get_mut("shop").expect("ours");
        revision.settings.health.validation_query = "drop table orders".to_owned();
    }
    world.settle();
    let settings = &world.pods[0].revision.last_known().expect("read").pools["shop"].settings;
    assert_eq!(*settings, world.effective.settings);
}

#[test]
fn a_lease_that_counts_from_one_again_never_makes_a_grant_older() {
    let mut world = World::new(SHARED);
    world.admit();
    world.epoch = 40;
    world.settle();
    world.epoch = 1;
    world.sizing = Some(sized(9, Reason::Demand));
    world.settle(); // the agent refuses an older epoch
    assert_eq!(world.shares(), [9]);
}

#[test]
fn a_pod_with_the_largest_epoch_and_number_is_brought_back_to_its_share() {
    for (epoch, seq) in [(EPOCHS - 1, LARGEST_SEQ), (EPOCHS / 2, LARGEST_SEQ), (3, LARGEST_SEQ), (EPOCHS - 1, 1)] {
        let mut world = World::new(SHARED);
        let forged = PodGrant { seq, share: 1000, granted: 1000, floor: 0, least: 0, paused: false };
        world.admit().grant =
            Annotation::Read(GrantDocument { v: 1, epoch, pools: [("shop".to_owned(), forged)].into() });
        world.admit();
        world.settle(); // its agent takes the forged one first
        assert!(world.granted() <= 12 && world.shares().iter().all(|share| *share > 0), "{:?}", world.shares());
        assert_eq!(world.plan().report.pods.proven, 2, "after {epoch} and {seq}");
        assert_eq!(world.pods[1].grant.last_known().map(|grant| grant.epoch), Some(3), "the other pod's is the term's");
    }
}

#[test]
fn a_number_that_somebody_made_up_neither_wraps_the_next_revision_nor_becomes_the_newest() {
    let mut world = World::new(SHARED);
    world.admit();
    world.settle();
    for forged in [u64::MAX, u64::MAX - 1, 1 << 52] {
        if let Annotation::Read(document) = &mut world.pods[0].revision {
            Arc::make_mut(document).pools.get_mut("shop").expect("ours").revision = forged;
        }
        let settings = world.revisions[0].settings.clone();
        world.revisions.push(RevisionSeen {
            name: "forged".to_owned(),
            number: forged,
            created: NOW,
            settings,
            annotated_hash: None,
        });
    }
    let taken = [u64::MAX, 2];
    world.change(&format!("{SHARED}  health: {{periodSeconds: 7}}\n"));
    let plan = world.plan_that(|observed| observed.taken_numbers = &taken, None);
    assert_eq!(plan.create.as_ref().map(|new| new.number), Some(3));
    world.carry_out(&plan, |_| true);
    world.settle();
    assert_eq!(world.revision_numbers(), [3]);
}

#[test]
fn a_damaged_grant_of_a_pod_that_nobody_remembers_counts_as_everything() {
    let mut world = World::new(LOCAL);
    world.admit().grant = Annotation::Unreadable { why: "truncated".to_owned(), last: None };
    world.admit();
    let plan = world.plan();
    let other = plan.patches.iter().find(|patch| patch.name == "shop-1");
    let share = other.and_then(|patch| patch.grant.as_ref()).map_or(0, |grant| grant.pools["shop"].share);
    assert_eq!(share, 0, "nothing may be handed out on a guess");
    world.pods[0].answer = AgentAnswer::Report(Arc::new(report(
        "uid-0",
        1,
        3,
        PodGrant { seq: 5, share: 4, granted: 4, floor: 1, least: 0, paused: false },
    )));
    world.settle();
    assert!(world.shares().iter().all(|share| *share > 0) && world.granted() <= 12);
}

#[test]
fn a_decision_is_told_once() {
    let mut world = World::new(SHARED);
    world.sizing = Some(sized(11, Reason::Demand));
    let target_changes =
        |world: &World| world.plan().events.iter().filter(|event| event.reason == reasons::TARGET_CHANGED).count();
    assert_eq!(target_changes(&world), 1);
    world.status.last_decision = Some(crate::api::LastDecision {
        id: "d-7f3a01".to_owned(),
        reason: "Demand".to_owned(),
        from: 6,
        to: 11,
        message: String::new(),
        time: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH),
    });
    assert_eq!(target_changes(&world), 0);
}

#[test]
fn credentials_that_do_not_work_in_a_pod_are_a_condition_and_one_event() {
    let mut world = World::new(SHARED);
    world.admit();
    world.settle();
    let why = "what the Secret holds now is not in force: password authentication failed";
    if let AgentAnswer::Report(report) = &mut world.pods[0].answer {
        let report = Arc::make_mut(report);
        report.message = why.to_owned();
    }
    let told = |plan: &Plan| plan.events.iter().filter(|event| event.reason == reasons::NOT_APPLIED).count();
    let plan = world.plan();
    assert_eq!(told(&plan), 1);
    let proven = plan.report.conditions.iter().find(|condition| condition.type_ == PROVEN).expect("always told");
    assert_eq!((proven.reason, proven.message.as_str()), (reasons::NOT_APPLIED, format!("pod shop-0: {why}").as_str()));
    world.status.conditions =
        merge(&[], plan.report.conditions.clone(), None, k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(told(&world.plan()), 0, "it was told");
}

#[test]
fn while_a_revision_cannot_be_created_no_pod_is_told_of_it_and_all_get_their_grants() {
    let mut world = World::new(SHARED);
    world.admit();
    let failure = FailedWrite { times: 3, is_due: false, error: "no answer".to_owned() };
    let plan = world.plan_that(|observed| observed.failure = Some(&failure), None);
    assert!(plan.create.is_none());
    assert!(plan.patches.iter().all(|patch| patch.revision.is_none() && patch.grant.is_some()), "{:?}", plan.patches);
    assert_eq!(plan.patches.len(), 1);
    let able = plan.report.conditions.iter().find(|condition| condition.type_ == "AbleToScale").expect("AbleToScale");
    assert_eq!(able.reason, reasons::BACKOFF_AFTER_FAILURE);
    let due = FailedWrite { is_due: true, ..failure.clone() };
    let plan = world.plan_that(|observed| observed.failure = Some(&due), None);
    assert!(plan.create.is_some() && plan.patches.iter().all(|patch| patch.revision.is_some()));
    let failed = plan.without_creation();
    assert!(failed.create.is_none() && failed.patches.iter().all(|patch| patch.revision.is_none()));
}

#[test]
fn no_more_writes_are_made_than_are_wanted_now_and_the_most_urgent_come_first() {
    let mut world = World::new(SHARED);
    for _ in 0..5 {
        world.admit();
    }
    let all = world.plan();
    let some = world.plan_that(|observed| observed.most_writes = 2, None);
    assert_eq!((all.patches.len(), some.patches.as_slice()), (5, &all.patches[..2]));
    assert_eq!(some.open, all.open, "all are asked");
}

#[test]
fn a_pod_that_cannot_be_written_waits_alone_and_is_told_of() {
    let mut world = World::new(SHARED);
    for _ in 0..3 {
        world.admit();
    }
    world.pods[1].failure =
        Some(FailedWrite { times: 4, is_due: false, error: "admission webhook denied the request".to_owned() });
    let plan = world.plan();
    let written: Vec<&str> = plan.patches.iter().map(|patch| patch.name.as_str()).collect();
    assert_eq!(written, ["shop-0", "shop-2"], "the others get their floors");
    world.carry_out(&plan, |_| true);
    world.settle();
    let plan = world.plan();
    let able = plan.report.conditions.iter().find(|condition| condition.type_ == "AbleToScale").expect("AbleToScale");
    assert_eq!(able.reason, reasons::BACKOFF_AFTER_FAILURE);
    assert!(able.message.contains("1 of 3 pods") && able.message.contains("shop-1 failed 4 times"), "{}", able.message);
    world.pods[1].failure = Some(FailedWrite { times: 4, is_due: true, error: String::new() });
    assert_eq!(world.plan().patches.len(), 1, "it is tried again when it is time");
}

/// Something that happens between two looks.
#[derive(Clone, Copy, Debug)]
enum Happening {
    Admit,
    Begin(usize),
    End(usize),
    Obey(usize),
    Load(usize, u8),
    Damage(usize),
    NewLeader,
    /// A look of which only the writes with a bit in the mask happen.
    Look(u16),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let one = prop_oneof![
        2 => Just(Happening::Admit),
        1 => (0..8_usize).prop_map(Happening::Begin),
        1 => (0..8_usize).prop_map(Happening::End),
        6 => (0..8_usize).prop_map(Happening::Obey),
        2 => ((0..8_usize), any::<u8>()).prop_map(|(pod, load)| Happening::Load(pod, load)),
        1 => (0..8_usize).prop_map(Happening::Damage),
        1 => Just(Happening::NewLeader),
        6 => any::<u16>().prop_map(Happening::Look),
    ];
    proptest::collection::vec(one, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whichever writes happen, whenever the operator is killed, whatever becomes of the annotations: what is granted
    /// never exceeds what is allowed, and when things calm down every pod that fits is served and proven.
    #[test]
    fn the_sum_is_kept_at_every_moment_and_calm_brings_everyone_a_share(all in happenings(), local in any::<bool>()) {
        let mut world = World::new(if local { LOCAL } else { SHARED });
        for happening in all {
            world.now += 1;
            let count = world.pods.len();
            match happening {
                Happening::Admit if count < 8 => {
                    world.admit();
                }
                Happening::Begin(pod) if pod < count => world.pods[pod].phase = PodPhase::Terminating,
                Happening::End(pod) if pod < count => {
                    world.pods.remove(pod);
                }
                Happening::Obey(pod) if pod < count => world.obey(pod),
                Happening::Load(pod, load) if pod < count => {
                    let load = f64::from(load) / 16.0;
                    world.pods[pod].demand = Some(crate::decide::shares::PodDemand { mean: load, peak: load * 1.5 });
                }
                Happening::Damage(pod) if pod < count => {
                    let last = world.pods[pod].grant.last_known().cloned();
                    world.pods[pod].grant = Annotation::Unreadable { why: "truncated".to_owned(), last };
                }
                Happening::NewLeader => {
                    world.epoch += 1;
                    world.rollout = None;
                }
                Happening::Look(mask) => {
                    let plan = world.plan();
                    world.carry_out(&plan, |write| mask & (1 << (write % 16)) != 0);
                }
                _ => {}
            }
            prop_assert!(world.granted() <= 12, "{} granted of 12", world.granted());
        }
        world.settle();
        prop_assert!(world.granted() <= 12);
        for (pod, share) in world.pods.iter().zip(world.shares()) {
            prop_assert!(share > 0 || pod.phase == PodPhase::Terminating, "{} waits for nothing", pod.name);
        }
        let proven = world.plan().report.pods.proven;
        let living = world.pods.iter().filter(|pod| pod.phase != PodPhase::Terminating).count();
        prop_assert!(usize::try_from(proven).expect("small") >= living, "{proven} of {living} are proven");
    }
}

#[test]
fn limits_of_mode_recommend_that_exceed_a_named_max_allowed_together_are_told() {
    let recommend = |max: &str| format!("  mode: Recommend\n  scaling: {{fixedLimitPerPod: 10{max}}}\n");
    let limited = |spec: &str| {
        let mut world = World::new(spec);
        for _ in 0..3 {
            world.admit();
        }
        world.settle();
        assert_eq!(world.shares(), [10, 10, 10], "each has its own, whatever the sum");
        let report = world.plan().report;
        let condition =
            |type_| report.conditions.iter().find(|condition| condition.type_ == type_).expect("it is told").clone();
        let limited = condition(SCALING_LIMITED);
        (limited.status, limited.reason, limited.message)
    };
    let (status, reason, message) = limited(&recommend(", maxAllowed: 29"));
    assert_eq!((status, reason), (ConditionStatus::True, reasons::FIXED_EXCEEDS_MAX));
    assert!(message.contains("3 pods may open 30") && message.contains("maxAllowed 29"), "{message}");
    for fits in [", maxAllowed: 30", ""] {
        assert_eq!(limited(&recommend(fits)).1, reasons::WITHIN_BOUNDS, "{fits}");
    }
}

#[test]
fn queries_that_move_no_limit_are_told_where_the_pool_is_accepted() {
    let message = |local_reaction: &str| {
        let scaling = format!(
            "  scaling: {{minAllowed: 2, maxAllowed: 12, localReaction: {local_reaction}, \
             metrics: {{overrides: [{{signal: WaitingClients, query: up}}]}}}}\n"
        );
        let report = World::new(&scaling).plan().report;
        let accepted = report.conditions.iter().find(|condition| condition.type_ == ACCEPTED).expect("it is told");
        assert_eq!(accepted.reason, reasons::VALID);
        accepted.message.clone()
    };
    assert!(message("Enabled").contains("scaling.metrics.overrides"), "{}", message("Enabled"));
    assert!(!message("Disabled").contains("overrides"), "{}", message("Disabled"));
}

#[test]
fn each_pod_is_told_its_part_of_min_allowed() {
    let mut world = World::new("  scaling: {minAllowed: 6, maxAllowed: 30}\n");
    for _ in 0..3 {
        world.admit();
    }
    world.settle();
    let grants = world.pods.iter().filter_map(|pod| pod.grant.last_known()?.pools.get("shop"));
    let told: Vec<(u32, u32)> = grants.map(|grant| (grant.floor, grant.least)).collect();
    assert_eq!(told, [(1, 2), (1, 2), (1, 2)]);
}

#[test]
fn what_the_analysis_waits_for_is_told_and_what_it_finds_worse_is_taken_back_with_its_words() {
    let analysis = "analysis: {metrics: [{name: TransactionTime}]}";
    let mut world = rolling(analysis);
    world.carry_out(&world.plan(), |_| true);
    for pod in 0..world.pods.len() {
        world.obey(pod);
    }
    let (status, reason, message) = condition(&world.plan(), "Progressing");
    assert_eq!((status, reason), (ConditionStatus::True, reasons::ANALYSING));
    assert!(message.contains("against the other pods: not decided so far (nothing was measured yet)"), "{message}");
    let revision = world.plan().rollout.and_then(|rollout| rollout.updated).expect("rolled out");
    let why = "worse on shop-2: TransactionTime: x2.07".to_owned();
    let judgement = RolloutJudgement::Fail { why: why.clone() };
    let phase = AnalysisPhase::Canary;
    let held = RolloutJudgement::Inconclusive { why: "no traffic".to_owned(), is_final: false };
    let words = "TransactionTime NoTraffic".to_owned();
    let begun = world.rollout.as_ref().and_then(|rollout| rollout.try_begun(phase)).expect("tried");
    let seen = |least| JudgedSeen {
        of: JudgedTry { revision: revision.clone(), phase, begun },
        outage: None,
        judgement: held.clone(),
        words: words.clone(),
        least_seconds: Some(least),
    };
    world.judged = Some(seen(600));
    assert!(!condition(&world.plan(), "Progressing").2.contains("scraped"), "there is time enough");
    world.judged = Some(seen(1815));
    let message = condition(&world.plan(), "Progressing").2;
    assert!(message.contains("progressDeadlineSeconds to 1815 or more, or have them scraped more often"), "{message}");
    world.judged = Some(JudgedSeen { judgement, words: String::new(), ..seen(600) });
    let plan = world.plan();
    let (status, reason, message) = condition(&plan, "Progressing");
    assert_eq!((status, reason), (ConditionStatus::False, reasons::ANALYSIS_FAILED));
    assert!(message.contains(&why), "{message}");
    assert!(plan.remember_first && plan.rollouts_ended == [reasons::ANALYSIS_FAILED]);
    assert_eq!(event_notes(&plan, reasons::ANALYSIS_FAILED).len(), 1);
}

#[test]
fn a_revision_that_only_waits_is_told_with_what_it_waits_for_and_is_not_taken_back() {
    let mut world = rolling("progressDeadlineSeconds: 30");
    world.carry_out(&world.plan(), |_| true);
    let told = world.revision_numbers().iter().position(|number| *number == 2).expect("one pod is told");
    let waits = |world: &mut World, what| {
        let AgentAnswer::Report(report) = &mut world.pods[told].answer else { panic!("it answers") };
        let report = Arc::make_mut(report);
        (report.wanted_revision, report.revision_waits) = (Some(2), Some(what));
    };
    waits(&mut world, RevisionWait::Drain);
    for _ in 0..3 {
        world.now += 100;
        let plan = world.plan();
        let (status, reason, message) = condition(&plan, "Progressing");
        assert_eq!((status, reason), (ConditionStatus::True, reasons::ROLLING_OUT));
        assert!(message.contains("on 1 it waits until clients have left the process before the last one"), "{message}");
        assert!(message.ends_with("new pods get revision 1"), "{message}");
        let rollout = plan.report.rollout.as_ref().expect("told");
        assert_eq!((&rollout.failure, &rollout.progressed_at), (&None, &None));
        assert_eq!(condition(&plan, "PodsCurrent").0, ConditionStatus::True);
        world.carry_out(&plan, |_| true);
    }
    waits(&mut world, RevisionWait::Restart);
    for _ in 0..3 {
        world.now += 100;
        let plan = world.plan();
        let (_, reason, message) = condition(&plan, "Progressing");
        assert!(message.contains("1 that were told it take it over with their restart alone"), "{reason}: {message}");
        assert!(message.ends_with("new pods get revision 2"), "{message}");
        let (status, reason, message) = condition(&plan, "PodsCurrent");
        assert_eq!((status, reason), (ConditionStatus::False, reasons::RESTART_REQUIRED));
        assert!(message.starts_with("1 of 3 pods take over the revision that they are told with their"), "{message}");
        assert!(message.ends_with("kubectl -n ns rollout restart deployment/shop"), "{message}");
        let revision = plan.report.revision.as_ref().expect("told");
        assert_eq!((revision.stable, revision.new_pods, plan.report.pods.current), (1, Some(2), 2));
        world.carry_out(&plan, |_| true);
        // whoever operates next
        world.rollout = None;
    }
}

impl World {
    /// What every pod is given by reference, as its agent marks it.
    fn give(&mut self, mark: &str) {
        for pod in &mut self.pods {
            let uid = pod.uid.clone();
            let AgentAnswer::Report(report) = &mut pod.answer else { panic!("it answers") };
            Arc::make_mut(report).reference_mark = Some(format!("{mark}-{uid}"));
        }
    }
}

#[test]
fn what_failed_is_tried_again_when_a_secret_was_mended_and_condition_and_event_say_so() {
    let mut world = rolling("progressDeadlineSeconds: 30");
    world.give("old");
    world.now += 31;
    world.carry_out(&world.plan(), |_| true);
    for pod in 0..3 {
        world.obey(pod);
    }
    world.give("old");
    let plan = world.plan();
    let message = condition(&plan, "Progressing").2;
    assert!(message.contains("until the settings change, or what its pods are given by reference"), "{message}");
    world.carry_out(&plan, |_| true);
    let failure = world.status.rollout.clone().and_then(|rollout| rollout.failure).expect("told");
    assert_eq!(failure.reference_marks.len(), 3);
    assert!(world.plan().patches.is_empty());
    // the status has no room for it, and no agent of ours makes one
    world.give(&"x".repeat(80));
    assert!(world.plan().patches.is_empty());

    world.give("new");
    let plan = world.plan();
    let (status, reason, message) = condition(&plan, "Progressing");
    assert_eq!((status, reason), (ConditionStatus::True, reasons::ROLLING_OUT));
    assert!(message.contains("failed before (ProgressDeadlineExceeded) and is tried again"), "{message}");
    let [note] = &event_notes(&plan, reasons::ROLLOUT_RETRIED)[..] else { panic!("one event: {:?}", plan.events) };
    assert!(note.starts_with("revision 2, which failed (ProgressDeadlineExceeded), is tried again"), "{note}");
    assert!(plan.report.revision.clone().is_some_and(|revision| revision.failed_hashes.is_empty()));
    world.carry_out(&plan, |_| true);
    assert!(event_notes(&world.plan(), reasons::ROLLOUT_RETRIED).is_empty(), "once");
}

impl World {
    /// A rollout that is through, and judged for a while more.
    fn promoted() -> Self {
        let analysis = "{metrics: [{name: TransactionTime}], plannedExposureSeconds: 40}";
        let mut world = rolling(&format!("revisionHistoryLimit: 1, postPromotionAnalysis: {analysis}"));
        world.settle();
        assert_eq!(world.revision_numbers(), [2, 2, 2]);
        world
    }

    /// The analysis after the promotion says this of revision 2.
    fn judge_promoted(&mut self, judgement: RolloutJudgement, words: &str) {
        let rollout = self.rollout.as_ref().expect("remembered");
        let phase = AnalysisPhase::PostPromotion;
        let (revision, begun) =
            (rollout.stable.clone().expect("promoted"), rollout.try_begun(phase).expect("promoted"));
        let of = JudgedTry { revision, phase, begun };
        let words = words.to_owned();
        self.judged = Some(JudgedSeen { of, outage: None, judgement, words, least_seconds: None });
    }
}

#[test]
fn what_is_promoted_and_found_worse_afterwards_goes_back_from_every_pod_with_metric_values_and_pods() {
    let mut world = World::promoted();
    let (status, reason, message) = condition(&world.plan(), "Progressing");
    assert_eq!((status, reason), (ConditionStatus::True, reasons::POST_PROMOTION_ANALYSING));
    for said in
        ["on all 3 pods and was promoted", "its own past on revision 1", "(nothing was measured yet)", "'abort 2'"]
    {
        assert!(message.contains(said), "{said}: {message}");
    }
    assert_eq!(world.revisions.len(), 2, "the way back is kept, whatever the history limit says");
    let told = world.status.rollout.clone().and_then(|rollout| rollout.post_promotion).expect("told");
    assert_eq!((told.revision, told.from, told.outcome), (2, 1, None));

    let why = "worse on shop-0, shop-1, shop-2: TransactionTime: x2.07".to_owned();
    world.judge_promoted(RolloutJudgement::Fail { why: why.clone() }, "");
    // another operator, which knows nothing but the status
    world.rollout = None;
    let plan = world.plan();
    let (status, reason, message) = condition(&plan, "Progressing");
    assert_eq!((status, reason), (ConditionStatus::False, reasons::ANALYSIS_FAILED));
    assert!(message.contains(&format!("after its promotion: {why}")), "{message}");
    assert!(plan.remember_first && plan.rollouts_ended == [reasons::ANALYSIS_FAILED]);
    let notes = event_notes(&plan, reasons::ANALYSIS_FAILED);
    assert!(notes.len() == 1 && notes[0].contains(&why), "{notes:?}");
    assert_eq!(plan.report.revision.as_ref().map(|revision| revision.stable), Some(1), "what new pods get");
    world.carry_out(&plan, |_| true);
    assert_eq!(world.revision_numbers(), [1, 1, 1], "all at once");
    world.settle();
    assert!(condition(&world.plan(), "Progressing").2.contains("is back on revision 1"));
}

#[test]
fn what_is_promoted_and_of_which_nothing_can_be_known_stays_and_says_so() {
    let mut world = World::promoted();
    let why = "Prometheus \"default\", no answer in 2.0 s".to_owned();
    world.judge_promoted(RolloutJudgement::Inconclusive { why: why.clone(), is_final: false }, &why);
    world.now += 600;
    assert_eq!(condition(&world.plan(), "Progressing").1, reasons::POST_PROMOTION_ANALYSING);
    world.now += 1;
    let plan = world.plan();
    let (status, reason, message) = condition(&plan, "Progressing");
    assert_eq!((status, reason), (ConditionStatus::True, reasons::ROLLOUT_COMPLETE));
    assert!(message.contains("nothing could be known") && message.contains(&why), "{message}");
    assert_eq!(event_notes(&plan, reasons::POST_PROMOTION_INCONCLUSIVE).len(), 1);
    assert!(plan.patches.is_empty() && !plan.remember_first);
    world.carry_out(&plan, |_| true);
    assert_eq!(world.revisions.len(), 1, "the way back is not kept any longer");
    assert_eq!(event_notes(&world.plan(), reasons::POST_PROMOTION_INCONCLUSIVE).len(), 0, "once");

    let mut world = World::promoted();
    world.judge_promoted(RolloutJudgement::Pass, "");
    assert!(condition(&world.plan(), "Progressing").2.contains("no harm was found so far"));
    world.now += 40;
    let plan = world.plan();
    assert_eq!(condition(&plan, "Progressing").1, reasons::ROLLOUT_COMPLETE);
    assert_eq!(event_notes(&plan, reasons::POST_PROMOTION_PASSED).len(), 1);
}

#[test]
fn what_is_worse_and_has_no_way_back_any_more_says_so_and_stays() {
    let mut world = World::promoted();
    world.revisions.retain(|revision| revision.number != 1);
    world.judge_promoted(RolloutJudgement::Fail { why: "worse".to_owned() }, "");
    let plan = world.plan();
    let (status, reason, message) = condition(&plan, "Progressing");
    assert_eq!((status, reason), (ConditionStatus::False, reasons::ANALYSIS_FAILED));
    assert!(message.contains("revision 1 is gone") && plan.patches.is_empty(), "{message}");
}
