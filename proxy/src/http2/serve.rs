//! Serves an HTTP/2 client: takes its streams up, runs their requests, ends in order.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::time::Instant;

use super::Down;
use super::frame::Code;
use super::guard::Flood;
use super::keepalive::Keepalive;
use super::mux::{Fault, Incoming, Limits, Mux, Role, Trouble};
use super::pause::Pause;
use crate::config::{Http2Keepalive, Http2Options, HttpManager};
use crate::http::head::RequestHead;
use crate::http::parse::HeadError;

/// After the connection broke its requests have so long to notice and to be counted.
const FAREWELL: Duration = Duration::from_secs(5);
/// So long and so much is read of a client that was told that the connection ends.
const LINGER: Duration = Duration::from_secs(1);
const LAST_WORDS: usize = 64 * 1024;
/// Work with heads, as [`Mux::effort`] counts it, that a client has at one turn; then other connections have theirs.
const TURN: u64 = 128 * 1024;
/// Reads that bring very much, in one turn.
const MUCH: u32 = 2;
/// Bytes that are written between two rests.
const MUCH_WRITTEN: u64 = 256 * 1024;

/// The bounds of a connection with a client.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Streams and windows.
    pub options: Http2Options,
    /// Bytes of a request's head, counted as RFC 9113, section 6.5.2 does; more answers 431.
    pub max_head_bytes: usize,
    /// Headers of a request; more is [`HeadError::TooMany`].
    pub max_headers: usize,
    /// From the beginning to the client's connection preface, and from the beginning of a head to its end; zero is never.
    pub head_timeout: Duration,
    /// A connection without streams for so long is closed; zero is never.
    pub idle_timeout: Duration,
    /// A connection takes no more streams after so long.
    pub max_duration: Option<Duration>,
    /// A client that was told that we leave, and does not say that it heard, may open streams for so long; and one that takes
    /// nothing of our last words is waited for as long, and then for a moment more.
    pub drain_timeout: Duration,
    /// Streams of the connection at most.
    pub max_requests: Option<u32>,
    /// When the client is asked whether it is still there; `None` is [`super::keepalive::INTERVAL`], while there are streams.
    pub keepalive: Option<Http2Keepalive>,
    /// A malformed request ends the connection, as a client that cannot be understood may be an attack; else its stream alone.
    pub malformed_ends: bool,
}

impl From<&HttpManager> for Settings {
    fn from(manager: &HttpManager) -> Self {
        Self {
            options: manager.http2,
            max_head_bytes: manager.max_head_bytes,
            max_headers: manager.max_headers,
            head_timeout: shortest([
                manager.request_head_timeout,
                manager.request_timeout.unwrap_or_default(),
                manager.stream_idle_timeout,
                manager.max_stream_duration.unwrap_or_default(),
            ]),
            idle_timeout: manager.idle_timeout,
            max_duration: manager.max_connection_duration,
            drain_timeout: manager.drain_timeout.max(Duration::from_millis(1)),
            max_requests: manager.max_requests_per_connection,
            keepalive: manager.http2_keepalive,
            malformed_ends: !manager.http2.malformed_ends_stream,
        }
    }
}

/// The shortest of these limits; zero is none.
fn shortest<const N: usize>(limits: [Duration; N]) -> Duration {
    limits.into_iter().filter(|limit| !limit.is_zero()).min().unwrap_or_default()
}

/// Why a connection takes no more streams, where it is not its client's wish, nor ours as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It was without streams for too long.
    Idle,
    /// It has lasted long enough.
    Old,
    /// It has had as many streams as it may.
    WornOut,
    /// The client does not answer pings.
    Silent,
    /// The client does too much of something.
    Flooded(Flood),
    /// The client broke a rule that concerns all of it.
    Faulty,
}

/// What is told of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It takes no more streams.
    Ends(Ending),
    /// Frames told of trouble.
    Trouble(Trouble),
}

/// Serves a connection until it ends. `handle` runs one request each: it gets the head, or why it was refused (it then
/// answers with [`HeadError::status`]), and the stream. When `drain` is ready, the client is told to open no more streams
/// (GOAWAY), those that are open end in peace, and the connection closes. `tell` is told once of each other reason for that, and of
/// frames that tell of trouble.
///
/// # Errors
/// When the connection breaks or the client breaks the protocol. Requests that were under way have then ended.
pub async fn serve<IO, H, F>(
    mut io: IO,
    tls: bool,
    settings: Settings,
    drain: impl Future<Output = ()>,
    tell: impl Fn(Event),
    mut handle: H,
) -> io::Result<()>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    H: FnMut(Result<RequestHead, HeadError>, Down) -> F,
    F: Future<Output = ()>,
{
    let Settings { options, .. } = settings;
    let limits = Limits {
        streams: options.max_concurrent_streams,
        stream_window: options.stream_window,
        most_stream_window: options.most_stream_window,
        connection_window: options.connection_window,
        most_connection_window: options.most_connection_window,
        head_bytes: settings.max_head_bytes,
        headers: settings.max_headers,
        connect: options.allow_connect,
        malformed_ends: settings.malformed_ends,
    };
    let mux = Rc::new(RefCell::new(Mux::new(Role::Server, limits, (&options).into())));
    let greeted = greet(&mux, &mut io, settings.head_timeout).await;
    let mut keepalive = Keepalive::with(settings.keepalive);
    let mut streams = FuturesUnordered::new();
    let mut drain = pin!(drain);
    let mut idle = Idle::new(settings.idle_timeout);
    let mut slow = Idle::new(settings.head_timeout);
    let (mut unheard, mut unread) = (Idle::new(settings.drain_timeout), Idle::new(settings.drain_timeout));
    let mut age = settings.max_duration.map(|limit| Box::pin(tokio::time::sleep(limit)));
    let mut taken = 0u32;
    let mut draining = false;
    let (mut pause, mut rested) = (Pause::default(), mux.borrow().written());

    let served = poll_fn(|cx| {
        if pause.lasts() {
            return Poll::Pending;
        }
        mux.borrow_mut().turn_begins(cx);
        let (until, had, mut much) = (mux.borrow().effort() + TURN, taken, 0);
        let ended = loop {
            // Streams first: what they write leaves with the write below.
            while let Poll::Ready(Some(())) = streams.poll_next_unpin(cx) {}
            let mux_now = &mut *mux.borrow_mut();
            let old = age.as_mut().is_some_and(|age| age.as_mut().poll(cx).is_ready());
            if old {
                tell(Event::Ends(Ending::Old));
                age = None;
            }
            if !draining {
                let many = settings.max_requests.is_some_and(|most| taken >= most);
                if many {
                    tell(Event::Ends(Ending::WornOut));
                }
                draining = old || many || mux_now.is_leaving() || drain.as_mut().poll(cx).is_ready();
                if draining {
                    mux_now.leave();
                }
            }
            let before = taken;
            while let Some(Incoming { key, mut head }) = mux_now.next_request() {
                taken = taken.saturating_add(1);
                if let Ok(head) = &mut head {
                    head.secure |= tls;
                }
                let owes_continue = head.as_ref().is_ok_and(|head| head.expects_continue);
                let wants_tunnel = head.as_ref().is_ok_and(RequestHead::wants_tunnel);
                streams.push(handle(head, Down::new(mux.clone(), key, owes_continue, wants_tunnel)));
            }
            if taken != before {
                continue;
            }
            if mux_now.effort() > until || much >= MUCH {
                // What waits here is no reason to let others wait.
                pause.begin(cx);
                break Poll::Pending;
            }
            match mux_now.poll_read(&mut io, cx) {
                Poll::Ready(Ok(true)) => much += u32::from(mux_now.read_much()),
                Poll::Ready(Ok(false)) => break Poll::Ready(Ok(())),
                // A client that has nothing open may close as soon as it hears that we leave.
                Poll::Ready(Err(error))
                    if draining && streams.is_empty() && error.kind() != io::ErrorKind::InvalidData =>
                {
                    break Poll::Ready(Ok(()));
                }
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
        };
        let mux = &mut *mux.borrow_mut();
        mux.turn_ends();
        mux.take_trouble().into_iter().for_each(|trouble| tell(Event::Trouble(trouble)));
        if ended.is_ready() {
            return ended;
        }
        if keepalive.poll(!streams.is_empty(), mux, cx).is_ready() {
            tell(Event::Ends(Ending::Silent));
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client answers no HTTP/2 ping")));
        }
        if slow.poll(!mux.awaits_head(), cx).is_ready() {
            let fault = Fault { code: Code::ENHANCE_YOUR_CALM, what: "a head does not end in time" };
            return Poll::Ready(Err(mux.fail(fault)));
        }
        if idle.poll(!streams.is_empty() || taken != had, cx).is_ready() {
            if !mux.is_leaving() {
                tell(Event::Ends(Ending::Idle));
            }
            mux.leave();
        }
        if unheard.poll(!mux.is_told(), cx).is_ready() {
            mux.heard();
        }
        let before = mux.written();
        if ready_or_pending(mux.poll_write(&mut io, cx))? && mux.has_left() {
            return Poll::Ready(Ok(()));
        }
        if mux.written() != before {
            unread = Idle::new(settings.drain_timeout);
        }
        // What it makes room for is written at once, without end where a client takes it as fast: others have their turn between.
        if mux.written().wrapping_sub(rested) > MUCH_WRITTEN {
            rested = mux.written();
            pause.begin(cx);
        }
        if unread.poll(!mux.has_left(), cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client does not read our last words",
            )));
        }
        Poll::Pending
    });
    let result = match greeted {
        Ok(()) => served.await,
        Err(error) => Err(error),
    };

    if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidData) {
        tell(Event::Ends(mux.borrow().flood().map_or(Ending::Faulty, Ending::Flooded)));
    }
    mux.borrow_mut().lose(result.as_ref().err());
    // What was no request and ended the connection is told of as well.
    let incoming = std::iter::from_fn(|| mux.borrow_mut().next_request());
    for Incoming { key, head } in incoming.filter(|incoming| incoming.head.is_err()) {
        streams.push(handle(head, Down::new(mux.clone(), key, false, false)));
    }
    // The streams know by now, or when they are polled, that the connection is gone; they count and log their requests.
    let farewell = async {
        let streams = async { while streams.next().await.is_some() {} };
        let last_words = async {
            let written = poll_fn(|cx| mux.borrow_mut().poll_write(&mut io, cx)).await;
            if written.is_ok() && poll_fn(|cx| Pin::new(&mut io).poll_shutdown(cx)).await.is_ok() {
                linger(&mut io).await;
            }
        };
        tokio::join!(streams, last_words);
    };
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
    mux.borrow_mut().take_trouble().into_iter().for_each(|trouble| tell(Event::Trouble(trouble)));
    result
}

/// Tells the client our settings and waits for its preface.
async fn greet<IO>(mux: &RefCell<Mux>, io: &mut IO, limit: Duration) -> io::Result<()>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let greeting = poll_fn(|cx| {
        let mux = &mut *mux.borrow_mut();
        let _ = mux.poll_write(io, cx)?;
        while !mux.is_greeted() {
            if !ready!(mux.poll_read(io, cx))? {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Poll::Ready(Ok(()))
    });
    let late = || io::Error::new(io::ErrorKind::TimedOut, "no HTTP/2 connection preface in time");
    match limit.is_zero() {
        true => greeting.await,
        false => tokio::time::timeout(limit, greeting).await.map_err(|_| late()).flatten(),
    }
}

/// Reads on for a moment, so that what the client still sends does not reset the connection before it has read our last words.
async fn linger<IO: AsyncRead + Unpin>(io: &mut IO) {
    let mut bytes = [0; 1024];
    let mut left = LAST_WORDS;
    let _ = tokio::time::timeout(LINGER, async {
        while let Ok(count @ 1..) = io.read(&mut bytes).await
            && left > 0
        {
            left = left.saturating_sub(count);
        }
    })
    .await;
}

fn ready_or_pending(result: Poll<io::Result<()>>) -> io::Result<bool> {
    match result {
        Poll::Ready(result) => result.map(|()| true),
        Poll::Pending => Ok(false),
    }
}

/// Finds that a connection had no streams for a time. The clock is looked at when it rests, the timer set when it fires.
struct Idle {
    limit: Duration,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
    since: Option<Instant>,
}

impl Idle {
    fn new(limit: Duration) -> Self {
        Self { limit, timer: None, since: None }
    }

    fn poll(&mut self, active: bool, cx: &mut Context<'_>) -> Poll<()> {
        if self.limit.is_zero() || active {
            self.since = None;
            return Poll::Pending;
        }
        let until = *self.since.get_or_insert_with(Instant::now) + self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= until {
                return Poll::Ready(());
            }
            timer.as_mut().reset(until);
        }
        Poll::Pending
    }
}
