//! Configuration changes, draining, balancing between workers, sizes.

use super::*;

#[test]
fn connections_when_many_come_then_workers_share_them_exactly() {
    let backend = Backend::echo();
    let proxy = Proxy::start(3, http(forward(Forward::default())), vec![cluster(&[backend.address])]);
    let mut clients: Vec<Side> = (0..30).map(|_| proxy.client()).collect();
    for client in &mut clients {
        assert_eq!(client.ask(&get("/")).status(), 200);
    }
    assert_eq!(proxy.workers().connections_by_worker(), [10, 10, 10]);
    drop(clients);
    eventually("no open connection", || proxy.workers().connections() == 0);
}

#[test]
fn root_when_published_then_the_next_request_on_an_open_connection_uses_it() {
    let backends: Vec<Backend> = (0..2).map(|n| Backend::http(move |_| ok(&n.to_string()))).collect();
    let proxy = Proxy::simple(&[backends[0].address]);
    let mut client = proxy.client();
    assert_eq!(client.ask(&get("/")).body, "0");
    proxy.publish(http(forward(Forward::default())), vec![cluster(&[backends[1].address])]);
    assert_eq!(client.ask(&get("/")).body, "1");
    proxy.publish(
        http(Action::Direct(DirectResponse { code: 200, body: (*b"me").into(), format: None, content_type: None })),
        vec![],
    );
    assert_eq!(client.ask(&get("/")).body, "me");
}

/// A connection may idle for hours, or last for days.
#[test]
fn root_when_another_took_its_place_then_no_open_connection_keeps_it() {
    let http1: fn(&mut Side) = |client| assert_eq!(client.ask(&get("/")).status(), 200);
    let http2: fn(&mut Side) = |client| {
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
        // The settings are acknowledged.
        assert!(client.until(b"\0\0\0\x04\x01\0\0\0\0").is_some());
    };
    let to = || http(forward(Forward::default()));
    let tcp = || Network::Tcp(Arc::new(TcpProxy::new(vec![TcpTarget::all(FIRST)])));
    let cases: [(&str, Network, fn(&mut Side)); 3] =
        [("HTTP/1", to(), http1), ("HTTP/2", to(), http2), ("TCP", tcp(), http1)];
    let backend = Backend::http(|_| ok(""));
    for (what, network, open) in cases {
        let proxy = Proxy::simple(&[backend.address]);
        let first = root(proxy.address, network, vec![cluster(&[backend.address])]);
        let kept = Arc::downgrade(&first);
        proxy.wait(proxy.workers().publish(first));
        let mut client = proxy.client();
        open(&mut client);
        proxy.publish(to(), vec![cluster(&[backend.address])]);
        eventually(what, || kept.strong_count() == 0);
        assert_eq!(proxy.workers().connections(), 1, "{what}: it is open still");
    }
}

/// No request is lost that a client sends before it hears of it, be it its first.
#[test]
fn connections_when_a_chain_of_tcp_takes_their_place_then_they_get_one_more_answer_and_end() {
    let backend = Backend::http(|_| ok("a"));
    let tcp = || Network::Tcp(Arc::new(TcpProxy::new(vec![TcpTarget::all(FIRST)])));
    for before_others in [false, true] {
        let proxy = Proxy::simple(&[backend.address]);
        let (mut busy, mut idle) = (proxy.client(), proxy.client());
        for client in [&mut busy, &mut idle] {
            assert_eq!(client.ask(&get("/")).body, "a");
        }
        let mut silent = proxy.client();
        eventually("all clients", || proxy.workers().connections() == 3);
        if before_others {
            let local = ChainMatch { source_type: SourceType::SameIpOrLoopback, ..ChainMatch::default() };
            let chain = FilterChain { matches: local, ..FilterChain::new("tcp", tcp()) };
            let rest = FilterChain::new("default", http(forward(Forward::default())));
            let listener = Listener {
                name: "test".into(),
                addresses: vec![proxy.address],
                detect_timeout: Duration::ZERO,
                continue_on_timeout: true,
                chains: FilterChains::new(vec![chain], Some(rest)).unwrap(),
                ..Listener::default()
            };
            let root = Root {
                listeners: Listeners::new(vec![Arc::new(listener)]),
                clusters: vec![Some(Arc::new(cluster(&[backend.address])))],
                ..Root::default()
            };
            proxy.wait(proxy.workers().publish(Arc::new(root)));
        } else {
            proxy.publish(tcp(), vec![cluster(&[backend.address])]);
        }
        for client in [&mut busy, &mut silent] {
            let answer = client.ask(&get("/"));
            assert_eq!((answer.status(), answer.header("connection")), (200, Some("close")));
        }
        assert_eq!((busy.rest(), idle.rest(), silent.rest()), <_>::default());
        // A new one is carried as bytes.
        let mut new = proxy.client();
        assert_eq!((new.ask(&get("/")).body.as_str(), new.ask(&get("/")).header("connection")), ("a", None));
    }
}

#[test]
fn request_when_root_changes_under_it_then_it_ends_on_the_old_one() {
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let receiver = std::sync::Mutex::new(receiver);
    let backend = Backend::start(move |stream, _| {
        let mut side = Side::new(stream);
        side.message(true);
        receiver.lock().unwrap().recv_timeout(LIMIT).unwrap();
        side.send(ok("old").as_bytes());
    });
    let proxy = Proxy::simple(&[backend.address]);
    let mut client = proxy.client();
    client.send(get("/").as_bytes());
    eventually("the request at the back end", || backend.connections.load(Ordering::SeqCst) == 1);
    proxy.publish(
        http(Action::Direct(DirectResponse { code: 200, body: (*b"new").into(), format: None, content_type: None })),
        vec![],
    );
    assert_eq!(proxy.get("/").body, "new");
    sender.send(()).unwrap();
    assert_eq!(client.message(false).unwrap().body, "old");
}

#[test]
fn endpoint_when_it_goes_then_its_pooled_connections_are_closed() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let backend = Backend::start(move |stream, _| {
        let mut side = Side::new(stream);
        side.message(true);
        side.send(ok("x").as_bytes());
        assert!(side.message(true).is_none());
        sender.lock().unwrap().send(()).unwrap();
    });
    let other = Backend::http(|_| ok("other"));
    let proxy = Proxy::simple(&[backend.address]);
    let mut client = proxy.client();
    assert_eq!(client.ask(&get("/")).body, "x");
    proxy.publish(http(forward(Forward::default())), vec![cluster(&[other.address])]);
    receiver.recv_timeout(LIMIT).expect("the idle connection is closed");
    assert_eq!(client.ask(&get("/")).body, "other");
}

#[test]
fn workers_when_draining_then_idle_connections_close_and_busy_ones_end_in_peace() {
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let receiver = std::sync::Mutex::new(receiver);
    let arrived = Arc::new(AtomicUsize::new(0));
    let slow = arrived.clone();
    let backend = Backend::start(move |stream, _| {
        let mut side = Side::new(stream);
        while let Some(request) = side.message(true) {
            if request.head.contains("/slow") {
                slow.store(1, Ordering::SeqCst);
                receiver.lock().unwrap().recv_timeout(LIMIT).unwrap();
            }
            side.send(ok("x").as_bytes());
        }
    });
    let proxy = Proxy::simple(&[backend.address]);
    let (mut idle, mut busy, mut late) = (proxy.client(), proxy.client(), proxy.client());
    assert_eq!(idle.ask(&get("/")).status(), 200);
    assert_eq!(late.ask(&get("/")).header("connection"), None);
    busy.send(get("/slow").as_bytes());
    eventually("the slow request at the back end", || arrived.load(Ordering::SeqCst) == 1);
    assert_eq!(proxy.wait(proxy.workers().drain(Instant::now(), Duration::ZERO)), 3);
    let answer = late.ask(&get("/"));
    assert_eq!((answer.status(), answer.header("connection")), (200, Some("close")), "on its way when draining began");
    let left = proxy.wait(proxy.workers().drain(Instant::now() + Duration::from_secs(3), Duration::ZERO));
    assert_eq!(left, 1, "the busy one");
    assert_eq!(idle.rest(), "");
    // Accepting goes on, and says that the connection will not stay.
    let answer = proxy.get("/");
    assert_eq!((answer.status(), answer.header("connection")), (200, Some("close")));
    sender.send(()).unwrap();
    let answer = busy.message(false).unwrap();
    assert_eq!((answer.status(), answer.header("connection")), (200, Some("close")));
    assert_eq!(proxy.wait(proxy.workers().drain(Instant::now() + LIMIT, Duration::ZERO)), 0);
    proxy.wait(proxy.workers().stop_accepting());
    eventually("a refused connection", || TcpStream::connect(proxy.address).is_err());
}

#[test]
fn client_when_it_goes_away_then_the_upstream_request_is_given_up() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let backend = Backend::start(move |stream, _| {
        let mut side = Side::new(stream);
        side.message(true);
        side.rest();
        sender.lock().unwrap().send(()).unwrap();
    });
    let proxy = Proxy::simple(&[backend.address]);
    let mut client = proxy.client();
    client.send(get("/").as_bytes());
    eventually("the request at the back end", || backend.connections.load(Ordering::SeqCst) == 1);
    drop(client);
    receiver.recv_timeout(LIMIT).expect("the back end sees the end");
    proxy.told("DC");
}

#[test]
fn connection_when_idle_then_its_future_is_small() {
    let (_, mut shards) = Telemetry::new(1);
    let worker = Worker::new(0, 1, Arc::new(Root::default()), shards.remove(0), CredentialStore::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tcp = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap()
    });
    let future = crate::listen::serve(worker, tcp, "127.0.0.1:1".parse().unwrap(), ());
    let size = std::mem::size_of_val(&future);
    assert!(size <= 768, "{size} bytes for each connection");
}

#[test]
fn request_when_logged_then_the_line_says_what_happened() {
    #[derive(Clone, Default)]
    struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);
    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let backend = Backend::http(|request| ok(&request.body));
    let routes = vec![route(RouteMatch::default(), forward(Forward::default()))];
    let format = crate::telemetry::LogFormat::istio();
    let manager = HttpManager { access_logs: vec![AccessLog::stdout(format)], ..manager(routes) };
    let proxy = Proxy::start(1, Network::Http(Arc::new(manager)), vec![cluster(&[backend.address])]);
    let (lines, telemetry) = (Lines::default(), proxy.telemetry.clone());
    let out = lines.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(telemetry.write_logs_to(out));
    });
    let request = "POST /a/./b?c HTTP/1.1\r\nhost: shop\r\nuser-agent: test/1\r\ncontent-length: 5\r\n\r\nhello";
    assert_eq!(proxy.client().ask(request).status(), 200);
    let text = || String::from_utf8_lossy(&lines.0.lock().unwrap()).into_owned();
    eventually("a line", || text().contains('\n'));
    let line = text();
    assert!(line.contains("\"POST /a/b?c HTTP/1.1\" 200 - via_upstream - \"-\" 5 5 "), "{line}");
    assert!(line.contains("\"test/1\"") && line.contains("\"shop\""), "{line}");
    assert!(line.contains(&format!("\"{}\" outbound|80||test 127.0.0.1:", backend.address)), "{line}");
}

#[test]
fn request_when_logged_to_files_then_each_has_the_lines_that_it_wants() {
    use crate::config::LogTarget;
    use crate::telemetry::{Comparison, LogFilter, LogSinks};
    let folder = tempfile::tempdir().unwrap();
    let (all, errors) = (folder.path().join("all"), folder.path().join("errors"));
    let sinks = LogSinks::default();
    let log = |path: &std::path::Path, filter| AccessLog {
        filter,
        target: LogTarget::Lines {
            format: Arc::new(
                LogFormat::compile("%RESPONSE_CODE% %UPSTREAM_PROTOCOL% %UPSTREAM_REQUEST_ATTEMPT_COUNT%\n").unwrap(),
            ),
            sink: sinks.at(path.to_str().unwrap()).unwrap(),
        },
    };
    let backend = Backend::http(|request| ok(&request.body));
    let routes = vec![route(
        RouteMatch { path: PathMatch::Prefix("/a".into()), ..RouteMatch::default() },
        forward(Forward::default()),
    )];
    let failed = LogFilter::Status(Comparison::AtLeast, 400);
    let manager = HttpManager { access_logs: vec![log(&all, None), log(&errors, Some(failed))], ..manager(routes) };
    let proxy = Proxy::start(1, Network::Http(Arc::new(manager)), vec![cluster(&[backend.address])]);
    let telemetry = proxy.telemetry.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(telemetry.write_logs());
    });
    assert_eq!((proxy.get("/a").status(), proxy.get("/b").status()), (200, 404));
    let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default();
    eventually("a line in each file", || read(&all).lines().count() == 2 && !read(&errors).is_empty());
    assert_eq!(read(&all), "200 HTTP/1.1 1\n404 - 0\n");
    assert_eq!(read(&errors), "404 - 0\n");
    std::fs::rename(&all, folder.path().join("moved")).unwrap();
    crate::telemetry::logsink::reopen();
    assert_eq!(proxy.get("/a").status(), 200);
    eventually("a new file", || read(&all) == "200 HTTP/1.1 1\n");
}

#[test]
fn asked_when_time_goes_by_then_more_connections_end_and_after_half_of_it_all() {
    let ago = |seconds| Some(Instant::now() - Duration::from_secs(seconds));
    let asked = Asked { inbound: ago(2), outbound: None, over: Duration::from_secs(10) };
    let draws = |number| {
        move |bound| {
            assert_eq!(bound, 5);
            number
        }
    };
    assert!(asked.ends(Direction::Inbound, draws(1)) && !asked.ends(Direction::Inbound, draws(2)));
    assert!(!asked.ends(Direction::Outbound, draws(0)), "nobody asked those");
    let late = Asked { inbound: ago(5), ..asked };
    assert!(late.ends(Direction::Inbound, draws(4)));
    let at_once = Asked { inbound: ago(0), over: Duration::ZERO, ..asked };
    assert!(at_once.ends(Direction::Inbound, |_| unreachable!()));
}
