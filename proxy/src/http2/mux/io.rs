//! Between the state of a connection and its socket: the driver's turns.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{KEEP, Mux, ROOM};

/// With so many bytes waiting, nothing more is read.
const DEAF: usize = 4 * ROOM;
/// Bytes that are read at once.
const READ: usize = 64 * 1024;

thread_local! {
    /// What connections read into. A connection that waits holds none of it.
    static INCOMING: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into_boxed_slice());
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
        if self.out.len() - self.out_at > DEAF {
            self.deaf = true;
            return Poll::Pending;
        }
        INCOMING.with_borrow_mut(|bytes| {
            let mut read = ReadBuf::new(bytes);
            ready!(Pin::new(io).poll_read(cx, &mut read))?;
            let came = read.filled();
            if came.is_empty() {
                return Poll::Ready(Ok(false));
            }
            Poll::Ready(match self.receive(came) {
                Ok(()) => Ok(true),
                Err(fault) => Err(self.fail(fault)),
            })
        })
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
            if self.out_at == self.out.len() {
                break;
            }
            let count = ready!(Pin::new(&mut *io).poll_write(cx, &self.out[self.out_at..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out_at += count;
            self.unflushed = true;
            self.tail = None;
            if self.out_at == self.out.len() {
                self.out.clear();
                self.out.shrink_to(KEEP);
                self.out_at = 0;
            }
        }
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
    pub(in super::super) fn unwritten(&self) -> &[u8] {
        &self.out[self.out_at..]
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

    /// There is something for the driver to write.
    pub(super) fn touch(&mut self) {
        if !std::mem::replace(&mut self.woken, true)
            && let Some(driver) = &self.driver
        {
            driver.wake_by_ref();
        }
    }
}
