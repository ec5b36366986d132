//! Decisions from data alone, and the whole stage against real sockets.

use super::ejections::Ejections;
use super::machine::{Machine, Outcome, Verdict};
use super::*;
use crate::config::{
    Consecutive, Dns, DnsFamily, DnsName, Endpoint, EndpointCheck, Health, HealthCheck, Home, HttpProbe,
    OutlierDetection, Probe, ZoneChanges,
};
use std::sync::atomic::{AtomicU16, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const LIMIT: Duration = Duration::from_secs(10);

fn at(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn ejections(settings: OutlierDetection, hosts: u16, now: Instant) -> Ejections {
    let mut ejections = Ejections::new(settings, now);
    ejections.set_hosts((1..=hosts).map(at));
    ejections
}

#[test]
fn ejections_when_one_fails_then_it_is_out_for_longer_each_time_and_comes_back() {
    let (now, rng) = (Instant::now(), Rng::new(1));
    let seconds = Duration::from_secs;
    let settings = OutlierDetection { max_percent: 50, ..OutlierDetection::default() };
    let mut hosts = ejections(settings, 3, now);
    assert!(hosts.consecutive(at(1), Consecutive::ServerErrors, now, &rng) && hosts.is_out(at(1)));
    assert!(!hosts.consecutive(at(1), Consecutive::ServerErrors, now, &rng), "it is out already");
    assert!(!hosts.consecutive(at(2), Consecutive::ServerErrors, now, &rng), "two of three are more than half");
    assert!(!hosts.consecutive(at(9), Consecutive::ServerErrors, now, &rng), "nobody knows it");
    let stats = hosts.stats().clone();
    let told = [&stats.detected_5xx, &stats.enforced_total, &stats.overflow, &stats.active].map(|number| number.get());
    assert_eq!(told, [2, 1, 1, 1], "detected twice, once enforced, once there was no room, one is out");
    assert!(!hosts.tick(now + seconds(20), &rng) && hosts.is_out(at(1)));
    assert!(hosts.tick(now + seconds(31), &rng) && !hosts.is_out(at(1)));
    let again = now + seconds(32);
    assert!(hosts.consecutive(at(1), Consecutive::ServerErrors, again, &rng));
    assert!(!hosts.tick(again + seconds(40), &rng), "twice as long the second time");
    assert!(hosts.tick(again + seconds(61), &rng));
    assert!(hosts.consecutive(at(1), Consecutive::ServerErrors, again + seconds(62), &rng));
    assert!(hosts.check_passed(at(1), again + seconds(63)) && !hosts.is_out(at(1)));
    assert_eq!(stats.active.get(), 0);
}

#[test]
fn ejections_when_there_is_a_log_then_every_turn_is_told_once_and_what_is_not_enforced_too() {
    use super::ejections::{Cause, Turn, What};
    let (now, rng) = (Instant::now(), Rng::new(1));
    let log = Some(Arc::new(crate::telemetry::LogSink::Stdout));
    let settings = OutlierDetection { max_percent: 100, log, ..OutlierDetection::default() };
    let mut hosts = ejections(settings, 3, now);
    hosts.consecutive(at(1), Consecutive::GatewayErrors, now, &rng);
    hosts.consecutive(at(1), Consecutive::ServerErrors, now, &rng);
    hosts.consecutive(at(1), Consecutive::ServerErrors, now, &rng);
    let later = now + Duration::from_secs(31);
    hosts.tick(later, &rng);
    let out = |kind, enforced, times| {
        let what = What::Out { cause: Cause::Consecutive(kind), enforced };
        Turn { address: at(1), since: None, times, what }
    };
    let back = Turn { address: at(1), since: Some(Duration::from_secs(31)), times: 1, what: What::Back };
    let told = hosts.take_turns().unwrap().1;
    assert_eq!(told, [out(Consecutive::GatewayErrors, false, 0), out(Consecutive::ServerErrors, true, 1), back]);
    assert!(hosts.take_turns().is_none());
    hosts.consecutive(at(1), Consecutive::ServerErrors, later + Duration::from_secs(5), &rng);
    let again = hosts.take_turns().unwrap().1;
    assert_eq!((again[0].since, again[0].times), (Some(Duration::from_secs(5)), 2));
}

#[test]
fn ejections_when_few_may_be_out_or_it_is_not_enforced_then_nobody_is() {
    let (now, rng) = (Instant::now(), Rng::new(1));
    let out = |settings: OutlierDetection, kind| ejections(settings, 2, now).consecutive(at(1), kind, now, &rng);
    let usual = OutlierDetection::default();
    assert!(!out(usual.clone(), Consecutive::ServerErrors), "one of two is more than a tenth");
    assert!(out(OutlierDetection { always_one: true, ..usual.clone() }, Consecutive::ServerErrors));
    let all = OutlierDetection { max_percent: 100, ..usual };
    assert!(!out(all.clone(), Consecutive::GatewayErrors), "not enforced unless asked for");
    assert!(out(OutlierDetection { enforcing: [0, 100, 0], ..all }, Consecutive::GatewayErrors));
}

#[test]
fn ejections_when_a_rate_is_far_from_the_others_then_that_one_is_out() {
    let (now, rng) = (Instant::now(), Rng::new(1));
    let settings = OutlierDetection { max_percent: 50, ..OutlierDetection::default() };
    let later = now + settings.interval;
    let count = |settings: &OutlierDetection, good: [u32; 5]| {
        let mut hosts = ejections(settings.clone(), 5, now);
        for (index, good) in good.into_iter().enumerate() {
            hosts.count(at(index as u16 + 1), (good, 100), (0, 0));
        }
        hosts.tick(later, &rng);
        (1..=5).filter(|port| hosts.is_out(at(*port))).collect::<Vec<u16>>()
    };
    assert_eq!(count(&settings, [100, 100, 100, 100, 50]), [5]);
    assert_eq!(count(&settings, [100, 99, 100, 99, 98]), [0; 0]);
    let few = OutlierDetection { rate_volume: 101, ..settings.clone() };
    assert_eq!(count(&few, [100, 100, 100, 100, 50]), [0; 0], "not enough requests to judge");
    let percentage = OutlierDetection { enforcing_rate: [0, 0], enforcing_percentage: [100, 0], ..settings };
    assert_eq!(count(&percentage, [100, 100, 16, 15, 100]), [4]);
}

fn check(probe: Probe) -> HealthCheck {
    let millis = Duration::from_millis;
    HealthCheck {
        stats: Default::default(),
        timeout: Duration::from_secs(2),
        interval: millis(20),
        initial_jitter: Duration::ZERO,
        jitter: Duration::ZERO,
        jitter_percent: 0,
        unhealthy_threshold: 3,
        healthy_threshold: 2,
        no_traffic_interval: millis(21),
        no_traffic_healthy_interval: millis(22),
        unhealthy_interval: millis(23),
        unhealthy_edge_interval: millis(24),
        healthy_edge_interval: millis(25),
        reuse_connection: true,
        tls: None,
        log: None,
        probe,
    }
}

fn http(path: &str) -> Probe {
    Probe::Http(HttpProbe {
        send: Box::default(),
        receive: Vec::new(),
        service: None,
        anonymous: false,
        host: None,
        path: path.into(),
        method: "GET".into(),
        headers: vec![("x-check".into(), "1".into())],
        expected: vec![(200, 201)],
        retriable: vec![(503, 504)],
        http2: false,
    })
}

#[test]
fn machine_when_checks_succeed_and_fail_then_thresholds_decide_but_for_the_first() {
    let check = check(http("/"));
    let mut machine = Machine::default();
    let mut step = |outcome| {
        let (verdict, wait) = machine.step(outcome, &check, true);
        (verdict, wait.as_millis())
    };
    assert_eq!(step(Outcome::Good), (Some(Verdict::Healthy), 20), "the first is enough");
    assert_eq!(step(Outcome::Silent), (None, 24));
    assert_eq!(step(Outcome::Good), (None, 20));
    assert_eq!(step(Outcome::Silent), (None, 24), "a success begins anew");
    assert_eq!(step(Outcome::Silent), (None, 24));
    assert_eq!(step(Outcome::Silent), (Some(Verdict::Unhealthy), 23));
    assert_eq!(step(Outcome::Good), (None, 25));
    assert_eq!(step(Outcome::Degraded), (Some(Verdict::Degraded), 20));
    assert_eq!(step(Outcome::Bad), (Some(Verdict::Unhealthy), 23), "an answer is as good as the threshold");
    let mut machine = Machine::default();
    assert_eq!(machine.step(Outcome::Silent, &check, false).0, Some(Verdict::Unhealthy));
    let waits = [Outcome::Good, Outcome::Good].map(|outcome| machine.step(outcome, &check, false).1.as_millis());
    assert_eq!(waits, [21, 22], "without traffic");
}

/// Answers checks with a status that can be changed.
async fn backend(status: Arc<AtomicU16>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let status = status.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                while let Ok(1..) = stream.read(&mut buffer).await {
                    let asked = String::from_utf8_lossy(&buffer).to_lowercase();
                    let known = asked.starts_with("get /healthz ") && asked.contains("x-check: 1");
                    let status = if known { status.load(Ordering::SeqCst) } else { 404 };
                    let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\nok");
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn root(version: u64, cluster: Cluster) -> Option<Arc<Root>> {
    let home = Home { cluster: ClusterId(7), locality: None, changes: ZoneChanges::default() };
    Some(Arc::new(Root { version, clusters: vec![Some(Arc::new(cluster))], home: Some(home), ..Root::default() }))
}

fn cluster(endpoints: Vec<Endpoint>) -> Cluster {
    let endpoints = endpoints.into_iter().map(Arc::new).collect();
    Cluster { endpoints, ..Cluster::new(ClusterId(0), "c", ClusterKind::Eds) }
}

/// Waits for a root whose only cluster is so.
async fn until(roots: &mut watch::Receiver<Option<Arc<Root>>>, what: &str, holds: impl Fn(&Cluster) -> bool) {
    let there = |root: &Option<Arc<Root>>| {
        root.as_ref().and_then(|root| root.clusters[0].clone()).is_some_and(|cluster| holds(&cluster))
    };
    let waited = tokio::time::timeout(LIMIT, roots.wait_for(there)).await;
    assert!(waited.is_ok_and(|found| found.is_ok()), "in vain waited for: {what}");
}

#[tokio::test]
async fn stage_when_nobody_needs_care_then_roots_pass_as_they_are() {
    let (sender, roots) = watch::channel(None);
    let mut out = stage(roots, CredentialStore::new());
    let first = root(1, cluster(vec![Endpoint::new(at(1))]));
    sender.send_replace(first.clone());
    let got = out.wait_for(Option::is_some).await.unwrap().clone();
    assert!(Arc::ptr_eq(&got.unwrap(), &first.unwrap()));
}

#[tokio::test]
async fn stage_when_checks_pass_and_fail_then_workers_are_told() {
    let status = Arc::new(AtomicU16::new(200));
    let address = backend(status.clone()).await;
    let (sender, roots) = watch::channel(None);
    let mut out = stage(roots, CredentialStore::new());
    let checked = EndpointCheck { disabled: true, ..EndpointCheck::default() };
    let unchecked = Endpoint { check: Some(Arc::new(checked)), ..Endpoint::new(at(9)) };
    let mut first = cluster(vec![Endpoint::new(address), unchecked, Endpoint::new(at(1))]);
    first.checks = vec![Arc::new(check(http("/healthz")))];
    sender.send_replace(root(1, first.clone()));
    let health = |cluster: &Cluster| cluster.endpoints.iter().map(|endpoint| endpoint.health).collect::<Vec<_>>();
    let well = [Health::Healthy, Health::Healthy, Health::Unhealthy];
    until(&mut out, "the first verdicts", |cluster| health(cluster) == well).await;
    status.store(500, Ordering::SeqCst);
    until(&mut out, "the failure", |cluster| health(cluster)[0] == Health::Unhealthy).await;
    status.store(200, Ordering::SeqCst);
    until(&mut out, "the recovery", |cluster| health(cluster)[0] == Health::Healthy).await;
    // What is well stays although it is no longer configured, until it is not.
    first.endpoints.remove(0);
    sender.send_replace(root(2, first));
    let there = |cluster: &Cluster| cluster.endpoints.iter().any(|endpoint| endpoint.address == address);
    out.wait_for(|root| root.as_ref().is_some_and(|root| root.version == 2)).await.unwrap();
    until(&mut out, "the well one to stay", there).await;
    status.store(500, Ordering::SeqCst);
    until(&mut out, "its end", |cluster| !there(cluster)).await;
}

#[tokio::test]
async fn stage_when_tcp_is_checked_then_what_comes_back_decides() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut asked = [0; 4];
            if stream.read_exact(&mut asked).await.is_ok() && &asked == b"ping" {
                let _ = stream.write_all(b"..pong..").await;
            }
        }
    });
    let (sender, roots) = watch::channel(None);
    let mut out = stage(roots, CredentialStore::new());
    let probe = Probe::Tcp { send: Box::from(&b"ping"[..]), receive: vec![Box::from(&b"pong"[..])] };
    let mut config = cluster(vec![Endpoint::new(address)]);
    config.checks = vec![Arc::new(check(probe))];
    sender.send_replace(root(1, config));
    until(&mut out, "the answer", |cluster| cluster.endpoints[0].health == Health::Healthy).await;
}

#[tokio::test]
async fn stage_when_names_are_looked_up_then_their_addresses_are_endpoints() {
    let (sender, roots) = watch::channel(None);
    let mut out = stage(roots, CredentialStore::new());
    let name = |name: &str, port| {
        let endpoint = Endpoint { hostname: Some(name.into()), ..Endpoint::new(([0, 0, 0, 0], port).into()) };
        DnsName { name: name.into(), endpoint: Arc::new(endpoint) }
    };
    let dns = Dns {
        stats: Default::default(),
        logical: false,
        names: vec![name("127.0.0.7", 80), name("localhost", 81)],
        refresh: Duration::from_secs(5),
        jitter: Duration::ZERO,
        failure_refresh: None,
        respect_ttl: false,
        least: Duration::ZERO,
        family: DnsFamily::V4Only,
        servers: Vec::new(),
        tcp: false,
    };
    let config = Cluster { dns: Some(Arc::new(dns)), ..Cluster::new(ClusterId(0), "c", ClusterKind::Dns) };
    sender.send_replace(root(1, config));
    let wanted = [SocketAddr::from(([127, 0, 0, 7], 80)), at(81)];
    until(&mut out, "both", |cluster| {
        cluster.endpoints.iter().map(|endpoint| endpoint.address).collect::<Vec<_>>() == wanted
    })
    .await;
}

#[tokio::test]
async fn stage_when_workers_report_failures_then_the_endpoint_is_out_and_comes_back() {
    let (sender, roots) = watch::channel(None);
    let mut out = stage(roots, CredentialStore::new());
    let outliers = OutlierDetection {
        max_percent: 100,
        base_ejection: Duration::from_millis(100),
        interval: Duration::from_millis(20),
        ..OutlierDetection::default()
    };
    let config =
        Cluster { outliers: Some(Arc::new(outliers)), ..cluster(vec![Endpoint::new(at(1)), Endpoint::new(at(2))]) };
    sender.send_replace(root(1, config));
    let health = |cluster: &Cluster| cluster.endpoints[0].health;
    until(&mut out, "the first", |cluster| cluster.care.is_some() && health(cluster) == Health::Healthy).await;
    assert!(out.borrow().as_ref().unwrap().home.is_some(), "the rest of the root passes as it is");
    let care = out.borrow().as_ref().unwrap().clusters[0].as_ref().unwrap().care.clone().unwrap();
    care.report(Report::Consecutive { cluster: ClusterId(0), address: at(1), kind: Consecutive::ServerErrors });
    until(&mut out, "the ejection", |cluster| health(cluster) == Health::Unhealthy).await;
    until(&mut out, "its end", |cluster| health(cluster) == Health::Healthy).await;
}

#[tokio::test]
async fn stage_when_grpc_is_checked_then_the_status_of_the_service_decides() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let known = request.uri().path() == "/grpc.health.v1.Health/Check";
                    tokio::spawn(async move {
                        let mut asked = request.into_body();
                        let question = asked.data().await.unwrap().unwrap();
                        let status = u8::from(known && question.ends_with(b"good"));
                        let response = http::Response::builder().header("content-type", "application/grpc");
                        let mut body = respond.send_response(response.body(()).unwrap(), false).unwrap();
                        let answer = bytes::Bytes::from(vec![0, 0, 0, 0, 2, 8, if status == 1 { 1 } else { 2 }]);
                        body.send_data(answer, false).unwrap();
                        let mut trailers = http::HeaderMap::new();
                        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                        body.send_trailers(trailers).unwrap();
                    });
                }
            });
        }
    });
    for (service, expected) in [("good", Health::Healthy), ("bad", Health::Unhealthy)] {
        let (sender, roots) = watch::channel(None);
        let mut out = stage(roots, CredentialStore::new());
        let probe = Probe::Grpc { service: service.into(), authority: None, headers: Vec::new() };
        let mut config = cluster(vec![Endpoint::new(address)]);
        config.checks = vec![Arc::new(check(probe))];
        sender.send_replace(root(1, config));
        until(&mut out, service, |cluster| cluster.endpoints[0].health == expected).await;
    }
}

#[tokio::test]
async fn stage_when_a_check_passes_then_what_was_taken_out_is_back_at_once() {
    let address = backend(Arc::new(AtomicU16::new(200))).await;
    let (sender, roots) = watch::channel(None);
    let mut out = stage(roots, CredentialStore::new());
    let outliers = OutlierDetection { max_percent: 100, ..OutlierDetection::default() };
    let stats = outliers.stats.clone();
    let mut config = cluster(vec![Endpoint::new(address)]);
    (config.outliers, config.checks) = (Some(Arc::new(outliers)), vec![Arc::new(check(http("/healthz")))]);
    sender.send_replace(root(1, config));
    let well = |cluster: &Cluster| cluster.endpoints[0].health == Health::Healthy;
    until(&mut out, "the first", |cluster| cluster.care.is_some() && well(cluster)).await;
    let care = out.borrow().as_ref().unwrap().clusters[0].as_ref().unwrap().care.clone().unwrap();
    care.report(Report::Consecutive { cluster: ClusterId(0), address, kind: Consecutive::ServerErrors });
    let waited = tokio::time::timeout(LIMIT, async {
        while stats.enforced_total.get() == 0 || stats.active.get() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.expect("30 seconds are not over, but a check has passed");
    until(&mut out, "its end", well).await;
}

#[tokio::test]
async fn stage_when_what_leaves_fails_its_checks_then_it_is_no_failure_of_the_others() {
    let status = Arc::new(AtomicU16::new(500));
    let address = backend(status).await;
    let (sender, roots) = watch::channel(None);
    let mut out = stage(roots, CredentialStore::new());
    let mut config = cluster(vec![Endpoint { health: Health::Draining, ..Endpoint::new(address) }]);
    config.checks = vec![Arc::new(check(http("/healthz")))];
    sender.send_replace(root(1, config.clone()));
    let left = |cluster: &Cluster| {
        let endpoint = &cluster.endpoints[0];
        endpoint.health == Health::Unhealthy && endpoint.failed.check && endpoint.is_excluded()
    };
    until(&mut out, "the failure", left).await;
    config.endpoints = vec![Arc::new(Endpoint::new(address))];
    sender.send_replace(root(2, config));
    let failed = |cluster: &Cluster| cluster.endpoints[0].failed.check && !cluster.endpoints[0].is_excluded();
    until(&mut out, "the failure of one that is to be there", failed).await;
}
