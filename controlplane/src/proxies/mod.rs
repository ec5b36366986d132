//! What connected proxies last told of themselves.
//!
//! A replica knows the proxies that are connected to it and nothing else: nothing is kept, nothing is written, and a replica that
//! starts knows everything again as soon as its proxies have connected.

mod service;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use leno_api::proxies::v1::{ProxyRef, ProxyReport};
use leno_core::ObjectKey;
use tokio::sync::watch;

pub use service::{MAX_REPORT, ReportService, StatusService};

/// Whose report it is: the pod, and which of its two slots.
type Place = (ObjectKey, u32);

/// The last report of every open stream; of two streams of one slot the newer one counts. Bounded by them: a report is at most
/// [`MAX_REPORT`] bytes.
#[derive(Debug, Default)]
pub struct Table {
    entries: Mutex<Entries>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Entries {
    by_place: BTreeMap<Place, Entry>,
    /// Counts changes.
    version: u64,
}

#[derive(Debug)]
struct Entry {
    stream: u64,
    report: Arc<ProxyReport>,
    /// When it last changed.
    version: u64,
}

/// What a reader has been told.
#[derive(Debug, Default)]
struct Told {
    version: Option<u64>,
    /// The streams that it was told of.
    places: BTreeMap<Place, u64>,
}

/// What it must be told now.
#[derive(Debug, Default, PartialEq)]
struct News {
    full: bool,
    changed: Vec<Arc<ProxyReport>>,
    gone: Vec<ProxyRef>,
}

impl Table {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a report of a stream. One that says the same as before wakes nobody.
    fn put(&self, stream: u64, report: ProxyReport) {
        let place = (ObjectKey::new(&report.namespace, &report.pod), report.slot);
        let version = {
            let mut entries = self.entries();
            if entries.by_place.get(&place).is_some_and(|held| held.stream == stream && *held.report == report) {
                return;
            }
            entries.version += 1;
            let version = entries.version;
            entries.by_place.insert(place, Entry { stream, report: Arc::new(report), version });
            version
        };
        self.changes.send_replace(version);
    }

    /// A stream has ended.
    fn gone(&self, stream: u64, place: &Place) {
        let version = {
            let mut entries = self.entries();
            if entries.by_place.get(place).is_none_or(|held| held.stream != stream) {
                return;
            }
            entries.by_place.remove(place);
            entries.version += 1;
            entries.version
        };
        self.changes.send_replace(version);
    }

    /// What a reader that was told this must be told, and notes that it has been.
    fn news(&self, told: &mut Told) -> News {
        let entries = self.entries();
        let mut news = News { full: told.version.is_none(), ..News::default() };
        let since = told.version.unwrap_or(0);
        for (place, entry) in &entries.by_place {
            if news.full || entry.version > since {
                news.changed.push(entry.report.clone());
                told.places.insert(place.clone(), entry.stream);
            }
        }
        told.version = Some(entries.version);
        told.places.retain(|place, _| {
            let stays = entries.by_place.contains_key(place);
            if !stays {
                let (pod, slot) = place;
                news.gone.push(ProxyRef { namespace: pod.namespace.clone(), pod: pod.name.clone(), slot: *slot });
            }
            stays
        });
        news
    }

    /// How many proxies report.
    pub fn len(&self) -> usize {
        self.entries().by_place.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(pod: &str, rejected: u64) -> ProxyReport {
        ProxyReport { namespace: "shop".to_owned(), pod: pod.to_owned(), rejected, ..ProxyReport::default() }
    }

    fn place(pod: &str) -> Place {
        (ObjectKey::new("shop", pod), 0)
    }

    fn names(news: &News) -> Vec<&str> {
        news.changed.iter().map(|report| report.pod.as_str()).collect()
    }

    #[test]
    fn reader_when_it_comes_is_told_everything_and_then_what_changed() {
        let (table, mut told) = (Table::default(), Told::default());
        assert!(table.news(&mut Told::default()).full, "that there is nothing is said too");
        table.put(1, report("a", 0));
        table.put(2, report("b", 0));
        let news = table.news(&mut told);
        assert!(news.full);
        assert_eq!(names(&news), ["a", "b"]);
        table.put(1, report("a", 0));
        assert_eq!(table.news(&mut told), News::default(), "it said the same again");
        table.put(1, report("a", 1));
        assert_eq!(names(&table.news(&mut told)), ["a"]);
        table.gone(2, &place("b"));
        let news = table.news(&mut told);
        assert_eq!((news.changed.len(), news.gone.len()), (0, 1));
        assert_eq!(news.gone[0].pod, "b");
    }

    #[test]
    fn stream_when_a_newer_one_of_its_slot_reports_takes_nothing_away_at_its_end() {
        let (table, mut told) = (Table::default(), Told::default());
        table.put(1, report("a", 0));
        table.put(2, report("a", 0));
        table.gone(1, &place("a"));
        assert_eq!(names(&table.news(&mut told)), ["a"]);
        table.gone(2, &place("a"));
        assert_eq!(table.news(&mut told).gone.len(), 1);
        assert!(table.is_empty());
    }
}
