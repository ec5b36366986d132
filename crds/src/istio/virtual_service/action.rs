//! What an HTTP rule does to its requests besides choosing a destination: redirects, fixed answers, rewrites, retries,
//! CORS and injected faults.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Percent, StringMatch, rules};
use crate::istio::duration::IstioDuration;
use crate::istio::null::null_as_empty;

/// An answer that sends the client to another address. Parts that are not given stay as in the request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("oneOf" = crate::schema::at_most_one(&["port", "derivePort"])))]
#[schemars(extend("x-kubernetes-validations" = crate::schema::rules(rules::REDIRECT)))]
pub struct HttpRedirect {
    /// The new path; replaces the whole path, whatever the match was. Not together with `prefixRewrite`.
    #[schemars(regex(pattern = crate::schema::IN_REQUESTS))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// The new authority (host).
    #[schemars(regex(pattern = crate::schema::IN_REQUESTS))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// The new port. Not together with `derivePort`.
    #[schemars(range(min = 0, max = 65535))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
    /// Where the port comes from when `port` is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub derive_port: Option<RedirectPortSelection>,
    /// The new scheme, `http` or `https`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["", "http", "https"]))]
    pub scheme: Option<String>,
    /// The status to answer with; when absent, 301 (Moved Permanently).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect_code: Option<u32>,
    /// Replaces the matched prefix of the path; the rule must match by `prefix`. Not together with `uri`.
    #[schemars(regex(pattern = crate::schema::IN_REQUESTS))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix_rewrite: Option<String>,
}

/// Where the port of a redirect comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RedirectPortSelection {
    /// 80 for http, 443 for https.
    FromProtocolDefault,
    /// The port that the request was sent to.
    FromRequestPort,
}

/// A fixed answer that no service is asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpDirectResponse {
    /// The HTTP status, for example 503.
    #[schemars(range(min = 200, max = 600))]
    pub status: u32,
    /// The body. When absent, empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<HttpBody>,
}

/// The body of a fixed answer: `string` or `bytes`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("oneOf" = crate::schema::at_most_one(&["string", "bytes"])))]
pub struct HttpBody {
    /// The body as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub string: Option<String>,
    /// The body as base64.
    #[schemars(extend("format" = "byte"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<String>,
}

/// Changes to path and authority before a request is forwarded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::schema::rules(rules::REWRITE)))]
pub struct HttpRewrite {
    /// The new path. If the rule matched by `prefix`, only that prefix is replaced.
    #[schemars(regex(pattern = crate::schema::IN_REQUESTS))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// The new authority (`Host` header).
    #[schemars(regex(pattern = crate::schema::IN_REQUESTS))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// Rewrite the path by a regular expression. Not together with `uri`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uri_regex_rewrite: Option<RegexRewrite>,
}

/// A path rewrite by regular expression.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("required" = ["match", "rewrite"]))]
pub struct RegexRewrite {
    /// The regular expression (RE2 syntax); all parts of the path that match are replaced.
    #[serde(rename = "match")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub pattern: Option<String>,
    /// The replacement; `\1` is the first group of the expression.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), regex(pattern = crate::schema::IN_REQUESTS))]
    pub rewrite: Option<String>,
}

/// When and how often a failed request is tried again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::schema::rules(rules::RETRY)))]
pub struct HttpRetry {
    /// How often at most a request is tried again; 0 is never. The intervals between tries grow from `backoff`.
    #[schemars(range(min = 0, max = 2147483647))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<i32>,
    /// The time limit of each try, the first included, at least `1ms`. When absent, the route's `timeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<IstioDuration>,
    /// What counts as a failure worth another try: a comma-separated list of conditions (`connect-failure`,
    /// `refused-stream`, `reset`, `5xx`, `gateway-error`, `unavailable`, `cancelled` and others) and HTTP statuses
    /// (`503`). When absent: `connect-failure,refused-stream,unavailable,cancelled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_on: Option<String>,
    /// Whether tries may go to endpoints in other localities.
    #[schemars(extend("nullable" = true))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_remote_localities: Option<bool>,
    /// Whether tries avoid the endpoints that failed already. When absent, true.
    #[schemars(extend("nullable" = true))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_ignore_previous_hosts: Option<bool>,
    /// The shortest interval between tries. When absent, 25ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<IstioDuration>,
}

/// Which other web origins may call a route from a browser (Cross-Origin Resource Sharing).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CorsPolicy {
    /// Deprecated: use `allowOrigins`. Origins that may call, compared exactly; `*` is any.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub allow_origin: Vec<String>,
    /// Origins that may call; any match is enough.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    #[schemars(schema_with = "crate::schema::origins")]
    pub allow_origins: Vec<StringMatch>,
    /// Methods that they may use (`Access-Control-Allow-Methods`).
    #[schemars(schema_with = "crate::schema::header_values")]
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub allow_methods: Vec<String>,
    /// Request headers that they may send (`Access-Control-Allow-Headers`).
    #[schemars(schema_with = "crate::schema::header_values")]
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub allow_headers: Vec<String>,
    /// Response headers that they may read (`Access-Control-Expose-Headers`).
    #[schemars(schema_with = "crate::schema::header_values")]
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub expose_headers: Vec<String>,
    /// How long a browser may remember the answer to its preflight request (`Access-Control-Max-Age`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<IstioDuration>,
    /// Whether the request may carry credentials (`Access-Control-Allow-Credentials`).
    #[schemars(extend("nullable" = true))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_credentials: Option<bool>,
    /// What happens to preflight requests from origins that are not allowed. When absent, they are forwarded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unmatched_preflights: Option<UnmatchedPreflights>,
}

/// What happens to preflight requests from origins that are not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum UnmatchedPreflights {
    /// As `FORWARD`.
    Unspecified,
    /// They reach the service.
    Forward,
    /// They are answered by the proxy and do not reach the service.
    Ignore,
}

/// Faults to inject into a share of the requests, to test how callers cope. Delay and abort are drawn independently.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::schema::rules(rules::FAULT)))]
pub struct HttpFaultInjection {
    /// Hold requests back before they are forwarded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<FaultDelay>,
    /// Answer requests with an error instead of forwarding them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort: Option<FaultAbort>,
}

/// A delay for a share of the requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("oneOf" = crate::schema::at_most_one(&["fixedDelay", "exponentialDelay"])))]
#[schemars(extend("x-kubernetes-validations" = crate::schema::rules(rules::FAULT_DELAY)))]
pub struct FaultDelay {
    /// Deprecated: use `percentage`. The share of requests that are delayed, as a whole percentage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<i32>,
    /// How long each is delayed, at least `1ms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fixed_delay: Option<IstioDuration>,
    /// Not supported by Istio either: the mean of an exponentially distributed delay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exponential_delay: Option<IstioDuration>,
    /// The share of requests that are delayed. When absent, none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percentage: Option<Percent>,
}

/// An error for a share of the requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("oneOf" = crate::schema::at_most_one(&["httpStatus", "grpcStatus", "http2Error"])))]
#[schemars(extend("x-kubernetes-validations" = crate::schema::rules(rules::FAULT_ABORT)))]
pub struct FaultAbort {
    /// The HTTP status to answer with.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 200, max = 600))]
    pub http_status: Option<i32>,
    /// The gRPC status to answer with, by name, for example `UNAVAILABLE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<String>,
    /// Not supported by Istio either: an HTTP/2 error code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http2_error: Option<String>,
    /// The share of requests that fail. When absent, none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percentage: Option<Percent>,
}
