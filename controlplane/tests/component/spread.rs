//! Replicas that come and go over real TLS sockets: proxies spread evenly, keep what they have, and are sent nothing again.

use crate::common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{Made, Proxy, Replica, Server, WAIT, server_beside, versions};
use leno_controlplane::ads::Kind;
use leno_controlplane::ads::spread::{Crowd, Share};
use tokio::time::Instant;

/// Where a Service would lead, and how often it was asked.
#[derive(Clone, Default)]
struct Service {
    ready: Arc<Mutex<Vec<SocketAddr>>>,
    asked: Arc<AtomicUsize>,
}

impl Service {
    /// Any of the replicas, one after the other as a balancer does that spreads new connections well.
    fn pick(&self) -> SocketAddr {
        let ready = self.ready.lock().unwrap();
        ready[self.asked.fetch_add(1, Ordering::Relaxed) % ready.len()]
    }

    fn set(&self, replicas: &[&Replica]) {
        *self.ready.lock().unwrap() = replicas.iter().map(|replica| replica.address).collect();
    }
}

fn configuration() -> Made {
    Made::default().with(Kind::Cluster, "reviews", "c1").with(Kind::Endpoints, "reviews", "e1")
}

/// A proxy that connects again whenever its stream ends, with what it holds. `again` counts what it was sent that it had.
async fn proxy(server: Server, number: usize, service: Service, connected: Arc<AtomicUsize>, again: Arc<AtomicUsize>) {
    let mut held: BTreeMap<Kind, BTreeMap<String, String>> = BTreeMap::new();
    loop {
        let own = server.pod_certificate("shop", &format!("reviews-{number}"), &format!("u-{number}"));
        let Ok(mut proxy) = Proxy::open(server.channel_to(service.pick(), Some(own)).await).await else { continue };
        let empty = BTreeMap::new();
        proxy.resume(Kind::Cluster, &[], held.get(&Kind::Cluster).unwrap_or(&empty)).await;
        proxy.resume(Kind::Endpoints, &["reviews"], held.get(&Kind::Endpoints).unwrap_or(&empty)).await;
        proxy.resume(Kind::Listener, &[], held.get(&Kind::Listener).unwrap_or(&empty)).await;
        connected.fetch_add(1, Ordering::SeqCst);
        while let Ok(Some(response)) = proxy.message().await {
            proxy.ack(&response).await;
            let Some(kind) = Kind::of(&response.type_url) else { continue };
            assert!(response.removed_resources.is_empty(), "{:?}", response.removed_resources);
            for (name, version) in versions(&response) {
                if held.entry(kind).or_default().insert(name, version.clone()) == Some(version) {
                    again.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
        connected.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Looks at the shares of all replicas until they are even.
async fn until_even(replicas: &[&Replica], proxies: usize) -> Vec<usize> {
    let mut shares = vec![Share::default(); replicas.len()];
    let deadline = Instant::now() + WAIT * 2;
    let crowd = Crowd { replicas: replicas.len(), proxies };
    // Seconds that pass faster than the clock's: the decision is handed its time.
    let mut now = Instant::now();
    loop {
        let held: Vec<usize> = replicas.iter().map(|replica| replica.streams.count()).collect();
        let (least, most) = (held.iter().min().unwrap(), held.iter().max().unwrap());
        if held.iter().sum::<usize>() == proxies && most - least <= 1 {
            return held;
        }
        assert!(Instant::now() < deadline, "still uneven: {held:?}");
        for (share, replica) in shares.iter_mut().zip(replicas) {
            replica.streams.shed(share.surplus(replica.streams.count(), crowd, now), Duration::ZERO, Instant::now());
        }
        now += Duration::from_secs(1);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_plane_when_scaled_from_1_to_5_to_2_to_1_then_streams_are_even_and_nothing_is_sent_again() {
    const PROXIES: usize = 20;
    let server = common::server().await;
    server.configs.set(&configuration().resources());
    let (service, connected, again) = (Service::default(), Arc::default(), Arc::default());
    let first = server.replica();
    service.set(&[&first]);
    for number in 0..PROXIES {
        tokio::spawn(proxy(server.clone(), number, service.clone(), Arc::clone(&connected), Arc::clone(&again)));
    }
    until_even(&[&first], PROXIES).await;

    let mut others = Vec::new();
    for _ in 0..4 {
        others.push(server_beside(&server).await);
    }
    let all: Vec<&Replica> = std::iter::once(&first).chain(&others).collect();
    service.set(&all);
    assert_eq!(until_even(&all, PROXIES).await, [4; 5]);

    // Three leave: not reachable any more for new connections first, then their streams one by one.
    service.set(&all[..2]);
    for leaves in &all[2..] {
        assert_eq!(leaves.streams.leave(Duration::from_millis(200)).await, 4);
        leaves.stop.cancel();
    }
    assert_eq!(until_even(&all[..2], PROXIES).await, [10; 2]);

    service.set(&all[1..2]);
    assert_eq!(first.streams.leave(Duration::from_millis(200)).await, 10);
    first.stop.cancel();
    assert_eq!(until_even(&all[1..2], PROXIES).await, [PROXIES]);

    assert_eq!(connected.load(Ordering::SeqCst), PROXIES);
    assert_eq!(again.load(Ordering::SeqCst), 0, "what a proxy has is not sent to it again");

    // All of them are still told of changes.
    server.configs.set(&configuration().with(Kind::Cluster, "ratings", "c1").resources());
    let deadline = Instant::now() + WAIT;
    while !server.configs.book.proxies().iter().all(|proxy| common::configuration_of(proxy) == 2) {
        assert!(Instant::now() < deadline, "a proxy missed a change");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(again.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn replica_when_it_leaves_then_takes_no_new_stream() {
    let server = common::server().await;
    server.configs.set(&configuration().resources());
    let replica = server.replica();
    assert_eq!(replica.streams.leave(Duration::ZERO).await, 0);
    let refused = Proxy::open(server.channel(Some(server.pod_certificate("shop", "a", "u"))).await).await;
    assert_eq!(refused.err().map(|status| status.code()), Some(tonic::Code::Unavailable));
}
