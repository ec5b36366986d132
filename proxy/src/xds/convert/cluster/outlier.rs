//! Outlier detection.

use super::super::common::{maybe_duration, positive};
use super::super::{Converted, Refused, Within as _, matcher, refuse};
use crate::config::{OutlierDetection, Statuses};
use leno_xds::envoy::config::cluster::v3 as xds;
use leno_xds::envoy::config::common::matcher::v3::{HttpHeadersMatch, MatchPredicate, match_predicate::Rule};
use leno_xds::envoy::extensions::upstreams::http::v3::http_protocol_options::OutlierDetection as HttpOutliers;
use std::time::Duration;

/// Least time between two looks: what is set lower is taken for this.
const LEAST_INTERVAL: Duration = Duration::from_millis(10);

pub(super) fn outliers(value: xds::OutlierDetection) -> Converted<OutlierDetection> {
    let xds::OutlierDetection {
        consecutive_5xx,
        interval,
        base_ejection_time,
        max_ejection_percent,
        enforcing_consecutive_5xx,
        enforcing_success_rate,
        success_rate_minimum_hosts,
        success_rate_request_volume,
        success_rate_stdev_factor,
        consecutive_gateway_failure,
        enforcing_consecutive_gateway_failure,
        split_external_local_origin_errors,
        consecutive_local_origin_failure,
        enforcing_consecutive_local_origin_failure,
        enforcing_local_origin_success_rate,
        failure_percentage_threshold,
        enforcing_failure_percentage,
        enforcing_failure_percentage_local_origin,
        failure_percentage_minimum_hosts,
        failure_percentage_request_volume,
        max_ejection_time,
        max_ejection_time_jitter,
        successful_active_health_check_uneject_host,
        monitors,
        always_eject_one_host,
        detect_degraded_hosts,
    } = value;
    refuse!(monitors);
    if detect_degraded_hosts == Some(true) {
        return Err(Refused::new("detect_degraded_hosts", "is not supported by this proxy; leave it out"));
    }
    let usual = OutlierDetection::default();
    let percent = |value: Option<u32>, usual: u32, field: &str| match value.unwrap_or(usual) {
        value @ 0..=100 => Ok(value),
        value => Err(Refused::new(field, format!("{value} is no percentage"))),
    };
    let [server, gateway, local] = usual.enforcing;
    let base_ejection = positive(base_ejection_time, "base_ejection_time")?.unwrap_or(usual.base_ejection);
    let max_ejection = positive(max_ejection_time, "max_ejection_time")?;
    if max_ejection.is_some_and(|max| max < base_ejection) {
        return Err(Refused::new("max_ejection_time", "is shorter than base_ejection_time"));
    }
    let max_ejection = max_ejection.unwrap_or(usual.max_ejection);
    Ok(OutlierDetection {
        stats: usual.stats,
        log: None,
        consecutive_5xx: consecutive_5xx.unwrap_or(usual.consecutive_5xx),
        consecutive_gateway: consecutive_gateway_failure.unwrap_or(usual.consecutive_gateway),
        consecutive_local: consecutive_local_origin_failure.unwrap_or(usual.consecutive_local),
        split: split_external_local_origin_errors,
        interval: positive(interval, "interval")?.unwrap_or(usual.interval).max(LEAST_INTERVAL),
        base_ejection,
        max_ejection: max_ejection.max(base_ejection),
        jitter: maybe_duration(max_ejection_time_jitter, "max_ejection_time_jitter")?.unwrap_or_default(),
        max_percent: percent(max_ejection_percent, usual.max_percent, "max_ejection_percent")?,
        always_one: always_eject_one_host.unwrap_or(false),
        check_brings_back: successful_active_health_check_uneject_host.unwrap_or(true),
        enforcing: [
            percent(enforcing_consecutive_5xx, server, "enforcing_consecutive_5xx")?,
            percent(enforcing_consecutive_gateway_failure, gateway, "enforcing_consecutive_gateway_failure")?,
            percent(enforcing_consecutive_local_origin_failure, local, "enforcing_consecutive_local_origin_failure")?,
        ],
        enforcing_rate: [
            percent(enforcing_success_rate, 100, "enforcing_success_rate")?,
            percent(enforcing_local_origin_success_rate, 100, "enforcing_local_origin_success_rate")?,
        ],
        enforcing_percentage: [
            percent(enforcing_failure_percentage, 0, "enforcing_failure_percentage")?,
            percent(enforcing_failure_percentage_local_origin, 0, "enforcing_failure_percentage_local_origin")?,
        ],
        rate_hosts: success_rate_minimum_hosts.unwrap_or(usual.rate_hosts),
        rate_volume: success_rate_request_volume.unwrap_or(usual.rate_volume),
        rate_deviation: success_rate_stdev_factor.unwrap_or(usual.rate_deviation),
        percentage: percent(failure_percentage_threshold, usual.percentage, "failure_percentage_threshold")?,
        percentage_hosts: failure_percentage_minimum_hosts.unwrap_or(usual.percentage_hosts),
        percentage_volume: failure_percentage_request_volume.unwrap_or(usual.percentage_volume),
        failures: None,
    })
}

/// The statuses that count as failures: conditions on `:status` are all that is known of an answer then.
pub(super) fn failures(value: HttpOutliers) -> Converted<Option<Statuses>> {
    let HttpOutliers { error_matcher } = value;
    let Some(MatchPredicate { rule }) = error_matcher else { return Ok(None) };
    let Some(Rule::HttpResponseHeadersMatch(HttpHeadersMatch { headers })) = rule else {
        return Err(Refused::new("error_matcher", "other than http_response_headers_match is not supported"));
    };
    let mut conditions = Vec::with_capacity(headers.len());
    for (index, header) in headers.into_iter().enumerate() {
        let within = format!("error_matcher.http_response_headers_match.headers[{index}]");
        if header.name != ":status" {
            return Err(Refused::new(format!("{within}.name"), "other than `:status` is not supported by this proxy"));
        }
        conditions.push(matcher::header(header).within(within)?);
    }
    let holds = |status: u16| conditions.iter().all(|condition| condition.matches(Some(status.to_string().as_bytes())));
    Ok(Some(Statuses::of(holds)))
}
