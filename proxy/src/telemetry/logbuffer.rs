//! How log lines leave a worker: gathered into a batch, handed over by a bounded channel, written by the control thread.

use super::logsink::{LogSink, Outputs};
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

/// A batch is handed over when it has grown to this many bytes.
pub const BATCH_BYTES: usize = 16 * 1024;
/// Most bytes that a worker holds for one place while the writer is behind; further lines are dropped.
pub const MAX_PENDING_BYTES: usize = 64 * 1024;
/// Most batches on their way from one worker. With [`BATCH_BYTES`] and what is held for each place this bounds the memory of lines
/// to 576 KiB a worker and 64 KiB for each further place; where single lines are longer than a batch, to as many of them.
pub const MAX_BATCHES: usize = 32;
/// A line waits at most this long in the worker.
pub const FLUSH_DELAY: Duration = Duration::from_millis(100);

/// Lines for one place.
pub(super) type Batch = (Arc<LogSink>, Vec<u8>);

struct Pending {
    sink: Arc<LogSink>,
    bytes: Vec<u8>,
    lines: u64,
}

/// A worker's end.
pub(super) struct LogBuffer {
    /// One a place that was ever logged to; few, so that they are looked through.
    pending: RefCell<Vec<Pending>>,
    sender: mpsc::Sender<Batch>,
    filled: Notify,
}

impl LogBuffer {
    pub(super) fn new(sender: mpsc::Sender<Batch>) -> Self {
        Self { pending: RefCell::default(), sender, filled: Notify::new() }
    }

    /// Adds a line; returns how many lines were lost (this one, or those of a writer that is gone).
    pub(super) fn line(&self, sink: &Arc<LogSink>, write: impl FnOnce(&mut Vec<u8>)) -> u64 {
        let mut all = self.pending.borrow_mut();
        let at = all.iter().position(|pending| Arc::ptr_eq(&pending.sink, sink)).unwrap_or(all.len());
        if at == all.len() {
            all.push(Pending { sink: sink.clone(), bytes: Vec::new(), lines: 0 });
        }
        let pending = &mut all[at];
        if pending.bytes.len() >= MAX_PENDING_BYTES {
            return 1;
        }
        if pending.bytes.is_empty() {
            self.filled.notify_one();
        }
        write(&mut pending.bytes);
        pending.lines += 1;
        if pending.bytes.len() >= BATCH_BYTES { self.hand_over(pending) } else { 0 }
    }

    /// Hands the batches over if there is room; returns how many lines were lost because the writer is gone.
    pub(super) fn flush(&self) -> u64 {
        self.pending.borrow_mut().iter_mut().map(|pending| self.hand_over(pending)).sum()
    }

    fn hand_over(&self, pending: &mut Pending) -> u64 {
        if pending.bytes.is_empty() {
            return 0;
        }
        match self.sender.try_reserve() {
            Ok(permit) => {
                permit.send((pending.sink.clone(), std::mem::take(&mut pending.bytes)));
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

/// Writes batches until every worker is gone; `stdout` stands for standard output. Writes happen on a thread of their own: it may
/// be a pipe that nobody reads for a while, and neither the control thread nor its runtime's shutdown may wait for that.
pub(super) async fn write_batches<W>(mut batches: mpsc::Receiver<Batch>, stdout: W)
where
    W: std::io::Write + Send + 'static,
{
    let (done, finished) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("access-log".into()).spawn(move || {
        let mut outputs = Outputs::new(stdout);
        let mut failing = false;
        while let Some((sink, batch)) = batches.blocking_recv() {
            let written = outputs.write(&sink, &batch);
            // Said once: a full disk must not fill another one.
            if let Err(error) = &written
                && !failing
            {
                tracing::warn!(?sink, %error, "access log lines cannot be written, and are lost");
            }
            failing = written.is_err();
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
