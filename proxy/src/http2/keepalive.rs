//! Finds out that a peer is gone although its connection was never closed (a node that lost power, a lost NAT entry).

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};

use crate::config::Http2Keepalive;
use tokio::time::{Instant, Sleep};

/// A ping is sent so long after the first stream was opened, and again as long as there are streams; when one is not
/// answered until the next is due, the connection is given up. Connections without streams are not pinged.
pub(super) const INTERVAL: Duration = Duration::from_secs(30);
/// Never, in practice.
const FAR: Duration = Duration::from_secs(365 * 86_400);

pub(super) struct Keepalive {
    pings: Option<PingPong>,
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
    pub(super) fn new(pings: Option<PingPong>) -> Self {
        Self { pings, due: None, waiting: false, settings: None }
    }

    /// As configured: connections without streams are pinged too.
    pub(super) fn with(pings: Option<PingPong>, keepalive: Option<Http2Keepalive>) -> Self {
        let settings = keepalive.map(|keepalive| {
            let jitter = f64::from(keepalive.jitter) / 100.0 * rand::random::<f64>();
            Settings { keepalive, interval: keepalive.interval.mul_f64(1.0 + jitter), idle_since: Some(Instant::now()) }
        });
        Self { settings, ..Self::new(pings) }
    }

    /// Ready when the peer is gone.
    pub(super) fn poll(&mut self, active: bool, cx: &mut Context<'_>) -> Poll<()> {
        let Some(pings) = &mut self.pings else { return Poll::Pending };
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
        if self.waiting {
            match pings.poll_pong(cx) {
                Poll::Ready(Ok(_)) => {
                    self.waiting = false;
                    if timeout != interval {
                        self.due = None;
                    }
                }
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => {}
            }
        }
        if !active && !self.waiting && !always {
            self.due = None;
            return Poll::Pending;
        }
        if at_once && !self.waiting {
            self.due = Some(Box::pin(tokio::time::sleep(Duration::ZERO)));
        }
        let due = self.due.get_or_insert_with(|| Box::pin(tokio::time::sleep(interval)));
        while due.as_mut().poll(cx).is_ready() {
            if self.waiting || pings.send_ping(Ping::opaque()).is_err() {
                return Poll::Ready(());
            }
            self.waiting = true;
            // Registers for the answer.
            let _ = pings.poll_pong(cx);
            due.as_mut().reset(Instant::now() + timeout);
        }
        Poll::Pending
    }
}
