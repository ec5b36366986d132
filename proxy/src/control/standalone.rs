//! A proxy without a pod: Envoy's bootstrap says what it serves.

use super::RunError;
use super::engine::Engine;
use super::plane::Listening;
use super::sockets::LiveSockets;
use crate::admin;
use crate::tls::CredentialStore;
use crate::xds::bootstrap::Bootstrap;
use crate::xds::{Connection, Kind, Publish as _, State};
use leno_xds::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long open connections may take to end at most when the process is told to leave.
const LEAVING_LIMIT: Duration = Duration::from_secs(20);

/// Everything that a proxy is told at its start.
#[derive(Debug)]
pub struct Settings {
    /// What to serve.
    pub bootstrap: Bootstrap,
    /// Worker threads; at least 1.
    pub workers: usize,
    /// How long connections of a listener that goes may take to end.
    pub drain_limit: Duration,
    /// Where to write the address of the admin server, if anywhere.
    pub admin_address_path: Option<PathBuf>,
}

/// Takes the resources of a bootstrap, and serves nothing.
///
/// # Errors
/// When one is refused.
pub fn validate(mut bootstrap: Bootstrap) -> Result<(), RunError> {
    take(State::new(""), &mut bootstrap).map(drop)
}

/// Serves until `shutdown`, and then until the last connection has ended, for a bounded time.
///
/// # Errors
/// When a resource of the bootstrap is refused, an address cannot be had, or the workers cannot be started.
pub async fn run(mut settings: Settings, shutdown: CancellationToken) -> Result<(), RunError> {
    let sockets = LiveSockets::default();
    let state = take(State::new("").binding(sockets.clone()), &mut settings.bootstrap)?;
    // The descriptors were only needed to read the file.
    leno_xds::json::release();
    let engine = Engine::new(settings.workers, state, CredentialStore::new(), Listening::AsConfigured(sockets));
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let (_connection, connection) = watch::channel(Connection::default());
    if let Some(address) = settings.bootstrap.admin {
        let listener = TcpListener::bind(address).map_err(|source| RunError::Admin { address, source })?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        tracing::info!(%address, "the admin server listens");
        if let Some(path) = &settings.admin_address_path {
            std::fs::write(path, address.to_string()).map_err(|source| RunError::AdminPath(path.clone(), source))?;
        }
        admin::serve_at(listener, &engine.view(connection), &stop)?;
    }
    let begun = Instant::now();
    let served = async {
        publish(&engine).await;
        engine.plane.served().await
    };
    tokio::select! {
        result = served => result?,
        () = shutdown.cancelled() => return Ok(()),
    }
    engine.health.set_ready(true);
    tracing::info!(took = ?begun.elapsed(), "the first configuration is in force; serving");
    shutdown.cancelled().await;
    engine.health.set_ready(false);
    tracing::info!(connections = engine.plane.connections(), "leaving");
    engine.plane.stop_accepting().await;
    engine.plane.drain(settings.drain_limit.min(LEAVING_LIMIT)).await;
    Ok(())
}

/// Publishes the first root when nothing in it waits any more.
async fn publish(engine: &Engine) {
    loop {
        let (root, deadline) = {
            let mut state = engine.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.settle(Instant::now());
            (state.root(), state.deadline())
        };
        if let Some(root) = root {
            engine.plane.publisher().publish(root).await;
            return;
        }
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
            None => return std::future::pending().await,
        }
    }
}

/// Gives the resources of the bootstrap to the state; all must be taken.
fn take(state: State, bootstrap: &mut Bootstrap) -> Result<State, RunError> {
    let mut state = state.with_runtime(std::mem::take(&mut bootstrap.runtime));
    for (kind, resources) in std::mem::take(&mut bootstrap.resources) {
        let response = DeltaDiscoveryResponse { resources, ..Default::default() };
        if let Some(refused) = state.apply(kind, response, Instant::now(), SystemTime::now()).refused {
            return Err(RunError::Refused(refused));
        }
    }
    for kind in [Kind::Endpoints, Kind::Routes] {
        if let Some(name) = state.wanted(kind).first() {
            return Err(RunError::Refused(format!(
                "{} `{name}`: nobody sends it; write it into the resource that names it",
                kind.noun()
            )));
        }
    }
    Ok(state)
}
