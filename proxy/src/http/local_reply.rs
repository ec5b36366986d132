//! Changes the answers that the proxy gives by itself, as the manager's mappers say.

use super::{
    body::Downstream,
    call::Call,
    headers::Known,
    reply::{self, Reply},
};
use crate::{
    config::{BodyFormat, BodyPart, Comparison, LocalReplies, ReplyFilter},
    telemetry::LogEntry,
};
use std::time::SystemTime;

/// Answers with the reply as the configuration changes it.
pub(super) fn send<D: Downstream>(call: &mut Call<'_>, down: &mut D, config: &LocalReplies, reply: Reply, close: bool) {
    let mapper = config.mappers.iter().find(|mapper| matches(&mapper.filter, call, reply.code));
    let code = mapper.and_then(|mapper| mapper.status).unwrap_or(reply.code);
    let text = mapper.and_then(|mapper| mapper.body.as_deref()).unwrap_or(reply.body);
    let grpc = call.request.is_grpc();
    reply::begin(call, if grpc { 200 } else { code });
    if reply == reply::ELSEWHERE {
        let path = call.request.path().to_vec();
        call.response.headers.push(b"location", &path);
    }
    if let Some(mapper) = mapper {
        call.response.headers.apply(&mapper.headers);
    }
    let (body, content_type) = match mapper.and_then(|mapper| mapper.format.as_ref()).or(config.body.as_ref()) {
        Some(format) => (write(format, call, code, text), &*format.content_type),
        None => (text.as_bytes().to_vec(), "text/plain"),
    };
    if grpc {
        reply::grpc(call, reply::grpc_status(code), &String::from_utf8_lossy(&body));
        return reply::finish(call, down, b"", close);
    }
    if !body.is_empty() {
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
        ReplyFilter::Header(header) => header.matches(call.request.headers.get(&header.name)),
        ReplyFilter::All(filters) => filters.iter().all(|filter| matches(filter, call, code)),
        ReplyFilter::Any(filters) => filters.iter().any(|filter| matches(filter, call, code)),
    }
}

fn write(format: &BodyFormat, call: &Call<'_>, code: u16, body: &str) -> Vec<u8> {
    let text = |bytes| std::str::from_utf8(bytes).ok();
    let duration = call.tally.start.elapsed();
    let mut entry =
        LogEntry::new(SystemTime::now() - duration, duration, &call.request.headers, &call.response.headers);
    entry.method = text(call.request.method());
    entry.path = text(call.request.path());
    entry.authority = text(call.request.authority());
    entry.scheme = Some(if call.request.secure { "https" } else { "http" });
    entry.protocol = Some(call.request.version.as_str());
    entry.code = code;
    entry.flags = call.tally.flags;
    entry.code_details = Some(call.tally.details);
    entry.transport_failure = call.tally.transport_failure.as_deref();
    entry.upstream_host = call.tally.host.as_ref().map(|host| host.address());
    entry.upstream_cluster = call.tally.cluster.as_ref().map(|cluster| &*cluster.config().name);
    entry.downstream_local = Some(call.conn.local);
    entry.downstream_remote = Some(call.client());
    entry.server_name = call.conn.server_name.as_deref();
    entry.route_name = call.tally.route.map(|route| &*route.name).filter(|name| !name.is_empty());
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
