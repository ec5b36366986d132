//! From what is observed to what has to be done: pure, so that every decision can be tested without a cluster.
//!
//! A plan is made again after every change and from nothing but what is observed, so it does not matter where the operator
//! was killed: the next one sees what is there and plans the rest.

pub mod authority;
pub mod claims;
pub mod injection;
pub mod render;
pub mod revisions;
pub mod settings;
pub mod status;
pub mod upgrade;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::DynamicObject;
use leno_crds::meshinstall::{CANARY, ControlPlaneUpdateType, MeshInstall, MeshInstallSpec, MeshInstallStatus, STABLE};
use leno_kubeutil::apply::{ApplyError, Desired};
use leno_kubeutil::conditions::Wanted;
use leno_kubeutil::watch::Key;

use self::authority::Look;
use self::claims::{Claim, claims};
use self::render::{Inputs, Replicas};
use self::revisions::Revisions;
use self::upgrade::pods::PodStep;
use crate::meter::{Comparison, History};
use crate::names;
use crate::proxies::Snapshot;

/// What an object is called, sorted in the order in which leftovers are removed: nothing that could refuse pods outlives
/// what serves it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectId {
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace and name.
    pub key: Key,
}

/// Everything that a plan depends on.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// All MeshInstalls.
    pub installs: BTreeMap<Key, Arc<MeshInstall>>,
    /// All namespaces.
    pub namespaces: BTreeMap<Key, Arc<Namespace>>,
    /// All pods.
    pub pods: BTreeMap<Key, Arc<Pod>>,
    /// Secrets named `leno-ca`.
    pub authorities: BTreeMap<Key, Arc<Secret>>,
    /// What carries our label, by kind.
    pub owned: BTreeMap<ObjectId, Arc<DynamicObject>>,
    /// Secrets named `leno-issuer`: authorities that users provide.
    pub issuers: BTreeMap<Key, Arc<Secret>>,
    /// What replicas of control planes say of what they trust and sign with.
    pub replicas: authority::Replicas,
    /// Releases that this operator can render.
    pub supported: Vec<String>,
    /// What the proxies of each pod last told, by pod; a pod whose proxies tell nothing is not there.
    pub reports: Snapshot,
    /// What they told in the last minute.
    pub history: History,
    /// Now.
    pub now: Timestamp,
    /// When this operator began to lead.
    pub leads_since: Timestamp,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Put our finalizer on the MeshInstall, or take it off.
    Finalizer {
        /// Whether it should be there.
        present: bool,
    },
    /// Create the namespace, which does not exist.
    CreateNamespace(Box<Desired>),
    /// Make a new authority and put it into the Secret. `also_trust` holds roots that are already in use.
    CreateAuthority {
        /// PEM texts.
        also_trust: String,
        /// Where it comes from.
        issuer: leno_crds::meshinstall::IssuerType,
    },
    /// Change the authority: the next step of a rotation.
    ChangeAuthority(authority::Change),
    /// Give `spec.replicas` to a field manager of its own, so that it keeps its value when we stop applying it.
    HandOverReplicas {
        /// The revision of the control plane.
        revision: String,
        /// The value to keep.
        replicas: i32,
    },
    /// Apply an object, if it differs.
    Apply(Box<Desired>),
    /// Delete an object of ours.
    Delete(ObjectId),
    /// Move a pod's sidecar towards another release.
    Pod(PodStep),
    /// Let a pod's sidecar be programmed by another revision of the control plane.
    Revision(revisions::Move),
}

/// What to do about one MeshInstall, and what to say.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// In order. When one fails, the rest is not tried, except among [`Step::Apply`]s.
    pub steps: Vec<Step>,
    /// Whether the spec can be.
    pub accepted: Wanted,
    /// What belongs to it.
    pub claim: Claim,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// The authority, unless the plan did not get as far.
    pub authority: Option<Box<authority::Outlook>>,
    /// Where it is between two releases; `None` when nothing is decided about that.
    pub upgrade: Option<upgrade::Outcome>,
    /// The revisions of its control plane; `None` when nothing is decided about them.
    pub revisions: Option<Revisions>,
}

impl Plan {
    /// A plan that gets no further than these steps.
    fn undecided(steps: Vec<Step>, accepted: Wanted, claim: Claim) -> Self {
        Plan { steps, accepted, claim, deleting: false, authority: None, upgrade: None, revisions: None }
    }
}

/// Plans for all MeshInstalls, by name.
///
/// # Errors
///
/// [`ApplyError::Malformed`], which is a mistake in rendering.
pub fn plan(observed: &Observed) -> Result<BTreeMap<String, Plan>, ApplyError> {
    let claims = claims(&observed.installs, &observed.namespaces);
    let mut plans = BTreeMap::new();
    for (key, install) in &observed.installs {
        let claim = claims.get(&key.name).cloned().unwrap_or_default();
        plans.insert(key.name.clone(), plan_one(observed, &key.name, install, claim)?);
    }
    Ok(plans)
}

/// Objects of ours whose MeshInstall is gone without our finalizer having run, for example because somebody took it off.
pub fn leftovers(observed: &Observed) -> Vec<ObjectId> {
    let alive: BTreeSet<String> =
        observed.installs.values().filter_map(|install| install.metadata.uid.clone()).collect();
    observed
        .owned
        .iter()
        .filter(|(id, object)| id.kind != "Namespace" && owner_uid(object).is_some_and(|uid| !alive.contains(uid)))
        .map(|(id, _)| id.clone())
        .collect()
}

fn plan_one(observed: &Observed, name: &str, install: &MeshInstall, claim: Claim) -> Result<Plan, ApplyError> {
    let deployment_of = |revision: &str| {
        let key = Key::new(install.spec.system_namespace(), names::control_plane(revision));
        observed.owned.get(&ObjectId { kind: "Deployment", key }).map(Arc::as_ref)
    };
    let is_canary = install.spec.control_plane_update_strategy().kind() == ControlPlaneUpdateType::Canary;
    // A release that is tried beside the old one is no upgrade yet: that begins with its promotion.
    let tried = is_canary.then(|| revise(observed, name, install, &install.spec.version));
    let stable = tried.as_ref().map(|tried| tried.stable().clone());
    let serving = stable.as_ref().map_or(name, |stable| &stable.name);
    let control_plane = upgrade::control_plane(install, serving, deployment_of(serving), &observed.pods);
    let accepted = accepted(install, &claim, &observed.supported, control_plane.version.as_deref());
    let has_finalizer = install.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER);
    if install.metadata.deletion_timestamp.is_some() {
        let steps = if has_finalizer { removal(observed, name, install) } else { Vec::new() };
        return Ok(Plan { deleting: true, ..Plan::undecided(steps, accepted, claim) });
    }
    if accepted.status != leno_kubeutil::conditions::Status::True {
        return Ok(Plan::undecided(Vec::new(), accepted, claim));
    }
    let mut steps = Vec::new();
    if !has_finalizer {
        steps.push(Step::Finalizer { present: true });
    }
    let system = install.spec.system_namespace();
    let namespace = observed.namespaces.get(&Key::new("", system));
    if namespace.is_none() {
        steps.push(Step::CreateNamespace(Box::new(render::namespace(install, name)?)));
    }
    let authority = match authority::look(observed, name, install) {
        Look::There(outlook) => outlook,
        Look::Missing(create) => {
            steps.push(create);
            // The rest needs the roots; the Secret's arrival makes the next plan.
            return Ok(Plan::undecided(steps, accepted, claim));
        }
        Look::Broken(message) => {
            let accepted = Wanted::no(status::ACCEPTED, "BadAuthority", message);
            return Ok(Plan::undecided(steps, accepted, claim));
        }
    };
    let (upgrade, revisions) = match tried {
        Some(tried) => (decide_promoted(observed, name, install, control_plane, &tried), tried),
        None => {
            let upgrade = decide(observed, name, &install.spec, install, control_plane);
            let revisions = revise(observed, name, install, &upgrade.control_plane_version);
            (upgrade, revisions)
        }
    };
    let mut replicas = BTreeMap::new();
    for revision in &revisions.list {
        let deployment = deployment_of(&revision.name);
        let decided = decide_replicas(install, deployment);
        replicas.insert(revision.name.clone(), decided);
        if let (Replicas::Autoscaler, Some(deployment)) = (decided, deployment)
            && deployment.annotations().get(names::REPLICAS_BY).is_none_or(|by| by != "autoscaler")
        {
            let (revision, replicas) = (revision.name.clone(), running_replicas(deployment).max(1));
            steps.push(Step::HandOverReplicas { revision, replicas });
        }
    }
    let inputs = Inputs {
        install,
        name,
        revisions: &revisions,
        claim: &claim,
        system_namespaces: observed.installs.values().map(|one| one.spec.system_namespace().to_owned()).collect(),
        roots: &authority.roots,
        announced: &authority.announced,
        replicas,
        preflights: &upgrade.preflights,
    };
    let objects = live(observed, render::objects(&inputs)?);
    let wanted: BTreeSet<(String, Key)> = objects
        .iter()
        .map(|object| {
            (object.resource.kind.clone(), Key::new(object.namespace.clone().unwrap_or_default(), object.name.clone()))
        })
        .collect();
    let orphans = of_install(observed, install).filter(|id| !wanted.contains(&(id.kind.to_owned(), id.key.clone())));
    // An autoscaler goes before the Deployment gets its replicas back, or they would pull in two directions.
    steps.extend(orphans.filter(|id| id.kind != "Namespace").map(Step::Delete));
    steps.extend(objects.into_iter().map(|object| Step::Apply(Box::new(object))));
    steps.extend(upgrade.steps.iter().cloned().map(Step::Pod));
    steps.extend(revisions.moves.iter().cloned().map(Step::Revision));
    // Last, so that what the step after it stands on is in place: the roots where they are read.
    steps.extend(authority.change.clone().map(Step::ChangeAuthority));
    let (upgrade, authority, revisions) = (Some(upgrade), Some(authority), Some(revisions));
    Ok(Plan { steps, accepted, claim, deleting: false, upgrade, authority, revisions })
}

/// The revisions of a control plane whose release should be `version`.
fn revise(observed: &Observed, name: &str, install: &MeshInstall, version: &str) -> Revisions {
    let system = install.spec.system_namespace();
    let control_plane = install.status.as_ref().and_then(|status| status.control_plane.as_ref());
    let own = ObjectId { kind: "Deployment", key: Key::new(system, names::control_plane(name)) };
    let own = observed.owned.get(&own).map(Arc::as_ref);
    revisions::revisions(&revisions::Inputs {
        install: name,
        strategy: &install.spec.control_plane_update_strategy(),
        known: control_plane.map_or(&[][..], |control_plane| &control_plane.revisions),
        version,
        present: own.and_then(upgrade::release_of),
        standings: &revisions::standings(system, &observed.owned),
        pods: &revisions::pods(name, &observed.pods),
        namespaces: &namespace_labels(observed),
        now: observed.now,
    })
}

/// As [`decide`], for a control plane whose releases come and go as revisions: sidecars follow the stable one, and when they
/// turn back, it stays as it is.
fn decide_promoted(
    observed: &Observed,
    name: &str,
    install: &MeshInstall,
    mut control_plane: upgrade::ControlPlaneView,
    tried: &Revisions,
) -> upgrade::Outcome {
    let stable = tried.stable();
    let status = install.status.as_ref();
    let under_way = status.and_then(|status| status.upgrade.as_ref());
    let shown = match (under_way, status) {
        (Some(upgrade), _) => (!upgrade.failure.is_empty()).then_some(&upgrade.from),
        (None, Some(status)) => upgrade::rejected(status, &stable.version, retry(install)).map(|last| &last.from),
        (None, None) => None,
    };
    if let Some(version) = &mut control_plane.version {
        version.clone_from(shown.unwrap_or(&stable.version));
    }
    let mut spec = install.spec.clone();
    spec.version.clone_from(&stable.version);
    let mut outcome = decide(observed, name, &spec, install, control_plane);
    outcome.control_plane_version.clone_from(&stable.version);
    if let (Some(message), None) = (tried.message(), &outcome.upgrade) {
        outcome.condition = Wanted::yes(upgrade::UPGRADING, "Canary", message);
    }
    outcome
}

/// What lets a release be tried again.
fn retry(install: &MeshInstall) -> &str {
    install.annotations().get(upgrade::RETRY).map_or("", String::as_str)
}

fn namespace_labels(observed: &Observed) -> BTreeMap<String, BTreeMap<String, String>> {
    observed
        .namespaces
        .iter()
        .map(|(key, namespace)| (key.name.clone(), namespace.metadata.labels.clone().unwrap_or_default()))
        .collect()
}

/// Where a mesh is between two releases.
fn decide(
    observed: &Observed,
    name: &str,
    spec: &MeshInstallSpec,
    install: &MeshInstall,
    control_plane: upgrade::ControlPlaneView,
) -> upgrade::Outcome {
    let nothing = MeshInstallStatus::default();
    let namespaces = namespace_labels(observed);
    let preflight = |component: &str| {
        let key = Key::new(spec.system_namespace(), names::preflight(name, component));
        observed.owned.get(&ObjectId { kind: "Deployment", key }).map(Arc::as_ref)
    };
    upgrade::decide(&upgrade::Inputs {
        spec,
        status: install.status.as_ref().unwrap_or(&nothing),
        retry: retry(install),
        now: observed.now,
        leads_since: observed.leads_since,
        control_plane,
        preflights: &upgrade::preflights(name, observed.now, preflight, &observed.pods, &observed.reports),
        pods: &upgrade::pods(name, spec, &observed.namespaces, &observed.pods, &observed.reports),
        namespaces: &namespaces,
        meter: &Comparison { now: &observed.reports, history: &observed.history },
    })
}

/// Whether a MeshInstall can be, with everything that is wrong.
fn accepted(install: &MeshInstall, claim: &Claim, supported: &[String], present: Option<&str>) -> Wanted {
    let problems = install.spec.problems(supported);
    if let Some(first) = problems.first() {
        let messages: Vec<&str> = problems.iter().map(|problem| problem.message.as_str()).collect();
        return Wanted::no(status::ACCEPTED, first.reason, messages.join(". "));
    }
    if let Some(message) = bad_name(install) {
        return Wanted::no(status::ACCEPTED, "BadName", message);
    }
    let allowed = install.annotations().get(upgrade::ALLOW_SKEW).is_some_and(|value| value == "true");
    if let Some(present) = present.filter(|_| !allowed)
        && let Some(message) = upgrade::skew(present, &install.spec.version)
    {
        return Wanted::no(status::ACCEPTED, "SkippedRelease", message);
    }
    if let Some(older) = &claim.conflict {
        return Wanted::no(
            status::ACCEPTED,
            "Conflict",
            format!(
                "spec.namespace: {:?} holds the control plane of MeshInstall {older:?}, which is older; delete one of them, or give this one another namespace",
                install.spec.system_namespace(),
            ),
        );
    }
    if !claim.taken.is_empty() {
        let taken: Vec<String> =
            claim.taken.iter().map(|(namespace, older)| format!("{namespace} (of {older})")).collect();
        return Wanted::yes(
            status::ACCEPTED,
            "PartlyTaken",
            format!(
                "the spec is valid; namespaces that belong to an older MeshInstall: {}; narrow spec.mesh.namespaces",
                taken.join(", "),
            ),
        );
    }
    Wanted::yes(status::ACCEPTED, "Valid", "the spec is valid")
}

/// Why revisions cannot be called after a MeshInstall that wants them.
fn bad_name(install: &MeshInstall) -> Option<String> {
    let name = install.metadata.name.as_deref().unwrap_or_default();
    if install.spec.control_plane_update_strategy().kind() != ControlPlaneUpdateType::Canary {
        return None;
    }
    if name == STABLE || name == CANARY {
        return Some(format!(
            "metadata.name: {name:?} is a tag of revisions; with spec.controlPlane.updateStrategy.type Canary the MeshInstall needs another name"
        ));
    }
    let longest = names::revision(name, &install.spec.version).len();
    (longest > names::MAX_REVISION).then(|| {
        format!(
            "metadata.name: with {} bytes it is too long for revisions to be called after it; with spec.controlPlane.updateStrategy.type Canary it may have {}",
            name.len(),
            (name.len() + names::MAX_REVISION).saturating_sub(longest),
        )
    })
}

/// What removes a mesh, in order: first what could refuse pods, then what serves, then the rest; the finalizer last.
fn removal(observed: &Observed, name: &str, install: &MeshInstall) -> Vec<Step> {
    let ids: Vec<ObjectId> = of_install(observed, install).filter(|id| id.kind != "Namespace").collect();
    let stages: [&[&str]; 3] = [
        &["MutatingWebhookConfiguration"],
        &["HorizontalPodAutoscaler", "Deployment"],
        &[
            "ClusterRole",
            "ClusterRoleBinding",
            "ConfigMap",
            "PodDisruptionBudget",
            "Secret",
            "Service",
            "ServiceAccount",
        ],
    ];
    for stage in stages {
        let due: Vec<ObjectId> = ids.iter().filter(|id| stage.contains(&id.kind)).cloned().collect();
        if !due.is_empty() {
            return due.into_iter().map(Step::Delete).collect();
        }
    }
    let still_running = observed.pods.iter().any(|(key, pod)| {
        key.namespace == install.spec.system_namespace() && names::is_control_plane(name, pod.labels())
    });
    if still_running { Vec::new() } else { vec![Step::Finalizer { present: false }] }
}

/// Objects in namespaces that are going away cannot be created any more; they are left out.
fn live(observed: &Observed, objects: Vec<Desired>) -> Vec<Desired> {
    let terminating = |namespace: &str| {
        observed
            .namespaces
            .get(&Key::new("", namespace))
            .is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some())
    };
    objects.into_iter().filter(|object| !object.namespace.as_deref().is_some_and(terminating)).collect()
}

/// Objects that this MeshInstall owns, Secret included.
fn of_install<'a>(observed: &'a Observed, install: &'a MeshInstall) -> impl Iterator<Item = ObjectId> + 'a {
    let uid = install.metadata.uid.as_deref();
    let secrets = observed.authorities.iter().filter(move |(_, secret)| {
        uid.is_some() && secret.owner_references().iter().any(|owner| Some(owner.uid.as_str()) == uid)
    });
    let deleting = install.metadata.deletion_timestamp.is_some();
    observed
        .owned
        .iter()
        .filter(move |(_, object)| uid.is_some() && owner_uid(object) == uid)
        .map(|(id, _)| id.clone())
        // The authority is only ever removed with the mesh.
        .chain(secrets.filter(move |_| deleting).map(|(key, _)| ObjectId { kind: "Secret", key: key.clone() }))
}

/// The uid of the MeshInstall that owns an object.
fn owner_uid(object: &DynamicObject) -> Option<&str> {
    object
        .owner_references()
        .iter()
        .find(|owner| owner.kind == "MeshInstall" && owner.api_version.starts_with("mesh.leno.dev/"))
        .map(|owner| owner.uid.as_str())
}

fn decide_replicas(install: &MeshInstall, deployment: Option<&DynamicObject>) -> Replicas {
    match (install.spec.autoscaling(), deployment) {
        (None, _) => Replicas::Operator(install.spec.replicas()),
        // A Deployment without replicas is created with one: give it the least that is wanted first, hand over later.
        (Some(autoscaling), None) => Replicas::Operator(autoscaling.min_replicas()),
        (Some(_), Some(_)) => Replicas::Autoscaler,
    }
}

fn running_replicas(deployment: &DynamicObject) -> i32 {
    deployment.data.pointer("/spec/replicas").and_then(serde_json::Value::as_i64).unwrap_or(1) as i32
}

/// The signing pair and roots of an authority, for whoever has to sign.
pub fn signing_pair(secret: &Secret) -> Option<(Vec<u8>, Vec<u8>, Vec<u8>)> {
    let data = secret.data.as_ref()?;
    Some((data.get("tls.crt")?.0.clone(), data.get("tls.key")?.0.clone(), data.get(names::ROOTS_KEY)?.0.clone()))
}
