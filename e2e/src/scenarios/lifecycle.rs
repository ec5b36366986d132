//! The life of a mesh: scaled, changed, repaired, at rest, and removed.

use crate::{
    audit::Audit,
    bed::{Bed, condition_of, ensure},
    install::{MESH, SYSTEM},
    lab::{LAB, namespace},
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};

const CLIENT: &str = "deploy/client";
const CONTROL_PLANE: [&str; 4] = ["deployment", "leno-control-plane-default", "-n", SYSTEM];
/// How long nothing may be written while nothing changes.
const AT_REST: Duration = Duration::from_secs(120);

pub(super) fn what_a_user_sees(bed: &Bed) -> Result<()> {
    let listed = bed.kubectl(&["get", "meshinstall"])?;
    let (head, line) = (listed.lines().next().unwrap_or_default(), listed.lines().nth(1).unwrap_or_default());
    for column in ["VERSION", "READY", "CONTROL PLANE", "DATA PLANE", "AGE"] {
        ensure(head.contains(column), || format!("there is no column {column}: {listed}"))?;
    }
    ensure(line.contains("2/2") && line.contains(&bed.release.version), || format!("the line is: {line}"))?;
    let total = bed.get(&["pods", "-A", "-l", "mesh.leno.dev/rev=default"])?["items"].as_array().map_or(0, Vec::len);
    ensure(total > 0 && line.contains(&format!("{total}/{total}")), || {
        format!("{total} injected pods, and the line is: {line}")
    })?;
    let described = bed.kubectl(&["describe", "meshinstall", "default"])?;
    for word in ["Accepted", "ControlPlaneReady", "DataPlaneReady", "Reason:", "Events:"] {
        ensure(described.contains(word), || format!("kubectl describe has no {word}:\n{described}"))?;
    }
    ensure(!bed.events("MeshInstall", "default")?.is_empty(), || "there is no event about the MeshInstall".into())?;
    let routes = bed.kubectl(&["-n", "shop", "describe", "virtualservice", "reviews"])?;
    for word in ["Accepted", "ResolvedRefs", "Programmed", "in force on", "proxies", "ms"] {
        ensure(routes.contains(word), || format!("kubectl describe virtualservice has no {word}:\n{routes}"))?;
    }
    Ok(())
}

pub(super) fn scales(bed: &Bed) -> Result<()> {
    let load = bed.load(LAB, CLIENT, &["http://echo/", "--seconds", "10", "--rate", "50"])?;
    let result = [3, 1, 2].into_iter().try_for_each(|replicas| {
        bed.patch(&MESH, &json!({"spec": {"controlPlane": {"replicas": replicas}}}))?;
        bed.wait(&format!("{replicas} replicas of the control plane"), Duration::from_secs(40), || {
            let mesh = bed.get(&MESH)?;
            let status = &mesh["status"]["controlPlane"];
            let ready = condition_of(&mesh, "Ready").is_some_and(|ready| {
                ready["status"] == "True" && ready["observedGeneration"] == mesh["metadata"]["generation"]
            });
            let deployed = &bed.get(&CONTROL_PLANE)?["spec"]["replicas"];
            ensure(ready && status["summary"] == format!("{replicas}/{replicas}") && *deployed == replicas, || {
                mesh["status"].to_string()
            })?;
            Ok(Some(()))
        })
    });
    bed.patch(&MESH, &json!({"spec": {"controlPlane": {"replicas": 2}}}))?;
    let counted = load.finish()?;
    result?;
    ensure(counted.failed == 0, || {
        format!("{} of {} failed while it scaled: {:?}", counted.failed, counted.requests, counted.errors)
    })
}

pub(super) fn autoscaler_decides(bed: &Bed) -> Result<()> {
    let result = (|| {
        bed.patch(&MESH, &json!({"spec": {"controlPlane": {"autoscaling": {"minReplicas": 2, "maxReplicas": 4}}}}))?;
        bed.wait("an autoscaler", Duration::from_secs(20), || {
            Ok(Some(bed.get(&["hpa", "leno-control-plane-default", "-n", SYSTEM])?))
        })?;
        let replicas = || Ok::<i64, anyhow::Error>(bed.get(&CONTROL_PLANE)?["spec"]["replicas"].as_i64().unwrap_or(0));
        bed.stays("the hand-over", Duration::from_secs(2), || {
            let now = replicas()?;
            ensure(now == 2, || format!("the hand-over to the autoscaler changed the replicas to {now}"))
        })?;
        // What an autoscaler would do.
        bed.kubectl(&["-n", SYSTEM, "scale", "deployment/leno-control-plane-default", "--replicas=3"])?;
        bed.kubectl(&["annotate", "meshinstall", "default", "leno-e2e/poke=1", "--overwrite"])?;
        bed.stays("the autoscaler's choice", Duration::from_secs(8), || {
            let now = replicas()?;
            ensure(now == 3, || format!("the operator changed the autoscaler's 3 replicas to {now}"))
        })
    })();
    bed.patch(&MESH, &json!({"spec": {"controlPlane": {"autoscaling": null}}}))?;
    bed.kubectl(&["annotate", "meshinstall", "default", "leno-e2e/poke-"])?;
    result?;
    bed.wait("the operator's own replicas again", Duration::from_secs(40), || {
        let gone = bed.kubectl(&["-n", SYSTEM, "get", "hpa", "--ignore-not-found", "-o", "name"])?.is_empty();
        let deployed = &bed.get(&CONTROL_PLANE)?["spec"]["replicas"];
        Ok((gone && *deployed == 2).then_some(()))
    })?;
    bed.wait_condition(&MESH, "Ready", Duration::from_secs(60)).map(drop)
}

pub(super) fn outbound_mode_applies_live(bed: &Bed) -> Result<()> {
    // An address that no service is known for: the API server's own, on the node.
    let endpoint = bed.get(&["endpoints", "kubernetes", "-n", "default"])?["subsets"][0].clone();
    let (ip, port) = (endpoint["addresses"][0]["ip"].as_str().context("no address")?, &endpoint["ports"][0]["port"]);
    let url = format!("http://{ip}:{port}/");
    let passes = || bed.ask(LAB, CLIENT, &[&url, "--patience", "3"]).is_ok_and(|answer| answer["status"] == 400);
    let result = (|| {
        bed.wait("an unknown destination to be reached", Duration::from_secs(5), || Ok(passes().then_some(())))?;
        bed.patch(&MESH, &json!({"spec": {"mesh": {"outbound": "RegistryOnly"}}}))?;
        bed.wait("an unknown destination to be refused", Duration::from_secs(10), || Ok((!passes()).then_some(())))?;
        let known = bed.client(LAB, CLIENT, &["http://echo/", "--requests", "20"])?;
        ensure(known.failed == 0, || format!("a known one fails: {:?}", known.errors))
    })();
    bed.patch(&MESH, &json!({"spec": {"mesh": {"outbound": "AllowAny"}}}))?;
    result?;
    bed.wait("an unknown destination to be reached again", Duration::from_secs(10), || Ok(passes().then_some(())))
}

pub(super) fn drift_is_repaired(bed: &Bed) -> Result<()> {
    let service = ["service", "leno-control-plane-default", "-n", SYSTEM];
    let before = bed.get(&service)?["spec"]["ports"].clone();
    bed.kubectl(&["-n", SYSTEM, "delete", "service", "leno-control-plane-default"])?;
    bed.wait("the deleted Service to be back", Duration::from_secs(15), || {
        Ok((bed.get(&service)?["spec"]["ports"].as_array().map(Vec::len) == before.as_array().map(Vec::len))
            .then_some(()))
    })?;
    let image = || {
        Ok::<Value, anyhow::Error>(
            bed.get(&CONTROL_PLANE)?["spec"]["template"]["spec"]["containers"][0]["args"].clone(),
        )
    };
    let args = image()?;
    bed.kubectl(&[
        "-n",
        SYSTEM,
        "patch",
        "deployment",
        "leno-control-plane-default",
        "--type=json",
        "-p",
        r#"[{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--drain=3"}]"#,
    ])?;
    bed.wait("changed arguments to be set back", Duration::from_secs(15), || Ok((image()? == args).then_some(())))?;
    bed.patch(
        &["mutatingwebhookconfiguration", "leno-injector-default"],
        &json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": null}}}),
    )?;
    // Twice: the second time right after it was written.
    for _ in 0..2 {
        bed.kubectl(&["delete", "mutatingwebhookconfiguration", "leno-injector-default"])?;
        bed.wait("the deleted webhook to be back", Duration::from_secs(15), || {
            bed.get(&["mutatingwebhookconfiguration", "leno-injector-default"]).map(Some)
        })?;
    }
    bed.kubectl(&["-n", LAB, "delete", "configmap", "leno-root"])?;
    bed.wait("the deleted root to be back", Duration::from_secs(15), || {
        bed.get(&["configmap", "leno-root", "-n", LAB]).map(Some)
    })?;
    bed.wait_condition(&MESH, "Ready", Duration::from_secs(60)).map(drop)
}

pub(super) fn deleting_a_mesh_in_use_is_refused(bed: &Bed) -> Result<()> {
    let delete = || bed.kubectl(&["delete", "meshinstall", "default", "--dry-run=server"]);
    let refused = delete();
    let words = refused.as_ref().err().map(ToString::to_string).unwrap_or_default();
    ensure(words.contains("in use") && words.contains("pods"), || {
        format!("deleting a mesh in use must be refused with a message: {refused:?}")
    })?;
    let annotation = "mesh.leno.dev/allow-delete-in-use";
    bed.kubectl(&["annotate", "meshinstall", "default", &format!("{annotation}=true")])?;
    let allowed = delete();
    bed.kubectl(&["annotate", "meshinstall", "default", &format!("{annotation}-")])?;
    ensure(allowed.is_ok(), || format!("the annotation does not allow it: {allowed:?}"))?;
    ensure(bed.get(&MESH)?["metadata"]["deletionTimestamp"].is_null(), || "the mesh is being deleted".into())
}

/// Names of all objects of the kinds that a mesh is made of.
pub(crate) fn everything(bed: &Bed) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for kinds in [
        "namespaces,clusterroles,clusterrolebindings,mutatingwebhookconfigurations,validatingwebhookconfigurations",
        "deployments,services,serviceaccounts,secrets,configmaps,roles,rolebindings,poddisruptionbudgets,horizontalpodautoscalers,leases",
    ] {
        let list = bed.get(&[kinds, "-A"])?;
        for item in list["items"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            all.insert(format!(
                "{} {}/{}",
                text(&item["kind"]),
                text(&item["metadata"]["namespace"]),
                text(&item["metadata"]["name"])
            ));
        }
    }
    Ok(all)
}

pub(super) fn delete_removes_all_and_nothing_else(bed: &Bed) -> Result<()> {
    let install = |name: &str, namespace: &str| {
        json!({
            "apiVersion": "mesh.leno.dev/v1alpha1", "kind": "MeshInstall", "metadata": {"name": name},
            "spec": {"version": bed.release.version, "namespace": namespace, "controlPlane": {"replicas": 1},
                "mesh": {"namespaces": {"matchLabels": {"e2e": "other"}}}},
        })
        .to_string()
    };
    // One moves into a namespace that was there, with something in it; one makes its own. One namespace is its workloads'.
    bed.apply(&namespace("was-there", json!({})))?;
    bed.kubectl(&["-n", "was-there", "create", "configmap", "foreign", "--from-literal=a=b"])?;
    bed.apply(&namespace("other-apps", json!({"e2e": "other"})))?;
    bed.wait("the cluster's own objects of the new namespaces", Duration::from_secs(10), || {
        bed.kubectl(&["-n", "was-there", "get", "serviceaccount/default", "configmap/kube-root-ca.crt"])?;
        bed.kubectl(&["-n", "other-apps", "get", "serviceaccount/default", "configmap/kube-root-ca.crt"]).map(Some)
    })?;
    let before = everything(bed)?;
    let result = [("guest", "was-there"), ("owner", "made-anew")].into_iter().try_for_each(|(name, namespace)| {
        bed.apply(&install(name, namespace))?;
        bed.wait_condition(&["meshinstall", name], "Ready", Duration::from_secs(60))?;
        let made = everything(bed)?;
        ensure(made.difference(&before).count() >= 6, || format!("{name} made nothing"))?;
        bed.kubectl(&["delete", "meshinstall", name, "--timeout=60s"])?;
        bed.wait(&format!("all that {name} made to be gone, and nothing else"), Duration::from_secs(40), || {
            let after = everything(bed)?;
            let left: Vec<_> = after.difference(&before).collect();
            let missing: Vec<_> = before.difference(&after).collect();
            ensure(left.is_empty() && missing.is_empty(), || format!("left over: {left:?}; missing: {missing:?}"))?;
            Ok(Some(()))
        })
    });
    for name in ["guest", "owner"] {
        bed.kubectl(&["delete", "meshinstall", name, "--ignore-not-found", "--wait=false"])?;
    }
    bed.kubectl(&["delete", "namespace", "was-there", "other-apps", "--wait=false"])?;
    result?;
    bed.wait_condition(&MESH, "Ready", Duration::from_secs(30)).map(drop)
}

pub(super) fn nothing_is_written_at_rest(bed: &Bed) -> Result<()> {
    let Some(audit) = Audit::of(bed) else {
        println!("  not looked at: the audit log of this cluster cannot be read from here");
        return Ok(());
    };
    bed.wait_condition(&MESH, "Ready", Duration::from_secs(60))?;
    // What the scenario before set off comes to its end.
    audit.settle(bed)?;
    audit.stays_quiet(bed, AT_REST, || Ok(()))
}
