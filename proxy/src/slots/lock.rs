//! Which slot is active: whoever holds the lock. The kernel lets go of it when its holder dies.

use super::{Folder, SlotError};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::time::Duration;
use tokio::time::Instant;

/// How often a lock that another slot holds is tried again.
const RETRY: Duration = Duration::from_millis(10);

/// The lock; dropped, it is free.
#[derive(Debug)]
pub struct Lock {
    _held: Flock<File>,
}

/// Takes the lock if it is free.
///
/// # Errors
/// When the file cannot be made or locked.
pub fn try_lock(folder: &Folder) -> Result<Option<Lock>, SlotError> {
    let path = folder.lock();
    let failed = |source| SlotError::Path { doing: "locking", path: path.clone(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(held) => Ok(Some(Lock { _held: held })),
        Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(failed(std::io::Error::from(errno))),
    }
}

/// Waits for the lock until the limit; `None` when it is still held then.
///
/// # Errors
/// As [`try_lock`].
pub async fn lock_within(folder: &Folder, limit: Duration) -> Result<Option<Lock>, SlotError> {
    let end = Instant::now() + limit;
    loop {
        if let Some(lock) = try_lock(folder)? {
            return Ok(Some(lock));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        tokio::time::sleep(RETRY).await;
    }
}
