//! From one release to another, and back when the new one is worse.
//!
//! Pure: what is written in status and what is observed give the next status and the next writes. Forward, the control plane goes
//! first and the sidecars follow in waves; down to an older release, the sidecars go first: a control plane is never older than a
//! sidecar that it programs. Each wave is looked at by the gate before the next begins. No slot loses the old release before the
//! last wave has passed, so that turning back is a hand-over to what still stands by.
//!
//! What begins (a step, a wave, the look at it) is written into status first and done in the next round, so that it does not matter
//! where the operator ends.

pub mod gate;
mod observe;
pub mod pods;
mod policy;
mod walk;
pub mod waves;
pub mod when;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use leno_crds::meshinstall::{
    Measured, MeshInstallSpec, MeshInstallStatus, PastUpgrade, UpdateType, UpgradeStatus, VersionCount,
};
use leno_kubeutil::conditions::Wanted;
use leno_kubeutil::watch::Key;

pub use observe::{control_plane, is_rolled_out, opted_out, own, owner, pods, preflights, release_of, serving};
pub use policy::{ALLOW_SKEW, is_older, skew};

use self::pods::{PodStep, PodView, Progress};

/// Condition: a release is being changed.
pub const UPGRADING: &str = "Upgrading";
/// The annotation of a MeshInstall whose change lets a release that was rolled back be tried again.
pub const RETRY: &str = "mesh.leno.dev/retry";
/// The annotation of a pod that names the slot which should serve.
pub const SERVE_SLOT: &str = "mesh.leno.dev/serve-slot";
/// The annotation or label of a pod whose sidecar is left as it is when its value is `disabled`.
pub const UPGRADE: &str = "mesh.leno.dev/upgrade";
/// The annotation in the template of a workload that is restarted for a release.
pub const RESTARTED_FOR: &str = "mesh.leno.dev/restarted-for";

/// Owners whose pods a rolling restart replaces.
const RESTARTABLE: [&str; 3] = ["Deployment", "StatefulSet", "DaemonSet"];
/// Writes to pods in one round.
const MAX_STEPS: usize = 50;
/// How soon to look again while something is under way.
const SOON: Duration = Duration::from_secs(1);
/// How soon to look whether a maintenance window has opened.
const WINDOW: Duration = Duration::from_secs(30);

const CONTROL_PLANE: &str = "ControlPlane";
const DATA_PLANE: &str = "DataPlane";
const FINISHING: &str = "Finishing";
const ROLLING_BACK: &str = "RollingBack";

/// What proxies counted, for those who compare.
pub trait Meter {
    /// What the proxies of these pods did lately, whatever their release; empty when nobody knows.
    fn lately(&self, pods: &BTreeSet<Key>) -> Measured;
    /// What the proxies of these pods did since then.
    fn since(&self, pods: &BTreeSet<Key>, then: Timestamp) -> Measured;
    /// What the proxies of this release in these pods did since they serve.
    fn of_release(&self, pods: &BTreeSet<Key>, version: &str) -> Measured;
}

/// The control plane as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlPlaneView {
    /// The release that its Deployment names; `None` when there is no Deployment.
    pub version: Option<String>,
    /// Whether its image is where the spec says that images are.
    pub is_current: bool,
    /// Whether all replicas run that release and serve.
    pub rolled_out: bool,
    /// What keeps them from it, when it is not just a matter of time.
    pub trouble: Option<String>,
}

/// A release's sidecar in a pod of its own, which is tried before any other pod gets it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreflightView {
    /// The image that its Deployment names.
    pub image: String,
    /// Whether it serves, with all configuration in force; or no node has room for it, or it may not be made, so that it tells nothing.
    pub passed: bool,
    /// What keeps it from that, when it is not just a matter of time.
    pub trouble: Option<String>,
}

/// All that is looked at.
pub struct Inputs<'a> {
    /// The MeshInstall's spec.
    pub spec: &'a MeshInstallSpec,
    /// Its status as last written.
    pub status: &'a MeshInstallStatus,
    /// The value of [`RETRY`].
    pub retry: &'a str,
    /// Now.
    pub now: Timestamp,
    /// When this operator began to lead: what happened before it did not wait for anybody.
    pub leads_since: Timestamp,
    /// The control plane.
    pub control_plane: ControlPlaneView,
    /// What is tried before pods get it, by component.
    pub preflights: &'a BTreeMap<&'static str, PreflightView>,
    /// The injected pods that run.
    pub pods: &'a [PodView],
    /// The labels of their namespaces.
    pub namespaces: &'a BTreeMap<String, BTreeMap<String, String>>,
    /// What proxies counted.
    pub meter: &'a dyn Meter,
}

/// What is to be done and said.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The release of the control plane.
    pub control_plane_version: String,
    /// The release that new pods get.
    pub injected_version: String,
    /// The change under way.
    pub upgrade: Option<UpgradeStatus>,
    /// The last one that ended.
    pub last_upgrade: Option<PastUpgrade>,
    /// Images that are to be tried in pods of their own, by component.
    pub preflights: BTreeMap<&'static str, String>,
    /// Writes to pods.
    pub steps: Vec<PodStep>,
    /// Pods by the release that serves in them.
    pub versions: Vec<VersionCount>,
    /// The condition [`UPGRADING`].
    pub condition: Wanted,
    /// When to look again without a change.
    pub wake: Option<Duration>,
}

/// Decides what comes next.
pub fn decide(inputs: &Inputs<'_>) -> Outcome {
    let mut outcome = match &inputs.status.upgrade {
        Some(upgrade) => walk::advance(inputs, upgrade),
        None => rest(inputs),
    };
    let mut versions: BTreeMap<&str, i32> = BTreeMap::new();
    for serving in inputs.pods.iter().filter_map(|pod| pod.serving.as_ref()) {
        *versions.entry(&serving.version).or_default() += 1;
    }
    outcome.versions =
        versions.into_iter().map(|(version, pods)| VersionCount { version: version.to_owned(), pods }).collect();
    outcome.steps.truncate(MAX_STEPS);
    outcome
}

/// The change by which this release was found bad, unless it may be tried again.
pub fn rejected<'a>(status: &'a MeshInstallStatus, version: &str, retry: &str) -> Option<&'a PastUpgrade> {
    status.last_upgrade.as_ref().filter(|last| last.rejected && last.to == version && last.retry == retry)
}

/// Nothing is under way: begin what is due, and tidy up.
fn rest(inputs: &Inputs<'_>) -> Outcome {
    let wanted = inputs.spec.version.as_str();
    let last = inputs.status.last_upgrade.as_ref();
    let rejected = rejected(inputs.status, wanted, inputs.retry);
    let version = rejected.map_or(wanted, |last| last.from.as_str());
    let condition = match rejected {
        Some(last) => Wanted::no(UPGRADING, "RolledBack", rolled_back(last)),
        None => Wanted::no(UPGRADING, "UpToDate", format!("the mesh is on release {wanted}")),
    };
    let mut outcome = Outcome {
        control_plane_version: version.to_owned(),
        injected_version: version.to_owned(),
        upgrade: None,
        last_upgrade: last.cloned().map(|last| PastUpgrade { rejected: last.rejected && last.to == wanted, ..last }),
        preflights: BTreeMap::new(),
        steps: Vec::new(),
        versions: Vec::new(),
        condition,
        wake: None,
    };
    let Some(present) = inputs.control_plane.version.as_deref() else { return outcome };
    if present != version {
        return begin(inputs, present, version, outcome);
    }
    // What the control plane could not get, no sidecar should try.
    if !inputs.control_plane.is_current || !inputs.control_plane.rolled_out {
        return outcome;
    }
    let strategy = inputs.spec.update_strategy();
    let pods: Vec<&PodView> = movable(inputs).collect();
    let is_outdated = |pod: &&&PodView| {
        pod.serving.as_ref().is_some_and(|serving| {
            serving.version != version
                || !pod.has(&image(inputs, pod, version))
                || (strategy.kind() == UpdateType::Restart && !pod.differing.is_empty())
        })
    };
    let outdated: Vec<&&PodView> = pods.iter().filter(is_outdated).collect();
    // Few, and of a release that serves in more pods than it does not: one that nobody has seen serve goes through the waves.
    let proven =
        pods.iter().filter(|pod| pod.serving.as_ref().is_some_and(|serving| serving.version == version)).count();
    let few = outdated.len() <= strategy.max_unavailable(pods.len()) && outdated.len() < proven.max(1);
    match strategy.kind() {
        UpdateType::OnRestart => {}
        UpdateType::InPlace if few => tidy(inputs, version, &pods, &mut outcome),
        // While a release is refused, nothing else begins: how that ended would be forgotten, and the release tried again.
        _ if outdated.is_empty() || strategy.paused() || rejected.is_some() => {}
        _ => {
            let mut serving =
                outdated.iter().filter_map(|pod| pod.serving.as_ref()).map(|serving| serving.version.as_str());
            let from = serving.find(|serving| *serving != version).unwrap_or(version);
            return begin(inputs, from, version, outcome);
        }
    }
    outcome
}

/// Brings the few pods along that are not on the release of the mesh, which is proven: those that were made, or went back to the old
/// release, in the moment in which it changed.
fn tidy(inputs: &Inputs<'_>, version: &str, pods: &[&PodView], outcome: &mut Outcome) {
    let may_begin = !inputs.spec.update_strategy().paused()
        && when::open(&inputs.spec.update_strategy().maintenance_windows, inputs.now);
    for pod in pods {
        match pod.toward(version, &image(inputs, pod, version)) {
            Progress::Moved(step) | Progress::Act(step) => outcome.steps.push(step),
            Progress::Untouched(step) if may_begin => outcome.steps.push(step),
            Progress::Waiting(_) if pod.serving.as_ref().is_some_and(|serving| serving.version != version) => {}
            _ => continue,
        }
        outcome.wake = Some(SOON);
    }
}

fn rolled_back(last: &PastUpgrade) -> String {
    format!(
        "release {} was rolled back to {} ({}): {}; write another spec.version, or change the annotation {RETRY} to try it again",
        last.to, last.from, last.reason, last.message,
    )
}

/// A new change of release. Nothing is done before it is written.
fn begin(inputs: &Inputs<'_>, from: &str, to: &str, mut outcome: Outcome) -> Outcome {
    let down = is_older(to, from);
    let present = inputs.control_plane.version.as_deref().unwrap_or(to);
    outcome.control_plane_version = present.to_owned();
    outcome.injected_version = if is_older(from, present) || from == present { from } else { present }.to_owned();
    outcome.upgrade = Some(UpgradeStatus {
        from: from.to_owned(),
        to: to.to_owned(),
        step: if down { DATA_PLANE } else { CONTROL_PLANE }.to_owned(),
        started_at: Some(Time(inputs.now)),
        since: Some(Time(inputs.now)),
        before: Some(inputs.meter.lately(&inputs.pods.iter().map(|pod| pod.key.clone()).collect())),
        waiting_for: "the first step".to_owned(),
        ..UpgradeStatus::default()
    });
    outcome.condition = Wanted::yes(UPGRADING, "Begun", format!("from release {from} to {to}"));
    outcome.wake = Some(SOON);
    outcome
}

/// Pods that may be moved.
fn movable<'a>(inputs: &Inputs<'a>) -> impl Iterator<Item = &'a PodView> + use<'a> {
    let restarts = inputs.spec.update_strategy().kind() == UpdateType::Restart;
    inputs
        .pods
        .iter()
        .filter(|pod| pod.held.is_none())
        // Nobody would replace a bare pod or one of a job.
        .filter(move |pod| !restarts || RESTARTABLE.contains(&pod.owner.kind.as_str()))
}

/// The image of a release for a pod's engine.
fn image(inputs: &Inputs<'_>, pod: &PodView, version: &str) -> String {
    inputs.spec.image_of(pod.component, version)
}
