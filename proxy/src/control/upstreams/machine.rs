//! From single checks to a verdict on an endpoint, and when to check again: Envoy's rules, without a socket or a clock.

use crate::config::HealthCheck;
use std::time::Duration;

/// How one check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The endpoint is well.
    Good,
    /// It is, and says that it is degraded.
    Degraded,
    /// It answered that it is not.
    Bad,
    /// It did not answer, or in a way that counts like that.
    Silent,
}

/// What an endpoint is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Healthy,
    Degraded,
    Unhealthy,
}

/// The checks of one endpoint so far.
#[derive(Debug)]
pub(super) struct Machine {
    verdict: Verdict,
    checked: bool,
    /// In a row, against the verdict.
    count: u32,
}

impl Default for Machine {
    /// Nobody is well before it was checked.
    fn default() -> Self {
        Self { verdict: Verdict::Unhealthy, checked: false, count: 0 }
    }
}

impl Machine {
    /// The endpoint has said that it is not well: what it takes to be well again is counted from here.
    pub(super) fn fail(&mut self) {
        *self = Self { verdict: Verdict::Unhealthy, checked: true, count: 0 };
    }

    /// Whether nothing was checked yet, and whether the endpoint is well.
    pub(super) fn is_well(&self) -> (bool, bool) {
        (!self.checked, self.verdict != Verdict::Unhealthy)
    }

    /// Takes in one check. The verdict when it is the first or another one, and how long to wait before the next check.
    pub(super) fn step(&mut self, outcome: Outcome, check: &HealthCheck, used: bool) -> (Option<Verdict>, Duration) {
        let first = !std::mem::replace(&mut self.checked, true);
        let before = self.verdict;
        let good = match outcome {
            Outcome::Good => Some(Verdict::Healthy),
            Outcome::Degraded => Some(Verdict::Degraded),
            Outcome::Bad | Outcome::Silent => None,
        };
        let mut pending = false;
        match (good, before) {
            (Some(good), Verdict::Unhealthy) => {
                self.count += 1;
                if first || self.count >= check.healthy_threshold {
                    (self.verdict, self.count) = (good, 0);
                } else {
                    pending = true;
                }
            }
            (Some(good), _) => (self.verdict, self.count) = (good, 0),
            (None, Verdict::Unhealthy) => self.count = 0,
            (None, _) => {
                self.count += 1;
                // An answer is as good as the threshold.
                if outcome == Outcome::Bad || self.count >= check.unhealthy_threshold {
                    (self.verdict, self.count) = (Verdict::Unhealthy, 0);
                } else {
                    pending = true;
                }
            }
        }
        let wait = match (used, good.is_some(), pending) {
            (false, true, false) => check.no_traffic_healthy_interval,
            (false, _, _) => check.no_traffic_interval,
            (true, true, false) => check.interval,
            (true, true, true) => check.healthy_edge_interval,
            (true, false, false) => check.unhealthy_interval,
            (true, false, true) => check.unhealthy_edge_interval,
        };
        ((first || self.verdict != before).then_some(self.verdict), wait)
    }
}
