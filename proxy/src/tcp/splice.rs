//! Bytes from one socket to another without a way through this process: the kernel moves them through a pipe (`splice(2)`).

use nix::fcntl::{OFlag, SpliceFFlags, splice};
use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::OwnedFd,
    task::{Context, Poll, ready},
};
use tokio::{io::Interest, net::TcpStream};

/// Bytes that one call moves at most: what a pipe holds.
const AT_ONCE: usize = 64 * 1024;
/// Pipes in use that a worker has at most; more directions copy. Two descriptors and up to 64 KiB of the kernel's memory each.
const MAX_IN_USE: usize = 1024;
/// Unused pipes that a worker keeps.
const STOCK: usize = 64;

thread_local! {
    static UNUSED: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
    static IN_USE: Cell<usize> = const { Cell::new(0) };
}

#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// What came of trying to read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Moving {
    /// So many bytes came.
    Bytes(usize),
    /// The other side has said its last.
    End,
    /// The kernel cannot do it with this socket.
    Impossible,
}

/// A pipe and how much is in it. An empty one goes back to the worker's stock when dropped.
#[derive(Debug)]
pub(crate) struct Pipe {
    ends: Option<Ends>,
    held: usize,
}

impl Pipe {
    /// A pipe from the stock or a new one, unless too many are in use or the system has none.
    pub(crate) fn take() -> Option<Self> {
        if IN_USE.get() >= MAX_IN_USE {
            return None;
        }
        let ends = UNUSED.with_borrow_mut(Vec::pop).or_else(|| {
            let (read, write) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).ok()?;
            Some(Ends { read, write })
        })?;
        IN_USE.set(IN_USE.get() + 1);
        Some(Self { ends: Some(ends), held: 0 })
    }

    /// Whether nothing is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Moves bytes from a socket into it, at most so many. It must be empty.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        most: usize,
    ) -> Poll<io::Result<Moving>> {
        let most = most.min(AT_ONCE);
        let Some(ends) = &self.ends else { return Poll::Ready(Ok(Moving::Impossible)) };
        loop {
            ready!(from.poll_read_ready(cx))?;
            let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
            let moved = from.try_io(Interest::READABLE, || Ok(splice(from, None, &ends.write, None, most, flags)?));
            match moved {
                Ok(0) => return Poll::Ready(Ok(Moving::End)),
                Ok(count) => {
                    self.held = count;
                    return Poll::Ready(Ok(Moving::Bytes(count)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    return Poll::Ready(Ok(Moving::Impossible));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Moves what is in it to a socket: how much.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<u64>> {
        let Some(ends) = &self.ends else { return Poll::Ready(Ok(0)) };
        loop {
            ready!(to.poll_write_ready(cx))?;
            let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
            let moved = to.try_io(Interest::WRITABLE, || Ok(splice(&ends.read, None, to, None, self.held, flags)?));
            match moved {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.held -= count.min(self.held);
                    return Poll::Ready(Ok(count as u64));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        IN_USE.set(IN_USE.get().saturating_sub(1));
        if let Some(ends) = self.ends.take().filter(|_| self.held == 0) {
            UNUSED.with_borrow_mut(|unused| {
                if unused.len() < STOCK {
                    unused.push(ends);
                }
            });
        }
    }
}
