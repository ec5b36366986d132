//! A worker's state of one cluster: its hosts, its balancer, its circuit breakers.

use super::{
    Host, Outcome,
    breakers::{Count, Overflow, Place, Shared, Ticket},
};
use crate::{
    balance::{Balancer, Counts, Level, Peers, PickContext, Rng, Zones},
    config::{
        Cluster, ClusterKind, Endpoint, Health, Home, LbPolicy, Limits, OutlierDetection, Priority, Track,
        UpstreamProtocol,
    },
    telemetry::stats::{ClusterStats, PublishedCluster},
};
use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::Context,
    time::Instant,
};

/// Original destinations that a cluster remembers; idle ones go first.
const MAX_DYNAMIC: usize = 1024;

/// Balancers without some of the priorities that a cluster remembers.
const MAX_PARTIAL: usize = 8;

/// A worker's state of one cluster at one version of it.
#[derive(Debug)]
pub struct ClusterState {
    config: Arc<Cluster>,
    workers: u32,
    shared: Rc<Shared>,
    high: Rc<Shared>,
    hosts: Vec<Rc<Host>>,
    balancer: Balancer,
    /// The proxies of this one's kind, where a zone may be preferred.
    peers: RefCell<Option<Rc<Peers>>>,
    /// Balancers without some priorities (one bit each), for retries; made when they are needed.
    partial: RefCell<Vec<(u128, Rc<Balancer>)>>,
    /// Balancers over one level alone, for clusters that this one is a member of; made when they are needed, and at most two a
    /// priority.
    levels: RefCell<HashMap<Level, Rc<Balancer>>>,
    dynamic: Rc<RefCell<HashMap<SocketAddr, Rc<Host>>>>,
    published: Arc<PublishedCluster>,
}

impl ClusterState {
    /// The state of a cluster; what it had before (counts, hosts with their connections) is carried over. With `peers` it prefers
    /// endpoints nearby, as configured.
    pub fn new(
        config: Arc<Cluster>,
        before: Option<&ClusterState>,
        peers: Option<Rc<Peers>>,
        workers: u32,
        rng: &Rng,
    ) -> Self {
        let old: HashMap<SocketAddr, &Rc<Host>> =
            before.iter().flat_map(|state| &state.hosts).map(|host| (host.address(), host)).collect();
        let old_addresses: HashSet<SocketAddr> = old.keys().copied().collect();
        let (shared, high, dynamic) = match before {
            Some(before) => (before.shared.clone(), before.high.clone(), before.dynamic.clone()),
            None => {
                let stats = Arc::<ClusterStats>::default();
                (Shared::new(stats.clone(), Priority::Default), Shared::new(stats, Priority::High), <_>::default())
            }
        };
        let hosts: Vec<Rc<Host>> = config
            .endpoints
            .iter()
            .map(|endpoint| match old.get(&endpoint.address).copied() {
                Some(host) if Arc::ptr_eq(&host.endpoint, endpoint) => host.clone(),
                Some(host) if same_connection(host, endpoint) => Rc::new(host.renewed(endpoint.clone())),
                _ => Rc::new(Host::new(endpoint.clone(), shared.stats.clone())),
            })
            .collect();
        for (address, host) in old {
            match hosts.iter().find(|new| new.address() == address && same_connection(new, &host.endpoint)) {
                None => host.retire(),
                Some(new) => {
                    let well = |host: &Host| host.endpoint.health != Health::Unhealthy;
                    if well(host) && !well(new) {
                        new.drain();
                    }
                    if config.close_on_failure
                        && new.endpoint.failed.is_observed()
                        && !host.endpoint.failed.is_observed()
                    {
                        new.lose();
                    }
                }
            }
        }
        let zones = peers.as_deref().map(|peers| Zones { peers, stats: &shared.stats });
        let balancer = Balancer::new(&hosts, config.policy, &config.balancing, config.spread, zones, rng, None);
        tell_subsets(&balancer, before.map(|before| &before.balancer), &shared.stats);
        if config.track != Track::default() {
            shared.stats.tracked.get_or_init(Box::default);
        }
        if old_addresses != hosts.iter().map(|host| host.address()).collect::<HashSet<_>>() {
            shared.stats.membership_change.add(1);
            if config.balancing.drain_on_change {
                hosts.iter().for_each(|host| host.drain());
            }
        }
        let workers = workers.max(1);
        let published = Arc::new(PublishedCluster {
            config: config.clone(),
            stats: shared.stats.clone(),
            table: balancer.table_size(),
            subsets: balancer.subsets().count() as u64,
            hosts: hosts.iter().map(|host| (host.endpoint.clone(), host.stats().clone())).collect(),
            workers,
        });
        let (peers, partial, levels) = (RefCell::new(peers), RefCell::default(), RefCell::default());
        Self { config, workers, shared, high, hosts, balancer, peers, partial, levels, dynamic, published }
    }

    /// The proxies of this one's kind, when this is the cluster of them.
    pub fn peers(&self, home: &Home) -> Peers {
        Peers::new(&self.hosts, home)
    }

    /// Takes note of the proxies of this one's kind as they are now.
    pub fn peers_changed(&self, peers: &Rc<Peers>) {
        let mut known = self.peers.borrow_mut();
        if let Some(known) = known.as_mut().filter(|known| !Rc::ptr_eq(known, peers)) {
            *known = peers.clone();
            self.balancer.peers_changed(peers);
            self.partial.borrow_mut().clear();
            self.levels.borrow_mut().clear();
        }
    }

    /// The cluster as configured.
    pub fn config(&self) -> &Arc<Cluster> {
        &self.config
    }

    /// As other threads may see it.
    pub fn published(&self) -> &Arc<PublishedCluster> {
        &self.published
    }

    /// Its numbers.
    pub fn stats(&self) -> &ClusterStats {
        &self.shared.stats
    }

    /// A worker's share of a limit, rounded up.
    fn share(&self, limit: u32) -> u32 {
        if limit == u32::MAX { limit } else { limit.div_ceil(self.workers) }
    }

    /// The counts and limits of a priority.
    fn breakers(&self, priority: Priority) -> (&Rc<Shared>, &Limits) {
        match priority {
            Priority::Default => (&self.shared, &self.config.limits),
            Priority::High => (&self.high, &self.config.high_limits),
        }
    }

    /// Whether a request may try to get a connection. Where there are as many requests as may be, only those may that would not
    /// make another connection: they wait in line, and there may be room when it is their turn.
    ///
    /// # Errors
    /// When it would make one for nothing.
    pub fn admit(&self, priority: Priority) -> Result<(), Overflow> {
        // What stands for others has no requests of its own.
        if self.config.kind == ClusterKind::Aggregate {
            return Ok(());
        }
        let (shared, limits) = self.breakers(priority);
        if self.is_full(priority) && shared.connections.get() < self.share(limits.connections) {
            shared.stats.rq_active_overflow.add(1);
            return Err(Overflow);
        }
        Ok(())
    }

    /// Whether another request could be sent at once, by a connection that is there; told from the counts alone.
    pub fn has_free_connection(&self, priority: Priority) -> bool {
        let (shared, _) = self.breakers(priority);
        let shares = self.config().protocol != UpstreamProtocol::Http1;
        let needed = if shares { 0 } else { shared.requests.get() };
        shared.connections.get() > needed
    }

    /// Whether there are as many requests as may be.
    pub fn is_full(&self, priority: Priority) -> bool {
        let (shared, limits) = self.breakers(priority);
        shared.requests.get() >= self.share(limits.requests)
    }

    /// Counts a request that has its connection.
    ///
    /// # Errors
    /// When there are too many.
    pub fn begin_request(&self, priority: Priority) -> Result<Ticket, Overflow> {
        let (shared, limits) = self.breakers(priority);
        shared.take(Count::Requests, self.share(limits.requests))
    }

    /// Counts a retry, against the budget if there is one. A budget's minimum is not shared among the workers: what is always
    /// allowed must be allowed to the worker on which the requests happen to be.
    ///
    /// # Errors
    /// When there are too many.
    pub fn begin_retry(&self, priority: Priority) -> Result<Ticket, Overflow> {
        let (shared, limits) = self.breakers(priority);
        let limit = match limits.retry_budget {
            Some(budget) => {
                let share = f64::from(shared.requests.get() + shared.pending.get()) * budget.percent / 100.0;
                (share as u32).max(budget.min_concurrency)
            }
            None => self.share(limits.retries),
        };
        shared.take(Count::Retries, limit)
    }

    /// Counts a request that waits for a connection, until the ticket is dropped.
    ///
    /// # Errors
    /// When there are too many.
    pub fn begin_wait(&self, priority: Priority) -> Result<Ticket, Overflow> {
        let (shared, limits) = self.breakers(priority);
        shared.take(Count::Pending, self.share(limits.pending))
    }

    /// Counts a connection, waiting in line while there are too many. Whoever waits holds a ticket of [`Self::begin_wait`]. A host
    /// to which there is no connection at all gets one in any case, or those who wait for it would wait for ever (as in Envoy).
    /// `key` is that of the [`super::Aim`].
    pub async fn begin_connection(&self, host: &Host, priority: Priority, key: Option<&str>) -> Admission {
        let (shared, limits) = self.breakers(priority);
        let (limit, of_host) = (self.share(limits.connections), self.share(limits.per_host));
        if host.is_full(of_host) {
            // One that was made for another aim stands in the way.
            host.drop_idle_of_others(key);
        }
        if host.is_full(of_host) {
            shared.stats.cx_overflow.add(1);
            let _waiting = host.wait();
            while host.is_full(of_host) {
                host.state.released.notified().await;
                if host.has_room(key) {
                    return Admission::UseIdle;
                }
                host.drop_idle_of_others(key);
            }
        }
        if let Ok(ticket) = shared.take(Count::Connections, limit) {
            return Admission::Connect(ticket.at(host));
        }
        if host.is_unconnected()
            && let Ok(ticket) = shared.take(Count::Connections, u32::MAX)
        {
            return Admission::Connect(ticket.at(host));
        }
        let _waiting = host.wait();
        // Whoever is woken for nothing keeps its place.
        let mut released = std::pin::pin!(shared.released.notified());
        loop {
            // An idle connection to somebody else, or for another aim, stands in the way of this one.
            if !self.close_one_idle(host) {
                host.drop_idle_of_others(key);
            }
            // That there was no room is counted once.
            if shared.connections.get() < limit
                && let Ok(ticket) = shared.take(Count::Connections, limit)
            {
                return Admission::Connect(ticket.at(host));
            }
            if host.is_unconnected()
                && let Ok(ticket) = shared.take(Count::Connections, u32::MAX)
            {
                return Admission::Connect(ticket.at(host));
            }
            tokio::select! {
                () = &mut released => released.set(shared.released.notified()),
                () = host.state.released.notified() => {}
            }
            if host.has_room(key) {
                return Admission::UseIdle;
            }
            if host.is_full(of_host) {
                // Another request has the endpoint's last place; the one in the cluster is for somebody else.
                shared.released.notify_one();
                return Admission::UseIdle;
            }
        }
    }

    /// Counts a connection that cannot share another one, and so does not wait for one either.
    ///
    /// # Errors
    /// When there are as many as there may be.
    pub fn take_connection(&self, host: &Host, priority: Priority) -> Result<Ticket, Overflow> {
        let (shared, limits) = self.breakers(priority);
        // Such connections last: a worker's share of the limit could be used up while others have places.
        let place = Place::take(&self.config.lasting, limits.connections);
        let full = host.is_full(self.share(limits.per_host)) && !host.drop_idle();
        let Some(place) = place.filter(|_| !full) else {
            shared.stats.cx_overflow.add(1);
            return Err(Overflow);
        };
        let mut ticket = shared.take(Count::Connections, u32::MAX)?.at(host);
        ticket.place = Some(place);
        Ok(ticket)
    }

    fn close_one_idle(&self, but: &Host) -> bool {
        self.hosts.iter().any(|host| !std::ptr::eq(host.as_ref(), but) && host.drop_idle())
    }

    /// Says that a connection became idle: somebody may wait for one.
    pub fn connection_is_idle(&self) {
        for shared in [&self.shared, &self.high] {
            if shared.pending.get() > 0 {
                shared.released.notify_one();
            }
        }
    }

    /// Whether this request is one of those that the control plane wants refused at once; `Some(true)` where all are.
    pub fn drops(&self, rng: &Rng) -> Option<bool> {
        /// Parts of 1 that are told apart.
        const PARTS: f64 = 1_000_000.0;
        let drop = self.config.spread.drop;
        let all = drop >= 1.0;
        (all || drop > 0.0 && (rng.below(PARTS as u64) as f64) < drop * PARTS).then_some(all)
    }

    /// Takes note of what became of a request at a host, for outlier detection.
    pub fn note(&self, host: &Host, outcome: Outcome) {
        let stats = host.stats();
        match outcome {
            Outcome::Status(status) => host.count_answer(status < 500),
            Outcome::Failed => stats.rq_error.add(1),
            Outcome::Timeout => {
                stats.rq_timeout.add(1);
                stats.rq_error.add(1);
            }
            Outcome::Connected => {}
        }
        self.note_for_outliers(host, outcome);
    }

    /// As [`Self::note`], of what is no request: a connection, which the endpoint's numbers of requests do not count.
    pub fn note_connection(&self, host: &Host, outcome: Outcome) {
        let outliers = self.config.care.as_ref().and_then(|care| care.outliers.as_ref());
        let split = outliers.is_some_and(|settings| settings.split);
        match outcome {
            // Without further words that is all that is known of it, and it is good.
            Outcome::Connected if !split => self.note_for_outliers(host, Outcome::Status(200)),
            outcome => self.note_for_outliers(host, outcome),
        }
    }

    /// As [`Self::note`], where the endpoint's numbers of requests do not count it, or not yet.
    pub fn note_for_outliers(&self, host: &Host, outcome: Outcome) {
        if let Some(care) = &self.config.care
            && let Some(settings) = &care.outliers
        {
            host.note(self.config.id, outcome, settings, care);
        }
    }

    /// Until when a connection made now serves requests.
    pub fn serves_until(&self, rng: &Rng) -> Option<Instant> {
        let (age, jitter) = self.config.max_connection_duration?;
        let extra = jitter / 100.0 * rng.below(1000) as f64 / 1000.0;
        Instant::now().checked_add(age.mul_f64(1.0 + extra))
    }

    /// Chooses where a request or a connection goes; where it was `tried` only when there is nobody else.
    pub fn pick(&self, rng: &Rng, context: &PickContext<'_>, tried: impl Fn(&Host) -> bool) -> Option<Rc<Host>> {
        match self.config.kind {
            ClusterKind::Static | ClusterKind::Eds | ClusterKind::Dns => {
                self.picked(&self.balancer, rng, context, tried)
            }
            // Its endpoints are others' ([`Self::choose`]).
            ClusterKind::Aggregate => None,
            ClusterKind::OriginalDst => {
                let mut destination = context.destination?;
                if let Some(port) = self.config.original.port {
                    destination.set_port(port);
                }
                Some(self.original(destination))
            }
        }
    }

    /// What each priority has, from the first.
    pub fn counts(&self) -> &[Counts] {
        self.balancer.counts()
    }

    fn picked(
        &self,
        balancer: &Balancer,
        rng: &Rng,
        context: &PickContext<'_>,
        tried: impl Fn(&Host) -> bool,
    ) -> Option<Rc<Host>> {
        let host = balancer.pick(context, rng, tried);
        let (stats, picked) = (self.stats(), balancer.picked());
        if picked.panics.get() > 0 {
            stats.lb_healthy_panic.add(picked.panics.take());
        }
        if self.config.balancing.subsets.is_some() {
            stats.lb_subsets_selected.add(picked.selected.take());
            stats.lb_subsets_fallback.add(picked.fallback.take());
            stats.lb_subsets_fallback_panic.add(picked.fallback_panic.take());
        }
        host
    }

    /// As [`Self::pick`], from one level alone; in panic, which all of the cluster decides, from all of its priority.
    pub(super) fn pick_of_level(
        &self,
        level: Level,
        rng: &Rng,
        context: &PickContext<'_>,
        tried: impl Fn(&Host) -> bool,
    ) -> Option<Rc<Host>> {
        let make = || self.balancer_over(&self.hosts, rng, Some(level));
        let balancer = self.levels.borrow_mut().entry(level).or_insert_with(make).clone();
        self.picked(&balancer, rng, context, tried)
    }

    /// As [`Self::pick`], from the endpoints of other priorities than these (one bit each).
    pub fn pick_passing_over(
        &self,
        priorities: u128,
        rng: &Rng,
        context: &PickContext<'_>,
        tried: impl Fn(&Host) -> bool,
    ) -> Option<Rc<Host>> {
        self.picked(&self.without(priorities, rng), rng, context, tried)
    }

    /// A balancer over the endpoints of other priorities.
    pub(super) fn without(&self, priorities: u128, rng: &Rng) -> Rc<Balancer> {
        let mut partial = self.partial.borrow_mut();
        if let Some((_, balancer)) = partial.iter().find(|(without, _)| *without == priorities) {
            return balancer.clone();
        }
        let stays =
            |host: &&Rc<Host>| 1u128.checked_shl(host.endpoint.priority).is_none_or(|bit| bit & priorities == 0);
        let hosts: Vec<Rc<Host>> = self.hosts.iter().filter(stays).cloned().collect();
        let balancer = self.balancer_over(&hosts, rng, None);
        if partial.len() >= MAX_PARTIAL {
            partial.clear();
        }
        partial.push((priorities, balancer.clone()));
        balancer
    }

    /// A balancer over some of this cluster's endpoints, as its configuration and its peers have it.
    fn balancer_over(&self, hosts: &[Rc<Host>], rng: &Rng, only: Option<Level>) -> Rc<Balancer> {
        let (config, peers) = (&self.config, self.peers.borrow());
        let zones = peers.as_deref().map(|peers| Zones { peers, stats: &self.shared.stats });
        Rc::new(Balancer::new(hosts, config.policy, &config.balancing, config.spread, zones, rng, only))
    }

    /// The policy by which it chooses.
    pub fn policy(&self) -> LbPolicy {
        self.config.policy
    }

    fn original(&self, address: SocketAddr) -> Rc<Host> {
        let mut dynamic = self.dynamic.borrow_mut();
        if let Some(host) = dynamic.get(&address) {
            let current = host.endpoint.tls == self.config.default_tls
                && Arc::ptr_eq(&host.endpoint.workload, &self.config.destination);
            if current {
                return host.clone();
            }
        }
        if dynamic.len() >= MAX_DYNAMIC {
            dynamic.retain(|_, host| host.active() > 0);
            // All of them busy: then the count is that of the connections, and this one is not remembered.
            if dynamic.len() >= MAX_DYNAMIC {
                dynamic.clear();
            }
        }
        let endpoint = Endpoint {
            tls: self.config.default_tls.clone(),
            workload: self.config.destination.clone(),
            ..Endpoint::new(address)
        };
        let host = Rc::new(Host::new(Arc::new(endpoint), self.shared.stats.clone()));
        if let Some(old) = dynamic.insert(address, host.clone()) {
            old.retire();
        }
        host
    }

    /// Closes idle connections that are too old or dead.
    pub fn sweep(&self, cx: &mut Context<'_>, now: Instant) {
        let mut swept = crate::http2::Swept::default();
        for host in &self.hosts {
            swept += host.sweep(cx, now, self.config.idle_timeout);
            if let Some(care) = &self.config.care {
                host.tell(self.config.id, care);
            }
        }
        self.dynamic.borrow_mut().retain(|_, host| {
            swept += host.sweep(cx, now, self.config.idle_timeout);
            host.active() > 0 || host.idle() > 0 || host.speaks_http2()
        });
        self.stats().cx_idle_timeout.add(swept.idle);
        self.stats().cx_max_duration_reached.add(swept.old);
    }

    /// Whether endpoints are taken out by their rates of success.
    pub fn counts_rates(&self) -> bool {
        let outliers = self.config.care.as_ref().and_then(|care| care.outliers.as_ref());
        outliers.is_some_and(OutlierDetection::counts_rates)
    }

    /// Tells what became of requests since the last time.
    pub fn tell_counts(&self) {
        if let Some(care) = &self.config.care {
            self.hosts.iter().for_each(|host| host.tell(self.config.id, care));
        }
    }

    /// Closes everything idle: the cluster is gone.
    pub fn retire(&self) {
        for host in &self.hosts {
            host.retire();
        }
        for (_, host) in self.dynamic.borrow_mut().drain() {
            host.retire();
        }
    }

    /// Connections of this worker.
    pub fn connections(&self) -> u32 {
        self.shared.connections.get() + self.high.connections.get()
    }
}

/// What [`ClusterState::begin_connection`] says.
#[derive(Debug)]
pub enum Admission {
    /// Connect.
    Connect(Ticket),
    /// Somebody's connection became idle: use that.
    UseIdle,
}

/// Whether connections to the host are good for the endpoint as it is now.
/// Counts groups of endpoints that have come, and those that have gone.
fn tell_subsets(balancer: &Balancer, before: Option<&Balancer>, stats: &ClusterStats) {
    let old: HashSet<_> = before.into_iter().flat_map(Balancer::subsets).collect();
    let new: HashSet<_> = balancer.subsets().collect();
    stats.lb_subsets_created.add(new.difference(&old).count() as u64);
    stats.lb_subsets_removed.add(old.difference(&new).count() as u64);
}

fn same_connection(host: &Host, endpoint: &Endpoint) -> bool {
    host.endpoint.tls == endpoint.tls
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ClusterId, Limits, RetryBudget};

    #[test]
    fn retries_when_there_are_many_workers_then_each_has_the_whole_minimum_of_the_budget() {
        let budget = Some(RetryBudget { percent: 20.0, min_concurrency: 3 });
        let limits = Limits { retry_budget: budget, ..Limits::default() };
        let config = Cluster { limits, ..Cluster::new(ClusterId(0), "c", ClusterKind::Eds) };
        let state = ClusterState::new(Arc::new(config), None, None, 8, &Rng::new(1));
        let tickets: Vec<_> = (0..3).map(|_| state.begin_retry(Priority::Default).unwrap()).collect();
        assert!(state.begin_retry(Priority::Default).is_err());
        drop(tickets);
        assert!(state.begin_retry(Priority::Default).is_ok());
    }
}
