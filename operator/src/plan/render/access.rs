//! What the control plane may do: read, and ask whether a token is genuine. Not one verb that writes.

use serde_json::{Value, json};

use super::Inputs;
use crate::names;

pub(super) fn service_account(inputs: &Inputs<'_>) -> Value {
    let secrets: Vec<Value> = pull_secrets(inputs);
    let mut account = json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": inputs.in_system(names::CONTROL_PLANE_ACCOUNT),
    });
    if !secrets.is_empty() {
        account["imagePullSecrets"] = Value::Array(secrets);
    }
    account
}

fn pull_secrets(inputs: &Inputs<'_>) -> Vec<Value> {
    let names = inputs.spec().image.iter().flat_map(|image| image.pull_secrets.iter());
    names.map(|name| json!({ "name": name })).collect()
}

/// The operator may only grant what it has itself, so its own role in the chart repeats these rules.
pub(super) fn cluster_role(inputs: &Inputs<'_>) -> Value {
    let read = ["get", "list", "watch"];
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": inputs.metadata(&names::cluster_role(inputs.name), None),
        "rules": [
            // What traffic goes to: services, their endpoints, the pods behind them and where these run.
            { "apiGroups": [""], "resources": ["services", "pods", "namespaces", "nodes"], "verbs": read },
            { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read },
            // How traffic goes there.
            { "apiGroups": ["networking.istio.io"], "resources": ["virtualservices", "destinationrules"], "verbs": read },
            // The settings of the mesh.
            { "apiGroups": ["mesh.leno.dev"], "resources": ["meshinstalls"], "verbs": read },
            // Whether a proxy that asks for its first certificate is the pod that it says it is.
            { "apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"] },
        ],
    })
}

pub(super) fn cluster_role_binding(inputs: &Inputs<'_>) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": inputs.metadata(&names::cluster_role(inputs.name), None),
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": names::cluster_role(inputs.name),
        },
        "subjects": [{
            "kind": "ServiceAccount",
            "name": names::CONTROL_PLANE_ACCOUNT,
            "namespace": inputs.spec().system_namespace(),
        }],
    })
}
