//! When parts of the mesh are gone: traffic goes on, and whatever waits starts when they are back.

use crate::{
    bed::{Bed, Load, ensure},
    install::{MESH, SYSTEM},
    lab::{App, LAB},
};
use anyhow::{Context, Result};
use serde_json::json;
use std::time::{Duration, Instant};

const CLIENT: &str = "deploy/client";
pub(super) const OPERATOR: &str = "deployment/leno-operator";
const CONTROL_PLANE: &str = "deployment/leno-control-plane-default";
const SELECTOR: &str = "app.kubernetes.io/name=leno-control-plane,app.kubernetes.io/instance=default";
const GONE: Duration = Duration::from_secs(60);

fn no_failure(what: &str, load: Load) -> Result<f64> {
    let counted = load.finish()?;
    ensure(counted.failed == 0 && counted.requests > 100, || {
        format!("{what}: {} of {} failed: {:?}", counted.failed, counted.requests, counted.errors)
    })?;
    Ok(counted.requests as f64)
}

pub(super) fn scale(bed: &Bed, what: &str, replicas: u32) -> Result<()> {
    bed.kubectl(&["-n", SYSTEM, "scale", what, &format!("--replicas={replicas}")]).map(drop)
}

pub(super) fn operator_is_gone(bed: &Bed) -> Result<()> {
    bed.wait("the operator to be gone", Duration::from_secs(40), || {
        // Those that are being deleted count: they may still lead.
        let list = bed.get(&["pods", "-n", SYSTEM, "-l", "app.kubernetes.io/name=leno-operator"])?;
        Ok(list["items"].as_array().is_some_and(Vec::is_empty).then_some(()))
    })
}

/// The mesh as it was, whatever happened.
fn restore(bed: &Bed) -> Result<()> {
    scale(bed, CONTROL_PLANE, 2)?;
    scale(bed, OPERATOR, 2)?;
    bed.wait_rollout(SYSTEM, OPERATOR, Duration::from_secs(60))?;
    bed.wait_condition(&MESH, "Ready", Duration::from_secs(90)).map(drop)
}

pub(super) fn control_plane_gone_for_a_minute(bed: &Bed) -> Result<()> {
    let app = App::echo(LAB, "survivors").replicas(3);
    app.deploy(bed)?;
    // Created while the webhook is there, and held back until nothing else is: its proxy has to wait.
    let waiting = App::client(LAB, "client").template(bed);
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "waiting", "namespace": LAB, "labels": {"app": "waiting"}}, "spec": waiting["spec"]});
    pod["spec"]["schedulingGates"] = json!([{"name": "leno-e2e/wait"}]);
    bed.apply(&pod.to_string())?;
    let result = gone_for_a_minute(bed);
    restore(bed)?;
    bed.kubectl(&["-n", LAB, "delete", "pod", "waiting", "--wait=false"])?;
    app.remove(bed)?;
    result
}

fn gone_for_a_minute(bed: &Bed) -> Result<()> {
    let url = "http://survivors/";
    let warm = bed.client(LAB, CLIENT, &[url, "--requests", "50"])?;
    ensure(warm.failed == 0, || format!("before: {:?}", warm.errors))?;
    scale(bed, OPERATOR, 0)?;
    operator_is_gone(bed)?;
    let load = bed.load(LAB, CLIENT, &[url, "--seconds", "75", "--rate", "100", "--concurrency", "8"])?;
    let fresh = bed.load(LAB, CLIENT, &[url, "--seconds", "75", "--rate", "20", "--no-keep-alive"])?;
    scale(bed, CONTROL_PLANE, 0)?;
    bed.wait("the control plane to be gone", Duration::from_secs(40), || {
        let list = bed.get(&["pods", "-n", SYSTEM, "-l", SELECTOR])?;
        Ok(list["items"].as_array().is_some_and(Vec::is_empty).then_some(()))
    })?;
    let gone = Instant::now();
    bed.kubectl(&[
        "-n",
        LAB,
        "patch",
        "pod",
        "waiting",
        "--type=json",
        "-p",
        r#"[{"op": "remove", "path": "/spec/schedulingGates"}]"#,
    ])?;
    let pods = bed.pods(LAB, "app=survivors")?;
    let name =
        |at: usize| pods.get(at).and_then(|pod| pod["metadata"]["name"].as_str()).context("there are not three pods");
    bed.stays("before the crash", Duration::from_secs(5), || Ok(()))?;
    if !bed.kill(LAB, name(0)?, "app")? {
        bed.kubectl(&["-n", LAB, "delete", "pod", name(0)?, "--wait=false"])?;
    }
    bed.stays("before the deletion", Duration::from_secs(10), || Ok(()))?;
    bed.kubectl(&["-n", LAB, "delete", "pod", name(1)?, "--wait=false"])?;
    bed.stays("a pod that waits for its configuration", GONE.saturating_sub(gone.elapsed()), || {
        let waiting = bed.get(&["pod", "waiting", "-n", LAB])?;
        std::thread::sleep(Duration::from_secs(1));
        ensure(waiting["status"]["containerStatuses"][0]["state"]["running"].is_null(), || {
            "its app started without a control plane".into()
        })
    })?;
    scale(bed, CONTROL_PLANE, 2)?;
    bed.wait_rollout(SYSTEM, CONTROL_PLANE, Duration::from_secs(60))?;
    let back = Instant::now();
    bed.wait("the pod that waited to start", Duration::from_secs(30), || {
        let waiting = bed.get(&["pod", "waiting", "-n", LAB])?;
        ensure(waiting["status"]["containerStatuses"][0]["state"]["running"].is_object(), || {
            waiting["status"]["initContainerStatuses"].to_string()
        })?;
        Ok(Some(()))
    })?;
    let took = back.elapsed().as_secs_f64();
    bed.figures.add("control_plane_back_to_waiting_pod_running", took, "s");
    let sent = no_failure("kept connections", load)? + no_failure("a connection a request", fresh)?;
    bed.figures.add("control_plane_gone_requests_without_failure", sent, "requests");
    ensure(took < 10.0, || format!("the pod that waited took {took:.1} s after the return of the control plane"))
}

pub(super) fn control_plane_restart_moves_no_traffic(bed: &Bed) -> Result<()> {
    let load = bed.load(LAB, CLIENT, &["http://echo/", "--seconds", "12", "--rate", "200", "--concurrency", "8"])?;
    bed.kubectl(&["-n", SYSTEM, "rollout", "restart", CONTROL_PLANE])?;
    bed.wait_rollout(SYSTEM, CONTROL_PLANE, Duration::from_secs(60))?;
    no_failure("during a restart of the control plane", load)?;
    // The operator undoes what `rollout restart` wrote; the mesh must come to rest.
    bed.wait_condition(&MESH, "Ready", Duration::from_secs(90)).map(drop)
}

pub(super) fn one_replica_killed(bed: &Bed) -> Result<()> {
    let load = bed.load(LAB, CLIENT, &["http://echo/", "--seconds", "8", "--rate", "200", "--concurrency", "8"])?;
    let pod = bed.pod(SYSTEM, SELECTOR)?;
    let name = pod["metadata"]["name"].as_str().context("no name")?;
    let container = pod["spec"]["containers"][0]["name"].as_str().context("no container")?;
    if !bed.kill(SYSTEM, name, container)? {
        bed.kubectl(&["-n", SYSTEM, "delete", "pod", name, "--force", "--grace-period=0"])?;
    }
    // The other replica serves: a change is in force at once, on proxies of both.
    let routes = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "after-the-kill", "namespace": LAB},
        "spec": {"hosts": ["solo"], "http": [{"headers": {"response": {"set": {"x-after": "kill"}}}, "route": [{"destination": {"host": "solo"}}]}]},
    });
    bed.apply(&routes.to_string())?;
    let in_force = bed.wait("a change to be in force", Duration::from_secs(10), || {
        let answer = bed.ask(LAB, CLIENT, &["http://solo/"])?;
        Ok((answer["headers"]["x-after"] == "kill").then_some(()))
    });
    bed.kubectl(&["-n", LAB, "delete", "virtualservice", "after-the-kill"])?;
    in_force?;
    no_failure("while a replica was killed", load)?;
    bed.wait_condition(&MESH, "Ready", Duration::from_secs(60)).map(drop)
}
