//! Passes the bytes of a connection to an endpoint and back.

mod copy;
pub(crate) mod splice;
mod tunnel;

use crate::{
    balance::{self, PickContext},
    config::{AccessLog, Direction, Priority, TcpProxy},
    http::{ConnInfo, buffer::Buffer, upstream::Up},
    listen::{Place, Stream},
    pool::{Birth, Chosen, ClusterState, ConnectError, Connected, Host, Outcome, Ticket, Via, connect_via},
    telemetry::counters::{Number, TcpStats},
    telemetry::tracked::ConnectionEnd,
    telemetry::{ConnectionSecurity, Endings, LogEntry, LogKind, Observed, Reporter, ResponseFlags, TcpRecord, Wire},
    tls::{Alpn, PeerIdentity},
    worker::{Timer, Worker, earlier},
};
use std::{
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::futures::Notified;

/// Why a connection of a client is ended for which there is no endpoint: Envoy's words and numbers.
const NO_CONNECTION: &str = "tcp_initializion_failure:0";
const NO_ENDPOINT: &str = "tcp_initializion_failure:1";
const NO_PLACE: &str = "tcp_initializion_failure:2";
const NO_ROUTE: &str = "tcp_initializion_failure:3";

/// What became of a connection, for its line.
#[derive(Default)]
struct Told {
    /// When it began, by the calendar; only looked up when a line will be written.
    wall: Option<SystemTime>,
    flags: ResponseFlags,
    cluster: Option<Rc<ClusterState>>,
    /// The one whose the endpoint is.
    owner: Option<Rc<ClusterState>>,
    host: Option<Rc<Host>>,
    local: Option<std::net::SocketAddr>,
    remote: Option<std::net::SocketAddr>,
    connected: bool,
    failure: Option<String>,
    refused: Refused,
    attempts: u16,
    received: u64,
    sent: u64,
    /// An endpoint was looked for.
    began: bool,
    endings: Endings<'static>,
    /// What is kept where a line asks for it.
    observed: Option<Observed>,
}

/// Serves a connection to its end. `first` was read from it already.
pub async fn serve(
    worker: Rc<Worker>,
    stream: Stream,
    first: Buffer,
    conn: Box<ConnInfo>,
    place: Place,
    proxy: Arc<TcpProxy>,
) {
    let start = Instant::now();
    proxy.stats.total.add(1);
    let mut told = Told {
        wall: logs(&proxy, &conn).then(SystemTime::now),
        observed: observes(&proxy, &conn).then(Observed::default),
        ..Told::default()
    };
    if proxy.log_starts {
        told.log(&worker, &conn, &proxy, start, LogKind::TcpConnectionStart);
    }
    carry(&worker, stream, first, (&conn, &place), &proxy, start, &mut told).await;
    told.observe();
    if let Some(owner) = &told.owner {
        owner.stats().cx_rx_bytes_total.add(told.sent);
        owner.stats().cx_tx_bytes_total.add(told.received);
    }
    told.count(&proxy.stats);
    told.log(&worker, &conn, &proxy, start, LogKind::TcpConnectionEnd);
}

/// Why a connection ended before it came here.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    /// Which filter ended it.
    pub(crate) termination: Option<Box<str>>,
    /// What was wrong with its TLS.
    pub(crate) failure: Option<String>,
    /// Why it was closed, in Envoy's words.
    pub(crate) reason: Option<&'static str>,
    /// Flags of its line.
    pub(crate) flags: ResponseFlags,
}

/// Tells about a connection that ended before it came here.
pub(crate) fn refused(worker: &Rc<Worker>, conn: &ConnInfo, proxy: &TcpProxy, refused: Refused) {
    if logs(proxy, conn) {
        let mut told = Told { wall: Some(SystemTime::now()), flags: refused.flags, refused, ..Told::default() };
        told.endings.down_reason = told.refused.reason;
        told.log(worker, conn, proxy, Instant::now(), LogKind::TcpConnectionEnd);
    }
}

fn logs(proxy: &TcpProxy, conn: &ConnInfo) -> bool {
    !proxy.access_logs.is_empty() || conn.visit.is_some()
}

fn observes(proxy: &TcpProxy, conn: &ConnInfo) -> bool {
    AccessLog::needs(&proxy.access_logs).observed || conn.visit.as_ref().is_some_and(|visit| visit.observes())
}

impl Told {
    /// Keeps how much was moved, where a line asks for it.
    fn observe(&mut self) {
        if let Some(observed) = &mut self.observed {
            observed.down = Wire { received: self.received, sent: self.sent, ..Wire::default() };
            // What comes from one side goes to the other.
            observed.up = Wire { received: self.sent, sent: self.received, ..Wire::default() };
        }
    }

    fn count(&self, stats: &TcpStats) {
        stats.received.add(self.received);
        stats.sent.add(self.sent);
        let one = |flag: ResponseFlags, number: &Number| {
            if self.flags.contains(flag) {
                number.add(1);
            }
        };
        one(ResponseFlags::NO_CLUSTER, &stats.no_route);
        one(ResponseFlags::STREAM_IDLE_TIMEOUT, &stats.idle_timeout);
        one(ResponseFlags::DURATION_TIMEOUT, &stats.max_duration);
    }

    /// Writes the lines of the access logs about this moment of the connection.
    fn log(&self, worker: &Rc<Worker>, conn: &ConnInfo, proxy: &TcpProxy, start: Instant, kind: LogKind) {
        let Some(wall) = self.wall else { return };
        let mut entry = LogEntry::new(wall, start.elapsed(), (), ());
        entry.kind = kind;
        entry.attempts = self.attempts;
        entry.upstream_connected = self.connected;
        entry.upstream_host_name = self.host.as_ref().and_then(|host| host.endpoint().hostname.as_deref());
        entry.downstream_direct_local = Some(conn.direct_local);
        entry.downstream_direct_remote = Some(conn.direct());
        entry.connection_id = conn.id;
        entry.accepted = Some(0);
        entry.moments.closed = (kind == LogKind::TcpConnectionEnd).then_some(entry.duration);
        entry.endings = self.endings;
        entry.endings.up = self.began.then_some(self.endings.up.unwrap_or_default());
        entry.tls = conn.tls.as_deref();
        entry.filter_chain = Some(&*conn.chain).filter(|name| !name.is_empty());
        entry.observed = self.observed.as_ref();
        entry.dynamic = conn.found.get().map(AsRef::as_ref);
        entry.metadata.cluster = self.cluster.as_ref().and_then(|cluster| cluster.config().metadata.as_ref());
        entry.metadata.listener = conn.listener_metadata.as_ref();
        entry.metadata.chain = conn.chain_metadata.as_ref();
        entry.metadata.endpoint = self.host.as_ref().and_then(|host| host.endpoint().metadata.as_ref());
        // That it idled is counted; Envoy's line says nothing of it, and nothing of a client that left.
        let untold = ResponseFlags::STREAM_IDLE_TIMEOUT | ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION;
        entry.flags = self.flags.without(untold);
        entry.bytes_received = self.received;
        entry.bytes_sent = self.sent;
        entry.transport_failure = self.failure.as_deref();
        entry.termination_details = self.refused.termination.as_deref();
        entry.downstream_failure = self.refused.failure.as_deref();
        entry.upstream_host = self.host.as_ref().map(|host| host.address());
        let cluster = self.cluster.as_ref().map(|cluster| cluster.config());
        entry.upstream_cluster = cluster.map(|cluster| [&*cluster.observability_name, &*cluster.name]);
        entry.upstream_local = self.local;
        entry.upstream_remote = self.remote;
        entry.downstream_local = Some(conn.local);
        entry.downstream_remote = Some(conn.remote);
        let of_certificate = || conn.tls.as_ref()?.peer()?.uris.first().map(AsRef::as_ref);
        entry.downstream_peer = conn.peer.as_ref().map(PeerIdentity::uri).or_else(of_certificate);
        entry.server_name = conn.server_name.as_deref();
        if let Some(visit) = conn.visit.as_ref().filter(|_| kind == LogKind::TcpConnectionEnd) {
            visit.write(entry);
        }
        AccessLog::write(&proxy.access_logs, worker, &entry);
    }
}

async fn carry(
    worker: &Rc<Worker>,
    mut stream: Stream,
    first: Buffer,
    (conn, place): (&ConnInfo, &Place),
    proxy: &TcpProxy,
    start: Instant,
    told: &mut Told,
) {
    told.began = true;
    let root = worker.root();
    let end = proxy.max_duration.map(|(limit, more)| {
        let drawn = worker.rng.below(u64::try_from(more.as_millis()).unwrap_or(u64::MAX).saturating_add(1));
        start + limit + Duration::from_millis(drawn)
    });
    let by_name = match conn.server_name.as_deref() {
        Some(name) if proxy.by_server_name => Some(root.config().cluster_named(name)),
        _ => None,
    };
    let (target, labels) = match by_name {
        Some(named) => (named, None),
        None => {
            let weights = proxy.targets.iter().map(|target| target.weight);
            let drawn = balance::weighted(weights, &worker.rng).map(|index| &proxy.targets[index]);
            (drawn.map(|target| target.cluster), drawn.and_then(|target| target.labels.as_deref()))
        }
    };
    let hash = || balance::hash::xx_hash(conn.remote.ip().to_string().as_bytes(), 0);
    let wanted = PickContext { hash: proxy.hash_source_ip.then(hash), labels, destination: conn.wanted() };
    let Some(cluster) = target.and_then(|id| root.cluster(id)).cloned() else {
        told.flags |= ResponseFlags::NO_CLUSTER;
        told.endings.down_reason = Some(NO_ROUTE);
        return;
    };
    let own = root.config().own.clone();
    // In a pod connections go on until it leaves: its listeners come and go with services.
    let drains = !root.config().drain.time.is_zero();
    // A connection may last for days, and shall not keep a configuration for so long.
    drop(root);
    told.cluster = Some(cluster.clone());
    let (up, Chosen { cluster: owner, host, .. }) =
        match open(worker, &cluster, conn, proxy, &wanted, start, told).await {
            Some(open) => open,
            None => return,
        };
    told.owner = Some(owner.clone());
    let _active = host.enter();
    told.connected = true;
    told.remote = up.birth().and_then(|birth| birth.remote);
    told.local = match &up {
        Way::Direct(up, _) => up.stream.local_address(),
        Way::Tunnel(up, _) => up.local_address(),
    };
    if proxy.log_connected {
        told.log(worker, conn, proxy, start, LogKind::TcpUpstreamConnected);
    }
    let peer;
    let (reporter, source, destination, security) = match proxy.direction {
        Direction::Outbound => (Reporter::Source, &own, &host.endpoint().workload, ConnectionSecurity::Unknown),
        Direction::Inbound => {
            peer = conn.source(None);
            let mutual = if conn.peer.is_some() { ConnectionSecurity::MutualTls } else { ConnectionSecurity::None };
            (Reporter::Destination, &peer, &own, mutual)
        }
    };
    let service = &cluster.config().service;
    let mut recorder = worker.shard.tcp_connection(&TcpRecord { reporter, source, destination, service, security });
    let mut ends = Ends { idle: proxy.idle_timeout, at: end, ..Ends::default() };
    if let Some(every) = proxy.log_every {
        let told = &mut *told;
        let tell = move |(received, sent)| {
            (told.received, told.sent) = (received, sent);
            told.observe();
            told.log(worker, conn, proxy, start, LogKind::TcpPeriodic);
        };
        ends.periodic = Some(Periodic { every, next: Instant::now() + every, tell: Box::new(tell) });
    }
    ends.gone = drains.then(|| -> Pin<Box<dyn Future<Output = ()>>> { Box::pin(worker.outlived(place)) });
    let moved = match up {
        Way::Direct(mut up, ticket) => {
            if owner.config().close_on_failure {
                ends.lost = Some(Box::pin(host.lost()));
            }
            let moved = copy::both(&mut stream, &mut up.stream, first, ends, &recorder).await;
            ticket.ends(ConnectionEnd { remote: moved.remote, active: true, served: 1 });
            moved
        }
        Way::Tunnel(mut up, _counted) => tunnel::both(&mut stream, &mut up, first, ends, &recorder).await,
    };
    told.received = moved.received;
    told.sent = moved.sent;
    told.flags |= moved.flags;
    let reason = if moved.flags.contains(ResponseFlags::STREAM_IDLE_TIMEOUT) {
        Some("tcp_session_idle_timeout")
    } else if moved.flags.contains(ResponseFlags::DURATION_TIMEOUT) {
        Some("max_connection_duration_reached")
    } else {
        None
    };
    told.endings = Endings { down: moved.down, up: Some(moved.up), down_reason: reason, up_reason: reason };
    recorder.set_flags(told.flags);
}

/// When a connection ends whose sides would go on.
#[derive(Default)]
struct Ends<'a> {
    /// Nothing has moved for so long; zero is no limit.
    idle: Duration,
    /// This moment has come.
    at: Option<Instant>,
    /// The endpoint was found not well.
    lost: Option<Pin<Box<Notified<'a>>>>,
    /// What it belongs to is gone, and so is the time to end.
    gone: Option<Pin<Box<dyn Future<Output = ()> + 'a>>>,
    timer: Timer,
    periodic: Option<Periodic<'a>>,
}

/// What is done while a connection goes on, with the bytes received and sent so far.
struct Periodic<'a> {
    every: Duration,
    next: Instant,
    tell: Box<dyn FnMut((u64, u64)) + 'a>,
}

impl Ends<'_> {
    /// Ready with the reason when it ends; something moved `last`, and so much was received and sent.
    fn poll(&mut self, cx: &mut Context<'_>, last: Instant, moved: (u64, u64)) -> Poll<ResponseFlags> {
        if self.lost.as_mut().is_some_and(|lost| lost.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(ResponseFlags::none());
        }
        if self.gone.as_mut().is_some_and(|gone| gone.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(ResponseFlags::none());
        }
        let rests = (!self.idle.is_zero()).then(|| last + self.idle);
        let flags = match self.at {
            Some(at) if rests.is_none_or(|rests| at <= rests) => ResponseFlags::DURATION_TIMEOUT,
            _ => ResponseFlags::STREAM_IDLE_TIMEOUT,
        };
        let over = earlier(rests, self.at);
        loop {
            let next = self.periodic.as_ref().map(|periodic| periodic.next);
            ready!(self.timer.poll(cx, earlier(over, next)));
            let now = Instant::now();
            match &mut self.periodic {
                Some(periodic) if periodic.next <= now => {
                    (periodic.tell)(moved);
                    periodic.next = now + periodic.every;
                }
                _ => return Poll::Ready(flags),
            }
        }
    }
}

/// The way to an endpoint.
enum Way {
    /// A connection of its own, with its place in the cluster.
    Direct(Connected, Ticket),
    /// Through an HTTP proxy.
    Tunnel(Box<Up>, Ticket),
}

impl Way {
    /// How its connection came about.
    fn birth(&self) -> Option<Rc<Birth>> {
        match self {
            Self::Direct(up, _) => Some(up.birth.clone()),
            Self::Tunnel(up, _) => up.birth(),
        }
    }
}

/// Connects to an endpoint, and to another one when that fails, as often as configured.
async fn open(
    worker: &Worker,
    cluster: &Rc<ClusterState>,
    conn: &ConnInfo,
    proxy: &TcpProxy,
    wanted: &PickContext<'_>,
    start: Instant,
    told: &mut Told,
) -> Option<(Way, Chosen)> {
    let mut tried = Vec::new();
    for attempt in 0..proxy.connect_attempts.max(1) {
        if let (Some((base, max)), Some(before)) = (proxy.backoff, attempt.checked_sub(1)) {
            let longest = base.saturating_mul(2u32.saturating_pow(before.min(16))).min(max);
            let drawn = worker.rng.below(u64::try_from(longest.as_micros()).unwrap_or(u64::MAX).max(1));
            tokio::time::sleep(Duration::from_micros(drawn)).await;
        }
        let tried_already = |host: &Host| tried.contains(&host.address());
        let root = worker.root();
        let chosen = cluster.choose(&|id| root.cluster(id).cloned(), &worker.rng, wanted, 0, tried_already);
        drop(root);
        let Some(chosen) = chosen else {
            told.flags |= ResponseFlags::NO_HEALTHY_UPSTREAM;
            told.endings.down_reason = Some(NO_ENDPOINT);
            return None;
        };
        let (owner, host) = (&chosen.cluster, &chosen.host);
        if let Some(observed) = &mut told.observed {
            observed.attempted.push((host.address(), host.endpoint().hostname.clone()));
        }
        told.host = Some(host.clone());
        told.attempts = told.attempts.saturating_add(1);
        let connected = match &proxy.tunnel {
            None => connect_once(worker, owner, host, conn).await.map(|(up, ticket)| Way::Direct(up, ticket)),
            Some(wanted) => {
                let up = Box::pin(tunnel::open(worker, owner, host, conn, wanted, proxy.idle_timeout)).await;
                up.map(|(up, ticket)| Way::Tunnel(Box::new(up), ticket))
            }
        };
        match connected {
            Ok(way) => {
                if let Some(observed) = &mut told.observed {
                    observed.tls = match &way {
                        Way::Direct(up, _) => up.stream.tls_info().map(Rc::new),
                        Way::Tunnel(up, _) => up.tls(),
                    };
                    observed.connected(way.birth(), start);
                }
                owner.stats().rq_total.add(1);
                owner.note_connection(host, Outcome::Connected);
                return Some((way, chosen));
            }
            Err(ConnectError::Overflow(_)) => {
                told.flags |= ResponseFlags::UPSTREAM_OVERFLOW;
                // Without a place there is no attempt.
                (told.host, told.attempts) = (None, told.attempts.saturating_sub(1));
                told.endings.down_reason = Some(NO_PLACE);
                return None;
            }
            Err(error) => {
                tracing::debug!(cluster = %cluster.config().name, %error, "no connection to the endpoint");
                owner.stats().rq_pending_failure_eject.add(1);
                told.flags |= ResponseFlags::UPSTREAM_CONNECTION_FAILURE;
                told.failure = error.reason();
                let timeout = matches!(error, ConnectError::Timeout(..));
                owner.note_connection(host, if timeout { Outcome::Timeout } else { Outcome::Failed });
                tried.push(host.address());
            }
        }
    }
    cluster.stats().cx_connect_attempts_exceeded.add(1);
    told.flags |= ResponseFlags::CONNECT_ATTEMPTS;
    told.endings.down_reason = Some(NO_CONNECTION);
    None
}

/// Makes one connection to an endpoint, within the cluster's limits.
///
/// # Errors
/// When it cannot be made in time, or the cluster has no place for it.
pub(crate) async fn connect_once(
    worker: &Worker,
    cluster: &Rc<ClusterState>,
    host: &Rc<Host>,
    conn: &ConnInfo,
) -> Result<(Connected, Ticket), ConnectError> {
    let config = cluster.config();
    let overflow = |_| ConnectError::Overflow(host.address());
    let waiting = cluster.begin_wait(Priority::Default).map_err(overflow)?;
    let ticket =
        cluster.take_connection(host, Priority::Default).inspect_err(|_| waiting.settle()).map_err(overflow)?;
    let via = Via { source: conn.remote, destination: conn.local, tlvs: conn.tlvs() };
    let connected = connect_via(config, host, Alpn::Tcp, &worker.tls, Some(&via)).await;
    waiting.settle();
    let connected = connected.inspect_err(|error| ticket.failed(error))?;
    ticket.connected();
    Ok((connected, ticket))
}
