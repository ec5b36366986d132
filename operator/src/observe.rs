//! The watches of the operator, and one consistent look at all of them.
//!
//! What the operator made is watched by its label, so that another's objects of the same kinds cost nothing. ConfigMaps and
//! Secrets are watched by name besides, which lets the role name them: the operator reads no other Secret.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::runtime::watcher::Config;
use leno_crds::meshinstall::{MeshInstall, USER_SECRET};
use leno_kubeutil::watch::{Store, TolerantApi, spawn, spawn_api};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::names;
use crate::plan::authority::Replicas;
use crate::plan::{ObjectId, Observed};
use crate::proxies::Snapshot;

/// Kinds that the operator makes: group, version, kind, plural.
pub const OWNED: [(&str, &str, &str, &str); 10] = [
    ("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations"),
    ("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
    ("apps", "v1", "Deployment", "deployments"),
    ("", "v1", "Service", "services"),
    ("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    ("", "v1", "ConfigMap", "configmaps"),
    ("", "v1", "ServiceAccount", "serviceaccounts"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles"),
    ("", "v1", "Secret", "secrets"),
];

/// The resource of an owned kind.
pub fn resource(kind: &str) -> Option<ApiResource> {
    OWNED.iter().find(|(_, _, owned, _)| *owned == kind).map(|(group, version, kind, plural)| {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
    })
}

/// The stores of the operator.
pub struct Watches {
    installs: Store<MeshInstall>,
    namespaces: Store<Namespace>,
    pods: Store<Pod>,
    authorities: Store<Secret>,
    issuers: Store<Secret>,
    replicas: watch::Sender<Replicas>,
    reports: watch::Sender<Snapshot>,
    owned: Vec<(&'static str, Store<DynamicObject>)>,
    changed: Arc<Notify>,
}

impl Watches {
    /// Starts all watches; they end with `shutdown`.
    pub fn start(client: &Client, shutdown: &CancellationToken) -> Self {
        let ours = format!("{}={}", names::MANAGED_BY, names::FIELD_MANAGER);
        let by_name = |name: &str| Config::default().fields(&format!("metadata.name={name}"));
        let mut owned = Vec::new();
        for (_, _, kind, _) in OWNED.iter().filter(|(_, _, kind, _)| *kind != "Secret") {
            let Some(resource) = resource(kind) else { continue };
            let api: TolerantApi<DynamicObject> = Api::all_with(client.clone(), &resource);
            let config = if *kind == "ConfigMap" { by_name(names::ROOT_CONFIG_MAP) } else { Config::default() };
            owned.push((*kind, spawn_api(kind, api, config.labels(&ours), |_| {}, shutdown.clone())));
        }
        let watches = Watches {
            installs: spawn(client.clone(), Config::default(), |_| {}, shutdown.clone()),
            namespaces: spawn(client.clone(), Config::default(), trim_namespace, shutdown.clone()),
            pods: spawn(client.clone(), Config::default(), trim_pod, shutdown.clone()),
            authorities: spawn(client.clone(), by_name(names::CA_SECRET), |_| {}, shutdown.clone()),
            issuers: spawn(client.clone(), by_name(USER_SECRET), |_| {}, shutdown.clone()),
            replicas: watch::Sender::default(),
            reports: watch::Sender::default(),
            owned,
            changed: Arc::default(),
        };
        watches.forward(watches.installs.subscribe());
        watches.forward(watches.namespaces.subscribe());
        watches.forward(watches.pods.subscribe());
        watches.forward(watches.authorities.subscribe());
        watches.forward(watches.issuers.subscribe());
        watches.forward(watches.replicas.subscribe());
        watches.owned.iter().for_each(|(_, store)| watches.forward(store.subscribe()));
        watches
    }

    /// Joins the changes of all stores into one signal.
    fn forward<T: Send + Sync + 'static>(&self, mut receiver: watch::Receiver<T>) {
        let changed = self.changed.clone();
        tokio::spawn(async move {
            while receiver.changed().await.is_ok() {
                changed.notify_one();
            }
        });
    }

    /// Waits for the first list of every store.
    pub async fn synced(&self) {
        self.installs.synced().await;
        self.namespaces.synced().await;
        self.pods.synced().await;
        self.authorities.synced().await;
        self.issuers.synced().await;
        for (_, store) in &self.owned {
            store.synced().await;
        }
    }

    /// Waits for a change in any store since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Wakes [`Watches::changed`].
    pub fn waker(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    /// The pods, for those who need no more.
    pub fn pods(&self) -> Store<Pod> {
        self.pods.clone()
    }

    /// The MeshInstalls, for those who need no more.
    pub fn installs(&self) -> Store<MeshInstall> {
        self.installs.clone()
    }

    /// The authorities, for those who need no more.
    pub fn authorities(&self) -> Store<Secret> {
        self.authorities.clone()
    }

    /// Where what replicas say of what they trust is put.
    pub fn replicas(&self) -> &watch::Sender<Replicas> {
        &self.replicas
    }

    /// Where what proxies tell is put. That alone wakes nobody: counts grow all the time.
    pub fn reports(&self) -> &watch::Sender<Snapshot> {
        &self.reports
    }

    /// MeshInstalls that do not parse, with what is wrong.
    pub fn malformed(&self) -> std::collections::BTreeMap<leno_kubeutil::watch::Key, String> {
        self.installs.malformed()
    }

    /// Everything as it is now.
    pub fn look(&self, supported: &[String]) -> Observed {
        let mut observed = Observed {
            installs: self.installs.objects(),
            namespaces: self.namespaces.objects(),
            pods: self.pods.objects(),
            authorities: self.authorities.objects(),
            issuers: self.issuers.objects(),
            replicas: self.replicas.borrow().clone(),
            reports: self.reports.borrow().clone(),
            supported: supported.to_vec(),
            ..Observed::default()
        };
        for (kind, store) in &self.owned {
            let objects = store.objects().into_iter().map(|(key, object)| (ObjectId { kind, key }, object));
            observed.owned.extend(objects);
        }
        observed
    }
}

/// Drops what no plan reads.
fn trim_namespace(namespace: &mut Namespace) {
    namespace.metadata.annotations = None;
    namespace.spec = None;
}

/// Drops what no plan reads: in large clusters pods are most of the memory.
fn trim_pod(pod: &mut Pod) {
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.retain(|key, _| key.contains("leno.dev/") || key.contains("istio.io/"));
    }
    if let Some(spec) = &mut pod.spec {
        let kept = std::mem::take(spec);
        spec.host_network = kept.host_network;
        spec.containers = kept
            .containers
            .into_iter()
            .map(|container| k8s_openapi::api::core::v1::Container {
                name: container.name,
                image: container.image,
                image_pull_policy: container.image_pull_policy,
                ..Default::default()
            })
            .collect();
        spec.init_containers = kept.init_containers.map(|containers| {
            containers
                .into_iter()
                .map(|container| k8s_openapi::api::core::v1::Container {
                    name: container.name,
                    image: container.image,
                    image_pull_policy: container.image_pull_policy,
                    ..Default::default()
                })
                .collect()
        });
    }
}
