//! Two slots as processes under load: the one that should serve does, forward and back, and no request fails; what cannot
//! serve is left alone.

use crate::mesh::{ControlPlane, Traffic};
use crate::process::{LIMIT, upstream, wait};
use hyper_util::rt::{TokioExecutor, TokioIo};
use leno_api::proxies::BOUNDS_MS;
use leno_api::proxies::v1::ProxyReport;
use leno_proxy::control::succession::SERVE_SLOT_ANNOTATION;
use leno_proxy::slots::Folder;
use leno_proxy::slots::failures::Failures;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

/// How long connections may take to end, in seconds.
const DRAIN: u64 = 2;

/// A pod: its volumes, its ports, and the processes of its slots.
struct Pod {
    control_plane: ControlPlane,
    traffic: Traffic,
    folder: tempfile::TempDir,
    ports: [u16; 2],
    slots: [Option<Child>; 2],
    /// Envoy, if the slots run it.
    envoy: Option<String>,
    /// How long connections may take to end, in seconds.
    drain: u64,
}

impl Drop for Pod {
    fn drop(&mut self) {
        (0..2).for_each(|slot| self.kill(slot));
    }
}

impl Pod {
    fn new() -> Self {
        let traffic = Traffic { http: port(), tcp: port(), app: upstream() };
        let (control_plane, folder) = (ControlPlane::start(traffic), tempfile::tempdir().unwrap());
        std::fs::write(folder.path().join("token"), "secret").unwrap();
        std::fs::write(folder.path().join("bad-token"), "forged").unwrap();
        std::fs::write(folder.path().join("roots.pem"), &control_plane.roots).unwrap();
        let ports = [port(), port()];
        Self { control_plane, traffic, folder, ports, slots: [None, None], envoy: None, drain: DRAIN }
    }

    /// Starts the process of a slot; with a bad token it never gets a certificate.
    fn start(&mut self, slot: usize, token: &str) {
        let path = |name: &str| self.folder.path().join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_leno-proxy"));
        command.args(["run", "--workers", "2", "--metrics-port", "0", "--merged-port", "0"]);
        for (flag, value) in [
            ("--slot", slot.to_string()),
            ("--control-plane", self.control_plane.address.to_string()),
            ("--outbound-port", self.traffic.http.to_string()),
            ("--inbound-port", self.traffic.tcp.to_string()),
            ("--admin-port", self.ports[0].to_string()),
            ("--health-port", self.ports[1].to_string()),
            ("--drain-limit", self.drain.to_string()),
        ] {
            command.args([flag, &value]);
        }
        command.arg("--folder").arg(self.folder.path()).arg("--podinfo").arg(self.folder.path());
        command.arg("--token").arg(path(token)).arg("--roots").arg(path("roots.pem"));
        command.env("POD_NAME", "reviews-1").env("POD_NAMESPACE", "default").env("POD_UID", "uid-1");
        if let Some(envoy) = &self.envoy {
            command.args(["--engine", "envoy", "--envoy", envoy]);
        }
        self.slots[slot] = Some(command.spawn().unwrap());
    }

    fn kill(&mut self, slot: usize) {
        if let Some(mut child) = self.slots[slot].take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// Writes the annotation, as the kubelet does.
    fn wants(&self, slot: usize) {
        let fresh = self.folder.path().join("fresh");
        std::fs::write(&fresh, format!("{SERVE_SLOT_ANNOTATION}=\"{slot}\"\n")).unwrap();
        std::fs::rename(fresh, self.folder.path().join("annotations")).unwrap();
    }

    /// What a slot says of itself.
    fn phase(&self, slot: usize) -> Option<String> {
        self.ask(slot, "STATUS")
    }

    /// What a slot answers to a command in its container.
    fn ask(&self, slot: usize, command: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.folder.path().join(format!("slot-{slot}.sock"))).ok()?;
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(format!("{command}\n").as_bytes()).ok()?;
        let mut word = String::new();
        stream.read_to_string(&mut word).ok()?;
        Some(word.trim().to_owned())
    }

    fn wait_for(&self, slot: usize, phase: &str) {
        wait(&format!("slot {slot} to be {phase}"), || self.phase(slot).filter(|word| word == phase));
    }

    /// Waits until `slot` serves and the other one stands by for it.
    fn wait_until_serves(&self, slot: usize) {
        self.wait_for(slot, "serving");
        self.wait_for(1 - slot, "standby");
    }

    fn failures(&self, slot: u8) -> Failures {
        Failures::read(&Folder::new(self.folder.path()), slot, SystemTime::now())
    }

    /// Waits for a report of a slot.
    fn report(&self, slot: u32, what: &str, holds: impl Fn(&ProxyReport) -> bool) -> ProxyReport {
        wait(what, || {
            let reports = self.control_plane.reports.lock().unwrap();
            reports.iter().rev().find(|report| report.slot == slot && holds(report)).cloned()
        })
    }

    fn alive(&mut self, slot: usize) -> bool {
        self.slots[slot].as_mut().unwrap().try_wait().unwrap().is_none()
    }

    fn resident_kib(&self, slot: usize) -> u64 {
        let pid = self.slots[slot].as_ref().unwrap().id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().split(' ').next().unwrap().parse().unwrap()
    }
}

/// A port of which no other call gave one, below those that the kernel gives to others: it must be free again and again.
fn port() -> u16 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let first = u64::from(std::process::id()) * 61;
    let any = (0..4000).find_map(|_| {
        let port = u16::try_from(20_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 9000).unwrap();
        std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok().then_some(port)
    });
    any.expect("a free port")
}

/// Clients that ask all the time.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<Failed>>>,
}

/// A request that failed.
#[derive(Debug)]
struct Failed {
    /// It was the first of its connection.
    first: bool,
    how: String,
}

impl Failed {
    fn new(first: bool, how: impl std::fmt::Debug) -> Self {
        Self { first, how: format!("{how:?}") }
    }
}

impl Load {
    fn start(http: u16) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, http));
        let clients: [fn(SocketAddr, &AtomicBool, &AtomicU64) -> Vec<Failed>; 4] =
            [new_connections, keep_alive, keep_alive, http2];
        let clients = clients.map(|client| {
            let (stop, answered) = (stop.clone(), answered.clone());
            std::thread::spawn(move || client(address, &stop, &answered))
        });
        Self { stop, answered, clients: clients.into() }
    }

    /// Waits until so many more were answered.
    fn answers(&self, more: u64) {
        let wanted = self.answered.load(Ordering::Relaxed) + more;
        wait("answers", || (self.answered.load(Ordering::Relaxed) >= wanted).then_some(()));
    }

    /// Ends it; no request may have failed.
    fn finish(self) {
        self.finish_but_for(|_| false);
    }

    /// Ends it; no request may have failed but for what is excused.
    fn finish_but_for(self, excused: impl Fn(&Failed) -> bool) {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.clients.into_iter().flat_map(|client| client.join().unwrap());
        let failed: Vec<Failed> = failed.filter(|failed| !excused(failed)).collect();
        let answered = self.answered.load(Ordering::Relaxed);
        assert!(failed.is_empty(), "{} failed, {answered} answered; the first: {:?}", failed.len(), failed.first());
        assert!(answered > 100, "{answered} answered");
    }
}

fn good(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 200 ")
}

/// One answer, which is short.
fn ask(stream: &mut TcpStream, connection: &str) -> std::io::Result<String> {
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET / HTTP/1.1\r\nhost: test\r\nconnection: {connection}\r\n\r\n")?;
    let mut bytes = vec![0; 4096];
    let count = stream.read(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..count]).into_owned())
}

/// A connection a request.
fn new_connections(address: SocketAddr, stop: &AtomicBool, answered: &AtomicU64) -> Vec<Failed> {
    let mut failed = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let answer = TcpStream::connect(address).and_then(|mut stream| ask(&mut stream, "close"));
        match answer {
            Ok(answer) if good(&answer) => drop(answered.fetch_add(1, Ordering::Relaxed)),
            other => failed.push(Failed::new(true, other)),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    failed
}

/// A connection for as long as the proxy lets it be.
fn keep_alive(address: SocketAddr, stop: &AtomicBool, answered: &AtomicU64) -> Vec<Failed> {
    let mut failed = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let mut stream = match TcpStream::connect(address) {
            Ok(stream) => stream,
            Err(error) => {
                failed.push(Failed::new(true, error));
                continue;
            }
        };
        let mut first = true;
        while !stop.load(Ordering::Relaxed) {
            let answer = match ask(&mut stream, "keep-alive") {
                Ok(answer) if good(&answer) => answer,
                other => {
                    failed.push(Failed::new(first, other));
                    break;
                }
            };
            first = false;
            answered.fetch_add(1, Ordering::Relaxed);
            if answer.contains("connection: close") {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    failed
}

/// HTTP/2 with several requests at a time, on a connection for as long as the proxy lets it be.
fn http2(address: SocketAddr, stop: &AtomicBool, answered: &AtomicU64) -> Vec<Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut failed = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let stream = match tokio::net::TcpStream::connect(address).await {
                Ok(stream) => stream,
                Err(error) => {
                    failed.push(Failed::new(true, error));
                    continue;
                }
            };
            let mut first = true;
            let hands = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
            let (mut sender, connection) = match hands {
                Ok(hands) => hands,
                Err(error) => {
                    failed.push(Failed::new(true, error));
                    continue;
                }
            };
            let connection = tokio::spawn(connection);
            // It is not ready any more when the proxy has said that it goes away.
            while !stop.load(Ordering::Relaxed) && sender.ready().await.is_ok() {
                let ask =
                    |sender: &mut hyper::client::conn::http2::SendRequest<http_body_util::Empty<bytes::Bytes>>| {
                        let request = hyper::Request::get("http://test/").body(http_body_util::Empty::new()).unwrap();
                        sender.send_request(request)
                    };
                for answer in futures::future::join_all([ask(&mut sender), ask(&mut sender), ask(&mut sender)]).await {
                    match answer {
                        Ok(answer) if answer.status() == 200 => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        // Never sent: the connection was told to end before.
                        Err(error) if error.is_canceled() => {}
                        other => failed.push(Failed::new(first, other)),
                    }
                }
                first = false;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            drop(sender);
            connection.abort();
        }
        failed
    })
}

/// A TCP connection that is used all the time; joined, it tells how long it lasted after `since`.
fn long_connection(port: u16, since: Instant) -> JoinHandle<Duration> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut say = move || {
        let mut bytes = [0; 4096];
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").is_ok() && matches!(stream.read(&mut bytes), Ok(1..))
    };
    assert!(say());
    std::thread::spawn(move || {
        while say() {
            std::thread::sleep(Duration::from_millis(5));
        }
        since.elapsed()
    })
}

#[test]
fn slots_when_another_should_serve_change_places_forward_and_back_and_no_request_fails() {
    let mut pod = Pod::new();
    pod.start(0, "token");
    pod.wait_for(0, "serving");
    pod.start(1, "token");
    pod.wait_until_serves(0);
    let load = Load::start(pod.traffic.http);
    load.answers(50);
    let ready = pod.report(0, "a report", |report| report.ready && requests(report) >= 50);
    assert_eq!(
        (ready.namespace.as_str(), ready.pod.as_str(), ready.pod_uid.as_str()),
        ("default", "reviews-1", "uid-1")
    );
    assert!(ready.serving_since_ms > 0 && ready.resident_bytes > 0 && ready.certificate_not_after > 0, "{ready:?}");
    assert_eq!((ready.roots_sha256.len(), ready.certificate_issuer_sha256.len()), (32, 32));
    let outbound = ready.outbound.unwrap();
    assert_eq!((outbound.failures, outbound.durations.len()), (0, BOUNDS_MS.len() + 1));
    assert_eq!(outbound.durations.iter().sum::<u64>(), outbound.requests);
    for wanted in [1, 0, 1, 0] {
        let asked = Instant::now();
        let long = long_connection(pod.traffic.tcp, asked);
        pod.wants(wanted);
        pod.wait_for(wanted, "serving");
        let served = asked.elapsed();
        pod.wait_until_serves(wanted);
        let lasted = long.join().unwrap();
        assert!(
            lasted + Duration::from_millis(200) > served + Duration::from_secs(DRAIN),
            "{lasted:?} after {served:?}"
        );
        load.answers(50);
        assert!(pod.alive(0) && pod.alive(1), "both processes are the same ones");
        pod.report(u32::try_from(wanted).unwrap(), "a report of the new one", |report| report.ready);
        pod.report(u32::try_from(1 - wanted).unwrap(), "the last one of the old", |report| report.draining);
    }
    load.finish();
    let (active, standby) = (pod.resident_kib(0), pod.resident_kib(1));
    println!("resident: active {active} KiB, standby {standby} KiB");
    assert!(standby < active, "the standby has given back what it held: {standby} KiB and {active} KiB");
}

/// Nothing holds the slot that leaves: it must not be back before the other one has the lock.
#[test]
fn slots_when_they_change_places_without_a_connection_then_both_live_on() {
    let mut pod = Pod::new();
    pod.start(0, "token");
    pod.wait_for(0, "serving");
    pod.start(1, "token");
    pod.wait_until_serves(0);
    for wanted in [1, 0, 1, 0] {
        pod.wants(wanted);
        pod.wait_until_serves(wanted);
        assert!(pod.alive(0) && pod.alive(1), "both processes are the same ones");
    }
}

/// The kubelet waits for that answer before it ends the process.
#[test]
fn slot_when_asked_to_leave_then_answers_as_soon_as_the_other_serves_and_nothing_is_open() {
    let mut pod = Pod::new();
    pod.start(0, "token");
    pod.wait_for(0, "serving");
    pod.start(1, "token");
    pod.wait_until_serves(0);
    let asked = Instant::now();
    assert_eq!(pod.ask(0, "DRAIN").as_deref(), Some("done"));
    assert!(asked.elapsed() < Duration::from_secs(DRAIN), "it took {:?}", asked.elapsed());
    pod.wait_for(1, "serving");
    assert!(pod.alive(0), "it waits for its signal");
    pod.kill(0);
    pod.start(0, "token");
    pod.wait_until_serves(1);
}

/// The kubelet may replace both slots within a moment: the one that serves is asked to leave while the other one is away.
#[test]
fn slot_when_asked_to_leave_while_the_other_is_away_then_serves_until_that_one_is_back() {
    let mut pod = Pod::new();
    pod.start(0, "token");
    pod.wait_for(0, "serving");
    let load = Load::start(pod.traffic.http);
    load.answers(50);
    let mut leave = UnixStream::connect(pod.folder.path().join("slot-0.sock")).unwrap();
    leave.set_read_timeout(Some(LIMIT)).unwrap();
    leave.write_all(b"DRAIN\n").unwrap();
    load.answers(50);
    pod.start(1, "token");
    let mut word = String::new();
    leave.read_to_string(&mut word).unwrap();
    assert_eq!((word.trim(), pod.phase(1).as_deref()), ("done", Some("serving")));
    pod.kill(0);
    load.answers(50);
    load.finish();
}

/// Before long there is no app to answer what comes on a connection that a client has kept.
#[test]
fn slot_when_the_pod_goes_then_serves_on_and_ends_idle_connections_soon() {
    let mut pod = Pod::new();
    pod.start(0, "token");
    pod.wait_for(0, "serving");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, pod.traffic.http));
    let mut idle = TcpStream::connect(address).unwrap();
    assert!(ask(&mut idle, "keep-alive").unwrap().starts_with("HTTP/1.1 200"));
    let asked = Instant::now();
    assert_eq!(pod.ask(0, "DRAIN").as_deref(), Some("done"));
    let answer = ask(&mut TcpStream::connect(address).unwrap(), "keep-alive").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    assert_eq!(idle.read(&mut [0; 64]).unwrap(), 0, "nothing but its end comes");
    // It waits for the other slot first.
    assert!(asked.elapsed() < Duration::from_secs(8), "it took {:?}", asked.elapsed());
    assert!(ask(&mut TcpStream::connect(address).unwrap(), "close").unwrap().starts_with("HTTP/1.1 200"));
}

/// One slot may hear of it before the other, and hand over to it still.
#[test]
fn slots_when_the_pod_goes_while_they_change_places_then_idle_connections_end_soon() {
    let mut pod = Pod::new();
    pod.drain = 60;
    pod.start(0, "token");
    pod.wait_for(0, "serving");
    pod.start(1, "token");
    pod.wait_until_serves(0);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, pod.traffic.http));
    let mut idle = TcpStream::connect(address).unwrap();
    assert!(ask(&mut idle, "keep-alive").unwrap().starts_with("HTTP/1.1 200"));
    // It is answered when that connection has ended.
    let mut first = UnixStream::connect(pod.folder.path().join("slot-0.sock")).unwrap();
    first.write_all(b"DRAIN\n").unwrap();
    pod.wait_for(1, "serving");
    let asked = Instant::now();
    assert_eq!(pod.ask(1, "DRAIN").as_deref(), Some("done"));
    assert_eq!(idle.read(&mut [0; 64]).unwrap(), 0, "nothing but its end comes");
    assert!(asked.elapsed() < Duration::from_secs(5), "it took {:?}", asked.elapsed());
    assert!(ask(&mut TcpStream::connect(address).unwrap(), "close").unwrap().starts_with("HTTP/1.1 200"));
}

/// Requests that a process has counted.
fn requests(report: &ProxyReport) -> u64 {
    report.outbound.as_ref().map_or(0, |counts| counts.requests)
}

#[test]
fn slots_of_envoy_when_another_should_serve_change_places_forward_and_back_and_no_request_fails() {
    let envoy = std::env::var("LENO_ENVOY")
        .expect("LENO_ENVOY names no Envoy; `make unit` sets it, or: LENO_ENVOY=$(leno-cluster envoy) cargo test");
    let mut pod = Pod::new();
    pod.envoy = Some(envoy);
    pod.start(0, "token");
    pod.wait_for(0, "serving");
    pod.start(1, "token");
    pod.wait_until_serves(0);
    let load = Load::start(pod.traffic.http);
    load.answers(50);
    for wanted in [1, 0] {
        pod.wants(wanted);
        pod.wait_until_serves(wanted);
        load.answers(50);
        assert!(pod.alive(0) && pod.alive(1), "both agents are the same processes");
        let report = pod.report(u32::try_from(wanted).unwrap(), "a report", |report| report.ready);
        assert_eq!(report.engine, "envoy");
    }
    // Envoy's sockets are its own: the kernel resets what waits at one that is closed and was not accepted yet.
    load.finish_but_for(|failed| failed.first && failed.how.contains("ConnectionReset"));
}

#[test]
fn slots_when_the_wanted_one_never_gets_ready_then_the_other_serves_on_and_says_why() {
    let mut pod = Pod::new();
    pod.start(0, "token");
    pod.wait_for(0, "serving");
    pod.start(1, "bad-token");
    pod.wait_until_serves(0);
    let load = Load::start(pod.traffic.http);
    pod.wants(1);
    let failures = wait("a failure", || Some(pod.failures(1)).filter(|failures| failures.count > 0));
    assert!(failures.reason.contains("it has no certificate"), "{failures:?}");
    pod.report(0, "the reason in a report", |report| report.hand_over_failure == failures.reason && report.ready);
    pod.wait_until_serves(0);
    assert!(pod.alive(1), "the standby begins anew by itself");
    // A good one is handed the traffic after all, at once when it is wished again.
    pod.kill(1);
    pod.start(1, "token");
    pod.wants(0);
    wait("the new wish to be seen", || (pod.failures(1).count == 0).then_some(()));
    pod.wants(1);
    pod.wait_until_serves(1);
    load.finish();
}

#[test]
fn slots_when_the_wanted_one_dies_while_it_warms_up_or_soon_after_then_no_request_fails() {
    let mut pod = Pod::new();
    pod.start(0, "token");
    pod.wait_for(0, "serving");
    pod.start(1, "bad-token");
    pod.wait_until_serves(0);
    let load = Load::start(pod.traffic.http);
    pod.wants(1);
    pod.wait_for(1, "starting");
    pod.kill(1);
    let failures = wait("a failure", || Some(pod.failures(1)).filter(|failures| failures.count == 1));
    assert!(failures.reason.contains("ended while it took over"), "{failures:?}");
    load.answers(50);

    // It takes over, and dies while the other one still drains.
    let long = long_connection(pod.traffic.tcp, Instant::now());
    pod.start(1, "token");
    pod.wait_for(1, "serving");
    // What is under way in a process that is killed fails, of course.
    load.finish();
    pod.kill(1);
    pod.wait_for(0, "serving");
    let failures = wait("a failure", || Some(pod.failures(1)).filter(|failures| failures.count == 2));
    assert!(failures.reason.contains("soon after"), "{failures:?}");
    let load = Load::start(pod.traffic.http);
    load.answers(50);
    assert!(!long.is_finished(), "what was open stays open");

    // And again, after a longer pause.
    pod.start(1, "token");
    pod.wait_until_serves(1);
    load.finish();
}

#[test]
fn slots_when_the_wanted_one_dies_while_it_serves_then_the_other_takes_over_and_hands_back() {
    let mut pod = Pod::new();
    pod.wants(0);
    pod.start(0, "token");
    pod.wait_for(0, "serving");
    pod.start(1, "token");
    pod.wait_until_serves(0);
    pod.kill(0);
    pod.wait_for(1, "serving");
    assert!(pod.failures(0).reason.contains("ended while it served"));
    let load = Load::start(pod.traffic.http);
    load.answers(50);
    pod.start(0, "token");
    pod.wait_until_serves(0);
    load.finish();
}
