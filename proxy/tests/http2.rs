//! Workers between real clients and servers: every pair of HTTP versions, gRPC, and two sidecars with mutual TLS between
//! them, with what their metrics and access logs say about it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use leno_api::identity::v1::workload_certificates_client::WorkloadCertificatesClient;
use leno_api::identity::v1::workload_certificates_server::{WorkloadCertificates, WorkloadCertificatesServer};
use leno_api::identity::v1::{SignRequest, SignResponse};
use leno_proxy::config::{
    Action, ChainMatch, ClientTls, Cluster, ClusterId, ClusterKind, Direction, Endpoint, FilterChain, Forward,
    HeaderOp, HeaderOps, HttpManager, Inspect, Listener, Listeners, Network, Root, Route, RouteMatch, RouteTable,
    ServerTls, UpstreamProtocol, VirtualHost, WeightedCluster,
};
use leno_proxy::telemetry::{LogFormat, ServiceLabels, Telemetry, WorkloadLabels};
use leno_proxy::tls::{CredentialStore, Credentials};
use leno_proxy::worker::{self, ListenSocket, Workers};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType};
use tokio::net::{TcpListener, TcpStream};

const LIMIT: Duration = Duration::from_secs(20);
const FRONT: &str = "spiffe://cluster.local/ns/shop/sa/front";
const REVIEWS: &str = "spiffe://cluster.local/ns/shop/sa/reviews";

async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| panic!("{what}: not done in {LIMIT:?}"))
}

// ---------------------------------------------------------------------------------------------------- the proxy

/// A proxy with one worker and one cluster.
struct Proxy {
    address: SocketAddr,
    telemetry: Telemetry,
    log: Sink,
    workers: Workers,
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Plan {
    direction: Direction,
    upstream: SocketAddr,
    protocol: UpstreamProtocol,
    client_tls: Option<Arc<ClientTls>>,
    server_tls: bool,
    credentials: CredentialStore,
    own: Arc<WorkloadLabels>,
    headers: HeaderOps,
    endpoints: bool,
}

impl Plan {
    fn new(upstream: SocketAddr, protocol: UpstreamProtocol) -> Self {
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
        }
    }
}

fn start(plan: Plan) -> Proxy {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let id = ClusterId(0);
    let endpoint = Endpoint {
        tls: plan.client_tls,
        workload: WorkloadLabels::new("reviews-v2", "shop", "reviews", "v2", "east", REVIEWS),
        ..Endpoint::new(plan.upstream)
    };
    let cluster = Cluster {
        protocol: plan.protocol,
        endpoints: if plan.endpoints { vec![Arc::new(endpoint)] } else { Vec::new() },
        service: ServiceLabels::new("reviews.shop.svc.cluster.local", "reviews", "shop"),
        connect_timeout: Duration::from_secs(5),
        ..Cluster::new(id, "outbound|9080||reviews.shop.svc.cluster.local", ClusterKind::Eds)
    };
    let route = Route {
        name: "default".into(),
        matches: RouteMatch::default(),
        action: Action::Forward(Box::new(Forward { targets: vec![WeightedCluster::all(id)], ..Forward::default() })),
        headers: plan.headers,
        origin: None,
    };
    let host = VirtualHost {
        name: "reviews".into(),
        domains: vec!["reviews".into()],
        routes: vec![Arc::new(route)],
        ..VirtualHost::default()
    };
    let manager = HttpManager {
        direction: plan.direction,
        routes: Arc::new(RouteTable::new("t", vec![host], HeaderOps::default()).unwrap()),
        access_log: Some(Arc::new(LogFormat::istio())),
        ..HttpManager::default()
    };
    let chain = FilterChain {
        name: "http".into(),
        matches: ChainMatch::default(),
        tls: plan.server_tls.then(|| Arc::new(ServerTls { require_client_certificate: true, alpn: Vec::new() })),
        network: Network::Http(Arc::new(manager)),
    };
    let listener = Listener {
        name: "l".into(),
        direction: plan.direction,
        addresses: vec![address],
        bind: true,
        use_original_dst: false,
        inspect: Inspect { tls: plan.server_tls, ..Inspect::default() },
        detect_timeout: Duration::from_millis(500),
        continue_on_timeout: true,
        chains: Vec::new(),
        default_chain: Some(chain),
    };
    let root = Root {
        version: 1,
        listeners: Listeners::new(vec![Arc::new(listener)]),
        clusters: vec![Some(Arc::new(cluster))],
        own: plan.own,
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
    fn metric(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let text = self.telemetry.render();
        let line = text.lines().find(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')) && labels.iter().all(|l| line.contains(l))
        })?;
        line.rsplit(' ').next()?.parse().ok()
    }

    async fn until_metric(&self, name: &str, labels: &[&str], wanted: f64) {
        let found = tokio::time::timeout(LIMIT, async {
            while self.metric(name, labels) != Some(wanted) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        if found.await.is_err() {
            panic!("no {name} with {labels:?} = {wanted} in\n{}", self.telemetry.render());
        }
    }

    async fn until_log(&self, part: &str) -> String {
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

// ------------------------------------------------------------------------------------------ servers and clients

/// A server of either HTTP version that sends the body back with a trailer, and tells what it saw in headers.
async fn echo_server() -> SocketAddr {
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

type Echo = http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>;

async fn echo(request: Request<Incoming>) -> Result<Response<Echo>, hyper::Error> {
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

enum Client {
    Http1(hyper::client::conn::http1::SendRequest<Echo>),
    Http2(hyper::client::conn::http2::SendRequest<Echo>),
}

impl Client {
    async fn connect(address: SocketAddr, version: Version) -> Self {
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

    async fn send(&mut self, mut request: Request<Echo>) -> Response<Incoming> {
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

fn get(path: &str) -> Request<Echo> {
    Request::get(format!("http://reviews{path}")).body(Full::new(Bytes::new()).boxed()).unwrap()
}

fn post(path: &str, body: Bytes) -> Request<Echo> {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", body.len().into());
    let chunks: Vec<_> = body.chunks(10_000).map(|c| Ok(Frame::data(Bytes::copy_from_slice(c)))).collect();
    let all = chunks.into_iter().chain([Ok(Frame::trailers(trailers))]);
    let body = http_body_util::StreamBody::new(futures::stream::iter(all));
    let request = Request::post(format!("http://reviews{path}")).header("te", "trailers");
    request.header("trailer", "x-checksum").body(BodyExt::boxed(body)).unwrap()
}

// -------------------------------------------------------------------------------------------------------- tests

#[tokio::test]
async fn request_when_versions_differ_in_any_way_then_body_and_trailers_pass() {
    let server = echo_server().await;
    let body: Bytes = (0..300_000u32).map(|n| (n % 253) as u8).collect::<Vec<_>>().into();
    for (protocol, seen) in [(UpstreamProtocol::Http1, "HTTP/1.1"), (UpstreamProtocol::Http2, "HTTP/2.0")] {
        let proxy = start(Plan::new(server, protocol));
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let mut client = Client::connect(proxy.address, version).await;
            for round in 0..3 {
                let what = format!("{version:?} to {seen}, round {round}");
                let response = client.send(post("/echo?x=1", body.clone())).await;
                assert_eq!(response.status(), 200, "{what}");
                assert_eq!(response.headers()["x-version"], seen, "{what}");
                assert_eq!(response.headers()["x-host"], "reviews", "{what}");
                let collected = in_time(&what, response.into_body().collect()).await.unwrap();
                let trailers = collected.trailers().cloned().unwrap_or_default();
                assert!(collected.to_bytes() == body, "{what}: the body changed");
                assert_eq!(trailers.get("x-end").map(|v| v.as_bytes()), Some(&b"true"[..]), "{what}: {trailers:?}");
                assert_eq!(trailers.get("x-checksum").map(|v| v.as_bytes()), Some(&b"300000"[..]), "{what}");
                let response = client.send(get("/small")).await;
                assert_eq!(in_time(&what, response.into_body().collect()).await.unwrap().to_bytes(), Bytes::new());
            }
        }
        let labels = &["reporter=\"source\"", "response_code=\"200\"", "destination_workload=\"reviews-v2\""];
        proxy.until_metric("istio_requests_total", labels, 12.0).await;
        proxy.until_log("\"POST /echo?x=1 HTTP/2\" 200 - via_upstream").await;
        proxy.until_log("\"POST /echo?x=1 HTTP/1.1\" 200 - via_upstream").await;
        proxy.workers.stop();
    }
}

#[tokio::test]
async fn upstream_protocol_when_it_follows_the_client_then_each_gets_its_own() {
    let proxy = start(Plan::new(echo_server().await, UpstreamProtocol::Follow));
    for (version, seen) in [(Version::HTTP_11, "HTTP/1.1"), (Version::HTTP_2, "HTTP/2.0")] {
        let mut client = Client::connect(proxy.address, version).await;
        assert_eq!(client.send(get("/")).await.headers()["x-version"], seen);
    }
}

#[tokio::test]
async fn http2_when_many_streams_run_at_once_then_they_share_few_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = accepted.clone();
    tokio::spawn(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let service = hyper::service::service_fn(echo);
            let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            builder.http2().max_concurrent_streams(100);
            tokio::spawn(async move { builder.serve_connection(TokioIo::new(io), service).await.map_err(|_| ()) });
        }
    });
    let proxy = start(Plan::new(address, UpstreamProtocol::Http2));
    let Client::Http2(send) = Client::connect(proxy.address, Version::HTTP_2).await else { panic!() };
    let requests = (0..300).map(|n| {
        let mut send = send.clone();
        async move {
            send.ready().await.unwrap();
            let response = send.send_request(post("/", Bytes::from(format!("{n}")))).await.unwrap();
            assert_eq!(response.status(), 200);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, Bytes::from(format!("{n}")));
        }
    });
    in_time("300 streams", futures::future::join_all(requests)).await;
    let connections = accepted.load(std::sync::atomic::Ordering::Relaxed);
    assert!((1..=2).contains(&connections), "{connections} connections for at most 100 streams at once");
}

#[tokio::test]
async fn drain_when_http2_streams_are_open_then_they_end_and_the_connection_goes() {
    let (release, released) = tokio::sync::watch::channel(false);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (io, _) = listener.accept().await.unwrap();
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let mut released = released.clone();
            async move {
                let _ = released.wait_for(|released| *released).await;
                echo(request).await
            }
        });
        let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(io), service)
            .await;
    });
    let proxy = start(Plan::new(address, UpstreamProtocol::Http2));
    let Client::Http2(mut send) = Client::connect(proxy.address, Version::HTTP_2).await else { panic!() };
    let pending = tokio::spawn(send.send_request(post("/slow", Bytes::from_static(b"x"))));
    in_time("the stream to begin", async {
        while proxy.workers.connections() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let mut drained = std::pin::pin!(proxy.workers.drain(std::time::Instant::now() + LIMIT));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut drained).await;
    assert!(early.is_err(), "the drain did not wait for the open stream");
    assert!(!pending.is_finished(), "the open stream was cut");
    release.send(true).unwrap();
    let response = in_time("the answer", pending).await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(in_time("the body", response.into_body().collect()).await.unwrap().to_bytes(), "x");
    let open = in_time("the drain", drained).await;
    assert!(send.ready().await.is_err(), "the connection still takes streams");
    assert_eq!(open, 0, "connections are still open after the drain");
}

// --------------------------------------------------------------------------------------------------------- gRPC

struct Signer;

#[tonic::async_trait]
impl WorkloadCertificates for Signer {
    async fn sign(&self, request: tonic::Request<SignRequest>) -> Result<tonic::Response<SignResponse>, tonic::Status> {
        let csr = request.into_inner().csr;
        if csr.is_empty() {
            return Err(tonic::Status::invalid_argument("the request is empty"));
        }
        Ok(tonic::Response::new(SignResponse { chain: vec![csr.into()], ..SignResponse::default() }))
    }
}

async fn grpc_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(WorkloadCertificatesServer::new(Signer))
            .serve_with_incoming(incoming),
    );
    address
}

async fn grpc_client(proxy: SocketAddr) -> WorkloadCertificatesClient<tonic::transport::Channel> {
    let endpoint = tonic::transport::Endpoint::try_from(format!("http://{proxy}")).unwrap();
    let endpoint = endpoint.origin("http://reviews".parse().unwrap());
    WorkloadCertificatesClient::new(endpoint.connect().await.unwrap())
}

#[tokio::test]
async fn grpc_when_it_passes_the_proxy_then_answers_and_errors_keep_their_status() {
    let proxy = start(Plan::new(grpc_server().await, UpstreamProtocol::Http2));
    let mut client = grpc_client(proxy.address).await;
    let answer = in_time("sign", client.sign(SignRequest { csr: b"abc".to_vec().into() })).await.unwrap();
    assert_eq!(answer.into_inner().chain.len(), 1);
    let refused = in_time("sign", client.sign(SignRequest::default())).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (tonic::Code::InvalidArgument, "the request is empty"));
    for status in ["0", "3"] {
        let status = format!("grpc_response_status=\"{status}\"");
        let labels = &["request_protocol=\"grpc\"", "response_code=\"200\"", &*status];
        proxy.until_metric("istio_requests_total", labels, 1.0).await;
    }
}

#[tokio::test]
async fn grpc_when_the_proxy_answers_itself_then_the_client_sees_a_grpc_status() {
    let proxy = start(Plan { endpoints: false, ..Plan::new(echo_server().await, UpstreamProtocol::Http2) });
    let mut client = grpc_client(proxy.address).await;
    let refused = in_time("sign", client.sign(SignRequest::default())).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (tonic::Code::Unavailable, "no healthy upstream"));
    let labels = &["grpc_response_status=\"14\"", "response_flags=\"UH\""];
    proxy.until_metric("istio_requests_total", labels, 1.0).await;
    let endpoint = tonic::transport::Endpoint::try_from(format!("http://{}", proxy.address)).unwrap();
    let channel = endpoint.origin("http://nobody".parse().unwrap()).connect().await.unwrap();
    let lost = in_time("sign", WorkloadCertificatesClient::new(channel).sign(SignRequest::default())).await;
    assert_eq!(lost.unwrap_err().code(), tonic::Code::Unimplemented);
}

// ------------------------------------------------------------------------------------------------- two sidecars

struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ca(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn store(&self, uri: &str) -> CredentialStore {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        let chain = params.signed_by(&key, &self.0).unwrap().pem();
        let store = CredentialStore::new();
        let pem = self.0.pem();
        store.set(Credentials::from_pem(chain.as_bytes(), key.serialize_pem().as_bytes(), pem.as_bytes()).unwrap());
        store
    }
}

fn sidecars(ca: &Ca, app: SocketAddr, identity: &str, protocol: UpstreamProtocol) -> (Proxy, Proxy) {
    let inbound = start(Plan {
        direction: Direction::Inbound,
        server_tls: true,
        credentials: ca.store(identity),
        own: WorkloadLabels::new("reviews-v2", "shop", "reviews", "v2", "east", identity),
        headers: HeaderOps { request: vec![HeaderOp::Remove("x-leno-peer".into())], ..HeaderOps::default() },
        ..Plan::new(app, protocol)
    });
    let tls = ClientTls {
        expected: vec![REVIEWS.into()],
        sni: "outbound|9080||reviews.shop.svc.cluster.local".into(),
        alpn: vec!["leno".into()],
    };
    let peer = HeaderOp::Set("x-leno-peer".into(), "front-v1;shop;front;v1;east;front".into());
    let outbound = start(Plan {
        client_tls: Some(Arc::new(tls)),
        credentials: ca.store(FRONT),
        headers: HeaderOps { request: vec![peer], ..HeaderOps::default() },
        ..Plan::new(inbound.address, protocol)
    });
    (outbound, inbound)
}

#[tokio::test]
async fn sidecars_when_both_are_of_the_mesh_then_requests_pass_and_both_report_who_called_whom() {
    let (ca, app) = (Ca::new(), echo_server().await);
    for (protocol, seen) in [(UpstreamProtocol::Http1, "HTTP/1.1"), (UpstreamProtocol::Http2, "HTTP/2.0")] {
        let (outbound, inbound) = sidecars(&ca, app, REVIEWS, protocol);
        let mut client = Client::connect(outbound.address, Version::HTTP_11).await;
        let body = Bytes::from(vec![7; 200_000]);
        for _ in 0..3 {
            let response = client.send(post("/", body.clone())).await;
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["x-version"], seen);
            assert_eq!(response.headers()["x-peer"], "false", "the application sees who called");
            let collected = in_time("the body", response.into_body().collect()).await.unwrap();
            assert!(collected.to_bytes() == body);
        }
        let parties = [
            "source_workload=\"front-v1\"",
            "source_principal=\"spiffe://cluster.local/ns/shop/sa/front\"",
            "destination_workload=\"reviews-v2\"",
            "destination_principal=\"spiffe://cluster.local/ns/shop/sa/reviews\"",
            "destination_service=\"reviews.shop.svc.cluster.local\"",
        ];
        for (proxy, reporter, security) in [(&outbound, "source", "unknown"), (&inbound, "destination", "mutual_tls")] {
            let (reporter, security) =
                (format!("reporter=\"{reporter}\""), format!("connection_security_policy=\"{security}\""));
            let mut labels = parties.to_vec();
            labels.extend([&*reporter, &*security]);
            proxy.until_metric("istio_requests_total", &labels, 3.0).await;
        }
    }
}

#[tokio::test]
async fn sidecar_when_an_impostor_answers_then_the_request_fails_and_the_log_says_why() {
    let (ca, app) = (Ca::new(), echo_server().await);
    let (outbound, inbound) = sidecars(&ca, app, "spiffe://cluster.local/ns/evil/sa/impostor", UpstreamProtocol::Http1);
    let mut client = Client::connect(outbound.address, Version::HTTP_11).await;
    let response = client.send(get("/secret")).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let line = outbound.until_log("/secret").await;
    assert!(line.contains(" 503 UF ") && line.contains("ns/evil/sa/impostor"), "{line}");
    assert_eq!(inbound.metric("istio_requests_total", &[]), None, "the impostor got a request");
}
