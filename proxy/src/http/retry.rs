//! Decides whether a request is tried again. Pure: what happened and the policy in, yes or no out.

use super::headers::Headers;
use crate::config::{RetryOn, RetryPolicy};
use std::time::Duration;

/// What went wrong with an attempt, as far as a retry is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection came about: nothing was sent.
    Connect,
    /// The endpoint refused the stream before it looked at it.
    Refused,
    /// The connection broke before a response.
    Reset {
        /// Something of the request was sent.
        sent: bool,
        /// The connection had served another request before.
        reused: bool,
        /// A byte of an answer came.
        answered: bool,
    },
    /// A response.
    Response {
        /// Its status.
        status: u16,
        /// The `grpc-status` of its head.
        grpc: Option<u16>,
        /// One of the policy's conditions on headers holds.
        header: bool,
    },
    /// The limit of one attempt passed.
    PerTryTimeout,
}

impl Failure {
    /// Whether the endpoint can have got nothing of the request.
    pub fn is_unsent(self) -> bool {
        match self {
            Self::Connect | Self::Refused | Self::Reset { sent: false, .. } => true,
            Self::Reset { sent: true, .. } | Self::Response { .. } | Self::PerTryTimeout => false,
        }
    }
}

/// Whether a response has a header for which the policy wants a retry.
pub fn has_retriable_header(policy: &RetryPolicy, headers: &Headers) -> bool {
    policy.on.headers && policy.headers.iter().any(|wanted| wanted.matches(headers.get(&wanted.name)))
}

/// Whether to try again.
///
/// Without any policy two cases remain. A connection from the pool that turns out to be closed: the endpoint closed it while
/// idle, and a repeat is harmless if nothing was sent, or if the method is safe and no byte of an answer came (RFC 9110, 9.2.2).
/// And a refused stream, of which the endpoint says that it did nothing.
pub fn wanted(failure: Failure, policy: Option<&RetryPolicy>, safe_method: bool) -> bool {
    if let Failure::Reset { sent, reused: true, answered: false } = failure
        && (!sent || safe_method)
    {
        return true;
    }
    // The endpoint said that it did nothing, e.g. since the connection reached its age (RFC 9113, 8.7).
    if failure == Failure::Refused {
        return true;
    }
    let Some(policy) = policy else { return false };
    let RetryOn {
        connect_failure,
        refused_stream: _,
        reset_before_request,
        reset,
        server_error,
        gateway_error,
        retriable_4xx,
        statuses,
        headers,
        grpc_statuses,
    } = policy.on;
    match failure {
        Failure::Connect => connect_failure || server_error || gateway_error,
        Failure::Refused => true,
        Failure::Reset { sent, .. } => reset || server_error || gateway_error || reset_before_request && !sent,
        Failure::PerTryTimeout => server_error || gateway_error || reset,
        Failure::Response { status, grpc, header } => {
            headers && header
                || server_error && (500..600).contains(&status)
                || gateway_error && matches!(status, 502..=504)
                || retriable_4xx && status == 409
                || statuses && policy.statuses.contains(&status)
                || grpc.is_some_and(|code| code < 32 && grpc_statuses & (1 << code) != 0)
        }
    }
}

/// Whether the policy may want to repeat a request of which something was sent, so that its body has to be kept.
pub fn keeps_body(policy: &RetryPolicy) -> bool {
    let RetryOn {
        connect_failure: _,
        refused_stream,
        reset_before_request: _,
        reset,
        server_error,
        gateway_error,
        retriable_4xx,
        statuses,
        headers,
        grpc_statuses,
    } = policy.on;
    let answered = server_error || gateway_error || retriable_4xx || statuses || headers || grpc_statuses != 0;
    refused_stream || reset || answered
}

/// How long to wait before retry number `retry` (from 1): at random up to the base doubled each time, as Envoy does.
pub fn backoff(policy: &RetryPolicy, retry: u32, random: u64) -> Duration {
    let most = policy.base_backoff.saturating_mul(1 << (retry - 1).min(10)).min(policy.max_backoff);
    let micros = u64::try_from(most.as_micros()).unwrap_or(u64::MAX).max(1);
    Duration::from_micros(random % micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{HeaderMatch, HeaderTest};

    fn policy(on: RetryOn) -> RetryPolicy {
        RetryPolicy { on, statuses: vec![418], ..RetryPolicy::default() }
    }

    fn answered(status: u16, grpc: Option<u16>) -> Failure {
        Failure::Response { status, grpc, header: false }
    }

    #[test]
    fn retry_when_a_header_asks_for_it_then_for_any_status_and_method() {
        let present = |name: &str| HeaderMatch {
            name: name.into(),
            test: HeaderTest::Present(true),
            invert: false,
            missing_as_empty: false,
        };
        let on = |headers| RetryOn { headers, ..RetryOn::default() };
        let with = |on| RetryPolicy { on, headers: vec![present("x-a"), present("x-b")], ..RetryPolicy::default() };
        let mut headers = Headers::default();
        assert!(!has_retriable_header(&with(on(true)), &headers));
        headers.push(b"X-B", b"1");
        assert!(has_retriable_header(&with(on(true)), &headers));
        assert!(!has_retriable_header(&with(on(false)), &headers), "the condition is not asked for");
        let failure = Failure::Response { status: 200, grpc: None, header: true };
        assert!(wanted(failure, Some(&with(on(true))), false));
        assert!(keeps_body(&with(on(true))));
    }

    #[test]
    fn retry_when_a_repeat_is_not_harmless_then_only_on_request() {
        let reset = |sent, reused, answered| Failure::Reset { sent, reused, answered };
        assert!(wanted(reset(false, true, false), None, false));
        assert!(wanted(reset(true, true, false), None, true));
        assert!(!wanted(reset(true, true, false), None, false), "a POST may have been done");
        assert!(!wanted(reset(true, true, true), None, true));
        assert!(!wanted(reset(true, false, false), None, true));
        assert!(!wanted(Failure::Connect, None, true));
        let safe = policy(RetryOn {
            connect_failure: true,
            refused_stream: true,
            reset_before_request: true,
            ..RetryOn::default()
        });
        assert!(wanted(Failure::Connect, Some(&safe), false));
        assert!(wanted(Failure::Refused, Some(&safe), false));
        assert!(wanted(reset(false, false, false), Some(&safe), false));
        assert!(!wanted(reset(true, false, false), Some(&safe), false));
        assert!(!wanted(answered(503, None), Some(&safe), true));
        assert!(!wanted(Failure::PerTryTimeout, Some(&safe), true));
    }

    #[test]
    fn retry_when_statuses_are_asked_for_then_only_those() {
        let on = |on| policy(on);
        let server = on(RetryOn { server_error: true, ..RetryOn::default() });
        let gateway = on(RetryOn { gateway_error: true, ..RetryOn::default() });
        let listed = on(RetryOn { statuses: true, ..RetryOn::default() });
        let grpc = on(RetryOn { grpc_statuses: 1 << 14, ..RetryOn::default() });
        assert!(wanted(answered(500, None), Some(&server), false));
        assert!(!wanted(answered(499, None), Some(&server), false));
        assert!(wanted(answered(502, None), Some(&gateway), false));
        assert!(!wanted(answered(500, None), Some(&gateway), false));
        assert!(wanted(answered(418, None), Some(&listed), false));
        assert!(wanted(answered(200, Some(14)), Some(&grpc), false));
        assert!(!wanted(answered(200, Some(13)), Some(&grpc), false));
    }

    #[test]
    fn backoff_when_retried_often_then_it_stays_below_the_most() {
        let policy = RetryPolicy::default();
        for retry in 1..50 {
            assert!(backoff(&policy, retry, u64::MAX - 1) < policy.max_backoff);
        }
        assert!(backoff(&policy, 1, u64::MAX) < policy.base_backoff);
    }
}
