//! Builds that must not stay: each is taken back after the first wave, and only what it served may have been touched.

use super::{MOVED, Run, mesh, mesh::Seen};
use crate::bed::ensure;
use anyhow::Result;
use serde_json::json;

/// Pods of the first wave.
const FIRST_WAVE: i64 = 1;

pub(super) fn proxy(run: &Run, fault: &str) -> Result<String> {
    run.builds.spoil(run.bed, "proxy", fault)?;
    comes_back(run, FIRST_WAVE)
}

/// A bad control plane is taken back before any pod is moved.
pub(super) fn control_plane(run: &Run, fault: &str) -> Result<String> {
    run.builds.spoil(run.bed, "control-plane", fault)?;
    comes_back(run, 0)
}

/// Nothing moves to an image that is nowhere.
pub(super) fn image_missing(run: &Run) -> Result<String> {
    run.builds.remove(run.bed, "proxy")?;
    let note = comes_back(run, 0)?;
    ensure(note.contains("image") || note.contains("proxy"), || {
        format!("it does not say that an image is missing: {note}")
    })?;
    Ok(note)
}

/// Asks for the previous release, and waits until everything is on the present one again, by itself.
fn comes_back(run: &Run, most: i64) -> Result<String> {
    let (version, previous) = (run.version(), run.previous());
    mesh::spec(run.bed, &json!({"version": previous}))?;
    mesh::follow(run.bed, "the bad release to be rolled back", MOVED, |seen| {
        ensure(seen.last() == (version, previous, "RolledBack"), || "it has not been rolled back".to_owned())?;
        ensure(!seen.is_moving(), || "it is still moving".to_owned())?;
        seen.runs(version)?;
        Ok(Some(()))
    })?;
    mesh::in_every_pod(run.bed, version)?;
    let last = Seen::now(run.bed)?.0["status"]["lastUpgrade"].clone();
    let moved = last["reached"].as_i64().unwrap_or(0);
    ensure(moved <= most, || format!("it came to serve in {moved} pods, and the first wave has {most}"))?;
    let text = |field: &str| last[field].as_str().unwrap_or_default().to_owned();
    ensure(!text("reason").is_empty() && !text("message").is_empty(), || {
        format!("it does not say why it came back: {last}")
    })?;
    Ok(format!("{}: {}", text("reason"), text("message")))
}
