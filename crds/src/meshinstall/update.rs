//! How running sidecars get to another release.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// How running sidecars get to another release: in waves, each looked at before the next begins.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateStrategy {
    /// How a pod is moved, `InPlace` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "type")]
    pub kind: Option<UpdateType>,
    /// Pods that may be on the way at a time, as a number or a share of all, `10%` unless given; one at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "count_or_percent")]
    pub max_unavailable: Option<IntOrString>,
    /// The waves, each with what it reaches; after the last all pods are moved. One pod, 10, 50 and 100 percent unless given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub waves: Vec<Wave>,
    /// What stops a wave from being followed by the next, and turns everything back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
    /// Stops before the next pod. What has been moved stays; nothing turns back by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
    /// Waves begin only within one of these; always when there are none. One that has begun goes on to its gate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub maintenance_windows: Vec<MaintenanceWindow>,
}

/// How a pod is moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UpdateType {
    /// The sidecar is swapped inside the running pod; no container of the app restarts.
    #[default]
    InPlace,
    /// The pod's owner replaces it by a rolling restart, as `kubectl rollout restart` does.
    Restart,
    /// Running pods stay as they are; only new ones get the new release.
    OnRestart,
}

/// Pods that are moved together. Waves add up: a wave moves what it names and what those before it named.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::schema::rules(&[
    ("has(self.percent) || has(self.pods) || has(self.namespaces)", "a wave needs a percent, pods or namespaces"),
])))]
pub struct Wave {
    /// As many pods as make this share of all that can be moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub percent: Option<i32>,
    /// Only pods with these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::label_selector")]
    pub pods: Option<LabelSelector>,
    /// Only pods in namespaces with these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::label_selector")]
    pub namespaces: Option<LabelSelector>,
}

/// What must hold for an upgrade to go on. All is counted by the proxies themselves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Gate {
    /// How long a wave is looked at, in seconds; 30 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub window_seconds: Option<i32>,
    /// Requests that the moved proxies must have served for rates to count; 50 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub min_requests: Option<i32>,
    /// What to do when there were fewer by the end of the window: `Proceed` unless given, since a mesh without traffic must be
    /// able to move. Crashes, readiness and refused configuration count with any number of requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_quiet: Option<QuietGate>,
    /// By how many percentage points more requests may fail than before; 1 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub max_failure_increase_percent: Option<i32>,
    /// By how many percent requests may take longer than before; 50 unless given. Counts only from the next field on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000))]
    pub max_latency_increase_percent: Option<i32>,
    /// By how many milliseconds requests may take longer whatever share that is; 50 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 600_000))]
    pub max_latency_increase_milliseconds: Option<i32>,
    /// By how many MiB a proxy may grow in the window; 64 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_memory_increase_mebibytes: Option<i32>,
    /// How long a wave may go without another pod being moved, and the control plane may take until all its replicas run the
    /// release, in seconds; 300 unless given. After that it counts as failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 86400))]
    pub progress_deadline_seconds: Option<i32>,
}

/// What to do when a window had too few requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum QuietGate {
    /// Go on.
    #[default]
    Proceed,
    /// Wait for more, without a limit.
    Wait,
}

/// A time of the week, in UTC.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MaintenanceWindow {
    /// Days on which it begins: `Mon`, `Tue`, `Wed`, `Thu`, `Fri`, `Sat`, `Sun`; every day unless given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 7), inner(regex(pattern = "^(Mon|Tue|Wed|Thu|Fri|Sat|Sun)$")))]
    pub days: Vec<String>,
    /// When it begins, UTC, such as `22:30`.
    #[schemars(regex(pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub start: String,
    /// How long it is, in minutes.
    #[schemars(range(min = 1, max = 10080))]
    pub minutes: i32,
}

fn count_or_percent(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "anyOf": [{ "type": "integer" }, { "type": "string" }],
        "x-kubernetes-int-or-string": true,
        "pattern": "^([1-9][0-9]?|100)%$",
        "minimum": 1,
    })
}

impl UpdateStrategy {
    /// How a pod is moved.
    pub fn kind(&self) -> UpdateType {
        self.kind.unwrap_or_default()
    }

    /// Pods of `total` that may be on the way at a time, at least one.
    pub fn max_unavailable(&self, total: usize) -> usize {
        let share = |percent: usize| (total * percent).div_ceil(100);
        let count = match &self.max_unavailable {
            None => share(10),
            Some(IntOrString::Int(number)) => usize::try_from(*number).unwrap_or(0),
            Some(IntOrString::String(text)) => share(text.trim_end_matches('%').parse().unwrap_or(0)),
        };
        count.max(1)
    }

    /// Whether it is stopped.
    pub fn paused(&self) -> bool {
        self.paused.unwrap_or(false)
    }

    /// The gate.
    pub fn gate(&self) -> Gate {
        self.gate.clone().unwrap_or_default()
    }
}

impl Gate {
    /// How long a wave is looked at, seconds.
    pub fn window_seconds(&self) -> i64 {
        self.window_seconds.unwrap_or(30).into()
    }

    /// Requests for rates to count.
    pub fn min_requests(&self) -> i64 {
        self.min_requests.unwrap_or(50).into()
    }

    /// What to do with fewer.
    pub fn when_quiet(&self) -> QuietGate {
        self.when_quiet.unwrap_or_default()
    }

    /// Percentage points by which more may fail.
    pub fn max_failure_increase_percent(&self) -> i64 {
        self.max_failure_increase_percent.unwrap_or(1).into()
    }

    /// Percent by which they may take longer.
    pub fn max_latency_increase_percent(&self) -> i64 {
        self.max_latency_increase_percent.unwrap_or(50).into()
    }

    /// Milliseconds by which they may take longer in any case.
    pub fn max_latency_increase_milliseconds(&self) -> i64 {
        self.max_latency_increase_milliseconds.unwrap_or(50).into()
    }

    /// MiB by which a proxy may grow.
    pub fn max_memory_increase_mebibytes(&self) -> i64 {
        self.max_memory_increase_mebibytes.unwrap_or(64).into()
    }

    /// How long a wave may take, seconds.
    pub fn progress_deadline_seconds(&self) -> i64 {
        self.progress_deadline_seconds.unwrap_or(300).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_unavailable_when_given_in_any_form_then_is_one_at_least() {
        let of = |given: Option<IntOrString>, total| {
            UpdateStrategy { max_unavailable: given, ..UpdateStrategy::default() }.max_unavailable(total)
        };
        assert_eq!((of(None, 0), of(None, 5), of(None, 30), of(None, 31)), (1, 1, 3, 4));
        assert_eq!(of(Some(IntOrString::Int(7)), 3), 7);
        assert_eq!(of(Some(IntOrString::String("50%".to_owned())), 9), 5);
    }
}
