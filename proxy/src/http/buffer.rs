//! The byte buffer of one direction of a connection.
//!
//! A connection that waits holds no buffer at all: memory is taken from a small stock of the worker when bytes are about
//! to come, and goes back when the buffer is empty. A buffer that was filled by one read grows, so that bulk transfers
//! take fewer system calls.

use std::{
    cell::RefCell,
    future::Future,
    io,
    pin::pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncReadExt};

/// What a buffer begins with: a request or a small answer whole.
pub const FIRST: usize = 4 * 1024;
/// What a buffer grows to at most by reading.
pub const LARGEST: usize = 64 * 1024;
/// How many unused buffers a worker keeps.
const STOCK: usize = 64;

thread_local! {
    static UNUSED: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes that were read and not yet used, or written and not yet sent.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    /// The last read filled all the room there was.
    filled_up: bool,
    /// Bytes that were taken away from the front since this was last set to zero.
    pub passed: u64,
}

impl Buffer {
    /// The bytes in it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// The bytes in it, to be moved around.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }

    /// How many bytes are in it.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes `count` bytes away from the front.
    pub fn consume(&mut self, count: usize) {
        let count = count.min(self.len());
        self.passed += count as u64;
        self.start += count;
        if self.start == self.bytes.len() {
            self.start = 0;
            self.bytes.clear();
        }
    }

    /// Adds bytes at the end.
    pub fn push(&mut self, bytes: &[u8]) {
        self.make_room(bytes.len());
        self.bytes.extend_from_slice(bytes);
    }

    /// The vector itself, to write at its end; room for about `expected` bytes is there.
    pub fn tail(&mut self, expected: usize) -> &mut Vec<u8> {
        self.make_room(expected);
        &mut self.bytes
    }

    fn make_room(&mut self, wanted: usize) {
        if self.bytes.capacity() == 0 {
            self.bytes = UNUSED.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(FIRST));
        }
        if self.bytes.capacity() - self.bytes.len() < wanted {
            if self.start > 0 {
                self.bytes.drain(..self.start);
                self.start = 0;
            }
            self.bytes.reserve(wanted);
        }
    }

    /// Gives the memory back when nothing is in it.
    pub fn release(&mut self) {
        if self.is_empty() && self.bytes.capacity() > 0 {
            let bytes = std::mem::take(&mut self.bytes);
            self.start = 0;
            self.filled_up = false;
            if bytes.capacity() == FIRST {
                UNUSED.with_borrow_mut(|unused| {
                    if unused.len() < STOCK {
                        unused.push(bytes);
                    }
                });
            }
        }
    }

    /// Reads once. `Ok(0)` is the end of the stream.
    pub fn poll_read<IO: AsyncRead + Unpin>(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.poll_read_of(io, cx, 0)
    }

    /// Reads once, when so many bytes are known to come.
    pub fn poll_read_of<IO: AsyncRead + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
        coming: u64,
    ) -> Poll<io::Result<usize>> {
        let capacity = self.bytes.capacity();
        if coming > FIRST as u64 && capacity < LARGEST {
            self.make_room(usize::try_from(coming).unwrap_or(LARGEST).min(LARGEST));
        } else if self.filled_up && capacity < LARGEST {
            self.filled_up = false;
            self.make_room(capacity.max(FIRST));
        } else {
            self.make_room(if self.is_empty() { 1 } else { FIRST / 4 });
        }
        let room = self.bytes.capacity() - self.bytes.len();
        let result = pin!(io.read_buf(&mut self.bytes)).poll(cx);
        match &result {
            Poll::Ready(Ok(count)) => self.filled_up = *count == room,
            Poll::Ready(Err(_)) | Poll::Pending => self.release(),
        }
        result
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.consume(usize::MAX >> 1);
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_when_consumed_then_memory_goes_back() {
        let mut buffer = Buffer::default();
        buffer.push(b"hello");
        buffer.consume(2);
        assert_eq!(buffer.bytes(), b"llo");
        buffer.push(&[b'x'; FIRST]);
        assert_eq!(buffer.len(), FIRST + 3);
        buffer.consume(FIRST + 3);
        buffer.release();
        assert_eq!(buffer.bytes.capacity(), 0);
    }

    #[tokio::test]
    async fn buffer_when_reads_fill_it_then_it_grows_to_a_bound() {
        let data = vec![7u8; 1 << 20];
        let mut io = &data[..];
        let mut buffer = Buffer::default();
        let mut total = 0;
        loop {
            let count = std::future::poll_fn(|cx| buffer.poll_read(&mut io, cx)).await.unwrap();
            if count == 0 {
                break;
            }
            total += count;
            buffer.consume(count);
        }
        assert_eq!(total, data.len());
        assert!(buffer.bytes.capacity() <= 2 * LARGEST, "{}", buffer.bytes.capacity());
    }
}
