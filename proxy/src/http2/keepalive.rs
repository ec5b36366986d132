//! Finds out that a peer is gone although its connection was never closed (a node that lost power, a lost NAT entry).

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep};

/// A ping is sent so long after the first stream was opened, and again as long as there are streams; when one is not
/// answered until the next is due, the connection is given up. Connections without streams are not pinged.
pub(super) const INTERVAL: Duration = Duration::from_secs(30);

pub(super) struct Keepalive {
    pings: Option<PingPong>,
    due: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl Keepalive {
    pub(super) fn new(pings: Option<PingPong>) -> Self {
        Self { pings, due: None, waiting: false }
    }

    /// Ready when the peer is gone.
    pub(super) fn poll(&mut self, active: bool, cx: &mut Context<'_>) -> Poll<()> {
        let Some(pings) = &mut self.pings else { return Poll::Pending };
        if self.waiting {
            match pings.poll_pong(cx) {
                Poll::Ready(Ok(_)) => self.waiting = false,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => {}
            }
        }
        if !active && !self.waiting {
            self.due = None;
            return Poll::Pending;
        }
        let due = self.due.get_or_insert_with(|| Box::pin(tokio::time::sleep(INTERVAL)));
        while due.as_mut().poll(cx).is_ready() {
            if self.waiting || pings.send_ping(Ping::opaque()).is_err() {
                return Poll::Ready(());
            }
            self.waiting = true;
            // Registers for the answer.
            let _ = pings.poll_pong(cx);
            due.as_mut().reset(Instant::now() + INTERVAL);
        }
        Poll::Pending
    }
}
