//! A sidecar without an app: a release's image is tried in a pod of its own before it gets into others'.
//!
//! It is started, gets a certificate and its whole configuration as in an injected pod, and is ready when that is in force; but it
//! captures nothing, and no Service leads to it.

use std::collections::BTreeMap;

use leno_kubeutil::sidecar;
use serde_json::{Value, json};

use super::{Inputs, object};
use crate::names;

/// Seconds that it must be ready for: what ends soon after its start is found out.
const MIN_READY: u32 = 3;

pub(super) fn deployment(inputs: &Inputs<'_>, component: &str, image: &str) -> Value {
    let release = image.rsplit_once(':').map_or("", |(_, release)| release);
    let selector = names::preflight_selector(inputs.name, component);
    let mut metadata = inputs.in_system(&names::preflight(inputs.name, component));
    let mut labels = object(names::labels(inputs.name, "preflight"));
    labels.extend(object(selector.clone()));
    labels.insert(names::VERSION.to_owned(), json!(release));
    metadata["labels"] = json!(labels);
    labels.insert(names::REVISION.to_owned(), json!(inputs.revisions.stable().name));
    labels.insert("sidecar.istio.io/inject".to_owned(), json!("false"));
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": 1,
            "minReadySeconds": MIN_READY,
            "revisionHistoryLimit": 0,
            "selector": { "matchLabels": selector },
            "strategy": { "type": "Recreate" },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "containers": [container(inputs, image)],
                    "terminationGracePeriodSeconds": 5,
                    "volumes": sidecar::volumes(leno_api::AUDIENCE),
                },
            },
        },
    })
}

fn container(inputs: &Inputs<'_>, image: &str) -> Value {
    let spec = inputs.spec();
    json!({
        "name": "proxy",
        "image": image,
        "imagePullPolicy": spec.pull_policy().as_str(),
        "args": ["run", "--slot", "0"],
        "env": sidecar::environment(spec.system_namespace(), spec.trust_domain()),
        "readinessProbe": {
            "httpGet": { "path": "/healthz/ready", "port": 15021, "scheme": "HTTP" }, "periodSeconds": 1, "timeoutSeconds": 2,
        },
        "resources": sidecar::resources(&BTreeMap::new(), &BTreeMap::new(), |_| None),
        "securityContext": sidecar::security_context(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": sidecar::mounts(),
    })
}
