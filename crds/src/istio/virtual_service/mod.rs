//! `VirtualService`: how requests and connections for a host are routed.
//!
//! The types mirror what Istio 1.31 serves in `networking.istio.io`, field for field, so that manifests written for it
//! apply unchanged. They are plain data: what a field *does* is decided in `convert`, which takes these structs apart
//! exhaustively. Every field is optional or a collection unless Istio requires it, and an absent field stays absent
//! when the object is written back. Empty lists and maps mean the same as absent ones, here as in Istio.

mod action;
mod http;
mod l4;
mod rules;

pub use action::{
    CorsPolicy, FaultAbort, FaultDelay, HttpBody, HttpDirectResponse, HttpFaultInjection, HttpRedirect, HttpRetry,
    HttpRewrite, RedirectPortSelection, RegexRewrite, UnmatchedPreflights,
};
pub use http::{
    HeaderOperations, Headers, HttpMatchRequest, HttpMirrorPolicy, HttpRoute, HttpRouteDestination, StringMatch,
    StringMatchKind,
};
pub use l4::{L4MatchAttributes, RouteDestination, TcpRoute, TlsMatchAttributes, TlsRoute};

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::null::null_as_empty;
use super::number::whole_as_integer;
use super::status::IstioStatus;

/// Routes traffic for one or more hosts: by path, headers, weights and more for HTTP, by server name for TLS, by port
/// and address for TCP.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "networking.istio.io",
    version = "v1",
    kind = "VirtualService",
    plural = "virtualservices",
    singular = "virtualservice",
    shortname = "vs",
    namespaced,
    status = "IstioStatus",
    schema = "disabled",
    derive = "Default",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::schema::rules(rules::SPEC)))]
pub struct VirtualServiceSpec {
    /// The hosts whose traffic these rules route: service names, DNS names (a leading `*.` matches any prefix), or IP
    /// addresses. A name without dots is a service in this object's own namespace; full names
    /// (`reviews.default.svc.cluster.local`) leave no doubt. Empty only for a VirtualService that others delegate to.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    // No list may be longer than fits into a request (3 MiB): the bounds here and below refuse nothing, and let the API
    // server estimate what rules about the lists can cost.
    #[schemars(length(max = 524288), inner(length(min = 1, max = 255)))]
    pub hosts: Vec<String>,
    /// Where the rules apply: names of Gateways (`name` or `namespace/name`), and the reserved word `mesh` for all
    /// sidecars. When empty, `mesh`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    #[schemars(length(max = 786432))]
    pub gateways: Vec<String>,
    /// Routes for HTTP traffic (HTTP/1.1, HTTP/2, gRPC), tried in order; the first that matches is used. They apply to
    /// service ports whose protocol is HTTP, by `appProtocol`, by port name (`http-*`, `http2-*`, `grpc-*`), or
    /// detected.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    #[schemars(length(max = 131072))]
    pub http: Vec<HttpRoute>,
    /// Routes for TLS traffic that is not decrypted on the way, chosen by the server name (SNI) that the client asks
    /// for. Tried in order; the first that matches is used.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub tls: Vec<TlsRoute>,
    /// Routes for all other TCP traffic, tried in order; the first that matches is used.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub tcp: Vec<TcpRoute>,
    /// The namespaces whose workloads see this object: names, `.` for its own namespace, `*` for all. When empty, all.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    #[schemars(schema_with = "crate::schema::export_to")]
    pub export_to: Vec<String>,
}

/// A service, or a subset of it, that traffic is sent to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// The service's name in the registry. A name without dots is a service in this object's own namespace; prefer full
    /// names such as `reviews.default.svc.cluster.local`.
    #[schemars(schema_with = "crate::schema::destination_host")]
    pub host: String,
    /// A subset of the service, declared in its DestinationRule (for example `v2`).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = "^([a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?)?$"))]
    pub subset: Option<String>,
    /// The port of the service. Needed only when the service has more than one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<PortSelector>,
}

/// A service port, by number.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PortSelector {
    /// The port number, 1 to 65535.
    #[schemars(range(min = 1, max = 65535))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
}

/// A share of traffic in percent, with fractions: `0.1` is one request in a thousand.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Percent {
    /// From 0 to 100.
    #[schemars(range(min = 0, max = 100))]
    #[serde(skip_serializing_if = "Option::is_none", default, serialize_with = "whole_as_integer")]
    pub value: Option<f64>,
}

/// The VirtualService whose HTTP routes take the place of this one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Delegate {
    /// The name of the VirtualService to delegate to. It must have no `hosts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its namespace. When empty, this object's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}
