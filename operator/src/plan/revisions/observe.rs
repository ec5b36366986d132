//! From Kubernetes' objects to what the planner of revisions looks at.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::DynamicObject;
use leno_kubeutil::watch::Key;
use serde_json::Value;

use super::{PodView, Standing};
use crate::names;
use crate::plan::ObjectId;

/// The injected pods of one MeshInstall that are not finished.
pub fn pods(install: &str, pods: &BTreeMap<Key, Arc<Pod>>) -> Vec<PodView> {
    pods.iter().filter_map(|(key, pod)| view(install, key, pod)).collect()
}

fn view(install: &str, key: &Key, pod: &Pod) -> Option<PodView> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") || pod.annotations().get(names::STATUS)? != "injected" {
        return None;
    }
    let revision = pod.labels().get(names::REVISION).filter(|revision| names::is_of(install, revision))?;
    Some(PodView {
        key: key.clone(),
        workload: workload(pod),
        revision: revision.clone(),
        asks: pod.labels().get(names::ISTIO_REVISION).filter(|asked| names::asks_for(install, asked)).cloned(),
        leaving: pod.metadata.deletion_timestamp.is_some(),
    })
}

/// What made a pod: its Deployment rather than the ReplicaSet.
fn workload(pod: &Pod) -> (String, String) {
    let Some(owner) = pod.owner_references().iter().find(|owner| owner.controller == Some(true)) else {
        return ("Pod".to_owned(), pod.name_any());
    };
    let hash = pod.labels().get("pod-template-hash");
    match hash.and_then(|hash| owner.name.strip_suffix(hash)?.strip_suffix('-')) {
        Some(deployment) if owner.kind == "ReplicaSet" => ("Deployment".to_owned(), deployment.to_owned()),
        _ => (owner.kind.clone(), owner.name.clone()),
    }
}

/// The replicas of the revisions in the control plane's namespace that have a Deployment.
pub fn standings(namespace: &str, owned: &BTreeMap<ObjectId, Arc<DynamicObject>>) -> BTreeMap<String, Standing> {
    let deployments = owned.iter().filter(|(id, _)| id.kind == "Deployment" && id.key.namespace == namespace);
    deployments
        .filter_map(|(id, deployment)| {
            let revision = id.key.name.strip_prefix(&names::control_plane(""))?;
            Some((revision.to_owned(), standing(deployment)))
        })
        .collect()
}

fn standing(deployment: &DynamicObject) -> Standing {
    let number = |pointer: &str| deployment.data.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let replicas = number("/spec/replicas");
    let observed = number("/status/observedGeneration") >= deployment.metadata.generation.unwrap_or(i64::MAX);
    let all = ["/status/updatedReplicas", "/status/availableReplicas", "/status/replicas"];
    Standing {
        ready: i32::try_from(number("/status/availableReplicas")).unwrap_or(0),
        replicas: i32::try_from(replicas).unwrap_or(0),
        rolled_out: observed && replicas > 0 && all.iter().all(|pointer| number(pointer) == replicas),
    }
}
