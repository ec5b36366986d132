//! Clusters (CDS): the services and subsets that a client can reach, and those that every proxy has.

use std::collections::BTreeMap;
use std::time::Duration;

use leno_core::MeshSettings;
use leno_core::policy::{
    Algorithm, ClientTls, ConnectionLimits, HashKey, HashTable, Keepalive, OutlierDetection, TrafficPolicy, Warmup,
};
use leno_core::service::{Addressing, Service};
use leno_xds::any;
use leno_xds::envoy::config::cluster::v3 as xds;
use leno_xds::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbConfig, LbPolicy, LeastRequestLbConfig, MaglevLbConfig,
    RingHashLbConfig, RoundRobinLbConfig, SlowStartConfig, TransportSocketMatch,
};
use leno_xds::envoy::config::core::v3::{
    BindConfig, ExtraSourceAddress, Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as CommonHttp,
    KeepaliveSettings, RuntimeDouble, SocketAddress, TcpKeepalive, socket_address::PortSpecifier,
};
use leno_xds::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use leno_xds::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use leno_xds::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
};
use leno_xds::envoy::r#type::v3::Percent;
use prost_types::{ListValue, Struct, Value, value::Kind};

use super::tls::{self, Expected};
use super::values::{ads, config_path, duration, metadata, object, text};
use crate::resolve::{Cluster, ClusterName};

/// Where connections to unknown destinations go.
pub(super) const PASSTHROUGH: &str = "PassthroughCluster";
/// As [`PASSTHROUGH`], for connections to the workload itself.
pub(super) const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";
/// A cluster without endpoints: requests are answered with 503, connections closed.
pub(super) const BLACK_HOLE: &str = "BlackHoleCluster";

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Retries under way in percent of the requests under way, and as many are always allowed.
const RETRY_BUDGET: (f64, u32) = (20.0, 3);

/// The cluster of a service port or of a subset of it.
pub(super) fn outbound(cluster: &Cluster, service: &Service, mesh: &MeshSettings) -> xds::Cluster {
    let Cluster { name, protocol, labels: _, policy, identities, plain, origin } = cluster;
    let TrafficPolicy { balancing, connections, outliers, tls, retry_budget } = policy;
    let limits = connections.clone().unwrap_or_default();
    let algorithm = balancing.as_ref().map(|balancing| balancing.algorithm.clone()).unwrap_or_default();
    let headless = service.addressing == Addressing::Headless || algorithm == Algorithm::Passthrough;

    let sni = server_name(name);
    let mut matches = Vec::new();
    let mut transport_socket = None;
    if *tls != Some(ClientTls::Off) {
        if headless {
            // The endpoint is whatever address the client asked for, and nothing says whose it is. So all must agree.
            if *tls == Some(ClientTls::Mesh) || (!plain && !identities.is_empty()) {
                let expected = expected_of_all(identities.iter().collect(), service, mesh);
                transport_socket = Some(tls::client(&expected, *protocol, &sni));
            }
        } else {
            for identity in identities {
                let uri = identity.to_string();
                matches.push(TransportSocketMatch {
                    r#match: Some(object([("identity", text(uri.as_str()))])),
                    transport_socket: Some(tls::client(&Expected::Exactly(identity), *protocol, &sni)),
                    name: uri,
                });
            }
            if *tls == Some(ClientTls::Mesh) {
                let expected = expected_of_all(Vec::new(), service, mesh);
                transport_socket = Some(tls::client(&expected, *protocol, &sni));
            } else {
                matches.push(TransportSocketMatch {
                    name: "plain".to_owned(),
                    r#match: Some(Struct::default()),
                    transport_socket: Some(tls::plain()),
                });
            }
        }
    }

    let (lb_policy, lb_config) = if headless {
        (LbPolicy::ClusterProvided, None)
    } else {
        load_balancing(&algorithm, balancing.as_ref().and_then(|balancing| balancing.warmup))
    };
    let discovery = if headless { DiscoveryType::OriginalDst } else { DiscoveryType::Eds };
    let (budget, minimum) = retry_budget.map_or(RETRY_BUDGET, |budget| (budget.percent, budget.min_concurrency));
    xds::Cluster {
        name: name.to_string(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(discovery.into())),
        eds_cluster_config: (!headless)
            .then(|| EdsClusterConfig { eds_config: Some(ads()), service_name: name.to_string() }),
        connect_timeout: Some(duration(limits.connect_timeout.unwrap_or(CONNECT_TIMEOUT))),
        lb_policy: lb_policy.into(),
        lb_config,
        transport_socket_matches: matches,
        transport_socket,
        circuit_breakers: Some(circuit_breakers(&limits, budget, minimum)),
        typed_extension_protocol_options: http_options(*protocol, &limits),
        outlier_detection: outliers.as_ref().map(outlier_detection),
        upstream_connection_options: limits.keepalive.map(keepalive),
        metadata: Some(metadata([("istio", istio_metadata(service, origin.as_ref().map(config_path)))])),
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

fn load_balancing(algorithm: &Algorithm, warmup: Option<Warmup>) -> (LbPolicy, Option<LbConfig>) {
    let slow_start_config = warmup.map(|Warmup { duration: window, minimum_percent, aggression }| SlowStartConfig {
        slow_start_window: Some(duration(window)),
        aggression: Some(RuntimeDouble { default_value: aggression, runtime_key: "warmup".to_owned() }),
        min_weight_percent: Some(Percent { value: minimum_percent }),
    });
    match algorithm {
        Algorithm::LeastRequest | Algorithm::Passthrough => {
            let config = LeastRequestLbConfig { slow_start_config, ..Default::default() };
            let config = config.slow_start_config.is_some().then_some(LbConfig::LeastRequestLbConfig(config));
            (LbPolicy::LeastRequest, config)
        }
        Algorithm::RoundRobin => {
            let config = RoundRobinLbConfig { slow_start_config };
            let config = config.slow_start_config.is_some().then_some(LbConfig::RoundRobinLbConfig(config));
            (LbPolicy::RoundRobin, config)
        }
        Algorithm::Random => (LbPolicy::Random, None),
        Algorithm::Hash(_, HashTable::Ring(size)) => {
            let config = RingHashLbConfig { minimum_ring_size: Some(*size), ..Default::default() };
            (LbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(config)))
        }
        Algorithm::Hash(_, HashTable::Maglev(size)) => {
            (LbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(MaglevLbConfig { table_size: Some(*size) })))
        }
    }
}

/// The key that a cluster's requests are hashed by, if they are.
pub(super) fn hash_key(cluster: &Cluster) -> Option<&HashKey> {
    match &cluster.policy.balancing.as_ref()?.algorithm {
        Algorithm::Hash(key, _) => Some(key),
        _ => None,
    }
}

fn circuit_breakers(limits: &ConnectionLimits, budget: f64, minimum: u32) -> xds::CircuitBreakers {
    use xds::circuit_breakers::{Thresholds, thresholds::RetryBudget};
    let ConnectionLimits { max_connections, max_pending, max_requests, max_retries, .. } = limits;
    // A budget and a plain limit exclude each other in Envoy; who wrote a limit wants that.
    let retry_budget = max_retries.is_none().then(|| RetryBudget {
        budget_percent: Some(Percent { value: budget }),
        min_retry_concurrency: Some(minimum),
        ..Default::default()
    });
    xds::CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: Some(max_connections.unwrap_or(u32::MAX)),
            max_pending_requests: Some(max_pending.unwrap_or(u32::MAX)),
            max_requests: Some(max_requests.unwrap_or(u32::MAX)),
            max_retries: *max_retries,
            retry_budget,
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn http_options(protocol: leno_core::Protocol, limits: &ConnectionLimits) -> BTreeMap<String, prost_types::Any> {
    let http2 = Http2ProtocolOptions {
        max_concurrent_streams: limits.max_concurrent_streams,
        connection_keepalive: limits.http2_keepalive.map(|(interval, timeout)| KeepaliveSettings {
            interval: Some(duration(interval)),
            timeout: Some(duration(timeout)),
            ..Default::default()
        }),
        ..Default::default()
    };
    let http1 = Http1ProtocolOptions::default();
    let explicit =
        |config| UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(config) });
    let options = if protocol.is_http2() || limits.upgrade_to_http2 == Some(true) {
        explicit(ProtocolConfig::Http2ProtocolOptions(http2))
    } else if protocol == leno_core::Protocol::Http && !limits.use_client_protocol {
        explicit(ProtocolConfig::HttpProtocolOptions(http1))
    } else if protocol == leno_core::Protocol::Tcp {
        return BTreeMap::new();
    } else {
        UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
            http_protocol_options: Some(http1),
            http2_protocol_options: Some(http2),
            ..Default::default()
        })
    };
    let common =
        (limits.http_idle_timeout.is_some() || limits.max_requests_per_connection.is_some()).then(|| CommonHttp {
            idle_timeout: limits.http_idle_timeout.map(duration),
            max_requests_per_connection: limits.max_requests_per_connection,
            ..Default::default()
        });
    let options = HttpProtocolOptions {
        common_http_protocol_options: common,
        upstream_protocol_options: Some(options),
        ..Default::default()
    };
    BTreeMap::from([(HTTP_OPTIONS.to_owned(), any(&options))])
}

fn outlier_detection(outliers: &OutlierDetection) -> xds::OutlierDetection {
    let OutlierDetection {
        consecutive_5xx,
        consecutive_gateway,
        consecutive_local,
        split_local,
        interval,
        base_ejection,
        max_ejection_percent,
        min_health_percent: _,
    } = outliers;
    let enforcing = |count: &Option<u32>| count.map(|count| if count > 0 { 100 } else { 0 });
    xds::OutlierDetection {
        consecutive_5xx: consecutive_5xx.filter(|count| *count > 0),
        enforcing_consecutive_5xx: enforcing(consecutive_5xx),
        consecutive_gateway_failure: consecutive_gateway.filter(|count| *count > 0),
        enforcing_consecutive_gateway_failure: enforcing(consecutive_gateway),
        consecutive_local_origin_failure: consecutive_local.filter(|count| *count > 0),
        enforcing_consecutive_local_origin_failure: enforcing(consecutive_local),
        split_external_local_origin_errors: *split_local,
        interval: interval.map(duration),
        base_ejection_time: base_ejection.map(duration),
        max_ejection_percent: *max_ejection_percent,
        // Success rates are not what was asked for.
        enforcing_success_rate: Some(0),
        ..Default::default()
    }
}

fn keepalive(keepalive: Keepalive) -> xds::UpstreamConnectionOptions {
    let Keepalive { probes, time, interval } = keepalive;
    let seconds = |duration: Duration| u32::try_from(duration.as_secs().max(1)).unwrap_or(u32::MAX);
    xds::UpstreamConnectionOptions {
        tcp_keepalive: Some(TcpKeepalive {
            keepalive_probes: probes,
            keepalive_time: time.map(seconds),
            keepalive_interval: interval.map(seconds),
        }),
        ..Default::default()
    }
}

/// The workload itself on one of its ports. The source address keeps the connection from being captured again.
pub(super) fn inbound(
    name: &str,
    protocol: leno_core::Protocol,
    service: Option<(&leno_core::Host, &leno_core::ObjectKey)>,
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
    xds::Cluster {
        upstream_bind_config: Some(BindConfig {
            source_address: Some(source("127.0.0.6")),
            extra_source_addresses: vec![ExtraSourceAddress { address: Some(source("::6")), ..Default::default() }],
            ..Default::default()
        }),
        metadata: described,
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
        circuit_breakers: Some(circuit_breakers(&ConnectionLimits::default(), RETRY_BUDGET.0, RETRY_BUDGET.1)),
        typed_extension_protocol_options: http_options(protocol, &ConnectionLimits::default()),
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
