//! A client's stream as a side of the pipeline.

use std::cell::Cell;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;

use super::convert::{map_of, response_to, side_error};
use super::transfer::{Receiver, Sender};
use crate::http::body::{Downstream, Piece, SideError};
use crate::http::head::{BodyLength, RequestHead, ResponseHead};
use crate::http::headers::Headers;

/// One request of an HTTP/2 client. Dropping it before the response is complete resets the stream.
pub struct Down {
    receiver: Receiver,
    respond: SendResponse<Bytes>,
    sender: Sender,
    begun: bool,
    owes_continue: bool,
    awaits_endpoint: bool,
    failed: Option<SideError>,
    /// A tunnel was asked for and not granted yet: what the client sends is its own.
    held: bool,
    last: Rc<Cell<bool>>,
}

impl Down {
    /// `last` is set when the connection shall take no more streams.
    pub(super) fn new(
        body: RecvStream,
        respond: SendResponse<Bytes>,
        owes_continue: bool,
        last: Rc<Cell<bool>>,
    ) -> Self {
        Self {
            receiver: Receiver::new(body),
            respond,
            sender: Sender::default(),
            begun: false,
            owes_continue,
            awaits_endpoint: false,
            failed: None,
            held: false,
            last,
        }
    }
}

impl Down {
    /// The request wants a tunnel.
    pub(super) fn hold(&mut self) {
        self.held = true;
    }

    /// The endpoint itself says whether the client is to send its body.
    pub(super) fn leave_continue(&mut self) {
        self.awaits_endpoint = std::mem::take(&mut self.owes_continue);
    }

    fn tell_continue(&mut self) {
        let mut interim = http::Response::new(());
        *interim.status_mut() = http::StatusCode::CONTINUE;
        // Fails only when the stream is gone, which the body tells.
        let _ = self.respond.send_informational(interim);
    }
}

impl Downstream for Down {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece<'_>, SideError>> {
        if std::mem::take(&mut self.owes_continue) && !self.begun {
            self.tell_continue();
        }
        if self.held {
            return Poll::Ready(Ok(Piece::End));
        }
        self.receiver.poll(cx)
    }

    fn consume(&mut self, count: usize) {
        self.receiver.consume(count);
    }

    fn send_continue(&mut self) {
        if std::mem::take(&mut self.awaits_endpoint) && !self.begun {
            self.tell_continue();
        }
    }

    fn send_head(&mut self, request: &RequestHead, head: &ResponseHead, close: bool) {
        if close {
            self.last.set(true);
        }
        self.begun = true;
        let to_head = request.method() == b"HEAD";
        let ended = to_head || head.body == BodyLength::Empty;
        match self.respond.send_response(response_to(head, to_head), ended) {
            Ok(stream) => self.sender.start(stream, ended),
            Err(error) => self.failed = Some(side_error(error)),
        }
    }

    fn send_data(&mut self, data: &[u8]) {
        self.sender.data(data);
    }

    fn send_end(&mut self, trailers: Option<&Headers>) {
        self.sender.end(trailers.map(|trailers| map_of(trailers, true)));
    }

    fn queued(&self) -> usize {
        self.sender.queued() + usize::from(self.failed.is_some())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        self.sender.poll_flush(cx).map_err(side_error)
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.begun {
            false => self.respond.poll_reset(cx).map(drop),
            true => self.sender.poll_reset(cx),
        }
    }

    fn abort(&mut self) {
        match self.begun {
            false => self.respond.send_reset(h2::Reason::INTERNAL_ERROR),
            true => self.sender.reset(h2::Reason::INTERNAL_ERROR),
        }
        self.begun = true;
    }

    fn tunnel(&mut self) {
        self.held = false;
    }
}
