//! Makes a connection to an endpoint: TCP with the wanted source address, then TLS where the endpoint asks for it.

use super::{Host, eyeballs};
use crate::{
    config::{
        ClientTls, Cluster, ProxiedTls, SourceBind, TcpKeepalive, UpstreamProtocol,
        pipe::{self, Shown},
    },
    listen::{Rewound, Stream, set_option, write_header},
    tls::{Alpn, Connector, KeyPair, TlsError, TlsInfo},
};
use nix::errno::Errno;
use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::net::{TcpSocket, TcpStream, UnixSocket};

/// Why a connection was not made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// TCP failed, or the PROXY protocol could not be said.
    #[error("connect to {}: {}", Shown(*.0), .1)]
    Tcp(SocketAddr, #[source] io::Error),
    /// The socket could not be made as it is wanted.
    #[error("a socket to {}: {}", Shown(*.0), .1)]
    Own(SocketAddr, #[source] io::Error),
    /// It took too long.
    #[error("connect to {}: not done after {:?}", Shown(*.0), .1)]
    Timeout(SocketAddr, Duration),
    /// TLS failed.
    #[error("TLS with {}: {}", Shown(*.0), .1)]
    Tls(SocketAddr, #[source] TlsError),
    /// The endpoint is an HTTP proxy that grants no tunnel, but answers with this status.
    #[error("{} answers {} when it is asked for a tunnel", Shown(*.0), .1)]
    Tunnel(SocketAddr, u16),
    /// A circuit breaker is open.
    #[error("too many connections to {}", Shown(*.0))]
    Overflow(SocketAddr),
}

impl ConnectError {
    /// What logs say of it as a failure of the transport: of what the system has refused, Envoy's words. Neither what took too long
    /// is one to it, nor what concerns this side alone.
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Tcp(address, error) => {
                let code = Errno::from_raw(error.raw_os_error()?).desc();
                Some(match pipe::path(*address) {
                    None => format!("{DELAYED}{code}"),
                    Some(path) => format!("{IMMEDIATE}{code}|remote address:{path}"),
                })
            }
            Self::Tunnel(_, status) => Some(format!("tunnel_response:{status}")),
            Self::Tls(..) | Self::Overflow(_) => Some(self.to_string()),
            Self::Timeout(..) | Self::Own(..) => None,
        }
    }
}

/// How the reason begins why the system has made no connection.
pub const DELAYED: &str = "delayed connect error: ";

/// The same of a Unix socket, of which the system knows at once.
pub const IMMEDIATE: &str = "immediate connect error: ";

/// How a connection to an endpoint came about.
#[derive(Debug)]
pub struct Birth {
    /// Its number, unlike that of any other to an endpoint in this process.
    pub id: u64,
    /// When the connecting began.
    pub begun: Instant,
    /// When TCP was connected.
    pub connected: Instant,
    /// Which of the endpoint's addresses has answered, where it has several.
    pub remote: Option<SocketAddr>,
    /// When the handshake of TLS was done.
    pub secured: Option<Instant>,
    /// The server name that was sent.
    pub server_name: Option<Box<str>>,
    /// The certificate that this side would show.
    pub shown: Option<Arc<KeyPair>>,
    /// The endpoint has shown a certificate of the mesh: who this side is may be told.
    pub of_mesh: bool,
}

/// The number of the next connection to an endpoint, of whatever worker.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// A connection to an endpoint that was just made.
#[derive(Debug)]
pub struct Connected {
    /// Its bytes.
    pub stream: Stream,
    /// How it came about.
    pub birth: Rc<Birth>,
}

/// The client for which a connection is made.
#[derive(Debug, Clone, Copy)]
pub struct Via<'a> {
    /// Its address.
    pub source: SocketAddr,
    /// Where it connected.
    pub destination: SocketAddr,
    /// Extensions of the PROXY protocol that its own header brought.
    pub tlvs: &'a [(u8, Box<[u8]>)],
}

/// What a connection is for beside its endpoint: only requests with the same aim share one.
#[derive(Debug, Clone, Default)]
pub struct Aim {
    name: Option<Rc<str>>,
    client: Option<Rc<Client>>,
    key: Option<Rc<str>>,
    unpooled: bool,
}

/// A client of whom endpoints are told, as [`Via`].
#[derive(Debug)]
struct Client {
    source: SocketAddr,
    destination: SocketAddr,
    tlvs: Box<[(u8, Box<[u8]>)]>,
}

impl Aim {
    /// For requests that decide about the server name, if they do.
    pub fn new(name: Option<Rc<str>>) -> Self {
        Self { key: name.clone(), name, ..Self::default() }
    }

    /// The same for requests of this connection of a client alone; the number is one that no other has.
    pub fn of_connection(self, number: u64) -> Self {
        let key = format!("{}\n{number}", self.name.as_deref().unwrap_or_default());
        Self { key: Some(key.into()), ..self }
    }

    /// The same for a client of whom the endpoint is told.
    pub fn telling(self, via: &Via<'_>) -> Self {
        let Via { source, destination, tlvs } = *via;
        Self { client: Some(Rc::new(Client { source, destination, tlvs: tlvs.into() })), ..self }
    }

    /// The same by a new connection, even where the pool has one.
    pub fn unpooled(self) -> Self {
        Self { unpooled: true, ..self }
    }

    /// Whether none of the pool is wanted.
    pub fn is_unpooled(&self) -> bool {
        self.unpooled
    }

    /// By what connections of this aim are known in the pool; `None` for the usual ones.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }
}

/// As [`connect_via`], for a connection that many requests share.
///
/// # Errors
/// As [`connect_via`].
pub async fn connect(cluster: &Cluster, host: &Host, alpn: Alpn, tls: &Connector) -> Result<Connected, ConnectError> {
    connect_for(cluster, host, &Aim::default(), alpn, tls).await
}

/// Connects to the host of a cluster; `alpn` is what is spoken inside TLS. The host remembers how it went.
///
/// # Errors
/// When TCP or TLS fails or both together take longer than the cluster's connect timeout.
pub async fn connect_via(
    cluster: &Cluster,
    host: &Host,
    alpn: Alpn,
    tls: &Connector,
    via: Option<&Via<'_>>,
) -> Result<Connected, ConnectError> {
    connect_with(cluster, host, None, alpn, tls, via).await
}

/// As [`connect`], for requests of this aim.
///
/// # Errors
/// As [`connect`].
pub async fn connect_for(
    cluster: &Cluster,
    host: &Host,
    aim: &Aim,
    alpn: Alpn,
    tls: &Connector,
) -> Result<Connected, ConnectError> {
    let via = aim.client.as_deref().map(|client| Via {
        source: client.source,
        destination: client.destination,
        tlvs: &client.tlvs,
    });
    connect_with(cluster, host, aim.name.as_deref(), alpn, tls, via.as_ref()).await
}

async fn connect_with(
    cluster: &Cluster,
    host: &Host,
    server_name: Option<&str>,
    alpn: Alpn,
    tls: &Connector,
    via: Option<&Via<'_>>,
) -> Result<Connected, ConnectError> {
    let endpoint = host.endpoint();
    let _dial = host.dial();
    host.stats().cx_total.add(1);
    let stats = host.stats_of_all();
    // Where the endpoint may choose, what is spoken is known when it has.
    let agreed = cluster.protocol == UpstreamProtocol::Agreed;
    match alpn {
        Alpn::Http1 if !agreed => stats.cx_http1_total.add(1),
        Alpn::H2 if !agreed => stats.cx_http2_total.add(1),
        _ => {}
    }
    if let Some(care) = &cluster.care {
        care.note_used();
    }
    let names = Names {
        host: endpoint.hostname.as_deref(),
        server: server_name,
        pipe: endpoint.pipe.as_deref(),
        addresses: &endpoint.addresses,
    };
    let (wanted, limit) = (endpoint.tls.as_deref(), cluster.connect_timeout);
    let result = establish(cluster, endpoint.address, wanted, names, alpn, limit, tls, via).await;
    match &result {
        Ok(Connected { stream, .. }) => {
            if agreed && alpn != Alpn::Tcp {
                if stream.is_for_http2() { &stats.cx_http2_total } else { &stats.cx_http1_total }.add(1);
            }
            if let Stream::Tls(tls) = stream {
                stats.tls().succeeded(&TlsInfo::of(tls.get_ref().1, false, None));
            }
            host.note_success();
        }
        Err(error) => {
            match error {
                ConnectError::Timeout(..) => stats.cx_connect_timeout.add(1),
                ConnectError::Tls(_, error) => stats.tls().failed(error),
                _ => {}
            }
            stats.cx_connect_fail.add(1);
            host.stats().cx_connect_fail.add(1);
            host.note_failure();
        }
    }
    result
}

/// Names of an endpoint, and where it listens beside its address.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Names<'a> {
    /// The endpoint's own, for TLS.
    pub(crate) host: Option<&'a str>,
    /// What a request wants to be sent as server name.
    pub(crate) server: Option<&'a str>,
    /// The path of its Unix socket, which is connected instead of its address.
    pub(crate) pipe: Option<&'a str>,
    /// As [`crate::config::Endpoint::addresses`].
    pub(crate) addresses: &'a [SocketAddr],
}

/// Connects to an address as a cluster does: TCP, the PROXY protocol and TLS if they are `wanted`.
///
/// # Errors
/// When one of them fails or all together take longer than `limit`.
#[allow(clippy::too_many_arguments)]
pub(crate) async fn establish(
    cluster: &Cluster,
    address: SocketAddr,
    wanted: Option<&ClientTls>,
    names: Names<'_>,
    alpn: Alpn,
    limit: Duration,
    tls: &Connector,
    via: Option<&Via<'_>>,
) -> Result<Connected, ConnectError> {
    let attempt = async {
        let begun = Instant::now();
        let failed = |error| ConnectError::Tcp(address, error);
        let tcp = match (names.pipe, names.addresses) {
            (Some(path), _) => unix(path, address, cluster)?.await.map_err(failed)?,
            (None, []) => tcp(address, cluster)?.connect(address).await.map_err(failed)?,
            (None, several) => eyeballs::first(several, cluster).await?,
        };
        let remote = if names.addresses.is_empty() { None } else { tcp.peer_addr().ok() };
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let connected = Instant::now();
        let mut birth =
            Birth { id, begun, connected, remote, secured: None, server_name: None, shown: None, of_mesh: false };
        let _ = tcp.set_nodelay(true);
        if let Some(wanted) = cluster.keepalive {
            keep_alive(&tcp, wanted);
        }
        let mut wanted = wanted;
        if let Some(ClientTls::Proxied(proxied)) = wanted {
            say(proxied, via, &tcp).await.map_err(|error| ConnectError::Tcp(address, error))?;
            wanted = proxied.inner.as_deref();
        }
        let Some(wanted) = wanted else { return Ok(Connected { stream: Stream::Plain(tcp), birth: Rc::new(birth) }) };
        let io = Rewound::new(tcp, Vec::new());
        let stream = match wanted {
            ClientTls::Mesh(mesh) => tls.connect(io, &mesh.expected, &mesh.sni, alpn, limit).await.map(|established| {
                (birth.server_name, birth.of_mesh) = (established.server_name, true);
                established.stream
            }),
            ClientTls::Own(context) => {
                context.connect(io, names.host, names.server, alpn, limit).await.map(|secured| {
                    (birth.server_name, birth.shown) = (secured.server_name, secured.info.local);
                    secured.stream
                })
            }
            // One header is enough; the configuration allows no second.
            ClientTls::Proxied(_) => return Err(ConnectError::Tcp(address, io::ErrorKind::InvalidInput.into())),
        };
        let stream = stream.map(Stream::Tls).map_err(|error| match error {
            // The limit is that of connecting as a whole.
            TlsError::Timeout(_) => ConnectError::Timeout(address, limit),
            error => ConnectError::Tls(address, error),
        })?;
        birth.secured = Some(Instant::now());
        Ok(Connected { stream, birth: Rc::new(birth) })
    };
    match tokio::time::timeout(limit, attempt).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::Timeout(address, limit)),
    }
}

/// Says who the client is; without one, that the connection is this proxy's own, as that of a health check.
async fn say(proxied: &ProxiedTls, via: Option<&Via<'_>>, tcp: &TcpStream) -> io::Result<()> {
    let header = match via {
        Some(via) => {
            // What is told here, no client tells otherwise.
            let own = |kind: u8| proxied.add.iter().any(|(own, _)| *own == kind);
            let passed = via.tlvs.iter().filter(|(kind, _)| proxied.pass.passes(*kind) && !own(*kind));
            let tlvs: Vec<_> = proxied.add.iter().chain(passed).cloned().collect();
            write_header(proxied.v2, via.source, via.destination, &tlvs)
        }
        // Addresses of two families cannot be told.
        None => write_header(proxied.v2, ([0, 0, 0, 0], 0).into(), ([0; 16], 0).into(), &[]),
    };
    let mut rest = &header[..];
    while !rest.is_empty() {
        tcp.writable().await?;
        match tcp.try_write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A socket as the cluster wants it.
pub(super) fn tcp(address: SocketAddr, cluster: &Cluster) -> Result<TcpSocket, ConnectError> {
    let made = || -> io::Result<_> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        set_options(&socket, cluster)?;
        let source = match (cluster.bind, address) {
            (Some(SourceBind { v4: Some(source), .. }), SocketAddr::V4(_)) => Some(SocketAddr::from((source, 0))),
            (Some(SourceBind { v6: Some(source), .. }), SocketAddr::V6(_)) => Some(SocketAddr::from((source, 0))),
            _ => None,
        };
        if let Some(source) = source {
            let raw = socket2::SockRef::from(&socket);
            // ::6 is on no interface; a source that the kernel does not know is allowed for both families.
            let _ = if source.is_ipv4() { raw.set_freebind_v4(true) } else { raw.set_freebind_v6(true) };
            // The port is chosen at connect time, per destination, or ports would run out.
            let _ = nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true);
            socket.bind(source)?;
        }
        Ok(socket)
    };
    made().map_err(|error| ConnectError::Own(address, error))
}

fn set_options(socket: &impl AsRawFd, cluster: &Cluster) -> io::Result<()> {
    cluster.socket_options.iter().try_for_each(|(level, name, value)| set_option(socket, *level, *name, value))
}

/// Connects a Unix socket. Reading, writing and ending are alike for all sockets of streams, so that it passes for one of TCP.
fn unix(
    path: &str,
    address: SocketAddr,
    cluster: &Cluster,
) -> Result<impl Future<Output = io::Result<TcpStream>>, ConnectError> {
    let made = || -> io::Result<_> {
        let socket = UnixSocket::new_stream()?;
        set_options(&socket, cluster)?;
        Ok(socket)
    };
    let socket = made().map_err(|error| ConnectError::Own(address, error))?;
    let place = match path.strip_prefix('@') {
        Some(name) => format!("\0{name}"),
        None => path.to_owned(),
    };
    Ok(async move {
        let stream = socket.connect(place).await?.into_std()?;
        TcpStream::from_std(std::net::TcpStream::from(OwnedFd::from(stream)))
    })
}

fn keep_alive(tcp: &TcpStream, wanted: TcpKeepalive) {
    let TcpKeepalive { idle, interval, probes } = wanted;
    let mut keepalive = socket2::TcpKeepalive::new();
    if let Some(idle) = idle {
        keepalive = keepalive.with_time(idle);
    }
    if let Some(interval) = interval {
        keepalive = keepalive.with_interval(interval);
    }
    if let Some(probes) = probes {
        keepalive = keepalive.with_retries(probes);
    }
    let _ = socket2::SockRef::from(tcp).set_tcp_keepalive(&keepalive);
}
