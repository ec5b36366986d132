//! What only new pods have: a release that owners bring by a rolling restart or as pods come and go, and settings of the mesh that a
//! running pod cannot take over. Pods are replaced here, by their owners; no request may fail, and no container restart.

use super::{
    MOVED, Run,
    fleet::{FLEET, LOADER},
    mesh::{self, Seen},
};
use crate::bed::{Bed, ensure};
use anyhow::Result;
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};

/// Kinds whose pods nobody replaces while they run.
const STAY: [&str; 2] = ["Job", "Pod"];
/// How long a rolling restart of a workload may take.
const ROLLED: Duration = Duration::from_secs(180);

/// The load comes from a pod of the fleet; it stays, or what it counted would be lost.
fn keep_the_loader(bed: &Bed) -> Result<()> {
    let loader = format!("app={LOADER}");
    bed.kubectl(&["-n", FLEET, "label", "pods", "-l", &loader, "mesh.leno.dev/upgrade=disabled", "--overwrite"])
        .map(drop)
}

fn strategy(kind: &str) -> Value {
    json!({"updateStrategy": {"type": kind, "maxUnavailable": "100%"}})
}

/// Injected pods: the image of their first slot, by owner's kind and name of the pod.
fn images(bed: &Bed) -> Result<BTreeMap<(String, String), String>> {
    let mut all = BTreeMap::new();
    for pod in bed.pods(FLEET, "app")? {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let owner = pod["metadata"]["ownerReferences"][0]["kind"].as_str().unwrap_or("Pod").to_owned();
        let image = mesh::slots(&pod).next().map(|slot| text(&slot["image"])).unwrap_or_default();
        if pod["metadata"]["deletionTimestamp"].is_null() {
            all.insert((owner, text(&pod["metadata"]["name"])), image);
        }
    }
    Ok(all)
}

/// Owners replace their pods, in waves; those of Jobs and bare ones stay as they are.
pub(super) fn restarted(run: &Run) -> Result<String> {
    keep_the_loader(run.bed)?;
    let before = images(run.bed)?;
    mesh::spec(run.bed, &json!({"version": run.version(), "dataPlane": strategy("Restart")}))?;
    ended(run, run.previous(), run.version())?;
    let (mut replaced, mut stayed) = (0, 0);
    for ((owner, name), image) in images(run.bed)? {
        let stays = STAY.contains(&owner.as_str()) || name.starts_with(LOADER);
        let was_there = before.contains_key(&(owner.clone(), name.clone()));
        let release = if stays { run.previous() } else { run.version() };
        ensure(image.ends_with(&format!(":{release}")), || {
            format!("pod {name} of a {owner} has {image}, not {release}")
        })?;
        // A StatefulSet's pods keep their names.
        ensure(was_there == stays || owner == "StatefulSet", || {
            format!("pod {name} of a {owner}: replaced {}", !was_there)
        })?;
        if stays { stayed += 1 } else { replaced += 1 }
    }
    Ok(format!("{replaced} pods replaced by their owners, {stayed} stay"))
}

/// Nothing moves but what comes anew.
pub(super) fn only_new_pods(run: &Run) -> Result<String> {
    keep_the_loader(run.bed)?;
    let before = images(run.bed)?;
    mesh::spec(run.bed, &json!({"version": run.version(), "dataPlane": strategy("OnRestart")}))?;
    ended(run, run.previous(), run.version())?;
    run.bed.stays("all pods as they are", Duration::from_secs(10), || {
        let now = images(run.bed)?;
        ensure(now == before, || format!("{now:?}, not {before:?}"))
    })?;
    let restarted = ["deployment/single", "deployment/ratings"];
    for workload in restarted {
        run.bed.kubectl(&["-n", FLEET, "rollout", "restart", workload])?;
        run.bed.wait_rollout(FLEET, workload, ROLLED)?;
    }
    let release = format!(":{}", run.version());
    let is_restarted = |name: &str| restarted.iter().any(|workload| name.starts_with(&workload["deployment/".len()..]));
    run.bed.wait("the new pods, and only these, to have the new release", ROLLED, || {
        let now = images(run.bed)?;
        let wrong = now.iter().find(|((_, name), image)| image.ends_with(&release) != is_restarted(name));
        ensure(wrong.is_none(), || format!("{wrong:?}"))?;
        Ok(Some(()))
    })?;
    Ok(format!(
        "new in {} of {} pods",
        images(run.bed)?.values().filter(|image| image.ends_with(&release)).count(),
        before.len()
    ))
}

/// A setting that running pods cannot take over is told in status; with `Restart`, owners bring it.
pub(super) fn settings_changed(run: &Run) -> Result<String> {
    keep_the_loader(run.bed)?;
    let total = images(run.bed)?.len() as i64;
    let to_restart = |seen: &Seen| seen.0["status"]["dataPlane"]["toRestart"].as_i64().unwrap_or(0);
    mesh::spec(run.bed, &json!({"dataPlane": {"resources": {"limits": {"cpu": "4", "memory": "512Mi"}}}}))?;
    mesh::follow(run.bed, "the status to say which pods are to restart", ROLLED, |seen| {
        let said = to_restart(seen);
        ensure(said == total && !seen.is_moving(), || format!("{said} of {total}"))?;
        let ready = crate::bed::condition_of(&seen.0, "DataPlaneReady").cloned().unwrap_or_default();
        let message = ready["message"].as_str().unwrap_or_default();
        ensure(ready["status"] == "True" && message.contains("spec.dataPlane.resources"), || ready.to_string())?;
        Ok(Some(()))
    })?;
    mesh::spec(run.bed, &json!({"dataPlane": strategy("Restart")}))?;
    ended(run, run.version(), run.version())?;
    let left = to_restart(&Seen::now(run.bed)?);
    ensure(left == 3, || format!("{left} pods are to restart; the loader, a Job's and a bare one are left to others"))?;
    for pod in run.bed.pods(FLEET, "app=echo")? {
        let limits: Vec<_> = mesh::slots(&pod).map(|slot| slot["resources"]["limits"]["cpu"].clone()).collect();
        ensure(limits == ["4", "4"], || format!("limits of {}: {limits:?}", pod["metadata"]["name"]))?;
    }
    Ok(format!("{} of {total} pods replaced by their owners", total - left))
}

fn ended(run: &Run, from: &str, to: &str) -> Result<()> {
    mesh::follow(run.bed, "the change to come to its end", MOVED, |seen| {
        ensure(!seen.is_rejected(to), || "it was rolled back".to_owned())?;
        Ok((seen.last() == (from, to, "Completed") && !seen.is_moving()).then_some(()))
    })
}
