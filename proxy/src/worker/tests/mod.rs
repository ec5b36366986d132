//! The whole way on loopback: real sockets, a worker's thread, back ends in the test's own threads.

mod compression;
mod configured;
mod entries;
mod filters;
mod framing;
mod http;
mod lifecycle;
mod listeners;
mod manager;
mod redirected;
mod routed;
mod routing;
mod stalled;
mod statistics;
mod tcp;
mod tls;
mod traces;
mod traces_b3;
mod tracked;
mod tunnels;
mod upstreams;
mod visits;

use super::*;
use crate::{
    config::*,
    telemetry::{LogFormat, ResponseFlags, Telemetry},
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// Nothing on loopback takes so long.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

/// A back end: each connection is served by the function in a thread of its own.
pub(super) struct Backend {
    pub(super) address: SocketAddr,
    pub(super) connections: Arc<AtomicUsize>,
}

impl Backend {
    pub(super) fn start(serve: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, serve) = (connections.clone(), Arc::new(serve));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                stream.set_read_timeout(Some(LIMIT)).unwrap();
                let number = count.fetch_add(1, Ordering::SeqCst);
                let serve = serve.clone();
                thread::spawn(move || serve(stream, number));
            }
        });
        Self { address, connections }
    }

    /// Answers every request by a function of its text; the connection stays.
    pub(super) fn http(answer: impl Fn(&Message) -> String + Send + Sync + 'static) -> Self {
        Self::start(move |stream, _| {
            let mut side = Side::new(stream);
            while let Some(request) = side.message(true) {
                side.send(answer(&request).as_bytes());
            }
        })
    }

    /// Answers with what it received, as a body.
    pub(super) fn echo() -> Self {
        Self::http(|request| ok(&format!("{}\n{}", request.head, request.body)))
    }
}

pub(super) fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// A message as it came: head without the last empty line, body decoded.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) head: String,
    pub(super) body: String,
}

impl Message {
    pub(super) fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (have, value) = line.split_once(':')?;
            have.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// One side of a connection that reads whole messages.
pub(super) struct Side {
    pub(super) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Side {
    pub(super) fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    pub(super) fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).unwrap())
    }

    pub(super) fn send(&mut self, bytes: &[u8]) {
        // The other side may have gone already; what it said before is what tests look at.
        let _ = self.stream.write_all(bytes);
    }

    fn more(&mut self) -> bool {
        let mut part = [0; 65536];
        match self.stream.read(&mut part) {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.buffer.extend_from_slice(&part[..count]);
                true
            }
        }
    }

    fn take(&mut self, count: usize) -> Option<String> {
        while self.buffer.len() < count {
            if !self.more() {
                return None;
            }
        }
        Some(String::from_utf8_lossy(&self.buffer.drain(..count).collect::<Vec<_>>()).into_owned())
    }

    pub(super) fn until(&mut self, end: &[u8]) -> Option<String> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|part| part == end) {
                return self.take(at + end.len());
            }
            if !self.more() {
                return None;
            }
        }
    }

    pub(super) fn head(&mut self) -> Option<Message> {
        let head = self.until(b"\r\n\r\n")?;
        Some(Message { head: head.trim_end().to_owned(), body: String::new() })
    }

    /// The next whole message; `None` when the connection ended before.
    pub(super) fn message(&mut self, request: bool) -> Option<Message> {
        let mut message = self.head()?;
        if let Some(length) = message.header("content-length") {
            let length = length.parse().unwrap();
            message.body = self.take(length)?;
        } else if message.header("transfer-encoding").is_some() {
            loop {
                let line = self.until(b"\r\n")?;
                let size = usize::from_str_radix(line.trim(), 16).unwrap();
                if size == 0 {
                    message.body.push_str(self.until(b"\r\n")?.trim_end());
                    break;
                }
                message.body.push_str(&self.take(size)?);
                assert_eq!(self.take(2)?, "\r\n");
            }
        } else if !request && !matches!(message.status(), 204 | 304 | 101) {
            message.body = self.rest();
        }
        Some(message)
    }

    /// Everything until the connection ends.
    pub(super) fn rest(&mut self) -> String {
        while self.more() {}
        String::from_utf8_lossy(&std::mem::take(&mut self.buffer)).into_owned()
    }

    pub(super) fn ask(&mut self, request: &str) -> Message {
        self.send(request.as_bytes());
        self.message(false).expect("a response")
    }
}

/// A proxy with one or more workers that listens on loopback.
pub(super) struct Proxy {
    pub(super) workers: Option<Workers>,
    pub(super) address: SocketAddr,
    pub(super) telemetry: Telemetry,
    runtime: tokio::runtime::Runtime,
}

impl Proxy {
    pub(super) fn start(count: usize, network: Network, clusters: Vec<Cluster>) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let (telemetry, shards) = Telemetry::new(count);
        let workers = spawn(Settings {
            workers: count,
            sockets: vec![ListenSocket { address, socket }],
            root: root(address, network, clusters),
            credentials: CredentialStore::new(),
            shards,
        })
        .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { workers: Some(workers), address, telemetry, runtime }
    }

    /// One worker, one cluster with these endpoints, one route.
    pub(super) fn simple(endpoints: &[SocketAddr]) -> Self {
        Self::start(1, http(forward(Forward::default())), vec![cluster(endpoints)])
    }

    pub(super) fn publish(&self, network: Network, clusters: Vec<Cluster>) {
        self.wait(self.workers().publish(root(self.address, network, clusters)));
    }

    pub(super) fn workers(&self) -> &Workers {
        self.workers.as_ref().unwrap()
    }

    pub(super) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { tokio::time::timeout(LIMIT * 2, future).await.expect("in time") })
    }

    pub(super) fn client(&self) -> Side {
        Side::connect(self.address)
    }

    /// Waits until a request with this response flag was counted.
    pub(super) fn told(&self, flags: &str) {
        let wanted = format!("response_flags=\"{flags}\"");
        eventually(&wanted, || self.telemetry.render().contains(&wanted));
    }

    pub(super) fn get(&self, path: &str) -> Message {
        self.client().ask(&get(path))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(workers) = self.workers.take() {
            workers.stop();
        }
    }
}

pub(super) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")
}

pub(super) fn root(address: SocketAddr, network: Network, clusters: Vec<Cluster>) -> Arc<Root> {
    let listener = Listener {
        name: "test".into(),
        addresses: vec![address],
        detect_timeout: Duration::ZERO,
        continue_on_timeout: true,
        chains: FilterChains::new(Vec::new(), Some(FilterChain::new("default", network))).unwrap(),
        ..Listener::default()
    };
    Arc::new(Root {
        listeners: Listeners::new(vec![Arc::new(listener)]),
        clusters: clusters.into_iter().map(|cluster| Some(Arc::new(cluster))).collect(),
        ..Root::default()
    })
}

pub(super) const FIRST: ClusterId = ClusterId(0);

pub(super) fn cluster(endpoints: &[SocketAddr]) -> Cluster {
    Cluster {
        endpoints: endpoints.iter().map(|&address| Arc::new(Endpoint::new(address))).collect(),
        policy: LbPolicy::RoundRobin,
        ..Cluster::new(FIRST, "outbound|80||test", ClusterKind::Eds)
    }
}

pub(super) fn forward(forward: Forward) -> Action {
    let targets = if forward.targets.is_empty() { vec![WeightedCluster::all(FIRST)] } else { forward.targets };
    Action::Forward(Box::new(Forward { targets, ..forward }))
}

pub(super) fn route(matches: RouteMatch, action: Action) -> Arc<Route> {
    Arc::new(Route::new("r", matches, action))
}

pub(super) fn manager(routes: Vec<Arc<Route>>) -> HttpManager {
    let host = VirtualHost { name: "h".into(), domains: vec!["*".into()], routes, ..VirtualHost::default() };
    let routes = RouteTable::new("t", vec![host], HeaderOps::default()).unwrap();
    HttpManager { routes: Arc::new(routes), ..HttpManager::default() }
}

pub(super) fn http(action: Action) -> Network {
    Network::Http(Arc::new(manager(vec![route(RouteMatch::default(), action)])))
}

/// Waits until something is so.
pub(super) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < until, "in vain waited for: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
