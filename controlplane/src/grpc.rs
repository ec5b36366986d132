//! The gRPC server: configuration, certificates and reports on one port, each with its own rule about who may call.
//!
//! Bounds: 64 streams a connection; a connection that does not answer a ping within 10 s is closed.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use leno_api::identity::v1::workload_certificates_server::WorkloadCertificatesServer;
use leno_api::proxies::v1::proxy_reports_server::ProxyReportsServer;
use leno_api::proxies::v1::proxy_status_server::ProxyStatusServer;
use leno_api::status::v1::mesh_status_server::MeshStatusServer;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::acks::StatusService;
use crate::ads::Configs;
use crate::ads::server::Ads;
use crate::identity::{Directory, Signer};
use crate::proxies;
use crate::tls::accept;

const MAX_STREAMS: u32 = 64;
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// The services of this process.
pub struct Services<C, D> {
    /// Configuration.
    pub ads: Ads<C>,
    /// Certificates.
    pub signer: Signer<D>,
    /// Reports about configuration.
    pub status: StatusService,
    /// Reports of proxies.
    pub reports: proxies::ReportService<D>,
    /// Reports of proxies, for the operator.
    pub proxies: proxies::StatusService,
}

/// Serves until `shutdown`; open streams are ended by their services, which know the same token.
///
/// # Errors
///
/// When the server fails as a whole, which no connection can cause.
pub async fn serve<C: Configs, D: Directory>(
    listener: TcpListener,
    tls: Arc<ArcSwap<ServerConfig>>,
    services: Services<C, D>,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let connections = accept(listener, tls, shutdown.clone());
    Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .add_service(services.ads.into_server())
        .add_service(WorkloadCertificatesServer::new(services.signer).max_decoding_message_size(64 * 1024))
        .add_service(MeshStatusServer::new(services.status).max_decoding_message_size(1024))
        .add_service(ProxyReportsServer::new(services.reports).max_decoding_message_size(proxies::MAX_REPORT))
        .add_service(ProxyStatusServer::new(services.proxies).max_decoding_message_size(1024))
        .serve_with_incoming_shutdown(connections, shutdown.cancelled_owned())
        .await
}
