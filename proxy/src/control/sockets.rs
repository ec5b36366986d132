//! Listening sockets that come and go with the configuration.
//!
//! A socket is bound when its listener arrives, so that an address which cannot be had is a reason to refuse the
//! listener; it listens when the listener is in force; it is closed when no listener in force has its address.

use crate::config::Root;
use crate::worker::ListenSocket;
use crate::xds::Bind;
use socket2::{Domain, Socket, Type};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections that may wait in a socket's queue (the kernel bounds it further by `net.core.somaxconn`).
const BACKLOG: i32 = 4096;

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
        let wanted: BTreeSet<SocketAddr> = bound.flat_map(|listener| listener.addresses.iter().copied()).collect();
        let mut held = self.held();
        let close: Vec<_> = held.accepting.difference(&wanted).copied().collect();
        held.accepting.retain(|address| wanted.contains(address));
        let mut open = Vec::new();
        for address in wanted {
            if held.accepting.contains(&address) {
                continue;
            }
            let socket = match held.waiting.remove(&address) {
                Some(socket) => Ok(socket),
                None => bind(address),
            };
            match socket.and_then(|socket| socket.listen(BACKLOG).map(|()| socket)) {
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
    fn bind(&self, address: SocketAddr) -> io::Result<()> {
        let mut held = self.held();
        if !held.accepting.contains(&address) && !held.waiting.contains_key(&address) {
            let socket = bind(address)?;
            held.waiting.insert(address, socket);
        }
        Ok(())
    }

    fn keep(&self, wanted: &BTreeSet<SocketAddr>) {
        self.held().waiting.retain(|address, _| wanted.contains(address));
    }
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Direction, Inspect, Listener, Listeners};
    use std::time::Duration;

    fn root(addresses: &[SocketAddr]) -> Root {
        let listener = Listener {
            name: "l".into(),
            direction: Direction::Outbound,
            addresses: addresses.to_vec(),
            bind: true,
            use_original_dst: false,
            inspect: Inspect::default(),
            detect_timeout: Duration::ZERO,
            continue_on_timeout: false,
            chains: Vec::new(),
            default_chain: None,
        };
        Root { listeners: Listeners::new(vec![Arc::new(listener)]), ..Root::default() }
    }

    #[test]
    fn sockets_when_listeners_come_and_go_are_opened_once_and_closed() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let sockets = LiveSockets::default();
        sockets.bind(free).unwrap();
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
        assert_eq!(sockets.bind(taken.local_addr().unwrap()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn socket_when_its_listener_never_came_into_force_is_given_back() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let sockets = LiveSockets::default();
        sockets.bind(free).unwrap();
        sockets.keep(&BTreeSet::new());
        std::net::TcpListener::bind(free).unwrap();
    }
}
