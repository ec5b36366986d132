//! Where the body of an HTTP/1 message is, on its way in and on its way out.

use super::super::{
    body::{Piece, SideError},
    buffer::Buffer,
    chunked::{Chunked, Step},
    decimal,
    head::{BodyLength, Spelling, each_name, proper_name},
    headers::{Headers, Known},
};
use crate::config::HeaderNames;
use std::{
    io::Write as _,
    task::{Context, Poll, ready},
};
use tokio::io::AsyncRead;

/// Small chunks that lie in a buffer together are given out as one piece, up to about so many bytes.
const JOINED: usize = 4 * 1024;

/// Reads one body out of a connection's buffer.
#[derive(Debug)]
pub(crate) enum Reader {
    /// So many bytes to come; zero is the end.
    Exact(u64),
    /// Chunks.
    Chunked(Chunks),
    /// Everything until the connection ends.
    UntilClose,
    /// It ended with the connection.
    Closed,
}

/// A body in chunks.
#[derive(Debug)]
pub(crate) struct Chunks {
    state: Chunked,
    trailers: Option<Box<Headers>>,
    /// Bytes of data at the buffer's front that several chunks were joined to; [`Self::state`] is behind them.
    joined: u32,
    /// Bytes of framing that lie behind those.
    gap: u32,
}

impl Chunks {
    fn new() -> Self {
        Self { state: Chunked::Size, trailers: None, joined: 0, gap: 0 }
    }

    /// The buffer begins with `count` bytes of a chunk. Moves data of those behind it up to them, as far as they are there; how many
    /// bytes of data lie at the front then. What is wrong there is found when it is its turn.
    fn join(&mut self, buffer: &mut Buffer, count: usize) -> usize {
        let (mut state, mut end, mut at) = (self.state, count, count);
        state.consumed(count);
        let bytes = buffer.bytes_mut();
        let mut none = Headers::default();
        while end < JOINED && !matches!(state, Chunked::Trailers | Chunked::Done) {
            match state.step(&bytes[at..], &mut none) {
                Ok(Step::Skip(framing)) => at += framing,
                Ok(Step::Data(more)) => {
                    bytes.copy_within(at..at + more, end);
                    (end, at) = (end + more, at + more);
                    state.consumed(more);
                }
                Ok(Step::More | Step::End(..)) | Err(_) => break,
            }
        }
        let (Ok(joined), Ok(gap)) = (u32::try_from(end), u32::try_from(at - end)) else { return count };
        if end > count {
            (self.state, self.joined, self.gap) = (state, joined, gap);
        }
        end
    }
}

impl Reader {
    /// The reader for a body of that length; `until_close` when unknown means the end of the connection and not chunks.
    pub(crate) fn new(length: BodyLength, until_close: bool) -> Self {
        match length {
            BodyLength::Empty => Self::Exact(0),
            BodyLength::Exact(count) => Self::Exact(count),
            BodyLength::Unknown if !until_close => Self::Chunked(Chunks::new()),
            BodyLength::Unknown | BodyLength::Tunnel => Self::UntilClose,
        }
    }

    /// Whether the whole body was read.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::Exact(0) | Self::Chunked(Chunks { state: Chunked::Done, .. }) | Self::Closed)
    }

    /// The next piece; reads from the connection when the buffer has none.
    pub(crate) fn poll<'a, IO: AsyncRead + Unpin>(
        &'a mut self,
        buffer: &'a mut Buffer,
        io: &mut IO,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Piece<'a>, SideError>> {
        let available = loop {
            let wants_more = match self {
                Self::Exact(0) | Self::Closed => break 0,
                Self::Exact(left) => match buffer.len() {
                    0 => true,
                    have => break usize::try_from(*left).unwrap_or(usize::MAX).min(have),
                },
                Self::UntilClose => match buffer.len() {
                    0 => true,
                    have => break have,
                },
                Self::Chunked(chunks) if chunks.joined > 0 => break chunks.joined as usize,
                Self::Chunked(chunks) => {
                    let mut found = Headers::default();
                    match chunks.state.step(buffer.bytes(), &mut found)? {
                        Step::Skip(count) => {
                            buffer.consume(count);
                            false
                        }
                        Step::Data(count) if count < JOINED => break chunks.join(buffer, count),
                        Step::Data(count) => break count,
                        Step::More => true,
                        Step::End(count, _) => {
                            buffer.consume(count);
                            chunks.trailers = (!found.is_empty()).then(|| Box::new(found));
                            break 0;
                        }
                    }
                }
            };
            // Much that is sure to come is read in one piece.
            let coming = match self {
                Self::Exact(left) | Self::Chunked(Chunks { state: Chunked::Data(left), .. }) => *left,
                _ => 0,
            };
            if wants_more && ready!(buffer.poll_read_of(io, cx, coming))? == 0 {
                if !matches!(self, Self::UntilClose) {
                    return Poll::Ready(Err(SideError::Ended));
                }
                *self = Self::Closed;
            }
        };
        Poll::Ready(Ok(match self {
            _ if available > 0 => Piece::Data(buffer.bytes()[..available].into()),
            Self::Chunked(Chunks { trailers: Some(trailers), .. }) => Piece::Trailers(trailers),
            _ => Piece::End,
        }))
    }

    /// Takes bytes of the last piece.
    pub(crate) fn consume(&mut self, buffer: &mut Buffer, count: usize) {
        buffer.consume(count);
        match self {
            Self::Exact(left) => *left -= (count as u64).min(*left),
            Self::Chunked(Chunks { state, joined: 0, .. }) => state.consumed(count),
            Self::Chunked(Chunks { joined, gap, .. }) => {
                *joined = joined.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
                if *joined == 0 {
                    buffer.consume(std::mem::take(gap) as usize);
                }
            }
            Self::UntilClose | Self::Closed => {}
        }
    }
}

/// Frames one body on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    /// As it is: the length was promised, or the end of the connection says it.
    Plain,
    /// In chunks.
    Chunked,
    /// Nothing may follow the head (HEAD, 204, 304).
    Nothing,
}

impl Writer {
    /// Adds a piece.
    pub(crate) fn data(self, out: &mut Buffer, data: &[u8]) {
        match self {
            Self::Nothing => {}
            Self::Plain => out.push(data),
            Self::Chunked if data.is_empty() => {}
            Self::Chunked => {
                let tail = out.tail(data.len() + 20);
                let _ = write!(tail, "{:x}\r\n", data.len());
                tail.extend_from_slice(data);
                tail.extend_from_slice(b"\r\n");
            }
        }
    }

    /// Ends the body.
    pub(crate) fn end(self, out: &mut Buffer, trailers: Option<&Headers>) {
        if self == Self::Chunked {
            let tail = out.tail(5);
            tail.extend_from_slice(b"0\r\n");
            if let Some(trailers) = trailers {
                headers(tail, trailers);
            }
            tail.extend_from_slice(b"\r\n");
        }
    }
}

/// Writes header lines, without those that concern this connection: what is to be said of it is said apart.
pub(crate) fn headers(out: &mut Vec<u8>, headers: &Headers) {
    headers.write_lines(out, |known| known != Known::ContentLength && !known.is_hop_by_hop());
}

/// Writes the names of header lines as they came, where that was kept, else as is said for the side that gets them.
pub(crate) fn names(lines: &mut [u8], spelling: Option<&Spelling>, form: HeaderNames) {
    match (spelling, form) {
        (Some(spelling), _) => spelling.apply(lines),
        (None, HeaderNames::Proper) => each_name(lines, proper_name),
        (None, HeaderNames::Plain | HeaderNames::Kept { .. }) => {}
    }
}

/// Writes `content-length`.
pub(crate) fn content_length(out: &mut Vec<u8>, count: u64) {
    out.extend_from_slice(b"content-length: ");
    out.extend_from_slice(decimal(count.into(), &mut [0; 20]));
    out.extend_from_slice(b"\r\n");
}
