//! The inbound listener: mutual TLS from workloads of the mesh, plain text from others where that is allowed, and the
//! app's own TLS passed through.

use std::collections::BTreeMap;

use leno_core::policy::ConnectionLimits;
use leno_core::service::InboundPort;
use leno_core::{MtlsMode, Protocol};
use leno_xds::envoy::config::cluster::v3::Cluster;
use leno_xds::envoy::config::core::v3::TrafficDirection;
use leno_xds::envoy::config::listener::v3::{AdditionalAddress, FilterChain, FilterChainMatch, Listener};
use leno_xds::envoy::config::route::v3 as route;
use leno_xds::envoy::config::route::v3::route_action::ClusterSpecifier;
use leno_xds::envoy::config::route::v3::route_match::PathSpecifier;

use super::clusters::{self, BLACK_HOLE, INBOUND_PASSTHROUGH};
use super::filters::{HttpNeeds, Routes, chain, http, http_inspector, original_dst, tcp, tls_inspector};
use super::forwards::STALE_CONNECTION;
use super::outbound::{DETECTION, HTTP_PROTOCOLS, INBOUND_PORT, own_metadata};
use super::routes::PEER_HEADER;
use super::tls::{self, ALPN_HTTP1, ALPN_HTTP2, ALPN_TCP};
use super::values::{ZERO, socket};
use crate::resolve::Ir;

/// What a chain takes, apart from the port.
enum Takes {
    /// Mutual TLS with one of these protocols offered.
    Mesh(&'static [&'static str]),
    /// Plain text that was found to be HTTP.
    PlainHttp,
    /// Plain text.
    Plain,
    /// The app's own TLS.
    OtherTls,
}

/// The name of the cluster for one of the workload's ports.
fn cluster_name(port: u16) -> String {
    format!("inbound|{port}||")
}

/// The clusters of the workload's own ports, and the one for others.
pub(super) fn clusters(ir: &Ir) -> BTreeMap<String, Cluster> {
    let own = ir.workload.inbound.values().map(|port| {
        let name = cluster_name(port.number);
        let limits = limits(ir, port).unwrap_or_default();
        let cluster = clusters::inbound(&name, port.protocol, Some((&port.service, &port.key)), &limits);
        (name, cluster)
    });
    let others = clusters::inbound(INBOUND_PASSTHROUGH, Protocol::Auto, None, &ConnectionLimits::default());
    own.chain([(INBOUND_PASSTHROUGH.to_owned(), others)]).collect()
}

/// The limits on connections and requests that a policy of the workload's namespace sets for its service: they hold at the receiving end
/// too, where all clients come together. What they say of versions is about clients.
fn limits(ir: &Ir, port: &InboundPort) -> Option<ConnectionLimits> {
    let services = &ir.outbound.services;
    let at = services.binary_search_by(|known| known.service.host.cmp(&port.service)).ok()?;
    let known = services[at].ports.iter().find(|known| known.number == port.service_port)?;
    let whole = known.clusters.first()?;
    let own = whole.origin.as_ref().is_some_and(|origin| origin.namespace == ir.workload.identity.namespace);
    let limits = whole.policy.connections.clone().filter(|_| own)?;
    Some(ConnectionLimits { upgrade_to_http2: None, use_client_protocol: false, ..limits })
}

/// The listener that all inbound connections arrive at.
pub(super) fn listener(ir: &Ir) -> Listener {
    let mut filter_chains = vec![FilterChain {
        // A connection to this very port would be passed on to itself for ever.
        filter_chain_match: Some(FilterChainMatch {
            destination_port: Some(u32::from(INBOUND_PORT)),
            ..Default::default()
        }),
        ..chain("virtualInbound-blackhole", tcp(BLACK_HOLE, BLACK_HOLE))
    }];
    let mut known = Vec::new();
    for port in ir.workload.inbound.values().filter(|port| port.number != INBOUND_PORT) {
        if port.protocol != Protocol::Auto {
            known.push(port.number);
        }
        filter_chains.extend(chains(ir, Some(port.number), port.protocol, &cluster_name(port.number)));
    }
    filter_chains.extend(chains(ir, None, Protocol::Auto, INBOUND_PASSTHROUGH));
    Listener {
        name: "virtualInbound".to_owned(),
        address: Some(socket("0.0.0.0", INBOUND_PORT)),
        additional_addresses: vec![AdditionalAddress {
            address: Some(socket("::", INBOUND_PORT)),
            ..Default::default()
        }],
        traffic_direction: TrafficDirection::Inbound.into(),
        metadata: Some(own_metadata(ir)),
        // First, since those that wait for bytes may time out (a server that speaks first), and what comes after them is
        // then left out; `use_original_dst` would put it last.
        listener_filters: vec![original_dst(), tls_inspector(), http_inspector(&known)],
        listener_filters_timeout: Some(DETECTION),
        continue_on_listener_filters_timeout: true,
        filter_chains,
        ..Default::default()
    }
}

/// The chains of one port, or of all others.
fn chains(ir: &Ir, port: Option<u16>, protocol: Protocol, cluster: &str) -> Vec<FilterChain> {
    let label = port.map_or_else(|| "virtualInbound".to_owned(), |port| port.to_string());
    let stat_prefix = port.map_or_else(|| INBOUND_PASSTHROUGH.to_owned(), |port| format!("inbound_0.0.0.0_{port}"));
    let grpc_web = protocol == Protocol::GrpcWeb;
    let needs = HttpNeeds { certificate: true, grpc_web, ..HttpNeeds::default() };
    let speaks_http = || http(&stat_prefix, Routes::Inline(Box::new(routes(port, cluster))), needs);
    let passes = || tcp(&stat_prefix, cluster);
    let make = |name: &str, takes: Takes, filter| made(ir, port, &format!("{label}-{name}"), &takes, filter);
    let mut chains = Vec::new();
    match protocol {
        Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb => {
            let all = Takes::Mesh(&[ALPN_HTTP1, ALPN_HTTP2, ALPN_TCP]);
            chains.push(make("mtls-http", all, speaks_http()));
        }
        Protocol::Tcp | Protocol::Tls => {
            chains.push(make("mtls-tcp", Takes::Mesh(&[ALPN_HTTP1, ALPN_HTTP2, ALPN_TCP]), passes()));
        }
        Protocol::Auto => {
            chains.push(make("mtls-http", Takes::Mesh(&[ALPN_HTTP1, ALPN_HTTP2]), speaks_http()));
            chains.push(make("mtls-tcp", Takes::Mesh(&[ALPN_TCP]), passes()));
        }
    }
    if ir.mesh.mtls == MtlsMode::Permissive {
        match protocol {
            Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb => {
                chains.push(make("plain-http", Takes::Plain, speaks_http()));
            }
            Protocol::Tcp | Protocol::Tls => chains.push(make("plain-tcp", Takes::Plain, passes())),
            Protocol::Auto => {
                chains.push(make("plain-http", Takes::PlainHttp, speaks_http()));
                chains.push(make("plain-tcp", Takes::Plain, passes()));
            }
        }
        chains.push(make("other-tls", Takes::OtherTls, passes()));
    }
    chains
}

fn made(
    ir: &Ir,
    port: Option<u16>,
    name: &str,
    takes: &Takes,
    filter: leno_xds::envoy::config::listener::v3::Filter,
) -> FilterChain {
    let owned = |protocols: &[&str]| protocols.iter().map(|protocol| (*protocol).to_owned()).collect();
    let (transport, protocols, transport_socket) = match takes {
        Takes::Mesh(protocols) => ("tls", owned(protocols), Some(tls::server(&ir.mesh.trust_domain))),
        Takes::PlainHttp => ("raw_buffer", owned(&HTTP_PROTOCOLS), None),
        Takes::Plain => ("raw_buffer", Vec::new(), None),
        Takes::OtherTls => ("tls", Vec::new(), None),
    };
    FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            destination_port: port.map(u32::from),
            transport_protocol: transport.to_owned(),
            application_protocols: protocols,
            ..Default::default()
        }),
        transport_socket,
        ..chain(name, filter)
    }
}

/// Everything to the workload. What says who calls is for the proxy's telemetry, not for the app.
fn routes(port: Option<u16>, cluster: &str) -> route::RouteConfiguration {
    let name = port.map_or_else(|| INBOUND_PASSTHROUGH.to_owned(), |port| format!("inbound|http|{port}"));
    let action = route::RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        timeout: Some(ZERO),
        // The app may just have closed a connection that was kept; it has not seen the request then.
        retry_policy: Some(route::RetryPolicy {
            retry_on: format!("reset-before-request,{STALE_CONNECTION}"),
            num_retries: Some(1),
            ..Default::default()
        }),
        ..Default::default()
    };
    route::RouteConfiguration {
        name: cluster.to_owned(),
        request_headers_to_remove: vec![PEER_HEADER.to_owned()],
        validate_clusters: Some(false),
        virtual_hosts: vec![route::VirtualHost {
            name,
            domains: vec!["*".to_owned()],
            routes: vec![route::Route {
                name: "default".to_owned(),
                r#match: Some(route::RouteMatch {
                    path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
                    ..Default::default()
                }),
                action: Some(route::route::Action::Route(action)),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}
