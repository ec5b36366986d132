//! Accepts connections and hands each to the worker that has the fewest.

use super::{Worker, group::Command};
use crate::listen;
use std::{
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

/// Open connections of a worker at most; more are closed at once.
pub(super) const MAX_CONNECTIONS: usize = 50_000;
/// A pause after an accept that failed for want of memory or file descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// A worker as the accepting one sees it.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) open: Arc<AtomicUsize>,
    pub(super) commands: mpsc::Sender<Command>,
}

/// Counts one open connection of a worker for as long as it lives.
#[derive(Debug)]
pub(super) struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Accepts from one socket until the task is dropped.
pub(super) async fn accept(worker: Rc<Worker>, listener: TcpListener, bound: SocketAddr, peers: Vec<Peer>) {
    loop {
        match listener.accept().await {
            Ok((tcp, _)) => hand_over(&worker, tcp, bound, &peers),
            Err(error) => {
                // A client that is gone already is no reason to wait; a lack of descriptors is.
                if !matches!(error.kind(), std::io::ErrorKind::ConnectionAborted | std::io::ErrorKind::Interrupted) {
                    tracing::warn!(%bound, %error, "accept failed");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

fn hand_over(worker: &Rc<Worker>, tcp: TcpStream, bound: SocketAddr, peers: &[Peer]) {
    let fewest = peers.iter().enumerate().min_by_key(|(_, peer)| peer.open.load(Ordering::Relaxed));
    let Some((index, peer)) = fewest else { return };
    if peer.open.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
        tracing::warn!(%bound, "too many connections; a new one is closed");
        return;
    }
    let open = Open::new(peer.open.clone());
    if index == worker.index {
        serve(worker, tcp, bound, open);
    } else if let Ok(tcp) = tcp.into_std()
        && peer.commands.try_send(Command::Connection(tcp, bound, open)).is_err()
    {
        tracing::warn!(%bound, "a worker does not take connections; a new one is closed");
    }
}

/// Serves a connection in a task of this worker.
pub(super) fn serve(worker: &Rc<Worker>, tcp: TcpStream, bound: SocketAddr, open: Open) {
    let worker = worker.clone();
    tokio::task::spawn_local(async move {
        let _open = open;
        listen::serve(worker, tcp, bound).await;
    });
}
