//! Chooses an endpoint of a cluster.
//!
//! Everything here belongs to one worker. Only healthy endpoints of the lowest priority that has any are eligible
//! (degraded ones when no healthy one is left); there is no panic mode in which unhealthy ones would get traffic.

mod rng;

pub use rng::Rng;

use crate::{
    config::{Endpoint, Health, LbPolicy},
    pool::Host,
};
use std::{cell::Cell, rc::Rc};

/// The eligible endpoints of a cluster, and where the round robin stands.
#[derive(Debug, Default)]
pub struct Balancer {
    hosts: Vec<Rc<Host>>,
    /// Running sums of weights; empty when all weights are the same.
    sums: Vec<u64>,
    turn: Cell<usize>,
}

/// Which endpoints may be chosen.
pub fn eligible(endpoints: &[Rc<Host>]) -> Vec<Rc<Host>> {
    for health in [Health::Healthy, Health::Degraded] {
        let of = |host: &&Rc<Host>| host.endpoint().health == health;
        if let Some(priority) = endpoints.iter().filter(of).map(|host| host.endpoint().priority).min() {
            return endpoints.iter().filter(of).filter(|host| host.endpoint().priority == priority).cloned().collect();
        }
    }
    Vec::new()
}

impl Balancer {
    /// A balancer over the eligible ones of these.
    pub fn new(all: &[Rc<Host>], rng: &Rng) -> Self {
        let hosts = eligible(all);
        let weight = |endpoint: &Endpoint| u64::from(endpoint.weight.max(1));
        let same = hosts.windows(2).all(|pair| pair[0].endpoint().weight == pair[1].endpoint().weight);
        let mut sum = 0;
        let sums = if same {
            Vec::new()
        } else {
            hosts
                .iter()
                .map(|host| {
                    sum += weight(host.endpoint());
                    sum
                })
                .collect()
        };
        // Workers and proxies begin at different places, so that they do not march in step.
        let turn = Cell::new(rng.below(hosts.len().max(1) as u64) as usize);
        Self { hosts, sums, turn }
    }

    /// The eligible endpoints.
    pub fn hosts(&self) -> &[Rc<Host>] {
        &self.hosts
    }

    /// Chooses one. Those that could not be connected lately ([`Host::failed_lately`]) are chosen only when there is nobody else, and those that
    /// were `tried` for this request only when even those are none.
    pub fn pick(&self, policy: LbPolicy, rng: &Rng, tried: impl Fn(&Host) -> bool) -> Option<&Rc<Host>> {
        /// Envoy's default too for `host_selection_retry_max_attempts`, rounded up.
        const TRIES: usize = 5;
        let good = |host: &&Rc<Host>| !tried(host) && !host.failed_lately();
        for _ in 0..TRIES {
            let chosen = self.pick_once(policy, rng)?;
            if good(&chosen) {
                return Some(chosen);
            }
        }
        // From anywhere, so that not the first one gets all that the others cannot take.
        let from = rng.below(self.hosts.len().max(1) as u64) as usize;
        let all = || self.hosts[from..].iter().chain(&self.hosts[..from]);
        all().find(good).or_else(|| all().find(|host| !tried(host))).or_else(|| self.pick_once(policy, rng))
    }

    fn pick_once(&self, policy: LbPolicy, rng: &Rng) -> Option<&Rc<Host>> {
        match self.hosts.as_slice() {
            [] => None,
            [only] => Some(only),
            hosts => Some(match policy {
                LbPolicy::Random => self.at_random(rng),
                LbPolicy::RoundRobin if self.sums.is_empty() => {
                    let turn = self.turn.get();
                    self.turn.set((turn + 1) % hosts.len());
                    &hosts[turn % hosts.len()]
                }
                LbPolicy::RoundRobin => self.in_smooth_turn(),
                LbPolicy::LeastRequest { choices } => {
                    let mut best = self.at_random(rng);
                    for _ in 1..choices.max(2) {
                        let other = self.at_random(rng);
                        if other.active() < best.active() {
                            best = other;
                        }
                    }
                    best
                }
            }),
        }
    }

    fn at_random(&self, rng: &Rng) -> &Rc<Host> {
        let index = match self.sums.last() {
            None => rng.below(self.hosts.len() as u64) as usize,
            Some(&total) => {
                let at = rng.below(total);
                self.sums.partition_point(|&sum| sum <= at)
            }
        };
        &self.hosts[index.min(self.hosts.len() - 1)]
    }

    /// Smooth weighted round robin: each turn everyone gains its weight, the richest one is taken and pays the total.
    fn in_smooth_turn(&self) -> &Rc<Host> {
        let mut best = &self.hosts[0];
        let mut total = 0;
        for host in &self.hosts {
            let weight = i64::from(host.endpoint().weight.max(1));
            total += weight;
            host.credit().set(host.credit().get() + weight);
            if host.credit().get() > best.credit().get() {
                best = host;
            }
        }
        best.credit().set(best.credit().get() - total);
        best
    }
}

/// An index by weight: `weights` in order, 0 is never chosen unless all are 0, then `None`.
pub fn weighted(weights: impl Iterator<Item = u32> + Clone, rng: &Rng) -> Option<usize> {
    let total: u64 = weights.clone().map(u64::from).sum();
    if total == 0 {
        return None;
    }
    let mut at = rng.below(total);
    for (index, weight) in weights.enumerate() {
        if at < u64::from(weight) {
            return Some(index);
        }
        at -= u64::from(weight);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeMap, sync::Arc};

    fn host(port: u16, weight: u32, health: Health, priority: u32) -> Rc<Host> {
        let address = ([127, 0, 0, 1], port).into();
        Rc::new(Host::new(Arc::new(Endpoint { weight, health, priority, ..Endpoint::new(address) })))
    }

    fn counts(balancer: &Balancer, policy: LbPolicy, picks: usize) -> BTreeMap<u16, usize> {
        let rng = Rng::new(7);
        let mut counts = BTreeMap::new();
        for _ in 0..picks {
            *counts.entry(balancer.pick(policy, &rng, |_| false).unwrap().address().port()).or_default() += 1;
        }
        counts
    }

    #[test]
    fn balancer_when_endpoints_are_unhealthy_then_they_are_never_chosen() {
        let all = [
            host(1, 1, Health::Unhealthy, 0),
            host(2, 1, Health::Draining, 0),
            host(3, 1, Health::Degraded, 0),
            host(4, 1, Health::Healthy, 1),
            host(5, 1, Health::Healthy, 2),
        ];
        let balancer = Balancer::new(&all, &Rng::new(1));
        assert_eq!(counts(&balancer, LbPolicy::Random, 50), BTreeMap::from([(4, 50)]));
        let balancer = Balancer::new(&all[..3], &Rng::new(1));
        assert_eq!(counts(&balancer, LbPolicy::Random, 50), BTreeMap::from([(3, 50)]));
        let none = Balancer::new(&all[..2], &Rng::new(1));
        assert!(none.pick(LbPolicy::Random, &Rng::new(1), |_| false).is_none());
    }

    #[test]
    fn balancer_when_weights_differ_then_shares_follow_them() {
        let all = [host(1, 1, Health::Healthy, 0), host(2, 3, Health::Healthy, 0)];
        let balancer = Balancer::new(&all, &Rng::new(1));
        assert_eq!(counts(&balancer, LbPolicy::RoundRobin, 400), BTreeMap::from([(1, 100), (2, 300)]));
        let random = counts(&balancer, LbPolicy::Random, 4000);
        assert!((850..1150).contains(&random[&1]), "{random:?}");
    }

    #[test]
    fn balancer_when_one_is_busy_then_least_request_takes_the_other() {
        let all = [host(1, 1, Health::Healthy, 0), host(2, 1, Health::Healthy, 0)];
        let busy: Vec<_> = (0..10).map(|_| all[0].enter()).collect();
        let balancer = Balancer::new(&all, &Rng::new(1));
        let counts = counts(&balancer, LbPolicy::LeastRequest { choices: 2 }, 1000);
        assert!(counts[&2] > 650, "{counts:?}: the busy one only when both looks fall on it");
        drop(busy);
        assert_eq!(all[0].active(), 0);
    }

    #[test]
    fn balancer_when_one_was_tried_then_another_is_taken_while_there_is_one() {
        let all = [host(1, 1000, Health::Healthy, 0), host(2, 1, Health::Healthy, 0)];
        let balancer = Balancer::new(&all, &Rng::new(1));
        let other = balancer.pick(LbPolicy::Random, &Rng::new(1), |host| host.address().port() == 1).unwrap();
        assert_eq!(other.address().port(), 2);
        assert!(balancer.pick(LbPolicy::Random, &Rng::new(1), |_| true).is_some());
    }

    #[test]
    fn balancer_when_one_failed_lately_then_it_is_left_alone_while_there_is_another() {
        let all = [host(1, 1, Health::Healthy, 0), host(2, 1, Health::Healthy, 0), host(3, 1, Health::Healthy, 0)];
        let balancer = Balancer::new(&all, &Rng::new(1));
        all[0].note_failure();
        let chosen = counts(&balancer, LbPolicy::LeastRequest { choices: 2 }, 300);
        assert!(!chosen.contains_key(&1) && chosen.len() == 2, "{chosen:?}");
        let rng = Rng::new(1);
        let pick = |tried: &[u16]| {
            let port = balancer.pick(LbPolicy::Random, &rng, |host| tried.contains(&host.address().port()));
            port.unwrap().address().port()
        };
        assert!((0..50).all(|_| pick(&[2, 3]) == 1), "what failed is better than what this request has tried");
        all[1].note_failure();
        all[2].note_failure();
        assert_eq!(counts(&balancer, LbPolicy::Random, 300).len(), 3, "when all have failed, all are used");
        all[1].note_success();
        assert_eq!(counts(&balancer, LbPolicy::Random, 50), BTreeMap::from([(2, 50)]));
    }

    #[test]
    fn weighted_when_weight_is_zero_then_it_is_never_chosen() {
        let rng = Rng::new(3);
        assert!((0..1000).all(|_| weighted([0, 5, 0].into_iter(), &rng) == Some(1)));
        assert_eq!(weighted([0, 0].into_iter(), &rng), None);
    }
}
