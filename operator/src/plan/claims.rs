//! Which namespaces belong to which MeshInstall: the oldest that selects one has it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use leno_crds::meshinstall::MeshInstall;
use leno_kubeutil::watch::Key;

/// Namespaces of Kubernetes itself, which never belong to a mesh.
pub const KUBERNETES_NAMESPACES: [&str; 3] = ["kube-node-lease", "kube-public", "kube-system"];

/// What one MeshInstall has, and what it cannot have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// Namespaces that belong to it.
    pub namespaces: BTreeSet<String>,
    /// Namespaces that it selects and that belong to an older MeshInstall, with its name.
    pub taken: BTreeMap<String, String>,
    /// The older MeshInstall whose control plane is in the same namespace.
    pub conflict: Option<String>,
}

/// The claims of all MeshInstalls, by name. Installs that are being deleted claim nothing new, but keep others out until
/// they are gone.
pub fn claims(
    installs: &BTreeMap<Key, Arc<MeshInstall>>,
    namespaces: &BTreeMap<Key, Arc<Namespace>>,
) -> BTreeMap<String, Claim> {
    let mut by_age: Vec<&Arc<MeshInstall>> = installs.values().collect();
    by_age.sort_by_key(|install| {
        let created = install.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created.is_none(), created, install.metadata.name.clone())
    });
    let system: BTreeSet<&str> = by_age.iter().map(|install| install.spec.system_namespace()).collect();
    let mut claims: BTreeMap<String, Claim> = BTreeMap::new();
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    let mut systems: BTreeMap<&str, String> = BTreeMap::new();
    for install in by_age {
        let name = install.metadata.name.clone().unwrap_or_default();
        let mut claim = Claim::default();
        match systems.get(install.spec.system_namespace()) {
            Some(older) => claim.conflict = Some(older.clone()),
            None => {
                systems.insert(install.spec.system_namespace(), name.clone());
                for (key, namespace) in namespaces {
                    if !may_belong(&key.name, &system) || !selects(install.spec.namespaces(), namespace) {
                        continue;
                    }
                    match owners.get(&key.name) {
                        Some(older) => {
                            claim.taken.insert(key.name.clone(), older.clone());
                        }
                        None => {
                            owners.insert(key.name.clone(), name.clone());
                            claim.namespaces.insert(key.name.clone());
                        }
                    }
                }
            }
        }
        claims.insert(name, claim);
    }
    claims
}

fn may_belong(namespace: &str, system: &BTreeSet<&str>) -> bool {
    !namespace.starts_with("kube-") && !system.contains(namespace)
}

fn selects(selector: Option<&LabelSelector>, namespace: &Namespace) -> bool {
    let empty = BTreeMap::new();
    selector.is_none_or(|selector| matches(selector, namespace.metadata.labels.as_ref().unwrap_or(&empty)))
}

/// Whether a selector matches labels, as the API server decides it. An operator that does not exist matches nothing.
pub fn matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let by_labels = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    by_labels
        && selector.match_expressions.iter().flatten().all(|expression| {
            let value = labels.get(&expression.key);
            let listed = value.is_some_and(|value| expression.values.iter().flatten().any(|one| one == value));
            match expression.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn install(name: &str, created: &str, system: &str, selector: serde_json::Value) -> (Key, Arc<MeshInstall>) {
        let object = json!({ "apiVersion": "mesh.leno.dev/v1alpha1", "kind": "MeshInstall",
            "metadata": { "name": name, "creationTimestamp": created },
            "spec": { "version": "0.1.0", "namespace": system, "mesh": { "namespaces": selector } } });
        (Key::new("", name), Arc::new(serde_json::from_value(object).unwrap()))
    }

    fn namespaces(list: &[(&str, serde_json::Value)]) -> BTreeMap<Key, Arc<Namespace>> {
        list.iter()
            .map(|(name, labels)| {
                let object = json!({ "metadata": { "name": name, "labels": labels } });
                (Key::new("", *name), Arc::new(serde_json::from_value(object).unwrap()))
            })
            .collect()
    }

    #[test]
    fn namespace_when_two_select_it_then_belongs_to_the_older_and_the_other_says_so() {
        let installs = [
            install("b-old", "2026-01-01T00:00:00Z", "mesh-b", json!({ "matchLabels": { "team": "b" } })),
            install("a-new", "2026-02-01T00:00:00Z", "mesh-a", json!({})),
        ];
        let namespaces = namespaces(&[
            ("shop", json!({})),
            ("b", json!({ "team": "b" })),
            ("kube-system", json!({})),
            ("mesh-a", json!({})),
            ("mesh-b", json!({})),
        ]);
        let claims = claims(&installs.into(), &namespaces);
        assert_eq!(claims["b-old"].namespaces, BTreeSet::from(["b".to_owned()]));
        assert_eq!(claims["a-new"].namespaces, BTreeSet::from(["shop".to_owned()]));
        assert_eq!(claims["a-new"].taken, BTreeMap::from([("b".to_owned(), "b-old".to_owned())]));
    }

    #[test]
    fn install_when_its_control_plane_namespace_is_taken_then_conflicts_with_the_older() {
        let installs = [
            install("a", "2026-02-01T00:00:00Z", "leno-system", json!({})),
            install("z", "2026-01-01T00:00:00Z", "leno-system", json!({})),
        ];
        let claims = claims(&installs.into(), &namespaces(&[("shop", json!({}))]));
        assert_eq!(claims["a"].conflict.as_deref(), Some("z"));
        assert!(claims["a"].namespaces.is_empty());
        assert_eq!(claims["z"].conflict, None);
    }

    #[test]
    fn selector_when_it_has_expressions_then_all_must_hold() {
        let selector: LabelSelector = serde_json::from_value(json!({ "matchExpressions": [
            { "key": "a", "operator": "In", "values": ["1", "2"] }, { "key": "b", "operator": "DoesNotExist" } ] }))
        .unwrap();
        let labels = |list: &[(&str, &str)]| list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert!(matches(&selector, &labels(&[("a", "2")])));
        assert!(!matches(&selector, &labels(&[("a", "2"), ("b", "")])));
        assert!(!matches(&selector, &labels(&[("a", "3")])));
    }
}
