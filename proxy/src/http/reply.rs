//! Answers that the proxy gives by itself, in Envoy's words, so that those who know Envoy's know ours.

use super::{
    body::{Downstream, SideError},
    call::Call,
    chunked::ChunkError,
    edit, filter,
    head::{BodyLength, RequestHead, ResponseHead, reason},
    headers::{Known, NOT_SENT},
    local_reply, trace,
};
use crate::{
    config::{Action, Direction, HttpManager, ServerHeader},
    pool::{DELAYED, IMMEDIATE},
    telemetry::{ResponseFlags, grpc_of_http},
};
use std::borrow::Cow;

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
    /// What the client sent is not to be trusted any further: its connection ends.
    pub close: bool,
}

const fn reply(code: u16, body: &'static str, flags: ResponseFlags, details: &'static str) -> Reply {
    Reply { code, body, flags, details, close: false }
}

/// An answer to a request that breaks a rule.
const fn refusal(code: u16, body: &'static str, flags: ResponseFlags, details: &'static str) -> Reply {
    Reply { code, body, flags, details, close: true }
}

/// A header that is looked at strictly has no good value.
pub const NOT_GOOD: Reply = reply(400, "", ResponseFlags::INVALID_ENVOY_HEADERS, "request_headers_failed_strict_check");
/// No virtual host or route matches.
pub const NO_ROUTE: Reply = reply(404, "", ResponseFlags::NO_ROUTE, "route_not_found");
/// Memory runs short.
pub const OVERLOADED: Reply = reply(503, "envoy overloaded", ResponseFlags::OVERLOAD_MANAGER, "overload");
/// The answer of CORS to a preflight request, which is no answer of the proxy to Envoy: neither its route nor mappers change it.
pub const PREFLIGHT: Reply = reply(200, "", ResponseFlags::none(), "cors_response");
/// The virtual host wants TLS.
pub const NEEDS_TLS: Reply = reply(301, "", ResponseFlags::none(), "direct_response");
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
/// The control plane wants all requests refused.
pub const UNCONDITIONAL_DROP_OVERLOAD: Reply = reply(
    503,
    "unconditional drop overload",
    ResponseFlags::UNCONDITIONAL_DROP_OVERLOAD,
    "unconditional_drop_overload",
);
/// The endpoint could not be connected.
pub const CONNECT_FAILURE: Reply = reply(
    503,
    "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
    ResponseFlags::UPSTREAM_CONNECTION_FAILURE,
    "upstream_reset_before_response_started{remote_connection_failure}",
);
/// No socket to the endpoint could be made.
pub const LOCAL_CONNECT_FAILURE: Reply = reply(
    503,
    "upstream connect error or disconnect/reset before headers. reset reason: local connection failure",
    ResponseFlags::UPSTREAM_CONNECTION_FAILURE,
    "upstream_reset_before_response_started{local_connection_failure}",
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
/// The endpoint reset the stream.
pub const REMOTE_RESET: Reply = reply(
    503,
    "upstream connect error or disconnect/reset before headers. reset reason: remote reset",
    ResponseFlags::UPSTREAM_REMOTE_RESET,
    "upstream_reset_before_response_started{remote_reset}",
);
/// The endpoint did not take up the stream.
pub const REMOTE_REFUSED: Reply = reply(
    503,
    "upstream connect error or disconnect/reset before headers. reset reason: remote refused stream reset",
    ResponseFlags::UPSTREAM_REMOTE_RESET,
    "upstream_reset_before_response_started{remote_refused_stream_reset}",
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
/// Nothing moved in the last attempt for too long.
pub const PER_TRY_IDLE_TIMEOUT: Reply =
    reply(504, "upstream request timeout", ResponseFlags::UPSTREAM_TIMEOUT, "upstream_per_try_idle_timeout");
/// Nothing moved for too long.
pub const STREAM_IDLE: Reply = reply(504, "stream timeout", ResponseFlags::STREAM_IDLE_TIMEOUT, "stream_idle_timeout");
/// The client did not send its whole request in time.
pub const REQUEST_TIMEOUT: Reply = refusal(408, "request timeout", ResponseFlags::none(), "request_overall_timeout");
/// The client did not send its request's head in time.
pub const HEAD_TIMEOUT: Reply = refusal(408, "request header timeout", ResponseFlags::none(), "request_header_timeout");
/// The request lasted longer than it may.
pub const ATTEMPT_DURATION: Reply = reply(
    504,
    "upstream max stream duration reached",
    ResponseFlags::UPSTREAM_MAX_STREAM_DURATION_REACHED,
    "upstream_max_stream_duration_reached",
);
/// The stream lasted longer than it may.
pub const MAX_DURATION: Reply =
    reply(504, "downstream duration timeout", ResponseFlags::none(), "max_duration_timeout");
/// What a client is told whose body is malformed, or has trailers beyond the limits.
pub fn bad_body(error: &SideError) -> Reply {
    let (code, details) = match error {
        SideError::NotBase64(details) => {
            return refusal(400, "Bad gRPC-web request, invalid base64 data.", ResponseFlags::none(), details);
        }
        SideError::Chunk(ChunkError::LongTrailers) => (431, "http1.headers_too_large"),
        SideError::Chunk(ChunkError::ManyTrailers) => (431, "http1.too_many_headers"),
        _ => (400, "http1.codec_error"),
    };
    refusal(code, reason(code), ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, details)
}
/// The path is refused.
pub const BAD_PATH: Reply = refusal(400, "", ResponseFlags::none(), "path_normalization_failed");
/// The client is to ask for the path in another form.
pub const ELSEWHERE: Reply = reply(307, "", ResponseFlags::none(), "path_normalization_failed");
/// The target is no path.
pub const NO_PATH: Reply = reply(404, "", ResponseFlags::none(), "absolute_path_rejected");
/// There is no host.
pub const MISSING_HOST: Reply = refusal(400, "", ResponseFlags::none(), "missing_host_header");
/// A QUERY does not say what its body is.
pub const UNTYPED_QUERY: Reply = refusal(400, "", ResponseFlags::none(), "query_missing_content_type");
/// HTTP/1.0 is not served.
pub const LOW_VERSION: Reply =
    refusal(426, "Upgrade Required", ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, "low_version");
/// A header's name has an underscore.
pub const UNDERSCORE: Reply =
    refusal(400, "Bad Request", ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, "unexpected_underscore");
/// The upgrade is not offered.
pub const UPGRADE_REFUSED: Reply = refusal(403, "", ResponseFlags::none(), "upgrade_failed");

/// The client's address is not to be found, which is refused with this status.
pub fn undetected(status: u16) -> Reply {
    reply(status, "", ResponseFlags::none(), "rejecting_because_detection_failed")
}

/// A reply to a request that took too long; before it was complete that is the client's doing.
pub fn late(reply: Reply, complete: bool) -> Reply {
    if complete { reply } else { Reply { code: 408, close: true, ..reply } }
}

/// Answers with a reply. The response is complete; it still has to be flushed.
pub fn send<D: Downstream>(call: &mut Call<'_>, down: &mut D, reply: Reply, close: bool) {
    // Of a limit, or of what cannot be read, the answer itself does not know yet, as in Envoy.
    if reply.flags != ResponseFlags::RATE_LIMITED && reply.flags != ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR {
        call.tally.flags |= reply.flags;
    }
    call.tally.late_flags = reply.flags;
    answer(call, down, reply, close);
}

fn answer<D: Downstream>(call: &mut Call<'_>, down: &mut D, reply: Reply, close: bool) {
    // What a 400 is the answer to may be followed by more of it. Other streams of HTTP/2 are not to suffer for it.
    let untrusted = (reply.close || reply.code == 400) && !call.is_http2();
    let close = close || untrusted && !call.manager.stream_error_on_invalid;
    let own = call.tally.filters.as_ref().map(|state| state.reply.clone()).unwrap_or_default();
    call.tally.details = reply.details;
    call.tally.own_code = reply.code;
    if reply == CONNECT_FAILURE {
        refused(call);
    }
    if reply == PREFLIGHT {
        begin(call, reply.code);
        return finish(call, down, b"", close);
    }
    if let Some(config) = call.manager.local_replies.as_deref() {
        return local_reply::send(call, down, config, reply, close);
    }
    let body = own.body.unwrap_or_else(|| text(call, reply));
    let body = &*body;
    if call.tally.grpc {
        begin(call, reply.code);
        of_route(call);
        call.response.status = 200;
        call.tally.code = reply.code;
        grpc(call, own.grpc.unwrap_or_else(|| grpc_of_http(reply.code)), body);
        overloaded(call, reply);
        finish(call, down, b"", close);
    } else {
        begin(call, reply.code);
        of_route(call);
        // What the route changes does not know it yet, what filters change does.
        call.tally.code = reply.code;
        if reply == ELSEWHERE {
            let path = call.request.path().to_vec();
            call.response.headers.push(b"location", &path);
        }
        content_type(call, body.as_bytes(), None);
        overloaded(call, reply);
        finish(call, down, body.as_bytes(), close);
    }
}

/// Logs tell with a failed connection why the system has refused it.
fn refused(call: &mut Call<'_>) {
    let why = call
        .tally
        .transport_failure
        .as_deref()
        .filter(|why| [DELAYED, IMMEDIATE].iter().any(|start| why.starts_with(start)));
    if let Some(why) = why {
        let details = format!("{}|{}}}", CONNECT_FAILURE.details.trim_end_matches('}'), why.replace(' ', "_"));
        call.tally.filters().reply.details = Some(details.into());
    }
}

/// Changes an answer of the proxy as the request's route wants answers changed, and the filter whose answer it is.
pub(super) fn of_route(call: &mut Call<'_>) {
    // A route that would have answered by itself has no say in the answers of others.
    if let Some(selected) = call.tally.selected.filter(|selected| matches!(selected.route.action, Action::Forward(_))) {
        super::edit::for_client(call, selected);
        if selected.host.attempt_count_in_response && call.tally.attempts > 0 {
            let count = call.tally.attempts.to_string();
            call.response.headers.set("x-envoy-attempt-count", count.as_bytes());
        }
    }
    if let Some(own) = call.tally.filters.as_ref().map(|state| state.reply.headers) {
        // As in Envoy: what a filter adds to its own answer is made before there is one.
        let status = std::mem::take(&mut call.response.status);
        super::edit::response(call, own);
        call.response.status = status;
    }
}

/// The text of a reply: what failed, and whether that was the first attempt.
pub(super) fn text(call: &Call<'_>, reply: Reply) -> Cow<'static, str> {
    const RESET: &str = "upstream connect error or disconnect/reset before headers. ";
    match reply.body.strip_prefix(RESET) {
        Some(reason) if call.tally.attempts > 1 => format!("{RESET}retried and the latest {reason}").into(),
        _ => reply.body.into(),
    }
}

/// Says that a circuit breaker, the control plane or a lack of memory refused it, so that a proxy before us does not repeat it
/// at once.
pub(super) fn overloaded(call: &mut Call<'_>, reply: Reply) {
    const TOLD: [(ResponseFlags, &[u8]); 3] = [
        (ResponseFlags::UPSTREAM_OVERFLOW, b"x-envoy-overloaded"),
        (ResponseFlags::DROP_OVERLOAD, b"x-envoy-drop-overload"),
        (ResponseFlags::UNCONDITIONAL_DROP_OVERLOAD, b"x-envoy-unconditional-drop-overload"),
    ];
    if call.manager.tells_overload && reply.flags.contains(ResponseFlags::OVERLOAD_MANAGER) {
        call.response.headers.push(b"x-envoy-local-overloaded", b"true");
    }
    if reply.flags.is_empty() || call.router.suppress_envoy_headers {
        return;
    }
    for (flag, name) in TOLD {
        if reply.flags.contains(flag) {
            call.response.headers.push(name, b"true");
        }
    }
}

/// Tells the type of the answer's body, if it has one: that of a format, or else plain text where the route has named none.
pub(super) fn content_type(call: &mut Call<'_>, body: &[u8], of_format: Option<&str>) {
    let headers = &mut call.response.headers;
    match of_format {
        _ if body.is_empty() => headers.remove_known(Known::ContentType),
        Some(name) => headers.set("content-type", name.as_bytes()),
        None if headers.known(Known::ContentType).is_none() => headers.push(b"content-type", b"text/plain"),
        None => {}
    }
}

/// Writes the status of gRPC into the response's headers.
pub(super) fn grpc(call: &mut Call<'_>, status: u16, message: &str) {
    let headers = &mut call.response.headers;
    headers.set("content-type", b"application/grpc");
    headers.push(b"grpc-status", status.to_string().as_bytes());
    // To HEAD it would be a body.
    if !message.is_empty() && call.request.method() != b"HEAD" {
        headers.push(b"grpc-message", percent_encoded(message).as_bytes());
    }
    call.tally.grpc_status = Some(status);
}

/// A message as Envoy writes it into a header of gRPC: printable ASCII but `%` and `~` as it is, the rest as `%XX`.
fn percent_encoded(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b' '..=b'}' if byte != b'%' => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Gives a response what every response has: date, server, via, the request's id.
pub fn dress(call: &mut Call<'_>) {
    if call.tally.trace.is_some() {
        trace::on_response(call);
    }
    let headers = &mut call.response.headers;
    if headers.known(Known::Date).is_none() {
        headers.push(b"date", call.worker.date().as_bytes());
    }
    match &call.manager.server_header {
        ServerHeader::PassThrough => {}
        ServerHeader::Overwrite(name) => {
            headers.remove_known(Known::Server);
            headers.push(b"server", name.as_bytes());
        }
        ServerHeader::IfAbsent(name) => {
            if headers.known(Known::Server).is_none() {
                headers.push(b"server", name.as_bytes());
            }
        }
    }
    let edge = call.manager.edge.as_deref();
    if let Some(via) = edge.and_then(|edge| edge.via.as_deref()) {
        headers.append_to("via", b", ", via.as_bytes());
    }
    let asked = &call.request.headers;
    if (edge.is_some_and(|edge| edge.request_id_in_response)
        || asked.may_have(Known::Envoy) && asked.get("x-envoy-force-trace").is_some())
        && let Some(id) = call.request.headers.known(Known::RequestId)
    {
        headers.set("x-request-id", id);
    }
}

/// Makes an interim response of an endpoint the client's; whether it gets that. All of those that are known are passed on (RFC
/// 9110, section 15.2), since what the client waits for may not be the first.
pub(super) fn interim(manager: &HttpManager, request: &RequestHead, head: &mut ResponseHead) -> bool {
    if !manager.proxy_100_continue || !head.is_known_interim() {
        return false;
    }
    head.headers.remove_hop_by_hop(false);
    if manager.edge.as_deref().is_some_and(|edge| edge.request_id_in_response)
        && let Some(id) = request.headers.known(Known::RequestId)
    {
        head.headers.set("x-request-id", id);
    }
    true
}

/// Begins an answer of the proxy: status; and, for a peer of the mesh, that the app got nothing.
pub fn begin(call: &mut Call<'_>, code: u16) {
    call.response.clear();
    call.response.status = code;
    if call.tally.unsent && call.manager.direction == Direction::Inbound && call.conn.peer.is_some() {
        call.response.headers.push(NOT_SENT.as_bytes(), b"1");
    }
}

/// Sends the answer that was begun with this body.
pub fn finish<D: Downstream>(call: &mut Call<'_>, down: &mut D, body: &[u8], close: bool) {
    call.response.body = if body.is_empty() { BodyLength::Empty } else { BodyLength::Exact(body.len() as u64) };
    if !body.is_empty() {
        // For filters and formats; the side that sends it writes its own.
        let mut text = [0; 20];
        call.response.headers.set("content-length", super::pipeline::decimal(body.len() as u128, &mut text));
    }
    // From here on it is known.
    call.tally.flags |= std::mem::take(&mut call.tally.late_flags);
    if let Some(state) = &mut call.tally.filters {
        state.dynamic.merge(std::mem::take(&mut state.late));
    }
    filter::on_response(call);
    edit::length_of_answer(call);
    dress(call);
    call.note_response();
    let recode = call.tally.filters.as_mut().and_then(|state| state.recode_response.take());
    // What compresses a text that is there whole does not fail.
    let made = recode.map(|mut recode| recode.whole(body).unwrap_or_default());
    let body = made.as_deref().unwrap_or(body);
    call.answers();
    down.send_head(call.request, call.response, close);
    if call.request.method() != b"HEAD" {
        down.send_data(body.into());
        call.tally.response_bytes = body.len() as u64;
    }
    down.send_end(None);
}

/// The `location` of a redirect, by Envoy's rules for ports: a new one replaces the old; the default one of the old scheme
/// goes when the scheme changes.
pub fn location(redirect: &crate::config::Redirect, path: &[u8], request: &RequestHead) -> Vec<u8> {
    let own = if request.secure { "https" } else { "http" };
    let scheme = redirect.scheme.as_deref().unwrap_or(own);
    let mut out = format!("{scheme}://").into_bytes();
    match &redirect.host {
        Some(host) => out.extend_from_slice(host.as_bytes()),
        None => {
            let authority = request.authority();
            let bare = crate::route::without_port(authority);
            let told = request.headers.known(Known::ForwardedProto).unwrap_or(own.as_bytes());
            let default: &[u8] = match told {
                b"https" => b":443",
                b"http" => b":80",
                _ => b"",
            };
            let port = &authority[bare.len()..];
            let gone = redirect.port.is_some() || scheme.as_bytes() != told && !port.is_empty() && port == default;
            out.extend_from_slice(if gone { bare } else { authority });
        }
    }
    if let Some(port) = redirect.port {
        out.extend_from_slice(format!(":{port}").as_bytes());
    }
    out.extend_from_slice(path);
    out
}
