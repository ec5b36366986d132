//! Clusters (CDS): the services and subsets that a client can reach, and those that every proxy has.

use std::time::Duration;

use leno_core::MeshSettings;
use leno_core::policy::{Algorithm, ClientTls, ConnectionLimits, HashKey, TrafficPolicy};
use leno_core::service::Service;
use leno_xds::envoy::config::cluster::v3 as xds;
use leno_xds::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, DnsLookupFamily, EdsClusterConfig, LbPolicy, TransportSocketMatch,
};
use leno_xds::envoy::config::core::v3::{
    BindConfig, ExtraSourceAddress, SocketAddress, TransportSocket, socket_address::PortSpecifier,
};
use leno_xds::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
};
use prost_types::{ListValue, Struct, Value, value::Kind};

use super::cluster_options::{
    circuit_breakers, common_lb_config, http_options, keepalive, load_balancing, outlier_detection,
};
use super::tls::{self, Expected};
use super::values::{ads, config_path, duration, metadata, object, socket, text, truth};
use crate::resolve::{Cluster, ClusterName, Discovery};

/// Where connections to unknown destinations go.
pub(super) const PASSTHROUGH: &str = "PassthroughCluster";
/// As [`PASSTHROUGH`], for connections to the workload itself.
pub(super) const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";
/// A cluster without endpoints: requests are answered with 503, connections closed.
pub(super) const BLACK_HOLE: &str = "BlackHoleCluster";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a name is asked for again where DNS does not say.
const DNS_REFRESH: prost_types::Duration = prost_types::Duration { seconds: 60, nanos: 0 };

/// The cluster of a service port or of a subset of it.
pub(super) fn outbound(cluster: &Cluster, service: &Service, mesh: &MeshSettings) -> xds::Cluster {
    let Cluster { name, protocol, discovery, labels: _, spread, policy, identities: _, plain: _, origin, others: _ } =
        cluster;
    let limits = policy.connections.clone().unwrap_or_default();
    let (transport_socket, transport_socket_matches) = transport(cluster, service, mesh);
    let (lb_policy, lb_config) = match discovery {
        Discovery::OriginalDestination => (LbPolicy::ClusterProvided, None),
        Discovery::Endpoints | Discovery::Name(_) => load_balancing(policy.balancing.as_ref()),
    };
    let mut made = xds::Cluster {
        name: name.to_string(),
        connect_timeout: Some(duration(limits.connect_timeout.unwrap_or(CONNECT_TIMEOUT))),
        lb_policy: lb_policy.into(),
        lb_config,
        common_lb_config: common_lb_config(policy, spread),
        transport_socket_matches,
        transport_socket,
        circuit_breakers: Some(circuit_breakers(&limits, policy.retry_budget)),
        typed_extension_protocol_options: http_options(*protocol, policy),
        outlier_detection: policy.outliers.as_ref().map(outlier_detection),
        upstream_connection_options: limits.keepalive.map(keepalive),
        metadata: Some(metadata([
            ("istio", istio_metadata(service, origin.as_ref().map(config_path))),
            // A node that dies takes its pods along before anybody says so.
            ("leno", object([("skip_unreachable", truth(true))])),
        ])),
        ..Default::default()
    };
    let kind = match discovery {
        Discovery::OriginalDestination => DiscoveryType::OriginalDst,
        Discovery::Endpoints => {
            made.eds_cluster_config =
                Some(EdsClusterConfig { eds_config: Some(ads()), service_name: name.to_string() });
            DiscoveryType::Eds
        }
        Discovery::Name(host) => {
            made.load_assignment = Some(by_name(name, host));
            made.dns_lookup_family = DnsLookupFamily::V4Preferred.into();
            // A name that does not resolve must not hold back all other clusters when a proxy starts.
            made.wait_for_warm_on_init = Some(false);
            refresh(&mut made);
            DiscoveryType::StrictDns
        }
    };
    made.cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind.into()));
    made
}

/// What is spoken below HTTP: one for all endpoints, or by what an endpoint's metadata says.
fn transport(
    cluster: &Cluster,
    service: &Service,
    mesh: &MeshSettings,
) -> (Option<TransportSocket>, Vec<TransportSocketMatch>) {
    let Cluster { name, protocol, discovery, policy, identities, plain, .. } = cluster;
    let announced = |socket: TransportSocket| match policy.proxy_protocol {
        None => socket,
        Some(version) => tls::proxy_protocol(version, socket),
    };
    let sni = server_name(name);
    let (tls_settings, sni) = match &policy.tls {
        Some(ClientTls::Mesh { server_name: Some(own), .. }) => (&policy.tls, own),
        settings => (settings, &sni),
    };
    let alone = |socket: Option<TransportSocket>| {
        let socket = socket.or_else(|| policy.proxy_protocol.map(|_| tls::plain()));
        (socket.map(announced), Vec::new())
    };
    match (tls_settings, discovery) {
        (Some(ClientTls::Off), _) => alone(None),
        (Some(ClientTls::Simple(settings)), _) => {
            let alias = match discovery {
                Discovery::Name(host) if protocol.is_opaque() => Some(host.as_str()),
                _ => None,
            };
            let fallback = alias.unwrap_or(service.host.as_str());
            alone(Some(tls::simple(settings, *protocol, alias, fallback)))
        }
        (Some(ClientTls::Mesh { names, .. }), _) if !names.is_empty() => {
            alone(Some(tls::client(&Expected::Named(names), *protocol, sni)))
        }
        // There is one name for all of them and nothing says whose they are: outside the mesh, unless said otherwise.
        (None, Discovery::Name(_)) => alone(None),
        (mode, Discovery::OriginalDestination | Discovery::Name(_)) => {
            // The endpoint is whatever address the client asked for, and nothing says whose it is. So all must agree.
            let speaks = mode.is_some() || (!plain && !identities.is_empty());
            let expected = expected_of_all(identities.iter().collect(), service, mesh);
            alone(speaks.then(|| tls::client(&expected, *protocol, sni)))
        }
        (mode, Discovery::Endpoints) => {
            let mut matches: Vec<TransportSocketMatch> = identities
                .iter()
                .map(|identity| {
                    let uri = identity.to_string();
                    TransportSocketMatch {
                        r#match: Some(object([("identity", text(uri.as_str()))])),
                        transport_socket: Some(announced(tls::client(&Expected::Exactly(identity), *protocol, sni))),
                        name: uri,
                    }
                })
                .collect();
            if mode.is_some() {
                let expected = expected_of_all(Vec::new(), service, mesh);
                return (Some(announced(tls::client(&expected, *protocol, sni))), matches);
            }
            matches.push(TransportSocketMatch {
                name: "plain".to_owned(),
                r#match: Some(Struct::default()),
                transport_socket: Some(announced(tls::plain())),
            });
            (None, matches)
        }
    }
}

/// A name is asked for again when DNS says that its answer has ended.
#[expect(deprecated, reason = "the typed cluster that replaces these fields is not in the API that is served yet")]
fn refresh(cluster: &mut xds::Cluster) {
    cluster.dns_refresh_rate = Some(DNS_REFRESH);
    cluster.respect_dns_ttl = true;
}

/// The one endpoint of a cluster that is a name in DNS.
fn by_name(name: &ClusterName, host: &str) -> ClusterLoadAssignment {
    let endpoint = LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(socket(host, name.port)),
            ..Default::default()
        })),
        ..Default::default()
    };
    ClusterLoadAssignment {
        cluster_name: name.to_string(),
        endpoints: vec![LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..Default::default() }],
        ..Default::default()
    }
}

/// The server name that the client sends: the cluster's name in a form that is a host name, as Istio writes it.
fn server_name(name: &ClusterName) -> String {
    let subset = if name.subset.is_empty() { "_" } else { &name.subset };
    format!("outbound_.{}_.{subset}_.{}", name.port, name.host)
}

fn expected_of_all<'a>(
    identities: Vec<&'a leno_core::Identity>,
    service: &'a Service,
    mesh: &'a MeshSettings,
) -> Expected<'a> {
    if identities.is_empty() {
        Expected::OfNamespace(&mesh.trust_domain, &service.key.namespace)
    } else {
        Expected::OneOf(identities)
    }
}

fn istio_metadata(service: &Service, config: Option<String>) -> Struct {
    let named = object([
        ("host", text(service.host.as_str())),
        ("name", text(service.key.name.as_str())),
        ("namespace", text(service.key.namespace.as_str())),
    ]);
    let services = ListValue { values: vec![Value { kind: Some(Kind::StructValue(named)) }] };
    let services = ("services", Value { kind: Some(Kind::ListValue(services)) });
    object(std::iter::once(services).chain(config.map(|path| ("config", text(path)))))
}

/// The key that a cluster's requests are hashed by, if they are.
pub(super) fn hash_key(cluster: &Cluster) -> Option<&HashKey> {
    match &cluster.policy.balancing.as_ref()?.algorithm {
        Algorithm::Hash(key, _) => Some(key),
        _ => None,
    }
}

/// The workload itself on one of its ports. The source address keeps the connection from being captured again.
pub(super) fn inbound(
    name: &str,
    protocol: leno_core::Protocol,
    service: Option<(&leno_core::Host, &leno_core::ObjectKey)>,
    limits: &ConnectionLimits,
) -> xds::Cluster {
    let source = |address: &str| SocketAddress {
        address: address.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(0)),
        ..Default::default()
    };
    let described = service.map(|(host, key)| {
        let named = object([
            ("host", text(host.as_str())),
            ("name", text(key.name.as_str())),
            ("namespace", text(key.namespace.as_str())),
        ]);
        let services = ListValue { values: vec![Value { kind: Some(Kind::StructValue(named)) }] };
        metadata([("istio", object([("services", Value { kind: Some(Kind::ListValue(services)) })]))])
    });
    let policy = TrafficPolicy { connections: Some(limits.clone()), ..TrafficPolicy::default() };
    xds::Cluster {
        upstream_bind_config: Some(BindConfig {
            source_address: Some(source("127.0.0.6")),
            extra_source_addresses: vec![ExtraSourceAddress { address: Some(source("::6")), ..Default::default() }],
            ..Default::default()
        }),
        metadata: described,
        connect_timeout: Some(duration(limits.connect_timeout.unwrap_or(CONNECT_TIMEOUT))),
        circuit_breakers: Some(circuit_breakers(limits, None)),
        typed_extension_protocol_options: http_options(protocol, &policy),
        upstream_connection_options: limits.keepalive.map(keepalive),
        ..original_destination(name, protocol)
    }
}

/// The address that the client asked for.
pub(super) fn original_destination(name: &str, protocol: leno_core::Protocol) -> xds::Cluster {
    xds::Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst.into())),
        connect_timeout: Some(duration(CONNECT_TIMEOUT)),
        lb_policy: LbPolicy::ClusterProvided.into(),
        circuit_breakers: Some(circuit_breakers(&ConnectionLimits::default(), None)),
        typed_extension_protocol_options: http_options(protocol, &TrafficPolicy::default()),
        ..Default::default()
    }
}

/// Nothing at all.
pub(super) fn black_hole() -> xds::Cluster {
    xds::Cluster {
        name: BLACK_HOLE.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        connect_timeout: Some(duration(CONNECT_TIMEOUT)),
        ..Default::default()
    }
}
