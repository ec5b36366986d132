//! What entries of HTTP and of TCP have in common.

use crate::config::{EntryLog, TagValue, pipe};
use crate::telemetry::{DynamicMetadata, HeaderLookup, LogEntry, LogKind, ResponseFlags};
use crate::tls::facts::CertificateFacts;
use leno_xds::envoy::config::core::v3::{
    Address, Metadata, Pipe, SocketAddress, address, socket_address::PortSpecifier,
};
use leno_xds::envoy::data::accesslog::v3::{
    AccessLogCommon, ResponseFlags as Flags, TlsProperties,
    response_flags::{Unauthorized, unauthorized::Reason},
    tls_properties::{
        CertificateProperties, TlsVersion,
        certificate_properties::{SubjectAltName, subject_alt_name::San},
    },
};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

/// The text in bytes that somebody outside chose; each byte that is no UTF-8 is an exclamation mark.
pub(super) fn clean(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '!'));
    }
    text
}

/// What both kinds of entries tell.
#[allow(deprecated)] // Readers that look at no `access_log_type` look at `intermediate_log_entry`.
pub(super) fn common<Q: HeaderLookup, S: HeaderLookup>(log: &EntryLog, entry: &LogEntry<'_, Q, S>) -> AccessLogCommon {
    let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
    let span = |value: Option<Duration>| value.and_then(|value| prost_types::Duration::try_from(value).ok());
    let (moments, observed) = (&entry.moments, entry.observed);
    let (down, up) = observed.map(|observed| (observed.down, observed.up)).unwrap_or_default();
    let ended = !matches!(
        entry.kind,
        LogKind::DownstreamStart
            | LogKind::DownstreamPeriodic
            | LogKind::DownstreamTunnelSuccessfullyEstablished
            | LogKind::TcpConnectionStart
            | LogKind::TcpUpstreamConnected
            | LogKind::TcpPeriodic
    );
    AccessLogCommon {
        // Envoy does not tell it either.
        sample_rate: 0.0,
        downstream_remote_address: entry.downstream_remote.map(told_address),
        downstream_local_address: entry.downstream_local.map(told_address),
        tls_properties: tls(entry),
        start_time: Some(entry.start.into()),
        time_to_last_rx_byte: span(moments.received),
        time_to_first_upstream_tx_byte: span(moments.sending),
        time_to_last_upstream_tx_byte: span(moments.sent),
        time_to_first_upstream_rx_byte: span(moments.answered),
        time_to_last_upstream_rx_byte: span(moments.answer_ended),
        time_to_first_downstream_tx_byte: span(observed.and_then(|observed| observed.answering)),
        time_to_last_downstream_tx_byte: span(moments.ended.then_some(entry.duration)),
        upstream_remote_address: entry.upstream_remote.or(entry.upstream_host).map(told_address),
        upstream_local_address: entry.upstream_local.map(told_address),
        upstream_cluster: text(entry.upstream_host.and(entry.upstream_cluster).map(|[_, name]| name)),
        response_flags: flags(entry.flags),
        metadata: entry.dynamic.filter(|dynamic| !dynamic.is_empty()).map(metadata),
        upstream_transport_failure_reason: text(entry.transport_failure),
        route_name: text(entry.route_name),
        downstream_direct_remote_address: entry.downstream_direct_remote.map(told_address),
        // Nothing here has such a state.
        filter_state_objects: BTreeMap::new(),
        custom_tags: tags(log, entry),
        duration: span(ended.then_some(entry.duration)),
        upstream_request_attempt_count: entry.attempts.into(),
        connection_termination_details: text(entry.termination_details),
        stream_id: stream_id(entry),
        intermediate_log_entry: !ended,
        downstream_transport_failure_reason: text(entry.downstream_failure),
        downstream_wire_bytes_sent: down.sent,
        downstream_wire_bytes_received: down.received,
        upstream_wire_bytes_sent: up.sent,
        upstream_wire_bytes_received: up.received,
        access_log_type: entry.kind.number(),
    }
}

fn told_address(at: SocketAddr) -> Address {
    let address = match pipe::path(at) {
        Some(path) => address::Address::Pipe(Pipe { path: path.to_string(), ..Pipe::default() }),
        None => address::Address::SocketAddress(SocketAddress {
            address: at.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(at.port().into())),
            ..SocketAddress::default()
        }),
    };
    Address { address: Some(address) }
}

fn tls<Q, S>(entry: &LogEntry<'_, Q, S>) -> Option<TlsProperties> {
    if entry.tls.is_none() && entry.server_name.is_none() {
        return None;
    }
    let version = entry.tls.map_or(TlsVersion::VersionUnspecified, |tls| match tls.version {
        "TLSv1.2" => TlsVersion::TlSv12,
        _ => TlsVersion::TlSv13,
    });
    let local = entry.tls.and_then(|tls| tls.local.as_ref()).map(|local| {
        // Of its own certificate Envoy does not tell the issuer either.
        CertificateProperties { issuer: String::new(), ..certificate(local.facts()) }
    });
    let peer = entry.tls.and_then(|tls| tls.peer()).map(certificate);
    Some(TlsProperties {
        tls_version: version.into(),
        tls_cipher_suite: entry.tls.map(|tls| tls.cipher_id.into()),
        tls_sni_hostname: entry.server_name.unwrap_or_default().to_owned(),
        local_certificate_properties: entry.tls.map(|_| local.unwrap_or_default()),
        peer_certificate_properties: entry.tls.map(|_| peer.unwrap_or_default()),
        // Not known here.
        tls_session_id: String::new(),
        ja3_fingerprint: String::new(),
    })
}

fn certificate(facts: &CertificateFacts) -> CertificateProperties {
    let name = |uri: &str| SubjectAltName { san: Some(San::Uri(uri.to_owned())) };
    CertificateProperties {
        subject_alt_name: facts.uris.iter().map(|uri| name(uri)).collect(),
        subject: facts.subject.to_string(),
        issuer: facts.issuer.to_string(),
    }
}

/// What filters found out.
fn metadata(dynamic: &DynamicMetadata) -> Metadata {
    let filters = dynamic.iter().map(|(namespace, fields)| (namespace.to_owned(), fields.clone()));
    Metadata { filter_metadata: filters.collect(), ..Metadata::default() }
}

fn tags<Q: HeaderLookup, S: HeaderLookup>(log: &EntryLog, entry: &LogEntry<'_, Q, S>) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for tag in &log.tags {
        let value = match &tag.value {
            TagValue::Literal(text) => text.to_string(),
            TagValue::Header(name, default) => {
                let value = match &**name {
                    ":authority" | "host" => entry.authority.map(str::as_bytes),
                    ":path" => entry.path.map(str::as_bytes),
                    ":method" => entry.method.map(str::as_bytes),
                    name => entry.request.header(name),
                };
                value.map_or_else(|| default.to_string(), clean)
            }
            TagValue::Format(format, default) => {
                let mut value = Vec::new();
                format.write_header(entry, &mut value);
                if value.is_empty() { default.to_string() } else { clean(&value) }
            }
        };
        if !value.is_empty() {
            all.insert(tag.name.to_string(), value);
        }
    }
    all
}

/// The request's id, or what stands for that of a connection of the TCP proxy: the same in all of its entries, and nowhere else.
fn stream_id<Q: HeaderLookup, S>(entry: &LogEntry<'_, Q, S>) -> String {
    static BASE: OnceLock<u128> = OnceLock::new();
    match (entry.protocol, entry.request.header("x-request-id")) {
        (_, Some(id)) => clean(id),
        (None, None) if entry.kind == LogKind::NotSet && entry.endings.up.is_none() => String::new(),
        (None, None) => {
            let base = BASE.get_or_init(rand::random);
            crate::http::uuid(base.wrapping_add(u128::from(entry.connection_id).wrapping_mul(SPREAD))).to_string()
        }
        (Some(_), None) => String::new(),
    }
}

/// An odd number whose multiples look as if they had nothing to do with each other.
const SPREAD: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;

/// The flags as Envoy's message has them. Those of shed load have no place there.
fn flags(flags: ResponseFlags) -> Option<Flags> {
    use ResponseFlags as R;
    if flags.is_empty() {
        return None;
    }
    let has = |flag| flags.intersects(flag);
    let external = Unauthorized { reason: Reason::ExternalService.into() };
    Some(Flags {
        failed_local_healthcheck: has(R::FAILED_LOCAL_HEALTH_CHECK),
        no_healthy_upstream: has(R::NO_HEALTHY_UPSTREAM),
        upstream_request_timeout: has(R::UPSTREAM_TIMEOUT),
        local_reset: has(R::LOCAL_RESET),
        upstream_remote_reset: has(R::UPSTREAM_REMOTE_RESET),
        upstream_connection_failure: has(R::UPSTREAM_CONNECTION_FAILURE),
        upstream_connection_termination: has(R::UPSTREAM_CONNECTION_TERMINATION),
        upstream_overflow: has(R::UPSTREAM_OVERFLOW),
        no_route_found: has(R::NO_ROUTE),
        delay_injected: has(R::DELAY_INJECTED),
        fault_injected: has(R::FAULT_INJECTED),
        rate_limited: has(R::RATE_LIMITED),
        unauthorized_details: has(R::UNAUTHORIZED_EXTERNAL).then_some(external),
        rate_limit_service_error: has(R::RATE_LIMIT_SERVICE_ERROR),
        downstream_connection_termination: has(R::DOWNSTREAM_CONNECTION_TERMINATION),
        upstream_retry_limit_exceeded: has(R::RETRY_LIMIT | R::CONNECT_ATTEMPTS),
        stream_idle_timeout: has(R::STREAM_IDLE_TIMEOUT),
        invalid_envoy_request_headers: has(R::INVALID_ENVOY_HEADERS),
        downstream_protocol_error: has(R::DOWNSTREAM_PROTOCOL_ERROR),
        upstream_max_stream_duration_reached: has(R::UPSTREAM_MAX_STREAM_DURATION_REACHED),
        response_from_cache_filter: has(R::FROM_CACHE),
        no_filter_config_found: has(R::NO_FILTER_CONFIG),
        duration_timeout: has(R::DURATION_TIMEOUT),
        upstream_protocol_error: has(R::UPSTREAM_PROTOCOL_ERROR),
        no_cluster_found: has(R::NO_CLUSTER),
        overload_manager: has(R::OVERLOAD_MANAGER),
        dns_resolution_failure: has(R::DNS_FAILED),
        downstream_remote_reset: has(R::DOWNSTREAM_REMOTE_RESET),
    })
}
