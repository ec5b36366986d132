//! A proxy without a pod: Envoy's bootstrap says what it serves.

use super::RunError;
use super::engine::Engine;
use super::plane::Listening;
use super::sockets::LiveSockets;
use super::sources::Feed;
use crate::admin;
use crate::config::{Drain, Locality};
use crate::overload::Overload;
use crate::tls::CredentialStore;
use crate::xds::bootstrap::Bootstrap;
use crate::xds::{Changes, SharedState, State};
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::{Duration, Instant, SystemTime};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

/// How long open connections may take to end at most when the process is told to leave.
const LEAVING_LIMIT: Duration = Duration::from_secs(20);

/// How often layers of the runtime on a disk are looked at.
const RUNTIME_INTERVAL: Duration = Duration::from_millis(250);

/// Everything that a proxy is told at its start.
#[derive(Debug)]
pub struct Settings {
    /// What to serve.
    pub bootstrap: Bootstrap,
    /// Worker threads; at least 1.
    pub workers: usize,
    /// How long connections may take to end when the process leaves; never more than 20 seconds.
    pub drain_limit: Duration,
    /// Connections whose listener is gone, and those that the admin server asks to, end all with their next answer, instead of more and
    /// more of them.
    pub drain_at_once: bool,
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
    let drain = Drain { time: settings.drain_limit, at_once: settings.drain_at_once };
    let state = State::new("").binding(sockets.clone()).draining(drain);
    let state = take(state, &mut settings.bootstrap)?;
    let node = leno_xds::json::to_value(&settings.bootstrap.node).unwrap_or_default();
    // The descriptors were only needed to read the file.
    leno_xds::json::release();
    leno_runtime::memory::give_back();
    // Who only limits connections has not said that memory is not to be watched.
    let overload = settings.bootstrap.overload.take().filter(|overload| !overload.monitors.is_empty());
    let overload = overload.unwrap_or_else(Overload::usual);
    let listening = Listening::AsConfigured(sockets);
    let engine = Engine::new(settings.workers, state, CredentialStore::new(), listening, overload);
    let engine = engine.showing(settings.bootstrap.display.clone());
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let local = LocalSet::new();
    let _inside = local.enter();
    let feed = Feed {
        state: engine.state.clone(),
        publisher: engine.plane.publisher(),
        node: settings.bootstrap.node.clone(),
        changes: Changes::default(),
        stop: stop.clone(),
    };
    let connection = feed.begin_ads(&settings.bootstrap.dynamic);
    if let Some(address) = &settings.bootstrap.admin {
        let (listener, address) =
            admin::listener(address).map_err(|source| RunError::Admin { address: address.clone(), source })?;
        tracing::info!(address, "the admin server listens");
        if let Some(path) = &settings.admin_address_path {
            std::fs::write(path, address).map_err(|source| RunError::AdminPath(path.clone(), source))?;
        }
        let view = engine.view(connection);
        let logs = admin::AdminLogs::open(&settings.bootstrap.admin_logs)
            .map_err(|(path, source)| RunError::AdminPath(path.into(), source))?;
        let changes = Some(feed.changes.clone());
        let view = admin::View { quit: Some(shutdown.clone()), changes, node, logs, drain, ..view };
        admin::serve_at(listener, &view, &stop);
    }
    local.spawn_local(watch_runtime(engine.state.clone(), feed.changes.clone(), stop.clone()));
    local.spawn_local(feed.run());
    local.run_until(life(&engine, settings.drain_limit, &shutdown)).await
}

/// Looks at the layers of the runtime that lie on a disk, and brings into force what has changed.
async fn watch_runtime(state: SharedState, changes: Changes, stop: CancellationToken) {
    let on_disk = || state.lock().unwrap_or_else(PoisonError::into_inner).runtime().is_on_disk();
    while on_disk() {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RUNTIME_INTERVAL) => {}
        }
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.runtime_mut().read_again() {
            state.runtime_changed(Instant::now());
            drop(state);
            changes.tell();
        }
    }
}

/// From the first configuration in force to the end of the last connection.
async fn life(engine: &Engine, drain_limit: Duration, shutdown: &CancellationToken) -> Result<(), RunError> {
    let begun = Instant::now();
    tokio::select! {
        result = engine.plane.served() => result?,
        () = shutdown.cancelled() => return Ok(()),
    }
    engine.health.set_ready(true);
    tracing::info!(took = ?begun.elapsed(), "the first configuration is in force; serving");
    shutdown.cancelled().await;
    engine.health.set_ready(false);
    tracing::info!(connections = engine.plane.connections(), "leaving");
    engine.plane.stop_accepting().await;
    engine.plane.drain(drain_limit.min(LEAVING_LIMIT), Duration::from_secs(1)).await;
    Ok(())
}

/// Gives the resources of the bootstrap to the state; all must be taken.
fn take(state: State, bootstrap: &mut Bootstrap) -> Result<State, RunError> {
    let now = Instant::now();
    let dynamic = &mut bootstrap.dynamic;
    let expected = dynamic.expected.iter().map(|(kind, limit)| (*kind, limit.map(|limit| now + limit)));
    let of_monitor = bootstrap.overload.as_ref().and_then(|overload| overload.connections);
    let locality = bootstrap.node.locality.as_ref();
    let locality = locality.map(|at| Locality::of((&at.region, &at.zone, &at.sub_zone)));
    let mut state = state
        .with_node(&bootstrap.node)
        .at_home(bootstrap.local_cluster.as_deref(), locality)
        .logging_outliers(bootstrap.outlier_log.as_deref())
        .map_err(|refused| RunError::Refused(refused.to_string()))?
        .limiting_connections(of_monitor.into_iter().chain(bootstrap.runtime.most_connections()).min())
        .begun_with(std::mem::take(&mut bootstrap.shown))
        .connecting(std::mem::take(&mut bootstrap.sockets))
        .asking(std::mem::take(&mut bootstrap.resolvers))
        .with_runtime(std::mem::take(&mut bootstrap.runtime))
        .expecting(expected)
        .with_sources(std::mem::take(&mut dynamic.sources));
    for (kind, resources) in std::mem::take(&mut bootstrap.resources) {
        state.load(kind, resources, now, SystemTime::now()).map_err(RunError::Refused)?;
    }
    state.prepare_servers().map_err(RunError::Refused)?;
    Ok(state)
}
