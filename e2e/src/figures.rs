//! Figures that a run measured: printed as they come, and written to `target/scenarios/latest.json`.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::{cell::RefCell, collections::BTreeMap, fs, path::Path};

/// Where the figures of the last run are, from the top of the tree.
pub const FIGURES: &str = "target/scenarios/latest.json";

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured, in snake case.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what: `s`, `ms`, `us`, `MiB`, `percent`, `requests`.
    pub unit: &'static str,
}

/// All figures of a run, in the order in which they were measured.
#[derive(Debug, Default)]
pub struct Figures(RefCell<Vec<Figure>>);

impl Figures {
    /// Prints a figure and keeps it.
    pub fn add(&self, name: impl Into<String>, value: f64, unit: &'static str) {
        let figure = Figure { name: name.into(), value, unit };
        println!("  figure {} = {:.3} {}", figure.name, figure.value, figure.unit);
        self.0.borrow_mut().push(figure);
    }

    /// Writes them as JSON, one object a figure.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        fs::write(path, serde_json::to_vec_pretty(&*self.0.borrow())?)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// What the counting client of the demo prints; times in microseconds.
#[derive(Clone, Debug, Deserialize)]
pub struct Counted {
    /// Requests sent.
    pub requests: u64,
    /// Those without an answer, or with a status of 500 and above.
    pub failed: u64,
    /// How often each status came.
    pub statuses: BTreeMap<String, u64>,
    /// How often each version answered.
    pub versions: BTreeMap<String, u64>,
    /// Median.
    pub p50_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// The slowest.
    pub max_us: u64,
    /// How long the run took.
    pub seconds: f64,
    /// The first few failures, in words.
    pub errors: Vec<String>,
}

impl Counted {
    /// How often `version` answered.
    pub fn of(&self, version: &str) -> u64 {
        self.versions.get(version).copied().unwrap_or(0)
    }

    /// Whether `count` of all requests fits a wanted share in percent: 0 and 100 exactly, others within 4.5
    /// standard deviations of a fair draw.
    pub fn fits(&self, version: &str, percent: f64) -> bool {
        let (n, share) = (self.requests as f64, percent / 100.0);
        let allowed = 4.5 * (n * share * (1.0 - share)).sqrt();
        (self.of(version) as f64 - n * share).abs() <= allowed + 1e-9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(v1: u64, v2: u64) -> Counted {
        let versions = [("v1".to_owned(), v1), ("v2".to_owned(), v2)].into();
        let (requests, failed, statuses, errors) = (v1 + v2, 0, BTreeMap::new(), Vec::new());
        Counted { requests, failed, statuses, versions, p50_us: 0, p99_us: 0, max_us: 0, seconds: 1.0, errors }
    }

    #[test]
    fn share_when_near_the_weight_fits_and_when_far_does_not() {
        assert!(counted(1790, 210).fits("v2", 10.0));
        assert!(!counted(1700, 300).fits("v2", 10.0));
        assert!(counted(2000, 0).fits("v2", 0.0));
        assert!(!counted(1999, 1).fits("v2", 0.0));
        assert!(!counted(1999, 1).fits("v1", 100.0));
    }
}
