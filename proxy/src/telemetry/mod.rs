//! What the data plane tells about traffic: Istio's standard metrics and access log.
//!
//! The request path touches nothing that another thread writes. Each worker owns a [`Shard`]: its metric series are
//! counters that only this worker writes (plain stores), its log lines gather in a buffer that only this worker fills.
//! The control thread holds [`Telemetry`]: it sums the shards when somebody scrapes, and writes the log lines out.
//!
//! Label sets are turned into text once, when a combination of workloads, code and flags is first seen, and found again
//! by the addresses of the shared label objects; after that a request costs a look-up by a few integers.

mod clusters;
pub mod connection;
pub mod counters;
pub mod display;
pub mod dynamic;
pub mod entry;
pub mod envoy;
pub mod flags;
pub mod histogram;
pub mod labels;
pub mod logbuffer;
pub mod logfilter;
pub mod logformat;
pub mod logsink;
pub mod peer;
pub mod policies;
pub mod process;
pub mod render;
pub mod requests;
pub mod secured;
pub mod shard;
pub mod stats;
pub mod tags;
pub mod tally;
pub mod tracked;

pub use dynamic::DynamicMetadata;
pub use entry::{
    CloseType, Connecting, Endings, HeaderLookup, Known, LogEntry, LogKind, Moments, NOT_A_STATUS, Observed, Wire,
    nanos,
};
pub use flags::ResponseFlags;
pub use labels::{ConnectionSecurity, Reporter, RequestProtocol, ServiceLabels, WorkloadLabels};
pub(crate) use logfilter::grpc_of_http;
pub use logfilter::{Comparison, LogFilter};
pub use logformat::{FormatError, LogFormat, LogNeeds, MetadataOf};
pub use logsink::{LogSink, LogSinks};
pub use render::{Exposition, Telemetry};
pub use shard::{RequestRecord, Shard, TcpRecord, TcpRecorder};
pub use tally::Tally;
