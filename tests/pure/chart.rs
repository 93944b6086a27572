//! What the chart renders (the snapshots that `tests/chart/check` holds against the real helm) fits the code.

use std::{collections::BTreeSet, fs, path::Path};

use clap::{Args, Command};
use k8s_openapi::api::{
    apps::v1::Deployment,
    rbac::v1::{ClusterRole, PolicyRule, Role},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use sluice::{
    contract::{Document, GrantDocument, PodGrant},
    controller::OperatorArgs,
    pooler::pgbouncer::version::RECOMMENDED,
};

const SNAPSHOTS: [&str; 2] = ["default", "everything"];

fn rendered<T: DeserializeOwned>(snapshot: &str, kind: &str) -> Vec<T> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/chart/snapshots/{snapshot}.yaml"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let documents =
        serde_yaml::Deserializer::from_str(&text).map(|document| Value::deserialize(document).expect("YAML"));
    documents
        .filter(|document| document["kind"] == kind)
        .map(|document| serde_json::from_value(document).expect("a valid object"))
        .collect()
}

fn operator_flags() -> BTreeSet<String> {
    let command = OperatorArgs::augment_args(Command::new("operator"));
    command.get_arguments().filter_map(|argument| argument.get_long()).map(|flag| format!("--{flag}")).collect()
}

#[test]
fn every_flag_of_the_chart_is_one_that_the_operator_takes_and_its_value_parses() {
    for snapshot in SNAPSHOTS {
        let deployments: Vec<Deployment> = rendered(snapshot, "Deployment");
        let pod = deployments[0].spec.clone().expect("a spec").template.spec.expect("a pod");
        let args = pod.containers[0].args.clone().expect("arguments");
        let command = OperatorArgs::augment_args(Command::new("operator"));
        command.try_get_matches_from(&args).unwrap_or_else(|error| panic!("{snapshot}: {error}"));
        let given: BTreeSet<_> =
            args.iter().skip(1).map(|flag| flag.split('=').next().expect("a name").to_owned()).collect();
        let by_environment = ["--namespace", "--pod-name"].map(str::to_owned);
        let missing: Vec<_> = operator_flags().into_iter().filter(|flag| !given.contains(flag)).collect();
        assert_eq!(missing, by_environment, "{snapshot}: flags that the chart does not set");
    }
}

#[test]
fn the_grant_that_a_pod_may_be_created_with_is_the_one_that_the_webhook_writes() {
    let pools = [("POOL".to_owned(), PodGrant::default())].into();
    let grant = GrantDocument { v: GrantDocument::VERSION, epoch: 0, pools }.render();
    let expression = format!("'{}'", grant.replace("POOL", "' + variables.pool + '"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/sluice/templates/policy.yaml");
    let policy = fs::read_to_string(path).expect("the policy of the chart");
    assert!(policy.contains(&expression), "the policy must compare with {expression}");
}

#[test]
fn the_pooler_that_is_installed_where_nobody_says_is_of_the_version_that_every_test_runs_with() {
    for snapshot in SNAPSHOTS {
        let deployments: Vec<Deployment> = rendered(snapshot, "Deployment");
        let pod = deployments[0].spec.clone().expect("a spec").template.spec.expect("a pod");
        let args = pod.containers[0].args.clone().expect("arguments");
        let image = args.iter().find_map(|flag| flag.strip_prefix("--pgbouncer-image=")).expect("an image");
        assert!(image.ends_with(&format!(":{RECOMMENDED}")), "{snapshot}: {image}");
    }
}

/// All rules of the operator: cluster-wide ones, and those of its own namespace. The roles for users are not the operator's.
fn operator_rules(snapshot: &str) -> (Vec<PolicyRule>, Vec<PolicyRule>) {
    let everywhere: Vec<ClusterRole> = rendered(snapshot, "ClusterRole");
    let own: Vec<Role> = rendered(snapshot, "Role");
    let of_operator = |role: &&ClusterRole| role.metadata.name.as_deref() == Some("sluice-system-sluice");
    let everywhere = everywhere.iter().find(of_operator).expect("the operator's role").rules.clone();
    (everywhere.unwrap_or_default(), own.into_iter().flat_map(|role| role.rules.unwrap_or_default()).collect())
}

#[test]
fn the_operator_cannot_change_what_runs_in_a_pod_nor_read_secrets_of_others() {
    for snapshot in SNAPSHOTS {
        let (everywhere, own) = operator_rules(snapshot);
        for rule in everywhere.iter().chain(&own) {
            let resources = rule.resources.clone().unwrap_or_default();
            let all: Vec<_> = resources.iter().chain(&rule.verbs).chain(rule.api_groups.iter().flatten()).collect();
            assert!(!all.iter().any(|name| name.contains('*')), "{snapshot}: a wildcard in {rule:?}");
            if resources.iter().any(|resource| resource == "pods") {
                assert!(
                    rule.verbs.iter().all(|verb| matches!(&**verb, "get" | "list" | "watch")),
                    "{snapshot}: {rule:?}"
                );
            }
        }
        let cluster_wide = everywhere.iter().flat_map(|rule| rule.resources.clone().unwrap_or_default());
        assert!(
            !cluster_wide.into_iter().any(|resource| resource == "secrets"),
            "{snapshot}: Secrets of every namespace"
        );
        for rule in own.iter().filter(|rule| rule.resources.iter().flatten().any(|resource| resource == "secrets")) {
            let only_creates = rule.verbs == ["create"];
            assert!(only_creates || rule.resource_names.is_some(), "{snapshot}: any Secret of the namespace: {rule:?}");
        }
    }
}

#[test]
fn the_operator_runs_restricted_and_leaves_its_uid_to_the_cluster_when_told_so() {
    for (snapshot, uid) in [("default", Some(65532)), ("everything", None)] {
        let deployments: Vec<Deployment> = rendered(snapshot, "Deployment");
        let pod = deployments[0].spec.clone().expect("a spec").template.spec.expect("a pod");
        let pod_context = pod.security_context.expect("a security context");
        let container = pod.containers[0].security_context.clone().expect("a security context");
        assert_eq!((pod_context.run_as_non_root, pod_context.run_as_user), (Some(true), uid), "{snapshot}");
        assert_eq!(pod_context.seccomp_profile.map(|profile| profile.type_), Some("RuntimeDefault".to_owned()));
        assert_eq!(container.allow_privilege_escalation, Some(false));
        assert_eq!(container.read_only_root_filesystem, Some(true));
        assert_eq!(container.capabilities.and_then(|all| all.drop), Some(vec!["ALL".to_owned()]));
    }
}
