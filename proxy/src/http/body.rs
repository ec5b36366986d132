//! What the pipeline asks of the two sides of a request, whatever HTTP version each speaks.
//!
//! Both sides are polled in one task. A side hands out the bytes that lie in its own buffer and the other side takes them
//! over: nothing is allocated for a piece of a body, and large ones are shared where both sides can.

use super::{
    chunked::ChunkError,
    head::{BodyLength, RequestHead, ResponseHead},
    headers::Headers,
    parse::HeadError,
};
use crate::telemetry::Wire;
use bytes::Bytes;
use std::{
    io,
    task::{Context, Poll, ready},
};
use tokio::net::TcpStream;

/// A piece of a body.
#[derive(Debug)]
pub enum Piece<'a> {
    /// Some bytes; at least one. The reader says by `consume` how many it took.
    Data(Chunk<'a>),
    /// The body is over, with trailers.
    Trailers(&'a Headers),
    /// The body is over.
    End,
}

impl Piece<'_> {
    /// The same, with trailers or without.
    pub fn with_trailers(self, passing: bool) -> Self {
        match self {
            Self::Trailers(_) if !passing => Self::End,
            piece => piece,
        }
    }
}

/// Bytes of a body: a slice that may lie in memory which can be shared.
#[derive(Debug, Clone, Copy)]
pub struct Chunk<'a> {
    bytes: &'a [u8],
    of: Option<&'a Bytes>,
}

impl<'a> Chunk<'a> {
    /// The first of them, at most so many.
    pub fn first(self, most: usize) -> Self {
        Self { bytes: &self.bytes[..self.bytes.len().min(most)], ..self }
    }

    /// What is left without the first `count` of them.
    pub fn after(self, count: usize) -> Self {
        Self { bytes: &self.bytes[count.min(self.bytes.len())..], ..self }
    }

    /// The same bytes without a copy, if they can be shared and are so many at least.
    pub fn share(self, least: usize) -> Option<Bytes> {
        let of = self.of.filter(|_| self.bytes.len() >= least)?;
        Some(of.slice_ref(self.bytes))
    }

    /// A part of bytes that can be shared.
    pub(crate) fn part(of: &'a Bytes, bytes: &'a [u8]) -> Self {
        Self { bytes, of: Some(of) }
    }
}

impl std::ops::Deref for Chunk<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl<'a> From<&'a [u8]> for Chunk<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self { bytes, of: None }
    }
}

impl<'a> From<&'a Vec<u8>> for Chunk<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        bytes.as_slice().into()
    }
}

impl<'a> From<&'a Bytes> for Chunk<'a> {
    fn from(of: &'a Bytes) -> Self {
        Self { bytes: of, of: Some(of) }
    }
}

/// Why a side failed.
#[derive(Debug, thiserror::Error)]
pub enum SideError {
    /// The connection broke or the stream was reset.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    /// The connection ended before the message did.
    #[error("the connection ended before the message")]
    Ended,
    /// The body's framing is malformed.
    #[error("malformed body: {0}")]
    Chunk(#[from] ChunkError),
    /// The body is to be base64 and is not; what Envoy calls that.
    #[error("the body is not base64: {0}")]
    NotBase64(&'static str),
    /// The head is malformed.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The endpoint did not take up the request (HTTP/2 REFUSED_STREAM, or GOAWAY before it).
    #[error("the endpoint refused the stream")]
    Refused,
    /// The other side reset the stream (HTTP/2).
    #[error("the stream was reset: {0}")]
    Reset(String),
    /// A message of HTTP/1 was cut in the middle.
    #[error("the connection ended in the middle of a message")]
    Cut,
    /// More than the limits allow.
    #[error("the message is beyond the limit of {0}")]
    Limit(&'static str),
}

/// When a sender has so many bytes waiting, it is flushed before it takes more.
pub const HIGH_WATER: usize = 32 * 1024;

/// Bytes of a body that nobody wants which are read at most, so that its connection can serve another request.
pub const FORGOTTEN: u64 = 1024 * 1024;

/// The side of the client: gives the request's body, takes the response.
pub trait Downstream {
    /// The next piece of the request's body. After [`Piece::Trailers`] or [`Piece::End`] it is not asked again.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece<'_>, SideError>>;
    /// Takes bytes of the last [`Piece::Data`].
    fn consume(&mut self, count: usize);
    /// Passes an interim response of the endpoint on.
    fn send_interim(&mut self, request: &RequestHead, head: &ResponseHead);
    /// Begins the response. Hop-by-hop headers were removed; the side adds its own framing. `close` asks that the
    /// connection ends after the response (HTTP/1) or takes no more streams (HTTP/2).
    fn send_head(&mut self, request: &RequestHead, head: &ResponseHead, close: bool);
    /// Adds to the response's body.
    fn send_data(&mut self, data: Chunk<'_>);
    /// Ends the response.
    fn send_end(&mut self, trailers: Option<&Headers>);
    /// Bytes that wait to be sent.
    fn queued(&self) -> usize;
    /// Sends what waits; ready when nothing does.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>>;
    /// Ready when the client went away (best effort; may be always pending while a body is unread).
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;
    /// Whether the client itself reset the stream (HTTP/2), as far as that was seen.
    fn was_reset(&self) -> bool {
        false
    }
    /// Whether the client broke the rules of its protocol in this exchange (HTTP/2: in this stream alone).
    fn broke_rules(&self) -> bool {
        false
    }
    /// Ends the exchange without a complete response: the stream is reset, the connection closed.
    fn abort(&mut self);
    /// Becomes a tunnel after the response: bytes as they are, in both directions. Before that, what a client sends behind a
    /// request that [wants a tunnel](RequestHead::wants_tunnel) is not given out.
    fn tunnel(&mut self);
    /// The socket itself, if bytes of the response can go to it as they are: nothing waits before them, and neither TLS nor
    /// framing is on the way.
    fn plain(&self) -> Option<&TcpStream> {
        None
    }
    /// So many bytes of the response were put into the socket itself.
    fn passed(&mut self, _count: u64) {}
    /// Bytes of this request and its response on this side, with all framing but that of TLS.
    fn wire(&self) -> Wire;
}

/// The side of the endpoint: takes the request, gives the response.
pub trait Upstream {
    /// Begins the request. Hop-by-hop headers were removed; the side adds its own framing.
    fn send_head(&mut self, head: &RequestHead);
    /// Adds to the request's body.
    fn send_data(&mut self, data: Chunk<'_>);
    /// Ends the request.
    fn send_end(&mut self, trailers: Option<&Headers>);
    /// Bytes that wait to be sent.
    fn queued(&self) -> usize;
    /// Sends what waits; ready when nothing does.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>>;
    /// The next head of a response: that of an [interim](ResponseHead::is_interim) one, or of the response itself.
    fn poll_any_head(&mut self, cx: &mut Context<'_>, head: &mut ResponseHead) -> Poll<Result<(), SideError>>;
    /// The response's head, interim ones left out.
    fn poll_head(&mut self, cx: &mut Context<'_>, head: &mut ResponseHead) -> Poll<Result<(), SideError>> {
        loop {
            ready!(self.poll_any_head(cx, head))?;
            if !head.is_interim() {
                return Poll::Ready(Ok(()));
            }
        }
    }
    /// The next piece of the response's body.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece<'_>, SideError>>;
    /// Takes bytes of the last [`Piece::Data`].
    fn consume(&mut self, count: usize);
    /// Becomes a tunnel: [`Self::send_end`] was called for the request, and counts again for the tunnel.
    fn tunnel(&mut self);
    /// The socket itself and how many bytes of the response's body it still has to give, if they can be taken from it as they
    /// are: none lie in a buffer, and neither TLS nor framing is on the way.
    fn plain(&self) -> Option<(&TcpStream, u64)> {
        None
    }
    /// So many bytes were taken from the socket itself.
    fn passed(&mut self, _count: u64) {}
    /// Whether any byte of the request reached the connection.
    fn sent_any(&self) -> bool;
    /// Whether the connection served another request before.
    fn reused(&self) -> bool;
    /// Bytes of this request and its response on this side, with all framing but that of TLS.
    fn wire(&self) -> Wire;
}

/// How many bytes a [`BodyLength`] promises, if it does.
pub fn promised(length: BodyLength) -> Option<u64> {
    match length {
        BodyLength::Empty => Some(0),
        BodyLength::Exact(count) => Some(count),
        BodyLength::Unknown | BodyLength::Tunnel => None,
    }
}
