//! What of the mesh's settings is in a pod and cannot be changed while the pod runs: who was created before a change has it only when
//! its pod is replaced. Everything else that a MeshInstall says of its sidecars reaches them while they run.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use leno_core::service::Engine;
use leno_crds::meshinstall::{MeshInstallSpec, Resources};
use leno_kubeutil::sidecar;
use sha2::{Digest, Sha256};

use super::injection::{SLOTS, injected_engine, wanted_engine};

/// The fields of the spec that say otherwise than what an injected pod was made with. What its own annotations say goes before
/// the mesh, as it does when it is made; what it does not tell, since an older release made it, counts as alike.
pub fn differing(spec: &MeshInstallSpec, pod: &Pod) -> Vec<&'static str> {
    let empty = BTreeMap::new();
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&empty);
    let annotation = |key: &str| annotations.get(key).map(String::as_str);
    let mut fields = Vec::new();
    if injected_engine(annotations) != wanted_engine(annotations, spec.engine().into()) {
        fields.push("spec.dataPlane.engine");
    }
    if annotation(sidecar::RESOURCES_ANNOTATION).is_some_and(|has| has != resources(spec, annotation)) {
        fields.push("spec.dataPlane.resources");
    }
    let containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let mut slots = containers.filter(|container| SLOTS.contains(&container.name.as_str()));
    if slots.any(|slot| slot.image_pull_policy.as_deref().is_some_and(|has| has != spec.pull_policy().as_str())) {
        fields.push("spec.image.pullPolicy");
    }
    fields
}

/// A word for all that [`differing`] looks at in a spec: another one, when any of it is another.
pub fn fingerprint(spec: &MeshInstallSpec) -> String {
    let engine: Engine = spec.engine().into();
    let text = format!("{} {} {}", engine.as_str(), spec.pull_policy().as_str(), resources(spec, |_| None));
    Sha256::digest(text.as_bytes()).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// What a proxy is given, as the annotation of an injected pod tells it.
fn resources<'a>(spec: &MeshInstallSpec, annotation: impl Fn(&str) -> Option<&'a str>) -> String {
    let none = Resources::default();
    let given = spec.data_plane.as_ref().and_then(|data_plane| data_plane.resources.as_ref()).unwrap_or(&none);
    sidecar::resources(&given.requests, &given.limits, annotation).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(spec: Value, annotations: Value, policy: &str) -> Vec<&'static str> {
        let spec: MeshInstallSpec = serde_json::from_value(spec).unwrap();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "annotations": annotations },
            "spec": { "containers": [], "initContainers": [{ "name": "leno-proxy-1", "imagePullPolicy": policy }] },
        }))
        .unwrap();
        differing(&spec, &pod)
    }

    #[test]
    fn pod_when_made_with_what_the_mesh_says_or_with_its_own_wishes_then_does_not_differ() {
        let resources = r#"{"limits":{"memory":"512Mi"},"requests":{"cpu":"1","memory":"32Mi"}}"#;
        let spec = json!({ "version": "0.1.0", "dataPlane": { "resources": { "requests": { "cpu": "1" } } } });
        let made = json!({ "mesh.leno.dev/injected-resources": resources });
        assert!(of(spec, made, "IfNotPresent").is_empty());
        let wishes = json!({ "mesh.leno.dev/injected-resources": resources, "sidecar.istio.io/proxyCPU": "1",
            "mesh.leno.dev/engine": "leno" });
        let spec = json!({ "version": "0.1.0", "dataPlane": { "engine": "envoy" } });
        assert!(of(spec, wishes, "IfNotPresent").is_empty());
    }

    #[test]
    fn pod_when_the_mesh_says_otherwise_then_its_fields_are_named_unless_it_is_too_old_to_tell() {
        let spec = json!({ "version": "0.1.0", "image": { "pullPolicy": "Always" },
            "dataPlane": { "engine": "envoy", "resources": { "limits": { "memory": "1Gi" } } } });
        let resources = r#"{"limits":{"memory":"512Mi"},"requests":{"cpu":"10m","memory":"32Mi"}}"#;
        let fields = of(spec.clone(), json!({ "mesh.leno.dev/injected-resources": resources }), "IfNotPresent");
        assert_eq!(fields, ["spec.dataPlane.engine", "spec.dataPlane.resources", "spec.image.pullPolicy"]);
        assert_eq!(of(spec, json!({ "mesh.leno.dev/injected-engine": "envoy" }), "Always"), [""; 0]);
    }
}
