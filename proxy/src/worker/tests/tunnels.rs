//! Tunnels: CONNECT, upgrades, and both over HTTP/2.

use super::*;
use ::http::{Method, Request, Response, StatusCode};
use bytes::Bytes;

/// Reads a head and passes it to `answer`, whose text is sent; then shouts back every line.
fn shouting(answer: impl Fn(&Message) -> String + Send + Sync + 'static) -> Backend {
    Backend::start(move |stream, _| {
        let mut side = Side::new(stream);
        let Some(request) = side.head() else { return };
        side.send(answer(&request).as_bytes());
        while let Some(line) = side.until(b"\n") {
            side.send(line.to_uppercase().as_bytes());
        }
    })
}

fn connect_route(forward_with: Forward) -> Arc<Route> {
    route(RouteMatch { path: PathMatch::Connect, ..RouteMatch::default() }, forward(forward_with))
}

fn on(protocol: &str) -> Vec<(Box<str>, bool)> {
    vec![(protocol.into(), true)]
}

fn ends_here(allow_post: bool) -> Forward {
    Forward { upgrades: on("connect"), connect: Some(ConnectHere { allow_post }), ..Forward::default() }
}

fn serving(routes: Vec<Arc<Route>>, change: impl FnOnce(&mut HttpManager), cluster: Cluster) -> Proxy {
    let mut manager = manager(routes);
    change(&mut manager);
    Proxy::start(1, Network::Http(Arc::new(manager)), vec![cluster])
}

const CONNECT: &str = "CONNECT far.example:443 HTTP/1.1\r\nhost: other\r\n\r\n";

#[test]
fn connect_when_it_is_sent_on_then_a_tunnel_begins_with_the_endpoints_consent() {
    let backend = shouting(|request| {
        assert!(
            request.head.starts_with("CONNECT far.example:443 HTTP/1.1\r\nhost: far.example:443\r\n"),
            "{request:?}"
        );
        assert_eq!((request.header("transfer-encoding"), request.header("content-length")), (None, None));
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n".into()
    });
    let routes = vec![connect_route(Forward { upgrades: on("connect"), ..Forward::default() })];
    let proxy = serving(routes, |_| {}, cluster(&[backend.address]));
    let mut client = proxy.client();
    client.send(CONNECT.as_bytes());
    client.send(b"early\n");
    let answer = client.head().unwrap();
    assert_eq!(answer.status(), 200);
    for framing in ["content-length", "transfer-encoding", "connection", "upgrade"] {
        assert_eq!(answer.header(framing), None, "{framing}");
    }
    assert_eq!(client.until(b"\n").unwrap(), "EARLY\n");
    client.send(b"late\n");
    assert_eq!(client.until(b"\n").unwrap(), "LATE\n");
}

#[test]
fn connect_when_the_endpoint_refuses_then_nothing_behind_it_is_taken_for_a_request() {
    let backend = Backend::http(|_| "HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 2\r\n\r\nno".into());
    let routes = vec![
        connect_route(Forward { upgrades: on("connect"), ..Forward::default() }),
        route(RouteMatch::default(), forward(Forward::default())),
    ];
    let proxy = serving(routes, |_| {}, cluster(&[backend.address]));
    let mut client = proxy.client();
    client.send([CONNECT, &get("/smuggled")].concat().as_bytes());
    let answer = client.message(false).unwrap();
    assert_eq!((answer.status(), answer.body.as_str(), answer.header("connection")), (407, "no", Some("close")));
    assert_eq!(client.rest(), "");
}

#[test]
fn connect_when_it_is_not_offered_then_it_is_refused() {
    let backend = Backend::echo();
    let everything = || route(RouteMatch::default(), forward(Forward::default()));
    let refused = |proxy: &Proxy| {
        let mut client = proxy.client();
        client.send([CONNECT, &get("/smuggled")].concat().as_bytes());
        let answer = client.message(false).unwrap();
        assert_eq!((answer.status(), answer.header("connection")), (403, Some("close")));
        assert_eq!(client.rest(), "");
    };
    refused(&serving(vec![connect_route(Forward::default())], |_| {}, cluster(&[backend.address])));
    let off = Forward { upgrades: vec![("connect".into(), false)], ..Forward::default() };
    let offers = |manager: &mut HttpManager| {
        manager.upgrades.push(Upgrade { kind: "connect".into(), offered: true, chain: None })
    };
    refused(&serving(vec![connect_route(off)], offers, cluster(&[backend.address])));
    // A route by path has none for it.
    let proxy = serving(vec![everything()], offers, cluster(&[backend.address]));
    assert_eq!(proxy.client().ask(CONNECT).status(), 404);
    assert_eq!(backend.connections.load(Ordering::SeqCst), 0);
}

#[test]
fn connect_when_its_target_or_framing_is_malformed_then_it_is_refused() {
    let backend = Backend::echo();
    let proxy = serving(vec![connect_route(ends_here(false))], |_| {}, cluster(&[backend.address]));
    for request in [
        "CONNECT far.example HTTP/1.1\r\nhost: a\r\n\r\n",
        "CONNECT :443 HTTP/1.1\r\nhost: a\r\n\r\n",
        "CONNECT /path HTTP/1.1\r\nhost: a\r\n\r\n",
        "CONNECT http://far.example:443/ HTTP/1.1\r\nhost: a\r\n\r\n",
        "CONNECT far.example:443 HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc",
        "CONNECT far.example:443 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        assert_eq!(proxy.client().ask(request).status(), 400, "{request}");
    }
    assert_eq!(backend.connections.load(Ordering::SeqCst), 0);
}

#[test]
fn connect_when_it_ends_here_then_the_endpoint_gets_the_bytes_alone() {
    let backend = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        side.send(b"greeting\n");
        assert_eq!(side.until(b"\n").unwrap(), "first bytes\n");
        side.send(b"answer\n");
        side.stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(side.rest(), "last words");
        // Heard: the client's end arrived here as well.
    });
    let proxy = serving(vec![connect_route(ends_here(false))], |_| {}, cluster(&[backend.address]));
    let mut client = proxy.client();
    client.send(CONNECT.as_bytes());
    assert_eq!(client.head().unwrap().status(), 200);
    assert_eq!(client.until(b"\n").unwrap(), "greeting\n");
    client.send(b"first bytes\n");
    assert_eq!(client.rest(), "answer\n", "the endpoint's end is the client's end");
    client.send(b"last words");
}

#[test]
fn connect_when_nobody_listens_then_503() {
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = serving(vec![connect_route(ends_here(false))], |_| {}, cluster(&[dead]));
    let answer = proxy.client().ask(CONNECT);
    assert_eq!((answer.status(), answer.header("connection")), (503, Some("close")));
    proxy.told("UF");
}

#[test]
fn post_when_it_may_end_here_then_its_body_is_the_tunnel() {
    let backend = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        assert_eq!(side.rest(), "hello");
        side.send(b"good bye");
    });
    let action = forward(ends_here(true));
    let proxy = serving(vec![route(RouteMatch::default(), action)], |_| {}, cluster(&[backend.address]));
    let answer = proxy.client().ask("POST /tunnel HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello");
    assert_eq!((answer.status(), answer.body.as_str()), (200, "good bye"));
    assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
}

#[test]
fn upgrade_when_the_route_says_so_then_that_goes_before_the_manager() {
    let backend = shouting(|request| {
        let protocol = request.header("upgrade").unwrap();
        format!("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n")
    });
    let at = |path: &str, upgrades| {
        let matches = RouteMatch { path: PathMatch::Prefix(path.into()), ..RouteMatch::default() };
        route(matches, forward(Forward { upgrades, ..Forward::default() }))
    };
    let routes = vec![at("/own", on("own")), at("/no", vec![("websocket".into(), false)]), at("/", Vec::new())];
    let proxy = serving(routes, |_| {}, cluster(&[backend.address]));
    for (path, protocol, status) in [
        ("/own", "OWN", 101),
        ("/own", "websocket", 101),
        ("/", "own", 403),
        ("/", "WebSocket", 101),
        ("/no", "websocket", 403),
    ] {
        let mut client = proxy.client();
        client.send(
            format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n").as_bytes(),
        );
        let answer = client.head().unwrap();
        assert_eq!(answer.status(), status, "{protocol} at {path}");
        if status == 101 {
            assert_eq!(answer.header("upgrade"), Some(protocol));
            client.send(b"a line\n");
            assert_eq!(client.until(b"\n").unwrap(), "A LINE\n");
        }
    }
}

/// A client of HTTP/2 that asks for one tunnel, says a line, and returns the status and the line that comes back.
fn over_http2(proxy: &Proxy, request: Request<()>) -> (StatusCode, String) {
    let address = proxy.address;
    proxy.wait(async move {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let (answer, mut body) = send.ready().await.unwrap().send_request(request, false).unwrap();
        body.send_data(Bytes::from_static(b"a line\n"), false).unwrap();
        let (head, mut back) = answer.await.unwrap().into_parts();
        let mut text = String::new();
        while !text.ends_with('\n') {
            let Some(Ok(data)) = back.data().await else { break };
            back.flow_control().release_capacity(data.len()).unwrap();
            text.push_str(&String::from_utf8_lossy(&data));
        }
        if head.status.is_success() {
            // The end goes through as well.
            body.send_data(Bytes::new(), true).unwrap();
            while let Some(data) = back.data().await {
                assert_eq!(data.unwrap(), "");
            }
        }
        (head.status, text)
    })
}

fn extended(protocol: &'static str) -> Request<()> {
    let mut request = Request::builder().method(Method::CONNECT).uri("http://a.example/chat").body(()).unwrap();
    request.extensions_mut().insert(h2::ext::Protocol::from_static(protocol));
    request
}

/// An endpoint of HTTP/2 that takes up tunnels and shouts back what comes; `Err` is the status with which it refuses.
fn http2_backend(check: impl Fn(&Request<h2::RecvStream>) -> Result<(), u16> + Send + Sync + 'static) -> Backend {
    Backend::start(move |stream, _| {
        stream.set_nonblocking(true).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let stream = tokio::net::TcpStream::from_std(stream).unwrap();
            let mut server = h2::server::Builder::new();
            let mut connection = server.enable_connect_protocol().handshake::<_, Bytes>(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let verdict = check(&request);
                tokio::spawn(async move {
                    let status = verdict.err().unwrap_or(200);
                    let answer = Response::builder().status(status).body(()).unwrap();
                    let mut out = respond.send_response(answer, status != 200).unwrap();
                    let mut body = request.into_body();
                    while let Some(Ok(data)) = body.data().await {
                        body.flow_control().release_capacity(data.len()).unwrap();
                        out.send_data(data.to_ascii_uppercase().into(), false).unwrap();
                    }
                    let _ = out.send_data(Bytes::new(), true);
                });
            }
        });
    })
}

fn speaking_http2(endpoint: SocketAddr) -> Cluster {
    Cluster { protocol: UpstreamProtocol::Http2, ..cluster(&[endpoint]) }
}

#[test]
fn websocket_when_it_comes_by_http2_then_the_endpoint_sees_an_upgrade() {
    let backend = shouting(|request| {
        assert!(request.head.starts_with("GET /chat HTTP/1.1\r\nhost: a.example\r\n"), "{request:?}");
        assert_eq!((request.header("upgrade"), request.header("connection")), (Some("websocket"), Some("upgrade")));
        assert_eq!(request.header("content-length"), None);
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n".into()
    });
    let everything = || vec![route(RouteMatch::default(), forward(Forward::default()))];
    let allows = |manager: &mut HttpManager| manager.http2.allow_connect = true;
    let proxy = serving(everything(), allows, cluster(&[backend.address]));
    assert_eq!(over_http2(&proxy, extended("websocket")), (StatusCode::OK, "A LINE\n".to_owned()));
    assert_eq!(over_http2(&proxy, extended("own")), (StatusCode::FORBIDDEN, String::new()));
    let mut with_length = extended("websocket");
    with_length.headers_mut().insert("content-length", ::http::HeaderValue::from_static("4"));
    assert_eq!(over_http2(&proxy, with_length), (StatusCode::OK, "A LINE\n".to_owned()), "what follows is no body");
}

#[test]
fn websocket_when_the_endpoint_speaks_http2_then_it_sees_extended_connect() {
    let backend = http2_backend(|request| {
        let protocol = request.extensions().get::<h2::ext::Protocol>().unwrap();
        assert_eq!((request.method(), protocol.as_str()), (&Method::CONNECT, "websocket"));
        if request.uri().path() == "/no" { Err(404) } else { Ok(()) }
    });
    let everything = || vec![route(RouteMatch::default(), forward(Forward::default()))];
    let allows = |manager: &mut HttpManager| manager.http2.allow_connect = true;
    let proxy = serving(everything(), allows, speaking_http2(backend.address));
    let ask = |path| format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    let mut client = proxy.client();
    client.send(ask("/chat").as_bytes());
    let answer = client.head().unwrap();
    assert_eq!((answer.status(), answer.header("upgrade")), (101, Some("websocket")));
    assert_eq!(answer.header("connection"), Some("upgrade"));
    client.send(b"a line\n");
    assert_eq!(client.until(b"\n").unwrap(), "A LINE\n");
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.rest(), "", "the client's end comes back as the endpoint's");
    assert_eq!(proxy.client().ask(&ask("/no")).status(), 404);
    assert_eq!(over_http2(&proxy, extended("websocket")), (StatusCode::OK, "A LINE\n".to_owned()));
}

#[test]
fn connect_when_it_comes_or_goes_by_http2_then_it_is_a_tunnel_as_well() {
    let connect = || Request::builder().method(Method::CONNECT).uri("far.example:443").body(()).unwrap();
    let sent_on = || vec![connect_route(Forward { upgrades: on("connect"), ..Forward::default() })];
    let http1 = shouting(|request| {
        assert!(request.head.starts_with("CONNECT far.example:443 HTTP/1.1\r\n"), "{request:?}");
        "HTTP/1.1 204 No Content\r\n\r\n".into()
    });
    let proxy = serving(sent_on(), |_| {}, cluster(&[http1.address]));
    assert_eq!(over_http2(&proxy, connect()), (StatusCode::NO_CONTENT, "A LINE\n".to_owned()));

    let http2 = http2_backend(|request| {
        assert_eq!(request.method(), Method::CONNECT);
        assert_eq!(request.uri().to_string(), "far.example:443");
        Ok(())
    });
    let proxy = serving(sent_on(), |_| {}, speaking_http2(http2.address));
    assert_eq!(over_http2(&proxy, connect()), (StatusCode::OK, "A LINE\n".to_owned()));
    let mut client = proxy.client();
    client.send([CONNECT, "a line\n"].concat().as_bytes());
    assert_eq!(client.head().unwrap().status(), 200);
    assert_eq!(client.until(b"\n").unwrap(), "A LINE\n");

    let bytes = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        while let Some(line) = side.until(b"\n") {
            side.send(line.to_uppercase().as_bytes());
        }
    });
    let proxy = serving(vec![connect_route(ends_here(false))], |_| {}, cluster(&[bytes.address]));
    assert_eq!(over_http2(&proxy, connect()), (StatusCode::OK, "A LINE\n".to_owned()));
}

/// A listener whose connections go through an HTTP proxy.
fn tunnelled(tunnel: TcpTunnel, cluster: Cluster) -> Proxy {
    let tunnel = Some(Box::new(tunnel));
    let tcp = TcpProxy { tunnel, idle_timeout: LIMIT, ..TcpProxy::new(vec![TcpTarget::all(FIRST)]) };
    Proxy::start(1, Network::Tcp(Arc::new(tcp)), vec![cluster])
}

fn to(post: Option<&str>) -> TcpTunnel {
    TcpTunnel {
        host: "end.example:25".into(),
        post: post.map(Into::into),
        headers: vec![HeaderOp::Append("x-by".into(), "leno".into())],
    }
}

#[test]
fn connection_when_tunnelled_by_connect_then_its_bytes_follow_the_proxys_consent() {
    let backend = shouting(|request| {
        assert!(request.head.starts_with("CONNECT end.example:25 HTTP/1.1\r\nhost: end.example:25\r\n"), "{request:?}");
        assert_eq!((request.header("x-by"), request.header("transfer-encoding")), (Some("leno"), None));
        "HTTP/1.1 200 OK\r\n\r\n".into()
    });
    let proxy = tunnelled(to(None), cluster(&[backend.address]));
    let mut client = proxy.client();
    client.send(b"a line\n");
    assert_eq!(client.until(b"\n").unwrap(), "A LINE\n");
    client.send(b"another\n");
    assert_eq!(client.until(b"\n").unwrap(), "ANOTHER\n");
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.rest(), "", "the proxy's end is the client's");
    eventually("its bytes were counted", || {
        let metrics = proxy.telemetry.render();
        metrics.lines().any(|line| line.starts_with("istio_tcp_sent_bytes_total") && line.ends_with(" 15"))
    });

    let http2 = http2_backend(|request| {
        assert_eq!((request.method(), request.uri().to_string().as_str()), (&Method::CONNECT, "end.example:25"));
        Ok(())
    });
    let proxy = tunnelled(to(None), speaking_http2(http2.address));
    for _ in 0..2 {
        let mut client = proxy.client();
        client.send(b"a line\n");
        assert_eq!(client.until(b"\n").unwrap(), "A LINE\n");
    }
    assert_eq!(http2.connections.load(Ordering::SeqCst), 1, "tunnels share a connection");
}

#[test]
fn connection_when_tunnelled_by_post_then_its_bytes_are_bodies() {
    let backend = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        let request = side.head().unwrap();
        assert!(request.head.starts_with("POST /through HTTP/1.1\r\nhost: end.example:25\r\n"), "{request:?}");
        assert_eq!(request.header("transfer-encoding"), Some("chunked"));
        side.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhi\n\r\n");
        assert_eq!(side.until(b"\r\n0\r\n\r\n").unwrap(), "7\r\na line\n\r\n0\r\n\r\n");
        side.send(b"4\r\nbye\n\r\n0\r\n\r\n");
    });
    let proxy = tunnelled(to(Some("/through")), cluster(&[backend.address]));
    let mut client = proxy.client();
    assert_eq!(client.until(b"\n").unwrap(), "hi\n");
    client.send(b"a line\n");
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.rest(), "bye\n");
}

#[test]
fn connection_when_the_proxy_grants_no_tunnel_then_it_ends_or_another_is_asked() {
    let refusing = Backend::http(|_| "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n".into());
    let proxy = tunnelled(to(None), cluster(&[refusing.address]));
    let mut client = proxy.client();
    client.send(b"a line\n");
    assert_eq!(client.rest(), "");

    let granting = shouting(|_| "HTTP/1.1 200 OK\r\n\r\n".into());
    let tunnel = Some(Box::new(to(None)));
    let tcp = TcpProxy { tunnel, connect_attempts: 2, ..TcpProxy::new(vec![TcpTarget::all(FIRST)]) };
    let clusters = vec![cluster(&[refusing.address, granting.address])];
    let proxy = Proxy::start(1, Network::Tcp(Arc::new(tcp)), clusters);
    for _ in 0..4 {
        let mut client = proxy.client();
        client.send(b"a line\n");
        assert_eq!(client.until(b"\n").unwrap(), "A LINE\n");
    }
}
