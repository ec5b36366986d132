//! A request on its way to endpoints: as many attempts as its policy and its answers ask for, until one answer goes to the client.

use super::{
    attempt::{self, Failed, Line},
    attempted::Attempted,
    body::{Downstream, Upstream},
    call::Call,
    connecting, edit, filter, forget, hash,
    head::BodyLength,
    headers::Known,
    limits::Limits,
    mirror, outcome,
    pipeline::{Cluster, Stop, decimal},
    pump::RequestPump,
    raw, redirect,
    reply::{self, Reply},
    retry::{self, Failure},
    timeout, trace,
    tracked::{self, Budget},
    upstream::Up,
};
use crate::{
    balance::PickContext,
    config::{Forward, Http2Options, LABELS, Labels, StrictHeaders},
    pool::{Outcome, Ticket},
    route::Selected,
    telemetry::{LogKind, ResponseFlags},
    worker::earlier,
};
use std::{
    borrow::Cow,
    future::poll_fn,
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

/// Attempts at most on connections that end with none of the endpoint's doing, beside those that a policy counts.
const MAX_STALE: u32 = 3;
/// The same where the endpoint may have read the request: one that it cannot bear is not to reach it by every connection that it has.
const MAX_UNKNOWN: u32 = 1;

/// How the way of a routed request ended.
pub(super) enum Way {
    /// The client has its answer.
    Done,
    /// The endpoint's redirect became the request.
    Redirected,
}

/// Sends the request to an endpoint and its response back, with retries as the policy has them.
pub(super) async fn forward<'a, D: Downstream>(
    call: &mut Call<'a>,
    down: &mut D,
    selected: Selected<'a>,
    forward: &'a Forward,
    body: &mut RequestPump,
    redirects: u32,
) -> Result<Way, Stop> {
    let cluster = &call.tally.cluster.clone().ok_or(match forward.no_cluster_code {
        0 => reply::NO_CLUSTER,
        code => Reply { code, ..reply::NO_CLUSTER },
    })?;
    if let Some(at) = retry::not_good(call.router.strict, &call.request.headers) {
        let name = StrictHeaders::NAMES[at];
        let value = String::from_utf8_lossy(call.request.headers.get(name).unwrap_or_default()).into_owned();
        let own = &mut call.tally.filters().reply;
        own.body = Some(format!("invalid header '{name}' with value '{value}'").into());
        own.details = Some(format!("{}{{{name}}}", reply::NOT_GOOD.details).into());
        return Err(reply::NOT_GOOD.into());
    }
    if let Some(all) = cluster.drops(&call.worker.rng) {
        return Err(if all { reply::UNCONDITIONAL_DROP_OVERLOAD } else { reply::DROP_OVERLOAD }.into());
    }
    // Most requests carry none of the headers by which Envoy's router is told what to do.
    let asked = call.request.headers.may_have(Known::Envoy);
    // What the cluster says counts instead of what the route does.
    let (own, hashed_by) = (cluster.config().retry.as_deref(), &cluster.config().hash);
    let policy = own.or(forward.retry.as_deref());
    let mut limits = timeout::limits(call, forward, policy, asked);
    let _budget = Budget::of_request(cluster, &limits);
    let mut line = if raw::ends_here(call.request, forward) { Line::Raw } else { Line::Any };
    call.tally.attempts = 1;
    tell_attempt(call, selected, 0, false, &limits);
    // How long the answer may take is asked of the request as it came, when it is tried again of what the route makes of it.
    let asked = edit::for_endpoint(call, selected, forward) || asked;
    let policy = retry::effective(policy, call.request, asked);
    let policy = policy.as_deref();
    // Of the request as the endpoint gets it.
    let policy = policy.filter(|policy| retry::fits(policy, call.request));
    let mut cookies = Vec::new();
    // Nobody is given a cookie for a cluster that does not look at it.
    let hashes = cluster.looks_at_hashes(&|id| call.root.cluster(id).cloned());
    let hashed_by = if hashed_by.is_empty() { &forward.hash[..] } else { hashed_by };
    let hash = if hashes { hash::of(call, hashed_by, &mut cookies) } else { None };
    if !cookies.is_empty() {
        call.tally.filters().cookies = cookies;
    }
    let labels = labels(call, selected, forward);
    let context = PickContext { hash, labels: labels.as_deref(), ..PickContext::to(destination(call, cluster)) };
    if cluster.admit(limits.priority).is_err() {
        // Where no connection is free, a client may send its request to the end as if one had been made.
        if !cluster.has_free_connection(limits.priority) {
            forget::rest(call, down, body).await;
        }
        return Err(reply::OVERFLOW.into());
    }

    let safe = call.request.is_safe();
    let most_kept =
        forward.replay_limit.map_or_else(|| most_kept(call), |most| usize::try_from(most).unwrap_or(usize::MAX));
    if policy.is_some_and(retry::keeps_body) || forward.internal_redirect.is_some() {
        body.keep_for_replay(most_kept);
    }
    // Nothing is copied of what no endpoint can get.
    let mut copies = !forward.mirrors.is_empty();
    let mut attempted = Attempted::default();
    let (mut retries, mut stale, mut unknown) = (0, 0, 0);
    let mut sent = false;
    let mut timed_out = false;
    let mut retry_ticket: Option<Ticket> = None;
    loop {
        let find = |id| call.root.cluster(id).cloned();
        let chosen = attempted
            .pick(cluster, &find, &call.worker.rng, &context, policy.filter(|_| retries > 0))
            .ok_or(reply::NO_HEALTHY_UPSTREAM)?;
        let (owner, host) = (&chosen.cluster, &chosen.host);
        if std::mem::take(&mut copies)
            && let Some(feeds) = mirror::begin(call, forward)
        {
            body.feed(feeds);
        }
        call.tally.owner = Some(owner.clone());
        call.tally.host = Some(host.clone());
        call.tally.unsent = false;
        call.tally.attempts = u16::try_from(retries + 1).unwrap_or(u16::MAX);
        edit::for_attempt(call, forward, host, retries == 0);
        if retries > 0 {
            tell_attempt(call, selected, retries, timed_out, &limits);
        }
        if call.tally.trace.is_some() {
            trace::on_attempt(call, host, retries + 1);
        }
        let active = host.enter();
        let budget = Budget::of_attempt(cluster, &limits);
        let (failure, or_else, free, pause) = match attempt::begin(call, down, owner, host, body, &mut limits, line)
            .await
        {
            Ok((up, _counted)) => {
                if call.tally.trace.is_some() {
                    trace::on_head(call);
                }
                let policy = policy.filter(|_| !call.tally.interim);
                call.response.headers.join_of_answer();
                let failure = outcome::of_answer(call, policy);
                let not_sent = outcome::note_health(call, owner, host);
                outcome::note_answer(call, owner, host, failure);
                let again = policy.is_some_and(|policy| retries < policy.attempts && retry::wanted(failure, policy));
                // The rest of a request that has not come whole follows what was kept of it.
                if !again || body.kept.unrepeatable {
                    if let Some(policy) = policy
                        && retries >= policy.attempts
                        && retry::wanted(failure, policy)
                    {
                        call.tally.flags |= ResponseFlags::RETRY_LIMIT;
                    }
                    if let Some(follow) = &forward.internal_redirect
                        && redirect::is_meant(call, follow)
                        && redirect::counted(
                            cluster,
                            body.has_ended() && !body.kept.unrepeatable && redirect::follow(call, follow, redirects),
                        )
                    {
                        call.tally.code = call.response.status;
                        outcome::give_up(call);
                        redirect::count(call, owner, up.wire());
                        connecting::discard(up, host, owner).await;
                        if !body.redirect(call.request.body == BodyLength::Empty) {
                            call.request.body = BodyLength::Empty;
                        }
                        return Ok(Way::Redirected);
                    }
                    return relay(call, down, selected, up, body, limits).await.map(|()| Way::Done);
                }
                // Before this response is given up for another.
                drop(retry_ticket.take());
                if !not_sent {
                    let Ok(ticket) = cluster.begin_retry(limits.priority) else {
                        outcome::note_overflow(call);
                        return relay(call, down, selected, up, body, limits).await.map(|()| Way::Done);
                    };
                    retry_ticket = Some(ticket);
                }
                cluster.stats().retried.count(call.response.status);
                outcome::give_up(call);
                tracked::ended(call, 0);
                owner.stats().moved(up.wire());
                connecting::discard(up, host, owner).await;
                let random = call.worker.rng.next();
                let pause = policy
                    .and_then(|policy| retry::asked_backoff(policy, &call.response.headers, SystemTime::now(), random));
                (failure, reply::REMOTE_RESET, not_sent, pause)
            }
            Err(Failed::Stop(stop)) => {
                if call.tally.trace.is_some() {
                    trace::on_attempt_ended(call, trace::Ended::of(&stop), None);
                }
                if matches!(&stop, Stop::Reply(reply) if reply.details == reply::TIMEOUT.details) {
                    cluster.stats().rq_timeout.add(1);
                    owner.note(host, Outcome::Timeout);
                }
                return Err(stop);
            }
            Err(Failed::Attempt(failure, reply)) => {
                if call.tally.trace.is_some() {
                    trace::on_attempt_ended(call, trace::Ended::by(&reply), None);
                }
                match failure {
                    Failure::PerTryTimeout => owner.note(host, Outcome::Timeout),
                    // The endpoint had closed it while it was idle: that is no failure.
                    Failure::Reset { reused: true, answered: false, .. } => {}
                    _ => owner.note(host, Outcome::Failed),
                }
                let free = failure.is_unsent() && cluster.config().balancing.skip_unreachable;
                (failure, reply, free, None)
            }
        };
        // What an endpoint has begun to answer is not repeated, as in Envoy.
        let policy = policy.filter(|_| !call.tally.interim);
        timed_out = failure == Failure::PerTryTimeout;
        let unread = matches!(failure, Failure::Refused | Failure::Reset { sent: false, .. });
        let (count, most) = if unread { (&mut stale, MAX_STALE) } else { (&mut unknown, MAX_UNKNOWN) };
        let harmless = retry::harmless(failure, policy, safe) && *count < most;
        // What may be repeated here may be repeated by the peer as well, when this endpoint cannot be reached again.
        sent |= !(harmless || failure.is_unsent());
        call.tally.unsent = !sent;
        drop((active, budget));
        // Once more, at once, and not counted.
        if harmless && policy.is_some_and(|policy| policy.on.stale) && !body.kept.unrepeatable {
            *count += 1;
            if line == Line::Any {
                line = Line::New;
            }
            continue;
        }
        let Some(policy) = policy.filter(|policy| retry::wanted(failure, policy)) else {
            return Err(or_else.into());
        };
        // A body that is too long to be kept ends retries before their number does.
        if retries >= policy.attempts && body.bytes <= most_kept as u64 {
            call.tally.flags |= ResponseFlags::RETRY_LIMIT;
        }
        if retries >= policy.attempts || body.kept.unrepeatable {
            return Err(or_else.into());
        }
        // The budget keeps repeats from adding to the load of apps. What no app has seen adds none, and when an endpoint
        // vanishes every request to it is repeated at once: in the mesh the number of attempts is bound enough for those.
        if !free && retry_ticket.is_none() {
            let Ok(ticket) = cluster.begin_retry(limits.priority) else {
                outcome::note_overflow(call);
                return Err(or_else.into());
            };
            retry_ticket = Some(ticket);
        }
        retries += 1;
        if line == Line::New {
            line = Line::Any;
        }
        attempted.note(&chosen, policy);
        if pause.is_some() {
            cluster.stats().rq_backoff_limited.add(1);
        }
        let pause = pause.unwrap_or_else(|| retry::backoff(policy, retries, call.worker.rng.next()));
        wait(call, pause, &limits).await?;
    }
}

/// Bytes of a request that are kept for another attempt where its route says nothing: what its connection may hold; of HTTP/2, whose
/// streams have a bound of their own, that one where it is set, and 1 MiB at least where it is not.
fn most_kept(call: &Call<'_>) -> usize {
    let (limit, window) = (call.manager.buffer_limit, call.manager.http2.stream_window);
    match call.is_http2() {
        false => limit,
        true if window == Http2Options::default().stream_window => limit.max(1024 * 1024),
        true => usize::try_from(window).unwrap_or(limit),
    }
}

/// Tells the endpoint which attempt this is and how long it may take, as far as the virtual host wants it.
fn tell_attempt(call: &mut Call<'_>, selected: Selected<'_>, retries: u32, timed_out: bool, limits: &Limits) {
    if selected.host.attempt_count_in_request {
        let mut text = [0; 20];
        call.request.headers.set("x-envoy-attempt-count", decimal(u128::from(retries) + 1, &mut text));
    }
    if selected.host.timeout_retry_in_request && retries > 0 {
        call.request.headers.set("x-envoy-is-timeout-retry", if timed_out { b"true" } else { b"false" });
    }
    timeout::tell(call, limits);
}

/// Where the client wanted to connect, if that is known, or what a header names instead in clusters that allow it.
fn destination(call: &Call<'_>, cluster: &Cluster) -> Option<SocketAddr> {
    let named = cluster.config().original.header.as_deref();
    let header = named.and_then(|name| call.request.headers.get(name));
    let address = header.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
    address.or(call.conn.wanted())
}

/// Waits before a retry, but not beyond the route's limit.
async fn wait(call: &mut Call<'_>, pause: Duration, limits: &Limits) -> Result<(), Stop> {
    let until = Instant::now() + pause;
    if limits.deadline.is_some_and(|deadline| deadline <= until) {
        return Err(limits.timeout(reply::TIMEOUT).into());
    }
    loop {
        let (timer, next) = (&mut *call.timer, earlier(Some(until), call.tally.log_at));
        poll_fn(|cx| timer.poll(cx, next)).await;
        if !call.is_due() {
            return Ok(());
        }
        call.log_on();
    }
}

/// Passes the response on and keeps the connection for the next request.
async fn relay<'a, D: Downstream>(
    call: &mut Call<'a>,
    down: &mut D,
    selected: Selected<'a>,
    mut up: Up,
    body: &mut RequestPump,
    limits: Limits,
) -> Result<(), Stop> {
    call.note_response();
    let told = outcome::tells_at_end(call);
    let tunnel = call.response.body == BodyLength::Tunnel;
    if tunnel && let Some(protocol) = call.response.headers.known(Known::Upgrade) {
        call.request.set_upgrade(Some(protocol));
    }
    // What is to be spoken instead is part of that answer (RFC 9110, section 15.5.22).
    let instead = (call.response.status == 426 && !call.is_http2()).then(|| call.response.headers.get("upgrade"));
    let instead = instead.flatten().map(<[u8]>::to_vec);
    // What the endpoint's `connection` lists passes, as it does through Envoy.
    call.response.headers.remove_hop_by_hop(false);
    // Only a proxy says so, and only to a proxy.
    call.response.headers.remove_known(Known::NotSent);
    let mut text = [0; 20];
    // It counts from the request's end, which a tunnel has not, nor a request that is answered before it is whole.
    let whole = body.has_ended() || call.request.body == BodyLength::Empty;
    if let (Some(time), false) = (call.tally.upstream_time, call.router.suppress_envoy_headers)
        && whole
        && !call.request.wants_tunnel()
    {
        call.response.headers.set("x-envoy-upstream-service-time", decimal(time.as_millis(), &mut text));
    }
    if selected.host.attempt_count_in_response {
        let count = decimal(u128::from(call.tally.attempts), &mut text);
        call.response.headers.set("x-envoy-attempt-count", count);
    }
    edit::for_client(call, selected);
    filter::on_response(call);
    edit::length_of_answer(call);
    reply::dress(call);
    if let Some(protocols) = instead {
        call.response.headers.push(b"upgrade", &protocols);
    }
    // A client that has not sent its whole request by now (HTTP/1) may not read us before it has: the end of the
    // connection stops it.
    let unfinished = !body.has_ended() && !call.is_http2();
    let close = call.ends_connection() || unfinished;
    call.answers();
    down.send_head(call.request, call.response, close);
    let mut before = 0;
    if tunnel && call.manager.log_tunnels {
        call.log_as(LogKind::DownstreamTunnelSuccessfullyEstablished);
    }
    if tunnel {
        before = body.bytes;
        *body = RequestPump::new(None);
        down.tunnel();
        up.tunnel();
    }
    let result = attempt::finish(call, down, &mut up, body, limits, tunnel).await;
    if call.tally.trace.is_some() {
        let ended = result.as_ref().map_or_else(trace::Ended::of, |()| trace::Ended::Whole);
        let trailers = call.tally.trailers.take();
        trace::on_attempt_ended(call, ended, trailers.as_deref());
        call.tally.trailers = trailers;
    }
    if told && let Some(host) = &call.tally.host {
        outcome::count_call(host, &result, call.tally.grpc_status);
    }
    if let (false, Some(host), Some(owner)) = (tunnel, &call.tally.host, &call.tally.owner) {
        outcome::note_broken(owner, host, &result);
    }
    call.tally.request_bytes = before + body.read();
    tracked::ended(call, call.tally.response_bytes);
    result?;
    if let (Some(host), Some(owner)) = (&call.tally.host, &call.tally.owner) {
        connecting::put_back(up, host, owner);
    }
    Ok(())
}

/// What the request asks of its endpoint's labels: what the route does, with what filters found out on top.
fn labels<'a>(call: &Call<'_>, selected: Selected<'a>, forward: &'a Forward) -> Option<Cow<'a, Labels>> {
    let of_route = selected.target.and_then(|target| target.labels.as_deref()).or(forward.labels.as_deref());
    match call.dynamic().and_then(|dynamic| dynamic.fields(LABELS)) {
        None => of_route.map(Cow::Borrowed),
        Some(fields) => {
            let found = Labels::of(fields);
            Some(Cow::Owned(of_route.map_or_else(|| found.clone(), |labels| labels.with(&found))))
        }
    }
}
