//! What a listener tells about a connection when it has ended, whatever served it, or if nothing did.
//!
//! There is one only where the listener has access logs.

use crate::{
    config::{AccessLog, Listener},
    http::ConnInfo,
    telemetry::{LogEntry, ResponseFlags},
    tls::{PeerIdentity, TlsInfo},
    worker::Worker,
};
use std::{
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Instant, SystemTime},
};

/// A connection of a listener that logs. Its lines are written when it is dropped.
pub(super) struct Visit {
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
    flags: ResponseFlags,
    details: Option<&'static str>,
    failure: Option<String>,
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
            flags: ResponseFlags::none(),
            details: None,
            failure: None,
        }))
    }

    /// No filter chain takes it.
    pub(super) fn unclaimed(&mut self, server_name: Option<&str>) {
        self.server_name = server_name.map(Into::into);
        self.flags = ResponseFlags::NO_ROUTE;
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
        self.server_name.clone_from(&conn.server_name);
        let of_certificate = || Some(conn.tls.as_ref()?.peer()?.uris.first()?.clone());
        self.peer = conn.peer.as_ref().map(|peer| PeerIdentity::uri(peer).into()).or_else(of_certificate);
        self.tls = conn.tls.as_deref().map(|tls| Box::new(tls.again()));
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut entry = LogEntry::new(self.wall, self.start.elapsed(), (), ());
        entry.connection_id = self.id;
        entry.flags = self.flags;
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
        let random = || self.worker.rng.next();
        AccessLog::write(&self.listener.access_logs, &self.worker.shard, &entry, &random);
    }
}
