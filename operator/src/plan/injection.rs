//! Which pods ask for a sidecar, which have one, and whether it is current.
//!
//! The same rules that the webhook's selectors say to the API server, as a function: what asked and was not injected was
//! created while the webhook was not there.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, Pod};

use leno_core::service::{ENGINE_ANNOTATION, Engine, INJECTED_ENGINE_ANNOTATION};
use leno_crds::meshinstall::MeshInstallSpec;

use crate::names;

/// The proxy's first slot, whose readiness is the sidecar's.
pub const FIRST_SLOT: &str = "leno-proxy-0";
/// The containers of both slots, by number.
pub const SLOTS: [&str; 2] = [FIRST_SLOT, "leno-proxy-1"];

/// What a pod is to the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// It does not ask for a sidecar, is finished, or is not of this revision.
    Outside,
    /// It has a sidecar.
    Injected {
        /// Whether the sidecar runs the wanted image and is ready.
        current: bool,
        /// Whether it runs the wanted image.
        wanted_image: bool,
        /// Whether it runs Envoy.
        envoy: bool,
    },
    /// It asks for a sidecar and has none.
    NotInjected,
}

/// The images of the wanted release, and what runs where a pod says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    leno: String,
    envoy: String,
    engine: Engine,
}

impl Images {
    /// Those that a spec wants.
    pub fn of(spec: &MeshInstallSpec) -> Self {
        let image = |engine: Engine| spec.image(engine.component());
        Images { leno: image(Engine::Leno), envoy: image(Engine::Envoy), engine: spec.engine().into() }
    }

    /// The image that a pod with these annotations should run.
    fn wanted(&self, annotations: &BTreeMap<String, String>) -> &str {
        match wanted_engine(annotations, self.engine) {
            Engine::Leno => &self.leno,
            Engine::Envoy => &self.envoy,
        }
    }
}

/// The engine that a pod with these annotations should run, in a mesh of this one.
pub fn wanted_engine(annotations: &BTreeMap<String, String>, mesh: Engine) -> Engine {
    annotations.get(ENGINE_ANNOTATION).and_then(|name| Engine::named(name.trim())).unwrap_or(mesh)
}

/// The engine with which a pod with these annotations was injected.
pub fn injected_engine(annotations: &BTreeMap<String, String>) -> Engine {
    annotations.get(INJECTED_ENGINE_ANNOTATION).and_then(|name| Engine::named(name)).unwrap_or_default()
}

/// Whether a pod has a sidecar of this install.
pub fn has_sidecar(install: &str, pod: &Pod) -> bool {
    let of = |map: &Option<BTreeMap<String, String>>, key: &str, fits: &dyn Fn(&str) -> bool| {
        map.as_ref().and_then(|map| map.get(key)).is_some_and(|found| fits(found))
    };
    of(&pod.metadata.annotations, names::STATUS, &|status| status == "injected")
        && of(&pod.metadata.labels, names::REVISION, &|revision| names::is_of(install, revision))
}

/// Decides about one pod in a namespace of the mesh.
pub fn membership(install: &str, namespace: &Namespace, pod: &Pod, images: &Images) -> Membership {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") || pod.metadata.deletion_timestamp.is_some() {
        return Membership::Outside;
    }
    let empty = BTreeMap::new();
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&empty);
    if annotations.get(names::STATUS).is_some_and(|status| status == "injected") {
        if !has_sidecar(install, pod) {
            return Membership::Outside;
        }
        let wanted_image = runs_image(pod, images.wanted(annotations));
        let envoy = injected_engine(annotations) == Engine::Envoy;
        return Membership::Injected { current: wanted_image && first_slot_ready(pod), wanted_image, envoy };
    }
    if asks(install, namespace.metadata.labels.as_ref().unwrap_or(&empty), pod) {
        Membership::NotInjected
    } else {
        Membership::Outside
    }
}

/// Whether a pod asks this install for a sidecar.
pub fn asks(install: &str, namespace_labels: &BTreeMap<String, String>, pod: &Pod) -> bool {
    let empty = BTreeMap::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&empty);
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&empty);
    if pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false) {
        return false;
    }
    let says = |key: &str, value: &str| {
        labels.get(key).is_some_and(|found| found == value) || annotations.get(key).is_some_and(|found| found == value)
    };
    if says("sidecar.istio.io/inject", "false") || says("mesh.leno.dev/inject", "disabled") {
        return false;
    }
    let namespace = |key: &str, value: &str| namespace_labels.get(key).is_some_and(|found| found == value);
    if namespace("istio-injection", "disabled") || namespace("mesh.leno.dev/inject", "disabled") {
        return false;
    }
    namespace("istio-injection", "enabled")
        || namespace("mesh.leno.dev/inject", "enabled")
        || [names::ISTIO_REVISION, names::REVISION]
            .iter()
            .any(|key| namespace_labels.get(*key).is_some_and(|named| names::asks_for(install, named)))
        || labels.get(names::ISTIO_REVISION).is_some_and(|named| names::asks_for(install, named))
        || labels.get("sidecar.istio.io/inject").is_some_and(|found| found == "true")
}

/// Whether both slots are of the wanted image, by what the spec says (what runs may lag behind, and is not current then
/// either, since it is not ready).
fn runs_image(pod: &Pod, proxy_image: &str) -> bool {
    let containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let mut slots = containers.filter(|container| SLOTS.contains(&container.name.as_str())).peekable();
    slots.peek().is_some() && slots.all(|container| container.image.as_deref() == Some(proxy_image))
}

fn first_slot_ready(pod: &Pod) -> bool {
    let statuses = pod.status.iter().flat_map(|status| status.init_container_statuses.iter().flatten());
    statuses.into_iter().any(|status| status.name == FIRST_SLOT && status.ready)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const IMAGE: &str = "docker.io/leno/proxy:0.1.0";
    const ENVOY: &str = "docker.io/leno/envoy:0.1.0";

    fn images(engine: Engine) -> Images {
        Images { leno: IMAGE.into(), envoy: ENVOY.into(), engine }
    }

    fn namespace(labels: serde_json::Value) -> Namespace {
        serde_json::from_value(json!({ "metadata": { "name": "shop", "labels": labels } })).unwrap()
    }

    fn pod(metadata: serde_json::Value, spec: serde_json::Value, status: serde_json::Value) -> Pod {
        serde_json::from_value(json!({ "metadata": metadata, "spec": spec, "status": status })).unwrap()
    }

    fn plain(metadata: serde_json::Value) -> Pod {
        pod(metadata, json!({ "containers": [] }), json!({ "phase": "Running" }))
    }

    #[test]
    fn pod_when_its_namespace_is_labelled_then_asks_unless_it_opts_out() {
        for labels in [
            json!({ "istio-injection": "enabled" }),
            json!({ "mesh.leno.dev/inject": "enabled" }),
            json!({ "istio.io/rev": "default" }),
            json!({ "mesh.leno.dev/rev": "default" }),
            json!({ "istio.io/rev": "canary" }),
            json!({ "mesh.leno.dev/rev": "stable" }),
            json!({ "istio.io/rev": "default-0-2-0" }),
        ] {
            let namespace = namespace(labels);
            let of = |metadata| membership("default", &namespace, &plain(metadata), &images(Engine::Leno));
            assert_eq!(of(json!({ "name": "a" })), Membership::NotInjected);
            assert_eq!(of(json!({ "labels": { "sidecar.istio.io/inject": "false" } })), Membership::Outside);
            assert_eq!(of(json!({ "annotations": { "sidecar.istio.io/inject": "false" } })), Membership::Outside);
            assert_eq!(of(json!({ "annotations": { "mesh.leno.dev/inject": "disabled" } })), Membership::Outside);
        }
        let other = namespace(json!({ "istio.io/rev": "other" }));
        assert_eq!(membership("default", &other, &plain(json!({})), &images(Engine::Leno)), Membership::Outside);
    }

    #[test]
    fn pod_when_it_is_on_the_host_network_or_finished_then_is_outside() {
        let namespace = namespace(json!({ "istio-injection": "enabled" }));
        let host = pod(json!({}), json!({ "containers": [], "hostNetwork": true }), json!({ "phase": "Running" }));
        let done = pod(json!({}), json!({ "containers": [] }), json!({ "phase": "Succeeded" }));
        assert_eq!(membership("default", &namespace, &host, &images(Engine::Leno)), Membership::Outside);
        assert_eq!(membership("default", &namespace, &done, &images(Engine::Leno)), Membership::Outside);
    }

    #[test]
    fn pod_when_injected_then_is_current_with_the_wanted_image_and_readiness() {
        let injected = |image: &str, ready: bool| {
            let slots = json!([{ "name": "leno-proxy-0", "image": image }, { "name": "leno-proxy-1", "image": image }]);
            let statuses =
                json!([{ "name": "leno-proxy-0", "ready": ready, "image": image, "imageID": "", "restartCount": 0 }]);
            pod(
                json!({ "labels": { "mesh.leno.dev/rev": "default" }, "annotations": { "mesh.leno.dev/status": "injected" } }),
                json!({ "containers": [], "initContainers": slots }),
                json!({ "phase": "Running", "initContainerStatuses": statuses }),
            )
        };
        let namespace = namespace(json!({}));
        let of = |image, ready| membership("default", &namespace, &injected(image, ready), &images(Engine::Leno));
        assert_eq!(of(IMAGE, true), Membership::Injected { current: true, wanted_image: true, envoy: false });
        assert_eq!(of(IMAGE, false), Membership::Injected { current: false, wanted_image: true, envoy: false });
        assert_eq!(
            of("docker.io/leno/proxy:0.0.9", true),
            Membership::Injected { current: false, wanted_image: false, envoy: false }
        );
    }

    #[test]
    fn pod_when_engines_differ_then_is_current_with_the_image_of_the_one_it_wants() {
        let namespace = namespace(json!({}));
        let of = |engine: Engine, said: Option<&str>, image: &str| {
            let mut annotations = json!({ "mesh.leno.dev/status": "injected" });
            if let Some(said) = said {
                annotations["mesh.leno.dev/engine"] = said.into();
            }
            if image == ENVOY {
                annotations["mesh.leno.dev/injected-engine"] = "envoy".into();
            }
            let pod = pod(
                json!({ "labels": { "mesh.leno.dev/rev": "default" }, "annotations": annotations }),
                json!({ "containers": [], "initContainers": [{ "name": "leno-proxy-0", "image": image }] }),
                json!({ "phase": "Running" }),
            );
            match membership("default", &namespace, &pod, &images(engine)) {
                Membership::Injected { wanted_image, envoy, .. } => (wanted_image, envoy),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(of(Engine::Leno, Some("envoy"), ENVOY), (true, true));
        assert_eq!(of(Engine::Envoy, None, ENVOY), (true, true));
        assert_eq!(of(Engine::Envoy, None, IMAGE), (false, false), "the mesh has changed its engine: restart");
        assert_eq!(of(Engine::Envoy, Some("leno"), IMAGE), (true, false));
    }
}
