//! Which route, target and cluster a request belongs to.

use super::{call::Call, filter, hash, headers::Known};
use crate::{
    balance,
    config::{Action, ClusterId, Forward, TargetChoice, VirtualCluster, WeightedCluster},
    route::{self, Asker, Certificate, Choice, Selected},
};

/// A request that is refused before its route is looked for belongs to one all the same where its client says how it came: as
/// with Envoy, whose routes are found by `x-forwarded-proto` also.
pub(super) fn refused(call: &mut Call<'_>) {
    let told = call.request.headers.known(Known::ForwardedProto).is_some_and(|proto| !proto.is_empty());
    let selected = if told { choose(call).0 } else { None };
    filter::on_refused(call, selected, false);
}

/// Finds the route and its target; `None` when there is none. Whether that is because the virtual host wants TLS: the client is
/// told so unless a filter answers before.
pub(super) fn choose<'a>(call: &mut Call<'a>) -> (Option<Selected<'a>>, bool) {
    let manager = call.manager;
    let asker = Asker { certificate: Certificate::of(call), dynamic: call.dynamic(), rng: &call.worker.rng };
    let choice = route::select(&manager.routes, call.request, asker);
    // An endpoint's redirect may have had one before.
    (call.tally.route, call.tally.selected, call.tally.cluster) = (None, None, None);
    match choice {
        Choice::None => (None, false),
        Choice::NeedsTls => (None, true),
        Choice::Route(selected) => (Some(take(call, selected)), false),
    }
}

/// Takes note of the route: from here on whoever answers answers for it and its cluster.
fn take<'a>(call: &mut Call<'a>, mut selected: Selected<'a>) -> Selected<'a> {
    call.tally.route = Some(selected.route);
    if let Action::Forward(forward) = &selected.route.action {
        selected.target = target(call, forward);
        // What filters change about a header that names it comes too late.
        let header = selected.target.map_or(forward.cluster_header.as_ref(), |target| target.cluster_header.as_ref());
        let id = match header {
            Some(name) => named_by(call, name),
            None => selected.target.map(|target| target.cluster),
        };
        call.tally.cluster = id.and_then(|id| call.root.cluster(id)).cloned();
        if !selected.host.virtual_clusters.is_empty() {
            let fits =
                |cluster: &&VirtualCluster| cluster.headers.iter().all(|one| route::header_matches(one, call.request));
            let found = selected.host.virtual_clusters.iter().find(fits);
            call.tally.filters().virtual_cluster = found.map(|cluster| &*cluster.group);
        }
    }
    call.tally.selected = Some(selected);
    selected
}

/// The cluster that a header of the request names, or one of its pseudo headers.
pub(super) fn named_by(call: &Call<'_>, header: &str) -> Option<ClusterId> {
    match header {
        name if route::is_pseudo(name) => call.root.named(&route::header_value(name, call.request)?),
        name => call.root.named(call.request.headers.get(name)?),
    }
}

/// Chooses among a route's targets.
fn target<'a>(call: &mut Call<'a>, forward: &'a Forward) -> Option<&'a WeightedCluster> {
    let targets = match forward.targets.as_slice() {
        [] => return None,
        [only] => return Some(only),
        targets => targets,
    };
    let wanted = match &forward.choice {
        TargetChoice::Random => None,
        TargetChoice::Header(name) => call
            .request
            .headers
            .get(name)
            .and_then(|value| std::str::from_utf8(value).ok())
            .and_then(|text| text.parse::<u64>().ok()),
        TargetChoice::Hash => hash::of(call, &forward.hash, &mut Vec::new()),
    };
    let weights = targets.iter().map(|target| target.weight);
    match wanted {
        None => balance::weighted(weights, &call.worker.rng).map(|index| &targets[index]),
        Some(number) => {
            let mut at = number % weights.map(u64::from).sum::<u64>().max(1);
            targets.iter().find(|target| match at.checked_sub(u64::from(target.weight)) {
                None => true,
                Some(rest) => {
                    at = rest;
                    false
                }
            })
        }
    }
}
