//! Connections to the control plane: names resolved by our own resolver, TLS that checks who answers.

use leno_runtime::certs::{CertError, Keypair};
use leno_runtime::dns::{DnsError, Resolver};
use leno_runtime::tls::{ExpectedPeer, client_config};
use rustls_pki_types::{CertificateDer, ServerName};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_rustls::TlsConnector;
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

/// Makes connections. Clones share the target, which may change while the process runs.
#[derive(Clone)]
pub struct Link {
    target: Arc<Mutex<Target>>,
    resolver: Resolver,
}

impl Link {
    /// Connections to that target.
    pub fn new(target: Target) -> Self {
        Self { target: Arc::new(Mutex::new(target)), resolver: Resolver::system() }
    }

    /// The target now.
    pub fn target(&self) -> Target {
        self.target.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Connections made from now on go there. True when that is a change.
    pub fn retarget(&self, target: Target) -> bool {
        let mut held = self.target.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *held != target;
        *held = target;
        changed
    }

    /// One connection, made now. It is not made again by itself when it breaks: whoever uses it asks for another.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn channel(&self, roots: &[CertificateDer<'static>], own: Option<Keypair>) -> Result<Channel, LinkError> {
        let target = self.target();
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
        let mut once = Some(hyper_util::rt::TokioIo::new(stream));
        let connector = tower::service_fn(move |_| {
            let stream = once.take().ok_or_else(|| std::io::Error::other("the connection has ended"));
            std::future::ready(stream)
        });
        endpoint.connect_with_connector(connector).await.map_err(|error| transport(error.to_string()))
    }
}

/// An IPv6 address as it stands in a URI.
fn bracketed(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() }
}
