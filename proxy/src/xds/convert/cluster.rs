//! Clusters and their endpoints.
//!
//! A cluster comes in two resources: itself, and its endpoints. The [`Template`] is the first, converted; with the
//! second it becomes a [`Cluster`] of the configuration tree. Which TLS an endpoint is talked to with is chosen here, by
//! the endpoint's metadata, so that no request has to.

use super::common::{address, filter_metadata, from_ads, maybe_duration, optional, socket, text, unknown_type};
use super::{Context, Converted, Refused, Within as _, http, refuse, tls};
use crate::config::{
    ClientTls, Cluster, ClusterKind, Endpoint, Health, LbPolicy, Limits, RetryBudget, SourceBind, UpstreamProtocol,
};
use crate::telemetry::{ServiceLabels, WorkloadLabels};
use leno_xds::envoy::config::cluster::v3 as xds;
use leno_xds::envoy::config::cluster::v3::{
    circuit_breakers::{Thresholds, thresholds},
    cluster::{
        ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbConfig, LeastRequestLbConfig,
        RoundRobinLbConfig, TransportSocketMatch,
    },
};
use leno_xds::envoy::config::core::v3::{
    BindConfig, ExtraSourceAddress, HealthStatus, HttpProtocolOptions as CommonOptions, Metadata, TcpKeepalive,
};
use leno_xds::envoy::config::endpoint::v3 as eds;
use leno_xds::envoy::config::endpoint::v3::{cluster_load_assignment::Policy, lb_endpoint::HostIdentifier};
use leno_xds::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions,
    http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig, explicit_http_config::ProtocolConfig,
    },
};
use prost_types::{ListValue, Struct, Value, value::Kind};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Key of the HTTP options among a cluster's typed options.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Metadata by which a transport socket is chosen.
const SOCKET_MATCH: &str = "envoy.transport_socket_match";

/// A cluster but for endpoints that come on their own.
#[derive(Debug)]
pub struct Template {
    /// The cluster, without endpoints unless they are static.
    cluster: Cluster,
    /// Name of the resource with its endpoints, for [`ClusterKind::Eds`].
    pub endpoints: Option<String>,
    matches: Vec<SocketMatch>,
}

#[derive(Debug)]
struct SocketMatch {
    wanted: Struct,
    tls: Option<Arc<ClientTls>>,
}

impl Template {
    /// The cluster with these endpoints. `own` is the workload that inbound traffic is for.
    pub fn build(&self, endpoints: Vec<Arc<Endpoint>>, own: &Arc<WorkloadLabels>) -> Arc<Cluster> {
        let shape = &self.cluster;
        let inbound = shape.name.starts_with("inbound|") || &*shape.name == "InboundPassthroughCluster";
        let endpoints = if shape.kind == ClusterKind::Eds { endpoints } else { shape.endpoints.clone() };
        Arc::new(Cluster {
            id: shape.id,
            name: shape.name.clone(),
            kind: shape.kind,
            policy: shape.policy,
            balancing: shape.balancing.clone(),
            endpoints,
            spread: shape.spread,
            limits: shape.limits,
            connect_timeout: shape.connect_timeout,
            idle_timeout: shape.idle_timeout,
            max_requests_per_connection: shape.max_requests_per_connection,
            protocol: shape.protocol,
            default_tls: shape.default_tls.clone(),
            bind: shape.bind,
            keepalive: shape.keepalive,
            destination: if inbound { own.clone() } else { shape.destination.clone() },
            service: shape.service.clone(),
            origin: shape.origin.clone(),
        })
    }

    /// The endpoints in a load assignment, as this cluster talks to them.
    ///
    /// # Errors
    /// Names the field that is not supported.
    pub fn endpoints(&self, context: &mut Context, value: eds::ClusterLoadAssignment) -> Converted<Vec<Arc<Endpoint>>> {
        let eds::ClusterLoadAssignment { cluster_name: _, endpoints, named_endpoints, policy } = value;
        refuse!(named_endpoints);
        if let Some(policy) = policy {
            let Policy { drop_overloads, overprovisioning_factor: _, endpoint_stale_after, weighted_priority_health } =
                policy;
            refuse!(drop_overloads, endpoint_stale_after, weighted_priority_health);
        }
        let mut found = Vec::new();
        for (index, locality) in endpoints.into_iter().enumerate() {
            let within = format!("endpoints[{index}]");
            let eds::LocalityLbEndpoints {
                locality: _,
                metadata: _,
                lb_endpoints,
                // Endpoints are weighed one by one; localities only order them by priority.
                load_balancing_weight: _,
                priority,
                proximity: _,
                lb_config,
            } = locality;
            super::refuse_set(&lb_config, "lb_config").within(&within)?;
            for (index, value) in lb_endpoints.into_iter().enumerate() {
                let endpoint = self.endpoint(context, value, priority);
                found.push(Arc::new(endpoint.within(format_args!("{within}.lb_endpoints[{index}]"))?));
            }
        }
        Ok(found)
    }

    fn endpoint(&self, context: &mut Context, value: eds::LbEndpoint, priority: u32) -> Converted<Endpoint> {
        let eds::LbEndpoint { health_status, metadata, load_balancing_weight, host_identifier } = value;
        let endpoint = match host_identifier {
            Some(HostIdentifier::Endpoint(endpoint)) => endpoint,
            Some(HostIdentifier::EndpointName(_)) => {
                return Err(Refused::new("endpoint_name", "is not supported by this proxy"));
            }
            None => return Err(Refused::new("endpoint", "is missing")),
        };
        let eds::Endpoint {
            address: first,
            health_check_config: _,
            hostname: _,
            additional_addresses,
            observability_name: _,
        } = endpoint;
        super::refuse_set(&additional_addresses, "endpoint.additional_addresses")?;
        let health = match HealthStatus::try_from(health_status) {
            Ok(HealthStatus::Unknown | HealthStatus::Healthy) => Health::Healthy,
            Ok(HealthStatus::Degraded) => Health::Degraded,
            Ok(HealthStatus::Draining) => Health::Draining,
            Ok(HealthStatus::Unhealthy | HealthStatus::Timeout) | Err(_) => Health::Unhealthy,
        };
        let labels = filter_metadata(metadata.as_ref(), SOCKET_MATCH);
        let identity = labels.and_then(|labels| text(labels, "identity"));
        let workload = filter_metadata(metadata.as_ref(), "istio").and_then(|fields| text(fields, "workload"));
        let workload = match (workload, identity) {
            (None, None) => WorkloadLabels::unknown(),
            (workload, identity) => WorkloadLabels::from_endpoint(workload.unwrap_or_default(), identity),
        };
        let empty = Struct::default();
        let labels = labels.unwrap_or(&empty);
        let tls = match self.matches.iter().find(|candidate| contains(labels, &candidate.wanted)) {
            Some(found) => found.tls.clone(),
            None => self.cluster.default_tls.clone(),
        };
        Ok(Endpoint {
            address: address(first).within("endpoint.address")?,
            weight: load_balancing_weight.unwrap_or(1).max(1),
            health,
            priority,
            excluded: false,
            locality: Arc::default(),
            hostname: None,
            labels: Arc::default(),
            tls,
            workload: context.workload(workload),
        })
    }
}

/// Whether every wanted label is there with the wanted value.
fn contains(labels: &Struct, wanted: &Struct) -> bool {
    wanted.fields.iter().all(|(name, value)| labels.fields.get(name) == Some(value))
}

/// A cluster.
pub fn template(context: &mut Context, value: xds::Cluster) -> Converted<Template> {
    let xds::Cluster {
        transport_socket_matches,
        transport_socket_matcher,
        name,
        alt_stat_name: _,
        stats_matcher: _,
        eds_cluster_config,
        connect_timeout,
        per_connection_buffer_limit_bytes: _,
        per_connection_buffer_high_watermark_timeout: _,
        lb_policy,
        load_assignment,
        health_checks,
        max_requests_per_connection,
        circuit_breakers,
        upstream_http_protocol_options,
        common_http_protocol_options,
        http_protocol_options,
        http2_protocol_options,
        typed_extension_protocol_options,
        dns_refresh_rate: _,
        dns_jitter: _,
        dns_failure_refresh_rate: _,
        respect_dns_ttl: _,
        dns_lookup_family: _,
        dns_resolvers,
        use_tcp_for_dns_lookups: _,
        dns_resolution_config: _,
        typed_dns_resolver_config: _,
        wait_for_warm_on_init: _,
        // Reported in status: endpoints that keep failing are not taken out yet.
        outlier_detection: _,
        cleanup_interval: _,
        upstream_bind_config,
        lb_subset_config,
        common_lb_config,
        transport_socket,
        metadata,
        protocol_selection,
        upstream_connection_options,
        close_connections_on_host_health_failure: _,
        ignore_health_on_host_removal: _,
        filters,
        load_balancing_policy,
        lrs_server: _,
        lrs_report_endpoint_metrics: _,
        track_timeout_budgets: _,
        upstream_config,
        track_cluster_stats: _,
        preconnect_policy: _,
        connection_pool_per_downstream_connection,
        queuing_policies,
        cluster_discovery_type,
        lb_config,
    } = value;
    refuse!(
        transport_socket_matcher,
        health_checks,
        upstream_http_protocol_options,
        common_http_protocol_options,
        http_protocol_options,
        http2_protocol_options,
        dns_resolvers,
        lb_subset_config,
        protocol_selection,
        filters,
        load_balancing_policy,
        upstream_config,
        connection_pool_per_downstream_connection,
        queuing_policies
    );
    let id = context.cluster(&name).within("name")?;
    let kind = match cluster_discovery_type {
        None => ClusterKind::Static,
        Some(ClusterDiscoveryType::Type(kind)) => match DiscoveryType::try_from(kind) {
            Ok(DiscoveryType::Static) => ClusterKind::Static,
            Ok(DiscoveryType::Eds) => ClusterKind::Eds,
            Ok(DiscoveryType::OriginalDst) => ClusterKind::OriginalDst,
            Ok(DiscoveryType::StrictDns | DiscoveryType::LogicalDns) | Err(_) => {
                return Err(Refused::new("type", "other than STATIC, EDS and ORIGINAL_DST is not supported"));
            }
        },
        Some(ClusterDiscoveryType::ClusterType(_)) => {
            return Err(Refused::new("cluster_type", "is not supported by this proxy"));
        }
    };
    let endpoints = match (kind, eds_cluster_config) {
        (ClusterKind::Eds, Some(EdsClusterConfig { eds_config, service_name })) => {
            from_ads(eds_config).within("eds_cluster_config.eds_config")?;
            Some(if service_name.is_empty() { name.clone() } else { service_name })
        }
        (ClusterKind::Eds, None) => return Err(Refused::new("eds_cluster_config", "is missing")),
        (_, Some(_)) => return Err(Refused::new("eds_cluster_config", "belongs to type EDS only")),
        (_, None) => None,
    };
    let mut matches = Vec::with_capacity(transport_socket_matches.len());
    for (index, value) in transport_socket_matches.into_iter().enumerate() {
        let TransportSocketMatch { name: _, r#match: wanted, transport_socket } = value;
        let tls = tls::client(context, transport_socket);
        let tls = tls.within(format_args!("transport_socket_matches[{index}].transport_socket"))?;
        matches.push(SocketMatch { wanted: wanted.unwrap_or_default(), tls });
    }
    // Original destinations have no labels: an entry that asks for none is theirs.
    let default_tls = match matches.iter().find(|candidate| candidate.wanted.fields.is_empty()) {
        Some(found) if kind == ClusterKind::OriginalDst => found.tls.clone(),
        _ => tls::client(context, transport_socket).within("transport_socket")?,
    };
    let mut cluster = Cluster::new(id, name.as_str(), kind);
    cluster.policy = policy(lb_policy, lb_config, kind)?;
    common_lb(common_lb_config).within("common_lb_config")?;
    cluster.default_tls = default_tls;
    cluster.limits = limits(circuit_breakers).within("circuit_breakers")?;
    if let Some(limit) = maybe_duration(connect_timeout, "connect_timeout")? {
        cluster.connect_timeout = limit;
    }
    cluster.max_requests_per_connection = max_requests_per_connection.unwrap_or(0);
    cluster.bind = upstream_bind_config.map(bind).transpose().within("upstream_bind_config")?;
    cluster.keepalive = match upstream_connection_options {
        None => None,
        Some(options) => {
            let xds::UpstreamConnectionOptions {
                tcp_keepalive,
                set_local_interface_name_on_upstream_connections: _,
                happy_eyeballs_config: _,
            } = options;
            tcp_keepalive.map(keepalive)
        }
    };
    if let Some(labels) = service(metadata.as_ref()) {
        cluster.service = labels;
    }
    cluster.service = context.service(cluster.service);
    cluster.destination = context.workload(cluster.destination);
    cluster.origin = super::route::origin(metadata.as_ref());
    for (key, any) in typed_extension_protocol_options {
        let within = format!("typed_extension_protocol_options[{key}]");
        match optional::<HttpProtocolOptions>(&any).within(&within)? {
            Some(options) if key == HTTP_OPTIONS => http_options(&mut cluster, options).within(within)?,
            _ => return Err(unknown_type(&any).within(within)),
        }
    }
    let mut template = Template { cluster, endpoints, matches };
    if let Some(assignment) = load_assignment {
        if kind != ClusterKind::Static {
            return Err(Refused::new("load_assignment", "belongs to type STATIC only"));
        }
        template.cluster.endpoints = template.endpoints(context, assignment).within("load_assignment")?;
    }
    Ok(template)
}

fn policy(lb_policy: i32, config: Option<LbConfig>, kind: ClusterKind) -> Converted<LbPolicy> {
    if kind == ClusterKind::OriginalDst {
        return match config {
            None => Ok(LbPolicy::RoundRobin),
            Some(_) => Err(Refused::new("lb_config", "is not supported by this proxy for original destinations")),
        };
    }
    match (xds::cluster::LbPolicy::try_from(lb_policy), config) {
        (Ok(xds::cluster::LbPolicy::RoundRobin), None) => Ok(LbPolicy::RoundRobin),
        (Ok(xds::cluster::LbPolicy::RoundRobin), Some(LbConfig::RoundRobinLbConfig(config))) => {
            // Reported in status: new endpoints get their full share at once.
            let RoundRobinLbConfig { slow_start_config: _ } = config;
            Ok(LbPolicy::RoundRobin)
        }
        // Reported in status: balancing does not hash yet.
        (Ok(xds::cluster::LbPolicy::RingHash), None | Some(LbConfig::RingHashLbConfig(_)))
        | (Ok(xds::cluster::LbPolicy::Maglev), None | Some(LbConfig::MaglevLbConfig(_))) => {
            Ok(LbPolicy::LeastRequest { choices: 2 })
        }
        (Ok(xds::cluster::LbPolicy::Random), None) => Ok(LbPolicy::Random),
        (Ok(xds::cluster::LbPolicy::LeastRequest), None) => Ok(LbPolicy::LeastRequest { choices: 2 }),
        (Ok(xds::cluster::LbPolicy::LeastRequest), Some(LbConfig::LeastRequestLbConfig(config))) => {
            let LeastRequestLbConfig { choice_count, active_request_bias, slow_start_config: _ } = config;
            super::refuse_set(&active_request_bias, "least_request_lb_config.active_request_bias")?;
            Ok(LbPolicy::LeastRequest { choices: choice_count.unwrap_or(2).max(2) })
        }
        (Ok(_), Some(_)) => Err(Refused::new("lb_config", "is not supported by this proxy with this lb_policy")),
        (policy, None) => Err(Refused::new(
            "lb_policy",
            format!("{policy:?} is not supported; use ROUND_ROBIN, LEAST_REQUEST or RANDOM"),
        )),
        (Err(_), Some(_)) => Err(Refused::new("lb_policy", "is not known to this proxy")),
    }
}

fn common_lb(value: Option<CommonLbConfig>) -> Converted<()> {
    let Some(CommonLbConfig {
        healthy_panic_threshold: _,
        update_merge_window: _,
        ignore_new_hosts_until_first_hc: _,
        close_connections_on_host_set_change,
        consistent_hashing_lb_config: _,
        override_host_status: _,
        locality_config_specifier,
    }) = value
    else {
        return Ok(());
    };
    refuse!(close_connections_on_host_set_change, locality_config_specifier);
    Ok(())
}

fn limits(value: Option<xds::CircuitBreakers>) -> Converted<Limits> {
    let mut limits = Limits::default();
    let Some(xds::CircuitBreakers { thresholds, per_host_thresholds }) = value else { return Ok(limits) };
    refuse!(per_host_thresholds);
    for (index, threshold) in thresholds.into_iter().enumerate() {
        let Thresholds {
            priority,
            max_connections,
            max_pending_requests,
            max_requests,
            max_retries,
            retry_budget,
            track_remaining: _,
            max_connection_pools: _,
        } = threshold;
        if priority != 0 {
            return Err(Refused::new(format!("thresholds[{index}].priority"), "other than DEFAULT is not supported"));
        }
        limits.connections = max_connections.unwrap_or(limits.connections);
        limits.pending = max_pending_requests.unwrap_or(limits.pending);
        limits.requests = max_requests.unwrap_or(limits.requests);
        limits.retries = max_retries.unwrap_or(limits.retries);
        limits.retry_budget = retry_budget.map(|budget| {
            let thresholds::RetryBudget { budget_percent, budget_interval: _, min_retry_concurrency } = budget;
            RetryBudget {
                percent: budget_percent.map_or(20.0, |percent| percent.value),
                min_concurrency: min_retry_concurrency.unwrap_or(3),
            }
        });
    }
    Ok(limits)
}

fn bind(value: BindConfig) -> Converted<SourceBind> {
    let BindConfig {
        source_address,
        freebind: _,
        socket_options,
        extra_source_addresses,
        additional_source_addresses,
        local_address_selector,
        validate_network_namespaces: _,
    } = value;
    refuse!(socket_options, additional_source_addresses, local_address_selector);
    let mut bind = SourceBind { v4: None, v6: None };
    let extra = extra_source_addresses.into_iter().map(|extra| {
        let ExtraSourceAddress { address, socket_options } = extra;
        super::refuse_set(&socket_options, "extra_source_addresses.socket_options")?;
        Ok(address)
    });
    for value in std::iter::once(Ok(source_address)).chain(extra) {
        let Some(value) = value? else { continue };
        let address = socket(value).within("source_address")?;
        if address.port() != 0 {
            return Err(Refused::new("source_address.port_value", "other than 0 is not supported"));
        }
        match address.ip() {
            IpAddr::V4(ip) => bind.v4 = Some(ip),
            IpAddr::V6(ip) => bind.v6 = Some(ip),
        }
    }
    Ok(bind)
}

/// How often the kernel probes before it gives up is left to the kernel.
fn keepalive(value: TcpKeepalive) -> (Duration, Duration) {
    let TcpKeepalive { keepalive_probes: _, keepalive_time, keepalive_interval } = value;
    let seconds = |value: Option<u32>, default: u64| Duration::from_secs(value.map_or(default, u64::from).max(1));
    (seconds(keepalive_time, 7200), seconds(keepalive_interval, 75))
}

fn http_options(cluster: &mut Cluster, value: HttpProtocolOptions) -> Converted<()> {
    let HttpProtocolOptions {
        common_http_protocol_options,
        upstream_http_protocol_options,
        http_filters,
        header_validation_config,
        outlier_detection,
        request_mirror_policies,
        hash_policy,
        retry_policy,
        upstream_protocol_options,
    } = value;
    refuse!(
        upstream_http_protocol_options,
        http_filters,
        header_validation_config,
        outlier_detection,
        request_mirror_policies,
        hash_policy,
        retry_policy
    );
    if let Some(common) = common_http_protocol_options {
        let CommonOptions {
            idle_timeout,
            max_connection_duration,
            max_connection_duration_jitter: _,
            max_headers_count: _,
            max_response_headers_kb: _,
            max_stream_duration,
            headers_with_underscores_action: _,
            max_requests_per_connection,
        } = common;
        let within = "common_http_protocol_options";
        super::refuse_set(&max_connection_duration, "max_connection_duration").within(within)?;
        super::refuse_set(&max_stream_duration, "max_stream_duration").within(within)?;
        if let Some(limit) = maybe_duration(idle_timeout, "idle_timeout").within(within)? {
            cluster.idle_timeout = limit;
        }
        if let Some(limit) = max_requests_per_connection {
            cluster.max_requests_per_connection = limit;
        }
    }
    cluster.protocol = match upstream_protocol_options {
        None => return Err(Refused::new("upstream_protocol_options", "is missing")),
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config })) => {
            match protocol_config {
                None => UpstreamProtocol::Http1,
                Some(ProtocolConfig::HttpProtocolOptions(options)) => {
                    http::http1(Some(options)).within("explicit_http_config.http_protocol_options")?;
                    UpstreamProtocol::Http1
                }
                Some(ProtocolConfig::Http2ProtocolOptions(options)) => {
                    http::http2(Some(options)).within("explicit_http_config.http2_protocol_options")?;
                    UpstreamProtocol::Http2
                }
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                    return Err(Refused::new("explicit_http_config.http3_protocol_options", "is not supported"));
                }
            }
        }
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(config)) => {
            let UseDownstreamHttpConfig { http_protocol_options, http2_protocol_options, http3_protocol_options: _ } =
                config;
            http::http1(http_protocol_options).within("use_downstream_protocol_config.http_protocol_options")?;
            http::http2(http2_protocol_options).within("use_downstream_protocol_config.http2_protocol_options")?;
            UpstreamProtocol::Follow
        }
        Some(UpstreamProtocolOptions::AutoConfig(_)) => {
            return Err(Refused::new("auto_config", "is not supported by this proxy"));
        }
    };
    Ok(())
}

/// The first service in a cluster's metadata.
fn service(metadata: Option<&Metadata>) -> Option<Arc<ServiceLabels>> {
    let fields = filter_metadata(metadata, "istio")?;
    let Some(Value { kind: Some(Kind::ListValue(ListValue { values })) }) = fields.fields.get("services") else {
        return None;
    };
    let Some(Value { kind: Some(Kind::StructValue(first)) }) = values.first() else { return None };
    let get = |name| text(first, name).unwrap_or_default();
    Some(ServiceLabels::new(get("host"), get("name"), get("namespace")))
}
