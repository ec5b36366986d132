//! `DestinationRule`: what holds for traffic to a service once routing has chosen it, and the subsets it has.
//!
//! The types mirror what Istio 1.31 serves in `networking.istio.io`, field for field; see [`super::virtual_service`]
//! for the conventions.

mod connection;
mod load_balancer;
mod policy;
mod rules;

pub use connection::{
    ConnectionKeepalive, ConnectionPoolSettings, H2UpgradePolicy, HttpSettings, OutlierDetection, TcpKeepalive,
    TcpSettings,
};
pub use load_balancer::{
    ConsistentHashLb, HttpCookie, HttpCookieAttribute, LoadBalancerSettings, LocalityDistribute, LocalityFailover,
    LocalityLoadBalancerSetting, MagLev, RingHash, SimpleLb, WarmupConfiguration, ZoneAwareLoadBalancerSetting,
};
pub use policy::{
    ClientTlsMode, ClientTlsSettings, PortTrafficPolicy, ProxyProtocol, ProxyProtocolVersion, RetryBudget,
    TrafficPolicy, TunnelSettings,
};

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::null::null_as_empty;
use super::status::IstioStatus;

/// Names the subsets of a service and says how to connect to it: load balancing, connection limits, outlier detection,
/// TLS.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "networking.istio.io",
    version = "v1",
    kind = "DestinationRule",
    plural = "destinationrules",
    singular = "destinationrule",
    shortname = "dr",
    namespaced,
    status = "IstioStatus",
    schema = "disabled",
    derive = "Default",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::of_spec()))]
pub struct DestinationRuleSpec {
    /// The service that the rule is for, by its name in the registry; a leading `*.` matches any prefix. A name without
    /// dots is a service in this object's own namespace; full names (`reviews.default.svc.cluster.local`) leave no
    /// doubt.
    #[schemars(length(min = 1, max = 255), regex(pattern = "^[-*.a-zA-Z0-9]+$"))]
    pub host: String,
    /// What holds for all traffic to the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_policy: Option<TrafficPolicy>,
    /// Named groups of the service's endpoints, chosen by labels, that VirtualServices can route to.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub subsets: Vec<Subset>,
    /// The namespaces whose workloads see this object: names, `.` for its own namespace, `*` for all. When empty, all.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    #[schemars(schema_with = "crate::schema::export_to")]
    pub export_to: Vec<String>,
    /// Apply the rule only to clients whose pods, in this object's namespace, carry these labels. When absent, to all
    /// clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<WorkloadSelector>,
}

impl DestinationRuleSpec {
    /// Whether it is for chosen workloads of its namespace: a selector without labels chooses all.
    pub fn chooses_workloads(&self) -> bool {
        self.workload_selector.as_ref().is_some_and(|selector| !selector.match_labels.is_empty())
    }
}

/// A named group of a service's endpoints, usually one version of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::of_subset()))]
pub struct Subset {
    /// The name that VirtualServices use, for example `v1`.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?$"))]
    pub name: String,
    /// The labels that a pod must carry to belong to the subset.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_empty")]
    pub labels: BTreeMap<String, String>,
    /// What holds for traffic to this subset. Each field given here replaces the service's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_policy: Option<TrafficPolicy>,
}

/// Chooses workloads by their labels.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSelector {
    /// Labels that a pod must carry, all of them. No wildcards.
    #[schemars(schema_with = "crate::schema::selector_labels")]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_empty")]
    pub match_labels: BTreeMap<String, String>,
}
