//! Waits between attempts: doubling up to a bound, and jittered, so that a thousand proxies do not come back at once.

use rand::Rng as _;
use std::time::Duration;

/// The next wait is a random time between half of the current step and the whole of it.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    step: Duration,
}

impl Backoff {
    /// Begins with `first` and never waits longer than `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, step: first }
    }

    /// How long to wait now.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Duration {
        let step = self.step;
        self.step = (step * 2).min(self.longest);
        step.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Begins anew, after a success.
    pub fn reset(&mut self) {
        self.step = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_after_many_failures_stays_within_its_bound() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        assert!(backoff.next() <= Duration::from_millis(100));
        for _ in 0..40 {
            backoff.next();
        }
        let wait = backoff.next();
        assert!(wait >= Duration::from_millis(2500) && wait <= Duration::from_secs(5), "{wait:?}");
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(100));
    }
}
