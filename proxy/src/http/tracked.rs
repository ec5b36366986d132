//! What is counted of requests to clusters that want more than the usual (`track_cluster_stats`): sizes, and how much of their time
//! they use. Who does not want it pays for looking at a switch.

use super::{call::Call, headers::Headers, limits::Limits, pipeline::Cluster};
use crate::telemetry::tracked::TrackedStats;
use std::time::{Duration, Instant};

/// The time that a request or an attempt takes, counted when it is over.
pub(super) struct Budget {
    cluster: Cluster,
    limit: Duration,
    since: Instant,
    per_try: bool,
}

impl Budget {
    /// Of a request.
    pub(super) fn of_request(cluster: &Cluster, limits: &Limits) -> Option<Self> {
        Self::new(cluster, limits.route, false)
    }

    /// Of one attempt.
    pub(super) fn of_attempt(cluster: &Cluster, limits: &Limits) -> Option<Self> {
        Self::new(cluster, limits.per_try, true)
    }

    fn new(cluster: &Cluster, limit: Option<Duration>, per_try: bool) -> Option<Self> {
        cluster.config().track.budgets.then(|| Self {
            cluster: cluster.clone(),
            limit: limit.unwrap_or_default(),
            since: Instant::now(),
            per_try,
        })
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        let Some(stats) = self.cluster.stats().tracked.get() else { return };
        let used = self.since.elapsed().as_micros().saturating_mul(100_000);
        // Of no limit nothing is used.
        let percent = used.checked_div(self.limit.as_micros()).unwrap_or(0);
        let histogram = if self.per_try { &stats.timeout_budget_per_try } else { &stats.timeout_budget };
        histogram.record_thousandths(u64::try_from(percent).unwrap_or(u64::MAX));
    }
}

/// Of the cluster that the request is for, whosever its endpoint is.
fn stats<'c>(call: &'c Call<'_>) -> Option<&'c TrackedStats> {
    let cluster = call.tally.cluster.as_ref()?;
    if cluster.config().track.sizes { cluster.stats().tracked.get().map(|stats| &**stats) } else { None }
}

/// How many headers there are, and how long they are together, with others that have no line of their own.
fn measure(headers: &Headers, others: &[(&str, usize)]) -> (u64, u64) {
    let own = headers.iter().map(|(name, value, _)| name.len() + value.len());
    let others = others.iter().map(|(name, length)| name.len() + length);
    own.chain(others).fold((0, 0), |(count, size), length| (count + 1, size + length as u64))
}

/// The head of a request has gone to an endpoint.
pub(super) fn sent(call: &Call<'_>) {
    let Some(stats) = stats(call) else { return };
    let request = &call.request;
    let others = [
        (":method", request.method().len()),
        (":path", request.path().len()),
        (":authority", request.authority().len()),
        (":scheme", if request.secure { 5 } else { 4 }),
    ];
    let (count, size) = measure(&request.headers, &others);
    stats.rq_headers_count.record(count);
    stats.rq_headers_size.record(size);
}

/// The head of an answer has come.
pub(super) fn answered(call: &Call<'_>) {
    let Some(stats) = stats(call) else { return };
    let (count, size) = measure(&call.response.headers, &[(":status", 3)]);
    stats.rs_headers_count.record(count);
    stats.rs_headers_size.record(size);
}

/// An answer has ended, after so many bytes of its body.
pub(super) fn ended(call: &Call<'_>, response_bytes: u64) {
    let Some(stats) = stats(call) else { return };
    stats.rq_body_size.record(call.tally.request_bytes);
    stats.rs_body_size.record(response_bytes);
}
