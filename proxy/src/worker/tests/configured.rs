//! A proxy from resources as they come over xDS.

use super::*;
use crate::xds::convert::{Context, cluster, listener, secret};
use serde_json::{Value, json};

/// A proxy whose listeners were written as JSON.
pub(super) struct Configured {
    pub(super) proxy: Proxy,
    pub(super) context: Context,
    /// How long connections whose filter chain is gone may take to end.
    pub(super) drain_time: Duration,
    addresses: Vec<SocketAddr>,
}

impl Configured {
    /// A proxy with one worker and one listener. Its address is filled in.
    pub(super) fn start(listener: Value, clusters: &[Value]) -> Self {
        Self::start_with(1, vec![listener], clusters)
    }

    /// A proxy with listeners, each on an address of its own.
    pub(super) fn start_with(workers: usize, listeners: Vec<Value>, clusters: &[Value]) -> Self {
        let mut context = Context::new("");
        let sockets: Vec<ListenSocket> = listeners
            .iter()
            .map(|_| {
                let socket = TcpListener::bind("127.0.0.1:0").unwrap();
                ListenSocket { address: socket.local_addr().unwrap(), socket }
            })
            .collect();
        let addresses: Vec<SocketAddr> = sockets.iter().map(|socket| socket.address).collect();
        let drain_time = Duration::ZERO;
        let root = resources(&mut context, &addresses, listeners, clusters, drain_time);
        let (telemetry, shards) = Telemetry::new(workers);
        let settings = Settings { workers, sockets, root, credentials: CredentialStore::new(), shards };
        let workers = spawn(settings).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let proxy = Proxy { workers: Some(workers), address: addresses[0], telemetry, runtime };
        Self { proxy, context, drain_time, addresses }
    }

    /// The address of a listener.
    pub(super) fn address(&self, index: usize) -> SocketAddr {
        self.addresses[index]
    }

    /// Other listeners at the same addresses.
    pub(super) fn publish(&mut self, listeners: Vec<Value>, clusters: &[Value]) {
        let root = resources(&mut self.context, &self.addresses, listeners, clusters, self.drain_time);
        self.proxy.wait(self.proxy.workers().publish(root));
    }

    /// A secret comes.
    pub(super) fn secret(&mut self, name: &str, mut body: Value) {
        body["@type"] = json!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret");
        body["name"] = json!(name);
        let any: prost_types::Any = leno_xds::json::from_value(&body).unwrap();
        secret::secret(&mut self.context, name, &any).unwrap();
    }
}

fn resources(
    context: &mut Context,
    addresses: &[SocketAddr],
    listeners: Vec<Value>,
    clusters: &[Value],
    drain_time: Duration,
) -> Arc<Root> {
    let mut found = Vec::new();
    for value in clusters {
        let template = cluster::template(context, leno_xds::json::from_value(value).unwrap()).unwrap();
        let built = template
            .build(crate::xds::convert::cluster::Assignment::default(), &crate::telemetry::WorkloadLabels::unknown());
        found.push(built);
    }
    let listeners = listeners
        .into_iter()
        .zip(addresses)
        .map(|(mut value, address)| {
            value["name"] = json!(format!("listener-{}", address.port()));
            value["traffic_direction"] = json!("OUTBOUND");
            value["address"] =
                json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}});
            listener::listener(context, leno_xds::json::from_value(&value).unwrap(), &|_| None).unwrap().listener
        })
        .collect();
    let mut slots = vec![None; context.cluster_count()];
    for cluster in found {
        let index = cluster.id.0 as usize;
        slots[index] = Some(cluster);
    }
    Arc::new(Root {
        listeners: Listeners::new(listeners),
        clusters: slots,
        drain: Drain { time: drain_time, at_once: true },
        ..Root::default()
    })
}

/// A static cluster of this name.
pub(super) fn static_cluster(name: &str, endpoints: &[SocketAddr]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|at| {
            json!({"endpoint": {"address": {"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}}}})
        })
        .collect();
    json!({"name": name, "type": "STATIC", "connect_timeout": "2s", "load_assignment": {
        "cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]
    }})
}

/// A network filter of this kind.
pub(super) fn filter(kind: &str, mut body: Value) -> Value {
    body["@type"] = json!(format!("type.googleapis.com/envoy.extensions.filters.network.{kind}"));
    json!({"name": kind, "typed_config": body})
}

/// Passes bytes to a cluster.
pub(super) fn tcp_to(cluster: &str) -> Value {
    filter("tcp_proxy.v3.TcpProxy", json!({"stat_prefix": "t", "cluster": cluster}))
}

/// Answers every request with 200 and this text.
pub(super) fn answer(text: &str) -> Value {
    filter(
        "http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": "h",
            "http_filters": [{"name": "router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
            }}],
            "route_config": {"name": "r", "virtual_hosts": [{"name": "h", "domains": ["*"], "routes": [
                {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": text}}}
            ]}]}
        }),
    )
}
