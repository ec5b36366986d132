//! What injection does to pods, and what it leaves to them: their probes, their jobs, their init containers, and their life
//! while the sidecar is killed or swapped.

use super::resilience::{OPERATOR, operator_is_gone, scale};
use crate::{
    bed::{Bed, condition_of, ensure},
    install::{MESH, SYSTEM},
    lab::{App, LAB, OUTSIDE, image, restricted},
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::time::Duration;

const CLIENT: &str = "deploy/client";

/// What the API server makes of a pod, webhooks included, without keeping it.
fn dry_run(bed: &Bed, pod: &Value) -> Result<Value> {
    let answer = bed.kubectl_with(&["create", "--dry-run=server", "-o", "json", "-f", "-"], &pod.to_string())?;
    Ok(serde_json::from_str(&answer)?)
}

fn pod(bed: &Bed, namespace: &str, labels: Value, annotations: Value, spec: Value) -> Value {
    let mut all = json!({"containers": [{"name": "app", "image": image(bed), "args": ["idle"]}]});
    if let (Some(all), Some(spec)) = (all.as_object_mut(), spec.as_object()) {
        all.extend(spec.clone());
    }
    json!({
        "apiVersion": "v1", "kind": "Pod", "spec": all,
        "metadata": {"name": "judged", "namespace": namespace, "labels": labels, "annotations": annotations},
    })
}

/// The names of the containers that injection adds, in order, `initContainers` first.
fn added(pod: &Value) -> Vec<String> {
    let names = |list: &str| pod["spec"][list].as_array().cloned().unwrap_or_default();
    let all = names("initContainers").into_iter().chain(names("containers"));
    all.filter_map(|container| container["name"].as_str().map(str::to_owned))
        .filter(|name| name.starts_with("leno-"))
        .collect()
}

pub(super) fn who_is_injected(bed: &Bed) -> Result<()> {
    let none = || json!({});
    for (what, namespace, labels, annotations, spec, wanted) in [
        ("a pod of a labelled namespace", LAB, none(), none(), none(), true),
        ("Istio's opt-out label", LAB, json!({"sidecar.istio.io/inject": "false"}), none(), none(), false),
        ("Istio's opt-out annotation", LAB, none(), json!({"sidecar.istio.io/inject": "false"}), none(), false),
        ("our opt-out label", LAB, json!({"mesh.leno.dev/inject": "disabled"}), none(), none(), false),
        ("our opt-out annotation", LAB, none(), json!({"mesh.leno.dev/inject": "disabled"}), none(), false),
        ("a pod on the host's network", LAB, none(), none(), json!({"hostNetwork": true}), false),
        ("a pod of a namespace without label", OUTSIDE, none(), none(), none(), false),
        ("Istio's opt-in label", OUTSIDE, json!({"sidecar.istio.io/inject": "true"}), none(), none(), true),
        ("a pod of kube-system", "kube-system", json!({"sidecar.istio.io/inject": "true"}), none(), none(), false),
    ] {
        let made = dry_run(bed, &pod(bed, namespace, labels, annotations, spec)).with_context(|| what.to_owned())?;
        ensure(added(&made).is_empty() != wanted, || {
            format!("{what}: wanted injection {wanted}, and got containers {:?}", added(&made))
        })?;
    }
    Ok(())
}

pub(super) fn shape_of_the_pod(bed: &Bed) -> Result<()> {
    let own_init = json!({"initContainers": [{"name": "first-of-app", "image": image(bed), "args": ["idle"]}]});
    let made = dry_run(bed, &pod(bed, LAB, json!({}), json!({}), own_init))?;
    let init = made["spec"]["initContainers"].as_array().context("no init containers")?;
    let names: Vec<&str> = init.iter().filter_map(|container| container["name"].as_str()).collect();
    ensure(names == ["leno-capture", "leno-proxy-0", "leno-proxy-1", "first-of-app"], || {
        format!("the order is {names:?}")
    })?;
    for container in
        init.iter().filter(|container| container["name"].as_str().is_some_and(|name| name.starts_with("leno-")))
    {
        let name = &container["name"];
        let security = &container["securityContext"];
        let proxy = name != "leno-capture";
        ensure((container["restartPolicy"] == "Always") == proxy, || {
            format!("{name} has restart policy {}", container["restartPolicy"])
        })?;
        ensure(security["readOnlyRootFilesystem"] == true && security["privileged"] != true, || {
            format!("{name}: {security}")
        })?;
        let adds = &security["capabilities"]["add"];
        ensure(if proxy { adds.is_null() || adds == &json!([]) } else { adds == &json!(["NET_ADMIN"]) }, || {
            format!("{name} adds {adds}")
        })?;
        ensure(!proxy || (security["runAsUser"] == 1337 && security["runAsNonRoot"] == true), || {
            format!("{name}: {security}")
        })?;
    }
    let metadata = &made["metadata"];
    ensure(metadata["annotations"]["mesh.leno.dev/shape"] == "1", || {
        format!("annotations: {}", metadata["annotations"])
    })?;
    ensure(metadata["labels"]["mesh.leno.dev/rev"].is_string(), || format!("labels: {}", metadata["labels"]))
}

pub(super) fn job_completes(bed: &Bed) -> Result<()> {
    let template = App::client(LAB, "client")
        .args(&["client", "http://echo/", "--requests", "20", "--must-succeed"])
        .template(bed);
    let mut spec = template["spec"].clone();
    spec["restartPolicy"] = "Never".into();
    spec["initContainers"] = json!([{
        "name": "network-before-the-app", "image": image(bed), "securityContext": restricted(),
        "args": ["client", "http://echo/", "--requests", "5", "--must-succeed"],
    }]);
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once", "namespace": LAB},
        "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": {"app": "once"}}, "spec": spec}},
    });
    bed.apply(&job.to_string())?;
    let result = bed.wait("the job to complete", Duration::from_secs(40), || {
        let job = bed.get(&["job", "once", "-n", LAB])?;
        if condition_of(&job, "Failed").is_some_and(|failed| failed["status"] == "True") {
            let log = bed.kubectl(&["-n", LAB, "logs", "job/once", "--all-containers", "--tail=5"]).unwrap_or_default();
            return Ok(Some(Err(anyhow::anyhow!("the job failed: {log}"))));
        }
        Ok(condition_of(&job, "Complete").is_some_and(|complete| complete["status"] == "True").then_some(Ok(())))
    });
    bed.kubectl(&["-n", LAB, "delete", "job", "once", "--wait=false"])?;
    result?
}

/// The restart counts of the app's own containers and of the proxy's.
fn restarts(pod: &Value) -> (i64, i64) {
    let sum = |list: &str, proxy: bool| -> i64 {
        pod["status"][list]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|status| status["name"].as_str().is_some_and(|name| name.starts_with("leno-") == proxy))
            .filter_map(|status| status["restartCount"].as_i64())
            .sum()
    };
    (sum("containerStatuses", false), sum("initContainerStatuses", true))
}

/// Every kind of probe that Kubernetes has.
const PROBES: [&str; 4] = ["http", "tcp", "grpc", "exec"];

/// A probe of that kind which passes, or fails, when the app of [`probed`] is well.
fn probe(kind: &str, passes: bool) -> Value {
    match kind {
        "http" => json!({"httpGet": {"path": if passes { "/" } else { "/status/500" }, "port": "http"}}),
        "tcp" => json!({"tcpSocket": {"port": if passes { 8080 } else { 8099 }}}),
        "grpc" => json!({"grpc": {"port": 8080, "service": if passes { "shop.v1.Ratings" } else { "shop.v1.Nobody" }}}),
        _ => {
            let port = if passes { 8080 } else { 8099 };
            json!({"exec": {"command": ["/leno-demo", "ask", format!("http://127.0.0.1:{port}/")]}, "timeoutSeconds": 3})
        }
    }
}

/// An app for a probe of that kind: an echo server, or for gRPC one that serves the health protocol.
fn probed(name: &str, kind: &str, probes: &Value) -> App {
    let mut container = json!({"ports": [{"name": "http", "containerPort": 8080}]});
    for (name, probe) in probes.as_object().into_iter().flatten() {
        container[name] = probe.clone();
    }
    let app = App::echo(LAB, name).container(container);
    if kind == "grpc" {
        let service = json!({"ports": [{"name": "grpc", "port": 80, "targetPort": 8080}]});
        app.args(&["ratings", "--listen=0.0.0.0:8080"]).service(service)
    } else {
        app
    }
}

pub(super) fn probes_survive_a_killed_proxy(bed: &Bed) -> Result<()> {
    let strict = |probe: Value| {
        let mut probe = probe;
        probe["periodSeconds"] = 1.into();
        probe["failureThreshold"] = 1.into();
        probe
    };
    let apps = PROBES.map(|kind| {
        let probe = strict(probe(kind, true));
        probed(&format!("probed-{kind}"), kind, &json!({"livenessProbe": probe, "readinessProbe": probe}))
    });
    apps.iter().try_for_each(|app| app.apply(bed))?;
    apps.iter().try_for_each(|app| app.wait(bed))?;
    let result = (|| {
        for kind in PROBES {
            let name = bed.pod(LAB, &format!("app=probed-{kind}"))?["metadata"]["name"]
                .as_str()
                .context("no name")?
                .to_owned();
            // Answers of a killed proxy's connections may be lost; the app must not notice, and the next ones must pass.
            if !bed.kill(LAB, &name, "leno-proxy-0")? {
                println!("  not looked at: processes of this cluster cannot be killed from here");
                return Ok(());
            }
            bed.wait(&format!("the killed proxy of {name} to be back"), Duration::from_secs(15), || {
                Ok((restarts(&bed.get(&["pod", &name, "-n", LAB])?).1 >= 1).then_some(()))
            })?;
            bed.stays(&name, Duration::from_secs(4), || {
                let pod = bed.get(&["pod", &name, "-n", LAB])?;
                ensure(restarts(&pod).0 == 0, || format!("the app restarted: {}", pod["status"]["containerStatuses"]))
            })?;
            // The gRPC app has no page and says so; only a proxy without an app answers 503.
            let answer = bed.ask(LAB, CLIENT, &[&format!("http://probed-{kind}/"), "--http2"])?;
            ensure(answer["status"].as_u64().is_some_and(|status| status < 500), || {
                format!("after the kill: {answer}")
            })?;
        }
        Ok(())
    })();
    apps.iter().try_for_each(|app| app.remove(bed))?;
    result
}

pub(super) fn failing_probe_still_fails(bed: &Bed) -> Result<()> {
    // A probe that always passed would be worthless: one that must fail does.
    let apps = PROBES.map(|kind| {
        let mut probe = probe(kind, false);
        probe["periodSeconds"] = 1.into();
        probed(&format!("unwell-{kind}"), kind, &json!({"readinessProbe": probe}))
    });
    apps.iter().try_for_each(|app| app.apply(bed))?;
    let ready = |kind: &str| -> Result<Value> {
        let pod = bed.pod(LAB, &format!("app=unwell-{kind}"))?;
        Ok(pod["status"]["containerStatuses"][0].clone())
    };
    let result = PROBES
        .iter()
        .try_for_each(|kind| {
            bed.wait(&format!("unwell-{kind} to run"), Duration::from_secs(30), || {
                Ok(ready(kind)?["state"]["running"].is_object().then_some(()))
            })
        })
        .and_then(|()| {
            bed.stays("unready", Duration::from_secs(3), || {
                PROBES.iter().try_for_each(|kind| {
                    ensure(ready(kind)?["ready"] == false, || format!("ready though its {kind} probe must fail"))
                })
            })
        });
    apps.iter().try_for_each(|app| app.remove(bed))?;
    result
}

pub(super) fn image_patch_keeps_the_app(bed: &Bed) -> Result<()> {
    let failed = patch_images(bed, "solo")?;
    bed.figures.add("sidecar_image_swap_failed", failed as f64, "requests");
    Ok(())
}

/// The last lines of a pod's sidecars about answers with 503, and about slots.
fn what_sidecars_say(bed: &Bed, of: &str) -> String {
    /// Lines of each container: of its own life, and of requests.
    const LINES: [usize; 2] = [25, 2];
    let mut said = Vec::new();
    for slot in ["leno-proxy-0", "leno-proxy-1"] {
        for which in ["--previous=true", "--previous=false"] {
            let log = bed.kubectl(&["-n", LAB, "logs", of, "-c", slot, "--since=60s", which]).unwrap_or_default();
            let (own, requests): (Vec<&str>, Vec<&str>) =
                log.lines().partition(|line| line.contains("leno_proxy::") || line.contains("[warning]"));
            let requests = requests.into_iter().filter(|line| line.contains(" 503 ")).take(LINES[1]);
            let own = own.iter().rev().take(LINES[0]).rev().copied();
            said.push(format!("{slot} {which}: {}", own.chain(requests).collect::<Vec<_>>().join("; ")));
        }
    }
    said.join("\n")
}

/// Swaps the image of both slots of an app's one pod under load, and gives how many requests failed; the app must not
/// restart, and at most one in a hundred may fail. The operator is away: it would give the pod its mesh's image back, each slot
/// as soon as it runs another one.
pub(super) fn patch_images(bed: &Bed, app: &str) -> Result<u64> {
    scale(bed, OPERATOR, 0)?;
    let failed = operator_is_gone(bed).and_then(|()| swap_images(bed, app));
    scale(bed, OPERATOR, 2)?;
    bed.wait_rollout(SYSTEM, OPERATOR, Duration::from_secs(60))?;
    bed.wait_condition(&MESH, "Ready", Duration::from_secs(60))?;
    failed
}

fn swap_images(bed: &Bed, app: &str) -> Result<u64> {
    let name = bed.pod(LAB, &format!("app={app}"))?["metadata"]["name"].as_str().context("no name")?.to_owned();
    let started =
        bed.get(&["pod", &name, "-n", LAB])?["status"]["containerStatuses"][0]["state"]["running"]["startedAt"].clone();
    let url = format!("http://{app}/");
    let load = bed.load(LAB, CLIENT, &[&url, "--seconds", "14", "--rate", "100", "--concurrency", "4"])?;
    let images = |pod: &Value| -> Vec<(String, String)> {
        pod["spec"]["initContainers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|container| {
                Some((container["name"].as_str()?.to_owned(), container["image"].as_str()?.to_owned()))
            })
            .filter(|(name, _)| name.starts_with("leno-proxy"))
            .collect()
    };
    let before = images(&bed.get(&["pod", &name, "-n", LAB])?);
    for (container, image) in &before {
        let other = image.replace(&bed.release.version, &bed.release.previous_version);
        ensure(*image != other, || format!("{container} runs {image}, not of release {}", bed.release.version))?;
        let patch = json!({"spec": {"initContainers": [{"name": container, "image": other}]}}).to_string();
        bed.kubectl(&["-n", LAB, "patch", "pod", &name, "-p", &patch])?;
        bed.wait(&format!("{container} to run {other}"), Duration::from_secs(20), || {
            let pod = bed.get(&["pod", &name, "-n", LAB])?;
            let status = pod["status"]["initContainerStatuses"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|status| status["name"] == container.as_str())
                .context("no status")?
                .clone();
            let runs = status["image"].as_str().is_some_and(|image| image.ends_with(&bed.release.previous_version));
            ensure(runs && status["state"]["running"].is_object() && status["started"] == true, || status.to_string())?;
            Ok(Some(()))
        })
        .with_context(|| format!("sidecars say: {}", what_sidecars_say(bed, &format!("pod/{name}"))))?;
    }
    let counted = load.finish()?;
    let pod = bed.get(&["pod", &name, "-n", LAB])?;
    ensure(
        restarts(&pod).0 == 0 && pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] == started,
        || format!("the app restarted: {}", pod["status"]["containerStatuses"]),
    )?;
    ensure(counted.failed * 100 <= counted.requests, || {
        format!(
            "more than 1 % failed during two swaps: {} of {}: {:?}; sidecars say: {}",
            counted.failed,
            counted.requests,
            counted.errors,
            [CLIENT, &format!("pod/{name}")].map(|of| what_sidecars_say(bed, of)).join(" | "),
        )
    })?;
    // Back to what the mesh runs, by a new pod.
    bed.kubectl(&["-n", LAB, "delete", "pod", &name])?;
    bed.wait_rollout(LAB, &format!("deployment/{app}"), Duration::from_secs(60))?;
    Ok(counted.failed)
}
