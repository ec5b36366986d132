//! The configuration of the data plane as one immutable tree.
//!
//! The control thread turns xDS resources into this tree and publishes a new [`Root`]; each worker picks the root up
//! between requests, and a request ends on the root on which it began. Everything that can be decided when the
//! configuration arrives is decided there: regular expressions are compiled, names are interned to dense indices
//! ([`ClusterId`]), TLS contexts are chosen for each endpoint. The request path hashes no names of clusters.
//!
//! The parts are shared by `Arc`, so that a change of one cluster rebuilds one cluster and the slice of pointers.

mod access_log;
mod action;
mod balancing;
mod chain;
mod chain_index;
mod cluster;
mod compression;
mod edge;
mod filter;
mod grpc_stats;
mod hash;
mod headers;
mod health;
mod http;
mod local_reply;
mod matcher;
mod metadata;
mod metadata_filters;
mod network;
pub(crate) mod pipe;
mod ratelimit;
mod retry;
mod route;
mod template;
#[cfg(test)]
mod tests;
mod tls;
mod tracing;
mod value_match;

pub use access_log::{AccessLog, EntryLog, LogCounts, LogServer, LogStream, LogTarget};
pub use action::{
    Action, ConnectHere, DirectResponse, Forward, GrpcTimeout, HostRewrite, InternalRedirect, Mirror, PathRewrite,
    Redirect, RedirectPredicate, RegexRewrite, TargetChoice, WeightedCluster,
};
pub use balancing::{
    Balancing, Fallback, HashFunction, Home, LABELS, LabelValue, Labels, LbPolicy, Locality, RingHash, Selector,
    SlowStart, Spread, Subsets, ZoneAware, ZoneChanges,
};
pub use chain::{
    ChainMatch, Direction, Facts, FilterChain, Inspect, KeepAlive, Listener, Listeners, OpenLimit, OptionTime,
    PassTlvs, PortSet, ProxyProtocol, SocketOption, SocketSettings, SourceType, Transport,
};
pub use chain_index::{ChainError, FilterChains};
pub use cluster::{
    Cluster, ClusterKind, Endpoint, Eyeballs, Failed, Health, Http1Upstream, Http2Keepalive, Limits, OriginalDst,
    Priority, RetryBudget, SourceBind, TcpKeepalive, Track, UpstreamProtocol,
};
pub use compression::{Coding, Compressible, Compressor, CompressorSetting, Decompressor, Library};
pub use edge::{CertDetails, ClientCert, Detection, Edge};
pub use filter::{
    Cors, Fault, FaultAbort, FaultDelay, FaultLimit, FaultStatus, FilterEntry, FilterSetting, FilterSettings,
    FilterStats, HeaderMutation, HealthFilter, HttpFilter, Rbac, Share,
};
pub use grpc_stats::{CountedMethods, GrpcCalls, GrpcMessages, GrpcStats, MessagesOf};
pub use hash::{HashPolicy, HashSource};
pub use headers::{HeaderOp, HeaderOps, HeaderText};
pub use health::{
    Care, CheckLog, Consecutive, Dns, DnsFamily, DnsName, EndpointCheck, HealthCheck, HttpProbe, OutlierDetection,
    Probe, Report, ServiceName, Statuses,
};
pub use http::{
    Chain, Codec, EscapedSlashes, HeaderNames, Http2Options, HttpManager, MAX_HEADERS, RouterOptions, ServerHeader,
    StrictHeaders, StripPort, Underscores, Upgrade,
};
pub use local_reply::{BodyFormat, LocalReplies, Mapper};
pub use matcher::{HeaderMatch, HeaderTest, QueryMatch, QueryTest, RegexError, RegexMatch, StringMatch};
pub use metadata::{Metadata, value_at};
pub use metadata_filters::{FixedMetadata, HeaderToMetadata, MetadataEntry, MetadataFrom, MetadataKind, MetadataRule};
pub use network::{
    Bucket, ConnectionLimit, Gate, Network, NetworkRateLimit, NetworkRbac, TcpProxy, TcpTarget, TcpTunnel,
};
pub use ratelimit::{
    Buckets, DescriptorValue, Dynamic, HostPolicies, LimitedDescriptor, LocalRateLimit, RateLimitAction,
    RateLimitPolicy, TokenBucket,
};
pub use retry::{RateLimitedBackoff, ResetHeader, RetryOn, RetryPolicy};
pub use route::{
    CookieMatch, PathMatch, RequireTls, Route, RouteMatch, RouteTable, TableError, TableOptions, VirtualCluster,
    VirtualHost,
};
pub use template::{TemplateError, UriTemplate};
pub use tls::{ClientTls, MeshTls, ProxiedTls, Secured, ServerTls};
pub use tracing::{
    CustomTag, Decorator, Marks, Proportion, RouteTracing, Sampler, Sampling, SpanTransport, TagValue, Tracer, Tracing,
    Zipkin,
};
pub use value_match::{MetadataMatch, ValueMatch};

use crate::telemetry::WorkloadLabels;
use std::{collections::HashMap, sync::Arc, time::Duration};

/// The stable index of a cluster: the control side gives a name the same index for as long as the process lives, so
/// that per-worker state (pools, balancers) survives every change of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(pub u32);

/// The whole configuration of the data plane at one moment.
#[derive(Debug)]
pub struct Root {
    /// Counts up with every published root; equal versions are the same root.
    pub version: u64,
    /// Every listener, bound or virtual, and the indices to find one.
    pub listeners: Listeners,
    /// Clusters by [`ClusterId`]; `None` where the name is known (a route names it) but no such cluster exists.
    pub clusters: Vec<Option<Arc<Cluster>>>,
    /// This proxy's own workload, as telemetry names it.
    pub own: Arc<WorkloadLabels>,
    /// Clusters by name, made when something first asks for one by a name that no configuration knew.
    pub names: ClusterNames,
    /// Open connections of clients at most, of all listeners together; `None` is as many as this process can have.
    pub most_connections: Option<u64>,
    /// How connections end whose listener or filter chain is gone.
    pub drain: Drain,
    /// Where this proxy belongs to, if that is known.
    pub home: Option<Home>,
}

/// How connections end that are to: what they belong to is gone, or the admin server was asked for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drain {
    /// How long one may take to end. With none, one of HTTP that is left with a chain of TCP gets one more answer, and one that no chain
    /// takes any more gets none: it may be no longer allowed.
    pub time: Duration,
    /// All end with their next answer, instead of more and more of them while the time goes by.
    pub at_once: bool,
}

impl Drain {
    /// How long it takes until all end with their next answer.
    pub fn over(self) -> Duration {
        if self.at_once { Duration::ZERO } else { self.time }
    }
}

/// Clusters by name, made when it is first asked for.
#[derive(Debug, Default)]
pub struct ClusterNames(std::sync::OnceLock<HashMap<Arc<str>, ClusterId>>);

impl Default for Root {
    fn default() -> Self {
        Self {
            version: 0,
            listeners: Listeners::default(),
            clusters: Vec::new(),
            own: WorkloadLabels::unknown(),
            most_connections: None,
            drain: Drain::default(),
            home: None,
            names: ClusterNames::default(),
        }
    }
}

impl Root {
    /// The cluster of that name, if it exists in this root.
    pub fn cluster_named(&self, name: &str) -> Option<ClusterId> {
        let all = || self.clusters.iter().flatten().map(|cluster| (cluster.name.clone(), cluster.id)).collect();
        self.names.0.get_or_init(all).get(name).copied()
    }

    /// The cluster of that index, if it exists in this root.
    pub fn cluster(&self, id: ClusterId) -> Option<&Arc<Cluster>> {
        self.clusters.get(id.0 as usize).and_then(Option::as_ref)
    }
}
