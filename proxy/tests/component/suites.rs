//! Other people's suites against the program: gRPC's own client and server for interoperability (`LENO_GRPC_INTEROP` names
//! their folder), the Autobahn cases for WebSocket (`LENO_WEBSOCKET_SUITE`), and `testssl` on a TLS port. `make unit` sets them.

use crate::process::free;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn folder_of(variable: &str) -> PathBuf {
    std::env::var_os(variable)
        .map(PathBuf::from)
        .unwrap_or_else(|| panic!("{variable} is not set; `make unit` sets it"))
}

fn wait_for(port: u16, running: &mut Running) {
    let until = Instant::now() + Duration::from_secs(60);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(running.0.try_wait().unwrap().is_none(), "the program on port {port} ended");
        assert!(Instant::now() < until, "nothing listens on port {port}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The proxy before one endpoint: a port in clear text, and one with TLS.
struct Proxy {
    clear: u16,
    tls: u16,
    /// The certificate of the port with TLS, in a file.
    certificate: PathBuf,
    _folder: tempfile::TempDir,
    _program: Running,
}

impl Proxy {
    fn start(endpoint: u16, http2: bool) -> Self {
        let certificate = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let protocols = if http2 { json!(["h2"]) } else { json!(["http/1.1"]) };
        let socket = json!({"name": "tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {"alpn_protocols": protocols, "tls_certificates": [{
                "certificate_chain": {"inline_string": certificate.cert.pem()},
                "private_key": {"inline_string": certificate.signing_key.serialize_pem()}
            }]}
        }});
        let (clear, tls) = (free().port(), free().port());
        let listener = |name: &str, port: u16, socket: Option<Value>| {
            let mut chain = json!({"filters": [{"name": "http", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": name,
                "upgrade_configs": [{"upgrade_type": "websocket"}],
                "route_config": {"name": "r", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                    {"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "0s"}}
                ]}]},
                "http_filters": [{"name": "router", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                }}]
            }}]});
            if let Some(socket) = socket {
                chain["transport_socket"] = socket;
            }
            json!({
                "name": name,
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                "filter_chains": [chain]
            })
        };
        let mut cluster = json!({"name": "app", "load_assignment": {"cluster_name": "app", "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": endpoint}}}}
        ]}]}});
        if http2 {
            cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}}
            }});
        }
        let listeners = [listener("clear", clear, None), listener("tls", tls, Some(socket))];
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("bootstrap.json");
        let bootstrap = json!({"static_resources": {"listeners": listeners, "clusters": [cluster]}});
        std::fs::write(&config, bootstrap.to_string()).unwrap();
        let file = folder.path().join("certificate.pem");
        std::fs::write(&file, certificate.cert.pem()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_leno-proxy"));
        command.args(["serve", "--concurrency", "1", "--config"]).arg(&config).stdout(Stdio::null());
        let mut program = Running(command.spawn().unwrap());
        wait_for(clear, &mut program);
        wait_for(tls, &mut program);
        Self { clear, tls, certificate: file, _folder: folder, _program: program }
    }
}

/// What the client can be asked for, but for what needs a cloud, servers that say which one they are, or hours.
const GRPC_CASES: [&str; 14] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
];

#[test]
fn grpc_when_its_own_client_and_server_talk_through_the_proxy_then_every_case_passes() {
    let programs = folder_of("LENO_GRPC_INTEROP");
    let port = free().port();
    let mut server = Command::new(programs.join("server"));
    server.arg(format!("--port={port}")).stdout(Stdio::null()).stderr(Stdio::null());
    let mut server = Running(server.spawn().unwrap());
    wait_for(port, &mut server);
    let proxy = Proxy::start(port, true);
    for tls in [false, true] {
        for case in GRPC_CASES {
            let mut client = Command::new(programs.join("client"));
            client.args(["--server_host=127.0.0.1", &format!("--test_case={case}")]);
            client.arg(format!("--server_port={}", if tls { proxy.tls } else { proxy.clear }));
            if tls {
                client.args(["--use_tls", "--use_test_ca", "--server_host_override=localhost"]);
                client.arg(format!("--ca_file={}", proxy.certificate.display()));
            }
            let output = client.output().expect("the client runs");
            let words = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{case}, TLS {tls}: {words}");
        }
    }
}

/// Gives every message back, and nothing else.
const ECHO: &str = "
import asyncio
from websockets.asyncio.server import serve
async def echo(socket):
    async for message in socket:
        await socket.send(message)
async def main():
    async with serve(echo, '127.0.0.1', 0, max_size=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().create_future()
asyncio.run(main())
";

/// The verdict on each case. Those about compression and the throughput of small frames judge the server alone and take minutes.
fn websocket_verdicts(suite: &Path, port: u16) -> BTreeMap<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let mut runner = Command::new("python3");
    runner.args(["-c", "import kosoku._cli as cli; cli.main()", "--parallelism", "8", "--outdir"]).arg(folder.path());
    runner.args(["-x", "9.3.*", "-x", "9.4.*", "-x", "12.*", "-x", "13.*"]).arg(format!("127.0.0.1:{port}"));
    let output = runner.env("PYTHONPATH", suite).output().expect("python3 runs");
    let report = std::fs::read(folder.path().join("index.json"))
        .unwrap_or_else(|_| panic!("there is no report: {}", String::from_utf8_lossy(&output.stderr)));
    let report: BTreeMap<String, BTreeMap<String, Value>> = serde_json::from_slice(&report).unwrap();
    let cases = report.into_values().flatten();
    cases.map(|(case, found)| (case, format!("{} {}", found["behavior"], found["behaviorClose"]))).collect()
}

#[test]
fn websocket_when_autobahn_judges_it_through_the_proxy_then_no_case_fails_that_passes_without() {
    let suite = folder_of("LENO_WEBSOCKET_SUITE");
    let mut server = Command::new("python3");
    server.args(["-c", ECHO]).env("PYTHONPATH", &suite).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut server = Running(server.spawn().expect("python3 runs"));
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let port = line.trim().parse().expect("the server tells its port");
    let proxy = Proxy::start(port, false);
    let (without, through) = (websocket_verdicts(&suite, port), websocket_verdicts(&suite, proxy.clear));
    assert!(without.len() > 250, "only {} cases ran", without.len());
    assert_eq!(without.keys().collect::<Vec<_>>(), through.keys().collect::<Vec<_>>());
    let good =
        |verdict: &str| !verdict.contains("FAILED") && !verdict.contains("WRONG") && !verdict.contains("UNCLEAN");
    let worse: Vec<_> = through.iter().filter(|(case, verdict)| !good(verdict) && good(&without[*case])).collect();
    assert!(worse.is_empty(), "{worse:?}");
    assert!(without.values().filter(|verdict| !good(verdict)).count() < 10, "the server itself fails: {without:?}");
}

#[test]
fn tls_when_testssl_judges_it_then_only_good_versions_and_ciphers_and_no_vulnerability() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                while let Ok(1..) = stream.read(&mut [0; 4096]) {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
                }
            });
        }
    });
    let proxy = Proxy::start(endpoint, false);
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let mut judge = Command::new("testssl");
    judge.args(["--quiet", "--color", "0", "--warnings", "off", "--nodns", "none", "--ip", "127.0.0.1"]);
    judge.args(["--protocols", "--std", "--fs", "--server-preference", "--vulnerable", "--jsonfile"]).arg(&report);
    judge.arg(format!("localhost:{}", proxy.tls)).current_dir(folder.path()).stdin(Stdio::null());
    let output = judge.output().expect("testssl runs; e2e/install-deps.sh installs it");
    let findings: Vec<Value> = serde_json::from_slice(&std::fs::read(&report).unwrap())
        .unwrap_or_else(|_| panic!("no report: {}", String::from_utf8_lossy(&output.stdout)));
    let finding = |id: &str| {
        let found = findings.iter().find(|finding| finding["id"] == id);
        found
            .and_then(|finding| finding["finding"].as_str())
            .unwrap_or_else(|| panic!("nothing is said of {id}"))
            .to_owned()
    };
    for version in ["SSLv2", "SSLv3", "TLS1", "TLS1_1"] {
        assert!(finding(version).starts_with("not offered"), "{version}: {}", finding(version));
    }
    for version in ["TLS1_2", "TLS1_3"] {
        assert!(finding(version).starts_with("offered"), "{version}: {}", finding(version));
    }
    let bad: Vec<_> = findings
        .iter()
        .filter(|finding| {
            matches!(finding["severity"].as_str(), Some("LOW" | "MEDIUM" | "HIGH" | "CRITICAL" | "FATAL"))
        })
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
    let asked = findings.iter().filter(|finding| finding["cve"].is_string()).count();
    assert!(asked > 10, "only {asked} vulnerabilities were looked for");
}
