//! The chart, by the real helm: installed, upgraded and uninstalled under load, with no right too many and none too few.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use serde_json::Value;

use crate::{
    cluster::{
        OPERATOR, RELEASE, SYSTEM, alone, apply, audit_mark, audited, condition, get, helm_upgrade, kubectl, try_run,
        uninstall, until, until_condition, with_operator,
    },
    shop::{client_failures, data_plane, database, shop, status},
};

const MINUTE: Duration = Duration::from_mins(1);

/// Waits until the pool's shares come from this `maxAllowed`; what a surging pod needs as its floor stays free.
fn until_shared_out(max_allowed: u64) {
    until(&format!("{max_allowed} connections shared out"), MINUTE, || {
        let status = status("chart");
        let share = status["share"].as_u64().unwrap_or_default();
        let is_so =
            status["effective"]["maxAllowed"] == max_allowed && (max_allowed - 2..=max_allowed).contains(&share);
        if is_so { Ok(()) } else { Err(format!("share {share}, effective {}", status["effective"])) }
    });
}

fn operator_pods() -> BTreeSet<String> {
    let pods = get(&format!("pods --namespace={SYSTEM} --selector=app.kubernetes.io/instance={RELEASE}"));
    let pods = pods["items"].as_array().expect("a list").iter();
    pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .map(|pod| pod["metadata"]["uid"].to_string())
        .collect()
}

#[test]
#[ignore = "needs a node: tests/run node"]
fn installing_upgrading_and_uninstalling_the_operator_touches_no_client_and_uses_every_right_it_has() {
    let _alone = alone();
    database();

    // from nothing: what an earlier release left in the cluster is gone
    uninstall();
    kubectl(&format!("delete secret,lease --all --namespace={SYSTEM} --ignore-not-found"));
    try_run("kubectl", &["delete", "connectionpoolclasses,connectionbudgets", "--all"], "").unwrap_or_default();
    let mark = audit_mark();
    let told = helm_upgrade(&[]);
    let next = told.lines().map(str::trim).find_map(|line| line.strip_prefix("kubectl ")).expect("the next command");
    assert!(kubectl(next).contains("successfully rolled out"), "{told}");
    apply(&shop("chart"));
    kubectl("rollout status deployment/shop --namespace=chart --timeout=2m");
    until_condition("chart", "shop", "Injected", "True", MINUTE);
    until_condition("chart", "shop", "Proven", "True", MINUTE);
    until_condition("chart", "shop", "ScalingActive", "True", 2 * MINUTE);
    let before = data_plane("chart");
    assert!(before.iter().any(|container| container.contains("\"sluice\"")), "no sidecar: {before:?}");

    // the chart changes: every replica is replaced
    let operators = operator_pods();
    helm_upgrade(&["--set-string", "podAnnotations.example\\.com/generation=2"]);
    assert!(operators.is_disjoint(&operator_pods()), "an operator's pod outlived the upgrade");
    assert_eq!(data_plane("chart"), before, "the upgrade touched a pod");

    // the pool is still followed, by the new leader
    apply(&shop("chart").replace("maxAllowed: 60", "maxAllowed: 40"));
    until_shared_out(40);

    every_right_is_used(mark);

    // the operator goes: definitions, pools and poolers stay
    uninstall();
    assert_eq!(get("connectionpool shop --namespace=chart")["spec"]["scaling"]["maxAllowed"], 40);
    assert_eq!(data_plane("chart"), before, "the uninstallation touched a pod");

    // and comes back: everything is as it was
    helm_upgrade(&[]);
    apply(&shop("chart").replace("maxAllowed: 60", "maxAllowed: 50"));
    until_shared_out(50);
    until_condition("chart", "shop", "Proven", "True", MINUTE);
    assert_eq!(data_plane("chart"), before, "the reinstallation touched a pod");
    assert_eq!(client_failures("chart"), Vec::<String>::new(), "clients lost something");
    kubectl("delete namespace chart --wait=false");
}

#[test]
#[ignore = "needs a node: tests/run node"]
fn the_example_shop_runs_injected_in_a_namespace_that_enforces_restricted_pods() {
    let _operator = with_operator();
    database();
    let opt_in = "sluice.dev/inject: enabled\n";
    apply(
        &shop("restricted").replace(opt_in, &format!("{opt_in}    pod-security.kubernetes.io/enforce: restricted\n")),
    );
    kubectl("rollout status deployment/shop --namespace=restricted --timeout=2m");
    until_condition("restricted", "shop", "Proven", "True", MINUTE);
    assert!(data_plane("restricted").iter().any(|container| container.contains("\"sluice\"")));
    kubectl("delete namespace restricted --wait=false");
}

/// Verb, group and resource, with its subresource.
type Right = (String, String, String);

fn rights(kind: &str, namespace: &str) -> BTreeSet<Right> {
    let roles = get(&format!("{kind} --selector=app.kubernetes.io/instance={RELEASE}{namespace}"));
    let strings = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let of_users = |role: &&Value| {
        !role["metadata"]["name"].as_str().is_some_and(|name| name.ends_with("-view") || name.ends_with("-edit"))
    };
    let mut rights = BTreeSet::new();
    for rule in roles["items"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(of_users)
        .filter_map(|role| role["rules"].as_array())
        .flatten()
    {
        for group in strings(&rule["apiGroups"]) {
            for resource in strings(&rule["resources"]) {
                for verb in strings(&rule["verbs"]) {
                    rights.insert((verb, group.clone(), resource.clone()));
                }
            }
        }
    }
    rights
}

/// Makes the operator do what it does seldom, then holds what it asked for against what it may ask for.
fn every_right_is_used(mark: u64) {
    // a budget, for its status
    let budget = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/budget/connectionbudget.yaml");
    apply(&fs::read_to_string(budget).expect("an example"));
    // a gateway, for its objects
    apply(
        "apiVersion: sluice.dev/v1alpha1\nkind: ConnectionPool\nmetadata: {name: shared, namespace: chart}\nspec: {topology: Gateway, scaling: {maxAllowed: 10}, \
         gateway: {replicas: 0}, upstream: {host: nowhere.invalid, database: shop, credentialsRef: {name: shop-db}, tls: {mode: Disabled}}}",
    );
    until_condition("chart", "shared", "GatewayAvailable", "False/ScaledToZero", MINUTE);
    // more revisions than are kept
    for timeout in [31, 32, 33] {
        kubectl(&format!(
            "patch connectionpool shop --namespace=chart --type=merge --patch={{\"spec\":{{\"rollout\":{{\"revisionHistoryLimit\":1}},\"health\":{{\"queryWaitTimeoutSeconds\":{timeout}}}}}}}"
        ));
        let revision = || get("connectionpool shop --namespace=chart")["status"]["revision"]["updated"].as_u64();
        until("a new revision", MINUTE, || {
            let seen = get("controllerrevisions --namespace=chart");
            let wanted = seen["items"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|revision| revision.to_string().contains(&timeout.to_string()));
            if wanted { Ok(()) } else { Err(format!("revision {:?}", revision())) }
        });
    }
    // certificates that nobody can use are minted anew
    kubectl(&format!(
        "patch secret {RELEASE}-webhook-tls --namespace={SYSTEM} --type=merge --patch={{\"data\":{{\"certificates.json\":\"Z29uZQ==\"}}}}"
    ));
    let wanted: BTreeSet<Right> =
        rights("clusterroles", "").into_iter().chain(rights("roles", &format!(" --namespace={SYSTEM}"))).collect();
    assert!(wanted.len() > 10, "the roles were not found: {wanted:?}");

    until("every right of the operator is used", 3 * MINUTE, || {
        let requests = audited(OPERATOR, mark);
        let refused: Vec<_> = requests
            .iter()
            .filter(|request| request["responseStatus"]["code"] == 403)
            .filter(|request| request["annotations"]["authorization.k8s.io/decision"] == "forbid")
            .map(|request| format!("{} {}", request["verb"], request["requestURI"]))
            .collect();
        assert!(refused.is_empty(), "the operator lacks rights: {refused:?}");
        let used: BTreeSet<Right> = requests.iter().flat_map(rights_of).collect();
        let unused: Vec<_> = wanted.difference(&used).collect();
        if unused.is_empty() {
            Ok(())
        } else {
            Err(format!("never used: {unused:?}; pool: {}", condition("chart", "shop", "Ready")))
        }
    });
}

fn rights_of(request: &Value) -> Vec<Right> {
    let object = &request["objectRef"];
    let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
    let resource = match text("subresource") {
        subresource if subresource.is_empty() => text("resource"),
        subresource => format!("{}/{subresource}", text("resource")),
    };
    let verb = request["verb"].as_str().unwrap_or_default();
    // a server-side apply of what was not there takes the right to create it too
    let verbs =
        if verb == "patch" && request["responseStatus"]["code"] == 201 { vec![verb, "create"] } else { vec![verb] };
    verbs.into_iter().map(|verb| (verb.to_owned(), text("apiGroup"), resource.clone())).collect()
}
