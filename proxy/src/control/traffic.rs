//! What serves the traffic of a slot, as its life sees it.

use super::RunError;
use super::plane::Plane;
use crate::identity::Current;
use crate::slots::sockets::Sockets;
use crate::worker::ListenSocket;
use crate::xds::{Connection, SharedState};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Whether what serves the traffic does so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Not yet, or not any more and soon again.
    Starting,
    /// It does.
    Serves,
    /// It never will again, for this reason.
    Lost(Arc<str>),
}

/// What serves the traffic of a slot: our own workers, or Envoy.
pub(crate) trait Traffic {
    /// Resolves when the first configuration is in force.
    ///
    /// # Errors
    /// When that will never be.
    async fn served(&self) -> Result<(), RunError>;
    /// Whether it serves.
    fn standing(&self) -> watch::Receiver<Standing>;
    /// Open connections of clients.
    async fn connections(&self) -> usize;
    /// Closes this slot's listening sockets; open connections go on.
    async fn stop_accepting(&self);
    /// Asks clients to come over other connections from now on, on which somebody else may answer; what they send meanwhile is
    /// served. Those that have been without a request for `idle` are closed.
    async fn ask_to_leave(&self, idle: Duration);
    /// Lets open connections end, for at most `limit`; those that have been without a request for `idle` are closed.
    async fn drain(&self, limit: Duration, idle: Duration);
    /// Accepts again on copies of these sockets, and lets connections be. False when it cannot.
    async fn resume(&self, sockets: &Sockets) -> bool;
    /// What it waits for before it serves, in words for a person.
    fn waits_for(&self) -> String;
}

/// Our own workers.
pub(super) struct Own<'a> {
    pub plane: &'a Plane,
    pub state: SharedState,
    pub current: Current,
    pub connection: watch::Receiver<Connection>,
    /// The ports of captured traffic.
    pub ports: [u16; 2],
}

impl Traffic for Own<'_> {
    async fn served(&self) -> Result<(), RunError> {
        self.plane.served().await
    }

    /// Workers serve for as long as the process lives.
    fn standing(&self) -> watch::Receiver<Standing> {
        watch::channel(Standing::Serves).1
    }

    async fn connections(&self) -> usize {
        self.plane.connections()
    }

    async fn stop_accepting(&self) {
        self.plane.stop_accepting().await;
    }

    async fn ask_to_leave(&self, idle: Duration) {
        self.plane.ask_to_leave(idle).await;
    }

    async fn drain(&self, limit: Duration, idle: Duration) {
        self.plane.drain(limit, idle).await;
    }

    async fn resume(&self, sockets: &Sockets) -> bool {
        let traffic = sockets.addresses().filter(|address| self.ports.contains(&address.port()));
        let copies = traffic.map(|address| Ok(ListenSocket { address, socket: sockets.copy(address)? }));
        let copies: Result<Vec<_>, crate::slots::SlotError> = copies.collect();
        match copies {
            Ok(copies) => self.plane.resume(copies).await,
            Err(error) => {
                tracing::error!(%error, "cannot accept again");
                false
            }
        }
    }

    fn waits_for(&self) -> String {
        if self.current.borrow().is_none() {
            return "it has no certificate".to_owned();
        }
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = state.refusals().iter().max_by_key(|(_, refusal)| refusal.since);
        if let Some(((kind, name), refusal)) = refused {
            let more = state.refusals().len() - 1;
            return format!("it has refused {} {name}: {} (and {more} more)", kind.noun(), refusal.reason);
        }
        match &self.connection.borrow().last_error {
            Some(error) => format!("its stream with the control plane ended: {error}"),
            None => "it has not got all of its configuration".to_owned(),
        }
    }
}
