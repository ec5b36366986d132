//! HTTP filters: what a request passes through before its route acts, and what routes change about it.

use super::{
    ClusterId, Compressor, CompressorSetting, Decompressor, FixedMetadata, GrpcStats, HeaderOp, HeaderToMetadata,
    matcher::{HeaderMatch, StringMatch},
    ratelimit::LocalRateLimit,
};
use crate::rbac::Decider;
use crate::telemetry::counters::{CorsStats, FaultStats, RbacStats, ShadowStats};
use crate::telemetry::policies::PolicyCounts;
use prost_types::Struct;
use std::{
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

/// One stage of the way of a request.
#[derive(Debug, Clone)]
pub struct FilterEntry {
    /// Its name, by which routes speak of it.
    pub name: Box<str>,
    /// It works only where a route says so.
    pub disabled: bool,
    /// What it does.
    pub filter: HttpFilter,
    /// What it counts.
    pub stats: FilterStats,
}

/// What a filter counts.
#[derive(Debug, Clone, Default)]
pub enum FilterStats {
    /// Nothing, or not by its entry.
    #[default]
    None,
    /// Faults.
    Fault(FaultStats),
    /// Origins.
    Cors(CorsStats),
    /// What rules decide, and what those that only look would; by policy for those who want it.
    Rbac(RbacStats, ShadowStats, Arc<PolicyCounts>),
}

/// What a filter does. An enum, so that the pipeline is read in one place.
#[derive(Debug, Clone)]
pub enum HttpFilter {
    /// Delays and ends requests on purpose.
    Fault(Arc<Fault>),
    /// Answers for cross-origin requests; what it says comes from routes.
    Cors,
    /// Allows and denies.
    Rbac(Arc<Rbac>),
    /// Limits rates in this process.
    LocalRateLimit(Arc<LocalRateLimit>),
    /// Changes headers.
    HeaderMutation(Arc<HeaderMutation>),
    /// Waits for the whole request; bytes at most, more answers 413.
    Buffer(u64),
    /// Compresses bodies.
    Compressor(Arc<Compressor>),
    /// Decompresses bodies.
    Decompressor(Arc<Decompressor>),
    /// Counts gRPC calls.
    GrpcStats(Arc<GrpcStats>),
    /// Makes calls of gRPC out of those of gRPC-Web.
    GrpcWeb,
    /// Its configuration has not come, or is of a type that is not known here (where it is switched off): answers 500.
    Missing,
    /// Answers health checks.
    HealthCheck(Arc<HealthFilter>),
    /// Sets metadata by what heads say.
    HeaderToMetadata(Arc<HeaderToMetadata>),
    /// Sets metadata.
    SetMetadata(Arc<[FixedMetadata]>),
}

/// What a route, virtual host, table or weighted target says about filters, by their names.
#[derive(Debug, Default)]
pub struct FilterSettings(Vec<(Box<str>, FilterSetting)>);

impl FilterSettings {
    /// Of these, in any order; each name once.
    pub fn new(settings: Vec<(Box<str>, FilterSetting)>) -> Self {
        Self(settings)
    }

    /// What is said about the filter of this name.
    pub fn get(&self, name: &str) -> Option<&FilterSetting> {
        self.0.iter().find(|(have, _)| have.as_ref() == name).map(|(_, setting)| setting)
    }

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What is said about one filter.
#[derive(Debug)]
pub enum FilterSetting {
    /// It does not work here.
    Off,
    /// It works, as its entry says.
    On,
    /// It works, as a less specific level or its entry says.
    Enabled,
    /// It works like this.
    Fault(Arc<Fault>),
    /// It works like this.
    Cors(Arc<Cors>),
    /// It works by these rules; `None`: everybody is allowed.
    Rbac(Option<Arc<Rbac>>),
    /// It works like this.
    LocalRateLimit(Arc<LocalRateLimit>),
    /// It works like this, in addition to what the other levels say.
    HeaderMutation(Arc<HeaderMutation>),
    /// It works with this limit in bytes.
    Buffer(u64),
    /// It works like this.
    Compressor(CompressorSetting),
    /// It works like this.
    HeaderToMetadata(Arc<HeaderToMetadata>),
    /// It sets this as well.
    SetMetadata(Arc<[FixedMetadata]>),
}

/// Delays and ends of requests on purpose.
#[derive(Debug, Default)]
pub struct Fault {
    /// A delay.
    pub delay: Option<FaultDelay>,
    /// An end.
    pub abort: Option<FaultAbort>,
    /// A bound on how fast the body of the answer goes.
    pub limit: Option<FaultLimit>,
    /// Only requests whose target is this cluster.
    pub cluster: Option<ClusterId>,
    /// Only requests on which all of these hold.
    pub headers: Vec<HeaderMatch>,
    /// Only requests of these nodes (`x-envoy-downstream-service-node`); none is all.
    pub nodes: Vec<Box<str>>,
    /// Requests under a fault at once, in all workers; beyond it requests pass.
    pub max_active: Option<u32>,
    /// What is told of a request that is delayed or ended, as metadata under the filter's name.
    pub metadata: Struct,
    /// Requests under a fault now.
    pub active: Arc<AtomicU32>,
}

/// A delay.
#[derive(Debug)]
pub struct FaultDelay {
    /// The share of requests.
    pub share: Share,
    /// For how long; `None`: as the request's header says (`x-envoy-fault-delay-request`, in milliseconds).
    pub fixed: Option<Duration>,
}

/// A bound on how fast the body of an answer goes.
#[derive(Debug)]
pub struct FaultLimit {
    /// The share of requests.
    pub share: Share,
    /// KiB in a second; `None`: as the request's header says (`x-envoy-fault-throughput-response`).
    pub fixed: Option<u64>,
}

/// An end.
#[derive(Debug)]
pub struct FaultAbort {
    /// The share of requests.
    pub share: Share,
    /// The answer.
    pub with: FaultStatus,
    /// The answer's body; Envoy's words when empty.
    pub body: Box<str>,
}

/// The answer of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultStatus {
    /// A status of HTTP.
    Http(u16),
    /// A status of gRPC.
    Grpc(u16),
    /// As the request's header says (`x-envoy-fault-abort-request`, `x-envoy-fault-abort-grpc-request`).
    Header,
}

/// A share as a fraction, as Envoy counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// So many ...
    pub numerator: u32,
    /// ... of so many.
    pub denominator: u32,
}

impl Share {
    /// Everything.
    pub const ALL: Self = Self { numerator: 100, denominator: 100 };

    /// In millionths.
    pub fn millionths(self) -> u32 {
        self.numerator.saturating_mul(1_000_000 / self.denominator.max(1)).min(1_000_000)
    }
}

/// What a service says about cross-origin requests.
#[derive(Debug, Default)]
pub struct Cors {
    /// Origins that are allowed; none leaves it to the level above.
    pub origins: Vec<StringMatch>,
    /// `access-control-allow-methods`; empty leaves it to the level above, as with those that follow.
    pub methods: Box<str>,
    /// `access-control-allow-headers`.
    pub headers: Box<str>,
    /// `access-control-expose-headers`.
    pub expose: Box<str>,
    /// `access-control-max-age`.
    pub max_age: Box<str>,
    /// `access-control-allow-credentials`.
    pub credentials: Option<bool>,
    /// `access-control-allow-private-network`.
    pub private_network: Option<bool>,
    /// Preflight requests of other origins go on to the service; default true.
    pub forward_not_matching: Option<bool>,
    /// The share of requests for which it works, in millionths.
    pub enabled: u32,
    /// The share for which it only looks, in millionths.
    pub shadow: u32,
}

/// Changes of headers, trailers and queries by a filter.
#[derive(Debug, Default)]
pub struct HeaderMutation {
    /// On the request.
    pub request: Vec<HeaderOp>,
    /// On the query of its path: parameters by their names. They are changed as headers are.
    pub query: Vec<HeaderOp>,
    /// On the request's trailers, if it has some.
    pub request_trailers: Vec<HeaderOp>,
    /// On the response.
    pub response: Vec<HeaderOp>,
    /// On the response's trailers, if it has some.
    pub response_trailers: Vec<HeaderOp>,
    /// The most specific level's changes are made last (only in the filter's own entry).
    pub most_specific_wins: bool,
}

/// Rules in force, and rules that are only looked at.
#[derive(Debug)]
pub struct Rbac {
    /// In force; `None`: everybody is allowed.
    pub rules: Option<Decider>,
    /// Only looked at.
    pub shadow: Option<Decider>,
    /// What stands before the names by which is told what the rules in force decided.
    pub prefix: Arc<str>,
    /// The same for the others.
    pub shadow_prefix: Arc<str>,
    /// What each policy decides is counted.
    pub by_policy: bool,
}

/// Which requests are health checks that the proxy answers.
#[derive(Debug)]
pub struct HealthFilter {
    /// What its answers call this proxy: the cluster of its node.
    pub cluster: Arc<str>,
    /// All of these hold.
    pub headers: Vec<HeaderMatch>,
}
