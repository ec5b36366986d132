//! The clusters of a service port: the service as a whole, and its subsets, each with the policy that holds for it.

use std::sync::Arc;

use leno_core::policy::{Algorithm, DestinationPolicy, LocalityBalancing, Nearest, TrafficPolicy};
use leno_core::service::{Addressing, Locality, Service, ServicePort};
use leno_core::{Protocol, Snapshot};

use super::index::subsets;
use super::ir::{Cluster, ClusterName, Discovery, Spread, SpreadBy};
use super::scope::ClientScope;

/// The service as a whole, then its subsets.
pub(super) fn of_port(
    snapshot: &Snapshot,
    client: &ClientScope,
    service: &Service,
    port: &ServicePort,
    policy: Option<&Arc<DestinationPolicy>>,
) -> Vec<Cluster> {
    let members = snapshot.members.get(&service.host).cloned().unwrap_or_default();
    let none = TrafficPolicy::default();
    let whole = policy.map(|policy| policy.policy.over(&none, port.number)).unwrap_or_default();
    let cluster = |subset: &str, labels, held: TrafficPolicy| Cluster {
        name: ClusterName { port: port.number, subset: subset.to_owned(), host: service.host.clone() },
        protocol: protocol(port.protocol, &held),
        spread: match discovery(service, &held) {
            Discovery::Endpoints => spread(&held, service, client),
            // There is one place, or nobody knows which.
            Discovery::OriginalDestination | Discovery::Name(_) => Spread::default(),
        },
        discovery: discovery(service, &held),
        labels,
        policy: held,
        identities: members.identities.clone(),
        plain: members.plain,
        origin: policy.map(|policy| policy.origin.clone()),
        others: policy.into_iter().flat_map(|policy| &policy.others).map(|(origin, _)| origin.clone()).collect(),
    };
    let mut clusters = vec![cluster("", Default::default(), whole.clone())];
    for subset in subsets(policy) {
        let held = subset.policy.over(&whole, port.number);
        clusters.push(cluster(&subset.name, subset.labels.clone(), held));
    }
    clusters
}

/// What is spoken to it, when the policy asks for HTTP/2 whatever the client speaks.
fn protocol(declared: Protocol, policy: &TrafficPolicy) -> Protocol {
    let upgraded = policy.connections.as_ref().is_some_and(|limits| limits.upgrade_to_http2 == Some(true));
    if upgraded && !declared.is_opaque() && !declared.is_http2() { Protocol::Http2 } else { declared }
}

fn discovery(service: &Service, policy: &TrafficPolicy) -> Discovery {
    let passes = policy.balancing.as_ref().is_some_and(|balancing| balancing.algorithm == Algorithm::Passthrough);
    match &service.addressing {
        _ if passes => Discovery::OriginalDestination,
        Addressing::Headless => Discovery::OriginalDestination,
        Addressing::Virtual(_) => Discovery::Endpoints,
        Addressing::Alias(name) => Discovery::Name(name.clone()),
    }
}

/// The policy's own words come first, then the service's, then the mesh's default, which is to prefer what is near where
/// endpoints that fail are taken out: without that, nothing would ever take over from what is near.
fn spread(policy: &TrafficPolicy, service: &Service, client: &ClientScope) -> Spread {
    let fails_over = policy.outliers.is_some();
    let nearest = |nearest: &Nearest| {
        if !fails_over && !nearest.always {
            return Spread::default();
        }
        let weighted = nearest.zone_aware.is_none() && !(nearest.labels.is_empty() && nearest.regions.is_empty());
        Spread { weighted, by: SpreadBy::Nearest(nearest.clone()) }
    };
    match policy.balancing.as_ref().and_then(|balancing| balancing.locality.as_ref()) {
        Some(LocalityBalancing::Off) => Spread::default(),
        Some(LocalityBalancing::Shares(shares)) => {
            let mine = shares.iter().find(|shares| lies_in(&client.locality, &shares.from));
            let by = mine.map_or(SpreadBy::Nothing, |shares| SpreadBy::Shares(shares.to.clone()));
            Spread { weighted: true, by }
        }
        Some(LocalityBalancing::Nearest(settings)) => nearest(settings),
        None => match &service.nearest {
            Some(settings) => nearest(settings),
            None => nearest(&Nearest::default()),
        },
    }
}

/// Whether a place is one of those meant by `region/zone/subzone`; `*` and parts that are left out mean any.
pub(crate) fn lies_in(place: &Locality, pattern: &str) -> bool {
    let mut parts = pattern.split('/');
    [&place.region, &place.zone, &place.subzone]
        .into_iter()
        .all(|own| parts.next().is_none_or(|part| part == "*" || part == own))
}
