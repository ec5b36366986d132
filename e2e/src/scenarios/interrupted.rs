//! An install whose operator dies at each single write: a program that knows nothing of the one before goes on from what it
//! finds, and writes nothing that is there already, or this would never end.

use super::resilience::{OPERATOR, operator_is_gone, scale};
use crate::{
    bed::{Bed, condition_of, ensure},
    gate::Gate,
    install::{MESH, SYSTEM},
    lab::namespace,
};
use anyhow::{Context, Result};
use serde_json::json;
use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// The namespace of the workloads of the interrupted mesh, and of the lease of its operators.
const APPS: &str = "interrupted-apps";
const INSTALL: [&str; 2] = ["meshinstall", "interrupted"];
/// An operator that writes nothing for so long has nothing left to do.
const DONE: Duration = Duration::from_secs(8);
/// More kills than an install has steps, in case it never came to an end.
const MOST: usize = 60;
/// Only the real operator can ask the control planes how far proxies are; these would write what they cannot know.
const NOT_THEIRS: &[&str] = &["/apis/networking.istio.io/"];

pub(super) fn operator_killed_at_every_step(bed: &Bed) -> Result<()> {
    bed.apply(&namespace(APPS, json!({"e2e": "interrupted"})))?;
    scale(bed, OPERATOR, 0)?;
    let result = operator_is_gone(bed).and_then(|()| killed_at_every_write(bed));
    scale(bed, OPERATOR, 2)?;
    bed.wait_rollout(SYSTEM, OPERATOR, Duration::from_secs(60))?;
    let ready = result.and_then(|steps| {
        // The operator that stays says so, and has nothing to repair.
        bed.wait_condition(&INSTALL, "Ready", Duration::from_secs(90))?;
        bed.figures.add("operator_killed_during_install", steps.len() as f64, "times");
        for wanted in ["/secrets", "/services/", "/deployments/", "/mutatingwebhookconfigurations/"] {
            ensure(steps.iter().any(|step| step.contains(wanted)), || format!("no kill at {wanted}: {steps:?}"))?;
        }
        Ok(())
    });
    let end = bed.get(&INSTALL).map(|value| condition_of(&value, "Ready").cloned().unwrap_or_default().to_string());
    bed.kubectl(&["delete", "meshinstall", "interrupted", "--ignore-not-found", "--timeout=60s"])?;
    bed.kubectl(&["delete", "namespace", APPS, "--ignore-not-found"])?;
    ready.with_context(|| end.unwrap_or_default())?;
    bed.wait_condition(&MESH, "Ready", Duration::from_secs(60)).map(drop)
}

/// Installs, and gives every write at which an operator was killed.
fn killed_at_every_write(bed: &Bed) -> Result<Vec<String>> {
    let gate = Gate::open(bed, NOT_THEIRS)?;
    let kubeconfig = gate.kubeconfig()?;
    let install = json!({
        "apiVersion": "mesh.leno.dev/v1alpha1", "kind": "MeshInstall", "metadata": {"name": "interrupted"},
        "spec": {"version": bed.release.version, "namespace": "interrupted", "controlPlane": {"replicas": 1},
            "mesh": {"namespaces": {"matchLabels": {"e2e": "interrupted"}}}},
    });
    bed.apply(&install.to_string())?;
    let mut steps = Vec::new();
    while steps.len() < MOST {
        let mut operator = operator(bed, &kubeconfig)?;
        let write = gate.held(DONE);
        // SIGKILL: it cannot put anything in order.
        operator.kill()?;
        operator.wait()?;
        gate.clear();
        bed.kubectl(&["-n", APPS, "delete", "lease", "leno-operator", "--ignore-not-found"])?;
        match write {
            Some(write) => steps.push(write),
            None => return Ok(steps),
        }
    }
    anyhow::bail!("after {MOST} kills there is still something to write: {:?}", &steps[MOST - 10..])
}

fn operator(bed: &Bed, kubeconfig: &Path) -> Result<Child> {
    Command::new(bed.release.bin_dir.join("leno-operator"))
        .args(["--namespace", APPS, "--health-address=127.0.0.1:0", "--admin-address=127.0.0.1:0"])
        .env_remove("LENO_CLUSTER")
        .env("KUBECONFIG", kubeconfig)
        .env("LENO_VERSION", &bed.release.version)
        .env("LENO_PREVIOUS_VERSION", &bed.release.previous_version)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("leno-operator does not start")
}
