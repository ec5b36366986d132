//! The active slot's end: hands copies of the sockets to whoever stands by, and hands over when it leaves.

use super::lock::Lock;
use super::sockets::Sockets;
use super::{FAILED, Folder, LEAVING, SERVING, SlotError, TAKEOVER, WARMING, listen, read_line};
use std::time::{Duration, Instant};
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};

/// How the attempt to hand over ended.
#[derive(Debug)]
pub enum HandOver {
    /// The other slot serves; this one holds neither lock nor sockets for it any more.
    Done(Successor),
    /// This slot goes on serving.
    Refused(Refusal),
}

impl HandOver {
    /// Why it was refused; `None` when it was done.
    pub fn refusal(self) -> Option<Refusal> {
        match self {
            Self::Done(_) => None,
            Self::Refused(refusal) => Some(refusal),
        }
    }
}

/// The connection of the standby that has taken over. It lasts until that one is the active slot, or has ended.
#[derive(Debug)]
pub struct Successor(BufReader<UnixStream>);

impl Successor {
    /// Resolves when it has the lock, or is gone.
    pub async fn settled(&mut self) {
        while let Ok(Some(_)) = read_line(&mut self.0).await {}
    }
}

/// Why a standby does not take over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is none.
    #[error("nobody stands by")]
    Nobody,
    /// It leaves itself.
    #[error("the standby is leaving")]
    Leaving,
    /// It did not serve in time; its last words of what it waited for.
    #[error("the standby did not serve within {limit:?}: {waits_for}")]
    Late {
        /// How long it had.
        limit: Duration,
        /// What it waited for.
        waits_for: String,
    },
    /// Its process or its connection ended; its last words.
    #[error("the standby ended while it took over: {0}")]
    Ended(String),
}

struct Request {
    limit: Duration,
    answer: oneshot::Sender<HandOver>,
}

/// The active slot's handle. Dropped, the slot is no longer active: the lock is free and the standby takes over.
#[derive(Debug)]
pub struct Active {
    requests: mpsc::Sender<Request>,
    standby: watch::Receiver<Option<Instant>>,
    task: tokio::task::JoinHandle<()>,
}

impl Active {
    /// Begins to listen for a standby. `sockets` are what it is given.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn start(folder: &Folder, lock: Lock, sockets: Sockets) -> Result<Self, SlotError> {
        let listener = listen(&folder.active())?;
        // One request at a time is made.
        let (requests, receiver) = mpsc::channel(1);
        let (since, standby) = watch::channel(None);
        let holder = Holder { listener, sockets, standby: None, since, _lock: lock };
        Ok(Self { requests, standby, task: tokio::spawn(holder.run(receiver)) })
    }

    /// Since when the standby of now stands by; `None` while there is none, or it is leaving.
    pub fn standby(&self) -> watch::Receiver<Option<Instant>> {
        self.standby.clone()
    }

    /// Asks the standby to take over and waits until it serves.
    pub async fn hand_over(&self, limit: Duration) -> HandOver {
        let (answer, received) = oneshot::channel();
        if self.requests.send(Request { limit, answer }).await.is_err() {
            return HandOver::Refused(Refusal::Nobody);
        }
        received.await.unwrap_or(HandOver::Refused(Refusal::Nobody))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Peer {
    stream: BufReader<UnixStream>,
    leaving: bool,
}

struct Holder {
    listener: UnixListener,
    sockets: Sockets,
    standby: Option<Peer>,
    since: watch::Sender<Option<Instant>>,
    _lock: Lock,
}

impl Holder {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => self.welcome(stream),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept the standby");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                line = said(&mut self.standby) => self.hear(line),
                request = requests.recv() => {
                    let Some(Request { limit, answer }) = request else { return };
                    let result = self.hand_over(limit).await;
                    if matches!(result, HandOver::Done(_)) {
                        // Lock and listener go first, so that the answer means that they are gone.
                        drop(self);
                        answer.send(result).ok();
                        return;
                    }
                    answer.send(result).ok();
                }
            }
        }
    }

    /// The newest standby is the one that counts: an older connection is of a process that died.
    fn welcome(&mut self, stream: UnixStream) {
        let sent = stream.into_std().map_err(SlotError::from).and_then(|stream| {
            self.sockets.send(&stream)?;
            stream.set_nonblocking(true)?;
            Ok(UnixStream::from_std(stream)?)
        });
        match sent {
            Ok(stream) => {
                tracing::info!("the other slot stands by");
                self.standby = Some(Peer { stream: BufReader::new(stream), leaving: false });
                self.since.send_replace(Some(Instant::now()));
            }
            Err(error) => tracing::warn!(%error, "could not give the standby the sockets"),
        }
    }

    fn hear(&mut self, line: Option<String>) {
        match (line.as_deref(), &mut self.standby) {
            (Some(LEAVING), Some(peer)) => {
                peer.leaving = true;
                self.since.send_replace(None);
            }
            (Some(line), _) => tracing::debug!(%line, "the standby says something unknown"),
            (None, _) => {
                tracing::info!("the standby is gone");
                self.part();
            }
        }
    }

    /// Closes the connection of the standby. If it is still there, it sees that and begins anew.
    fn part(&mut self) {
        self.standby = None;
        self.since.send_replace(None);
    }

    async fn hand_over(&mut self, limit: Duration) -> HandOver {
        let refused = HandOver::Refused;
        let peer = match self.standby.as_mut() {
            None => return refused(Refusal::Nobody),
            Some(peer) if peer.leaving => return refused(Refusal::Leaving),
            Some(peer) => peer,
        };
        let mut words = "it said nothing".to_owned();
        if peer.stream.get_mut().write_all(format!("{TAKEOVER}\n").as_bytes()).await.is_err() {
            self.part();
            return refused(Refusal::Ended(words));
        }
        let end = tokio::time::Instant::now() + limit;
        loop {
            let Ok(line) = tokio::time::timeout_at(end, said(&mut self.standby)).await else {
                self.part();
                return refused(Refusal::Late { limit, waits_for: words });
            };
            match line.as_deref().map(|line| line.split_once(' ').unwrap_or((line, ""))) {
                Some((SERVING, _)) => match self.standby.take() {
                    Some(peer) => return HandOver::Done(Successor(peer.stream)),
                    None => return refused(Refusal::Ended(words)),
                },
                Some((LEAVING, _)) => {
                    self.hear(line);
                    return refused(Refusal::Leaving);
                }
                Some((WARMING | FAILED, why)) => words = why.to_owned(),
                Some(_) => {}
                None => {
                    self.part();
                    return refused(Refusal::Ended(words));
                }
            }
        }
    }
}

/// The standby's next line; never, while there is none. `None` when it is gone.
async fn said(standby: &mut Option<Peer>) -> Option<String> {
    match standby {
        Some(peer) => read_line(&mut peer.stream).await.ok().flatten(),
        None => std::future::pending().await,
    }
}
