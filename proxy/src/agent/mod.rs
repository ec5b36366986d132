//! Envoy as the engine of a slot: this process is the agent beside it.
//!
//! ```text
//!   control plane ◀═ mutual TLS ═▶ agent ◀─ Unix socket ─▶ Envoy ◀─▶ traffic
//!                                    │  discovery (relayed), secrets (served), log (counted)
//!                                    └─ 15000 admin, 15020/15090 metrics, 15021 health
//! ```
//!
//! Slots, hooks, certificates, ports and metrics are the same as with Leno's own proxy; what is in between is Envoy as it
//! comes, told by a bootstrap that names nothing but the agent's socket. `docs/adr/0004-envoy-under-an-agent.md` says why.
//!
//! - [`bootstrap`]: what Envoy is started with.
//! - [`process`]: starts it, sees that it lives, ends it in order.
//! - [`steer`]: new connections for whoever takes over.
//! - [`socket`]: the three services on the Unix socket: [`relay`], [`secrets`], [`log`].
//! - [`count`] and [`names`]: from log entries to the standard metrics.
//! - [`admin`]: what people, probes and scrapers ask.
//!
//! Each Envoy binds the traffic ports itself, with `SO_REUSEPORT`, so that the two slots' Envoys can hold them at the same time:
//! a hand-over starts one, steers new connections to it, and then drains the other.

pub mod admin;
pub mod bootstrap;
pub mod count;
pub mod log;
pub mod names;
pub mod process;
pub mod relay;
pub mod secrets;
pub mod socket;
pub mod steer;

use crate::control::report::{Newest, Reporter};
use crate::control::serving::Slot;
use crate::control::traffic::{Standing, Traffic};
use crate::control::{End, RunError};
use crate::identity::Identity;
use crate::identity::link::Link;
use crate::slots::Folder;
use crate::slots::sockets::Sockets;
use crate::telemetry::Telemetry;
use crate::tls::CredentialStore;
use crate::xds::node;
use leno_runtime::http::Health;
use leno_xds::envoy::config::core::v3::Node;
use process::Process;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

/// Messages of log entries that wait to be counted; then Envoy's stream waits.
const LOG_QUEUE: usize = 64;
/// How often the connections of a draining Envoy are looked at.
const DRAIN_POLL: Duration = Duration::from_millis(100);
/// For so long no request may have been under way or come before idle connections are closed.
const QUIET: Duration = Duration::from_secs(1);
/// So long a handshake that is under way may take, and Envoy until it has accepted what waits, before sockets are closed.
const SETTLE: Duration = Duration::from_millis(300);

/// What the agent is told about its engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Envoy's binary.
    pub binary: PathBuf,
}

/// The paths of one slot's agent and Envoy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Where the agent serves Envoy.
    pub agent: PathBuf,
    /// Where Envoy's admin server listens.
    pub admin: PathBuf,
}

impl Paths {
    /// Those of a slot.
    pub fn of(folder: &Folder, slot: u8) -> Self {
        Self { agent: folder.file(&format!("agent-{slot}.sock")), admin: folder.file(&format!("envoy-{slot}.sock")) }
    }
}

/// Who this proxy says it is. The engine is a hint for people: the control plane looks at the pod.
fn engine_node(pod: &str, namespace: &str) -> Node {
    let mut node = node(pod, namespace, &leno_runtime::version());
    let engine = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue("envoy".to_owned())) };
    node.metadata.get_or_insert_default().fields.insert("ENGINE".to_owned(), engine);
    node
}

/// Runs the agent and its Envoy as the active slot.
pub(crate) async fn run(slot: Slot<'_>, envoy: &Settings) -> Result<End, RunError> {
    let settings = slot.settings.clone();
    slot.sockets.add(&settings.ports.addresses())?;
    let link = Link::new(settings.target());
    let (identity, current) = Identity::new(settings.files.clone(), link.clone(), CredentialStore::new());
    let (telemetry, mut shards) = Telemetry::new(1);
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let paths = Paths::of(&settings.folder, settings.slot);
    let node = engine_node(&settings.pod, &settings.namespace);

    let (entries, received) = mpsc::channel(LOG_QUEUE);
    let newest = Newest::new();
    let (relay, connection) = relay::Relay::new(link.clone(), current.clone(), node.clone(), newest.clone());
    let rejections = relay.rejections();
    let secrets = secrets::Secrets::new(current.clone());
    let services = socket::Services { relay, secrets, log: log::Log::new(entries) };
    tokio::spawn(socket::serve(&paths.agent, services, stop.clone())?);
    tokio::spawn(identity.run(stop.clone()));
    tokio::spawn(crate::control::serving::follow_revision(settings.clone(), link, stop.clone()));
    let local = LocalSet::new();
    if let Some(shard) = shards.pop() {
        local.spawn_local(count::Counter::new(shard, &settings.trust_domain).run(received));
    }
    let spec = process::Spec {
        binary: envoy.binary.clone(),
        bootstrap: bootstrap::bootstrap(&node, &paths).to_string(),
        workers: settings.workers,
        drain: settings.drain_limit,
        admin: paths.admin.clone(),
    };
    let health = Health::new();
    let process = Process::start(spec, stop.clone());
    let engine = Engine { process, admin: paths.admin, workers: settings.workers, connection: connection.clone() };
    let view = admin::View {
        health: health.clone(),
        telemetry,
        envoy: engine.admin.clone(),
        connection,
        restarts: engine.process.restarts(),
    };
    let reporter = Reporter {
        namespace: settings.namespace.clone(),
        pod: settings.pod.clone(),
        slot: settings.slot,
        engine: "envoy",
        newest,
        current,
        situation: slot.situation.subscribe(),
        rejections,
        telemetry: view.telemetry.clone(),
        beside: engine.process.pid(),
    };
    tokio::spawn(reporter.run(stop.clone()));
    let admin = |sockets: &Sockets| {
        let open = stop.child_token();
        admin::serve(&settings.ports, sockets, &view, &open).map(|()| open.drop_guard())
    };
    let result = local.run_until(slot.life(&engine, &health, &admin)).await;
    engine.process.end().await;
    result
}

/// Envoy as what serves the traffic of a slot.
struct Engine {
    process: Process,
    admin: PathBuf,
    workers: usize,
    connection: relay::Connection,
}

impl Engine {
    /// Has Envoy's admin server do something.
    async fn tell_envoy(&self, path: &str) {
        if let Err(error) = admin::ask(&self.admin, hyper::Method::POST, path).await {
            tracing::warn!(%error, path, "Envoy does not drain");
        }
    }
}

impl Traffic for Engine {
    async fn served(&self) -> Result<(), RunError> {
        let mut standing = self.process.standing();
        let state = standing.wait_for(|standing| *standing != Standing::Starting).await.map(|state| state.clone());
        match state {
            Ok(Standing::Lost(reason)) => Err(RunError::Engine(reason)),
            Ok(_) => Ok(()),
            Err(_) => Err(RunError::Engine("the task that keeps it has ended".into())),
        }
    }

    fn standing(&self) -> watch::Receiver<Standing> {
        self.process.standing()
    }

    async fn connections(&self) -> usize {
        Load::of(&self.admin).await.map_or(0, |load| load.open)
    }

    async fn stop_accepting(&self) {
        // Clients are told first that their connections end (`connection: close`, GOAWAY), then the sockets are closed.
        self.tell_envoy("/drain_listeners?graceful&skip_exit").await;
        let addresses = steer::addresses(&self.admin).await;
        steer::steer(&addresses, steer::Whose::Last { workers: self.workers });
        tokio::time::sleep(SETTLE).await;
        self.tell_envoy("/drain_listeners").await;
        // Nobody knows how many workers the next one has.
        tokio::time::sleep(SETTLE).await;
        steer::steer(&addresses, steer::Whose::All);
    }

    async fn ask_to_leave(&self, _: Duration) {
        self.tell_envoy("/drain_listeners?graceful&skip_exit").await;
    }

    async fn drain(&self, limit: Duration, _: Duration) {
        let begun = Instant::now();
        let (mut quiet_since, mut seen) = (begun, None);
        loop {
            // An Envoy that does not answer has nothing to drain.
            let Ok(load) = Load::of(&self.admin).await else { return };
            let now = Instant::now();
            if load.is_busy() || seen.replace(load.requests) != Some(load.requests) {
                quiet_since = now;
            }
            // A client that asks again is told that its connection ends; one that asks no more need not be waited for.
            if load.open == 0 || now - quiet_since >= QUIET {
                return;
            }
            if now + DRAIN_POLL >= begun + limit {
                tracing::info!(?load, ?limit, "some connections did not end in time");
                return;
            }
            tokio::time::sleep(DRAIN_POLL).await;
        }
    }

    /// Envoy opens no listener again that it has drained.
    async fn resume(&self, _: &Sockets) -> bool {
        false
    }

    fn waits_for(&self) -> String {
        format!("Envoy does not serve; its discovery: {}", *self.connection.borrow())
    }
}

/// What Envoy is busy with, as its counters say; its admin server (this very question) left out.
#[derive(Debug, Default, PartialEq, Eq)]
struct Load {
    /// Open connections of clients.
    open: usize,
    /// Those of them that speak HTTP.
    http: usize,
    /// Requests under way.
    active: usize,
    /// Requests so far.
    requests: usize,
}

impl Load {
    async fn of(envoy: &Path) -> Result<Self, admin::AskError> {
        let path = "/stats?filter=downstream_(cx_active%7Crq_active%7Crq_total)%24";
        let page = admin::ask(envoy, hyper::Method::GET, path).await?;
        Ok(Self::read(&String::from_utf8_lossy(&page.body)))
    }

    fn read(text: &str) -> Self {
        let mut load = Self::default();
        for line in text.lines() {
            let Some((name, value)) = line.rsplit_once(": ") else { continue };
            let Ok(value) = value.trim().parse::<usize>() else { continue };
            if name.starts_with("listener.admin") || name.starts_with("http.admin") || name.contains(".worker_") {
                continue;
            }
            match (name.split_once('.'), name.rsplit_once('.')) {
                (Some(("listener", _)), Some((_, "downstream_cx_active"))) => load.open += value,
                (Some(("http", _)), Some((_, "downstream_cx_active"))) => load.http += value,
                (Some(("http", _)), Some((_, "downstream_rq_active"))) => load.active += value,
                (Some(("http", _)), Some((_, "downstream_rq_total"))) => load.requests += value,
                _ => {}
            }
        }
        load
    }

    /// A request is under way, or a connection of which nobody knows when it is idle.
    fn is_busy(&self) -> bool {
        self.active > 0 || self.open > self.http
    }
}

#[cfg(test)]
mod tests {
    use super::Load;

    #[test]
    fn load_when_read_from_counters_then_the_admin_server_is_left_out() {
        let text = "http.admin.downstream_cx_active: 1\nhttp.admin.downstream_rq_active: 1\n\
            http.admin.downstream_rq_total: 9\nhttp.inbound_0.0.0.0_8080.downstream_cx_active: 2\n\
            http.inbound_0.0.0.0_8080.downstream_rq_active: 0\nhttp.inbound_0.0.0.0_8080.downstream_rq_total: 40\n\
            listener.0.0.0.0_15006.downstream_cx_active: 2\nlistener.0.0.0.0_15006.worker_0.downstream_cx_active: 2\n\
            listener.admin.downstream_cx_active: 1\n";
        let load = Load::read(text);
        assert_eq!(load, Load { open: 2, http: 2, active: 0, requests: 40 });
        assert!(!load.is_busy());
        assert!(Load { open: 3, ..load }.is_busy(), "bytes may be under way");
    }
}
