//! How the health of endpoints is found out: by what requests experience, and by asking.

use super::{ClientTls, ClusterId, Endpoint, matcher::StringMatch};
use crate::telemetry::LogSink;
use crate::telemetry::counters::{CheckStats, LookupStats, OutlierStats};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::mpsc;

/// Which endpoints are taken out for a while because of what requests experience. The defaults are Envoy's; a count of 0 is
/// never reached.
#[derive(Debug, Clone, PartialEq)]
pub struct OutlierDetection {
    /// Who was taken out.
    pub stats: OutlierStats,
    /// Answers of 5xx in a row, what goes wrong on the way to them included unless `split`; default 5.
    pub consecutive_5xx: u32,
    /// Answers of 502, 503, 504 in a row; default 5.
    pub consecutive_gateway: u32,
    /// Failures on the way to the endpoint in a row, with `split`; default 5.
    pub consecutive_local: u32,
    /// What goes wrong on the way is counted apart from what endpoints answer.
    pub split: bool,
    /// Between two looks at rates and at endpoints that may come back; default 10 s.
    pub interval: Duration,
    /// How long an endpoint is taken out, times how often it was; default 30 s.
    pub base_ejection: Duration,
    /// How long it is at most; default 300 s.
    pub max_ejection: Duration,
    /// At random longer by at most this.
    pub jitter: Duration,
    /// Percent of endpoints that may be out at once; default 10.
    pub max_percent: u32,
    /// One may always be out, whatever the percentage.
    pub always_one: bool,
    /// A health check that passes brings an endpoint back.
    pub check_brings_back: bool,
    /// Percent of the cases in which the respective count takes an endpoint out: 5xx (default 100), gateway (0), local (100).
    pub enforcing: [u32; 3],
    /// The same by rates of success: of answers (default 100), of the way (100).
    pub enforcing_rate: [u32; 2],
    /// The same by percentages of failure: of answers (default 0), of the way (0).
    pub enforcing_percentage: [u32; 2],
    /// Endpoints that must have had enough requests for rates of success to be compared; default 5.
    pub rate_hosts: u32,
    /// Requests that are enough; default 100.
    pub rate_volume: u32,
    /// Thousandths of a standard deviation below the mean at which an endpoint is out; default 1900.
    pub rate_deviation: u32,
    /// Percent of failures at which an endpoint is out; default 85.
    pub percentage: u32,
    /// Endpoints that must have had enough requests for that; default 5.
    pub percentage_hosts: u32,
    /// Requests that are enough; default 50.
    pub percentage_volume: u32,
    /// Which statuses are failures, instead of 5xx.
    pub failures: Option<Arc<Statuses>>,
    /// Where is written who was taken out and who came back.
    pub log: Option<Arc<LogSink>>,
}

/// A set of statuses of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statuses([u64; 16]);

impl Statuses {
    /// The statuses from 100 to 999 for which this holds.
    pub fn of(holds: impl Fn(u16) -> bool) -> Self {
        let mut set = Self::default();
        for status in (100..1000).filter(|status| holds(*status)) {
            set.0[usize::from(status / 64)] |= 1 << (status % 64);
        }
        set
    }

    /// Whether it is one of them.
    pub fn contains(&self, status: u16) -> bool {
        self.0.get(usize::from(status / 64)).is_some_and(|part| part & (1 << (status % 64)) != 0)
    }
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            stats: OutlierStats::default(),
            consecutive_5xx: 5,
            consecutive_gateway: 5,
            consecutive_local: 5,
            split: false,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            jitter: Duration::ZERO,
            max_percent: 10,
            always_one: false,
            check_brings_back: true,
            enforcing: [100, 0, 100],
            enforcing_rate: [100, 100],
            enforcing_percentage: [0, 0],
            rate_hosts: 5,
            rate_volume: 100,
            rate_deviation: 1900,
            percentage: 85,
            percentage_hosts: 5,
            percentage_volume: 50,
            failures: None,
            log: None,
        }
    }
}

impl OutlierDetection {
    /// Whether successes and failures have to be counted, not only failures in a row.
    pub fn counts_rates(&self) -> bool {
        self.enforcing_rate.iter().chain(&self.enforcing_percentage).any(|percent| *percent > 0)
    }
}

/// What the one place that looks after endpoints is told by workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// So many failures in a row that the threshold is reached.
    Consecutive {
        /// The cluster.
        cluster: ClusterId,
        /// The endpoint.
        address: SocketAddr,
        /// Which count.
        kind: Consecutive,
    },
    /// An endpoint said by a header that it is not well, without waiting for the next check.
    Unwell {
        /// The cluster.
        cluster: ClusterId,
        /// The endpoint.
        address: SocketAddr,
    },
    /// Requests since the last report.
    Counts {
        /// The cluster.
        cluster: ClusterId,
        /// The endpoint.
        address: SocketAddr,
        /// Successes and all, of answers.
        answers: (u32, u32),
        /// Successes and all, of the way to the endpoint.
        way: (u32, u32),
    },
}

/// A count of failures in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consecutive {
    /// Answers of 5xx.
    ServerErrors,
    /// Answers of 502, 503, 504.
    GatewayErrors,
    /// Failures on the way.
    LocalFailures,
}

/// A cluster's link to the place that looks after its endpoints (see [`crate::control::upstreams`]).
#[derive(Debug)]
pub struct Care {
    /// What workers count, if they do.
    pub outliers: Option<OutlierDetection>,
    reports: mpsc::Sender<Report>,
    used: AtomicBool,
}

impl Care {
    /// A link that leads there.
    pub fn new(outliers: Option<OutlierDetection>, reports: mpsc::Sender<Report>) -> Self {
        Self { outliers, reports, used: AtomicBool::new(false) }
    }

    /// Tells it. When the queue is full it is not told: the next failures will be.
    pub fn report(&self, report: Report) {
        let _ = self.reports.try_send(report);
    }

    /// Takes note of the first traffic; called when a connection is made, not on the way of a request.
    pub fn note_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    /// Whether there has been traffic.
    pub fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }
}

/// A way to ask endpoints whether they are well.
#[derive(Debug, Clone)]
pub struct HealthCheck {
    /// What became of checks.
    pub stats: CheckStats,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Between two checks.
    pub interval: Duration,
    /// At random added before the first check.
    pub initial_jitter: Duration,
    /// At random added to every interval.
    pub jitter: Duration,
    /// The same in percent of the interval.
    pub jitter_percent: u32,
    /// Failures in a row after which an endpoint is not well.
    pub unhealthy_threshold: u32,
    /// Successes in a row after which it is again; the very first success is always enough.
    pub healthy_threshold: u32,
    /// Between two checks of a cluster that has had no traffic yet; default 60 s.
    pub no_traffic_interval: Duration,
    /// The same for endpoints that are well.
    pub no_traffic_healthy_interval: Duration,
    /// Between two checks of an endpoint that is not well.
    pub unhealthy_interval: Duration,
    /// After the first failures, until the threshold is reached or the endpoint is well.
    pub unhealthy_edge_interval: Duration,
    /// After the first successes, until the threshold is reached.
    pub healthy_edge_interval: Duration,
    /// A connection serves further checks.
    pub reuse_connection: bool,
    /// TLS by other labels than those of the endpoint, where the cluster chooses TLS by labels; `None` is as requests do it.
    pub tls: Option<Option<Arc<ClientTls>>>,
    /// What is written about it.
    pub log: Option<Arc<CheckLog>>,
    /// What is asked.
    pub probe: Probe,
}

/// Lines about health checks: of endpoints that become well or stop being it, and of first checks that fail.
#[derive(Debug, Clone, Default)]
pub struct CheckLog {
    /// Where they go.
    pub sinks: Vec<Arc<LogSink>>,
    /// Of every check that fails.
    pub failures: bool,
    /// Of every check that is passed.
    pub successes: bool,
}

/// What an endpoint is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// An HTTP request.
    Http(HttpProbe),
    /// A connection, and bytes in both directions.
    Tcp {
        /// What is sent; nothing is a matter of connecting.
        send: Box<[u8]>,
        /// What must come, in this order, with anything between; at most 64 KiB are looked at.
        receive: Vec<Box<[u8]>>,
    },
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// The service that is asked about.
        service: Arc<str>,
        /// The authority; `None` is the endpoint's host name or the cluster's name.
        authority: Option<Arc<str>>,
        /// More headers.
        headers: Vec<(Box<str>, Box<str>)>,
    },
}

/// An HTTP request that tells whether an endpoint is well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpProbe {
    /// The authority; `None` is the endpoint's host name or the cluster's name.
    pub host: Option<Arc<str>>,
    /// Path and query.
    pub path: Arc<str>,
    /// The method.
    pub method: Arc<str>,
    /// Headers to send.
    pub headers: Vec<(Box<str>, Box<str>)>,
    /// Statuses that are well, each range without its end.
    pub expected: Vec<(u16, u16)>,
    /// Statuses that count as a failure, but only after the threshold; any other makes an endpoint unwell at once.
    pub retriable: Vec<(u16, u16)>,
    /// By HTTP/2.
    pub http2: bool,
    /// The body that is sent.
    pub send: Box<[u8]>,
    /// What must be in the answer's body, in this order, with anything between; at most 64 KiB are looked at.
    pub receive: Vec<Box<[u8]>>,
    /// What `x-envoy-upstream-healthchecked-cluster` of the answer must say.
    pub service: Option<ServiceName>,
    /// It is not said who asks.
    pub anonymous: bool,
}

/// A condition on the name of the service that answers a check.
#[derive(Debug, Clone)]
pub struct ServiceName(pub StringMatch);

impl PartialEq for ServiceName {
    /// Two conditions are the same when they are written the same way.
    fn eq(&self, other: &Self) -> bool {
        format!("{:?}", self.0) == format!("{:?}", other.0)
    }
}

impl Eq for ServiceName {}

/// What an endpoint says about its own health checks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointCheck {
    /// Another port.
    pub port: Option<u16>,
    /// Another address, with the port that counts where [`Self::port`] says none.
    pub address: Option<std::net::SocketAddr>,
    /// The authority of checks.
    pub hostname: Option<Arc<str>>,
    /// It is not checked, and well.
    pub disabled: bool,
}

/// How endpoints are found by name.
#[derive(Debug, Clone)]
pub struct Dns {
    /// What became of look-ups.
    pub stats: LookupStats,
    /// One endpoint, whichever address comes first, instead of one for each address.
    pub logical: bool,
    /// The names.
    pub names: Vec<DnsName>,
    /// Between two look-ups; default 5 s.
    pub refresh: Duration,
    /// At random added to it.
    pub jitter: Duration,
    /// The least and the most time between two look-ups after a failure; `None` is `refresh`.
    pub failure_refresh: Option<(Duration, Duration)>,
    /// As often as the answers' time to live says.
    pub respect_ttl: bool,
    /// Which addresses.
    pub family: DnsFamily,
    /// Servers to ask instead of the system's.
    pub servers: Vec<SocketAddr>,
    /// Only by TCP.
    pub tcp: bool,
    /// Between two look-ups at least where answers say how long they are good; default none.
    pub least: Duration,
}

/// A name, and what each of its addresses becomes.
#[derive(Debug, Clone)]
pub struct DnsName {
    /// The name, or an address.
    pub name: Arc<str>,
    /// The endpoint but for its IP address.
    pub endpoint: Arc<Endpoint>,
}

/// Which addresses of a name are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsFamily {
    /// IPv6, or IPv4 when there is none.
    Auto,
    /// IPv4 only.
    V4Only,
    /// IPv6 only.
    V6Only,
    /// IPv4, or IPv6 when there is none.
    V4Preferred,
    /// Both.
    All,
}
