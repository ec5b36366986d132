//! The life of a client's HTTP/2 connection on a worker: every stream goes through the pipeline on the newest
//! configuration, and draining ends the connection in order.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::heads::INVALID_HEADER;
use super::{Down, Ending, Event, Flood, PREFACE, Settings, Trouble, serve};
use crate::config::HttpManager;
use crate::http::buffer::Buffer;
use crate::http::head::{RequestHead, ResponseHead, Version};
use crate::http::parse::HeadError;
use crate::http::reply::{self, Reply};
use crate::http::{Call, ConnInfo, Downstream, Tally, pipeline};
use crate::listen::{Place, Served, Stream};
use crate::telemetry::{ResponseFlags, stats::CodecStats};
use crate::worker::{Timer, Worker, jittered};

/// Bytes that are read and forgotten of a client on which is hung up.
const LAST_WORDS: usize = 64 * 1024;
/// How long a connection goes on that was opened while all are to end: nobody else may have been there yet, and a client that is
/// sent away before its first request may come back at once, for ever.
const LATE: Duration = Duration::from_secs(1);

/// A stream that its client resets without an answer counts as reset early for so long (as in Envoy).
const PREMATURE: Duration = Duration::from_secs(1);

/// What the streams of a connection share.
struct Shared {
    conn: Box<ConnInfo>,
    place: Place,
    served: RefCell<Served>,
}

/// Serves a client's connection to its end. `first` was read from it already.
pub async fn connection(
    worker: Rc<Worker>,
    mut stream: Stream,
    mut first: Buffer,
    conn: Box<ConnInfo>,
    (place, served): (Place, Served),
) {
    if !begins_rightly(&mut stream, &mut first, served.manager()).await {
        tracing::debug!(client = %conn.remote, "a client that should speak HTTP/2 does not");
        return;
    }
    let mut settings = Settings::from(&**served.manager());
    let jitter = served.manager().connection_duration_jitter;
    settings.max_duration = settings.max_duration.map(|limit| jittered(limit, jitter, &worker.rng));
    let remote = conn.remote;
    let secure = conn.secure;
    let shared = Rc::new(Shared { conn, place, served: RefCell::new(served) });
    let begun = Instant::now();
    let drain = async {
        worker.until(|| worker.last_moment(&shared.place)).await;
        if worker.ends_since(&shared.place).is_some_and(|since| begun > since) {
            tokio::time::sleep(LATE).await;
        }
    };
    let handle = |head, down| request(worker.clone(), shared.clone(), head, down);
    let tell = |event| {
        let Some(stats) = shared.conn.http_stats() else { return };
        let ending = match event {
            Event::Ends(ending) => ending,
            Event::Trouble(trouble) => return count(&stats.codecs, trouble),
        };
        match ending {
            Ending::Idle => stats.cx_idle_timeout.add(1),
            Ending::Old => stats.cx_max_duration_reached.add(1),
            Ending::WornOut => stats.cx_max_requests_reached.add(1),
            Ending::Silent => stats.codecs.keepalive_timeout.add(1),
            Ending::Faulty => stats.cx_protocol_error.add(1),
            Ending::Flooded(Flood::Resets) => stats.rq_too_many_premature_resets.add(1),
            Ending::Flooded(Flood::Empty) => stats.codecs.empty_frames_flood.add(1),
            Ending::Flooded(Flood::Priorities) => stats.codecs.priority_frames_flood.add(1),
            Ending::Flooded(Flood::Updates) => stats.codecs.window_update_frames_flood.add(1),
            Ending::Flooded(Flood::Questions | Flood::Answers) => stats.codecs.outbound_control_flood.add(1),
        }
    };
    let io = Prefixed { first, stream, shared: shared.clone() };
    if let Err(error) = serve(io, secure, settings, drain, tell, handle).await {
        tracing::debug!(client = %remote, %error, "an HTTP/2 connection with a client broke");
        if let Some(visit) = shared.conn.visit.as_ref().filter(|_| error.kind() == io::ErrorKind::ConnectionReset) {
            visit.reset();
        }
    }
}

/// Counts what a client or we had trouble with.
fn count(stats: &CodecStats, trouble: Trouble) {
    let Trouble { resets_received, resets_sent, malformed, oversized, farewells } = trouble;
    stats.rx_reset.add(resets_received);
    stats.tx_reset.add(resets_sent);
    stats.rx_messaging_error.add(malformed);
    stats.header_overflow.add(oversized);
    stats.goaway_sent.add(farewells);
}

/// Whether the client begins with the connection preface. One that does not is hung up on in order: closed with bytes of it
/// unread, the connection would be reset.
async fn begins_rightly(stream: &mut Stream, first: &mut Buffer, manager: &HttpManager) -> bool {
    let begins = async {
        loop {
            let count = first.len().min(PREFACE.len());
            if first.bytes()[..count] != PREFACE[..count] {
                return false;
            }
            if count == PREFACE.len() || !matches!(poll_fn(|cx| first.poll_read(stream, cx)).await, Ok(1..)) {
                return true;
            }
        }
    };
    let rightly = tokio::time::timeout(manager.request_head_timeout, begins).await.unwrap_or(false);
    if !rightly {
        let hang_up = async {
            let mut read = 0;
            let _ = poll_fn(|cx| Pin::new(&mut *stream).poll_shutdown(cx)).await;
            while let Ok(count @ 1..) = poll_fn(|cx| first.poll_read(stream, cx)).await {
                first.consume(first.len());
                read += count;
                if read > LAST_WORDS {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(manager.delayed_close_timeout, hang_up).await;
    }
    rightly
}

/// Runs one request.
async fn request(worker: Rc<Worker>, shared: Rc<Shared>, head: Result<RequestHead, HeadError>, mut down: Down) {
    let Shared { conn, place, served } = &*shared;
    let root = worker.root();
    let renewed = served.borrow_mut().renew(place, &root);
    if !renewed {
        // It is not allowed any more, as a connection: no other stream is to come.
        down.end_connection();
        return down.abort();
    }
    let manager = served.borrow().manager().clone();
    if worker.ends_with_answer(place) {
        down.end_connection();
    }
    let (mut request, refused) = match head {
        Ok(request) => (request, None),
        Err(error) => {
            let mut unread = RequestHead::default();
            unread.version = Version::Http2;
            (unread, Some(error))
        }
    };
    let mut response = ResponseHead::default();
    let mut timer = Timer::default();
    let mut call = Call {
        worker: &worker,
        root: &root,
        manager: &manager,
        filters: &manager.filters,
        router: &manager.router,
        conn,
        timer: &mut timer,
        request: &mut request,
        response: &mut response,
        tally: Tally::start(manager.observes()),
    };
    if manager.proxy_100_continue {
        down.leave_continue();
    }
    match refused {
        None => {
            // What was reset before it was taken up is counted already.
            let early = down.was_reset();
            pipeline::run(&mut call, &mut down).await;
            let tally = &call.tally;
            let given_up = !early && tally.code == 0 && tally.flags.contains(ResponseFlags::DOWNSTREAM_REMOTE_RESET);
            if given_up && tally.start.elapsed() <= PREMATURE {
                down.count_reset();
            }
        }
        Some(error) => refuse(&mut call, &mut down, error).await,
    }
    drop(call);
    drop(down);
    request.headers.leave();
    response.headers.leave();
}

/// Tells a client why its request is not taken.
async fn refuse(call: &mut Call<'_>, down: &mut Down, error: HeadError) {
    tracing::debug!(client = %call.conn.remote, %error, "request refused");
    if down.broke_rules() {
        // Its stream is reset already: nothing is answered.
        call.tally.flags |= ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR;
        call.tally.details = match error {
            HeadError::Malformed(INVALID_HEADER) => "http2.invalid.header.field",
            _ => "http2.violation.of.messaging.rule",
        };
        if let Some(stats) = call.conn.http_stats() {
            stats.rq_rx_reset.add(1);
        }
        return call.record();
    }
    let reply = Reply {
        code: error.status(),
        // It may be an answer to HEAD, which has none: what was refused was not read to the end.
        body: "",
        flags: ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR,
        details: "http2.invalid_request",
        close: false,
    };
    reply::send(call, down, reply, false);
    // A few bytes, which wait for nothing but the client's window.
    let limit = call.manager.request_head_timeout;
    let _ = tokio::time::timeout(limit, poll_fn(|cx| down.poll_flush(cx))).await;
    call.record();
}

/// A stream of which the first bytes were read before it was known what they are. All of its bytes are counted.
struct Prefixed {
    first: Buffer,
    stream: Stream,
    /// Whose bytes are counted.
    shared: Rc<Shared>,
}

impl Prefixed {
    fn sent(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let (Poll::Ready(Ok(count)), Some(stats)) = (&written, self.shared.conn.http_stats()) {
            stats.cx_tx_bytes_total.add(*count as u64);
        }
        written
    }
}

impl AsyncRead for Prefixed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = out.filled().len();
        if this.first.is_empty() {
            std::task::ready!(Pin::new(&mut this.stream).poll_read(cx, out))?;
        } else {
            let count = out.remaining().min(this.first.len());
            out.put_slice(&this.first.bytes()[..count]);
            this.first.consume(count);
            if this.first.is_empty() {
                this.first.release();
            }
        }
        if let Some(stats) = this.shared.conn.http_stats() {
            stats.cx_rx_bytes_total.add((out.filled().len() - before) as u64);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, data);
        this.sent(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, parts);
        this.sent(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
