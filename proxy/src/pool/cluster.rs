//! A worker's state of one cluster: its hosts, its balancer, its circuit breakers.

use super::Host;
use crate::{
    balance::{Balancer, PickContext, Rng},
    config::{Cluster, ClusterKind, Endpoint, LbPolicy},
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::Context,
    time::Instant,
};
use tokio::sync::Notify;

/// Original destinations that a cluster remembers; idle ones go first.
const MAX_DYNAMIC: usize = 1024;

/// The counts behind the circuit breakers; they outlive a change of the cluster.
#[derive(Debug, Default)]
pub struct Shared {
    connections: Cell<u32>,
    pending: Cell<u32>,
    requests: Cell<u32>,
    retries: Cell<u32>,
    released: Notify,
}

/// A circuit breaker is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overflow;

#[derive(Debug, Clone, Copy)]
enum Count {
    Connections,
    Pending,
    Requests,
    Retries,
}

/// One place in one of the counts, given back when dropped.
#[derive(Debug)]
pub struct Ticket {
    shared: Rc<Shared>,
    count: Count,
}

impl Shared {
    fn cell(&self, count: Count) -> &Cell<u32> {
        match count {
            Count::Connections => &self.connections,
            Count::Pending => &self.pending,
            Count::Requests => &self.requests,
            Count::Retries => &self.retries,
        }
    }

    fn take(self: &Rc<Self>, count: Count, limit: u32) -> Result<Ticket, Overflow> {
        let cell = self.cell(count);
        if cell.get() >= limit {
            return Err(Overflow);
        }
        cell.set(cell.get() + 1);
        Ok(Ticket { shared: self.clone(), count })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let cell = self.shared.cell(self.count);
        cell.set(cell.get() - 1);
        if matches!(self.count, Count::Connections) && self.shared.pending.get() > 0 {
            self.shared.released.notify_one();
        }
    }
}

/// A worker's state of one cluster at one version of it.
#[derive(Debug)]
pub struct ClusterState {
    config: Arc<Cluster>,
    workers: u32,
    shared: Rc<Shared>,
    hosts: Vec<Rc<Host>>,
    balancer: Balancer,
    dynamic: Rc<RefCell<HashMap<SocketAddr, Rc<Host>>>>,
}

impl ClusterState {
    /// The state of a cluster; what it had before (counts, hosts with their connections) is carried over.
    pub fn new(config: Arc<Cluster>, before: Option<&ClusterState>, workers: u32, rng: &Rng) -> Self {
        let old: HashMap<SocketAddr, &Rc<Host>> =
            before.iter().flat_map(|state| &state.hosts).map(|host| (host.address(), host)).collect();
        let hosts: Vec<Rc<Host>> = config
            .endpoints
            .iter()
            .map(|endpoint| match old.get(&endpoint.address) {
                Some(host) if Arc::ptr_eq(&host.endpoint, endpoint) => (*host).clone(),
                Some(host) if same_connection(host, endpoint) => Rc::new(host.renewed(endpoint.clone())),
                _ => Rc::new(Host::new(endpoint.clone())),
            })
            .collect();
        for (address, host) in old {
            if !hosts.iter().any(|new| new.address() == address && same_connection(new, &host.endpoint)) {
                host.retire();
            }
        }
        let balancer = Balancer::new(&hosts, config.policy, &config.balancing, config.spread, rng);
        let (shared, dynamic) = match before {
            Some(before) => (before.shared.clone(), before.dynamic.clone()),
            None => <_>::default(),
        };
        Self { config, workers: workers.max(1), shared, hosts, balancer, dynamic }
    }

    /// The cluster as configured.
    pub fn config(&self) -> &Arc<Cluster> {
        &self.config
    }

    /// A worker's share of a limit, rounded up.
    fn share(&self, limit: u32) -> u32 {
        if limit == u32::MAX { limit } else { limit.div_ceil(self.workers) }
    }

    /// Counts a request.
    ///
    /// # Errors
    /// When there are too many.
    pub fn begin_request(&self) -> Result<Ticket, Overflow> {
        self.shared.take(Count::Requests, self.share(self.config.limits.requests))
    }

    /// Counts a retry, against the budget if there is one. A budget's minimum is not shared among the workers: what is always
    /// allowed must be allowed to the worker on which the requests happen to be.
    ///
    /// # Errors
    /// When there are too many.
    pub fn begin_retry(&self) -> Result<Ticket, Overflow> {
        let limits = &self.config.limits;
        let limit = match limits.retry_budget {
            Some(budget) => {
                let share = f64::from(self.shared.requests.get()) * budget.percent / 100.0;
                (share as u32).max(budget.min_concurrency)
            }
            None => self.share(limits.retries),
        };
        self.shared.take(Count::Retries, limit)
    }

    /// Counts a connection, waiting in line while there are too many.
    ///
    /// # Errors
    /// When the line is too long.
    pub async fn begin_connection(&self, host: &Host) -> Result<Admission, Overflow> {
        let limit = self.share(self.config.limits.connections);
        if let Ok(ticket) = self.shared.take(Count::Connections, limit) {
            return Ok(Admission::Connect(ticket));
        }
        let _pending = self.shared.take(Count::Pending, self.share(self.config.limits.pending))?;
        loop {
            // An idle connection to somebody else stands in the way of one to this host.
            self.close_one_idle(host);
            if let Ok(ticket) = self.shared.take(Count::Connections, limit) {
                return Ok(Admission::Connect(ticket));
            }
            self.shared.released.notified().await;
            if host.idle() > 0 {
                return Ok(Admission::UseIdle);
            }
        }
    }

    fn close_one_idle(&self, but: &Host) {
        for host in &self.hosts {
            if !std::ptr::eq(host.as_ref(), but) && host.drop_idle() {
                return;
            }
        }
    }

    /// Says that a connection became idle: somebody may wait for one.
    pub fn connection_is_idle(&self) {
        if self.shared.pending.get() > 0 {
            self.shared.released.notify_one();
        }
    }

    /// Chooses where a request or a connection goes; where it was `tried` only when there is nobody else.
    pub fn pick(&self, rng: &Rng, context: &PickContext<'_>, tried: impl Fn(&Host) -> bool) -> Option<Rc<Host>> {
        match self.config.kind {
            ClusterKind::Static | ClusterKind::Eds => self.balancer.pick(context, rng, tried).cloned(),
            ClusterKind::OriginalDst => Some(self.original(context.destination)),
        }
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
        let host = Rc::new(Host::new(Arc::new(Endpoint {
            tls: self.config.default_tls.clone(),
            workload: self.config.destination.clone(),
            ..Endpoint::new(address)
        })));
        if let Some(old) = dynamic.insert(address, host.clone()) {
            old.retire();
        }
        host
    }

    /// Closes idle connections that are too old or dead.
    pub fn sweep(&self, cx: &mut Context<'_>, now: Instant) {
        for host in &self.hosts {
            host.sweep(cx, now, self.config.idle_timeout);
        }
        self.dynamic.borrow_mut().retain(|_, host| {
            host.sweep(cx, now, self.config.idle_timeout);
            host.active() > 0 || host.idle() > 0 || !host.http2().is_empty()
        });
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
        self.shared.connections.get()
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
        let state = ClusterState::new(Arc::new(config), None, 8, &Rng::new(1));
        let tickets: Vec<_> = (0..3).map(|_| state.begin_retry().unwrap()).collect();
        assert!(state.begin_retry().is_err());
        drop(tickets);
        assert!(state.begin_retry().is_ok());
    }
}
