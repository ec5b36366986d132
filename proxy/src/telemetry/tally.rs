//! Requests counted without their labels: what a process tells of itself.

use super::flags::ResponseFlags;
use super::histogram::{BOUNDS, Summed};
use super::labels::Reporter;
use super::render::Telemetry;
use super::shard::{HttpValues, Values};
use leno_api::proxies::BOUNDS_MS;
use leno_api::proxies::v1::Counts;
use std::sync::PoisonError;

/// What is told of a label set that is summed with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Meaning {
    pub(super) reporter: Reporter,
    /// A status of 5xx, a gRPC status that means the same, or no answer to a client that waited for it.
    pub(super) failed: bool,
}

impl Meaning {
    /// That of requests with this status (0 when there was none), with this gRPC status, if they had one, and with these flags. A
    /// client that gives up before the answer is nobody's failure.
    pub(super) fn new(reporter: Reporter, status: u16, grpc: Option<u16>, flags: ResponseFlags) -> Self {
        let given_up = ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION | ResponseFlags::DOWNSTREAM_REMOTE_RESET;
        let unanswered = status == 0 && !flags.intersects(given_up);
        // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE and DATA_LOSS: a server's failures, as
        // google.rpc.Code maps them to HTTP.
        let failed = unanswered || status >= 500 || matches!(grpc, Some(2 | 4 | 12..=15));
        Self { reporter, failed }
    }
}

/// Requests of one direction.
#[derive(Debug, Clone, Default, PartialEq)]
struct Side {
    requests: u64,
    failures: u64,
    duration: Summed,
}

impl Side {
    /// A request that is being counted may be in one of the sums and not in the other.
    fn add(&mut self, values: &HttpValues, failed: bool) {
        let requests = values.requests.get();
        self.requests += requests;
        self.failures += if failed { requests } else { 0 };
        self.duration.add(&values.duration);
    }

    fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failures += other.failures;
        for (sum, bucket) in self.duration.buckets.iter_mut().zip(&other.duration.buckets) {
            *sum += bucket;
        }
    }

    /// As it is told: the classes of [`BOUNDS_MS`], each of which is a bound here too.
    fn counts(&self) -> Counts {
        let mut durations = vec![0; BOUNDS_MS.len() + 1];
        for (place, count) in self.duration.buckets.iter().enumerate() {
            let bound = BOUNDS.get(place).copied().unwrap_or(f64::INFINITY);
            let class = BOUNDS_MS.partition_point(|class| (*class as f64) < bound);
            if let Some(sum) = durations.get_mut(class) {
                *sum += count;
            }
        }
        Counts { requests: self.requests, failures: self.failures, durations }
    }
}

/// Requests of both directions; they only grow.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    inbound: Side,
    outbound: Side,
}

impl Tally {
    fn side(&mut self, reporter: Reporter) -> &mut Side {
        match reporter {
            Reporter::Destination => &mut self.inbound,
            Reporter::Source => &mut self.outbound,
        }
    }

    pub(super) fn add(&mut self, meaning: Meaning, values: &HttpValues) {
        self.side(meaning.reporter).add(values, meaning.failed);
    }

    /// Requests that came to the app.
    pub fn inbound(&self) -> Counts {
        self.inbound.counts()
    }

    /// Requests that the app sent.
    pub fn outbound(&self) -> Counts {
        self.outbound.counts()
    }
}

impl Telemetry {
    /// What all workers counted since the process began, label sets that are no longer told included.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for worker in self.workers() {
            // Forgotten first: a label set that is being forgotten is then missing once, and never counted twice.
            let forgotten = worker.forgotten.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let series = worker.series.lock().unwrap_or_else(PoisonError::into_inner).clone();
            tally.inbound.merge(&forgotten.inbound);
            tally.outbound.merge(&forgotten.outbound);
            for series in series {
                if let Values::Http(meaning, values) = &series.values {
                    tally.add(*meaning, values);
                }
            }
        }
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_when_durations_are_told_are_exactly_those_that_are_counted() {
        for class in BOUNDS_MS {
            assert!(BOUNDS.contains(&(class as f64)), "{class} ms is no bound of the histogram");
        }
        let mut side = Side { requests: 20, failures: 1, ..Side::default() };
        side.duration.buckets = std::array::from_fn(|place| place as u64 + 1);
        let counts = side.counts();
        // 0.5 ms and 1 ms are one class, everything above 30 s another.
        assert_eq!(counts.durations[..3], [1 + 2, 3, 4]);
        assert_eq!(counts.durations.last(), Some(&(15 + 16 + 17 + 18 + 19 + 20)));
        assert_eq!(counts.durations.iter().sum::<u64>(), (1..=20).sum::<u64>());
        assert_eq!((counts.requests, counts.failures), (20, 1));
    }

    #[test]
    fn failures_when_statuses_are_told_are_those_of_servers() {
        let failed = |status, grpc| Meaning::new(Reporter::Source, status, grpc, ResponseFlags::default()).failed;
        assert!(failed(500, None) && failed(503, None) && failed(0, None) && failed(200, Some(14)));
        assert!(!failed(200, None) && !failed(404, None) && !failed(200, Some(0)) && !failed(200, Some(5)));
        let given_up = ResponseFlags::DOWNSTREAM_REMOTE_RESET;
        assert!(!Meaning::new(Reporter::Source, 0, None, given_up).failed);
    }
}
