//! The custom resource definitions, from the types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

use super::{ConnectionBudget, ConnectionPool, ConnectionPoolClass};

/// The custom resource definitions of this version, in the order in which they are installed.
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut crds = vec![ConnectionPoolClass::crd(), ConnectionBudget::crd(), ConnectionPool::crd()];
    for version in crds.iter_mut().flat_map(|crd| &mut crd.spec.versions) {
        if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            flow(schema);
        }
    }
    crds
}

/// Takes the line breaks of the source out of the descriptions: `kubectl explain` breaks lines itself.
fn flow(schema: &mut JSONSchemaProps) {
    if let Some(description) = &mut schema.description {
        let paragraphs = description.split("\n\n").map(|paragraph| paragraph.replace('\n', " "));
        *description = paragraphs.collect::<Vec<_>>().join("\n\n");
    }
    schema.properties.iter_mut().flatten().for_each(|(_, property)| flow(property));
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        flow(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        flow(values);
    }
}

/// Name of the file and YAML of each definition, as committed under `crds/`.
///
/// # Errors
/// Never in practice: the definitions are built from constants.
pub fn crds_yaml() -> Result<Vec<(String, String)>, serde_yaml::Error> {
    crds()
        .into_iter()
        .map(|crd| Ok((format!("{}.yaml", crd.spec.names.plural), serde_yaml::to_string(&crd)?)))
        .collect()
}

/// The definitions as the chart's template: helm upgrades them with the chart and keeps them when it is uninstalled, because
/// with a definition every object of its kind would go.
///
/// # Errors
/// Never in practice: the definitions are built from constants.
pub fn crds_chart_template() -> Result<String, serde_yaml::Error> {
    let mut template = "{{- if .Values.crds.install }}\n".to_owned();
    for mut crd in crds() {
        let annotations = crd.metadata.annotations.get_or_insert_default();
        annotations.insert("helm.sh/resource-policy".to_owned(), "keep".to_owned());
        template.push_str("---\n");
        template.push_str(&serde_yaml::to_string(&crd)?);
    }
    template.push_str("{{- end }}\n");
    Ok(template)
}
