//! Putting the process together.
//!
//! Order of the start: authority and serving certificate, servers that answer "not ready", the source; ready when everything
//! has been read and published once. Order of the end: not ready, a short wait in which no new connections come any longer,
//! streams end one by one while those that are left go on being told of changes, exit.

use std::sync::Arc;
use std::time::Duration;

use kube::Api;
use leno_crds::meshinstall::MeshInstall;
use leno_runtime::certs::{CertError, spiffe_id};
use leno_runtime::http::{Health, ListenError, listen, serve_health, serve_metrics};
use leno_runtime::metrics::Registry;
use leno_runtime::{admin, shutdown};
use tokio_util::sync::CancellationToken;

use crate::acks::{Acknowledgements, StatusService};
use crate::admin::routes;
use crate::ads::server::Ads;
use crate::ads::spread;
use crate::compile::Mesh;
use crate::flags::Flags;
use crate::grpc::{self, Services};
use crate::identity::ca::CaError;
use crate::identity::{Ca, Serving, Signer, Tokens};
use crate::metrics::{Metrics, ResultLabel};
use crate::pipeline::{self, Publisher};
use crate::proxies;
use crate::source::folder::FolderError;
use crate::source::{Folder, Kubernetes, Source};
use crate::webhook;

/// Service account of the operator, the only reader of reports.
const OPERATOR_ACCOUNT: &str = "leno-operator";
/// Service account of the control plane itself.
const OWN_ACCOUNT: &str = "leno-control-plane";

/// The process cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The authority is unusable.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// A certificate cannot be made.
    #[error(transparent)]
    Certificate(#[from] CertError),
    /// The folder is unreadable.
    #[error("--config-dir: {0}")]
    Folder(#[from] FolderError),
    /// The roots cannot be written.
    #[error("--root-out {path}: {source}")]
    RootOut {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is no cluster to talk to.
    #[error(transparent)]
    Client(#[from] leno_kubeutil::client::ClientError),
    /// An address is taken.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The kernel refused signal handlers.
    #[error("signal handlers cannot be set: {0}")]
    Signals(std::io::Error),
    /// A server failed as a whole.
    #[error("the gRPC server failed: {0}")]
    Grpc(#[from] tonic::transport::Error),
}

/// What differs between a cluster and a folder.
struct World<S> {
    source: S,
    ca: Ca,
    tokens: Tokens,
    trust_domain: String,
    reader: Option<(String, String)>,
    drain: Duration,
    /// Ends the source and the servers, a while after the signal.
    stop: CancellationToken,
}

/// Runs until SIGTERM.
///
/// # Errors
///
/// [`AppError`], when the process cannot start.
pub async fn run(flags: Flags) -> Result<(), AppError> {
    leno_runtime::certs::install_crypto_provider();
    let shutdown = shutdown::signal().map_err(AppError::Signals)?;
    let stop = CancellationToken::new();
    match &flags.config_dir {
        Some(dir) => {
            let mut source = Folder::open(dir)?;
            let trust_domain = source.stores().mesh.trust_domain.clone();
            let (ca, roots) = match &flags.ca_dir {
                Some(dir) => (Ca::from_dir(dir)?, None),
                None => Ca::in_memory(&trust_domain).map(|(ca, root)| (ca, Some(root)))?,
            };
            if let (Some(path), Some(roots)) = (&flags.root_out, roots) {
                std::fs::write(path, roots).map_err(|source| AppError::RootOut { path: path.clone(), source })?;
            }
            tracing::warn!("reading a folder: tokens of the form dev:<namespace>/<pod> are believed");
            let world = World {
                source,
                ca,
                tokens: Tokens::Development,
                trust_domain,
                reader: None,
                drain: Duration::ZERO,
                stop,
            };
            serve(&flags, world, None, shutdown).await
        }
        None => {
            let ca = Ca::from_dir(flags.ca_dir.as_deref().unwrap_or("/etc/leno/ca".as_ref()))?;
            let client = leno_kubeutil::client::connect("leno-control-plane").await?;
            let Some(trust_domain) = trust_domain(&client, &flags.mesh_install, &shutdown).await else { return Ok(()) };
            let account = format!("{}:{OWN_ACCOUNT}", flags.namespace);
            let source = Kubernetes::watch(&client, &flags.mesh_install, &account, &stop);
            let settings = webhook::Settings::new(&flags, source.installs());
            let webhook = Some((listen(flags.webhook_address).await?, settings));
            let world = World {
                source,
                ca,
                tokens: Tokens::kubernetes(client),
                trust_domain,
                reader: Some((flags.namespace.clone(), OPERATOR_ACCOUNT.to_owned())),
                drain: Duration::from_secs(flags.drain),
                stop,
            };
            serve(&flags, world, webhook, shutdown).await
        }
    }
}

/// The mesh's trust domain, which never changes: asked until the API server tells it. `None` on shutdown.
async fn trust_domain(client: &kube::Client, install: &str, shutdown: &CancellationToken) -> Option<String> {
    let api: Api<MeshInstall> = Api::all(client.clone());
    loop {
        match api.get(install).await {
            Ok(install) => return Some(install.spec.trust_domain().to_owned()),
            Err(error) => tracing::warn!(install, %error, "the MeshInstall cannot be read yet; trying again"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return None,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

async fn serve(
    flags: &Flags,
    world: World<impl Source>,
    webhook: Option<(tokio::net::TcpListener, webhook::Settings)>,
    signal: CancellationToken,
) -> Result<(), AppError> {
    let World { source, ca, tokens, trust_domain, reader, drain, stop } = world;
    let (registry, health) = (Registry::new(), Health::new());
    let metrics = Metrics::new(&registry);
    let book = Arc::new(Acknowledgements::new());
    let publisher = Arc::new(Publisher::<Mesh>::new(book.clone(), metrics.clone()));

    let told = Arc::new(proxies::Table::default());
    let identity = spiffe_id(&trust_domain, &flags.namespace, OWN_ACCOUNT);
    let (serving, renewal) = Serving::new(ca.clone(), identity, flags.dns_names())?;
    let ads = Ads::new(publisher.clone(), metrics.clone(), stop.clone());
    let streams = ads.streams();
    let services = Services {
        ads,
        signer: Signer::new(ca.clone(), tokens, publisher.clone(), flags.certificate_lifetime(), metrics.clone()),
        status: StatusService::new(book.clone(), reader.clone(), serving.in_force(), stop.clone()),
        reports: proxies::ReportService::new(told.clone(), publisher.clone(), stop.clone()),
        proxies: proxies::StatusService::new(told, reader, stop.clone()),
    };
    let grpc = listen(flags.grpc_address).await?;
    let health_server = serve_health(flags.health_address, health.clone(), registry.clone(), stop.clone());
    let metrics_server = serve_metrics(flags.metrics_address, registry.clone(), stop.clone());
    let admin_server =
        admin::serve(flags.admin_address, routes(health.clone(), registry, book, publisher.clone()), stop.clone());
    for (name, server) in [
        ("health", tokio::spawn(health_server)),
        ("metrics", tokio::spawn(metrics_server)),
        ("admin", tokio::spawn(admin_server)),
    ] {
        tokio::spawn(async move {
            if let Ok(Err(error)) = server.await {
                tracing::error!(server = name, %error, "not served");
            }
        });
    }
    tokio::spawn(ca.follow_files(crate::identity::ca::POLL, stop.clone()));
    if let Some((listener, settings)) = webhook {
        tokio::spawn(webhook::serve(listener, serving.webhook(), settings, metrics.clone(), stop.clone()));
    }
    let grpc = tokio::spawn(grpc::serve(grpc, serving.grpc(), services, stop.clone()));
    tokio::spawn(serving.renew(renewal, stop.clone()));
    tracing::info!(address = %flags.grpc_address, trust_domain, version = leno_runtime::version(), "serving");

    let ready = health.clone();
    let on_first = move || {
        ready.set_ready(true);
        tracing::info!("everything has been read: ready");
    };
    let of = (flags.revision.clone(), flags.namespace.clone());
    tokio::spawn(spread::run(streams.clone(), publisher.snapshots(), of, metrics.clone(), signal.clone()));
    // It goes on after the signal: a proxy must not miss a change only because its stream is not among the first that end.
    let ended = metrics.ended.clone();
    let mut pipeline = tokio::spawn(pipeline::run(source, publisher, metrics, on_first, stop.clone()));
    tokio::select! {
        () = signal.cancelled() => {}
        // The source ended by itself: a replica that learns of nothing must not go on.
        _ = &mut pipeline => tracing::error!("the source has ended; leaving, to be started again"),
    }
    health.set_ready(false);
    tokio::time::sleep(drain).await;
    let left = streams.leave(spread::LEAVE_WITHIN).await;
    ended.get_or_create(&ResultLabel::new("leaving")).inc_by(left as u64);
    stop.cancel();
    match tokio::time::timeout(Duration::from_secs(5), grpc).await {
        Ok(Ok(result)) => Ok(result?),
        _ => Ok(()),
    }
}
