//! What every process that serves traffic has, whoever tells it what to serve: workers, what is in force, figures.

use super::plane::{Listening, Plane};
use crate::admin::{AdminLogs, View};
use crate::config::Drain;
use crate::overload::{self, Board, Overload};
use crate::telemetry::{Telemetry, display::Display};
use crate::tls::CredentialStore;
use crate::xds::{Connection, Rejections, SharedState, State};
use leno_runtime::http::Health;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// The data plane with what belongs to it. Nothing is served before the first root is published.
pub(super) struct Engine {
    /// The workers.
    pub plane: Plane,
    /// What was received and what of it is in force.
    pub state: SharedState,
    /// Whether traffic may come.
    pub health: Health,
    telemetry: Telemetry,
    overload: Arc<Board>,
    shedding: tokio::task::JoinHandle<()>,
    store: CredentialStore,
    begun: std::time::Instant,
}

impl Engine {
    /// A data plane of so many workers (at least 1). Must be called inside a tokio runtime, on which log lines are written.
    /// `overload` says what is done when memory runs short.
    pub fn new(workers: usize, state: State, store: CredentialStore, listening: Listening, overload: Overload) -> Self {
        let (telemetry, shards) = Telemetry::new(workers.max(1));
        let telemetry = telemetry.telling(state.counters());
        let logs = telemetry.clone();
        tokio::spawn(async move { logs.write_logs().await });
        let (plane, board) = (Plane::new(listening, shards, store.clone()), Arc::<Board>::default());
        let shedding = tokio::spawn(overload::watch(overload, plane.workers(), board.clone()));
        Self {
            plane,
            overload: board,
            shedding,
            state: Arc::new(Mutex::new(state)),
            health: Health::new(),
            telemetry,
            store,
            begun: std::time::Instant::now(),
        }
    }

    /// Shows statistics as a configuration says.
    pub fn showing(mut self, display: Arc<Display>) -> Self {
        self.telemetry = self.telemetry.clone().showing(display);
        self
    }

    /// Resources refused.
    pub fn rejections(&self) -> watch::Receiver<Rejections> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).rejections()
    }

    /// What the admin server shows.
    pub fn view(&self, connection: watch::Receiver<Connection>) -> View {
        View {
            state: self.state.clone(),
            telemetry: self.telemetry.clone(),
            overload: self.overload.clone(),
            store: self.store.clone(),
            connection,
            health: self.health.clone(),
            workers: self.plane.workers(),
            changes: None,
            quit: None,
            drain: Drain::default(),
            stopped: Arc::default(),
            pod: None,
            node: serde_json::Value::Null,
            begun: self.begun,
            logs: AdminLogs::default(),
            reset: Arc::default(),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shedding.abort();
    }
}
