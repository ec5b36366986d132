//! Faults on purpose.

use super::super::common::duration;
use super::super::{Context, Converted, Refused, Within as _, matcher};
use super::share;
use crate::config::{Fault, FaultAbort, FaultDelay, FaultLimit, FaultStatus};
use leno_xds::envoy::extensions::filters::common::fault::v3 as common;
use leno_xds::envoy::extensions::filters::common::fault::v3::fault_delay::{FaultDelaySecifier, HeaderDelay};
use leno_xds::envoy::extensions::filters::common::fault::v3::fault_rate_limit::{FixedLimit, HeaderLimit, LimitType};
use leno_xds::envoy::extensions::filters::http::fault::v3 as xds;
use leno_xds::envoy::extensions::filters::http::fault::v3::fault_abort::{ErrorType, HeaderAbort};
use std::time::Duration;

/// Delays and ends of requests.
pub fn fault(context: &mut Context, value: xds::HttpFault) -> Converted<Fault> {
    let xds::HttpFault {
        delay,
        abort,
        upstream_cluster,
        headers,
        downstream_nodes,
        max_active_faults,
        response_rate_limit,
        delay_percent_runtime,
        abort_percent_runtime,
        delay_duration_runtime,
        abort_http_status_runtime,
        max_active_faults_runtime,
        response_rate_limit_percent_runtime,
        abort_grpc_status_runtime,
        disable_downstream_cluster_stats: _,
        filter_metadata,
    } = value;
    let cluster = match upstream_cluster.as_str() {
        "" => None,
        name => Some(context.cluster(name).within("upstream_cluster")?),
    };
    let mut delay = delay.map(self::delay).transpose().within("delay")?;
    let mut abort = abort.map(self::abort).transpose().within("abort")?;
    let mut limit = response_rate_limit.map(self::limit).transpose().within("response_rate_limit")?;
    // What the runtime says goes before what the filter does, as far as the filter says something.
    let runtime = &context.runtime;
    let key = |own: &str, usual: &str| if own.is_empty() { format!("fault.http.{usual}") } else { own.to_owned() };
    if let Some(delay) = &mut delay {
        delay.share = runtime.share(&key(&delay_percent_runtime, "delay.fixed_delay_percent"), delay.share);
        if let (Some(fixed), Some(set)) =
            (&mut delay.fixed, runtime.whole(&key(&delay_duration_runtime, "delay.fixed_duration_ms")))
        {
            *fixed = Duration::from_millis(set);
        }
    }
    if let Some(abort) = &mut abort {
        abort.share = runtime.share(&key(&abort_percent_runtime, "abort.abort_percent"), abort.share);
        let status = |own: &str, usual: &str| runtime.whole(&key(own, usual)).and_then(|set| u16::try_from(set).ok());
        match &mut abort.with {
            FaultStatus::Http(code) => {
                let set = status(&abort_http_status_runtime, "abort.http_status");
                *code = set.filter(|set| (200..600).contains(set)).unwrap_or(*code);
            }
            FaultStatus::Grpc(code) => {
                *code = status(&abort_grpc_status_runtime, "abort.grpc_status").unwrap_or(*code);
            }
            FaultStatus::Header => {}
        }
    }
    if let Some(limit) = &mut limit {
        let key = key(&response_rate_limit_percent_runtime, "rate_limit.response_percent");
        limit.share = runtime.share(&key, limit.share);
    }
    let most = runtime.whole(&key(&max_active_faults_runtime, "max_active_faults"));
    Ok(Fault {
        delay,
        abort,
        limit,
        cluster,
        headers: matcher::headers(headers, "headers")?,
        nodes: downstream_nodes.into_iter().map(Into::into).collect(),
        max_active: most.map(|most| u32::try_from(most).unwrap_or(u32::MAX)).or(max_active_faults),
        metadata: filter_metadata.unwrap_or_default(),
        ..Fault::default()
    })
}

fn delay(value: common::FaultDelay) -> Converted<FaultDelay> {
    let common::FaultDelay { percentage, fault_delay_secifier } = value;
    let fixed = match fault_delay_secifier {
        Some(FaultDelaySecifier::FixedDelay(value)) => Some(duration(value, "fixed_delay")?),
        Some(FaultDelaySecifier::HeaderDelay(HeaderDelay {})) => None,
        None => return Err(Refused::new("fault_delay_secifier", "is missing")),
    };
    Ok(FaultDelay { share: share(percentage).within("percentage")?, fixed })
}

fn limit(value: common::FaultRateLimit) -> Converted<FaultLimit> {
    let common::FaultRateLimit { percentage, limit_type } = value;
    let fixed = match limit_type {
        Some(LimitType::FixedLimit(FixedLimit { limit_kbps: 0 })) => {
            return Err(Refused::new("fixed_limit.limit_kbps", "must be more than 0"));
        }
        Some(LimitType::FixedLimit(FixedLimit { limit_kbps })) => Some(limit_kbps),
        Some(LimitType::HeaderLimit(HeaderLimit {})) => None,
        None => return Err(Refused::new("limit_type", "is missing")),
    };
    Ok(FaultLimit { share: share(percentage).within("percentage")?, fixed })
}

fn abort(value: xds::FaultAbort) -> Converted<FaultAbort> {
    let xds::FaultAbort { percentage, response_body, error_type } = value;
    let with = match error_type {
        Some(ErrorType::HttpStatus(code)) => match u16::try_from(code) {
            Ok(code) if (200..600).contains(&code) => FaultStatus::Http(code),
            _ => return Err(Refused::new("http_status", format!("{code} is not a status between 200 and 599"))),
        },
        Some(ErrorType::GrpcStatus(code)) => FaultStatus::Grpc(
            u16::try_from(code).map_err(|_| Refused::new("grpc_status", format!("{code} is no status of gRPC")))?,
        ),
        Some(ErrorType::HeaderAbort(HeaderAbort {})) => FaultStatus::Header,
        None => return Err(Refused::new("error_type", "is missing")),
    };
    Ok(FaultAbort { share: share(percentage).within("percentage")?, with, body: response_body.into() })
}
