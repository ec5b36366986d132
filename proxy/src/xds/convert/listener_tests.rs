//! Conversions of listeners, their filters and filter chains.

use super::listener::{Parts, listener};
use super::{Context, Refused};
use crate::config::{Gate, Network, PassTlvs, PortSet, SourceType};
use serde_json::{Value, json};
use std::time::Duration;

const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters";

fn converted(value: Value) -> Result<Parts, Refused> {
    let mut value = value;
    value["name"] = json!("l");
    value["address"] = json!({"socket_address": {"address": "0.0.0.0", "port_value": 1}});
    listener(&mut Context::new(""), leno_xds::json::from_value(&value).unwrap(), &|_| None)
}

fn filter(kind: &str, mut body: Value) -> Value {
    body["@type"] = json!(format!("{FILTERS}.{kind}"));
    json!({"name": kind, "typed_config": body})
}

fn tcp(mut more: Value) -> Value {
    more["stat_prefix"] = json!("t");
    if more.get("weighted_clusters").is_none() {
        more["cluster"] = json!("c");
    }
    filter("network.tcp_proxy.v3.TcpProxy", more)
}

fn chain(matches: Value) -> Value {
    json!({"filter_chain_match": matches, "filters": [tcp(json!({}))]})
}

#[test]
fn tcp_proxy_when_the_server_name_names_the_cluster_then_it_need_not_name_one() {
    let chain = json!({"filters": [
        filter("network.sni_cluster.v3.SniCluster", json!({})),
        filter("network.tcp_proxy.v3.TcpProxy", json!({"stat_prefix": "t", "cluster": ""}))
    ]});
    let parts = converted(json!({"filter_chains": [chain]})).unwrap();
    let Network::Tcp(proxy) = &parts.listener.chains.all()[0].network else { panic!("TCP") };
    assert!(proxy.by_server_name && proxy.targets.is_empty());
}

#[test]
fn listener_with_everything_that_is_supported_is_converted() {
    let parts = converted(json!({
        "listener_filters": [
            filter("listener.proxy_protocol.v3.ProxyProtocol", json!({
                "allow_requests_without_proxy_protocol": true, "disallowed_versions": ["V1"],
                "pass_through_tlvs": {"match_type": "INCLUDE", "tlv_type": [1, 225]}
            })),
            filter("listener.tls_inspector.v3.TlsInspector", json!({})),
            {"name": "h", "typed_config": {"@type": format!("{FILTERS}.listener.http_inspector.v3.HttpInspector")},
             "filter_disabled": {"and_match": {"rules": [
                {"not_match": {"destination_port_range": {"start": 80, "end": 81}}},
                {"destination_port_range": {"start": 70, "end": 90}}
             ]}}}
        ],
        "listener_filters_timeout": "3s",
        "continue_on_listener_filters_timeout": true,
        "freebind": true,
        "tcp_backlog_size": 17,
        "tcp_keepalive": {"keepalive_probes": 3, "keepalive_time": 10, "keepalive_interval": 5},
        "socket_options": [{"level": 1, "name": 9, "int_value": 1}],
        "filter_chains": [{
            "name": "c",
            "transport_socket_connect_timeout": "2s",
            "filter_chain_match": {
                "destination_port": 80,
                "prefix_ranges": [{"address_prefix": "10.1.2.3", "prefix_len": 8}],
                "server_names": ["a.example", "*.b.example"],
                "transport_protocol": "tls",
                "application_protocols": ["h2"],
                "direct_source_prefix_ranges": [{"address_prefix": "::1", "prefix_len": 128}],
                "source_type": "EXTERNAL",
                "source_prefix_ranges": [{"address_prefix": "0.0.0.0", "prefix_len": 0}],
                "source_ports": [7]
            },
            "filters": [
                filter("network.rbac.v3.RBAC", json!({"stat_prefix": "r", "delay_deny": "1s", "rules": {}})),
                filter("network.connection_limit.v3.ConnectionLimit", json!({"stat_prefix": "c", "max_connections": 5})),
                filter("network.local_ratelimit.v3.LocalRateLimit", json!({
                    "stat_prefix": "l", "token_bucket": {"max_tokens": 5, "fill_interval": "1s"}
                })),
                filter("network.connection_limit.v3.ConnectionLimit", json!({
                    "stat_prefix": "off", "max_connections": 1, "runtime_enabled": {"default_value": false, "runtime_key": "k"}
                })),
                filter("network.sni_cluster.v3.SniCluster", json!({})),
                tcp(json!({
                    "metadata_match": {"filter_metadata": {"envoy.lb": {"version": "v1", "zone": "z"}}},
                    "hash_policy": [{"source_ip": {}}],
                    "weighted_clusters": {"clusters": [
                        {"name": "a", "weight": 1, "metadata_match": {"filter_metadata": {"envoy.lb": {"version": "v2"}}}},
                        {"name": "b", "weight": 0}
                    ]},
                    "idle_timeout": "0s", "max_connect_attempts": 3,
                    "backoff_options": {"base_interval": "0.1s"},
                    "max_downstream_connection_duration": "10s",
                    "max_downstream_connection_duration_jitter_percentage": {"value": 50}
                }))
            ]
        }]
    }))
    .unwrap();
    let listener = &parts.listener;
    let proxy = listener.proxy_protocol.as_ref().unwrap();
    assert!(proxy.optional && proxy.no_v1 && !proxy.no_v2);
    assert_eq!(proxy.pass, PassTlvs::Some(vec![1, 225]));
    assert_eq!(listener.inspect.http_off, PortSet(vec![(70, 79), (81, 89)]));
    assert!(listener.inspect.tls && listener.continue_on_timeout && listener.socket.freebind);
    assert_eq!((listener.socket.backlog, listener.socket.options.len()), (17, 1));
    assert_eq!(listener.socket.keepalive.unwrap().probes, Some(3));
    let chain = &listener.chains.all()[0];
    assert_eq!(chain.tls_timeout, Duration::from_secs(2));
    assert_eq!(chain.matches.destination_prefixes[0].to_string(), "10.0.0.0/8");
    assert_eq!(chain.matches.source_type, SourceType::External);
    assert!(matches!(
        &chain.gates[..],
        [Gate::Rbac(rbac), Gate::ConnectionLimit(limit), Gate::RateLimit(_)]
            if limit.max == 5 && rbac.delay == Duration::from_secs(1) && rbac.rules.is_some() && rbac.shadow.is_none()
    ));
    let Network::Tcp(tcp) = &chain.network else { panic!("TCP") };
    assert!(tcp.by_server_name && tcp.targets.len() == 1 && tcp.idle_timeout.is_zero());
    assert_eq!(tcp.backoff, Some((Duration::from_millis(100), Duration::from_secs(1))));
    assert_eq!(tcp.max_duration, Some((Duration::from_secs(10), Duration::from_secs(5))));
    assert!(tcp.connect_attempts == 3 && tcp.hash_source_ip);
    let labels = tcp.targets[0].labels.as_ref().unwrap();
    assert_eq!(labels.iter().len(), 2);
}

#[test]
fn listener_with_something_unsupported_is_refused_by_its_path() {
    let one = |filters: Value| json!({"filter_chains": [{"filters": filters}]});
    for (value, field) in [
        (json!({"transparent": true}), "transparent"),
        (json!({"enable_mptcp": true}), "enable_mptcp"),
        (json!({"access_log": [{"name": "a"}]}), "access_log[0].typed_config"),
        (json!({"filter_chain_matcher": {}}), "filter_chain_matcher"),
        (json!({"socket_options": [{"level": 1, "name": 9, "int_value": 1, "state": 9}]}), "socket_options[0].state"),
        (json!({"filter_chains": [chain(json!({"suffix_len": 1}))]}), "filter_chains[0].filter_chain_match.suffix_len"),
        (
            json!({"filter_chains": [chain(json!({"transport_protocol": "quic"}))]}),
            "filter_chains[0].filter_chain_match.transport_protocol",
        ),
        (json!({"filter_chains": [chain(json!({})), chain(json!({}))]}), "filter_chains"),
        (json!({"filter_chains": [chain(json!({"server_names": ["a*.b"]}))]}), "filter_chains"),
        (one(json!([filter("network.sni_cluster.v3.SniCluster", json!({}))])), "filter_chains[0].filters"),
        (
            one(json!([filter(
                "network.rbac.v3.RBAC",
                json!({"stat_prefix": "r", "rules": {"policies": {"p": {
                    "permissions": [{"not_rule": {"header": {"name": "x", "present_match": true}}}],
                    "principals": [{"any": true}]
                }}}})
            )])),
            "filter_chains[0].filters[0].typed_config.rules",
        ),
        (one(json!([tcp(json!({})), tcp(json!({}))])), "filter_chains[0].filters[1]"),
        (one(json!([tcp(json!({"on_demand": {}}))])), "filter_chains[0].filters[0].typed_config.on_demand"),
        (
            one(json!([tcp(json!({"access_log_options": {"access_log_flush_interval": "0.0005s"}}))])),
            "filter_chains[0].filters[0].typed_config.access_log_options.access_log_flush_interval",
        ),
        (
            one(json!([tcp(json!({"tunneling_config": {"hostname": "a", "propagate_response_headers": true}}))])),
            "filter_chains[0].filters[0].typed_config.tunneling_config.propagate_response_headers",
        ),
        (
            one(json!([tcp(json!({"tunneling_config": {"hostname": "a", "post_path": "/x"}}))])),
            "filter_chains[0].filters[0].typed_config.tunneling_config.post_path",
        ),
        (
            one(json!([filter("network.connection_limit.v3.ConnectionLimit", json!({"stat_prefix": "c"}))])),
            "filter_chains[0].filters[0].typed_config.max_connections",
        ),
        (
            one(json!([filter(
                "network.local_ratelimit.v3.LocalRateLimit",
                json!({
                    "stat_prefix": "l", "token_bucket": {"max_tokens": 1, "fill_interval": "0.01s"}
                })
            )])),
            "filter_chains[0].filters[0].typed_config.token_bucket.fill_interval",
        ),
        (
            json!({"listener_filters": [filter("listener.proxy_protocol.v3.ProxyProtocol", json!({"rules": [{"tlv_type": 1}]}))]}),
            "listener_filters[0].rules",
        ),
        (
            json!({"listener_filters": [
                filter("listener.tls_inspector.v3.TlsInspector", json!({})),
                filter("listener.proxy_protocol.v3.ProxyProtocol", json!({"allow_requests_without_proxy_protocol": true}))
            ]}),
            "listener_filters[1].allow_requests_without_proxy_protocol",
        ),
    ] {
        let refused = converted(value).unwrap_err();
        assert_eq!(refused.field, field, "{refused}");
    }
    let closes = converted(one(json!([]))).unwrap();
    assert!(matches!(&closes.listener.chains.all()[0].network, Network::Direct(bytes) if bytes.is_empty()));
}

#[test]
fn inspector_when_it_stands_before_the_proxy_protocol_then_it_finds_nothing() {
    let [inspector, proxy] = ["tls_inspector.v3.TlsInspector", "proxy_protocol.v3.ProxyProtocol"]
        .map(|name| filter(&format!("listener.{name}"), json!({})));
    let inspects = |filters: Value| {
        let chains = json!([{"filters": [tcp(json!({}))]}]);
        converted(json!({"listener_filters": filters, "filter_chains": chains})).unwrap().listener.inspect.tls
    };
    assert!(inspects(json!([proxy, inspector])));
    assert!(!inspects(json!([inspector, proxy])));
}
