//! The clusters of every random case: those of the back ends, and others that are peculiar in one thing each.

use super::{Feature, Maker};
use serde_json::{Value, json};

/// The back ends of every random case.
pub(super) fn backends() -> Value {
    json!({"a": {}, "b": {}, "h2": {"protocol": "h2"}, "dead": {"protocol": "dead"}, "mute": {"protocol": "mute"},
        "safe": {"tls": true}})
}

/// Clusters whose endpoint is no matter of luck, for routes that want something peculiar.
const PLACES: [&str; 25] = [
    "safe",
    "longest",
    "proper",
    "sick",
    "alone",
    "panic",
    "draining",
    "degraded",
    "failover",
    "localities",
    "no-requests",
    "no-pending",
    "no-connections",
    "no-budget",
    "ejected",
    "gateway",
    "least",
    "by-luck",
    "one-each",
    "trailers",
    "mute",
    "dead",
    "h2",
    "high",
    "none",
];

/// Clusters besides those of the back ends.
pub(super) fn clusters() -> Value {
    let labelled = |backend: &str, version: &str| json!({"backend": backend, "metadata": {"filter_metadata": {"envoy.lb": {"version": version}}}});
    let healthy = |backend: &str, status: &str| json!({"backend": backend, "health_status": status});
    let at = |backend: &str, status: &str| {
        json!({"health_status": status, "endpoint": {"address": {"socket_address":
            {"address": format!("${{address:{backend}}}"), "port_value": format!("${{port:{backend}}}")}}}})
    };
    let limited = |name: &str, thresholds: Value| {
        json!({"name": name, "type": "STATIC", "endpoints": ["a"],
            "circuit_breakers": {"thresholds": [thresholds]}})
    };
    let versions = || json!([labelled("a", "v1"), labelled("b", "v2")]);
    let no_panic = || json!({"healthy_panic_threshold": {"value": 0}});
    json!([
        {"name": "ring", "type": "STATIC", "lb_policy": "RING_HASH", "endpoints": ["a", "b"]},
        {"name": "maglev", "type": "STATIC", "lb_policy": "MAGLEV", "endpoints": ["a", "b"]},
        {
            "name": "small-ring",
            "type": "STATIC",
            "lb_policy": "RING_HASH",
            "ring_hash_lb_config": {"minimum_ring_size": 8, "maximum_ring_size": 64, "hash_function": "MURMUR_HASH_2"},
            "endpoints": [{"backend": "a", "load_balancing_weight": 3}, "b"],
        },
        {
            "name": "small-maglev",
            "type": "STATIC",
            "lb_policy": "MAGLEV",
            "maglev_lb_config": {"table_size": 11},
            "endpoints": [{"backend": "a", "load_balancing_weight": 2}, "b"],
        },
        {
            "name": "versions",
            "type": "STATIC",
            "endpoints": versions(),
            "lb_subset_config": {"fallback_policy": "NO_FALLBACK", "subset_selectors": [{"keys": ["version"]}]},
        },
        {
            "name": "usual-version",
            "type": "STATIC",
            "endpoints": versions(),
            "lb_subset_config": {
                "fallback_policy": "DEFAULT_SUBSET",
                "default_subset": {"version": "v2"},
                "subset_selectors": [{"keys": ["version"]}],
            },
        },
        {
            "name": "any-version",
            "type": "STATIC",
            "endpoints": [labelled("a", "v1")],
            "lb_subset_config": {"fallback_policy": "ANY_ENDPOINT", "subset_selectors": [{"keys": ["version"]}]},
        },
        limited("once", json!({"max_retries": 0})),
        limited("no-requests", json!({"max_requests": 0})),
        limited("no-pending", json!({"max_pending_requests": 0})),
        limited("no-connections", json!({"max_connections": 0})),
        limited("high", json!({"priority": "HIGH", "max_requests": 0})),
        limited("no-budget", json!({"retry_budget": {"budget_percent": {"value": 0}, "min_retry_concurrency": 0}})),
        {"name": "sick", "type": "STATIC", "endpoints": [healthy("a", "UNHEALTHY"), "b"]},
        {
            "name": "alone",
            "type": "STATIC",
            "common_lb_config": no_panic(),
            "endpoints": [healthy("a", "UNHEALTHY")],
        },
        {"name": "panic", "type": "STATIC", "endpoints": [healthy("b", "TIMEOUT")]},
        {"name": "draining", "type": "STATIC", "endpoints": [healthy("a", "DRAINING"), "b"]},
        {"name": "degraded", "type": "STATIC", "load_assignment": {
            // The healthy one gets everything.
            "policy": {"overprovisioning_factor": 200},
            "endpoints": [{"lb_endpoints": [at("a", "DEGRADED"), at("b", "HEALTHY")]}],
        }},
        {"name": "failover", "type": "STATIC", "load_assignment": {"endpoints": [
            {"priority": 0, "lb_endpoints": [at("dead", "UNHEALTHY")]},
            {"priority": 1, "lb_endpoints": [at("b", "HEALTHY")]},
        ]}},
        {
            "name": "localities",
            "type": "STATIC",
            "common_lb_config": {"locality_weighted_lb_config": {}},
            "load_assignment": {"endpoints": [
                {"locality": {"zone": "x"}, "load_balancing_weight": 1, "lb_endpoints": [at("a", "HEALTHY")]},
                {"locality": {"zone": "y"}, "lb_endpoints": [at("b", "HEALTHY")]},
            ]},
        },
        {
            "name": "ejected",
            "type": "STATIC",
            "endpoints": ["a"],
            "common_lb_config": no_panic(),
            "outlier_detection": {"consecutive_5xx": 1, "max_ejection_percent": 100, "base_ejection_time": "900s"},
        },
        {
            "name": "gateway",
            "type": "STATIC",
            "endpoints": ["a"],
            "common_lb_config": no_panic(),
            "outlier_detection": {
                "consecutive_5xx": 100, "consecutive_gateway_failure": 2, "enforcing_consecutive_gateway_failure": 100,
                "max_ejection_percent": 100, "base_ejection_time": "900s",
            },
        },
        {
            "name": "longest",
            "type": "STATIC",
            "endpoints": ["a"],
            "typed_extension_protocol_options": http_options(json!({
                "common_http_protocol_options": {"max_stream_duration": "9s", "idle_timeout": "60s"},
                "explicit_http_config": {"http_protocol_options": {}},
            })),
        },
        {
            "name": "proper",
            "type": "STATIC",
            "endpoints": ["b"],
            "typed_extension_protocol_options": http_options(json!({
                "explicit_http_config": {"http_protocol_options": {"header_key_format": {"proper_case_words": {}}}},
            })),
        },
        {"name": "least", "type": "STATIC", "lb_policy": "LEAST_REQUEST", "endpoints": ["a"]},
        {"name": "by-luck", "type": "STATIC", "lb_policy": "RANDOM", "endpoints": ["b"]},
        {
            "name": "one-each",
            "type": "STATIC",
            "endpoints": [labelled("a", "v1")],
            "metadata": {"filter_metadata": {"some": {"one": "of cluster"}}},
            "typed_extension_protocol_options": http_options(json!({
                "common_http_protocol_options": {"max_requests_per_connection": 1},
                "explicit_http_config": {"http_protocol_options": {}},
            })),
        },
        {
            "name": "trailers",
            "type": "STATIC",
            "endpoints": ["a"],
            "typed_extension_protocol_options": http_options(json!({
                "explicit_http_config": {"http_protocol_options": {"enable_trailers": true}},
            })),
        },
    ])
}

fn http_options(mut options: Value) -> Value {
    options["@type"] = json!("type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions");
    json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options})
}

impl Maker<'_> {
    /// A route to a peculiar cluster.
    pub(super) fn place(&mut self, forward: &mut Value) {
        if !self.draws(Feature::Places, 0.08) {
            return;
        }
        let place = self.text(&PLACES);
        if place == "mute" {
            // Far apart, so that which limit passes first is no matter of luck.
            let (limit, policy) = match self.chance(0.5) {
                true => ("2s", json!({"retry_on": "5xx", "num_retries": 1, "per_try_timeout": "0.1s"})),
                false => ("0.2s", json!({"retry_on": "reset", "num_retries": 0})),
            };
            (forward["timeout"], forward["retry_policy"]) = (json!(limit), policy);
        }
        if place == "high" && self.chance(0.6) {
            forward["priority"] = json!("HIGH");
        }
        if place == "none" && self.chance(0.6) {
            forward["cluster_not_found_response_code"] =
                json!(self.text(&["SERVICE_UNAVAILABLE", "NOT_FOUND", "INTERNAL_SERVER_ERROR"]));
        }
        forward["cluster"] = json!(place);
    }
}
