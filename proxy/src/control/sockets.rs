//! Listening sockets that come and go with the configuration.
//!
//! A socket is bound when its listener arrives, so that an address which cannot be had is a reason to refuse the
//! listener; it listens when the listener is in force; it is closed when no listener in force has its address.

use crate::config::{Root, SocketSettings};
use crate::listen::{begin, bind};
use crate::worker::ListenSocket;
use crate::xds::Bind;
use socket2::Socket;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The sockets of this process; clones are the same ones. There are as many as listeners have addresses.
#[derive(Debug, Clone, Default)]
pub struct LiveSockets(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    /// Bound, for listeners that are not in force yet.
    waiting: BTreeMap<SocketAddr, Socket>,
    /// With the workers.
    accepting: BTreeSet<SocketAddr>,
}

/// What the workers have to do.
#[derive(Debug, Default)]
pub struct Change {
    /// Accept from these.
    pub open: Vec<ListenSocket>,
    /// Close those of these addresses.
    pub close: Vec<SocketAddr>,
}

impl LiveSockets {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way from what is accepted from now to what this root says. An address that cannot be listened on after all
    /// is left out and logged.
    pub fn change(&self, root: &Root) -> Change {
        let bound = root.listeners.all().iter().filter(|listener| listener.bind);
        let wanted: BTreeMap<SocketAddr, &SocketSettings> =
            bound.flat_map(|listener| listener.addresses.iter().map(|address| (*address, &listener.socket))).collect();
        let mut held = self.held();
        let close: Vec<_> = held.accepting.iter().filter(|address| !wanted.contains_key(address)).copied().collect();
        held.accepting.retain(|address| wanted.contains_key(address));
        let mut open = Vec::new();
        for (address, settings) in wanted {
            if held.accepting.contains(&address) {
                continue;
            }
            let socket = match held.waiting.remove(&address) {
                Some(socket) => Ok(socket),
                None => bind(address, settings),
            };
            match socket.and_then(|socket| begin(&socket, settings).map(|()| socket)) {
                Ok(socket) => {
                    held.accepting.insert(address);
                    open.push(ListenSocket { address, socket: socket.into() });
                }
                Err(error) => tracing::error!(%address, %error, "cannot listen"),
            }
        }
        Change { open, close }
    }
}

impl Bind for LiveSockets {
    fn bind(&self, address: SocketAddr, settings: &SocketSettings) -> io::Result<()> {
        let mut held = self.held();
        if !held.accepting.contains(&address) && !held.waiting.contains_key(&address) {
            let socket = bind(address, settings)?;
            held.waiting.insert(address, socket);
        }
        Ok(())
    }

    fn keep(&self, wanted: &BTreeSet<SocketAddr>) {
        self.held().waiting.retain(|address, _| wanted.contains(address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Listener, Listeners};

    fn root(addresses: &[SocketAddr]) -> Root {
        let listener = Listener { addresses: addresses.to_vec(), ..Listener::default() };
        Root { listeners: Listeners::new(vec![Arc::new(listener)]), ..Root::default() }
    }

    #[test]
    fn sockets_when_listeners_come_and_go_are_opened_once_and_closed() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let sockets = LiveSockets::default();
        sockets.bind(free, &SocketSettings::default()).unwrap();
        let change = sockets.change(&root(&[free]));
        assert_eq!(change.open.iter().map(|socket| socket.address).collect::<Vec<_>>(), [free]);
        let again = sockets.change(&root(&[free]));
        assert!(again.open.is_empty() && again.close.is_empty());
        assert_eq!(sockets.change(&root(&[])).close, [free]);
        drop(change);
        std::net::TcpListener::bind(free).unwrap();
    }

    #[test]
    fn socket_when_another_process_has_its_address_is_refused() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let sockets = LiveSockets::default();
        assert_eq!(
            sockets.bind(taken.local_addr().unwrap(), &SocketSettings::default()).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
    }

    #[test]
    fn socket_when_its_listener_never_came_into_force_is_given_back() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let sockets = LiveSockets::default();
        sockets.bind(free, &SocketSettings::default()).unwrap();
        sockets.keep(&BTreeSet::new());
        std::net::TcpListener::bind(free).unwrap();
    }
}
