//! HTTP connection managers.

use super::common::{access_log, maybe_duration, optional, unknown_type};
use super::{Context, Converted, Refused, Within as _, refuse, route};
use crate::config::{Codec, Direction, Http2Options, HttpFilter, HttpManager, RouteTable};
use crate::xds::state::Kind;
use leno_xds::envoy::config::core::v3::{Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions};
use leno_xds::envoy::extensions::filters::http::{cors::v3::Cors, fault::v3::HttpFault, router::v3::Router};
use leno_xds::envoy::extensions::filters::network::http_connection_manager::v3 as xds;
use leno_xds::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, Rds,
    http_connection_manager::{CodecType, PathWithEscapedSlashesAction, RouteSpecifier, StripPortMode, UpgradeConfig},
    http_filter,
};
use prost::Name as _;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Finds a route table by its resource's name; `None` while it has not come.
pub type Tables<'a> = &'a dyn Fn(&str) -> Option<Arc<RouteTable>>;

/// A connection manager. Names of route configurations that it takes from the stream are added to `wanted`; where one
/// has not come, the manager has no routes.
pub fn manager(
    context: &mut Context,
    value: HttpConnectionManager,
    direction: Direction,
    tables: Tables<'_>,
    wanted: &mut BTreeSet<String>,
) -> Converted<HttpManager> {
    let HttpConnectionManager {
        codec_type,
        stat_prefix,
        http_filters,
        add_user_agent,
        tracing,
        common_http_protocol_options,
        http1_safe_max_connection_duration: _,
        http_protocol_options,
        http2_protocol_options,
        http3_protocol_options: _,
        // This proxy passes the server header on and never writes one.
        server_name: _,
        server_header_transformation: _,
        scheme_header_transformation,
        max_request_headers_kb,
        stream_idle_timeout,
        stream_flush_timeout: _,
        request_timeout,
        request_headers_timeout,
        drain_timeout: _,
        drain_timeout_jitter: _,
        delayed_close_timeout: _,
        access_log: logs,
        access_log_flush_interval: _,
        flush_access_log_on_new_request,
        access_log_options: _,
        use_remote_address,
        xff_num_trusted_hops,
        original_ip_detection_extensions,
        early_header_mutation_extensions,
        internal_address_config: _,
        skip_xff_append: _,
        via,
        generate_request_id,
        preserve_external_request_id: _,
        always_set_request_id_in_response,
        forward_client_cert_details,
        set_current_client_cert_details: _,
        forward_client_cert_matcher,
        proxy_100_continue: _,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        upgrade_configs,
        normalize_path,
        merge_slashes,
        path_with_escaped_slashes_action,
        request_id_extension,
        local_reply_config,
        strip_matching_host_port,
        stream_error_on_invalid_http_message: _,
        path_normalization_options,
        strip_trailing_host_dot,
        proxy_status_config,
        typed_header_validation_config,
        append_x_forwarded_port,
        append_local_overload: _,
        add_proxy_protocol_connection_state: _,
        forward_proto_config,
        record_route_resolution_stats: _,
        route_specifier,
        strip_port_mode,
    } = value;
    let use_remote_address = use_remote_address.unwrap_or(false);
    let add_user_agent = add_user_agent.unwrap_or(false);
    let request_timeout = maybe_duration(request_timeout, "request_timeout")?.unwrap_or_default();
    refuse!(
        add_user_agent,
        tracing,
        scheme_header_transformation,
        request_timeout,
        flush_access_log_on_new_request,
        use_remote_address,
        xff_num_trusted_hops,
        original_ip_detection_extensions,
        early_header_mutation_extensions,
        via,
        always_set_request_id_in_response,
        forward_client_cert_details,
        forward_client_cert_matcher,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        request_id_extension,
        local_reply_config,
        strip_matching_host_port,
        path_normalization_options,
        strip_trailing_host_dot,
        proxy_status_config,
        typed_header_validation_config,
        append_x_forwarded_port,
        forward_proto_config
    );
    let defaults = HttpManager::default();
    let codec = match CodecType::try_from(codec_type) {
        Ok(CodecType::Auto) => Codec::Auto,
        Ok(CodecType::Http1) => Codec::Http1,
        Ok(CodecType::Http2) => Codec::Http2,
        Ok(CodecType::Http3) | Err(_) => return Err(Refused::new("codec_type", "is not supported by this proxy")),
    };
    let escaped = PathWithEscapedSlashesAction::try_from(path_with_escaped_slashes_action);
    if !matches!(
        escaped,
        Ok(PathWithEscapedSlashesAction::ImplementationSpecificDefault | PathWithEscapedSlashesAction::KeepUnchanged)
    ) {
        return Err(Refused::new("path_with_escaped_slashes_action", "other than KEEP_UNCHANGED is not supported"));
    }
    filters(http_filters)?;
    let routes = match route_specifier {
        Some(RouteSpecifier::Rds(Rds { config_source, route_config_name })) => {
            if route_config_name.is_empty() {
                return Err(Refused::new("rds.route_config_name", "is empty"));
            }
            let asked = context.sources.ask(Kind::Routes, &route_config_name, config_source);
            asked.within("rds.config_source")?;
            let table = tables(&route_config_name).unwrap_or_default();
            wanted.insert(route_config_name);
            table
        }
        Some(RouteSpecifier::RouteConfig(value)) => Arc::new(route::table(context, value).within("route_config")?),
        Some(RouteSpecifier::ScopedRoutes(_)) => {
            return Err(Refused::new("scoped_routes", "is not supported by this proxy"));
        }
        None => return Err(Refused::new("route_specifier", "is missing")),
    };
    let (idle_timeout, max_headers) =
        common(common_http_protocol_options).within("common_http_protocol_options")?.unwrap_or((None, None));
    http1(http_protocol_options).within("http_protocol_options")?;
    Ok(HttpManager {
        stat_prefix: stat_prefix.into(),
        direction,
        codec,
        routes,
        filters: vec![HttpFilter::Router],
        access_log: access_log(context, logs).within("access_log")?,
        request_head_timeout: maybe_duration(request_headers_timeout, "request_headers_timeout")?
            .filter(|limit| !limit.is_zero())
            .unwrap_or(defaults.request_head_timeout),
        idle_timeout: idle_timeout.unwrap_or(defaults.idle_timeout),
        stream_idle_timeout: maybe_duration(stream_idle_timeout, "stream_idle_timeout")?
            .unwrap_or(defaults.stream_idle_timeout),
        max_head_bytes: max_request_headers_kb
            .and_then(|kib| usize::try_from(kib).ok()?.checked_mul(1024))
            .unwrap_or(defaults.max_head_bytes),
        max_headers: max_headers.and_then(|count| usize::try_from(count).ok()).unwrap_or(defaults.max_headers),
        normalize_path: normalize_path.unwrap_or(false),
        merge_slashes,
        generate_request_id: generate_request_id.unwrap_or(true),
        upgrades: upgrades(upgrade_configs)?,
        strip_host_port: matches!(strip_port_mode, Some(StripPortMode::StripAnyHostPort(true))),
        http2: http2(http2_protocol_options).within("http2_protocol_options")?,
    })
}

fn filters(values: Vec<xds::HttpFilter>) -> Converted<()> {
    let last = values.len().saturating_sub(1);
    for (index, filter) in values.into_iter().enumerate() {
        let xds::HttpFilter { name, is_optional, disabled, config_type } = filter;
        if disabled {
            continue;
        }
        let within = format!("http_filters[{index}]");
        let any = match config_type {
            Some(http_filter::ConfigType::TypedConfig(any)) => any,
            Some(http_filter::ConfigType::ConfigDiscovery(_)) => {
                return Err(Refused::new("config_discovery", "is not supported by this proxy").within(within));
            }
            None => return Err(Refused::new("typed_config", format!("of `{name}` is missing")).within(within)),
        };
        match optional::<Router>(&any).within(&within)? {
            Some(value) if index == last => router(value).within(within)?,
            Some(_) => return Err(Refused::new("", "the router must be the last filter").within(within)),
            // Reported in status: the service answers for CORS, and no faults are injected yet.
            None if any.type_url == Cors::type_url() || any.type_url == HttpFault::type_url() => {}
            None if is_optional => {}
            None => return Err(unknown_type(&any).within(within)),
        }
    }
    Ok(())
}

fn router(value: Router) -> Converted<()> {
    let Router {
        dynamic_stats: _,
        start_child_span: _,
        upstream_log,
        upstream_log_options: _,
        // This proxy neither sends `x-envoy-*` headers nor obeys them.
        suppress_envoy_headers: _,
        strict_check_headers: _,
        respect_expected_rq_timeout,
        suppress_grpc_request_failure_code_stats: _,
        upstream_http_filters,
        reject_connect_request_early_data: _,
    } = value;
    refuse!(upstream_log, respect_expected_rq_timeout, upstream_http_filters);
    Ok(())
}

fn upgrades(values: Vec<UpgradeConfig>) -> Converted<Vec<Arc<str>>> {
    let mut upgrades = Vec::new();
    for (index, UpgradeConfig { upgrade_type, filters, enabled }) in values.into_iter().enumerate() {
        refuse!(filters);
        if upgrade_type.eq_ignore_ascii_case("connect") {
            return Err(Refused::new(
                format!("upgrade_configs[{index}].upgrade_type"),
                "CONNECT is not supported by this proxy",
            ));
        }
        if enabled.unwrap_or(true) {
            upgrades.push(upgrade_type.to_ascii_lowercase().into());
        }
    }
    Ok(upgrades)
}

type CommonOptions = (Option<std::time::Duration>, Option<u32>);

/// Idle time and number of headers.
fn common(value: Option<HttpProtocolOptions>) -> Converted<Option<CommonOptions>> {
    let Some(HttpProtocolOptions {
        idle_timeout,
        max_connection_duration,
        max_connection_duration_jitter: _,
        max_headers_count,
        max_response_headers_kb: _,
        max_stream_duration,
        headers_with_underscores_action,
        max_requests_per_connection,
    }) = value
    else {
        return Ok(None);
    };
    refuse!(max_connection_duration, max_stream_duration, headers_with_underscores_action, max_requests_per_connection);
    Ok(Some((maybe_duration(idle_timeout, "idle_timeout")?, max_headers_count)))
}

/// Settings of HTTP/1.1; shared with clusters.
pub fn http1(value: Option<Http1ProtocolOptions>) -> Converted<()> {
    let Some(Http1ProtocolOptions {
        // An absolute target is understood, and sent on in origin form, whatever this says.
        allow_absolute_url: _,
        accept_http_10: _,
        default_host_for_http_10,
        // Names pass in the case in which they came.
        header_key_format: _,
        enable_trailers: _,
        allow_chunked_length,
        override_stream_error_on_invalid_http_message: _,
        send_fully_qualified_url,
        use_balsa_parser: _,
        allow_custom_methods: _,
        ignore_http_11_upgrade,
    }) = value
    else {
        return Ok(());
    };
    refuse!(default_host_for_http_10, allow_chunked_length, send_fully_qualified_url, ignore_http_11_upgrade);
    Ok(())
}

/// Settings of HTTP/2; shared with clusters.
pub fn http2(value: Option<Http2ProtocolOptions>) -> Converted<Http2Options> {
    let defaults = Http2Options::default();
    let Some(Http2ProtocolOptions {
        hpack_table_size: _,
        max_concurrent_streams,
        initial_stream_window_size,
        initial_connection_window_size,
        allow_connect,
        allow_metadata,
        max_outbound_frames: _,
        max_outbound_control_frames: _,
        max_consecutive_inbound_frames_with_empty_payload: _,
        max_inbound_priority_frames_per_stream: _,
        max_inbound_window_update_frames_per_data_frame_sent: _,
        stream_error_on_invalid_http_messaging: _,
        override_stream_error_on_invalid_http_message: _,
        custom_settings_parameters,
        // Reported in status: connections are not probed yet.
        connection_keepalive: _,
        use_oghttp2_codec: _,
        max_metadata_size: _,
        enable_huffman_encoding: _,
        max_header_field_size_kb: _,
        disallow_obs_text: _,
        stream_reset_burst: _,
        stream_reset_rate: _,
    }) = value
    else {
        return Ok(defaults);
    };
    refuse!(allow_connect, allow_metadata, custom_settings_parameters);
    Ok(Http2Options {
        max_concurrent_streams: max_concurrent_streams.unwrap_or(defaults.max_concurrent_streams),
        stream_window: initial_stream_window_size.unwrap_or(defaults.stream_window),
        connection_window: initial_connection_window_size.unwrap_or(defaults.connection_window),
    })
}
