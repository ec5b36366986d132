//! What is counted of clusters only where a configuration wants it, and how connections to their endpoints end.

use super::histogram::{Counter, Histogram};
use crate::config::Track;

/// How a connection to an endpoint ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionEnd {
    /// The endpoint ended it.
    pub remote: bool,
    /// A request was under way.
    pub active: bool,
    /// Requests that were begun on it.
    pub served: u64,
}

/// What is counted of clusters of which zones are preferred.
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "each is Envoy's statistic of its name")]
pub struct ZoneStats {
    pub recalculated: Counter,
    pub local_cluster_not_ok: Counter,
    pub cluster_too_small: Counter,
    pub no_capacity_left: Counter,
    pub routing_all_directly: Counter,
    pub routing_cross_zone: Counter,
    pub routing_sampled: Counter,
}

/// What is counted of clusters with `track_cluster_stats`.
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "each is Envoy's statistic of its name")]
pub struct TrackedStats {
    /// In percent.
    pub timeout_budget: Histogram,
    pub timeout_budget_per_try: Histogram,
    pub rq_headers_size: Histogram,
    pub rq_headers_count: Histogram,
    pub rq_body_size: Histogram,
    pub rs_headers_size: Histogram,
    pub rs_headers_count: Histogram,
    pub rs_body_size: Histogram,
}

impl TrackedStats {
    /// Those that are wanted, with their names.
    pub fn told(&self, track: Track) -> impl Iterator<Item = (&'static str, &Histogram)> {
        let budgets = [
            ("upstream_rq_timeout_budget_percent_used", &self.timeout_budget),
            ("upstream_rq_timeout_budget_per_try_percent_used", &self.timeout_budget_per_try),
        ];
        let sizes = [
            ("upstream_rq_headers_size", &self.rq_headers_size),
            ("upstream_rq_headers_count", &self.rq_headers_count),
            ("upstream_rq_body_size", &self.rq_body_size),
            ("upstream_rs_headers_size", &self.rs_headers_size),
            ("upstream_rs_headers_count", &self.rs_headers_count),
            ("upstream_rs_body_size", &self.rs_body_size),
        ];
        let budgets = budgets.into_iter().filter(move |_| track.budgets);
        budgets.chain(sizes.into_iter().filter(move |_| track.sizes))
    }
}
