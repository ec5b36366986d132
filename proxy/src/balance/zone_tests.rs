use super::*;
use crate::{
    config::{ClusterId, Endpoint, Fallback, Home, LabelValue, RingHash, Selector, Subsets, ZoneAware, ZoneChanges},
    telemetry::{stats::ClusterStats, tracked::ZoneStats},
};
use std::collections::BTreeMap;

/// Endpoints of a zone: its name, how many are well, and how many are not.
type Zone = (&'static str, u16, u16);

const ROUND: LbPolicy = LbPolicy::RoundRobin;
const PICKS: usize = 80_000;

fn endpoint(zone: &str, port: u16, health: Health) -> Endpoint {
    let locality = Arc::new(Locality { zone: zone.into(), weight: Some(u32::from(port)), ..Locality::default() });
    Endpoint { locality, health, ..Endpoint::new(([127, 0, 0, 1], port).into()) }
}

fn endpoints(zones: &[Zone]) -> Vec<Endpoint> {
    let healths =
        |well, ill| (0..well + ill).map(move |at| if at < well { Health::Healthy } else { Health::Unhealthy });
    let all = zones.iter().flat_map(|(zone, well, ill)| healths(*well, *ill).map(move |health| (*zone, health)));
    all.zip(1..).map(|((zone, health), port)| endpoint(zone, port, health)).collect()
}

fn hosts(all: impl IntoIterator<Item = Endpoint>) -> Vec<Rc<Host>> {
    all.into_iter().map(|endpoint| Rc::new(Host::new(Arc::new(endpoint), Arc::default()))).collect()
}

fn home(own: &str) -> Home {
    let locality = Locality { zone: own.into(), ..Locality::default() };
    Home { cluster: ClusterId(0), locality: Some(locality), changes: ZoneChanges::default() }
}

/// A cluster as a proxy sees it that is in zone `b`.
struct Seen {
    all: Vec<Rc<Host>>,
    stats: Arc<ClusterStats>,
    balancer: Balancer,
}

impl Seen {
    fn new(all: Vec<Rc<Host>>, policy: LbPolicy, peers: &Peers, balancing: &Balancing) -> Self {
        let stats = Arc::<ClusterStats>::default();
        let zones = Some(Zones { peers, stats: &stats });
        let balancer = Balancer::new(&all, policy, balancing, Spread::default(), zones, &Rng::new(3), None);
        Self { all, stats, balancer }
    }

    fn of(cluster: &[Zone], proxies: &[Zone]) -> Self {
        Self::new(hosts(endpoints(cluster)), ROUND, &peers(proxies), &Balancing::default())
    }

    fn with(cluster: &[Zone], proxies: &[Zone], zones: ZoneAware) -> Self {
        let balancing = Balancing { zones, ..Balancing::default() };
        Self::new(hosts(endpoints(cluster)), ROUND, &peers(proxies), &balancing)
    }

    /// Per cent of requests by zone, rounded.
    fn shares(&self) -> BTreeMap<String, usize> {
        let (rng, context) = (Rng::new(9), PickContext::to(None));
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..PICKS {
            if let Some(host) = self.balancer.pick(&context, &rng, |_| false) {
                *counts.entry(host.endpoint().locality.zone.to_string()).or_default() += 1;
            }
        }
        counts.into_iter().map(|(zone, count)| (zone, (count * 100 + PICKS / 2) / PICKS)).collect()
    }

    fn counted(&self, of: fn(&ZoneStats) -> u64) -> u64 {
        self.stats.zones.get().map_or(0, |zones| of(zones))
    }

    /// Requests for which zones counted in any way.
    fn routed(&self) -> u64 {
        let of = |zones: &ZoneStats| {
            zones.routing_all_directly.get() + zones.routing_sampled.get() + zones.routing_cross_zone.get()
        };
        self.counted(of)
    }
}

fn peers(proxies: &[Zone]) -> Peers {
    Peers::new(&hosts(endpoints(proxies)), &home("b"))
}

fn shares<const N: usize>(shares: [(&str, usize); N]) -> BTreeMap<String, usize> {
    shares.into_iter().map(|(zone, share)| (zone.to_owned(), share)).collect()
}

const EVEN: [Zone; 2] = [("a", 3, 0), ("b", 3, 0)];

#[test]
fn zones_when_the_own_one_has_less_of_the_cluster_than_of_the_proxies_then_the_rest_goes_where_there_is_room() {
    // 25, 50 and 25 percent of the endpoints for 40, 40 and 20 percent of the proxies: Envoy's own example. Of what the proxies
    // in `b` send, 25/40 stays; the rest goes 10 to 5.
    let seen = Seen::of(&[("b", 2, 0), ("a", 4, 0), ("c", 2, 0)], &[("a", 2, 0), ("b", 2, 0), ("c", 1, 0)]);
    let found = seen.shares();
    for (zone, share) in [("a", 25), ("b", 62), ("c", 12)] {
        assert!(found[zone].abs_diff(share) <= 1, "{found:?}");
    }
    let (own, others) =
        (seen.counted(|zones| zones.routing_sampled.get()), seen.counted(|zones| zones.routing_cross_zone.get()));
    assert_eq!(own + others, PICKS as u64);
    assert!(own.abs_diff(50_000) < 1_000, "{own} of 62.5 percent");
    // Whoever has just as much as it needs has no room for others.
    let seen = Seen::of(&[("a", 4, 0), ("b", 2, 0), ("c", 2, 0)], &[("a", 2, 0), ("b", 4, 0), ("c", 2, 0)]);
    assert_eq!(seen.shares(), shares([("a", 50), ("b", 50)]));
}

#[test]
fn zones_when_the_own_one_has_as_large_a_part_of_the_cluster_then_all_stays() {
    let seen = Seen::of(&EVEN, &[("b", 1, 0), ("a", 1, 0)]);
    assert_eq!(seen.shares(), shares([("b", 100)]));
    assert_eq!(seen.counted(|zones| zones.routing_all_directly.get()), PICKS as u64);
    let hosts: std::collections::BTreeSet<_> = (0..6)
        .filter_map(|_| seen.balancer.pick(&PickContext::to(None), &Rng::new(1), |_| false))
        .map(|host| host.address())
        .collect();
    assert_eq!(hosts.len(), 3, "its endpoints take turns");
    // A little less is not enough.
    let seen = Seen::of(&[("a", 4, 0), ("b", 3, 0)], &[("b", 1, 0), ("a", 1, 0)]);
    assert_eq!(seen.shares(), shares([("a", 14), ("b", 86)]));
}

#[test]
fn zones_when_some_endpoints_are_unwell_then_only_the_others_count_on_both_sides() {
    let seen = Seen::of(&[("a", 4, 0), ("b", 2, 2)], &[("b", 2, 0), ("a", 2, 0)]);
    assert_eq!(seen.shares(), shares([("a", 33), ("b", 67)]), "a third for half of the proxies");
    let seen = Seen::of(&EVEN, &[("b", 2, 0), ("a", 1, 1)]);
    assert_eq!(seen.shares(), shares([("a", 25), ("b", 75)]), "half for two thirds of the proxies");
    let seen = Seen::of(&[("a", 6, 0), ("b", 0, 1)], &[("b", 1, 0), ("a", 1, 0)]);
    assert_eq!(seen.shares(), shares([("a", 100)]), "nobody is there");
    assert_eq!(seen.counted(|zones| zones.routing_cross_zone.get()), PICKS as u64);
}

#[test]
fn zones_when_the_cluster_has_none_in_the_own_one_then_all_goes_where_there_is_room() {
    let seen = Seen::of(&[("a", 4, 0), ("c", 2, 0)], &[("b", 1, 0), ("a", 1, 0)]);
    // `a` has 67 percent for 50, `c` has 33 for none.
    assert_eq!(seen.shares(), shares([("a", 33), ("c", 67)]));
}

#[test]
fn zones_when_their_parts_tell_nothing_then_requests_go_anywhere() {
    let even = shares([("a", 50), ("b", 50)]);
    let small = Seen::of(&[("a", 3, 0), ("b", 2, 0)], &EVEN);
    assert_eq!((small.shares(), small.routed()), (shares([("a", 60), ("b", 40)]), 0));
    assert_eq!(small.counted(|zones| zones.cluster_too_small.get()), 1, "when it is reckoned, not by request");
    let absent = Seen::of(&EVEN, &[("a", 1, 0), ("c", 1, 0)]);
    assert_eq!((absent.shares(), absent.routed()), (even.clone(), 0));
    assert_eq!(absent.counted(|zones| zones.local_cluster_not_ok.get()), 1);
    let alone = Seen::of(&EVEN, &[("b", 2, 0)]);
    assert_eq!((alone.shares(), alone.routed()), (even.clone(), 0), "proxies in one zone");
    let nobody = Seen::of(&EVEN, &[]);
    assert_eq!((nobody.shares(), nobody.routed()), (even.clone(), 0));
    let panic = Seen::of(&EVEN, &[("b", 1, 1), ("a", 0, 1)]);
    assert_eq!((panic.shares(), panic.routed()), (even.clone(), 0), "too few of the proxies are well");
    assert_eq!(panic.counted(|zones| zones.local_cluster_not_ok.get()), PICKS as u64, "by request");
    let off = Seen::with(&EVEN, &EVEN, ZoneAware { enabled: 0, ..ZoneAware::default() });
    assert_eq!((off.shares(), off.routed()), (even, 0));
    let half = Seen::with(&EVEN, &EVEN, ZoneAware { enabled: 50, ..ZoneAware::default() });
    assert_eq!(half.shares(), shares([("a", 25), ("b", 75)]));
}

#[test]
fn zones_when_too_few_endpoints_are_well_then_all_of_them_are_tried_whatever_their_zone() {
    let seen = Seen::of(&[("a", 3, 5), ("b", 3, 5)], &EVEN);
    assert_eq!((seen.shares(), seen.routed()), (shares([("a", 50), ("b", 50)]), 0));
    let fail = Balancing { fail_on_panic: true, ..Balancing::default() };
    let proxies = peers(&[("b", 1, 1), ("a", 0, 1)]);
    let seen = Seen::new(hosts(endpoints(&EVEN)), ROUND, &proxies, &fail);
    assert_eq!(seen.shares(), shares([]), "nor is anybody tried when too few of the proxies are well");
}

#[test]
fn zones_when_the_own_one_is_forced_then_all_stays_while_it_has_enough() {
    let force = |least| ZoneAware { force: Some(least), ..ZoneAware::default() };
    let (cluster, proxies) = ([("a", 6, 0), ("b", 2, 0)], [("b", 3, 0), ("a", 1, 0)]);
    assert_eq!(Seen::with(&cluster, &proxies, force(2)).shares(), shares([("b", 100)]));
    assert_eq!(Seen::with(&cluster, &proxies, force(3)).shares(), shares([("a", 67), ("b", 33)]));
    assert_eq!(Seen::with(&cluster, &[("b", 1, 0)], force(1)).shares(), shares([("b", 100)]), "proxies in one zone");
    // Where Envoy would have nobody, somebody serves.
    let seen = Seen::with(&[("a", 6, 0), ("b", 0, 1)], &proxies, force(0));
    assert_eq!(seen.shares(), shares([("a", 100)]));
}

#[test]
fn zones_when_parts_go_by_weight_then_weights_count_and_rounding_may_leave_no_room() {
    let weighted = |weights: [u32; 3]| {
        let all = endpoints(&[("a", 1, 0), ("b", 1, 0), ("c", 1, 0)]).into_iter().zip(weights);
        hosts(all.map(|(endpoint, weight)| Endpoint { weight, ..endpoint }))
    };
    let zones = ZoneAware { by_weight: true, min_size: 3, ..ZoneAware::default() };
    let balancing = Balancing { zones, ..Balancing::default() };
    let proxies = Peers::new(&weighted([1, 2, 1]), &home("b"));
    let seen = Seen::new(weighted([2, 1, 1]), ROUND, &proxies, &balancing);
    assert_eq!(seen.shares(), shares([("a", 50), ("b", 50)]), "a quarter for half of the proxies");
    let proxies = Peers::new(&weighted([3333, 3334, 3333]), &home("b"));
    let seen = Seen::new(weighted([1, 1, 1]), ROUND, &proxies, &balancing);
    seen.shares();
    let (crossing, full) =
        (seen.counted(|zones| zones.routing_cross_zone.get()), seen.counted(|zones| zones.no_capacity_left.get()));
    assert!(crossing > 0 && crossing == full, "{crossing} {full}");
}

#[test]
fn zones_when_proxies_come_and_go_then_parts_are_reckoned_anew() {
    let seen = Seen::of(&EVEN, &[("b", 1, 0), ("a", 1, 0)]);
    assert_eq!(seen.shares(), shares([("b", 100)]));
    seen.balancer.peers_changed(&peers(&[("b", 2, 0), ("a", 1, 0)]));
    assert_eq!(seen.shares(), shares([("a", 25), ("b", 75)]));
    let changes = ZoneChanges { min_size: Some(7), ..ZoneChanges::default() };
    let fewer = Peers::new(&hosts(endpoints(&EVEN)), &Home { changes, ..home("b") });
    seen.balancer.peers_changed(&fewer);
    assert_eq!(seen.shares(), shares([("a", 50), ("b", 50)]));
    assert_eq!(seen.counted(|zones| zones.recalculated.get()), 3);
}

#[test]
fn zones_when_the_policy_goes_by_hash_or_localities_are_weighed_then_they_are_not_preferred() {
    let ring =
        LbPolicy::RingHash(RingHash { min_size: 64, max_size: 64, function: crate::config::HashFunction::XxHash });
    let seen = Seen::new(hosts(endpoints(&EVEN)), ring, &peers(&EVEN), &Balancing::default());
    assert_eq!((seen.shares().len(), seen.routed()), (2, 0));
    let weighed = Balancing { by_locality: true, ..Balancing::default() };
    let seen = Seen::new(hosts(endpoints(&EVEN)), ROUND, &peers(&EVEN), &weighed);
    assert_eq!((seen.shares().len(), seen.routed()), (2, 0));
    for policy in [LbPolicy::Random, LbPolicy::LeastRequest { choices: 2 }, LbPolicy::LeastOfAll] {
        let seen = Seen::new(hosts(endpoints(&EVEN)), policy, &peers(&EVEN), &Balancing::default());
        assert_eq!(seen.shares(), shares([("b", 100)]), "{policy:?}");
    }
}

#[test]
fn zones_when_a_later_priority_serves_then_they_are_not_preferred_there() {
    let later = endpoints(&EVEN).into_iter().map(|endpoint| Endpoint { priority: 1, ..endpoint });
    let first = endpoint("b", 99, Health::Unhealthy);
    let seen = Seen::new(hosts(later.chain([first])), ROUND, &peers(&EVEN), &Balancing::default());
    assert_eq!((seen.shares(), seen.routed()), (shares([("a", 50), ("b", 50)]), 0));
}

#[test]
fn zones_when_a_group_by_labels_serves_then_parts_are_those_of_the_group_and_zones_those_of_the_cluster() {
    let label = |zone: &str| Labels::new([("own".into(), LabelValue::Bool(zone == "b"))]);
    let all = endpoints(&EVEN).into_iter().map(|endpoint| {
        let labels = Arc::new(label(&endpoint.locality.zone));
        Endpoint { labels, ..endpoint }
    });
    let selectors = vec![Selector { keys: vec!["own".into()], single: false, fallback: None }];
    let subsets = Some(Subsets { selectors, fallback: Fallback::Any, ..Subsets::default() });
    let zones = ZoneAware { min_size: 3, ..ZoneAware::default() };
    let seen = Seen::new(hosts(all), ROUND, &peers(&EVEN), &Balancing { subsets, zones, ..Balancing::default() });
    let rng = Rng::new(1);
    for (zone, directly, across) in [("b", 1, 0), ("a", 1, 1)] {
        let labels = label(zone);
        let context = PickContext { labels: Some(&labels), ..PickContext::to(None) };
        let picked =
            seen.balancer.pick(&context, &rng, |_| false).map(|host| host.endpoint().locality.zone.to_string());
        assert_eq!(picked.as_deref(), Some(zone));
        let of = |of: fn(&ZoneStats) -> u64| seen.counted(of);
        let counted = (of(|zones| zones.routing_all_directly.get()), of(|zones| zones.routing_cross_zone.get()));
        assert_eq!(counted, (directly, across), "{zone}");
    }
    assert_eq!(seen.all.len(), 6);
}
