//! What a log line, a header or a body of the proxy's own can speak of.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::{DynamicMetadata, ResponseFlags};
use crate::config::Metadata;
use crate::pool::Birth;
use crate::tls::TlsInfo;

/// What stands for a `grpc-status` that is no number.
pub const NOT_A_STATUS: u16 = u16::MAX;

/// Finds a header by its lower-case name.
pub trait HeaderLookup {
    /// The first value of the header.
    fn header(&self, lower_case_name: &str) -> Option<&[u8]>;

    /// All values of the header, joined by commas.
    fn joined(&self, lower_case_name: &str) -> Option<Cow<'_, [u8]>> {
        self.header(lower_case_name).map(Cow::Borrowed)
    }

    /// The values of the header, one by one.
    fn each<'a>(&'a self, lower_case_name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.header(lower_case_name).into_iter()
    }

    /// Bytes of names and values together.
    fn bytes(&self) -> u64 {
        0
    }
}

impl HeaderLookup for http::HeaderMap {
    fn header(&self, lower_case_name: &str) -> Option<&[u8]> {
        self.get(lower_case_name).map(http::HeaderValue::as_bytes)
    }

    fn bytes(&self) -> u64 {
        self.iter().map(|(name, value)| (name.as_str().len() + value.len()) as u64).sum()
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

    fn joined(&self, lower_case_name: &str) -> Option<Cow<'_, [u8]>> {
        (**self).joined(lower_case_name)
    }

    fn each<'a>(&'a self, lower_case_name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        (**self).each(lower_case_name)
    }

    fn bytes(&self) -> u64 {
        (**self).bytes()
    }
}

impl<H: HeaderLookup> HeaderLookup for Option<H> {
    fn header(&self, lower_case_name: &str) -> Option<&[u8]> {
        self.as_ref()?.header(lower_case_name)
    }

    fn bytes(&self) -> u64 {
        self.as_ref().map_or(0, HeaderLookup::bytes)
    }
}

/// What a line is about, as Envoy names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogKind {
    /// Neither: what a listener tells about a connection.
    #[default]
    NotSet,
    /// A request that has begun.
    DownstreamStart,
    /// A request that has not ended for a while.
    DownstreamPeriodic,
    /// A request whose tunnel stands.
    DownstreamTunnelSuccessfullyEstablished,
    /// A request that has ended.
    DownstreamEnd,
    /// A connection of the TCP proxy that has begun.
    TcpConnectionStart,
    /// A connection of the TCP proxy that has reached its endpoint.
    TcpUpstreamConnected,
    /// A connection of the TCP proxy that has not ended for a while.
    TcpPeriodic,
    /// A connection of the TCP proxy that has ended.
    TcpConnectionEnd,
}

impl LogKind {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotSet => "NotSet",
            Self::DownstreamStart => "DownstreamStart",
            Self::DownstreamTunnelSuccessfullyEstablished => "DownstreamTunnelSuccessfullyEstablished",
            Self::DownstreamPeriodic => "DownstreamPeriodic",
            Self::DownstreamEnd => "DownstreamEnd",
            Self::TcpConnectionStart => "TcpConnectionStart",
            Self::TcpUpstreamConnected => "TcpUpstreamConnected",
            Self::TcpPeriodic => "TcpPeriodic",
            Self::TcpConnectionEnd => "TcpConnectionEnd",
        }
    }

    /// Its number in Envoy's API.
    pub const fn number(self) -> i32 {
        match self {
            Self::NotSet => 0,
            Self::TcpUpstreamConnected => 1,
            Self::TcpConnectionEnd => 3,
            Self::TcpPeriodic => 2,
            Self::DownstreamStart => 4,
            Self::DownstreamPeriodic => 5,
            Self::DownstreamEnd => 6,
            Self::DownstreamTunnelSuccessfullyEstablished => 10,
            Self::TcpConnectionStart => 14,
        }
    }
}

/// Bytes of one side of a request with all framing but that of TLS; of headers alone, as lines of HTTP/1 or with the frames of
/// HTTP/2, trailers included there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wire {
    /// That came.
    pub received: u64,
    /// That went.
    pub sent: u64,
    /// Of heads that came.
    pub head_received: u64,
    /// Of heads that went.
    pub head_sent: u64,
    /// Of names and values of heads that came; of HTTP/1 as of `head_received`.
    pub plain_received: u64,
    /// Of names and values of heads that went; of HTTP/1 as of `head_sent`.
    pub plain_sent: u64,
}

impl std::ops::Add for Wire {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        let Self { received, sent, head_received, head_sent, plain_received, plain_sent } = self;
        Self {
            received: received + other.received,
            sent: sent + other.sent,
            head_received: head_received + other.head_received,
            head_sent: head_sent + other.head_sent,
            plain_received: plain_received + other.plain_received,
            plain_sent: plain_sent + other.plain_sent,
        }
    }
}

/// What is only kept of a request where a line asks for it.
#[derive(Debug, Default)]
pub struct Observed {
    /// The client's side.
    pub down: Wire,
    /// The side of the endpoints that were tried, all together.
    pub up: Wire,
    /// Of those that were tried before the last.
    pub earlier: Wire,
    /// Endpoints that were tried, as often as they were, with their names.
    pub attempted: Vec<(SocketAddr, Option<Arc<str>>)>,
    /// What the TLS to the last one is known by.
    pub tls: Option<Rc<TlsInfo>>,
    /// How long it took until there was a connection to it.
    pub ready: Option<Duration>,
    /// How the connection to it came about.
    pub birth: Option<Rc<Birth>>,
    /// The same in relation to the beginning of what the line is about.
    pub connecting: Connecting,
    /// The numbers of the connections on which attempts went.
    pub connections: Vec<u64>,
    /// When the body of the endpoint's answer began.
    pub body: Option<Duration>,
    /// When the sending of the answer to the client began.
    pub answering: Option<Duration>,
}

impl Observed {
    /// A connection for what began at `start`.
    pub fn connected(&mut self, birth: Option<Rc<Birth>>, start: Instant) {
        if let Some(birth) = &birth {
            self.connections.push(birth.id);
            self.connecting = Connecting {
                begun: Some(nanos(start, birth.begun)),
                connected: Some(nanos(start, birth.connected)),
                secured: birth.secured.map(|at| nanos(start, at)),
            };
        }
        self.birth = birth;
    }
}

/// When a connection to an endpoint was made: nanoseconds since the beginning of what is told, negative where that was before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connecting {
    /// The connecting began.
    pub begun: Option<i64>,
    /// TCP was connected.
    pub connected: Option<i64>,
    /// The handshake of TLS was done.
    pub secured: Option<i64>,
}

/// Nanoseconds from one moment to another, negative where that was before.
pub fn nanos(from: Instant, to: Instant) -> i64 {
    let whole = |span: Duration| i64::try_from(span.as_nanos()).unwrap_or(i64::MAX);
    match to.checked_duration_since(from) {
        Some(span) => whole(span),
        None => -whole(from.duration_since(to)),
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CloseType {
    /// In order, or not at all.
    #[default]
    Normal,
    /// It was reset by this side.
    LocalReset,
    /// It was reset by the other side.
    RemoteReset,
}

impl CloseType {
    /// Envoy's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::LocalReset => "LocalReset",
            Self::RemoteReset => "RemoteReset",
        }
    }
}

/// How the connections on both sides ended, as far as they have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endings<'a> {
    /// The client's.
    pub down: CloseType,
    /// The endpoint's, where one was looked for.
    pub up: Option<CloseType>,
    /// Why this side ended the client's.
    pub down_reason: Option<&'a str>,
    /// Why this side ended the endpoint's.
    pub up_reason: Option<&'a str>,
}

/// The metadata that belongs to a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'a> {
    /// Its route's.
    pub route: Option<&'a Metadata>,
    /// Its virtual host's.
    pub virtual_host: Option<&'a Metadata>,
    /// Its cluster's.
    pub cluster: Option<&'a Metadata>,
    /// Its endpoint's.
    pub endpoint: Option<&'a Metadata>,
    /// The listener's to which its client came.
    pub listener: Option<&'a Metadata>,
    /// The filter chain's that took its client.
    pub chain: Option<&'a Metadata>,
}

/// When what happened, since the request began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moments {
    /// The request had come whole.
    pub received: Option<Duration>,
    /// The sending to the endpoint began.
    pub sending: Option<Duration>,
    /// The endpoint had got the whole request.
    pub sent: Option<Duration>,
    /// The endpoint's answer began.
    pub answered: Option<Duration>,
    /// The endpoint's answer had come whole.
    pub answer_ended: Option<Duration>,
    /// The client has got the whole answer: at the end of what is told.
    pub ended: bool,
    /// The client's connection had ended.
    pub closed: Option<Duration>,
}

/// What a line can speak of. What is not known is `None` and prints as `-`.
#[derive(Clone, Copy, Debug)]
pub struct LogEntry<'a, Q, S> {
    /// What the line is about.
    pub kind: LogKind,
    /// When the request (or TCP connection) began.
    pub start: SystemTime,
    /// From then to the end.
    pub duration: Duration,
    /// What happened when, between the two.
    pub moments: Moments,
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
    /// Response trailers.
    pub trailers: Option<S>,
    /// `HTTP/1.1`, `HTTP/2`, ...
    pub protocol: Option<&'a str>,
    /// What was spoken with the endpoint.
    pub upstream_protocol: Option<&'a str>,
    /// Status; 0 for TCP and when there was none.
    pub code: u16,
    /// The status in the response's head as it is now, where there is one: to gRPC it is 200 also where `code` tells why.
    pub status: u16,
    /// Why the response is what it is.
    pub flags: ResponseFlags,
    /// `via_upstream`, `route_not_found`, ...
    pub code_details: Option<&'a str>,
    /// Why the downstream connection was ended by this side.
    pub termination_details: Option<&'a str>,
    /// What failed in the transport to the upstream (TLS).
    pub transport_failure: Option<&'a str>,
    /// What failed in the transport to the downstream (TLS).
    pub downstream_failure: Option<&'a str>,
    /// The body of an answer of the proxy itself, where it is just being written.
    pub local_reply: Option<&'a str>,
    /// Whether the request is a gRPC call.
    pub grpc: bool,
    /// The status of a gRPC call.
    pub grpc_status: Option<u16>,
    /// Whether the request was a health check, answered here.
    pub health_check: bool,
    /// Body bytes received from the downstream.
    pub bytes_received: u64,
    /// Body bytes sent to the downstream.
    pub bytes_sent: u64,
    /// Attempts that were made.
    pub attempts: u16,
    /// From sending the request upstream to the first byte of the response; printed for
    /// `%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%` when the response has no such header.
    pub upstream_service_time: Option<Duration>,
    /// The endpoint.
    pub upstream_host: Option<SocketAddr>,
    /// The endpoint's name.
    pub upstream_host_name: Option<&'a str>,
    /// Whether there is a connection to it.
    pub upstream_connected: bool,
    /// The cluster's name.
    pub upstream_cluster: Option<[&'a str; 2]>,
    /// Our address on the upstream connection.
    pub upstream_local: Option<SocketAddr>,
    /// Which of the endpoint's addresses is connected, where it has several.
    pub upstream_remote: Option<SocketAddr>,
    /// The address that the downstream meant (the original destination).
    pub downstream_local: Option<SocketAddr>,
    /// The address of our end of its connection.
    pub downstream_direct_local: Option<SocketAddr>,
    /// The downstream's address.
    pub downstream_remote: Option<SocketAddr>,
    /// The other end of its connection.
    pub downstream_direct_remote: Option<SocketAddr>,
    /// The number of its connection.
    pub connection_id: u64,
    /// When its connection began, in nanoseconds since `start`; negative where that was before.
    pub accepted: Option<i64>,
    /// When TLS with it was set up, by the same count.
    pub secured: Option<i64>,
    /// How connections ended.
    pub endings: Endings<'a>,
    /// The downstream's SPIFFE id.
    pub downstream_peer: Option<&'a str>,
    /// The downstream's TLS.
    pub tls: Option<&'a TlsInfo>,
    /// Server name of the TLS handshake.
    pub server_name: Option<&'a str>,
    /// The route's name.
    pub route_name: Option<&'a str>,
    /// The virtual cluster.
    pub virtual_cluster: Option<&'a str>,
    /// The filter chain's name.
    pub filter_chain: Option<&'a str>,
    /// Whether the service wants the request traced.
    pub forced: bool,
    /// The trace and the span of this request, where it is traced.
    pub trace: Option<(&'a str, &'a str)>,
    /// Metadata of where it went.
    pub metadata: Known<'a>,
    /// What filters found out.
    pub dynamic: Option<&'a DynamicMetadata>,
    /// What was kept, where a line asks for it.
    pub observed: Option<&'a Observed>,
}

impl<Q, S> LogEntry<'_, Q, S> {
    /// An entry of which only times and headers are known.
    pub fn new(start: SystemTime, duration: Duration, request: Q, response: S) -> Self {
        Self {
            kind: LogKind::NotSet,
            start,
            duration,
            moments: Moments::default(),
            method: None,
            path: None,
            authority: None,
            scheme: None,
            request,
            response,
            trailers: None,
            protocol: None,
            upstream_protocol: None,
            code: 0,
            status: 0,
            flags: ResponseFlags::none(),
            code_details: None,
            termination_details: None,
            transport_failure: None,
            downstream_failure: None,
            local_reply: None,
            grpc: false,
            grpc_status: None,
            health_check: false,
            bytes_received: 0,
            bytes_sent: 0,
            attempts: 0,
            upstream_service_time: None,
            upstream_host: None,
            upstream_host_name: None,
            upstream_connected: false,
            upstream_cluster: None,
            upstream_local: None,
            upstream_remote: None,
            downstream_local: None,
            downstream_direct_local: None,
            downstream_remote: None,
            downstream_direct_remote: None,
            connection_id: 0,
            accepted: None,
            secured: None,
            endings: Endings::default(),
            downstream_peer: None,
            tls: None,
            server_name: None,
            route_name: None,
            virtual_cluster: None,
            filter_chain: None,
            forced: false,
            trace: None,
            metadata: Known::default(),
            dynamic: None,
            observed: None,
        }
    }
}
