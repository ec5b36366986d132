//! What the proxies of every pod last told of themselves, gathered from all control plane replicas.
//!
//! ```text
//! replicas' streams → table (by replica) → one snapshot, at most once a second → the loop's look
//! ```
//!
//! Nothing is written. Bounds: one stream a replica, [`MAX_PROXIES`] reports of each, [`QUEUE`] messages on their way (a replica
//! that says more waits). The loop is woken only when something else than counts has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use leno_api::proxies::v1::proxy_status_client::ProxyStatusClient;
use leno_api::proxies::v1::{Counts, ProxiesReport, ProxyRef, ProxyReport, WatchProxiesRequest};
use leno_kubeutil::watch::Key;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::observe::Watches;
use crate::traffic::dial::{DialError, Pair, RETRY, Replica, connect};
use crate::traffic::{pair, replicas};

/// The last report of every process that serves, by pod, sorted by slot. Two of one pod while one hands over to the other.
pub type Snapshot = Arc<BTreeMap<Key, Vec<ProxyReport>>>;

/// Most proxies that are remembered of one replica; more are left out and logged.
pub const MAX_PROXIES: usize = 20_000;
/// Messages of replicas that wait to be taken.
pub const QUEUE: usize = 64;
/// Time between two snapshots.
const EVERY: Duration = Duration::from_secs(1);
/// What a replica said counts for so long after its stream ended: its proxies are about to tell another one.
const GRACE: Duration = Duration::from_secs(10);
/// The same of one proxy that has left it. Replicas are heard once a second each, so that the one that it went to may be heard
/// later than the one that it left.
const MOVE: Duration = Duration::from_secs(3);
/// Largest message of a replica, bytes.
const MAX_MESSAGE: usize = 16 << 20;

/// Runs until `shutdown`.
pub async fn run(watches: &Watches, shutdown: CancellationToken) {
    let (sender, mut incoming) = mpsc::channel(QUEUE);
    let (mut pods, mut installs) = (watches.pods().subscribe(), watches.installs().subscribe());
    let mut streams: BTreeMap<String, (Replica, CancellationToken)> = BTreeMap::new();
    let mut table = Table::default();
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    follow(watches, &mut streams, &sender, &shutdown);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            Ok(()) = pods.changed() => follow(watches, &mut streams, &sender, &shutdown),
            Ok(()) = installs.changed() => follow(watches, &mut streams, &sender, &shutdown),
            Some(message) = incoming.recv() => table.hear(message, Instant::now()),
            _ = every.tick() => {
                table.forget(Instant::now());
                if let Some(snapshot) = table.snapshot() {
                    let before = watches.reports().send_replace(snapshot.clone());
                    if standing(&before) != standing(&snapshot) {
                        watches.waker().notify_one();
                    }
                }
            }
        }
    }
}

/// Opens streams to new replicas and closes those to replicas that are gone.
fn follow(
    watches: &Watches,
    streams: &mut BTreeMap<String, (Replica, CancellationToken)>,
    sender: &mpsc::Sender<Message>,
    shutdown: &CancellationToken,
) {
    let wanted = replicas(&watches.installs().objects(), &watches.pods().objects());
    streams.retain(|uid, (replica, cancel)| {
        let stays = wanted.get(uid) == Some(replica);
        if !stays {
            cancel.cancel();
        }
        stays
    });
    for (uid, replica) in wanted {
        if streams.contains_key(&uid) {
            continue;
        }
        let cancel = shutdown.child_token();
        tokio::spawn(listen(replica.clone(), pair(watches, &replica), sender.clone(), cancel.clone()));
        streams.insert(uid, (replica, cancel));
    }
}

/// What comes from a replica.
enum Message {
    Report(String, ProxiesReport),
    /// The stream has ended.
    Gone(String),
}

/// Keeps a stream open until `cancelled`.
async fn listen(
    replica: Replica,
    pair: impl Fn() -> Option<Pair> + Send,
    sender: mpsc::Sender<Message>,
    cancelled: CancellationToken,
) {
    let mut wait = RETRY.0;
    loop {
        if let Some(pair) = pair() {
            let begun = Instant::now();
            let result = tokio::select! {
                () = cancelled.cancelled() => Ok(()),
                result = stream(&replica, &pair, &sender) => result,
            };
            if let Err(error) = result {
                tracing::debug!(pod = replica.pod, %error, "no stream of proxies' reports");
            }
            if begun.elapsed() > RETRY.1 {
                wait = RETRY.0;
            }
        }
        let gone = sender.send(Message::Gone(replica.uid.clone())).await;
        if cancelled.is_cancelled() || gone.is_err() {
            return;
        }
        tokio::select! {
            () = cancelled.cancelled() => return,
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(RETRY.1),
        }
    }
}

async fn stream(replica: &Replica, pair: &Pair, sender: &mpsc::Sender<Message>) -> Result<(), DialError> {
    let channel = connect(replica, pair).await?;
    let mut client = ProxyStatusClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let mut reports = client.watch(WatchProxiesRequest {}).await?.into_inner();
    tracing::info!(pod = replica.pod, "listening to the proxies of a control plane replica");
    while let Some(report) = reports.message().await? {
        if sender.send(Message::Report(replica.uid.clone(), report)).await.is_err() {
            return Ok(());
        }
    }
    Err(DialError::Closed)
}

type Place = (Key, u32);

struct Arrived {
    report: ProxyReport,
    at: Instant,
    /// Since when the proxy is not connected there any more.
    left: Option<Instant>,
}

/// What one replica said.
#[derive(Default)]
struct Said {
    proxies: BTreeMap<Place, Arrived>,
    /// Since when it says nothing any more.
    gone: Option<Instant>,
}

/// What all replicas said.
#[derive(Default)]
struct Table {
    replicas: BTreeMap<String, Said>,
    changed: bool,
}

impl Table {
    fn hear(&mut self, message: Message, now: Instant) {
        match message {
            Message::Gone(replica) => {
                if let Some(said) = self.replicas.get_mut(&replica) {
                    said.gone.get_or_insert(now);
                }
            }
            Message::Report(replica, ProxiesReport { full, proxies, gone }) => {
                let said = self.replicas.entry(replica).or_default();
                said.gone = None;
                if full {
                    said.proxies.clear();
                }
                for ProxyRef { namespace, pod, slot } in gone {
                    if let Some(arrived) = said.proxies.get_mut(&(Key::new(namespace, pod), slot)) {
                        arrived.left.get_or_insert(now);
                    }
                }
                for report in proxies {
                    let place = (Key::new(report.namespace.clone(), report.pod.clone()), report.slot);
                    if said.proxies.len() >= MAX_PROXIES && !said.proxies.contains_key(&place) {
                        tracing::warn!(limit = MAX_PROXIES, "more proxies report than are remembered");
                        break;
                    }
                    said.proxies.insert(place, Arrived { report, at: now, left: None });
                }
                self.changed = true;
            }
        }
    }

    /// Forgets replicas that have been gone for a while, and proxies that went nowhere else.
    fn forget(&mut self, now: Instant) {
        let size = |replicas: &BTreeMap<String, Said>| {
            (replicas.len(), replicas.values().map(|said| said.proxies.len()).sum::<usize>())
        };
        let before = size(&self.replicas);
        self.replicas.retain(|_, said| said.gone.is_none_or(|gone| now - gone < GRACE));
        for said in self.replicas.values_mut() {
            said.proxies.retain(|_, arrived| arrived.left.is_none_or(|left| now - left < MOVE));
        }
        self.changed |= size(&self.replicas) != before;
    }

    /// Everything, if it has changed since the last call.
    fn snapshot(&mut self) -> Option<Snapshot> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let mut newest: BTreeMap<&Place, &Arrived> = BTreeMap::new();
        for (place, arrived) in self.replicas.values().flat_map(|said| &said.proxies) {
            let held = newest.entry(place).or_insert(arrived);
            if age(arrived) > age(held) {
                *held = arrived;
            }
        }
        let mut snapshot: BTreeMap<Key, Vec<ProxyReport>> = BTreeMap::new();
        for ((pod, _), arrived) in newest {
            snapshot.entry(pod.clone()).or_default().push(arrived.report.clone());
        }
        Some(Arc::new(snapshot))
    }
}

/// The larger, the newer: a proxy that is still there, a later process, then one that has counted more, then what came later.
fn age(arrived: &Arrived) -> (bool, u64, u64, Instant) {
    let requests = |counts: &Option<Counts>| counts.as_ref().map_or(0, |counts| counts.requests);
    let counted = requests(&arrived.report.inbound).saturating_add(requests(&arrived.report.outbound));
    (arrived.left.is_none(), arrived.report.serving_since_ms, counted, arrived.at)
}

/// What of a report does not change by itself while a proxy serves.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Standing<'a> {
    pod: &'a Key,
    slot: u32,
    version: &'a str,
    serving_since_ms: u64,
    ready: bool,
    draining: bool,
    rejected: u64,
    roots: &'a [u8],
    issuer: &'a [u8],
    hand_over_failure: &'a str,
}

fn standing(snapshot: &BTreeMap<Key, Vec<ProxyReport>>) -> BTreeSet<Standing<'_>> {
    let all = snapshot.iter().flat_map(|(pod, reports)| reports.iter().map(move |report| (pod, report)));
    all.map(|(pod, report)| Standing {
        pod,
        slot: report.slot,
        version: &report.version,
        serving_since_ms: report.serving_since_ms,
        ready: report.ready,
        draining: report.draining,
        rejected: report.rejected,
        roots: &report.roots_sha256,
        issuer: &report.certificate_issuer_sha256,
        hand_over_failure: &report.hand_over_failure,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(pod: &str, slot: u32, since: u64, requests: u64) -> ProxyReport {
        ProxyReport {
            namespace: "shop".to_owned(),
            pod: pod.to_owned(),
            slot,
            serving_since_ms: since,
            inbound: Some(Counts { requests, ..Counts::default() }),
            ..ProxyReport::default()
        }
    }

    fn said(replica: &str, full: bool, proxies: Vec<ProxyReport>) -> Message {
        Message::Report(replica.to_owned(), ProxiesReport { full, proxies, gone: Vec::new() })
    }

    fn of<'a>(snapshot: &'a Snapshot, pod: &str) -> &'a [ProxyReport] {
        snapshot.get(&Key::new("shop", pod)).map_or(&[], Vec::as_slice)
    }

    #[test]
    fn table_when_replicas_know_the_same_proxy_then_the_newer_report_wins() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.hear(said("a", true, vec![report("one", 0, 5, 70), report("one", 1, 9, 1)]), now);
        table.hear(said("b", true, vec![report("one", 0, 5, 60)]), now + EVERY);
        let snapshot = table.snapshot().unwrap();
        assert_eq!(of(&snapshot, "one"), [report("one", 0, 5, 70), report("one", 1, 9, 1)], "sorted by slot");
        assert!(table.snapshot().is_none(), "nothing has changed");
        table.hear(said("b", false, vec![report("one", 0, 8, 0)]), now + EVERY);
        assert_eq!(of(&table.snapshot().unwrap(), "one")[0], report("one", 0, 8, 0), "of a later process");
    }

    #[test]
    fn table_when_a_replica_goes_keeps_what_it_said_for_a_moment() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.hear(said("a", true, vec![report("one", 0, 5, 70)]), now);
        table.hear(Message::Gone("a".to_owned()), now);
        table.forget(now + GRACE / 2);
        assert_eq!(of(&table.snapshot().unwrap(), "one").len(), 1);
        table.forget(now + GRACE);
        assert!(table.snapshot().unwrap().is_empty());
    }

    fn left(pod: &str) -> ProxiesReport {
        let gone = vec![ProxyRef { namespace: "shop".to_owned(), pod: pod.to_owned(), slot: 0 }];
        ProxiesReport { full: false, proxies: Vec::new(), gone }
    }

    #[test]
    fn table_when_a_proxy_goes_forgets_it_after_a_moment() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.hear(said("a", true, vec![report("one", 0, 5, 70), report("two", 0, 5, 70)]), now);
        table.hear(Message::Report("a".to_owned(), left("one")), now);
        table.forget(now + MOVE / 2);
        assert_eq!(of(&table.snapshot().unwrap(), "one").len(), 1, "another replica may have it already");
        table.forget(now + MOVE);
        let snapshot = table.snapshot().unwrap();
        assert_eq!((of(&snapshot, "one").len(), of(&snapshot, "two").len()), (0, 1));
    }

    #[test]
    fn table_when_a_proxy_moves_to_another_replica_is_never_without_it() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.hear(said("a", true, vec![report("one", 0, 5, 70)]), now);
        table.hear(Message::Report("a".to_owned(), left("one")), now);
        table.forget(now + EVERY);
        assert_eq!(of(&table.snapshot().unwrap(), "one"), [report("one", 0, 5, 70)]);
        // A process that began anew meanwhile has counted nothing and does not serve yet: what is there counts.
        table.hear(said("b", true, vec![report("one", 0, 0, 0)]), now + EVERY);
        assert_eq!(of(&table.snapshot().unwrap(), "one"), [report("one", 0, 0, 0)]);
        table.forget(now + MOVE);
        assert_eq!(of(&table.snapshot().unwrap(), "one"), [report("one", 0, 0, 0)]);
    }

    #[test]
    fn standing_when_only_counts_have_grown_is_the_same() {
        let snapshot = |report: ProxyReport| BTreeMap::from([(Key::new("shop", "one"), vec![report])]);
        let (before, after) = (snapshot(report("one", 0, 5, 70)), snapshot(report("one", 0, 5, 90)));
        assert!(standing(&before) == standing(&after));
        let refused = snapshot(ProxyReport { rejected: 1, ..report("one", 0, 5, 90) });
        assert!(standing(&before) != standing(&refused));
    }
}
