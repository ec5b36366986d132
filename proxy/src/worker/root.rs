//! A worker's view of one configuration: the shared tree and the worker's own state beside it.

use crate::{
    balance::Rng,
    config::{ClusterId, Root},
    pool::ClusterState,
};
use std::{cell::OnceCell, collections::HashMap, rc::Rc, sync::Arc};

/// A root with this worker's state of its clusters. A request keeps the one on which it began.
#[derive(Debug)]
pub struct WorkerRoot {
    root: Arc<Root>,
    clusters: Vec<Option<Rc<ClusterState>>>,
    /// Made when a name is first asked for.
    names: OnceCell<HashMap<Arc<str>, ClusterId>>,
}

impl WorkerRoot {
    /// Takes up a new root. State of clusters that did not change stays as it is; state of changed ones is carried over; what is
    /// gone is closed.
    pub fn new(root: Arc<Root>, before: Option<&WorkerRoot>, workers: u32, rng: &Rng) -> Self {
        let old = |index: usize| before.and_then(|before| before.clusters.get(index)).and_then(Option::as_ref);
        let clusters: Vec<_> = root
            .clusters
            .iter()
            .enumerate()
            .map(|(index, cluster)| {
                let cluster = cluster.as_ref()?;
                Some(match old(index) {
                    Some(state) if Arc::ptr_eq(state.config(), cluster) => state.clone(),
                    state => Rc::new(ClusterState::new(cluster.clone(), state.map(Rc::as_ref), workers, rng)),
                })
            })
            .collect();
        for (index, state) in before.iter().flat_map(|before| before.clusters.iter().enumerate()) {
            if let (Some(state), None) = (state, clusters.get(index).and_then(Option::as_ref)) {
                state.retire();
            }
        }
        Self { root, clusters, names: OnceCell::new() }
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
