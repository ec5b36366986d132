//! HTTP filters before the router, and what virtual hosts and routes say about them.

use super::{Feature, Maker};
use rand::Rng;
use serde_json::{Value, json};

/// The beginning of the types of HTTP filters.
const TYPES: &str = "type.googleapis.com/envoy.extensions.filters.http";

pub(super) fn typed(name: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!("{TYPES}.{name}"));
    config
}

fn always() -> Value {
    json!({"numerator": 100})
}

impl Maker<'_> {
    /// Filters before the router, in any order.
    pub(super) fn filters(&mut self) -> Value {
        let mut filters = Vec::new();
        for (name, feature) in [
            ("cors", Feature::Cors),
            ("fault", Feature::Faults),
            ("rbac", Feature::Rbac),
            ("limit", Feature::Limits),
            ("mutation", Feature::Mutations),
            ("buffer", Feature::Buffers),
            ("compressor", Feature::Compression),
            ("second", Feature::Compression),
            ("decompressor", Feature::Compression),
            ("health", Feature::Health),
        ] {
            let seldom = matches!(name, "second" | "decompressor");
            let wanted = match seldom {
                true => self.draws(feature, 0.06) && self.chance(0.4),
                false => self.focus == Some(feature) || self.draws(feature, 0.12),
            };
            if wanted {
                let config = self.filter(name);
                let at = self.rng.random_range(0..=filters.len());
                filters.insert(at, json!({"name": name, "typed_config": config}));
                self.filters.push(name.to_owned());
            }
        }
        json!(filters)
    }

    fn filter(&mut self, name: &str) -> Value {
        match name {
            "cors" => typed("cors.v3.Cors", json!({})),
            "fault" => self.fault(),
            "rbac" => self.rbac(),
            "limit" => self.limit(),
            "mutation" => {
                let mut config = json!({"mutations": self.mutations()});
                if self.chance(0.3) {
                    config["most_specific_header_mutations_wins"] = json!(true);
                }
                typed("header_mutation.v3.HeaderMutation", config)
            }
            "buffer" => typed("buffer.v3.Buffer", json!({"max_request_bytes": self.one(&[4, 100, 100_000])})),
            "health" => typed(
                "health_check.v3.HealthCheck",
                json!({
                    "pass_through_mode": false,
                    "headers": [{"name": ":path", "string_match": {"prefix": self.text(&["/a", "/health", "/api"])}}],
                }),
            ),
            "decompressor" => self.decompressor(),
            _ => self.compressor(),
        }
    }

    /// What a virtual host, a route or a target says about one of the filters.
    pub(super) fn of_filters(&mut self, place: &mut Value) {
        let mut own = json!({});
        for name in self.filters.clone() {
            let feature = match name.as_str() {
                "cors" => Feature::Cors,
                "fault" => Feature::Faults,
                "rbac" => Feature::Rbac,
                "limit" => Feature::Limits,
                "mutation" => Feature::Mutations,
                "buffer" => Feature::Buffers,
                "compressor" | "second" => Feature::Compression,
                _ => continue,
            };
            if !self.draws(feature, 0.3) {
                continue;
            }
            if name != "cors" && self.chance(0.15) {
                own[&name] = json!({
                    "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig",
                    "disabled": true,
                });
                continue;
            }
            own[&name] = match name.as_str() {
                "cors" => self.origins(),
                "fault" => self.fault(),
                "rbac" => match self.chance(0.3) {
                    true => typed("rbac.v3.RBACPerRoute", json!({})),
                    false => {
                        let mut rbac = self.rbac();
                        if let Some(map) = rbac.as_object_mut() {
                            map.remove("@type");
                        }
                        typed("rbac.v3.RBACPerRoute", json!({"rbac": rbac}))
                    }
                },
                "limit" => self.limit(),
                "mutation" => {
                    typed("header_mutation.v3.HeaderMutationPerRoute", json!({"mutations": self.mutations()}))
                }
                "buffer" => match self.chance(0.3) {
                    true => typed("buffer.v3.BufferPerRoute", json!({"disabled": true})),
                    false => typed("buffer.v3.BufferPerRoute", json!({"buffer": {"max_request_bytes": 8}})),
                },
                _ => typed(
                    "compressor.v3.CompressorPerRoute",
                    match self.chance(0.5) {
                        true => json!({"disabled": true}),
                        false => json!({"overrides": {"response_direction_config":
                            {"remove_accept_encoding_header": self.chance(0.7)}}}),
                    },
                ),
            };
        }
        if own.as_object().is_some_and(|map| !map.is_empty()) {
            place["typed_per_filter_config"] = own;
        }
    }

    fn origins(&mut self) -> Value {
        let mut policy = json!({"allow_origin_string_match": [
            match self.rng.random_range(0..3) {
                0 => json!({"exact": "http://a.example"}),
                1 => json!({"safe_regex": {"regex": "https?://[a-b]\\.example"}}),
                _ => json!({"prefix": "*"}),
            }
        ]});
        for (key, value, part) in [
            ("allow_methods", json!("GET,PUT"), 0.6),
            ("allow_headers", json!("x-one, x-two"), 0.5),
            ("expose_headers", json!("x-three"), 0.5),
            ("max_age", json!("60"), 0.5),
            ("allow_credentials", json!(true), 0.4),
            ("forward_not_matching_preflights", json!(false), 0.3),
            ("allow_private_network_access", json!(true), 0.2),
            ("filter_enabled", json!({"default_value": {"numerator": 0}}), 0.1),
            ("shadow_enabled", json!({"default_value": always()}), 0.1),
        ] {
            if self.chance(part) {
                policy[key] = value;
            }
        }
        typed("cors.v3.CorsPolicy", policy)
    }

    fn fault(&mut self) -> Value {
        let mut config = json!({});
        match self.rng.random_range(0..5) {
            0 | 1 => config["abort"] = json!({"http_status": self.one(&[400, 429, 503, 200]), "percentage": always()}),
            2 => config["abort"] = json!({"grpc_status": self.one(&[0, 5, 14]), "percentage": always()}),
            3 => config["abort"] = json!({"header_abort": {}, "percentage": always()}),
            _ => config["abort"] = json!({"http_status": 500, "percentage": {"numerator": 0}}),
        }
        match self.rng.random_range(0..8) {
            0 => config["delay"] = json!({"fixed_delay": "0.005s", "percentage": always()}),
            1 => config["delay"] = json!({"header_delay": {}, "percentage": always()}),
            _ => {}
        }
        if self.chance(0.4) {
            config["headers"] = json!([self.header_match()]);
        }
        if self.chance(0.1) {
            config["upstream_cluster"] = json!(self.text(&["${cluster:a}", "${cluster:b}"]));
        }
        if self.chance(0.1) {
            config["max_active_faults"] = json!(0);
        }
        if self.chance(0.1) {
            config["downstream_nodes"] = json!([self.text(&["differential", "other"])]);
        }
        typed("fault.v3.HTTPFault", config)
    }

    fn rbac(&mut self) -> Value {
        let mut config = json!({});
        if self.chance(0.85) {
            config["rules"] = self.rules();
        }
        if self.chance(0.2) {
            config["shadow_rules"] = self.rules();
        }
        typed("rbac.v3.RBAC", config)
    }

    fn rules(&mut self) -> Value {
        let mut policies = json!({});
        for number in 0..self.rng.random_range(1..=2) {
            let permissions: Vec<Value> = (0..self.rng.random_range(1..=2)).map(|_| self.permission(2)).collect();
            let principals: Vec<Value> = (0..self.rng.random_range(1..=2)).map(|_| self.principal(2)).collect();
            policies[format!("p{number}")] = json!({"permissions": permissions, "principals": principals});
        }
        json!({"action": self.text(&["ALLOW", "DENY", "LOG"]), "policies": policies})
    }

    fn permission(&mut self, deep: u32) -> Value {
        if self.chance(0.15) {
            return match self.rng.random_range(0..5) {
                0 => {
                    json!({"destination_ip": {"address_prefix": self.text(&["127.0.0.0", "10.0.0.0"]), "prefix_len": 8}})
                }
                1 => json!({"destination_port": self.one(&[80, 20_000])}),
                2 => json!({"destination_port_range": {"start": 20_000, "end": self.one(&[20_001, 40_000])}}),
                3 => json!({"requested_server_name": {"exact": self.text(&["", "server.example"])}}),
                _ => json!({"requested_server_name": self.string_match()}),
            };
        }
        match self.rng.random_range(0..if deep > 0 { 9 } else { 6 }) {
            0 => json!({"any": true}),
            1 => json!({"header": self.header_match()}),
            2 => json!({"header": {"name": ":method", "string_match": {"exact": self.text(&["GET", "POST"])}}}),
            3 | 4 => json!({"url_path": {"path": {"prefix": self.path()}}}),
            5 => json!({"url_path": {"path": self.string_match()}}),
            6 => json!({"not_rule": self.permission(deep - 1)}),
            7 => json!({"and_rules": {"rules": [self.permission(deep - 1), self.permission(deep - 1)]}}),
            _ => json!({"or_rules": {"rules": [self.permission(deep - 1), self.permission(deep - 1)]}}),
        }
    }

    fn principal(&mut self, deep: u32) -> Value {
        let range = json!({"address_prefix": self.text(&["127.0.0.0", "1.2.3.4", "10.0.0.0"]), "prefix_len": 8});
        match self.rng.random_range(0..if deep > 0 { 9 } else { 6 }) {
            0 | 1 => json!({"any": true}),
            2 => json!({"header": self.header_match()}),
            3 if self.chance(0.3) => json!({"source_ip": range}),
            3 if self.chance(0.3) => json!({"authenticated": {}}),
            3 if self.chance(0.3) => json!({"authenticated": {"principal_name": {"prefix": "spiffe://"}}}),
            3 => json!({"direct_remote_ip": range}),
            4 => json!({"remote_ip": range}),
            5 => json!({"url_path": {"path": {"prefix": self.path()}}}),
            6 => json!({"not_id": self.principal(deep - 1)}),
            7 => json!({"and_ids": {"ids": [self.principal(deep - 1), self.principal(deep - 1)]}}),
            _ => json!({"or_ids": {"ids": [self.principal(deep - 1), self.principal(deep - 1)]}}),
        }
    }

    fn mutations(&mut self) -> Value {
        let list = |maker: &mut Self| -> Vec<Value> {
            (0..maker.rng.random_range(0..=2))
                .map(|_| match maker.chance(0.3) {
                    true => json!({"remove": maker.text(&["x-one", "x-two", "x-three", "user-agent", "x-backend"])}),
                    false => json!({"append": maker.header_op()}),
                })
                .collect()
        };
        json!({"request_mutations": list(self), "response_mutations": list(self)})
    }

    fn compressor(&mut self) -> Value {
        let (library, package, name) = self
            .one(&[("gzip", "gzip", "Gzip"), ("br", "brotli", "Brotli"), ("zstd", "zstd", "Zstd")])
            .unwrap_or(("gzip", "gzip", "Gzip"));
        let mut common = json!({});
        if self.chance(0.5) {
            common["min_content_length"] = json!(self.one(&[10, 100, 1000]));
        }
        if self.chance(0.3) {
            common["content_type"] =
                json!(self.one(&[&["text/plain", "application/json"][..], &["Text/HTML"], &["image/png"]]));
        }
        let mut answers = json!({"common_config": common});
        for (key, value) in [
            ("disable_on_etag_header", json!(true)),
            ("remove_accept_encoding_header", json!(true)),
            ("weaken_etag_on_compress", json!(true)),
            ("uncompressible_response_codes", json!([404, 500])),
        ] {
            if self.chance(0.2) && (key != "weaken_etag_on_compress" || answers["disable_on_etag_header"].is_null()) {
                answers[key] = value;
            }
        }
        let mut config = json!({
            "response_direction_config": answers,
            "compressor_library": {"name": library, "typed_config":
                {"@type": format!("type.googleapis.com/envoy.extensions.compression.{package}.compressor.v3.{name}")}},
        });
        if self.chance(0.2) {
            config["choose_first"] = json!(true);
        }
        if self.chance(0.2) && !self.filters.iter().any(|name| name == "buffer") {
            config["request_direction_config"] = json!({"common_config":
                {"enabled": {"default_value": true, "runtime_key": "none"}, "min_content_length": 10}});
        }
        typed("compressor.v3.Compressor", config)
    }

    fn decompressor(&mut self) -> Value {
        let (library, package, name) = self
            .one(&[("gzip", "gzip", "Gzip"), ("br", "brotli", "Brotli"), ("zstd", "zstd", "Zstd")])
            .unwrap_or(("gzip", "gzip", "Gzip"));
        let mut config = json!({"decompressor_library": {"name": library, "typed_config":
            {"@type": format!("type.googleapis.com/envoy.extensions.compression.{package}.decompressor.v3.{name}")}}});
        let off = json!({"enabled": {"default_value": false, "runtime_key": "none"}});
        if self.chance(0.3) {
            config["request_direction_config"] = json!({"common_config": off});
        } else if self.chance(0.5) {
            config["request_direction_config"] = json!({"advertise_accept_encoding": self.chance(0.5)});
        }
        if self.chance(0.3) {
            config["response_direction_config"] = json!({"common_config": off});
        } else if self.chance(0.3) {
            config["response_direction_config"] = json!({"common_config": {"ignore_no_transform_header": true}});
        }
        typed("decompressor.v3.Decompressor", config)
    }
}
