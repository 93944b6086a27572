//! `kubectl sluice check`: an installation part by part.

use std::time::Duration;

use clap::Args;
use futures::{StreamExt, stream};
use k8s_openapi::{
    api::{
        admissionregistration::v1::{
            MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
        },
        apps::v1::Deployment,
        authorization::v1::{
            ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
            SubjectAccessReviewSpec,
        },
        coordination::v1::Lease,
        core::v1::Pod,
        discovery::v1::EndpointSlice,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, ListParams, PostParams},
};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{
    cluster::{ClusterAccess, PoolList, PoolScope, beside},
    error::{Conclusion, PluginError},
    options::{ClusterOptions, OutputOptions, duration},
    screen::Screen,
    view::{
        NotRead,
        check::{
            CheckReport, Finding, FindingLevel, autoscalers, capacity, definitions,
            definitions::DefinitionSeen,
            kubernetes, operator, policies, pools,
            rights::{self, Right, RightScope, RightSeen},
            sidecars,
            webhook::{self, Admission, WebhookPlace},
        },
    },
};
use crate::{api::crds, contract::names::POOL_LABEL};

/// Where the operator is looked for unless its webhook says where it is.
const OPERATOR_NAMESPACE: &str = "sluice-system";
/// Its Lease and its Secret, unless its arguments name others.
const LEASE: &str = "sluice-operator";
const CERTIFICATES: &str = "sluice-webhook-tls";
/// Questions about rights that are under way at once.
const ASKED_AT_ONCE: usize = 8;
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(2);

/// Arguments of `check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Look at what an installation needs, before there is one.
    #[arg(long)]
    pre: bool,
    /// Namespace of the operator. Default: where its webhook is, else sluice-system.
    #[arg(long, value_name = "NAMESPACE")]
    operator_namespace: Option<String>,
    /// Look again until nothing fails, for so long: 30s, 5m; 0: look once.
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    output: OutputOptions,
}

/// Runs the verb.
///
/// # Errors
/// [`PluginError`].
pub async fn run(args: CheckArgs, options: &ClusterOptions) -> Result<Conclusion, PluginError> {
    let cluster = ClusterAccess::connect(options).await?;
    let until = Instant::now() + args.timeout;
    let report = loop {
        // a cluster that does not answer at all is no installation that fails
        let version = cluster.ask("read the version of the API server", cluster.client().apiserver_version()).await?;
        let look = Look { cluster: &cluster, operator_namespace: args.operator_namespace.as_deref() };
        let mut report = CheckReport::default();
        report.add("Kubernetes", kubernetes::findings(Ok(&version), look.serves_policies().await.as_ref().copied()));
        if args.pre {
            look.before(&mut report).await;
        } else {
            look.installed(&mut report).await;
        }
        if report.worst() < FindingLevel::Failed || Instant::now() + PAUSE > until {
            break report;
        }
        sleep(PAUSE).await;
    };
    let screen = Screen::of_stdout();
    match args.output.document() {
        Some(format) => screen.document(format, &report)?,
        None => screen.print(&report.text())?,
    }
    Ok(match report.worst() {
        FindingLevel::Failed => Conclusion::No,
        _ if report.has(FindingLevel::NotRead) => Conclusion::CannotTell,
        _ => Conclusion::Yes,
    })
}

/// One look at a cluster.
struct Look<'a> {
    cluster: &'a ClusterAccess,
    operator_namespace: Option<&'a str>,
}

/// Names of what the operator has for itself.
struct OwnNames {
    namespace: String,
    lease: String,
    certificates: String,
    configuration: String,
}

impl Look<'_> {
    /// What an installation needs.
    async fn before(&self, report: &mut CheckReport) {
        report.add("Definitions", definitions::findings_before(&self.definitions().await));
        let names = OwnNames {
            namespace: self.operator_namespace.unwrap_or(OPERATOR_NAMESPACE).to_owned(),
            lease: String::new(),
            certificates: String::new(),
            configuration: String::new(),
        };
        let seen = self.may_i(&rights::INSTALLATION, &names).await;
        let todo = "install as somebody who may, an administrator of the cluster: docs/operations.md#install";
        report.add("Your rights", rights::of_others("you", &seen, todo));
    }

    /// What an installation consists of.
    async fn installed(&self, report: &mut CheckReport) {
        report.add("Definitions", definitions::findings(&self.definitions().await, Timestamp::now()));
        let found = self.all::<MutatingWebhookConfiguration>("MutatingWebhookConfigurations").await;
        let configurations = found.map(|mut found| {
            found.retain(|configuration| webhook::is_ours(configuration, self.operator_namespace));
            found
        });
        let place = configurations.as_ref().ok().and_then(|configurations| webhook::place(configurations));
        let namespace = self.operator_namespace.map(str::to_owned);
        let namespace = namespace.or_else(|| place.as_ref().map(|place| place.namespace.clone()));
        let namespace = namespace.unwrap_or_else(|| OPERATOR_NAMESPACE.to_owned());
        let deployments = self.deployments(&namespace, place.as_ref()).await;
        let deployment = deployments.as_ref().ok().and_then(|deployments| deployments.first());
        let flag = |name: &str, default: &str| {
            deployment.and_then(|deployment| operator::flag(deployment, name)).unwrap_or_else(|| default.to_owned())
        };
        let names = OwnNames {
            lease: flag("lease-name", LEASE),
            certificates: flag("webhook-secret", CERTIFICATES),
            configuration: place
                .as_ref()
                .map_or_else(|| flag("webhook-configuration", ""), |place| place.configuration.clone()),
            namespace,
        };
        let pools = self.pools().await;
        let now = Timestamp::now();
        let lease = beside(
            self.cluster
                .ask(
                    format!("read Lease {}/{}", names.namespace, names.lease),
                    self.cluster.of::<Lease>(&names.namespace).get_opt(&names.lease),
                )
                .await,
        );
        report.add("Operator", operator::findings(deployments.as_deref(), lease.as_ref().map(Option::as_ref), now));
        report.add("Operator's rights", self.rights_of_operator(deployment, &names).await);
        let endpoints = self.endpoints(&names.namespace, place.as_ref()).await;
        let admission = self.try_a_pod(pools.as_ref()).await;
        report.add(
            "Webhook",
            webhook::findings(configurations.as_deref(), endpoints.as_deref(), admission.as_ref(), now),
        );
        let (policies, bindings): (
            Result<Vec<ValidatingAdmissionPolicy>, NotRead>,
            Result<Vec<ValidatingAdmissionPolicyBinding>, NotRead>,
        ) = (self.all("ValidatingAdmissionPolicies").await, self.all("ValidatingAdmissionPolicyBindings").await);
        let has_gateways = flag("gateways", "disabled") == "enabled";
        report.add(
            "Policies",
            policies::findings(&names.configuration, has_gateways, policies.as_deref(), bindings.as_deref()),
        );
        let autoscalers = self.autoscalers().await;
        report.add("VerticalPodAutoscalers", autoscalers::findings(autoscalers.as_ref().map(Option::as_deref)));
        let agent_image = deployment.and_then(|deployment| operator::flag(deployment, "agent-image"));
        let pods = self.injected_pods().await;
        report.add("Sidecars", sidecars::findings(pods.as_deref(), agent_image.as_deref()));
        let pools_seen = pools.as_ref().map(|list| (list.pools.as_slice(), list.unreadable.as_slice()));
        report.add("Pools", pools::findings(pools_seen, now));
        report.add("Capacity", capacity::findings(pools.as_ref().map(|list| list.pools.as_slice()), now));
        let used: Vec<Right> = rights::USED.iter().map(|used| used.right.clone()).collect();
        report.add("Your rights", rights::of_yours(&self.may_i(&used, &names).await));
    }

    async fn serves_policies(&self) -> Result<bool, NotRead> {
        let version = "admissionregistration.k8s.io/v1";
        let what = format!("read the kinds of {version}");
        let kinds = self.cluster.ask(what, self.cluster.client().list_api_group_resources(version)).await;
        beside(kinds.map(|kinds| kinds.resources.iter().any(|kind| kind.name == "validatingadmissionpolicies")))
    }

    async fn definitions(&self) -> Vec<DefinitionSeen> {
        let api: Api<CustomResourceDefinition> = Api::all(self.cluster.client().clone());
        let names = crds().into_iter().filter_map(|crd| crd.metadata.name);
        let mut seen = Vec::new();
        for name in names {
            let what = format!("read CustomResourceDefinition {name}");
            let found = beside(self.cluster.ask(what, api.get_opt(&name)).await);
            seen.push(DefinitionSeen { name, found });
        }
        seen
    }

    /// All objects of a kind without a namespace.
    async fn all<K>(&self, kind: &str) -> Result<Vec<K>, NotRead>
    where
        K: kube::Resource<Scope = k8s_openapi::ClusterResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::all(self.cluster.client().clone());
        beside(self.cluster.list(&format!("list {kind}"), &api, ListParams::default()).await)
    }

    async fn deployments(&self, namespace: &str, place: Option<&WebhookPlace>) -> Result<Vec<Deployment>, NotRead> {
        let release = place.and_then(|place| place.release.as_ref());
        let release = release.map_or_else(String::new, |name| format!(",app.kubernetes.io/instance={name}"));
        let params = ListParams::default().labels(&format!("app.kubernetes.io/component=operator{release}"));
        let what = format!("list Deployments in {namespace}");
        let found = self.cluster.list::<Deployment>(&what, &self.cluster.of(namespace), params).await;
        // others have operators too
        beside(found.map(|mut found| {
            found.retain(|deployment| operator::flag(deployment, "webhook-configuration").is_some());
            found
        }))
    }

    async fn endpoints(&self, namespace: &str, place: Option<&WebhookPlace>) -> Result<Vec<EndpointSlice>, NotRead> {
        let service = place.map_or("sluice-webhook", |place| place.service.as_str());
        let params = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
        let what = format!("list EndpointSlices in {namespace}");
        beside(self.cluster.list(&what, &self.cluster.of(namespace), params).await)
    }

    /// The pools of all namespaces, or of the one that is meant where those cannot be listed.
    async fn pools(&self) -> Result<PoolList, NotRead> {
        let all = PoolScope { all_namespaces: true, selector: None };
        match self.cluster.list_pools(&all).await {
            Err(PluginError::NotAllowed { .. }) => beside(self.cluster.list_pools(&PoolScope::default()).await),
            found => beside(found),
        }
    }

    /// The pods of pools, of all namespaces, or of the one that is meant where those cannot be listed.
    async fn injected_pods(&self) -> Result<Vec<Pod>, NotRead> {
        let params = || ListParams::default().labels(POOL_LABEL);
        let all: Api<Pod> = Api::all(self.cluster.client().clone());
        match self.cluster.list("list pods", &all, params()).await {
            Err(PluginError::NotAllowed { .. }) => {
                let namespace = self.cluster.namespace();
                let what = format!("list pods in {namespace}");
                beside(self.cluster.list(&what, &self.cluster.of(namespace), params()).await)
            }
            found => beside(found),
        }
    }

    /// Creates a pod of a pool for trial, which the API server forgets at once.
    async fn try_a_pod(&self, pools: Result<&PoolList, &NotRead>) -> Result<Admission, NotRead> {
        let pools = pools.map_err(Clone::clone)?;
        let own = self.cluster.namespace();
        let mut candidates: Vec<_> = pools.pools.iter().collect();
        candidates.sort_by_key(|pool| pool.key().namespace != own);
        let trial = candidates.into_iter().find_map(|pool| Some((pool, webhook::trial_pod(pool)?)));
        let Some((pool, pod)) = trial else {
            return Err(NotRead {
                words: "no pod was created for trial: there is no accepted pool with labels alone in its selector"
                    .to_owned(),
                todo: "create a pool, or try a pod of yours: kubectl create --dry-run=server",
            });
        };
        let namespace = pool.key().namespace;
        let params = PostParams { dry_run: true, ..PostParams::default() };
        let what = format!("create a pod in {namespace} for trial");
        let created = self.cluster.ask(&what, self.cluster.of::<Pod>(&namespace).create(&params, &pod)).await;
        match created {
            Ok(created) => Ok(webhook::admission(&created)),
            Err(error) => {
                let (words, todo) = (error.to_string(), error.todo());
                webhook::refusal(&words).ok_or(NotRead { words, todo })
            }
        }
    }

    /// The VerticalPodAutoscalers of all namespaces, or of the one that is meant; none where the cluster has no such kind.
    async fn autoscalers(&self) -> Result<Option<Vec<Value>>, NotRead> {
        let kind = ApiResource {
            group: "autoscaling.k8s.io".to_owned(),
            version: "v1".to_owned(),
            api_version: "autoscaling.k8s.io/v1".to_owned(),
            kind: "VerticalPodAutoscaler".to_owned(),
            plural: "verticalpodautoscalers".to_owned(),
        };
        let client = || self.cluster.client().clone();
        let all: Api<DynamicObject> = Api::all_with(client(), &kind);
        let what = "list VerticalPodAutoscalers";
        let mut found = self.cluster.list(what, &all, ListParams::default()).await;
        if matches!(found, Err(PluginError::NotAllowed { .. })) {
            let own: Api<DynamicObject> = Api::namespaced_with(client(), self.cluster.namespace(), &kind);
            found = self.cluster.list(what, &own, ListParams::default()).await;
        }
        match found {
            Err(PluginError::NoKinds { .. }) => Ok(None),
            found => beside(found).map(|found| {
                Some(found.iter().map(|object| serde_json::to_value(object).unwrap_or_default()).collect())
            }),
        }
    }

    /// What whoever asks may do.
    async fn may_i<'a>(&self, rights: &'a [Right], names: &OwnNames) -> Vec<RightSeen<'a>> {
        let reviews: Api<SelfSubjectAccessReview> = Api::all(self.cluster.client().clone());
        let ask = async |right: &'a Right| {
            let spec = SelfSubjectAccessReviewSpec {
                resource_attributes: Some(self.attributes(right, names)),
                ..SelfSubjectAccessReviewSpec::default()
            };
            let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
            let what = format!("ask whether you may {}", right.words());
            let answer = self.cluster.ask(what, reviews.create(&PostParams::default(), &review)).await;
            let is_given = beside(answer.map(|review| review.status.is_some_and(|status| status.allowed)));
            RightSeen { right, is_given }
        };
        stream::iter(rights).map(ask).buffered(ASKED_AT_ONCE).collect().await
    }

    /// What the operator's service account may do.
    async fn rights_of_operator(&self, deployment: Option<&Deployment>, names: &OwnNames) -> Vec<Finding> {
        let pod = deployment.and_then(|deployment| deployment.spec.as_ref()?.template.spec.as_ref());
        let Some(account) = pod.and_then(|pod| pod.service_account_name.as_deref()) else {
            return vec![Finding::not_read(&NotRead {
                words: "the operator's service account is not known".to_owned(),
                todo: "see the line of its Deployment; --operator-namespace says where to look for it",
            })];
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.cluster.client().clone());
        let namespace = &names.namespace;
        let user = format!("system:serviceaccount:{namespace}:{account}");
        let groups = ["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}"), "system:authenticated"];
        let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
        let ask = async |right: &'static Right| {
            let spec = SubjectAccessReviewSpec {
                user: Some(user.clone()),
                groups: Some(groups.clone()),
                resource_attributes: Some(self.attributes(right, names)),
                ..SubjectAccessReviewSpec::default()
            };
            let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
            let what = "ask what the operator may do".to_owned();
            let answer = self.cluster.ask(what, reviews.create(&PostParams::default(), &review)).await;
            let is_given = beside(answer.map(|review| review.status.is_some_and(|status| status.allowed)));
            RightSeen { right, is_given }
        };
        let seen: Vec<RightSeen> =
            stream::iter(rights::OPERATOR.iter()).map(ask).buffered(ASKED_AT_ONCE).collect().await;
        let todo = "upgrade the release with its own values, which brings its roles back: docs/operations.md#upgrade";
        rights::of_others(&format!("the service account {namespace}/{account}"), &seen, todo)
    }

    fn attributes(&self, right: &Right, names: &OwnNames) -> ResourceAttributes {
        let (resource, subresource) = match right.resource.split_once('/') {
            Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
            None => (right.resource, None),
        };
        let (namespace, name) = match right.scope {
            RightScope::Cluster => (None, None),
            RightScope::Pools => (Some(self.cluster.namespace()), None),
            RightScope::Release => (Some(names.namespace.as_str()), None),
            RightScope::Lease => (Some(names.namespace.as_str()), Some(names.lease.as_str())),
            RightScope::Certificates => (Some(names.namespace.as_str()), Some(names.certificates.as_str())),
            RightScope::Webhook => (None, Some(names.configuration.as_str())),
        };
        ResourceAttributes {
            group: Some(right.group.to_owned()),
            resource: Some(resource.to_owned()),
            subresource,
            verb: Some(right.verb.to_owned()),
            namespace: namespace.map(str::to_owned),
            name: name.map(str::to_owned),
            ..ResourceAttributes::default()
        }
    }
}
