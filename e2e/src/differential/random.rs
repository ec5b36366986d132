//! Cases that nobody thought of: random virtual hosts, routes and requests from a seed, and a failing one made small.

use super::case::{Case, Request, Speaks};
use super::reply::Reply;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};

/// Requests of one random configuration.
pub const EACH: usize = 20;

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
const METHODS: [&str; 6] = ["GET", "GET", "GET", "POST", "HEAD", "DELETE"];

/// Makes so many configurations, each with [`EACH`] requests. The same seed makes the same ones.
pub fn cases(seed: u64, count: usize) -> Vec<Case> {
    (0..count)
        .map(|number| {
            let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
            Maker { rng: &mut rng }.case(format!("random-{seed}-{number}"))
        })
        .collect()
}

struct Maker<'a> {
    rng: &'a mut StdRng,
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

    fn case(&mut self, name: String) -> Case {
        let mut domains: Vec<&str> = DOMAINS.to_vec();
        let mut hosts = Vec::new();
        for number in 0..self.rng.random_range(1..=3) {
            let mut own = Vec::new();
            for _ in 0..self.rng.random_range(1..=2) {
                let at = self.rng.random_range(0..domains.len());
                own.push(domains.swap_remove(at));
            }
            if number == 0 && self.chance(0.7) {
                own.push("*");
            }
            let routes: Vec<Value> = (0..self.rng.random_range(1..=6)).map(|number| self.route(number)).collect();
            let mut host = json!({"name": format!("host-{number}"), "domains": own, "routes": routes});
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
            if self.chance(0.1) {
                host["retry_policy"] = self.retries();
            }
            hosts.push(host);
        }
        let requests = (0..EACH).map(|_| self.request(&hosts)).collect();
        let mut text = json!({"about": "made at random", "virtual_hosts": hosts, "requests": [{}]});
        text["hcm"] = self.manager();
        text["route_config"] = self.table();
        text["http_filters"] = self.filters();
        text["backends"] = json!({"a": {}, "b": {}, "h2": {"protocol": "h2"}});
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
        if self.chance(0.1) {
            manager["local_reply_config"] = json!({
                "mappers": [{
                    "filter": {"status_code_filter": {"comparison":
                        {"op": "GE", "value": {"default_value": 404, "runtime_key": "none"}}}},
                    "status_code": 404,
                    "headers_to_add": [self.header_op()],
                }],
                "body_format": {"text_format_source": {"inline_string": "%RESPONSE_CODE% %LOCAL_REPLY_BODY%\n"}},
            });
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

    /// Filters before the router.
    fn filters(&mut self) -> Value {
        let mut filters = Vec::new();
        if self.chance(0.2) {
            filters.push(json!({"name": "cors", "typed_config":
                {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"}}));
        }
        if self.chance(0.2) {
            filters.push(json!({"name": "fault", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
                "abort": {"http_status": self.one(&[400, 429, 503]), "percentage": {"numerator": 100}},
                "headers": [self.header_match()],
            }}));
        }
        if self.chance(0.2) {
            filters.push(json!({"name": "rbac", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
                "rules": {
                    "action": self.text(&["ALLOW", "DENY"]),
                    "policies": {"one": {
                        "permissions": [{"header": self.header_match()}, {"url_path": {"path": self.string_match()}}],
                        "principals": [{"any": true}],
                    }},
                },
            }}));
        }
        json!(filters)
    }

    /// A retry policy that waits for next to nothing.
    fn retries(&mut self) -> Value {
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
        policy
    }

    fn path(&mut self) -> String {
        let count = self.rng.random_range(0..=3);
        let mut path: String = (0..count).map(|_| format!("/{}", self.text(&SEGMENTS))).collect();
        if path.is_empty() || self.chance(0.2) {
            path.push('/');
        }
        path
    }

    fn route(&mut self, number: usize) -> Value {
        let mut matcher = match self.rng.random_range(0..10) {
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
        if matcher["safe_regex"].is_null() && self.chance(0.2) {
            matcher["case_sensitive"] = json!(false);
        }
        if self.chance(0.3) {
            matcher["headers"] =
                json!((0..self.rng.random_range(1..=2)).map(|_| self.header_match()).collect::<Vec<_>>());
        }
        if self.chance(0.2) {
            let name = self.text(&["k", "j"]);
            matcher["query_parameters"] = match self.chance(0.3) {
                true => json!([{"name": name, "present_match": true}]),
                false => json!([{"name": name, "string_match": self.string_match()}]),
            };
        }
        let mut route = json!({"name": format!("r{number}"), "match": matcher});
        match self.rng.random_range(0..10) {
            0 => route["redirect"] = self.redirect(),
            1 => {
                let status = self.one(&[200, 204, 404, 503]).unwrap_or(200);
                route["direct_response"] = match status == 204 || self.chance(0.3) {
                    true => json!({"status": status}),
                    false => json!({"status": status, "body": {"inline_string": "direct\n"}}),
                };
            }
            _ => route["route"] = self.forward(),
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
        if self.chance(0.25) {
            forward["retry_policy"] = self.retries();
        }
        if self.chance(0.1) {
            forward["host_rewrite_header"] = json!(self.text(&NAMES));
            if let Some(map) = forward.as_object_mut() {
                map.remove("host_rewrite_literal");
            }
        }
        if self.chance(0.1) {
            forward["append_x_forwarded_host"] = json!(true);
        }
        if self.chance(0.1) {
            forward["timeout"] = json!(self.text(&["0s", "7s", "30s"]));
        }
        if self.chance(0.1) {
            forward["idle_timeout"] = json!("9s");
        }
        if self.chance(0.05) {
            forward["max_stream_duration"] = json!({"grpc_timeout_header_max": "3s"});
        }
        if self.chance(0.1) {
            forward["cluster"] = json!(self.text(&["none", "h2"]));
            forward["cluster_not_found_response_code"] = json!(self.text(&["NOT_FOUND", "SERVICE_UNAVAILABLE"]));
        }
        if self.chance(0.1) {
            if let Some(map) = forward.as_object_mut() {
                map.remove("cluster");
            }
            let one = |maker: &mut Self, name: &str, weight: u32| {
                let mut cluster = json!({"name": name, "weight": weight});
                if maker.chance(0.4) {
                    cluster["request_headers_to_add"] = json!([maker.header_op()]);
                }
                if maker.chance(0.3) {
                    cluster["response_headers_to_add"] = json!([maker.header_op()]);
                }
                if maker.chance(0.2) {
                    cluster["host_rewrite_literal"] = json!("weighted.example");
                }
                cluster
            };
            forward["weighted_clusters"] = json!({"clusters": [one(self, "a", 1), one(self, "b", 0)]});
        }
        if self.chance(0.15) {
            forward["internal_redirect_policy"] =
                json!({"redirect_response_codes": [302, 303], "max_internal_redirects": 2});
        }
        forward
    }

    fn redirect(&mut self) -> Value {
        let mut redirect = match self.rng.random_range(0..9) {
            0 => json!({"https_redirect": true}),
            1 => json!({"host_redirect": "elsewhere.example"}),
            2 => json!({"path_redirect": "/elsewhere"}),
            3 => json!({"path_redirect": "/elsewhere?own=1"}),
            4 => json!({"scheme_redirect": self.text(&["http", "https"]), "port_redirect": 8443}),
            5 => json!({"host_redirect": "elsewhere.example", "port_redirect": 80, "https_redirect": true}),
            6 => json!({"regex_rewrite": {"pattern": {"regex": "^/([^/]*)"}, "substitution": "/r-\\1"}}),
            _ => json!({"prefix_rewrite": self.path()}),
        };
        if self.chance(0.3) {
            redirect["response_code"] =
                json!(self.text(&["FOUND", "SEE_OTHER", "TEMPORARY_REDIRECT", "PERMANENT_REDIRECT"]));
        }
        if self.chance(0.2) {
            redirect["strip_query"] = json!(true);
        }
        redirect
    }

    fn string_match(&mut self) -> Value {
        let value = self.text(&["1", "one", "o", "5"]);
        match self.rng.random_range(0..6) {
            0 | 1 => json!({"exact": value}),
            2 => json!({"prefix": value}),
            3 => json!({"suffix": value}),
            4 => json!({"contains": value, "ignore_case": true}),
            _ => json!({"safe_regex": {"regex": self.text(&["[0-9]+", "one.*", "\\w*"])}}),
        }
    }

    fn header_match(&mut self) -> Value {
        let mut matcher = json!({"name": self.text(&NAMES)});
        match self.rng.random_range(0..6) {
            0 => matcher["present_match"] = json!(self.chance(0.7)),
            1 => matcher["range_match"] = json!({"start": 1, "end": 15}),
            2 => {
                matcher["string_match"] = self.string_match();
                matcher["treat_missing_header_as_empty"] = json!(true);
            }
            _ => matcher["string_match"] = self.string_match(),
        }
        if self.chance(0.2) {
            matcher["invert_match"] = json!(true);
        }
        matcher
    }

    fn header_op(&mut self) -> Value {
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
            "",
        ]);
        json!({"header": {"key": self.text(&NAMES), "value": value}, "append_action": action})
    }

    fn request(&mut self, hosts: &[Value]) -> Request {
        let mut request = Request { method: self.text(&METHODS), host: self.text(&HOSTS), ..Request::default() };
        // A path that some route means, or any.
        let meant: Vec<&str> = hosts
            .iter()
            .flat_map(|host| host["routes"].as_array().into_iter().flatten())
            .filter_map(|route| {
                ["prefix", "path", "path_separated_prefix"].iter().find_map(|key| route["match"][key].as_str())
            })
            .collect();
        let meant = meant.choose(self.rng).map(|path| (*path).to_owned());
        request.path = match meant {
            Some(path) if self.chance(0.7) => match self.rng.random_range(0..5) {
                0 => format!("{path}/{}", self.text(&SEGMENTS)),
                1 => format!("{path}{}", self.text(&SEGMENTS)),
                2 => path.to_uppercase(),
                _ => path,
            },
            _ => self.path(),
        };
        if self.chance(0.15) {
            request.path.push_str(&self.text(&[
                "/../x",
                "/./",
                "//",
                "/%2e%2E/y",
                "/%2f",
                "\\z",
                "/%5Cb",
                "/%7Eu",
                "/..;/w",
                "/%",
            ]));
        }
        request.path.push_str(&self.text(&QUERIES));
        if self.chance(0.3) {
            let more = self.text(&[
                "x-forwarded-for: 1.2.3.4",
                "x-forwarded-for: 10.0.0.1, 9.9.9.9",
                "x-forwarded-proto: https",
                "x-forwarded-host: told.example",
                "x-request-id: told-by-the-client",
                "x-envoy-retry-on: 5xx",
                "x-envoy-max-retries: 2",
                "x-envoy-upstream-rq-timeout-ms: 6000",
                "x-envoy-expected-rq-timeout-ms: 5500",
                "x-envoy-internal: true",
                "x_under_score: 1",
                "content-type: application/grpc",
                "origin: http://a.example",
                "te: trailers",
                "connection: x-two",
                "via: 1.0 before",
                "user-agent: curl",
                "referer: http://a.example/from",
                "expect: 100-continue",
                "x-envoy-hedge-on-per-try-timeout: true",
            ]);
            request.headers.push(more);
        }
        if self.chance(0.1) {
            let again = request.headers.first().cloned();
            request.headers.extend(again.map(|line| line.replace(": ", ": 1 ")));
        }
        for name in NAMES {
            if self.chance(0.3) {
                request.headers.push(format!("{name}: {}", self.text(&VALUES)));
            }
        }
        // Only HTTP/1 has a `connection`.
        let named = request.headers.iter().any(|line| line.starts_with("connection"));
        if !named && self.chance(0.3) {
            request.protocol = Speaks::H2;
        }
        if request.method == "POST" && self.chance(0.8) {
            request.body = Some("the body".to_owned());
            request.chunked = request.protocol == Speaks::H1 && self.chance(0.3);
        }
        if self.chance(0.4) {
            for _ in 0..self.rng.random_range(1..=2) {
                let status = self.one(&[200, 201, 204, 302, 404, 409, 500, 502, 503, 504]);
                let headers = match self.rng.random_range(0..10) {
                    0..=2 => vec![format!("{}: back", self.text(&NAMES))],
                    3 => vec![format!("location: http://{}{}", self.text(&HOSTS), self.path())],
                    4 => vec!["server: theirs".to_owned(), "via: 1.1 them".to_owned()],
                    5 => vec!["x-envoy-ratelimited: true".to_owned()],
                    _ => Vec::new(),
                };
                request.replies.push(Reply { status, headers, chunked: self.chance(0.2), ..Reply::default() });
            }
        }
        request
    }
}

fn empty() -> Case {
    Case {
        logs: Vec::new(),
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

/// The case with only one of its requests.
pub fn alone(case: &Case, request: &Request) -> Case {
    Case { requests: vec![request.clone()], ..case.clone() }
}

/// Everything that is one step smaller: a virtual host, a route, a setting of one, a part of the request left out.
pub fn smaller(case: &Case) -> Vec<Case> {
    let mut found = Vec::new();
    let hosts = case.virtual_hosts.clone().unwrap_or_default();
    let with = |hosts: Vec<Value>| Case { virtual_hosts: Some(hosts), ..case.clone() };
    for at in 0..case.http_filters.len() {
        let mut fewer = case.clone();
        fewer.http_filters.remove(at);
        found.push(fewer);
    }
    for key in keys(&case.hcm) {
        let mut fewer = case.clone();
        remove(&mut fewer.hcm, &key);
        found.push(fewer);
    }
    for key in keys(&case.route_config) {
        let mut fewer = case.clone();
        remove(&mut fewer.route_config, &key);
        found.push(fewer);
    }
    for (at, host) in hosts.iter().enumerate() {
        if hosts.len() > 1 {
            let mut fewer = hosts.clone();
            fewer.remove(at);
            found.push(with(fewer));
        }
        let edit = |change: &dyn Fn(&mut Value)| {
            let mut changed = hosts.clone();
            change(&mut changed[at]);
            with(changed)
        };
        for key in keys(host).into_iter().filter(|key| !matches!(key.as_str(), "name" | "domains" | "routes")) {
            found.push(edit(&|host| remove(host, &key)));
        }
        let routes = host["routes"].as_array().cloned().unwrap_or_default();
        for (number, route) in routes.iter().enumerate() {
            if routes.len() > 1 {
                found.push(edit(&|host| {
                    if let Some(routes) = host["routes"].as_array_mut() {
                        routes.remove(number);
                    }
                }));
            }
            for part in ["", "match", "route", "redirect"] {
                let place = if part.is_empty() { route } else { &route[part] };
                for key in keys(place).into_iter().filter(|key| !ESSENTIAL.contains(&key.as_str())) {
                    found.push(edit(&|host| {
                        let route = &mut host["routes"][number];
                        remove(if part.is_empty() { route } else { &mut route[part] }, &key);
                    }));
                }
            }
        }
    }
    let Some(request) = case.requests.first() else { return found };
    let mut with = |request: Request| found.push(alone(case, &request));
    for at in 0..request.headers.len() {
        let mut fewer = request.clone();
        fewer.headers.remove(at);
        with(fewer);
    }
    if !request.replies.is_empty() {
        let mut fewer = request.clone();
        fewer.replies.pop();
        with(fewer);
    }
    if request.body.is_some() {
        with(Request { body: None, chunked: false, ..request.clone() });
    }
    if request.protocol == Speaks::H2 {
        with(Request { protocol: Speaks::H1, ..request.clone() });
    }
    if let Some((path, _)) = request.path.split_once('?') {
        with(Request { path: path.to_owned(), ..request.clone() });
    }
    if request.method != "GET" {
        with(Request { method: "GET".to_owned(), ..request.clone() });
    }
    found
}

/// What no route can be without.
const ESSENTIAL: [&str; 12] = [
    "match",
    "route",
    "redirect",
    "direct_response",
    "name",
    "prefix",
    "path",
    "path_separated_prefix",
    "safe_regex",
    "cluster",
    "weighted_clusters",
    "path_redirect",
];

fn keys(of: &Value) -> Vec<String> {
    of.as_object().map(|map| map.keys().cloned().collect()).unwrap_or_default()
}

fn remove(from: &mut Value, key: &str) {
    if let Some(map) = from.as_object_mut() {
        map.remove(key);
    }
}

/// The case as the file that it could become.
pub fn as_file(case: &Case) -> String {
    let request = case.requests.first();
    let mut sent = json!({});
    if let Some(request) = request {
        let usual = Request::default();
        for (key, value, same) in [
            ("method", json!(request.method), request.method == usual.method),
            ("path", json!(request.path), request.path == usual.path),
            ("host", json!(request.host), request.host == usual.host),
            ("protocol", json!("h2"), request.protocol == usual.protocol),
            ("headers", json!(request.headers), request.headers.is_empty()),
            ("body", json!(request.body), request.body.is_none()),
            ("chunked", json!(request.chunked), !request.chunked),
            ("replies", json!(request.replies), request.replies.is_empty()),
        ] {
            if !same {
                sent[key] = value;
            }
        }
    }
    let file = json!({
        "about": "Found at random.",
        "backends": {"a": {}, "b": {}, "h2": {"protocol": "h2"}},
        "hcm": case.hcm,
        "route_config": case.route_config,
        "http_filters": case.http_filters,
        "virtual_hosts": case.virtual_hosts,
        "requests": [sent],
    });
    serde_yaml::to_string(&file).unwrap_or_else(|_| file.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_when_the_seed_is_the_same_then_they_are_the_same() {
        let texts = |seed| cases(seed, 5).iter().map(|case| format!("{case:?}")).collect::<Vec<_>>();
        assert_eq!(texts(7), texts(7));
        assert_ne!(texts(7), texts(8));
        assert!(cases(7, 50).iter().all(|case| case.virtual_hosts.is_some() && case.requests.len() == EACH));
    }

    #[test]
    fn smaller_when_repeated_then_it_ends() {
        let mut case = cases(1, 1).remove(0);
        case = alone(&case, &case.requests[0].clone());
        let mut steps = 0;
        while let Some(next) = smaller(&case).into_iter().next() {
            case = next;
            steps += 1;
            assert!(steps < 500);
        }
        assert!(as_file(&case).contains("virtual_hosts"));
    }
}
