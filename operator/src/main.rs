//! The operator: waits for the lease, then keeps every MeshInstall as it is written.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;
use kube::api::Api;
use leno_kubeutil::client::{ClientError, connect};
use leno_kubeutil::events::Recorder;
use leno_kubeutil::lease::{Election, End};
use leno_operator::metrics::Metrics;
use leno_operator::observe::Watches;
use leno_operator::{names, proxies, reconcile, traffic};
use leno_runtime::http::{Health, ListenError};
use leno_runtime::logging::{LogError, LogFlags};
use leno_runtime::metrics::Registry;
use tokio_util::sync::CancellationToken;

leno_runtime::use_jemalloc!("narenas:2");

/// Keeps every MeshInstall in the cluster as it is written, and reports the status of traffic resources.
#[derive(Parser)]
#[command(version)]
struct Flags {
    #[command(flatten)]
    logging: LogFlags,
    /// The namespace of the lease: the operator's own.
    #[arg(long, env = "POD_NAMESPACE", default_value = "leno-system")]
    namespace: String,
    /// The name of this replica, unique among them.
    #[arg(long, env = "POD_NAME", default_value_t = default_name())]
    name: String,
    /// Where health and metrics are served.
    #[arg(long, default_value = "0.0.0.0:8080")]
    health_address: SocketAddr,
    /// Where the admin server listens.
    #[arg(long, default_value_t = leno_runtime::admin::ADDRESS)]
    admin_address: SocketAddr,
    /// Another release that this operator can render; the one before its own unless given.
    #[arg(long, env = "LENO_PREVIOUS_VERSION")]
    previous_version: Option<String>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("signals cannot be handled: {0}")]
    Signal(#[from] std::io::Error),
    #[error("the lease was lost; another replica may lead, so this process ends")]
    LostLease,
    #[error("the loop ended by itself, which is a bug; the process starts again")]
    Ended,
}

fn default_name() -> String {
    format!("operator-{}", std::process::id())
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    match run(Flags::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("leno-operator: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(flags: Flags) -> Result<(), Error> {
    leno_runtime::logging::init(&flags.logging)?;
    let shutdown = leno_runtime::shutdown::signal()?;
    let (registry, health) = (Registry::new(), Health::new());
    let metrics = Metrics::new(&registry);
    let listener = leno_runtime::http::listen(flags.health_address).await?;
    let routes = leno_runtime::http::health_routes(health.clone(), registry.clone());
    tokio::spawn(leno_runtime::http::serve(listener, routes, shutdown.clone()));
    let admin = leno_runtime::admin::routes(health.clone(), registry.clone());
    tokio::spawn(leno_runtime::admin::serve(flags.admin_address, admin, shutdown.clone()));
    let client = connect(names::FIELD_MANAGER).await?;
    let mut supported = vec![leno_runtime::version()];
    supported.extend(flags.previous_version.filter(|version| !version.is_empty()));
    tracing::info!(supported = supported.join(", "), "waiting for the lease");
    // A replica without the lease is ready too: it is there to take over.
    health.set_ready(true);
    let api = Api::namespaced(client.clone(), &flags.namespace);
    let identity = format!("{}_{:08x}", flags.name, rand_part());
    let Some(held) = Election::new(api, names::FIELD_MANAGER, identity).acquire(&shutdown).await else {
        return Ok(());
    };
    metrics.leading.set(1);
    let recorder = Recorder::start(client.clone(), names::CONTROLLER, &flags.name);
    let work = shutdown.clone();
    let mut lead = tokio::spawn(async move {
        let watches = Watches::start(&client, &work);
        tokio::select! {
            () = work.cancelled() => return,
            () = watches.synced() => {}
        }
        tracing::info!("all watches are complete");
        tokio::join!(
            reconcile::run(client.clone(), &watches, recorder.clone(), supported, metrics.clone(), work.clone()),
            traffic::run(client, &watches, recorder, metrics, work.clone()),
            proxies::run(&watches, work.clone()),
        );
    });
    // Work stops before the lease is given back, so that two leaders never overlap.
    let give_back = CancellationToken::new();
    let stop = give_back.clone();
    let mut keeper = tokio::spawn(async move { held.keep(&stop).await });
    tokio::select! {
        _ = &mut keeper => Err(Error::LostLease),
        _ = &mut lead => {
            give_back.cancel();
            let end = keeper.await;
            match (shutdown.is_cancelled(), end) {
                (true, Ok(End::Released)) => Ok(()),
                (true, _) => Err(Error::LostLease),
                (false, _) => Err(Error::Ended),
            }
        }
    }
}

/// Tells a restarted container from the one before it, which may still hold the lease under the pod's name.
fn rand_part() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish() as u32
}
