//! What the tests of the server share: a server on a real TLS socket, configurations made by hand, and a proxy.

#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use leno_controlplane::acks::{Acknowledgements, StatusService};
use leno_controlplane::ads::server::Ads;
use leno_controlplane::ads::spread::Streams;
use leno_controlplane::ads::{Configs, Configuration, Kind, PodIdentity, Progress, Target};
use leno_controlplane::grpc::{self, Services};
use leno_controlplane::identity::sign::KnownPod;
use leno_controlplane::identity::{Ca, Directory, Serving, Signer, Tokens};
use leno_controlplane::metrics::Metrics;
use leno_controlplane::proxies;
use leno_controlplane::translate::{Resource, Resources};
use leno_core::{ObjectKey, ObjectRef};
use leno_runtime::certs::{Keypair, LeafSpec, spiffe_id};
use leno_runtime::metrics::Registry;
use leno_runtime::tls::{ExpectedPeer, client_config};
use leno_xds::envoy::config::core::v3::{AggregatedConfigSource, ConfigSource, config_source};
use leno_xds::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use leno_xds::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, Rds, http_connection_manager::RouteSpecifier,
};
use leno_xds::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use leno_xds::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use leno_xds::google::rpc::Status as WireStatus;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Status, Streaming};

pub const WAIT: Duration = Duration::from_secs(10);

/// Configurations made by hand.
pub struct Fixed {
    target: watch::Sender<Target>,
    pub book: Arc<Acknowledgements>,
    pub pods: Mutex<BTreeMap<ObjectKey, KnownPod>>,
    last_id: Mutex<u64>,
}

impl Fixed {
    pub fn set(&self, resources: &Resources) {
        let mut id = self.last_id.lock().unwrap();
        *id += 1;
        self.target.send_replace(Target::Ready(Arc::new(Configuration::assemble(*id, resources, None))));
    }

    pub fn set_foreign(&self) {
        self.target.send_replace(Target::Foreign);
    }
}

impl Configs for Fixed {
    fn follow(&self, _: &PodIdentity) -> watch::Receiver<Target> {
        self.target.subscribe()
    }
    fn progress(&self, stream: u64, peer: &PodIdentity, progress: Progress) {
        self.book.progress(stream, peer, progress, tokio::time::Instant::now());
    }
    fn gone(&self, stream: u64) {
        self.book.gone(stream);
    }
}

impl Directory for Fixed {
    async fn pod(&self, pod: &ObjectKey, _: Duration) -> Option<KnownPod> {
        self.pods.lock().unwrap().get(pod).cloned()
    }
}

/// A server on a loopback port.
#[derive(Clone)]
pub struct Server {
    pub address: SocketAddr,
    pub ca: Ca,
    pub configs: Arc<Fixed>,
    pub shutdown: CancellationToken,
    pub streams: Streams,
}

/// One of several servers with the same authority and the same configurations.
#[derive(Clone)]
pub struct Replica {
    pub address: SocketAddr,
    pub streams: Streams,
    pub stop: CancellationToken,
}

/// Another replica of `server`.
pub async fn server_beside(server: &Server) -> Replica {
    serve(server.ca.clone(), server.configs.clone()).await.replica()
}

pub async fn server() -> Server {
    server_of(Ca::in_memory("cluster.local").unwrap().0).await
}

/// A server with this authority.
pub async fn server_of(ca: Ca) -> Server {
    leno_runtime::certs::install_crypto_provider();
    let configs = Arc::new(Fixed {
        target: watch::Sender::new(Target::Unknown),
        book: Arc::new(Acknowledgements::new()),
        pods: Mutex::default(),
        last_id: Mutex::new(0),
    });
    serve(ca, configs).await
}

async fn serve(ca: Ca, configs: Arc<Fixed>) -> Server {
    let (shutdown, book) = (CancellationToken::new(), configs.book.clone());
    let metrics = Metrics::new(&Registry::new());
    let identity = spiffe_id("cluster.local", "leno-system", "leno-control-plane");
    let (serving, renewal) = Serving::new(ca.clone(), identity, vec!["localhost".into()]).unwrap();
    let ads = Ads::new(configs.clone(), metrics.clone(), shutdown.clone());
    let streams = ads.streams();
    let told = Arc::new(proxies::Table::default());
    let reader = Some(("leno-system".to_owned(), "leno-operator".to_owned()));
    let services = Services {
        ads,
        signer: Signer::new(ca.clone(), Tokens::Development, configs.clone(), Duration::from_secs(3600), metrics),
        status: StatusService::new(book, reader.clone(), serving.in_force(), shutdown.clone()),
        reports: proxies::ReportService::new(told.clone(), configs.clone(), shutdown.clone()),
        proxies: proxies::StatusService::new(told, reader, shutdown.clone()),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(grpc::serve(listener, serving.grpc(), services, shutdown.clone()));
    tokio::spawn(serving.renew(renewal, shutdown.clone()));
    Server { address, ca, configs, shutdown, streams }
}

impl Server {
    pub fn replica(&self) -> Replica {
        Replica { address: self.address, streams: self.streams.clone(), stop: self.shutdown.clone() }
    }

    /// A certificate as `Sign` issues it to a pod.
    pub fn pod_certificate(&self, namespace: &str, pod: &str, uid: &str) -> Keypair {
        let spec = LeafSpec {
            identity: spiffe_id("cluster.local", namespace, "default"),
            common_name: pod.into(),
            organization: Some(namespace.into()),
            subject_serial: Some(uid.into()),
            lifetime: Duration::from_secs(600),
            ..LeafSpec::default()
        };
        self.ca.current().authority.issue(&spec, SystemTime::now()).unwrap()
    }

    /// A certificate that was not issued to a pod.
    pub fn account_certificate(&self, namespace: &str, account: &str) -> Keypair {
        let spec = LeafSpec {
            identity: spiffe_id("cluster.local", namespace, account),
            lifetime: Duration::from_secs(600),
            ..LeafSpec::default()
        };
        self.ca.current().authority.issue(&spec, SystemTime::now()).unwrap()
    }

    pub async fn channel(&self, own: Option<Keypair>) -> Channel {
        self.channel_to(self.address, own).await
    }

    pub async fn channel_to(&self, address: SocketAddr, own: Option<Keypair>) -> Channel {
        connect(address, &self.ca.current().roots, own).await.unwrap()
    }

    /// A connection of a client that trusts only these roots.
    pub async fn channel_trusting(
        &self,
        roots: &[CertificateDer<'static>],
        own: Option<Keypair>,
    ) -> Result<Channel, tonic::transport::Error> {
        connect(self.address, roots, own).await
    }

    pub async fn whole_proxy(&self) -> WholeProxy {
        let own = self.pod_certificate("shop", "reviews-1", "u-1");
        WholeProxy::open(self.channel(Some(own)).await).await.unwrap()
    }

    pub async fn proxy(&self) -> Proxy {
        Proxy::open(self.channel(Some(self.pod_certificate("shop", "reviews-1", "u-1"))).await).await.unwrap()
    }
}

async fn connect(
    address: SocketAddr,
    roots: &[CertificateDer<'static>],
    own: Option<Keypair>,
) -> Result<Channel, tonic::transport::Error> {
    let expected = spiffe_id("cluster.local", "leno-system", "leno-control-plane");
    let mut tls = client_config(roots, own, ExpectedPeer::Identity(expected)).unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let tls = TlsConnector::from(Arc::new(tls));
    let connect = tower::service_fn(move |_: Uri| {
        let tls = tls.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            let stream = tls.connect(ServerName::try_from("localhost").unwrap(), stream).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connect).await
}

/// A client of the delta protocol.
pub struct Proxy {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Proxy {
    pub async fn open(channel: Channel) -> Result<Self, Status> {
        let (requests, outgoing) = mpsc::channel(16);
        // The server answers with headers at once; tonic clients wait for them.
        let responses = AggregatedDiscoveryServiceClient::new(channel)
            .delta_aggregated_resources(ReceiverStream::new(outgoing))
            .await?
            .into_inner();
        Ok(Proxy { requests, responses })
    }

    pub async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    pub async fn subscribe(&self, kind: Kind, names: &[&str]) {
        self.send(DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names_subscribe: names.iter().map(|name| (*name).into()).collect(),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    /// As after a reconnect.
    pub async fn resume(&self, kind: Kind, names: &[&str], versions: &BTreeMap<String, String>) {
        self.send(DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names_subscribe: names.iter().map(|name| (*name).into()).collect(),
            initial_resource_versions: versions.clone(),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    pub async fn ack(&self, response: &DeltaDiscoveryResponse) {
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    pub async fn nack(&self, response: &DeltaDiscoveryResponse, message: &str) {
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: Some(WireStatus { code: 13, message: message.into(), ..WireStatus::default() }),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    /// The next response, whatever it is and however long it takes.
    pub async fn message(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        self.responses.message().await
    }

    /// The next response, which must be of this kind.
    pub async fn next(&mut self, kind: Kind) -> DeltaDiscoveryResponse {
        let response = tokio::time::timeout(WAIT, self.responses.message())
            .await
            .unwrap_or_else(|_| panic!("no response while waiting for {kind:?}"))
            .unwrap()
            .expect("the stream ended");
        assert_eq!(response.type_url, kind.type_url(), "{:?} {:?}", names(&response), response.removed_resources);
        response
    }

    pub async fn next_and_ack(&mut self, kind: Kind) -> DeltaDiscoveryResponse {
        let response = self.next(kind).await;
        self.ack(&response).await;
        response
    }

    /// Whether nothing comes: an unknown type is asked for, and its answer must be the next that comes.
    pub async fn expect_nothing(&mut self) {
        let type_url = "type.googleapis.com/leno.test.Marker";
        self.send(DeltaDiscoveryRequest { type_url: type_url.into(), ..DeltaDiscoveryRequest::default() }).await;
        let response = tokio::time::timeout(WAIT, self.responses.message()).await.expect("no answer").unwrap().unwrap();
        assert_eq!(response.type_url, type_url, "{:?} {:?}", names(&response), response.removed_resources);
    }

    /// How the stream ends.
    pub async fn end(&mut self) -> Status {
        loop {
            match tokio::time::timeout(WAIT * 2, self.responses.message()).await.expect("the stream goes on") {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok("ended"),
                Err(status) => return status,
            }
        }
    }
}

/// A client of the state-of-the-world protocol.
pub struct WholeProxy {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
    names: BTreeMap<String, Vec<String>>,
}

impl WholeProxy {
    pub async fn open(channel: Channel) -> Result<Self, Status> {
        let (requests, outgoing) = mpsc::channel(16);
        let responses = AggregatedDiscoveryServiceClient::new(channel)
            .stream_aggregated_resources(ReceiverStream::new(outgoing))
            .await?
            .into_inner();
        Ok(WholeProxy { requests, responses, names: BTreeMap::new() })
    }

    async fn send(&self, type_url: &str, response: Option<&DiscoveryResponse>, error: Option<&str>) {
        let request = DiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names: self.names.get(type_url).cloned().unwrap_or_default(),
            version_info: response.map(|response| response.version_info.clone()).unwrap_or_default(),
            response_nonce: response.map(|response| response.nonce.clone()).unwrap_or_default(),
            error_detail: error.map(|message| WireStatus {
                code: 13,
                message: message.into(),
                ..WireStatus::default()
            }),
            ..DiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// Asks for these from now on; for everything, when there are none and the kind allows it.
    pub async fn ask(&mut self, kind: Kind, names: &[&str]) {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        self.names.insert(kind.type_url().to_owned(), names);
        self.send(kind.type_url(), None, None).await;
    }

    pub async fn ack(&self, response: &DiscoveryResponse) {
        self.send(&response.type_url, Some(response), None).await;
    }

    pub async fn nack(&self, response: &DiscoveryResponse, message: &str) {
        self.send(&response.type_url, Some(response), Some(message)).await;
    }

    /// The contents of the next response, which must be of this kind, sorted.
    pub async fn next(&mut self, kind: Kind) -> (DiscoveryResponse, Vec<String>) {
        let response = tokio::time::timeout(WAIT, self.responses.message())
            .await
            .unwrap_or_else(|_| panic!("no response while waiting for {kind:?}"))
            .unwrap()
            .expect("the stream ended");
        assert_eq!(response.type_url, kind.type_url());
        let content = |any: &prost_types::Any| String::from_utf8_lossy(&any.value).into_owned();
        let mut contents: Vec<String> = response.resources.iter().map(content).collect();
        contents.sort();
        (response, contents)
    }

    pub async fn next_and_ack(&mut self, kind: Kind) -> Vec<String> {
        let (response, contents) = self.next(kind).await;
        self.ack(&response).await;
        contents
    }

    /// As [`Proxy::expect_nothing`].
    pub async fn expect_nothing(&mut self) {
        let type_url = "type.googleapis.com/leno.test.Marker";
        self.send(type_url, None, None).await;
        let response = tokio::time::timeout(WAIT, self.responses.message()).await.expect("no answer").unwrap().unwrap();
        assert_eq!(response.type_url, type_url);
    }
}

pub fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

pub fn versions(response: &DeltaDiscoveryResponse) -> BTreeMap<String, String> {
    response.resources.iter().map(|resource| (resource.name.clone(), resource.version.clone())).collect()
}

/// The configuration that a stream works towards or holds.
pub fn configuration_of(proxy: &impl serde::Serialize) -> u64 {
    serde_json::to_value(proxy).unwrap()["configuration"].as_u64().unwrap()
}

pub fn virtual_service() -> ObjectRef {
    ObjectRef::new("networking.istio.io", "VirtualService", "shop", "reviews")
}

/// Resources by hand: names with a content each.
#[derive(Clone, Default)]
pub struct Made(BTreeMap<(Kind, String), (Vec<u8>, BTreeSet<ObjectRef>)>);

impl Made {
    pub fn with(mut self, kind: Kind, name: &str, content: &str) -> Self {
        self.0.insert((kind, name.into()), (content.into(), BTreeSet::new()));
        self
    }

    /// A route that a VirtualService shaped.
    pub fn shaped_route(mut self, name: &str, content: &str) -> Self {
        self.0.insert((Kind::Route, name.into()), (content.into(), BTreeSet::from([virtual_service()])));
        self
    }

    /// A listener that takes its routes by name.
    pub fn listener(mut self, name: &str, stat_prefix: &str, route: &str) -> Self {
        let ads = config_source::ConfigSourceSpecifier::Ads(AggregatedConfigSource::default());
        let manager = HttpConnectionManager {
            stat_prefix: stat_prefix.into(),
            route_specifier: Some(RouteSpecifier::Rds(Rds {
                route_config_name: route.into(),
                config_source: Some(ConfigSource { config_source_specifier: Some(ads), ..ConfigSource::default() }),
            })),
            ..HttpConnectionManager::default()
        };
        let filter =
            Filter { name: "http".into(), config_type: Some(filter::ConfigType::TypedConfig(leno_xds::any(&manager))) };
        let listener = Listener {
            name: name.into(),
            filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
            ..Listener::default()
        };
        self.0.insert((Kind::Listener, name.into()), (leno_xds::any(&listener).value, BTreeSet::new()));
        self
    }

    pub fn without(mut self, kind: Kind, name: &str) -> Self {
        self.0.remove(&(kind, name.to_owned()));
        self
    }

    pub fn resources(&self) -> Resources {
        let mut resources = Resources::default();
        for ((kind, name), (value, origins)) in &self.0 {
            let body = prost_types::Any { type_url: kind.type_url().into(), value: value.clone() };
            let resource = Arc::new(Resource::new(body, origins.clone()));
            resources.by_type.entry(kind.type_url()).or_default().insert(name.clone(), resource);
        }
        resources
    }
}
