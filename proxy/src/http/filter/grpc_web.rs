//! gRPC-Web: calls of browsers, which can neither read trailers nor send more than text. The rules are Envoy's.

use super::super::{
    call::Call,
    head::BodyLength,
    headers::{Headers, Known},
};
use crate::telemetry::grpc_of_http;

const BINARY: [&[u8]; 2] = [b"application/grpc-web", b"application/grpc-web+proto"];
const TEXT: [&[u8]; 2] = [b"application/grpc-web-text", b"application/grpc-web-text+proto"];

/// Makes a call of gRPC out of one of gRPC-Web; whether its response must be text, if it was one.
pub(super) fn on_request(call: &mut Call<'_>) -> Option<bool> {
    let kind = call.request.headers.known(Known::ContentType)?;
    let text = TEXT.contains(&kind);
    if !text && !BINARY.contains(&kind) {
        return None;
    }
    let wants_text = call.request.headers.get("accept").is_some_and(|accept| TEXT.contains(&accept));
    call.request.headers.remove_known(Known::ContentLength);
    if call.request.body != BodyLength::Empty {
        call.request.body = BodyLength::Unknown;
        if text {
            call.tally.filters().recode_request.get_or_insert_default().take_base64();
        }
    }
    let headers = &mut call.request.headers;
    headers.set("content-type", b"application/grpc");
    headers.set("te", b"trailers");
    if headers.get("grpc-accept-encoding").is_none() {
        headers.push(b"grpc-accept-encoding", b"identity");
    }
    Some(wants_text)
}

/// Makes a response of gRPC-Web out of one of gRPC: its trailers end the body. Of one that is none only the status is told.
pub(super) fn on_response(call: &mut Call<'_>, text: bool) {
    let body = call.response.body;
    // Of a call that ends with its head the status is all that there is to it, whatever else the head says.
    let ends = body == BodyLength::Empty || call.request.method() == b"HEAD";
    let is_grpc = ends && call.response.headers.get("grpc-status").is_some()
        || call.response.status == 200 && is_grpc(&call.response.headers);
    let headers = &mut call.response.headers;
    headers.remove_known(Known::ContentLength);
    let kind = if text { TEXT[1] } else { BINARY[1] };
    headers.set("content-type", kind);
    if !is_grpc {
        headers.set("grpc-status", grpc_of_http(call.response.status).to_string().as_bytes());
    }
    if matches!(body, BodyLength::Empty | BodyLength::Tunnel) || call.request.method() == b"HEAD" {
        return;
    }
    call.response.body = if is_grpc { BodyLength::Unknown } else { BodyLength::Exact(0) };
    let recode = call.tally.filters().recode_response.get_or_insert_default();
    if is_grpc { recode.frame_trailers(text) } else { recode.drop_all() }
}

fn is_grpc(headers: &Headers) -> bool {
    let Some(kind) = headers.known(Known::ContentType) else { return false };
    let rest = kind.strip_prefix(b"application/grpc").unwrap_or(b"?");
    matches!(rest.first(), None | Some(b'+' | b';')) || BINARY.contains(&kind)
}
