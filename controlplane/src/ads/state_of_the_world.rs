//! The state-of-the-world protocol with one proxy, on top of the delta session: the same order, the same waiting for what
//! warms, the same make before break.
//!
//! A response for listeners or clusters holds everything that the proxy is to have of them, and what it leaves out is removed;
//! one for endpoints, secrets or routes holds what is new or changed, and what is gone is not spoken of: no listener names it any
//! longer. Nobody knows what a proxy holds when it connects, so it is sent everything: what it had and should not have any
//! longer goes at once, and not, as with the delta protocol, after all that uses it.

use std::collections::BTreeSet;
use std::sync::Arc;

use leno_xds::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse};
use tokio::time::Instant;

use super::Progress;
use super::configuration::{Configuration, KINDS, Kind};
use super::session::{Outcome, Session};

/// The protocol with one proxy.
#[derive(Debug)]
pub struct StateOfTheWorld {
    session: Session,
    /// The names that the proxy asks for, of each kind that it has asked for.
    names: [Option<BTreeSet<String>>; KINDS],
}

impl StateOfTheWorld {
    /// A session that has not seen a request.
    pub fn new(now: Instant) -> Self {
        StateOfTheWorld { session: Session::whole(now), names: Default::default() }
    }

    /// From now on the proxy should hold this.
    pub fn set_target(&mut self, target: Arc<Configuration>, now: Instant) {
        self.session.set_target(target, now);
    }

    /// Takes a request of a kind that is served.
    pub fn request(&mut self, kind: Kind, request: &DiscoveryRequest, now: Instant) -> Outcome {
        let wanted: BTreeSet<String> = request.resource_names.iter().cloned().collect();
        let known = self.names[kind as usize].replace(wanted.clone());
        let first = known.is_none();
        let known = known.unwrap_or_default();
        let mut delta = DeltaDiscoveryRequest {
            type_url: request.type_url.clone(),
            resource_names_subscribe: wanted.difference(&known).cloned().collect(),
            resource_names_unsubscribe: known.difference(&wanted).cloned().collect(),
            response_nonce: if first { String::new() } else { request.response_nonce.clone() },
            error_detail: request.error_detail.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        // Of a response for everything a proxy takes what it can: sending it in halves would remove the other half.
        let in_part = match &request.error_detail {
            Some(error) if kind.has_wildcard() && !first => {
                delta.response_nonce = String::new();
                Some(self.session.refused_in_part(kind, &request.response_nonce, &error.message))
            }
            _ => None,
        };
        let outcome = self.session.request(kind, &delta, now);
        in_part.unwrap_or(outcome)
    }

    /// The next response that may be sent, if there is one. To be called until there is none.
    pub fn next(&mut self, now: Instant) -> Option<DiscoveryResponse> {
        loop {
            let delta = self.session.next(now)?;
            let kind = Kind::of(&delta.type_url)?;
            if delta.resources.is_empty() && !kind.has_wildcard() {
                // There is no way to say that something is not there.
                let taken = DeltaDiscoveryRequest { response_nonce: delta.nonce, ..DeltaDiscoveryRequest::default() };
                self.session.request(kind, &taken, now);
                continue;
            }
            let resources = if kind.has_wildcard() {
                self.session.shown(kind).values().map(|entry| entry.resource.body.clone()).collect()
            } else {
                delta.resources.into_iter().filter_map(|resource| resource.resource).collect()
            };
            return Some(DiscoveryResponse {
                version_info: format!("{}.{}", delta.system_version_info, delta.nonce),
                resources,
                type_url: delta.type_url,
                nonce: delta.nonce,
                ..DiscoveryResponse::default()
            });
        }
    }

    /// When [`StateOfTheWorld::next`] or [`StateOfTheWorld::progress`] would say something else without any event.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        self.session.deadline(now)
    }

    /// How far the proxy is.
    pub fn progress(&self, now: Instant) -> Progress {
        self.session.progress(now)
    }

    /// As [`Session::settled`].
    pub fn settled(&self) -> bool {
        self.session.settled()
    }
}
