//! The way of a request through the proxy, in one place:
//!
//! admit → filters → route → (answer by itself | pick endpoint → connection → send → retry? → response) → record.
//!
//! Every HTTP version comes through here: the client's side is anything that is a [`Downstream`], the endpoint's side an
//! [`Up`]. Nothing is spawned; both sides are polled by the task of the client's connection (or stream).

use super::{
    attempt::{self, Failed, Limits},
    body::{Downstream, Upstream},
    call::Call,
    head::BodyLength,
    headers::Known,
    path,
    pump::RequestPump,
    reply::{self, Reply},
    retry::{self, Failure},
    upstream::Up,
};
use crate::{
    balance,
    config::{Action, Direction, Forward, HeaderOp, HostRewrite, HttpFilter, Priority, Redirect, WeightedCluster},
    pool::{ClusterState, Host, Outcome, Ticket},
    route::{self, Selected},
    telemetry::ResponseFlags,
    worker::Timer,
};
use std::{
    future::poll_fn,
    net::SocketAddr,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

/// Attempts at most on pooled connections that turn out to be closed, without any policy.
const MAX_STALE: u32 = 3;
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
    match respond(call, down).await {
        Ok(()) => {}
        Err(Stop::Reply(reply)) => {
            let close = call.worker.is_draining();
            reply::send(call, down, reply, close);
        }
        Err(Stop::Abort(flags, details)) => {
            call.tally.flags |= flags;
            call.tally.details = details;
            down.abort();
        }
        Err(Stop::Gone) => gone(call, down),
    }
    if down.queued() > 0 {
        flush(call, down).await;
    }
    call.record();
}

fn gone<D: Downstream>(call: &mut Call<'_>, down: &mut D) {
    call.tally.flags |= ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION;
    call.tally.details = "downstream_remote_disconnect";
    down.abort();
}

/// Sends what is left of an answer.
async fn flush<D: Downstream>(call: &mut Call<'_>, down: &mut D) {
    let limit = Some(call.manager.stream_idle_timeout).filter(|limit| !limit.is_zero()).unwrap_or(FLUSH_LIMIT);
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

async fn respond<D: Downstream>(call: &mut Call<'_>, down: &mut D) -> Result<(), Stop> {
    admit(call)?;
    let manager = call.manager;
    // The router is the one filter so far; another one is decided about here.
    for HttpFilter::Router in &manager.filters {}
    let selected = route::select(&manager.routes, call.request, manager.strip_host_port, &call.worker.rng)
        .ok_or(reply::NO_ROUTE)?;
    call.tally.route = Some(selected.route);
    match &selected.route.action {
        Action::Forward(forward) => proxy(call, down, selected, forward).await,
        Action::Redirect(redirect) => {
            let location = redirect_to(call, selected, redirect);
            reply::begin(call, redirect.code);
            call.tally.details = "direct_response";
            call.response.headers.push(b"location", &location);
            edit_response(call, selected, None);
            let close = call.worker.is_draining();
            reply::finish(call, down, b"", close);
            Ok(())
        }
        Action::Direct(direct) => {
            reply::begin(call, direct.code);
            call.tally.details = "direct_response";
            if !direct.body.is_empty() {
                call.response.headers.push(b"content-type", b"text/plain");
            }
            edit_response(call, selected, None);
            let close = call.worker.is_draining();
            reply::finish(call, down, &direct.body, close);
            Ok(())
        }
    }
}

/// Brings the request into the form in which everything after sees it.
fn admit(call: &mut Call<'_>) -> Result<(), Stop> {
    let manager = call.manager;
    let request = &mut *call.request;
    if manager.direction == Direction::Inbound {
        call.tally.source = Some(call.conn.source(request.headers.known(Known::Peer)));
    }
    if manager.normalize_path && request.path() != b"*" {
        match path::normalise(request.path(), manager.merge_slashes) {
            Ok(None) => {}
            Ok(Some(path)) => request.set_path(&path),
            Err(_) => return Err(reply::BAD_PATH.into()),
        }
    }
    let offered = |wanted: &[u8]| manager.upgrades.iter().any(|known| wanted.eq_ignore_ascii_case(known.as_bytes()));
    if request.upgrade().is_some_and(|wanted| !offered(wanted)) {
        request.set_upgrade(None);
    }
    request.headers.remove_hop_by_hop();
    if manager.generate_request_id && request.headers.known(Known::RequestId).is_none() {
        request.headers.push(b"x-request-id", &request_id(&call.worker.rng));
    }
    if request.headers.known(Known::ForwardedProto).is_none() {
        let scheme: &[u8] = if request.secure { b"https" } else { b"http" };
        request.headers.push(b"x-forwarded-proto", scheme);
    }
    Ok(())
}

/// A random UUID (RFC 9562, version 4) as text.
fn request_id(rng: &balance::Rng) -> [u8; 36] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut bits = (u128::from(rng.next()) << 64) | u128::from(rng.next());
    bits = bits & !(0xf << 76) | (0x4 << 76);
    bits = bits & !(0x3 << 62) | (0x2 << 62);
    let mut text = [b'-'; 36];
    let mut shift = 128;
    for (at, place) in text.iter_mut().enumerate() {
        if !matches!(at, 8 | 13 | 18 | 23) {
            shift -= 4;
            *place = HEX[(bits >> shift) as usize & 0xf];
        }
    }
    text
}

/// Sends the request to an endpoint and its response back, with retries as the policy has them.
async fn proxy<D: Downstream>(
    call: &mut Call<'_>,
    down: &mut D,
    selected: Selected<'_>,
    forward: &Forward,
) -> Result<(), Stop> {
    let target = match forward.targets.as_slice() {
        [only] => only,
        targets => {
            let weights = targets.iter().map(|target| target.weight);
            balance::weighted(weights, &call.worker.rng).map(|index| &targets[index]).ok_or(reply::NO_CLUSTER)?
        }
    };
    let root = call.root;
    let cluster = root.cluster(target.cluster).ok_or(reply::NO_CLUSTER)?;
    call.tally.cluster = Some(cluster.clone());
    edit_request(call, selected, forward, target);
    if cluster.drops(&call.worker.rng) {
        return Err(reply::DROP_OVERLOAD.into());
    }
    let _counted = cluster.begin_request(Priority::Default).map_err(|_| reply::OVERFLOW)?;

    let policy = forward.retry.as_deref();
    let safe = call.request.is_safe();
    let mut limits = Limits {
        route: forward.timeout.filter(|limit| !limit.is_zero()),
        per_try: policy.and_then(|policy| policy.per_try_timeout).filter(|limit| !limit.is_zero()),
        idle: forward.idle_timeout.unwrap_or(call.manager.stream_idle_timeout),
        deadline: None,
        priority: Priority::Default,
    };
    let mut body = RequestPump::new(policy.is_some_and(retry::keeps_body));
    let mut tried: Vec<SocketAddr> = Vec::new();
    let (mut retries, mut stale) = (0, 0);
    let mut sent = false;
    let mut retry_ticket: Option<Ticket> = None;
    let context = balance::PickContext::to(destination(call, cluster));
    loop {
        let host = cluster
            .pick(&call.worker.rng, &context, |host| tried.contains(&host.address()))
            .ok_or(reply::NO_HEALTHY_UPSTREAM)?;
        call.tally.host = Some(host.clone());
        call.tally.unsent = false;
        let active = host.enter();
        let (failure, or_else, unsent) = match attempt::begin(call, down, cluster, &host, &mut body, &mut limits).await
        {
            Ok(up) => {
                let headers = &call.response.headers;
                let not_sent = headers.known(Known::NotSent).is_some();
                let failure = Failure::Response {
                    status: call.response.status,
                    grpc: super::call::grpc_status(headers.known(Known::GrpcStatus)),
                    header: policy.is_some_and(|policy| retry::has_retriable_header(policy, headers)),
                };
                if not_sent {
                    host.note_failure();
                }
                note_answer(call, cluster, &host, failure);
                let again = policy
                    .is_some_and(|policy| retries < policy.attempts && retry::wanted(failure, Some(policy), safe));
                // An answer to half a request may be about that half; "nothing was sent" is not.
                if !again || body.unrepeatable || !(body.done || not_sent) {
                    if let Some(policy) = policy
                        && retries > 0
                        && retry::wanted(failure, Some(policy), safe)
                    {
                        call.tally.flags |= ResponseFlags::RETRY_LIMIT;
                    }
                    return relay(call, down, selected, target, up, body, limits).await;
                }
                // Before this response is given up for another.
                drop(retry_ticket.take());
                if !not_sent {
                    let Ok(ticket) = cluster.begin_retry(limits.priority) else {
                        call.tally.flags |= ResponseFlags::UPSTREAM_OVERFLOW;
                        return relay(call, down, selected, target, up, body, limits).await;
                    };
                    retry_ticket = Some(ticket);
                }
                (failure, reply::REMOTE_RESET, not_sent)
            }
            Err(Failed::Stop(stop)) => {
                if matches!(&stop, Stop::Reply(reply) if *reply == reply::TIMEOUT) {
                    cluster.note(&host, Outcome::Timeout);
                }
                return Err(stop);
            }
            Err(Failed::Attempt(failure, reply)) => {
                match failure {
                    Failure::PerTryTimeout => cluster.note(&host, Outcome::Timeout),
                    // The endpoint had closed it while it was idle: that is no failure.
                    Failure::Reset { reused: true, answered: false, .. } => {}
                    _ => cluster.note(&host, Outcome::Failed),
                }
                (failure, reply, failure.is_unsent())
            }
        };
        // A connection that was closed in the pool, or is being closed, says nothing about the endpoint.
        let was_stale = matches!(failure, Failure::Refused | Failure::Reset { reused: true, answered: false, .. });
        // What may be repeated here may be repeated by the peer as well, when this endpoint cannot be reached again.
        let harmless = failure.is_unsent() || was_stale && retry::wanted(failure, None, safe);
        sent |= !harmless;
        call.tally.unsent = !sent;
        drop(active);
        if !retry::wanted(failure, policy, safe) || body.unrepeatable {
            return Err(or_else.into());
        }
        // Once more, at once, and not counted.
        if was_stale && stale < MAX_STALE {
            stale += 1;
            continue;
        }
        let Some(policy) = policy.filter(|policy| retries < policy.attempts) else {
            call.tally.flags |= if retries > 0 { ResponseFlags::RETRY_LIMIT } else { ResponseFlags::none() };
            return Err(or_else.into());
        };
        // The budget keeps repeats from adding to the load of apps. What no app has seen adds none, and when an endpoint
        // vanishes every request to it is repeated at once: the number of attempts is bound enough for those.
        if !unsent && retry_ticket.is_none() {
            retry_ticket = Some(cluster.begin_retry(limits.priority).map_err(|_| Stop::Reply(or_else))?);
        }
        retries += 1;
        if policy.avoid_tried {
            tried.push(host.address());
        }
        wait(call, retry::backoff(policy, retries, call.worker.rng.next()), limits.deadline).await?;
    }
}

/// Where the client wanted to connect, or what a header names instead in clusters that allow it.
fn destination(call: &Call<'_>, cluster: &ClusterState) -> SocketAddr {
    let named = cluster.config().original.header.as_deref();
    let header = named.and_then(|name| call.request.headers.get(name));
    let address = header.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
    address.unwrap_or(call.conn.local)
}

/// Tells outlier detection what the endpoint answered; of gRPC, what its status says.
fn note_answer(call: &Call<'_>, cluster: &ClusterState, host: &Host, answer: Failure) {
    let Failure::Response { status, grpc, .. } = answer else { return };
    let outcome = grpc.filter(|_| call.request.is_grpc()).map_or(Outcome::Status(status), Outcome::grpc);
    cluster.note(host, outcome);
}

/// Writes a number; what has more than 20 digits is cut.
fn decimal(mut number: u128, text: &mut [u8; 20]) -> &[u8] {
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

/// Waits before a retry, but not beyond the route's limit.
async fn wait(call: &mut Call<'_>, pause: Duration, deadline: Option<Instant>) -> Result<(), Stop> {
    let until = Instant::now() + pause;
    if deadline.is_some_and(|deadline| deadline <= until) {
        return Err(reply::TIMEOUT.into());
    }
    let timer: &mut Timer = call.timer;
    poll_fn(|cx| timer.poll(cx, Some(until))).await;
    Ok(())
}

/// Passes the response on and keeps the connection for the next request.
async fn relay<D: Downstream>(
    call: &mut Call<'_>,
    down: &mut D,
    selected: Selected<'_>,
    target: &WeightedCluster,
    mut up: Up,
    mut body: RequestPump,
    limits: Limits,
) -> Result<(), Stop> {
    call.note_response();
    call.response.headers.remove_hop_by_hop();
    // Only a proxy says so, and only to a proxy.
    call.response.headers.remove_known(Known::NotSent);
    if let Some(time) = call.tally.upstream_time {
        let mut text = [0; 20];
        call.response.headers.set("x-envoy-upstream-service-time", decimal(time.as_millis(), &mut text));
    }
    edit_response(call, selected, Some(target));
    // A client that has not sent its whole request by now (HTTP/1) may not read us before it has: the end of the
    // connection stops it.
    let unfinished = !body.done && !call.is_http2();
    let close = call.worker.is_draining() || unfinished;
    down.send_head(call.request, call.response, close);
    let tunnel = call.response.body == BodyLength::Tunnel;
    let mut before = 0;
    if tunnel {
        before = body.bytes;
        body = RequestPump::new(false);
        down.tunnel();
        up.tunnel();
    }
    let result = attempt::finish(call, down, &mut up, &mut body, &limits, tunnel).await;
    call.tally.request_bytes = before + body.bytes;
    result?;
    if let (Up::Http1(lease), Some(host), Some(cluster)) = (up, &call.tally.host, &call.tally.cluster) {
        host.give_back(lease, cluster.config().max_requests_per_connection);
        cluster.connection_is_idle();
    }
    Ok(())
}

fn edit_request(call: &mut Call<'_>, selected: Selected<'_>, forward: &Forward, target: &WeightedCluster) {
    let request = &mut *call.request;
    let table = &call.manager.routes.headers;
    for ops in [&target.headers, &selected.route.headers, &selected.host.headers, table] {
        for op in &ops.request {
            match op {
                // The authority is not among the headers.
                HeaderOp::Set(name, value) | HeaderOp::SetIfPresent(name, value)
                    if matches!(name.as_ref(), "host" | ":authority") =>
                {
                    request.set_authority(value.as_bytes());
                }
                op => request.headers.apply(std::slice::from_ref(op)),
            }
        }
    }
    if let Some(rewrite) = &forward.path
        && let Some(path) = route::rewritten_path(rewrite, &selected.route.matches, request.path())
    {
        // As Envoy does: the endpoint and the log learn what was asked for.
        let original = request.path().to_vec();
        request.headers.set("x-envoy-original-path", &original);
        request.set_path(&path);
    }
    match target.host.as_ref().or(forward.host.as_ref()) {
        Some(HostRewrite::Literal(host)) => request.set_authority(host.as_bytes()),
        Some(HostRewrite::Header(name)) => {
            if let Some(host) = request.headers.get(name).map(<[u8]>::to_vec) {
                request.set_authority(&host);
            }
        }
        None => {}
    }
}

fn edit_response(call: &mut Call<'_>, selected: Selected<'_>, target: Option<&WeightedCluster>) {
    if let Some(target) = target {
        call.response.headers.apply(&target.headers.response);
    }
    call.response.headers.apply(&selected.route.headers.response);
    call.response.headers.apply(&selected.host.headers.response);
    call.response.headers.apply(&call.manager.routes.headers.response);
}

fn redirect_to(call: &Call<'_>, selected: Selected<'_>, redirect: &Redirect) -> Vec<u8> {
    let target = call.request.path();
    let mut path = match (&redirect.path, &redirect.rewrite) {
        (Some(path), _) => {
            let mut path = path.as_bytes().to_vec();
            if !path.contains(&b'?') && !call.request.query().is_empty() {
                path.push(b'?');
                path.extend_from_slice(call.request.query());
            }
            path
        }
        (None, Some(rewrite)) => {
            route::rewritten_path(rewrite, &selected.route.matches, target).unwrap_or_else(|| target.to_vec())
        }
        (None, None) => target.to_vec(),
    };
    if redirect.strip_query {
        path.truncate(path.iter().position(|&b| b == b'?').unwrap_or(path.len()));
    }
    reply::location(redirect, &path, call.request)
}

/// Names a cluster's state, for the signature of the attempt.
pub(super) type Cluster = Rc<ClusterState>;
