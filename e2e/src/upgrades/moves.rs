//! From one release to the other: there, back, with a pause, and given up half-way.

use super::{MOVED, Run, mesh, mesh::Seen};
use crate::bed::ensure;
use anyhow::Result;
use serde_json::json;
use std::time::{Duration, Instant};

pub(super) fn to_the_previous(run: &Run) -> Result<String> {
    to(run, run.previous())
}

pub(super) fn to_the_current(run: &Run) -> Result<String> {
    to(run, run.version())
}

fn to(run: &Run, version: &str) -> Result<String> {
    let before = Seen::now(run.bed)?.version();
    mesh::spec(run.bed, &json!({"version": version}))?;
    mesh::rests_on(run.bed, version, MOVED)?;
    completed(run, &before, version)?;
    Ok(String::new())
}

/// Whether the status tells of a change that came to its end.
pub(super) fn completed(run: &Run, from: &str, to: &str) -> Result<()> {
    let seen = Seen::now(run.bed)?;
    ensure(seen.last() == (from, to, "Completed"), || {
        format!("the status says of the last upgrade: {}", seen.0["status"]["lastUpgrade"])
    })
}

/// Begins a change to the previous release, and waits until the first pods are moved.
pub(super) fn begin(run: &Run, moved: i64) -> Result<()> {
    mesh::spec(run.bed, &json!({"version": run.previous()}))?;
    mesh::follow(run.bed, &format!("{moved} pods to be moved"), MOVED, |seen| {
        Ok((seen.step() == "DataPlane" && seen.moved() >= moved).then_some(()))
    })
}

pub(super) fn paused(run: &Run) -> Result<String> {
    /// What is on the way when the pause comes may end.
    const ENDS: Duration = Duration::from_secs(60);
    const STANDS: Duration = Duration::from_secs(20);
    begin(run, 2)?;
    mesh::spec(run.bed, &json!({"dataPlane": {"updateStrategy": {"paused": true}}}))?;
    let (mut last, mut since) = (String::new(), Instant::now());
    mesh::follow(run.bed, "nothing to move while it is paused", ENDS + STANDS, |seen| {
        if last != seen.versions() {
            (last, since) = (seen.versions(), Instant::now());
        }
        ensure(seen.is_moving(), || "it went on to its end".to_owned())?;
        Ok((since.elapsed() > STANDS).then_some(()))
    })?;
    let stood = last;
    ensure(stood.contains(run.version()), || format!("nothing was left to move: {stood}"))?;
    // Changed while it stands, and on.
    mesh::spec(
        run.bed,
        &json!({"dataPlane": {"updateStrategy": {"maxUnavailable": "50%", "gate": {"windowSeconds": 10}, "paused": false}}}),
    )?;
    mesh::rests_on(run.bed, run.previous(), MOVED)?;
    completed(run, run.version(), run.previous())?;
    Ok(format!("stood at {stood}"))
}

pub(super) fn aborted(run: &Run) -> Result<String> {
    begin(run, 2)?;
    let at = Seen::now(run.bed)?.versions();
    mesh::spec(run.bed, &json!({"version": run.version()}))?;
    mesh::rests_on(run.bed, run.version(), MOVED)?;
    Ok(format!("given up at {at}"))
}
