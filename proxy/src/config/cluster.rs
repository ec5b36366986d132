//! Clusters: where requests go, how an endpoint is chosen, and the limits on the way.

use super::{
    Balancing, Care, ClientTls, ClusterId, Dns, EndpointCheck, HashPolicy, HeaderNames, HealthCheck, Http2Options,
    Labels, LbPolicy, Locality, Metadata, OutlierDetection, RetryPolicy, SocketOption, Spread,
};
use crate::telemetry::{ServiceLabels, WorkloadLabels};
use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

/// A group of endpoints and how they are talked to.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Its stable index.
    pub id: ClusterId,
    /// Its name, e.g. `outbound|9080||reviews.default.svc.cluster.local`.
    pub name: Arc<str>,
    /// The name in statistics, logs and traces: the same, where nothing else is said.
    pub observability_name: Arc<str>,
    /// How endpoints are found.
    pub kind: ClusterKind,
    /// How one is chosen.
    pub policy: LbPolicy,
    /// What belongs to choosing beside the policy.
    pub balancing: Arc<Balancing>,
    /// The endpoints, all priorities; empty for [`ClusterKind::OriginalDst`].
    pub endpoints: Vec<Arc<Endpoint>>,
    /// How load is spread over their priorities.
    pub spread: Spread,
    /// Circuit breakers of requests with the default priority.
    pub limits: Limits,
    /// Circuit breakers of requests with high priority.
    pub high_limits: Limits,
    /// Which endpoints are taken out for what requests experience.
    pub outliers: Option<Arc<OutlierDetection>>,
    /// How endpoints are asked whether they are well.
    pub checks: Vec<Arc<HealthCheck>>,
    /// How endpoints are found by name, for [`ClusterKind::Dns`].
    pub dns: Option<Arc<Dns>>,
    /// The link to the place that looks after endpoints, where somebody has to.
    pub care: Option<Arc<Care>>,
    /// Connections of TCP that all workers have to it.
    pub lasting: Arc<std::sync::atomic::AtomicU32>,
    /// Connections of TCP to an endpoint end when a health check or outlier detection finds it not well.
    pub close_on_failure: bool,
    /// An endpoint that is no longer configured goes at once, even while health checks find it well.
    pub ignore_health_on_removal: bool,
    /// Which address [`ClusterKind::OriginalDst`] means.
    pub original: OriginalDst,
    /// The clusters that [`ClusterKind::Aggregate`] stands for, the first ones first.
    pub members: Box<[ClusterId]>,
    /// How long a connection (TCP and TLS together) may take; default 10 s.
    pub connect_timeout: Duration,
    /// An idle pooled connection is closed after this; default one hour, zero is never.
    pub idle_timeout: Duration,
    /// Requests after which a connection is closed; 0 is no limit.
    pub max_requests_per_connection: u32,
    /// Age at which a connection serves no new requests, and what is at random added to it, in percent.
    pub max_connection_duration: Option<(Duration, f64)>,
    /// How long a request and its answer may take on a connection, each attempt for itself.
    pub max_stream_duration: Option<Duration>,
    /// How HTTP/1 is spoken to endpoints.
    pub http1: Http1Upstream,
    /// Limits of HTTP/2 connections.
    pub http2: Http2Options,
    /// How HTTP/2 connections find out that the endpoint is gone.
    pub http2_keepalive: Option<Http2Keepalive>,
    /// The HTTP version spoken to endpoints.
    pub protocol: UpstreamProtocol,
    /// The header whose host is sent as server name (and `:authority` is the request's own host); `None`: the name in TLS.
    pub server_name: Option<Box<str>>,
    /// When its requests are tried again, whatever their routes say.
    pub retry: Option<Arc<RetryPolicy>>,
    /// By what its requests are hashed, whatever their routes say; none leaves it to them.
    pub hash: Arc<[HashPolicy]>,
    /// TLS for endpoints that are not listed (original destinations).
    pub default_tls: Option<Arc<ClientTls>>,
    /// Source addresses for connections of this cluster.
    pub bind: Option<SourceBind>,
    /// Options of its sockets: level, name and value. What cannot be set is no connection.
    pub socket_options: Arc<[(i32, i32, SocketOption)]>,
    /// TCP keep-alive.
    pub keepalive: Option<TcpKeepalive>,
    /// Each connection of a client has connections of its own, which no other one's requests share. When it ends they idle as others do.
    pub pool_per_client: bool,
    /// In which order the addresses of an endpoint are tried that has several.
    pub eyeballs: Eyeballs,
    /// The workload that telemetry names where the endpoint is not known (original destinations; this proxy's own for
    /// inbound clusters).
    pub destination: Arc<WorkloadLabels>,
    /// The service that telemetry names as the destination.
    pub service: Arc<ServiceLabels>,
    /// The configuration object (DestinationRule) that shaped it, if any.
    pub origin: Option<Arc<str>>,
    /// Of which lines may speak.
    pub metadata: Option<Metadata>,
    /// What is counted besides the usual.
    pub track: Track,
}

/// What is counted of a cluster besides the usual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Track {
    /// How much of their time limits requests use.
    pub budgets: bool,
    /// How large requests and answers are.
    pub sizes: bool,
    /// Numbers of each endpoint are told among the others.
    pub endpoints: bool,
}

impl Cluster {
    /// A cluster without endpoints with every default.
    pub fn new(id: ClusterId, name: impl Into<Arc<str>>, kind: ClusterKind) -> Self {
        let name = name.into();
        Self {
            id,
            service: ServiceLabels::cluster_only(&name),
            destination: WorkloadLabels::unknown(),
            observability_name: name.clone(),
            name,
            kind,
            policy: LbPolicy::LeastRequest { choices: 2 },
            balancing: Arc::default(),
            endpoints: Vec::new(),
            spread: Spread::default(),
            limits: Limits::default(),
            high_limits: Limits::default(),
            outliers: None,
            checks: Vec::new(),
            dns: None,
            care: None,
            lasting: Arc::default(),
            close_on_failure: false,
            ignore_health_on_removal: false,
            original: OriginalDst::default(),
            members: Box::default(),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(3600),
            max_requests_per_connection: 0,
            max_connection_duration: None,
            max_stream_duration: None,
            http1: Http1Upstream::default(),
            http2: Http2Options::default(),
            http2_keepalive: None,
            protocol: UpstreamProtocol::Http1,
            server_name: None,
            retry: None,
            hash: Arc::default(),
            default_tls: None,
            bind: None,
            socket_options: Arc::default(),
            keepalive: None,
            pool_per_client: false,
            eyeballs: Eyeballs::default(),
            origin: None,
            metadata: None,
            track: Track::default(),
        }
    }
}

/// In which order the addresses of an endpoint are tried that has several: some of one family, one of the other, and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eyeballs {
    /// Whether addresses of IPv6 go first; `None`: those of the first address's family.
    pub first_v6: Option<bool>,
    /// How many of that family are tried before one of the other; at least 1. Default 1.
    pub count: usize,
}

impl Default for Eyeballs {
    fn default() -> Self {
        Self { first_v6: None, count: 1 }
    }
}

impl Eyeballs {
    /// Addresses of one endpoint in this order; nothing where it has only one.
    pub fn sort(self, addresses: Vec<SocketAddr>) -> Box<[SocketAddr]> {
        let [first, _, ..] = addresses[..] else { return Box::default() };
        let first_v6 = self.first_v6.unwrap_or(first.is_ipv6());
        let (preferred, others): (Vec<_>, Vec<_>) =
            addresses.iter().copied().partition(|one: &SocketAddr| one.is_ipv6() == first_v6);
        let (mut preferred, mut others) = (preferred.into_iter(), others.into_iter());
        let mut sorted: Vec<SocketAddr> = Vec::with_capacity(addresses.len());
        while sorted.len() < addresses.len() {
            sorted.extend(preferred.by_ref().take(self.count.max(1)));
            sorted.extend(others.next());
        }
        sorted.into()
    }
}

/// How a cluster's endpoints are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterKind {
    /// Written in the cluster itself (an empty one is the black hole).
    Static,
    /// Sent by the control plane.
    Eds,
    /// Found by name ([`Cluster::dns`]).
    Dns,
    /// The address to which the client wanted to connect.
    OriginalDst,
    /// Those of other clusters ([`Cluster::members`]).
    Aggregate,
}

impl ClusterKind {
    /// Whether the endpoint follows from what the cluster is, and not from a policy of its own.
    pub fn chooses_itself(self) -> bool {
        matches!(self, Self::OriginalDst | Self::Aggregate)
    }
}

/// Which address an original destination is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OriginalDst {
    /// The header in which a request may name it instead.
    pub header: Option<Box<str>>,
    /// The port that is connected whatever the client wanted.
    pub port: Option<u16>,
}

/// TCP keep-alive; what is not set is left to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpKeepalive {
    /// Idle time before the first probe.
    pub idle: Option<Duration>,
    /// Between probes.
    pub interval: Option<Duration>,
    /// Probes without an answer after which the connection is given up.
    pub probes: Option<u32>,
}

/// How HTTP/2 connections find out that the endpoint is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2Keepalive {
    /// Between two pings; zero is none but for `idle`.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Percent of the interval that is at random added to it.
    pub jitter: u32,
    /// A connection that was idle for so long is pinged before it is used again; zero is never.
    pub idle: Duration,
}

/// One endpoint of a cluster.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Where it listens; of a Unix socket, the address by which it is known.
    pub address: SocketAddr,
    /// All its addresses in the order in which they are tried, where it has several: the first that answers is connected.
    pub addresses: Box<[SocketAddr]>,
    /// The path of a Unix socket; `@` begins an abstract name.
    pub pipe: Option<Arc<str>>,
    /// Its share of the traffic, relative to the others; at least 1.
    pub weight: u32,
    /// Whether it may be chosen.
    pub health: Health,
    /// What has found it not well.
    pub failed: Failed,
    /// Out of the reckoning: it is neither usable nor counted among those that are not (its first health check is under way).
    pub excluded: bool,
    /// 0 is used first; others take what lower ones have no healthy endpoints for.
    pub priority: u32,
    /// Where it is.
    pub locality: Arc<Locality>,
    /// The name by which it was found or that was given to it.
    pub hostname: Option<Arc<str>>,
    /// What it says about its health checks.
    pub check: Option<Arc<EndpointCheck>>,
    /// Labels by which requests choose among endpoints (the metadata `envoy.lb`).
    pub labels: Arc<Labels>,
    /// TLS to it, already chosen by the cluster's transport socket matches.
    pub tls: Option<Arc<ClientTls>>,
    /// The workload behind it, for telemetry.
    pub workload: Arc<WorkloadLabels>,
    /// Of which lines may speak.
    pub metadata: Option<Metadata>,
}

impl Endpoint {
    /// A healthy plain-text endpoint of weight 1.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            addresses: Box::default(),
            pipe: None,
            weight: 1,
            health: Health::Healthy,
            failed: Failed::default(),
            excluded: false,
            priority: 0,
            locality: Arc::default(),
            hostname: None,
            check: None,
            labels: Arc::default(),
            tls: None,
            workload: WorkloadLabels::unknown(),
            metadata: None,
        }
    }

    /// Whether it is out of the reckoning of how many are usable: what is being drained is no failure of the others.
    pub fn is_excluded(&self) -> bool {
        self.excluded || self.health == Health::Draining
    }
}

/// What has found an endpoint not well, which is more than that nothing is known of it yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Failed {
    /// A health check.
    pub check: bool,
    /// Outlier detection.
    pub outlier: bool,
    /// Whoever configured it.
    pub told: bool,
}

impl Failed {
    /// Whether that was found out here.
    pub fn is_observed(self) -> bool {
        self.check || self.outlier
    }
}

/// Whether an endpoint may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It may.
    Healthy,
    /// Only while no healthy one exists.
    Degraded,
    /// It ends its open requests and gets no new ones.
    Draining,
    /// It may not.
    Unhealthy,
}

/// The HTTP version spoken to endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Whatever the client speaks.
    Follow,
    /// HTTP/2 where TLS agrees on it with the endpoint, else HTTP/1.1.
    Agreed,
}

/// Circuit breakers. Each worker enforces its share of a limit (rounded up), so that no counter is shared between cores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Connections at once; default 1024.
    pub connections: u32,
    /// Connections to one endpoint at once; default none, [`u32::MAX`].
    pub per_host: u32,
    /// Requests that wait for a connection; default 1024.
    pub pending: u32,
    /// Requests at once; default 1024.
    pub requests: u32,
    /// Retries at once; default 3 unless a budget is set.
    pub retries: u32,
    /// Retries as a share of active requests; replaces `retries`.
    pub retry_budget: Option<RetryBudget>,
    /// What is left of them is told.
    pub tell_remaining: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            per_host: u32::MAX,
            pending: 1024,
            requests: 1024,
            retries: 3,
            retry_budget: None,
            tell_remaining: false,
        }
    }
}

/// How important a request is: each has circuit breakers of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Priority {
    /// As most are.
    #[default]
    Default,
    /// More.
    High,
}

/// Retries as a share of active requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// Percent of active requests that may be retries; default 20.
    pub percent: f64,
    /// Always allowed at once, by each worker; default 3.
    pub min_concurrency: u32,
}

/// Source addresses of upstream connections (inbound: 127.0.0.6, ::6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceBind {
    /// For IPv4 endpoints.
    pub v4: Option<Ipv4Addr>,
    /// For IPv6 endpoints.
    pub v6: Option<Ipv6Addr>,
}

/// How HTTP/1 is spoken to endpoints, and what their answers may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http1Upstream {
    /// How names of headers are written; [`HeaderNames::Kept`] is about those of answers.
    pub names: HeaderNames,
    /// Requests are sent with the whole URL as their target; default false.
    pub full_url: bool,
    /// Trailers pass, in both directions; default true.
    pub trailers: bool,
    /// The length of an answer that has chunks is dropped; default false: such an answer is refused.
    pub chunked_length: bool,
    /// Headers of an answer, of HTTP/2 as well; default 100, more is an answer that breaks the protocol. At most 1024.
    pub max_headers: usize,
    /// Bytes of an answer's head, of HTTP/2 as well; default 80 KiB, with HTTP/2 60 KiB; at most 8 MiB.
    pub max_head_bytes: Option<usize>,
}

impl Http1Upstream {
    /// Bytes that the head of an answer may have.
    pub fn head_bytes(&self) -> usize {
        self.max_head_bytes.unwrap_or(80 * 1024)
    }
}

impl Default for Http1Upstream {
    fn default() -> Self {
        Self {
            names: HeaderNames::Plain,
            full_url: false,
            trailers: true,
            chunked_length: false,
            max_headers: 100,
            max_head_bytes: None,
        }
    }
}
