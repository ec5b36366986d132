//! Requests, and what the back ends shall answer.

use super::super::{
    case::{Request, Speaks},
    reply::{Fail, Reply},
};
use super::{Feature, HOSTS, METHODS, Maker, NAMES, QUERIES, SEGMENTS, VALUES};
use rand::{Rng, seq::IndexedRandom};
use serde_json::Value;

impl Maker<'_> {
    pub(super) fn request(&mut self, hosts: &[Value]) -> Request {
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
                "x-envoy-retry-grpc-on: unavailable",
                "x-envoy-retriable-status-codes: 404,409",
                "x-envoy-retriable-header-names: x-one",
                "x-envoy-upstream-alt-stat-name: other",
                "x-envoy-original-path: /before",
                "x-envoy-attempt-count: 7",
                "x-envoy-decorator-operation: it",
                "x-forwarded-port: 99",
                "cookie: session=1; x=2",
                "cookie: session=2",
                "accept-encoding: gzip, br, zstd",
                "cache-control: no-cache",
                "authorization: Basic eA==",
                "grpc-timeout: 5S",
                "content-type: text/plain; charset=utf-8",
                "x-client-trace-id: 1",
                "keep-alive: 5",
                "proxy-connection: keep-alive",
                "expect: something",
                "te: gzip, trailers",
            ]);
            request.headers.push(more);
        }
        self.for_features(&mut request, hosts);
        if self.draws(Feature::Doubles, 0.1) {
            // Two weights are none, and the target a matter of luck again.
            let again = request.headers.first().filter(|line| !line.starts_with("x-weight")).cloned();
            request.headers.extend(again.map(|line| line.replace(": ", ": 1 ")));
        }
        for name in NAMES {
            if self.chance(0.3) {
                request.headers.push(format!("{name}: {}", self.text(&VALUES)));
            }
        }
        // Only HTTP/1 has a `connection`.
        let of_one = ["connection", "keep-alive", "proxy-connection"];
        let named = request.headers.iter().any(|line| of_one.iter().any(|name| line.starts_with(name)));
        if !named && self.chance(0.3) {
            request.protocol = Speaks::H2;
        }
        if request.method == "POST" && self.chance(0.8) {
            request.body = Some("the body".to_owned());
            request.chunked = request.protocol == Speaks::H1 && self.chance(0.3);
        }
        self.bodies(&mut request);
        // What these two do with bodies differs, and is listed.
        if self.filters.iter().any(|name| name == "health") {
            (request.body, request.size, request.chunked, request.trailers) = (None, None, false, Vec::new());
        }
        if self.filters.iter().any(|name| name == "buffer") {
            request.protocol = Speaks::H1;
        }
        if self.chance(0.4) || self.focus.is_some() {
            for _ in 0..self.rng.random_range(1..=2) {
                let reply = self.reply(&request);
                request.replies.push(reply);
            }
        }
        // A copy counts as an attempt at whichever back end it comes to first.
        if hosts.iter().any(|host| host.to_string().contains("request_mirror_policies")) {
            request.settle = 100;
            request.replies.truncate(1);
        }
        request
    }

    /// What the features of this configuration look at.
    fn for_features(&mut self, request: &mut Request, hosts: &[Value]) {
        if self.filters.iter().any(|name| name == "cors") && self.chance(0.5) {
            request.headers.push(self.text(&["origin: http://a.example", "origin: http://c.example", "origin: *"]));
            if self.chance(0.5) {
                request.headers.push("access-control-request-method: PUT".to_owned());
            }
        }
        if self.filters.iter().any(|name| name == "compressor") && self.chance(0.7) {
            request.headers.push(self.text(&[
                "accept-encoding: gzip",
                "accept-encoding: br",
                "accept-encoding: zstd",
                "accept-encoding: gzip;q=0.5, br;q=0.7, zstd",
                "accept-encoding: *",
                "accept-encoding: identity",
                "accept-encoding: gzip;q=0, *",
                "accept-encoding: deflate, x",
            ]));
        }
        if self.filters.iter().any(|name| name == "fault") && self.chance(0.3) {
            request.headers.push(self.text(&[
                "x-envoy-fault-abort-request: 429",
                "x-envoy-fault-abort-request: 700",
                "x-envoy-fault-abort-grpc-request: 5",
                "x-envoy-fault-delay-request: 5",
            ]));
        }
        if self.draws(Feature::Weights, 0.05) {
            request.headers.push(self.text(&["x-cluster: ${cluster:a}", "x-cluster: ${cluster:b}", "x-cluster: none"]));
        }
        // Without one the target is a matter of luck.
        if hosts.iter().any(|host| host.to_string().contains("x-weight")) {
            request.headers.push(format!("x-weight: {}", self.rng.random_range(0..300)));
        }
        if self.draws(Feature::Hashes, 0.02) {
            request.headers.push(self.text(&["cookie: session=a", "cookie: session=\"b\"; other=1"]));
        }
        if self.draws(Feature::Grpc, 0.05) {
            request.method = "POST".to_owned();
            request.headers.push(self.text(&[
                "content-type: application/grpc",
                "content-type: application/grpc+proto",
                "content-type: application/grpc-web",
            ]));
            request.headers.extend(self.chance(0.3).then(|| "te: trailers".to_owned()));
            let limit = self.text(&["grpc-timeout: 5S", "grpc-timeout: 8000m", "grpc-timeout: 1H", "grpc-timeout: x"]);
            request.headers.extend(self.chance(0.2).then_some(limit));
        }
        if self.focus == Some(Feature::Timeouts) && self.chance(0.3) {
            request.headers.push(self.text(&[
                "x-envoy-upstream-rq-timeout-ms: 200",
                "x-envoy-upstream-rq-per-try-timeout-ms: 200",
                "x-envoy-upstream-rq-timeout-ms: x",
                "x-envoy-upstream-rq-timeout-ms: 0",
            ]));
        }
    }

    /// Bodies other than short ones.
    fn bodies(&mut self, request: &mut Request) {
        if !self.draws(Feature::Bodies, 0.05) {
            return;
        }
        if self.chance(0.5) {
            request.body = None;
            request.size = self.one(&[0, 1, 5000, 200_000]);
            if matches!(request.method.as_str(), "GET" | "HEAD" | "OPTIONS") && self.chance(0.5) {
                request.method = "PUT".to_owned();
            }
        }
        if (request.protocol == Speaks::H2 || request.chunked) && self.chance(0.4) {
            request.trailers.push(self.text(&["x-end: 1", "x-one: end", "grpc-status: 0"]));
        }
    }

    fn reply(&mut self, request: &Request) -> Reply {
        let status = self.one(&[200, 200, 201, 204, 302, 304, 404, 409, 500, 502, 503, 504]);
        let mut headers = match self.rng.random_range(0..12) {
            0..=2 => vec![format!("{}: back", self.text(&NAMES))],
            3 => vec![format!("location: http://{}{}", self.text(&HOSTS), self.path())],
            4 => vec!["server: theirs".to_owned(), "via: 1.1 them".to_owned()],
            5 => vec!["x-envoy-ratelimited: true".to_owned()],
            6 => vec!["x-envoy-upstream-service-time: 5".to_owned(), "date: yesterday".to_owned()],
            7 => vec!["x-request-id: theirs".to_owned(), "x-envoy-overloaded: true".to_owned()],
            _ => Vec::new(),
        };
        let mut reply = Reply { status, chunked: self.chance(0.2), ..Reply::default() };
        if self.draws(Feature::Redirects, 0.02) {
            reply.status = self.one(&[302, 307]);
            let place = self.text(&["http://a.example/a", "/b", "https://b.example/", "http://none.test/x"]);
            headers.push(format!("location: {place}"));
        }
        if self.draws(Feature::Compression, 0.05) {
            headers
                .push(format!("content-type: {}", self.text(&["text/plain", "text/html; charset=utf-8", "image/png"])));
            reply.size = self.one(&[20, 500, 5000]);
            let more = self.text(&[
                "vary: x-one",
                "vary: Accept-Encoding",
                "etag: \"x\"",
                "etag: W/\"x\"",
                "cache-control: no-transform",
                "content-encoding: gzip",
                "transfer-encoding: chunked",
            ]);
            if self.chance(0.4) && !more.starts_with("transfer") && !more.starts_with("content-encoding") {
                headers.push(more);
            }
        }
        if self.draws(Feature::Cors, 0.03) {
            headers.push("access-control-allow-origin: theirs".to_owned());
        }
        if self.draws(Feature::Grpc, 0.05) {
            let code = self.text(&["0", "5", "14", "1", "99", "x"]);
            match self.chance(0.5) {
                true => headers.push(format!("grpc-status: {code}")),
                false => reply.trailers.push(format!("grpc-status: {code}")),
            }
            headers.extend(self.chance(0.7).then(|| "content-type: application/grpc".to_owned()));
            reply.status = self.one(&[200, 200, 200, 503]);
        }
        if self.draws(Feature::Retries, 0.05) || self.draws(Feature::Answers, 0.05) {
            reply.fail = self.one(&[Fail::Reset, Fail::Close, Fail::Refuse, Fail::Half]);
        }
        if self.draws(Feature::Answers, 0.05) {
            match self.rng.random_range(0..5) {
                0 => reply.until_close = true,
                1 => reply.interim = vec![self.one(&[100, 102, 103]).unwrap_or(103)],
                2 => {
                    reply.chunked = true;
                    reply.trailers.push("x-end: of back end".to_owned());
                }
                3 => reply.size = self.one(&[0, 1, 300_000]),
                _ => reply.body_delay = Some(5),
            }
        }
        if self.draws(Feature::Doubles, 0.03) {
            let name = self.text(&["cache-control", "vary", "etag", "set-cookie", "via", "x-three", "age", "link"]);
            headers.extend([format!("{name}: 1"), format!("{name}: 2")]);
        }
        if self.focus == Some(Feature::Timeouts) && self.chance(0.3) {
            reply.delay = Some(700);
        }
        if request.method == "HEAD" {
            reply.fail = reply.fail.filter(|fail| *fail != Fail::Half);
        }
        reply.headers = headers;
        reply
    }
}
