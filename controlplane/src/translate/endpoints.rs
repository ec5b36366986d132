//! Endpoints (EDS): a lane of their own, so that a change of endpoints translates nothing else.

use std::collections::BTreeMap;

use leno_core::Snapshot;
use leno_core::policy::Nearest;
use leno_core::service::{Endpoint, Locality};
use leno_xds::envoy::config::core::v3 as core;
use leno_xds::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint as XdsEndpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
};

use super::values::{ip_socket, metadata, object, text};
use crate::resolve::{ClientScope, Cluster, Spread, SpreadBy, lies_in};

/// The last priority that Envoy knows: what is farther away shares it.
const MAX_PRIORITY: u32 = 128;

/// The endpoints of a cluster as a client sees them, by locality and how near they are.
pub(super) fn assignment(snapshot: &Snapshot, client: &ClientScope, cluster: &Cluster) -> ClusterLoadAssignment {
    let Cluster { name, labels, spread, .. } = cluster;
    let endpoints = snapshot.endpoints_of(&name.host, name.port);
    let mut groups: BTreeMap<(u32, &Locality), Vec<LbEndpoint>> = BTreeMap::new();
    for endpoint in endpoints.iter().filter(|endpoint| endpoint.is_selected_by(labels)) {
        let distance = match &spread.by {
            SpreadBy::Nothing | SpreadBy::Shares(_) => 0,
            SpreadBy::Nearest(nearest) => distance(nearest, client, endpoint),
        };
        let group = groups.entry((distance, &endpoint.locality)).or_default();
        group.push(lb_endpoint(endpoint, &snapshot.mesh.cluster));
    }
    let shares = match &spread.by {
        SpreadBy::Shares(shares) => Some(weights(shares, groups.iter().map(|((_, place), all)| (*place, all.len())))),
        SpreadBy::Nothing | SpreadBy::Nearest(_) => None,
    };
    // Envoy counts priorities without gaps.
    let mut distances: Vec<u32> = groups.keys().map(|(distance, _)| *distance).collect();
    distances.dedup();
    let endpoints = groups.into_iter().filter_map(|((distance, locality), lb_endpoints)| {
        let Locality { region, zone, subzone } = locality;
        let known = !region.is_empty() || !zone.is_empty();
        let weight = match &shares {
            // What has no weight gets nothing beside those that have one; zero itself is none.
            Some(shares) => Some(*shares.get(locality)?).filter(|weight| *weight > 0),
            None if *spread == Spread::default() => None,
            None => u32::try_from(lb_endpoints.len()).ok(),
        };
        Some(LocalityLbEndpoints {
            locality: known.then(|| core::Locality {
                region: region.clone(),
                zone: zone.clone(),
                sub_zone: subzone.clone(),
            }),
            lb_endpoints,
            load_balancing_weight: weight,
            priority: distances
                .iter()
                .zip(0..)
                .find(|(known, _)| **known == distance)
                .map_or(0, |(_, rank)| MAX_PRIORITY.min(rank)),
            ..Default::default()
        })
    });
    ClusterLoadAssignment { cluster_name: name.to_string(), endpoints: endpoints.collect(), ..Default::default() }
}

/// How far an endpoint is from a client: the smaller, the nearer; at most 5 for each label and 5 more.
fn distance(nearest: &Nearest, client: &ClientScope, endpoint: &Endpoint) -> u32 {
    let Nearest { labels, regions, always: _, zone_aware } = nearest;
    let by_label = labels
        .iter()
        .zip((1..=labels.len()).rev())
        .find(|((label, value), _)| endpoint.label(label) != value.as_deref().unwrap_or(client.label(label)))
        .map_or(0, |(_, rest)| u32::try_from(rest).unwrap_or(u32::MAX / 8));
    if !labels.is_empty() && regions.is_empty() {
        return by_label * 5;
    }
    let (here, there) = (&client.locality, &endpoint.locality);
    let by_place = if here.region != there.region {
        match regions.iter().find(|(from, _)| *from == here.region) {
            Some((_, to)) if *to != there.region => 4,
            _ => 3,
        }
    } else if zone_aware.is_some() {
        // Envoy itself tells zones apart.
        0
    } else if here.zone != there.zone {
        2
    } else {
        u32::from(here.subzone != there.subzone)
    };
    by_label * 5 + by_place
}

/// The weights of places from shares in percent. A place belongs to the most specific share that fits it; several places
/// of one share divide it by their endpoints. Places without a share are left out.
fn weights<'a>(
    shares: &BTreeMap<String, u32>,
    places: impl Iterator<Item = (&'a Locality, usize)>,
) -> BTreeMap<&'a Locality, u32> {
    let specific = |share: &str| share.split('/').filter(|part| *part != "*").count();
    let mut of_share: BTreeMap<&String, Vec<(&Locality, u64)>> = BTreeMap::new();
    for (place, endpoints) in places {
        let fitting = shares.keys().filter(|share| lies_in(place, share));
        if let Some(share) = fitting.max_by_key(|share| specific(share)) {
            of_share.entry(share).or_default().push((place, endpoints as u64));
        }
    }
    let mut weights = BTreeMap::new();
    for (share, places) in of_share {
        let total: u64 = places.iter().map(|(_, endpoints)| endpoints).sum();
        let share = u64::from(shares.get(share).copied().unwrap_or_default());
        for (place, endpoints) in places {
            let weight = (endpoints * share).div_ceil(total.max(1));
            weights.insert(place, u32::try_from(weight).unwrap_or(u32::MAX));
        }
    }
    weights
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
