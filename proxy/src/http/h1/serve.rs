//! The life of a client's HTTP/1 connection: wait, read a head, run the pipeline, wait again.

use super::{
    super::{
        body::Downstream,
        buffer::Buffer,
        call::{Call, Tally},
        conn::ConnInfo,
        filter,
        head::{RequestHead, ResponseHead},
        parse::{HeadError, HeadLimits},
        pipeline,
        reply::{self, Reply},
        rules::RequestRules,
    },
    down::{Arrival, Connection},
};
use crate::{
    config::{HttpManager, Underscores},
    listen::{Place, Served, Stream},
    telemetry::{ResponseFlags, Wire, connection::CountedConnection},
    worker::{Timer, Worker, WorkerRoot, earlier, jittered},
};
use std::{
    cell::RefCell,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

/// How long the refusal of a head may take to be sent.
const REFUSAL: Duration = Duration::from_secs(1);

/// The memory of a request's and a response's head, lent to a connection while a request is under way.
#[derive(Debug, Default)]
struct Heads {
    request: RequestHead,
    response: ResponseHead,
}

/// Heads that a worker keeps for the next requests.
const STOCK: usize = 64;

thread_local! {
    // Boxed: a connection holds a pointer while it is busy and nothing while it idles.
    #[allow(clippy::vec_box)]
    static UNUSED: RefCell<Vec<Box<Heads>>> = const { RefCell::new(Vec::new()) };
}

fn take_heads() -> Box<Heads> {
    UNUSED.with_borrow_mut(Vec::pop).unwrap_or_default()
}

fn give_back(mut heads: Box<Heads>) {
    heads.request.clear();
    heads.response.clear();
    UNUSED.with_borrow_mut(|unused| {
        if unused.len() < STOCK {
            unused.push(heads);
        }
    });
}

enum Waited {
    Request,
    Refused(HeadError),
    /// The head did not come in time.
    Late,
    /// The client left before its head was whole.
    Cut,
    /// There was no request for too long.
    Idle,
    /// The same, and then there was one all the same: the last.
    Last,
    /// The whole request did not come in time: its head is not there yet.
    Slow,
    /// A stream may not be without anything for so long.
    Stuck,
    /// A stream may not last for so long.
    Lasted,
    Over,
}

/// Serves a client's connection to its end. `first` was read from it already.
pub fn serve(
    worker: Rc<Worker>,
    stream: Stream,
    first: Buffer,
    conn: Box<ConnInfo>,
    (place, mut served_by): (Place, Served),
) -> impl Future<Output = ()> {
    let mut side = Connection::new(stream, first);
    // What an idle connection holds is counted: nothing that a request needs lies in it.
    async move {
        let mut timer = Timer::default();
        let waker = worker.register().await;
        let ends = connection_end(&worker, served_by.manager());
        let mut served = 0u32;
        loop {
            let mut heads = None;
            let waited =
                wait(&worker, &place, &mut side, served_by.manager(), &mut timer, &mut heads, (ends, served)).await;
            if matches!(waited, Waited::Idle | Waited::Last) {
                conn.http_stats().iter().for_each(|stats| stats.cx_idle_timeout.add(1));
            }
            let Some(mut heads) = heads else { break };
            let root = worker.root();
            if !served_by.renew(&place, &root) {
                break;
            }
            let manager = served_by.manager();
            let reply = match waited {
                Waited::Request | Waited::Last => None,
                Waited::Refused(error) => {
                    tracing::debug!(client = %conn.remote, %error, "request refused");
                    Some(refusal(error))
                }
                Waited::Late => Some(reply::HEAD_TIMEOUT),
                Waited::Slow => Some(reply::REQUEST_TIMEOUT),
                Waited::Stuck => Some(reply::late(reply::STREAM_IDLE, false)),
                Waited::Lasted => Some(reply::late(reply::MAX_DURATION, false)),
                Waited::Cut => {
                    let mut call = call(&worker, &root, manager, &conn, &mut timer, &mut heads);
                    call.request.clear();
                    call.tally.flags |= ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION;
                    call.tally.details = "downstream_remote_disconnect";
                    if let Some(stats) = conn.http_stats() {
                        stats.cx_rx_bytes_total.add(side.unread());
                    }
                    call.record();
                    break;
                }
                Waited::Idle | Waited::Over => break,
            };
            let refused = matches!(waited, Waited::Refused(_));
            served = served.saturating_add(1);
            let many = manager.max_requests_per_connection.is_some_and(|most| served >= most);
            if many {
                conn.http_stats().iter().for_each(|stats| stats.cx_max_requests_reached.add(1));
            }
            let last = worker.ends_with_answer(&place) || many || reply.is_some() || matches!(waited, Waited::Last);
            side.begin(manager, last, ends);
            let call = call(&worker, &root, manager, &conn, &mut timer, &mut heads);
            answer(call, &mut side, reply).await;
            give_back(heads);
            if !side.can_go_on() {
                if !side.must_linger() {
                    conn.counted.iter().for_each(CountedConnection::ends_here);
                }
                if let Some(visit) = conn.visit.as_ref().filter(|_| !refused && side.ends_in_order()) {
                    visit.closed_for("deferred_close_on_drained_connection");
                }
                break;
            }
        }
        drop(waker);
        if ends.is_some_and(|ends| ends <= Instant::now()) {
            conn.http_stats().iter().for_each(|stats| stats.cx_max_duration_reached.add(1));
        }
        let delay = served_by.manager().delayed_close_timeout;
        if side.must_linger() && !delay.is_zero() {
            let until = Instant::now() + delay;
            poll_fn(|cx| match side.poll_linger(cx) {
                Poll::Ready(()) => Poll::Ready(()),
                Poll::Pending => timer.poll(cx, Some(until)).map(|()| {
                    conn.counted.iter().for_each(CountedConnection::ends_here);
                    conn.http_stats().iter().for_each(|stats| stats.cx_delayed_close_timeout.add(1));
                }),
            })
            .await;
        } else {
            side.say_goodbye().await;
        }
        if let Some(visit) = conn.visit.as_ref().filter(|_| side.was_reset()) {
            visit.reset();
        }
    }
}

fn call<'a>(
    worker: &'a Rc<Worker>,
    root: &'a Rc<WorkerRoot>,
    manager: &'a Arc<HttpManager>,
    conn: &'a ConnInfo,
    timer: &'a mut Timer,
    heads: &'a mut Heads,
) -> Call<'a> {
    let Heads { request, response } = heads;
    Call {
        worker,
        root,
        manager,
        filters: &manager.filters,
        router: &manager.router,
        conn,
        timer,
        request,
        response,
        tally: Tally::start(manager.observes()),
    }
}

/// What answers a request, or tells its client with `reply` why it is not served. In a box of its own, which is there while it runs.
fn answer<'a>(
    mut call: Call<'a>,
    side: &'a mut Connection,
    reply: Option<Reply>,
) -> Pin<Box<impl Future<Output = ()> + use<'a>>> {
    Box::pin(async move {
        match reply {
            None => pipeline::run(&mut call, side).await,
            Some(reply) => Box::pin(refuse(&mut call, side, reply)).await,
        }
    })
}

/// Waits for a request's head, where `served` requests have come before and `ends` is when the connection is old. While nothing has
/// come it holds no memory but its own.
fn wait<'a>(
    worker: &'a Worker,
    place: &'a Place,
    side: &'a mut Connection,
    manager: &'a HttpManager,
    timer: &'a mut Timer,
    heads: &'a mut Option<Box<Heads>>,
    (ends, served): (Option<Instant>, u32),
) -> impl Future<Output = Waited> + use<'a> {
    let limits = HeadLimits {
        bytes: manager.max_head_bytes,
        headers: manager.max_headers,
        chunked_length: manager.chunked_length,
        names: manager.names,
    };
    let rules = RequestRules {
        http_10: manager.accept_http_10,
        any_method: manager.any_method,
        urls: manager.absolute_urls,
        secure_urls: side.io().is_tls()
            || manager.edge.as_deref().is_none_or(|edge| !edge.use_remote_address || edge.trusted_hops > 0),
        chunked_length: manager.chunked_length,
        underscores: manager.underscores != Underscores::Reject,
    };
    let mut since: Option<Instant> = None;
    let mut first_byte: Option<Instant> = None;
    poll_fn(move |cx| {
        let memory = heads.get_or_insert_with(take_heads);
        let waited = match side.poll_request(cx, limits, rules, &mut memory.request) {
            Poll::Ready(Ok(Arrival::Request)) => match since.and_then(|since| some(manager.idle_timeout, since)) {
                Some(idle) if idle <= first_byte.unwrap_or_else(Instant::now) => Waited::Last,
                _ => Waited::Request,
            },
            Poll::Ready(Ok(Arrival::Refused(error))) => Waited::Refused(error),
            Poll::Ready(Err(_)) if side.has_begun() => Waited::Cut,
            Poll::Ready(Ok(Arrival::Closed) | Err(_)) => Waited::Over,
            Poll::Pending => {
                let now = Instant::now();
                if side.has_input() {
                    let first = *first_byte.get_or_insert(now);
                    let (head, whole) = (some(manager.request_head_timeout, first), manager.request_timeout);
                    let whole = whole.map(|limit| first + limit);
                    let idle = some(manager.stream_idle_timeout, first);
                    let longest = some(manager.max_stream_duration.unwrap_or_default(), first);
                    let limits =
                        [(head, Waited::Late), (whole, Waited::Slow), (idle, Waited::Stuck), (longest, Waited::Lasted)];
                    let limits = limits.into_iter().filter_map(|(at, late)| Some((at?, late)));
                    let Some((at, late)) = limits.min_by_key(|(at, _)| *at) else { return Poll::Pending };
                    return timer.poll(cx, Some(at)).map(|()| late);
                }
                if let Some(heads) = heads.take() {
                    give_back(heads);
                }
                side.rest();
                let since = *since.get_or_insert(now);
                let drained = worker.idle_end(place, since);
                // One that has served waits for a request that may be on its way; one that never had any has no such.
                let rest = if served > 0 { manager.drain_timeout } else { Duration::ZERO };
                let old = ends.filter(|_| served == 0 || !manager.safe_connection_duration).map(|ends| ends + rest);
                let idle = some(manager.idle_timeout, since).map(|idle| idle + rest);
                let is_idle = || idle.is_some_and(|until| until <= Instant::now());
                return timer
                    .poll(cx, earlier(idle, earlier(drained, old)))
                    .map(|()| if is_idle() { Waited::Idle } else { Waited::Over });
            }
        };
        Poll::Ready(waited)
    })
}

fn some(limit: Duration, since: Instant) -> Option<Instant> {
    (!limit.is_zero()).then(|| since + limit)
}

/// When a connection that begins now takes no more requests.
fn connection_end(worker: &Worker, manager: &HttpManager) -> Option<Instant> {
    let limit = manager.max_connection_duration?;
    Some(Instant::now() + jittered(limit, manager.connection_duration_jitter, &worker.rng))
}

/// What a client is told whose request was not understood.
fn refusal(error: HeadError) -> Reply {
    let details = match error {
        HeadError::Malformed("a header's value") => "http1.invalid_characters",
        HeadError::Malformed(_) | HeadError::Length => "http1.codec_error",
        HeadError::Framing(_) => "http1.content_length_and_chunked_not_allowed",
        HeadError::Coding => "http1.invalid_transfer_encoding",
        HeadError::Version => "low_version",
        HeadError::TooLong => "http1.headers_too_large",
        HeadError::TooMany => "http1.too_many_headers",
        HeadError::Url => "http1.invalid_url",
        HeadError::Scheme => "http1.invalid_scheme",
        HeadError::Insecure => "http1.https_url_on_plaintext_connection",
        HeadError::Underscore => "http1.unexpected_underscore",
    };
    let (code, flags) = (error.status(), ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR);
    Reply { code, body: super::super::head::reason(code), flags, details, close: true }
}

/// Tells the client why its request is not served, and closes.
async fn refuse(call: &mut Call<'_>, side: &mut Connection, reply: Reply) {
    call.request.clear();
    filter::on_refused(call, None, false);
    reply::send(call, side, reply, true);
    let until = Instant::now() + REFUSAL;
    let timer: &mut Timer = call.timer;
    poll_fn(|cx| match side.poll_flush(cx) {
        Poll::Ready(_) => Poll::Ready(()),
        Poll::Pending => timer.poll(cx, Some(until)),
    })
    .await;
    // What was not understood was read all the same.
    let wire = Wire { received: side.wire().received + side.unread(), ..side.wire() };
    if let Some(observed) = call.observed() {
        observed.down = wire;
    }
    call.tally.moments.ended = true;
    call.tell_listener(wire);
    if let Some(stats) = call.conn.http_stats() {
        stats.count_unfinished(false);
        stats.cx_rx_bytes_total.add(wire.received);
        stats.cx_tx_bytes_total.add(wire.sent);
    }
    call.record();
}
