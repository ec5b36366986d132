//! What goes on in the life of a mesh besides upgrades: scaling, another root, a neighbour, the end, and rest.

use super::{MOVED, Run, fleet::FLEET, mesh};
use crate::{
    audit::Audit,
    bed::{Bed, ensure},
    install::{MESH, SYSTEM},
    lab::{App, namespace},
    scenarios::lifecycle,
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

const CONTROL_PLANE: &str = "leno-control-plane-default";
/// The other mesh, its namespace, and that of its workloads.
const SECOND: &str = "second";
const SECOND_SYSTEM: &str = "second-system";
const SECOND_APPS: &str = "second-apps";
/// How long nothing may be written.
const AT_REST: Duration = Duration::from_secs(60);

pub(super) fn scaled(run: &Run) -> Result<String> {
    let bed = run.bed;
    let scaled = [1, 5, 2].into_iter().try_for_each(|replicas| {
        mesh::spec(bed, &json!({"controlPlane": {"replicas": replicas}}))?;
        mesh::follow(bed, &format!("{replicas} replicas of the control plane"), Duration::from_secs(180), |seen| {
            seen.rests_on(run.version())?;
            let deployed = &bed.get(&["deployment", CONTROL_PLANE, "-n", SYSTEM])?["spec"]["replicas"];
            let summary = &seen.0["status"]["controlPlane"]["summary"];
            ensure(*deployed == replicas && *summary == format!("{replicas}/{replicas}"), || summary.to_string())?;
            Ok(Some(()))
        })?;
        // Streams find their new places.
        bed.stays("the mesh", Duration::from_secs(15), || Ok(()))
    });
    mesh::spec(bed, &json!({"controlPlane": {"replicas": 2}}))?;
    scaled?;
    mesh::rests_on(bed, run.version(), MOVED)?;
    Ok(String::new())
}

/// The certificates of trusted roots in the fleet's namespace.
fn roots(bed: &Bed) -> Result<BTreeSet<String>> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let map = bed.get(&["configmap", "leno-root", "-n", FLEET])?;
    let text = map["data"]["roots.pem"].as_str().context("no roots")?;
    // There may be words between them.
    Ok(text.split(BEGIN).skip(1).filter_map(|rest| Some(rest.split_once(END)?.0.trim().to_owned())).collect())
}

pub(super) fn root_rotated(run: &Run) -> Result<String> {
    // The overlap is for what nobody acknowledges; here everybody does.
    mesh::spec(run.bed, &json!({"certificates": {"overlapMinutes": 0}}))?;
    let result = rotated(run);
    mesh::spec(run.bed, &json!({"certificates": null}))?;
    result
}

fn rotated(run: &Run) -> Result<String> {
    let bed = run.bed;
    let before = roots(bed)?;
    ensure(before.len() == 1, || format!("{} roots are trusted before it begins", before.len()))?;
    let begin = Instant::now();
    let annotation = format!("mesh.leno.dev/rotate-root=upgrades-{}", std::process::id());
    bed.kubectl(&["annotate", "meshinstall", "default", &annotation, "--overwrite"])?;
    let mut both = None;
    mesh::follow(bed, "only a new root to be trusted, after a time of both", MOVED, |seen| {
        let now = roots(bed)?;
        if now.len() == 2 && now.is_superset(&before) {
            both.get_or_insert_with(|| begin.elapsed().as_secs_f64());
        }
        ensure(now.len() == 1 && now != before, || format!("{} roots are trusted", now.len()))?;
        seen.rests_on(run.version())?;
        Ok(Some(()))
    })?;
    let both = both.context("there was no time in which both were trusted")?;
    // Under the new one alone for a while.
    bed.stays("the mesh", Duration::from_secs(20), || Ok(()))?;
    Ok(format!(
        "both trusted from {both:.0} s on, the new one alone after {:.0} s",
        begin.elapsed().as_secs_f64() - 20.0
    ))
}

fn second(version: &str) -> String {
    json!({
        "apiVersion": "mesh.leno.dev/v1alpha1", "kind": "MeshInstall", "metadata": {"name": SECOND},
        "spec": {
            "version": version, "namespace": SECOND_SYSTEM, "controlPlane": {"replicas": 1},
            "dataPlane": {"updateStrategy": {"gate": {"windowSeconds": 10, "minRequests": 20}}},
            "mesh": {"namespaces": {"matchLabels": {"e2e-mesh": SECOND}}},
        },
    })
    .to_string()
}

/// A second mesh comes, is upgraded, and goes; the first one does not notice.
pub(super) fn two_meshes(run: &Run) -> Result<String> {
    let bed = run.bed;
    let without = json!({"matchExpressions": [{"key": "e2e-mesh", "operator": "NotIn", "values": [SECOND]}]});
    let all_else = bed.get(&MESH)?["spec"]["mesh"]["namespaces"].clone();
    mesh::spec(bed, &json!({"mesh": {"namespaces": without}}))?;
    let result = beside_a_second(run);
    bed.kubectl(&["annotate", "meshinstall", SECOND, "mesh.leno.dev/allow-delete-in-use=true"]).ok();
    bed.kubectl(&["delete", "namespace", SECOND_APPS, "--ignore-not-found", "--timeout=120s"])?;
    bed.kubectl(&["delete", "meshinstall", SECOND, "--ignore-not-found", "--timeout=120s"])?;
    mesh::spec(bed, &json!({"mesh": {"namespaces": {"matchExpressions": null, "matchLabels": null}}}))?;
    if all_else.as_object().is_some_and(|map| !map.is_empty()) {
        mesh::spec(bed, &json!({"mesh": {"namespaces": all_else}}))?;
    }
    result
}

fn beside_a_second(run: &Run) -> Result<String> {
    let (bed, version, previous) = (run.bed, run.version(), run.previous());
    let install = ["meshinstall", SECOND];
    bed.apply(&namespace(SECOND_APPS, json!({"istio-injection": "enabled", "e2e-mesh": SECOND})))?;
    bed.wait("the new namespace's own objects", Duration::from_secs(10), || {
        bed.kubectl(&["-n", SECOND_APPS, "get", "serviceaccount/default", "configmap/kube-root-ca.crt"]).map(Some)
    })?;
    let nothing = lifecycle::everything(bed)?;
    bed.apply(&second(version))?;
    bed.wait_condition(&install, "Ready", Duration::from_secs(120))?;
    let apps = [App::echo(SECOND_APPS, "echo").replicas(2), App::client(SECOND_APPS, "client")];
    apps.iter().try_for_each(|app| app.apply(bed))?;
    apps.iter().try_for_each(|app| app.wait(bed))?;

    // One is upgraded, the other stays as it is.
    let footprint = first_mesh(bed)?;
    let load = bed.load_until_stopped(SECOND_APPS, "deploy/client", &["http://echo/", "--rate", "20"])?;
    bed.patch(&install, &json!({"spec": {"version": previous}}))?;
    bed.wait("the second mesh to be upgraded", MOVED, || {
        let seen = mesh::Seen(bed.get(&install)?);
        seen.rests_on(previous)?;
        ensure(seen.last() == (version, previous, "Completed"), || seen.0["status"].to_string())?;
        Ok(Some(()))
    })?;
    let counted = load.stop()?;
    ensure(counted.failed == 0, || {
        format!("{} of {} failed in the second mesh: {:?}", counted.failed, counted.requests, counted.errors)
    })?;
    let now = first_mesh(bed)?;
    ensure(now == footprint, || format!("the first mesh was touched: {footprint} before, {now} now"))?;

    // Uninstalled while it is in use, and then not.
    let refused = bed.kubectl(&["delete", "meshinstall", SECOND, "--wait=false"]);
    let words = refused.as_ref().err().map(ToString::to_string).unwrap_or_default();
    ensure(words.contains("in use"), || format!("deleting a mesh in use must be refused with a message: {refused:?}"))?;
    apps.iter().try_for_each(|app| app.remove(bed))?;
    bed.wait("the second mesh's pods to be gone", Duration::from_secs(60), || {
        let pods = bed.get(&["pods", "-n", SECOND_APPS])?;
        Ok(pods["items"].as_array().is_some_and(Vec::is_empty).then_some(()))
    })?;
    bed.wait("the mesh to be deleted that nobody uses", Duration::from_secs(90), || {
        bed.kubectl(&["delete", "meshinstall", SECOND, "--timeout=60s"]).map(Some)
    })?;
    bed.wait("all that it made to be gone", Duration::from_secs(60), || {
        let left: Vec<String> = lifecycle::everything(bed)?.difference(&nothing).cloned().collect();
        ensure(left.is_empty(), || format!("left over: {left:?}"))?;
        Ok(Some(()))
    })?;
    mesh::rests_on(bed, version, Duration::from_secs(60))?;
    Ok(format!("{} requests in the second mesh, none failed", counted.requests))
}

/// What nobody may touch in the first mesh: its control plane, and the proxies of the fleet.
fn first_mesh(bed: &Bed) -> Result<Value> {
    let deployment = bed.get(&["deployment", CONTROL_PLANE, "-n", SYSTEM])?;
    let pods = bed.get(&["pods", "-n", FLEET])?;
    let mut proxies: Vec<Value> = Vec::new();
    for pod in pods["items"].as_array().into_iter().flatten() {
        for status in pod["status"]["initContainerStatuses"].as_array().into_iter().flatten() {
            proxies.push(json!([pod["metadata"]["name"], status["name"], status["containerID"]]));
        }
    }
    proxies.sort_by_key(Value::to_string);
    Ok(json!({"generation": deployment["metadata"]["generation"], "proxies": proxies}))
}

/// With an autoscaler, a tool that applies the same MeshInstall again each ten seconds, and a controller that adds labels.
pub(super) fn at_rest(run: &Run) -> Result<String> {
    let bed = run.bed;
    let Some(audit) = Audit::of(bed) else {
        bed.stays("the mesh", AT_REST, || Ok(()))?;
        return Ok("not looked at: the audit log of this cluster cannot be read from here".to_owned());
    };
    let result = (|| {
        mesh::spec(bed, &json!({"controlPlane": {"autoscaling": {"minReplicas": 2, "maxReplicas": 3}}}))?;
        mesh::rests_on(bed, run.version(), Duration::from_secs(120))?;
        let seen = bed.get(&MESH)?;
        let wanted = json!({
            "apiVersion": seen["apiVersion"], "kind": seen["kind"], "metadata": {"name": "default"}, "spec": seen["spec"],
        });
        let wanted = wanted.to_string();
        let apply = || {
            let arguments = ["apply", "--server-side", "--field-manager=gitops", "--force-conflicts", "-f", "-"];
            bed.kubectl_with(&arguments, &wanted).map(drop)
        };
        let label = |number: u64| {
            let label = format!("e2e/label={number}");
            let object = format!("deployment/{CONTROL_PLANE}");
            bed.kubectl(&["-n", SYSTEM, "label", "--overwrite", &object, &label])?;
            bed.kubectl(&["-n", FLEET, "label", "--overwrite", "pods", "-l", "app=single", &label]).map(drop)
        };
        apply()?;
        label(0)?;
        audit.settle(bed)?;
        let begin = Instant::now();
        let mut done = 0;
        audit.stays_quiet(bed, AT_REST, || {
            let tens = begin.elapsed().as_secs() / 10;
            if tens > done {
                done = tens;
                apply()?;
                label(tens)?;
            }
            Ok(())
        })
    })();
    let object = format!("deployment/{CONTROL_PLANE}");
    bed.kubectl(&["-n", SYSTEM, "label", &object, "e2e/label-"])?;
    mesh::spec(bed, &json!({"controlPlane": {"autoscaling": null}}))?;
    result?;
    Ok(String::new())
}
