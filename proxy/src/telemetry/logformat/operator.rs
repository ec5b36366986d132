//! Envoy's command operators, read from a format.

use super::addresses::{End, Part, ip};
use super::certificate::{self, Certificate, Owner};
use super::metadata::{self, Of};
use super::moments::{Moment, Unit, common_duration};
use super::observed::{self, Seen};
use super::times::TimeFormat;
use super::{FormatError, LogNeeds, MAX_VALUE_BYTES};

/// Operators in a `%COALESCE%` at most.
const MAX_CHOICES: usize = 16;

/// A header, or what HTTP/2 has in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Method,
    Path,
    Authority,
    Scheme,
    Status,
    RequestHeader(Box<str>),
    ResponseHeader(Box<str>),
    ResponseTrailer(Box<str>),
    UpstreamServiceTime,
}

/// How a status of gRPC is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GrpcForm {
    Camel,
    Snake,
    Number,
}

/// Where a path or host is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The header of what it was before a rewrite.
    Before,
    /// What it is.
    Now,
    /// The first of both that is there.
    Either,
}

/// One operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Literal(Box<str>),
    /// The first of the fields that is there, cut to a length.
    Header(Vec<Field>, usize),
    StartTime(TimeFormat),
    EmitTime(TimeFormat),
    Protocol,
    UpstreamProtocol,
    ResponseCode,
    ResponseFlags,
    ResponseFlagsLong,
    ResponseCodeDetails {
        blanks: bool,
    },
    ConnectionTerminationDetails,
    UpstreamTransportFailureReason,
    DownstreamTransportFailureReason,
    BytesReceived,
    BytesSent,
    RequestHeaderBytes,
    ResponseHeaderBytes,
    ResponseTrailerBytes,
    Attempts,
    Duration,
    Span(Moment, Moment, Unit),
    Address(End, Part),
    UpstreamHostName {
        port: bool,
    },
    UpstreamCluster,
    UpstreamClusterRaw,
    ConnectionId,
    StreamId,
    UniqueId,
    Hostname,
    GrpcStatus(GrpcForm),
    Certificate(Owner, Certificate),
    TlsVersion,
    TlsCipher,
    TlsGroup,
    ServerName,
    /// The server name before (or after) the host.
    Host {
        server_name_first: bool,
        origin: Origin,
    },
    Path {
        query: bool,
        origin: Origin,
        limit: usize,
    },
    Query(Option<Box<str>>, usize),
    /// All of the query, with those characters decoded that may stand in one.
    DecodedQuery(usize),
    /// Since when TLS with the client is set up.
    Handshake,
    /// How a connection ended, the endpoint's or the client's.
    CloseType {
        up: bool,
    },
    /// Why this side ended it.
    CloseReason {
        up: bool,
    },
    /// A header that is there, cut at its `?`, and then to a length.
    WithoutQuery(Vec<Field>, usize),
    /// Whose metadata, of which filter, where in its fields; a text is cut to a length.
    Metadata(Of, Box<str>, Vec<Box<str>>, usize),
    RouteName,
    VirtualCluster,
    FilterChainName,
    Kind,
    LocalReply,
    TraceId,
    SpanId,
    /// What is kept where it is asked for.
    Observed(Seen),
    /// What is never there.
    Never,
    /// What is there and empty, where the endpoint is known.
    EmptyForUpstream,
    /// Always this number.
    Number(u64),
    /// The first that gives something, cut to a length.
    First(Vec<Operator>, usize),
}

impl Operator {
    /// Whether Envoy has it without an extension.
    pub(super) fn is_built_in(&self) -> bool {
        match self {
            Self::WithoutQuery(..) => false,
            Self::First(choices, _) => choices.iter().all(Self::is_built_in),
            _ => true,
        }
    }

    /// Adds what it needs beyond what is known anyway.
    pub(super) fn add_needs(&self, needs: &mut LogNeeds) {
        match self {
            Self::Metadata(Of::Request, ..) => needs.dynamic = true,
            Self::Observed(_) | Self::Certificate(Owner::Endpoint | Owner::Own, _) => needs.observed = true,
            Self::Span(from, to, _) => needs.observed |= from.is_observed() || to.is_observed(),
            Self::First(choices, _) => choices.iter().for_each(|choice| choice.add_needs(needs)),
            _ => {}
        }
    }
}

/// One operator as it is written: `NAME(ARGUMENT):LENGTH`.
pub(super) struct Written<'t> {
    pub(super) name: &'t str,
    pub(super) argument: Option<&'t str>,
    pub(super) length: Option<usize>,
}

/// Splits what follows a `%` into the operator and what comes after its closing `%`.
pub(super) fn split(text: &str) -> Option<Result<(Written<'_>, &str), FormatError>> {
    let name_end = text.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
    let closing = text.find('%');
    let (name, mut rest) = text.split_at(name_end.unwrap_or(text.len()));
    let broken = || Some(Err(FormatError::Argument(text[..text.find('%').unwrap_or(text.len())].to_owned())));
    if name.is_empty() {
        closing?;
        return Some(Err(FormatError::UnknownOperator(text[..closing.unwrap_or(0)].to_owned())));
    }
    let mut argument = None;
    if let Some(inside) = rest.strip_prefix('(') {
        let Some(end) = inside.find(')') else {
            closing?;
            return broken();
        };
        argument = Some(&inside[..end]);
        rest = &inside[end + 1..];
    }
    let mut length = None;
    if let Some(digits) = rest.strip_prefix(':') {
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        match digits[..end].parse::<usize>() {
            Ok(most) => length = Some(most.min(MAX_VALUE_BYTES)),
            Err(_) => return broken(),
        }
        rest = &digits[end..];
    }
    match rest.strip_prefix('%') {
        Some(rest) => Some(Ok((Written { name, argument, length }, rest))),
        None if rest.is_empty() => None,
        None => broken(),
    }
}

impl Written<'_> {
    pub(super) fn whole(&self) -> String {
        let argument = self.argument.map(|argument| format!("({argument})")).unwrap_or_default();
        let length = self.length.map(|length| format!(":{length}")).unwrap_or_default();
        format!("{}{argument}{length}", self.name)
    }

    pub(super) fn malformed(&self) -> FormatError {
        FormatError::Argument(self.whole())
    }

    /// An operator that takes neither argument nor length.
    pub(super) fn plain(&self, operator: Operator) -> Result<Operator, FormatError> {
        match (self.argument, self.length) {
            (None | Some(""), None) => Ok(operator),
            _ => Err(self.malformed()),
        }
    }

    pub(super) fn limit(&self) -> usize {
        self.length.unwrap_or(MAX_VALUE_BYTES)
    }

    pub(super) fn time(&self, local: bool, default: &str) -> Result<TimeFormat, FormatError> {
        if self.length.is_some() {
            return Err(self.malformed());
        }
        let text = self.argument.filter(|text| !text.is_empty()).unwrap_or(default);
        TimeFormat::compile(text, local).ok_or_else(|| self.malformed())
    }

    fn header(&self, of: impl Fn(&str) -> Option<Field>) -> Result<Operator, FormatError> {
        let names = self.argument.filter(|names| !names.is_empty()).ok_or_else(|| self.malformed())?;
        let fields: Option<Vec<Field>> = names.split('?').map(|name| of(&name.trim().to_ascii_lowercase())).collect();
        let fields = fields.filter(|fields| fields.len() <= 2).ok_or_else(|| self.malformed())?;
        Ok(Operator::Header(fields, self.limit()))
    }
}

fn name(text: &str) -> Option<Box<str>> {
    (!text.is_empty() && http::HeaderName::from_bytes(text.as_bytes()).is_ok()).then(|| text.into())
}

fn request_field(text: &str) -> Option<Field> {
    Some(match text {
        ":method" => Field::Method,
        ":path" => Field::Path,
        ":authority" | "host" => Field::Authority,
        ":scheme" => Field::Scheme,
        text => Field::RequestHeader(name(text)?),
    })
}

fn response_field(text: &str) -> Option<Field> {
    Some(match text {
        ":status" => Field::Status,
        "x-envoy-upstream-service-time" => Field::UpstreamServiceTime,
        text => Field::ResponseHeader(name(text)?),
    })
}

/// The operator that is written so.
pub(super) fn operator(written: &Written<'_>) -> Result<Operator, FormatError> {
    use Operator as O;
    let w = written;
    let address = |end, part| w.plain(O::Address(end, part));
    let span = |from, to| w.plain(O::Span(from, to, Unit::Millis));
    match w.name {
        "REQ" | "REQUEST_HEADER" => w.header(request_field),
        "RESP" | "RESPONSE_HEADER" => w.header(response_field),
        "TRAILER" | "RESPONSE_TRAILER" => w.header(|text| Some(Field::ResponseTrailer(name(text)?))),
        "START_TIME" => Ok(O::StartTime(w.time(false, TimeFormat::DEFAULT)?)),
        "START_TIME_LOCAL" => Ok(O::StartTime(w.time(true, TimeFormat::DEFAULT_LOCAL)?)),
        "EMIT_TIME" => Ok(O::EmitTime(w.time(false, TimeFormat::DEFAULT)?)),
        "EMIT_TIME_LOCAL" => Ok(O::EmitTime(w.time(true, TimeFormat::DEFAULT_LOCAL)?)),
        "PROTOCOL" => w.plain(O::Protocol),
        "UPSTREAM_PROTOCOL" => w.plain(O::UpstreamProtocol),
        "RESPONSE_CODE" => w.plain(O::ResponseCode),
        "RESPONSE_FLAGS" => w.plain(O::ResponseFlags),
        "RESPONSE_FLAGS_LONG" => w.plain(O::ResponseFlagsLong),
        "RESPONSE_CODE_DETAILS" => match (w.argument, w.length) {
            (None, None) => Ok(O::ResponseCodeDetails { blanks: false }),
            (Some("ALLOW_WHITESPACES"), None) => Ok(O::ResponseCodeDetails { blanks: true }),
            (Some(_), None) => Ok(O::ResponseCodeDetails { blanks: false }),
            _ => Err(w.malformed()),
        },
        "CONNECTION_TERMINATION_DETAILS" => w.plain(O::ConnectionTerminationDetails),
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => w.plain(O::UpstreamTransportFailureReason),
        "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => w.plain(O::DownstreamTransportFailureReason),
        "BYTES_RECEIVED" => w.plain(O::BytesReceived),
        "BYTES_SENT" => w.plain(O::BytesSent),
        "BYTES_RETRANSMITTED" | "PACKETS_RETRANSMITTED" => w.plain(O::Number(0)),
        "REQUEST_HEADERS_BYTES" => w.plain(O::RequestHeaderBytes),
        "RESPONSE_HEADERS_BYTES" => w.plain(O::ResponseHeaderBytes),
        "RESPONSE_TRAILERS_BYTES" => w.plain(O::ResponseTrailerBytes),
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => w.plain(O::Attempts),
        "DURATION" => w.plain(O::Duration),
        "REQUEST_DURATION" => span(Moment::Begin, Moment::Received),
        "REQUEST_TX_DURATION" => span(Moment::Begin, Moment::Sent),
        "RESPONSE_DURATION" => span(Moment::Begin, Moment::Answered),
        "RESPONSE_TX_DURATION" => span(Moment::Answered, Moment::End),
        "ROUNDTRIP_DURATION" => w.plain(O::Never),
        "COMMON_DURATION" => common_duration(w),
        "DOWNSTREAM_HANDSHAKE_DURATION" => w.plain(O::Handshake),
        "UPSTREAM_DETECTED_CLOSE_TYPE" => w.plain(O::CloseType { up: true }),
        "DOWNSTREAM_DETECTED_CLOSE_TYPE" => w.plain(O::CloseType { up: false }),
        "UPSTREAM_LOCAL_CLOSE_REASON" => w.plain(O::CloseReason { up: true }),
        "DOWNSTREAM_LOCAL_CLOSE_REASON" => w.plain(O::CloseReason { up: false }),
        "UPSTREAM_HOST" => address(End::UpstreamHost, Part::Whole),
        "UPSTREAM_HOST_NAME" => w.plain(O::UpstreamHostName { port: true }),
        "UPSTREAM_HOST_NAME_WITHOUT_PORT" => w.plain(O::UpstreamHostName { port: false }),
        "UPSTREAM_CLUSTER" => w.plain(O::UpstreamCluster),
        "UPSTREAM_CLUSTER_RAW" => w.plain(O::UpstreamClusterRaw),
        "UPSTREAM_REMOTE_ADDRESS" => address(End::UpstreamRemote, Part::Whole),
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => ip(w, End::UpstreamRemote),
        "UPSTREAM_REMOTE_PORT" => address(End::UpstreamRemote, Part::Port),
        "UPSTREAM_LOCAL_ADDRESS" => address(End::UpstreamLocal, Part::Whole),
        "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => ip(w, End::UpstreamLocal),
        "UPSTREAM_LOCAL_PORT" => address(End::UpstreamLocal, Part::Port),
        "DOWNSTREAM_LOCAL_ADDRESS" => address(End::DownstreamLocal, Part::Whole),
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => ip(w, End::DownstreamLocal),
        "DOWNSTREAM_LOCAL_PORT" => address(End::DownstreamLocal, Part::Port),
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS" => address(End::DownstreamDirectLocal, Part::Whole),
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT" => ip(w, End::DownstreamDirectLocal),
        "DOWNSTREAM_DIRECT_LOCAL_PORT" => address(End::DownstreamDirectLocal, Part::Port),
        "DOWNSTREAM_REMOTE_ADDRESS" => address(End::DownstreamRemote, Part::Whole),
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => ip(w, End::DownstreamRemote),
        "DOWNSTREAM_REMOTE_PORT" => address(End::DownstreamRemote, Part::Port),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => address(End::DownstreamDirectRemote, Part::Whole),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => ip(w, End::DownstreamDirectRemote),
        "DOWNSTREAM_DIRECT_REMOTE_PORT" => address(End::DownstreamDirectRemote, Part::Port),
        // There are no internal listeners, the only ones whose addresses have such a part.
        "DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID" | "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID" => {
            w.plain(O::Literal("".into()))
        }
        "UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID" => w.plain(O::EmptyForUpstream),
        "CONNECTION_ID" => w.plain(O::ConnectionId),
        "STREAM_ID" => w.plain(O::StreamId),
        "UNIQUE_ID" => w.plain(O::UniqueId),
        "HOSTNAME" => w.plain(O::Hostname),
        "GRPC_STATUS" => match (w.argument, w.length) {
            (None | Some("" | "CAMEL_STRING"), None) => Ok(O::GrpcStatus(GrpcForm::Camel)),
            (Some("SNAKE_STRING"), None) => Ok(O::GrpcStatus(GrpcForm::Snake)),
            (Some("NUMBER"), None) => Ok(O::GrpcStatus(GrpcForm::Number)),
            _ => Err(w.malformed()),
        },
        "GRPC_STATUS_NUMBER" => w.plain(O::GrpcStatus(GrpcForm::Number)),
        "DOWNSTREAM_TLS_VERSION" => w.plain(O::TlsVersion),
        "DOWNSTREAM_TLS_CIPHER" => w.plain(O::TlsCipher),
        "DOWNSTREAM_TLS_GROUP" => w.plain(O::TlsGroup),
        "REQUESTED_SERVER_NAME" => server_name(w),
        "ROUTE_NAME" => w.plain(O::RouteName),
        // Virtual clusters are refused, and so are the filters that would set these.
        "VIRTUAL_CLUSTER_NAME" => w.plain(O::VirtualCluster),
        "TLS_JA3_FINGERPRINT" | "TLS_JA4_FINGERPRINT" => w.plain(O::Never),
        "CUSTOM_FLAGS" => w.plain(O::Literal("".into())),
        "FILTER_CHAIN_NAME" => w.plain(O::FilterChainName),
        "ACCESS_LOG_TYPE" => w.plain(O::Kind),
        "LOCAL_REPLY_BODY" => w.plain(O::LocalReply),
        "TRACE_ID" => w.plain(O::TraceId),
        "SPAN_ID" => w.plain(O::SpanId),
        "ENVIRONMENT" => {
            let name = w.argument.filter(|name| !name.is_empty()).ok_or_else(|| w.malformed())?;
            let value = std::env::var(name).unwrap_or_else(|_| "-".to_owned());
            let end = value.floor_char_boundary(w.limit());
            Ok(O::Literal(value[..end].into()))
        }
        "QUERY_PARAM" => {
            let name = w.argument.filter(|name| !name.is_empty()).ok_or_else(|| w.malformed())?;
            Ok(O::Query(Some(name.into()), w.limit()))
        }
        "QUERY_PARAMS" => match w.argument {
            None | Some("" | "ORIG") => Ok(O::Query(None, w.limit())),
            Some("DECODED") => Ok(O::DecodedQuery(w.limit())),
            Some(_) => Err(w.malformed()),
        },
        "PATH" => path(w),
        "REQ_WITHOUT_QUERY" => match w.header(request_field)? {
            O::Header(fields, limit) => Ok(O::WithoutQuery(fields, limit)),
            other => Ok(other),
        },
        // Filters that would set some are refused.
        "FILTER_STATE" | "UPSTREAM_FILTER_STATE" => filter_state(w),
        "COALESCE" => first(w),
        _ => certificate::operator(w)
            .or_else(|| metadata::operator(w))
            .or_else(|| observed::operator(w))
            .unwrap_or_else(|| Err(FormatError::UnknownOperator(w.whole()))),
    }
}

/// What filters keep for each other: none that is served here keeps anything.
fn filter_state(w: &Written<'_>) -> Result<Operator, FormatError> {
    let parts: Vec<&str> = w.argument.unwrap_or_default().splitn(3, ':').collect();
    match parts.as_slice() {
        ["", ..] => Err(w.malformed()),
        [_] | [_, "" | "PLAIN" | "TYPED"] | [_, "" | "PLAIN" | "TYPED", ""] => Ok(Operator::Never),
        [_, "FIELD", field] if !field.is_empty() => Ok(Operator::Never),
        _ => Err(w.malformed()),
    }
}

fn origin(text: &str, now: &str, either: &str) -> Option<Origin> {
    match text {
        "ORIG" => Some(Origin::Before),
        text if text == now => Some(Origin::Now),
        text if text == either => Some(Origin::Either),
        _ => None,
    }
}

fn server_name(w: &Written<'_>) -> Result<Operator, FormatError> {
    let (order, from) = w.argument.unwrap_or_default().split_once(':').unwrap_or((w.argument.unwrap_or_default(), ""));
    let from = if from.is_empty() { "ORIG_OR_HOST" } else { from };
    let origin = origin(from, "HOST", "ORIG_OR_HOST").ok_or_else(|| w.malformed())?;
    match (order, w.length) {
        ("" | "SNI_ONLY", None) => Ok(Operator::ServerName),
        ("SNI_FIRST", None) => Ok(Operator::Host { server_name_first: true, origin }),
        ("HOST_FIRST", None) => Ok(Operator::Host { server_name_first: false, origin }),
        _ => Err(w.malformed()),
    }
}

fn path(w: &Written<'_>) -> Result<Operator, FormatError> {
    let (query, from) = w.argument.unwrap_or_default().split_once(':').unwrap_or((w.argument.unwrap_or_default(), ""));
    let from = if from.is_empty() { "ORIG_OR_PATH" } else { from };
    let origin = origin(from, "PATH", "ORIG_OR_PATH").ok_or_else(|| w.malformed())?;
    let query = match query {
        "" | "WQ" => true,
        "NQ" => false,
        _ => return Err(w.malformed()),
    };
    Ok(Operator::Path { query, origin, limit: w.limit() })
}

/// `{"operators": ["NAME", {"command": "NAME", "param": "ARGUMENT", "max_length": 5}]}`.
fn first(w: &Written<'_>) -> Result<Operator, FormatError> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Choices {
        operators: Vec<Choice>,
    }
    #[derive(serde::Deserialize)]
    #[serde(untagged, deny_unknown_fields)]
    enum Choice {
        Name(String),
        Whole { command: String, param: Option<String>, max_length: Option<usize> },
    }
    let choices: Choices = serde_json::from_str(w.argument.unwrap_or_default()).map_err(|_| w.malformed())?;
    if choices.operators.is_empty() || choices.operators.len() > MAX_CHOICES {
        return Err(w.malformed());
    }
    let each = |choice: &Choice| match choice {
        Choice::Name(name) if name == "COALESCE" => Err(w.malformed()),
        Choice::Name(name) => operator(&Written { name, argument: None, length: None }),
        Choice::Whole { command, .. } if command == "COALESCE" => Err(w.malformed()),
        Choice::Whole { command, param, max_length } => operator(&Written {
            name: command,
            argument: param.as_deref(),
            length: max_length.map(|length| length.min(MAX_VALUE_BYTES)),
        }),
    };
    Ok(Operator::First(choices.operators.iter().map(each).collect::<Result<_, _>>()?, w.limit()))
}
