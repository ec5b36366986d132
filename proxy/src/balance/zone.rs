//! Keeps requests in the zone of this proxy, as far as its endpoints there can take them: Envoy's zone aware routing.
//!
//! The proxy and those like it are endpoints of a cluster themselves. Where a zone has a larger part of another cluster's endpoints
//! than of the proxies, its endpoints can serve all that its proxies send; where the part is smaller, what is too much goes to
//! the zones that have room. Only healthy endpoints count, and only those of the first priority.
//!
//! The parts are reckoned when the endpoints of either cluster change; a request then takes one or two random numbers.

use super::{Rng, count, load::Counts};
use crate::{
    config::{Balancing, Health, Home, Locality, ZoneAware, ZoneChanges},
    pool::Host,
    telemetry::{stats::ClusterStats, tracked::ZoneStats},
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
};

/// The whole, of which parts are told: a hundredth of a percent.
const WHOLE: u64 = 10_000;

/// Healthy endpoints of a place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Members {
    number: u64,
    weight: u64,
}

impl Members {
    fn add(&mut self, host: &Host) {
        let endpoint = host.endpoint();
        if endpoint.health == Health::Healthy && !endpoint.is_excluded() {
            self.number += 1;
            self.weight += u64::from(endpoint.weight.max(1));
        }
    }

    fn size(&self, by_weight: bool) -> u64 {
        if by_weight { self.weight } else { self.number }
    }

    /// The part of `all` that these are.
    fn part(&self, all: u64, by_weight: bool) -> u64 {
        (WHOLE * self.size(by_weight)).checked_div(all).unwrap_or(0)
    }
}

/// The proxies of this one's kind, by place: the endpoints of the local cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peers {
    own: Option<Locality>,
    changes: ZoneChanges,
    places: BTreeMap<Locality, Members>,
    counts: Counts,
}

impl Peers {
    /// Those of a local cluster with these endpoints.
    pub fn new(hosts: &[Rc<Host>], home: &Home) -> Self {
        let first: Vec<Rc<Host>> = hosts.iter().filter(|host| host.endpoint().priority == 0).cloned().collect();
        let mut places: BTreeMap<_, Members> = BTreeMap::new();
        for host in &first {
            places.entry(host.endpoint().locality.names()).or_default().add(host);
        }
        let places = places.into_iter().map(|(names, members)| (Locality::of(names), members)).collect();
        let own = home.locality.as_ref().map(|own| Locality::of(own.names()));
        Self { own, changes: home.changes, places, counts: count(&first) }
    }

    /// Whether the place of this proxy has one of them, whatever its health.
    fn know_own(&self) -> bool {
        self.own.as_ref().is_some_and(|own| self.places.contains_key(own))
    }
}

/// The places of a cluster's first priority in the order in which they are looked at: the proxy's own, then by name.
#[derive(Debug)]
pub(super) struct Places {
    order: Vec<Locality>,
    /// The first one is the proxy's own.
    own_first: bool,
}

/// What a cluster needs to prefer a zone.
#[derive(Debug, Clone, Copy)]
pub struct Zones<'a> {
    /// The proxies.
    pub peers: &'a Peers,
    /// What is counted.
    pub stats: &'a Arc<ClusterStats>,
}

impl Places {
    pub(super) fn new(all: &[Rc<Host>], peers: &Peers) -> Self {
        let first = all.iter().map(|host| host.endpoint()).filter(|endpoint| endpoint.priority == 0);
        let names: BTreeSet<_> = first.map(|endpoint| endpoint.locality.names()).collect();
        let mut order: Vec<Locality> = names.into_iter().map(Locality::of).collect();
        let at = peers.own.as_ref().and_then(|own| order.iter().position(|place| place == own));
        if let Some(at) = at {
            order[..=at].rotate_right(1);
        }
        Self { order, own_first: at.is_some() }
    }

    /// Whether there is anything to choose.
    pub(super) fn are_several(&self) -> bool {
        self.order.len() > 1
    }

    fn index(&self, locality: &Locality) -> Option<usize> {
        let names = locality.names();
        let (own, others) = self.order.split_at(usize::from(self.own_first));
        if own.iter().any(|own| own.names() == names) {
            return Some(0);
        }
        others.binary_search_by(|place| place.names().cmp(&names)).ok().map(|at| at + own.len())
    }

    /// These endpoints, place by place.
    pub(super) fn split(&self, hosts: &[Rc<Host>]) -> Vec<Vec<Rc<Host>>> {
        let mut split = vec![Vec::new(); self.order.len()];
        for host in hosts {
            if let Some(index) = self.index(&host.endpoint().locality) {
                split[index].push(host.clone());
            }
        }
        split
    }
}

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// To any endpoint: zones do not count.
    Anywhere,
    /// To the place of this index.
    Place(usize),
    /// It is to fail.
    Nowhere,
}

/// What the parts say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Routing {
    /// Zones do not count.
    #[default]
    Off,
    /// All stays in the proxy's own place.
    Direct,
    /// Some of it does, and the others have room.
    Shared {
        /// What stays, of [`WHOLE`].
        own: u64,
        /// Running sums of the room in each place.
        room: Vec<u64>,
    },
}

#[derive(Debug, Default)]
struct Decided {
    routing: Routing,
    /// Percent of requests for which it counts.
    enabled: u64,
    /// Too few of the proxies are well for their numbers to tell anything.
    panic: bool,
}

/// The zones of a plan.
#[derive(Debug)]
pub(super) struct Zoning {
    places: Rc<Places>,
    /// Healthy endpoints of each place.
    members: Vec<Members>,
    settings: ZoneAware,
    panic_threshold: u8,
    fail_on_panic: bool,
    stats: Arc<ClusterStats>,
    decided: RefCell<Decided>,
}

impl Zoning {
    /// Of the endpoints `first` of a first priority.
    pub(super) fn new(first: &[Rc<Host>], places: &Rc<Places>, zones: Zones<'_>, balancing: &Balancing) -> Self {
        let mut members = vec![Members::default(); places.order.len()];
        for host in first {
            if let Some(index) = places.index(&host.endpoint().locality) {
                members[index].add(host);
            }
        }
        let zoning = Self {
            places: places.clone(),
            members,
            settings: balancing.zones,
            panic_threshold: balancing.panic_threshold,
            fail_on_panic: balancing.fail_on_panic,
            stats: zones.stats.clone(),
            decided: RefCell::default(),
        };
        zoning.decide(zones.peers);
        zoning
    }

    pub(super) fn places(&self) -> &Places {
        &self.places
    }

    fn stats(&self) -> &ZoneStats {
        self.stats.zones.get_or_init(Box::default)
    }

    /// Reckons anew, with these proxies.
    pub(super) fn decide(&self, peers: &Peers) {
        let settings = self.settings.changed_by(peers.changes);
        self.stats().recalculated.add(1);
        self.decided.replace(Decided {
            routing: self.routing(settings, peers),
            enabled: settings.enabled,
            panic: peers.counts.are_too_few(self.panic_threshold),
        });
    }

    fn routing(&self, settings: ZoneAware, peers: &Peers) -> Routing {
        if !self.places.are_several() || settings.force.is_none() && peers.places.len() < 2 {
            return Routing::Off;
        }
        if !peers.know_own() {
            // Then nobody reckons with this proxy, and it cannot either.
            self.stats().local_cluster_not_ok.add(1);
            return Routing::Off;
        }
        if self.members.iter().map(|members| members.number).sum::<u64>() < settings.min_size {
            self.stats().cluster_too_small.add(1);
            return Routing::Off;
        }
        let by_weight = settings.by_weight;
        let all = |members: &mut dyn Iterator<Item = &Members>| members.map(|some| some.size(by_weight)).sum();
        let (all_here, all_peers) = (all(&mut self.members.iter()), all(&mut peers.places.values()));
        // What each place has of the cluster, and of the proxies. Where nobody is well, the proxies do not matter.
        let parts: Vec<(u64, u64)> = self
            .members
            .iter()
            .zip(&self.places.order)
            .map(|(members, place)| {
                let of_peers = peers.places.get(place).filter(|_| members.number > 0).copied().unwrap_or_default();
                (members.part(all_here, by_weight), of_peers.part(all_peers, by_weight))
            })
            .collect();
        let own = parts.first().copied().filter(|_| self.places.own_first);
        if let Some((has, wants)) = own
            && let Some(members) = self.members.first()
            && (has > 0 && has >= wants || settings.force.is_some_and(|least| members.number >= least))
        {
            return Routing::Direct;
        }
        let mut sum = 0;
        let room = parts.iter().enumerate().map(|(index, (has, wants))| {
            if index > 0 || own.is_none() {
                sum += has.saturating_sub(*wants);
            }
            sum
        });
        let room = room.collect();
        Routing::Shared { own: own.and_then(|(has, wants)| (has * WHOLE).checked_div(wants)).unwrap_or(0), room }
    }

    /// Where the next request goes.
    pub(super) fn choose(&self, rng: &Rng) -> Way {
        let decided = self.decided.borrow();
        if decided.routing == Routing::Off || decided.enabled < 100 && rng.below(100) >= decided.enabled {
            return Way::Anywhere;
        }
        let stats = self.stats();
        if decided.panic {
            stats.local_cluster_not_ok.add(1);
            return if self.fail_on_panic { Way::Nowhere } else { Way::Anywhere };
        }
        let (own, room) = match &decided.routing {
            Routing::Off => return Way::Anywhere,
            Routing::Direct => {
                stats.routing_all_directly.add(1);
                return Way::Place(0);
            }
            Routing::Shared { own, room } => (*own, room),
        };
        if own > 0 && rng.below(WHOLE) < own {
            stats.routing_sampled.add(1);
            return Way::Place(0);
        }
        stats.routing_cross_zone.add(1);
        let all = room.last().copied().unwrap_or(0);
        if all == 0 {
            stats.no_capacity_left.add(1);
            return Way::Place(rng.below(room.len().max(1) as u64) as usize);
        }
        let at = rng.below(all);
        room.iter().position(|sum| at < *sum).map_or(Way::Anywhere, Way::Place)
    }
}
