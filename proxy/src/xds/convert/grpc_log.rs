//! Access logs that go to a server of Envoy's access log service.

use super::common::{positive, stream_backoff};
use super::{Context, Converted, Refused, Within as _, refuse, tracing};
use crate::config::{EntryLog, LogCounts, LogServer, LogStream};
use crate::telemetry::counters::Scope;
use leno_xds::envoy::config::core::v3::{ApiVersion, GrpcService};
use leno_xds::envoy::extensions::access_loggers::grpc::v3::{
    CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig,
};
use leno_xds::envoy::service::accesslog::v3::stream_access_logs_message::Identifier;
use prost::Message as _;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How long an entry waits at most where nothing is said.
const INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of entries that are sent at once where nothing is said.
const BUFFER: u32 = 16 * 1024;
/// The most that may be asked for, as large as servers of gRPC take messages.
const MAX_BUFFER: u32 = 4 * 1024 * 1024;
/// Headers that are told of each kind at most.
const MAX_HEADERS: usize = 64;
/// Streams that are wanted at once at most.
const MAX_STREAMS: usize = 64;
/// How long an attempt to reach the server may take where nothing is said.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Streams that configurations want.
#[derive(Debug, Default)]
pub struct LogStreams(Vec<Weak<LogStream>>);

impl LogStreams {
    /// The one stream to a server that is told so.
    fn one(&mut self, server: LogServer) -> Converted<Arc<LogStream>> {
        self.0.retain(|stream| stream.strong_count() > 0);
        let mut wanted = self.0.iter().filter_map(Weak::upgrade);
        if let Some(same) = wanted.find(|stream| stream.0.is_like(&server)) {
            return Ok(same);
        }
        if self.0.len() >= MAX_STREAMS {
            return Err(Refused::new("", format!("would be more than {MAX_STREAMS} streams of entries")));
        }
        let stream = Arc::new(LogStream(Arc::new(server)));
        self.0.push(Arc::downgrade(&stream));
        Ok(stream)
    }
}

/// A log whose entries are those of HTTP.
pub(super) fn http(context: &mut Context, value: HttpGrpcAccessLogConfig) -> Converted<EntryLog> {
    let HttpGrpcAccessLogConfig {
        common_config,
        additional_request_headers_to_log,
        additional_response_headers_to_log,
        additional_response_trailers_to_log,
    } = value;
    let log = common(context, common_config, true)?;
    Ok(EntryLog {
        request_headers: names(additional_request_headers_to_log, "additional_request_headers_to_log")?,
        response_headers: names(additional_response_headers_to_log, "additional_response_headers_to_log")?,
        response_trailers: names(additional_response_trailers_to_log, "additional_response_trailers_to_log")?,
        ..log
    })
}

/// A log whose entries are those of TCP.
pub(super) fn tcp(context: &mut Context, value: TcpGrpcAccessLogConfig) -> Converted<EntryLog> {
    let TcpGrpcAccessLogConfig { common_config } = value;
    common(context, common_config, false)
}

fn names(names: Vec<String>, field: &str) -> Converted<Vec<Box<str>>> {
    if names.len() > MAX_HEADERS {
        return Err(Refused::new(field, format!("has more than {MAX_HEADERS} names")));
    }
    Ok(names.into_iter().map(|name| name.to_ascii_lowercase().into()).collect())
}

fn common(context: &mut Context, value: Option<CommonGrpcAccessLogConfig>, http: bool) -> Converted<EntryLog> {
    let value = value.ok_or_else(|| Refused::new("common_config", "is missing"))?;
    within_common(context, value, http).within("common_config")
}

fn within_common(context: &mut Context, value: CommonGrpcAccessLogConfig, http: bool) -> Converted<EntryLog> {
    let CommonGrpcAccessLogConfig {
        log_name,
        grpc_service,
        transport_api_version,
        buffer_flush_interval,
        buffer_size_bytes,
        filter_state_objects_to_log,
        grpc_stream_retry_policy,
        custom_tags,
    } = value;
    refuse!(filter_state_objects_to_log);
    if log_name.is_empty() {
        return Err(Refused::new("log_name", "is missing"));
    }
    if !matches!(ApiVersion::try_from(transport_api_version), Ok(ApiVersion::V3)) {
        return Err(Refused::new("transport_api_version", "must be V3"));
    }
    let service = grpc_service.ok_or_else(|| Refused::new("grpc_service", "is missing"))?;
    let GrpcService { retry_policy: of_service, .. } = &service;
    if of_service.is_some() {
        return Err(Refused::new(
            "grpc_service.retry_policy",
            "is not supported by this proxy; use `grpc_stream_retry_policy`",
        ));
    }
    let (cluster, (authority, metadata), timeout) = tracing::grpc(service).within("grpc_service")?;
    let buffer = buffer_size_bytes.unwrap_or(BUFFER);
    if buffer > MAX_BUFFER {
        return Err(Refused::new("buffer_size_bytes", format!("is more than {MAX_BUFFER}")));
    }
    let identifier = Identifier { node: Some(context.introduced.clone()), log_name };
    let counter = |name: &str| context.counters.counter(&[Scope::part("access_logs.grpc_access_log.")], name);
    let server = LogServer {
        authority,
        metadata,
        identifier: identifier.encode_to_vec(),
        http,
        interval: positive(buffer_flush_interval, "buffer_flush_interval")?.unwrap_or(INTERVAL),
        buffer: buffer as usize,
        backoff: stream_backoff(grpc_stream_retry_policy, "grpc_stream_retry_policy")?,
        timeout: timeout.filter(|limit| !limit.is_zero()).unwrap_or(TIMEOUT),
        counts: LogCounts {
            written: counter("logs_written"),
            dropped: counter("logs_dropped"),
            flushed: counter("grpc_entries_flushed"),
            failed: counter("grpc_entries_flush_failed"),
        },
        cluster: context.cluster(&cluster).within("grpc_service.envoy_grpc.cluster_name")?,
    };
    Ok(EntryLog {
        stream: context.log_streams.one(server)?,
        tags: tracing::line_tags(context, custom_tags)?,
        request_headers: Vec::new(),
        response_headers: Vec::new(),
        response_trailers: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(context: &mut Context, changes: Value) -> Converted<EntryLog> {
        let mut common = json!({
            "log_name": "mine", "transport_api_version": "V3",
            "grpc_service": {"envoy_grpc": {"cluster_name": "logs"}},
        });
        common.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        common.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        let value = json!({"common_config": common, "additional_request_headers_to_log": ["X-A"]});
        http(context, leno_xds::json::from_value(&value).unwrap())
    }

    #[test]
    fn log_when_little_is_said_then_the_rest_is_usual_and_equal_ones_share_a_stream() {
        let mut context = Context::new("");
        context.introduced.id = "me".into();
        let log = read(&mut context, json!({})).unwrap();
        let server = &log.stream.0;
        assert_eq!((server.interval, server.buffer), (Duration::from_secs(1), 16 * 1024));
        assert_eq!((&*server.authority, &*log.request_headers[0]), ("logs", "x-a"));
        let identifier = Identifier::decode(server.identifier.as_slice()).unwrap();
        assert_eq!((identifier.log_name.as_str(), identifier.node.unwrap().id.as_str()), ("mine", "me"));
        let tagged = json!({"custom_tags": [{"tag": "a", "value": "%UPSTREAM_WIRE_BYTES_SENT%"}]});
        assert!(Arc::ptr_eq(&log.stream, &read(&mut context, tagged).unwrap().stream), "tags are the log's own");
        let other = read(&mut context, json!({"buffer_size_bytes": 0})).unwrap();
        assert!(!Arc::ptr_eq(&log.stream, &other.stream));
        drop((log, other));
        read(&mut context, json!({"log_name": "other"})).unwrap();
        assert_eq!(context.log_streams.0.len(), 1, "those that nobody wants are forgotten");
    }

    #[test]
    fn log_when_something_is_not_done_here_then_it_is_refused_by_name() {
        for (changes, field) in [
            (json!({"log_name": null}), "log_name"),
            (json!({"transport_api_version": null}), "transport_api_version"),
            (json!({"grpc_service": null}), "grpc_service"),
            (
                json!({"grpc_service": {"google_grpc": {"target_uri": "a", "stat_prefix": "b"}}}),
                "grpc_service.envoy_grpc",
            ),
            (json!({"filter_state_objects_to_log": ["a"]}), "filter_state_objects_to_log"),
            (json!({"buffer_size_bytes": 5_000_000}), "buffer_size_bytes"),
            (json!({"buffer_flush_interval": "0s"}), "buffer_flush_interval"),
            (json!({"grpc_stream_retry_policy": {"retry_on": "5xx"}}), "grpc_stream_retry_policy.retry_on"),
            (json!({"custom_tags": [{"tag": "a", "metadata": {}}]}), "custom_tags[0].metadata.kind"),
        ] {
            let refused = read(&mut Context::new(""), changes).unwrap_err();
            assert_eq!(refused.field, format!("common_config.{field}"));
        }
    }
}
