//! How services are connected to once routing has chosen one: subsets, load balancing, limits, TLS.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::host::HostPattern;
use crate::object::{ObjectKey, ObjectRef};
use crate::service::Labels;

/// The namespaces whose clients see an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExportTo {
    /// All of them.
    #[default]
    All,
    /// These.
    Only(BTreeSet<String>),
}

impl ExportTo {
    /// Whether clients of the namespace see the object.
    pub fn includes(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(namespaces) => namespaces.contains(namespace),
        }
    }

    /// Whether some clients see both objects.
    pub fn shares_some_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Only(own), Self::Only(others)) => !own.is_disjoint(others),
            (Self::Only(some), Self::All) | (Self::All, Self::Only(some)) => !some.is_empty(),
            (Self::All, Self::All) => true,
        }
    }
}

/// What holds for traffic to a service: an Istio DestinationRule, or what comes to the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DestinationPolicy {
    /// The object that says so; where several were put together, the first.
    pub origin: ObjectRef,
    /// Its generation.
    pub generation: i64,
    /// When it was made, in milliseconds since the Unix epoch: the oldest wins.
    pub created: i64,
    /// The services.
    pub host: HostPattern,
    /// Which namespaces see it.
    pub export_to: ExportTo,
    /// Only for clients of its own namespace whose pods carry these labels; `None` for all.
    pub clients: Option<Labels>,
    /// Other objects that say a part of it, with their generations.
    pub others: Vec<(ObjectRef, i64)>,
    /// For all traffic.
    pub policy: PortedPolicy,
    /// Groups of endpoints, in the order written.
    pub subsets: Vec<Subset>,
}

/// A group of a service's endpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subset {
    /// Its name.
    pub name: String,
    /// The labels that its pods carry.
    pub labels: Labels,
    /// For traffic to it; each part given here replaces the service's.
    pub policy: PortedPolicy,
}

impl DestinationPolicy {
    /// All objects that say it, with their generations.
    pub fn origins(&self) -> impl Iterator<Item = (&ObjectRef, i64)> {
        let others = self.others.iter().map(|(origin, generation)| (origin, *generation));
        std::iter::once((&self.origin, self.generation)).chain(others)
    }
}

/// A policy with exceptions for single ports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PortedPolicy {
    /// For ports that are not listed.
    pub all: TrafficPolicy,
    /// For these ports: balancing, connections, outliers and TLS, which take nothing from `all`.
    pub ports: BTreeMap<u16, TrafficPolicy>,
}

impl PortedPolicy {
    /// What holds for a port of which `base` holds where nothing is said here.
    #[must_use]
    pub fn over(&self, base: &TrafficPolicy, port: u16) -> TrafficPolicy {
        let all = base.overlaid(&self.all);
        match self.ports.get(&port) {
            None => all,
            Some(own) => TrafficPolicy {
                retry_budget: all.retry_budget,
                tunnel: all.tunnel,
                proxy_protocol: all.proxy_protocol,
                ..own.clone()
            },
        }
    }

    /// All policies in it.
    pub fn policies(&self) -> impl Iterator<Item = &TrafficPolicy> {
        std::iter::once(&self.all).chain(self.ports.values())
    }
}

/// What holds for connections to a service or subset. `None` is the mesh's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrafficPolicy {
    /// Load balancing.
    pub balancing: Option<Balancing>,
    /// Limits and timeouts.
    pub connections: Option<ConnectionLimits>,
    /// Taking out what fails.
    pub outliers: Option<OutlierDetection>,
    /// TLS.
    pub tls: Option<ClientTls>,
    /// The limit on retries.
    pub retry_budget: Option<RetryBudget>,
    /// A tunnel for connections that are not HTTP.
    pub tunnel: Option<Tunnel>,
    /// Whether the client's address is announced, and how.
    pub proxy_protocol: Option<ProxyProtocol>,
}

impl TrafficPolicy {
    /// This policy with every part that `over` has replaced by it.
    #[must_use]
    pub fn overlaid(&self, over: &Self) -> Self {
        let Self { balancing, connections, outliers, tls, retry_budget, tunnel, proxy_protocol } = over.clone();
        Self {
            balancing: balancing.or_else(|| self.balancing.clone()),
            connections: connections.or_else(|| self.connections.clone()),
            outliers: outliers.or_else(|| self.outliers.clone()),
            tls: tls.or_else(|| self.tls.clone()),
            retry_budget: retry_budget.or(self.retry_budget),
            tunnel: tunnel.or_else(|| self.tunnel.clone()),
            proxy_protocol: proxy_protocol.or(self.proxy_protocol),
        }
    }
}

/// How endpoints are chosen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Balancing {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// For how long a new endpoint gets less than its share.
    pub warmup: Option<Warmup>,
    /// What the places of client and endpoints change; `None` is the mesh's default.
    pub locality: Option<LocalityBalancing>,
}

/// What the places of client and endpoints change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LocalityBalancing {
    /// Nothing.
    Off,
    /// The share of each place, in percent, by where the client is; the first that fits is used.
    Shares(Vec<LocalityShares>),
    /// Endpoints that are nearer are preferred as long as they are healthy.
    Nearest(Nearest),
}

/// Shares for clients of one place. A place is `region/zone/subzone`, `*` instead of the last part is any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalityShares {
    /// Where the client is.
    pub from: String,
    /// Where how much goes to, in percent.
    pub to: BTreeMap<String, u32>,
}

/// How it is told what is nearer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nearest {
    /// Labels in order of importance: who shares more of the first ones with the client is nearer. With a value, that stands
    /// for the client's. Without any, region, zone and subzone count.
    pub labels: Vec<(String, Option<String>)>,
    /// Regions (from, to) that are nearer than others to clients of a region.
    pub regions: Vec<(String, String)>,
    /// Also where endpoints that fail are not taken out, so that only those that are gone are made up for.
    pub always: bool,
    /// Zones share in the traffic as they share in the clients from this number of endpoints on; `None` never.
    pub zone_aware: Option<u64>,
}

/// A load balancing algorithm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// Of two endpoints drawn at random the one with fewer requests under way.
    #[default]
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// At random.
    Random,
    /// The address that the client asked for.
    Passthrough,
    /// What has the same key goes to the same endpoint.
    Hash(HashKey, HashTable),
}

/// What consistent hashing hashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HashKey {
    /// A request header.
    Header(String),
    /// A cookie: its name, and for how long and under which path and attributes one is made where there is none.
    Cookie {
        /// The name.
        name: String,
        /// The path.
        path: String,
        /// The lifetime; `None` makes none.
        ttl: Option<Duration>,
        /// Further attributes.
        attributes: Vec<(String, String)>,
    },
    /// The client's address.
    SourceAddress,
    /// A query parameter.
    QueryParameter(String),
}

/// How consistent hashing places endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HashTable {
    /// On a ring with at least so many places.
    Ring(u64),
    /// In a Maglev table of this size.
    Maglev(u64),
}

/// The slow start of new endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Warmup {
    /// For how long.
    pub duration: Duration,
    /// The share at the start, in percent.
    pub minimum_percent: f64,
    /// How the share grows: 1 is linear.
    pub aggression: f64,
}

/// Limits on connections and requests. `None` is no limit, or the default where there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionLimits {
    /// Open connections.
    pub max_connections: Option<u32>,
    /// How long connecting may take.
    pub connect_timeout: Option<Duration>,
    /// Probes of the kernel.
    pub keepalive: Option<Keepalive>,
    /// How long a connection may last.
    pub max_connection_duration: Option<Duration>,
    /// How long a connection without traffic is kept.
    pub tcp_idle_timeout: Option<Duration>,
    /// Requests that wait for a connection.
    pub max_pending: Option<u32>,
    /// Requests under way.
    pub max_requests: Option<u32>,
    /// Requests over the life of a connection.
    pub max_requests_per_connection: Option<u32>,
    /// Retries under way.
    pub max_retries: Option<u32>,
    /// How long a connection without requests is kept.
    pub http_idle_timeout: Option<Duration>,
    /// Whether HTTP/1.1 is sent on as HTTP/2; `None` as the port says.
    pub upgrade_to_http2: Option<bool>,
    /// Whether the client's version of HTTP is spoken.
    pub use_client_protocol: bool,
    /// Requests under way on one connection.
    pub max_concurrent_streams: Option<u32>,
    /// Probes of HTTP/2 connections: the interval and how long an answer may take.
    pub http2_keepalive: Option<(Duration, Duration)>,
}

/// Probes of the kernel on idle connections. `None` is the system's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keepalive {
    /// Probes that may stay unanswered.
    pub probes: Option<u32>,
    /// Idle time before the first.
    pub time: Option<Duration>,
    /// Time between them.
    pub interval: Option<Duration>,
}

/// Taking out endpoints that keep failing. `None` is Envoy's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutlierDetection {
    /// 5xx answers in a row; 0 is never.
    pub consecutive_5xx: Option<u32>,
    /// 502, 503 and 504 answers in a row; 0 is never.
    pub consecutive_gateway: Option<u32>,
    /// Failures of the client's side in a row.
    pub consecutive_local: Option<u32>,
    /// Whether those are counted apart.
    pub split_local: bool,
    /// How often endpoints are looked at.
    pub interval: Option<Duration>,
    /// How long one is out at least.
    pub base_ejection: Option<Duration>,
    /// The share that may be out, in percent.
    pub max_ejection_percent: Option<u32>,
    /// The share that must be healthy, in percent.
    pub min_health_percent: Option<u32>,
    /// The statuses that count as failures; those of 5xx where there are none.
    pub statuses: Vec<u16>,
}

/// TLS that a client speaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientTls {
    /// None, not even to workloads of the mesh.
    Off,
    /// Mutual TLS with the workload's own certificate.
    Mesh {
        /// The server name to ask for; `None` is the mesh's own.
        server_name: Option<String>,
        /// Names that the server may have; empty is the identities of its workloads.
        names: Vec<String>,
    },
    /// TLS as servers outside the mesh speak it.
    Simple(SimpleTls),
}

/// TLS as servers outside the mesh speak it, with a certificate of the client's or without.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SimpleTls {
    /// The server name to ask for; `None` is the request's host.
    pub server_name: Option<String>,
    /// Names that the server's certificate may have; empty is the server name.
    pub names: Vec<String>,
    /// Whom to trust.
    pub trust: Trust,
    /// What the client shows; `None` is nothing.
    pub certificate: Option<Certificate>,
    /// Whether any certificate is taken.
    pub unverified: bool,
}

/// The authorities that a server's certificate must come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// Where they are.
    pub authorities: Authorities,
    /// The file with revoked certificates, in the proxy's container.
    pub revoked: Option<String>,
}

/// Where authorities are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Authorities {
    /// Those of the system.
    #[default]
    System,
    /// A file in the proxy's container.
    File(String),
    /// A Secret.
    Secret(ObjectKey),
}

/// What a client shows, with its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Certificate {
    /// Files in the proxy's container.
    Files {
        /// The certificate and its intermediates.
        chain: String,
        /// The key.
        key: String,
    },
    /// A Secret.
    Secret(ObjectKey),
}

/// A tunnel through an HTTP proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// Whether it is asked for by POST instead of CONNECT.
    pub by_post: bool,
    /// The host at its end.
    pub host: String,
    /// The port at its end.
    pub port: u16,
}

/// A version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProxyProtocol {
    /// In text.
    V1,
    /// In binary.
    V2,
}

/// A limit on retries in relation to the requests under way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RetryBudget {
    /// In percent.
    pub percent: f64,
    /// As many are always allowed.
    pub min_concurrency: u32,
    /// The requests of this last interval count instead of those under way.
    pub interval: Option<Duration>,
}
