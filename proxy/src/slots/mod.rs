//! Two slots: two containers of the pod hold a proxy each, one serves, the other stands by in a few MiB.
//!
//! The one that serves is *active*: it holds a lock on a file, and listens on a Unix socket in the same memory volume.
//! The *standby* connects to that socket and gets copies of all listening sockets at once. When the active one crashes,
//! nothing in the kernel's queues is lost: the standby sees the connection end, takes the lock, and serves with the
//! sockets it holds. When the active one is asked to leave, it says `TAKEOVER`; the standby configures itself, serves,
//! and says `SERVING`; only then does the active one stop accepting, and ends its open connections in peace.
//!
//! - [`lock`]: who is active.
//! - [`sockets`]: the listening sockets, and how they travel.
//! - [`standby`] and [`active`]: the two ends of the connection between the slots.
//! - [`failures`]: how often a slot did not serve, or not for long, when it should.
//! - [`desk`]: where a command in the same container asks (`wait`, `drain`).
//!
//! The pod's annotation `mesh.leno.dev/serve-slot` says which slot should be the active one; the active one follows it by
//! handing over, and is a standby afterwards (see [`crate::control::succession`]).
//!
//! The two may be of different versions. What they say to each other therefore changes only by additions, and every
//! line is bounded.

pub mod active;
pub mod desk;
pub mod failures;
pub mod lock;
pub mod sockets;
pub mod standby;

use std::path::{Path, PathBuf};

/// Longest line of the protocol in bytes.
pub const MAX_LINE_BYTES: usize = 4096;

/// Said by the active one: take over now.
pub(crate) const TAKEOVER: &str = "TAKEOVER";
/// Said by the standby: I serve.
pub(crate) const SERVING: &str = "SERVING";
/// Said by the standby: do not hand over to me, I am leaving as well.
pub(crate) const LEAVING: &str = "LEAVING";
/// Said by the standby while it takes over, with what it waits for: `WARMING <words>`.
pub(crate) const WARMING: &str = "WARMING";
/// Said by the standby that cannot take over, with the reason: `FAILED <words>`.
pub(crate) const FAILED: &str = "FAILED";

/// Something between the slots failed.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// A file or socket in the shared folder.
    #[error("{doing} {}: {source}; is the folder a writable volume that both slots mount?", path.display())]
    Path {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A port that another process has.
    #[error("cannot listen on {address}: {source}; is another process there?")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The other side said something that is not understood.
    #[error("between the slots: {0}")]
    Protocol(String),
    /// The connection between the slots.
    #[error("between the slots: {0}")]
    Io(#[from] std::io::Error),
}

/// The files in the folder that the slots share.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    /// That folder, normally `/run/leno`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The lock of the active slot.
    pub fn lock(&self) -> PathBuf {
        self.0.join("active.lock")
    }

    /// Where the active slot listens for the standby.
    pub fn active(&self) -> PathBuf {
        self.0.join("active.sock")
    }

    /// What is remembered of a slot that failed to serve.
    pub fn failures(&self, slot: u8) -> PathBuf {
        self.0.join(format!("slot-{slot}.failures"))
    }

    /// A further file of that name.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Where the process of a slot listens for commands.
    pub fn desk(&self, slot: u8) -> PathBuf {
        self.0.join(format!("slot-{slot}.sock"))
    }
}

/// Listens at a path, in place of whatever is there: the new socket is moved over the old one, so that at no moment
/// nobody listens.
pub(crate) fn listen(path: &Path) -> Result<tokio::net::UnixListener, SlotError> {
    let failed = |doing, path: &Path, source| SlotError::Path { doing, path: path.to_owned(), source };
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed("removing", &fresh, error)),
        _ => {}
    }
    let listener = tokio::net::UnixListener::bind(&fresh).map_err(|error| failed("listening on", &fresh, error))?;
    std::fs::rename(&fresh, path).map_err(|error| failed("listening on", path, error))?;
    Ok(listener)
}

/// Reads a line, bounded; `None` at the end of the stream.
async fn read_line(stream: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> Result<Option<String>, SlotError> {
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _};
    let mut line = String::new();
    let limit = u64::try_from(MAX_LINE_BYTES).unwrap_or(u64::MAX);
    if stream.take(limit).read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    match line.strip_suffix('\n') {
        Some(line) => Ok(Some(line.to_owned())),
        None if line.len() < MAX_LINE_BYTES => Ok(None),
        None => Err(SlotError::Protocol(format!("a line of more than {MAX_LINE_BYTES} bytes"))),
    }
}
