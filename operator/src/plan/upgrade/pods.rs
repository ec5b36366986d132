//! One injected pod on its way from one release to another: what it is now, and what comes next.
//!
//! A pod has two slots ([ADR 3](../../../../docs/adr/0003-injected-pod-shape.md)), of which one serves. It is moved by giving the
//! idle slot the new image, asking it to serve once it stands by, and giving the other slot the new image when nothing can turn
//! back any more. Back is the same way with the releases exchanged, and short, since the old release still stands by.

use std::collections::BTreeMap;

use leno_kubeutil::watch::Key;

/// What is known of one injected pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodView {
    /// Its namespace and name.
    pub key: Key,
    /// Its owner.
    pub owner: Owner,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its two slots, by what the spec says and how that goes.
    pub slots: [Slot; 2],
    /// The slot that was asked to serve, by annotation.
    pub asked: Option<u8>,
    /// The process that serves, by its own report.
    pub serving: Option<Serving>,
    /// Images of this pod by release: those of its engine.
    pub component: &'static str,
    /// Fields of the spec that say otherwise than what the pod was made with, and that only another pod can have.
    pub differing: Vec<&'static str>,
    /// Why it is not moved, when it is not.
    pub held: Option<&'static str>,
}

/// Who made a pod, and would make it again.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// `Deployment`, `StatefulSet`, `DaemonSet`, `Job` or another kind; `Pod` for a pod without one.
    pub kind: String,
    /// Its name; the pod's own for one without an owner.
    pub name: String,
}

/// One slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// The image that the spec says.
    pub image: String,
    /// Whether a container of that image has started and runs, by a kubelet that has seen the present spec.
    pub up: bool,
    /// What keeps it from that, when it is not just a matter of time.
    pub trouble: Option<String>,
}

/// The process that serves a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serving {
    /// Its slot.
    pub slot: u8,
    /// Its release.
    pub version: String,
    /// Why it could not hand over when it was asked to; empty when it could.
    pub hand_over_failure: String,
}

/// One write to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodStep {
    /// Give a slot another image.
    SetImage {
        /// The pod.
        pod: Key,
        /// The slot.
        slot: u8,
        /// The image.
        image: String,
    },
    /// Ask a slot to serve.
    Serve {
        /// The pod.
        pod: Key,
        /// The slot.
        slot: u8,
    },
    /// Ask the pod's owner to replace its pods.
    Restart {
        /// The owner's namespace.
        namespace: String,
        /// The owner.
        owner: Owner,
        /// What is written into the template; the same value replaces nothing twice.
        stamp: String,
    },
}

/// Where a pod is on its way to a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing of that release is in it.
    Untouched(PodStep),
    /// A write is due.
    Act(PodStep),
    /// Something must happen in the pod first.
    Waiting(String),
    /// The release serves, and the other slot still holds another one: the write that ends that.
    Moved(PodStep),
    /// Both slots are of that release.
    Done,
    /// It does not get there.
    Failed {
        /// CamelCase, of a bounded set.
        reason: &'static str,
        /// What was seen.
        message: String,
    },
}

impl PodView {
    /// Whether a slot's spec names that image.
    pub fn has(&self, image: &str) -> bool {
        self.slots.iter().any(|slot| slot.image == image)
    }

    /// Where it is on its way to a release, in place. `image` is the image of that release for this pod's engine.
    pub fn toward(&self, version: &str, image: &str) -> Progress {
        let [first, second] = &self.slots;
        let with: Vec<u8> =
            [(0, first), (1, second)].iter().filter(|(_, slot)| slot.image == image).map(|(n, _)| *n).collect();
        let serving = self.serving.as_ref();
        let is_served = serving.is_some_and(|serving| serving.version == version);
        match (with.as_slice(), serving) {
            ([_, _], Some(serving)) if is_served && self.slot(1 - serving.slot).up => Progress::Done,
            ([_, _], Some(_)) if is_served => Progress::Waiting("its idle slot to stand by".to_owned()),
            ([_, _], _) => match self.slots.iter().find_map(|slot| slot.trouble.clone()) {
                Some(trouble) => failed("SidecarFailed", &self.key, &trouble),
                None => Progress::Waiting("its sidecar to serve".to_owned()),
            },
            ([new], Some(serving)) => self.one_slot(*new, serving, is_served, image),
            ([_], None) => Progress::Waiting("a report of its sidecar".to_owned()),
            // An older request could move the pod as soon as the slot stands by.
            (_, Some(serving)) if self.asked.is_some_and(|asked| asked != serving.slot) => {
                Progress::Untouched(PodStep::Serve { pod: self.key.clone(), slot: serving.slot })
            }
            (_, Some(serving)) => {
                self.replace_idle(serving.slot, image).map_or_else(Progress::Waiting, Progress::Untouched)
            }
            (_, None) => Progress::Waiting("a report of its sidecar".to_owned()),
        }
    }

    fn one_slot(&self, new: u8, serving: &Serving, is_served: bool, image: &str) -> Progress {
        let slot = self.slot(new);
        if is_served && serving.slot == new && self.asked.is_some_and(|asked| asked != new) {
            // Turned back before it took over: it must not be tried any more.
            return Progress::Act(PodStep::Serve { pod: self.key.clone(), slot: new });
        }
        if is_served && serving.slot == new {
            return self.replace_idle(new, image).map_or_else(Progress::Waiting, Progress::Moved);
        }
        if let Some(trouble) = &slot.trouble {
            return failed("SidecarFailed", &self.key, trouble);
        }
        if serving.slot == new {
            return Progress::Waiting(format!("its slot {new} to serve the other release"));
        }
        if !slot.up {
            return Progress::Waiting(format!("its slot {new} to stand by with image {}", slot.image));
        }
        if self.asked != Some(new) {
            return Progress::Act(PodStep::Serve { pod: self.key.clone(), slot: new });
        }
        if serving.hand_over_failure.is_empty() {
            Progress::Waiting(format!("its slot {new} to take over"))
        } else {
            failed("HandOverFailed", &self.key, &serving.hand_over_failure)
        }
    }

    /// Where it is on its way to a release, and to what the spec says of pods, by its owner's rolling restart.
    pub fn toward_by_restart(&self, version: &str, image: &str, stamp: &str) -> Progress {
        let replace = || PodStep::Restart {
            namespace: self.key.namespace.clone(),
            owner: self.owner.clone(),
            stamp: stamp.to_owned(),
        };
        if !self.slots.iter().all(|slot| slot.image == image) || !self.differing.is_empty() {
            return Progress::Untouched(replace());
        }
        match self.toward(version, image) {
            Progress::Waiting(what) if self.serving.as_ref().is_some_and(|serving| serving.version == version) => {
                tracing::trace!(pod = %self.key, what, "serves already");
                Progress::Done
            }
            other => other,
        }
    }

    fn slot(&self, number: u8) -> &Slot {
        let [first, second] = &self.slots;
        if number == 0 { first } else { second }
    }

    /// Gives the slot that does not serve an image. What waits for it: that the one which serves is not about to be replaced
    /// itself, because somebody else has changed its image and the kubelet has not got to it yet.
    fn replace_idle(&self, serving: u8, image: &str) -> Result<PodStep, String> {
        if !self.slot(serving).up {
            return Err(format!("its slot {serving}, which serves, to run what its spec says"));
        }
        Ok(PodStep::SetImage { pod: self.key.clone(), slot: 1 - serving, image: image.to_owned() })
    }
}

fn failed(reason: &'static str, pod: &Key, what: &str) -> Progress {
    Progress::Failed { reason, message: format!("pod {pod}: {what}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "leno/proxy:0.1.0";
    const NEW: &str = "leno/proxy:0.2.0";

    fn pod(slots: [&str; 2], serving: Option<(u8, &str)>) -> PodView {
        PodView {
            key: Key::new("shop", "front-1"),
            slots: slots.map(|image| Slot { image: image.to_owned(), up: true, trouble: None }),
            serving: serving.map(|(slot, version)| Serving {
                slot,
                version: version.to_owned(),
                hand_over_failure: String::new(),
            }),
            ..PodView::default()
        }
    }

    fn set(slot: u8, image: &str) -> PodStep {
        PodStep::SetImage { pod: Key::new("shop", "front-1"), slot, image: image.to_owned() }
    }

    fn serve(slot: u8) -> PodStep {
        PodStep::Serve { pod: Key::new("shop", "front-1"), slot }
    }

    #[test]
    fn pod_when_moved_then_goes_through_idle_slot_hand_over_and_the_other_slot() {
        let mut pod = pod([OLD, OLD], Some((0, "0.1.0")));
        assert_eq!(pod.toward("0.2.0", NEW), Progress::Untouched(set(1, NEW)));
        pod.slots[1] = Slot { image: NEW.to_owned(), up: false, trouble: None };
        assert!(matches!(pod.toward("0.2.0", NEW), Progress::Waiting(_)));
        pod.slots[1].up = true;
        assert_eq!(pod.toward("0.2.0", NEW), Progress::Act(serve(1)));
        pod.asked = Some(1);
        assert!(matches!(pod.toward("0.2.0", NEW), Progress::Waiting(_)));
        pod.serving = Some(Serving { slot: 1, version: "0.2.0".to_owned(), hand_over_failure: String::new() });
        assert_eq!(pod.toward("0.2.0", NEW), Progress::Moved(set(0, NEW)));
        // Back from here is one request, then one image.
        assert_eq!(pod.toward("0.1.0", OLD), Progress::Act(serve(0)));
        pod.slots[0].image = NEW.to_owned();
        assert_eq!(pod.toward("0.2.0", NEW), Progress::Done);
    }

    #[test]
    fn pod_when_its_standby_fails_then_serves_on_and_says_what_was_seen() {
        let mut pod = pod([OLD, NEW], Some((0, "0.1.0")));
        pod.slots[1].trouble = Some("CrashLoopBackOff: exit code 1".to_owned());
        let Progress::Failed { reason, message } = pod.toward("0.2.0", NEW) else { panic!() };
        assert_eq!(reason, "SidecarFailed");
        assert!(message.contains("shop/front-1") && message.contains("CrashLoopBackOff"), "{message}");
        // Turning back gives the idle slot its image again, whatever it suffers from.
        assert_eq!(pod.toward("0.1.0", OLD), Progress::Moved(set(1, OLD)));
    }

    #[test]
    fn pod_when_its_serving_slot_is_about_to_be_replaced_then_the_other_one_waits() {
        let mut pod = pod(["leno/proxy:by-hand", OLD], Some((0, "0.1.0")));
        pod.slots[0].up = false;
        assert_eq!(pod.toward("0.1.0", OLD), Progress::Act(serve(1)), "the one that stays takes over");
        pod.slots[1].image = "leno/proxy:by-hand".to_owned();
        assert!(matches!(pod.toward("0.1.0", OLD), Progress::Waiting(_)));
        pod.serving = Some(Serving { slot: 1, version: "0.1.0".to_owned(), hand_over_failure: String::new() });
        assert!(matches!(pod.toward("0.1.0", OLD), Progress::Untouched(_)), "slot 1 runs what its spec says");
        pod.slots[1] = Slot { image: OLD.to_owned(), up: false, trouble: None };
        assert!(matches!(pod.toward("0.1.0", OLD), Progress::Waiting(_)));
        pod.slots[1].up = true;
        assert_eq!(pod.toward("0.1.0", OLD), Progress::Moved(set(0, OLD)));
    }

    #[test]
    fn pod_when_an_old_request_names_the_idle_slot_then_that_is_taken_back_first() {
        let mut pod = pod([OLD, OLD], Some((1, "0.1.0")));
        pod.asked = Some(0);
        assert_eq!(pod.toward("0.2.0", NEW), Progress::Untouched(serve(1)));
    }

    #[test]
    fn pod_when_hand_over_was_refused_then_fails_with_the_reason() {
        let mut pod = pod([OLD, NEW], Some((0, "0.1.0")));
        pod.asked = Some(1);
        pod.serving.as_mut().unwrap().hand_over_failure = "slot 1 did not serve within 20 s".to_owned();
        assert!(matches!(pod.toward("0.2.0", NEW), Progress::Failed { reason: "HandOverFailed", .. }));
        assert_eq!(pod.toward("0.1.0", OLD), Progress::Act(serve(0)), "the request is taken back first");
    }
}
