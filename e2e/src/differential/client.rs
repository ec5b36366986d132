//! Sends the requests of a case, and tells what came back, a fact a line.

use super::{
    case::{Request, Speaks},
    recorder::{field_lines, fields},
    reply::{ID, REPLY, header},
    tls::Pki,
    wire::{Wire, summary, text, undone},
};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use rustls_pki_types::ServerName;
use std::{
    fmt::Write as _,
    future::{Future as _, poll_fn},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(12);
/// How long a raw connection is quiet before it counts as finished.
const QUIET: Duration = Duration::from_millis(400);
/// How long a connection that was announced to close may stay open.
const CLOSING: Duration = Duration::from_secs(5);

/// What came back.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// A fact a line.
    pub lines: Vec<String>,
    /// The status of the (last) answer.
    pub status: Option<u16>,
}

impl Seen {
    fn say(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }
}

/// A client with the connection of the request before.
pub struct Client {
    /// Where the proxy listens.
    pub proxy: SocketAddr,
    /// The certificates to show.
    pub pki: Arc<Pki>,
    open: Option<Open>,
}

enum Open {
    One(Wire),
    Two(h2::client::SendRequest<Bytes>),
}

impl Client {
    /// Of a proxy.
    pub fn new(proxy: SocketAddr, pki: Arc<Pki>) -> Self {
        Self { proxy, pki, open: None }
    }

    /// Sends a request; whatever happens is told.
    pub async fn send(&mut self, request: &Request, id: &str) -> Seen {
        let mut seen = Seen::default();
        match timeout(PATIENCE, self.exchange(request, id, &mut seen)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let io = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
                seen.say(match io {
                    Some(std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe) => {
                        "ended: reset".to_owned()
                    }
                    Some(kind) => format!("ended: {kind:?}"),
                    None => format!("ended: {error}"),
                });
            }
            Err(_) => seen.say("ended: no answer in time"),
        }
        seen
    }

    async fn exchange(&mut self, request: &Request, id: &str, seen: &mut Seen) -> Result<()> {
        let open = match self.open.take().filter(|_| request.keep) {
            Some(open) => open,
            None => self.connect(request, seen).await?,
        };
        match open {
            Open::Two(sender) => {
                http2(&sender, request, id, seen).await?;
                self.open = Some(Open::Two(sender));
            }
            Open::One(mut wire) => {
                if request.protocol == Speaks::Tcp {
                    return tcp(&mut wire, request, seen).await;
                }
                if let Some(raw) = &request.raw {
                    return http1_raw(&mut wire, raw, request, id, seen).await;
                }
                if http1(&mut wire, request, id, seen).await? {
                    self.open = Some(Open::One(wire));
                }
            }
        }
        Ok(())
    }

    async fn connect(&self, request: &Request, seen: &mut Seen) -> Result<Open> {
        let socket = TcpSocket::new_v4()?;
        if let Some(source) = request.source {
            socket.bind((source, 0).into())?;
        }
        let stream: TcpStream = socket.connect(self.proxy).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &request.tls else {
            return match request.protocol {
                Speaks::H2 => Ok(Open::Two(handshake(stream).await?)),
                _ => Ok(Open::One(Wire::new(stream))),
            };
        };
        let name = if tls.sni.is_empty() { "server.example" } else { &tls.sni };
        let connector = tokio_rustls::TlsConnector::from(self.pki.client(tls)?);
        let connected = connector.connect(ServerName::try_from(name.to_owned())?, stream).await;
        let Ok(stream) = connected else { bail!("TLS handshake") };
        let (_, session) = stream.get_ref();
        seen.say(format!("tls: {:?}", session.protocol_version().map(|version| version.as_str())));
        seen.say(format!("alpn: {:?}", session.alpn_protocol().map(text)));
        let leaf = session.peer_certificates().and_then(<[_]>::first).context("no certificate")?;
        for known in ["server", "second", "backend"] {
            let file = self.pki.folder.join(format!("{known}.pem"));
            use rustls_pki_types::pem::PemObject;
            if rustls_pki_types::CertificateDer::from_pem_file(file)? == *leaf {
                seen.say(format!("certificate: {known}"));
            }
        }
        match request.protocol {
            Speaks::H2 => Ok(Open::Two(handshake(stream).await?)),
            _ => Ok(Open::One(Wire::new(stream))),
        }
    }
}

async fn handshake(stream: impl super::wire::Stream + 'static) -> Result<h2::client::SendRequest<Bytes>> {
    let (sender, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(timeout(Duration::from_secs(60), connection));
    Ok(sender)
}

fn content(request: &Request) -> Vec<u8> {
    match (&request.body, request.size) {
        (Some(body), _) => body.clone().into_bytes(),
        (None, Some(size)) => vec![b'y'; size],
        (None, None) => Vec::new(),
    }
}

fn replies(request: &Request) -> Result<Option<String>> {
    Ok(if request.replies.is_empty() { None } else { Some(serde_json::to_string(&request.replies)?) })
}

/// Sends one, reads the answer; whether the connection can be used again.
async fn http1(wire: &mut Wire, request: &Request, id: &str, seen: &mut Seen) -> Result<bool> {
    let mut head = format!("{} {} HTTP/{}\r\n", request.method, request.path, request.version);
    if !request.host.is_empty() {
        write!(head, "Host: {}\r\n", request.host)?;
    }
    write!(head, "{ID}: {id}\r\n")?;
    if let Some(replies) = replies(request)? {
        write!(head, "{REPLY}: {replies}\r\n")?;
    }
    for line in &request.headers {
        write!(head, "{line}\r\n")?;
    }
    let body = content(request);
    if request.chunked {
        head.push_str("transfer-encoding: chunked\r\n");
    } else if request.body.is_some() || request.size.is_some() {
        write!(head, "content-length: {}\r\n", body.len())?;
    }
    head.push_str("\r\n");
    let mut rest = Vec::new();
    if request.chunked {
        if !body.is_empty() {
            rest.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
            rest.extend_from_slice(&body);
            rest.extend_from_slice(b"\r\n");
        }
        rest.extend_from_slice(b"0\r\n");
        for line in &request.trailers {
            rest.extend_from_slice(format!("{line}\r\n").as_bytes());
        }
        rest.extend_from_slice(b"\r\n");
    } else {
        rest = body;
    }
    let expects = request.headers.iter().any(|line| line.to_ascii_lowercase().starts_with("expect: 100-"));
    if expects {
        wire.send(head.as_bytes()).await?;
    } else {
        rest.splice(0..0, head.into_bytes());
        // A proxy may answer before it has read everything, and close: the answer counts.
        wire.send(&rest).await.ok();
    }
    if let Some(milliseconds) = request.leave {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        seen.say("left");
        return Ok(false);
    }
    answer(wire, request, expects.then_some(rest.as_slice()), seen).await
}

async fn answer(wire: &mut Wire, request: &Request, expected: Option<&[u8]>, seen: &mut Seen) -> Result<bool> {
    let mut held = expected;
    let head = loop {
        let Some(head) = wire.head().await? else {
            seen.say("ended: closed");
            return Ok(false);
        };
        match head.status() {
            Some(status @ (100 | 102..=199)) => {
                seen.say(format!("interim: {}", head.start));
                seen.lines.extend(field_lines("interim header", &head.fields));
                if let Some(body) = held.take().filter(|_| status == 100) {
                    wire.send(body).await?;
                }
            }
            _ => break head,
        }
    };
    seen.status = head.status();
    seen.say(format!("response: {}", head.start));
    seen.lines.extend(field_lines("header", &head.fields));
    let status = head.status().unwrap_or_default();
    if status == 101 || (request.method == "CONNECT" && status == 200) {
        if let Some(then) = &request.then {
            wire.send(then.as_bytes()).await?;
            seen.say(format!("tunnel: {:?}", text(&wire.exactly(then.len()).await?)));
        }
        return Ok(false);
    }
    let bodiless = request.method == "HEAD" || status == 204 || status == 304;
    if !bodiless {
        let body = wire.body(&head, true).await?;
        let cut = if body.cut { " (cut)" } else { "" };
        let content = undone(head.get("content-encoding"), body.content);
        seen.say(format!("body: {}{cut}", summary(&content)));
        seen.lines.extend(field_lines("trailer", &body.trailers));
        if body.cut {
            return Ok(false);
        }
    }
    // A body that nobody asked for is not sent, and what comes next would be taken for it.
    let unsent = held.is_some_and(|body| !body.is_empty());
    let closes = head.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
        || (head.start.starts_with("HTTP/1.0") && head.get("connection").is_none());
    if closes {
        let closed = timeout(CLOSING, wire.fill()).await;
        seen.say(match closed {
            _ if !wire.buffer.is_empty() => "connection: more after the last answer",
            Ok(_) => "connection: closed",
            Err(_) => "connection: stays open, though it said it would close",
        });
    }
    Ok(!closes && !unsent)
}

async fn http1_raw(wire: &mut Wire, raw: &str, request: &Request, id: &str, seen: &mut Seen) -> Result<()> {
    let reply = replies(request)?.unwrap_or_default();
    let raw = raw.replace("${id}", id).replace("${reply}", &reply);
    wire.send(raw.as_bytes()).await.ok();
    let as_sent = Request { method: raw.split(' ').next().unwrap_or_default().to_owned(), ..request.clone() };
    loop {
        if wire.buffer.is_empty() {
            match timeout(QUIET.max(Duration::from_millis(request.settle)), wire.fill()).await {
                Err(_) => {
                    seen.say("connection: open");
                    return Ok(());
                }
                Ok(Ok(false)) => {
                    seen.say("connection: closed");
                    return Ok(());
                }
                Ok(Err(error)) => return Err(error),
                Ok(Ok(true)) => {}
            }
        }
        if !answer(wire, &as_sent, None, seen).await? {
            return Ok(());
        }
    }
}

async fn tcp(wire: &mut Wire, request: &Request, seen: &mut Seen) -> Result<()> {
    let body = content(request);
    wire.send(&body).await?;
    let mut all = Vec::new();
    loop {
        match timeout(QUIET, wire.fill()).await {
            Err(_) => {
                seen.say(format!("got: {}", summary(&all)));
                seen.say("connection: open");
                return Ok(());
            }
            Ok(Ok(true)) => all.extend_from_slice(&wire.buffer.split()),
            Ok(ended) => {
                seen.say(format!("got: {}", summary(&all)));
                seen.say(if ended.is_ok() { "connection: closed" } else { "connection: reset" });
                return Ok(());
            }
        }
    }
}

async fn http2(sender: &h2::client::SendRequest<Bytes>, request: &Request, id: &str, seen: &mut Seen) -> Result<()> {
    let mut sender = match sender.clone().ready().await {
        Ok(sender) => sender,
        Err(error) => return tell_h2(&error, seen),
    };
    let scheme = if request.tls.is_some() { "https" } else { "http" };
    let mut head = http::Request::builder().method(request.method.as_str()).version(http::Version::HTTP_2);
    head = if request.method == "CONNECT" {
        head.uri(request.host.as_str())
    } else {
        head.uri(format!("{scheme}://{}{}", request.host, request.path))
    };
    head = head.header(ID, id);
    if let Some(replies) = replies(request)? {
        head = head.header(REPLY, replies);
    }
    for (name, value) in request.headers.iter().map(|line| header(line)) {
        head = head.header(name, value);
    }
    let body = content(request);
    let tunnel = request.method == "CONNECT";
    let alone = body.is_empty() && request.trailers.is_empty() && !tunnel;
    let (mut response, mut send) = match sender.send_request(head.body(())?, alone) {
        Ok(sent) => sent,
        Err(error) => return tell_h2(&error, seen),
    };
    if !alone && !tunnel {
        send.send_data(body.into(), request.trailers.is_empty()).ok();
        if !request.trailers.is_empty() {
            let mut trailers = http::HeaderMap::new();
            for (name, value) in request.trailers.iter().map(|line| header(line)) {
                trailers.append(http::HeaderName::from_bytes(name.as_bytes())?, value.parse()?);
            }
            send.send_trailers(trailers).ok();
        }
    }
    if let Some(milliseconds) = request.leave {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        send.send_reset(h2::Reason::CANCEL);
        seen.say("left");
        return Ok(());
    }
    let response = poll_fn(|cx| {
        while let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
            seen.say(format!("interim: HTTP/2 {}", interim.status().as_u16()));
            seen.lines.extend(field_lines("interim header", &fields(interim.headers())));
        }
        Pin::new(&mut response).poll(cx)
    });
    let response = match response.await {
        Ok(response) => response,
        Err(error) => return tell_h2(&error, seen),
    };
    let (parts, mut body) = response.into_parts();
    seen.status = Some(parts.status.as_u16());
    seen.say(format!("response: HTTP/2 {}", parts.status.as_u16()));
    seen.lines.extend(field_lines("header", &fields(&parts.headers)));
    if let (true, Some(then)) = (tunnel, &request.then) {
        send.send_data(Bytes::copy_from_slice(then.as_bytes()), false)?;
    }
    let mut content = Vec::new();
    while let Some(data) = body.data().await {
        let data = match data {
            Ok(data) => data,
            Err(error) => {
                seen.say(format!("body: {} (cut)", summary(&content)));
                return tell_h2(&error, seen);
            }
        };
        body.flow_control().release_capacity(data.len())?;
        content.extend_from_slice(&data);
        if tunnel && content.len() >= request.then.as_ref().map_or(0, String::len) {
            seen.say(format!("tunnel: {:?}", text(&content)));
            return Ok(());
        }
    }
    let coding = parts.headers.get("content-encoding").and_then(|coding| coding.to_str().ok());
    seen.say(format!("body: {}", summary(&undone(coding, content))));
    match body.trailers().await {
        Ok(Some(trailers)) => seen.lines.extend(field_lines("trailer", &fields(&trailers))),
        Ok(None) => {}
        Err(error) => return tell_h2(&error, seen),
    }
    Ok(())
}

fn tell_h2(error: &h2::Error, seen: &mut Seen) -> Result<()> {
    seen.say(match error.reason() {
        Some(reason) if error.is_go_away() => format!("ended: connection error {reason:?}"),
        Some(reason) => format!("ended: stream error {reason:?}"),
        None => "ended: connection lost".to_owned(),
    });
    Ok(())
}
