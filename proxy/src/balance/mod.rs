//! Chooses an endpoint of a cluster, as Envoy does.
//!
//! Everything here belongs to one worker. A [`Balancer`] is built anew when endpoints or their health change; what can be
//! decided then is: how much of the load each priority gets, whether too few endpoints are usable, the order of weights, the
//! tables of consistent hashing. A request then takes a group of endpoints and the next one in it.

mod edf;
mod group;
pub mod hash;
mod load;
mod rng;
mod source;
mod subset;
mod table;
#[cfg(test)]
mod tests;
mod zone;
#[cfg(test)]
mod zone_tests;

pub use load::Counts;
pub use rng::Rng;
pub use subset::MAX_SUBSETS;
pub use table::TableSize;
pub use zone::{Peers, Zones};

use crate::{
    config::{Balancing, Health, LabelValue, Labels, LbPolicy, Locality, Spread},
    pool::Host,
};
use group::Group;
use std::{cell::Cell, collections::HashMap, net::SocketAddr, rc::Rc, sync::Arc};
use subset::SubsetTable;
use zone::{Places, Zoning};

/// What a request says about where it wants to go.
#[derive(Debug, Clone, Copy)]
pub struct PickContext<'a> {
    /// The hash of the route's hash policies (or of TCP's), if there is one: ring and Maglev choose by it. Computed as Envoy
    /// computes it, the same hash leads to the same endpoint.
    pub hash: Option<u64>,
    /// What the route's `metadata_match` asks of an endpoint's labels; counts for clusters with subsets.
    pub labels: Option<&'a Labels>,
    /// Where the client wanted to connect, or what a header names instead: the endpoint in clusters of original destinations.
    /// None when nobody knows.
    pub destination: Option<SocketAddr>,
}

impl PickContext<'_> {
    /// A request that came to this address, where it is known, and asks for nothing more.
    pub fn to(destination: Option<SocketAddr>) -> Self {
        Self { hash: None, labels: None, destination }
    }
}

/// The endpoints of a cluster, ready to be chosen from.
#[derive(Debug)]
pub struct Balancer {
    policy: LbPolicy,
    plan: Plan,
    subsets: Option<Box<SubsetTable>>,
    picked: Picked,
}

/// How choices came about, since somebody asked.
#[derive(Debug, Default)]
pub struct Picked {
    /// Among endpoints of which too few are usable.
    pub panics: Cell<u64>,
    /// In the group of endpoints that was asked for.
    pub selected: Cell<u64>,
    /// Where requests go for which there is no group.
    pub fallback: Cell<u64>,
    /// Anywhere, since there is nobody where requests go for which there is no group.
    pub fallback_panic: Cell<u64>,
}

fn one_more(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

impl Default for Balancer {
    fn default() -> Self {
        Self::new(&[], LbPolicy::Random, &Balancing::default(), Spread::default(), None, &Rng::new(1), None)
    }
}

impl Balancer {
    /// A balancer over these endpoints; with `zones` it prefers those nearby, where the policy does not go by hashes, and with `only`
    /// whoever is chosen is of this level.
    pub fn new(
        all: &[Rc<Host>],
        policy: LbPolicy,
        balancing: &Balancing,
        spread: Spread,
        zones: Option<Zones<'_>>,
        rng: &Rng,
        only: Option<Level>,
    ) -> Self {
        let zones = zones.filter(|_| !policy.is_hashed());
        let places = zones.map(|zones| Rc::new(Places::new(all, zones.peers)));
        let whole = Whole { sizes: None, zones: zones.zip(places.as_ref()), only };
        let plan = Plan::new(all, policy, balancing, spread, rng, whole);
        let subsets = balancing
            .subsets
            .as_ref()
            .filter(|config| !config.selectors.is_empty() || config.fallback != <_>::default());
        let subsets =
            subsets.map(|config| Box::new(SubsetTable::new(all, config, policy, balancing, spread, whole, rng)));
        Self { policy, plan, subsets, picked: Picked::default() }
    }

    /// Whether an endpoint is there that is healthy or degraded.
    pub fn has_usable(&self) -> bool {
        self.plan.counts.iter().any(Counts::has_usable)
    }

    /// What each priority has, from the first.
    pub fn counts(&self) -> &[Counts] {
        &self.plan.counts
    }

    /// Chooses one. Where [`Balancing::skip_unreachable`] is set, those that could not be connected lately ([`Host::failed_lately`]) are
    /// chosen only when there is nobody else. Those that were `tried` for this request are chosen only when even those are none. Where the hash decides, only `tried` counts. It is asked anew
    /// about every choice, and may answer otherwise when it has left out enough.
    pub fn pick(&self, context: &PickContext<'_>, rng: &Rng, tried: impl Fn(&Host) -> bool) -> Option<Rc<Host>> {
        let within = |plan: &'_ Plan| plan.pick(self.policy, context, rng, &self.picked.panics, &tried).cloned();
        match &self.subsets {
            None => within(&self.plan),
            Some(subsets) => subsets.pick(&self.plan, context.labels, &self.picked, within),
        }
    }

    /// How large the table of the first priority is, where a hash decides.
    pub fn table_size(&self) -> Option<TableSize> {
        self.plan.groups.iter().find_map(Group::table_size)
    }

    /// Groups of endpoints by their labels: the selector's place and the values.
    pub fn subsets(&self) -> impl Iterator<Item = (usize, &[LabelValue])> {
        self.subsets.iter().flat_map(|subsets| subsets.names())
    }

    /// Takes note of the proxies of this one's kind as they are now; it counts where there were some from the start.
    pub fn peers_changed(&self, peers: &Peers) {
        self.plan.peers_changed(peers);
        if let Some(subsets) = &self.subsets {
            subsets.peers_changed(peers);
        }
    }

    /// How choices came about since the last time, which is then forgotten.
    pub fn picked(&self) -> &Picked {
        &self.picked
    }
}

/// Endpoints of each locality, by priority.
type Sizes = HashMap<(u32, Arc<Locality>), usize>;

/// What counts for groups of a cluster's endpoints of the cluster as a whole.
#[derive(Debug, Clone, Copy, Default)]
struct Whole<'a> {
    /// How large its localities are altogether, where their weights are to follow from that.
    sizes: Option<&'a Sizes>,
    /// Its places, where some are preferred.
    zones: Option<(Zones<'a>, &'a Rc<Places>)>,
    /// Where everything goes, whatever health says.
    only: Option<Level>,
}

/// The healthy or the degraded endpoints of one priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Level {
    /// The priority.
    pub priority: u32,
    /// The degraded ones.
    pub degraded: bool,
}

/// Endpoints by priority, with what each priority gets.
#[derive(Debug)]
struct Plan {
    groups: Vec<Group>,
    /// What keeps requests nearby, in the groups of the first priority.
    zoning: Option<Rc<Zoning>>,
    /// Whether too few endpoints are usable in the priority of each group.
    panics: Vec<bool>,
    /// Running sums of percentages, and the group that each leads to; of a plan without endpoints, none.
    shares: Vec<(u32, usize)>,
    empty: bool,
    /// What each priority has.
    counts: Vec<Counts>,
    skip_unreachable: bool,
}

impl Plan {
    fn new(
        all: &[Rc<Host>],
        policy: LbPolicy,
        balancing: &Balancing,
        spread: Spread,
        rng: &Rng,
        whole: Whole<'_>,
    ) -> Self {
        let last = all.iter().map(|host| host.endpoint().priority).max().map_or(0, |priority| priority as usize + 1);
        let mut priorities: Vec<Vec<Rc<Host>>> = vec![Vec::new(); last];
        for host in all {
            priorities[host.endpoint().priority as usize].push(host.clone());
        }
        let counts: Vec<Counts> = priorities.iter().map(|hosts| count(hosts)).collect();
        let loads = load::loads(&counts, balancing, spread);
        let mut plan = Self {
            groups: Vec::new(),
            zoning: whole
                .zones
                .zip(priorities.first())
                .map(|((zones, places), first)| Rc::new(Zoning::new(first, places, zones, balancing))),
            panics: Vec::new(),
            shares: Vec::new(),
            empty: all.is_empty(),
            counts,
            skip_unreachable: balancing.skip_unreachable,
        };
        if plan.empty {
            // Of nobody too few are usable.
            plan.panics.push(balancing.panic_threshold > 0);
        }
        // Healthy ones of all priorities come before degraded ones of any.
        for degraded in [false, true] {
            for (priority, (hosts, load)) in priorities.iter().zip(&loads).enumerate() {
                let percent = match whole.only {
                    Some(only) if only == (Level { priority: priority as u32, degraded }) => 100,
                    Some(_) => 0,
                    None if degraded => load.degraded,
                    None => load.healthy,
                };
                if percent == 0 {
                    continue;
                }
                let wanted = if degraded { Health::Degraded } else { Health::Healthy };
                let hashed = policy.is_hashed();
                // A table has no degraded part: Envoy looks up healthy ones, or in panic all.
                let wanted = if hashed { Health::Healthy } else { wanted };
                let panic = load.panic;
                let eligible = |host: &Host| match panic {
                    true => hashed || !balancing.fail_on_panic,
                    false => !host.endpoint().is_excluded() && host.endpoint().health == wanted,
                };
                let by_locality = balancing.by_locality && (!panic || hashed);
                let sum = plan.shares.last().map_or(0, |(sum, _)| *sum) + percent;
                plan.shares.push((sum, plan.groups.len()));
                let over = spread.overprovisioning;
                plan.panics.push(panic);
                let zoning = plan.zoning.as_ref().filter(|_| priority == 0 && !panic);
                let sizes = whole.sizes;
                plan.groups.push(Group::new(hosts, eligible, by_locality, policy, balancing, over, rng, sizes, zoning));
            }
        }
        plan
    }

    fn peers_changed(&self, peers: &Peers) {
        if let Some(zoning) = &self.zoning {
            zoning.decide(peers);
        }
    }

    fn is_empty(&self) -> bool {
        self.empty
    }

    fn group(&self, hash: u64, panics: &Cell<u64>) -> Option<&Group> {
        let note = |index: usize| {
            if self.panics.get(index) == Some(&true) {
                one_more(panics);
            }
        };
        match self.groups.as_slice() {
            [] => {
                note(0);
                None
            }
            [only] => {
                note(0);
                Some(only)
            }
            groups => {
                let at = (hash % 100) as u32 + 1;
                let index = self.shares.iter().find(|(sum, _)| at <= *sum).map(|(_, index)| *index)?;
                note(index);
                groups.get(index)
            }
        }
    }

    fn pick(
        &self,
        policy: LbPolicy,
        context: &PickContext<'_>,
        rng: &Rng,
        panics: &Cell<u64>,
        tried: impl Fn(&Host) -> bool,
    ) -> Option<&Rc<Host>> {
        /// Choices by the policy, before whoever is there is taken.
        const TRIES: u32 = 5;
        /// The same where the hash decides: there is no other way to whoever is there.
        const HASHED_TRIES: u32 = 32;
        let hashed = policy.is_hashed();
        let hash = match context.hash {
            Some(hash) if hashed => hash,
            // Nothing to decide.
            _ if !hashed && self.groups.len() == 1 => 0,
            _ => rng.next(),
        };
        let group = self.group(hash, panics)?;
        if hashed {
            let mut chosen = group.pick(policy, rng, hash, 0)?;
            for attempt in 1..HASHED_TRIES {
                if !tried(chosen) {
                    break;
                }
                chosen = group.pick(policy, rng, hash, attempt)?;
            }
            return Some(chosen);
        }
        let good = |host: &&Rc<Host>| !(self.skip_unreachable && host.failed_lately() || tried(host));
        for _ in 0..TRIES {
            let chosen = group.pick(policy, rng, hash, 0)?;
            if good(&chosen) {
                return Some(chosen);
            }
        }
        // From anywhere, so that not the first one gets all that the others cannot take.
        let from = rng.below(group.hosts().count().max(1) as u64) as usize;
        let all = || group.hosts().skip(from).chain(group.hosts().take(from));
        all().find(good).or_else(|| all().find(|host| !tried(host))).or_else(|| group.pick(policy, rng, hash, 0))
    }
}

/// A priority at random, by the load that each gets for what it has, and whether its degraded endpoints are meant. Each has its
/// own arithmetic.
pub fn choose_priority(priorities: &[(Counts, Spread)], balancing: &Balancing, rng: &Rng) -> Option<(usize, bool)> {
    let loads = load::loads_of(priorities, balancing);
    let drawn = rng.below(100) as u32 + 1;
    let healthy = loads.iter().enumerate().map(|(at, load)| ((at, false), load.healthy));
    let degraded = loads.iter().enumerate().map(|(at, load)| ((at, true), load.degraded));
    let mut sum = 0;
    healthy.chain(degraded).find_map(|(level, percent)| {
        sum += percent;
        (percent > 0 && drawn <= sum).then_some(level)
    })
}

fn count(hosts: &[Rc<Host>]) -> Counts {
    let mut counts = Counts { all: hosts.len() as u64, ..Counts::default() };
    for host in hosts {
        let endpoint = host.endpoint();
        let weight = u64::from(endpoint.weight.max(1));
        if endpoint.is_excluded() {
            counts.excluded += 1;
            continue;
        }
        counts.weights[0] += weight;
        match endpoint.health {
            Health::Healthy => {
                counts.healthy += 1;
                counts.weights[1] += weight;
            }
            Health::Degraded => {
                counts.degraded += 1;
                counts.weights[2] += weight;
            }
            Health::Draining | Health::Unhealthy => {}
        }
    }
    counts
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
