//! Requests from a client through the proxy to back ends and back.

use super::*;

#[test]
fn request_when_forwarded_then_hop_by_hop_headers_stay_behind_and_ours_are_added() {
    let backend = Backend::echo();
    let proxy = Proxy::simple(&[backend.address]);
    let answer = proxy.client().ask(
        "GET /a/../b?q=1 HTTP/1.1\r\nHost: shop\r\nConnection: keep-alive, X-Gone\r\nX-Gone: 1\r\nX-Kept: 2\r\nTE: gzip\r\n\r\n",
    );
    assert_eq!(answer.status(), 200);
    let seen = answer.body.to_ascii_lowercase();
    assert!(seen.starts_with("get /b?q=1 http/1.1\r\nhost: shop\r\n"), "{seen}");
    assert!(seen.contains("x-kept: 2"));
    for gone in ["x-gone", "connection:", "te:"] {
        assert!(!seen.contains(gone), "{gone} in {seen}");
    }
    assert!(seen.contains("x-request-id: "));
    assert!(seen.contains("x-forwarded-proto: http\r\n") || seen.contains("x-forwarded-proto: http\n"), "{seen}");
}

#[test]
fn connection_when_kept_alive_then_upstream_is_reused() {
    let backend = Backend::echo();
    let proxy = Proxy::simple(&[backend.address]);
    let mut client = proxy.client();
    for _ in 0..20 {
        assert_eq!(client.ask(&get("/")).status(), 200);
    }
    assert_eq!(backend.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn requests_when_pipelined_then_answered_in_order() {
    let backend = Backend::http(|request| ok(request.head.split(' ').nth(1).unwrap()));
    let proxy = Proxy::simple(&[backend.address]);
    let mut client = proxy.client();
    let all: String = (0..10).map(|n| get(&format!("/{n}"))).collect();
    client.send(all.as_bytes());
    for n in 0..10 {
        assert_eq!(client.message(false).unwrap().body, format!("/{n}"));
    }
}

#[test]
fn body_when_sent_by_length_or_in_chunks_then_it_arrives_whole() {
    let backend = Backend::http(|request| {
        let framing = request.header("transfer-encoding").unwrap_or("length").to_owned();
        ok(&format!("{framing} {} {}", request.body.len(), request.body.chars().take(10).collect::<String>()))
    });
    let proxy = Proxy::simple(&[backend.address]);
    let mut client = proxy.client();
    let big = "x".repeat(300_000);
    client.send(format!("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: {}\r\n\r\n{big}", big.len()).as_bytes());
    assert_eq!(client.message(false).unwrap().body, "length 300000 xxxxxxxxxx");
    client.send(b"POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n");
    for _ in 0..100 {
        client.send(format!("{:x}\r\n{}\r\n", 1000, "y".repeat(1000)).as_bytes());
    }
    client.send(b"0\r\n\r\n");
    assert_eq!(client.message(false).unwrap().body, "chunked 100000 yyyyyyyyyy");
    assert_eq!(client.ask(&get("/")).body, "length 0 ");
}

#[test]
fn response_when_long_then_every_byte_arrives_and_what_follows_is_not_taken_for_it() {
    let text = |length: usize| (0..length).map(|n| char::from(b'a' + (n * 7 % 26) as u8)).collect::<String>();
    let backend =
        Backend::http(move |request| ok(&text(request.head.split(['/', ' ']).nth(2).unwrap().parse().unwrap())));
    let proxy = Proxy::simple(&[backend.address]);
    let mut client = proxy.client();
    // Two at a time: the second answer lies right behind the first, or waits for a client that reads slowly.
    for (first, second) in [(16_384, 16_385), (1_000_000, 3), (70_000, 3_000_000), (0, 200_000), (20_000, 20_000)] {
        client.send(format!("{}{}", get(&format!("/{first}")), get(&format!("/{second}"))).as_bytes());
        for length in [first, second] {
            let answer = client.message(false).unwrap();
            assert!(answer.body == text(length), "{length}: {} bytes, or others", answer.body.len());
        }
    }
    assert_eq!(backend.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn response_when_long_and_cut_then_the_client_sees_that_it_is_not_whole() {
    let backend = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        side.message(true);
        side.send(&[b"HTTP/1.1 200 OK\r\ncontent-length: 900000\r\n\r\n", &[b'x'; 500_000][..]].concat());
    });
    let proxy = Proxy::simple(&[backend.address]);
    let mut client = proxy.client();
    client.send(get("/").as_bytes());
    assert_eq!(client.head().unwrap().status(), 200);
    assert_eq!(client.rest().len(), 500_000);
    proxy.told("UPE");
}

#[test]
fn response_when_chunked_with_trailers_then_they_pass() {
    let backend = Backend::http(|_| {
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-end: 1\r\n\r\n".to_owned()
    });
    let proxy = Proxy::simple(&[backend.address]);
    let mut client = proxy.client();
    client.send(get("/").as_bytes());
    let head = client.head().unwrap();
    assert_eq!(head.header("transfer-encoding"), Some("chunked"));
    assert_eq!(client.until(b"\r\n\r\n").unwrap(), "5\r\nhello\r\n0\r\nx-end: 1\r\n\r\n");
}

#[test]
fn response_when_it_ends_with_the_connection_then_it_is_chunked_for_the_client() {
    let backend = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        side.message(true);
        side.send(b"HTTP/1.1 200 OK\r\n\r\nuntil the end");
    });
    let proxy = Proxy::simple(&[backend.address]);
    let mut client = proxy.client();
    let answer = client.ask(&get("/"));
    assert_eq!((answer.header("transfer-encoding"), answer.body.as_str()), (Some("chunked"), "until the end"));
    assert_eq!(client.ask(&get("/")).status(), 200, "the client's connection stays");
}

#[test]
fn client_when_it_speaks_http10_then_it_gets_a_closed_or_kept_connection() {
    let backend =
        Backend::http(|_| "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_owned());
    let proxy = Proxy::simple(&[backend.address]);
    let mut client = proxy.client();
    let answer = client.ask("GET / HTTP/1.0\r\nHost: t\r\n\r\n");
    assert_eq!((answer.body.as_str(), answer.header("connection")), ("hello", Some("close")));
    assert_eq!(answer.header("transfer-encoding"), None);
    let backend = Backend::http(|_| ok("x"));
    let proxy = Proxy::simple(&[backend.address]);
    let mut client = proxy.client();
    for _ in 0..2 {
        let answer = client.ask("GET / HTTP/1.0\r\nHost: t\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!((answer.body.as_str(), answer.header("connection")), ("x", Some("keep-alive")));
    }
}

#[test]
fn response_when_it_has_no_body_then_the_next_one_is_not_taken_for_it() {
    let backend = Backend::http(|request| match request.head.split(' ').nth(1).unwrap() {
        "/204" => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
        "/304" => "HTTP/1.1 304 Not Modified\r\ncontent-length: 50\r\n\r\n".to_owned(),
        "/head" => "HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n".to_owned(),
        _ => ok("body"),
    });
    let proxy = Proxy::simple(&[backend.address]);
    let mut client = proxy.client();
    client.send(get("/204").as_bytes());
    let answer = client.head().unwrap();
    assert_eq!((answer.status(), answer.header("content-length")), (204, None));
    client.send(get("/304").as_bytes());
    let answer = client.head().unwrap();
    assert_eq!((answer.status(), answer.header("content-length")), (304, Some("50")));
    client.send(b"HEAD /head HTTP/1.1\r\nhost: t\r\n\r\n");
    assert_eq!(client.head().unwrap().header("content-length"), Some("1234"));
    assert_eq!(client.ask(&get("/")).body, "body");
    assert_eq!(backend.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn client_when_it_expects_continue_then_it_is_told_and_the_header_ends_here() {
    let backend = Backend::http(|request| {
        assert!(request.header("expect").is_none());
        ok(&request.body)
    });
    let proxy = Proxy::simple(&[backend.address]);
    let mut client = proxy.client();
    client.send(b"POST / HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n");
    assert_eq!(client.head().unwrap().head, "HTTP/1.1 100 Continue");
    client.send(b"hello");
    assert_eq!(client.message(false).unwrap().body, "hello");
}

#[test]
fn client_when_it_expects_something_else_then_that_is_for_the_endpoint_to_say() {
    let backend = Backend::http(|request| match request.header("expect") {
        Some("something") => "HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n".to_owned(),
        other => panic!("it is told to meet {other:?}"),
    });
    let proxy = Proxy::simple(&[backend.address]);
    let mut client = proxy.client();
    assert_eq!(
        client.ask("POST / HTTP/1.1\r\nhost: t\r\nexpect: something\r\ncontent-length: 0\r\n\r\n").status(),
        417
    );
}

#[test]
fn endpoint_when_it_sends_interim_responses_then_the_real_one_arrives() {
    let backend = Backend::http(|_| {
        format!("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n{}", ok("real"))
    });
    let proxy = Proxy::simple(&[backend.address]);
    assert_eq!(proxy.get("/").body, "real");
}

#[test]
fn upgrade_when_accepted_then_bytes_flow_both_ways() {
    let backend = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        let request = side.message(true).unwrap();
        assert_eq!(request.header("upgrade"), Some("websocket"));
        assert_eq!(request.header("connection"), Some("upgrade"));
        side.send(b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\n\r\nfirst");
        let line = side.until(b"\n").unwrap();
        side.send(line.to_uppercase().as_bytes());
        side.stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(side.rest(), "last words");
    });
    let proxy = Proxy::simple(&[backend.address]);
    let mut client = proxy.client();
    client.send(
        b"GET /chat HTTP/1.1\r\nhost: t\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nsec-websocket-key: k\r\n\r\n",
    );
    let answer = client.head().unwrap();
    assert_eq!((answer.status(), answer.header("upgrade")), (101, Some("websocket")));
    assert_eq!(client.take(5).unwrap(), "first");
    client.send(b"shout\n");
    assert_eq!(client.until(b"\n").unwrap(), "SHOUT\n");
    assert_eq!(client.rest(), "", "the endpoint's end is the client's end");
    client.send(b"last words");
}

#[test]
fn upgrade_when_the_endpoint_declines_then_its_answer_is_the_last() {
    let backend = Backend::http(|request| ok(request.header("upgrade").unwrap_or("none")));
    let proxy = Proxy::simple(&[backend.address]);
    let ask = |protocol| format!("GET / HTTP/1.1\r\nhost: t\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n");
    let mut client = proxy.client();
    assert_eq!(client.ask(&ask("h2c")).body, "none", "a wish for HTTP/2 is none");
    client.send([ask("websocket"), get("/smuggled")].concat().as_bytes());
    let answer = client.message(false).unwrap();
    assert_eq!((answer.body.as_str(), answer.header("connection")), ("websocket", Some("close")));
    assert_eq!(client.rest(), "");
}

#[test]
fn request_when_nothing_can_serve_it_then_envoys_answers_are_given() {
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let backend = Backend::echo();
    let one = |path: &str, id| {
        let matches = RouteMatch { path: PathMatch::Exact(path.into()), ..RouteMatch::default() };
        route(matches, forward(Forward { targets: vec![WeightedCluster::all(ClusterId(id))], ..Forward::default() }))
    };
    let manager = manager(vec![one("/ok", 0), one("/dead", 1), one("/empty", 2), one("/missing", 9)]);
    let with = |id, endpoints: &[SocketAddr]| Cluster { id: ClusterId(id), ..cluster(endpoints) };
    let proxy = Proxy::start(
        1,
        Network::Http(Arc::new(manager)),
        vec![with(0, &[backend.address]), with(1, &[dead]), with(2, &[])],
    );
    let mut client = proxy.client();
    for (path, code, text) in [
        ("/ok", 200, "GET /ok"),
        ("/dead", 503, "upstream connect error"),
        ("/empty", 503, "no healthy upstream"),
        ("/missing", 503, ""),
        ("/none", 404, ""),
    ] {
        let answer = client.ask(&get(path));
        assert_eq!(answer.status(), code, "{path}");
        assert!(answer.body.starts_with(text), "{path}: {}", answer.body);
    }
    let grpc =
        client.ask("POST /empty HTTP/1.1\r\nhost: t\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n");
    assert_eq!((grpc.status(), grpc.header("grpc-status")), (200, Some("14")));
    for flags in ["UH", "UF", "NC", "NR"] {
        proxy.told(flags);
    }
}

#[test]
fn request_when_route_redirects_answers_or_rewrites_then_so() {
    let backend = Backend::echo();
    let at = |path: &str| RouteMatch { path: PathMatch::Prefix(path.into()), ..RouteMatch::default() };
    let redirect =
        Redirect { code: 302, host: Some("new.example".into()), path: Some("/there".into()), ..Redirect::default() };
    let headers = HeaderOps {
        request: vec![HeaderOp::Set("x-in".into(), "1".into())],
        response: vec![HeaderOp::Set("x-out".into(), "2".into())],
    };
    let rewrite = Forward {
        path: Some(PathRewrite::Prefix("/new/".into())),
        host: Some(HostRewrite::Literal("other".into())),
        ..Forward::default()
    };
    let edited = Arc::new(Route { headers, ..Route::new("edited", at("/old/"), forward(rewrite)) });
    let routes = vec![
        route(at("/go"), Action::Redirect(Box::new(redirect))),
        route(
            at("/fixed"),
            Action::Direct(DirectResponse { code: 418, body: (*b"short").into(), format: None, content_type: None }),
        ),
        edited,
    ];
    let proxy = Proxy::start(1, Network::Http(Arc::new(manager(routes))), vec![cluster(&[backend.address])]);
    let mut client = proxy.client();
    let answer = client.ask(&get("/go?q=1"));
    assert_eq!((answer.status(), answer.header("location")), (302, Some("http://new.example/there?q=1")));
    let answer = client.ask(&get("/fixed"));
    assert_eq!((answer.status(), answer.body.as_str()), (418, "short"));
    let answer = client.ask(&get("/old/x?q"));
    assert!(answer.body.starts_with("GET /new/x?q HTTP/1.1\r\nhost: other"), "{}", answer.body);
    assert!(answer.body.contains("x-in: 1"));
    assert!(answer.body.contains("x-envoy-original-path: /old/x?q"), "{}", answer.body);
    assert!(answer.header("x-envoy-upstream-service-time").unwrap().parse::<u64>().is_ok());
    assert_eq!(answer.header("x-out"), Some("2"));
}

#[test]
fn endpoint_when_it_does_not_listen_then_the_retry_goes_to_another() {
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let backend = Backend::echo();
    let policy = RetryPolicy { on: RetryOn { connect_failure: true, ..RetryOn::default() }, ..RetryPolicy::default() };
    let action = forward(Forward { retry: Some(Arc::new(policy)), ..Forward::default() });
    let proxy = Proxy::start(1, http(action), vec![cluster(&[dead, backend.address])]);
    let mut client = proxy.client();
    for _ in 0..20 {
        let answer = client.ask("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 4\r\n\r\nbody");
        assert!(answer.status() == 200 && answer.body.ends_with("body"), "{answer:?}");
    }
}

#[test]
fn response_when_status_is_retriable_then_the_body_is_sent_again() {
    let failing = Backend::http(|_| "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n".to_owned());
    let backend = Backend::http(|request| ok(&request.body));
    let policy = RetryPolicy { on: RetryOn { gateway_error: true, ..RetryOn::default() }, ..RetryPolicy::default() };
    let action = forward(Forward { retry: Some(Arc::new(policy)), ..Forward::default() });
    let proxy = Proxy::start(1, http(action), vec![cluster(&[failing.address, backend.address])]);
    let mut client = proxy.client();
    for _ in 0..10 {
        let answer = client.ask("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 4\r\n\r\nbody");
        assert_eq!((answer.status(), answer.body.as_str()), (200, "body"));
    }
    assert!(failing.connections.load(Ordering::SeqCst) > 0);
    let only_failing = Proxy::start(
        1,
        http(forward(Forward {
            retry: Some(Arc::new(RetryPolicy {
                on: RetryOn { gateway_error: true, ..RetryOn::default() },
                ..RetryPolicy::default()
            })),
            ..Forward::default()
        })),
        vec![cluster(&[failing.address])],
    );
    assert_eq!(only_failing.get("/").status(), 503, "the last answer is passed on");
    only_failing.told("URX");
}

#[test]
fn answer_when_it_comes_before_the_request_is_whole_then_all_of_the_request_goes_to_the_next_endpoint() {
    let backend = Backend::start(|stream, served| {
        let mut side = Side::new(stream);
        if served == 0 {
            side.head().unwrap();
            side.send(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n");
            side.rest();
        } else {
            let request = side.message(true).unwrap();
            side.send(ok(&request.body).as_bytes());
        }
    });
    let policy = RetryPolicy { on: RetryOn { gateway_error: true, ..RetryOn::default() }, ..RetryPolicy::default() };
    let action = forward(Forward { retry: Some(Arc::new(policy)), ..Forward::default() });
    let proxy = Proxy::start(1, http(action), vec![cluster(&[backend.address])]);
    let mut client = proxy.client();
    client.send(b"POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 10\r\n\r\nfirst");
    eventually("the first answer is given up", || backend.connections.load(Ordering::SeqCst) == 2);
    client.send(b"later");
    let answer = client.message(false).unwrap();
    assert_eq!((answer.status(), answer.body.as_str()), (200, "firstlater"));
}

fn retry_on_not_sent() -> Action {
    let header = HeaderMatch {
        name: "x-leno-not-sent".into(),
        test: HeaderTest::Present(true),
        invert: false,
        missing_as_empty: false,
    };
    let on = RetryOn { headers: true, ..RetryOn::default() };
    forward(Forward {
        retry: Some(Arc::new(RetryPolicy { on, headers: vec![header], ..RetryPolicy::default() })),
        ..Forward::default()
    })
}

#[test]
fn response_when_it_says_that_nothing_was_sent_then_another_endpoint_gets_the_whole_request() {
    // Answers as soon as it has the head, as a sidecar does whose app is gone.
    let gone = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        while side.head().is_some() {
            side.send(b"HTTP/1.1 503 No\r\nx-leno-not-sent: 1\r\ncontent-length: 0\r\n\r\n");
        }
    });
    let backend = Backend::http(|request| ok(&request.body));
    let proxy = Proxy::start(1, http(retry_on_not_sent()), vec![cluster(&[gone.address, backend.address])]);
    let mut client = proxy.client();
    for _ in 0..10 {
        client.send(b"POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 4\r\n\r\nbo");
        eventually("an attempt", || backend.connections.load(Ordering::SeqCst) > 0);
        client.send(b"dy");
        let answer = client.message(false).unwrap();
        assert_eq!((answer.status(), answer.body.as_str()), (200, "body"));
    }
    assert!(gone.connections.load(Ordering::SeqCst) > 0);
}

#[test]
fn response_when_nothing_was_sent_anywhere_then_the_client_gets_it_without_the_mark() {
    let gone = Backend::http(|_| "HTTP/1.1 503 No\r\nx-leno-not-sent: 1\r\ncontent-length: 0\r\n\r\n".to_owned());
    let proxy = Proxy::start(1, http(retry_on_not_sent()), vec![cluster(&[gone.address])]);
    let answer = proxy.get("/");
    assert_eq!((answer.status(), answer.header("x-leno-not-sent")), (503, None));
    eventually("two retries", || {
        let stats = proxy.telemetry.stats(Vec::new());
        stats.iter().any(|stat| stat.name.ends_with(".upstream_rq_total") && stat.value == 3)
    });
    proxy.told("URX");
    let plain = Proxy::start(1, http(forward(Forward::default())), vec![cluster(&[gone.address])]);
    assert_eq!(plain.get("/").header("x-leno-not-sent"), None, "also without a policy");
}

#[test]
fn retries_when_beyond_the_budget_then_the_last_answer_is_passed_on() {
    let failing = Backend::http(|_| "HTTP/1.1 503 No\r\nx-mine: 1\r\ncontent-length: 0\r\n\r\n".to_owned());
    let on = RetryOn { gateway_error: true, ..RetryOn::default() };
    let policy = Arc::new(RetryPolicy { on, ..RetryPolicy::default() });
    let action = || forward(Forward { retry: Some(policy.clone()), ..Forward::default() });
    let with = |min_concurrency| {
        let budget = Some(RetryBudget { percent: 0.0, min_concurrency });
        let limits = Limits { retry_budget: budget, ..Limits::default() };
        Proxy::start(1, http(action()), vec![Cluster { limits, ..cluster(&[failing.address]) }])
    };
    let none = with(0);
    let answer = none.get("/");
    assert_eq!((answer.status(), answer.header("x-mine")), (503, Some("1")));
    none.told("UO");
    let some = with(1);
    assert_eq!(some.get("/").header("x-mine"), Some("1"));
    some.told("URX");
}

#[test]
fn retries_when_nothing_was_sent_then_clusters_of_the_mesh_need_no_budget() {
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = Backend::http(|_| "HTTP/1.1 503 No\r\nx-leno-not-sent: 1\r\ncontent-length: 0\r\n\r\n".to_owned());
    let backend = Backend::http(|_| ok("here"));
    for bad in [dead, gone.address] {
        let Action::Forward(forwarded) = retry_on_not_sent() else { panic!("it forwards") };
        let mut policy = RetryPolicy::clone(forwarded.retry.as_ref().unwrap());
        policy.on.connect_failure = true;
        let action = forward(Forward { retry: Some(Arc::new(policy)), ..Forward::default() });
        let budget = Some(RetryBudget { percent: 0.0, min_concurrency: 0 });
        let limits = Limits { retry_budget: budget, ..Limits::default() };
        let balancing = Arc::new(Balancing { skip_unreachable: true, ..Balancing::default() });
        let cluster = Cluster { limits, balancing, ..cluster(&[bad, backend.address]) };
        let proxy = Proxy::start(1, http(action), vec![cluster]);
        for _ in 0..10 {
            assert_eq!(proxy.get("/").body, "here");
        }
    }
}

#[test]
fn pooled_connection_when_closed_by_endpoint_then_no_request_fails() {
    // Every connection serves one request, says it will stay, and is closed.
    let backend = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        side.message(true);
        side.send(ok("once").as_bytes());
    });
    let policy =
        RetryPolicy { attempts: 0, on: RetryOn { stale: true, ..RetryOn::default() }, ..RetryPolicy::default() };
    let action = forward(Forward { retry: Some(Arc::new(policy)), ..Forward::default() });
    let proxy = Proxy::start(1, http(action), vec![cluster(&[backend.address])]);
    let mut client = proxy.client();
    for _ in 0..50 {
        assert_eq!(client.ask(&get("/")).body, "once");
    }
}

/// One that an app cannot bear does not reach it by each of its connections.
#[test]
fn request_when_pooled_connections_break_under_it_then_it_is_repeated_once_by_a_new_one() {
    for (method, on, attempts, reached) in [
        ("GET", RetryOn::default(), 0, 2),
        ("POST", RetryOn::default(), 0, 1),
        ("GET", RetryOn { reset: true, ..RetryOn::default() }, 2, 4),
        ("POST", RetryOn { reset: true, ..RetryOn::default() }, 2, 3),
    ] {
        let seen = Arc::new(AtomicUsize::new(0));
        let (seen_by, gate) = (seen.clone(), std::sync::Barrier::new(6));
        let backend = Backend::start(move |stream, _| {
            let mut side = Side::new(stream);
            while let Some(request) = side.message(true) {
                if request.head.contains(" /crash ") {
                    seen_by.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                // All at the same time, so that each has a connection.
                gate.wait();
                side.send(ok("warm").as_bytes());
            }
        });
        let on = RetryOn { stale: true, ..on };
        let policy = RetryPolicy { attempts, on, base_backoff: Duration::from_millis(1), ..RetryPolicy::default() };
        let action = forward(Forward { retry: Some(Arc::new(policy)), ..Forward::default() });
        let proxy = Proxy::start(1, http(action), vec![cluster(&[backend.address])]);
        let mut clients: Vec<Side> = (0..6).map(|_| proxy.client()).collect();
        clients.iter_mut().for_each(|client| client.send(get("/").as_bytes()));
        clients.iter_mut().for_each(|client| assert_eq!(client.message(false).unwrap().body, "warm"));
        let answer = clients[0].ask(&format!("{method} /crash HTTP/1.1\r\nhost: t\r\ncontent-length: 0\r\n\r\n"));
        assert_eq!(answer.status(), 503);
        assert_eq!(seen.load(Ordering::SeqCst), reached, "{method} with {attempts} retries");
    }
}

/// An app that stops may accept a connection and end it: a request that changes nothing goes to whoever listens after it.
#[test]
fn request_when_a_new_connection_loses_it_then_it_is_repeated_once_where_it_is_safe_and_nobody_counts_that() {
    let unsafe_on = RetryOn { reset: true, ..RetryOn::default() };
    for (method, on, attempts, broken, status, reached) in [
        ("GET", RetryOn::default(), 1, 1, 200, 2),
        ("GET", RetryOn::default(), 2, 9, 503, 2),
        ("GET", RetryOn::default(), 0, 1, 503, 1),
        ("POST", RetryOn::default(), 1, 1, 503, 1),
        ("GET", unsafe_on, 1, 9, 503, 2),
        ("POST", unsafe_on, 1, 9, 503, 2),
    ] {
        let backend = Backend::start(move |stream, number| {
            let mut side = Side::new(stream);
            side.message(true);
            if number >= broken {
                side.send(ok("well").as_bytes());
            }
        });
        let on = RetryOn { stale: true, ..on };
        let policy = RetryPolicy { attempts, on, base_backoff: Duration::from_millis(1), ..RetryPolicy::default() };
        let action = forward(Forward { retry: Some(Arc::new(policy)), ..Forward::default() });
        let proxy = Proxy::start(1, http(action), vec![cluster(&[backend.address])]);
        let answer = proxy.client().ask(&format!("{method} / HTTP/1.1\r\nhost: t\r\ncontent-length: 0\r\n\r\n"));
        assert_eq!(answer.status(), status, "{method} with {attempts} retries, {broken} connections broken");
        assert_eq!(backend.connections.load(Ordering::SeqCst), reached, "{method} with {attempts} retries");
    }
}

#[test]
fn post_when_connection_breaks_after_it_was_sent_then_it_is_not_repeated() {
    let backend = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        if side.message(true).unwrap().head.starts_with("GET") {
            side.send(ok("warm").as_bytes());
            side.message(true);
        }
        // The second request of the connection, or a POST: no answer.
    });
    let proxy = Proxy::simple(&[backend.address]);
    let mut client = proxy.client();
    assert_eq!(client.ask(&get("/")).body, "warm");
    let answer = client.ask("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 2\r\n\r\nhi");
    assert_eq!(answer.status(), 503);
    assert!(answer.body.contains("connection termination"));
    assert_eq!(backend.connections.load(Ordering::SeqCst), 1, "one attempt on the pooled connection");
    proxy.told("UC");
}

#[test]
fn response_when_it_comes_too_late_then_504() {
    let backend = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        side.message(true);
        side.rest();
    });
    let action = forward(Forward { timeout: Some(Duration::from_millis(50)), ..Forward::default() });
    let proxy = Proxy::start(1, http(action), vec![cluster(&[backend.address])]);
    let mut client = proxy.client();
    for _ in 0..2 {
        let answer = client.ask(&get("/"));
        assert_eq!((answer.status(), answer.body.as_str()), (504, "upstream request timeout"));
    }
    proxy.told("UT");
}

#[test]
fn response_when_broken_in_its_middle_then_the_client_sees_the_end() {
    let backend = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        side.message(true);
        side.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf");
    });
    let proxy = Proxy::simple(&[backend.address]);
    let mut client = proxy.client();
    client.send(get("/").as_bytes());
    assert_eq!(client.head().unwrap().status(), 200);
    assert!(client.rest().len() <= 4, "a part at most, and never a second response");
}

#[test]
fn response_when_malformed_then_502() {
    for bad in [
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\ncontent-length: 1\n\nx",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "SSH-2.0-x\r\n",
    ] {
        let backend = Backend::http(move |_| bad.to_owned());
        let proxy = Proxy::simple(&[backend.address]);
        assert_eq!(proxy.get("/").status(), 502, "{bad}");
    }
}

#[test]
fn response_when_it_comes_before_the_request_has_ended_then_the_connection_closes() {
    let backend = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        side.head();
        side.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig");
        side.rest();
    });
    let proxy = Proxy::simple(&[backend.address]);
    let mut client = proxy.client();
    client.send(b"POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 1000000\r\n\r\nsome");
    let answer = client.message(false).unwrap();
    assert_eq!((answer.status(), answer.body.as_str(), answer.header("connection")), (413, "big", Some("close")));
    assert_eq!(client.rest(), "");
}

#[test]
fn requests_when_beyond_the_circuit_breaker_then_503_overflow() {
    let backend = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        side.message(true);
        side.until(b"never");
    });
    let limits = Limits { requests: 1, ..Limits::default() };
    let proxy =
        Proxy::start(1, http(forward(Forward::default())), vec![Cluster { limits, ..cluster(&[backend.address]) }]);
    let mut first = proxy.client();
    first.send(get("/").as_bytes());
    eventually("the first request at the back end", || backend.connections.load(Ordering::SeqCst) == 1);
    let answer = proxy.get("/");
    assert!(answer.status() == 503 && answer.body.ends_with("overflow"), "{answer:?}");
    proxy.told("UO");
}

#[test]
fn connections_when_at_their_limit_then_requests_wait_for_one() {
    let backend = Backend::echo();
    let limits = Limits { connections: 1, ..Limits::default() };
    let proxy =
        Proxy::start(1, http(forward(Forward::default())), vec![Cluster { limits, ..cluster(&[backend.address]) }]);
    let mut clients: Vec<Side> = (0..10).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send(get("/").as_bytes());
    }
    for client in &mut clients {
        assert_eq!(client.message(false).unwrap().status(), 200);
    }
    assert_eq!(backend.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn traffic_when_weighted_then_shares_follow() {
    let backends: Vec<Backend> = (0..2).map(|n| Backend::http(move |_| ok(&n.to_string()))).collect();
    let target = |id, weight| WeightedCluster { weight, ..WeightedCluster::all(ClusterId(id)) };
    let weighted = |a, b| http(forward(Forward { targets: vec![target(0, a), target(1, b)], ..Forward::default() }));
    let clusters =
        || (0..2).map(|n| Cluster { id: ClusterId(n as u32), ..cluster(&[backends[n].address]) }).collect::<Vec<_>>();
    let proxy = Proxy::start(1, weighted(90, 10), clusters());
    let mut client = proxy.client();
    let mut share = |count: usize| (0..count).filter(|_| client.ask(&get("/")).body == "1").count();
    let ten_percent = share(2000);
    // 4.5 standard deviations of a binomial with n = 2000, p = 0.1.
    assert!((140..=260).contains(&ten_percent), "{ten_percent}");
    proxy.publish(weighted(0, 100), clusters());
    assert_eq!(share(200), 200);
    proxy.publish(weighted(100, 0), clusters());
    assert_eq!(share(200), 0);
}
