//! Consistent hashing: a ring (ketama) or a Maglev table, and the bound on an endpoint's load.
//!
//! Places are built exactly as Envoy builds them, so that the same hash finds the same endpoint in both.

use super::hash::{Twister, murmur_hash, xx_hash};
use crate::{
    config::{Balancing, HashFunction, LabelValue, LbPolicy, RingHash, pipe::Shown},
    pool::Host,
};
use std::rc::Rc;

/// Endpoints with their normalised weights (together 1), and where hashes lead.
#[derive(Debug)]
pub(super) struct Table {
    hosts: Vec<Rc<Host>>,
    weights: Vec<f64>,
    places: Places,
    /// Percent of the average load; 0 is no bound.
    bound: u32,
}

/// How many places there are, and the fewest and the most that an endpoint has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TableSize {
    /// All of them.
    pub places: u64,
    /// Of the endpoint that has the fewest.
    pub fewest: u64,
    /// Of the endpoint that has the most.
    pub most: u64,
}

#[derive(Debug)]
enum Places {
    /// Hash and index of an endpoint, sorted by hash.
    Ring(Vec<(u64, u32)>),
    /// Indices of endpoints.
    Maglev(Vec<u32>),
}

impl Table {
    /// A table of these endpoints.
    pub(super) fn new(weighted: Vec<(Rc<Host>, f64)>, policy: LbPolicy, balancing: &Balancing) -> Self {
        let (hosts, weights): (Vec<_>, Vec<_>) = weighted.into_iter().unzip();
        let keys: Vec<String> = hosts.iter().map(|host| key(host, balancing.hash_by_hostname)).collect();
        let places = match policy {
            LbPolicy::RingHash(ring) => Places::Ring(build_ring(&keys, &weights, ring)),
            LbPolicy::Maglev { table_size } => Places::Maglev(build_maglev(&keys, &weights, table_size)),
            _ => Places::Ring(Vec::new()),
        };
        Self { hosts, weights, places, bound: balancing.hash_balance_factor }
    }

    /// How large it is.
    pub(super) fn size(&self) -> TableSize {
        let mut each = vec![0_u64; self.hosts.len()];
        let mut count = |index: u32| each[index as usize] += 1;
        match &self.places {
            Places::Ring(ring) => ring.iter().for_each(|(_, index)| count(*index)),
            Places::Maglev(table) => table.iter().copied().for_each(count),
        }
        let of = |number: Option<&u64>| number.copied().unwrap_or(0);
        TableSize { places: each.iter().sum(), fewest: of(each.iter().min()), most: of(each.iter().max()) }
    }

    /// Its endpoints.
    pub(super) fn hosts(&self) -> &[Rc<Host>] {
        &self.hosts
    }

    /// Where the hash leads; a later `attempt` leads elsewhere.
    pub(super) fn pick(&self, hash: u64, attempt: u32) -> Option<&Rc<Host>> {
        let index = match &self.places {
            Places::Ring(ring) => ring_place(ring, hash, attempt)?,
            Places::Maglev(table) => maglev_place(table, hash, attempt)?,
        };
        let index = if self.bound > 0 { self.within_bound(hash, index as usize) } else { index as usize };
        self.hosts.get(index)
    }

    /// The endpoint itself, or one that is less loaded, in an order that the hash decides.
    fn within_bound(&self, hash: u64, chosen: usize) -> usize {
        let total: u64 = self.hosts.iter().map(|host| u64::from(host.active())).sum();
        let slots = ((total + 1) * u64::from(self.bound)).div_ceil(100);
        let load = |index: usize| {
            let own = (slots as f64 * self.weights[index]).ceil().max(1.0);
            f64::from(self.hosts[index].active()) / own
        };
        let mut least = load(chosen);
        if least <= 1.0 {
            return chosen;
        }
        let mut best = chosen;
        let mut order: Vec<u32> = (0..self.hosts.len() as u32).collect();
        let mut random = Twister::new(hash as u32);
        for at in 0..order.len() {
            let other = at + random.below((order.len() - at) as u32) as usize;
            order.swap(at, other);
            let index = order[at] as usize;
            if index == chosen {
                continue;
            }
            let load = load(index);
            if load <= 1.0 {
                return index;
            }
            if load < least {
                (best, least) = (index, load);
            }
        }
        best
    }
}

/// What an endpoint is hashed by: the label `hash_key`, its host name if that is asked for, or its address.
fn key(host: &Host, by_hostname: bool) -> String {
    let endpoint = host.endpoint();
    match endpoint.labels.get("hash_key") {
        Some(LabelValue::Text(text)) if !text.is_empty() => return text.to_string(),
        _ => {}
    }
    match &endpoint.hostname {
        Some(name) if by_hostname => name.to_string(),
        _ => Shown(endpoint.address).to_string(),
    }
}

fn build_ring(keys: &[String], weights: &[f64], ring: RingHash) -> Vec<(u64, u32)> {
    let least = weights.iter().copied().fold(1.0, f64::min);
    if keys.is_empty() || least <= 0.0 {
        return Vec::new();
    }
    // The lightest endpoint gets a whole number of places, others whatever that makes for them.
    let scale = ((least * ring.min_size as f64).ceil() / least).min(ring.max_size as f64);
    let mut places = Vec::with_capacity(scale.ceil() as usize);
    let (mut have, mut wanted) = (0.0, 0.0);
    for (index, (key, weight)) in keys.iter().zip(weights).enumerate() {
        wanted += scale * weight;
        let mut number = 0_u64;
        while have < wanted {
            let text = format!("{key}_{number}");
            let hash = match ring.function {
                HashFunction::XxHash => xx_hash(text.as_bytes(), 0),
                HashFunction::Murmur2 => murmur_hash(text.as_bytes()),
            };
            places.push((hash, index as u32));
            number += 1;
            have += 1.0;
        }
    }
    places.sort_by_key(|(hash, _)| *hash);
    places
}

fn ring_place(ring: &[(u64, u32)], hash: u64, attempt: u32) -> Option<u32> {
    let at = ring.partition_point(|(place, _)| *place < hash);
    let at = if at == ring.len() { 0 } else { at };
    ring.get((at + attempt as usize).checked_rem(ring.len())?).map(|(_, index)| *index)
}

fn build_maglev(keys: &[String], weights: &[f64], size: u32) -> Vec<u32> {
    struct Entry {
        index: u32,
        offset: u64,
        skip: u64,
        weight: f64,
        target: f64,
        next: u64,
    }
    const FREE: u32 = u32::MAX;
    let size = u64::from(size.max(2));
    let most = weights.iter().copied().fold(0.0, f64::max);
    if keys.is_empty() || most <= 0.0 {
        return Vec::new();
    }
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by(|a, b| keys[*a].cmp(&keys[*b]));
    let mut entries: Vec<Entry> = order
        .into_iter()
        .map(|index| {
            let key = keys[index].as_bytes();
            Entry {
                index: index as u32,
                offset: xx_hash(key, 0) % size,
                skip: xx_hash(key, 1) % (size - 1) + 1,
                weight: weights[index],
                target: 0.0,
                next: 0,
            }
        })
        .collect();
    let mut table = vec![FREE; size as usize];
    let mut filled = 0;
    let mut round = 1.0;
    while filled < size {
        for entry in &mut entries {
            // The heaviest has a turn in every round, one of a third of its weight in every third.
            if filled == size || round * entry.weight < entry.target {
                continue;
            }
            entry.target += most;
            loop {
                let place = ((entry.offset + entry.skip * entry.next) % size) as usize;
                entry.next += 1;
                if table[place] == FREE {
                    table[place] = entry.index;
                    break;
                }
            }
            filled += 1;
        }
        round += 1.0;
    }
    table
}

fn maglev_place(table: &[u32], hash: u64, attempt: u32) -> Option<u32> {
    let hash = if attempt > 0 { hash ^ (u64::MAX - u64::from(attempt) + 1) } else { hash };
    table.get(hash.checked_rem(table.len() as u64)? as usize).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Endpoint;
    use std::sync::Arc;

    fn hosts(ports: &[u16]) -> Vec<(Rc<Host>, f64)> {
        let each = 1.0 / ports.len() as f64;
        let host =
            |port: &u16| Rc::new(Host::new(Arc::new(Endpoint::new(([127, 0, 0, 1], *port).into())), Arc::default()));
        ports.iter().map(|port| (host(port), each)).collect()
    }

    const RING: RingHash = RingHash { min_size: 12, max_size: 8 << 20, function: HashFunction::XxHash };

    #[test]
    fn ring_when_built_then_places_are_those_of_envoy() {
        // The case of Envoy's own test `RingHashLoadBalancerTest.Basic`: six endpoints, twelve places.
        let table = Table::new(hosts(&[90, 91, 92, 93, 94, 95]), LbPolicy::RingHash(RING), &Balancing::default());
        let port = |hash| table.pick(hash, 0).unwrap().address().port();
        assert_eq!([port(0), port(u64::MAX)], [94, 94]);
        assert_eq!([port(3_551_244_743_356_806_947), port(3_551_244_743_356_806_948)], [95, 93]);
        assert_eq!(table.size(), TableSize { places: 12, fewest: 2, most: 2 });
        assert_eq!(table.pick(u64::MAX, 2).unwrap().address().port(), 90, "as if the first two were not there");
    }

    #[test]
    fn ring_when_weights_differ_then_places_follow_them_within_its_size() {
        let keys = ["a".to_owned(), "b".to_owned()];
        let ring = build_ring(&keys, &[0.25, 0.75], RingHash { min_size: 100, ..RING });
        assert_eq!((ring.len(), ring.iter().filter(|(_, index)| *index == 0).count()), (100, 25));
        let small = build_ring(&keys, &[0.25, 0.75], RingHash { max_size: 8, min_size: 100, ..RING });
        assert_eq!(small.len(), 8);
    }

    #[test]
    fn maglev_when_built_then_it_is_full_even_and_independent_of_the_order() {
        let policy = LbPolicy::Maglev { table_size: 7 };
        let table = Table::new(hosts(&[90, 91, 92, 93, 94, 95]), policy, &Balancing::default());
        // The table of Envoy's own test `MaglevLoadBalancerTest.Basic`.
        let ports: Vec<u16> = (0..7).map(|hash| table.pick(hash, 0).unwrap().address().port()).collect();
        assert_eq!(ports, [92, 94, 90, 91, 95, 90, 93]);
        let backwards = Table::new(hosts(&[95, 94, 93, 92, 91, 90]), policy, &Balancing::default());
        let again: Vec<u16> = (0..7).map(|hash| backwards.pick(hash, 0).unwrap().address().port()).collect();
        assert_eq!(ports, again);
    }

    #[test]
    fn maglev_when_weights_differ_then_places_follow_them() {
        let keys = ["a".to_owned(), "b".to_owned()];
        let table = build_maglev(&keys, &[1.0 / 3.0, 2.0 / 3.0], 17);
        let first = table.iter().filter(|index| **index == 0).count();
        assert!((5..=6).contains(&first), "{first} of 17");
    }

    #[test]
    fn bound_when_an_endpoint_is_overloaded_then_the_same_hash_finds_the_same_other_one() {
        let balancing = Balancing { hash_balance_factor: 120, ..Balancing::default() };
        let table = Table::new(hosts(&[1, 2, 3, 4]), LbPolicy::Maglev { table_size: 65537 }, &balancing);
        let first = table.pick(77, 0).unwrap().clone();
        let busy: Vec<_> = (0..10).map(|_| first.enter()).collect();
        let second = table.pick(77, 0).unwrap().clone();
        assert_ne!(first.address(), second.address());
        assert!((0..20).all(|_| table.pick(77, 0).unwrap().address() == second.address()));
        drop(busy);
        assert_eq!(table.pick(77, 0).unwrap().address(), first.address());
    }

    #[test]
    fn key_when_a_label_or_a_name_is_there_then_it_counts_instead_of_the_address() {
        use crate::config::Labels;
        let mut endpoint = Endpoint::new(([127, 0, 0, 1], 80).into());
        endpoint.hostname = Some("a.test".into());
        let keys = |endpoint: &Endpoint| {
            let host = Host::new(Arc::new(endpoint.clone()), Arc::default());
            (key(&host, false), key(&host, true))
        };
        assert_eq!(keys(&endpoint), ("127.0.0.1:80".to_owned(), "a.test".to_owned()));
        endpoint.labels = Arc::new(Labels::new([("hash_key".into(), LabelValue::Text("k".into()))]));
        assert_eq!(keys(&endpoint), ("k".to_owned(), "k".to_owned()));
    }
}
