//! Listeners, how a connection finds one, and how it finds a filter chain in it.

use super::{ClusterId, HttpManager, ServerTls};
use crate::telemetry::LogFormat;
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

/// Which way a listener's traffic goes, seen from the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// From others to the workload beside this proxy.
    Inbound,
    /// From the workload to others.
    Outbound,
}

/// Every listener of a root with the indices that select one.
#[derive(Debug, Default, Clone)]
pub struct Listeners {
    all: Vec<Arc<Listener>>,
    by_address: HashMap<(Direction, SocketAddr), usize>,
    by_port: HashMap<(Direction, u16), usize>,
    bound: HashMap<SocketAddr, usize>,
}

impl Listeners {
    /// Indexes the listeners. Of two with the same address and direction the first one wins.
    pub fn new(all: Vec<Arc<Listener>>) -> Self {
        let mut listeners = Self::default();
        for (index, listener) in all.iter().enumerate() {
            for &address in &listener.addresses {
                if listener.bind {
                    listeners.bound.entry(address).or_insert(index);
                } else if address.ip().is_unspecified() {
                    listeners.by_port.entry((listener.direction, address.port())).or_insert(index);
                } else {
                    listeners.by_address.entry((listener.direction, address)).or_insert(index);
                }
            }
        }
        listeners.all = all;
        listeners
    }

    /// Whether a listener of these is not among those. Both are in the order of their names.
    pub fn any_gone_in(&self, newer: &Self) -> bool {
        let mut left = newer.all.iter();
        !self.all.iter().all(|old| left.any(|new| new.name == old.name))
    }

    /// Every listener in the order given.
    pub fn all(&self) -> &[Arc<Listener>] {
        &self.all
    }

    /// The listener that owns the listening socket bound to this address.
    pub fn bound(&self, address: SocketAddr) -> Option<&Arc<Listener>> {
        self.bound.get(&address).map(|&index| &self.all[index])
    }

    /// The virtual listener for a redirected connection's original destination: by address and port first, then by port
    /// alone; `None` leaves the connection with the listener that took it.
    pub fn by_destination(&self, direction: Direction, destination: SocketAddr) -> Option<&Arc<Listener>> {
        let destination = SocketAddr::new(destination.ip().to_canonical(), destination.port());
        self.by_address
            .get(&(direction, destination))
            .or_else(|| self.by_port.get(&(direction, destination.port())))
            .map(|&index| &self.all[index])
    }
}

/// One listener: where it listens, what it looks at before it decides, and the filter chains it decides among.
#[derive(Debug)]
pub struct Listener {
    /// The resource's name, e.g. `virtualOutbound`.
    pub name: Arc<str>,
    /// Which way its traffic goes.
    pub direction: Direction,
    /// Its addresses (the first and the additional ones).
    pub addresses: Vec<SocketAddr>,
    /// Whether it has listening sockets of its own; else it is reached through one with `use_original_dst`.
    pub bind: bool,
    /// Whether connections are handed to the virtual listener of their original destination.
    pub use_original_dst: bool,
    /// What is looked at before a chain is chosen.
    pub inspect: Inspect,
    /// How long detection waits for the client's first bytes; then the connection goes on with what is known. Zero waits
    /// for the first bytes without limit.
    pub detect_timeout: Duration,
    /// Whether a connection whose detection timed out goes on (else it is closed).
    pub continue_on_timeout: bool,
    /// The chains that match on something.
    pub chains: Vec<FilterChain>,
    /// What takes the connections that no chain matches; without it they are closed.
    pub default_chain: Option<FilterChain>,
}

/// Which inspectors a listener runs, and for which destination ports they are off.
#[derive(Debug, Default, Clone)]
pub struct Inspect {
    /// Look for a TLS ClientHello: server name and ALPN.
    pub tls: bool,
    /// Look for the start of an HTTP request.
    pub http: bool,
    /// Ports on which the TLS inspector is off.
    pub tls_off: PortSet,
    /// Ports on which the HTTP inspector is off (known TCP: a server that speaks first must not wait).
    pub http_off: PortSet,
}

/// A set of ports as inclusive ranges.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct PortSet(pub Vec<(u16, u16)>);

impl PortSet {
    /// Whether the port is in one of the ranges.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|&(from, to)| (from..=to).contains(&port))
    }
}

/// A filter chain: when it applies, the TLS it ends, and what it does with the connection.
#[derive(Debug)]
pub struct FilterChain {
    /// Its name, for logs and the config dump.
    pub name: Arc<str>,
    /// When it applies.
    pub matches: ChainMatch,
    /// TLS to end before the bytes go on; `None` is plain text.
    pub tls: Option<Arc<ServerTls>>,
    /// What is done with the connection.
    pub network: Network,
}

/// The condition of a filter chain. An empty criterion matches everything, but less specifically.
#[derive(Debug, Default, Clone)]
pub struct ChainMatch {
    /// The original destination port.
    pub destination_port: Option<u16>,
    /// Server names of the ClientHello: exact, or `*.suffix`.
    pub server_names: Vec<Arc<str>>,
    /// Plain text or TLS.
    pub transport: Option<Transport>,
    /// ALPN names of the ClientHello, or what the HTTP inspector found (`http/1.0`, `http/1.1`, `h2c`).
    pub application_protocols: Vec<Arc<str>>,
}

/// How a connection's bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Plain text (`raw_buffer`).
    Raw,
    /// TLS (`tls`).
    Tls,
}

/// What a filter chain does with a connection.
#[derive(Debug, Clone)]
pub enum Network {
    /// Serves HTTP.
    Http(Arc<HttpManager>),
    /// Passes bytes on.
    Tcp(Arc<TcpProxy>),
}

/// Passes the bytes of a connection to a cluster.
#[derive(Debug)]
pub struct TcpProxy {
    /// Name in metrics.
    pub stat_prefix: Arc<str>,
    /// Which way the traffic goes.
    pub direction: Direction,
    /// Where to; chosen by weight once a connection.
    pub targets: Vec<TcpTarget>,
    /// A connection on which nothing moved for so long is closed; zero is never. Default one hour.
    pub idle_timeout: Duration,
    /// How many endpoints are tried before the connection is given up; at least 1. Default 1.
    pub connect_attempts: u32,
    /// The line to write for each connection, if any.
    pub access_log: Option<Arc<LogFormat>>,
}

/// One weighted target of a TCP proxy.
#[derive(Debug, Clone)]
pub struct TcpTarget {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its share of the sum of all weights.
    pub weight: u32,
}

/// What is known about a connection when a chain is chosen.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// The original destination port.
    pub destination_port: u16,
    /// Plain or TLS.
    pub transport: Transport,
    /// The ClientHello's server name.
    pub server_name: Option<&'a str>,
    /// ALPN names, or the detected HTTP version; in the client's order.
    pub application_protocols: &'a [Arc<str>],
}

impl Listener {
    /// The chain for a connection, in Envoy's order: destination port, server name, transport, application protocol. Each
    /// step keeps only the most specific group, without going back, as Envoy does.
    pub fn chain(&self, facts: &Facts<'_>) -> Option<&FilterChain> {
        self.matched_chain(facts).or(self.default_chain.as_ref())
    }

    fn matched_chain(&self, facts: &Facts<'_>) -> Option<&FilterChain> {
        let port = Some(facts.destination_port);
        let by_port = self.chains.iter().any(|chain| chain.matches.destination_port == port);
        let wanted_port = if by_port { port } else { None };
        let on_port = || self.chains.iter().filter(move |chain| chain.matches.destination_port == wanted_port);

        let name = on_port()
            .flat_map(|chain| &chain.matches.server_names)
            .filter(|pattern| name_matches(pattern, facts.server_name))
            .max_by_key(|pattern| (!pattern.starts_with("*."), pattern.len()));
        let on_name = || {
            on_port().filter(move |chain| match name {
                Some(name) => chain.matches.server_names.contains(name),
                None => chain.matches.server_names.is_empty(),
            })
        };

        let by_transport = on_name().any(|chain| chain.matches.transport == Some(facts.transport));
        let wanted_transport = by_transport.then_some(facts.transport);
        let on_transport = || on_name().filter(move |chain| chain.matches.transport == wanted_transport);

        facts
            .application_protocols
            .iter()
            .find_map(|protocol| on_transport().find(|chain| chain.matches.application_protocols.contains(protocol)))
            .or_else(|| on_transport().find(|chain| chain.matches.application_protocols.is_empty()))
    }

    /// Whether an address is one of this listener's own, so that a connection to it would come back for ever.
    pub fn is_own(&self, address: SocketAddr) -> bool {
        self.addresses.iter().any(|own| {
            own.port() == address.port()
                && (own.ip() == address.ip() || own.ip().is_unspecified() && is_local(address.ip()))
        })
    }
}

fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified()
}

fn name_matches(pattern: &str, name: Option<&str>) -> bool {
    let Some(name) = name else { return false };
    match pattern.strip_prefix('*') {
        Some(suffix) => {
            name.len() > suffix.len()
                && name.as_bytes()[name.len() - suffix.len()..].eq_ignore_ascii_case(suffix.as_bytes())
        }
        None => name.eq_ignore_ascii_case(pattern),
    }
}
