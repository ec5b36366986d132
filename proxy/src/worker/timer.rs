//! One timer for everything that a connection waits for.
//!
//! Deadlines move with every request, timers cost a lock and a wheel. So the timer stays armed at the earliest moment that
//! was ever asked for and, when it fires too early, is armed again: a busy keep-alive connection touches the wheel every
//! few seconds, not several times a request.

use crate::balance::Rng;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::time::Sleep;

/// A lazily armed timer.
#[derive(Debug, Default)]
pub struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    armed: Option<Instant>,
}

impl Timer {
    /// Ready once the deadline has passed; never without one.
    pub fn poll(&mut self, cx: &mut Context<'_>, deadline: Option<Instant>) -> Poll<()> {
        let Some(deadline) = deadline else { return Poll::Pending };
        loop {
            if self.armed.is_none_or(|armed| armed > deadline) {
                self.armed = Some(deadline);
                match &mut self.sleep {
                    Some(sleep) => sleep.as_mut().reset(deadline.into()),
                    None => self.sleep = Some(Box::pin(tokio::time::sleep_until(deadline.into()))),
                }
            }
            let Some(sleep) = &mut self.sleep else { return Poll::Pending };
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.armed = None;
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
        }
    }
}

/// The earlier of two deadlines.
pub fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// A limit and up to so many per cent more, by chance.
pub fn jittered(limit: Duration, percent: f64, rng: &Rng) -> Duration {
    if percent <= 0.0 {
        return limit;
    }
    let share = (rng.next() % 10_000) as f64 / 10_000.0;
    limit.saturating_add(limit.mul_f64(percent.min(100.0) / 100.0 * share))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test]
    async fn timer_when_deadline_moves_out_then_it_fires_at_the_last_one() {
        let mut timer = Timer::default();
        let start = Instant::now();
        let early = poll_fn(|cx| Poll::Ready(timer.poll(cx, Some(start + Duration::from_millis(20))))).await;
        assert!(early.is_pending());
        poll_fn(|cx| timer.poll(cx, Some(start + Duration::from_millis(60)))).await;
        assert!(start.elapsed() >= Duration::from_millis(60));
        assert!(poll_fn(|cx| Poll::Ready(timer.poll(cx, None))).await.is_pending());
    }
}
