//! Management servers: clusters of the bootstrap by which resources come.
//!
//! The control thread reaches them by connections of its own, not through the workers, which do not exist before the
//! first resources have come.

use super::client::{Connect, LocalFuture};
use super::convert::{Context, Converted, Refused, Within as _};
use super::source::Grpc;
use crate::config::{ClientTls, Http2Keepalive};
use crate::tls::Alpn;
use leno_runtime::dns::Resolver;
use leno_xds::envoy::config::cluster::v3::Cluster;
use leno_xds::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use leno_xds::envoy::config::core::v3::{
    Address, HealthStatus, TransportSocket, address::Address as At, socket_address::PortSpecifier, transport_socket,
};
use leno_xds::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use leno_xds::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use leno_xds::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use leno_xds::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
};
use rand::Rng as _;
use socket2::{SockRef, TcpKeepalive};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint};

/// Idle time before the kernel probes a connection to a server, and between probes. HTTP/2 pings are sent where the cluster says
/// so (`connection_keepalive`): servers that are told nothing about them end connections that ping.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// A server of resources, as its cluster describes it.
#[derive(Debug)]
pub struct Server {
    /// The cluster's name.
    pub cluster: String,
    /// Where it is, what to try first in front; or why the cluster is none by which a server is reached.
    endpoints: Converted<Vec<(Rank, Place)>>,
    /// When it is asked whether it is still there.
    keepalive: Converted<Option<Http2Keepalive>>,
    /// The address that connections come from.
    source: Option<IpAddr>,
    connect_timeout: Duration,
    socket: Option<TransportSocket>,
    tls: OnceLock<Arc<ClientTls>>,
}

/// When an endpoint is tried: after healthier ones, and after those of a higher priority.
type Rank = (bool, u32);

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// Name or IP address, with a port.
    Tcp(String, u16),
    /// Path of a Unix socket.
    Unix(String),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => f.write_str(path),
        }
    }
}

impl Server {
    /// The server behind a cluster of the bootstrap.
    pub fn new(value: &Cluster) -> Self {
        let timeout = value.connect_timeout.and_then(|timeout| Duration::try_from(timeout).ok());
        Self {
            cluster: value.name.clone(),
            endpoints: places(value),
            keepalive: keepalive(value),
            source: source(value),
            connect_timeout: timeout.unwrap_or(Duration::from_secs(5)),
            socket: value.transport_socket.clone(),
            tls: OnceLock::new(),
        }
    }

    /// Makes ready the TLS that is spoken with it, when the secrets that were there from the start are known.
    ///
    /// # Errors
    /// When it is not supported.
    pub fn prepare(&self, context: &mut Context) -> Converted<()> {
        let mut socket = self.socket.clone();
        if let Some(transport_socket::ConfigType::TypedConfig(any)) =
            socket.as_mut().and_then(|socket| socket.config_type.as_mut())
            && let Ok(Some(mut upstream)) = leno_xds::unpack::<UpstreamTlsContext>(any)
        {
            let alpn = &mut upstream.common_tls_context.get_or_insert_default().alpn_protocols;
            if alpn.is_empty() {
                alpn.push("h2".to_owned());
            }
            *any = leno_xds::any(&upstream);
        }
        if let Some(tls) = super::convert::tls::client(context, socket).within("transport_socket")? {
            self.tls.get_or_init(|| tls);
        }
        Ok(())
    }

    /// Whether the cluster is one by which a server can be reached.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self) -> Converted<()> {
        match self.endpoints.as_ref().map(|_| ()).and(self.keepalive.as_ref().map(|_| ())) {
            Ok(()) => Ok(()),
            Err(refused) => Err(refused.clone().within(format_args!("of the cluster `{}`", self.cluster))),
        }
    }
}

/// The keep-alive of the cluster's HTTP/2, wherever it stands.
#[expect(deprecated, reason = "bootstraps still have the field of the cluster itself")]
fn keepalive(value: &Cluster) -> Converted<Option<Http2Keepalive>> {
    let options = value.typed_extension_protocol_options.values();
    let options = options.filter_map(|any| leno_xds::unpack::<HttpProtocolOptions>(any).ok().flatten());
    let http2 = options.filter_map(|options| match options.upstream_protocol_options? {
        UpstreamProtocolOptions::ExplicitHttpConfig(config) => match config.protocol_config? {
            ProtocolConfig::Http2ProtocolOptions(http2) => Some(http2),
            _ => None,
        },
        UpstreamProtocolOptions::UseDownstreamProtocolConfig(config) => config.http2_protocol_options,
        UpstreamProtocolOptions::AutoConfig(config) => config.http2_protocol_options,
    });
    let found = http2.chain(value.http2_protocol_options.clone()).find_map(|http2| http2.connection_keepalive);
    super::convert::http::http2_keepalive(found).within("http2_protocol_options")
}

/// The address that the cluster wants connections to come from.
fn source(value: &Cluster) -> Option<IpAddr> {
    let source: IpAddr = value.upstream_bind_config.as_ref()?.source_address.as_ref()?.address.parse().ok()?;
    // Any address is the same as none said.
    Some(source).filter(|source| !source.is_unspecified())
}

fn places(value: &Cluster) -> Converted<Vec<(Rank, Place)>> {
    let listed = match value.cluster_discovery_type {
        None => true,
        Some(ClusterDiscoveryType::Type(kind)) => matches!(
            DiscoveryType::try_from(kind),
            Ok(DiscoveryType::Static | DiscoveryType::StrictDns | DiscoveryType::LogicalDns)
        ),
        Some(ClusterDiscoveryType::ClusterType(_)) => false,
    };
    let Some(assignment) = value.load_assignment.as_ref().filter(|_| listed) else {
        return Err(Refused::new("load_assignment", "is needed: a server's cluster is STATIC or found by DNS"));
    };
    let endpoints = assignment
        .endpoints
        .iter()
        .flat_map(|locality| locality.lb_endpoints.iter().map(|endpoint| (locality.priority, endpoint)));
    let mut places = endpoints
        .filter_map(|(priority, endpoint)| match &endpoint.host_identifier {
            Some(HostIdentifier::Endpoint(at)) => {
                let health = HealthStatus::try_from(endpoint.health_status).unwrap_or_default();
                let ill = matches!(health, HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout);
                Some(place(at.address.as_ref()).map(|place| ((ill, priority), place)))
            }
            _ => None,
        })
        .collect::<Converted<Vec<_>>>()
        .within("load_assignment")?;
    places.sort_by_key(|(rank, _)| *rank);
    Ok(places)
}

fn place(address: Option<&Address>) -> Converted<Place> {
    match address.and_then(|address| address.address.as_ref()) {
        Some(At::SocketAddress(socket)) => match socket.port_specifier {
            Some(PortSpecifier::PortValue(port)) => {
                let port = super::convert::common::port(port).within("address.socket_address")?;
                Ok(Place::Tcp(socket.address.clone(), port))
            }
            _ => Err(Refused::new("address.socket_address.port_value", "is missing")),
        },
        Some(At::Pipe(pipe)) => Ok(Place::Unix(pipe.path.clone())),
        _ => Err(Refused::new("address", "is no address of a management server")),
    }
}

/// Connects to a management server.
pub struct Dial {
    grpc: Arc<Grpc>,
    resolver: Resolver,
}

impl Dial {
    /// Connections to that one.
    pub fn new(grpc: Arc<Grpc>) -> Self {
        Self { grpc, resolver: Resolver::system() }
    }
}

impl Connect for Dial {
    fn connect(&self) -> LocalFuture<Result<Channel, String>> {
        let (grpc, resolver) = (self.grpc.clone(), self.resolver.clone());
        Box::pin(async move {
            let server = &grpc.server;
            let places = server.endpoints.as_ref().map_err(ToString::to_string)?;
            if places.is_empty() {
                return Err(format!("the cluster {} has no endpoints", server.cluster));
            }
            let mut reason = String::new();
            for place in in_turn(places) {
                match tokio::time::timeout(server.connect_timeout, dial(&grpc, place, &resolver)).await {
                    Ok(Ok(channel)) => return Ok(channel),
                    Ok(Err(error)) => reason = format!("{place}: {error}"),
                    Err(_) => reason = format!("{place}: no connection within {:?}", server.connect_timeout),
                }
            }
            Err(reason)
        })
    }
}

/// Groups of one rank after each other; of each any first, and then the ones after it.
fn in_turn(places: &[(Rank, Place)]) -> impl Iterator<Item = &Place> {
    places.chunk_by(|one, two| one.0 == two.0).flat_map(|group| {
        let first = rand::rng().random_range(0..group.len());
        group.iter().cycle().skip(first).take(group.len()).map(|(_, place)| place)
    })
}

async fn dial(grpc: &Grpc, place: &Place, resolver: &Resolver) -> Result<Channel, String> {
    match place {
        Place::Tcp(host, port) => {
            let stream = match grpc.server.source {
                None => resolver.connect(host, *port).await.map_err(|error| error.to_string())?,
                Some(source) => connect_from(source, resolver, host, *port).await?,
            };
            let keepalive = TcpKeepalive::new().with_time(KEEPALIVE.0).with_interval(KEEPALIVE.1);
            if let Err(error) = SockRef::from(&stream).set_tcp_keepalive(&keepalive) {
                tracing::debug!(%error, "no keep-alive to a management server");
            }
            secure(grpc, stream, Some(host)).await
        }
        Place::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(|error| error.to_string())?;
            secure(grpc, stream, None).await
        }
    }
}

/// Connects from an address of ours to the server's addresses of its family, one after the other.
async fn connect_from(source: IpAddr, resolver: &Resolver, host: &str, port: u16) -> Result<TcpStream, String> {
    let addresses = resolver.resolve(host).await.map_err(|error| error.to_string())?;
    let mut reason = format!("no address of {host} is of its family");
    for address in addresses.into_iter().filter(|address| address.is_ipv4() == source.is_ipv4()) {
        let connecting = async {
            let socket = if source.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.bind((source, 0).into())?;
            let stream = socket.connect((address, port).into()).await?;
            stream.set_nodelay(true)?;
            Ok::<_, std::io::Error>(stream)
        };
        match connecting.await {
            Ok(stream) => return Ok(stream),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(format!("from {source}: {reason}"))
}

/// Speaks TLS on a connection, where the server's cluster says so.
async fn secure<S>(grpc: &Grpc, stream: S, host: Option<&str>) -> Result<Channel, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    match grpc.server.tls.get().map(|tls| &**tls) {
        None => channel(grpc, stream).await,
        Some(ClientTls::Own(context)) => {
            let limit = grpc.server.connect_timeout;
            let secured =
                context.connect(stream, host, None, Alpn::H2, limit).await.map_err(|error| error.to_string())?;
            channel(grpc, secured.stream).await
        }
        Some(ClientTls::Proxied(_)) => {
            Err("the PROXY protocol is not spoken to management servers; give their cluster another transport socket"
                .to_owned())
        }
        Some(ClientTls::Mesh(_)) => Err("a management server cannot be known by an identity of the mesh".to_owned()),
    }
}

/// Speaks HTTP/2 on a connection. It is not made again by itself when it breaks.
async fn channel<S>(grpc: &Grpc, stream: S) -> Result<Channel, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let authority = grpc.authority.as_deref().unwrap_or(&grpc.server.cluster);
    // The scheme is only a name here: tonic is handed a connection.
    let mut endpoint = Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|error| format!("`{authority}` is no authority: {error}"))?
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(1 << 21);
    if let Ok(Some(keepalive)) = &grpc.server.keepalive
        && !keepalive.interval.is_zero()
    {
        endpoint = endpoint
            .http2_keep_alive_interval(keepalive.interval)
            .keep_alive_timeout(keepalive.timeout)
            .keep_alive_while_idle(true);
    }
    let mut once = Some(hyper_util::rt::TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        let stream = once.take().ok_or_else(|| std::io::Error::other("the connection has ended"));
        std::future::ready(stream)
    });
    endpoint.connect_with_connector(connector).await.map_err(|error| error.to_string())
}
