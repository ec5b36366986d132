//! Changes the answers that the proxy gives by itself, as the manager's mappers say.

use super::{
    body::Downstream,
    call::Call,
    edit,
    headers::Known,
    reply::{self, Reply},
};
use crate::{
    config::{BodyFormat, LocalReplies},
    telemetry::LogEntry,
};

/// Answers with the reply as the configuration changes it.
pub(super) fn send<D: Downstream>(call: &mut Call<'_>, down: &mut D, config: &LocalReplies, reply: Reply, close: bool) {
    let mapper = {
        let entry = LogEntry { code: reply.code, ..call.entry() };
        config.mappers.iter().find(|mapper| mapper.filter.holds(&entry, &|| call.worker.rng.next()))
    };
    let code = mapper.and_then(|mapper| mapper.status).unwrap_or(reply.code);
    let own = call.tally.filters.as_ref().map(|state| state.reply.clone()).unwrap_or_default();
    let text = mapper.and_then(|mapper| mapper.body.as_deref()).unwrap_or(own.body.unwrap_or(reply.body));
    let grpc = call.request.is_grpc();
    reply::begin(call, if grpc { 200 } else { code });
    if reply == reply::ELSEWHERE {
        let path = call.request.path().to_vec();
        call.response.headers.push(b"location", &path);
    }
    reply::overloaded(call, reply);
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

fn write(format: &BodyFormat, call: &Call<'_>, code: u16, body: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    format.format.write_body(&LogEntry { code, local_reply: Some(body), ..call.entry() }, &mut out);
    out
}
