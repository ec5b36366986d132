//! Routes for connections: TLS by server name, TCP by port and address.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Destination;
use crate::istio::null::null_as_empty;

/// One rule for TLS connections that are passed on without decryption.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("required" = ["match", "route"]))]
pub struct TlsRoute {
    /// The connections that this rule takes: any one entry is enough, and inside an entry everything must hold.
    #[serde(rename = "match")]
    #[schemars(length(min = 1))]
    pub matches: Vec<TlsMatchAttributes>,
    /// The destinations of the connections, shared out by weight.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    #[schemars(length(min = 1))]
    pub route: Vec<RouteDestination>,
}

/// One rule for TCP connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("required" = ["route"]))]
pub struct TcpRoute {
    /// The connections that this rule takes: any one entry is enough, and inside an entry everything must hold. When
    /// empty, every connection.
    #[serde(rename = "match", default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub matches: Vec<L4MatchAttributes>,
    /// The destinations of the connections, shared out by weight.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    #[schemars(length(min = 1))]
    pub route: Vec<RouteDestination>,
}

/// Conditions on a TCP connection. All that are given must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct L4MatchAttributes {
    /// The address that the client connected to lies in one of these (`a.b.c.d` or `a.b.c.d/len`, IPv6 too).
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub destination_subnets: Vec<String>,
    /// The port that the client addressed.
    #[schemars(range(min = 0, max = 65535))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
    /// The client's address lies in this subnet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_subnet: Option<String>,
    /// Only for clients whose pods carry these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_empty")]
    pub source_labels: BTreeMap<String, String>,
    /// Only on these gateways (or `mesh`); overrides the `gateways` of the whole object.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub gateways: Vec<String>,
    /// Only for clients in this namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_namespace: Option<String>,
}

/// Conditions on a TLS connection. All that are given must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TlsMatchAttributes {
    /// Server names (SNI) that the client asks for; a leading `*.` matches any prefix. Each must lie within the
    /// object's `hosts`.
    #[schemars(length(min = 1), inner(length(min = 1, max = 255)))]
    pub sni_hosts: Vec<String>,
    /// The address that the client connected to lies in one of these (`a.b.c.d` or `a.b.c.d/len`, IPv6 too).
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub destination_subnets: Vec<String>,
    /// The port that the client addressed.
    #[schemars(range(min = 0, max = 65535))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
    /// Only for clients whose pods carry these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_empty")]
    pub source_labels: BTreeMap<String, String>,
    /// Only on these gateways (or `mesh`); overrides the `gateways` of the whole object.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub gateways: Vec<String>,
    /// Only for clients in this namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_namespace: Option<String>,
}

/// One of the destinations of a rule, with its share.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteDestination {
    /// The service, or subset of it.
    pub destination: Destination,
    /// The share of connections, relative to the sum over all destinations of the rule. A single destination gets
    /// everything; among several, one without a weight or with 0 gets nothing.
    #[schemars(range(min = 0, max = 2147483647))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<i32>,
}
