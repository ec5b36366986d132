//! Listeners and their filter chains.

use super::common::{access_log, address, filter_metadata, maybe_duration, optional, text, unknown_type};
use super::http::{Tables, manager};
use super::{Context, Converted, Refused, Within as _, refuse, tls};
use crate::config::{
    ChainMatch, ClusterId, Direction, FilterChain, Inspect, Listener, Network, PortSet, TcpProxy, TcpTarget, Transport,
};
use crate::telemetry::WorkloadLabels;
use leno_xds::envoy::config::core::v3::{Metadata, TrafficDirection};
use leno_xds::envoy::config::listener::v3 as xds;
use leno_xds::envoy::config::listener::v3::{
    ListenerFilterChainMatchPredicate, filter,
    listener::DeprecatedV1,
    listener_filter,
    listener_filter_chain_match_predicate::{MatchSet, Rule},
};
use leno_xds::envoy::extensions::filters::listener::{
    http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst, tls_inspector::v3::TlsInspector,
};
use leno_xds::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use leno_xds::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use leno_xds::envoy::r#type::v3::Int32Range;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Envoy's default for the time that listener filters may take.
const DEFAULT_DETECT_TIMEOUT: Duration = Duration::from_secs(15);

/// A listener with what it depends on.
#[derive(Debug)]
pub struct Parts {
    /// The listener.
    pub listener: Arc<Listener>,
    /// Route configurations that it takes from the stream.
    pub routes: BTreeSet<String>,
    /// Clusters to which it sends connections itself.
    pub clusters: BTreeSet<ClusterId>,
    /// Secrets without which it cannot serve.
    pub secrets: BTreeSet<String>,
    /// The workload that it says it serves.
    pub own: Option<Arc<WorkloadLabels>>,
}

/// A listener. Route configurations are looked up by `tables`.
pub fn listener(context: &mut Context, value: xds::Listener, tables: Tables<'_>) -> Converted<Parts> {
    let xds::Listener {
        name,
        address: first,
        additional_addresses,
        stat_prefix: _,
        stats_matcher: _,
        filter_chains,
        fcds_config,
        filter_chain_matcher,
        use_original_dst,
        default_filter_chain,
        // Buffers grow and shrink by themselves, within bounds of this proxy's own.
        per_connection_buffer_limit_bytes: _,
        per_connection_buffer_high_watermark_timeout: _,
        metadata,
        deprecated_v1,
        drain_type: _,
        listener_filters,
        listener_filters_timeout,
        continue_on_listener_filters_timeout,
        transparent,
        freebind: _,
        socket_options,
        tcp_fast_open_queue_length: _,
        traffic_direction,
        udp_listener_config,
        api_listener,
        // Connections are spread over the workers exactly, whatever these say.
        connection_balance_config: _,
        reuse_port: _,
        enable_reuse_port: _,
        access_log: listener_log,
        tcp_backlog_size: _,
        max_connections_to_accept_per_socket_event: _,
        bind_to_port,
        enable_mptcp,
        ignore_global_conn_limit: _,
        bypass_overload_manager: _,
        tcp_keepalive: _,
        listener_specifier,
    } = value;
    refuse!(
        fcds_config,
        filter_chain_matcher,
        socket_options,
        udp_listener_config,
        api_listener,
        listener_log,
        enable_mptcp,
        listener_specifier
    );
    let transparent = transparent.unwrap_or(false);
    refuse!(transparent);
    let direction = match TrafficDirection::try_from(traffic_direction) {
        Ok(TrafficDirection::Inbound) => Direction::Inbound,
        // One that serves both, as at an edge, is seen from the proxy's own side.
        Ok(TrafficDirection::Outbound | TrafficDirection::Unspecified) => Direction::Outbound,
        Err(_) => return Err(Refused::new("traffic_direction", "is not known to this proxy")),
    };
    let mut addresses = vec![address(first).within("address")?];
    for (index, additional) in additional_addresses.into_iter().enumerate() {
        let xds::AdditionalAddress { address: additional, socket_options, tcp_keepalive: _ } = additional;
        refuse!(socket_options);
        addresses.push(address(additional).within(format_args!("additional_addresses[{index}].address"))?);
    }
    let filters = listener_filters_of(listener_filters)?;
    let mut found = Found::default();
    let mut chains = Vec::with_capacity(filter_chains.len());
    for (index, value) in filter_chains.into_iter().enumerate() {
        let value = chain(context, value, direction, tables, &mut found);
        chains.push(value.within(format_args!("filter_chains[{index}]"))?);
    }
    let default_chain = default_filter_chain
        .map(|value| chain(context, value, direction, tables, &mut found))
        .transpose()
        .within("default_filter_chain")?;
    let deprecated_bind = deprecated_v1.and_then(|DeprecatedV1 { bind_to_port }| bind_to_port);
    let listener = Listener {
        name: name.into(),
        direction,
        addresses,
        bind: bind_to_port.or(deprecated_bind).unwrap_or(true),
        use_original_dst: use_original_dst.unwrap_or(false) || filters.original_dst,
        inspect: filters.inspect,
        detect_timeout: maybe_duration(listener_filters_timeout, "listener_filters_timeout")?
            .unwrap_or(DEFAULT_DETECT_TIMEOUT),
        continue_on_timeout: continue_on_listener_filters_timeout,
        chains,
        default_chain,
    };
    let own = own(metadata.as_ref(), &context.trust_domain).map(|labels| context.workload(labels));
    Ok(Parts {
        listener: Arc::new(listener),
        routes: found.routes,
        clusters: found.clusters,
        secrets: found.secrets,
        own,
    })
}

/// The workload that the control plane says this proxy serves.
fn own(metadata: Option<&Metadata>, trust_domain: &str) -> Option<Arc<WorkloadLabels>> {
    let fields = filter_metadata(metadata, "leno")?;
    let get = |name| text(fields, name).unwrap_or_default();
    let account = get("service_account");
    let principal = if account.is_empty() || account.starts_with("spiffe://") {
        account.to_owned()
    } else {
        leno_runtime::certs::spiffe_id(trust_domain, get("namespace"), account)
    };
    Some(WorkloadLabels::new(get("workload"), get("namespace"), get("app"), get("version"), get("cluster"), &principal))
}

#[derive(Default)]
struct ListenerFilters {
    inspect: Inspect,
    original_dst: bool,
}

fn listener_filters_of(values: Vec<xds::ListenerFilter>) -> Converted<ListenerFilters> {
    let mut filters = ListenerFilters::default();
    for (index, value) in values.into_iter().enumerate() {
        let within = format!("listener_filters[{index}]");
        let xds::ListenerFilter { name, filter_disabled, config_type } = value;
        let off = filter_disabled.map(disabled).transpose().within("filter_disabled").within(&within)?;
        let off = match off {
            Some(Disabled::Always) => continue,
            Some(Disabled::On(ports)) => ports,
            None => PortSet::default(),
        };
        let any = match config_type {
            Some(listener_filter::ConfigType::TypedConfig(any)) => any,
            _ => return Err(Refused::new("typed_config", format!("of `{name}` is missing")).within(within)),
        };
        if let Some(inspector) = optional::<TlsInspector>(&any).within(&within)? {
            let TlsInspector {
                enable_ja3_fingerprinting,
                enable_ja4_fingerprinting,
                initial_read_buffer_size: _,
                close_connection_on_client_hello_parsing_errors,
                max_client_hello_size: _,
            } = inspector;
            let enable_ja3_fingerprinting = enable_ja3_fingerprinting.unwrap_or(false);
            let enable_ja4_fingerprinting = enable_ja4_fingerprinting.unwrap_or(false);
            refuse!(
                enable_ja3_fingerprinting,
                enable_ja4_fingerprinting,
                close_connection_on_client_hello_parsing_errors
            );
            filters.inspect.tls = true;
            filters.inspect.tls_off = off;
        } else if let Some(HttpInspector {}) = optional(&any).within(&within)? {
            filters.inspect.http = true;
            filters.inspect.http_off = off;
        } else if let Some(OriginalDst {}) = optional(&any).within(&within)? {
            filters.original_dst = true;
        } else {
            return Err(unknown_type(&any).within(within));
        }
    }
    Ok(filters)
}

enum Disabled {
    Always,
    On(PortSet),
}

fn disabled(value: ListenerFilterChainMatchPredicate) -> Converted<Disabled> {
    let ListenerFilterChainMatchPredicate { rule } = value;
    match rule {
        None => Ok(Disabled::On(PortSet::default())),
        Some(Rule::AnyMatch(true)) => Ok(Disabled::Always),
        Some(Rule::AnyMatch(false)) => Ok(Disabled::On(PortSet::default())),
        Some(Rule::DestinationPortRange(Int32Range { start, end })) => {
            let port = |number: i32| {
                u16::try_from(number)
                    .map_err(|_| Refused::new("destination_port_range", format!("{number} is not a port")))
            };
            // The end is exclusive.
            Ok(Disabled::On(if end > start {
                PortSet(vec![(port(start)?, port(end - 1)?)])
            } else {
                PortSet::default()
            }))
        }
        Some(Rule::OrMatch(MatchSet { rules })) => {
            let mut ports = Vec::new();
            for rule in rules {
                match disabled(rule).within("or_match")? {
                    Disabled::Always => return Ok(Disabled::Always),
                    Disabled::On(PortSet(more)) => ports.extend(more),
                }
            }
            Ok(Disabled::On(PortSet(ports)))
        }
        Some(Rule::AndMatch(_)) => Err(Refused::new("and_match", "is not supported by this proxy")),
        Some(Rule::NotMatch(_)) => Err(Refused::new("not_match", "is not supported by this proxy")),
    }
}

#[derive(Default)]
struct Found {
    routes: BTreeSet<String>,
    clusters: BTreeSet<ClusterId>,
    secrets: BTreeSet<String>,
}

fn chain(
    context: &mut Context,
    value: xds::FilterChain,
    direction: Direction,
    tables: Tables<'_>,
    found: &mut Found,
) -> Converted<FilterChain> {
    let xds::FilterChain {
        filter_chain_match,
        filters,
        use_proxy_proto,
        metadata: _,
        transport_socket,
        transport_socket_connect_timeout: _,
        name,
    } = value;
    let use_proxy_proto = use_proxy_proto.unwrap_or(false);
    refuse!(use_proxy_proto);
    let mut filters = filters.into_iter();
    let Some(xds::Filter { name: filter_name, config_type }) = filters.next() else {
        return Err(Refused::new("filters", "is empty"));
    };
    if let Some(second) = filters.next() {
        return Err(Refused::new("filters[1]", format!("`{}` is not supported by this proxy", second.name)));
    }
    let any = match config_type {
        Some(filter::ConfigType::TypedConfig(any)) => any,
        Some(filter::ConfigType::ConfigDiscovery(_)) => {
            return Err(Refused::new("filters[0].config_discovery", "is not supported by this proxy"));
        }
        None => return Err(Refused::new("filters[0].typed_config", format!("of `{filter_name}` is missing"))),
    };
    let within = "filters[0].typed_config";
    let network = if let Some(value) = optional::<HttpConnectionManager>(&any).within(within)? {
        Network::Http(Arc::new(manager(context, value, direction, tables, &mut found.routes).within(within)?))
    } else if let Some(value) = optional::<tcp::TcpProxy>(&any).within(within)? {
        Network::Tcp(Arc::new(tcp_proxy(context, value, direction, found).within(within)?))
    } else {
        return Err(unknown_type(&any).within(within));
    };
    let tls = tls::server(context, transport_socket).within("transport_socket")?;
    found.secrets.extend(tls.iter().flat_map(|tls| tls.secrets()));
    Ok(FilterChain {
        name: name.into(),
        matches: filter_chain_match.map(chain_match).transpose().within("filter_chain_match")?.unwrap_or_default(),
        tls,
        network,
    })
}

fn chain_match(value: xds::FilterChainMatch) -> Converted<ChainMatch> {
    let xds::FilterChainMatch {
        destination_port,
        prefix_ranges,
        address_suffix,
        suffix_len,
        direct_source_prefix_ranges,
        source_type,
        source_prefix_ranges,
        source_ports,
        server_names,
        transport_protocol,
        application_protocols,
    } = value;
    refuse!(
        prefix_ranges,
        address_suffix,
        suffix_len,
        direct_source_prefix_ranges,
        source_type,
        source_prefix_ranges,
        source_ports
    );
    let transport = match transport_protocol.as_str() {
        "" => None,
        "raw_buffer" => Some(Transport::Raw),
        "tls" => Some(Transport::Tls),
        other => {
            let reason = format!("`{other}` is not supported by this proxy");
            return Err(Refused::new("transport_protocol", reason));
        }
    };
    Ok(ChainMatch {
        destination_port: destination_port.map(super::common::port).transpose().within("destination_port")?,
        server_names: server_names.into_iter().map(Arc::from).collect(),
        transport,
        application_protocols: application_protocols.into_iter().map(Arc::from).collect(),
    })
}

fn tcp_proxy(
    context: &mut Context,
    value: tcp::TcpProxy,
    direction: Direction,
    found: &mut Found,
) -> Converted<TcpProxy> {
    let tcp::TcpProxy {
        stat_prefix,
        on_demand,
        metadata_match,
        idle_timeout,
        downstream_idle_timeout,
        upstream_idle_timeout,
        access_log: logs,
        max_connect_attempts,
        backoff_options,
        hash_policy,
        tunneling_config,
        max_downstream_connection_duration,
        max_downstream_connection_duration_jitter_percentage: _,
        access_log_flush_interval: _,
        flush_access_log_on_connected,
        access_log_options: _,
        proxy_protocol_tlvs,
        proxy_protocol_tlv_merge_policy: _,
        upstream_connect_mode,
        max_early_data_bytes: _,
        check_drain_close: _,
        cluster_specifier,
    } = value;
    refuse!(
        on_demand,
        metadata_match,
        downstream_idle_timeout,
        upstream_idle_timeout,
        backoff_options,
        hash_policy,
        tunneling_config,
        max_downstream_connection_duration,
        flush_access_log_on_connected,
        proxy_protocol_tlvs,
        upstream_connect_mode
    );
    let targets = match cluster_specifier {
        Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(name)) => {
            vec![TcpTarget { cluster: context.cluster(&name).within("cluster")?, weight: 1 }]
        }
        Some(tcp::tcp_proxy::ClusterSpecifier::WeightedClusters(value)) => {
            let tcp::tcp_proxy::WeightedCluster { clusters } = value;
            let mut targets = Vec::with_capacity(clusters.len());
            for (index, cluster) in clusters.into_iter().enumerate() {
                let within = format!("weighted_clusters.clusters[{index}]");
                let tcp::tcp_proxy::weighted_cluster::ClusterWeight { name, weight, metadata_match } = cluster;
                super::refuse_set(&metadata_match, "metadata_match").within(&within)?;
                if weight > 0 {
                    targets.push(TcpTarget { cluster: context.cluster(&name).within(within)?, weight });
                }
            }
            targets
        }
        None => return Err(Refused::new("cluster_specifier", "is missing")),
    };
    if targets.is_empty() {
        return Err(Refused::new("weighted_clusters.clusters", "has no weight above zero"));
    }
    found.clusters.extend(targets.iter().map(|target| target.cluster));
    Ok(TcpProxy {
        stat_prefix: stat_prefix.into(),
        direction,
        targets,
        idle_timeout: maybe_duration(idle_timeout, "idle_timeout")?.unwrap_or(Duration::from_secs(3600)),
        connect_attempts: max_connect_attempts.unwrap_or(1).max(1),
        access_log: access_log(context, logs).within("access_log")?,
    })
}
