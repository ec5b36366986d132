//! Access log lines: Envoy's command operators, compiled once, written without allocation.
//!
//! Every value that a peer chooses is escaped, so that a request cannot forge a line: control characters, quotes,
//! backslashes and whatever is not ASCII become `\xNN`.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use super::ResponseFlags;

#[cfg(test)]
mod tests;

/// Longest value in a line, in bytes before escaping; what is longer is cut.
pub const MAX_VALUE_BYTES: usize = 2048;

/// Istio's default text format.
pub const ISTIO: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% ",
    "%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" ",
    "%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" ",
    "\"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% ",
    "%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% ",
    "%ROUTE_NAME%\n",
);

/// Finds a header by its lower-case name.
pub trait HeaderLookup {
    /// The first value of the header.
    fn header(&self, lower_case_name: &str) -> Option<&[u8]>;
}

impl HeaderLookup for http::HeaderMap {
    fn header(&self, lower_case_name: &str) -> Option<&[u8]> {
        self.get(lower_case_name).map(http::HeaderValue::as_bytes)
    }
}

/// No headers, for TCP and for requests that ended before there was a response.
impl HeaderLookup for () {
    fn header(&self, _lower_case_name: &str) -> Option<&[u8]> {
        None
    }
}

impl<H: HeaderLookup> HeaderLookup for &H {
    fn header(&self, lower_case_name: &str) -> Option<&[u8]> {
        (**self).header(lower_case_name)
    }
}

/// What a line can speak of. What is not known is `None` and prints as `-`.
#[derive(Clone, Copy, Debug)]
pub struct LogEntry<'a, Q, S> {
    /// When the request (or TCP connection) began.
    pub start: SystemTime,
    /// From then to the end.
    pub duration: Duration,
    /// Request method.
    pub method: Option<&'a str>,
    /// Request path with query, as it was routed.
    pub path: Option<&'a str>,
    /// Host or `:authority`.
    pub authority: Option<&'a str>,
    /// `http` or `https`.
    pub scheme: Option<&'a str>,
    /// Request headers.
    pub request: Q,
    /// Response headers.
    pub response: S,
    /// `HTTP/1.1`, `HTTP/2`, ...
    pub protocol: Option<&'a str>,
    /// Status; 0 for TCP and when there was none.
    pub code: u16,
    /// Why the response is what it is.
    pub flags: ResponseFlags,
    /// `via_upstream`, `route_not_found`, ...
    pub code_details: Option<&'a str>,
    /// Why the downstream connection was ended by this side.
    pub termination_details: Option<&'a str>,
    /// What failed in the transport to the upstream (TLS).
    pub transport_failure: Option<&'a str>,
    /// Body bytes received from the downstream.
    pub bytes_received: u64,
    /// Body bytes sent to the downstream.
    pub bytes_sent: u64,
    /// From sending the request upstream to the first byte of the response; printed for
    /// `%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%` when the response has no such header.
    pub upstream_service_time: Option<Duration>,
    /// The endpoint.
    pub upstream_host: Option<SocketAddr>,
    /// The cluster's name.
    pub upstream_cluster: Option<&'a str>,
    /// Our address on the upstream connection.
    pub upstream_local: Option<SocketAddr>,
    /// The address that the downstream meant (the original destination).
    pub downstream_local: Option<SocketAddr>,
    /// The downstream's address.
    pub downstream_remote: Option<SocketAddr>,
    /// The downstream's SPIFFE id.
    pub downstream_peer: Option<&'a str>,
    /// Server name of the TLS handshake.
    pub server_name: Option<&'a str>,
    /// The route's name.
    pub route_name: Option<&'a str>,
}

impl<Q, S> LogEntry<'_, Q, S> {
    /// An entry of which only times and headers are known.
    pub fn new(start: SystemTime, duration: Duration, request: Q, response: S) -> Self {
        Self {
            start,
            duration,
            method: None,
            path: None,
            authority: None,
            scheme: None,
            request,
            response,
            protocol: None,
            code: 0,
            flags: ResponseFlags::none(),
            code_details: None,
            termination_details: None,
            transport_failure: None,
            bytes_received: 0,
            bytes_sent: 0,
            upstream_service_time: None,
            upstream_host: None,
            upstream_cluster: None,
            upstream_local: None,
            downstream_local: None,
            downstream_remote: None,
            downstream_peer: None,
            server_name: None,
            route_name: None,
        }
    }
}

/// Why a format does not compile.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FormatError {
    /// An operator that this proxy does not know.
    #[error("access log format: operator %{0}% is not known; see the list of supported operators in the documentation")]
    UnknownOperator(String),
    /// A `%` without its partner.
    #[error("access log format: the operator that begins at byte {0} has no closing %; write %% for a per cent sign")]
    Unclosed(usize),
    /// An operator whose argument cannot be read.
    #[error("access log format: operator %{0}% has a malformed argument; it reads NAME(HEADER?OTHER):LENGTH")]
    Argument(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Field {
    Method,
    Path,
    Authority,
    Scheme,
    RequestHeader(Box<str>),
    ResponseHeader(Box<str>),
    UpstreamServiceTime,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operator {
    Literal(Box<str>),
    /// The first of the fields that is there, cut to a length.
    Header(Vec<Field>, usize),
    StartTime,
    Protocol,
    ResponseCode,
    ResponseFlags,
    ResponseCodeDetails,
    ConnectionTerminationDetails,
    UpstreamTransportFailureReason,
    BytesReceived,
    BytesSent,
    Duration,
    UpstreamHost,
    UpstreamCluster,
    UpstreamLocalAddress,
    DownstreamLocalAddress,
    DownstreamRemoteAddress,
    DownstreamRemoteIp,
    DownstreamRemotePort,
    DownstreamLocalIp,
    DownstreamLocalPort,
    DownstreamPeerUriSan,
    RequestedServerName,
    RouteName,
    UpstreamRemoteIp,
    UpstreamRemotePort,
    UpstreamLocalIp,
    UpstreamLocalPort,
    Hostname,
}

/// A compiled format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFormat(Vec<Operator>);

impl LogFormat {
    /// Istio's default text format ([`ISTIO`]).
    pub fn istio() -> Self {
        Self::compile(ISTIO).unwrap_or(Self(Vec::new()))
    }

    /// Compiles a format string of Envoy's.
    ///
    /// # Errors
    /// Names the operator that is not known or not well-formed.
    pub fn compile(text: &str) -> Result<Self, FormatError> {
        let mut operators = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            literal.push_str(&rest[..at]);
            let after = &rest[at + 1..];
            if let Some(after) = after.strip_prefix('%') {
                literal.push('%');
                rest = after;
                continue;
            }
            let end = after.find('%').ok_or(FormatError::Unclosed(text.len() - after.len() - 1))?;
            if !literal.is_empty() {
                operators.push(Operator::Literal(std::mem::take(&mut literal).into()));
            }
            operators.push(operator(&after[..end])?);
            rest = &after[end + 1..];
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            operators.push(Operator::Literal(literal.into()));
        }
        Ok(Self(operators))
    }

    /// Appends the value of a header: what is not known is empty, and nothing is escaped. Bytes that no header may have are left
    /// out.
    pub fn write_header<Q: HeaderLookup, S: HeaderLookup>(&self, entry: &LogEntry<'_, Q, S>, out: &mut Vec<u8>) {
        let from = out.len();
        for operator in &self.0 {
            let known = match operator {
                Operator::Literal(text) => {
                    out.extend_from_slice(text.as_bytes());
                    true
                }
                Operator::Header(fields, limit) => fields.iter().any(|field| {
                    let mut raw = |value: &[u8]| out.extend_from_slice(&value[..value.len().min(*limit)]);
                    plain_field(field, entry).map(|value| raw(&value)).is_some()
                }),
                _ => false,
            };
            if known || matches!(operator, Operator::Literal(_) | Operator::Header(..)) {
                continue;
            }
            let at = out.len();
            Self(vec![operator.clone()]).write(entry, out);
            // No flag is written as `-`, everything else that is not known as nothing.
            if out[at..] == *b"-" && *operator != Operator::ResponseFlags {
                out.truncate(at);
            }
        }
        let mut end = from;
        for at in from..out.len() {
            if out[at] == b'\t' || out[at] >= b' ' && out[at] != 0x7f {
                out[end] = out[at];
                end += 1;
            }
        }
        out.truncate(end);
    }

    /// Appends one line (the format brings its own line end).
    pub fn write<Q: HeaderLookup, S: HeaderLookup>(&self, entry: &LogEntry<'_, Q, S>, out: &mut Vec<u8>) {
        for operator in &self.0 {
            match operator {
                Operator::Literal(text) => out.extend_from_slice(text.as_bytes()),
                Operator::Header(fields, limit) => {
                    let written = fields.iter().any(|field| write_field(field, entry, *limit, out));
                    if !written {
                        out.push(b'-');
                    }
                }
                Operator::StartTime => start_time(entry.start, out),
                Operator::Protocol => text(entry.protocol, out),
                Operator::ResponseCode => display(Some(entry.code), out),
                Operator::ResponseFlags => display(Some(entry.flags), out),
                Operator::ResponseCodeDetails => word(entry.code_details, out),
                Operator::ConnectionTerminationDetails => word(entry.termination_details, out),
                Operator::UpstreamTransportFailureReason => text(entry.transport_failure, out),
                Operator::BytesReceived => display(Some(entry.bytes_received), out),
                Operator::BytesSent => display(Some(entry.bytes_sent), out),
                Operator::Duration => display(Some(entry.duration.as_millis()), out),
                Operator::UpstreamHost => display(entry.upstream_host, out),
                Operator::UpstreamCluster => text(entry.upstream_cluster, out),
                Operator::UpstreamLocalAddress => display(entry.upstream_local, out),
                Operator::DownstreamLocalAddress => display(entry.downstream_local, out),
                Operator::DownstreamRemoteAddress => display(entry.downstream_remote, out),
                Operator::DownstreamRemoteIp => {
                    display::<IpAddr>(entry.downstream_remote.map(|address| address.ip()), out);
                }
                Operator::DownstreamRemotePort => display(entry.downstream_remote.map(|address| address.port()), out),
                Operator::DownstreamLocalIp => display(entry.downstream_local.map(|address| address.ip()), out),
                Operator::DownstreamLocalPort => display(entry.downstream_local.map(|address| address.port()), out),
                Operator::UpstreamRemoteIp => display(entry.upstream_host.map(|address| address.ip()), out),
                Operator::UpstreamRemotePort => display(entry.upstream_host.map(|address| address.port()), out),
                Operator::UpstreamLocalIp => display(entry.upstream_local.map(|address| address.ip()), out),
                Operator::UpstreamLocalPort => display(entry.upstream_local.map(|address| address.port()), out),
                Operator::Hostname => text(Some(hostname()), out),
                Operator::DownstreamPeerUriSan => text(entry.downstream_peer, out),
                Operator::RequestedServerName => text(entry.server_name, out),
                Operator::RouteName => text(entry.route_name, out),
            }
        }
    }
}

fn operator(text: &str) -> Result<Operator, FormatError> {
    Ok(match text {
        "START_TIME" => Operator::StartTime,
        "PROTOCOL" => Operator::Protocol,
        "RESPONSE_CODE" => Operator::ResponseCode,
        "RESPONSE_FLAGS" => Operator::ResponseFlags,
        "RESPONSE_CODE_DETAILS" => Operator::ResponseCodeDetails,
        "CONNECTION_TERMINATION_DETAILS" => Operator::ConnectionTerminationDetails,
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => Operator::UpstreamTransportFailureReason,
        "BYTES_RECEIVED" => Operator::BytesReceived,
        "BYTES_SENT" => Operator::BytesSent,
        "DURATION" => Operator::Duration,
        "UPSTREAM_HOST" => Operator::UpstreamHost,
        "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => Operator::UpstreamCluster,
        "UPSTREAM_LOCAL_ADDRESS" => Operator::UpstreamLocalAddress,
        "DOWNSTREAM_LOCAL_ADDRESS" => Operator::DownstreamLocalAddress,
        "DOWNSTREAM_REMOTE_ADDRESS" => Operator::DownstreamRemoteAddress,
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Operator::DownstreamRemoteIp,
        "DOWNSTREAM_REMOTE_PORT" => Operator::DownstreamRemotePort,
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Operator::DownstreamLocalIp,
        "DOWNSTREAM_LOCAL_PORT" => Operator::DownstreamLocalPort,
        "DOWNSTREAM_PEER_URI_SAN" => Operator::DownstreamPeerUriSan,
        "UPSTREAM_REMOTE_ADDRESS" => Operator::UpstreamHost,
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Operator::UpstreamRemoteIp,
        "UPSTREAM_REMOTE_PORT" => Operator::UpstreamRemotePort,
        "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Operator::UpstreamLocalIp,
        "UPSTREAM_LOCAL_PORT" => Operator::UpstreamLocalPort,
        "HOSTNAME" => Operator::Hostname,
        "REQUESTED_SERVER_NAME" => Operator::RequestedServerName,
        "ROUTE_NAME" => Operator::RouteName,
        _ => return header_operator(text),
    })
}

fn header_operator(text: &str) -> Result<Operator, FormatError> {
    let (name, argument) = text.split_once('(').unwrap_or((text, ""));
    let request = match name {
        "REQ" => true,
        "RESP" => false,
        _ => return Err(FormatError::UnknownOperator(text.into())),
    };
    let malformed = || FormatError::Argument(text.into());
    let (names, limit) = argument.split_once(')').ok_or_else(malformed)?;
    let limit = match limit.strip_prefix(':') {
        Some(digits) => digits.parse::<usize>().map_err(|_| malformed())?.min(MAX_VALUE_BYTES),
        None if limit.is_empty() => MAX_VALUE_BYTES,
        None => return Err(malformed()),
    };
    let mut fields = Vec::new();
    for name in names.split('?') {
        let name = name.trim().to_ascii_lowercase();
        fields.push(match (request, name.as_str()) {
            (_, "") => return Err(malformed()),
            (true, ":method") => Field::Method,
            (true, ":path") => Field::Path,
            (true, ":authority" | "host") => Field::Authority,
            (true, ":scheme") => Field::Scheme,
            (true, _) => Field::RequestHeader(name.into()),
            (false, "x-envoy-upstream-service-time") => Field::UpstreamServiceTime,
            (false, _) => Field::ResponseHeader(name.into()),
        });
    }
    if fields.len() > 2 {
        return Err(malformed());
    }
    Ok(Operator::Header(fields, limit))
}

fn plain_field<'e, Q: HeaderLookup, S: HeaderLookup>(
    field: &Field,
    entry: &'e LogEntry<'_, Q, S>,
) -> Option<std::borrow::Cow<'e, [u8]>> {
    use std::borrow::Cow::{Borrowed, Owned};
    match field {
        Field::Method => entry.method.map(|text| Borrowed(text.as_bytes())),
        Field::Path => entry.path.map(|text| Borrowed(text.as_bytes())),
        Field::Authority => entry.authority.map(|text| Borrowed(text.as_bytes())),
        Field::Scheme => entry.scheme.map(|text| Borrowed(text.as_bytes())),
        Field::RequestHeader(name) => entry.request.header(name).map(Borrowed),
        Field::ResponseHeader(name) => entry.response.header(name).map(Borrowed),
        Field::UpstreamServiceTime => entry
            .response
            .header("x-envoy-upstream-service-time")
            .map(Borrowed)
            .or_else(|| entry.upstream_service_time.map(|time| Owned(time.as_millis().to_string().into_bytes()))),
    }
}

fn write_field<Q: HeaderLookup, S: HeaderLookup>(
    field: &Field,
    entry: &LogEntry<'_, Q, S>,
    limit: usize,
    out: &mut Vec<u8>,
) -> bool {
    let value = match field {
        Field::Method => entry.method.map(str::as_bytes),
        Field::Path => entry.path.map(str::as_bytes),
        Field::Authority => entry.authority.map(str::as_bytes),
        Field::Scheme => entry.scheme.map(str::as_bytes),
        Field::RequestHeader(name) => entry.request.header(name),
        Field::ResponseHeader(name) => entry.response.header(name),
        Field::UpstreamServiceTime => match entry.response.header("x-envoy-upstream-service-time") {
            Some(value) => Some(value),
            None => {
                let Some(time) = entry.upstream_service_time else { return false };
                display(Some(time.as_millis()), out);
                return true;
            }
        },
    };
    let Some(value) = value else { return false };
    escape(&value[..value.len().min(limit)], out);
    true
}

fn text(value: Option<&str>, out: &mut Vec<u8>) {
    match value {
        Some(value) if !value.is_empty() => escape(&value.as_bytes()[..value.len().min(MAX_VALUE_BYTES)], out),
        _ => out.push(b'-'),
    }
}

/// Like [`text`], for fields that stand without quotes: blanks become underscores, as in Envoy.
fn word(value: Option<&str>, out: &mut Vec<u8>) {
    let from = out.len();
    text(value, out);
    for byte in &mut out[from..] {
        if *byte == b' ' {
            *byte = b'_';
        }
    }
}

struct Sink<'a>(&'a mut Vec<u8>);

impl std::fmt::Write for Sink<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

fn display<T: std::fmt::Display>(value: Option<T>, out: &mut Vec<u8>) {
    match value {
        Some(value) => {
            let _ = write!(Sink(out), "{value}");
        }
        None => out.push(b'-'),
    }
}

fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for &byte in bytes {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0x20..=0x7e => out.push(byte),
            _ => out.extend_from_slice(&[b'\\', b'x', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]),
        }
    }
}

/// This machine's name, asked for once.
fn hostname() -> &'static str {
    static NAME: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    NAME.get_or_init(|| nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default())
}

fn start_time(start: SystemTime, out: &mut Vec<u8>) {
    let t = time::OffsetDateTime::from(start);
    let _ = write!(
        Sink(out),
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second(),
        t.millisecond()
    );
}
