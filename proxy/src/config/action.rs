//! What a route does with a request.

use super::{
    ClusterId, FilterSettings, HeaderOps, Labels, Priority, RetryPolicy, UriTemplate,
    hash::HashPolicy,
    matcher::{RegexError, RegexMatch, re2_substitution},
    ratelimit::RateLimitPolicy,
};
use crate::telemetry::LogFormat;
use std::{sync::Arc, time::Duration};

/// What a route does.
#[derive(Debug)]
pub enum Action {
    /// Sends the request on.
    Forward(Box<Forward>),
    /// Answers with a redirect.
    Redirect(Box<Redirect>),
    /// Answers by itself.
    Direct(DirectResponse),
}

/// Sends a request to a cluster.
#[derive(Debug, Default)]
pub struct Forward {
    /// The targets; one is chosen by weight. At least one, unless `cluster_header` names it.
    pub targets: Vec<WeightedCluster>,
    /// The cluster is named by this header of the request; lower case.
    pub cluster_header: Option<Box<str>>,
    /// What a target is chosen by among several.
    pub choice: TargetChoice,
    /// The status when the cluster does not exist; 0 is 503.
    pub no_cluster_code: u16,
    /// A change of the path.
    pub path: Option<PathRewrite>,
    /// A change of the authority.
    pub host: Option<HostRewrite>,
    /// The authority that a change replaces is appended to `x-forwarded-host`.
    pub append_forwarded_host: bool,
    /// From the request's end to the response's end; `None` and zero are no limit.
    pub timeout: Option<Duration>,
    /// How a gRPC client's own limit counts.
    pub grpc_timeout: GrpcTimeout,
    /// From the request's beginning to the response's end; zero is no limit.
    pub max_duration: Option<Duration>,
    /// Replaces the connection manager's stream idle timeout; zero is no limit.
    pub idle_timeout: Option<Duration>,
    /// As [`HttpManager::flush_timeout`](super::HttpManager::flush_timeout), instead of the manager's.
    pub flush_timeout: Option<Duration>,
    /// When a request is tried again; `None` is never (unless the request asks for it).
    pub retry: Option<Arc<RetryPolicy>>,
    /// Bytes of a request's body that are kept for another attempt; `None` is 1 MiB.
    pub replay_limit: Option<u64>,
    /// Copies of requests that go elsewhere; their answers are thrown away.
    pub mirrors: Vec<Mirror>,
    /// Whose circuit breakers of the cluster count.
    pub priority: Priority,
    /// Labels that the endpoint must have, in clusters with subsets.
    pub labels: Option<Arc<Labels>>,
    /// What an endpoint is chosen by where the cluster's balancing hashes.
    pub hash: Vec<HashPolicy>,
    /// Redirects of the endpoint that are followed here.
    pub internal_redirect: Option<InternalRedirect>,
    /// Protocols to which requests of this route may be upgraded (lower case), or not; replaces what the connection manager
    /// says for each that is named.
    pub upgrades: Vec<(Box<str>, bool)>,
    /// A CONNECT ends here and its bytes go on; `None` sends the request on as any other.
    pub connect: Option<ConnectHere>,
    /// What requests count against limits of rates.
    pub rate_limits: Vec<RateLimitPolicy>,
    /// The virtual host's `rate_limits` count too.
    pub include_host_rate_limits: bool,
}

/// Which requests end here, so that the endpoint gets the bytes of their tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConnectHere {
    /// Beside CONNECT also POST, whose body is the tunnel.
    pub allow_post: bool,
}

/// What a target is chosen by among several.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub enum TargetChoice {
    /// Chance.
    #[default]
    Random,
    /// The number in this header (lower case), chance without one.
    Header(Box<str>),
    /// The route's hash, chance without one.
    Hash,
}

/// How the header `grpc-timeout` counts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum GrpcTimeout {
    /// It does not.
    #[default]
    Ignored,
    /// It does not, and tells the endpoint how long the stream may last (`max_stream_duration`).
    Told,
    /// As the route's timeout, from the end of the request on (`max_grpc_timeout`).
    Timeout {
        /// The most that counts; zero is no bound.
        max: Duration,
        /// Taken off, where more than that is left.
        offset: Duration,
    },
    /// As the longest duration of the stream (`max_stream_duration.grpc_timeout_header_max`).
    Stream {
        /// The most that counts; zero is no bound.
        max: Duration,
        /// Taken off.
        offset: Duration,
    },
}

/// One weighted target of a route.
#[derive(Debug)]
pub struct WeightedCluster {
    /// The cluster; ignored where `cluster_header` is set.
    pub cluster: ClusterId,
    /// The cluster is named by this header of the request; lower case.
    pub cluster_header: Option<Box<str>>,
    /// Its share of the sum of all weights.
    pub weight: u32,
    /// Header changes for this target, applied before the route's.
    pub headers: HeaderOps,
    /// Settings of filters, looked at before all others.
    pub filters: FilterSettings,
    /// Becomes the authority, before the route changes it.
    pub host: Option<Box<str>>,
    /// Labels that the endpoint must have, with those of the route.
    pub labels: Option<Arc<Labels>>,
}

impl WeightedCluster {
    /// A target that takes everything, with no changes.
    pub fn all(cluster: ClusterId) -> Self {
        Self {
            cluster,
            cluster_header: None,
            weight: 1,
            headers: HeaderOps::default(),
            filters: FilterSettings::default(),
            host: None,
            labels: None,
        }
    }
}

/// A copy of requests.
#[derive(Debug)]
pub struct Mirror {
    /// Where to; ignored where `cluster_header` is set.
    pub cluster: ClusterId,
    /// The cluster is named by this header of the request; lower case.
    pub cluster_header: Option<Box<str>>,
    /// The share of requests in millionths.
    pub fraction: u32,
    /// The authority ends in `-shadow` (before the port).
    pub suffix: bool,
    /// Replaces the authority.
    pub host: Option<Box<str>>,
    /// Changes of the copy's headers.
    pub headers: Vec<super::HeaderOp>,
    /// Whether the copy's endpoint is told that it is sampled; `None` is as the request is.
    pub sampled: Option<bool>,
}

/// Which redirects of an endpoint are followed here.
#[derive(Debug)]
pub struct InternalRedirect {
    /// How many for one request; default 1.
    pub max: u32,
    /// The statuses that are followed; default 302.
    pub codes: Vec<u16>,
    /// Also from `http` to `https` and back.
    pub cross_scheme: bool,
    /// Headers of the redirect that are copied to the new request; lower case.
    pub copied_headers: Vec<Box<str>>,
    /// What must hold for the route that it leads to.
    pub predicates: Vec<RedirectPredicate>,
}

/// Whether a redirect that leads to some route may be followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedirectPredicate {
    /// Only if this request was not led from the same route to that one before.
    PreviousRoutes,
    /// Only to routes of these names.
    AllowedRoutes(Vec<Box<str>>),
    /// Not from `http` to `https`.
    SafeCrossScheme,
}

/// A change of the path.
#[derive(Debug)]
pub enum PathRewrite {
    /// What was matched (the prefix, or the whole path where that or an expression was asked for) becomes this.
    Prefix(Box<str>),
    /// Every match becomes the substitution.
    Regex(RegexRewrite),
    /// The path becomes this template, with what the route's own template found.
    Template(UriTemplate),
}

impl PathRewrite {
    /// A rewrite by regular expression with RE2's substitution (`\1`).
    ///
    /// # Errors
    /// When the pattern does not compile.
    pub fn regex(pattern: &str, substitution: &str) -> Result<Self, RegexError> {
        RegexRewrite::new(pattern, substitution).map(Self::Regex)
    }
}

/// A regular expression and what each of its matches becomes.
#[derive(Debug)]
pub struct RegexRewrite {
    regex: RegexMatch,
    /// In the syntax of the regex crate; `None` replaces nothing.
    substitution: Option<Box<str>>,
}

impl RegexRewrite {
    /// With RE2's substitution (`\1`).
    ///
    /// # Errors
    /// When the pattern does not compile.
    pub fn new(pattern: &str, substitution: &str) -> Result<Self, RegexError> {
        let regex = RegexMatch::searching(pattern)?;
        let substitution = re2_substitution(substitution, &regex).map(Into::into);
        Ok(Self { regex, substitution })
    }

    /// The text with every match replaced.
    pub fn apply(&self, text: &[u8]) -> Vec<u8> {
        match &self.substitution {
            Some(substitution) => self.regex.replace_all(text, substitution),
            None => text.to_vec(),
        }
    }
}

/// A change of the authority.
#[derive(Debug)]
pub enum HostRewrite {
    /// To this.
    Literal(Box<str>),
    /// To this text with what is known of the request.
    Format(Arc<LogFormat>),
    /// To the value of this header, if it is there and not empty.
    Header(Box<str>),
    /// To what the path (without query) becomes.
    Path(RegexRewrite),
    /// To the chosen endpoint's name, if it has one.
    Endpoint,
}

/// An answer that sends the client elsewhere.
#[derive(Debug, Default)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub code: u16,
    /// Replaces the scheme.
    pub scheme: Option<Box<str>>,
    /// Replaces the host, with its port.
    pub host: Option<Box<str>>,
    /// Replaces the port, or is appended to a replaced host.
    pub port: Option<u16>,
    /// Replaces the whole path (a query of its own in it is kept).
    pub path: Option<Box<str>>,
    /// Changes the path otherwise.
    pub rewrite: Option<PathRewrite>,
    /// Leaves out the query.
    pub strip_query: bool,
}

/// An answer given by the proxy.
#[derive(Debug)]
pub struct DirectResponse {
    /// The status.
    pub code: u16,
    /// The body, at most 4 KiB unless the table says otherwise (the control side checks).
    pub body: Box<[u8]>,
    /// How the body is written, which stands in it as `%LOCAL_REPLY_BODY%`.
    pub format: Option<Arc<LogFormat>>,
    /// The `content-type`, whatever the route adds; none leaves it to that.
    pub content_type: Option<Arc<str>>,
}
