//! Active health checks.

use super::super::common::{duration, maybe_duration, optional, positive, unknown_type};
use super::super::{Context, Converted, Refused, Within as _, matcher, refuse, refuse_set};
use super::Template;
use crate::config::{CheckLog, HealthCheck, HttpProbe, Probe, ServiceName};
use crate::telemetry::LogSink;
use crate::telemetry::counters::{CheckStats, Scope};
use leno_xds::envoy::config::core::v3 as core;
use leno_xds::envoy::config::core::v3::health_check::{
    GrpcHealthCheck, HealthChecker, HttpHealthCheck, Payload, TcpHealthCheck, payload,
};
use leno_xds::envoy::config::core::v3::{HeaderValue, HeaderValueOption, RequestMethod};
use leno_xds::envoy::extensions::health_check::event_sinks::file::v3::HealthCheckEventFileSink;
use leno_xds::envoy::r#type::v3::{CodecClientType, Int64Range};
use std::sync::Arc;
use std::time::Duration;

/// Least interval: what is set lower is taken for this, as Envoy does.
const LEAST_INTERVAL: Duration = Duration::from_millis(1);
const NO_TRAFFIC: Duration = Duration::from_secs(60);

impl Template {
    pub(super) fn health_check(&self, context: &Context, value: core::HealthCheck) -> Converted<HealthCheck> {
        let core::HealthCheck {
            name: _,
            timeout,
            interval,
            initial_jitter,
            interval_jitter,
            interval_jitter_percent,
            unhealthy_threshold,
            healthy_threshold,
            // Envoy does not look at it either.
            alt_port: _,
            reuse_connection,
            no_traffic_interval,
            no_traffic_healthy_interval,
            unhealthy_interval,
            unhealthy_edge_interval,
            healthy_edge_interval,
            event_log_path,
            event_logger,
            event_service,
            always_log_health_check_failures: failures,
            always_log_health_check_success: successes,
            tls_options,
            transport_socket_match_criteria,
            health_checker,
        } = value;
        refuse!(tls_options, event_service);
        let sinks = sinks(context, event_log_path, event_logger)?;
        let needed = |value: Option<prost_types::Duration>, field: &str| {
            let value = duration(value.ok_or_else(|| Refused::new(field, "is missing"))?, field)?;
            if value.is_zero() { Err(Refused::new(field, "must be more than 0")) } else { Ok(value) }
        };
        let interval = needed(interval, "interval")?.max(LEAST_INTERVAL);
        let or = |value, usual: Duration, field: &str| -> Converted<Duration> {
            Ok(positive(value, field)?.unwrap_or(usual).max(LEAST_INTERVAL))
        };
        let zero_or =
            |value, field: &str| -> Converted<Duration> { Ok(maybe_duration(value, field)?.unwrap_or_default()) };
        let no_traffic = or(no_traffic_interval, NO_TRAFFIC, "no_traffic_interval")?;
        let unhealthy = or(unhealthy_interval, interval, "unhealthy_interval")?;
        let probe = match health_checker {
            Some(HealthChecker::HttpHealthCheck(value)) => http(value).within("http_health_check")?,
            Some(HealthChecker::TcpHealthCheck(value)) => tcp(value).within("tcp_health_check")?,
            Some(HealthChecker::GrpcHealthCheck(value)) => {
                let GrpcHealthCheck { service_name, authority, initial_metadata } = value;
                let headers = headers(initial_metadata).within("grpc_health_check.initial_metadata")?;
                let authority = (!authority.is_empty()).then(|| authority.into());
                Probe::Grpc { service: service_name.into(), authority, headers }
            }
            Some(HealthChecker::CustomHealthCheck(_)) => {
                return Err(Refused::new("custom_health_check", "is not supported by this proxy"));
            }
            None => return Err(Refused::new("health_checker", "is missing")),
        };
        Ok(HealthCheck {
            stats: CheckStats::new(&context.counters, &[Scope::cluster(&self.cluster.observability_name)]),
            timeout: needed(timeout, "timeout")?,
            interval,
            initial_jitter: zero_or(initial_jitter, "initial_jitter")?,
            jitter: zero_or(interval_jitter, "interval_jitter")?,
            jitter_percent: interval_jitter_percent,
            unhealthy_threshold: unhealthy_threshold
                .ok_or_else(|| Refused::new("unhealthy_threshold", "is missing"))?,
            healthy_threshold: healthy_threshold.ok_or_else(|| Refused::new("healthy_threshold", "is missing"))?,
            no_traffic_interval: no_traffic,
            no_traffic_healthy_interval: or(no_traffic_healthy_interval, no_traffic, "no_traffic_healthy_interval")?,
            unhealthy_interval: unhealthy,
            unhealthy_edge_interval: or(unhealthy_edge_interval, unhealthy, "unhealthy_edge_interval")?,
            healthy_edge_interval: or(healthy_edge_interval, interval, "healthy_edge_interval")?,
            reuse_connection: reuse_connection.unwrap_or(true),
            tls: transport_socket_match_criteria.map(|labels| self.tls_for(&labels)),
            log: (!sinks.is_empty()).then(|| Arc::new(CheckLog { sinks, failures, successes })),
            probe,
        })
    }
}

/// Where lines about checks go.
fn sinks(context: &Context, path: String, loggers: Vec<core::TypedExtensionConfig>) -> Converted<Vec<Arc<LogSink>>> {
    let mut paths: Vec<(String, String)> = Vec::new();
    if !path.is_empty() {
        paths.push(("event_log_path".to_owned(), path));
    }
    for (index, logger) in loggers.into_iter().enumerate() {
        let within = format!("event_logger[{index}].typed_config");
        let any = logger.typed_config.unwrap_or_default();
        match optional::<HealthCheckEventFileSink>(&any).within(&within)? {
            Some(sink) if sink.event_log_path.is_empty() => {
                return Err(Refused::new("event_log_path", "is missing").within(within));
            }
            Some(sink) => paths.push((within, sink.event_log_path)),
            None => return Err(unknown_type(&any).within(within)),
        }
    }
    let sink = |(field, path): (String, String)| {
        context.sinks.at(&path).map_err(|why| Refused::new(field, format!("`{path}` {why}")))
    };
    paths.into_iter().map(sink).collect()
}

fn http(value: HttpHealthCheck) -> Converted<Probe> {
    let HttpHealthCheck {
        host,
        path,
        send,
        receive,
        response_buffer_size: _,
        request_headers_to_add,
        request_headers_to_remove,
        expected_statuses,
        retriable_statuses,
        codec_client_type,
        use_alpn_protocol,
        service_name_matcher,
        method,
    } = value;
    refuse!(use_alpn_protocol);
    let mut anonymous = false;
    let mut headers = headers(request_headers_to_add).within("request_headers_to_add")?;
    for name in request_headers_to_remove {
        anonymous |= name.eq_ignore_ascii_case("user-agent");
        headers.retain(|(have, _)| !have.eq_ignore_ascii_case(&name));
    }
    let send = send.map(bytes).transpose().within("send")?.unwrap_or_default();
    let receive = receive.into_iter().map(bytes).collect::<Converted<_>>().within("receive")?;
    let service = service_name_matcher.map(matcher::string).transpose().within("service_name_matcher")?;
    if path.is_empty() || path.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Err(Refused::new("path", "is no path"));
    }
    let method = match RequestMethod::try_from(method) {
        Ok(RequestMethod::MethodUnspecified) => "GET",
        Ok(RequestMethod::Connect) | Err(_) => return Err(Refused::new("method", "is no method of a check")),
        Ok(method) => method.as_str_name(),
    };
    let http2 = match CodecClientType::try_from(codec_client_type) {
        Ok(CodecClientType::Http1) => false,
        Ok(CodecClientType::Http2) => true,
        Ok(CodecClientType::Http3) | Err(_) => {
            return Err(Refused::new("codec_client_type", "other than HTTP1 and HTTP2 is not supported"));
        }
    };
    if !send.is_empty() && !matches!(method, "POST" | "PUT" | "PATCH" | "OPTIONS") {
        return Err(Refused::new("send", "needs a method that has a body: POST, PUT, PATCH or OPTIONS"));
    }
    let expected = ranges(expected_statuses, "expected_statuses")?;
    Ok(Probe::Http(HttpProbe {
        host: (!host.is_empty()).then(|| host.into()),
        path: path.into(),
        method: method.into(),
        headers,
        expected: if expected.is_empty() { vec![(200, 201)] } else { expected },
        retriable: ranges(retriable_statuses, "retriable_statuses")?,
        http2,
        send,
        receive,
        service: service.map(ServiceName),
        anonymous,
    }))
}

fn ranges(values: Vec<Int64Range>, field: &str) -> Converted<Vec<(u16, u16)>> {
    let range = |(index, Int64Range { start, end }): (usize, Int64Range)| {
        let status = |value: i64| u16::try_from(value).ok().filter(|value| (100..=600).contains(value));
        match (status(start), status(end)) {
            (Some(start), Some(end)) if start < end => Ok((start, end)),
            _ => Err(Refused::new(format!("{field}[{index}]"), "is no range of statuses from 100 to below 600")),
        }
    };
    values.into_iter().enumerate().map(range).collect()
}

fn headers(values: Vec<HeaderValueOption>) -> Converted<Vec<(Box<str>, Box<str>)>> {
    let mut headers = Vec::with_capacity(values.len());
    for (index, value) in values.into_iter().enumerate() {
        // Nothing stands there before: every way to add is the same.
        let HeaderValueOption { header, append: _, append_action: _, keep_empty_value } = value;
        let Some(HeaderValue { key, value, raw_value }) = header else { continue };
        refuse_set(&raw_value, "header.raw_value")?;
        let good = http::HeaderName::from_bytes(key.as_bytes()).is_ok() && http::HeaderValue::from_str(&value).is_ok();
        if !good || value.contains('%') {
            return Err(Refused::new(format!("[{index}].header"), "is no plain header"));
        }
        if !value.is_empty() || keep_empty_value {
            headers.push((key.to_ascii_lowercase().into(), value.into()));
        }
    }
    Ok(headers)
}

fn tcp(value: TcpHealthCheck) -> Converted<Probe> {
    let TcpHealthCheck { send, receive, proxy_protocol_config } = value;
    refuse!(proxy_protocol_config);
    let send = send.map(bytes).transpose().within("send")?.unwrap_or_default();
    let receive = receive.into_iter().map(bytes).collect::<Converted<_>>().within("receive")?;
    Ok(Probe::Tcp { send, receive })
}

fn bytes(value: Payload) -> Converted<Box<[u8]>> {
    let wrong = || Refused::new("text", "is not written in hexadecimal");
    match value.payload {
        None => Ok(Box::default()),
        Some(payload::Payload::Binary(bytes)) => Ok(bytes.into()),
        Some(payload::Payload::Text(text)) => {
            let digit = |byte: u8| char::from(byte).to_digit(16).ok_or_else(wrong);
            let byte = |pair: &[u8]| match pair {
                [high, low] => Ok((digit(*high)? * 16 + digit(*low)?) as u8),
                _ => Err(wrong()),
            };
            text.as_bytes().chunks(2).map(byte).collect()
        }
    }
}
