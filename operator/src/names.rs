//! Names and labels of what the operator makes, in one place, since selectors and other processes depend on them.

use std::collections::BTreeMap;

use leno_crds::meshinstall::{CANARY, MeshInstall, STABLE};
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
/// The label of namespaces and pods that ask for a revision or a tag, as Istio calls it.
pub const ISTIO_REVISION: &str = "istio.io/rev";
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

/// Deployment, Service and others of one revision of the control plane.
pub fn control_plane(revision: &str) -> String {
    format!("leno-control-plane-{revision}")
}

/// Longest name of a revision, in bytes: its Service's name has at most 63.
pub const MAX_REVISION: usize = 63 - "leno-control-plane-".len();

/// The name of the revision of a release: `<install>-<version with dashes for dots>`. What of a pre-release cannot be read back
/// from that, or is too long, becomes eight hexadecimal digits.
pub fn revision(install: &str, version: &str) -> String {
    let (release, pre) = version.split_once('-').unwrap_or((version, ""));
    let release = release.replace('.', "-");
    let plain = !pre.is_empty()
        && pre.split('.').all(|part| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        });
    let name = match (pre, plain) {
        ("", _) => format!("{install}-{release}"),
        (_, true) => format!("{install}-{release}-{}", pre.replace('.', "-")),
        (_, false) => String::new(),
    };
    if !name.is_empty() && name.len() <= MAX_REVISION {
        return name;
    }
    let hash = version.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{install}-{release}-{hash:08x}")
}

/// Whether a revision is one of an install: it is called as the install, or as [`revision`] says.
pub fn is_of(install: &str, revision: &str) -> bool {
    let release = revision.strip_prefix(install).and_then(|rest| rest.strip_prefix('-'));
    revision == install
        || release.is_some_and(|release| {
            let mut parts = release.split('-');
            (0..3).all(|_| {
                parts.next().is_some_and(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
            })
        })
}

/// Whether who names this tag or revision asks for this install.
pub fn asks_for(install: &str, named: &str) -> bool {
    named == STABLE || named == CANARY || is_of(install, named)
}

/// The tag or revision that a namespace names by its labels.
pub fn asked_revision(labels: &BTreeMap<String, String>) -> Option<&str> {
    labels.get(ISTIO_REVISION).or_else(|| labels.get(REVISION)).map(String::as_str)
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

/// Whether these are the labels of a control plane pod of an install, of any revision.
pub fn is_control_plane(install: &str, labels: &BTreeMap<String, String>) -> bool {
    labels.get(NAME).is_some_and(|name| name == "leno-control-plane")
        && labels.get(INSTANCE).is_some_and(|revision| is_of(install, revision))
}

/// What selects the pods of one revision of the control plane; it cannot change once the Deployment exists.
pub fn control_plane_selector(revision: &str) -> BTreeMap<String, String> {
    [(NAME, "leno-control-plane"), (INSTANCE, revision)].map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

/// The Deployment that tries a component of a release before pods get it.
pub fn preflight(install: &str, component: &str) -> String {
    format!("leno-preflight-{install}-{component}")
}

/// What selects its pods.
pub fn preflight_selector(install: &str, component: &str) -> BTreeMap<String, String> {
    [(NAME, "leno-preflight"), (INSTANCE, install), ("app.kubernetes.io/component", component)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revision_when_named_then_is_a_label_and_tells_releases_apart() {
        assert_eq!(revision("default", "0.2.0"), "default-0-2-0");
        assert_eq!(revision("default", "0.2.0-rc.1"), "default-0-2-0-rc-1");
        let long = "0.2.0-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
        let all = ["0.2.0", "0.2.0-rc.1", "0.2.0-rc-1", "0.2.0-RC.1", "0.2.0-rc.", long];
        let names: Vec<String> = all.iter().map(|version| revision("default", version)).collect();
        for name in &names {
            assert!(is_of("default", name) && control_plane(name).len() <= 63, "{name}");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'));
            assert!(!name.ends_with('-'), "{name}");
        }
        let distinct: std::collections::BTreeSet<&String> = names.iter().collect();
        assert_eq!(distinct.len(), all.len(), "{names:?}");
    }

    #[test]
    fn revision_when_of_another_install_then_is_not_ours() {
        assert!(is_of("default", "default") && is_of("default", "default-0-2-0"));
        for other in ["default-two", "default-", "default-0-2", "other", "other-0-2-0", "defaults-0-2-0"] {
            assert!(!is_of("default", other), "{other}");
        }
        assert!(asks_for("default", "canary") && asks_for("default", "stable") && !asks_for("default", "prod"));
    }
}
