//! Which filter chain a connection gets, in Envoy's order: destination port, destination address, server name, transport, application
//! protocol, address of the other end, source type, source address, source port. Each step keeps the most specific group and never
//! goes back, as Envoy does.
//!
//! The chains are arranged once, when the configuration arrives. A look-up takes a binary search a step (for addresses one for each
//! length of prefix in use), however many chains there are.

use super::chain::{ChainMatch, Facts, FilterChain, SourceType, Transport};
use ipnet::IpNet;
use std::net::IpAddr;
use std::sync::Arc;

/// Combinations of criteria in one listener at most.
pub const MAX_COMBINATIONS: usize = 1 << 20;

/// Why filter chains are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Two chains match the same connections.
    #[error("filter chains {first} and {second} match the same connections; make one of them more specific")]
    Overlap {
        /// Position of the one.
        first: usize,
        /// Position of the other.
        second: usize,
    },
    /// A server name with a wildcard that is not a whole first label.
    #[error("server name `{0}` has a wildcard elsewhere than as its whole first label")]
    Wildcard(String),
    /// Too many of them.
    #[error("filter chains have more than {MAX_COMBINATIONS} combinations of criteria")]
    TooMany,
}

/// The filter chains of a listener.
#[derive(Debug, Default)]
pub struct FilterChains {
    all: Vec<FilterChain>,
    default: Option<FilterChain>,
    index: Ports,
}

type Ports = Table<u16, Prefixes<Names>>;
type Names = Table<Box<str>, Transports>;
type Transports = Table<u8, Protocols>;
type Protocols = Table<Box<str>, Prefixes<SourceTypes>>;
type SourceTypes = Table<u8, Prefixes<SourcePorts>>;
type SourcePorts = Table<u16, usize>;

impl FilterChains {
    /// Arranges chains. `default` takes the connections that none of them matches; without it they are closed.
    ///
    /// # Errors
    /// When two chains match the same, a server name is malformed, or there are too many combinations.
    pub fn new(all: Vec<FilterChain>, default: Option<FilterChain>) -> Result<Self, ChainError> {
        let mut index = Ports::default();
        let mut count = 0;
        for (position, chain) in all.iter().enumerate() {
            add(&mut index, &chain.matches, position, &mut count)?;
        }
        Ok(Self { all, default, index })
    }

    /// Every chain that matches on something, in the order given.
    pub fn all(&self) -> &[FilterChain] {
        &self.all
    }

    /// What takes the connections that no chain matches.
    pub fn default_chain(&self) -> Option<&FilterChain> {
        self.default.as_ref()
    }

    /// The chain for a connection.
    pub fn find(&self, facts: &Facts<'_>) -> Option<&FilterChain> {
        self.position(facts).and_then(|position| self.all.get(position)).or(self.default.as_ref())
    }

    fn position(&self, facts: &Facts<'_>) -> Option<usize> {
        if self.all.is_empty() {
            return None;
        }
        let by_destination = self.index.one_or(&facts.destination.port(), &0)?;
        let names = by_destination.find(facts.destination.ip())?;
        let transports = by_name(names, facts.server_name.unwrap_or_default())?;
        let protocols = transports.one_or(&(facts.transport as u8 + 1), &0)?;
        let by_direct_source = facts
            .application_protocols
            .iter()
            .find_map(|protocol| protocols.get(&**protocol))
            .or_else(|| protocols.get(""))?;
        let types = by_direct_source.find(facts.direct_source.ip())?;
        let kind = if facts.is_local() { SourceType::SameIpOrLoopback } else { SourceType::External };
        let by_source = types.one_or(&(kind as u8), &(SourceType::Any as u8))?;
        by_source.find(facts.source.ip())?.one_or(&facts.source.port(), &0).copied()
    }
}

/// By the whole name, then by ever shorter ends of it, then by none.
fn by_name<'t>(names: &'t Names, wanted: &str) -> Option<&'t Transports> {
    let lower;
    let wanted = if wanted.bytes().any(|byte| byte.is_ascii_uppercase()) {
        lower = wanted.to_ascii_lowercase();
        &lower
    } else {
        wanted
    };
    if !wanted.is_empty() {
        if let Some(found) = names.get(wanted) {
            return Some(found);
        }
        let ends = wanted.bytes().enumerate().skip(1).filter(|(at, byte)| *byte == b'.' && at + 1 < wanted.len());
        for (at, _) in ends {
            if let Some(found) = names.get(&wanted[at..]) {
                return Some(found);
            }
        }
    }
    names.get("")
}

fn add(index: &mut Ports, wanted: &ChainMatch, position: usize, count: &mut usize) -> Result<(), ChainError> {
    let names = wanted.server_names.iter().map(pattern).collect::<Result<Vec<_>, _>>()?;
    let names = if names.is_empty() { vec![Box::from("")] } else { names };
    let protocols: Vec<Box<str>> = match &wanted.application_protocols[..] {
        [] => vec![Box::from("")],
        some => some.iter().map(|name| Box::from(&**name)).collect(),
    };
    let source_ports = if wanted.source_ports.is_empty() { &[0][..] } else { &wanted.source_ports[..] };
    for destination in &any_or(&wanted.destination_prefixes) {
        for name in &names {
            for protocol in &protocols {
                for direct in &any_or(&wanted.direct_source_prefixes) {
                    for source in &any_or(&wanted.source_prefixes) {
                        for port in source_ports {
                            *count += 1;
                            if *count > MAX_COMBINATIONS {
                                return Err(ChainError::TooMany);
                            }
                            let slot = index
                                .entry(&wanted.destination_port.unwrap_or(0))
                                .entry(destination)
                                .entry(name)
                                .entry(&wanted.transport.map_or(0, |transport| transport as u8 + 1))
                                .entry(protocol)
                                .entry(direct)
                                .entry(&(wanted.source_type as u8))
                                .entry(source);
                            match slot.get(port) {
                                Some(&first) => return Err(ChainError::Overlap { first, second: position }),
                                None => *slot.entry(port) = position,
                            }
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// No prefixes are one for every address (`None`), which is not the same as a prefix of length 0: that is of one family.
fn any_or(prefixes: &[IpNet]) -> Vec<Option<IpNet>> {
    if prefixes.is_empty() { vec![None] } else { prefixes.iter().copied().map(Some).collect() }
}

/// `*.a.b` becomes `.a.b`; names are compared in lower case.
fn pattern(name: &Arc<str>) -> Result<Box<str>, ChainError> {
    let lower = name.to_ascii_lowercase();
    let rest = lower.strip_prefix("*.").map(|_| &lower[1..]).unwrap_or(&lower);
    if rest.contains('*') || rest == "." {
        return Err(ChainError::Wildcard(name.to_string()));
    }
    Ok(rest.into())
}

/// A map as a sorted list: exactly as large as what is in it.
#[derive(Debug)]
struct Table<K, V>(Vec<(K, V)>);

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K, V> Table<K, V> {
    fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Ord + ?Sized,
    {
        match &self.0[..] {
            // Mostly there is one.
            [(only, value)] => (only.borrow() == key).then_some(value),
            all => all.binary_search_by(|(known, _)| known.borrow().cmp(key)).ok().map(|at| &all[at].1),
        }
    }

    /// The value of one key, else of another.
    fn one_or<Q>(&self, key: &Q, other: &Q) -> Option<&V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.get(key).or_else(|| self.get(other))
    }

    fn entry(&mut self, key: &K) -> &mut V
    where
        K: Ord + Clone,
        V: Default,
    {
        let at = match self.0.binary_search_by(|(known, _)| known.cmp(key)) {
            Ok(at) => at,
            Err(at) => {
                self.0.reserve_exact(usize::from(self.0.len() < 4));
                self.0.insert(at, (key.clone(), V::default()));
                at
            }
        };
        &mut self.0[at].1
    }
}

/// A map from ranges of addresses, of which the longest that contains an address counts.
#[derive(Debug)]
struct Prefixes<V> {
    any: Option<V>,
    /// The lengths in use, longest first, IPv4 as part of IPv6.
    lengths: Vec<(bool, u8)>,
    ranges: Table<(bool, u8, u128), V>,
}

impl<V> Default for Prefixes<V> {
    fn default() -> Self {
        Self { any: None, lengths: Vec::new(), ranges: Table::default() }
    }
}

impl<V: Default> Prefixes<V> {
    fn entry(&mut self, net: &Option<IpNet>) -> &mut V {
        let Some(net) = net else { return self.any.get_or_insert_default() };
        let (v4, bits) = bits(net.network());
        let length = (v4, net.prefix_len());
        if let Err(at) = self.lengths.binary_search_by(|known| length.1.cmp(&known.1).then(known.0.cmp(&length.0))) {
            self.lengths.insert(at, length);
        }
        self.ranges.entry(&(v4, length.1, bits))
    }
}

impl<V> Prefixes<V> {
    fn find(&self, address: IpAddr) -> Option<&V> {
        if self.lengths.is_empty() {
            return self.any.as_ref();
        }
        let (v4, bits) = bits(address.to_canonical());
        let width = if v4 { 32 } else { 128 };
        let of_family = self.lengths.iter().filter(|(family, _)| *family == v4);
        for &(_, length) in of_family {
            let masked = if length == 0 { 0 } else { bits >> (width - length) << (width - length) };
            if let Some(found) = self.ranges.get(&(v4, length, masked)) {
                return Some(found);
            }
        }
        self.any.as_ref()
    }
}

fn bits(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(v4) => (true, u128::from(v4.to_bits())),
        IpAddr::V6(v6) => (false, v6.to_bits()),
    }
}

/// Where a transport stands among the keys; 0 is any.
const _: () = assert!(Transport::Raw as u8 == 0 && Transport::Tls as u8 == 1);
