//! The active slot's end: hands copies of the sockets to whoever stands by, and hands over when it leaves.

use super::lock::Lock;
use super::sockets::Sockets;
use super::{Folder, LEAVING, SERVING, SlotError, TAKEOVER, listen, read_line};
use std::time::Duration;
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

/// How the attempt to hand over ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandOver {
    /// The other slot serves; this one holds neither lock nor sockets for it any more.
    Done,
    /// There is no standby, it is leaving itself, or it did not serve in time: this slot goes on serving.
    Refused,
}

struct Request {
    limit: Duration,
    answer: oneshot::Sender<HandOver>,
}

/// The active slot's handle. Dropped, the slot is no longer active: the lock is free and the standby takes over.
#[derive(Debug)]
pub struct Active {
    requests: mpsc::Sender<Request>,
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
        let task = tokio::spawn(Holder { listener, sockets, standby: None, _lock: lock }.run(receiver));
        Ok(Self { requests, task })
    }

    /// Asks the standby to take over and waits until it serves.
    pub async fn hand_over(&self, limit: Duration) -> HandOver {
        let (answer, received) = oneshot::channel();
        if self.requests.send(Request { limit, answer }).await.is_err() {
            return HandOver::Done;
        }
        received.await.unwrap_or(HandOver::Refused)
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
                    if result == HandOver::Done {
                        // Lock, listener and connection go first, so that the answer means that they are gone.
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
            }
            Err(error) => tracing::warn!(%error, "could not give the standby the sockets"),
        }
    }

    fn hear(&mut self, line: Option<String>) {
        match (line.as_deref(), &mut self.standby) {
            (Some(LEAVING), Some(peer)) => peer.leaving = true,
            (Some(line), _) => tracing::debug!(%line, "the standby says something unknown"),
            (None, _) => {
                tracing::info!("the standby is gone");
                self.standby = None;
            }
        }
    }

    async fn hand_over(&mut self, limit: Duration) -> HandOver {
        let Some(peer) = self.standby.as_mut().filter(|peer| !peer.leaving) else { return HandOver::Refused };
        if peer.stream.get_mut().write_all(format!("{TAKEOVER}\n").as_bytes()).await.is_err() {
            self.standby = None;
            return HandOver::Refused;
        }
        let end = tokio::time::Instant::now() + limit;
        loop {
            match tokio::time::timeout_at(end, said(&mut self.standby)).await {
                Ok(Some(line)) if line == SERVING => return HandOver::Done,
                Ok(Some(_)) => {}
                Ok(None) => {
                    self.standby = None;
                    return HandOver::Refused;
                }
                Err(_) => {
                    tracing::warn!(?limit, "the other slot did not serve in time; serving on");
                    // It sees the end of the connection and begins anew.
                    self.standby = None;
                    return HandOver::Refused;
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
