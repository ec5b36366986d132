//! What of a request's body is read while the request itself waits, e.g. for a delay to be over. A client that was read to its
//! end can be answered, and its connection serves the next request, whatever becomes of this one.

use super::body::{Downstream, Piece, SideError};
use super::headers::Headers;
use std::task::{Context, Poll, ready};

/// Bytes that are held at most; Envoy's default for what a connection may hold.
pub const MOST: usize = 1024 * 1024;
/// Bytes that are handed out at a time.
const AT_ONCE: usize = 16 * 1024;

/// The beginning of a body, or all of it.
#[derive(Debug, Default)]
pub struct Ahead {
    bytes: Vec<u8>,
    /// So many of them were taken.
    at: usize,
    /// The end came, with these trailers.
    end: Option<Option<Box<Headers>>>,
}

impl Ahead {
    /// Reads what comes; ready when that is the whole body. Beyond [`MOST`] bytes the rest is left where it is.
    pub fn poll_fill<D: Downstream>(&mut self, cx: &mut Context<'_>, down: &mut D) -> Poll<Result<(), SideError>> {
        while self.end.is_none() {
            if self.bytes.len() >= MOST {
                return Poll::Pending;
            }
            match ready!(down.poll_body(cx))? {
                Piece::Data(data) => {
                    let data = &data[..data.len().min(MOST - self.bytes.len())];
                    let count = data.len();
                    self.bytes.extend_from_slice(data);
                    down.consume(count);
                }
                Piece::Trailers(trailers) => self.end = Some(Some(Box::new(trailers.clone()))),
                Piece::End => self.end = Some(None),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// How many bytes nobody has taken yet.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// What comes next of what was read.
    pub fn piece(&self) -> Option<Piece<'_>> {
        let left = &self.bytes[self.at..];
        match &self.end {
            _ if !left.is_empty() => Some(Piece::Data(left[..left.len().min(AT_ONCE)].into())),
            Some(Some(trailers)) => Some(Piece::Trailers(trailers)),
            Some(None) => Some(Piece::End),
            None => None,
        }
    }

    /// Takes bytes of the last piece; whether nothing is left that was read.
    pub fn consume(&mut self, count: usize) -> bool {
        self.at += count.min(self.left());
        self.left() == 0 && self.end.is_none()
    }
}
