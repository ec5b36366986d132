//! Spans in the form of OTLP (opentelemetry-proto 1.x, `trace/v1/trace.proto`), written as protocol buffers at once.

use super::span::{Kind, Span};
use crate::config::Tracer;

/// Appends fields of protocol buffers.
pub(super) struct Writer<'a>(pub(super) &'a mut Vec<u8>);

impl Writer<'_> {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    pub(super) fn number(&mut self, field: u32, value: u64) {
        if value != 0 {
            self.varint(u64::from(field << 3));
            self.varint(value);
        }
    }

    pub(super) fn fixed64(&mut self, field: u32, value: u64) {
        self.varint(u64::from(field << 3 | 1));
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn fixed32(&mut self, field: u32, value: u32) {
        self.varint(u64::from(field << 3 | 5));
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, field: u32, value: &[u8]) {
        self.varint(u64::from(field << 3 | 2));
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    /// A message, of which the length is known when it has been written.
    pub(super) fn message(&mut self, field: u32, write: impl FnOnce(&mut Writer<'_>)) {
        let mut inner = Vec::new();
        write(&mut Writer(&mut inner));
        self.bytes(field, &inner);
    }

    /// A `KeyValue` with a text, which must be UTF-8.
    fn attribute(&mut self, field: u32, name: &str, value: &[u8]) {
        let value = String::from_utf8_lossy(value);
        self.message(field, |pair| {
            pair.bytes(1, name.as_bytes());
            pair.message(2, |any| any.bytes(1, value.as_bytes()));
        });
    }
}

/// Appends a span as a field of `ScopeSpans`.
pub(super) fn span(span: &Span<'_>, out: &mut Vec<u8>) {
    Writer(out).message(2, |out| {
        out.bytes(1, &span.trace.to_be_bytes());
        out.bytes(2, &span.id.to_be_bytes());
        if !span.state.is_empty() {
            out.bytes(3, String::from_utf8_lossy(span.state).as_bytes());
        }
        if let Some(parent) = span.parent {
            out.bytes(4, &parent.to_be_bytes());
        }
        out.bytes(5, span.name.as_bytes());
        let kind = match span.kind {
            Kind::Server => 2,
            Kind::Client => 3,
        };
        out.number(6, kind);
        out.fixed64(7, span.start);
        out.fixed64(8, span.end);
        for (name, value) in span.tags() {
            out.attribute(9, name, value);
        }
        if span.failed() {
            out.message(15, |status| status.number(3, 2));
        }
        // Sampled; whether it is known that the parent is another process's, and whether it is.
        out.fixed32(16, if span.remote { 0x301 } else { 0x101 });
    });
}

/// An `ExportTraceServiceRequest` of spans that are written already.
pub(super) fn request(tracer: &Tracer, spans: &[u8]) -> Vec<u8> {
    let version = leno_runtime::version();
    let mut out = Vec::with_capacity(spans.len() + 256);
    Writer(&mut out).message(1, |resource_spans| {
        resource_spans.message(1, |resource| {
            if tracer.sdk {
                resource.attribute(1, "telemetry.sdk.name", b"leno");
                resource.attribute(1, "telemetry.sdk.language", b"rust");
                resource.attribute(1, "telemetry.sdk.version", version.as_bytes());
            }
            if tracer.named {
                resource.attribute(1, "service.name", tracer.service.as_bytes());
            }
        });
        resource_spans.message(2, |scope_spans| {
            if tracer.scope {
                scope_spans.message(1, |scope| {
                    scope.bytes(1, b"leno");
                    scope.bytes(2, version.as_bytes());
                });
            }
            scope_spans.0.extend_from_slice(spans);
        });
    });
    out
}
