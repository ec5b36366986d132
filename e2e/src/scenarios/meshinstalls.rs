//! MeshInstalls that cannot be: the reason in conditions and events, and the mesh that runs untouched; and a version that can.

use crate::{
    bed::{Bed, condition_of, ensure},
    install::{MESH, SYSTEM},
    lab::LAB,
};
use anyhow::Result;
use serde_json::{Value, json};
use std::time::Duration;

const CLIENT: &str = "deploy/client";
const TOLD: Duration = Duration::from_secs(30);
const CONTROL_PLANE: [&str; 4] = ["deployment", "leno-control-plane-default", "-n", SYSTEM];

/// Waits until a condition of a MeshInstall is false for a reason that holds all `words`, and an event tells it too.
fn told(bed: &Bed, name: &str, conditions: &[&str], words: &[&str]) -> Result<()> {
    bed.wait(&format!("one of {conditions:?} of MeshInstall {name} to be false and to name {words:?}"), TOLD, || {
        let value = bed.get(&["meshinstall", name])?;
        let generation = &value["metadata"]["generation"];
        let told = conditions.iter().filter_map(|kind| condition_of(&value, kind)).any(|found| {
            let message = found["message"].as_str().unwrap_or_default();
            let reason = found["reason"].as_str().unwrap_or_default();
            found["status"] == "False"
                && found["observedGeneration"] == *generation
                && words.iter().all(|word| message.contains(word))
                && reason.chars().next().is_some_and(char::is_uppercase)
        });
        ensure(told, || value["status"]["conditions"].to_string())?;
        let events = bed.events("MeshInstall", name)?;
        ensure(
            events.iter().any(|event| event.starts_with("Warning") && words.iter().any(|word| event.contains(word))),
            || format!("events: {events:?}"),
        )?;
        Ok(Some(()))
    })
}

/// What must not change while a MeshInstall is wrong: the control plane's Deployment, and its pods.
fn footprint(bed: &Bed) -> Result<Value> {
    let deployment = bed.get(&CONTROL_PLANE)?;
    let pods = bed.pods(SYSTEM, "app.kubernetes.io/name=leno-control-plane,app.kubernetes.io/instance=default")?;
    let pods: Vec<&Value> = pods.iter().map(|pod| &pod["metadata"]["name"]).collect();
    Ok(json!({"generation": deployment["metadata"]["generation"], "pods": pods}))
}

fn ready(bed: &Bed) -> Result<()> {
    bed.wait_condition(&MESH, "Ready", Duration::from_secs(60)).map(drop)
}

pub(super) fn unknown_version(bed: &Bed) -> Result<()> {
    let before = footprint(bed)?;
    bed.patch(&MESH, &json!({"spec": {"version": "9.9.9"}}))?;
    let result = told(bed, "default", &["Accepted", "Ready"], &["9.9.9", &bed.release.version]).and_then(|()| {
        let after = footprint(bed)?;
        ensure(after == before, || format!("the old mesh was touched: {before} before, {after} now"))?;
        let counted = bed.client(LAB, CLIENT, &["http://echo/", "--requests", "50"])?;
        ensure(counted.failed == 0, || format!("{} of {} failed", counted.failed, counted.requests))
    });
    bed.patch(&MESH, &json!({"spec": {"version": bed.release.version}}))?;
    ready(bed)?;
    result
}

pub(super) fn refused_at_apply(bed: &Bed) -> Result<()> {
    for (what, spec, words) in [
        ("zero replicas", json!({"controlPlane": {"replicas": 0}}), "replicas"),
        ("a bad trust domain", json!({"mesh": {"trustDomain": "Not a domain/"}}), "trustDomain"),
        ("a changed trust domain", json!({"mesh": {"trustDomain": "other.example"}}), "trustDomain"),
        ("another namespace", json!({"namespace": "elsewhere"}), "namespace"),
        ("a version that is none", json!({"version": "latest"}), "version"),
    ] {
        let patch = json!({"spec": spec}).to_string();
        let refused =
            bed.kubectl(&["patch", "meshinstall", "default", "--type=merge", "--dry-run=server", "-p", &patch]);
        let words_found = refused.as_ref().err().is_some_and(|error| error.to_string().contains(words));
        ensure(words_found, || format!("{what} must be refused with a message about {words}: {refused:?}"))?;
    }
    let new = json!({
        "apiVersion": "mesh.leno.dev/v1alpha1", "kind": "MeshInstall", "metadata": {"name": "bad"},
        "spec": {"version": bed.release.version, "namespace": "bad", "mesh": {"trustDomain": "-"}},
    });
    let refused = bed.kubectl_with(&["create", "--dry-run=server", "-f", "-"], &new.to_string());
    ensure(refused.is_err(), || "a new MeshInstall with a bad trust domain is accepted".into())
}

pub(super) fn second_for_the_same_namespace(bed: &Bed) -> Result<()> {
    let before = footprint(bed)?;
    let second = json!({
        "apiVersion": "mesh.leno.dev/v1alpha1", "kind": "MeshInstall", "metadata": {"name": "second"},
        "spec": {"version": bed.release.version, "namespace": SYSTEM},
    });
    bed.apply(&second.to_string())?;
    let result = told(bed, "second", &["Accepted", "Ready"], &["default", SYSTEM]).and_then(|()| {
        let after = footprint(bed)?;
        ensure(after == before, || format!("the old mesh was touched: {before} before, {after} now"))?;
        let made =
            bed.kubectl(&["-n", SYSTEM, "get", "deployment", "leno-control-plane-second", "--ignore-not-found"])?;
        ensure(made.is_empty(), || format!("a second control plane was made: {made}"))
    });
    bed.kubectl(&["delete", "meshinstall", "second", "--timeout=30s"])?;
    let after = footprint(bed)?;
    ensure(after == before, || format!("deleting the second one touched the first: {before} before, {after} now"))?;
    ready(bed)?;
    result
}

pub(super) fn image_that_does_not_exist(bed: &Bed) -> Result<()> {
    let names = |bed: &Bed| {
        Ok::<Vec<String>, anyhow::Error>(
            footprint(bed)?["pods"].as_array().into_iter().flatten().map(ToString::to_string).collect(),
        )
    };
    let before = names(bed)?;
    let hub = bed.get(&MESH)?["spec"]["image"]["hub"].clone();
    let load = bed.load(LAB, CLIENT, &["http://echo/", "--seconds", "8", "--rate", "50"])?;
    bed.patch(&MESH, &json!({"spec": {"image": {"hub": "nowhere.invalid/leno"}}}))?;
    let result = told(bed, "default", &["ControlPlaneReady", "Ready"], &["nowhere.invalid/leno"]).and_then(|()| {
        let now = names(bed)?;
        ensure(before.iter().all(|name| now.contains(name)), || {
            format!("replicas that served are gone: {before:?} before, {now:?} now")
        })?;
        let counted = load.finish()?;
        ensure(counted.failed == 0, || {
            format!("{} of {} failed: {:?}", counted.failed, counted.requests, counted.errors)
        })
    });
    bed.patch(&MESH, &json!({"spec": {"image": {"hub": hub}}}))?;
    ready(bed)?;
    result
}
