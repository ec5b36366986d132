//! The filters of listeners: HTTP, TCP, what looks at the first bytes, and the access log.

use std::time::Duration;

use leno_core::policy::{Algorithm, HashKey, TrafficPolicy, Tunnel};
use leno_xds::any;
use leno_xds::envoy::config::accesslog::v3::{AccessLog, access_log};
use leno_xds::envoy::config::core::v3::{
    BackoffStrategy, DataSource, Http1ProtocolOptions, SubstitutionFormatString, data_source,
    substitution_format_string::Format,
};
use leno_xds::envoy::config::listener::v3::{
    Filter, FilterChain, ListenerFilter, ListenerFilterChainMatchPredicate, filter, listener_filter,
    listener_filter_chain_match_predicate::{MatchSet, Rule},
};
use leno_xds::envoy::config::route::v3::RouteConfiguration;
use leno_xds::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log::AccessLogFormat};
use leno_xds::envoy::extensions::filters::http::cors::v3::Cors;
use leno_xds::envoy::extensions::filters::http::fault::v3::HttpFault;
use leno_xds::envoy::extensions::filters::http::grpc_web::v3::GrpcWeb;
use leno_xds::envoy::extensions::filters::http::router::v3::Router;
use leno_xds::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use leno_xds::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use leno_xds::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use leno_xds::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier, ServerHeaderTransformation,
    SetCurrentClientCertDetails, UpgradeConfig,
};
use leno_xds::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_filter,
};
use leno_xds::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use leno_xds::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, TunnelingConfig, WeightedCluster, weighted_cluster::ClusterWeight,
};
use leno_xds::envoy::r#type::v3::{HashPolicy, Int32Range, hash_policy};

use super::Clusters;
use super::clusters::BLACK_HOLE;
use super::routes::{CORS, FAULT};
use super::values::{ads, duration};
use crate::resolve::{ClusterName, TcpTarget};

/// Istio's default format.
const LOG_FORMAT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% ",
    "%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% ",
    "\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ",
    "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" ",
    "\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% ",
    "%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% ",
    "%REQUESTED_SERVER_NAME% %ROUTE_NAME%\n",
);

/// How long a request may be silent in both directions, in seconds.
const STREAM_IDLE_SECONDS: i64 = 3600;
/// How long the head of a request may take, in seconds.
const REQUEST_HEAD_SECONDS: i64 = 60;

/// Where an HTTP filter takes its routes from.
pub(super) enum Routes {
    /// By name from the control plane.
    Named(String),
    /// From here.
    Inline(Box<RouteConfiguration>),
}

/// What HTTP connections need beyond routing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HttpNeeds {
    /// A route answers for CORS.
    pub(super) cors: bool,
    /// A route injects faults.
    pub(super) fault: bool,
    /// Calls of gRPC-Web are made calls of gRPC.
    pub(super) grpc_web: bool,
    /// The app is told who the client is, by `x-forwarded-client-cert`; what clients say of themselves there is never passed on.
    pub(super) certificate: bool,
}

/// Speaks HTTP.
pub(super) fn http(stat_prefix: &str, routes: Routes, needs: HttpNeeds) -> Filter {
    let mut http_filters = Vec::new();
    if needs.cors {
        http_filters.push(http_filter(CORS, any(&Cors {})));
    }
    if needs.fault {
        http_filters.push(http_filter(FAULT, any(&HttpFault::default())));
    }
    if needs.grpc_web {
        http_filters.push(http_filter("envoy.filters.http.grpc_web", any(&GrpcWeb {})));
    }
    http_filters.push(http_filter("envoy.filters.http.router", any(&Router::default())));
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let manager = HttpConnectionManager {
        codec_type: CodecType::Auto.into(),
        stat_prefix: stat_prefix.to_owned(),
        route_specifier: Some(match routes {
            Routes::Named(name) => RouteSpecifier::Rds(Rds { config_source: Some(ads()), route_config_name: name }),
            Routes::Inline(routes) => RouteSpecifier::RouteConfig(*routes),
        }),
        http_filters,
        http_protocol_options: Some(Http1ProtocolOptions {
            accept_http_10: true,
            enable_trailers: true,
            allow_custom_methods: true,
            ..Default::default()
        }),
        // The app's own header is nobody's business.
        server_header_transformation: ServerHeaderTransformation::PassThrough.into(),
        stream_idle_timeout: seconds(STREAM_IDLE_SECONDS),
        request_headers_timeout: seconds(REQUEST_HEAD_SECONDS),
        access_log: vec![access_log()],
        use_remote_address: Some(false),
        forward_client_cert_details: match needs.certificate {
            true => ForwardClientCertDetails::SanitizeSet.into(),
            false => ForwardClientCertDetails::Sanitize.into(),
        },
        set_current_client_cert_details: needs.certificate.then(|| SetCurrentClientCertDetails {
            subject: Some(true),
            dns: true,
            uri: true,
            ..Default::default()
        }),
        upgrade_configs: vec![UpgradeConfig { upgrade_type: "websocket".to_owned(), ..Default::default() }],
        normalize_path: Some(true),
        merge_slashes: false,
        path_with_escaped_slashes_action: PathWithEscapedSlashesAction::KeepUnchanged.into(),
        ..Default::default()
    };
    network_filter("envoy.filters.network.http_connection_manager", any(&manager))
}

/// Passes bytes on to one cluster.
pub(super) fn tcp(stat_prefix: &str, cluster: &str) -> Filter {
    tcp_proxy(stat_prefix, ClusterSpecifier::Cluster(cluster.to_owned()), &TrafficPolicy::default(), 1)
}

/// Connections that are tried at most, each to another endpoint where there is one, before the client's is closed: nothing of it was sent
/// yet, and an endpoint that is just going or handing over must not cost it.
const CONNECT_ATTEMPTS: u32 = 3;
/// The pause before the second of them is shorter than this; it doubles.
const CONNECT_BACKOFF: Duration = Duration::from_millis(50);
/// No pause between two of them is longer.
const LONGEST_CONNECT_BACKOFF: Duration = Duration::from_millis(250);

/// Passes bytes on to one of several clusters. What the policy of the first says of connections holds for all of them.
pub(super) fn tcp_to(stat_prefix: &str, target: &TcpTarget, clusters: &Clusters<'_>) -> Filter {
    let name = |cluster: &Option<ClusterName>| match cluster {
        Some(cluster) => cluster.to_string(),
        None => BLACK_HOLE.to_owned(),
    };
    let used: Vec<_> = target.targets.iter().filter(|(_, weight)| *weight > 0).collect();
    let policy = used
        .iter()
        .find_map(|(cluster, _)| clusters.get(cluster.as_ref()?))
        .map(|cluster| cluster.policy.clone())
        .unwrap_or_default();
    match used.as_slice() {
        [] => tcp(stat_prefix, BLACK_HOLE),
        [(cluster, _)] => tcp_proxy(stat_prefix, ClusterSpecifier::Cluster(name(cluster)), &policy, CONNECT_ATTEMPTS),
        several => {
            let clusters = several.iter().map(|(cluster, weight)| ClusterWeight {
                name: name(cluster),
                weight: *weight,
                ..Default::default()
            });
            let weighted = WeightedCluster { clusters: clusters.collect() };
            tcp_proxy(stat_prefix, ClusterSpecifier::WeightedClusters(weighted), &policy, CONNECT_ATTEMPTS)
        }
    }
}

fn tcp_proxy(stat_prefix: &str, cluster: ClusterSpecifier, policy: &TrafficPolicy, attempts: u32) -> Filter {
    let limits = policy.connections.as_ref();
    let by_address = policy
        .balancing
        .as_ref()
        .is_some_and(|balancing| matches!(balancing.algorithm, Algorithm::Hash(HashKey::SourceAddress, _)));
    let proxy = TcpProxy {
        stat_prefix: stat_prefix.to_owned(),
        cluster_specifier: Some(cluster),
        idle_timeout: limits.and_then(|limits| limits.tcp_idle_timeout).map(duration),
        max_downstream_connection_duration: limits.and_then(|limits| limits.max_connection_duration).map(duration),
        hash_policy: by_address
            .then_some(HashPolicy {
                policy_specifier: Some(hash_policy::PolicySpecifier::SourceIp(hash_policy::SourceIp {})),
            })
            .into_iter()
            .collect(),
        tunneling_config: policy.tunnel.as_ref().map(|Tunnel { by_post, host, port }| TunnelingConfig {
            hostname: format!("{host}:{port}"),
            use_post: *by_post,
            ..Default::default()
        }),
        max_connect_attempts: (attempts > 1).then_some(attempts),
        backoff_options: (attempts > 1).then(|| BackoffStrategy {
            base_interval: Some(duration(CONNECT_BACKOFF)),
            max_interval: Some(duration(LONGEST_CONNECT_BACKOFF)),
        }),
        access_log: vec![access_log()],
        ..Default::default()
    };
    network_filter("envoy.filters.network.tcp_proxy", any(&proxy))
}

fn http_filter(name: &str, config: prost_types::Any) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

fn network_filter(name: &str, config: prost_types::Any) -> Filter {
    Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(config)) }
}

/// A filter chain of one filter that takes everything.
pub(super) fn chain(name: &str, filter: Filter) -> FilterChain {
    FilterChain { name: name.to_owned(), filters: vec![filter], ..Default::default() }
}

/// Finds out where a connection was going before it was captured.
pub(super) fn original_dst() -> ListenerFilter {
    ListenerFilter {
        name: "envoy.filters.listener.original_dst".to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(any(&OriginalDst::default()))),
        ..Default::default()
    }
}

/// Looks for TLS.
pub(super) fn tls_inspector() -> ListenerFilter {
    ListenerFilter {
        name: "envoy.filters.listener.tls_inspector".to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(any(&TlsInspector::default()))),
        ..Default::default()
    }
}

/// Looks for HTTP, but not on ports of which it is known what they speak: a server that speaks first would wait.
pub(super) fn http_inspector(known: &[u16]) -> ListenerFilter {
    let mut rules = known.iter().map(|port| ListenerFilterChainMatchPredicate {
        rule: Some(Rule::DestinationPortRange(Int32Range { start: i32::from(*port), end: i32::from(*port) + 1 })),
    });
    // A choice of one is not a choice to Envoy.
    let filter_disabled = match known.len() {
        0 => None,
        1 => rules.next(),
        _ => Some(ListenerFilterChainMatchPredicate { rule: Some(Rule::OrMatch(MatchSet { rules: rules.collect() })) }),
    };
    ListenerFilter {
        name: "envoy.filters.listener.http_inspector".to_owned(),
        filter_disabled,
        config_type: Some(listener_filter::ConfigType::TypedConfig(any(&HttpInspector::default()))),
    }
}

fn access_log() -> AccessLog {
    let format = SubstitutionFormatString {
        format: Some(Format::TextFormatSource(DataSource {
            specifier: Some(data_source::Specifier::InlineString(LOG_FORMAT.to_owned())),
            ..Default::default()
        })),
        ..Default::default()
    };
    let file =
        FileAccessLog { path: "/dev/stdout".to_owned(), access_log_format: Some(AccessLogFormat::LogFormat(format)) };
    AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        config_type: Some(access_log::ConfigType::TypedConfig(any(&file))),
        ..Default::default()
    }
}
