//! Answers that the proxy gives by itself, in Envoy's words, so that those who know Envoy's know ours.

use super::{
    body::Downstream,
    call::Call,
    head::{BodyLength, RequestHead},
    headers::NOT_SENT,
};
use crate::{config::Direction, telemetry::ResponseFlags};

/// An answer of the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// The status.
    pub code: u16,
    /// The body.
    pub body: &'static str,
    /// The flags of logs and metrics.
    pub flags: ResponseFlags,
    /// What decided, as Envoy names it.
    pub details: &'static str,
}

const fn reply(code: u16, body: &'static str, flags: ResponseFlags, details: &'static str) -> Reply {
    Reply { code, body, flags, details }
}

/// No virtual host or route matches.
pub const NO_ROUTE: Reply = reply(404, "", ResponseFlags::NO_ROUTE, "route_not_found");
/// The route's cluster does not exist.
pub const NO_CLUSTER: Reply = reply(503, "", ResponseFlags::NO_CLUSTER, "cluster_not_found");
/// No endpoint may be chosen.
pub const NO_HEALTHY_UPSTREAM: Reply =
    reply(503, "no healthy upstream", ResponseFlags::NO_HEALTHY_UPSTREAM, "no_healthy_upstream");
/// A circuit breaker is open.
pub const OVERFLOW: Reply = reply(
    503,
    "upstream connect error or disconnect/reset before headers. reset reason: overflow",
    ResponseFlags::UPSTREAM_OVERFLOW,
    "upstream_reset_before_response_started{overflow}",
);
/// The control plane wants some requests refused.
pub const DROP_OVERLOAD: Reply = reply(503, "drop overload", ResponseFlags::DROP_OVERLOAD, "drop_overload");
/// The endpoint could not be connected.
pub const CONNECT_FAILURE: Reply = reply(
    503,
    "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
    ResponseFlags::UPSTREAM_CONNECTION_FAILURE,
    "upstream_reset_before_response_started{remote_connection_failure}",
);
/// The endpoint could not be connected in time.
pub const CONNECT_TIMEOUT: Reply = reply(
    503,
    "upstream connect error or disconnect/reset before headers. reset reason: connection timeout",
    ResponseFlags::UPSTREAM_CONNECTION_FAILURE,
    "upstream_reset_before_response_started{connection_timeout}",
);
/// The connection broke before a response.
pub const TERMINATED: Reply = reply(
    503,
    "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
    ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
    "upstream_reset_before_response_started{connection_termination}",
);
/// The endpoint refused or reset the stream.
pub const REMOTE_RESET: Reply = reply(
    503,
    "upstream connect error or disconnect/reset before headers. reset reason: remote reset",
    ResponseFlags::UPSTREAM_REMOTE_RESET,
    "upstream_reset_before_response_started{remote_reset}",
);
/// The response's head is malformed.
pub const PROTOCOL_ERROR: Reply = reply(
    502,
    "upstream connect error or disconnect/reset before headers. reset reason: protocol error",
    ResponseFlags::UPSTREAM_PROTOCOL_ERROR,
    "upstream_reset_before_response_started{protocol_error}",
);
/// The route's timeout passed.
pub const TIMEOUT: Reply = reply(504, "upstream request timeout", ResponseFlags::UPSTREAM_TIMEOUT, "response_timeout");
/// The timeout of the last attempt passed.
pub const PER_TRY_TIMEOUT: Reply =
    reply(504, "upstream request timeout", ResponseFlags::UPSTREAM_TIMEOUT, "upstream_per_try_timeout");
/// Nothing moved for too long.
pub const STREAM_IDLE: Reply = reply(504, "stream timeout", ResponseFlags::STREAM_IDLE_TIMEOUT, "stream_idle_timeout");
/// The client's body is malformed.
pub const BAD_BODY: Reply = reply(400, "Bad Request", ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, "http1.codec_error");
/// The path is refused.
pub const BAD_PATH: Reply = reply(400, "", ResponseFlags::none(), "path_normalization_failed");

/// Answers with a reply. The response is complete; it still has to be flushed.
pub fn send<D: Downstream>(call: &mut Call<'_>, down: &mut D, reply: Reply, close: bool) {
    call.tally.flags |= reply.flags;
    call.tally.details = reply.details;
    if call.request.is_grpc() {
        // A gRPC client reads the status of gRPC, not that of HTTP.
        let status = match reply.code {
            400 => 13,
            401 => 16,
            403 => 7,
            404 => 12,
            429 | 502 | 503 | 504 => 14,
            _ => 2,
        };
        begin(call, 200);
        call.response.headers.push(b"content-type", b"application/grpc");
        call.response.headers.push(b"grpc-status", status.to_string().as_bytes());
        if !reply.body.is_empty() {
            call.response.headers.push(b"grpc-message", reply.body.replace('%', "%25").as_bytes());
        }
        call.tally.grpc_status = Some(status);
        finish(call, down, b"", close);
    } else {
        begin(call, reply.code);
        if !reply.body.is_empty() {
            call.response.headers.push(b"content-type", b"text/plain");
        }
        if reply == OVERFLOW {
            call.response.headers.push(b"x-envoy-overloaded", b"true");
        }
        finish(call, down, reply.body.as_bytes(), close);
    }
}

/// Begins an answer of the proxy: status, date, server; and, for a peer of the mesh, that the app got nothing.
pub fn begin(call: &mut Call<'_>, code: u16) {
    call.response.clear();
    call.response.status = code;
    call.response.headers.push(b"date", call.worker.date().as_bytes());
    call.response.headers.push(b"server", b"leno");
    if call.tally.unsent && call.manager.direction == Direction::Inbound && call.conn.peer.is_some() {
        call.response.headers.push(NOT_SENT.as_bytes(), b"1");
    }
}

/// Sends the answer that was begun with this body.
pub fn finish<D: Downstream>(call: &mut Call<'_>, down: &mut D, body: &[u8], close: bool) {
    call.response.body = if body.is_empty() { BodyLength::Empty } else { BodyLength::Exact(body.len() as u64) };
    call.note_response();
    down.send_head(call.request, call.response, close);
    if call.request.method() != b"HEAD" {
        down.send_data(body);
        call.tally.response_bytes = body.len() as u64;
    }
    down.send_end(None);
}

/// The `location` of a redirect.
pub fn location(redirect: &crate::config::Redirect, path: &[u8], request: &RequestHead) -> Vec<u8> {
    let scheme = redirect.scheme.as_deref().unwrap_or(if request.secure { "https" } else { "http" });
    let authority = request.authority();
    let bare = crate::route::without_port(authority);
    let mut out = format!("{scheme}://").into_bytes();
    match &redirect.host {
        Some(host) => out.extend_from_slice(host.as_bytes()),
        None => out.extend_from_slice(bare),
    }
    let default = if scheme == "https" { 443 } else { 80 };
    match redirect.port {
        Some(port) if port == default => {}
        Some(port) => out.extend_from_slice(format!(":{port}").as_bytes()),
        // A new scheme has another port; a new host may have.
        None if redirect.scheme.is_none() && redirect.host.is_none() => out.extend_from_slice(&authority[bare.len()..]),
        None => {}
    }
    out.extend_from_slice(path);
    out
}
