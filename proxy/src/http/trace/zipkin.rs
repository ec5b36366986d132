//! Spans in the forms of Zipkin's API v2: JSON, or protocol buffers (`zipkin.proto3.ListOfSpans`).

use super::b3::trace_id;
use super::otlp::Writer;
use super::span::{Kind, Span};
use crate::config::{Tracer, Zipkin};
use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
    sync::OnceLock,
};

/// Appends a span to those that wait.
pub(super) fn span(span: &Span<'_>, tracer: &Tracer, zipkin: &Zipkin, out: &mut Vec<u8>) {
    if zipkin.protobuf {
        protobuf(span, tracer, zipkin, out);
        return;
    }
    if !out.is_empty() {
        out.push(b',');
    }
    out.extend_from_slice(json(span, tracer, zipkin).as_bytes());
}

/// What is sent of spans that are written already.
pub(super) fn request(zipkin: &Zipkin, spans: &[u8]) -> Vec<u8> {
    if zipkin.protobuf { spans.to_vec() } else { [b"[", spans, b"]"].concat() }
}

/// Microseconds since 1970, and how many.
fn times(span: &Span<'_>) -> (u64, u64) {
    (span.start / 1000, (span.end.saturating_sub(span.start) / 1000).max(1))
}

/// Those with a value.
fn tags<'s>(span: &'s Span<'_>) -> impl Iterator<Item = (&'s str, std::borrow::Cow<'s, str>)> {
    let wanted = span.tags().filter(|(_, value)| !value.is_empty());
    wanted.map(|(name, value)| (name, String::from_utf8_lossy(value)))
}

/// What happened at the span's end: the server has sent its answer, or the client has got it.
fn sent(span: &Span<'_>) -> &'static str {
    match span.kind {
        Kind::Server => "ss",
        Kind::Client => "cr",
    }
}

/// The first address of this machine that others can reach, of IPv4 where it has one.
fn own_address() -> IpAddr {
    static ADDRESS: OnceLock<IpAddr> = OnceLock::new();
    *ADDRESS.get_or_init(|| {
        let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
        let address = |interface: nix::ifaddrs::InterfaceAddress| {
            let address = interface.address?;
            address
                .as_sockaddr_in()
                .map(|v4| IpAddr::from(v4.ip()))
                .or_else(|| Some(address.as_sockaddr_in6()?.ip().into()))
        };
        let reached: Vec<IpAddr> = all.filter_map(address).filter(|address| !address.is_loopback()).collect();
        let v4 = reached.iter().find(|address| address.is_ipv4()).copied();
        v4.or_else(|| reached.first().copied()).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    })
}

fn shared(span: &Span<'_>, zipkin: &Zipkin) -> bool {
    span.kind == Kind::Server && zipkin.shared
}

fn json(span: &Span<'_>, tracer: &Tracer, zipkin: &Zipkin) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut out = String::with_capacity(512);
    let (start, duration) = times(span);
    let kind = match span.kind {
        Kind::Server => "SERVER",
        Kind::Client => "CLIENT",
    };
    let _ = write!(out, r#"{{"traceId":"{}","id":"{:016x}","kind":"{kind}""#, trace_id(span.trace), span.id);
    if let Some(parent) = span.parent {
        let _ = write!(out, r#","parentId":"{parent:016x}""#);
    }
    let _ = write!(out, r#","name":{},"timestamp":{start},"duration":{duration}"#, quoted(span.name));
    if shared(span, zipkin) {
        out.push_str(r#","shared":true"#);
    }
    out.push_str(r#","localEndpoint":{"#);
    if !tracer.service.is_empty() {
        let _ = write!(out, r#""serviceName":{},"#, quoted(&tracer.service));
    }
    let family = if own_address().is_ipv4() { "ipv4" } else { "ipv6" };
    let _ = write!(out, r#""{family}":"{}","port":0}}"#, own_address());
    let _ = write!(out, r#","annotations":[{{"timestamp":{},"value":"{}"}}]"#, start + duration, sent(span));
    out.push_str(r#","tags":{"#);
    for (index, (name, value)) in tags(span).enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(out, "{comma}{}:{}", quoted(name), quoted(&value));
    }
    out.push_str("}}");
    out
}

fn protobuf(span: &Span<'_>, tracer: &Tracer, zipkin: &Zipkin, out: &mut Vec<u8>) {
    let (start, duration) = times(span);
    Writer(out).message(1, |out| {
        let trace = span.trace.to_be_bytes();
        out.bytes(1, if span.trace >> 64 == 0 { &trace[8..] } else { &trace });
        if let Some(parent) = span.parent {
            out.bytes(2, &parent.to_be_bytes());
        }
        out.bytes(3, &span.id.to_be_bytes());
        out.number(4, if span.kind == Kind::Client { 1 } else { 2 });
        out.bytes(5, span.name.as_bytes());
        out.fixed64(6, start);
        out.number(7, duration);
        out.message(8, |endpoint| {
            if !tracer.service.is_empty() {
                endpoint.bytes(1, tracer.service.as_bytes());
            }
            match own_address() {
                IpAddr::V4(address) => endpoint.bytes(2, &address.octets()),
                IpAddr::V6(address) => endpoint.bytes(3, &address.octets()),
            }
        });
        out.message(10, |annotation| {
            annotation.fixed64(1, start + duration);
            annotation.bytes(2, sent(span).as_bytes());
        });
        for (name, value) in tags(span) {
            out.message(11, |pair| {
                pair.bytes(1, name.as_bytes());
                pair.bytes(2, value.as_bytes());
            });
        }
        out.number(13, u64::from(shared(span, zipkin)));
    });
}
