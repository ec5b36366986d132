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
            hosts.push(host);
        }
        let requests = (0..EACH).map(|_| self.request(&hosts)).collect();
        let text = json!({"about": "made at random", "virtual_hosts": hosts, "requests": [{}]});
        // The shape is ours; what cannot be read is an empty case.
        let mut case: Case = serde_json::from_value(text).unwrap_or_else(|_| empty());
        case.name = name;
        case.requests = requests;
        case
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
                let (regex, substitution) =
                    self.one(&[("a", "z"), ("^/([^/]*)", "/w-\\1"), ("(.)(.)$", "\\2\\1")]).unwrap_or(("a", "b"));
                forward["regex_rewrite"] = json!({"pattern": {"regex": regex}, "substitution": substitution});
            }
            _ => {}
        }
        if self.chance(0.15) {
            forward["host_rewrite_literal"] = json!("rewritten.example");
        }
        if self.chance(0.25) {
            let on =
                self.text(&["5xx", "gateway-error", "retriable-4xx", "connect-failure,reset", "5xx,retriable-4xx"]);
            forward["retry_policy"] = json!({
                "retry_on": on,
                "num_retries": self.rng.random_range(1..=3),
                "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.002s"},
            });
        }
        forward
    }

    fn redirect(&mut self) -> Value {
        let mut redirect = match self.rng.random_range(0..4) {
            0 => json!({"https_redirect": true}),
            1 => json!({"host_redirect": "elsewhere.example"}),
            2 => json!({"path_redirect": "/elsewhere"}),
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
        let value = self.text(&["fixed", "%REQ(x-one)%", "%PROTOCOL%", "<%REQ(:path)%>", "100%%"]);
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
        request.path.push_str(&self.text(&QUERIES));
        for name in NAMES {
            if self.chance(0.3) {
                request.headers.push(format!("{name}: {}", self.text(&VALUES)));
            }
        }
        if self.chance(0.3) {
            request.protocol = Speaks::H2;
        }
        if request.method == "POST" && self.chance(0.8) {
            request.body = Some("the body".to_owned());
            request.chunked = request.protocol == Speaks::H1 && self.chance(0.3);
        }
        if self.chance(0.4) {
            for _ in 0..self.rng.random_range(1..=2) {
                let status = self.one(&[200, 201, 204, 302, 404, 409, 500, 502, 503, 504]);
                let headers = if self.chance(0.3) { vec![format!("{}: back", self.text(&NAMES))] } else { Vec::new() };
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
        for key in ["request_headers_to_add", "response_headers_to_add"] {
            if !host[key].is_null() {
                found.push(edit(&|host| remove(host, key)));
            }
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
            let optional = [
                (
                    "",
                    vec![
                        "request_headers_to_add",
                        "request_headers_to_remove",
                        "response_headers_to_add",
                        "response_headers_to_remove",
                    ],
                ),
                ("match", vec!["case_sensitive", "headers", "query_parameters"]),
                ("route", vec!["prefix_rewrite", "regex_rewrite", "host_rewrite_literal", "retry_policy"]),
                ("redirect", vec!["response_code", "strip_query"]),
            ];
            for (part, keys) in optional {
                let place = if part.is_empty() { route } else { &route[part] };
                for key in keys.into_iter().filter(|key| !place[key].is_null()) {
                    found.push(edit(&|host| {
                        let route = &mut host["routes"][number];
                        remove(if part.is_empty() { route } else { &mut route[part] }, key);
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
    let file = json!({"about": "Found at random.", "virtual_hosts": case.virtual_hosts, "requests": [sent]});
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
