//! Connections to endpoints that speak HTTP/2, and their streams as a side of the pipeline.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::inlet::Inlet;
use super::keepalive::Keepalive;
use super::mux::{Key, Limits, Mux, Role};
use super::pause::Pause;
use crate::config::{Http2Keepalive, Http2Options};
use crate::http::body::{Chunk, Piece, SideError, Upstream};
use crate::http::head::{BodyLength, RequestHead, ResponseHead};
use crate::http::headers::{Headers, Known};
use crate::http::parse::HeadError;
use crate::pool::Birth;
use crate::telemetry::Wire;
use crate::telemetry::tracked::ConnectionEnd;
use crate::tls::TlsInfo;

/// What the connection's task and its users share.
struct State {
    active: Cell<u32>,
    served: Cell<u64>,
    idle_since: Cell<Instant>,
}

struct Handle {
    mux: Rc<RefCell<Mux>>,
    state: Rc<State>,
    draining: Cell<bool>,
    limit: usize,
    of_mesh: bool,
    local: Option<SocketAddr>,
    until: Cell<Option<Instant>>,
    /// What its TLS is known by.
    known: RefCell<Option<Rc<TlsInfo>>>,
    /// How it came about.
    birth: RefCell<Option<Rc<Birth>>>,
}

impl Drop for Handle {
    /// Nobody uses the connection any more: its task has to see that.
    fn drop(&mut self) {
        if let Ok(mut mux) = self.mux.try_borrow_mut() {
            mux.touch();
        }
    }
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
    of_mesh: bool,
    local: Option<SocketAddr>,
    options: Http2Options,
) -> io::Result<(Connection, impl Future<Output = ConnectionEnd> + use<IO>)>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    connect_with(io, of_mesh, local, options, (super::MAX_RESPONSE_HEAD as usize, super::MAX_HEADERS), None).await
}

/// Begins HTTP/2 on a connection. The future that comes with it drives the connection and must be spawned on the worker
/// (it ends with the connection, which it tells by [`Connection::is_closed`]); at most `options.max_concurrent_streams`
/// streams are opened at a time, fewer if the endpoint allows fewer. Heads of answers may have so many bytes and headers. Requests
/// tell who we are where it is `of_mesh`.
///
/// # Errors
/// When the connection breaks.
pub async fn connect_with<IO>(
    io: IO,
    of_mesh: bool,
    local: Option<SocketAddr>,
    options: Http2Options,
    (head_bytes, headers): (usize, usize),
    keepalive: Option<Http2Keepalive>,
) -> io::Result<(Connection, impl Future<Output = ConnectionEnd> + use<IO>)>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let limits = Limits {
        streams: 0,
        stream_window: options.stream_window,
        most_stream_window: options.most_stream_window,
        connection_window: options.connection_window,
        most_connection_window: options.most_connection_window,
        head_bytes,
        headers,
        connect: false,
        malformed_ends: false,
    };
    let mux = Rc::new(RefCell::new(Mux::new(Role::Client, limits, (&options).into())));
    let state = Rc::new(State { active: Cell::new(0), served: Cell::new(0), idle_since: Cell::new(Instant::now()) });
    let handle = Rc::new(Handle {
        mux: mux.clone(),
        state: state.clone(),
        draining: Cell::new(false),
        limit: options.max_concurrent_streams as usize,
        of_mesh,
        local,
        until: Cell::new(None),
        known: RefCell::default(),
        birth: RefCell::default(),
    });
    let users = Rc::downgrade(&handle);
    let drive = async move {
        let mut io = io;
        let (mut keepalive, mut pause) = (Keepalive::with(keepalive), Pause::default());
        let result = poll_fn(|cx| {
            let mux = &mut *mux.borrow_mut();
            mux.turn_begins(cx);
            let ended = turn(mux, &mut io, &mut keepalive, &mut pause, state.active.get() > 0, cx);
            mux.turn_ends();
            match ended {
                // Nobody has a stream, and nobody can open one any more.
                Poll::Pending if users.strong_count() == 0 => Poll::Ready(Ok(())),
                ended => ended,
            }
        })
        .await;
        let late = result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut);
        let end = ConnectionEnd {
            remote: users.strong_count() > 0 && !late,
            active: state.active.get() > 0,
            served: state.served.get(),
        };
        mux.borrow_mut().lose(result.as_ref().err());
        if let Err(error) = result {
            tracing::debug!(%error, "an HTTP/2 connection to an endpoint broke");
        }
        // The endpoint hears what was the matter, if it listens at once.
        let _ = poll_fn(|cx| Poll::Ready(mux.borrow_mut().poll_write(&mut io, cx))).await;
        let _ = poll_fn(|cx| Poll::Ready(Pin::new(&mut io).poll_shutdown(cx))).await;
        end
    };
    Ok((Connection(handle), drive))
}

/// Reads, tells the streams, writes what they left; ready when the connection is over.
fn turn<IO: AsyncRead + AsyncWrite + Unpin>(
    mux: &mut Mux,
    io: &mut IO,
    keepalive: &mut Keepalive,
    pause: &mut Pause,
    active: bool,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    if !pause.lasts() {
        match mux.poll_read(io, cx)? {
            // Those who wait for the bytes send them on while they are at hand in the processor's cache; and an endpoint that sends
            // without end keeps nobody from being served.
            Poll::Ready(true) if mux.read_much() => pause.begin(cx),
            Poll::Ready(true) => cx.waker().wake_by_ref(),
            Poll::Ready(false) => return Poll::Ready(Ok(())),
            Poll::Pending => {}
        }
    }
    if keepalive.poll(active, mux, cx).is_ready() {
        return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
    }
    let _ = mux.poll_write(io, cx)?;
    Poll::Pending
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = &self.0.state;
        f.debug_struct("Connection")
            .field("active", &state.active)
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Up {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Up")
            .field("sent", &self.key.is_some())
            .field("answered", &self.answered)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Whether another stream may be opened now: the endpoint has not said GOAWAY and there is room.
    pub fn can_take(&self) -> bool {
        let handle = &*self.0;
        !handle.draining.get()
            && (handle.state.active.get() as usize) < handle.limit
            && handle.mux.borrow().takes_streams()
    }

    /// Whether it is of no more use: it broke, or takes no more streams for good.
    pub fn is_closed(&self) -> bool {
        self.0.draining.get() || self.0.mux.borrow().is_over()
    }

    /// From then on no more streams are opened.
    pub fn serve_until(&self, until: Option<Instant>) {
        self.0.until.set(until);
    }

    /// What its TLS is known by, and how it came about.
    pub fn know(&self, tls: Option<TlsInfo>, birth: Rc<Birth>) {
        *self.0.known.borrow_mut() = tls.map(Rc::new);
        *self.0.birth.borrow_mut() = Some(birth);
    }

    /// Whether it has reached its greatest age.
    pub fn is_too_old(&self) -> bool {
        self.0.until.get().is_some_and(|until| until <= Instant::now())
    }

    /// Opens no more streams; those that are open end in peace.
    pub fn drain(&self) {
        self.0.draining.set(true);
    }

    /// Whether it takes no more streams because somebody wanted that.
    pub fn is_draining(&self) -> bool {
        self.0.draining.get()
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
        Up { handle, key: None, inlet: Inlet::default(), failed: None, reused, answered: false, held: None }
    }
}

/// One request to an endpoint. Dropping it before the response is complete cancels the stream.
pub struct Up {
    handle: Rc<Handle>,
    key: Option<Key>,
    inlet: Inlet,
    failed: Option<SideError>,
    reused: bool,
    answered: bool,
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
    /// What its connection's TLS is known by, where there is any.
    pub fn tls(&self) -> Option<Rc<TlsInfo>> {
        self.handle.known.borrow().clone()
    }

    /// How its connection came about.
    pub fn birth(&self) -> Option<Rc<Birth>> {
        self.handle.birth.borrow().clone()
    }

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
        self.key = Some(self.handle.mux.borrow_mut().send_request(head, self.handle.of_mesh)?);
        Ok(())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let mux = &mut *self.handle.mux.borrow_mut();
            self.inlet.close(mux);
            mux.close(key);
        }
        let state = &self.handle.state;
        state.active.set(state.active.get() - 1);
        if state.active.get() == 0 {
            state.idle_since.set(Instant::now());
        }
    }
}

impl Upstream for Up {
    fn send_head(&mut self, head: &RequestHead) {
        if let Err(error) = self.begin(head) {
            self.failed = Some(error);
        }
    }

    fn send_data(&mut self, data: Chunk<'_>) {
        if let Some(key) = self.key {
            self.handle.mux.borrow_mut().send_data(key, data);
        }
    }

    fn send_end(&mut self, trailers: Option<&Headers>) {
        // The request's end is not the tunnel's.
        if let Some(key) = self.key.filter(|_| self.held.is_none()) {
            self.handle.mux.borrow_mut().send_end(key, trailers);
        }
    }

    fn queued(&self) -> usize {
        self.key.map_or(0, |key| self.handle.mux.borrow().queued(key)) + usize::from(self.failed.is_some())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        match self.key {
            Some(key) => self.handle.mux.borrow_mut().poll_sent(key, cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_any_head(&mut self, cx: &mut Context<'_>, head: &mut ResponseHead) -> Poll<Result<(), SideError>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        let Some(key) = self.key else { return Poll::Ready(Err(SideError::Ended)) };
        let mux = &mut *self.handle.mux.borrow_mut();
        // HTTP/2 has no such status (RFC 9113, section 8.6).
        let none = || Poll::Ready(Err(SideError::Head(HeadError::Malformed("101 over HTTP/2"))));
        if let Some((status, headers)) = mux.take_interim(key) {
            if status == 101 {
                return none();
            }
            head.clear();
            (head.status, head.headers) = (status, headers);
            return Poll::Ready(Ok(()));
        }
        let (status, headers, ended) = std::task::ready!(mux.poll_answer(key, cx))?;
        self.answered = true;
        if status == 101 {
            return none();
        }
        head.clear();
        head.status = status;
        head.keep_alive = true;
        head.headers = headers;
        head.body = match head.headers.known(Known::ContentLength).and_then(|value| std::str::from_utf8(value).ok()) {
            _ if ended => BodyLength::Empty,
            // What was read as a number when it came.
            Some(length) => length.parse().map_or(BodyLength::Unknown, BodyLength::Exact),
            None => BodyLength::Unknown,
        };
        match self.held {
            Some(Tunnel::Connect) if (200..300).contains(&status) => head.body = BodyLength::Tunnel,
            Some(Tunnel::Upgrade) if status == 200 => {
                head.status = 101;
                head.body = BodyLength::Tunnel;
            }
            _ => {}
        }
        Poll::Ready(Ok(()))
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece<'_>, SideError>> {
        let Some(key) = self.key else { return Poll::Ready(Err(SideError::Ended)) };
        self.inlet.poll(&mut self.handle.mux.borrow_mut(), key, cx)
    }

    fn consume(&mut self, count: usize) {
        if let Some(key) = self.key {
            self.inlet.consume(&mut self.handle.mux.borrow_mut(), key, count);
        }
    }

    fn tunnel(&mut self) {
        self.held = None;
    }

    fn sent_any(&self) -> bool {
        self.key.is_some()
    }

    fn reused(&self) -> bool {
        self.reused
    }

    fn wire(&self) -> Wire {
        self.key.map_or_else(Wire::default, |key| self.handle.mux.borrow().wire(key))
    }
}
