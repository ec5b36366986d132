//! How log lines leave a worker: gathered into a batch, handed over by a bounded channel, written by the control thread.

use std::cell::RefCell;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

/// A batch is handed over when it has grown to this many bytes.
pub const BATCH_BYTES: usize = 16 * 1024;
/// Most bytes that a worker holds while the writer is behind; further lines are dropped.
pub const MAX_PENDING_BYTES: usize = 64 * 1024;
/// Most batches on their way from one worker; with [`MAX_PENDING_BYTES`] this bounds log memory to 576 KiB a worker,
/// or 1 MiB when single lines are long.
pub const MAX_BATCHES: usize = 32;
/// A line waits at most this long in the worker.
pub const FLUSH_DELAY: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    lines: u64,
}

/// A worker's end.
pub(super) struct LogBuffer {
    pending: RefCell<Pending>,
    sender: mpsc::Sender<Vec<u8>>,
    filled: Notify,
}

impl LogBuffer {
    pub(super) fn new(sender: mpsc::Sender<Vec<u8>>) -> Self {
        Self { pending: RefCell::default(), sender, filled: Notify::new() }
    }

    /// Adds a line; returns how many lines were lost (this one, or those of a writer that is gone).
    pub(super) fn line(&self, write: impl FnOnce(&mut Vec<u8>)) -> u64 {
        let full = {
            let mut pending = self.pending.borrow_mut();
            if pending.bytes.len() >= MAX_PENDING_BYTES {
                return 1;
            }
            if pending.bytes.is_empty() {
                self.filled.notify_one();
            }
            write(&mut pending.bytes);
            pending.lines += 1;
            pending.bytes.len() >= BATCH_BYTES
        };
        if full { self.flush() } else { 0 }
    }

    /// Hands the batch over if there is room; returns how many lines were lost because the writer is gone.
    pub(super) fn flush(&self) -> u64 {
        let mut pending = self.pending.borrow_mut();
        if pending.bytes.is_empty() {
            return 0;
        }
        match self.sender.try_reserve() {
            Ok(permit) => {
                permit.send(std::mem::take(&mut pending.bytes));
                pending.lines = 0;
                0
            }
            Err(mpsc::error::TrySendError::Full(())) => {
                // Kept, and tried again by the flush task.
                self.filled.notify_one();
                0
            }
            Err(mpsc::error::TrySendError::Closed(())) => {
                pending.bytes.clear();
                std::mem::take(&mut pending.lines)
            }
        }
    }

    /// Returns [`FLUSH_DELAY`] after a line came into an empty buffer.
    pub(super) async fn wait(&self) {
        self.filled.notified().await;
        tokio::time::sleep(FLUSH_DELAY).await;
    }
}

/// Writes batches to `out` until every worker is gone. Writes happen on a thread of their own: standard output may be a
/// pipe that nobody reads for a while, and neither the control thread nor its runtime's shutdown may wait for that.
pub(super) async fn write_batches<W>(mut batches: mpsc::Receiver<Vec<u8>>, mut out: W)
where
    W: std::io::Write + Send + 'static,
{
    let (done, finished) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("access-log".into()).spawn(move || {
        while let Some(batch) = batches.blocking_recv() {
            // A closed standard output must not end the proxy, and there is nobody left to tell.
            let _ = out.write_all(&batch).and_then(|()| out.flush());
        }
        let _ = done.send(());
    });
    match thread {
        Ok(_) => {
            let _ = finished.await;
        }
        Err(error) => tracing::error!(%error, "access log: no thread to write it; lines are dropped and counted"),
    }
}
