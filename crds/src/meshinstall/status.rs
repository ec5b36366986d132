//! What the operator says about a MeshInstall.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::RevisionStatus;

/// What the operator has seen of a MeshInstall.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeshInstallStatus {
    /// The generation of the object that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word for people: `Pending`, `Installing`, `Upgrading`, `Paused`, `RollingBack`, `Ready`, `Degraded`, `Invalid` or
    /// `Deleting`. Programs
    /// read the conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// The release that every replica of the control plane runs; absent while they differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The control plane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane: Option<ControlPlaneStatus>,
    /// The data plane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_plane: Option<DataPlaneStatus>,
    /// The authority that signs certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificates: Option<super::CertificatesStatus>,
    /// The change of release that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<UpgradeStatus>,
    /// How the last change of release ended. A release that was rolled back is not tried again until `spec.version` names
    /// another, or the annotation `mesh.leno.dev/retry` of the MeshInstall changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_upgrade: Option<PastUpgrade>,
    /// `Accepted`, `ControlPlaneReady`, `DataPlaneReady`, `CertificatesCurrent`, `Upgrading`, and `Ready`, which is all that must hold for the mesh to serve.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// Replicas of the control plane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ControlPlaneStatus {
    /// Replicas of the wanted release that serve.
    pub ready: i32,
    /// Replicas that are wanted.
    pub replicas: i32,
    /// Both, for people: `2/2`.
    pub summary: String,
    /// The revisions, the stable one first, when there may be more than one (`updateStrategy.type: Canary`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub revisions: Vec<RevisionStatus>,
}

/// Injected pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataPlaneStatus {
    /// Injected pods whose sidecar is of the wanted release and ready.
    pub current: i32,
    /// Injected pods.
    pub total: i32,
    /// Injected pods of another release that ask to be left as they are (`mesh.leno.dev/upgrade: disabled`).
    #[serde(default)]
    pub held: i32,
    /// Injected pods that were made with other settings than the mesh has now, which only new pods get (`spec.dataPlane.engine`,
    /// `spec.dataPlane.resources`, `spec.image.pullPolicy`). Restart their workloads; with `updateStrategy.type: Restart` they are.
    #[serde(default)]
    pub to_restart: i32,
    /// Pods that ask for a sidecar and have none: they were created while the mesh was not there. Restart them.
    pub not_injected: i32,
    /// Current and all, for people: `9/9`.
    pub summary: String,
    /// The release that pods get which are created now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub injected_version: Option<String>,
    /// Injected pods by the release that serves in them, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub versions: Vec<VersionCount>,
}

/// How many pods a release serves in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VersionCount {
    /// The release.
    pub version: String,
    /// Injected pods in which it serves.
    pub pods: i32,
}

/// A change of release that is under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpgradeStatus {
    /// The release from which it started, and to which it goes back when the gate fails.
    pub from: String,
    /// The release to which it goes.
    pub to: String,
    /// `ControlPlane`, `DataPlane`, `Finishing` (the idle slots follow), or `RollingBack`.
    pub step: String,
    /// When the change began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub started_at: Option<Time>,
    /// When the present step began, or last came forward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub since: Option<Time>,
    /// What all proxies had done in the minute before the change began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Measured>,
    /// The wave that is being moved, or looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wave: Option<Wave>,
    /// What is being waited for, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub waiting_for: String,
    /// What comes next, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub next: String,
    /// Why it goes back, one CamelCase word; empty while it goes forward.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What was seen, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub failure: String,
    /// Most pods in which the new release served at a time.
    #[serde(default)]
    pub reached: i32,
}

/// A wave of an upgrade.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Wave {
    /// Which, from 1; 0 is the control plane.
    pub number: i32,
    /// Of how many.
    pub of: i32,
    /// For people: `2/4`.
    pub summary: String,
    /// Pods that this wave and those before it move.
    pub pods: i32,
    /// Of them, those in which the new release serves.
    pub moved: i32,
    /// When the gate began to measure; absent while pods are still moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub gate_since: Option<Time>,
    /// For how many seconds an operator has looked at it since then.
    #[serde(default)]
    pub looked_seconds: i64,
    /// When one last did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub looked_at: Option<Time>,
    /// What the old release had done in the window before the wave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<Measured>,
    /// What the new release has done since the gate began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<Measured>,
}

/// What proxies counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Measured {
    /// Requests.
    pub requests: i64,
    /// Of them, those that failed.
    pub failures: i64,
    /// The time within which nine of ten were answered, milliseconds (an upper bound of the class that it falls into).
    pub p90_ms: i64,
    /// The mean time, in milliseconds, by the middle of the classes.
    pub mean_ms: i64,
    /// Resources that they refused.
    #[serde(default)]
    pub rejected: i64,
    /// What the largest of them takes in memory, MiB.
    #[serde(default)]
    pub resident_mebibytes: i64,
}

/// How a change of release ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PastUpgrade {
    /// From this release.
    pub from: String,
    /// To this one.
    pub to: String,
    /// `Completed`, `RolledBack`, or `Superseded`.
    pub result: String,
    /// Why, when it did not complete.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What was seen, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Most pods in which the new release served at a time.
    pub reached: i32,
    /// Seconds from start to end.
    pub seconds: i64,
    /// Whether the release is not tried again. It is once `spec.version` has named another.
    #[serde(default)]
    pub rejected: bool,
    /// The value of the annotation `mesh.leno.dev/retry` when it ended.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub retry: String,
}
