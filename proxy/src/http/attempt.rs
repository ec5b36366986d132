//! One attempt to have a request answered by one endpoint: a connection, the request, the response's head; and then, when no
//! further attempt is wanted, the response's body.

use super::{
    body::{Downstream, SideError, Upstream},
    call::{Call, Waited},
    connecting::{aim, connection, server_name, speaks_http2},
    head::BodyLength,
    limits::{Limits, Passed, Progress},
    pipeline::{Cluster, Stop},
    pump::{PumpError, RequestPump, ResponsePump},
    raw,
    reply::{self, Reply},
    retry::Failure,
    trace, tracked,
    upstream::Up,
};
use crate::{
    pool::{ConnectError, Host, Outcome, Ticket},
    telemetry::{ResponseFlags, stats::ClusterStats},
    worker::{Timer, earlier},
};
use std::{
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

/// Why there is no response.
#[derive(Debug)]
pub(super) enum Failed {
    /// The attempt failed; another may not. The reply is for the case that there is none.
    Attempt(Failure, Reply),
    /// The request is over.
    Stop(Stop),
}

/// What ended the wait for a response's head.
enum Wake {
    Head,
    Upstream(SideError),
    Downstream(SideError),
    Gone,
    Late(Passed),
}

/// By which connection an attempt is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    /// One of the pool, or a new one.
    Any,
    /// A new one, where HTTP/1 is spoken.
    New,
    /// One of its own: the endpoint gets bytes and no request.
    Raw,
}

/// Gets a connection, sends the request (as much as the endpoint takes), and reads the response's head into the call. What comes with the connection is the request's place among those under way.
pub(super) async fn begin<D: Downstream>(
    call: &mut Call<'_>,
    down: &mut D,
    cluster: &Cluster,
    host: &Rc<Host>,
    body: &mut RequestPump,
    limits: &mut Limits,
    line: Line,
) -> Result<(Up, Option<Ticket>), Failed> {
    let asked = call.observed().map(|observed| {
        observed.earlier = observed.up;
        observed.attempted.push((host.address(), host.endpoint().hostname.clone()));
        Instant::now()
    });
    // A request for a tunnel has no end: it counts as whole from the beginning.
    let tunnel = call.request.wants_tunnel();
    let complete = body.has_ended() || tunnel || call.request.body == BodyLength::Empty;
    let acquired = acquire(call, down, cluster, host, limits, line, (complete, body.has_ended())).await;
    call.tally.unconnected += u16::from(acquired.is_err());
    let (mut up, counted) = acquired?;
    cluster.stats().rq_total.add(1);
    cluster.note(host, Outcome::Connected);
    if call.request.no_authority && matches!(up, Up::Http2(_)) {
        return Err(upstream_failed(call, &up, SideError::Limit("what an authority may be")));
    }
    let start = call.tally.start;
    if let (Some(observed), Some(asked)) = (call.observed(), asked) {
        observed.connected(up.birth(), start);
        observed.ready = Some(asked.elapsed());
        observed.tls = up.tls();
    }
    let observed = call.tally.wall.is_some();
    if observed {
        call.tally.upstream_local = up.local_address();
        call.tally.upstream_remote = up.birth().and_then(|birth| birth.remote);
        call.tally.upstream_protocol = Some(up.protocol());
    }
    if call.tally.trace.is_some() {
        trace::on_connection(call, up.protocol());
    }
    call.response.clear();
    up.send_head(call.request);
    tracked::sent(call);
    if !body.rewind(&mut up) {
        return Err(Failed::Stop(reply::TERMINATED.into()));
    }
    let began = Instant::now();
    let longest = limits.told_attempt.or(cluster.config().max_stream_duration);
    limits.attempt = longest.filter(|limit| !limit.is_zero()).map(|limit| began + limit);
    // When the request had come whole, or this attempt began after that: from then on limits of the route and of attempts count.
    let mut whole = tunnel.then_some(began);
    let mut last = began;
    let mut deaf = false;
    let mut received = None;
    let wake = loop {
        let log_at = call.tally.log_at;
        let (timer, response): (&mut Timer, _) = (call.timer, &mut *call.response);
        let (manager, request, tally) = (call.manager, &*call.request, &mut call.tally);
        let wake = poll_fn(|cx| {
            let mut moved = false;
            if !body.done && !deaf {
                match body.poll(cx, down, &mut up, &mut moved) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(PumpError::Source(error))) => return Poll::Ready(Some(Wake::Downstream(error))),
                    // It does not listen any more, but may have answered before it stopped.
                    Poll::Ready(Err(PumpError::Sink(_))) => deaf = true,
                    Poll::Pending => {}
                }
            }
            if observed && body.has_ended() && received.is_none() {
                received = Some(Instant::now());
            }
            let head = loop {
                match up.poll_any_head(cx, response) {
                    Poll::Ready(Ok(())) if response.is_interim() => {
                        if response.is_known_interim() {
                            // The endpoint has begun to answer: the limit of an attempt is over, as in Envoy.
                            tally.interim = true;
                            limits.per_try = None;
                        }
                        if reply::interim(manager, request, response) {
                            tally.code = response.status;
                            down.send_interim(request, response);
                            // What the client does not take yet goes with what comes later.
                            let _ = down.poll_flush(cx);
                        }
                    }
                    head => break head,
                }
            };
            match head {
                Poll::Ready(Ok(())) => return Poll::Ready(Some(Wake::Head)),
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Wake::Upstream(error))),
                Poll::Pending => {}
            }
            if (body.has_ended() || body.blocked) && down.poll_gone(cx).is_ready() {
                return Poll::Ready(Some(Wake::Gone));
            }
            if moved {
                last = Instant::now();
            }
            if (body.has_ended() || deaf) && whole.is_none() {
                whole = Some(if request.body == BodyLength::Empty { last } else { Instant::now() });
            }
            let (blocked, owes) = (body.blocked, !body.has_ended());
            let progress = Progress { whole, blocked, last, owes, answered: false, slow_client: false };
            limits.poll(cx, timer, progress, log_at).map(|passed| passed.map(Wake::Late))
        })
        .await;
        call.tally.request_bytes = body.read();
        if let Some(observed) = call.observed() {
            observed.up = observed.earlier + up.wire();
        }
        if let Some(wake) = wake {
            break wake;
        }
        call.log_on();
    };
    if !matches!(wake, Wake::Head) {
        cluster.stats().moved(up.wire());
        // A stream that ends before its answer comes is reset; of HTTP/1 that is the end of the connection, which counts by itself.
        let theirs = matches!(&wake, Wake::Upstream(error) if !is_of_protocol(error));
        if matches!(up, Up::Http2(_)) && !theirs {
            cluster.stats().rq_tx_reset.add(1);
        }
    }
    if observed {
        let start = call.tally.start;
        let moments = &mut call.tally.moments;
        moments.sending = Some(began - start);
        // Later attempts send again what had come before.
        moments.received = moments.received.or(received.map(|at| at - start));
        moments.sent = received.map(|at| at - start);
        moments.answered = matches!(wake, Wake::Head).then(|| start.elapsed());
    }
    // It is not the client that is waited for.
    let heard = body.has_ended() || body.blocked;
    match wake {
        Wake::Head => {
            // What kept an earlier attempt from its endpoint is not this one's.
            call.tally.transport_failure = None;
            call.tally.upstream_time = Some(began.elapsed());
            tracked::answered(call);
            Ok((up, counted))
        }
        Wake::Upstream(error) => {
            call.response.clear();
            if is_of_protocol(&error) {
                cluster.stats().cx_protocol_error.add(1);
            }
            Err(upstream_failed(call, &up, error))
        }
        Wake::Downstream(SideError::Broken(_) | SideError::Ended | SideError::Reset(_)) | Wake::Gone => {
            Err(Failed::Stop(Stop::Gone))
        }
        Wake::Downstream(error) => Err(Failed::Stop(reply::bad_body(&error).into())),
        Wake::Late(passed) => Err(passed_limit(call, cluster, limits, passed, (heard, tunnel))),
    }
}

/// Counts for the cluster that the request is for, whosever its endpoint is.
fn of_request(call: &Call<'_>, count: impl Fn(&ClusterStats)) {
    call.tally.cluster.iter().for_each(|cluster| count(cluster.stats()));
}

/// What becomes of a request without an answer when a limit has passed; with whether its client was `heard` to the end.
fn passed_limit(
    call: &mut Call<'_>,
    cluster: &Cluster,
    limits: &Limits,
    passed: Passed,
    (heard, tunnel): (bool, bool),
) -> Failed {
    // The client of a tunnel could still say something.
    let listening = heard && !tunnel;
    match passed {
        Passed::Idle => Failed::Stop(reply::late(reply::STREAM_IDLE, listening).into()),
        Passed::Request => Failed::Stop(reply::REQUEST_TIMEOUT.into()),
        Passed::Route => Failed::Stop(limits.timeout(reply::TIMEOUT).into()),
        Passed::PerTry => {
            of_request(call, |stats| stats.rq_per_try_timeout.add(1));
            Failed::Attempt(Failure::PerTryTimeout, limits.timeout(reply::PER_TRY_TIMEOUT))
        }
        Passed::PerTryIdle => {
            of_request(call, |stats| stats.rq_per_try_idle_timeout.add(1));
            Failed::Attempt(Failure::PerTryTimeout, limits.timeout(reply::PER_TRY_IDLE_TIMEOUT))
        }
        Passed::Attempt => {
            cluster.stats().rq_max_duration_reached.add(1);
            let failure = Failure::Reset { sent: true, reused: false, answered: true };
            Failed::Attempt(failure, reply::late(reply::ATTEMPT_DURATION, heard))
        }
        Passed::Stream => {
            call.tally.filters().reply.grpc = Some(4);
            Failed::Stop(reply::late(reply::MAX_DURATION, listening).into())
        }
    }
}

/// How Envoy names that an endpoint has reset its stream after it had begun to answer.
const AFTER_RESET: &str = "upstream_reset_after_response_started{remote_reset}";
/// The same where its connection has ended.
const AFTER_END: &str = "upstream_reset_after_response_started{connection_termination}";

/// Whether the endpoint broke the rules of HTTP.
fn is_of_protocol(error: &SideError) -> bool {
    matches!(
        error,
        SideError::Head(_) | SideError::Chunk(_) | SideError::Limit(_) | SideError::NotBase64(_) | SideError::Cut
    )
}

fn upstream_failed(call: &mut Call<'_>, up: &Up, error: SideError) -> Failed {
    let reset = Failure::Reset { sent: up.sent_any(), reused: up.reused(), answered: up.answered() };
    let of_tls = match &error {
        SideError::Broken(error) => tls_error(error),
        _ => None,
    };
    call.tally.transport_failure = of_tls.filter(|_| call.tally.wall.is_some()).map(|error| error.to_string().into());
    // An interim answer is the beginning of one.
    let began = call.tally.interim;
    let told = |reply: Reply, details| if began { Reply { details, ..reply } } else { reply };
    match error {
        SideError::Refused => Failed::Attempt(Failure::Refused, reply::REMOTE_REFUSED),
        SideError::Reset(_) => Failed::Attempt(reset, told(reply::REMOTE_RESET, AFTER_RESET)),
        // With TLS 1.3 an endpoint tells after the handshake that it does not take this client.
        SideError::Broken(error) if !up.reused() && !up.answered() && refuses_client(&error) => {
            call.tally.owner.iter().for_each(|owner| owner.stats().tls().connection_error.add(1));
            Failed::Attempt(Failure::Connect, reply::CONNECT_FAILURE)
        }
        SideError::Broken(_) | SideError::Ended => Failed::Attempt(reset, told(reply::TERMINATED, AFTER_END)),
        SideError::Head(_) | SideError::Chunk(_) | SideError::Limit(_) | SideError::NotBase64(_) | SideError::Cut => {
            Failed::Attempt(Failure::Reset { sent: true, reused: false, answered: true }, reply::PROTOCOL_ERROR)
        }
    }
}

/// What TLS says of it, if it is to blame.
fn tls_error(error: &std::io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>())
}

/// Whether the other side does not take this one's certificate (RFC 8446, section 6.2). Other alerts may come after it has read a
/// request.
fn refuses_client(error: &std::io::Error) -> bool {
    use rustls::AlertDescription as Alert;
    let Some(rustls::Error::AlertReceived(alert)) = tls_error(error) else { return false };
    matches!(
        alert,
        Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError
            | Alert::CertificateRequired
    )
}

async fn acquire<D: Downstream>(
    call: &mut Call<'_>,
    down: &mut D,
    cluster: &Cluster,
    host: &Rc<Host>,
    limits: &mut Limits,
    line: Line,
    (complete, read): (bool, bool),
) -> Result<(Up, Option<Ticket>), Failed> {
    // For a connection a request waits as long as for an answer.
    let now = Instant::now();
    limits.begin_route(complete.then_some(now));
    let per_try = limits.per_try.filter(|_| complete).map(|limit| now + limit);
    let idle = limits.idle_deadline(now);
    let until = earlier(earlier(limits.deadline, per_try), earlier(idle, limits.stream));
    let connected = match line {
        Line::Raw => Box::pin(raw::connect(call, cluster, host)).await.map(|raw| (Up::Raw(Box::new(raw)), None)),
        Line::Any | Line::New => {
            let http2 = speaks_http2(call.is_http2(), cluster, host);
            let aim = aim(call.conn, cluster, host, server_name(call.request, cluster, host));
            let aim = if line == Line::New { aim.unpooled() } else { aim };
            let worker = call.worker;
            let connecting = connection(worker, cluster, host, http2, limits.priority, aim);
            let gone = |cx: &mut Context<'_>| if read { down.poll_gone(cx) } else { Poll::Pending };
            match call.wait_for(connecting, until, gone).await {
                Waited::Done(connected) => connected.map(|(up, counted)| (up, Some(counted))),
                Waited::Gone => return Err(Failed::Stop(Stop::Gone)),
                Waited::Late => {
                    let late = late(call, limits, per_try, complete);
                    if matches!(late, Failed::Attempt(..)) {
                        of_request(call, |stats| stats.rq_per_try_timeout.add(1));
                    }
                    return Err(late);
                }
            }
        }
    };
    match connected {
        Ok(acquired) => Ok(acquired),
        Err(error) => {
            let reply = match &error {
                ConnectError::Overflow(_) => return Err(Failed::Stop(reply::OVERFLOW.into())),
                ConnectError::Timeout(..) => reply::CONNECT_TIMEOUT,
                ConnectError::Own(..) => reply::LOCAL_CONNECT_FAILURE,
                ConnectError::Tcp(..) | ConnectError::Tls(..) | ConnectError::Tunnel(..) => reply::CONNECT_FAILURE,
            };
            cluster.stats().rq_pending_failure_eject.add(1);
            call.tally.transport_failure = call.tally.wall.and_then(|_| error.reason()).map(Into::into);
            tracing::debug!(cluster = %cluster.config().name, %error, "no connection to the endpoint");
            Err(Failed::Attempt(Failure::Connect, reply))
        }
    }
}

/// The limit that has passed while a connection was waited for.
fn late(call: &mut Call<'_>, limits: &Limits, per_try: Option<Instant>, complete: bool) -> Failed {
    let over = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= Instant::now());
    if over(limits.deadline) {
        Failed::Stop(limits.timeout(reply::TIMEOUT).into())
    } else if over(per_try) {
        Failed::Attempt(Failure::PerTryTimeout, limits.timeout(reply::PER_TRY_TIMEOUT))
    } else if over(limits.stream) {
        call.tally.filters().reply.grpc = Some(4);
        Failed::Stop(reply::late(reply::MAX_DURATION, complete).into())
    } else {
        Failed::Stop(reply::late(reply::STREAM_IDLE, complete).into())
    }
}

/// How an answer that has begun ends when a limit has passed.
fn cut(passed: Passed) -> Stop {
    let (flags, details) = match passed {
        Passed::Route => (ResponseFlags::UPSTREAM_TIMEOUT, "response_timeout"),
        Passed::Request => (ResponseFlags::none(), "request_overall_timeout"),
        Passed::Stream => (ResponseFlags::none(), "max_duration_timeout"),
        Passed::Attempt => {
            (ResponseFlags::UPSTREAM_MAX_STREAM_DURATION_REACHED, "upstream_max_stream_duration_reached")
        }
        Passed::PerTry | Passed::PerTryIdle => (ResponseFlags::UPSTREAM_TIMEOUT, "upstream_per_try_idle_timeout"),
        Passed::Idle => (ResponseFlags::STREAM_IDLE_TIMEOUT, "stream_idle_timeout"),
    };
    Stop::Abort(flags, details)
}

/// Passes the response's body on, and what is left of the request's.
pub(super) async fn finish<D: Downstream>(
    call: &mut Call<'_>,
    down: &mut D,
    up: &mut Up,
    body: &mut RequestPump,
    mut limits: Limits,
    tunnel: bool,
) -> Result<(), Stop> {
    let observed = call.tally.wall.is_some();
    let filters = call.tally.filters.as_mut();
    let (recode, pace, trailing, messages) = filters
        .map(|state| {
            (state.recode_response.take(), state.pace.take(), state.trailing.take(), state.grpc_messages.take())
        })
        .unwrap_or_default();
    let mut response = ResponsePump::new(observed, recode).paced(pace).trailing(trailing).counting(messages);
    let mut answered = false;
    let mut deaf = false;
    // The bytes of a tunnel are counted anew.
    let before = if tunnel { call.tally.request_bytes } else { 0 };
    let (mut received, mut ended) = (None, None);
    let (keeps, mut began) = (call.manager.needs.observed, None);
    let (http1, mut left, mut faulty, mut theirs) = (!call.is_http2(), false, false, false);
    // The endpoint of a tunnel over HTTP/1 ended it first: to logs its connection broke, as in Envoy.
    let mut hung_up = false;
    if tunnel {
        (limits.route, limits.deadline) = (None, None);
    }
    // Looked up only when something has to be waited for: a small answer is there at once.
    let mut last: Option<Instant> = None;
    let result = loop {
        let (timer, log_at) = (&mut *call.timer, call.tally.log_at);
        let result = poll_fn(|cx| {
            let mut moved = false;
            if !body.done && !deaf {
                match body.poll(cx, down, up, &mut moved) {
                    Poll::Ready(Ok(())) | Poll::Pending => {}
                    Poll::Ready(Err(PumpError::Source(_))) => return Poll::Ready(Some(Err(Stop::Gone))),
                    Poll::Ready(Err(PumpError::Sink(_))) => deaf = true,
                }
            }
            if !answered {
                match response.poll(cx, down, up, &mut moved) {
                    Poll::Ready(Ok(())) => {
                        answered = true;
                        hung_up = tunnel && !body.done && matches!(up, Up::Http1(_));
                    }
                    Poll::Ready(Err(PumpError::Sink(_))) => return Poll::Ready(Some(Err(Stop::Gone))),
                    Poll::Ready(Err(PumpError::Source(error))) => {
                        // An answer of HTTP/1 that is cut is one that breaks the protocol.
                        faulty = is_of_protocol(&error);
                        theirs = !faulty;
                        let (flags, details) = match error {
                            SideError::Chunk(_)
                            | SideError::Head(_)
                            | SideError::Limit(_)
                            | SideError::NotBase64(_)
                            | SideError::Cut => (
                                ResponseFlags::UPSTREAM_PROTOCOL_ERROR,
                                "upstream_reset_after_response_started{protocol_error}",
                            ),
                            SideError::Reset(_) | SideError::Refused => {
                                (ResponseFlags::UPSTREAM_REMOTE_RESET, AFTER_RESET)
                            }
                            SideError::Broken(_) | SideError::Ended => {
                                (ResponseFlags::UPSTREAM_CONNECTION_TERMINATION, AFTER_END)
                            }
                        };
                        return Poll::Ready(Some(Err(Stop::Abort(flags, details))));
                    }
                    Poll::Pending => {}
                }
            }
            if observed && body.has_ended() && received.is_none() {
                received = Some(Instant::now());
            }
            if keeps && response.bytes > 0 && began.is_none() {
                began = Some(Instant::now());
            }
            if observed && answered && ended.is_none() {
                ended = Some(Instant::now());
            }
            // A client of HTTP/1 that leaves first ends its connection by that.
            left |= tunnel && http1 && body.done && !answered;
            if answered && (!tunnel || body.done || deaf) {
                return Poll::Ready(Some(Ok(())));
            }
            let ended = body.has_ended() && !tunnel;
            if (ended || body.blocked && !tunnel) && down.poll_gone(cx).is_ready() {
                return Poll::Ready(Some(Err(Stop::Gone)));
            }
            let since = match last {
                Some(since) if !moved => since,
                _ => *last.insert(Instant::now()),
            };
            let progress = Progress {
                whole: ended.then_some(since),
                blocked: body.blocked && !tunnel,
                last: since,
                owes: !ended && !tunnel,
                answered: true,
                slow_client: !tunnel && response.waits_for(down),
            };
            limits.poll(cx, timer, progress, log_at).map(|passed| passed.map(|passed| Err(cut(passed))))
        })
        .await;
        if let Some(result) = result {
            break result;
        }
        call.tally.response_bytes = response.bytes;
        call.tally.request_bytes = before + body.read();
        if let Some(observed) = call.observed() {
            observed.up = observed.earlier + up.wire();
        }
        call.log_on();
    };
    if left {
        call.tally.flags |= ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION;
        call.tally.details = "downstream_remote_disconnect";
    } else if hung_up {
        call.tally.flags |= ResponseFlags::UPSTREAM_CONNECTION_TERMINATION;
        call.tally.details = AFTER_END;
    }
    call.tally.response_bytes = response.bytes;
    let wire = up.wire();
    if let Some(owner) = &call.tally.owner {
        owner.stats().moved(wire);
        if faulty {
            owner.stats().cx_protocol_error.add(1);
        }
        if result.is_err() && !theirs && matches!(up, Up::Http2(_)) {
            owner.stats().rq_tx_reset.add(1);
        }
    }
    if let Some(cluster) = &call.tally.cluster {
        match &result {
            Err(Stop::Abort(_, "response_timeout")) => cluster.stats().rq_timeout.add(1),
            Err(Stop::Abort(_, "upstream_per_try_idle_timeout")) => cluster.stats().rq_per_try_idle_timeout.add(1),
            _ => {}
        }
    }
    let start = call.tally.start;
    if let Some(observed) = call.observed() {
        observed.up = observed.earlier + wire;
        observed.body = began.map(|at| at - start);
    }
    if observed {
        let start = call.tally.start;
        call.tally.moments.answer_ended = ended.map(|at| at - start);
        let received = received.map(|at| at - start);
        call.tally.moments.received = call.tally.moments.received.or(received);
        call.tally.moments.sent = call.tally.moments.sent.or(received);
        call.tally.trailers = response.trailers.take();
    }
    call.tally.grpc_status = response.grpc_status.or(call.tally.grpc_status);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::AlertDescription as Alert;

    #[test]
    fn alert_when_it_is_about_the_certificate_then_no_request_was_read() {
        let told = |alert| refuses_client(&std::io::Error::other(rustls::Error::AlertReceived(alert)));
        assert!(told(Alert::UnknownCA) && told(Alert::CertificateRequired) && told(Alert::BadCertificate));
        assert!(!told(Alert::InternalError) && !told(Alert::UserCanceled) && !told(Alert::UnexpectedMessage));
        assert!(!refuses_client(&std::io::ErrorKind::ConnectionReset.into()));
    }
}
