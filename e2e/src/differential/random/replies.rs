//! What the back ends shall answer.

use super::super::{
    case::Request,
    reply::{Fail, Reply},
};
use super::{Feature, HOSTS, Maker, NAMES};
use rand::Rng;

impl Maker<'_> {
    pub(super) fn reply(&mut self, request: &Request) -> Reply {
        let mut status = self.one(&[200, 200, 201, 204, 302, 304, 404, 409, 500, 502, 503, 504]);
        if self.draws(Feature::Answers, 0.1) {
            status = self
                .one(&[203, 205, 206, 226, 299, 300, 305, 307, 399, 400, 401, 418, 429, 451, 499, 505, 599, 600, 999]);
        }
        let mut headers = match self.rng.random_range(0..12) {
            0..=2 => vec![format!("{}: back", self.text(&NAMES))],
            3 => vec![format!("location: http://{}{}", self.text(&HOSTS), self.path())],
            4 => vec!["server: theirs".to_owned(), "via: 1.1 them".to_owned()],
            5 => vec!["x-envoy-ratelimited: true".to_owned()],
            6 => vec!["x-envoy-upstream-service-time: 5".to_owned(), "date: yesterday".to_owned()],
            8 => vec!["retry-after: 0".to_owned()],
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
            headers.push(format!(
                "content-type: {}",
                self.text(&[
                    "text/plain",
                    "text/html; charset=utf-8",
                    "image/png",
                    "application/json",
                    "TEXT/PLAIN",
                    "text/event-stream",
                    "application/grpc",
                    "application/javascript;x=y",
                    "text/css ",
                    ""
                ])
            ));
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
            reply.fail = self.one(&[Fail::Reset, Fail::Close, Fail::Refuse, Fail::Breach, Fail::Half]);
        }
        if self.draws(Feature::Answers, 0.02) && self.chance(0.3) {
            let (raw, close) = self
                .one(&[
                    ("HTTP/1.0 200 OK\r\n\r\nold", true),
                    ("HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n", false),
                    ("HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\n", false),
                    ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc", false),
                    ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", false),
                    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nx-end: 1\r\n\r\n", false),
                    ("HTTP/1.1 204 No\r\ncontent-length: 0\r\n\r\n", false),
                    ("HTTP/1.1 304 Not\r\ncontent-length: 10\r\netag: \"x\"\r\n\r\n", false),
                    ("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc", true),
                    ("HTTP/1.1 200 OK\r\nconnection: x-one\r\nx-one: 1\r\ncontent-length: 0\r\n\r\n", false),
                    ("HTTP/1.1 200 OK\r\nkeep-alive: 5\r\nproxy-connection: x\r\ncontent-length: 0\r\n\r\n", false),
                    ("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 3\r\n\r\nabc", false),
                    ("HTTP/1.1 200 OK\r\nx-one\r\n\r\n", true),
                    ("nonsense\r\n\r\n", true),
                    ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", true),
                    ("HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", true),
                ])
                .unwrap_or(("", true));
            (reply.raw, reply.close) = (Some(raw.to_owned()), close);
        }
        if self.draws(Feature::Answers, 0.02) && self.chance(0.2) && request.body.is_none() && request.size.is_none() {
            reply.early = true;
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
