//! The time limits of a request: of the route, of the request's own headers, of gRPC.

use super::{call::Call, head::RequestHead, limits::Limits};
use crate::config::{Forward, GrpcTimeout, RetryPolicy};
use std::time::{Duration, Instant};

/// Works out a request's limits as Envoy's router does, and takes the headers that say them out of the request. `asked` tells
/// whether there may be such headers.
pub(super) fn limits(call: &mut Call<'_>, forward: &Forward, policy: Option<&RetryPolicy>, asked: bool) -> Limits {
    let respected = call.router.respect_expected_timeout;
    let request = &mut *call.request;
    let grpc = request.is_grpc();
    let mut route = forward.timeout.unwrap_or_default();
    let mut stream = forward.max_duration.or(call.manager.max_stream_duration).filter(|limit| !limit.is_zero());
    let mut told = false;
    match forward.grpc_timeout {
        GrpcTimeout::Timeout { max, offset } if grpc => {
            let mut own = grpc_timeout(request).unwrap_or_default();
            if offset < own {
                own -= offset;
            }
            if !max.is_zero() && (own.is_zero() || own > max) {
                own = max;
            }
            route = own;
        }
        GrpcTimeout::Stream { max, offset } => {
            if let Some(mut own) = grpc_timeout(request) {
                if !max.is_zero() && own > max {
                    own = max;
                }
                // What is left of nothing is nothing: the request ends at once.
                own = own.saturating_sub(offset);
                if grpc {
                    set_grpc_timeout(request, own);
                }
                (stream, told) = (Some(own), true);
            }
        }
        GrpcTimeout::Ignored | GrpcTimeout::Told | GrpcTimeout::Timeout { .. } => {}
    }
    // Where the route speaks of the stream's duration, calls are told of it.
    if let (true, Some(limit), false) = (grpc, stream, told)
        && matches!(forward.grpc_timeout, GrpcTimeout::Told | GrpcTimeout::Stream { .. })
    {
        set_grpc_timeout(request, limit);
    }
    let mut per_try = policy.and_then(|policy| policy.per_try_timeout).unwrap_or_default();
    let mut kept = false;
    let mut on_timeout = 504;
    let mut told_attempt = None;
    if asked {
        if respected && let Some(limit) = millis(request, "x-envoy-expected-rq-timeout-ms") {
            route = limit;
            kept = true;
        } else {
            route = millis(request, "x-envoy-upstream-rq-timeout-ms").unwrap_or(route);
            request.headers.remove("x-envoy-upstream-rq-timeout-ms");
        }
        if let Some(limit) = millis(request, "x-envoy-upstream-rq-per-try-timeout-ms") {
            per_try = limit;
        }
        request.headers.remove("x-envoy-upstream-rq-per-try-timeout-ms");
        if request.headers.remove("x-envoy-upstream-rq-timeout-alt-response") {
            on_timeout = 204;
        }
        told_attempt = millis(request, "x-envoy-upstream-stream-duration-ms");
        request.headers.remove("x-envoy-upstream-stream-duration-ms");
        request.headers.remove("x-envoy-upstream-alt-stat-name");
    }
    if per_try >= route && !route.is_zero() {
        per_try = Duration::ZERO;
    }
    let limited = |limit: Duration| Some(limit).filter(|limit| !limit.is_zero());
    Limits {
        put_off: 0,
        route: limited(route),
        per_try: limited(per_try),
        per_try_idle: policy.and_then(|policy| policy.per_try_idle_timeout).and_then(limited),
        idle: forward.idle_timeout.unwrap_or(call.manager.stream_idle_timeout),
        request: call.manager.request_timeout.map(|limit| call.tally.start + limit),
        stream: stream.map(|limit| call.tally.start + limit),
        deadline: None,
        told_attempt,
        attempt: None,
        priority: forward.priority,
        on_timeout,
        tell: !kept && !call.router.suppress_envoy_headers,
        tell_grpc: grpc && matches!(forward.grpc_timeout, GrpcTimeout::Timeout { .. }),
    }
}

/// Tells the endpoint how long the answer to this attempt may take.
pub(super) fn tell(call: &mut Call<'_>, limits: &Limits) {
    if !limits.tell && !limits.tell_grpc {
        return;
    }
    let Some(mut expected) = limits.per_try.or(limits.route) else { return };
    if let Some(deadline) = limits.deadline {
        let left = deadline.saturating_duration_since(Instant::now());
        expected = expected.min(left.max(Duration::from_millis(1)));
    }
    if limits.tell {
        let mut text = [0; 20];
        let text = super::pipeline::decimal(expected.as_millis(), &mut text);
        call.request.headers.set("x-envoy-expected-rq-timeout-ms", text);
    }
    if limits.tell_grpc {
        set_grpc_timeout(call.request, expected);
    }
}

fn millis(request: &RequestHead, name: &str) -> Option<Duration> {
    std::str::from_utf8(request.headers.get(name)?).ok()?.parse().ok().map(Duration::from_millis)
}

/// The limit in `grpc-timeout`: at most eight digits and a unit.
fn grpc_timeout(request: &RequestHead) -> Option<Duration> {
    let value = request.headers.get("grpc-timeout")?;
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        // Envoy counts in milliseconds, rounded up.
        b'u' => Duration::from_millis(number.div_ceil(1000)),
        b'n' => Duration::from_millis(number.div_ceil(1_000_000)),
        _ => return None,
    })
}

fn set_grpc_timeout(request: &mut RequestHead, limit: Duration) {
    let millis = limit.as_millis();
    let text = match millis {
        0..=99_999_999 => format!("{millis}m"),
        _ if millis / 1000 <= 99_999_999 => format!("{}S", millis / 1000),
        _ if millis / 60_000 <= 99_999_999 => format!("{}M", millis / 60_000),
        _ => format!("{}H", (millis / 3_600_000).min(99_999_999)),
    };
    request.headers.set("grpc-timeout", text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeout_when_read_and_written_then_units_count() {
        for (text, want) in [
            ("1H", Some(3_600_000)),
            ("2M", Some(120_000)),
            ("3S", Some(3000)),
            ("4m", Some(4)),
            ("5u", Some(1)),
            ("6n", Some(1)),
            ("123456789m", None),
            ("m", None),
            ("5", None),
            ("-5m", None),
        ] {
            let mut request = RequestHead::default();
            request.headers.push(b"grpc-timeout", text.as_bytes());
            assert_eq!(grpc_timeout(&request), want.map(Duration::from_millis), "{text}");
        }
        let mut request = RequestHead::default();
        set_grpc_timeout(&mut request, Duration::from_secs(1_000_000));
        assert_eq!(request.headers.get("grpc-timeout"), Some(&b"1000000S"[..]));
    }
}
