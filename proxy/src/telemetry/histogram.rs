//! Counters and histograms with one writer: a worker stores, the control thread loads, nobody locks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Upper bounds of the buckets: Envoy's defaults, which Istio's metrics use for milliseconds and for bytes alike.
pub const BOUNDS: [f64; 19] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0, 30000.0, 60000.0, 300000.0,
    600000.0, 1800000.0, 3600000.0,
];

/// A counter that exactly one thread writes. Adding is a load and a store, not a locked instruction.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`; wraps at 2^64. Only the owning worker may call it.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The value, from any thread.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A histogram over [`BOUNDS`] that exactly one thread writes.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One a bucket, the last for what is above every bound; not cumulative.
    buckets: [Counter; BOUNDS.len() + 1],
    /// The sum in thousandths.
    sum: Counter,
}

impl Histogram {
    /// Records a value given in thousandths of the unit (microseconds for milliseconds).
    pub fn record_thousandths(&self, thousandths: u64) {
        let value = thousandths as f64 / 1000.0;
        let bucket = BOUNDS.partition_point(|bound| *bound < value);
        self.buckets[bucket].add(1);
        self.sum.add(thousandths);
    }

    /// Records a whole value.
    pub fn record(&self, value: u64) {
        self.record_thousandths(value.saturating_mul(1000));
    }
}

impl Histogram {
    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.buckets.iter().all(|bucket| bucket.get() == 0)
    }
}

/// A histogram summed over workers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summed {
    /// Counts a bucket, not cumulative.
    pub buckets: [u64; BOUNDS.len() + 1],
    /// The sum in thousandths.
    pub sum_thousandths: u64,
}

impl Summed {
    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The value below which this share of the values lies, as far as the buckets tell it: within one they are taken to lie evenly.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let count = self.count();
        let (wanted, mut seen) = (share * count as f64, 0.0);
        let mut low = 0.0;
        for (index, here) in self.buckets.iter().enumerate().filter(|(_, here)| **here > 0) {
            let high = BOUNDS.get(index).copied().unwrap_or(BOUNDS[BOUNDS.len() - 1]);
            low = if index == 0 { low } else { BOUNDS[index - 1] };
            if seen + *here as f64 >= wanted {
                return Some(low + (high - low) * ((wanted - seen) / *here as f64).clamp(0.0, 1.0));
            }
            seen += *here as f64;
        }
        (count > 0).then_some(low)
    }

    /// Adds one worker's histogram.
    pub fn add(&mut self, histogram: &Histogram) {
        for (sum, bucket) in self.buckets.iter_mut().zip(&histogram.buckets) {
            *sum += bucket.get();
        }
        self.sum_thousandths = self.sum_thousandths.wrapping_add(histogram.sum.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histogram_when_a_value_is_on_a_bound_then_it_counts_below_it() {
        let histogram = Histogram::default();
        histogram.record(5);
        histogram.record_thousandths(5001);
        histogram.record(4_000_000);
        let mut summed = Summed::default();
        summed.add(&histogram);
        assert_eq!(summed.buckets[2], 1);
        assert_eq!(summed.buckets[3], 1);
        assert_eq!(summed.buckets[19], 1);
    }
}
