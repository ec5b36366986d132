//! Sends the requests of a case, and compares what became of them with what must.

use super::{
    case::{Case, Pod},
    control_plane::Credentials,
    requests::{Expect, Protocol, RequestCase},
    space::Space,
};
use anyhow::{Context, Result, bail, ensure};
use http::{Request, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use leno_runtime::tls::{ExpectedPeer, client_config};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};

const PATIENCE: Duration = Duration::from_secs(5);

/// Who can send.
pub(super) struct Senders<'a> {
    pub(super) case: &'a Case,
    /// Where the judged pod's app is.
    pub(super) own: &'a Space,
    /// Where all others are.
    pub(super) others: &'a Space,
    /// What pods show, by `namespace/name`.
    pub(super) credentials: &'a BTreeMap<String, Arc<Credentials>>,
}

/// An answer: HTTP status and headers, and what the pod saw.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    seen: Value,
}

impl Senders<'_> {
    /// Sends a request as often as it says, and fails with the first thing that is not as expected.
    pub(super) async fn check(&self, request: &RequestCase) -> Result<()> {
        let mut answered = BTreeSet::new();
        for number in 1..=request.times.max(1) {
            let outcome = tokio::time::timeout(PATIENCE, self.send(request)).await;
            let outcome = outcome.unwrap_or_else(|_| bail!("no answer within {PATIENCE:?}"));
            match (outcome, request.expect.refused) {
                (Err(_), true) => {}
                (Ok(answer), true) => bail!("it must be refused, and was answered: {} {}", answer.status, answer.seen),
                (Err(error), false) => return Err(error.context(format!("number {number}"))),
                (Ok(answer), false) => {
                    answered.extend(answer.seen["pod"].as_str().map(str::to_owned));
                    compare(&request.expect, &answer)
                        .with_context(|| format!("number {number}: {} {}", answer.status, answer.seen))?;
                }
            }
        }
        let wanted: BTreeSet<String> = request.expect.pods.iter().cloned().collect();
        ensure!(wanted.is_empty() || wanted == answered, "pods {wanted:?} must answer, and {answered:?} did");
        Ok(())
    }

    async fn send(&self, request: &RequestCase) -> Result<Answer> {
        let Some(from) = &request.from else {
            let stream = self.own.connect(None, request.to).await?;
            return exchange(stream, request).await;
        };
        let pod: &Pod = self.case.pods.get(from).with_context(|| format!("there is no pod {from}"))?;
        let source = pod.addresses.iter().find(|address| address.is_ipv4() == request.to.is_ipv4()).copied();
        let stream = self.others.connect(source, request.to).await?;
        if !request.mutual_tls {
            return exchange(stream, request).await;
        }
        let own = self.credentials.get(from).with_context(|| format!("{from} has no certificate: it is not meshed"))?;
        let mut config = client_config(&own.roots, Some(own.keypair()), ExpectedPeer::AnyTrusted)?;
        let alpn: &[u8] = match request.protocol {
            Protocol::Http1 => b"leno-http/1.1",
            Protocol::Http2 => b"leno-h2",
            Protocol::Tcp | Protocol::ServerFirst | Protocol::Tls => b"leno",
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        let name = ServerName::try_from("judge.leno.test")?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.context("TLS")?;
        exchange(stream, request).await
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: &RequestCase,
) -> Result<Answer> {
    let http2 = match request.protocol {
        Protocol::Http1 => false,
        Protocol::Http2 => true,
        Protocol::Tcp => return line(stream, b"ping\n").await,
        Protocol::ServerFirst => return line(stream, b"").await,
        Protocol::Tls => {
            let hello = client_hello(request.host.as_deref().context("TLS needs a host, as server name")?)?;
            return line(stream, &hello).await;
        }
    };
    let (host, path) = (request.host.clone().unwrap_or(request.to.to_string()), request.path.as_deref().unwrap_or("/"));
    let mut head = Request::builder().method(request.method.as_deref().unwrap_or("GET"));
    head = if http2 {
        head.version(Version::HTTP_2).uri(format!("http://{host}{path}"))
    } else {
        head.uri(path).header("host", &host)
    };
    for (name, value) in &request.headers {
        head = head.header(name, value);
    }
    let head = head.body(Full::<Bytes>::default())?;
    let io = TokioIo::new(stream);
    let answer = if http2 {
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        sender.send_request(head).await?
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
        tokio::spawn(connection.with_upgrades());
        sender.send_request(head).await?
    };
    let (parts, body) = answer.into_parts();
    let body = body.collect().await?.to_bytes();
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = parts.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let seen = serde_json::from_slice(&body).unwrap_or_else(|_| json!({"body": String::from_utf8_lossy(&body)}));
    Ok(Answer { status: parts.status.as_u16(), headers, seen })
}

/// The first message of a TLS client that asks for a server name, and the end of a line, so that a server of lines
/// answers.
fn client_hello(server_name: &str) -> Result<Vec<u8>> {
    // Nobody answers it, so there is nobody to trust.
    let roots = rustls::RootCertStore::empty();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(server_name.to_owned())?;
    let mut client = rustls::ClientConnection::new(Arc::new(config), name)?;
    let mut hello = Vec::new();
    client.write_tls(&mut hello)?;
    hello.push(b'\n');
    Ok(hello)
}

async fn line(stream: impl AsyncRead + AsyncWrite + Unpin, first: &[u8]) -> Result<Answer> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.write_all(first).await?;
    stream.read_line(&mut line).await?;
    ensure!(!line.is_empty(), "the connection ended without a byte");
    Ok(Answer {
        status: 200,
        headers: BTreeMap::new(),
        seen: serde_json::from_str(&line).with_context(|| line.clone())?,
    })
}

fn compare(expect: &Expect, answer: &Answer) -> Result<()> {
    let status = expect.status.unwrap_or(200);
    ensure!(answer.status == status, "the status must be {status}");
    if let Some(mutual) = expect.mutual_tls {
        ensure!(answer.seen["mutual_tls"] == mutual, "mutual TLS on the last hop must be {mutual}");
    }
    for (what, wanted) in [("path", &expect.path), ("authority", &expect.authority), ("version", &expect.version)] {
        if let Some(wanted) = wanted {
            ensure!(answer.seen[what] == wanted.as_str(), "the pod must see {what} {wanted}");
        }
    }
    for (name, wanted) in &expect.headers {
        let found = answer.seen["headers"][name].as_str();
        ensure!(found == wanted.as_deref(), "the pod must see header {name}: {wanted:?}, and saw {found:?}");
    }
    for (name, wanted) in &expect.response_headers {
        let found = answer.headers.get(name).map(String::as_str);
        ensure!(found == wanted.as_deref(), "the answer must have header {name}: {wanted:?}, and had {found:?}");
    }
    Ok(())
}
