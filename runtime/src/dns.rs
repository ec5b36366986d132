//! Name resolution for statically linked binaries.
//!
//! glibc's `getaddrinfo` loads plug-ins at run time, which a static binary cannot be trusted to do, so every client of
//! ours connects through [`Connector`], which asks the servers in `/etc/resolv.conf` by itself (search domains, ndots and
//! `/etc/hosts` included).
//!
//! Bounds: 5 s for a lookup, 3 s to connect to one address, at most 8 addresses tried one after the other.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

/// How long a lookup may take.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long connecting to one address may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Addresses of one name that are tried.
pub const MAX_ADDRESSES: usize = 8;

/// A name could not be resolved, or nothing at it answered.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The resolver could not be set up.
    #[error("cannot set up name resolution from /etc/resolv.conf: {0}")]
    Setup(String),
    /// The lookup failed.
    #[error("cannot resolve {name}: {reason}")]
    Lookup {
        /// The name.
        name: String,
        /// What the resolver said.
        reason: String,
    },
    /// The address is not of the form that is wanted.
    #[error("{0} names no host; write scheme://host:port")]
    NoHost(String),
    /// No address answered.
    #[error("cannot connect to {target}: {source}")]
    Connect {
        /// Host and port.
        target: String,
        /// What the last address said.
        source: std::io::Error,
    },
}

/// Resolves names by the system's configuration, read at first use. Cheap to clone.
#[derive(Clone, Default)]
pub struct Resolver {
    inner: Arc<OnceCell<TokioResolver>>,
}

impl Resolver {
    /// By `/etc/resolv.conf` and `/etc/hosts`.
    pub fn system() -> Self {
        Self::default()
    }

    /// The addresses of `host`, which may be an IP address (with or without brackets): at least one.
    ///
    /// # Errors
    ///
    /// [`DnsError`], when the name has no address or no server answers in time.
    pub async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, DnsError> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse() {
            return Ok(vec![address]);
        }
        let resolver = self.inner.get_or_try_init(|| async { system_resolver() }).await?;
        let failed = |reason: String| DnsError::Lookup { name: host.to_owned(), reason };
        let lookup = tokio::time::timeout(LOOKUP_TIMEOUT, resolver.lookup_ip(host))
            .await
            .map_err(|_| failed(format!("no answer within {LOOKUP_TIMEOUT:?}")))?
            .map_err(|error| failed(error.to_string()))?;
        let addresses: Vec<IpAddr> = lookup.iter().take(MAX_ADDRESSES).collect();
        if addresses.is_empty() { Err(failed("it has no address".to_owned())) } else { Ok(addresses) }
    }

    /// Connects to `host:port`, trying its addresses in order.
    ///
    /// # Errors
    ///
    /// [`DnsError`], when the name does not resolve or no address accepts.
    pub async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, DnsError> {
        let mut last = std::io::Error::other("no address");
        for address in self.resolve(host).await? {
            match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(SocketAddr::new(address, port))).await {
                Ok(Ok(stream)) => {
                    stream.set_nodelay(true).ok();
                    return Ok(stream);
                }
                Ok(Err(error)) => last = error,
                Err(_) => last = std::io::Error::new(std::io::ErrorKind::TimedOut, format!("{address} did not answer")),
            }
        }
        Err(DnsError::Connect { target: format!("{host}:{port}"), source: last })
    }
}

fn system_resolver() -> Result<TokioResolver, DnsError> {
    TokioResolver::builder_tokio()
        .and_then(|builder| builder.build())
        .map_err(|error| DnsError::Setup(error.to_string()))
}

/// Connects to the host and port of a URI: the connector for hyper's clients and tonic's channels.
#[derive(Clone, Default)]
pub struct Connector {
    resolver: Resolver,
}

impl Connector {
    /// A connector that resolves with `resolver`.
    pub fn new(resolver: Resolver) -> Self {
        Connector { resolver }
    }
}

impl tower::Service<http::Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = DnsError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: http::Uri) -> Self::Future {
        let resolver = self.resolver.clone();
        Box::pin(async move {
            let host = uri.host().ok_or_else(|| DnsError::NoHost(uri.to_string()))?;
            let default = if uri.scheme_str() == Some("http") { 80 } else { 443 };
            Ok(TokioIo::new(resolver.connect(host, uri.port_u16().unwrap_or(default)).await?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn resolver_when_given_an_address_then_asks_nobody() -> Result<(), DnsError> {
        let resolver = Resolver::system();
        assert_eq!(resolver.resolve("127.0.0.1").await?, vec![IpAddr::from([127, 0, 0, 1])]);
        assert_eq!(resolver.resolve("[::1]").await?, vec!["::1".parse::<IpAddr>().unwrap()]);
        Ok(())
    }

    #[tokio::test]
    async fn connect_when_nobody_listens_then_names_the_target() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = Resolver::system().connect("127.0.0.1", port).await.unwrap_err();
        assert!(error.to_string().contains(&format!("127.0.0.1:{port}")), "{error}");
    }
}
