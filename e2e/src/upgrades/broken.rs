//! Upgrades in which something else breaks: operator, control plane, API server, the node's agent.

use super::{MOVED, Run, mesh, moves};
use crate::{
    bed::ensure,
    cluster::{Cluster, Target},
    install::SYSTEM,
};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::time::{Duration, Instant};

/// How long the API server is away.
const AWAY: Duration = Duration::from_secs(60);

/// The local cluster, whose programs and nodes can be stopped.
pub(super) fn local<'a>(run: &'a Run) -> Result<&'a Cluster> {
    match &run.bed.target {
        Target::Local(cluster) => Ok(cluster),
        Target::External(_) => bail!("programs of the node can be ended on the local cluster only"),
    }
}

/// Moves everything to the other release, and breaks something every so often until that is done. Gives how often.
fn while_moving(run: &Run, every: Duration, mut break_something: impl FnMut(usize) -> Result<()>) -> Result<usize> {
    let seen = mesh::Seen::now(run.bed)?.version();
    let to = if seen == run.version() { run.previous() } else { run.version() };
    mesh::spec(run.bed, &json!({"version": to}))?;
    let (mut times, mut last, mut begun) = (0, Instant::now(), false);
    let ended = mesh::follow(run.bed, "the upgrade to end although things break", MOVED, |seen| {
        begun |= seen.is_moving();
        if seen.is_moving() && last.elapsed() >= every {
            break_something(times)?;
            (times, last) = (times + 1, Instant::now());
        }
        if begun && !seen.is_moving() && seen.is_rejected(to) {
            return Ok(Some(Err(seen.0["status"]["lastUpgrade"].to_string())));
        }
        Ok((begun && seen.rests_on(to).is_ok()).then_some(Ok(())))
    })?;
    if let Err(last) = ended {
        bail!("release {to} was rolled back: {last}");
    }
    mesh::rests_on(run.bed, to, MOVED)?;
    Ok(times)
}

/// Each operator works for two seconds; the next one need not wait for the lease of the one before.
pub(super) fn operator_killed(run: &Run) -> Result<String> {
    let times = while_moving(run, Duration::from_secs(2), |_| {
        let bed = run.bed;
        bed.kubectl(&[
            "-n",
            SYSTEM,
            "delete",
            "pods",
            "-l",
            "app.kubernetes.io/name=leno-operator",
            "--force",
            "--grace-period=0",
        ])?;
        bed.kubectl(&["-n", SYSTEM, "delete", "lease", "leno-operator", "--ignore-not-found"])?;
        bed.wait_rollout(SYSTEM, "deployment/leno-operator", Duration::from_secs(60))
    })?;
    ensure(times >= 5, || format!("it was killed only {times} times"))?;
    Ok(format!("killed {times} times"))
}

/// One replica at a time, without a word.
pub(super) fn control_plane_killed(run: &Run) -> Result<String> {
    let times = while_moving(run, Duration::from_secs(8), |_| {
        let selector = "app.kubernetes.io/name=leno-control-plane,app.kubernetes.io/instance=default";
        let pods = run.bed.pods(SYSTEM, selector)?;
        // The last one that is ready stays.
        let ready: Vec<_> = pods.iter().filter(|pod| super::fleet::is_ready(pod)).collect();
        if let [first, _, ..] = ready[..] {
            let name = first["metadata"]["name"].as_str().context("no name")?;
            run.bed.kubectl(&["-n", SYSTEM, "delete", "pod", name, "--force", "--grace-period=0"])?;
        }
        Ok(())
    })?;
    ensure(times >= 2, || format!("a replica was killed only {times} times"))?;
    Ok(format!("killed {times} times"))
}

pub(super) fn api_server_away(run: &Run) -> Result<String> {
    let cluster = local(run)?;
    moves::begin(run, 1)?;
    println!("    the API server is away from now on");
    let begin = Instant::now();
    let mut killed = 0;
    while begin.elapsed() < AWAY {
        killed += cluster.kill_program("kube-apiserver")?;
        // Without the API server it loses its own lease, where it has one, and ends.
        cluster.kill_program("kube-controller-manager")?;
        std::thread::sleep(Duration::from_millis(200));
    }
    ensure(killed > 0, || "there was no API server to end".to_owned())?;
    println!("    the API server may be back");
    mesh::rests_on(run.bed, run.previous(), MOVED)?;
    moves::completed(run, run.version(), run.previous())?;
    Ok(String::new())
}

pub(super) fn kubelet_restarted(run: &Run) -> Result<String> {
    let cluster = local(run)?;
    let times =
        while_moving(run, Duration::from_secs(20), |_| cluster.kill_program("kubelet").map(drop).map_err(Into::into))?;
    ensure(times >= 1, || "the kubelet was not restarted".to_owned())?;
    Ok(format!("restarted {times} times"))
}
