//! A client of the API server: in the cluster by service account, outside of it by `KUBECONFIG`.

use std::time::Duration;

use http::header::{HeaderValue, USER_AGENT};
use kube::config::{InferConfigError, KubeConfigOptions};
use kube::{Client, Config};
use leno_runtime::dns::{DnsError, Resolver};

/// How long the API server may take to accept a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a read may make no progress. Watches outlive it: the API server ends them within five minutes and sends
/// bookmarks every minute.
pub const READ_TIMEOUT: Duration = Duration::from_secs(295);

/// No client could be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no configuration.
    #[error("no cluster to talk to: {0}; set KUBECONFIG, or run in a pod with a service account")]
    Config(#[from] InferConfigError),
    /// The kubeconfig file is unusable.
    #[error("KUBECONFIG is unusable: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// The API server's name does not resolve.
    #[error("the API server cannot be found: {0}")]
    Dns(#[from] DnsError),
    /// The user agent is no header value.
    #[error("{0:?} cannot be a user agent; use visible ASCII")]
    UserAgent(String),
    /// The client could not be set up from the configuration.
    #[error("the client cannot be set up: {0}")]
    Setup(#[from] kube::Error),
}

/// A client whose requests carry `component/version` as user agent (what audit logs show).
///
/// In a pod the API server is addressed by IP; a name in a kubeconfig is resolved here, since glibc's resolver is not to be
/// trusted in a static binary.
///
/// # Errors
///
/// [`ClientError`], when no configuration is found or it is unusable.
pub async fn connect(component: &str) -> Result<Client, ClientError> {
    leno_runtime::certs::install_crypto_provider();
    let mut config = if std::env::var_os("KUBECONFIG").is_some() {
        Config::from_kubeconfig(&KubeConfigOptions::default()).await?
    } else {
        Config::infer().await?
    };
    let agent = format!("{component}/{}", leno_runtime::version());
    let value = HeaderValue::from_str(&agent).map_err(|_| ClientError::UserAgent(agent))?;
    config.headers.push((USER_AGENT, value));
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    resolve_server(&mut config).await?;
    Ok(Client::try_from(config)?)
}

/// Puts an address in the place of the server's name; TLS goes on checking the name.
async fn resolve_server(config: &mut Config) -> Result<(), DnsError> {
    let Some(host) = config.cluster_url.host().map(str::to_owned) else { return Ok(()) };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<std::net::IpAddr>().is_ok() {
        return Ok(());
    }
    let Some(address) = Resolver::system().resolve(&host).await?.into_iter().next() else { return Ok(()) };
    let authority = match (config.cluster_url.port_u16(), address) {
        (Some(port), address) => std::net::SocketAddr::new(address, port).to_string(),
        (None, std::net::IpAddr::V6(address)) => format!("[{address}]"),
        (None, address) => address.to_string(),
    };
    let mut parts = config.cluster_url.clone().into_parts();
    parts.authority = authority.parse().ok();
    if let Ok(uri) = http::Uri::from_parts(parts) {
        config.tls_server_name.get_or_insert(host);
        config.cluster_url = uri;
    }
    Ok(())
}
