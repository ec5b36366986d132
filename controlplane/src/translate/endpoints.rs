//! Endpoints (EDS): a lane of their own, so that a change of endpoints translates nothing else.

use std::collections::BTreeMap;

use leno_core::Snapshot;
use leno_core::service::{Endpoint, Labels, Locality};
use leno_xds::envoy::config::core::v3 as core;
use leno_xds::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint as XdsEndpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
};

use super::values::{ip_socket, metadata, object, text};
use crate::resolve::ClusterName;

/// The endpoints of a cluster that carry the labels, by locality.
pub(super) fn assignment(snapshot: &Snapshot, name: &ClusterName, labels: &Labels) -> ClusterLoadAssignment {
    let endpoints = snapshot.endpoints_of(&name.host, name.port);
    let mut by_locality: BTreeMap<&Locality, Vec<LbEndpoint>> = BTreeMap::new();
    for endpoint in endpoints.iter().filter(|endpoint| endpoint.is_selected_by(labels)) {
        by_locality.entry(&endpoint.locality).or_default().push(lb_endpoint(endpoint, &snapshot.mesh.cluster));
    }
    let endpoints = by_locality.into_iter().map(|(locality, lb_endpoints)| {
        let Locality { region, zone } = locality;
        let known = !region.is_empty() || !zone.is_empty();
        LocalityLbEndpoints {
            locality: known.then(|| core::Locality {
                region: region.clone(),
                zone: zone.clone(),
                sub_zone: String::new(),
            }),
            lb_endpoints,
            ..Default::default()
        }
    });
    ClusterLoadAssignment { cluster_name: name.to_string(), endpoints: endpoints.collect(), ..Default::default() }
}

fn lb_endpoint(endpoint: &Endpoint, cluster: &str) -> LbEndpoint {
    let mut entries = Vec::new();
    if let Some(identity) = endpoint.identity() {
        entries.push(("envoy.transport_socket_match", object([("identity", text(identity.to_string()))])));
    }
    if let Some(workload) = &endpoint.workload {
        let namespace = &workload.pod.namespace;
        let described = [workload.name.as_str(), namespace, &workload.app, &workload.version, cluster].join(";");
        entries.push(("istio", object([("workload", text(described))])));
    }
    LbEndpoint {
        metadata: (!entries.is_empty()).then(|| metadata(entries)),
        host_identifier: Some(HostIdentifier::Endpoint(XdsEndpoint {
            address: Some(ip_socket(endpoint.address, endpoint.port)),
            ..Default::default()
        })),
        ..Default::default()
    }
}
