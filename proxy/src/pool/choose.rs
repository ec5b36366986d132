//! Where a request or a connection goes: an endpoint, and whose it is. Some clusters stand for others, one after the other
//! (`envoy.clusters.aggregate`): their endpoints' priorities are lined up, and load is spread over them by health as within one
//! cluster. All else is the business of the one whose endpoint was chosen.

use super::{ClusterState, Host};
use crate::{
    balance::{self, Counts, Level, PickContext, Rng},
    config::{ClusterId, ClusterKind, Spread},
};
use std::rc::Rc;

/// Priorities that are lined up at most; further ones get nothing.
const MAX_LEVELS: usize = 128;

/// What was chosen.
#[derive(Debug)]
pub struct Chosen {
    /// Whose endpoint it is.
    pub cluster: Rc<ClusterState>,
    /// The endpoint.
    pub host: Rc<Host>,
    /// Its priority, among all that were lined up.
    pub priority: u32,
}

/// A priority of one of several clusters.
struct Member {
    cluster: Rc<ClusterState>,
    priority: u32,
    counts: Counts,
    spread: Spread,
}

/// The state of a cluster by its index, if there is one.
pub type Find<'a> = &'a dyn Fn(ClusterId) -> Option<Rc<ClusterState>>;

impl ClusterState {
    /// Chooses an endpoint; one that was `tried` only when there is nobody else, and none of the priorities that are `passed_over`
    /// (one bit each). Other clusters are found by `find`.
    pub fn choose(
        self: &Rc<Self>,
        find: Find<'_>,
        rng: &Rng,
        context: &PickContext<'_>,
        passed_over: u128,
        tried: impl Fn(&Host) -> bool,
    ) -> Option<Chosen> {
        if self.config().kind != ClusterKind::Aggregate {
            let host = match passed_over {
                0 => self.pick(rng, context, tried),
                passed_over => self.pick_passing_over(passed_over, rng, context, tried),
            }?;
            let priority = host.endpoint().priority;
            return Some(Chosen { cluster: self.clone(), host, priority });
        }
        let mut members = self.members(find);
        for (index, member) in members.iter_mut().enumerate() {
            if passed_over & (1 << index) != 0 {
                member.counts = Counts::default();
            }
        }
        let counts: Vec<(Counts, Spread)> = members.iter().map(|member| (member.counts, member.spread)).collect();
        let (at, degraded) = balance::choose_priority(&counts, &self.config().balancing, rng)?;
        let Member { cluster, priority, .. } = members.swap_remove(at);
        let host = cluster.pick_of_level(Level { priority, degraded }, rng, context, tried)?;
        Some(Chosen { cluster, host, priority: at as u32 })
    }

    /// Whether an endpoint of another priority than these (one bit each) can serve.
    pub fn can_pass_over(&self, find: Find<'_>, priorities: u128, rng: &Rng) -> bool {
        match self.config().kind {
            ClusterKind::OriginalDst => false,
            ClusterKind::Aggregate => {
                let members = self.members(find);
                members.iter().enumerate().any(|(at, member)| priorities & (1 << at) == 0 && member.counts.has_usable())
            }
            ClusterKind::Static | ClusterKind::Eds | ClusterKind::Dns => self.without(priorities, rng).has_usable(),
        }
    }

    /// Whether a hash may decide about the endpoint.
    pub fn looks_at_hashes(&self, find: Find<'_>) -> bool {
        match self.config().kind {
            ClusterKind::Aggregate => self.members(find).iter().any(|member| member.cluster.policy().is_hashed()),
            _ => self.policy().is_hashed(),
        }
    }

    /// The priorities of the clusters that this one stands for, those without endpoints left out. A cluster that is not there, or
    /// not yet, has none; nor has one that stands for others itself, as in Envoy, or one of original destinations.
    fn members(&self, find: Find<'_>) -> Vec<Member> {
        let mut members = Vec::new();
        for cluster in self.config().members.iter().filter_map(|id| find(*id)) {
            let own = cluster.counts().iter().enumerate().filter(|(_, counts)| !counts.is_empty());
            members.extend(own.map(|(priority, counts)| Member {
                cluster: cluster.clone(),
                priority: priority as u32,
                counts: *counts,
                spread: cluster.config().spread,
            }));
        }
        members.truncate(MAX_LEVELS);
        members
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Cluster, Endpoint, Health};
    use std::{collections::HashMap, sync::Arc};

    /// Clusters with endpoints of these priorities and healths; each has its own network.
    fn clusters(all: &[(u32, &[(u32, Health)])]) -> HashMap<ClusterId, Rc<ClusterState>> {
        let state = |(id, endpoints): &(u32, &[(u32, Health)])| {
            let endpoint = |(port, (priority, health)): (usize, &(u32, Health))| {
                let address = ([10, 0, 0, *id as u8], port as u16 + 1).into();
                Arc::new(Endpoint { priority: *priority, health: *health, ..Endpoint::new(address) })
            };
            let cluster = Cluster {
                endpoints: endpoints.iter().enumerate().map(endpoint).collect(),
                ..Cluster::new(ClusterId(*id), format!("c{id}"), ClusterKind::Static)
            };
            (ClusterId(*id), Rc::new(ClusterState::new(Arc::new(cluster), None, None, 1, &Rng::new(1))))
        };
        all.iter().map(state).collect()
    }

    fn aggregate(members: &[u32]) -> Rc<ClusterState> {
        let members = members.iter().map(|id| ClusterId(*id)).collect();
        let cluster = Cluster { members, ..Cluster::new(ClusterId(0), "all", ClusterKind::Aggregate) };
        Rc::new(ClusterState::new(Arc::new(cluster), None, None, 1, &Rng::new(1)))
    }

    /// How often of a thousand times each cluster and priority is chosen.
    fn shares(
        members: &[u32],
        clusters: &HashMap<ClusterId, Rc<ClusterState>>,
        passed_over: u128,
    ) -> HashMap<(u32, u32), u32> {
        let (state, rng, mut found) = (aggregate(members), Rng::new(7), HashMap::new());
        for _ in 0..1000 {
            let find = |id| clusters.get(&id).cloned();
            let chosen = state.choose(&find, &rng, &PickContext::to(None), passed_over, |_| false);
            if let Some(Chosen { cluster, host, .. }) = chosen {
                *found.entry((cluster.config().id.0, host.endpoint().priority)).or_default() += 1;
            }
        }
        found
    }

    #[test]
    fn aggregate_when_members_are_unwell_then_load_goes_on_as_between_priorities() {
        use Health::{Healthy, Unhealthy};
        let all = clusters(&[
            (1, &[(0, Healthy), (0, Unhealthy)]),
            (2, &[(0, Unhealthy), (1, Healthy)]),
            (3, &[]),
            (4, &[(0, Healthy)]),
        ]);
        assert_eq!(shares(&[4, 1], &all, 0), HashMap::from([((4, 0), 1000)]), "the first can take all");
        // Half of the first takes 70 of 100; what is nobody's, or not there, takes nothing.
        let found = shares(&[1, 3, 9, 2, 4], &all, 0);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!((650..750).contains(&found[&(1, 0)]) && (250..350).contains(&found[&(2, 1)]), "{found:?}");
        assert_eq!(
            shares(&[2, 4], &all, 0),
            HashMap::from([((2, 1), 1000)]),
            "its own second priority comes before others"
        );
        assert_eq!(shares(&[3, 9], &all, 0), HashMap::new());
    }

    #[test]
    fn aggregate_when_a_priority_is_nearly_gone_then_what_it_still_gets_goes_to_who_is_well() {
        use Health::{Healthy, Unhealthy};
        let nearly: Vec<(u32, Health)> = (0..10)
            .map(|at| (0, if at == 0 { Healthy } else { Unhealthy }))
            .chain((0..10).map(|_| (1, Healthy)))
            .collect();
        let all = clusters(&[(1, &nearly)]);
        let (state, rng, mut unwell) = (aggregate(&[1]), Rng::new(3), 0);
        for _ in 0..1000 {
            let chosen = state.choose(&|id| all.get(&id).cloned(), &rng, &PickContext::to(None), 0, |_| false).unwrap();
            unwell += u32::from(chosen.host.endpoint().health == Unhealthy);
        }
        assert_eq!(unwell, 0, "the cluster as a whole is not in panic");
    }

    #[test]
    fn aggregate_when_some_are_degraded_then_healthy_ones_of_others_come_before_them() {
        use Health::{Degraded, Healthy, Unhealthy};
        let all = clusters(&[
            (1, &[(0, Healthy), (0, Degraded)]),
            (2, &[(0, Healthy)]),
            (3, &[(0, Degraded), (0, Degraded)]),
            (4, &[(0, Unhealthy)]),
        ]);
        let degraded = |members: &[u32]| {
            let (state, rng) = (aggregate(members), Rng::new(5));
            let choose =
                |_| state.choose(&|id| all.get(&id).cloned(), &rng, &PickContext::to(None), 0, |_| false).unwrap();
            (0..1000).map(choose).filter(|chosen| chosen.host.endpoint().health == Degraded).count()
        };
        assert_eq!(degraded(&[1, 2]), 0);
        assert_eq!(degraded(&[4, 3]), 1000, "there is nobody else");
    }

    #[test]
    fn aggregate_when_priorities_are_passed_over_then_others_are_chosen_while_there_are_some() {
        use Health::Healthy;
        let all = clusters(&[(1, &[(0, Healthy), (1, Healthy)]), (4, &[(0, Healthy)])]);
        assert_eq!(shares(&[1, 4], &all, 0b1), HashMap::from([((1, 1), 1000)]));
        assert_eq!(shares(&[1, 4], &all, 0b11), HashMap::from([((4, 0), 1000)]));
        let (state, find, rng) = (aggregate(&[1, 4]), |id: ClusterId| all.get(&id).cloned(), Rng::new(1));
        assert!(state.can_pass_over(&find, 0b11, &rng) && !state.can_pass_over(&find, 0b111, &rng));
    }
}
