//! HTTP connection managers.

use super::access_log::access_logs;
use super::common::{log_interval, maybe_duration, optional, percent, unknown_type};
use super::edge::{Fields, edge, header_value, limit};
use super::listener::Found;
use super::local_reply::local_replies;
use super::{Context, Converted, Refused, Within as _, filter, matcher, refuse, route};
use crate::config::{
    AccessLog, Chain, Codec, Direction, EscapedSlashes, HeaderNames, Http1Upstream, Http2Keepalive, Http2Options,
    HttpManager, MAX_HEADERS, RouteTable, ServerHeader, StringMatch, StripPort, Underscores, Upgrade,
};
use crate::telemetry::LogNeeds;
use crate::xds::state::Kind;
use leno_xds::envoy::config::core::v3::http_protocol_options::HeadersWithUnderscoresAction;
use leno_xds::envoy::config::core::v3::http1_protocol_options::HeaderKeyFormat;
use leno_xds::envoy::config::core::v3::http1_protocol_options::header_key_format::{HeaderFormat, ProperCaseWords};
use leno_xds::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions, KeepaliveSettings, TypedExtensionConfig,
};
use leno_xds::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, Rds,
    http_connection_manager::{
        CodecType, HcmAccessLogOptions, PathWithEscapedSlashesAction, RouteSpecifier, ServerHeaderTransformation,
        StripPortMode, UpgradeConfig,
    },
};
use leno_xds::envoy::extensions::http::header_formatters::preserve_case::v3::{
    PreserveCaseFormatterConfig, preserve_case_formatter_config::FormatterTypeOnEnvoyHeaders,
};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// The `server` header where the manager names none: Envoy's default, which clients and tests of gateways look for.
const SERVER_NAME: &str = "envoy";

/// Finds a route table by its resource's name; `None` while it has not come.
pub type Tables<'a> = &'a dyn Fn(&str) -> Option<Arc<RouteTable>>;

/// A connection manager. What it takes from the stream by name is added to `found`; where a route configuration has not
/// come, the manager has no routes. Traces name its traffic outgoing where `egress` says so.
pub fn manager(
    context: &mut Context,
    value: HttpConnectionManager,
    direction: (Direction, bool),
    tables: Tables<'_>,
    found: &mut Found,
) -> Converted<HttpManager> {
    let before = std::mem::take(&mut context.asks_dynamic);
    let manager = all_of(context, value, direction, tables, found);
    let dynamic = std::mem::replace(&mut context.asks_dynamic, before);
    let needs = LogNeeds { dynamic, ..LogNeeds::default() };
    manager.map(|manager| HttpManager { needs: manager.needs.with(needs), ..manager })
}

fn all_of(
    context: &mut Context,
    value: HttpConnectionManager,
    (direction, egress): (Direction, bool),
    tables: Tables<'_>,
    found: &mut Found,
) -> Converted<HttpManager> {
    let HttpConnectionManager {
        codec_type,
        stat_prefix,
        http_filters,
        add_user_agent,
        tracing: traces,
        common_http_protocol_options,
        http1_safe_max_connection_duration,
        http_protocol_options,
        http2_protocol_options,
        http3_protocol_options: _,
        server_name,
        server_header_transformation,
        scheme_header_transformation,
        max_request_headers_kb,
        stream_idle_timeout,
        stream_flush_timeout,
        request_timeout,
        request_headers_timeout,
        drain_timeout,
        drain_timeout_jitter: _,
        delayed_close_timeout,
        access_log: logs,
        access_log_flush_interval,
        flush_access_log_on_new_request,
        access_log_options,
        use_remote_address,
        xff_num_trusted_hops,
        original_ip_detection_extensions,
        early_header_mutation_extensions,
        internal_address_config,
        skip_xff_append,
        via,
        generate_request_id,
        preserve_external_request_id,
        always_set_request_id_in_response,
        forward_client_cert_details,
        set_current_client_cert_details,
        forward_client_cert_matcher,
        proxy_100_continue,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        upgrade_configs,
        normalize_path,
        merge_slashes,
        path_with_escaped_slashes_action,
        request_id_extension,
        local_reply_config,
        strip_matching_host_port,
        stream_error_on_invalid_http_message,
        path_normalization_options,
        strip_trailing_host_dot,
        proxy_status_config,
        typed_header_validation_config,
        append_x_forwarded_port,
        append_local_overload,
        add_proxy_protocol_connection_state: _,
        forward_proto_config,
        record_route_resolution_stats: _,
        route_specifier,
        strip_port_mode,
    } = value;
    let request_timeout = limit(request_timeout, "request_timeout")?;
    let marked = request_id_extension.clone();
    refuse!(
        forward_client_cert_matcher,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        path_normalization_options,
        proxy_status_config,
        typed_header_validation_config,
        forward_proto_config
    );
    let edge = edge(
        context,
        Fields {
            use_remote_address: use_remote_address.unwrap_or(false),
            xff_num_trusted_hops,
            skip_xff_append,
            append_x_forwarded_port,
            original_ip_detection_extensions,
            early_header_mutation_extensions,
            internal_address_config,
            forward_client_cert_details,
            set_current_client_cert_details,
            scheme_header_transformation,
            via,
            add_user_agent: add_user_agent.unwrap_or(false),
            request_id_extension,
            preserve_external_request_id,
            always_set_request_id_in_response,
        },
    )?;
    let marks = super::edge::marks(marked).within("request_id_extension")?;
    let traces = traces.map(|value| super::tracing::manager(context, value, egress, marks)).transpose();
    let traces = traces.within("tracing")?;
    let defaults = HttpManager::default();
    let codec = match CodecType::try_from(codec_type) {
        Ok(CodecType::Auto) => Codec::Auto,
        Ok(CodecType::Http1) => Codec::Http1,
        Ok(CodecType::Http2) => Codec::Http2,
        Ok(CodecType::Http3) | Err(_) => return Err(Refused::new("codec_type", "is not supported by this proxy")),
    };
    let escaped_slashes = match PathWithEscapedSlashesAction::try_from(path_with_escaped_slashes_action) {
        Ok(
            PathWithEscapedSlashesAction::ImplementationSpecificDefault | PathWithEscapedSlashesAction::KeepUnchanged,
        ) => EscapedSlashes::Keep,
        Ok(PathWithEscapedSlashesAction::RejectRequest) => EscapedSlashes::Reject,
        Ok(PathWithEscapedSlashesAction::UnescapeAndRedirect) => EscapedSlashes::Redirect,
        Ok(PathWithEscapedSlashesAction::UnescapeAndForward) => EscapedSlashes::Unescape,
        Err(_) => return Err(Refused::new("path_with_escaped_slashes_action", "is not known to this proxy")),
    };
    let server_name: Arc<str> = match server_name.is_empty() {
        true => SERVER_NAME.into(),
        false => header_value(server_name, "server_name")?.into(),
    };
    let server_header = match ServerHeaderTransformation::try_from(server_header_transformation) {
        Ok(ServerHeaderTransformation::Overwrite) => ServerHeader::Overwrite(server_name),
        Ok(ServerHeaderTransformation::AppendIfAbsent) => ServerHeader::IfAbsent(server_name),
        Ok(ServerHeaderTransformation::PassThrough) => ServerHeader::PassThrough,
        Err(_) => return Err(Refused::new("server_header_transformation", "is not known to this proxy")),
    };
    let strip_port = match (strip_matching_host_port, strip_port_mode) {
        (true, Some(StripPortMode::StripAnyHostPort(true))) => {
            return Err(Refused::new("strip_matching_host_port", "and `strip_any_host_port` exclude each other"));
        }
        (_, Some(StripPortMode::StripAnyHostPort(true))) => StripPort::Any,
        (true, _) => StripPort::Matching,
        (false, _) => StripPort::Never,
    };
    let local_replies =
        local_reply_config.map(|value| local_replies(context, value)).transpose().within("local_reply_config")?;
    let (filters, router) =
        filter::chain(context, &stat_prefix, ("http_filters", http_filters), &mut found.extensions)?;
    let upgrades = upgrades(context, &stat_prefix, upgrade_configs, found)?;
    let routes = match route_specifier {
        Some(RouteSpecifier::Rds(Rds { config_source, route_config_name })) => {
            if route_config_name.is_empty() {
                return Err(Refused::new("rds.route_config_name", "is empty"));
            }
            let asked = context.sources.ask(Kind::Routes, &route_config_name, config_source);
            asked.within("rds.config_source")?;
            let table = tables(&route_config_name).unwrap_or_default();
            found.prefixes.insert(route_config_name.clone(), stat_prefix.clone());
            found.routes.insert(route_config_name);
            table
        }
        Some(RouteSpecifier::RouteConfig(value)) => Arc::new(route::table(context, value).within("route_config")?),
        Some(RouteSpecifier::ScopedRoutes(_)) => {
            return Err(Refused::new("scoped_routes", "is not supported by this proxy"));
        }
        None => return Err(Refused::new("route_specifier", "is missing")),
    };
    let common = common(common_http_protocol_options).within("common_http_protocol_options")?;
    let options = http_protocol_options.unwrap_or_default();
    let (accept_http_10, default_host) = (options.accept_http_10, options.default_host_for_http_10.clone());
    let stream_error = options.override_stream_error_on_invalid_http_message;
    let overridden = http2_protocol_options
        .as_ref()
        .is_some_and(|options| options.override_stream_error_on_invalid_http_message.is_some());
    let keepalive = http2_protocol_options.as_ref().and_then(|options| options.connection_keepalive);
    let http2_keepalive = http2_keepalive(keepalive).within("http2_protocol_options")?;
    let mut http2 = http2(http2_protocol_options).within("http2_protocol_options")?;
    if let (Some(of_all), false) = (stream_error_on_invalid_http_message, overridden) {
        http2.malformed_ends_stream = of_all;
    }
    let http1 = http1_options(Some(options)).within("http_protocol_options")?;
    let default_host_for_http_10 = match default_host.is_empty() {
        true => None,
        false => Some(header_value(default_host, "http_protocol_options.default_host_for_http_10")?.into()),
    };
    let logs = access_logs(context, logs)?;
    let (starts, log_tunnels, every) = log_when(access_log_options).within("access_log_options")?;
    let of_all = log_interval(access_log_flush_interval)?;
    Ok(HttpManager {
        stat_prefix: stat_prefix.into(),
        direction,
        ends_on_changes_only: false,
        bypasses_overload: false,
        tells_overload: append_local_overload,
        codec,
        routes,
        filters,
        router,
        log_starts: starts || flush_access_log_on_new_request,
        log_tunnels,
        log_every: every.or(of_all),
        needs: AccessLog::needs(&logs),
        access_logs: logs,
        tracing: traces.map(Box::new),
        request_head_timeout: maybe_duration(request_headers_timeout, "request_headers_timeout")?
            .filter(|limit| !limit.is_zero())
            .unwrap_or(defaults.request_head_timeout),
        idle_timeout: common.idle_timeout.unwrap_or(defaults.idle_timeout),
        stream_idle_timeout: maybe_duration(stream_idle_timeout, "stream_idle_timeout")?
            .unwrap_or(defaults.stream_idle_timeout),
        flush_timeout: maybe_duration(stream_flush_timeout, "stream_flush_timeout")?,
        request_timeout,
        max_stream_duration: common.max_stream_duration,
        max_connection_duration: common.max_connection_duration,
        safe_connection_duration: http1_safe_max_connection_duration,
        connection_duration_jitter: common.connection_duration_jitter,
        drain_timeout: maybe_duration(drain_timeout, "drain_timeout")?.unwrap_or(defaults.drain_timeout),
        delayed_close_timeout: maybe_duration(delayed_close_timeout, "delayed_close_timeout")?
            .unwrap_or(defaults.delayed_close_timeout),
        max_requests_per_connection: common.max_requests_per_connection,
        max_head_bytes: max_request_headers_kb
            .and_then(|kib| usize::try_from(kib).ok()?.checked_mul(1024))
            .unwrap_or(defaults.max_head_bytes),
        max_headers: common.max_headers.unwrap_or(defaults.max_headers),
        normalize_path: normalize_path.unwrap_or(false),
        merge_slashes,
        generate_request_id: generate_request_id.unwrap_or(true),
        upgrades,
        escaped_slashes,
        underscores: common.underscores,
        strip_port,
        strip_trailing_dot: strip_trailing_host_dot,
        edge,
        server_header,
        accept_http_10,
        default_host_for_http_10,
        proxy_100_continue,
        names: http1.names,
        http1_trailers: http1.trailers,
        any_method: http1.any_method,
        absolute_urls: http1.absolute_urls,
        ignored_upgrades: http1.ignored_upgrades,
        chunked_length: http1.chunked_length,
        stream_error_on_invalid: stream_error.or(stream_error_on_invalid_http_message).unwrap_or(false),
        local_replies: local_replies.map(Box::new),
        buffer_limit: defaults.buffer_limit,
        http2,
        http2_keepalive,
    })
}

/// When the other side of a connection is asked whether it is still there.
pub fn http2_keepalive(value: Option<KeepaliveSettings>) -> Converted<Option<Http2Keepalive>> {
    let Some(KeepaliveSettings { interval, timeout, interval_jitter, connection_idle_interval }) = value else {
        return Ok(None);
    };
    let time = |value, field: &str| maybe_duration(value, field).within("connection_keepalive");
    let timeout = time(timeout, "timeout")?;
    Ok(Some(Http2Keepalive {
        interval: time(interval, "interval")?.unwrap_or_default(),
        timeout: timeout.ok_or_else(|| Refused::new("connection_keepalive.timeout", "is missing"))?,
        // Envoy's default.
        jitter: interval_jitter.map_or(15, |percent| percent.value.clamp(0.0, 100.0) as u32),
        idle: time(connection_idle_interval, "connection_idle_interval")?.unwrap_or_default(),
    }))
}

/// Whether lines are written when a request has begun and when its tunnel stands, and how often while it goes on.
fn log_when(value: Option<HcmAccessLogOptions>) -> Converted<(bool, bool, Option<Duration>)> {
    let HcmAccessLogOptions {
        access_log_flush_interval,
        flush_access_log_on_new_request,
        flush_log_on_tunnel_successfully_established,
    } = value.unwrap_or_default();
    let (starts, tunnels) = (flush_access_log_on_new_request, flush_log_on_tunnel_successfully_established);
    Ok((starts, tunnels, log_interval(access_log_flush_interval)?))
}

fn upgrades(
    context: &mut Context,
    prefix: &str,
    values: Vec<UpgradeConfig>,
    found: &mut Found,
) -> Converted<Vec<Upgrade>> {
    let (mut upgrades, mut seen) = (Vec::new(), HashSet::new());
    for (index, UpgradeConfig { upgrade_type, filters, enabled }) in values.into_iter().enumerate() {
        let kind: Arc<str> = upgrade_type.to_ascii_lowercase().into();
        if !seen.insert(kind.clone()) {
            let field = format!("upgrade_configs[{index}].upgrade_type");
            return Err(Refused::new(field, format!("`{upgrade_type}` is there twice")));
        }
        // Without filters it has none of its own.
        let chain = match filters.is_empty() {
            true => None,
            false => {
                let field = format!("upgrade_configs[{index}].filters");
                let (filters, router) = filter::chain(context, prefix, (&field, filters), &mut found.extensions)?;
                Some(Box::new(Chain { filters, router }))
            }
        };
        upgrades.push(Upgrade { kind, offered: enabled.unwrap_or(true), chain });
    }
    Ok(upgrades)
}

/// What the options of every HTTP version say.
struct Common {
    idle_timeout: Option<Duration>,
    max_connection_duration: Option<Duration>,
    connection_duration_jitter: f64,
    max_headers: Option<usize>,
    max_stream_duration: Option<Duration>,
    underscores: Underscores,
    max_requests_per_connection: Option<u32>,
}

fn common(value: Option<HttpProtocolOptions>) -> Converted<Common> {
    let HttpProtocolOptions {
        idle_timeout,
        max_connection_duration,
        max_connection_duration_jitter,
        max_headers_count,
        // Of responses, which clients send none of.
        max_response_headers_kb: _,
        max_stream_duration,
        headers_with_underscores_action,
        max_requests_per_connection,
    } = value.unwrap_or_default();
    let underscores = match HeadersWithUnderscoresAction::try_from(headers_with_underscores_action) {
        Ok(HeadersWithUnderscoresAction::Allow) => Underscores::Allow,
        Ok(HeadersWithUnderscoresAction::RejectRequest) => Underscores::Reject,
        Ok(HeadersWithUnderscoresAction::DropHeader) => Underscores::Drop,
        Err(_) => return Err(Refused::new("headers_with_underscores_action", "is not known to this proxy")),
    };
    let max_headers = match max_headers_count.map(usize::try_from) {
        None => None,
        Some(Ok(count @ 1..=MAX_HEADERS)) => Some(count),
        Some(_) => return Err(Refused::new("max_headers_count", format!("is not between 1 and {MAX_HEADERS}"))),
    };
    Ok(Common {
        idle_timeout: maybe_duration(idle_timeout, "idle_timeout")?,
        max_connection_duration: limit(max_connection_duration, "max_connection_duration")?,
        connection_duration_jitter: percent(max_connection_duration_jitter, "max_connection_duration_jitter")?
            .unwrap_or(0.0),
        max_headers,
        max_stream_duration: limit(max_stream_duration, "max_stream_duration")?,
        underscores,
        max_requests_per_connection: max_requests_per_connection.filter(|most| *most > 0),
    })
}

/// What is taken of the settings of HTTP/1.1.
#[derive(Default)]
struct Http1 {
    names: HeaderNames,
    trailers: bool,
    any_method: bool,
    absolute_urls: bool,
    ignored_upgrades: Vec<StringMatch>,
    chunked_length: bool,
    full_url: bool,
}

/// Settings of HTTP/1.1 towards endpoints; what of an answer's head is bounded stays as it is.
pub fn http1(value: Option<Http1ProtocolOptions>, upstream: &mut Http1Upstream) -> Converted<()> {
    let Http1 { names, trailers, any_method: _, absolute_urls: _, ignored_upgrades: _, chunked_length, full_url } =
        http1_options(value)?;
    (upstream.trailers, upstream.names, upstream.chunked_length) = (trailers, names, chunked_length);
    upstream.full_url = full_url;
    Ok(())
}

/// Settings of HTTP/1.1.
fn http1_options(value: Option<Http1ProtocolOptions>) -> Converted<Http1> {
    let Some(Http1ProtocolOptions {
        allow_absolute_url,
        accept_http_10: _,
        default_host_for_http_10: _,
        header_key_format,
        enable_trailers,
        allow_chunked_length,
        override_stream_error_on_invalid_http_message: _,
        send_fully_qualified_url: full_url,
        use_balsa_parser: _,
        allow_custom_methods,
        ignore_http_11_upgrade,
    }) = value
    else {
        return Ok(Http1 { absolute_urls: true, ..Http1::default() });
    };
    let names = match header_key_format.and_then(|HeaderKeyFormat { header_format }| header_format) {
        None => HeaderNames::Plain,
        Some(HeaderFormat::ProperCaseWords(ProperCaseWords {})) => HeaderNames::Proper,
        Some(HeaderFormat::StatefulFormatter(TypedExtensionConfig { name: _, typed_config })) => {
            let field = "header_key_format.stateful_formatter.typed_config";
            let any = typed_config.ok_or_else(|| Refused::new(field, "is missing"))?;
            match optional::<PreserveCaseFormatterConfig>(&any).within(field)? {
                Some(PreserveCaseFormatterConfig {
                    forward_reason_phrase,
                    formatter_type_on_envoy_headers: others,
                }) => {
                    refuse!(forward_reason_phrase);
                    HeaderNames::Kept { others_proper: others == FormatterTypeOnEnvoyHeaders::ProperCase as i32 }
                }
                None => return Err(unknown_type(&any).within(field)),
            }
        }
    };
    let mut ignored_upgrades = Vec::with_capacity(ignore_http_11_upgrade.len());
    for (index, value) in ignore_http_11_upgrade.into_iter().enumerate() {
        ignored_upgrades.push(matcher::string(value).within(format_args!("ignore_http_11_upgrade[{index}]"))?);
    }
    let absolute_urls = allow_absolute_url.unwrap_or(true);
    Ok(Http1 {
        names,
        trailers: enable_trailers,
        any_method: allow_custom_methods,
        absolute_urls,
        ignored_upgrades,
        chunked_length: allow_chunked_length,
        full_url,
    })
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
        // What waits is bounded in bytes, which fewer frames than this make.
        max_outbound_frames: _,
        max_outbound_control_frames,
        max_consecutive_inbound_frames_with_empty_payload,
        max_inbound_priority_frames_per_stream,
        max_inbound_window_update_frames_per_data_frame_sent,
        stream_error_on_invalid_http_messaging,
        override_stream_error_on_invalid_http_message,
        custom_settings_parameters,
        // Read apart: see `http2_keepalive`.
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
    refuse!(allow_metadata, custom_settings_parameters);
    Ok(Http2Options {
        max_concurrent_streams: max_concurrent_streams.unwrap_or(defaults.max_concurrent_streams),
        // One that is named stays as it is.
        stream_window: initial_stream_window_size.unwrap_or(defaults.stream_window),
        most_stream_window: initial_stream_window_size.unwrap_or(defaults.most_stream_window),
        connection_window: initial_connection_window_size.unwrap_or(defaults.connection_window),
        most_connection_window: initial_connection_window_size.unwrap_or(defaults.most_connection_window),
        allow_connect,
        max_empty_frames: max_consecutive_inbound_frames_with_empty_payload.unwrap_or(defaults.max_empty_frames),
        max_priority_frames: max_inbound_priority_frames_per_stream.unwrap_or(defaults.max_priority_frames),
        max_window_updates: max_inbound_window_update_frames_per_data_frame_sent.unwrap_or(defaults.max_window_updates),
        max_control_frames: max_outbound_control_frames.unwrap_or(defaults.max_control_frames),
        malformed_ends_stream: override_stream_error_on_invalid_http_message
            .unwrap_or(stream_error_on_invalid_http_messaging),
    })
}
