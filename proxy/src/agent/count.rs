//! From Envoy's log entries to the standard metrics, the same that Leno's own proxy counts itself.
//!
//! A request has one entry, at its end. A TCP connection has one when it is there, one every five seconds with the bytes so far,
//! and one at its end. Bound: [`MAX_CONNECTIONS`] connections are followed; of others only the end is counted.

use super::names::Names;
use crate::telemetry::{
    ConnectionSecurity, Reporter, RequestProtocol, RequestRecord, ResponseFlags, Shard, TcpRecord, TcpRecorder,
};
use leno_xds::envoy::config::core::v3::Metadata;
use leno_xds::envoy::data::accesslog::v3::response_flags::Unauthorized;
use leno_xds::envoy::data::accesslog::v3::tls_properties::certificate_properties::subject_alt_name::San;
use leno_xds::envoy::data::accesslog::v3::{
    AccessLogCommon, AccessLogType, HttpAccessLogEntry, ResponseFlags as EnvoyFlags, TcpAccessLogEntry,
};
use leno_xds::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use prost_types::value::Kind;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Most open TCP connections that are followed; about 200 bytes each.
pub const MAX_CONNECTIONS: usize = 65_536;

/// One open TCP connection.
struct Open {
    recorder: TcpRecorder,
    received: u64,
    sent: u64,
}

/// Counts entries.
pub struct Counter {
    shard: Rc<Shard>,
    names: Names,
    open: HashMap<String, Open>,
}

impl Counter {
    /// Counts into a shard; the trust domain is that of the own workload.
    pub fn new(shard: Shard, trust_domain: &str) -> Self {
        Self { shard: Rc::new(shard), names: Names::new(trust_domain), open: HashMap::new() }
    }

    /// Counts what comes until nobody sends any more.
    pub async fn run(mut self, mut entries: mpsc::Receiver<(Reporter, LogEntries)>) {
        while let Some((reporter, entries)) = entries.recv().await {
            self.take(reporter, &entries);
        }
    }

    /// Counts the entries of one message.
    pub fn take(&mut self, reporter: Reporter, entries: &LogEntries) {
        match entries {
            LogEntries::HttpLogs(logs) => logs.log_entry.iter().for_each(|entry| self.request(reporter, entry)),
            LogEntries::TcpLogs(logs) => logs.log_entry.iter().for_each(|entry| self.connection(reporter, entry)),
        }
    }

    fn request(&mut self, reporter: Reporter, entry: &HttpAccessLogEntry) {
        let (Some(common), Some(request), Some(response)) = (&entry.common_properties, &entry.request, &entry.response)
        else {
            return;
        };
        let content_type = request.request_headers.get("content-type").map_or("", String::as_str);
        let protocol =
            if content_type.starts_with("application/grpc") { RequestProtocol::Grpc } else { RequestProtocol::Http };
        let grpc_status = || {
            let status = response.response_trailers.get("grpc-status").or(response.response_headers.get("grpc-status"));
            status?.parse().ok()
        };
        let (source, destination) = self.sides(reporter, common);
        let service = self.names.service(tag(common, "service"), &common.upstream_cluster);
        let duration = common.duration.or(common.time_to_last_downstream_tx_byte);
        self.shard.record_request(&RequestRecord {
            reporter,
            source: &source,
            destination: &destination,
            service: &service,
            protocol,
            response_code: response.response_code.and_then(|code| u16::try_from(code).ok()).unwrap_or_default(),
            grpc_status: (protocol == RequestProtocol::Grpc).then(grpc_status).flatten(),
            flags: flags(common.response_flags.as_ref(), ResponseFlags::RETRY_LIMIT),
            security: security(reporter, common),
            duration: duration.and_then(|duration| Duration::try_from(duration).ok()).unwrap_or_default(),
            request_bytes: request.request_headers_bytes + request.request_body_bytes,
            response_bytes: response.response_headers_bytes + response.response_body_bytes,
        });
    }

    fn connection(&mut self, reporter: Reporter, entry: &TcpAccessLogEntry) {
        let (Some(common), Some(bytes)) = (&entry.common_properties, &entry.connection_properties) else { return };
        let ended = match AccessLogType::try_from(common.access_log_type) {
            Ok(AccessLogType::TcpUpstreamConnected | AccessLogType::TcpPeriodic) => false,
            Ok(AccessLogType::TcpConnectionEnd | AccessLogType::NotSet) => true,
            _ => return,
        };
        let id = &common.stream_id;
        // Without an endpoint there was no connection to count.
        if common.upstream_remote_address.is_none() && !self.open.contains_key(id) {
            return;
        }
        // The endpoint may be connected before the client has proved who it is: then a later entry tells.
        if !ended && reporter == Reporter::Destination && common.tls_properties.is_some() && principal(common).is_none()
        {
            return;
        }
        let mut open = match self.open.remove(id) {
            Some(open) => open,
            None => self.opened(reporter, common),
        };
        open.recorder.received(bytes.received_bytes.saturating_sub(open.received));
        open.recorder.sent(bytes.sent_bytes.saturating_sub(open.sent));
        if ended {
            open.recorder.set_flags(flags(common.response_flags.as_ref(), ResponseFlags::CONNECT_ATTEMPTS));
            return;
        }
        (open.received, open.sent) = (bytes.received_bytes, bytes.sent_bytes);
        if !id.is_empty() && self.open.len() < MAX_CONNECTIONS {
            self.open.insert(id.clone(), open);
        }
    }

    fn opened(&mut self, reporter: Reporter, common: &AccessLogCommon) -> Open {
        let (source, destination) = self.sides(reporter, common);
        let service = self.names.service(tag(common, "service"), &common.upstream_cluster);
        let recorder = self.shard.tcp_connection(&TcpRecord {
            reporter,
            source: &source,
            destination: &destination,
            service: &service,
            security: security(reporter, common),
        });
        Open { recorder, received: 0, sent: 0 }
    }

    /// Who called and who answered.
    fn sides(
        &mut self,
        reporter: Reporter,
        common: &AccessLogCommon,
    ) -> (std::sync::Arc<crate::telemetry::WorkloadLabels>, std::sync::Arc<crate::telemetry::WorkloadLabels>) {
        let own = self.names.own(tag(common, "own"));
        match reporter {
            Reporter::Source => (own, self.names.endpoint(tag(common, "workload"), tag(common, "identity"))),
            Reporter::Destination => (self.names.caller(claim(common.metadata.as_ref()), principal(common)), own),
        }
    }
}

fn tag<'a>(common: &'a AccessLogCommon, name: &str) -> &'a str {
    common.custom_tags.get(name).map_or("", String::as_str)
}

/// What the request's peer header said.
fn claim(metadata: Option<&Metadata>) -> &str {
    let value = metadata
        .and_then(|metadata| metadata.filter_metadata.get("leno"))
        .and_then(|fields| fields.fields.get("peer"))
        .and_then(|value| value.kind.as_ref());
    match value {
        Some(Kind::StringValue(text)) => text,
        _ => "",
    }
}

/// Who the client proved to be.
fn principal(common: &AccessLogCommon) -> Option<&str> {
    let peer = common.tls_properties.as_ref()?.peer_certificate_properties.as_ref()?;
    peer.subject_alt_name.iter().find_map(|name| match &name.san {
        Some(San::Uri(uri)) => Some(uri.as_str()),
        _ => None,
    })
}

fn security(reporter: Reporter, common: &AccessLogCommon) -> ConnectionSecurity {
    match (reporter, principal(common)) {
        (Reporter::Source, _) => ConnectionSecurity::Unknown,
        (Reporter::Destination, Some(_)) => ConnectionSecurity::MutualTls,
        (Reporter::Destination, None) => ConnectionSecurity::None,
    }
}

/// Envoy's flags as ours; `limit` is the one for attempts that came to their limit. Those that our proxy never has are of features
/// that the mesh does not configure.
fn flags(flags: Option<&EnvoyFlags>, limit: ResponseFlags) -> ResponseFlags {
    let Some(flags) = flags else { return ResponseFlags::none() };
    let EnvoyFlags {
        failed_local_healthcheck: _,
        no_healthy_upstream,
        upstream_request_timeout,
        local_reset,
        upstream_remote_reset,
        upstream_connection_failure,
        upstream_connection_termination,
        upstream_overflow,
        no_route_found,
        delay_injected,
        fault_injected,
        rate_limited,
        unauthorized_details,
        rate_limit_service_error: _,
        downstream_connection_termination,
        upstream_retry_limit_exceeded,
        stream_idle_timeout,
        invalid_envoy_request_headers: _,
        downstream_protocol_error,
        upstream_max_stream_duration_reached,
        response_from_cache_filter: _,
        no_filter_config_found: _,
        duration_timeout,
        upstream_protocol_error,
        no_cluster_found,
        overload_manager,
        dns_resolution_failure: _,
        downstream_remote_reset,
    } = flags;
    let external = unauthorized_details.as_ref().is_some_and(|Unauthorized { reason }| *reason != 0);
    let pairs = [
        (*no_healthy_upstream, ResponseFlags::NO_HEALTHY_UPSTREAM),
        (*upstream_request_timeout, ResponseFlags::UPSTREAM_TIMEOUT),
        (*local_reset, ResponseFlags::LOCAL_RESET),
        (*upstream_remote_reset, ResponseFlags::UPSTREAM_REMOTE_RESET),
        (*upstream_connection_failure, ResponseFlags::UPSTREAM_CONNECTION_FAILURE),
        (*upstream_connection_termination, ResponseFlags::UPSTREAM_CONNECTION_TERMINATION),
        (*upstream_overflow, ResponseFlags::UPSTREAM_OVERFLOW),
        (*no_route_found, ResponseFlags::NO_ROUTE),
        (*delay_injected, ResponseFlags::DELAY_INJECTED),
        (*fault_injected, ResponseFlags::FAULT_INJECTED),
        (*rate_limited, ResponseFlags::RATE_LIMITED),
        (external, ResponseFlags::UNAUTHORIZED_EXTERNAL),
        (*downstream_connection_termination, ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION),
        (*upstream_retry_limit_exceeded, limit),
        (*stream_idle_timeout, ResponseFlags::STREAM_IDLE_TIMEOUT),
        (*downstream_protocol_error, ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR),
        (*upstream_max_stream_duration_reached, ResponseFlags::UPSTREAM_MAX_STREAM_DURATION_REACHED),
        (*duration_timeout, ResponseFlags::DURATION_TIMEOUT),
        (*upstream_protocol_error, ResponseFlags::UPSTREAM_PROTOCOL_ERROR),
        (*no_cluster_found, ResponseFlags::NO_CLUSTER),
        (*overload_manager, ResponseFlags::OVERLOAD_MANAGER),
        (*downstream_remote_reset, ResponseFlags::DOWNSTREAM_REMOTE_RESET),
    ];
    pairs.into_iter().filter(|(set, _)| *set).fold(ResponseFlags::none(), |all, (_, flag)| all | flag)
}

#[cfg(test)]
mod tests;
