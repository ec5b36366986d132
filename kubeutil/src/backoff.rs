//! Backoff for each object by itself: one that keeps failing does not slow the others.

use std::collections::BTreeMap;
use std::time::Duration;

/// First wait.
pub const FIRST: Duration = Duration::from_secs(1);
/// Longest wait.
pub const LONGEST: Duration = Duration::from_secs(300);

/// Waits by key. Holds one entry a failing key; [`Backoff::succeeded`] removes it.
#[derive(Debug, Default)]
pub struct Backoff<K: Ord> {
    failures: BTreeMap<K, u32>,
}

impl<K: Ord> Backoff<K> {
    /// No failures yet.
    pub fn new() -> Self {
        Backoff { failures: BTreeMap::new() }
    }

    /// The key failed once more. Returns how long to wait: 1 s, doubling, 5 min at most.
    pub fn failed(&mut self, key: K) -> Duration {
        let failures = self.failures.entry(key).or_insert(0);
        let wait = FIRST.saturating_mul(1 << (*failures).min(16)).min(LONGEST);
        *failures = failures.saturating_add(1);
        wait
    }

    /// The key is fine, or gone.
    pub fn succeeded(&mut self, key: &K) {
        self.failures.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_when_a_key_keeps_failing_then_waits_longer_up_to_a_bound() {
        let mut backoff = Backoff::new();
        let waits: Vec<u64> = (0..12).map(|_| backoff.failed("a").as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(backoff.failed("b").as_secs(), 1);
        backoff.succeeded(&"a");
        assert_eq!(backoff.failed("a").as_secs(), 1);
    }
}
