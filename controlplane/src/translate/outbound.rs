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
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => {
            listener.filter_chains = vec![chain("http", http(&stat_prefix, routes, needs))];
        }
        Protocol::Tcp | Protocol::Tls => {
            for (name, matching, target) in connections(port) {
                let chain = chain(&name, tcp_to(&stat_prefix, target, clusters));
                listener.filter_chains.push(FilterChain { filter_chain_match: Some(matching), ..chain });
            }
            let rest = port.tcp.as_ref().map(|target| chain("tcp", tcp_to(&stat_prefix, target, clusters)));
            listener.filter_chains.extend(rest);
            if port.connections.iter().any(|route| !route.server_names.is_empty()) {
                listener.listener_filters = vec![tls_inspector()];
            }
        }
        Protocol::Auto => {
            listener.filter_chains = vec![detected(chain("http", http(&stat_prefix, routes, needs)))];
            for (name, matching, target) in connections(port) {
                // A chain for an address hides those for any: HTTP stays HTTP there, too.
                let routes = Routes::Named(format!("{}:{}", service.service.host, port.number));
                let http = chain(&format!("http-{name}"), http(&stat_prefix, routes, needs));
                let both = FilterChainMatch {
                    application_protocols: HTTP_PROTOCOLS.map(str::to_owned).to_vec(),
                    ..matching.clone()
                };
                listener.filter_chains.push(FilterChain { filter_chain_match: Some(both), ..http });
                let chain = chain(&name, tcp_to(&stat_prefix, target, clusters));
                listener.filter_chains.push(FilterChain { filter_chain_match: Some(matching), ..chain });
            }
            listener.default_filter_chain =
                port.tcp.as_ref().map(|target| chain("tcp", tcp_to(&stat_prefix, target, clusters)));
            detect(&mut listener);
        }
    }
    listener
}

/// The chains for connections that ask for something certain: name, match and target. Envoy refuses two chains that a
/// connection could take alike; of those that ask for the same, the first is left.
fn connections(port: &OutboundPort) -> Vec<(String, FilterChainMatch, &TcpTarget)> {
    let mut taken: BTreeSet<(Option<&str>, Option<Subnet>, Option<Subnet>)> = BTreeSet::new();
    let mut chains = Vec::new();
    for (number, route) in port.connections.iter().enumerate() {
        let ConnectionRoute { server_names, destinations, source, target } = route;
        let mut names: Vec<Option<&str>> = server_names.iter().map(|name| Some(name.as_str())).collect();
        if names.is_empty() {
            names.push(None);
        }
        let mut subnets: Vec<Option<Subnet>> = destinations.iter().copied().map(Some).collect();
        if subnets.is_empty() {
            subnets.push(None);
        }
        let asked = names.iter().flat_map(|name| subnets.iter().map(move |subnet| (*name, *subnet, *source)));
        let asked: BTreeSet<_> = asked.collect();
        let free: Vec<_> = asked.iter().filter(|one| taken.insert(**one)).copied().collect();
        if free.len() == asked.len() {
            chains.push((format!("route-{number}"), matching(server_names, destinations, *source), target));
            continue;
        }
        for (part, (name, subnet, source)) in free.into_iter().enumerate() {
            let names: Vec<String> = name.map(str::to_owned).into_iter().collect();
            let subnets: Vec<Subnet> = subnet.into_iter().collect();
            chains.push((format!("route-{number}-{part}"), matching(&names, &subnets, source), target));
        }
    }
    chains
}

fn matching(server_names: &[String], destinations: &[Subnet], source: Option<Subnet>) -> FilterChainMatch {
    let range = |subnet: &Subnet| CidrRange {
        address_prefix: subnet.address.to_string(),
        prefix_len: Some(u32::from(subnet.length)),
    };
    let mut server_names = server_names.to_vec();
    server_names.sort();
    server_names.dedup();
    FilterChainMatch {
        server_names,
        prefix_ranges: destinations.iter().map(range).collect(),
        source_prefix_ranges: source.iter().map(range).collect(),
        ..Default::default()
    }
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
