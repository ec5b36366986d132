//! Deployment, Service, disruption budget and autoscaler of one revision of the control plane.

use leno_crds::meshinstall::{Autoscaling, Resources};
use serde_json::{Map, Value, json};

use super::{Inputs, Replicas, object};
use crate::names;
use crate::plan::revisions::Revision;

pub(super) fn service(inputs: &Inputs<'_>, revision: &Revision) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": inputs.in_system(&names::control_plane(&revision.name)),
        "spec": {
            "selector": names::control_plane_selector(&revision.name),
            "ports": [
                { "name": "grpc-xds", "port": 15012, "targetPort": 15012, "protocol": "TCP", "appProtocol": "grpc" },
                { "name": "https-webhook", "port": 443, "targetPort": 15017, "protocol": "TCP", "appProtocol": "https" },
                { "name": "http-metrics", "port": 15014, "targetPort": 15014, "protocol": "TCP", "appProtocol": "http" },
            ],
        },
    })
}

/// At most one replica at a time is taken away on purpose. With a single replica that would forbid draining its node.
pub(super) fn disruption_budget(inputs: &Inputs<'_>, revision: &Revision) -> Value {
    json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": inputs.in_system(&names::control_plane(&revision.name)),
        "spec": {
            "maxUnavailable": 1,
            "selector": { "matchLabels": names::control_plane_selector(&revision.name) },
        },
    })
}

pub(super) fn autoscaler(inputs: &Inputs<'_>, revision: &Revision, autoscaling: &Autoscaling) -> Value {
    json!({
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": inputs.in_system(&names::control_plane(&revision.name)),
        "spec": {
            "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": names::control_plane(&revision.name) },
            "minReplicas": autoscaling.min_replicas(),
            "maxReplicas": autoscaling.max_replicas,
            "metrics": [{
                "type": "Resource",
                "resource": {
                    "name": "cpu",
                    "target": { "type": "Utilization", "averageUtilization": autoscaling.target_cpu() },
                },
            }],
        },
    })
}

/// No replica leaves before its successor is ready: an image that does not exist changes nothing for the mesh.
pub(super) fn deployment(inputs: &Inputs<'_>, revision: &Revision) -> Value {
    let selector = names::control_plane_selector(&revision.name);
    let mut metadata = inputs.in_system(&names::control_plane(&revision.name));
    metadata["labels"][names::VERSION] = json!(revision.version);
    let decides = match inputs.replicas(revision) {
        Replicas::Operator(_) => "operator",
        Replicas::Autoscaler => "autoscaler",
    };
    metadata["annotations"] = json!({ names::REPLICAS_BY: decides });
    let mut labels = object(names::labels(&revision.name, names::CONTROL_PLANE));
    labels.insert(names::VERSION.to_owned(), json!(revision.version));
    // The control plane is no workload of the mesh, whatever its namespace says.
    labels.insert("sidecar.istio.io/inject".to_owned(), json!("false"));
    let mut deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "selector": { "matchLabels": selector.clone() },
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": 120,
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 1 } },
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {
                        "prometheus.io/scrape": "true",
                        "prometheus.io/port": "15014",
                        "prometheus.io/path": "/metrics",
                    },
                },
                "spec": {
                    "serviceAccountName": names::CONTROL_PLANE_ACCOUNT,
                    "terminationGracePeriodSeconds": 30,
                    "securityContext": {
                        "runAsNonRoot": true,
                        "runAsUser": 65532,
                        "runAsGroup": 65532,
                        "fsGroup": 65532,
                        "seccompProfile": { "type": "RuntimeDefault" },
                    },
                    "affinity": { "podAntiAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [{
                        "weight": 100,
                        "podAffinityTerm": {
                            "topologyKey": "kubernetes.io/hostname",
                            "labelSelector": { "matchLabels": selector.clone() },
                        },
                    }] } },
                    "topologySpreadConstraints": [{
                        "maxSkew": 1,
                        "topologyKey": "topology.kubernetes.io/zone",
                        "whenUnsatisfiable": "ScheduleAnyway",
                        "labelSelector": { "matchLabels": selector },
                    }],
                    "containers": [container(inputs, revision)],
                    "volumes": [{ "name": "leno-ca", "secret": { "secretName": names::CA_SECRET, "defaultMode": 288 } }],
                },
            },
        },
    });
    if let Replicas::Operator(replicas) = inputs.replicas(revision) {
        deployment["spec"]["replicas"] = json!(replicas);
    }
    deployment
}

fn container(inputs: &Inputs<'_>, revision: &Revision) -> Value {
    let spec = inputs.spec();
    let from_field =
        |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let probe = |path: &str, period: u32, failures: u32| {
        json!({ "httpGet": { "path": path, "port": 8080, "scheme": "HTTP" }, "periodSeconds": period,
            "failureThreshold": failures, "timeoutSeconds": 2 })
    };
    json!({
        "name": names::CONTROL_PLANE,
        "image": spec.image_of("control-plane", &revision.version),
        "imagePullPolicy": spec.pull_policy().as_str(),
        "args": [
            "--mesh-install", inputs.name,
            "--revision", revision.name,
            "--namespace", spec.system_namespace(),
            "--ca-dir", "/etc/leno/ca",
        ],
        "env": [
            from_field("POD_NAME", "metadata.name"),
            from_field("POD_NAMESPACE", "metadata.namespace"),
            from_field("POD_IP", "status.podIP"),
        ],
        "ports": [
            { "name": "grpc-xds", "containerPort": 15012, "protocol": "TCP" },
            { "name": "https-webhook", "containerPort": 15017, "protocol": "TCP" },
            { "name": "http-metrics", "containerPort": 15014, "protocol": "TCP" },
            { "name": "http-health", "containerPort": 8080, "protocol": "TCP" },
        ],
        "startupProbe": probe("/healthz/live", 1, 60),
        "livenessProbe": probe("/healthz/live", 10, 3),
        "readinessProbe": probe("/healthz/ready", 1, 3),
        "resources": resources(
            spec.control_plane.as_ref().and_then(|control_plane| control_plane.resources.as_ref()),
            &[("cpu", "50m"), ("memory", "64Mi")],
            &[("memory", "512Mi")],
        ),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        },
        "volumeMounts": [{ "name": "leno-ca", "mountPath": "/etc/leno/ca", "readOnly": true }],
    })
}

/// What is given, and for what is not given, defaults that a small cluster can live with.
fn resources(given: Option<&Resources>, requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Value {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    let write = |given: Option<&std::collections::BTreeMap<String, IntOrString>>, defaults: &[(&str, &str)]| {
        let mut all: Map<String, Value> =
            defaults.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        if let Some(given) = given.filter(|given| !given.is_empty()) {
            all.clear();
            for (key, value) in given {
                let text = match value {
                    IntOrString::Int(number) => number.to_string(),
                    IntOrString::String(text) => text.clone(),
                };
                all.insert(key.clone(), Value::String(text));
            }
        }
        all
    };
    json!({
        "requests": write(given.map(|given| &given.requests), requests),
        "limits": write(given.map(|given| &given.limits), limits),
    })
}
