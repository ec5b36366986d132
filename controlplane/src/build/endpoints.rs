//! Endpoint slices as endpoints, and what is known of the pods behind each service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use leno_core::service::{Addressing, Endpoint, Endpoints, Locality, Service, Workload, selects};
use leno_core::snapshot::Members;
use leno_core::{Host, ObjectKey};

use super::services::port_number;
use super::workloads::locality;

/// What was found in endpoint slices.
#[derive(Default)]
pub(super) struct Found {
    /// Endpoints that take new requests.
    pub(super) endpoints: BTreeMap<Host, BTreeMap<u16, Endpoints>>,
    /// Pods named by the slices, ready or not.
    pods: BTreeMap<Host, BTreeSet<ObjectKey>>,
    /// Services with addresses that belong to no pod.
    plain: BTreeSet<Host>,
}

/// An endpoint, and whether it is on its way out.
struct Candidate {
    endpoint: Endpoint,
    leaving: bool,
}

/// Reads all slices. An endpoint that is ready takes new requests. One that is terminating does not, even where it still
/// serves, unless the service has no other: then it is better than nothing, as kube-proxy decides, too.
pub(super) fn endpoints(
    slices: &BTreeMap<ObjectKey, Arc<EndpointSlice>>,
    nodes: &BTreeMap<ObjectKey, Arc<k8s::Node>>,
    services: &BTreeMap<Host, Arc<Service>>,
    workloads: &BTreeMap<ObjectKey, Arc<Workload>>,
    domain: &str,
) -> Found {
    let mut found = Found::default();
    let mut candidates: BTreeMap<(Host, u16), BTreeMap<(IpAddr, u16), Candidate>> = BTreeMap::new();
    for (key, slice) in slices {
        let labels = slice.metadata.labels.as_ref();
        let Some(name) = labels.and_then(|labels| labels.get("kubernetes.io/service-name")) else { continue };
        let host = Host::of_service(name, &key.namespace, domain);
        let Some(service) = services.get(&host) else { continue };
        // One address of each pod is enough: that of the family of the service's first address.
        let wanted = match &service.addressing {
            Addressing::Virtual(addresses) => addresses.first().map(IpAddr::is_ipv4),
            Addressing::Headless => None,
            Addressing::Alias(_) => continue,
        };
        if !matches!(slice.address_type.as_str(), "IPv4" | "IPv6")
            || wanted.is_some_and(|ipv4| ipv4 != (slice.address_type == "IPv4"))
        {
            continue;
        }
        for endpoint in &slice.endpoints {
            let pod =
                endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod")).map(|target| {
                    let namespace = target.namespace.as_deref().unwrap_or(&key.namespace);
                    ObjectKey::new(namespace, target.name.as_deref().unwrap_or_default())
                });
            match &pod {
                Some(pod) => {
                    found.pods.entry(host.clone()).or_default().insert(pod.clone());
                }
                None => {
                    found.plain.insert(host.clone());
                }
            }
            let conditions = endpoint.conditions.as_ref();
            let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
            let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(ready);
            let leaving = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
            // Whoever publishes what is not ready wants all of it, to the end.
            let leaving = leaving && !service.publish_not_ready;
            if !service.publish_not_ready && !(if leaving { serving } else { ready }) {
                continue;
            }
            let workload = match pod {
                // Without its pod, nobody knows how to reach it: with or without TLS, and as whom.
                Some(pod) => match workloads.get(&pod) {
                    Some(workload) => Some(Arc::clone(workload)),
                    None => continue,
                },
                None => None,
            };
            let node = endpoint.node_name.as_deref().unwrap_or_default();
            let zone = match locality(nodes, node) {
                Locality { region, zone, subzone } if zone.is_empty() => {
                    Locality { region, zone: endpoint.zone.clone().unwrap_or_default(), subzone }
                }
                known => known,
            };
            // All addresses of one endpoint are the same pod; the API asks consumers to use the first.
            let Some(address) = endpoint.addresses.first().and_then(|text| text.parse::<IpAddr>().ok()) else {
                continue;
            };
            for port in slice.ports.iter().flatten() {
                if !matches!(port.protocol.as_deref(), None | Some("TCP")) {
                    continue;
                }
                let Some(number) = port.port.and_then(port_number) else { continue };
                let name = port.name.as_deref().unwrap_or_default();
                let Some(service_port) = service.ports.values().find(|port| port.name == name) else { continue };
                let endpoint = Endpoint { address, port: number, workload: workload.clone(), locality: zone.clone() };
                let known = candidates.entry((host.clone(), service_port.number)).or_default();
                // The same address may be in two slices for a moment; where it is not leaving, it is current.
                match known.get(&(address, number)) {
                    Some(known) if !known.leaving || leaving => {}
                    _ => {
                        known.insert((address, number), Candidate { endpoint, leaving });
                    }
                }
            }
        }
    }
    for ((host, port), known) in candidates {
        let all_leave = known.values().all(|candidate| candidate.leaving);
        let chosen = known.into_values().filter(|candidate| all_leave || !candidate.leaving);
        let endpoints = Arc::new(chosen.map(|candidate| candidate.endpoint).collect());
        found.endpoints.entry(host).or_default().insert(port, endpoints);
    }
    found
}

/// What is known of the pods behind each service: those that its selector chooses, and those that its slices name.
pub(super) fn members(
    service_objects: &BTreeMap<ObjectKey, Arc<k8s::Service>>,
    services: &BTreeMap<Host, Arc<Service>>,
    workloads: &BTreeMap<ObjectKey, Arc<Workload>>,
    found: &Found,
    domain: &str,
) -> BTreeMap<Host, Members> {
    let mut by_namespace: BTreeMap<&str, Vec<&Arc<Workload>>> = BTreeMap::new();
    for (key, workload) in workloads {
        by_namespace.entry(&key.namespace).or_default().push(workload);
    }
    let mut all = BTreeMap::new();
    for (key, object) in service_objects {
        let host = Host::of_service(&key.name, &key.namespace, domain);
        if !services.contains_key(&host) {
            continue;
        }
        let mut members = Members { plain: found.plain.contains(&host), ..Members::default() };
        let mut add = |workload: &Workload| {
            if workload.meshed {
                members.identities.insert(workload.identity.clone());
            } else {
                members.plain = true;
            }
        };
        let selector = object.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        if let Some(selector) = selector.filter(|selector| !selector.is_empty()) {
            let pods = by_namespace.get(key.namespace.as_str()).into_iter().flatten();
            pods.filter(|workload| selects(selector, &workload.labels)).for_each(|workload| add(workload));
        }
        for pod in found.pods.get(&host).into_iter().flatten() {
            if let Some(workload) = workloads.get(pod) {
                add(workload);
            }
        }
        all.insert(host, members);
    }
    all
}
