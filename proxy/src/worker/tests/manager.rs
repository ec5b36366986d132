//! What a connection manager does to requests and connections, as a stock Envoy 1.40 does it.

use super::configured::{Configured, filter, static_cluster};
use super::tls::{connect, pair_json, socket};
use super::*;
use crate::config::HeaderNames;
use crate::telemetry::{Comparison, LogFilter};
use crate::tls::own_tests::Ca;
use prost_types::value::Kind;
use serde_json::json;

/// A proxy with a manager changed by `change`, in front of an endpoint that answers with what it received.
fn with(change: impl FnOnce(&mut HttpManager)) -> (Backend, Proxy) {
    let backend = Backend::echo();
    let mut manager = manager(vec![route(RouteMatch::default(), forward(Forward::default()))]);
    change(&mut manager);
    let proxy = Proxy::start(1, Network::Http(Arc::new(manager)), vec![cluster(&[backend.address])]);
    (backend, proxy)
}

fn with_edge(edge: Edge) -> (Backend, Proxy) {
    with(|manager| manager.edge = Some(Box::new(edge)))
}

/// A request with these headers.
fn request(headers: &str) -> String {
    format!("GET /x HTTP/1.1\r\nhost: t\r\n{headers}\r\n")
}

/// The value of a header in what the endpoint received.
fn seen(answer: &Message, name: &str) -> Option<String> {
    assert_eq!(answer.status(), 200, "{answer:?}");
    let echoed = Message { head: answer.body.clone(), body: String::new() };
    echoed.header(name).map(str::to_owned)
}

const STEERING: &str = "x-envoy-retry-on: 5xx\r\nx-envoy-internal: true\r\nx-envoy-original-path: /op\r\nx-envoy-other: 1\r\n\
                        x-envoy-downstream-service-node: n\r\nx-request-id: mine\r\n";

#[test]
fn client_when_it_is_outside_then_it_cannot_steer_and_is_named() {
    let (_backend, proxy) = with_edge(Edge { use_remote_address: true, ..Edge::default() });
    let answer =
        proxy.client().ask(&request(&format!("{STEERING}x-forwarded-for: 10.1.1.1\r\nx-forwarded-proto: https\r\n")));
    for gone in ["x-envoy-retry-on", "x-envoy-internal", "x-envoy-original-path", "x-envoy-downstream-service-node"] {
        assert_eq!(seen(&answer, gone), None, "{gone}");
    }
    assert_eq!(seen(&answer, "x-envoy-other").as_deref(), Some("1"));
    assert_eq!(seen(&answer, "x-envoy-external-address").as_deref(), Some("127.0.0.1"));
    assert_eq!(seen(&answer, "x-forwarded-proto").as_deref(), Some("http"), "the client is not believed");
    assert_ne!(seen(&answer, "x-request-id").as_deref(), Some("mine"));
    let chain = seen(&answer, "x-forwarded-for").unwrap();
    assert!(chain.starts_with("10.1.1.1,") && chain.len() > "10.1.1.1,".len(), "{chain}");
}

#[test]
fn client_when_nothing_is_configured_then_only_its_steering_goes() {
    let (_backend, proxy) = with(|_| {});
    let answer = proxy
        .client()
        .ask(&request(&format!("{STEERING}x-forwarded-for: 10.1.1.1\r\nx-forwarded-client-cert: By=x\r\n")));
    assert_eq!(seen(&answer, "x-envoy-retry-on"), None);
    assert_eq!(seen(&answer, "x-envoy-internal"), None);
    assert_eq!(seen(&answer, "x-forwarded-client-cert"), None, "nobody vouches for it");
    for (name, value) in [
        ("x-envoy-original-path", "/op"),
        ("x-envoy-downstream-service-node", "n"),
        ("x-request-id", "mine"),
        ("x-forwarded-for", "10.1.1.1"),
        ("x-forwarded-proto", "http"),
    ] {
        assert_eq!(seen(&answer, name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(seen(&answer, "x-envoy-external-address"), None);
}

#[test]
fn client_when_its_address_is_internal_then_it_may_steer() {
    let internal = vec!["127.0.0.0/8".parse().unwrap(), "10.0.0.0/8".parse().unwrap()];
    let (_backend, proxy) = with_edge(Edge { use_remote_address: true, internal: internal.clone(), ..Edge::default() });
    let answer = proxy.client().ask(&request(STEERING));
    assert_eq!(seen(&answer, "x-envoy-internal").as_deref(), Some("true"));
    assert_eq!(seen(&answer, "x-request-id").as_deref(), Some("mine"));
    assert_eq!(seen(&answer, "x-envoy-external-address"), None);
    let answer = proxy.client().ask(&request("x-forwarded-for: 10.1.1.1\r\n"));
    assert_eq!(seen(&answer, "x-envoy-internal"), None, "whoever was forwarded is not the client itself");
    let (_backend, proxy) = with_edge(Edge { internal, ..Edge::default() });
    let internal_seen = |headers: &str| seen(&proxy.client().ask(&request(headers)), "x-envoy-internal");
    assert_eq!(internal_seen("x-forwarded-for: 10.1.1.1\r\n").as_deref(), Some("true"));
    assert_eq!(internal_seen("x-forwarded-for: 1.2.3.4\r\n"), None);
    assert_eq!(internal_seen(""), None);
}

#[test]
fn client_when_proxies_in_front_are_trusted_then_theirs_is_believed() {
    let edge = Edge { use_remote_address: true, trusted_hops: 1, append_port: true, ..Edge::default() };
    let (_backend, proxy) = with_edge(edge);
    let theirs = "x-forwarded-for: 1.2.3.4, 10.1.1.1\r\nx-forwarded-proto: https\r\nx-forwarded-port: 77\r\n";
    let answer = proxy.client().ask(&request(theirs));
    assert_eq!(seen(&answer, "x-envoy-external-address").as_deref(), Some("10.1.1.1"));
    assert_eq!(seen(&answer, "x-forwarded-proto").as_deref(), Some("https"));
    assert_eq!(seen(&answer, "x-forwarded-port").as_deref(), Some("77"));
    let answer = proxy.client().ask(&request(""));
    assert_eq!(seen(&answer, "x-forwarded-port"), Some(proxy.address.port().to_string()));
}

#[test]
fn client_when_a_header_must_name_it_then_without_one_it_is_refused() {
    let detection = vec![Detection::Header { name: "x-real".into(), trusted: true, reject: Some(401) }];
    let internal = vec!["10.0.0.0/8".parse().unwrap()];
    let (_backend, proxy) = with_edge(Edge { detection, internal, ..Edge::default() });
    assert_eq!(proxy.client().ask(&request("")).status(), 401);
    let answer = proxy.client().ask(&request("x-real: 10.2.2.2\r\n"));
    assert_eq!(seen(&answer, "x-envoy-internal").as_deref(), Some("true"));
}

#[test]
fn names_when_configured_then_both_sides_are_told() {
    let edge = Edge { via: Some("1.1 gw".into()), request_id_in_response: true, secure: Some(true), ..Edge::default() };
    let (_backend, proxy) = with(|manager| {
        manager.edge = Some(Box::new(edge));
        manager.server_header = ServerHeader::Overwrite("gate".into());
    });
    let answer = proxy.client().ask(&request("via: 1.0 fred\r\nx-request-id: mine\r\n"));
    assert_eq!(seen(&answer, "via").as_deref(), Some("1.0 fred, 1.1 gw"));
    assert_eq!(seen(&answer, "x-forwarded-proto").as_deref(), Some("https"));
    assert_eq!(answer.header("via"), Some("1.1 gw"));
    assert_eq!(answer.header("server"), Some("gate"));
    assert_eq!(answer.header("x-request-id"), Some("mine"));
    assert!(answer.header("date").is_some_and(|date| date.ends_with("GMT")));
}

#[test]
fn path_when_slashes_are_escaped_then_the_action_decides() {
    for (action, status) in [
        (EscapedSlashes::Keep, 200),
        (EscapedSlashes::Reject, 400),
        (EscapedSlashes::Redirect, 307),
        (EscapedSlashes::Unescape, 200),
    ] {
        let (_backend, proxy) = with(|manager| manager.escaped_slashes = action);
        let answer = proxy.get("/a%2Fb?c=%2F");
        assert_eq!(answer.status(), status, "{action:?}");
        match action {
            EscapedSlashes::Keep => assert!(answer.body.starts_with("GET /a%2Fb?c=%2F "), "{}", answer.body),
            EscapedSlashes::Reject => assert_eq!(answer.header("connection"), Some("close")),
            EscapedSlashes::Redirect => assert_eq!(answer.header("location"), Some("/a/b?c=%2F")),
            EscapedSlashes::Unescape => assert!(answer.body.starts_with("GET /a/b?c=%2F "), "{}", answer.body),
        }
    }
}

#[test]
fn header_when_its_name_has_an_underscore_then_the_action_decides() {
    for (action, status, stays) in
        [(Underscores::Allow, 200, true), (Underscores::Drop, 200, false), (Underscores::Reject, 400, false)]
    {
        let (_backend, proxy) = with(|manager| manager.underscores = action);
        let answer = proxy.client().ask(&request("a_b: 1\r\nc-d: 2\r\n"));
        assert_eq!(answer.status(), status, "{action:?}");
        if status == 200 {
            assert_eq!(seen(&answer, "a_b").is_some(), stays, "{action:?}");
            assert!(seen(&answer, "c-d").is_some());
        }
    }
}

#[test]
fn http10_when_it_is_not_served_or_names_no_host_then_as_configured() {
    let (_backend, proxy) = with(|manager| manager.accept_http_10 = false);
    let answer = proxy.client().ask("GET / HTTP/1.0\r\nhost: t\r\n\r\n");
    assert_eq!((answer.status(), answer.body.as_str()), (426, "Upgrade Required"));
    let (_backend, proxy) = with(|_| {});
    assert_eq!(proxy.client().ask("GET / HTTP/1.0\r\n\r\n").status(), 400);
    let (_backend, proxy) = with(|manager| manager.default_host_for_http_10 = Some("fallback".into()));
    let answer = proxy.client().ask("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(seen(&answer, "host").as_deref(), Some("fallback"));
    assert!(answer.head.starts_with("HTTP/1.0 200 OK"), "{}", answer.head);
}

#[test]
fn upgrade_when_it_is_not_offered_then_it_is_refused_and_the_connection_ends() {
    let (backend, proxy) = with(|_| {});
    let mut client = proxy.client();
    let answer = client.ask(&request("connection: upgrade\r\nupgrade: secret\r\n"));
    assert_eq!((answer.status(), answer.header("connection")), (403, Some("close")));
    client.send(get("/smuggled").as_bytes());
    assert_eq!(client.rest(), "");
    assert_eq!(backend.connections.load(Ordering::SeqCst), 0);
    let answer =
        proxy.client().ask(&request("connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: A\r\n"));
    assert_eq!(seen(&answer, "upgrade"), None, "a wish for HTTP/2 is passed over");
}

#[test]
fn connection_when_it_served_as_many_requests_as_it_may_then_it_ends() {
    let (_backend, proxy) = with(|manager| manager.max_requests_per_connection = Some(2));
    let mut client = proxy.client();
    assert_eq!(client.ask(&get("/")).header("connection"), None);
    assert_eq!(client.ask(&get("/")).header("connection"), Some("close"));
    assert_eq!(client.rest(), "");
}

#[test]
fn connection_when_it_is_ended_then_the_reason_is_counted() {
    let counted = |change: fn(&mut HttpManager), name: &str| {
        let (_backend, proxy) = with(change);
        let mut client = proxy.client();
        client.ask(&get("/"));
        assert_eq!(client.rest(), "");
        eventually(name, || {
            proxy.telemetry.stats(Vec::new()).iter().any(|stat| stat.name.ends_with(name) && stat.value == 1)
        });
    };
    counted(|manager| manager.idle_timeout = Duration::from_millis(20), ".downstream_cx_idle_timeout");
    counted(|manager| manager.max_requests_per_connection = Some(1), ".downstream_cx_max_requests_reached");
    let old = |manager: &mut HttpManager| {
        manager.max_connection_duration = Some(Duration::from_millis(1));
        manager.drain_timeout = Duration::from_millis(20);
    };
    counted(old, ".downstream_cx_max_duration_reached");
}

#[test]
fn connection_when_it_is_old_then_it_takes_one_more_request_or_ends() {
    let (_backend, proxy) = with(|manager| {
        manager.max_connection_duration = Some(Duration::from_millis(20));
        manager.drain_timeout = Duration::from_millis(100);
    });
    let mut client = proxy.client();
    let until = Instant::now() + LIMIT;
    while client.ask(&get("/")).header("connection").is_none() {
        assert!(Instant::now() < until, "it never ends");
    }
    assert_eq!(client.rest(), "");
    let mut idle = proxy.client();
    idle.ask(&get("/"));
    assert_eq!(idle.rest(), "", "closed although nothing was asked");
}

#[test]
fn request_when_it_takes_too_long_then_it_is_answered_and_the_connection_ends() {
    let limit = Some(Duration::from_millis(50));
    for (what, body) in
        [("idle", "stream timeout"), ("request", "request timeout"), ("all", "downstream duration timeout")]
    {
        let (_backend, proxy) = with(|manager| match what {
            "idle" => manager.stream_idle_timeout = Duration::from_millis(50),
            "request" => manager.request_timeout = limit,
            _ => manager.max_stream_duration = limit,
        });
        let mut client = proxy.client();
        let answer = client.ask("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 5\r\n\r\nhel");
        assert_eq!((answer.status(), answer.body.as_str()), (408, body));
        assert_eq!(answer.header("connection"), Some("close"));
        assert_eq!(proxy.get("/").status(), 200, "others are served");
    }
}

#[test]
fn continue_when_it_is_the_endpoints_affair_then_its_word_is_passed_on() {
    let backend = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        let head = side.head().unwrap();
        assert_eq!(head.header("expect"), Some("100-continue"));
        side.send(b"HTTP/1.1 100 Continue\r\n\r\n");
        let body = side.until(b"!").unwrap();
        side.send(ok(&body).as_bytes());
    });
    let mut manager = manager(vec![route(RouteMatch::default(), forward(Forward::default()))]);
    manager.proxy_100_continue = true;
    let proxy = Proxy::start(1, Network::Http(Arc::new(manager)), vec![cluster(&[backend.address])]);
    let mut client = proxy.client();
    client.send(b"POST / HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\ncontent-length: 6\r\n\r\n");
    assert_eq!(client.head().unwrap().status(), 100);
    client.send(b"hello!");
    assert_eq!(client.message(false).unwrap().body, "hello!");
}

#[test]
fn interim_answers_when_they_are_the_endpoints_affair_then_all_that_mean_something_are_passed_on() {
    let interim = "HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 150 What\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n";
    let backend = Backend::http(move |_| format!("{interim}{}", ok("whole")));
    let passing = |passes| {
        let mut manager = manager(vec![route(RouteMatch::default(), forward(Forward::default()))]);
        manager.proxy_100_continue = passes;
        Proxy::start(1, Network::Http(Arc::new(manager)), vec![cluster(&[backend.address])])
    };
    let (passing, keeping) = (passing(true), passing(false));
    let mut client = passing.client();
    client.send(get("/").as_bytes());
    let hints = client.head().unwrap();
    assert_eq!((hints.status(), hints.header("link")), (103, Some("a")));
    assert_eq!(client.head().unwrap().status(), 100, "nobody knows what 150 means");
    assert_eq!(client.message(false).unwrap().body, "whole");
    assert_eq!(keeping.get("/").body, "whole");
}

#[test]
fn continue_when_the_endpoint_refuses_then_the_client_does_not_send() {
    let backend = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        side.head().unwrap();
        side.send(b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n");
        side.rest();
    });
    let mut manager = manager(vec![route(RouteMatch::default(), forward(Forward::default()))]);
    manager.proxy_100_continue = true;
    let proxy = Proxy::start(1, Network::Http(Arc::new(manager)), vec![cluster(&[backend.address])]);
    let mut client = proxy.client();
    client.send(b"POST / HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\ncontent-length: 6\r\n\r\n");
    let answer = client.message(false).unwrap();
    assert_eq!((answer.status(), answer.header("connection")), (417, Some("close")));
}

#[test]
fn names_of_headers_when_proper_case_is_wanted_then_the_client_gets_it() {
    let (_backend, proxy) = with(|manager| manager.names = HeaderNames::Proper);
    let answer = proxy.get("/");
    assert!(answer.head.contains("\nX-Envoy-Upstream-Service-Time: "), "{}", answer.head);
}

#[test]
fn names_of_headers_when_kept_then_those_that_the_proxy_writes_anew_are_spelled_as_they_came() {
    let (_backend, proxy) = with(|manager| manager.names = HeaderNames::Kept { others_proper: true });
    let answer = proxy.client().ask("POST / HTTP/1.1\r\nHOST: a\r\nContent-LENGTH: 2\r\nx-FOO: b\r\n\r\nhi");
    let seen = answer.body.to_owned() + &answer.head;
    for line in ["\nHOST: a", "\nContent-LENGTH: 2", "\nx-FOO: b", "\nX-Forwarded-Proto: http"] {
        assert!(seen.contains(line), "{line} {seen}");
    }
}

#[test]
fn replies_when_mapped_then_status_body_and_headers_are_the_configurations() {
    let text = |text: &str| prost_types::Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let members = [("code", "%RESPONSE_CODE%"), ("text", "%LOCAL_REPLY_BODY%")];
    let fields = prost_types::Struct { fields: members.map(|(name, value)| (name.to_owned(), text(value))).into() };
    let format = BodyFormat {
        content_type: "application/json".into(),
        format: Arc::new(LogFormat::json(&fields, false).unwrap()),
    };
    let mapper = Mapper {
        filter: LogFilter::All(vec![
            LogFilter::Status(Comparison::AtLeast, 500),
            LogFilter::Flags(ResponseFlags::NO_HEALTHY_UPSTREAM),
        ]),
        status: Some(521),
        body: Some("say \"ah\"".into()),
        format: Some(format),
        headers: vec![HeaderOp::Set("x-mapped".into(), "yes".into())],
    };
    let mut manager = manager(vec![route(RouteMatch::default(), forward(Forward::default()))]);
    manager.local_replies = Some(Box::new(LocalReplies { mappers: vec![mapper], body: None }));
    let proxy = Proxy::start(1, Network::Http(Arc::new(manager)), vec![cluster(&[])]);
    let answer = proxy.get("/");
    assert_eq!((answer.status(), answer.header("x-mapped")), (521, Some("yes")));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.body, "{\"code\":521,\"text\":\"say \\\"ah\\\"\"}\n");
    let answer = proxy.get("/%00");
    assert_eq!((answer.status(), answer.header("x-mapped")), (400, None), "the mapper is for others");
}

#[test]
fn certificate_when_the_client_has_one_then_the_endpoint_is_told_as_configured() {
    let backend = Backend::echo();
    let ca = Ca::new("root");
    let (chain, key) = ca.leaf(&["server.example", "spiffe://td/server"], -1..1);
    let tls = socket(
        "DownstreamTlsContext",
        json!({"common_tls_context": {
            "tls_certificates": [pair_json(&chain, &key)],
            "validation_context": {"trusted_ca": {"inline_string": ca.pem()}}
        }}),
    );
    for (mode, details, wanted) in [
        ("SANITIZE", json!({"uri": true}), None),
        ("FORWARD_ONLY", json!({}), Some("By=a")),
        ("APPEND_FORWARD", json!({"uri": true}), Some("By=a,By=spiffe://td/server;Hash=*;URI=spiffe://td/client")),
        (
            "SANITIZE_SET",
            json!({"uri": true, "dns": true, "subject": true}),
            Some("By=spiffe://td/server;Hash=*;Subject=\"*\";URI=spiffe://td/client;DNS=client.example"),
        ),
        ("ALWAYS_FORWARD_ONLY", json!({}), Some("By=a")),
    ] {
        let manager = filter(
            "http_connection_manager.v3.HttpConnectionManager",
            json!({
                "stat_prefix": "h",
                "forward_client_cert_details": mode,
                "set_current_client_cert_details": details,
                "http_filters": [{"name": "router", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                }}],
                "route_config": {"name": "r", "virtual_hosts": [{"name": "h", "domains": ["*"], "routes": [
                    {"match": {"prefix": "/"}, "route": {"cluster": "b"}}
                ]}]}
            }),
        );
        let proxy = Configured::start(
            json!({"filter_chains": [{"transport_socket": tls, "filters": [manager]}]}),
            &[static_cluster("b", &[backend.address])],
        );
        let own = ca.leaf(&["spiffe://td/client", "client.example"], -1..1);
        for (own, wanted) in [(Some(own), wanted), (None, wanted.filter(|_| mode == "ALWAYS_FORWARD_ONLY"))] {
            let what = format!("{mode}, {}", if own.is_some() { "with a certificate" } else { "without" });
            let mut client = connect(proxy.address(0), &ca, "server.example", own, &[]).unwrap();
            client.write_all(request("connection: close\r\nx-forwarded-client-cert: By=a\r\n").as_bytes()).unwrap();
            let mut text = Vec::new();
            let _ = client.read_to_end(&mut text);
            let text = String::from_utf8(text).unwrap();
            let value = text.lines().find_map(|line| line.strip_prefix("x-forwarded-client-cert: "));
            match (value, wanted) {
                (None, None) => {}
                (Some(value), Some(wanted)) => assert!(like(value.trim(), wanted), "{what}: {value}"),
                _ => panic!("{what}: {value:?} in {text}"),
            }
        }
    }
}

/// Whether a text is what is wanted, where `*` stands for anything.
fn like(text: &str, wanted: &str) -> bool {
    let mut rest = text;
    let mut parts = wanted.split('*');
    let Some(tail) = parts.next().and_then(|head| rest.strip_prefix(head)) else { return false };
    rest = tail;
    for part in parts {
        let Some(at) = rest.find(part).filter(|_| !part.is_empty()) else { return part.is_empty() };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty()
}
