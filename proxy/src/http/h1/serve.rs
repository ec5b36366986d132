//! The life of a client's HTTP/1 connection: wait, read a head, run the pipeline, wait again.

use super::{
    super::{
        body::Downstream,
        buffer::Buffer,
        call::{Call, ConnInfo, Tally},
        filter,
        head::{RequestHead, ResponseHead},
        parse::{HeadError, HeadLimits, RequestRules},
        pipeline,
        reply::{self, Reply},
    },
    down::{Arrival, Connection},
};
use crate::{
    config::{HttpManager, Network, Underscores},
    listen::{Place, Stream},
    telemetry::{ResponseFlags, Wire},
    worker::{Timer, Worker, WorkerRoot, earlier, jittered},
};
use std::{
    cell::RefCell,
    future::poll_fn,
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
    Over,
}

/// Serves a client's connection to its end. `first` was read from it already.
pub async fn serve(worker: Rc<Worker>, stream: Stream, first: Buffer, conn: Box<ConnInfo>, place: Place) {
    let mut side = Connection::new(stream, first);
    let mut timer = Timer::default();
    let mut root = worker.root();
    let Some(mut manager) = http_manager(&place, &root) else { return };
    let waker = worker.register().await;
    let ends = connection_end(&worker, &manager);
    let mut served = 0u32;
    let mut gone = false;
    loop {
        let mut heads = None;
        let waited = wait(&worker, &place, &mut side, &manager, &mut timer, &mut heads, ends).await;
        let Some(mut heads) = heads else { break };
        let newest = worker.root();
        if !Rc::ptr_eq(&newest, &root) {
            root = newest;
            // Where this connection belongs may have changed, or whether it is still allowed.
            match http_manager(&place, &root) {
                Some(new) => manager = new,
                // Its listener or chain is gone: what it asks is answered as before, and then it ends.
                None if place.is_gone(root.config()) => gone = true,
                None => break,
            }
        }
        let Heads { request, response } = &mut *heads;
        let mut call = Call {
            worker: &worker,
            root: &root,
            manager: &manager,
            conn: &conn,
            timer: &mut timer,
            request,
            response,
            tally: Tally::start(manager.observes()),
        };
        let refused = matches!(waited, Waited::Refused(_));
        match waited {
            // Boxed: what a request needs is there while it runs, and an idle connection stays small.
            Waited::Request => {
                served = served.saturating_add(1);
                let many = manager.max_requests_per_connection.is_some_and(|most| served >= most);
                side.begin(&manager, gone || many, ends);
                Box::pin(pipeline::run(&mut call, &mut side)).await;
            }
            Waited::Refused(error) => {
                tracing::debug!(client = %conn.remote, %error, "request refused");
                side.begin(&manager, true, ends);
                Box::pin(refuse(&mut call, &mut side, refusal(error))).await;
            }
            Waited::Late => {
                side.begin(&manager, true, ends);
                Box::pin(refuse(&mut call, &mut side, reply::HEAD_TIMEOUT)).await;
            }
            Waited::Cut => {
                call.request.clear();
                call.tally.flags |= ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION;
                call.tally.details = "downstream_remote_disconnect";
                call.record();
                break;
            }
            Waited::Over => break,
        }
        drop(call);
        give_back(heads);
        if !side.can_go_on() {
            if let Some(visit) = conn.visit.as_ref().filter(|_| !refused && side.ends_in_order()) {
                visit.closed_for("deferred_close_on_drained_connection");
            }
            break;
        }
    }
    drop(waker);
    if side.must_linger() && !manager.delayed_close_timeout.is_zero() {
        let until = Instant::now() + manager.delayed_close_timeout;
        poll_fn(|cx| match side.poll_linger(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => timer.poll(cx, Some(until)),
        })
        .await;
    } else {
        side.say_goodbye().await;
    }
    if let Some(visit) = conn.visit.as_ref().filter(|_| side.was_reset()) {
        visit.reset();
    }
}

fn http_manager(place: &Place, root: &WorkerRoot) -> Option<Arc<HttpManager>> {
    match &place.find(root.config())?.network {
        Network::Http(manager) => Some(manager.clone()),
        _ => None,
    }
}

/// Waits for a request's head. While nothing has come the connection holds no memory but its own.
async fn wait(
    worker: &Worker,
    place: &Place,
    side: &mut Connection,
    manager: &HttpManager,
    timer: &mut Timer,
    heads: &mut Option<Box<Heads>>,
    ends: Option<Instant>,
) -> Waited {
    let limits = HeadLimits {
        bytes: manager.max_head_bytes,
        headers: manager.max_headers,
        chunked_length: manager.chunked_length,
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
    poll_fn(|cx| {
        let memory = heads.get_or_insert_with(take_heads);
        let waited = match side.poll_request(cx, limits, rules, &mut memory.request) {
            Poll::Ready(Ok(Arrival::Request)) => Waited::Request,
            Poll::Ready(Ok(Arrival::Refused(error))) => Waited::Refused(error),
            Poll::Ready(Err(_)) if side.has_begun() => Waited::Cut,
            Poll::Ready(Ok(Arrival::Closed) | Err(_)) => Waited::Over,
            Poll::Pending => {
                let now = Instant::now();
                if side.has_input() {
                    let first = *first_byte.get_or_insert(now);
                    return timer.poll(cx, some(manager.request_head_timeout, first)).map(|()| Waited::Late);
                }
                let deadline = {
                    if let Some(heads) = heads.take() {
                        give_back(heads);
                    }
                    side.rest();
                    let since = *since.get_or_insert(now);
                    let drained = worker.idle_end(place, since);
                    let old = ends.map(|ends| ends + manager.drain_timeout);
                    earlier(some(manager.idle_timeout, since), earlier(drained, old))
                };
                return timer.poll(cx, deadline).map(|()| Waited::Over);
            }
        };
        Poll::Ready(waited)
    })
    .await
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
    call.record();
}
