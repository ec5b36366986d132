//! What is counted of resources: how often they came and were taken or refused, how many are in force.

use super::{Kind, State};
use crate::telemetry::counters::{Counters, Number, Scope};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Updates of one subscription.
#[derive(Debug, Clone)]
struct Updates {
    attempt: Arc<Number>,
    success: Arc<Number>,
    /// Streams that broke are not counted by resource; the number is there since those who look for it want one.
    _failure: Arc<Number>,
    rejected: Arc<Number>,
}

impl Updates {
    fn new(counters: &Counters, scopes: &[Scope<'_>], before: &str) -> Self {
        let of = |name: &str| counters.counter(scopes, &format!("{before}update_{name}"));
        Self { attempt: of("attempt"), success: of("success"), _failure: of("failure"), rejected: of("rejected") }
    }

    fn count(&self, taken: bool) {
        self.attempt.add(1);
        if taken { &self.success } else { &self.rejected }.add(1);
    }
}

/// Resources of a kind that come without being named.
#[derive(Debug)]
struct Managed {
    added: Arc<Number>,
    modified: Arc<Number>,
    removed: Arc<Number>,
    active: Arc<Number>,
    warming: Arc<Number>,
    updates: Updates,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Figures {
    clusters: Managed,
    listeners: Managed,
    created: [Arc<Number>; 2],
    named: BTreeMap<(Kind, String), Updates>,
}

impl Figures {
    /// Nothing counted yet.
    pub(super) fn new(counters: &Counters) -> Self {
        let counter = |name: &str| counters.counter(&[], name);
        let gauge = |name: &str| counters.gauge(&[], name);
        Self {
            clusters: Managed {
                added: counter("cluster_manager.cluster_added"),
                modified: counter("cluster_manager.cluster_modified"),
                removed: counter("cluster_manager.cluster_removed"),
                active: gauge("cluster_manager.active_clusters"),
                warming: gauge("cluster_manager.warming_clusters"),
                updates: Updates::new(counters, &[], "cluster_manager.cds."),
            },
            listeners: Managed {
                added: counter("listener_manager.listener_added"),
                modified: counter("listener_manager.listener_modified"),
                removed: counter("listener_manager.listener_removed"),
                active: gauge("listener_manager.total_listeners_active"),
                warming: gauge("listener_manager.total_listeners_warming"),
                updates: Updates::new(counters, &[], "listener_manager.lds."),
            },
            created: ["success", "failure"].map(|how| counter(&format!("listener_manager.listener_create_{how}"))),
            named: BTreeMap::new(),
        }
    }

    fn managed(&self, kind: Kind) -> Option<&Managed> {
        match kind {
            Kind::Cluster => Some(&self.clusters),
            Kind::Listener => Some(&self.listeners),
            Kind::Endpoints | Kind::Secret | Kind::Routes | Kind::Extension => None,
        }
    }

    /// A resource came, and was taken or refused; `known` before or not.
    pub(super) fn came(&self, kind: Kind, known: bool, taken: bool) {
        if let Some(managed) = self.managed(kind).filter(|_| taken) {
            if known { &managed.modified } else { &managed.added }.add(1);
        }
        if kind == Kind::Listener {
            let [success, failure] = &self.created;
            if taken { success } else { failure }.add(1);
        }
    }

    /// A resource is gone.
    pub(super) fn went(&self, kind: Kind) {
        if let Some(managed) = self.managed(kind) {
            managed.removed.add(1);
        }
    }
}

impl State {
    /// Counts a response: those that are named by what it holds, the others as a whole.
    pub(super) fn count_update(&mut self, kind: Kind, names: &BTreeSet<String>, refused: &BTreeSet<String>) {
        if let Some(managed) = self.figures.managed(kind) {
            return managed.updates.count(refused.is_empty());
        }
        for name in names {
            let key = (kind, name.clone());
            if !self.figures.named.contains_key(&key) {
                let updates = self.updates_of(kind, name);
                self.figures.named.insert(key.clone(), updates);
            }
            if let Some(updates) = self.figures.named.get(&key) {
                updates.count(!refused.contains(name));
            }
        }
    }

    fn updates_of(&self, kind: Kind, name: &str) -> Updates {
        let counters = &self.context.counters;
        let resource = |kind| Scope { kind, label: "envoy_xds_resource_name", value: name };
        match kind {
            Kind::Endpoints => {
                let user = self.users.get(name).and_then(|users| self.clusters.get(users.first()?));
                let user = user.map_or(name, |entry| entry.form.template.observability_name());
                Updates::new(counters, &[Scope::cluster(user)], "")
            }
            Kind::Routes => {
                let prefix = self.parts().find_map(|parts| parts.prefixes.get(name));
                let table = Scope { kind: "rds.", label: "envoy_rds_route_config", value: name };
                let prefix = prefix.map_or("", String::as_str);
                Updates::new(counters, &[Scope::http(prefix), table], "")
            }
            Kind::Extension => Updates::new(counters, &[resource("extension_config_discovery.http_filter.")], ""),
            Kind::Secret | Kind::Cluster | Kind::Listener => Updates::new(counters, &[resource("sds.")], ""),
        }
    }

    /// Forgets what was counted of resources that nobody wants any more.
    pub(super) fn forget_updates(&mut self, kind: Kind, name: &str) {
        self.figures.named.remove(&(kind, name.to_owned()));
    }

    /// Brings the numbers of resources in force up to date.
    pub fn refresh_figures(&self) {
        let Figures { clusters, listeners, .. } = &self.figures;
        let count = |all: usize, active: usize, managed: &Managed| {
            managed.active.set(active as u64);
            managed.warming.set(all.saturating_sub(active) as u64);
        };
        count(self.clusters.len(), self.clusters().count(), clusters);
        count(self.listeners.len(), self.listeners().count(), listeners);
    }
}
