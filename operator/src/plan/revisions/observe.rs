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
use crate::plan::injection::has_sidecar;
use crate::plan::upgrade::{is_rolled_out, owner};

/// The injected pods of one MeshInstall that are not finished.
pub fn pods(install: &str, pods: &BTreeMap<Key, Arc<Pod>>) -> Vec<PodView> {
    pods.iter().filter_map(|(key, pod)| view(install, key, pod)).collect()
}

fn view(install: &str, key: &Key, pod: &Pod) -> Option<PodView> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") || !has_sidecar(install, pod) {
        return None;
    }
    Some(PodView {
        key: key.clone(),
        workload: owner(pod),
        revision: pod.labels().get(names::REVISION)?.clone(),
        asks: pod.labels().get(names::ISTIO_REVISION).filter(|asked| names::asks_for(install, asked)).cloned(),
        leaving: pod.metadata.deletion_timestamp.is_some(),
    })
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
    Standing {
        ready: i32::try_from(number("/status/availableReplicas")).unwrap_or(0),
        replicas: i32::try_from(number("/spec/replicas")).unwrap_or(0),
        rolled_out: is_rolled_out(deployment),
    }
}
