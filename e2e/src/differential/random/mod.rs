//! Cases that nobody thought of: random virtual hosts, routes, filters and requests from a seed, and a failing one made small.
//!
//! Every second configuration draws from everything; the others look at one [`Feature`] closely, and at no other.

mod clusters;
mod edges;
mod filters;
mod limits;
mod logs;
mod matchers;
mod replies;
mod requests;
mod routes;
mod shrink;
mod wire;

pub(super) use shrink::{alone, as_file, smaller};

use super::case::{Case, ClientTls, Request, Speaks};
use clusters::{backends, clusters};
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
const HOSTS: [&str; 14] = [
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
    "a.example.",
    "b.example:80",
    "[::1]:8080",
];
const NAMES: [&str; 4] = ["x-one", "x-two", "x-three", "user-agent"];
const VALUES: [&str; 7] = ["", "1", "one", "One", "one two", "15", "a,b"];
const QUERIES: [&str; 16] = [
    "",
    "?",
    "?k=1",
    "?k=one&j=2",
    "?k",
    "?K=1",
    "?k=1&k=2",
    "?j=%31",
    "?k=&j=one",
    "?&&k=1&",
    "?k=a=b",
    "??k=1",
    "?k=one+two",
    "?k=o%6Ee",
    "?/../a",
    "?j=one?k=1",
];
const METHODS: [&str; 10] = ["GET", "GET", "GET", "GET", "POST", "POST", "HEAD", "DELETE", "OPTIONS", "PATCH"];

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
    Matchers,
    Templates,
    Places,
    Upgrades,
    Versions,
    Raw,
    Tls,
    Edges,
}

const FEATURES: [Feature; 30] = [
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
    Feature::Matchers,
    Feature::Templates,
    Feature::Places,
    Feature::Upgrades,
    Feature::Versions,
    Feature::Raw,
    Feature::Tls,
    Feature::Edges,
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
        let socket = self.secured(&mut requests);
        let manager = self.manager();
        // Bodies behind 204, which is listed, would be taken for what comes next.
        if manager["local_reply_config"].is_null() {
            self.kept(&mut requests);
        }
        if logs.as_array().is_some_and(|logs| !logs.is_empty()) {
            // Text in logs is escaped here, which is listed.
            let plain = |path: &str| path.replace('\\', "/").replace("%5C", "/");
            requests.iter_mut().for_each(|request| request.path = plain(&request.path));
            for line in requests.iter_mut().flat_map(|request| &mut request.headers) {
                *line = line.replace('\t', " ").replace('"', "'");
            }
            for raw in requests.iter_mut().filter_map(|request| request.raw.as_mut()) {
                *raw = plain(&raw.replace('\t', " ").replace('"', "'").replace(|c: char| !c.is_ascii(), ""));
            }
        }
        let mut text = json!({"about": "made at random", "virtual_hosts": hosts, "requests": [{}]});
        text["hcm"] = manager;
        text["route_config"] = self.table();
        text["http_filters"] = filters;
        text["logs"] = logs;
        if text.to_string().contains("%BYTES_RECEIVED%") {
            // How much of a long body was read when it is answered early is no matter of behaviour.
            requests.iter_mut().for_each(|request| request.size = request.size.map(|size| size.min(2000)));
        }
        text["backends"] = backends();
        text["clusters"] = clusters();
        if text["virtual_hosts"].to_string().contains("request_mirror_policies") {
            // Whether copies are made of what there is no room for differs, and is listed.
            for cluster in text["clusters"].as_array_mut().into_iter().flatten() {
                if let Some(limit) = cluster.pointer_mut("/circuit_breakers/thresholds/0/max_requests") {
                    *limit = json!(100);
                }
            }
        }
        if let Some(socket) = socket {
            text["transport_socket"] = socket;
        }
        // The shape is ours; what cannot be read is an empty case.
        let mut case: Case = serde_json::from_value(text).unwrap_or_else(|_| empty());
        case.name = name;
        case.requests = requests;
        case
    }

    /// Some go on the connection of the one before.
    fn kept(&mut self, requests: &mut [Request]) {
        for at in 1..requests.len() {
            let (before, here) = (&requests[at - 1], &requests[at]);
            let alike = before.protocol == here.protocol && before.raw.is_none() && here.raw.is_none();
            let keep = alike && self.draws(Feature::Versions, 0.3);
            requests[at].keep = keep;
        }
    }

    /// Everything over TLS.
    fn secured(&mut self, requests: &mut [Request]) -> Option<Value> {
        if self.focus != Some(Feature::Tls) && !self.draws(Feature::Tls, 0.06) {
            return None;
        }
        for request in &mut *requests {
            let alpn = match request.protocol {
                Speaks::H2 => vec!["h2".to_owned()],
                _ if self.chance(0.5) => vec!["http/1.1".to_owned()],
                _ => Vec::new(),
            };
            request.raw = None;
            let certificate = self.chance(0.5).then(|| self.text(&["client", "client", "other"]));
            request.tls = Some(ClientTls { sni: self.text(&["server.example", "a.example"]), alpn, certificate });
        }
        Some(json!({"name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_certificates": [{
                    "certificate_chain": {"filename": "${tls}/server.pem"},
                    "private_key": {"filename": "${tls}/server.key"},
                }],
                "validation_context": {"trusted_ca": {"filename": "${tls}/ca.pem"}},
            },
        }}))
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
        self.edges(&mut manager);
        if self.draws(Feature::Upgrades, 0.05) || self.focus == Some(Feature::Upgrades) {
            manager["upgrade_configs"] = json!([{"upgrade_type": "websocket", "enabled": self.chance(0.9)}]);
        }
        if self.draws(Feature::Replies, 0.1) {
            manager["local_reply_config"] = self.local_replies();
        }
        manager
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
            table["response_headers_to_remove"] = json!([self.text(&["x-three", "x-backend", "date", "via"])]);
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
        bootstrap: Value::Null,
        runtime: Value::Null,
        ignore: Vec::new(),
        requests: Vec::new(),
    }
}
