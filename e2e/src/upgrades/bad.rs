//! Builds that must not stay: each is taken back before the first wave or after it, and only what it served may have been touched.

use super::{MOVED, Run, mesh, mesh::Seen};
use crate::bed::ensure;
use anyhow::Result;
use serde_json::json;

/// What shows in a pod of its own already; the rest needs requests, and shows in the one pod of the first wave.
const SHOWS_EARLY: [&str; 3] = ["crashes", "unready", "rejects"];

/// A bad proxy, on the way to the previous release: sidecars go first there, and come back alone.
pub(super) fn proxy(run: &Run, fault: &str) -> Result<String> {
    run.builds.spoil(run.bed, run.sidecar(), run.previous(), fault)?;
    comes_back(run, run.version(), run.previous(), i64::from(!SHOWS_EARLY.contains(&fault)))
}

/// A bad control plane, on the way to the current release: it goes first there, and is taken back before any pod is moved.
pub(super) fn control_plane(run: &Run, fault: &str) -> Result<String> {
    run.builds.spoil(run.bed, "control-plane", run.version(), fault)?;
    comes_back(run, run.previous(), run.version(), 0)
}

/// Nothing moves to an image that is nowhere.
pub(super) fn image_missing(run: &Run) -> Result<String> {
    run.builds.remove(run.bed, run.sidecar(), run.previous())?;
    let note = comes_back(run, run.version(), run.previous(), 0)?;
    ensure(note.contains("image"), || format!("it does not say that an image is missing: {note}"))?;
    Ok(note)
}

/// Asks for another release, and waits until everything is on the present one again, by itself. The bad one may have served in
/// `most` pods.
fn comes_back(run: &Run, from: &str, to: &str, most: i64) -> Result<String> {
    let before = Seen::now(run.bed)?.0["status"]["lastUpgrade"].clone();
    mesh::spec(run.bed, &json!({"version": to}))?;
    mesh::follow(run.bed, "the bad release to be rolled back", MOVED, |seen| {
        ensure(seen.0["status"]["lastUpgrade"] != before, || "nothing has ended yet".to_owned())?;
        ensure(seen.last() == (from, to, "RolledBack"), || "it has not been rolled back".to_owned())?;
        ensure(!seen.is_moving(), || "it is still moving".to_owned())?;
        seen.runs(from)?;
        Ok(Some(()))
    })?;
    mesh::in_every_pod(run.bed, from)?;
    let last = Seen::now(run.bed)?.0["status"]["lastUpgrade"].clone();
    let reached = last["reached"].as_i64().unwrap_or(0);
    ensure(reached <= most, || format!("it came to serve in {reached} pods, and may in {most}"))?;
    let text = |field: &str| last[field].as_str().unwrap_or_default().to_owned();
    ensure(!text("reason").is_empty() && !text("message").is_empty(), || {
        format!("it does not say why it came back: {last}")
    })?;
    Ok(format!("{}: {}", text("reason"), text("message")))
}
