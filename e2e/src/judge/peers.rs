//! The pods of a case: servers that answer with what they saw, in plain text or by mutual TLS, whichever comes.

use super::{control_plane::Credentials, space::Space};
use anyhow::{Context, Result};
use http::{Request, Response};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use leno_runtime::tls::{ClientCertificates, peer_identity, server_config};
use serde_json::{Map, Value, json};
use std::{io::Cursor, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpStream,
    task::JoinHandle,
};

/// A client that is silent for so long waits for the server to speak first.
const SILENCE: Duration = Duration::from_millis(300);

/// One address of one pod.
pub(super) struct Peer {
    pub(super) space: Space,
    pub(super) address: SocketAddr,
    /// `namespace/name`.
    pub(super) pod: String,
    /// With them it also speaks TLS, as a sidecar does.
    pub(super) credentials: Option<Arc<Credentials>>,
}

impl Peer {
    /// Serves until the task ends.
    pub(super) fn serve(self) -> Result<JoinHandle<()>> {
        let listener = self.space.listen(self.address)?;
        let acceptor = match &self.credentials {
            None => None,
            Some(own) => {
                let mut config = server_config(&own.roots, own.keypair(), ClientCertificates::Required)?;
                config.alpn_protocols = [&b"leno-h2"[..], b"leno-http/1.1", b"leno"].map(<[u8]>::to_vec).to_vec();
                Some(tokio_rustls::TlsAcceptor::from(Arc::new(config)))
            }
        };
        let seen = json!({"pod": self.pod, "address": self.address.to_string()});
        Ok(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection(stream, acceptor.clone(), seen.clone()));
            }
        }))
    }
}

async fn connection(stream: TcpStream, acceptor: Option<tokio_rustls::TlsAcceptor>, mut seen: Value) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    let peeked = tokio::time::timeout(SILENCE, stream.peek(&mut first)).await;
    let tls = matches!(peeked, Ok(Ok(1))) && first[0] == 0x16;
    match acceptor.filter(|_| tls) {
        Some(acceptor) => {
            let stream = acceptor.accept(stream).await?;
            let (_, connection) = stream.get_ref();
            seen["mutual_tls"] = true.into();
            seen["client"] = peer_identity(connection.peer_certificates())?.into();
            seen["sni"] = connection.server_name().into();
            seen["alpn"] = connection.alpn_protocol().map(String::from_utf8_lossy).into();
            answer(stream, seen).await
        }
        None => {
            seen["mutual_tls"] = false.into();
            answer(stream, seen).await
        }
    }
}

/// HTTP where it looks like HTTP; else lines, each answered with what was seen. The random bytes of a TLS client's
/// first message may spell anything, so the first byte must be that of a method.
async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, seen: Value) -> Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut start = vec![0; 64];
    let read = match tokio::time::timeout(SILENCE, reader.read(&mut start)).await {
        Ok(read) => read?,
        Err(_) => {
            writer.write_all(format!("{seen}\n").as_bytes()).await?;
            return lines(reader, writer, seen).await;
        }
    };
    start.truncate(read);
    let reader = Cursor::new(start.clone()).chain(reader);
    let text = String::from_utf8_lossy(&start);
    let method = start.first().is_some_and(u8::is_ascii_uppercase);
    if !method || !(text.contains(" HTTP/1.") || text.contains(" /") || text.starts_with("PRI * ")) {
        return lines(reader, writer, seen).await;
    }
    let stream = TokioIo::new(tokio::io::join(reader, writer));
    let service = service_fn(move |request: Request<Incoming>| {
        let seen = seen.clone();
        async move { http(&request, seen) }
    });
    let served = auto::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await;
    served.map_err(|error| anyhow::anyhow!("{error}"))
}

fn http(request: &Request<Incoming>, mut seen: Value) -> http::Result<Response<Full<Bytes>>> {
    let mut headers = Map::new();
    for (name, value) in request.headers() {
        headers.insert(name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned().into());
    }
    let authority = request.uri().authority().map(ToString::to_string);
    let host = headers.get("host").and_then(Value::as_str).map(str::to_owned);
    seen["authority"] = authority.or(host).into();
    seen["method"] = request.method().as_str().into();
    seen["path"] = request.uri().path_and_query().map(|path| path.as_str()).into();
    seen["version"] = format!("{:?}", request.version()).into();
    seen["headers"] = Value::Object(headers);
    let status = request.headers().get("x-want-status").and_then(|status| status.to_str().ok());
    Response::builder()
        .status(status.unwrap_or("200"))
        .header("x-from-app", "yes")
        .body(Full::new(seen.to_string().into()))
}

async fn lines(reader: impl AsyncRead + Unpin, mut writer: impl AsyncWrite + Unpin, seen: Value) -> Result<()> {
    // Not all of them are text: the first message of TLS has a line, too.
    let mut lines = BufReader::new(reader).split(b'\n');
    while let Some(line) = lines.next_segment().await.context("reading a line")? {
        let mut seen = seen.clone();
        seen["line"] = String::from_utf8_lossy(&line).into();
        writer.write_all(format!("{seen}\n").as_bytes()).await?;
    }
    Ok(())
}
