//! Server-side apply that writes only when something has to change.
//!
//! Every object that is applied carries a hash of what was wanted of it ([`HASH_ANNOTATION`]). A write is due when the hash
//! differs (something else is wanted now, perhaps less: the API server then removes the fields that we no longer own) or
//! when a field that we want looks different (somebody else changed it). What others add beside our fields is theirs.
//!
//! The comparison does not know how the API server normalises every field (`1000m` becomes `1`), so [`Applier`] also
//! remembers what came back from its last write of an object: a write that changed nothing is not repeated until the object
//! changes. In a steady state nothing is written, whatever the fields.

use std::collections::HashMap;
use std::time::Duration;

use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Client, ResourceExt};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

/// The annotation with the hash of what was last applied.
pub const HASH_ANNOTATION: &str = "mesh.leno.dev/applied-hash";
/// How long a write may take to come back through a watch. Within it what is observed may be from before the write, and the
/// same wish is not written again; whoever wrote something should look again after it.
pub const SETTLE: Duration = Duration::from_secs(3);
/// Objects whose last write is remembered; when there are more, all are forgotten.
const REMEMBERED: usize = 4096;

/// An object could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// What is to be applied is not an object of Kubernetes.
    #[error("{object} cannot be applied: {reason}")]
    Malformed {
        /// Kind and name, as far as known.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The API server refused.
    #[error("{object} cannot be applied: {source}")]
    Refused {
        /// Kind, namespace and name.
        object: String,
        /// What the API server said.
        #[source]
        source: Box<kube::Error>,
    },
}

impl ApplyError {
    /// A bounded word for metrics and reasons.
    pub fn category(&self) -> &'static str {
        match self {
            ApplyError::Malformed { .. } => "Malformed",
            ApplyError::Refused { source, .. } => match source.as_ref() {
                kube::Error::Api(status) if status.code == 403 => "Forbidden",
                kube::Error::Api(status) if status.code == 409 => "Conflict",
                kube::Error::Api(status) if status.code == 422 || status.code == 400 => "Invalid",
                kube::Error::Api(_) => "Refused",
                _ => "Unreachable",
            },
        }
    }
}

/// An object as it should be: type, metadata and the fields that we own.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// What it is.
    pub resource: ApiResource,
    /// The namespace; `None` for cluster-scoped kinds.
    pub namespace: Option<String>,
    /// The name.
    pub name: String,
    /// The whole object, with `apiVersion`, `kind` and the hash annotation.
    pub body: Value,
}

impl Desired {
    /// Takes a typed or untyped object apart. `plural` is the resource's name in URLs.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Malformed`], when it has no kind or name.
    pub fn new(object: &impl serde::Serialize, plural: &str) -> Result<Self, ApplyError> {
        let malformed =
            |object: &str, reason: &str| ApplyError::Malformed { object: object.to_owned(), reason: reason.to_owned() };
        let mut body = serde_json::to_value(object).map_err(|error| malformed("an object", &error.to_string()))?;
        let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let (Some(version), Some(kind)) = (text("/apiVersion"), text("/kind")) else {
            return Err(malformed("an object", "it has no apiVersion and kind"));
        };
        let Some(name) = text("/metadata/name") else {
            return Err(malformed(&kind, "it has no metadata.name"));
        };
        let namespace = text("/metadata/namespace");
        let (group, version) = version.rsplit_once('/').unwrap_or(("", version.as_str()));
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, &kind), plural);
        strip_nulls(&mut body);
        let hash = hash(&body);
        let annotations = body
            .get_mut("metadata")
            .and_then(Value::as_object_mut)
            .map(|metadata| metadata.entry("annotations").or_insert_with(|| Value::Object(Map::new())));
        match annotations.and_then(Value::as_object_mut) {
            Some(annotations) => annotations.insert(HASH_ANNOTATION.to_owned(), Value::String(hash)),
            None => return Err(malformed(&kind, "its metadata.annotations is not an object")),
        };
        Ok(Desired { resource, namespace, name, body })
    }

    /// Kind, namespace and name, for people.
    pub fn describe(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{} {namespace}/{}", self.resource.kind, self.name),
            None => format!("{} {}", self.resource.kind, self.name),
        }
    }

    /// The API for it.
    pub fn api(&self, client: &Client) -> Api<DynamicObject> {
        match &self.namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &self.resource),
            None => Api::all_with(client.clone(), &self.resource),
        }
    }
}

/// What applying did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There was none before.
    Created,
    /// It was changed.
    Changed,
    /// Nothing had to be written, or the write changed nothing.
    Unchanged,
}

/// Applies objects as one field manager.
pub struct Applier {
    client: Client,
    manager: String,
    last: HashMap<String, Last>,
}

/// What the last write of an object was for, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Last {
    hash: String,
    resource_version: String,
    at: Instant,
}

impl Applier {
    /// An applier with this field manager.
    pub fn new(client: Client, manager: &str) -> Self {
        Applier { client, manager: manager.to_owned(), last: HashMap::new() }
    }

    /// The client in use.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether `desired` has to be written, given what is there.
    pub fn is_due(&self, desired: &Desired, observed: Option<&DynamicObject>) -> bool {
        if observed.is_some_and(|observed| !differs(desired, observed)) {
            return false;
        }
        let Some(last) = self.last.get(&desired.describe()).filter(|last| last.hash == hash_of(&desired.body)) else {
            return true;
        };
        let seen = observed.and_then(|observed| observed.resource_version());
        seen.as_deref() != Some(&last.resource_version) && last.at.elapsed() >= SETTLE
    }

    /// Applies `desired` if it has to be written.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Refused`] with what the API server said.
    pub async fn apply(&mut self, desired: &Desired, observed: Option<&DynamicObject>) -> Result<Outcome, ApplyError> {
        if !self.is_due(desired, observed) {
            return Ok(Outcome::Unchanged);
        }
        let params = PatchParams::apply(&self.manager).force();
        let answer = desired
            .api(&self.client)
            .patch(&desired.name, &params, &Patch::Apply(&desired.body))
            .await
            .map_err(|source| ApplyError::Refused { object: desired.describe(), source: Box::new(source) })?;
        if self.last.len() >= REMEMBERED {
            self.last.clear();
        }
        let resource_version = answer.resource_version().unwrap_or_default();
        let unchanged =
            observed.is_some_and(|observed| observed.resource_version().as_deref() == Some(&resource_version));
        self.last
            .insert(desired.describe(), Last { hash: hash_of(&desired.body), resource_version, at: Instant::now() });
        Ok(match observed {
            None => Outcome::Created,
            Some(_) if unchanged => Outcome::Unchanged,
            Some(_) => Outcome::Changed,
        })
    }
}

/// Whether an observed object is not as wanted: other fields are wanted now, or somebody changed one of ours.
pub fn differs(desired: &Desired, observed: &DynamicObject) -> bool {
    if observed.annotations().get(HASH_ANNOTATION).map(String::as_str) != Some(hash_of(&desired.body).as_str()) {
        return true;
    }
    let Ok(mut observed) = serde_json::to_value(observed) else { return true };
    // The elements of a list come without their type, which is known from where they were asked for.
    for part in ["apiVersion", "kind"] {
        if observed.get(part).is_none() {
            observed[part] = desired.body[part].clone();
        }
    }
    !covers(&observed, &desired.body)
}

/// Whether everything in `wanted` is in `observed`, which may hold more.
///
/// Elements of lists with names (containers, ports, environment, volumes) are found by their name; other lists must be of
/// one length and fit element by element. An empty object or list may be absent: the API server drops some of them.
pub fn covers(observed: &Value, wanted: &Value) -> bool {
    match (observed, wanted) {
        (Value::Object(observed), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| match observed.get(key) {
                Some(observed) => covers(observed, wanted),
                None => is_empty(wanted),
            })
        }
        (Value::Array(observed), Value::Array(wanted)) => {
            if let (false, Some(names)) = (wanted.is_empty(), names(wanted)) {
                let find = |name: &str| {
                    observed.iter().find(|element| element.get("name").and_then(Value::as_str) == Some(name))
                };
                return names
                    .iter()
                    .zip(wanted)
                    .all(|(name, wanted)| find(name).is_some_and(|observed| covers(observed, wanted)));
            }
            observed.len() == wanted.len()
                && observed.iter().zip(wanted).all(|(observed, wanted)| covers(observed, wanted))
        }
        (Value::Number(observed), Value::Number(wanted)) => observed.as_f64() == wanted.as_f64(),
        (observed, wanted) => observed == wanted,
    }
}

fn names(list: &[Value]) -> Option<Vec<&str>> {
    list.iter().map(|element| element.get("name").and_then(Value::as_str)).collect()
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(object) => object.values().all(is_empty),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

/// Fields that are `null` say nothing in an apply; without them equal wishes have equal bytes.
fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|_, value| !value.is_null());
            object.values_mut().for_each(strip_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(strip_nulls),
        _ => {}
    }
}

/// The first 16 bytes of the SHA-256 of the JSON text, in hex. Maps are sorted, so equal content gives equal text.
fn hash(value: &Value) -> String {
    let digest = Sha256::digest(value.to_string().as_bytes());
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn hash_of(body: &Value) -> String {
    body.get("metadata")
        .and_then(|metadata| metadata.get("annotations"))
        .and_then(|annotations| annotations.get(HASH_ANNOTATION))
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn desired(spec: Value) -> Desired {
        let object = json!({ "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": "a", "namespace": "n" }, "spec": spec });
        Desired::new(&object, "deployments").unwrap()
    }

    /// The object as the API server gives it back: with fields of its own.
    fn stored(desired: &Desired) -> DynamicObject {
        let mut body = desired.body.clone();
        body["metadata"]["resourceVersion"] = json!("7");
        body["status"] = json!({ "replicas": 1 });
        body["spec"]["progressDeadlineSeconds"] = json!(600);
        serde_json::from_value(body).unwrap()
    }

    #[test]
    fn object_when_only_defaults_were_added_then_does_not_differ() {
        let desired = desired(json!({ "replicas": 2, "paused": null, "template": { "spec": { "nodeSelector": {} } } }));
        assert!(!differs(&desired, &stored(&desired)));
    }

    #[test]
    fn object_when_it_came_in_a_list_without_its_type_then_does_not_differ() {
        let desired = desired(json!({ "replicas": 2 }));
        assert!(!differs(&desired, &DynamicObject { types: None, ..stored(&desired) }));
    }

    #[test]
    fn object_when_somebody_changed_our_field_then_differs() {
        let desired = desired(json!({ "replicas": 2 }));
        let mut observed = stored(&desired);
        observed.data["spec"]["replicas"] = json!(5);
        assert!(differs(&desired, &observed));
    }

    #[test]
    fn object_when_a_field_is_no_longer_wanted_then_differs() {
        let (before, after) =
            (desired(json!({ "replicas": 2, "minReadySeconds": 5 })), desired(json!({ "replicas": 2 })));
        assert!(differs(&after, &stored(&before)));
    }

    #[test]
    fn list_when_named_then_is_compared_by_name_and_may_hold_more() {
        let wanted = json!([{ "name": "a", "image": "x" }]);
        assert!(covers(&json!([{ "name": "other" }, { "name": "a", "image": "x", "tty": false }]), &wanted));
        assert!(!covers(&json!([{ "name": "a", "image": "y" }]), &wanted));
        assert!(!covers(&json!(["b", "a"]), &json!(["a", "b"])));
    }

    #[test]
    fn desired_when_made_without_a_name_then_says_so() {
        let error = Desired::new(&json!({ "apiVersion": "v1", "kind": "Service", "metadata": {} }), "services");
        assert!(error.unwrap_err().to_string().contains("metadata.name"));
    }

    #[test]
    fn desired_when_of_the_core_group_then_has_no_group() {
        let object = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "a" } });
        let desired = Desired::new(&object, "services").unwrap();
        assert_eq!((desired.resource.group.as_str(), desired.resource.api_version.as_str()), ("", "v1"));
    }
}
