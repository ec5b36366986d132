//! Decides whether a request is tried again. Pure: what happened and the policy in, yes or no out.

use super::{head::RequestHead, headers::Headers};
use crate::config::{HeaderMatch, HeaderTest, RetryOn, RetryPolicy, StrictHeaders};
use std::{
    borrow::Cow,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

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
        /// A byte of an answer came, or there was one to come and it took too long.
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
        /// It says that Envoy's rate limit refused the request.
        rate_limited: bool,
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
pub fn has_retriable_header(policy: &RetryPolicy, status: u16, headers: &Headers) -> bool {
    let holds = |wanted: &HeaderMatch| match &*wanted.name {
        ":status" => wanted.matches(Some(status.to_string().as_bytes())),
        name => wanted.matches(headers.values(name)),
    };
    policy.on.headers && policy.headers.iter().any(holds)
}

/// Whether a repeat can do no harm, whoever makes it: a connection from the pool turned out to be closed (the endpoint closed
/// it while it was idle), and nothing was sent, or the method is safe and no byte of an answer came (RFC 9110, 9.2.2); or
/// the endpoint said that it did nothing, e.g. since the connection reached its age (RFC 9113, 8.7). A safe request that a new
/// connection lost is one as well where the policy repeats what stale connections lose, but counts no resets: an app that
/// stops may end what it has only just accepted.
pub fn harmless(failure: Failure, policy: Option<&RetryPolicy>, safe_method: bool) -> bool {
    match failure {
        Failure::Reset { sent, reused: true, answered: false } => !sent || safe_method,
        Failure::Reset { sent: true, reused: false, answered: false } => {
            safe_method && policy.is_some_and(repeats_lost)
        }
        Failure::Refused => true,
        _ => false,
    }
}

fn repeats_lost(policy: &RetryPolicy) -> bool {
    let on = policy.on;
    on.stale && policy.attempts > 0 && !(on.reset || on.server_error || on.gateway_error)
}

/// Whether the policy says to try again. What is [`harmless`] is beside that.
pub fn wanted(failure: Failure, policy: &RetryPolicy) -> bool {
    let RetryOn {
        stale: _,
        connect_failure,
        refused_stream,
        reset_before_request,
        reset,
        server_error,
        gateway_error,
        retriable_4xx,
        statuses,
        headers,
        rate_limited: on_rate_limited,
        grpc_statuses,
    } = policy.on;
    match failure {
        Failure::Connect => connect_failure || reset_before_request || reset || server_error || gateway_error,
        Failure::Refused => refused_stream || reset || server_error || gateway_error,
        Failure::Reset { sent, .. } => reset || server_error || gateway_error || reset_before_request && !sent,
        Failure::PerTryTimeout => server_error || gateway_error || reset,
        Failure::Response { rate_limited: true, .. } => on_rate_limited,
        Failure::Response { status, grpc, header, rate_limited: false } => {
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
        stale,
        connect_failure: _,
        refused_stream,
        reset_before_request: _,
        reset,
        server_error,
        gateway_error,
        retriable_4xx,
        statuses,
        headers,
        rate_limited,
        grpc_statuses,
    } = policy.on;
    let answered = server_error || gateway_error || retriable_4xx || statuses || headers || grpc_statuses != 0;
    stale || policy.attempts > 0 && (refused_stream || reset || answered || rate_limited)
}

/// How long to wait before retry number `retry` (from 1): at random up to the base doubled each time, as Envoy does.
pub fn backoff(policy: &RetryPolicy, retry: u32, random: u64) -> Duration {
    let most = policy.base_backoff.saturating_mul(1 << (retry - 1).min(10)).min(policy.max_backoff);
    let micros = u64::try_from(most.as_micros()).unwrap_or(u64::MAX).max(1);
    Duration::from_micros(random % micros)
}

/// How long to wait before a retry that `headers` of an answer name, up to half as long again by chance.
pub fn asked_backoff(policy: &RetryPolicy, headers: &Headers, now: SystemTime, random: u64) -> Option<Duration> {
    let limits = policy.rate_limited_backoff.as_ref()?;
    let wait = limits.headers.iter().find_map(|wanted| {
        let number: u64 = std::str::from_utf8(headers.get(&wanted.name)?).ok()?.trim().parse().ok()?;
        let wait = match wanted.unix_timestamp {
            false => Duration::from_secs(number),
            true => (UNIX_EPOCH + Duration::from_secs(number)).duration_since(now).ok()?,
        };
        (wait <= limits.max_interval).then_some(wait)
    })?;
    let half = u64::try_from(wait.as_micros() / 2).unwrap_or(u64::MAX).max(1);
    Some(wait + Duration::from_micros(random % half))
}

/// The policy of a request: its route's, with what the request's own headers add, which are taken out of it. `asked` tells
/// whether there may be such headers.
pub fn effective<'p>(
    policy: Option<&'p RetryPolicy>,
    request: &mut RequestHead,
    asked: bool,
) -> Option<Cow<'p, RetryPolicy>> {
    let mut policy = policy.map(Cow::Borrowed);
    if asked {
        policy = with_headers(policy, &request.headers);
        for name in [
            "x-envoy-retry-on",
            "x-envoy-retry-grpc-on",
            "x-envoy-max-retries",
            "x-envoy-retriable-status-codes",
            "x-envoy-retriable-header-names",
            "x-envoy-hedge-on-per-try-timeout",
            // Read before; one that a route adds tells the endpoint nothing.
            "x-envoy-upstream-rq-per-try-timeout-ms",
        ] {
            request.headers.remove(name);
        }
    }
    policy
}

/// The first header whose value is not what it must be, of those that are looked at strictly (see [`StrictHeaders::NAMES`]).
pub fn not_good(strict: StrictHeaders, headers: &Headers) -> Option<usize> {
    strict.iter().find(|at| {
        let Some(value) = headers.get(StrictHeaders::NAMES[*at]) else { return false };
        let Ok(text) = std::str::from_utf8(value) else { return true };
        let mut conditions = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let mut known = RetryOn::default();
        match at {
            0 => conditions.any(|condition| condition == RetryOn::STALE || !known.add(condition)),
            1 => conditions.any(|condition| !known.add_grpc(condition)),
            _ => text.trim().parse::<u64>().is_err(),
        }
    })
}

/// Whether the policy is for this request, as far as its headers tell.
pub fn fits(policy: &RetryPolicy, request: &RequestHead) -> bool {
    let fits = |header| crate::route::header_matches(header, request);
    policy.request_headers.is_empty() || policy.request_headers.iter().any(fits)
}

fn with_headers<'p>(mut policy: Option<Cow<'p, RetryPolicy>>, headers: &Headers) -> Option<Cow<'p, RetryPolicy>> {
    fn list<'h>(headers: &'h Headers, name: &str) -> impl Iterator<Item = &'h str> + use<'h> {
        let text = headers.get(name).and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default();
        text.split(',').map(str::trim).filter(|part| !part.is_empty())
    }
    if headers.get("x-envoy-retry-on").is_some() || headers.get("x-envoy-retry-grpc-on").is_some() {
        let own = policy.get_or_insert_with(|| {
            Cow::Owned(RetryPolicy { attempts: 1, avoid_tried: false, ..RetryPolicy::default() })
        });
        let on = &mut own.to_mut().on;
        list(headers, "x-envoy-retry-on").for_each(|condition| _ = on.add(condition));
        list(headers, "x-envoy-retry-grpc-on").for_each(|condition| _ = on.add_grpc(condition));
    }
    let mut policy = policy.filter(|policy| !policy.on.is_empty())?;
    if let Some(most) = list(headers, "x-envoy-max-retries").next().and_then(|text| text.parse().ok()) {
        policy.to_mut().attempts = most;
    }
    for code in list(headers, "x-envoy-retriable-status-codes").filter_map(|text| text.parse().ok()) {
        policy.to_mut().statuses.push(code);
    }
    for name in list(headers, "x-envoy-retriable-header-names") {
        policy.to_mut().headers.push(HeaderMatch {
            name: name.to_ascii_lowercase().into(),
            test: HeaderTest::Present(true),
            invert: false,
            missing_as_empty: false,
        });
    }
    Some(policy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{RateLimitedBackoff, ResetHeader};

    fn policy(on: RetryOn) -> RetryPolicy {
        RetryPolicy { on, statuses: vec![418], ..RetryPolicy::default() }
    }

    fn answered(status: u16, grpc: Option<u16>) -> Failure {
        Failure::Response { status, grpc, header: false, rate_limited: false }
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
        assert!(!has_retriable_header(&with(on(true)), 200, &headers));
        headers.push(b"X-B", b"1");
        assert!(has_retriable_header(&with(on(true)), 200, &headers));
        assert!(!has_retriable_header(&with(on(false)), 200, &headers), "the condition is not asked for");
        let failure = Failure::Response { status: 200, grpc: None, header: true, rate_limited: false };
        assert!(wanted(failure, &with(on(true))));
        assert!(keeps_body(&with(on(true))));
    }

    #[test]
    fn retry_when_a_repeat_is_not_harmless_then_only_on_request() {
        let reset = |sent, reused, answered| Failure::Reset { sent, reused, answered };
        let on = RetryOn { stale: true, ..RetryOn::default() };
        let stale = policy(on);
        for (failure, safe_method, free, with_stale) in [
            (reset(false, true, false), false, true, true),
            (reset(true, true, false), true, true, true),
            // A POST may have been done.
            (reset(true, true, false), false, false, false),
            (reset(true, true, true), true, false, false),
            // Whoever accepted it may have stopped.
            (reset(true, false, false), true, false, true),
            (reset(true, false, false), false, false, false),
            (reset(true, false, true), true, false, false),
            // That is for the policy to repeat, of any method.
            (reset(false, false, false), true, false, false),
            (Failure::Refused, false, true, true),
            (Failure::Connect, true, false, false),
        ] {
            assert_eq!(harmless(failure, None, safe_method), free, "{failure:?}");
            assert_eq!(harmless(failure, Some(&stale), safe_method), with_stale, "{failure:?}");
            assert!(!wanted(failure, &stale), "nobody asked for {failure:?} to be repeated");
        }
        let lost = reset(true, false, false);
        for counted in [
            policy(RetryOn { reset: true, ..on }),
            policy(RetryOn { server_error: true, ..on }),
            policy(RetryOn { gateway_error: true, ..on }),
        ] {
            assert!(!harmless(lost, Some(&counted), true) && wanted(lost, &counted), "once is enough: {counted:?}");
        }
        assert!(!harmless(lost, Some(&RetryPolicy { attempts: 0, ..stale }), true), "retries were turned off");
        let safe = policy(RetryOn {
            connect_failure: true,
            refused_stream: true,
            reset_before_request: true,
            ..RetryOn::default()
        });
        assert!(wanted(Failure::Connect, &safe));
        assert!(wanted(Failure::Refused, &safe));
        assert!(wanted(reset(false, false, false), &safe));
        assert!(!wanted(reset(true, false, false), &safe));
        assert!(!wanted(answered(503, None), &safe));
        assert!(!wanted(Failure::PerTryTimeout, &safe));
    }

    #[test]
    fn retry_when_statuses_are_asked_for_then_only_those() {
        let on = |on| policy(on);
        let server = on(RetryOn { server_error: true, ..RetryOn::default() });
        let gateway = on(RetryOn { gateway_error: true, ..RetryOn::default() });
        let listed = on(RetryOn { statuses: true, ..RetryOn::default() });
        let grpc = on(RetryOn { grpc_statuses: 1 << 14, ..RetryOn::default() });
        assert!(wanted(answered(500, None), &server));
        assert!(!wanted(answered(499, None), &server));
        assert!(wanted(answered(502, None), &gateway));
        assert!(!wanted(answered(500, None), &gateway));
        assert!(wanted(answered(418, None), &listed));
        assert!(wanted(answered(200, Some(14)), &grpc));
        assert!(!wanted(answered(200, Some(13)), &grpc));
    }

    #[test]
    fn policy_when_the_request_asks_for_more_then_it_is_added() {
        let mut request = RequestHead::default();
        request.headers.push(b"x-envoy-retry-on", b"retriable-status-codes, nonsense");
        request.headers.push(b"x-envoy-max-retries", b"7");
        request.headers.push(b"x-envoy-retriable-status-codes", b"418,x,429");
        let own = effective(None, &mut request.clone(), true).unwrap();
        assert_eq!((own.attempts, own.statuses.as_slice()), (7, &[418, 429][..]));
        assert!(own.on.statuses && !own.on.server_error);
        let route = policy(RetryOn { reset: true, ..RetryOn::default() });
        let both = effective(Some(&route), &mut request, true).unwrap();
        assert!(both.on.statuses && both.on.reset);
        assert!(request.headers.is_empty(), "what was said to us is not passed on");
        assert!(effective(None, &mut request, true).is_none());
    }

    #[test]
    fn policy_when_only_some_requests_are_repeated_then_others_are_not() {
        let wanted = HeaderMatch {
            name: "x-again".into(),
            test: HeaderTest::Present(true),
            invert: false,
            missing_as_empty: false,
        };
        let route =
            RetryPolicy { request_headers: vec![wanted], ..policy(RetryOn { reset: true, ..RetryOn::default() }) };
        let mut request = RequestHead::default();
        assert!(!fits(&route, &request));
        request.headers.push(b"X-Again", b"");
        assert!(fits(&route, &request));
    }

    #[test]
    fn answer_when_rate_limited_then_repeated_only_on_request_and_when_it_says() {
        let limited = Failure::Response { status: 503, grpc: None, header: false, rate_limited: true };
        let on = |rate_limited| policy(RetryOn { rate_limited, server_error: true, ..RetryOn::default() });
        assert!(!wanted(limited, &on(false)) && wanted(limited, &on(true)));
        let header = |name: &str, unix_timestamp| ResetHeader { name: name.into(), unix_timestamp };
        let headers = vec![header("retry-after", false), header("x-reset", true)];
        let rate_limited_backoff = Some(RateLimitedBackoff { headers, max_interval: Duration::from_secs(60) });
        let policy = RetryPolicy { rate_limited_backoff, ..on(true) };
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let wait = |name: &str, value: &str| {
            let mut headers = Headers::default();
            headers.push(name.as_bytes(), value.as_bytes());
            asked_backoff(&policy, &headers, now, 0)
        };
        assert_eq!(wait("retry-after", "5"), Some(Duration::from_secs(5)));
        assert_eq!(wait("x-reset", "1007"), Some(Duration::from_secs(7)));
        assert_eq!(wait("x-reset", "999"), None);
        assert_eq!(wait("retry-after", "61"), None);
        assert_eq!(wait("other", "1"), None);
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
