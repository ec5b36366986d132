//! Listeners and their filter chains.

use super::access_log::access_logs;
use super::common::{address, cidr, filter_metadata, maybe_duration, never, socket_options, text};
use super::filter::discovery::Discovered;
use super::http::Tables;
use super::listener_filters::listener_filters;
use super::network::{Around, network};
use super::{Context, Converted, Refused, Within as _, refuse, tls};
use crate::config::{
    ChainMatch, ClusterId, Direction, FilterChain, FilterChains, HttpManager, KeepAlive, Listener, Metadata as Kept,
    OpenLimit, SocketSettings, SourceType, Transport,
};
use crate::telemetry::WorkloadLabels;
use crate::tls::HANDSHAKE_TIMEOUT;
use ipnet::IpNet;
use leno_xds::envoy::config::core::v3::{
    Address, CidrRange, Metadata, SocketOption, TcpKeepalive, TrafficDirection, address,
};
use leno_xds::envoy::config::listener::v3 as xds;
use leno_xds::envoy::config::listener::v3::{filter_chain_match::ConnectionSourceType, listener::DeprecatedV1};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
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
    /// The prefixes of the statistics of those who use them.
    pub prefixes: BTreeMap<String, String>,
    /// Clusters to which it sends connections itself.
    pub clusters: BTreeSet<ClusterId>,
    /// Secrets without which it cannot serve.
    pub secrets: BTreeSet<String>,
    /// Filters whose configurations it takes from the stream.
    pub extensions: Vec<Discovered>,
    /// The workload that it says it serves.
    pub own: Option<Arc<WorkloadLabels>>,
}

/// A listener. Route configurations are looked up by `tables`.
pub fn listener(context: &mut Context, value: xds::Listener, tables: Tables<'_>) -> Converted<Parts> {
    let xds::Listener {
        name,
        address: first,
        additional_addresses,
        stat_prefix,
        stats_matcher,
        filter_chains,
        fcds_config,
        filter_chain_matcher,
        use_original_dst,
        default_filter_chain,
        // What is under way is bounded by this proxy's own bounds; what is kept for another attempt by this one.
        per_connection_buffer_limit_bytes: buffer_limit,
        per_connection_buffer_high_watermark_timeout: high_watermark,
        metadata,
        deprecated_v1,
        drain_type,
        listener_filters: filter_list,
        listener_filters_timeout,
        continue_on_listener_filters_timeout,
        transparent,
        freebind,
        socket_options,
        tcp_fast_open_queue_length: _,
        traffic_direction,
        udp_listener_config,
        api_listener,
        // Connections are spread over the workers exactly, whatever these say.
        connection_balance_config: _,
        reuse_port: _,
        enable_reuse_port: _,
        access_log: logs,
        tcp_backlog_size,
        max_connections_to_accept_per_socket_event: _,
        bind_to_port,
        enable_mptcp,
        ignore_global_conn_limit,
        bypass_overload_manager: bypasses_overload,
        tcp_keepalive,
        listener_specifier,
    } = value;
    refuse!(
        stats_matcher,
        fcds_config,
        filter_chain_matcher,
        udp_listener_config,
        api_listener,
        enable_mptcp,
        listener_specifier
    );
    let transparent = transparent.unwrap_or(false);
    refuse!(transparent);
    never(high_watermark, "per_connection_buffer_high_watermark_timeout")?;
    let direction = match TrafficDirection::try_from(traffic_direction) {
        Ok(TrafficDirection::Inbound) => Direction::Inbound,
        // One that serves both, as at an edge, is seen from the proxy's own side.
        Ok(TrafficDirection::Outbound | TrafficDirection::Unspecified) => Direction::Outbound,
        Err(_) => return Err(Refused::new("traffic_direction", "is not known to this proxy")),
    };
    let egress = TrafficDirection::try_from(traffic_direction) == Ok(TrafficDirection::Outbound);
    let mut both_families = false;
    let mut addresses = vec![own_address(first, &mut both_families).within("address")?];
    for (index, additional) in additional_addresses.into_iter().enumerate() {
        let xds::AdditionalAddress { address: additional, socket_options, tcp_keepalive: _ } = additional;
        refuse!(socket_options);
        addresses.push(
            own_address(additional, &mut both_families)
                .within(format_args!("additional_addresses[{index}].address"))?,
        );
    }
    let serves = !filter_chains.is_empty() || default_filter_chain.is_some();
    let filters = listener_filters(context, filter_list)?;
    let mut found = Found::default();
    let buffer_limit = buffer_limit.map_or(HttpManager::default().buffer_limit, |bytes| bytes as usize);
    let only_changes = drain_type == i32::from(xds::listener::DrainType::ModifyOnly);
    let around = Around { listener: &name, direction, egress, only_changes, bypasses_overload, buffer_limit, tables };
    let mut chains = Vec::with_capacity(filter_chains.len());
    for (index, value) in filter_chains.into_iter().enumerate() {
        let value = chain(context, value, &around, &mut found);
        chains.push(value.within(format_args!("filter_chains[{index}]"))?);
    }
    let default_chain = default_filter_chain
        .map(|value| chain(context, value, &around, &mut found))
        .transpose()
        .within("default_filter_chain")?;
    let chains = FilterChains::new(chains, default_chain);
    let deprecated_bind = deprecated_v1.and_then(|DeprecatedV1 { bind_to_port }| bind_to_port);
    let addresses_text = addresses.first().map(|first| first.to_string().replace(':', "_")).unwrap_or_default();
    let listener = Listener {
        direction,
        addresses,
        bind: bind_to_port.or(deprecated_bind).unwrap_or(true),
        use_original_dst: use_original_dst.unwrap_or(false) || filters.original_dst,
        inspect: filters.inspect,
        proxy_protocol: filters.proxy_protocol,
        detect_timeout: maybe_duration(listener_filters_timeout, "listener_filters_timeout")?
            .unwrap_or(DEFAULT_DETECT_TIMEOUT),
        continue_on_timeout: continue_on_listener_filters_timeout,
        chains: chains.map_err(|error| Refused::new("filter_chains", error.to_string()))?,
        access_logs: access_logs(context, logs)?,
        metadata: Kept::of(metadata.as_ref()),
        socket: SocketSettings {
            both_families,
            ..socket_settings(tcp_backlog_size, freebind, tcp_keepalive, socket_options)?
        },
        bypasses_overload,
        passes_most: ignore_global_conn_limit,
        most: context.runtime.most_of_listener(&name).map(|most| OpenLimit {
            most,
            open: context.limits.count(&format!("{name}/connections"), AtomicU32::default),
        }),
        stat_name: match stat_prefix.is_empty() {
            true => addresses_text.into(),
            false => stat_prefix.into(),
        },
        name: name.into(),
    };
    if !serves {
        return Err(Refused::new("filter_chains", "are none, and there is no default_filter_chain"));
    }
    let own = own(metadata.as_ref(), &context.trust_domain).map(|labels| context.workload(labels));
    Ok(Parts {
        listener: Arc::new(listener),
        routes: found.routes,
        prefixes: found.prefixes,
        clusters: found.clusters,
        secrets: found.secrets,
        extensions: found.extensions,
        own,
    })
}

/// An address to listen on; one of IPv6 may be for connections of IPv4 as well.
fn own_address(value: Option<Address>, both_families: &mut bool) -> Converted<SocketAddr> {
    let mut value = value;
    if let Some(Address { address: Some(address::Address::SocketAddress(socket)) }) = &mut value {
        *both_families |= std::mem::take(&mut socket.ipv4_compat) && socket.address.contains(':');
    }
    address(value)
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

/// What a listener's parts depend on.
#[derive(Debug, Default)]
pub struct Found {
    /// Route configurations that are taken from the stream.
    pub routes: BTreeSet<String>,
    /// The prefixes of the statistics of those who use them.
    pub prefixes: BTreeMap<String, String>,
    /// Clusters to which connections are sent.
    pub clusters: BTreeSet<ClusterId>,
    /// Secrets.
    pub secrets: BTreeSet<String>,
    /// Filters whose configurations are taken from the stream.
    pub extensions: Vec<Discovered>,
}

fn chain(
    context: &mut Context,
    value: xds::FilterChain,
    around: &Around<'_>,
    found: &mut Found,
) -> Converted<FilterChain> {
    let xds::FilterChain {
        filter_chain_match,
        filters,
        use_proxy_proto,
        metadata,
        transport_socket,
        transport_socket_connect_timeout,
        name,
    } = value;
    let use_proxy_proto = use_proxy_proto.unwrap_or(false);
    refuse!(use_proxy_proto);
    let (gates, network) = network(context, filters, around, &name, found)?;
    let tls = tls::server(context, transport_socket).within("transport_socket")?;
    found.secrets.extend(tls.iter().flat_map(|tls| tls.secrets()));
    let timeout = maybe_duration(transport_socket_connect_timeout, "transport_socket_connect_timeout")?;
    Ok(FilterChain {
        matches: filter_chain_match.map(chain_match).transpose().within("filter_chain_match")?.unwrap_or_default(),
        tls,
        tls_timeout: timeout.filter(|limit| !limit.is_zero()).unwrap_or(HANDSHAKE_TIMEOUT),
        gates,
        metadata: Kept::of(metadata.as_ref()),
        ..FilterChain::new(name, network)
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
    refuse!(address_suffix, suffix_len);
    let transport = match transport_protocol.as_str() {
        "" => None,
        "raw_buffer" => Some(Transport::Raw),
        "tls" => Some(Transport::Tls),
        other => {
            let reason = format!("`{other}` is not supported by this proxy");
            return Err(Refused::new("transport_protocol", reason));
        }
    };
    let source_type = match ConnectionSourceType::try_from(source_type) {
        Ok(ConnectionSourceType::Any) => SourceType::Any,
        Ok(ConnectionSourceType::SameIpOrLoopback) => SourceType::SameIpOrLoopback,
        Ok(ConnectionSourceType::External) => SourceType::External,
        Err(_) => return Err(Refused::new("source_type", "is not known to this proxy")),
    };
    let ports = source_ports.into_iter().enumerate().map(|(index, value)| {
        let wrong = || Refused::new(format!("source_ports[{index}]"), format!("{value} is not a port"));
        u16::try_from(value).ok().filter(|port| *port > 0).ok_or_else(wrong)
    });
    Ok(ChainMatch {
        destination_port: destination_port.map(super::common::port).transpose().within("destination_port")?,
        destination_prefixes: prefixes(prefix_ranges, "prefix_ranges")?,
        server_names: server_names.into_iter().map(Arc::from).collect(),
        transport,
        application_protocols: application_protocols.into_iter().map(Arc::from).collect(),
        direct_source_prefixes: prefixes(direct_source_prefix_ranges, "direct_source_prefix_ranges")?,
        source_type,
        source_prefixes: prefixes(source_prefix_ranges, "source_prefix_ranges")?,
        source_ports: ports.collect::<Converted<_>>()?,
    })
}

fn prefixes(values: Vec<CidrRange>, field: &str) -> Converted<Vec<IpNet>> {
    values.into_iter().enumerate().map(|(index, value)| cidr(value).within(format_args!("{field}[{index}]"))).collect()
}

/// How sockets are made.
fn socket_settings(
    backlog: Option<u32>,
    freebind: Option<bool>,
    keepalive: Option<TcpKeepalive>,
    options: Vec<SocketOption>,
) -> Converted<SocketSettings> {
    let keepalive = keepalive.map(|TcpKeepalive { keepalive_probes, keepalive_time, keepalive_interval }| KeepAlive {
        probes: keepalive_probes,
        time: keepalive_time.map(|seconds| Duration::from_secs(seconds.into())),
        interval: keepalive_interval.map(|seconds| Duration::from_secs(seconds.into())),
    });
    let mut settings = SocketSettings { keepalive, freebind: freebind.unwrap_or(false), ..SocketSettings::default() };
    if let Some(backlog) = backlog {
        settings.backlog = backlog.clamp(1, i32::MAX as u32);
    }
    settings.options = socket_options(options)?;
    Ok(settings)
}
