//! Serves an HTTP/2 client: takes its streams up, runs their requests, ends in order.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::guard::{Allowance, Guard};
use super::keepalive::Keepalive;
use super::{Down, convert};
use crate::config::{Http2Options, HttpManager};
use crate::http::head::RequestHead;
use crate::http::parse::HeadError;

/// After the connection broke its requests have so long to notice and to be counted.
const FAREWELL: Duration = Duration::from_secs(5);

/// The bounds of a connection with a client.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Streams and windows.
    pub options: Http2Options,
    /// Bytes of a request's head, counted as RFC 9113, section 6.5.2 does; more answers 431.
    pub max_head_bytes: usize,
    /// Headers of a request; more is [`HeadError::TooMany`].
    pub max_headers: usize,
    /// From the beginning to the client's connection preface.
    pub preface_timeout: Duration,
    /// A connection without streams for so long is closed; zero is never.
    pub idle_timeout: Duration,
    /// A connection takes no more streams after so long.
    pub max_duration: Option<Duration>,
    /// Streams of the connection at most.
    pub max_requests: Option<u32>,
}

impl From<&HttpManager> for Settings {
    fn from(manager: &HttpManager) -> Self {
        Self {
            options: manager.http2,
            max_head_bytes: manager.max_head_bytes,
            max_headers: manager.max_headers,
            preface_timeout: manager.request_head_timeout,
            idle_timeout: manager.idle_timeout,
            max_duration: manager.max_connection_duration,
            max_requests: manager.max_requests_per_connection,
        }
    }
}

/// Serves a connection until it ends. `handle` runs one request each: it gets the head, or why it was refused (it then
/// answers with [`HeadError::status`]), and the stream. When `drain` is ready, the client is told to open no more streams
/// (GOAWAY), those that are open end in peace, and the connection closes.
///
/// # Errors
/// When the connection breaks or the client breaks the protocol. Requests that were under way have then ended.
pub async fn serve<IO, H, F>(
    io: IO,
    tls: bool,
    settings: Settings,
    drain: impl Future<Output = ()>,
    mut handle: H,
) -> io::Result<()>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    H: FnMut(Result<RequestHead, HeadError>, Down) -> F,
    F: Future<Output = ()>,
{
    let allowance =
        Allowance { empty: settings.options.max_empty_frames, priorities: settings.options.max_priority_frames };
    let handshake = Box::pin(builder(&settings).handshake::<_, Bytes>(Guard::new(io, allowance)));
    let mut connection = tokio::time::timeout(settings.preface_timeout, handshake)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no HTTP/2 connection preface in time"))?
        .map_err(io_error)?;
    let mut keepalive = Keepalive::new(connection.ping_pong());
    let mut streams = FuturesUnordered::new();
    let mut drain = pin!(drain);
    let last = Rc::new(Cell::new(false));
    let mut leaving = false;
    let mut idle = pin!(tokio::time::sleep(settings.idle_timeout));
    let mut resting = true;
    let mut age = settings.max_duration.map(|limit| Box::pin(tokio::time::sleep(limit)));
    let mut taken = 0u32;

    let result = poll_fn(|cx| {
        loop {
            // Streams first: what they write leaves with the connection's turn below.
            while let Poll::Ready(Some(())) = streams.poll_next_unpin(cx) {}
            let old = age.as_mut().is_some_and(|age| age.as_mut().poll(cx).is_ready());
            if old {
                age = None;
            }
            let many = settings.max_requests.is_some_and(|most| taken >= most);
            if !leaving && (old || many || last.get() || drain.as_mut().poll(cx).is_ready()) {
                leaving = true;
                connection.graceful_shutdown();
            }
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    taken = taken.saturating_add(1);
                    let (parts, body) = request.into_parts();
                    let head = convert::request(&parts, body.is_end_stream(), tls, settings.max_headers);
                    let owes_continue = head.as_ref().is_ok_and(|head| head.expects_continue);
                    let mut down = Down::new(body, respond, owes_continue, last.clone());
                    if head.as_ref().is_ok_and(RequestHead::wants_tunnel) {
                        down.hold();
                    }
                    streams.push(handle(head, down));
                }
                // A client that has nothing open may close as soon as it hears that we leave.
                Poll::Ready(Some(Err(error))) if leaving && error.is_io() && streams.is_empty() => {
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(io_error(error))),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
        }
        if keepalive.poll(!streams.is_empty(), cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client answers no HTTP/2 ping")));
        }
        if !streams.is_empty() {
            resting = false;
        } else {
            if !resting {
                resting = true;
                idle.as_mut().reset(Instant::now() + settings.idle_timeout);
            }
            if !leaving && !settings.idle_timeout.is_zero() && idle.as_mut().poll(cx).is_ready() {
                leaving = true;
                connection.graceful_shutdown();
                cx.waker().wake_by_ref();
            }
        }
        Poll::Pending
    })
    .await;

    // The streams know by now, or when they are polled, that the connection is gone; they count and log their requests.
    drop(connection);
    let _ = tokio::time::timeout(FAREWELL, async { while streams.next().await.is_some() {} }).await;
    result
}

fn builder(settings: &Settings) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(settings.options.max_concurrent_streams)
        .initial_window_size(settings.options.stream_window)
        .initial_connection_window_size(settings.options.connection_window)
        .max_header_list_size(u32::try_from(settings.max_head_bytes).unwrap_or(u32::MAX))
        .max_frame_size(super::MAX_FRAME)
        .max_send_buffer_size(super::MAX_SEND_BUFFER)
        .max_concurrent_reset_streams(super::MAX_RESET_STREAMS)
        .max_pending_accept_reset_streams(super::MAX_PENDING_RESET_STREAMS)
        .max_local_error_reset_streams(Some(super::MAX_ERROR_RESET_STREAMS))
        .reset_stream_duration(super::RESET_MEMORY);
    if settings.options.allow_connect {
        builder.enable_connect_protocol();
    }
    builder
}

pub(super) fn io_error(error: h2::Error) -> io::Error {
    match error.is_io() {
        true => error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()),
        false => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}
