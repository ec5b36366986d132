//! A small HTTP/1.1 server for what operators of the process ask: is it alive, is it ready, how is it doing.
//!
//! Bounds: 64 connections at a time (of more the oldest ends), 10 s for a request head, 8 KiB of head, no
//! request bodies read. It serves probes and scrapers, never traffic.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

use crate::metrics::{CONTENT_TYPE, Registry};

/// Connections served at a time by one server of this module.
pub const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send a request head.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// What a handler answers.
pub type Answer = Response<Full<Bytes>>;
type Handler =
    Arc<dyn Fn(Request<hyper::body::Incoming>) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>;

/// A server could not listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; is another process there?")]
pub struct ListenError {
    /// The wanted address.
    pub address: SocketAddr,
    /// What the kernel said.
    pub source: std::io::Error,
}

/// Routes by exact path.
#[derive(Clone, Default)]
pub struct Routes {
    by_path: BTreeMap<String, (String, Handler)>,
    otherwise: Option<Arc<dyn Fn() -> Answer + Send + Sync>>,
}

impl Routes {
    /// No routes; `/` lists those that are added.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a path with a line of help and a handler.
    pub fn add<F, Fut>(mut self, path: &str, help: &str, handler: F) -> Self
    where
        F: Fn(Request<hyper::body::Incoming>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Answer> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |request| Box::pin(handler(request)));
        self.by_path.insert(path.to_owned(), (help.to_owned(), handler));
        self
    }

    /// Adds a path that answers GET with what `read` returns.
    pub fn get(self, path: &str, help: &str, read: impl Fn() -> Answer + Send + Sync + 'static) -> Self {
        let read = Arc::new(read);
        self.add(path, help, move |request| {
            let read = read.clone();
            async move {
                match *request.method() {
                    Method::GET | Method::HEAD => read(),
                    _ => text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n"),
                }
            }
        })
    }

    /// Answers every path that is not there with what `read` returns.
    pub fn otherwise(self, read: impl Fn() -> Answer + Send + Sync + 'static) -> Self {
        Self { otherwise: Some(Arc::new(read)), ..self }
    }

    /// Paths with their lines of help, sorted.
    pub fn help(&self) -> impl Iterator<Item = (&str, &str)> {
        self.by_path.iter().map(|(path, (help, _))| (path.as_str(), help.as_str()))
    }

    async fn answer(&self, request: Request<hyper::body::Incoming>) -> Answer {
        let path = request.uri().path();
        match self.by_path.get(path) {
            Some((_, handler)) => handler(request).await,
            None if path == "/" || path == "/help" => {
                let lines: Vec<String> =
                    self.by_path.iter().map(|(path, (help, _))| format!("{path:<24} {help}\n")).collect();
                text(StatusCode::OK, lines.concat())
            }
            None => match &self.otherwise {
                Some(read) => read(),
                None => text(StatusCode::NOT_FOUND, "no such path; GET / lists them\n"),
            },
        }
    }
}

/// A plain text answer.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    with_type(status, "text/plain; charset=UTF-8", body)
}

/// A JSON answer, indented for people. What cannot be written is an answer 500.
pub fn json(value: &impl serde::Serialize) -> Answer {
    match serde_json::to_vec_pretty(value) {
        Ok(body) => with_type(StatusCode::OK, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot be written as JSON: {error}\n")),
    }
}

/// An answer with a content type.
pub fn with_type(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

/// Whether the process is alive and ready. Cheap to clone; clones share the state. Starts alive and not ready.
#[derive(Clone)]
pub struct Health {
    ready: Arc<AtomicBool>,
    checks: Arc<Mutex<BTreeMap<String, LiveCheck>>>,
}

type LiveCheck = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

impl Health {
    /// Alive, not ready.
    pub fn new() -> Self {
        Health { ready: Arc::new(AtomicBool::new(false)), checks: Arc::default() }
    }

    /// Says whether the process may get work.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    /// Whether [`Health::set_ready`] said so.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Adds a check that must pass for the process to count as alive; it must not block.
    pub fn live_check(&self, name: &str, check: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), Arc::new(check));
    }

    fn live(&self) -> Answer {
        let checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let failed: Vec<String> = checks
            .iter()
            .filter_map(|(name, check)| check().err().map(|reason| format!("{name}: {reason}\n")))
            .collect();
        if failed.is_empty() {
            text(StatusCode::OK, "ok\n")
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, failed.concat())
        }
    }

    fn readiness(&self) -> Answer {
        if self.is_ready() {
            text(StatusCode::OK, "ok\n")
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

/// Serves `/healthz/live`, `/healthz/ready` and `/metrics` on `address` until `shutdown`.
///
/// # Errors
///
/// [`ListenError`], when the address is taken.
pub async fn serve_health(
    address: SocketAddr,
    health: Health,
    registry: Registry,
    shutdown: CancellationToken,
) -> Result<(), ListenError> {
    let listener = listen(address).await?;
    serve(listener, health_routes(health, registry), shutdown).await;
    Ok(())
}

/// The routes of [`serve_health`], for a server that has more.
pub fn health_routes(health: Health, registry: Registry) -> Routes {
    let live = health.clone();
    Routes::new()
        .get("/healthz/live", "200 while the process is alive", move || live.live())
        .get("/healthz/ready", "200 while the process may get work", move || health.readiness())
        .get("/metrics", "metrics for Prometheus", move || with_type(StatusCode::OK, CONTENT_TYPE, registry.encode()))
}

/// Serves only `/metrics` on `address` until `shutdown`, for ports that others may reach.
///
/// # Errors
///
/// [`ListenError`], when the address is taken.
pub async fn serve_metrics(
    address: SocketAddr,
    registry: Registry,
    shutdown: CancellationToken,
) -> Result<(), ListenError> {
    let routes = Routes::new()
        .get("/metrics", "metrics for Prometheus", move || with_type(StatusCode::OK, CONTENT_TYPE, registry.encode()));
    serve(listen(address).await?, routes, shutdown).await;
    Ok(())
}

/// Listens on `address`.
///
/// # Errors
///
/// [`ListenError`], when the address is taken.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| ListenError { address, source })
}

/// Serves `routes` until `shutdown`; connections that are open then are dropped.
pub async fn serve(listener: impl Into<Listener>, routes: Routes, shutdown: CancellationToken) {
    let listener = listener.into();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut open: VecDeque<CancellationToken> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = accept(&listener) => accepted,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                // Out of file descriptors, most likely: spinning would make it worse.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Whoever holds connections open and asks nothing keeps nobody else out.
        open.retain(|ended| !ended.is_cancelled());
        if slots.available_permits() == 0
            && let Some(oldest) = open.pop_front()
        {
            oldest.cancel();
        }
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let routes = routes.clone();
        let shutdown = shutdown.child_token();
        open.push_back(shutdown.clone());
        tokio::spawn(async move {
            // Whatever ends it, its place is known to be free.
            let _ended = shutdown.clone().drop_guard();
            let service = service_fn(|request| {
                let routes = &routes;
                async move { Ok::<_, Infallible>(routes.answer(request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(8 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                () = shutdown.cancelled() => {}
                result = connection => if let Err(error) = result {
                    tracing::debug!(%error, "connection ended");
                },
            }
            drop(slot);
        });
    }
}

/// Where a server of ours is asked.
#[derive(Debug)]
pub enum Listener {
    /// A port.
    Tcp(TcpListener),
    /// A socket in the file system, or an abstract one.
    Unix(UnixListener),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

async fn accept(listener: &Listener) -> std::io::Result<Either<TcpStream, UnixStream>> {
    Ok(match listener {
        Listener::Tcp(listener) => Either::Left(listener.accept().await?.0),
        Listener::Unix(listener) => Either::Right(listener.accept().await?.0),
    })
}
