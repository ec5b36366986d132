//! Connections to a service: limits, timeouts, keep-alive, and taking failing endpoints out.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::istio::duration::IstioDuration;
use crate::istio::null::null_as_empty;

/// Limits on connections and requests, and timeouts of connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("minProperties" = 1))]
pub struct ConnectionPoolSettings {
    /// For all connections, HTTP too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpSettings>,
    /// For HTTP connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSettings>,
}

/// Settings for all connections to a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TcpSettings {
    /// How many connections to an endpoint may be open. When absent or 0, no limit.
    #[schemars(range(min = 0, max = 2147483647))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<i32>,
    /// How long setting up a connection may take. When absent, 10s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<IstioDuration>,
    /// Ask the kernel to probe idle connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// How long a connection may last. When absent, no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connection_duration: Option<IstioDuration>,
    /// How long a connection without traffic is kept; 0 is for ever. When absent, 1h.
    #[schemars(schema_with = "crate::schema::unchecked_duration")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<IstioDuration>,
}

/// How the kernel probes idle connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TcpKeepalive {
    /// How many probes may stay unanswered before the connection counts as dead. When absent, the system's.
    #[schemars(range(min = 0, max = 4294967295u32))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probes: Option<u32>,
    /// How long a connection is idle before the first probe. When absent, the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<IstioDuration>,
    /// How long between probes. When absent, the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<IstioDuration>,
}

/// Settings for HTTP connections to a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("not" = {
    "required": ["useClientProtocol", "h2UpgradePolicy"],
    "properties": { "useClientProtocol": { "enum": [true] }, "h2UpgradePolicy": { "enum": ["UPGRADE"] } },
}))]
pub struct HttpSettings {
    /// How many requests may wait for a connection. When absent or 0, no limit.
    #[schemars(range(min = 0, max = 2147483647))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http1_max_pending_requests: Option<i32>,
    /// How many requests may be under way, HTTP/1.1 and HTTP/2. When absent or 0, no limit.
    #[schemars(range(min = 0, max = 2147483647))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http2_max_requests: Option<i32>,
    /// After how many requests a connection is closed. When absent or 0, no limit; 1 is no keep-alive.
    #[schemars(range(min = 0, max = 2147483647))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests_per_connection: Option<i32>,
    /// How many retries may be under way, over all endpoints. When absent or 0, no limit.
    #[schemars(range(min = 0, max = 2147483647))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<i32>,
    /// How long a connection without requests is kept. When absent, 1h.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<IstioDuration>,
    /// Whether HTTP/1.1 requests are sent to the service as HTTP/2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub h2_upgrade_policy: Option<H2UpgradePolicy>,
    /// Speak the HTTP version that the client spoke. Not together with `h2UpgradePolicy: UPGRADE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_client_protocol: Option<bool>,
    /// How many requests may be under way on one HTTP/2 connection. When absent or 0, no limit of ours.
    #[schemars(range(min = 0, max = 2147483647))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrent_streams: Option<i32>,
    /// Probe HTTP/2 connections by PING.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http2_keep_alive: Option<ConnectionKeepalive>,
}

/// Whether HTTP/1.1 requests are sent to the service as HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum H2UpgradePolicy {
    /// As the mesh says.
    Default,
    /// No.
    DoNotUpgrade,
    /// Yes, whatever the client spoke.
    Upgrade,
}

/// How HTTP/2 connections are probed by PING.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionKeepalive {
    /// How long between probes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<IstioDuration>,
    /// How long an answer may take before the connection is closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<IstioDuration>,
}

/// Takes endpoints out of load balancing for a while that keep failing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutlierDetection {
    /// Deprecated: use `consecutiveGatewayErrors` or `consecutive5xxErrors`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_errors: Option<i32>,
    /// Tell failures of our own side (connecting, timeouts) from the service's answers, and count them apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_external_local_origin_errors: Option<bool>,
    /// After how many failures of our own side in a row; needs `splitExternalLocalOriginErrors`. When absent, 5.
    #[schemars(range(min = 0, max = 4294967295u32))]
    #[schemars(extend("nullable" = true))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_local_origin_failures: Option<u32>,
    /// After how many 502, 503 and 504 answers in a row. When absent or 0, never.
    #[schemars(range(min = 0, max = 4294967295u32))]
    #[schemars(extend("nullable" = true))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_gateway_errors: Option<u32>,
    /// After how many 5xx answers in a row; 0 is never. When absent, 5.
    #[schemars(range(min = 0, max = 4294967295u32))]
    #[schemars(extend("nullable" = true))]
    #[serde(rename = "consecutive5xxErrors", skip_serializing_if = "Option::is_none")]
    pub consecutive_5xx_errors: Option<u32>,
    /// How often endpoints are looked at. When absent, 10s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<IstioDuration>,
    /// For how long at least an endpoint is taken out; longer each time. When absent, 30s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_ejection_time: Option<IstioDuration>,
    /// The share of endpoints that may be out at the same time, in percent. When absent, 10.
    #[schemars(range(min = 0, max = 100))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ejection_percent: Option<i32>,
    /// Only as long as this share of endpoints is healthy, in percent. When absent, 0.
    #[schemars(range(min = 0, max = 100))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_health_percent: Option<i32>,
    /// The statuses that count as failures. When empty, all of 5xx.
    #[schemars(schema_with = "crate::schema::http_statuses")]
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub outlier_detection_http_error_codes: Vec<u32>,
}
