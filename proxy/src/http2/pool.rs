//! The HTTP/2 connections of one worker to one endpoint: few, shared, made one at a time.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Connection, Up};

/// Connections to one endpoint. The least that serve: another one is made only when all are full.
#[derive(Debug, Default)]
pub struct Pool {
    connections: RefCell<Vec<Connection>>,
    connecting: Cell<bool>,
    failures: Cell<u64>,
    /// Connections that had begun as many streams as they may, since somebody asked.
    worn_out: Cell<u64>,
    changed: Notify,
    retired: Cell<bool>,
}

/// Tells those who wait that the attempt is over, however it ended (also when its request was given up).
struct Attempt<'a>(&'a Pool, bool);

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.1 {
            self.0.connecting.set(false);
        }
        self.0.changed.notify_waiters();
    }
}

/// Connections that a look at them has closed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Swept {
    /// Without a stream or a request for too long.
    pub idle: u64,
    /// As old as they may become.
    pub old: u64,
}

impl std::ops::AddAssign for Swept {
    fn add_assign(&mut self, more: Self) {
        self.idle += more.idle;
        self.old += more.old;
    }
}

impl Pool {
    /// A stream on a connection that has room. Connections that are of no more use are forgotten on the way, as are those
    /// that have begun `max_requests` (0 is no limit); their open streams end in peace.
    pub fn take(&self, max_requests: u32) -> Option<Up> {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|connection| {
            let worn_out = max_requests > 0 && connection.served() >= u64::from(max_requests);
            if worn_out && !connection.is_draining() {
                self.worn_out.set(self.worn_out.get() + 1);
            }
            if worn_out || connection.is_too_old() {
                connection.drain();
            }
            !connection.is_closed()
        });
        connections.iter().find(|connection| connection.can_take()).map(Connection::open)
    }

    /// Connections that had begun as many streams as they may, since the last time.
    pub fn take_worn_out(&self) -> u64 {
        self.worn_out.take()
    }

    /// A stream on a connection that has room, or on a new one that `connect` makes. While one is being made, others wait
    /// for it instead of making their own; when it fails, they do not wait a second time but try by themselves.
    ///
    /// # Errors
    /// What `connect` says.
    pub async fn acquire<E>(
        &self,
        max_requests: u32,
        connect: impl AsyncFnOnce() -> Result<Connection, E>,
    ) -> Result<Up, E> {
        let failures = self.failures.get();
        loop {
            // Registered before the look, so that no change is missed.
            let changed = self.changed.notified();
            if let Some(up) = self.take(max_requests) {
                return Ok(up);
            }
            if !self.connecting.get() || self.failures.get() != failures {
                break;
            }
            changed.await;
        }
        let first = !self.connecting.replace(true);
        let attempt = Attempt(self, first);
        match connect().await {
            Ok(connection) => {
                let up = connection.open();
                if !self.retired.get() {
                    self.connections.borrow_mut().push(connection);
                }
                drop(attempt);
                Ok(up)
            }
            Err(error) => {
                self.failures.set(self.failures.get() + 1);
                Err(error)
            }
        }
    }

    /// Closes connections on which no stream has been open for `timeout` (zero is no limit).
    pub fn sweep(&self, now: Instant, timeout: Duration) -> Swept {
        let mut swept = Swept::default();
        self.connections.borrow_mut().retain(|connection| {
            let idle = connection.idle_since().is_some_and(|since| now.duration_since(since) >= timeout);
            if connection.is_closed() {
                return false;
            }
            let (old, idle) = (connection.is_too_old(), idle && !timeout.is_zero());
            swept.old += u64::from(old);
            swept.idle += u64::from(idle && !old);
            !old && !idle
        });
        swept
    }

    /// Closes connections without a stream; whether there was one, or one that was closed already.
    pub fn close_idle(&self) -> bool {
        let before = self.len();
        self.connections.borrow_mut().retain(|connection| {
            !(connection.is_closed() || connection.is_too_old() || connection.idle_since().is_some())
        });
        self.len() < before
    }

    /// The connections that there are take no more streams.
    pub fn drain(&self) {
        for connection in self.connections.borrow_mut().drain(..) {
            connection.drain();
        }
    }

    /// The endpoint is gone: idle connections close now, others with their last stream.
    pub fn retire(&self) {
        self.retired.set(true);
        self.connections.borrow_mut().clear();
    }

    /// Whether a connection can take one more stream.
    pub fn has_room(&self) -> bool {
        self.connections.borrow().iter().any(Connection::can_take)
    }

    /// Connections that are kept.
    pub fn len(&self) -> usize {
        self.connections.borrow().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.connections.borrow().is_empty()
    }
}
