//! Change under load: thousands of updates while requests flow over connections that stay. None may fail, and memory
//! returns to where it was.

use crate::process::{LIMIT, Proxy, again, free, socket_address, upstream, wait};
use leno_proxy::xds::Kind;
use leno_xds::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
    aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
};
use prost::{Message, Name};
use serde_json::{Value, json};
use std::net::{SocketAddr, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::transport::Server;
use tonic::{Response, Status, Streaming};

/// Rounds of four updates: a cluster, its endpoints, a route table, a secret.
const ROUNDS: usize = 2500;
/// Rounds after which memory is looked at first.
const WARM: usize = 250;
/// How much memory may have grown between then and the end, in KiB: what an allocator keeps, not what a change leaves.
const GROWTH: u64 = 12 << 10;
/// Connections that stay.
const CONNECTIONS: usize = 4;

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

struct Ads(mpsc::Sender<(Streaming<DeltaDiscoveryRequest>, mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>)>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = BoxStream<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = BoxStream<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: tonic::Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: tonic::Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, receiver) = mpsc::channel(16);
        self.0.send((request.into_inner(), responses)).await.map_err(|_| Status::unavailable("the test has ended"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// The management server's end of the stream.
struct Control {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    nonce: usize,
}

impl Control {
    async fn send<M: Message + Name + Default>(&mut self, kind: Kind, name: &str, value: Value) -> String {
        self.nonce += 1;
        let message: M = leno_xds::json::from_value(&value).unwrap();
        let resource = Resource {
            name: name.to_owned(),
            version: self.nonce.to_string(),
            resource: Some(leno_xds::any(&message)),
            ..Default::default()
        };
        let response = DeltaDiscoveryResponse {
            type_url: kind.type_url().to_owned(),
            resources: vec![resource],
            nonce: self.nonce.to_string(),
            ..Default::default()
        };
        self.responses.send(Ok(response)).await.unwrap();
        self.nonce.to_string()
    }

    /// Waits until each of these responses is acknowledged.
    async fn acknowledged(&mut self, mut nonces: Vec<String>) {
        while !nonces.is_empty() {
            let request = tokio::time::timeout(LIMIT, self.requests.message()).await.expect("an answer in time");
            let request = request.unwrap().expect("an open stream");
            assert_eq!(request.error_detail, None, "{}", request.type_url);
            nonces.retain(|nonce| *nonce != request.response_nonce);
        }
    }
}

fn cluster(name: &str, round: usize) -> Value {
    json!({"name": name, "type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}},
        "connect_timeout": format!("{}s", 1 + round % 7)})
}

fn endpoints(name: &str, address: SocketAddr, round: usize) -> Value {
    let place = json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}});
    json!({"cluster_name": name, "endpoints": [{"lb_endpoints": [
        {"endpoint": {"address": place}, "load_balancing_weight": 1 + round % 5}
    ]}]})
}

fn routes(round: usize) -> Value {
    json!({"name": "r", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
        {"match": {"prefix": format!("/{round}")}, "route": {"cluster": "a"}},
        {"match": {"prefix": "/"}, "route": {"cluster": if round.is_multiple_of(2) { "a" } else { "b" }}}
    ]}]})
}

fn listener(name: &str, address: SocketAddr, secret: Option<&str>) -> Value {
    let mut chain = json!({"filters": [{"name": "http", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "web",
        "rds": {"route_config_name": "r", "config_source": {"ads": {}}},
        "http_filters": [{"name": "router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
    }}]});
    if let Some(secret) = secret {
        chain["transport_socket"] = json!({"name": "tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {"tls_certificate_sds_secret_configs": [{"name": secret, "sds_config": {"ads": {}}}]},
        }});
    }
    json!({"name": name, "address": {"socket_address": {
        "address": address.ip().to_string(), "port_value": address.port()}}, "filter_chains": [chain]})
}

fn secrets() -> [Value; 2] {
    [0, 1].map(|_| {
        let key = rcgen::generate_simple_self_signed(["web.test".to_owned()]).unwrap();
        json!({"name": "web", "tls_certificate": {
            "certificate_chain": {"inline_string": key.cert.pem()},
            "private_key": {"inline_string": key.signing_key.serialize_pem()},
        }})
    })
}

/// Resident memory of a process in KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A proxy that a control plane of the test's own drives.
async fn driven() -> (Proxy, Control) {
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let (sender, mut streams) = mpsc::channel(1);
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(socket);
    let server = Server::builder().add_service(AggregatedDiscoveryServiceServer::new(Ads(sender)));
    tokio::spawn(server.serve_with_incoming(incoming));
    let proxy = Proxy::start(&format!(
        "node: {{id: test, cluster: test}}\nadmin: {{address: {}}}\ndynamic_resources:\n  \
         ads_config: {{api_type: DELTA_GRPC, grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}\n  \
         cds_config: {{ads: {{}}}}\n  lds_config: {{ads: {{}}}}\n\
         static_resources:\n  clusters:\n  - name: xds\n    load_assignment: {{cluster_name: xds, endpoints: \
         [{{lb_endpoints: [{{endpoint: {{address: {}}}}}]}}]}}\n",
        socket_address(([127, 0, 0, 1], 0).into()),
        socket_address(address),
    ));
    let (requests, responses) = tokio::time::timeout(LIMIT, streams.recv()).await.unwrap().unwrap();
    let control = Control { requests, responses, nonce: 0 };
    (proxy, control)
}

#[test]
fn proxy_when_ten_thousand_updates_come_under_load_fails_no_request_and_keeps_its_memory() {
    use leno_xds::envoy::config::{
        cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
        route::v3::RouteConfiguration,
    };
    use leno_xds::envoy::extensions::transport_sockets::tls::v3::Secret;
    let (web, secure) = (free(), free());
    let upstreams = [upstream(), upstream()];
    let secrets = secrets();
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (proxy, mut control) = driven().await;
        let mut nonces = Vec::new();
        for name in ["a", "b"] {
            nonces.push(control.send::<Cluster>(Kind::Cluster, name, cluster(name, 0)).await);
        }
        for (name, address) in ["a", "b"].into_iter().zip(upstreams) {
            nonces
                .push(control.send::<ClusterLoadAssignment>(Kind::Endpoints, name, endpoints(name, address, 0)).await);
        }
        nonces.push(control.send::<Listener>(Kind::Listener, "web", listener("web", web, None)).await);
        nonces.push(control.send::<Listener>(Kind::Listener, "secure", listener("secure", secure, Some("web"))).await);
        nonces.push(control.send::<RouteConfiguration>(Kind::Routes, "r", routes(0)).await);
        nonces.push(control.send::<Secret>(Kind::Secret, "web", secrets[0].clone()).await);
        control.acknowledged(nonces).await;

        let answered = Arc::new(AtomicUsize::new(0));
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                let (stop, answered) = (stop.clone(), answered.clone());
                std::thread::spawn(move || {
                    let mut stream = wait("the listener", || TcpStream::connect(web).ok());
                    while !stop.load(Ordering::Relaxed) {
                        let answer = again(&mut stream);
                        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                        assert!(!answer.contains("connection: close"), "{answer}");
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let mut before = 0;
        for round in 1..=ROUNDS {
            let (name, address) = (["a", "b"][round % 2], upstreams[round / 2 % 2]);
            let nonces = vec![
                control.send::<Cluster>(Kind::Cluster, name, cluster(name, round)).await,
                control.send::<ClusterLoadAssignment>(Kind::Endpoints, name, endpoints(name, address, round)).await,
                control.send::<RouteConfiguration>(Kind::Routes, "r", routes(round)).await,
                control.send::<Secret>(Kind::Secret, "web", secrets[round % 2].clone()).await,
            ];
            control.acknowledged(nonces).await;
            if round == WARM {
                before = resident(proxy.child.id());
            }
        }
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("no request failed");
        }
        assert!(answered.load(Ordering::Relaxed) > ROUNDS / 10, "requests flowed meanwhile");
        let after = wait("memory to return to where it was", || {
            let now = resident(proxy.child.id());
            (now <= before + GROWTH).then_some(now)
        });
        println!("{} requests, {before} KiB before, {after} KiB after", answered.load(Ordering::Relaxed));
    });
}

#[test]
fn connection_when_a_filters_configuration_comes_and_changes_has_it_and_stays() {
    use leno_xds::envoy::config::{core::v3::TypedExtensionConfig, listener::v3::Listener};
    let web = free();
    let kind = "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";
    let mutation = |value: &str| {
        let header =
            json!({"header": {"key": "x-told", "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"});
        json!({"name": "tell", "typed_config": {"@type": kind, "mutations": {"response_mutations": [{"append": header}]}}})
    };
    let mut listener = listener("web", web, None);
    let manager = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
    manager["rds"] = Value::Null;
    manager["route_config"] = json!({"name": "r", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
        {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "hello"}}}]}]});
    let discovery = json!({"config_source": {"ads": {}}, "type_urls": [kind]});
    manager["http_filters"].as_array_mut().unwrap().insert(0, json!({"name": "tell", "config_discovery": discovery}));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (_proxy, mut control) = driven().await;
        let nonces = vec![
            control.send::<Listener>(Kind::Listener, "web", listener).await,
            control.send::<TypedExtensionConfig>(Kind::Extension, "tell", mutation("first")).await,
        ];
        control.acknowledged(nonces).await;
        let mut stream = wait("the listener", || TcpStream::connect(web).ok());
        assert!(again(&mut stream).contains("x-told: first"));
        let nonces = vec![control.send::<TypedExtensionConfig>(Kind::Extension, "tell", mutation("second")).await];
        control.acknowledged(nonces).await;
        let answer = again(&mut stream);
        assert!(answer.contains("x-told: second") && !answer.contains("connection: close"), "{answer}");
    });
}
