//! Requests, and what the back ends shall answer.

use super::super::case::{Request, Speaks};
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
        let templates = hosts.iter().any(|host| host.to_string().contains("path_template"));
        let meant = match templates && self.chance(0.5) {
            true => Some(self.text(&["/a/b", "/a/b/x", "/api/v1/x.y", "/b", "/api/a/b/c", "/x.y", "/a/", "/a//b"])),
            false => meant,
        };
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
                "x-forwarded-client-cert: By=spiffe://a;Hash=1",
                "x-address: 9.8.7.6",
                "x-address: nonsense",
                "x-forwarded-for: nonsense",
                "x-forwarded-for: 10.0.0.1, 1.2.3.4, 127.0.0.1",
                "x-forwarded-for: ",
                "x-forwarded-proto: ftp",
                "x-envoy-external-address: 1.1.1.1",
                "x-envoy-ip-tags: one",
                "x-envoy-downstream-service-cluster: them",
                "x-envoy-upstream-rq-per-try-timeout-ms: 4000",
                "x-envoy-upstream-rq-timeout-alt-response: 1",
                "x-envoy-is-timeout-retry: true",
                "x-envoy-internal: false",
                "x-envoy-retry-on: retriable-4xx,reset",
                "x-envoy-retry-on: retriable-status-codes",
                "x-envoy-retry-on: nonsense",
                "x-envoy-max-retries: nonsense",
                "x-envoy-max-retries: 0",
                "cookie: session=one; session=1",
                "cookie: x=; session",
                "range: bytes=0-3",
                "if-none-match: \"x\"",
                "content-type: application/json",
                "content-type: application/grpc-web-text",
                "accept: text/html",
                "x-one: one",
                "x-one:   spaced   ",
                "x-one: \"quoted, text\"",
                "x-one: tab\there",
                "x-two: 007",
                "x-two: -3",
                "x-two: 15.0",
                "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                "early-data: 1",
                "x-http-method-override: PUT",
                "content-encoding: gzip",
                "transfer-encodings: chunked",
                "access-control-request-method: GET",
                "upgrade-insecure-requests: 1",
                "x-envoy-hedge-on-per-try-timeout: false",
                "x-b3-sampled: 1",
                "pragma: no-cache",
                "x-envoy-original-host: before.example",
                "x-envoy-expected-rq-timeout-ms: nonsense",
                "x-envoy-upstream-rq-timeout-ms: nonsense",
                "x-envoy-upstream-stream-duration-ms: 6000",
                "x-envoy-retriable-status-codes: nonsense,503",
                "x-envoy-retry-on: 5xx, retriable-4xx",
                "x-forwarded-host: one, two",
                "x-forwarded-for: 1.2.3.4:80",
                "x-forwarded-for: [2001:db8::1]:80",
                "x-forwarded-for: 2001:db8::1",
                "cookie: a=1; session=\"quoted\"",
                "accept-encoding: br;q=0.5,gzip",
                "content-type: APPLICATION/GRPC",
                "user-agent: ",
                "via: 1.0 one, 1.1 two",
                "x-envoy-peer-metadata: x",
                "x-one: , ,",
                "date: now",
                "server: client",
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
        let of_one = ["connection", "keep-alive", "proxy-connection", "upgrade:"];
        let named = request.headers.iter().any(|line| of_one.iter().any(|name| line.starts_with(name)));
        if !named && self.chance(0.3) {
            request.protocol = Speaks::H2;
        }
        if request.method == "POST" && self.chance(0.8) {
            request.body = Some("the body".to_owned());
            request.chunked = request.protocol == Speaks::H1 && self.chance(0.3);
        }
        self.bodies(&mut request);
        self.versions(&mut request);
        // What it does with bodies of HTTP/2 differs, and is listed.
        if self.filters.iter().any(|name| name == "buffer") {
            request.protocol = Speaks::H1;
        }
        let upgrade = request.headers.iter().any(|line| line.starts_with("upgrade: "));
        if !upgrade && (self.chance(0.4) || self.focus.is_some()) {
            for _ in 0..self.rng.random_range(1..=2) {
                let reply = self.reply(&request);
                request.replies.push(reply);
            }
        }
        if self.draws(Feature::Raw, 0.03) {
            self.raw(&mut request);
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
            request.headers.push(self.text(&[
                "origin: http://a.example",
                "origin: http://c.example",
                "origin: *",
                "origin: HTTP://A.example",
                "origin: ",
            ]));
            if self.chance(0.5) {
                request
                    .headers
                    .push(self.text(&["access-control-request-method: PUT", "access-control-request-method: "]));
                if self.chance(0.5) {
                    request.method = "OPTIONS".to_owned();
                }
                if self.chance(0.2) {
                    request.headers.push("access-control-request-private-network: true".to_owned());
                }
                if self.chance(0.2) {
                    request.headers.push("access-control-request-headers: x-one, x-nine".to_owned());
                }
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
                "accept-encoding: GZIP",
                "accept-encoding: ",
                "accept-encoding: gzip, identity;q=0",
                "accept-encoding: *;q=0",
                "accept-encoding: br;q=1.0, gzip;q=0.8, *;q=0.1",
                "accept-encoding: gzip;q=nonsense",
                "accept-encoding: x-gzip",
                "accept-encoding: identity, gzip;q=0.2",
                "accept-encoding: zstd;q=0.9, gzip;q=0.9, br;q=0.9",
            ]));
        }
        if self.filters.iter().any(|name| name == "fault") && self.chance(0.3) {
            request.headers.push(self.text(&[
                "x-envoy-fault-abort-request: 429",
                "x-envoy-fault-abort-request: 700",
                "x-envoy-fault-abort-grpc-request: 5",
                "x-envoy-fault-delay-request: 5",
                "x-envoy-fault-abort-request: nonsense",
                "x-envoy-fault-abort-request: 200",
                "x-envoy-fault-abort-grpc-request: 99",
            ]));
            if self.chance(0.3) {
                request.headers.push(self.text(&[
                    "x-envoy-fault-abort-request-percentage: 0",
                    "x-envoy-fault-abort-request-percentage: 100",
                    "x-envoy-fault-delay-request-percentage: 0",
                ]));
            }
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
                "content-type: application/grpc-web-text",
                "content-type: application/grpc-web+proto",
                "content-type: application/grpc;x=y",
                "content-type: application/grpcx",
            ]));
            request.headers.extend(self.chance(0.3).then(|| "te: trailers".to_owned()));
            let limit = self.text(&[
                "grpc-timeout: 5S",
                "grpc-timeout: 8000m",
                "grpc-timeout: 1H",
                "grpc-timeout: x",
                "grpc-timeout: 99999999S",
                "grpc-timeout: 0S",
                "grpc-timeout: 7000000u",
                "grpc-timeout: 2M",
            ]);
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
}
