//! Back ends that record what reaches them, and answer as the request says.

use super::{
    case::{Backend, Speaks},
    reply::{Fail, ID, REPLY, Reply, header},
    tls::Pki,
    wire::{Field, Head, Wire, summary, text, undone},
};
use anyhow::{Context, Result};
use bytes::Bytes;
use std::{
    collections::HashMap,
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

/// No connection of a back end lives longer.
const LIFE: Duration = Duration::from_secs(60);
const HANG: Duration = Duration::from_secs(10);

/// What reached a back end.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Which of a case's it is.
    pub number: usize,
    /// The back end.
    pub backend: String,
    /// The request's id; empty where it has none.
    pub id: String,
    /// What was seen, a fact a line.
    pub lines: Vec<String>,
}

/// The memory of a case's back ends.
#[derive(Default)]
pub struct Recorder {
    records: Mutex<Vec<Record>>,
    count: AtomicUsize,
    attempts: Mutex<HashMap<String, usize>>,
}

impl Recorder {
    /// Takes what was recorded for a request, and what tells no request.
    pub fn take(&self, id: &str) -> Vec<Record> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let (taken, left) = std::mem::take(&mut *records).into_iter().partition(|r| r.id == id || r.id.is_empty());
        *records = left;
        taken
    }

    /// Forgets what was recorded so far.
    pub fn forget(&self) {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn add(&self, record: Record) -> usize {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let record = Record { number, ..record };
        self.records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
        number
    }

    /// Adds to a record; a request and its copies may come at the same time.
    fn append(&self, number: Option<usize>, line: String) {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(record) = records.iter_mut().find(|record| Some(record.number) == number) {
            record.lines.push(line);
        }
    }

    fn attempt(&self, id: &str) -> usize {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = attempts.entry(id.to_owned()).or_default();
        *count += 1;
        *count - 1
    }
}

/// Starts a back end; it takes no more connections after `stop`.
pub async fn start(
    name: &str,
    backend: &Backend,
    ip: Ipv4Addr,
    recorder: &Arc<Recorder>,
    pki: &Pki,
    stop: &CancellationToken,
) -> Result<SocketAddr> {
    if backend.protocol == Speaks::Dead {
        // Bound, so that nobody else gets the port, and deaf.
        let socket = TcpSocket::new_v4()?;
        socket.bind((ip, 0).into())?;
        let (address, stop) = (socket.local_addr()?, stop.clone());
        tokio::spawn(async move {
            stop.cancelled().await;
            drop(socket);
        });
        return Ok(address);
    }
    let listener = TcpListener::bind((ip, 0)).await.with_context(|| format!("cannot listen on {ip}"))?;
    let address = listener.local_addr()?;
    let alpn: &[&[u8]] = if backend.protocol == Speaks::H2 { &[b"h2"] } else { &[b"http/1.1"] };
    let tls = match backend.tls {
        true => Some(tokio_rustls::TlsAcceptor::from(pki.server("backend", alpn, backend.client_certificate)?)),
        false => None,
    };
    let server = Server { name: name.into(), kind: backend.clone(), recorder: recorder.clone() };
    let stop = stop.clone();
    tokio::spawn(async move {
        while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
            let (server, tls) = (server.clone(), tls.clone());
            tokio::spawn(tokio::time::timeout(LIFE, async move { server.connection(stream, tls).await.ok() }));
        }
    });
    Ok(address)
}

#[derive(Clone)]
struct Server {
    name: Arc<str>,
    kind: Backend,
    recorder: Arc<Recorder>,
}

impl Server {
    async fn connection(&self, stream: TcpStream, tls: Option<tokio_rustls::TlsAcceptor>) -> Result<()> {
        stream.set_nodelay(true)?;
        // A reset is a close with nothing lingering; the copy of the descriptor can do it under TLS as well.
        let raw = stream.into_std()?;
        let handle = raw.try_clone()?;
        let stream = TcpStream::from_std(raw)?;
        let Some(tls) = tls else { return self.speak(stream, handle, None).await };
        let stream = tls.accept(stream).await?;
        let (_, session) = stream.get_ref();
        let shown = session.peer_certificates().map_or(0, <[_]>::len);
        let line = format!("tls: server name {:?}, {shown} certificates", session.server_name().unwrap_or_default());
        self.speak(stream, handle, Some(line)).await
    }

    async fn speak(
        &self,
        stream: impl super::wire::Stream + 'static,
        handle: std::net::TcpStream,
        tls: Option<String>,
    ) -> Result<()> {
        match self.kind.protocol {
            Speaks::H1 => self.http1(Wire::new(stream), &handle, tls).await,
            Speaks::H2 => self.http2(stream, tls).await,
            Speaks::Tcp => self.tcp(Wire::new(stream)).await,
            Speaks::Dead => Ok(()),
            Speaks::Mute => {
                tokio::time::sleep(HANG).await;
                Ok(())
            }
        }
    }

    async fn tcp(&self, mut wire: Wire) -> Result<()> {
        wire.send(self.kind.greeting.as_bytes()).await?;
        self.recorder.add(Record {
            backend: self.name.to_string(),
            lines: vec!["connected".into()],
            ..Record::default()
        });
        while wire.fill().await? {
            let bytes = wire.buffer.split();
            wire.send(&bytes).await?;
        }
        Ok(())
    }

    async fn http1(&self, mut wire: Wire, handle: &std::net::TcpStream, tls: Option<String>) -> Result<()> {
        loop {
            let Some(head) = wire.head().await? else { return Ok(()) };
            let id = head.get(ID).unwrap_or_default().to_owned();
            let mut lines = vec![format!("request: {}", head.start)];
            lines.extend(tls.clone());
            lines.extend(field_lines("header", &head.fields));
            let record = (!head.get("user-agent").is_some_and(|agent| agent.contains("/HC"))).then(|| {
                self.recorder.add(Record { backend: self.name.to_string(), id: id.clone(), lines, ..Record::default() })
            });
            let attempt = self.recorder.attempt(&id);
            let reply = Reply::of(head.get(REPLY).unwrap_or_default(), attempt);
            if head.get("expect").is_some_and(|value| value.starts_with("100-")) && !reply.early {
                wire.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            }
            if !reply.early {
                let body = wire.body(&head, false).await?;
                if !body.content.is_empty() || body.cut {
                    let cut = if body.cut { " (cut)" } else { "" };
                    let content = undone(head.get("content-encoding"), body.content);
                    self.recorder.append(record, format!("body: {}{cut}", summary(&content)));
                }
                for line in field_lines("trailer", &body.trailers) {
                    self.recorder.append(record, line);
                }
                if body.cut {
                    return Ok(());
                }
            }
            pause(reply.delay).await;
            if !self.answer1(&mut wire, handle, &head, &reply).await? {
                return Ok(());
            }
            // What comes of the body all the same is not the next request.
            if reply.early && wire.body(&head, false).await?.cut {
                return Ok(());
            }
        }
    }

    /// Answers; false where the connection ends.
    async fn answer1(&self, wire: &mut Wire, handle: &std::net::TcpStream, head: &Head, reply: &Reply) -> Result<bool> {
        match reply.fail {
            Some(Fail::Hang) => tokio::time::sleep(HANG).await,
            Some(Fail::Reset | Fail::Refuse | Fail::Breach) => {
                socket2::SockRef::from(handle).set_linger(Some(Duration::ZERO))?
            }
            _ => {}
        }
        if reply.fail.is_some_and(|fail| fail != Fail::Half) {
            return Ok(false);
        }
        if let Some(raw) = &reply.raw {
            wire.send(raw.as_bytes()).await?;
            return Ok(!reply.close);
        }
        for status in &reply.interim {
            wire.send(format!("HTTP/1.1 {status} Interim\r\nx-interim: {status}\r\n\r\n").as_bytes()).await?;
        }
        pause(reply.interim_delay).await;
        let status = reply.status.unwrap_or(200);
        let mut answer = format!("HTTP/1.1 {status} Reason\r\nx-backend: {}\r\n", self.name);
        for line in &reply.headers {
            write!(answer, "{line}\r\n")?;
        }
        let tunnel = status == 101 || (head.start.starts_with("CONNECT ") && status == 200);
        let content = reply.content(&self.name);
        let bodiless = tunnel || status == 204 || status == 304;
        match () {
            () if bodiless || reply.until_close => {}
            () if reply.chunked => answer.push_str("transfer-encoding: chunked\r\n"),
            () => write!(answer, "content-length: {}\r\n", content.len())?,
        }
        answer.push_str("\r\n");
        wire.send(answer.as_bytes()).await?;
        pause(reply.body_delay).await;
        if tunnel {
            let ahead = wire.buffer.split();
            wire.send(&ahead).await?;
            while wire.fill().await? {
                let bytes = wire.buffer.split();
                wire.send(&bytes).await?;
            }
            return Ok(false);
        }
        if bodiless || head.start.starts_with("HEAD ") {
            return Ok(!reply.close);
        }
        if reply.fail == Some(Fail::Half) {
            let half = &content[..content.len() / 2];
            if reply.chunked {
                wire.send(format!("{:x}\r\n{}\r\n", half.len(), text(half)).as_bytes()).await?;
            } else {
                wire.send(half).await?;
            }
            return Ok(false);
        }
        if reply.chunked {
            if !content.is_empty() {
                wire.send(format!("{:x}\r\n", content.len()).as_bytes()).await?;
                wire.send(&content).await?;
                wire.send(b"\r\n").await?;
            }
            let mut end = "0\r\n".to_owned();
            for line in &reply.trailers {
                write!(end, "{line}\r\n")?;
            }
            wire.send(format!("{end}\r\n").as_bytes()).await?;
        } else {
            wire.send(&content).await?;
        }
        Ok(!reply.close && !reply.until_close)
    }

    async fn http2(&self, stream: impl super::wire::Stream + 'static, tls: Option<String>) -> Result<()> {
        let mut connection = h2::server::handshake(stream).await?;
        while let Some(next) = connection.accept().await {
            let (request, respond) = next?;
            let (server, tls) = (self.clone(), tls.clone());
            tokio::spawn(async move { server.stream(request, respond, tls).await.ok() });
        }
        Ok(())
    }

    async fn stream(
        &self,
        request: http::Request<h2::RecvStream>,
        mut respond: h2::server::SendResponse<Bytes>,
        tls: Option<String>,
    ) -> Result<()> {
        let (parts, mut body) = request.into_parts();
        let fields = fields(&parts.headers);
        let get = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let id = get(ID).to_owned();
        let mut lines = vec![format!("request: {} {} HTTP/2", parts.method, parts.uri)];
        lines.extend(tls);
        lines.extend(field_lines("header", &fields));
        let record = (!get("user-agent").contains("/HC")).then(|| {
            self.recorder.add(Record { backend: self.name.to_string(), id: id.clone(), lines, ..Record::default() })
        });
        let attempt = self.recorder.attempt(&id);
        let reply = Reply::of(get(REPLY), attempt);
        if get("expect").starts_with("100-") && !reply.early {
            respond.send_informational(http::Response::builder().status(100).body(())?)?;
        }
        if !reply.early {
            let mut content = Vec::new();
            while let Some(data) = body.data().await {
                let data = data?;
                body.flow_control().release_capacity(data.len())?;
                content.extend_from_slice(&data);
            }
            if !content.is_empty() {
                let coding = Some(get("content-encoding"));
                self.recorder.append(record, format!("body: {}", summary(&undone(coding, content))));
            }
            if let Some(trailers) = body.trailers().await? {
                for line in field_lines("trailer", &self::fields(&trailers)) {
                    self.recorder.append(record, line);
                }
            }
        }
        pause(reply.delay).await;
        match reply.fail {
            Some(Fail::Reset | Fail::Close) => {
                respond.send_reset(h2::Reason::INTERNAL_ERROR);
                return Ok(());
            }
            Some(Fail::Breach) => {
                respond.send_reset(h2::Reason::PROTOCOL_ERROR);
                return Ok(());
            }
            Some(Fail::Refuse) => {
                respond.send_reset(h2::Reason::REFUSED_STREAM);
                return Ok(());
            }
            Some(Fail::Hang) => {
                tokio::time::sleep(HANG).await;
                return Ok(());
            }
            _ => {}
        }
        for &status in &reply.interim {
            let interim = http::Response::builder().status(status).header("x-interim", status);
            respond.send_informational(interim.body(())?)?;
        }
        pause(reply.interim_delay).await;
        let mut answer = http::Response::builder().status(reply.status.unwrap_or(200)).header("x-backend", &*self.name);
        for (name, value) in reply.headers.iter().map(|line| header(line)) {
            answer = answer.header(name, value);
        }
        let bodiless = parts.method == http::Method::HEAD || matches!(reply.status, Some(204 | 304));
        let content = if bodiless { Vec::new() } else { reply.content(&self.name) };
        let alone = content.is_empty() && reply.trailers.is_empty();
        let mut send = respond.send_response(answer.body(())?, alone)?;
        pause(reply.body_delay).await;
        if alone {
            return Ok(());
        }
        if reply.fail == Some(Fail::Half) {
            send.send_data(Bytes::copy_from_slice(&content[..content.len() / 2]), false)?;
            tokio::time::sleep(Duration::from_millis(20)).await;
            send.send_reset(h2::Reason::INTERNAL_ERROR);
            return Ok(());
        }
        send.send_data(content.into(), reply.trailers.is_empty())?;
        if !reply.trailers.is_empty() {
            let mut trailers = http::HeaderMap::new();
            for (name, value) in reply.trailers.iter().map(|line| header(line)) {
                trailers.append(http::HeaderName::from_bytes(name.as_bytes())?, value.parse()?);
            }
            send.send_trailers(trailers)?;
        }
        Ok(())
    }
}

async fn pause(milliseconds: Option<u64>) {
    if let Some(milliseconds) = milliseconds {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }
}

/// Headers of the `http` crate as names and values.
pub fn fields(map: &http::HeaderMap) -> Vec<Field> {
    map.iter().map(|(name, value)| (name.to_string(), text(value.as_bytes()))).collect()
}

/// A line a header, sorted by name; several of one name stay in order. What carries the test is left out.
pub fn field_lines(kind: &str, fields: &[Field]) -> Vec<String> {
    // An endpoint may get its names in another case.
    let ours = |name: &str| name.eq_ignore_ascii_case(REPLY) || name.eq_ignore_ascii_case(ID);
    let mut sorted: Vec<&Field> = fields.iter().filter(|(name, _)| !ours(name)).collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    sorted.iter().map(|(name, value)| format!("{kind} {name}: {value}")).collect()
}
