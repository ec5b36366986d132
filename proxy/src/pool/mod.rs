//! Connections to endpoints, kept by each worker for itself.
//!
//! A [`Host`] is a worker's view of one endpoint: how many requests are active, and the idle connections. It lives as long as
//! the endpoint does, through every change of the configuration; when the endpoint goes, its idle connections are closed
//! and the busy ones are closed when they become idle.

mod breakers;
mod choose;
mod cluster;
mod connect;
mod eyeballs;
mod outcome;

pub use breakers::{Overflow, Ticket};
pub use choose::{Chosen, Find};
pub use cluster::{Admission, ClusterState};
pub use connect::{Aim, Birth, ConnectError, Connected, DELAYED, IMMEDIATE, Via, connect, connect_for, connect_via};
pub(crate) use connect::{Names, establish};
pub use outcome::Outcome;

use crate::{
    config::{Endpoint, Health},
    http::h1::up,
    http2,
    telemetry::stats::{ClusterStats, HostStats},
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::Context,
    time::{Duration, Instant},
};
use tokio::sync::{Notify, futures::Notified};

/// How long an endpoint to which no connection came about is left alone, while there are others. Until then the control
/// plane or the endpoint itself has usually noticed; and one lost packet costs an endpoint no more than this.
pub const LEFT_ALONE: Duration = Duration::from_secs(5);

/// Idle times above this are looked at often enough while nobody asks.
const SWEPT: Duration = Duration::from_secs(60);

/// An endpoint to which a connection has been under way for longer than this is left alone as if it had failed: only the first
/// requests then wait for the whole connect timeout of an address that has gone.
pub const SLOW: Duration = Duration::from_secs(1);

/// Server names for which an endpoint has HTTP/2 connections at once, a worker.
const MAX_NAMES: usize = 1024;

/// Idle connections that are kept for an endpoint, a worker.
pub const MAX_IDLE: usize = 512;

/// A worker's view of one endpoint.
#[derive(Debug)]
pub struct Host {
    endpoint: Arc<Endpoint>,
    state: Rc<HostState>,
}

/// What outlives a change of the endpoint's weight, health or labels.
#[derive(Debug, Default)]
struct HostState {
    active: Cell<u32>,
    stats: Arc<HostStats>,
    /// The numbers of its cluster.
    all: Arc<ClusterStats>,
    idle: RefCell<Vec<Idle>>,
    http2: Rc<http2::Pool>,
    /// The same by the server name that was sent, where requests decide about it.
    named: RefCell<HashMap<Rc<str>, Rc<http2::Pool>>>,
    gone: Cell<bool>,
    /// Since when it has been healthy; `None` while it is not.
    healthy_since: Cell<Option<Instant>>,
    failed: Cell<Option<Instant>>,
    dials: Cell<u32>,
    /// Connections, and those being made.
    tickets: Cell<u32>,
    /// Requests that wait for a connection.
    waiting: Cell<u32>,
    /// Tells one of them that it may look again.
    released: Notify,
    /// Tells connections of TCP that they are to end.
    lost: Notify,
    /// What outlier detection counts here.
    tallies: outcome::Tallies,
    /// Counts up when connections made before shall serve no more requests.
    epoch: Cell<u32>,
    /// Connections of HTTP/1, busy or idle.
    connections: Cell<u32>,
    /// The endpoint has chosen HTTP/1 where it could choose.
    prefers_http1: Cell<bool>,
    /// Since when no dial that is under way has come to anything.
    dialing: Cell<Option<Instant>>,
}

#[derive(Debug)]
struct Idle {
    lease: Lease,
    since: Instant,
}

impl Host {
    /// A host without connections, of the cluster with these numbers.
    pub fn new(endpoint: Arc<Endpoint>, all: Arc<ClusterStats>) -> Self {
        Self { endpoint, state: Rc::new(HostState { all, ..HostState::default() }) }.note_health()
    }

    /// The same host after a change of the endpoint that does not concern its connections.
    pub fn renewed(&self, endpoint: Arc<Endpoint>) -> Self {
        if self.endpoint.failed.is_observed() && !endpoint.failed.is_observed() {
            self.state.tallies.begin_anew();
        }
        Self { endpoint, state: self.state.clone() }.note_health()
    }

    /// How long it has been healthy; nothing while it is not.
    pub fn healthy_for(&self, now: Instant) -> Duration {
        self.state.healthy_since.get().map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// As if it had been healthy for so much longer.
    #[cfg(test)]
    pub(crate) fn age(&self, more: Duration) {
        self.state.healthy_since.set(self.state.healthy_since.get().and_then(|since| since.checked_sub(more)));
    }

    fn note_health(self) -> Self {
        let healthy = self.endpoint.health == Health::Healthy;
        let since = self.state.healthy_since.get().filter(|_| healthy);
        self.state.healthy_since.set(since.or_else(|| healthy.then(Instant::now)));
        self
    }

    /// The endpoint as configured.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.endpoint.address
    }

    /// Its numbers.
    pub fn stats(&self) -> &Arc<HostStats> {
        &self.state.stats
    }

    /// The numbers of its cluster.
    pub fn stats_of_all(&self) -> &ClusterStats {
        &self.state.all
    }

    /// Whether it is to be asked for HTTP/2 where it may choose: until it has chosen otherwise.
    pub fn agrees_on_http2(&self) -> bool {
        !self.state.prefers_http1.get()
    }

    /// Takes note of what it has chosen.
    pub fn note_agreed(&self, http2: bool) {
        self.state.prefers_http1.set(!http2);
    }

    /// Its HTTP/2 connections by the key of their [`Aim`].
    pub fn http2(&self, key: Option<&str>) -> Rc<http2::Pool> {
        let Some(key) = key else { return self.state.http2.clone() };
        let mut named = self.state.named.borrow_mut();
        if let Some(pool) = named.get(key) {
            return pool.clone();
        }
        if named.len() >= MAX_NAMES {
            named.retain(|_, pool| !pool.is_empty());
            if named.len() >= MAX_NAMES {
                // Those without streams go before the others do.
                named.retain(|_, pool| {
                    pool.close_idle();
                    !pool.is_empty()
                });
            }
            // All in use: their connections end with their streams.
            if named.len() >= MAX_NAMES {
                named.drain().for_each(|(_, pool)| pool.retire());
            }
        }
        named.entry(key.into()).or_default().clone()
    }

    /// Whether it has connections of HTTP/2.
    pub fn speaks_http2(&self) -> bool {
        !self.state.http2.is_empty() || self.state.named.borrow().values().any(|pool| !pool.is_empty())
    }

    fn pools(&self, mut each: impl FnMut(&http2::Pool)) {
        each(&self.state.http2);
        self.state.named.borrow().values().for_each(|pool| each(pool));
    }

    /// Counts an answer among its requests, as one that served them or did not.
    pub fn count_answer(&self, good: bool) {
        let stats = self.stats();
        if good { &stats.rq_success } else { &stats.rq_error }.add(1);
    }

    /// Takes note that it could not be connected: for [`LEFT_ALONE`] others are chosen.
    pub fn note_failure(&self) {
        self.state.failed.set(Some(Instant::now()));
    }

    /// Takes note that it was connected.
    pub fn note_success(&self) {
        self.state.failed.set(None);
        if self.state.dialing.get().is_some() {
            self.state.dialing.set(Some(Instant::now()));
        }
    }

    /// Counts an attempt to connect for as long as the guard lives.
    pub fn dial(&self) -> Dial {
        self.state.dials.set(self.state.dials.get() + 1);
        if self.state.dialing.get().is_none() {
            self.state.dialing.set(Some(Instant::now()));
        }
        Dial(self.state.clone())
    }

    /// Whether it could not be connected a moment ago, or has not been for longer than is usual.
    pub fn failed_lately(&self) -> bool {
        // Mostly neither, and the clock is not asked.
        (self.state.failed.get().is_some() || self.state.dialing.get().is_some()) && self.failed_at(Instant::now())
    }

    fn failed_at(&self, now: Instant) -> bool {
        let within = |since: Instant, limit| now.saturating_duration_since(since) < limit;
        self.state.failed.get().is_some_and(|since| within(since, LEFT_ALONE))
            || self.state.dialing.get().is_some_and(|since| !within(since, SLOW))
    }

    /// Active requests.
    pub fn active(&self) -> u32 {
        self.state.active.get()
    }

    /// Whether it is no longer configured.
    pub fn is_gone(&self) -> bool {
        self.state.gone.get()
    }

    /// Counts a request for as long as the guard lives.
    pub fn enter(self: &Rc<Self>) -> Active {
        self.state.active.set(self.state.active.get() + 1);
        self.state.stats.rq_total.add(1);
        self.state.stats.rq_active.up();
        Active(self.state.clone())
    }

    /// An idle connection that is still good, newest first, by the key of its [`Aim`]. How long
    /// it may be idle ([`Cluster::idle_timeout`]) is looked at where it is short; [`Self::sweep`] comes early enough for the rest.
    ///
    /// [`Cluster::idle_timeout`]: crate::config::Cluster::idle_timeout
    pub fn take_idle(&self, cx: &mut Context<'_>, name: Option<&str>, idle_timeout: Duration) -> Option<Lease> {
        let short = !idle_timeout.is_zero() && idle_timeout < SWEPT;
        loop {
            let mut idle = {
                let mut all = self.state.idle.borrow_mut();
                let at = all.iter().rposition(|idle| idle.lease.name.as_deref() == name)?;
                all.remove(at)
            };
            let late = short && idle.since.elapsed() >= idle_timeout
                || idle.lease.until.is_some_and(|until| until <= Instant::now());
            if !late && idle.lease.connection.is_fresh(cx) {
                return Some(idle.lease);
            }
        }
    }

    /// Takes a connection back that completed its request.
    pub fn give_back(&self, mut lease: Lease, max_requests: u32) {
        let worn_out = max_requests > 0 && lease.connection.served() >= max_requests
            || lease.epoch != self.state.epoch.get()
            || lease.until.is_some_and(|until| until <= Instant::now());
        if max_requests > 0 && lease.connection.served() >= max_requests {
            lease.ticket.worn_out();
        }
        if self.state.gone.get() || worn_out || !(lease.connection.is_reusable() || lease.connection.is_unused()) {
            return;
        }
        let mut idle = self.state.idle.borrow_mut();
        if idle.len() >= MAX_IDLE {
            // It may be of a client who is gone.
            idle.remove(0);
        }
        lease.connection.rest();
        idle.push(Idle { lease, since: Instant::now() });
    }

    /// Closes idle connections that are older than `timeout` (zero: none) or were closed by the endpoint.
    pub fn sweep(&self, cx: &mut Context<'_>, now: Instant, timeout: Duration) -> http2::Swept {
        let mut swept = http2::Swept::default();
        self.pools(|pool| swept += pool.sweep(now.into(), timeout));
        self.state.idle.borrow_mut().retain_mut(|idle| {
            let long = !timeout.is_zero() && now.duration_since(idle.since) >= timeout;
            let old = idle.lease.until.is_some_and(|until| until <= now);
            swept.idle += u64::from(long && !old);
            swept.old += u64::from(old);
            !long && !old && idle.lease.connection.is_fresh(cx)
        });
        swept
    }

    /// Closes one idle connection to make room for another; whether there was one.
    pub(crate) fn drop_idle(&self) -> bool {
        let mut idle = self.state.idle.borrow_mut();
        let oldest = (!idle.is_empty()).then(|| idle.remove(0));
        drop(idle);
        oldest.is_some()
    }

    /// Closes an idle connection that requests with this key cannot use; whether there was one.
    pub(crate) fn drop_idle_of_others(&self, key: Option<&str>) -> bool {
        let mut idle = self.state.idle.borrow_mut();
        let other = idle.iter().position(|idle| idle.lease.name.as_deref() != key).map(|at| idle.remove(at));
        drop(idle);
        if other.is_some() {
            return true;
        }
        if key.is_some() && self.state.http2.close_idle() {
            return true;
        }
        let named = self.state.named.borrow();
        named.iter().any(|(name, pool)| Some(&**name) != key && pool.close_idle())
    }

    /// Idle connections.
    pub fn idle(&self) -> usize {
        self.state.idle.borrow().len()
    }

    /// A fresh connection to it, which serves requests until then; `name` is the key of its [`Aim`].
    pub fn lease(
        &self,
        connection: up::Connection,
        ticket: Ticket,
        until: Option<Instant>,
        name: Option<Rc<str>>,
    ) -> Lease {
        self.state.connections.set(self.state.connections.get() + 1);
        let counted = Counted(self.state.clone());
        let connection = Box::new(connection);
        Lease { connection, until, name, epoch: self.state.epoch.get(), _counted: counted, ticket }
    }

    /// Whether it has as many connections as it may have; the first is always allowed.
    pub(crate) fn is_full(&self, limit: u32) -> bool {
        self.state.tickets.get() >= limit.max(1)
    }

    /// Counts a request that waits for a connection for as long as the guard lives.
    fn wait(&self) -> Waiting<'_> {
        self.state.waiting.set(self.state.waiting.get() + 1);
        Waiting(&self.state)
    }

    /// Whether a connection is there that can take a request with this key.
    pub(crate) fn has_room(&self, key: Option<&str>) -> bool {
        self.state.idle.borrow().iter().any(|idle| idle.lease.name.as_deref() == key)
            || match key {
                None => self.state.http2.has_room(),
                Some(key) => self.state.named.borrow().get(key).is_some_and(|pool| pool.has_room()),
            }
    }

    /// Ready when connections of TCP that are there now are to end.
    pub(crate) fn lost(&self) -> Notified<'_> {
        self.state.lost.notified()
    }

    /// Ends connections of TCP.
    fn lose(&self) {
        self.state.lost.notify_waiters();
    }

    /// Whether no connection to it exists or is under way.
    pub(crate) fn is_unconnected(&self) -> bool {
        let named = self.state.named.borrow();
        self.state.connections.get() == 0
            && self.state.dials.get() == 0
            && self.state.http2.is_empty()
            && named.values().all(|pool| pool.is_empty())
    }

    /// Closes idle connections, and the busy ones when they become idle: it is not well, and another connection may do better.
    pub(crate) fn drain(&self) {
        self.state.epoch.set(self.state.epoch.get().wrapping_add(1));
        self.state.idle.borrow_mut().clear();
        self.pools(http2::Pool::drain);
    }

    /// Marks it as no longer configured and closes what is idle.
    pub fn retire(&self) {
        self.state.gone.set(true);
        self.state.idle.borrow_mut().clear();
        self.pools(http2::Pool::retire);
    }
}

impl HostState {
    /// A request has ended, or a connection: somebody may wait for its place.
    fn tell_waiting(&self) {
        if self.waiting.get() > 0 {
            self.released.notify_one();
        }
    }
}

/// Counts one request that waits for a connection to a host.
struct Waiting<'a>(&'a HostState);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}

/// Counts one active request of a host.
#[derive(Debug)]
pub struct Active(Rc<HostState>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
        self.0.stats.rq_active.down();
        self.0.tell_waiting();
    }
}

/// Counts one attempt to connect a host.
#[derive(Debug)]
pub struct Dial(Rc<HostState>);

impl Drop for Dial {
    fn drop(&mut self) {
        self.0.dials.set(self.0.dials.get() - 1);
        if self.0.dials.get() == 0 {
            self.0.dialing.set(None);
        }
    }
}

/// A connection together with its place in the cluster's count.
#[derive(Debug)]
pub struct Lease {
    /// The connection; it is handed around, and stays where it is.
    pub connection: Box<up::Connection>,
    until: Option<Instant>,
    name: Option<Rc<str>>,
    epoch: u32,
    _counted: Counted,
    ticket: Ticket,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.ticket.ends(self.connection.end());
    }
}

/// Counts one connection of HTTP/1.
#[derive(Debug)]
struct Counted(Rc<HostState>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_when_it_failed_or_is_slow_to_connect_then_it_is_left_alone_for_a_while() {
        let host = Host::new(Arc::new(Endpoint::new(([127, 0, 0, 1], 1).into())), Arc::default());
        let at = |after| host.failed_at(Instant::now() + after);
        host.note_failure();
        assert!(host.failed_lately());
        assert!(!at(LEFT_ALONE), "not for ever");
        host.note_success();
        assert!(!host.failed_lately());
        let (first, second) = (host.dial(), host.dial());
        assert!(!host.failed_lately() && at(SLOW));
        drop(first);
        assert!(at(SLOW), "the other is still under way");
        drop(second);
        assert!(!at(SLOW));
    }
}
