//! Where a connection stands in the configuration, and what of it serves the connection now.

use crate::{
    config::{Facts, FilterChain, HttpManager, Listener, Network, Root, Secured, Transport},
    worker::WorkerRoot,
};
use std::{
    cell::Cell,
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::Arc,
    time::Instant,
};

/// Where a connection stands in the configuration: everything by which its filter chain is found, so that it can be found
/// again when the configuration changed. Boxed, since it is rarely looked at and lies in every connection.
#[derive(Debug, Clone)]
pub struct Place(pub(super) Box<Spot>);

#[derive(Debug, Clone)]
pub(super) struct Spot {
    /// The address of the listening socket, as the listener names it.
    pub(super) bound: SocketAddr,
    /// Where the client wanted to connect.
    pub(super) destination: SocketAddr,
    /// The client, as PROXY protocol told it.
    pub(super) source: SocketAddr,
    /// The other end of the connection.
    pub(super) direct_source: SocketAddr,
    /// Plain text or TLS.
    pub(super) transport: Transport,
    /// The ClientHello's server name.
    pub(super) server_name: Option<Box<str>>,
    /// ALPN names or the detected HTTP version.
    pub(super) protocols: Vec<Arc<str>>,
    /// What of its filter chain cannot change under it, once that is found.
    pub(super) chosen: Option<Chosen>,
    /// Since when it leads nowhere, and as of which change of listeners that is known.
    pub(super) gone: Cell<(Option<Instant>, Option<Instant>)>,
}

/// What a connection was made for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chosen {
    /// How it was made.
    pub(super) secured: Secured,
    /// It carries HTTP.
    pub(super) http: bool,
}

impl Place {
    /// The listener: the virtual one of the destination, or the one that owns the socket.
    pub fn listener<'r>(&self, root: &'r Root) -> Option<&'r Arc<Listener>> {
        let owner = root.listeners.bound(self.0.bound)?;
        if owner.use_original_dst {
            Some(root.listeners.by_destination(owner.direction, self.0.destination).unwrap_or(owner))
        } else {
            Some(owner)
        }
    }

    /// Whether what a connection belonged to is gone, and it may take the time to end that such ones have. A Service that goes, or changes
    /// its protocol, leaves its connections with a chain that does not speak theirs.
    pub fn is_gone(&self, root: &Root) -> bool {
        match self.find(root) {
            Some(chain) => self.0.chosen.is_some_and(|chosen| chosen.http != chain.is_http()),
            None => self.listener(root).is_none() || !root.drain.time.is_zero(),
        }
    }

    /// Since when it leads nowhere ([`Self::is_gone`]); listeners have changed last at `change`, and whoever has a place looks then.
    pub fn gone_since(&self, root: &Root, change: Instant) -> Option<Instant> {
        let (mut since, known) = self.0.gone.get();
        if known != Some(change) {
            since = self.is_gone(root).then(|| since.unwrap_or(change));
            self.0.gone.set((since, Some(change)));
        }
        since
    }

    /// The filter chain. Of one that now wants TLS, or a certificate, connections are none that were made without, nor those with TLS
    /// of one that has none.
    pub fn find<'r>(&self, root: &'r Root) -> Option<&'r FilterChain> {
        let facts = Facts {
            destination: self.0.destination,
            source: self.0.source,
            direct_source: self.0.direct_source,
            transport: self.0.transport,
            server_name: self.0.server_name.as_deref(),
            application_protocols: &self.0.protocols,
        };
        self.listener(root)?
            .chain(&facts)
            .filter(|chain| self.0.chosen.is_none_or(|chosen| chosen.secured.suffices(chain.secured())))
    }

    /// The connection manager of the filter chain.
    fn http_manager(&self, root: &Root) -> Option<Arc<HttpManager>> {
        match &self.find(root)?.network {
            Network::Http(manager) => Some(manager.clone()),
            _ => None,
        }
    }
}

/// What serves an HTTP connection, as of the configuration in which it was last looked for.
#[derive(Debug)]
pub struct Served {
    manager: Arc<HttpManager>,
    /// That configuration, which it does not keep alive: the connection may be idle for hours.
    root: Weak<WorkerRoot>,
}

impl Served {
    /// By this connection manager of that configuration.
    pub(super) fn new(manager: Arc<HttpManager>, root: &Rc<WorkerRoot>) -> Self {
        Self { manager, root: Rc::downgrade(root) }
    }

    /// Looks for it again where the configuration is another one. What is gone stays: what the connection asks until it ends is answered
    /// as before. False where the connection belongs nowhere any more, but is not to end in peace either.
    pub fn renew(&mut self, place: &Place, root: &Rc<WorkerRoot>) -> bool {
        if std::ptr::eq(self.root.as_ptr(), Rc::as_ptr(root)) {
            return true;
        }
        match place.http_manager(root.config()) {
            Some(manager) => self.manager = manager,
            None if place.is_gone(root.config()) => {}
            None => return false,
        }
        self.root = Rc::downgrade(root);
        true
    }

    /// The connection manager.
    pub fn manager(&self) -> &Arc<HttpManager> {
        &self.manager
    }
}
