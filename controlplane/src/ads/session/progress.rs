//! How far a proxy is: which objects stand behind resources that it has not acknowledged, or refused.

use std::collections::BTreeSet;
use std::sync::Arc;

use leno_core::ObjectRef;
use tokio::time::Instant;

use super::{GRACE, Held, Session};
use crate::ads::Progress;
use crate::ads::configuration::{Entry, Kind};

impl Session {
    /// How far the proxy is.
    pub fn progress(&self, now: Instant) -> Progress {
        let mut progress =
            Progress { configuration: self.target.id, affected: self.target.affected().clone(), ..Progress::default() };
        if !self.has_target {
            return progress;
        }
        let patient = now < self.last_activity + GRACE;
        let outstanding = &mut progress.outstanding;
        for kind in Kind::ALL {
            let state = &self.states[kind as usize];
            if !state.subscribed {
                if kind.has_wildcard() {
                    outstanding.extend(origins(self.target.of(kind).values()));
                }
            } else {
                for name in &state.dirty {
                    self.outstanding(kind, name, outstanding);
                }
                let in_flight = state.in_flight.iter();
                for name in in_flight.flat_map(|in_flight| in_flight.sent.keys().chain(&in_flight.removed)) {
                    self.outstanding(kind, name, outstanding);
                }
                for (name, refused) in &state.refused {
                    for object in &refused.entry.resource.origins {
                        if self.target.get(kind, name).is_some() {
                            progress.rejected.insert(object.clone(), refused.message.clone());
                            outstanding.insert(object.clone());
                        }
                    }
                }
            }
            if patient && matches!(kind, Kind::Endpoints | Kind::Route) {
                outstanding.extend(origins(self.unasked(kind)));
            }
        }
        progress
    }

    /// Whether the proxy has asked for all that is for everybody, and has answered everything that it should hold: a stream
    /// that ends now takes nothing from it.
    pub fn settled(&self) -> bool {
        self.has_target
            && Kind::ALL.into_iter().all(|kind| {
                let state = &self.states[kind as usize];
                (state.subscribed || !kind.has_wildcard())
                    && (state.answered || !state.subscribed)
                    && state.in_flight.is_none()
                    && state.unanswered.is_empty()
                    && !self.has_additions(kind)
            })
    }

    /// The objects behind a resource that is not in order, before and after.
    fn outstanding(&self, kind: Kind, name: &str, outstanding: &mut BTreeSet<ObjectRef>) {
        let state = &self.states[kind as usize];
        let (wanted, held) = (self.target.get(kind, name), state.held.get(name));
        if !state.wants(name) || wanted.map(|entry| entry.version.as_str()) == held.map(Held::version) {
            return;
        }
        outstanding.extend(origins(wanted.into_iter()));
        if let Some(Held::Sent(entry)) = held {
            outstanding.extend(entry.resource.origins.iter().cloned());
        }
    }
}

fn origins<'a>(entries: impl Iterator<Item = &'a Arc<Entry>>) -> impl Iterator<Item = ObjectRef> {
    entries.flat_map(|entry| entry.resource.origins.iter().cloned())
}
