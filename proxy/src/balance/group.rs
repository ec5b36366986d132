//! The endpoints of one priority that may be chosen: all alike, by locality, those nearby first, or by hash.

use super::{
    Rng, Sizes,
    edf::Schedule,
    source::Source,
    table::{Table, TableSize},
    zone::{Way, Zoning},
};
use crate::{
    config::{Balancing, LbPolicy, Locality},
    pool::Host,
};
use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::Arc};

/// Endpoints, and how one of them is found.
#[derive(Debug)]
pub(super) enum Group {
    Flat(Source),
    ByLocality {
        localities: Vec<Source>,
        weights: Vec<f64>,
        schedule: RefCell<Schedule>,
    },
    /// All, and those of each place.
    Zoned {
        all: Source,
        places: Vec<Source>,
        zoning: Rc<Zoning>,
    },
    Hashed(Table),
}

/// A locality of one priority.
#[derive(Debug, Default)]
struct Place {
    weight: u32,
    all: usize,
    excluded: usize,
    eligible: Vec<Rc<Host>>,
}

impl Group {
    /// The `eligible` ones of the endpoints of a priority; with `by_locality`, a locality is chosen first, by its weight and
    /// the part of it that is eligible.
    #[allow(clippy::too_many_arguments)] // what a plan knows
    pub(super) fn new(
        all: &[Rc<Host>],
        eligible: impl Fn(&Host) -> bool,
        by_locality: bool,
        policy: LbPolicy,
        balancing: &Balancing,
        overprovisioning: u32,
        rng: &Rng,
        whole: Option<&Sizes>,
        zoning: Option<&Rc<Zoning>>,
    ) -> Self {
        let hashed = policy.is_hashed();
        if !by_locality {
            let hosts: Vec<_> = all.iter().filter(|host| eligible(host)).cloned().collect();
            if hashed {
                let total: f64 = hosts.iter().map(|host| weight(host)).sum();
                let weighted = hosts.into_iter().map(|host| (host.clone(), weight(&host) / total)).collect();
                return Self::Hashed(Table::new(weighted, policy, balancing));
            }
            return Self::alike(hosts, policy, balancing, rng, zoning);
        }
        let mut places: BTreeMap<&Arc<Locality>, Place> = BTreeMap::new();
        for host in all {
            let endpoint = host.endpoint();
            let place = places.entry(&endpoint.locality).or_default();
            place.weight = endpoint.locality.weight.unwrap_or(0);
            place.all += 1;
            place.excluded += usize::from(endpoint.is_excluded());
            if eligible(host) {
                place.eligible.push(host.clone());
            }
        }
        if let (Some(whole), Some(first)) = (whole, all.first()) {
            let priority = first.endpoint().priority;
            for (locality, place) in &mut places {
                if let Some(size) = whole.get(&(priority, (*locality).clone())) {
                    place.weight = scaled(place.weight, place.all, *size);
                }
            }
        }
        if hashed {
            return Self::Hashed(Table::new(normalised(places.into_values()), policy, balancing));
        }
        let (mut localities, mut weights) = (Vec::new(), Vec::new());
        for place in places.into_values() {
            let share = availability(&place, overprovisioning);
            if share > 0.0 {
                weights.push(share);
                localities.push(Source::new(place.eligible, policy, balancing, rng));
            }
        }
        if localities.is_empty() {
            // None has a weight: then it is as if nobody had asked for localities.
            let hosts = all.iter().filter(|host| eligible(host)).cloned().collect();
            return Self::alike(hosts, policy, balancing, rng, zoning);
        }
        let mut schedule = Schedule::new(weights.iter().copied());
        for _ in 0..rng.below(weights.len().max(1) as u64) {
            schedule.next(|index| weights[index]);
        }
        Self::ByLocality { localities, weights, schedule: RefCell::new(schedule) }
    }

    /// These endpoints without regard to weights of localities.
    fn alike(
        hosts: Vec<Rc<Host>>,
        policy: LbPolicy,
        balancing: &Balancing,
        rng: &Rng,
        zoning: Option<&Rc<Zoning>>,
    ) -> Self {
        let source = |hosts| Source::new(hosts, policy, balancing, rng);
        match zoning.filter(|zoning| zoning.places().are_several()) {
            None => Self::Flat(source(hosts)),
            Some(zoning) => {
                let places = zoning.places().split(&hosts).into_iter().map(source).collect();
                Self::Zoned { all: source(hosts), places, zoning: zoning.clone() }
            }
        }
    }

    /// How large its table is, where a hash decides.
    pub(super) fn table_size(&self) -> Option<TableSize> {
        match self {
            Self::Hashed(table) => Some(table.size()),
            Self::Flat(_) | Self::ByLocality { .. } | Self::Zoned { .. } => None,
        }
    }

    /// One endpoint. `hash` counts where endpoints are found by hash; a later `attempt` gives another one.
    pub(super) fn pick(&self, policy: LbPolicy, rng: &Rng, hash: u64, attempt: u32) -> Option<&Rc<Host>> {
        match self {
            Self::Flat(source) => source.pick(policy, rng),
            Self::ByLocality { localities, weights, schedule } => {
                let index = match localities.len() {
                    1 => 0,
                    _ => schedule.borrow_mut().next(|index| weights[index])?,
                };
                localities.get(index)?.pick(policy, rng)
            }
            Self::Zoned { all, places, zoning } => match zoning.choose(rng) {
                Way::Anywhere => all.pick(policy, rng),
                Way::Nowhere => None,
                // Where the place has nobody, Envoy has nobody either; here somebody else serves.
                Way::Place(index) => {
                    places.get(index).and_then(|place| place.pick(policy, rng)).or_else(|| all.pick(policy, rng))
                }
            },
            Self::Hashed(table) => table.pick(hash, attempt),
        }
    }

    /// Every endpoint of it.
    pub(super) fn hosts(&self) -> impl Iterator<Item = &Rc<Host>> + Clone {
        let (flat, localities): (&[Rc<Host>], &[Source]) = match self {
            Self::Flat(source) | Self::Zoned { all: source, .. } => (source.hosts(), &[]),
            Self::ByLocality { localities, .. } => (&[], localities),
            Self::Hashed(table) => (table.hosts(), &[]),
        };
        flat.iter().chain(localities.iter().flat_map(Source::hosts))
    }
}

/// A locality's weight in a group that has `part` of its `whole` endpoints: at least 1, unless it had none.
fn scaled(weight: u32, part: usize, whole: usize) -> u32 {
    let scaled = (f64::from(weight) * part as f64 / whole.max(1) as f64).round() as u32;
    scaled.max(u32::from(weight > 0))
}

fn weight(host: &Host) -> f64 {
    f64::from(host.endpoint().weight.max(1))
}

/// A locality's weight, less when fewer of it are eligible than overprovisioning makes up for.
fn availability(place: &Place, overprovisioning: u32) -> f64 {
    let known = place.all - place.excluded;
    if known == 0 {
        return 0.0;
    }
    let usable = f64::from(overprovisioning) / 100.0 * place.eligible.len() as f64 / known as f64;
    f64::from(place.weight) * usable.min(1.0)
}

/// Endpoints with their part of everything: of their locality's part by their own weight.
fn normalised(places: impl Iterator<Item = Place>) -> Vec<(Rc<Host>, f64)> {
    let places: Vec<Place> = places.collect();
    let total: f64 = places.iter().map(|place| f64::from(place.weight)).sum();
    let mut weighted = Vec::new();
    for place in places.into_iter().filter(|place| place.weight > 0) {
        let own: f64 = place.eligible.iter().map(|host| weight(host)).sum();
        let part = f64::from(place.weight) / total;
        weighted.extend(place.eligible.into_iter().map(|host| (host.clone(), weight(&host) * part / own)));
    }
    weighted
}
