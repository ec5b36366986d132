//! Which statistics are shown, and how Prometheus gets them: what a configuration says about that (`stats_config`).

use super::histogram::{BOUNDS, Summed};
use super::tags::Tags;
use crate::config::StringMatch;

/// Statistics that are shown, by their names.
#[derive(Debug, Default)]
pub enum Shown {
    /// All.
    #[default]
    All,
    /// None.
    None,
    /// Those that fit one of these.
    Only(Vec<StringMatch>),
    /// Those that fit none of these.
    AllBut(Vec<StringMatch>),
}

/// What is shown, and how. Nobody asks for it but who shows statistics: they are counted all the same.
#[derive(Debug, Default)]
pub struct Display {
    /// Which.
    pub shown: Shown,
    /// How names become labels; `None` is as it is usual, with names that have dots in them whole.
    pub tags: Option<Tags>,
    /// Labels that all get; where there are other `tags`, those know them.
    pub fixed: Vec<(Box<str>, Box<str>)>,
    /// Bounds for times by name: the first that fits counts.
    pub buckets: Vec<(StringMatch, Bounds)>,
}

/// Bounds of buckets: some of those that are counted.
#[derive(Debug)]
pub struct Bounds([bool; BOUNDS.len()]);

impl Bounds {
    /// These, in milliseconds.
    ///
    /// # Errors
    /// Gives the first that is not counted.
    pub fn new(bounds: &[f64]) -> Result<Self, f64> {
        let mut kept = [false; BOUNDS.len()];
        for bound in bounds {
            let at = BOUNDS.iter().position(|known| known == bound).ok_or(*bound)?;
            kept[at] = true;
        }
        Ok(Self(kept))
    }

    /// Whether the bound at this place is one.
    pub(super) fn has(&self, place: usize) -> bool {
        self.0.get(place).copied().unwrap_or(true)
    }
}

impl Display {
    /// Whether the statistic of this name is shown.
    pub fn shows(&self, name: &str) -> bool {
        let fits = |all: &[StringMatch]| all.iter().any(|one| one.matches(name.as_bytes()));
        match &self.shown {
            Shown::All => true,
            Shown::None => false,
            Shown::Only(all) => fits(all),
            Shown::AllBut(all) => !fits(all),
        }
    }

    /// The buckets of the times of this name: their bounds with what lies below each, and how many there are in all.
    pub fn buckets(&self, name: &str, sum: &Summed) -> (Vec<(f64, u64)>, u64) {
        let bounds = self.buckets.iter().find(|(fits, _)| fits.matches(name.as_bytes())).map(|(_, bounds)| bounds);
        let mut below = 0;
        let mut all = Vec::with_capacity(BOUNDS.len());
        for (place, (bound, count)) in BOUNDS.iter().zip(&sum.buckets).enumerate() {
            below += count;
            if bounds.is_none_or(|bounds| bounds.has(place)) {
                all.push((*bound, below));
            }
        }
        (all, sum.count())
    }

    /// The family of a name, and its labels.
    pub(super) fn split(
        &self,
        name: &str,
        family: &str,
        labels: &[(&'static str, String)],
    ) -> (String, Vec<(Box<str>, String)>) {
        if let Some(tags) = &self.tags {
            return tags.split(name);
        }
        let own = labels.iter().map(|(label, value)| ((*label).into(), value.clone()));
        let fixed = self.fixed.iter().map(|(label, value)| (label.clone(), value.to_string()));
        (family.to_owned(), own.chain(fixed).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_when_only_some_are_to_be_shown_then_others_are_not() {
        let names = || vec![StringMatch::Prefix("cluster.".into()), StringMatch::Exact("server.live".into())];
        let shows = |shown, name| Display { shown, ..Display::default() }.shows(name);
        assert!(shows(Shown::All, "a") && !shows(Shown::None, "a"));
        assert!(shows(Shown::Only(names()), "cluster.a") && !shows(Shown::Only(names()), "server.lives"));
        assert!(!shows(Shown::AllBut(names()), "cluster.a") && shows(Shown::AllBut(names()), "server.lives"));
    }

    #[test]
    fn buckets_when_bounds_are_written_for_a_name_then_they_are_those_and_count_the_same() {
        let bounds = Bounds::new(&[1.0, 1000.0]).unwrap();
        let display = Display { buckets: vec![(StringMatch::Suffix("_ms".into()), bounds)], ..Display::default() };
        let sum = Summed { buckets: std::array::from_fn(|_| 1), ..Summed::default() };
        assert_eq!(display.buckets("x_ms", &sum), (vec![(1.0, 2), (1000.0, 10)], 20));
        assert_eq!(display.buckets("x", &sum).0.len(), BOUNDS.len());
        assert_eq!(Bounds::new(&[1.0, 7.5]).unwrap_err(), 7.5);
    }
}
