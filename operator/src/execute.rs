//! Carries out the steps of a plan.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy,
};
use kube::{Client, ResourceExt};
use leno_crds::meshinstall::{IssuerType, MeshInstall};
use leno_kubeutil::apply::{Applier, ApplyError, Desired, Outcome};
use leno_kubeutil::watch::Key;
use leno_runtime::certs::{Authority, CertError};
use serde_json::json;

use crate::names;
use crate::observe::resource;
use crate::plan::authority::{Change, Pair, held, user};
use crate::plan::injection::SLOTS;
use crate::plan::upgrade::{
    self,
    pods::{Owner, PodStep},
};
use crate::plan::{ObjectId, Observed, Step};

/// Workloads of which it is remembered that they were asked to restart; when there are more, all are forgotten and asked once more,
/// which changes nothing.
const REMEMBERED: usize = 4096;

/// A step could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// An object could not be applied.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// No authority could be made.
    #[error("no authority can be made: {0}")]
    Authority(#[from] CertError),
    /// What the user provides as authority, or what is held, cannot be used any more.
    #[error("{0}")]
    AuthorityUnusable(String),
    /// The API server refused something else.
    #[error("cannot {verb} {object}: {source}")]
    Refused {
        /// What was to be done.
        verb: &'static str,
        /// To what.
        object: String,
        /// What the API server said.
        #[source]
        source: Box<kube::Error>,
    },
}

impl StepError {
    /// A bounded word for metrics.
    pub fn category(&self) -> &'static str {
        match self {
            StepError::Apply(error) => error.category(),
            StepError::Authority(_) | StepError::AuthorityUnusable(_) => "Authority",
            StepError::Refused { source, .. } => match source.as_ref() {
                kube::Error::Api(status) if status.code == 403 => "Forbidden",
                kube::Error::Api(_) => "Refused",
                _ => "Unreachable",
            },
        }
    }
}

/// What carrying out a plan did.
#[derive(Debug, Default)]
pub struct Done {
    /// Writes that changed something.
    pub writes: u64,
    /// Applies that were due, whether they changed something or not.
    pub attempts: u64,
    /// What went wrong first.
    pub error: Option<StepError>,
}

/// Carries out steps with one client.
pub struct Executor {
    applier: Applier,
    client: Client,
    /// Workloads that were asked to restart, and for what: once is enough.
    restarted: BTreeMap<String, String>,
}

impl Executor {
    /// With the operator's field manager.
    pub fn new(client: Client) -> Self {
        Executor { applier: Applier::new(client.clone(), names::FIELD_MANAGER), client, restarted: BTreeMap::new() }
    }

    /// Whether `desired` has to be written.
    pub fn is_due(&self, desired: &Desired, observed: &Observed) -> bool {
        self.applier.is_due(desired, find(desired, observed))
    }

    /// Carries out steps in order. A failed apply does not keep the other applies from being tried: one namespace that
    /// refuses a ConfigMap must not cost the others theirs.
    pub async fn run(&mut self, name: &str, install: &MeshInstall, steps: &[Step], observed: &Observed) -> Done {
        let mut done = Done::default();
        for step in steps {
            let is_apply = matches!(step, Step::Apply(_) | Step::Pod(_) | Step::Revision(_));
            if done.error.is_some() && !is_apply {
                break;
            }
            match self.step(name, install, step, observed).await {
                Ok(Outcome::Unchanged) => {}
                Ok(outcome) => {
                    tracing::info!(install = name, step = describe(step), ?outcome, "done");
                    done.writes += 1;
                }
                Err(error) => {
                    tracing::warn!(install = name, step = describe(step), %error, "a step failed");
                    done.error.get_or_insert(error);
                    if !is_apply {
                        break;
                    }
                }
            }
            done.attempts += 1;
        }
        done
    }

    async fn step(
        &mut self,
        name: &str,
        install: &MeshInstall,
        step: &Step,
        observed: &Observed,
    ) -> Result<Outcome, StepError> {
        match step {
            Step::Apply(desired) => Ok(self.applier.apply(desired, find(desired, observed)).await?),
            Step::Delete(id) => self.delete(id, observed).await,
            Step::CreateNamespace(desired) => self.create(desired).await,
            Step::CreateAuthority { also_trust, issuer } => {
                let pair = pair(*issuer, install, observed)?;
                self.create(&held::create(install, name, *issuer, &pair, also_trust, observed.now)?).await
            }
            Step::ChangeAuthority(change) => self.change_authority(install, change, observed).await,
            Step::HandOverReplicas { revision, replicas } => self.hand_over(revision, install, *replicas).await,
            Step::Finalizer { present } => self.finalizer(name, install, *present).await,
            Step::Pod(PodStep::Restart { namespace, owner, stamp }) => self.restart(namespace, owner, stamp).await,
            Step::Pod(PodStep::SetImage { pod, slot, image }) => {
                let container = json!({ "name": SLOTS.get(usize::from(*slot)), "image": image });
                let patch = json!({ "spec": { "initContainers": [container] } });
                self.patch_pod(pod, &Patch::Strategic(patch)).await
            }
            Step::Pod(PodStep::Serve { pod, slot }) => {
                let annotations = json!({ upgrade::SERVE_SLOT: slot.to_string() });
                self.patch_pod(pod, &Patch::Merge(json!({ "metadata": { "annotations": annotations } }))).await
            }
            Step::Revision(step) => {
                let labels = json!({ names::REVISION: step.to });
                self.patch_pod(&step.pod, &Patch::Merge(json!({ "metadata": { "labels": labels } }))).await
            }
        }
    }

    /// Creates what must not be there yet; somebody else being faster is fine, the next plan sees theirs.
    async fn create(&self, desired: &Desired) -> Result<Outcome, StepError> {
        let object = serde_json::from_value(desired.body.clone())
            .map_err(|error| ApplyError::Malformed { object: desired.describe(), reason: error.to_string() })?;
        let params = PostParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match desired.api(&self.client).create(&params, &object).await {
            Ok(_) => Ok(Outcome::Created),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Outcome::Unchanged),
            Err(source) => {
                Err(StepError::Refused { verb: "create", object: desired.describe(), source: Box::new(source) })
            }
        }
    }

    /// Only the Secret that was planned with is changed; when it is another by now, the next plan sees that.
    async fn change_authority(
        &self,
        install: &MeshInstall,
        change: &Change,
        observed: &Observed,
    ) -> Result<Outcome, StepError> {
        let namespace = install.spec.system_namespace();
        let key = leno_kubeutil::watch::Key::new(namespace, names::CA_SECRET);
        let Some(secret) = observed.authorities.get(&key) else { return Ok(Outcome::Unchanged) };
        let pair = match change {
            Change::Prepare { issuer, .. } => Some(pair(*issuer, install, observed)?),
            _ => None,
        };
        let unusable = |problem| StepError::AuthorityUnusable(format!("Secret {key}: {problem}"));
        let patch = held::patch(secret, install, change, pair.as_ref(), observed.now).map_err(unusable)?;
        let params = PatchParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        match api.patch(names::CA_SECRET, &params, &Patch::Merge(&patch)).await {
            Ok(_) => Ok(Outcome::Changed),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(Outcome::Unchanged),
            Err(source) => {
                Err(StepError::Refused { verb: "patch", object: format!("Secret {key}"), source: Box::new(source) })
            }
        }
    }

    async fn delete(&self, id: &ObjectId, observed: &Observed) -> Result<Outcome, StepError> {
        let object = format!("{} {}", id.kind, id.key);
        let Some(resource) = resource(id.kind) else { return Ok(Outcome::Unchanged) };
        let api: Api<DynamicObject> = if id.key.namespace.is_empty() {
            Api::all_with(self.client.clone(), &resource)
        } else {
            Api::namespaced_with(self.client.clone(), &id.key.namespace, &resource)
        };
        let (uid, going) = match observed.owned.get(id) {
            Some(object) => (object.uid(), object.metadata.deletion_timestamp.is_some()),
            None => (observed.authorities.get(&id.key).and_then(|secret| secret.uid()), false),
        };
        if going {
            return Ok(Outcome::Unchanged);
        }
        let mut params =
            DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
        if uid.is_some() {
            params.preconditions = Some(Preconditions { uid, resource_version: None });
        }
        match api.delete(&id.key.name, &params).await {
            Ok(_) => Ok(Outcome::Changed),
            // Gone, or another object of that name by now, which is not ours to delete.
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(Outcome::Unchanged),
            Err(source) => Err(StepError::Refused { verb: "delete", object, source: Box::new(source) }),
        }
    }

    async fn hand_over(&self, revision: &str, install: &MeshInstall, replicas: i32) -> Result<Outcome, StepError> {
        let (namespace, deployment) = (install.spec.system_namespace(), names::control_plane(revision));
        let body = json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": deployment, "namespace": namespace },
            "spec": { "replicas": replicas },
        });
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), namespace);
        let params = PatchParams::apply(names::HANDOVER_MANAGER).force();
        match api.patch(&deployment, &params, &Patch::Apply(&body)).await {
            Ok(_) => Ok(Outcome::Changed),
            Err(source) => Err(StepError::Refused {
                verb: "hand the replicas over of",
                object: format!("Deployment {namespace}/{deployment}"),
                source: Box::new(source),
            }),
        }
    }

    /// Pods are patched, not applied: nothing but the one field is ours, and the pod's maker stays its owner.
    async fn patch_pod(&self, pod: &Key, patch: &Patch<serde_json::Value>) -> Result<Outcome, StepError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        patch_others(&api, &pod.name, patch, "patch", format!("Pod {pod}")).await
    }

    /// As `kubectl rollout restart` does, with an annotation of our own, so that the same restart is asked for once.
    async fn restart(&mut self, namespace: &str, owner: &Owner, stamp: &str) -> Result<Outcome, StepError> {
        let object = format!("{} {namespace}/{}", owner.kind, owner.name);
        if self.restarted.get(&object).is_some_and(|last| last == stamp) {
            return Ok(Outcome::Unchanged);
        }
        let resource = match owner.kind.as_str() {
            "Deployment" => ApiResource::erase::<Deployment>(&()),
            "StatefulSet" => ApiResource::erase::<StatefulSet>(&()),
            "DaemonSet" => ApiResource::erase::<DaemonSet>(&()),
            // Nobody replaces its pods while they run; the plan says so in status.
            _ => return Ok(Outcome::Unchanged),
        };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        let annotations = json!({ upgrade::RESTARTED_FOR: stamp });
        let patch = Patch::Merge(json!({ "spec": { "template": { "metadata": { "annotations": annotations } } } }));
        let outcome = patch_others(&api, &owner.name, &patch, "restart", object.clone()).await?;
        if self.restarted.len() >= REMEMBERED {
            self.restarted.clear();
        }
        self.restarted.insert(object, stamp.to_owned());
        Ok(outcome)
    }

    async fn finalizer(&self, name: &str, install: &MeshInstall, present: bool) -> Result<Outcome, StepError> {
        let api: Api<MeshInstall> = Api::all(self.client.clone());
        let finalizers: &[&str] = if present { &[names::FINALIZER] } else { &[] };
        // The uid keeps the patch from touching an object of the same name that came later.
        let body = json!({
            "apiVersion": "mesh.leno.dev/v1alpha1",
            "kind": "MeshInstall",
            "metadata": { "name": name, "uid": install.uid(), "finalizers": finalizers },
        });
        let params = PatchParams::apply(names::FIELD_MANAGER).force();
        match api.patch(name, &params, &Patch::Apply(&body)).await {
            Ok(_) => Ok(Outcome::Changed),
            Err(kube::Error::Api(status)) if status.code == 404 && !present => Ok(Outcome::Unchanged),
            Err(source) => Err(StepError::Refused {
                verb: "change the finalizer of",
                object: format!("MeshInstall {name}"),
                source: Box::new(source),
            }),
        }
    }
}

/// What is to sign: made here, or taken from what the user provides.
fn pair(issuer: IssuerType, install: &MeshInstall, observed: &Observed) -> Result<Pair, StepError> {
    match issuer {
        IssuerType::Secret => user::provided(observed, install).map_err(StepError::AuthorityUnusable),
        IssuerType::SelfSigned => {
            let seconds = install.spec.certificates().root_lifetime_seconds();
            let lifetime = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
            let (certificate, key) = Authority::create(install.spec.trust_domain(), lifetime, SystemTime::now())?;
            Ok(Pair { ca: certificate.clone(), certificate, key })
        }
    }
}

/// Patches an object that others made.
async fn patch_others<K: Clone + std::fmt::Debug + serde::de::DeserializeOwned>(
    api: &Api<K>,
    name: &str,
    patch: &Patch<serde_json::Value>,
    verb: &'static str,
    object: String,
) -> Result<Outcome, StepError> {
    let params = PatchParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match api.patch(name, &params, patch).await {
        Ok(_) => Ok(Outcome::Changed),
        // Gone meanwhile: the next plan does without it.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Outcome::Unchanged),
        Err(source) => Err(StepError::Refused { verb, object, source: Box::new(source) }),
    }
}

/// What is observed of an object that should be applied.
fn find<'a>(desired: &Desired, observed: &'a Observed) -> Option<&'a DynamicObject> {
    let kind = crate::observe::OWNED.iter().map(|(_, _, kind, _)| *kind).find(|kind| *kind == desired.resource.kind)?;
    let key = leno_kubeutil::watch::Key::new(desired.namespace.clone().unwrap_or_default(), desired.name.clone());
    observed.owned.get(&ObjectId { kind, key }).map(|object| object.as_ref())
}

/// A step in words, for the log.
fn describe(step: &Step) -> String {
    match step {
        Step::Finalizer { present: true } => "put the finalizer on".to_owned(),
        Step::Finalizer { present: false } => "take the finalizer off".to_owned(),
        Step::CreateNamespace(desired) => format!("create {}", desired.describe()),
        Step::CreateAuthority { .. } => "create the authority".to_owned(),
        Step::ChangeAuthority(change) => format!("change the authority: {change:?}"),
        Step::HandOverReplicas { revision, replicas } => {
            format!("hand {replicas} replicas of {revision} over to the autoscaler")
        }
        Step::Revision(step) => format!("move Pod {} to revision {}", step.pod, step.to),
        Step::Apply(desired) => format!("apply {}", desired.describe()),
        Step::Delete(id) => format!("delete {} {}", id.kind, id.key),
        Step::Pod(PodStep::SetImage { pod, slot, image }) => format!("give slot {slot} of Pod {pod} image {image}"),
        Step::Pod(PodStep::Serve { pod, slot }) => format!("ask slot {slot} of Pod {pod} to serve"),
        Step::Pod(PodStep::Restart { namespace, owner, stamp }) => {
            format!("restart {} {namespace}/{} for {stamp}", owner.kind, owner.name)
        }
    }
}
