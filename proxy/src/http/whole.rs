//! A request that is wanted whole before it goes on.

use super::{
    body::{Downstream, SideError},
    call::Call,
    filter,
    head::BodyLength,
    pipeline::Stop,
    pump::RequestPump,
    reply,
};
use crate::{overload, worker::earlier};
use std::{future::poll_fn, task::Poll, time::Instant};

/// Waits for the whole request where a filter wants that. Memory that runs short while it comes ends it: what was let in before that
/// would go on to grow, and no endpoint has seen it yet.
pub(super) async fn wait<D: Downstream>(call: &mut Call<'_>, down: &mut D, body: &mut RequestPump) -> Result<(), Stop> {
    let Some(limit) = call.tally.filters.as_mut().and_then(|state| state.buffer.take()) else { return Ok(()) };
    if call.request.wants_tunnel() {
        return Ok(());
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let idle = Some(call.manager.stream_idle_timeout).filter(|limit| !limit.is_zero());
    let whole_by = call.manager.request_timeout.map(|limit| call.tally.start + limit);
    let (mut read, mut until) = (body.bytes, None);
    let whole = loop {
        let (timer, log_at, worker) = (&mut *call.timer, call.tally.log_at, call.worker);
        let bypasses = call.manager.bypasses_overload;
        let whole = poll_fn(|cx| {
            if !bypasses && worker.sheds_all(overload::Action::StopRequests) {
                return Poll::Ready(Some(Err(Stop::from(reply::OVERLOADED))));
            }
            match body.poll_all(cx, down, limit) {
                Poll::Ready(whole) => Poll::Ready(Some(whole.map_err(|error| match error {
                    SideError::Broken(_) | SideError::Ended | SideError::Reset(_) => Stop::Gone,
                    error => reply::bad_body(&error).into(),
                }))),
                Poll::Pending => {
                    if until.is_none() || body.bytes != read {
                        read = body.bytes;
                        until = idle.map(|idle| Instant::now() + idle);
                    }
                    timer.poll(cx, earlier(earlier(until, whole_by), log_at)).map(|()| None)
                }
            }
        })
        .await;
        call.tally.request_bytes = body.read();
        if whole.is_some() || !call.is_due() {
            break whole;
        }
        call.log_on();
    };
    match whole {
        Some(Ok(true)) => {
            if call.request.body == BodyLength::Unknown {
                let (length, mut text) = (body.kept.bytes(), [0; 20]);
                call.request.body = BodyLength::Exact(length as u64);
                let text = super::pipeline::decimal(length as u128, &mut text);
                call.request.headers.set("content-length", text);
            }
            Ok(())
        }
        Some(Ok(false)) => Err(filter::TOO_LARGE.into()),
        Some(Err(stop)) => Err(stop),
        None if whole_by.is_some_and(|limit| limit <= Instant::now()) => Err(reply::REQUEST_TIMEOUT.into()),
        None => Err(reply::late(reply::STREAM_IDLE, false).into()),
    }
}
