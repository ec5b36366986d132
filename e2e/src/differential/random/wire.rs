//! Requests of other versions, for other protocols, and as bytes.

use super::super::{
    case::{Request, Speaks},
    reply::Reply,
};
use super::{Feature, Maker};
use rand::Rng;

impl Maker<'_> {
    /// Requests for other protocols, and of HTTP/1.0.
    pub(super) fn versions(&mut self, request: &mut Request) {
        // Through Envoy it waits for the end of what has none there, which is listed.
        let waits = self.filters.iter().any(|name| name == "buffer" || name == "health");
        if !waits && self.draws(Feature::Upgrades, 0.02) {
            request.protocol = Speaks::H1;
            (request.method, request.body, request.size) = ("GET".to_owned(), None, None);
            (request.chunked, request.trailers) = (false, Vec::new());
            request.headers.retain(|line| !["connection", "expect", "te:"].iter().any(|name| line.starts_with(name)));
            request.headers.push("connection: upgrade".to_owned());
            request.headers.push(self.text(&["upgrade: websocket", "upgrade: WebSocket", "upgrade: other"]));
            if self.chance(0.6) {
                let switched = vec!["connection: upgrade".to_owned(), "upgrade: websocket".to_owned()];
                request.replies = vec![Reply { status: Some(101), headers: switched, ..Reply::default() }];
                request.then = Some("ping".to_owned());
            } else {
                // Bodies of other answers are lost in Envoy, which is listed.
                request.replies = vec![Reply { status: self.one(&[400, 404, 426, 503]), ..Reply::default() }];
            }
        }
        // An upgrade in HTTP/1.0 is none here, which is listed.
        let upgrade = request.headers.iter().any(|line| line.starts_with("upgrade: "));
        let plain = request.protocol == Speaks::H1 && !request.chunked && !upgrade;
        if plain && self.draws(Feature::Versions, 0.03) {
            request.version = "1.0".to_owned();
            request.headers.retain(|line| !line.starts_with("expect"));
            if self.chance(0.4) {
                request.headers.push(self.text(&[
                    "connection: keep-alive",
                    "connection: close",
                    "Connection: Keep-Alive",
                ]));
            }
            if self.chance(0.1) {
                request.host = String::new();
            }
        }
    }

    /// Bytes as no library would write them, but such as a server may meet, and such as both proxies are to take alike.
    pub(super) fn raw(&mut self, request: &mut Request) {
        let (path, host) = (request.path.clone(), request.host.clone());
        let line = match self.rng.random_range(0..17) {
            11 => format!("GET https://{host}{path} HTTP/1.1"),
            12 => format!("POST HTTPS://{host}{path} HTTP/1.1"),
            13 => "OPTIONS http://a.example HTTP/1.1".to_owned(),
            0 => format!("GET http://{host}{path} HTTP/1.1"),
            1 => "OPTIONS * HTTP/1.1".to_owned(),
            2 => format!("PURGE {path} HTTP/1.1"),
            3 => format!("get {path} HTTP/1.1"),
            4 => format!("GET {path}#part HTTP/1.1"),
            5 => format!("GET {} HTTP/1.1", path.trim_start_matches('/')),
            6 => format!("GET http://{host}?k=1 HTTP/1.1"),
            7 => format!("DELETE http://{host}{path} HTTP/1.1"),
            8 => "GET HTTP://other.example HTTP/1.1".to_owned(),
            9 => format!("POST {path} HTTP/1.1"),
            10 => format!("GET {path}\u{e9} HTTP/1.1"),
            _ => format!("GET {path} HTTP/1.1"),
        };
        let (more, body) = match self.rng.random_range(0..18) {
            0 => ("transfer-encoding: chunked\r\n", "3;ext=1\r\nabc\r\n0\r\n\r\n"),
            1 => ("transfer-encoding: chunked\r\n", "3\r\nabc\r\n0\r\nx-end: 1\r\n\r\n"),
            2 => ("Transfer-Encoding: Chunked\r\n", "0003\r\nabc\r\n000\r\n\r\n"),
            3 => ("content-length: 3\r\ntransfer-encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n"),
            4 => ("content-length: 3\r\ncontent-length: 3\r\n", "abc"),
            5 => ("content-length: +3\r\n", "abc"),
            6 => ("content-length: 3, 3\r\n", "abc"),
            7 => ("x-two: 1\r\nx-two: one\r\n", ""),
            8 => ("content-length: \r\n", ""),
            9 => ("x-one : 1\r\n", ""),
            10 => ("x-one:1\r\nx-one:\t2 \r\n", ""),
            11 => ("x(one: 1\r\n", ""),
            12 => ("x-one: \u{fc}\r\n", ""),
            13 => ("connection: close\r\n", ""),
            14 => ("connection: x-one, close\r\nx-one: 1\r\n", ""),
            15 => ("transfer-encoding: gzip, chunked\r\n", "3\r\nabc\r\n0\r\n\r\n"),
            16 => ("x-one:\r\n", ""),
            _ => ("", ""),
        };
        let ahead = if self.chance(0.1) { "\r\n" } else { "" };
        let mut own = String::new();
        for line in request.headers.iter().filter(|line| !line.starts_with("expect") && !line.starts_with("upgrade")) {
            own.push_str(&format!("{line}\r\n"));
        }
        let mut raw = format!(
            "{ahead}{line}\r\nhost: {host}\r\nx-test-id: ${{id}}\r\nx-reply: ${{reply}}\r\n{own}{more}\r\n{body}"
        );
        if self.chance(0.2) {
            raw.push_str(&format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nx-test-id: ${{id}}\r\n\r\n"));
        }
        *request = Request { raw: Some(raw), path, host, replies: request.replies.clone(), ..Request::default() };
    }
}
