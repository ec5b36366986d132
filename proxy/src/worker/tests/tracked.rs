//! Statistics that a configuration asks for, or gives another name.

use super::configured::{Configured, filter, static_cluster};
use super::*;
use crate::config::StringMatch;
use crate::telemetry::display::{Display, Shown};
use serde_json::json;
use std::collections::BTreeMap;

pub(super) fn numbers(telemetry: &Telemetry) -> BTreeMap<String, u64> {
    telemetry.stats(Vec::new()).into_iter().map(|stat| (stat.name, stat.value)).collect()
}

#[test]
fn statistics_when_they_are_asked_for_then_they_are_there_under_the_name_that_is_wanted() {
    let backend = Backend::http(|request| match request.head.starts_with("GET /elsewhere ") {
        true => "HTTP/1.1 302 Found\r\nlocation: http://t/here\r\ncontent-length: 0\r\n\r\n".to_owned(),
        false => ok("x"),
    });
    let http = |name: &str, kind: &str, mut body: serde_json::Value| {
        body["@type"] = json!(format!("type.googleapis.com/envoy.extensions.filters.http.{kind}"));
        json!({"name": name, "typed_config": body})
    };
    let gzip = json!({"name": "text", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip"
    }});
    let rules = json!({"policies": {"p": {"permissions": [{"any": true}], "principals": [{"any": true}]}}});
    let manager = filter(
        "http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": "in",
            "http_filters": [
                http("rbac", "rbac.v3.RBAC", json!({"rules": rules, "track_per_rule_stats": true})),
                http("compressor", "compressor.v3.Compressor", json!({"compressor_library": gzip})),
                http("router", "router.v3.Router", json!({})),
            ],
            "route_config": {"name": "r", "virtual_hosts": [{"name": "h", "domains": ["*"], "routes": [
                {"match": {"prefix": "/"}, "route": {"cluster": "a", "internal_redirect_policy": {}}}
            ]}]},
        }),
    );
    let mut cluster = static_cluster("a", &[backend.address]);
    cluster["alt_stat_name"] = json!("other:name");
    cluster["max_requests_per_connection"] = json!(2);
    cluster["track_cluster_stats"] =
        json!({"timeout_budgets": true, "request_response_sizes": true, "per_endpoint_stats": true});
    let it = Configured::start(json!({"filter_chains": [{"filters": [manager]}]}), &[cluster]);
    let mut client = it.proxy.client();
    for path in ["/", "/", "/elsewhere"] {
        assert_eq!(client.ask(&get(path)).status(), 200, "{path}");
    }
    let telemetry = it.proxy.telemetry.clone().telling(it.context.counters.clone());
    let (endpoint, listener) =
        (backend.address.to_string().replace(':', "_"), it.address(0).to_string().replace(':', "_"));
    let wanted = [
        ("cluster.other_name.upstream_rq_total".to_owned(), 4),
        ("cluster.other_name.upstream_rq_completed".to_owned(), 3),
        ("cluster.other_name.upstream_internal_redirect_succeeded_total".to_owned(), 1),
        ("cluster.other_name.upstream_internal_redirect_failed_total".to_owned(), 0),
        ("cluster.other_name.upstream_cx_max_requests".to_owned(), 2),
        ("cluster.other_name.membership_change".to_owned(), 1),
        ("cluster.other_name.lb_healthy_panic".to_owned(), 0),
        (format!("cluster.other_name.endpoint.{endpoint}.rq_total"), 4),
        (format!("listener.{listener}.http.in.downstream_rq_2xx"), 3),
        (format!("listener.{listener}.http.in.downstream_rq_completed"), 3),
        ("http.in.rbac.policy.p.allowed".to_owned(), 4),
        ("http.in.compressor.text.gzip.content_length_too_small".to_owned(), 3),
        ("http.in.compressor.text.gzip.not_compressed".to_owned(), 3),
    ];
    let is_there = |told: &BTreeMap<String, u64>| wanted.iter().all(|(name, value)| told.get(name) == Some(value));
    let begun = Instant::now();
    while !is_there(&numbers(&telemetry)) {
        assert!(begun.elapsed() < Duration::from_secs(10), "{wanted:?} is not all in {:?}", numbers(&telemetry));
        thread::yield_now();
    }
    let times: BTreeMap<String, (u64, u64)> =
        telemetry.times().into_iter().map(|one| (one.name, (one.sum.count(), one.sum.sum_thousandths))).collect();
    let count = |name: &str| times.get(&format!("cluster.other_name.{name}")).map(|(count, _)| *count);
    assert_eq!(count("upstream_rq_timeout_budget_percent_used"), Some(4), "{times:?}");
    assert_eq!(count("upstream_rq_headers_size"), Some(4));
    assert_eq!(count("external.upstream_rq_time"), Some(3));
    assert_eq!(times.get("cluster.other_name.upstream_rs_body_size"), Some(&(3, 3000)));
    // What is not to be shown is not.
    let only = vec![StringMatch::Prefix("cluster.other_name.upstream_rq_t".into())];
    let few = telemetry.showing(Arc::new(Display { shown: Shown::Only(only), ..Display::default() }));
    let names: Vec<String> = numbers(&few).into_keys().collect();
    assert_eq!(
        names,
        [
            "cluster.other_name.upstream_rq_timeout",
            "cluster.other_name.upstream_rq_total",
            "cluster.other_name.upstream_rq_tx_reset"
        ]
    );
}

#[test]
fn connections_when_endpoints_end_them_or_refuse_them_then_it_is_told_who_did() {
    let backend = Backend::http(|request| match request.head.starts_with("GET /last ") {
        true => "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".to_owned(),
        false => ok("x"),
    });
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = Proxy::simple(&[backend.address]);
    assert_eq!(proxy.get("/last").status(), 200);
    let refused = Proxy::simple(&[dead]);
    assert_eq!(refused.get("/").status(), 503);
    for (proxy, stat, value) in [
        (&proxy, "upstream_cx_destroy_local", 1),
        (&proxy, "upstream_cx_destroy_remote_with_active_rq", 0),
        (&refused, "upstream_cx_destroy_remote", 1),
        (&refused, "upstream_cx_connect_fail", 1),
        (&refused, "upstream_cx_http1_total", 1),
    ] {
        let name = format!("cluster.outbound|80||test.{stat}");
        eventually(&name, || numbers(&proxy.telemetry).get(&name) == Some(&value));
    }
}
