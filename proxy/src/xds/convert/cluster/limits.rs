//! Circuit breakers.

use super::super::common::percent;
use super::super::{Converted, Refused, Within as _, refuse, refuse_set};
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
    for (index, threshold) in thresholds.into_iter().enumerate() {
        let Thresholds {
            priority,
            max_connections,
            max_pending_requests,
            max_requests,
            max_retries,
            retry_budget,
            track_remaining,
            max_connection_pools,
        } = threshold;
        let within = format!("thresholds[{index}]");
        let few_pools = max_connection_pools.filter(|most| *most != u32::MAX);
        refuse_set(&few_pools, "max_connection_pools").within(&within)?;
        let place = place(priority, (&mut default, &mut high)).within(within)?;
        let usual = Limits::default();
        let within = format!("thresholds[{index}].retry_budget");
        let retry_budget = retry_budget.map(budget).transpose().within(within)?;
        place.get_or_insert(Limits {
            connections: max_connections.unwrap_or(usual.connections),
            pending: max_pending_requests.unwrap_or(usual.pending),
            requests: max_requests.unwrap_or(usual.requests),
            retries: max_retries.unwrap_or(usual.retries),
            tell_remaining: track_remaining,
            per_host: usual.per_host,
            retry_budget,
        });
    }
    let (mut default, mut high) = (default.unwrap_or_default(), high.unwrap_or_default());
    let (mut of_default, mut of_high) = (None, None);
    for (index, threshold) in per_host_thresholds.into_iter().enumerate() {
        let within = format!("per_host_thresholds[{index}]");
        let (priority, limit) = per_host(threshold).within(&within)?;
        place(priority, (&mut of_default, &mut of_high)).within(within)?.get_or_insert(limit);
    }
    default.per_host = of_default.unwrap_or(default.per_host);
    high.per_host = of_high.unwrap_or(high.per_host);
    Ok((default, high))
}

fn budget(value: thresholds::RetryBudget) -> Converted<RetryBudget> {
    // The share is of the requests that are active now; an interval adds nothing.
    let thresholds::RetryBudget { budget_percent, budget_interval: _, min_retry_concurrency } = value;
    Ok(RetryBudget {
        percent: percent(budget_percent, "budget_percent")?.unwrap_or(20.0),
        min_concurrency: min_retry_concurrency.unwrap_or(3),
    })
}

/// What belongs to a priority, of what belongs to default and to high.
fn place<T>(priority: i32, (default, high): (T, T)) -> Converted<T> {
    match RoutingPriority::try_from(priority) {
        Ok(RoutingPriority::Default) => Ok(default),
        Ok(RoutingPriority::High) => Ok(high),
        Err(_) => Err(Refused::new("priority", "is not known to this proxy")),
    }
}

/// How many connections one endpoint may have; Envoy refuses every other limit as well.
fn per_host(value: Thresholds) -> Converted<(i32, u32)> {
    let Thresholds {
        priority,
        max_connections,
        max_pending_requests,
        max_requests,
        max_retries,
        retry_budget,
        track_remaining: _,
        max_connection_pools,
    } = value;
    refuse!(max_pending_requests, max_requests, max_retries, retry_budget, max_connection_pools);
    Ok((priority, max_connections.unwrap_or(u32::MAX)))
}
