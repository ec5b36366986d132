//! A golden case as the judge sees it: its pods, the addresses that they serve on, and the requests to send.

use super::requests::Requests;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::Path,
};

/// A pod of a case.
#[derive(Clone, Debug)]
pub(super) struct Pod {
    /// `namespace/name`.
    pub(super) key: String,
    /// Its addresses.
    pub(super) addresses: Vec<IpAddr>,
    /// Whether it has a proxy.
    pub(super) meshed: bool,
}

/// A case.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) input: String,
    pub(super) pods: BTreeMap<String, Pod>,
    /// Everything that something may answer on: endpoints, and container ports.
    pub(super) served: BTreeSet<SocketAddr>,
    pub(super) requests: Requests,
    /// Secrets that proxies ask for and nobody has (`# absent:`).
    pub(super) absent: BTreeSet<String>,
}

impl Case {
    /// Reads a case's folder; its requests are in a file of its name in another.
    pub(super) fn read(folder: &Path, requests: &Path) -> Result<Case> {
        let path = folder.join("in.yaml");
        let input = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let requests = Requests::read(&requests.join(folder.file_name().unwrap_or_default()).with_extension("yaml"))?;
        let (mut pods, mut served, mut selecting, mut labelled) =
            (BTreeMap::new(), BTreeSet::new(), Vec::new(), Vec::new());
        for object in objects(&input).with_context(|| path.display().to_string())? {
            match object["kind"].as_str().unwrap_or_default() {
                "Pod" => {
                    let pod = pod(&object);
                    for (address, port) in pod.addresses.iter().flat_map(|a| container_ports(&object).map(|p| (*a, p)))
                    {
                        served.insert(SocketAddr::new(address, port));
                    }
                    labelled.push((object["metadata"].clone(), pod.addresses.clone()));
                    pods.insert(pod.key.clone(), pod);
                }
                "Service" => selecting.push(object),
                "EndpointSlice" => served.extend(endpoints(&object)),
                _ => {}
            }
        }
        for service in &selecting {
            for (metadata, addresses) in &labelled {
                if selects(service, metadata) {
                    served.extend(
                        addresses.iter().flat_map(|ip| target_ports(service).map(|port| SocketAddr::new(*ip, port))),
                    );
                }
            }
        }
        let absent = input.lines().filter_map(|line| line.strip_prefix("# absent: "));
        let absent = absent.map(|name| name.trim().to_owned()).collect();
        Ok(Case { input, pods, served, requests, absent })
    }

    /// The pods to judge: the one that requests name, those that the case is about (`# proxy:`), and one meshed pod of each
    /// other namespace, at most three in all.
    pub(super) fn judged(&self) -> Result<Vec<Pod>> {
        let mut chosen: Vec<Pod> = Vec::new();
        if let Some(wanted) = &self.requests.pod {
            let pod = self.pods.get(wanted).with_context(|| format!("requests.yaml: there is no pod {wanted}"))?;
            chosen.push(pod.clone());
        }
        for pod in self.input.lines().filter_map(|line| self.pods.get(line.strip_prefix("# proxy: ")?.trim())) {
            if chosen.len() < 3 && pod.meshed && !chosen.iter().any(|other| other.key == pod.key) {
                chosen.push(pod.clone());
            }
        }
        let namespace = |pod: &Pod| pod.key.split('/').next().unwrap_or_default().to_owned();
        for pod in self.pods.values().filter(|pod| pod.meshed) {
            if chosen.len() < 3 && !chosen.iter().any(|other| namespace(other) == namespace(pod)) {
                chosen.push(pod.clone());
            }
        }
        if chosen.is_empty() {
            bail!("the case has no meshed pod: nothing that Envoy could be the proxy of");
        }
        Ok(chosen)
    }

    /// The pod that has an address.
    pub(super) fn pod_at(&self, address: IpAddr) -> Option<&Pod> {
        self.pods.values().find(|pod| pod.addresses.contains(&address))
    }
}

/// All objects of a file, lists taken apart.
fn objects(text: &str) -> Result<Vec<Value>> {
    use serde::Deserialize;
    let mut all = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let value = Value::deserialize(document)?;
        match value["items"].as_array() {
            Some(items) => all.extend(items.iter().cloned()),
            None if value.is_object() => all.push(value),
            None => {}
        }
    }
    Ok(all)
}

fn pod(object: &Value) -> Pod {
    let metadata = &object["metadata"];
    let key =
        format!("{}/{}", metadata["namespace"].as_str().unwrap_or("default"), metadata["name"].as_str().unwrap_or("?"));
    let listed = object["status"]["podIPs"].as_array().into_iter().flatten().map(|entry| &entry["ip"]);
    let addresses: BTreeSet<IpAddr> =
        std::iter::once(&object["status"]["podIP"]).chain(listed).filter_map(|ip| ip.as_str()?.parse().ok()).collect();
    let annotations = &metadata["annotations"];
    let says_so = annotations["mesh.leno.dev/status"] == "injected" || annotations["mesh.leno.dev/shape"].is_string();
    let has_proxy = ["initContainers", "containers"]
        .iter()
        .flat_map(|list| object["spec"][list].as_array().into_iter().flatten())
        .any(|container| container["name"].as_str().is_some_and(|name| name.starts_with("leno-proxy")));
    Pod { key, addresses: addresses.into_iter().collect(), meshed: says_so && has_proxy }
}

fn container_ports(object: &Value) -> impl Iterator<Item = u16> {
    object["spec"]["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|container| container["ports"].as_array().into_iter().flatten())
        .filter(|port| port["protocol"].as_str().is_none_or(|protocol| protocol == "TCP"))
        .filter_map(|port| u16::try_from(port["containerPort"].as_u64()?).ok())
}

/// Whether a service chooses a pod.
fn selects(service: &Value, pod: &Value) -> bool {
    let selector = service["spec"]["selector"].as_object().filter(|selector| !selector.is_empty());
    service["metadata"]["namespace"] == pod["namespace"]
        && selector.is_some_and(|selector| selector.iter().all(|(label, value)| pod["labels"][label] == *value))
}

/// The ports of a service's pods, as far as they are numbers.
fn target_ports(service: &Value) -> impl Iterator<Item = u16> {
    service["spec"]["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|port| port["protocol"].as_str().is_none_or(|protocol| protocol == "TCP"))
        .filter_map(|port| match &port["targetPort"] {
            Value::Null => port["port"].as_u64(),
            target => target.as_u64(),
        })
        .filter_map(|port| u16::try_from(port).ok())
}

fn endpoints(slice: &Value) -> Vec<SocketAddr> {
    let ports: Vec<u16> = slice["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|port| port["protocol"].as_str().is_none_or(|protocol| protocol == "TCP"))
        .filter_map(|port| u16::try_from(port["port"].as_u64()?).ok())
        .collect();
    let addresses = slice["endpoints"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|endpoint| endpoint["addresses"].as_array().into_iter().flatten())
        .filter_map(|address| address.as_str()?.parse::<IpAddr>().ok());
    addresses.flat_map(|address| ports.iter().map(move |port| SocketAddr::new(address, *port))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_when_it_has_pods_and_slices_then_their_addresses_are_served() {
        let folder = tempfile::tempdir().unwrap();
        let input = "
kind: Pod
metadata: {name: a, namespace: shop, annotations: {mesh.leno.dev/shape: '1'}}
spec: {containers: [{name: leno-proxy-0}, {name: app, ports: [{containerPort: 8080}, {containerPort: 53, protocol: UDP}]}]}
status: {podIP: 10.0.0.1}
---
kind: Pod
metadata: {name: b, namespace: shop}
status: {podIP: 10.0.0.2}
---
kind: EndpointSlice
ports: [{port: 9080}]
endpoints: [{addresses: [10.0.0.2]}]
";
        std::fs::write(folder.path().join("in.yaml"), input).unwrap();
        let case = Case::read(folder.path(), "none".as_ref()).unwrap();
        let served: Vec<String> = case.served.iter().map(ToString::to_string).collect();
        assert_eq!(served, ["10.0.0.1:8080", "10.0.0.2:9080"]);
        let judged: Vec<String> = case.judged().unwrap().into_iter().map(|pod| pod.key).collect();
        assert_eq!(judged, ["shop/a"]);
    }
}
