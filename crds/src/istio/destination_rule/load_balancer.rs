//! Load balancing: which endpoint gets a request or connection.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::istio::duration::IstioDuration;
use crate::istio::null::null_as_empty;
use crate::istio::number::whole_as_integer;

/// How requests or connections are spread over the endpoints: `simple` or `consistentHash`, and by locality.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("oneOf" = crate::schema::at_most_one(&["simple", "consistentHash"])))]
pub struct LoadBalancerSettings {
    /// A standard algorithm. When absent, `LEAST_REQUEST`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub simple: Option<SimpleLb>,
    /// Send what has the same key (a header, cookie, address) to the same endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consistent_hash: Option<ConsistentHashLb>,
    /// Prefer endpoints by region and zone, or share traffic out between them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality_lb_setting: Option<LocalityLoadBalancerSetting>,
    /// Keep traffic within the client's zone where the zones are balanced. Not together with `localityLbSetting`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone_aware_lb_setting: Option<ZoneAwareLoadBalancerSetting>,
    /// Deprecated: use `warmup`. For how long a new endpoint gets less than its share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_duration_secs: Option<IstioDuration>,
    /// Raise the share of a new endpoint slowly. Not together with `warmupDurationSecs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup: Option<WarmupConfiguration>,
}

/// A load balancing algorithm without settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SimpleLb {
    /// Let the mesh choose.
    Unspecified,
    /// Deprecated: use `LEAST_REQUEST`.
    LeastConn,
    /// A random endpoint.
    Random,
    /// The address that the client asked for, without load balancing.
    Passthrough,
    /// Endpoints in turn.
    RoundRobin,
    /// The endpoint with fewer requests under way, of two drawn at random.
    LeastRequest,
}

/// Sends what has the same key to the same endpoint, as long as the endpoints stay the same.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("allOf" = [
    { "oneOf": crate::schema::at_most_one(&["httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName"]) },
    { "oneOf": crate::schema::at_most_one(&["ringHash", "maglev"]) },
]))]
#[schemars(extend("not" = {
    "required": ["minimumRingSize"],
    "properties": { "minimumRingSize": { "minimum": 1 } },
    "anyOf": [{ "required": ["ringHash"] }, { "required": ["maglev"] }],
}))]
pub struct ConsistentHashLb {
    /// The key is the value of this request header.
    #[schemars(regex(pattern = "^:?[-!#$%&'*+.^_`|~0-9A-Za-z]+$"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_header_name: Option<String>,
    /// The key is a cookie.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_cookie: Option<HttpCookie>,
    /// The key is the client's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_source_ip: Option<bool>,
    /// The key is the value of this query parameter.
    #[schemars(length(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_query_parameter_name: Option<String>,
    /// Place the endpoints on a ring. The default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ring_hash: Option<RingHash>,
    /// Place the endpoints in a Maglev table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maglev: Option<MagLev>,
    /// Deprecated: use `ringHash`. The least number of places on the ring.
    #[schemars(range(min = 0, max = 8388608))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_ring_size: Option<u64>,
}

/// Consistent hashing on a ring.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RingHash {
    /// The least number of places on the ring; more spread traffic more evenly. When absent, 1024.
    #[schemars(range(min = 0, max = 8388608))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_ring_size: Option<u64>,
}

/// Consistent hashing with a Maglev table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MagLev {
    /// The size of the table: a prime number below 5000011. When absent, 65537.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 5000010))]
    pub table_size: Option<u64>,
}

/// A cookie that serves as the key of consistent hashing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpCookie {
    /// The cookie's name.
    #[schemars(length(min = 1), regex(pattern = crate::schema::TOKEN))]
    pub name: String,
    /// The path that a generated cookie gets.
    #[schemars(regex(pattern = crate::schema::HEADER_VALUE))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// How long a generated cookie lives. With 0 it lasts for the browser session; when absent, none is generated.
    #[schemars(schema_with = "crate::schema::unchecked_duration")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<IstioDuration>,
    /// Further attributes of a generated cookie.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub attributes: Vec<HttpCookieAttribute>,
}

/// An attribute of a generated cookie, for example `SameSite`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpCookieAttribute {
    /// The attribute's name.
    #[schemars(regex(pattern = crate::schema::TOKEN))]
    pub name: String,
    /// The attribute's value, if it has one.
    #[schemars(regex(pattern = crate::schema::HEADER_VALUE))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// Raises the share of a new endpoint slowly.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WarmupConfiguration {
    /// For how long.
    pub duration: IstioDuration,
    /// The share that it begins with, in percent. When absent, 10.
    #[schemars(range(min = 0, max = 100))]
    #[schemars(extend("nullable" = true))]
    #[serde(skip_serializing_if = "Option::is_none", default, serialize_with = "whole_as_integer")]
    pub minimum_percent: Option<f64>,
    /// How the share grows: 1 is linear, larger is faster at first. When absent, 1.
    #[schemars(range(min = 1))]
    #[schemars(extend("nullable" = true))]
    #[serde(skip_serializing_if = "Option::is_none", default, serialize_with = "whole_as_integer")]
    pub aggression: Option<f64>,
}

/// Prefers endpoints by locality. Only one of `distribute`, `failover` and `failoverPriority`, but that `failover` and
/// `failoverPriority` may come together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("not" = {
    "required": ["distribute", "failover"],
    "properties": { "distribute": { "minItems": 1 }, "failover": { "minItems": 1 } },
}))]
pub struct LocalityLoadBalancerSetting {
    /// Share traffic out between localities by weight.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub distribute: Vec<LocalityDistribute>,
    /// Which region takes over when the endpoints in a region fail. Needs `outlierDetection`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub failover: Vec<LocalityFailover>,
    /// Labels, in order of importance: endpoints that share more of them with the client are preferred. Needs
    /// `outlierDetection`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub failover_priority: Vec<String>,
    /// Whether locality matters at all for this service.
    #[schemars(extend("nullable" = true))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// How traffic from a locality is shared out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalityDistribute {
    /// Where the traffic comes from: `region/zone/subzone`, with `*` as the last part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Where it goes to, by locality, in percent. They add up to 100.
    #[schemars(schema_with = "crate::schema::locality_shares")]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_empty")]
    pub to: BTreeMap<String, u32>,
}

/// Which region takes over from another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalityFailover {
    /// The region whose endpoints fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The region that takes over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// Keeps traffic within the client's zone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ZoneAwareLoadBalancerSetting {
    /// Whether zones matter at all for this service.
    #[schemars(extend("nullable" = true))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Which region takes over when the endpoints in a region fail.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub failover: Vec<LocalityFailover>,
    /// Labels, in order of importance, that order endpoints within a region.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub failover_priority: Vec<String>,
    /// With fewer endpoints in the client's region, zones are ignored. When absent, 6.
    #[schemars(range(min = 1, max = 4294967295u32))]
    #[schemars(extend("nullable" = true))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_cluster_size: Option<u32>,
}
