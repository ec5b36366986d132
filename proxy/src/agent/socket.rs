//! The Unix socket between agent and Envoy, in the pod's memory volume: only the proxy's own user may open it.

use super::log::Log;
use super::relay::Relay;
use super::secrets::Secrets;
use crate::slots::{self, SlotError};
use leno_xds::envoy::service::accesslog::v3::access_log_service_server::AccessLogServiceServer;
use leno_xds::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use leno_xds::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

/// Most bytes of one message in either direction.
pub const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// What is served there.
pub struct Services {
    /// Configuration.
    pub relay: Relay,
    /// Certificates.
    pub secrets: Secrets,
    /// Where log entries go.
    pub log: Log,
}

/// Serves until `stop`.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(
    path: &Path,
    services: Services,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + use<>, SlotError> {
    let listener = slots::listen(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(|source| SlotError::Path {
        doing: "setting permissions of",
        path: path.to_owned(),
        source,
    })?;
    let Services { relay, secrets, log } = services;
    let discovery = AggregatedDiscoveryServiceServer::new(relay)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let server = tonic::transport::Server::builder()
        .add_service(discovery)
        .add_service(SecretDiscoveryServiceServer::new(secrets))
        .add_service(AccessLogServiceServer::new(log).max_decoding_message_size(MAX_MESSAGE));
    Ok(async move {
        let end = stop.cancelled_owned();
        if let Err(error) = server.serve_with_incoming_shutdown(UnixListenerStream::new(listener), end).await {
            tracing::error!(%error, "Envoy is not served any more");
        }
    })
}
