//! The endpoint's side of an HTTP/1 connection.

use super::{
    super::{
        body::{Chunk, Piece, SideError, Upstream},
        buffer::Buffer,
        head::{BodyLength, RequestHead, ResponseHead},
        headers::{Headers, Known},
        parse::{self, HeadLimits},
    },
    body::{self, Reader, Writer},
    down::{flush, queued},
};
use crate::{
    config::Http1Upstream,
    listen::Stream,
    pool::Birth,
    telemetry::{Wire, tracked::ConnectionEnd},
    tls::TlsInfo,
};
use std::{
    cell::OnceCell,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};
use tokio::{io::AsyncWrite, net::TcpStream};

/// Interim responses (100, 102, 103) that an endpoint may send before the real one.
const MAX_INTERIM: u8 = 100;

/// A connection to an endpoint.
#[derive(Debug)]
pub struct Connection {
    io: Stream,
    options: Http1Upstream,
    input: Buffer,
    /// Of the head that comes.
    progress: parse::Progress,
    output: Buffer,
    reader: Reader,
    writer: Writer,
    to_head: bool,
    upgrading: bool,
    connecting: bool,
    sent: bool,
    /// Something of the answer was read.
    answered: bool,
    head_read: bool,
    request_ended: bool,
    keep_alive: bool,
    interim: u8,
    served: u32,
    tunnel: bool,
    shut: bool,
    /// The endpoint has ended it.
    ended: bool,
    /// Bytes of headers, of the answer and of this request.
    heads: (u32, u32),
    /// How it came about.
    birth: Option<Rc<Birth>>,
    /// What its TLS is known by, once somebody has asked.
    known: OnceCell<Option<Rc<TlsInfo>>>,
}

impl Connection {
    /// A fresh connection.
    pub fn new(io: Stream, options: Http1Upstream) -> Self {
        Self {
            io,
            options,
            input: Buffer::default(),
            progress: parse::Progress::default(),
            output: Buffer::default(),
            reader: Reader::Exact(0),
            writer: Writer::Plain,
            to_head: false,
            upgrading: false,
            connecting: false,
            sent: false,
            answered: false,
            head_read: false,
            request_ended: false,
            keep_alive: true,
            interim: 0,
            served: 0,
            tunnel: false,
            shut: false,
            ended: false,
            heads: (0, 0),
            birth: None,
            known: OnceCell::new(),
        }
    }

    /// This side's address.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.io.local_address()
    }

    /// What its TLS is known by, where there is any.
    pub fn tls(&self) -> Option<Rc<TlsInfo>> {
        self.known.get_or_init(|| self.io.tls_info().map(Rc::new)).clone()
    }

    /// The same, of which it is known how it came about.
    #[must_use]
    pub fn born(self, birth: Rc<Birth>) -> Self {
        Self { birth: Some(birth), ..self }
    }

    /// How it came about.
    pub fn birth(&self) -> Option<Rc<Birth>> {
        self.birth.clone()
    }

    /// Requests that it served.
    pub fn served(&self) -> u32 {
        self.served
    }

    /// How it ends when it is dropped now.
    pub fn end(&self) -> ConnectionEnd {
        let answered = self.head_read && self.reader.is_done() && !self.tunnel;
        let active = (self.sent || self.served > 0) && !answered;
        ConnectionEnd { remote: self.ended, active, served: u64::from(self.served) }
    }

    /// Whether anything of an answer was read.
    pub fn answered(&self) -> bool {
        self.answered
    }

    /// Whether request and response are complete and the connection can serve another one.
    pub fn is_reusable(&self) -> bool {
        self.keep_alive
            && !self.tunnel
            && self.request_ended
            && self.head_read
            && self.reader.is_done()
            && self.input.is_empty()
            && self.queued() == 0
    }

    /// Whether the endpoint ends it with this answer.
    pub fn is_told_to_close(&self) -> bool {
        !self.keep_alive
    }

    /// Whether no request was ever sent on it.
    pub fn is_unused(&self) -> bool {
        !self.sent && self.served == 0 && self.queued() == 0
    }

    /// Whether an idle connection is still good: nothing came and it was not closed. Costs no system call as long as the
    /// kernel has reported nothing.
    pub fn is_fresh(&mut self, cx: &mut Context<'_>) -> bool {
        if self.io.poll_readable(cx).is_pending() {
            return true;
        }
        // Whatever comes without being asked for, be it the end, makes the connection useless.
        let read = self.input.poll_read(&mut self.io, cx);
        self.ended |= matches!(read, Poll::Ready(Ok(0) | Err(_)));
        read.is_pending()
    }

    /// Gives buffers back while it is idle.
    pub fn rest(&mut self) {
        self.input.release();
        self.output.release();
    }
}

impl Upstream for Connection {
    fn send_head(&mut self, head: &RequestHead) {
        self.sent = false;
        self.answered = false;
        self.head_read = false;
        self.request_ended = false;
        self.interim = 0;
        self.to_head = head.method() == b"HEAD";
        self.upgrading = head.upgrade().is_some();
        self.connecting = head.is_connect();
        // The reader of the last response is done; until the head is read there is no body.
        self.reader = Reader::Exact(0);
        let of_mesh = self.birth.as_ref().is_some_and(|birth| birth.of_mesh);
        (self.input.passed, self.output.passed) = (0, 0);
        let out = self.output.tail(1024);
        out.extend_from_slice(head.method());
        out.push(b' ');
        if self.options.full_url && !self.connecting {
            out.extend_from_slice(head.scheme().unwrap_or("http").as_bytes());
            out.extend_from_slice(b"://");
            out.extend_from_slice(head.authority());
        }
        out.extend_from_slice(if self.connecting { head.authority() } else { head.path() });
        out.extend_from_slice(b" HTTP/1.1\r\n");
        let before = out.len();
        out.extend_from_slice(b"host: ");
        out.extend_from_slice(head.authority());
        out.extend_from_slice(b"\r\n");
        let upgrading = self.upgrading;
        head.headers.write_lines(out, |known| match known {
            // Said below.
            Known::ContentLength => false,
            Known::Connection | Known::Upgrade => !upgrading,
            // Who we are is told only to proxies of the mesh.
            Known::Peer => of_mesh,
            _ => true,
        });
        self.writer = match head.body {
            BodyLength::Empty => {
                // Methods that may have a body say that there is none (RFC 9110, 8.6), and what the client says is passed on.
                if !matches!(head.method(), b"GET" | b"HEAD" | b"DELETE" | b"TRACE" | b"CONNECT")
                    || head.headers.known(Known::ContentLength).is_some()
                {
                    out.extend_from_slice(b"content-length: 0\r\n");
                }
                Writer::Nothing
            }
            BodyLength::Exact(count) => {
                body::content_length(out, count);
                Writer::Plain
            }
            BodyLength::Unknown => {
                out.extend_from_slice(b"transfer-encoding: chunked\r\n");
                Writer::Chunked
            }
            BodyLength::Tunnel => Writer::Plain,
        };
        if let Some(protocol) = head.upgrade() {
            out.extend_from_slice(b"connection: upgrade\r\nupgrade: ");
            out.extend_from_slice(protocol);
            out.extend_from_slice(b"\r\n");
        }
        body::names(&mut out[before..], head.spelling.as_deref(), self.options.names);
        self.heads = (0, (out.len() - before) as u32);
        out.extend_from_slice(b"\r\n");
    }

    fn send_data(&mut self, data: Chunk<'_>) {
        self.writer.data(&mut self.output, &data);
    }

    fn send_end(&mut self, trailers: Option<&Headers>) {
        self.writer.end(&mut self.output, trailers.filter(|_| self.options.trailers));
        self.request_ended = true;
    }

    fn queued(&self) -> usize {
        queued(&self.io, &self.output)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        let before = self.output.len();
        let result = flush(&mut self.io, &mut self.output, cx);
        self.sent |= self.output.len() < before;
        ready!(result)?;
        if self.tunnel && self.request_ended && !self.shut {
            ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
            self.shut = true;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_any_head(&mut self, cx: &mut Context<'_>, head: &mut ResponseHead) -> Poll<Result<(), SideError>> {
        let limits = HeadLimits {
            bytes: self.options.head_bytes(),
            headers: self.options.max_headers,
            chunked_length: self.options.chunked_length,
            names: self.options.names,
        };
        loop {
            if !self.input.is_empty() {
                self.answered = true;
                head.clear();
                if self.progress.is_due(self.input.bytes(), limits)
                    && let Some(count) = parse::response(self.input.bytes(), limits, self.to_head, head)?
                {
                    self.progress = parse::Progress::default();
                    self.input.consume(count);
                    self.heads.0 = self.heads.0.saturating_add((count as u32).saturating_sub(head.around));
                    if head.status == 101 && !self.upgrading {
                        return Poll::Ready(
                            Err(parse::HeadError::Malformed("an upgrade that nobody asked for").into()),
                        );
                    }
                    if head.is_interim() {
                        self.interim += 1;
                        return Poll::Ready(match self.interim > MAX_INTERIM {
                            true => Err(SideError::Limit("interim responses")),
                            false => Ok(()),
                        });
                    }
                    // Lengths mean nothing in it (RFC 9110, 9.3.6).
                    if self.connecting && (200..300).contains(&head.status) {
                        head.body = BodyLength::Tunnel;
                    }
                    self.reader = Reader::new(head.body, parse::until_close(head));
                    self.keep_alive = head.keep_alive;
                    self.head_read = true;
                    self.served = self.served.saturating_add(1);
                    return Poll::Ready(Ok(()));
                }
            }
            let read = ready!(self.input.poll_read(&mut self.io, cx));
            self.ended |= !matches!(read, Ok(1..));
            match read {
                Ok(1..) => {}
                // Part of a head is no head, however the connection ended.
                Ok(0) | Err(_) if !self.input.is_empty() => return Poll::Ready(Err(SideError::Cut)),
                Ok(0) => return Poll::Ready(Err(SideError::Ended)),
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece<'_>, SideError>> {
        let (passing, tunnel) = (self.options.trailers, self.tunnel);
        let read = ready!(self.reader.poll(&mut self.input, &mut self.io, cx));
        self.ended |= matches!(read, Err(SideError::Ended | SideError::Broken(_)));
        match read {
            Ok(piece) => Poll::Ready(Ok(piece.with_trailers(passing))),
            Err(SideError::Ended | SideError::Broken(_)) if !tunnel => Poll::Ready(Err(SideError::Cut)),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn consume(&mut self, count: usize) {
        self.reader.consume(&mut self.input, count);
    }

    fn plain(&self) -> Option<(&TcpStream, u64)> {
        match (&self.io, &self.reader) {
            (Stream::Plain(tcp), Reader::Exact(left)) if self.input.is_empty() => Some((tcp, *left)),
            _ => None,
        }
    }

    fn passed(&mut self, count: u64) {
        if let Reader::Exact(left) = &mut self.reader {
            *left = left.saturating_sub(count);
        }
        self.input.passed += count;
    }

    fn tunnel(&mut self) {
        self.tunnel = true;
        self.request_ended = false;
        self.reader = Reader::UntilClose;
        self.writer = Writer::Plain;
    }

    fn sent_any(&self) -> bool {
        self.sent
    }

    fn reused(&self) -> bool {
        self.served > 0
    }

    fn wire(&self) -> Wire {
        let sent = self.output.passed + self.output.len() as u64;
        let (head_received, head_sent) = (self.heads.0.into(), self.heads.1.into());
        let (plain_received, plain_sent) = (head_received, head_sent);
        Wire { received: self.input.passed, sent, head_received, head_sent, plain_received, plain_sent }
    }
}
