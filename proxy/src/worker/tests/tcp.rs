//! Bytes from a client to a back end and back, and what listeners find out about connections.

use super::*;

fn proxy_to(clusters: Vec<Cluster>, idle: Duration) -> Proxy {
    Proxy::start(1, Network::Tcp(Arc::new(tcp(idle))), clusters)
}

fn tcp(idle: Duration) -> TcpProxy {
    let targets = vec![TcpTarget::all(FIRST)];
    TcpProxy { idle_timeout: idle, connect_attempts: 2, ..TcpProxy::new(targets) }
}

#[test]
fn reset_when_it_comes_from_one_end_then_the_other_is_reset_too() {
    let (told, ends) = std::sync::mpsc::channel();
    let backend = Backend::start(move |stream, _| {
        let mut byte = [0];
        (&stream).read_exact(&mut byte).unwrap();
        if byte == *b"r" {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            return;
        }
        (&stream).write_all(b"y").unwrap();
        told.send((&stream).read(&mut byte).map_err(|error| error.kind())).unwrap();
    });
    let proxy = proxy_to(vec![cluster(&[backend.address])], Duration::ZERO);
    let mut client = proxy.client();
    client.send(b"r");
    let end = client.stream.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
    let mut client = proxy.client();
    client.send(b"x");
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 1);
    socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    assert_eq!(ends.recv_timeout(LIMIT).unwrap(), Err(std::io::ErrorKind::ConnectionReset));
}

/// Ends a connection at once, whatever is on its way.
fn cut(stream: &TcpStream) {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// How a side that reads late sees it end, after what came.
fn read_late(mut stream: &TcpStream) -> std::io::ErrorKind {
    thread::sleep(Duration::from_millis(300));
    let mut part = [0; 65536];
    loop {
        match stream.read(&mut part) {
            Ok(0) => panic!("an end in order"),
            Ok(_) => {}
            Err(error) => return error.kind(),
        }
    }
}

#[test]
fn stream_when_it_is_cut_while_the_other_end_is_slow_then_that_sees_no_end_in_order() {
    // More than the kernel keeps between them.
    const MOST: usize = 32 << 20;
    let fill = |mut stream: &TcpStream| {
        stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let part = [7; 65536];
        let _ = (0..MOST / part.len()).try_for_each(|_| stream.write_all(&part));
        cut(stream);
    };
    let (told, ends) = std::sync::mpsc::channel();
    let backend = Backend::start(move |stream, _| {
        let mut byte = [0];
        (&stream).read_exact(&mut byte).unwrap();
        match byte {
            [b'f'] => fill(&stream),
            _ => told.send(read_late(&stream)).unwrap(),
        }
    });
    let proxy = proxy_to(vec![cluster(&[backend.address])], Duration::ZERO);
    let mut client = proxy.client();
    client.send(b"f");
    assert_eq!(read_late(&client.stream), std::io::ErrorKind::ConnectionReset);
    let mut client = proxy.client();
    client.send(b"r");
    fill(&client.stream);
    drop(client);
    assert_eq!(ends.recv_timeout(2 * LIMIT).unwrap(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn bytes_when_proxied_then_both_ends_are_passed_on() {
    let backend = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        side.send(b"hello first\n");
        let all = side.rest();
        side.send(all.len().to_string().as_bytes());
    });
    let proxy = proxy_to(vec![cluster(&[backend.address])], LIMIT);
    let mut client = proxy.client();
    assert_eq!(client.until(b"\n").unwrap(), "hello first\n");
    client.send(&vec![b'x'; 3_000_000]);
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.rest(), "3000000");
    eventually("bytes counted", || {
        let metrics = proxy.telemetry.render();
        metrics.lines().any(|line| line.starts_with("istio_tcp_received_bytes_total") && line.ends_with(" 3000000"))
            && metrics
                .lines()
                .any(|line| line.starts_with("istio_tcp_connections_closed_total") && line.ends_with(" 1"))
    });
}

#[test]
fn connection_when_one_endpoint_is_dead_then_another_is_tried() {
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let backend = Backend::start(|stream, _| Side::new(stream).send(b"alive"));
    let proxy = proxy_to(vec![cluster(&[dead, backend.address])], LIMIT);
    for _ in 0..6 {
        assert_eq!(proxy.client().rest(), "alive");
    }
}

#[test]
fn connection_when_idle_for_too_long_then_it_is_closed() {
    let backend = Backend::start(|stream, _| {
        Side::new(stream).rest();
    });
    let proxy = proxy_to(vec![cluster(&[backend.address])], Duration::from_millis(100));
    let start = Instant::now();
    assert_eq!(proxy.client().rest(), "");
    assert!(start.elapsed() < LIMIT);
}

fn detecting(proxy: &Proxy, detect_timeout: Duration, clusters: Vec<Cluster>) {
    let http11: Arc<str> = "http/1.1".into();
    let chain = |name: &str, matches, network| FilterChain { matches, ..FilterChain::new(name, network) };
    let chains = FilterChains::new(
        vec![
            chain(
                "http",
                ChainMatch { application_protocols: vec![http11], ..ChainMatch::default() },
                http(Action::Direct(DirectResponse {
                    code: 200,
                    body: (*b"http").into(),
                    format: None,
                    content_type: None,
                })),
            ),
            chain(
                "sni",
                ChainMatch { server_names: vec!["*.example.com".into()], ..ChainMatch::default() },
                Network::Tcp(Arc::new(tcp(LIMIT))),
            ),
        ],
        Some(chain("tcp", ChainMatch::default(), Network::Tcp(Arc::new(tcp(LIMIT))))),
    );
    let listener = Listener {
        name: "detecting".into(),
        addresses: vec![proxy.address],
        inspect: Inspect { tls: true, http: true, ..Inspect::default() },
        detect_timeout,
        continue_on_timeout: true,
        chains: chains.unwrap(),
        ..Listener::default()
    };
    proxy.wait(proxy.workers().publish(Arc::new(Root {
        listeners: Listeners::new(vec![Arc::new(listener)]),
        clusters: clusters.into_iter().map(|cluster| Some(Arc::new(cluster))).collect(),
        ..Root::default()
    })));
}

#[test]
fn connection_when_protocol_is_detected_then_its_chain_serves_it() {
    let backend = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        side.send(b"220 ready\n");
        let line = side.until(b"\n").unwrap();
        side.send(line.as_bytes());
    });
    let proxy = proxy_to(vec![cluster(&[backend.address])], LIMIT);
    detecting(&proxy, Duration::from_millis(50), vec![cluster(&[backend.address])]);
    assert_eq!(proxy.get("/").body, "http");
    // A request that comes in pieces is one still.
    let mut slow = proxy.client();
    slow.send(b"GE");
    thread::sleep(Duration::from_millis(5));
    assert_eq!(slow.ask("T / HTTP/1.1\r\nhost: t\r\n\r\n").body, "http");
    // The client speaks first, but not HTTP: what it said is not lost.
    let mut client = proxy.client();
    client.send(b"EHLO me\n");
    assert_eq!(client.until(b"\n").unwrap(), "220 ready\n");
    assert_eq!(client.until(b"\n").unwrap(), "EHLO me\n");
    // The server speaks first: the wait is short.
    let start = Instant::now();
    let mut client = proxy.client();
    assert_eq!(client.until(b"\n").unwrap(), "220 ready\n");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn connection_when_it_comes_straight_to_a_capturing_port_then_it_is_closed() {
    let backend = Backend::echo();
    let proxy = proxy_to(vec![cluster(&[backend.address])], LIMIT);
    let chain = FilterChain::new("passthrough", Network::Tcp(Arc::new(tcp(LIMIT))));
    let listener = Listener {
        name: "virtualOutbound".into(),
        addresses: vec![proxy.address],
        use_original_dst: true,
        chains: FilterChains::new(Vec::new(), Some(chain)).unwrap(),
        ..Listener::default()
    };
    let passthrough = Cluster::new(FIRST, "PassthroughCluster", ClusterKind::OriginalDst);
    proxy.wait(proxy.workers().publish(Arc::new(Root {
        listeners: Listeners::new(vec![Arc::new(listener)]),
        clusters: vec![Some(Arc::new(passthrough))],
        ..Root::default()
    })));
    let mut client = proxy.client();
    client.send(get("/").as_bytes());
    assert_eq!(client.rest(), "");
    eventually("no open connection", || proxy.workers().connections() == 0);
}

#[test]
fn cluster_when_original_destination_then_it_is_reached_from_the_wanted_source() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let backend = Backend::start(move |stream, _| {
        sender.lock().unwrap().send(stream.peer_addr().unwrap()).unwrap();
    });
    let (_, mut shards) = Telemetry::new(1);
    let config = Cluster {
        bind: Some(SourceBind { v4: Some([127, 0, 0, 6].into()), v6: None }),
        ..Cluster::new(FIRST, "inbound|80||", ClusterKind::OriginalDst)
    };
    let root = Root { clusters: vec![Some(Arc::new(config))], ..Root::default() };
    let worker = Worker::new(0, 1, Arc::new(root), shards.remove(0), CredentialStore::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let root = worker.root();
        let cluster = root.cluster(FIRST).unwrap();
        let host =
            cluster.pick(&worker.rng, &crate::balance::PickContext::to(Some(backend.address)), |_| false).unwrap();
        assert_eq!(host.address(), backend.address);
        crate::pool::connect(cluster.config(), &host, crate::tls::Alpn::Tcp, &worker.tls).await.unwrap();
    });
    assert_eq!(receiver.recv_timeout(LIMIT).unwrap().ip(), std::net::IpAddr::from([127, 0, 0, 6]));
}

#[test]
fn connection_when_its_endpoint_is_found_unwell_then_it_ends_where_the_cluster_wants_that() {
    let backend = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        side.send(b"here\n");
        side.rest();
    });
    let with = |failed, close_on_failure| {
        let health = if failed { Health::Unhealthy } else { Health::Healthy };
        let failed = Failed { check: failed, ..Failed::default() };
        let endpoint = Endpoint { failed, health, ..Endpoint::new(backend.address) };
        Cluster { close_on_failure, endpoints: vec![Arc::new(endpoint)], ..cluster(&[backend.address]) }
    };
    for closes in [true, false] {
        let network = || Network::Tcp(Arc::new(tcp(Duration::from_secs(3600))));
        let proxy = Proxy::start(1, network(), vec![with(false, closes)]);
        let mut client = proxy.client();
        assert_eq!(client.until(b"\n").unwrap(), "here\n");
        proxy.publish(network(), vec![with(true, closes)]);
        client.stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let ended = matches!(client.stream.read(&mut [0]), Ok(0));
        assert_eq!(ended, closes);
    }
}

#[test]
fn socket_when_it_has_options_then_they_are_set_and_without_them_there_is_no_connection() {
    let backend = Backend::start(|stream, _| drop(Side::new(stream).rest()));
    let connect = |name| {
        let option = (libc::SOL_SOCKET, name, SocketOption::Int(1));
        let config = Cluster { socket_options: Arc::new([option]), ..cluster(&[backend.address]) };
        let host = crate::pool::Host::new(config.endpoints[0].clone(), Arc::default());
        let (_, mut shards) = Telemetry::new(1);
        let worker = Worker::new(0, 1, Arc::default(), shards.remove(0), CredentialStore::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            match crate::pool::connect(&config, &host, crate::tls::Alpn::Tcp, &worker.tls).await {
                Ok(crate::pool::Connected { stream: crate::listen::Stream::Plain(tcp), .. }) => {
                    Some(socket2::SockRef::from(&tcp).keepalive().unwrap())
                }
                _ => None,
            }
        })
    };
    assert_eq!(connect(libc::SO_KEEPALIVE), Some(true));
    assert_eq!(connect(9999), None);
}
