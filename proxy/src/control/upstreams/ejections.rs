//! Outlier detection: who is taken out, and for how long. From reports and a clock that it is handed alone.

use crate::balance::Rng;
use crate::config::{Consecutive, OutlierDetection};
use crate::telemetry::LogSink;
use crate::telemetry::counters::Number;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
struct Host {
    /// Since when it is out, and for how much longer than usual.
    out: Option<(Instant, Duration)>,
    /// How many times in succession it was taken out.
    times: u32,
    /// Successes and all since the last look: of answers, and of the way.
    counts: [(u64, u64); 2],
    /// How many times it was taken out at all, and when the last time; when it came back the last time.
    ejected: u32,
    last_out: Option<Instant>,
    last_back: Option<Instant>,
}

impl Host {
    fn bring_back(&mut self, address: SocketAddr, now: Instant) -> Turn {
        self.out = None;
        self.last_back = Some(now);
        let since = self.last_out.map(|then| now.saturating_duration_since(then));
        Turn { address, since, times: self.ejected, what: What::Back }
    }
}

/// Why an endpoint is taken out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Cause {
    /// Failures in a row.
    Consecutive(Consecutive),
    /// Its rate of success beside those of the others; whether on the way to it.
    Rate { local: bool, own: f64, average: f64, least: f64 },
    /// Its rate of success alone; whether on the way to it.
    Percentage { local: bool, own: f64 },
}

/// What becomes of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum What {
    /// It is taken out, or would be if that were enforced.
    Out { cause: Cause, enforced: bool },
    /// It is back.
    Back,
}

/// Something about an endpoint that is worth a line.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Turn {
    pub(super) address: SocketAddr,
    /// Since its last turn the other way.
    pub(super) since: Option<Duration>,
    /// How many times it was taken out.
    pub(super) times: u32,
    pub(super) what: What,
}

impl Drop for Ejections {
    fn drop(&mut self) {
        self.hosts.values().filter(|host| host.out.is_some()).for_each(|_| self.settings.stats.active.down());
    }
}

/// The endpoints of one cluster.
#[derive(Debug)]
pub(super) struct Ejections {
    settings: OutlierDetection,
    hosts: HashMap<SocketAddr, Host>,
    next: Instant,
    /// What nobody was told yet, where it is to be told.
    turns: Vec<Turn>,
}

impl Ejections {
    /// Nobody known yet.
    pub(super) fn new(settings: OutlierDetection, now: Instant) -> Self {
        Self { next: now + settings.interval, settings, hosts: HashMap::new(), turns: Vec::new() }
    }

    /// These endpoints, and no others.
    pub(super) fn set_hosts(&mut self, addresses: impl Iterator<Item = SocketAddr>) {
        let mut before = std::mem::take(&mut self.hosts);
        self.hosts = addresses.map(|address| (address, before.remove(&address).unwrap_or_default())).collect();
        before.values().filter(|host| host.out.is_some()).for_each(|_| self.settings.stats.active.down());
    }

    /// What is counted.
    #[cfg(test)]
    pub(super) fn stats(&self) -> &crate::telemetry::counters::OutlierStats {
        &self.settings.stats
    }

    /// Whether it is out.
    pub(super) fn is_out(&self, address: SocketAddr) -> bool {
        self.hosts.get(&address).is_some_and(|host| host.out.is_some())
    }

    /// When to look next.
    pub(super) fn due(&self) -> Option<Instant> {
        let idle =
            !self.settings.counts_rates() && self.hosts.values().all(|host| host.times == 0 && host.out.is_none());
        (!idle).then_some(self.next)
    }

    /// So many failures in a row that the threshold is reached; true when the endpoint is out now.
    pub(super) fn consecutive(&mut self, address: SocketAddr, kind: Consecutive, now: Instant, rng: &Rng) -> bool {
        if self.hosts.get(&address).is_none_or(|host| host.out.is_some()) {
            return false;
        }
        let [server, gateway, local] = self.settings.enforcing;
        let stats = &self.settings.stats;
        let (percent, detected, enforced) = match kind {
            Consecutive::ServerErrors => (server, &stats.detected_5xx, &stats.enforced_5xx),
            Consecutive::GatewayErrors => (gateway, &stats.detected_gateway, &stats.enforced_gateway),
            Consecutive::LocalFailures => (local, &stats.detected_local, &stats.enforced_local),
        };
        if kind == Consecutive::ServerErrors {
            stats.consecutive_5xx.add(1);
        }
        detected.add(1);
        let (enforced, in_total) = (enforced.clone(), kind == Consecutive::ServerErrors);
        self.eject(address, percent, (&enforced, in_total), Cause::Consecutive(kind), now, rng)
    }

    /// `in_total`: whether Envoy's old number of all ejections knows this kind; it counts what is not enforced as well.
    fn eject(
        &mut self,
        address: SocketAddr,
        percent: u32,
        (enforced, in_total): (&Number, bool),
        cause: Cause,
        now: Instant,
        rng: &Rng,
    ) -> bool {
        let out = self.hosts.values().filter(|host| host.out.is_some()).count();
        let all = self.hosts.len();
        let settings = &self.settings;
        let Some(host) = self.hosts.get_mut(&address) else { return false };
        let room = 100.0 * (out + 1) as f64 / all as f64 <= f64::from(settings.max_percent);
        let room = room || settings.always_one && out == 0;
        if host.out.is_some() {
            return false;
        }
        if !room {
            settings.stats.overflow.add(1);
            return false;
        }
        if in_total {
            settings.stats.total.add(1);
        }
        let is_enforced = rng.below(100) < u64::from(percent);
        host.ejected += u32::from(is_enforced);
        if settings.log.is_some() {
            let since = host.last_back.map(|then| now.saturating_duration_since(then));
            let what = What::Out { cause, enforced: is_enforced };
            self.turns.push(Turn { address, since, times: host.ejected, what });
        }
        if !is_enforced {
            return false;
        }
        host.last_out = Some(now);
        settings.stats.enforced_total.add(1);
        settings.stats.active.add(1);
        enforced.add(1);
        let jitter = u64::try_from(settings.jitter.as_millis()).unwrap_or(u64::MAX);
        host.out = Some((now, Duration::from_millis(rng.below(jitter.saturating_add(1)))));
        if settings.base_ejection * host.times < settings.max_ejection + settings.base_ejection {
            host.times += 1;
        }
        true
    }

    /// A health check passed: true when that brings it back.
    pub(super) fn check_passed(&mut self, address: SocketAddr, now: Instant) -> bool {
        let out = self.hosts.get_mut(&address).filter(|host| host.out.is_some());
        let Some(host) = out.filter(|_| self.settings.check_brings_back) else { return false };
        let turn = host.bring_back(address, now);
        self.settings.stats.active.down();
        self.note(turn);
        true
    }

    fn note(&mut self, turn: Turn) {
        if self.settings.log.is_some() {
            self.turns.push(turn);
        }
    }

    /// What happened since the last time, and where it is to be written.
    pub(super) fn take_turns(&mut self) -> Option<(&Arc<LogSink>, Vec<Turn>)> {
        let log = self.settings.log.as_ref()?;
        (!self.turns.is_empty()).then(|| (log, std::mem::take(&mut self.turns)))
    }

    /// Requests that a worker counted.
    pub(super) fn count(&mut self, address: SocketAddr, answers: (u32, u32), way: (u32, u32)) {
        let Some(host) = self.hosts.get_mut(&address) else { return };
        for ((good, all), (more, of)) in host.counts.iter_mut().zip([answers, way]) {
            *good += u64::from(more);
            *all += u64::from(of);
        }
    }

    /// Looks at rates and brings back who was out long enough, if an interval has passed; true when something changed.
    pub(super) fn tick(&mut self, now: Instant, rng: &Rng) -> bool {
        if now < self.next {
            return false;
        }
        self.next = now + self.settings.interval;
        let mut back = Vec::new();
        for (address, host) in &mut self.hosts {
            match host.out {
                Some((since, jitter)) => {
                    let limit = (self.settings.base_ejection * host.times).min(self.settings.max_ejection) + jitter;
                    if now.saturating_duration_since(since) >= limit {
                        back.push(host.bring_back(*address, now));
                        self.settings.stats.active.down();
                    }
                }
                None => host.times = host.times.saturating_sub(1),
            }
        }
        let mut changed = !back.is_empty();
        back.into_iter().for_each(|turn| self.note(turn));
        for side in 0..2 {
            // What happens on the way counts on its own only when it is kept apart.
            if side == 0 || self.settings.split {
                changed |= self.compare(side, now, rng);
            }
        }
        for host in self.hosts.values_mut() {
            host.counts = <_>::default();
        }
        changed
    }

    fn compare(&mut self, side: usize, now: Instant, rng: &Rng) -> bool {
        let settings = self.settings.clone();
        let rates = |volume: u32| -> Vec<(SocketAddr, f64)> {
            let enough = |host: &&Host| host.counts[side].1 > 0 && host.counts[side].1 >= u64::from(volume);
            let rate = |host: &Host| 100.0 * host.counts[side].0 as f64 / host.counts[side].1 as f64;
            self.hosts.iter().filter(|(_, host)| enough(host)).map(|(at, host)| (*at, rate(host))).collect()
        };
        let stats = &settings.stats;
        let [rate_numbers, percentage_numbers] = match side {
            0 => {
                [(&stats.detected_rate, &stats.enforced_rate), (&stats.detected_percentage, &stats.enforced_percentage)]
            }
            _ => [
                (&stats.detected_local_rate, &stats.enforced_local_rate),
                (&stats.detected_local_percentage, &stats.enforced_local_percentage),
            ],
        };
        let local = side > 0;
        let mut out: Vec<(SocketAddr, u32, (&Arc<Number>, &Arc<Number>), Cause)> = Vec::new();
        let known = rates(settings.rate_volume);
        if !known.is_empty() && known.len() >= settings.rate_hosts as usize {
            let count = known.len() as f64;
            let mean = known.iter().map(|(_, rate)| rate).sum::<f64>() / count;
            let variance = known.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / count;
            let least = mean - f64::from(settings.rate_deviation) / 1000.0 * variance.sqrt();
            let percent = settings.enforcing_rate[side];
            let cause = |own| Cause::Rate { local, own, average: mean, least };
            let low = known.iter().filter(|(_, rate)| *rate < least);
            out.extend(low.map(|(at, rate)| (*at, percent, rate_numbers, cause(*rate))));
        }
        let known = rates(settings.percentage_volume);
        if !known.is_empty() && known.len() >= settings.percentage_hosts as usize {
            let percent = settings.enforcing_percentage[side];
            let failing = known.iter().filter(|(_, rate)| 100.0 - rate >= f64::from(settings.percentage));
            let cause = |own| Cause::Percentage { local, own };
            out.extend(failing.map(|(at, rate)| (*at, percent, percentage_numbers, cause(*rate))));
        }
        let mut changed = false;
        for (address, percent, (detected, enforced), cause) in out {
            detected.add(1);
            let of_rates =
                Arc::ptr_eq(detected, &stats.detected_rate) || Arc::ptr_eq(detected, &stats.detected_local_rate);
            changed |= self.eject(address, percent, (enforced, of_rates), cause, now, rng);
        }
        changed
    }
}
