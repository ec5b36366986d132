//! Clusters and their endpoints.
//!
//! A cluster comes in two resources: itself, and its endpoints. The [`Template`] is the first, converted; with the
//! second it becomes a [`Cluster`] of the configuration tree. Which TLS an endpoint is talked to with is chosen here, by
//! the endpoint's metadata, so that no request has to.

mod balancing;
pub mod dns;
mod endpoints;
mod health;
mod limits;
mod outlier;
#[cfg(test)]
mod tests;
mod upstream;

pub use endpoints::Assignment;
pub use upstream::Sockets;

use super::common::{filter_metadata, is_set, never, optional, port, positive, text, unknown_type};
use super::{Context, Converted, Refused, Within as _, refuse, tls};
use crate::config::{ClientTls, Cluster, ClusterId, ClusterKind, Dns, OriginalDst, Probe, Track, UpstreamProtocol};
use crate::telemetry::counters::{LookupStats, OutlierStats, Scope};
use crate::telemetry::{ServiceLabels, WorkloadLabels};
use leno_xds::envoy::config::cluster::v3 as xds;
use leno_xds::envoy::config::cluster::v3::TrackClusterStats;
use leno_xds::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbConfig, OriginalDstLbConfig, PreconnectPolicy,
    TransportSocketMatch,
};
use leno_xds::envoy::config::core::v3::Metadata;
use leno_xds::envoy::extensions::clusters::{aggregate::v3::ClusterConfig as Aggregate, dns::v3::DnsCluster};
use leno_xds::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use leno_xds::envoy::extensions::upstreams::tcp::v3::TcpProtocolOptions;
use prost_types::{ListValue, Struct, Value, value::Kind};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Keys of the options of TCP and HTTP among a cluster's typed options.
const TCP_OPTIONS: &str = "envoy.extensions.upstreams.tcp.v3.TcpProtocolOptions";
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Metadata by which a transport socket is chosen.
const SOCKET_MATCH: &str = "envoy.transport_socket_match";

/// How long a connection may take where nothing is said.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// The name in statistics.
    pub fn observability_name(&self) -> &str {
        &self.cluster.observability_name
    }

    /// The secrets without which its endpoints cannot be talked to.
    pub fn secrets(&self) -> BTreeSet<String> {
        let all = self.matches.iter().filter_map(|candidate| candidate.tls.as_ref()).chain(&self.cluster.default_tls);
        all.flat_map(|tls| tls.secrets()).collect()
    }

    /// The cluster with these endpoints. `own` is the workload that inbound traffic is for.
    pub fn build(&self, assignment: Assignment, own: &Arc<WorkloadLabels>) -> Arc<Cluster> {
        let shape = &self.cluster;
        let inbound = shape.name.starts_with("inbound|") || &*shape.name == "InboundPassthroughCluster";
        let mut cluster = shape.clone();
        if inbound {
            cluster.destination = own.clone();
        }
        if shape.kind == ClusterKind::Eds {
            cluster.endpoints = assignment.endpoints;
            cluster.spread = assignment.spread;
        }
        Arc::new(cluster)
    }

    /// TLS to endpoints with these labels.
    fn tls_for(&self, labels: &Struct) -> Option<Arc<ClientTls>> {
        match self.matches.iter().find(|candidate| contains(labels, &candidate.wanted)) {
            Some(found) => found.tls.clone(),
            None => self.cluster.default_tls.clone(),
        }
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
        alt_stat_name,
        stats_matcher,
        eds_cluster_config,
        connect_timeout,
        // Buffers have bounds of this proxy's own, below Envoy's default of 1 MiB.
        per_connection_buffer_limit_bytes: _,
        per_connection_buffer_high_watermark_timeout: high_watermark,
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
        dns_refresh_rate,
        dns_jitter,
        dns_failure_refresh_rate,
        respect_dns_ttl,
        dns_lookup_family,
        dns_resolvers,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        wait_for_warm_on_init: _,
        outlier_detection,
        cleanup_interval,
        upstream_bind_config,
        lb_subset_config,
        common_lb_config,
        transport_socket,
        metadata,
        protocol_selection,
        upstream_connection_options,
        close_connections_on_host_health_failure,
        ignore_health_on_host_removal,
        filters,
        load_balancing_policy,
        lrs_server: _,
        lrs_report_endpoint_metrics: _,
        track_timeout_budgets,
        upstream_config,
        track_cluster_stats,
        preconnect_policy,
        connection_pool_per_downstream_connection,
        queuing_policies,
        cluster_discovery_type,
        lb_config,
    } = value;
    refuse!(stats_matcher, transport_socket_matcher, filters, queuing_policies);
    never(high_watermark, "per_connection_buffer_high_watermark_timeout")?;
    // Hosts of original destinations that are not used go after seconds, whatever is said.
    positive(cleanup_interval, "cleanup_interval")?;
    preconnect(preconnect_policy).within("preconnect_policy")?;
    let id = context.cluster(&name).within("name")?;
    let Shape { kind, logical, found_by, members } = shape(context, cluster_discovery_type)?;
    let endpoints = match (kind, eds_cluster_config) {
        (ClusterKind::Eds, Some(EdsClusterConfig { eds_config, service_name })) => {
            let resource = if service_name.is_empty() { name.clone() } else { service_name };
            let asked = context.sources.ask(crate::xds::Kind::Endpoints, &resource, eds_config);
            asked.within("eds_cluster_config.eds_config")?;
            Some(resource)
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
    cluster.members = members;
    if !alt_stat_name.is_empty() {
        cluster.observability_name = alt_stat_name.into();
    }
    let lb_config = match lb_config {
        Some(LbConfig::OriginalDstLbConfig(config)) if kind == ClusterKind::OriginalDst => {
            cluster.original = original(config).within("original_dst_lb_config")?;
            None
        }
        other => other,
    };
    if kind == ClusterKind::OriginalDst && lb_config.is_some() {
        return Err(Refused::new("lb_config", "of a cluster of original destinations is original_dst_lb_config"));
    }
    let fields = balancing::Fields {
        lb_policy,
        lb_config,
        common: common_lb_config,
        subsets: lb_subset_config,
        extension: load_balancing_policy,
    };
    let (policy, mut balancing) = balancing::convert(fields, kind)?;
    balancing.skip_unreachable =
        filter_metadata(metadata.as_ref(), "leno").is_some_and(|fields| is_set(fields, "skip_unreachable"));
    if balancing.hash_by_hostname && kind == ClusterKind::Static {
        let reason = "is for clusters whose endpoints are found by name; those of a STATIC one have none";
        return Err(Refused::new("use_hostname_for_hashing", reason));
    }
    cluster.policy = policy;
    cluster.balancing = Arc::new(balancing);
    cluster.default_tls = default_tls;
    (cluster.limits, cluster.high_limits) = limits::limits(circuit_breakers).within("circuit_breakers")?;
    let limit = positive(connect_timeout, "connect_timeout")?;
    cluster.connect_timeout = limit.unwrap_or(DEFAULT_CONNECT_TIMEOUT);
    cluster.max_requests_per_connection = max_requests_per_connection.unwrap_or(0);
    let sockets = upstream_bind_config.map(Sockets::new).transpose().within("upstream_bind_config")?;
    context.sockets.apply(sockets, &mut cluster);
    if let Some(options) = upstream_connection_options {
        let xds::UpstreamConnectionOptions {
            tcp_keepalive,
            set_local_interface_name_on_upstream_connections: _,
            happy_eyeballs_config,
        } = options;
        cluster.keepalive = tcp_keepalive.map(upstream::keepalive);
        let order = happy_eyeballs_config.map(upstream::eyeballs).transpose();
        cluster.eyeballs = order.within("upstream_connection_options.happy_eyeballs_config")?.unwrap_or_default();
    }
    cluster.pool_per_client = connection_pool_per_downstream_connection;
    let TrackClusterStats { timeout_budgets, request_response_sizes, per_endpoint_stats } =
        track_cluster_stats.unwrap_or_default();
    cluster.track = Track {
        budgets: timeout_budgets || track_timeout_budgets,
        sizes: request_response_sizes,
        endpoints: per_endpoint_stats,
    };
    cluster.close_on_failure = close_connections_on_host_health_failure;
    cluster.ignore_health_on_removal = ignore_health_on_host_removal;
    // An original destination is connected whatever its health, in Envoy too: for those it changes nothing.
    if let Some(value) = outlier_detection {
        let mut outliers = outlier::outliers(value).within("outlier_detection")?;
        outliers.stats = OutlierStats::new(&context.counters, &[Scope::cluster(&cluster.observability_name)]);
        outliers.log.clone_from(&context.outlier_log);
        cluster.outliers = Some(Arc::new(outliers));
    }
    if let Some(labels) = service(metadata.as_ref()) {
        cluster.service = labels;
    }
    cluster.service = context.service(cluster.service);
    cluster.destination = context.workload(cluster.destination);
    cluster.origin = super::route::origin(metadata.as_ref());
    cluster.metadata = crate::config::Metadata::of(metadata.as_ref());
    let names = dns::Fields {
        refresh_rate: dns_refresh_rate,
        jitter: dns_jitter,
        failure_refresh_rate: dns_failure_refresh_rate,
        respect_ttl: respect_dns_ttl,
        family: dns_lookup_family,
        resolvers: dns_resolvers,
        tcp: use_tcp_for_dns_lookups,
        resolution: dns_resolution_config,
        typed_resolver: typed_dns_resolver_config,
        least: None,
    };
    let names = match found_by {
        Some(own) => dns::of_extension(own).within("cluster_type.typed_config")?,
        None => names,
    };
    match kind {
        ClusterKind::Dns => {
            let dns = dns::dns(names, logical, &context.resolvers)?;
            let stats = LookupStats::new(&context.counters, &[Scope::cluster(&cluster.observability_name)]);
            cluster.dns = Some(Arc::new(Dns { stats, ..dns }));
        }
        _ => dns::none(names)?,
    }
    let protocol_selection = xds::cluster::ClusterProtocolSelection::try_from(protocol_selection);
    let configured = protocol_selection == Ok(xds::cluster::ClusterProtocolSelection::UseConfiguredProtocol);
    if configured && http_protocol_options.is_some() && http2_protocol_options.is_some() {
        let reason = "cannot stand beside http2_protocol_options, but with a protocol_selection that follows clients";
        return Err(Refused::new("http_protocol_options", reason));
    }
    // The deprecated places of what typed options say.
    if let Some(common) = common_http_protocol_options {
        upstream::common_options(&mut cluster, common).within("common_http_protocol_options")?;
    }
    if let Some(options) = upstream_http_protocol_options {
        upstream::server_name(&mut cluster, &mut matches, options).within("upstream_http_protocol_options")?;
    }
    upstream::http1_options(&mut cluster, http_protocol_options).within("http_protocol_options")?;
    if http2_protocol_options.is_some() {
        upstream::http2_options(&mut cluster, http2_protocol_options).within("http2_protocol_options")?;
        cluster.protocol = UpstreamProtocol::Http2;
    }
    match protocol_selection {
        Ok(xds::cluster::ClusterProtocolSelection::UseConfiguredProtocol) => {}
        Ok(xds::cluster::ClusterProtocolSelection::UseDownstreamProtocol) => {
            cluster.protocol = UpstreamProtocol::Follow;
        }
        Err(_) => return Err(Refused::new("protocol_selection", "is not known to this proxy")),
    }
    upstream_config.map_or(Ok(()), upstream::usual).within("upstream_config")?;
    for (key, any) in typed_extension_protocol_options {
        let within = format!("typed_extension_protocol_options[{key}]");
        if key == TCP_OPTIONS && optional::<TcpProtocolOptions>(&any).within(&within)?.is_some() {
            // How long a connection waits for a client; none is made before its client is there.
            continue;
        }
        match optional::<HttpProtocolOptions>(&any).within(&within)? {
            Some(options) if key == HTTP_OPTIONS => {
                upstream::http_options(&mut cluster, &mut matches, options).within(within)?;
            }
            _ => return Err(unknown_type(&any).within(within)),
        }
    }
    let mut template = Template { cluster, endpoints, matches };
    for (index, check) in health_checks.into_iter().enumerate() {
        let within = format!("health_checks[{index}]");
        if index > 0 {
            return Err(Refused::new(within, "is a second one; this proxy makes one"));
        }
        let check = template.health_check(context, check).within(&within)?;
        if matches!(check.probe, Probe::Grpc { .. }) && template.cluster.protocol == UpstreamProtocol::Http1 {
            let reason = "wants a cluster that speaks HTTP/2; give it http2_protocol_options";
            return Err(Refused::new("grpc_health_check", reason).within(within));
        }
        template.cluster.checks.push(Arc::new(check));
    }
    if kind == ClusterKind::OriginalDst && !template.cluster.checks.is_empty() {
        return Err(Refused::new("health_checks", "are not supported for original destinations"));
    }
    if let Some(assignment) = load_assignment {
        if !matches!(kind, ClusterKind::Static | ClusterKind::Dns) {
            return Err(Refused::new("load_assignment", "belongs to types STATIC, STRICT_DNS and LOGICAL_DNS only"));
        }
        let Assignment { endpoints, names, spread } =
            template.endpoints(context, assignment).within("load_assignment")?;
        template.cluster.endpoints = endpoints;
        template.cluster.spread = spread;
        if let Some(dns) = &template.cluster.dns {
            if logical && names.len() != 1 {
                return Err(Refused::new("load_assignment", "of type LOGICAL_DNS has one locality with one endpoint"));
            }
            template.cluster.dns = Some(Arc::new(Dns { names, ..(**dns).clone() }));
        }
    }
    Ok(template)
}

/// What a cluster's type says.
struct Shape {
    /// How endpoints are found.
    kind: ClusterKind,
    /// Whether names stand for one endpoint each.
    logical: bool,
    /// What the extension says that finds them by name.
    found_by: Option<DnsCluster>,
    /// The clusters that it stands for.
    members: Box<[ClusterId]>,
}

impl From<ClusterKind> for Shape {
    fn from(kind: ClusterKind) -> Self {
        Self { kind, logical: false, found_by: None, members: Box::default() }
    }
}

fn shape(context: &mut Context, value: Option<ClusterDiscoveryType>) -> Converted<Shape> {
    let kind = match value {
        None => return Ok(ClusterKind::Static.into()),
        Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(kind),
        Some(ClusterDiscoveryType::ClusterType(xds::cluster::CustomClusterType { name, typed_config })) => {
            let any = typed_config.unwrap_or_default();
            if let Some(own) = optional::<DnsCluster>(&any).within("cluster_type.typed_config")? {
                let logical = own.all_addresses_in_single_endpoint;
                return Ok(Shape { logical, found_by: Some(own), ..ClusterKind::Dns.into() });
            }
            if let Some(Aggregate { clusters }) = optional(&any).within("cluster_type.typed_config")? {
                let members = members(context, &clusters).within("cluster_type.typed_config")?;
                return Ok(Shape { members, ..ClusterKind::Aggregate.into() });
            }
            return Err(Refused::new("cluster_type", format!("`{name}` is not supported by this proxy")));
        }
    };
    match kind {
        Ok(DiscoveryType::Static) => Ok(ClusterKind::Static.into()),
        Ok(DiscoveryType::Eds) => Ok(ClusterKind::Eds.into()),
        Ok(DiscoveryType::StrictDns) => Ok(ClusterKind::Dns.into()),
        Ok(DiscoveryType::LogicalDns) => Ok(Shape { logical: true, ..ClusterKind::Dns.into() }),
        Ok(DiscoveryType::OriginalDst) => Ok(ClusterKind::OriginalDst.into()),
        Err(_) => Err(Refused::new("type", "is not known to this proxy")),
    }
}

/// The clusters that one stands for. They need not be there yet.
fn members(context: &mut Context, names: &[String]) -> Converted<Box<[ClusterId]>> {
    if names.is_empty() {
        return Err(Refused::new("clusters", "is empty; name the clusters that it stands for, the first ones first"));
    }
    names.iter().enumerate().map(|(at, name)| context.cluster(name).within(format_args!("clusters[{at}]"))).collect()
}

fn original(value: OriginalDstLbConfig) -> Converted<OriginalDst> {
    let OriginalDstLbConfig { use_http_header, http_header_name, upstream_port_override, metadata_key } = value;
    refuse!(metadata_key);
    let name = if http_header_name.is_empty() { "x-envoy-original-dst-host" } else { &http_header_name };
    Ok(OriginalDst {
        header: use_http_header.then(|| name.to_ascii_lowercase().into()),
        port: upstream_port_override.map(port).transpose().within("upstream_port_override")?.filter(|port| *port > 0),
    })
}

/// No connections are made before they are needed; a ratio of 1 asks for none.
fn preconnect(value: Option<PreconnectPolicy>) -> Converted<()> {
    let Some(PreconnectPolicy {
        per_upstream_preconnect_ratio,
        predictive_preconnect_ratio,
        preconnect_enabled_metadata: _,
    }) = value
    else {
        return Ok(());
    };
    for (ratio, field) in [
        (per_upstream_preconnect_ratio, "per_upstream_preconnect_ratio"),
        (predictive_preconnect_ratio, "predictive_preconnect_ratio"),
    ] {
        if ratio.is_some_and(|ratio| !(1.0..=3.0).contains(&ratio)) {
            return Err(Refused::new(field, "must be from 1 to 3"));
        }
        if ratio.is_some_and(|ratio| ratio > 1.0) {
            return Err(Refused::new(field, "above 1 is not supported by this proxy; leave it out"));
        }
    }
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
