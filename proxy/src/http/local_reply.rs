//! Changes the answers that the proxy gives by itself, as the manager's mappers say.

use super::{
    body::Downstream,
    call::Call,
    edit,
    headers::Known,
    reply::{self, Reply},
};
use crate::{
    config::{BodyFormat, BodyPart, Comparison, LocalReplies, ReplyFilter},
    route::Selected,
    telemetry::LogEntry,
};

/// Answers with the reply as the configuration changes it.
pub(super) fn send<D: Downstream>(call: &mut Call<'_>, down: &mut D, config: &LocalReplies, reply: Reply, close: bool) {
    let mapper = config.mappers.iter().find(|mapper| matches(&mapper.filter, call, reply.code));
    let code = mapper.and_then(|mapper| mapper.status).unwrap_or(reply.code);
    let own = call.tally.filters.as_ref().map(|state| state.reply.clone()).unwrap_or_default();
    let text = match (mapper.and_then(|mapper| mapper.body.as_deref()), own.body) {
        (Some(text), _) | (None, Some(text)) => text.into(),
        (None, None) => reply::text(call, reply),
    };
    let text = &*text;
    let grpc = call.request.is_grpc();
    reply::begin(call, if grpc { 200 } else { code });
    reply::of_route(call);
    if reply == reply::ELSEWHERE {
        let path = call.request.path().to_vec();
        call.response.headers.push(b"location", &path);
    }
    reply::overloaded(call, reply);
    call.tally.code = code;
    if let Some(mapper) = mapper {
        edit::response(call, &mapper.headers);
    }
    let (body, content_type) = match mapper.and_then(|mapper| mapper.format.as_ref()).or(config.body.as_ref()) {
        Some(format) => (write(format, call, code, text), &*format.content_type),
        None => (text.as_bytes().to_vec(), "text/plain"),
    };
    if grpc {
        let status = own.grpc.unwrap_or_else(|| reply::grpc_status(code));
        reply::grpc(call, status, &String::from_utf8_lossy(&body));
        return reply::finish(call, down, b"", close);
    }
    if !body.is_empty() {
        call.response.headers.remove_known(Known::ContentType);
        call.response.headers.push(b"content-type", content_type.as_bytes());
    }
    reply::finish(call, down, &body, close);
}

/// Answers as a route says, which to Envoy is one of the proxy's own answers: with its status and where it leads, changed by
/// the mappers, and told to clients of gRPC in their way.
pub(super) fn answer<'a, D: Downstream>(
    call: &mut Call<'a>,
    down: &mut D,
    selected: Selected<'a>,
    (code, location): (u16, Option<Vec<u8>>),
    body: &[u8],
    close: bool,
) {
    let manager = call.manager;
    let config = manager.local_replies.as_deref();
    let mapper = config.and_then(|config| config.mappers.iter().find(|mapper| matches(&mapper.filter, call, code)));
    let code = mapper.and_then(|mapper| mapper.status).unwrap_or(code);
    let grpc = call.request.is_grpc();
    reply::begin(call, if grpc { 200 } else { code });
    if let Some(location) = location {
        call.response.headers.push(b"location", &location);
    }
    edit::for_client(call, selected);
    call.tally.code = code;
    if let Some(mapper) = mapper {
        edit::response(call, &mapper.headers);
    }
    let body = mapper.and_then(|mapper| mapper.body.as_deref()).map_or(body, str::as_bytes);
    let format = mapper.and_then(|mapper| mapper.format.as_ref()).or(config.and_then(|config| config.body.as_ref()));
    let (body, content_type) = match format {
        Some(format) => (write(format, call, code, &String::from_utf8_lossy(body)), &*format.content_type),
        None => (body.to_vec(), "text/plain"),
    };
    if grpc {
        reply::grpc(call, reply::grpc_status(code), &String::from_utf8_lossy(&body));
        return reply::finish(call, down, b"", close);
    }
    if !body.is_empty() && (format.is_some() || call.response.headers.known(Known::ContentType).is_none()) {
        call.response.headers.remove_known(Known::ContentType);
        call.response.headers.push(b"content-type", content_type.as_bytes());
    }
    reply::finish(call, down, &body, close);
}

fn matches(filter: &ReplyFilter, call: &Call<'_>, code: u16) -> bool {
    match filter {
        ReplyFilter::Status(comparison, wanted) => match comparison {
            Comparison::Equal => code == *wanted,
            Comparison::AtLeast => code >= *wanted,
            Comparison::AtMost => code <= *wanted,
            Comparison::Unequal => code != *wanted,
        },
        ReplyFilter::Flags(wanted) if wanted.is_empty() => !call.tally.flags.is_empty(),
        ReplyFilter::Flags(wanted) => call.tally.flags.intersects(*wanted),
        ReplyFilter::Header(header) => crate::route::header_matches(header, call.request),
        ReplyFilter::All(filters) => filters.iter().all(|filter| matches(filter, call, code)),
        ReplyFilter::Any(filters) => filters.iter().any(|filter| matches(filter, call, code)),
    }
}

fn write(format: &BodyFormat, call: &Call<'_>, code: u16, body: &str) -> Vec<u8> {
    let entry = LogEntry { code, ..call.entry() };
    let mut out = Vec::with_capacity(256);
    for part in &format.parts {
        match part {
            BodyPart::Literal(text) => out.extend_from_slice(text.as_bytes()),
            BodyPart::Body { json: false } => out.extend_from_slice(body.as_bytes()),
            BodyPart::Body { json: true } => {
                let quoted = serde_json::Value::from(body).to_string();
                out.extend_from_slice(&quoted.as_bytes()[1..quoted.len() - 1]);
            }
            BodyPart::Format(format) => format.write(&entry, &mut out),
        }
    }
    out
}
