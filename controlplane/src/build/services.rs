//! Kubernetes Services as services of the mesh.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as k8s;
use leno_core::policy::Nearest;
use leno_core::service::{Addressing, NODE, REGION, SUBZONE, Service, ServicePort, ZONE};
use leno_core::{Host, ObjectKey, Protocol};

/// Istio's way to say where traffic goes first.
const DISTRIBUTION_ANNOTATION: &str = "networking.istio.io/traffic-distribution";

/// All services, and those that the mesh does not support with the reason.
pub(super) fn services(
    objects: &BTreeMap<ObjectKey, Arc<k8s::Service>>,
    domain: &str,
) -> (BTreeMap<Host, Arc<Service>>, BTreeMap<Host, String>) {
    let mut services = BTreeMap::new();
    let mut unsupported = BTreeMap::new();
    for (key, object) in objects {
        let host = Host::of_service(&key.name, &key.namespace, domain);
        match service(key, &host, object) {
            Ok(service) => {
                services.insert(host, Arc::new(service));
            }
            Err(reason) => {
                unsupported.insert(host, reason.to_owned());
            }
        }
    }
    (services, unsupported)
}

fn service(key: &ObjectKey, host: &Host, object: &k8s::Service) -> Result<Service, &'static str> {
    let Some(spec) = &object.spec else { return Err("it has no spec") };
    let listed = spec.cluster_ips.iter().flatten();
    let given: Vec<&str> =
        spec.cluster_ip.iter().chain(listed).map(String::as_str).filter(|ip| !ip.is_empty()).collect();
    let addressing = if spec.type_.as_deref() == Some("ExternalName") {
        let Some(name) = spec.external_name.as_deref().filter(|name| !name.is_empty()) else {
            return Err("it is of type ExternalName and names nothing");
        };
        if spec.ports.iter().flatten().next().is_none() {
            return Err("it is of type ExternalName without ports, so nobody knows where to connect to; give it ports");
        }
        Addressing::Alias(name.trim_end_matches('.').to_ascii_lowercase())
    } else if given.contains(&"None") {
        Addressing::Headless
    } else {
        let mut addresses: Vec<IpAddr> = Vec::new();
        for address in given.iter().filter_map(|ip| ip.parse().ok()) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if addresses.is_empty() {
            return Err("it has no cluster IP yet");
        }
        Addressing::Virtual(addresses)
    };
    let mut ports = BTreeMap::new();
    for port in tcp_ports(spec) {
        let Some(number) = port_number(port.port) else { continue };
        let name = port.name.clone().unwrap_or_default();
        let protocol = Protocol::of_port(port.app_protocol.as_deref(), &name, number);
        ports.entry(number).or_insert(ServicePort { number, name, protocol });
    }
    Ok(Service {
        host: host.clone(),
        key: key.clone(),
        addressing,
        ports,
        nearest: nearest(object),
        publish_not_ready: spec.publish_not_ready_addresses == Some(true),
    })
}

/// Which endpoints a service asks for by its traffic distribution; Istio's annotation comes first.
fn nearest(object: &k8s::Service) -> Option<Nearest> {
    let annotation = object.metadata.annotations.as_ref().and_then(|all| all.get(DISTRIBUTION_ANNOTATION));
    let field = object.spec.as_ref().and_then(|spec| spec.traffic_distribution.as_ref());
    let labels: &[&str] = match annotation.or(field).map(String::as_str) {
        Some("PreferClose") => &[REGION, ZONE, SUBZONE],
        Some("PreferSameZone") => &[REGION, ZONE],
        Some("PreferSameNode") => &[REGION, ZONE, SUBZONE, NODE],
        _ => return None,
    };
    let labels = labels.iter().map(|label| ((*label).to_owned(), None)).collect();
    Some(Nearest { labels, always: true, ..Nearest::default() })
}

/// The TCP ports of a service; UDP and SCTP are not the mesh's business.
pub(super) fn tcp_ports(spec: &k8s::ServiceSpec) -> impl Iterator<Item = &k8s::ServicePort> {
    spec.ports.iter().flatten().filter(|port| matches!(port.protocol.as_deref(), None | Some("TCP")))
}

/// A port number, if it is one.
pub(super) fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number != 0)
}
