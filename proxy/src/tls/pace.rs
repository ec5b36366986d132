//! Bounds the handshakes that a worker works at between two turns of everything else.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use tokio::sync::Semaphore;

/// Lets one handshake at a time do its costly first step (signing, verifying), in the order in which they came. After each one
/// everything else that is ready gets its turn, so that a flood of handshakes slows handshakes down and not what is served already.
#[derive(Debug)]
pub struct Pace(Semaphore);

impl Default for Pace {
    fn default() -> Self {
        Self(Semaphore::const_new(1))
    }
}

impl Pace {
    /// Runs a handshake; its first step when its turn has come.
    pub async fn run<F: Future>(&self, handshake: F) -> F::Output {
        let mut handshake = pin!(handshake);
        // Never closed.
        let turn = self.0.acquire().await.ok();
        let first = poll_fn(|cx| Poll::Ready(handshake.as_mut().poll(cx))).await;
        tokio::task::yield_now().await;
        drop(turn);
        match first {
            Poll::Ready(done) => done,
            Poll::Pending => handshake.await,
        }
    }
}
