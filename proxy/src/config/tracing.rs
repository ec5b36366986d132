//! How requests are traced.

use super::{ClusterId, HeaderOp};
use crate::telemetry::LogFormat;
use std::{sync::Arc, time::Duration};

/// The settings of [`super::HttpManager::tracing`].
#[derive(Debug)]
pub struct Tracing {
    /// Who makes spans; without one a request's id is marked all the same.
    pub tracer: Option<Arc<Tracer>>,
    /// Which requests are traced.
    pub sampling: Sampling,
    /// The traffic goes out of the workload (or a client) and not into it.
    pub egress: bool,
    /// The endpoint's side of a request is a span of its own.
    pub spawn_upstream: bool,
    /// The endpoint is told nothing.
    pub keep_context: bool,
    /// Bytes of the path in the tag `http.url`; default 256.
    pub max_path: usize,
    /// Further tags.
    pub tags: Vec<CustomTag>,
    /// The span's name.
    pub operation: Option<Arc<LogFormat>>,
    /// The name of the endpoint's span.
    pub upstream_operation: Option<Arc<LogFormat>>,
    /// Which mark a request's id gets.
    pub marks: Marks,
}

/// What the extension for request ids says about traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// Why it is traced is written into the id, and read from there; default true.
    pub pack: bool,
    /// The id decides about the share of requests that are traced; default true, otherwise all are.
    pub by_id: bool,
}

impl Default for Marks {
    fn default() -> Self {
        Self { pack: true, by_id: true }
    }
}

/// A share: so many of so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proportion {
    /// So many.
    pub numerator: u32,
    /// Of so many; not zero.
    pub denominator: u32,
}

impl Proportion {
    /// Everything.
    pub const ALL: Self = Self { numerator: 100, denominator: 100 };

    /// Whether a number falls into it.
    pub fn takes(self, number: u64) -> bool {
        number % u64::from(self.denominator.max(1)) < u64::from(self.numerator)
    }
}

/// Which requests are traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling {
    /// Of those whose client wants it (`x-client-trace-id`).
    pub client: Proportion,
    /// Of the others.
    pub random: Proportion,
    /// Of all that would be traced.
    pub overall: Proportion,
}

/// What a route says about traces.
#[derive(Debug)]
pub struct RouteTracing {
    /// Which requests are traced.
    pub sampling: Sampling,
    /// Further tags, which go before the manager's.
    pub tags: Vec<CustomTag>,
    /// The span's name.
    pub operation: Option<Arc<LogFormat>>,
    /// The name of the endpoint's span.
    pub upstream_operation: Option<Arc<LogFormat>>,
}

/// The name of a route's operation.
#[derive(Debug)]
pub struct Decorator {
    /// The name.
    pub operation: Box<str>,
    /// Whether the proxy at the other end is told.
    pub propagate: bool,
}

/// A tag of a span.
#[derive(Debug, Clone)]
pub struct CustomTag {
    /// Its name.
    pub name: Box<str>,
    /// Its value.
    pub value: TagValue,
}

/// The value of a tag.
#[derive(Debug, Clone)]
pub enum TagValue {
    /// Always this.
    Literal(Box<str>),
    /// A header of the request, or this where it has none; empty is no tag.
    Header(Box<str>, Box<str>),
    /// Made for each request, or this where that gives nothing; empty is no tag.
    Format(Arc<LogFormat>, Box<str>),
}

/// Who makes spans, and where they go.
#[derive(Debug)]
pub struct Tracer {
    /// The cluster to which spans are sent.
    pub cluster: ClusterId,
    /// How spans are sent.
    pub transport: SpanTransport,
    /// The service's name.
    pub service: Box<str>,
    /// This proxy's name.
    pub node: Box<str>,
    /// The zone that it is in; empty where that is not known.
    pub zone: Box<str>,
    /// Which requests are sampled, whatever the manager says.
    pub sampler: Sampler,
    /// Zipkin's headers and spans, instead of W3C's and OpenTelemetry's.
    pub zipkin: Option<Zipkin>,
    /// Whether the resource tells what made the spans.
    pub sdk: bool,
    /// Whether the resource tells the service's name.
    pub named: bool,
    /// Whether the scope is told.
    pub scope: bool,
    /// Spans that wait at most, a worker; what is more is dropped and counted. Default 1024.
    pub max_waiting: usize,
    /// How long sending may take; default 10 s.
    pub timeout: Duration,
}

/// What is special about traces of Zipkin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zipkin {
    /// New traces have ids of 128 bits, otherwise of 64.
    pub wide: bool,
    /// New traces have ids that begin with the time, in seconds since 1970.
    pub stamped: bool,
    /// A server's span is its client's; default true.
    pub shared: bool,
    /// The proxy is a hop of its own: what it takes is a server's, whichever way the traffic goes.
    pub split: bool,
    /// The headers of W3C are read where there are none of B3, and written beside them.
    pub w3c: bool,
    /// Spans are sent as protocol buffers, otherwise as JSON.
    pub protobuf: bool,
}

/// How spans are sent.
#[derive(Debug)]
pub enum SpanTransport {
    /// By gRPC.
    Grpc {
        /// The authority.
        authority: Box<str>,
        /// Further headers.
        metadata: Vec<(Box<str>, Box<str>)>,
    },
    /// By HTTP.
    Http {
        /// The host.
        authority: Box<str>,
        /// The path.
        path: Box<str>,
        /// Changes of the request's headers.
        headers: Vec<HeaderOp>,
    },
}

/// Which requests are sampled.
#[derive(Debug, Clone, PartialEq)]
pub enum Sampler {
    /// What the manager and a parent decide.
    Manager,
    /// All.
    Always,
    /// What the parent decides; without one the other sampler.
    Parent(Box<Sampler>),
    /// A share of the traces, by their id.
    Ratio(Proportion),
}
