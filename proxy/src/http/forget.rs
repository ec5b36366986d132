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

/// Reads what is left of a request that the proxy answers by itself, for its copies alone: the connection can go on then (HTTP/1).
/// What does not come at once is not waited for.
pub(super) async fn rest<D: Downstream>(call: &mut Call<'_>, down: &mut D, body: &mut RequestPump) {
    if call.request.wants_tunnel() {
        return;
    }
    let (http2, until) = (call.is_http2(), Instant::now() + GRACE);
    let timer: &mut Timer = call.timer;
    poll_fn(|cx| match body.poll_forget(cx, down) {
        Poll::Pending if !http2 => timer.poll(cx, Some(until)),
        _ => Poll::Ready(()),
    })
    .await;
    call.tally.request_bytes = body.read();
}
