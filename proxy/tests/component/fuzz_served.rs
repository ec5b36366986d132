//! A whole proxy whose settings look at everything that a request may bring gets mutated requests, and mutated PROXY headers.
//!
//! What it reads only in company (addresses in `x-forwarded-for`, queries, cookies, traces, times of gRPC, bodies and trailers of
//! gRPC-Web) is reached so.

use crate::fuzz::fuzz;
use crate::process::{Proxy, free, get, socket_address, wait};
use leno_proxy::config::HeaderNames;
use leno_proxy::http::RequestHead;
use leno_proxy::http::{
    parse::{self, HeadLimits},
    rules::RequestRules,
};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// An answer takes no longer than this, whatever was asked.
const LIMIT: Duration = Duration::from_secs(10);

/// Answers as a server of gRPC, once a connection. Heads that cannot be read are kept.
fn backend(broken: Arc<Mutex<Vec<String>>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = move |mut stream: TcpStream| {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let limits = HeadLimits { bytes: 65536, headers: 200, chunked_length: false, names: HeaderNames::Plain };
        let (mut seen, mut part) = (Vec::new(), [0; 4096]);
        let told = loop {
            let mut head = RequestHead::default();
            match parse::request(&seen, limits, RequestRules::default(), &mut head) {
                Ok(Some(_)) => break Ok(()),
                Ok(None) => {}
                Err(error) => break Err(format!("{error:?}: {}", seen.escape_ascii())),
            }
            match stream.read(&mut part) {
                Ok(count @ 1..) => seen.extend_from_slice(&part[..count]),
                Ok(0) if seen.is_empty() => return,
                Ok(_) | Err(_) => break Err(format!("cut short: {}", seen.escape_ascii())),
            }
        };
        broken.lock().unwrap().extend(told.err());
        let _ = stream.write_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\nconnection: close\r\netag: \"a\"\r\n\
              retry-after: 1\r\ntransfer-encoding: chunked\r\n\r\n9\r\n\0\0\0\0\x04abcd\r\n0\r\ngrpc-status: 0\r\n\r\n",
        );
    };
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

/// Listeners for HTTP, and for HTTP behind the PROXY protocol, with one cluster.
fn bootstrap(http: SocketAddr, proxied: SocketAddr, backend: SocketAddr) -> String {
    const TYPES: &str = "type.googleapis.com/envoy.extensions";
    let listener = |name: &str, address: SocketAddr, filters: &str| {
        format!(
            r#"
  - name: {name}
    address: {address}{filters}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": {TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          use_remote_address: true
          xff_num_trusted_hops: 1
          normalize_path: true
          merge_slashes: true
          path_with_escaped_slashes_action: UNESCAPE_AND_FORWARD
          via: here
          http_protocol_options: {{accept_http_10: true, enable_trailers: true}}
          tracing:
            provider:
              name: zipkin
              typed_config:
                "@type": type.googleapis.com/envoy.config.trace.v3.ZipkinConfig
                collector_cluster: all
                collector_endpoint: /spans
                collector_endpoint_version: HTTP_JSON
                trace_context_option: USE_B3_WITH_W3C_PROPAGATION
          upgrade_configs: [{{upgrade_type: websocket}}]
          route_config:
            request_headers_to_add: [{{header: {{key: x-seen, value: "%REQ(:PATH)% %REQ(COOKIE):9% %QUERY_PARAM(a)%"}}}}]
            virtual_hosts:
            - name: all
              domains: ["*"]
              cors: {{allow_origin_string_match: [{{safe_regex: {{regex: "https://.*[.]a"}}}}], allow_methods: GET}}
              routes:
              - match:
                  prefix: /q
                  query_parameters: [{{name: a, string_match: {{contains: b}}}}]
                  cookies: [{{name: c, string_match: {{prefix: d}}}}]
                redirect: {{regex_rewrite: {{pattern: {{regex: "/(.*)"}}, substitution: '/\1/x'}}}}
              - match: {{prefix: /}}
                route:
                  cluster: all
                  timeout: 3s
                  max_stream_duration: {{grpc_timeout_header_max: 2s}}
                  prefix_rewrite: /p/
                  hash_policy:
                  - cookie: {{name: c, ttl: 5s}}
                  - query_parameter: {{name: a}}
                  - header: {{header_name: x-h, regex_rewrite: {{pattern: {{regex: a+}}, substitution: b}}}}
                  rate_limits:
                  - actions:
                    - query_parameters: {{query_parameter_name: a, descriptor_key: a}}
                    - request_headers: {{header_name: x-h, descriptor_key: h, skip_if_absent: true}}
                    - masked_remote_address: {{v4_prefix_mask_len: 24}}
          http_filters:
          - name: web
            typed_config: {{"@type": {TYPES}.filters.http.grpc_web.v3.GrpcWeb}}
          - name: cors
            typed_config: {{"@type": {TYPES}.filters.http.cors.v3.Cors}}
          - name: told
            typed_config:
              "@type": {TYPES}.filters.http.header_to_metadata.v3.Config
              request_rules:
              - header: x-h
                on_header_present: {{metadata_namespace: a, key: b, type: PROTOBUF_VALUE, encode: BASE64}}
          - name: limit
            typed_config:
              "@type": {TYPES}.filters.http.local_ratelimit.v3.LocalRateLimit
              stat_prefix: a
              token_bucket: {{max_tokens: 1000000, fill_interval: 1s}}
              filter_enabled: {{default_value: {{numerator: 100}}}}
              filter_enforced: {{default_value: {{numerator: 100}}}}
              descriptors: [{{entries: [{{key: a}}, {{key: masked_remote_address}}], token_bucket: {{max_tokens: 1000000, fill_interval: 1s}}}}]
          - name: press
            typed_config:
              "@type": {TYPES}.filters.http.compressor.v3.Compressor
              compressor_library:
                name: gzip
                typed_config: {{"@type": {TYPES}.compression.gzip.compressor.v3.Gzip}}
          - name: open
            typed_config:
              "@type": {TYPES}.filters.http.decompressor.v3.Decompressor
              decompressor_library:
                name: gzip
                typed_config: {{"@type": {TYPES}.compression.gzip.decompressor.v3.Gzip}}
          - name: count
            typed_config:
              "@type": {TYPES}.filters.http.grpc_stats.v3.FilterConfig
              stats_for_all_methods: true
          - name: router
            typed_config: {{"@type": {TYPES}.filters.http.router.v3.Router}}"#,
            address = socket_address(address),
        )
    };
    let inspector = format!(
        "\n    listener_filters: [{{name: proxied, typed_config: \
         {{\"@type\": {TYPES}.filters.listener.proxy_protocol.v3.ProxyProtocol}}}}]"
    );
    format!(
        "admin: {{address: {}}}\nstatic_resources:\n  listeners:{}{}\n  clusters:\n  - name: all\n    lb_policy: RING_HASH\n    \
         connect_timeout: 1s\n    load_assignment: {{cluster_name: all, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {}}}}}]}}]}}\n",
        socket_address(([127, 0, 0, 1], 0).into()),
        listener("http", http, ""),
        listener("proxied", proxied, &inspector),
        socket_address(backend),
    )
}

/// Sends it all, says no more, and reads to the end.
fn ask(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("the proxy listens");
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    // It may have been refused halfway.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("no end within {LIMIT:?}"),
        _ => answer,
    }
}

/// What is answered begins as an answer.
fn check(answer: &[u8]) {
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 ") || answer.starts_with(b"HTTP/1.0 "),
        "{}",
        answer.escape_ascii()
    );
}

/// What comes behind: whatever it is taken for, it ends the connection.
const END: &[u8] = b"GET /end HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"=",
    b"&",
    b"?",
    b"#",
    b"%",
    b"%2f",
    b"%00",
    b"..",
    b"//",
    b"\xff",
    b"\"",
    b"[",
    b"::1",
    b"10.0.0.1, ",
    b"1.2.3.4:5",
    b"-1",
    b"0",
    b"18446744073709551616",
    b"0x1",
    b"identity;q=0",
    b"*",
    b"AAAA",
    b"=A=",
    b"99999999H",
    b"1n",
    b"00-",
    b"ffffffff",
    b"a=b",
    b"c=d",
    b"chunked",
    b"X-Forwarded-For: 1.1.1.1\r\n",
    b"Cookie: c=d\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"grpc-timeout: 1S\r\n",
    b"\r\n\r\n",
];

const REQUESTS: &[&[u8]] = &[
    b"GET /q?a=b&c=%41&a HTTP/1.1\r\nHost: a:80\r\nX-Forwarded-For: 10.0.0.1, ::1,1.2.3.4\r\nX-Forwarded-Proto: https\r\n\
      Cookie: c=d; e=\"f\"\r\nOrigin: https://b.a\r\nAccept-Encoding: gzip;q=0.5, br, *;q=0\r\n\r\n",
    b"POST /s/m HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc-web-text\r\nAccept: application/grpc-web-text\r\n\
      Content-Length: 20\r\ngrpc-timeout: 100m\r\n\r\nAAAAAARhYmNkAAAAAAA=",
    b"POST /s/m HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n\
      9\r\n\0\0\0\0\x04abcd\r\n0\r\nx-t: y\r\ngrpc-status: 0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX-H: CgNhYmM=\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\
      tracestate: a=b,c=d\r\nb3: 80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1-05e3ac9a4f6e3b90\r\nx-b3-sampled: 1\r\n\r\n",
    b"GET /a%2f..//b HTTP/1.1\r\nHost: a\r\nX-Envoy-Max-Retries: 2\r\nX-Envoy-Retry-On: 5xx,reset\r\n\
      X-Envoy-Upstream-Rq-Timeout-Ms: 15\r\nX-Envoy-Upstream-Rq-Per-Try-Timeout-Ms: 10\r\nX-Request-Id: a\r\n\r\n",
    b"OPTIONS /q HTTP/1.1\r\nHost: a\r\nOrigin: https://b.a\r\nAccess-Control-Request-Method: GET\r\n\r\n",
    b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AQ==\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: 23\r\n\r\n\
      \x1f\x8b\x08\0\0\0\0\0\0\x03\x4b\x4c\x4a\x06\0\xc2\x41\x24\x35\x03\0\0\0",
    b"GET / HTTP/1.0\r\nReferer: http://a/b\r\nExpect: 100-continue\r\nVia: 1.1 x\r\n\r\n",
];

#[test]
fn requests_when_mutated_then_the_proxy_answers_or_ends_the_connection_and_sends_on_what_is_clear() {
    let broken = Arc::new(Mutex::new(Vec::new()));
    let (http, proxied) = (free(), free());
    let mut proxy = Proxy::start(&bootstrap(http, proxied, backend(broken.clone())));
    wait("the proxy", || get(http, "/"));
    fuzz("served", 8, REQUESTS, WORDS, |input| check(&ask(http, &[input, END].concat())));
    assert!(get(http, "/").is_some_and(|answer| answer.starts_with("HTTP/1.1 200")), "it still serves");
    // Of what a client sent no more than a part, no endpoint gets more.
    let broken: Vec<String> =
        broken.lock().unwrap().iter().filter(|text| !text.starts_with("cut short")).cloned().collect();
    assert_eq!(broken, Vec::<String>::new(), "what the endpoint cannot read");

    let words: &[&[u8]] =
        &[b"\r\n", b"PROXY ", b"TCP4", b"UNKNOWN", b" ", b"65536", b"\0", b"\xff\xff", b"\r\n\r\n\0\r\nQUIT\n", b"::"];
    let v2 = |kind: &[u8], rest: &[u8]| {
        let length = (rest.len() as u16).to_be_bytes();
        [b"\r\n\r\n\0\r\nQUIT\n", kind, &length, rest].concat()
    };
    let tlvs = b"\x01\x02\x03\x04\x05\x06\x07\x08\0\x50\0\x51\x02\0\x01a\x05\0\x02id\x20\0\x09\x01\0\0\0\0\x21\0\x01x";
    let headers: [Vec<u8>; 5] = [
        b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n".to_vec(),
        b"PROXY TCP6 ::1 ::2 9 10\r\n".to_vec(),
        b"PROXY UNKNOWN\r\n".to_vec(),
        v2(b"\x21\x11", tlvs),
        v2(b"\x20\x00", b""),
    ];
    let seeds: Vec<&[u8]> = headers.iter().map(Vec::as_slice).collect();
    fuzz("proxied", 8, &seeds, words, |input| check(&ask(proxied, &[input, END].concat())));
    assert!(proxy.child.try_wait().unwrap().is_none() && get(http, "/").is_some(), "it lives");
}
