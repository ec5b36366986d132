//! The workers together, as the control thread sees them.

use super::{
    Worker,
    accept::{self, Open, Peer},
};
use crate::{config::Root, overload::Levels, telemetry::Shard, tls::CredentialStore};
use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    task::{AbortHandle, LocalSet},
};

/// Messages that may wait for a worker; also connections handed to it and not yet taken.
const QUEUE: usize = 4096;

/// A listening socket, bound and listening already.
#[derive(Debug)]
pub struct ListenSocket {
    /// The address as the listener's resource names it.
    pub address: SocketAddr,
    /// The socket.
    pub socket: std::net::TcpListener,
}

/// What workers begin with.
pub struct Settings {
    /// How many.
    pub workers: usize,
    /// The sockets from which connections are accepted; more can come later.
    pub sockets: Vec<ListenSocket>,
    /// The first configuration.
    pub root: Arc<Root>,
    /// The workload's certificates.
    pub credentials: CredentialStore,
    /// One share of the metrics a worker.
    pub shards: Vec<Shard>,
}

/// Why workers could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// There are not as many shards as workers.
    #[error("{shards} metric shards for {workers} workers; give each worker one")]
    Shards {
        /// Shards.
        shards: usize,
        /// Workers.
        workers: usize,
    },
    /// The system gave no thread, runtime or socket.
    #[error("worker {0}: {1}")]
    System(usize, #[source] io::Error),
}

/// A message to a worker.
#[derive(Debug)]
pub(super) enum Command {
    Root(Arc<Root>, oneshot::Sender<()>),
    Connection(std::net::TcpStream, SocketAddr, Open),
    Listen(Vec<ListenSocket>, oneshot::Sender<io::Result<()>>),
    Close(Vec<SocketAddr>, oneshot::Sender<()>),
    StopAccepting(oneshot::Sender<()>),
    Shed(Levels),
    Drain(Duration, oneshot::Sender<()>),
    Ask(bool, Duration, oneshot::Sender<()>),
    Resume(oneshot::Sender<()>),
    Stop,
}

/// The workers. Dropping it ends them, with what they serve.
#[derive(Debug)]
pub struct Workers {
    peers: Vec<Peer>,
    threads: Vec<thread::JoinHandle<()>>,
}

/// Starts the workers, which serve at once.
///
/// # Errors
/// When there are not as many shards as workers, or the system gives no threads.
pub fn spawn(settings: Settings) -> Result<Workers, SpawnError> {
    let Settings { workers, sockets, root, credentials, shards } = settings;
    let workers = workers.max(1);
    if shards.len() != workers {
        return Err(SpawnError::Shards { shards: shards.len(), workers });
    }
    let (peers, mut queues): (Vec<_>, Vec<_>) = (0..workers)
        .map(|_| {
            let (commands, queue) = mpsc::channel(QUEUE);
            (Peer { open: Arc::default(), apart: Arc::default(), commands }, Some(queue))
        })
        .unzip();
    let mut sockets = Some(sockets);
    let mut threads = Vec::new();
    for (index, shard) in shards.into_iter().enumerate() {
        let Some(queue) = queues[index].take() else { continue };
        let (root, credentials) = (root.clone(), credentials.clone());
        // The first one accepts for all.
        let first = (index == 0).then(|| (sockets.take().unwrap_or_default(), peers.clone()));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| SpawnError::System(index, error))?;
        let thread = thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                let worker = Worker::new(index, workers, root, shard, credentials);
                LocalSet::new().block_on(&runtime, run(worker, queue, first));
                // Tasks that block (name look-ups) must not hold up the end.
                runtime.shutdown_background();
            })
            .map_err(|error| SpawnError::System(index, error))?;
        threads.push(thread);
    }
    Ok(Workers { peers, threads })
}

async fn run(
    worker: std::rc::Rc<Worker>,
    mut queue: mpsc::Receiver<Command>,
    first: Option<(Vec<ListenSocket>, Vec<Peer>)>,
) {
    tokio::task::spawn_local(worker.shard.clone().flush_logs());
    tokio::task::spawn_local(worker.clone().sweep());
    let mut accepting: Vec<(SocketAddr, AbortHandle)> = Vec::new();
    let peers = match first {
        Some((sockets, peers)) => {
            if let Err(error) = listen(&worker, sockets, &peers, &mut accepting) {
                tracing::error!(%error, "a listening socket cannot be used");
            }
            peers
        }
        None => Vec::new(),
    };
    while let Some(command) = queue.recv().await {
        match command {
            Command::Root(root, taken) => {
                worker.take_up(root);
                let _ = taken.send(());
            }
            Command::Connection(tcp, bound, open) => {
                if let Ok(tcp) = TcpStream::from_std(tcp) {
                    accept::serve(&worker, tcp, bound, open);
                }
            }
            Command::Listen(sockets, done) => {
                let _ = done.send(listen(&worker, sockets, &peers, &mut accepting));
            }
            Command::Close(addresses, done) => {
                accepting.retain(|(address, task)| {
                    let stays = !addresses.contains(address);
                    if !stays {
                        task.abort();
                    }
                    stays
                });
                // As below.
                tokio::task::yield_now().await;
                let _ = done.send(());
            }
            Command::StopAccepting(done) => {
                for (_, task) in accepting.drain(..) {
                    task.abort();
                }
                // The sockets are closed when the aborted tasks have been dropped.
                tokio::task::yield_now().await;
                let _ = done.send(());
            }
            Command::Shed(levels) => worker.shed(levels),
            Command::Stop => break,
            Command::Ask(inbound_only, over, done) => {
                worker.ask(inbound_only, over);
                let _ = done.send(());
            }
            Command::Resume(done) => {
                worker.resume();
                let _ = done.send(());
            }
            Command::Drain(idle, done) => {
                worker.drain(idle);
                worker.shard.flush_logs_now();
                let _ = done.send(());
            }
        }
    }
    worker.shard.flush_logs_now();
}

fn listen(
    worker: &std::rc::Rc<Worker>,
    sockets: Vec<ListenSocket>,
    peers: &[Peer],
    accepting: &mut Vec<(SocketAddr, AbortHandle)>,
) -> io::Result<()> {
    for ListenSocket { address, socket } in sockets {
        socket.set_nonblocking(true)?;
        let listener = TcpListener::from_std(socket)?;
        let task = tokio::task::spawn_local(accept::accept(worker.clone(), listener, address, peers.to_vec()));
        accepting.push((address, task.abort_handle()));
    }
    Ok(())
}

impl Workers {
    /// Publishes a configuration; done when every worker has taken it up. Requests under way end on the one before.
    pub async fn publish(&self, root: Arc<Root>) {
        let taken = self.tell(|done| Command::Root(root.clone(), done)).await;
        for taken in taken {
            let _ = taken.await;
        }
    }

    /// Accepts from further sockets.
    ///
    /// # Errors
    /// When a socket cannot be used.
    pub async fn listen(&self, sockets: Vec<ListenSocket>) -> io::Result<()> {
        let Some(first) = self.peers.first() else { return Ok(()) };
        let (done, result) = oneshot::channel();
        let gone = |_| io::Error::other("the accepting worker has ended");
        first.commands.send(Command::Listen(sockets, done)).await.map_err(|_| gone(()))?;
        result.await.map_err(|_| gone(()))?
    }

    /// Closes the listening sockets of these addresses; connections accepted from them go on.
    pub async fn close(&self, addresses: Vec<SocketAddr>) {
        let Some(first) = self.peers.first() else { return };
        let (done, closed) = oneshot::channel();
        if first.commands.send(Command::Close(addresses, done)).await.is_ok() {
            let _ = closed.await;
        }
    }

    /// Stops accepting and closes this process's copies of the listening sockets.
    pub async fn stop_accepting(&self) {
        let Some(first) = self.peers.first() else { return };
        let (done, stopped) = oneshot::channel();
        if first.commands.send(Command::StopAccepting(done)).await.is_ok() {
            let _ = stopped.await;
        }
    }

    /// Ends connections: HTTP/1 responses say `connection: close`, idle connections close after a second; done when none is
    /// open or at the deadline. Accepting goes on until [`Self::stop_accepting`]. The number of connections still open.
    pub async fn drain(&self, deadline: Instant, idle: Duration) -> usize {
        /// Between two looks at the count.
        const LOOK: Duration = Duration::from_millis(20);
        self.ask_to_leave(idle).await;
        loop {
            let open = self.connections();
            if open == 0 || Instant::now() >= deadline {
                return open;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Begins what [`Self::drain`] does, and waits for nobody.
    pub async fn ask_to_leave(&self, idle: Duration) {
        for told in self.tell(|told| Command::Drain(idle, told)).await {
            let _ = told.await;
        }
    }

    /// Has connections of HTTP (all, or those that come from outside the pod) end with an answer, more and more of them while
    /// `over` goes by. Those without a request stay.
    pub async fn ask_to_close(&self, inbound_only: bool, over: Duration) {
        for told in self.tell(|told| Command::Ask(inbound_only, over, told)).await {
            let _ = told.await;
        }
    }

    /// Takes back [`Self::drain`]: connections that have not been told to end go on.
    pub async fn resume(&self) {
        for told in self.tell(Command::Resume).await {
            let _ = told.await;
        }
    }

    /// Open connections of clients, all workers together.
    pub fn connections(&self) -> usize {
        self.connections_by_worker().iter().sum()
    }

    /// Open connections of clients by worker.
    pub fn connections_by_worker(&self) -> Vec<usize> {
        self.peers.iter().map(|peer| peer.open.load(Ordering::Relaxed)).collect()
    }

    /// Says how much is to be refused from now on.
    pub async fn shed(&self, levels: Levels) {
        for peer in &self.peers {
            // A worker that has ended refuses everything.
            peer.commands.send(Command::Shed(levels)).await.ok();
        }
    }

    async fn tell<T>(&self, command: impl Fn(oneshot::Sender<T>) -> Command) -> Vec<oneshot::Receiver<T>> {
        let mut answers = Vec::with_capacity(self.peers.len());
        for peer in &self.peers {
            let (done, answer) = oneshot::channel();
            if peer.commands.send(command(done)).await.is_ok() {
                answers.push(answer);
            }
        }
        answers
    }

    /// Ends the workers with everything they serve, and waits for their threads.
    pub fn stop(mut self) {
        let threads = std::mem::take(&mut self.threads);
        drop(self);
        for thread in threads {
            let _ = thread.join();
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for peer in &self.peers {
            let _ = peer.commands.try_send(Command::Stop);
        }
    }
}
