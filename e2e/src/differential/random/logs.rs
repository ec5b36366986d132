//! Access logs, their filters, and other words for answers of the proxy.

use super::{Feature, Maker};
use rand::Rng;
use serde_json::{Value, json};

impl Maker<'_> {
    /// Other words for answers of the proxy.
    pub(super) fn local_replies(&mut self) -> Value {
        let mut mapper = json!({"filter": self.log_filter()});
        for (key, value) in [
            ("status_code", json!(404)),
            ("headers_to_add", json!([self.header_op()])),
            ("body", json!({"inline_string": "another body"})),
            (
                "body_format_override",
                json!({"text_format_source": {"inline_string": "<%RESPONSE_CODE% %REQ(x-one)%>"}, "content_type": "text/html"}),
            ),
        ] {
            if self.chance(0.4) {
                mapper[key] = value;
            }
        }
        let mut config = json!({"mappers": [mapper]});
        match self.rng.random_range(0..3) {
            0 => {
                config["body_format"] =
                    json!({"text_format_source": {"inline_string": "%RESPONSE_CODE% %LOCAL_REPLY_BODY%\n"}});
            }
            1 => {
                config["body_format"] = json!({"json_format": {"code": "%RESPONSE_CODE%", "path": "%REQ(:path)%", "body": "%LOCAL_REPLY_BODY%"}})
            }
            _ => {}
        }
        config
    }

    /// A filter of the access log or of local replies.
    pub(super) fn log_filter(&mut self) -> Value {
        match self.rng.random_range(0..9) {
            5 => {
                json!({"runtime_filter": {"runtime_key": "none", "percent_sampled": {"numerator": self.one(&[0, 100])}}})
            }
            6 => {
                json!({"grpc_status_filter": {"statuses": [self.text(&["OK", "UNAVAILABLE", "NOT_FOUND"])], "exclude": self.chance(0.5)}})
            }
            7 => json!({"duration_filter": {"comparison":
                {"op": "GE", "value": {"default_value": self.one(&[0, 60_000]), "runtime_key": "none"}}}}),
            8 => json!({"metadata_filter": {
                "matcher": {"filter": "some", "path": [{"key": "one"}], "value": {"present_match": true}},
                "match_if_key_not_found": self.chance(0.5),
            }}),
            0 | 1 => {
                let (op, code) = (self.text(&["GE", "EQ", "LE", "NE"]), self.one(&[404, 403, 503, 200]));
                json!({"status_code_filter": {"comparison": {"op": op, "value": {"default_value": code, "runtime_key": "none"}}}})
            }
            2 => {
                json!({"response_flag_filter": {"flags": [self.text(&["NR", "UF", "FI", "RL", "UC", "UT", "URX", "UO", "UH", "NC", "DC", "UR"])]}})
            }
            3 => json!({"header_filter": {"header": self.header_match()}}),
            _ => json!({"or_filter": {"filters": [
                {"response_flag_filter": {}},
                {"and_filter": {"filters": [{"header_filter": {"header": self.header_match()}}, {"not_health_check_filter": {}}]}},
            ]}}),
        }
    }

    /// Further lines of the access log.
    pub(super) fn logs(&mut self) -> Value {
        if !self.draws(Feature::Logs, 0.2) {
            return json!([]);
        }
        let operators = [
            "%REQ(x-one?x-two)%",
            "%REQ(:path):5%",
            "%REQ(:authority)%",
            "%REQ(:scheme)%",
            "%REQ(x-request-id):0%",
            "%RESP(x-backend)%",
            "%RESP(x-three)%",
            "%TRAILER(x-end)%",
            "%PROTOCOL%",
            "%RESPONSE_CODE%",
            "%RESPONSE_FLAGS_LONG%",
            "%BYTES_RECEIVED%",
            "%BYTES_SENT%",
            "%UPSTREAM_PROTOCOL%",
            "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
            "%VIRTUAL_CLUSTER_NAME%",
            "%PATH(NQ)%",
            "%PATH(WQ:ORIG)%",
            "%QUERY_PARAM(k)%",
            "%GRPC_STATUS%",
            "%GRPC_STATUS(NUMBER)%",
            "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
            "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%",
            "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
            "%ACCESS_LOG_TYPE%",
            "%METADATA(ROUTE:some:one)%",
            "%METADATA(ROUTE:some:deep)%",
            "%METADATA(CLUSTER:some)%",
            "%UPSTREAM_METADATA(envoy.lb:version)%",
            "%DYNAMIC_METADATA(some:one)%",
            "%DOWNSTREAM_LOCAL_PORT%",
            "%UPSTREAM_CLUSTER%",
            "%ROUTE_NAME%",
            "%QUERY_PARAMS%",
            "%REQ(x-forwarded-for)%",
            "%REQ(user-agent)%",
            "%REQ(x-envoy-original-path?:path)%",
            "%REQ(x-forwarded-proto)%",
            "%RESP(content-type):9%",
            "%RESP(content-length)%",
            "%RESP(location)%",
            "%TRAILER(grpc-status)%",
            "%START_TIME(%Y)%",
            "%FILTER_CHAIN_NAME%",
            "%REQUESTED_SERVER_NAME%",
            "%DOWNSTREAM_PEER_URI_SAN%",
            "%DOWNSTREAM_PEER_SUBJECT%",
            "%DOWNSTREAM_TLS_VERSION%",
            "%UPSTREAM_HOST%",
            "%LOCAL_REPLY_BODY%",
            "%RESPONSE_CODE_DETAILS%",
            "%REQ(x-envoy-original-url)%",
            "%REQ(:method)%",
            "%RESP(:status)%",
            "%UPSTREAM_REMOTE_PORT%",
            "%DOWNSTREAM_DIRECT_LOCAL_PORT%",
            "%TRAILER(x-one)%",
            "%COALESCE({\"operators\": [{\"command\": \"REQ\", \"param\": \"x-one\"}, \"PROTOCOL\"]})%",
        ];
        let mut logs = Vec::new();
        for _ in 0..self.rng.random_range(1..=2) {
            let chosen: Vec<String> = (0..4).map(|_| self.text(&operators)).collect();
            let mut log = match self.chance(0.5) {
                true => json!({"format": {"text_format_source":
                    {"inline_string": format!("%REQ(X-TEST-ID)% = {}\n", chosen.join(" | "))}}}),
                false => json!({"format": {"json_format": {
                    "id": "%REQ(X-TEST-ID)%", "one": chosen[0], "two": {"of": chosen[1]}, "all": [chosen[2], chosen[3]],
                }}}),
            };
            if self.chance(0.3) {
                log["format"]["omit_empty_values"] = json!(true);
            }
            if self.chance(0.4) {
                log["filter"] = self.log_filter();
            }
            logs.push(log);
        }
        json!(logs)
    }
}
