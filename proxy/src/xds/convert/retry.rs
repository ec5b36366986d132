//! Retry policies.

use super::common::maybe_duration;
use super::{Converted, Refused, Within as _, matcher, refuse};
use crate::config::{RetryOn, RetryPolicy};
use leno_xds::envoy::config::route::v3::{
    RetryPolicy as Policy,
    retry_policy::{RetryBackOff, RetryHostPredicate},
};
use std::time::Duration;

/// gRPC status codes of Envoy's conditions.
const CANCELLED: u32 = 1;
const DEADLINE_EXCEEDED: u32 = 4;
const RESOURCE_EXHAUSTED: u32 = 8;
const INTERNAL: u32 = 13;
const UNAVAILABLE: u32 = 14;

/// When and how often a request is tried again.
pub fn policy(value: Policy) -> Converted<RetryPolicy> {
    let Policy {
        retry_on,
        num_retries,
        per_try_timeout,
        per_try_idle_timeout,
        retry_priority,
        retry_host_predicate,
        retry_options_predicates,
        host_selection_retry_max_attempts: _,
        retriable_status_codes,
        retry_back_off,
        rate_limited_retry_back_off,
        retriable_headers,
        retriable_request_headers,
        refresh_cluster_on_retry,
    } = value;
    refuse!(
        per_try_idle_timeout,
        retry_priority,
        retry_options_predicates,
        rate_limited_retry_back_off,
        retriable_request_headers,
        refresh_cluster_on_retry
    );
    let mut avoid_tried = false;
    for RetryHostPredicate { name, config_type: _ } in retry_host_predicate {
        if name != "envoy.retry_host_predicates.previous_hosts" {
            return Err(Refused::new("retry_host_predicate", format!("`{name}` is not supported by this proxy")));
        }
        avoid_tried = true;
    }
    let statuses = retriable_status_codes
        .into_iter()
        .map(|status| {
            u16::try_from(status)
                .map_err(|_| Refused::new("retriable_status_codes", format!("{status} is not an HTTP status")))
        })
        .collect::<Converted<Vec<u16>>>()?;
    let headers = retriable_headers
        .into_iter()
        .enumerate()
        .map(|(index, value)| matcher::header(value).within(format_args!("retriable_headers[{index}]")))
        .collect::<Converted<Vec<_>>>()?;
    let (base_backoff, max_backoff) = match retry_back_off {
        None => (Duration::from_millis(25), Duration::from_millis(250)),
        Some(RetryBackOff { base_interval, max_interval }) => {
            let base = maybe_duration(base_interval, "base_interval").within("retry_back_off")?;
            let base = base.unwrap_or(Duration::from_millis(25)).max(Duration::from_millis(1));
            (base, maybe_duration(max_interval, "max_interval").within("retry_back_off")?.unwrap_or(base * 10))
        }
    };
    Ok(RetryPolicy {
        attempts: num_retries.unwrap_or(1),
        on: conditions(&retry_on).within("retry_on")?,
        statuses,
        headers,
        per_try_timeout: maybe_duration(per_try_timeout, "per_try_timeout")?.filter(|limit| !limit.is_zero()),
        avoid_tried,
        base_backoff,
        max_backoff,
    })
}

fn conditions(text: &str) -> Converted<RetryOn> {
    let mut on = RetryOn::default();
    for condition in text.split(',').map(str::trim).filter(|condition| !condition.is_empty()) {
        match condition {
            "connect-failure" => on.connect_failure = true,
            "refused-stream" => on.refused_stream = true,
            "reset-before-request" => on.reset_before_request = true,
            "reset" => on.reset = true,
            "5xx" => on.server_error = true,
            "gateway-error" => on.gateway_error = true,
            "retriable-4xx" => on.retriable_4xx = true,
            "retriable-status-codes" => on.statuses = true,
            "retriable-headers" => on.headers = true,
            "cancelled" => on.grpc_statuses |= 1 << CANCELLED,
            "deadline-exceeded" => on.grpc_statuses |= 1 << DEADLINE_EXCEEDED,
            "resource-exhausted" => on.grpc_statuses |= 1 << RESOURCE_EXHAUSTED,
            "internal" => on.grpc_statuses |= 1 << INTERNAL,
            "unavailable" => on.grpc_statuses |= 1 << UNAVAILABLE,
            // Their triggers (Envoy's own rate limits; HTTP/3) do not occur.
            "envoy-ratelimited" | "http3-post-connect-failure" => {}
            other => return Err(Refused::new("", format!("`{other}` is not supported by this proxy"))),
        }
    }
    Ok(on)
}
