//! Virtual hosts and routes: what is matched, where it goes, what is changed on the way.

use super::{Feature, Maker, NAMES, SEGMENTS};
use rand::Rng;
use serde_json::{Value, json};

impl Maker<'_> {
    /// A virtual host with these domains.
    pub(super) fn host(&mut self, number: usize, domains: &[&str]) -> Value {
        let routes: Vec<Value> = (0..self.rng.random_range(1..=6)).map(|number| self.route(number)).collect();
        let mut host = json!({"name": format!("host-{number}"), "domains": domains, "routes": routes});
        if self.chance(0.2) {
            host["request_headers_to_add"] = json!([self.header_op()]);
        }
        if self.chance(0.2) {
            host["response_headers_to_add"] = json!([self.header_op()]);
        }
        for (key, part) in [
            ("include_request_attempt_count", 0.1),
            ("include_attempt_count_in_response", 0.1),
            ("include_is_timeout_retry_header", 0.05),
        ] {
            if self.chance(part) {
                host[key] = json!(true);
            }
        }
        if self.chance(0.05) {
            host["require_tls"] = json!(self.text(&["EXTERNAL_ONLY", "ALL"]));
        }
        if self.draws(Feature::Retries, 0.1) {
            host["retry_policy"] = self.retries();
        }
        if self.chance(0.1) {
            let name = self.text(&["x-two", "x-backend", "content-type", "server"]);
            host["response_headers_to_remove"] = json!([name]);
        }
        if self.chance(0.05) {
            host["virtual_clusters"] = json!([{"name": "some", "headers": [self.header_match()]}]);
        }
        if self.draws(Feature::Mirrors, 0.03) {
            host["request_mirror_policies"] = json!([{"cluster": "h2"}]);
        }
        self.counts(&mut host);
        self.of_filters(&mut host);
        host
    }

    /// A retry policy that waits for next to nothing.
    pub(super) fn retries(&mut self) -> Value {
        let on = self.text(&[
            "5xx",
            "gateway-error",
            "retriable-4xx",
            "connect-failure,reset",
            "5xx,retriable-4xx",
            "retriable-status-codes",
            "reset-before-request",
            "retriable-headers",
            "refused-stream",
            "reset",
            "5xx,cancelled,unavailable",
            "internal,deadline-exceeded,resource-exhausted",
            "envoy-ratelimited",
            "http3-post-connect-failure,retriable-4xx",
        ]);
        let mut policy = json!({
            "retry_on": on,
            "num_retries": self.rng.random_range(0..=3),
            "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.002s"},
        });
        if on == "retriable-status-codes" {
            policy["retriable_status_codes"] = json!([404, 503]);
        }
        if on == "retriable-headers" {
            policy["retriable_headers"] = json!([self.header_match()]);
        }
        if self.chance(0.15) {
            policy["retriable_request_headers"] = json!([self.header_match()]);
        }
        if self.draws(Feature::Timeouts, 0.03) {
            policy["per_try_timeout"] = json!("0.2s");
        } else if self.draws(Feature::Timeouts, 0.02) {
            policy["per_try_idle_timeout"] = json!("0.2s");
        }
        if self.chance(0.15) {
            policy["rate_limited_retry_back_off"] =
                json!({"reset_headers": [{"name": "retry-after", "format": "SECONDS"}], "max_interval": "1s"});
        }
        if self.chance(0.15) {
            policy["retry_host_predicate"] = json!([{
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
            }]);
            policy["host_selection_retry_max_attempts"] = json!(20);
        }
        policy
    }

    pub(super) fn path(&mut self) -> String {
        let count = self.rng.random_range(0..=3);
        let mut path: String = (0..count).map(|_| format!("/{}", self.text(&SEGMENTS))).collect();
        if path.is_empty() || self.chance(0.2) {
            path.push('/');
        }
        path
    }

    pub(super) fn route(&mut self, number: usize) -> Value {
        let mut matcher = match self.rng.random_range(0..10) {
            // What is looked at closely is to be reached.
            _ if self.focus.is_some() && self.chance(0.4) => json!({"prefix": "/"}),
            0..=4 => json!({"prefix": self.path()}),
            5..=6 => json!({"path": self.path()}),
            7 => {
                let path = self.path();
                let path = path.trim_end_matches('/');
                if path.is_empty() { json!({"prefix": "/"}) } else { json!({"path_separated_prefix": path}) }
            }
            _ => {
                let regex = self.text(&["/[a-z]+", "/a.*", "/(a|b)/.*", "/[^/]+/[^/]+", ".*1.*", "/\\w+/?"]);
                json!({"safe_regex": {"regex": regex}})
            }
        };
        let mut rewrite = None;
        if self.draws(Feature::Templates, 0.04) {
            (matcher, rewrite) = self.template();
        }
        let plain = matcher["safe_regex"].is_null() && matcher["path_match_policy"].is_null();
        if plain && self.chance(0.2) {
            matcher["case_sensitive"] = json!(false);
        }
        self.conditions(&mut matcher);
        if self.draws(Feature::Grpc, 0.03) {
            matcher["grpc"] = json!({});
        }
        if self.chance(0.03) {
            matcher["tls_context"] = json!({"presented": self.chance(0.3)});
        }
        let mut route = json!({"name": format!("r{number}"), "match": matcher});
        let kind = match self.draws(Feature::Redirects, 0.0) {
            true => 0,
            false => self.rng.random_range(0..10),
        };
        match kind {
            0 => route["redirect"] = self.redirect(),
            1 => {
                let status = self.one(&[200, 200, 201, 204, 205, 301, 304, 404, 418, 503, 599]).unwrap_or(200);
                route["direct_response"] = match status == 204 || status == 304 || self.chance(0.3) {
                    true => json!({"status": status}),
                    false => json!({"status": status, "body": {"inline_string": "direct\n"}}),
                };
            }
            _ => route["route"] = self.forward(),
        }
        if !route["match"]["path_match_policy"].is_null() {
            for action in ["redirect", "route"] {
                route[action].as_object_mut().map(|action| action.remove("prefix_rewrite"));
            }
            for action in ["redirect", "route"] {
                if route[action].is_null() {
                    route.as_object_mut().map(|route| route.remove(action));
                }
            }
        }
        if let (Some(rewrite), Some(forward)) = (rewrite, route.get_mut("route")) {
            for key in ["prefix_rewrite", "regex_rewrite"] {
                forward.as_object_mut().map(|map| map.remove(key));
            }
            forward["path_rewrite_policy"] = rewrite;
        }
        if self.chance(0.1) {
            route["metadata"] = json!({"filter_metadata": {"some": {"one": "of route", "deep": {"two": [1, true]}}}});
        }

        if self.chance(0.25) {
            route["request_headers_to_add"] = json!([self.header_op()]);
        }
        if self.chance(0.1) {
            route["request_headers_to_remove"] = json!([self.text(&NAMES)]);
        }
        if self.chance(0.25) {
            route["response_headers_to_add"] = json!([self.header_op()]);
        }
        if self.chance(0.1) {
            route["response_headers_to_remove"] = json!(["x-backend"]);
        }
        if self.draws(Feature::Buffers, 0.05) {
            let limit = self.one(&[2, 50_000]);
            // Where nobody can be connected to, a body that is too long to be kept is a deliberate difference (`unread-bodies`).
            if !route["route"].to_string().contains("\"dead\"") {
                route["per_request_buffer_limit_bytes"] = json!(limit);
            }
        }
        self.of_filters(&mut route);
        route
    }

    fn forward(&mut self) -> Value {
        let mut forward = json!({"cluster": self.text(&["a", "b"])});
        match self.rng.random_range(0..8) {
            0 | 1 => forward["prefix_rewrite"] = json!(self.path()),
            2 => {
                let (regex, substitution) = self
                    .one(&[("a", "z"), ("^/([^/]*)", "/w-\\1"), ("([^/])([^/])$", "\\2\\1"), ("/+", "/")])
                    .unwrap_or(("a", "b"));
                forward["regex_rewrite"] = json!({"pattern": {"regex": regex}, "substitution": substitution});
            }
            _ => {}
        }
        if self.chance(0.15) {
            forward["host_rewrite_literal"] = json!("rewritten.example");
        }
        if self.draws(Feature::Retries, 0.25) {
            forward["retry_policy"] = self.retries();
        }
        if self.chance(0.1) {
            forward["host_rewrite_header"] = json!(self.text(&NAMES));
            if let Some(map) = forward.as_object_mut() {
                map.remove("host_rewrite_literal");
            }
        }
        if forward["host_rewrite_literal"].is_null() && forward["host_rewrite_header"].is_null() && self.chance(0.05) {
            forward["host_rewrite_path_regex"] =
                json!({"pattern": {"regex": "^/([a-z]+).*"}, "substitution": "\\1.example"});
        }
        if self.draws(Feature::Mirrors, 0.06) {
            let mut mirror = json!({"cluster": "h2"});
            for (key, value, part) in [
                ("runtime_fraction", json!({"default_value": {"numerator": 0}}), 0.1),
                ("disable_shadow_host_suffix_append", json!(true), 0.3),
                ("trace_sampled", json!(false), 0.1),
            ] {
                if self.chance(part) {
                    mirror[key] = value;
                }
            }
            forward["request_mirror_policies"] = json!([mirror]);
        }
        if self.draws(Feature::Redirects, 0.05) {
            forward["internal_redirect_policy"] = json!({
                "max_internal_redirects": self.rng.random_range(0..=2),
                "redirect_response_codes": [302, 307],
                "allow_cross_scheme_redirect": self.chance(0.3),
            });
            if self.chance(0.3) {
                forward["internal_redirect_policy"]["response_headers_to_copy"] =
                    json!([self.text(&["x-one", "x-three", "x-backend", "x-none"])]);
            }
        }
        if self.chance(0.1) {
            forward["append_x_forwarded_host"] = json!(true);
        }
        if self.chance(0.1) {
            forward["timeout"] = json!(self.text(&["0s", "7s", "30s"]));
        }
        if self.draws(Feature::Timeouts, 0.02) {
            forward["timeout"] = json!("0.2s");
        }
        if self.chance(0.03) {
            forward["retry_policy"] = json!({"retry_on": "connect-failure,5xx", "num_retries": 1, "retry_back_off": {"base_interval": "0.001s"}});
            forward["cluster"] = json!("dead");
        }
        if self.draws(Feature::Retries, 0.03) {
            forward["cluster"] = json!("once");
        }
        if self.draws(Feature::Grpc, 0.02) {
            forward["cluster"] = json!(self.text(&["h2", "h2", "trailers"]));
            if self.chance(0.3) {
                forward["max_grpc_timeout"] = json!(self.text(&["0s", "6s"]));
                forward["grpc_timeout_offset"] = json!("0.5s");
            } else if self.chance(0.2) {
                forward["max_stream_duration"] =
                    json!({"max_stream_duration": "9s", "grpc_timeout_header_max": self.text(&["0s", "6s"])});
            }
        }
        if self.draws(Feature::Hashes, 0.08) {
            forward["cluster"] = json!(self.text(&["ring", "maglev", "small-ring", "small-maglev"]));
            forward["hash_policy"] = self.hashes();
        }
        if self.draws(Feature::Upgrades, 0.03) {
            forward["upgrade_configs"] = json!([{
                "upgrade_type": self.text(&["websocket", "other"]), "enabled": self.chance(0.7),
            }]);
        }
        if self.draws(Feature::Subsets, 0.05) {
            forward["cluster"] = json!(self.text(&["versions", "usual-version", "any-version"]));
            forward["metadata_match"] =
                json!({"filter_metadata": {"envoy.lb": {"version": self.text(&["v1", "v2", "v3"])}}});
        }
        if self.chance(0.1) {
            forward["idle_timeout"] = json!("9s");
        }
        if self.chance(0.05) {
            forward["max_stream_duration"] = json!({"grpc_timeout_header_max": self.text(&["3s", "0s"])});
        }
        if self.chance(0.1) {
            forward["cluster"] = json!(self.text(&["none", "h2"]));
            forward["cluster_not_found_response_code"] = json!(self.text(&["NOT_FOUND", "SERVICE_UNAVAILABLE"]));
        }
        self.place(&mut forward);
        self.counts(&mut forward);
        let plain = forward["hash_policy"].is_null() && forward["metadata_match"].is_null();
        if plain && self.draws(Feature::Weights, 0.1) {
            if let Some(map) = forward.as_object_mut() {
                map.remove("cluster");
            }
            if self.chance(0.25) {
                forward["cluster_header"] = json!("x-cluster");
                return forward;
            }
            let one = |maker: &mut Self, name: &str, weight: u32| {
                let mut cluster = json!({"name": name, "weight": weight});
                if maker.chance(0.1) {
                    cluster["host_rewrite_literal"] = json!("weighted.example:81");
                }
                if maker.chance(0.4) {
                    cluster["request_headers_to_add"] = json!([maker.header_op()]);
                }
                if maker.chance(0.3) {
                    cluster["response_headers_to_add"] = json!([maker.header_op()]);
                }
                if maker.chance(0.2) {
                    cluster["host_rewrite_literal"] = json!("weighted.example");
                }
                if maker.chance(0.2) {
                    cluster["request_headers_to_remove"] = json!(["x-one"]);
                }
                if maker.chance(0.2) {
                    cluster["response_headers_to_remove"] = json!(["x-two", "x-backend"]);
                }
                maker.of_filters(&mut cluster);
                cluster
            };
            forward["weighted_clusters"] = json!({"clusters": [one(self, "a", 1), one(self, "b", 0)]});
            if self.chance(0.4) {
                let clusters = [one(self, "a", 30), one(self, "b", 50), one(self, "none", 20)];
                forward["weighted_clusters"] = json!({"clusters": clusters, "header_name": "x-weight"});
            }
        }
        if self.chance(0.15) {
            forward["internal_redirect_policy"] =
                json!({"redirect_response_codes": [302, 303], "max_internal_redirects": 2});
        }
        forward
    }

    /// What a request's hash is made of; at last its source, so that no endpoint is a matter of luck.
    fn hashes(&mut self) -> Value {
        let mut policies = Vec::new();
        for _ in 0..self.rng.random_range(0..=2) {
            let mut policy = match self.rng.random_range(0..4) {
                0 => json!({"header": {"header_name": self.text(&super::NAMES)}}),
                1 => json!({"query_parameter": {"name": self.text(&["k", "j"])}}),
                2 => json!({"cookie": {"name": "session"}}),
                _ => json!({"header": {"header_name": "x-two", "regex_rewrite":
                    {"pattern": {"regex": "o.*"}, "substitution": "x"}}}),
            };
            if self.chance(0.3) {
                policy["terminal"] = json!(true);
            }
            policies.push(policy);
        }
        policies.push(json!({"connection_properties": {"source_ip": true}}));
        json!(policies)
    }

    fn redirect(&mut self) -> Value {
        let mut redirect = match self.rng.random_range(0..11) {
            0 => json!({"https_redirect": true}),
            1 => json!({"host_redirect": "elsewhere.example"}),
            2 => json!({"path_redirect": "/elsewhere"}),
            3 => json!({"path_redirect": "/elsewhere?own=1"}),
            4 => json!({"scheme_redirect": self.text(&["http", "https"]), "port_redirect": 8443}),
            5 => json!({"host_redirect": "elsewhere.example", "port_redirect": 80, "https_redirect": true}),
            6 => json!({"regex_rewrite": {"pattern": {"regex": "^/([^/]*)"}, "substitution": "/r-\\1"}}),
            7 => json!({"regex_rewrite": {"pattern": {"regex": "([a-z]+)$"}, "substitution": "\\1?more=\\1"}}),
            8 => json!({"prefix_rewrite": "/new?own=1", "host_redirect": "elsewhere.example:99"}),
            _ => json!({"prefix_rewrite": self.path()}),
        };
        if self.chance(0.15) && redirect["https_redirect"].is_null() && redirect["scheme_redirect"].is_null() {
            redirect["https_redirect"] = json!(true);
        }
        if self.chance(0.3) {
            redirect["response_code"] =
                json!(self.text(&["FOUND", "SEE_OTHER", "TEMPORARY_REDIRECT", "PERMANENT_REDIRECT"]));
        }
        if self.chance(0.2) {
            redirect["strip_query"] = json!(true);
        }
        redirect
    }

    pub(super) fn header_op(&mut self) -> Value {
        let action = self.text(&[
            "APPEND_IF_EXISTS_OR_ADD",
            "ADD_IF_ABSENT",
            "OVERWRITE_IF_EXISTS_OR_ADD",
            "OVERWRITE_IF_EXISTS",
        ]);
        let value = self.text(&[
            "fixed",
            "%REQ(x-one)%",
            "%PROTOCOL%",
            "<%REQ(:path)%>",
            "100%%",
            "%RESPONSE_CODE%",
            "%RESPONSE_FLAGS%",
            "%REQ(x-two?x-one):3%",
            "%ROUTE_NAME%",
            "%REQ(:authority)%%REQ(:method)%",
            "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
            "%RESP(x-two)%",
            "%PATH(NQ)%",
            "%QUERY_PARAM(k)%",
            "%REQ(:scheme)%",
            "%UPSTREAM_CLUSTER%",
            "%BYTES_RECEIVED%",
            "%GRPC_STATUS%",
            "%METADATA(ROUTE:some:one)%",
            "%METADATA(ROUTE:some:deep)%",
            "%METADATA(CLUSTER:some:one)%",
            "%UPSTREAM_METADATA(envoy.lb:version)%",
            "%CLUSTER_METADATA(some:one)%",
            "%DOWNSTREAM_LOCAL_PORT%",
            "%DOWNSTREAM_LOCAL_ADDRESS%",
            "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%",
            "%UPSTREAM_HOST%",
            "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
            "%UPSTREAM_REMOTE_PORT%",
            "%QUERY_PARAMS%",
            "%QUERY_PARAM(j):2%",
            "%PATH(WQ:ORIG)%",
            "%PATH(WQ:PATH)%",
            "%REQ(X-ENVOY-ORIGINAL-PATH?:path)%",
            "%REQ(host)%",
            "%UPSTREAM_PROTOCOL%",
            "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
            "%TRAILER(x-end)%",
            "%RESPONSE_FLAGS_LONG%",
            "%START_TIME(%Y)%",
            "%FILTER_CHAIN_NAME%",
            "%REQUESTED_SERVER_NAME%",
            "%PROTOCOL%-%REQ(x-three)%",
            "%RESP(x-backend)%/%RESP(:status)%",
            "%GRPC_STATUS_NUMBER%",
            "%BYTES_SENT%",
            "%RESPONSE_CODE_DETAILS%",
            "%VIRTUAL_CLUSTER_NAME%",
            "%DOWNSTREAM_DIRECT_LOCAL_PORT%",
            "%REQ(x-forwarded-proto):4%",
            "%REQ(cookie)%",
            "a, %REQ(x-one)%, \"c\"",
            "  spaced  ",
            "",
        ]);
        let key = match self.draws(Feature::Doubles, 0.1) {
            true => self.text(&[
                "via",
                "cache-control",
                "content-type",
                "vary",
                "x-forwarded-for",
                "referer",
                "X-Upper",
                "set-cookie",
                "server",
                "date",
                "x-request-id",
                "user-agent",
                "x-forwarded-proto",
            ]),
            false => self.text(&NAMES),
        };
        let mut op = json!({"header": {"key": key, "value": value}, "append_action": action});
        if value.is_empty() && self.chance(0.5) {
            op["keep_empty_value"] = json!(true);
        }
        op
    }
}
