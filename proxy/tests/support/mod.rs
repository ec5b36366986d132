//! What tests of whole workers share: a proxy with one cluster, real clients and servers, a mesh's certificates.

#![allow(dead_code, missing_docs, reason = "each test binary uses a part of it")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use leno_proxy::config::{
    AccessLog, Action, Balancing, ClientTls, Cluster, ClusterId, ClusterKind, Direction, Endpoint, FilterChain,
    FilterChains, Forward, HeaderOps, HttpManager, Inspect, Listener, Listeners, Network, RetryPolicy, Root, Route,
    RouteMatch, RouteTable, ServerTls, UpstreamProtocol, VirtualHost, WeightedCluster,
};
use leno_proxy::telemetry::{LogFormat, ServiceLabels, Telemetry, WorkloadLabels};
use leno_proxy::tls::{CredentialStore, Credentials};
use leno_proxy::worker::{self, ListenSocket, Workers};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};
use tokio::net::{TcpListener, TcpStream};

pub const LIMIT: Duration = Duration::from_secs(20);
pub const FRONT: &str = "spiffe://cluster.local/ns/shop/sa/front";
pub const REVIEWS: &str = "spiffe://cluster.local/ns/shop/sa/reviews";

pub async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| panic!("{what}: not done in {LIMIT:?}"))
}

/// A frame of HTTP/2.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = payload.len();
    let mut frame = vec![(length >> 16) as u8, (length >> 8) as u8, length as u8, kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A header field that is not indexed, with its name.
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let mut field = vec![0, name.len() as u8];
    field.extend_from_slice(name.as_bytes());
    field.push(value.len() as u8);
    field.extend_from_slice(value.as_bytes());
    field
}

/// A proxy with one worker and one cluster.
pub struct Proxy {
    pub address: SocketAddr,
    pub telemetry: Telemetry,
    pub log: Sink,
    pub workers: Workers,
}

#[derive(Clone, Default)]
pub struct Sink(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub struct Plan {
    pub direction: Direction,
    pub upstream: SocketAddr,
    pub protocol: UpstreamProtocol,
    pub client_tls: Option<Arc<ClientTls>>,
    pub server_tls: bool,
    pub credentials: CredentialStore,
    pub own: Arc<WorkloadLabels>,
    pub headers: HeaderOps,
    pub endpoints: bool,
    /// Endpoints beside `upstream`.
    pub others: Vec<SocketAddr>,
    pub retry: Option<Arc<RetryPolicy>>,
    /// Bytes the kernel buffers each way of an accepted connection, when not its own choice.
    pub socket_buffers: Option<usize>,
    /// What the client may ask for; `reviews` alone, when it is not said.
    pub domain: Option<&'static str>,
    /// The rest of the manager's settings.
    pub manager: HttpManager,
}

impl Plan {
    pub fn new(upstream: SocketAddr, protocol: UpstreamProtocol) -> Self {
        Self {
            direction: Direction::Outbound,
            upstream,
            protocol,
            client_tls: None,
            server_tls: false,
            credentials: CredentialStore::new(),
            own: WorkloadLabels::new("front-v1", "shop", "front", "v1", "east", FRONT),
            headers: HeaderOps::default(),
            endpoints: true,
            others: Vec::new(),
            retry: None,
            socket_buffers: None,
            domain: None,
            manager: HttpManager::default(),
        }
    }
}

pub fn start(plan: Plan) -> Proxy {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    if let Some(bytes) = plan.socket_buffers {
        let socket = socket2::SockRef::from(&socket);
        socket.set_send_buffer_size(bytes).unwrap();
        socket.set_recv_buffer_size(bytes).unwrap();
    }
    let address = socket.local_addr().unwrap();
    let id = ClusterId(0);
    let endpoint = Endpoint {
        tls: plan.client_tls,
        workload: WorkloadLabels::new("reviews-v2", "shop", "reviews", "v2", "east", REVIEWS),
        ..Endpoint::new(plan.upstream)
    };
    let other = |address: &SocketAddr| Arc::new(Endpoint { address: *address, ..endpoint.clone() });
    let endpoints = [plan.upstream].iter().chain(&plan.others).map(other).collect();
    let cluster = Cluster {
        protocol: plan.protocol,
        endpoints: if plan.endpoints { endpoints } else { Vec::new() },
        service: ServiceLabels::new("reviews.shop.svc.cluster.local", "reviews", "shop"),
        connect_timeout: Duration::from_secs(5),
        // As the mesh's clusters want it.
        balancing: Arc::new(Balancing { skip_unreachable: true, ..Balancing::default() }),
        ..Cluster::new(id, "outbound|9080||reviews.shop.svc.cluster.local", ClusterKind::Eds)
    };
    let forward = Forward { targets: vec![WeightedCluster::all(id)], retry: plan.retry, ..Forward::default() };
    let action = Action::Forward(Box::new(forward));
    let route = Route { headers: plan.headers, ..Route::new("default", RouteMatch::default(), action) };
    let host = VirtualHost {
        name: "reviews".into(),
        domains: vec![plan.domain.unwrap_or("reviews").into()],
        routes: vec![Arc::new(route)],
        ..VirtualHost::default()
    };
    let manager = HttpManager {
        direction: plan.direction,
        routes: Arc::new(RouteTable::new("t", vec![host], HeaderOps::default()).unwrap()),
        access_logs: vec![AccessLog::stdout(LogFormat::istio())],
        ..plan.manager
    };
    let chain = FilterChain {
        tls: plan.server_tls.then(|| Arc::new(ServerTls::Mesh { require_client_certificate: true, alpn: Vec::new() })),
        ..FilterChain::new("c", Network::Http(Arc::new(manager)))
    };
    let listener = Listener {
        name: "l".into(),
        direction: plan.direction,
        addresses: vec![address],
        inspect: Inspect { tls: plan.server_tls, ..Inspect::default() },
        detect_timeout: Duration::from_millis(500),
        continue_on_timeout: true,
        chains: FilterChains::new(Vec::new(), Some(chain)).unwrap(),
        ..Listener::default()
    };
    let root = Root {
        version: 1,
        listeners: Listeners::new(vec![Arc::new(listener)]),
        clusters: vec![Some(Arc::new(cluster))],
        own: plan.own,
        ..Root::default()
    };
    let (telemetry, shards) = Telemetry::new(1);
    let log = Sink::default();
    let (writer, sink) = (telemetry.clone(), log.clone());
    tokio::spawn(async move { writer.write_logs_to(sink).await });
    let workers = worker::spawn(worker::Settings {
        workers: 1,
        sockets: vec![ListenSocket { address, socket }],
        root: Arc::new(root),
        credentials: plan.credentials,
        shards,
    })
    .unwrap();
    Proxy { address, telemetry, log, workers }
}

impl Proxy {
    /// The first metric of that name whose labels hold all of `labels`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let text = self.telemetry.render();
        let line = text.lines().find(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')) && labels.iter().all(|l| line.contains(l))
        })?;
        line.rsplit(' ').next()?.parse().ok()
    }

    pub async fn until_metric(&self, name: &str, labels: &[&str], wanted: f64) {
        let found = tokio::time::timeout(LIMIT, async {
            while self.metric(name, labels) != Some(wanted) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        if found.await.is_err() {
            panic!("no {name} with {labels:?} = {wanted} in\n{}", self.telemetry.render());
        }
    }

    pub async fn until_log(&self, part: &str) -> String {
        let found = tokio::time::timeout(LIMIT, async {
            loop {
                let log = String::from_utf8(self.log.0.lock().unwrap().clone()).unwrap();
                if let Some(line) = log.lines().find(|line| line.contains(part)) {
                    return line.to_owned();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let log = self.log.clone();
        found
            .await
            .unwrap_or_else(|_| panic!("no line with {part:?} in {}", String::from_utf8_lossy(&log.0.lock().unwrap())))
    }
}

/// A server of either HTTP version that sends the body back with a trailer, and tells what it saw in headers. What asks for
/// `/bytes/N` gets so many bytes.
pub async fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            io.set_nodelay(true).unwrap();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(echo);
                let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                builder.http2().max_concurrent_streams(100);
                let _ = builder.serve_connection(TokioIo::new(io), service).await;
            });
        }
    });
    address
}

pub type Echo = http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>;

pub async fn echo(request: Request<Incoming>) -> Result<Response<Echo>, hyper::Error> {
    if let Some(count) = request.uri().path().strip_prefix("/bytes/") {
        let body = Bytes::from(vec![7; count.parse().unwrap()]);
        return Ok(Response::new(Full::new(body).boxed()));
    }
    let version = format!("{:?}", request.version());
    let peer = request.headers().contains_key("x-leno-peer").to_string();
    let authority = request.uri().authority().map(|a| a.to_string());
    let host = request.headers().get("host").and_then(|host| host.to_str().ok()).map(str::to_owned);
    let host = authority.or(host).unwrap_or_default();
    let collected = request.into_body().collect().await?;
    let sent = collected.trailers().and_then(|t| t.get("x-checksum")).cloned();
    let mut trailers = HeaderMap::new();
    if let Some(sent) = sent {
        trailers.insert("x-checksum", sent);
    }
    trailers.insert("x-end", "true".parse().unwrap());
    let body = http_body_util::StreamBody::new(futures::stream::iter([
        Ok(Frame::data(collected.to_bytes())),
        Ok(Frame::trailers(trailers)),
    ]));
    let response = Response::builder().header("x-version", version).header("x-host", host).header("x-peer", peer);
    Ok(response.header("trailer", "x-checksum, x-end").body(BodyExt::boxed(body)).unwrap())
}

pub enum Client {
    Http1(hyper::client::conn::http1::SendRequest<Echo>),
    Http2(hyper::client::conn::http2::SendRequest<Echo>),
}

impl Client {
    pub async fn connect(address: SocketAddr, version: Version) -> Self {
        let io = TcpStream::connect(address).await.unwrap();
        io.set_nodelay(true).unwrap();
        let io = TokioIo::new(io);
        if version == Version::HTTP_2 {
            let (send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            Client::Http2(send)
        } else {
            let (send, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            Client::Http1(send)
        }
    }

    pub async fn send(&mut self, mut request: Request<Echo>) -> Response<Incoming> {
        match self {
            Client::Http1(send) => {
                let uri = request.uri().clone();
                *request.uri_mut() = uri.path_and_query().unwrap().as_str().parse().unwrap();
                let host = uri.authority().unwrap().as_str().parse().unwrap();
                request.headers_mut().insert("host", host);
                send.ready().await.unwrap();
                in_time("the answer", send.send_request(request)).await.unwrap()
            }
            Client::Http2(send) => {
                send.ready().await.unwrap();
                in_time("the answer", send.send_request(request)).await.unwrap()
            }
        }
    }
}

pub fn get(path: &str) -> Request<Echo> {
    Request::get(format!("http://reviews{path}")).body(Full::new(Bytes::new()).boxed()).unwrap()
}

pub fn post(path: &str, body: Bytes) -> Request<Echo> {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", body.len().into());
    let chunks: Vec<_> = body.chunks(10_000).map(|c| Ok(Frame::data(Bytes::copy_from_slice(c)))).collect();
    let all = chunks.into_iter().chain([Ok(Frame::trailers(trailers))]);
    let body = http_body_util::StreamBody::new(futures::stream::iter(all));
    let request = Request::post(format!("http://reviews{path}")).header("te", "trailers");
    request.header("trailer", "x-checksum").body(BodyExt::boxed(body)).unwrap()
}

/// A mesh's root.
pub struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "mesh root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ca(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn root(&self) -> String {
        self.0.pem()
    }

    /// A certificate for the identity, and its key.
    pub fn leaf(&self, uri: &str) -> (String, String) {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        // Another name than the root's, or the leaf would seem to have signed itself.
        params.distinguished_name.push(DnType::CommonName, "a pod");
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    pub fn store(&self, uri: &str) -> CredentialStore {
        let (chain, key) = self.leaf(uri);
        let store = CredentialStore::new();
        store.set(Credentials::from_pem(chain.as_bytes(), key.as_bytes(), self.root().as_bytes()).unwrap());
        store
    }
}
