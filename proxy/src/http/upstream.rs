//! The endpoint's side of a request, whatever version it speaks.

use super::{
    body::{Chunk, Piece, SideError, Upstream},
    head::{RequestHead, ResponseHead},
    headers::Headers,
    raw::Raw,
};
use crate::{
    http2,
    pool::{Birth, Lease},
    telemetry::Wire,
    tls::TlsInfo,
};
use std::{
    net::SocketAddr,
    rc::Rc,
    task::{Context, Poll},
};
use tokio::net::TcpStream;

/// A request's way to its endpoint.
#[derive(Debug)]
pub enum Up {
    /// A connection of HTTP/1.
    Http1(Lease),
    /// A stream of HTTP/2.
    Http2(http2::Up),
    /// A connection of bytes, for a CONNECT that ends here.
    Raw(Box<Raw>),
}

impl Up {
    /// This side's address.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Http1(lease) => lease.connection.local_address(),
            Self::Http2(stream) => stream.local_address(),
            Self::Raw(raw) => raw.local_address(),
        }
    }

    /// What the TLS to the endpoint is known by, where there is any.
    pub fn tls(&self) -> Option<Rc<TlsInfo>> {
        match self {
            Self::Http1(lease) => lease.connection.tls(),
            Self::Http2(stream) => stream.tls(),
            Self::Raw(_) => None,
        }
    }

    /// How the connection to the endpoint came about.
    pub fn birth(&self) -> Option<Rc<Birth>> {
        match self {
            Self::Http1(lease) => lease.connection.birth(),
            Self::Http2(stream) => stream.birth(),
            Self::Raw(raw) => Some(raw.birth()),
        }
    }

    /// What is spoken, as logs write it.
    pub fn protocol(&self) -> &'static str {
        match self {
            Self::Http1(_) | Self::Raw(_) => "HTTP/1.1",
            Self::Http2(_) => "HTTP/2",
        }
    }

    /// Whether any byte of an answer came.
    pub fn answered(&self) -> bool {
        match self {
            Self::Http1(lease) => lease.connection.answered(),
            Self::Http2(stream) => stream.answered(),
            Self::Raw(raw) => raw.answered(),
        }
    }
}

macro_rules! each {
    ($self:ident, $side:ident => $what:expr) => {
        match $self {
            Up::Http1(lease) => {
                let $side = &mut lease.connection;
                $what
            }
            Up::Http2($side) => $what,
            Up::Raw($side) => $what,
        }
    };
}

impl Upstream for Up {
    fn send_head(&mut self, head: &RequestHead) {
        each!(self, side => side.send_head(head));
    }

    fn send_data(&mut self, data: Chunk<'_>) {
        each!(self, side => side.send_data(data));
    }

    fn send_end(&mut self, trailers: Option<&Headers>) {
        each!(self, side => side.send_end(trailers));
    }

    fn queued(&self) -> usize {
        match self {
            Self::Http1(lease) => lease.connection.queued(),
            Self::Http2(stream) => stream.queued(),
            Self::Raw(raw) => raw.queued(),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        each!(self, side => side.poll_flush(cx))
    }

    fn poll_any_head(&mut self, cx: &mut Context<'_>, head: &mut ResponseHead) -> Poll<Result<(), SideError>> {
        each!(self, side => side.poll_any_head(cx, head))
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece<'_>, SideError>> {
        each!(self, side => side.poll_body(cx))
    }

    fn consume(&mut self, count: usize) {
        each!(self, side => side.consume(count));
    }

    fn tunnel(&mut self) {
        each!(self, side => side.tunnel());
    }

    fn plain(&self) -> Option<(&TcpStream, u64)> {
        match self {
            Self::Http1(lease) => lease.connection.plain(),
            Self::Http2(_) | Self::Raw(_) => None,
        }
    }

    fn passed(&mut self, count: u64) {
        each!(self, side => side.passed(count));
    }

    fn sent_any(&self) -> bool {
        match self {
            Self::Http1(lease) => lease.connection.sent_any(),
            Self::Http2(stream) => stream.sent_any(),
            Self::Raw(raw) => raw.sent_any(),
        }
    }

    fn reused(&self) -> bool {
        match self {
            Self::Http1(lease) => lease.connection.reused(),
            Self::Http2(stream) => stream.reused(),
            Self::Raw(raw) => raw.reused(),
        }
    }

    fn wire(&self) -> Wire {
        match self {
            Self::Http1(lease) => lease.connection.wire(),
            Self::Http2(stream) => stream.wire(),
            Self::Raw(raw) => raw.wire(),
        }
    }
}
