//! Envoy's statistics, and the pages of the admin server that tell them.

use super::configured::{Configured, filter, static_cluster};
use super::*;
use crate::admin::{self, View};
use crate::xds::State;
use serde_json::json;
use std::sync::{Mutex, OnceLock};

/// The admin server of a proxy.
fn admin(proxy: &Proxy) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let telemetry = proxy.telemetry.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let health = leno_runtime::http::Health::new();
            health.set_ready(true);
            let view = View {
                state: Arc::new(Mutex::new(State::new(""))),
                telemetry,
                overload: Arc::default(),
                store: CredentialStore::new(),
                connection: tokio::sync::watch::channel(Default::default()).1,
                health,
                workers: Arc::new(OnceLock::new()),
                changes: None,
                drain: Default::default(),
                stopped: Arc::default(),
                quit: Some(tokio_util::sync::CancellationToken::new()),
                pod: None,
                node: json!({"id": "n", "metadata": {"a": 5.0}}),
                begun: Instant::now(),
                logs: Default::default(),
                reset: Arc::default(),
            };
            let stop = tokio_util::sync::CancellationToken::new();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            admin::serve_at(listener.into(), &view, &stop);
            stop.cancelled().await;
        });
    });
    address
}

fn ask(at: SocketAddr, method: &str, path: &str) -> Message {
    Side::connect(at).ask(&format!("{method} {path} HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\n\r\n"))
}

#[test]
fn stats_when_requests_ended_then_envoys_names_tell_of_them() {
    let backend = Backend::http(|request| match request.head.contains("/bad") {
        true => "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n".to_owned(),
        false => ok("x"),
    });
    let proxy = Proxy::simple(&[backend.address]);
    let mut client = proxy.client();
    for path in ["/", "/", "/bad"] {
        client.ask(&get(path));
    }
    let at = admin(&proxy);
    eventually("the requests counted", || ask(at, "GET", "/stats").body.contains("http.http.downstream_rq_total: 3"));
    let page = ask(at, "GET", "/stats").body;
    for line in [
        "cluster.outbound|80||test.upstream_rq_total: 3",
        "cluster.outbound|80||test.upstream_rq_2xx: 2",
        "cluster.outbound|80||test.upstream_rq_503: 1",
        "cluster.outbound|80||test.upstream_cx_total: 1",
        "cluster.outbound|80||test.upstream_cx_active: 1",
        "cluster.outbound|80||test.membership_healthy: 1",
        "cluster.outbound|80||test.circuit_breakers.default.rq_open: 0",
        "http.http.downstream_rq_total: 3",
        "http.http.downstream_rq_5xx: 1",
        "http.http.downstream_cx_active: 1",
        "server.live: 1",
    ] {
        assert!(page.lines().any(|have| have == line), "{line} is not in\n{page}");
    }
    let used = ask(at, "GET", "/stats?usedonly&filter=test.upstream_rq_%5B0-9%5D").body;
    assert_eq!(used.lines().count(), 4, "{used}");
    let json: serde_json::Value =
        serde_json::from_str(&ask(at, "GET", "/stats?format=json&filter=rq_503").body).unwrap();
    assert_eq!(json["stats"][0]["value"], 1);
    let scraped = ask(at, "GET", "/stats/prometheus?usedonly").body;
    let wanted =
        "envoy_cluster_upstream_rq_xx{envoy_response_code_class=\"5\",envoy_cluster_name=\"outbound|80||test\"} 1";
    assert!(scraped.contains(wanted), "{scraped}");
    assert_eq!(ask(at, "POST", "/reset_counters").status(), 200);
    client.ask(&get("/"));
    // A request is counted when its answer is on its way.
    eventually("the request counted", || {
        let page = ask(at, "GET", "/stats").body;
        page.contains("http.http.downstream_rq_total: 1\n") && page.contains("downstream_cx_active: 1")
    });
    assert!(
        ask(at, "GET", "/stats/prometheus")
            .body
            .contains("downstream_rq_total{envoy_http_conn_manager_prefix=\"http\"} 4")
    );
    drop(client);
    eventually("the connection gone", || ask(at, "GET", "/stats").body.contains("downstream_cx_active: 0"));
}

#[test]
fn clusters_page_when_an_endpoint_answered_then_its_numbers_are_there() {
    let backend = Backend::http(|_| ok("x"));
    let proxy = Proxy::simple(&[backend.address]);
    assert_eq!(proxy.get("/").status(), 200);
    let at = admin(&proxy);
    let line = |stat: &str| format!("outbound|80||test::{}::{stat}", backend.address);
    for stat in ["rq_total::1", "rq_success::1", "rq_error::0", "cx_total::1", "health_flags::healthy", "weight::1"] {
        eventually(stat, || ask(at, "GET", "/clusters").body.lines().any(|have| have == line(stat)));
    }
    let json: serde_json::Value = serde_json::from_str(&ask(at, "GET", "/clusters?format=json").body).unwrap();
    assert_eq!(json["cluster_statuses"][0]["host_statuses"][0]["health_status"]["eds_health_status"], "HEALTHY");
    assert_eq!(ask(at, "GET", "/clusters?filter=other").body, "");
    // A cluster that is gone is told no more.
    proxy.publish(http(forward(Forward::default())), Vec::new());
    assert_eq!(ask(at, "GET", "/clusters").body, "");
}

#[test]
fn admin_pages_when_they_change_something_then_they_want_post() {
    let proxy = Proxy::simple(&[]);
    let at = admin(&proxy);
    for path in
        ["/quitquitquit", "/healthcheck/fail", "/drain_listeners", "/logging", "/reset_counters", "/cpuprofiler"]
    {
        assert_eq!(ask(at, "GET", path).status(), 405, "{path}");
    }
    // What changes nothing may be asked for either way, as of Envoy.
    for path in ["/stats", "/clusters", "/config_dump"] {
        assert_eq!(ask(at, "POST", path).status(), 200, "{path}");
    }
    for (method, path, status) in [
        ("POST", "/heapprofiler?enable=y", 501),
        ("POST", "/cpuprofiler", 400),
        ("GET", "/debug/pprof/profile?seconds=0", 400),
        ("POST", "/debug/pprof/profile", 405),
        ("POST", "/reset_counters", 200),
        ("POST", "/logging?level=loud", 400),
        ("POST", "/quitquitquit", 200),
        ("GET", "/config_dump?resource=foo", 404),
        ("GET", "/stats?filter=%5B", 400),
        ("GET", "/stats?format=xml", 400),
        ("POST", "/runtime_modify?a=b", 501),
        ("POST", "/runtime_modify", 400),
        ("GET", "/nope", 404),
        ("PUT", "/stats", 405),
        ("DELETE", "/quitquitquit", 405),
        ("GET", "/stats?type=bogus", 400),
        ("GET", "/stats?format=html", 400),
        ("GET", "/config_dump?mask=nonsense", 400),
        ("GET", "/server_info", 200),
        ("GET", "/memory", 200),
        ("GET", "/runtime", 200),
        ("GET", "/listeners?format=json", 200),
    ] {
        assert_eq!(ask(at, method, path).status(), status, "{method} {path}");
    }
    // As a form, the values are those of a `?`.
    let form = "POST /runtime_modify HTTP/1.1\r\nhost: t\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: 3\r\n\r\na=b";
    assert_eq!(Side::connect(at).ask(form).status(), 501);
    let missing = ask(at, "GET", "/nope").body;
    assert!(missing.starts_with("invalid path. admin commands are:\n"), "{missing}");
    assert!(missing.contains("\n  /quitquitquit (POST): ") && missing.contains("\n  /stats: "), "{missing}");
    let info: serde_json::Value = serde_json::from_str(&ask(at, "GET", "/server_info").body).unwrap();
    assert_eq!(info["node"].to_string(), r#"{"id":"n","metadata":{"a":5}}"#);
}

#[test]
fn cpu_profile_when_begun_and_ended_then_it_is_the_answer() {
    let _one = crate::profile::tests::ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let proxy = Proxy::simple(&[]);
    let at = admin(&proxy);
    assert_eq!(ask(at, "POST", "/cpuprofiler?enable=n").status(), 409, "none was begun");
    assert_eq!(ask(at, "POST", "/cpuprofiler?enable=y").status(), 200);
    assert_eq!(ask(at, "GET", "/debug/pprof/profile?seconds=1").status(), 409, "one at a time");
    assert_eq!(ask(at, "POST", "/cpuprofiler?enable=n&format=folded").status(), 200);
    let whole = ask(at, "GET", "/debug/pprof/profile?seconds=1&format=folded");
    assert_eq!(whole.status(), 200);
    let is_line = |line: &str| {
        line.rsplit_once(' ').is_some_and(|(calls, count)| !calls.is_empty() && count.parse::<u64>().is_ok())
    };
    assert!(whole.body.lines().all(is_line), "{}", whole.body);
}

#[test]
fn filters_when_they_decide_then_their_statistics_tell_how_often() {
    let backend = Backend::http(|_| ok("x"));
    let http = |name: &str, kind: &str, mut body: serde_json::Value| {
        body["@type"] = json!(format!("type.googleapis.com/envoy.extensions.filters.http.{kind}"));
        json!({"name": name, "typed_config": body})
    };
    let denied_with = |header: &str| {
        let header = json!({"header": {"name": header, "present_match": true}});
        json!({"action": "DENY", "policies": {"p": {"permissions": [header], "principals": [{"any": true}]}}})
    };
    let all = json!({"default_value": {"numerator": 100}});
    let manager = filter(
        "http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": "in",
            "http_filters": [
                http("fault", "fault.v3.HTTPFault", json!({"abort": {"header_abort": {}, "percentage": {"numerator": 100}}})),
                http("rbac", "rbac.v3.RBAC", json!({
                    "rules": denied_with("x-deny"), "shadow_rules": denied_with("x-shadow"), "shadow_rules_stat_prefix": "dry_",
                })),
                http("limit", "local_ratelimit.v3.LocalRateLimit", json!({
                    "stat_prefix": "few", "token_bucket": {"max_tokens": 2, "fill_interval": "600s"},
                    "filter_enabled": all, "filter_enforced": all,
                })),
                http("router", "router.v3.Router", json!({})),
            ],
            "route_config": {"name": "r", "virtual_hosts": [{"name": "h", "domains": ["*"], "routes": [
                {"match": {"prefix": "/"}, "route": {"cluster": "a"}}
            ]}]},
        }),
    );
    let it = Configured::start(
        json!({"filter_chains": [{"filters": [manager]}]}),
        &[static_cluster("a", &[backend.address])],
    );
    let mut client = it.proxy.client();
    for (header, status) in [
        ("x-envoy-fault-abort-request: 418", 418),
        ("x-deny: 1", 403),
        ("x-shadow: 1", 200),
        ("x-other: 1", 200),
        ("x-other: 1", 429),
    ] {
        assert_eq!(client.ask(&format!("GET / HTTP/1.1\r\nhost: t\r\n{header}\r\n\r\n")).status(), status, "{header}");
    }
    let told: std::collections::BTreeMap<String, u64> =
        it.context.counters.stats().into_iter().map(|stat| (stat.name, stat.value)).collect();
    for (name, value) in [
        ("http.in.fault.aborts_injected", 1),
        ("http.in.rbac.denied", 1),
        ("http.in.rbac.allowed", 3),
        ("http.in.rbac.dry_.shadow_denied", 1),
        ("http.in.rbac.dry_.shadow_allowed", 3),
        ("few.http_local_rate_limit.enabled", 3),
        ("few.http_local_rate_limit.ok", 2),
        ("few.http_local_rate_limit.rate_limited", 1),
        ("few.http_local_rate_limit.enforced", 1),
    ] {
        assert_eq!(told.get(name), Some(&value), "{name} in {told:?}");
    }
    // What filters answered is not the cluster's, as in Envoy.
    eventually("the requests counted", || {
        let stats = it.proxy.telemetry.stats(Vec::new());
        stats.iter().any(|stat| stat.name == "cluster.a.upstream_rq_completed" && stat.value == 2)
    });
}

#[test]
fn usedonly_when_a_gauge_is_zero_again_then_it_is_told_and_what_never_was_is_not() {
    let backend = Backend::echo();
    let proxy = Proxy::start(1, http(forward(Forward::default())), vec![cluster(&[backend.address])]);
    let at = admin(&proxy);
    let told = |name: &str| ask(at, "GET", "/stats?usedonly").body.lines().any(|line| line == format!("{name}: 0"));
    assert!(told("server.state") && !told("cluster.outbound|80||test.upstream_rq_active"));
    let mut client = proxy.client();
    assert_eq!(client.ask(&get("/")).status(), 200);
    // Requests are counted a moment after their answers are out.
    let cluster = "cluster.outbound|80||test";
    eventually("no request under way", || told(&format!("{cluster}.upstream_rq_active")));
    assert!(!told(&format!("{cluster}.circuit_breakers.high.cx_open")));
}

#[test]
fn stats_when_clients_of_http2_make_trouble_then_it_is_counted() {
    let proxy = Proxy::simple(&[]);
    let at = admin(&proxy);
    let greeting = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    // A request without a path is malformed and ends its connection; one that is reset ends for itself.
    for frames in [
        &b"\0\0\x02\x01\x05\0\0\0\x01\x82\x86"[..],
        b"\0\0\x06\x01\x04\0\0\0\x01\x82\x86\x84\x01\x01t\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08",
    ] {
        let mut client = proxy.client();
        client.send(&[&greeting[..], frames].concat());
        let stats = || ask(at, "GET", "/stats?filter=http2").body;
        let wanted = match frames.len() {
            11 => &["http2.rx_messaging_error: 1", "http2.goaway_sent: 1"][..],
            _ => &["http2.rx_reset: 1"],
        };
        eventually("the numbers", || wanted.iter().all(|line| stats().lines().any(|told| told == *line)));
    }
}

#[test]
fn stats_when_requests_end_before_they_are_there_then_it_is_told_why() {
    let backend = Backend::http(|request| match request.head.contains("/cut") {
        true => "HTTP/1.1 200 OK\r\ncontent-length: 9\r\nconnection: close\r\n\r\nx".to_owned(),
        false => ok("x"),
    });
    let proxy = Proxy::simple(&[backend.address]);
    let at = admin(&proxy);
    // No request, one that asks whether to go on, and one whose answer is cut.
    assert_eq!(proxy.client().ask("GET\r\n\r\n").status(), 400);
    let mut client = proxy.client();
    client
        .send(b"POST / HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    let told = client.rest();
    assert!(told.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200"), "{told}");
    let mut cut = proxy.client();
    cut.send(get("/cut").as_bytes());
    cut.rest();
    for line in [
        "http.http.downstream_rq_rx_reset: 2",
        "http.http.downstream_rq_tx_reset: 1",
        "http.http.downstream_rq_response_before_rq_complete: 1",
        "http.http.downstream_cx_protocol_error: 1",
        "http.http.downstream_rq_1xx: 1",
        "http.http.downstream_rq_completed: 4",
        "cluster.outbound|80||test.upstream_cx_protocol_error: 1",
        "cluster.outbound|80||test.upstream_rq_completed: 2",
    ] {
        eventually(line, || ask(at, "GET", "/stats").body.lines().any(|have| have == line));
    }
}

#[test]
fn stats_when_times_are_asked_for_in_buckets_then_each_has_its_count() {
    let backend = Backend::echo();
    let proxy = Proxy::simple(&[backend.address]);
    let at = admin(&proxy);
    assert_eq!(proxy.get("/").status(), 200);
    let page =
        |form: &str| ask(at, "GET", &format!("/stats?filter=http.downstream_rq_time$&histogram_buckets={form}")).body;
    eventually("the time counted", || page("cumulative").trim_end().ends_with("(0,1)"));
    let counts = |form: &str| {
        let page = page(form);
        let (name, told) = page.trim_end().split_once(": ").unwrap();
        assert_eq!(name, "http.http.downstream_rq_time");
        told.split(' ').map(|bucket| bucket.split_once("(0,").unwrap().1 == "1)").collect::<Vec<_>>()
    };
    assert!(counts("cumulative").is_sorted());
    assert_eq!(counts("disjoint").into_iter().filter(|one| *one).count(), 1);
    let json = ask(at, "GET", "/stats?format=json&filter=http.downstream_rq_time$&histogram_buckets=disjoint").body;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let buckets = json["stats"][0]["histograms"][0]["buckets"].as_array().unwrap();
    assert_eq!(buckets.iter().map(|bucket| bucket["cumulative"].as_u64().unwrap()).sum::<u64>(), 1);
    assert_eq!(ask(at, "GET", "/stats?histogram_buckets=none_such").status(), 400);
}

#[test]
fn grpc_when_calls_end_then_messages_are_counted_and_the_status_in_the_trailers_tells_of_the_endpoint() {
    let backend = Backend::http(|request| {
        let status = request.head.lines().find_map(|line| line.strip_prefix("x-want: ")).unwrap_or_default().to_owned();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n";
        format!("{head}6\r\n\0\0\0\0\u{1}a\r\n5\r\n\0\0\0\0\0\r\n0\r\ngrpc-status: {status}\r\n\r\n")
    });
    let http = |name: &str, kind: &str, mut body: serde_json::Value| {
        body["@type"] = json!(format!("type.googleapis.com/envoy.extensions.filters.http.{kind}"));
        json!({"name": name, "typed_config": body})
    };
    let manager = filter(
        "http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": "in",
            "http_filters": [
                http("grpc", "grpc_stats.v3.FilterConfig", json!({"stats_for_all_methods": true})),
                http("router", "router.v3.Router", json!({})),
            ],
            "route_config": {"name": "r", "virtual_hosts": [{"name": "h", "domains": ["*"], "routes": [
                {"match": {"prefix": "/"}, "route": {"cluster": "a", "prefix_rewrite": "/elsewhere/"}}
            ]}]},
        }),
    );
    let mut cluster = static_cluster("a", &[backend.address]);
    cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http_protocol_options": {"enable_trailers": true}},
    }});
    let it = Configured::start(json!({"filter_chains": [{"filters": [manager]}]}), &[cluster]);
    let mut client = it.proxy.client();
    for status in [0, 5, 14, 99] {
        let call = format!(
            "POST /s.S/M HTTP/1.1\r\nhost: t\r\ncontent-type: application/grpc\r\nte: trailers\r\nx-want: {status}\r\n\
             content-length: 5\r\n\r\n\0\0\0\0\0"
        );
        assert_eq!(client.ask(&call).status(), 200);
    }
    let told = || -> std::collections::BTreeMap<String, u64> {
        it.context.counters.stats().into_iter().map(|stat| (stat.name, stat.value)).collect()
    };
    for (name, value) in [
        ("total", 4),
        ("success", 1),
        ("failure", 3),
        ("99", 1),
        ("request_message_count", 4),
        ("response_message_count", 8),
    ] {
        eventually(name, || told().get(&format!("cluster.a.grpc.s.S.M.{name}")) == Some(&value));
    }
    let at = admin(&it.proxy);
    for stat in ["rq_success::2", "rq_error::2"] {
        let line = format!("a::{}::{stat}", backend.address);
        eventually(stat, || ask(at, "GET", "/clusters").body.lines().any(|have| have == line));
    }
}
