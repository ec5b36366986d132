//! How HTTP is served on a filter chain.

use super::{Direction, RouteTable};
use crate::telemetry::LogFormat;
use std::{sync::Arc, time::Duration};

/// The settings of an HTTP filter chain. Every limit has a default that a public edge could live with.
#[derive(Debug)]
pub struct HttpManager {
    /// Name in metrics.
    pub stat_prefix: Arc<str>,
    /// Which way the traffic goes.
    pub direction: Direction,
    /// The protocol spoken by clients.
    pub codec: Codec,
    /// Where requests go.
    pub routes: Arc<RouteTable>,
    /// What a request passes through, in order.
    pub filters: Vec<HttpFilter>,
    /// The line to write for each request, if any.
    pub access_log: Option<Arc<LogFormat>>,
    /// From the first byte of a request to the end of its head; default 10 s.
    pub request_head_timeout: Duration,
    /// A connection without a request for so long is closed; default one hour.
    pub idle_timeout: Duration,
    /// A request on which nothing moved for so long is ended; default five minutes, zero is never.
    pub stream_idle_timeout: Duration,
    /// Bytes of a request's head; default 60 KiB, more answers 431.
    pub max_head_bytes: usize,
    /// Headers of a request; default 100, more answers 431.
    pub max_headers: usize,
    /// Resolve `.` and `..` and unescape unreserved characters before matching; default true.
    pub normalize_path: bool,
    /// Make `//` one `/` before matching; default false.
    pub merge_slashes: bool,
    /// Give a request without `x-request-id` one; default true.
    pub generate_request_id: bool,
    /// Protocols to which an HTTP/1.1 connection may be upgraded, lower case, e.g. `websocket`.
    pub upgrades: Vec<Arc<str>>,
    /// Take `host` without its port when a virtual host is looked up; default false.
    pub strip_host_port: bool,
    /// Limits for HTTP/2 connections.
    pub http2: Http2Options,
}

impl Default for HttpManager {
    fn default() -> Self {
        Self {
            stat_prefix: Arc::from("http"),
            direction: Direction::Outbound,
            codec: Codec::Auto,
            routes: Arc::default(),
            filters: vec![HttpFilter::Router],
            access_log: None,
            request_head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(3600),
            stream_idle_timeout: Duration::from_secs(300),
            max_head_bytes: 60 * 1024,
            max_headers: 100,
            normalize_path: true,
            merge_slashes: false,
            generate_request_id: true,
            upgrades: vec![Arc::from("websocket")],
            strip_host_port: false,
            http2: Http2Options::default(),
        }
    }
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

/// One stage of the pipeline. An enum, so that the pipeline is read in one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpFilter {
    /// Sends the request to its route's target; the last one.
    Router,
}

/// Explicit limits of an HTTP/2 connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2Options {
    /// Streams at once; default 100.
    pub max_concurrent_streams: u32,
    /// Flow control window of a stream in bytes; default 64 KiB.
    pub stream_window: u32,
    /// Flow control window of the connection in bytes; default 1 MiB.
    pub connection_window: u32,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self { max_concurrent_streams: 100, stream_window: 64 * 1024, connection_window: 1024 * 1024 }
    }
}
