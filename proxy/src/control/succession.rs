//! Which slot should serve, as the pod's annotation says, and when the active one hands over because of it.
//!
//! A standby that stands by for a moment only is not trusted: what crashes at its start would be handed the traffic again and
//! again. One that did not serve when it should have, or ended soon after, is left alone for a pause that grows.

use super::podinfo::PodInfo;
use crate::slots::Folder;
use crate::slots::failures::Failures;
use std::time::{Duration, Instant, SystemTime};

/// Annotation of the pod that names the slot which should serve: `0` or `1`. Without it either one serves.
pub const SERVE_SLOT_ANNOTATION: &str = "mesh.leno.dev/serve-slot";
/// How often the annotation is looked at.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How long a standby must have stood by before it is handed the traffic.
const STANDING: Duration = Duration::from_secs(3);

/// What the active slot knows about who should serve.
#[derive(Debug)]
pub struct Succession {
    folder: Folder,
    podinfo: PodInfo,
    own: u8,
    wanted: Option<u8>,
    looked_at: Option<crate::control::podinfo::Stamp>,
    failures: Failures,
}

impl Succession {
    /// What is known when the process of slot `own` becomes active.
    pub fn new(folder: Folder, podinfo: PodInfo, own: u8, now: SystemTime) -> Self {
        let looked_at = podinfo.annotations_stamp();
        let wanted = wanted(&podinfo);
        let failures = Failures::read(&folder, other(own), now);
        Self { folder, podinfo, own, wanted, looked_at, failures }
    }

    /// Looks at the annotation; the file is read when it is another one. Whoever changes their mind starts afresh: earlier
    /// failures do not count any more.
    pub fn look(&mut self) {
        let stamp = self.podinfo.annotations_stamp();
        if stamp == self.looked_at {
            return;
        }
        self.looked_at = stamp;
        let wanted = wanted(&self.podinfo);
        if wanted != self.wanted {
            tracing::info!(slot = ?wanted, own = self.own, "another slot should serve");
            self.wanted = wanted;
            self.failures.clear(&self.folder, other(self.own));
        }
    }

    /// When to hand over to a standby that stands by since then; `None` is not.
    pub fn due(&self, standby: Option<Instant>, now: Instant, clock: SystemTime) -> Option<Instant> {
        let standby = standby.filter(|_| self.wanted == Some(other(self.own)))?;
        Some((standby + STANDING).max(now + self.failures.pause(clock)))
    }

    /// The other slot did not serve when it should have, or ended after it had begun to.
    pub fn failed(&mut self, reason: &str, now: SystemTime) {
        if let Err(error) = self.failures.add(&self.folder, other(self.own), reason, now) {
            tracing::warn!(%error, "the failure of the other slot is not remembered");
        }
        tracing::warn!(%reason, again_in = ?self.failures.pause(now), "the other slot does not serve");
    }

    /// Why the other slot does not serve though it should; empty when nothing failed.
    pub fn failure(&self) -> &str {
        if self.wanted == Some(other(self.own)) { &self.failures.reason } else { "" }
    }
}

/// The other one of the two slots.
pub fn other(slot: u8) -> u8 {
    u8::from(slot == 0)
}

fn wanted(podinfo: &PodInfo) -> Option<u8> {
    match podinfo.annotations().get(SERVE_SLOT_ANNOTATION).map(String::as_str) {
        None => None,
        Some("0") => Some(0),
        Some("1") => Some(1),
        Some(value) => {
            tracing::warn!(%value, "the annotation {SERVE_SLOT_ANNOTATION} is neither 0 nor 1; it is not followed");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pod {
        directory: tempfile::TempDir,
    }

    impl Pod {
        fn new() -> Self {
            Self { directory: tempfile::tempdir().unwrap() }
        }

        fn wants(&self, slot: &str) {
            let text = format!("app=\"x\"\n{SERVE_SLOT_ANNOTATION}=\"{slot}\"\n");
            // As the kubelet does: the file is another one.
            let fresh = self.directory.path().join("fresh");
            std::fs::write(&fresh, text).unwrap();
            std::fs::rename(fresh, self.directory.path().join("annotations")).unwrap();
        }

        fn active(&self, own: u8) -> Succession {
            let folder = Folder::new(self.directory.path());
            Succession::new(folder, PodInfo::new(self.directory.path()), own, SystemTime::now())
        }
    }

    #[test]
    fn succession_when_another_slot_should_serve_waits_until_it_has_stood_by() {
        let (pod, now, clock) = (Pod::new(), Instant::now(), SystemTime::now());
        let mut active = pod.active(0);
        assert_eq!(active.due(Some(now), now, clock), None, "nobody asked for it");
        pod.wants("1");
        active.look();
        assert_eq!(active.due(None, now, clock), None, "nobody stands by");
        assert_eq!(active.due(Some(now), now, clock), Some(now + STANDING));
        pod.wants("0");
        active.look();
        assert_eq!(active.due(Some(now), now, clock), None);
        pod.wants("two");
        active.look();
        assert_eq!(active.due(Some(now), now, clock), None);
    }

    #[test]
    fn succession_when_the_other_slot_fails_waits_longer_each_time_and_forgets_it_with_a_new_wish() {
        let (pod, now, clock) = (Pod::new(), Instant::now(), SystemTime::now());
        pod.wants("1");
        let mut active = pod.active(0);
        let since = now - Duration::from_secs(60);
        let wait = |active: &Succession| active.due(Some(since), now, clock).unwrap().saturating_duration_since(now);
        assert_eq!(wait(&active), Duration::ZERO);
        active.failed("it crashed", clock);
        let first = wait(&active);
        active.failed("it crashed again", clock);
        assert!(first > Duration::ZERO && wait(&active) > first);
        // Another process of the slot knows it too.
        assert_eq!((pod.active(0).failure(), wait(&pod.active(0))), ("it crashed again", wait(&active)));
        pod.wants("0");
        active.look();
        assert_eq!(active.failure(), "");
        pod.wants("1");
        active.look();
        assert_eq!((active.failure(), wait(&active)), ("", Duration::ZERO));
    }
}
