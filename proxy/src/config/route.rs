//! Route tables: virtual hosts by domain, routes in order, and what a route does.

use super::{
    Action, Decorator, FilterSettings, HeaderOps, Metadata, MetadataMatch, RouteTracing, UriTemplate,
    matcher::{HeaderMatch, QueryMatch, RegexMatch, StringMatch},
    ratelimit::RateLimitPolicy,
};
use crate::telemetry::requests::RequestGroup;
use std::{collections::HashMap, sync::Arc};

/// Virtual hosts and the indices to find one by the request's authority.
#[derive(Debug, Default)]
pub struct RouteTable {
    /// The resource's name, e.g. `reviews.default.svc.cluster.local:9080`.
    pub name: Arc<str>,
    /// Header changes for every request and response of the table, applied after those of route and virtual host.
    pub headers: HeaderOps,
    /// How the table is searched and applied beside its virtual hosts.
    pub options: TableOptions,
    /// Settings of filters for the whole table; those of virtual hosts and routes come first.
    pub filters: FilterSettings,
    /// Something in it asks for what filters find out.
    pub asks_dynamic: bool,
    hosts: Vec<VirtualHost>,
    exact: HashMap<Box<str>, usize>,
    /// `*.example.com` as `.example.com`, longest first.
    suffixes: Vec<(Box<str>, usize)>,
    /// `example.*` as `example.`, longest first.
    prefixes: Vec<(Box<str>, usize)>,
    any: Option<usize>,
}

/// How a route table is searched and applied.
#[derive(Debug, Default)]
pub struct TableOptions {
    /// The port in a request's authority does not matter when a virtual host is looked up.
    pub ignore_port: bool,
    /// Virtual hosts are looked up by this header instead of the authority; lower case.
    pub host_header: Option<Box<str>>,
    /// Paths are compared without what follows their first `;`.
    pub ignore_path_parameters: bool,
    /// Header changes go from the table's to the route's, so that the most specific one is made last.
    pub most_specific_headers_win: bool,
    /// Headers that are taken from requests of clients outside; lower case.
    pub internal_only: Box<[Box<str>]>,
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
}

impl RouteTable {
    /// Indexes the virtual hosts by their domains.
    ///
    /// # Errors
    /// When a domain is used twice.
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
                // A star elsewhere than at an end is a character like others, as for Envoy.
                let (list, part) = match (lower.strip_prefix('*'), lower.strip_suffix('*')) {
                    (Some(suffix), _) => (&mut table.suffixes, suffix),
                    (None, Some(prefix)) => (&mut table.prefixes, prefix),
                    (None, None) => {
                        if table.exact.contains_key(lower.as_str()) {
                            return Err(duplicate());
                        }
                        table.exact.insert(lower.into_boxed_str(), index);
                        continue;
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
    pub fn host(&self, authority: Option<&[u8]>) -> Option<&VirtualHost> {
        let index = if self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty() {
            self.any
        } else {
            authority.and_then(|authority| self.search(authority))
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
    /// Settings of filters; those of the routes come first.
    pub filters: FilterSettings,
    /// Who is sent to `https` when not there already.
    pub require_tls: RequireTls,
    /// Tell endpoints the number of the attempt (`x-envoy-attempt-count`).
    pub attempt_count_in_request: bool,
    /// Tell clients the number of attempts.
    pub attempt_count_in_response: bool,
    /// Tell endpoints that the attempt before ran into its limit (`x-envoy-is-timeout-retry`).
    pub timeout_retry_in_request: bool,
    /// What requests count against limits of rates, unless the route says it.
    pub rate_limits: Vec<RateLimitPolicy>,
    /// Of which lines may speak.
    pub metadata: Option<Metadata>,
    /// Requests that are counted together: the first that fits counts, the last one fits all. Mostly there is none.
    pub virtual_clusters: Vec<VirtualCluster>,
}

/// Requests of a virtual host that are counted together.
#[derive(Debug)]
pub struct VirtualCluster {
    /// Those on which all of these hold.
    pub headers: Vec<HeaderMatch>,
    /// What is counted.
    pub group: Arc<RequestGroup>,
}

/// Who is sent to `https` when not there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RequireTls {
    /// Nobody.
    #[default]
    Nobody,
    /// Requests that come from outside (without `x-envoy-internal: true`).
    External,
    /// Everybody.
    All,
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
    /// Settings of filters, the first that are looked at but for those of a weighted target.
    pub filters: FilterSettings,
    /// The configuration object (VirtualService) it came from.
    pub origin: Option<Arc<str>>,
    /// How its requests are traced, where the manager traces.
    pub tracing: Option<Box<RouteTracing>>,
    /// What it is named in traces.
    pub decorator: Option<Box<Decorator>>,
    /// Of which lines may speak.
    pub metadata: Option<Metadata>,
    /// Counts its requests apart.
    pub group: Option<Arc<RequestGroup>>,
}

impl Route {
    /// A route without header changes and settings of filters.
    pub fn new(name: &str, matches: RouteMatch, action: Action) -> Self {
        Self {
            name: name.into(),
            matches,
            action,
            headers: HeaderOps::default(),
            filters: FilterSettings::default(),
            origin: None,
            tracing: None,
            decorator: None,
            metadata: None,
            group: None,
        }
    }
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
    /// Conditions on cookies.
    pub cookies: Vec<CookieMatch>,
    /// Conditions on what filters found out: nothing yet, but where an endpoint's redirect shows the way to a route.
    pub metadata: Vec<MetadataMatch>,
    /// Only gRPC calls.
    pub grpc: bool,
    /// Whether the client showed a certificate.
    pub certificate_presented: Option<bool>,
    /// Whether the client showed a certificate that was verified.
    pub certificate_validated: Option<bool>,
    /// The share of requests in millionths to which the route applies; `None` is all.
    pub fraction: Option<u32>,
}

/// A condition on a cookie.
#[derive(Debug)]
pub struct CookieMatch {
    /// The cookie's name.
    pub name: Box<str>,
    /// What its value must be.
    pub test: StringMatch,
    /// The condition holds when the test does not; also where there is no such cookie.
    pub invert: bool,
}

impl Default for RouteMatch {
    fn default() -> Self {
        Self {
            path: PathMatch::Any,
            case_sensitive: true,
            headers: Vec::new(),
            query: Vec::new(),
            cookies: Vec::new(),
            metadata: Vec::new(),
            grpc: false,
            certificate_presented: None,
            certificate_validated: None,
            fraction: None,
        }
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
    /// It fits a template such as `/v1/{name}/*`.
    Template(UriTemplate),
    /// Any target of the method CONNECT.
    Connect,
}
