//! Changes the answers that the proxy gives by itself, as the manager's mappers say.

use super::{
    body::Downstream,
    call::Call,
    edit,
    headers::Known,
    reply::{self, Reply},
};
use crate::{
    config::{BodyFormat, LocalReplies, Mapper},
    route::Selected,
    telemetry::{LogEntry, LogFormat, grpc_of_http},
};

/// Answers with the reply as the configuration changes it.
pub(super) fn send<D: Downstream>(call: &mut Call<'_>, down: &mut D, config: &LocalReplies, reply: Reply, close: bool) {
    let mapper = config.mappers.iter().find(|mapper| holds(mapper, call, reply.code));
    let code = mapper.and_then(|mapper| mapper.status).unwrap_or(reply.code);
    let own = call.tally.filters.as_ref().map(|state| state.reply.clone()).unwrap_or_default();
    let first = own.body.unwrap_or_else(|| reply::text(call, reply));
    let text = mapper.and_then(|mapper| mapper.body.as_deref()).map_or_else(|| first.as_bytes(), str::as_bytes);
    let grpc = call.tally.grpc;
    reply::begin(call, reply.code);
    reply::of_route(call);
    if reply == reply::ELSEWHERE {
        let path = call.request.path().to_vec();
        call.response.headers.push(b"location", &path);
    }
    reply::overloaded(call, reply);
    let typed = mapped(call, mapper, reply.code);
    call.response.status = if grpc { 200 } else { code };
    let format = mapper.and_then(|mapper| mapper.format.as_ref()).or(config.body.as_ref());
    finish(call, down, own.grpc, (code, format, typed), (first.as_bytes(), text), close);
}

/// Answers as a route says, which to Envoy is one of the proxy's own answers: with its status and where it leads, changed by
/// the mappers, and told to clients of gRPC in their way.
pub(super) fn answer<'a, D: Downstream>(
    call: &mut Call<'a>,
    down: &mut D,
    selected: Selected<'a>,
    (code, location): (u16, Option<Vec<u8>>),
    (body, kind): (&[u8], Option<&str>),
    close: bool,
) {
    let manager = call.manager;
    let config = manager.local_replies.as_deref();
    let mapper = config.and_then(|config| config.mappers.iter().find(|mapper| holds(mapper, call, code)));
    let (own, code) = (code, mapper.and_then(|mapper| mapper.status).unwrap_or(code));
    let grpc = call.tally.grpc;
    reply::begin(call, own);
    if let Some(location) = location {
        call.response.headers.push(b"location", &location);
    }
    edit::for_client(call, selected);
    if let Some(kind) = kind {
        call.response.headers.set("content-type", kind.as_bytes());
    }
    let typed = mapped(call, mapper, own);
    call.response.status = if grpc { 200 } else { code };
    let text = mapper.and_then(|mapper| mapper.body.as_deref()).map_or(body, str::as_bytes);
    let format = mapper.and_then(|mapper| mapper.format.as_ref()).or(config.and_then(|config| config.body.as_ref()));
    finish(call, down, None, (code, format, typed), (body, text), close);
}

/// Headers of a mapper, which tell the status from before it, and then its own. Whether they made the type of the body another,
/// which then is not the format's.
fn mapped(call: &mut Call<'_>, mapper: Option<&Mapper>, code: u16) -> bool {
    call.tally.code = code;
    let Some(mapper) = mapper else { return false };
    // One without a text is none.
    let before = call.response.headers.known(Known::ContentType).unwrap_or_default().to_vec();
    edit::response(call, &mapper.headers);
    call.tally.code = mapper.status.unwrap_or(code);
    call.response.headers.known(Known::ContentType).unwrap_or_default() != before
}

/// Ends the answer with its body, which was `first` before the mappers, as the format has it, or with that body as the message of gRPC.
fn finish<D: Downstream>(
    call: &mut Call<'_>,
    down: &mut D,
    grpc_status: Option<u16>,
    (code, format, typed): (u16, Option<&BodyFormat>, bool),
    (first, text): (&[u8], &[u8]),
    close: bool,
) {
    let written = format.map(|format| write(&format.format, call, code, &String::from_utf8_lossy(text)));
    let body = written.as_deref().unwrap_or(text);
    let content_type = format.map(|format| &*format.content_type).filter(|_| !typed);
    if call.tally.grpc {
        let status = grpc_status.unwrap_or_else(|| grpc_of_http(code));
        let json = format.is_some_and(|format| format.format.is_json()) || content_type == Some("application/json");
        reply::grpc(call, status, message(body, json).as_ref());
        return reply::finish(call, down, b"", close);
    }
    // A type that the route named is that of the body that it wrote.
    let another = !typed && body != first || call.response.headers.known(Known::ContentType).is_none();
    let kind = format.map_or("text/plain", |format| &*format.content_type);
    reply::content_type(call, body, Some(kind).filter(|_| another));
    reply::finish(call, down, body, close);
}

/// A body as the message of gRPC. The end of the line with which JSON is written is no part of it.
fn message(body: &[u8], json: bool) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(body.strip_suffix(b"\n").filter(|_| json).unwrap_or(body))
}

fn holds(mapper: &Mapper, call: &Call<'_>, code: u16) -> bool {
    mapper.filter.holds(&LogEntry { code, ..call.entry() }, &|| call.worker.rng.next())
}

/// A body in its format.
pub(super) fn write(format: &LogFormat, call: &Call<'_>, code: u16, body: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    format.write_body(&LogEntry { code, local_reply: Some(body), ..call.entry() }, &mut out);
    out
}
