//! Route tables: virtual hosts by domain, routes in order, and what a route does.

use super::{
    ClusterId,
    matcher::{HeaderMatch, QueryMatch, RegexError, RegexMatch, re2_substitution},
};
use std::{collections::HashMap, sync::Arc, time::Duration};

/// Virtual hosts and the indices to find one by the request's authority.
#[derive(Debug, Default)]
pub struct RouteTable {
    /// The resource's name, e.g. `reviews.default.svc.cluster.local:9080`.
    pub name: Arc<str>,
    /// Header changes for every request and response of the table, applied after those of route and virtual host.
    pub headers: HeaderOps,
    hosts: Vec<VirtualHost>,
    exact: HashMap<Box<str>, usize>,
    /// `*.example.com` as `.example.com`, longest first.
    suffixes: Vec<(Box<str>, usize)>,
    /// `example.*` as `example.`, longest first.
    prefixes: Vec<(Box<str>, usize)>,
    any: Option<usize>,
}

/// Why a route table is refused.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// A domain stands in two virtual hosts, or twice in one.
    #[error(
        "route table `{table}`: domain `{domain}` of virtual host `{host}` is already taken; give each domain to one virtual host"
    )]
    DuplicateDomain {
        /// The table.
        table: String,
        /// The virtual host.
        host: String,
        /// The domain.
        domain: String,
    },
    /// A domain is empty or has a `*` in its middle.
    #[error(
        "route table `{table}`: domain `{domain}` of virtual host `{host}` is not a name, `*.suffix`, `prefix.*` or `*`"
    )]
    BadDomain {
        /// The table.
        table: String,
        /// The virtual host.
        host: String,
        /// The domain.
        domain: String,
    },
}

impl RouteTable {
    /// Indexes the virtual hosts by their domains.
    ///
    /// # Errors
    /// When a domain is malformed or used twice.
    pub fn new(name: impl Into<Arc<str>>, hosts: Vec<VirtualHost>, headers: HeaderOps) -> Result<Self, TableError> {
        let mut table = Self { name: name.into(), headers, ..Self::default() };
        for (index, host) in hosts.iter().enumerate() {
            for domain in &host.domains {
                let lower = domain.to_ascii_lowercase();
                let duplicate = || TableError::DuplicateDomain {
                    table: table.name.to_string(),
                    host: host.name.to_string(),
                    domain: domain.to_string(),
                };
                if lower == "*" {
                    if table.any.replace(index).is_some() {
                        return Err(duplicate());
                    }
                    continue;
                }
                let stars = lower.matches('*').count();
                let (list, part) = match (lower.strip_prefix('*'), lower.strip_suffix('*')) {
                    (Some(suffix), _) if stars == 1 => (&mut table.suffixes, suffix),
                    (None, Some(prefix)) if stars == 1 => (&mut table.prefixes, prefix),
                    (None, None) if stars == 0 && !lower.is_empty() => {
                        if table.exact.contains_key(lower.as_str()) {
                            return Err(duplicate());
                        }
                        table.exact.insert(lower.into_boxed_str(), index);
                        continue;
                    }
                    _ => {
                        return Err(TableError::BadDomain {
                            table: table.name.to_string(),
                            host: host.name.to_string(),
                            domain: domain.to_string(),
                        });
                    }
                };
                if list.iter().any(|(have, _)| have.as_ref() == part) {
                    return Err(duplicate());
                }
                list.push((part.into(), index));
            }
        }
        for list in [&mut table.suffixes, &mut table.prefixes] {
            list.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.0.cmp(&b.0)));
        }
        table.hosts = hosts;
        Ok(table)
    }

    /// Every virtual host in the order given.
    pub fn hosts(&self) -> &[VirtualHost] {
        &self.hosts
    }

    /// The virtual host of an authority, in Envoy's order: exact name, longest suffix, longest prefix, `*`. ASCII case does
    /// not matter.
    pub fn host(&self, authority: &[u8]) -> Option<&VirtualHost> {
        let index = if self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty() {
            self.any
        } else {
            self.search(authority)
        };
        index.map(|index| &self.hosts[index])
    }

    fn search(&self, authority: &[u8]) -> Option<usize> {
        /// The longest authority that is looked up; no DNS name with a port is longer.
        const MAX: usize = 272;
        let mut lower = [0u8; MAX];
        let Some(lower) = lower.get_mut(..authority.len()) else { return self.any };
        lower.copy_from_slice(authority);
        lower.make_ascii_lowercase();
        let lower: &[u8] = lower;
        let exact = std::str::from_utf8(lower).ok().and_then(|text| self.exact.get(text)).copied();
        let longer = |part: &str| lower.len() > part.len();
        exact
            .or_else(|| {
                let found = self.suffixes.iter().find(|(part, _)| longer(part) && lower.ends_with(part.as_bytes()));
                found.map(|&(_, index)| index)
            })
            .or_else(|| {
                let found = self.prefixes.iter().find(|(part, _)| longer(part) && lower.starts_with(part.as_bytes()));
                found.map(|&(_, index)| index)
            })
            .or(self.any)
    }
}

/// The routes of some domains.
#[derive(Debug, Default)]
pub struct VirtualHost {
    /// Its name.
    pub name: Arc<str>,
    /// Its domains: names (with the port if the request's authority has one), `*.suffix`, `prefix.*`, `*`.
    pub domains: Vec<Box<str>>,
    /// Tried in order; the first that matches is taken.
    pub routes: Vec<Arc<Route>>,
    /// Header changes for every request and response, applied after those of the route.
    pub headers: HeaderOps,
}

/// One route.
#[derive(Debug)]
pub struct Route {
    /// Its name, for logs.
    pub name: Arc<str>,
    /// When it applies.
    pub matches: RouteMatch,
    /// What it does.
    pub action: Action,
    /// Header changes, applied first.
    pub headers: HeaderOps,
    /// The configuration object (VirtualService) it came from.
    pub origin: Option<Arc<str>>,
}

/// When a route applies: all conditions hold.
#[derive(Debug)]
pub struct RouteMatch {
    /// The condition on the path (without query).
    pub path: PathMatch,
    /// Whether case matters in the path (not for regular expressions).
    pub case_sensitive: bool,
    /// Conditions on headers; also `:method`, `:authority`, `:scheme`.
    pub headers: Vec<HeaderMatch>,
    /// Conditions on query parameters.
    pub query: Vec<QueryMatch>,
    /// The share of requests in millionths to which the route applies; `None` is all.
    pub fraction: Option<u32>,
}

impl Default for RouteMatch {
    fn default() -> Self {
        Self { path: PathMatch::Any, case_sensitive: true, headers: Vec::new(), query: Vec::new(), fraction: None }
    }
}

/// A condition on the path.
#[derive(Debug)]
pub enum PathMatch {
    /// Every path: the prefix `/`.
    Any,
    /// Exactly this one.
    Exact(Box<str>),
    /// It begins with this.
    Prefix(Box<str>),
    /// It is this, or begins with this followed by `/`.
    SeparatedPrefix(Box<str>),
    /// The whole of it matches.
    Regex(RegexMatch),
}

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
    /// The targets; one is chosen by weight. At least one.
    pub targets: Vec<WeightedCluster>,
    /// A change of the path.
    pub path: Option<PathRewrite>,
    /// A change of the authority.
    pub host: Option<HostRewrite>,
    /// From the request's end to the response's end; `None` and zero are no limit.
    pub timeout: Option<Duration>,
    /// Replaces the connection manager's stream idle timeout; zero is no limit.
    pub idle_timeout: Option<Duration>,
    /// When a request is tried again; `None` is never.
    pub retry: Option<Arc<RetryPolicy>>,
}

/// One weighted target of a route.
#[derive(Debug)]
pub struct WeightedCluster {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its share of the sum of all weights.
    pub weight: u32,
    /// Header changes for this target, applied before the route's.
    pub headers: HeaderOps,
    /// Replaces the route's change of the authority.
    pub host: Option<HostRewrite>,
}

impl WeightedCluster {
    /// A target that takes everything, with no changes.
    pub fn all(cluster: ClusterId) -> Self {
        Self { cluster, weight: 1, headers: HeaderOps::default(), host: None }
    }
}

/// A change of the path.
#[derive(Debug)]
pub enum PathRewrite {
    /// What was matched (the prefix, or the whole path where that or an expression was asked for) becomes this.
    Prefix(Box<str>),
    /// Every match becomes the substitution.
    Regex {
        /// What is looked for.
        regex: RegexMatch,
        /// In the syntax of the regex crate.
        substitution: Box<str>,
    },
}

impl PathRewrite {
    /// A rewrite by regular expression with RE2's substitution (`\1`).
    ///
    /// # Errors
    /// When the pattern does not compile.
    pub fn regex(pattern: &str, substitution: &str) -> Result<Self, RegexError> {
        Ok(Self::Regex {
            regex: RegexMatch::searching(pattern)?,
            substitution: re2_substitution(substitution).into_boxed_str(),
        })
    }
}

/// A change of the authority.
#[derive(Debug)]
pub enum HostRewrite {
    /// To this.
    Literal(Box<str>),
    /// To the value of this header, if it is there.
    Header(Box<str>),
}

/// An answer that sends the client elsewhere.
#[derive(Debug, Default)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub code: u16,
    /// Replaces the scheme.
    pub scheme: Option<Box<str>>,
    /// Replaces the host (without port).
    pub host: Option<Box<str>>,
    /// Replaces the port.
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
    /// The body, at most 4 KiB as Envoy has it by default (the control side checks).
    pub body: Box<[u8]>,
}

/// When and how often a request is tried again. The first attempt is not counted.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// How often at most.
    pub attempts: u32,
    /// On what.
    pub on: RetryOn,
    /// Statuses of `retriable-status-codes`.
    pub statuses: Vec<u16>,
    /// Conditions of `retriable-headers` on a response's headers; one that holds is enough.
    pub headers: Vec<HeaderMatch>,
    /// A limit for each attempt, from its start to the response head; `None` is none.
    pub per_try_timeout: Option<Duration>,
    /// Prefer endpoints that were not tried yet (`previous_hosts`).
    pub avoid_tried: bool,
    /// Waits before retries: the base, doubled each time, jittered; at most `max_backoff`. Default 25 ms, 250 ms.
    pub base_backoff: Duration,
    /// The longest wait.
    pub max_backoff: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 2,
            on: RetryOn::default(),
            statuses: Vec::new(),
            headers: Vec::new(),
            per_try_timeout: None,
            avoid_tried: true,
            base_backoff: Duration::from_millis(25),
            max_backoff: Duration::from_millis(250),
        }
    }
}

/// The conditions of a retry. Connection failures, refused streams, and reused connections that were closed before
/// anything was answered to nothing sent, are always safe; the others are opted into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetryOn {
    /// Could not connect.
    pub connect_failure: bool,
    /// The endpoint refused the stream (HTTP/2).
    pub refused_stream: bool,
    /// The connection broke before any of the request was sent.
    pub reset_before_request: bool,
    /// The connection broke before a response.
    pub reset: bool,
    /// Any 5xx, or no response at all.
    pub server_error: bool,
    /// 502, 503, 504.
    pub gateway_error: bool,
    /// 409.
    pub retriable_4xx: bool,
    /// One of the policy's statuses.
    pub statuses: bool,
    /// A response with one of the policy's headers.
    pub headers: bool,
    /// gRPC status codes in a response's head, as a bit set by code.
    pub grpc_statuses: u32,
}

/// Changes of headers, in order.
#[derive(Debug, Default)]
pub struct HeaderOps {
    /// On the request.
    pub request: Vec<HeaderOp>,
    /// On the response.
    pub response: Vec<HeaderOp>,
}

impl HeaderOps {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }
}

/// One change of a header. Names are lower case; names and values were checked to be valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderOp {
    /// Replaces all values, or adds the header.
    Set(Box<str>, Box<str>),
    /// Adds a value beside those there.
    Append(Box<str>, Box<str>),
    /// Adds the header if it is not there.
    AddIfAbsent(Box<str>, Box<str>),
    /// Replaces all values if it is there.
    SetIfPresent(Box<str>, Box<str>),
    /// Removes it.
    Remove(Box<str>),
}
