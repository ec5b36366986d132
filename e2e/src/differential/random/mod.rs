//! Cases that nobody thought of: random virtual hosts, routes, filters and requests from a seed, and a failing one made small.
//!
//! Every second configuration draws from everything; the others look at one [`Feature`] closely, and at no other.

mod filters;
mod requests;
mod routes;
mod shrink;

pub(super) use shrink::{alone, as_file, smaller};

use super::case::{Case, Request};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};

/// Requests of one random configuration.
pub(super) const EACH: usize = 20;

const SEGMENTS: [&str; 14] =
    ["a", "b", "ab", "A", "api", "v1", "x.y", "%61", "a%2Fb", "a;p=1", "long-segment-name", "~u", "1", "a+b"];
const DOMAINS: [&str; 9] = [
    "a.example",
    "b.example",
    "*.example",
    "*.b.example",
    "*-x.example",
    "a.*",
    "b.example:8080",
    "x.*",
    "www.a.example",
];
const HOSTS: [&str; 11] = [
    "a.example",
    "b.example",
    "A.Example",
    "c.example",
    "c.b.example",
    "q-x.example",
    "a.org",
    "b.example:8080",
    "x.y",
    "www.a.example",
    "nothing",
];
const NAMES: [&str; 4] = ["x-one", "x-two", "x-three", "user-agent"];
const VALUES: [&str; 7] = ["", "1", "one", "One", "one two", "15", "a,b"];
const QUERIES: [&str; 8] = ["", "?", "?k=1", "?k=one&j=2", "?k", "?K=1", "?k=1&k=2", "?j=%31"];
const METHODS: [&str; 7] = ["GET", "GET", "GET", "POST", "HEAD", "DELETE", "OPTIONS"];

/// What may be looked at closely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feature {
    Routes,
    Compression,
    Mirrors,
    Hashes,
    Limits,
    Cors,
    Faults,
    Rbac,
    Mutations,
    Buffers,
    Logs,
    Replies,
    Retries,
    Timeouts,
    Grpc,
    Subsets,
    Weights,
    Redirects,
    Bodies,
    Answers,
    Doubles,
    Health,
}

const FEATURES: [Feature; 22] = [
    Feature::Routes,
    Feature::Compression,
    Feature::Mirrors,
    Feature::Hashes,
    Feature::Limits,
    Feature::Cors,
    Feature::Faults,
    Feature::Rbac,
    Feature::Mutations,
    Feature::Buffers,
    Feature::Logs,
    Feature::Replies,
    Feature::Retries,
    Feature::Timeouts,
    Feature::Grpc,
    Feature::Subsets,
    Feature::Weights,
    Feature::Redirects,
    Feature::Bodies,
    Feature::Answers,
    Feature::Doubles,
    Feature::Health,
];

/// Makes so many configurations, each with [`EACH`] requests. The same seed makes the same ones.
pub(super) fn cases(seed: u64, count: usize) -> Vec<Case> {
    (0..count)
        .map(|number| {
            let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
            let focus = rng.random_bool(0.5).then(|| FEATURES.choose(&mut rng).copied()).flatten();
            Maker { rng: &mut rng, focus, filters: Vec::new() }.case(format!("random-{seed}-{number}"))
        })
        .collect()
}

/// The back ends of every random case.
fn backends() -> Value {
    json!({"a": {}, "b": {}, "h2": {"protocol": "h2"}, "dead": {"protocol": "dead"}})
}

/// Clusters besides those of the back ends.
fn clusters() -> Value {
    let of_version = |backend: &str, version: &str| json!({"backend": backend, "metadata": {"filter_metadata": {"envoy.lb": {"version": version}}}});
    json!([
        {"name": "ring", "type": "STATIC", "lb_policy": "RING_HASH", "endpoints": ["a", "b"]},
        {"name": "maglev", "type": "STATIC", "lb_policy": "MAGLEV", "endpoints": ["a", "b"]},
        {
            "name": "versions",
            "type": "STATIC",
            "endpoints": [of_version("a", "v1"), of_version("b", "v2")],
            "lb_subset_config": {"fallback_policy": "NO_FALLBACK", "subset_selectors": [{"keys": ["version"]}]},
        },
        {
            "name": "once",
            "type": "STATIC",
            "endpoints": ["a"],
            "circuit_breakers": {"thresholds": [{"max_retries": 0}]},
        },
    ])
}

struct Maker<'a> {
    rng: &'a mut StdRng,
    /// What is looked at closely.
    focus: Option<Feature>,
    /// The names of the filters that there are.
    filters: Vec<String>,
}

impl Maker<'_> {
    fn one<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        of.choose(self.rng).copied()
    }

    fn text(&mut self, of: &[&str]) -> String {
        self.one(of).unwrap_or_default().to_owned()
    }

    fn chance(&mut self, part: f64) -> bool {
        self.rng.random_bool(part)
    }

    /// Whether a feature is drawn, where among all others it were so often.
    fn draws(&mut self, feature: Feature, part: f64) -> bool {
        match self.focus {
            Some(focus) if focus == feature => self.chance(0.6),
            Some(_) => false,
            None => self.chance(part),
        }
    }

    fn case(&mut self, name: String) -> Case {
        let filters = self.filters();
        let mut domains: Vec<&str> = DOMAINS.to_vec();
        let mut hosts = Vec::new();
        for number in 0..self.rng.random_range(1..=3) {
            let mut own = Vec::new();
            for _ in 0..self.rng.random_range(1..=2) {
                let at = self.rng.random_range(0..domains.len());
                own.push(domains.swap_remove(at));
            }
            // What is looked at closely is to be reached.
            if number == 0 && (self.focus.is_some() || self.chance(0.7)) {
                own.push("*");
            }
            hosts.push(self.host(number, &own));
        }
        let logs = self.logs();
        let mut requests: Vec<Request> = (0..EACH).map(|_| self.request(&hosts)).collect();
        if logs.as_array().is_some_and(|logs| !logs.is_empty()) {
            // Text in logs is escaped here, which is listed.
            let plain = |path: &str| path.replace('\\', "/").replace("%5C", "/");
            requests.iter_mut().for_each(|request| request.path = plain(&request.path));
        }
        let mut text = json!({"about": "made at random", "virtual_hosts": hosts, "requests": [{}]});
        text["hcm"] = self.manager();
        text["route_config"] = self.table();
        text["http_filters"] = filters;
        text["logs"] = logs;
        text["backends"] = backends();
        text["clusters"] = clusters();
        // The shape is ours; what cannot be read is an empty case.
        let mut case: Case = serde_json::from_value(text).unwrap_or_else(|_| empty());
        case.name = name;
        case.requests = requests;
        case
    }

    /// Settings of the connection manager.
    fn manager(&mut self) -> Value {
        let mut manager = json!({});
        for (key, part) in [
            ("normalize_path", 0.3),
            ("merge_slashes", 0.2),
            ("use_remote_address", 0.2),
            ("skip_xff_append", 0.1),
            ("preserve_external_request_id", 0.1),
            ("always_set_request_id_in_response", 0.1),
            ("strip_matching_host_port", 0.1),
            ("strip_trailing_host_dot", 0.1),
            ("append_x_forwarded_port", 0.1),
            ("proxy_100_continue", 0.1),
            ("append_local_overload", 0.05),
            ("stream_error_on_invalid_http_message", 0.05),
        ] {
            if self.chance(part) {
                manager[key] = json!(true);
            }
        }
        if self.chance(0.2) {
            manager["xff_num_trusted_hops"] = json!(self.rng.random_range(1..=2));
        }
        if self.chance(0.3) {
            manager["path_with_escaped_slashes_action"] = json!(self.text(&[
                "REJECT_REQUEST",
                "UNESCAPE_AND_REDIRECT",
                "UNESCAPE_AND_FORWARD",
                "KEEP_UNCHANGED"
            ]));
        }
        if self.chance(0.2) {
            manager["server_header_transformation"] = json!(self.text(&["APPEND_IF_ABSENT", "PASS_THROUGH"]));
        }
        if self.chance(0.1) {
            manager["via"] = json!("1.1 us");
        }
        if self.chance(0.2) {
            manager["common_http_protocol_options"] =
                json!({"headers_with_underscores_action": self.text(&["REJECT_REQUEST", "DROP_HEADER"])});
        }
        if self.chance(0.3) {
            manager["http_protocol_options"] = json!({"accept_http_10": true, "default_host_for_http_10": "a.example", "enable_trailers": self.chance(0.5)});
        }
        for (key, value, part) in [
            ("generate_request_id", json!(false), 0.1),
            ("server_name", json!("named"), 0.1),
            ("request_timeout", json!("9s"), 0.05),
            ("stream_idle_timeout", json!("9s"), 0.05),
            ("scheme_header_transformation", json!({"scheme_to_overwrite": "https"}), 0.05),
            ("max_request_headers_kb", json!(8), 0.05),
        ] {
            if self.chance(part) {
                manager[key] = value;
            }
        }
        if manager["strip_matching_host_port"].is_null() && self.chance(0.05) {
            manager["strip_any_host_port"] = json!(true);
        }
        if self.draws(Feature::Replies, 0.1) {
            manager["local_reply_config"] = self.local_replies();
        }
        manager
    }

    /// Other words for answers of the proxy.
    fn local_replies(&mut self) -> Value {
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
    fn log_filter(&mut self) -> Value {
        match self.rng.random_range(0..5) {
            0 | 1 => {
                let (op, code) = (self.text(&["GE", "EQ", "LE"]), self.one(&[404, 403, 503]));
                json!({"status_code_filter": {"comparison": {"op": op, "value": {"default_value": code, "runtime_key": "none"}}}})
            }
            2 => json!({"response_flag_filter": {"flags": [self.text(&["NR", "UF", "FI", "RL", "UC", "UT"])]}}),
            3 => json!({"header_filter": {"header": self.header_match()}}),
            _ => json!({"or_filter": {"filters": [
                {"response_flag_filter": {}},
                {"and_filter": {"filters": [{"header_filter": {"header": self.header_match()}}, {"not_health_check_filter": {}}]}},
            ]}}),
        }
    }

    /// Further lines of the access log.
    fn logs(&mut self) -> Value {
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

    /// Settings of the route table.
    fn table(&mut self) -> Value {
        let mut table = json!({"validate_clusters": false});
        if self.chance(0.15) {
            table["request_headers_to_add"] = json!([self.header_op()]);
        }
        if self.chance(0.15) {
            table["response_headers_to_add"] = json!([self.header_op()]);
        }
        if self.chance(0.1) {
            table["request_headers_to_remove"] = json!([self.text(&NAMES)]);
        }
        for key in [
            "most_specific_header_mutations_wins",
            "ignore_port_in_host_matching",
            "ignore_path_parameters_in_path_matching",
        ] {
            if self.chance(0.1) {
                table[key] = json!(true);
            }
        }
        table
    }
}

fn empty() -> Case {
    Case {
        logs: Vec::new(),
        files: std::collections::BTreeMap::new(),
        name: String::new(),
        about: "empty".to_owned(),
        difference: None,
        backends: super::case::usual(),
        clusters: Vec::new(),
        routes: None,
        virtual_hosts: None,
        route_config: Value::Null,
        http_filters: Vec::new(),
        router: Value::Null,
        hcm: Value::Null,
        network_filters: Vec::new(),
        transport_socket: None,
        listener: Value::Null,
        runtime: Value::Null,
        ignore: Vec::new(),
        requests: Vec::new(),
    }
}
