//! Where log lines go: standard output, standard error, or a file.

use std::collections::HashMap;
use std::io::Write as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Files that a process may ever have logged to; what names more is refused.
pub const MAX_SINKS: usize = 64;

/// Where log lines go. Equal ones are the same object.
#[derive(Debug, PartialEq, Eq)]
pub enum LogSink {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, to whose end is written.
    File(PathBuf),
}

/// Why there are no log lines to be written at a place.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// It is one too many.
    #[error("would be more than {MAX_SINKS} files to which this process has logged")]
    TooMany,
    /// The system does not let us.
    #[error("cannot be opened: {0}")]
    Open(#[source] std::io::Error),
}

fn open(path: &Path) -> std::io::Result<std::fs::File> {
    std::fs::OpenOptions::new().create(true).append(true).open(path)
}

/// Every place to which this process has logged.
#[derive(Debug, Clone, Default)]
pub struct LogSinks(Arc<Mutex<HashMap<PathBuf, Arc<LogSink>>>>);

impl LogSinks {
    /// The place at a path; `/dev/stdout` and `/dev/stderr` are what this process was given. A file is opened once, so that whoever
    /// names one that cannot be learns it.
    ///
    /// # Errors
    /// When it cannot be opened, or would be one more than [`MAX_SINKS`].
    pub fn at(&self, path: &str) -> Result<Arc<LogSink>, SinkError> {
        let mut sinks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sink) = sinks.get(std::path::Path::new(path)) {
            return Ok(sink.clone());
        }
        if sinks.len() >= MAX_SINKS {
            return Err(SinkError::TooMany);
        }
        let sink = Arc::new(match path {
            "/dev/stdout" => LogSink::Stdout,
            "/dev/stderr" => LogSink::Stderr,
            path => {
                let path = PathBuf::from(path);
                // To open a pipe is to wait for who reads it.
                if !path.metadata().is_ok_and(|about| about.file_type().is_fifo()) {
                    open(&path).map_err(SinkError::Open)?;
                }
                LogSink::File(path)
            }
        });
        sinks.insert(path.into(), sink.clone());
        Ok(sink)
    }
}

/// Counts how often files were to be opened anew, since they were moved away.
static REOPEN: AtomicU64 = AtomicU64::new(0);

/// Has every file opened anew before the next line is written to it.
pub fn reopen() {
    REOPEN.fetch_add(1, Ordering::Relaxed);
}

/// The writer's end of every sink; lives on the thread that writes.
pub(crate) struct Outputs<W> {
    stdout: W,
    files: HashMap<PathBuf, std::fs::File>,
    opened: u64,
}

impl<W: std::io::Write> Outputs<W> {
    /// With what stands for standard output.
    pub(crate) fn new(stdout: W) -> Self {
        Self { stdout, files: HashMap::new(), opened: REOPEN.load(Ordering::Relaxed) }
    }

    /// Writes a batch. What cannot be written is lost: it must not end the proxy, and there is nobody to wait for.
    pub(crate) fn write(&mut self, sink: &LogSink, batch: &[u8]) -> std::io::Result<()> {
        match sink {
            LogSink::Stdout => self.stdout.write_all(batch).and_then(|()| self.stdout.flush()),
            LogSink::Stderr => std::io::stderr().write_all(batch),
            LogSink::File(path) => {
                let wanted = REOPEN.load(Ordering::Relaxed);
                if wanted != self.opened {
                    self.files.clear();
                    self.opened = wanted;
                }
                if !self.files.contains_key(path) {
                    self.files.insert(path.clone(), open(path)?);
                }
                self.files.get_mut(path).map_or(Ok(()), |file| file.write_all(batch))
            }
        }
    }
}
