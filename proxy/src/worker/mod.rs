//! Workers: one thread a core, each with its own runtime, pools, balancers and metrics.
//!
//! Nothing on the request path is shared between workers. Connections are accepted in one place and handed to the worker that
//! has the fewest; configuration comes by message and is taken up between requests.

mod accept;
mod group;
mod root;
#[cfg(test)]
mod tests;
mod timer;

pub use group::{ListenSocket, Settings, SpawnError, Workers, spawn};
pub use root::WorkerRoot;
pub use timer::{Timer, earlier, jittered};

use crate::{
    balance::Rng,
    config::{Direction, Network, Root},
    listen::Place,
    overload::{self, Levels},
    telemetry::{ServiceLabels, Shard, WorkloadLabels},
    tls::{Connector, CredentialStore, Pace},
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::poll_fn,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    task::{Poll, Waker},
    time::{Duration, Instant},
};

/// How long a connection without a request is kept at least that should end. Closed at once it could meet a request that is already on
/// its way, and that the client may not repeat; so the next request is answered, with `connection: close`.
const DRAIN_IDLE: Duration = Duration::from_secs(1);
/// Between two looks at idle connections: at most, and at least where they may be idle for a short time only.
const SWEEP: Duration = Duration::from_secs(1);
const SWEEP_OFTEN: Duration = Duration::from_millis(50);
/// How much later than it should a connection may end because it was idle: a fifth of the time.
const SWEEPS: u32 = 5;
/// Between two reports of what became of requests, where some cluster takes endpoints out by their rates of success.
const TELL: Duration = Duration::from_millis(250);

/// Between two looks at metrics of which nothing is counted any more.
const EXPIRED: Duration = Duration::from_secs(60);

fn published(root: &WorkerRoot) -> Vec<Arc<crate::telemetry::stats::PublishedCluster>> {
    root.clusters().map(|cluster| cluster.published().clone()).collect()
}

/// Labels for what is not known, made once.
#[derive(Debug)]
pub struct Unknown {
    /// A workload.
    pub workload: Arc<WorkloadLabels>,
    /// A service.
    pub service: Arc<ServiceLabels>,
}

/// What the admin server asked of connections of HTTP: to end with an answer, more and more of them while time goes on.
#[derive(Debug, Clone, Copy, Default)]
struct Asked {
    /// Since when those of clients of this pod are to.
    inbound: Option<Instant>,
    /// Since when all others are to.
    outbound: Option<Instant>,
    /// How long it takes until all do.
    over: Duration,
}

impl Asked {
    /// Whether a connection of that direction ends now; `below` draws a number.
    fn ends(&self, direction: Direction, below: impl FnOnce(u64) -> u64) -> bool {
        let since = match direction {
            Direction::Inbound => self.inbound,
            Direction::Outbound => self.outbound,
        };
        since.is_some_and(|since| ends_by_now(since, self.over, below))
    }
}

/// Whether one of the connections ends now of which more and more do from `since` on, and all that are asked when the time is `over`;
/// `below` draws a number. As in Envoy: in whole seconds, and for certain after half of the time.
fn ends_by_now(since: Instant, over: Duration, below: impl FnOnce(u64) -> u64) -> bool {
    let half = over.as_secs().div_ceil(2);
    half == 0 || below(half) < since.elapsed().as_secs()
}

/// What belongs to one worker. Lives on its thread only.
pub struct Worker {
    /// Its number, from 0.
    pub index: usize,
    /// Its random numbers.
    pub rng: Rng,
    /// Its metrics and log lines.
    pub shard: Rc<Shard>,
    /// Its TLS client.
    pub tls: Connector,
    /// The pace of its handshakes with clients.
    pub handshakes: Pace,
    /// Labels for what is not known.
    pub unknown: Unknown,
    credentials: CredentialStore,
    workers: u32,
    root: RefCell<Rc<WorkerRoot>>,
    draining: Cell<Option<Instant>>,
    /// How long a connection without a request is kept while draining.
    drain_idle: Cell<Duration>,
    asked: Cell<Asked>,
    levels: Cell<Levels>,
    /// When listeners or filter chains last came, went or changed what they are for; until they have, no connection has to look for its own.
    listeners_changed: Cell<Option<Instant>>,
    wakers: RefCell<HashMap<u64, Waker>>,
    next_waker: Cell<u64>,
    next_connection: Cell<u64>,
    date: RefCell<(i64, Rc<str>)>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Worker({})", self.index)
    }
}

impl Worker {
    /// A worker that begins with this root.
    pub fn new(index: usize, workers: usize, root: Arc<Root>, shard: Shard, credentials: CredentialStore) -> Rc<Self> {
        let rng = Rng::from_entropy();
        let workers = u32::try_from(workers).unwrap_or(u32::MAX).max(1);
        let root = Rc::new(WorkerRoot::new(root, None, workers, &rng));
        shard.publish_clusters(published(&root));
        tell_names(&shard, &root);
        Rc::new(Self {
            index,
            rng,
            shard: Rc::new(shard),
            tls: Connector::new(credentials.clone()),
            handshakes: Pace::default(),
            unknown: Unknown { workload: WorkloadLabels::unknown(), service: ServiceLabels::cluster_only("unknown") },
            credentials,
            workers,
            root: RefCell::new(root),
            draining: Cell::new(None),
            drain_idle: Cell::new(Duration::ZERO),
            asked: Cell::default(),
            levels: Cell::default(),
            listeners_changed: Cell::new(None),
            wakers: RefCell::default(),
            next_waker: Cell::new(0),
            next_connection: Cell::new(1),
            date: RefCell::new((0, Rc::from(""))),
        })
    }

    /// The newest configuration; a request keeps the one that it got.
    pub fn root(&self) -> Rc<WorkerRoot> {
        self.root.borrow().clone()
    }

    /// Takes up a new configuration.
    pub fn take_up(&self, root: Arc<Root>) {
        let before = self.root();
        let changed = before.config().listeners.lead_elsewhere(&root.listeners);
        let new = WorkerRoot::new(root, Some(&before), self.workers, &self.rng);
        self.shard.publish_clusters(published(&new));
        tell_names(&self.shard, &new);
        *self.root.borrow_mut() = Rc::new(new);
        if changed {
            self.listeners_changed.set(Some(Instant::now()));
            for waker in self.wakers.borrow().values() {
                waker.wake_by_ref();
            }
        }
    }

    /// Since when a connection of that place should end when it can: all are to, or what it belongs to is gone.
    pub fn ends_since(&self, place: &Place) -> Option<Instant> {
        self.draining_since().or_else(|| self.gone_since(place))
    }

    /// When a connection of that place ends that is without a request since then: none is left waiting for ever where all are to
    /// end, or where what it belongs to is gone.
    pub fn idle_end(&self, place: &Place, since: Instant) -> Option<Instant> {
        match self.draining_since() {
            Some(drain) => Some(drain.max(since) + self.drain_idle.get().max(DRAIN_IDLE)),
            None => {
                let gone = self.gone_since(place)?;
                Some((gone.max(since) + DRAIN_IDLE).max(gone + self.root.borrow().config().drain.time))
            }
        }
    }

    /// Whether a connection of that place, of which what it belongs to is gone, ends with its next answer: more and more of them do
    /// while the time for it goes by.
    pub fn ends_with_answer(&self, place: &Place) -> bool {
        let over = self.root.borrow().config().drain.over();
        self.gone_since(place).is_some_and(|since| ends_by_now(since, over, |bound| self.rng.below(bound)))
    }

    /// When a connection of that place takes no further request: all are to end, or the time is over in which those do whose listener
    /// or chain is gone.
    pub fn last_moment(&self, place: &Place) -> Option<Instant> {
        let over = || self.root.borrow().config().drain.over();
        self.draining_since().or_else(|| self.gone_since(place).map(|gone| gone + over()))
    }

    /// Waits until what a connection of that place belongs to is gone, and the time is over that it may take to end.
    pub async fn outlived(self: &Rc<Self>, place: &Place) {
        let over = || self.root.borrow().config().drain.time;
        self.until(|| self.gone_since(place).map(|gone| gone + over())).await;
    }

    /// Waits until a moment that depends on where connections belong, and on whether they are to end: it is asked again whenever that
    /// changes.
    pub async fn until(self: &Rc<Self>, moment: impl Fn() -> Option<Instant>) {
        let _registered = self.register().await;
        let mut timer = Timer::default();
        poll_fn(|cx| timer.poll(cx, moment())).await;
    }

    fn gone_since(&self, place: &Place) -> Option<Instant> {
        // Who waits was woken then.
        place.gone_since(self.root.borrow().config(), self.listeners_changed.get()?)
    }

    /// A number for a connection, unlike any other of this process.
    pub fn connection_id(&self) -> u64 {
        let number = self.next_connection.get();
        self.next_connection.set(number + 1);
        (number - 1) * u64::from(self.workers) + self.index as u64 + 1
    }

    /// The workload's certificates.
    pub fn credentials(&self) -> &CredentialStore {
        &self.credentials
    }

    /// Whether connections should end when they can.
    pub fn is_draining(&self) -> bool {
        self.draining.get().is_some()
    }

    /// Whether a connection of that direction should end with the answer that it is about to carry: draining, or since the admin
    /// server was asked for it; health checks that are to fail count unless its listener cares for changes alone.
    pub fn ends_in_time(&self, direction: Direction, changes_only: bool) -> bool {
        self.is_draining()
            || !changes_only && crate::admin::is_failed()
            || self.asked.get().ends(direction, |bound| self.rng.below(bound))
    }

    /// Has connections of HTTP end with an answer, more and more of them while `over` goes by.
    pub fn ask(&self, inbound_only: bool, over: Duration) {
        let mut asked = Asked { over, ..self.asked.get() };
        let now = Instant::now();
        asked.inbound.get_or_insert(now);
        if !inbound_only {
            asked.outbound.get_or_insert(now);
        }
        self.asked.set(asked);
    }

    /// Notes how much is to be refused from now on.
    pub fn shed(&self, levels: Levels) {
        self.levels.set(levels);
    }

    /// Whether an action that saves memory is taken now; one that is taken for a share falls by chance.
    pub fn sheds(&self, action: overload::Action) -> bool {
        match self.levels.get().of(action) {
            0 => false,
            Levels::WHOLE => true,
            level => self.rng.below(u64::from(Levels::WHOLE)) < u64::from(level),
        }
    }

    /// Whether an action that saves memory is taken altogether.
    pub fn sheds_all(&self, action: overload::Action) -> bool {
        self.levels.get().of(action) == Levels::WHOLE
    }

    /// Since when connections should end when they can.
    pub fn draining_since(&self) -> Option<Instant> {
        self.draining.get()
    }

    /// Begins to drain: every response says that the connection ends, and connections that have been without a request for `idle`
    /// close.
    pub fn drain(&self, idle: Duration) {
        self.drain_idle.set(idle);
        if self.draining.get().is_none() {
            self.draining.set(Some(Instant::now()));
        }
        for waker in self.wakers.borrow().values() {
            waker.wake_by_ref();
        }
    }

    /// Takes back [`Self::drain`]: connections that have not been told to end go on.
    pub fn resume(&self) {
        self.draining.set(None);
    }

    /// Registers the calling task to be woken when draining begins, for as long as the guard lives.
    pub async fn register(self: &Rc<Self>) -> Registered {
        let key = self.next_waker.get();
        self.next_waker.set(key + 1);
        poll_fn(|cx| {
            self.wakers.borrow_mut().insert(key, cx.waker().clone());
            Poll::Ready(())
        })
        .await;
        Registered { worker: self.clone(), key }
    }

    /// The time for a `date` header (RFC 9110, 5.6.7), made at most once a second.
    pub fn date(&self) -> Rc<str> {
        let now = time::OffsetDateTime::now_utc();
        let mut date = self.date.borrow_mut();
        if date.0 != now.unix_timestamp() || date.1.is_empty() {
            let weekday = &now.weekday().to_string()[..3];
            let month = &now.month().to_string()[..3];
            let (hour, minute, second) = now.to_hms();
            let text =
                format!("{weekday}, {:02} {month} {} {hour:02}:{minute:02}:{second:02} GMT", now.day(), now.year());
            *date = (now.unix_timestamp(), text.into());
        }
        date.1.clone()
    }

    /// Closes idle upstream connections that are too old or were closed by the endpoint, again and again.
    pub async fn sweep(self: Rc<Self>) {
        let mut expired = Instant::now();
        let mut swept = expired;
        loop {
            let rates = self.root().clusters().any(|cluster| cluster.counts_rates());
            let root = self.root();
            let limits = root.clusters().map(|cluster| cluster.config().idle_timeout);
            let shortest = limits.filter(|limit| !limit.is_zero()).min();
            drop(root);
            let pause = shortest.map_or(SWEEP, |limit| (limit / SWEEPS).clamp(SWEEP_OFTEN, SWEEP));
            tokio::time::sleep(if rates { TELL.min(pause) } else { pause }).await;
            let root = self.root();
            let now = Instant::now();
            if now.duration_since(swept) < pause {
                root.clusters().for_each(|cluster| cluster.tell_counts());
                continue;
            }
            swept = now;
            if now.duration_since(expired) >= EXPIRED {
                expired = now;
                self.shard.expire(now);
            }
            poll_fn(|cx| {
                for cluster in root.clusters() {
                    cluster.sweep(cx, now);
                }
                Poll::Ready(())
            })
            .await;
        }
    }
}

/// Listeners and connection managers are told from the start, not only when somebody has come.
fn tell_names(shard: &Shard, root: &WorkerRoot) {
    for listener in root.config().listeners.all() {
        if listener.bind {
            let secured =
                listener.chains.all().iter().chain(listener.chains.default_chain()).any(|chain| chain.tls.is_some());
            shard.listener_stats(&listener.stat_name).secured.store(secured, Ordering::Relaxed);
        }
        for chain in listener.chains.all().iter().chain(listener.chains.default_chain()) {
            if let Network::Http(manager) = &chain.network {
                shard.http_stats(&manager.stat_prefix);
            }
        }
    }
}

/// Keeps a task registered with [`Worker::register`].
#[derive(Debug)]
pub struct Registered {
    worker: Rc<Worker>,
    key: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.worker.wakers.borrow_mut().remove(&self.key);
    }
}
