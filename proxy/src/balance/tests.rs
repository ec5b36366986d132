use super::*;
use crate::config::{Endpoint, Fallback, LabelValue, Locality, Selector, SlowStart, Subsets};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

const RANDOM: LbPolicy = LbPolicy::Random;
const LEAST: LbPolicy = LbPolicy::LeastRequest { choices: 2 };

fn at(port: u16) -> Endpoint {
    Endpoint::new(([127, 0, 0, 1], port).into())
}

fn hosts(endpoints: impl IntoIterator<Item = Endpoint>) -> Vec<Rc<Host>> {
    endpoints.into_iter().map(|endpoint| Rc::new(Host::new(Arc::new(endpoint), Arc::default()))).collect()
}

fn host(port: u16, weight: u32, health: Health, priority: u32) -> Endpoint {
    Endpoint { weight, health, priority, ..at(port) }
}

fn balancer(all: &[Rc<Host>], policy: LbPolicy, balancing: &Balancing) -> Balancer {
    Balancer::new(all, policy, balancing, Spread::default(), None, &Rng::new(1), None)
}

fn calm() -> Balancing {
    Balancing { panic_threshold: 0, ..Balancing::default() }
}

const CONTEXT: PickContext<'static> = PickContext { hash: None, labels: None, destination: None };

fn counts_for(balancer: &Balancer, context: &PickContext<'_>, picks: usize) -> BTreeMap<u16, usize> {
    let rng = Rng::new(7);
    let mut counts = BTreeMap::new();
    for _ in 0..picks {
        let Some(host) = balancer.pick(context, &rng, |_| false) else { continue };
        *counts.entry(host.address().port()).or_default() += 1;
    }
    counts
}

fn counts(balancer: &Balancer, picks: usize) -> BTreeMap<u16, usize> {
    counts_for(balancer, &CONTEXT, picks)
}

#[test]
fn balancer_when_endpoints_are_unhealthy_and_panic_is_off_then_they_are_never_chosen() {
    let all = hosts([
        host(1, 1, Health::Unhealthy, 0),
        host(2, 1, Health::Draining, 0),
        host(3, 1, Health::Degraded, 0),
        host(4, 1, Health::Healthy, 1),
        host(5, 1, Health::Healthy, 2),
    ]);
    let over = |all: &[Rc<Host>]| balancer(all, RANDOM, &calm());
    assert_eq!(counts(&over(&all), 50), BTreeMap::from([(4, 50)]));
    assert_eq!(counts(&over(&all[..3]), 50), BTreeMap::from([(3, 50)]));
    assert!(over(&all[..2]).pick(&CONTEXT, &Rng::new(1), |_| false).is_none());
    assert!(over(&[]).pick(&CONTEXT, &Rng::new(1), |_| false).is_none());
}

#[test]
fn balancer_when_too_few_are_usable_then_all_get_traffic_unless_that_is_to_fail() {
    let all =
        hosts([host(1, 1, Health::Healthy, 0), host(2, 1, Health::Unhealthy, 0), host(3, 1, Health::Unhealthy, 0)]);
    assert_eq!(counts(&balancer(&all, RANDOM, &Balancing::default()), 300).len(), 3);
    let third = Balancing { panic_threshold: 33, ..Balancing::default() };
    assert_eq!(counts(&balancer(&all, RANDOM, &third), 300).len(), 1);
    let fail = Balancing { fail_on_panic: true, ..Balancing::default() };
    assert_eq!(counts(&balancer(&all, RANDOM, &fail), 300).len(), 0);
    let maglev = LbPolicy::Maglev { table_size: 65_537 };
    assert_eq!(counts(&balancer(&all, maglev, &fail), 300).len(), 3, "a table knows of no failing");
}

#[test]
fn balancer_when_a_priority_is_half_down_then_load_spills_over_by_overprovisioning() {
    let all = hosts([
        host(1, 1, Health::Healthy, 0),
        host(2, 1, Health::Unhealthy, 0),
        host(3, 1, Health::Healthy, 1),
        host(4, 1, Health::Healthy, 1),
    ]);
    let counts = counts(&balancer(&all, LbPolicy::RoundRobin, &Balancing::default()), 10_000);
    assert!((6_800..7_200).contains(&counts[&1]), "{counts:?}: 70 percent");
    assert!(!counts.contains_key(&2));
}

#[test]
fn balancer_when_weights_differ_then_shares_follow_them_but_not_at_random() {
    let all = hosts([host(1, 1, Health::Healthy, 0), host(2, 3, Health::Healthy, 0)]);
    let none = Balancing::default();
    assert_eq!(counts(&balancer(&all, LbPolicy::RoundRobin, &none), 400), BTreeMap::from([(1, 100), (2, 300)]));
    assert_eq!(counts(&balancer(&all, LEAST, &none), 400), BTreeMap::from([(1, 100), (2, 300)]));
    let random = counts(&balancer(&all, RANDOM, &none), 4000);
    assert!((1850..2150).contains(&random[&1]), "{random:?}");
}

#[test]
fn balancer_when_one_is_busy_then_least_request_takes_others() {
    let all = hosts([at(1), at(2), at(3)]);
    let busy: Vec<_> = (0..10).map(|_| all[0].enter()).collect();
    let some = counts(&balancer(&all[..2], LEAST, &Balancing::default()), 1000);
    assert!(some[&2] > 650, "{some:?}: the busy one only when both looks fall on it");
    let least = counts(&balancer(&all, LbPolicy::LeastOfAll, &Balancing::default()), 1000);
    assert!(!least.contains_key(&1) && least.len() == 2, "{least:?}");
    drop(busy);
    assert_eq!(all[0].active(), 0);
}

#[test]
fn balancer_when_weights_differ_then_active_requests_count_by_the_bias() {
    let all = hosts([host(1, 2, Health::Healthy, 0), host(2, 1, Health::Healthy, 0)]);
    let busy: Vec<_> = (0..3).map(|_| all[0].enter()).collect();
    // Four times as slow: 2/4 against 1.
    let biased = counts(&balancer(&all, LEAST, &Balancing::default()), 300);
    assert!((95..105).contains(&biased[&1]), "{biased:?}");
    let unbiased = Balancing { active_request_bias: 0.0, ..Balancing::default() };
    assert_eq!(counts(&balancer(&all, LEAST, &unbiased), 300)[&1], 200);
    drop(busy);
}

#[test]
fn balancer_when_one_was_tried_then_another_is_taken_while_there_is_one() {
    let all = hosts([host(1, 1000, Health::Healthy, 0), host(2, 1, Health::Healthy, 0)]);
    let balancer = balancer(&all, LbPolicy::RoundRobin, &Balancing::default());
    let other = balancer.pick(&CONTEXT, &Rng::new(1), |host| host.address().port() == 1).unwrap();
    assert_eq!(other.address().port(), 2);
    assert!(balancer.pick(&CONTEXT, &Rng::new(1), |_| true).is_some());
}

#[test]
fn balancer_when_one_failed_lately_then_it_is_left_alone_while_there_is_another() {
    let all = hosts([at(1), at(2), at(3)]);
    all[0].note_failure();
    let in_turn = counts(&balancer(&all, LbPolicy::RoundRobin, &Balancing::default()), 300);
    assert_eq!(in_turn, BTreeMap::from([(1, 100), (2, 100), (3, 100)]), "where nobody asks for it, it keeps its turn");
    let skipping = Balancing { skip_unreachable: true, ..Balancing::default() };
    let chosen = counts(&balancer(&all, LEAST, &skipping), 300);
    assert!(!chosen.contains_key(&1) && chosen.len() == 2, "{chosen:?}");
    let balancer = balancer(&all, RANDOM, &skipping);
    let rng = Rng::new(1);
    let pick = |tried: &[u16]| {
        let port = balancer.pick(&CONTEXT, &rng, |host| tried.contains(&host.address().port()));
        port.unwrap().address().port()
    };
    assert!((0..50).all(|_| pick(&[2, 3]) == 1), "what failed is better than what this request has tried");
    all[1].note_failure();
    all[2].note_failure();
    assert_eq!(counts(&balancer, 300).len(), 3, "when all have failed, all are used");
    all[1].note_success();
    assert_eq!(counts(&balancer, 50), BTreeMap::from([(2, 50)]));
}

#[test]
fn balancer_when_requests_have_a_hash_then_it_decides_and_a_tried_one_is_passed_over() {
    let all = hosts((1..=5).map(at));
    let balancer = balancer(&all, LbPolicy::Maglev { table_size: 65537 }, &Balancing::default());
    let rng = Rng::new(1);
    let context = PickContext { hash: Some(42), ..CONTEXT };
    let first = balancer.pick(&context, &rng, |_| false).unwrap().address();
    assert!((0..50).all(|_| balancer.pick(&context, &rng, |_| false).unwrap().address() == first));
    assert_ne!(balancer.pick(&context, &rng, |host| host.address() == first).unwrap().address(), first);
    assert_eq!(counts(&balancer, 500).len(), 5, "without one it is random");
}

#[test]
fn balancer_when_localities_are_weighed_then_their_weight_and_health_decide() {
    let zone = |name: &str, weight| Arc::new(Locality { zone: name.into(), weight, ..Locality::default() });
    let (near, far, none) = (zone("near", Some(3)), zone("far", Some(1)), zone("none", None));
    let in_zone = |port, locality: &Arc<Locality>| Endpoint { locality: locality.clone(), ..at(port) };
    let mut endpoints = vec![in_zone(1, &near), in_zone(2, &far), in_zone(3, &far), in_zone(4, &none)];
    let balancing = Balancing { by_locality: true, ..Balancing::default() };
    let all = hosts(endpoints.clone());
    let shares = counts(&balancer(&all, LbPolicy::RoundRobin, &balancing), 400);
    assert_eq!(shares, BTreeMap::from([(1, 300), (2, 50), (3, 50)]));
    // Half of a locality is usable: 0.7 of its weight counts.
    endpoints.extend([Endpoint { health: Health::Unhealthy, ..in_zone(5, &near) }]);
    let shares = counts(&balancer(&hosts(endpoints.clone()), LbPolicy::RoundRobin, &balancing), 3100);
    assert!((2095..2105).contains(&shares[&1]), "{shares:?}: 2.1 of 3.1");
    let hashed = counts(&balancer(&all, LbPolicy::Maglev { table_size: 65537 }, &balancing), 4000);
    assert!((2850..3150).contains(&hashed[&1]) && !hashed.contains_key(&4), "{hashed:?}");
}

#[test]
fn balancer_when_an_endpoint_is_new_then_its_share_grows() {
    let slow = SlowStart { window: Duration::from_secs(100), aggression: 1.0, min_weight: 0.1 };
    assert_eq!(source::grown(slow, Duration::ZERO), 0.1);
    assert_eq!(source::grown(slow, Duration::from_secs(50)), 0.5);
    assert_eq!(source::grown(slow, Duration::from_secs(100)), 1.0);
    let eager = SlowStart { aggression: 2.0, ..slow };
    assert_eq!(source::grown(eager, Duration::from_secs(25)), 0.5);
    let all = hosts([at(1), at(2)]);
    all[0].age(Duration::from_secs(1000));
    let balancing = Balancing { slow_start: Some(slow), ..Balancing::default() };
    let shares = counts(&balancer(&all, LbPolicy::RoundRobin, &balancing), 1100);
    assert!((90..110).contains(&shares[&2]), "{shares:?}: a tenth of the other's");
}

fn labels(pairs: &[(&str, &str)]) -> Arc<Labels> {
    let value = |text: &str| LabelValue::Text(text.into());
    Arc::new(Labels::new(pairs.iter().map(|(name, text)| ((*name).into(), value(text)))))
}

#[test]
fn subsets_when_a_request_asks_for_labels_then_only_endpoints_with_them_serve_it() {
    let with = |port, pairs: &[(&str, &str)]| Endpoint { labels: labels(pairs), ..at(port) };
    let all = hosts([
        with(1, &[("stage", "prod"), ("version", "1")]),
        with(2, &[("stage", "prod"), ("version", "2")]),
        with(3, &[("stage", "dev")]),
    ]);
    let selector = |keys: &[&str], fallback| Selector {
        keys: keys.iter().map(|key| Arc::from(*key)).collect(),
        single: false,
        fallback,
    };
    let ask = |subsets: &Subsets, pairs: &[(&str, &str)]| -> Vec<u16> {
        let balancing = Balancing { subsets: Some(subsets.clone()), ..Balancing::default() };
        let labels = labels(pairs);
        let context = PickContext { labels: Some(&labels), ..CONTEXT };
        counts_for(&balancer(&all, RANDOM, &balancing), &context, 100).into_keys().collect()
    };
    let keys = Fallback::Keys(vec!["stage".into()]);
    let mut subsets = Subsets {
        selectors: vec![selector(&["stage"], None), selector(&["stage", "version"], Some(keys))],
        default: (*labels(&[("stage", "dev")])).clone(),
        ..Subsets::default()
    };
    assert_eq!(ask(&subsets, &[("stage", "prod")]), [1, 2]);
    assert_eq!(ask(&subsets, &[("stage", "prod"), ("version", "2")]), [2]);
    assert_eq!(ask(&subsets, &[("stage", "prod"), ("version", "3")]), [1, 2], "falls back to fewer labels");
    assert_eq!(ask(&subsets, &[("stage", "test")]), [0; 0], "no fallback");
    assert_eq!(ask(&subsets, &[("other", "x")]), [0; 0], "no selector and no fallback");
    subsets.fallback = Fallback::Default;
    assert_eq!(ask(&subsets, &[("stage", "test")]), [3]);
    assert_eq!(ask(&subsets, &[]), [3]);
    subsets.fallback = Fallback::Any;
    assert_eq!(ask(&subsets, &[]), [1, 2, 3]);
    subsets.selectors[0].fallback = Some(Fallback::Keys(vec!["version".into()]));
    assert_eq!(ask(&subsets, &[("stage", "test")]), [1, 2, 3], "no selector has those labels: as the cluster says");
}

#[test]
fn weighted_when_weight_is_zero_then_it_is_never_chosen() {
    let rng = Rng::new(3);
    assert!((0..1000).all(|_| weighted([0, 5, 0].into_iter(), &rng) == Some(1)));
    assert_eq!(weighted([0, 0].into_iter(), &rng), None);
}

#[test]
fn subsets_when_localities_are_scaled_then_their_weights_follow_the_part_that_is_in_the_group() {
    let place =
        |zone: &str, weight| Arc::new(Locality { zone: zone.into(), weight: Some(weight), ..Locality::default() });
    let (near, far) = (place("near", 10), place("far", 10));
    let of = |port, locality: &Arc<Locality>, stage: &str| Endpoint {
        labels: labels(&[("stage", stage)]),
        locality: locality.clone(),
        ..at(port)
    };
    // All of the far ones are in the group, and one in four of the near ones.
    let all = hosts([
        of(1, &near, "prod"),
        of(2, &near, "dev"),
        of(3, &near, "dev"),
        of(4, &near, "dev"),
        of(5, &far, "prod"),
    ]);
    let share = |scale_localities| {
        let selectors = vec![Selector { keys: vec!["stage".into()], single: false, fallback: None }];
        let subsets = Subsets { selectors, by_locality: true, scale_localities, ..Subsets::default() };
        let balancing = Balancing { by_locality: true, subsets: Some(subsets), ..Balancing::default() };
        let labels = labels(&[("stage", "prod")]);
        let context = PickContext { labels: Some(&labels), ..CONTEXT };
        counts_for(&balancer(&all, LbPolicy::RoundRobin, &balancing), &context, 1300)[&1]
    };
    assert_eq!(share(false), 650);
    // 10 * 1/4, rounded, against 10.
    assert_eq!(share(true), 300);
}

#[test]
fn panic_when_too_few_endpoints_are_usable_then_each_choice_is_told_once() {
    let all: Vec<Rc<Host>> = [Health::Unhealthy, Health::Unhealthy, Health::Healthy]
        .into_iter()
        .zip(1..)
        .map(|(health, port)| {
            Rc::new(Host::new(
                Arc::new(Endpoint { health, ..Endpoint::new(([127, 0, 0, 1], port).into()) }),
                Arc::default(),
            ))
        })
        .collect();
    let balancer = balancer(&all, LbPolicy::Random, &Balancing::default());
    counts(&balancer, 7);
    assert_eq!((balancer.picked().panics.take(), balancer.picked().panics.get()), (7, 0));
    let well = self::balancer(&all[2..], LbPolicy::Random, &Balancing::default());
    counts(&well, 7);
    assert_eq!(well.picked().panics.get(), 0);
}
