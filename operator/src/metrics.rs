//! What the operator counts.

use leno_runtime::metrics::Registry;
use leno_runtime::metrics::prometheus_client::encoding::EncodeLabelSet;
use leno_runtime::metrics::prometheus_client::metrics::counter::Counter;
use leno_runtime::metrics::prometheus_client::metrics::family::Family;
use leno_runtime::metrics::prometheus_client::metrics::gauge::Gauge;
use leno_runtime::metrics::prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// A label with the kind of thing that was written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct What {
    /// `object`, `install_status` or `traffic_status`.
    pub what: &'static str,
}

/// A label with the category of an error.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Category {
    /// Of a bounded set.
    pub category: &'static str,
}

/// The operator's metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    /// 1 while this process leads.
    pub leading: Gauge,
    /// Plans made.
    pub plans: Counter,
    /// Time from a look to the end of what it led to, in seconds.
    pub reconcile_seconds: Histogram,
    /// Writes to the API server, but for the lease.
    pub writes: Family<What, Counter>,
    /// Steps that failed.
    pub errors: Family<Category, Counter>,
    /// Control plane replicas whose status stream is open.
    pub status_streams: Gauge,
}

impl Metrics {
    /// Registers all.
    pub fn new(registry: &Registry) -> Self {
        Metrics {
            leading: registry.register(
                "leno_operator_leading",
                "1 while this process holds the lease",
                Gauge::default(),
            ),
            plans: registry.register("leno_operator_plans", "Plans made", Counter::default()),
            reconcile_seconds: registry.register(
                "leno_operator_reconcile_seconds",
                "From a look at the cluster to the end of what it led to",
                Histogram::new(exponential_buckets(0.001, 4.0, 8)),
            ),
            writes: registry.register(
                "leno_operator_writes",
                "Writes to the API server, but for the lease",
                Family::default(),
            ),
            errors: registry.register("leno_operator_errors", "Steps that failed, by category", Family::default()),
            status_streams: registry.register(
                "leno_operator_status_streams",
                "Control plane replicas that report the status of traffic resources",
                Gauge::default(),
            ),
        }
    }
}
