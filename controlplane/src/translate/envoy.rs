//! What Envoy is told besides what every proxy is: whatever Leno's own proxy does by itself, and an agent beside Envoy does
//! for it.
//!
//! - **Every request and connection is logged to the agent**, over a stream (ALS) from which it counts the standard metrics.
//!   A line carries the own workload, the endpoint's workload and identity (metadata of the endpoint), the service (metadata of
//!   the cluster), and on the inbound side who calls.
//! - **A request that has not reached the app**, since that cannot be connected to, is marked as such in the answer to a caller of
//!   the mesh.
//! - **Lines for people** go to standard output as it was inherited: the file `/dev/stdout` may not be the proxy's to open.
//! - **Who calls** comes in a header from the caller's proxy. The inbound side takes it out of the request before anything else
//!   and keeps it for the log. The outbound side sends it only to where every endpoint is of the mesh: Leno's own proxy
//!   decides that for each endpoint, Envoy's routes can do it for a cluster.

use leno_core::policy::{ClientTls, TrafficPolicy};
use leno_xds::envoy::config::accesslog::v3::{
    AccessLog, AccessLogFilter, LogTypeFilter, ResponseFlagFilter, access_log, access_log_filter::FilterSpecifier,
};
use leno_xds::envoy::config::cluster::v3::Cluster as Message;
use leno_xds::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use leno_xds::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use leno_xds::envoy::config::core::v3::{ApiVersion, GrpcService};
use leno_xds::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use leno_xds::envoy::config::route::v3 as xds;
use leno_xds::envoy::config::route::v3::route_action::ClusterSpecifier;
use leno_xds::envoy::data::accesslog::v3::AccessLogType;
use leno_xds::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log};
use leno_xds::envoy::extensions::access_loggers::grpc::v3::{
    CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig,
};
use leno_xds::envoy::extensions::access_loggers::stream::v3::{StdoutAccessLog, stdout_access_log};
use leno_xds::envoy::extensions::filters::http::header_to_metadata::v3::Config as HeaderToMetadata;
use leno_xds::envoy::extensions::filters::http::header_to_metadata::v3::config::{KeyValuePair, Rule, ValueType};
use leno_xds::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, LocalReplyConfig, ResponseMapper, http_connection_manager::RouteSpecifier,
    http_filter,
};
use leno_xds::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy::TcpAccessLogOptions};
use leno_xds::envoy::r#type::metadata::v3::{MetadataKey, MetadataKind, metadata_key, metadata_kind};
use leno_xds::envoy::r#type::tracing::v3::{CustomTag, custom_tag};
use leno_xds::{any, unpack};

use super::routes::{NOT_SENT_HEADER, PEER_HEADER, peer_value};
use super::values::header;
use super::{Clusters, harmless};
use crate::resolve::{Cluster, ClusterName, Discovery, Ir};

/// The name under which Envoy finds the agent's log service.
pub(super) const LOG_CLUSTER: &str = "als-grpc";
/// How long lines wait for others before they are sent.
const LOG_DELAY: prost_types::Duration = prost_types::Duration { seconds: 0, nanos: 200_000_000 };
/// How often the bytes of an open TCP connection are told.
const TCP_INTERVAL: prost_types::Duration = prost_types::Duration { seconds: 5, nanos: 0 };
/// Where the inbound side keeps who calls: namespace and key of a request's metadata.
const PEER_METADATA: (&str, &str) = ("leno", "peer");
/// Retries under way that are always allowed.
const RETRIES_ALWAYS: u32 = 16;
/// How often Envoy draws an endpoint that has not failed the request yet. It draws blindly, and may draw the same again: five
/// draws, as our own proxy is told, would miss the one of three that works for every eighth request.
const HOST_ATTEMPTS: i64 = 20;
/// How the agent tells the two sides apart.
const DIRECTIONS: [&str; 2] = ["inbound", "outbound"];

/// Adds to a listener what the agent needs. `inbound` says which side of the workload it is on.
pub(super) fn listener(listener: &mut Listener, ir: &Ir, inbound: bool) {
    for FilterChain { filters, transport_socket, .. } in
        listener.filter_chains.iter_mut().chain(&mut listener.default_filter_chain)
    {
        let from_the_mesh = inbound && transport_socket.is_some();
        filters.iter_mut().for_each(|filter| tell(filter, ir, inbound, from_the_mesh));
    }
}

fn tell(filter: &mut Filter, ir: &Ir, inbound: bool, from_the_mesh: bool) {
    let Some(filter::ConfigType::TypedConfig(config)) = &mut filter.config_type else { return };
    // What this very program has packed unpacks.
    if let Ok(Some(mut manager)) = unpack::<HttpConnectionManager>(config) {
        manager.access_log.iter_mut().for_each(to_standard_output);
        manager.access_log.push(http_log(ir, inbound));
        if inbound {
            manager.http_filters.insert(0, take_peer());
            // The outbound side's tables come by name.
            if let Some(RouteSpecifier::RouteConfig(table)) = &mut manager.route_specifier {
                table.virtual_hosts.iter_mut().for_each(|host| harmless::split(&mut host.routes));
            }
        }
        if from_the_mesh {
            manager.local_reply_config = Some(not_sent());
        }
        *config = any(&manager);
    } else if let Ok(Some(mut proxy)) = unpack::<TcpProxy>(config) {
        // A line when the connection is there, and lines while it lasts, are for the agent alone.
        for log in &mut proxy.access_log {
            to_standard_output(log);
            log.filter = Some(AccessLogFilter {
                filter_specifier: Some(FilterSpecifier::LogTypeFilter(LogTypeFilter {
                    types: vec![AccessLogType::TcpUpstreamConnected.into(), AccessLogType::TcpPeriodic.into()],
                    exclude: true,
                })),
            });
        }
        proxy.access_log.push(tcp_log(ir, inbound));
        proxy.access_log_options = Some(TcpAccessLogOptions {
            access_log_flush_interval: Some(TCP_INTERVAL),
            flush_access_log_on_connected: true,
            ..Default::default()
        });
        *config = any(&proxy);
    }
}

/// A log to the file of standard output becomes one to standard output itself.
fn to_standard_output(log: &mut AccessLog) {
    let Some(access_log::ConfigType::TypedConfig(config)) = &log.config_type else { return };
    let Ok(Some(FileAccessLog { path, access_log_format })) = unpack::<FileAccessLog>(config) else { return };
    if path != "/dev/stdout" {
        return;
    }
    let format = match access_log_format {
        Some(file_access_log::AccessLogFormat::LogFormat(format)) => {
            Some(stdout_access_log::AccessLogFormat::LogFormat(format))
        }
        _ => None,
    };
    log.name = "envoy.access_loggers.stdout".to_owned();
    log.config_type = Some(access_log::ConfigType::TypedConfig(any(&StdoutAccessLog { access_log_format: format })));
}

/// Lets a caller's proxy know that no byte of its request has reached the app, so that it may ask another endpoint.
fn not_sent() -> LocalReplyConfig {
    let unconnected = ResponseFlagFilter { flags: vec!["UF".to_owned()] };
    LocalReplyConfig {
        mappers: vec![ResponseMapper {
            filter: Some(AccessLogFilter { filter_specifier: Some(FilterSpecifier::ResponseFlagFilter(unconnected)) }),
            headers_to_add: vec![header(NOT_SENT_HEADER, "1", HeaderAppendAction::OverwriteIfExistsOrAdd)],
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// Takes the peer header out of a request and keeps it for the log.
fn take_peer() -> HttpFilter {
    let (namespace, key) = PEER_METADATA;
    let rule = Rule {
        header: PEER_HEADER.to_owned(),
        on_header_present: Some(KeyValuePair {
            metadata_namespace: namespace.to_owned(),
            key: key.to_owned(),
            r#type: ValueType::String.into(),
            ..Default::default()
        }),
        remove: true,
        ..Default::default()
    };
    HttpFilter {
        name: "envoy.filters.http.header_to_metadata".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(&HeaderToMetadata {
            request_rules: vec![rule],
            ..Default::default()
        }))),
        ..Default::default()
    }
}

fn http_log(ir: &Ir, inbound: bool) -> AccessLog {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let config = HttpGrpcAccessLogConfig {
        common_config: Some(common(ir, inbound)),
        additional_request_headers_to_log: names(&["content-type"]),
        additional_response_headers_to_log: names(&["grpc-status"]),
        additional_response_trailers_to_log: names(&["grpc-status"]),
    };
    access_log("envoy.access_loggers.http_grpc", any(&config))
}

fn tcp_log(ir: &Ir, inbound: bool) -> AccessLog {
    access_log(
        "envoy.access_loggers.tcp_grpc",
        any(&TcpGrpcAccessLogConfig { common_config: Some(common(ir, inbound)) }),
    )
}

fn access_log(name: &str, config: prost_types::Any) -> AccessLog {
    AccessLog {
        name: name.to_owned(),
        config_type: Some(access_log::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

fn common(ir: &Ir, inbound: bool) -> CommonGrpcAccessLogConfig {
    let agent = EnvoyGrpc { cluster_name: LOG_CLUSTER.to_owned(), ..Default::default() };
    let [to_us, to_others] = DIRECTIONS;
    let mut custom_tags = vec![
        tag("own", custom_tag::Type::Literal(custom_tag::Literal { value: peer_value(ir) })),
        tag("service", of(metadata_kind::Kind::Cluster(metadata_kind::Cluster {}), "istio", "services")),
    ];
    if !inbound {
        let host = || metadata_kind::Kind::Host(metadata_kind::Host {});
        custom_tags.push(tag("workload", of(host(), "istio", "workload")));
        custom_tags.push(tag("identity", of(host(), "envoy.transport_socket_match", "identity")));
    }
    CommonGrpcAccessLogConfig {
        log_name: if inbound { to_us } else { to_others }.to_owned(),
        grpc_service: Some(GrpcService {
            target_specifier: Some(TargetSpecifier::EnvoyGrpc(agent)),
            ..Default::default()
        }),
        transport_api_version: ApiVersion::V3.into(),
        buffer_flush_interval: Some(LOG_DELAY),
        custom_tags,
        ..Default::default()
    }
}

fn tag(name: &str, kind: custom_tag::Type) -> CustomTag {
    CustomTag { tag: name.to_owned(), r#type: Some(kind), ..Default::default() }
}

/// A field of an endpoint's or cluster's metadata.
fn of(kind: metadata_kind::Kind, namespace: &str, field: &str) -> custom_tag::Type {
    let segment = metadata_key::path_segment::Segment::Key(field.to_owned());
    custom_tag::Type::Metadata(custom_tag::Metadata {
        kind: Some(MetadataKind { kind: Some(kind) }),
        metadata_key: Some(MetadataKey {
            key: namespace.to_owned(),
            path: vec![metadata_key::PathSegment { segment: Some(segment) }],
        }),
        ..Default::default()
    })
}

/// Lets the peer header go only to where it is understood: it is set for each cluster all of whose endpoints are of the mesh,
/// and removed for all others, an app's own included. And lets retries find an endpoint that works.
pub(super) fn routes(config: &mut xds::RouteConfiguration, ir: &Ir, clusters: &Clusters<'_>) {
    let set = header(PEER_HEADER, &peer_value(ir), HeaderAppendAction::OverwriteIfExistsOrAdd);
    config.request_headers_to_add.retain(|option| option.header.as_ref().is_none_or(|held| held.key != PEER_HEADER));
    let understood = |cluster: &str| {
        ClusterName::parse(cluster).and_then(|name| clusters.get(&name).copied()).is_some_and(is_of_the_mesh)
    };
    for route in config.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
        let Some(xds::route::Action::Route(action)) = &mut route.action else { continue };
        if let Some(retry) = action.retry_policy.as_mut().filter(|retry| !retry.retry_host_predicate.is_empty()) {
            retry.host_selection_retry_max_attempts = HOST_ATTEMPTS;
        }
        match &mut action.cluster_specifier {
            Some(ClusterSpecifier::WeightedClusters(weighted)) => {
                for target in &mut weighted.clusters {
                    if understood(&target.name) {
                        target.request_headers_to_add.push(set.clone());
                    } else {
                        target.request_headers_to_remove.push(PEER_HEADER.to_owned());
                    }
                }
            }
            Some(ClusterSpecifier::Cluster(cluster)) if understood(cluster) => {
                route.request_headers_to_add.push(set.clone());
            }
            _ => route.request_headers_to_remove.push(PEER_HEADER.to_owned()),
        }
    }
    config.virtual_hosts.iter_mut().for_each(|host| harmless::split(&mut host.routes));
}

/// Leaves room for the retries of a moment in which an endpoint goes, where nobody wrote a budget: Leno's own proxy lets each of
/// its workers have the minimum, and retries at once; Envoy has one for all, and its retries wait a little first.
pub(super) fn cluster(message: &mut Message, policy: &TrafficPolicy) {
    let limited = policy.connections.as_ref().is_some_and(|limits| limits.max_retries.is_some());
    if policy.retry_budget.is_some() || limited {
        return;
    }
    let thresholds = message.circuit_breakers.iter_mut().flat_map(|breakers| &mut breakers.thresholds);
    for budget in thresholds.filter_map(|thresholds| thresholds.retry_budget.as_mut()) {
        budget.min_retry_concurrency = Some(RETRIES_ALWAYS);
    }
}

/// Whether every endpoint is spoken to by mutual TLS of the mesh.
fn is_of_the_mesh(cluster: &Cluster) -> bool {
    match (&cluster.policy.tls, &cluster.discovery) {
        (Some(ClientTls::Mesh { .. }), _) => true,
        (Some(_), _) | (None, Discovery::Name(_)) => false,
        (None, Discovery::Endpoints | Discovery::OriginalDestination) => {
            !cluster.plain && !cluster.identities.is_empty()
        }
    }
}
