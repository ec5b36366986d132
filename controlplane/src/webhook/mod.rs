//! The injection webhook: pods that ask for it get their sidecar when they are created.
//!
//! [`inject`] is a pure function from a pod to a patch; here is what surrounds it: HTTPS, the review protocol of
//! `admission.k8s.io/v1`, and the settings of the mesh, read live. Only pods that ask reach the webhook (selectors of the
//! MutatingWebhookConfiguration). Bounds: 128 connections, 8 MiB a review, 10 s a request.

pub mod inject;
mod options;
mod probes;
mod review;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use leno_core::service::Engine;
use leno_crds::meshinstall::MeshInstall;
use leno_kubeutil::watch::{Key, Store};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::flags::Flags;
use crate::metrics::{Metrics, ResultLabel};
use crate::tls::accept;

pub use inject::{Decision, Mesh, inject};

/// Connections at a time.
pub const MAX_CONNECTIONS: usize = 128;
/// Most bytes of a review.
pub const MAX_REVIEW: usize = 8 * 1024 * 1024;
/// How long a request may take.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Where the webhook reads the settings of the mesh.
#[derive(Clone)]
pub struct Settings {
    installs: Store<MeshInstall>,
    install: Key,
    revision: String,
    namespace: String,
    image: Option<String>,
    envoy_image: Option<String>,
}

impl Settings {
    /// Settings of the MeshInstall that the flags name.
    pub fn new(flags: &Flags, installs: Store<MeshInstall>) -> Self {
        Settings {
            installs,
            install: Key::new("", &flags.mesh_install),
            revision: flags.revision.clone(),
            namespace: flags.namespace.clone(),
            image: flags.proxy_image.clone(),
            envoy_image: flags.envoy_image.clone(),
        }
    }

    /// The settings now; `None` as long as the MeshInstall has not been read.
    fn current(&self) -> Option<Mesh> {
        let install = self.installs.get(&self.install)?;
        let spec = &install.spec;
        // While a release changes, the operator says which one new pods get.
        let said = install.status.as_ref().and_then(|status| status.data_plane.as_ref()?.injected_version.as_deref());
        let image = |engine: Engine| spec.image_of(engine.component(), said.unwrap_or(&spec.version));
        Some(Mesh {
            image: self.image.clone().unwrap_or_else(|| image(Engine::Leno)),
            envoy_image: self.envoy_image.clone().unwrap_or_else(|| image(Engine::Envoy)),
            engine: spec.engine().into(),
            pull_policy: spec.pull_policy().as_str().to_owned(),
            revision: self.revision.clone(),
            namespace: self.namespace.clone(),
            trust_domain: spec.trust_domain().to_owned(),
            resources: spec.data_plane.as_ref().and_then(|data_plane| data_plane.resources.clone()).unwrap_or_default(),
        })
    }
}

/// Serves `/inject` until `shutdown`.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ArcSwap<ServerConfig>>,
    settings: Settings,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = accept(listener, tls, shutdown.clone());
    while let Some(Ok(connection)) = connections.next().await {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let (settings, metrics, shutdown) = (settings.clone(), metrics.clone(), shutdown.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let (settings, metrics) = (settings.clone(), metrics.clone());
                async move { Ok::<_, Infallible>(answer(request, &settings, &metrics).await) }
            });
            let builder = auto::Builder::new(TokioExecutor::new());
            let serving = builder.serve_connection(TokioIo::new(connection), service);
            tokio::select! {
                () = shutdown.cancelled() => {}
                result = serving => if let Err(error) = result {
                    tracing::debug!(%error, "a connection to the webhook ended");
                },
            }
            drop(slot);
        });
    }
}

async fn answer(request: Request<Incoming>, settings: &Settings, metrics: &Metrics) -> Response<Full<Bytes>> {
    if request.uri().path() != "/inject" || request.method() != Method::POST {
        return text(StatusCode::NOT_FOUND, "POST /inject\n");
    }
    let body = tokio::time::timeout(TIMEOUT, Limited::new(request.into_body(), MAX_REVIEW).collect());
    let Ok(Ok(body)) = body.await else {
        return text(StatusCode::BAD_REQUEST, "the review is too large or did not arrive in time\n");
    };
    let Some(mesh) = settings.current() else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "the MeshInstall has not been read yet\n");
    };
    match review::answer(&body.to_bytes(), &mesh) {
        Ok((answer, result)) => {
            metrics.injections.get_or_create(&ResultLabel::new(result)).inc();
            let mut response = Response::new(Full::new(Bytes::from(answer)));
            response
                .headers_mut()
                .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}
