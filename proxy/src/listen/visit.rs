//! What a listener tells about a connection when it has ended, whatever served it, or if nothing did.
//!
//! There is one only where the listener has access logs. It goes with what is known of the connection; what serves the connection
//! adds what it saw.

use crate::{
    config::{AccessLog, Listener, Metadata},
    http::ConnInfo,
    telemetry::{CloseType, LogEntry, LogKind, ResponseFlags, nanos},
    tls::{PeerIdentity, TlsInfo},
    worker::Worker,
};
use std::{
    cell::{Cell, RefCell},
    fmt,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Instant, SystemTime},
};

/// A connection of a listener that logs. Its lines are written when it is dropped.
pub struct Visit {
    worker: Rc<Worker>,
    listener: Arc<Listener>,
    start: Instant,
    wall: SystemTime,
    id: u64,
    chain: Arc<str>,
    destination: SocketAddr,
    direct_local: SocketAddr,
    source: SocketAddr,
    direct_source: SocketAddr,
    server_name: Option<Box<str>>,
    peer: Option<Box<str>>,
    tls: Option<Box<TlsInfo>>,
    secured: Option<Instant>,
    chain_metadata: Option<Metadata>,
    close: Cell<CloseType>,
    reason: Cell<Option<&'static str>>,
    flags: Cell<ResponseFlags>,
    details: Option<&'static str>,
    termination: RefCell<Option<Box<str>>>,
    failure: Option<String>,
    protocol: Cell<Option<&'static str>>,
    received: Cell<u64>,
    sent: Cell<u64>,
    written: Cell<bool>,
}

impl fmt::Debug for Visit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Visit").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Visit {
    /// A connection to that listener, if it logs.
    pub(super) fn begin(
        worker: &Rc<Worker>,
        listener: &Arc<Listener>,
        id: u64,
        (destination, direct_local): (SocketAddr, SocketAddr),
        (source, direct_source): (SocketAddr, SocketAddr),
    ) -> Option<Box<Self>> {
        if listener.access_logs.is_empty() {
            return None;
        }
        Some(Box::new(Self {
            worker: worker.clone(),
            listener: listener.clone(),
            start: Instant::now(),
            wall: SystemTime::now(),
            id,
            chain: Arc::default(),
            destination,
            direct_local,
            source,
            direct_source,
            server_name: None,
            peer: None,
            tls: None,
            secured: None,
            chain_metadata: None,
            close: Cell::default(),
            reason: Cell::default(),
            flags: Cell::new(ResponseFlags::none()),
            details: None,
            termination: RefCell::default(),
            failure: None,
            protocol: Cell::default(),
            received: Cell::default(),
            sent: Cell::default(),
            written: Cell::default(),
        }))
    }

    /// No filter chain takes it.
    pub(super) fn unclaimed(&mut self, server_name: Option<&str>) {
        self.server_name = server_name.map(Into::into);
        self.flags.set(ResponseFlags::NO_ROUTE);
        self.details = Some("filter_chain_not_found");
    }

    /// What came of its TLS.
    pub(super) fn failed(&mut self, conn: &ConnInfo, reason: String) {
        self.claimed(conn);
        self.failure = Some(reason);
    }

    /// A filter chain takes it, of which this much is known.
    pub(super) fn claimed(&mut self, conn: &ConnInfo) {
        self.chain = conn.chain.clone();
        self.secured = conn.secured;
        self.chain_metadata.clone_from(&conn.chain_metadata);
        self.server_name.clone_from(&conn.server_name);
        let of_certificate = || Some(conn.tls.as_ref()?.peer()?.uris.first()?.clone());
        self.peer = conn.peer.as_ref().map(|peer| PeerIdentity::uri(peer).into()).or_else(of_certificate);
        self.tls = conn.tls.as_deref().map(|tls| Box::new(tls.again()));
    }

    /// A request was served with so many bytes on the wire; one that was not understood has no protocol.
    pub fn served(&self, protocol: Option<&'static str>, flags: ResponseFlags, (received, sent): (u64, u64)) {
        self.protocol.set(protocol.or(self.protocol.get()));
        if flags.contains(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR) {
            self.flags.set(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR);
        }
        self.received.set(self.received.get().wrapping_add(received));
        self.sent.set(self.sent.get().wrapping_add(sent));
    }

    /// The client has reset it.
    pub fn reset(&self) {
        self.close.set(CloseType::RemoteReset);
    }

    /// This side ends it, for that reason.
    pub fn closed_for(&self, reason: &'static str) {
        self.reason.set(Some(reason));
    }

    /// A filter ended it.
    pub fn ended_by(&self, reason: &str) {
        *self.termination.borrow_mut() = Some(reason.into());
    }

    /// Whether a line wants what is only kept where one does.
    pub fn observes(&self) -> bool {
        AccessLog::needs(&self.listener.access_logs).observed
    }

    /// Writes the lines with all that the TCP proxy knows, and none of its own any more.
    pub fn write(&self, entry: LogEntry<'_, (), ()>) {
        self.written.set(true);
        let entry = LogEntry { kind: LogKind::NotSet, ..entry };
        AccessLog::write(&self.listener.access_logs, &self.worker, &entry);
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if self.written.get() {
            return;
        }
        let termination = self.termination.take();
        let mut entry = LogEntry::new(self.wall, self.start.elapsed(), (), ());
        entry.connection_id = self.id;
        entry.flags = self.flags.get();
        entry.protocol = self.protocol.get();
        entry.bytes_received = self.received.get();
        entry.bytes_sent = self.sent.get();
        entry.termination_details = termination.as_deref();
        entry.code_details = self.details;
        entry.downstream_failure = self.failure.as_deref();
        entry.downstream_local = Some(self.destination);
        entry.downstream_direct_local = Some(self.direct_local);
        entry.downstream_remote = Some(self.source);
        entry.downstream_direct_remote = Some(self.direct_source);
        entry.filter_chain = Some(&*self.chain).filter(|name| !name.is_empty());
        entry.server_name = self.server_name.as_deref();
        entry.downstream_peer = self.peer.as_deref();
        entry.tls = self.tls.as_deref();
        entry.accepted = Some(0);
        // Of what is served by HTTP alone Envoy tells when its TLS was set up.
        entry.secured = self.secured.filter(|_| entry.protocol.is_some()).map(|at| nanos(self.start, at));
        entry.endings.down = self.close.get();
        entry.endings.down_reason = self.reason.get();
        entry.metadata.chain = self.chain_metadata.as_ref();
        entry.metadata.listener = self.listener.metadata.as_ref();
        self.write(entry);
    }
}
