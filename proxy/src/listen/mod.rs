//! From an accepted connection to what serves it: original destination, listener, first bytes, filter chain, TLS.

mod detect;
mod stream;

pub use detect::{Detected, detect};
pub use stream::{Rewound, Stream};

use crate::{
    config::{Codec, Facts, FilterChain, Listener, Network, Root, ServerTls, TcpProxy, Transport},
    http::{self, ConnInfo, buffer::Buffer},
    http2, tcp,
    tls::{self, Alpn, TlsError, TlsInfo, TlsStream},
    worker::Worker,
};
use std::{io, net::SocketAddr, rc::Rc, sync::Arc};
use tokio::net::TcpStream;

/// Where a connection stands in the configuration: everything by which its filter chain is found, so that it can be found
/// again when the configuration changed.
#[derive(Debug, Clone)]
pub struct Place {
    /// The address of the listening socket, as the listener names it.
    pub bound: SocketAddr,
    /// Where the client wanted to connect.
    pub destination: SocketAddr,
    /// Plain text or TLS.
    pub transport: Transport,
    /// The ClientHello's server name.
    pub server_name: Option<Box<str>>,
    /// ALPN names or the detected HTTP version.
    pub protocols: Vec<Arc<str>>,
}

impl Place {
    /// The listener: the virtual one of the destination, or the one that owns the socket.
    pub fn listener<'r>(&self, root: &'r Root) -> Option<&'r Arc<Listener>> {
        let owner = root.listeners.bound(self.bound)?;
        if owner.use_original_dst {
            Some(root.listeners.by_destination(owner.direction, self.destination).unwrap_or(owner))
        } else {
            Some(owner)
        }
    }

    /// The filter chain.
    pub fn find<'r>(&self, root: &'r Root) -> Option<&'r FilterChain> {
        self.listener(root)?.chain(&Facts {
            destination_port: self.destination.port(),
            transport: self.transport,
            server_name: self.server_name.as_deref(),
            application_protocols: &self.protocols,
        })
    }
}

/// A connection of which is known what serves it.
enum Ready {
    // Boxed: it is moved about, and would lie in an idle connection's future more than once.
    Http1(Stream, Buffer, Box<ConnInfo>, Place),
    Http2(Stream, Buffer, ConnInfo, Place),
    Tcp(Stream, Buffer, ConnInfo, Arc<TcpProxy>),
}

/// Serves an accepted connection to its end.
pub async fn serve(worker: Rc<Worker>, tcp: TcpStream, bound: SocketAddr) {
    // Boxed, each: what is needed to find out is gone while it is served, and an idle HTTP/1 connection, of which there are
    // many, pays for no other kind.
    match Box::pin(prepare(&worker, tcp, bound)).await {
        None => {}
        Some(Ready::Http1(stream, first, conn, place)) => http::h1::serve(worker, stream, first, conn, place).await,
        Some(Ready::Http2(stream, first, conn, place)) => {
            Box::pin(http2::connection(worker, stream, first, conn, place)).await;
        }
        Some(Ready::Tcp(stream, first, conn, proxy)) => {
            Box::pin(tcp::serve(worker, stream, first, conn, proxy)).await;
        }
    }
}

/// Finds out what serves a connection. `None` closes it.
async fn prepare(worker: &Rc<Worker>, mut tcp: TcpStream, bound: SocketAddr) -> Option<Ready> {
    let (local, remote) = (tcp.local_addr().ok()?, tcp.peer_addr().ok()?);
    let _ = tcp.set_nodelay(true);
    let root = worker.root();
    let owner = root.config().listeners.bound(bound)?;
    let destination = if owner.use_original_dst { original_destination(&tcp, local) } else { local };
    let destination = SocketAddr::new(destination.ip().to_canonical(), destination.port());
    if owner.use_original_dst && (destination == local || owner.is_own(destination)) {
        // Nobody redirected it: passed on to where it wanted to go it would come back for ever.
        tracing::debug!(%remote, %destination, "a connection to the proxy's own port is closed");
        return None;
    }
    let mut place = Place { bound, destination, transport: Transport::Raw, server_name: None, protocols: Vec::new() };
    let listener = place.listener(root.config())?;
    let mut first = Buffer::default();
    let detected = detect(&mut tcp, &mut first, listener, destination.port()).await?;
    place.transport = detected.transport;
    place.server_name = detected.server_name;
    place.protocols = detected.protocols;
    let Some(chain) = place.find(root.config()) else {
        tracing::debug!(%remote, %destination, listener = %listener.name, "no filter chain matches; closed");
        return None;
    };
    let mut conn = ConnInfo::new(destination, remote);
    conn.server_name = place.server_name.clone();
    let (mut stream, alpn) = match chain.tls.as_deref() {
        None => (Stream::Plain(tcp), None),
        Some(wanted) => {
            let io = Rewound::new(tcp, std::mem::take(&mut first).bytes().to_vec());
            match secure(worker, wanted, io, &mut conn).await {
                Ok((stream, alpn)) => (Stream::Tls(stream), alpn),
                Err(error) => {
                    tracing::debug!(%remote, %destination, %error, "TLS with the client failed");
                    return None;
                }
            }
        }
    };
    let manager = match &chain.network {
        Network::Tcp(proxy) => return Some(Ready::Tcp(stream, first, conn, proxy.clone())),
        Network::Http(manager) => manager,
    };
    let http2 = match (manager.codec, alpn) {
        (Codec::Http1, _) | (Codec::Auto, Some(Alpn::Http1)) => false,
        (Codec::Http2, _) | (Codec::Auto, Some(Alpn::H2)) => true,
        (Codec::Auto, _) => detect::is_http2(&mut stream, &mut first, manager.idle_timeout).await?,
    };
    Some(if http2 {
        Ready::Http2(stream, first, conn, place)
    } else {
        Ready::Http1(stream, first, Box::new(conn), place)
    })
}

/// The handshake with a client: the bytes, and which protocol they are, where both agreed on one.
async fn secure(
    worker: &Worker,
    wanted: &ServerTls,
    io: Rewound,
    conn: &mut ConnInfo,
) -> Result<(TlsStream<Rewound>, Option<Alpn>), TlsError> {
    conn.secure = true;
    match wanted {
        ServerTls::Mesh { .. } => {
            let established = tls::server::accept(io, worker.credentials(), tls::HANDSHAKE_TIMEOUT).await?;
            conn.tls = Some(Box::new(TlsInfo::of(established.stream.get_ref().1, true, None)));
            conn.peer = Some(established.peer);
            Ok((established.stream, established.alpn))
        }
        ServerTls::Own(context) => {
            let secured = context.accept(io, tls::HANDSHAKE_TIMEOUT).await?;
            let alpn = secured.info.alpn.as_deref().map(Alpn::registered);
            conn.server_name = secured.server_name;
            conn.tls = Some(Box::new(secured.info));
            Ok((secured.stream, alpn))
        }
    }
}

/// Where a redirected connection wanted to go; its local address when nothing redirected it.
fn original_destination(tcp: &TcpStream, local: SocketAddr) -> SocketAddr {
    let socket = socket2::SockRef::from(tcp);
    let mapped = local.ip().to_canonical();
    let original: io::Result<_> = if mapped.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    original.ok().and_then(|address| address.as_socket()).unwrap_or(local)
}
