//! The two halves of a stream's body, the same for both sides.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::HeaderMap;

use super::convert::{headers_into, side_error};
use crate::http::body::{Piece, SideError};
use crate::http::headers::Headers;

/// Takes a body in.
#[derive(Default)]
pub(super) struct Receiver {
    stream: Option<RecvStream>,
    chunk: Bytes,
    trailers: Headers,
    done: bool,
}

impl Receiver {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self { stream: Some(stream), ..Self::default() }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece<'_>, SideError>> {
        while self.chunk.is_empty() && !self.done {
            let Some(stream) = &mut self.stream else { break };
            match ready!(stream.poll_data(cx)) {
                Some(chunk) => self.chunk = chunk.map_err(side_error)?,
                None => {
                    if let Some(trailers) = ready!(stream.poll_trailers(cx)).map_err(side_error)? {
                        if trailers.len() > super::MAX_HEADERS {
                            return Poll::Ready(Err(SideError::Limit("trailers")));
                        }
                        headers_into(&trailers, &mut self.trailers);
                    }
                    self.done = true;
                }
            }
        }
        Poll::Ready(Ok(match (self.chunk.is_empty(), self.trailers.is_empty()) {
            (false, _) => Piece::Data(&self.chunk),
            (true, false) => Piece::Trailers(&self.trailers),
            (true, true) => Piece::End,
        }))
    }

    /// Forgets bytes and lets the peer send as many more.
    pub(super) fn consume(&mut self, count: usize) {
        let count = count.min(self.chunk.len());
        self.chunk.advance(count);
        if let Some(stream) = &mut self.stream {
            // Fails only when the stream is gone, which the next poll tells.
            let _ = stream.flow_control().release_capacity(count);
        }
    }
}

/// How a body ends.
#[derive(Default)]
enum End {
    #[default]
    Open,
    Due(Option<HeaderMap>),
    Done,
}

/// Gives a body out.
#[derive(Default)]
pub(super) struct Sender {
    stream: Option<SendStream<Bytes>>,
    waiting: BytesMut,
    end: End,
}

impl Sender {
    pub(super) fn start(&mut self, stream: SendStream<Bytes>, ended: bool) {
        self.stream = Some(stream);
        if ended {
            self.end = End::Done;
        }
    }

    pub(super) fn data(&mut self, data: &[u8]) {
        if matches!(self.end, End::Open) {
            self.waiting.extend_from_slice(data);
        }
    }

    pub(super) fn end(&mut self, trailers: Option<HeaderMap>) {
        if matches!(self.end, End::Open) {
            self.end = End::Due(trailers.filter(|trailers| !trailers.is_empty()));
        }
    }

    /// Bytes that wait; the end of the stream counts as one.
    pub(super) fn queued(&self) -> usize {
        self.waiting.len() + usize::from(matches!(self.end, End::Due(_)))
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(Ok(())) };
        while !self.waiting.is_empty() {
            stream.reserve_capacity(self.waiting.len());
            let room = match stream.capacity() {
                // `poll_capacity` speaks of new capacity only, so it is asked when there is none.
                0 => match ready!(stream.poll_capacity(cx)) {
                    Some(room) => room?,
                    None => return Poll::Ready(Err(h2::Reason::STREAM_CLOSED.into())),
                },
                room => room,
            };
            if room == 0 {
                continue;
            }
            let piece = self.waiting.split_to(room.min(self.waiting.len())).freeze();
            let last = self.waiting.is_empty() && matches!(self.end, End::Due(None));
            stream.send_data(piece, last)?;
            if last {
                self.end = End::Done;
            }
        }
        match std::mem::replace(&mut self.end, End::Done) {
            End::Open => self.end = End::Open,
            End::Due(None) => stream.send_data(Bytes::new(), true)?,
            End::Due(Some(trailers)) => stream.send_trailers(trailers)?,
            End::Done => {}
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when the peer has reset the stream or its connection is gone.
    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match (&mut self.stream, &self.end) {
            (Some(stream), End::Open | End::Due(_)) => stream.poll_reset(cx).map(drop),
            _ => Poll::Pending,
        }
    }

    /// Forgets what waits: the peer wants no more.
    pub(super) fn discard(&mut self) {
        self.waiting.clear();
        self.end = End::Done;
    }

    /// Resets the stream.
    pub(super) fn reset(&mut self, reason: h2::Reason) {
        self.discard();
        if let Some(stream) = &mut self.stream {
            stream.send_reset(reason);
        }
    }
}
