//! A schedule by weights: earliest deadline first.
//!
//! Each entry is due one over its weight after it was last taken, so that over time everyone is taken as often as its weight
//! says, evenly mixed. Weights are asked for when an entry is taken and may change.

use std::{cmp::Ordering, collections::BinaryHeap};

/// Weights below this are taken for this.
const LEAST: f64 = 1e-6;

#[derive(Debug, Clone, Copy, PartialEq)]
struct Entry {
    due: f64,
    order: u64,
    index: usize,
}

impl Eq for Entry {}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives the greatest; the one that is due first is it.
        other.due.total_cmp(&self.due).then(other.order.cmp(&self.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The schedule.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    queue: BinaryHeap<Entry>,
    order: u64,
}

impl Schedule {
    /// A schedule of entries with these weights.
    pub(super) fn new(weights: impl IntoIterator<Item = f64>) -> Self {
        let mut schedule = Self::default();
        for (index, weight) in weights.into_iter().enumerate() {
            schedule.add(index, 0.0, weight);
        }
        schedule
    }

    fn add(&mut self, index: usize, now: f64, weight: f64) {
        self.order += 1;
        self.queue.push(Entry { due: now + 1.0 / weight.max(LEAST), order: self.order, index });
    }

    /// Takes the next one and puts it back with its weight of now.
    pub(super) fn next(&mut self, weight: impl FnOnce(usize) -> f64) -> Option<usize> {
        let Entry { due, index, .. } = self.queue.pop()?;
        self.add(index, due, weight(index));
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedule_when_weights_differ_then_shares_follow_them_evenly_mixed() {
        let weights = [1.0, 3.0];
        let mut schedule = Schedule::new(weights);
        let taken: Vec<usize> = (0..8).filter_map(|_| schedule.next(|index| weights[index])).collect();
        assert_eq!(taken.iter().filter(|index| **index == 0).count(), 2);
        assert!(!taken.windows(2).any(|pair| pair == [0, 0]), "{taken:?}");
        assert_eq!(Schedule::default().next(|_| 1.0), None);
    }
}
