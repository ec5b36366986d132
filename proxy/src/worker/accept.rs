//! Accepts connections and hands each to the worker that has the fewest.

use super::{Worker, group::Command};
use crate::{config::Listener, listen, overload::Action};
use std::{
    io::ErrorKind,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

/// Open connections of a worker at most; more are closed at once.
const MAX_CONNECTIONS: usize = 50_000;
/// A pause after an accept that failed for want of memory or file descriptors.
const PAUSE: Duration = Duration::from_millis(50);
/// Connections that are closed unserved after a pause in which no descriptor became free.
const SHED: usize = 256;
/// Between two lines in the log about connections that were not served.
const QUIET: Duration = Duration::from_secs(5);

/// Open connections of a worker at most: three quarters of the process's file descriptors are for clients, the rest stays
/// for endpoints and files, so that what is accepted can be served.
pub(super) fn limit(workers: usize) -> usize {
    let descriptors = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    let descriptors = descriptors.map_or(u64::MAX, |(soft, _)| soft);
    let share = usize::try_from(descriptors / 4 * 3).unwrap_or(usize::MAX) / workers.max(1);
    share.clamp(1, MAX_CONNECTIONS)
}

/// A worker as the accepting one sees it.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) open: Arc<AtomicUsize>,
    /// Those among the open ones that count nothing to the limit of all.
    pub(super) apart: Arc<AtomicUsize>,
    pub(super) commands: mpsc::Sender<Command>,
}

/// Counts one open connection of a worker for as long as it lives.
#[derive(Debug)]
pub(super) struct Open([Option<Arc<AtomicUsize>>; 2]);

impl Open {
    fn new(counts: [Option<&Arc<AtomicUsize>>; 2]) -> Self {
        let counts = counts.map(Option::<&_>::cloned);
        counts.iter().flatten().for_each(|count| _ = count.fetch_add(1, Ordering::Relaxed));
        Self(counts)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.iter().flatten().for_each(|count| _ = count.fetch_sub(1, Ordering::Relaxed));
    }
}

/// What one accepting task knows.
struct Door {
    worker: Rc<Worker>,
    bound: SocketAddr,
    peers: Vec<Peer>,
    limit: usize,
    /// A descriptor kept back: with it connections can be taken and closed when there is no other.
    reserve: Option<std::fs::File>,
    told: Option<Instant>,
}

/// Accepts from one socket until the task is dropped.
pub(super) async fn accept(worker: Rc<Worker>, listener: TcpListener, bound: SocketAddr, peers: Vec<Peer>) {
    let limit = limit(peers.len());
    let mut door = Door { worker, bound, peers, limit, reserve: reserve(), told: None };
    let mut short = false;
    loop {
        while door.sheds(Action::StopConnections) {
            tokio::time::sleep(PAUSE).await;
        }
        match listener.accept().await {
            Ok((tcp, _)) => {
                short = false;
                if door.sheds(Action::RejectConnections) {
                    door.warn("memory runs short");
                    continue;
                }
                door.hand_over(tcp);
            }
            // A client that is gone already is no reason to wait; a lack of descriptors is.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
            Err(error) => {
                door.warn(&format!("accept failed: {error}"));
                // Those who wait may be served when others leave; when none did, they learn it at once and go elsewhere.
                if std::mem::replace(&mut short, true) {
                    door.shed(&listener).await;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn reserve() -> Option<std::fs::File> {
    std::fs::File::open("/dev/null").ok()
}

impl Door {
    /// Whether this holds of the listener, as it is in force now.
    fn listener_is(&self, what: impl FnOnce(&Listener) -> bool) -> bool {
        self.worker.root().config().listeners.bound(self.bound).is_some_and(|listener| what(listener))
    }

    /// Whether an action that saves memory is taken now, and concerns the listener.
    fn sheds(&self, action: Action) -> bool {
        self.worker.sheds(action) && !self.listener_is(|listener| listener.bypasses_overload)
    }

    fn hand_over(&mut self, tcp: TcpStream) {
        let fewest = self.peers.iter().enumerate().min_by_key(|(_, peer)| peer.open.load(Ordering::Relaxed));
        let Some((index, peer)) = fewest else { return };
        if peer.open.load(Ordering::Relaxed) >= self.limit {
            self.warn("too many connections");
            return;
        }
        let passes_most = self.listener_is(|listener| listener.passes_most);
        let counted = |peer: &Peer| {
            let (open, apart) = (peer.open.load(Ordering::Relaxed), peer.apart.load(Ordering::Relaxed));
            open.saturating_sub(apart) as u64
        };
        if let Some(most) = self.worker.root().config().most_connections.filter(|_| !passes_most)
            && self.peers.iter().map(counted).sum::<u64>() >= most
        {
            self.warn("as many connections as are allowed");
            return;
        }
        let open = Open::new([Some(&peer.open), Some(&peer.apart).filter(|_| passes_most)]);
        if index == self.worker.index {
            serve(&self.worker, tcp, self.bound, open);
        } else if let Ok(tcp) = tcp.into_std()
            && peer.commands.try_send(Command::Connection(tcp, self.bound, open)).is_err()
        {
            self.warn("a worker does not take connections");
        }
    }

    /// Takes connections with the descriptor that was kept back, and closes them.
    async fn shed(&mut self, listener: &TcpListener) {
        drop(self.reserve.take());
        for _ in 0..SHED {
            let next = listener.accept();
            match tokio::time::timeout(Duration::ZERO, next).await {
                Ok(Ok((tcp, _))) => drop(tcp),
                Ok(Err(_)) | Err(_) => break,
            }
        }
        self.reserve = reserve();
    }

    /// Says it once in a while: a flood of connections must not become one of lines.
    fn warn(&mut self, what: &str) {
        if self.told.is_none_or(|told| told.elapsed() >= QUIET) {
            self.told = Some(Instant::now());
            tracing::warn!(bound = %self.bound, "{what}; new connections are closed or wait");
        }
    }
}

/// Serves a connection in a task of this worker.
pub(super) fn serve(worker: &Rc<Worker>, tcp: TcpStream, bound: SocketAddr, open: Open) {
    tokio::task::spawn_local(listen::serve(worker.clone(), tcp, bound, open));
}
