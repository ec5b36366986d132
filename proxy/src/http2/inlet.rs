//! A body that comes in by a stream, the same for both sides.

use std::task::{Context, Poll, ready};

use super::mux::{Key, Mux};
use super::queue::Queue;
use crate::http::body::{Piece, SideError};
use crate::http::headers::Headers;

/// The part of a body that was taken from the stream and is being used.
#[derive(Default)]
pub(super) struct Inlet {
    bytes: Queue,
    done: bool,
    trailers: Option<Box<Headers>>,
}

impl Inlet {
    pub(super) fn poll(&mut self, mux: &mut Mux, key: Key, cx: &mut Context<'_>) -> Poll<Result<Piece<'_>, SideError>> {
        if self.bytes.is_empty() && !self.done {
            let trailers = ready!(mux.poll_body(key, cx, &mut self.bytes))?;
            self.done = self.bytes.is_empty();
            self.trailers = trailers;
        }
        Poll::Ready(Ok(match &self.trailers {
            _ if !self.bytes.is_empty() => Piece::Data(self.bytes.front()),
            Some(trailers) => Piece::Trailers(trailers),
            None => Piece::End,
        }))
    }

    /// Forgets bytes and lets the peer send as many more.
    pub(super) fn consume(&mut self, mux: &mut Mux, key: Key, count: usize) {
        let count = count.min(self.bytes.front().len());
        self.bytes.advance(count);
        mux.give_back(Some(key), count as u32);
    }

    /// The rest is not wanted.
    pub(super) fn close(&mut self, mux: &mut Mux) {
        mux.give_back(None, self.bytes.len() as u32);
        self.bytes.clear(0);
    }
}
