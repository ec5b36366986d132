//! A bound on how fast a body goes: an allowance that grows twenty times a second and is never more than a second's worth.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// Times a second at which the allowance grows.
const TIMES: u64 = 20;
/// Between two of them.
const STEP: Duration = Duration::from_millis(1000 / TIMES);

/// What may go now, and when more may.
#[derive(Debug)]
pub struct Pace {
    step: u64,
    left: u64,
    since: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Pace {
    /// So many KiB in a second; at least one byte at a time.
    pub fn new(kib: u64) -> Self {
        let (step, since) = ((kib.saturating_mul(1024) / TIMES).max(1), Instant::now());
        Self { step, left: step, since, timer: Box::pin(sleep_until(since + STEP)) }
    }

    /// How many bytes may go, when some may.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        loop {
            let steps = self.since.elapsed().as_millis() as u64 / (1000 / TIMES);
            if steps > 0 {
                self.since += STEP.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX));
                self.left = self.left.saturating_add(self.step.saturating_mul(steps)).min(self.step * TIMES);
            }
            if self.left > 0 {
                return Poll::Ready(usize::try_from(self.left).unwrap_or(usize::MAX));
            }
            self.timer.as_mut().reset(self.since + STEP);
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// So many have gone.
    pub fn took(&mut self, count: usize) {
        self.left = self.left.saturating_sub(count as u64);
    }
}
