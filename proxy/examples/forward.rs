//! The data path alone, without control plane: `forward LISTEN UPSTREAM [WORKERS]`, e.g.
//! `forward 127.0.0.1:8081 127.0.0.1:8080 1`. For measuring CPU a request beside other proxies.

use leno_proxy::{
    config::*,
    telemetry::Telemetry,
    tls::CredentialStore,
    worker::{ListenSocket, Settings, spawn},
};
use std::{error::Error, net::SocketAddr, sync::Arc, time::Duration};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next =
        |what: &str| arguments.next().ok_or_else(|| format!("{what} is missing: forward LISTEN UPSTREAM [WORKERS]"));
    let listen: SocketAddr = next("LISTEN")?.parse()?;
    let upstream: SocketAddr = next("UPSTREAM")?.parse()?;
    let workers: usize = next("WORKERS").map_or(Ok(1), |text| text.parse())?;

    let id = ClusterId(0);
    let cluster = Cluster {
        endpoints: vec![Arc::new(Endpoint::new(upstream))],
        ..Cluster::new(id, "outbound|80||upstream", ClusterKind::Eds)
    };
    let route = |prefix: &str| {
        let matches = RouteMatch { path: PathMatch::Prefix(prefix.into()), ..RouteMatch::default() };
        let forward = Action::Forward(Box::new(Forward {
            targets: vec![WeightedCluster::all(id)],
            retry: Some(Arc::new(RetryPolicy {
                on: RetryOn { connect_failure: true, refused_stream: true, ..RetryOn::default() },
                ..RetryPolicy::default()
            })),
            ..Forward::default()
        }));
        Arc::new(Route::new(prefix, matches, forward))
    };
    let host = VirtualHost {
        name: "all".into(),
        domains: vec!["*".into()],
        routes: vec![route("/never"), route("/")],
        ..VirtualHost::default()
    };
    let manager = HttpManager {
        routes: Arc::new(RouteTable::new("routes", vec![host], HeaderOps::default())?),
        ..HttpManager::default()
    };
    let listener = Listener {
        name: "forward".into(),
        direction: Direction::Outbound,
        addresses: vec![listen],
        bind: true,
        use_original_dst: false,
        inspect: Inspect::default(),
        detect_timeout: Duration::ZERO,
        continue_on_timeout: true,
        chains: Vec::new(),
        default_chain: Some(FilterChain {
            name: "all".into(),
            matches: ChainMatch::default(),
            tls: None,
            network: Network::Http(Arc::new(manager)),
        }),
    };
    let (_telemetry, shards) = Telemetry::new(workers);
    let _workers = spawn(Settings {
        workers,
        sockets: vec![ListenSocket { address: listen, socket: std::net::TcpListener::bind(listen)? }],
        root: Arc::new(Root {
            listeners: Listeners::new(vec![Arc::new(listener)]),
            clusters: vec![Some(Arc::new(cluster))],
            ..Root::default()
        }),
        credentials: CredentialStore::new(),
        shards,
    })?;
    loop {
        std::thread::park();
    }
}
