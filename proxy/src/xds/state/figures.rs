//! What is counted of resources: how often they came and were taken or refused, how many are in force.

use super::{Kind, State};
use crate::balance::hash::xx_hash;
use crate::telemetry::counters::{Counters, Number, Scope};
use crate::xds::source::SourceId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

/// Updates of one subscription.
#[derive(Debug, Clone)]
struct Updates {
    attempt: Arc<Number>,
    success: Arc<Number>,
    failure: Arc<Number>,
    rejected: Arc<Number>,
    late: Arc<Number>,
    /// When the last one was taken, in milliseconds since the Unix epoch.
    time: Arc<Number>,
    /// A number for its version.
    version: Arc<Number>,
    /// How often it came in another form; only of what is read anew then.
    reloads: Option<Arc<Number>>,
    /// How often its files changed and could not be used; only of secrets.
    key_rotation_failed: Option<Arc<Number>>,
}

impl Updates {
    fn new(counters: &Counters, scopes: &[Scope<'_>], before: &str) -> Self {
        let of = |name: &str| counters.counter(scopes, &format!("{before}update_{name}"));
        Self {
            attempt: of("attempt"),
            success: of("success"),
            failure: of("failure"),
            rejected: of("rejected"),
            late: counters.counter(scopes, &format!("{before}init_fetch_timeout")),
            time: counters.gauge(scopes, &format!("{before}update_time")),
            version: counters.gauge(scopes, &format!("{before}version")),
            reloads: None,
            key_rotation_failed: None,
        }
    }

    fn rotating(counters: &Counters, scopes: &[Scope<'_>]) -> Self {
        let key_rotation_failed = Some(counters.counter(scopes, "key_rotation_failed"));
        Self { key_rotation_failed, ..Self::new(counters, scopes, "") }
    }

    fn reloading(counters: &Counters, scopes: &[Scope<'_>]) -> Self {
        let reloads = Some(counters.counter(scopes, "config_reload"));
        Self { reloads, ..Self::new(counters, scopes, "") }
    }

    fn count(&self, taken: bool, version: &str) {
        self.attempt.add(1);
        if taken { &self.success } else { &self.rejected }.add(1);
        if taken {
            self.version.set(xx_hash(version.as_bytes(), 0));
        }
        if taken && let Ok(since) = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
            self.time.set(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        }
    }

    /// The stream broke on which they come, or could not be had, or what came was no response at all.
    fn lost(&self) {
        self.attempt.add(1);
        self.failure.add(1);
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
    /// Listeners that were made, and those that workers could not make: there are none, since sockets are bound before a listener is
    /// taken.
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

    /// Resources of these kinds are asked for from now on.
    pub(super) fn begin<'a>(&self, kinds: impl Iterator<Item = &'a Kind>) {
        for managed in kinds.filter_map(|kind| self.managed(*kind)) {
            managed.updates.attempt.add(1);
        }
    }

    fn managed(&self, kind: Kind) -> Option<&Managed> {
        match kind {
            Kind::Cluster => Some(&self.clusters),
            Kind::Listener => Some(&self.listeners),
            Kind::Runtime | Kind::Endpoints | Kind::Secret | Kind::Routes | Kind::Extension => None,
        }
    }

    /// A resource came, and was taken or refused; `known` before or not.
    pub(super) fn came(&self, kind: Kind, known: bool, taken: bool) {
        if let Some(managed) = self.managed(kind).filter(|_| taken) {
            if known { &managed.modified } else { &managed.added }.add(1);
        }
        if kind == Kind::Listener {
            let [success, _failure] = &self.created;
            success.add(u64::from(taken));
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
    pub(super) fn count_update(
        &mut self,
        kind: Kind,
        version: &str,
        names: &BTreeSet<String>,
        refused: &BTreeSet<String>,
    ) {
        if let Some(managed) = self.figures.managed(kind) {
            return managed.updates.count(refused.is_empty(), version);
        }
        for name in names {
            let taken = !refused.contains(name);
            self.subscriptions(kind, name, |updates| updates.count(taken, version));
        }
    }

    /// What is counted of a resource: under its own name, or under that of each cluster whose endpoints it has.
    fn subscriptions(&mut self, kind: Kind, name: &str, count: impl Fn(&Updates)) {
        if kind != Kind::Endpoints {
            return count(&self.updates_known(kind, name));
        }
        for cluster in self.users.get(name).cloned().unwrap_or_default() {
            count(&self.updates_known(kind, &cluster));
        }
    }

    fn updates_of(&self, kind: Kind, name: &str) -> Updates {
        let counters = &self.context.counters;
        let resource = |kind| Scope { kind, label: "envoy_xds_resource_name", value: name };
        match kind {
            Kind::Endpoints => {
                let user = self.clusters.get(name);
                let user = user.map_or(name, |entry| entry.form.template.observability_name());
                Updates::new(counters, &[Scope::cluster(user)], "")
            }
            Kind::Routes => {
                let prefix = self.parts().find_map(|parts| parts.prefixes.get(name));
                let table = Scope { kind: "rds.", label: "envoy_rds_route_config", value: name };
                let prefix = prefix.map_or("", String::as_str);
                Updates::reloading(counters, &[Scope::http(prefix), table])
            }
            Kind::Extension => Updates::reloading(counters, &[resource("extension_config_discovery.http_filter.")]),
            // All layers of the runtime are counted together, as in Envoy.
            Kind::Runtime => Updates::new(counters, &[], "runtime."),
            Kind::Secret | Kind::Cluster | Kind::Listener => Updates::rotating(counters, &[resource("sds.")]),
        }
    }

    /// Counts that the stream of a source broke or could not be had, or that a file holds no response: each subscription that it carries
    /// has failed once more.
    pub fn count_lost(&mut self, source: SourceId, kinds: &[Kind]) {
        for kind in kinds {
            if let Some(managed) = self.figures.managed(*kind) {
                managed.updates.lost();
                continue;
            }
            for name in self.wanted_from(*kind, source) {
                self.subscriptions(*kind, &name, Updates::lost);
            }
        }
    }

    /// Counts that a response has no such secret, though it is the whole of a file that should have it.
    pub fn count_missing_secret(&mut self, name: &str) {
        self.subscriptions(Kind::Secret, name, |updates| updates.count(false, ""));
    }

    /// Counts that files of a secret have changed and cannot be used.
    pub(super) fn count_failed_rotation(&mut self, name: &str) {
        self.subscriptions(Kind::Secret, name, |updates| {
            updates.key_rotation_failed.iter().for_each(|failed| failed.add(1));
        });
    }

    /// Counts that a resource came in another form, where that is counted.
    pub(super) fn count_reload(&mut self, kind: Kind, name: &str) {
        if matches!(kind, Kind::Routes | Kind::Extension)
            && let Some(reloads) = self.updates_known(kind, name).reloads
        {
            reloads.add(1);
        }
    }

    /// Counts that something was waited for too long.
    pub(super) fn count_late(&mut self, kind: Kind, name: &str) {
        match self.figures.managed(kind) {
            Some(managed) => managed.updates.late.add(1),
            None => self.subscriptions(kind, name, |updates| updates.late.add(1)),
        }
    }

    /// What is counted of a subscription, which begins to be counted with its first attempt: to ask.
    fn updates_known(&mut self, kind: Kind, name: &str) -> Updates {
        let key = (kind, name.to_owned());
        if let Some(known) = self.figures.named.get(&key) {
            return known.clone();
        }
        let updates = self.updates_of(kind, name);
        updates.attempt.add(1);
        self.figures.named.insert(key, updates.clone());
        updates
    }

    /// Forgets what was counted of resources that nobody wants any more.
    pub(super) fn forget_updates(&mut self, kind: Kind, name: &str) {
        self.figures.named.remove(&(kind, name.to_owned()));
    }

    /// Brings the numbers of resources in force up to date.
    pub fn refresh_figures(&self) {
        let Figures { clusters, listeners, .. } = &self.figures;
        let count = |active: usize, warming: usize, managed: &Managed| {
            managed.active.set(active as u64);
            managed.warming.set(warming as u64);
        };
        let waits = self.clusters.values().filter(|entry| entry.since.is_some()).count();
        count(self.clusters().count(), waits, clusters);
        let waits = self.listeners.values().filter(|entry| entry.since.is_some()).count();
        count(self.listeners().count(), waits, listeners);
    }
}
