//! From a pod to the pod with its sidecar: the shape of the injected pod, number 1.
//!
//! What is made here cannot be changed in a running pod (but for images, labels and annotations), so nothing in it depends on
//! the release; `docs/adr/0003-injected-pod-shape.md` says why it is as it is. The function works on JSON, not on types, so that
//! fields which this release has never heard of stay. It may run again on its own result (another webhook may have added a
//! container meanwhile), and then changes only what is new.

use std::collections::BTreeMap;

use leno_core::service::{Engine, INJECTED_ENGINE_ANNOTATION};
use leno_crds::meshinstall::Resources;
use leno_kubeutil::sidecar;
use serde_json::{Map, Value, json};

use super::options::{No, Options};
use super::probes::ProbePorts;

/// The number of the shape.
pub const SHAPE: &str = "1";
const CAPTURE: &str = "leno-capture";
const SLOTS: [&str; 2] = ["leno-proxy-0", "leno-proxy-1"];

/// The settings of the mesh that pods are injected with.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    /// Image of the proxy.
    pub image: String,
    /// Image of the agent with Envoy.
    pub envoy_image: String,
    /// What sidecars run where a pod says nothing.
    pub engine: Engine,
    /// When it is pulled.
    pub pull_policy: String,
    /// Revision of the control plane that injects.
    pub revision: String,
    /// Namespace of the control plane.
    pub namespace: String,
    /// The trust domain.
    pub trust_domain: String,
    /// Resources of a proxy, over the defaults; a pod's annotations win.
    pub resources: Resources,
}

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// It is changed by this JSON patch.
    Patch(Vec<Value>),
    /// It stays as it is, for this reason.
    Skip(&'static str),
    /// It must not be created, since what it says about its sidecar makes no sense.
    Refuse(String),
}

/// Decides about a pod that is being created.
pub fn inject(pod: &Value, mesh: &Mesh) -> Decision {
    let options = match Options::of(pod) {
        Ok(options) => options,
        Err(No::Skip(reason)) => return Decision::Skip(reason),
        Err(No::Refuse(message)) => return Decision::Refuse(message),
    };
    let mut after = pod.clone();
    let engine = options.engine.unwrap_or(mesh.engine);
    let said = |key: &str| pod.pointer("/metadata/annotations")?.get(key)?.as_str();
    let resources = sidecar::resources(&mesh.resources.requests, &mesh.resources.limits, said);
    mark(&mut after, mesh, engine, &resources);
    let probes = if options.rewrite_probes { rewrite_probes(&mut after) } else { ProbePorts::default() };
    add_volumes(&mut after, &options.volumes);
    add_containers(&mut after, mesh, &options, &resources, &probes);
    let patch = difference(pod, &after);
    if patch.is_empty() { Decision::Skip("the pod is injected already") } else { Decision::Patch(patch) }
}

fn mark(pod: &mut Value, mesh: &Mesh, engine: Engine, resources: &Value) {
    let metadata = object(object_of(pod).entry("metadata"));
    let labels = object(metadata.entry("labels"));
    labels.insert("mesh.leno.dev/rev".to_owned(), json!(mesh.revision));
    let annotations = object(metadata.entry("annotations"));
    annotations.insert("mesh.leno.dev/shape".to_owned(), json!(SHAPE));
    annotations.insert("mesh.leno.dev/status".to_owned(), json!("injected"));
    annotations.insert(sidecar::RESOURCES_ANNOTATION.to_owned(), json!(resources.to_string()));
    match engine {
        Engine::Leno => annotations.remove(INJECTED_ENGINE_ANNOTATION),
        Engine::Envoy => annotations.insert(INJECTED_ENGINE_ANNOTATION.to_owned(), json!(engine.as_str())),
    };
}

/// Rewrites the probes of the app's containers and native sidecars.
fn rewrite_probes(pod: &mut Value) -> ProbePorts {
    let spec = object(object_of(pod).entry("spec"));
    let before = array(spec.entry("initContainers"))
        .iter()
        .find(|container| container["name"] == CAPTURE)
        .and_then(|capture| capture["args"].as_array().cloned())
        .unwrap_or_default();
    let mut ports = ProbePorts::from_arguments(&before);
    for list in ["containers", "initContainers"] {
        for container in array(spec.entry(list)).iter_mut().filter(|container| !is_ours(container)) {
            ports.rewrite(container);
        }
    }
    ports
}

fn is_ours(container: &Value) -> bool {
    container["name"].as_str().is_some_and(|name| name == CAPTURE || SLOTS.contains(&name))
}

fn add_volumes(pod: &mut Value, more: &[Value]) {
    let spec = object(object_of(pod).entry("spec"));
    let volumes = array(spec.entry("volumes"));
    let ours = sidecar::volumes(leno_api::AUDIENCE);
    volumes.retain(|volume| ours.iter().all(|own| own["name"] != volume["name"]));
    let new: Vec<Value> =
        more.iter().filter(|wanted| volumes.iter().all(|volume| volume["name"] != wanted["name"])).cloned().collect();
    volumes.extend(new);
    volumes.extend(ours);
}

fn add_containers(pod: &mut Value, mesh: &Mesh, options: &Options, resources: &Value, probes: &ProbePorts) {
    let spec = object(object_of(pod).entry("spec"));
    let containers = array(spec.entry("initContainers"));
    let others: Vec<Value> = containers.iter().filter(|container| !is_ours(container)).cloned().collect();
    let images: BTreeMap<String, Value> = containers
        .iter()
        .filter(|container| is_ours(container))
        .filter_map(|container| Some((container["name"].as_str()?.to_owned(), container.get("image")?.clone())))
        .collect();
    let mut ours = vec![capture(mesh, options, probes)];
    ours.extend((0..SLOTS.len()).map(|slot| proxy(mesh, options, resources, slot)));
    for container in &mut ours {
        // Whoever replaced an image since the first run meant it.
        if let Some(image) = container["name"].as_str().and_then(|name| images.get(name)).cloned() {
            container["image"] = image;
        }
    }
    ours.extend(others);
    *containers = ours;
}

fn capture(mesh: &Mesh, options: &Options, probes: &ProbePorts) -> Value {
    let mut arguments = vec!["capture".to_owned()];
    arguments.extend(probes.arguments());
    arguments.extend(options.capture.iter().cloned());
    json!({
        "name": CAPTURE,
        "image": mesh.image,
        "imagePullPolicy": mesh.pull_policy,
        "args": arguments,
        "env": sidecar::environment(&mesh.namespace, &mesh.trust_domain),
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
        "securityContext": {
            "runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": false, "privileged": false,
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    })
}

fn proxy(mesh: &Mesh, options: &Options, resources: &Value, slot: usize) -> Value {
    let slot_number = slot.to_string();
    let mut mounts = sidecar::mounts();
    if let Some(mounts) = mounts.as_array_mut() {
        mounts.extend(options.mounts.iter().cloned());
    }
    json!({
        "name": SLOTS[slot],
        "image": match options.engine.unwrap_or(mesh.engine) {
            Engine::Leno => &mesh.image,
            Engine::Envoy => &mesh.envoy_image,
        },
        "imagePullPolicy": mesh.pull_policy,
        "restartPolicy": "Always",
        "args": ["run", "--slot", slot_number],
        "env": sidecar::environment(&mesh.namespace, &mesh.trust_domain),
        "resources": resources,
        // Not probes: they would make the pod unready for a moment at each swap of an image. A native sidecar's postStart
        // holds back what comes after it just as well.
        "lifecycle": {
            "postStart": {"exec": {"command": ["/leno-proxy", "wait", "--slot", slot_number]}},
            "preStop": {"exec": {"command": ["/leno-proxy", "drain", "--slot", slot_number]}},
        },
        "securityContext": sidecar::security_context(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    })
}

/// A JSON patch from one pod to another: whole members of `metadata` and `spec`, since adding to a list by position would
/// depend on what other webhooks do.
fn difference(before: &Value, after: &Value) -> Vec<Value> {
    let mut patch = Vec::new();
    for (parent, members) in
        [("metadata", ["labels", "annotations", ""]), ("spec", ["containers", "initContainers", "volumes"])]
    {
        if before.get(parent).is_none() {
            patch.push(json!({"op": "add", "path": format!("/{parent}"), "value": after[parent]}));
            continue;
        }
        for member in members.into_iter().filter(|member| !member.is_empty()) {
            let value = &after[parent][member];
            let was = &before[parent][member];
            // A member that was made only to be looked into is no change.
            let nothing = was.is_null() && value.as_array().is_some_and(Vec::is_empty);
            if value != was && !nothing {
                patch.push(json!({"op": "add", "path": format!("/{parent}/{member}"), "value": value}));
            }
        }
    }
    patch
}

/// The map behind an entry that may be missing or `null`.
fn object(entry: serde_json::map::Entry<'_>) -> &mut Map<String, Value> {
    object_of(entry.or_insert_with(|| Value::Object(Map::new())))
}

fn object_of(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("it was just made an object"),
    }
}

/// The list behind an entry that may be missing or `null`.
fn array(entry: serde_json::map::Entry<'_>) -> &mut Vec<Value> {
    let value = entry.or_insert_with(|| Value::Array(Vec::new()));
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    match value {
        Value::Array(list) => list,
        _ => unreachable!("it was just made a list"),
    }
}

#[cfg(test)]
mod tests;
