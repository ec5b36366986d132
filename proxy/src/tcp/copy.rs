//! Copies bytes both ways until both ends have said their last.

use crate::{
    http::buffer::Buffer,
    listen::Stream,
    telemetry::{ResponseFlags, TcpRecorder},
    worker::Timer,
};
use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};
use tokio::io::AsyncWrite;

/// Bytes after which the counters of a running connection are brought up to date.
const REPORT: u64 = 1 << 20;
/// Time after which they are.
const REPORT_TIME: Duration = Duration::from_secs(5);

/// What was moved, and how it ended.
#[derive(Debug, Default)]
pub(super) struct Moved {
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) flags: ResponseFlags,
}

/// One direction.
#[derive(Default)]
struct Half {
    buffer: Buffer,
    ended: bool,
    shut: bool,
    count: u64,
}

enum Broken {
    Source,
    Sink,
}

impl Half {
    /// Moves what can be moved; ready when this direction is over.
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut Stream, to: &mut Stream) -> Poll<Result<(), Broken>> {
        loop {
            while !self.buffer.is_empty() {
                let count = ready!(Pin::new(&mut *to).poll_write(cx, self.buffer.bytes())).map_err(|_| Broken::Sink)?;
                if count == 0 {
                    return Poll::Ready(Err(Broken::Sink));
                }
                self.buffer.consume(count);
                self.count += count as u64;
            }
            if self.ended {
                if !self.shut {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(|_| Broken::Sink)?;
                    self.shut = true;
                }
                return Poll::Ready(Ok(()));
            }
            match self.buffer.poll_read(from, cx) {
                Poll::Ready(Ok(0)) => self.ended = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Source)),
                Poll::Pending => {
                    // What TLS still holds back goes out before we wait.
                    ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(|_| Broken::Sink)?;
                    return Poll::Pending;
                }
            }
        }
    }
}

/// Copies until both directions are over, one broke, or nothing moved for `idle` (zero: no limit). A direction that ends is
/// ended on the other side too, while the opposite one goes on.
pub(super) async fn both(
    down: &mut Stream,
    up: &mut Stream,
    first: Buffer,
    idle: Duration,
    recorder: &TcpRecorder,
) -> Moved {
    let mut there = Half { buffer: first, ..Half::default() };
    let mut back = Half::default();
    let (mut reported_there, mut reported_back) = (0, 0);
    let mut timer = Timer::default();
    let mut last = Instant::now();
    let mut last_report = last;
    let mut seen = 0;
    let flags = poll_fn(|cx| {
        let a = there.poll(cx, down, up);
        let b = back.poll(cx, up, down);
        let total = there.count + back.count;
        let now = Instant::now();
        if total != seen {
            seen = total;
            last = now;
        }
        let unreported = total - reported_there - reported_back;
        if unreported >= REPORT || unreported > 0 && now - last_report >= REPORT_TIME {
            recorder.received(there.count - reported_there);
            recorder.sent(back.count - reported_back);
            (reported_there, reported_back, last_report) = (there.count, back.count, now);
        }
        let over = |flags| Poll::Ready(flags);
        match (a, b) {
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return over(ResponseFlags::none()),
            (Poll::Ready(Err(Broken::Source)), _) | (_, Poll::Ready(Err(Broken::Sink))) => {
                return over(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION);
            }
            (Poll::Ready(Err(Broken::Sink)), _) | (_, Poll::Ready(Err(Broken::Source))) => {
                return over(ResponseFlags::UPSTREAM_CONNECTION_TERMINATION);
            }
            _ => {}
        }
        let deadline = (!idle.is_zero()).then(|| last + idle);
        timer.poll(cx, deadline).map(|()| ResponseFlags::STREAM_IDLE_TIMEOUT)
    })
    .await;
    recorder.received(there.count - reported_there);
    recorder.sent(back.count - reported_back);
    Moved { received: there.count, sent: back.count, flags }
}
