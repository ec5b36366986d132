//! Serving HTTP/1.1 and HTTP/2 in clear text, and ending well: on SIGTERM connections are finished, not cut.

use crate::{Failure, Listen};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpListener, signal::unix};

/// How long requests may still run after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

/// An answer of any role.
pub(crate) type Answer = Response<Full<Bytes>>;

/// Returns when the process was asked to end.
pub(crate) async fn terminated() {
    let (Ok(mut term), Ok(mut int)) =
        (unix::signal(unix::SignalKind::terminate()), unix::signal(unix::SignalKind::interrupt()))
    else {
        return;
    };
    tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
}

/// Serves `handler` until SIGTERM; every answer carries `x-version`.
pub(crate) async fn serve<H, F>(listen: Listen, handler: H) -> Result<(), Failure>
where
    H: Fn(Request<Incoming>, SocketAddr) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Answer, Failure>> + Send + 'static,
{
    let listener = TcpListener::bind(listen.listen).await.map_err(|error| format!("{}: {error}", listen.listen))?;
    let version = HeaderValue::from_str(&listen.version)?;
    let handler = Arc::new(handler);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    let graceful = GracefulShutdown::new();
    let mut end = std::pin::pin!(terminated());
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => { eprintln!("accept: {error}"); continue; }
            },
            () = &mut end => break,
        };
        stream.set_nodelay(true).ok();
        let (handler, version) = (handler.clone(), version.clone());
        let service = service_fn(move |request| {
            let answer = handler(request, peer);
            let version = version.clone();
            async move {
                let mut answer = answer.await.unwrap_or_else(|error| failed(&error));
                answer.headers_mut().insert("x-version", version);
                Ok::<_, std::convert::Infallible>(answer)
            }
        });
        let connection =
            graceful.watch(builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned());
        tokio::spawn(async move { connection.await.ok() });
    }
    drop(listener);
    tokio::time::timeout(GRACE, graceful.shutdown()).await.ok();
    Ok(())
}

fn failed(error: &Failure) -> Answer {
    let mut answer = Response::new(Full::new(format!("{error}\n").into()));
    *answer.status_mut() = StatusCode::BAD_GATEWAY;
    answer
}

/// The headers that a service passes on so that routing by user and traces work across hops.
pub(crate) fn passed_on(headers: &HeaderMap) -> HeaderMap {
    ["x-user", "x-request-id", "traceparent", "tracestate", "b3"]
        .into_iter()
        .filter_map(|name| Some((http::HeaderName::from_static(name), headers.get(name)?.clone())))
        .collect()
}

/// An answer in JSON.
pub(crate) fn json(value: &serde_json::Value) -> Answer {
    let mut answer = Response::new(Full::new(format!("{value}\n").into()));
    answer.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// GETs a URL and gives the answer's `x-version` and its JSON body, of at most 1 MiB.
pub(crate) async fn get_json(
    client: &crate::net::HttpClient,
    url: &str,
    headers: HeaderMap,
) -> Result<(String, serde_json::Value), Failure> {
    use http_body_util::{BodyExt, Limited};
    let mut request = Request::get(url).body(Full::default())?;
    *request.headers_mut() = headers;
    let answer = tokio::time::timeout(GRACE, client.request(request))
        .await
        .map_err(|_| format!("{url}: no answer within {GRACE:?}"))??;
    let status = answer.status();
    let version = answer.headers().get("x-version").and_then(|v| v.to_str().ok()).unwrap_or("unknown").to_owned();
    let body = Limited::new(answer.into_body(), 1 << 20).collect().await?.to_bytes();
    if !status.is_success() {
        return Err(format!("{url}: {status}: {}", String::from_utf8_lossy(&body)).into());
    }
    Ok((version, serde_json::from_slice(&body)?))
}
