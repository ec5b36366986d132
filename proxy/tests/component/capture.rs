//! Capture rules against the real kernel: connections in network namespaces of the test's own.
//!
//! Needs root (network namespaces, and sockets of another user) and the `ip` program. Without root it fails and says so:
//! a test that quietly proves nothing is worse. `LENO_SKIP_ROOT_TESTS=1` leaves it out knowingly.

use leno_proxy::capture::{self, Options, Probe};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

const APP_UID: u32 = 4711;
const PROXY_UID: u32 = 1337;

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("the `ip` program (package iproute2)");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A "pod" and a "node" joined by a cable; removed when dropped.
struct Net {
    pod: String,
    node: String,
}

impl Net {
    fn new(tag: &str) -> Self {
        let id = std::process::id();
        let net = Self { pod: format!("leno-cap-{tag}-{id}-p"), node: format!("leno-cap-{tag}-{id}-n") };
        for name in [&net.pod, &net.node] {
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
        }
        let (pod, node) = (&net.pod, &net.node);
        ip(&format!("-n {pod} link add eth0 type veth peer name eth0 netns {node}"));
        for (name, last) in [(pod, 2), (node, 1)] {
            ip(&format!("-n {name} addr add 198.18.77.{last}/24 dev eth0"));
            ip(&format!("-n {name} -6 addr add fd00:77::{last}/64 dev eth0 nodad"));
            ip(&format!("-n {name} link set eth0 up"));
        }
        ip(&format!("-n {pod} route add default via 198.18.77.1"));
        ip(&format!("-n {pod} -6 route add default via fd00:77::1"));
        // A second address of the node, which is no probe source.
        ip(&format!("-n {node} addr add 198.18.78.1/24 dev eth0"));
        net
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in [&self.pod, &self.node] {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// Runs the closure on a thread of its own inside the namespace, its files and sockets owned by `uid`.
fn within<T: Send + 'static>(name: &str, uid: u32, run: impl FnOnce() -> T + Send + 'static) -> T {
    let file = File::open(format!("/run/netns/{name}")).unwrap();
    thread::spawn(move || {
        nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        nix::unistd::setfsuid(uid.into());
        run()
    })
    .join()
    .unwrap()
}

/// Listens in the pod on the port, both families, and answers every connection with its own name.
fn serve(name: &str, address: &str, answer: &'static str) {
    let address: SocketAddr = address.parse().unwrap();
    let listener = within(name, 0, move || TcpListener::bind(address).unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = write!(stream, "{answer} from {peer}");
        }
    });
}

/// Connects and reads what the other side says; `refused` when it does not listen.
fn dial(name: &str, uid: u32, source: Option<&str>, target: &str) -> String {
    let target: SocketAddr = target.parse().unwrap();
    let source: Option<IpAddr> = source.map(|source| source.parse().unwrap());
    within(name, uid, move || {
        let socket = socket2::Socket::new(socket2::Domain::for_address(target), socket2::Type::STREAM, None).unwrap();
        if let Some(source) = source {
            socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
        }
        if socket.connect_timeout(&target.into(), Duration::from_secs(5)).is_err() {
            return "refused".to_owned();
        }
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    })
}

fn options() -> Options {
    Options {
        probes: BTreeSet::from([Probe { port: 15100, app_port: 8080 }]),
        probe_sources: BTreeSet::from(["198.18.77.1".parse().unwrap(), "fd00:77::1".parse().unwrap()]),
        exclude_inbound_ports: BTreeSet::from([2222]),
        exclude_outbound_ports: BTreeSet::from([5353]),
        exclude_outbound_cidrs: BTreeSet::from(["198.18.78.0/24".parse().unwrap()]),
        ..Options::default()
    }
}

fn prepared(tag: &str) -> Option<Net> {
    if std::env::var_os("LENO_SKIP_ROOT_TESTS").is_some() {
        return None;
    }
    assert!(nix::unistd::geteuid().is_root(), "this test needs root; LENO_SKIP_ROOT_TESTS=1 leaves it out");
    let net = Net::new(tag);
    for (port, answer) in
        [("15001", "outbound"), ("15006", "inbound"), ("15021", "health"), ("8080", "app"), ("2222", "excluded")]
    {
        serve(&net.pod, &format!("[::]:{port}"), answer);
    }
    for (port, answer) in [("80", "peer"), ("5353", "dns")] {
        serve(&net.node, &format!("[::]:{port}"), answer);
    }
    Some(net)
}

#[test]
fn capture_when_installed_leads_connections_where_they_belong() {
    let Some(net) = prepared("a") else { return };
    assert_eq!(dial(&net.node, 0, None, "198.18.77.2:8080"), "app from 198.18.77.1");
    within(&net.pod, 0, || capture::install(&options()).unwrap());
    // Twice: the second replaces the first.
    within(&net.pod, 0, || capture::install(&options()).unwrap());

    // From outside.
    assert_eq!(dial(&net.node, 0, None, "198.18.77.2:8080"), "inbound from 198.18.77.1");
    assert_eq!(dial(&net.node, 0, None, "[fd00:77::2]:8080"), "inbound from fd00:77::1");
    assert_eq!(dial(&net.node, 0, None, "198.18.77.2:15021"), "health from 198.18.77.1");
    assert_eq!(dial(&net.node, 0, None, "198.18.77.2:2222"), "excluded from 198.18.77.1");
    assert_eq!(dial(&net.node, 0, None, "198.18.77.2:15100"), "app from 198.18.77.1");
    assert_eq!(dial(&net.node, 0, None, "[fd00:77::2]:15100"), "app from fd00:77::1");
    assert_eq!(dial(&net.node, 0, Some("198.18.78.1"), "198.18.77.2:15100"), "inbound from 198.18.78.1");

    // From the app.
    assert_eq!(dial(&net.pod, APP_UID, None, "198.18.77.1:80"), "outbound from 198.18.77.2");
    assert_eq!(dial(&net.pod, APP_UID, None, "[fd00:77::1]:80"), "outbound from fd00:77::2");
    assert_eq!(dial(&net.pod, 0, None, "198.19.0.1:1"), "outbound from 198.18.77.2");
    assert_eq!(dial(&net.pod, APP_UID, None, "198.18.77.1:5353"), "dns from 198.18.77.2");
    assert_eq!(dial(&net.pod, APP_UID, None, "198.18.78.1:80"), "peer from 198.18.77.2");
    assert_eq!(dial(&net.pod, APP_UID, None, "127.0.0.1:8080"), "app from 127.0.0.1");
    assert_eq!(dial(&net.pod, APP_UID, None, "[::1]:8080"), "app from ::1");
    assert_eq!(dial(&net.pod, APP_UID, None, "198.18.77.2:8080"), "app from 198.18.77.2");

    // From the proxy.
    assert_eq!(dial(&net.pod, PROXY_UID, None, "198.18.77.1:80"), "peer from 198.18.77.2");
    assert_eq!(dial(&net.pod, PROXY_UID, None, "198.18.77.2:8080"), "inbound from 198.18.77.2");
    assert_eq!(dial(&net.pod, PROXY_UID, None, "[fd00:77::2]:8080"), "inbound from fd00:77::2");
    assert_eq!(dial(&net.pod, PROXY_UID, Some("127.0.0.6"), "198.18.77.2:8080"), "app from 127.0.0.6");
    assert_eq!(dial(&net.pod, PROXY_UID, Some("::6"), "[fd00:77::2]:8080"), "app from ::6");
    assert_eq!(dial(&net.pod, PROXY_UID, None, "127.0.0.1:8080"), "app from 127.0.0.1");

    within(&net.pod, 0, || capture::clean().unwrap());
    within(&net.pod, 0, || capture::clean().unwrap());
    assert_eq!(dial(&net.node, 0, None, "198.18.77.2:8080"), "app from 198.18.77.1");
    assert_eq!(dial(&net.pod, APP_UID, None, "198.18.77.1:80"), "peer from 198.18.77.2");
}

#[test]
fn capture_when_only_some_is_included_leaves_the_rest_alone() {
    let Some(net) = prepared("b") else { return };
    let options = Options {
        include_inbound_ports: Some(BTreeSet::from([8080])),
        include_outbound_cidrs: Some(BTreeSet::from(["198.18.77.0/24".parse().unwrap()])),
        ..Options::default()
    };
    within(&net.pod, 0, move || capture::install(&options).unwrap());
    assert_eq!(dial(&net.node, 0, None, "198.18.77.2:8080"), "inbound from 198.18.77.1");
    assert_eq!(dial(&net.node, 0, None, "198.18.77.2:2222"), "excluded from 198.18.77.1");
    assert_eq!(dial(&net.pod, APP_UID, None, "198.18.77.1:80"), "outbound from 198.18.77.2");
    assert_eq!(dial(&net.pod, APP_UID, None, "198.18.78.1:80"), "peer from 198.18.77.2");
    assert_eq!(dial(&net.pod, APP_UID, None, "[fd00:77::1]:80"), "peer from fd00:77::2");
}

#[test]
fn capture_when_a_plan_is_refused_leaves_the_rules_that_were_there() {
    let Some(net) = prepared("c") else { return };
    within(&net.pod, 0, || capture::install(&Options::default()).unwrap());
    let many = Options { exclude_outbound_ports: (1..=2000).collect(), ..Options::default() };
    within(&net.pod, 0, move || capture::install(&many).unwrap_err());
    assert_eq!(dial(&net.node, 0, None, "198.18.77.2:8080"), "inbound from 198.18.77.1");
    let largest = Options { exclude_outbound_ports: (1..=900).collect(), ..Options::default() };
    within(&net.pod, 0, move || capture::install(&largest).unwrap());
    assert_eq!(dial(&net.node, 0, None, "198.18.77.2:8080"), "inbound from 198.18.77.1");
}
