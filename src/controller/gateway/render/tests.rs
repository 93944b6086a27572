use serde_json::json;

use super::*;
use crate::{contract::PoolRevision, decide::effective::effective};

fn pool(spec: &str) -> ConnectionPool {
    let text = format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: ConnectionPool\nmetadata: {{name: shop, namespace: shop, uid: u-1}}\nspec:\n  \
         topology: Gateway\n  upstream:\n    host: pg-main-rw.db.svc\n    database: shop\n    credentialsRef: {{name: shop-db}}\n    \
         tls: {{mode: VerifyFull, caRef: {{name: pg-ca, key: root.pem}}}}\n{spec}"
    );
    serde_yaml::from_str(&text).expect("the fixture is a pool")
}

fn of_version(version: &str) -> InjectionSettings {
    InjectionSettings {
        agent_image: format!("registry.test/sluice:{version}"),
        pgbouncer_image: "registry.test/pgbouncer:1.24.1".to_owned(),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        image_pull_secrets: vec!["registry".to_owned()],
        run_as_user: Some(65532),
        allowed: crate::decide::allowed::PoolAllowList::default(),
    }
}

fn rendered(pool: &ConnectionPool, version: &str, existing: Option<&Value>) -> Objects {
    let effective = effective(&pool.spec, None).expect("accepted");
    let revision = PoolRevision { revision: 1, settings: effective.settings.clone() };
    let existing: Option<Deployment> =
        existing.map(|existing| serde_json::from_value(existing.clone()).expect("a Deployment"));
    render(&PodPool { pool, effective: &effective, revision }, &of_version(version), existing.as_ref())
}

#[test]
fn a_pool_whose_name_no_service_can_have_is_known_by_its_name() {
    for name in ["shop", "s", "shop-v2", "a1"] {
        assert!(can_name_a_service(name), "{name}");
    }
    for name in ["1shop", "shop.v2", "", "-shop"] {
        assert!(!can_name_a_service(name), "{name}");
    }
}

#[test]
fn a_gateway_is_given_the_deadline_that_its_class_names() {
    let class = "apiVersion: sluice.dev/v1alpha1\nkind: ConnectionPoolClass\nmetadata: {name: patient}\n\
                 spec: {rollout: {progressDeadlineSeconds: 1200}}";
    let (pool, class) = (pool(""), serde_yaml::from_str(class).expect("the fixture is a class"));
    let effective = effective(&pool.spec, Some(&class)).expect("accepted");
    let revision = PoolRevision { revision: 1, settings: effective.settings.clone() };
    let objects = render(&PodPool { pool: &pool, effective: &effective, revision }, &of_version("1"), None);
    assert_eq!(objects.deployment["spec"]["progressDeadlineSeconds"], 1200);
}

fn image(deployment: &Value) -> &str {
    deployment["spec"]["template"]["spec"]["initContainers"][0]["image"].as_str().expect("an image")
}

/// Without the copy of the template, which would stand there twice.
fn without_record(mut deployment: Value) -> Value {
    deployment["metadata"].as_object_mut().expect("metadata").remove("annotations");
    deployment
}

#[test]
fn a_gateway_is_a_deployment_a_service_a_disruption_budget_and_a_note_where_it_is() {
    let Objects { deployment, service, disruption_budget, connection_info } = rendered(&pool(""), "1", None);
    insta::assert_yaml_snapshot!("deployment", without_record(deployment));
    insta::assert_yaml_snapshot!("others", [service, disruption_budget, connection_info]);
}

#[test]
fn a_gateway_shows_the_database_the_certificate_that_the_pool_names() {
    let mut pool = pool("");
    let tls = pool.spec.upstream.tls.as_mut().expect("TLS");
    tls.client_cert_ref = Some(crate::api::SecretRef { name: "shop-db-client".to_owned() });
    let deployment = rendered(&pool, "1", None).deployment;
    let volumes = deployment["spec"]["template"]["spec"]["volumes"].as_array().expect("volumes");
    let config = volumes.iter().find(|volume| volume["name"] == "sluice-config").expect("the volume");
    let projected = config["projected"]["sources"].as_array().expect("sources").last().expect("the newest");
    assert_eq!(projected["secret"]["name"], "shop-db-client");
    assert_eq!(projected["secret"]["items"][1], json!({"key": "tls.key", "path": "upstream-tls/tls.key"}));
}

#[test]
fn what_the_template_of_the_pool_says_is_in_the_pods_and_nothing_of_ours_is_lost() {
    let spec = "  budgetRef: {name: pg-main}\n  client: {port: 6432, tls: {mode: Require, certificateRef: {name: shop-gateway-tls}}}\n  \
                gateway:\n    replicas: 8\n    template:\n      \
                metadata: {labels: {team: a, app.kubernetes.io/component: mine}, annotations: {note: b}}\n      spec:\n        \
                nodeSelector: {pool: db}\n        tolerations: [{key: db, operator: Exists}]\n        \
                priorityClassName: high\n        terminationGracePeriodSeconds: 1800\n";
    insta::assert_yaml_snapshot!("widened", without_record(rendered(&pool(spec), "1", None).deployment));
}

#[test]
fn an_upgrade_of_the_operator_changes_nothing_and_the_next_change_of_the_pool_brings_its_images() {
    let before = rendered(&pool(""), "1", None).deployment;
    assert_eq!(rendered(&pool(""), "2", Some(&before)).deployment, before, "another version, the same Deployment");
    let scaled = rendered(&pool("  gateway: {replicas: 5}\n"), "2", Some(&before)).deployment;
    assert_eq!(scaled["spec"]["template"], before["spec"]["template"], "more of the same");
    let settings = rendered(&pool("  health: {queryWaitTimeoutSeconds: 5}\n"), "2", Some(&before)).deployment;
    assert_eq!(settings["spec"]["template"], before["spec"]["template"], "a revision reaches running poolers");
    let moved = rendered(&pool("  client: {port: 6432}\n"), "2", Some(&before)).deployment;
    assert_eq!((image(&before), image(&moved)), ("registry.test/sluice:1", "registry.test/sluice:2"));
}

#[test]
fn a_restart_that_was_asked_for_brings_the_images_of_today() {
    let mut before = rendered(&pool(""), "1", None).deployment;
    before["spec"]["template"]["metadata"]["annotations"] = json!({RESTARTED_ANNOTATION: "2026-11-21T10:00:00Z"});
    let mut after = rendered(&pool(""), "2", Some(&before)).deployment;
    assert_eq!(image(&after), "registry.test/sluice:2");
    after["spec"]["template"]["metadata"]["annotations"] =
        before["spec"]["template"]["metadata"]["annotations"].clone();
    assert_eq!(image(&rendered(&pool(""), "3", Some(&after)).deployment), "registry.test/sluice:2", "once");
}

#[test]
fn a_gateways_own_service_is_told_from_others_in_every_form() {
    for host in ["shop-gateway", "shop-gateway.ns", "Shop-Gateway.ns.svc", "shop-gateway.ns.svc.cluster.local."] {
        assert!(is_own_host(host, "shop", "ns"), "{host}");
    }
    for host in ["shop", "pg-main-rw.db.svc", "shop-gateway.other.svc", "shop-gateway-2", "x.shop-gateway.ns.svc"] {
        assert!(!is_own_host(host, "shop", "ns"), "{host}");
    }
}

/// Whatever became of the template by hand, what was recorded is wanted; and a record that cannot be read is made anew.
#[test]
fn an_edit_by_hand_is_no_template() {
    let before = rendered(&pool(""), "1", None).deployment;
    let mut edited = before.clone();
    edited["spec"]["template"]["spec"]["containers"][0]["image"] = json!("somebody/else:1");
    assert_eq!(rendered(&pool(""), "1", Some(&edited)).deployment, before);
    edited["metadata"]["annotations"][TEMPLATE_ANNOTATION] = json!("{\"v\":1,");
    assert_eq!(rendered(&pool(""), "1", Some(&edited)).deployment, before);
}

#[test]
fn a_grant_in_the_template_or_in_its_record_is_found_and_never_applied() {
    let before = rendered(&pool(""), "1", None).deployment;
    let mut edited = before.clone();
    edited["spec"]["template"]["metadata"]["annotations"][names::GRANT_ANNOTATION] = json!("{}");
    let live: Deployment = serde_json::from_value(edited).expect("a Deployment");
    assert_eq!(brought_along(&live), [names::GRANT_ANNOTATION]);
    assert!(brought_along(&serde_json::from_value(before.clone()).expect("a Deployment")).is_empty());

    let mut forged = before.clone();
    let record = before["metadata"]["annotations"][TEMPLATE_ANNOTATION].as_str().expect("a record");
    let record = record.replacen("\"annotations\":{", "\"annotations\":{\"sluice.dev/grant\":\"{}\",", 1);
    assert!(record.contains("sluice.dev/grant"), "{record}");
    forged["metadata"]["annotations"][TEMPLATE_ANNOTATION] = json!(record);
    assert_eq!(rendered(&pool(""), "1", Some(&forged)).deployment, before);
}

/// Changing what it is made of replaces every pooler of every gateway with the next upgrade.
#[test]
fn the_hash_of_a_pool_is_the_same_in_every_version() {
    let text = rendered(&pool(""), "1", None).deployment["metadata"]["annotations"][TEMPLATE_ANNOTATION].clone();
    let record: TemplateRecord = serde_json::from_str(text.as_str().expect("a text")).expect("a record");
    insta::assert_snapshot!("hash", record.hash);
}
