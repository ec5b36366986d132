//! The admin server: on loopback only, for a person with a shell in the pod or a port forward.

use std::net::{Ipv4Addr, SocketAddr};

use hyper::StatusCode;
use tokio_util::sync::CancellationToken;

use crate::http::{Health, ListenError, Routes, health_routes, listen, serve as serve_routes, text};
use crate::metrics::Registry;

/// Where the admin server of every process listens, unless told otherwise.
pub const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);

/// The routes that every admin server has: health, metrics, version.
pub fn routes(health: Health, registry: Registry) -> Routes {
    health_routes(health, registry)
        .get("/version", "the release that this process is", || text(StatusCode::OK, format!("{}\n", crate::version())))
}

/// Serves `routes` on `address` (normally [`ADDRESS`]) until `shutdown`.
///
/// # Errors
///
/// [`ListenError`], when the address is taken.
pub async fn serve(address: SocketAddr, routes: Routes, shutdown: CancellationToken) -> Result<(), ListenError> {
    serve_routes(listen(address).await?, routes, shutdown).await;
    Ok(())
}
