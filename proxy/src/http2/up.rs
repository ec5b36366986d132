//! Connections to endpoints that speak HTTP/2, and their streams as a side of the pipeline.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::convert::{map_of, request_to, response, side_error};
use super::keepalive::Keepalive;
use super::serve::io_error;
use super::transfer::{Receiver, Sender};
use crate::config::{Http2Keepalive, Http2Options};
use crate::http::body::{Piece, SideError, Upstream};
use crate::http::head::{BodyLength, RequestHead, ResponseHead};
use crate::http::headers::{Headers, Known};

/// What the connection's task and its users share.
struct State {
    active: Cell<u32>,
    served: Cell<u64>,
    closed: Cell<bool>,
    idle_since: Cell<Instant>,
}

struct Handle {
    send: RefCell<SendRequest<Bytes>>,
    state: Rc<State>,
    draining: Cell<bool>,
    limit: usize,
    tls: bool,
    local: Option<SocketAddr>,
    until: Cell<Option<Instant>>,
}

/// A connection to an endpoint, shared by the streams of one worker. Clones are the same connection; when the last clone
/// and the last stream are gone, it closes.
#[derive(Clone)]
pub struct Connection(Rc<Handle>);

/// As [`connect_with`], with pings as they are where nothing is configured.
///
/// # Errors
/// When the connection breaks.
pub async fn connect<IO>(
    io: IO,
    tls: bool,
    local: Option<SocketAddr>,
    options: Http2Options,
) -> io::Result<(Connection, impl Future<Output = ()> + use<IO>)>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    connect_with(io, tls, local, options, None).await
}

/// Begins HTTP/2 on a connection. The future that comes with it drives the connection and must be spawned on the worker
/// (it ends with the connection, which it tells by [`Connection::is_closed`]); at most `options.max_concurrent_streams`
/// streams are opened at a time, fewer if the endpoint allows fewer.
///
/// # Errors
/// When the connection breaks.
pub async fn connect_with<IO>(
    io: IO,
    tls: bool,
    local: Option<SocketAddr>,
    options: Http2Options,
    keepalive: Option<Http2Keepalive>,
) -> io::Result<(Connection, impl Future<Output = ()> + use<IO>)>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(options.stream_window)
        .initial_connection_window_size(options.connection_window)
        .max_header_list_size(super::MAX_RESPONSE_HEAD)
        .max_frame_size(super::MAX_FRAME)
        .max_send_buffer_size(super::MAX_SEND_BUFFER)
        .max_concurrent_reset_streams(super::MAX_RESET_STREAMS)
        .max_local_error_reset_streams(Some(super::MAX_ERROR_RESET_STREAMS))
        .reset_stream_duration(super::RESET_MEMORY);
    let (send, mut connection) = Box::pin(builder.handshake::<_, Bytes>(io)).await.map_err(io_error)?;
    let state = Rc::new(State {
        active: Cell::new(0),
        served: Cell::new(0),
        closed: Cell::new(false),
        idle_since: Cell::new(Instant::now()),
    });
    let handle = Handle {
        send: RefCell::new(send),
        state: state.clone(),
        draining: Cell::new(false),
        limit: options.max_concurrent_streams as usize,
        tls,
        local,
        until: Cell::new(None),
    };
    let drive = async move {
        let mut keepalive = Keepalive::with(connection.ping_pong(), keepalive);
        let mut connection = pin!(connection);
        let result = poll_fn(|cx| {
            if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                return Poll::Ready(result.map_err(io_error));
            }
            match keepalive.poll(state.active.get() > 0, cx) {
                Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        state.closed.set(true);
        if let Err(error) = result {
            tracing::debug!(%error, "an HTTP/2 connection to an endpoint broke");
        }
    };
    Ok((Connection(Rc::new(handle)), drive))
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = &self.0.state;
        f.debug_struct("Connection")
            .field("active", &state.active)
            .field("closed", &state.closed)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Up {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Up").field("sent", &self.sent).field("answered", &self.answered).finish_non_exhaustive()
    }
}

impl Connection {
    /// Whether another stream may be opened now: the endpoint has not said GOAWAY and there is room.
    pub fn can_take(&self) -> bool {
        let handle = &*self.0;
        if handle.draining.get() || handle.state.closed.get() {
            return false;
        }
        let mut send = handle.send.borrow_mut();
        let room = handle.limit.min(send.current_max_send_streams());
        // A clone that has nothing pending is ready at once, or tells that the connection takes no more.
        (handle.state.active.get() as usize) < room
            && matches!(send.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(())))
    }

    /// Whether it is of no more use: it broke, or takes no more streams for good.
    pub fn is_closed(&self) -> bool {
        let handle = &*self.0;
        handle.draining.get()
            || handle.state.closed.get()
            || matches!(
                handle.send.borrow_mut().poll_ready(&mut Context::from_waker(Waker::noop())),
                Poll::Ready(Err(_))
            )
    }

    /// From then on no more streams are opened.
    pub fn serve_until(&self, until: Option<Instant>) {
        self.0.until.set(until);
    }

    /// Whether it has reached its greatest age.
    pub fn is_too_old(&self) -> bool {
        self.0.until.get().is_some_and(|until| until <= Instant::now())
    }

    /// Opens no more streams; those that are open end in peace.
    pub fn drain(&self) {
        self.0.draining.set(true);
    }

    /// Streams that are open.
    pub fn active(&self) -> u32 {
        self.0.state.active.get()
    }

    /// Streams that were begun.
    pub fn served(&self) -> u64 {
        self.0.state.served.get()
    }

    /// Since when no stream has been open; `None` while one is.
    pub fn idle_since(&self) -> Option<Instant> {
        (self.active() == 0).then(|| self.0.state.idle_since.get())
    }

    /// This side's address.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.0.local
    }

    /// Takes a place for one request; the stream itself begins with its head. Ask [`Connection::can_take`] before.
    pub fn open(&self) -> Up {
        let handle = self.0.clone();
        handle.state.active.set(handle.state.active.get() + 1);
        let reused = handle.state.served.get() > 0;
        handle.state.served.set(handle.state.served.get() + 1);
        Up {
            handle,
            response: None,
            receiver: Receiver::default(),
            sender: Sender::default(),
            failed: None,
            sent: false,
            reused,
            answered: false,
            expects: false,
            continued: false,
            held: None,
        }
    }
}

/// One request to an endpoint. Dropping it before the response is complete cancels the stream.
pub struct Up {
    handle: Rc<Handle>,
    response: Option<ResponseFuture>,
    receiver: Receiver,
    sender: Sender,
    failed: Option<SideError>,
    sent: bool,
    reused: bool,
    answered: bool,
    /// The request waits for `100 Continue`.
    expects: bool,
    continued: bool,
    /// A tunnel was asked for and is not granted yet.
    held: Option<Tunnel>,
}

/// What kind of tunnel a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tunnel {
    /// CONNECT: granted by any 2xx (RFC 9113, section 8.5).
    Connect,
    /// Extended CONNECT: granted by 200, which is 101 to HTTP/1 (RFC 8441, section 5).
    Upgrade,
}

impl Up {
    /// This side's address.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.handle.local
    }

    /// Whether anything of an answer was read.
    pub fn answered(&self) -> bool {
        self.answered
    }

    fn begin(&mut self, head: &RequestHead) -> Result<(), SideError> {
        self.held = match head.upgrade() {
            Some(_) => Some(Tunnel::Upgrade),
            None => head.is_connect().then_some(Tunnel::Connect),
        };
        let request = request_to(head, self.handle.tls)?;
        let ended = head.body == BodyLength::Empty && self.held.is_none();
        let mut send = self.handle.send.borrow().clone();
        let (response, stream) = send.send_request(request, ended).map_err(side_error)?;
        self.response = Some(response);
        self.expects = head.expects_continue && head.headers.known(Known::Expect).is_some();
        self.sender.start(stream, ended);
        self.sent = true;
        Ok(())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let state = &self.handle.state;
        state.active.set(state.active.get() - 1);
        state.idle_since.set(Instant::now());
    }
}

impl Upstream for Up {
    fn send_head(&mut self, head: &RequestHead) {
        if let Err(error) = self.begin(head) {
            self.failed = Some(error);
        }
    }

    fn send_data(&mut self, data: &[u8]) {
        self.sender.data(data);
    }

    fn send_end(&mut self, trailers: Option<&Headers>) {
        // The request's end is not the tunnel's.
        if self.held.is_some() {
            return;
        }
        self.sender.end(trailers.map(|trailers| map_of(trailers, self.handle.tls)));
    }

    fn queued(&self) -> usize {
        self.sender.queued() + usize::from(self.failed.is_some())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        match ready!(self.sender.poll_flush(cx)) {
            Ok(()) => Poll::Ready(Ok(())),
            // The endpoint has answered and wants no more of the request (RFC 9113, section 8.1).
            Err(error) if error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR) && !error.is_go_away() => {
                self.sender.discard();
                Poll::Ready(Ok(()))
            }
            Err(error) => Poll::Ready(Err(side_error(error))),
        }
    }

    fn take_continue(&mut self) -> bool {
        std::mem::take(&mut self.continued)
    }

    fn poll_head(&mut self, cx: &mut Context<'_>, head: &mut ResponseHead) -> Poll<Result<(), SideError>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        let Some(pending) = &mut self.response else { return Poll::Ready(Err(SideError::Ended)) };
        while self.expects
            && let Poll::Ready(interim) = pending.poll_informational(cx)
        {
            match interim {
                Some(Ok(interim)) => self.continued |= interim.status() == http::StatusCode::CONTINUE,
                _ => self.expects = false,
            }
        }
        let answer = ready!(Pin::new(pending).poll(cx)).map_err(side_error)?;
        self.response = None;
        self.answered = true;
        let (parts, body) = answer.into_parts();
        response(&parts, body.is_end_stream(), head)?;
        match self.held {
            Some(Tunnel::Connect) if (200..300).contains(&head.status) => head.body = BodyLength::Tunnel,
            Some(Tunnel::Upgrade) if head.status == 200 => {
                head.status = 101;
                head.body = BodyLength::Tunnel;
            }
            _ => {}
        }
        self.receiver = Receiver::new(body);
        Poll::Ready(Ok(()))
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece<'_>, SideError>> {
        self.receiver.poll(cx)
    }

    fn consume(&mut self, count: usize) {
        self.receiver.consume(count);
    }

    fn tunnel(&mut self) {
        self.held = None;
    }

    fn sent_any(&self) -> bool {
        self.sent
    }

    fn reused(&self) -> bool {
        self.reused
    }
}
