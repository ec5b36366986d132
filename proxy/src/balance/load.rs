//! How load is spread over priorities by the health of their endpoints: Envoy's arithmetic, from counts alone.

use crate::config::{Balancing, Spread};

/// What a priority has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Endpoints, whatever their health.
    pub(super) all: u64,
    /// Endpoints that are out of the reckoning.
    pub(super) excluded: u64,
    /// Healthy ones.
    pub(super) healthy: u64,
    /// Degraded ones.
    pub(super) degraded: u64,
    /// The weights of all that are not excluded, of the healthy ones and of the degraded ones.
    pub(super) weights: [u64; 3],
}

impl Counts {
    /// Whether there is nobody at all.
    pub fn is_empty(&self) -> bool {
        self.all == 0
    }

    /// Whether somebody is healthy or degraded.
    pub fn has_usable(&self) -> bool {
        self.healthy + self.degraded > 0
    }

    /// Whether less than this percentage of those that count is usable.
    pub(super) fn are_too_few(&self, threshold: u8) -> bool {
        let known = self.all - self.excluded;
        let percent = |part: u64| if known == 0 { 0.0 } else { 100.0 * part as f64 / known as f64 };
        percent(self.healthy) + percent(self.degraded) < f64::from(threshold.min(100))
    }
}

/// What a priority gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Percent of all requests for its healthy endpoints.
    pub(super) healthy: u32,
    /// Percent of all requests for its degraded endpoints.
    pub(super) degraded: u32,
    /// Too few are usable: whatever it gets goes to all of its endpoints.
    pub(super) panic: bool,
}

/// The load of each priority; the percentages are together 100 (of no priority at all, nothing).
pub(super) fn loads(priorities: &[Counts], balancing: &Balancing, spread: Spread) -> Vec<Load> {
    let priorities: Vec<_> = priorities.iter().map(|counts| (*counts, spread)).collect();
    loads_of(&priorities, balancing)
}

/// As [`loads`], of priorities that each have their own arithmetic.
pub(super) fn loads_of(priorities: &[(Counts, Spread)], balancing: &Balancing) -> Vec<Load> {
    let usable = |spread: Spread, part: u64, all: u64| {
        let percent = (u64::from(spread.overprovisioning) * part).checked_div(all).unwrap_or(0);
        percent.min(100) as u32
    };
    let shares = |&(counts, spread): &(Counts, Spread)| {
        let Counts { all, excluded, healthy, degraded, weights: [weight, healthy_weight, degraded_weight] } = counts;
        if spread.weighted_health {
            (usable(spread, healthy_weight, weight), usable(spread, degraded_weight, weight))
        } else {
            (usable(spread, healthy, all - excluded), usable(spread, degraded, all - excluded))
        }
    };
    let (healthy, degraded): (Vec<u32>, Vec<u32>) = priorities.iter().map(shares).unzip();
    let available = (healthy.iter().sum::<u32>() + degraded.iter().sum::<u32>()).min(100);
    let mut loads = vec![Load::default(); priorities.len()];
    spread_by_health(&mut loads, &healthy, &degraded, available);
    decide_panic(&mut loads, priorities, balancing, available);
    loads
}

fn spread_by_health(loads: &mut [Load], healthy: &[u32], degraded: &[u32], available: u32) {
    if available == 0 {
        if let Some(first) = loads.first_mut() {
            first.healthy = 100;
        }
        return;
    }
    let mut left = 100;
    for (load, share) in loads.iter_mut().zip(healthy) {
        load.healthy = left.min(share * 100 / available);
        left -= load.healthy;
    }
    for (load, share) in loads.iter_mut().zip(degraded) {
        load.degraded = left.min(share * 100 / available);
        left -= load.degraded;
    }
    // What rounding leaves over.
    if let Some(at) = healthy.iter().position(|share| *share > 0) {
        loads[at].healthy += left;
    } else if let Some(at) = degraded.iter().position(|share| *share > 0) {
        loads[at].degraded += left;
    }
}

fn decide_panic(loads: &mut [Load], priorities: &[(Counts, Spread)], balancing: &Balancing, available: u32) {
    let threshold = balancing.panic_threshold;
    if threshold == 0 && available == 0 {
        return;
    }
    for (load, (counts, _)) in loads.iter_mut().zip(priorities) {
        load.panic = available < 100 && counts.are_too_few(threshold);
    }
    if !loads.iter().all(|load| load.panic) {
        return;
    }
    // All in panic: health tells nothing, load is spread by number.
    let total: u64 = priorities.iter().map(|(counts, _)| counts.all).sum();
    for load in loads.iter_mut() {
        (load.healthy, load.degraded) = (0, 0);
    }
    let Some(first) = priorities.iter().position(|(counts, _)| counts.all > 0) else {
        if let Some(first) = loads.first_mut() {
            first.healthy = 100;
        }
        return;
    };
    let mut left = 100;
    for (load, (counts, _)) in loads.iter_mut().zip(priorities) {
        load.healthy = (100 * counts.all / total) as u32;
        left -= load.healthy;
    }
    loads[first].healthy += left;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(all: u64, healthy: u64, degraded: u64) -> Counts {
        Counts { all, healthy, degraded, excluded: 0, weights: [all, healthy, degraded] }
    }

    fn shares(priorities: &[(u64, u64, u64)]) -> Vec<(u32, u32, bool)> {
        let counts: Vec<Counts> = priorities.iter().map(|(all, up, worse)| counts(*all, *up, *worse)).collect();
        let loads = loads(&counts, &Balancing::default(), Spread::default());
        loads.iter().map(|load| (load.healthy, load.degraded, load.panic)).collect()
    }

    #[test]
    fn load_when_a_priority_loses_endpoints_then_the_next_takes_over_as_envoy_documents() {
        // The table of Envoy's documentation on priority levels, two priorities.
        for (first, expected) in [(100, 100), (72, 100), (71, 99), (50, 70), (25, 35), (0, 0)] {
            let loads = shares(&[(100, first, 0), (100, 100, 0)]);
            assert_eq!((loads[0].0, loads[1].0), (expected, 100 - expected), "{first} percent healthy");
        }
        // Normalised, because both together cannot take all.
        let loads = shares(&[(100, 25, 0), (100, 25, 0)]);
        assert_eq!((loads[0], loads[1]), ((50, 0, true), (50, 0, true)));
    }

    #[test]
    fn load_when_endpoints_are_degraded_then_they_get_what_no_healthy_one_can_take() {
        // As in the same documentation: healthy ones of later priorities come before degraded ones.
        assert_eq!(shares(&[(100, 0, 100), (100, 100, 0)]), [(0, 0, false), (100, 0, false)]);
        assert_eq!(shares(&[(100, 25, 75), (100, 0, 100)]), [(35, 65, false), (0, 0, false)]);
        assert_eq!(shares(&[(3, 0, 3)]), [(0, 100, false)]);
    }

    #[test]
    fn load_when_too_few_are_usable_then_panic_and_only_when_it_is_allowed() {
        assert_eq!(shares(&[(4, 1, 0)]), [(100, 0, true)]);
        assert_eq!(shares(&[(4, 2, 0)]), [(100, 0, false)], "half is enough");
        assert_eq!(shares(&[(4, 0, 0), (12, 0, 0)]), [(25, 0, true), (75, 0, true)]);
        assert_eq!(shares(&[(4, 0, 0), (4, 4, 0)]), [(0, 0, false), (100, 0, false)]);
        let never = Balancing { panic_threshold: 0, ..Balancing::default() };
        let load = loads(&[counts(4, 0, 0)], &never, Spread::default());
        assert_eq!(load, [Load { healthy: 100, degraded: 0, panic: false }]);
        assert_eq!(shares(&[]), []);
    }

    #[test]
    fn load_when_health_is_weighted_or_endpoints_are_excluded_then_only_those_count() {
        let mut first = counts(10, 5, 0);
        first.weights = [100, 90, 0];
        let second = counts(10, 10, 0);
        let spread = Spread { weighted_health: true, ..Spread::default() };
        assert_eq!(loads(&[first, second], &Balancing::default(), spread)[0].healthy, 100);
        assert_eq!(loads(&[first, second], &Balancing::default(), Spread::default())[0].healthy, 70);
        first.excluded = 5;
        assert_eq!(loads(&[first, second], &Balancing::default(), Spread::default())[0].healthy, 100);
    }
}
