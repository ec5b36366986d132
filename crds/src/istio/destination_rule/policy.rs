//! Traffic policies: everything that can be said about connections to a service, for all of its ports or for one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ConnectionPoolSettings, LoadBalancerSettings, OutlierDetection};
use crate::istio::duration::IstioDuration;
use crate::istio::null::null_as_empty;
use crate::istio::number::whole_as_integer;
use crate::istio::virtual_service::PortSelector;

/// What holds for traffic to a service or subset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("minProperties" = 1, "not" = { "required": ["tunnel", "proxyProtocol"] }))]
pub struct TrafficPolicy {
    /// How requests or connections are spread over the endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancerSettings>,
    /// Limits on connections and requests, and timeouts of connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_pool: Option<ConnectionPoolSettings>,
    /// Take endpoints out for a while that keep failing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS towards the service. Between workloads of the mesh, mutual TLS needs no setting here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTlsSettings>,
    /// Settings for single ports of the service. A port listed here takes nothing from the settings above.
    #[schemars(length(max = 4096))]
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub port_level_settings: Vec<PortTrafficPolicy>,
    /// Tunnel TCP connections through an HTTP proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<TunnelSettings>,
    /// Announce the client's address to the service by the PROXY protocol. Not together with `tunnel`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Limit retries to a share of the requests that are under way, so that they cannot make an outage worse.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_budget: Option<RetryBudget>,
}

/// What holds for traffic to one port of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("required" = ["port"], "minProperties" = 2))]
pub struct PortTrafficPolicy {
    /// The port of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::any_port")]
    pub port: Option<PortSelector>,
    /// How requests or connections are spread over the endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancerSettings>,
    /// Limits on connections and requests, and timeouts of connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_pool: Option<ConnectionPoolSettings>,
    /// Take endpoints out for a while that keep failing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS towards the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTlsSettings>,
}

/// A tunnel for TCP connections. Not for HTTP routes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TunnelSettings {
    /// `CONNECT` or `POST`. When empty, `CONNECT`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["", "CONNECT", "POST"]))]
    pub protocol: Option<String>,
    /// The host at the end of the tunnel: a full name or an IP address.
    #[schemars(length(min = 1, max = 255))]
    pub target_host: String,
    /// The port at the end of the tunnel.
    #[schemars(range(min = 1, max = 65535))]
    pub target_port: u32,
}

/// The PROXY protocol towards the service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProxyProtocol {
    /// The version of the protocol. When absent, `V1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<ProxyProtocolVersion>,
}

/// A version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ProxyProtocolVersion {
    /// Version 1, in text.
    V1,
    /// Version 2, binary.
    V2,
}

/// A limit on retries in relation to the requests that are under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetryBudget {
    /// How many retries may be under way, in percent of the requests under way. When absent, 20.
    #[schemars(range(min = 0, max = 100))]
    #[schemars(extend("nullable" = true))]
    #[serde(skip_serializing_if = "Option::is_none", default, serialize_with = "whole_as_integer")]
    pub percent: Option<f64>,
    /// As many retries are always allowed. When absent, 3.
    #[schemars(range(min = 0, max = 4294967295u32))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_retry_concurrency: Option<u32>,
    /// Count the requests of this last interval instead of those under way. When absent or 0, those under way.
    #[schemars(schema_with = "crate::schema::unchecked_duration")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_interval: Option<IstioDuration>,
}

/// TLS that a client speaks to the service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("anyOf" = [
    { "not": { "required": ["mode"], "properties": { "mode": { "enum": ["MUTUAL"] } } } },
    { "required": ["credentialName"] },
    { "required": ["clientCertificate", "privateKey"] },
]))]
pub struct ClientTlsSettings {
    /// Whether and how TLS is spoken. When absent, `DISABLE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<ClientTlsMode>,
    /// A file with the client's certificate, for `MUTUAL`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<String>,
    /// A file with the client's private key, for `MUTUAL`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_key: Option<String>,
    /// A file with the authorities that may have issued the server's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_certificates: Option<String>,
    /// A Secret in the namespace of this object that holds the client's certificate, key and authorities (`tls.crt`, `tls.key`,
    /// `ca.crt`), instead of files. Needs a `workloadSelector`, and that the control plane may `get` the Secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential_name: Option<String>,
    /// Names that the server's certificate may carry; any one is enough.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub subject_alt_names: Vec<String>,
    /// The server name to ask for (SNI).
    #[schemars(length(max = 253), regex(pattern = "^[-._:0-9A-Za-z]*$"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// Accept any certificate of the server. For tests only.
    #[schemars(extend("nullable" = true))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub insecure_skip_verify: Option<bool>,
    /// A file with revoked certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_crl: Option<String>,
}

/// Whether and how TLS is spoken to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ClientTlsMode {
    /// No TLS.
    Disable,
    /// TLS without a client certificate.
    Simple,
    /// TLS with the client certificate that is given here.
    Mutual,
    /// TLS with the workload's own mesh certificate.
    IstioMutual,
}
