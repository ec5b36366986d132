//! Names and labels of what the operator makes, in one place, since selectors and other processes depend on them.

use std::collections::BTreeMap;

use leno_crds::meshinstall::MeshInstall;
use serde_json::{Value, json};

/// The field manager of every apply.
pub const FIELD_MANAGER: &str = "leno-operator";
/// The field manager that holds `spec.replicas` between the operator and an autoscaler.
pub const HANDOVER_MANAGER: &str = "leno-operator-handover";
/// Who publishes the events.
pub const CONTROLLER: &str = "mesh.leno.dev/operator";
/// Holds a MeshInstall until what it made is removed in order.
pub const FINALIZER: &str = "mesh.leno.dev/cleanup";
/// The label that marks what the operator made.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The label with the name of the MeshInstall.
pub const INSTANCE: &str = "app.kubernetes.io/instance";
/// The label with the component's name.
pub const NAME: &str = "app.kubernetes.io/name";
/// The label with the release.
pub const VERSION: &str = "app.kubernetes.io/version";
/// The label of injected pods with their revision, and of namespaces that ask for one.
pub const REVISION: &str = "mesh.leno.dev/rev";
/// The annotation of injected pods.
pub const STATUS: &str = "mesh.leno.dev/status";
/// The annotation of the control plane's Deployment that says who decides about its replicas.
pub const REPLICAS_BY: &str = "mesh.leno.dev/replicas-by";
/// The Secret with the mesh's authority.
pub const CA_SECRET: &str = "leno-ca";
/// The ConfigMap with the trusted roots, in every namespace of the mesh.
pub const ROOT_CONFIG_MAP: &str = "leno-root";
/// The key of the roots, in Secret and ConfigMap.
pub const ROOTS_KEY: &str = "roots.pem";
/// The service account of the control plane.
pub const CONTROL_PLANE_ACCOUNT: &str = "leno-control-plane";
/// The service account of the operator, whose identity reads status from control planes.
pub const OPERATOR_ACCOUNT: &str = "leno-operator";
/// The component label's value of the control plane.
pub const CONTROL_PLANE: &str = "control-plane";

/// Deployment, Service and others of one install's control plane.
pub fn control_plane(install: &str) -> String {
    format!("leno-control-plane-{install}")
}

/// The webhook configuration of one install.
pub fn injector(install: &str) -> String {
    format!("leno-injector-{install}")
}

/// Cluster role and binding of one install's control plane.
pub fn cluster_role(install: &str) -> String {
    format!("leno-control-plane-{install}")
}

/// The recommended labels. The version is left to those objects that belong to one.
pub fn labels(install: &str, component: &str) -> BTreeMap<String, String> {
    [
        (NAME, format!("leno-{component}")),
        (INSTANCE, install.to_owned()),
        ("app.kubernetes.io/component", component.to_owned()),
        ("app.kubernetes.io/part-of", "leno".to_owned()),
        (MANAGED_BY, FIELD_MANAGER.to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// What selects the control plane's pods; it cannot change once the Deployment exists.
pub fn control_plane_selector(install: &str) -> BTreeMap<String, String> {
    [(NAME, "leno-control-plane"), (INSTANCE, install)].map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

/// The owner reference that makes garbage collection remove an object after its MeshInstall.
pub fn owner(install: &MeshInstall) -> Value {
    json!({
        "apiVersion": "mesh.leno.dev/v1alpha1",
        "kind": "MeshInstall",
        "name": install.metadata.name.clone().unwrap_or_default(),
        "uid": install.metadata.uid.clone().unwrap_or_default(),
        "controller": true,
    })
}
