//! Which revisions of the control plane there are, which tags point at them, and which pods belong to which.
//!
//! Pure: what status remembers and what is observed give the revisions to render, the pods to move and the next status. With
//! `InPlace` there is one revision, called as the MeshInstall. With `Canary` another release gets a revision of its own, which
//! namespaces may name by the tag `canary` and to which a share of the other workloads is moved; promoted, it becomes the stable
//! one, and everything else follows. A revision that is neither stable nor tried goes once nothing has used it for a while.
//!
//! Moving a pod is a label: its proxy connects to the other revision's Service and is sent only what differs.

mod observe;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use leno_crds::meshinstall::{CANARY, ControlPlaneUpdateStrategy, ControlPlaneUpdateType, RevisionStatus, STABLE};
use leno_kubeutil::watch::Key;

use crate::names;
use crate::plan::upgrade::pods::Owner;

pub use observe::{pods, standings};

/// Pods that are moved in one round. Their proxies connect anew, and the control plane should not meet all of them at once.
pub const MOVES: usize = 10;
/// How soon to look again while pods are moved.
const SOON: Duration = Duration::from_secs(1);

/// An injected pod that is not finished.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodView {
    /// The pod.
    pub key: Key,
    /// What made it, within its namespace.
    pub workload: Owner,
    /// The revision that its label names.
    pub revision: String,
    /// The tag or revision that it asks for itself.
    pub asks: Option<String>,
    /// It is being deleted: it still uses its revision, and is not moved.
    pub leaving: bool,
}

/// The replicas of a revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Those that serve.
    pub ready: i32,
    /// Those that are wanted.
    pub replicas: i32,
    /// All that are wanted run the release that the Deployment names, and serve.
    pub rolled_out: bool,
}

/// All that is looked at.
pub struct Inputs<'a> {
    /// The MeshInstall's name.
    pub install: &'a str,
    /// How the control plane gets to another release.
    pub strategy: &'a ControlPlaneUpdateStrategy,
    /// The revisions that status remembers.
    pub known: &'a [RevisionStatus],
    /// The release to run: with `InPlace` the one that the control plane should run now, with `Canary` the one that is wanted.
    pub version: &'a str,
    /// The release that the Deployment of the revision called as the MeshInstall names; `None` when there is none.
    pub present: Option<&'a str>,
    /// The replicas of each revision that has a Deployment.
    pub standings: &'a BTreeMap<String, Standing>,
    /// The injected pods of this MeshInstall.
    pub pods: &'a [PodView],
    /// The labels of namespaces.
    pub namespaces: &'a BTreeMap<String, BTreeMap<String, String>>,
    /// Now.
    pub now: Timestamp,
}

/// A revision to render.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revision {
    /// Its name.
    pub name: String,
    /// Its release.
    pub version: String,
    /// The tags that point at it.
    pub tags: BTreeSet<&'static str>,
    /// Its replicas.
    pub standing: Standing,
    /// Pods that use it.
    pub pods: i32,
    /// Since when nothing uses it, when it is about to go.
    pub unused_since: Option<Timestamp>,
}

/// A pod whose label is to name another revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The pod.
    pub pod: Key,
    /// The revision.
    pub to: String,
}

/// What is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revisions {
    /// The stable one first, then the one that is tried, then those about to go, by name.
    pub list: Vec<Revision>,
    /// The name of the one that is tried.
    pub trial: Option<String>,
    /// Pods to move now.
    pub moves: Vec<Move>,
    /// Pods that are not where they should be, those in `moves` included.
    pub misplaced: usize,
    /// When to look again without a change.
    pub wake: Option<Duration>,
}

impl Revisions {
    /// The one that everybody gets who names no other. There always is one.
    pub fn stable(&self) -> &Revision {
        &self.list[0]
    }

    /// The one that is tried.
    pub fn trial(&self) -> Option<&Revision> {
        let trial = self.trial.as_deref()?;
        self.list.iter().find(|revision| revision.name == trial)
    }

    /// As status remembers them.
    pub fn status(&self) -> Vec<RevisionStatus> {
        let status = |revision: &Revision| RevisionStatus {
            name: revision.name.clone(),
            version: revision.version.clone(),
            tags: revision.tags.iter().map(|tag| (*tag).to_owned()).collect(),
            ready: revision.standing.ready,
            replicas: revision.standing.replicas,
            pods: revision.pods,
            unused_since: revision.unused_since.map(Time),
        };
        self.list.iter().map(status).collect()
    }

    /// What is tried, for people.
    pub fn message(&self) -> Option<String> {
        let (stable, trial) = (self.stable(), self.trial()?);
        let Standing { ready, replicas, rolled_out } = trial.standing;
        let next = if rolled_out {
            format!(
                "write spec.controlPlane.updateStrategy.promote: {} to go on, or spec.version: {} to go back",
                trial.version, stable.version
            )
        } else {
            "waiting for its replicas; no pod is moved to it before all serve".to_owned()
        };
        Some(format!(
            "release {} is tried as revision {} beside {} ({}): {ready} of {replicas} replicas serve, {} pods use it and {} the stable one; {next}",
            trial.version, trial.name, stable.version, stable.name, trial.pods, stable.pods,
        ))
    }
}

/// Decides what revisions there are to be.
pub fn revisions(inputs: &Inputs<'_>) -> Revisions {
    let of_status = |known: &RevisionStatus| Revision {
        name: known.name.clone(),
        version: known.version.clone(),
        unused_since: known.unused_since.as_ref().map(|time| time.0),
        ..Revision::default()
    };
    let mut known: BTreeMap<String, Revision> =
        inputs.known.iter().map(|known| (known.name.clone(), of_status(known))).collect();
    let (stable, trial) = match inputs.strategy.kind() {
        ControlPlaneUpdateType::InPlace => (
            Revision { name: inputs.install.to_owned(), version: inputs.version.to_owned(), ..Revision::default() },
            None,
        ),
        ControlPlaneUpdateType::Canary => canary(inputs, &known),
    };
    known.retain(|name, _| *name != stable.name && trial.as_ref().is_none_or(|trial| *name != trial.name));
    let mut plan = Plan { inputs, stable, trial, retiring: known };
    plan.count();
    let wanted = plan.wanted();
    let misplaced: Vec<Move> = inputs
        .pods
        .iter()
        .zip(wanted)
        .filter(|(pod, to)| !pod.leaving && pod.revision != *to)
        .map(|(pod, to)| Move { pod: pod.key.clone(), to })
        .collect();
    let wait = plan.retire();
    let moves: Vec<Move> = misplaced.iter().filter(|step| plan.takes(&step.to)).take(MOVES).cloned().collect();
    let wake = if moves.is_empty() { wait } else { Some(SOON) };
    let Plan { stable, trial, retiring, .. } = plan;
    Revisions {
        trial: trial.as_ref().map(|trial| trial.name.clone()),
        list: std::iter::once(stable).chain(trial).chain(retiring.into_values()).collect(),
        misplaced: misplaced.len(),
        moves,
        wake,
    }
}

/// The stable revision, and the one that is tried.
fn canary(inputs: &Inputs<'_>, known: &BTreeMap<String, Revision>) -> (Revision, Option<Revision>) {
    let own = |name: &str, version: &str| Revision {
        name: name.to_owned(),
        version: version.to_owned(),
        ..Revision::default()
    };
    let tagged = inputs.known.iter().find(|known| known.tags.iter().any(|tag| tag == STABLE));
    let stable = match tagged {
        Some(known) if known.name != inputs.install => own(&known.name, &known.version),
        // The Deployment itself knows best: the release may have changed in place.
        _ => own(inputs.install, inputs.present.unwrap_or(inputs.version)),
    };
    if stable.version == inputs.version {
        return (stable, None);
    }
    let again = known.values().find(|known| known.version == inputs.version && known.name != stable.name);
    let name = again.map_or_else(|| names::revision(inputs.install, inputs.version), |again| again.name.clone());
    let trial = own(&name, inputs.version);
    let serves = inputs.standings.get(&name).is_some_and(|standing| standing.rolled_out);
    if serves && inputs.strategy.promote.as_deref() == Some(inputs.version) {
        return (trial, None);
    }
    (stable, Some(trial))
}

struct Plan<'a> {
    inputs: &'a Inputs<'a>,
    stable: Revision,
    trial: Option<Revision>,
    retiring: BTreeMap<String, Revision>,
}

impl Plan<'_> {
    /// Fills in what is observed of each revision, and the tags.
    fn count(&mut self) {
        let Self { inputs, stable, trial, retiring } = self;
        for revision in std::iter::once(&mut *stable).chain(trial.as_mut()).chain(retiring.values_mut()) {
            revision.standing = inputs.standings.get(&revision.name).copied().unwrap_or_default();
            let pods = inputs.pods.iter().filter(|pod| pod.revision == revision.name).count();
            revision.pods = i32::try_from(pods).unwrap_or(i32::MAX);
        }
        stable.tags.insert(STABLE);
        // A tag that leads to nobody would keep pods from being created.
        match trial {
            Some(trial) if trial.standing.ready > 0 => trial.tags.insert(CANARY),
            _ => stable.tags.insert(CANARY),
        };
    }

    /// The revision that each pod should be of, in the order of the pods.
    fn wanted(&self) -> Vec<String> {
        let free = |pod: &&PodView| self.named(pod).is_none();
        let mut workloads: Vec<(u64, &str, &Owner)> = self
            .inputs
            .pods
            .iter()
            .filter(free)
            .map(|pod| (order(pod), pod.key.namespace.as_str(), &pod.workload))
            .collect();
        workloads.sort_unstable();
        workloads.dedup();
        let percent = match &self.trial {
            Some(_) => usize::try_from(self.inputs.strategy.canary_percent()).unwrap_or(0),
            None => 0,
        };
        let moved = (workloads.len() * percent).div_ceil(100);
        let moved: BTreeSet<(&str, &Owner)> =
            workloads.into_iter().take(moved).map(|(_, namespace, workload)| (namespace, workload)).collect();
        let of = |pod: &PodView| match (self.named(pod), &self.trial) {
            (Some(named), _) => named.to_owned(),
            (None, Some(trial)) if moved.contains(&(pod.key.namespace.as_str(), &pod.workload)) => trial.name.clone(),
            (None, _) => self.stable.name.clone(),
        };
        self.inputs.pods.iter().map(of).collect()
    }

    /// The revision that a pod or its namespace names; `None` when it goes with the others.
    fn named(&self, pod: &PodView) -> Option<&str> {
        let labels = self.inputs.namespaces.get(&pod.key.namespace);
        let asked = pod.asks.as_deref().or_else(|| labels.and_then(names::asked_revision))?;
        match asked {
            STABLE => Some(&self.stable.name),
            CANARY => match &self.trial {
                // One that is there already stays when replicas are lost for a moment.
                Some(trial) if trial.tags.contains(CANARY) || pod.revision == trial.name => Some(&trial.name),
                _ => Some(&self.stable.name),
            },
            name if name == self.inputs.install => None,
            name => self.all().map(|revision| revision.name.as_str()).find(|known| *known == name),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Revision> {
        std::iter::once(&self.stable).chain(&self.trial).chain(self.retiring.values())
    }

    /// Whether pods may be moved to a revision now.
    fn takes(&self, name: &str) -> bool {
        let trial = self.trial.as_ref().is_some_and(|trial| trial.name == name);
        self.all()
            .find(|revision| revision.name == name)
            .is_some_and(|revision| if trial { revision.standing.rolled_out } else { revision.standing.ready > 0 })
    }

    /// Lets revisions go that nothing has used for the grace period. Returns when the next could go.
    fn retire(&mut self) -> Option<Duration> {
        let inputs = self.inputs;
        let grace = Duration::from_secs(u64::try_from(inputs.strategy.grace_period_seconds()).unwrap_or(0));
        let mut wait: Option<Duration> = None;
        let stands = self.stable.standing.ready > 0;
        self.retiring.retain(|name, revision| {
            let named = |asked: Option<&str>| *name != inputs.install && asked == Some(name.as_str());
            let pinned = inputs.namespaces.values().any(|labels| named(names::asked_revision(labels)))
                || inputs.pods.iter().any(|pod| named(pod.asks.as_deref()));
            // With nobody to go to, nobody is let go.
            if revision.pods > 0 || pinned || !stands {
                revision.unused_since = None;
                return true;
            }
            let since = *revision.unused_since.get_or_insert(inputs.now);
            let unused = Duration::try_from(inputs.now.duration_since(since)).unwrap_or_default();
            if unused >= grace && inputs.known.iter().any(|known| known.name == *name && known.unused_since.is_some()) {
                return false;
            }
            let left = grace.saturating_sub(unused).max(SOON);
            wait = Some(wait.map_or(left, |wait| wait.min(left)));
            true
        });
        wait
    }
}

/// The place of a workload among all: fixed for each, and without any pattern.
fn order(pod: &PodView) -> u64 {
    let Owner { kind, name } = &pod.workload;
    let parts = [pod.key.namespace.as_bytes(), b"/", kind.as_bytes(), b"/", name.as_bytes()];
    // FNV-1a, with a last mix, since its high bits change little with the last bytes.
    let hash = parts
        .into_iter()
        .flatten()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    (hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}
