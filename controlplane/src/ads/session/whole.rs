//! What the older variant of the protocol needs besides: responses that hold everything of a kind.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::{Held, Outcome, Refused, Session, told};
use crate::ads::configuration::{Entry, Kind};

impl Session {
    /// As [`Session::new`], for a proxy that takes what a response for everything of a kind leaves out for removed.
    pub(in crate::ads) fn whole(now: Instant) -> Self {
        Session { whole: true, ..Session::new(now) }
    }

    /// What the proxy has of a kind once it has taken what is under way.
    pub(in crate::ads) fn shown(&self, kind: Kind) -> BTreeMap<Arc<str>, Arc<Entry>> {
        let state = &self.states[kind as usize];
        let held = state.held.iter().filter(|(name, _)| state.wants(name)).filter_map(|(name, held)| match held {
            Held::Sent(entry) => Some((name.clone(), entry.clone())),
            Held::Declared(_) => None,
        });
        let mut shown: BTreeMap<_, _> = held.collect();
        if let Some(in_flight) = &state.in_flight {
            shown.extend(in_flight.sent.iter().map(|(name, entry)| (name.clone(), entry.clone())));
            shown.retain(|name, _| !in_flight.removed.contains(name));
        }
        shown
    }

    /// A response was refused by a proxy that has taken all but what its message names. Where it names nothing that was
    /// sent, all of it counts as refused.
    pub(in crate::ads) fn refused_in_part(&mut self, kind: Kind, nonce: &str, message: &str) -> Outcome {
        let state = &mut self.states[kind as usize];
        let Some(sent) = state.take_answered(nonce) else { return Outcome::Subscribed };
        let named = |name: &Arc<str>| message.contains(&**name);
        let any = sent.keys().any(named);
        let told = told(message);
        for (name, entry) in sent {
            if !any || named(&name) {
                state.refused.insert(name, Refused { entry, message: told.clone() });
            } else {
                state.refused.remove(&name);
                state.held.insert(name, Held::Sent(entry));
            }
        }
        Outcome::Refused(kind, told)
    }
}
