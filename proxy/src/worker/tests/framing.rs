//! What can be read in two ways is refused, and what follows it is never taken for a request.

use super::*;

#[test]
fn request_when_ambiguous_or_malformed_then_refused_and_closed() {
    let backend = Backend::echo();
    let proxy = Proxy::simple(&[backend.address]);
    let cases: &[(&str, u16)] = &[
        ("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 4\r\ncontent-length: 4\r\n\r\nbody", 400),
        ("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 4, 4\r\n\r\nbody", 400),
        ("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: +4\r\n\r\nbody", 400),
        ("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 0x4\r\n\r\nbody", 400),
        ("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: -1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nhost: t\r\ncontent-length:\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 99999999999999999999\r\n\r\n", 400),
        (
            "POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        ("POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
        ("POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding:\r\n\r\n0\r\n\r\n", 501),
        ("POST / HTTP/1.0\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nhost: t\r\n transfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: t\r\nx: a\r\n folded\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: t\nx: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\nhost: t\n\n", 400),
        ("GET / HTTP/1.1\r\nhost: t\r\nx: a\rb\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: t\r\nx: a\0b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: t\r\n: empty\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: t\r\nno colon\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a/b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: user@a\r\n\r\n", 400),
        ("GET / HTTP/1.1 \r\nhost: t\r\n\r\n", 400),
        ("GET  / HTTP/1.1\r\nhost: t\r\n\r\n", 400),
        ("GET path HTTP/1.1\r\nhost: t\r\n\r\n", 400),
        ("GET * HTTP/1.1\r\nhost: t\r\n\r\n", 400),
        ("GET http:///x HTTP/1.1\r\nhost: t\r\n\r\n", 400),
        ("GET ftp://x/ HTTP/1.1\r\nhost: t\r\n\r\n", 400),
        ("CONNECT t:80 HTTP/1.1\r\nhost: t\r\n\r\n", 404),
        ("GET / HTTP/2.0\r\nhost: t\r\n\r\n", 426),
        ("GET / HTTP/1.2\r\nhost: t\r\n\r\n", 426),
        ("\x16\x03\x01garbage\r\n\r\n", 400),
    ];
    for (request, code) in cases {
        let mut client = proxy.client();
        client.send(request.as_bytes());
        client.send(get("/smuggled").as_bytes());
        let answer = client.message(false).unwrap_or_else(|| panic!("no answer to {request:?}"));
        assert_eq!(answer.status(), *code, "{request:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{request:?}");
        assert_eq!(client.rest(), "", "{request:?}: nothing after a refused request is answered");
    }
    assert_eq!(backend.connections.load(Ordering::SeqCst), 0, "nothing reached the back end");
}

#[test]
fn request_when_chunks_are_malformed_then_the_back_end_never_gets_a_second_request() {
    for body in ["5\nhello\r\n0\r\n\r\n", "5\r\nhelloX\r\n0\r\n\r\n", "-1\r\n", "5 x\r\nhello\r\n0\r\n\r\n", "zz\r\n"] {
        let backend = Backend::echo();
        let proxy = Proxy::simple(&[backend.address]);
        let mut client = proxy.client();
        client.send(format!("POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n{body}").as_bytes());
        client.send(get("/smuggled").as_bytes());
        let answer = client.message(false).unwrap();
        assert_eq!(answer.status(), 400, "{body:?}");
        assert_eq!(client.rest(), "", "{body:?}");
    }
}

#[test]
fn request_when_head_is_too_large_then_431() {
    let backend = Backend::echo();
    let proxy = Proxy::simple(&[backend.address]);
    let mut client = proxy.client();
    let many: String = (0..150).map(|n| format!("x-{n}: 1\r\n")).collect();
    assert_eq!(client.ask(&format!("GET / HTTP/1.1\r\nhost: t\r\n{many}\r\n")).status(), 431);
    let mut client = proxy.client();
    let long = "a".repeat(70_000);
    assert_eq!(client.ask(&format!("GET / HTTP/1.1\r\nhost: t\r\nx: {long}\r\n\r\n")).status(), 431);
    let mut client = proxy.client();
    let allowed = "a".repeat(50_000);
    assert_eq!(client.ask(&format!("GET / HTTP/1.1\r\nhost: t\r\nx: {allowed}\r\n\r\n")).status(), 200);
}

#[test]
fn request_when_target_is_absolute_then_its_authority_counts() {
    let backend = Backend::echo();
    let proxy = Proxy::simple(&[backend.address]);
    let answer = proxy.client().ask("GET http://real.example:81/p?q HTTP/1.1\r\nhost: lie\r\n\r\n");
    assert!(answer.body.starts_with("GET /p?q HTTP/1.1\r\nhost: real.example:81\r\n"), "{}", answer.body);
    let answer = proxy.client().ask("GET http://real.example HTTP/1.1\r\nhost: real.example\r\n\r\n");
    assert!(answer.body.starts_with("GET / HTTP/1.1\r\n"), "{}", answer.body);
    let answer = proxy.client().ask("GET /%2e%2e/x HTTP/1.1\r\nhost: t\r\n\r\n");
    assert!(answer.body.starts_with("GET /x HTTP/1.1\r\n"), "not above the root: {}", answer.body);
    let answer = proxy.client().ask("GET /%00 HTTP/1.1\r\nhost: t\r\n\r\n");
    assert_eq!(answer.status(), 400);
}

#[test]
fn request_when_its_head_comes_slowly_then_it_is_cut_off() {
    let backend = Backend::echo();
    let matches = vec![route(RouteMatch::default(), forward(Forward::default()))];
    let manager = HttpManager { request_head_timeout: Duration::from_millis(100), ..manager(matches) };
    let proxy = Proxy::start(1, Network::Http(Arc::new(manager)), vec![cluster(&[backend.address])]);
    let mut client = proxy.client();
    client.send(b"GET / HT");
    let start = Instant::now();
    let answer = client.message(false).unwrap();
    assert_eq!((answer.status(), answer.body.as_str()), (408, "request header timeout"));
    assert_eq!(client.rest(), "");
    assert!(start.elapsed() < LIMIT, "closed long before the client gave up");
    assert_eq!(proxy.get("/").status(), 200);
}

#[test]
fn request_when_its_head_does_not_end_then_it_is_cut_off_as_a_stream_without_anything() {
    let matches = vec![route(RouteMatch::default(), forward(Forward::default()))];
    let manager = HttpManager { stream_idle_timeout: Duration::from_millis(100), ..manager(matches) };
    let proxy = Proxy::start(1, Network::Http(Arc::new(manager)), Vec::new());
    let mut client = proxy.client();
    client.send(b"GET / HT");
    let answer = client.message(false).unwrap();
    assert_eq!((answer.status(), answer.body.as_str()), (408, "stream timeout"));
    assert_eq!(client.rest(), "");
}

#[test]
fn request_when_split_at_every_byte_then_the_answer_is_the_same() {
    let backend = Backend::http(|request| ok(&request.body));
    let proxy = Proxy::simple(&[backend.address]);
    let request =
        b"POST /x HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6;e\r\n world\r\n0\r\n\r\n";
    for at in 1..request.len() {
        let mut client = proxy.client();
        client.send(&request[..at]);
        thread::sleep(Duration::from_millis(1));
        client.send(&request[at..]);
        assert_eq!(client.message(false).unwrap().body, "hello world", "split at {at}");
    }
}
