//! A rest for connections that have much to read: until everybody else has had a turn, those among them of whom only the sockets know yet.

use std::future::Future as _;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Wake, Waker};

/// Whether a connection rests. Whoever wakes its task meanwhile does not end that.
#[derive(Debug, Default)]
pub(super) struct Pause(Option<Arc<Resting>>);

#[derive(Debug)]
struct Resting {
    over: AtomicBool,
    task: Waker,
}

impl Wake for Resting {
    fn wake(self: Arc<Self>) {
        self.over.store(true, Relaxed);
        self.task.wake_by_ref();
    }
}

impl Pause {
    /// Rests until sockets have been looked at; the task of `cx` is woken then.
    pub(super) fn begin(&mut self, cx: &Context<'_>) {
        let resting = Arc::new(Resting { over: AtomicBool::new(false), task: cx.waker().clone() });
        let waker = Waker::from(resting.clone());
        // What yields is woken only then.
        let _ = pin!(tokio::task::yield_now()).poll(&mut Context::from_waker(&waker));
        self.0 = Some(resting);
    }

    /// Whether it still rests.
    pub(super) fn lasts(&mut self) -> bool {
        if self.0.as_ref().is_some_and(|resting| resting.over.load(Relaxed)) {
            self.0 = None;
        }
        self.0.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::task::Poll;

    #[tokio::test]
    async fn pause_when_the_task_is_woken_otherwise_then_it_lasts_until_sockets_were_looked_at() {
        let mut pause = Pause::default();
        assert!(!pause.lasts());
        let (mut turns, mut begun) = (0, false);
        poll_fn(|cx| {
            if !begun {
                begun = true;
                pause.begin(cx);
                assert!(pause.lasts());
            }
            turns += 1;
            if !pause.lasts() {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        assert!(turns > 1);
    }
}
