//! The planner of upgrades, driven by a model of the cluster through random events and failures.
//!
//! The model knows pods with two slots, a control plane that rolls out, proxies that report, and builds that are bad in different
//! ways. Time goes by seconds. An operator looks, decides, writes status and then does a part of what it decided: it may be killed
//! between any two writes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use leno_crds::meshinstall::{DataPlaneStatus, Measured, MeshInstallSpec, MeshInstallStatus};
use leno_kubeutil::watch::Key;
use leno_operator::plan::upgrade::pods::{Owner, PodStep, PodView, Serving, Slot};
use leno_operator::plan::upgrade::{ControlPlaneView, Inputs, Meter, PreflightView, decide, is_older};
use proptest::prelude::*;
use serde_json::json;

const OLD: &str = "0.1.0";
const NEW: &str = "0.2.0";
const MAX_UNAVAILABLE: usize = 2;
/// Seconds after which everything must have come to an end.
const PATIENCE: u32 = 2_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Crash,
    NeverReady,
    Errors,
    Slow,
    Rejects,
    Leaks,
    ControlPlaneCrash,
    ControlPlaneNeverReady,
}

#[derive(Clone, Debug)]
enum Event {
    OperatorAway(u32),
    PodAdded,
    PodDeleted(usize),
    ServingCrashes(usize),
    ReportsLost(usize, u32),
    ControlPlaneRestarts(u32),
    Version(bool),
    Pause(u32),
    Settings,
}

#[derive(Clone, Debug)]
struct Pod {
    key: Key,
    slots: [String; 2],
    up_at: [u32; 2],
    asked: Option<u8>,
    serving: u8,
    /// The process that serves: its release and since when.
    version: String,
    since: u32,
    /// When a hand-over that is asked for ends.
    hand_over_at: Option<u32>,
    failure: String,
    silent_until: u32,
    /// Whether it changed its release because the one that served crashed, not because it was asked to.
    crashed: bool,
    /// What its owner's template said when it was made, and the settings of the mesh then.
    stamp: String,
    settings: u32,
}

struct Model {
    now: u32,
    wanted: String,
    paused_until: u32,
    status: MeshInstallStatus,
    fault: Fault,
    control_plane: String,
    control_plane_at: u32,
    injected: String,
    pods: Vec<Pod>,
    made: usize,
    operator_at: u32,
    random: u64,
    reached: BTreeSet<Key>,
    /// The image that is tried in a pod of its own, and since when.
    preflight: Option<(String, u32)>,
    /// Whether a node has room for that.
    has_room: bool,
    /// Whether owners replace their pods, instead of a swap within them.
    restarts: bool,
    /// What the owners' templates say by now.
    stamps: BTreeMap<String, String>,
    /// Milli-cores that the mesh wants new pods to ask for.
    settings: u32,
}

fn image(version: &str) -> String {
    format!("docker.io/leno/proxy:{version}")
}

fn version_of(image: &str) -> &str {
    image.rsplit_once(':').unwrap().1
}

impl Model {
    fn new(pods: usize, fault: Fault, seed: u64) -> Self {
        let mut model = Model {
            now: 1000,
            wanted: OLD.to_owned(),
            paused_until: 0,
            status: MeshInstallStatus::default(),
            fault,
            control_plane: OLD.to_owned(),
            control_plane_at: 0,
            injected: OLD.to_owned(),
            pods: Vec::new(),
            made: 0,
            operator_at: 0,
            random: seed | 1,
            reached: BTreeSet::new(),
            preflight: None,
            has_room: true,
            restarts: false,
            stamps: BTreeMap::new(),
            settings: 10,
        };
        (0..pods).for_each(|_| model.add());
        model
    }

    fn roll(&mut self, below: u32) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        u32::try_from(self.random % u64::from(below.max(1))).unwrap()
    }

    fn bad(&self, version: &str) -> Fault {
        if version == NEW { self.fault } else { Fault::None }
    }

    fn add(&mut self) {
        let owner = if (self.made + 1).is_multiple_of(3) { "edge" } else { "shop" };
        self.add_to(owner);
    }

    fn add_to(&mut self, owner: &str) {
        self.made += 1;
        let version = self.injected.clone();
        self.pods.push(Pod {
            key: Key::new(owner, format!("pod-{:03}", self.made)),
            slots: [image(&version), image(&version)],
            up_at: [self.now + 2, self.now + 2],
            asked: None,
            serving: 0,
            version,
            since: self.now + 2,
            hand_over_at: None,
            failure: String::new(),
            silent_until: self.now + 3,
            crashed: false,
            stamp: self.stamps.get(owner).cloned().unwrap_or_default(),
            settings: self.settings,
        });
    }

    /// Whether the process that should serve a pod does so.
    fn serves(&self, pod: &Pod) -> bool {
        !matches!(self.bad(&pod.version), Fault::Crash | Fault::NeverReady)
            && pod.up_at[usize::from(pod.serving)] <= self.now
    }

    /// What controllers do of a rolling restart in a second: a pod of each owner, once the last one serves.
    fn roll_out(&mut self) {
        for (owner, stamp) in self.stamps.clone() {
            let ours = |pod: &&Pod| pod.key.namespace == owner;
            if self.pods.iter().filter(ours).any(|pod| pod.stamp == stamp && !self.serves(pod)) {
                continue;
            }
            let old = self.pods.iter().filter(ours).filter(|pod| pod.stamp != stamp);
            let Some(key) = old.min_by_key(|pod| self.serves(pod)).map(|pod| pod.key.clone()) else { continue };
            self.pods.retain(|pod| pod.key != key);
            self.add_to(&owner);
        }
    }

    fn up(&self, pod: &Pod, slot: usize) -> bool {
        pod.up_at[slot] <= self.now && self.bad(version_of(&pod.slots[slot])) != Fault::Crash
    }

    fn views(&self) -> Vec<PodView> {
        let view = |pod: &Pod| {
            let slot = |number: usize| Slot {
                image: pod.slots[number].clone(),
                up: self.up(pod, number),
                trouble: (self.bad(version_of(&pod.slots[number])) == Fault::Crash
                    && pod.up_at[number] + 10 < self.now)
                    .then(|| "it keeps ending".to_owned()),
            };
            PodView {
                key: pod.key.clone(),
                owner: Owner { kind: "Deployment".to_owned(), name: pod.key.namespace.clone() },
                slots: [slot(0), slot(1)],
                asked: pod.asked,
                serving: (pod.silent_until <= self.now && (!self.restarts || self.serves(pod))).then(|| Serving {
                    slot: pod.serving,
                    version: pod.version.clone(),
                    hand_over_failure: pod.failure.clone(),
                }),
                component: "proxy",
                differing: if pod.settings == self.settings { Vec::new() } else { vec!["spec.dataPlane.resources"] },
                ..PodView::default()
            }
        };
        self.pods.iter().map(view).collect()
    }

    fn control_plane(&self) -> ControlPlaneView {
        let fault = self.bad(&self.control_plane);
        let bad = matches!(fault, Fault::ControlPlaneCrash | Fault::ControlPlaneNeverReady);
        ControlPlaneView {
            version: Some(self.control_plane.clone()),
            is_current: true,
            rolled_out: !bad && self.control_plane_at <= self.now,
            trouble: (fault == Fault::ControlPlaneCrash && self.control_plane_at < self.now)
                .then(|| "replica a: it keeps ending".to_owned()),
        }
    }

    fn preflights(&self) -> BTreeMap<&'static str, PreflightView> {
        let view = self.preflight.iter().map(|(image, since)| {
            let (fault, age) = (self.bad(version_of(image)), self.now - since);
            let trouble = match fault {
                Fault::Crash if age > 3 => Some("it keeps ending".to_owned()),
                Fault::Rejects if age > 3 => Some("it refused configuration".to_owned()),
                Fault::NeverReady if age > 30 => Some("it does not come to serve".to_owned()),
                _ => None,
            };
            let serves = age > 5 && fault != Fault::NeverReady && trouble.is_none();
            let view = PreflightView { image: image.clone(), passed: serves || !self.has_room, trouble };
            ("proxy", if self.has_room { view } else { PreflightView { trouble: None, ..view } })
        });
        view.collect()
    }

    /// What the kubelet and the proxies do in a second.
    fn second(&mut self) {
        self.now += 1;
        self.roll_out();
        let (now, fault) = (self.now, self.fault);
        let bad = |version: &str| if version == NEW { fault } else { Fault::None };
        for pod in &mut self.pods {
            let Some(asked) = pod.asked.filter(|asked| *asked != pod.serving) else {
                pod.hand_over_at = None;
                continue;
            };
            let other = usize::from(asked);
            let version = version_of(&pod.slots[other]).to_owned();
            let stands_by = pod.up_at[other] + 3 <= now && bad(&version) != Fault::Crash;
            if !stands_by {
                pod.hand_over_at = None;
                continue;
            }
            let at = *pod.hand_over_at.get_or_insert(now + 2);
            if bad(&version) == Fault::NeverReady {
                if at + 18 <= now {
                    pod.failure = "it did not serve within 20 s".to_owned();
                }
            } else if at <= now {
                pod.serving = asked;
                pod.version = version;
                pod.since = now;
                pod.failure.clear();
                pod.crashed = false;
                pod.hand_over_at = None;
                if pod.version == NEW {
                    self.reached.insert(pod.key.clone());
                }
            }
        }
    }

    fn happen(&mut self, event: &Event) {
        let count = self.pods.len();
        match event {
            Event::OperatorAway(seconds) => self.restart_operator(*seconds),
            Event::PodAdded => self.add(),
            Event::PodDeleted(which) if count > 1 => drop(self.pods.remove(which % count)),
            Event::ServingCrashes(which) if count > 0 => {
                let now = self.now;
                let pod = &self.pods[which % count];
                let other = 1 - usize::from(pod.serving);
                let version = version_of(&pod.slots[other]).to_owned();
                let takes_over = self.up(pod, other) && self.bad(&version) != Fault::NeverReady;
                let pod = &mut self.pods[which % count];
                if takes_over {
                    pod.up_at[usize::from(pod.serving)] = now + 2;
                    pod.serving = 1 - pod.serving;
                    pod.crashed |= pod.version != version;
                    pod.version = version;
                }
                pod.since = now;
            }
            Event::ReportsLost(which, seconds) if count > 0 => {
                self.pods[which % count].silent_until = self.now + seconds;
            }
            Event::ControlPlaneRestarts(seconds) => self.control_plane_at = self.now + seconds,
            Event::Version(new) => self.wanted = if *new { NEW } else { OLD }.to_owned(),
            Event::Pause(seconds) => self.paused_until = self.now + seconds,
            Event::Settings => self.settings += 1,
            Event::PodDeleted(_) | Event::ServingCrashes(_) | Event::ReportsLost(..) => {}
        }
    }

    /// The next operator begins after some seconds, and hears from proxies a moment later.
    fn restart_operator(&mut self, seconds: u32) {
        self.operator_at = self.now + seconds;
        let heard = self.operator_at + 2;
        self.pods.iter_mut().for_each(|pod| pod.silent_until = pod.silent_until.max(heard));
    }

    /// One round of the operator, which may be killed after any of its writes.
    fn operate(&mut self) {
        if self.operator_at > self.now {
            return;
        }
        let spec: MeshInstallSpec = serde_json::from_value(json!({
            "version": self.wanted,
            "dataPlane": { "resources": { "requests": { "cpu": format!("{}m", self.settings) } }, "updateStrategy": {
                "type": if self.restarts { "Restart" } else { "InPlace" },
                "maxUnavailable": MAX_UNAVAILABLE, "paused": self.now < self.paused_until,
                "gate": { "windowSeconds": 10, "progressDeadlineSeconds": 120 },
            } },
        }))
        .unwrap();
        let pods = self.views();
        let meter = Counted { model: RefCell::new(self) };
        let outcome = {
            let model = meter.model.borrow();
            decide(&Inputs {
                spec: &spec,
                status: &model.status.clone(),
                retry: "",
                now: Timestamp::from_second(model.now.into()).unwrap(),
                leads_since: Timestamp::from_second(model.operator_at.into()).unwrap(),
                control_plane: model.control_plane(),
                preflights: &model.preflights(),
                pods: &pods,
                namespaces: &BTreeMap::new(),
                meter: &meter,
            })
        };
        let killed_after = self.roll(40);
        // As the loop does: objects, then pods, then status; what begins is in status before it is done.
        let mut writes = 0;
        let mut may_write = || {
            writes += 1;
            writes <= killed_after || killed_after > 12
        };
        if outcome.control_plane_version != self.control_plane && may_write() {
            self.control_plane.clone_from(&outcome.control_plane_version);
            self.control_plane_at = self.now + 5;
        }
        let tried = outcome.preflights.get("proxy");
        if tried != self.preflight.as_ref().map(|(image, _)| image) && may_write() {
            self.preflight = tried.map(|image| (image.clone(), self.now));
        }
        for step in &outcome.steps {
            if !may_write() {
                return;
            }
            self.write(step);
        }
        if !may_write() {
            return;
        }
        self.injected.clone_from(&outcome.injected_version);
        let injected_version = Some(outcome.injected_version);
        self.status.data_plane = Some(DataPlaneStatus { injected_version, ..DataPlaneStatus::default() });
        self.status.upgrade = outcome.upgrade;
        self.status.last_upgrade = outcome.last_upgrade;
    }

    fn write(&mut self, step: &PodStep) {
        let now = self.now;
        if let PodStep::Restart { namespace, owner, stamp } = step {
            assert_eq!((owner.kind.as_str(), self.restarts), ("Deployment", true));
            self.stamps.insert(namespace.clone(), stamp.clone());
            return;
        }
        let (PodStep::SetImage { pod: key, .. } | PodStep::Serve { pod: key, .. }) = step else { panic!("{step:?}") };
        let Some(pod) = self.pods.iter_mut().find(|pod| pod.key == *key) else { return };
        match step {
            PodStep::SetImage { slot, image, .. } => {
                assert_ne!(pod.serving, *slot, "{key}: the image of the slot that serves is never changed");
                pod.slots[usize::from(*slot)].clone_from(image);
                pod.up_at[usize::from(*slot)] = now + 4;
            }
            PodStep::Serve { slot, .. } => {
                pod.asked = Some(*slot);
                pod.failure.clear();
            }
            PodStep::Restart { .. } => {}
        }
    }

    fn check(&self) {
        for pod in &self.pods {
            assert!(
                !is_older(&self.control_plane, &pod.version),
                "second {}: {} runs {}, newer than the control plane's {}; {:?}; {:?}",
                self.now,
                pod.key,
                pod.version,
                self.control_plane,
                pod,
                self.status.upgrade,
            );
        }
        let Some(upgrade) = &self.status.upgrade else { return };
        // How many pods of an owner are out at a time is the owner's own rule.
        if upgrade.step == "DataPlane" && !self.restarts {
            let on_the_way = self.pods.iter().filter(|pod| {
                pod.slots.contains(&image(&upgrade.to)) && pod.version != upgrade.to && pod.slots[0] != pod.slots[1]
            });
            let names: Vec<String> = on_the_way.map(|pod| pod.key.to_string()).collect();
            // Those that crashed back to the old release were on the way before.
            assert!(names.len() <= MAX_UNAVAILABLE + self.crashed(), "{names:?} are on the way at a time");
        }
    }

    fn crashed(&self) -> usize {
        self.pods.iter().filter(|pod| pod.crashed).count()
    }

    fn is_at_rest_on(&self, version: &str) -> bool {
        self.status.upgrade.is_none()
            && self.control_plane == version
            && self.pods.iter().all(|pod| pod.version == version && pod.slots == [image(version), image(version)])
            && (!self.restarts || self.rejected() || self.pods.iter().all(|pod| pod.settings == self.settings))
    }

    fn rejected(&self) -> bool {
        let last = self.status.last_upgrade.as_ref();
        last.is_some_and(|last| last.result == "RolledBack" && last.to == self.wanted)
    }
}

/// Counts of proxies, from what their release does wrong.
struct Counted<'a> {
    model: RefCell<&'a mut Model>,
}

impl Counted<'_> {
    fn sum(&self, pods: &BTreeSet<Key>, wanted: Option<&str>, since: u32) -> Measured {
        let model = self.model.borrow();
        let mut sum = Measured { p90_ms: 5, mean_ms: 3, ..Measured::default() };
        for pod in model.pods.iter().filter(|pod| pods.contains(&pod.key)) {
            if wanted.is_some_and(|wanted| wanted != pod.version) {
                continue;
            }
            let served = i64::from(model.now.saturating_sub(pod.since.max(since))) * 20;
            sum.requests += served;
            sum.resident_mebibytes = sum.resident_mebibytes.max(14);
            match model.bad(&pod.version) {
                Fault::Errors => sum.failures += served / 10,
                Fault::Slow => (sum.p90_ms, sum.mean_ms) = (250, 205),
                Fault::Rejects => sum.rejected += 1,
                Fault::Leaks => sum.resident_mebibytes = 14 + served,
                _ => {}
            }
        }
        sum
    }
}

impl Meter for Counted<'_> {
    fn lately(&self, pods: &BTreeSet<Key>) -> Measured {
        let now = self.model.borrow().now;
        self.sum(pods, None, now.saturating_sub(60))
    }

    fn since(&self, pods: &BTreeSet<Key>, then: Timestamp) -> Measured {
        self.sum(pods, None, u32::try_from(then.as_second()).unwrap())
    }

    fn of_release(&self, pods: &BTreeSet<Key>, version: &str) -> Measured {
        self.sum(pods, Some(version), 0)
    }
}

/// Lets the model run until nothing is under way any more.
fn come_to_rest(model: &mut Model) {
    for _ in 0..PATIENCE {
        model.second();
        model.operate();
        model.check();
        let quiet = model.status.upgrade.is_none() && model.operator_at <= model.now && model.paused_until <= model.now;
        if quiet && (model.is_at_rest_on(OLD) || model.is_at_rest_on(NEW)) && settled(model) {
            return;
        }
    }
    panic!(
        "no end: wanted {}, control plane {}, {:#?}, {:#?}",
        model.wanted, model.control_plane, model.status, model.pods
    );
}

/// Whether the mesh is where it should end.
fn settled(model: &Model) -> bool {
    let last = model.status.last_upgrade.as_ref();
    let goal = last.filter(|_| model.rejected()).map_or(model.wanted.as_str(), |last| last.from.as_str());
    model.is_at_rest_on(goal)
}

fn upgrade(pods: usize, fault: Fault, has_room: bool) -> Model {
    let mut model = Model::new(pods, fault, 0);
    model.has_room = has_room;
    for _ in 0..30 {
        model.second();
        model.operate();
    }
    model.wanted = NEW.to_owned();
    model.random = 1;
    come_to_rest(&mut model);
    model
}

#[test]
fn upgrade_when_the_release_is_good_then_ends_on_it_and_returns() {
    let mut model = upgrade(30, Fault::None, true);
    assert!(model.is_at_rest_on(NEW));
    assert_eq!(model.status.last_upgrade.as_ref().unwrap().result, "Completed");
    model.wanted = OLD.to_owned();
    come_to_rest(&mut model);
    assert!(model.is_at_rest_on(OLD));
}

#[test]
fn upgrade_when_the_release_is_bad_then_returns_before_or_after_the_first_wave() {
    // With room for a pod of its own, and without: then it is found out in the first pod.
    for (fault, tried, untried) in [
        (Fault::Crash, "PreflightFailed", "SidecarFailed"),
        (Fault::NeverReady, "PreflightFailed", "HandOverFailed"),
        (Fault::Rejects, "PreflightFailed", "ConfigurationRejected"),
        (Fault::Errors, "Failures", "Failures"),
        (Fault::Slow, "Latency", "Latency"),
        (Fault::Leaks, "Memory", "Memory"),
        (Fault::ControlPlaneCrash, "ControlPlaneFailed", "ControlPlaneFailed"),
        (Fault::ControlPlaneNeverReady, "ProgressDeadline", "ProgressDeadline"),
    ] {
        for (has_room, reason) in [(true, tried), (false, untried)] {
            let model = upgrade(30, fault, has_room);
            let last = model.status.last_upgrade.as_ref().unwrap();
            assert_eq!((last.result.as_str(), last.reason.as_str()), ("RolledBack", reason), "{fault:?} {has_room}");
            assert!(model.is_at_rest_on(OLD), "{fault:?}");
            assert!(model.preflight.is_none(), "{fault:?}: what was tried goes");
            let most = usize::from(tried == untried || !has_room);
            assert!(model.reached.len() <= most, "{fault:?} reached {:?}", model.reached);
        }
    }
}

#[test]
fn upgrade_when_owners_restart_then_ends_on_it_with_pods_of_its_own_and_returns() {
    let mut model = Model::new(12, Fault::None, 0);
    model.restarts = true;
    for version in [NEW, OLD] {
        let before: BTreeSet<Key> = model.pods.iter().map(|pod| pod.key.clone()).collect();
        model.wanted = version.to_owned();
        come_to_rest(&mut model);
        assert!(model.is_at_rest_on(version) && model.pods.iter().all(|pod| !before.contains(&pod.key)));
        assert_eq!(model.pods.len(), 12);
    }
}

#[test]
fn settings_when_changed_then_pods_are_replaced_by_their_owners_where_these_restart_and_stay_where_not() {
    for restarts in [true, false] {
        let mut model = Model::new(12, Fault::None, 0);
        model.restarts = restarts;
        (0..10).for_each(|_| model.second());
        model.settings = 50;
        let before: BTreeSet<Key> = model.pods.iter().map(|pod| pod.key.clone()).collect();
        come_to_rest(&mut model);
        let kept = model.pods.iter().filter(|pod| before.contains(&pod.key)).count();
        assert_eq!(kept, if restarts { 0 } else { 12 });
    }
}

#[test]
fn upgrade_when_paused_for_longer_than_its_deadline_then_goes_on() {
    for restarts in [false, true] {
        for after in 1..60 {
            let mut model = Model::new(12, Fault::None, 1);
            model.restarts = restarts;
            model.wanted = NEW.to_owned();
            for second in 0..PATIENCE {
                if second == after {
                    model.happen(&Event::Pause(300));
                }
                model.second();
                model.operate();
                model.check();
            }
            assert!(model.is_at_rest_on(NEW), "paused after {after} s: {:?}", model.status.last_upgrade);
        }
    }
}

#[test]
fn upgrade_when_an_operator_has_just_begun_and_hears_from_nobody_then_leaves_nobody_behind() {
    for restarts in [false, true] {
        for after in 1..80 {
            let mut model = Model::new(6, Fault::Slow, 1);
            model.restarts = restarts;
            model.wanted = NEW.to_owned();
            (0..after).for_each(|_| {
                model.second();
                model.operate();
            });
            model.restart_operator(20);
            come_to_rest(&mut model);
            let last = model.status.last_upgrade.as_ref().unwrap();
            assert_eq!((last.result.as_str(), last.reason.as_str()), ("RolledBack", "Latency"), "away after {after} s");
        }
    }
}

#[test]
fn upgrade_when_no_operator_lives_for_long_then_ends_all_the_same() {
    let mut model = Model::new(12, Fault::None, 0);
    (0..30).for_each(|_| {
        model.second();
        model.operate();
    });
    model.wanted = NEW.to_owned();
    for second in 0..PATIENCE {
        model.second();
        model.operate();
        model.check();
        if model.is_at_rest_on(NEW) {
            return;
        }
        if second % 5 == 0 {
            model.restart_operator(1);
        }
    }
    panic!("no end: {:#?}", model.status);
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (1_u32..60).prop_map(Event::OperatorAway),
        Just(Event::PodAdded),
        any::<usize>().prop_map(Event::PodDeleted),
        any::<usize>().prop_map(Event::ServingCrashes),
        (any::<usize>(), 1_u32..40).prop_map(|(which, seconds)| Event::ReportsLost(which, seconds)),
        (1_u32..30).prop_map(Event::ControlPlaneRestarts),
        any::<bool>().prop_map(Event::Version),
        (1_u32..60).prop_map(Event::Pause),
        Just(Event::Settings),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        4 => Just(Fault::None),
        1 => Just(Fault::Crash),
        1 => Just(Fault::NeverReady),
        1 => Just(Fault::Errors),
        1 => Just(Fault::Slow),
        1 => Just(Fault::Rejects),
        1 => Just(Fault::Leaks),
        1 => Just(Fault::ControlPlaneCrash),
        1 => Just(Fault::ControlPlaneNeverReady),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Never more than `maxUnavailable` on the way, never a sidecar newer than its control plane, never the image of a slot that
    /// serves changed; and in the end all on one release, which is the wanted one unless that was rolled back.
    #[test]
    fn upgrade_when_anything_happens_then_keeps_its_bounds_and_comes_to_an_end(
        pods in 1_usize..25,
        fault in fault(),
        seed in any::<u64>(),
        has_room in any::<bool>(),
        restarts in any::<bool>(),
        events in prop::collection::vec((1_u32..40, event()), 0..25),
    ) {
        let mut model = Model::new(pods, fault, seed);
        (model.has_room, model.restarts) = (has_room, restarts);
        for _ in 0..10 {
            model.second();
            model.operate();
        }
        model.wanted = NEW.to_owned();
        for (after, event) in &events {
            for _ in 0..*after {
                model.second();
                model.operate();
                model.check();
            }
            model.happen(event);
        }
        come_to_rest(&mut model);
        prop_assert!(fault == Fault::None || model.is_at_rest_on(OLD));
        let last = model.status.last_upgrade.as_ref();
        prop_assert!(fault != Fault::None || last.is_none_or(|last| last.result != "RolledBack"), "{:?}", last);
    }
}
