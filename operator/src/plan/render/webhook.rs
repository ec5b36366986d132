//! The injection webhook: only pods that ask for a sidecar get as far as the control plane.
//!
//! A webhook whose failure refuses pods must not see any other pod, or its loss would lock the cluster. Selectors within
//! one entry must all hold, so each way of asking is an entry of its own; they exclude each other, so that no pod is sent
//! twice (injecting is idempotent, so twice would only be slow).

use serde_json::{Value, json};

use super::Inputs;
use crate::names;
use crate::plan::claims::KUBERNETES_NAMESPACES;

pub(super) fn configuration(inputs: &Inputs<'_>) -> Value {
    let ways: [(&str, &str, &str); 4] = [
        ("istio", "istio-injection", "enabled"),
        ("leno", "mesh.leno.dev/inject", "enabled"),
        ("istio-rev", "istio.io/rev", inputs.name),
        ("leno-rev", names::REVISION, inputs.name),
    ];
    let mut webhooks: Vec<Value> = Vec::new();
    for (position, (name, key, value)) in ways.iter().enumerate() {
        let mut selector = vec![json!({ "key": key, "operator": "In", "values": [value] })];
        for (_, earlier, value) in &ways[..position] {
            selector.push(json!({ "key": earlier, "operator": "NotIn", "values": [value] }));
        }
        for opt_out in ["istio-injection", "mesh.leno.dev/inject"].iter().filter(|opt_out| *opt_out != key) {
            selector.push(json!({ "key": opt_out, "operator": "NotIn", "values": ["disabled"] }));
        }
        webhooks.push(entry(inputs, &format!("{name}.namespace"), selector, vec![]));
    }
    let mut selector: Vec<Value> =
        ways.iter().map(|(_, key, value)| json!({ "key": key, "operator": "NotIn", "values": [value] })).collect();
    for opt_out in ["istio-injection", "mesh.leno.dev/inject"] {
        selector.push(json!({ "key": opt_out, "operator": "NotIn", "values": ["disabled"] }));
    }
    let asks = json!({ "key": "sidecar.istio.io/inject", "operator": "In", "values": ["true"] });
    webhooks.push(entry(inputs, "object", selector, vec![asks]));
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": inputs.metadata(&names::injector(inputs.name), None),
        "webhooks": webhooks,
    })
}

fn entry(inputs: &Inputs<'_>, name: &str, mut namespaces: Vec<Value>, mut objects: Vec<Value>) -> Value {
    let mut never: Vec<String> = KUBERNETES_NAMESPACES.map(str::to_owned).into();
    never.extend(inputs.system_namespaces.iter().cloned());
    never.extend(inputs.claim.taken.keys().cloned());
    never.sort();
    never.dedup();
    namespaces.push(json!({ "key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": never }));
    let mut selector = json!({});
    if let Some(mesh) = inputs.spec().namespaces() {
        if let Some(labels) = mesh.match_labels.as_ref().filter(|labels| !labels.is_empty()) {
            selector["matchLabels"] = json!(labels);
        }
        for expression in mesh.match_expressions.iter().flatten() {
            let mut written = json!({ "key": expression.key, "operator": expression.operator });
            if let Some(values) = &expression.values {
                written["values"] = json!(values);
            }
            namespaces.push(written);
        }
    }
    selector["matchExpressions"] = Value::Array(namespaces);
    objects.push(json!({ "key": "sidecar.istio.io/inject", "operator": "NotIn", "values": ["false"] }));
    objects.push(json!({ "key": "mesh.leno.dev/inject", "operator": "NotIn", "values": ["disabled"] }));
    json!({
        "name": format!("{name}.injector.mesh.leno.dev"),
        "admissionReviewVersions": ["v1"],
        "clientConfig": {
            "service": {
                "name": names::control_plane(inputs.name),
                "namespace": inputs.spec().system_namespace(),
                "path": "/inject",
                "port": 443,
            },
            "caBundle": base64::Engine::encode(&base64::engine::general_purpose::STANDARD, inputs.roots),
        },
        "failurePolicy": "Fail",
        "reinvocationPolicy": "IfNeeded",
        "matchPolicy": "Equivalent",
        "sideEffects": "None",
        "timeoutSeconds": 5,
        "namespaceSelector": selector,
        "objectSelector": { "matchExpressions": objects },
        "matchConditions": [
            {
                "name": "not-on-the-host-network",
                "expression": "!has(object.spec.hostNetwork) || !object.spec.hostNetwork",
            },
            {
                "name": "not-opted-out-by-annotation",
                "expression": "!has(object.metadata.annotations) || \
                    (!('sidecar.istio.io/inject' in object.metadata.annotations && \
                    object.metadata.annotations['sidecar.istio.io/inject'] == 'false') && \
                    !('mesh.leno.dev/inject' in object.metadata.annotations && \
                    object.metadata.annotations['mesh.leno.dev/inject'] == 'disabled'))",
            },
        ],
        "rules": [{
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "operations": ["CREATE"],
            "resources": ["pods"],
            "scope": "Namespaced",
        }],
    })
}
