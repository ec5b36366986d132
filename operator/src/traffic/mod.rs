//! The status of traffic resources: listens to every control plane replica, sums, and writes conditions.
//!
//! Bounds: one stream a replica; 256 reports queued (a replica that says more waits); at most [`WRITES_A_ROUND`] writes in
//! [`ROUND`]; each object at most once a second ([`pace`]). Only the current generation is written about. An object that the
//! API server takes no status for, since it was written past its schema, gets events instead, as long as it is like that.

pub mod dial;
pub mod pace;
pub mod sum;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::runtime::watcher::Config;
use kube::{Client, Resource, ResourceExt};
use leno_crds::meshinstall::MeshInstall;
use leno_kubeutil::conditions::{self, Change, Status, Wanted};
use leno_kubeutil::events::{News, Recorder};
use leno_kubeutil::watch::{Key, Store, TolerantApi, spawn_api};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::dial::{Incoming, Pair, Replica, listen};
use self::pace::{Due, Pace};
use self::sum::{PROGRAMMED, Sums, Target, Verdict};
use crate::metrics::{Category, Metrics, What};
use crate::names;
use crate::observe::Watches;
use crate::plan::authority::{ReplicaTrust, Replicas};
use crate::plan::signing_pair;

/// The field manager of traffic resources' status.
pub const FIELD_MANAGER: &str = "leno-operator-status";
/// How often statuses that are due are looked at.
pub const ROUND: Duration = Duration::from_millis(100);
/// Writes in one round; more wait for the next.
pub const WRITES_A_ROUND: usize = 5;
/// Replicas that are there but do not speak hold verdicts back for so long.
const SILENCE: Duration = Duration::from_secs(10);
const QUEUE: usize = 256;

/// Runs until `shutdown`.
pub async fn run(client: Client, watches: &Watches, recorder: Recorder, metrics: Metrics, shutdown: CancellationToken) {
    let (sender, mut incoming) = mpsc::channel(QUEUE);
    let watch = |kind: &str| {
        let api: TolerantApi<DynamicObject> = Api::all_with(client.clone(), &resource(kind));
        spawn_api(kind, api, Config::default(), trim, shutdown.clone())
    };
    let mut traffic = Traffic {
        virtual_services: watch("VirtualService"),
        destination_rules: watch("DestinationRule"),
        client: client.clone(),
        recorder,
        metrics,
        sums: Sums::default(),
        due: BTreeSet::new(),
        later: BTreeMap::new(),
        paces: BTreeMap::new(),
        streams: BTreeMap::new(),
        incomplete_since: None,
        shutdown: shutdown.clone(),
    };
    let (mut virtual_services, mut destination_rules) =
        (traffic.virtual_services.subscribe(), traffic.destination_rules.subscribe());
    let (mut pods, mut installs) = (watches.pods().subscribe(), watches.installs().subscribe());
    let mut round = tokio::time::interval(ROUND);
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    traffic.follow(watches, &sender);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            Ok(()) = pods.changed() => traffic.follow(watches, &sender),
            Ok(()) = installs.changed() => traffic.follow(watches, &sender),
            Ok(()) = virtual_services.changed() => traffic.touch_all("VirtualService"),
            Ok(()) = destination_rules.changed() => traffic.touch_all("DestinationRule"),
            Some(message) = incoming.recv() => traffic.hear(message, watches.replicas()),
            _ = round.tick() => traffic.round().await,
        }
    }
}

struct Traffic {
    client: Client,
    recorder: Recorder,
    metrics: Metrics,
    virtual_services: Store<DynamicObject>,
    destination_rules: Store<DynamicObject>,
    sums: Sums,
    due: BTreeSet<Target>,
    later: BTreeMap<Target, Instant>,
    paces: BTreeMap<Target, Pace>,
    streams: BTreeMap<String, (Replica, CancellationToken)>,
    incomplete_since: Option<Instant>,
    shutdown: CancellationToken,
}

/// What is known of an object in the API server.
struct Present {
    uid: Option<String>,
    generation: i64,
    conditions: Vec<Condition>,
    reference: ObjectReference,
}

/// What became of a write.
enum Written {
    /// It is there, or its object is gone or another one now.
    Done,
    /// The API server could not be reached or had trouble: it may take it another time.
    Failed,
    /// The API server does not take a status for this object as it is.
    Refused,
}

/// Whether the API server refused the object, rather than had trouble. A server-side apply onto an object that does not
/// fit its schema is answered with 500 and these words.
fn is_refusal(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    matches!(status.code, 400 | 422) || status.message.contains("failed to create typed live object")
}

impl Traffic {
    /// Opens streams to new replicas and closes those to replicas that are gone.
    fn follow(&mut self, watches: &Watches, sender: &mpsc::Sender<Incoming>) {
        let wanted = replicas(&watches.installs().objects(), &watches.pods().objects());
        self.streams.retain(|uid, (replica, cancel)| {
            let stays = wanted.get(uid) == Some(replica);
            if !stays {
                cancel.cancel();
            }
            stays
        });
        for (uid, replica) in wanted {
            if self.streams.contains_key(&uid) {
                continue;
            }
            let cancel = self.shutdown.child_token();
            tokio::spawn(listen(replica.clone(), pair(watches, &replica), sender.clone(), cancel.clone()));
            self.streams.insert(uid, (replica, cancel));
        }
    }

    fn hear(&mut self, message: Incoming, trust: &watch::Sender<Replicas>) {
        let touched = match message {
            Incoming::Report(replica, report) => {
                let said = ReplicaTrust { roots: report.roots_sha256.clone(), signer: report.signer_sha256.clone() };
                note(trust, &replica, Some(said));
                self.sums.report(&replica, *report)
            }
            Incoming::Gone(replica) => {
                note(trust, &replica, None);
                self.sums.gone(&replica)
            }
        };
        self.due.extend(touched);
        let complete = self.sums.complete();
        self.metrics.status_streams.set(complete as i64);
        if complete >= self.streams.len() {
            self.incomplete_since = None;
        } else {
            self.incomplete_since.get_or_insert_with(Instant::now);
        }
    }

    /// A change of any object of a kind: those that we know something about are looked at again. Cheap, since what is said
    /// already is not written.
    fn touch_all(&mut self, kind: &str) {
        let keys: Vec<Key> = match kind {
            "VirtualService" => self.virtual_services.read(|contents| contents.objects.keys().cloned().collect()),
            _ => self.destination_rules.read(|contents| contents.objects.keys().cloned().collect()),
        };
        self.due.extend(keys.into_iter().map(|key| Target { kind: kind.to_owned(), key }));
    }

    /// Writes what is due.
    async fn round(&mut self) {
        let now = Instant::now();
        let ripe: Vec<Target> =
            self.later.iter().filter(|(_, at)| **at <= now).map(|(target, _)| target.clone()).collect();
        for target in ripe {
            self.later.remove(&target);
            self.due.insert(target);
        }
        if self.sums.complete() == 0 || self.incomplete_since.is_some_and(|since| since.elapsed() < SILENCE) {
            return;
        }
        let mut writes = 0;
        while writes < WRITES_A_ROUND {
            let Some(target) = self.due.pop_first() else { return };
            if self.one(&target).await {
                writes += 1;
            }
        }
    }

    /// Writes the status of one object if it is time. Returns whether a write was tried.
    async fn one(&mut self, target: &Target) -> bool {
        let Some(present) = self.present(target) else {
            self.paces.remove(target);
            return false;
        };
        let Some(verdict) = self.sums.verdict(target, present.generation) else { return false };
        let now = Instant::now();
        let pace = self.paces.entry(target.clone()).or_default();
        match pace.decide(present.generation, &verdict, &present.conditions, now) {
            Due::Nothing => false,
            Due::Later(wait) => {
                self.later.insert(target.clone(), now + wait);
                false
            }
            Due::Now(wanted) => {
                pace.wrote(now);
                // What was written comes back through the watch; until then the object would look unwritten.
                self.later.insert(target.clone(), now + pace::EVERY);
                if let Written::Refused = self.write(target, &present, &verdict, &wanted).await {
                    self.paces.entry(target.clone()).or_default().refused(present.generation, now);
                }
                true
            }
        }
    }

    async fn write(&self, target: &Target, present: &Present, verdict: &Verdict, wanted: &[Wanted]) -> Written {
        let ours: Vec<&str> = wanted.iter().map(|condition| condition.kind).collect();
        let mut list = present.conditions.clone();
        list.retain(|condition| ours.contains(&condition.type_.as_str()));
        let was_in_force = list.iter().any(|condition| {
            condition.type_ == PROGRAMMED
                && condition.status == "True"
                && condition.observed_generation == Some(present.generation)
        });
        let mut news = Vec::new();
        for condition in wanted {
            let change = conditions::set(&mut list, condition, present.generation, Timestamp::now());
            let newly_in_force = condition.kind == PROGRAMMED && verdict.in_force && !was_in_force;
            if (change == Change::Transition && condition.reason != "Pending") || newly_in_force {
                news.push(condition.clone());
            }
        }
        let resource = resource(&target.kind);
        let body = json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": target.kind,
            "metadata": { "name": target.key.name, "namespace": target.key.namespace, "uid": present.uid },
            "status": { "observedGeneration": present.generation, "conditions": list },
        });
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &target.key.namespace, &resource);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        match api.patch_status(&target.key.name, &params, &Patch::Apply(&body)).await {
            Ok(_) => {
                self.metrics.writes.get_or_create(&What { what: "traffic_status" }).inc();
                for condition in news {
                    self.publish(present, &condition);
                }
                Written::Done
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Written::Done,
            Err(error) => {
                tracing::warn!(kind = target.kind, object = %target.key, %error, "the status cannot be written");
                self.metrics.errors.get_or_create(&Category { category: "TrafficStatus" }).inc();
                if !is_refusal(&error) {
                    return Written::Failed;
                }
                // What was written past the schema takes no status: the API server judges the whole object. Then the
                // event is the only place where its owner can be told.
                for condition in wanted.iter().filter(|condition| condition.status == Status::False) {
                    self.publish(present, condition);
                }
                Written::Refused
            }
        }
    }

    fn publish(&self, present: &Present, condition: &Wanted) {
        self.recorder.publish(News {
            regarding: present.reference.clone(),
            warning: condition.status == Status::False,
            reason: condition.reason.clone(),
            action: condition.kind.to_owned(),
            note: format!("generation {}: {}", present.generation, condition.message),
        });
    }

    fn present(&self, target: &Target) -> Option<Present> {
        let object = match target.kind.as_str() {
            "VirtualService" => self.virtual_services.get(&target.key)?,
            "DestinationRule" => self.destination_rules.get(&target.key)?,
            _ => return None,
        };
        let conditions = object.data.pointer("/status/conditions").and_then(Value::as_array);
        Some(Present {
            uid: object.uid(),
            generation: object.metadata.generation.unwrap_or(0),
            // What others wrote there and we cannot read is not ours.
            conditions: conditions
                .into_iter()
                .flatten()
                .filter_map(|condition| serde_json::from_value(condition.clone()).ok())
                .collect(),
            reference: object.object_ref(&resource(&target.kind)),
        })
    }
}

/// Notes what a replica says of what it trusts and signs with; wakes whoever plans only when that is news.
fn note(trust: &watch::Sender<Replicas>, replica: &str, said: Option<ReplicaTrust>) {
    trust.send_if_modified(|known| {
        if known.get(replica) == said.as_ref() {
            return false;
        }
        let known = Arc::make_mut(known);
        match said {
            Some(said) => known.insert(replica.to_owned(), said),
            None => known.remove(replica),
        };
        true
    });
}

/// Only metadata and status are read here, so that an object that was written past its schema has a status too.
fn trim(object: &mut DynamicObject) {
    if let Some(data) = object.data.as_object_mut() {
        data.retain(|key, _| key == "status");
    }
    // Among them a second copy of the object, which `kubectl apply` writes.
    object.metadata.annotations = None;
    object.metadata.owner_references = None;
}

fn resource(kind: &str) -> ApiResource {
    let plural = if kind == "VirtualService" { "virtualservices" } else { "destinationrules" };
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("networking.istio.io", "v1", kind), plural)
}

/// Gives the authority of a replica's mesh as it is now.
pub(crate) fn pair(watches: &Watches, replica: &Replica) -> impl Fn() -> Option<Pair> + Send + Sync + use<> {
    let authorities = watches.authorities();
    let secret = Key::new(replica.namespace.clone(), names::CA_SECRET);
    move || {
        let secret = authorities.get(&secret)?;
        let (certificate, key, roots) = signing_pair(&secret)?;
        Some(Pair { certificate, key, roots })
    }
}

/// The control plane replicas that should be listened to, of all revisions: those whose pod is ready.
pub(crate) fn replicas(
    installs: &BTreeMap<Key, Arc<MeshInstall>>,
    pods: &BTreeMap<Key, Arc<Pod>>,
) -> BTreeMap<String, Replica> {
    let mut replicas = BTreeMap::new();
    for (key, install) in installs {
        for pod in pods.values() {
            let ours = pod.namespace().as_deref() == Some(install.spec.system_namespace())
                && names::is_control_plane(&key.name, pod.labels());
            let status = pod.status.as_ref();
            let ready = status
                .iter()
                .flat_map(|status| status.conditions.iter().flatten())
                .any(|condition| condition.type_ == "Ready" && condition.status == "True");
            let address = status.and_then(|status| status.pod_ip.as_deref()).and_then(|ip| ip.parse().ok());
            if let (true, true, Some(address), Some(uid)) = (ours, ready, address, pod.uid()) {
                let replica = Replica {
                    uid: uid.clone(),
                    pod: pod.name_any(),
                    address,
                    namespace: install.spec.system_namespace().to_owned(),
                    trust_domain: install.spec.trust_domain().to_owned(),
                };
                replicas.insert(uid, replica);
            }
        }
    }
    replicas
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status as Answer;

    fn answer(code: u16, message: &str) -> kube::Error {
        kube::Error::Api(Box::new(Answer { code, message: message.to_owned(), ..Answer::default() }))
    }

    #[test]
    fn write_when_the_object_is_past_its_schema_then_is_known_as_refused() {
        let typed = "failed to create typed live object (lab/malformed; networking.istio.io/v1, Kind=VirtualService): \
                     errors: .spec.hosts: expected list, got &{not a list}";
        assert!(is_refusal(&answer(500, typed)));
        assert!(is_refusal(&answer(422, "spec: Invalid value")));
    }

    #[test]
    fn write_when_the_server_has_trouble_then_is_tried_again() {
        assert!(!is_refusal(&answer(500, "etcdserver: request timed out")));
        assert!(!is_refusal(&answer(429, "too many requests")));
    }
}
