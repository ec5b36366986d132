//! What circuit breakers count, one worker's connections, requests, retries and those that wait, and the places in these counts.

use super::{ConnectError, Host, HostState};
use crate::{
    config::Priority,
    telemetry::{
        stats::{ClusterStats, Gauge},
        tracked::ConnectionEnd,
    },
};
use std::{
    cell::Cell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Instant,
};
use tokio::sync::Notify;

/// The counts behind the circuit breakers; they outlive a change of the cluster.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) connections: Cell<u32>,
    pub(super) pending: Cell<u32>,
    pub(super) requests: Cell<u32>,
    retries: Cell<u32>,
    /// Told when a place is free and somebody waits.
    pub(super) released: Notify,
    pub(super) stats: Arc<ClusterStats>,
    priority: Priority,
}

/// A circuit breaker is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overflow;

/// What is counted.
#[derive(Debug, Clone, Copy)]
pub(super) enum Count {
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
    /// Since when a connection is open, or being opened.
    since: Option<Instant>,
    /// The endpoint that has the connection, which counts it as well.
    host: Option<Rc<HostState>>,
    /// How the connection ends, where that is known before it does.
    end: Cell<ConnectionEnd>,
    /// Its place among the connections of TCP of all workers.
    pub(super) place: Option<Place>,
    /// Who waits has got what it waited for, or has been told that there is none.
    settled: Cell<bool>,
}

/// One of the connections of TCP that all workers together have to a cluster.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicU32>);

impl Place {
    pub(super) fn take(open: &Arc<AtomicU32>, limit: u32) -> Option<Self> {
        let more = |count: u32| (count < limit).then(|| count + 1);
        open.fetch_update(Relaxed, Relaxed, more).ok().map(|_| Self(open.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Shared {
    pub(super) fn new(stats: Arc<ClusterStats>, priority: Priority) -> Rc<Self> {
        Rc::new(Self {
            connections: Cell::new(0),
            pending: Cell::new(0),
            requests: Cell::new(0),
            retries: Cell::new(0),
            released: Notify::new(),
            stats,
            priority,
        })
    }

    fn gauge(&self, count: Count) -> &Gauge {
        let breakers = self.stats.breakers(self.priority);
        match count {
            Count::Connections => &breakers.connections,
            Count::Pending => &breakers.pending,
            Count::Requests => &breakers.requests,
            Count::Retries => &breakers.retries,
        }
    }

    fn cell(&self, count: Count) -> &Cell<u32> {
        match count {
            Count::Connections => &self.connections,
            Count::Pending => &self.pending,
            Count::Requests => &self.requests,
            Count::Retries => &self.retries,
        }
    }

    pub(super) fn take(self: &Rc<Self>, count: Count, limit: u32) -> Result<Ticket, Overflow> {
        let cell = self.cell(count);
        if cell.get() >= limit {
            match count {
                Count::Connections => self.stats.cx_overflow.add(1),
                Count::Pending => self.stats.rq_pending_overflow.add(1),
                Count::Requests => self.stats.rq_active_overflow.add(1),
                Count::Retries => self.stats.rq_retry_overflow.add(1),
            }
            return Err(Overflow);
        }
        cell.set(cell.get() + 1);
        self.gauge(count).up();
        match count {
            Count::Connections => self.stats.cx_total.add(1),
            Count::Pending => self.stats.rq_pending_total.add(1),
            Count::Requests | Count::Retries => {}
        }
        let since = matches!(count, Count::Connections).then(Instant::now);
        Ok(Ticket {
            shared: self.clone(),
            count,
            since,
            host: None,
            end: Cell::default(),
            place: None,
            settled: Cell::new(false),
        })
    }
}

impl Ticket {
    /// For a connection to this endpoint.
    pub(super) fn at(mut self, host: &Host) -> Self {
        host.state.tickets.set(host.state.tickets.get() + 1);
        host.state.stats.cx_active.up();
        self.host = Some(host.state.clone());
        self
    }

    /// Says how the connection ends.
    pub fn ends(&self, end: ConnectionEnd) {
        self.end.set(end);
    }

    /// Says that the connection could not be made.
    pub fn failed(&self, error: &ConnectError) {
        let remote = !matches!(error, ConnectError::Timeout(..) | ConnectError::Own(..));
        self.end.set(ConnectionEnd { remote, ..ConnectionEnd::default() });
    }

    /// Says that the connection has served as many requests as it may.
    pub fn worn_out(&self) {
        self.shared.stats.cx_max_requests.add(1);
    }

    /// Says that nobody waits any more, since there is a connection or none can be had.
    pub fn settle(&self) {
        self.settled.set(true);
    }

    /// Says that the connection is there.
    pub fn connected(&self) {
        if let Some(since) = self.since {
            self.shared.stats.cx_connect_ms.record_thousandths(since.elapsed().as_micros() as u64);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let cell = self.shared.cell(self.count);
        cell.set(cell.get() - 1);
        self.shared.gauge(self.count).down();
        if matches!(self.count, Count::Pending) && !self.settled.get() {
            self.shared.stats.rq_cancelled.add(1);
        }
        if matches!(self.count, Count::Connections) {
            self.shared.stats.ended(self.end.get());
            let age = self.since.map_or(0, |since| since.elapsed().as_micros() as u64);
            self.shared.stats.cx_length_ms.record_thousandths(age);
        }
        if matches!(self.count, Count::Connections) && self.shared.pending.get() > 0 {
            self.shared.released.notify_one();
        }
        if let Some(host) = &self.host {
            host.tickets.set(host.tickets.get() - 1);
            host.stats.cx_active.down();
            host.tell_waiting();
        }
    }
}
