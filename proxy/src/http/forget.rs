//! The rest of a request that is answered before all of it came.

use super::{body::Downstream, call::Call, pump::RequestPump};
use crate::worker::Timer;
use std::{
    future::poll_fn,
    task::Poll,
    time::{Duration, Instant},
};

/// How long the rest of a request may take that nobody wants any more.
const GRACE: Duration = Duration::from_millis(5);
/// How long it may take where it is wanted to the end, when the manager sets no idle timeout.
const LONGEST: Duration = Duration::from_secs(60);

/// Reads what is left of a request that the proxy answers by itself, for its copies alone: the connection can go on then (HTTP/1).
/// What does not come at once is not waited for.
pub(super) async fn rest<D: Downstream>(call: &mut Call<'_>, down: &mut D, body: &mut RequestPump) {
    // The streams of HTTP/2 go on by themselves.
    let limit = if call.is_http2() { Duration::ZERO } else { GRACE };
    within(call, down, body, limit).await;
}

/// The same, for as long as a stream may be idle: the answer is to the whole request.
pub(super) async fn to_the_end<D: Downstream>(call: &mut Call<'_>, down: &mut D, body: &mut RequestPump) {
    let limit = Some(call.manager.stream_idle_timeout).filter(|limit| !limit.is_zero()).unwrap_or(LONGEST);
    within(call, down, body, limit).await;
}

async fn within<D: Downstream>(call: &mut Call<'_>, down: &mut D, body: &mut RequestPump, limit: Duration) {
    if call.request.wants_tunnel() {
        return;
    }
    let until = Instant::now() + limit;
    let timer: &mut Timer = call.timer;
    poll_fn(|cx| match body.poll_forget(cx, down) {
        Poll::Pending if !limit.is_zero() => timer.poll(cx, Some(until)),
        _ => Poll::Ready(()),
    })
    .await;
    call.tally.request_bytes = body.read();
}
