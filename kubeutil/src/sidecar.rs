//! What a proxy's container needs of its pod, whoever makes the pod: the webhook that injects it beside an app, and the operator that
//! tries a release in a pod of its own.

use serde_json::{Value, json};

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
