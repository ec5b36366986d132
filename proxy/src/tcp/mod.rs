//! Passes the bytes of a connection to an endpoint and back.

mod copy;

use crate::{
    balance,
    config::{Direction, Priority, TcpProxy},
    http::{ConnInfo, buffer::Buffer},
    listen::Stream,
    pool::{Admission, ClusterState, ConnectError, Host, Outcome, Ticket, connect},
    telemetry::{ConnectionSecurity, LogEntry, Reporter, ResponseFlags, TcpRecord},
    tls::{Alpn, PeerIdentity},
    worker::Worker,
};
use std::{
    rc::Rc,
    sync::Arc,
    time::{Instant, SystemTime},
};

/// What became of a connection, for its line.
#[derive(Default)]
struct Told {
    flags: ResponseFlags,
    cluster: Option<Rc<ClusterState>>,
    host: Option<Rc<Host>>,
    local: Option<std::net::SocketAddr>,
    failure: Option<String>,
    received: u64,
    sent: u64,
}

/// Serves a connection to its end. `first` was read from it already.
pub async fn serve(worker: Rc<Worker>, stream: Stream, first: Buffer, conn: ConnInfo, proxy: Arc<TcpProxy>) {
    let start = Instant::now();
    let wall = proxy.access_log.is_some().then(SystemTime::now);
    let mut told = Told::default();
    carry(&worker, stream, first, &conn, &proxy, &mut told).await;
    if let (Some(format), Some(wall)) = (&proxy.access_log, wall) {
        let mut entry = LogEntry::new(wall, start.elapsed(), (), ());
        entry.flags = told.flags;
        entry.bytes_received = told.received;
        entry.bytes_sent = told.sent;
        entry.transport_failure = told.failure.as_deref();
        entry.upstream_host = told.host.as_ref().map(|host| host.address());
        entry.upstream_cluster = told.cluster.as_ref().map(|cluster| &*cluster.config().name);
        entry.upstream_local = told.local;
        entry.downstream_local = Some(conn.local);
        entry.downstream_remote = Some(conn.remote);
        entry.downstream_peer = conn.peer.as_ref().map(PeerIdentity::uri);
        entry.server_name = conn.server_name.as_deref();
        worker.shard.log(format, &entry);
    }
}

async fn carry(
    worker: &Rc<Worker>,
    mut stream: Stream,
    first: Buffer,
    conn: &ConnInfo,
    proxy: &TcpProxy,
    told: &mut Told,
) {
    let root = worker.root();
    let weights = proxy.targets.iter().map(|target| target.weight);
    let target = balance::weighted(weights, &worker.rng).map(|index| proxy.targets[index].cluster);
    let Some(cluster) = target.and_then(|id| root.cluster(id)) else {
        told.flags |= ResponseFlags::NO_CLUSTER;
        return;
    };
    told.cluster = Some(cluster.clone());
    let (up, host, _ticket) = match open(worker, cluster, conn, proxy, told).await {
        Some(open) => open,
        None => return,
    };
    let _active = host.enter();
    told.local = up.local_address();
    let own = &root.config().own;
    let peer;
    let (reporter, source, destination, security) = match proxy.direction {
        Direction::Outbound => (Reporter::Source, own, &host.endpoint().workload, ConnectionSecurity::Unknown),
        Direction::Inbound => {
            peer = conn.source(None);
            let mutual = if conn.peer.is_some() { ConnectionSecurity::MutualTls } else { ConnectionSecurity::None };
            (Reporter::Destination, &peer, own, mutual)
        }
    };
    let service = &cluster.config().service;
    let mut recorder = worker.shard.tcp_connection(&TcpRecord { reporter, source, destination, service, security });
    let mut up = up;
    let moved = copy::both(&mut stream, &mut up, first, proxy.idle_timeout, &recorder).await;
    told.received = moved.received;
    told.sent = moved.sent;
    told.flags |= moved.flags;
    recorder.set_flags(told.flags);
}

/// Connects to an endpoint, and to another one when that fails, as often as configured.
async fn open(
    worker: &Worker,
    cluster: &Rc<ClusterState>,
    conn: &ConnInfo,
    proxy: &TcpProxy,
    told: &mut Told,
) -> Option<(Stream, Rc<Host>, Ticket)> {
    let mut tried = Vec::new();
    let context = balance::PickContext::to(conn.local);
    for _ in 0..proxy.connect_attempts.max(1) {
        let Some(host) = cluster.pick(&worker.rng, &context, |host| tried.contains(&host.address())) else {
            told.flags |= ResponseFlags::NO_HEALTHY_UPSTREAM;
            return None;
        };
        told.host = Some(host.clone());
        match connect_once(worker, cluster, &host).await {
            Ok((stream, ticket)) => {
                cluster.note(&host, Outcome::Status(200));
                return Some((stream, host, ticket));
            }
            Err(ConnectError::Overflow(_)) => {
                told.flags |= ResponseFlags::UPSTREAM_OVERFLOW;
                return None;
            }
            Err(error) => {
                tracing::debug!(cluster = %cluster.config().name, %error, "no connection to the endpoint");
                told.failure = Some(error.to_string());
                let timeout = matches!(error, ConnectError::Timeout(..));
                cluster.note(&host, if timeout { Outcome::Timeout } else { Outcome::Failed });
                tried.push(host.address());
            }
        }
    }
    told.flags |= ResponseFlags::UPSTREAM_CONNECTION_FAILURE;
    if proxy.connect_attempts > 1 {
        told.flags |= ResponseFlags::RETRY_LIMIT;
    }
    None
}

async fn connect_once(
    worker: &Worker,
    cluster: &Rc<ClusterState>,
    host: &Rc<Host>,
) -> Result<(Stream, Ticket), ConnectError> {
    let config = cluster.config();
    let (address, limit) = (host.address(), config.connect_timeout);
    let _waiting = cluster.begin_wait(Priority::Default).map_err(|_| ConnectError::Overflow(address))?;
    loop {
        let admission = tokio::time::timeout(limit, cluster.begin_connection(host, Priority::Default)).await;
        match admission.map_err(|_| ConnectError::Timeout(address, limit))? {
            Admission::Connect(ticket) => {
                return Ok((connect(config, host, Alpn::Tcp, &worker.tls).await?, ticket));
            }
            // An idle HTTP connection is of no use here; its place is.
            Admission::UseIdle => {
                host.drop_idle();
            }
        }
    }
}
