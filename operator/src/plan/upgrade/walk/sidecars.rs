//! The steps in which sidecars are moved: what is tried first, the waves, and the idle slots at the end.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use leno_core::service::Engine;
use leno_crds::meshinstall::UpdateType;
use leno_kubeutil::watch::Key;

use super::super::pods::{PodView, Progress};
use super::super::{CONTROL_PLANE, DATA_PLANE, FINISHING, PreflightView, ROLLING_BACK, image, movable, waves};
use super::{Walk, number_of};

/// Seconds for which sidecars that report nothing are waited for before an upgrade goes on without them.
const HEARD: i64 = 60;

impl Walk<'_> {
    /// Moves the pods of one wave after the other.
    pub(super) fn data_plane(&mut self) {
        self.reason = "MovingPods";
        if self.stored.wave.is_none() && !(self.may_begin() && self.preflight()) {
            return;
        }
        if self.strategy.kind() == UpdateType::OnRestart {
            self.step(FINISHING);
            return;
        }
        let (inputs, to) = (self.inputs, self.stored.to.clone());
        let pods = self.pods();
        let begun: BTreeSet<Key> =
            pods.iter().filter(|pod| pod.has(&image(inputs, pod, &to))).map(|pod| pod.key.clone()).collect();
        let sets = waves::waves(&self.strategy, &pods, inputs.namespaces, &begun);
        let number = self.stored.wave.as_ref().map_or(0, |wave| wave.number);
        let set = usize::try_from(number).ok().and_then(|number| sets.get(number.checked_sub(1)?));
        let (Some(wave), Some(set)) = (&self.stored.wave, set) else {
            self.next_wave(&pods, &sets, number);
            return;
        };
        let mut moved = BTreeSet::new();
        let (mut first, mut waiting, mut on_the_way, mut silent) = (Vec::new(), Vec::new(), 0, 0);
        for pod in &pods {
            match self.toward(pod, &to) {
                Progress::Untouched(step) => {
                    if set.contains(&pod.key) {
                        first.push((pod.key.clone(), step));
                    }
                }
                Progress::Act(step) => {
                    self.steps.push(step);
                    on_the_way += 1;
                }
                Progress::Waiting(what) => {
                    waiting.push(format!("pod {}: {what}", pod.key));
                    on_the_way += 1;
                    silent += usize::from(pod.serving.is_none() && set.contains(&pod.key));
                }
                Progress::Moved(_) | Progress::Done => drop(moved.insert(pod.key.clone())),
                Progress::Failed { reason, message } => return self.turn_back(reason, message),
            }
        }
        let there = set.iter().filter(|key| moved.contains(*key)).count();
        if let Some(wave) = &mut self.next.wave {
            if wave.moved != number_of(there) {
                self.next.since = Some(Time(inputs.now));
            }
            wave.moved = number_of(there);
            wave.pods = number_of(set.len());
        }
        if there > 0 {
            // What is bad by much must not wait for the rest of the wave.
            let looked = if there == set.len() { self.looked(wave) } else { -1 };
            let new = inputs.meter.of_release(&moved, &to);
            let passed = self.gate(wave, self.at_the_same_time(wave, &pods, &moved), new, looked);
            if self.next.step == ROLLING_BACK {
                return;
            }
            if there == set.len() {
                match (&wave.gate_since, passed) {
                    (None, _) => self.gate_begins(),
                    (Some(_), true) => self.next_wave(&pods, &sets, number),
                    (Some(_), false) => self.next.next = self.after(number, &sets),
                }
                return;
            }
        }
        // Who went back since the gate began is moved again, and looked at from the beginning. Of whom nothing is heard for a moment,
        // nothing is known: an operator that has just begun hears from nobody yet.
        if there + silent < set.len()
            && let Some(wave) = &mut self.next.wave
        {
            wave.gate_since = None;
        }
        self.reason = "MovingPods";
        self.next.next = "the gate".to_owned();
        let budget = self.strategy.max_unavailable(pods.len()).saturating_sub(on_the_way);
        let idle = on_the_way == 0 && !first.is_empty();
        if self.strategy.paused() {
            // What is on the way arrives; nothing else begins.
            self.may_begin();
            return;
        }
        if !inputs.control_plane.is_current || !inputs.control_plane.rolled_out {
            self.next.waiting_for = "all replicas of the control plane to serve".to_owned();
            return;
        }
        // Workloads are restarted as a whole: one write for all of its pods.
        let mut begun = BTreeSet::new();
        for (key, step) in first {
            if begun.len() >= budget {
                break;
            }
            if !self.steps.contains(&step) {
                self.steps.push(step);
            }
            begun.insert(key);
        }
        let deadline = self.strategy.gate().progress_deadline_seconds();
        if self.idle() > deadline {
            let what = waiting.first().cloned().unwrap_or_else(|| "pods that were not reached".to_owned());
            self.turn_back(
                "ProgressDeadline",
                format!("{there} of {} pods are moved, and none was in the last {deadline} s; {what}", set.len()),
            );
            return;
        }
        self.next.waiting_for = match waiting.first() {
            Some(what) => what.clone(),
            None if idle => "the first pods to be moved".to_owned(),
            None => "pods to be moved".to_owned(),
        };
    }

    /// Whether the release's sidecars did well in pods of their own. An image that cannot be had, or ends at its start, would
    /// make each pod unready that gets it.
    fn preflight(&mut self) -> bool {
        let (inputs, to) = (self.inputs, &self.stored.to);
        let own = Engine::from(inputs.spec.engine()).component();
        let components: BTreeSet<&'static str> = movable(inputs).map(|pod| pod.component).chain([own]).collect();
        let mut waits = None;
        for component in components {
            let image = inputs.spec.image_of(component, to);
            match inputs.preflights.get(component).filter(|view| view.image == image) {
                Some(view) if view.passed => {}
                Some(PreflightView { trouble: Some(trouble), .. }) => {
                    self.turn_back("PreflightFailed", trouble.clone());
                    return false;
                }
                _ => waits = Some(format!("a pod of its own to serve with image {image}")),
            }
            self.preflights.insert(component, image);
        }
        let Some(what) = waits else { return true };
        let deadline = self.strategy.gate().progress_deadline_seconds();
        if self.idle() > deadline {
            self.turn_back("ProgressDeadline", format!("waited for {what} for {deadline} s"));
            return false;
        }
        self.reason = "Preflight";
        self.next.waiting_for = what;
        self.next.next = "the first wave".to_owned();
        false
    }

    fn after(&self, number: i32, sets: &[BTreeSet<Key>]) -> String {
        let next = usize::try_from(number).unwrap_or(0);
        match sets.get(next) {
            Some(set) => format!("wave {} of {}, {} pods", next + 1, sets.len(), set.len()),
            None => "the idle slots".to_owned(),
        }
    }

    fn next_wave(&mut self, pods: &[&PodView], sets: &[BTreeSet<Key>], number: i32) {
        let Some(set) = usize::try_from(number).ok().and_then(|number| sets.get(number)) else {
            let silent = movable(self.inputs).count() - pods.len();
            if silent > 0 && self.idle() < HEARD {
                // An operator that has just begun hears from nobody yet: that is no reason to leave them behind.
                self.next.waiting_for = format!("reports of {silent} sidecars");
                return;
            }
            self.step(FINISHING);
            return;
        };
        if !self.may_begin() {
            return;
        }
        let to = &self.stored.to;
        let old = |pod: &&&PodView| pod.serving.as_ref().is_some_and(|serving| serving.version != *to);
        let all: BTreeSet<Key> = pods.iter().filter(old).map(|pod| pod.key.clone()).collect();
        let meter = self.inputs.meter;
        // The pods themselves, if they had enough to do; else all that are not moved; else all as they were at the beginning.
        let own = meter.lately(&set.intersection(&all).cloned().collect());
        let choices = [own, meter.lately(&all), self.stored.before.clone().unwrap_or_default()];
        let enough = self.strategy.gate().min_requests();
        let old =
            choices.iter().find(|choice| choice.requests >= enough).or(choices.last()).cloned().unwrap_or_default();
        self.begin_wave(number + 1, sets.len(), set.len(), old);
    }

    /// Gives the idle slots what serves, once nothing can turn back any more.
    pub(super) fn finishing(&mut self) {
        self.reason = "Finishing";
        let to = self.stored.to.clone();
        let mut left = 0;
        if self.strategy.kind() != UpdateType::OnRestart {
            for pod in self.pods() {
                match self.toward(pod, &to) {
                    Progress::Moved(step) => {
                        self.steps.push(step);
                        left += 1;
                    }
                    Progress::Done => {}
                    // Something else is wanted of it by now.
                    Progress::Untouched(_) => {
                        self.step(DATA_PLANE);
                        return;
                    }
                    // It went back to the old release by itself, or came with it.
                    _ if pod.serving.as_ref().is_some_and(|serving| serving.version != to) => {
                        self.step(DATA_PLANE);
                        return;
                    }
                    _ => left += 1,
                }
            }
        }
        let deadline = self.strategy.gate().progress_deadline_seconds();
        let late = self.idle() > deadline;
        if self.is_down() && self.strategy.kind() != UpdateType::OnRestart {
            self.leave_the_newer_release(late, deadline);
            return;
        }
        if left == 0 || late {
            if self.is_down() {
                self.step(CONTROL_PLANE)
            } else {
                self.end("Completed")
            }
            return;
        }
        self.next.waiting_for = format!("the idle slots of {left} pods to get release {to}");
    }

    /// The control plane must not become older than any sidecar that it programs, silent ones included.
    fn leave_the_newer_release(&mut self, late: bool, deadline: i64) {
        let (from, to) = (&self.stored.from, &self.stored.to);
        let newer: Vec<&PodView> = movable(self.inputs).filter(|pod| pod.has(&image(self.inputs, pod, from))).collect();
        let untouched = |pod: &&PodView| pod.serving.is_some() && !pod.has(&image(self.inputs, pod, to));
        match newer.first() {
            None => self.step(CONTROL_PLANE),
            Some(pod) if late => self.turn_back(
                "ProgressDeadline",
                format!("pod {} did not leave release {from} within {deadline} s", pod.key),
            ),
            Some(_) if newer.iter().any(untouched) => self.step(DATA_PLANE),
            Some(pod) => {
                let others = newer.len() - 1;
                self.next.waiting_for = format!("pod {} and {others} others to leave release {from}", pod.key);
            }
        }
    }
}
