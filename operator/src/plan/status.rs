//! What a MeshInstall's status should say, from what is observed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::api::DynamicObject;
use leno_crds::meshinstall::{ControlPlaneStatus, DataPlaneStatus, MeshInstall, UpdateType};
use leno_kubeutil::conditions::Wanted;
use leno_kubeutil::watch::Key;
use serde_json::Value;

use super::Observed;
use super::claims::Claim;
use super::injection::{Images, Membership, membership};
use super::settings;
use super::upgrade::{self, Outcome};
use crate::names;

/// Condition: the spec can be.
pub const ACCEPTED: &str = "Accepted";
/// Condition: every replica runs the wanted release and serves.
pub const CONTROL_PLANE_READY: &str = "ControlPlaneReady";
/// Condition: every pod that asks for a sidecar has a current one.
pub const DATA_PLANE_READY: &str = "DataPlaneReady";
/// Condition: the mesh serves as wanted.
pub const READY: &str = "Ready";

/// Names of pods in a message.
const NAMED_PODS: usize = 5;

/// The control plane as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPlaneReport {
    /// Its condition.
    pub condition: Wanted,
    /// Its figures.
    pub status: ControlPlaneStatus,
    /// The release that all replicas run; `None` while they differ or there is none.
    pub version: Option<String>,
}

/// The injected pods as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataPlaneReport {
    /// Its condition.
    pub condition: Wanted,
    /// Its figures.
    pub status: DataPlaneStatus,
    /// Pods that ask and have no sidecar.
    pub not_injected: BTreeSet<Key>,
}

/// Looks at the control plane. `settled` is whether the Deployment is already as wanted; `problem` is what stands in the way
/// of making it so. A spec that is not `accepted` leaves the control plane as it was.
pub fn control_plane(
    install: &MeshInstall,
    name: &str,
    deployment: Option<&DynamicObject>,
    pods: &BTreeMap<Key, Arc<Pod>>,
    accepted: bool,
    settled: bool,
    problem: Option<&str>,
) -> ControlPlaneReport {
    let wanted_version = install.spec.version.as_str();
    let selector = names::control_plane_selector(name);
    let ours: Vec<&Arc<Pod>> = pods
        .iter()
        .filter(|(key, _)| key.namespace == install.spec.system_namespace())
        .map(|(_, pod)| pod)
        .filter(|pod| {
            let labels = pod.metadata.labels.as_ref();
            selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
                && pod.metadata.deletion_timestamp.is_none()
                && pod.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Failed")
        })
        .collect();
    let number = |pointer: &str| {
        deployment.and_then(|deployment| deployment.data.pointer(pointer)).and_then(Value::as_i64).unwrap_or(0) as i32
    };
    let wanted = match deployment {
        Some(_) if install.spec.autoscaling().is_some() => number("/spec/replicas"),
        _ if install.spec.autoscaling().is_some() => {
            install.spec.autoscaling().map_or(0, |scaling| scaling.min_replicas())
        }
        _ => install.spec.replicas(),
    };
    let ready = ours.iter().filter(|pod| version_of(pod) == Some(wanted_version) && is_ready(pod)).count() as i32;
    let versions: BTreeSet<Option<&str>> = ours.iter().filter(|pod| is_ready(pod)).map(|pod| version_of(pod)).collect();
    let version = match versions.iter().next() {
        Some(Some(only)) if versions.len() == 1 => Some((*only).to_owned()),
        _ => None,
    };
    let observed = deployment.is_some_and(|deployment| {
        number("/status/observedGeneration") as i64 >= deployment.metadata.generation.unwrap_or(i64::MAX)
    });
    let rolled_out = observed
        && number("/status/updatedReplicas") == wanted
        && number("/status/availableReplicas") == wanted
        && number("/status/replicas") == wanted;
    let status = ControlPlaneStatus {
        ready,
        replicas: wanted,
        summary: format!("{ready}/{wanted}"),
        ..ControlPlaneStatus::default()
    };
    let kind = CONTROL_PLANE_READY;
    let serving = ours.iter().filter(|pod| is_ready(pod)).count();
    let condition = if !accepted {
        Wanted::no(
            kind,
            "NotAccepted",
            match serving {
                0 => "the spec is not accepted, see Accepted".to_owned(),
                _ => format!("the spec is not accepted, see Accepted; {serving} replicas go on serving as before"),
            },
        )
    } else if let Some(problem) = problem {
        Wanted::no(kind, "ApplyFailed", problem)
    } else if deployment.is_none() {
        Wanted::no(kind, "Installing", "the control plane is being installed")
    } else if settled && rolled_out && ready == wanted && wanted > 0 {
        Wanted::yes(
            kind,
            "AllReplicasReady",
            format!("{ready} of {wanted} replicas run release {wanted_version} and serve"),
        )
    } else if let Some((reason, message)) = trouble(&ours) {
        Wanted::no(kind, reason, format!("{message}; {serving} replicas go on serving"))
    } else {
        let waiting = if ready < wanted { "waiting for the others" } else { "waiting for the rollout to end" };
        Wanted::no(
            kind,
            "RollingOut",
            format!("{ready} of {wanted} replicas run release {wanted_version} and serve; {waiting}"),
        )
    };
    ControlPlaneReport { condition, status, version }
}

/// Why a replica does not come up, when it is not just a matter of time.
fn trouble(pods: &[&Arc<Pod>]) -> Option<(&'static str, String)> {
    for pod in pods {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let status = pod.status.as_ref()?;
        for container in status.container_statuses.iter().flatten() {
            let Some(waiting) = container.state.as_ref().and_then(|state| state.waiting.as_ref()) else { continue };
            let why = waiting.message.as_deref().unwrap_or("no further message");
            match waiting.reason.as_deref().unwrap_or_default() {
                // The kubelet alternates between failing and waiting, each with a message of its own: naming them here would
                // rewrite the status at every turn.
                "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName"
                | "ImageInspectError" => {
                    return Some((
                        "ImagePullFailed",
                        format!(
                            "pod {name} cannot get image {} (pull policy {}); check spec.version and spec.image, and that the image exists (kubectl describe pod {name} says why)",
                            container.image,
                            pull_policy(pod),
                        ),
                    ));
                }
                "CrashLoopBackOff" => {
                    return Some(("CrashLoop", format!("pod {name} keeps ending: {}; see its log", first_line(why))));
                }
                "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                    return Some((
                        "ContainerFailed",
                        format!("pod {name} cannot start its container: {}", first_line(why)),
                    ));
                }
                _ => {}
            }
        }
        let unschedulable = status.conditions.iter().flatten().find(|condition| {
            condition.type_ == "PodScheduled" && condition.reason.as_deref() == Some("Unschedulable")
        });
        if let Some(condition) = unschedulable {
            let why = condition.message.as_deref().unwrap_or("no node takes it");
            return Some(("Unschedulable", format!("pod {name} finds no node: {}", first_line(why))));
        }
    }
    None
}

/// Messages may run over many lines; the first says it.
fn first_line(text: &str) -> &str {
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(300) {
        Some((end, _)) => &line[..end],
        None => line,
    }
}

fn pull_policy(pod: &Pod) -> &str {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers.into_iter().find_map(|container| container.image_pull_policy.as_deref()).unwrap_or("unknown")
}

fn version_of(pod: &Pod) -> Option<&str> {
    pod.metadata.labels.as_ref()?.get(names::VERSION).map(String::as_str)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Looks at the pods of the mesh's namespaces. `install` names the release that its sidecars should run now.
pub fn data_plane(
    install: &MeshInstall,
    name: &str,
    claim: &Claim,
    observed: &Observed,
    outcome: Option<&Outcome>,
) -> DataPlaneReport {
    let images = Images::of(&install.spec);
    let (mut ready, mut total, mut outdated, mut held, mut on_envoy) = (0, 0, 0, 0, 0);
    let (mut not_injected, mut to_restart, mut fields) = (BTreeSet::new(), 0, BTreeSet::new());
    for (key, pod) in &observed.pods {
        let Some(namespace) = observed.namespaces.get(&Key::new("", key.namespace.clone())) else { continue };
        match membership(name, namespace, pod, &images) {
            // A sidecar counts wherever it is: the namespace may have left the mesh while the pod runs.
            Membership::Injected { current, wanted_image, envoy } => {
                // While a pod is moved, its slots differ: what it says itself counts.
                let serves = upgrade::serving(upgrade::own(pod, observed.reports.get(key)));
                let (current, wanted_image) = match serves {
                    Some(serving) if serving.version == install.spec.version && !wanted_image => (true, true),
                    Some(serving) if serving.version != install.spec.version => (false, false),
                    _ => (current, wanted_image),
                };
                on_envoy += i32::from(envoy);
                let differing = settings::differing(&install.spec, pod);
                to_restart += i32::from(!differing.is_empty());
                fields.extend(differing);
                total += 1;
                ready += i32::from(current);
                if !wanted_image && upgrade::opted_out(pod, Some(namespace.as_ref())) {
                    held += 1;
                } else {
                    outdated += i32::from(!wanted_image);
                }
            }
            Membership::NotInjected if claim.namespaces.contains(&key.namespace) => {
                not_injected.insert(key.clone());
            }
            Membership::NotInjected | Membership::Outside => {}
        }
    }
    let fields: Vec<&str> = fields.into_iter().collect();
    let restarts = match (to_restart, install.spec.update_strategy().kind()) {
        (0, _) => String::new(),
        (_, UpdateType::Restart) => format!("; {to_restart} pods were made with another {}", fields.join(", ")),
        _ => format!(
            "; {to_restart} pods were made with another {}, which only new pods have: restart their workloads",
            fields.join(", "),
        ),
    };
    let current = ready;
    let missing = not_injected.len() as i32;
    let kind = DATA_PLANE_READY;
    let condition = if missing > 0 {
        let named: Vec<String> = not_injected.iter().take(NAMED_PODS).map(Key::to_string).collect();
        let more = if not_injected.len() > NAMED_PODS { " and others" } else { "" };
        Wanted::no(
            kind,
            "NotInjected",
            format!(
                "pods that ask for a sidecar and have none: {missing} ({}{more}); they were created while the mesh was not there: restart their workloads",
                named.join(", "),
            ),
        )
    } else if total == 0 {
        Wanted::yes(
            kind,
            "NoPods",
            "no pod has a sidecar yet; label a namespace istio-injection=enabled and restart its workloads",
        )
    } else if outdated > 0 {
        let reason = if outcome.is_some_and(|outcome| outcome.upgrade.is_some()) { "Upgrading" } else { "Outdated" };
        Wanted::no(
            kind,
            reason,
            match reason {
                "Upgrading" => format!("{} of {total} sidecars run release {}", total - outdated, install.spec.version),
                _ if fields.contains(&"spec.dataPlane.engine") => {
                    format!("{outdated} of {total} sidecars run another release or engine than is wanted{restarts}")
                }
                _ => format!(
                    "{outdated} of {total} sidecars run another release than {}; restart their workloads{restarts}",
                    install.spec.version,
                ),
            },
        )
    } else if current + held < total {
        Wanted::no(kind, "ProxiesNotReady", format!("{current} of {total} sidecars are ready"))
    } else {
        Wanted::yes(kind, "AllCurrent", {
            let mut message =
                format!("{current} of {total} sidecars run release {} and are ready", install.spec.version);
            if held > 0 {
                message += &format!("; {held} are left on another, as they ask ({}: disabled)", upgrade::UPGRADE);
            }
            if on_envoy > 0 {
                message += &format!("; the engine of {on_envoy} is Envoy");
            }
            message + &restarts
        })
    };
    let summary = format!("{current}/{total}");
    let status = DataPlaneStatus {
        current,
        total,
        held,
        to_restart,
        not_injected: missing,
        summary,
        injected_version: outcome.map(|outcome| outcome.injected_version.clone()),
        versions: outcome.map(|outcome| outcome.versions.clone()).unwrap_or_default(),
    };
    DataPlaneReport { condition, status, not_injected }
}

/// `Ready`, from the conditions that it stands on: not while releases change, nor by halves.
pub fn ready(accepted: &Wanted, control_plane: &Wanted, upgrading: Option<&Wanted>) -> Wanted {
    use leno_kubeutil::conditions::Status;
    for part in [accepted, control_plane] {
        if part.status != Status::True {
            return Wanted {
                kind: READY,
                status: Status::False,
                reason: part.reason.clone(),
                message: part.message.clone(),
            };
        }
    }
    match upgrading {
        Some(upgrading) if upgrading.status == Status::True => {
            Wanted::no(READY, "Upgrading", upgrading.message.clone())
        }
        Some(upgrading) if upgrading.reason == "RolledBack" => {
            Wanted::yes(READY, "RolledBack", format!("{}; {}", control_plane.message, upgrading.message))
        }
        _ => Wanted::yes(READY, "Ready", control_plane.message.clone()),
    }
}

/// One word for people.
pub fn phase(
    accepted: &Wanted,
    control_plane: &Wanted,
    upgrading: Option<&Wanted>,
    deleting: bool,
    was_ready: bool,
) -> &'static str {
    use leno_kubeutil::conditions::Status;
    if deleting {
        return "Deleting";
    }
    if let Some(upgrading) = upgrading.filter(|upgrading| upgrading.status == Status::True) {
        return match upgrading.reason.as_str() {
            "RollingBack" => "RollingBack",
            "Paused" => "Paused",
            _ => "Upgrading",
        };
    }
    if accepted.status != Status::True {
        "Invalid"
    } else if control_plane.status == Status::True {
        "Ready"
    } else {
        match (control_plane.reason.as_str(), was_ready) {
            ("Installing", _) | ("RollingOut", false) => "Installing",
            ("RollingOut", true) => "Upgrading",
            _ => "Degraded",
        }
    }
}
