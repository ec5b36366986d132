use super::*;

fn crowd(replicas: usize, proxies: usize) -> Crowd {
    Crowd { replicas, proxies }
}

/// Streams on replicas; each tick every replica ends its surplus, and those come back to any replica, by `random`.
fn settle(mut held: Vec<usize>, seconds: usize, seed: u64) -> Vec<usize> {
    let proxies = held.iter().sum();
    let mut state = seed;
    let mut random = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    let mut shares = vec![Share::default(); held.len()];
    let start = Instant::now();
    for second in 0..seconds {
        let now = start + Duration::from_secs(second as u64);
        for replica in 0..held.len() {
            let ended = shares[replica].surplus(held[replica], crowd(held.len(), proxies), now);
            held[replica] -= ended;
            for _ in 0..ended {
                let to = random(held.len());
                held[to] += 1;
            }
        }
    }
    held
}

#[test]
fn share_when_one_replica_holds_all_then_they_are_even_within_a_minute_or_two() {
    for (seed, proxies, seconds) in [(1, 30, 30), (2, 30, 30), (3, 200, 60), (4, 1000, 120)] {
        let held = settle(vec![proxies, 0, 0, 0, 0], seconds, seed);
        let (least, most) = (held.iter().min().unwrap(), held.iter().max().unwrap());
        let fair = proxies.div_ceil(5);
        assert_eq!(held.iter().sum::<usize>(), proxies);
        assert!(*most <= fair + (fair / 8).max(1), "{held:?}");
        assert!(*least >= fair / 2, "{held:?}");
    }
}

#[test]
fn share_when_even_then_nobody_is_moved() {
    let mut share = Share::default();
    let start = Instant::now();
    for second in 0..600 {
        assert_eq!(share.surplus(6, crowd(5, 30), start + Duration::from_secs(second)), 0);
    }
}

#[test]
fn share_when_a_little_above_then_one_goes_after_a_while() {
    let mut share = Share::default();
    let start = Instant::now();
    let ended: usize = (0..60).map(|second| share.surplus(7, crowd(5, 30), start + Duration::from_secs(second))).sum();
    assert_eq!(ended, 2, "one every {PATIENCE:?}");
}

#[test]
fn share_when_there_is_one_replica_or_none_is_known_then_nobody_is_moved() {
    let mut share = Share::default();
    assert_eq!(share.surplus(30, crowd(1, 30), Instant::now()), 0);
    assert_eq!(share.surplus(30, crowd(0, 0), Instant::now()), 0);
}

#[test]
fn share_when_proxies_are_many_then_at_most_twenty_go_at_a_time() {
    assert_eq!(Share::default().surplus(5000, crowd(2, 5000), Instant::now()), 20);
}

#[tokio::test]
async fn streams_when_shed_then_the_settled_and_old_go_and_no_other() {
    let streams = Streams::default();
    let mut old = streams.enter(1).unwrap();
    let mut waiting = streams.enter(2).unwrap();
    old.set_settled(true);
    let between = Instant::now();
    while Instant::now() == between {}
    let mut young = streams.enter(3).unwrap();
    young.set_settled(true);
    let now = between + MIN_AGE;
    assert_eq!(streams.shed(3, MIN_AGE, now), 1);
    assert_eq!(old.ended().await, Reason::Spread);
    for stays in [&mut waiting, &mut young] {
        assert!(tokio::time::timeout(Duration::from_millis(1), stays.ended()).await.is_err());
    }
    assert_eq!(streams.shed(3, MIN_AGE, now), 0, "nobody is asked twice");
    drop(old);
    assert_eq!(streams.count(), 2);
}

#[tokio::test]
async fn streams_when_the_replica_leaves_then_end_evenly_within_the_limit_and_none_gets_in() {
    const WITHIN: Duration = Duration::from_millis(600);
    let streams = Streams::default();
    let members: Vec<Membership> = (0..600).map(|number| streams.enter(number).unwrap()).collect();
    let start = Instant::now();
    let leaving = tokio::spawn({
        let streams = streams.clone();
        async move { streams.leave(WITHIN).await }
    });
    let mut times = Vec::new();
    for mut member in members {
        assert_eq!(member.ended().await, Reason::Leaving);
        times.push(start.elapsed());
    }
    assert!(streams.enter(1000).is_none());
    assert_eq!(leaving.await.unwrap(), 600);
    // No earlier than their turn; a busy machine may make them later.
    assert!(times[300] >= WITHIN / 3, "{:?}", times[300]);
    assert!(times[599] >= WITHIN * 9 / 10, "{:?}", times[599]);
}

#[test]
fn crowd_when_counted_then_is_the_revisions_endpoints_and_the_pods_that_name_it() {
    use leno_core::service::{Endpoint, Workload};
    use leno_core::{Identity, ObjectKey};

    let mut snapshot = Snapshot::default();
    for (number, revision, meshed) in
        [(1, "default", true), (2, "default", true), (3, "default-0-2-0", true), (4, "default", false)]
    {
        let workload = Workload {
            pod: ObjectKey::new("shop", format!("pod-{number}")),
            labels: [(REVISION_LABEL.to_owned(), revision.to_owned())].into(),
            addresses: vec![[10, 0, 0, number].into()],
            meshed,
            ..workload()
        };
        snapshot.workloads.insert(workload.pod.clone(), Arc::new(workload));
    }
    fn workload() -> Workload {
        Workload {
            pod: ObjectKey::new("", ""),
            uid: String::new(),
            name: String::new(),
            app: String::new(),
            version: String::new(),
            identity: Identity::new("cluster.local", "shop", "default"),
            labels: Default::default(),
            addresses: Vec::new(),
            node: String::new(),
            locality: Default::default(),
            meshed: true,
            engine: Default::default(),
            inbound: Default::default(),
        }
    }
    let endpoint = |last: u8| Endpoint {
        address: [10, 0, 1, last].into(),
        port: 15012,
        workload: None,
        locality: Default::default(),
    };
    let host =
        |revision: &str| Host::of_service(&format!("leno-control-plane-{revision}"), "leno-system", "cluster.local");
    let ports = |count: u8| [(15012, Arc::new((0..count).map(endpoint).collect::<Vec<_>>()))].into();
    snapshot.endpoints.insert(host("default"), ports(3));
    snapshot.endpoints.insert(host("default-0-2-0"), ports(1));
    assert_eq!(Crowd::of(&snapshot, "default", "leno-system"), crowd(3, 2));
    assert_eq!(Crowd::of(&snapshot, "default-0-2-0", "leno-system"), crowd(1, 1));
    assert_eq!(Crowd::of(&snapshot, "default", "elsewhere"), crowd(0, 2));
}
