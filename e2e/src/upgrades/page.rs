//! What the scenarios found: a file for programs, and a table in `docs/upgrades.md` for people.

use super::gauge::Counted;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::{fmt::Write as _, fs, path::Path};

/// Where the last run is, from the top of the tree.
pub const LATEST: &str = "target/upgrades/latest.json";
/// The page with the table.
pub const PAGE: &str = "docs/upgrades.md";
const BEGIN: &str = "<!-- measured: begin -->";
const END: &str = "<!-- measured: end -->";

/// What a scenario found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Its name.
    pub scenario: String,
    /// Whether it ended as it must.
    pub passed: bool,
    /// Why not; empty when it did.
    pub failure: String,
    /// Injected pods.
    pub pods: u32,
    /// The release that runs at its end, before anything is put back.
    pub final_version: String,
    /// How the change of release ended: `Completed`, `RolledBack`, `Superseded`; empty where there was none.
    pub result: String,
    /// Most pods in which the other release served at a time: of a bad build its blast radius.
    pub reached: i64,
    /// What the scenario itself has to say.
    pub note: String,
    /// What was counted.
    #[serde(flatten)]
    pub counted: Counted,
}

impl Row {
    /// For the terminal.
    pub fn line(&self) -> String {
        let counted = &self.counted;
        format!(
            "{} requests, {} failed, {} failed by the bad build, {} app restarts, {} pods replaced, {} streams ended, on {}, {} s{}{}",
            counted.requests,
            counted.failed_requests,
            counted.failed_by_the_bad_build,
            counted.app_restarts,
            counted.replaced_pods,
            counted.ended_streams,
            self.final_version,
            counted.seconds,
            if self.note.is_empty() { "" } else { "; " },
            self.note,
        )
    }
}

/// Writes the rows as JSON. Rows of an earlier run whose scenario was not run again stay.
///
/// # Errors
/// When the file cannot be written.
pub fn write_latest(path: &Path, rows: &[Row]) -> Result<()> {
    let mut all = read_latest(path);
    all.retain(|old| rows.iter().all(|row| row.scenario != old.scenario));
    all.extend(rows.iter().cloned());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(path, serde_json::to_vec_pretty(&all)?).with_context(|| format!("cannot write {}", path.display()))
}

/// What it says; nothing when there is none that can be read.
pub fn read_latest(path: &Path) -> Vec<Row> {
    fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// The table for people.
fn table(rows: &[Row]) -> Result<String> {
    let mut text = String::new();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    writeln!(text, "One node of {cores} cores, {}.\n", std::env::consts::ARCH)?;
    writeln!(
        text,
        "| scenario | pods | ends | on | reached | requests | failed | by the bad build | app restarts | pods replaced | streams ended | s |"
    )?;
    writeln!(text, "|---|--:|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")?;
    for row in rows {
        let counted = &row.counted;
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {:.0} |",
            row.scenario.replace('_', " "),
            row.pods,
            match (row.passed, row.result.as_str()) {
                (false, _) => "**failed**",
                (true, "") => "as it must",
                (true, result) => result,
            },
            row.final_version,
            if row.result.is_empty() { "–".to_owned() } else { row.reached.to_string() },
            counted.requests,
            counted.failed_requests,
            counted.failed_by_the_bad_build,
            counted.app_restarts,
            counted.replaced_pods,
            counted.ended_streams,
            counted.seconds,
        )?;
    }
    Ok(text)
}

/// Puts the table between the marks of the page.
///
/// # Errors
/// Where the page is not there or has no marks.
pub fn write_page(path: &Path, rows: &[Row]) -> Result<()> {
    let page = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    fs::write(path, put(&page, &table(rows)?).with_context(|| format!("{} has no {BEGIN}", path.display()))?)?;
    Ok(())
}

fn put(page: &str, table: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(scenario: &str) -> Row {
        Row {
            scenario: scenario.to_owned(),
            passed: true,
            failure: String::new(),
            pods: 30,
            final_version: "0.1.0".to_owned(),
            result: "Completed".to_owned(),
            reached: 30,
            note: String::new(),
            counted: Counted { requests: 1000, seconds: 12.4, ..Counted::default() },
        }
    }

    #[test]
    fn page_when_written_twice_then_has_one_table_and_all_else_stays() {
        let page = format!("# Upgrades\n{BEGIN}\nold\n{END}\nmore\n");
        let once = put(&page, &table(&[row("up_and_down")]).unwrap()).unwrap();
        let twice = put(&once, &table(&[row("up_and_down")]).unwrap()).unwrap();
        assert_eq!(once, twice);
        assert!(
            once.contains("| up and down | 30 | Completed | 0.1.0 | 30 | 1000 | 0 | 0 | 0 | 0 | 0 | 12 |"),
            "{once}"
        );
        assert!(!once.contains("old") && once.ends_with("more\n"));
        assert!(put("# no marks", "").is_none());
    }

    #[test]
    fn latest_when_only_one_scenario_is_run_again_then_the_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/latest.json");
        write_latest(&path, &[row("one"), row("two")]).unwrap();
        write_latest(&path, &[row("two")]).unwrap();
        let all: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let names: Vec<_> = all.as_array().unwrap().iter().map(|row| row["scenario"].as_str().unwrap()).collect();
        assert_eq!(names, ["one", "two"]);
        for field in ["requests", "failed_requests", "app_restarts", "final_version", "seconds", "ended_streams"] {
            assert!(!all[0][field].is_null(), "{field}");
        }
    }
}
