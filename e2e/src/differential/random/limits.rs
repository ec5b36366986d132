//! Limits of rates, and what requests count as.

use super::filters::typed;
use super::{Feature, Maker};
use rand::Rng;
use serde_json::{Value, json};

impl Maker<'_> {
    pub(super) fn limit(&mut self) -> Value {
        let tokens = self.rng.random_range(1..=8);
        let share = |maker: &mut Self| json!({"default_value": {"numerator": if maker.chance(0.9) { 100 } else { 0 }}});
        let mut config = json!({
            "stat_prefix": "limit",
            "token_bucket": bucket(tokens),
            "filter_enabled": share(self),
            "filter_enforced": share(self),
        });
        for (key, value, part) in [
            ("status", json!({"code": 503}), 0.2),
            ("response_headers_to_add", json!([self.header_op()]), 0.4),
            ("request_headers_to_add_when_not_enforced", json!([self.header_op()]), 0.2),
            ("rate_limited_as_resource_exhausted", json!(true), 0.3),
            ("always_consume_default_token_bucket", json!(false), 0.2),
            ("local_rate_limit_per_downstream_connection", json!(true), 0.1),
            ("stage", json!(1), 0.1),
            ("vh_rate_limits", json!(self.text(&["OVERRIDE", "INCLUDE", "IGNORE"])), 0.2),
        ] {
            if self.chance(part) {
                config[key] = value;
            }
        }
        if self.chance(0.4) {
            let count = self.rng.random_range(1..=3);
            let mut descriptors: Vec<Value> = Vec::new();
            for _ in 0..count {
                let one = self.descriptor();
                // Envoy refuses two alike.
                if descriptors.iter().all(|other| other["entries"] != one["entries"]) {
                    descriptors.push(one);
                }
            }
            config["descriptors"] = json!(descriptors);
            if self.chance(0.7) {
                config["rate_limits"] = self.policies(false);
            }
        }
        typed("local_ratelimit.v3.LocalRateLimit", config)
    }

    /// A descriptor that one of the actions below may make.
    fn descriptor(&mut self) -> Value {
        let entries = match self.rng.random_range(0..8) {
            0 => json!([{"key": "one", "value": "1"}]),
            1 => json!([{"key": "one", "value": "one"}, {"key": "generic_key", "value": "fixed"}]),
            2 => json!([{"key": "generic_key", "value": "fixed"}]),
            3 => json!([{"key": "remote_address", "value": "127.0.0.1"}]),
            4 => json!([{"key": "header_match", "value": "matched"}]),
            5 => json!([{"key": "query_match", "value": "matched"}]),
            6 => json!([{"key": "masked_remote_address", "value": "127.0.0.0/8"}]),
            _ => json!([{"key": "query", "value": "1"}]),
        };
        let mut descriptor = json!({"entries": entries, "token_bucket": bucket(self.rng.random_range(1..=2))});
        if self.chance(0.1) {
            descriptor["shadow_mode"] = json!(true);
        }
        descriptor
    }

    /// What requests count as.
    pub(super) fn policies(&mut self, staged: bool) -> Value {
        (0..self.rng.random_range(1..=2))
            .map(|_| {
                let count = if self.chance(0.25) { 2 } else { 1 };
                let mut policy = json!({"actions": (0..count).map(|_| self.counted()).collect::<Vec<_>>()});
                if staged && self.chance(0.1) {
                    policy["stage"] = json!(1);
                }
                policy
            })
            .collect()
    }

    fn counted(&mut self) -> Value {
        match self.rng.random_range(0..8) {
            0 | 1 => json!({"request_headers":
                {"header_name": "x-one", "descriptor_key": "one", "skip_if_absent": self.chance(0.3)}}),
            2 => json!({"generic_key": {"descriptor_value": "fixed"}}),
            3 => json!({"remote_address": {}}),
            4 => json!({"header_value_match":
                {"descriptor_value": "matched", "expect_match": self.chance(0.7), "headers": [self.header_match()]}}),
            5 => json!({"query_parameter_value_match":
                {"descriptor_value": "matched", "expect_match": self.chance(0.7), "query_parameters": [self.query_match()]}}),
            6 => json!({"masked_remote_address": {"v4_prefix_mask_len": 8}}),
            _ => json!({"query_parameters": {"query_parameter_name": "k", "descriptor_key": "query"}}),
        }
    }

    /// What a virtual host or a route makes requests count as.
    pub(super) fn counts(&mut self, place: &mut Value) {
        if self.filters.iter().any(|name| name == "limit") && self.draws(Feature::Limits, 0.2) && self.chance(0.4) {
            place["rate_limits"] = self.policies(true);
        }
    }
}

/// A bucket that is not filled again while a case lasts.
fn bucket(tokens: i32) -> Value {
    json!({"max_tokens": tokens, "tokens_per_fill": tokens, "fill_interval": "900s"})
}
