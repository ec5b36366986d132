//! go-control-plane, on which most control planes stand, drives the proxy in each of its modes (`LENO_XDS_SERVER` names the
//! program made of it, `e2e/xds-server`).

use crate::process::{LIMIT, Proxy, free, free_row, get, socket_address, upstream, wait};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

/// Listeners of a snapshot: two for HTTP, two for TCP.
const LISTENERS: u16 = 4;
/// Snapshots that follow each other.
const SNAPSHOTS: usize = 3;

/// The server, and the lines that it says.
struct Server {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Server {
    fn start(mode: &str, port: u16, upstream: u16, base: u16, tls: bool) -> Self {
        let program = std::env::var("LENO_XDS_SERVER").expect(
            "LENO_XDS_SERVER names no server; `make unit` sets it, or: LENO_XDS_SERVER=$(leno-cluster xds-server) cargo test",
        );
        let mut command = Command::new(program);
        command.args(["-xds", mode, "-port", &port.to_string(), "-upstream", &upstream.to_string()]);
        command.args(["-base", &base.to_string(), &format!("-tls={tls}")]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, input, lines }
    }

    /// Waits until it serves that version.
    fn serves(&self, version: usize) {
        let line = self.lines.recv_timeout(LIMIT).expect("a word of the server");
        assert_eq!(line, format!("serving v{version}"));
    }

    fn refusals(&self) -> Vec<String> {
        self.lines.try_iter().collect()
    }
}

fn bootstrap(mode: &str, server: SocketAddr) -> String {
    let kind = if mode.starts_with("delta") { "DELTA_GRPC" } else { "GRPC" };
    let api = format!(
        "{{api_type: {kind}, transport_api_version: V3, set_node_on_first_message_only: true, \
         grpc_services: [{{envoy_grpc: {{cluster_name: xds_cluster}}}}]}}"
    );
    let dynamic = if mode.ends_with("ads") {
        format!("  ads_config: {api}\n  cds_config: {{ads: {{}}}}\n  lds_config: {{ads: {{}}}}\n")
    } else {
        format!("  cds_config: {{api_config_source: {api}}}\n  lds_config: {{api_config_source: {api}}}\n")
    };
    format!(
        "node: {{id: test-id, cluster: test-cluster}}\nadmin: {{address: {}}}\ndynamic_resources:\n{dynamic}\
         static_resources:\n  clusters:\n  - name: xds_cluster\n    connect_timeout: 1s\n    http2_protocol_options: {{}}\n    \
         load_assignment:\n      cluster_name: xds_cluster\n      endpoints:\n      - lb_endpoints:\n        \
         - endpoint: {{address: {}}}\n",
        socket_address(([127, 0, 0, 1], 0).into()),
        socket_address(server),
    )
}

fn drive(mode: &str, tls: bool) {
    let (upstream, address, base) = (upstream(), free(), free_row(LISTENERS));
    let mut server = Server::start(mode, address.port(), upstream.port(), base, tls);
    server.serves(0);
    let proxy = Proxy::start(&bootstrap(mode, address));
    let listeners: Vec<SocketAddr> = (base..base + LISTENERS).map(|port| ([127, 0, 0, 1], port).into()).collect();
    for version in 0..SNAPSHOTS {
        if version > 0 {
            writeln!(server.input).unwrap();
            server.serves(version);
        }
        let here = format!("cluster-v{version}-");
        let gone = |clusters: &String| version == 0 || !clusters.contains(&format!("cluster-v{}-", version - 1));
        wait("the snapshot to be in force", || {
            Some(proxy.admin("/clusters")).filter(|clusters| clusters.contains(&here) && gone(clusters))
        });
        for listener in &listeners {
            if tls {
                wait("the listener", || TcpStream::connect(listener).ok());
            } else {
                let whole = |answer: &String| answer.ends_with(&upstream.port().to_string());
                wait("an answer through the proxy", || get(*listener, "/").filter(whole));
            }
        }
    }
    assert_eq!(server.refusals(), Vec::<String>::new(), "everything was taken");
    let dump = proxy.admin("/config_dump");
    assert!(!dump.contains("PRIVATE KEY"), "keys are not shown");
}

#[test]
fn ads_when_go_control_plane_sends_state_of_the_world_on_one_stream_follows_each_snapshot() {
    drive("ads", false);
}

#[test]
fn delta_ads_when_go_control_plane_sends_changes_on_one_stream_follows_each_snapshot() {
    drive("delta-ads", false);
}

#[test]
fn xds_when_go_control_plane_sends_state_of_the_world_a_stream_a_kind_follows_each_snapshot() {
    drive("xds", false);
}

#[test]
fn delta_when_go_control_plane_sends_changes_a_stream_a_kind_follows_each_snapshot() {
    drive("delta", false);
}

#[test]
fn secrets_when_go_control_plane_sends_them_are_taken_in_both_forms() {
    drive("ads", true);
    drive("delta", true);
}
