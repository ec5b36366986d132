//! The configuration of the data plane as one immutable tree.
//!
//! The control thread turns xDS resources into this tree and publishes a new [`Root`]; each worker picks the root up
//! between requests, and a request ends on the root on which it began. Everything that can be decided when the
//! configuration arrives is decided there: regular expressions are compiled, names are interned to dense indices
//! ([`ClusterId`]), TLS contexts are chosen for each endpoint. The request path hashes no names of clusters.
//!
//! The parts are shared by `Arc`, so that a change of one cluster rebuilds one cluster and the slice of pointers.

mod balancing;
mod chain;
mod cluster;
mod health;
mod http;
mod matcher;
mod route;
#[cfg(test)]
mod tests;
mod tls;

pub use balancing::{
    Balancing, Fallback, HashFunction, LabelValue, Labels, LbPolicy, Locality, RingHash, Selector, SlowStart, Spread,
    Subsets,
};
pub use chain::{
    ChainMatch, Direction, Facts, FilterChain, Inspect, Listener, Listeners, Network, PortSet, TcpProxy, TcpTarget,
    Transport,
};
pub use cluster::{
    Cluster, ClusterKind, Endpoint, Health, Http2Keepalive, Limits, OriginalDst, Priority, RetryBudget, SourceBind,
    TcpKeepalive, UpstreamProtocol,
};
pub use health::{
    Care, Consecutive, Dns, DnsFamily, DnsName, EndpointCheck, HealthCheck, HttpProbe, OutlierDetection, Probe, Report,
    Statuses,
};
pub use http::{Codec, Http2Options, HttpFilter, HttpManager};
pub use matcher::{HeaderMatch, HeaderTest, QueryMatch, QueryTest, RegexError, RegexMatch, StringMatch};
pub use route::{
    Action, DirectResponse, Forward, HeaderOp, HeaderOps, HostRewrite, PathMatch, PathRewrite, Redirect, RetryOn,
    RetryPolicy, Route, RouteMatch, RouteTable, TableError, VirtualHost, WeightedCluster,
};
pub use tls::{ClientTls, MeshTls, ServerTls};

use crate::telemetry::WorkloadLabels;
use std::sync::Arc;

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
}

impl Default for Root {
    fn default() -> Self {
        Self { version: 0, listeners: Listeners::default(), clusters: Vec::new(), own: WorkloadLabels::unknown() }
    }
}

impl Root {
    /// The cluster of that index, if it exists in this root.
    pub fn cluster(&self, id: ClusterId) -> Option<&Arc<Cluster>> {
        self.clusters.get(id.0 as usize).and_then(Option::as_ref)
    }
}
