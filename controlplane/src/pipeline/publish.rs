//! The cache of configurations, one a scope, and who follows which.
//!
//! A publication works out the scope of every pod that is connected, makes the configuration of every scope once, and tells only
//! those pods whose configuration is another one now. Scopes that nobody follows are forgotten.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use leno_core::snapshot::Snapshot;
use leno_core::{Finding, Host, ObjectKey};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Compile;
use crate::acks::{Acknowledgements, Publication};
use crate::ads::{Configs, Configuration, PodIdentity, Progress, Target};
use crate::identity::{Directory, sign::KnownPod};
use crate::metrics::Metrics;
use crate::source::Lane;
use crate::stores::Stores;
use crate::translate::{ENDPOINTS, Resource, Resources};

/// One scope as it was published.
struct Cached {
    resources: Resources,
    configuration: Arc<Configuration>,
}

struct State<S> {
    snapshot: Option<Arc<Snapshot>>,
    /// One sender a stream: a pod has two while one slot takes over from the other.
    followers: BTreeMap<PodIdentity, Vec<watch::Sender<Target>>>,
    scopes: BTreeMap<S, Cached>,
    /// What was found in the snapshot. It does not depend on endpoints.
    findings: Arc<[Finding]>,
    pool: Pool,
    last_id: u64,
}

/// Resources by version (a hash of the content), so that scopes share what is equal for them. It holds nothing alive.
#[derive(Default)]
struct Pool {
    by_version: HashMap<String, Weak<Resource>>,
}

impl Pool {
    fn share(&mut self, resources: &mut Resources) {
        for resource in resources.by_type.values_mut().flat_map(BTreeMap::values_mut) {
            match self.by_version.get(&resource.version).and_then(Weak::upgrade) {
                // Equal hashes are not enough to hand one tenant's resource to another.
                Some(known) if *known == **resource => *resource = known,
                Some(_) => {}
                None => {
                    self.by_version.insert(resource.version.clone(), Arc::downgrade(resource));
                }
            }
        }
    }

    fn forget_unused(&mut self) {
        self.by_version.retain(|_, resource| resource.strong_count() > 0);
    }
}

/// The cache, and the way out of the pipeline.
pub struct Publisher<C: Compile> {
    /// Held while configurations are made, on a blocking thread.
    making: Mutex<State<C::Scope>>,
    /// Pods that connected and have no target yet; apart from `making`, so that connecting never waits for translation.
    waiting: Mutex<Vec<(PodIdentity, watch::Sender<Target>)>>,
    joined: watch::Sender<u64>,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    acknowledgements: Arc<Acknowledgements>,
    metrics: Metrics,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock was held leaves nothing half done that the next publication would not replace.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<C: Compile> Publisher<C> {
    /// An empty cache.
    pub fn new(acknowledgements: Arc<Acknowledgements>, metrics: Metrics) -> Self {
        Publisher {
            making: Mutex::new(State {
                snapshot: None,
                followers: BTreeMap::new(),
                scopes: BTreeMap::new(),
                findings: Arc::default(),
                pool: Pool::default(),
                last_id: 0,
            }),
            waiting: Mutex::default(),
            joined: watch::Sender::new(0),
            snapshots: watch::Sender::new(None),
            acknowledgements,
            metrics,
        }
    }

    /// Is marked as changed when a pod has connected and [`Publisher::join`] should be called.
    pub fn joins(&self) -> watch::Receiver<u64> {
        self.joined.subscribe()
    }

    /// The newest snapshot, for readers outside of the pipeline.
    pub fn snapshots(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.snapshots.subscribe()
    }

    /// Gives pods that have connected their configuration. Blocks.
    pub fn join(&self) {
        let mut state = lock(&self.making);
        self.take_waiting(&mut state);
        if state.snapshot.is_some() {
            self.tell(&mut state, Lane::Endpoints, None);
            self.acknowledgements.followed(current(&state));
        }
    }

    /// Publishes a snapshot that was made from `stores`, whose first change was seen at `since`. Says which lane it was.
    /// Blocks.
    pub fn publish(&self, snapshot: Arc<Snapshot>, stores: &Stores, since: Instant) -> Lane {
        let mut state = lock(&self.making);
        self.take_waiting(&mut state);
        let before = state.snapshot.replace(snapshot.clone());
        let lane = match &before {
            Some(before) if before.differs_only_in_endpoints(&snapshot) => Lane::Endpoints,
            _ => Lane::All,
        };
        self.snapshots.send_replace(Some(snapshot.clone()));
        // What is told first is in force first: findings are for people, who can wait.
        self.tell(&mut state, lane, before.as_deref());
        let at = Instant::now();
        if lane == Lane::All {
            state.findings = C::findings(&snapshot).into();
        }
        let (followed, findings) = (current(&state), state.findings.clone());
        drop(state);
        self.acknowledgements.published(Publication::new(stores, &snapshot, &findings, since, at), followed);
        lane
    }

    fn take_waiting(&self, state: &mut State<C::Scope>) {
        for (peer, sender) in lock(&self.waiting).drain(..) {
            state.followers.entry(peer).or_default().push(sender);
        }
    }

    /// Brings every scope up to date and tells its pods.
    fn tell(&self, state: &mut State<C::Scope>, lane: Lane, before: Option<&Snapshot>) {
        let Some(snapshot) = state.snapshot.clone() else { return };
        state.followers.retain(|_, senders| {
            senders.retain(|sender| sender.receiver_count() > 0);
            !senders.is_empty()
        });
        let State { followers, scopes, pool, last_id, .. } = state;
        let shared = C::Shared::default();
        let old = std::mem::take(scopes);
        let mut round =
            Round::<C> { snapshot: &snapshot, lane, before, old, new: BTreeMap::new(), shared, pool, last_id };
        for (peer, senders) in followers {
            let target = round.target(peer);
            for sender in senders {
                sender.send_if_modified(|current| replace(current, &target));
            }
        }
        *scopes = round.new;
        state.pool.forget_unused();
        self.metrics.scopes.set(i64::try_from(state.scopes.len()).unwrap_or(i64::MAX));
    }
}

/// Puts a target in the place of another; says whether it is another one. A proxy whose pod has just gone from the store
/// keeps its configuration until it disconnects.
fn replace(current: &mut Target, target: &Target) -> bool {
    let keep = match (&*current, target) {
        (Target::Unknown, Target::Unknown)
        | (Target::Foreign, Target::Foreign)
        | (Target::Ready(_), Target::Unknown) => true,
        (Target::Ready(one), Target::Ready(two)) => Arc::ptr_eq(one, two),
        _ => false,
    };
    if !keep {
        *current = target.clone();
    }
    !keep
}

/// Which configuration each connected pod should hold now.
fn current<S>(state: &State<S>) -> BTreeMap<PodIdentity, Arc<Configuration>> {
    let ready = |senders: &Vec<watch::Sender<Target>>| match &*senders.first()?.borrow() {
        Target::Ready(configuration) => Some(configuration.clone()),
        Target::Unknown | Target::Foreign => None,
    };
    state.followers.iter().filter_map(|(peer, senders)| Some((peer.clone(), ready(senders)?))).collect()
}

/// One publication while it is made.
struct Round<'a, C: Compile> {
    snapshot: &'a Snapshot,
    lane: Lane,
    /// The snapshot before; `None` when nothing changed but who listens.
    before: Option<&'a Snapshot>,
    old: BTreeMap<C::Scope, Cached>,
    new: BTreeMap<C::Scope, Cached>,
    shared: C::Shared,
    pool: &'a mut Pool,
    last_id: &'a mut u64,
}

impl<C: Compile> Round<'_, C> {
    /// What a pod should hold now.
    fn target(&mut self, peer: &PodIdentity) -> Target {
        let Some(pod) = self.snapshot.workloads.get(&peer.pod) else { return Target::Unknown };
        if pod.uid != peer.uid || pod.identity.service_account != peer.service_account {
            return Target::Foreign;
        }
        let Some(scope) = C::scope_of(self.snapshot, &peer.pod) else { return Target::Unknown };
        if let Some(made) = self.new.get(&scope) {
            return Target::Ready(made.configuration.clone());
        }
        let made = self.make(&scope);
        let configuration = made.configuration.clone();
        self.new.insert(scope, made);
        Target::Ready(configuration)
    }

    fn make(&mut self, scope: &C::Scope) -> Cached {
        let cached = self.old.remove(scope);
        let previous = cached.as_ref().map(|cached| cached.configuration.clone());
        let mut resources = match (cached, self.lane, self.before) {
            (Some(cached), Lane::Endpoints, None) => return cached,
            (Some(cached), Lane::Endpoints, Some(before)) => {
                endpoints::<C>(cached.resources, before, self.snapshot, scope)
            }
            _ => C::resources(self.snapshot, scope, &mut self.shared),
        };
        self.pool.share(&mut resources);
        *self.last_id += 1;
        let made = Configuration::assemble(*self.last_id, &resources, previous.as_deref());
        let configuration = match previous {
            Some(previous) if previous.equals(&made) => previous,
            _ => Arc::new(made),
        };
        Cached { resources, configuration }
    }
}

/// Translates again the endpoints of those services only whose endpoints differ.
fn endpoints<C: Compile>(mut resources: Resources, before: &Snapshot, after: &Snapshot, scope: &C::Scope) -> Resources {
    let changed = |cluster: &str| {
        let host = cluster.rsplit('|').next().unwrap_or_default();
        Host::parse(host).map_or(true, |host| before.endpoints.get(&host) != after.endpoints.get(&host))
    };
    if let Some(all) = resources.by_type.get_mut(ENDPOINTS) {
        all.retain(|cluster, resource| {
            if !changed(cluster) {
                return true;
            }
            match C::endpoints(after, scope, cluster) {
                Some(made) => {
                    *resource = Arc::new(made);
                    true
                }
                None => false,
            }
        });
    }
    resources
}

impl<C: Compile> Configs for Publisher<C> {
    fn follow(&self, peer: &PodIdentity) -> watch::Receiver<Target> {
        let sender = watch::Sender::new(Target::Unknown);
        let receiver = sender.subscribe();
        lock(&self.waiting).push((peer.clone(), sender));
        self.joined.send_modify(|count| *count += 1);
        receiver
    }

    fn progress(&self, stream: u64, peer: &PodIdentity, progress: Progress) {
        self.acknowledgements.progress(stream, peer, progress, Instant::now());
    }

    fn gone(&self, stream: u64) {
        self.acknowledgements.gone(stream);
    }
}

impl<C: Compile> Directory for Publisher<C> {
    async fn pod(&self, pod: &ObjectKey, wait: Duration) -> Option<KnownPod> {
        let mut snapshots = self.snapshots.subscribe();
        let find = |snapshot: &Option<Arc<Snapshot>>| {
            let snapshot = snapshot.as_ref()?;
            let workload = snapshot.workloads.get(pod)?;
            Some(KnownPod {
                uid: workload.uid.clone(),
                service_account: workload.identity.service_account.clone(),
                trust_domain: snapshot.mesh.trust_domain.clone(),
            })
        };
        let arrived = tokio::time::timeout(wait, snapshots.wait_for(|snapshot| find(snapshot).is_some())).await;
        arrived.ok()?.ok().and_then(|snapshot| find(&snapshot))
    }
}
