//! Listeners, how a connection finds one, and how it finds a filter chain in it.

use super::{AccessLog, FilterChains, Gate, Metadata, Network, Secured, ServerTls};
use crate::telemetry::counters::{HttpInspectorStats, TlsInspectorStats};
use ipnet::IpNet;
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
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

    /// Whether some connections may find another filter chain in those, or none: a listener or a chain came or went, listens elsewhere,
    /// or serves something else. Both are in the order of their names. One whose chains only change their order counts as well.
    pub fn lead_elsewhere(&self, newer: &Self) -> bool {
        let same = |(old, new): (&Arc<Listener>, &Arc<Listener>)| {
            Arc::ptr_eq(old, new) || old.name == new.name && new.is_found_as(old) && new.has_the_chains_of(old)
        };
        self.all.len() != newer.all.len() || !self.all.iter().zip(&newer.all).all(same)
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
    /// Its name in statistics: its prefix, or its address.
    pub stat_name: Arc<str>,
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
    /// The PROXY protocol that connections begin with.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// How long detection waits for the client's first bytes; then the connection goes on with what is known. Zero waits
    /// for the first bytes without limit.
    pub detect_timeout: Duration,
    /// Whether a connection whose detection timed out goes on (else it is closed).
    pub continue_on_timeout: bool,
    /// The filter chains.
    pub chains: FilterChains,
    /// What is logged about every connection when it has ended.
    pub access_logs: Vec<AccessLog>,
    /// What its resource says beside its settings.
    pub metadata: Option<Metadata>,
    /// How sockets are made and what accepted connections get.
    pub socket: SocketSettings,
    /// Open connections at most, all workers together; further ones are closed.
    pub most: Option<OpenLimit>,
    /// Its connections count nothing to the limit of those of all listeners together, and are not held to it.
    pub passes_most: bool,
    /// Its connections and requests are taken however little memory there is.
    pub bypasses_overload: bool,
}

/// A limit of open connections.
#[derive(Debug, Clone)]
pub struct OpenLimit {
    /// So many.
    pub most: u32,
    /// How many there are; shared by the forms of the listener that follow each other.
    pub open: Arc<std::sync::atomic::AtomicU32>,
}

impl Default for Listener {
    /// Without addresses and chains.
    fn default() -> Self {
        Self {
            name: "".into(),
            stat_name: "".into(),
            direction: Direction::Outbound,
            addresses: Vec::new(),
            bind: true,
            use_original_dst: false,
            inspect: Inspect::default(),
            proxy_protocol: None,
            detect_timeout: Duration::from_secs(15),
            continue_on_timeout: false,
            chains: FilterChains::default(),
            access_logs: Vec::new(),
            metadata: None,
            socket: SocketSettings::default(),
            most: None,
            passes_most: false,
            bypasses_overload: false,
        }
    }
}

/// How listening sockets are made and what accepted connections get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketSettings {
    /// Connections that may wait in a socket's queue (the kernel bounds it further by `net.core.somaxconn`).
    pub backlog: u32,
    /// Addresses may be bound that no interface has.
    pub freebind: bool,
    /// TCP keep-alive of connections.
    pub keepalive: Option<KeepAlive>,
    /// Options of the listening socket: when they are set, level, name, value.
    pub options: Vec<(OptionTime, i32, i32, SocketOption)>,
    /// A socket of IPv6 takes connections of IPv4 as well.
    pub both_families: bool,
}

/// When an option of a listening socket is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionTime {
    /// Before it is bound.
    Unbound,
    /// When it is bound, before it listens.
    Bound,
    /// When it listens.
    Listening,
}

impl Default for SocketSettings {
    fn default() -> Self {
        Self { backlog: 4096, freebind: false, keepalive: None, options: Vec::new(), both_families: false }
    }
}

/// The value of a socket option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketOption {
    /// A number.
    Int(i32),
    /// Bytes.
    Bytes(Arc<[u8]>),
}

/// TCP keep-alive; what is not set is the system's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeepAlive {
    /// Probes without an answer after which a connection is dead.
    pub probes: Option<u32>,
    /// Idle time before the first probe.
    pub time: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
}

/// The PROXY protocol (versions 1 and 2) with which connections begin.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProxyProtocol {
    /// Connections that begin otherwise are served as they are.
    pub optional: bool,
    /// Version 1 is not accepted.
    pub no_v1: bool,
    /// Version 2 is not accepted.
    pub no_v2: bool,
    /// Extensions (TLVs) that are kept for endpoints.
    pub pass: PassTlvs,
}

/// Which extensions of the PROXY protocol are passed on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PassTlvs {
    /// None.
    #[default]
    None,
    /// All.
    All,
    /// Those of these types.
    Some(Vec<u8>),
}

impl PassTlvs {
    /// Whether those of this type are.
    pub fn passes(&self, kind: u8) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Some(kinds) => kinds.contains(&kind),
        }
    }
}

/// Which inspectors a listener runs, and for which destination ports they are off.
#[derive(Debug, Default, Clone)]
pub struct Inspect {
    /// Look for a TLS ClientHello: server name and ALPN.
    pub tls: bool,
    /// Bytes of a ClientHello at most; a longer one ends its connection. `None` is as many as are looked at.
    pub most_hello: Option<u32>,
    /// Look for the start of an HTTP request.
    pub http: bool,
    /// Ports on which the TLS inspector is off.
    pub tls_off: PortSet,
    /// Ports on which the HTTP inspector is off (known TCP: a server that speaks first must not wait).
    pub http_off: PortSet,
    /// What the TLS inspector found.
    pub tls_stats: TlsInspectorStats,
    /// What the HTTP inspector found.
    pub http_stats: HttpInspectorStats,
}

/// A set of ports as inclusive ranges.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct PortSet(pub Vec<(u16, u16)>);

impl PortSet {
    /// Whether the port is in one of the ranges.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|&(from, to)| (from..=to).contains(&port))
    }

    /// Every port.
    pub fn all() -> Self {
        Self(vec![(0, u16::MAX)])
    }

    /// The ports that are not in it.
    pub fn complement(&self) -> Self {
        let mut taken = self.0.clone();
        taken.sort_unstable();
        let mut free = Vec::new();
        let mut next = 0u32;
        for (from, to) in taken {
            if u32::from(from) > next {
                free.push((next as u16, from - 1));
            }
            next = next.max(u32::from(to) + 1);
        }
        if next <= u32::from(u16::MAX) {
            free.push((next as u16, u16::MAX));
        }
        Self(free)
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
    /// How long a handshake may take; default 10 s.
    pub tls_timeout: Duration,
    /// What a connection must pass before it is served.
    pub gates: Vec<Gate>,
    /// What is done with the connection.
    pub network: Network,
    /// What its resource says beside its settings.
    pub metadata: Option<Metadata>,
}

impl FilterChain {
    /// How it tells who its clients are.
    pub fn secured(&self) -> Secured {
        Secured::by(self.tls.as_deref())
    }

    /// Whether it serves HTTP.
    pub fn is_http(&self) -> bool {
        matches!(self.network, Network::Http(_))
    }

    /// Whether it asks of connections what an older form does.
    fn asks_the_same_as(&self, older: &Self) -> bool {
        older.secured() == self.secured() && older.is_http() == self.is_http()
    }

    /// One in plain text that takes everything.
    pub fn new(name: impl Into<Arc<str>>, network: Network) -> Self {
        Self {
            name: name.into(),
            matches: ChainMatch::default(),
            tls: None,
            tls_timeout: crate::tls::HANDSHAKE_TIMEOUT,
            gates: Vec::new(),
            network,
            metadata: None,
        }
    }
}

/// The condition of a filter chain. An empty criterion matches everything, but less specifically.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ChainMatch {
    /// The original destination port.
    pub destination_port: Option<u16>,
    /// Ranges of the original destination address; the longest that fits counts.
    pub destination_prefixes: Vec<IpNet>,
    /// Server names of the ClientHello: exact, or `*.suffix`.
    pub server_names: Vec<Arc<str>>,
    /// Plain text or TLS.
    pub transport: Option<Transport>,
    /// ALPN names of the ClientHello, or what the HTTP inspector found (`http/1.0`, `http/1.1`, `h2c`).
    pub application_protocols: Vec<Arc<str>>,
    /// Ranges of the address of the other end, whatever PROXY protocol says.
    pub direct_source_prefixes: Vec<IpNet>,
    /// From this machine or from another.
    pub source_type: SourceType,
    /// Ranges of the client's address.
    pub source_prefixes: Vec<IpNet>,
    /// The client's ports.
    pub source_ports: Vec<u16>,
}

/// Where connections come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SourceType {
    /// Anywhere.
    #[default]
    Any,
    /// This machine: a loopback address, or the one to which it connected.
    SameIpOrLoopback,
    /// Elsewhere.
    External,
}

/// How a connection's bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Plain text (`raw_buffer`).
    Raw,
    /// TLS (`tls`).
    Tls,
}

/// What is known about a connection when a chain is chosen.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// Where the client wanted to connect.
    pub destination: SocketAddr,
    /// The client, as PROXY protocol told it.
    pub source: SocketAddr,
    /// The other end of the connection.
    pub direct_source: SocketAddr,
    /// Plain or TLS.
    pub transport: Transport,
    /// The ClientHello's server name.
    pub server_name: Option<&'a str>,
    /// ALPN names, or the detected HTTP version; in the client's order.
    pub application_protocols: &'a [Arc<str>],
}

impl Facts<'_> {
    /// Whether the client is on this machine. Of the addresses of loopback only the first is, as for Envoy.
    pub fn is_local(&self) -> bool {
        let source = self.source.ip().to_canonical();
        source == IpAddr::V4(Ipv4Addr::LOCALHOST)
            || source == IpAddr::V6(Ipv6Addr::LOCALHOST)
            || source == self.destination.ip().to_canonical()
    }
}

impl Listener {
    /// The chain for a connection.
    pub fn chain(&self, facts: &Facts<'_>) -> Option<&FilterChain> {
        self.chains.find(facts)
    }

    /// Whether connections find it where they find an older form.
    fn is_found_as(&self, older: &Self) -> bool {
        self.addresses == older.addresses
            && (self.bind, self.use_original_dst) == (older.bind, older.use_original_dst)
            && self.direction == older.direction
    }

    /// Whether its chains are for what those of an older form are for, in the same order.
    fn has_the_chains_of(&self, older: &Self) -> bool {
        let (new, old) = (self.chains.all(), older.chains.all());
        let same = |(new, old): (&FilterChain, &FilterChain)| new.matches == old.matches && new.asks_the_same_as(old);
        new.len() == old.len()
            && new.iter().zip(old).all(same)
            && match (self.chains.default_chain(), older.chains.default_chain()) {
                (Some(new), Some(old)) => new.asks_the_same_as(old),
                (new, old) => new.is_none() && old.is_none(),
            }
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
