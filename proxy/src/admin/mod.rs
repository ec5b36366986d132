//! What a person, a probe or a scraper asks of the proxy.
//!
//! | port | who | what |
//! |---|---|---|
//! | 15000, loopback | people | config dump, clusters, listeners, certificates, metrics, memory |
//! | 15021 | probes | `/healthz/ready` |
//! | 15090 | Prometheus | `/stats/prometheus`: this proxy |
//! | 15020 | Prometheus | `/stats/prometheus`: the pod |
//!
//! All are served by the active slot, on sockets that travel with the others when the slots change places.

mod dump;
mod form;
mod log;
mod mask;
mod merged;
mod pages;
mod profiles;
mod statistics;
mod upstreams;

pub use log::AdminLogs;
pub use pages::is_failed;

use crate::config::Drain;
use crate::control::podinfo::PodInfo;
use crate::overload::Board;
use crate::slots::SlotError;
use crate::slots::sockets::Sockets;
use crate::telemetry::Telemetry;
use crate::tls::CredentialStore;
use crate::worker::Workers;
use crate::xds::bootstrap::AdminAddress;
use crate::xds::{Changes, Connection, SharedState};
use hyper::StatusCode;
use leno_runtime::http::{Health, Listener, Routes, serve as serve_routes, text, with_type};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The content type of Prometheus' text format.
pub(crate) const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The ports; zero is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// For people, on loopback.
    pub admin: u16,
    /// For probes.
    pub health: u16,
    /// This proxy's metrics.
    pub metrics: u16,
    /// The pod's metrics.
    pub merged: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { admin: 15000, health: 15021, metrics: 15090, merged: 15020 }
    }
}

impl Ports {
    /// The addresses to listen on.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses = Vec::new();
        if self.admin != 0 {
            addresses.push((Ipv4Addr::LOCALHOST, self.admin).into());
        }
        for port in [self.health, self.metrics, self.merged].into_iter().filter(|port| *port != 0) {
            addresses.push((Ipv4Addr::UNSPECIFIED, port).into());
            addresses.push((Ipv6Addr::UNSPECIFIED, port).into());
        }
        addresses
    }
}

/// What the servers look at.
#[derive(Clone)]
pub struct View {
    /// What the control plane sent.
    pub state: SharedState,
    /// What traffic was.
    pub telemetry: Telemetry,
    /// How short memory is.
    pub overload: Arc<Board>,
    /// Our certificate.
    pub store: CredentialStore,
    /// Whether the control plane is there.
    pub connection: watch::Receiver<Connection>,
    /// Whether we are ready.
    pub health: Health,
    /// The workers, once there are some.
    pub workers: Arc<OnceLock<Workers>>,
    /// Brings into force what the admin server changes; `None` where it changes nothing.
    pub changes: Option<Changes>,
    /// Ends this process in order; `None` where that is not asked of it.
    pub quit: Option<CancellationToken>,
    /// How connections are asked to end.
    pub drain: Drain,
    /// Listeners whose sockets the admin server has closed.
    pub stopped: Arc<AtomicU64>,
    /// What the pod says about itself.
    pub pod: Option<PodInfo>,
    /// Who this proxy is, as its bootstrap says it.
    pub node: serde_json::Value,
    /// Since when this process runs.
    pub begun: Instant,
    /// Who asks for what is written there.
    pub logs: AdminLogs,
    /// What counters were when they were last reset, by name; as many as there are statistics.
    pub reset: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl View {
    fn state(&self) -> MutexGuard<'_, crate::xds::State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves on copies of the sockets until `stop`. Ports for which there is no socket are left out.
///
/// # Errors
/// When a socket cannot be used.
pub fn serve(ports: &Ports, sockets: &Sockets, view: &View, stop: &CancellationToken) -> Result<(), SlotError> {
    for address in ports.addresses() {
        if !sockets.addresses().any(|held| held == address) {
            continue;
        }
        let port = address.port();
        let routes = if port == ports.admin {
            pages::routes(view)
        } else if port == ports.health {
            health(&view.health)
        } else if port == ports.merged {
            merged(ports, view)
        } else {
            metrics(Routes::new(), view)
        };
        let listener = TcpListener::from_std(sockets.copy(address)?)?;
        tokio::spawn(serve_routes(listener, routes, stop.clone()));
    }
    Ok(())
}

/// The socket of an admin server, and where it is: a port that was left open is chosen now. A socket that an earlier process left
/// in the file system goes.
///
/// # Errors
/// When nothing can listen there.
pub fn listener(address: &AdminAddress) -> std::io::Result<(Listener, String)> {
    match address {
        AdminAddress::Socket(address) => {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?.to_string();
            Ok((Listener::Tcp(TcpListener::from_std(listener)?), address))
        }
        AdminAddress::Pipe(path, mode) => {
            let listener = match path.strip_prefix('@') {
                Some(name) => {
                    use std::os::{linux::net::SocketAddrExt as _, unix::net};
                    net::UnixListener::bind_addr(&net::SocketAddr::from_abstract_name(name)?)?
                }
                None => {
                    if let Err(error) = std::fs::remove_file(path)
                        && error.kind() != std::io::ErrorKind::NotFound
                    {
                        return Err(error);
                    }
                    let listener = std::os::unix::net::UnixListener::bind(path)?;
                    if let Some(mode) = mode {
                        use std::os::unix::fs::PermissionsExt as _;
                        std::fs::set_permissions(path, std::fs::Permissions::from_mode(*mode))?;
                    }
                    listener
                }
            };
            listener.set_nonblocking(true)?;
            Ok((Listener::Unix(tokio::net::UnixListener::from_std(listener)?), path.clone()))
        }
    }
}

/// Serves the admin pages on a socket until `stop`.
pub fn serve_at(listener: Listener, view: &View, stop: &CancellationToken) {
    tokio::spawn(serve_routes(listener, pages::routes(view), stop.clone()));
}

pub(crate) fn health(health: &Health) -> Routes {
    let health = health.clone();
    Routes::new().get("/healthz/ready", "200 while the pod may get traffic", move || ready(&health))
}

pub(crate) fn ready(health: &Health) -> leno_runtime::http::Answer {
    if health.is_ready() && !is_failed() {
        text(StatusCode::OK, "ok\n")
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, "not ready: no configuration is in force yet, or this proxy is leaving\n")
    }
}

fn metrics(routes: Routes, view: &View) -> Routes {
    let telemetry = view.telemetry.clone();
    routes.get("/stats/prometheus", "metrics for Prometheus", move || {
        with_type(StatusCode::OK, PROMETHEUS, telemetry.render())
    })
}

/// The pod's metrics: this proxy's and the app's.
fn merged(ports: &Ports, view: &View) -> Routes {
    let (telemetry, pod) = (view.telemetry.clone(), view.pod.clone());
    let own = vec![ports.admin, ports.health, ports.metrics, ports.merged];
    Routes::new().add("/stats/prometheus", "metrics of this proxy and of the app", move |_| {
        merged::page(telemetry.clone(), pod.clone(), own.clone())
    })
}
