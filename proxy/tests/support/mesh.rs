//! A control plane for tests: signs certificates, and gives every proxy the same two listeners and two clusters.

#![allow(dead_code, missing_docs, reason = "each test binary uses a part of it")]

use leno_api::identity::v1::workload_certificates_server::{WorkloadCertificates, WorkloadCertificatesServer};
use leno_api::identity::v1::{SignRequest, SignResponse};
use leno_api::proxies::v1::proxy_reports_server::{ProxyReports, ProxyReportsServer};
use leno_api::proxies::v1::{ProxyReport, ReportRequest};
use leno_runtime::certs::{Authority, LeafSpec, certificates_from_pem, spiffe_id};
use leno_runtime::tls::{ClientCertificates, peer_identity, server_config};
use leno_xds::envoy::config::cluster::v3::{Cluster, cluster};
use leno_xds::envoy::config::core::v3::{Address, SocketAddress, TrafficDirection, address, socket_address};
use leno_xds::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};
use leno_xds::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use leno_xds::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action, route_match,
};
use leno_xds::envoy::extensions::filters::http::router::v3::Router;
use leno_xds::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_connection_manager, http_filter,
};
use leno_xds::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use leno_xds::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use leno_xds::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use prost::{Message, Name};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

/// The identity of the pod whose proxies connect.
pub const WORKLOAD: &str = "spiffe://cluster.local/ns/default/sa/reviews";

/// Where the pod's traffic comes in and goes.
#[derive(Debug, Clone, Copy)]
pub struct Traffic {
    /// Port of HTTP.
    pub http: u16,
    /// Port of TCP.
    pub tcp: u16,
    /// The application of both.
    pub app: SocketAddr,
}

/// The control plane, for as long as it is held.
pub struct ControlPlane {
    pub address: SocketAddr,
    pub roots: String,
    /// Every report that came.
    pub reports: Arc<Mutex<Vec<ProxyReport>>>,
    _runtime: tokio::runtime::Runtime,
}

impl ControlPlane {
    pub fn start(traffic: Traffic) -> Self {
        leno_runtime::certs::install_crypto_provider();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let pair = Authority::create("cluster.local", Duration::from_secs(86400), SystemTime::now()).unwrap();
        let authority = || Authority::from_pem(pair.0.as_bytes(), pair.1.as_bytes()).unwrap();
        let spec = LeafSpec {
            identity: spiffe_id("cluster.local", "leno-system", "leno-control-plane"),
            lifetime: Duration::from_secs(3600),
            ..LeafSpec::default()
        };
        let own = authority().issue(&spec, SystemTime::now()).unwrap();
        let roots = certificates_from_pem(pair.0.as_bytes()).unwrap();
        let mut config = server_config(&roots, own, ClientCertificates::Optional).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, incoming) = tokio::sync::mpsc::channel::<Result<TlsStream, std::io::Error>>(8);
        runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                if let Ok(inner) = acceptor.accept(tcp).await {
                    let peer = peer_identity(inner.get_ref().1.peer_certificates()).unwrap();
                    accepted.send(Ok(TlsStream { inner, peer })).await.ok();
                }
            }
        });
        let reports: Arc<Mutex<Vec<ProxyReport>>> = Arc::default();
        let server = Server::builder()
            .add_service(WorkloadCertificatesServer::new(Signer(authority())))
            .add_service(AggregatedDiscoveryServiceServer::new(Ads(traffic)))
            .add_service(ProxyReportsServer::new(Reports(reports.clone())));
        runtime.spawn(server.serve_with_incoming(ReceiverStream::new(incoming)));
        Self { address, roots: pair.0, reports, _runtime: runtime }
    }
}

/// A TLS stream that knows who is at its other end.
pub struct TlsStream {
    inner: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    peer: Option<String>,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer(pub Option<String>);

impl Connected for TlsStream {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        Peer(self.peer.clone())
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

struct Signer(Authority);

#[tonic::async_trait]
impl WorkloadCertificates for Signer {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let known = request.metadata().get("authorization").is_some_and(|token| token == "Bearer secret")
            || request.extensions().get::<Peer>().is_some_and(|peer| peer.0.as_deref() == Some(WORKLOAD));
        if !known {
            return Err(Status::unauthenticated("no valid proof"));
        }
        let spec = LeafSpec {
            identity: WORKLOAD.to_owned(),
            common_name: "reviews-1".to_owned(),
            lifetime: Duration::from_secs(3600),
            ..LeafSpec::default()
        };
        let leaf = self.0.issue_for_request(&request.get_ref().csr, &spec, SystemTime::now()).unwrap();
        Ok(Response::new(SignResponse { chain: vec![leaf.to_vec()], roots: vec![], not_after: 0 }))
    }
}

struct Reports(Arc<Mutex<Vec<ProxyReport>>>);

#[tonic::async_trait]
impl ProxyReports for Reports {
    type ReportStream = BoxStream<ReportRequest>;

    async fn report(&self, request: Request<Streaming<ProxyReport>>) -> Result<Response<Self::ReportStream>, Status> {
        if request.extensions().get::<Peer>().is_none_or(|peer| peer.0.as_deref() != Some(WORKLOAD)) {
            return Err(Status::unauthenticated("no certificate"));
        }
        let (book, mut reports) = (self.0.clone(), request.into_inner());
        let (answers, outgoing) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            answers.send(Ok(ReportRequest { every_seconds: 1 })).await.ok();
            while let Ok(Some(report)) = reports.message().await {
                book.lock().unwrap().push(report);
            }
            drop(answers);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

struct Ads(Traffic);

type BoxStream<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = BoxStream<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = BoxStream<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("state of the world"))
    }

    /// Answers the first request of each kind, and nothing else.
    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (traffic, mut requests) = (self.0, request.into_inner());
        let (responses, receiver) = tokio::sync::mpsc::channel(16);
        tokio::spawn(async move {
            let mut answered = BTreeSet::new();
            while let Ok(Some(request)) = requests.message().await {
                let resources = if request.type_url.ends_with(".Cluster") {
                    vec![resource("web", &cluster("web", traffic.app)), resource("raw", &cluster("raw", traffic.app))]
                } else if request.type_url.ends_with(".Listener") {
                    vec![
                        resource("virtualOutbound", &listener("virtualOutbound", traffic.http, &manager())),
                        resource("virtualInbound", &listener("virtualInbound", traffic.tcp, &tcp())),
                    ]
                } else {
                    continue;
                };
                if answered.insert(request.type_url.clone()) {
                    let nonce = answered.len().to_string();
                    let type_url = request.type_url;
                    let response = DeltaDiscoveryResponse { type_url, resources, nonce, ..Default::default() };
                    responses.send(Ok(response)).await.ok();
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

fn resource<M: Message + Name>(name: &str, message: &M) -> Resource {
    let (name, version) = (name.to_owned(), "1".to_owned());
    Resource { name, version, resource: Some(leno_xds::any(message)), ..Default::default() }
}

fn address(at: SocketAddr) -> Option<Address> {
    Some(Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: at.ip().to_string(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(at.port().into())),
            ..Default::default()
        })),
    })
}

fn cluster(name: &str, app: SocketAddr) -> Cluster {
    let endpoint = Endpoint { address: address(app), ..Default::default() };
    let endpoint =
        LbEndpoint { host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)), ..Default::default() };
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::Static.into())),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            endpoints: vec![LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..Default::default() }],
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn manager() -> HttpConnectionManager {
    let action = RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster("web".to_owned())),
        ..Default::default()
    };
    let path = route_match::PathSpecifier::Prefix("/".to_owned());
    let route = Route {
        r#match: Some(RouteMatch { path_specifier: Some(path), ..Default::default() }),
        action: Some(route::Action::Route(action)),
        ..Default::default()
    };
    let host = VirtualHost {
        name: "all".to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![route],
        ..Default::default()
    };
    let table = RouteConfiguration { name: "all".to_owned(), virtual_hosts: vec![host], ..Default::default() };
    HttpConnectionManager {
        stat_prefix: "web".to_owned(),
        route_specifier: Some(http_connection_manager::RouteSpecifier::RouteConfig(table)),
        http_filters: vec![HttpFilter {
            name: "router".to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(leno_xds::any(&Router::default()))),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn tcp() -> TcpProxy {
    TcpProxy {
        stat_prefix: "raw".to_owned(),
        cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster("raw".to_owned())),
        ..Default::default()
    }
}

fn listener<M: Message + Name>(name: &str, port: u16, config: &M) -> Listener {
    Listener {
        name: name.to_owned(),
        address: address(([0, 0, 0, 0], port).into()),
        traffic_direction: TrafficDirection::Outbound.into(),
        filter_chains: vec![FilterChain {
            filters: vec![Filter {
                name: name.to_owned(),
                config_type: Some(filter::ConfigType::TypedConfig(leno_xds::any(config))),
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}
