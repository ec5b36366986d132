//! The HTTP/2 conformance suite `h2spec` against the program (`LENO_H2SPEC` names the suite), over clear text and TLS.

use crate::process::free;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Ends the program with the test.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An endpoint that answers a request once all of it has come: what is wrong with a request can then still be told.
fn endpoint() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || answer(stream));
        }
    });
    port
}

fn answer(mut stream: TcpStream) {
    let (mut seen, mut bytes) = (Vec::new(), [0; 16384]);
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        seen.extend_from_slice(&bytes[..count]);
        let text = String::from_utf8_lossy(&seen).to_ascii_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        let whole = match length {
            Some(length) => body.len() >= length,
            None if head.contains("transfer-encoding: chunked") => {
                body.ends_with("\r\n\r\n") && (body.starts_with("0\r\n") || body.contains("\r\n0\r\n"))
            }
            None => true,
        };
        if whole {
            seen.clear();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 4000\r\n\r\n{}", "x".repeat(4000));
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}

fn listener(name: &str, port: u16, tls: Option<Value>) -> Value {
    let mut chain = json!({"filters": [{"name": "http", "typed_config": {
        "@type":
            "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        // Not AUTO: what does not begin with the preface would be HTTP/1 there, and be answered so.
        "codec_type": "HTTP2",
        "route_config": {"name": "r", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "route": {"cluster": "app"}}
        ]}]},
        "http_filters": [{"name": "router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
        }}]
    }}]});
    if let Some(tls) = tls {
        chain["transport_socket"] = tls;
    }
    json!({
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [chain]
    })
}

#[test]
fn http2_when_h2spec_judges_it_strictly_then_every_case_passes() {
    let program = std::env::var("LENO_H2SPEC")
        .expect("LENO_H2SPEC names no h2spec; `make unit` sets it, or: LENO_H2SPEC=$(leno-cluster h2spec) cargo test");
    let certificate = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let tls = json!({"name": "tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "tls_certificates": [{
                "certificate_chain": {"inline_string": certificate.cert.pem()},
                "private_key": {"inline_string": certificate.signing_key.serialize_pem()}
            }]
        }
    }});
    let ports = [free().port(), free().port()];
    let listeners = [listener("clear", ports[0], None), listener("tls", ports[1], Some(tls))];
    let cluster = json!({"name": "app", "load_assignment": {"cluster_name": "app", "endpoints": [{"lb_endpoints": [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": endpoint()}}}}
    ]}]}});
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("bootstrap.json");
    std::fs::write(&config, json!({"static_resources": {"listeners": listeners, "clusters": [cluster]}}).to_string())
        .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_leno-proxy"));
    command.args(["serve", "--concurrency", "1", "--config"]).arg(&config).stdout(Stdio::null());
    let mut proxy = Proxy(command.spawn().unwrap());
    let until = Instant::now() + Duration::from_secs(30);
    while !ports.iter().all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok()) {
        assert!(proxy.0.try_wait().unwrap().is_none(), "the proxy ended");
        assert!(Instant::now() < until, "the proxy does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    for (port, tls) in ports.iter().zip([&[][..], &["--tls", "--insecure"]]) {
        let port = port.to_string();
        // `--strict` adds cases to those that run anyway.
        let arguments = ["--strict", "--host", "127.0.0.1", "--port", &port, "--timeout", "5"];
        let output = Command::new(&program).args(arguments).args(tls).output().expect("h2spec runs");
        let words = String::from_utf8_lossy(&output.stdout);
        let verdict = words.lines().rev().find(|line| line.contains(" passed, ")).unwrap_or_default();
        assert!(output.status.success(), "{tls:?}: {words}");
        assert!(verdict.contains(" 0 skipped, 0 failed"), "{tls:?}: {words}");
    }
}
