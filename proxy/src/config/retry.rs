//! When and how often a request is tried again.

use super::balancing::Labels;
use super::matcher::HeaderMatch;
use std::time::Duration;

/// When and how often a request is tried again. The first attempt is not counted.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// How often at most.
    pub attempts: u32,
    /// On what.
    pub on: RetryOn,
    /// Statuses of `retriable-status-codes`.
    pub statuses: Vec<u16>,
    /// Conditions of `retriable-headers` on a response's headers; one that holds is enough.
    pub headers: Vec<HeaderMatch>,
    /// A limit for each attempt, from its start to the response head; `None` is none.
    pub per_try_timeout: Option<Duration>,
    /// A limit for the time in which nothing of an attempt moves; `None` is none.
    pub per_try_idle_timeout: Option<Duration>,
    /// Only requests on which one of these holds are tried again; none is all requests.
    pub request_headers: Vec<HeaderMatch>,
    /// Prefer endpoints that were not tried yet (`previous_hosts`).
    pub avoid_tried: bool,
    /// Prefer endpoints that have not all labels of one of these (`omit_canary_hosts`, `omit_host_metadata`).
    pub avoid_labels: Vec<Labels>,
    /// How often these may leave an endpoint out for one attempt; after that the next choice is taken as it is. Default 1.
    pub choices: u32,
    /// Pass over the priorities of attempts that failed (`previous_priorities`), as long as there are others; decided anew
    /// after so many attempts each time. At least 1.
    pub other_priorities: Option<u32>,
    /// Waits before retries: the base, doubled each time, jittered; at most `max_backoff`. Default 25 ms, 250 ms.
    pub base_backoff: Duration,
    /// The longest wait.
    pub max_backoff: Duration,
    /// Waits for which an answer asks; replaces the ones above where it does.
    pub rate_limited_backoff: Option<RateLimitedBackoff>,
}

/// How long to wait before a retry, from the headers of the answer that said "too many".
#[derive(Debug, Clone)]
pub struct RateLimitedBackoff {
    /// Where to look, in order.
    pub headers: Vec<ResetHeader>,
    /// Longer waits are not taken from headers; default 300 s.
    pub max_interval: Duration,
}

/// A header that says when to come again.
#[derive(Debug, Clone)]
pub struct ResetHeader {
    /// Its lower-case name.
    pub name: Box<str>,
    /// It holds seconds since 1970 and not seconds from now.
    pub unix_timestamp: bool,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 2,
            on: RetryOn::default(),
            statuses: Vec::new(),
            headers: Vec::new(),
            per_try_timeout: None,
            per_try_idle_timeout: None,
            request_headers: Vec::new(),
            avoid_tried: true,
            avoid_labels: Vec::new(),
            choices: 1,
            other_priorities: None,
            base_backoff: Duration::from_millis(25),
            max_backoff: Duration::from_millis(250),
            rate_limited_backoff: None,
        }
    }
}

/// The conditions of a retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetryOn {
    /// What a repeat of can do no harm: a connection from the pool that was closed while it idled, where nothing was sent or
    /// the method is safe, and refused streams. Repeated at once, up to three times beside [`RetryPolicy::attempts`]. A safe
    /// request that a new connection loses is as well, once, where no other condition counts that, and there are attempts.
    /// It is written [`RetryOn::STALE`], which Envoy passes over.
    pub stale: bool,
    /// Could not connect.
    pub connect_failure: bool,
    /// The endpoint refused the stream (HTTP/2).
    pub refused_stream: bool,
    /// The connection broke before any of the request was sent.
    pub reset_before_request: bool,
    /// The connection broke before a response.
    pub reset: bool,
    /// Any 5xx, or no response at all.
    pub server_error: bool,
    /// 502, 503, 504.
    pub gateway_error: bool,
    /// 409.
    pub retriable_4xx: bool,
    /// One of the policy's statuses.
    pub statuses: bool,
    /// A response with one of the policy's headers.
    pub headers: bool,
    /// An answer that says `x-envoy-ratelimited`; without it such an answer is never repeated.
    pub rate_limited: bool,
    /// gRPC status codes in a response's head, as a bit set by code.
    pub grpc_statuses: u32,
}

impl RetryOn {
    /// The name of [`RetryOn::stale`] among the conditions of a policy.
    pub const STALE: &str = "leno-stale-connection";

    /// Whether there are no conditions.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Adds one of Envoy's conditions on HTTP; false when it is not known.
    pub fn add(&mut self, condition: &str) -> bool {
        match condition {
            Self::STALE => self.stale = true,
            "connect-failure" => self.connect_failure = true,
            "refused-stream" => self.refused_stream = true,
            "reset-before-request" => self.reset_before_request = true,
            "reset" => self.reset = true,
            "5xx" => self.server_error = true,
            "gateway-error" => self.gateway_error = true,
            "retriable-4xx" => self.retriable_4xx = true,
            "retriable-status-codes" => self.statuses = true,
            "retriable-headers" => self.headers = true,
            "envoy-ratelimited" => self.rate_limited = true,
            // HTTP/3 is not spoken to endpoints.
            "http3-post-connect-failure" => {}
            _ => return false,
        }
        true
    }

    /// Adds one of Envoy's conditions on gRPC; false when it is not known.
    pub fn add_grpc(&mut self, condition: &str) -> bool {
        let code = match condition {
            "cancelled" => 1,
            "deadline-exceeded" => 4,
            "resource-exhausted" => 8,
            "internal" => 13,
            "unavailable" => 14,
            _ => return false,
        };
        self.grpc_statuses |= 1 << code;
        true
    }
}
