//! How HTTP is served on a filter chain.

use super::{AccessLog, Direction, Edge, FilterEntry, Http2Keepalive, LocalReplies, RouteTable, StringMatch, Tracing};
use crate::telemetry::LogNeeds;
use std::{sync::Arc, time::Duration};

/// The settings of an HTTP filter chain. Every limit has a default that a public edge could live with.
#[derive(Debug)]
pub struct HttpManager {
    /// Name in metrics.
    pub stat_prefix: Arc<str>,
    /// Which way the traffic goes.
    pub direction: Direction,
    /// Connections go on when the admin server is asked to let health checks fail.
    pub ends_on_changes_only: bool,
    /// Requests are taken however little memory there is.
    pub bypasses_overload: bool,
    /// Answers to requests that are refused since memory runs short say so (`x-envoy-local-overloaded`).
    pub tells_overload: bool,
    /// The protocol spoken by clients.
    pub codec: Codec,
    /// Where requests go.
    pub routes: Arc<RouteTable>,
    /// What a request passes through before its route acts, in order.
    pub filters: Vec<FilterEntry>,
    /// How requests are sent on.
    pub router: RouterOptions,
    /// What is logged about requests.
    pub access_logs: Vec<AccessLog>,
    /// How requests are traced; `None` is not at all.
    pub tracing: Option<Box<Tracing>>,
    /// From the first byte of a request to the end of its head; default 10 s. Later is answered with 408.
    pub request_head_timeout: Duration,
    /// A connection without a request for so long ends; default one hour. Of HTTP/1 it takes one more request for `drain_timeout`.
    pub idle_timeout: Duration,
    /// A request on which nothing moved for so long is ended; default five minutes, zero is never.
    pub stream_idle_timeout: Duration,
    /// The end of an answer that a client of HTTP/2 does not take is waited for so long, where its route does not say; `None` (the
    /// default) is as for a request on which nothing moves.
    pub flush_timeout: Option<Duration>,
    /// For a request's head, and then for its body; later is answered with 408. `None` (the default) is no limit.
    pub request_timeout: Option<Duration>,
    /// From a request's head to the end of its response. `None` (the default) is no limit.
    pub max_stream_duration: Option<Duration>,
    /// A connection takes no more requests after so long. `None` (the default) is no limit.
    pub max_connection_duration: Option<Duration>,
    /// A connection of HTTP/1 that has lasted so long ends with its next answer, and not before; default false.
    pub safe_connection_duration: bool,
    /// When clients of HTTP/2 are asked whether they are still there.
    pub http2_keepalive: Option<Http2Keepalive>,
    /// So many per cent are added to `max_connection_duration` at most, by chance, so that connections do not end together.
    pub connection_duration_jitter: f64,
    /// How long an idle connection of HTTP/1 that takes no more requests stays open for one that is on its way; default 5 s.
    pub drain_timeout: Duration,
    /// How long the client may take to read the last response of a connection; default 1 s, zero closes at once.
    pub delayed_close_timeout: Duration,
    /// Requests of a connection at most. `None` (the default) is no limit.
    pub max_requests_per_connection: Option<u32>,
    /// Bytes of a request's head; default 60 KiB, more answers 431.
    pub max_head_bytes: usize,
    /// Headers of a request; default 100, more answers 431. At most [`MAX_HEADERS`].
    pub max_headers: usize,
    /// Resolve `.` and `..` and unescape unreserved characters before matching; default true.
    pub normalize_path: bool,
    /// Make `//` one `/` before matching; default false.
    pub merge_slashes: bool,
    /// What is done about `%2F` and `%5C` in a path; default nothing.
    pub escaped_slashes: EscapedSlashes,
    /// What is done about names of headers with underscores; default nothing.
    pub underscores: Underscores,
    /// Give a request without `x-request-id` one; default true.
    pub generate_request_id: bool,
    /// Protocols to which a connection may be upgraded, lower case, e.g. `websocket`; `connect` is CONNECT itself. A request
    /// that wants another one is answered with 403.
    pub upgrades: Vec<Upgrade>,
    /// Which ports are taken away from a request's host; default none.
    pub strip_port: StripPort,
    /// Take a dot at the end of a request's host away; default false.
    pub strip_trailing_dot: bool,
    /// Who the client is, and what others are told about it; `None` is [`Edge::default`], which costs nothing.
    pub edge: Option<Box<Edge>>,
    /// What becomes of the `server` header of responses; default [`ServerHeader::PassThrough`].
    pub server_header: ServerHeader,
    /// Serve HTTP/1.0; default true. Otherwise it is answered with 426.
    pub accept_http_10: bool,
    /// The host of an HTTP/1.0 request that names none.
    pub default_host_for_http_10: Option<Arc<str>>,
    /// `Expect: 100-continue` is the endpoint's affair; default false: answered here.
    pub proxy_100_continue: bool,
    /// Trailers of HTTP/1 clients and to them pass; default true.
    pub http1_trailers: bool,
    /// Any method passes; default true. Otherwise only those that are registered; others are answered with 400.
    pub any_method: bool,
    /// Targets of HTTP/1 that are whole URLs name host and path.
    pub absolute_urls: bool,
    /// Wishes of HTTP/1.1 for one of these protocols are taken for none.
    pub ignored_upgrades: Vec<StringMatch>,
    /// The length of a request of HTTP/1 that has chunks is dropped; default false: such a request is refused.
    pub chunked_length: bool,
    /// How names of headers are written to clients of HTTP/1; [`HeaderNames::Kept`] is about those of requests.
    pub names: HeaderNames,
    /// A request that breaks a rule does not cost its connection of HTTP/1, where it was read to its end; default false.
    pub stream_error_on_invalid: bool,
    /// A line is also written when a request has begun; default false.
    pub log_starts: bool,
    /// A line is also written when a tunnel (an upgrade or CONNECT) stands; default false.
    pub log_tunnels: bool,
    /// A line is also written whenever a request has gone on for so long.
    pub log_every: Option<Duration>,
    /// What its access logs, filters and texts want to know beyond what is known anyway; its routes tell of themselves.
    pub needs: LogNeeds,
    /// How answers of the proxy itself are changed.
    pub local_replies: Option<Box<LocalReplies>>,
    /// Bytes of a request's body that are kept for another attempt, where its route does not say; default 1 MiB.
    pub buffer_limit: usize,
    /// Limits for HTTP/2 connections.
    pub http2: Http2Options,
}

/// A protocol to which a connection may be upgraded.
#[derive(Debug)]
pub struct Upgrade {
    /// Its name in lower case.
    pub kind: Arc<str>,
    /// Whether it is offered where a route does not say.
    pub offered: bool,
    /// What its requests pass instead of what others do.
    pub chain: Option<Box<Chain>>,
}

/// What requests pass through.
#[derive(Debug)]
pub struct Chain {
    /// In order.
    pub filters: Vec<FilterEntry>,
    /// How they are sent on.
    pub router: RouterOptions,
}

impl Default for HttpManager {
    fn default() -> Self {
        Self {
            stat_prefix: Arc::from("http"),
            direction: Direction::Outbound,
            ends_on_changes_only: false,
            bypasses_overload: false,
            tells_overload: false,
            codec: Codec::Auto,
            routes: Arc::default(),
            filters: Vec::new(),
            router: RouterOptions::default(),
            access_logs: Vec::new(),
            tracing: None,
            request_head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(3600),
            flush_timeout: None,
            stream_idle_timeout: Duration::from_secs(300),
            request_timeout: None,
            max_stream_duration: None,
            max_connection_duration: None,
            safe_connection_duration: false,
            http2_keepalive: None,
            connection_duration_jitter: 0.0,
            drain_timeout: Duration::from_secs(5),
            delayed_close_timeout: Duration::from_secs(1),
            max_requests_per_connection: None,
            max_head_bytes: 60 * 1024,
            max_headers: 100,
            normalize_path: true,
            merge_slashes: false,
            escaped_slashes: EscapedSlashes::Keep,
            underscores: Underscores::Allow,
            generate_request_id: true,
            upgrades: vec![Upgrade { kind: Arc::from("websocket"), offered: true, chain: None }],
            strip_port: StripPort::Never,
            strip_trailing_dot: false,
            edge: None,
            server_header: ServerHeader::PassThrough,
            accept_http_10: true,
            default_host_for_http_10: None,
            proxy_100_continue: false,
            names: HeaderNames::Plain,
            http1_trailers: true,
            any_method: true,
            chunked_length: false,
            absolute_urls: true,
            ignored_upgrades: Vec::new(),
            stream_error_on_invalid: false,
            log_starts: false,
            log_tunnels: false,
            log_every: None,
            needs: LogNeeds::default(),
            local_replies: None,
            buffer_limit: 1024 * 1024,
            http2: Http2Options::default(),
        }
    }
}

impl HttpManager {
    /// Whether more is to be known of requests than metrics tell.
    pub fn observes(&self) -> bool {
        !self.access_logs.is_empty() || self.tracing.is_some()
    }
}

/// The most headers that [`HttpManager::max_headers`] may allow.
pub const MAX_HEADERS: usize = 1024;

/// What is done about escaped slashes and backslashes (`%2F`, `%5C`) in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// They stay.
    Keep,
    /// The request is refused with 400.
    Reject,
    /// They become slashes, and the client is sent there with 307.
    Redirect,
    /// They become slashes.
    Unescape,
}

/// What is done about names of headers with underscores, which some servers take for hyphens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Underscores {
    /// They pass.
    Allow,
    /// The request is refused with 400.
    Reject,
    /// The header is left out.
    Drop,
}

/// Which ports are taken away from a request's host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StripPort {
    /// None.
    Never,
    /// The one to which the client connected.
    Matching,
    /// Each.
    Any,
}

/// What becomes of the `server` header of responses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerHeader {
    /// It stays as the endpoint wrote it.
    PassThrough,
    /// It becomes this.
    Overwrite(Arc<str>),
    /// It becomes this where the endpoint wrote none.
    IfAbsent(Arc<str>),
}

/// The protocol of downstream connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// By ALPN, else by the first bytes.
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only (with prior knowledge on plain text).
    Http2,
}

/// How names of headers are written in HTTP/1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeaderNames {
    /// As they came; those that the proxy writes by itself, or anew (`host`, `content-length`), in small letters.
    #[default]
    Plain,
    /// In the form `Content-Type`.
    Proper,
    /// Those that came are written as they came, the proxy's own versions of them too; others in small letters, or in the form
    /// `Content-Type` where `others_proper`. The other side of the proxy writes them so.
    Kept {
        /// Names that did not come are written in the form `Content-Type`.
        others_proper: bool,
    },
}

/// How requests are sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RouterOptions {
    /// Add none of Envoy's own headers (`x-envoy-*`) to requests and responses.
    pub suppress_envoy_headers: bool,
    /// Take the limit in `x-envoy-expected-rq-timeout-ms`, which the proxy before us has set, for the route's.
    pub respect_expected_timeout: bool,
    /// Where a request is traced, each attempt has a span of its own.
    pub start_child_span: bool,
    /// Headers of the kinds that steer the router whose values must be good, or the request is answered with 400.
    pub strict: StrictHeaders,
    /// The statuses and times of answers are not counted by cluster.
    pub counts_no_statuses: bool,
    /// Those of calls of gRPC that fail are not.
    pub counts_no_failed_calls: bool,
}

/// Which headers are looked at strictly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StrictHeaders {
    order: [u8; Self::NAMES.len()],
    count: u8,
}

impl StrictHeaders {
    /// The headers that may be looked at, those that list conditions of retries first.
    pub const NAMES: [&str; 5] = [
        "x-envoy-retry-on",
        "x-envoy-retry-grpc-on",
        "x-envoy-max-retries",
        "x-envoy-upstream-rq-timeout-ms",
        "x-envoy-upstream-rq-per-try-timeout-ms",
    ];

    /// Adds one by its name; false when it is none of them.
    pub fn add(&mut self, name: &str) -> bool {
        let Some(at) = Self::NAMES.iter().position(|known| *known == name) else { return false };
        if !self.iter().any(|known| known == at) {
            self.order[usize::from(self.count)] = at as u8;
            self.count += 1;
        }
        true
    }

    /// Which of [`Self::NAMES`] they are, in the order in which they are looked at.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        self.order.into_iter().take(self.count.into()).map(usize::from)
    }
}

/// Explicit limits of an HTTP/2 connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2Options {
    /// Streams at once; default 1024.
    pub max_concurrent_streams: u32,
    /// Flow control window of a stream in bytes, what a peer may send before it hears from us; default 1 MiB.
    pub stream_window: u32,
    /// What it grows to while all that comes is used at once, so that a peer far away is not held back; default 16 MiB.
    pub most_stream_window: u32,
    /// Flow control window of the connection in bytes, what may wait here of all its streams; default 4 MiB.
    pub connection_window: u32,
    /// What it grows to likewise; default 24 MiB.
    pub most_connection_window: u32,
    /// Clients may ask for tunnels of other protocols, such as WebSocket, by extended CONNECT (RFC 8441); default false.
    pub allow_connect: bool,
    /// Frames without payload that a peer may send one after the other; default 1, more disconnects it.
    pub max_empty_frames: u32,
    /// PRIORITY frames that a peer may send for each stream; default 100, more disconnects it.
    pub max_priority_frames: u32,
    /// WINDOW_UPDATE frames that a peer may send for each frame of DATA that it gets; default 10, more disconnects it.
    pub max_window_updates: u32,
    /// Answers to a peer's SETTINGS, PING and faults that may wait to be read by it; default 1000, more disconnects it.
    pub max_control_frames: u32,
    /// A malformed request ends its stream alone; default false, it ends the connection.
    pub malformed_ends_stream: bool,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 1024,
            stream_window: 1024 * 1024,
            most_stream_window: 16 * 1024 * 1024,
            connection_window: 4 * 1024 * 1024,
            most_connection_window: 24 * 1024 * 1024,
            allow_connect: false,
            max_empty_frames: 1,
            max_priority_frames: 100,
            max_window_updates: 10,
            max_control_frames: 1000,
            malformed_ends_stream: false,
        }
    }
}
