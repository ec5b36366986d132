//! Conversions of clusters, written as JSON.

use super::*;
use crate::config::{
    DnsFamily, DnsName, Endpoint, Eyeballs, Fallback, HashFunction, Health, LbPolicy, Limits, Probe, RingHash,
    SlowStart, Spread, ZoneAware,
};
use serde_json::{Value, json};
use std::time::Duration;

fn convert(value: Value, endpoints: Value) -> Result<Arc<Cluster>, Refused> {
    let mut context = Context::new("cluster.local");
    let template = template(&mut context, leno_xds::json::from_value(&value).unwrap())?;
    let endpoints = template.endpoints(&mut context, leno_xds::json::from_value(&endpoints).unwrap())?;
    Ok(template.build(endpoints, &WorkloadLabels::unknown()))
}

fn eds(more: Value) -> Value {
    let mut value = json!({"name": "a", "type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}}});
    value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    value
}

fn with(more: Value) -> Result<Arc<Cluster>, Refused> {
    convert(eds(more), json!({}))
}

fn extension(name: &str, config: Value) -> Value {
    let mut typed = json!({"@type": format!("type.googleapis.com/envoy.extensions.load_balancing_policies.{name}")});
    typed.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    json!({"policies": [{"typed_extension_config": {"name": "x", "typed_config": typed}}]})
}

#[test]
fn cluster_when_policies_are_named_or_extensions_then_both_mean_the_same() {
    let ring = LbPolicy::RingHash(RingHash { min_size: 10, max_size: 20, function: HashFunction::Murmur2 });
    let named = json!({"minimum_ring_size": 10, "maximum_ring_size": 20, "hash_function": "MURMUR_HASH_2"});
    let typed = extension("ring_hash.v3.RingHash", named.clone());
    assert_eq!(with(json!({"lb_policy": "RING_HASH", "ring_hash_lb_config": named})).unwrap().policy, ring);
    let cluster = with(json!({"load_balancing_policy": typed})).unwrap();
    assert_eq!((cluster.policy, cluster.balancing.panic_threshold), (ring, 50));
    let maglev = LbPolicy::Maglev { table_size: 65537 };
    assert_eq!(with(json!({"lb_policy": "MAGLEV"})).unwrap().policy, maglev);
    let inner = extension("maglev.v3.Maglev", json!({}));
    let locality = extension("wrr_locality.v3.WrrLocality", json!({"endpoint_picking_policy": inner}));
    let cluster = with(json!({"load_balancing_policy": locality})).unwrap();
    assert_eq!((cluster.policy, cluster.balancing.by_locality), (maglev, true));
    let all = extension("least_request.v3.LeastRequest", json!({"selection_method": "FULL_SCAN"}));
    assert_eq!(with(json!({"load_balancing_policy": all})).unwrap().policy, LbPolicy::LeastOfAll);
    let slow = json!({"slow_start_window": "60s", "min_weight_percent": {"value": 20}});
    let cluster =
        with(json!({"lb_policy": "ROUND_ROBIN", "round_robin_lb_config": {"slow_start_config": slow}})).unwrap();
    let expected = SlowStart { window: Duration::from_secs(60), aggression: 1.0, min_weight: 0.2 };
    assert_eq!(cluster.balancing.slow_start, Some(expected));
}

#[test]
fn zones_when_they_are_named_or_in_an_extension_then_their_settings_are_known() {
    let zones = |value: Value| with(value).unwrap().balancing.zones;
    assert_eq!(zones(json!({})), ZoneAware { enabled: 100, min_size: 6, force: None, by_weight: false });
    let named = json!({"routing_enabled": {"value": 49.6}, "min_cluster_size": 2});
    let usual = ZoneAware::default();
    let expected = ZoneAware { enabled: 50, min_size: 2, ..usual };
    assert_eq!(zones(json!({"common_lb_config": {"zone_aware_lb_config": named}})), expected);
    for policy in ["round_robin.v3.RoundRobin", "least_request.v3.LeastRequest", "random.v3.Random"] {
        let of = |config: Value| {
            let config = json!({"locality_lb_config": {"zone_aware_lb_config": config}});
            zones(json!({"load_balancing_policy": extension(policy, config)}))
        };
        assert_eq!(of(named.clone()), expected);
        assert_eq!(of(json!({"force_local_zone": {}})), ZoneAware { force: Some(1), ..usual });
        let forced = json!({"force_local_zone": {"min_size": 4}, "force_locality_direct_routing": true});
        assert_eq!(of(forced), ZoneAware { force: Some(4), ..usual });
        assert_eq!(of(json!({"force_locality_direct_routing": true})), ZoneAware { force: Some(1), ..usual });
        assert!(of(json!({"locality_basis": "HEALTHY_HOSTS_WEIGHT"})).by_weight);
    }
}

#[test]
fn endpoints_when_the_cluster_is_that_of_the_proxies_then_they_have_no_later_priorities() {
    let mut context = Context::new("cluster.local");
    let id = context.cluster("a").unwrap();
    context.home = Some((id, None));
    let mut take = |name: &str, priority: u32| {
        let value = json!({"name": name, "type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}}});
        let template = template(&mut context, leno_xds::json::from_value(&value).unwrap())?;
        let endpoints = json!({"endpoints": [{"priority": priority}]});
        template.endpoints(&mut context, leno_xds::json::from_value(&endpoints).unwrap())
    };
    assert!(take("a", 0).is_ok() && take("b", 1).is_ok());
    assert_eq!(take("a", 1).unwrap_err().field, "endpoints[0].priority");
}

#[test]
fn aggregate_when_it_names_no_clusters_or_chooses_otherwise_then_it_is_refused_by_its_path() {
    let aggregate = |clusters: Value, mut more: Value| {
        let kind = "type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig";
        let own = json!({"@type": kind, "clusters": clusters});
        more["name"] = json!("all");
        more["cluster_type"] = json!({"name": "envoy.clusters.aggregate", "typed_config": own});
        let mut context = Context::new("cluster.local");
        let ids = [context.cluster("a").unwrap(), context.cluster("b").unwrap()];
        let template = template(&mut context, leno_xds::json::from_value(&more).unwrap());
        template.map(|template| (template.cluster.kind, *template.cluster.members == ids))
    };
    let provided = || json!({"lb_policy": "CLUSTER_PROVIDED"});
    assert_eq!(aggregate(json!(["a", "b"]), provided()), Ok((ClusterKind::Aggregate, true)));
    for (clusters, more, path) in [
        (json!([]), provided(), "cluster_type.typed_config.clusters"),
        (json!(["a", ""]), provided(), "cluster_type.typed_config.clusters[1]"),
        (json!(["a"]), json!({"lb_policy": "RANDOM"}), "lb_policy"),
        (json!(["a"]), json!({"lb_policy": "CLUSTER_PROVIDED", "load_assignment": {}}), "load_assignment"),
    ] {
        assert_eq!(aggregate(clusters, more).unwrap_err().field, path);
    }
}

#[test]
fn cluster_when_a_policy_cannot_be_put_in_force_then_it_is_refused_by_its_path() {
    for (value, path) in [
        (json!({"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 10}}), "maglev_lb_config.table_size"),
        (json!({"lb_subset_config": {"locality_weight_aware": true}}), "lb_subset_config.locality_weight_aware"),
        (json!({"lb_policy": "CLUSTER_PROVIDED"}), "lb_policy"),
        (json!({"load_balancing_policy": {}}), "load_balancing_policy.policies"),
        (
            json!({"common_lb_config": {"consistent_hashing_lb_config": {"hash_balance_factor": 50}}}),
            "common_lb_config.consistent_hashing_lb_config.hash_balance_factor",
        ),
        (
            json!({"preconnect_policy": {"per_upstream_preconnect_ratio": 2}}),
            "preconnect_policy.per_upstream_preconnect_ratio",
        ),
        (json!({"outlier_detection": {"max_ejection_percent": 101}}), "outlier_detection.max_ejection_percent"),
    ] {
        assert_eq!(with(value).unwrap_err().field, path);
    }
}

#[test]
fn cluster_when_it_has_settings_of_another_policy_then_they_have_no_effect() {
    let cluster = with(json!({"lb_policy": "RANDOM", "maglev_lb_config": {"table_size": 10}})).unwrap();
    assert_eq!(cluster.policy, LbPolicy::Random);
    let slow = json!({"round_robin_lb_config": {"slow_start_config": {"aggression": {"default_value": 2, "runtime_key": "a"}}}});
    assert_eq!(with(slow).unwrap().balancing.slow_start, None, "without a window nobody starts slowly");
}

#[test]
fn cluster_when_breakers_are_set_for_priorities_then_each_has_its_own_and_the_rest_are_envoys() {
    let cluster = with(json!({"circuit_breakers": {"thresholds": [
        {"priority": "HIGH", "max_requests": 7},
        {"max_connections": 3, "retry_budget": {}}
    ]}}))
    .unwrap();
    assert_eq!(cluster.high_limits, Limits { requests: 7, ..Limits::default() });
    assert_eq!((cluster.limits.connections, cluster.limits.requests), (3, 1024));
    assert_eq!(cluster.limits.retry_budget.unwrap().percent, 20.0);
}

#[test]
fn endpoints_when_they_say_more_than_addresses_then_it_is_kept() {
    let endpoint = json!({
        "endpoint": {
            "address": {"socket_address": {"address": "198.18.0.1", "port_value": 80}},
            "hostname": "one.test",
            "health_check_config": {"port_value": 81, "hostname": "check.test"}
        },
        "health_status": "DEGRADED",
        "metadata": {"filter_metadata": {"envoy.lb": {"stage": "prod", "number": 1}}}
    });
    let assignment = json!({"cluster_name": "a", "endpoints": [{
        "locality": {"region": "r", "zone": "z"}, "load_balancing_weight": 7, "priority": 2, "lb_endpoints": [endpoint]
    }], "policy": {
        "overprovisioning_factor": 200,
        "drop_overloads": [{"category": "x", "drop_percentage": {"numerator": 25}}]
    }});
    let subsets = json!({"fallback_policy": "ANY_ENDPOINT", "subset_selectors": [{"keys": ["stage", "number"]}]});
    let cluster = convert(eds(json!({"lb_subset_config": subsets})), assignment).unwrap();
    assert_eq!(cluster.spread, Spread { overprovisioning: 200, weighted_health: false, drop: 0.25 });
    let [endpoint] = &cluster.endpoints[..] else { panic!("one endpoint") };
    assert_eq!((endpoint.health, endpoint.priority, endpoint.locality.weight), (Health::Degraded, 2, Some(7)));
    assert_eq!((&*endpoint.locality.zone, endpoint.hostname.as_deref()), ("z", Some("one.test")));
    let check = endpoint.check.as_ref().unwrap();
    assert_eq!((check.port, check.hostname.as_deref()), (Some(81), Some("check.test")));
    assert!(endpoint.labels.get("stage").is_some() && endpoint.labels.get("number").is_some());
    let subsets = cluster.balancing.subsets.as_ref().unwrap();
    assert_eq!((&subsets.fallback, &*subsets.selectors[0].keys[0]), (&Fallback::Any, "number"));
}

#[test]
fn cluster_when_endpoints_are_names_then_they_are_kept_to_be_looked_up() {
    let name = |name: &str| json!({"endpoint": {"address": {"socket_address": {"address": name, "port_value": 8080}}}});
    let assignment =
        json!({"cluster_name": "a", "endpoints": [{"lb_endpoints": [name("one.test"), name("two.test")]}]});
    let cluster = json!({
        "name": "a", "type": "STRICT_DNS", "dns_lookup_family": "V4_ONLY", "dns_refresh_rate": "3s",
        "dns_failure_refresh_rate": {"base_interval": "1s"}, "load_assignment": assignment
    });
    let converted = convert(cluster.clone(), json!({})).unwrap();
    let dns = converted.dns.as_ref().unwrap();
    assert_eq!((dns.family, dns.refresh, dns.logical), (DnsFamily::V4Only, Duration::from_secs(3), false));
    assert_eq!(dns.failure_refresh, Some((Duration::from_secs(1), Duration::from_secs(10))));
    let names: Vec<&str> = dns.names.iter().map(|name| &*name.name).collect();
    assert_eq!(names, ["one.test", "two.test"]);
    let endpoint = Dns::endpoint(&dns.names[0], [192, 0, 2, 1].into());
    assert_eq!((endpoint.address, endpoint.hostname.as_deref()), (([192, 0, 2, 1], 8080).into(), Some("one.test")));
    assert!(converted.endpoints.is_empty());
    let mut own = cluster.clone();
    for field in ["type", "dns_lookup_family", "dns_refresh_rate", "dns_failure_refresh_rate"] {
        own.as_object_mut().unwrap().remove(field);
    }
    let resolver = json!({"name": "c", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
        "resolvers": [{"socket_address": {"address": "192.0.2.53", "port_value": 0}}],
    }});
    own["cluster_type"] = json!({"name": "envoy.cluster.dns", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster",
        "dns_lookup_family": "V4_ONLY", "dns_refresh_rate": "3s", "dns_failure_refresh_rate": {"base_interval": "1s"},
        "dns_min_refresh_rate": "2s", "typed_dns_resolver_config": resolver,
    }});
    let of_extension = convert(own.clone(), json!({})).unwrap();
    let wanted = Dns { least: Duration::from_secs(2), servers: vec![([192, 0, 2, 53], 53).into()], ..(**dns).clone() };
    assert_eq!(format!("{:?}", of_extension.dns), format!("{:?}", Some(Arc::new(wanted))), "both mean the same");
    own["cluster_type"]["typed_config"]["all_addresses_in_single_endpoint"] = json!(true);
    assert_eq!(convert(own, json!({})).unwrap_err().field, "load_assignment", "one endpoint has one name");
    let mut logical = cluster;
    logical["type"] = json!("LOGICAL_DNS");
    assert_eq!(convert(logical, json!({})).unwrap_err().field, "load_assignment");
}

#[test]
fn cluster_when_it_checks_health_then_what_is_asked_is_kept() {
    let check = |more: Value| {
        let mut value = json!({"timeout": "1s", "interval": "2s", "unhealthy_threshold": 3, "healthy_threshold": 2});
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        with(json!({"health_checks": [value]}))
    };
    let cluster = check(json!({"http_health_check": {
        "path": "/healthz", "expected_statuses": [{"start": 200, "end": 300}], "codec_client_type": "HTTP2",
        "request_headers_to_add": [{"header": {"key": "X-Check", "value": "1"}}]
    }}))
    .unwrap();
    let check_of = &cluster.checks[0];
    assert_eq!(
        (check_of.unhealthy_interval, check_of.no_traffic_interval),
        (Duration::from_secs(2), Duration::from_secs(60))
    );
    let Probe::Http(http) = &check_of.probe else { panic!("HTTP") };
    assert_eq!((http.expected.as_slice(), http.http2, http.headers.len()), ([(200, 300)].as_slice(), true, 1));
    let cluster =
        check(json!({"tcp_health_check": {"send": {"text": "0aff"}, "receive": [{"binary": "b2s="}]}})).unwrap();
    let Probe::Tcp { send, receive } = &cluster.checks[0].probe else { panic!("TCP") };
    assert_eq!((&send[..], &receive[0][..]), (&[0x0a, 0xff][..], &b"ok"[..]));
    let refused = check(json!({"http_health_check": {"path": "/", "expected_statuses": [{"start": 300, "end": 200}]}}));
    assert_eq!(refused.unwrap_err().field, "health_checks[0].http_health_check.expected_statuses[0]");
}

#[test]
fn cluster_when_it_says_which_statuses_are_failures_then_only_those_are() {
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let header = |name: &str| {
        json!({"http_response_headers_match": {"headers": [
            {"name": name, "string_match": {"safe_regex": {"regex": "5[0-9][0-9]|429"}}}
        ]}})
    };
    let with_matcher = |name: &str| {
        with(json!({
            "outlier_detection": {},
            "typed_extension_protocol_options": {options: {
                "@type": format!("type.googleapis.com/{options}"),
                "outlier_detection": {"error_matcher": header(name)},
                "explicit_http_config": {"http_protocol_options": {}}
            }}
        }))
    };
    let cluster = with_matcher(":status").unwrap();
    let failures = cluster.outliers.as_ref().unwrap().failures.as_ref().unwrap();
    assert_eq!([200, 429, 430, 503].map(|status| failures.contains(status)), [false, true, false, true]);
    assert!(with_matcher("x-other").unwrap_err().field.ends_with("headers[0].name"));
}

#[test]
fn sockets_when_a_cluster_says_little_then_the_rest_is_as_for_all() {
    let from = |address: &str| json!({"address": address, "port_value": 0});
    let option = |name: i32, state: &str| json!({"level": 1, "name": name, "int_value": 1, "state": state});
    let mut all = json!({"source_address": from("127.0.0.6")});
    all["socket_options"] = json!([option(9, "STATE_PREBIND"), option(2, "STATE_LISTENING")]);
    let mut context = Context::new("cluster.local");
    context.sockets = Sockets::new(leno_xds::json::from_value(&all).unwrap()).unwrap();
    let mut with = |own: Value| {
        let template = template(&mut context, leno_xds::json::from_value(&eds(own)).unwrap()).unwrap();
        let names: Vec<i32> = template.cluster.socket_options.iter().map(|(_, name, _)| *name).collect();
        (template.cluster.bind.and_then(|bind| bind.v4).map(|source| source.octets()[3]), names)
    };
    assert_eq!(with(json!({})), (Some(6), vec![9]));
    assert_eq!(with(json!({"upstream_bind_config": {"source_address": from("127.0.0.7")}})), (Some(7), vec![9]));
    let own = json!({"upstream_bind_config": {"socket_options": [option(15, "STATE_PREBIND")]}});
    assert_eq!(with(own), (None, vec![15]));
}

#[test]
fn limits_when_they_are_of_each_endpoint_then_the_first_of_a_priority_counts() {
    let one = |more: Value| json!({"circuit_breakers": {"per_host_thresholds": more}});
    let cluster = with(one(json!([{"max_connections": 2}, {"priority": "HIGH"}, {"max_connections": 3}]))).unwrap();
    assert_eq!((cluster.limits.per_host, cluster.high_limits.per_host), (2, u32::MAX));
    let refused = with(one(json!([{"max_connections": 2}, {"priority": 7}]))).unwrap_err();
    assert_eq!(refused.field, "circuit_breakers.per_host_thresholds[1].priority");
}

#[test]
fn endpoint_when_it_has_several_addresses_then_they_are_tried_in_the_clusters_order() {
    let place = |ip: &str| json!({"address": {"socket_address": {"address": ip, "port_value": 80}}});
    let with = |kind: &str, options: Value, count: usize| {
        let mut endpoint = place("1.1.1.1");
        endpoint["additional_addresses"] =
            vec![place("1.1.1.2"), place("::1")].into_iter().cycle().take(count).collect();
        let assignment = json!({"cluster_name": "a", "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]});
        let cluster =
            json!({"name": "a", "type": kind, "upstream_connection_options": options, "load_assignment": assignment});
        convert(cluster, json!({}))
    };
    let addresses = |options: Value| -> Vec<String> {
        let cluster = with("STATIC", options, 2).unwrap();
        assert_eq!(cluster.endpoints[0].address, ([1, 1, 1, 1], 80).into(), "by this it is known");
        cluster.endpoints[0].addresses.iter().map(|address| address.ip().to_string()).collect()
    };
    assert_eq!(addresses(json!({})), ["1.1.1.1", "::1", "1.1.1.2"]);
    let v6 = json!({"happy_eyeballs_config": {"first_address_family_version": "V6"}});
    assert_eq!(addresses(v6), ["::1", "1.1.1.1", "1.1.1.2"]);
    let none = with("STATIC", json!({"happy_eyeballs_config": {"first_address_family_count": 0}}), 1).unwrap_err();
    assert_eq!(none.field, "upstream_connection_options.happy_eyeballs_config.first_address_family_count");
    let field = "load_assignment.endpoints[0].lb_endpoints[0].endpoint.additional_addresses";
    assert_eq!(with("STRICT_DNS", json!({}), 1).unwrap_err().field, field, "a name stands for all of them");
    assert_eq!(with("STATIC", json!({}), 64).unwrap_err().field, field, "too many");
    assert!(with("STATIC", json!({}), 0).unwrap().endpoints[0].addresses.is_empty());
}

#[test]
fn endpoint_when_its_name_has_several_addresses_then_it_is_one_endpoint() {
    let endpoint = Arc::new(Endpoint::new(([0, 0, 0, 0], 80).into()));
    let name = DnsName { name: "one.test".into(), endpoint };
    let ips: Vec<std::net::IpAddr> = ["1.1.1.1", "1.1.1.2", "::1"].map(|ip| ip.parse().unwrap()).into();
    let made = Dns::one_endpoint(&name, &ips, Eyeballs::default()).unwrap();
    assert_eq!((made.address, made.addresses.len()), (([1, 1, 1, 1], 80).into(), 3));
    assert_eq!(made.addresses[1], "[::1]:80".parse().unwrap());
    let other = DnsName { endpoint: Arc::new(Endpoint::new(([0, 0, 0, 0], 81).into())), ..name.clone() };
    let again = Dns::again(&other, &made);
    assert_eq!((again.address, again.addresses[1]), (([1, 1, 1, 1], 81).into(), "[::1]:81".parse().unwrap()));
    assert!(Dns::one_endpoint(&name, &ips[..1], Eyeballs::default()).unwrap().addresses.is_empty());
    assert!(Dns::one_endpoint(&name, &[], Eyeballs::default()).is_none());
}

#[test]
fn endpoint_when_it_is_a_unix_socket_then_it_has_a_path_where_names_are_not_looked_up() {
    let at = |path: &str| {
        let endpoint = json!({"endpoint": {"address": {"pipe": {"path": path}}}});
        json!({"cluster_name": "a", "endpoints": [{"lb_endpoints": [endpoint]}]})
    };
    let cluster = convert(eds(json!({})), at("@app")).unwrap();
    assert_eq!(cluster.endpoints[0].pipe.as_deref(), Some("@app"));
    let named = json!({"name": "a", "type": "STRICT_DNS", "load_assignment": at("/run/app.sock")});
    let refused = convert(named, json!({})).unwrap_err();
    assert!(refused.field.ends_with("endpoint.address.pipe"), "{refused}");
    assert!(convert(eds(json!({})), at("")).unwrap_err().field.ends_with("endpoint.address.pipe.path"));
}

#[test]
fn health_check_when_its_events_are_wanted_then_they_have_a_place_or_are_refused_by_name() {
    let check = |more: Value| {
        let mut check = json!({
            "timeout": "1s", "interval": "1s", "unhealthy_threshold": 1, "healthy_threshold": 1, "tcp_health_check": {},
        });
        check.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        with(json!({"health_checks": [check]})).map(|cluster| cluster.checks[0].log.clone())
    };
    let sink = |kind: &str, path: &str| {
        let kind = format!("type.googleapis.com/envoy.extensions.{kind}");
        json!([{"name": "x", "typed_config": {"@type": kind, "event_log_path": path}}])
    };
    let file = sink("health_check.event_sinks.file.v3.HealthCheckEventFileSink", "/tmp/b");
    assert!(check(json!({"always_log_health_check_failures": true})).unwrap().is_none(), "nowhere to write");
    let log = check(json!({
        "event_log_path": "/tmp/a", "event_logger": file, "always_log_health_check_failures": true,
    }));
    let log = log.unwrap().unwrap();
    assert_eq!((log.sinks.len(), log.failures, log.successes), (2, true, false));
    for (more, path) in [
        (json!({"event_service": {}}), "health_checks[0].event_service"),
        (json!({"event_logger": [{"name": "x"}]}), "health_checks[0].event_logger[0].typed_config"),
    ] {
        let error = check(more).unwrap_err().to_string();
        assert!(error.contains(path), "{error}");
    }
}

#[test]
fn statistics_of_a_cluster_when_named_or_tracked_then_that_is_in_force() {
    let cluster = with(json!({"alt_stat_name": "b", "track_timeout_budgets": true})).unwrap();
    assert_eq!((&*cluster.name, &*cluster.observability_name), ("a", "b"));
    assert_eq!(cluster.track, Track { budgets: true, sizes: false, endpoints: false });
    let cluster = with(json!({"track_cluster_stats": {"request_response_sizes": true}})).unwrap();
    assert_eq!((&*cluster.observability_name, cluster.track.sizes, cluster.track.budgets), ("a", true, false));
    let error = with(json!({"stats_matcher": {"reject_all": true}})).unwrap_err().to_string();
    assert!(error.contains("stats_matcher"), "{error}");
}
