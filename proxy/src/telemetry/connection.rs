//! A client's connection among those that its listener and its connection manager count, for as long as it lives.

use super::stats::{HttpStats, ListenerHttpStats};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

/// How a connection of a client ends.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClientEnd {
    /// By this side.
    pub local: bool,
    /// A request was under way.
    pub active: bool,
}

/// Counts a connection among those of its listener and its manager for as long as it lives.
#[derive(Debug)]
pub struct CountedConnection {
    /// How it would end now.
    pub end: Cell<ClientEnd>,
    http: Arc<HttpStats>,
    of_listener: Arc<ListenerHttpStats>,
    /// Whether it speaks HTTP/2, once that is known.
    http2: Option<bool>,
    secure: bool,
    begun: Instant,
}

impl CountedConnection {
    /// Begins to count.
    pub fn new(http: Arc<HttpStats>, of_listener: Arc<ListenerHttpStats>, secure: bool) -> Self {
        http.cx_total.add(1);
        http.cx_active.up();
        if secure {
            http.cx_ssl_total.add(1);
            http.cx_ssl_active.up();
        }
        Self { end: Cell::default(), http, of_listener, http2: None, secure, begun: Instant::now() }
    }

    /// It ends by this side, unless its client has left in the middle of a request.
    pub fn ends_here(&self) {
        let end = self.end.get();
        self.end.set(ClientEnd { local: !end.active, ..end });
    }

    /// Which version it speaks is known now.
    pub fn speaks(&mut self, http2: bool) {
        let (total, active) = match http2 {
            true => (&self.http.cx_http2_total, &self.http.cx_http2_active),
            false => (&self.http.cx_http1_total, &self.http.cx_http1_active),
        };
        total.add(1);
        active.up();
        self.http2 = Some(http2);
    }

    /// The manager's numbers of this listener.
    pub fn of_listener(&self) -> &ListenerHttpStats {
        &self.of_listener
    }

    /// An interim answer of the proxy itself.
    pub fn count_continue(&self) {
        self.http.rq_completed.add(1);
        self.http.statuses.count(100);
        self.of_listener.count(100);
    }

    /// The manager's numbers.
    pub fn http(&self) -> &HttpStats {
        &self.http
    }
}

impl Drop for CountedConnection {
    fn drop(&mut self) {
        let ClientEnd { local, active } = self.end.get();
        if local {
            self.http.cx_destroy_local.add(1);
        }
        if active {
            self.http.cx_destroy_active[usize::from(!local)].add(1);
        }
        self.http.cx_active.down();
        self.http.cx_length_ms.record_thousandths(self.begun.elapsed().as_micros() as u64);
        if self.secure {
            self.http.cx_ssl_active.down();
        }
        match self.http2 {
            Some(true) => self.http.cx_http2_active.down(),
            Some(false) => self.http.cx_http1_active.down(),
            None => {}
        }
    }
}
