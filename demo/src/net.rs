//! Outgoing connections: names are resolved by hickory, since a static glibc cannot be trusted to.

use crate::Failure;
use bytes::Bytes;
use hickory_resolver::TokioResolver;
use http::Uri;
use http_body_util::Full;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::net::TcpStream;

/// How long a connection may take to be established.
const CONNECT: Duration = Duration::from_secs(5);

/// Connects to `host:port` names and to plain addresses.
#[derive(Clone)]
pub(crate) struct Connector(Arc<TokioResolver>);

impl Connector {
    pub(crate) fn new() -> Result<Connector, Failure> {
        Ok(Connector(Arc::new(TokioResolver::builder_tokio()?.build()?)))
    }

    /// A TCP connection; the first address that answers wins.
    pub(crate) async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, Failure> {
        let addresses: Vec<IpAddr> = match host.trim_matches(['[', ']']).parse() {
            Ok(address) => vec![address],
            Err(_) => self.0.lookup_ip(host).await?.iter().collect(),
        };
        let mut last: Failure = format!("{host} has no address").into();
        for address in addresses {
            match tokio::time::timeout(CONNECT, TcpStream::connect(SocketAddr::new(address, port))).await {
                Ok(Ok(stream)) => {
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Ok(Err(error)) => last = format!("{host}:{port} ({address}): {error}").into(),
                Err(_) => last = format!("{host}:{port} ({address}): no connection within {CONNECT:?}").into(),
            }
        }
        Err(last)
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let host = uri.host().ok_or("the address has no host")?;
            Ok(TokioIo::new(connector.connect(host, uri.port_u16().unwrap_or(80)).await?))
        })
    }
}

/// A client that keeps connections alive.
pub(crate) type HttpClient = Client<Connector, Full<Bytes>>;

/// An HTTP/1.1 client, or one for HTTP/2 with prior knowledge.
pub(crate) fn client(http2: bool, keep_alive: bool) -> Result<HttpClient, Failure> {
    let mut builder = Client::builder(TokioExecutor::new());
    builder.http2_only(http2).pool_max_idle_per_host(if keep_alive { 256 } else { 0 });
    Ok(builder.build(Connector::new()?))
}

/// Splits `host:port`.
pub(crate) fn host_port(address: &str) -> Result<(&str, u16), Failure> {
    let (host, port) =
        address.rsplit_once(':').ok_or_else(|| format!("{address} is not HOST:PORT, e.g. ratings:9090"))?;
    Ok((host, port.parse().map_err(|_| format!("{address}: {port} is not a port"))?))
}
