//! The mesh's authority is replaced under load: no request fails, nothing restarts, and the old root is gone at the end.

use crate::{
    bed::{Bed, condition_of, ensure},
    install::SYSTEM,
    lab::{App, LAB},
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::time::{Duration, Instant, SystemTime};

const CLIENT: &str = "deploy/client";
const MESH: [&str; 2] = ["meshinstall", "default"];
const APP: &str = "rotated";
/// The kubelet brings a changed Secret or ConfigMap within about a minute; a rotation needs three such changes.
const ROTATED: Duration = Duration::from_secs(600);

/// The mesh's certificates as its status has them.
fn certificates(bed: &Bed) -> Result<Value> {
    Ok(bed.get(&MESH)?["status"]["certificates"].clone())
}

/// Restarts of every container in the lab and of the control plane.
fn restarts(bed: &Bed) -> Result<i64> {
    let mut pods = bed.pods(LAB, "app")?;
    pods.extend(bed.pods(SYSTEM, "app.kubernetes.io/name=leno-control-plane")?);
    let lists = ["containerStatuses", "initContainerStatuses"];
    Ok(pods
        .iter()
        .flat_map(|pod| lists.iter().flat_map(|list| pod["status"][list].as_array().into_iter().flatten()))
        .filter_map(|status| status["restartCount"].as_i64())
        .sum())
}

/// Loads that go on until the rotation is over: kept connections, a connection a request, and TCP.
const LOADS: [&[&str]; 3] = [
    &["http://rotated/", "--rate", "100", "--concurrency", "8"],
    &["http://rotated/", "--rate", "20", "--no-keep-alive"],
    &["tcp://stock:9000", "--protocol", "tcp", "--rate", "10"],
];

pub(super) fn root_rotated_under_load(bed: &Bed) -> Result<()> {
    let app = App::echo(LAB, APP).replicas(2);
    app.deploy(bed)?;
    bed.patch(&MESH, &json!({"spec": {"certificates": {"overlapMinutes": 0}}}))?;
    let result = rotated(bed);
    bed.patch(
        &MESH,
        &json!({"spec": {"certificates": null}, "metadata": {"annotations": {"mesh.leno.dev/rotate-root": null}}}),
    )?;
    app.remove(bed)?;
    result
}

fn rotated(bed: &Bed) -> Result<()> {
    let warm = bed.client(LAB, CLIENT, &["http://rotated/", "--requests", "50"])?;
    ensure(warm.failed == 0, || format!("before: {:?}", warm.errors))?;
    bed.wait_condition(&MESH, "CertificatesCurrent", Duration::from_secs(30))?;
    let before = certificates(bed)?;
    let restarts_before = restarts(bed)?;
    let value = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs().to_string();
    let loads = LOADS.iter().map(|load| bed.load_until_stopped(LAB, CLIENT, load)).collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    bed.patch(&MESH, &json!({"metadata": {"annotations": {"mesh.leno.dev/rotate-root": value}}}))?;
    let mut last = String::new();
    let rotated = bed.wait("the rotation to be over", ROTATED, || {
        let now = certificates(bed)?;
        if let Some(step) = now["rotation"]["step"].as_str()
            && step != last
        {
            println!("  {step} after {:.0} s", began.elapsed().as_secs_f64());
            step.clone_into(&mut last);
        }
        let over = now["rotateRoot"] == value.as_str() && now["rotation"].is_null();
        ensure(over && now["rootsSha256"] != before["rootsSha256"], || now.to_string())?;
        Ok(Some(()))
    });
    let took = began.elapsed().as_secs_f64();
    // Under the new root alone for a while.
    let stays = bed.stays("the mesh", Duration::from_secs(10), || Ok(()));
    let mut requests = 0;
    for (kind, load) in LOADS.iter().zip(loads) {
        let counted = load.stop()?;
        ensure(counted.failed == 0 && counted.requests > 0, || {
            format!("{}: {} of {} failed: {:?}", kind.join(" "), counted.failed, counted.requests, counted.errors)
        })?;
        requests += counted.requests;
    }
    rotated.and(stays)?;
    bed.figures.add("root_rotated_under_load", took, "s");
    bed.figures.add("root_rotated_requests_without_failure", requests as f64, "requests");
    ensure(restarts(bed)? == restarts_before, || "containers restarted during the rotation".into())?;
    let after = certificates(bed)?;
    ensure(after["trustedRoots"] == 1, || format!("more than one root is trusted: {after}"))?;
    // One root everywhere: in the ConfigMap, in the webhook, and a pod that is created now starts and is answered.
    let roots = bed.get(&["configmap", "leno-root", "-n", LAB])?["data"]["roots.pem"].clone();
    let roots = roots.as_str().context("no roots")?.matches("BEGIN CERTIFICATE").count();
    ensure(roots == 1, || format!("the ConfigMap holds {roots} roots"))?;
    let fresh = App::client(LAB, "after-the-rotation");
    fresh.deploy(bed)?;
    let counted = bed.client(LAB, "deploy/after-the-rotation", &["http://rotated/", "--requests", "50"]);
    fresh.remove(bed)?;
    let counted = counted?;
    ensure(counted.failed == 0, || format!("a new pod after the rotation: {:?}", counted.errors))?;
    let mesh = bed.get(&MESH)?;
    let condition = condition_of(&mesh, "CertificatesCurrent").context("no condition CertificatesCurrent")?;
    ensure(condition["status"] == "True" && condition["reason"] == "Current", || condition.to_string())?;
    let events = bed.events("MeshInstall", "default")?;
    for reason in ["DistributingRoot", "RetiringRoot"] {
        ensure(events.iter().any(|event| event.contains(reason)), || format!("no event {reason}: {events:?}"))?;
    }
    bed.wait_condition(&MESH, "Ready", Duration::from_secs(60)).map(drop)
}

/// A Secret that cannot be used changes nothing but what is said.
pub(super) fn unusable_secret_is_named(bed: &Bed) -> Result<()> {
    let before = certificates(bed)?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "leno-issuer", "namespace": SYSTEM},
        "stringData": {"tls.crt": "no certificate", "tls.key": "no key"},
    });
    bed.apply(&secret.to_string())?;
    bed.patch(&MESH, &json!({"spec": {"certificates": {"issuer": "Secret"}}}))?;
    let told = bed.wait("CertificatesCurrent to name the Secret", Duration::from_secs(20), || {
        let mesh = bed.get(&MESH)?;
        let condition = condition_of(&mesh, "CertificatesCurrent").context("no such condition")?;
        let message = condition["message"].as_str().unwrap_or_default();
        ensure(
            condition["status"] == "False"
                && condition["reason"] == "UserSecretUnusable"
                && message.contains(&format!("{SYSTEM}/leno-issuer"))
                && message.contains("tls.crt"),
            || condition.to_string(),
        )?;
        Ok(Some(()))
    });
    bed.patch(&MESH, &json!({"spec": {"certificates": null}}))?;
    bed.kubectl(&["-n", SYSTEM, "delete", "secret", "leno-issuer"])?;
    told?;
    let after = certificates(bed)?;
    ensure(after["rootsSha256"] == before["rootsSha256"], || format!("the authority changed: {before}, {after}"))?;
    bed.wait_condition(&MESH, "CertificatesCurrent", Duration::from_secs(20)).map(drop)
}
