//! A worker's view of one configuration: the shared tree and the worker's own state beside it.

use crate::{
    balance::{Peers, Rng},
    config::{ClusterId, Root},
    pool::ClusterState,
};
use std::{cell::OnceCell, collections::HashMap, rc::Rc, sync::Arc};

/// A root with this worker's state of its clusters. A request keeps the one on which it began.
#[derive(Debug)]
pub struct WorkerRoot {
    root: Arc<Root>,
    clusters: Vec<Option<Rc<ClusterState>>>,
    /// The proxies of this one's kind, where they are known.
    peers: Option<Rc<Peers>>,
    /// Made when a name is first asked for.
    names: OnceCell<HashMap<Arc<str>, ClusterId>>,
}

impl WorkerRoot {
    /// Takes up a new root. State of clusters that did not change stays as it is; state of changed ones is carried over; what is
    /// gone is closed.
    pub fn new(root: Arc<Root>, before: Option<&WorkerRoot>, workers: u32, rng: &Rng) -> Self {
        let old = |index: usize| before.and_then(|before| before.clusters.get(index)).and_then(Option::as_ref);
        let renew = |index: usize, peers: Option<&Rc<Peers>>| {
            let cluster = root.clusters.get(index)?.as_ref()?;
            Some(match old(index) {
                Some(state) if Arc::ptr_eq(state.config(), cluster) => {
                    peers.into_iter().for_each(|peers| state.peers_changed(peers));
                    state.clone()
                }
                state => {
                    let state = state.map(Rc::as_ref);
                    Rc::new(ClusterState::new(cluster.clone(), state, peers.cloned(), workers, rng))
                }
            })
        };
        // The cluster of proxies comes first: the others look at it, and it looks at none.
        let home = root.home.as_ref().map(|home| (home.cluster.0 as usize, home));
        let of_home = home.map(|(index, _)| (index, renew(index, None)));
        let peers = home.map(|(index, home)| {
            let state = of_home.as_ref().and_then(|(_, state)| state.as_ref());
            let same = |before: &&WorkerRoot| {
                let then = before.clusters.get(index).and_then(Option::as_ref);
                before.root.home.as_ref() == Some(home) && then.map(Rc::as_ptr) == state.map(Rc::as_ptr)
            };
            let known = before.filter(same).and_then(|before| before.peers.clone());
            known.unwrap_or_else(|| Rc::new(state.map_or_else(|| Peers::new(&[], home), |state| state.peers(home))))
        });
        let clusters: Vec<_> = (0..root.clusters.len())
            .map(|index| match &of_home {
                Some((home, state)) if *home == index => state.clone(),
                _ => renew(index, peers.as_ref()),
            })
            .collect();
        for (index, state) in before.iter().flat_map(|before| before.clusters.iter().enumerate()) {
            if let (Some(state), None) = (state, clusters.get(index).and_then(Option::as_ref)) {
                state.retire();
            }
        }
        Self { root, clusters, peers, names: OnceCell::new() }
    }

    /// The shared tree.
    pub fn config(&self) -> &Arc<Root> {
        &self.root
    }

    /// The state of a cluster, if it exists.
    pub fn cluster(&self, id: ClusterId) -> Option<&Rc<ClusterState>> {
        self.clusters.get(id.0 as usize).and_then(Option::as_ref)
    }

    /// The cluster that a request names.
    pub fn named(&self, name: &[u8]) -> Option<ClusterId> {
        let all = || self.clusters().map(|cluster| (cluster.config().name.clone(), cluster.config().id)).collect();
        self.names.get_or_init(all).get(std::str::from_utf8(name).ok()?).copied()
    }

    /// Every cluster's state.
    pub fn clusters(&self) -> impl Iterator<Item = &Rc<ClusterState>> {
        self.clusters.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::PickContext;
    use crate::config::{Cluster, ClusterKind, Endpoint, Home, LbPolicy, Locality, ZoneChanges};
    use std::collections::BTreeSet;

    fn cluster(id: u32, zones: &str) -> Arc<Cluster> {
        let endpoint = |(zone, port): (char, u16)| {
            let locality = Arc::new(Locality::of(("", &zone.to_string(), "")));
            Arc::new(Endpoint { locality, ..Endpoint::new(([127, 0, 0, 1], port).into()) })
        };
        let endpoints = zones.chars().zip(1..).map(endpoint).collect();
        let policy = LbPolicy::RoundRobin;
        Arc::new(Cluster { endpoints, policy, ..Cluster::new(ClusterId(id), "c", ClusterKind::Static) })
    }

    fn zones_of(root: &WorkerRoot, rng: &Rng) -> String {
        let state = root.cluster(ClusterId(0)).unwrap();
        let picked = (0..200).filter_map(|_| state.pick(rng, &PickContext::to(None), |_| false));
        picked.map(|host| host.endpoint().locality.zone.to_string()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    #[test]
    fn root_when_the_cluster_of_proxies_changes_then_clusters_that_stay_the_same_follow_it() {
        let rng = Rng::new(1);
        let upstream = cluster(0, "aaabbb");
        let home = Home {
            cluster: ClusterId(1),
            locality: Some(Locality::of(("", "b", ""))),
            changes: ZoneChanges::default(),
        };
        let root = |proxies: Option<Arc<Cluster>>, changes| {
            let home = Some(Home { changes, ..home.clone() });
            Arc::new(Root { clusters: vec![Some(upstream.clone()), proxies], home, ..Root::default() })
        };
        let (even, uneven) = (cluster(1, "ab"), cluster(1, "aab"));
        let none = WorkerRoot::new(root(None, ZoneChanges::default()), None, 1, &rng);
        assert_eq!(zones_of(&none, &rng), "ab", "nothing is known of the proxies yet");
        let first = WorkerRoot::new(root(Some(even.clone()), ZoneChanges::default()), Some(&none), 1, &rng);
        assert_eq!(zones_of(&first, &rng), "b");
        assert!(Rc::ptr_eq(first.cluster(ClusterId(0)).unwrap(), none.cluster(ClusterId(0)).unwrap()));
        let same = WorkerRoot::new(root(Some(even.clone()), ZoneChanges::default()), Some(&first), 1, &rng);
        assert!(first.peers.is_some() && first.peers.as_ref().map(Rc::as_ptr) == same.peers.as_ref().map(Rc::as_ptr));
        let more = ZoneChanges { min_size: Some(7), ..ZoneChanges::default() };
        let changed = WorkerRoot::new(root(Some(even), more), Some(&same), 1, &rng);
        assert_eq!(zones_of(&changed, &rng), "ab");
        let last = WorkerRoot::new(root(Some(uneven), ZoneChanges::default()), Some(&changed), 1, &rng);
        assert_eq!(zones_of(&last, &rng), "b", "half of the endpoints for a third of the proxies");
        let gone = WorkerRoot::new(root(None, ZoneChanges::default()), Some(&last), 1, &rng);
        assert_eq!(zones_of(&gone, &rng), "ab");
    }
}
