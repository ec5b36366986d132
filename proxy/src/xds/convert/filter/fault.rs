//! Faults on purpose.

use super::super::common::duration;
use super::super::{Context, Converted, Refused, Within as _, matcher, refuse};
use super::share;
use crate::config::{Fault, FaultAbort, FaultDelay, FaultStatus};
use leno_xds::envoy::extensions::filters::common::fault::v3 as common;
use leno_xds::envoy::extensions::filters::common::fault::v3::fault_delay::{FaultDelaySecifier, HeaderDelay};
use leno_xds::envoy::extensions::filters::http::fault::v3 as xds;
use leno_xds::envoy::extensions::filters::http::fault::v3::fault_abort::{ErrorType, HeaderAbort};

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
        // There is no runtime to override anything.
        delay_percent_runtime: _,
        abort_percent_runtime: _,
        delay_duration_runtime: _,
        abort_http_status_runtime: _,
        max_active_faults_runtime: _,
        response_rate_limit_percent_runtime: _,
        abort_grpc_status_runtime: _,
        disable_downstream_cluster_stats: _,
        filter_metadata: _,
    } = value;
    refuse!(response_rate_limit);
    let cluster = match upstream_cluster.as_str() {
        "" => None,
        name => Some(context.cluster(name).within("upstream_cluster")?),
    };
    Ok(Fault {
        delay: delay.map(self::delay).transpose().within("delay")?,
        abort: abort.map(self::abort).transpose().within("abort")?,
        cluster,
        headers: matcher::headers(headers, "headers")?,
        nodes: downstream_nodes.into_iter().map(Into::into).collect(),
        max_active: max_active_faults,
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
