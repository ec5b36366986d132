//! The server side of TLS: accepting connections, and who is at the other end.
//!
//! A connection may come without a client certificate (a proxy buys its first one that way); a service that needs to know the
//! peer asks [`Peer::certificate`]. Certificates are verified against the roots of the mesh in the handshake; here they are
//! only read. Bounds: 256 handshakes at a time, 10 s each.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use leno_core::ObjectKey;
use leno_runtime::certs::describe;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tonic::{Request, Status};

use crate::ads::PodIdentity;

/// Handshakes at a time.
pub const MAX_HANDSHAKES: usize = 256;
/// How long a handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a verified client certificate says.
#[derive(Clone, Debug)]
pub struct PeerCertificate {
    /// The SPIFFE identity.
    pub identity: String,
    /// The trust domain in it.
    pub trust_domain: String,
    /// The namespace in it.
    pub namespace: String,
    /// The service account in it.
    pub service_account: String,
    /// The pod that it was issued to, if it was issued to one.
    pub pod: Option<String>,
    /// The pod's uid.
    pub uid: Option<String>,
    /// When it ends.
    pub not_after: SystemTime,
}

impl PeerCertificate {
    /// Reads a certificate.
    ///
    /// # Errors
    ///
    /// A text that says what is missing.
    pub fn read(der: &[u8]) -> Result<Self, String> {
        let info = describe(der).map_err(|error| error.to_string())?;
        let identity = info.identity().map_err(|error| error.to_string())?.to_owned();
        let path = identity.strip_prefix("spiffe://").unwrap_or_default();
        let parts: Vec<&str> = path.split('/').collect();
        let [trust_domain, "ns", namespace, "sa", service_account] = parts[..] else {
            return Err(format!("{identity} is not of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT"));
        };
        Ok(PeerCertificate {
            trust_domain: trust_domain.to_owned(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pod: info.common_name.filter(|_| info.organization.as_deref() == Some(namespace)),
            uid: info.subject_serial,
            not_after: info.not_after,
            identity,
        })
    }

    /// The pod that it was issued to.
    ///
    /// # Errors
    ///
    /// PERMISSION_DENIED, when it was not issued to a pod.
    pub fn pod(&self) -> Result<PodIdentity, Status> {
        let pod = self.pod.as_ref().ok_or_else(|| {
            Status::permission_denied(format!("the certificate of {} was not issued to a pod", self.identity))
        })?;
        Ok(PodIdentity {
            pod: ObjectKey::new(&self.namespace, pod),
            uid: self.uid.clone().unwrap_or_default(),
            service_account: self.service_account.clone(),
        })
    }
}

/// The other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    certificate: Option<Arc<Result<PeerCertificate, String>>>,
}

impl Peer {
    /// The peer that sent a request.
    ///
    /// # Errors
    ///
    /// INTERNAL, when the server was not set up with [`accept`].
    pub fn of<T>(request: &Request<T>) -> Result<Peer, Status> {
        request.extensions().get::<Peer>().cloned().ok_or_else(|| Status::internal("the connection has no peer"))
    }

    /// Its verified certificate.
    ///
    /// # Errors
    ///
    /// UNAUTHENTICATED when it gave none, or one without an identity, or one that has ended since.
    pub fn certificate(&self) -> Result<&PeerCertificate, Status> {
        match self.certificate.as_deref() {
            None => Err(Status::unauthenticated("a client certificate of the mesh is needed here")),
            Some(Err(reason)) => Err(Status::unauthenticated(reason.clone())),
            Some(Ok(certificate)) if certificate.not_after <= SystemTime::now() => {
                Err(Status::unauthenticated("the client certificate has ended: connect with a new one"))
            }
            Some(Ok(certificate)) => Ok(certificate),
        }
    }

    /// Whether it gave a certificate at all.
    pub fn has_certificate(&self) -> bool {
        self.certificate.is_some()
    }
}

/// An accepted connection.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
}

impl Connection {
    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Accepts connections on `listener` until `shutdown`. `config` may be replaced at any time; connections that are open stay on
/// the one that they began with.
pub fn accept(
    listener: TcpListener,
    config: Arc<ArcSwap<ServerConfig>>,
    shutdown: CancellationToken,
) -> ReceiverStream<std::io::Result<Connection>> {
    let (accepted, connections) = mpsc::channel(64);
    tokio::spawn(async move {
        let slots = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let (stream, address) = tokio::select! {
                () = shutdown.cancelled() => return,
                () = accepted.closed() => return,
                result = listener.accept() => match result {
                    Ok(pair) => pair,
                    Err(error) => {
                        tracing::warn!(%error, "accepting a connection failed");
                        // Out of file descriptors, most likely: spinning would make it worse.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let acceptor = TlsAcceptor::from(config.load_full());
            let accepted = accepted.clone();
            tokio::spawn(async move {
                match handshake(acceptor, stream, address).await {
                    Ok(connection) => {
                        accepted.send(Ok(connection)).await.ok();
                    }
                    Err(error) => tracing::debug!(%address, %error, "TLS handshake failed"),
                }
                drop(slot);
            });
        }
    });
    ReceiverStream::new(connections)
}

async fn handshake(acceptor: TlsAcceptor, stream: TcpStream, address: SocketAddr) -> std::io::Result<Connection> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
        .await
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let certificate = leaf.map(|leaf| Arc::new(PeerCertificate::read(leaf)));
    Ok(Connection { peer: Peer { address, certificate }, stream })
}
