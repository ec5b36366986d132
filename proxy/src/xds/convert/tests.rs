//! Conversions of single resources, written as JSON.

use super::cluster::template;
use super::listener::listener;
use super::{Context, Refused, route};
use crate::config::{
    Action, ClientTls, Cluster, ClusterKind, Direction, HeaderOp, LbPolicy, MeshTls, Network, PathMatch, PortSet,
    RouteTable, ServerTls, Transport, UpstreamProtocol,
};
use crate::telemetry::WorkloadLabels;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

fn context() -> Context {
    Context::new("cluster.local")
}

fn table(value: Value) -> Result<RouteTable, Refused> {
    route::table(&mut context(), leno_xds::json::from_value(&value).unwrap())
}

fn with_route(route: Value) -> Value {
    json!({"name": "r", "virtual_hosts": [{"name": "h", "domains": ["*"], "routes": [route]}]})
}

fn cluster(value: Value, endpoints: Value) -> Result<Arc<Cluster>, Refused> {
    let mut context = context();
    let template = template(&mut context, leno_xds::json::from_value(&value).unwrap())?;
    let endpoints = template.endpoints(&mut context, leno_xds::json::from_value(&endpoints).unwrap())?;
    Ok(template.build(endpoints, &WorkloadLabels::unknown()))
}

fn tls(identity: &str) -> Value {
    json!({
        "name": "tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": "outbound_.80_.__.a",
            "common_tls_context": {
                "alpn_protocols": ["leno-http/1.1"],
                "tls_certificate_sds_secret_configs": [{"name": "default"}],
                "combined_validation_context": {
                    "default_validation_context": {
                        "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": identity}}]
                    },
                    "validation_context_sds_secret_config": {"name": "ROOTCA"}
                }
            }
        }
    })
}

fn eds_cluster() -> Value {
    json!({"name": "outbound|80||a", "type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}}})
}

#[test]
fn route_with_everything_that_is_supported_is_converted() {
    let table = table(with_route(json!({
        "name": "canary",
        "match": {
            "safe_regex": {"regex": "/v\\d+/.*"},
            "headers": [{"name": "X-User", "string_match": {"exact": "jason"}, "invert_match": true}],
            "query_parameters": [{"name": "debug", "present_match": true}],
            "runtime_fraction": {"default_value": {"numerator": 5, "denominator": "HUNDRED"}}
        },
        "route": {
            "weighted_clusters": {"clusters": [
                {"name": "a", "weight": 90, "request_headers_to_remove": ["X-Gone"]},
                {"name": "b", "weight": 10, "host_rewrite_literal": "b.example"},
                {"name": "c", "weight": 0}
            ]},
            "regex_rewrite": {"pattern": {"regex": "/v(\\d+)/"}, "substitution": "/\\1/"},
            "timeout": "0s",
            "retry_policy": {
                "retry_on": "connect-failure,unavailable,retriable-headers",
                "retriable_headers": [{"name": "X-Leno-Not-Sent", "present_match": true}],
                "num_retries": 2,
                "per_try_timeout": "1.5s",
                "retry_priority": {"name": "p", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
                    "update_frequency": 2
                }}
            }
        },
        "request_headers_to_add": [
            {"header": {"key": "X-Share", "value": "100%%"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        ],
        "metadata": {"filter_metadata": {"istio": {"config": "/apis/x"}}}
    })))
    .unwrap();
    let route = &table.hosts()[0].routes[0];
    assert!(matches!(&route.matches.path, PathMatch::Regex(regex) if regex.is_match(b"/v2/x")));
    assert_eq!(route.matches.fraction, Some(50_000));
    assert!(route.matches.headers[0].matches([&b"other"[..]]) && !route.matches.headers[0].matches([&b"jason"[..]]));
    assert_eq!(route.headers.request, [HeaderOp::Set("x-share".into(), "100%".into())]);
    assert_eq!(route.origin.as_deref(), Some("/apis/x"));
    let Action::Forward(forward) = &route.action else { panic!("it forwards") };
    let weights: Vec<u32> = forward.targets.iter().map(|target| target.weight).collect();
    assert_eq!(weights, [90, 10], "what gets nothing is left out");
    assert_eq!(forward.targets[0].headers.request, [HeaderOp::Remove("x-gone".into())]);
    assert_eq!(forward.timeout, None);
    let retry = forward.retry.as_ref().unwrap();
    assert!(retry.on.connect_failure && retry.on.grpc_statuses == 1 << 14 && !retry.on.server_error);
    assert!(retry.on.headers && &*retry.headers[0].name == "x-leno-not-sent" && retry.headers[0].matches([&b"1"[..]]));
    assert_eq!((retry.attempts, retry.per_try_timeout), (2, Some(Duration::from_millis(1500))));
    assert_eq!(retry.other_priorities, Some(2));
}

#[test]
fn route_with_upgrades_is_converted_and_refused_where_they_contradict() {
    let with = |upgrades: serde_json::Value| {
        let route = json!({"match": {"connect_matcher": {}}, "route": {"cluster": "a", "upgrade_configs": upgrades}});
        table(with_route(route))
    };
    let upgrades = json!([
        {"upgrade_type": "WebSocket", "enabled": false},
        {"upgrade_type": "CONNECT", "connect_config": {"allow_post": true}}
    ]);
    let table = with(upgrades).unwrap();
    let Action::Forward(forward) = &table.hosts()[0].routes[0].action else { panic!("it forwards") };
    assert_eq!(forward.upgrades, [("websocket".into(), false), ("connect".into(), true)]);
    assert!(forward.connect.is_some_and(|connect| connect.allow_post));
    for (upgrades, field) in [
        (json!([{"upgrade_type": "websocket", "connect_config": {}}]), "[0].connect_config"),
        (json!([{"upgrade_type": "a"}, {"upgrade_type": "A"}]), "[1].upgrade_type"),
        (
            json!([{"upgrade_type": "CONNECT", "connect_config": {"proxy_protocol_config": {"version": "V2"}}}]),
            "[0].connect_config.proxy_protocol_config",
        ),
    ] {
        let refused = with(upgrades).unwrap_err();
        assert_eq!(refused.field, format!("virtual_hosts[0].routes[0].route.upgrade_configs{field}"), "{refused}");
    }
}

fn with_template(mut route: Value) -> Value {
    route["match"] = json!({"path_match_policy": {"name": "t", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
        "path_template": "/{a}"
    }}});
    route
}

#[test]
fn route_with_an_unsupported_field_is_refused_by_its_path() {
    for (route, field) in [
        (
            json!({"match": {"prefix": "/"}, "route": {"cluster": "a", "hedge_policy": {"hedge_on_per_try_timeout": true}}}),
            "route.hedge_policy.hedge_on_per_try_timeout",
        ),
        (json!({"match": {"prefix": "/"}, "route": {"cluster": "a", "path_rewrite": "/x"}}), "route.path_rewrite"),
        (json!({"match": {"prefix": "/", "filter_state": [{}]}, "route": {"cluster": "a"}}), "match.filter_state"),
        (json!({"match": {"safe_regex": {"regex": "("}}, "route": {"cluster": "a"}}), "match.safe_regex.regex"),
        (json!({"match": {"prefix": "/"}, "filter_action": {}}), "filter_action"),
        (
            json!({"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"filename": "/not/there"}}}),
            "direct_response.body.filename",
        ),
        (
            json!({
                "match": {"prefix": "/"},
                "route": {"cluster": "a"},
                "request_headers_to_add": [{"header": {"key": "x", "value": "%NONSENSE%"}}]
            }),
            "request_headers_to_add[0].header.value",
        ),
        (
            json!({
                "match": {"prefix": "/"},
                "route": {"cluster": "a"},
                "request_headers_to_add": [
                    {"header": {"key": "x", "value": "1"}, "append": true, "append_action": "ADD_IF_ABSENT"}
                ]
            }),
            "request_headers_to_add[0].append",
        ),
        (
            json!({"match": {"prefix": "/"}, "route": {
                "cluster": "a", "request_mirror_policies": [{"cluster": "a", "cluster_header": "x"}]
            }}),
            "route.request_mirror_policies[0].cluster_header",
        ),
        (
            json!({"match": {"prefix": "/"}, "route": {"cluster": "a", "retry_policy": {
                "retry_on": "5xx", "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts"}]
            }}}),
            "route.retry_policy.retry_host_predicate[0].typed_config",
        ),
        (
            json!({"match": {"prefix": "/"}, "route": {"cluster": "a", "internal_redirect_policy": {
                "response_headers_to_copy": ["x-one", "x-one"]
            }}}),
            "route.internal_redirect_policy.response_headers_to_copy[1]",
        ),
        (
            json!({"match": {"prefix": "/", "headers": [
                {"name": "x", "string_match": {"safe_regex": {"regex": "a"}, "ignore_case": true}}
            ]}, "route": {"cluster": "a"}}),
            "match.headers[0].string_match.ignore_case",
        ),
        (with_template(json!({"route": {"cluster": "a", "prefix_rewrite": "/x"}})), "route.prefix_rewrite"),
        (with_template(json!({"redirect": {"prefix_rewrite": "/x"}})), "redirect.prefix_rewrite"),
    ] {
        let refused = table(with_route(route)).unwrap_err();
        assert_eq!(refused.field, format!("virtual_hosts[0].routes[0].{field}"), "{refused}");
    }
}

#[test]
fn route_without_a_timeout_has_the_one_that_envoy_has() {
    let table = table(with_route(json!({"match": {"prefix": "/a"}, "route": {"cluster": "a"}}))).unwrap();
    let Action::Forward(forward) = &table.hosts()[0].routes[0].action else { panic!("it forwards") };
    assert_eq!(forward.timeout, Some(Duration::from_secs(15)));
}

#[test]
fn cluster_with_socket_matches_gives_each_endpoint_the_tls_of_its_identity() {
    let mut value = eds_cluster();
    value["transport_socket_matches"] = json!([
        {"name": "one", "match": {"identity": "spiffe://cluster.local/ns/d/sa/one"},
         "transport_socket": tls("spiffe://cluster.local/ns/d/sa/one")},
        {"name": "rest", "match": {}, "transport_socket": {
            "name": "envoy.transport_sockets.raw_buffer",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"}
        }}
    ]);
    value["lb_policy"] = json!("LEAST_REQUEST");
    value["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}}
        }
    });
    let address = |ip: &str| json!({"address": {"socket_address": {"address": ip, "port_value": 80}}});
    let endpoints = json!({"cluster_name": "outbound|80||a", "endpoints": [{"priority": 1, "lb_endpoints": [
        {"endpoint": address("198.18.0.1"), "metadata": {"filter_metadata": {
            "envoy.transport_socket_match": {"identity": "spiffe://cluster.local/ns/d/sa/one"},
            "istio": {"workload": "one;d;app;v1;Kubernetes"}
        }}},
        {"endpoint": address("fd00::1"), "health_status": "UNHEALTHY", "load_balancing_weight": 3}
    ]}]});
    let cluster = cluster(value, endpoints).unwrap();
    assert_eq!((cluster.kind, cluster.protocol), (ClusterKind::Eds, UpstreamProtocol::Http2));
    assert_eq!(cluster.policy, LbPolicy::LeastRequest { choices: 2 });
    let [first, second] = &cluster.endpoints[..] else { panic!("two endpoints") };
    let Some(ClientTls::Mesh(MeshTls { expected, .. })) = first.tls.as_deref() else { panic!("TLS of the mesh") };
    assert_eq!(expected.iter().map(AsRef::as_ref).collect::<Vec<&str>>(), ["spiffe://cluster.local/ns/d/sa/one"]);
    assert_eq!(&*first.workload.workload, "one");
    assert_eq!((first.priority, second.weight), (1, 3));
    assert!(second.tls.is_none(), "an endpoint without an identity is talked to in plain text");
}

#[test]
fn cluster_that_would_trust_any_server_is_refused() {
    let mut value = eds_cluster();
    value["transport_socket"] = tls("spiffe://cluster.local/ns/d/sa/one");
    let context = &mut value["transport_socket"]["typed_config"]["common_tls_context"];
    context["combined_validation_context"]["default_validation_context"] = json!({});
    let refused = cluster(value, json!({})).unwrap_err();
    assert!(refused.reason.contains("only trusted by its identity"), "{refused}");
}

#[test]
fn cluster_with_an_unsupported_field_is_refused_by_its_path() {
    for (name, field, path) in [
        ("lb_subset_config", json!({"metadata_fallback_policy": 9}), "lb_subset_config.metadata_fallback_policy"),
        ("lb_policy", json!("CLUSTER_PROVIDED"), "lb_policy"),
        ("health_checks", json!([{"timeout": "1s"}]), "health_checks[0].interval"),
        (
            "upstream_bind_config",
            json!({"source_address": {"address": "x"}}),
            "upstream_bind_config.source_address.address",
        ),
        (
            "circuit_breakers",
            json!({"per_host_thresholds": [{"max_connections": 1}, {"max_retries": 1}]}),
            "circuit_breakers.per_host_thresholds[1].max_retries",
        ),
    ] {
        let mut value = eds_cluster();
        value[name] = field;
        assert_eq!(cluster(value, json!({})).unwrap_err().field, path);
    }
}

fn inbound() -> Value {
    json!({
        "name": "virtualInbound",
        "traffic_direction": "INBOUND",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": 15006}},
        "additional_addresses": [{"address": {"socket_address": {"address": "::", "port_value": 15006}}}],
        "listener_filters": [
            {"name": "o", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst"}},
            {"name": "h", "filter_disabled": {"or_match": {"rules": [
                {"destination_port_range": {"start": 3306, "end": 3307}},
                {"destination_port_range": {"start": 6379, "end": 6380}}
            ]}}, "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector"}}
        ],
        "metadata": {"filter_metadata": {"leno": {"workload": "w", "namespace": "d", "service_account": "sa"}}},
        "filter_chains": [{
            "name": "tls",
            "filter_chain_match": {"destination_port": 80, "transport_protocol": "tls", "application_protocols": ["leno"]},
            "transport_socket": {"name": "tls", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "require_client_certificate": true,
                "common_tls_context": {"combined_validation_context": {"default_validation_context": {
                    "match_typed_subject_alt_names": [
                        {"san_type": "URI", "matcher": {"prefix": "spiffe://cluster.local/"}}
                    ]
                }}}
            }},
            "filters": [{"name": "t", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": "inbound|80||", "cluster": "inbound|80||"
            }}]
        }]
    })
}

#[test]
fn listener_of_inbound_traffic_is_converted() {
    let none = |_: &str| None;
    let parts = listener(&mut context(), leno_xds::json::from_value(&inbound()).unwrap(), &none).unwrap();
    let listener = &parts.listener;
    assert_eq!((listener.direction, listener.bind, listener.use_original_dst), (Direction::Inbound, true, true));
    assert_eq!(listener.addresses.len(), 2);
    assert!(listener.inspect.http && !listener.inspect.tls);
    assert_eq!(listener.inspect.http_off, PortSet(vec![(3306, 3306), (6379, 6379)]));
    let chain = &listener.chains.all()[0];
    assert_eq!(chain.matches.transport, Some(Transport::Tls));
    assert!(matches!(chain.tls.as_deref(), Some(ServerTls::Mesh { require_client_certificate: true, .. })));
    assert!(matches!(&chain.network, Network::Tcp(tcp) if tcp.targets.len() == 1));
    assert_eq!(&*parts.own.unwrap().principal, "spiffe://cluster.local/ns/d/sa/sa");
}

#[test]
fn listener_that_would_accept_another_trust_domain_is_refused() {
    let mut value = inbound();
    let context_of = &mut value["filter_chains"][0]["transport_socket"]["typed_config"]["common_tls_context"];
    context_of["combined_validation_context"]["default_validation_context"]["match_typed_subject_alt_names"][0]["matcher"] =
        json!({"prefix": "spiffe://other/"});
    let none = |_: &str| None;
    let refused = listener(&mut context(), leno_xds::json::from_value(&value).unwrap(), &none).unwrap_err();
    assert!(refused.reason.contains("not this proxy's trust domain"), "{refused}");
}
