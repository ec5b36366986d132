//! Proxies' counts now against those of a while ago.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use leno_api::proxies::BOUNDS_MS;
use leno_api::proxies::v1::{Counts, ProxyReport};
use leno_crds::meshinstall::Measured;
use leno_kubeutil::watch::Key;

use crate::plan::upgrade::Meter;

/// Reports by pod.
pub type Reports = BTreeMap<Key, Vec<ProxyReport>>;

/// Seconds between two entries of the history.
pub const EVERY_SECONDS: i64 = 9;
/// Entries that are kept: what was a minute ago is compared with.
const ENTRIES: usize = 7;

/// What proxies reported in the last minute. Bounded: seven snapshots that share what did not change.
#[derive(Clone, Debug, Default)]
pub struct History(VecDeque<(Timestamp, Arc<Reports>)>);

impl History {
    /// Remembers what is reported now, unless that was done a moment ago.
    pub fn push(&mut self, now: Timestamp, reports: &Arc<Reports>) {
        let due = self.0.back().is_none_or(|(last, _)| now.as_second() - last.as_second() >= EVERY_SECONDS);
        if due {
            self.0.push_back((now, reports.clone()));
            if self.0.len() > ENTRIES {
                self.0.pop_front();
            }
        }
    }
}

/// Compares what is reported now with what was.
pub struct Comparison<'a> {
    /// What is reported now.
    pub now: &'a Reports,
    /// What was.
    pub history: &'a History,
}

impl Comparison<'_> {
    fn difference(&self, pods: &BTreeSet<Key>, before: Option<&Reports>) -> Measured {
        let mut sum = Sum::default();
        for (key, report) in of_pods(self.now, pods) {
            let same =
                |other: &&ProxyReport| other.slot == report.slot && other.serving_since_ms == report.serving_since_ms;
            let before = before.and_then(|before| before.get(key)?.iter().find(same));
            sum.add(report, before);
        }
        sum.measured()
    }
}

impl Meter for Comparison<'_> {
    fn lately(&self, pods: &BTreeSet<Key>) -> Measured {
        self.difference(pods, self.history.0.front().map(|(_, reports)| reports.as_ref()))
    }

    fn since(&self, pods: &BTreeSet<Key>, then: Timestamp) -> Measured {
        // The last entry before: what is measured may be a little more, and never less.
        let before = self.history.0.iter().rev().find(|(at, _)| *at <= then).or(self.history.0.front());
        self.difference(pods, before.map(|(_, reports)| reports.as_ref()))
    }

    fn of_release(&self, pods: &BTreeSet<Key>, version: &str) -> Measured {
        let mut sum = Sum::default();
        of_pods(self.now, pods)
            .filter(|(_, report)| report.version == version)
            .for_each(|(_, report)| sum.add(report, None));
        sum.measured()
    }
}

fn of_pods<'a>(reports: &'a Reports, pods: &'a BTreeSet<Key>) -> impl Iterator<Item = (&'a Key, &'a ProxyReport)> {
    reports
        .iter()
        .filter(|(key, _)| pods.contains(*key))
        .flat_map(|(key, reports)| reports.iter().map(move |report| (key, report)))
}

#[derive(Default)]
struct Sum {
    requests: u64,
    failures: u64,
    durations: [u64; BOUNDS_MS.len() + 1],
    rejected: u64,
    resident: u64,
}

impl Sum {
    fn add(&mut self, report: &ProxyReport, before: Option<&ProxyReport>) {
        self.counts(report.inbound.as_ref(), before.and_then(|before| before.inbound.as_ref()));
        self.counts(report.outbound.as_ref(), before.and_then(|before| before.outbound.as_ref()));
        self.rejected += report.rejected;
        self.resident = self.resident.max(report.resident_bytes);
    }

    fn counts(&mut self, now: Option<&Counts>, before: Option<&Counts>) {
        let Some(now) = now else { return };
        let nothing = Counts::default();
        let before = before.unwrap_or(&nothing);
        self.requests += now.requests.saturating_sub(before.requests);
        self.failures += now.failures.saturating_sub(before.failures);
        for (place, (sum, now)) in self.durations.iter_mut().zip(&now.durations).enumerate() {
            *sum += now.saturating_sub(before.durations.get(place).copied().unwrap_or(0));
        }
    }

    fn measured(&self) -> Measured {
        let total: u64 = self.durations.iter().sum();
        let bound = |place: usize| BOUNDS_MS.get(place).copied().unwrap_or(BOUNDS_MS[BOUNDS_MS.len() - 1] * 2);
        let (mut seen, mut p90, mut weighted) = (0, 0, 0);
        for (place, count) in self.durations.iter().enumerate() {
            let lower = place.checked_sub(1).map_or(0, bound);
            weighted += count * (lower + bound(place)) / 2;
            // Within a class they are taken to be spread evenly, or a few milliseconds more could look like twice as many.
            if seen * 10 < total * 9 && *count > 0 {
                let rank = (total * 9).div_ceil(10).saturating_sub(seen).min(*count);
                p90 = lower + ((bound(place) - lower) * rank).div_ceil(*count);
            }
            seen += count;
        }
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        Measured {
            requests: number(self.requests),
            failures: number(self.failures),
            p90_ms: if total == 0 { 0 } else { number(p90) },
            mean_ms: number(weighted.checked_div(total).unwrap_or(0)),
            rejected: number(self.rejected),
            resident_mebibytes: number(self.resident >> 20),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(slot: u32, since: u64, version: &str, requests: u64, failures: u64) -> ProxyReport {
        let mut durations = vec![0; BOUNDS_MS.len() + 1];
        let class = BOUNDS_MS.iter().position(|bound| *bound == 5).unwrap();
        durations[class] = requests;
        ProxyReport {
            slot,
            version: version.to_owned(),
            serving_since_ms: since,
            inbound: Some(Counts { requests, failures, durations }),
            resident_bytes: 14 << 20,
            ..ProxyReport::default()
        }
    }

    fn reports(list: Vec<ProxyReport>) -> Reports {
        BTreeMap::from([(Key::new("shop", "front"), list)])
    }

    fn pods() -> BTreeSet<Key> {
        BTreeSet::from([Key::new("shop", "front")])
    }

    #[test]
    fn counts_when_a_process_is_new_then_all_of_it_counts_and_of_an_old_one_what_was_added() {
        let mut history = History::default();
        let before = Arc::new(reports(vec![report(0, 5, "0.1.0", 100, 1)]));
        history.push(Timestamp::UNIX_EPOCH, &before);
        let now = reports(vec![report(0, 5, "0.1.0", 150, 3), report(1, 9, "0.2.0", 30, 0)]);
        let comparison = Comparison { now: &now, history: &history };
        let lately = comparison.lately(&pods());
        assert_eq!((lately.requests, lately.failures, lately.p90_ms, lately.mean_ms), (80, 2, 5, 3));
        assert_eq!(lately.resident_mebibytes, 14);
        assert_eq!(comparison.of_release(&pods(), "0.2.0").requests, 30);
        assert_eq!(comparison.of_release(&BTreeSet::new(), "0.2.0"), Measured::default());
    }

    #[test]
    fn percentile_when_requests_are_in_several_classes_then_is_where_it_would_be_within_its_class() {
        let mut slow = report(0, 5, "0.1.0", 90, 0);
        let class = BOUNDS_MS.iter().position(|bound| *bound == 250).unwrap();
        if let Some(counts) = &mut slow.inbound {
            counts.requests = 110;
            counts.durations[class] = 20;
        }
        let now = reports(vec![slow]);
        let measured = Comparison { now: &now, history: &History::default() }.of_release(&pods(), "0.1.0");
        // The 99th of 110 is the ninth of the 20 that took 100 to 250 ms.
        assert_eq!((measured.requests, measured.p90_ms), (110, 168));
    }

    #[test]
    fn history_when_pushed_often_then_holds_the_last_minute() {
        let mut history = History::default();
        let at = |second| Timestamp::from_second(second).unwrap();
        for second in 0..200 {
            history.push(at(second), &Arc::default());
        }
        assert_eq!(history.0.len(), ENTRIES);
        assert_eq!(history.0.front().unwrap().0, at(198 - 6 * EVERY_SECONDS));
        assert_eq!(history.0.back().unwrap().0, at(198));
    }
}
