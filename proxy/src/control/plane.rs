//! The workers as the control thread sees them: started with the first root, told of every later one.
//!
//! Roots go through a place that holds one: when they come faster than the workers take them, those between are left
//! out, and whoever waits for one of them waits for a newer one.

use super::RunError;
use super::sockets::{Change, LiveSockets};
use crate::config::Root;
use crate::telemetry::Shard;
use crate::tls::CredentialStore;
use crate::worker::{self, ListenSocket, Workers};
use crate::xds::{LocalFuture, Publish};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long after the last root the code that only configuration needs is given back.
const SETTLED: Duration = Duration::from_secs(3);

/// How long after the first root that happens as well, and memory that only starting up needed is given back with it.
const BEGUN: Duration = Duration::from_millis(200);

/// Where connections are accepted.
pub enum Listening {
    /// On these sockets, from the first root on that has a listener for each of their ports.
    These(Vec<(SocketAddr, TcpListener)>),
    /// Wherever the listeners in force say.
    AsConfigured(LiveSockets),
}

impl Listening {
    fn change(&mut self, root: &Root) -> Change {
        match self {
            // A root without a listener for one of them (refused, say) must not be handed connections.
            Self::These(sockets) if !covers(root, sockets) => Change::default(),
            Self::These(sockets) => {
                let open = sockets.drain(..).map(|(address, socket)| ListenSocket { address, socket });
                Change { open: open.collect(), close: Vec::new() }
            }
            Self::AsConfigured(sockets) => sockets.change(root),
        }
    }

    /// Whether connections are accepted as far as that has been decided.
    fn is_open(&self) -> bool {
        match self {
            Self::These(waiting) => waiting.is_empty(),
            Self::AsConfigured(_) => true,
        }
    }
}

/// Whether some listener is for each port of the sockets.
fn covers(root: &Root, sockets: &[(SocketAddr, TcpListener)]) -> bool {
    let has = |port| root.listeners.all().iter().any(|listener| listener.addresses.iter().any(|at| at.port() == port));
    sockets.iter().all(|(address, _)| has(address.port()))
}

/// The data plane of this process.
pub struct Plane {
    roots: watch::Sender<Option<Arc<Root>>>,
    taken: watch::Receiver<Taken>,
    workers: Arc<OnceLock<Workers>>,
    task: tokio::task::JoinHandle<()>,
}

/// What the workers have done with the roots.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Taken {
    /// Every worker has taken the root of this version; 0 is none. Whether connections are accepted.
    Version { version: u64, open: bool },
    /// They could not be started.
    Failed(String),
}

impl Plane {
    /// A data plane without workers; they begin when the first root is published.
    pub fn new(listening: Listening, shards: Vec<Shard>, credentials: CredentialStore) -> Self {
        let (roots, receiver) = watch::channel(None);
        let (sender, taken) = watch::channel(Taken::Version { version: 0, open: false });
        let workers = Arc::new(OnceLock::new());
        let receiver = super::upstreams::stage(receiver, credentials.clone());
        let task = tokio::spawn(publish(receiver, sender, workers.clone(), listening, shards, credentials));
        Self { roots, taken, workers, task }
    }

    /// Where new roots go.
    pub fn publisher(&self) -> Publisher {
        Publisher { roots: self.roots.clone(), taken: self.taken.clone() }
    }

    /// Resolves when a root is in force that serves all sockets.
    ///
    /// # Errors
    /// When the workers could not be started.
    pub async fn served(&self) -> Result<(), RunError> {
        let mut taken = self.taken.clone();
        let there = |taken: &Taken| !matches!(taken, Taken::Version { open: false, .. });
        let state = taken.wait_for(there).await.map(|state| state.clone());
        match state {
            Ok(Taken::Version { .. }) => Ok(()),
            Ok(Taken::Failed(reason)) => Err(RunError::Workers(reason)),
            Err(_) => Err(RunError::Workers("the task that starts them has ended".to_owned())),
        }
    }

    /// The workers, once they have begun.
    pub fn workers(&self) -> Arc<OnceLock<Workers>> {
        self.workers.clone()
    }

    /// Open connections of clients.
    pub fn connections(&self) -> usize {
        self.workers.get().map_or(0, Workers::connections)
    }

    /// Closes this process's listening sockets; open connections go on.
    pub async fn stop_accepting(&self) {
        if let Some(workers) = self.workers.get() {
            workers.stop_accepting().await;
        }
    }

    /// Accepts again from these, and lets connections be. False when there are no workers, or a socket cannot be used.
    pub async fn resume(&self, sockets: Vec<ListenSocket>) -> bool {
        let Some(workers) = self.workers.get() else { return false };
        workers.resume().await;
        match workers.listen(sockets).await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "a listening socket cannot be used");
                false
            }
        }
    }

    /// Begins to let open connections end, and goes on accepting others.
    pub async fn ask_to_leave(&self, idle: Duration) {
        if let Some(workers) = self.workers.get() {
            workers.ask_to_leave(idle).await;
        }
    }

    /// Lets open connections end, for at most `limit`.
    pub async fn drain(&self, limit: Duration, idle: Duration) {
        if let Some(workers) = self.workers.get() {
            let open = workers.drain(Instant::now() + limit, idle).await;
            if open > 0 {
                tracing::info!(open, ?limit, "some connections did not end in time");
            }
        }
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn publish(
    mut roots: watch::Receiver<Option<Arc<Root>>>,
    taken: watch::Sender<Taken>,
    workers: Arc<OnceLock<Workers>>,
    mut listening: Listening,
    shards: Vec<Shard>,
    credentials: CredentialStore,
) {
    let mut start = Some(shards);
    let (mut settled, mut fresh) = (None, true);
    loop {
        let quiet = async {
            match settled {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = roots.changed() => if changed.is_err() { return },
            () = quiet => {
                super::code::unmap_unused();
                // Later what is unused goes back little by little, and takes nobody's time.
                if std::mem::take(&mut fresh) {
                    leno_runtime::memory::give_back();
                    settled = Some(tokio::time::Instant::now() + SETTLED);
                } else {
                    settled = None;
                }
                continue;
            }
        }
        settled = Some(tokio::time::Instant::now() + if fresh { BEGUN } else { SETTLED });
        let Some(root) = roots.borrow_and_update().clone() else { continue };
        let version = root.version;
        let Change { open, close } = listening.change(&root);
        if let Some(shards) = start.take() {
            let credentials = credentials.clone();
            let settings = worker::Settings { workers: shards.len(), sockets: open, root, credentials, shards };
            match worker::spawn(settings) {
                Ok(started) => drop(workers.set(started)),
                Err(error) => {
                    taken.send_replace(Taken::Failed(error.to_string()));
                    return;
                }
            }
        } else if let Some(workers) = workers.get() {
            if !close.is_empty() {
                workers.close(close).await;
            }
            workers.publish(root).await;
            if !open.is_empty()
                && let Err(error) = workers.listen(open).await
            {
                tracing::error!(%error, "a listening socket cannot be used");
            }
        }
        tracing::debug!(version, "every worker has taken the root");
        taken.send_replace(Taken::Version { version, open: listening.is_open() });
    }
}

/// The discovery client's end.
#[derive(Clone)]
pub struct Publisher {
    roots: watch::Sender<Option<Arc<Root>>>,
    taken: watch::Receiver<Taken>,
}

impl Publish for Publisher {
    fn publish(&mut self, root: Arc<Root>) -> LocalFuture<()> {
        let version = root.version;
        self.roots.send_replace(Some(root));
        let mut taken = self.taken.clone();
        Box::pin(async move {
            let there = |state: &Taken| matches!(state, Taken::Version { version: taken, .. } if *taken >= version);
            // Never, when the workers could not be started: then nothing is in force, and nothing is acknowledged.
            if taken.wait_for(there).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}
