//! How the control plane gets to another release, and the revisions of it that run side by side.
//!
//! A revision is a control plane of one release with a Deployment and a Service of its own. All revisions of a MeshInstall share its
//! settings and its authority, and each programs whatever pod connects to it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::MeshInstallSpec;

/// The tag of the revision that everybody gets who names no other.
pub const STABLE: &str = "stable";
/// The tag of the newest revision: of the one that is tried, while there is one, and of the stable one otherwise.
pub const CANARY: &str = "canary";
/// How long a revision stays after nothing uses it any more when nothing is said, in seconds.
pub const DEFAULT_GRACE_PERIOD: i32 = 300;

/// How the control plane gets to another release.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::schema::rules(&[
    ("(has(self.type) && self.type == 'Canary') || (!has(self.canaryPercent) && !has(self.promote))",
     "canaryPercent and promote are for type Canary; write type: Canary, or leave them out"),
])))]
pub struct ControlPlaneUpdateStrategy {
    /// How, `InPlace` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "type")]
    pub kind: Option<ControlPlaneUpdateType>,
    /// With `Canary`: the share of workloads whose running pods are moved to the new revision before it is promoted, 0 unless
    /// given. Whole workloads are moved, always the same ones; those in namespaces that name a tag or revision are not
    /// counted and go by that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub canary_percent: Option<i32>,
    /// With `Canary`: the release to promote, as in `spec.version`, for example `0.2.0`. Once all replicas of its revision serve,
    /// it gets the tag `stable`, and everything that names no other revision moves to it. Another release than the one that is
    /// tried promotes nothing, so the field may stay as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub promote: Option<String>,
    /// How long a revision stays after nothing uses it any more, in seconds; 300 unless given. Running injected pods use the
    /// revision that their label names, and namespaces the one that they name; finished and failed pods use nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 604_800))]
    pub grace_period_seconds: Option<i32>,
}

/// How the control plane gets to another release.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ControlPlaneUpdateType {
    /// Replica by replica; none leaves before its successor is ready.
    #[default]
    InPlace,
    /// The new release runs as a revision of its own beside the old one, until it is promoted or `spec.version` names the old
    /// one again.
    Canary,
}

/// A revision of the control plane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevisionStatus {
    /// Its name: the label `mesh.leno.dev/rev` of the pods that it programs, and part of its Service's name.
    pub name: String,
    /// Its release.
    pub version: String,
    /// The tags that point at it; none when it is about to go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Replicas that serve.
    pub ready: i32,
    /// Replicas that are wanted.
    pub replicas: i32,
    /// Running pods whose label names it.
    pub pods: i32,
    /// Since when nothing uses it, when it is about to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub unused_since: Option<Time>,
}

impl ControlPlaneUpdateStrategy {
    /// How.
    pub fn kind(&self) -> ControlPlaneUpdateType {
        self.kind.unwrap_or_default()
    }

    /// The share of workloads that are moved before promotion, in percent.
    pub fn canary_percent(&self) -> i32 {
        self.canary_percent.unwrap_or(0).clamp(0, 100)
    }

    /// How long a revision stays after nothing uses it any more, in seconds.
    pub fn grace_period_seconds(&self) -> i32 {
        self.grace_period_seconds.unwrap_or(DEFAULT_GRACE_PERIOD).max(0)
    }
}

impl MeshInstallSpec {
    /// How the control plane gets to another release.
    pub fn control_plane_update_strategy(&self) -> ControlPlaneUpdateStrategy {
        let control_plane = self.control_plane.as_ref();
        control_plane.and_then(|control_plane| control_plane.update_strategy.clone()).unwrap_or_default()
    }
}
