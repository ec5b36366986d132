//! Objects from a Kubernetes API server, by watches.
//!
//! Only what configuration is made from stays in memory: of a pod, for example, neither its volumes nor its environment.
//! Nothing is served before every kind has been listed once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{FutureExt, select_all};
use k8s_openapi::api::core::v1::{Container, Namespace, Node, Pod, PodSpec, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher;
use kube::{Client, Resource};
use leno_core::{MeshSettings, ObjectKey, ObjectRef};
use leno_crds::istio::destination_rule::DestinationRule;
use leno_crds::istio::virtual_service::VirtualService;
use leno_crds::meshinstall::MeshInstall;
use leno_kubeutil::watch::{Key, Store, Version, spawn};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::credentials::{self, Reader};
use super::{Lane, Source, mesh_settings};
use crate::stores::Stores;

/// Annotation that `kubectl apply` writes: a second copy of the object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Objects of one page of a list: bounds memory while listing.
const PAGE: u32 = 500;

/// How long the first configuration waits for Secrets that are named.
const FIRST_SECRETS: Duration = Duration::from_secs(5);

/// The kinds that are watched, in the order of their receivers.
const KINDS: [Lane; 8] = [
    Lane::All,       // Service
    Lane::Endpoints, // EndpointSlice
    Lane::Endpoints, // Pod
    Lane::All,       // Namespace
    Lane::All,       // Node
    Lane::All,       // VirtualService
    Lane::All,       // DestinationRule
    Lane::All,       // MeshInstall
];

/// The source.
pub struct Kubernetes {
    services: Store<Service>,
    endpoint_slices: Store<EndpointSlice>,
    pods: Store<Pod>,
    namespaces: Store<Namespace>,
    nodes: Store<Node>,
    virtual_services: Store<VirtualService>,
    destination_rules: Store<DestinationRule>,
    installs: Store<MeshInstall>,
    credentials: Reader,
    install: String,
    changes: [watch::Receiver<Version>; 8],
    dirty: [bool; 8],
    malformed: [BTreeMap<ObjectRef, String>; 8],
    synced: bool,
    stores: Stores,
}

impl Kubernetes {
    /// Begins to watch, until `shutdown`. `install` names the MeshInstall whose settings count; `account` is the control plane's,
    /// as `namespace:name`.
    pub fn watch(client: &Client, install: &str, account: &str, shutdown: &CancellationToken) -> Self {
        let config = || watcher::Config::default().page_size(PAGE);
        let by_name = config().fields(&format!("metadata.name={install}"));
        let stop = || shutdown.clone();
        let services = spawn(client.clone(), config(), trim_service, stop());
        let endpoint_slices = spawn(client.clone(), config(), trim_endpoint_slice, stop());
        let pods = spawn(client.clone(), config(), trim_pod, stop());
        let namespaces = spawn(client.clone(), config(), trim_namespace, stop());
        let nodes = spawn(client.clone(), config(), trim_node, stop());
        let virtual_services = spawn(client.clone(), config(), trim_virtual_service, stop());
        let destination_rules = spawn(client.clone(), config(), trim_destination_rule, stop());
        let installs = spawn(client.clone(), by_name, trim_install, stop());
        Kubernetes {
            changes: [
                services.subscribe(),
                endpoint_slices.subscribe(),
                pods.subscribe(),
                namespaces.subscribe(),
                nodes.subscribe(),
                virtual_services.subscribe(),
                destination_rules.subscribe(),
                installs.subscribe(),
            ],
            services,
            endpoint_slices,
            pods,
            namespaces,
            nodes,
            virtual_services,
            destination_rules,
            installs,
            credentials: Reader::spawn(client.clone(), account, stop()),
            install: install.to_owned(),
            dirty: [true; 8],
            malformed: Default::default(),
            synced: false,
            stores: Stores::default(),
        }
    }

    /// The watched MeshInstall, for others who need its settings.
    pub fn installs(&self) -> Store<MeshInstall> {
        self.installs.clone()
    }

    /// The settings of the MeshInstall; the last ones when it is malformed or gone, since pods may still run.
    fn settings(&self) -> Option<MeshSettings> {
        self.installs.get(&Key::new("", &self.install)).map(|install| mesh_settings(&install.spec))
    }

    fn refresh(&mut self) {
        let malformed = &mut self.malformed;
        let stores = &mut self.stores;
        let dirty = std::mem::take(&mut self.dirty);
        let mut slot = 0;
        macro_rules! copy {
            ($watched:ident, $into:ident) => {
                if dirty[slot] {
                    (stores.$into, malformed[slot]) = contents(&self.$watched);
                }
                slot += 1;
            };
        }
        copy!(services, services);
        copy!(endpoint_slices, endpoint_slices);
        copy!(pods, pods);
        copy!(namespaces, namespaces);
        copy!(nodes, nodes);
        copy!(virtual_services, virtual_services);
        copy!(destination_rules, destination_rules);
        if dirty[slot] {
            malformed[slot] = contents(&self.installs).1;
        }
        if dirty[6] {
            self.credentials
                .want(stores.destination_rules.values().flat_map(|rule| credentials::named(rule)).collect());
        }
        stores.credentials = self.credentials.seen();
        stores.malformed =
            malformed.iter().flatten().map(|(object, reason)| (object.clone(), reason.clone())).collect();
        if let Some(settings) = self.settings() {
            self.stores.mesh = settings;
        }
    }
}

impl Source for Kubernetes {
    async fn changed(&mut self) -> Option<Lane> {
        if !self.synced {
            for changes in &mut self.changes {
                changes.wait_for(|version| version.synced).await.ok()?;
            }
            self.synced = true;
            // What DestinationRules name is known now; a proxy that comes early must not be told that it is not there.
            self.refresh();
            self.credentials.ready(FIRST_SECRETS).await;
            return Some(Lane::All);
        }
        let changed = select_all(self.changes.iter_mut().map(|changes| changes.changed().boxed()));
        tokio::select! {
            (result, slot, _) = changed => {
                result.ok()?;
                self.dirty[slot] = true;
                Some(KINDS[slot])
            }
            changed = self.credentials.changed() => changed.map(|()| Lane::All),
        }
    }

    fn stores(&mut self) -> &Stores {
        self.refresh();
        &self.stores
    }
}

type Copied<K> = (BTreeMap<ObjectKey, Arc<K>>, BTreeMap<ObjectRef, String>);

fn contents<K: Resource<DynamicType = ()>>(store: &Store<K>) -> Copied<K> {
    store.read(|contents| {
        let objects =
            contents.objects.iter().map(|(key, object)| (ObjectKey::new(&key.namespace, &key.name), object.clone()));
        let malformed = contents.malformed.iter().map(|(key, reason)| {
            (ObjectRef::new(K::group(&()), K::kind(&()), &key.namespace, &key.name), reason.clone())
        });
        (objects.collect(), malformed.collect())
    })
}

fn trim_meta(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    meta.finalizers = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove(LAST_APPLIED);
    }
}

fn trim_service(service: &mut Service) {
    trim_meta(&mut service.metadata);
    service.status = None;
}

fn trim_endpoint_slice(slice: &mut EndpointSlice) {
    trim_meta(&mut slice.metadata);
    slice.metadata.annotations = None;
}

fn trim_namespace(namespace: &mut Namespace) {
    trim_meta(&mut namespace.metadata);
    namespace.spec = None;
    namespace.status = None;
}

fn trim_node(node: &mut Node) {
    trim_meta(&mut node.metadata);
    node.metadata.annotations = None;
    node.spec = None;
    node.status = None;
}

fn trim_virtual_service(object: &mut VirtualService) {
    trim_meta(&mut object.metadata);
    object.status = None;
}

fn trim_destination_rule(object: &mut DestinationRule) {
    trim_meta(&mut object.metadata);
    object.status = None;
}

fn trim_install(install: &mut MeshInstall) {
    trim_meta(&mut install.metadata);
    install.status = None;
}

fn trim_pod(pod: &mut Pod) {
    trim_meta(&mut pod.metadata);
    if let Some(spec) = pod.spec.take() {
        let containers = |containers: Vec<Container>| containers.into_iter().map(trim_container).collect();
        pod.spec = Some(PodSpec {
            containers: containers(spec.containers),
            init_containers: spec.init_containers.map(containers),
            host_network: spec.host_network,
            hostname: spec.hostname,
            subdomain: spec.subdomain,
            node_name: spec.node_name,
            service_account_name: spec.service_account_name,
            ..PodSpec::default()
        });
    }
    if let Some(status) = &mut pod.status {
        status.container_statuses = None;
        status.init_container_statuses = None;
        status.ephemeral_container_statuses = None;
        if let Some(conditions) = &mut status.conditions {
            conditions.retain(|condition| condition.type_ == "Ready");
            for condition in conditions {
                // Times change with every heartbeat and mean nothing here.
                condition.last_probe_time = None;
                condition.message = None;
            }
        }
    }
}

fn trim_container(container: Container) -> Container {
    Container {
        name: container.name,
        ports: container.ports,
        restart_policy: container.restart_policy,
        ..Container::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pod_when_trimmed_then_keeps_what_configuration_is_made_from_and_no_secrets() {
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "shop", "uid": "u", "labels": {"app": "a"},
                "annotations": {LAST_APPLIED: "{}", "mesh.leno.dev/status": "injected"}},
            "spec": {
                "serviceAccountName": "web", "nodeName": "n",
                "containers": [{"name": "c", "image": "i", "env": [{"name": "PASSWORD", "value": "x"}],
                    "ports": [{"name": "http", "containerPort": 8080}]}],
                "volumes": [{"name": "v", "emptyDir": {}}],
            },
            "status": {"podIPs": [{"ip": "10.0.0.1"}], "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True"}, {"type": "Initialized", "status": "True"}]},
        }))
        .unwrap();
        trim_pod(&mut pod);
        let text = serde_json::to_string(&pod).unwrap();
        for kept in ["\"web\"", "8080", "10.0.0.1", "injected", "Ready", "Running"] {
            assert!(text.contains(kept), "{kept} is missing in {text}");
        }
        for gone in ["PASSWORD", "emptyDir", "last-applied", "Initialized"] {
            assert!(!text.contains(gone), "{gone} is still in {text}");
        }
    }
}
