//! Pods as workloads of the mesh: who they are, where they run, and on which ports services reach them.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use leno_core::service::{
    Engine, INJECTED_ENGINE_ANNOTATION, InboundPort, Labels, Locality, REGION, SUBZONE, Service, Workload, ZONE,
    selects,
};
use leno_core::{Host, Identity, MeshSettings, ObjectKey};

use super::services::{port_number, tcp_ports};

/// The annotation that the injector leaves on a pod with a proxy.
const STATUS_ANNOTATION: &str = "mesh.leno.dev/status";
/// The annotation with the number of the injected pod's shape.
const SHAPE_ANNOTATION: &str = "mesh.leno.dev/shape";
/// How the names of a proxy's containers begin.
const PROXY_CONTAINER: &str = "leno-proxy";

/// All workloads, by pod. Pods that have ended are none.
pub(super) fn workloads(
    pods: &BTreeMap<ObjectKey, Arc<k8s::Pod>>,
    nodes: &BTreeMap<ObjectKey, Arc<k8s::Node>>,
    service_objects: &BTreeMap<ObjectKey, Arc<k8s::Service>>,
    services: &BTreeMap<Host, Arc<Service>>,
    mesh: &MeshSettings,
) -> BTreeMap<ObjectKey, Arc<Workload>> {
    let mut by_namespace: BTreeMap<&str, Vec<Selecting<'_>>> = BTreeMap::new();
    for (key, object) in service_objects {
        let host = Host::of_service(&key.name, &key.namespace, &mesh.domain);
        let Some(service) = services.get(&host) else { continue };
        let Some(spec) = &object.spec else { continue };
        let Some(selector) = spec.selector.as_ref().filter(|selector| !selector.is_empty()) else { continue };
        by_namespace.entry(&key.namespace).or_default().push(Selecting { selector, spec, service });
    }
    pods.iter()
        .filter(|(_, pod)| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            !matches!(phase, Some("Succeeded" | "Failed"))
        })
        .map(|(key, pod)| {
            let selecting = by_namespace.get(key.namespace.as_str()).map(Vec::as_slice).unwrap_or_default();
            (key.clone(), Arc::new(workload(key, pod, nodes, selecting, mesh)))
        })
        .collect()
}

/// A service that chooses its pods by labels.
struct Selecting<'a> {
    selector: &'a Labels,
    spec: &'a k8s::ServiceSpec,
    service: &'a Service,
}

fn workload(
    key: &ObjectKey,
    pod: &k8s::Pod,
    nodes: &BTreeMap<ObjectKey, Arc<k8s::Node>>,
    selecting: &[Selecting<'_>],
    mesh: &MeshSettings,
) -> Workload {
    let labels: Labels = pod.metadata.labels.clone().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let label = |names: &[&str]| names.iter().find_map(|name| labels.get(*name)).cloned().unwrap_or_default();
    let account = spec.and_then(|spec| spec.service_account_name.clone()).filter(|account| !account.is_empty());
    let node = spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default();
    let status = pod.status.as_ref();
    let mut addresses = Vec::new();
    let listed = status.into_iter().flat_map(|status| status.pod_ips.iter().flatten()).map(|ip| ip.ip.as_str());
    for text in status.and_then(|status| status.pod_ip.as_deref()).into_iter().chain(listed) {
        if let Ok(address) = text.parse()
            && !addresses.contains(&address)
        {
            addresses.push(address);
        }
    }
    Workload {
        pod: key.clone(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        name: owner(pod, &labels).unwrap_or_else(|| key.name.clone()),
        app: label(&["app", "app.kubernetes.io/name"]),
        version: label(&["version", "app.kubernetes.io/version"]),
        identity: Identity::new(&mesh.trust_domain, &key.namespace, account.unwrap_or_else(|| "default".to_owned())),
        inbound: inbound(spec, &labels, selecting),
        labels,
        addresses,
        locality: locality(nodes, &node),
        node,
        meshed: is_meshed(pod),
        engine: engine(pod),
    }
}

/// What injection noted.
fn engine(pod: &k8s::Pod) -> Engine {
    let annotations = pod.metadata.annotations.as_ref();
    let noted = annotations.and_then(|annotations| annotations.get(INJECTED_ENGINE_ANNOTATION));
    noted.and_then(|name| Engine::named(name)).unwrap_or_default()
}

/// Whether the pod was injected, and still has a proxy: an annotation alone would only break its own traffic.
fn is_meshed(pod: &k8s::Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let says_so = annotations.is_some_and(|annotations| {
        annotations.get(STATUS_ANNOTATION).is_some_and(|status| status == "injected")
            || annotations.contains_key(SHAPE_ANNOTATION)
    });
    says_so && containers(pod.spec.as_ref()).any(|container| container.name.starts_with(PROXY_CONTAINER))
}

fn containers(spec: Option<&k8s::PodSpec>) -> impl Iterator<Item = &k8s::Container> {
    spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
}

/// The name of what made the pod: its Deployment rather than the ReplicaSet, its CronJob rather than the Job.
fn owner(pod: &k8s::Pod, labels: &Labels) -> Option<String> {
    let owner = pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
    let name = owner.name.as_str();
    let shortened = match owner.kind.as_str() {
        "ReplicaSet" => {
            labels.get("pod-template-hash").and_then(|hash| name.strip_suffix(hash.as_str())?.strip_suffix('-'))
        }
        "Job" => name.rsplit_once('-').and_then(|(cron, time)| {
            ((8..=10).contains(&time.len()) && time.bytes().all(|byte| byte.is_ascii_digit())).then_some(cron)
        }),
        _ => None,
    };
    Some(shortened.filter(|name| !name.is_empty()).unwrap_or(name).to_owned())
}

/// The ports on which services reach the pod. Where several lead to one port, the first by name says what it speaks,
/// unless it does not know and another does.
fn inbound(spec: Option<&k8s::PodSpec>, labels: &Labels, selecting: &[Selecting<'_>]) -> BTreeMap<u16, InboundPort> {
    let mut ports: BTreeMap<u16, InboundPort> = BTreeMap::new();
    for Selecting { selector, spec: service_spec, service } in selecting {
        if !selects(selector, labels) {
            continue;
        }
        for port in tcp_ports(service_spec) {
            let Some(number) = target_port(spec, port) else { continue };
            let Some(service_port) = port_number(port.port).and_then(|number| service.ports.get(&number)) else {
                continue;
            };
            let candidate = InboundPort {
                number,
                protocol: service_port.protocol,
                service: service.host.clone(),
                key: service.key.clone(),
                service_port: service_port.number,
            };
            match ports.get_mut(&number) {
                Some(known) if known.protocol == leno_core::Protocol::Auto && candidate.protocol != known.protocol => {
                    *known = candidate;
                }
                Some(_) => {}
                None => {
                    ports.insert(number, candidate);
                }
            }
        }
    }
    ports
}

/// The port of the pod that a service port leads to: a number, or the name of a container's port.
fn target_port(spec: Option<&k8s::PodSpec>, port: &k8s::ServicePort) -> Option<u16> {
    match &port.target_port {
        None => port_number(port.port),
        Some(IntOrString::Int(0)) => port_number(port.port),
        Some(IntOrString::Int(number)) => port_number(*number),
        Some(IntOrString::String(name)) => match name.parse() {
            Ok(number) => port_number(number),
            Err(_) => containers(spec)
                .flat_map(|container| container.ports.iter().flatten())
                .find(|port| {
                    port.name.as_deref() == Some(name) && matches!(port.protocol.as_deref(), None | Some("TCP"))
                })
                .and_then(|port| port_number(port.container_port)),
        },
    }
}

/// Where a node is.
pub(super) fn locality(nodes: &BTreeMap<ObjectKey, Arc<k8s::Node>>, name: &str) -> Locality {
    let labels = nodes.get(&ObjectKey::new("", name)).and_then(|node| node.metadata.labels.as_ref());
    let label = |name: &str| labels.and_then(|labels| labels.get(name)).cloned().unwrap_or_default();
    Locality { region: label(REGION), zone: label(ZONE), subzone: label(SUBZONE) }
}
