//! An upgrade in which a node is drained, loses its power, and comes back.

use super::{MOVED, Run, fleet, mesh, moves};
use crate::{
    bed::ensure,
    cluster::{Second, settings::SECOND_TAINT},
};
use anyhow::Result;
use serde_json::{Value, json};
use std::time::Duration;

/// The Deployment whose pods are on both nodes.
const FAR: &str = "far";
/// Its pods.
const REPLICAS: usize = 4;
/// How long its pods may take to be where they should.
const PLACED: Duration = Duration::from_secs(120);

/// Clients call pods of both nodes by one Service. In mid-upgrade the second node is drained, as one does before a reboot: its pods
/// move to the first one. Then everything on it ends at once, and it comes back.
pub(super) fn restarted(run: &Run) -> Result<String> {
    let bed = run.bed;
    let first = super::broken::local(run)?;
    let second = Second::join(first)?;
    let name = second.name();
    bed.kubectl(&["uncordon", &name])?;
    second.copy_images(first)?;
    bed.apply(&json!({"apiVersion": "v1", "kind": "List", "items": far(run)}).to_string())?;
    bed.wait("pods on both nodes", PLACED, || {
        let on_second = ready_on(run, &name)?;
        ensure((1..REPLICAS).contains(&on_second), || format!("{on_second} of {REPLICAS} are on {name}"))?;
        Ok(Some(()))
    })?;
    let on_second = ready_on(run, &name)?;
    // The first wave is over: pods of both nodes are about to be moved.
    moves::begin(run, 1)?;
    println!("    {name} is drained");
    bed.kubectl(&["drain", &name, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s"])?;
    second.power_off()?;
    println!("    {name} has no power");
    bed.wait("the pods of the second node to be on the first one", PLACED, || {
        let (all, left) = (ready(run)?.len(), ready_on(run, &name)?);
        ensure(all == REPLICAS && left == 0, || format!("{all} of {REPLICAS} are ready, {left} on {name}"))?;
        Ok(Some(()))
    })?;
    second.power_on()?;
    second.wait_until_ready(first)?;
    bed.kubectl(&["uncordon", &name])?;
    println!("    {name} is back");
    mesh::rests_on(bed, run.previous(), MOVED)?;
    moves::completed(run, run.version(), run.previous())?;
    // It serves again: new pods go there, on the release that is in force now.
    bed.kubectl(&["-n", fleet::FLEET, "rollout", "restart", &format!("deployment/{FAR}")])?;
    bed.wait("pods on both nodes again", PLACED, || {
        let again = ready_on(run, &name)?;
        ensure(again > 0 && ready(run)?.len() == REPLICAS, || format!("{again} are on {name}"))?;
        Ok(Some(()))
    })?;
    bed.wait_rollout(fleet::FLEET, &format!("deployment/{FAR}"), PLACED)?;
    // The fleet is on the first node alone, as in all other scenarios.
    bed.kubectl(&["-n", fleet::FLEET, "delete", "deployment", FAR, "--wait=false"])?;
    bed.kubectl(&["drain", &name, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s"])?;
    Ok(format!("{on_second} pods drained"))
}

/// More endpoints for those who call `echo`, on both nodes.
fn far(run: &Run) -> Vec<Value> {
    let app = fleet::echo("echo", 1);
    let labels = json!({"app": "echo", "place": FAR});
    let selector = json!({"matchLabels": {"place": FAR}});
    let mut template = app.template(run.bed);
    template["metadata"]["labels"] = labels;
    template["spec"]["tolerations"] = json!([{"key": SECOND_TAINT, "operator": "Exists"}]);
    template["spec"]["topologySpreadConstraints"] = json!([{
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": selector,
    }]);
    let metadata = json!({"name": FAR, "namespace": fleet::FLEET});
    vec![
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": {
            "replicas": REPLICAS, "selector": selector, "template": template,
            "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        }}),
        json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata,
            "spec": {"maxUnavailable": 1, "selector": selector}}),
    ]
}

fn ready(run: &Run) -> Result<Vec<Value>> {
    let mut pods = run.bed.pods(fleet::FLEET, &format!("place={FAR}"))?;
    pods.retain(|pod| fleet::is_ready(pod) && pod["metadata"]["deletionTimestamp"].is_null());
    Ok(pods)
}

fn ready_on(run: &Run, node: &str) -> Result<usize> {
    Ok(ready(run)?.iter().filter(|pod| pod["spec"]["nodeName"] == node).count())
}
