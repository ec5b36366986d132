//! The process `leno-proxy serve` for tests, and plain clients and servers around it.

#![allow(dead_code, missing_docs, reason = "each test binary uses a part of it")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything is waited for; a busy machine is slow.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A server that answers every request with its own port, one connection a thread.
pub fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut seen = Vec::new();
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    seen.extend_from_slice(&bytes[..count]);
                    if seen.ends_with(b"\r\n\r\n") {
                        // Asked through a TCP listener, the client's wish comes as it is.
                        let last = String::from_utf8_lossy(&seen).contains("connection: close");
                        seen.clear();
                        let body = address.port().to_string();
                        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                        if stream.write_all(head.as_bytes()).is_err() || last {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

/// An address on which nobody listened a moment ago, and which no other test of this program gets.
pub fn free() -> SocketAddr {
    ([127, 0, 0, 1], free_row(1)).into()
}

/// The first of so many ports in a row on which nobody listened a moment ago. They are below those that the system gives to clients,
/// of which one could have become somebody's meanwhile.
pub fn free_row(count: u16) -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id() % 10_000;
    for _ in 0..1000 {
        let at = (begin + NEXT.fetch_add(count.into(), Ordering::Relaxed)) % 10_000;
        let first = 20_000 + u16::try_from(at).unwrap();
        let row: Vec<_> = (first..first + count).map(|port| TcpListener::bind(("127.0.0.1", port))).collect();
        if row.iter().all(Result::is_ok) {
            return first;
        }
    }
    panic!("there are no {count} free ports in a row");
}

pub fn socket_address(address: SocketAddr) -> String {
    format!("{{socket_address: {{address: {}, port_value: {}}}}}", address.ip(), address.port())
}

pub struct Proxy {
    pub child: Child,
    pub folder: tempfile::TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub fn command(folder: &tempfile::TempDir, text: &str) -> Command {
    let config = folder.path().join("bootstrap.yaml");
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_leno-proxy"));
    command.args(["serve", "--concurrency", "2", "--config"]).arg(config);
    command.arg("--admin-address-path").arg(folder.path().join("admin"));
    command
}

impl Proxy {
    pub fn start(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = command(&folder, text).spawn().unwrap();
        Self { child, folder }
    }

    pub fn admin(&self, path: &str) -> String {
        self.ask("GET", path)
    }

    /// Asks the admin server for a change.
    pub fn change(&self, path: &str) -> String {
        self.ask("POST", path)
    }

    fn ask(&self, method: &str, path: &str) -> String {
        let address = wait("the admin server's address", || {
            std::fs::read_to_string(self.folder.path().join("admin")).ok()?.parse::<SocketAddr>().ok()
        });
        ask(address, method, path).expect("an answer of the admin server")
    }

    pub fn signal(&self) {
        self.send(nix::sys::signal::Signal::SIGTERM);
    }

    pub fn send(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

pub fn run(text: &str, more: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    command(&folder, text).args(more).stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap()
}

pub fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "waited for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The whole answer, when there is one.
pub fn get(address: SocketAddr, path: &str) -> Option<String> {
    ask(address, "GET", path)
}

fn ask(address: SocketAddr, method: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

/// One answer on a connection that stays open.
pub fn again(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    let mut bytes = vec![0; 4096];
    let count = stream.read(&mut bytes).unwrap();
    String::from_utf8(bytes[..count].to_vec()).unwrap()
}
