//! Conversions of connection managers, written as JSON.

use super::{Context, Refused, http, listener::Found};
use crate::config::{
    CertDetails, ClientCert, Detection, Direction, EscapedSlashes, HeaderNames, HttpManager, LogTarget, Proportion,
    ServerHeader, StripPort, Underscores,
};
use crate::telemetry::{Comparison, LogFilter, LogFormat, LogNeeds, LogSink};
use serde_json::{Value, json};
use std::time::Duration;

fn manager(fields: Value) -> Result<HttpManager, Refused> {
    let mut value = json!({
        "stat_prefix": "h",
        "http_filters": [{"name": "router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
        }}],
        "route_config": {"name": "r"}
    });
    for (name, field) in fields.as_object().unwrap() {
        value[name] = field.clone();
    }
    let value = leno_xds::json::from_value(&value).unwrap();
    http::manager(&mut Context::new(""), value, (Direction::Outbound, false), &|_| None, &mut Found::default())
}

#[test]
fn manager_without_fields_is_envoys_and_costs_nothing() {
    let manager = manager(json!({})).unwrap();
    assert!(manager.edge.is_none() && manager.local_replies.is_none());
    assert_eq!(manager.server_header, ServerHeader::Overwrite("envoy".into()));
    assert!(
        !manager.accept_http_10 && !manager.normalize_path && !manager.merge_slashes && manager.generate_request_id
    );
    assert_eq!((manager.request_timeout, manager.max_stream_duration), (None, None));
    assert_eq!(manager.stream_idle_timeout, Duration::from_secs(300));
    assert!(manager.upgrades.is_empty());
}

#[test]
fn manager_with_everything_about_clients_is_converted() {
    let manager = manager(json!({
        "use_remote_address": true,
        "xff_num_trusted_hops": 2,
        "skip_xff_append": true,
        "append_x_forwarded_port": true,
        "via": "1.1 gate",
        "server_name": "gate",
        "server_header_transformation": "APPEND_IF_ABSENT",
        "internal_address_config": {"cidr_ranges": [{"address_prefix": "10.1.2.3", "prefix_len": 8}]},
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": {"uri": true, "subject": true},
        "scheme_header_transformation": {"scheme_to_overwrite": "https"},
        "preserve_external_request_id": true,
        "always_set_request_id_in_response": true,
        "early_header_mutation_extensions": [{"name": "e", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": [{"remove": "x-secret"}, {"append": {"header": {"key": "x-a", "value": "b"}}}]
        }}]
    }))
    .unwrap();
    let edge = manager.edge.unwrap();
    assert!(edge.use_remote_address && edge.skip_append && edge.append_port && edge.trusted_hops == 2);
    assert_eq!(edge.internal, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(
        edge.client_cert,
        ClientCert::SanitizeSet(CertDetails { uri: true, subject: true, ..CertDetails::default() })
    );
    assert_eq!((edge.secure, edge.via.as_deref()), (Some(true), Some("1.1 gate")));
    assert!(edge.preserve_request_id && edge.request_id_in_response);
    assert_eq!(edge.early.len(), 2);
    assert_eq!(manager.server_header, ServerHeader::IfAbsent("gate".into()));
}

#[test]
fn manager_with_ways_to_find_the_client_has_them_in_order() {
    let xff = "type.googleapis.com/envoy.extensions.http.original_ip_detection.xff.v3.XffConfig";
    let header = "type.googleapis.com/envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig";
    let manager = manager(json!({"original_ip_detection_extensions": [
        {"name": "a", "typed_config": {"@type": header, "header_name": "X-Real", "reject_with_status": {"code": "OK"}}},
        {"name": "b", "typed_config": {"@type": xff, "xff_num_trusted_hops": 1, "skip_xff_append": false}},
        {"name": "c", "typed_config": {"@type": xff, "xff_trusted_cidrs": {"cidrs": [{"address_prefix": "::1", "prefix_len": 128}]}}}
    ]}))
    .unwrap();
    let edge = manager.edge.unwrap();
    assert!(
        matches!(&edge.detection[0], Detection::Header { name, trusted: false, reject: Some(403) } if &**name == "x-real")
    );
    assert!(matches!(edge.detection[1], Detection::Hops { hops: 1, append: true }));
    assert!(matches!(&edge.detection[2], Detection::Trusted { cidrs, append: false } if cidrs.len() == 1));
}

#[test]
fn manager_with_limits_and_rules_is_converted() {
    let manager = manager(json!({
        "request_timeout": "3s",
        "request_headers_timeout": "2s",
        "drain_timeout": "4s",
        "delayed_close_timeout": "0s",
        "max_request_headers_kb": 96,
        "strip_matching_host_port": true,
        "strip_trailing_host_dot": true,
        "proxy_100_continue": true,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
        "stream_error_on_invalid_http_message": true,
        "common_http_protocol_options": {
            "idle_timeout": "60s", "max_connection_duration": "90s", "max_connection_duration_jitter": {"value": 10},
            "max_headers_count": 500, "max_stream_duration": "7s", "headers_with_underscores_action": "DROP_HEADER",
            "max_requests_per_connection": 9
        },
        "http_protocol_options": {
            "accept_http_10": true, "default_host_for_http_10": "fallback",
            "header_key_format": {"proper_case_words": {}}
        },
        "http2_protocol_options": {"max_consecutive_inbound_frames_with_empty_payload": 5}
    }))
    .unwrap();
    let seconds = |count| Some(Duration::from_secs(count));
    assert_eq!((manager.request_timeout, manager.max_stream_duration), (seconds(3), seconds(7)));
    assert_eq!((manager.max_connection_duration, manager.connection_duration_jitter), (seconds(90), 10.0));
    assert_eq!(manager.request_head_timeout, Duration::from_secs(2));
    assert_eq!((manager.drain_timeout, manager.delayed_close_timeout), (Duration::from_secs(4), Duration::ZERO));
    assert_eq!((manager.max_headers, manager.max_head_bytes), (500, 96 * 1024));
    assert_eq!((manager.strip_port, manager.strip_trailing_dot), (StripPort::Matching, true));
    assert_eq!((manager.underscores, manager.escaped_slashes), (Underscores::Drop, EscapedSlashes::Redirect));
    assert_eq!(manager.max_requests_per_connection, Some(9));
    assert!(
        manager.accept_http_10
            && manager.names == HeaderNames::Proper
            && manager.proxy_100_continue
            && manager.stream_error_on_invalid
    );
    assert_eq!(manager.default_host_for_http_10.as_deref(), Some("fallback"));
    assert_eq!(manager.http2.max_empty_frames, 5);
}

#[test]
fn manager_with_mapped_replies_has_the_mappers() {
    let manager = manager(json!({"local_reply_config": {
        "mappers": [{
            "filter": {"and_filter": {"filters": [
                {"status_code_filter": {"comparison": {"op": "GE", "value": {"default_value": 500, "runtime_key": "k"}}}},
                {"response_flag_filter": {"flags": ["UH", "UF"]}}
            ]}},
            "status_code": 503,
            "body": {"inline_string": "away"},
            "body_format_override": {"json_format": {"code": "%RESPONSE_CODE%", "text": "%LOCAL_REPLY_BODY%"}},
            "headers_to_add": [{"header": {"key": "x-a", "value": "b"}}]
        }],
        "body_format": {"text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%!\n"}, "content_type": "text/html"}
    }}))
    .unwrap();
    let replies = manager.local_replies.unwrap();
    let mapper = &replies.mappers[0];
    let LogFilter::All(filters) = &mapper.filter else { panic!("both must hold") };
    assert!(matches!(filters[0], LogFilter::Status(Comparison::AtLeast, 500)));
    assert_eq!((mapper.status, mapper.body.as_deref(), mapper.headers.len()), (Some(503), Some("away"), 1));
    assert_eq!(&*mapper.format.as_ref().unwrap().content_type, "application/json");
    assert_eq!(&*replies.body.unwrap().content_type, "text/html");
}

#[test]
fn manager_with_an_unsupported_field_is_refused_by_its_path() {
    for (fields, field) in [
        (json!({"proxy_status_config": {}}), "proxy_status_config"),
        (json!({"forward_proto_config": {}}), "forward_proto_config"),
        (json!({"set_current_client_cert_details": {"format": 9}}), "set_current_client_cert_details.format"),
        (
            json!({"upgrade_configs": [{"upgrade_type": "CONNECT", "filters": [{"name": "a"}]}]}),
            "upgrade_configs[0].filters[0].typed_config",
        ),
        (
            json!({"http_protocol_options": {"ignore_http_11_upgrade": [{"exact": "a"}, {}]}}),
            "http_protocol_options.ignore_http_11_upgrade[1].match_pattern",
        ),
        (
            json!({"common_http_protocol_options": {"max_headers_count": 5000}}),
            "common_http_protocol_options.max_headers_count",
        ),
        (
            json!({"local_reply_config": {"mappers": [{"filter": {"extension_filter": {"name": "a"}}}]}}),
            "local_reply_config.mappers[0].filter.extension_filter",
        ),
    ] {
        assert_eq!(manager(fields).unwrap_err().field, field);
    }
}

#[test]
fn access_logs_when_read_then_each_has_its_place_format_and_filter() {
    let file = |fields: Value| {
        let mut value = json!({"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"});
        value.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        value
    };
    let stderr = json!({"@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StderrAccessLog"});
    let read = manager(json!({"access_log": [
        {"typed_config": file(json!({"path": "/tmp/x.log", "log_format": {"json_format": {"a": "%PROTOCOL%"}}}))},
        {"typed_config": file(json!({"path": "/dev/stdout", "log_format": {"text_format": "%REQ(a)%"}})),
         "filter": {"and_filter": {"filters": [
             {"duration_filter": {"comparison": {"op": "LE", "value": {"default_value": 7, "runtime_key": "k"}}}},
             {"grpc_status_filter": {"statuses": ["UNAVAILABLE"], "exclude": true}},
         ]}}},
        {"typed_config": stderr},
    ]}));
    let logs = read.unwrap().access_logs;
    let lines = |index: usize| match &logs[index].target {
        LogTarget::Lines { format, sink } => (&**format, &**sink),
        LogTarget::Entries(_) => panic!("no lines"),
    };
    assert!(lines(0).0.is_json() && logs[0].filter.is_none());
    assert_eq!(*lines(0).1, LogSink::File("/tmp/x.log".into()));
    assert_eq!((lines(1).1, lines(2).1), (&LogSink::Stdout, &LogSink::Stderr));
    let Some(LogFilter::All(filters)) = &logs[1].filter else { panic!("both must hold") };
    assert!(matches!(filters[0], LogFilter::Duration(Comparison::AtMost, 7)));
    assert!(matches!(filters[1], LogFilter::GrpcStatus { statuses: 0x4000, exclude: true }));
    assert_eq!(*lines(2).0, LogFormat::envoy());
    for (fields, field) in [
        (json!({"path": "/x", "log_format": {"text_format": "%NOPE%"}}), "typed_config.log_format.text_format"),
        (json!({"path": "/x", "log_format": {"json_format": {"a": "%NOPE%"}}}), "typed_config.log_format.json_format"),
        (json!({"log_format": {"text_format": "x"}}), "typed_config.path"),
        (
            json!({"path": "/x", "log_format": {"text_format": "%PROTOCOL%", "formatters": [
                {"name": "c", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}},
            ]}}),
            "typed_config.log_format.formatters[0].typed_config",
        ),
    ] {
        let refused = manager(json!({"access_log": [{"typed_config": file(fields)}]})).unwrap_err();
        assert_eq!(refused.field, format!("access_log[0].{field}"));
    }
}

#[test]
fn log_needs_when_a_line_asks_for_more_then_the_manager_knows_and_other_texts_may_not_ask() {
    let logs = |format: Value| {
        json!({"access_log": [{"typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog", "log_format": format,
        }}]})
    };
    let needs = |format: Value| manager(logs(format)).unwrap().needs;
    assert_eq!(needs(json!({"text_format": "%PROTOCOL% %CLUSTER_METADATA(a:b)%"})), LogNeeds::default());
    let told = needs(json!({"text_format": "%DYNAMIC_METADATA(envoy.filters.http.rbac:shadow_engine_result)%"}));
    assert_eq!(told, LogNeeds { dynamic: true, observed: false });
    let observed = needs(json!({"json_format": {"a": {"b": ["<%DOWNSTREAM_WIRE_BYTES_SENT%>"]}}}));
    assert_eq!(observed, LogNeeds { dynamic: false, observed: true });
    let metadata = json!({"@type": "type.googleapis.com/envoy.extensions.formatter.metadata.v3.Metadata"});
    let both = json!({
        "text_format": "%METADATA(DYNAMIC:a)%%UPSTREAM_PEER_SUBJECT%",
        "formatters": [{"name": "m", "typed_config": metadata}],
    });
    assert_eq!(needs(both), LogNeeds { dynamic: true, observed: true });

    // Beside lines, other texts and conditions ask too, and tables say so themselves.
    let asks = |fields: Value| manager(fields).unwrap().needs.dynamic;
    assert!(asks(json!({"local_reply_config": {"body_format": {"text_format": "%DYNAMIC_METADATA(a:b)%"}}})));
    let wanted = json!({"filter": "a", "path": [{"key": "b"}], "value": {"present_match": true}});
    let mapper = json!({"filter": {"metadata_filter": {"matcher": wanted}}, "status_code": 418});
    assert!(asks(json!({"local_reply_config": {"mappers": [mapper]}})));
    let tag = json!({"tag": "a", "metadata": {"kind": {"request": {}}, "metadata_key": {"key": "a", "path": [{"key": "b"}]}}});
    assert!(asks(json!({"tracing": {"custom_tags": [tag]}})));
    let value = json!({"filter": "a", "path": [{"key": "b"}], "value": {"present_match": true}});
    let rules = |permission: Value| {
        let policies = json!({"p": {"permissions": [{"not_rule": permission}], "principals": [{"any": true}]}});
        json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC", "rules": {"policies": policies}})
    };
    let filters = |permission: Value| {
        let router = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"});
        let all = [("rbac", rules(permission)), ("router", router)];
        json!({"http_filters": all.map(|(name, config)| json!({"name": name, "typed_config": config}))})
    };
    assert!(asks(filters(json!({"metadata": value}))));
    assert!(!asks(filters(json!({"sourced_metadata": {"metadata_matcher": value, "metadata_source": "ROUTE"}}))));
    let route = |matches: Value, header: &str| {
        let to_add = json!([{"header": {"key": "x", "value": header}}]);
        let route = json!({"match": matches, "direct_response": {"status": 200}, "response_headers_to_add": to_add});
        let table = json!({"virtual_hosts": [{"name": "h", "domains": ["*"], "routes": [route]}]});
        let manager = manager(json!({"route_config": table})).unwrap();
        (manager.routes.asks_dynamic, manager.needs.dynamic)
    };
    assert_eq!(route(json!({"prefix": "/"}), "%PROTOCOL%"), (false, false));
    assert_eq!(route(json!({"prefix": "/"}), "%DYNAMIC_METADATA(a:b)%"), (true, false));
    assert_eq!(route(json!({"prefix": "/", "dynamic_metadata": [value]}), "a"), (true, false));

    let body = json!({"local_reply_config": {"body_format": {"text_format": "%UPSTREAM_TLS_VERSION%"}}});
    assert_eq!(manager(body).unwrap_err().field, "local_reply_config.body_format");
}

#[test]
fn tracing_when_it_has_what_is_not_supported_then_the_field_is_named() {
    let otel = |fields: Value| {
        let mut config = json!({"@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig"});
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!({"tracing": {"provider": {"name": "t", "typed_config": config}}})
    };
    let grpc = json!({"envoy_grpc": {"cluster_name": "c"}});
    let tracing = manager(otel(json!({"grpc_service": grpc, "max_cache_size": 5}))).unwrap().tracing.unwrap();
    assert_eq!(tracing.tracer.unwrap().max_waiting, 5);
    assert_eq!(tracing.sampling.random, Proportion { numerator: 10_000, denominator: 10_000 });
    let google = json!({"google_grpc": {"target_uri": "x", "stat_prefix": "y"}});
    for (fields, field) in [
        (otel(json!({})), "tracing.provider.typed_config.grpc_service"),
        (otel(json!({"grpc_service": google})), "tracing.provider.typed_config.grpc_service.envoy_grpc"),
        (
            otel(json!({"grpc_service": grpc, "resource_detectors": [{"name": "x"}]})),
            "tracing.provider.typed_config.resource_detectors",
        ),
        (json!({"tracing": {"verbose": true}}), "tracing.verbose"),
        (
            json!({"tracing": {"custom_tags": [{"tag": "a", "metadata": {"kind": {"request": {}}}}]}}),
            "tracing.custom_tags[0].metadata.metadata_key",
        ),
    ] {
        assert_eq!(manager(fields).unwrap_err().field, field);
    }
}
