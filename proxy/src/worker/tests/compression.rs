//! Bodies that are compressed and decompressed on their way.

use super::{
    routed::{entry, proxy, setting, table, with},
    *,
};
use serde_json::{Value, json};

fn library(kind: &str, name: &str) -> Value {
    let package = if name == "Gzip" { "gzip" } else { name };
    let message = match name {
        "Gzip" => "Gzip",
        "brotli" => "Brotli",
        _ => "Zstd",
    };
    let type_url = format!("type.googleapis.com/envoy.extensions.compression.{package}.{kind}.v3.{message}");
    json!({"name": "l", "typed_config": {"@type": type_url}})
}

fn compressor(name: &str, library_name: &str, mut fields: Value) -> Value {
    fields["compressor_library"] = library("compressor", library_name);
    entry(name, fields, "compressor.v3.Compressor")
}

fn decompressor(library_name: &str) -> Value {
    let fields = json!({"decompressor_library": library("decompressor", library_name)});
    entry("d", fields, "decompressor.v3.Decompressor")
}

fn to_a() -> Value {
    table(json!([{"match": {"prefix": "/"}, "route": {"cluster": "a"}}]))
}

/// Asks once on a connection of its own; head and body as they come, chunks taken off.
fn bytes(proxy: &Proxy, request: &[u8]) -> (Message, Vec<u8>) {
    let mut stream = TcpStream::connect(proxy.address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let line = request.windows(2).position(|part| part == b"\r\n").unwrap() + 2;
    stream.write_all(&[&request[..line], b"connection: close\r\n", &request[line..]].concat()).unwrap();
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let at = all.windows(4).position(|part| part == b"\r\n\r\n").expect("a head");
    let head = Message { head: String::from_utf8(all[..at].to_vec()).unwrap(), body: String::new() };
    let mut rest = &all[at + 4..];
    if head.header("transfer-encoding").is_none() {
        return (head, rest.to_vec());
    }
    let mut body = Vec::new();
    while let Some(at) = rest.windows(2).position(|part| part == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..at]).unwrap(), 16).unwrap();
        if size == 0 {
            // Trailers.
            break;
        }
        body.extend_from_slice(&rest[at + 2..at + 2 + size]);
        rest = &rest[at + 4 + size..];
    }
    (head, body)
}

fn gunzipped(body: &[u8]) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(body).read_to_string(&mut text).unwrap();
    text
}

fn gzipped(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(9));
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

/// Answers every request with these headers and bytes.
fn answering(headers: &'static str, body: Vec<u8>) -> Backend {
    Backend::start(move |stream, _| {
        let mut side = Side::new(stream);
        while side.message(true).is_some() {
            let head = format!("HTTP/1.1 200 OK\r\n{headers}content-length: {}\r\n\r\n", body.len());
            side.send(&[head.as_bytes(), &body].concat());
        }
    })
}

/// A text that does not become so small that it would be taken for a bomb when it grows again.
fn lines() -> String {
    (0..5000).map(|n| format!("line {n} of many\n")).collect()
}

const TEXT: &str = "a line that comes again and again\n";

#[test]
fn answer_when_the_client_accepts_a_coding_then_it_is_compressed() {
    let backend = answering("content-type: text/plain; charset=utf-8\r\netag: \"x\"\r\n", TEXT.repeat(1000).into());
    let chain = json!([compressor("g", "Gzip", json!({})), compressor("b", "brotli", json!({}))]);
    let proxy = proxy(to_a(), chain, &[backend.address]);
    let (head, body) = bytes(&proxy, with("/", &[("accept-encoding", "gzip")]).as_bytes());
    assert_eq!((head.header("content-encoding"), head.header("vary")), (Some("gzip"), Some("Accept-Encoding")));
    assert_eq!((head.header("content-length"), head.header("etag")), (None, None), "they spoke of other bytes");
    assert!(body.len() < 2000 && gunzipped(&body) == TEXT.repeat(1000));
    let (head, body) = bytes(&proxy, with("/", &[("accept-encoding", "gzip;q=0.5, br")]).as_bytes());
    assert_eq!((head.header("content-encoding"), head.header("vary")), (Some("br"), Some("Accept-Encoding")));
    let mut text = String::new();
    brotli::Decompressor::new(&body[..], 4096).read_to_string(&mut text).unwrap();
    assert!(text == TEXT.repeat(1000));
    for accepts in [&[][..], &[("accept-encoding", "zstd")], &[("accept-encoding", "gzip;q=0")]] {
        let (head, body) = bytes(&proxy, with("/", accepts).as_bytes());
        assert_eq!((head.header("content-encoding"), head.header("etag")), (None, Some("\"x\"")));
        assert_eq!(head.header("vary"), Some("Accept-Encoding"), "for others it would be another");
        assert_eq!(body.len(), TEXT.len() * 1000);
    }
    let (head, _) = bytes(&proxy, b"HEAD / HTTP/1.1\r\nhost: t\r\naccept-encoding: gzip\r\n\r\n");
    assert_eq!((head.header("content-encoding"), head.header("vary")), (None, Some("Accept-Encoding")));
}

#[test]
fn answer_when_it_does_not_pay_or_must_not_change_then_it_passes_as_it_is() {
    let chain = |fields| json!([compressor("g", "Gzip", fields)]);
    let ask = |headers: &'static str, length: usize, fields: Value| {
        let backend = answering(headers, vec![b'x'; length]);
        let proxy = proxy(to_a(), chain(fields), &[backend.address]);
        let (head, body) = bytes(&proxy, with("/", &[("accept-encoding", "gzip")]).as_bytes());
        (head.header("content-encoding").map(str::to_owned), head.header("vary").map(str::to_owned), body.len())
    };
    let as_it_is = |length| (None, None, length);
    assert_eq!(ask("", 29, json!({})), as_it_is(29));
    assert_eq!(ask("", 30, json!({})).0.as_deref(), Some("gzip"), "what says no type may be anything");
    assert_eq!(ask("content-type: image/png\r\n", 500, json!({})), as_it_is(500));
    assert_eq!(ask("cache-control: public, no-transform\r\n", 500, json!({})), as_it_is(500));
    assert_eq!(ask("content-encoding: br\r\n", 500, json!({})).2, 500);
    let spares = json!({"response_direction_config": {"disable_on_etag_header": true}});
    assert_eq!(ask("etag: \"x\"\r\n", 500, spares), as_it_is(500));
    let off = json!({"response_direction_config": {"common_config": {"enabled": {"default_value": false}}}});
    assert_eq!(ask("", 500, off), as_it_is(500));
    let spared = json!({"response_direction_config": {"uncompressible_response_codes": [200]}});
    assert_eq!(ask("", 500, spared), as_it_is(500));
}

#[test]
fn answer_when_it_comes_in_pieces_then_each_is_passed_on_at_once() {
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    let backend = Backend::start(move |stream, _| {
        let mut side = Side::new(stream);
        side.message(true);
        side.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n");
        gone.lock().unwrap().recv_timeout(LIMIT).unwrap();
        side.send(b"6\r\nsecond\r\n0\r\n\r\n");
    });
    let proxy = proxy(to_a(), json!([compressor("g", "Gzip", json!({}))]), &[backend.address]);
    let mut stream = TcpStream::connect(proxy.address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(with("/", &[("accept-encoding", "gzip")]).as_bytes()).unwrap();
    let (mut all, mut part) = (Vec::new(), [0; 4096]);
    let decoded = |all: &[u8]| {
        let at = all.windows(4).position(|part| part == b"\r\n\r\n")? + 4;
        let mut decoder = flate2::write::GzDecoder::new(Vec::new());
        let mut rest = &all[at..];
        while let Some(at) = rest.windows(2).position(|part| part == b"\r\n") {
            let size = usize::from_str_radix(std::str::from_utf8(&rest[..at]).ok()?, 16).ok()?;
            decoder.write_all(rest.get(at + 2..at + 2 + size)?).ok()?;
            rest = rest.get(at + 4 + size..)?;
        }
        let _ = decoder.flush();
        String::from_utf8(decoder.get_ref().clone()).ok()
    };
    let mut wait_for = |text: &str| {
        while decoded(&all).as_deref() != Some(text) {
            let count = stream.read(&mut part).expect("the piece");
            assert!(count > 0, "it ended with {:?} and not {text}", decoded(&all));
            all.extend_from_slice(&part[..count]);
        }
    };
    wait_for("first");
    go.send(()).unwrap();
    wait_for("firstsecond");
}

#[test]
fn compressor_when_a_route_says_otherwise_then_that_counts_and_own_answers_are_compressed_too() {
    let backend = answering("", TEXT.repeat(10).into());
    let said = |value| json!({"g": setting(value, "compressor.v3.CompressorPerRoute")});
    let on = json!({"overrides": {"response_direction_config": {"remove_accept_encoding_header": true}}});
    let routes = json!([
        {"match": {"prefix": "/off"}, "route": {"cluster": "a"}, "typed_per_filter_config": said(json!({"disabled": true}))},
        {"match": {"prefix": "/on"}, "route": {"cluster": "a"}, "typed_per_filter_config": said(on)},
        {"match": {"prefix": "/own"}, "direct_response": {"status": 200, "body": {"inline_string": TEXT.repeat(10)}}},
        {"match": {"prefix": "/"}, "route": {"cluster": "a"}}
    ]);
    let proxy = proxy(table(routes), json!([compressor("g", "Gzip", json!({}))]), &[backend.address]);
    let coding = |path| {
        let (head, body) = bytes(&proxy, with(path, &[("accept-encoding", "gzip")]).as_bytes());
        let coding = head.header("content-encoding").map(str::to_owned);
        assert_eq!(if coding.is_some() { gunzipped(&body) } else { String::from_utf8(body).unwrap() }, TEXT.repeat(10));
        coding
    };
    assert_eq!(coding("/off"), None);
    for path in ["/on", "/own", "/"] {
        assert_eq!(coding(path).as_deref(), Some("gzip"), "{path}");
    }
}

#[test]
fn request_when_it_is_compressed_here_then_the_endpoint_gets_it_whole_again() {
    let echo = Backend::echo();
    let behind = proxy(to_a(), json!([decompressor("Gzip")]), &[echo.address]);
    let chain = json!([compressor("g", "Gzip", json!({"request_direction_config": {}}))]);
    let proxy = proxy(to_a(), chain, &[behind.address]);
    let body = lines();
    let request = |headers: &str| {
        format!("POST / HTTP/1.1\r\nhost: t\r\n{headers}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    };
    let (head, seen) = bytes(&proxy, &request("content-type: text/plain\r\n"));
    let seen = String::from_utf8(seen).unwrap();
    assert_eq!(head.status(), 200);
    assert!(seen.contains(&body), "the body arrives");
    assert!(seen.contains("transfer-encoding: chunked") && !seen.contains("content-encoding"), "{}", &seen[..500]);
    assert!(seen.contains("accept-encoding: gzip"), "the endpoint may compress for the proxy");
    let (head, seen) = bytes(&proxy, &request("content-type: image/png\r\n"));
    let seen = String::from_utf8(seen).unwrap();
    assert_eq!(head.status(), 200, "{seen}");
    assert!(seen.contains("content-length"), "this one was not compressed: {}", &seen[..500]);
}

#[test]
fn answer_when_it_is_compressed_then_a_client_that_takes_no_coding_reads_it() {
    let backend = answering("content-encoding: gzip\r\n", gzipped(lines().as_bytes()));
    let proxy = proxy(to_a(), json!([decompressor("Gzip")]), &[backend.address]);
    let (head, body) = bytes(&proxy, get("/").as_bytes());
    assert_eq!((head.header("content-encoding"), head.header("content-length")), (None, None));
    assert!(body == lines().as_bytes());
    let spared = answering("content-encoding: gzip\r\ncache-control: no-transform\r\n", gzipped(b"x"));
    let proxy = super::routed::proxy(to_a(), json!([decompressor("Gzip")]), &[spared.address]);
    assert_eq!(bytes(&proxy, get("/").as_bytes()).0.header("content-encoding"), Some("gzip"));
}

#[test]
fn body_when_it_is_a_bomb_then_it_goes_nowhere() {
    let bomb = gzipped(&vec![0; 64 << 20]);
    let backend = answering("content-encoding: gzip\r\n", bomb.clone());
    let down = proxy(to_a(), json!([decompressor("Gzip")]), &[backend.address]);
    let mut stream = TcpStream::connect(down.address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(get("/").as_bytes()).unwrap();
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got);
    assert!(got.len() <= 100 * bomb.len() + 1000 && !got.ends_with(b"0\r\n\r\n"), "it has no end: {}", got.len());
    down.told("UPE");
    let echo = Backend::echo();
    let up = proxy(to_a(), json!([decompressor("Gzip")]), &[echo.address]);
    let head =
        format!("POST / HTTP/1.1\r\nhost: t\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n", bomb.len());
    let (head, _) = bytes(&up, &[head.as_bytes(), &bomb].concat());
    assert_eq!(head.status(), 400);
}
