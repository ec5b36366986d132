//! What a proxy's container needs of its pod, whoever makes the pod: the webhook that injects it beside an app, and the operator that
//! tries a release in a pod of its own.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Map, Value, json};

/// The annotation of an injected pod that tells, as JSON, what resources its proxy was given.
pub const RESOURCES_ANNOTATION: &str = "mesh.leno.dev/injected-resources";
/// Annotations by which a pod says what its proxy asks for and may use: the annotation, `requests` or `limits`, and the resource.
pub const RESOURCE_OPTIONS: [(&str, &str, &str); 4] = [
    ("sidecar.istio.io/proxyCPU", "requests", "cpu"),
    ("sidecar.istio.io/proxyMemory", "requests", "memory"),
    ("sidecar.istio.io/proxyCPULimit", "limits", "cpu"),
    ("sidecar.istio.io/proxyMemoryLimit", "limits", "memory"),
];
/// What a proxy is given when nobody says anything: `requests` or `limits`, the resource, and how much.
const DEFAULT_RESOURCES: [(&str, &str, &str); 3] =
    [("requests", "cpu", "10m"), ("requests", "memory", "32Mi"), ("limits", "memory", "512Mi")];

/// The user that the proxy runs as, whose own connections are not captured.
pub const USER: u32 = 1337;
/// Lifetime of the token in the pod, in seconds; the kubelet renews it at four fifths.
const TOKEN_SECONDS: u32 = 3600;

/// The environment from which a proxy knows where it is, with the namespace of its control plane and the trust domain.
pub fn environment(control_plane_namespace: &str, trust_domain: &str) -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
    json!([
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_UID", "metadata.uid"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        field("POD_IPS", "status.podIPs"),
        field("NODE_NAME", "spec.nodeName"),
        field("HOST_IPS", "status.hostIPs"),
        {"name": "LENO_CONTROL_PLANE_NAMESPACE", "value": control_plane_namespace},
        {"name": "LENO_TRUST_DOMAIN", "value": trust_domain},
    ])
}

/// The volumes of [`mounts`]: a token for `audience` with the mesh's roots, the pod's labels and annotations, and a folder in memory.
pub fn volumes(audience: &str) -> [Value; 3] {
    [
        json!({"name": "leno-token", "projected": {"sources": [
            {"serviceAccountToken": {"audience": audience, "expirationSeconds": TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": "leno-root", "items": [{"key": "roots.pem", "path": "roots.pem"}]}},
        ]}}),
        json!({"name": "leno-podinfo", "downwardAPI": {"items": [
            {"path": "labels", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.labels"}},
            {"path": "annotations", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.annotations"}},
        ]}}),
        json!({"name": "leno-run", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}}),
    ]
}

/// Where a proxy looks for [`volumes`].
pub fn mounts() -> Value {
    json!([
        {"name": "leno-token", "mountPath": "/var/run/leno/token", "readOnly": true},
        {"name": "leno-podinfo", "mountPath": "/etc/leno/podinfo", "readOnly": true},
        {"name": "leno-run", "mountPath": "/run/leno"},
    ])
}

/// What a proxy may: nothing that Pod Security's `restricted` forbids.
pub fn security_context() -> Value {
    json!({
        "runAsUser": USER, "runAsGroup": USER, "runAsNonRoot": true, "privileged": false,
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

/// What a proxy asks for and may use: defaults, then what the mesh says, then what the pod says by its annotations.
pub fn resources<'a>(
    requests: &BTreeMap<String, IntOrString>,
    limits: &BTreeMap<String, IntOrString>,
    annotation: impl Fn(&str) -> Option<&'a str>,
) -> Value {
    let text = |quantity: &IntOrString| match quantity {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(text) => text.clone(),
    };
    let part = |part: &str, mesh: &BTreeMap<String, IntOrString>| {
        let mut merged = Map::new();
        for (_, resource, quantity) in DEFAULT_RESOURCES.iter().filter(|(of, ..)| *of == part) {
            merged.insert((*resource).to_owned(), json!(quantity));
        }
        merged.extend(mesh.iter().map(|(resource, quantity)| (resource.clone(), json!(text(quantity)))));
        for (key, _, resource) in RESOURCE_OPTIONS.iter().filter(|(_, of, _)| *of == part) {
            if let Some(quantity) = annotation(key) {
                merged.insert((*resource).to_owned(), json!(quantity.trim()));
            }
        }
        merged
    };
    json!({ "requests": part("requests", requests), "limits": part("limits", limits) })
}
