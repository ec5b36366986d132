//! Routing rules as an operator of services writes them: what a request must look like, and what then happens to it.
//!
//! Hosts are full names here, durations are durations, and every regular expression compiles.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::host::{Host, HostPattern};
use crate::object::{ObjectKey, ObjectRef};
use crate::policy::ExportTo;
use crate::service::Labels;

/// Routes for some hosts: an Istio VirtualService, or what comes to the same. Without hosts, rules for others to take over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteRules {
    /// The object that says so.
    pub origin: ObjectRef,
    /// Its generation.
    pub generation: i64,
    /// When it was made, in milliseconds since the Unix epoch: the oldest wins.
    pub created: i64,
    /// The hosts, in the order written.
    pub hosts: Vec<HostPattern>,
    /// Which namespaces see it.
    pub export_to: ExportTo,
    /// Rules for HTTP; the first that matches is used.
    pub http: Vec<HttpRule>,
    /// Rules for TLS that is passed on unopened; the first that matches is used.
    pub tls: Vec<TlsRule>,
    /// Rules for TCP; the first that matches is used.
    pub tcp: Vec<TcpRule>,
}

impl RouteRules {
    /// Whether there is any rule.
    pub fn is_empty(&self) -> bool {
        self.http.is_empty() && self.tls.is_empty() && self.tcp.is_empty()
    }

    /// Every condition on clients.
    pub fn clients(&self) -> impl Iterator<Item = &ClientMatch> {
        let http = self.http.iter().flat_map(|rule| rule.matches.iter().flatten()).map(|entry| &entry.client);
        let tls = self.tls.iter().flat_map(|rule| &rule.matches).map(|entry| &entry.client);
        let tcp = self.tcp.iter().flat_map(|rule| rule.matches.iter().flatten()).map(|entry| &entry.client);
        http.chain(tls).chain(tcp)
    }
}

/// One HTTP rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HttpRule {
    /// Its name; may be empty.
    pub name: String,
    /// The path of the rule in its object, for findings: `spec.http[0]`.
    pub field: String,
    /// The object and generation that it was taken over from, when that is another than the rules'.
    pub taken_from: Option<(ObjectRef, i64)>,
    /// Any of these must match; `None` matches everything.
    pub matches: Option<Vec<HttpMatch>>,
    /// What happens then.
    pub action: HttpAction,
    /// Changes to headers.
    pub headers: HeaderChanges,
    /// Faults to inject.
    pub fault: Option<Fault>,
    /// Who may call from a browser.
    pub cors: Option<Cors>,
}

/// How a text is compared. Regular expressions follow RE2 and match the whole text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TextMatch {
    /// It only has to be there.
    Present,
    /// It is equal.
    Exact(String),
    /// It begins with this.
    Prefix(String),
    /// The whole of it matches.
    Regex(String),
}

/// Conditions on a request; all must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HttpMatch {
    /// Its name; may be empty.
    pub name: String,
    /// The path without the query.
    pub path: Option<TextMatch>,
    /// Whether upper and lower case are the same in `path`, unless it is a regular expression.
    pub ignore_path_case: bool,
    /// The scheme.
    pub scheme: Option<TextMatch>,
    /// The method.
    pub method: Option<TextMatch>,
    /// The authority.
    pub authority: Option<TextMatch>,
    /// Headers that must match, by name in lower case.
    pub headers: BTreeMap<String, TextMatch>,
    /// Headers that must not match.
    pub without_headers: BTreeMap<String, TextMatch>,
    /// Query parameters.
    pub query: BTreeMap<String, TextMatch>,
    /// Which clients it is for, and on which port.
    pub client: ClientMatch,
    /// The name that the route's statistics begin with; may be empty.
    pub stat_prefix: String,
}

/// Conditions on the client and the port that it addresses: known before any traffic flows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientMatch {
    /// The port that is addressed.
    pub port: Option<u16>,
    /// Labels that the client's pod must carry.
    pub labels: Labels,
    /// The client's namespace.
    pub namespace: Option<String>,
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum HttpAction {
    /// It is forwarded.
    Forward(Box<Forward>),
    /// It is answered with another address.
    Redirect(Redirect),
    /// It is answered as said here.
    Answer(Answer),
    /// The rules of another object say so. Only until rules are put together: none is left in a snapshot.
    Delegate(Box<Delegate>),
}

/// The taking over of another object's rules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Delegate {
    /// The object.
    pub key: ObjectKey,
    /// What holds for its rules as far as they say nothing; without destinations.
    pub defaults: Forward,
}

/// Where and how a request is forwarded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Forward {
    /// The destinations with their weights; never empty, and at least one weight is not 0.
    pub destinations: Vec<WeightedDestination>,
    /// Changes to path and authority.
    pub rewrite: Option<Rewrite>,
    /// How long the request may take with all retries. `None` is without limit.
    pub timeout: Option<Duration>,
    /// Retries as asked for; `None` is the mesh's safe default.
    pub retry: Option<Retry>,
    /// Where copies go.
    pub mirrors: Vec<Mirror>,
}

/// One destination among others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightedDestination {
    /// Where to.
    pub destination: Destination,
    /// The share, in relation to the sum over all.
    pub weight: u32,
    /// Changes to headers for this destination only.
    pub headers: HeaderChanges,
}

/// A service or subset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// The service.
    pub host: Host,
    /// The subset.
    pub subset: Option<String>,
    /// The service's port, if said.
    pub port: Option<u16>,
    /// The path of the destination in its object, for findings: `spec.http[0].route[0].destination`.
    pub field: String,
}

/// A destination for copies of requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mirror {
    /// Where to.
    pub destination: Destination,
    /// The share that is copied, in millionths.
    pub share: u32,
}

/// Changes to the headers of requests and responses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderChanges {
    /// The authority that the service is to see (a `Host` header that is set).
    pub authority: Option<String>,
    /// On the way to the service.
    pub request: HeaderChange,
    /// On the way back.
    pub response: HeaderChange,
}

/// Changes to headers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderChange {
    /// Headers that replace those of the same name.
    pub set: BTreeMap<String, String>,
    /// Headers that are added to those of the same name, in this order.
    pub add: Vec<(String, String)>,
    /// Headers that are removed.
    pub remove: Vec<String>,
}

/// Changes to path and authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewrite {
    /// The path.
    pub path: Option<PathRewrite>,
    /// The authority.
    pub authority: Option<String>,
}

/// A change to the path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathRewrite {
    /// What was matched is replaced: the prefix, or the whole path where that was matched. With no condition on the
    /// path, it is the leading slash.
    Prefix(String),
    /// All that matches the expression is replaced; `\1` is its first group.
    Regex(String, String),
}

/// An answer that names another address. What is `None` stays as in the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    /// The status: 301, 302, 303, 307 or 308.
    pub status: u16,
    /// The scheme.
    pub scheme: Option<String>,
    /// The authority.
    pub authority: Option<String>,
    /// The port.
    pub port: Option<RedirectPort>,
    /// The path.
    pub path: Option<RedirectPath>,
}

/// The port of a redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RedirectPort {
    /// This one.
    Number(u16),
    /// The scheme's own.
    OfScheme,
    /// The one that the request was sent to.
    OfRequest,
}

/// The path of a redirect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RedirectPath {
    /// The whole path is replaced.
    Full(String),
    /// The matched prefix is replaced.
    Prefix(String),
}

/// A fixed answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The status, 200 to 599.
    pub status: u16,
    /// The body, at most 1 MiB.
    pub body: Vec<u8>,
}

/// When and how often a request is tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// How often at most, the first try not counted; 0 is never.
    pub attempts: u32,
    /// How long each try may take.
    pub per_try_timeout: Option<Duration>,
    /// Conditions by Envoy's names, in the order written.
    pub on: Vec<String>,
    /// Statuses that are worth another try.
    pub statuses: Vec<u16>,
    /// Whether other localities may be tried.
    pub remote_localities: bool,
    /// Whether endpoints that failed are avoided; where nothing is said they are, unless a hash decides who serves.
    pub avoid_previous: Option<bool>,
    /// The shortest interval between tries.
    pub backoff: Option<Duration>,
}

/// Faults to inject. Shares are in millionths.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// A delay, and for which share.
    pub delay: Option<(Duration, u32)>,
    /// An answer instead of forwarding, and for which share.
    pub abort: Option<(Abort, u32)>,
}

/// An injected error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Abort {
    /// An HTTP status.
    Http(u16),
    /// A gRPC status.
    Grpc(u32),
}

/// Which other web origins may call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cors {
    /// The origins.
    pub origins: Vec<TextMatch>,
    /// The methods.
    pub methods: Vec<String>,
    /// The request headers.
    pub headers: Vec<String>,
    /// The response headers that they may read.
    pub expose: Vec<String>,
    /// How long an answer to a preflight request may be remembered.
    pub max_age: Option<Duration>,
    /// Whether credentials may come along.
    pub credentials: Option<bool>,
    /// Whether preflight requests of other origins reach the service.
    pub forward_unmatched: bool,
}

/// One TCP rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpRule {
    /// The path of the rule in its object.
    pub field: String,
    /// Any of these must match; `None` matches everything.
    pub matches: Option<Vec<TcpMatch>>,
    /// The destinations with their weights; never empty, and at least one weight is not 0.
    pub destinations: Vec<(Destination, u32)>,
}

/// Conditions on a TCP connection; all must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpMatch {
    /// Which clients it is for, and on which port.
    pub client: ClientMatch,
    /// The address that the client asked for lies in one of these; empty is any.
    pub destinations: Vec<Subnet>,
    /// The client's address lies in this.
    pub source: Option<Subnet>,
}

/// One rule for TLS that is passed on unopened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsRule {
    /// The path of the rule in its object.
    pub field: String,
    /// Any of these must match.
    pub matches: Vec<TlsMatch>,
    /// The destinations with their weights; never empty, and at least one weight is not 0.
    pub destinations: Vec<(Destination, u32)>,
}

/// Conditions on a TLS connection; all must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsMatch {
    /// Which clients it is for, and on which port.
    pub client: ClientMatch,
    /// The server name that the client asks for is one of these (`*.example.com` is all below); empty is any, none too.
    pub server_names: Vec<String>,
    /// The address that the client asked for lies in one of these; empty is any.
    pub destinations: Vec<Subnet>,
}

/// Addresses that begin with the same bits. Bits after the prefix are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Subnet {
    /// The first address.
    pub address: IpAddr,
    /// How many bits they share.
    pub length: u8,
}

impl Subnet {
    /// Whether an address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                let rest = 32u32.saturating_sub(u32::from(self.length));
                (u32::from(first) ^ u32::from(address)).checked_shr(rest).unwrap_or_default() == 0
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                let rest = 128u32.saturating_sub(u32::from(self.length));
                (u128::from(first) ^ u128::from(address)).checked_shr(rest).unwrap_or_default() == 0
            }
            _ => false,
        }
    }

    /// Whether all addresses of another lie in it.
    pub fn covers(&self, other: Subnet) -> bool {
        other.length >= self.length && self.contains(other.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnet_when_an_address_shares_its_bits_then_contains_it() {
        let subnet = |address: &str, length| Subnet { address: address.parse().unwrap(), length };
        let contains = |subnet: Subnet, address: &str| subnet.contains(address.parse().unwrap());
        assert!(contains(subnet("10.0.0.0", 8), "10.255.0.1"));
        assert!(!contains(subnet("10.0.0.0", 8), "11.0.0.1"));
        assert!(contains(subnet("198.19.0.30", 32), "198.19.0.30"));
        assert!(!contains(subnet("198.19.0.30", 32), "198.19.0.31"));
        assert!(contains(subnet("0.0.0.0", 0), "198.19.0.31"));
        assert!(!contains(subnet("0.0.0.0", 0), "fd00::1"));
        assert!(contains(subnet("fd00::", 8), "fdff::1"));
        assert!(subnet("10.0.0.0", 8).covers(subnet("10.1.0.0", 16)));
        assert!(!subnet("10.1.0.0", 16).covers(subnet("10.0.0.0", 8)));
        assert!(!subnet("10.1.0.0", 16).covers(subnet("10.2.0.0", 24)));
    }
}
