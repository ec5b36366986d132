//! From Kubernetes' objects and proxies' reports to what the planner looks at.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerStatus, Namespace, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::DynamicObject;
use leno_api::proxies::v1::ProxyReport;
use leno_core::service::Engine;
use leno_crds::meshinstall::{MeshInstall, MeshInstallSpec};
use leno_kubeutil::watch::Key;
use serde_json::Value;

use super::pods::{Owner, PodView, Serving, Slot};
use super::{ControlPlaneView, PreflightView, SERVE_SLOT, UPGRADE};
use crate::names;
use crate::plan::injection::{SLOTS, has_sidecar, injected_engine};
use crate::plan::settings;

/// What the kubelet says of a container that will not come up by itself, or has failed more than once.
const HOPELESS: [&str; 7] = [
    "CrashLoopBackOff",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];

/// The injected pods of one MeshInstall that run.
pub fn pods(
    install: &str,
    spec: &MeshInstallSpec,
    namespaces: &BTreeMap<Key, Arc<Namespace>>,
    pods: &BTreeMap<Key, Arc<Pod>>,
    reports: &BTreeMap<Key, Vec<ProxyReport>>,
) -> Vec<PodView> {
    let ours = pods.iter().filter(|(_, pod)| has_sidecar(install, pod) && runs(pod));
    ours.map(|(key, pod)| view(key, pod, spec, namespaces, own(pod, reports.get(key)))).collect()
}

/// The reports that are of this pod: one of the same name before it may have left some for a moment.
pub fn own<'a>(pod: &Pod, reports: Option<&'a Vec<ProxyReport>>) -> impl Iterator<Item = &'a ProxyReport> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    reports.into_iter().flatten().filter(move |report| report.pod_uid == uid)
}

fn runs(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}

fn view<'a>(
    key: &Key,
    pod: &Pod,
    spec: &MeshInstallSpec,
    namespaces: &BTreeMap<Key, Arc<Namespace>>,
    reports: impl Iterator<Item = &'a ProxyReport>,
) -> PodView {
    let empty = BTreeMap::new();
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&empty);
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let namespace = namespaces.get(&Key::new("", key.namespace.clone()));
    let slots = SLOTS.map(|name| slot(pod, name));
    let held = if opted_out(pod, namespace.map(Arc::as_ref)) {
        Some("it is marked mesh.leno.dev/upgrade: disabled")
    } else if slots.iter().any(|slot| slot.image.is_empty()) {
        Some("its sidecar has no slots; restart its workload")
    } else {
        None
    };
    PodView {
        key: key.clone(),
        owner: owner(pod),
        labels,
        slots,
        asked: annotations.get(SERVE_SLOT).and_then(|slot| slot.parse().ok()).filter(|slot| *slot < 2),
        serving: serving(reports),
        component: injected_engine(annotations).component(),
        differing: settings::differing(spec, pod),
        held,
    }
}

/// Whether a pod or its namespace asks to be left as it is.
pub fn opted_out(pod: &Pod, namespace: Option<&Namespace>) -> bool {
    let metadata = [Some(&pod.metadata), namespace.map(|namespace| &namespace.metadata)];
    let maps = metadata.into_iter().flatten().flat_map(|metadata| [&metadata.annotations, &metadata.labels]);
    maps.flatten().any(|map| map.get(UPGRADE).is_some_and(|value| value == "disabled"))
}

/// The process that serves a pod: the one that began last, if both say so in the moment of a hand-over.
pub fn serving<'a>(reports: impl Iterator<Item = &'a ProxyReport>) -> Option<Serving> {
    let serves = |report: &&ProxyReport| report.serving_since_ms > 0 && report.ready && !report.draining;
    let report = reports.filter(serves).max_by_key(|report| report.serving_since_ms)?;
    Some(Serving {
        slot: u8::try_from(report.slot).ok()?,
        version: report.version.clone(),
        hand_over_failure: report.hand_over_failure.clone(),
    })
}

/// Who made a pod, its Deployment rather than the ReplicaSet.
pub fn owner(pod: &Pod) -> Owner {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let owners = pod.metadata.owner_references.iter().flatten();
    let Some(owner) = owners.into_iter().find(|owner| owner.controller == Some(true)) else {
        return Owner { kind: "Pod".to_owned(), name };
    };
    let hash = pod.metadata.labels.as_ref().and_then(|labels| labels.get("pod-template-hash"));
    let deployment = hash.and_then(|hash| owner.name.strip_suffix(hash)?.strip_suffix('-'));
    match (owner.kind.as_str(), deployment) {
        ("ReplicaSet", Some(deployment)) => Owner { kind: "Deployment".to_owned(), name: deployment.to_owned() },
        (kind, _) => Owner { kind: kind.to_owned(), name: owner.name.clone() },
    }
}

fn slot(pod: &Pod, name: &str) -> Slot {
    let mut containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let image = containers.find(|container| container.name == name).and_then(|container| container.image.clone());
    let Some(image) = image else { return Slot::default() };
    let mut statuses = pod.status.iter().flat_map(|status| status.init_container_statuses.iter().flatten());
    let Some(status) = statuses.find(|status| status.name == name) else {
        return Slot { image, up: false, trouble: None };
    };
    let runs = status.state.as_ref().is_some_and(|state| state.running.is_some());
    let up = runs && status.started == Some(true) && is_same_image(&status.image, &image) && is_seen(pod);
    Slot { up, trouble: trouble(status), image }
}

/// Whether the kubelet has got to what the spec says now; before Kubernetes 1.34 it does not tell, and is believed.
fn is_seen(pod: &Pod) -> bool {
    let observed = pod.status.as_ref().and_then(|status| status.observed_generation);
    observed.is_none_or(|observed| observed >= pod.metadata.generation.unwrap_or(0))
}

/// The runtime may write an image's registry where the spec does not, or nothing but a digest, once a tag names another image. That
/// says nothing; which release serves is then told by the process itself.
fn is_same_image(running: &str, wanted: &str) -> bool {
    running == wanted
        || running.starts_with("sha256:")
        || running.contains("@sha256:")
        || running.strip_suffix(wanted).is_some_and(|registry| registry.ends_with('/'))
}

fn trouble(status: &ContainerStatus) -> Option<String> {
    let waiting = status.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref().filter(|reason| HOPELESS.contains(reason))?;
    let ended = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    Some(match (reason, ended) {
        ("CrashLoopBackOff", Some(ended)) => {
            format!("container {} keeps ending with code {} (image {})", status.name, ended.exit_code, status.image)
        }
        ("ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName", _) => {
            format!("container {} cannot get image {} ({reason})", status.name, status.image)
        }
        _ => format!("container {}: {reason}", status.name),
    })
}

/// The control plane of one MeshInstall.
pub fn control_plane(
    install: &MeshInstall,
    name: &str,
    deployment: Option<&DynamicObject>,
    pods: &BTreeMap<Key, Arc<Pod>>,
) -> ControlPlaneView {
    let Some(deployment) = deployment else { return ControlPlaneView::default() };
    let version = release_of(deployment).map(str::to_owned);
    let trouble = made_by(deployment, pods, &names::control_plane_selector(name)).find_map(|(key, pod)| {
        let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
        Some(format!("replica {}: {}", key.name, statuses.iter().find_map(trouble)?))
    });
    let is_current = version
        .as_ref()
        .is_some_and(|version| image_of(deployment) == Some(&install.spec.image_of("control-plane", version)));
    ControlPlaneView { version, is_current, rolled_out: is_rolled_out(deployment), trouble }
}

/// The pods of a Deployment's present release that are to stay.
fn made_by<'a>(
    deployment: &'a DynamicObject,
    pods: &'a BTreeMap<Key, Arc<Pod>>,
    selector: &'a BTreeMap<String, String>,
) -> impl Iterator<Item = (&'a Key, &'a Arc<Pod>)> {
    pods.iter().filter(move |(key, pod)| {
        let labels = pod.metadata.labels.as_ref();
        let label = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
        Some(&key.namespace) == deployment.metadata.namespace.as_ref()
            && selector.iter().all(|(key, value)| label(key) == Some(value))
            && label(names::VERSION) == release_of(deployment)
            && pod.metadata.deletion_timestamp.is_none()
    })
}

/// Seconds in which a sidecar that runs must come to serve; longer than a slot has that takes over.
const PATIENCE: i64 = 30;

/// What became of the sidecars that are tried in pods of their own.
pub fn preflights<'a>(
    name: &str,
    now: Timestamp,
    deployment: impl Fn(&str) -> Option<&'a DynamicObject>,
    pods: &BTreeMap<Key, Arc<Pod>>,
    reports: &BTreeMap<Key, Vec<ProxyReport>>,
) -> BTreeMap<&'static str, PreflightView> {
    let components = [Engine::Leno, Engine::Envoy].map(Engine::component);
    let found = components.into_iter().filter_map(|component| Some((component, deployment(component)?)));
    found
        .map(|(component, deployment)| {
            let selector = names::preflight_selector(name, component);
            let made: Vec<_> = made_by(deployment, pods, &selector).collect();
            (component, preflight(deployment, &made, now, reports))
        })
        .collect()
}

fn preflight(
    deployment: &DynamicObject,
    made: &[(&Key, &Arc<Pod>)],
    now: Timestamp,
    reports: &BTreeMap<Key, Vec<ProxyReport>>,
) -> PreflightView {
    let own = |key: &Key| reports.get(key).map_or(&[][..], Vec::as_slice);
    let trouble = made.iter().find_map(|(key, pod)| {
        // What the release before it refuses as well is not its fault.
        let refused = own(key)
            .iter()
            .find(|report| report.rejected > 0)
            .filter(|new| !reports.values().flatten().any(|old| old.rejected > 0 && old.version != new.version));
        let mut statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        let what = refused
            .map(|report| format!("it refused configuration: {}", report.last_rejection))
            .or_else(|| statuses.find_map(|status| trouble(status).or_else(|| idle(status, now))))?;
        Some(format!("preflight pod {key}: {what}"))
    });
    let serves = is_rolled_out(deployment) && made.iter().any(|(key, _)| own(key).iter().any(|report| report.ready));
    let tells_nothing = is_refused(deployment) || made.iter().any(|(_, pod)| has_no_room(pod));
    PreflightView {
        image: image_of(deployment).unwrap_or_default().to_owned(),
        passed: trouble.is_none() && (serves || tells_nothing),
        trouble,
    }
}

/// What runs and does not come to serve.
fn idle(status: &ContainerStatus, now: Timestamp) -> Option<String> {
    let since = status.state.as_ref()?.running.as_ref()?.started_at.as_ref()?;
    let late = !status.ready && now.as_second() - since.0.as_second() > PATIENCE;
    late.then(|| format!("it runs, and does not come to serve within {PATIENCE} s (image {})", status.image))
}

/// Whether no pod may be made of it, by a quota for example: then it tells nothing of the release.
fn is_refused(deployment: &DynamicObject) -> bool {
    let conditions = deployment.data.pointer("/status/conditions").and_then(Value::as_array);
    let says = |condition: &Value| condition["type"] == "ReplicaFailure" && condition["status"] == "True";
    conditions.is_some_and(|conditions| conditions.iter().any(says))
}

fn has_no_room(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.reason.as_deref() == Some("Unschedulable"))
}

fn image_of(deployment: &DynamicObject) -> Option<&str> {
    deployment.data.pointer("/spec/template/spec/containers/0/image").and_then(Value::as_str)
}

/// The release that a control plane's Deployment names.
pub fn release_of(deployment: &DynamicObject) -> Option<&str> {
    image_of(deployment).and_then(|image| image.rsplit_once(':')).map(|(_, version)| version)
}

/// Whether all replicas of a Deployment, one at least, are of its present template and available.
pub fn is_rolled_out(deployment: &DynamicObject) -> bool {
    let number = |pointer: &str| deployment.data.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let replicas = number("/spec/replicas");
    number("/status/observedGeneration") >= deployment.metadata.generation.unwrap_or(i64::MAX)
        && replicas > 0
        && ["/status/updatedReplicas", "/status/availableReplicas", "/status/replicas"]
            .iter()
            .all(|pointer| number(pointer) == replicas)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_when_they_are_of_one_of_the_same_name_before_then_are_not_its_own() {
        let pod = |uid: &str| {
            let mut pod = Pod::default();
            pod.metadata.uid = Some(uid.to_owned());
            pod
        };
        let report = |uid: &str, slot| ProxyReport { pod_uid: uid.to_owned(), slot, ..ProxyReport::default() };
        let reports = vec![report("before", 0), report("now", 0), report("now", 1)];
        let own = |uid: &str, reports| own(&pod(uid), reports).cloned().collect::<Vec<_>>();
        assert_eq!(own("now", Some(&reports)), [report("now", 0), report("now", 1)]);
        assert!(own("later", Some(&reports)).is_empty() && own("now", None).is_empty());
    }
}
