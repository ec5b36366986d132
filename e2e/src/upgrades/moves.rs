//! From one release to the other: there, back, with a pause, and given up half-way.

use super::{MOVED, Run, mesh, mesh::Seen};
use crate::bed::ensure;
use anyhow::{Context, Result};
use serde_json::{Value, json};
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

/// The other release as a revision beside the first, with half of the workloads, then promoted; sidecars follow in place.
pub(super) fn canary(run: &Run) -> Result<String> {
    let strategy = |patch: Value| mesh::spec(run.bed, &json!({"controlPlane": {"updateStrategy": patch}}));
    strategy(json!({"type": "Canary", "canaryPercent": 50, "gracePeriodSeconds": 1}))?;
    mesh::spec(run.bed, &json!({"version": run.previous()}))?;
    let tried = mesh::follow(run.bed, "half of the pods to be on the canary", MOVED, |seen| {
        let all = seen.0["status"]["controlPlane"]["revisions"].as_array().cloned().unwrap_or_default();
        let tried = all.iter().find(|one| one["version"] == run.previous() && one["tags"] == json!(["canary"]));
        let tried = tried.with_context(|| format!("revisions: {all:?}"))?;
        let there = tried["ready"] == tried["replicas"] && tried["pods"].as_i64() > Some(0);
        ensure(there && all.iter().any(|one| one["pods"].as_i64() > Some(0) && one != tried), || format!("{all:?}"))?;
        Ok(Some(tried["pods"].clone()))
    })?;
    run.bed.stays("the canary", Duration::from_secs(15), || Ok(()))?;
    strategy(json!({"promote": run.previous()}))?;
    mesh::rests_on(run.bed, run.previous(), MOVED)?;
    mesh::follow(run.bed, "the old revision to be gone", MOVED, |seen| {
        let left = &seen.0["status"]["controlPlane"]["revisions"];
        ensure(left.as_array().is_none_or(|all| all.len() <= 1), || left.to_string())?;
        Ok(Some(()))
    })?;
    Ok(format!("{tried} pods on the canary before it was promoted"))
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
