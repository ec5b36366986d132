//! The client's side of an HTTP/1 connection: one request after the other, in order.

use super::{
    super::{
        body::{Chunk, Downstream, Piece, SideError},
        buffer::Buffer,
        chunked::ChunkError,
        decimal,
        head::{BodyLength, RequestHead, ResponseHead, Version, reason},
        headers::{Headers, Known},
        parse::{self, HeadError, HeadLimits},
        rules::RequestRules,
    },
    body::{self, Reader, Writer},
};
use crate::{
    config::{HeaderNames, HttpManager},
    listen::Stream,
    telemetry::Wire,
};
use std::{
    io::Write as _,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};
use tokio::{io::AsyncWrite, net::TcpStream};

/// A client's connection.
#[derive(Debug)]
pub struct Connection {
    io: Stream,
    input: Buffer,
    /// Of the head that comes.
    progress: parse::Progress,
    /// Bytes that were read and forgotten at its end.
    forgotten: usize,
    output: Buffer,
    reader: Reader,
    writer: Writer,
    /// The client waits for `100 Continue`, which it gets of us as soon as somebody wants the body.
    owes_continue: bool,
    /// How names of headers are written.
    names: HeaderNames,
    /// What could not be read began as a HEAD, so that nothing may follow the head of its answer.
    to_head: bool,
    /// Trailers pass, in both directions.
    trailers: bool,
    /// How many trailers a request may have.
    max_trailers: usize,
    /// The request is one of HTTP/1.0.
    old: bool,
    /// The connection ends after this response.
    closing: bool,
    /// When it is too old to take another request.
    ends: Option<Instant>,
    /// The response's end was queued.
    ended: bool,
    /// Bytes of headers, of this request and its response.
    heads: (u32, u32),
    /// Write side to be shut down once everything is sent (end of a tunnel's direction).
    shut: bool,
    tunnel: bool,
    /// The client has reset the connection.
    reset: bool,
}

/// What came of waiting for a request.
#[derive(Debug)]
pub enum Arrival {
    /// A whole head was read.
    Request,
    /// The client closed the connection between requests.
    Closed,
    /// The head is refused; the client is to be told.
    Refused(HeadError),
}

impl Connection {
    /// A connection of which `input` was read already.
    pub fn new(io: Stream, input: Buffer) -> Self {
        Self {
            io,
            input,
            output: Buffer::default(),
            reader: Reader::Exact(0),
            writer: Writer::Plain,
            owes_continue: false,
            names: HeaderNames::Plain,
            to_head: false,
            trailers: true,
            max_trailers: usize::MAX,
            old: false,
            closing: false,
            ends: None,
            ended: false,
            heads: (0, 0),
            shut: false,
            tunnel: false,
            reset: false,
            progress: parse::Progress::default(),
            forgotten: 0,
        }
    }

    /// The connection's stream.
    pub fn io(&self) -> &Stream {
        &self.io
    }

    /// Whether part of a request is there.
    pub fn has_input(&self) -> bool {
        !self.input.is_empty()
    }

    /// Whether part of a request's head is there. Empty lines, which some clients send behind a body, are none.
    pub fn has_begun(&self) -> bool {
        self.input.bytes().iter().any(|byte| !matches!(byte, b'\r' | b'\n'))
    }

    /// Bytes that were read and belong to no request yet.
    pub fn unread(&self) -> u64 {
        self.input.len() as u64
    }

    /// Whether the client has reset the connection.
    pub fn was_reset(&self) -> bool {
        self.reset
    }

    /// Whether it ends because of what the last response says, which is whole.
    pub fn ends_in_order(&self) -> bool {
        self.ended && self.closing && !self.tunnel
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        let result = ready!(self.input.poll_read(&mut self.io, cx));
        self.reset |= result.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset);
        Poll::Ready(result)
    }

    /// Whether the next request may be read: the last one and its response are complete and both sides want to go on.
    pub fn can_go_on(&self) -> bool {
        self.ended && !self.closing && self.reader.is_done() && !self.tunnel
    }

    /// Reads the next request's head into `head`, which it clears.
    pub fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
        limits: HeadLimits,
        rules: RequestRules,
        head: &mut RequestHead,
    ) -> Poll<Result<Arrival, SideError>> {
        loop {
            if !self.input.is_empty() && self.progress.is_due(self.input.bytes(), limits) {
                head.clear();
                match parse::request(self.input.bytes(), limits, rules, head) {
                    Ok(Some(count)) => {
                        self.progress = parse::Progress::default();
                        (self.input.passed, self.output.passed) = (0, 0);
                        self.input.consume(count);
                        self.heads = ((count as u32).saturating_sub(head.around), 0);
                        if !head.has_scheme {
                            head.secure = self.io.is_tls();
                        }
                        self.reader = Reader::new(head.body, false);
                        self.owes_continue = head.expects_continue;
                        self.old = head.version == Version::Http10;
                        self.closing = !head.keep_alive;
                        self.ended = false;
                        return Poll::Ready(Ok(Arrival::Request));
                    }
                    Ok(None) => {}
                    Err(error) => {
                        head.clear();
                        self.to_head = self.input.bytes().starts_with(b"HEAD ");
                        self.closing = true;
                        self.reader = Reader::Closed;
                        return Poll::Ready(Ok(Arrival::Refused(error)));
                    }
                }
            }
            if ready!(self.poll_read(cx))? == 0 {
                return Poll::Ready(if self.input.is_empty() { Ok(Arrival::Closed) } else { Err(SideError::Ended) });
            }
        }
    }

    /// What the configuration says about the request that was just read: `last` ends the connection after its response. So does one that is written
    /// after `ends`.
    pub fn begin(&mut self, manager: &HttpManager, last: bool, ends: Option<Instant>) {
        self.closing |= last;
        self.ends = ends;
        self.names = manager.names;
        self.trailers = manager.http1_trailers;
        self.max_trailers = manager.max_headers;
        // Else it is the endpoint's to say.
        self.owes_continue &= !manager.proxy_100_continue;
    }

    /// What a client is told that waits with its body, in the version that it speaks.
    fn go_on(&self) -> &'static [u8] {
        if self.old { b"HTTP/1.0 100 Continue\r\n\r\n" } else { b"HTTP/1.1 100 Continue\r\n\r\n" }
    }

    /// Bytes that were written since the request was read.
    fn written(&self) -> u64 {
        self.output.passed + self.output.len() as u64
    }

    /// Gives buffers back while nothing is going on.
    pub fn rest(&mut self) {
        self.input.release();
        self.output.release();
    }

    /// Ends the connection in the way that lets the client read the last response: the write side is shut down, then what
    /// still comes is read and forgotten until the client closes or the caller loses patience.
    pub fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        /// Bytes that are read and forgotten at most. Who sends more waits until he is given up.
        const MOST: usize = 1 << 20;
        if !self.shut {
            self.shut = true;
            if Pin::new(&mut self.io).poll_shutdown(cx).is_pending() {
                self.shut = false;
                return Poll::Pending;
            }
        }
        while self.forgotten < MOST {
            self.input.consume(self.input.len());
            match ready!(self.poll_read(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(count) => self.forgotten += count,
            }
        }
        Poll::Pending
    }

    /// Tells a client of TLS that nothing was cut off (`close_notify`), unless that had to wait for room.
    pub async fn say_goodbye(&mut self) {
        if !self.shut {
            self.io.say_goodbye().await;
        }
    }

    /// Whether bytes of the client may be on the way that nobody will read.
    pub fn must_linger(&self) -> bool {
        !self.reader.is_done() || !self.input.is_empty()
    }
}

impl Downstream for Connection {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece<'_>, SideError>> {
        // Also where the body is there already, as Envoy does.
        if std::mem::take(&mut self.owes_continue) {
            self.output.push(self.go_on());
        }
        if self.queued() > 0 && !self.ended && !self.tunnel {
            // The client may send its whole request before it reads, so what it does not take yet does not stop the reading.
            let _ = self.poll_flush(cx)?;
        }
        let passing = self.trailers;
        match ready!(self.reader.poll(&mut self.input, &mut self.io, cx))? {
            Piece::Trailers(trailers) if trailers.len() > self.max_trailers => {
                Poll::Ready(Err(ChunkError::ManyTrailers.into()))
            }
            piece => Poll::Ready(Ok(piece.with_trailers(passing))),
        }
    }

    fn consume(&mut self, count: usize) {
        self.reader.consume(&mut self.input, count);
    }

    fn send_interim(&mut self, request: &RequestHead, head: &ResponseHead) {
        // A client of HTTP/1.0 knows no such thing (RFC 9110, 15.2).
        if request.version == Version::Http10 {
            return;
        }
        let out = self.output.tail(256);
        let _ = write!(out, "HTTP/1.1 {} {}\r\n", head.status, reason(head.status));
        let before = out.len();
        body::headers(out, &head.headers);
        body::names(&mut out[before..], head.spelling.as_deref(), self.names);
        self.heads.1 += (out.len() - before) as u32;
        out.extend_from_slice(b"\r\n");
    }

    fn send_head(&mut self, request: &RequestHead, head: &ResponseHead, close: bool) {
        self.closing |= close || self.ends.is_some_and(|ends| ends <= Instant::now());
        // As Envoy does: who asks whether to go on is answered first, whatever else there is to say.
        if std::mem::take(&mut self.owes_continue) {
            self.output.push(self.go_on());
        }
        let to_head = self.to_head || request.method() == b"HEAD";
        let old = request.version == Version::Http10;
        let until_end = old && head.body == BodyLength::Unknown;
        // Envoy ends a connection of HTTP/1.0 also behind an answer that is known to have no body and tells no length.
        let untold = head.body == BodyLength::Empty && head.headers.known(Known::ContentLength).is_none();
        self.closing |= until_end || old && untold;
        let tunnel = head.body == BodyLength::Tunnel;
        // What is left of a request that is answered already is not read: the client is told. Nor is what comes behind a tunnel
        // that is not granted: it may be meant for the other protocol.
        self.closing |= !tunnel && (!self.reader.is_done() || request.wants_tunnel());
        let out = self.output.tail(512);
        out.extend_from_slice(if request.version == Version::Http10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
        out.extend_from_slice(decimal(head.status.into(), &mut [0; 20]));
        out.push(b' ');
        out.extend_from_slice(reason(head.status).as_bytes());
        out.extend_from_slice(b"\r\n");
        let before = out.len();
        let bodiless = to_head || matches!(head.status, 100..=199 | 204 | 304);
        self.writer = match head.body {
            _ if bodiless => Writer::Nothing,
            BodyLength::Unknown if !until_end => Writer::Chunked,
            _ => Writer::Plain,
        };
        body::headers(out, &head.headers);
        match head.body {
            BodyLength::Tunnel if head.status != 101 => {}
            BodyLength::Tunnel => {
                out.extend_from_slice(b"connection: upgrade\r\n");
                if let Some(protocol) = request.upgrade() {
                    out.extend_from_slice(b"upgrade: ");
                    out.extend_from_slice(protocol);
                    out.extend_from_slice(b"\r\n");
                }
            }
            // What a GET would have been told is told for HEAD and 304 as well.
            _ if bodiless => match (head.headers.known(Known::ContentLength), head.body) {
                _ if matches!(head.status, 100..=199 | 204) => {}
                (Some(length), _) => {
                    out.extend_from_slice(b"content-length: ");
                    out.extend_from_slice(length);
                    out.extend_from_slice(b"\r\n");
                }
                (None, BodyLength::Exact(count)) => body::content_length(out, count),
                (None, _) if to_head && head.status != 304 && request.version != Version::Http10 => {
                    out.extend_from_slice(b"transfer-encoding: chunked\r\n");
                }
                (None, _) => {}
            },
            BodyLength::Exact(count) => body::content_length(out, count),
            BodyLength::Empty => body::content_length(out, 0),
            BodyLength::Unknown if self.writer == Writer::Chunked => {
                out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            }
            BodyLength::Unknown => {}
        }
        if tunnel {
            // It is no connection of HTTP any more.
        } else if self.closing {
            out.extend_from_slice(b"connection: close\r\n");
        } else if request.version == Version::Http10 {
            out.extend_from_slice(b"connection: keep-alive\r\n");
        }
        body::names(&mut out[before..], head.spelling.as_deref(), self.names);
        self.heads.1 += (out.len() - before) as u32;
        out.extend_from_slice(b"\r\n");
    }

    fn send_data(&mut self, data: Chunk<'_>) {
        self.writer.data(&mut self.output, &data);
    }

    fn send_end(&mut self, trailers: Option<&Headers>) {
        self.writer.end(&mut self.output, trailers.filter(|_| self.trailers));
        self.ended = true;
    }

    fn queued(&self) -> usize {
        queued(&self.io, &self.output)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        ready!(flush(&mut self.io, &mut self.output, cx))?;
        if self.tunnel && self.ended && !self.shut {
            ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
            self.shut = true;
        }
        Poll::Ready(Ok(()))
    }

    fn plain(&self) -> Option<&TcpStream> {
        match &self.io {
            Stream::Plain(tcp) if self.output.is_empty() && self.writer == Writer::Plain => Some(tcp),
            _ => None,
        }
    }

    fn passed(&mut self, count: u64) {
        self.output.passed += count;
    }

    fn wire(&self) -> Wire {
        let (head_received, head_sent) = (self.heads.0.into(), self.heads.1.into());
        let (plain_received, plain_sent) = (head_received, head_sent);
        let (received, sent) = (self.input.passed, self.written());
        Wire { received, sent, head_received, head_sent, plain_received, plain_sent }
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // A pipelined request that is there already says nothing about what comes after it.
        if !self.reader.is_done() || !self.input.is_empty() || self.tunnel {
            return Poll::Pending;
        }
        ready!(self.io.poll_readable(cx));
        match ready!(self.poll_read(cx)) {
            Ok(count) if count > 0 => Poll::Pending,
            _ => Poll::Ready(()),
        }
    }

    fn abort(&mut self) {
        // What was queued still goes out: the client sees how far the response came, and that it is not whole.
        self.closing = true;
        self.ended = false;
    }

    fn tunnel(&mut self) {
        self.tunnel = true;
        self.closing = true;
        self.reader = Reader::UntilClose;
        self.writer = Writer::Plain;
    }
}

/// Bytes that wait to be sent; all that the TLS layer holds back counts as one.
pub(in super::super) fn queued(io: &Stream, output: &Buffer) -> usize {
    output.len() + usize::from(io.holds_back())
}

/// Sends what waits in a buffer and below it: TLS takes bytes for which the socket has no room, so that an empty buffer alone
/// does not say that everything was sent.
pub(in super::super) fn flush(io: &mut Stream, output: &mut Buffer, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
    while !output.is_empty() {
        let count = ready!(Pin::new(&mut *io).poll_write(cx, output.bytes()))?;
        if count == 0 {
            return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
        }
        output.consume(count);
    }
    output.release();
    Pin::new(io).poll_flush(cx)
}
