//! The injection webhook: only pods that ask for a sidecar get as far as the control plane.
//!
//! A webhook whose failure refuses pods must not see any other pod, or its loss would lock the cluster. Selectors within
//! one entry must all hold, so each way of asking is an entry of its own; they exclude each other, so that no pod is sent
//! twice (injecting is idempotent, so twice would only be slow).
//!
//! Each revision of the control plane has entries for those who name it, or a tag that points at it. A pod that names one
//! (`istio.io/rev`) goes by that, else its namespace does, and who only asks for injection gets the stable one.

use serde_json::{Value, json};

use super::Inputs;
use crate::names;
use crate::plan::claims::KUBERNETES_NAMESPACES;
use crate::plan::revisions::Revision;

/// The labels of a namespace that names a revision.
const NAMES: [(&str, &str); 2] = [("istio-rev", names::ISTIO_REVISION), ("leno-rev", names::REVISION)];
/// The labels of a namespace that asks for injection, each with the value that does, and with `disabled` for the opposite.
const ASKS: [(&str, &str); 2] = [("istio", "istio-injection"), ("leno", "mesh.leno.dev/inject")];

pub(super) fn configuration(inputs: &Inputs<'_>) -> Value {
    let all: Vec<String> = inputs.revisions.list.iter().flat_map(|revision| answers_to(inputs, revision)).collect();
    let names_none = |keys: &[(&str, &str)]| -> Vec<Value> { keys.iter().map(|(_, key)| not_in(key, &all)).collect() };
    let not_disabled = |but: &str| -> Vec<Value> {
        ASKS.iter().filter(|(_, key)| *key != but).map(|(_, key)| not_in(key, &["disabled".to_owned()])).collect()
    };
    let mut webhooks: Vec<Value> = Vec::new();
    for revision in &inputs.revisions.list {
        let answers = answers_to(inputs, revision);
        if answers.is_empty() {
            continue;
        }
        let is_stable = revision.name == inputs.revisions.stable().name;
        let prefix = if is_stable { String::new() } else { format!("{}.", revision.name) };
        for (position, (name, key)) in NAMES.iter().enumerate() {
            let mut selector = vec![is_in(key, &answers)];
            selector.extend(names_none(&NAMES[..position]));
            selector.extend(not_disabled(""));
            let pod = vec![not_in(names::ISTIO_REVISION, &all)];
            webhooks.push(entry(inputs, revision, &format!("{prefix}{name}.namespace"), selector, pod));
        }
        let pod = vec![is_in(names::ISTIO_REVISION, &answers)];
        webhooks.push(entry(inputs, revision, &format!("{prefix}istio-rev.object"), not_disabled(""), pod));
        if !is_stable {
            continue;
        }
        let enabled = ["enabled".to_owned()];
        for (position, (name, key)) in ASKS.iter().enumerate() {
            let mut selector = vec![is_in(key, &enabled)];
            selector.extend(ASKS[..position].iter().map(|(_, earlier)| not_in(earlier, &enabled)));
            selector.extend(names_none(&NAMES));
            selector.extend(not_disabled(key));
            let pod = vec![not_in(names::ISTIO_REVISION, &all)];
            webhooks.push(entry(inputs, revision, &format!("{name}.namespace"), selector, pod));
        }
        let mut selector: Vec<Value> = ASKS.iter().map(|(_, key)| not_in(key, &enabled)).collect();
        selector.extend(names_none(&NAMES));
        selector.extend(not_disabled(""));
        let pod = vec![is_in("sidecar.istio.io/inject", &["true".to_owned()]), not_in(names::ISTIO_REVISION, &all)];
        webhooks.push(entry(inputs, revision, "object", selector, pod));
    }
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": inputs.metadata(&names::injector(inputs.name), None),
        "webhooks": webhooks,
    })
}

/// The values of a label by which a revision is asked for. The MeshInstall's name means whichever is stable.
fn answers_to(inputs: &Inputs<'_>, revision: &Revision) -> Vec<String> {
    let mut answers: Vec<String> = revision.tags.iter().map(|tag| (*tag).to_owned()).collect();
    if revision.name != inputs.name {
        answers.push(revision.name.clone());
    }
    if revision.name == inputs.revisions.stable().name {
        answers.push(inputs.name.to_owned());
    }
    answers.sort();
    answers
}

fn is_in(key: &str, values: &[String]) -> Value {
    json!({ "key": key, "operator": "In", "values": values })
}

fn not_in(key: &str, values: &[String]) -> Value {
    json!({ "key": key, "operator": "NotIn", "values": values })
}

fn entry(
    inputs: &Inputs<'_>,
    revision: &Revision,
    name: &str,
    mut namespaces: Vec<Value>,
    mut objects: Vec<Value>,
) -> Value {
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
                "name": names::control_plane(&revision.name),
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
