//! The custom resource definitions: whether they are there, and of which version.

use std::collections::BTreeSet;

use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
    },
    jiff::Timestamp,
};

use super::Finding;
use crate::{
    api::{VERSION, crds},
    cli::plugin::view::{NotRead, time::age},
};

/// Fields that are named where two schemas differ.
const MOST_NAMED: usize = 5;
/// Annotations by which helm knows whose an object is.
const RELEASE_NAME: &str = "meta.helm.sh/release-name";
const RELEASE_NAMESPACE: &str = "meta.helm.sh/release-namespace";

/// A definition that was looked for.
#[derive(Clone, Debug)]
pub struct DefinitionSeen {
    /// Its name.
    pub name: String,
    /// What was found; none where there is none.
    pub found: Result<Option<CustomResourceDefinition>, NotRead>,
}

/// What was found of the definitions of an installation.
pub fn findings(definitions: &[DefinitionSeen], now: Timestamp) -> Vec<Finding> {
    definitions.iter().map(|definition| finding(definition, now)).collect()
}

/// What was found before the installation: definitions stay when Sluice is uninstalled.
pub fn findings_before(definitions: &[DefinitionSeen]) -> Vec<Finding> {
    let finding = |definition: &DefinitionSeen| match &definition.found {
        Err(not_read) => Finding::not_read(not_read),
        Ok(None) => Finding::ok(format!("{} does not exist yet", definition.name)),
        Ok(Some(found)) => {
            let annotation = |name: &str| found.metadata.annotations.as_ref()?.get(name).map(String::as_str);
            let owner = match (annotation(RELEASE_NAME), annotation(RELEASE_NAMESPACE)) {
                (Some(name), Some(namespace)) => format!("of the release {name} in {namespace}"),
                _ => "of no release".to_owned(),
            };
            Finding::note(
                format!("{} exists, {owner}", definition.name),
                "install under that name, or hand it over first: docs/operations.md#uninstall",
            )
        }
    };
    definitions.iter().map(finding).collect()
}

fn finding(definition: &DefinitionSeen, now: Timestamp) -> Finding {
    let name = &definition.name;
    let found = match &definition.found {
        Err(not_read) => return Finding::not_read(not_read),
        Ok(None) => {
            return Finding::failed(
                format!("{name} does not exist"),
                "install the chart with crds.install=true: docs/operations.md#install",
            );
        }
        Ok(Some(found)) => found,
    };
    let Some(version) = found.spec.versions.iter().find(|version| version.name == VERSION) else {
        let versions: Vec<&str> = found.spec.versions.iter().map(|version| version.name.as_str()).collect();
        return Finding::failed(
            format!("{name} has {} and not {VERSION}, which this plugin speaks", versions.join(", ")),
            "use the plugin of the operator's version",
        );
    };
    let conditions = found.status.as_ref().and_then(|status| status.conditions.as_ref());
    let established = conditions.into_iter().flatten().find(|condition| condition.type_ == "Established");
    if !version.served || established.is_none_or(|established| established.status != "True") {
        let why = established.map_or_else(String::new, |established| {
            let reason = established.reason.as_deref().unwrap_or_default();
            let since = established.last_transition_time.as_ref();
            let since = since.map_or_else(String::new, |since| format!(" for {}", age(since.0, now)));
            format!(" (Established={}/{reason}{since})", established.status)
        });
        return Finding::failed(format!("{name} is not served{why}"), format!("see kubectl describe crd {name}"));
    }
    let known = crds().into_iter().find(|crd| crd.metadata.name.as_ref() == Some(name));
    let known = known.as_ref().and_then(|crd| crd.spec.versions.first()?.schema.as_ref());
    let (theirs, ours) = (
        fields(version.schema.as_ref().and_then(|it| it.open_api_v3_schema.as_ref())),
        fields(known.and_then(|it| it.open_api_v3_schema.as_ref())),
    );
    let plugin = env!("CARGO_PKG_VERSION");
    if let Some(lacking) = named(&ours, &theirs) {
        return Finding::warning(
            format!("{name} is older than this plugin {plugin}: it lacks {lacking}"),
            "upgrade the release, which upgrades the definitions: docs/operations.md#upgrade",
        );
    }
    if let Some(more) = named(&theirs, &ours) {
        return Finding::warning(
            format!("{name} is newer than this plugin {plugin}, which does not know {more}"),
            "use the plugin of the operator's version",
        );
    }
    Finding::ok(format!("{name} is that of this plugin {plugin}"))
}

/// The paths of all fields of a schema.
fn fields(schema: Option<&JSONSchemaProps>) -> BTreeSet<String> {
    fn walk(path: &str, schema: &JSONSchemaProps, found: &mut BTreeSet<String>) {
        for (name, property) in schema.properties.iter().flatten() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            walk(&path, property, found);
            found.insert(path);
        }
        if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
            walk(&format!("{path}[]"), items, found);
        }
    }
    let mut found = BTreeSet::new();
    if let Some(schema) = schema {
        walk("", schema, &mut found);
    }
    found
}

/// The fields of `one` that `other` lacks, without those below another one that it lacks; none where there are none.
fn named(one: &BTreeSet<String>, other: &BTreeSet<String>) -> Option<String> {
    let lacking: Vec<&String> = one.difference(other).collect();
    let is_below = |path: &str| lacking.iter().any(|above| path.starts_with(&format!("{above}.")));
    let mut highest: Vec<&str> = lacking.iter().map(|path| path.as_str()).filter(|path| !is_below(path)).collect();
    let more = highest.len().saturating_sub(MOST_NAMED);
    highest.truncate(MOST_NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!highest.is_empty()).then(|| highest.join(", ") + &more)
}
