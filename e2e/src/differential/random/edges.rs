//! What the connection manager says about clients, versions and limits, seldom as it is.

use super::{Feature, Maker};
use rand::Rng;
use serde_json::{Value, json};

impl Maker<'_> {
    /// Settings at the edge, for one of a few things each.
    pub(super) fn edges(&mut self, manager: &mut Value) {
        let often = self.focus == Some(Feature::Edges);
        for _ in 0..self.rng.random_range(1..=3) {
            if self.chance(if often { 0.9 } else { 0.08 }) {
                self.edge(manager);
            }
        }
        if !manager["original_ip_detection_extensions"].is_null() {
            for key in ["use_remote_address", "xff_num_trusted_hops"] {
                manager.as_object_mut().map(|map| map.remove(key));
            }
        }
    }

    fn edge(&mut self, manager: &mut Value) {
        match self.rng.random_range(0..14) {
            0 => {
                manager["forward_client_cert_details"] = json!(self.text(&[
                    "SANITIZE",
                    "FORWARD_ONLY",
                    "APPEND_FORWARD",
                    "SANITIZE_SET",
                    "ALWAYS_FORWARD_ONLY"
                ]));
                manager["set_current_client_cert_details"] =
                    json!({"subject": self.chance(0.5), "uri": self.chance(0.7), "dns": self.chance(0.3)});
            }
            1 => {
                manager["original_ip_detection_extensions"] = json!([{
                    "name": "envoy.http.original_ip_detection.xff",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.http.original_ip_detection.xff.v3.XffConfig",
                        "xff_num_trusted_hops": self.one(&[0, 1, 2]),
                        "skip_xff_append": self.chance(0.5),
                    },
                }]);
            }
            2 => {
                manager["original_ip_detection_extensions"] = json!([{
                    "name": "envoy.http.original_ip_detection.custom_header",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig",
                        "header_name": "x-address",
                        "allow_extension_to_set_address_as_trusted": self.chance(0.5),
                    },
                }]);
            }
            3 => {
                manager["early_header_mutation_extensions"] = json!([{
                    "name": "envoy.http.early_header_mutation.header_mutation",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
                        "mutations": [
                            {"remove": self.text(&["x-one", "x-two"])},
                            {"append": {"header": {"key": "x-three", "value": "early %REQ(x-two)%"}}},
                        ],
                    },
                }]);
            }
            4 => {
                manager["internal_address_config"] =
                    json!({"cidr_ranges": [{"address_prefix": self.text(&["127.0.0.0", "10.0.0.0"]), "prefix_len": 8}]})
            }
            5 => manager["http_protocol_options"] = json!({"header_key_format": {"proper_case_words": {}}}),
            6 => manager["common_http_protocol_options"] = json!({"max_requests_per_connection": self.one(&[1, 2])}),
            7 => manager["request_headers_timeout"] = json!("9s"),
            8 => manager["codec_type"] = json!("AUTO"),
            9 => manager["http_protocol_options"] = json!({"allow_custom_methods": true}),
            10 => manager["merge_slashes"] = json!(true),
            11 => manager["strip_trailing_host_dot"] = json!(true),
            12 => {
                manager["http2_protocol_options"] =
                    json!({"max_concurrent_streams": 1, "initial_stream_window_size": 65_535})
            }
            _ => manager["http_protocol_options"] = json!({"allow_absolute_url": true, "enable_trailers": true}),
        }
    }
}
