//! Faults on purpose: delays and ends.

use super::super::{
    body::{Downstream, SideError},
    call::Call,
    head::BodyLength,
    pace::Pace,
    pipeline::Stop,
    pump::RequestPump,
    reply::{self, Reply},
};
use crate::{
    config::{Fault, FaultAbort, FaultDelay, FaultLimit, FaultStatus, FilterEntry, FilterStats, Share},
    http::RequestHead,
    route::{self, Selected},
    telemetry::{
        ResponseFlags,
        counters::{FaultStats, Number},
    },
    worker::earlier,
};
use std::{
    borrow::Cow,
    future::poll_fn,
    sync::atomic::{AtomicU32, Ordering},
    task::Poll,
    time::{Duration, Instant},
};

/// Counts a request among those under a fault, until it is dropped.
pub struct ActiveFault<'a>(&'a AtomicU32);

impl Drop for ActiveFault<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Delays and ends the request as `used` says; `own` is what the filter's `entry` says, and counts.
pub(super) async fn pass<'a, D: Downstream>(
    call: &mut Call<'a>,
    (down, body): (&mut D, &mut RequestPump),
    (own, entry): (&'a Fault, &'a FilterEntry),
    used: &'a Fault,
    selected: Option<Selected<'a>>,
) -> Result<(), Stop> {
    if !concerns(call, used, selected) {
        return Ok(());
    }
    let told = |of: fn(&FaultStats) -> &Number| {
        if let FilterStats::Fault(stats) = &entry.stats {
            of(stats).add(1);
        }
    };
    if used.max_active.is_some_and(|most| own.active.load(Ordering::Relaxed) >= most) {
        told(|stats| &stats.overflow);
        return Ok(());
    }
    if let Some(kib) = used.limit.as_ref().and_then(|limit| rate(call, limit)) {
        count(call, own);
        told(|stats| &stats.limited);
        call.tally.filters().pace = Some(Box::new(Pace::new(kib)));
    }
    if let Some(pause) = used.delay.as_ref().and_then(|delay| pause(call, delay)) {
        count(call, own);
        told(|stats| &stats.delays);
        tell(call, entry, used);
        call.tally.flags |= ResponseFlags::DELAY_INJECTED;
        wait(call, down, body, pause).await?;
    }
    let Some(abort) = &used.abort else { return Ok(()) };
    if !falls(call, abort.share, "x-envoy-fault-abort-request-percentage", abort.with == FaultStatus::Header) {
        return Ok(());
    }
    let Some((code, grpc)) = status(abort, call.request) else { return Ok(()) };
    count(call, own);
    told(|stats| &stats.aborts);
    tell(call, entry, used);
    let state = call.tally.filters();
    state.reply.grpc = grpc;
    state.reply.body = Some(Cow::Borrowed(&*abort.body)).filter(|body| !body.is_empty());
    let (body, flags) = ("fault filter abort", ResponseFlags::FAULT_INJECTED);
    Err(Reply { code, body, flags, details: "fault_filter_abort", close: false }.into())
}

fn count<'a>(call: &mut Call<'a>, own: &'a Fault) {
    let state = call.tally.filters();
    if state.fault.is_none() {
        own.active.fetch_add(1, Ordering::Relaxed);
        state.fault = Some(ActiveFault(&own.active));
    }
}

/// Tells of a fault, for whoever logs the request.
fn tell(call: &mut Call<'_>, entry: &FilterEntry, used: &Fault) {
    if call.asks_dynamic() {
        call.tally.filters().dynamic.update(&entry.name, &used.metadata);
    }
}

fn concerns(call: &Call<'_>, fault: &Fault, selected: Option<Selected<'_>>) -> bool {
    let target = selected.and_then(|selected| selected.target);
    fault.cluster.is_none_or(|wanted| target.is_some_and(|target| target.cluster == wanted))
        && (fault.nodes.is_empty()
            || call
                .request
                .headers
                .get("x-envoy-downstream-service-node")
                .is_some_and(|node| fault.nodes.iter().any(|wanted| wanted.as_bytes() == node)))
        && fault.headers.iter().all(|header| route::header_matches(header, call.request))
}

fn number(request: &RequestHead, name: &str) -> Option<u64> {
    std::str::from_utf8(request.headers.get(name)?).ok()?.trim().parse().ok()
}

/// Chance; where the request says how much, it can only be less.
fn falls(call: &Call<'_>, share: Share, name: &str, by_request: bool) -> bool {
    let mut numerator = u64::from(share.numerator);
    if by_request && let Some(wanted) = number(call.request, name) {
        numerator = numerator.min(wanted);
    }
    call.worker.rng.below(u64::from(share.denominator.max(1))) < numerator
}

fn pause(call: &Call<'_>, delay: &FaultDelay) -> Option<Duration> {
    if !falls(call, delay.share, "x-envoy-fault-delay-request-percentage", delay.fixed.is_none()) {
        return None;
    }
    let pause = match delay.fixed {
        Some(fixed) => fixed,
        None => Duration::from_millis(number(call.request, "x-envoy-fault-delay-request")?),
    };
    Some(pause).filter(|pause| !pause.is_zero())
}

fn rate(call: &Call<'_>, limit: &FaultLimit) -> Option<u64> {
    if !falls(call, limit.share, "x-envoy-fault-throughput-response-percentage", limit.fixed.is_none()) {
        return None;
    }
    limit.fixed.or_else(|| number(call.request, "x-envoy-fault-throughput-response")).filter(|kib| *kib > 0)
}

fn status(abort: &FaultAbort, request: &RequestHead) -> Option<(u16, Option<u16>)> {
    match abort.with {
        FaultStatus::Http(code) => Some((code, None)),
        FaultStatus::Grpc(code) => Some((200, Some(code))),
        FaultStatus::Header => {
            let http = number(request, "x-envoy-fault-abort-request").filter(|code| (200..600).contains(code));
            if let Some(code) = http {
                return u16::try_from(code).ok().map(|code| (code, None));
            }
            let grpc = number(request, "x-envoy-fault-abort-grpc-request")?;
            u16::try_from(grpc).ok().map(|code| (200, Some(code)))
        }
    }
}

/// Waits, unless the client goes away. Meanwhile what comes of the request's body is read, as far as its place reaches.
async fn wait<D: Downstream>(
    call: &mut Call<'_>,
    down: &mut D,
    body: &mut RequestPump,
    pause: Duration,
) -> Result<(), Stop> {
    let until = Instant::now() + pause;
    let mut reads = call.request.body != BodyLength::Empty && !call.request.wants_tunnel();
    let waited = loop {
        let (timer, next) = (&mut *call.timer, earlier(Some(until), call.tally.log_at));
        let waited = poll_fn(|cx| {
            if reads && let Poll::Ready(read) = body.poll_ahead(cx, down) {
                read?;
                reads = false;
            }
            if down.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(SideError::Ended));
            }
            timer.poll(cx, next).map(Ok)
        })
        .await;
        call.tally.request_bytes = body.read();
        if waited.is_err() || !call.is_due() {
            break waited;
        }
        call.log_on();
    };
    waited.map_err(|error| match error {
        SideError::Broken(_) | SideError::Ended | SideError::Reset(_) => Stop::Gone,
        error => reply::bad_body(&error).into(),
    })
}
