//! Injection: what every pod gets, whatever it looks like.

use std::collections::BTreeSet;

use json_patch::patch;
use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::{Value, json};
use sluice::{
    api::{ConnectionPool, SecretRef},
    contract::{Document, GrantDocument, PoolRevision, RevisionDocument, names},
    decide::effective::{EffectivePool, effective},
    inject::{InjectError, Injected, InjectionSettings, PodPool, disown, inject, injection_of},
    webhook::admission::{Catalogue, Freshness, Verdict, review},
};

fn settings() -> InjectionSettings {
    InjectionSettings {
        agent_image: "registry.test/sluice:1".to_owned(),
        pgbouncer_image: "registry.test/pgbouncer:1.24.1".to_owned(),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        image_pull_secrets: vec!["registry".to_owned()],
        run_as_user: Some(65532),
        allowed: sluice::decide::allowed::PoolAllowList::default(),
    }
}

fn pool(extra: &str) -> ConnectionPool {
    let scaling = if extra.contains("  scaling:") { "" } else { "  scaling: {maxAllowed: 100}\n" };
    let text = format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: ConnectionPool\nmetadata: {{name: shop, namespace: shop}}\nspec:\n  \
         budgetRef: {{name: pg-main}}\n  workload: {{selector: {{matchLabels: {{app: shop}}}}}}\n  \
         upstream:\n    host: pg-main-rw.db.svc\n    database: shop\n    credentialsRef: {{name: shop-db}}\n    \
         tls: {{mode: VerifyFull, caRef: {{name: pg-ca, key: root.pem}}}}\n{scaling}{extra}"
    );
    serde_yaml::from_str(&text).expect("the fixture is a pool")
}

fn resolved(pool: &ConnectionPool) -> EffectivePool {
    effective(&pool.spec, None).expect("accepted")
}

fn with_pool<T>(pool: &ConnectionPool, look: impl FnOnce(&PodPool<'_>) -> T) -> T {
    let effective = resolved(pool);
    let revision = PoolRevision { revision: 7, settings: effective.settings.clone() };
    look(&PodPool { pool, effective: &effective, revision })
}

fn injected(pod: &Value, pool: &ConnectionPool) -> Injected {
    with_pool(pool, |plan| inject(&typed(pod), plan, &settings())).expect("injected")
}

fn typed(pod: &Value) -> Pod {
    serde_json::from_value(pod.clone()).expect("a pod")
}

/// The pod as the API server has it after the patch.
fn admitted(pod: &Value, pool: &ConnectionPool) -> Value {
    let mut after = pod.clone();
    patch(&mut after, &injected(pod, pool).patch).expect("the patch applies");
    after
}

fn plain() -> Value {
    json!({"metadata": {"generateName": "shop-"}, "spec": {"containers": [{"name": "app", "image": "app"}]}})
}

#[test]
fn the_smallest_pod_gets_everything_that_a_pooler_needs() {
    let mut pod = admitted(&plain(), &pool(""));
    // What a revision says is not injection's to decide.
    pod["metadata"]["annotations"][names::REVISION_ANNOTATION] = json!("a revision document");
    insta::with_settings!({snapshot_path => "inject"}, { insta::assert_yaml_snapshot!("smallest_pod", pod) });
}

#[test]
fn the_patch_names_every_element_that_it_touches_and_no_other() {
    let pod = json!({
        "metadata": {"name": "shop-1", "labels": {"app": "shop"}, "annotations": {
            "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes": "tmp"}},
        "spec": {
            "initContainers": [{"name": "migrate", "image": "app", "env": [{"name": "PGPORT", "value": "6000"}]}],
            "containers": [{"name": "app", "image": "app", "env": [
                {"name": "A", "value": "1"}, {"name": "PGHOST", "value": "x"}, {"name": "PGHOST", "value": "y"}]}],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
            "imagePullSecrets": [{"name": "registry"}],
        }
    });
    let paths: Vec<String> = injected(&pod, &pool(""))
        .patch
        .0
        .iter()
        .map(|operation| {
            let value = serde_json::to_value(operation).expect("JSON");
            format!("{} {}", value["op"].as_str().expect("op"), value["path"].as_str().expect("path"))
        })
        .collect();
    insta::with_settings!({snapshot_path => "inject"}, { insta::assert_yaml_snapshot!("patch_paths", paths) });
}

#[test]
fn a_certificate_for_clients_is_in_the_volume_that_the_sidecar_alone_has() {
    let pod = admitted(&plain(), &pool("  client: {tls: {mode: Require, certificateRef: {name: shop-tls}}}\n"));
    let volumes = pod["spec"]["volumes"].as_array().expect("a list");
    let config = volumes.iter().find(|volume| volume["name"] == names::CONFIG_VOLUME).expect("the volume");
    let shown = json!({
        "volume": config["projected"]["sources"],
        "application": {"env": pod["spec"]["containers"][0]["env"], "mounts": pod["spec"]["containers"][0]["volumeMounts"]},
        "injection": pod["spec"]["initContainers"][1]["env"][0]["value"],
    });
    insta::with_settings!({snapshot_path => "inject"}, { insta::assert_yaml_snapshot!("client_tls", shown) });
}

#[test]
fn a_certificate_for_the_database_is_in_the_volume_that_the_sidecar_alone_has() {
    let of = |reference: &str| {
        let mut shown = pool("");
        let tls = shown.spec.upstream.tls.as_mut().expect("TLS");
        tls.client_cert_ref = (!reference.is_empty()).then(|| SecretRef { name: reference.to_owned() });
        let pod = admitted(&plain(), &shown);
        let volumes = pod["spec"]["volumes"].as_array().expect("a list").clone();
        let config = volumes.into_iter().find(|volume| volume["name"] == names::CONFIG_VOLUME).expect("the volume");
        assert!(pod["spec"]["containers"][0].get("volumeMounts").is_none(), "the application has nothing of it");
        let injection = injection_of(&typed(&pod)).expect("a sidecar").expect("valid");
        (config["projected"]["sources"].as_array().expect("a list").clone(), injection)
    };
    let (without, plain) = of("");
    let (with, injection) = of("shop-db-client");
    assert_eq!(without.len() + 1, with.len());
    assert_eq!(
        with.last(),
        Some(&json!({"secret": {"name": "shop-db-client", "items": [
            {"key": "tls.crt", "path": "upstream-tls/tls.crt"}, {"key": "tls.key", "path": "upstream-tls/tls.key"},
        ]}}))
    );
    assert!(!plain.upstream.tls.own_certificate && injection.upstream.tls.own_certificate);
    assert_ne!(plain.fixed_hash, injection.fixed_hash);
    assert_ne!(of("another").1.fixed_hash, injection.fixed_hash, "a pod with another Secret has to be created anew");
}

#[test]
fn a_guaranteed_pod_stays_guaranteed() {
    let both = json!({"cpu": "1", "memory": "1Gi"});
    let mut pod = plain();
    pod["spec"]["containers"][0]["resources"] = json!({"requests": both, "limits": both});
    let outcome = injected(&pod, &pool(""));
    assert!(outcome.warnings.iter().any(|warning| warning.contains("Guaranteed")), "{:?}", outcome.warnings);
    for container in admitted(&pod, &pool(""))["spec"]["initContainers"].as_array().expect("a list") {
        let resources = &container["resources"];
        assert_eq!(resources["requests"], resources["limits"], "{}", container["name"]);
        assert!(resources["limits"]["cpu"].is_string() && resources["limits"]["memory"].is_string());
    }
}

#[test]
fn whatever_the_pool_says_of_the_sidecars_resources_the_copier_has_too() {
    for resources in ["{}", "{limits: {cpu: 200m}}", "{requests: {cpu: 50m, memory: 64Mi}, limits: {memory: 128Mi}}"] {
        let pod = admitted(&plain(), &pool(&format!("  sidecar: {{resources: {resources}}}\n")));
        let [copier, sidecar] = [0, 1].map(|index| pod["spec"]["initContainers"][index]["resources"].clone());
        assert_eq!(copier, sidecar, "{resources}");
    }
}

#[test]
fn what_the_pod_asks_for_as_a_whole_grows_by_what_the_sidecar_asks_for_once() {
    let mut pod = plain();
    pod["spec"]["resources"] = json!({"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "256Mi", "hugepages-2Mi": "2Mi"}});
    let shop = pool("  sidecar: {resources: {limits: {memory: 80Mi}}}\n");
    let once = admitted(&pod, &shop);
    let expected = json!({"requests": {"cpu": "110m", "memory": "160Mi"}, "limits": {"cpu": "1010m", "memory": "336Mi", "hugepages-2Mi": "2Mi"}});
    assert_eq!(once["spec"]["resources"], expected);
    assert_eq!(admitted(&once, &shop), once, "a second admission changes nothing");

    let both = json!({"cpu": "1", "memory": "1Gi"});
    pod["spec"]["resources"] = json!({"requests": both, "limits": both});
    let guaranteed = admitted(&pod, &shop);
    assert_eq!(guaranteed["spec"]["resources"]["requests"], guaranteed["spec"]["resources"]["limits"], "it stays so");
    assert_eq!(guaranteed["spec"]["resources"]["limits"], json!({"cpu": "1250m", "memory": "1104Mi"}));
}

#[test]
fn a_vertical_pod_autoscaler_leaves_our_containers_alone() {
    let listed = |annotations: Value| {
        let mut pod = plain();
        pod["metadata"]["annotations"] = annotations;
        pod["spec"]["initContainers"] = json!([{"name": "migrate"}, {"name": "proxy", "restartPolicy": "Always"}]);
        let once = admitted(&pod, &pool(""));
        assert_eq!(admitted(&once, &pool("")), once, "a second admission changes nothing");
        once["metadata"]["annotations"]["vpaObservedContainers"].clone()
    };
    assert_eq!(listed(json!({})), "app, proxy");
    assert_eq!(listed(json!({"vpaObservedContainers": "app"})), "app", "what it has written itself stays");
    assert_eq!(listed(json!({"vpaObservedContainers": "app, sluice-bin, sluice"})), "app", "it came after us");
}

#[test]
fn a_platform_that_assigns_users_gets_no_user() {
    let own = InjectionSettings { run_as_user: None, ..settings() };
    let outcome = with_pool(&pool(""), |plan| inject(&typed(&plain()), plan, &own)).expect("injected");
    let mut pod = plain();
    patch(&mut pod, &outcome.patch).expect("applies");
    for container in pod["spec"]["initContainers"].as_array().expect("a list") {
        assert!(container["securityContext"].get("runAsUser").is_none());
        assert_eq!(container["securityContext"]["runAsNonRoot"], true);
    }
}

/// The kubelet expands `$(NAME)` in values and shortens `$$`; what the agent reads must be what was meant.
#[test]
fn a_database_name_that_looks_like_a_variable_arrives_as_it_is() {
    for database in ["$(PATH)", "$$", "a$b", "a'b\"c;d%e=f", "größe", "a\nb", "{port}"] {
        let mut pool = pool("  client: {env: [{name: PGDATABASE, template: '{database}'}]}\n");
        pool.spec.upstream.database = database.to_owned();
        let pod = admitted(&plain(), &pool);
        let injection = injection_of(&typed(&pod)).expect("a sidecar").expect("valid");
        assert_eq!(injection.upstream.database, database);
        for value in [&pod["spec"]["initContainers"][1]["env"][0], &pod["spec"]["containers"][0]["env"][0]] {
            let value = value["value"].as_str().expect("a value");
            assert!(!value.replace("$$", "").contains('$'), "the kubelet would expand {value}");
        }
        let told = pod["spec"]["containers"][0]["env"][0]["value"].as_str().expect("a value").replace("$$", "$");
        assert_eq!(told, database);
    }
}

#[test]
fn what_could_bypass_the_pooler_or_clash_with_it_is_told() {
    let mut pod = plain();
    pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
    pod["spec"]["shareProcessNamespace"] = json!(true);
    pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 5432}, {"containerPort": 9130, "protocol": "TCP"}, {"containerPort": 5432, "protocol": "UDP"}]);
    pod["spec"]["containers"][0]["env"] = json!([
        {"name": "DATABASE_URL", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        {"name": "OTHER", "value": "jdbc:postgresql://pg-main-rw.db.svc:5432/shop"},
        {"name": "PGHOST", "value": "pg-main-rw.db.svc"},
    ]);
    insta::with_settings!({snapshot_path => "inject"}, { insta::assert_yaml_snapshot!("warnings", injected(&pod, &pool("")).warnings) });
}

/// The warnings for a pod whose application has this beside its name and image.
fn warned(container: &Value, pool: &ConnectionPool) -> Vec<String> {
    let mut pod = plain();
    json_patch::merge(&mut pod["spec"]["containers"][0], container);
    injected(&pod, pool).warnings
}

#[test]
fn a_variable_that_may_lead_past_the_pooler_is_told_by_its_name_and_never_with_its_value() {
    let from = |kind: &str| json!({kind: {"name": "shop-db", "key": "k"}});
    let secret = from("secretKeyRef");
    let map = from("configMapKeyRef");
    for (name, source, words) in [
        ("DB_URI", &secret, "DB_URI comes from a Secret"),
        ("SPRING_DATASOURCE_URL", &secret, "SPRING_DATASOURCE_URL comes from a Secret"),
        ("POSTGRES_PRISMA_URL", &secret, "POSTGRES_PRISMA_URL comes from a Secret"),
        ("ConnectionStrings__Default", &secret, "ConnectionStrings__Default comes from a Secret"),
        ("DB_HOST", &secret, "DB_HOST comes from a Secret"),
        ("POSTGRES_SERVER", &secret, "POSTGRES_SERVER comes from a Secret"),
        ("SHOP_DSN", &secret, "SHOP_DSN comes from a Secret"),
        ("DATABASE_URL", &map, "DATABASE_URL comes from a ConfigMap"),
        ("DB_HOST", &map, "DB_HOST comes from a ConfigMap"),
    ] {
        let told = warned(&json!({"env": [{"name": name, "valueFrom": source}]}), &pool(""));
        assert!(told.len() == 1 && told[0].contains(words), "{name}: {told:?}");
        let set = pool(&format!("  client: {{env: [{{name: {name}, template: x}}]}}\n"));
        let told = warned(&json!({"env": [{"name": name, "valueFrom": source}]}), &set);
        assert!(told.is_empty(), "{name} is the pool's: {told:?}");
    }
    for name in ["PGUSER", "PGPASSWORD", "DB_PASSWORD", "API_URL", "SMTP_HOST", "POSTGRES_DB", "AWS_DEFAULT_REGION"] {
        let told = warned(&json!({"env": [{"name": name, "valueFrom": secret}]}), &pool(""));
        assert!(told.is_empty(), "{name}: {told:?}");
    }
    let service = warned(&json!({"env": [{"name": "PGSERVICE", "value": "main"}]}), &pool(""));
    assert!(
        service.len() == 1 && service[0].contains("container app: PGSERVICE names a connection service"),
        "{service:?}"
    );
    let sources = json!({"envFrom": [{"secretRef": {"name": "shop-env"}}, {"configMapRef": {"name": "common"}}]});
    let told = warned(&sources, &pool(""));
    assert!(
        told.len() == 1 && told[0].contains("envFrom is not looked into (Secret shop-env, ConfigMap common)"),
        "{told:?}"
    );
    assert!(told[0].contains("PGHOST, PGPORT, PGSSLMODE"), "which names are safe: {told:?}");
}

#[test]
fn the_database_is_known_by_every_name_that_leads_to_it_in_the_cluster_wherever_it_stands() {
    let mut here = pool("");
    here.spec.upstream.host = "pg-main-rw.shop.svc".to_owned();
    let words = "names the database's host pg-main-rw.shop.svc, so its connections bypass the pooler";
    for (place, value) in [
        ("env", json!([{"name": "DB_HOST", "value": "pg-main-rw"}])),
        ("env", json!([{"name": "DB_HOST", "value": "pg-main-rw.shop:5432"}])),
        ("env", json!([{"name": "SHOP", "value": "postgres://u:hunter2@pg-main-rw/shop"}])),
        ("env", json!([{"name": "SHOP", "value": "Host=pg-main-rw;Database=shop;Password=hunter2"}])),
        ("env", json!([{"name": "SHOP", "value": "{\"db\": \"PG-main-rw.shop.svc.cluster.local\"}"}])),
        ("args", json!(["--db-host=pg-main-rw", "--port=5432"])),
        ("args", json!(["-h", "pg-main-rw", "-c", "select 1"])),
        ("args", json!(["-hpg-main-rw"])),
        ("command", json!(["sh", "-c", "exec app --url postgres://u:hunter2@pg-main-rw:5432/shop"])),
        ("command", json!(["sh", "-c", "psql -h pg-main-rw.shop.svc -f /init.sql"])),
    ] {
        let told = warned(&json!({place: value}), &here);
        assert!(told.len() == 1 && told[0].contains(words), "{value}: {told:?}");
        assert!(!told[0].contains("hunter2"), "{told:?}");
    }
    for (place, value) in [
        ("env", json!([{"name": "NAME", "value": "pg-main-rw"}, {"name": "DB_HOST", "value": "pg-main-rw.other"}])),
        ("env", json!([{"name": "SHOP", "value": "postgres://pg-main-rw@127.0.0.1/shop"}])),
        (
            "env",
            json!([{"name": "SHOP", "value": "postgres://u@$(PGHOST)/shop"}, {"name": "PGHOSTADDR", "value": "10.0.0.7"}]),
        ),
        ("args", json!(["--release", "pg-main-rw", "--host=127.0.0.1", "pg-main-rw"])),
    ] {
        let told = warned(&json!({place: value}), &here);
        assert!(told.is_empty(), "{value}: {told:?}");
    }
    // in another namespace the short name is another Service
    assert!(warned(&json!({"env": [{"name": "DB_HOST", "value": "pg-main-rw"}]}), &pool("")).is_empty());
    assert_eq!(warned(&json!({"env": [{"name": "DB_HOST", "value": "pg-main-rw.db"}]}), &pool("")).len(), 1);
}

#[test]
fn variables_by_which_libpq_passes_by_the_pooler_or_refuses_it_are_set_right() {
    let shop = pool("");
    let env_of = |container: &Value, pool: &ConnectionPool| {
        let mut pod = plain();
        json_patch::merge(&mut pod["spec"]["containers"][0], container);
        let once = admitted(&pod, pool);
        assert_eq!(admitted(&once, pool), once, "a second admission changes nothing");
        once["spec"]["containers"][0]["env"].clone()
    };
    let value_of = |container: &Value, pool: &ConnectionPool, name: &str| {
        let env = env_of(container, pool);
        let of_name: Vec<Value> =
            env.as_array().expect("a list").iter().filter(|v| v["name"] == name).cloned().collect();
        assert!(of_name.len() <= 1, "{env}");
        of_name.first().map(|variable| {
            assert!(variable.get("valueFrom").is_none(), "{env}");
            variable["value"].as_str().unwrap_or_default().to_owned()
        })
    };
    let given = |name: &str, value: &str| json!({"env": [{"name": name, "value": value}]});
    for (name, breaking, neutral) in [
        ("PGHOSTADDR", "10.0.0.7", ""),
        ("PGSSLROOTCERT", "system", ""),
        ("PGSSLNEGOTIATION", "direct", "postgres"),
        ("PGCHANNELBINDING", "require", "prefer"),
        ("PGSSLCERTMODE", "require", "allow"),
        ("PGGSSENCMODE", "require", "prefer"),
    ] {
        assert_eq!(value_of(&given(name, breaking), &shop, name).as_deref(), Some(neutral), "{name}");
        let own = pool(&format!(
            "  client: {{env: [{{name: PGHOST, template: '{{host}}'}}, {{name: {name}, template: own}}]}}\n"
        ));
        assert_eq!(value_of(&given(name, breaking), &own, name).as_deref(), Some("own"), "the pool has the last word");
        let none = pool("  client: {env: [{name: DB_HOST, template: '{host}'}]}\n");
        assert_eq!(value_of(&given(name, breaking), &none, name).as_deref(), Some(breaking), "libpq is not led here");
    }
    assert_eq!(
        value_of(&given("PGSSLROOTCERT", "/etc/ca.crt"), &shop, "PGSSLROOTCERT").as_deref(),
        Some("/etc/ca.crt")
    );
    let verified = pool("  client: {env: [{name: PGSSLMODE, template: verify-full}]}\n");
    assert_eq!(value_of(&given("PGSSLROOTCERT", "system"), &verified, "PGSSLROOTCERT").as_deref(), Some("system"));
    let secret = json!({"env": [{"name": "PGHOSTADDR", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]});
    assert_eq!(value_of(&secret, &shop, "PGHOSTADDR").as_deref(), Some(""));
    let unseen = json!({"envFrom": [{"secretRef": {"name": "s"}}]});
    assert_eq!(value_of(&unseen, &shop, "PGHOSTADDR").as_deref(), Some(""), "a variable wins over envFrom");
    assert_eq!(value_of(&json!({}), &shop, "PGHOSTADDR"), None, "nothing is set where nothing is to be undone");
}

#[test]
fn whatever_time_a_pod_has_to_end_its_agent_is_told_one_that_it_reads() {
    for (grace, told) in [(i64::MIN, "1"), (0, "1"), (30, "25"), (1 << 40, "4294967295"), (i64::MAX, "4294967295")] {
        let mut pod = plain();
        pod["spec"]["terminationGracePeriodSeconds"] = json!(grace);
        pod["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"sleep": {"seconds": i64::MAX}}});
        let outcome = injected(&pod, &pool(""));
        let is_told = outcome.warnings.iter().any(|warning| warning.contains("terminationGracePeriodSeconds"));
        assert_eq!(is_told, grace < i64::MAX, "{grace}: {:?}", outcome.warnings);
        let pod = admitted(&pod, &pool(""));
        let variables = pod["spec"]["initContainers"][1]["env"].as_array().expect("a list").clone();
        let grace_seconds = variables.iter().find(|variable| variable["name"] == names::GRACE_VARIABLE);
        assert_eq!(grace_seconds.expect("it is told")["value"], told, "{grace}");
        told.parse::<u32>().expect("what the agent reads");
    }
}

#[test]
fn a_pod_is_looked_through_and_told_of_within_bounds_whatever_its_creator_writes() {
    let mut pod = plain();
    pod["spec"]["containers"] = json!([
        {"name": "app", "env": [{"name": "DATABASE_URL", "value": "postgres://pg-main-rw.db.svc/shop"}]},
        {"name": "text", "args": ["x".repeat(300 << 10), "postgres://pg-main-rw.db.svc/shop"]},
    ]);
    let warnings = injected(&pod, &pool("")).warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("container app: DATABASE_URL names the database's host"), "{warnings:?}");
    assert!(warnings[1].contains("container text has more text than is looked through"), "{warnings:?}");
    let variables: Vec<Value> = (0..500)
        .map(|number| json!({"name": format!("DB_{number}_URL"), "value": "postgres://pg-main-rw.db.svc"}))
        .collect();
    pod["spec"]["containers"] = json!([{"name": "app", "env": variables}]);
    let warnings = injected(&pod, &pool("")).warnings;
    assert_eq!(warnings.len(), 33);
    assert_eq!(warnings[32], "468 further warnings are left out; correct these first");
}

#[test]
fn what_pgbouncer_would_refuse_of_the_environment_is_told_by_name_and_never_with_its_value() {
    let told = |variable: Value, extra: &str| {
        let mut pod = plain();
        pod["spec"]["containers"][0]["env"] = json!([variable]);
        let warnings = injected(&pod, &pool(extra)).warnings;
        assert!(warnings.len() <= 1, "{warnings:?}");
        warnings.into_iter().next().unwrap_or_default()
    };
    let options = |value: &str| json!({"name": "PGOPTIONS", "value": value});
    let warning = told(options("-c search_path=app -c TimeZone=UTC --app.key=hunter2 -cwork_mem=1GB"), "");
    assert!(warning.contains("PGOPTIONS asks for the startup parameter search_path, app.key, work_mem,"), "{warning}");
    assert!(!warning.contains("hunter2") && warning.contains("container app"), "{warning}");
    assert_eq!(told(options("-c timezone=UTC -c datestyle=ISO"), ""), "");
    let by_default = "-c extra_float_digits=3 -c IntervalStyle=postgres";
    assert_eq!(told(options(by_default), ""), "");
    let ignored = "  pgbouncer: {parameters: {ignore_startup_parameters: options}}\n";
    assert_eq!(told(options("-c search_path=app"), ignored), "");
    let ignored = "  pgbouncer: {parameters: {ignore_startup_parameters: search_path}}\n";
    assert_eq!(told(options(&format!("-c search_path=app {by_default}")), ignored), "");
    let tracked = "  pgbouncer: {parameters: {track_extra_parameters: 'IntervalStyle, search_path'}}\n";
    assert_eq!(told(options("-c search_path=app"), tracked), "");
    let from = json!({"name": "PGOPTIONS", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}});
    assert!(told(from.clone(), "").contains("PGOPTIONS asks for the startup parameters that it holds,"));
    assert_eq!(told(from, "  pgbouncer: {parameters: {ignore_startup_parameters: options}}\n"), "");
    // what is no name may be part of a value
    let warning = told(options("-c app.key=hunter\\ 2 -c jit=off hunter2 -d5 -c hunter3"), "");
    assert!(warning.contains("startup parameter app.key, jit, another option,"), "{warning}");
    assert!(!warning.contains("hunter"), "{warning}");
    assert!(told(json!({"name": "PGGEQO", "value": "off"}), "").contains("startup parameter geqo"));
}

#[test]
fn what_pgbouncer_would_refuse_of_a_connection_string_is_told_by_name_wherever_it_stands() {
    let told = |place: &str, value: Value, extra: &str| {
        let mut pod = plain();
        pod["spec"]["containers"][0][place] = value;
        let warnings = injected(&pod, &pool(extra)).warnings;
        assert!(warnings.len() <= 1, "{warnings:?}");
        let warning = warnings.into_iter().next().unwrap_or_default();
        assert!(!warning.contains("hunter2"), "a URL may hold a secret: {warning}");
        let asked = warning.split_once(" asks for the startup parameter ").unwrap_or_default();
        let (names, _) = asked.1.split_once(", which PgBouncer may refuse").unwrap_or_default();
        (asked.0.to_owned(), names.to_owned())
    };
    let in_variable = |url: &str, extra: &str| told("env", json!([{"name": "SHOP_DB", "value": url}]), extra);
    let nothing = (String::new(), String::new());
    for (url, names) in [
        ("jdbc:postgresql://127.0.0.1:5432/shop?user=shop&password=hunter2&currentSchema=app", "search_path"),
        (
            "jdbc:postgresql://localhost/shop?options=-c%20statement_timeout%3D5000%20-c%20jit%3Doff",
            "statement_timeout, jit",
        ),
        ("postgresql://shop:hunter2@127.0.0.1/shop?options=-csearch_path%3Dapp", "search_path"),
        ("postgresql://shop@127.0.0.1/shop?options=--app.key%3Dhunter2+-c+role%3Dx", "app.key, role"),
        (
            "postgres://shop:hunter2@127.0.0.1/shop?sslmode=disable&search_path=app&statement_timeout=5s",
            "search_path, statement_timeout",
        ),
        (
            "postgres://127.0.0.1/shop?lock_timeout=1&idle_in_transaction_session_timeout=1",
            "lock_timeout, idle_in_transaction_session_timeout",
        ),
        ("postgresql+asyncpg://shop:hunter2@127.0.0.1/shop?work_mem=hunter2", "work_mem"),
        ("postgres://127.0.0.1/shop?options[search_path]=hunter2&options%5Bjit%5D=off", "search_path, jit"),
        ("postgres://127.0.0.1/shop?options=$(SHOP_OPTIONS)", "options"),
        ("host=127.0.0.1 password=hunter2 dbname=shop search_path=app", "search_path"),
        (
            "host=127.0.0.1 password=hunter2 options='-c statement_timeout=5s -c role=hunter2'",
            "statement_timeout, role",
        ),
        ("Host=127.0.0.1;Password=hunter2;Search Path=app", "search_path"),
    ] {
        assert_eq!(in_variable(url, ""), ("container app: SHOP_DB".to_owned(), names.to_owned()), "{url}");
    }
    for fine in [
        "postgres://shop:hunter2@127.0.0.1/shop?sslmode=disable&application_name=shop&TimeZone=UTC&connect_timeout=3",
        "jdbc:postgresql://127.0.0.1/shop?ApplicationName=shop&prepareThreshold=0&options=-c%20TimeZone%3DUTC",
        "postgres://127.0.0.1/shop?options=",
        "https://127.0.0.1/?search_path=app&currentSchema=app",
        "search_path=app",
    ] {
        assert_eq!(in_variable(fine, ""), nothing, "{fine}");
    }

    let url = "jdbc:postgresql://127.0.0.1/shop?currentSchema=app&password=hunter2";
    let of_spring = json!(["java", format!("-Dspring.datasource.url={url}"), "-jar", "/shop.jar"]);
    assert_eq!(
        told("command", of_spring, ""),
        ("container app: a connection string in command".to_owned(), "search_path".to_owned())
    );
    let script = json!(["-c", format!("exec /shop --db '{url}' --role=hunter2"), "--and=postgres://h/d?jit=off"]);
    assert_eq!(
        told("args", script, ""),
        ("container app: a connection string in args".to_owned(), "search_path, jit".to_owned())
    );

    // what the pool ignores or tracks is no reason to warn, and options are no parameters of their own
    let both = "postgres://127.0.0.1/shop?search_path=app&options=-c%20jit%3Doff";
    let with = |name: &str, value: &str| format!("  pgbouncer: {{parameters: {{{name}: '{value}'}}}}\n");
    for (name, value, names) in [
        ("ignore_startup_parameters", "search_path", "jit"),
        ("ignore_startup_parameters", "options", "search_path"),
        ("ignore_startup_parameters", "options,search_path", ""),
        ("track_extra_parameters", "IntervalStyle, search_path", "jit"),
    ] {
        assert_eq!(in_variable(both, &with(name, value)).1, names, "{name} {value}");
    }
}

#[test]
fn a_secret_with_other_keys_is_projected_by_them() {
    let keys = |extra: &str| {
        let mut pool = pool("");
        let credentials = &mut pool.spec.upstream.credentials_ref;
        if !extra.is_empty() {
            (credentials.username_key, credentials.password_key) = (Some("user".to_owned()), Some(extra.to_owned()));
        }
        let pod = admitted(&plain(), &pool);
        let volumes = pod["spec"]["volumes"].as_array().expect("a list").clone();
        let config = volumes.into_iter().find(|volume| volume["name"] == "sluice-config").expect("the volume");
        let hash = injection_of(&typed(&pod)).expect("a sidecar").expect("valid").fixed_hash;
        let items = config["projected"]["sources"][1]["secret"]["items"].as_array().expect("items").clone();
        (items.iter().map(|item| (item["key"].clone(), item["path"].clone())).collect::<Vec<_>>(), hash)
    };
    let (named, other) = keys("pgpass");
    assert_eq!(
        named,
        [(json!("user"), json!("credentials/username")), (json!("pgpass"), json!("credentials/password"))]
    );
    let (usual, hash) = keys("");
    assert_eq!(usual[0].0, json!("username"));
    assert_ne!(hash, other, "a pod that was created with other keys has to be created anew");
}

#[test]
fn a_pod_that_may_be_killed_while_its_clients_wait_or_work_is_told_of() {
    let told = |grace: Value, pre_stop: Value, extra: &str| {
        let mut pod = plain();
        pod["spec"]["terminationGracePeriodSeconds"] = grace;
        pod["spec"]["containers"][0]["lifecycle"] = json!({"preStop": pre_stop});
        let mut warnings = injected(&pod, &pool(extra)).warnings;
        let before = warnings.len();
        warnings.retain(|warning| !warning.contains("before PgBouncer 1.26 it also cuts"));
        assert_eq!(before - warnings.len(), usize::from(extra.contains("query_timeout")), "told where it is set");
        assert!(warnings.len() <= 1, "{warnings:?}");
        warnings.into_iter().next().unwrap_or_default()
    };
    let sleeps = |seconds: i64| json!({"sleep": {"seconds": seconds}});
    assert_eq!(told(Value::Null, Value::Null, ""), "", "what Kubernetes and Sluice do by themselves fits together");
    assert_eq!(told(json!(40), sleeps(10), ""), "");
    assert_eq!(told(json!(30), json!({"exec": {"command": ["sleep", "30"]}}), ""), "", "how long it takes is unknown");
    let warning = told(json!(30), sleeps(10), "");
    assert!(warning.contains("(10 s preStop of the application + 30 s health.queryWaitTimeoutSeconds)"), "{warning}");
    assert!(warning.contains("use at least 40"), "{warning}");
    let bounded = "  health: {queryWaitTimeoutSeconds: 5}\n  pgbouncer: {parameters: {query_timeout: '59.5'}}\n";
    let warning = told(json!(60), Value::Null, bounded);
    assert!(
        warning.contains("60 s pgbouncer.parameters.query_timeout") && warning.contains("at least 65"),
        "{warning}"
    );
    assert_eq!(told(json!(65), Value::Null, bounded), "");
    assert!(told(json!(4), Value::Null, "  health: {queryWaitTimeoutSeconds: 1}\n").contains("use at least 5"));
}

#[test]
fn a_container_that_dumps_or_migrates_is_led_to_the_session_alias_by_name() {
    let told = |container: Value, extra: &str| {
        let mut pod = plain();
        for (key, value) in container.as_object().unwrap() {
            pod["spec"]["containers"][0][key] = value.clone();
        }
        let mut warnings = injected(&pod, &pool(extra)).warnings;
        warnings.retain(|warning| warning.contains("needs a session of its own"));
        warnings.pop().unwrap_or_default()
    };
    let alias = "  scaling: {floorPerPod: 4}\n  pgbouncer: {sessionAlias: {database: shop_session, connections: 2}}\n";
    let session = "  scaling: {algorithm: TargetUtilization}\n  pgbouncer: {poolMode: session}\n";
    let dump = json!({"command": ["sh", "-ec", "/usr/bin/pg_dump -Fc > /backup/shop.dump"]});
    for (tool, container) in [
        ("pg_dump", dump.clone()),
        ("vacuumdb", json!({"command": ["vacuumdb"], "args": ["--analyze"]})),
        ("migrate", json!({"command": ["python", "manage.py", "migrate"]})),
        ("db:migrate", json!({"args": ["bundle exec rake db:migrate && exec puma"]})),
        ("alembic", json!({"command": ["/venv/bin/alembic"], "args": ["upgrade", "head"]})),
        ("migration:run", json!({"command": ["npx", "typeorm", "migration:run"]})),
        ("flyway", json!({"image": "registry.test/flyway/flyway:11@sha256:abc"})),
        ("migrate", json!({"image": "migrate/migrate:v4.18"})),
    ] {
        let warning = told(container.clone(), alias);
        assert!(warning.contains(&format!(": {tool} needs a session")), "{tool}: {warning}");
        assert!(warning.contains("env PGDATABASE=shop_session"), "{warning}");
        let without = told(container.clone(), "");
        assert!(
            without.contains("set pgbouncer.sessionAlias of the pool") && without.contains("shop_session"),
            "{without}"
        );
        assert_eq!(told(container, session), "", "its pool gives it one");
    }
    // what serves must not queue for the connections of the alias
    for (runs_more, script) in [
        (true, "manage.py migrate && gunicorn shop.wsgi"),
        (true, "alembic upgrade head\nexec uvicorn shop:app"),
        (true, "wait-for db; flyway migrate"),
        (false, "set -e; cd /app; export PATH=/venv/bin:$PATH\nalembic upgrade head && echo done"),
        (false, "pg_dump shop 2>&1 | gzip > /backup/shop.gz"),
        (false, "exec migrate up || exit 1"),
    ] {
        for pool in [alias, ""] {
            let warning = told(json!({"command": ["sh", "-c", script]}), pool);
            assert!(warning.contains("PGDATABASE=shop_session"), "{script}: {warning}");
            assert_eq!(warning.contains("run it in a container of its own"), runs_more, "{script}: {warning}");
        }
    }
    for fine in [
        json!({"command": ["/app/server"], "args": ["--no-migrate", "/srv/migrate.sql", "immigrate"]}),
        json!({"image": "registry.test/migrate/shop:1"}),
        json!({"image": "postgres:18", "command": ["psql", "-c", "select 1"]}),
    ] {
        assert_eq!(told(fine, alias), "");
    }
    let with_alias = |mut container: Value, key: &str, value: Value| {
        container[key] = value;
        told(container, alias)
    };
    assert_eq!(with_alias(dump.clone(), "env", json!([{"name": "PGDATABASE", "value": "shop_session"}])), "");
    assert_eq!(with_alias(dump.clone(), "args", json!(["postgresql://u@h/shop_session?x=1"])), "");
    assert_ne!(with_alias(dump, "env", json!([{"name": "PGDATABASE", "value": "shop_sessions"}])), "");
}

#[test]
fn transactions_may_run_on_as_long_as_the_pod_lets_them() {
    for (grace, seconds) in [(Value::Null, "25"), (json!(120), "115"), (json!(3), "1"), (json!(0), "1")] {
        let mut pod = plain();
        pod["spec"]["terminationGracePeriodSeconds"] = grace;
        let pod = admitted(&pod, &pool(""));
        let environment = pod["spec"]["initContainers"][1]["env"].as_array().expect("a list");
        let given = environment.iter().find(|variable| variable["name"] == names::GRACE_VARIABLE).expect("given");
        assert_eq!(given["value"], seconds);
    }
}

#[test]
fn names_that_sluice_needs_are_refused_when_the_application_has_them() {
    let refused = |place: &str, value: Value| {
        let mut pod = plain();
        match pod["spec"][place].as_array_mut() {
            Some(list) => list.push(value),
            None => pod["spec"][place] = json!([value]),
        }
        with_pool(&pool(""), |plan| inject(&typed(&pod), plan, &settings())).expect_err("refused")
    };
    let what = |error: InjectError| match error {
        InjectError::ReservedName { what, .. } => what,
        InjectError::NoSpec => "no spec",
    };
    assert_eq!(what(refused("containers", json!({"name": "sluice"}))), "container");
    assert_eq!(what(refused("initContainers", json!({"name": "sluice-bin"}))), "init container");
    assert_eq!(what(refused("volumes", json!({"name": "sluice-run", "emptyDir": {}}))), "volume");
}

#[test]
fn another_webhooks_changes_to_our_containers_survive_a_second_admission() {
    let mut pod = admitted(&plain(), &pool(""));
    let init = pod["spec"]["initContainers"].as_array_mut().expect("a list");
    init[1]["image"] = json!("mirror.test/pgbouncer:1.24.1");
    init.insert(0, json!({"name": "mesh", "image": "mesh"}));
    let second = injected(&pod, &pool("")).patch;
    let env_of_newcomer =
        second.0.iter().all(|operation| operation.path().as_str().starts_with("/spec/initContainers/0/env"));
    assert!(env_of_newcomer, "only the newcomer's environment is due: {second}");
}

#[test]
fn a_copy_of_a_pod_of_other_days_gets_the_pooler_of_today_once() {
    let old = admitted(&plain(), &pool(""));
    let mut moved = pool("");
    moved.spec.upstream.host = "pg-other-rw.db.svc".to_owned();
    let new = admitted(&old, &moved);
    let containers: Vec<_> =
        new["spec"]["initContainers"].as_array().expect("a list").iter().map(|it| it["name"].clone()).collect();
    assert_eq!(containers, ["sluice-bin", "sluice"]);
    let injection = injection_of(&typed(&new)).expect("a sidecar").expect("valid");
    assert_eq!(injection.upstream.host, "pg-other-rw.db.svc");
}

#[test]
fn a_pod_counts_as_ours_by_its_container_and_never_by_its_labels() {
    let labelled = json!({"metadata": {"labels": {"sluice.dev/pool": "shop"}, "annotations": {"sluice.dev/grant": "{}"}},
        "spec": {"containers": [{"name": "sluice"}], "initContainers": [{"name": "sluice", "command": ["/bin/sh"]}]}});
    assert!(injection_of(&typed(&labelled)).is_none());
    let mut stripped = labelled.clone();
    patch(&mut stripped, &disown(&typed(&labelled))).expect("applies");
    assert_eq!(stripped["metadata"], json!({"labels": {}, "annotations": {}}));
}

#[test]
fn what_is_fixed_for_a_pod_shows_in_its_injection_and_the_operators_own_settings_do_not() {
    let fixed = |extra: &str| with_pool(&pool(extra), |plan| plan.injection().render());
    let before = fixed("");
    assert_eq!(before, fixed("  scaling: {maxAllowed: 50}\n"), "what reaches a running pod is not fixed");
    for change in [
        "  sidecar: {resources: {limits: {memory: 128Mi}}}\n",
        "  pgbouncer: {image: 'other:1'}\n",
        "  client: {env: [{name: DB_HOST, template: '{host}'}]}\n",
        "  client: {port: 6000}\n",
        "  client: {env: [], tls: {mode: Allow, certificateRef: {name: shop-tls}}}\n",
    ] {
        assert_ne!(before, fixed(change), "{change}");
    }
}

// --- the verdict

fn verdict(pod: &Value, pools: Vec<ConnectionPool>, freshness: Freshness) -> Verdict {
    let catalogue = Catalogue { pools: pools.into_iter().map(Into::into).collect(), classes: Vec::new() };
    review(&typed(pod), "shop", &catalogue, freshness, |_| None, &settings())
}

#[test]
fn a_cache_that_knows_no_pool_settles_nothing() {
    let pod =
        json!({"metadata": {"labels": {"app": "shop", "sluice.dev/inject": "enabled"}}, "spec": {"containers": []}});
    assert_eq!(verdict(&pod, Vec::new(), Freshness::Cached), Verdict::ReadLive);
    assert!(matches!(verdict(&pod, Vec::new(), Freshness::Live), Verdict::Deny(_)));
    assert!(matches!(verdict(&pod, vec![pool("")], Freshness::Cached), Verdict::Inject { .. }));
    let mut lost = pool("");
    lost.spec.class_ref = serde_json::from_value(json!({"name": "gone"})).expect("a reference");
    assert_eq!(verdict(&pod, vec![lost.clone()], Freshness::Cached), Verdict::ReadLive, "the class may be new");
    assert!(
        matches!(verdict(&pod, vec![lost], Freshness::Live), Verdict::Deny(message) if message.contains("ClassNotFound"))
    );
}

#[test]
fn a_pool_whose_settings_no_pooler_can_run_with_keeps_its_pods_waiting() {
    let pod =
        json!({"metadata": {"labels": {"app": "shop", "sluice.dev/inject": "enabled"}}, "spec": {"containers": []}});
    let wrong = pool("  pgbouncer: {parameters: {auth_file: /etc/passwd}}\n");
    let Verdict::Deny(message) = verdict(&pod, vec![wrong], Freshness::Cached) else {
        panic!("a pod started with a parameter that is not allowed");
    };
    assert!(message.contains("CannotRender") && message.contains("auth_file"), "{message}");
}

#[test]
fn pods_that_cannot_have_a_pooler_start_without_and_say_why() {
    for spec in [
        json!({"containers": [], "hostNetwork": true}),
        json!({"containers": [], "os": {"name": "windows"}}),
        json!({"containers": [], "nodeSelector": {"kubernetes.io/os": "windows"}}),
    ] {
        let pod = json!({"metadata": {"labels": {"app": "shop", "sluice.dev/inject": "enabled", "sluice.dev/pool": "x"}}, "spec": spec});
        let Verdict::Leave { patch, warnings } = verdict(&pod, vec![pool("")], Freshness::Cached) else {
            panic!("{spec} was injected or refused");
        };
        assert_eq!((patch.0.len(), warnings.len()), (1, 1), "the forged label goes, the reason stays");
    }
}

// --- properties

fn environment() -> impl Strategy<Value = Value> {
    let name =
        prop_oneof![Just("PGHOST"), Just("PGPORT"), Just("PGSSLMODE"), Just("DATABASE_URL"), Just("A"), Just("B")];
    let source = prop_oneof![
        "[a-z$()]{0,8}".prop_map(|value| json!({"value": value})),
        Just(json!({"valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}})),
        Just(json!({"valueFrom": {"fileKeyRef": {"path": "of a later Kubernetes"}}})),
    ];
    let variable = (name, source).prop_map(|(name, mut variable)| {
        variable["name"] = json!(name);
        variable
    });
    proptest::option::of(proptest::collection::vec(variable, 0..6))
        .prop_map(|list| list.map_or(Value::Null, Value::from))
}

fn container() -> impl Strategy<Value = Value> {
    environment().prop_map(|env| {
        let mut container = json!({"image": "app", "fieldOfALaterKubernetes": {"kept": true}});
        if !env.is_null() {
            container["env"] = env;
        }
        container
    })
}

fn labels() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        Just("app"),
        Just("sluice.dev/pool"),
        Just("sluice.dev/budget"),
        Just("sluice.dev/inject"),
        Just("a/b~c")
    ];
    proptest::option::of(proptest::collection::btree_map(key, "[a-z]{0,4}", 0..4))
        .prop_map(|map| map.map_or(Value::Null, |map| json!(map)))
}

fn annotations() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        Just("sluice.dev/grant"),
        Just("sluice.dev/revision"),
        Just("cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"),
        Just("x")
    ];
    let value = prop_oneof![Just(""), Just("tmp,sluice-bin"), Just("{\"v\":1}")];
    proptest::option::of(proptest::collection::btree_map(key, value, 0..4))
        .prop_map(|map| map.map_or(Value::Null, |map| json!(map)))
}

fn any_pod() -> impl Strategy<Value = Value> {
    let containers = proptest::collection::vec(container(), 1..4);
    let init = proptest::option::of(proptest::collection::vec(container(), 0..3));
    let volumes = proptest::option::of(0..3_usize);
    let secrets = proptest::option::of(proptest::collection::vec(prop_oneof![Just("registry"), Just("other")], 0..2));
    (labels(), annotations(), containers, init, volumes, secrets).prop_map(|(labels, annotations, containers, init, volumes, secrets)| {
        let named = |prefix: &str, list: Vec<Value>| -> Value {
            let named = list.into_iter().enumerate().map(|(index, mut it)| {
                it["name"] = json!(format!("{prefix}{index}"));
                it
            });
            named.collect()
        };
        let mut pod = json!({"metadata": {}, "spec": {"containers": named("app", containers), "schedulerHintsOfALaterKubernetes": [1]}});
        if !labels.is_null() {
            pod["metadata"]["labels"] = labels;
        }
        if !annotations.is_null() {
            pod["metadata"]["annotations"] = annotations;
        }
        if let Some(init) = init {
            pod["spec"]["initContainers"] = named("init", init);
        }
        if let Some(count) = volumes {
            pod["spec"]["volumes"] = (0..count).map(|n| json!({"name": format!("v{n}"), "emptyDir": {}})).collect();
        }
        if let Some(secrets) = secrets {
            pod["spec"]["imagePullSecrets"] = secrets.into_iter().map(|name| json!({"name": name})).collect();
        }
        pod
    })
}

fn list<'a>(pod: &'a Value, place: &str) -> Vec<&'a Value> {
    pod["spec"][place].as_array().into_iter().flatten().collect()
}

fn without_env(container: &Value) -> Value {
    let mut container = container.clone();
    container.as_object_mut().expect("an object").remove("env");
    container
}

proptest! {
    #[test]
    fn every_pod_gets_one_pooler_and_keeps_all_that_was_its_own(pod in any_pod(), referring in any::<bool>()) {
        let pool = if referring {
            pool("  client: {env: [{name: PGHOST, template: '{host}'}, {name: DATABASE_URL, template: 'pg://$(A)@{host}:{port}/{database}'}]}\n")
        } else {
            pool("")
        };
        let after = admitted(&pod, &pool);
        prop_assert_eq!(admitted(&after, &pool), after.clone(), "a second admission changes nothing");
        prop_assert!(injected(&after, &pool).patch.0.is_empty(), "nor does it send a patch");

        let init = list(&after, "initContainers");
        prop_assert_eq!(&init[0]["name"], "sluice-bin");
        prop_assert_eq!(&init[1]["name"], "sluice");
        let before = [list(&pod, "initContainers"), list(&pod, "containers")].concat();
        let kept = [init[2..].to_vec(), list(&after, "containers")].concat();
        prop_assert_eq!(before.len(), kept.len());
        let ours: BTreeSet<String> = resolved(&pool).pod.env.iter().map(|variable| variable.name.clone()).collect();
        for (was, is) in before.into_iter().zip(kept) {
            prop_assert_eq!(without_env(was), without_env(is), "order and every field, known or not");
            let variables = |container: &Value, own: bool| -> Vec<Value> {
                let all = container["env"].as_array().cloned().unwrap_or_default();
                all.into_iter().filter(|it| ours.contains(it["name"].as_str().expect("a name")) == own).collect()
            };
            prop_assert_eq!(variables(was, false), variables(is, false), "the application's own variables");
            let names: Vec<_> = variables(is, true).iter().map(|it| it["name"].as_str().expect("a name").to_owned()).collect();
            let unique: BTreeSet<_> = names.iter().cloned().collect();
            prop_assert_eq!(names.len(), unique.len(), "a variable stands twice");
            prop_assert_eq!(&unique, &ours);
        }
        let volumes: Vec<_> = list(&after, "volumes").iter().map(|it| it["name"].clone()).collect();
        let unique: BTreeSet<_> = volumes.iter().map(ToString::to_string).collect();
        prop_assert_eq!(volumes.len(), unique.len());
        for volume in list(&pod, "volumes") {
            prop_assert!(list(&after, "volumes").contains(&volume));
        }
        prop_assert_eq!(&after["spec"]["schedulerHintsOfALaterKubernetes"], &json!([1]));

        prop_assert_eq!(&after["metadata"]["labels"][names::POOL_LABEL], "shop");
        let annotation = |name: &str| after["metadata"]["annotations"][name].as_str().expect("an annotation").to_owned();
        let grant = GrantDocument::parse(&annotation(names::GRANT_ANNOTATION)).expect("a grant");
        let granted = grant.pools.get("shop").map(|grant| grant.granted);
        prop_assert_eq!((grant.epoch, granted), (0, Some(0)), "overwritten, never merged");
        let revision = RevisionDocument::parse(&annotation(names::REVISION_ANNOTATION)).expect("a revision");
        prop_assert_eq!(revision.pools.get("shop").map(|revision| revision.revision), Some(7));
    }
}
