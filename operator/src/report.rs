//! Writes a MeshInstall's status: only when something changed, and figures alone at most once a second.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use leno_crds::meshinstall::{CertificatesStatus, ControlPlaneUpdateType, MeshInstall, MeshInstallStatus};
use leno_kubeutil::conditions::{self, Change, Status, Wanted};
use leno_kubeutil::events::{News, Recorder};
use leno_kubeutil::watch::Key;
use serde_json::json;
use tokio::time::Instant;

use crate::names;
use crate::plan::authority::CERTIFICATES;
use crate::plan::status::{
    ACCEPTED, CONTROL_PLANE_READY, ControlPlaneReport, DATA_PLANE_READY, DataPlaneReport, READY, control_plane,
    data_plane, phase, ready,
};
use crate::plan::upgrade::{Outcome, UPGRADING};
use crate::plan::{ObjectId, Observed, Plan};

/// How long figures alone wait after a write.
pub const FIGURES_EVERY: Duration = Duration::from_secs(1);

/// What is to be said about one MeshInstall.
pub struct Report {
    /// Whether the spec can be.
    pub accepted: Wanted,
    /// The control plane.
    pub control_plane: ControlPlaneReport,
    /// The data plane.
    pub data_plane: DataPlaneReport,
    /// The authority, if it could be looked at.
    pub certificates: Option<(Wanted, CertificatesStatus)>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Where it is between two releases.
    pub upgrade: Option<Outcome>,
}

fn is_canary(install: &MeshInstall) -> bool {
    install.spec.control_plane_update_strategy().kind() == ControlPlaneUpdateType::Canary
}

/// What is to be said, from what is observed and planned. `settled` is whether the control plane's Deployment is already as
/// planned; `problem` is why a step failed.
pub fn describe(
    observed: &Observed,
    name: &str,
    install: &MeshInstall,
    plan: &Plan,
    settled: bool,
    problem: Option<&str>,
) -> Report {
    let system = install.spec.system_namespace();
    let revisions = plan.revisions.as_ref();
    let stable = revisions.map_or(name, |revisions| &revisions.stable().name);
    let id = ObjectId { kind: "Deployment", key: Key::new(system, names::control_plane(stable)) };
    // Another install's Deployment of the same name cannot be: the name holds the install's.
    let deployment = observed.owned.get(&id).map(|object| object.as_ref());
    let accepted = plan.accepted.status == Status::True;
    let of_release = |version: &str| {
        let mut install = install.clone();
        version.clone_into(&mut install.spec.version);
        install
    };
    let upgrade = plan.upgrade.as_ref();
    let wanted = install.spec.version.as_str();
    let effective = of_release(upgrade.map_or(wanted, |outcome| &outcome.control_plane_version));
    let mut control_plane = control_plane(&effective, stable, deployment, &observed.pods, accepted, settled, problem);
    control_plane.status.revisions = match revisions {
        Some(revisions) if is_canary(install) || revisions.list.len() > 1 => revisions.status(),
        Some(_) => Vec::new(),
        // Nothing is decided about them: they stay as they are.
        None => {
            let status = install.status.as_ref().and_then(|status| status.control_plane.as_ref());
            status.map(|status| status.revisions.clone()).unwrap_or_default()
        }
    };
    if plan.deleting {
        let message = problem.unwrap_or("the control plane is being removed");
        control_plane.condition = Wanted::no(CONTROL_PLANE_READY, "Deleting", message);
    }
    let certificates = plan.authority.as_ref().map(|authority| (authority.condition.clone(), authority.status.clone()));
    // Sidecars that are moved are current when they are where they are moved to.
    let goal = upgrade.map_or(wanted, |outcome| match &outcome.upgrade {
        Some(under_way) if under_way.failure.is_empty() => &under_way.to,
        Some(under_way) => &under_way.from,
        None => &outcome.injected_version,
    });
    let data_plane = data_plane(&of_release(goal), name, &plan.claim, observed, upgrade);
    Report {
        accepted: plan.accepted.clone(),
        control_plane,
        data_plane,
        certificates,
        deleting: plan.deleting,
        upgrade: plan.upgrade.clone(),
    }
}

/// The new status and what changed in it. Pure; `before` is the status as last known.
pub fn status(
    report: &Report,
    generation: i64,
    before: &MeshInstallStatus,
    now: Timestamp,
) -> (MeshInstallStatus, Vec<Wanted>) {
    let known = [ACCEPTED, CONTROL_PLANE_READY, DATA_PLANE_READY, CERTIFICATES, UPGRADING, READY];
    let mut list = before.conditions.clone();
    list.retain(|condition| known.contains(&condition.type_.as_str()));
    let was_ready = list.iter().any(|condition| condition.type_ == READY && condition.status == "True")
        || matches!(before.phase.as_deref(), Some("Ready" | "Upgrading" | "RollingBack" | "Paused" | "Degraded"));
    let outcome = report.upgrade.as_ref();
    let upgrading = outcome.map(|outcome| &outcome.condition);
    let overall = if report.deleting {
        Wanted::no(READY, "Deleting", "the mesh is being removed")
    } else {
        ready(&report.accepted, &report.control_plane.condition, upgrading)
    };
    let certificates = report.certificates.as_ref().map(|(condition, _)| condition);
    let wanted = [
        Some(&report.accepted),
        Some(&report.control_plane.condition),
        Some(&report.data_plane.condition),
        certificates,
        upgrading,
        Some(&overall),
    ];
    let mut transitions = Vec::new();
    for condition in wanted.into_iter().flatten() {
        if conditions::set(&mut list, condition, generation, now) == Change::Transition {
            transitions.push(condition.clone());
        }
    }
    list.sort_by_key(|condition| known.iter().position(|kind| *kind == condition.type_));
    let status = MeshInstallStatus {
        observed_generation: Some(generation),
        phase: Some(
            phase(&report.accepted, &report.control_plane.condition, upgrading, report.deleting, was_ready).to_owned(),
        ),
        version: report.control_plane.version.clone(),
        control_plane: Some(report.control_plane.status.clone()),
        data_plane: Some(report.data_plane.status.clone()),
        // A look that did not get as far changes nothing of what is known.
        certificates: report
            .certificates
            .as_ref()
            .map_or_else(|| before.certificates.clone(), |(_, status)| Some(status.clone())),
        upgrade: outcome.map_or_else(|| before.upgrade.clone(), |outcome| outcome.upgrade.clone()),
        last_upgrade: outcome.map_or_else(|| before.last_upgrade.clone(), |outcome| outcome.last_upgrade.clone()),
        conditions: list,
    };
    (status, transitions)
}

/// What of an upgrade must be written before it is done.
fn begun(status: &MeshInstallStatus) -> Option<(&str, Option<(i32, bool)>)> {
    let upgrade = status.upgrade.as_ref()?;
    Some((&upgrade.step, upgrade.wave.as_ref().map(|wave| (wave.number, wave.gate_since.is_some()))))
}

/// What was last written for one MeshInstall.
struct Written {
    status: MeshInstallStatus,
    resource_version: u64,
    at: Instant,
}

/// Writes statuses and publishes what changed.
pub struct Reporter {
    api: Api<MeshInstall>,
    recorder: Recorder,
    written: BTreeMap<String, Written>,
    told: BTreeMap<String, BTreeSet<Key>>,
}

impl Reporter {
    /// With one client.
    pub fn new(client: Client, recorder: Recorder) -> Self {
        Reporter { api: Api::all(client), recorder, written: BTreeMap::new(), told: BTreeMap::new() }
    }

    /// Writes the status if something changed. Returns when to come back for figures that had to wait.
    ///
    /// # Errors
    ///
    /// What the API server said.
    pub async fn report(
        &mut self,
        name: &str,
        install: &MeshInstall,
        report: &Report,
    ) -> Result<(bool, Option<Duration>), kube::Error> {
        self.tell_pods(name, report);
        let observed_version: u64 = install.resource_version().and_then(|text| text.parse().ok()).unwrap_or(0);
        let last = self.written.get(name).filter(|last| last.resource_version > observed_version);
        let before = match last {
            Some(last) => last.status.clone(),
            None => install.status.clone().unwrap_or_default(),
        };
        let generation = install.metadata.generation.unwrap_or(0);
        let (status, transitions) = status(report, generation, &before, Timestamp::now());
        if status == before {
            return Ok((false, None));
        }
        if let Some(written) = self.written.get(name)
            && transitions.is_empty()
            && before.observed_generation == Some(generation)
            && begun(&before) == begun(&status)
            && before.data_plane.as_ref().map(|before| before.total) == status.data_plane.as_ref().map(|now| now.total)
            && let wait = FIGURES_EVERY.saturating_sub(written.at.elapsed())
            && !wait.is_zero()
        {
            return Ok((false, Some(wait)));
        }
        let body = json!({
            "apiVersion": "mesh.leno.dev/v1alpha1",
            "kind": "MeshInstall",
            "metadata": { "name": name, "uid": install.uid() },
            "status": status,
        });
        let params = PatchParams::apply(names::FIELD_MANAGER).force();
        let answer = self.api.patch_status(name, &params, &Patch::Apply(&body)).await?;
        let resource_version = answer.resource_version().and_then(|text| text.parse().ok()).unwrap_or(0);
        self.written.insert(name.to_owned(), Written { status, resource_version, at: Instant::now() });
        for transition in transitions {
            self.publish(install.object_ref(&()), &transition);
        }
        Ok((true, None))
    }

    /// Forgets MeshInstalls that are gone.
    pub fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.written.retain(|name, _| exists(name));
        self.told.retain(|name, _| exists(name));
    }

    fn publish(&self, regarding: ObjectReference, transition: &Wanted) {
        let progress = matches!(
            transition.reason.as_str(),
            "Installing" | "RollingOut" | "ProxiesNotReady" | "Deleting" | "Upgrading" | "UpToDate"
        );
        self.recorder.publish(News {
            regarding,
            warning: transition.status == Status::False && !progress || transition.reason == "RollingBack",
            reason: transition.reason.clone(),
            action: transition.kind.to_owned(),
            note: format!("{}: {}", transition.kind, transition.message),
        });
    }

    /// An event for every pod that asked for a sidecar and did not get one, once.
    fn tell_pods(&mut self, name: &str, report: &Report) {
        let told = self.told.entry(name.to_owned()).or_default();
        for pod in report.data_plane.not_injected.difference(told) {
            self.recorder.publish(News {
                regarding: ObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    namespace: Some(pod.namespace.clone()),
                    name: Some(pod.name.clone()),
                    ..ObjectReference::default()
                },
                warning: true,
                reason: "NotInjected".to_owned(),
                action: "Inject".to_owned(),
                note: format!(
                    "the pod asks for a sidecar of MeshInstall {name} and has none: it was created while the mesh was not there; restart its workload"
                ),
            });
        }
        *told = report.data_plane.not_injected.clone();
    }
}
