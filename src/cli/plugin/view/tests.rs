//! Golden files of everything that a verb shows. The objects are as an API server gives them.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::{
            MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
        },
        apps::v1::{ControllerRevision, Deployment},
        coordination::v1::Lease,
        core::v1::{Event, Pod},
        discovery::v1::EndpointSlice,
    },
    jiff::Timestamp,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    NotRead,
    check::{
        CheckReport, FindingLevel, autoscalers, capacity, definitions,
        definitions::DefinitionSeen,
        kubernetes, operator, policies, pools,
        rights::{self, RightSeen},
        sidecars,
        webhook::{self, Admission},
    },
    completion::{self, Offer},
    document::{PoolDocument, UnreadablePool},
    get::{Columns, notes},
    in_course::RolloutInCourse,
    recommend::{self, PoolAdvice},
    report::{self, BundleInput},
    rollout::{self, RolloutStanding},
    rollout_request::{RequestOutcome, RolloutRequest, is_unmoved},
    status::{AgentSays, PoolTree, TreeInput, line},
    switch::{self, PauseChange, freeze},
    top::{self, CountedLoad},
    vocabulary,
    wait::{Awaited, WaitAnswer},
    why,
};
use crate::{
    api::crds,
    contract::{
        ApplicationClients, CircuitReport, CircuitState, ClientState, ClientsReport, Held, LimitsReadBack,
        LongestClient, OtherRole, OtherSlot, PoolRevision, RevisionDocument, SlotStatus, StatusReport,
    },
    decide::{
        allowed::PoolAllowList,
        effective::effective,
        rollout::{RolloutVerb, settings_hash},
    },
    inject::{InjectionSettings, PodPool, inject},
};

fn not_allowed(words: &str) -> NotRead {
    NotRead { words: words.to_owned(), todo: "ask for the right" }
}

fn now() -> Timestamp {
    "2026-11-28T12:00:00Z".parse().expect("a time")
}

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("the fixture is valid")
}

fn document(raw: Value) -> PoolDocument {
    PoolDocument::read(raw).expect("the fixture is a pool")
}

fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({"type": type_, "status": status, "reason": reason, "message": message, "observedGeneration": 4,
        "lastTransitionTime": "2026-11-28T11:57:30Z"})
}

/// The pool of the README: in force, with a leak.
fn shop() -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPool",
        "metadata": {"name": "shop", "namespace": "shop", "uid": "pool-uid", "generation": 4,
            "creationTimestamp": "2026-11-25T08:00:00Z"},
        "spec": {
            "engine": "PostgreSQL", "topology": "Sidecar", "mode": "Apply", "paused": false,
            "workload": {"selector": {"matchLabels": {"app": "shop"}}},
            "upstream": {"host": "pg-main-rw.db.svc", "port": 5432, "database": "shop", "credentialsRef": {"name": "shop-db"}},
            "scaling": {"minAllowed": 5, "maxAllowed": 60},
            "behavior": {"scaleUp": {"stabilizationWindowSeconds": 30, "policies": [{"type": "Connections", "value": 4, "periodSeconds": 15}]}},
        },
        "status": {
            "observedGeneration": 4, "currentSize": 13, "share": 59, "lastScaleTime": "2026-11-28T11:59:44Z",
            "summary": "Size 13 of share 59 on 3 pods; target 12: 2.3 busy on 3 pods, 132 ms each: 12; nothing limits it",
            "recommendation": {"target": 12, "lowerBound": 10, "upperBound": 15, "uncappedTarget": 12, "confidence": "Low"},
            "load": {"demand": "2.3", "held": 14, "active": 4, "waiting": 0, "leaked": 2, "waitP95Milliseconds": 3, "ageSeconds": 9},
            "lastDecision": {"id": "d-42701e", "reason": "Demand", "from": 15, "to": 12, "time": "2026-11-28T11:59:44Z",
                "message": "2.3 busy on 3 pods, 132 ms each; headroom 1.15 on the largest of 300 s: 12"},
            "pods": {"matched": 3, "injected": 3, "current": 3, "proven": 3, "reporting": 3},
            "revision": {"stable": 7, "updated": 8},
            "effective": {"class": "production", "classGeneration": 2, "minAllowed": 5, "maxAllowed": 60},
            "capabilities": ["OnlineResize", "ClientIdleTimeout"],
            "conditions": [
                condition("Ready", "True", "InForce", "every pod runs what it should and the target follows the load"),
                condition("Accepted", "True", "Valid", "the spec is valid"),
                condition("Proven", "True", "AllProven", "read back from all 3 pods"),
                condition("ScalingActive", "True", "SignalsFresh", "2.3 busy on 3 pods"),
                condition("ScalingLimited", "False", "WithinBounds", "nothing limits it"),
                condition("UpstreamHealthy", "Unknown", "NotObserved", "nobody could ask"),
                condition("LeakDetected", "True", "IdleInTransaction", "2 server connections have been held for 20 s or more"),
                condition("Progressing", "True", "RollingOut", "revision 8 runs on 1 of 3 pods; new pods get revision 7"),
                condition("Paused", "False", "NotPaused", "spec.paused is false"),
            ],
        },
    })
}

/// A pool whose load nobody knows.
fn cart() -> Value {
    let mut cart = shop();
    cart["metadata"]["name"] = json!("cart");
    cart["spec"]["mode"] = json!("Recommend");
    cart["spec"]["scaling"] = json!({"fixedLimitPerPod": 8});
    cart["status"]["share"] = json!(24);
    cart["status"]["recommendation"] = Value::Null;
    cart["status"]["load"] = Value::Null;
    cart["status"]["lastDecision"] = Value::Null;
    cart["status"]["effective"]["class"] = Value::Null;
    cart["status"]["summary"] = json!("Size 24 of share 24 on 3 pods; Prometheus has no series of these pods");
    let message = "Prometheus has no series of these pods: see that it scrapes port 9130 of native sidecars";
    cart["status"]["conditions"] = json!([
        condition("Ready", "False", "NoMetrics", message),
        condition("Accepted", "True", "Valid", "the spec is valid"),
        condition("ScalingActive", "False", "NoMetrics", message),
        condition("AbleToScale", "False", "RecommendOnly", "mode Recommend changes nothing"),
    ]);
    cart
}

/// A pool that nobody has looked at.
fn fresh() -> Value {
    let mut fresh = shop();
    fresh["metadata"]["name"] = json!("fresh");
    fresh.as_object_mut().expect("an object").remove("status");
    fresh
}

/// What a newer operator writes.
fn newer() -> Value {
    let mut newer = shop();
    newer["metadata"]["name"] = json!("newer");
    newer["spec"]["warmStandby"] = json!({"pods": 2});
    newer["status"]["ledger"] = json!({"granted": 59});
    newer["status"]["conditions"][1]["reason"] = json!("ValidEnough");
    newer["status"]["conditions"].as_array_mut().expect("a list").push(condition(
        "Forecast",
        "True",
        "Calm",
        "no wave ahead",
    ));
    newer
}

#[test]
fn get_shows_every_pool_in_a_line_and_says_why_some_are_not_ready() {
    let pools = [shop(), cart(), fresh()].map(document);
    let narrow = Columns::default().table(&pools, now()).text() + &notes(&pools, &[], now());
    insta::assert_snapshot!("get", narrow);
    let wide = Columns { namespace: true, wide: true }.table(&pools, now()).text();
    insta::assert_snapshot!("get_wide", wide);
}

#[test]
fn the_columns_of_get_are_those_of_kubectl_get() {
    let crd = crds().into_iter().find(|crd| crd.spec.names.kind == "ConnectionPool").expect("the definition");
    let columns = crd.spec.versions[0].additional_printer_columns.clone().expect("columns");
    let names = columns.iter().map(|column| column.name.to_uppercase());
    let kubectl: Vec<String> = ["NAME".to_owned()].into_iter().chain(names).collect();
    assert_eq!(Columns { namespace: false, wide: true }.headers(), kubectl);
    let narrow = columns.iter().filter(|column| column.priority.unwrap_or(0) == 0).count();
    assert_eq!(Columns::default().headers().len(), narrow + 1);
}

#[test]
fn what_a_newer_operator_writes_is_named_and_the_rest_is_shown() {
    let newer = document(newer());
    let text = Columns::default().table([&newer], now()).text() + &notes([&newer], &[], now());
    insta::assert_snapshot!("newer", text.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
    assert_eq!(document(shop()).skew(), None, "all of what this build writes is known to it");
    assert_eq!(document(cart()).skew(), None);
}

#[test]
fn a_pool_that_cannot_be_read_is_named_with_what_to_do() {
    let mut raw = shop();
    raw["spec"]["mode"] = json!("Predict");
    let UnreadablePool { key, words } = PoolDocument::read(raw).expect_err("unreadable");
    assert_eq!(key.to_string(), "shop/shop");
    assert!(words.contains("Predict") && words.contains("use the plugin of the operator's version"), "{words}");
    let unreadable = UnreadablePool { key, words: words.clone() };
    assert!(notes(&[], &[unreadable], now()).contains(&words));
}

/// A pod of the pool, injected by the product's own code.
fn pod(name: &str, uid: &str, revision: u64, grant: &Value) -> Pod {
    let pool = document(shop()).pool;
    let plain: Pod = object(json!({
        "metadata": {"name": name, "namespace": "shop", "uid": uid, "creationTimestamp": "2026-11-28T09:40:00Z",
            "labels": {"app": "shop"}},
        "spec": {"nodeName": "node-1", "containers": [{"name": "app", "image": "app"}]},
        "status": {"phase": "Running"},
    }));
    let effective = effective(&pool.spec, None).expect("accepted");
    let revision = PoolRevision { revision, settings: effective.settings.clone() };
    let settings = InjectionSettings {
        agent_image: "sluice".to_owned(),
        pgbouncer_image: "pgbouncer".to_owned(),
        image_pull_policy: None,
        image_pull_secrets: Vec::new(),
        run_as_user: None,
        allowed: PoolAllowList::default(),
    };
    let document = RevisionDocument { v: 1, pools: [("shop".to_owned(), revision.clone())].into() };
    let injected =
        inject(&plain, &PodPool { pool: &pool, effective: &effective, revision }, &settings).expect("injected");
    let mut value = serde_json::to_value(&plain).expect("JSON");
    json_patch::patch(&mut value, &injected.patch).expect("the patch applies");
    value["metadata"]["annotations"]["sluice.dev/revision"] = serde_json::to_string(&document).expect("JSON").into();
    value["metadata"]["annotations"]["sluice.dev/grant"] =
        json!({"v": 1, "epoch": 3, "pools": {"shop": grant}}).to_string().into();
    object(value)
}

fn report(uid: &str, revision: u64, seq: u64, share: u32, limit: u32) -> StatusReport {
    StatusReport {
        revision: Some(revision),
        wanted_revision: Some(revision),
        epoch: 3,
        seq,
        share,
        limits: Some(LimitsReadBack { pool_size: limit, max_db_connections: share, min_pool_size: 0, paused: false }),
        held: Some(Held { held: limit, active: 1, leaked: None, waiting: 0 }),
        slot: SlotStatus::Serving,
        ..StatusReport::beginning(uid.to_owned(), "shop".to_owned())
    }
}

fn says(report: StatusReport) -> AgentSays {
    AgentSays::Report(Box::new(report))
}

#[test]
fn status_is_a_tree_of_revisions_and_pods_with_what_is_wanted_granted_set_and_read_back() {
    let shop = document(shop());
    let grant = |seq: u64, share: u32, granted: u32| json!({"seq": seq, "share": share, "granted": granted, "floor": share.min(1)});
    let mut ending = pod("shop-d", "d", 7, &grant(4, 1, 1));
    ending.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    let mut damaged = pod("shop-f", "f", 7, &grant(4, 1, 1));
    damaged.metadata.annotations.as_mut().expect("annotations").insert("sluice.dev/grant".to_owned(), "{".to_owned());
    let pods = [
        pod("shop-a", "a", 8, &grant(9, 20, 20)),
        pod("shop-b", "b", 7, &grant(5, 19, 25)),
        pod("shop-c", "c", 7, &grant(6, 20, 20)),
        ending,
        pod("shop-e", "e", 7, &grant(2, 1, 1)),
        damaged,
        pod("shop-g", "g", 7, &grant(2, 0, 0)),
    ];
    let green = StatusReport {
        revision: Some(7),
        other: Some(OtherSlot {
            role: OtherRole::Green,
            revision: Some(8),
            clients: Some(0),
            awaiting_promotion: false,
        }),
        ..report("a", 7, 9, 20, 5)
    };
    let told = StatusReport { message: "the database refuses the new password".to_owned(), ..report("e", 7, 2, 1, 1) };
    let agents = BTreeMap::from([
        ("shop-a".to_owned(), says(green)),
        ("shop-b".to_owned(), says(report("b", 7, 5, 19, 4))),
        ("shop-c".to_owned(), says(report("c", 7, 5, 18, 4))),
        ("shop-e".to_owned(), says(told)),
        ("shop-f".to_owned(), AgentSays::Nothing("its agent does not answer within 3 s".to_owned())),
        ("shop-g".to_owned(), says(report("g", 7, 2, 0, 0))),
    ]);
    let tree = PoolTree::new(TreeInput { document: &shop, pods: Ok(&pods), agents: &agents, not_read: Vec::new() });
    insta::assert_snapshot!("status", tree.text(&shop, now()));
    insta::assert_snapshot!("status_json", serde_json::to_string_pretty(&tree.revisions).expect("JSON"));
}

#[test]
fn status_says_of_a_pod_that_its_database_is_away() {
    let shop = document(shop());
    let grant = json!({"seq": 9, "share": 20, "granted": 20, "floor": 1});
    let pods = [pod("shop-a", "a", 8, &grant)];
    let circuit =
        CircuitReport { state: CircuitState::Open, since_seconds: 9, why: "10.0.0.7:5432: refused".to_owned() };
    let away = StatusReport { circuit: Some(circuit), ..report("a", 8, 9, 20, 5) };
    let agents = BTreeMap::from([("shop-a".to_owned(), says(away))]);
    let tree = PoolTree::new(TreeInput { document: &shop, pods: Ok(&pods), agents: &agents, not_read: Vec::new() });
    let text = tree.text(&shop, now());
    assert!(text.contains("circuit Open: the database is away (10.0.0.7:5432: refused)"), "{text}");
}

#[test]
fn status_without_rights_says_what_it_does_not_show() {
    let shop = document(shop());
    let not_read = not_allowed("not allowed to list pods in shop: User \"eve\" cannot list resource \"pods\"");
    let tree = PoolTree::new(TreeInput {
        document: &shop,
        pods: Err(&not_read),
        agents: &BTreeMap::new(),
        not_read: Vec::new(),
    });
    insta::assert_snapshot!("status_without_rights", tree.text(&shop, now()));
    let fresh = document(fresh());
    let tree =
        PoolTree::new(TreeInput { document: &fresh, pods: Ok(&[]), agents: &BTreeMap::new(), not_read: Vec::new() });
    insta::assert_snapshot!("status_of_a_fresh_pool", tree.text(&fresh, now()));
    let lines = [shop, document(cart()), fresh].map(|pool| line(&pool));
    insta::assert_snapshot!("status_lines", lines.join("\n"));
}

fn event(reason: &str, at: &str, message: &str) -> Event {
    object(
        json!({"metadata": {"name": "e"}, "involvedObject": {}, "type": "Normal", "reason": reason, "message": message,
        "eventTime": at}),
    )
}

#[test]
fn why_says_what_was_decided_from_what_within_what_and_what_would_change_it() {
    let events = [
        event("RevisionCreated", "2026-11-28T11:40:00.000000Z", "revision 8 holds the settings of generation 4"),
        event("TargetChanged", "2026-11-28T11:59:44.000000Z", "target 15 -> 12 (Demand): 2.3 busy (decision d-42701e)"),
    ];
    let shop = document(shop());
    let settings = effective(&shop.pool.spec, None).expect("accepted").settings;
    insta::assert_snapshot!("why", why::text(&shop, Ok(Some(&settings)), Ok(&events), now()));
    let not_read = not_allowed("not allowed to list events in shop: no");
    let no_rules = not_allowed("not allowed to list ControllerRevisions in shop: no");
    insta::assert_snapshot!("why_without_load", why::text(&document(cart()), Err(&no_rules), Err(&not_read), now()));
    insta::assert_snapshot!("why_of_a_fresh_pool", why::text(&document(fresh()), Ok(None), Ok(&[]), now()));
}

#[test]
fn why_names_for_every_bound_what_lifts_it() {
    let mut texts = Vec::new();
    for reason in [
        "MaxSize",
        "MinSize",
        "TooManyPods",
        "FixedExceedsMax",
        "DatabaseSaturated",
        "ServerFull",
        "ScaleUpLimit",
        "ScaleDownStabilized",
    ] {
        let mut raw = shop();
        raw["status"]["recommendation"]["uncappedTarget"] = json!(if reason == "MinSize" { 3 } else { 75 });
        raw["status"]["conditions"][4] = condition("ScalingLimited", "True", reason, "limited");
        let text = why::text(&document(raw), Ok(None), Ok(&[]), now());
        let changes = text.split_once("What would change the answer\n").expect("the section").1;
        texts.push(changes.split_once("  an end of the leaks").expect("the leak").0.to_owned());
    }
    insta::assert_snapshot!("why_bounds", texts.concat());
    let mut paused = shop();
    paused["spec"]["paused"] = json!(true);
    let text = why::text(&document(paused), Ok(None), Ok(&[]), now());
    assert!(text.contains("kubectl sluice resume shop -n shop"), "{text}");
}

#[test]
fn what_is_waited_for_is_met_by_a_status_of_the_spec_of_now_only() {
    let shop = document(shop());
    let awaited = |text: &str| Awaited::parse(text).expect("understood");
    for met in [
        "condition=Ready",
        "condition=ready=true",
        "condition=LeakDetected",
        "reason=RollingOut",
        "condition=Paused=False",
    ] {
        assert!(awaited(met).is_met(Some(&shop)), "{met}");
    }
    for open in ["condition=Ready=False", "reason=RolloutComplete", "condition=SidecarMemory", "delete"] {
        assert!(!awaited(open).is_met(Some(&shop)), "{open}");
    }
    assert!(awaited("delete").is_met(None));
    assert!(!awaited("condition=Ready").is_met(None));
    let mut changed = self::shop();
    changed["metadata"]["generation"] = json!(5);
    let changed = document(changed);
    assert!(!awaited("condition=Ready").is_met(Some(&changed)));
    let standing: Vec<String> = [
        awaited("condition=Ready").standing(&changed, now()),
        awaited("condition=Ready").standing(&document(cart()), now()),
        awaited("reason=RolloutComplete").standing(&shop, now()),
        awaited("condition=SidecarMemory").standing(&document(fresh()), now()),
    ]
    .into();
    insta::assert_snapshot!("wait", standing.join("\n"));
    let wrong = [
        "",
        "ready",
        "condition",
        "condition=",
        "condition=Healthy",
        "condition=Ready=Yes",
        "reason=NoMetric",
        "delete=x",
        "condition=Ready=True=x",
    ];
    let refused: Vec<String> = wrong.iter().map(|text| Awaited::parse(text).expect_err(text)).collect();
    let refused: Vec<String> = refused.iter().map(|words| words.chars().take(120).collect()).collect();
    insta::assert_snapshot!("wait_refused", refused.join("\n"));
}

#[test]
fn pause_and_resume_say_what_would_change_and_test_what_was_read() {
    let shop = document(shop());
    let mut paused = self::shop();
    paused["spec"]["paused"] = json!(true);
    paused["metadata"]["managedFields"] = json!([
        {"manager": "kubectl-edit", "operation": "Update", "fieldsV1": {"f:spec": {"f:paused": {}}}},
        {"manager": "argocd-controller", "operation": "Apply", "fieldsV1": {"f:spec": {"f:paused": {}}}},
    ]);
    let paused = document(paused);
    let (pause, resume) = (PauseChange::Pause, PauseChange::Resume);
    assert!(
        !pause.is_done(&shop, now())
            && pause.is_done(&paused, now())
            && resume.is_done(&shop, now())
            && !resume.is_done(&paused, now())
    );
    let said = [
        pause.plan(&shop, now()),
        pause.told(&paused, false),
        pause.told(&paused, true),
        pause.told_before(&paused),
        resume.plan(&paused, now()),
        resume.told(&shop, false),
        resume.told_before(&shop),
        pause.operations(&shop).to_string(),
    ];
    insta::assert_snapshot!("pause", said.join("\n"));
}

#[test]
fn freeze_says_until_when_why_and_by_whom_and_resume_takes_it_away() {
    let in_a_day = "2026-11-29T12:00:00.5Z".parse().expect("a time");
    let asked = freeze(in_a_day, " the  sale ", Some("anna@example.com"), now()).expect("a freeze");
    let change = PauseChange::Freeze(asked.clone());
    let mut raw = shop();
    raw["metadata"]["resourceVersion"] = json!("41");
    let free = document(raw.clone());
    raw["metadata"]["annotations"] = json!({"sluice.dev/freeze": asked.to_string()});
    let frozen = document(raw.clone());
    raw["spec"]["paused"] = json!(true);
    let both = document(raw);
    let resume = PauseChange::Resume;
    let later = "2026-11-29T12:00:00Z".parse().expect("a time");
    assert!(!change.is_done(&free, now()) && change.is_done(&frozen, now()));
    assert!(!resume.is_done(&frozen, now()) && resume.is_done(&frozen, later), "it ends by itself");
    let said = [
        change.plan(&free, now()),
        change.operations(&free).to_string(),
        change.plan(&frozen, now()),
        change.operations(&frozen).to_string(),
        change.told(&frozen, false),
        change.told_before(&frozen),
        resume.plan(&frozen, now()),
        resume.operations(&frozen).to_string(),
        resume.plan(&both, now()),
        resume.operations(&both).to_string(),
    ];
    insta::assert_snapshot!("freeze", said.join("\n"));
    assert!(switch::is_unmoved(&free, &document(shop())) && !switch::is_unmoved(&free, &frozen));
    let tree =
        PoolTree::new(TreeInput { document: &frozen, pods: Ok(&[]), agents: &BTreeMap::new(), not_read: Vec::new() });
    assert!(
        tree.text(&frozen, now())
            .contains("frozen until 2026-11-29T12:00:00Z by the annotation sluice.dev/freeze: the sale")
    );
    let text = why::text(&frozen, Ok(None), Ok(&[]), now());
    assert!(text.contains("an end of the freeze: frozen until 2026-11-29T12:00:00Z"), "{text}");
    assert!(text.contains("\n  kubectl sluice resume shop -n shop\n"), "{text}");
    for (until, reason, said) in [
        (now(), "the sale", "is over"),
        (in_a_day, "  ", "say why"),
        (in_a_day, &"x".repeat(300), "too long by 65 bytes"),
    ] {
        let refused = freeze(until, reason, None, now()).expect_err(said);
        assert!(refused.contains(said), "{refused}");
    }
}

#[test]
fn recommend_shows_what_would_do_and_the_patch_that_follows_it() {
    let mut small = shop();
    small["metadata"]["name"] = json!("small");
    small["status"]["recommendation"]["uncappedTarget"] = json!(75);
    let mut fixed = shop();
    fixed["metadata"]["name"] = json!("fixed");
    fixed["spec"]["mode"] = json!("Recommend");
    fixed["spec"]["scaling"] = json!({"fixedLimitPerPod": 8});
    fixed["status"]["share"] = json!(24);
    let pools = [shop(), small, fixed, cart()].map(document);
    let advice: Vec<PoolAdvice> = pools.iter().map(PoolAdvice::of).collect();
    let mut said = recommend::table(&advice, Columns { namespace: true, wide: false }).text();
    for (pool, advice) in pools.iter().zip(&advice) {
        said += &recommend::text(pool, advice);
    }
    insta::assert_snapshot!("recommend", said);
}

fn revision(number: i64, owner: &str, settings: &Value) -> ControllerRevision {
    object(json!({
        "metadata": {"name": format!("shop-{number}"), "namespace": "shop", "creationTimestamp": "2026-11-28T10:00:00Z",
            "annotations": {"sluice.dev/changed-by": "kubectl-edit", "kubernetes.io/change-cause": format!("generation {number}")},
            "ownerReferences": [{"apiVersion": "sluice.dev/v1alpha1", "kind": "ConnectionPool", "name": "shop", "uid": owner, "controller": true}]},
        "revision": number, "data": {"v": 1, "settings": settings},
    }))
}

#[test]
fn rollout_tells_how_far_it_is_and_what_each_revision_has_changed() {
    let shop = document(shop());
    let revisions = [
        revision(
            8,
            "pool-uid",
            &json!({"poolMode": "Session", "parameters": {"server_lifetime": "600"}, "health": {"periodSeconds": 10}}),
        ),
        revision(6, "pool-uid", &json!({"poolMode": "Transaction", "parameters": {}, "health": {"periodSeconds": 10}})),
        revision(
            7,
            "pool-uid",
            &json!({"poolMode": "Transaction", "parameters": {}, "health": {"periodSeconds": 30, "validationQuery": "x".repeat(80)}}),
        ),
        revision(9, "an earlier pool", &json!({"poolMode": "Session"})),
    ];
    let entries = rollout::history(&shop, &revisions);
    insta::assert_snapshot!("rollout_history", rollout::table(&entries, now()).text());
    let entries = rollout::history(&document(promoted()), &revisions);
    insta::assert_snapshot!("rollout_history_after_promotion", rollout::table(&entries, now()).text());
    let with = |status: &str, reason: &str| {
        let mut raw = self::shop();
        raw["status"]["conditions"][7] = condition("Progressing", status, reason, "revision 8 runs on 1 of 3 pods");
        RolloutStanding::of(&document(raw), now())
    };
    assert!(matches!(with("True", "RolloutComplete"), RolloutStanding::Complete(_)));
    assert!(matches!(with("True", "RolloutUndone"), RolloutStanding::Complete(_)), "it stays so");
    assert!(matches!(with("Unknown", "RolloutPaused"), RolloutStanding::UnderWay(_)));
    assert!(matches!(with("True", "PostPromotionAnalysing"), RolloutStanding::UnderWay(_)), "it may go back");
    assert!(matches!(with("False", "RolloutAborted"), RolloutStanding::Stuck(_)));
    assert!(matches!(with("Unknown", "BlueGreenPause"), RolloutStanding::UnderWay(_)));
    assert!(matches!(with("False", "ProgressDeadlineExceeded"), RolloutStanding::Stuck(_)));
    assert!(matches!(RolloutStanding::of(&document(fresh()), now()), RolloutStanding::UnderWay(_)));
    let mut refused = self::shop();
    refused["status"]["conditions"][1] =
        condition("Accepted", "False", "InvalidBounds", "minAllowed 9 exceeds maxAllowed 5");
    let refused = RolloutStanding::of(&document(refused), now());
    assert!(matches!(refused, RolloutStanding::Stuck(_)));
    let said = [RolloutStanding::of(&shop, now()).words().to_owned(), refused.words().to_owned()];
    insta::assert_snapshot!("rollout_status", said.join("\n"));
}

/// The pool in a rollout of revision 8, or after it, with what else its status says.
fn rolling(revision: Value, rollout: Value) -> Value {
    let mut raw = shop();
    raw["metadata"]["resourceVersion"] = json!("41");
    raw["status"]["revision"] = json!({"stable": 7, "updated": 8, "updatedHash": "hash-8"});
    raw["status"]["rollout"] = json!({"currentStepIndex": 1, "setWeight": 10, "actualWeight": 33, "updatedPods": 1});
    for (part, fields) in [("revision", revision), ("rollout", rollout)] {
        for (field, value) in fields.as_object().cloned().unwrap_or_default() {
            raw["status"][part][field] = value;
        }
    }
    raw
}

/// The pool with revision 8 promoted, and judged for a while more.
fn promoted() -> Value {
    let judged =
        json!({"revision": 8, "hash": "hash-8", "from": 7, "fromHash": "hash-7", "startedAt": "2026-11-28T11:59:00Z"});
    rolling(json!({"stable": 8}), json!({"currentStepIndex": null, "postPromotion": judged}))
}

/// The pool in a rollout, with a condition `Progressing`.
fn progressing(mut raw: Value, status: &str, reason: &str, message: &str) -> PoolDocument {
    raw["status"]["conditions"][7] = condition("Progressing", status, reason, message);
    document(raw)
}

#[test]
fn a_rollout_that_is_not_through_is_told_by_status_and_why_with_what_somebody_may_do_about_it() {
    let course = || rolling(json!({}), json!({}));
    let failed = || rolling(json!({"failedHashes": ["hash-8"]}), json!({"currentStepIndex": null}));
    let undone = json!({"spec": 9, "specHash": "9", "to": 8, "toHash": "8"});
    let undone = rolling(json!({"stable": 8}), json!({"currentStepIndex": null, "undone": undone}));
    let mut paused = course();
    paused["spec"]["paused"] = json!(true);
    let mut said = Vec::new();
    for pool in vec![
        progressing(course(), "Unknown", "RolloutPaused", "revision 8 has proven itself on 1 of 3 pods"),
        progressing(course(), "True", "Analysing", "its metrics are judged: not decided so far"),
        progressing(course(), "True", "RollingOut", "revision 8 runs on 1 of 3 pods"),
        progressing(paused, "True", "RollingOut", "revision 8 runs on 1 of 3 pods"),
        progressing(course(), "Unknown", "BlueGreenPause", "revision 8 has proven itself in 1 of 3 pods"),
        progressing(promoted(), "True", "PostPromotionAnalysing", "revision 8 runs on all 3 pods and was promoted"),
        progressing(failed(), "False", "AnalysisFailed", "revision 8 is worse on shop-a"),
        progressing(failed(), "False", "RolloutAborted", "somebody took revision 8 back"),
        progressing(shop(), "False", "ProgressDeadlineExceeded", "there is nothing to go back to"),
        progressing(undone, "True", "RolloutUndone", "revision 8 runs on all 3 pods because somebody wants it"),
    ] {
        let lines = RolloutInCourse::of(&pool, now()).expect("it is not through").lines();
        let agents = BTreeMap::new();
        let tree = PoolTree::new(TreeInput { document: &pool, pods: Ok(&[]), agents: &agents, not_read: Vec::new() });
        let (status, why) = (tree.text(&pool, now()), why::text(&pool, Ok(None), Ok(&[]), now()));
        for line in &lines {
            assert!(
                status.contains(&format!("{line}\n")) && why.contains(&format!("  {line}\n")),
                "{line}: {status}{why}"
            );
        }
        assert_eq!(status.matches("Progressing").count(), 1, "{status}");
        said.push(lines.join("\n"));
    }
    insta::assert_snapshot!("rollout_in_course", said.join("\n"));
    let through = progressing(shop(), "True", "RolloutComplete", "revision 8 runs on all 3 pods");
    assert_eq!(RolloutInCourse::of(&through, now()), None);
    let refused = progressing(shop(), "Unknown", "NotAccepted", "see Accepted");
    assert_eq!(RolloutInCourse::of(&refused, now()), None);
    assert_eq!(RolloutInCourse::of(&document(fresh()), now()), None);
}

#[test]
fn rollout_status_wait_and_why_have_documents_with_fields() {
    let pool = progressing(rolling(json!({}), json!({})), "Unknown", "RolloutPaused", "it waits");
    let answer = RolloutStanding::of(&pool, now()).answer(&pool, now());
    insta::assert_json_snapshot!("rollout_status_json", answer);
    let awaited = Awaited::parse("condition=Ready").expect("understood");
    let met = WaitAnswer::of(&awaited, pool.key(), Some(&pool), &awaited.standing(&pool, now()));
    let gone = WaitAnswer::of(&awaited, pool.key(), None, "shop/shop does not exist");
    assert!(met.is_met && !gone.is_met);
    insta::assert_json_snapshot!("wait_json", [met, gone]);
    let settings = effective(&pool.pool.spec, None).expect("accepted").settings;
    let events = [event("TargetChanged", "2026-11-28T11:59:44.000000Z", "target 15 -> 12 (Demand)")];
    let mut at_its_bound = pool.raw.clone();
    at_its_bound["status"]["conditions"][4] = condition("ScalingLimited", "True", "MaxSize", "limited");
    let at_its_bound = document(at_its_bound);
    let why = why::WhyAnswer::of(&at_its_bound, Ok(Some(&settings)), Ok(&events), now());
    insta::assert_json_snapshot!("why_json", why);
    let not_read = not_allowed("not allowed to list events in shop: no");
    let blind = why::WhyAnswer::of(&document(cart()), Err(&not_read), Err(&not_read), now());
    assert_eq!(blind.not_read.len(), 2);
    assert!(blind.inputs.load.is_none() && blind.events.is_empty());
}

#[test]
fn a_plugin_of_another_version_than_the_operator_says_so_whichever_is_newer() {
    let of = |version: &str| {
        let mut raw = shop();
        raw["status"]["operatorVersion"] = json!(version);
        document(raw).skew()
    };
    assert_eq!(of(env!("CARGO_PKG_VERSION")), None);
    let older = of("0.0.1").expect("skew");
    assert!(
        older.starts_with("shop/shop: this plugin") && older.contains("is newer than the operator 0.0.1"),
        "{older}"
    );
    let newer = of("99.0.0").expect("skew");
    assert!(newer.contains("is older than the operator 99.0.0: it may not know what the operator says"), "{newer}");
}

/// What would be asked, or why not.
fn asked(verb: RolloutVerb, to: Option<u64>, raw: Value) -> Result<RolloutRequest, String> {
    let document = document(raw);
    let revisions = [5, 6, 7, 8].map(|number| revision(number, "pool-uid", &json!({"poolMode": "Transaction"})));
    let entries = rollout::history(&document, &revisions);
    RolloutRequest::of(verb, to, &document, Ok(&entries), (Some("anna@example.com"), now()))
}

#[test]
fn what_is_asked_of_a_rollout_names_the_revision_when_and_by_whom_and_tests_what_was_read() {
    let course = || rolling(json!({}), json!({}));
    let failed = || rolling(json!({"failedHashes": ["hash-8"]}), json!({"currentStepIndex": null}));
    let stable = || rolling(json!({"stable": 8}), json!({"currentStepIndex": null}));
    let undone = || {
        let undone = json!({"spec": 9, "specHash": "9", "to": 8, "toHash": "8"});
        rolling(json!({"stable": 8}), json!({"currentStepIndex": null, "undone": undone}))
    };
    let mut said = Vec::new();
    for (verb, to, raw) in [
        (RolloutVerb::Promote, None, course()),
        (RolloutVerb::PromoteFull, None, course()),
        (RolloutVerb::Abort, None, course()),
        (RolloutVerb::Undo, None, course()),
        (RolloutVerb::Undo, None, stable()),
        (RolloutVerb::Undo, Some(5), stable()),
        (RolloutVerb::Undo, Some(6), failed()),
        (RolloutVerb::Retry, None, failed()),
        (RolloutVerb::Retry, None, undone()),
        (RolloutVerb::Promote, None, promoted()),
        (RolloutVerb::Abort, None, promoted()),
    ] {
        let request = asked(verb, to, raw.clone()).expect("it can be");
        said.push(format!(
            "{}
  {}",
            request.text,
            request.plan(&document(raw))
        ));
    }
    let request = asked(RolloutVerb::Promote, None, course()).expect("it can be");
    said.push(request.operations(&document(course())).to_string());
    let mut annotated = course();
    annotated["metadata"]["annotations"] = json!({"sluice.dev/rollout": "abort 8"});
    said.push(request.operations(&document(annotated.clone())).to_string());
    said.push(request.plan(&document(annotated)));
    said.push(request.told(&document(course()), true));
    insta::assert_snapshot!(
        "rollout_request",
        said.join(
            "
"
        )
    );

    let long = "system:serviceaccount:".to_owned() + &"n".repeat(200) + " x";
    let document = document(course());
    let text =
        RolloutRequest::of(RolloutVerb::Abort, None, &document, Ok(&[]), (Some(&long), now())).expect("long").text;
    assert!(text.len() == 128 && text.starts_with("abort 8 2026-11-28T12:00:00.000Z by system:"), "{text}");
}

#[test]
fn what_cannot_be_asked_of_a_rollout_is_refused_with_what_to_do() {
    let failed = || rolling(json!({"failedHashes": ["hash-8"]}), json!({"currentStepIndex": null}));
    let stable = || rolling(json!({"stable": 8}), json!({"currentStepIndex": null}));
    let undone = json!({"spec": 9, "specHash": "9", "to": 8, "toHash": "8"});
    let undone = || rolling(json!({"stable": 8}), json!({"currentStepIndex": null, "undone": undone.clone()}));
    let mut refused = shop();
    refused["status"]["conditions"][1] =
        condition("Accepted", "False", "InvalidBounds", "minAllowed 9 exceeds maxAllowed 5");
    let mut changed = rolling(json!({}), json!({}));
    changed["metadata"]["generation"] = json!(5);
    let mut said = Vec::new();
    for (verb, to, raw) in [
        (RolloutVerb::Promote, None, stable()),
        (RolloutVerb::Promote, None, failed()),
        (RolloutVerb::Promote, None, rolling(json!({}), json!({"currentStepIndex": null}))),
        (RolloutVerb::Abort, None, stable()),
        (RolloutVerb::Abort, None, fresh()),
        (RolloutVerb::Abort, None, refused),
        (RolloutVerb::Abort, None, changed),
        (RolloutVerb::Retry, None, stable()),
        (RolloutVerb::Undo, None, failed()),
        (RolloutVerb::Undo, None, undone()),
        (RolloutVerb::Undo, Some(4), stable()),
        (RolloutVerb::Undo, Some(8), stable()),
        (RolloutVerb::Undo, Some(9), undone()),
        (RolloutVerb::Undo, Some(8), failed()),
    ] {
        said.push(asked(verb, to, raw).expect_err("it cannot be"));
    }
    let hash = |settings: &Value| settings_hash(&serde_json::from_value(settings.clone()).expect("settings"));
    let settings = serde_json::to_value(effective(&document(shop()).pool.spec, None).expect("accepted").settings);
    let settings = settings.expect("JSON");
    let bad =
        document(rolling(json!({"stable": 8, "failedHashes": [hash(&settings)]}), json!({"currentStepIndex": null})));
    let entries = rollout::history(&bad, &[revision(6, "pool-uid", &settings)]);
    assert!(rollout::table(&entries, now()).text().contains("failed"), "the history says so");
    let undo = |to| RolloutRequest::of(RolloutVerb::Undo, to, &bad, Ok(&entries), (None, now())).expect_err("failed");
    said.extend([undo(Some(6)), undo(None)]);
    let not_read = not_allowed("not allowed to list ControllerRevisions in shop: no");
    let blind = |to| RolloutRequest::of(RolloutVerb::Undo, to, &bad, Err(&not_read), (None, now()));
    said.push(blind(None).expect_err("not known"));
    assert_eq!(blind(Some(3)).map(|request| request.text), Ok("undo 3 2026-11-28T12:00:00.000Z".to_owned()));
    insta::assert_snapshot!(
        "rollout_request_refused",
        said.join(
            "
"
        )
    );
}

#[test]
fn a_request_is_answered_by_the_status_that_names_it_and_by_no_other() {
    let request = asked(RolloutVerb::Promote, None, rolling(json!({}), json!({}))).expect("it can be");
    let answered = |annotation: &str, command: &str, outcome: &str| {
        let mut raw = rolling(json!({}), json!({"lastCommand": command, "lastCommandOutcome": outcome}));
        raw["metadata"]["annotations"] = json!({"sluice.dev/rollout": annotation});
        document(raw)
    };
    let text = request.text.as_str();
    let outcomes = [
        answered(text, "promote 8 earlier", "Done"),
        answered(text, text, "Done"),
        answered(text, text, "revision 8 waits for nobody"),
        answered("abort 8 by eve", "promote 8 earlier", "Done"),
        answered("abort 8 by eve", text, "Done"),
    ];
    let found: Vec<RequestOutcome> = outcomes.iter().map(|document| request.outcome(document)).collect();
    assert_eq!(
        found,
        [
            RequestOutcome::Open,
            RequestOutcome::Done,
            RequestOutcome::Refused("revision 8 waits for nobody".to_owned()),
            RequestOutcome::Replaced("abort 8 by eve".to_owned()),
            RequestOutcome::Done,
        ]
    );
    let said: Vec<String> = found.iter().map(|outcome| request.told_outcome(outcome, &outcomes[0])).collect();
    insta::assert_snapshot!(
        "rollout_request_outcomes",
        said.join(
            "
"
        )
    );
    let same = answered("promote 8 by eve", "promote 8 earlier", "Done");
    assert_eq!(request.open(&same).map(|open| open.text).as_deref(), Some("promote 8 by eve"), "not asked twice");
    assert_eq!(request.open(&answered("promote 8 by eve", "promote 8 by eve", "Done")), None, "it was answered");
    assert_eq!(request.open(&answered("abort 8 by eve", "", "")), None, "another one");

    let before = answered(text, text, "Done");
    let mut counted = before.raw.clone();
    counted["metadata"]["resourceVersion"] = json!("42");
    counted["status"]["rollout"]["updatedPods"] = json!(2);
    assert!(is_unmoved(&before, &document(counted)), "only the operator wrote");
    assert!(!is_unmoved(&before, &answered("abort 8 by eve", text, "Done")), "somebody asked");
    let mut next = before.raw.clone();
    next["status"]["revision"]["updated"] = json!(9);
    assert!(!is_unmoved(&before, &document(next)), "another revision has come");
}

#[test]
fn a_report_has_what_is_known_of_a_pool_and_nothing_that_may_hold_a_secret() {
    const SECRET: &str = "hunter2";
    let mut raw = shop();
    raw["metadata"]["annotations"] =
        json!({"sluice.dev/rollout": "promote 8", "kubectl.kubernetes.io/last-applied-configuration": SECRET});
    raw["metadata"]["labels"] = json!({"password": SECRET});
    raw["metadata"]["managedFields"] = json!([{"manager": SECRET}]);
    raw["spec"]["client"] =
        json!({"env": [{"name": "DATABASE_URL", "template": format!("postgres://shop:{SECRET}@{{host}}")}]});
    let shop = document(raw);
    let mut pod = pod("shop-a", "a", 8, &json!({"seq": 9, "share": 20, "granted": 20, "floor": 1}));
    pod.metadata.annotations.as_mut().expect("annotations").insert("other".to_owned(), SECRET.to_owned());
    pod.metadata.labels.as_mut().expect("labels").insert("other".to_owned(), SECRET.to_owned());
    let container = &mut pod.spec.as_mut().expect("a spec").containers[0];
    container.env = Some(vec![object(json!({"name": "PASSWORD", "value": SECRET}))]);
    container.args = Some(vec![SECRET.to_owned()]);
    let ended = json!({"terminated": {"exitCode": 1, "reason": "Error", "message": SECRET, "finishedAt": "2026-11-28T11:59:00Z"}});
    pod.status.as_mut().expect("a status").container_statuses = Some(vec![object(json!({
        "name": "app", "image": "app", "imageID": "", "ready": true, "restartCount": 1,
        "state": {"running": {"startedAt": "2026-11-28T11:59:01Z"}}, "lastState": ended}))]);
    let events = [event(
        "TargetChanged",
        "2026-11-28T11:59:44.000000Z",
        "target 15 -> 12 (Demand): 2.3 busy (decision d-42701e)",
    )];
    let revisions = rollout::history(&shop, &[revision(8, "pool-uid", &json!({"poolMode": "Session"}))]);
    let agents = BTreeMap::from([
        ("shop-a".to_owned(), says(report("a", 8, 9, 20, 5))),
        ("shop-b".to_owned(), AgentSays::Nothing("its agent does not answer within 3 s".to_owned())),
    ]);
    let pods = [pod];
    let input = BundleInput {
        document: &shop,
        revisions: Ok(&revisions),
        events: Ok(&events),
        pods: Ok(&pods),
        agents: &agents,
        samples: "time_seconds\n",
        not_read: vec!["the load of pod shop-b: no answer".to_owned()],
        now: now(),
    };
    let files = report::bundle(&input);
    for (name, text) in &files {
        assert!(!text.contains(SECRET), "{name}: {text}");
    }
    let shown =
        ["README.txt", "pods.yaml", "events.yaml", "revisions.txt"].map(|name| format!("--- {name}\n{}", files[name]));
    insta::assert_snapshot!("report", shown.concat().replace(env!("CARGO_PKG_VERSION"), "VERSION"));
    assert!(
        files["pool.yaml"].contains("d-42701e") && files["pool.yaml"].contains("promote 8"),
        "{}",
        files["pool.yaml"]
    );
    assert!(files["agents.yaml"].contains("notRead: its agent does not answer"), "{}", files["agents.yaml"]);

    let not_read = not_allowed("not allowed to list pods in shop: no");
    let blind = BundleInput {
        pods: Err(&not_read),
        events: Err(&not_read),
        revisions: Err(&not_read),
        agents: &BTreeMap::new(),
        ..input
    };
    let files = report::bundle(&blind);
    assert!(files["README.txt"].contains("Not read:\n") && files["README.txt"].contains("not allowed to list pods"));
    assert!(!files.contains_key("pods.yaml"), "absent is not empty");
}

#[test]
fn a_sample_of_an_agent_is_a_line_that_backtest_reads_and_what_it_has_not_counted_is_none() {
    let page = "# TYPE sluice_transactions counter\n\
        sluice_transactions_total{pool=\"shop\",slot=\"blue\"} 40\n\
        sluice_transactions_total{pool=\"shop\",slot=\"green\"} 2 1764331200\n\
        sluice_busy_seconds_total{pool=\"shop\"} 1.5\n\
        sluice_server_connections{pool=\"shop\",state=\"active\"} 3\n\
        sluice_server_connections{pool=\"shop\",state=\"idle\"} 9\n\
        sluice_client_connections{pool=\"shop\",state=\"waiting\"} 1\n\
        sluice_limit{pool=\"shop\"} 12\nsluice_limits 99\n";
    assert_eq!(report::sample(now(), "shop-a", page).as_deref(), Some("1795867200.000,shop-a,42,1.5,3,1,12\n"));
    assert_eq!(report::sample(now(), "shop-a", &page.replace("busy", "idle")), None);
    assert_eq!(report::sample(now(), "shop-a", ""), None);
}

#[test]
fn top_shows_who_works_most_first_and_what_is_not_counted_as_absent() {
    let page = |transactions: u32, busy: f64, waited: f64| {
        CountedLoad::read(&format!(
            "sluice_transactions_total {transactions}\nsluice_busy_seconds_total {busy}\nsluice_wait_seconds_total {waited}\n\
             sluice_server_connections{{state=\"active\"}} 2\nsluice_server_connections{{state=\"idle\"}} 3\n\
             sluice_client_connections{{state=\"active\"}} 2\nsluice_client_connections{{state=\"waiting\"}} 1\nsluice_limit 5\n"
        ))
    };
    let named = |loads: Vec<(&str, CountedLoad)>| loads.into_iter().map(|(pod, load)| (pod.to_owned(), load)).collect();
    let before: BTreeMap<String, CountedLoad> =
        named(vec![("idle", page(10, 1.0, 0.0)), ("busy", page(100, 10.0, 1.0)), ("restarted", page(1000, 90.0, 9.0))]);
    let after = BTreeMap::from([
        ("busy".to_owned(), Some(page(130, 16.0, 1.3))),
        ("idle".to_owned(), Some(page(10, 1.0, 0.0))),
        ("new".to_owned(), Some(page(5, 1.0, 0.0))),
        ("restarted".to_owned(), Some(page(6, 3.0, 0.0))),
        ("silent".to_owned(), None),
    ]);
    let mut work = top::PoolWork { pods: top::work(&before, &after, 3.0), clients: None };
    insta::assert_snapshot!("top", top::text(&document(shop()), &work));
    let of = |application: Option<&str>, holding, waiting| ApplicationClients {
        application: application.map(str::to_owned),
        clients: holding + waiting + 1,
        holding,
        waiting,
    };
    let client = |application: &str, state, milliseconds| LongestClient {
        application: application.to_owned(),
        address: "127.0.0.1:41002".to_owned(),
        database: "shop".to_owned(),
        state,
        milliseconds,
    };
    let busy = ClientsReport {
        v: 1,
        applications: vec![of(Some("web"), 2, 0), of(Some(""), 1, 0), of(None, 9, 9)],
        longest: vec![client("web", ClientState::Holds, Some(754_000)), client("", ClientState::Holds, None)],
    };
    let idle = ClientsReport {
        v: 1,
        applications: vec![of(Some("report"), 3, 1), of(Some("web"), 2, 1)],
        longest: vec![client("report", ClientState::Waits, Some(90)), client("web", ClientState::Holds, Some(9000))],
    };
    let told = BTreeMap::from([("busy".to_owned(), busy), ("idle".to_owned(), idle)]);
    work.clients = Some(top::PoolClients::of(told));
    insta::assert_snapshot!("top_clients", top::text(&document(shop()), &work));
    insta::assert_json_snapshot!("top_json", work);
    work.clients = Some(top::PoolClients::default());
    assert!(top::text(&document(shop()), &work).contains("no client is connected"));
}

fn webhook_configuration(bundle: Option<&str>, failure_policy: &str) -> MutatingWebhookConfiguration {
    let mut configuration: MutatingWebhookConfiguration = object(json!({
        "metadata": {"name": "sluice-system-sluice", "labels": {"app.kubernetes.io/instance": "sluice"}},
        "webhooks": [{"name": "pod.inject.sluice.dev", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "failurePolicy": failure_policy,
            "clientConfig": {"service": {"name": "sluice-webhook", "namespace": "sluice-system", "path": "/inject", "port": 443}}}],
    }));
    for webhook in configuration.webhooks.iter_mut().flatten() {
        webhook.client_config.ca_bundle = bundle.map(|bundle| ByteString(bundle.as_bytes().to_vec()));
    }
    configuration
}

/// An authority that ends in so many days.
fn authority(days: i64) -> String {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |days: i64| {
        epoch + std::time::Duration::from_secs(u64::try_from(now().as_second() + days * 86_400).expect("after 1970"))
    };
    let mut params = rcgen::CertificateParams::new(vec!["authority".to_owned()]).expect("a name");
    (params.not_before, params.not_after) = (at(-1000), at(days));
    let key = rcgen::KeyPair::generate().expect("a key");
    params.self_signed(&key).expect("signed").pem()
}

fn deployment(version: &str, ready: i32) -> Deployment {
    object(json!({
        "metadata": {"name": "sluice", "namespace": "sluice-system", "labels": {"app.kubernetes.io/version": version}},
        "spec": {"replicas": 2, "selector": {}, "template": {"spec": {"serviceAccountName": "sluice", "containers": [
            {"name": "operator", "args": ["operator", "--lease-name=sluice-operator", "--gateways=enabled"]}]}}},
        "status": {"readyReplicas": ready, "conditions": [{"type": "Available", "status": if ready == 2 { "True" } else { "False" },
            "reason": "MinimumReplicasUnavailable", "lastTransitionTime": "2026-11-28T11:55:00Z"}]},
    }))
}

fn lease(holder: &str, renewed: &str) -> Lease {
    object(
        json!({"metadata": {"name": "sluice-operator"}, "spec": {"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": 15}}),
    )
}

fn endpoints(ready: &[bool]) -> Vec<EndpointSlice> {
    let endpoints: Vec<Value> =
        ready.iter().map(|ready| json!({"addresses": ["10.0.0.1"], "conditions": {"ready": ready}})).collect();
    vec![object(json!({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": endpoints}))]
}

fn policies(
    names: &[&str],
    actions: &[&str],
) -> (Vec<ValidatingAdmissionPolicy>, Vec<ValidatingAdmissionPolicyBinding>) {
    let policy = |name: &&str| object(json!({"metadata": {"name": name}, "spec": {}}));
    let binding = |name: &&str| {
        object(json!({"metadata": {"name": name}, "spec": {"policyName": name, "validationActions": actions}}))
    };
    (names.iter().map(policy).collect(), names.iter().map(binding).collect())
}

fn established(name: &str, change: impl Fn(&mut Value)) -> DefinitionSeen {
    let crd = crds().into_iter().find(|crd| crd.metadata.name.as_deref() == Some(name)).expect("a definition");
    let mut value = serde_json::to_value(crd).expect("JSON");
    value["status"] = json!({"conditions": [{"type": "Established", "status": "True", "reason": "x", "message": "", "lastTransitionTime": "2026-11-28T00:00:00Z"}]});
    change(&mut value);
    DefinitionSeen { name: name.to_owned(), found: Ok(Some(object(value))) }
}

fn seen(rights: &[rights::Right], given: impl Fn(usize) -> Result<bool, NotRead>) -> Vec<RightSeen<'_>> {
    rights.iter().enumerate().map(|(at, right)| RightSeen { right, is_given: given(at) }).collect()
}

const POOLS: &str = "connectionpools.sluice.dev";

#[test]
fn check_of_an_installation_that_is_as_it_should_be_says_so_part_by_part() {
    let version = object(
        json!({"major": "1", "minor": "37", "gitVersion": "v1.37.2", "buildDate": "", "compiler": "", "gitCommit": "",
        "gitTreeState": "", "goVersion": "", "platform": ""}),
    );
    let mut report = CheckReport::default();
    report.add("Kubernetes", kubernetes::findings(Ok(&version), Ok(true)));
    report.add("Definitions", definitions::findings(&[established(POOLS, |_| {})], now()));
    let plugin = env!("CARGO_PKG_VERSION");
    let held = lease("sluice-7d4b9c6f5-x2x9z", "2026-11-28T11:59:58.000000Z");
    report.add("Operator", operator::findings(Ok(&[deployment(plugin, 2)]), Ok(Some(&held)), now()));
    let may = seen(&rights::OPERATOR, |_| Ok(true));
    report.add("Operator's rights", rights::of_others("the service account sluice-system/sluice", &may, "-"));
    let configurations = [webhook_configuration(Some(&authority(700)), "Fail")];
    let admission = Admission::Injected { pool: "shop".to_owned() };
    report.add("Webhook", webhook::findings(Ok(&configurations), Ok(&endpoints(&[true, true])), Ok(&admission), now()));
    let (all, bound) = policies(&["s", "s-creation", "s-templates", "s-revisions", "s-gateway"], &["Deny"]);
    report.add("Policies", policies::findings("s", true, Ok(&all), Ok(&bound)));
    report.add("VerticalPodAutoscalers", autoscalers::findings(Ok(None)));
    let pod = self::pod("shop-a", "a", 8, &json!({"seq": 9, "share": 20, "granted": 20, "floor": 1}));
    report.add("Sidecars", sidecars::findings(Ok(&[pod]), Some("sluice")));
    report.add("Pools", pools::findings(Ok((&[document(shop())], &[])), now()));
    report.add("Capacity", capacity::findings(Ok(&[document(shop())]), now()));
    let used: Vec<rights::Right> = rights::USED.iter().map(|used| used.right.clone()).collect();
    report.add("Your rights", rights::of_yours(&seen(&used, |_| Ok(true))));
    assert_eq!(report.worst(), FindingLevel::Note, "what the server carries nobody knows");
    insta::assert_snapshot!("check", report.text().replace(plugin, "VERSION"));
    insta::assert_snapshot!(
        "check_json",
        serde_json::to_string_pretty(&report.sections[..2]).expect("JSON").replace(plugin, "VERSION")
    );
}

/// Two pods of the shop, of which the second was injected by another version.
fn pods_of_two_versions() -> [Pod; 2] {
    let mut pods = ["a", "b"]
        .map(|name| pod(&format!("shop-{name}"), name, 8, &json!({"seq": 9, "share": 20, "granted": 20, "floor": 1})));
    let spec = pods[1].spec.as_mut().expect("a spec");
    for container in spec.init_containers.iter_mut().flatten() {
        container.image = container.image.as_ref().map(|image| format!("{image}:0.0.9"));
    }
    pods
}

#[test]
fn every_line_of_check_that_is_not_as_it_should_be_says_what_to_do() {
    let not_read = not_allowed("not allowed to list Deployments in sluice-system: no");
    let mut report = CheckReport::default();
    let old = object(
        json!({"major": "1", "minor": "28+", "gitVersion": "v1.28.3-eks", "buildDate": "", "compiler": "", "gitCommit": "",
        "gitTreeState": "", "goVersion": "", "platform": ""}),
    );
    report.add("Kubernetes", kubernetes::findings(Ok(&old), Ok(false)));
    let properties = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    let lacks = established(POOLS, |crd| {
        crd.pointer_mut(properties).and_then(Value::as_object_mut).expect("properties").remove("behavior");
    });
    let newer = established(POOLS, |crd| {
        crd.pointer_mut(properties).expect("properties")["warmStandby"] =
            json!({"type": "object", "properties": {"pods": {"type": "integer"}}});
    });
    let other = established(POOLS, |crd| crd["spec"]["versions"][0]["name"] = json!("v1"));
    let unserved = established(POOLS, |crd| crd["status"] = json!({}));
    let missing = DefinitionSeen { name: POOLS.to_owned(), found: Ok(None) };
    let unknown = DefinitionSeen { name: POOLS.to_owned(), found: Err(not_read.clone()) };
    let rejected = established(POOLS, |crd| {
        crd["status"] = json!({"conditions": [{"type": "Established", "status": "False", "reason": "NotAccepted", "message": "",
            "lastTransitionTime": "2026-11-28T11:50:00Z"}]});
    });
    let seen_definitions = [lacks, newer, other, unserved, rejected, missing.clone(), unknown.clone()];
    report.add("Definitions", definitions::findings(&seen_definitions, now()));
    let kept = established(POOLS, |crd| {
        crd["metadata"]["annotations"] =
            json!({"meta.helm.sh/release-name": "old", "meta.helm.sh/release-namespace": "ns"});
    });
    report.add("Definitions before", definitions::findings_before(&[missing, kept, unknown]));
    let silent = lease("sluice-a", "2026-11-28T11:50:00.000000Z");
    let free = lease("", "2026-11-28T11:50:00.000000Z");
    for (deployments, lease) in [
        (Ok(&[deployment("99.0.0", 0)][..]), Ok(Some(&silent))),
        (Ok(&[deployment("0.0.1", 1)][..]), Ok(Some(&free))),
        (Ok(&[][..]), Ok(None)),
        (Err(&not_read), Err(&not_read)),
    ] {
        report.add("Operator", operator::findings(deployments, lease, now()));
    }
    let refused = seen(&rights::OPERATOR, |at| if at < 2 { Ok(false) } else { Ok(true) });
    report.add(
        "Operator's rights",
        rights::of_others("the service account sluice-system/sluice", &refused, "upgrade the release"),
    );
    let [expired, soon] = [-1, 10].map(authority);
    let some = |bundle: Option<&str>, policy: &str| vec![webhook_configuration(bundle, policy)];
    let (down, up) = (endpoints(&[false, false]), endpoints(&[true, false]));
    for (configurations, endpoints, admission) in [
        (vec![], &down, Admission::NotCalled),
        (some(None, "Fail"), &up, Admission::CallFailed("failed calling webhook: connection refused".to_owned())),
        (some(Some("x"), "Fail"), &up, Admission::Denied("the ConnectionPool shop is not accepted".to_owned())),
        (some(Some(&expired), "Fail"), &up, Admission::NotCalled),
        ([some(Some(&soon), "Ignore"), some(Some(&soon), "Fail")].concat(), &up, Admission::NotCalled),
    ] {
        report.add("Webhook", webhook::findings(Ok(&configurations), Ok(endpoints), Ok(&admission), now()));
    }
    let (all, bound) = policies(&["s", "s-creation"], &["Audit"]);
    report.add("Policies", policies::findings("s", false, Ok(&all), Ok(&bound)));
    let autoscaler = |policies: Value| {
        json!({
            "metadata": {"namespace": "shop", "name": "shop"}, "spec": {"resourcePolicy": {"containerPolicies": policies}},
            "status": {"recommendation": {"containerRecommendations": [{"containerName": "app"}, {"containerName": "sluice"}]}},
        })
    };
    let off = |name: &str| json!([{"containerName": name, "mode": "Off"}]);
    let troubled = [autoscaler(json!([])), autoscaler(off("sluice"))];
    report.add("VerticalPodAutoscalers", autoscalers::findings(Ok(Some(&troubled))));
    let calm = [autoscaler(off("sluice")), autoscaler(off("*"))];
    report.add("VerticalPodAutoscalers", autoscalers::findings(Ok(Some(&calm))));
    let unreadable =
        UnreadablePool { key: document(shop()).key(), words: "ConnectionPool shop/shop is not understood".to_owned() };
    let mut full = cart();
    full["status"]["pods"]["reporting"] = json!(1);
    full["status"]["conditions"].as_array_mut().expect("a list").push(condition(
        "UpstreamHealthy",
        "False",
        "TooManyServerConnections",
        "too many connections for role \"shop\"",
    ));
    let pools = [shop(), full, fresh()].map(document);
    let elsewhere = {
        let mut elsewhere = shop();
        elsewhere["spec"]["upstream"]["host"] = json!("another");
        document(elsewhere)
    };
    let pods = pods_of_two_versions();
    report.add("Sidecars", sidecars::findings(Ok(&pods), Some("sluice")));
    report.add("Sidecars", sidecars::findings(Err(&not_read), None));
    report.add("Pools", pools::findings(Ok((&pools, &[unreadable])), now()));
    report.add("Capacity", capacity::findings(Ok(&[&pools[..], &[elsewhere]].concat()), now()));
    let used: Vec<rights::Right> = rights::USED.iter().map(|used| used.right.clone()).collect();
    report.add("Your rights", rights::of_yours(&seen(&used, |at| if at % 3 == 2 { Ok(false) } else { Ok(true) })));
    assert_eq!(report.worst(), FindingLevel::Failed);
    let told = report.sections.iter().flat_map(|section| &section.findings);
    for finding in told.filter(|finding| finding.level != FindingLevel::Ok) {
        assert!(finding.todo.as_ref().is_some_and(|todo| todo.len() > 10), "{finding:?}");
    }
    insta::assert_snapshot!("check_failures", report.text().replace(env!("CARGO_PKG_VERSION"), "VERSION"));
}

#[test]
fn a_pod_for_trial_is_one_of_an_accepted_pool_and_its_answer_is_told_from_others() {
    let pod = webhook::trial_pod(&document(shop())).expect("a pod");
    let labels = pod.metadata.labels.expect("labels");
    assert_eq!(labels.get("app").map(String::as_str), Some("shop"));
    assert_eq!(labels.get("sluice.dev/inject").map(String::as_str), Some("enabled"));
    assert!(webhook::trial_pod(&document(fresh())).is_none(), "nobody has accepted it");
    let mut picky = shop();
    picky["spec"]["workload"]["selector"]["matchExpressions"] = json!([{"key": "tier", "operator": "Exists"}]);
    assert!(webhook::trial_pod(&document(picky)).is_none());
    let denied =
        "create a pod: admission webhook \"pod.inject.sluice.dev\" denied the request: no ConnectionPool selects it";
    assert_eq!(webhook::refusal(denied), Some(Admission::Denied("no ConnectionPool selects it".to_owned())));
    let failed = "Internal error occurred: failed calling webhook \"pod.inject.sluice.dev\": connection refused";
    assert_eq!(webhook::refusal(failed), Some(Admission::CallFailed(failed.to_owned())));
    assert_eq!(webhook::refusal("pods is forbidden: User \"eve\" cannot create resource \"pods\""), None);
    let injected = self::pod("shop-a", "a", 7, &json!({"seq": 1, "share": 1, "granted": 1, "floor": 1}));
    assert_eq!(webhook::admission(&injected), Admission::Injected { pool: "shop".to_owned() });
    assert_eq!(webhook::admission(&Pod::default()), Admission::NotCalled);
}

#[test]
fn completion_offers_verbs_flags_values_and_pools() {
    let root = <crate::cli::plugin::PluginCli as clap::CommandFactory>::command();
    let offer = |words: &str| completion::offer(&root, &words.split(' ').map(str::to_owned).collect::<Vec<_>>());
    let shown = |words: &str| match offer(words) {
        Offer::Pools { beginning, cluster } => format!("pools that begin with {beginning:?} {cluster:?}\n"),
        offer => completion::text(&offer, &[]),
    };
    let typed = [
        "",
        "re",
        "rollout ",
        "status --o",
        "get -o ",
        "get --output=y",
        "pause --dry-run=",
        "status sh",
        "status shop ",
        "pause shop ",
        "rollout p",
        "rollout undo sh",
        "rollout undo shop ",
        "rollout promote shop --",
        "-n shop why ",
        "why --namespace=shop --context x ",
        "get --kubeconfig ",
        "check ",
        "nonsense ",
    ];
    let said: Vec<String> =
        typed.iter().map(|words| format!("kubectl sluice {words}<TAB>\n{}", shown(words))).collect();
    insta::assert_snapshot!("completion", said.join("\n"));
    let pools = Offer::Pools { beginning: "sh".to_owned(), cluster: Vec::new() };
    assert_eq!(completion::text(&pools, &["cart".to_owned(), "shop".to_owned()]), "shop\n:4\n");
}

#[test]
fn whatever_is_misspelt_is_answered_with_words_of_the_vocabulary() {
    for word in vocabulary::reasons() {
        assert_eq!(vocabulary::reason(&word.to_lowercase()), Ok(word));
    }
}
