//! The objects of a mesh, from its MeshInstall: pure functions that return JSON as the API server takes it.

mod access;
mod control_plane;
mod preflight;
mod webhook;

use std::collections::BTreeMap;

use leno_crds::meshinstall::{MeshInstall, MeshInstallSpec};
use leno_kubeutil::apply::{ApplyError, Desired};
use serde_json::{Map, Value, json};

use super::claims::Claim;
use super::revisions::{Revision, Revisions};
use crate::names;

/// What rendering needs beside the MeshInstall.
pub struct Inputs<'a> {
    /// The MeshInstall.
    pub install: &'a MeshInstall,
    /// Its name.
    pub name: &'a str,
    /// The revisions of its control plane.
    pub revisions: &'a Revisions,
    /// The namespaces that belong to it and those that do not.
    pub claim: &'a Claim,
    /// Namespaces of control planes, this one's and others'.
    pub system_namespaces: Vec<String>,
    /// The trusted roots, PEM.
    pub roots: &'a str,
    /// The same for proxies, with what signs now in front.
    pub announced: &'a str,
    /// What the Deployment of each revision should say about its replicas.
    pub replicas: BTreeMap<String, Replicas>,
    /// Images that are tried in pods of their own, by component.
    pub preflights: &'a BTreeMap<&'static str, String>,
}

/// Who decides about the number of replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replicas {
    /// The operator: so many.
    Operator(i32),
    /// An autoscaler: the field is left out.
    Autoscaler,
}

impl Inputs<'_> {
    /// The spec.
    pub fn spec(&self) -> &MeshInstallSpec {
        &self.install.spec
    }

    /// What the Deployment of a revision should say about its replicas.
    fn replicas(&self, revision: &Revision) -> Replicas {
        self.replicas.get(&revision.name).copied().unwrap_or(Replicas::Operator(self.spec().replicas()))
    }

    /// Metadata of an object of this mesh; `namespace` is `None` for cluster-scoped kinds.
    fn metadata(&self, name: &str, namespace: Option<&str>) -> Value {
        let mut metadata = json!({
            "name": name,
            "labels": names::labels(self.name, names::CONTROL_PLANE),
            "ownerReferences": [names::owner(self.install)],
        });
        if let Some(namespace) = namespace {
            metadata["namespace"] = json!(namespace);
        }
        metadata
    }

    /// Metadata of an object in the control plane's namespace.
    fn in_system(&self, name: &str) -> Value {
        self.metadata(name, Some(self.spec().system_namespace()))
    }
}

/// The control plane's namespace, for when it does not exist.
///
/// # Errors
///
/// [`ApplyError::Malformed`], which is a mistake here.
pub fn namespace(install: &MeshInstall, name: &str) -> Result<Desired, ApplyError> {
    let mut labels = names::labels(name, names::CONTROL_PLANE);
    labels.insert("pod-security.kubernetes.io/enforce".to_owned(), "restricted".to_owned());
    let object = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": install.spec.system_namespace(),
            "labels": labels,
            "ownerReferences": [names::owner(install)],
        },
    });
    Desired::new(&object, "namespaces")
}

/// Everything that is applied once namespace and authority are there, in the order in which it is applied.
///
/// # Errors
///
/// [`ApplyError::Malformed`], which is a mistake here.
pub fn objects(inputs: &Inputs<'_>) -> Result<Vec<Desired>, ApplyError> {
    let mut objects = vec![
        Desired::new(&access::service_account(inputs), "serviceaccounts")?,
        Desired::new(&access::cluster_role(inputs), "clusterroles")?,
        Desired::new(&access::cluster_role_binding(inputs), "clusterrolebindings")?,
    ];
    for revision in &inputs.revisions.list {
        objects.push(Desired::new(&control_plane::service(inputs, revision), "services")?);
        objects.push(Desired::new(&control_plane::disruption_budget(inputs, revision), "poddisruptionbudgets")?);
    }
    for namespace in &inputs.claim.namespaces {
        objects.push(Desired::new(&root_config_map(inputs, namespace), "configmaps")?);
    }
    for revision in &inputs.revisions.list {
        objects.push(Desired::new(&control_plane::deployment(inputs, revision), "deployments")?);
        if let (Some(autoscaling), Replicas::Autoscaler) = (inputs.spec().autoscaling(), inputs.replicas(revision)) {
            let scaler = control_plane::autoscaler(inputs, revision, autoscaling);
            objects.push(Desired::new(&scaler, "horizontalpodautoscalers")?);
        }
    }
    if !inputs.preflights.is_empty() {
        let namespace = inputs.spec().system_namespace();
        objects.push(Desired::new(&root_config_map(inputs, namespace), "configmaps")?);
    }
    for (component, image) in inputs.preflights {
        objects.push(Desired::new(&preflight::deployment(inputs, component, image), "deployments")?);
    }
    objects.push(Desired::new(&webhook::configuration(inputs), "mutatingwebhookconfigurations")?);
    Ok(objects)
}

/// The trusted roots, in one namespace of the mesh.
fn root_config_map(inputs: &Inputs<'_>, namespace: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": inputs.metadata(names::ROOT_CONFIG_MAP, Some(namespace)),
        "data": { names::ROOTS_KEY: inputs.announced },
    })
}

/// Labels as a JSON object.
fn object(labels: BTreeMap<String, String>) -> Map<String, Value> {
    labels.into_iter().map(|(key, value)| (key, Value::String(value))).collect()
}
