//! The control thread: certificate → discovery → configuration → workers, and the life of the process around them.
//!
//! A process is first a standby or at once the active slot (see [`crate::slots`]); what it does as the active one is in
//! [`serving`] and [`life`]. When it hands over because another slot should serve ([`succession`]), it begins anew as a standby: the
//! process executes its own program again, so that all that it held is given back. A process without slots and without a pod is in [`standalone`].

mod code;
mod engine;
pub mod life;
pub mod plane;
pub mod podinfo;
pub mod report;
pub mod serving;
pub mod sockets;
mod sources;
pub mod standalone;
pub mod succession;
pub(crate) mod traffic;
pub mod upstreams;

use crate::slots::desk::{self, Drain, Phase};
use crate::slots::failures::Failures;
use crate::slots::lock::try_lock;
use crate::slots::sockets::Sockets;
use crate::slots::standby::{Event, Standby};
use crate::slots::{Folder, SlotError};
use crate::xds::bootstrap::AdminAddress;
use serving::{Relieved, Serving, Settings};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// How often an active slot that is not reachable yet is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// Why the process ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The slots.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// A port of the admin servers.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The workers.
    #[error("the workers could not be started: {0}")]
    Workers(String),
    /// The admin server's address.
    #[error("the admin server cannot listen on {address}: {source}")]
    Admin {
        /// Which.
        address: AdminAddress,
        /// Why.
        source: std::io::Error,
    },
    /// The file for the admin server's address.
    #[error("cannot write {}: {}", .0.display(), .1)]
    AdminPath(PathBuf, #[source] std::io::Error),
    /// A resource of the bootstrap.
    #[error("{0}")]
    Refused(String),
    /// The engine.
    #[error("the engine cannot serve any more: {0}")]
    Engine(Arc<str>),
}

/// What a process does after it has served or stood by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It leaves.
    Leave,
    /// It begins anew: the other slot serves, and this one is to stand by for it.
    Again,
}

/// A wish to leave: the answer is given when it is fulfilled.
pub type DrainRequest = oneshot::Sender<()>;

/// Runs the proxy of one slot until `shutdown`.
///
/// # Errors
/// When a socket or port cannot be had, or the other slot does not let go.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> Result<End, RunError> {
    let folder = settings.folder.clone();
    let (phase, phases) = watch::channel(Phase::Starting);
    // More than one wish at a time adds nothing.
    let (drains, mut wishes) = mpsc::channel::<DrainRequest>(1);
    let drain: Drain = Arc::new(move || {
        let drains = drains.clone();
        Box::pin(async move {
            let (answer, fulfilled) = oneshot::channel();
            if drains.send(answer).await.is_ok() {
                fulfilled.await.ok();
            }
        })
    });
    let desk = desk::serve(&folder, settings.slot, phases, drain)?;
    let desk = tokio::spawn(desk);
    let result = live(settings, &folder, &phase, &mut wishes, &shutdown).await;
    desk.abort();
    result
}

async fn live(
    settings: Settings,
    folder: &Folder,
    phase: &watch::Sender<Phase>,
    wishes: &mut mpsc::Receiver<DrainRequest>,
    shutdown: &CancellationToken,
) -> Result<End, RunError> {
    let mut held = Sockets::default();
    loop {
        if let Some(lock) = try_lock(folder)? {
            phase.send_replace(Phase::Starting);
            tracing::info!(slot = settings.slot, inherited = held.len(), "this slot is active");
            return Serving::new(settings, held, phase.clone()).run(Relieved::Nobody(lock), wishes, shutdown).await;
        }
        match Standby::connect(folder) {
            Ok((mut standby, sockets)) => {
                tracing::info!(slot = settings.slot, sockets = sockets.len(), "the other slot serves; standing by");
                held = sockets;
                phase.send_replace(Phase::Standby);
                code::unmap_unused();
                tokio::select! {
                    () = shutdown.cancelled() => return Ok(End::Leave),
                    event = standby.event() => match event {
                        Event::Lost => {
                            tracing::warn!("the other slot is gone");
                            let (other, now) = (succession::other(settings.slot), SystemTime::now());
                            let reason = format!("slot {other} ended while it served");
                            if let Err(error) = Failures::read(folder, other, now).add(folder, other, &reason, now) {
                                tracing::warn!(%error, "that is not remembered");
                            }
                        }
                        Event::TakeOver => {
                            phase.send_replace(Phase::Starting);
                            tracing::info!("taking over from the other slot");
                            return Serving::new(settings, held, phase.clone())
                                .run(Relieved::Other(standby), wishes, shutdown)
                                .await;
                        }
                    },
                    Some(wish) = wishes.recv() => {
                        phase.send_replace(Phase::Leaving);
                        if let Err(error) = standby.leaving().await {
                            tracing::debug!(%error, "could not tell the other slot");
                        }
                        wish.send(()).ok();
                        shutdown.cancelled().await;
                        return Ok(End::Leave);
                    }
                }
            }
            Err(error) => {
                tracing::debug!(%error, "no active slot to stand by");
                tokio::select! {
                    () = shutdown.cancelled() => return Ok(End::Leave),
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
        }
    }
}
