//! What is written about health checks: a line of JSON each, as Envoy writes its `HealthCheckEvent`.

use super::machine::Outcome;
use crate::config::{CheckLog, Cluster, Endpoint, HealthCheck, Probe};
use crate::telemetry::logformat::json_of;
use crate::telemetry::logsink::Outputs;
use std::fmt::Write as _;
use std::io::Stdout;
use std::time::SystemTime;
use time::{OffsetDateTime, macros::format_description};

/// Something about an endpoint that is worth a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// It is well now; whether that was its first check.
    Added(bool),
    /// It is not any more.
    Ejected(Failed),
    /// A check has failed; whether it was the first.
    Failure(Failed, bool),
    /// A check was passed that changes nothing.
    Success,
    /// It says that it is degraded.
    Degraded,
    /// It does not any more.
    NoLongerDegraded,
}

/// Why a check has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failed {
    kind: &'static str,
    /// What was answered; 0 is nothing.
    status: u16,
}

impl Failed {
    /// The failure of a check; `late` where the answer did not come in time.
    pub(super) fn new(outcome: Outcome, status: u16, late: bool) -> Self {
        let kind = match outcome {
            _ if late => "NETWORK_TIMEOUT",
            Outcome::Silent if status == 0 => "NETWORK",
            _ => "ACTIVE",
        };
        Self { kind, status }
    }
}

/// An endpoint before a check and after it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) first: bool,
    /// Well or not.
    pub(super) before: bool,
    pub(super) after: bool,
    /// It had said that it is degraded.
    pub(super) was_degraded: bool,
}

/// What a check is worth.
pub(super) fn told(log: &CheckLog, step: Step, outcome: Outcome, failed: Failed) -> Vec<Told> {
    let Step { first, before, after, was_degraded } = step;
    let mut all = Vec::new();
    match outcome {
        Outcome::Good | Outcome::Degraded => {
            if !before && after {
                all.push(Told::Added(first));
            } else if log.successes {
                all.push(Told::Success);
            }
            match (was_degraded, outcome == Outcome::Degraded) {
                (false, true) => all.push(Told::Degraded),
                (true, false) => all.push(Told::NoLongerDegraded),
                _ => {}
            }
        }
        Outcome::Bad | Outcome::Silent => {
            if before && !after {
                all.push(Told::Ejected(failed));
            }
            if first || log.failures {
                all.push(Told::Failure(failed, first));
            }
        }
    }
    all
}

/// Writes the lines. What cannot be written is lost, and said once.
pub(super) fn write(
    outputs: &mut Outputs<Stdout>,
    log: &CheckLog,
    (cluster, check, endpoint): (&Cluster, &HealthCheck, &Endpoint),
    all: &[Told],
) {
    for told in all {
        let line = line(cluster, check, endpoint, *told, SystemTime::now());
        for sink in &log.sinks {
            if let Err(error) = outputs.write(sink, line.as_bytes()) {
                tracing::debug!(?sink, %error, "an event of a health check cannot be written, and is lost");
            }
        }
    }
}

/// A time as Envoy's events have it.
pub(super) fn stamp(time: SystemTime) -> String {
    let form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::from(time).format(form).unwrap_or_default()
}

fn line(cluster: &Cluster, check: &HealthCheck, endpoint: &Endpoint, told: Told, now: SystemTime) -> String {
    let text = |value: &str| serde_json::Value::from(value).to_string();
    let kind = match check.probe {
        Probe::Http(_) => "HTTP",
        Probe::Tcp { .. } => "TCP",
        Probe::Grpc { .. } => "GRPC",
    };
    let mut out = format!("{{\"health_checker_type\":\"{kind}\",\"host\":");
    let _ = match &endpoint.pipe {
        Some(path) => write!(out, "{{\"pipe\":{{\"path\":{},\"mode\":0}}}}", text(path)),
        None => write!(
            out,
            "{{\"socket_address\":{{\"protocol\":\"TCP\",\"address\":\"{}\",\"port_value\":{},\"resolver_name\":\"\",\
             \"ipv4_compat\":false,\"network_namespace_filepath\":\"\"}}}}",
            endpoint.address.ip(),
            endpoint.address.port()
        ),
    };
    let _ = write!(out, ",\"cluster_name\":{}", text(&cluster.name));
    let _ = match told {
        Told::Ejected(Failed { kind, status }) => {
            write!(out, ",\"eject_unhealthy_event\":{{\"failure_type\":\"{kind}\",\"http_status_code\":{status}}}")
        }
        Told::Added(first) => write!(out, ",\"add_healthy_event\":{{\"first_check\":{first}}}"),
        _ => Ok(()),
    };
    let _ = write!(out, ",\"timestamp\":\"{}\"", stamp(now));
    let _ = match told {
        Told::Failure(Failed { kind, status }, first) => write!(
            out,
            ",\"health_check_failure_event\":{{\"failure_type\":\"{kind}\",\"first_check\":{first},\
             \"http_status_code\":{status}}}"
        ),
        Told::Degraded => write!(out, ",\"degraded_healthy_host\":{{}}"),
        Told::NoLongerDegraded => write!(out, ",\"no_longer_degraded_host\":{{}}"),
        _ => Ok(()),
    };
    if let Some(metadata) = &endpoint.metadata {
        let fields = metadata.all().into_iter();
        let fields: Vec<String> = fields.map(|(name, value)| format!("{}:{}", text(&name), json_of(&value))).collect();
        let _ = write!(
            out,
            ",\"metadata\":{{\"filter_metadata\":{{{}}},\"typed_filter_metadata\":{{}}}}",
            fields.join(",")
        );
    }
    let place = &endpoint.locality;
    let _ = write!(
        out,
        ",\"locality\":{{\"region\":{},\"zone\":{},\"sub_zone\":{}}}",
        text(&place.region),
        text(&place.zone),
        text(&place.sub_zone)
    );
    if told == Told::Success {
        out.push_str(",\"successful_health_check_event\":{}");
    }
    out.push_str("}\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(first: bool, before: bool, after: bool) -> Step {
        Step { first, before, after, was_degraded: false }
    }

    #[test]
    fn checks_when_they_change_something_then_that_is_told_and_what_is_always_wanted() {
        let quiet = CheckLog::default();
        let (bad, none) = (Failed::new(Outcome::Bad, 503, false), Failed::new(Outcome::Silent, 0, false));
        assert_eq!(told(&quiet, step(true, false, true), Outcome::Good, none), [Told::Added(true)]);
        assert_eq!(told(&quiet, step(true, false, false), Outcome::Bad, bad), [Told::Failure(bad, true)]);
        assert_eq!(told(&quiet, step(false, true, false), Outcome::Bad, bad), [Told::Ejected(bad)]);
        assert_eq!(told(&quiet, step(false, true, true), Outcome::Good, none), []);
        assert_eq!(told(&quiet, step(false, false, false), Outcome::Silent, none), []);
        let all = CheckLog { failures: true, successes: true, ..quiet };
        assert_eq!(told(&all, step(false, true, true), Outcome::Good, none), [Told::Success]);
        assert_eq!(told(&all, step(false, true, true), Outcome::Degraded, none), [Told::Success, Told::Degraded]);
        assert_eq!(
            told(&all, step(false, true, false), Outcome::Silent, none),
            [Told::Ejected(none), Told::Failure(none, false)]
        );
        let left = Step { was_degraded: true, ..step(false, true, true) };
        assert_eq!(told(&all, left, Outcome::Good, none), [Told::Success, Told::NoLongerDegraded]);
        assert_eq!(Failed::new(Outcome::Silent, 0, true).kind, "NETWORK_TIMEOUT");
        assert_eq!(Failed::new(Outcome::Silent, 501, false).kind, "ACTIVE");
    }
}
