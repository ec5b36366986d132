//! From an accepted connection to what serves it: original destination, listener, first bytes, filter chain, TLS.

mod detect;
mod stream;

pub use detect::{Detected, detect};
pub use stream::{Rewound, Stream};

use crate::{
    config::{Codec, Facts, FilterChain, Listener, Network, Root, Transport},
    http::{self, ConnInfo, buffer::Buffer},
    http2,
    tcp,
    tls::{self, Alpn},
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

/// Serves an accepted connection to its end.
pub async fn serve(worker: Rc<Worker>, tcp: TcpStream, bound: SocketAddr) {
    let (Ok(local), Ok(remote)) = (tcp.local_addr(), tcp.peer_addr()) else { return };
    let _ = tcp.set_nodelay(true);
    let root = worker.root();
    let Some(owner) = root.config().listeners.bound(bound) else { return };
    let destination = if owner.use_original_dst { original_destination(&tcp, local) } else { local };
    let destination = SocketAddr::new(destination.ip().to_canonical(), destination.port());
    if owner.use_original_dst && (destination == local || owner.is_own(destination)) {
        // Nobody redirected it: passed on to where it wanted to go it would come back for ever.
        tracing::debug!(%remote, %destination, "a connection to the proxy's own port is closed");
        return;
    }
    let mut place =
        Place { bound, destination, transport: Transport::Raw, server_name: None, protocols: Vec::new() };
    let Some(listener) = place.listener(root.config()) else { return };
    let mut tcp = tcp;
    let mut first = Buffer::default();
    let Some(detected) = detect(&mut tcp, &mut first, listener, destination.port()).await else { return };
    place.transport = detected.transport;
    place.server_name = detected.server_name;
    place.protocols = detected.protocols;
    let Some(chain) = place.find(root.config()) else {
        tracing::debug!(%remote, %destination, listener = %listener.name, "no filter chain matches; closed");
        return;
    };
    let mut conn = ConnInfo::new(destination, remote);
    conn.server_name = place.server_name.clone();
    let network = chain.network.clone();
    let (stream, alpn) = if chain.tls.is_some() {
        let bytes = first.bytes().to_vec();
        first = Buffer::default();
        let io = Rewound::new(tcp, bytes);
        // Boxed: a handshake's state would make the future of every plain connection large.
        match Box::pin(tls::server::accept(io, worker.credentials(), tls::HANDSHAKE_TIMEOUT)).await {
            Ok(established) => {
                conn.peer = Some(established.peer);
                conn.secure = true;
                (Stream::Tls(established.stream), established.alpn)
            }
            Err(error) => {
                tracing::debug!(%remote, %destination, %error, "TLS with the client failed");
                return;
            }
        }
    } else {
        (Stream::Plain(tcp), None)
    };
    drop(root);
    match network {
        Network::Tcp(proxy) => Box::pin(tcp::serve(worker, stream, first, conn, proxy)).await,
        Network::Http(manager) => {
            let mut stream = stream;
            let http2 = match (manager.codec, alpn) {
                (Codec::Http1, _) | (Codec::Auto, Some(Alpn::Http1)) => false,
                (Codec::Http2, _) | (Codec::Auto, Some(Alpn::H2)) => true,
                (Codec::Auto, _) => match detect::is_http2(&mut stream, &mut first, manager.idle_timeout).await {
                    Some(http2) => http2,
                    None => return,
                },
            };
            drop(manager);
            if http2 {
                Box::pin(http2::connection(worker, stream, first, conn, place)).await;
            } else {
                http::h1::serve(worker, stream, first, conn, place).await;
            }
        }
    }
}

/// Where a redirected connection wanted to go; its local address when nothing redirected it.
fn original_destination(tcp: &TcpStream, local: SocketAddr) -> SocketAddr {
    let socket = socket2::SockRef::from(tcp);
    let mapped = local.ip().to_canonical();
    let original: io::Result<_> =
        if mapped.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    original.ok().and_then(|address| address.as_socket()).unwrap_or(local)
}
