//! Circuit breakers, outlier detection and the life of connections to endpoints.

use super::*;
use std::sync::mpsc;

fn answering(status: u16) -> Backend {
    Backend::http(move |_| format!("HTTP/1.1 {status} X\r\ncontent-length: 1\r\n\r\nx"))
}

/// A back end that answers when it is told to.
fn slow() -> (Backend, mpsc::Sender<()>) {
    let (sender, receiver) = mpsc::channel::<()>();
    let receiver = std::sync::Mutex::new(receiver);
    let backend = Backend::http(move |_| {
        let _ = receiver.lock().unwrap().recv_timeout(LIMIT);
        ok("x")
    });
    (backend, sender)
}

fn start(cluster: Cluster) -> Proxy {
    Proxy::start(1, http(forward(Forward::default())), vec![cluster])
}

#[test]
fn breaker_when_too_many_wait_then_they_are_told_to_stay_away() {
    full_when(Limits { connections: 1, pending: 1, ..Limits::default() });
}

#[test]
fn breaker_when_an_endpoint_has_as_many_connections_as_it_may_then_requests_wait_for_those() {
    full_when(Limits { per_host: 1, pending: 1, ..Limits::default() });
}

fn full_when(limits: Limits) {
    let (backend, go) = slow();
    let proxy = start(Cluster { limits, ..cluster(&[backend.address]) });
    let mut first = proxy.client();
    first.send(get("/").as_bytes());
    eventually("the first to be sent", || backend.connections.load(Ordering::SeqCst) == 1);
    let mut second = proxy.client();
    second.send(get("/").as_bytes());
    // Whichever of these comes first waits in line; every other is refused.
    let refused = loop {
        let mut client = proxy.client();
        client.stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        client.send(get("/").as_bytes());
        if let Some(answer) = client.message(false) {
            break answer;
        }
    };
    assert_eq!((refused.status(), refused.header("x-envoy-overloaded")), (503, Some("true")));
    proxy.told("UO");
    for _ in 0..8 {
        go.send(()).unwrap();
    }
    assert_eq!(first.message(false).unwrap().status(), 200);
}

#[test]
fn breaker_when_there_are_as_many_requests_as_may_be_then_others_wait_for_the_connection_all_the_same() {
    let (backend, go) = slow();
    let limits = Limits { connections: 1, pending: 1, requests: 1, ..Limits::default() };
    let proxy = start(Cluster { limits, ..cluster(&[backend.address]) });
    let (mut first, mut second) = (proxy.client(), proxy.client());
    first.send(get("/").as_bytes());
    eventually("the first to be sent", || backend.connections.load(Ordering::SeqCst) == 1);
    second.send(get("/").as_bytes());
    second.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(second.message(false).is_none(), "it waits in line");
    second.stream.set_read_timeout(Some(LIMIT)).unwrap();
    for _ in 0..2 {
        go.send(()).unwrap();
    }
    assert_eq!([&mut first, &mut second].map(|client| client.message(false).unwrap().status()), [200, 200]);
    assert_eq!(backend.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn answer_when_it_is_given_up_for_another_then_its_connection_serves_on() {
    let backend = answering(503);
    let on = RetryOn { gateway_error: true, ..RetryOn::default() };
    let policy = RetryPolicy { on, attempts: 3, ..RetryPolicy::default() };
    let action = forward(Forward { retry: Some(Arc::new(policy)), ..Forward::default() });
    let proxy = Proxy::start(1, http(action), vec![cluster(&[backend.address])]);
    assert_eq!(proxy.get("/").status(), 503);
    eventually("the request counted", || {
        let stats = proxy.telemetry.stats(Vec::new());
        stats.iter().any(|stat| stat.name.ends_with(".upstream_rq_retry") && stat.value == 3)
    });
    assert_eq!(backend.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn breaker_when_one_priority_is_full_then_the_other_is_not() {
    let limits = Limits { requests: 1, ..Limits::default() };
    let config = Cluster { limits, ..Cluster::new(FIRST, "c", ClusterKind::Static) };
    let state = crate::pool::ClusterState::new(Arc::new(config), None, None, 1, &crate::balance::Rng::new(1));
    let _one = state.begin_request(Priority::Default).unwrap();
    assert!(state.begin_request(Priority::Default).is_err());
    assert!(state.begin_request(Priority::High).is_ok());
}

#[test]
fn endpoint_when_it_fails_in_a_row_then_the_place_that_decides_is_told_and_others_serve() {
    let (bad, good) = (answering(500), answering(200));
    let (sender, mut reports) = tokio::sync::mpsc::channel(8);
    let settings = OutlierDetection { consecutive_5xx: 3, ..OutlierDetection::default() };
    let with = |health| {
        let mut config = cluster(&[bad.address, good.address]);
        let failing = Endpoint { health, ..Endpoint::new(bad.address) };
        config.endpoints[0] = Arc::new(failing);
        config.balancing = Arc::new(Balancing { panic_threshold: 0, ..Balancing::default() });
        config.care = Some(Arc::new(Care::new(Some(settings.clone()), sender.clone())));
        config
    };
    let network = || http(forward(Forward::default()));
    let proxy = Proxy::start(1, network(), vec![with(Health::Healthy)]);
    let mut client = proxy.client();
    let mut failures = 0;
    while failures < 3 {
        failures += u32::from(client.ask(&get("/")).status() == 500);
    }
    // Counts are told from time to time as well.
    let report = loop {
        match proxy.wait(reports.recv()).unwrap() {
            Report::Counts { .. } => {}
            report => break report,
        }
    };
    let expected = Report::Consecutive { cluster: FIRST, address: bad.address, kind: Consecutive::ServerErrors };
    assert_eq!(report, expected);
    proxy.publish(network(), vec![with(Health::Unhealthy)]);
    assert!((0..10).all(|_| client.ask(&get("/")).status() == 200));
}

#[test]
fn requests_when_the_control_plane_drops_some_then_they_are_refused() {
    let backend = answering(200);
    let mut config = cluster(&[backend.address]);
    config.spread.drop = 1.0;
    let proxy = start(config);
    let answer = proxy.get("/");
    assert_eq!((answer.status(), answer.body.as_str()), (503, "unconditional drop overload"));
    proxy.told("UDO");
}

#[test]
fn connection_when_it_is_old_then_it_serves_no_more_requests() {
    let backend = answering(200);
    let mut config = cluster(&[backend.address]);
    config.max_connection_duration = Some((Duration::from_nanos(1), 0.0));
    let proxy = start(config);
    let mut client = proxy.client();
    for _ in 0..3 {
        assert_eq!(client.ask(&get("/")).status(), 200);
    }
    assert_eq!(backend.connections.load(Ordering::SeqCst), 3);
}

#[test]
fn connections_when_endpoints_come_then_end_where_the_cluster_wants_it() {
    for (drain_on_change, connections) in [(false, 1), (true, 2)] {
        let (stays, comes) = (answering(200), answering(200));
        let with = |endpoints: &[SocketAddr]| {
            let balancing = Arc::new(Balancing { drain_on_change, ..Balancing::default() });
            Cluster { balancing, ..cluster(endpoints) }
        };
        let proxy = start(with(&[stays.address]));
        assert_eq!(proxy.get("/").status(), 200);
        proxy.publish(http(forward(Forward::default())), vec![with(&[stays.address, comes.address])]);
        for _ in 0..4 {
            assert_eq!(proxy.get("/").status(), 200);
        }
        assert_eq!(comes.connections.load(Ordering::SeqCst), 1);
        assert_eq!(stays.connections.load(Ordering::SeqCst), connections);
    }
}

#[test]
fn destination_when_a_header_names_it_then_that_is_connected() {
    let backend = answering(200);
    let original = OriginalDst { header: Some("x-envoy-original-dst-host".into()), port: None };
    let config = Cluster { original, ..Cluster::new(FIRST, "c", ClusterKind::OriginalDst) };
    let proxy = start(config);
    let answer = proxy
        .client()
        .ask(&format!("GET / HTTP/1.1\r\nhost: t\r\nx-envoy-original-dst-host: {}\r\n\r\n", backend.address));
    assert_eq!((answer.status(), backend.connections.load(Ordering::SeqCst)), (200, 1));
}

#[test]
fn retry_when_it_passes_over_priorities_then_the_next_one_serves_and_all_again_when_there_is_none() {
    let failing = || Backend::http(|_| "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n".into());
    let (near, far, farthest) = (failing(), failing(), Backend::echo());
    let at = |backend: &Backend, priority| Arc::new(Endpoint { priority, ..Endpoint::new(backend.address) });
    let ask = |endpoints: Vec<Arc<Endpoint>>, attempts, every| {
        let retry = RetryPolicy {
            attempts,
            on: RetryOn { server_error: true, ..RetryOn::default() },
            avoid_tried: false,
            other_priorities: every,
            base_backoff: Duration::from_millis(1),
            ..RetryPolicy::default()
        };
        let action = forward(Forward { retry: Some(Arc::new(retry)), ..Forward::default() });
        let proxy = Proxy::start(1, http(action), vec![Cluster { endpoints, ..cluster(&[]) }]);
        proxy.get("/").status()
    };
    let three = || vec![at(&near, 0), at(&far, 1), at(&farthest, 2)];
    assert_eq!(ask(three(), 2, None), 500, "the first priority takes everything");
    assert_eq!(ask(three(), 2, Some(1)), 200, "each attempt goes further");
    assert_eq!(ask(three(), 3, Some(2)), 500, "two attempts in each");
    assert_eq!(ask(three(), 4, Some(2)), 200);
    let before = near.connections.load(Ordering::SeqCst);
    assert_eq!(ask(vec![at(&near, 0), at(&far, 1)], 2, Some(1)), 500);
    assert!(near.connections.load(Ordering::SeqCst) > before, "after the last priority comes the first");
}

#[test]
fn endpoint_when_it_cannot_be_connected_to_then_a_client_whose_body_has_come_keeps_its_connection() {
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = Proxy::simple(&[dead]);
    let mut client = proxy.client();
    for body in ["content-length: 4\r\n\r\nbody", "transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"] {
        let answer = client.ask(&format!("POST / HTTP/1.1\r\nhost: t\r\n{body}"));
        assert_eq!((answer.status(), answer.header("connection")), (503, None));
    }
    // What has not come will not be read.
    let answer = client.ask("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 5\r\n\r\nbody");
    assert_eq!((answer.status(), answer.header("connection")), (503, Some("close")));
}

#[test]
fn endpoint_when_it_is_a_unix_socket_then_it_is_reached_by_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut request = [0; 4096];
            while stream.read(&mut request).is_ok_and(|count| count > 0) {
                stream.write_all(ok("from a socket").as_bytes()).unwrap();
            }
        }
    });
    let (pipe, address) = crate::config::pipe::known(path.to_str().unwrap()).unwrap();
    let mut config = cluster(&[address]);
    config.endpoints = vec![Arc::new(Endpoint { pipe: Some(pipe), ..Endpoint::new(address) })];
    let proxy = start(config);
    let mut client = proxy.client();
    for _ in 0..2 {
        assert_eq!(client.ask(&get("/")).body, "from a socket");
    }
    // What only looks like one is an address that nobody has.
    assert_eq!(start(cluster(&[address])).get("/").status(), 503);
}

#[test]
fn clients_when_each_has_a_pool_then_none_gets_a_connection_of_another() {
    for (pool_per_client, connections) in [(false, 1), (true, 2)] {
        let backend = Backend::echo();
        let proxy = start(Cluster { pool_per_client, ..cluster(&[backend.address]) });
        let (mut one, mut other) = (proxy.client(), proxy.client());
        for _ in 0..3 {
            assert_eq!(one.ask(&get("/")).status(), 200);
            assert_eq!(other.ask(&get("/")).status(), 200);
        }
        assert_eq!(backend.connections.load(Ordering::SeqCst), connections);
    }
}
