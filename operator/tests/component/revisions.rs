//! Revisions of the control plane on a small model of a cluster that does what the plan says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use leno_crds::meshinstall::{ControlPlaneUpdateStrategy, ControlPlaneUpdateType, RevisionStatus};
use leno_kubeutil::watch::Key;
use leno_operator::plan::revisions::{Inputs, MOVES, Move, PodView, Revisions, Standing, revisions};
use leno_operator::plan::upgrade::pods::Owner;

/// A small cluster that does what the plan says.
struct Mesh {
    strategy: ControlPlaneUpdateStrategy,
    version: String,
    known: Vec<RevisionStatus>,
    standings: BTreeMap<String, Standing>,
    releases: BTreeMap<String, String>,
    pods: Vec<PodView>,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    now: Timestamp,
}

const READY: Standing = Standing { ready: 2, replicas: 2, rolled_out: true };

impl Mesh {
    /// Ten workloads of two pods in a namespace that asks for no revision, and two in one that asks for the canary.
    fn new(kind: ControlPlaneUpdateType) -> Self {
        let pod = |namespace: &str, workload: usize, number: usize| PodView {
            key: Key::new(namespace, format!("w{workload}-{number}")),
            workload: Owner { kind: "Deployment".into(), name: format!("w{workload}") },
            revision: "default".into(),
            ..PodView::default()
        };
        let mut pods: Vec<PodView> =
            (0..10).flat_map(|workload| (0..2).map(move |number| pod("shop", workload, number))).collect();
        pods.extend((0..2).map(|number| pod("early", 0, number)));
        let label = BTreeMap::from([("istio.io/rev".to_owned(), "canary".to_owned())]);
        Mesh {
            strategy: ControlPlaneUpdateStrategy { kind: Some(kind), ..ControlPlaneUpdateStrategy::default() },
            version: "0.1.0".into(),
            known: Vec::new(),
            standings: BTreeMap::from([("default".into(), READY)]),
            releases: BTreeMap::from([("default".into(), "0.1.0".into())]),
            pods,
            namespaces: BTreeMap::from([("shop".into(), BTreeMap::new()), ("early".into(), label)]),
            now: Timestamp::UNIX_EPOCH,
        }
    }

    fn plan(&self) -> Revisions {
        revisions(&Inputs {
            install: "default",
            strategy: &self.strategy,
            known: &self.known,
            version: &self.version,
            present: self.releases.get("default").map(String::as_str),
            standings: &self.standings,
            pods: &self.pods,
            namespaces: &self.namespaces,
            now: self.now,
        })
    }

    /// One round: the plan is carried out and its status written. `comes_up` is whether new replicas do.
    fn round(&mut self, comes_up: bool) -> Revisions {
        let plan = self.plan();
        assert!(plan.moves.len() <= MOVES);
        for step in &plan.moves {
            self.pods.iter_mut().find(|pod| pod.key == step.pod).unwrap().revision.clone_from(&step.to);
        }
        self.standings.retain(|name, _| plan.list.iter().any(|revision| revision.name == *name));
        self.releases.retain(|name, _| plan.list.iter().any(|revision| revision.name == *name));
        for revision in &plan.list {
            let standing = Standing { replicas: 2, ..Standing::default() };
            self.standings.entry(revision.name.clone()).or_insert(if comes_up { READY } else { standing });
            self.releases.insert(revision.name.clone(), revision.version.clone());
        }
        self.known = plan.status();
        self.now += Duration::from_secs(1);
        plan
    }

    fn rest(&mut self) -> Revisions {
        for _ in 0..20 {
            self.round(true);
        }
        let plan = self.plan();
        assert_eq!((plan.misplaced, &plan.moves), (0, &Vec::new()));
        plan
    }

    fn on(&self, revision: &str) -> usize {
        self.pods.iter().filter(|pod| pod.revision == revision).count()
    }
}

fn names_of(plan: &Revisions) -> Vec<&str> {
    plan.list.iter().map(|revision| revision.name.as_str()).collect()
}

fn tags(plan: &Revisions, name: &str) -> Vec<&'static str> {
    plan.list.iter().find(|revision| revision.name == name).unwrap().tags.iter().copied().collect()
}

#[test]
fn in_place_when_the_release_changes_then_there_is_one_revision_called_as_the_install() {
    let mut mesh = Mesh::new(ControlPlaneUpdateType::InPlace);
    for version in ["0.1.0", "0.2.0"] {
        mesh.version = version.into();
        let plan = mesh.round(true);
        assert_eq!(names_of(&plan), ["default"]);
        assert_eq!(plan.stable().version, version);
        assert_eq!(tags(&plan, "default"), ["canary", "stable"], "both tags lead there");
        assert!(plan.moves.is_empty() && plan.trial.is_none() && plan.wake.is_none());
    }
}

#[test]
fn canary_when_the_release_changes_then_runs_beside_and_only_those_who_ask_move() {
    let mut mesh = Mesh::new(ControlPlaneUpdateType::Canary);
    assert_eq!(names_of(&mesh.rest()), ["default"]);
    mesh.version = "0.2.0".into();
    let plan = mesh.round(false);
    assert_eq!(names_of(&plan), ["default", "default-0-2-0"]);
    assert_eq!(plan.stable().version, "0.1.0");
    // Nobody is sent to replicas that are not there, not even pods that are created with the tag.
    assert!(plan.moves.is_empty());
    assert_eq!(tags(&mesh.round(false), "default"), ["canary", "stable"]);
    mesh.standings.insert("default-0-2-0".into(), READY);
    let plan = mesh.rest();
    assert_eq!(tags(&plan, "default"), ["stable"]);
    assert_eq!(tags(&plan, "default-0-2-0"), ["canary"]);
    assert_eq!(mesh.on("default-0-2-0"), 2, "the namespace that asks for it");
    assert!(mesh.pods.iter().all(|pod| (pod.key.namespace == "early") == (pod.revision == "default-0-2-0")));
    assert!(plan.message().unwrap().contains("promote: 0.2.0"), "{:?}", plan.message());
}

#[test]
fn canary_when_given_a_share_then_whole_workloads_move_and_the_same_ones_each_time() {
    let moved = |percent: i32| {
        let mut mesh = Mesh::new(ControlPlaneUpdateType::Canary);
        mesh.rest();
        mesh.version = "0.2.0".into();
        mesh.strategy.canary_percent = Some(percent);
        mesh.rest();
        let on: Vec<String> = mesh
            .pods
            .iter()
            .filter(|pod| pod.revision == "default-0-2-0" && pod.key.namespace == "shop")
            .map(|pod| pod.workload.name.clone())
            .collect();
        let workloads: BTreeSet<String> = on.iter().cloned().collect();
        assert_eq!(on.len(), 2 * workloads.len(), "both pods of each");
        workloads
    };
    let (few, more, all) = (moved(25), moved(50), moved(100));
    assert_eq!((few.len(), more.len(), all.len()), (3, 5, 10));
    assert_eq!(moved(25), few);
    assert!(few.is_subset(&more));
}

#[test]
fn canary_when_promoted_then_all_follow_and_the_old_goes_after_the_grace_period() {
    let mut mesh = Mesh::new(ControlPlaneUpdateType::Canary);
    mesh.rest();
    mesh.version = "0.2.0".into();
    // Before its replicas serve it is not promoted.
    mesh.strategy.promote = Some("0.2.0".into());
    assert_eq!(mesh.round(false).stable().name, "default");
    mesh.standings.insert("default-0-2-0".into(), READY);
    let plan = mesh.rest();
    assert_eq!(names_of(&plan), ["default-0-2-0", "default"]);
    assert_eq!(tags(&plan, "default-0-2-0"), ["canary", "stable"]);
    assert_eq!(mesh.on("default-0-2-0"), mesh.pods.len());
    let since = plan.list[1].unused_since.unwrap();
    assert!(plan.wake.is_some());
    mesh.now = since + Duration::from_secs(299);
    assert_eq!(mesh.round(true).list.len(), 2);
    let plan = mesh.round(true);
    assert_eq!(names_of(&plan), ["default-0-2-0"]);
    assert_eq!(mesh.rest(), mesh.plan(), "and stays so");
    // The next release makes the next revision, and the field that is still there promotes nothing.
    mesh.version = "0.3.0".into();
    let plan = mesh.rest();
    assert_eq!(names_of(&plan), ["default-0-2-0", "default-0-3-0"]);
    assert_eq!(plan.trial.as_deref(), Some("default-0-3-0"));
}

#[test]
fn old_revision_when_used_then_stays_whoever_uses_it() {
    let mut mesh = Mesh::new(ControlPlaneUpdateType::Canary);
    mesh.rest();
    mesh.version = "0.2.0".into();
    mesh.strategy.promote = Some("0.2.0".into());
    mesh.rest();
    // A pod that is leaving still uses it, and is not moved.
    mesh.pods[0].revision = "default".into();
    mesh.pods[0].leaving = true;
    mesh.now += Duration::from_secs(3600);
    let plan = mesh.round(true);
    assert_eq!((plan.list[1].pods, plan.list[1].unused_since, plan.moves.len()), (1, None, 0));
    // A namespace that names a revision keeps it.
    mesh.pods.remove(0);
    mesh.version = "0.3.0".into();
    mesh.rest();
    mesh.namespaces.get_mut("early").unwrap().insert("istio.io/rev".into(), "default-0-3-0".into());
    mesh.rest();
    mesh.version = "0.2.0".into();
    mesh.now += Duration::from_secs(3600);
    let plan = mesh.rest();
    assert!(names_of(&plan).contains(&"default-0-3-0"));
    assert_eq!(mesh.on("default-0-3-0"), 2);
}

#[test]
fn canary_when_aborted_then_all_come_back_and_it_goes() {
    let mut mesh = Mesh::new(ControlPlaneUpdateType::Canary);
    mesh.rest();
    mesh.version = "0.2.0".into();
    mesh.strategy.canary_percent = Some(50);
    mesh.rest();
    assert_eq!(mesh.on("default-0-2-0"), 12);
    mesh.version = "0.1.0".into();
    let plan = mesh.rest();
    assert_eq!(mesh.on("default"), mesh.pods.len());
    assert_eq!(names_of(&plan), ["default", "default-0-2-0"]);
    assert!(tags(&plan, "default-0-2-0").is_empty());
    mesh.now += Duration::from_secs(300);
    assert_eq!(names_of(&mesh.round(true)), ["default"]);
}

#[test]
fn canary_when_turned_into_in_place_then_the_one_called_as_the_install_gets_all() {
    let mut mesh = Mesh::new(ControlPlaneUpdateType::Canary);
    mesh.rest();
    mesh.version = "0.2.0".into();
    mesh.strategy.promote = Some("0.2.0".into());
    mesh.rest();
    mesh.now += Duration::from_secs(300);
    assert_eq!(names_of(&mesh.rest()), ["default-0-2-0"]);
    mesh.strategy = ControlPlaneUpdateStrategy::default();
    let plan = mesh.rest();
    assert_eq!(names_of(&plan), ["default", "default-0-2-0"]);
    assert_eq!(plan.stable().version, "0.2.0");
    assert_eq!(mesh.on("default"), mesh.pods.len());
}

#[test]
fn pod_when_its_revision_is_gone_then_moves_to_the_stable_one() {
    let mut mesh = Mesh::new(ControlPlaneUpdateType::Canary);
    mesh.rest();
    mesh.pods[3].revision = "default-0-0-9".into();
    assert_eq!(mesh.plan().moves, [Move { pod: mesh.pods[3].key.clone(), to: "default".into() }]);
}

#[test]
fn canary_when_it_loses_its_replicas_then_keeps_its_pods_and_new_ones_go_to_the_stable_one() {
    let mut mesh = Mesh::new(ControlPlaneUpdateType::Canary);
    mesh.rest();
    mesh.version = "0.2.0".into();
    mesh.rest();
    mesh.standings.insert("default-0-2-0".into(), Standing { ready: 0, replicas: 2, rolled_out: false });
    let plan = mesh.round(true);
    assert_eq!(tags(&plan, "default"), ["canary", "stable"]);
    assert!(plan.moves.is_empty());
    assert_eq!(mesh.on("default-0-2-0"), 2);
}
