//! A set of endpoints from which one is taken by round robin, by least requests or at random.

use super::{Rng, edf::Schedule};
use crate::{
    config::{Balancing, LbPolicy, SlowStart},
    pool::Host,
};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

/// Endpoints that may all be chosen, and whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Source {
    hosts: Vec<Rc<Host>>,
    turn: Cell<usize>,
    /// Where weights differ, or some endpoint has not got its whole share yet.
    weighted: Option<Box<Weighted>>,
}

#[derive(Debug)]
struct Weighted {
    schedule: RefCell<Schedule>,
    /// The power of [`Balancing::active_request_bias`]; 0 where active requests do not count.
    bias: f64,
    slow: Option<SlowStart>,
}

impl Weighted {
    fn weight(&self, host: &Host) -> f64 {
        let weight = f64::from(host.endpoint().weight.max(1));
        let requests = f64::from(host.active()) + 1.0;
        let weight = match self.bias {
            0.0 => weight,
            1.0 => weight / requests,
            bias => weight / requests.powf(bias),
        };
        match self.slow {
            None => weight,
            Some(slow) => weight * grown(slow, host.healthy_for(Instant::now())),
        }
    }
}

/// The share, of 1, of an endpoint that has been healthy for so long.
pub(super) fn grown(slow: SlowStart, healthy_for: Duration) -> f64 {
    if healthy_for >= slow.window {
        return 1.0;
    }
    let time = healthy_for.max(Duration::from_millis(1)).as_secs_f64() / slow.window.as_secs_f64();
    let share = if slow.aggression == 1.0 { time } else { time.powf(1.0 / slow.aggression) };
    share.max(slow.min_weight).min(1.0)
}

impl Source {
    /// These endpoints, for this policy.
    pub(super) fn new(hosts: Vec<Rc<Host>>, policy: LbPolicy, balancing: &Balancing, rng: &Rng) -> Self {
        let same = hosts.windows(2).all(|pair| pair[0].endpoint().weight == pair[1].endpoint().weight);
        let now = Instant::now();
        let slow = balancing.slow_start.filter(|slow| hosts.iter().any(|host| host.healthy_for(now) < slow.window));
        let bias = match policy {
            LbPolicy::LeastRequest { .. } => Some(balancing.active_request_bias),
            LbPolicy::RoundRobin => Some(0.0),
            _ => None,
        };
        let weighted = bias.filter(|_| hosts.len() > 1 && (!same || slow.is_some())).map(|bias| {
            let weighted = Weighted { schedule: RefCell::default(), bias, slow };
            let mut schedule = Schedule::new(hosts.iter().map(|host| weighted.weight(host)));
            for _ in 0..rng.below(hosts.len() as u64) {
                schedule.next(|index| weighted.weight(&hosts[index]));
            }
            weighted.schedule.replace(schedule);
            Box::new(weighted)
        });
        // Workers and proxies begin at different places, so that they do not march in step.
        let turn = Cell::new(rng.below(hosts.len().max(1) as u64) as usize);
        Self { hosts, turn, weighted }
    }

    pub(super) fn hosts(&self) -> &[Rc<Host>] {
        &self.hosts
    }

    /// The next one.
    pub(super) fn pick(&self, policy: LbPolicy, rng: &Rng) -> Option<&Rc<Host>> {
        match self.hosts.as_slice() {
            [] => None,
            [only] => Some(only),
            hosts => match &self.weighted {
                None => Some(self.pick_equal(hosts, policy, rng)),
                Some(weighted) => {
                    let index = weighted.schedule.borrow_mut().next(|index| weighted.weight(&hosts[index]));
                    index.map(|index| &hosts[index])
                }
            },
        }
    }

    fn pick_equal<'a>(&self, hosts: &'a [Rc<Host>], policy: LbPolicy, rng: &Rng) -> &'a Rc<Host> {
        let at_random = || &hosts[rng.below(hosts.len() as u64) as usize];
        match policy {
            LbPolicy::RoundRobin => {
                let turn = self.turn.get();
                self.turn.set((turn + 1) % hosts.len());
                &hosts[turn % hosts.len()]
            }
            LbPolicy::LeastRequest { choices } => {
                let mut best = at_random();
                for _ in 1..choices.max(2) {
                    let other = at_random();
                    if other.active() < best.active() {
                        best = other;
                    }
                }
                best
            }
            LbPolicy::LeastOfAll => {
                // From anywhere, so that not the first of several equal ones gets all.
                let from = rng.below(hosts.len() as u64) as usize;
                let (before, after) = hosts.split_at(from);
                let all = after.iter().chain(before);
                all.min_by_key(|host| host.active()).unwrap_or(&hosts[0])
            }
            // Hashes are looked up in tables; what has none is chosen at random.
            LbPolicy::Random | LbPolicy::RingHash(_) | LbPolicy::Maglev { .. } => at_random(),
        }
    }
}
