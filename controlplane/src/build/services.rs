//! Kubernetes Services as services of the mesh.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as k8s;
use leno_core::service::{Addressing, Service, ServicePort};
use leno_core::{Host, ObjectKey, Protocol};

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
    if spec.type_.as_deref() == Some("ExternalName") {
        return Err("it is of type ExternalName, which the mesh does not route; its traffic passes unchanged");
    }
    let listed = spec.cluster_ips.iter().flatten();
    let given: Vec<&str> =
        spec.cluster_ip.iter().chain(listed).map(String::as_str).filter(|ip| !ip.is_empty()).collect();
    let addressing = if given.contains(&"None") {
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
    Ok(Service { host: host.clone(), key: key.clone(), addressing, ports })
}

/// The TCP ports of a service; UDP and SCTP are not the mesh's business.
pub(super) fn tcp_ports(spec: &k8s::ServiceSpec) -> impl Iterator<Item = &k8s::ServicePort> {
    spec.ports.iter().flatten().filter(|port| matches!(port.protocol.as_deref(), None | Some("TCP")))
}

/// A port number, if it is one.
pub(super) fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number != 0)
}
