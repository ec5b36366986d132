//! What routes do, between real sockets.

use super::{
    routed::{self, INTERNAL, proxy, table, with},
    *,
};
use serde_json::{Value, json};
use std::sync::Mutex;

fn to(route: Value) -> Value {
    table(json!([{"match": {"prefix": "/"}, "route": route}]))
}

/// A back end that remembers what it was asked.
fn recording() -> (Backend, Arc<Mutex<Vec<Message>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    let backend = Backend::http(move |request| {
        kept.lock().unwrap().push(request.clone());
        ok("kept")
    });
    (backend, seen)
}

#[test]
fn mirror_when_a_request_has_a_body_then_the_copy_has_it_too_and_its_answer_is_forgotten() {
    let backend = Backend::echo();
    let (shadow, seen) = recording();
    let mirrors = json!([{"cluster": "b"}, {"cluster": "b", "disable_shadow_host_suffix_append": true}]);
    let proxy = proxy(
        to(json!({"cluster": "a", "request_mirror_policies": mirrors})),
        json!([]),
        &[backend.address, shadow.address],
    );
    let body = "x".repeat(200_000);
    let request = format!("POST /m HTTP/1.1\r\nhost: t.example:80\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let answer = proxy.client().ask(&request);
    assert!(answer.body.starts_with("POST /m"));
    eventually("two copies", || seen.lock().unwrap().len() == 2);
    let seen = seen.lock().unwrap();
    assert!(seen.iter().all(|copy| copy.body == body));
    let mut hosts: Vec<_> = seen.iter().map(|copy| copy.header("host").unwrap()).collect();
    hosts.sort_unstable();
    assert_eq!(hosts, ["t.example-shadow:80", "t.example:80"]);
}

#[test]
fn mirror_when_it_does_not_answer_or_read_then_the_request_does_not_wait() {
    let backend = Backend::http(|request| ok(&request.body.len().to_string()));
    let deaf = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        side.head();
        side.until(b"never");
    });
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mirrors = json!([{"cluster": "b"}, {"cluster": "c"}]);
    let proxy = proxy(
        to(json!({"cluster": "a", "request_mirror_policies": mirrors})),
        json!([]),
        &[backend.address, deaf.address, dead],
    );
    let body = "x".repeat(8_000_000);
    let answer =
        proxy.client().ask(&format!("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
    assert_eq!((answer.status(), answer.body.as_str()), (200, "8000000"));
}

#[test]
fn mirror_when_its_share_is_nothing_then_there_is_no_copy() {
    let backend = Backend::echo();
    let (shadow, seen) = recording();
    let never = json!({"default_value": {"numerator": 0}});
    let mut table = to(json!({"cluster": "a"}));
    table["request_mirror_policies"] = json!([{"cluster": "b", "runtime_fraction": never}]);
    let none = proxy(table.clone(), json!([]), &[backend.address, shadow.address]);
    assert_eq!(none.get("/").status(), 200);
    table["request_mirror_policies"][0]["runtime_fraction"] = json!({"default_value": {"numerator": 100}});
    let all = proxy(table, json!([]), &[backend.address, shadow.address]);
    assert_eq!(all.get("/all").status(), 200);
    eventually("the copy of the table's policy", || !seen.lock().unwrap().is_empty());
    assert!(seen.lock().unwrap().iter().all(|copy| copy.head.starts_with("GET /all")));
}

#[test]
fn hash_when_by_cookie_then_a_client_without_it_is_given_one() {
    let backend = Backend::echo();
    let policy = json!([{"cookie": {"name": "who", "ttl": "60s", "path": "/p"}}]);
    let network = || routed::network(to(json!({"cluster": "a", "hash_policy": policy})), json!([]), 1);
    let with_policy = |policy| Proxy::start(1, network(), vec![Cluster { policy, ..cluster(&[backend.address]) }]);
    assert_eq!(with_policy(LbPolicy::RoundRobin).get("/").header("set-cookie"), None, "nobody would look at it");
    let proxy = with_policy(LbPolicy::Maglev { table_size: 11 });
    let mut client = proxy.client();
    let answer = client.ask(&get("/"));
    let cookie = answer.header("set-cookie").unwrap().to_owned();
    assert!(cookie.starts_with("who=\"") && cookie.ends_with("\"; Max-Age=60; Path=/p; HttpOnly"), "{cookie}");
    assert_eq!(client.ask(&get("/")).header("set-cookie"), Some(cookie.as_str()), "the same on one connection");
    assert_eq!(client.ask(&with("/", &[("cookie", "a=b; who=me")])).header("set-cookie"), None);
}

#[test]
fn timeout_when_the_request_sets_it_then_it_counts_and_the_endpoint_is_told() {
    let backend = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        while let Some(request) = side.message(true) {
            match request.head.starts_with("GET /slow") {
                true => _ = side.until(b"never"),
                false => side.send(ok(&request.head).as_bytes()),
            }
        }
    });
    let proxy = proxy(to(json!({"cluster": "a"})), json!([]), &[backend.address]);
    let answer = proxy.get("/");
    assert!(answer.body.contains("x-envoy-expected-rq-timeout-ms: 15000"), "{}", answer.body);
    let answer = proxy.client().ask(&with("/", &[INTERNAL, ("x-envoy-upstream-rq-timeout-ms", "700")]));
    assert!(answer.body.contains("x-envoy-expected-rq-timeout-ms: 700"), "{}", answer.body);
    assert!(!answer.body.contains("x-envoy-upstream-rq-timeout-ms"), "what was said to us stays here");
    let answer = proxy.client().ask(&with("/slow", &[INTERNAL, ("x-envoy-upstream-rq-timeout-ms", "50")]));
    assert_eq!((answer.status(), answer.body.as_str()), (504, "upstream request timeout"));
    proxy.told("UT");
    let limits =
        [INTERNAL, ("x-envoy-upstream-rq-timeout-ms", "50"), ("x-envoy-upstream-rq-timeout-alt-response", "1")];
    assert_eq!(
        {
            let mut client = proxy.client();
            client.send(with("/slow", &limits).as_bytes());
            client.head().unwrap().status()
        },
        204
    );
}

#[test]
fn grpc_timeout_when_the_route_heeds_it_then_it_ends_the_call() {
    let backend = Backend::start(|stream, _| {
        let mut side = Side::new(stream);
        side.message(true);
        side.until(b"never");
    });
    for route in [
        json!({"cluster": "a", "max_stream_duration": {"grpc_timeout_header_max": "0s"}}),
        json!({"cluster": "a", "max_grpc_timeout": "10s"}),
    ] {
        let proxy = proxy(to(route), json!([]), &[backend.address]);
        let call = with("/", &[("content-type", "application/grpc"), ("grpc-timeout", "50m")]);
        let answer = proxy.client().ask(&call);
        assert_eq!(answer.status(), 200);
        assert!(matches!(answer.header("grpc-status"), Some("4" | "14")), "{answer:?}");
    }
}

/// Answers 503 so many times for each path, then 200 with what it was asked.
fn failing(times: usize) -> Backend {
    let asked = Mutex::new(std::collections::HashMap::<String, usize>::new());
    Backend::http(move |request| {
        let path = request.head.split(' ').nth(1).unwrap().to_owned();
        let mut asked = asked.lock().unwrap();
        let count = asked.entry(path).or_default();
        *count += 1;
        match *count > times {
            true => ok(&format!("{}\n{}", request.head, request.body)),
            false => "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n".to_owned(),
        }
    })
}

#[test]
fn retry_when_the_request_asks_for_it_then_its_body_is_sent_again_and_attempts_are_counted() {
    let backend = failing(2);
    let mut table = to(json!({"cluster": "a"}));
    table["virtual_hosts"][0]["include_request_attempt_count"] = json!(true);
    table["virtual_hosts"][0]["include_attempt_count_in_response"] = json!(true);
    let proxy = proxy(table, json!([]), &[backend.address]);
    let body = "y".repeat(500_000);
    let lines = "x-forwarded-for: 10.0.0.1\r\nx-envoy-retry-on: 5xx\r\nx-envoy-max-retries: 2\r\n";
    let answer = proxy
        .client()
        .ask(&format!("POST /r HTTP/1.1\r\nhost: t\r\n{lines}content-length: {}\r\n\r\n{body}", body.len()));
    assert_eq!((answer.status(), answer.header("x-envoy-attempt-count")), (200, Some("3")));
    assert!(answer.body.contains("x-envoy-attempt-count: 3") && answer.body.ends_with(&body));
    assert!(!answer.body.contains("x-envoy-retry-on") && !answer.body.contains("x-envoy-max-retries"));
    assert_eq!(proxy.get("/never-again").status(), 503, "nobody asked");
}

#[test]
fn retry_when_the_body_is_larger_than_what_is_kept_then_the_answer_passes() {
    let backend = failing(1);
    let policy = json!({"retry_on": "5xx", "num_retries": 3});
    let mut table = to(json!({"cluster": "a", "retry_policy": policy}));
    table["virtual_hosts"][0]["request_body_buffer_limit"] = json!(10);
    let proxy = proxy(table, json!([]), &[backend.address]);
    let ask = |path: &str, body: &str| {
        let request = format!("POST {path} HTTP/1.1\r\nhost: t\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        proxy.client().ask(&request).status()
    };
    assert_eq!((ask("/small", "0123456789"), ask("/large", "0123456789a")), (200, 503));
}

#[test]
fn retry_when_only_some_requests_are_repeated_then_only_those() {
    let backend = failing(1);
    let policy = json!({"retry_on": "5xx", "retriable_request_headers": [{"name": "x-again", "present_match": true}]});
    let proxy = proxy(to(json!({"cluster": "a", "retry_policy": policy})), json!([]), &[backend.address]);
    assert_eq!(proxy.client().ask(&with("/1", &[("x-again", "1")])).status(), 200);
    assert_eq!(proxy.get("/2").status(), 503);
}

#[test]
fn retry_when_nothing_moves_in_an_attempt_then_the_next_one_is_told() {
    let backend = Backend::start(|stream, number| {
        let mut side = Side::new(stream);
        let request = side.message(true).unwrap();
        match number {
            0 => _ = side.until(b"never"),
            _ => side.send(ok(&request.head).as_bytes()),
        }
    });
    let policy = json!({"retry_on": "reset", "per_try_idle_timeout": "0.05s"});
    let mut table = to(json!({"cluster": "a", "retry_policy": policy}));
    table["virtual_hosts"][0]["include_is_timeout_retry_header"] = json!(true);
    let proxy = proxy(table, json!([]), &[backend.address]);
    let answer = proxy.get("/");
    assert!(answer.status() == 200 && answer.body.contains("x-envoy-is-timeout-retry: true"), "{answer:?}");
}

#[test]
fn cluster_when_a_header_names_it_then_there_or_the_status_that_the_route_wants() {
    let backends = [Backend::http(|_| ok("a")), Backend::http(|_| ok("b"))];
    let route = json!({"cluster_header": "x-to", "cluster_not_found_response_code": "NOT_FOUND"});
    let proxy = proxy(to(route), json!([]), &[backends[0].address, backends[1].address]);
    let ask = |name: &str| proxy.client().ask(&with("/", &[("x-to", name)]));
    assert_eq!((ask("a").body.as_str(), ask("b").body.as_str()), ("a", "b"));
    assert_eq!((ask("nobody").status(), proxy.get("/").status()), (404, 404));
    proxy.told("NC");
}

#[test]
fn target_when_a_header_chooses_then_always_the_same() {
    let backends = [Backend::http(|_| ok("a")), Backend::http(|_| ok("b"))];
    let weights = json!({"clusters": [{"name": "a", "weight": 10}, {"name": "b", "weight": 90}], "header_name": "x-n"});
    let proxy =
        proxy(to(json!({"weighted_clusters": weights})), json!([]), &[backends[0].address, backends[1].address]);
    for (number, want) in [("0", "a"), ("9", "a"), ("10", "b"), ("99", "b"), ("105", "a")] {
        assert_eq!(proxy.client().ask(&with("/", &[("x-n", number)])).body, want, "{number}");
    }
}

#[test]
fn headers_when_made_from_the_request_then_values_are_filled_in() {
    let backend = Backend::echo();
    let mut table = to(json!({"cluster": "a"}));
    let add = |key: &str, value: &str| json!({"header": {"key": key, "value": value}});
    table["virtual_hosts"][0]["request_headers_to_add"] = json!([
        add("x-path", "%REQ(:path)% by %PROTOCOL%"),
        add("x-client", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
        add("x-none", "%REQ(x-not-there)%")
    ]);
    table["virtual_hosts"][0]["response_headers_to_add"] =
        json!([add("x-code", "%RESPONSE_CODE% of %UPSTREAM_CLUSTER%")]);
    let proxy = proxy(table, json!([]), &[backend.address]);
    let answer = proxy.get("/p?q");
    assert!(answer.body.contains("x-path: /p?q by HTTP/1.1\r\n"), "{}", answer.body);
    assert!(answer.body.contains("x-client: 127.0.0.1") && !answer.body.contains("x-none"), "{}", answer.body);
    assert_eq!(answer.header("x-code"), Some("200 of a"));
}

#[test]
fn headers_when_the_most_specific_shall_win_then_it_does() {
    let backend = Backend::echo();
    let set = |value: &str| json!([{"header": {"key": "x-who", "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]);
    let mut table = to(json!({"cluster": "a"}));
    table["response_headers_to_add"] = set("table");
    table["virtual_hosts"][0]["routes"][0]["response_headers_to_add"] = set("route");
    let general = proxy(table.clone(), json!([]), &[backend.address]);
    assert_eq!(general.get("/").header("x-who"), Some("table"));
    table["most_specific_header_mutations_wins"] = json!(true);
    let specific = proxy(table, json!([]), &[backend.address]);
    assert_eq!(specific.get("/").header("x-who"), Some("route"));
}

#[test]
fn authority_when_rewritten_by_path_then_the_one_before_is_remembered() {
    let backend = Backend::echo();
    let rewrite = json!({"pattern": {"regex": "^/(\\w+)/.*"}, "substitution": "\\1.example"});
    let route = json!({
        "cluster": "a", "host_rewrite_path_regex": rewrite, "append_x_forwarded_host": true, "prefix_rewrite": "/new/"
    });
    let proxy = proxy(to(route), json!([]), &[backend.address]);
    let answer = proxy.get("/shop/x");
    assert!(answer.body.starts_with("GET /new/shop/x HTTP/1.1\r\nhost: shop.example\r\n"), "{}", answer.body);
    assert!(
        answer.body.contains("x-envoy-original-host: test")
            && answer.body.contains("x-forwarded-host: test")
            && answer.body.contains("x-envoy-original-path: /shop/x")
    );
}

#[test]
fn path_when_matched_by_a_template_then_it_is_rewritten_by_one() {
    let backend = Backend::echo();
    let kind = "type.googleapis.com/envoy.extensions.path";
    let routes = json!([{
        "match": {"path_match_policy": {"name": "t", "typed_config": {
            "@type": format!("{kind}.match.uri_template.v3.UriTemplateMatchConfig"), "path_template": "/v1/{user}/{rest=**}"
        }}},
        "route": {"cluster": "a", "path_rewrite_policy": {"name": "r", "typed_config": {
            "@type": format!("{kind}.rewrite.uri_template.v3.UriTemplateRewriteConfig"), "path_template_rewrite": "/{rest}/of/{user}"
        }}}
    }]);
    let proxy = proxy(table(routes), json!([]), &[backend.address]);
    assert!(proxy.get("/v1/me/a/b?q").body.starts_with("GET /a/b/of/me?q "));
    assert_eq!(proxy.get("/v1/me").status(), 404);
}

#[test]
fn redirect_when_asked_for_then_ports_and_schemes_are_envoys() {
    let ask = |redirect: Value, host: &str, path: &str| {
        let routes = json!([{"match": {"prefix": "/a"}, "redirect": redirect}]);
        let proxy = proxy(table(routes), json!([]), &[]);
        let answer = proxy.client().ask(&format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n"));
        (answer.status(), answer.header("location").unwrap_or_default().to_owned())
    };
    let expect = |code: u16, location: &str| (code, location.to_owned());
    assert_eq!(ask(json!({"https_redirect": true}), "h", "/a?q"), expect(301, "https://h/a?q"));
    assert_eq!(ask(json!({"https_redirect": true}), "h:80", "/a"), expect(301, "https://h/a"));
    assert_eq!(ask(json!({"https_redirect": true}), "h:8080", "/a"), expect(301, "https://h:8080/a"));
    let port = json!({"port_redirect": 80, "response_code": "PERMANENT_REDIRECT"});
    assert_eq!(ask(port, "h:8080", "/a"), expect(308, "http://h:80/a"));
    assert_eq!(ask(json!({"host_redirect": "n"}), "h:8080", "/a"), expect(301, "http://n/a"));
    assert_eq!(ask(json!({"path_redirect": "/b", "strip_query": true}), "h", "/a?q"), expect(301, "http://h/b"));
    assert_eq!(ask(json!({"path_redirect": "/b?x"}), "h", "/a?q"), expect(301, "http://h/b?x"));
    assert_eq!(ask(json!({"prefix_rewrite": "/b"}), "h", "/a/c?q"), expect(301, "http://h/b/c?q"));
}

#[test]
fn virtual_host_when_it_wants_tls_then_plain_requests_are_sent_there() {
    let backend = Backend::echo();
    let mut table = to(json!({"cluster": "a"}));
    table["virtual_hosts"][0]["require_tls"] = json!("EXTERNAL_ONLY");
    let proxy = proxy(table, json!([]), &[backend.address]);
    let answer = proxy.get("/x?y");
    assert_eq!((answer.status(), answer.header("location")), (301, Some("https://test/x?y")));
    assert_eq!(proxy.client().ask(&with("/", &[INTERNAL])).status(), 200);
    assert_eq!(proxy.client().ask(&with("/", &[("x-forwarded-proto", "https")])).status(), 200);
}

#[test]
fn table_when_searched_by_header_or_without_port_then_so() {
    let backend = Backend::echo();
    let mut table = to(json!({"cluster": "a"}));
    table["virtual_hosts"][0]["domains"] = json!(["here"]);
    table["ignore_port_in_host_matching"] = json!(true);
    let ported = proxy(table.clone(), json!([]), &[backend.address]);
    assert_eq!(ported.client().ask("GET / HTTP/1.1\r\nhost: here:99\r\n\r\n").status(), 200);
    table["vhost_header"] = json!("X-Host");
    let named = proxy(table, json!([]), &[backend.address]);
    assert_eq!(named.client().ask(&with("/", &[("x-host", "here")])).status(), 200);
    assert_eq!(named.client().ask("GET / HTTP/1.1\r\nhost: here\r\n\r\n").status(), 404);
}

#[test]
fn route_when_cookies_grpc_and_parameters_are_asked_for_then_they_count() {
    let answer = |code: u32| json!({"status": code});
    let routes = json!([
        {"match": {"prefix": "/", "cookies": [{"name": "v", "string_match": {"exact": "2"}}]}, "direct_response": answer(201)},
        {"match": {"prefix": "/", "grpc": {}}, "direct_response": answer(202)},
        {"match": {"path": "/p"}, "direct_response": answer(203)},
        {"match": {"prefix": "/", "tls_context": {"presented": true}}, "direct_response": answer(299)}
    ]);
    let mut table = table(routes);
    table["ignore_path_parameters_in_path_matching"] = json!(true);
    let proxy = proxy(table, json!([]), &[]);
    let status = |path: &str, headers: &[(&str, &str)]| proxy.client().ask(&with(path, headers)).status();
    assert_eq!(status("/", &[("cookie", "a=1; v=\"2\"")]), 201);
    let grpc = proxy.client().ask(&with("/", &[("content-type", "application/grpc+proto")]));
    assert_eq!((grpc.status(), grpc.header("grpc-status")), (200, Some("2")), "told in gRPC's way");
    assert_eq!(status("/", &[("content-type", "application/grpc-web")]), 404);
    assert_eq!(status("/p;x=1?q", &[]), 203);
    assert_eq!(status("/p;x=1/r", &[]), 404, "each segment loses its own");
}

#[test]
fn direct_response_when_its_body_is_a_file_then_it_is_sent() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "from a file").unwrap();
    let body = json!({"filename": file.path().to_str().unwrap()});
    let routes = json!([{"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": body}}]);
    assert_eq!(proxy(table(routes), json!([]), &[]).get("/").body, "from a file");
}

#[test]
fn redirect_of_an_endpoint_when_followed_here_then_the_client_sees_the_end_of_it() {
    let backend = Backend::http(|request| match request.head.split(' ').nth(1).unwrap() {
        "/first" => {
            "HTTP/1.1 302 Found\r\nlocation: http://other.example/second?x\r\nx-copy: 1\r\ncontent-length: 0\r\n\r\n"
                .to_owned()
        }
        "/away" => "HTTP/1.1 302 Found\r\nlocation: http://other.example/none\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "/loop" => "HTTP/1.1 302 Found\r\nlocation: http://test/loop\r\ncontent-length: 0\r\n\r\n".to_owned(),
        _ => ok(&format!("{}\n{}", request.head, request.body)),
    });
    let policy = json!({"response_headers_to_copy": ["x-copy"]});
    let route = json!({"cluster": "a", "internal_redirect_policy": policy});
    let routes = json!([
        {"match": {"safe_regex": {"regex": "/(first|second|away|loop)"}}, "route": route},
    ]);
    let proxy = proxy(table(routes), json!([]), &[backend.address]);
    let answer = proxy.client().ask("POST /first HTTP/1.1\r\nhost: test\r\ncontent-length: 4\r\n\r\nbody");
    assert!(answer.body.starts_with("POST /second?x HTTP/1.1\r\nhost: other.example\r\n"), "{answer:?}");
    assert!(answer.body.contains("x-envoy-original-url: http://test/first") && answer.body.contains("x-copy: 1"));
    assert!(answer.body.ends_with("body"));
    assert_eq!(proxy.get("/away").status(), 302, "there is no route");
    assert_eq!(proxy.get("/loop").status(), 302, "one redirect at most");
}

#[test]
fn authority_when_the_endpoint_has_a_name_then_the_route_may_want_it() {
    let backend = Backend::echo();
    let network = routed::network(to(json!({"cluster": "a", "auto_host_rewrite": true})), json!([]), 1);
    let endpoint = Endpoint { hostname: Some("named.example".into()), ..Endpoint::new(backend.address) };
    let proxy = Proxy::start(1, network, vec![Cluster { endpoints: vec![Arc::new(endpoint)], ..cluster(&[]) }]);
    assert!(proxy.get("/").body.contains("host: named.example\r\n"));
}
