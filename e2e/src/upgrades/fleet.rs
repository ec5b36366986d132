//! Workloads of every kind, tiny, and the loads on them from inside and outside the mesh.

use crate::{
    bed::{Bed, ensure},
    lab::{App, namespace},
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::time::Duration;

/// The namespace of the workloads, in the mesh.
pub const FLEET: &str = "fleet";
/// The namespace of the clients outside the mesh.
pub const BEYOND: &str = "beyond";
/// The pods that load, by namespace; both are Deployments of this name.
pub const LOADER: &str = "loader";
/// Where a loader tells its figures.
pub const FIGURES: &str = "http://127.0.0.1:9100/";
/// How long all of it may take to be ready.
const READY: Duration = Duration::from_secs(240);

/// How large the fleet is, and how much is asked of it.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Injected pods, ten at least.
    pub pods: u32,
    /// Requests a second of the larger lanes, from either side; the smaller ones have a fifth.
    pub rate: f64,
}

/// Pods of each kind.
#[derive(Debug, PartialEq, Eq)]
struct Shares {
    echo: u32,
    ratings: u32,
    stateful: u32,
    tcp: u32,
}

impl Size {
    /// Besides these there are one loader, one pod of a DaemonSet on the only node, of a Job, without an owner, and of a Deployment
    /// of one replica.
    fn shares(self) -> Shares {
        let rest = self.pods.max(10) - 5;
        // A StatefulSet's pod leaves before the next one comes; where all are few, load is what counts, and echo has most of it.
        let stateful = if rest < 7 { 1 } else { 2 + rest / 25 };
        let (ratings, tcp) = (1 + rest / 9, 1 + rest / 12);
        Shares { echo: rest - ratings - stateful - tcp, ratings, stateful, tcp }
    }
}

/// So little each that thirty of them fit onto a small node, and not so little that they starve when it is busy; and memory for a
/// proxy that leaks.
fn tiny(app: App) -> App {
    with_proxy(app, "10m")
}

fn with_proxy(app: App, cpu: &str) -> App {
    app.pod_annotations(json!({
        "sidecar.istio.io/proxyCPU": cpu,
        "sidecar.istio.io/proxyMemory": "8Mi",
        "sidecar.istio.io/proxyMemoryLimit": "384Mi",
    }))
}

fn container(more: Value) -> Value {
    let mut container = json!({
        "resources": {"requests": {"cpu": "5m", "memory": "4Mi"}, "limits": {"memory": "64Mi"}},
        "ports": [{"name": "http", "containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 3},
        // Clients outside the mesh go on calling a pod until every node knows that it leaves.
        "lifecycle": {"preStop": {"sleep": {"seconds": 3}}},
    });
    if let (Some(target), Some(over)) = (container.as_object_mut(), more.as_object()) {
        target.extend(over.clone());
    }
    container
}

fn without_probe() -> Value {
    container(json!({"ports": [], "readinessProbe": null}))
}

fn ports() -> Value {
    json!({"ports": [
        {"name": "http", "port": 80, "targetPort": 8080},
        {"name": "http2", "port": 82, "targetPort": 8080, "appProtocol": "http2"},
    ]})
}

/// A workload that answers over HTTP, with its Service.
pub fn echo(name: &str, replicas: u32) -> App {
    tiny(App::echo(FLEET, name)).replicas(replicas).container(container(json!({}))).service(ports())
}

/// The Deployments, but for the loaders.
fn deployments(size: Size) -> Vec<App> {
    let Shares { echo: many, ratings, stateful: _, tcp } = size.shares();
    vec![
        echo("echo", many),
        echo("single", 1),
        tiny(App::echo(FLEET, "ratings"))
            .args(&["ratings", "--listen=0.0.0.0:9090"])
            .replicas(ratings)
            .container(container(json!({"ports": [], "readinessProbe": {"grpc": {"port": 9090}, "periodSeconds": 3}})))
            .service(json!({"ports": [{"name": "grpc", "port": 9090, "targetPort": 9090}]})),
        tiny(App::echo(FLEET, "tcp"))
            .args(&["inventory", "--listen=0.0.0.0:9000"])
            .replicas(tcp)
            .container(without_probe())
            .service(json!({"ports": [{"name": "tcp", "port": 9000, "targetPort": 9000}]})),
    ]
}

/// What is no Deployment: a StatefulSet, a DaemonSet, a Job that runs long, a pod without an owner, and a Service that a bad build
/// stumbles over and nobody uses.
fn others(bed: &Bed, size: Size) -> Vec<Value> {
    let mut items = Vec::new();
    let mut add = |name: &str, app: &App, kind: &str, api: &str, spec: &dyn Fn(Value) -> Value| {
        let metadata = json!({"name": name, "namespace": FLEET});
        let mut service = ports();
        service["selector"] = json!({"app": name});
        items.push(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}));
        items.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service}));
        let template = app.template(bed);
        let mut object = json!({"apiVersion": api, "kind": kind, "metadata": metadata});
        object["spec"] = spec(template.clone());
        if kind == "Pod" {
            object["metadata"]["labels"] = template["metadata"]["labels"].clone();
            object["metadata"]["annotations"] = template["metadata"]["annotations"].clone();
        }
        items.push(object);
    };
    let selector = |name: &str| json!({"matchLabels": {"app": name}});
    let replicas = size.shares().stateful;
    add("stateful", &echo("stateful", 1), "StatefulSet", "apps/v1", &|template| {
        json!({"replicas": replicas, "serviceName": "stateful", "podManagementPolicy": "Parallel",
            "selector": selector("stateful"), "template": template})
    });
    add(
        "daemon",
        &echo("daemon", 1),
        "DaemonSet",
        "apps/v1",
        // There is one node: its pod leaves when the next one serves.
        &|template| {
            json!({"selector": selector("daemon"), "template": template,
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}})
        },
    );
    let job = tiny(App::client(FLEET, "job")).container(without_probe());
    add("job", &job, "Job", "batch/v1", &|mut template| {
        template["spec"]["restartPolicy"] = json!("Never");
        json!({"template": template, "backoffLimit": 0})
    });
    add("bare", &echo("bare", 1), "Pod", "v1", &|template| template["spec"].clone());
    items.push(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "rejected", "namespace": FLEET},
        "spec": {"selector": {"app": "nobody"}, "ports": [{"name": "http", "port": 80}]},
    }));
    items
}

/// A place that loads all of it, from the moment at which it starts.
fn loader(namespace: &str, size: Size) -> App {
    let (many, few) = (size.rate, size.rate / 5.0);
    let mut args = vec!["load".to_owned(), "--listen=127.0.0.1:9100".to_owned()];
    let mut lane = |kind: &str, rate: f64, url: &str| {
        args.extend(["--lane".to_owned(), format!("{kind}:{rate}:{url}")]);
    };
    let host = |name: &str| format!("{name}.{FLEET}");
    lane("http1", many, &format!("http://{}/", host("echo")));
    lane("http1-close", many / 2.0, &format!("http://{}/", host("echo")));
    lane("http2", many, &format!("http://{}:82/", host("echo")));
    lane("grpc", many, &format!("http://{}:9090", host("ratings")));
    lane("grpc-stream", 3.0, &format!("http://{}:9090", host("ratings")));
    lane("tcp", few, &format!("tcp://{}:9000", host("tcp")));
    lane("tcp-long", 4.0, &format!("tcp://{}:9000", host("tcp")));
    for name in ["single", "stateful", "daemon", "bare"] {
        lane("http1", few, &format!("http://{}/", host(name)));
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    // It does the work of all others together, and who measures must not be what is slow.
    with_proxy(App::client(namespace, LOADER), "50m").args(&args).container(container(json!({
        "ports": [], "readinessProbe": null,
        "resources": {"requests": {"cpu": "100m", "memory": "16Mi"}, "limits": {"memory": "128Mi"}},
    })))
}

/// Sets all of it up and waits until it is ready and loaded.
///
/// # Errors
/// When something is not ready in time.
pub fn set_up(bed: &Bed, size: Size) -> Result<()> {
    bed.apply(&namespace(FLEET, json!({"istio-injection": "enabled"})))?;
    bed.apply(&namespace(BEYOND, json!({})))?;
    let apps = deployments(size);
    apps.iter().try_for_each(|app| app.apply(bed))?;
    let mut others = others(bed, size);
    // A pod that is there already was injected, and nobody may take that back.
    if bed.get(&["pod", "bare", "-n", FLEET]).is_ok() {
        others.retain(|object| object["kind"] != "Pod");
    }
    bed.apply(&json!({"apiVersion": "v1", "kind": "List", "items": others}).to_string())?;
    bed.wait("all pods of the fleet to be ready", READY, || ready(bed, "app!=loader", size.pods.max(10) - 1))?;
    // Clients come last: what they begin with is there.
    let loaders = [loader(FLEET, size), loader(BEYOND, size)];
    loaders.iter().try_for_each(|app| app.apply(bed))?;
    loaders.iter().try_for_each(|app| app.wait(bed))?;
    bed.wait("all pods of the fleet to be ready", READY, || ready(bed, "app", size.pods.max(10)))
}

fn ready(bed: &Bed, selector: &str, wanted: u32) -> Result<Option<()>> {
    let pods = bed.get(&["pods", "-n", FLEET, "-l", selector])?["items"].as_array().cloned().unwrap_or_default();
    let waiting: Vec<_> = pods
        .iter()
        .filter(|pod| !is_ready(pod))
        .map(|pod| pod["metadata"]["name"].as_str().unwrap_or_default())
        .collect();
    ensure(pods.len() == wanted as usize && waiting.is_empty(), || {
        format!("{} of {wanted} pods, not ready: {waiting:?}", pods.len())
    })?;
    Ok(Some(()))
}

/// Whether a pod says that it is ready.
pub fn is_ready(pod: &Value) -> bool {
    pod["status"]["conditions"]
        .as_array()
        .is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

/// Removes all of it, and waits until it is gone.
///
/// # Errors
/// With the API server's reason.
pub fn tear_down(bed: &Bed) -> Result<()> {
    bed.kubectl(&["delete", "namespace", FLEET, BEYOND, "--ignore-not-found", "--timeout=180s"])
        .map(drop)
        .context("the fleet does not go")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_when_summed_up_then_are_all_pods_and_none_is_without() {
        for pods in [1, 10, 11, 30, 60] {
            let Shares { echo, ratings, stateful, tcp } = Size { pods, rate: 1.0 }.shares();
            assert_eq!(echo + ratings + stateful + tcp + 5, pods.max(10));
            assert!([echo, ratings, stateful, tcp].iter().all(|&share| share > 0), "{pods}");
        }
        let Shares { echo, ratings, stateful, tcp } = Size { pods: 30, rate: 1.0 }.shares();
        assert_eq!((echo, ratings, stateful, tcp), (16, 3, 3, 3));
    }
}
