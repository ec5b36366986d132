//! Where the commands `wait` and `drain`, run by the kubelet in the same container, reach the proxy.

use super::{Folder, SlotError, listen, read_line};
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

/// Commands served at a time.
const MAX_COMMANDS: usize = 8;
/// How long a command may take to say what it wants.
const READ_LIMIT: Duration = Duration::from_secs(2);
/// How often a process that is not there yet is looked for.
const RETRY: Duration = Duration::from_millis(50);
/// How often another slot is asked what it does.
const LOOK: Duration = Duration::from_millis(200);

/// What a slot does, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It is active and has no configuration in force yet.
    Starting,
    /// The other slot serves; this one stands by with its sockets.
    Standby,
    /// It serves.
    Serving,
    /// It was asked to leave.
    Leaving,
}

impl Phase {
    fn word(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Standby => "standby",
            Phase::Serving => "serving",
            Phase::Leaving => "leaving",
        }
    }
}

/// What is done when a command asks to drain; it resolves when that is done.
pub type Drain = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Serves commands for as long as it is polled.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(
    folder: &Folder,
    slot: u8,
    phase: watch::Receiver<Phase>,
    drain: Drain,
) -> Result<impl Future<Output = ()> + use<>, SlotError> {
    let listener = listen(&folder.desk(slot))?;
    Ok(async move {
        let places = Arc::new(Semaphore::new(MAX_COMMANDS));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a command");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            let (phase, drain) = (phase.clone(), drain.clone());
            tokio::spawn(async move {
                if let Err(error) = answer(stream, phase, drain).await {
                    tracing::debug!(%error, "a command went away");
                }
                drop(place);
            });
        }
    })
}

async fn answer(stream: UnixStream, phase: watch::Receiver<Phase>, drain: Drain) -> Result<(), SlotError> {
    let mut stream = BufReader::new(stream);
    let line = tokio::time::timeout(READ_LIMIT, read_line(&mut stream)).await;
    let word = match line {
        Ok(Ok(Some(line))) if line == "STATUS" => phase.borrow().word(),
        Ok(Ok(Some(line))) if line == "DRAIN" => {
            drain().await;
            "done"
        }
        _ => "what? say STATUS or DRAIN",
    };
    Ok(stream.get_mut().write_all(format!("{word}\n").as_bytes()).await?)
}

/// A command got no answer in time.
#[derive(Debug, thiserror::Error)]
#[error("slot {slot} at {} did not get there within {limit:?}; it last said: {last}", path.display())]
pub struct NoAnswer {
    slot: u8,
    path: PathBuf,
    limit: Duration,
    last: String,
}

/// Waits until a slot serves or stands by.
///
/// # Errors
/// When the limit is over.
pub async fn wait(folder: &Folder, slot: u8, limit: Duration) -> Result<String, NoAnswer> {
    let end = Instant::now() + limit;
    let mut last;
    loop {
        last = match ask(folder, slot, "STATUS", end).await {
            Ok(word) if word == "serving" || word == "standby" => return Ok(word),
            Ok(word) => word,
            Err(error) => error.to_string(),
        };
        if Instant::now() + RETRY >= end {
            return Err(NoAnswer { slot, path: folder.desk(slot), limit, last });
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Asks a slot to leave and waits until it has handed over and its connections have ended, or there is nobody to hand
/// over to. A slot without a process has nothing to drain.
///
/// # Errors
/// When the limit is over.
pub async fn drain(folder: &Folder, slot: u8, limit: Duration) -> Result<(), NoAnswer> {
    match ask(folder, slot, "DRAIN", Instant::now() + limit).await {
        Ok(_) => Ok(()),
        Err(SlotError::Path { .. }) => Ok(()),
        Err(error) => Err(NoAnswer { slot, path: folder.desk(slot), limit, last: error.to_string() }),
    }
}

/// Resolves when a slot says that it was asked to leave; never, when nobody asks it.
pub async fn leaves(folder: &Folder, slot: u8) {
    loop {
        let asked = ask(folder, slot, "STATUS", Instant::now() + READ_LIMIT).await;
        if asked.is_ok_and(|word| word == Phase::Leaving.word()) {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn ask(folder: &Folder, slot: u8, word: &str, end: Instant) -> Result<String, SlotError> {
    let path = folder.desk(slot);
    let asking = async {
        let stream = UnixStream::connect(&path).await;
        let stream = stream.map_err(|source| SlotError::Path { doing: "connecting to", path: path.clone(), source })?;
        let mut stream = BufReader::new(stream);
        stream.get_mut().write_all(format!("{word}\n").as_bytes()).await?;
        match read_line(&mut stream).await? {
            Some(line) => Ok(line),
            None => Err(SlotError::Protocol("it closed the connection without an answer".to_owned())),
        }
    };
    tokio::time::timeout_at(end, asking)
        .await
        .unwrap_or_else(|_| Err(SlotError::Protocol("no answer in time".to_owned())))
}
