//! Answers with what it saw of a request. `/status/N` answers with that status, `/delay/MS` late, `/bytes/N` with N bytes,
//! `/flaky/KEY/N` with 503 the first N times and then with 200; `Upgrade: echo` and WebSocket-like upgrades give back every byte.

use crate::{
    Failure, Listen,
    server::{self, Answer},
};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

/// The largest answer that `/bytes/N` gives, and the largest body that is echoed.
const MOST: usize = 16 << 20;
/// How many keys of `/flaky` are remembered.
const KEYS: usize = 4096;

/// How often each key of `/flaky` was asked for.
type Asked = Arc<Mutex<BTreeMap<String, u64>>>;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    listen: Listen,
}

pub(crate) async fn serve(args: Args) -> Result<(), Failure> {
    let host = std::env::var("HOSTNAME").unwrap_or_default();
    let version = args.listen.version.clone();
    let asked = Asked::default();
    server::serve(args.listen, move |request, peer| answer(request, peer, host.clone(), version.clone(), asked.clone()))
        .await
}

async fn answer(
    mut request: Request<Incoming>,
    peer: SocketAddr,
    pod: String,
    version: String,
    asked: Asked,
) -> Result<Answer, Failure> {
    if let Some(protocol) = request.headers().get(header::UPGRADE).cloned() {
        return Ok(upgraded(&mut request, protocol));
    }
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, MOST).collect().await?;
    let trailers = body.trailers().cloned();
    let body = body.to_bytes();
    let mut path = parts.uri.path().trim_start_matches('/').split('/');
    match (path.next(), path.next()) {
        (Some("status"), Some(status)) => {
            let mut answer = Response::new(Full::default());
            *answer.status_mut() = StatusCode::from_bytes(status.as_bytes())?;
            return Ok(answer);
        }
        (Some("bytes"), Some(count)) => {
            return Ok(Response::new(Full::new(Bytes::from(vec![b'x'; count.parse::<usize>()?.min(MOST)]))));
        }
        (Some("delay"), Some(milliseconds)) => {
            tokio::time::sleep(Duration::from_millis(milliseconds.parse::<u64>()?.min(600_000))).await;
        }
        (Some("flaky"), Some(key)) => {
            let failures: u64 = path.next().unwrap_or("1").parse()?;
            let mut asked = asked.lock().map_err(|_| "the keys of /flaky are lost")?;
            if asked.len() < KEYS || asked.contains_key(key) {
                let count = asked.entry(key.to_owned()).or_default();
                *count += 1;
                if *count <= failures {
                    let mut answer = Response::new(Full::from(format!("number {count} of {failures} to fail\n")));
                    *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                    return Ok(answer);
                }
            }
        }
        _ => {}
    }
    let text = |headers: &http::HeaderMap| {
        let mut map = Map::new();
        for name in headers.keys() {
            let values = headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes()));
            map.insert(name.to_string(), Value::String(values.collect::<Vec<_>>().join(", ")));
        }
        map
    };
    Ok(server::json(&json!({
        "pod": pod,
        "version": version,
        "method": parts.method.as_str(),
        "path": parts.uri.path_and_query().map(|p| p.as_str()),
        "authority": parts.uri.authority().map(|a| a.as_str()),
        "protocol": format!("{:?}", parts.version),
        "headers": text(&parts.headers),
        "trailers": trailers.as_ref().map(text),
        "body_bytes": body.len(),
        "peer": peer.to_string(),
    })))
}

fn upgraded(request: &mut Request<Incoming>, protocol: HeaderValue) -> Answer {
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await?);
        let (mut reader, mut writer) = tokio::io::split(&mut stream);
        tokio::io::copy(&mut reader, &mut writer).await?;
        Ok::<_, Failure>(())
    });
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    answer.headers_mut().insert(header::UPGRADE, protocol);
    answer
}
