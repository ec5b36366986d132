//! HTTP filters between real sockets.

use super::{
    routed::{entry, proxy, setting, table, with},
    *,
};
use serde_json::{Value, json};

fn to_a() -> Value {
    json!([{"match": {"prefix": "/"}, "route": {"cluster": "a"}}])
}

fn all() -> Value {
    json!({"numerator": 100})
}

#[test]
fn fault_when_it_aborts_then_the_answer_is_envoys_and_the_endpoint_sees_nothing() {
    let backend = Backend::echo();
    let abort = json!({"abort": {"http_status": 418, "percentage": all()}});
    let proxy = proxy(table(to_a()), json!([entry("fault", abort, "fault.v3.HTTPFault")]), &[backend.address]);
    let answer = proxy.get("/");
    assert_eq!((answer.status(), answer.body.as_str()), (418, "fault filter abort"));
    proxy.told("FI");
    assert_eq!(backend.connections.load(Ordering::SeqCst), 0);
}

#[test]
fn fault_when_a_grpc_client_is_aborted_then_it_reads_a_status_of_grpc() {
    let backend = Backend::echo();
    let abort = json!({"abort": {"grpc_status": 8, "percentage": all()}});
    let proxy = proxy(table(to_a()), json!([entry("fault", abort, "fault.v3.HTTPFault")]), &[backend.address]);
    let answer = proxy.client().ask(&with("/", &[("content-type", "application/grpc")]));
    assert_eq!((answer.status(), answer.header("grpc-status")), (200, Some("8")));
    let plain = proxy.get("/");
    assert_eq!((plain.status(), plain.body.as_str()), (200, "fault filter abort"));
}

#[test]
fn fault_when_the_request_controls_it_then_only_up_to_the_configured_share() {
    let backend = Backend::echo();
    let fault = |share: u32| {
        let share = json!({"numerator": share});
        json!({"delay": {"header_delay": {}, "percentage": share}, "abort": {"header_abort": {}, "percentage": share}})
    };
    let with_share =
        |share| proxy(table(to_a()), json!([entry("fault", fault(share), "fault.v3.HTTPFault")]), &[backend.address]);
    let asks = with("/", &[("x-envoy-fault-delay-request", "100"), ("x-envoy-fault-abort-request", "503")]);
    let (never, always) = (with_share(0), with_share(100));
    assert_eq!(never.client().ask(&asks).status(), 200);
    let since = Instant::now();
    assert_eq!(always.client().ask(&asks).status(), 503);
    assert!(since.elapsed() >= Duration::from_millis(100), "a delay comes before an end");
    always.told("DI,FI");
    let less = with("/", &[("x-envoy-fault-abort-request", "503"), ("x-envoy-fault-abort-request-percentage", "0")]);
    assert_eq!(always.client().ask(&less).status(), 200);
    assert_eq!(always.get("/").status(), 200, "what nobody asks for does not happen");
}

#[test]
fn fault_when_it_delays_then_the_body_is_read_meanwhile_as_far_as_its_place_reaches() {
    let backend = Backend::echo();
    let share = json!({"numerator": 100});
    let delay = json!({"fixed_delay": "0.3s", "percentage": share});
    let abort = json!({"delay": delay, "abort": {"http_status": 503, "percentage": share}});
    let aborting = proxy(table(to_a()), json!([entry("fault", abort, "fault.v3.HTTPFault")]), &[backend.address]);
    let post =
        |size: usize| format!("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: {size}\r\n\r\n{}", "x".repeat(size));
    let mut client = aborting.client();
    for _ in 0..2 {
        let answer = client.ask(&post(200_000));
        assert_eq!((answer.status(), answer.header("connection")), (503, None), "the connection serves the next");
    }
    let slow = proxy(
        table(to_a()),
        json!([entry("fault", json!({"delay": delay}), "fault.v3.HTTPFault")]),
        &[Backend::http(|request| ok(&request.body.len().to_string())).address],
    );
    for size in [200_000, 3_000_000] {
        assert_eq!(slow.client().ask(&post(size)).body, size.to_string(), "nothing of it is lost");
    }
}

#[test]
fn fault_when_routes_say_otherwise_then_the_most_specific_counts() {
    let backend = Backend::echo();
    let abort =
        |status: u32| setting(json!({"abort": {"http_status": status, "percentage": all()}}), "fault.v3.HTTPFault");
    let off = json!({"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true});
    let routes = json!([
        {"match": {"prefix": "/off"}, "route": {"cluster": "a"}, "typed_per_filter_config": {"f": off}},
        {"match": {"prefix": "/own"}, "route": {"cluster": "a"}, "typed_per_filter_config": {"f": abort(502)}},
        {"match": {"prefix": "/target"}, "typed_per_filter_config": {"f": abort(502)}, "route": {"weighted_clusters": {
            "clusters": [{"name": "a", "weight": 1, "typed_per_filter_config": {"f": abort(504)}}]
        }}},
        {"match": {"prefix": "/"}, "route": {"cluster": "a"}}
    ]);
    let mut table = table(routes);
    table["virtual_hosts"][0]["typed_per_filter_config"] = json!({"f": abort(501)});
    let proxy = proxy(table, json!([entry("f", json!({}), "fault.v3.HTTPFault")]), &[backend.address]);
    for (path, status) in [("/off", 200), ("/own", 502), ("/target", 504), ("/", 501)] {
        assert_eq!(proxy.get(path).status(), status, "{path}");
    }
}

#[test]
fn fault_when_its_most_are_under_way_then_further_requests_pass() {
    let backend = Backend::echo();
    let fault = json!({"delay": {"fixed_delay": "60s", "percentage": all()}, "max_active_faults": 1});
    let proxy = proxy(table(to_a()), json!([entry("f", fault, "fault.v3.HTTPFault")]), &[backend.address]);
    let mut delayed = proxy.client();
    delayed.send(get("/").as_bytes());
    // The one that is delayed may be this one.
    let free = || {
        let mut client = proxy.client();
        client.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        client.send(get("/").as_bytes());
        client.head().is_some()
    };
    eventually("a request that passes", free);
}

#[test]
fn filter_when_disabled_then_only_routes_switch_it_on() {
    let backend = Backend::echo();
    let mut fault = entry("f", json!({"abort": {"http_status": 418, "percentage": all()}}), "fault.v3.HTTPFault");
    fault["disabled"] = json!(true);
    let on = json!({"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig"});
    let routes = json!([
        {"match": {"prefix": "/on"}, "route": {"cluster": "a"}, "typed_per_filter_config": {"f": on}},
        {"match": {"prefix": "/"}, "route": {"cluster": "a"}}
    ]);
    let proxy = proxy(table(routes), json!([fault]), &[backend.address]);
    assert_eq!((proxy.get("/on").status(), proxy.get("/").status()), (418, 200));
}

fn cors(policy: Value) -> (Value, Value) {
    let mut routes = to_a();
    routes[0]["typed_per_filter_config"] = json!({"c": setting(policy, "cors.v3.CorsPolicy")});
    (table(routes), json!([entry("c", json!({}), "cors.v3.Cors")]))
}

fn preflight(origin: &str) -> String {
    let lines = "access-control-request-method: PUT\r\naccess-control-request-headers: x-a\r\n";
    format!("OPTIONS / HTTP/1.1\r\nhost: t\r\norigin: {origin}\r\n{lines}\r\n")
}

#[test]
fn cors_when_the_origin_is_allowed_then_preflights_and_responses_say_so() {
    let backend = Backend::echo();
    let (table, filters) = cors(json!({
        "allow_origin_string_match": [{"suffix": ".example"}],
        "allow_methods": "GET,PUT", "allow_headers": "*", "expose_headers": "x-b", "max_age": "60",
        "allow_credentials": true
    }));
    let proxy = proxy(table, filters, &[backend.address]);
    let mut client = proxy.client();
    let answer = client.ask(&preflight("https://a.example"));
    assert_eq!(answer.status(), 200);
    for (name, value) in [
        ("access-control-allow-origin", "https://a.example"),
        ("access-control-allow-methods", "GET,PUT"),
        ("access-control-allow-headers", "x-a"),
        ("access-control-max-age", "60"),
        ("access-control-allow-credentials", "true"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{name}");
    }
    assert_eq!(backend.connections.load(Ordering::SeqCst), 0);
    let answer = client.ask(&with("/", &[("origin", "https://a.example")]));
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://a.example"));
    assert_eq!(answer.header("access-control-expose-headers"), Some("x-b"));
    assert!(answer.body.starts_with("GET"), "the endpoint answered");
}

#[test]
fn cors_when_the_origin_is_another_then_the_service_decides_unless_told_otherwise() {
    let backend = Backend::echo();
    let policy = json!({"allow_origin_string_match": [{"exact": "https://a.example"}], "allow_methods": "GET"});
    let (first, filters) = cors(policy.clone());
    let forwards = proxy(first, filters, &[backend.address]);
    let answer = forwards.client().ask(&preflight("https://evil.example"));
    assert!(answer.body.starts_with("OPTIONS"), "{answer:?}");
    assert_eq!(answer.header("access-control-allow-origin"), None);
    let mut policy = policy;
    policy["forward_not_matching_preflights"] = json!(false);
    let (second, filters) = cors(policy);
    let refuses = proxy(second, filters, &[backend.address]);
    let answer = refuses.client().ask(&preflight("https://evil.example"));
    assert_eq!((answer.status(), answer.body.as_str(), answer.header("access-control-allow-origin")), (200, "", None));
}

#[test]
fn cors_when_switched_off_or_only_looking_then_nothing_changes() {
    let backend = Backend::echo();
    let never = json!({"default_value": {"numerator": 0}});
    let (table, filters) = cors(json!({
        "allow_origin_string_match": [{"exact": "*"}],
        "filter_enabled": never,
        "shadow_enabled": {"default_value": {"numerator": 100}}
    }));
    let proxy = proxy(table, filters, &[backend.address]);
    let answer = proxy.client().ask(&with("/", &[("origin", "https://a.example")]));
    assert_eq!((answer.status(), answer.header("access-control-allow-origin")), (200, None));
}

#[test]
fn rbac_when_no_policy_fits_then_403_and_routes_may_say_otherwise() {
    let backend = Backend::echo();
    let rules = json!({"rules": {"policies": {"p": {
        "permissions": [{"and_rules": {"rules": [
            {"header": {"name": ":method", "string_match": {"exact": "GET"}}},
            {"url_path": {"path": {"prefix": "/open"}}}
        ]}}],
        "principals": [{"direct_remote_ip": {"address_prefix": "127.0.0.0", "prefix_len": 8}}]
    }}}});
    let everybody = setting(json!({}), "rbac.v3.RBACPerRoute");
    let routes = json!([
        {"match": {"prefix": "/free"}, "route": {"cluster": "a"}, "typed_per_filter_config": {"r": everybody}},
        {"match": {"prefix": "/"}, "route": {"cluster": "a"}}
    ]);
    let proxy = proxy(table(routes), json!([entry("r", rules, "rbac.v3.RBAC")]), &[backend.address]);
    let mut client = proxy.client();
    assert_eq!(client.ask(&get("/open?x")).status(), 200);
    assert_eq!(client.ask(&get("/free")).status(), 200);
    let answer = client.ask(&get("/closed"));
    assert_eq!((answer.status(), answer.body.as_str()), (403, "RBAC: access denied"));
    let answer = client.ask("DELETE /open HTTP/1.1\r\nhost: t\r\n\r\n");
    assert_eq!(answer.status(), 403);
}

#[test]
fn rbac_when_it_denies_or_only_looks_then_so() {
    let backend = Backend::echo();
    let rules = |path: &str, action: &str| {
        json!({"action": action, "policies": {"p": {
            "permissions": [{"url_path": {"path": {"exact": path}}}], "principals": [{"any": true}]
        }}})
    };
    let config = json!({"rules": rules("/no", "DENY"), "shadow_rules": rules("/yes", "DENY")});
    let proxy = proxy(table(to_a()), json!([entry("r", config, "rbac.v3.RBAC")]), &[backend.address]);
    assert_eq!((proxy.get("/no").status(), proxy.get("/yes").status()), (403, 200));
}

#[test]
fn rate_limit_when_tokens_are_used_up_then_429_with_its_headers() {
    let backend = Backend::echo();
    let share = json!({"default_value": {"numerator": 100}});
    let limit = json!({
        "stat_prefix": "l", "filter_enabled": share, "filter_enforced": share,
        "token_bucket": {"max_tokens": 2, "tokens_per_fill": 1, "fill_interval": "3600s"},
        "response_headers_to_add": [{"header": {"key": "x-limited", "value": "yes"}}],
        "enable_x_ratelimit_headers": "DRAFT_VERSION_03"
    });
    let proxy =
        proxy(table(to_a()), json!([entry("l", limit, "local_ratelimit.v3.LocalRateLimit")]), &[backend.address]);
    let mut client = proxy.client();
    assert_eq!(client.ask(&get("/")).header("x-ratelimit-remaining"), Some("1"));
    assert_eq!(client.ask(&get("/")).status(), 200);
    let answer = client.ask(&get("/"));
    assert_eq!((answer.status(), answer.body.as_str()), (429, "local_rate_limited"));
    assert_eq!((answer.header("x-limited"), answer.header("x-ratelimit-limit")), (Some("yes"), Some("2")));
    proxy.told("RL");
}

#[test]
fn rate_limit_when_requests_count_apart_then_each_has_its_bucket() {
    let backend = Backend::echo();
    let share = json!({"default_value": {"numerator": 100}});
    let bucket = |most: u32| json!({"max_tokens": most, "fill_interval": "3600s"});
    let limit = json!({
        "stat_prefix": "l", "filter_enabled": share, "filter_enforced": share, "token_bucket": bucket(100),
        "descriptors": [{"entries": [{"key": "user", "value": "heavy"}], "token_bucket": bucket(1)}]
    });
    let mut routes = to_a();
    routes[0]["route"]["rate_limits"] =
        json!([{"actions": [{"request_headers": {"header_name": "x-user", "descriptor_key": "user"}}]}]);
    let proxy =
        proxy(table(routes), json!([entry("l", limit, "local_ratelimit.v3.LocalRateLimit")]), &[backend.address]);
    let status = |user: &str| proxy.client().ask(&with("/", &[("x-user", user)])).status();
    assert_eq!((status("heavy"), status("heavy"), status("light"), status("light")), (200, 429, 200, 200));
}

#[test]
fn header_mutation_when_levels_speak_then_all_are_made_the_most_general_last() {
    let backend = Backend::echo();
    let set = |value: &str| {
        let option = json!({"header": {"key": "x-who", "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"});
        json!({"mutations": {"request_mutations": [{"append": option}], "response_mutations": [{"append": option}]}})
    };
    let mut routes = to_a();
    routes[0]["typed_per_filter_config"] =
        json!({"m": setting(set("route"), "header_mutation.v3.HeaderMutationPerRoute")});
    let mut both = table(routes);
    both["virtual_hosts"][0]["typed_per_filter_config"] =
        json!({"m": setting(set("host"), "header_mutation.v3.HeaderMutationPerRoute")});
    let filters = json!([entry("m", set("filter"), "header_mutation.v3.HeaderMutation")]);
    let proxy = proxy(both, filters, &[backend.address]);
    let answer = proxy.get("/");
    assert_eq!(answer.header("x-who"), Some("host"));
    assert!(answer.body.contains("x-who: host"), "{}", answer.body);
}

#[test]
fn buffer_when_the_request_is_whole_then_it_goes_on_with_its_length() {
    let backend = Backend::echo();
    let filters = json!([entry("b", json!({"max_request_bytes": 10}), "buffer.v3.Buffer")]);
    let proxy = proxy(table(to_a()), filters, &[backend.address]);
    let mut client = proxy.client();
    client.send(b"POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n");
    assert_eq!(backend.connections.load(Ordering::SeqCst), 0);
    client.send(b"2\r\nde\r\n0\r\n\r\n");
    let answer = client.message(false).unwrap();
    assert!(answer.body.contains("content-length: 5") && answer.body.ends_with("abcde"), "{}", answer.body);
    let answer = client.ask("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 11\r\n\r\nabcdefghijk");
    assert_eq!((answer.status(), answer.body.as_str()), (413, "Payload Too Large"));
}

#[test]
fn health_check_when_asked_for_then_the_proxy_answers() {
    let backend = Backend::echo();
    let check =
        json!({"pass_through_mode": false, "headers": [{"name": ":path", "string_match": {"exact": "/healthz"}}]});
    let proxy = proxy(table(to_a()), json!([entry("h", check, "health_check.v3.HealthCheck")]), &[backend.address]);
    let answer = proxy.get("/healthz");
    assert_eq!((answer.status(), answer.body.as_str()), (200, ""));
    assert_eq!(backend.connections.load(Ordering::SeqCst), 0);
    assert_eq!(proxy.get("/").status(), 200);
}

#[test]
fn mutation_when_it_changes_queries_and_trailers_then_both_sides_see_it() {
    let backend = Backend::http(|request| {
        let line = request.head.lines().next().unwrap().to_owned();
        let size = line.len();
        format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{size:x}\r\n{line}\r\n0\r\nx-a: 1\r\nx-c: 3\r\n\r\n"
        )
    });
    let parameter = |key: &str, text: &str, action: &str| json!({"append": {"record": {"key": key, "value": text}, "action": action}});
    let own = json!({"mutations": {
        "query_parameter_mutations": [
            parameter("b", "%REQ(x-b)%", "OVERWRITE_IF_EXISTS"), parameter("n", "1", "ADD_IF_ABSENT"), {"remove": "gone"}
        ],
        "response_trailers_mutations": [{"remove": "x-a"}, {"append": {"header": {"key": "x-b", "value": "%RESP(x-r)%2"}}}]
    }});
    let of_route = json!({"mutations": {"response_trailers_mutations": [{"remove": "x-c"}]}});
    let routes = json!([{
        "match": {"prefix": "/"}, "route": {"cluster": "a"},
        "typed_per_filter_config": {"m": setting(of_route, "header_mutation.v3.HeaderMutationPerRoute")}
    }]);
    let filters = json!([entry("m", own, "header_mutation.v3.HeaderMutation")]);
    let proxy = proxy(table(routes), filters, &[backend.address]);
    let mut client = proxy.client();
    client.send(with("/p?gone=1&b=0&a=%20", &[("x-b", "x y&z")]).as_bytes());
    client.head().unwrap();
    let all = client.until(b"0\r\nx-b: 2\r\n\r\n").unwrap();
    assert!(all.contains("GET /p?a=%20&b=x%20y%26z&n=1 HTTP/1.1") && !all.contains("x-c"), "{all}");
}
