//! The steps of a change of release that is under way.

mod sidecars;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use leno_crds::meshinstall::{Measured, PastUpgrade, UpdateStrategy, UpdateType, UpgradeStatus, WaveStatus};
use leno_kubeutil::conditions::Wanted;
use leno_kubeutil::watch::Key;

use super::gate::{Verdict, judge, worse};
use super::pods::{PodStep, PodView, Progress};
use super::{
    CONTROL_PLANE, DATA_PLANE, FINISHING, Inputs, Outcome, ROLLING_BACK, SOON, UPGRADING, WINDOW, image, is_older,
    movable, rest, rolled_back, when,
};
use crate::plan::settings;

/// What a paused upgrade waits for.
const RESUMED: &str = "spec.dataPlane.updateStrategy.paused to be false";

/// The next step of a change that is under way.
pub(super) fn advance(inputs: &Inputs<'_>, stored: &UpgradeStatus) -> Outcome {
    let wanted = inputs.spec.version.as_str();
    let superseded = stored.step != ROLLING_BACK && wanted != stored.to;
    if superseded && stored.from == stored.to {
        // Nothing to go back to: plan anew from what is there.
        return rest(inputs);
    }
    let mut walk = Walk::new(inputs, stored);
    if superseded {
        walk.turn_back("Superseded", format!("spec.version was changed to {wanted}"));
        return walk.outcome();
    }
    match stored.step.as_str() {
        CONTROL_PLANE => walk.control_plane(),
        DATA_PLANE => walk.data_plane(),
        FINISHING => walk.finishing(),
        _ => walk.rolling_back(),
    }
    walk.outcome()
}

/// A count as status has it.
fn number_of(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

struct Walk<'a> {
    inputs: &'a Inputs<'a>,
    strategy: UpdateStrategy,
    /// As it is written.
    stored: &'a UpgradeStatus,
    /// As it is to be written.
    next: UpgradeStatus,
    /// How it ended.
    ended: Option<PastUpgrade>,
    preflights: BTreeMap<&'static str, String>,
    steps: Vec<PodStep>,
    reason: &'static str,
    wake: Duration,
}

impl<'a> Walk<'a> {
    fn new(inputs: &'a Inputs<'a>, stored: &'a UpgradeStatus) -> Self {
        let mut next = stored.clone();
        let serving = |pod: &&PodView| pod.serving.as_ref().is_some_and(|serving| serving.version == stored.to);
        let reached = number_of(inputs.pods.iter().filter(serving).count());
        next.reached = if stored.from == stored.to { 0 } else { next.reached.max(reached) };
        if next.waiting_for == RESUMED && !inputs.spec.update_strategy().paused() {
            next.since = Some(Time(inputs.now));
        }
        next.waiting_for.clear();
        next.next.clear();
        Walk {
            inputs,
            strategy: inputs.spec.update_strategy(),
            stored,
            next,
            ended: None,
            preflights: BTreeMap::new(),
            steps: Vec::new(),
            reason: "Begun",
            wake: SOON,
        }
    }

    fn is_down(&self) -> bool {
        is_older(&self.stored.to, &self.stored.from)
    }

    /// Seconds since a time in status.
    fn elapsed(&self, since: Option<&Time>) -> i64 {
        since.map_or(0, |since| self.inputs.now.as_second() - since.0.as_second())
    }

    /// Seconds without progress, as far as there was an operator that could have made any, and nobody who paused it.
    fn idle(&self) -> i64 {
        let led = self.inputs.now.as_second() - self.inputs.leads_since.as_second();
        self.elapsed(self.next.since.as_ref()).min(led)
    }

    /// Whether something new may begin now; says why not.
    fn may_begin(&mut self) -> bool {
        if self.strategy.paused() {
            self.reason = "Paused";
            self.next.waiting_for = RESUMED.to_owned();
            return false;
        }
        if !when::open(&self.strategy.maintenance_windows, self.inputs.now) {
            self.reason = "OutsideMaintenanceWindow";
            self.next.waiting_for = "a maintenance window to open".to_owned();
            self.wake = WINDOW;
            return false;
        }
        true
    }

    fn step(&mut self, step: &str) {
        self.next.step = step.to_owned();
        self.next.since = Some(Time(self.inputs.now));
        self.next.wave = None;
    }

    fn turn_back(&mut self, reason: &str, message: String) {
        self.steps.clear();
        self.preflights.clear();
        self.reason = "RollingBack";
        self.next.step = ROLLING_BACK.to_owned();
        self.next.since = Some(Time(self.inputs.now));
        self.next.reason = reason.to_owned();
        self.next.failure = message;
        self.next.waiting_for = format!("what was moved to return to release {}", self.stored.from);
    }

    fn end(&mut self, result: &str) {
        self.ended = Some(PastUpgrade {
            from: self.stored.from.clone(),
            to: self.stored.to.clone(),
            result: result.to_owned(),
            reason: self.next.reason.clone(),
            message: self.next.failure.clone(),
            reached: self.next.reached,
            seconds: self.elapsed(self.stored.started_at.as_ref()),
            rejected: result == "RolledBack",
            retry: self.inputs.retry.to_owned(),
        });
    }

    /// All pods that may be moved and whose proxies report, or that the release has reached already.
    fn pods(&self) -> Vec<&'a PodView> {
        let stored = self.stored;
        let inputs = self.inputs;
        movable(inputs).filter(|pod| pod.serving.is_some() || pod.has(&image(inputs, pod, &stored.to))).collect()
    }

    fn toward(&self, pod: &PodView, version: &str) -> Progress {
        let image = image(self.inputs, pod, version);
        match self.strategy.kind() {
            UpdateType::Restart => {
                let started = self.stored.started_at.as_ref().map_or(0, |at| at.0.as_second());
                // What is changed on the way is another restart.
                let settings = settings::fingerprint(self.inputs.spec);
                match pod.toward_by_restart(version, &image, &format!("{version}-{started}-{settings}")) {
                    // The webhook reads in status what new pods get.
                    Progress::Untouched(_) if self.injected() != Some(version) => {
                        Progress::Waiting(format!("new pods to get release {version}"))
                    }
                    progress => progress,
                }
            }
            UpdateType::InPlace | UpdateType::OnRestart => pod.toward(version, &image),
        }
    }

    /// The release that new pods get, as last written.
    fn injected(&self) -> Option<&str> {
        self.inputs.status.data_plane.as_ref()?.injected_version.as_deref()
    }

    fn begin_wave(&mut self, number: i32, of: usize, pods: usize, old: Measured) {
        self.next.since = Some(Time(self.inputs.now));
        self.next.wave = Some(WaveStatus {
            number,
            of: number_of(of),
            summary: format!("{number}/{of}"),
            pods: number_of(pods),
            old: Some(old),
            ..WaveStatus::default()
        });
        self.next.waiting_for = "the wave to begin".to_owned();
    }

    fn control_plane(&mut self) {
        let (inputs, to) = (self.inputs, self.stored.to.as_str());
        self.reason = "ControlPlane";
        let all: BTreeSet<Key> = inputs.pods.iter().map(|pod| pod.key.clone()).collect();
        let Some(wave) = &self.stored.wave else {
            if self.may_begin() {
                self.begin_wave(0, 0, all.len(), inputs.meter.lately(&all));
                self.next.waiting_for = format!("the control plane to run release {to}");
            }
            return;
        };
        let there = inputs.control_plane.version.as_deref() == Some(to);
        if there && inputs.control_plane.rolled_out {
            let Some(since) = &wave.gate_since else {
                self.gate_begins();
                return;
            };
            let new = inputs.meter.since(&all, since.0);
            if self.gate(wave, Measured::default(), new, self.looked(wave)) {
                if self.is_down() { self.end("Completed") } else { self.step(DATA_PLANE) }
            }
            return;
        }
        let deadline = self.strategy.gate().progress_deadline_seconds();
        match inputs.control_plane.trouble.clone().filter(|_| there) {
            Some(trouble) => self.turn_back("ControlPlaneFailed", trouble),
            None if self.idle() > deadline => self.turn_back(
                "ProgressDeadline",
                format!("the control plane did not come to run release {to} within {deadline} s"),
            ),
            None => {
                self.next.waiting_for = format!("all replicas of the control plane to run release {to} and serve");
                self.next.next = "the gate, then the sidecars".to_owned();
            }
        }
    }

    fn gate_begins(&mut self) {
        self.reason = "Gate";
        if let Some(wave) = &mut self.next.wave {
            wave.gate_since = Some(Time(self.inputs.now));
            wave.looked_seconds = 0;
            wave.looked_at = Some(Time(self.inputs.now));
        }
        self.next.waiting_for = "the gate".to_owned();
    }

    /// Seconds for which operators have looked at a wave since its gate began: time in which there was none does not count.
    fn looked(&self, wave: &WaveStatus) -> i64 {
        let Some(since) = wave.looked_at.as_ref().or(wave.gate_since.as_ref()) else { return 0 };
        let now = self.inputs.now.as_second();
        wave.looked_seconds + (now - since.0.as_second().max(self.inputs.leads_since.as_second())).max(0)
    }

    /// What the pods that are not moved do meanwhile; nothing when that is too little to compare with.
    fn at_the_same_time(&self, wave: &WaveStatus, pods: &[&PodView], moved: &BTreeSet<Key>) -> Measured {
        let others = pods.iter().map(|pod| pod.key.clone()).filter(|key| !moved.contains(key)).collect();
        let since = wave.gate_since.as_ref().or(self.stored.since.as_ref()).map_or(self.inputs.now, |since| since.0);
        let measured = self.inputs.meter.since(&others, since);
        if measured.requests < self.strategy.gate().min_requests() { Measured::default() } else { measured }
    }

    /// Whether the gate lets the upgrade go on; says what it waits for, or turns back. What the old release does `meanwhile` counts
    /// where it is worse than what it did before: a node that is busy slows both down. An operator that has just begun does not know
    /// that yet: it compares no times, and is waited for, but not for more than another window, since it may be ended all the time.
    fn gate(&mut self, wave: &WaveStatus, meanwhile: Measured, new: Measured, looked: i64) -> bool {
        let old = worse(wave.old.clone().unwrap_or_default(), &meanwhile);
        let gate = self.strategy.gate();
        let led = self.inputs.now.as_second() - self.inputs.leads_since.as_second();
        let times = meanwhile.requests > 0 || led * 2 >= gate.window_seconds();
        let verdict = judge(&gate, &old, &new, looked, times);
        if let Some(wave) = &mut self.next.wave {
            wave.new = Some(new);
            if wave.gate_since.is_some() {
                wave.looked_seconds = looked.max(0);
                wave.looked_at = Some(Time(self.inputs.now));
            }
        }
        match verdict {
            Verdict::Pass if !times && looked < 2 * gate.window_seconds() => {
                self.reason = "Gate";
                self.next.waiting_for = "the operator, which has just begun, to know how long requests take".to_owned();
                false
            }
            Verdict::Pass => true,
            Verdict::Wait(what) => {
                self.reason = "Gate";
                self.next.waiting_for = what;
                false
            }
            Verdict::Fail { reason, message } => {
                self.turn_back(reason, message);
                false
            }
        }
    }

    fn rolling_back(&mut self) {
        self.reason = "RollingBack";
        let from = self.stored.from.clone();
        let control_plane = &self.inputs.control_plane;
        let control_plane_there = control_plane.version.as_deref() == Some(from.as_str()) && control_plane.rolled_out;
        let mut left = 0;
        let mut waiting = None;
        if from != self.stored.to {
            let may_move = !self.is_down() || control_plane_there;
            for pod in self.inputs.pods.iter().filter(|pod| pod.has(&image(self.inputs, pod, &self.stored.to))) {
                left += 1;
                match self.toward(pod, &from) {
                    Progress::Untouched(step) | Progress::Act(step) | Progress::Moved(step)
                        if may_move && !self.steps.contains(&step) =>
                    {
                        self.steps.push(step);
                    }
                    Progress::Waiting(what) => drop(waiting.get_or_insert(format!("pod {}: {what}", pod.key))),
                    Progress::Failed { message, .. } => drop(waiting.get_or_insert(message)),
                    _ => {}
                }
            }
        }
        // Where the way back does not come to its end, what the user wants by now is planned anew from what is there.
        let superseded = self.stored.reason == "Superseded";
        let wants_another = superseded || self.inputs.spec.version != self.stored.to;
        let late = self.idle() > self.strategy.gate().progress_deadline_seconds();
        if (left == 0 && (control_plane_there || from == self.stored.to)) || (late && wants_another) {
            self.end(if superseded { "Superseded" } else { "RolledBack" });
            return;
        }
        self.next.waiting_for = match (left, waiting) {
            (0, _) => format!("the control plane to run release {from} again"),
            (_, Some(what)) => format!("{left} pods to return to release {from}; {what}"),
            (_, None) => format!("{left} pods to return to release {from}"),
        };
    }

    fn control_plane_version(&self) -> String {
        let (stored, view) = (self.stored, &self.inputs.control_plane);
        let present = view.version.as_deref().unwrap_or(&stored.to);
        let carries_new = |pod: &PodView| pod.has(&image(self.inputs, pod, &stored.to));
        let version = match stored.step.as_str() {
            CONTROL_PLANE if stored.wave.is_none() => present,
            CONTROL_PLANE => &stored.to,
            ROLLING_BACK if self.is_down() => &stored.from,
            // Sidecars first: they are never newer than what programs them.
            ROLLING_BACK
                if present == stored.to && stored.from != stored.to && self.inputs.pods.iter().any(carries_new) =>
            {
                &stored.to
            }
            ROLLING_BACK => &stored.from,
            _ if self.is_down() => &stored.from,
            _ => &stored.to,
        };
        version.to_owned()
    }

    fn injected_version(&self) -> String {
        let stored = self.stored;
        let version = match (stored.step.as_str(), self.strategy.kind()) {
            (CONTROL_PLANE, _) if self.is_down() => &stored.to,
            // Not back while owners go on replacing pods.
            (DATA_PLANE, UpdateType::Restart) if stored.wave.is_some() || stored.reached > 0 => &stored.to,
            (FINISHING, _) => &stored.to,
            _ => &stored.from,
        };
        version.clone()
    }

    fn outcome(self) -> Outcome {
        let (control_plane_version, injected_version) = (self.control_plane_version(), self.injected_version());
        let (from, to) = (&self.stored.from, &self.stored.to);
        if let Some(ended) = self.ended {
            let condition = if ended.result == "RolledBack" {
                Wanted::no(UPGRADING, "RolledBack", rolled_back(&ended))
            } else if ended.result == "Superseded" {
                Wanted::no(UPGRADING, "Superseded", format!("release {to} was given up: {}", ended.message))
            } else {
                Wanted::no(UPGRADING, "UpToDate", format!("the mesh is on release {to}"))
            };
            return Outcome {
                control_plane_version,
                injected_version,
                upgrade: None,
                last_upgrade: Some(ended),
                preflights: BTreeMap::new(),
                steps: Vec::new(),
                versions: Vec::new(),
                condition,
                wake: Some(SOON),
            };
        }
        let wave = match &self.next.wave {
            Some(wave) if wave.number > 0 => {
                format!(", wave {} of {}: {} of {} pods moved", wave.number, wave.of, wave.moved, wave.pods)
            }
            _ => String::new(),
        };
        let why = if self.next.failure.is_empty() {
            String::new()
        } else {
            format!("; it goes back to {from} ({}): {}", self.next.reason, self.next.failure)
        };
        let waiting = if self.next.waiting_for.is_empty() {
            String::new()
        } else {
            format!("; waiting for {}", self.next.waiting_for)
        };
        let after = if self.next.next.is_empty() { String::new() } else { format!("; then {}", self.next.next) };
        let message = format!("from release {from} to {to}{wave}{why}{waiting}{after}");
        // What begins is written first and done in the next round.
        let written = self.next.step == self.stored.step
            && self.next.wave.as_ref().map(|wave| wave.number) == self.stored.wave.as_ref().map(|wave| wave.number);
        Outcome {
            control_plane_version,
            injected_version,
            condition: Wanted::yes(UPGRADING, self.reason, message),
            upgrade: Some(self.next),
            last_upgrade: self.inputs.status.last_upgrade.clone(),
            preflights: self.preflights,
            steps: if written { self.steps } else { Vec::new() },
            versions: Vec::new(),
            wake: Some(self.wake),
        }
    }
}
