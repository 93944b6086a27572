//! PURE: the `AdmissionReview` that is read, within bounds, and the one that answers it.
//!
//! The text of a pod is small beside what it becomes: an empty container is three bytes of JSON and a kilobyte of memory. So
//! the text is measured first, which takes no memory, and decoded only when it is of a size that pods have. What nobody
//! here reads (who asked, managed fields, status, the old object) is skipped in the text.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use base64::{Engine, prelude::BASE64_STANDARD};
use json_patch::Patch;
use k8s_openapi::{
    api::core::v1::{Pod, PodSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use thiserror::Error;

use crate::contract::names;

/// Most containers of a pod, init containers and ephemeral ones among them.
pub const MOST_CONTAINERS: usize = 100;
/// Most volumes of a pod.
pub const MOST_VOLUMES: usize = 256;
/// Most environment variables of a pod, all its containers together.
pub const MOST_VARIABLES: usize = 5000;
/// Most objects in the text of a pod, of any kind.
pub const MOST_OBJECTS: usize = 10_000;
/// Most values in the text of a pod: objects, lists, texts and numbers.
pub const MOST_VALUES: usize = 50_000;

/// Longest name of a namespace, in bytes. Whoever reaches the port may send a longer one, and it would stand in the log.
const LONGEST_NAMESPACE: usize = 63;

/// Why a review is not read.
#[derive(Debug, Error)]
pub enum ReviewError {
    /// It is no AdmissionReview of a pod.
    #[error("this is no AdmissionReview of a pod: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// It is of no namespace that there can be.
    #[error(
        "this is no AdmissionReview of a pod: its namespace has a name of {0} bytes, and none has more than {LONGEST_NAMESPACE}"
    )]
    Namespace(usize),
}

/// What is in the text of a pod, of what would be decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Containers of all kinds.
    pub containers: usize,
    /// Volumes.
    pub volumes: usize,
    /// Environment variables.
    pub variables: usize,
    /// Objects.
    pub objects: usize,
    /// Values, objects among them.
    pub values: usize,
}

impl Size {
    /// Measures the pod in the text of a review.
    ///
    /// # Errors
    /// [`ReviewError`] when the text is no JSON.
    pub fn of(review: &[u8]) -> Result<Self, ReviewError> {
        let mut size = Self::default();
        let mut text = serde_json::Deserializer::from_slice(review);
        Measured { at: At::Review, size: &mut size }.deserialize(&mut text)?;
        text.end()?;
        Ok(size)
    }

    /// What there is too much of, in words for whoever created the pod.
    pub fn excess(&self) -> Option<String> {
        let bounds = [
            (self.containers, MOST_CONTAINERS, "containers"),
            (self.volumes, MOST_VOLUMES, "volumes"),
            (self.variables, MOST_VARIABLES, "environment variables"),
            (self.objects, MOST_OBJECTS, "objects in its text"),
            (self.values, MOST_VALUES, "values in its text"),
        ];
        let (found, most, what) = bounds.into_iter().find(|(found, most, _)| found > most)?;
        Some(format!(
            "the pod has {found} {what}, and a pod that gets a pooler may have {most}; divide it, or let it start without: {}=disabled",
            names::INJECT_LABEL
        ))
    }
}

/// Where in the review the text is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Review,
    Request,
    Pod,
    Metadata,
    Spec,
    Containers,
    Container,
    Volumes,
    Variables,
    /// Something that is decoded and has no bound of its own.
    Decoded,
    /// Something that nobody reads.
    Skipped,
}

impl At {
    fn field(self, name: &str) -> Self {
        match (self, name) {
            (Self::Review, "request") => Self::Request,
            (Self::Request, "object") => Self::Pod,
            (Self::Pod, "metadata") => Self::Metadata,
            (Self::Pod, "spec") => Self::Spec,
            (Self::Spec, "containers" | "initContainers" | "ephemeralContainers") => Self::Containers,
            (Self::Spec, "volumes") => Self::Volumes,
            (Self::Container, "env") => Self::Variables,
            (Self::Metadata, "name" | "generateName" | "namespace" | "labels" | "annotations")
            | (Self::Spec | Self::Container | Self::Containers | Self::Volumes | Self::Variables | Self::Decoded, _) => {
                Self::Decoded
            }
            (Self::Review | Self::Request | Self::Pod | Self::Metadata | Self::Skipped, _) => Self::Skipped,
        }
    }

    const fn element(self) -> Self {
        match self {
            Self::Containers => Self::Container,
            Self::Skipped => Self::Skipped,
            _ => Self::Decoded,
        }
    }
}

/// Counts what it sees and keeps nothing.
struct Measured<'a> {
    at: At,
    size: &'a mut Size,
}

impl<'de> DeserializeSeed<'de> for Measured<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, text: D) -> Result<(), D::Error> {
        if self.at == At::Skipped {
            return IgnoredAny::deserialize(text).map(|_| ());
        }
        self.size.values += 1;
        text.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Measured<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let at = self.at.element();
        let mut count = 0;
        while elements.next_element_seed(Measured { at, size: &mut *self.size })?.is_some() {
            count += 1;
        }
        match self.at {
            At::Containers => self.size.containers += count,
            At::Volumes => self.size.volumes += count,
            At::Variables => self.size.variables += count,
            _ => {}
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        self.size.objects += 1;
        while let Some(at) = fields.next_key_seed(Field(self.at))? {
            fields.next_value_seed(Measured { at, size: &mut *self.size })?;
        }
        Ok(())
    }
}

/// The name of a field, read for where it leads.
struct Field(At);

impl<'de> DeserializeSeed<'de> for Field {
    type Value = At;

    fn deserialize<D: Deserializer<'de>>(self, text: D) -> Result<At, D::Error> {
        text.deserialize_str(self)
    }
}

impl Visitor<'_> for Field {
    type Value = At;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the name of a field")
    }

    fn visit_str<E>(self, name: &str) -> Result<At, E> {
        Ok(self.0.field(name))
    }
}

/// What is asked about a pod.
#[derive(Clone, Debug)]
pub struct Request {
    /// Comes back with the answer.
    pub uid: String,
    /// Whether a pod is about to be created; nothing else is of interest.
    pub creates: bool,
    /// Of the pod.
    pub namespace: String,
    /// Whether nothing of it will stay.
    pub dry_run: bool,
    /// The pod: of its metadata name, labels and annotations, and its spec.
    pub pod: Option<Pod>,
}

#[derive(Deserialize)]
struct Review<T> {
    request: Asked<T>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked<T> {
    uid: String,
    operation: String,
    namespace: Option<String>,
    dry_run: Option<bool>,
    object: Option<T>,
}

#[derive(Deserialize)]
struct Read {
    #[serde(default)]
    metadata: ReadMetadata,
    spec: Option<PodSpec>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReadMetadata {
    name: Option<String>,
    generate_name: Option<String>,
    namespace: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

impl Request {
    /// Decodes the text of a review. Measure it first.
    ///
    /// # Errors
    /// [`ReviewError`] when it is none of a pod.
    pub fn read(review: &[u8]) -> Result<Self, ReviewError> {
        let Review::<Read> { request } = serde_json::from_slice(review)?;
        let pod = request.object.map(|Read { metadata, spec }| {
            let ReadMetadata { name, generate_name, namespace, labels, annotations } = metadata;
            let metadata = ObjectMeta { name, generate_name, namespace, labels, annotations, ..ObjectMeta::default() };
            Pod { metadata, spec, status: None }
        });
        Ok(Self {
            uid: request.uid,
            creates: request.operation == "CREATE",
            namespace: named(request.namespace)?,
            dry_run: request.dry_run.unwrap_or_default(),
            pod,
        })
    }

    /// The same without its pod, which is too large to be decoded.
    ///
    /// # Errors
    /// [`ReviewError`] when it is none of a pod.
    pub fn read_without_pod(review: &[u8]) -> Result<Self, ReviewError> {
        let Review::<IgnoredAny> { request } = serde_json::from_slice(review)?;
        Ok(Self {
            uid: request.uid,
            creates: request.operation == "CREATE",
            namespace: named(request.namespace)?,
            dry_run: request.dry_run.unwrap_or_default(),
            pod: None,
        })
    }

    /// The pod may be created as it is.
    pub fn allow(&self) -> AdmissionResponse {
        AdmissionResponse { uid: self.uid.clone(), allowed: true, ..AdmissionResponse::default() }
    }

    /// The pod is refused, with a sentence for its creator.
    pub fn deny(&self, message: impl Into<Cow<'static, str>>) -> AdmissionResponse {
        AdmissionResponse {
            uid: self.uid.clone(),
            status: Some(Status { message: message.into() }),
            ..AdmissionResponse::default()
        }
    }

    /// The pod may be created, changed by the patch, and its creator is told something.
    pub fn change(&self, patch: &Patch, warnings: Vec<String>) -> AdmissionResponse {
        let warnings = Some(warnings).filter(|warnings| !warnings.is_empty());
        let allowed = AdmissionResponse { warnings, ..self.allow() };
        if patch.0.is_empty() {
            return allowed;
        }
        match serde_json::to_vec(patch) {
            Ok(patch) => AdmissionResponse {
                patch: Some(BASE64_STANDARD.encode(patch)),
                patch_type: Some("JSONPatch"),
                ..allowed
            },
            Err(error) => self.deny(format!("the patch could not be written: {error}")),
        }
    }
}

/// The name of a namespace, if it can be one.
fn named(namespace: Option<String>) -> Result<String, ReviewError> {
    let namespace = namespace.unwrap_or_default();
    if namespace.len() > LONGEST_NAMESPACE { Err(ReviewError::Namespace(namespace.len())) } else { Ok(namespace) }
}

/// The answer to a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AdmissionResponse {
    uid: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warnings: Option<Vec<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Status {
    message: Cow<'static, str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answered<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: &'a AdmissionResponse,
}

impl AdmissionResponse {
    /// As the API server reads it.
    ///
    /// # Errors
    /// Never, as far as is known: it is text alone.
    pub fn write(&self) -> Result<Vec<u8>, serde_json::Error> {
        let answered = Answered { api_version: "admission.k8s.io/v1", kind: "AdmissionReview", response: self };
        serde_json::to_vec(&answered)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn review(pod: &Value) -> Vec<u8> {
        let old = json!({"spec": {"containers": [{}, {}, {}]}});
        let review = json!({"kind": "AdmissionReview", "request": {
            "uid": "42", "operation": "CREATE", "namespace": "shop", "dryRun": true, "userInfo": {"groups": ["a", "b"]},
            "object": pod, "oldObject": old, "options": {"kind": "CreateOptions"},
        }});
        review.to_string().into_bytes()
    }

    #[test]
    fn what_would_be_decoded_is_counted_and_nothing_else() {
        let managed = json!([{"fieldsV1": {"f:spec": {"f:containers": {}}}}]);
        let pod = json!({
            "kind": "Pod", "status": {"conditions": [{}, {}]},
            "metadata": {"name": "x", "labels": {"app": "shop", "containers": "c"}, "managedFields": managed},
            "spec": {
                "containers": [{"name": "a", "env": [{"name": "A", "value": "1"}, {"name": "B"}], "args": ["x", "y"]}, {}],
                "initContainers": [{"env": [{}]}], "ephemeralContainers": [{}],
                "volumes": [{"projected": {"sources": [{}, {}]}}],
            },
        });
        let size = Size::of(&review(&pod)).expect("JSON");
        assert_eq!((size.containers, size.volumes, size.variables), (4, 1, 3));
        // review, request, pod, metadata, labels, spec, 4 containers, 3 variables, a volume, its source and two of that
        assert_eq!(size.objects, 6 + 4 + 3 + 4);
        // name, two labels; name and two of the variables', two arguments; the lists: 3 of containers, 2 of env, args, volumes, sources
        assert_eq!(size.values, size.objects + 3 + (1 + 3 + 2) + 8);
        assert_eq!(size.excess(), None);
    }

    #[test]
    fn a_pod_that_would_become_many_times_its_text_is_refused_by_what_it_has_too_much_of() {
        let many = |count: usize| vec![json!({}); count];
        let with = |spec: Value| Size::of(&review(&json!({"metadata": {}, "spec": spec}))).expect("JSON").excess();
        assert_eq!(with(json!({"containers": many(MOST_CONTAINERS)})), None);
        let told = |excess: Option<String>| excess.expect("too much");
        let containers = told(with(json!({"containers": many(60), "initContainers": many(41)})));
        assert!(
            containers.starts_with("the pod has 101 containers, and a pod that gets a pooler may have 100;"),
            "{containers}"
        );
        assert!(containers.ends_with("sluice.dev/inject=disabled"), "{containers}");
        assert!(told(with(json!({"volumes": many(257)}))).contains("257 volumes"));
        assert!(told(with(json!({"containers": [{"env": many(5001)}]}))).contains("5001 environment variables"));
        assert!(told(with(json!({"tolerations": many(10_000)}))).contains("objects in its text"));
        assert!(told(with(json!({"containers": [{"args": vec![""; 50_000]}]}))).contains("values in its text"));
    }

    #[test]
    fn of_a_pod_is_decoded_what_injection_reads() {
        let metadata = json!({"generateName": "shop-", "labels": {"app": "shop"}, "annotations": {"a": "b"},
            "managedFields": [{}], "ownerReferences": [{"uid": "u", "kind": "ReplicaSet", "name": "n", "apiVersion": "v"}]});
        let pod =
            json!({"metadata": metadata, "spec": {"containers": [{"name": "app"}]}, "status": {"phase": "Pending"}});
        let request = Request::read(&review(&pod)).expect("a review");
        assert_eq!((request.uid.as_str(), request.creates, request.dry_run), ("42", true, true));
        let read = request.pod.expect("a pod");
        let kept = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"generateName": "shop-", "labels": {"app": "shop"}, "annotations": {"a": "b"}},
            "spec": {"containers": [{"name": "app"}]}});
        assert_eq!(serde_json::to_value(read).expect("JSON"), kept);
        let without = Request::read_without_pod(&review(&pod)).expect("a review");
        assert_eq!((without.uid.as_str(), without.pod), ("42", None));
    }

    #[test]
    fn an_answer_is_what_the_api_server_reads() {
        let request = Request::read(&review(&json!({"metadata": {}}))).expect("a review");
        let written = |answer: AdmissionResponse| -> Value {
            serde_json::from_slice(&answer.write().expect("text")).expect("JSON")
        };
        let head = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"});
        assert_eq!(written(request.allow())["response"], json!({"uid": "42", "allowed": true}));
        assert_eq!(written(request.allow())["kind"], head["kind"]);
        let denied = json!({"uid": "42", "allowed": false, "status": {"message": "no"}});
        assert_eq!(written(request.deny("no"))["response"], denied);
        let patch: Patch = serde_json::from_value(json!([{"op": "remove", "path": "/a"}])).expect("a patch");
        let changed = written(request.change(&patch, vec!["look".to_owned()]));
        let encoded = BASE64_STANDARD.encode(r#"[{"op":"remove","path":"/a"}]"#);
        let expected =
            json!({"uid": "42", "allowed": true, "patch": encoded, "patchType": "JSONPatch", "warnings": ["look"]});
        assert_eq!(changed["response"], expected);
    }
}
