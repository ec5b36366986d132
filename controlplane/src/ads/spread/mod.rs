//! Streams spread evenly over the replicas, and leave one by one.
//!
//! A stream stays where it was opened, so a replica that is added or comes back would stand idle until certificates end. Every
//! replica therefore looks, once a second, whether it holds clearly more than its share ([`share`]), and if so ends a few of
//! its streams; their proxies connect again, by the Service and so to any replica, with what they hold, and are sent nothing
//! that they have. It needs to ask no other replica: how many proxies there are, and how many replicas, is in the snapshot.
//! A replica that leaves ends its streams in the same way, all of them, over a while, so that those that stay are not met by
//! all proxies at once.
//!
//! Only streams that have got everything and lived for [`MIN_AGE`] are ended to spread them: nobody is kept from its first
//! configuration, and the wait of a proxy before it connects again has begun anew by then.

mod share;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use leno_core::Host;
use leno_core::snapshot::Snapshot;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics::{Metrics, ResultLabel};

pub use share::{PATIENCE, Share, fair};

/// How often a replica looks at its share.
pub const EVERY: Duration = Duration::from_secs(1);
/// How long a stream lives before it may be ended to spread the others.
pub const MIN_AGE: Duration = Duration::from_secs(10);
/// Longest time over which a leaving replica ends its streams; a pod has 30 s for all of its end.
pub const LEAVE_WITHIN: Duration = Duration::from_secs(15);
/// Longest time between two streams that a leaving replica ends.
const LEAVE_STEP: Duration = Duration::from_millis(100);
/// The label of a pod that says which revision's control plane it connects to.
const REVISION_LABEL: &str = "mesh.leno.dev/rev";

/// Why a stream should end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Others have room.
    Spread,
    /// This replica leaves.
    Leaving,
}

impl Reason {
    /// As the proxy is told.
    pub fn message(self) -> &'static str {
        match self {
            Reason::Spread => "this control plane replica has more than its share of streams: connect again",
            Reason::Leaving => "this control plane replica is leaving: connect to another",
        }
    }
}

/// One stream, as those see it who may end it.
#[derive(Debug)]
struct Open {
    since: Instant,
    settled: Arc<AtomicBool>,
    end: watch::Sender<Option<Reason>>,
}

/// The open streams of this replica. Cheap to clone; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Streams {
    open: Arc<Mutex<BTreeMap<u64, Open>>>,
    leaving: Arc<AtomicBool>,
}

/// A stream's own part; dropped when it is gone.
#[derive(Debug)]
pub struct Membership {
    number: u64,
    streams: Streams,
    settled: Arc<AtomicBool>,
    end: watch::Receiver<Option<Reason>>,
}

impl Membership {
    /// The proxy has all that it should hold; or it does not.
    pub fn set_settled(&self, settled: bool) {
        self.settled.store(settled, Ordering::Relaxed);
    }

    /// Resolves when the stream should end.
    pub async fn ended(&mut self) -> Reason {
        let reason = self.end.wait_for(Option::is_some).await.map(|reason| *reason);
        match reason {
            Ok(reason) => reason.unwrap_or(Reason::Leaving),
            // The sender lives in the list until this is dropped.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.streams.lock().remove(&self.number);
    }
}

impl Streams {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a stream; `None` when this replica takes no more, since it is leaving.
    pub fn enter(&self, number: u64) -> Option<Membership> {
        let settled = Arc::new(AtomicBool::new(false));
        let (end, ended) = watch::channel(None);
        let mut open = self.lock();
        // Looked at under the lock, so that whoever leaves sees every stream that got in before.
        if self.leaving.load(Ordering::Relaxed) {
            return None;
        }
        open.insert(number, Open { since: Instant::now(), settled: settled.clone(), end });
        drop(open);
        Some(Membership { number, streams: self.clone(), settled, end: ended })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Asks up to `count` streams to end, the oldest first: those that are settled and `now` older than `min_age`. Returns how
    /// many were asked.
    pub fn shed(&self, count: usize, min_age: Duration, now: Instant) -> usize {
        let open = self.lock();
        let old = open.values().filter(|stream| {
            now.saturating_duration_since(stream.since) >= min_age
                && stream.settled.load(Ordering::Relaxed)
                && stream.end.borrow().is_none()
        });
        let chosen: Vec<_> = old.take(count).collect();
        for stream in &chosen {
            stream.end.send_replace(Some(Reason::Spread));
        }
        chosen.len()
    }

    /// Takes no more streams and ends those that are open, evenly over a time that grows with their number up to `within`.
    /// Returns how many there were.
    pub async fn leave(&self, within: Duration) -> usize {
        let numbers: Vec<u64> = {
            let open = self.lock();
            self.leaving.store(true, Ordering::Relaxed);
            open.keys().copied().collect()
        };
        let total = u32::try_from(numbers.len()).unwrap_or(u32::MAX).max(1);
        let step = LEAVE_STEP.min(within / total);
        let start = Instant::now();
        for (position, number) in numbers.iter().enumerate() {
            if let Some(stream) = self.lock().get(number) {
                stream.end.send_replace(Some(Reason::Leaving));
            }
            // By the clock and not by sleeps that add up: timers are coarser than the steps of many streams.
            let next = start + step * u32::try_from(position + 1).unwrap_or(u32::MAX);
            tokio::time::sleep_until(next).await;
        }
        numbers.len()
    }
}

/// How many replicas and proxies there are, as far as this revision is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crowd {
    /// Replicas that take new streams.
    pub replicas: usize,
    /// Pods with a proxy whose label names this revision.
    pub proxies: usize,
}

impl Crowd {
    /// Counts in a snapshot. Replicas are the endpoints of the revision's Service in `namespace`.
    pub fn of(snapshot: &Snapshot, revision: &str, namespace: &str) -> Self {
        let host = Host::of_service(&format!("leno-control-plane-{revision}"), namespace, &snapshot.mesh.domain);
        let ports = snapshot.endpoints.get(&host);
        let replicas = ports.and_then(|ports| ports.values().map(|endpoints| endpoints.len()).max()).unwrap_or(0);
        let proxies = snapshot.workloads.values().filter(|workload| {
            workload.meshed
                && !workload.addresses.is_empty()
                && workload.labels.get(REVISION_LABEL).is_some_and(|label| label == revision)
        });
        Crowd { replicas, proxies: proxies.count() }
    }
}

/// Looks at the share of this replica every [`EVERY`], until `stop`.
pub async fn run(
    streams: Streams,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    (revision, namespace): (String, String),
    metrics: Metrics,
    stop: CancellationToken,
) {
    let mut share = Share::default();
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let open = streams.count();
        if open < 2 {
            continue;
        }
        let snapshot = snapshots.borrow().clone();
        let Some(snapshot) = snapshot else { continue };
        let crowd = Crowd::of(&snapshot, &revision, &namespace);
        let surplus = share.surplus(open, crowd, Instant::now());
        let ended = if surplus > 0 { streams.shed(surplus, MIN_AGE, Instant::now()) } else { 0 };
        if ended > 0 {
            metrics.ended.get_or_create(&ResultLabel::new("spread")).inc_by(ended as u64);
            tracing::info!(
                streams = open,
                ended,
                replicas = crowd.replicas,
                proxies = crowd.proxies,
                "more than this replica's share of streams; ending a few"
            );
        }
    }
}

#[cfg(test)]
mod tests;
