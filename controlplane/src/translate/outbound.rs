//! Outbound listeners: one for each service address and port, one for each port with HTTP for addresses that no service
//! owns, and the one that all captured connections arrive at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use leno_core::route::Subnet;
use leno_core::service::Addressing;
use leno_core::{ObjectRef, OutboundMode, Protocol};
use leno_xds::envoy::config::core::v3::{CidrRange, TrafficDirection};
use leno_xds::envoy::config::listener::v3::{AdditionalAddress, FilterChain, FilterChainMatch, Listener};

use super::Clusters;
use super::clusters::{BLACK_HOLE, PASSTHROUGH};
use super::filters::{HttpNeeds, Routes, chain, http, http_inspector, tcp, tcp_to, tls_inspector};
use super::values::{ip_socket, metadata, object, socket, text};
use crate::resolve::{ConnectionRoute, Ir, Outbound, OutboundPort, OutboundService, TcpTarget};

/// The port that outbound connections are captured to.
pub(super) const OUTBOUND_PORT: u16 = 15001;
/// The port that inbound connections are captured to.
pub(super) const INBOUND_PORT: u16 = 15006;
/// How long detection may wait for the first bytes.
pub(super) const DETECTION: prost_types::Duration = prost_types::Duration { seconds: 0, nanos: 100_000_000 };

/// Protocols by which a connection is taken for HTTP.
pub(super) const HTTP_PROTOCOLS: [&str; 3] = ["http/1.0", "http/1.1", "h2c"];

/// The listener that all outbound connections arrive at.
pub(super) fn capture(ir: &Ir) -> Listener {
    let unknown = match ir.mesh.outbound {
        OutboundMode::AllowAny => PASSTHROUGH,
        OutboundMode::RegistryOnly => BLACK_HOLE,
    };
    Listener {
        name: "virtualOutbound".to_owned(),
        address: Some(socket("0.0.0.0", OUTBOUND_PORT)),
        additional_addresses: vec![AdditionalAddress {
            address: Some(socket("::", OUTBOUND_PORT)),
            ..Default::default()
        }],
        use_original_dst: Some(true),
        traffic_direction: TrafficDirection::Outbound.into(),
        metadata: Some(own_metadata(ir)),
        filter_chains: vec![FilterChain {
            // A connection to this very port would be passed on to itself for ever.
            filter_chain_match: Some(FilterChainMatch {
                destination_port: Some(u32::from(OUTBOUND_PORT)),
                ..Default::default()
            }),
            ..chain("virtualOutbound-blackhole", tcp(BLACK_HOLE, BLACK_HOLE))
        }],
        default_filter_chain: Some(chain("virtualOutbound-catchall", tcp(unknown, unknown))),
        ..Default::default()
    }
}

/// What telemetry says of the proxy's own workload.
pub(super) fn own_metadata(ir: &Ir) -> leno_xds::envoy::config::core::v3::Metadata {
    let workload = &ir.workload;
    let fields = [
        ("workload", text(workload.name.as_str())),
        ("namespace", text(workload.identity.namespace.as_str())),
        ("app", text(workload.app.as_str())),
        ("version", text(workload.version.as_str())),
        ("service_account", text(workload.identity.service_account.as_str())),
        ("principal", text(workload.identity.principal())),
        ("cluster", text(ir.mesh.cluster.as_str())),
        ("node", text(workload.node.as_str())),
    ];
    metadata([("leno", object(fields))])
}

/// The listeners of all services, by name, with the rules that shaped them.
pub(super) fn services(
    outbound: &Outbound,
    clusters: &Clusters<'_>,
) -> BTreeMap<String, (Listener, BTreeSet<ObjectRef>)> {
    let mut listeners = BTreeMap::new();
    for service in &outbound.services {
        for port in &service.ports {
            for (addresses, number) in addresses(service, port) {
                let Some(first) = addresses.first() else { continue };
                let name = format!("{first}_{number}");
                // Two headless services may share pods; the first by name has the say.
                if listeners.contains_key(&name) {
                    continue;
                }
                let listener = of_address(service, port, &name, &addresses, number, clusters);
                let targets = port.connections.iter().map(|route| &route.target).chain(&port.tcp);
                let used = targets.filter(|_| !port.protocol.is_http());
                let origins = used.filter_map(|target| target.origin.clone()).collect();
                listeners.insert(name, (listener, origins));
            }
        }
    }
    listeners
}

/// The addresses at which clients reach a port: those of the service, or those of each endpoint.
fn addresses(service: &OutboundService, port: &OutboundPort) -> Vec<(Vec<IpAddr>, u16)> {
    match &service.service.addressing {
        Addressing::Virtual(addresses) => vec![(addresses.clone(), port.number)],
        // Reached by host alone.
        Addressing::Alias(_) => Vec::new(),
        Addressing::Headless => port.addresses.iter().map(|(address, number)| (vec![*address], *number)).collect(),
    }
}

fn of_address(
    service: &OutboundService,
    port: &OutboundPort,
    name: &str,
    addresses: &[IpAddr],
    number: u16,
    clusters: &Clusters<'_>,
) -> Listener {
    let stat_prefix = format!("outbound_{name}");
    let needs = HttpNeeds {
        cors: port.http.iter().any(|route| route.cors.is_some()),
        fault: port.http.iter().any(|route| route.fault.is_some()),
        grpc_web: port.protocol == Protocol::GrpcWeb,
        certificate: false,
    };
    let routes = Routes::Named(format!("{}:{}", service.service.host, port.number));
    let mut listener = Listener {
        name: name.to_owned(),
        address: addresses.first().map(|address| ip_socket(*address, number)),
        additional_addresses: addresses
            .iter()
            .skip(1)
            .map(|address| AdditionalAddress { address: Some(ip_socket(*address, number)), ..Default::default() })
            .collect(),
        bind_to_port: Some(false),
        traffic_direction: TrafficDirection::Outbound.into(),
        ..Default::default()
    };
    match port.protocol {
        Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb => {
            listener.filter_chains = vec![chain("http", http(&stat_prefix, routes, needs))];
        }
        Protocol::Tcp | Protocol::Tls => {
            for Connections { of, routes, rest } in connections(port, addresses) {
                for (name, matching, target) in routes {
                    let chain = chain(&name, tcp_to(&stat_prefix, target, clusters));
                    listener.filter_chains.push(FilterChain { filter_chain_match: Some(matching), ..chain });
                }
                let rest = rest.map(|target| chain("tcp", tcp_to(&stat_prefix, target, clusters)));
                listener.filter_chains.extend(rest.map(|chain| FilterChain { filter_chain_match: of, ..chain }));
            }
            if listener.filter_chains.is_empty() {
                // Rules that have nothing for these addresses leave nowhere to go, and a listener must say so.
                listener.filter_chains.push(chain("blackhole", tcp(&stat_prefix, BLACK_HOLE)));
            }
            if port.connections.iter().any(|route| !route.server_names.is_empty()) {
                listener.listener_filters = vec![tls_inspector()];
            }
        }
        Protocol::Auto => {
            for Connections { of, routes: others, rest } in connections(port, addresses) {
                let named = Routes::Named(format!("{}:{}", service.service.host, port.number));
                let mut http = detected(chain("http", http(&stat_prefix, named, needs)));
                if let (Some(matching), Some(of)) = (&mut http.filter_chain_match, &of) {
                    matching.prefix_ranges = of.prefix_ranges.clone();
                }
                listener.filter_chains.push(http);
                for (name, matching, target) in others {
                    let chain = chain(&name, tcp_to(&stat_prefix, target, clusters));
                    listener.filter_chains.push(FilterChain { filter_chain_match: Some(matching), ..chain });
                }
                let rest = rest.map(|target| chain("tcp", tcp_to(&stat_prefix, target, clusters)));
                match of {
                    None => listener.default_filter_chain = rest,
                    of => {
                        listener.filter_chains.extend(rest.map(|chain| FilterChain { filter_chain_match: of, ..chain }))
                    }
                }
            }
            detect(&mut listener);
        }
    }
    listener
}

/// Where connections to some of a listener's addresses go.
struct Connections<'a> {
    /// What all of its chains ask for: those addresses; `None` for all that the listener has.
    of: Option<FilterChainMatch>,
    /// Chains for connections that ask for something certain: name, match and target.
    routes: Vec<(String, FilterChainMatch, &'a TcpTarget)>,
    /// Where all others go.
    rest: Option<&'a TcpTarget>,
}

/// The routes of a port for a listener's addresses. A listener knows which address was asked for, so that it is decided here
/// what a route asks of it: Envoy would prefer the narrower subnet to the earlier rule.
fn connections<'a>(port: &'a OutboundPort, addresses: &[IpAddr]) -> Vec<Connections<'a>> {
    let mut groups: BTreeMap<Vec<bool>, Vec<IpAddr>> = BTreeMap::new();
    for address in addresses {
        let within = |route: &ConnectionRoute| {
            route.destinations.is_empty() || route.destinations.iter().any(|subnet| subnet.contains(*address))
        };
        groups.entry(port.connections.iter().map(within).collect()).or_default().push(*address);
    }
    let several = groups.len() > 1;
    let made = groups.into_iter().map(|(applies, addresses)| {
        let ranges: Vec<CidrRange> = addresses.iter().filter(|_| several).map(|address| range(*address)).collect();
        let applying = port.connections.iter().zip(applies).enumerate().filter(|(_, (_, applies))| *applies);
        let mut taken: BTreeSet<(Option<&str>, Option<Subnet>)> = BTreeSet::new();
        let mut routes = Vec::new();
        let mut rest = port.tcp.as_ref();
        for (number, (ConnectionRoute { server_names, destinations: _, source, target }, _)) in applying {
            if server_names.is_empty() && source.is_none() {
                rest = Some(target);
                break;
            }
            // Envoy refuses two chains that a connection could take alike, and of two sources prefers the narrower one: what an earlier
            // rule takes is left out of later ones.
            let mut take = |name: Option<&'a str>| {
                let earlier = |(of, from): &(Option<&str>, Option<Subnet>)| {
                    *of == name && from.is_none_or(|from| source.is_some_and(|source| from.covers(source)))
                };
                !taken.iter().any(earlier) && taken.insert((name, *source))
            };
            let mut names = Vec::new();
            for name in server_names {
                if take(Some(name.as_str())) {
                    names.push(name.clone());
                }
            }
            let nothing_left = if server_names.is_empty() { !take(None) } else { names.is_empty() };
            if nothing_left {
                continue;
            }
            let matching = FilterChainMatch {
                server_names: names,
                prefix_ranges: ranges.clone(),
                source_prefix_ranges: source
                    .iter()
                    .map(|subnet| CidrRange {
                        address_prefix: subnet.address.to_string(),
                        prefix_len: Some(u32::from(subnet.length)),
                    })
                    .collect(),
                ..Default::default()
            };
            routes.push((format!("route-{number}"), matching, target));
        }
        let of = several.then(|| FilterChainMatch { prefix_ranges: ranges, ..Default::default() });
        Connections { of, routes, rest }
    });
    made.collect()
}

/// One address as a range.
fn range(address: IpAddr) -> CidrRange {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    CidrRange { address_prefix: address.to_string(), prefix_len: Some(bits) }
}

/// The chain, for connections that were found to be HTTP.
fn detected(chain: FilterChain) -> FilterChain {
    FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            application_protocols: HTTP_PROTOCOLS.map(str::to_owned).to_vec(),
            ..Default::default()
        }),
        ..chain
    }
}

/// Lets the listener find out what is spoken.
fn detect(listener: &mut Listener) {
    listener.listener_filters = vec![http_inspector(&[])];
    listener.listener_filters_timeout = Some(DETECTION);
    listener.continue_on_listener_filters_timeout = true;
}

/// The ports that have a service with HTTP: there, connections to unknown addresses are routed by host.
pub(super) fn http_ports(outbound: &Outbound) -> BTreeSet<u16> {
    let ports = outbound.services.iter().flat_map(|service| &service.ports);
    ports
        .filter(|port| port.protocol.is_http() && !matches!(port.number, OUTBOUND_PORT | INBOUND_PORT))
        .map(|port| port.number)
        .collect()
}

/// The listener for unknown addresses on one port.
pub(super) fn by_host(ir: &Ir, number: u16) -> Listener {
    let name = format!("0.0.0.0_{number}");
    let unknown = match ir.mesh.outbound {
        OutboundMode::AllowAny => PASSTHROUGH,
        OutboundMode::RegistryOnly => BLACK_HOLE,
    };
    let services = ir.outbound.services.iter().flat_map(|service| &service.ports).filter(|port| port.number == number);
    let hosts = ir.outbound.hosts.iter().flat_map(|host| &host.routes).filter(|(port, _)| *port == number);
    // Who else is reached on the port by host may speak gRPC-Web as it is.
    let mut needs = HttpNeeds::default();
    for route in services.flat_map(|port| &port.http).chain(hosts.flat_map(|(_, routes)| routes)) {
        needs.cors |= route.cors.is_some();
        needs.fault |= route.fault.is_some();
    }
    let filter = http(&format!("outbound_{name}"), Routes::Named(number.to_string()), needs);
    let mut listener = Listener {
        address: Some(socket("0.0.0.0", number)),
        bind_to_port: Some(false),
        traffic_direction: TrafficDirection::Outbound.into(),
        filter_chains: vec![detected(chain("http", filter))],
        default_filter_chain: Some(chain("tcp", tcp(unknown, unknown))),
        name,
        ..Default::default()
    };
    detect(&mut listener);
    listener
}
