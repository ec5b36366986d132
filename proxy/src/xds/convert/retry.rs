//! Retry policies.

use super::common::{filter_metadata, maybe_duration, optional, positive, unknown_type};
use super::{Converted, Refused, Within as _, matcher, refuse};
use crate::config::{LABELS, LabelValue, Labels, RateLimitedBackoff, RetryOn, RetryPolicy};
use leno_xds::envoy::config::route::v3::{
    HedgePolicy, RetryPolicy as Policy,
    retry_policy::{
        RateLimitedRetryBackOff, ResetHeader, RetryBackOff, RetryHostPredicate, RetryPriority,
        retry_host_predicate::ConfigType, retry_priority,
    },
};
use leno_xds::envoy::extensions::retry::host::{
    omit_canary_hosts::v3::OmitCanaryHostsPredicate, omit_host_metadata::v3::OmitHostMetadataConfig,
    previous_hosts::v3::PreviousHostsPredicate,
};
use leno_xds::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use std::time::Duration;

/// One attempt at a time is what a policy without more says, and all that is done here.
pub fn no_hedge(value: HedgePolicy) -> Converted<()> {
    let HedgePolicy { initial_requests, additional_request_chance, hedge_on_per_try_timeout } = value;
    if initial_requests.is_some_and(|count| count > 1) {
        return Err(Refused::new("initial_requests", "above 1 is not supported by this proxy"));
    }
    refuse!(additional_request_chance, hedge_on_per_try_timeout);
    Ok(())
}

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
        host_selection_retry_max_attempts,
        retriable_status_codes,
        retry_back_off,
        rate_limited_retry_back_off,
        retriable_headers,
        retriable_request_headers,
        refresh_cluster_on_retry,
    } = value;
    refuse!(retry_options_predicates, refresh_cluster_on_retry);
    let other_priorities = retry_priority.map(priorities).transpose().within("retry_priority")?;
    let (mut avoid_tried, mut avoid_labels) = (false, Vec::new());
    for (index, value) in retry_host_predicate.into_iter().enumerate() {
        match predicate(value).within(format_args!("retry_host_predicate[{index}]"))? {
            Avoided::Tried => avoid_tried = true,
            Avoided::With(labels) => avoid_labels.push(labels),
            Avoided::Nothing => {}
        }
    }
    let statuses = retriable_status_codes
        .into_iter()
        .map(|status| {
            u16::try_from(status)
                .map_err(|_| Refused::new("retriable_status_codes", format!("{status} is not an HTTP status")))
        })
        .collect::<Converted<Vec<u16>>>()?;
    let headers = matcher::headers(retriable_headers, "retriable_headers")?;
    let (base_backoff, max_backoff) = match retry_back_off {
        None => (Duration::from_millis(25), Duration::from_millis(250)),
        Some(RetryBackOff { base_interval, max_interval }) => {
            let base = positive(base_interval, "base_interval").within("retry_back_off")?;
            let base = base.ok_or_else(|| Refused::new("retry_back_off.base_interval", "is missing"))?;
            let base = base.max(Duration::from_millis(1));
            let max = positive(max_interval, "max_interval").within("retry_back_off")?;
            if max.is_some_and(|max| max < base) {
                return Err(Refused::new("retry_back_off.max_interval", "is shorter than base_interval"));
            }
            (base, max.unwrap_or(base * 10))
        }
    };
    Ok(RetryPolicy {
        attempts: num_retries.unwrap_or(1),
        on: conditions(&retry_on).within("retry_on")?,
        statuses,
        headers,
        per_try_timeout: maybe_duration(per_try_timeout, "per_try_timeout")?.filter(|limit| !limit.is_zero()),
        per_try_idle_timeout: maybe_duration(per_try_idle_timeout, "per_try_idle_timeout")?
            .filter(|limit| !limit.is_zero()),
        request_headers: matcher::headers(retriable_request_headers, "retriable_request_headers")?,
        avoid_tried,
        avoid_labels,
        choices: choices(host_selection_retry_max_attempts).within("host_selection_retry_max_attempts")?,
        other_priorities,
        base_backoff,
        max_backoff,
        rate_limited_backoff: rate_limited_retry_back_off
            .map(rate_limited)
            .transpose()
            .within("rate_limited_retry_back_off")?,
    })
}

/// How often an endpoint may be left out; nothing is once, as in Envoy.
fn choices(value: i64) -> Converted<u32> {
    match u32::try_from(value) {
        Ok(0) => Ok(1),
        Ok(choices) => Ok(choices),
        Err(_) => Err(Refused::new("", format!("{value} is no number of choices"))),
    }
}

/// What a predicate leaves out.
enum Avoided {
    Tried,
    With(Labels),
    Nothing,
}

fn predicate(value: RetryHostPredicate) -> Converted<Avoided> {
    let RetryHostPredicate { name, config_type } = value;
    let canary = || Labels::new([("canary".into(), LabelValue::Bool(true))]);
    let Some(ConfigType::TypedConfig(any)) = config_type else {
        return Err(Refused::new("typed_config", format!("of `{name}` is missing")));
    };
    if optional::<PreviousHostsPredicate>(&any).within("typed_config")?.is_some() {
        return Ok(Avoided::Tried);
    }
    if optional::<OmitCanaryHostsPredicate>(&any).within("typed_config")?.is_some() {
        return Ok(Avoided::With(canary()));
    }
    if let Some(OmitHostMetadataConfig { metadata_match }) = optional(&any).within("typed_config")? {
        let labels = filter_metadata(metadata_match.as_ref(), LABELS).map(Labels::of).unwrap_or_default();
        // Of nothing that is asked for nobody is left out.
        return Ok(if labels.is_empty() { Avoided::Nothing } else { Avoided::With(labels) });
    }
    Err(unknown_type(&any).within("typed_config"))
}

fn priorities(value: RetryPriority) -> Converted<u32> {
    let RetryPriority { name, config_type } = value;
    let config = match &config_type {
        Some(retry_priority::ConfigType::TypedConfig(any)) => optional::<PreviousPrioritiesConfig>(any)?,
        None => None,
    };
    match config {
        Some(PreviousPrioritiesConfig { update_frequency: 0 }) => Err(Refused::new("update_frequency", "is zero")),
        Some(PreviousPrioritiesConfig { update_frequency }) => Ok(update_frequency.unsigned_abs()),
        None => Err(Refused::new("", format!("`{name}` is not supported by this proxy"))),
    }
}

fn rate_limited(value: RateLimitedRetryBackOff) -> Converted<RateLimitedBackoff> {
    let RateLimitedRetryBackOff { reset_headers, max_interval } = value;
    let mut headers = Vec::with_capacity(reset_headers.len());
    for (index, ResetHeader { name, format }) in reset_headers.into_iter().enumerate() {
        let unix_timestamp = match format {
            0 => false,
            1 => true,
            other => {
                let field = format!("reset_headers[{index}].format");
                return Err(Refused::new(field, format!("{other} is not known to this proxy")));
            }
        };
        if name.is_empty() {
            return Err(Refused::new(format!("reset_headers[{index}].name"), "must not be empty"));
        }
        headers.push(crate::config::ResetHeader { name: name.to_ascii_lowercase().into(), unix_timestamp });
    }
    if headers.is_empty() {
        return Err(Refused::new("reset_headers", "is empty"));
    }
    let max_interval = positive(max_interval, "max_interval")?.unwrap_or(Duration::from_secs(300));
    Ok(RateLimitedBackoff { headers, max_interval })
}

fn conditions(text: &str) -> Converted<RetryOn> {
    let mut on = RetryOn::default();
    for condition in text.split(',').map(str::trim).filter(|condition| !condition.is_empty()) {
        // As Envoy does: what it does not know is never met.
        if !on.add(condition) && !on.add_grpc(condition) {
            tracing::info!(condition, "retry_on names a condition that does not exist; it is never met");
        }
    }
    Ok(on)
}
