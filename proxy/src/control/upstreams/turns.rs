//! What is written about outlier detection: a line of JSON each, as Envoy writes its `OutlierDetectionEvent`.

use super::ejections::{Cause, Turn, What};
use super::events::stamp;
use crate::config::{Consecutive, pipe::Shown};
use crate::telemetry::LogSink;
use crate::telemetry::logsink::Outputs;
use std::fmt::Write as _;
use std::io::Stdout;
use std::time::SystemTime;

/// Writes the lines of a cluster. What cannot be written is lost, and said.
pub(super) fn write(outputs: &mut Outputs<Stdout>, log: &LogSink, cluster: &str, turns: &[Turn]) {
    for turn in turns {
        if let Err(error) = outputs.write(log, line(cluster, turn, SystemTime::now()).as_bytes()) {
            tracing::debug!(?log, %error, "an event of outlier detection cannot be written, and is lost");
        }
    }
}

fn line(cluster: &str, turn: &Turn, now: SystemTime) -> String {
    let text = |value: &str| serde_json::Value::from(value).to_string();
    let (kind, event) = match turn.what {
        // Who comes back has the first kind, as in Envoy.
        What::Back => ("CONSECUTIVE_5XX", String::new()),
        What::Out { cause, .. } => of(cause),
    };
    let mut out = format!("{{\"type\":\"{kind}\",\"timestamp\":\"{}\"", stamp(now));
    if let Some(since) = turn.since {
        let _ = write!(out, ",\"secs_since_last_action\":\"{}\"", since.as_secs());
    }
    let (action, enforced) = match turn.what {
        What::Back => ("UNEJECT", false),
        What::Out { enforced, .. } => ("EJECT", enforced),
    };
    let address = text(&Shown(turn.address).to_string());
    let _ = write!(
        out,
        ",\"cluster_name\":{},\"upstream_url\":{address},\"action\":\"{action}\",\"num_ejections\":{},\"enforced\":{enforced}\
         {event}}}",
        text(cluster),
        turn.times
    );
    out.push('\n');
    out
}

/// The kind of an ejection, and what belongs to it. Rates are whole numbers.
fn of(cause: Cause) -> (&'static str, String) {
    match cause {
        Cause::Consecutive(kind) => {
            let kind = match kind {
                Consecutive::ServerErrors => "CONSECUTIVE_5XX",
                Consecutive::GatewayErrors => "CONSECUTIVE_GATEWAY_FAILURE",
                Consecutive::LocalFailures => "CONSECUTIVE_LOCAL_ORIGIN_FAILURE",
            };
            (kind, ",\"eject_consecutive_event\":{}".to_owned())
        }
        Cause::Rate { local, own, average, least } => {
            let [own, average, least] = [own, average, least].map(|rate| rate as u32);
            let event = format!(
                ",\"eject_success_rate_event\":{{\"host_success_rate\":{own},\"cluster_average_success_rate\":{average},\
                 \"cluster_success_rate_ejection_threshold\":{least}}}"
            );
            (if local { "SUCCESS_RATE_LOCAL_ORIGIN" } else { "SUCCESS_RATE" }, event)
        }
        Cause::Percentage { local, own } => {
            let kind = if local { "FAILURE_PERCENTAGE_LOCAL_ORIGIN" } else { "FAILURE_PERCENTAGE" };
            (kind, format!(",\"eject_failure_percentage_event\":{{\"host_success_rate\":{}}}", own as u32))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn turns_when_they_are_written_then_lines_are_those_of_envoy() {
        let turn = |times, since: Option<u64>, what| Turn {
            address: ([127, 0, 0, 1], 80).into(),
            since: since.map(Duration::from_secs),
            times,
            what,
        };
        let cause = Cause::Consecutive(Consecutive::GatewayErrors);
        let first = turn(1, None, What::Out { cause, enforced: true });
        let start = "\"cluster_name\":\"c\",\"upstream_url\":\"127.0.0.1:80\"";
        let stamp = "\"timestamp\":\"1970-01-01T00:00:00.000Z\"";
        assert_eq!(
            line("c", &first, SystemTime::UNIX_EPOCH),
            format!(
                "{{\"type\":\"CONSECUTIVE_GATEWAY_FAILURE\",{stamp},{start},\"action\":\"EJECT\",\"num_ejections\":1,\
                 \"enforced\":true,\"eject_consecutive_event\":{{}}}}\n"
            )
        );
        assert_eq!(
            line("c", &turn(1, Some(30), What::Back), SystemTime::UNIX_EPOCH),
            format!(
                "{{\"type\":\"CONSECUTIVE_5XX\",{stamp},\"secs_since_last_action\":\"30\",{start},\"action\":\"UNEJECT\",\
                 \"num_ejections\":1,\"enforced\":false}}\n"
            )
        );
        let rate = Cause::Rate { local: false, own: 50.9, average: 90.0, least: 52.1 };
        assert_eq!(
            of(rate),
            (
                "SUCCESS_RATE",
                ",\"eject_success_rate_event\":{\"host_success_rate\":50,\"cluster_average_success_rate\":90,\
                 \"cluster_success_rate_ejection_threshold\":52}"
                    .to_owned()
            )
        );
        let percentage = of(Cause::Percentage { local: true, own: 9.0 });
        assert_eq!(percentage.0, "FAILURE_PERCENTAGE_LOCAL_ORIGIN");
        assert_eq!(percentage.1, ",\"eject_failure_percentage_event\":{\"host_success_rate\":9}");
    }
}
