//! Between the state of a connection and its socket: the driver's turns.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use super::super::frame::Code;
use super::outbox::SLICES;
use super::{Fault, Mux, ROOM};

/// With so many bytes waiting, nothing more is read: heads and answers to questions on top of what bodies may take.
const DEAF: usize = 2 * ROOM;
/// Bytes that are read at once.
pub(in super::super) const READ: usize = 128 * 1024;
/// With less room than this left, memory is taken anew.
const LEAST: usize = READ / 2;

thread_local! {
    /// What connections read into. A connection that waits holds none of it, but of large payloads that wait for their reader.
    static INCOMING: RefCell<BytesMut> = RefCell::default();
}

impl Mux {
    /// Reads what there is and takes it in. Ready with false at the end of the connection.
    ///
    /// # Errors
    /// When the connection breaks; the peer's fault is handed to [`Mux::fail`] already.
    pub(in super::super) fn poll_read<IO: AsyncRead + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<bool>> {
        if std::mem::take(&mut self.overdrawn)
            && let Some(flood) = self.flood
        {
            return Poll::Ready(Err(self.fail(Fault { code: Code::ENHANCE_YOUR_CALM, what: flood.as_str() })));
        }
        if self.out.len() > DEAF {
            self.deaf = true;
            return Poll::Pending;
        }
        let came = ready!(INCOMING.with_borrow_mut(|memory| {
            if memory.capacity() < LEAST {
                // What nobody holds any more is used again.
                memory.reserve(READ);
            }
            poll_read_buf(Pin::new(io), cx, memory).map_ok(|_| memory.split().freeze())
        }))?;
        if came.is_empty() {
            return Poll::Ready(Ok(false));
        }
        self.read_much = came.len() >= LEAST;
        Poll::Ready(match self.receive(&came) {
            Ok(()) => Ok(true),
            Err(fault) => Err(self.fail(fault)),
        })
    }

    /// Whether so much came with the last read that there is probably more.
    pub(in super::super) fn read_much(&self) -> bool {
        self.read_much
    }

    /// Writes what waits; ready when nothing does.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(in super::super) fn poll_write<IO: AsyncWrite + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            self.pump();
            if self.out.is_empty() {
                break;
            }
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = match self.out.slices(&mut slices) {
                1 => ready!(Pin::new(&mut *io).poll_write(cx, &slices[0]))?,
                pieces => ready!(Pin::new(&mut *io).poll_write_vectored(cx, &slices[..pieces]))?,
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(count);
            self.written = self.written.wrapping_add(count as u64);
            self.unflushed = true;
            self.tail = None;
        }
        self.guard.written();
        if self.unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.unflushed = false;
        }
        if std::mem::take(&mut self.deaf) {
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    /// What waits to be written.
    #[cfg(test)]
    pub(in super::super) fn unwritten(&self) -> Vec<u8> {
        self.out.all()
    }

    /// The driver begins a turn: it will see what streams do until [`Mux::turn_ends`].
    pub(in super::super) fn turn_begins(&mut self, cx: &Context<'_>) {
        self.woken = true;
        match &self.driver {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => self.driver = Some(cx.waker().clone()),
        }
    }

    /// From here on the driver must be woken.
    pub(in super::super) fn turn_ends(&mut self) {
        self.woken = false;
    }

    /// There is something for the driver to write, or to see.
    pub(in super::super) fn touch(&mut self) {
        if !std::mem::replace(&mut self.woken, true)
            && let Some(driver) = &self.driver
        {
            driver.wake_by_ref();
        }
    }
}
