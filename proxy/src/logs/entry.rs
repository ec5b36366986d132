//! What an entry of Envoy's access log service tells of a request or of a connection.

use super::common::{clean, common};
use crate::config::EntryLog;
use crate::telemetry::logformat::{request_bytes, response_bytes};
use crate::telemetry::{HeaderLookup, LogEntry, Wire};
use leno_xds::envoy::config::core::v3::RequestMethod;
use leno_xds::envoy::data::accesslog::v3::{
    ConnectionProperties, HttpAccessLogEntry, HttpRequestProperties, HttpResponseProperties, TcpAccessLogEntry,
    http_access_log_entry::HttpVersion,
};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// An entry of a TCP log.
pub(super) fn tcp<Q: HeaderLookup, S: HeaderLookup>(log: &EntryLog, entry: &LogEntry<'_, Q, S>) -> TcpAccessLogEntry {
    TcpAccessLogEntry {
        common_properties: Some(common(log, entry)),
        connection_properties: Some(ConnectionProperties {
            received_bytes: entry.bytes_received,
            sent_bytes: entry.bytes_sent,
        }),
    }
}

/// An entry of an HTTP log.
pub(super) fn http<Q: HeaderLookup, S: HeaderLookup>(log: &EntryLog, entry: &LogEntry<'_, Q, S>) -> HttpAccessLogEntry {
    let version = match entry.protocol {
        Some("HTTP/1.0") => HttpVersion::Http10,
        Some("HTTP/1.1") => HttpVersion::Http11,
        Some("HTTP/2") => HttpVersion::Http2,
        _ => HttpVersion::ProtocolUnspecified,
    };
    HttpAccessLogEntry {
        common_properties: Some(common(log, entry)),
        protocol_version: version.into(),
        request: Some(request(log, entry)),
        response: Some(response(log, entry)),
    }
}

fn wires<Q, S>(entry: &LogEntry<'_, Q, S>) -> (Wire, Wire) {
    entry.observed.map(|observed| (observed.down, observed.up)).unwrap_or_default()
}

fn request<Q: HeaderLookup, S: HeaderLookup>(log: &EntryLog, entry: &LogEntry<'_, Q, S>) -> HttpRequestProperties {
    let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
    let header = |name: &str| entry.request.header(name).map(clean).unwrap_or_default();
    let (down, up) = wires(entry);
    let asked = |name: &str| match name {
        ":method" => entry.method.map(|text| Cow::Borrowed(text.as_bytes())),
        ":path" => entry.path.map(|text| Cow::Borrowed(text.as_bytes())),
        ":scheme" => entry.scheme.map(|text| Cow::Borrowed(text.as_bytes())),
        ":authority" | "host" => entry.authority.map(|text| Cow::Borrowed(text.as_bytes())),
        name => entry.request.joined(name),
    };
    HttpRequestProperties {
        request_method: entry.method.and_then(RequestMethod::from_str_name).unwrap_or_default().into(),
        scheme: text(entry.scheme),
        authority: text(entry.authority),
        // Envoy does not know it either.
        port: None,
        path: text(entry.path),
        user_agent: header("user-agent"),
        referer: header("referer"),
        forwarded_for: header("x-forwarded-for"),
        request_id: header("x-request-id"),
        original_path: header("x-envoy-original-path"),
        request_headers_bytes: request_bytes(entry),
        request_body_bytes: entry.bytes_received,
        request_headers: wanted(&log.request_headers, asked),
        upstream_header_bytes_sent: up.head_sent,
        downstream_header_bytes_received: down.head_received,
    }
}

fn response<Q: HeaderLookup, S: HeaderLookup>(log: &EntryLog, entry: &LogEntry<'_, Q, S>) -> HttpResponseProperties {
    let (down, up) = wires(entry);
    let status = if entry.status > 0 { entry.status } else { entry.code };
    let headers = |name: &str| match name {
        ":status" => (status > 0).then(|| Cow::Owned(status.to_string().into_bytes())),
        name => entry.response.joined(name),
    };
    let trailers = |name: &str| entry.trailers.as_ref().and_then(|trailers| trailers.joined(name));
    HttpResponseProperties {
        response_code: (entry.code > 0).then(|| entry.code.into()),
        response_headers_bytes: response_bytes(entry),
        response_body_bytes: entry.bytes_sent,
        response_headers: wanted(&log.response_headers, headers),
        response_trailers: wanted(&log.response_trailers, trailers),
        response_code_details: entry.code_details.unwrap_or_default().to_owned(),
        upstream_header_bytes_received: up.head_received,
        downstream_header_bytes_sent: down.head_sent,
    }
}

/// The values of those headers that are there.
fn wanted<'e>(names: &[Box<str>], value: impl Fn(&str) -> Option<Cow<'e, [u8]>>) -> BTreeMap<String, String> {
    let there = |name: &str| Some((name.to_owned(), clean(&value(name)?)));
    names.iter().filter_map(|name| there(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ClusterId, CustomTag, LogCounts, LogServer, LogStream, TagValue};
    use crate::telemetry::{DynamicMetadata, LogKind, ResponseFlags};
    use leno_xds::envoy::data::accesslog::v3::AccessLogType;
    use prost_types::value::Kind;
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    fn log() -> EntryLog {
        let counts = || LogCounts {
            written: Arc::default(),
            dropped: Arc::default(),
            flushed: Arc::default(),
            failed: Arc::default(),
        };
        let server = LogServer {
            cluster: ClusterId(0),
            authority: "logs".into(),
            metadata: Vec::new(),
            identifier: Vec::new(),
            http: true,
            interval: Duration::from_secs(1),
            buffer: 16,
            backoff: (Duration::ZERO, Duration::ZERO),
            timeout: Duration::ZERO,
            counts: counts(),
        };
        EntryLog {
            stream: Arc::new(LogStream(Arc::new(server))),
            tags: vec![CustomTag { name: "empty".into(), value: TagValue::Header("x-none".into(), "".into()) }],
            request_headers: vec![":path".into(), "x-a".into(), "x-none".into()],
            response_headers: vec![":status".into()],
            response_trailers: vec!["x-t".into()],
        }
    }

    fn headers(all: &[(&'static str, &[u8])]) -> http::HeaderMap {
        all.iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), value.to_vec().try_into().unwrap()))
            .collect()
    }

    #[test]
    fn request_when_it_has_ended_then_its_entry_tells_what_is_known_and_bytes_that_are_no_text_are_marked() {
        let (request, response) = (headers(&[("x-a", b"a\xffb"), ("x-request-id", b"id")]), headers(&[("x-b", b"c")]));
        let mut dynamic = DynamicMetadata::default();
        dynamic.set("f", "k".to_owned(), Kind::BoolValue(true));
        let entry = LogEntry {
            kind: LogKind::DownstreamEnd,
            method: Some("GET"),
            path: Some("/p"),
            protocol: Some("HTTP/2"),
            code: 503,
            status: 200,
            flags: ResponseFlags::UPSTREAM_TIMEOUT | ResponseFlags::CONNECT_ATTEMPTS,
            upstream_cluster: Some(["shown", "real"]),
            dynamic: Some(&dynamic),
            ..LogEntry::new(SystemTime::UNIX_EPOCH, Duration::from_millis(1500), &request, &response)
        };
        let told = http(&log(), &entry);
        assert_eq!(told.protocol_version(), HttpVersion::Http2);
        let request = told.request.unwrap();
        assert_eq!((request.request_method(), request.path.as_str()), (RequestMethod::Get, "/p"));
        assert_eq!(request.request_headers.values().map(String::as_str).collect::<Vec<_>>(), ["/p", "a!b"]);
        let response = told.response.unwrap();
        assert_eq!((response.response_code, response.response_headers[":status"].as_str()), (Some(503), "200"));
        let common = told.common_properties.unwrap();
        let flags = common.response_flags.unwrap();
        assert!(flags.upstream_request_timeout && flags.upstream_retry_limit_exceeded && !flags.no_route_found);
        let value = &common.metadata.as_ref().unwrap().filter_metadata["f"].fields["k"];
        assert_eq!(value.kind, Some(Kind::BoolValue(true)));
        assert_eq!((common.stream_id.as_str(), common.upstream_cluster.as_str()), ("id", ""), "no endpoint was tried");
        assert_eq!(common.duration.unwrap(), prost_types::Duration { seconds: 1, nanos: 500_000_000 });
        assert!(common.custom_tags.is_empty() && common.access_log_type == AccessLogType::DownstreamEnd as i32);
    }

    #[test]
    fn connection_when_it_goes_on_then_its_entries_have_one_id_and_say_that_more_will_come() {
        let of = |kind, connection_id| {
            let entry = LogEntry::new(SystemTime::UNIX_EPOCH, Duration::ZERO, (), ());
            tcp(&log(), &LogEntry { kind, connection_id, bytes_sent: 7, ..entry })
        };
        let (begun, ended) = (of(LogKind::TcpPeriodic, 1), of(LogKind::TcpConnectionEnd, 1));
        assert_eq!(begun.connection_properties.unwrap().sent_bytes, 7);
        let (begun, ended) = (begun.common_properties.unwrap(), ended.common_properties.unwrap());
        assert!(begun.duration.is_none() && ended.duration.is_some());
        assert!(begun.stream_id == ended.stream_id && begun.stream_id.len() == 36);
        assert_ne!(begun.stream_id, of(LogKind::TcpPeriodic, 2).common_properties.unwrap().stream_id);
        assert_eq!(of(LogKind::NotSet, 1).common_properties.unwrap().stream_id, "", "a listener's own");
    }
}
