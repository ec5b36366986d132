//! The way of a request through the proxy, in one place:
//!
//! admit → filters → route → (answer by itself | pick endpoint → connection → send → retry? → response) → record.
//!
//! Every HTTP version comes through here: the client's side is anything that is a [`Downstream`], the endpoint's side an
//! [`super::upstream::Up`]. Nothing is spawned; both sides are polled by the task of the client's connection (or stream).

use super::{
    admit::{admit, again, tunnels},
    body::Downstream,
    call::Call,
    choose::{choose, refused},
    edit, filter, forget,
    head::BodyLength,
    local_reply,
    pump::RequestPump,
    redirect,
    reply::{self, Reply},
    router::{self, Way},
    trace, whole,
};
use crate::{
    config::{Action, Redirect},
    overload,
    pool::ClusterState,
    route::Selected,
    telemetry::{LogFormat, LogKind, ResponseFlags, connection::CountedConnection, stats::HttpStats},
    worker::Timer,
};
use std::{
    future::poll_fn,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

/// How long the last bytes of an answer may take to be taken by the client, when the manager sets no idle timeout.
const FLUSH_LIMIT: Duration = Duration::from_secs(60);

/// Why the way of a request ended early.
#[derive(Debug)]
pub(super) enum Stop {
    /// The client is told.
    Reply(Reply),
    /// The client cannot be told any more: its response began.
    Abort(ResponseFlags, &'static str),
    /// The client went away.
    Gone,
}

impl From<Reply> for Stop {
    fn from(reply: Reply) -> Self {
        Self::Reply(reply)
    }
}

/// Serves one request from head to record. The response is sent whole, or the client's side was aborted.
pub async fn run<D: Downstream>(call: &mut Call<'_>, down: &mut D) {
    let mut body = RequestPump::new(None);
    call.tally.grpc = call.request.is_grpc();
    let counted = call.conn.counted.as_ref().map(|counted| counted.http());
    let _active = counted.map(|stats| stats.begin(call.is_http2()));
    call.tally.begun = true;
    let responded = match down.was_reset() {
        // Before anybody took it up: no endpoint hears of it.
        true => Err(Stop::Gone),
        false => respond(call, down, &mut body).await,
    };
    // Of a stream that we have reset nothing is left to be sent.
    let cut = call.is_http2() && matches!(responded, Err(Stop::Abort(..)));
    match responded {
        Ok(()) => call.tally.moments.ended = true,
        Err(Stop::Reply(reply)) => {
            // What was waited for lasted long enough for the client to send its request to the end; that there is no room for a
            // first attempt is known at once.
            let at_once = call.tally.attempts <= 1 && reply.flags.contains(ResponseFlags::UPSTREAM_OVERFLOW);
            let waited = call.tally.host.is_some() && !at_once;
            if waited || call.tally.flags.contains(ResponseFlags::DELAY_INJECTED) {
                forget::rest(call, down, &mut body).await;
            }
            let close = call.ends_connection();
            reply::send(call, down, reply, close);
            call.tally.moments.ended = true;
        }
        Err(Stop::Abort(flags, details)) => {
            call.tally.flags |= flags;
            call.tally.details = details;
            if let Some(stats) = counted {
                stats.rq_tx_reset.add(1);
                stats.rq_rx_reset.add(1);
            }
            down.abort();
        }
        Err(Stop::Gone) => gone(call, down),
    }
    if down.queued() > 0 && !cut {
        flush(call, down).await;
    }
    let wire = down.wire();
    if let Some(stats) = counted {
        if call.request.expects_continue && !call.manager.proxy_100_continue && call.tally.code > 0 {
            call.conn.counted.iter().for_each(CountedConnection::count_continue);
        }
        // A request for a tunnel has no end.
        let open = call.request.wants_tunnel() || call.request.body != BodyLength::Empty && !body.has_ended();
        if open && call.tally.moments.ended {
            stats.count_unfinished(call.tally.flags.contains(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION));
        }
        // Those of HTTP/2 are counted where they are read and written: most are no request's alone.
        if !call.is_http2() {
            stats.cx_rx_bytes_total.add(wire.received);
            stats.cx_tx_bytes_total.add(wire.sent);
        }
    }
    if let Some(observed) = call.observed() {
        observed.down = wire;
    }
    call.tell_listener(wire);
    if call.tally.underscored && !body.has_ended() && call.request.body != BodyLength::Empty {
        call.tally.flags |= ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR;
        call.tally.details = "http2.unexpected_underscore";
    }
    call.record();
}

fn gone<D: Downstream>(call: &mut Call<'_>, down: &mut D) {
    let (flags, details) = match down.was_reset() {
        true => (ResponseFlags::DOWNSTREAM_REMOTE_RESET, "http2.remote_reset"),
        false if down.broke_rules() => (ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, "http2.violation.of.messaging.rule"),
        false => (ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION, "downstream_remote_disconnect"),
    };
    call.tally.flags |= flags;
    call.tally.details = details;
    call.tally.moments.ended = false;
    if details == "downstream_remote_disconnect" && call.tally.wall.is_some() {
        call.tally.moments.closed = Some(call.tally.start.elapsed());
    }
    down.abort();
}

/// Sends what is left of an answer.
async fn flush<D: Downstream>(call: &mut Call<'_>, down: &mut D) {
    let forward = call.tally.route.and_then(|route| match &route.action {
        Action::Forward(forward) => Some(forward),
        _ => None,
    });
    let limit = forward.and_then(|forward| forward.flush_timeout).or(call.manager.flush_timeout);
    let limit = limit.filter(|_| call.is_http2()).unwrap_or(call.manager.stream_idle_timeout);
    let limit = if limit.is_zero() { FLUSH_LIMIT } else { limit };
    let mut deadline = None;
    let sent = {
        let timer: &mut Timer = call.timer;
        poll_fn(|cx| match down.poll_flush(cx) {
            Poll::Ready(result) => Poll::Ready(result.is_ok()),
            Poll::Pending => {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + limit);
                timer.poll(cx, Some(deadline)).map(|()| false)
            }
        })
        .await
    };
    if !sent {
        gone(call, down);
    }
}

async fn respond<'a, D: Downstream>(call: &mut Call<'a>, down: &mut D, body: &mut RequestPump) -> Result<(), Stop> {
    if call.sheds(overload::Action::StopRequests) {
        return Err(reply::OVERLOADED.into());
    }
    call.begin_lines();
    admit(call).inspect_err(|_| refused(call))?;
    let mut upgraded = None;
    for redirects in 0.. {
        let admitted = if redirects > 0 { again(call) } else { Ok(()) };
        let (mut selected, mut needs_tls) = choose(call);
        // To logs the request that was redirected and the one that it becomes are two, as in Envoy, and both went the new way.
        if redirects > 0 {
            call.log_redirected();
            // What filters found out about the one counts for the other no more.
            if call.forget_dynamic() {
                (selected, needs_tls) = choose(call);
            }
        }
        admitted.inspect_err(|_| refused(call))?;
        if call.manager.log_starts && redirects == 0 {
            call.log_as(LogKind::DownstreamStart);
        }
        tunnels(call, selected, needs_tls).inspect_err(|_| filter::on_refused(call, selected, true))?;
        if redirects == 0 && selected.is_some() && call.request.wants_tunnel() {
            upgraded = call.conn.http_stats().map(HttpStats::upgrade);
        }
        if call.manager.tracing.is_some() && redirects == 0 {
            trace::begin(call, selected);
        }
        filter::on_request(call, down, selected, body).await?;
        if redirects == 0 {
            body.recode = call.tally.filters.as_mut().and_then(|state| state.recode_request.take());
        }
        whole::wait(call, down, body).await?;
        if needs_tls {
            let location = [b"https://", call.request.authority(), call.request.path()].concat();
            call.tally.filters().redirect = Some(location);
            return Err(reply::NEEDS_TLS.into());
        }
        let counted = call.conn.counted.as_ref().map(|counted| counted.http());
        counted.iter().for_each(|stats| stats.router_total.add(1));
        let selected = selected.ok_or(reply::NO_ROUTE)?;
        let forward = match &selected.route.action {
            Action::Forward(forward) => forward,
            Action::Redirect(redirect) => {
                counted.iter().for_each(|stats| stats.router_direct_response.add(1));
                let location = redirect::location(call, selected, redirect);
                return answer(call, down, selected, redirect.code, Some(location), (b"", None, None));
            }
            Action::Direct(direct) => {
                counted.iter().for_each(|stats| stats.router_direct_response.add(1));
                // With a status that leads elsewhere Envoy names the place where the client already is.
                let leads = matches!(direct.code, 201 | 300..=399);
                let location = leads.then(|| redirect::location(call, selected, &Redirect::default()));
                return answer(
                    call,
                    down,
                    selected,
                    direct.code,
                    location,
                    (&direct.body, direct.format.as_deref(), direct.content_type.as_deref()),
                );
            }
        };
        match router::forward(call, down, selected, forward, body, redirects).await? {
            Way::Done => break,
            Way::Redirected => {
                call.tally.grpc = call.request.is_grpc();
                filter::again(call);
            }
        }
    }
    drop(upgraded);
    Ok(())
}

/// Answers as a route says.
fn answer<'a, D: Downstream>(
    call: &mut Call<'a>,
    down: &mut D,
    selected: Selected<'a>,
    code: u16,
    location: Option<Vec<u8>>,
    (body, format, kind): (&[u8], Option<&LogFormat>, Option<&str>),
) -> Result<(), Stop> {
    call.tally.details = "direct_response";
    // What a 400 is the answer to may be followed by more of it.
    let close = call.ends_connection() || code == 400 && !call.is_http2();
    // The body is written before there is a status, as in Envoy.
    let written = format.map(|format| local_reply::write(format, call, 0, &String::from_utf8_lossy(body)));
    let body = written.as_deref().unwrap_or(body);
    if call.manager.local_replies.is_some() || call.tally.grpc {
        local_reply::answer(call, down, selected, (code, location), (body, kind), close);
        return Ok(());
    }
    reply::begin(call, code);
    if let Some(location) = location {
        call.response.headers.push(b"location", &location);
    }
    edit::for_client(call, selected);
    if let Some(kind) = kind {
        call.response.headers.set("content-type", kind.as_bytes());
    }
    // What the route changes does not know it yet, what filters change does.
    call.tally.code = code;
    reply::content_type(call, body, None);
    reply::finish(call, down, body, close);
    Ok(())
}

/// Writes a number; what has more than 20 digits is cut.
pub(crate) fn decimal(number: u128, text: &mut [u8; 20]) -> &[u8] {
    let mut number = u64::try_from(number).unwrap_or(u64::MAX);
    let mut at = text.len();
    loop {
        at -= 1;
        text[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 || at == 0 {
            return &text[at..];
        }
    }
}

/// Names a cluster's state, for the signature of the attempt.
pub(crate) type Cluster = Rc<ClusterState>;
