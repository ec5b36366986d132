//! From an accepted connection to what serves it: original destination, listener, PROXY protocol, first bytes, filter chain, gates,
//! TLS.

mod detect;
mod gates;
mod place;
mod proxy_protocol;
mod simple;
mod socket;
mod stream;
mod visit;

pub use detect::{Detected, detect};
pub use place::{Place, Served};
pub use proxy_protocol::{Proxied, write_header};
pub(crate) use socket::set as set_option;
pub use socket::{begin, bind};
pub use stream::{LAST_WORDS, Rewound, Stream};

use crate::{
    config::{Codec, Network, ServerTls, TcpProxy, Transport},
    http::{self, ConnInfo, buffer::Buffer},
    http2, tcp,
    telemetry::{connection::CountedConnection, stats::ListenerStats},
    tls::{self, Alpn, TlsError, TlsInfo, TlsStream},
    worker::Worker,
};
use detect::Silence;
use gates::Places;
use place::{Chosen, Spot};
use std::{
    cell::Cell,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::net::TcpStream;
pub use visit::Visit;

/// A connection of which is known what serves it.
enum Ready {
    Http1(Stream, Buffer, Box<ConnInfo>, Place, Served),
    Http2(Stream, Buffer, Box<ConnInfo>, Place, Served),
    Tcp(Stream, Buffer, Box<ConnInfo>, Place, Arc<TcpProxy>),
    Direct(Stream, Arc<[u8]>),
    Echo(Stream, Buffer),
}

/// Serves an accepted connection to its end, and drops `open` then.
///
/// There may be very many of these futures that wait for a client, so what they hold is counted: arguments of an `async fn` lie in it
/// twice, so these are moved into blocks and boxes before; what is needed to find out what serves is gone while it is served, and an
/// idle HTTP/1 connection pays for no other kind.
pub fn serve(worker: Rc<Worker>, tcp: TcpStream, bound: SocketAddr, open: impl Sized) -> impl Future<Output = ()> {
    let counted = OfListener::new(&worker, bound);
    let preparing = counted.is_some().then(|| Box::pin(prepare(worker.clone(), tcp, bound)));
    async move {
        let _counted = (open, counted);
        let Some(preparing) = preparing else { return };
        let Some((ready, _places)) = preparing.await else { return };
        match ready {
            Ready::Http1(stream, first, conn, place, served) => {
                http::h1::serve(worker, stream, first, conn, (place, served)).await;
            }
            Ready::Http2(stream, first, conn, place, served) => {
                Box::pin(http2::connection(worker, stream, first, conn, (place, served))).await;
            }
            Ready::Tcp(stream, first, conn, place, proxy) => {
                Box::pin(tcp::serve(worker, stream, first, conn, place, proxy)).await;
            }
            Ready::Direct(stream, bytes) => Box::pin(simple::direct(stream, bytes)).await,
            Ready::Echo(stream, first) => Box::pin(simple::echo(stream, first)).await,
        }
    }
}

/// Counts a connection among those of the listener that owns its socket.
struct OfListener(Option<Arc<ListenerStats>>, Option<Arc<AtomicU32>>, Instant);

impl OfListener {
    /// `None` where the listener has as many as it may.
    fn new(worker: &Worker, bound: SocketAddr) -> Option<Self> {
        let root = worker.root();
        let owner = root.config().listeners.bound(bound);
        let stats = owner.map(|owner| worker.shard.listener_stats(&owner.stat_name));
        let mut place = None;
        if let Some(limit) = owner.and_then(|owner| owner.most.as_ref()) {
            let more = |count: u32| (count < limit.most).then_some(count + 1);
            if limit.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
                tracing::debug!(%bound, "as many connections as the listener may have; closed");
                stats.iter().for_each(|stats| stats.cx_overflow.add(1));
                return None;
            }
            place = Some(limit.open.clone());
        }
        if let Some(stats) = &stats {
            stats.cx_total.add(1);
            stats.cx_active.up();
        }
        Some(Self(stats, place, Instant::now()))
    }
}

impl Drop for OfListener {
    fn drop(&mut self) {
        if let Some(stats) = &self.0 {
            stats.cx_active.down();
            stats.cx_length_ms.record_thousandths(self.2.elapsed().as_micros() as u64);
        }
        if let Some(open) = &self.1 {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Finds out what serves a connection. `None` closes it.
async fn prepare(worker: Rc<Worker>, mut tcp: TcpStream, bound: SocketAddr) -> Option<(Ready, Places)> {
    let worker = &worker;
    let (local, remote, begun) = (tcp.local_addr().ok()?, tcp.peer_addr().ok()?, Instant::now());
    let _ = tcp.set_nodelay(true);
    let root = worker.root();
    let owner = root.config().listeners.bound(bound)?;
    if let Some(keepalive) = owner.socket.keepalive {
        keep_alive(&tcp, keepalive);
    }
    let destination = if owner.use_original_dst { original_destination(&tcp, local) } else { local };
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (mut destination, mut source, remote) = (canonical(destination), canonical(remote), canonical(remote));
    // One that nobody redirected is served by what the listener itself says, and is not passed on to where it wanted to go.
    let redirected = owner.use_original_dst && destination != canonical(local);
    if redirected && owner.is_own(destination) {
        // It would come back for ever.
        tracing::debug!(%remote, %destination, "a connection that was redirected to the proxy's own port is closed");
        return None;
    }
    let deadline = |limit: Duration| (!limit.is_zero()).then(|| Instant::now() + limit);
    let mut first = Buffer::default();
    let (mut proxied, mut told) = (None, false);
    if let Some(wanted) = &owner.proxy_protocol {
        let limit = deadline(owner.detect_timeout);
        match proxy_protocol::read(&mut tcp, &mut first, wanted, limit, owner.continue_on_timeout).await {
            Ok(None) => {}
            Ok(Some(said)) => {
                if let Some((from, to)) = said.addresses {
                    (source, destination, told) = (canonical(from), canonical(to), true);
                }
                proxied = Some(Box::new(Proxied { direct: remote, tlvs: said.tlvs }));
            }
            Err(reason) => {
                tracing::debug!(%remote, reason, "PROXY protocol of the client failed");
                return None;
            }
        }
    }
    let mut place = Place(Box::new(Spot {
        bound,
        destination,
        source,
        direct_source: remote,
        transport: Transport::Raw,
        server_name: None,
        protocols: Vec::new(),
        chosen: None,
        gone: Cell::default(),
    }));
    let listener = place.listener(root.config())?;
    let id = worker.connection_id();
    let mut visit = Visit::begin(worker, listener, id, (destination, canonical(local)), (source, remote));
    let limit = deadline(listener.detect_timeout);
    let stats = worker.shard.listener_stats(&owner.stat_name);
    let detected = detect(&mut tcp, &mut first, listener, destination.port(), limit, &stats.pre_cx_timeout).await?;
    place.0.transport = detected.transport;
    place.0.server_name = detected.server_name;
    place.0.protocols = detected.protocols;
    let Some(chain) = place.find(root.config()) else {
        tracing::debug!(%remote, %destination, listener = %listener.name, "no filter chain matches; closed");
        worker.shard.listener_stats(&listener.stat_name).no_filter_chain_match.add(1);
        if let Some(visit) = &mut visit {
            visit.unclaimed(place.0.server_name.as_deref());
        }
        return None;
    };
    let mut conn = Box::new(ConnInfo::new(destination, source));
    conn.restored = redirected || told;
    conn.server_name = place.0.server_name.clone();
    conn.proxied = proxied;
    conn.id = id;
    conn.chain = chain.name.clone();
    conn.begun = begun;
    conn.listener_metadata.clone_from(&listener.metadata);
    conn.chain_metadata.clone_from(&chain.metadata);
    conn.direct_local = canonical(local);
    if let Some(visit) = &mut visit {
        visit.claimed(&conn);
    }
    if let Network::Http(manager) = &chain.network {
        let http = worker.shard.http_stats(&manager.stat_prefix);
        let of_listener = worker.shard.listener_http_stats(&owner.stat_name, &manager.stat_prefix);
        conn.counted = Some(CountedConnection::new(http, of_listener, chain.tls.is_some()));
    }
    place.0.chosen = Some(Chosen { secured: chain.secured(), http: chain.is_http() });
    let places = match gates::limits(&chain.gates).await {
        Ok(places) => places,
        Err(refused) => {
            conn.visit = visit;
            gates::tell(refused, worker, &conn, &chain.network);
            return None;
        }
    };
    let (mut stream, alpn) = match chain.tls.as_deref() {
        None => (Stream::Plain(tcp), None),
        Some(wanted) => {
            let io = Rewound::new(tcp, std::mem::take(&mut first).bytes().to_vec());
            let secured = secure(worker, wanted, io, chain.tls_timeout, &mut conn).await;
            let stats = worker.shard.listener_stats(&owner.stat_name);
            match secured {
                Ok((stream, alpn)) => {
                    conn.secured = Some(Instant::now());
                    conn.tls.iter().for_each(|info| stats.tls.succeeded(info));
                    (Stream::Tls(stream), alpn)
                }
                Err(error) => {
                    stats.tls.failed(&error);
                    tracing::debug!(%remote, %destination, %error, "TLS with the client failed");
                    if let Some(visit) = &mut visit {
                        visit.failed(&conn, error.to_string());
                    }
                    conn.visit = visit;
                    if let Network::Tcp(proxy) = &chain.network {
                        let failure = Some(error.to_string());
                        tcp::refused(worker, &conn, proxy, tcp::Refused { failure, ..tcp::Refused::default() });
                    }
                    return None;
                }
            }
        }
    };
    if let Some(visit) = &mut visit {
        visit.claimed(&conn);
    }
    conn.visit = visit;
    if let Err(refused) = gates::policies(&chain.gates, &conn).await {
        stream.say_goodbye().await;
        gates::tell(refused, worker, &conn, &chain.network);
        return None;
    }
    let manager = match &chain.network {
        Network::Tcp(proxy) => return Some((Ready::Tcp(stream, first, conn, place, proxy.clone()), places)),
        Network::Direct(bytes) => return Some((Ready::Direct(stream, bytes.clone()), places)),
        Network::Echo => return Some((Ready::Echo(stream, first), places)),
        Network::Http(manager) => manager.clone(),
    };
    // It may be long until the client says something, and the configuration another one then.
    let served = Served::new(manager.clone(), &root);
    drop(root);
    let http2 = match (manager.codec, alpn) {
        (Codec::Http1, _) | (Codec::Auto, Some(Alpn::Http1)) => false,
        (Codec::Http2, _) | (Codec::Auto, Some(Alpn::H2)) => true,
        (Codec::Auto, _) => {
            let silent = earliest(manager.idle_timeout, manager.max_connection_duration);
            // What it belongs to may go meanwhile, or everything may be to end.
            let detected = tokio::select! {
                biased;
                detected = detect::is_http2(&mut stream, &mut first, silent) => detected,
                () = worker.until(|| worker.idle_end(&place, begun)) => Err(Silence::Ended),
            };
            match detected {
                Ok(http2) => http2,
                Err(silence) => {
                    let late = conn.http_stats().filter(|_| silence == Silence::TooLong);
                    late.iter().for_each(|stats| match silent == manager.idle_timeout {
                        true => stats.cx_idle_timeout.add(1),
                        false => stats.cx_max_duration_reached.add(1),
                    });
                    stream.say_goodbye().await;
                    return None;
                }
            }
        }
    };
    if let Some(counted) = &mut conn.counted {
        counted.speaks(http2);
    }
    let ready = match http2 {
        true => Ready::Http2(stream, first, conn, place, served),
        false => Ready::Http1(stream, first, conn, place, served),
    };
    Some((ready, places))
}

/// How long a client may say nothing at all; zero is no limit.
fn earliest(idle: Duration, most: Option<Duration>) -> Duration {
    most.filter(|most| idle.is_zero() || *most < idle).unwrap_or(idle)
}

/// The handshake with a client: the bytes, and which protocol they are, where both agreed on one.
async fn secure(
    worker: &Worker,
    wanted: &ServerTls,
    io: Rewound,
    limit: Duration,
    conn: &mut ConnInfo,
) -> Result<(TlsStream<Rewound>, Option<Alpn>), TlsError> {
    conn.secure = true;
    let pace = &worker.handshakes;
    match wanted {
        ServerTls::Mesh { .. } => {
            let established = tls::server::accept(io, worker.credentials(), limit, pace).await?;
            conn.tls = Some(Box::new(TlsInfo::of(established.stream.get_ref().1, true, None)));
            conn.peer = Some(established.peer);
            Ok((established.stream, established.alpn))
        }
        ServerTls::Own(context) => {
            let secured = context.accept(io, limit, pace).await?;
            let alpn = secured.info.alpn.as_deref().map(Alpn::registered);
            conn.tls = Some(Box::new(secured.info));
            Ok((secured.stream, alpn))
        }
    }
}

fn keep_alive(tcp: &TcpStream, wanted: crate::config::KeepAlive) {
    let mut settings = socket2::TcpKeepalive::new();
    if let Some(time) = wanted.time {
        settings = settings.with_time(time);
    }
    if let Some(interval) = wanted.interval {
        settings = settings.with_interval(interval);
    }
    if let Some(probes) = wanted.probes {
        settings = settings.with_retries(probes);
    }
    let _ = socket2::SockRef::from(tcp).set_tcp_keepalive(&settings);
}

/// Where a redirected connection wanted to go; its local address when nothing redirected it.
fn original_destination(tcp: &TcpStream, local: SocketAddr) -> SocketAddr {
    let socket = socket2::SockRef::from(tcp);
    let mapped = local.ip().to_canonical();
    let original: io::Result<_> = if mapped.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    original.ok().and_then(|address| address.as_socket()).unwrap_or(local)
}
