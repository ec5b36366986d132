//! What is taken and what is refused of filters and their settings, written as JSON.

use super::super::{Context, Refused, route};
use super::chain;
use crate::config::{
    Action, Coding, FaultStatus, FilterEntry, FilterSetting, FilterSettings, HttpFilter, Library, RouteTable, Share,
};
use serde_json::{Value, json};

const HTTP: &str = "type.googleapis.com/envoy.extensions.filters.http";

fn typed(kind: &str, mut value: Value) -> Value {
    value["@type"] = json!(format!("{HTTP}.{kind}"));
    value
}

fn filters(values: Vec<Value>) -> Result<Vec<FilterEntry>, Refused> {
    let router = json!({"name": "router", "typed_config": typed("router.v3.Router", json!({}))});
    let all = values.iter().chain([&router]).map(|value| leno_xds::json::from_value(value).unwrap()).collect();
    chain(&mut Context::new("cluster.local"), "h", ("http_filters", all), &mut Vec::new()).map(|(entries, _)| entries)
}

fn filter(kind: &str, value: Value) -> Result<HttpFilter, Refused> {
    let entry = json!({"name": "f", "typed_config": typed(kind, value)});
    filters(vec![entry]).map(|mut entries| entries.remove(0).filter)
}

fn table(settings: Value) -> Result<RouteTable, Refused> {
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": "a"}, "typed_per_filter_config": settings});
    let value = json!({"name": "r", "virtual_hosts": [{"name": "h", "domains": ["*"], "routes": [route]}]});
    route::table(&mut Context::new("cluster.local"), leno_xds::json::from_value(&value).unwrap())
}

fn settings(table: &RouteTable) -> &FilterSettings {
    &table.hosts()[0].routes[0].filters
}

#[test]
fn rule_of_metadata_that_says_nothing_or_too_much_is_refused_by_its_path() {
    let entry = || json!({"key": "k"});
    for (rule, field) in [
        (json!({"on_header_present": entry()}), "header"),
        (json!({"header": "a", "cookie": "b", "on_header_present": entry()}), "cookie"),
        (json!({"header": "a"}), "on_header_present"),
        (json!({"header": "a", "on_header_present": {}}), "on_header_present.key"),
        (json!({"header": "a", "on_header_missing": entry()}), "on_header_missing.value"),
        (json!({"cookie": "a", "remove": true, "on_header_present": entry()}), "remove"),
        (json!({"header": ":path", "remove": true, "on_header_present": entry()}), "remove"),
        (
            json!({"header": "a", "on_header_present": {"key": "k", "value": "v", "regex_value_rewrite": {}}}),
            "on_header_present.regex_value_rewrite",
        ),
        (
            json!({"header": "a", "on_header_present": {
                "key": "k", "regex_value_rewrite": {"pattern": {"regex": "("}, "substitution": ""},
            }}),
            "on_header_present.regex_value_rewrite.pattern",
        ),
    ] {
        let refused = filter("header_to_metadata.v3.Config", json!({"response_rules": [rule]})).unwrap_err();
        assert_eq!(refused.field, format!("http_filters[0].typed_config.response_rules[0].{field}"));
    }
    let empty = json!({"f": typed("header_to_metadata.v3.Config", json!({}))});
    let refused = table(empty).unwrap_err();
    assert_eq!(refused.field, "virtual_hosts[0].routes[0].typed_per_filter_config[f].request_rules");
    assert!(filter("header_to_metadata.v3.Config", json!({})).is_ok(), "routes may say more");
}

#[test]
fn fault_with_every_part_is_converted() {
    let fault = filter(
        "fault.v3.HTTPFault",
        json!({
            "delay": {"fixed_delay": "1.5s", "percentage": {"numerator": 5, "denominator": "TEN_THOUSAND"}},
            "abort": {"grpc_status": 14, "percentage": {"numerator": 50}},
            "headers": [{"name": "x", "present_match": true}], "downstream_nodes": ["n"], "max_active_faults": 3
        }),
    );
    let Ok(HttpFilter::Fault(fault)) = fault else { panic!("a fault") };
    let delay = fault.delay.as_ref().unwrap();
    assert_eq!(delay.share, Share { numerator: 5, denominator: 10_000 });
    assert_eq!(delay.fixed, Some(std::time::Duration::from_millis(1500)));
    assert_eq!(fault.abort.as_ref().unwrap().with, FaultStatus::Grpc(14));
    assert_eq!((fault.headers.len(), fault.nodes.len(), fault.max_active), (1, 1, Some(3)));
}

#[test]
fn filter_with_what_is_not_supported_is_refused_by_its_path() {
    let rules = |policy: Value| json!({"rules": {"policies": {"p": policy}}});
    for (kind, value, field) in [
        ("fault.v3.HTTPFault", json!({"response_rate_limit": {}}), "response_rate_limit.limit_type"),
        ("fault.v3.HTTPFault", json!({"abort": {"http_status": 99}}), "abort.http_status"),
        ("rbac.v3.RBAC", rules(json!({"condition": {"id": "1"}})), "rules.policies[\"p\"].condition"),
        (
            "rbac.v3.RBAC",
            rules(json!({"permissions": [{"metadata": {}}], "principals": [{"any": true}]})),
            "rules.policies[\"p\"].permissions[0].metadata.filter",
        ),
        (
            "rbac.v3.RBAC",
            json!({"matcher": {"on_no_match": {"keep_matching": true}}}),
            "matcher.on_no_match.keep_matching",
        ),
        ("local_ratelimit.v3.LocalRateLimit", json!({"local_cluster_rate_limit": {}}), "local_cluster_rate_limit"),
        (
            "local_ratelimit.v3.LocalRateLimit",
            json!({"rate_limits": [{"actions": [{"remote_address": {}}], "hits_addend": {"number": 0}}]}),
            "rate_limits.[0].hits_addend.number",
        ),
        (
            "local_ratelimit.v3.LocalRateLimit",
            json!({"token_bucket": {"max_tokens": 1, "fill_interval": "0.01s"}}),
            "token_bucket.fill_interval",
        ),
        (
            "local_ratelimit.v3.LocalRateLimit",
            json!({"descriptors": [
                {"entries": [{"key": "a"}], "token_bucket": {"max_tokens": 1, "fill_interval": "1s"}},
                {"entries": [{"key": "a"}], "token_bucket": {"max_tokens": 2, "fill_interval": "1s"}},
            ]}),
            "descriptors[1]",
        ),
        (
            "local_ratelimit.v3.LocalRateLimit",
            json!({"rate_limits": [{"stage": 0, "actions": [{"remote_address": {}}]}]}),
            "rate_limits[0]",
        ),
        (
            "header_mutation.v3.HeaderMutation",
            json!({"mutations": {"request_mutations": [{"remove": "host"}]}}),
            "mutations.request_mutations[0].remove",
        ),
        (
            "header_mutation.v3.HeaderMutation",
            json!({"mutations": {"query_parameter_mutations": [{"append": {"record": {"key": "a&b", "value": "1"}}}]}}),
            "mutations.query_parameter_mutations[0].append.record.key",
        ),
        (
            "header_mutation.v3.HeaderMutation",
            json!({"mutations": {"query_parameter_mutations": [{"append": {"record": {"key": "a", "value": 1}}}]}}),
            "mutations.query_parameter_mutations[0].append.record.value",
        ),
        (
            "set_metadata.v3.Config",
            json!({"metadata": [{"metadata_namespace": "a", "typed_value": {"@type": format!("{HTTP}.cors.v3.Cors")}}]}),
            "metadata[0].typed_value",
        ),
        ("set_metadata.v3.Config", json!({"metadata": [{"value": {}}]}), "metadata[0].metadata_namespace"),
        ("buffer.v3.Buffer", json!({}), "max_request_bytes"),
        ("health_check.v3.HealthCheck", json!({"pass_through_mode": true}), "pass_through_mode"),
    ] {
        let refused = filter(kind, value).unwrap_err();
        assert_eq!(refused.field, format!("http_filters[0].typed_config.{field}"), "{refused}");
    }
}

#[test]
fn filter_of_an_unknown_type_is_left_out_only_where_it_is_optional() {
    let unknown = |optional: bool| {
        let config = json!({"@type": "type.googleapis.com/google.protobuf.Empty", "value": {}});
        json!({"name": "u", "is_optional": optional, "typed_config": config})
    };
    assert!(filters(vec![unknown(true)]).unwrap().is_empty());
    assert!(filters(vec![unknown(false)]).unwrap_err().reason.contains("google.protobuf.Empty"));
    // One that is switched off is there for routes that switch it on, which it then answers.
    let mut off = unknown(false);
    off["disabled"] = json!(true);
    let found = filters(vec![off]).unwrap();
    assert!(matches!(&found[..], [FilterEntry { disabled: true, filter: HttpFilter::Missing, .. }]));
}

#[test]
fn settings_are_converted_switched_off_or_refused() {
    let config = |value: Value| {
        let mut value = value;
        value["@type"] = json!("type.googleapis.com/envoy.config.route.v3.FilterConfig");
        value
    };
    let cors = typed("cors.v3.CorsPolicy", json!({"allow_origin_string_match": [{"exact": "*"}]}));
    let all = table(json!({
        "off": config(json!({"disabled": true})),
        "on": config(json!({})),
        "wrapped": config(json!({"config": cors})),
        "plain": cors,
        "gone": config(json!({"is_optional": true, "config": {"@type": "type.googleapis.com/google.protobuf.Empty", "value": {}}}))
    }))
    .unwrap();
    let said = |name: &str| settings(&all).get(name);
    assert!(matches!(said("off"), Some(FilterSetting::Off)) && matches!(said("on"), Some(FilterSetting::Enabled)));
    assert!(
        matches!(said("wrapped"), Some(FilterSetting::Cors(_)))
            && matches!(said("plain"), Some(FilterSetting::Cors(_)))
    );
    assert!(matches!(said("gone"), Some(FilterSetting::Enabled)) && said("other").is_none());
    let refused = table(json!({"u": {"@type": "type.googleapis.com/google.protobuf.Empty", "value": {}}})).unwrap_err();
    assert_eq!(refused.field, "virtual_hosts[0].routes[0].typed_per_filter_config[u]");
    let limit = typed("local_ratelimit.v3.LocalRateLimit", json!({"stat_prefix": "l"}));
    let refused = table(json!({"l": limit})).unwrap_err();
    assert_eq!(refused.field, "virtual_hosts[0].routes[0].typed_per_filter_config[l].token_bucket");
}

#[test]
fn route_with_copies_hashes_and_limits_is_converted() {
    let route = json!({"match": {"prefix": "/"}, "route": {
        "cluster": "a",
        "request_mirror_policies": [{"cluster": "b", "runtime_fraction": {"default_value": {"numerator": 25}}}],
        "hash_policy": [
            {"header": {"header_name": "X-User"}, "terminal": true},
            {"connection_properties": {"source_ip": false}},
            {"query_parameter": {"name": "q"}}
        ],
        "cors": {"allow_origin_string_match": [{"exact": "*"}]}
    }});
    let value = json!({"name": "r", "virtual_hosts": [{"name": "h", "domains": ["*"], "routes": [route],
        "request_mirror_policies": [{"cluster": "c"}]}]});
    let table = route::table(&mut Context::new("cluster.local"), leno_xds::json::from_value(&value).unwrap()).unwrap();
    let Action::Forward(forward) = &table.hosts()[0].routes[0].action else { panic!("it forwards") };
    let [mirror] = &forward.mirrors[..] else { panic!("the route's own, not the host's") };
    assert_eq!((mirror.fraction, mirror.suffix), (250_000, true));
    assert_eq!((forward.hash.len(), forward.hash[0].terminal), (2, true));
    let cors = settings(&table).get("envoy.filters.http.cors");
    assert!(matches!(cors, Some(FilterSetting::Cors(_))), "the older way counts too");
}

#[test]
fn compressor_with_every_part_is_converted_and_refused_by_path() {
    let library = |kind: &str, fields: Value| {
        let mut config = fields;
        config["@type"] = json!(format!("type.googleapis.com/envoy.extensions.compression.{kind}"));
        json!({"name": "l", "typed_config": config})
    };
    let brotli = library("brotli.compressor.v3.Brotli", json!({"quality": 5}));
    let converted = filter(
        "compressor.v3.Compressor",
        json!({
            "compressor_library": brotli.clone(), "choose_first": true,
            "response_direction_config": {
                "common_config": {"min_content_length": 7, "content_type": ["text/x"]}, "weaken_etag_on_compress": true
            }
        }),
    );
    let HttpFilter::Compressor(compressor) = converted.unwrap() else { panic!("a compressor") };
    assert_eq!(compressor.library, Library::Brotli(5, 18));
    assert!(compressor.choose_first && compressor.weaken_etags && compressor.requests.is_none());
    let responses = &compressor.responses;
    assert_eq!((responses.min_length, responses.types.as_slice()), (7, &["text/x".into()][..]));
    let older = json!({"compressor_library": brotli, "content_length": 9, "runtime_enabled": {"default_value": false}});
    let HttpFilter::Compressor(older) = filter("compressor.v3.Compressor", older).unwrap() else { panic!("one too") };
    assert!(!older.responses.enabled && older.responses.min_length == 9 && older.responses.types.len() > 8);
    let zstd = library("zstd.compressor.v3.Zstd", json!({"dictionary": {"inline_string": "x"}}));
    let wide = library("brotli.compressor.v3.Brotli", json!({"window_bits": 25}));
    for (library, field) in [
        (zstd, "compressor_library.dictionary"),
        (wide, "compressor_library.window_bits"),
        (json!({"name": "l"}), "compressor_library.typed_config"),
    ] {
        let refused = filter("compressor.v3.Compressor", json!({"compressor_library": library})).unwrap_err();
        assert_eq!(refused.field, format!("http_filters[0].typed_config.{field}"), "{refused}");
    }
    let gzip = library("gzip.decompressor.v3.Gzip", json!({"max_inflate_ratio": 20}));
    let fields = json!({"decompressor_library": gzip, "request_direction_config": {
        "common_config": {"enabled": {"default_value": false}}, "advertise_accept_encoding": false
    }});
    let HttpFilter::Decompressor(opposite) = filter("decompressor.v3.Decompressor", fields).unwrap() else {
        panic!("a decompressor")
    };
    assert_eq!((opposite.coding, opposite.max_ratio, opposite.advertise), (Coding::Gzip, 20, false));
    assert_eq!((opposite.requests, opposite.responses), (None, Some(false)));
}
