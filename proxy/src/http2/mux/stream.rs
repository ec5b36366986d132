//! One stream of a connection: what came of it and what waits to go.

use std::hash::Hasher;
use std::task::{Context, Waker};

use super::super::frame::Code;
use super::super::queue::Queue;
use super::KEEP;
use crate::http::headers::Headers;
use crate::telemetry::Wire;

/// Why a stream ended before it was complete.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reset {
    /// The peer said so.
    Peer(Code),
    /// The peer broke the rules in it.
    Own(&'static str),
    /// The peer says that it did nothing for it.
    Unserved,
}

/// How a body that we send ends.
#[derive(Default)]
pub(super) enum End {
    #[default]
    Open,
    /// When what waits is written, with trailers.
    Due(Option<Box<Headers>>),
    Done,
}

#[derive(Default)]
pub(super) struct Stream {
    pub(super) id: u32,
    /// Received: the head of an answer, the body, the trailers.
    pub(super) head: Option<(u16, Headers)>,
    /// The head came.
    pub(super) headed: bool,
    pub(super) data: Queue,
    pub(super) trailers: Option<Box<Headers>>,
    pub(super) ended: bool,
    /// Heads of interim answers that nobody has taken yet.
    pub(super) interim: Vec<(u16, Headers)>,
    /// How many of them came, up to [`super::MAX_INTERIM`]; later ones are forgotten.
    pub(super) interims: u8,
    /// Bytes that its `content-length` still promises.
    pub(super) promised: Option<u64>,
    /// No body is read whatever the length says (an answer to HEAD).
    pub(super) bodiless: bool,
    /// What follows the head is no body.
    pub(super) tunnel: bool,
    pub(super) recv_window: i64,
    /// What the peer may send ahead, as it is now.
    pub(super) window: u32,
    /// Bytes that were used and not yet given back to the peer's window.
    pub(super) used: u32,
    pub(super) reset: Option<Reset>,
    /// Sent: bytes that wait for a window or for room.
    pub(super) waiting: Queue,
    pub(super) end: End,
    pub(super) send_window: i64,
    /// It stands in the queue of those that can send.
    pub(super) queued: bool,
    pub(super) waker: Option<Waker>,
    /// Bytes of its frames.
    pub(super) wire: Wire,
}

impl Stream {
    pub(super) fn waits(&self) -> usize {
        self.waiting.len()
    }

    /// Says why it ends, if nothing did before; what waits is not sent any more.
    pub(super) fn end_early(&mut self, reset: Reset) {
        self.reset.get_or_insert(reset);
        self.waiting.clear(KEEP);
    }

    pub(super) fn listen(&mut self, cx: &Context<'_>) {
        match &self.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => self.waker = Some(cx.waker().clone()),
        }
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }
}

/// A stream of a connection, for as long as it has not been closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Key {
    pub(super) slot: u32,
    pub(super) id: u32,
}

/// Stream ids grow by two: their own hash is good enough.
#[derive(Default)]
pub(super) struct Ids(u64);

impl Hasher for Ids {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(byte.into());
        }
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
