//! The discovery client against a control plane of the test's own, over a real gRPC connection.

use leno_proxy::config::{Action, Root};
use leno_proxy::xds::source::{Protocol, SourceId};
use leno_proxy::xds::state::WARMING_LIMIT;
use leno_proxy::xds::{
    Changes, Client, Connect, Connection, Kind, LocalFuture, Publish, Role, SharedState, State, node,
};
use leno_xds::envoy::config::cluster::v3::{
    Cluster,
    cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig},
};
use leno_xds::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ConfigSource, ExtensionConfigSource, SocketAddress, TrafficDirection,
    TypedExtensionConfig, address, config_source, socket_address,
};
use leno_xds::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};
use leno_xds::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use leno_xds::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action, route_match,
};
use leno_xds::envoy::extensions::filters::http::router::v3::Router;
use leno_xds::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_connection_manager, http_filter,
};
use leno_xds::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
    aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
};
use prost::{Message, Name};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint as Remote, Server};
use tonic::{Response, Status, Streaming};

const LIMIT: Duration = Duration::from_secs(20);

/// One stream, as the server sees it.
struct ServerStream {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    nonce: u32,
}

impl ServerStream {
    async fn request(&mut self) -> DeltaDiscoveryRequest {
        let next = tokio::time::timeout(LIMIT, self.requests.message()).await;
        next.expect("a request in time").expect("an open stream").expect("a request")
    }

    /// The next request of that kind; others are passed over.
    async fn request_of(&mut self, kind: Kind) -> DeltaDiscoveryRequest {
        loop {
            let request = self.request().await;
            if request.type_url == kind.type_url() {
                return request;
            }
        }
    }

    /// No request comes for a while in which one would have come.
    async fn nothing(&mut self, why: &str) {
        let next = tokio::time::timeout(Duration::from_millis(150), self.requests.message()).await;
        assert!(next.is_err(), "{why}, and yet it said {next:?}");
    }

    async fn send(&mut self, kind: Kind, resources: Vec<Resource>, removed: &[&str]) -> String {
        self.nonce += 1;
        let response = DeltaDiscoveryResponse {
            type_url: kind.type_url().to_owned(),
            resources,
            removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
            nonce: self.nonce.to_string(),
            ..Default::default()
        };
        self.responses.send(Ok(response)).await.unwrap();
        self.nonce.to_string()
    }
}

/// One stream of state of the world, as the server sees it.
struct WholeStream {
    requests: Streaming<DiscoveryRequest>,
    responses: mpsc::Sender<Result<DiscoveryResponse, Status>>,
    nonce: u32,
    /// Requests of other kinds than the one that was waited for.
    later: VecDeque<DiscoveryRequest>,
}

impl WholeStream {
    /// The next request of that kind; others are kept for later.
    async fn request_of(&mut self, kind: Kind) -> DiscoveryRequest {
        if let Some(index) = self.later.iter().position(|request| request.type_url == kind.type_url()) {
            return self.later.remove(index).unwrap();
        }
        loop {
            let next = tokio::time::timeout(LIMIT, self.requests.message()).await;
            let request = next.expect("a request in time").expect("an open stream").expect("a request");
            if request.type_url == kind.type_url() {
                return request;
            }
            self.later.push_back(request);
        }
    }

    async fn send(&mut self, kind: Kind, version: &str, resources: Vec<prost_types::Any>) -> String {
        self.nonce += 1;
        let response = DiscoveryResponse {
            type_url: kind.type_url().to_owned(),
            version_info: version.to_owned(),
            resources,
            nonce: format!("n{}", self.nonce),
            ..Default::default()
        };
        self.responses.send(Ok(response)).await.unwrap();
        format!("n{}", self.nonce)
    }

    /// Sends, and waits for the acknowledgement.
    async fn accepted(&mut self, kind: Kind, version: &str, resources: Vec<prost_types::Any>) -> DiscoveryRequest {
        let nonce = self.send(kind, version, resources).await;
        loop {
            let answer = self.request_of(kind).await;
            assert_eq!(answer.error_detail, None);
            if answer.response_nonce == nonce && answer.version_info == version {
                return answer;
            }
        }
    }
}

struct Ads(mpsc::Sender<ServerStream>, mpsc::Sender<WholeStream>);

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = BoxStream<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = BoxStream<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: tonic::Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (responses, receiver) = mpsc::channel(16);
        let stream = WholeStream { requests: request.into_inner(), responses, nonce: 0, later: VecDeque::new() };
        self.1.send(stream).await.map_err(|_| Status::unavailable("the test has ended"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn delta_aggregated_resources(
        &self,
        request: tonic::Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, receiver) = mpsc::channel(16);
        let stream = ServerStream { requests: request.into_inner(), responses, nonce: 0 };
        self.0.send(stream).await.map_err(|_| Status::unavailable("the test has ended"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

struct Dial(SocketAddr);

impl Connect for Dial {
    fn connect(&self) -> LocalFuture<Result<Channel, String>> {
        let address = format!("http://{}", self.0);
        Box::pin(async move {
            let remote = Remote::from_shared(address).map_err(|error| error.to_string())?;
            remote.connect().await.map_err(|error| error.to_string())
        })
    }
}

/// Takes roots at once, or when the test lets it.
#[derive(Clone)]
struct Workers {
    roots: Arc<Mutex<Vec<Arc<Root>>>>,
    gate: watch::Receiver<bool>,
}

impl Publish for Workers {
    fn publish(&mut self, root: Arc<Root>) -> LocalFuture<()> {
        self.roots.lock().unwrap().push(root);
        let mut gate = self.gate.clone();
        Box::pin(async move {
            gate.wait_for(|open| *open).await.unwrap();
        })
    }
}

impl Workers {
    fn newest(&self) -> Option<Arc<Root>> {
        self.roots.lock().unwrap().last().cloned()
    }

    async fn wait(&self, what: &str, holds: impl Fn(&Root) -> bool) -> Arc<Root> {
        let looking = async {
            loop {
                if let Some(root) = self.newest()
                    && holds(&root)
                {
                    return root;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, looking).await.unwrap_or_else(|_| panic!("waited for a root in which {what}"))
    }
}

struct Fixture {
    streams: mpsc::Receiver<ServerStream>,
    whole: mpsc::Receiver<WholeStream>,
    workers: Workers,
    gate: watch::Sender<bool>,
    state: SharedState,
    connection: watch::Receiver<Connection>,
    stop: CancellationToken,
}

impl Fixture {
    async fn stream(&mut self) -> ServerStream {
        tokio::time::timeout(LIMIT, self.streams.recv()).await.expect("a stream in time").expect("a stream")
    }

    async fn whole(&mut self) -> WholeStream {
        tokio::time::timeout(LIMIT, self.whole.recv()).await.expect("a stream in time").expect("a stream")
    }
}

/// Runs the test with a client of the mesh that is connected to a server of its own.
fn run<F: Future<Output = ()>>(test: impl FnOnce(Fixture) -> F) {
    run_as(Role::mesh(), test);
}

/// As [`run`], with a client that speaks state of the world to a server that is not the mesh's.
fn run_whole<F: Future<Output = ()>>(test: impl FnOnce(Fixture) -> F) {
    let protocol = Protocol::StateOfTheWorld;
    run_as(Role { protocol, open_limit: None, tells_in_force: false, ..Role::mesh() }, test);
}

fn run_as<F: Future<Output = ()>>(role: Role, test: impl FnOnce(Fixture) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, streams) = mpsc::channel(4);
        let (whole_sender, whole) = mpsc::channel(4);
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(
            Server::builder()
                .add_service(AggregatedDiscoveryServiceServer::new(Ads(sender, whole_sender)))
                .serve_with_incoming(incoming),
        );
        let (gate, receiver) = watch::channel(true);
        let workers = Workers { roots: Arc::default(), gate: receiver };
        let state: SharedState = Arc::new(Mutex::new(State::new("cluster.local")));
        let (client, connection) =
            Client::new(Dial(address), workers.clone(), state.clone(), node("pod-1", "default", "0.0.0"));
        let stop = CancellationToken::new();
        tokio::task::spawn_local(client.with_role(role, Changes::default()).run(stop.clone()));
        test(Fixture { streams, whole, workers, gate, state, connection, stop: stop.clone() }).await;
        stop.cancel();
    });
}

fn resource<M: Message + Name>(name: &str, version: &str, message: &M) -> Resource {
    Resource {
        name: name.to_owned(),
        version: version.to_owned(),
        resource: Some(leno_xds::any(message)),
        ..Default::default()
    }
}

fn ads() -> Option<ConfigSource> {
    let specifier = config_source::ConfigSourceSpecifier::Ads(AggregatedConfigSource {});
    Some(ConfigSource { config_source_specifier: Some(specifier), ..Default::default() })
}

fn address(port: u32) -> Option<Address> {
    Some(Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: "198.18.0.1".to_owned(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(port)),
            ..Default::default()
        })),
    })
}

fn cluster(name: &str) -> Cluster {
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: ads(), service_name: String::new() }),
        ..Default::default()
    }
}

fn endpoints(name: &str, port: u32) -> ClusterLoadAssignment {
    let endpoint = Endpoint { address: address(port), ..Default::default() };
    let endpoint =
        LbEndpoint { host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)), ..Default::default() };
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..Default::default() }],
        ..Default::default()
    }
}

fn routes(name: &str, cluster: &str) -> RouteConfiguration {
    let action = RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    };
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(route_match::PathSpecifier::Prefix("/".to_owned())),
            ..Default::default()
        }),
        action: Some(route::Action::Route(action)),
        ..Default::default()
    };
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: "all".to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![route],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn listener(name: &str, port: u32, table: &str) -> Listener {
    let manager = HttpConnectionManager {
        route_specifier: Some(http_connection_manager::RouteSpecifier::Rds(Rds {
            config_source: ads(),
            route_config_name: table.to_owned(),
        })),
        http_filters: vec![HttpFilter {
            name: "router".to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(leno_xds::any(&Router::default()))),
            ..Default::default()
        }],
        ..Default::default()
    };
    Listener {
        name: name.to_owned(),
        address: address(port),
        traffic_direction: TrafficDirection::Outbound.into(),
        filter_chains: vec![FilterChain {
            filters: vec![Filter {
                name: "http".to_owned(),
                config_type: Some(filter::ConfigType::TypedConfig(leno_xds::any(&manager))),
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// The cluster to which the only route of the first listener leads, and the port of its first endpoint.
fn target(root: &Root) -> Option<(String, u16)> {
    let leno_proxy::config::Network::Http(manager) = &root.listeners.all().first()?.chains.all().first()?.network
    else {
        return None;
    };
    let route = manager.routes.hosts().first()?.routes.first()?;
    let Action::Forward(forward) = &route.action else { return None };
    let cluster = root.cluster(forward.targets.first()?.cluster)?;
    Some((cluster.name.to_string(), cluster.endpoints.first()?.address.port()))
}

/// Sends one of each, in the order in which a control plane does, and waits for the acknowledgements.
async fn configure(stream: &mut ServerStream) {
    stream.send(Kind::Cluster, vec![resource("a", "c1", &cluster("a"))], &[]).await;
    let wanted = stream.request_of(Kind::Endpoints).await;
    assert_eq!(wanted.resource_names_subscribe, ["a"]);
    stream.send(Kind::Endpoints, vec![resource("a", "e1", &endpoints("a", 8001))], &[]).await;
    stream.send(Kind::Listener, vec![resource("l", "l1", &listener("l", 80, "r"))], &[]).await;
    let wanted = stream.request_of(Kind::Routes).await;
    assert_eq!(wanted.resource_names_subscribe, ["r"]);
    let nonce = stream.send(Kind::Routes, vec![resource("r", "r1", &routes("r", "a"))], &[]).await;
    let ack = stream.request_of(Kind::Routes).await;
    assert_eq!((ack.response_nonce, ack.error_detail), (nonce, None));
}

#[test]
fn client_when_all_resources_have_come_publishes_one_root_and_acknowledges() {
    run(|mut fixture| async move {
        let mut stream = fixture.stream().await;
        let first = stream.request().await;
        assert_eq!(first.type_url, Kind::Cluster.type_url());
        assert_eq!(first.node.unwrap().id, "leno~pod-1.default");
        assert!(first.resource_names_subscribe.is_empty(), "clusters are all wanted");
        assert_eq!(stream.request().await.type_url, Kind::Listener.type_url());
        configure(&mut stream).await;
        let root = fixture.workers.wait("the route leads to the endpoint", |root| target(root).is_some()).await;
        assert_eq!(target(&root), Some(("a".to_owned(), 8001)));
        assert_eq!(root.version, 1, "nothing was published before everything had come");
        assert!(fixture.connection.borrow().connected);
    });
}

#[test]
fn client_when_a_resource_is_bad_refuses_it_by_name_and_takes_the_others() {
    run(|mut fixture| async move {
        let mut stream = fixture.stream().await;
        configure(&mut stream).await;
        let mut bad = cluster("a");
        bad.transport_socket_matcher = Some(Default::default());
        let sent = vec![resource("a", "c2", &bad), resource("b", "c1", &cluster("b"))];
        let nonce = stream.send(Kind::Cluster, sent, &[]).await;
        let (mut nack, mut asked) = (None, false);
        while nack.is_none() || !asked {
            let request = stream.request().await;
            match Kind::of(&request.type_url).unwrap() {
                Kind::Cluster if request.response_nonce == nonce => nack = request.error_detail,
                Kind::Endpoints => asked |= request.resource_names_subscribe == ["b"],
                _ => {}
            }
        }
        let message = nack.unwrap().message;
        assert!(message.contains("cluster a:") && message.contains("transport_socket_matcher"), "{message}");
        assert!(!message.contains("cluster b"), "{message}");
        let held = fixture.state.lock().unwrap().versions(Kind::Cluster, SourceId::ADS);
        assert_eq!(held["a"], "c1", "the last good form stays");
        assert_eq!(held["b"], "c1");
        assert_eq!(target(&fixture.workers.newest().unwrap()), Some(("a".to_owned(), 8001)));
    });
}

#[test]
fn listener_when_it_wants_a_socket_that_nobody_has_is_refused_by_its_address() {
    let mut state = State::new("cluster.local").only_at([SocketAddr::from(([198, 18, 0, 1], 15001))]);
    let mut apply = |port| {
        let resources = vec![resource("l", "1", &listener("l", port, "r"))];
        let response = DeltaDiscoveryResponse { resources, ..Default::default() };
        state.apply(Kind::Listener, response, Instant::now(), SystemTime::now()).refused
    };
    assert_eq!(apply(15001), None);
    let refused = apply(15002).expect("a refusal");
    assert!(refused.starts_with("listener l: field `address`") && refused.contains("198.18.0.1:15002"), "{refused}");
}

#[test]
fn client_when_a_field_is_unknown_on_the_wire_refuses_the_resource() {
    run(|mut fixture| async move {
        let mut stream = fixture.stream().await;
        configure(&mut stream).await;
        let mut newer = resource("r", "r2", &routes("r", "a"));
        // Field 1000, a number: what a control plane of a later version might send.
        newer.resource.as_mut().unwrap().value.extend([0xc0, 0x3e, 0x01]);
        stream.send(Kind::Routes, vec![newer], &[]).await;
        let nack = stream.request_of(Kind::Routes).await;
        let message = nack.error_detail.expect("a refusal").message;
        assert!(message.contains("route configuration r: field `#1000`"), "{message}");
    });
}

#[test]
fn client_when_workers_are_slow_acknowledges_only_after_they_took_the_root() {
    run(|mut fixture| async move {
        let mut stream = fixture.stream().await;
        configure(&mut stream).await;
        stream.send(Kind::Cluster, vec![resource("b", "c1", &cluster("b"))], &[]).await;
        stream.request_of(Kind::Endpoints).await;
        stream.send(Kind::Endpoints, vec![resource("b", "e1", &endpoints("b", 8002))], &[]).await;
        stream.request_of(Kind::Endpoints).await;
        fixture.gate.send_replace(false);
        let nonce = stream.send(Kind::Routes, vec![resource("r", "r2", &routes("r", "b"))], &[]).await;
        let moved = |root: &Root| target(root) == Some(("b".to_owned(), 8002));
        fixture.workers.wait("the route has moved", moved).await;
        stream.nothing("no worker has taken the root").await;
        fixture.gate.send_replace(true);
        assert_eq!(stream.request_of(Kind::Routes).await.response_nonce, nonce);
    });
}

#[test]
fn client_when_a_route_names_a_cluster_without_endpoints_waits_for_them() {
    run(|mut fixture| async move {
        let mut stream = fixture.stream().await;
        configure(&mut stream).await;
        stream.send(Kind::Cluster, vec![resource("b", "c1", &cluster("b"))], &[]).await;
        stream.request_of(Kind::Endpoints).await;
        let nonce = stream.send(Kind::Routes, vec![resource("r", "r2", &routes("r", "b"))], &[]).await;
        stream.request_of(Kind::Cluster).await;
        stream.nothing("the cluster has no endpoints").await;
        assert_eq!(target(&fixture.workers.newest().unwrap()), Some(("a".to_owned(), 8001)), "the old route serves");
        stream.send(Kind::Endpoints, vec![resource("b", "e1", &endpoints("b", 8002))], &[]).await;
        assert_eq!(stream.request_of(Kind::Routes).await.response_nonce, nonce);
        assert_eq!(target(&fixture.workers.newest().unwrap()), Some(("b".to_owned(), 8002)));
    });
}

#[test]
fn client_when_the_stream_breaks_tells_the_versions_it_holds_and_serves_on() {
    run(|mut fixture| async move {
        let mut stream = fixture.stream().await;
        configure(&mut stream).await;
        fixture.workers.wait("the route leads to the endpoint", |root| target(root).is_some()).await;
        drop(stream);
        let mut stream = fixture.stream().await;
        for (kind, name, version) in [
            (Kind::Cluster, "a", "c1"),
            (Kind::Endpoints, "a", "e1"),
            (Kind::Listener, "l", "l1"),
            (Kind::Routes, "r", "r1"),
        ] {
            let request = stream.request().await;
            assert_eq!(request.type_url, kind.type_url());
            assert_eq!(request.initial_resource_versions.get(name).map(String::as_str), Some(version));
            let by_name = matches!(kind, Kind::Endpoints | Kind::Routes);
            assert_eq!(request.resource_names_subscribe.contains(&name.to_owned()), by_name);
        }
        stream.nothing("nothing has changed").await;
        assert_eq!(fixture.workers.newest().unwrap().version, 1, "nothing new was published");
        stream.send(Kind::Endpoints, vec![resource("a", "e2", &endpoints("a", 8009))], &[]).await;
        let moved = |root: &Root| target(root) == Some(("a".to_owned(), 8009));
        fixture.workers.wait("the endpoint has moved", moved).await;
    });
}

#[test]
fn client_when_clusters_and_listeners_are_removed_unsubscribes_what_they_used() {
    run(|mut fixture| async move {
        let mut stream = fixture.stream().await;
        configure(&mut stream).await;
        stream.send(Kind::Listener, vec![], &["l"]).await;
        assert_eq!(stream.request_of(Kind::Routes).await.resource_names_unsubscribe, ["r"]);
        stream.send(Kind::Cluster, vec![], &["a"]).await;
        assert_eq!(stream.request_of(Kind::Endpoints).await.resource_names_unsubscribe, ["a"]);
        let empty = |root: &Root| root.listeners.all().is_empty() && root.clusters.iter().all(Option::is_none);
        fixture.workers.wait("nothing is left", empty).await;
        assert!(!fixture.stop.is_cancelled());
    });
}

/// As [`configure`], for state of the world.
async fn configure_whole(stream: &mut WholeStream) {
    stream.accepted(Kind::Cluster, "c1", vec![leno_xds::any(&cluster("a"))]).await;
    assert_eq!(stream.request_of(Kind::Endpoints).await.resource_names, ["a"]);
    stream.accepted(Kind::Endpoints, "e1", vec![leno_xds::any(&endpoints("a", 8001))]).await;
    stream.send(Kind::Listener, "l1", vec![leno_xds::any(&listener("l", 80, "r"))]).await;
    assert_eq!(stream.request_of(Kind::Routes).await.resource_names, ["r"]);
    stream.accepted(Kind::Routes, "r1", vec![leno_xds::any(&routes("r", "a"))]).await;
}

#[test]
fn whole_client_when_all_resources_have_come_publishes_and_acknowledges_version_and_nonce() {
    run_whole(|mut fixture| async move {
        let mut stream = fixture.whole().await;
        let first = stream.request_of(Kind::Cluster).await;
        assert_eq!(first.node.unwrap().id, "leno~pod-1.default");
        assert!(first.resource_names.is_empty() && first.version_info.is_empty());
        configure_whole(&mut stream).await;
        let root = fixture.workers.wait("the route leads to the endpoint", |root| target(root).is_some()).await;
        assert_eq!(target(&root), Some(("a".to_owned(), 8001)));
        assert_eq!(root.version, 1, "nothing was published before everything had come");
    });
}

#[test]
fn whole_client_when_a_listener_waits_for_its_routes_acknowledges_it_before_they_come() {
    run_whole(|mut fixture| async move {
        let mut stream = fixture.whole().await;
        stream.accepted(Kind::Cluster, "c1", vec![leno_xds::any(&cluster("a"))]).await;
        stream.accepted(Kind::Endpoints, "e1", vec![leno_xds::any(&endpoints("a", 8001))]).await;
        let sent = Instant::now();
        stream.accepted(Kind::Listener, "l1", vec![leno_xds::any(&listener("l", 80, "r"))]).await;
        assert!(sent.elapsed() < WARMING_LIMIT, "some servers send routes only after it");
        assert!(fixture.workers.newest().is_none(), "it is not in force without them");
        stream.accepted(Kind::Routes, "r1", vec![leno_xds::any(&routes("r", "a"))]).await;
        fixture.workers.wait("the route leads to the endpoint", |root| target(root).is_some()).await;
    });
}

#[test]
fn whole_client_when_a_resource_is_not_sent_any_more_removes_it_and_asks_for_what_is_left() {
    run_whole(|mut fixture| async move {
        let mut stream = fixture.whole().await;
        configure_whole(&mut stream).await;
        let both = vec![leno_xds::any(&cluster("a")), leno_xds::any(&cluster("b"))];
        stream.accepted(Kind::Cluster, "c2", both).await;
        let asked = stream.request_of(Kind::Endpoints).await;
        assert_eq!(asked.resource_names, ["a", "b"]);
        assert_eq!(asked.version_info, "e1", "what was taken last");
        stream.accepted(Kind::Endpoints, "e2", vec![leno_xds::any(&endpoints("b", 8002))]).await;
        stream.accepted(Kind::Routes, "r2", vec![leno_xds::any(&routes("r", "b"))]).await;
        fixture.workers.wait("the route has moved", |root| target(root) == Some(("b".to_owned(), 8002))).await;
        stream.accepted(Kind::Cluster, "c3", vec![leno_xds::any(&cluster("b"))]).await;
        assert_eq!(stream.request_of(Kind::Endpoints).await.resource_names, ["b"]);
        let gone = |root: &Root| root.clusters.iter().flatten().all(|cluster| &*cluster.name == "b");
        fixture.workers.wait("the cluster is gone", gone).await;
        assert_eq!(
            target(&fixture.workers.newest().unwrap()),
            Some(("b".to_owned(), 8002)),
            "endpoints of others stay"
        );
    });
}

#[test]
fn whole_client_when_a_resource_is_bad_refuses_it_by_name_and_keeps_the_version_before() {
    run_whole(|mut fixture| async move {
        let mut stream = fixture.whole().await;
        configure_whole(&mut stream).await;
        let mut bad = cluster("a");
        bad.transport_socket_matcher = Some(Default::default());
        let nonce = stream.send(Kind::Cluster, "c2", vec![leno_xds::any(&bad), leno_xds::any(&cluster("b"))]).await;
        let nack = stream.request_of(Kind::Cluster).await;
        assert_eq!((nack.response_nonce, nack.version_info), (nonce, "c1".to_owned()));
        let message = nack.error_detail.expect("a refusal").message;
        assert!(message.contains("cluster a:") && message.contains("transport_socket_matcher"), "{message}");
        assert_eq!(
            target(&fixture.workers.newest().unwrap()),
            Some(("a".to_owned(), 8001)),
            "the last good form stays"
        );
    });
}

#[test]
fn whole_client_when_nothing_has_changed_publishes_nothing_and_keeps_the_versions_of_the_last_change() {
    run_whole(|mut fixture| async move {
        let mut stream = fixture.whole().await;
        configure_whole(&mut stream).await;
        fixture.workers.wait("the route leads to the endpoint", |root| target(root).is_some()).await;
        stream.accepted(Kind::Cluster, "c2", vec![leno_xds::any(&cluster("a"))]).await;
        stream.accepted(Kind::Listener, "l2", vec![leno_xds::any(&listener("l", 80, "r"))]).await;
        stream.accepted(Kind::Routes, "r2", vec![leno_xds::any(&routes("r", "a"))]).await;
        assert_eq!(fixture.workers.newest().unwrap().version, 1);
        assert_eq!(fixture.state.lock().unwrap().versions(Kind::Cluster, SourceId::ADS)["a"], "c1");
    });
}

#[test]
fn client_when_something_comes_that_nobody_asked_for_passes_it_over() {
    const STRAY: &str = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration";
    run(|mut fixture| async move {
        let mut stream = fixture.stream().await;
        configure(&mut stream).await;
        let stray = DeltaDiscoveryResponse { type_url: STRAY.to_owned(), nonce: "s".to_owned(), ..Default::default() };
        stream.responses.send(Ok(stray)).await.unwrap();
        stream.nothing("nobody asked").await;
        let nonce = stream.send(Kind::Endpoints, vec![resource("a", "e2", &endpoints("a", 8002))], &[]).await;
        assert_eq!(stream.request_of(Kind::Endpoints).await.response_nonce, nonce, "the stream goes on");
    });
    run_whole(|mut fixture| async move {
        let mut stream = fixture.whole().await;
        configure_whole(&mut stream).await;
        let stray = DiscoveryResponse { type_url: STRAY.to_owned(), nonce: "s".to_owned(), ..Default::default() };
        stream.responses.send(Ok(stray)).await.unwrap();
        stream.accepted(Kind::Endpoints, "e2", vec![leno_xds::any(&endpoints("a", 8002))]).await;
    });
}

#[test]
fn client_when_streams_break_that_have_worked_tries_again_soon_each_time() {
    let backoff = (Duration::from_millis(50), Duration::from_secs(60));
    run_as(Role { backoff, ..Role::mesh() }, |mut fixture| async move {
        let begun = Instant::now();
        for version in 0..8 {
            let mut stream = fixture.stream().await;
            stream.send(Kind::Cluster, vec![resource("a", &version.to_string(), &cluster("a"))], &[]).await;
            while stream.request_of(Kind::Cluster).await.response_nonce.is_empty() {}
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    });
}

#[test]
fn whole_client_when_the_same_version_is_refused_again_takes_its_time_to_say_so() {
    run_whole(|mut fixture| async move {
        let mut stream = fixture.whole().await;
        configure_whole(&mut stream).await;
        let mut bad = cluster("a");
        bad.transport_socket_matcher = Some(Default::default());
        stream.send(Kind::Cluster, "c2", vec![leno_xds::any(&bad)]).await;
        assert!(stream.request_of(Kind::Cluster).await.error_detail.is_some());
        let again = Instant::now();
        stream.send(Kind::Cluster, "c2", vec![leno_xds::any(&bad)]).await;
        assert!(stream.request_of(Kind::Cluster).await.error_detail.is_some());
        assert!(again.elapsed() > Duration::from_millis(500), "a server that repeats itself is not answered at once");
    });
}

#[test]
fn whole_client_when_the_stream_breaks_tells_the_versions_it_holds_and_serves_on() {
    run_whole(|mut fixture| async move {
        let mut stream = fixture.whole().await;
        configure_whole(&mut stream).await;
        fixture.workers.wait("the route leads to the endpoint", |root| target(root).is_some()).await;
        drop(stream);
        let mut stream = fixture.whole().await;
        for (kind, version) in
            [(Kind::Cluster, "c1"), (Kind::Endpoints, "e1"), (Kind::Listener, "l1"), (Kind::Routes, "r1")]
        {
            let request = stream.request_of(kind).await;
            assert_eq!((request.version_info.as_str(), request.response_nonce.as_str()), (version, ""));
        }
        stream.accepted(Kind::Endpoints, "e2", vec![leno_xds::any(&endpoints("a", 8009))]).await;
        fixture.workers.wait("the endpoint has moved", |root| target(root) == Some(("a".to_owned(), 8009))).await;
    });
}

#[test]
fn listener_when_its_secret_has_not_come_waits_for_it_and_asks_for_it_by_name() {
    let ads = serde_json::json!({"ads": {}});
    let mut secure = listener("l", 80, "r");
    secure.filter_chains[0].transport_socket = leno_xds::json::from_value(&serde_json::json!({
        "name": "tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {"tls_certificate_sds_secret_configs": [{"name": "web", "sds_config": ads}]},
        },
    }))
    .ok();
    let key = rcgen::generate_simple_self_signed(["web.test".to_owned()]).unwrap();
    let secret: leno_xds::envoy::extensions::transport_sockets::tls::v3::Secret =
        leno_xds::json::from_value(&serde_json::json!({
            "name": "web",
            "tls_certificate": {
                "certificate_chain": {"inline_string": key.cert.pem()},
                "private_key": {"inline_string": key.signing_key.serialize_pem()},
            },
        }))
        .unwrap();
    run(|mut fixture| async move {
        let mut stream = fixture.stream().await;
        configure(&mut stream).await;
        stream.send(Kind::Listener, vec![resource("l", "l2", &secure)], &[]).await;
        assert_eq!(stream.request_of(Kind::Secret).await.resource_names_subscribe, ["web"]);
        let secured = |root: &Root| root.listeners.all()[0].chains.all()[0].tls.is_some();
        assert!(!secured(&fixture.workers.newest().unwrap()), "the old form serves");
        stream.send(Kind::Secret, vec![resource("web", "s1", &secret)], &[]).await;
        fixture.workers.wait("the listener ends TLS", secured).await;
        let state = fixture.state.lock().unwrap();
        let held = format!("{:?}", state.raws(Kind::Secret).collect::<Vec<_>>());
        assert!(!held.contains("PRIVATE KEY"), "keys are not kept where they are shown");
    });
}

#[test]
fn whole_client_when_a_listener_names_a_filters_configuration_asks_for_it_and_waits() {
    run_whole(|mut fixture| async move {
        let mut stream = fixture.whole().await;
        stream.accepted(Kind::Cluster, "c1", vec![leno_xds::any(&cluster("a"))]).await;
        stream.accepted(Kind::Endpoints, "e1", vec![leno_xds::any(&endpoints("a", 8001))]).await;
        let source = ExtensionConfigSource {
            config_source: ads(),
            type_urls: vec![Router::type_url()],
            ..ExtensionConfigSource::default()
        };
        let mut wanted = listener("l", 80, "r");
        let first = &mut wanted.filter_chains[0].filters[0];
        let Some(filter::ConfigType::TypedConfig(any)) = &mut first.config_type else { panic!("a filter") };
        let mut manager = HttpConnectionManager::decode(any.value.as_slice()).unwrap();
        manager.http_filters[0].config_type = Some(http_filter::ConfigType::ConfigDiscovery(source));
        *any = leno_xds::any(&manager);
        stream.send(Kind::Listener, "l1", vec![leno_xds::any(&wanted)]).await;
        stream.accepted(Kind::Routes, "r1", vec![leno_xds::any(&routes("r", "a"))]).await;
        assert_eq!(stream.request_of(Kind::Extension).await.resource_names, ["router"]);
        assert!(fixture.workers.newest().is_none(), "the listener is not in force without");
        let mut router = TypedExtensionConfig { name: "router".to_owned(), typed_config: None };
        let nonce = stream.send(Kind::Extension, "x1", vec![leno_xds::any(&router)]).await;
        let nack = stream.request_of(Kind::Extension).await;
        let message = nack.error_detail.expect("a refusal").message;
        assert_eq!((nack.response_nonce, nack.version_info.as_str()), (nonce, ""));
        assert!(message.contains("extension configuration router: field `typed_config`"), "{message}");
        router.typed_config = Some(leno_xds::any(&Router { suppress_envoy_headers: true, ..Router::default() }));
        stream.accepted(Kind::Extension, "x2", vec![leno_xds::any(&router)]).await;
        let quiet = |root: &Root| match root.listeners.all().first().map(|found| &found.chains.all()[0].network) {
            Some(leno_proxy::config::Network::Http(manager)) => manager.router.suppress_envoy_headers,
            _ => false,
        };
        fixture.workers.wait("the router is the one that came", quiet).await;
    });
}
