//! One request, with all of its answer in JSON: what `curl -i` is on a machine that has it.

use crate::{Failure, net};
use bytes::Bytes;
use clap::ValueEnum;
use http::{HeaderName, HeaderValue, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The largest answer that is taken.
const MOST: usize = 16 << 20;
/// How many bytes go through an upgraded connection in each direction.
const UPGRADED: usize = 256 * 1024;

/// Example: `leno-demo ask http://echo/headers -H x-user=tester`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to ask, e.g. http://echo/
    url: String,
    #[arg(long, short = 'X', default_value = "GET")]
    method: String,
    /// `NAME=VALUE`; may be repeated.
    #[arg(long = "header", short = 'H')]
    headers: Vec<String>,
    /// Body to send.
    #[arg(long, default_value = "")]
    body: String,
    /// HTTP/2 with prior knowledge.
    #[arg(long)]
    http2: bool,
    /// Asks for a WebSocket, sends bytes through it in both directions, and compares them.
    #[arg(long)]
    upgrade: bool,
    /// What to print.
    #[arg(long, value_enum, default_value = "all")]
    print: Print,
    /// Seconds to wait for the answer.
    #[arg(long, default_value_t = 10.0)]
    patience: f64,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Print {
    /// `{"status": …, "headers": {…}, "body": …}`; a body that is JSON as such.
    All,
    /// The body as it is.
    Body,
}

/// Sends it and prints the answer; fails only without one.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let patience = Duration::from_secs_f64(args.patience.clamp(0.01, 600.0));
    let answer = if args.upgrade {
        tokio::time::timeout(patience, upgrade(&args)).await
    } else {
        tokio::time::timeout(patience, ask(&args)).await
    };
    println!("{}", answer.map_err(|_| format!("{}: no answer within {patience:?}", args.url))??);
    Ok(())
}

fn request(args: &Args) -> Result<Request<Full<Bytes>>, Failure> {
    let mut request =
        Request::builder().method(args.method.as_str()).uri(&args.url).body(Full::from(args.body.clone()))?;
    for header in &args.headers {
        let (name, value) = header.split_once('=').ok_or_else(|| format!("--header {header} is not NAME=VALUE"))?;
        request.headers_mut().append(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(value)?);
    }
    Ok(request)
}

async fn ask(args: &Args) -> Result<String, Failure> {
    let answer = net::client(args.http2, false)?.request(request(args)?).await.map_err(|error| story(&error))?;
    let (parts, body) = answer.into_parts();
    let body = Limited::new(body, MOST).collect().await?;
    let trailers = body.trailers().map(map);
    let body = body.to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    if args.print == Print::Body {
        return Ok(text);
    }
    let body = serde_json::from_slice(&body).unwrap_or(Value::String(text));
    let version = format!("{:?}", parts.version);
    let headers = map(&parts.headers);
    Ok(json!({"status": parts.status.as_u16(), "version": version, "headers": headers, "body": body, "trailers": trailers}).to_string())
}

fn map(headers: &http::HeaderMap) -> Map<String, Value> {
    let values =
        |name| headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    headers.keys().map(|name| (name.to_string(), Value::String(values(name).collect::<Vec<_>>().join(", ")))).collect()
}

fn story(error: &(dyn std::error::Error + 'static)) -> String {
    let deeper = error.source().map(|cause| format!(": {}", story(cause))).unwrap_or_default();
    format!("{error}{deeper}")
}

async fn upgrade(args: &Args) -> Result<String, Failure> {
    let mut request = request(args)?;
    let authority = request.uri().authority().cloned().ok_or("the address has no host")?;
    let stream = net::Connector::new()?.connect(authority.host(), authority.port_u16().unwrap_or(80)).await?;
    let path = request.uri().path_and_query().map_or("/".to_owned(), ToString::to_string);
    *request.uri_mut() = path.parse()?;
    for (name, value) in [
        (header::HOST, authority.as_str()),
        (header::CONNECTION, "Upgrade"),
        (header::UPGRADE, "websocket"),
        (header::SEC_WEBSOCKET_VERSION, "13"),
        (header::SEC_WEBSOCKET_KEY, "bGVubyBkZW1vIG5vbmNlIQ=="),
    ] {
        request.headers_mut().insert(name, HeaderValue::from_str(value)?);
    }
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());
    let answer = sender.send_request(request).await?;
    let (status, headers) = (answer.status().as_u16(), map(answer.headers()));
    if status != 101 {
        return Ok(json!({"status": status, "headers": headers}).to_string());
    }
    let (mut reader, mut writer) = tokio::io::split(TokioIo::new(hyper::upgrade::on(answer).await?));
    let sent: Vec<u8> = (0..UPGRADED).map(|i| (i % 251) as u8).collect();
    let mut back = vec![0; UPGRADED];
    let (written, read) = tokio::join!(writer.write_all(&sent), reader.read_exact(&mut back));
    written?;
    read?;
    Ok(json!({"status": status, "headers": headers, "echoed": sent == back, "bytes": back.len()}).to_string())
}
