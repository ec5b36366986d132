//! What filter chains do with connections: gates that they must pass, and what serves them.

use super::{AccessLog, ClusterId, Direction, HeaderOp, HeaderText, HttpManager, Labels};
use crate::rbac::Decider;
use crate::telemetry::counters::{ConnectionLimitStats, ConnectionRateStats, RbacStats, ShadowStats, TcpStats};
use std::{sync::Arc, time::Duration};

/// What a connection must pass before it is served.
#[derive(Debug, Clone)]
pub enum Gate {
    /// Roles: who may connect.
    Rbac(Arc<NetworkRbac>),
    /// Connections of the filter chain at once.
    ConnectionLimit(Arc<ConnectionLimit>),
    /// New connections in a time.
    RateLimit(Arc<NetworkRateLimit>),
}

/// Who may connect.
#[derive(Debug)]
pub struct NetworkRbac {
    /// What rules decide, and what those that are only looked at would.
    pub stats: (RbacStats, ShadowStats),
    /// Name in metrics and logs.
    pub stat_prefix: Arc<str>,
    /// What is enforced; without rules everybody may.
    pub rules: Option<Decider>,
    /// What is only looked at and told.
    pub shadow: Option<Decider>,
    /// Before the names under which that is told.
    pub shadow_prefix: Arc<str>,
    /// A connection that is denied is closed only after this, so that it is not tried again at once.
    pub delay: Duration,
}

/// Connections at once.
#[derive(Debug)]
pub struct ConnectionLimit {
    /// What it counts.
    pub stats: ConnectionLimitStats,
    /// Name in metrics and logs.
    pub stat_prefix: Arc<str>,
    /// How many, all workers together.
    pub max: u32,
    /// One too many is closed only after this, so that it is not tried again at once.
    pub delay: Duration,
    /// How many there are; shared by the forms of the filter that follow each other.
    pub open: Arc<std::sync::atomic::AtomicU32>,
}

/// New connections in a time.
#[derive(Debug)]
pub struct NetworkRateLimit {
    /// What it counts.
    pub stats: ConnectionRateStats,
    /// Name in metrics and logs.
    pub stat_prefix: Arc<str>,
    /// The bucket, which all workers share.
    pub bucket: Arc<Bucket>,
}

/// A bucket that tokens are taken from and put into, a number at a time.
#[derive(Debug)]
pub struct Bucket {
    /// Tokens in it at most.
    pub max: u32,
    /// Tokens that come at a time.
    pub fill: u32,
    /// The time between two fills; at least 50 ms.
    pub interval: Duration,
    state: std::sync::Mutex<(u32, std::time::Instant)>,
}

impl Bucket {
    /// A full one.
    pub fn new(max: u32, fill: u32, interval: Duration) -> Self {
        Self { max, fill, interval, state: std::sync::Mutex::new((max, std::time::Instant::now())) }
    }

    /// Takes a token, if there is one.
    pub fn take(&self, now: std::time::Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (tokens, since) = &mut *state;
        let times = now.saturating_duration_since(*since).as_nanos() / self.interval.as_nanos().max(1);
        if times > 0 {
            let times = u32::try_from(times).unwrap_or(u32::MAX);
            *tokens = tokens.saturating_add(self.fill.saturating_mul(times)).min(self.max);
            *since += self.interval.saturating_mul(times);
        }
        if *tokens == 0 {
            return false;
        }
        *tokens -= 1;
        true
    }
}

/// What a filter chain does with a connection.
#[derive(Debug, Clone)]
pub enum Network {
    /// Serves HTTP.
    Http(Arc<HttpManager>),
    /// Passes bytes on.
    Tcp(Arc<TcpProxy>),
    /// Says this and closes.
    Direct(Arc<[u8]>),
    /// Sends back what comes.
    Echo,
}

/// Passes the bytes of a connection to a cluster.
#[derive(Debug)]
pub struct TcpProxy {
    /// What it counts.
    pub stats: TcpStats,
    /// Name in metrics.
    pub stat_prefix: Arc<str>,
    /// Which way the traffic goes.
    pub direction: Direction,
    /// Where to; chosen by weight once a connection. May be empty where the server name tells it.
    pub targets: Vec<TcpTarget>,
    /// Where a ClientHello names a server, the cluster of that name is the target.
    pub by_server_name: bool,
    /// A connection on which nothing moved for so long is closed; zero is never. Default one hour.
    pub idle_timeout: Duration,
    /// A connection is closed after this, whatever moves, and up to the second one later, drawn at random.
    pub max_duration: Option<(Duration, Duration)>,
    /// How many endpoints are tried before the connection is given up; at least 1. Default 1.
    pub connect_attempts: u32,
    /// How long to wait between attempts: the first time and at most; the wait doubles and is drawn at random.
    pub backoff: Option<(Duration, Duration)>,
    /// Endpoints are chosen by the client's address, where the cluster's policy hashes.
    pub hash_source_ip: bool,
    /// The endpoints are HTTP proxies, which are asked for a tunnel to somewhere else.
    pub tunnel: Option<Box<TcpTunnel>>,
    /// What is logged about connections.
    pub access_logs: Vec<AccessLog>,
    /// A line is also written when a connection has begun; default false.
    pub log_starts: bool,
    /// A line is also written when it has reached its endpoint; default false.
    pub log_connected: bool,
    /// A line is also written whenever it has gone on for so long with its endpoint.
    pub log_every: Option<Duration>,
}

/// A tunnel through an HTTP proxy.
#[derive(Debug)]
pub struct TcpTunnel {
    /// Where it leads: host and port, as the proxy is told.
    pub host: HeaderText,
    /// It is asked for by POST to this path, whose body it is, instead of by CONNECT.
    pub post: Option<Box<str>>,
    /// What else the proxy is told, in order.
    pub headers: Vec<HeaderOp>,
}

impl TcpProxy {
    /// One to these targets with every default.
    pub fn new(targets: Vec<TcpTarget>) -> Self {
        Self {
            stats: TcpStats::default(),
            stat_prefix: "tcp".into(),
            direction: Direction::Outbound,
            targets,
            by_server_name: false,
            idle_timeout: Duration::from_secs(3600),
            max_duration: None,
            connect_attempts: 1,
            backoff: None,
            hash_source_ip: false,
            tunnel: None,
            access_logs: Vec::new(),
            log_starts: false,
            log_connected: false,
            log_every: None,
        }
    }
}

/// One weighted target of a TCP proxy.
#[derive(Debug, Clone)]
pub struct TcpTarget {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its share of the sum of all weights.
    pub weight: u32,
    /// What its endpoints must have, for clusters with subsets.
    pub labels: Option<Arc<Labels>>,
}

impl TcpTarget {
    /// All endpoints of a cluster, with the weight 1.
    pub fn all(cluster: ClusterId) -> Self {
        Self { cluster, weight: 1, labels: None }
    }
}
