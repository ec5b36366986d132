//! Who has acknowledged what: pods by what their proxies report, replicas of the control plane by what they say themselves.
//!
//! Nothing is taken for granted. A pod whose proxy runs and says nothing has not acknowledged; one that has not begun to run,
//! has finished, or is past its time to end cannot use anything old.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use leno_crds::meshinstall::MeshInstall;
use leno_kubeutil::watch::Key;
use leno_runtime::trust::Fingerprint;

use crate::names;
use crate::plan::Observed;
use crate::plan::injection::has_sidecar;
use crate::plan::upgrade;

/// What a replica of the control plane says of itself. Empty where its release does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaTrust {
    /// The fingerprint of the roots that it trusts.
    pub roots: Vec<u8>,
    /// The fingerprint of what it signs with, and has its own certificate from.
    pub signer: Vec<u8>,
}

/// What every replica says of itself, by the uid of its pod; one that is not heard is not there.
pub type Replicas = Arc<BTreeMap<String, ReplicaTrust>>;

/// Pods and replicas that a message names.
const NAMED: usize = 5;

/// Who must acknowledge, and who has not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Injected pods that must.
    pub pods: usize,
    /// Those that have not, with the reason.
    pub lacking: Vec<(Key, &'static str)>,
    /// Replicas of the control plane that have not, with the reason.
    pub replicas: Vec<(Key, &'static str)>,
}

impl Census {
    /// Whether all have.
    pub fn is_complete(&self) -> bool {
        self.lacking.is_empty() && self.replicas.is_empty()
    }

    /// Who has not, for people; empty when all have.
    pub fn words(&self, what: &str) -> String {
        let named = |list: &[(Key, &str)]| {
            let names: Vec<String> = list.iter().take(NAMED).map(|(key, why)| format!("{key} ({why})")).collect();
            format!("{}{}", names.join(", "), if list.len() > NAMED { " and others" } else { "" })
        };
        let mut parts = Vec::new();
        if !self.replicas.is_empty() {
            parts.push(format!("{} control plane replicas to {what}: {}", self.replicas.len(), named(&self.replicas)));
        }
        if !self.lacking.is_empty() {
            parts.push(format!(
                "{} of {} injected pods to {what}: {}",
                self.lacking.len(),
                self.pods,
                named(&self.lacking)
            ));
        }
        parts.join("; ")
    }
}

/// Who trusts exactly the roots of this fingerprint.
pub fn trusting(observed: &Observed, name: &str, install: &MeshInstall, roots: &Fingerprint) -> Census {
    census(observed, name, install, |report| report.roots_sha256 == roots, |replica| replica.roots == roots)
}

/// Who shows certificates of the signer of this fingerprint, and signs with it.
pub fn showing(observed: &Observed, name: &str, install: &MeshInstall, signer: &Fingerprint) -> Census {
    census(
        observed,
        name,
        install,
        |report| report.certificate_issuer_sha256 == signer,
        |replica| replica.signer == signer,
    )
}

fn census(
    observed: &Observed,
    name: &str,
    install: &MeshInstall,
    pod_has: impl Fn(&leno_api::proxies::v1::ProxyReport) -> bool,
    replica_has: impl Fn(&ReplicaTrust) -> bool,
) -> Census {
    let mut census = Census::default();
    for (key, pod) in observed.pods.iter().filter(|(_, pod)| runs(pod, observed)) {
        if has_sidecar(name, pod) {
            census.pods += 1;
            let mut reports = upgrade::own(pod, observed.reports.get(key)).peekable();
            if reports.peek().is_none() {
                census.lacking.push((key.clone(), "its proxy reports nothing"));
            } else if !reports.all(&pod_has) {
                census.lacking.push((key.clone(), "not yet"));
            }
        } else if key.namespace == install.spec.system_namespace() && names::is_control_plane(name, pod.labels()) {
            match observed.replicas.get(&pod.uid().unwrap_or_default()) {
                None => census.replicas.push((key.clone(), "it is not heard")),
                Some(replica) if replica.signer.is_empty() => {
                    census.replicas.push((key.clone(), "its release does not say"));
                }
                Some(replica) if !replica_has(replica) => census.replicas.push((key.clone(), "not yet")),
                Some(_) => {}
            }
        }
    }
    census
}

/// Whether containers of a pod may be running.
fn runs(pod: &Pod, observed: &Observed) -> bool {
    // The time of deletion is when the kubelet will have killed it; on a node that is lost it may stay listed for long.
    let past = pod.metadata.deletion_timestamp.as_ref().is_some_and(|time| time.0 < observed.now);
    let Some(status) = pod.status.as_ref().filter(|_| !past) else { return false };
    match status.phase.as_deref() {
        Some("Succeeded" | "Failed") | None => false,
        Some("Pending") => status
            .init_container_statuses
            .iter()
            .flatten()
            .any(|container| container.state.as_ref().is_some_and(|state| state.running.is_some())),
        Some(_) => true,
    }
}
