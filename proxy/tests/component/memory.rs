//! Memory that runs short: the process sheds work and lives, and serves again when there is memory.

use crate::process::{Proxy, again, free, socket_address, upstream, wait};
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// What the process may have, in MiB.
const MOST: u64 = 128;
/// What each bad client makes it keep, in bytes.
const EACH: usize = 1 << 20;

fn bootstrap(web: SocketAddr, upstream: SocketAddr) -> String {
    format!(
        r#"
admin: {{address: {admin}}}
overload_manager:
  refresh_interval: 0.02s
  resource_monitors:
  - name: envoy.resource_monitors.fixed_heap
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig
      max_heap_size_bytes: {most}
  actions:
  - name: envoy.overload_actions.shrink_heap
    triggers: [{{name: envoy.resource_monitors.fixed_heap, threshold: {{value: 0.5}}}}]
  - name: envoy.overload_actions.stop_accepting_requests
    triggers: [{{name: envoy.resource_monitors.fixed_heap, threshold: {{value: 0.7}}}}]
  - name: envoy.overload_actions.reject_incoming_connections
    triggers: [{{name: envoy.resource_monitors.fixed_heap, threshold: {{value: 0.9}}}}]
static_resources:
  clusters:
  - name: a
    load_assignment: {{cluster_name: a, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {upstream}}}}}]}}]}}
  listeners:
  - address: {web}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          route_config:
            virtual_hosts: [{{name: all, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: a}}}}]}}]
          http_filters:
          - name: buffer
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer
              max_request_bytes: {each}
          - name: router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"#,
        admin = socket_address(([127, 0, 0, 1], 0).into()),
        web = socket_address(web),
        upstream = socket_address(upstream),
        most = MOST << 20,
        each = EACH,
    )
}

/// Memory of a process that no other shares, in MiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

/// A request whose last byte never comes: everything before it is kept.
fn bad_client(web: SocketAddr) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(web).ok()?;
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    write!(stream, "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: {EACH}\r\n\r\n").ok()?;
    stream.write_all(&vec![b'x'; EACH - 1]).ok()?;
    Some(stream)
}

#[test]
fn proxy_when_clients_use_its_memory_up_refuses_requests_and_lives_and_serves_again() {
    let web = free();
    let mut proxy = Proxy::start(&bootstrap(web, upstream()));
    let mut good = wait("the listener", || TcpStream::connect(web).ok());
    assert!(again(&mut good).starts_with("HTTP/1.1 200"));
    let mut held = Vec::new();
    // Far more than there is memory.
    for _ in 0..3 * MOST {
        held.extend(bad_client(web));
    }
    let answer = wait("a refusal", || Some(again(&mut good)).filter(|answer| answer.starts_with("HTTP/1.1 503")));
    assert!(answer.ends_with("envoy overloaded"), "{answer}");
    let used = resident(proxy.child.id());
    // What was let in before may still grow, and what was freed goes back little by little.
    assert!(used < MOST * 3 / 2, "{used} MiB are used of {MOST}");
    let page = proxy.admin("/stats?filter=overload");
    assert!(page.contains("overload.envoy.overload_actions.stop_accepting_requests.active: 1"), "{page}");
    drop(held);
    wait("memory again", || again(&mut good).starts_with("HTTP/1.1 200").then_some(()));
    assert!(proxy.child.try_wait().unwrap().is_none(), "it lives");
}
