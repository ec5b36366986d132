//! A client's stream as a side of the pipeline.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::frame::Code;
use super::inlet::Inlet;
use super::mux::{Key, Mux};
use crate::http::body::{Chunk, Downstream, Piece, SideError};
use crate::http::head::{BodyLength, RequestHead, ResponseHead};
use crate::http::headers::Headers;
use crate::telemetry::Wire;

/// One request of an HTTP/2 client. Dropping it before the response is complete resets the stream.
pub struct Down {
    mux: Rc<RefCell<Mux>>,
    key: Key,
    inlet: Inlet,
    begun: bool,
    owes_continue: bool,
    /// A tunnel was asked for and not granted yet: what the client sends is its own.
    held: bool,
}

impl Down {
    /// `held` says that the request asks for a tunnel.
    pub(super) fn new(mux: Rc<RefCell<Mux>>, key: Key, owes_continue: bool, held: bool) -> Self {
        Self { mux, key, inlet: Inlet::default(), begun: false, owes_continue, held }
    }

    /// Its client gave it up soon, and without an answer.
    pub(super) fn count_reset(&self) {
        self.mux.borrow_mut().count_reset();
    }

    /// The client is told to send no further requests on this connection.
    pub(super) fn end_connection(&self) {
        self.mux.borrow_mut().leave();
    }

    /// The endpoint itself says whether the client is to send its body.
    pub(super) fn leave_continue(&mut self) {
        self.owes_continue = false;
    }
}

impl Drop for Down {
    fn drop(&mut self) {
        let mux = &mut *self.mux.borrow_mut();
        self.inlet.close(mux);
        mux.close(self.key);
    }
}

impl Downstream for Down {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece<'_>, SideError>> {
        let mux = &mut *self.mux.borrow_mut();
        if std::mem::take(&mut self.owes_continue) && !self.begun {
            mux.send_interim(self.key, &ResponseHead::go_on());
        }
        if self.held {
            return Poll::Ready(Ok(Piece::End));
        }
        self.inlet.poll(mux, self.key, cx)
    }

    fn consume(&mut self, count: usize) {
        self.inlet.consume(&mut self.mux.borrow_mut(), self.key, count);
    }

    fn send_interim(&mut self, _: &RequestHead, head: &ResponseHead) {
        if !self.begun {
            self.mux.borrow_mut().send_interim(self.key, head);
        }
    }

    fn send_head(&mut self, request: &RequestHead, head: &ResponseHead, close: bool) {
        let mut mux = self.mux.borrow_mut();
        if close {
            mux.leave();
        }
        // As Envoy does: who asks whether to go on is answered first, whatever else there is to say.
        if std::mem::take(&mut self.owes_continue) {
            mux.send_interim(self.key, &ResponseHead::go_on());
        }
        self.begun = true;
        let to_head = request.method() == b"HEAD";
        // What answers HEAD may have trailers, too.
        mux.send_response(self.key, head, to_head, head.body == BodyLength::Empty);
    }

    fn send_data(&mut self, data: Chunk<'_>) {
        self.mux.borrow_mut().send_data(self.key, data);
    }

    fn send_end(&mut self, trailers: Option<&Headers>) {
        self.mux.borrow_mut().send_end(self.key, trailers);
    }

    fn queued(&self) -> usize {
        self.mux.borrow().queued(self.key)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        self.mux.borrow_mut().poll_sent(self.key, cx)
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.mux.borrow_mut().poll_gone(self.key, cx)
    }

    fn was_reset(&self) -> bool {
        self.mux.borrow().was_reset(self.key)
    }

    fn broke_rules(&self) -> bool {
        self.mux.borrow().broke_rules(self.key)
    }

    fn abort(&mut self) {
        self.mux.borrow_mut().reset(self.key, Code::INTERNAL_ERROR);
        self.begun = true;
    }

    fn tunnel(&mut self) {
        self.held = false;
    }

    fn wire(&self) -> Wire {
        self.mux.borrow().wire(self.key)
    }
}
