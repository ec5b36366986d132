//! A connection's bytes, plain or through TLS.

use crate::tls::{TlsInfo, TlsStream};
use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    os::fd::AsRawFd as _,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// A TCP connection of which some bytes were read before it was known what they are: they are read again.
#[derive(Debug)]
pub struct Rewound {
    tcp: TcpStream,
    first: Vec<u8>,
    at: usize,
}

impl Rewound {
    /// Gives `first` to the reader before the bytes of the connection.
    pub fn new(tcp: TcpStream, first: Vec<u8>) -> Self {
        Self { tcp, first, at: 0 }
    }
}

/// How long a side may take to get what was written before its connection is reset.
pub const LAST_WORDS: Duration = Duration::from_secs(5);
/// Between two looks whether it has.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Plain TCP or TLS over it.
#[derive(Debug)]
pub enum Stream {
    /// Plain text.
    Plain(TcpStream),
    /// TLS, as server or as client.
    Tls(TlsStream<Rewound>),
}

impl Stream {
    /// The TCP connection below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => &tls.get_ref().0.tcp,
        }
    }

    /// Waits until the other side has all that was written, since a reset takes away what is on its way, or is gone itself. When the
    /// connection is dropped then, the other side is told of a reset, and not of an end in order.
    pub async fn reset_at_end(&self, until: Instant) {
        let unsent = || {
            let mut unsent: libc::c_int = 0;
            // SAFETY: the descriptor is open as long as `self` is, and the kernel writes one number into `unsent`.
            let asked = unsafe { libc::ioctl(self.tcp().as_raw_fd(), libc::TIOCOUTQ, &raw mut unsent) };
            // Who has no peer is cut off already, and what was not sent stays.
            asked == 0 && unsent > 0 && self.tcp().peer_addr().is_ok()
        };
        while unsent() && Instant::now() < until {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        if let Err(error) = socket2::SockRef::from(self.tcp()).set_linger(Some(Duration::ZERO)) {
            tracing::debug!(%error, "a connection cannot be reset; it is closed");
        }
    }

    /// Tells the other side of TLS that nothing was cut off (`close_notify`), unless that had to wait for room.
    pub async fn say_goodbye(&mut self) {
        if self.is_tls() {
            poll_fn(|cx| {
                let _ = Pin::new(&mut *self).poll_shutdown(cx);
                Poll::Ready(())
            })
            .await;
        }
    }

    /// This side's address.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.tcp().local_addr().ok()
    }

    /// Whether the bytes are protected.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// What its TLS is known by, where there is any; our own certificate is left out.
    pub fn tls_info(&self) -> Option<TlsInfo> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(tls) => Some(TlsInfo::of(tls.get_ref().1, true, None)),
        }
    }

    /// Whether TLS agreed on HTTP/2.
    pub fn is_for_http2(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => tls.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }

    /// Whether bytes that were written wait in the TLS layer because the socket had no room: only a flush sends them.
    pub fn holds_back(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => tls.get_ref().1.wants_write(),
        }
    }

    /// Ready when reading may give something. For TLS always ready: what the layer holds is seen only by reading.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Plain(tcp) => tcp.poll_read_ready(cx).map(drop),
            Self::Tls(_) => Poll::Ready(()),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, out),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, out),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, data),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, data),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, parts),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(tcp) => tcp.is_write_vectored(),
            Self::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

impl AsyncRead for Rewound {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.at < this.first.len() {
            let count = out.remaining().min(this.first.len() - this.at);
            out.put_slice(&this.first[this.at..this.at + count]);
            this.at += count;
            if this.at == this.first.len() {
                this.first = Vec::new();
                this.at = 0;
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.tcp).poll_read(cx, out)
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write(cx, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn pieces_when_written_to_a_stream_then_go_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut stream = Stream::Plain(client);
        assert!(stream.is_write_vectored());
        let pieces = [io::IoSlice::new(b"frame"), io::IoSlice::new(b"payload")];
        let count = std::future::poll_fn(|cx| Pin::new(&mut stream).poll_write_vectored(cx, &pieces)).await.unwrap();
        assert_eq!(count, 12);
    }
}
