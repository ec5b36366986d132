//! One cluster that is looked after: what is known of its endpoints, and the tasks that find it out.

use super::ejections::Ejections;
use super::machine::Verdict;
use super::probe::Said;
use super::{CHECKS_OF_CLUSTER, Shared, WARMING_LIMIT, names, probe, turns};
use crate::config::{Care, Cluster, ClusterId, ClusterKind, Dns, DnsName, Endpoint, Failed, Health, Report};
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;

thread_local! {
    static NEXT_TASK: Cell<u64> = const { Cell::new(0) };
}

/// A task that ends with its owner. Events carry its number, so that late ones of an ended task are known.
struct Task {
    number: u64,
    handle: AbortHandle,
}

impl Task {
    fn spawn<F: Future<Output = ()> + 'static>(make: impl FnOnce(u64) -> F) -> Self {
        let number = NEXT_TASK.get() + 1;
        NEXT_TASK.set(number);
        Self { number, handle: tokio::task::spawn_local(make(number)).abort_handle() }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

struct Name {
    name: DnsName,
    task: Task,
    /// Something was found out, even if it was that there is nothing.
    known: bool,
    endpoints: Vec<Arc<Endpoint>>,
}

struct Checked {
    endpoint: Arc<Endpoint>,
    task: Task,
    verdict: Option<Verdict>,
    said: Rc<Said>,
}

/// A cluster that is looked after.
pub(super) struct Watched {
    base: Arc<Cluster>,
    care: Arc<Care>,
    /// Of its checks under way.
    slots: Rc<Semaphore>,
    names: Vec<Name>,
    checked: HashMap<SocketAddr, Checked>,
    /// Endpoints that are not configured any more and still found well.
    lingering: Vec<Arc<Endpoint>>,
    ejections: Option<Ejections>,
    /// What workers have; not set before it is warm.
    effective: Option<Arc<Cluster>>,
    deadline: Instant,
    dirty: bool,
}

impl Watched {
    /// Begins to look after a cluster, or goes on with a new form of it.
    pub(super) fn new(
        base: Arc<Cluster>,
        before: Option<Self>,
        shared: &Rc<Shared>,
        reports: &mpsc::Sender<Report>,
    ) -> Self {
        if let Some(before) = before {
            return before.renewed(base, shared, reports);
        }
        let outliers = base.outliers.as_deref().cloned();
        let now = Instant::now();
        let mut watched = Self {
            care: Arc::new(Care::new(outliers.clone(), reports.clone())),
            slots: Rc::new(Semaphore::new(CHECKS_OF_CLUSTER)),
            ejections: outliers.map(|settings| Ejections::new(settings, now)),
            names: Vec::new(),
            checked: HashMap::new(),
            lingering: Vec::new(),
            effective: None,
            deadline: now + WARMING_LIMIT,
            dirty: true,
            base,
        };
        watched.look_up(shared);
        watched.settle(shared);
        watched
    }

    fn renewed(mut self, base: Arc<Cluster>, shared: &Rc<Shared>, reports: &mpsc::Sender<Report>) -> Self {
        if Arc::ptr_eq(&self.base, &base) {
            return self;
        }
        self.dirty = true;
        let outliers = base.outliers.as_deref().cloned();
        if self.care.outliers != outliers {
            let used = self.care.is_used();
            self.care = Arc::new(Care::new(outliers.clone(), reports.clone()));
            if used {
                self.care.note_used();
            }
            self.ejections = outliers.map(|settings| Ejections::new(settings, Instant::now()));
        }
        let same_checks = self.base.checks.len() == base.checks.len()
            && self.base.checks.iter().zip(&base.checks).all(|(old, new)| Arc::ptr_eq(old, new));
        if !same_checks {
            self.checked.clear();
            self.lingering.clear();
        }
        let same_names = match (&self.base.dns, &base.dns) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (old, new) => old.is_none() && new.is_none(),
        };
        self.base = base;
        if !same_names {
            self.look_up(shared);
        }
        self.settle(shared);
        self
    }

    pub(super) fn id(&self) -> ClusterId {
        self.base.id
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// When [`Self::tick`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        let warming = self.effective.is_none().then_some(self.deadline);
        self.ejections.as_ref().and_then(Ejections::due).into_iter().chain(warming).min()
    }

    /// Whether everything was found out once.
    pub(super) fn is_warm(&self) -> bool {
        self.effective.is_some()
            || self.names.iter().all(|name| name.known)
                && self.checked.values().all(|checked| checked.verdict.is_some())
    }

    /// Looks up the names, anew; what was known of the same names is kept until then.
    fn look_up(&mut self, shared: &Rc<Shared>) {
        let Some(dns) = self.base.dns.clone() else {
            self.names.clear();
            return;
        };
        let mut before: Vec<Name> = std::mem::take(&mut self.names);
        let id = self.base.id;
        for name in &dns.names {
            let (shared, dns, text) = (shared.clone(), dns.clone(), name.name.clone());
            let task = Task::spawn(|task| names::look_up(shared, dns, text, id, task));
            let old = before.iter().position(|old| old.name.name == name.name).map(|at| before.swap_remove(at));
            let endpoints = match old {
                Some(old) => old.endpoints.iter().map(|found| Dns::again(name, found)).collect(),
                None => Vec::new(),
            };
            self.names.push(Name { name: name.clone(), task, known: false, endpoints });
        }
    }

    /// Addresses were found.
    pub(super) fn resolved(&mut self, task: u64, addresses: Option<Vec<IpAddr>>, shared: &Rc<Shared>) {
        let logical = self.base.dns.as_ref().is_some_and(|dns| dns.logical);
        let Some(name) = self.names.iter_mut().find(|name| name.task.number == task) else { return };
        let first = !std::mem::replace(&mut name.known, true);
        // What cannot be found out changes nothing.
        if let Some(mut found) = addresses {
            if logical {
                self.all_in_one(task, found, shared);
                self.dirty |= first;
                return;
            }
            let mut have: Vec<IpAddr> = name.endpoints.iter().map(|endpoint| endpoint.address.ip()).collect();
            have.sort();
            found.sort();
            found.dedup();
            if have != found {
                name.endpoints = found.into_iter().map(|ip| Dns::endpoint(&name.name, ip)).collect();
                self.dirty = true;
                self.settle(shared);
            }
        }
        self.dirty |= first;
    }

    /// The same where a name stands for one endpoint, with all its addresses.
    fn all_in_one(&mut self, task: u64, mut found: Vec<IpAddr>, shared: &Rc<Shared>) {
        let Some(name) = self.names.iter_mut().find(|name| name.task.number == task) else { return };
        let before = name.endpoints.first();
        // Answers come in any order: an address that is still among them stays the first, and the others have one order.
        let current = before.map(|endpoint| endpoint.address.ip()).filter(|current| found.contains(current));
        let Some(leader) = current.or(found.first().copied()) else { return };
        found.sort_by_key(|ip| (*ip != leader, *ip));
        found.dedup();
        let Some(made) = Dns::one_endpoint(&name.name, &found, self.base.eyeballs) else { return };
        if before.is_none_or(|old| (old.address, &old.addresses) != (made.address, &made.addresses)) {
            name.endpoints = vec![made];
            self.dirty = true;
            self.settle(shared);
        }
    }

    /// The configured endpoints, by address; the first of those with the same address counts.
    fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        let mut seen = HashSet::new();
        let named = self.names.iter().flat_map(|name| &name.endpoints);
        self.base.endpoints.iter().chain(named).filter(|endpoint| seen.insert(endpoint.address)).cloned().collect()
    }

    /// Checks the endpoints that there are now, and no others.
    fn settle(&mut self, shared: &Rc<Shared>) {
        let endpoints = self.endpoints();
        let current: HashSet<SocketAddr> = endpoints.iter().map(|endpoint| endpoint.address).collect();
        self.lingering.retain(|endpoint| !current.contains(&endpoint.address));
        let lingers =
            !self.base.ignore_health_on_removal && matches!(self.base.kind, ClusterKind::Eds | ClusterKind::Dns);
        for checked in self.checked.values() {
            let address = checked.endpoint.address;
            let well = checked.verdict.is_some_and(|verdict| verdict != Verdict::Unhealthy);
            let known = self.lingering.iter().any(|endpoint| endpoint.address == address);
            if lingers && well && !known && !current.contains(&address) {
                self.lingering.push(checked.endpoint.clone());
            }
        }
        let lingering: HashSet<SocketAddr> = self.lingering.iter().map(|endpoint| endpoint.address).collect();
        self.checked.retain(|address, _| current.contains(address) || lingering.contains(address));
        if let Some(check) = self.base.checks.first() {
            for endpoint in &endpoints {
                if endpoint.check.as_ref().is_some_and(|check| check.disabled) {
                    self.checked.remove(&endpoint.address);
                    continue;
                }
                let (cluster, check, care) = (self.base.clone(), check.clone(), self.care.clone());
                let (shared, slots) = (shared.clone(), self.slots.clone());
                let start = |endpoint: Arc<Endpoint>, said: Rc<Said>| {
                    Task::spawn(|task| probe::watch(shared, cluster, check, endpoint, care, said, slots, task))
                };
                match self.checked.get_mut(&endpoint.address) {
                    Some(checked) => {
                        let same = checked.endpoint.check == endpoint.check && checked.endpoint.tls == endpoint.tls;
                        if !same {
                            checked.task = start(endpoint.clone(), checked.said.clone());
                        }
                        checked.endpoint = endpoint.clone();
                    }
                    None => {
                        let said = Rc::default();
                        let task = start(endpoint.clone(), Rc::clone(&said));
                        let checked = Checked { endpoint: endpoint.clone(), task, verdict: None, said };
                        self.checked.insert(endpoint.address, checked);
                    }
                }
            }
        }
        if let Some(ejections) = &mut self.ejections {
            ejections.set_hosts(current.into_iter().chain(lingering));
        }
        self.tell();
    }

    /// An endpoint was checked.
    pub(super) fn checked(&mut self, task: u64, address: SocketAddr, verdict: Verdict, shared: &Rc<Shared>) {
        let Some(checked) = self.checked.get_mut(&address).filter(|checked| checked.task.number == task) else {
            return;
        };
        if checked.verdict.replace(verdict) != Some(verdict) {
            tracing::info!(cluster = %self.base.name, %address, ?verdict, "a health check has decided");
            self.dirty = true;
            self.tell();
        }
        if verdict == Verdict::Unhealthy {
            let before = self.lingering.len();
            self.lingering.retain(|endpoint| endpoint.address != address);
            if self.lingering.len() != before {
                self.settle(shared);
            }
        } else if let Some(ejections) = &mut self.ejections {
            self.dirty |= ejections.check_passed(address, Instant::now());
            self.write_turns(shared);
        }
    }

    /// An endpoint has said that it is not well: it is out until as many checks as that takes find it well again.
    fn fail(&mut self, address: SocketAddr, shared: &Rc<Shared>) {
        let Some(checked) = self.checked.get_mut(&address) else { return };
        checked.said.failed.set(true);
        checked.said.leaves.set(true);
        let task = checked.task.number;
        if checked.verdict != Some(Verdict::Unhealthy) {
            self.checked(task, address, Verdict::Unhealthy, shared);
        }
    }

    /// Tells how many endpoints checks have found well.
    fn tell(&self) {
        let Some(check) = self.base.checks.first() else { return };
        let with = |wanted: &[Verdict]| {
            let is = |checked: &&Checked| checked.verdict.is_some_and(|verdict| wanted.contains(&verdict));
            self.checked.values().filter(is).count() as u64
        };
        check.stats.healthy.set(with(&[Verdict::Healthy, Verdict::Degraded]));
        check.stats.degraded.set(with(&[Verdict::Degraded]));
    }

    /// A worker has told something.
    pub(super) fn hear(&mut self, report: Report, now: Instant, shared: &Rc<Shared>) {
        if let Report::Unwell { address, .. } = report {
            return self.fail(address, shared);
        }
        let Some(ejections) = &mut self.ejections else { return };
        match report {
            Report::Unwell { .. } => {}
            Report::Consecutive { address, kind, .. } => {
                if ejections.consecutive(address, kind, now, &shared.rng) {
                    tracing::warn!(cluster = %self.base.name, %address, ?kind, "an endpoint is taken out for a while");
                    self.dirty = true;
                }
            }
            Report::Counts { address, answers, way, .. } => ejections.count(address, answers, way),
        }
        self.write_turns(shared);
    }

    /// Writes who was taken out and who came back.
    fn write_turns(&mut self, shared: &Rc<Shared>) {
        if let Some((log, turns)) = self.ejections.as_mut().and_then(Ejections::take_turns) {
            turns::write(&mut shared.outputs.borrow_mut(), log, &self.base.name, &turns);
        }
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, now: Instant, shared: &Rc<Shared>) {
        if let Some(ejections) = &mut self.ejections {
            self.dirty |= ejections.tick(now, &shared.rng);
            self.write_turns(shared);
        }
        self.dirty |= self.effective.is_none() && now >= self.deadline;
    }

    /// The cluster as workers shall have it; `None` or an older form while too little is known.
    pub(super) fn effective(&mut self) -> Option<Arc<Cluster>> {
        if !std::mem::take(&mut self.dirty) && self.effective.is_some() {
            return self.effective.clone();
        }
        if self.is_warm() || Instant::now() >= self.deadline {
            let mut endpoints = self.endpoints();
            endpoints.extend(self.lingering.iter().cloned());
            for endpoint in &mut endpoints {
                let (health, excluded) = self.health(endpoint);
                let failed = self.failed(endpoint);
                if endpoint.health != health || endpoint.excluded != excluded || endpoint.failed != failed {
                    *endpoint = Arc::new(Endpoint { health, excluded, failed, ..(**endpoint).clone() });
                }
            }
            let care = Some(self.care.clone());
            self.effective = Some(Arc::new(Cluster { endpoints, care, ..(*self.base).clone() }));
        }
        self.effective.clone()
    }

    fn is_out(&self, address: SocketAddr) -> bool {
        self.ejections.as_ref().is_some_and(|ejections| ejections.is_out(address))
    }

    fn failed(&self, endpoint: &Endpoint) -> Failed {
        let verdict = self.checked.get(&endpoint.address).and_then(|checked| checked.verdict);
        let check = verdict == Some(Verdict::Unhealthy);
        Failed { check, outlier: self.is_out(endpoint.address), ..endpoint.failed }
    }

    fn health(&self, endpoint: &Endpoint) -> (Health, bool) {
        let out = self.is_out(endpoint.address);
        let checked = self.checked.get(&endpoint.address);
        // Who leaves is no failure of the others.
        let leaves = endpoint.is_excluded() || checked.is_some_and(|checked| checked.said.leaves.get());
        match checked.map(|checked| checked.verdict) {
            // Not checked yet is not well, and counts if the cluster says so.
            Some(None) => (Health::Unhealthy, self.base.balancing.ignore_unchecked),
            Some(Some(Verdict::Unhealthy)) => (Health::Unhealthy, leaves),
            _ if out => (Health::Unhealthy, false),
            Some(Some(Verdict::Degraded)) if endpoint.health == Health::Healthy => (Health::Degraded, false),
            _ => (endpoint.health, false),
        }
    }
}
