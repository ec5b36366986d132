//! HTTP routes: what a request must look like, and where it then goes.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    CorsPolicy, Delegate, Destination, HttpDirectResponse, HttpFaultInjection, HttpRedirect, HttpRetry, HttpRewrite,
    Percent, rules,
};
use crate::istio::duration::IstioDuration;
use crate::istio::null::null_as_empty;

/// One HTTP rule: which requests it takes, what happens to them, and where they go. Exactly one of `route`, `redirect`,
/// `directResponse` or `delegate` says where.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::schema::rules(rules::HTTP_ROUTE)))]
pub struct HttpRoute {
    /// A name for this route, seen in logs and status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The requests that this rule takes: any one entry is enough, and inside an entry everything must hold. When
    /// empty, every request.
    #[serde(rename = "match", default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub matches: Vec<HttpMatchRequest>,
    /// The destinations of the requests, shared out by weight.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub route: Vec<HttpRouteDestination>,
    /// Answer with a redirect to another address instead of forwarding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<HttpRedirect>,
    /// Answer with a fixed status and body instead of forwarding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_response: Option<HttpDirectResponse>,
    /// Take the routes from another VirtualService, under this rule's matches. One level only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delegate: Option<Delegate>,
    /// Change path or authority before the request is forwarded. Not together with `redirect`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<HttpRewrite>,
    /// How long the whole request may take, retries included, for example `5s` or `1m30s`. When absent, no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<IstioDuration>,
    /// When and how often a failed request is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<HttpRetry>,
    /// Faults to inject on purpose, to test how callers cope. Not together with `redirect`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<HttpFaultInjection>,
    /// Send a copy of each request to this destination too; its answers are thrown away. `mirrorPercentage` sets the
    /// share. For more than one use `mirrors`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Destination>,
    /// Send copies of requests to these destinations too; their answers are thrown away.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub mirrors: Vec<HttpMirrorPolicy>,
    /// Deprecated: use `mirrorPercentage`. The share of requests that `mirror` copies, as a whole percentage.
    #[schemars(range(min = 0, max = 100))]
    #[schemars(extend("nullable" = true))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror_percent: Option<u32>,
    /// Deprecated: use `mirrorPercentage`. Another spelling of `mirrorPercent`.
    #[schemars(range(min = 0, max = 100))]
    #[schemars(extend("nullable" = true))]
    #[serde(rename = "mirror_percent", skip_serializing_if = "Option::is_none")]
    pub mirror_percent_snake_case: Option<u32>,
    /// The share of requests that `mirror` copies. When absent, all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror_percentage: Option<Percent>,
    /// Which other web origins may call this route from a browser (CORS).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cors_policy: Option<CorsPolicy>,
    /// Headers to set, add or remove on requests and responses of this rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<Headers>,
}

/// Conditions on a request. All that are given must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpMatchRequest {
    /// A name for this match, seen in logs beside the route's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The path, without the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::uri_match")]
    pub uri: Option<StringMatch>,
    /// The scheme, `http` or `https`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<StringMatch>,
    /// The method, for example `GET`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<StringMatch>,
    /// The authority: the `Host` header, or `:authority` in HTTP/2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<StringMatch>,
    /// Header values, by header name in lower case. An empty match (`{}`) asks only that the header is there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_empty")]
    pub headers: BTreeMap<String, StringMatch>,
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
    /// Values of query parameters, by name. `?key` without a value is `exact: ""`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_empty")]
    pub query_params: BTreeMap<String, StringMatch>,
    /// Compare `exact` and `prefix` paths without regard to case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore_uri_case: Option<bool>,
    /// As `headers`, but none of these may match. An empty match (`{}`) asks that the header is absent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_empty")]
    pub without_headers: BTreeMap<String, StringMatch>,
    /// Only for clients in this namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = "^([a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?)?$"))]
    pub source_namespace: Option<String>,
    /// A prefix for proxy statistics of this route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stat_prefix: Option<String>,
}

/// How a text is compared: `exact`, `prefix` or `regex`, at most one of them. Case matters, but for `(?i)` in a regex.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("oneOf" = crate::schema::at_most_one(&["exact", "prefix", "regex"])))]
pub struct StringMatch {
    /// The whole text is equal to this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    /// The text begins with this.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub prefix: Option<String>,
    /// The whole text matches this regular expression (RE2 syntax).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub regex: Option<String>,
}

/// What a [`StringMatch`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StringMatchKind<'a> {
    /// Nothing is asked of the value: it only has to be there.
    Present,
    /// The whole text is equal.
    Exact(&'a str),
    /// The text begins with it.
    Prefix(&'a str),
    /// The whole text matches the RE2 expression.
    Regex(&'a str),
}

impl StringMatch {
    /// The one kind of comparison that is asked for, or `None` when there is more than one (which the schema refuses,
    /// but a folder of YAML may contain).
    pub fn kind(&self) -> Option<StringMatchKind<'_>> {
        match (&self.exact, &self.prefix, &self.regex) {
            (None, None, None) => Some(StringMatchKind::Present),
            (Some(exact), None, None) => Some(StringMatchKind::Exact(exact)),
            (None, Some(prefix), None) => Some(StringMatchKind::Prefix(prefix)),
            (None, None, Some(regex)) => Some(StringMatchKind::Regex(regex)),
            _ => None,
        }
    }
}

/// One of the destinations of a rule, with its share.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpRouteDestination {
    /// The service, or subset of it.
    pub destination: Destination,
    /// The share of requests, relative to the sum over all destinations of the rule (they need not add up to 100). A
    /// single destination gets everything; among several, one without a weight or with 0 gets nothing.
    #[schemars(range(min = 0, max = 2147483647))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<i32>,
    /// Headers to set, add or remove for this destination only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<Headers>,
}

/// A destination for copies of requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpMirrorPolicy {
    /// The service, or subset of it, that gets the copies.
    pub destination: Destination,
    /// The share of requests that are copied. When absent, all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percentage: Option<Percent>,
}

/// Changes to the headers of requests and responses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Headers {
    /// Changes to requests, before they are forwarded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<HeaderOperations>,
    /// Changes to responses, before they reach the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<HeaderOperations>,
}

/// Headers to set, add and remove.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderOperations {
    /// Headers to set, by name; an existing value is replaced.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_empty")]
    pub set: BTreeMap<String, String>,
    /// Headers to add, by name; existing values stay.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_empty")]
    pub add: BTreeMap<String, String>,
    /// Names of headers to remove.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub remove: Vec<String>,
}
