//! A client's connection, as its requests know it.

use crate::{
    config::{Buckets, CertDetails, LocalRateLimit, Metadata},
    listen::{Proxied, Visit},
    telemetry::{DynamicMetadata, WorkloadLabels, connection::CountedConnection, peer, stats::HttpStats},
    tls::{PeerIdentity, TlsInfo},
};
use std::{
    cell::{OnceCell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Instant,
};

/// Limits of which a connection has buckets of its own at most; those that it met first go first.
const MAX_LIMITS: usize = 16;

/// What is known of the client's connection.
#[derive(Debug)]
pub struct ConnInfo {
    /// Its number, unlike that of any other of this process.
    pub id: u64,
    /// When it was accepted.
    pub begun: Instant,
    /// When its TLS was set up.
    pub secured: Option<Instant>,
    /// What the listener's resource says beside its settings.
    pub listener_metadata: Option<Metadata>,
    /// What the filter chain says so.
    pub chain_metadata: Option<Metadata>,
    /// The filter chain's name.
    pub chain: Arc<str>,
    /// The address of this end of it.
    pub direct_local: SocketAddr,
    /// Counts it among those of its manager.
    pub counted: Option<CountedConnection>,
    /// Where the client wanted to connect: the original destination.
    pub local: SocketAddr,
    /// That is known by more than where the connection came: it was redirected, or PROXY protocol says so.
    pub restored: bool,
    /// The client's address, as PROXY protocol tells it.
    pub remote: SocketAddr,
    /// What PROXY protocol said, where a connection began with it.
    pub proxied: Option<Box<Proxied>>,
    /// Who the client proved to be.
    pub peer: Option<PeerIdentity>,
    /// Whether its bytes are protected.
    pub secure: bool,
    /// What its TLS is known by: versions, certificates.
    pub tls: Option<Box<TlsInfo>>,
    /// The server name of its ClientHello.
    pub server_name: Option<Box<str>>,
    /// What its listener will tell about it, where that has logs.
    pub visit: Option<Box<Visit>>,
    /// What its network filters have found out, for lines about it.
    pub found: OnceCell<Box<DynamicMetadata>>,
    /// The workload that the last request's header named, by that header.
    source: RefCell<Option<(Option<Box<[u8]>>, Arc<WorkloadLabels>)>>,
    /// Its own buckets of limits that want that, by the number of the limit: at most [`MAX_LIMITS`].
    limits: RefCell<Vec<(u64, Rc<Buckets>)>>,
    /// What `x-forwarded-client-cert` tells about the client, by what it is to tell.
    pub(super) client_cert: RefCell<Option<(CertDetails, Rc<str>)>>,
}

impl ConnInfo {
    /// The numbers of its manager, where they are counted.
    pub fn http_stats(&self) -> Option<&HttpStats> {
        self.counted.as_ref().map(CountedConnection::http)
    }

    /// A connection from `remote` to `local`.
    pub fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        Self {
            id: 0,
            begun: Instant::now(),
            secured: None,
            listener_metadata: None,
            chain_metadata: None,
            chain: Arc::default(),
            direct_local: local,
            counted: None,
            local,
            restored: false,
            remote,
            proxied: None,
            peer: None,
            secure: false,
            tls: None,
            server_name: None,
            visit: None,
            found: OnceCell::new(),
            source: RefCell::default(),
            limits: RefCell::default(),
            client_cert: RefCell::default(),
        }
    }

    /// Where the client wanted to connect, where that is not just this proxy.
    pub fn wanted(&self) -> Option<SocketAddr> {
        self.restored.then_some(self.local)
    }

    /// Its own buckets of this limit.
    pub(super) fn buckets(&self, limit: &LocalRateLimit) -> Rc<Buckets> {
        let mut limits = self.limits.borrow_mut();
        if let Some((_, known)) = limits.iter().find(|(id, _)| *id == limit.buckets.id) {
            return known.clone();
        }
        if limits.len() >= MAX_LIMITS {
            limits.remove(0);
        }
        let own = Rc::new(limit.buckets.fresh());
        limits.push((limit.buckets.id, own.clone()));
        own
    }

    /// The other end of the connection itself.
    pub fn direct(&self) -> SocketAddr {
        self.proxied.as_ref().map_or(self.remote, |proxied| proxied.direct)
    }

    /// Extensions of PROXY protocol that are passed on.
    pub fn tlvs(&self) -> &[(u8, Box<[u8]>)] {
        self.proxied.as_ref().map_or(&[], |proxied| &proxied.tlvs)
    }

    /// The client's workload, from the mesh's header and the client's certificate.
    pub fn source(&self, header: Option<&[u8]>) -> Arc<WorkloadLabels> {
        let mut source = self.source.borrow_mut();
        match &*source {
            Some((known, labels)) if known.as_deref() == header => labels.clone(),
            _ => {
                let labels = peer::from_header(header, self.peer.as_ref());
                *source = Some((header.map(Into::into), labels.clone()));
                labels
            }
        }
    }
}
