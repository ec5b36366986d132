//! On how many connected proxies is which configuration object in force?
//!
//! Pods count, not streams: a pod whose two slots are both connected while one takes over counts once, and only when both have
//! acknowledged. An object is in force on a pod when the pod works towards the newest configuration of its scope, and has
//! acknowledged every resource that stems from the object, what it replaced included. The time is from the moment that this
//! replica first saw a generation to the last acknowledgement of those that were needed then; proxies that connect later
//! do not change it.

mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use leno_core::service::Engine;
use leno_core::{Finding, ObjectKey, ObjectRef, Snapshot};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::ads::{Configuration, PodIdentity, Progress};
use crate::stores::Stores;

pub use service::StatusService;

/// Most refusals that are reported for one object.
pub const MAX_REJECTIONS: usize = 10;
/// The API group of the objects that are reported.
const TRAFFIC_GROUP: &str = "networking.istio.io";

/// What a publication means for reports.
#[derive(Debug)]
pub struct Publication {
    objects: BTreeMap<ObjectRef, i64>,
    findings: BTreeMap<ObjectRef, Vec<Finding>>,
    /// Pods whose proxy is Envoy.
    envoys: BTreeSet<ObjectKey>,
    since: Instant,
    at: Instant,
}

impl Publication {
    /// The traffic objects in `stores` with what was found about them in `snapshot`. Their change was seen at `since`.
    pub fn new(stores: &Stores, snapshot: &Snapshot, findings: &[Finding], since: Instant, at: Instant) -> Self {
        let workloads = snapshot.workloads.iter().filter(|(_, workload)| workload.engine == Engine::Envoy);
        let envoys = workloads.map(|(key, _)| key.clone()).collect();
        let mut objects = BTreeMap::new();
        let mut add = |kind: &str, meta: &kube::api::ObjectMeta| {
            let namespace = meta.namespace.as_deref().unwrap_or_default();
            let name = meta.name.as_deref().unwrap_or_default();
            objects.insert(ObjectRef::new(TRAFFIC_GROUP, kind, namespace, name), meta.generation.unwrap_or_default());
        };
        stores.virtual_services.values().for_each(|object| add("VirtualService", &object.metadata));
        stores.destination_rules.values().for_each(|object| add("DestinationRule", &object.metadata));
        for object in stores.malformed.keys().filter(|object| object.group == TRAFFIC_GROUP) {
            objects.entry(object.clone()).or_insert(0);
        }
        let mut by_object: BTreeMap<ObjectRef, Vec<Finding>> = BTreeMap::new();
        for finding in findings {
            by_object.entry(finding.object.clone()).or_default().push(finding.clone());
        }
        Publication { objects, findings: by_object, envoys, since, at }
    }
}

/// What is known of one object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObjectReport {
    /// The generation that the figures are about.
    pub generation: i64,
    /// Connected pods that it affects.
    pub affected: usize,
    /// Those on which it is in force.
    pub in_force: usize,
    /// Those of them whose proxy is Envoy, which says that it accepts and not when every worker has taken it.
    pub accepted_by_envoy: usize,
    /// Milliseconds from the first sight of the generation to the last acknowledgement; 0 until all have.
    pub took_ms: u64,
    /// What was found about it.
    pub findings: Vec<Finding>,
    /// Pods that refused it, with the reason; at most [`MAX_REJECTIONS`].
    pub rejections: BTreeMap<String, String>,
}

/// One stream, for people.
#[derive(Debug, serde::Serialize)]
pub struct ProxyReport {
    pod: String,
    configuration: u64,
    /// How long it has been working towards that configuration, or has held it.
    seconds: u64,
    outstanding: Vec<String>,
    rejected: BTreeMap<String, String>,
}

struct Object {
    generation: i64,
    first_seen: Instant,
    published: Instant,
    took_ms: Option<u64>,
    findings: Vec<Finding>,
}

struct Stream {
    peer: PodIdentity,
    progress: Progress,
    /// When the stream was first heard of.
    connected: Instant,
    /// When the stream began to work towards its configuration.
    since: Instant,
    /// When an object was last acknowledged, for those that have been outstanding.
    cleared: BTreeMap<ObjectRef, Instant>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<ObjectRef, Object>,
    streams: BTreeMap<u64, Stream>,
    current: BTreeMap<PodIdentity, Arc<Configuration>>,
    envoys: BTreeSet<ObjectKey>,
}

/// The book of acknowledgements.
pub struct Acknowledgements {
    state: Mutex<State>,
    version: watch::Sender<u64>,
}

impl Acknowledgements {
    /// An empty book.
    pub fn new() -> Self {
        Acknowledgements { state: Mutex::default(), version: watch::Sender::new(0) }
    }

    /// Is marked as changed by everything that may change a report.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// A new state of all objects was published, and connected pods should now hold `current`.
    pub fn published(&self, publication: Publication, current: BTreeMap<PodIdentity, Arc<Configuration>>) {
        let mut state = self.lock();
        let Publication { objects, mut findings, envoys, since, at } = publication;
        let mut before = std::mem::take(&mut state.objects);
        for (object, generation) in objects {
            let findings = findings.remove(&object).unwrap_or_default();
            let known = before.remove(&object).filter(|known| known.generation == generation);
            let known = known.unwrap_or(Object {
                generation,
                first_seen: since,
                published: at,
                took_ms: None,
                findings: Vec::new(),
            });
            state.objects.insert(object, Object { findings, ..known });
        }
        state.current = current;
        state.envoys = envoys;
        drop(state);
        self.touch();
    }

    /// Connected pods should now hold `current`; objects are the same.
    pub fn followed(&self, current: BTreeMap<PodIdentity, Arc<Configuration>>) {
        self.lock().current = current;
        self.touch();
    }

    /// A stream is this far.
    pub fn progress(&self, number: u64, peer: &PodIdentity, progress: Progress, now: Instant) {
        let mut state = self.lock();
        let stream = state.streams.entry(number).or_insert_with(|| Stream {
            peer: peer.clone(),
            progress: Progress::default(),
            connected: now,
            since: now,
            cleared: BTreeMap::new(),
        });
        let same = stream.progress.configuration == progress.configuration
            && stream.progress.outstanding == progress.outstanding
            && stream.progress.rejected == progress.rejected;
        if same {
            return;
        }
        if stream.progress.configuration != progress.configuration {
            stream.since = now;
        }
        for object in stream.progress.outstanding.difference(&progress.outstanding) {
            stream.cleared.insert(object.clone(), now);
        }
        stream.cleared.retain(|object, _| progress.affected.contains(object));
        stream.progress = progress;
        drop(state);
        self.touch();
    }

    /// A stream is gone.
    pub fn gone(&self, number: u64) {
        self.lock().streams.remove(&number);
        self.touch();
    }

    /// All reports, and how many proxies are connected.
    pub fn reports(&self) -> (BTreeMap<ObjectRef, ObjectReport>, usize) {
        let mut state = self.lock();
        let State { objects, streams, current, envoys } = &mut *state;
        let mut pods: BTreeMap<&PodIdentity, Vec<&Stream>> = BTreeMap::new();
        for stream in streams.values() {
            pods.entry(&stream.peer).or_default().push(stream);
        }
        let mut reports: BTreeMap<ObjectRef, ObjectReport> = objects
            .iter()
            .map(|(object, known)| {
                let findings = known.findings.clone();
                (object.clone(), ObjectReport { generation: known.generation, findings, ..ObjectReport::default() })
            })
            .collect();
        let mut last: BTreeMap<ObjectRef, Instant> = BTreeMap::new();
        for (peer, streams) in &pods {
            for (object, in_force) in affected(streams, current.get(*peer)) {
                let Some(report) = reports.get_mut(&object) else { continue };
                report.affected += 1;
                report.in_force += usize::from(in_force);
                report.accepted_by_envoy += usize::from(in_force && envoys.contains(&peer.pod));
                let published = objects.get(&object).map(|known| known.published);
                for stream in streams {
                    // A proxy that connected later did not take long: it was not there.
                    let was_there = published.is_some_and(|published| stream.connected <= published);
                    if let Some(at) = stream.cleared.get(&object).filter(|_| was_there) {
                        let last = last.entry(object.clone()).or_insert(*at);
                        *last = (*last).max(*at);
                    }
                    if let Some(message) = stream.progress.rejected.get(&object)
                        && report.rejections.len() < MAX_REJECTIONS
                    {
                        report.rejections.insert(peer.pod.to_string(), message.clone());
                    }
                }
            }
        }
        for (object, report) in &mut reports {
            let Some(known) = objects.get_mut(object) else { continue };
            if known.took_ms.is_none() && report.affected > 0 && report.affected == report.in_force {
                // An acknowledgement of an earlier generation says nothing: nothing had to be sent for this one.
                let last = last.get(object).copied().filter(|last| *last > known.first_seen);
                let acknowledged = last.unwrap_or(known.published);
                let took = acknowledged.saturating_duration_since(known.first_seen).as_millis();
                // 0 means "not yet".
                known.took_ms = Some(u64::try_from(took).unwrap_or(u64::MAX).max(1));
            }
            report.took_ms = known.took_ms.filter(|_| report.affected == report.in_force).unwrap_or_default();
        }
        (reports, pods.len())
    }

    /// Every stream: its pod, the configuration that it works towards, and what is outstanding. For people.
    pub fn proxies(&self) -> Vec<ProxyReport> {
        let state = self.lock();
        let report = |stream: &Stream| ProxyReport {
            pod: stream.peer.pod.to_string(),
            configuration: stream.progress.configuration,
            seconds: stream.since.elapsed().as_secs(),
            outstanding: stream.progress.outstanding.iter().map(ToString::to_string).collect(),
            rejected: stream.progress.rejected.iter().map(|(object, why)| (object.to_string(), why.clone())).collect(),
        };
        state.streams.values().map(report).collect()
    }

    fn touch(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything in it could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Acknowledgements {
    fn default() -> Self {
        Self::new()
    }
}

/// The objects that affect a pod, each with whether it is in force there.
fn affected(streams: &[&Stream], current: Option<&Arc<Configuration>>) -> Vec<(ObjectRef, bool)> {
    let mut objects: BTreeSet<&ObjectRef> = streams.iter().flat_map(|stream| stream.progress.affected.iter()).collect();
    objects.extend(streams.iter().flat_map(|stream| &stream.progress.outstanding));
    objects.extend(current.iter().flat_map(|current| current.affected().iter()));
    let newest = |stream: &Stream| current.is_none_or(|current| current.id == stream.progress.configuration);
    let in_force = |object: &ObjectRef| {
        streams.iter().all(|stream| newest(stream) && !stream.progress.outstanding.contains(object))
    };
    objects.into_iter().map(|object| (object.clone(), in_force(object))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translate::{ROUTE, Resource, Resources};
    use leno_core::ObjectKey;
    use std::time::Duration;

    fn object() -> ObjectRef {
        ObjectRef::new(TRAFFIC_GROUP, "VirtualService", "shop", "reviews")
    }

    fn peer(name: &str) -> PodIdentity {
        PodIdentity { pod: ObjectKey::new("shop", name), uid: "u".into(), service_account: "a".into() }
    }

    fn configuration(id: u64) -> Arc<Configuration> {
        let body = prost_types::Any { type_url: ROUTE.to_owned(), value: vec![u8::try_from(id).unwrap()] };
        let resource = Arc::new(Resource::new(body, BTreeSet::from([object()])));
        let resources = Resources { by_type: BTreeMap::from([(ROUTE, BTreeMap::from([("r".to_owned(), resource)]))]) };
        Arc::new(Configuration::assemble(id, &resources, None))
    }

    fn publication(generation: i64, since: Instant, at: Instant) -> Publication {
        let objects = BTreeMap::from([(object(), generation)]);
        // One of the two pods runs Envoy.
        let envoys = BTreeSet::from([ObjectKey::new("shop", "b")]);
        Publication { objects, findings: BTreeMap::new(), envoys, since, at }
    }

    fn progress(configuration: &Configuration, outstanding: bool) -> Progress {
        Progress {
            configuration: configuration.id,
            affected: configuration.affected().clone(),
            outstanding: if outstanding { BTreeSet::from([object()]) } else { BTreeSet::new() },
            rejected: BTreeMap::new(),
        }
    }

    fn report(book: &Acknowledgements) -> ObjectReport {
        book.reports().0.remove(&object()).unwrap()
    }

    #[test]
    fn object_when_two_pods_acknowledge_one_after_the_other_then_counts_and_times_the_last() {
        let (book, start) = (Acknowledgements::new(), Instant::now());
        let wanted = configuration(1);
        book.published(
            publication(3, start, start),
            BTreeMap::from([(peer("a"), wanted.clone()), (peer("b"), wanted.clone())]),
        );
        for (number, name) in [(0, "a"), (1, "b")] {
            book.progress(number, &peer(name), progress(&wanted, true), start);
        }
        assert_eq!((report(&book).affected, report(&book).in_force), (2, 0));
        book.progress(0, &peer("a"), progress(&wanted, false), start + Duration::from_millis(20));
        assert_eq!((report(&book).in_force, report(&book).took_ms), (1, 0));
        assert_eq!(report(&book).accepted_by_envoy, 0);
        book.progress(1, &peer("b"), progress(&wanted, false), start + Duration::from_millis(38));
        assert_eq!((report(&book).in_force, report(&book).took_ms, report(&book).generation), (2, 38, 3));
        assert_eq!(report(&book).accepted_by_envoy, 1);
    }

    #[test]
    fn object_when_a_new_generation_is_published_then_old_acknowledgements_do_not_count() {
        let (book, start) = (Acknowledgements::new(), Instant::now());
        let (first, second) = (configuration(1), configuration(2));
        book.published(publication(1, start, start), BTreeMap::from([(peer("a"), first.clone())]));
        book.progress(0, &peer("a"), progress(&first, false), start);
        assert_eq!(report(&book).in_force, 1);
        book.published(publication(2, start, start), BTreeMap::from([(peer("a"), second)]));
        assert_eq!((report(&book).generation, report(&book).in_force, report(&book).took_ms), (2, 0, 0));
    }

    #[test]
    fn object_when_a_proxy_connects_long_after_then_the_time_is_not_its_delay() {
        let (book, start) = (Acknowledgements::new(), Instant::now());
        let wanted = configuration(1);
        book.published(publication(1, start, start + Duration::from_millis(7)), BTreeMap::new());
        let later = start + Duration::from_secs(60);
        book.followed(BTreeMap::from([(peer("a"), wanted.clone())]));
        book.progress(0, &peer("a"), progress(&wanted, true), later);
        book.progress(0, &peer("a"), progress(&wanted, false), later + Duration::from_secs(1));
        assert_eq!((report(&book).in_force, report(&book).took_ms), (1, 7));
    }

    #[test]
    fn object_when_no_proxy_needs_it_then_nothing_is_affected() {
        let (book, start) = (Acknowledgements::new(), Instant::now());
        book.published(publication(1, start, start), BTreeMap::new());
        assert_eq!((report(&book).affected, report(&book).took_ms), (0, 0));
    }

    #[test]
    fn pod_when_both_of_its_slots_are_connected_then_counts_once_and_when_both_are_done() {
        let (book, start) = (Acknowledgements::new(), Instant::now());
        let wanted = configuration(1);
        book.published(publication(1, start, start), BTreeMap::from([(peer("a"), wanted.clone())]));
        book.progress(0, &peer("a"), progress(&wanted, false), start);
        book.progress(1, &peer("a"), progress(&wanted, true), start);
        assert_eq!((report(&book).affected, report(&book).in_force, book.reports().1), (1, 0, 1));
        book.gone(1);
        assert_eq!((report(&book).affected, report(&book).in_force), (1, 1));
    }

    #[test]
    fn pod_when_it_refuses_then_is_named_with_its_reason() {
        let (book, start) = (Acknowledgements::new(), Instant::now());
        let wanted = configuration(1);
        book.published(publication(1, start, start), BTreeMap::from([(peer("a"), wanted.clone())]));
        let refused =
            Progress { rejected: BTreeMap::from([(object(), "bad regex".into())]), ..progress(&wanted, true) };
        book.progress(0, &peer("a"), refused, start);
        assert_eq!(report(&book).rejections, BTreeMap::from([("shop/a".to_owned(), "bad regex".to_owned())]));
        assert_eq!(report(&book).in_force, 0);
    }
}
