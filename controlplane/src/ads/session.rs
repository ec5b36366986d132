//! The delta protocol with one proxy: a state machine without a socket.
//!
//! It keeps what the proxy wants (subscriptions), what it should hold (the newest [`Configuration`]) and what it has
//! acknowledged, and says which response may go out next. Rules:
//!
//! - One response of a kind is under way at a time. Configurations that arrive meanwhile replace each other, so a slow proxy
//!   costs no memory and gets the newest when it is ready.
//! - Additions go in the order clusters, endpoints, secrets, listeners, routes. Nothing waits for secrets. Endpoints follow their cluster, routes their listener,
//!   and listeners and routes wait until clusters and endpoints are acknowledged, so nothing is sent into a cluster that
//!   is not there yet.
//! - A stock Envoy acknowledges clusters only when all that are new to it have their endpoints. So endpoints that it waits for do
//!   not wait in turn for a newer form of their cluster, and follow that once more when it goes out.
//! - Removals come last, each after the proxy has acknowledged what stops using it. While the proxy holds on to a listener or
//!   routes that it did not get replaced (it refused the new ones), no cluster is removed, since the old ones may use it.
//! - What a proxy refuses is not sent again until it changes. A refused response with several resources is halved until the bad
//!   one is found; the rest gets through. Nothing else waits for it.
//!
//! See <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol>.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use leno_xds::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as Wire};
use tokio::time::Instant;

use super::configuration::{Configuration, Entry, KINDS, Kind};

mod progress;
mod told;
mod whole;

use told::told;

/// Most bytes of resources in one response (one larger resource travels alone): half of what gRPC clients accept by default.
pub const MAX_RESPONSE: usize = 2 * 1024 * 1024;
/// How long listeners and routes wait for a proxy to ask for clusters, and for the endpoints of a new cluster. A proxy that
/// fetches on demand never asks.
pub const GRACE: Duration = Duration::from_secs(5);

/// A version that a proxy holds.
#[derive(Clone, Debug)]
enum Held {
    /// Acknowledged on this stream.
    Sent(Arc<Entry>),
    /// Declared when the stream began.
    Declared(String),
}

impl Held {
    /// Something, in a version that is none of ours.
    fn outdated() -> Self {
        Held::Declared(String::new())
    }

    fn version(&self) -> &str {
        match self {
            Held::Sent(entry) => &entry.version,
            Held::Declared(version) => version,
        }
    }
}

#[derive(Debug)]
struct InFlight {
    nonce: String,
    sent: BTreeMap<Arc<str>, Arc<Entry>>,
    removed: Vec<Arc<str>>,
    /// Those of `sent` that have to be sent once more, whatever the answer.
    again: BTreeSet<Arc<str>>,
}

#[derive(Debug)]
struct Refused {
    entry: Arc<Entry>,
    message: String,
}

/// One kind of one proxy.
#[derive(Debug, Default)]
struct State {
    /// The proxy has asked for this kind.
    subscribed: bool,
    /// It has got an answer, or declared what it has.
    answered: bool,
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    held: BTreeMap<Arc<str>, Held>,
    refused: BTreeMap<Arc<str>, Refused>,
    /// Names that may need something to be sent. A superset; names in order are dropped when looked at.
    dirty: BTreeSet<Arc<str>>,
    /// Names that were asked for and not answered, and endpoints whose cluster has gone out since: they are told when there is
    /// no such resource.
    unanswered: BTreeSet<Arc<str>>,
    /// Halves of refused responses, each sent alone.
    halves: VecDeque<Vec<Arc<str>>>,
    in_flight: Option<InFlight>,
}

impl State {
    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// An answer to the response under way has come: what it sent, but for what has to be sent once more. `None` when it answers
    /// another one, or none.
    fn take_answered(&mut self, nonce: &str) -> Option<BTreeMap<Arc<str>, Arc<Entry>>> {
        let InFlight { mut sent, removed, again, .. } =
            self.in_flight.take_if(|in_flight| !nonce.is_empty() && in_flight.nonce == nonce)?;
        for name in again {
            sent.remove(&name);
            self.held.insert(name, Held::outdated());
        }
        // A removal cannot be refused in a way that anything could be done about.
        for name in removed {
            self.held.remove(&name);
            self.refused.remove(&name);
        }
        Some(sent)
    }

    /// The version that was last sent, whether or not it is acknowledged yet.
    fn sent_version(&self, name: &str) -> Option<&str> {
        let in_flight = self.in_flight.as_ref().and_then(|in_flight| in_flight.sent.get(name));
        let refused = self.refused.get(name).map(|refused| &refused.entry);
        in_flight.or(refused).map(|entry| entry.version.as_str()).or_else(|| self.held.get(name).map(Held::version))
    }
}

/// What a request did, for metrics and logs.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing but subscriptions, or an answer to a response that is no longer of interest.
    Subscribed,
    /// The proxy took the response.
    Acknowledged(Kind),
    /// The proxy refused the response.
    Refused(Kind, String),
}

/// The protocol with one proxy.
#[derive(Debug)]
pub struct Session {
    states: [State; KINDS],
    target: Arc<Configuration>,
    has_target: bool,
    last_nonce: u64,
    last_activity: Instant,
    /// A response for everything of a kind is never split.
    whole: bool,
}

impl Session {
    /// A session that has not seen a request.
    pub fn new(now: Instant) -> Self {
        Session {
            states: Default::default(),
            target: Arc::default(),
            has_target: false,
            last_nonce: 0,
            last_activity: now,
            whole: false,
        }
    }

    /// From now on the proxy should hold this.
    pub fn set_target(&mut self, target: Arc<Configuration>, now: Instant) {
        for kind in Kind::ALL {
            let (old, new) = (self.target.of(kind), target.of(kind));
            let dirty = &mut self.states[kind as usize].dirty;
            let changed = |entry: &Arc<Entry>, other: Option<&Arc<Entry>>| {
                other.is_none_or(|other| !Arc::ptr_eq(entry, other) && entry.version != other.version)
            };
            dirty.extend(
                new.iter().filter(|(name, entry)| changed(entry, old.get(*name))).map(|(name, _)| name.clone()),
            );
            dirty.extend(old.keys().filter(|name| !new.contains_key(*name)).cloned());
        }
        self.target = target;
        self.has_target = true;
        self.last_activity = now;
    }

    /// Takes a request of a kind that is served.
    pub fn request(&mut self, kind: Kind, request: &DeltaDiscoveryRequest, now: Instant) -> Outcome {
        self.last_activity = now;
        let outcome = self.answer(kind, request);
        self.subscribe(kind, request);
        outcome
    }

    fn answer(&mut self, kind: Kind, request: &DeltaDiscoveryRequest) -> Outcome {
        let state = &mut self.states[kind as usize];
        let Some(sent) = state.take_answered(&request.response_nonce) else { return Outcome::Subscribed };
        let Some(error) = &request.error_detail else {
            for (name, entry) in sent {
                state.refused.remove(&name);
                state.held.insert(name, Held::Sent(entry));
            }
            return Outcome::Acknowledged(kind);
        };
        let message = told(&error.message);
        if sent.len() == 1 {
            for (name, entry) in sent {
                state.refused.insert(name, Refused { entry, message: message.clone() });
            }
        } else if !sent.is_empty() {
            let names: Vec<_> = sent.into_keys().collect();
            let (first, second) = names.split_at(names.len() / 2);
            state.halves.push_front(second.to_vec());
            state.halves.push_front(first.to_vec());
            state.dirty.extend(names);
        }
        Outcome::Refused(kind, message)
    }

    fn subscribe(&mut self, kind: Kind, request: &DeltaDiscoveryRequest) {
        let target = self.target.of(kind);
        let state = &mut self.states[kind as usize];
        let shared = |name: &str| target.get_key_value(name).map_or_else(|| Arc::from(name), |(name, _)| name.clone());
        let first = !state.subscribed;
        if first {
            state.subscribed = true;
            state.wildcard = kind.has_wildcard() && request.resource_names_subscribe.is_empty();
            state.answered = !request.initial_resource_versions.is_empty();
            for (name, version) in &request.initial_resource_versions {
                let name = shared(name);
                let held = match target.get(&name) {
                    Some(entry) if entry.version == *version => Held::Sent(entry.clone()),
                    _ => Held::Declared(version.clone()),
                };
                state.dirty.insert(name.clone());
                state.held.insert(name, held);
            }
        }
        for name in &request.resource_names_subscribe {
            if name == "*" {
                state.wildcard = true;
                continue;
            }
            let name = shared(name);
            if !first {
                // Asked for again: the proxy may have dropped it.
                state.held.remove(&name);
                state.refused.remove(&name);
            }
            if !matches!(state.held.get(&name), Some(Held::Sent(_))) {
                state.unanswered.insert(name.clone());
            }
            state.dirty.insert(name.clone());
            state.names.insert(name);
        }
        if state.wildcard && (first || request.resource_names_subscribe.iter().any(|name| name == "*")) {
            state.dirty.extend(target.keys().cloned());
        }
        for name in &request.resource_names_unsubscribe {
            if name == "*" {
                state.wildcard = false;
            }
            state.names.remove(name.as_str());
            if !state.wildcard {
                state.held.remove(name.as_str());
                state.refused.remove(name.as_str());
                state.unanswered.remove(name.as_str());
            }
        }
    }

    /// The next response that may be sent, if there is one. To be called until there is none.
    pub fn next(&mut self, now: Instant) -> Option<DeltaDiscoveryResponse> {
        if !self.has_target {
            return None;
        }
        self.additions(now).or_else(|| self.removals()).or_else(|| self.empty_answer())
    }

    /// When [`Session::next`] or [`Session::progress`] would say something else without any event.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let deadline = self.last_activity + GRACE;
        let mut unasked = self.unasked(Kind::Endpoints).chain(self.unasked(Kind::Route));
        let waits = !self.states[Kind::Cluster as usize].subscribed || unasked.next().is_some();
        (self.has_target && deadline > now && waits).then_some(deadline)
    }

    fn additions(&mut self, now: Instant) -> Option<DeltaDiscoveryResponse> {
        for kind in Kind::ALL {
            if matches!(kind, Kind::Listener | Kind::Route) && !self.upstreams_settled(now) {
                return None;
            }
            let state = &self.states[kind as usize];
            if !state.subscribed || state.in_flight.is_some() {
                continue;
            }
            let wanted = self.take_missing(kind);
            let ready: Vec<_> = wanted.into_iter().filter(|(name, _)| self.may_send(kind, name)).collect();
            if !ready.is_empty() {
                return Some(self.send(kind, ready, now));
            }
        }
        None
    }

    /// What the proxy lacks of a kind, and forgets the names that are in order.
    fn take_missing(&mut self, kind: Kind) -> Vec<(Arc<str>, Arc<Entry>)> {
        let target = self.target.of(kind);
        let state = &mut self.states[kind as usize];
        let mut missing = Vec::new();
        let State { dirty, held, refused, names, wildcard, unanswered, .. } = state;
        dirty.retain(|name| {
            let wanted = *wildcard || names.contains(name);
            match target.get(name) {
                Some(entry) if wanted => {
                    if held.get(name).is_some_and(|held| held.version() == entry.version) {
                        refused.remove(name);
                        unanswered.remove(name);
                        false
                    } else if refused.get(name).is_some_and(|refused| refused.entry.version == entry.version) {
                        false
                    } else {
                        missing.push((name.clone(), entry.clone()));
                        true
                    }
                }
                Some(_) => false,
                // Removals are looked at when their turn comes.
                None => held.contains_key(name) || unanswered.contains(name),
            }
        });
        while let Some(half) = state.halves.pop_front() {
            let half: Vec<_> = missing.iter().filter(|(name, _)| half.contains(name)).cloned().collect();
            if !half.is_empty() {
                return half;
            }
        }
        missing
    }

    fn has_additions(&self, kind: Kind) -> bool {
        let state = &self.states[kind as usize];
        let target = self.target.of(kind);
        state.dirty.iter().any(|name| {
            state.wants(name)
                && target.get(name).is_some_and(|entry| {
                    state.held.get(name).is_none_or(|held| held.version() != entry.version)
                        && state.refused.get(name).is_none_or(|refused| refused.entry.version != entry.version)
                })
        })
    }

    /// Endpoints go after their cluster, routes after their listeners; endpoints that the proxy waits for go at once.
    fn may_send(&self, kind: Kind, name: &str) -> bool {
        let awaited = kind == Kind::Endpoints && self.states[kind as usize].unanswered.contains(name);
        awaited || self.parent_is_newest(kind, name)
    }

    /// Whether what names a resource was sent as it should be now.
    fn parent_is_newest(&self, kind: Kind, name: &str) -> bool {
        let sent = |parent: Kind, name: &str| {
            let state = &self.states[parent as usize];
            !state.subscribed
                || !state.wants(name)
                || self.target.get(parent, name).is_none_or(|entry| state.sent_version(name) == Some(&entry.version))
        };
        match kind {
            Kind::Cluster | Kind::Secret | Kind::Listener => true,
            Kind::Endpoints => sent(Kind::Cluster, name),
            Kind::Route => self.target.listeners_with(name).iter().all(|listener| sent(Kind::Listener, listener)),
        }
    }

    /// Whether all clusters and endpoints are acknowledged, as far as the proxy asks for them.
    fn upstreams_settled(&self, now: Instant) -> bool {
        let quiet = |kind: Kind| self.states[kind as usize].in_flight.is_none() && !self.has_additions(kind);
        let patient = now < self.last_activity + GRACE;
        let asks = self.states[Kind::Cluster as usize].subscribed && self.unasked(Kind::Endpoints).next().is_none();
        quiet(Kind::Cluster) && quiet(Kind::Endpoints) && (asks || !patient)
    }

    /// Resources that a proxy should ask for soon, because it holds what names them.
    fn unasked(&self, kind: Kind) -> impl Iterator<Item = &Arc<Entry>> {
        let parent = if kind == Kind::Endpoints { Kind::Cluster } else { Kind::Listener };
        let parents = &self.states[parent as usize];
        let own = &self.states[kind as usize];
        let named = move |name: &str| match kind {
            Kind::Endpoints => parents.held.contains_key(name),
            _ => self.target.listeners_with(name).iter().any(|listener| parents.held.contains_key(listener)),
        };
        let of = if parents.subscribed && parents.in_flight.is_none() { Some(self.target.of(kind)) } else { None };
        of.into_iter().flatten().filter(move |(name, _)| !own.wants(name) && named(name)).map(|(_, entry)| entry)
    }

    fn removals(&mut self) -> Option<DeltaDiscoveryResponse> {
        for kind in [Kind::Listener, Kind::Route, Kind::Cluster, Kind::Endpoints, Kind::Secret] {
            let state = &self.states[kind as usize];
            // Endpoints to come may wait for a cluster that waits for this one to be told that it has none; so may secrets.
            let comes_last = !matches!(kind, Kind::Endpoints | Kind::Secret) && self.has_additions(kind);
            if !state.subscribed || state.in_flight.is_some() || comes_last {
                continue;
            }
            let gone: Vec<Arc<str>> = state
                .dirty
                .iter()
                .filter(|name| self.is_removal(kind, name) && self.may_remove(kind, name))
                .cloned()
                .collect();
            if !gone.is_empty() {
                let state = &mut self.states[kind as usize];
                for name in &gone {
                    state.dirty.remove(name);
                    state.unanswered.remove(name);
                }
                return Some(self.respond(kind, BTreeMap::new(), gone, BTreeSet::new()));
            }
        }
        None
    }

    fn is_removal(&self, kind: Kind, name: &str) -> bool {
        let state = &self.states[kind as usize];
        self.target.get(kind, name).is_none()
            && state.wants(name)
            && (state.held.contains_key(name) || state.unanswered.contains(name))
    }

    fn may_remove(&self, kind: Kind, name: &str) -> bool {
        let settled = |kind: Kind| {
            let state = &self.states[kind as usize];
            state.in_flight.is_none()
                && !self.has_additions(kind)
                && !state.dirty.iter().any(|name| self.is_removal(kind, name) && state.held.contains_key(name))
        };
        let refusals = |kind: Kind| !self.states[kind as usize].refused.is_empty();
        match kind {
            Kind::Listener => true,
            Kind::Route => settled(Kind::Listener) && !refusals(Kind::Listener),
            Kind::Cluster => {
                settled(Kind::Listener) && settled(Kind::Route) && !refusals(Kind::Listener) && !refusals(Kind::Route)
            }
            // Whoever names one that is gone goes on with what it has.
            Kind::Secret => true,
            Kind::Endpoints => {
                let clusters = &self.states[Kind::Cluster as usize];
                // A proxy that waits for them must be told that there are none.
                self.states[kind as usize].unanswered.contains(name)
                    || !clusters.held.contains_key(name) && clusters.in_flight.is_none()
            }
        }
    }

    /// A first request for everything of a kind gets an answer even when there is nothing: a stock Envoy waits for it.
    fn empty_answer(&mut self) -> Option<DeltaDiscoveryResponse> {
        let kind = Kind::ALL.into_iter().find(|kind| {
            let state = &self.states[*kind as usize];
            state.subscribed
                && state.wildcard
                && !state.answered
                && state.in_flight.is_none()
                && !self.has_additions(*kind)
        })?;
        Some(self.respond(kind, BTreeMap::new(), Vec::new(), BTreeSet::new()))
    }

    fn send(&mut self, kind: Kind, ready: Vec<(Arc<str>, Arc<Entry>)>, now: Instant) -> DeltaDiscoveryResponse {
        self.last_activity = now;
        let state = &mut self.states[kind as usize];
        let mut size = 0;
        let mut sent = BTreeMap::new();
        for (name, entry) in ready {
            size += entry.resource.body.value.len() + name.len() + 128;
            if size > MAX_RESPONSE && !sent.is_empty() && !(self.whole && kind.has_wildcard()) {
                break;
            }
            state.dirty.remove(&name);
            state.unanswered.remove(&name);
            sent.insert(name, entry);
        }
        if kind == Kind::Cluster {
            sent.keys().for_each(|name| self.send_endpoints_again(name));
        }
        let early = sent.keys().filter(|name| !self.parent_is_newest(kind, name)).cloned().collect();
        self.respond(kind, sent, Vec::new(), early)
    }

    /// A cluster goes out: the proxy waits for its endpoints, those too that have gone to an older form of it.
    fn send_endpoints_again(&mut self, cluster: &Arc<str>) {
        let state = &mut self.states[Kind::Endpoints as usize];
        if !state.wants(cluster) {
            return;
        }
        state.unanswered.insert(cluster.clone());
        state.dirty.insert(cluster.clone());
        if let Some(held) = state.held.get_mut(cluster) {
            *held = Held::outdated();
        }
        if let Some(in_flight) = &mut state.in_flight
            && in_flight.sent.contains_key(cluster)
        {
            in_flight.again.insert(cluster.clone());
        }
    }

    fn respond(
        &mut self,
        kind: Kind,
        sent: BTreeMap<Arc<str>, Arc<Entry>>,
        removed: Vec<Arc<str>>,
        early: BTreeSet<Arc<str>>,
    ) -> DeltaDiscoveryResponse {
        self.last_nonce += 1;
        let nonce = self.last_nonce.to_string();
        let response = DeltaDiscoveryResponse {
            system_version_info: self.target.id.to_string(),
            type_url: kind.type_url().to_owned(),
            nonce: nonce.clone(),
            resources: sent
                .iter()
                .map(|(name, entry)| Wire {
                    name: name.to_string(),
                    // Not the version that is to come: a proxy that connects again tells what it has.
                    version: if early.contains(name) {
                        format!("{}-early", entry.version)
                    } else {
                        entry.version.clone()
                    },
                    resource: Some(entry.resource.body.clone()),
                    ..Wire::default()
                })
                .collect(),
            removed_resources: removed.iter().map(ToString::to_string).collect(),
            ..DeltaDiscoveryResponse::default()
        };
        let state = &mut self.states[kind as usize];
        state.answered = true;
        state.dirty.extend(early.iter().cloned());
        state.in_flight = Some(InFlight { nonce, sent, removed, again: early });
        response
    }
}
