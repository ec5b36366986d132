//! Circuit breakers.

use super::super::{Converted, Refused, refuse};
use crate::config::{Limits, RetryBudget};
use leno_xds::envoy::config::cluster::v3::{
    CircuitBreakers,
    circuit_breakers::{Thresholds, thresholds},
};
use leno_xds::envoy::config::core::v3::RoutingPriority;

/// The limits of requests with default and with high priority. Of several thresholds for a priority the first counts.
pub(super) fn limits(value: Option<CircuitBreakers>) -> Converted<(Limits, Limits)> {
    let (mut default, mut high) = (None, None);
    let Some(CircuitBreakers { thresholds, per_host_thresholds }) = value else { return Ok(<_>::default()) };
    refuse!(per_host_thresholds);
    for (index, threshold) in thresholds.into_iter().enumerate() {
        let Thresholds {
            priority,
            max_connections,
            max_pending_requests,
            max_requests,
            max_retries,
            retry_budget,
            track_remaining,
            // There is one pool for each endpoint and protocol, whatever the number of listeners and requests.
            max_connection_pools: _,
        } = threshold;
        let place = match RoutingPriority::try_from(priority) {
            Ok(RoutingPriority::Default) => &mut default,
            Ok(RoutingPriority::High) => &mut high,
            Err(_) => return Err(Refused::new(format!("thresholds[{index}].priority"), "is not known to this proxy")),
        };
        let usual = Limits::default();
        place.get_or_insert(Limits {
            connections: max_connections.unwrap_or(usual.connections),
            pending: max_pending_requests.unwrap_or(usual.pending),
            requests: max_requests.unwrap_or(usual.requests),
            retries: max_retries.unwrap_or(usual.retries),
            tell_remaining: track_remaining,
            retry_budget: retry_budget.map(|budget| {
                // The share is of the requests that are active now; an interval adds nothing.
                let thresholds::RetryBudget { budget_percent, budget_interval: _, min_retry_concurrency } = budget;
                RetryBudget {
                    percent: budget_percent.map_or(20.0, |percent| percent.value),
                    min_concurrency: min_retry_concurrency.unwrap_or(3),
                }
            }),
        });
    }
    Ok((default.unwrap_or_default(), high.unwrap_or_default()))
}
