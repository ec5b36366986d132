//! More connections than a process has file descriptors. The limit is the process's, so the test has a process to itself.

use crate::support::{Plan, echo_server, start};
use leno_proxy::config::UpstreamProtocol;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);
/// Set in the process that runs out of descriptors.
const ALONE: &str = "LENO_TEST_ALONE";

/// Whether a request is answered.
fn ask(stream: &mut TcpStream) -> bool {
    if stream.write_all(b"GET /bytes/2 HTTP/1.1\r\nhost: reviews\r\n\r\n").is_err() {
        return false;
    }
    let (mut all, mut part) = (Vec::new(), [0; 4096]);
    while !all.ends_with(b"\r\n\r\n\x07\x07") {
        match stream.read(&mut part) {
            Ok(count) if count > 0 => all.extend_from_slice(&part[..count]),
            _ => return false,
        }
    }
    all.starts_with(b"HTTP/1.1 200")
}

#[test]
fn clients_when_descriptors_run_out_then_those_who_are_served_go_on_and_new_ones_come_in_later() {
    if std::env::var_os(ALONE).is_some() {
        return tokio::runtime::Runtime::new().unwrap().block_on(run_out());
    }
    let this = "flood::clients_when_descriptors_run_out_then_those_who_are_served_go_on_and_new_ones_come_in_later";
    let mut alone = Command::new(std::env::current_exe().unwrap());
    let output = alone.args([this, "--exact", "--nocapture"]).env(ALONE, "1").output().unwrap();
    let (said, erred) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}{erred}");
}

async fn run_out() {
    let app = echo_server().await;
    let proxy = start(Plan::new(app, UpstreamProtocol::Http1));
    let address = proxy.address;
    let connect = move || {
        let stream = TcpStream::connect_timeout(&address, LIMIT).ok()?;
        stream.set_read_timeout(Some(LIMIT)).ok()?;
        Some(stream)
    };
    tokio::task::spawn_blocking(move || {
        let mut good = connect().unwrap();
        assert!(ask(&mut good));
        // From here on there are not many more; this process is client and proxy at once.
        let used = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, used + 40, hard).unwrap();
        let mut flood = Vec::new();
        while let Some(stream) = connect() {
            flood.push(stream);
        }
        assert!(!flood.is_empty());
        for _ in 0..20 {
            assert!(ask(&mut good), "who is served is served on");
        }
        drop(flood);
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        let until = Instant::now() + LIMIT;
        while !connect().is_some_and(|mut stream| ask(&mut stream)) {
            assert!(Instant::now() < until, "nobody is let in again");
            std::thread::sleep(Duration::from_millis(20));
        }
    })
    .await
    .unwrap();
}
