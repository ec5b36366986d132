//! What an operator says about an entry.

use super::addresses::{Part, address, end_of, pipe_of};
use super::certificate;
use super::metadata;
use super::moments::{Unit, moment, whole};
use super::observed;
use super::operator::{Field, GrpcForm, Operator, Origin};
use super::queries::{decoded, query};
use super::{MAX_VALUE_BYTES, Sink};
use crate::config::pipe;
use crate::telemetry::{CloseType, HeaderLookup, LogEntry, NOT_A_STATUS, grpc_of_http};
use std::borrow::Cow;
use std::fmt::{Display, Write as _};
use std::time::{Duration, SystemTime};

/// What an operator has appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// Nothing: it is not known.
    Nothing,
    /// Words of this proxy's own, which need no escaping in a text.
    Own,
    /// Text that somebody outside chose.
    Foreign,
    /// A whole number.
    Number(u64),
    /// JSON as it stands.
    Json,
}

/// As [`give`], for a text: there JSON is cut to a length too.
pub(super) fn give_text<Q: HeaderLookup, S: HeaderLookup>(
    operator: &Operator,
    entry: &LogEntry<'_, Q, S>,
    out: &mut Vec<u8>,
) -> Given {
    let from = out.len();
    let given = give(operator, entry, out);
    if let (Given::Json, Operator::Metadata(.., limit)) = (given, operator) {
        let longest = from.saturating_add(*limit);
        out.truncate(longest);
    }
    given
}

/// Appends what the operator says, as it is.
pub(super) fn give<Q: HeaderLookup, S: HeaderLookup>(
    operator: &Operator,
    entry: &LogEntry<'_, Q, S>,
    out: &mut Vec<u8>,
) -> Given {
    match operator {
        Operator::Literal(text) => {
            out.extend_from_slice(text.as_bytes());
            Given::Own
        }
        Operator::Header(fields, limit) => {
            for field in fields {
                if let Some(value) = field_value(field, entry) {
                    return foreign(Some(&value[..value.len().min(*limit)]), out);
                }
            }
            Given::Nothing
        }
        Operator::StartTime(format) => {
            format.write(entry.start, out);
            Given::Own
        }
        Operator::EmitTime(format) => {
            format.write(SystemTime::now(), out);
            Given::Own
        }
        Operator::Protocol => own(entry.protocol, out),
        Operator::UpstreamProtocol => own(entry.upstream_protocol, out),
        Operator::ResponseCode => number(u64::from(entry.code), out),
        Operator::ResponseFlags => own(Some(entry.flags), out),
        Operator::ResponseFlagsLong => own(Some(entry.flags.long()), out),
        Operator::ResponseCodeDetails { blanks } => word(entry.code_details, *blanks, out),
        Operator::ConnectionTerminationDetails => word(entry.termination_details, true, out),
        Operator::UpstreamTransportFailureReason => word(entry.transport_failure, false, out),
        Operator::DownstreamTransportFailureReason => word(entry.downstream_failure, false, out),
        Operator::BytesReceived => number(entry.bytes_received, out),
        Operator::BytesSent => number(entry.bytes_sent, out),
        Operator::RequestHeaderBytes => number(request_bytes(entry), out),
        Operator::ResponseHeaderBytes => number(response_bytes(entry), out),
        Operator::ResponseTrailerBytes => number(entry.trailers.bytes(), out),
        Operator::Attempts => number(u64::from(entry.attempts), out),
        Operator::Duration => number(whole(entry.duration, Unit::Millis), out),
        Operator::Span(from, to, unit) => {
            let between = moment(*to, entry).zip(moment(*from, entry));
            match between.and_then(|(to, from)| u64::try_from(to - from).ok()) {
                Some(nanos) => number(whole(Duration::from_nanos(nanos), *unit), out),
                None => Given::Nothing,
            }
        }
        Operator::Address(end, part) => match pipe_of(*end, entry) {
            Some(_) if *part == Part::Port => Given::Nothing,
            Some(path) => own(Some(path), out),
            None => address(end_of(*end, entry), *part, out),
        },
        Operator::UpstreamHostName { port } => match entry.upstream_host_name {
            Some(name) if *port => foreign(Some(name.as_bytes()), out),
            Some(name) => foreign(Some(crate::route::without_port(name.as_bytes())), out),
            None => match entry.upstream_host.and_then(pipe::path) {
                Some(path) => own(Some(path), out),
                None if *port => own(entry.upstream_host, out),
                None => own(entry.upstream_host.map(|address| address.ip()), out),
            },
        },
        Operator::UpstreamCluster => foreign(entry.upstream_cluster.map(|[name, _]| name.as_bytes()), out),
        Operator::UpstreamClusterRaw => foreign(entry.upstream_cluster.map(|[_, name]| name.as_bytes()), out),
        Operator::ConnectionId => number(entry.connection_id, out),
        Operator::StreamId => match (entry.protocol, entry.request.header("x-request-id")) {
            (_, Some(id)) => foreign(Some(id), out),
            (None, None) => unique(out),
            (Some(_), None) => Given::Nothing,
        },
        Operator::UniqueId => unique(out),
        Operator::Hostname => own(Some(super::hostname()).filter(|name| !name.is_empty()), out),
        Operator::GrpcStatus(form) => {
            // Where nobody has said one, the status of HTTP stands for it.
            let status = entry.grpc_status.or_else(|| (entry.code != 0).then(|| grpc_of_http(entry.code)));
            grpc_status(status.filter(|_| entry.grpc), *form, out)
        }
        Operator::Certificate(owner, part) => certificate::give(*owner, part, entry, out),
        Operator::TlsVersion => own(entry.tls.map(|tls| tls.version), out),
        Operator::TlsCipher => own(entry.tls.map(|tls| tls.cipher), out),
        Operator::TlsGroup => own(entry.tls.and_then(|tls| tls.group), out),
        Operator::ServerName => foreign(entry.server_name.map(str::as_bytes), out),
        Operator::Host { server_name_first, origin } => {
            let named = entry.server_name.filter(|_| *server_name_first).map(str::as_bytes);
            let host = || from_origin(*origin, entry, "x-envoy-original-host", entry.authority);
            foreign(named.or_else(host), out)
        }
        Operator::Path { query, origin, limit } => {
            let path = from_origin(*origin, entry, "x-envoy-original-path", entry.path);
            let path = path.map(|path| if *query { path } else { path.split(|&b| b == b'?').next().unwrap_or(path) });
            foreign(path.map(|path| &path[..path.len().min(*limit)]), out)
        }
        Operator::WithoutQuery(fields, limit) => {
            let value = fields.iter().find_map(|field| field_value(field, entry));
            let value = value.as_deref().map(|value| value.split(|&byte| byte == b'?').next().unwrap_or(value));
            foreign(value.map(|value| &value[..value.len().min(*limit)]), out)
        }
        Operator::Metadata(of, filter, path, limit) => metadata::give(*of, filter, path, *limit, entry, out),
        Operator::Query(name, limit) => query(name.as_deref(), *limit, entry, out),
        Operator::DecodedQuery(limit) => {
            let query = entry.path.and_then(|path| path.split_once('?')).map(|(_, query)| decoded(query.as_bytes()));
            foreign(query.as_deref().map(|query| &query[..query.len().min(*limit)]), out)
        }
        Operator::Handshake => match entry.secured {
            Some(nanos) => signed(nanos / 1_000_000, out),
            None => Given::Nothing,
        },
        Operator::CloseType { up: true } => own(entry.endings.up.map(CloseType::as_str), out),
        Operator::CloseType { up: false } => own(Some(entry.endings.down.as_str()), out),
        Operator::CloseReason { up: true } => word(entry.endings.up_reason, false, out),
        Operator::CloseReason { up: false } => word(entry.endings.down_reason, false, out),
        Operator::VirtualCluster => foreign(entry.virtual_cluster.map(str::as_bytes), out),
        Operator::RouteName => foreign(entry.route_name.map(str::as_bytes), out),
        Operator::FilterChainName => foreign(entry.filter_chain.map(str::as_bytes), out),
        Operator::Kind => own(Some(entry.kind.as_str()), out),
        Operator::LocalReply => {
            out.extend_from_slice(entry.local_reply.unwrap_or_default().as_bytes());
            Given::Own
        }
        Operator::TraceId => own(entry.trace.map(|(trace, _)| trace), out),
        Operator::SpanId => own(entry.trace.map(|(_, span)| span), out),
        Operator::Observed(seen) => observed::give(*seen, entry, out),
        Operator::Never => Given::Nothing,
        Operator::EmptyForUpstream => {
            if entry.upstream_connected {
                Given::Own
            } else {
                Given::Nothing
            }
        }
        Operator::Number(value) => number(*value, out),
        Operator::First(choices, limit) => {
            let from = out.len();
            for choice in choices {
                let given = give(choice, entry, out);
                // What is there and empty is an answer too.
                if given != Given::Nothing {
                    let whole = out.len() <= from + limit;
                    out.truncate(from + limit);
                    return match given {
                        Given::Json if whole => Given::Json,
                        Given::Number(_) | Given::Json => Given::Own,
                        given => given,
                    };
                }
                out.truncate(from);
            }
            Given::Nothing
        }
    }
}

fn field_value<'e, Q: HeaderLookup, S: HeaderLookup>(
    field: &Field,
    entry: &'e LogEntry<'_, Q, S>,
) -> Option<Cow<'e, [u8]>> {
    use Cow::{Borrowed, Owned};
    match field {
        Field::Method => entry.method.filter(|text| !text.is_empty()).map(|text| Borrowed(text.as_bytes())),
        Field::Path => entry.path.map(|text| Borrowed(text.as_bytes())),
        Field::Authority => entry.authority.map(|text| Borrowed(text.as_bytes())),
        Field::Scheme => entry.scheme.map(|text| Borrowed(text.as_bytes())),
        Field::Status => (entry.status > 0).then(|| Owned(entry.status.to_string().into_bytes())),
        Field::RequestHeader(name) => entry.request.header(name).map(Borrowed),
        Field::ResponseHeader(name) => entry.response.header(name).map(Borrowed),
        Field::ResponseTrailer(name) => entry.trailers.header(name).map(Borrowed),
        Field::UpstreamServiceTime => entry
            .response
            .header("x-envoy-upstream-service-time")
            .map(Borrowed)
            .or_else(|| entry.upstream_service_time.map(|time| Owned(time.as_millis().to_string().into_bytes()))),
    }
}

pub(super) fn foreign(value: Option<&[u8]>, out: &mut Vec<u8>) -> Given {
    let Some(value) = value else { return Given::Nothing };
    out.extend_from_slice(&value[..value.len().min(MAX_VALUE_BYTES)]);
    Given::Foreign
}

pub(super) fn own(value: Option<impl Display>, out: &mut Vec<u8>) -> Given {
    let Some(value) = value else { return Given::Nothing };
    let _ = write!(Sink(out), "{value}");
    Given::Own
}

pub(super) fn number(value: u64, out: &mut Vec<u8>) -> Given {
    let mut text = [0; 20];
    out.extend_from_slice(crate::http::decimal(u128::from(value), &mut text));
    Given::Number(value)
}

/// A number that may be negative.
fn signed(value: i64, out: &mut Vec<u8>) -> Given {
    match u64::try_from(value) {
        Ok(value) => number(value, out),
        Err(_) => {
            let _ = write!(Sink(out), "{value}");
            Given::Json
        }
    }
}

/// A value that stands without quotes: blanks become underscores, as in Envoy.
fn word(value: Option<&str>, blanks: bool, out: &mut Vec<u8>) -> Given {
    let from = out.len();
    let given = foreign(value.filter(|value| !value.is_empty()).map(str::as_bytes), out);
    if !blanks {
        for byte in &mut out[from..] {
            if byte.is_ascii_whitespace() {
                *byte = b'_';
            }
        }
    }
    given
}

/// Bytes of names and values, with what HTTP/2 writes as headers.
pub(crate) fn request_bytes<Q: HeaderLookup, S>(entry: &LogEntry<'_, Q, S>) -> u64 {
    let method = entry.method.filter(|method| !method.is_empty());
    let pseudo =
        [(":method", method), (":path", entry.path), (":authority", entry.authority), (":scheme", entry.scheme)];
    let pseudo = pseudo.iter().filter_map(|(name, value)| value.map(|value| (name.len() + value.len()) as u64));
    pseudo.sum::<u64>() + entry.request.bytes()
}

/// The same of the response.
pub(crate) fn response_bytes<Q, S: HeaderLookup>(entry: &LogEntry<'_, Q, S>) -> u64 {
    let status = if entry.code > 0 { ":status".len() as u64 + 3 } else { 0 };
    entry.response.bytes() + status
}

fn from_origin<'e, Q: HeaderLookup, S>(
    origin: Origin,
    entry: &'e LogEntry<'_, Q, S>,
    header: &str,
    now: Option<&'e str>,
) -> Option<&'e [u8]> {
    let before = || entry.request.header(header).filter(|value| !value.is_empty());
    let now = now.map(str::as_bytes);
    match origin {
        Origin::Before => before(),
        Origin::Now => now,
        Origin::Either => before().or(now),
    }
}

fn unique(out: &mut Vec<u8>) -> Given {
    own(Some(crate::http::uuid(rand::random())), out)
}

fn grpc_status(status: Option<u16>, form: GrpcForm, out: &mut Vec<u8>) -> Given {
    const NAMES: [(&str, &str); 17] = [
        ("OK", "OK"),
        ("Canceled", "CANCELLED"),
        ("Unknown", "UNKNOWN"),
        ("InvalidArgument", "INVALID_ARGUMENT"),
        ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
        ("NotFound", "NOT_FOUND"),
        ("AlreadyExists", "ALREADY_EXISTS"),
        ("PermissionDenied", "PERMISSION_DENIED"),
        ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
        ("FailedPrecondition", "FAILED_PRECONDITION"),
        ("Aborted", "ABORTED"),
        ("OutOfRange", "OUT_OF_RANGE"),
        ("Unimplemented", "UNIMPLEMENTED"),
        ("Internal", "INTERNAL"),
        ("Unavailable", "UNAVAILABLE"),
        ("DataLoss", "DATA_LOSS"),
        ("Unauthenticated", "UNAUTHENTICATED"),
    ];
    let Some(status) = status else { return Given::Nothing };
    if status == NOT_A_STATUS {
        let given = signed(-1, out);
        return if form == GrpcForm::Number { given } else { Given::Own };
    }
    match (form, NAMES.get(usize::from(status))) {
        (GrpcForm::Number, _) => number(u64::from(status), out),
        (GrpcForm::Camel, Some((camel, _))) => own(Some(camel), out),
        (GrpcForm::Snake, Some((_, snake))) => own(Some(snake), out),
        (_, None) => own(Some(status), out),
    }
}
