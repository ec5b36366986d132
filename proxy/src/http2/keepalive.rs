//! Finds out that a peer is gone although its connection was never closed (a node that lost power, a lost NAT entry).

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::mux::Mux;
use crate::config::Http2Keepalive;
use tokio::time::{Instant, Sleep};

/// A ping is sent at this interval as long as there are streams; when one is not answered until the next is due, the connection
/// is given up. Connections without streams are not pinged.
pub(super) const INTERVAL: Duration = Duration::from_secs(30);
/// Never, in practice.
const FAR: Duration = Duration::from_secs(365 * 86_400);

#[derive(Default)]
pub(super) struct Keepalive {
    due: Option<Pin<Box<Sleep>>>,
    waiting: bool,
    settings: Option<Settings>,
}

/// What a configuration says instead of [`INTERVAL`].
struct Settings {
    keepalive: Http2Keepalive,
    /// The interval of this connection.
    interval: Duration,
    idle_since: Option<Instant>,
}

impl Keepalive {
    /// As configured: connections without streams are pinged too.
    pub(super) fn with(keepalive: Option<Http2Keepalive>) -> Self {
        let settings = keepalive.map(|keepalive| {
            let jitter = f64::from(keepalive.jitter) / 100.0 * rand::random::<f64>();
            Settings { keepalive, interval: keepalive.interval.mul_f64(1.0 + jitter), idle_since: Some(Instant::now()) }
        });
        Self { settings, ..Self::default() }
    }

    /// Ready when the peer is gone. Pings are left with `mux` to be written.
    pub(super) fn poll(&mut self, active: bool, mux: &mut Mux, cx: &mut Context<'_>) -> Poll<()> {
        let (mut interval, mut timeout, mut always, mut at_once) = (INTERVAL, INTERVAL, false, false);
        if let Some(settings) = &mut self.settings {
            let Http2Keepalive { timeout: limit, idle, .. } = settings.keepalive;
            // Without an interval, far away: pings are sent after idle times only.
            let none = settings.interval.is_zero();
            (interval, timeout, always) = (if none { FAR } else { settings.interval }, limit, true);
            let was_idle = settings.idle_since;
            settings.idle_since = if active { None } else { Some(was_idle.unwrap_or_else(Instant::now)) };
            at_once = active && !idle.is_zero() && was_idle.is_some_and(|since| since.elapsed() >= idle);
        }
        if self.waiting && mux.take_pong() {
            self.waiting = false;
            if timeout != interval {
                self.due = None;
            }
        }
        let pings = active || self.waiting || always;
        if !pings && self.due.is_none() {
            return Poll::Pending;
        }
        if at_once && !self.waiting {
            self.due = Some(Box::pin(tokio::time::sleep(Duration::ZERO)));
        }
        // It keeps running while there are no streams for a moment: making one for every request would cost more than it.
        let due = self.due.get_or_insert_with(|| Box::pin(tokio::time::sleep(interval)));
        while due.as_mut().poll(cx).is_ready() {
            if self.waiting {
                return Poll::Ready(());
            }
            if !pings {
                self.due = None;
                return Poll::Pending;
            }
            mux.send_ping();
            self.waiting = true;
            due.as_mut().reset(Instant::now() + timeout);
        }
        Poll::Pending
    }
}
