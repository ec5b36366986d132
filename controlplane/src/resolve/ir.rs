//! The intermediate form: what one proxy is to do, with everything looked up, and nothing of Envoy's messages yet.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use leno_core::credential::Credentials;
use leno_core::policy::{Nearest, TrafficPolicy};
use leno_core::route::{Answer, Cors, Fault, HeaderChanges, HttpMatch, Redirect, Retry, Rewrite, Subnet};
use leno_core::service::{Identities, Labels, Service};
use leno_core::{Host, HostPattern, MeshSettings, ObjectRef, Protocol};
use serde::Serialize;

use super::scope::WorkloadScope;

/// Everything that one proxy is to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Ir {
    /// Settings of the whole mesh.
    pub mesh: MeshSettings,
    /// What it serves.
    pub workload: WorkloadScope,
    /// What the Secrets of its namespace hold that policies name.
    pub credentials: Credentials,
    /// What it can reach: the same for all proxies with an equal client scope.
    pub outbound: Arc<Outbound>,
}

/// What a client can reach.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outbound {
    /// The client's namespace: short names of services in it are understood.
    pub namespace: String,
    /// Services, by host.
    pub services: Vec<OutboundService>,
    /// Hosts that are no services and have routes all the same; the more specific first.
    pub hosts: Vec<OutboundHost>,
}

/// A service as a client sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct OutboundService {
    /// The service.
    pub service: Arc<Service>,
    /// Its ports, by number.
    pub ports: Vec<OutboundPort>,
}

/// A port of a service as a client sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct OutboundPort {
    /// The port's number.
    pub number: u16,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// The service itself, then its subsets.
    pub clusters: Vec<Cluster>,
    /// Routes for HTTP; the first that matches is used. Never empty.
    pub http: Vec<HttpRoute>,
    /// Routes for connections that are not HTTP and ask for something certain; of those that ask for the same, the first
    /// is used.
    pub connections: Vec<ConnectionRoute>,
    /// Where all others go; `None` closes them.
    pub tcp: Option<TcpTarget>,
    /// Addresses of the endpoints, for headless services only.
    pub addresses: Vec<(IpAddr, u16)>,
    /// The rules that decided; `None` without any.
    pub rules: Option<ObjectRef>,
}

/// Routes for a host that is no service.
#[derive(Clone, Debug, PartialEq)]
pub struct OutboundHost {
    /// The host.
    pub host: HostPattern,
    /// The rules.
    pub rules: ObjectRef,
    /// The routes by port, for each port that has host-based routing.
    pub routes: Vec<(u16, Vec<HttpRoute>)>,
}

/// The name of a group of endpoints.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ClusterName {
    /// The service's port.
    pub port: u16,
    /// The subset; empty for the whole service.
    pub subset: String,
    /// The service.
    pub host: Host,
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "outbound|{}|{}|{}", self.port, self.subset, self.host)
    }
}

impl ClusterName {
    /// The parts of a name as this type writes it.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix("outbound|")?.splitn(3, '|');
        let port = parts.next()?.parse().ok()?;
        let subset = parts.next()?.to_owned();
        Some(Self { port, subset, host: Host::parse(parts.next()?).ok()? })
    }
}

/// A group of endpoints and how they are connected to.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Its name.
    pub name: ClusterName,
    /// What is spoken.
    pub protocol: Protocol,
    /// Where its endpoints come from.
    pub discovery: Discovery,
    /// Labels that endpoints must carry.
    pub labels: Labels,
    /// What the places of client and endpoints change.
    pub spread: Spread,
    /// How it is connected to.
    pub policy: TrafficPolicy,
    /// Whom a client may meet.
    pub identities: Identities,
    /// Whether some of the endpoints are not part of the mesh.
    pub plain: bool,
    /// The policy's object.
    pub origin: Option<ObjectRef>,
    /// Further objects that say a part of the policy.
    pub others: Vec<ObjectRef>,
}

/// Where the endpoints of a cluster come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Discovery {
    /// The control plane says.
    Endpoints,
    /// There is one: the address that the client asked for.
    OriginalDestination,
    /// The addresses of this name in DNS.
    Name(String),
}

/// What the places of client and endpoints change.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spread {
    /// Places get shares of their own, instead of what their endpoints get among all.
    pub weighted: bool,
    /// How they are told apart.
    pub by: SpreadBy,
}

/// How places are told apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum SpreadBy {
    /// They are all the same.
    #[default]
    Nothing,
    /// Each gets its share, and others get nothing.
    Shares(BTreeMap<String, u32>),
    /// The nearest get everything.
    Nearest(Nearest),
}

/// One HTTP route.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpRoute {
    /// Its name; may be empty.
    pub name: String,
    /// What it takes; `None` takes everything. What is known of the client beforehand is decided already.
    pub matching: Option<HttpMatch>,
    /// What happens.
    pub action: Action,
    /// Changes to headers.
    pub headers: HeaderChanges,
    /// Faults to inject.
    pub fault: Option<Fault>,
    /// Who may call from a browser.
    pub cors: Option<Cors>,
    /// The rules' object.
    pub origin: Option<ObjectRef>,
    /// The object that it was taken over from, when that is another.
    pub taken_from: Option<ObjectRef>,
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// It is forwarded.
    Forward(Box<Forward>),
    /// It is answered with another address.
    Redirect(Redirect),
    /// It is answered.
    Answer(Answer),
}

/// Where and how a request is forwarded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Forward {
    /// The targets; never empty.
    pub targets: Vec<Target>,
    /// Changes to path and authority.
    pub rewrite: Option<Rewrite>,
    /// How long it may take.
    pub timeout: Option<std::time::Duration>,
    /// Retries as asked for; `None` is the mesh's default.
    pub retry: Option<Retry>,
    /// Where copies go, and the share in millionths.
    pub mirrors: Vec<(ClusterName, u32)>,
}

/// One target among others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Target {
    /// Where to; `None` when it does not exist: such requests are answered with 503.
    pub cluster: Option<ClusterName>,
    /// The share, in relation to the sum over all.
    pub weight: u32,
    /// Changes to headers for this target.
    pub headers: HeaderChanges,
}

/// A route for connections that are not HTTP. All that is given must hold.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectionRoute {
    /// The server names that a client may ask for in TLS; empty is any.
    pub server_names: Vec<String>,
    /// Where the address lies that the client asked for; empty is anywhere.
    pub destinations: Vec<Subnet>,
    /// Where the client's address lies; `None` is anywhere.
    pub source: Option<Subnet>,
    /// Where they go.
    pub target: TcpTarget,
}

/// Where connections go that are not HTTP.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpTarget {
    /// Targets with their weights; `None` does not exist: such connections are closed.
    pub targets: Vec<(Option<ClusterName>, u32)>,
    /// The rules' object.
    pub origin: Option<ObjectRef>,
}
