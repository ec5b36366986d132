//! What people, probes and scrapers ask of an agent with its Envoy, on the same ports as of Leno's own proxy.
//!
//! | port | what |
//! |---|---|
//! | 15000, loopback | what Envoy's own admin server says, for reading only; the agent's metrics and `/status` |
//! | 15021 | `/healthz/ready`: Envoy serves, and this slot is not leaving |
//! | 15090, 15020 | `/stats/prometheus`: the standard metrics, counted by the agent |

use super::relay::Connection;
use crate::admin::{PROMETHEUS, Ports, health, ready};
use crate::slots::SlotError;
use crate::slots::sockets::Sockets;
use crate::telemetry::{Exposition, Telemetry};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use leno_runtime::http::{Answer, Health, Routes, json, serve as serve_routes, text, with_type};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, UnixStream};
use tokio_util::sync::CancellationToken;

/// Most bytes of an answer of Envoy's admin server that are read.
pub const MAX_ANSWER: usize = 256 << 20;
/// How long Envoy's admin server may take.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// What of Envoy's admin server is passed on.
const PASSED_ON: [(&str, &str); 8] = [
    ("/certs", "the certificates in use"),
    ("/clusters", "clusters and their endpoints"),
    ("/config_dump", "every resource in force"),
    ("/listeners", "listeners and their addresses"),
    ("/memory", "Envoy's memory"),
    ("/runtime", "Envoy's runtime values"),
    ("/server_info", "Envoy's version, state and flags"),
    ("/stats", "Envoy's own counters"),
];

/// What the servers look at.
#[derive(Clone)]
pub struct View {
    /// Whether we are ready.
    pub health: Health,
    /// What traffic was.
    pub telemetry: Telemetry,
    /// Where Envoy's admin server listens.
    pub envoy: PathBuf,
    /// What became of the stream with the control plane.
    pub connection: Connection,
    /// How often Envoy was started again.
    pub restarts: Arc<AtomicU64>,
}

/// Serves on copies of the sockets until `stop`. Ports for which there is no socket are left out.
///
/// # Errors
/// When a socket cannot be used.
pub fn serve(ports: &Ports, sockets: &Sockets, view: &View, stop: &CancellationToken) -> Result<(), SlotError> {
    for address in ports.addresses() {
        if !sockets.addresses().any(|held| held == address) {
            continue;
        }
        let routes = if address.port() == ports.admin {
            for_people(view)
        } else if address.port() == ports.health {
            health(&view.health)
        } else {
            metrics(Routes::new(), view)
        };
        let listener = TcpListener::from_std(sockets.copy(address)?)?;
        tokio::spawn(serve_routes(listener, routes, stop.clone()));
    }
    Ok(())
}

fn metrics(routes: Routes, view: &View) -> Routes {
    let (telemetry, restarts) = (view.telemetry.clone(), view.restarts.clone());
    routes.get("/stats/prometheus", "metrics for Prometheus", move || {
        let mut page = telemetry.render();
        let mut own = Exposition::default();
        own.family("leno_proxy_engine_restarts_total", "counter", "How often Envoy has died and was started again.");
        own.sample("leno_proxy_engine_restarts_total", &[("engine", "envoy")], restarts.load(Ordering::Relaxed));
        page.push_str(&own.finish());
        with_type(StatusCode::OK, PROMETHEUS, page)
    })
}

fn for_people(view: &View) -> Routes {
    let (status, ready_of) = (view.clone(), view.health.clone());
    let mut routes = metrics(Routes::new(), view)
        .get("/ready", "200 while the pod may get traffic", move || ready(&ready_of))
        .get("/version", "the release that this process is", || {
            text(StatusCode::OK, format!("{}\n", leno_runtime::version()))
        })
        .get("/status", "the engine, and the stream with the control plane", move || {
            json(&serde_json::json!({
                "engine": "envoy",
                "restarts": status.restarts.load(Ordering::Relaxed),
                "control_plane": *status.connection.borrow(),
            }))
        });
    for (path, help) in PASSED_ON {
        let envoy = view.envoy.clone();
        routes = routes.add(path, help, move |request| {
            let envoy = envoy.clone();
            async move { pass_on(&envoy, &request).await }
        });
    }
    routes
}

async fn pass_on<B>(envoy: &Path, request: &Request<B>) -> Answer {
    if *request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "use GET: this way Envoy is only looked at\n");
    }
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    match ask(envoy, Method::GET, path).await {
        Ok(Page { status, content_type, body }) => {
            let kind = if content_type.starts_with("application/json") { "application/json" } else { "text/plain" };
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
            with_type(status, kind, body)
        }
        Err(error) => text(StatusCode::BAD_GATEWAY, format!("Envoy does not answer: {error}\n")),
    }
}

/// An answer of Envoy's admin server.
#[derive(Debug)]
pub struct Page {
    /// HTTP status.
    pub status: u16,
    /// What the body is.
    pub content_type: String,
    /// The body.
    pub body: Bytes,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The socket.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The protocol.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// The request or the answer.
    #[error("{0}")]
    Other(String),
}

/// Asks Envoy's admin server, for at most ten seconds.
///
/// # Errors
/// When it does not answer.
pub async fn ask(envoy: &Path, method: Method, path: &str) -> Result<Page, AskError> {
    let asking = async {
        let stream = UnixStream::connect(envoy).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header(header::HOST, "envoy");
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| AskError::Other(error.to_string()))?;
        let answer = sender.send_request(request).await?;
        let status = answer.status().as_u16();
        let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let content_type = kind.unwrap_or_default().to_owned();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| AskError::Other(error.to_string()))?.to_bytes();
        connection.abort();
        Ok(Page { status, content_type, body })
    };
    let late = || AskError::Other(format!("no answer within {ASK_LIMIT:?}"));
    tokio::time::timeout(ASK_LIMIT, asking).await.unwrap_or_else(|_| Err(late()))
}
