//! Looks after endpoints: finds them by name, asks whether they are well, takes those out that fail.
//!
//! What is decided here changes the tree that workers get: an endpoint that is not well is in it as one, addresses of names
//! are endpoints. So workers know one kind of change, and nothing of it lies on the way of a request. Roots in which no
//! cluster needs this pass straight through; with the first that does, a thread of its own begins, so that neither look-ups
//! nor handshakes of checks delay anything else. It is the only place that decides, whatever the number of workers; they tell
//! it what they saw ([`crate::config::Report`]).

mod cluster;
mod ejections;
mod events;
mod machine;
mod names;
mod probe;
#[cfg(test)]
mod tests;
mod turns;

use crate::balance::Rng;
use crate::config::{Cluster, ClusterId, ClusterKind, Report, Root};
use crate::telemetry::logsink::Outputs;
use crate::tls::{Connector, CredentialStore};
use cluster::Watched;
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::LocalSet;

/// How long the first root waits for names and first checks.
const WARMING_LIMIT: Duration = Duration::from_secs(5);
/// Events of look-ups and checks that may wait; those who have more wait themselves.
const EVENTS: usize = 1024;
/// Reports of workers that may wait; more are lost, and come again with the next failures.
const REPORTS: usize = 4096;
/// Events that are taken together before a new tree is made of them.
const BATCH: usize = 256;
/// Look-ups under way at once.
const LOOK_UPS: usize = 256;
/// Checks under way at once, and those of one cluster: endpoints of which nothing is heard hold their places for as long as a check may
/// take, and must not keep those of other clusters from being checked.
const CHECKS: usize = 4096;
const CHECKS_OF_CLUSTER: usize = 512;

/// What a look-up or a check found.
#[derive(Debug)]
enum Event {
    /// Addresses of a name; `None`: it could not be found out.
    Resolved { cluster: ClusterId, task: u64, addresses: Option<Vec<IpAddr>> },
    /// Whether an endpoint is well.
    Checked { cluster: ClusterId, task: u64, address: SocketAddr, verdict: machine::Verdict },
}

/// What tasks share.
struct Shared {
    tls: Connector,
    rng: Rng,
    look_ups: Semaphore,
    checks: Semaphore,
    events: mpsc::Sender<Event>,
    /// Where lines about checks go: this thread may wait for a disk.
    outputs: RefCell<Outputs<std::io::Stdout>>,
}

/// The roots as workers shall have them. The task ends with the sender of `roots`.
pub(super) fn stage(
    mut roots: watch::Receiver<Option<Arc<Root>>>,
    credentials: CredentialStore,
) -> watch::Receiver<Option<Arc<Root>>> {
    let (out, receiver) = watch::channel(None);
    tokio::spawn(async move {
        while roots.changed().await.is_ok() {
            let Some(root) = roots.borrow_and_update().clone() else { continue };
            if !root.clusters.iter().flatten().any(|cluster| needs_care(cluster)) {
                out.send_replace(Some(root));
                continue;
            }
            let begun = std::thread::Builder::new().name("upstreams".to_owned()).spawn(move || {
                let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        tracing::error!(%error, "no runtime to look after endpoints");
                        return;
                    }
                };
                LocalSet::new().block_on(&runtime, Actor::new(root, out, credentials).run(roots));
                runtime.shutdown_background();
            });
            if let Err(error) = begun {
                tracing::error!(%error, "no thread to look after endpoints");
            }
            return;
        }
    });
    receiver
}

/// Whether somebody has to look after a cluster's endpoints.
fn needs_care(cluster: &Cluster) -> bool {
    cluster.dns.is_some()
        || cluster.kind != ClusterKind::OriginalDst && (cluster.outliers.is_some() || !cluster.checks.is_empty())
}

/// The one that looks after endpoints.
struct Actor {
    base: Arc<Root>,
    out: watch::Sender<Option<Arc<Root>>>,
    watched: HashMap<ClusterId, Watched>,
    shared: Rc<Shared>,
    events: mpsc::Receiver<Event>,
    reports: mpsc::Receiver<Report>,
    reporter: mpsc::Sender<Report>,
    /// Until then the first root waits for what is not known yet.
    hold: Option<Instant>,
}

impl Actor {
    fn new(root: Arc<Root>, out: watch::Sender<Option<Arc<Root>>>, credentials: CredentialStore) -> Self {
        let (sender, events) = mpsc::channel(EVENTS);
        let (reporter, reports) = mpsc::channel(REPORTS);
        let shared = Rc::new(Shared {
            tls: Connector::new(credentials),
            rng: Rng::from_entropy(),
            look_ups: Semaphore::new(LOOK_UPS),
            checks: Semaphore::new(CHECKS),
            events: sender,
            outputs: RefCell::new(Outputs::new(std::io::stdout())),
        });
        let hold = Some(Instant::now() + WARMING_LIMIT);
        let hold = if out.borrow().is_none() { hold } else { None };
        Self { base: root, out, watched: HashMap::new(), shared, events, reports, reporter, hold }
    }

    async fn run(mut self, mut roots: watch::Receiver<Option<Arc<Root>>>) {
        self.take();
        self.publish();
        loop {
            let now = Instant::now();
            let due = self.watched.values().filter_map(Watched::due).chain(self.hold).min();
            let wake = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.max(now).into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = roots.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if let Some(root) = roots.borrow_and_update().clone() {
                        self.base = root;
                        self.take();
                    }
                    self.publish();
                    continue;
                }
                Some(event) = self.events.recv() => {
                    self.note(event);
                    for _ in 0..BATCH {
                        let Ok(event) = self.events.try_recv() else { break };
                        self.note(event);
                    }
                }
                Some(report) = self.reports.recv() => {
                    self.hear(report);
                    for _ in 0..BATCH {
                        let Ok(report) = self.reports.try_recv() else { break };
                        self.hear(report);
                    }
                }
                () = wake => {}
            }
            let now = Instant::now();
            for watched in self.watched.values_mut() {
                watched.tick(now, &self.shared);
            }
            if self.watched.values().any(Watched::is_dirty) || self.hold.is_some() {
                self.publish();
            }
        }
    }

    /// Looks after the clusters of the newest root, and no others.
    fn take(&mut self) {
        let mut before = std::mem::take(&mut self.watched);
        for cluster in self.base.clusters.iter().flatten().filter(|cluster| needs_care(cluster)) {
            let watched = before.remove(&cluster.id);
            let watched = Watched::new(cluster.clone(), watched, &self.shared, &self.reporter);
            self.watched.insert(cluster.id, watched);
        }
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Resolved { cluster, task, addresses } => {
                if let Some(watched) = self.watched.get_mut(&cluster) {
                    watched.resolved(task, addresses, &self.shared);
                }
            }
            Event::Checked { cluster, task, address, verdict } => {
                if let Some(watched) = self.watched.get_mut(&cluster) {
                    watched.checked(task, address, verdict, &self.shared);
                }
            }
        }
    }

    fn hear(&mut self, report: Report) {
        let (Report::Consecutive { cluster, .. } | Report::Unwell { cluster, .. } | Report::Counts { cluster, .. }) =
            report;
        if let Some(watched) = self.watched.get_mut(&cluster) {
            watched.hear(report, Instant::now(), &self.shared);
        }
    }

    /// Gives workers the newest root with what is known of endpoints; the first one not before something is, or time is up.
    fn publish(&mut self) {
        if let Some(until) = self.hold {
            if Instant::now() < until && !self.watched.values().all(Watched::is_warm) {
                return;
            }
            self.hold = None;
        }
        let mut clusters = self.base.clusters.clone();
        for watched in self.watched.values_mut() {
            if let Some(slot) = clusters.get_mut(watched.id().0 as usize) {
                *slot = watched.effective();
            }
        }
        self.out.send_replace(Some(Arc::new(Root {
            version: self.base.version,
            listeners: self.base.listeners.clone(),
            clusters,
            own: self.base.own.clone(),
            most_connections: self.base.most_connections,
            drain: self.base.drain,
            home: self.base.home.clone(),
            ..Root::default()
        })));
    }
}
