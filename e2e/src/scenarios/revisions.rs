//! Revisions of the control plane: another release tried beside the old one, by namespace and by share, promoted and taken back;
//! and replicas that come and go, with streams spread evenly over them. All of it under load, without a failed request.

use crate::{
    bed::{Bed, condition_of, ensure},
    install::SYSTEM,
    lab::{App, LAB, OUTSIDE, namespace},
    metrics,
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

const CLIENT: &str = "deploy/client";
const MESH: [&str; 2] = ["meshinstall", "default"];
/// A namespace that asks for the canary.
const EARLY: &str = "lab-early";
const REVISION: &str = "mesh.leno.dev/rev";
/// How long a change of revisions may take: a Deployment's rollout, labels of all pods, and the kubelets that tell them.
const SOON: Duration = Duration::from_secs(150);

/// The revisions in the MeshInstall's status, by name.
fn revisions(bed: &Bed) -> Result<BTreeMap<String, Value>> {
    let mesh = bed.get(&MESH)?;
    let list = mesh["status"]["controlPlane"]["revisions"].as_array().cloned().unwrap_or_default();
    Ok(list.into_iter().map(|one| (one["name"].as_str().unwrap_or_default().to_owned(), one)).collect())
}

fn tags(revision: &Value) -> Vec<&str> {
    revision["tags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Injected pods with the app that they are of and the revision that their label names.
fn injected(bed: &Bed) -> Result<Vec<(String, String, String)>> {
    let list = bed.get(&["pods", "-A", "-l", REVISION])?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let running = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] == "Running";
    let pods = list["items"].as_array().cloned().unwrap_or_default();
    Ok(pods
        .iter()
        .filter(running)
        .map(|pod| {
            let (metadata, labels) = (&pod["metadata"], &pod["metadata"]["labels"]);
            (text(&metadata["namespace"]), text(&labels["app"]), text(&labels[REVISION]))
        })
        .collect())
}

/// Open streams of each ready replica of a revision, by pod.
fn streams(bed: &Bed, revision: &str) -> Result<BTreeMap<String, f64>> {
    let selector = format!("app.kubernetes.io/name=leno-control-plane,app.kubernetes.io/instance={revision}");
    let mut all = BTreeMap::new();
    for pod in bed.pods(SYSTEM, &selector)? {
        let name = pod["metadata"]["name"].as_str().context("no name")?.to_owned();
        let address = pod["status"]["podIP"].as_str().context("no address yet")?;
        let url = format!("http://{address}:15014/metrics");
        let page = bed.demo(OUTSIDE, CLIENT, &["ask", &url, "--print", "body"])?;
        all.insert(name, metrics::sum(&metrics::parse(&page), "leno_control_plane_streams", &[]));
    }
    Ok(all)
}

/// Waits until every injected pod that `choose` takes is of a revision and has its stream there.
fn all_on(bed: &Bed, revision: &str, choose: impl Fn(&str) -> bool) -> Result<()> {
    bed.wait(&format!("pods to be on revision {revision}"), SOON, || {
        let pods = injected(bed)?;
        let elsewhere: Vec<_> = pods.iter().filter(|(namespace, _, on)| choose(namespace) && on != revision).collect();
        ensure(elsewhere.is_empty(), || format!("elsewhere: {elsewhere:?}"))?;
        let wanted = pods.iter().filter(|(_, _, on)| on == revision).count() as f64;
        let open: f64 = streams(bed, revision)?.values().sum();
        ensure(open >= wanted, || format!("{open} streams of {wanted}"))?;
        Ok(Some(()))
    })
}

/// Restart counts of all containers of the apps.
fn restarts(bed: &Bed) -> Result<u64> {
    let pods = bed.get(&["pods", "-n", LAB])?;
    let statuses = pods["items"].as_array().into_iter().flatten().flat_map(|pod| {
        ["containerStatuses", "initContainerStatuses"]
            .map(|list| pod["status"][list].as_array().cloned().unwrap_or_default())
    });
    Ok(statuses.flatten().filter_map(|status| status["restartCount"].as_u64()).sum())
}

fn strategy(bed: &Bed, patch: &Value) -> Result<()> {
    bed.patch(&MESH, &json!({"spec": {"controlPlane": {"updateStrategy": patch}}})).map(drop)
}

fn version(bed: &Bed, version: &str) -> Result<()> {
    bed.patch(&MESH, &json!({"spec": {"version": version}})).map(drop)
}

/// Waits until a release runs as a revision of its own beside the stable one, and gives its name.
fn tried(bed: &Bed, version: &str) -> Result<String> {
    bed.wait(&format!("release {version} to be tried"), SOON, || {
        let all = revisions(bed)?;
        let trial = all.values().find(|one| one["version"] == version && tags(one) == ["canary"]);
        ensure(trial.is_some_and(|one| one["ready"] == one["replicas"]), || format!("{all:?}"))?;
        Ok(trial.and_then(|one| one["name"].as_str()).map(str::to_owned))
    })
}

/// Waits until there is one revision, and nothing is left of the others.
fn alone(bed: &Bed, revision: &str) -> Result<()> {
    bed.wait(&format!("revision {revision} to be the only one"), SOON, || {
        let list = bed.get(&["deployments,services,poddisruptionbudgets", "-n", SYSTEM])?;
        let named = |item: &Value| item["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let made: BTreeSet<String> = list["items"].as_array().into_iter().flatten().map(named).collect();
        let ours: Vec<&String> = made.iter().filter(|name| name.starts_with("leno-control-plane-")).collect();
        ensure(ours == [&format!("leno-control-plane-{revision}")], || format!("there are {ours:?}"))?;
        Ok(Some(()))
    })
}

pub(super) fn canary(bed: &Bed) -> Result<()> {
    let bird = App::echo(EARLY, "bird");
    let load = bed.load(LAB, CLIENT, &["http://echo/", "--seconds", "240", "--rate", "50", "--concurrency", "4"])?;
    let before = restarts(bed)?;
    let result = tried_promoted_and_aborted(bed, &bird);
    let restored = restore(bed);
    let counted = load.finish()?;
    result?;
    restored?;
    bed.figures.add("canary_failed", counted.failed as f64, "requests");
    ensure(counted.failed == 0 && counted.requests > 1000, || {
        format!("{} of {} failed: {:?}", counted.failed, counted.requests, counted.errors)
    })?;
    let after = restarts(bed)?;
    ensure(after == before, || format!("containers of the lab restarted: {before} before, {after} now"))
}

fn tried_promoted_and_aborted(bed: &Bed, bird: &App) -> Result<()> {
    let (own, other) = (bed.release.version.clone(), bed.release.previous_version.clone());
    // Sidecars stay as they are: this is about who programs them.
    bed.patch(&MESH, &json!({"spec": {"dataPlane": {"updateStrategy": {"type": "OnRestart"}}}}))?;
    strategy(bed, &json!({"type": "Canary", "gracePeriodSeconds": 5}))?;
    bed.wait_condition(&MESH, "Ready", SOON)?;
    bed.apply(&namespace(EARLY, json!({"istio.io/rev": "canary"})))?;
    bird.deploy(bed)?;
    all_on(bed, "default", |_| true)?;

    version(bed, &other)?;
    let trial = tried(bed, &other)?;
    ensure(trial.starts_with("default-"), || format!("the revision is called {trial}"))?;
    // Who asks by the namespace's label moves while it runs, and is born there from now on. Nobody else does.
    all_on(bed, &trial, |namespace| namespace == EARLY)?;
    all_on(bed, "default", |namespace| namespace != EARLY)?;
    bed.kubectl(&["-n", EARLY, "rollout", "restart", "deployment/bird"])?;
    bird.wait(bed)?;
    all_on(bed, &trial, |namespace| namespace == EARLY)?;
    let upgrading = condition_of(&bed.get(&MESH)?, "Upgrading").cloned().unwrap_or_default();
    ensure(
        upgrading["reason"] == "Canary" && upgrading["message"].as_str().is_some_and(|text| text.contains(&trial)),
        || format!("status does not tell of the canary: {upgrading}"),
    )?;

    // A share of the workloads, each as a whole.
    strategy(bed, &json!({"canaryPercent": 50}))?;
    bed.wait("half of the workloads to be on the canary", SOON, || {
        let pods = injected(bed)?;
        let others: Vec<_> = pods.iter().filter(|(namespace, _, _)| namespace != EARLY).collect();
        let workloads: BTreeSet<(&String, &String)> =
            others.iter().map(|(namespace, app, _)| (namespace, app)).collect();
        let moved: BTreeSet<(&String, &String)> =
            others.iter().filter(|(_, _, on)| *on == trial).map(|(namespace, app, _)| (namespace, app)).collect();
        // Versions of one app are workloads of their own, so that a share of apps is a bound and not the number.
        ensure(!moved.is_empty() && moved.len() < workloads.len(), || format!("{moved:?} of {workloads:?}"))?;
        let split =
            |app: &str| others.iter().filter(|(_, name, _)| name == app).map(|(_, _, on)| on).collect::<BTreeSet<_>>();
        ensure(split("echo").len() == 1, || "the two pods of echo are on different revisions".to_owned())?;
        Ok(Some(()))
    })?;

    strategy(bed, &json!({"promote": other}))?;
    all_on(bed, &trial, |_| true)?;
    let all = revisions(bed)?;
    ensure(all.get(&trial).is_some_and(|one| tags(one).contains(&"stable")), || format!("{all:?}"))?;
    alone(bed, &trial)?;
    bed.wait_condition(&MESH, "Ready", SOON)?;

    // The way back is another canary; taken back half way, it leaves nothing.
    version(bed, &own)?;
    let second = tried(bed, &own)?;
    bed.wait("a share to be on the second canary", SOON, || {
        let on = injected(bed)?.iter().filter(|(_, _, on)| *on == second).count();
        Ok((on > 0).then_some(()))
    })?;
    version(bed, &other)?;
    all_on(bed, &trial, |_| true)?;
    alone(bed, &trial)
}

/// One revision, called as the MeshInstall, in place.
fn restore(bed: &Bed) -> Result<()> {
    let in_place = json!({"type": "InPlace", "gracePeriodSeconds": 1, "canaryPercent": null, "promote": null});
    let spec = json!({"version": bed.release.version, "controlPlane": {"updateStrategy": in_place}});
    bed.patch(&MESH, &json!({"spec": spec}))?;
    // Its pods may have the other release, and would be moved once sidecars follow again.
    bed.kubectl(&["delete", "namespace", EARLY, "--ignore-not-found", "--timeout=90s"])?;
    all_on(bed, "default", |_| true)?;
    alone(bed, "default")?;
    bed.patch(
        &MESH,
        &json!({"spec": {"controlPlane": {"updateStrategy": null}, "dataPlane": {"updateStrategy": null}}}),
    )?;
    bed.wait_condition(&MESH, "Ready", SOON).map(drop)
}

pub(super) fn scales_evenly(bed: &Bed) -> Result<()> {
    let load = bed.load(LAB, CLIENT, &["http://echo/", "--seconds", "150", "--rate", "100", "--concurrency", "8"])?;
    let result = [1_usize, 5, 2, 1].into_iter().try_for_each(|replicas| {
        bed.patch(&MESH, &json!({"spec": {"controlPlane": {"replicas": replicas}}}))?;
        bed.wait_condition(&MESH, "Ready", Duration::from_secs(90))?;
        bed.wait(&format!("streams to be spread over {replicas} replicas"), Duration::from_secs(90), || {
            let open = streams(bed, "default")?;
            let (total, pods) = (open.values().sum::<f64>(), injected(bed)?.len());
            ensure(open.len() == replicas && total >= pods as f64, || format!("{pods} pods, streams: {open:?}"))?;
            let fair = pods.div_ceil(replicas);
            let most = (fair + (fair / 8).max(1)) as f64;
            ensure(open.values().all(|count| *count <= most && *count >= 1.0), || format!("at most {most}: {open:?}"))?;
            Ok(Some(()))
        })
    });
    // All are still told of changes, whichever replica they ended up with.
    let routes = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "after-scaling", "namespace": LAB},
        "spec": {"hosts": ["solo"], "http": [{"headers": {"response": {"set": {"x-after": "scaling"}}}, "route": [{"destination": {"host": "solo"}}]}]},
    });
    bed.apply(&routes.to_string())?;
    let programmed =
        bed.wait_condition(&["virtualservice", "after-scaling", "-n", LAB], "Programmed", Duration::from_secs(30));
    bed.kubectl(&["-n", LAB, "delete", "virtualservice", "after-scaling"])?;
    bed.patch(&MESH, &json!({"spec": {"controlPlane": {"replicas": 2}}}))?;
    let counted = load.finish()?;
    bed.figures.add("scaling_1_5_2_1_failed", counted.failed as f64, "requests");
    bed.wait_condition(&MESH, "Ready", Duration::from_secs(90))?;
    result?;
    programmed?;
    ensure(counted.failed == 0 && counted.requests > 1000, || {
        format!("{} of {} failed while it scaled: {:?}", counted.failed, counted.requests, counted.errors)
    })
}
