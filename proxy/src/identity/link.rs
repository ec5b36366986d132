//! Connections to the control plane: names resolved by our own resolver, TLS that checks who answers.

use leno_runtime::certs::{CertError, Keypair};
use leno_runtime::dns::{DnsError, Resolver};
use leno_runtime::tls::{ExpectedPeer, client_config};
use rustls_pki_types::{CertificateDer, ServerName};
use std::future::Future as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::{Channel, Endpoint};

/// How long name resolution, TCP and TLS together may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// An idle connection is pinged this often.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A ping without an answer for so long ends the connection.
const PING_LIMIT: Duration = Duration::from_secs(5);

/// Where the control plane is and who it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Name or IP address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The SPIFFE identity that its certificate must have.
    pub identity: String,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The roots or our certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertError),
    /// It cannot be reached.
    #[error("the control plane cannot be reached: {0}")]
    Dns(#[from] DnsError),
    /// The TLS handshake failed.
    #[error("TLS with the control plane at {host} failed: {reason}; its identity must be {identity}")]
    Tls {
        /// The control plane's name.
        host: String,
        /// Who it should be.
        identity: String,
        /// What went wrong.
        reason: String,
    },
    /// HTTP/2 could not be set up.
    #[error("the connection to the control plane at {host} failed: {reason}")]
    Transport {
        /// The control plane's name.
        host: String,
        /// What went wrong.
        reason: String,
    },
}

/// The target, and what ends the connections to it.
struct Aim {
    target: Target,
    connections: CancellationToken,
}

/// Makes connections. Clones share the target, which may change while the process runs: connections to the one before end
/// then, so that whoever used them connects to the new one.
#[derive(Clone)]
pub struct Link {
    aim: Arc<Mutex<Aim>>,
    resolver: Resolver,
}

impl Link {
    /// Connections to that target.
    pub fn new(target: Target) -> Self {
        let aim = Aim { target, connections: CancellationToken::new() };
        Self { aim: Arc::new(Mutex::new(aim)), resolver: Resolver::system() }
    }

    fn aim(&self) -> MutexGuard<'_, Aim> {
        self.aim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The target now.
    pub fn target(&self) -> Target {
        self.aim().target.clone()
    }

    /// Connections made from now on go there, and those to another target end. True when that is a change.
    pub fn retarget(&self, target: Target) -> bool {
        let mut aim = self.aim();
        if aim.target == target {
            return false;
        }
        aim.connections.cancel();
        *aim = Aim { target, connections: CancellationToken::new() };
        true
    }

    /// One connection, made now. It is not made again by itself when it breaks: whoever uses it asks for another.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn channel(&self, roots: &[CertificateDer<'static>], own: Option<Keypair>) -> Result<Channel, LinkError> {
        let (target, connections) = {
            let aim = self.aim();
            (aim.target.clone(), aim.connections.clone())
        };
        let mut config = client_config(roots, own, ExpectedPeer::Identity(target.identity.clone()))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        let tls =
            |reason: String| LinkError::Tls { host: target.host.clone(), identity: target.identity.clone(), reason };
        let connecting = async {
            let name = ServerName::try_from(target.host.clone()).map_err(|error| tls(error.to_string()))?;
            let stream = self.resolver.connect(&target.host, target.port).await?;
            connector.connect(name, stream).await.map_err(|error| tls(error.to_string()))
        };
        let late = || tls(format!("not done within {CONNECT_LIMIT:?}"));
        let stream = tokio::time::timeout(CONNECT_LIMIT, connecting).await.map_err(|_| late())??;
        let transport = |reason: String| LinkError::Transport { host: target.host.clone(), reason };
        // The scheme is only a name here: tonic is handed a connection that is TLS already.
        let endpoint = Endpoint::from_shared(format!("http://{}:{}", bracketed(&target.host), target.port))
            .map_err(|error| transport(error.to_string()))?
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_LIMIT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(1 << 21);
        let stream = Severed { stream, end: Box::pin(connections.cancelled_owned()) };
        let mut once = Some(hyper_util::rt::TokioIo::new(stream));
        let connector = tower::service_fn(move |_| {
            let stream = once.take().ok_or_else(|| std::io::Error::other("the connection has ended"));
            std::future::ready(stream)
        });
        endpoint.connect_with_connector(connector).await.map_err(|error| transport(error.to_string()))
    }
}

/// A connection that ends when its target is not the target any more.
struct Severed<S> {
    stream: S,
    end: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Severed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        // HTTP/2 always reads, so this is polled whatever else goes on; nothing read is the end.
        if self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Severed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// An IPv6 address as it stands in a URI.
fn bracketed(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn target(host: &str) -> Target {
        Target { host: host.to_owned(), port: 15012, identity: "spiffe://cluster.local/ns/leno-system/sa/x".to_owned() }
    }

    #[tokio::test]
    async fn connection_when_the_target_changes_then_ends_and_while_it_stays_then_goes_on() {
        let link = Link::new(target("one"));
        let end = Box::pin(link.aim().connections.clone().cancelled_owned());
        let (near, mut far) = tokio::io::duplex(64);
        let mut connection = Severed { stream: near, end };
        let mut buffer = [0; 8];
        assert!(!link.retarget(target("one")));
        far.write_all(b"data").await.unwrap();
        assert_eq!(connection.read(&mut buffer).await.unwrap(), 4);
        let reading = tokio::spawn(async move { connection.read(&mut buffer).await });
        assert!(link.retarget(target("two")));
        let read = tokio::time::timeout(Duration::from_secs(10), reading).await.unwrap().unwrap().unwrap();
        assert_eq!(read, 0, "whoever reads learns that it has ended");
        assert_eq!(link.target(), target("two"));
        assert!(!link.aim().connections.is_cancelled(), "connections to the new one stay");
    }
}
