//! Management servers: clusters of the bootstrap by which resources come.
//!
//! The control thread reaches them by connections of its own, not through the workers, which do not exist before the
//! first resources have come.

use super::client::{Connect, LocalFuture};
use super::convert::{Context, Converted, Refused, Within as _};
use super::source::Grpc;
use crate::config::ClientTls;
use crate::tls::Alpn;
use leno_runtime::dns::Resolver;
use leno_xds::envoy::config::cluster::v3::Cluster;
use leno_xds::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use leno_xds::envoy::config::core::v3::{
    Address, TransportSocket, address::Address as At, socket_address::PortSpecifier, transport_socket,
};
use leno_xds::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use leno_xds::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use rand::Rng as _;
use socket2::{SockRef, TcpKeepalive};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// Idle time before the kernel probes a connection to a server, and between probes. HTTP/2 pings are not sent: servers
/// that are told nothing about them end connections that ping.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// A server of resources, as its cluster describes it.
#[derive(Debug)]
pub struct Server {
    /// The cluster's name.
    pub cluster: String,
    /// Where it is; or why the cluster is none by which a server is reached.
    endpoints: Converted<Vec<Place>>,
    connect_timeout: Duration,
    socket: Option<TransportSocket>,
    tls: OnceLock<Arc<ClientTls>>,
}

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
        match &self.endpoints {
            Ok(_) => Ok(()),
            Err(refused) => Err(refused.clone().within(format_args!("of the cluster `{}`", self.cluster))),
        }
    }
}

fn places(value: &Cluster) -> Converted<Vec<Place>> {
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
    let endpoints = assignment.endpoints.iter().flat_map(|locality| &locality.lb_endpoints);
    endpoints
        .filter_map(|endpoint| match &endpoint.host_identifier {
            Some(HostIdentifier::Endpoint(endpoint)) => Some(place(endpoint.address.as_ref())),
            _ => None,
        })
        .collect::<Converted<_>>()
        .within("load_assignment")
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
            // Any of them first, and then the ones after it.
            let first = rand::rng().random_range(0..places.len());
            let mut reason = String::new();
            for place in places.iter().cycle().skip(first).take(places.len()) {
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

async fn dial(grpc: &Grpc, place: &Place, resolver: &Resolver) -> Result<Channel, String> {
    match place {
        Place::Tcp(host, port) => {
            let stream = resolver.connect(host, *port).await.map_err(|error| error.to_string())?;
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
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|error| format!("`{authority}` is no authority: {error}"))?
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(1 << 21);
    let mut once = Some(hyper_util::rt::TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        let stream = once.take().ok_or_else(|| std::io::Error::other("the connection has ended"));
        std::future::ready(stream)
    });
    endpoint.connect_with_connector(connector).await.map_err(|error| error.to_string())
}
