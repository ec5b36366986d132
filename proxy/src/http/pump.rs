//! Moves bodies from one side to the other, as far as they go without waiting.

use super::body::{Downstream, HIGH_WATER, Piece, SideError, Upstream};
use std::task::{Context, Poll, ready};

/// Which side failed, as the mover saw it.
#[derive(Debug)]
pub enum PumpError {
    /// The side that gives.
    Source(SideError),
    /// The side that takes.
    Sink(SideError),
}

/// How far the request's body is.
#[derive(Debug, Default)]
pub struct RequestPump {
    /// Everything was handed to the endpoint's side and sent.
    pub done: bool,
    /// The client's side said its end.
    ended: bool,
    /// Bytes moved.
    pub bytes: u64,
    /// What was sent, for another attempt; `None` when it is not kept (or became too long).
    pub replay: Option<Vec<u8>>,
    /// More than `replay` holds was sent: another attempt cannot be whole.
    pub unrepeatable: bool,
}

/// Bytes of a request's body that are kept for another attempt.
pub const MAX_REPLAY: usize = 64 * 1024;

impl RequestPump {
    /// At the beginning of a body; `keep` keeps what is sent for another attempt.
    pub fn new(keep: bool) -> Self {
        Self { replay: keep.then(Vec::new), ..Self::default() }
    }

    /// Begins another attempt: what was sent before is sent again. False when that is not possible.
    pub fn rewind(&mut self, up: &mut impl Upstream) -> bool {
        if self.unrepeatable {
            return false;
        }
        self.done = false;
        if let Some(replay) = &self.replay
            && !replay.is_empty()
        {
            up.send_data(replay);
        }
        if self.ended {
            up.send_end(None);
        }
        true
    }

    /// Moves what can be moved; ready when all of the request was sent.
    pub fn poll<D: Downstream, U: Upstream>(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut D,
        up: &mut U,
        moved: &mut bool,
    ) -> Poll<Result<(), PumpError>> {
        while !self.ended {
            if up.queued() >= HIGH_WATER {
                ready!(up.poll_flush(cx)).map_err(PumpError::Sink)?;
                *moved = true;
            }
            match down.poll_body(cx) {
                Poll::Ready(Ok(Piece::Data(data))) => {
                    let count = data.len();
                    up.send_data(data);
                    self.keep(count, |replay| replay.extend_from_slice(data));
                    down.consume(count);
                    self.bytes += count as u64;
                    *moved = true;
                }
                Poll::Ready(Ok(Piece::Trailers(trailers))) => {
                    up.send_end(Some(trailers));
                    self.ended = true;
                    self.unrepeatable = true;
                }
                Poll::Ready(Ok(Piece::End)) => {
                    up.send_end(None);
                    self.ended = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(PumpError::Source(error))),
                Poll::Pending => {
                    if up.queued() > 0 {
                        ready!(up.poll_flush(cx)).map_err(PumpError::Sink)?;
                    }
                    return Poll::Pending;
                }
            }
        }
        ready!(up.poll_flush(cx)).map_err(PumpError::Sink)?;
        self.done = true;
        Poll::Ready(Ok(()))
    }

    fn keep(&mut self, count: usize, add: impl FnOnce(&mut Vec<u8>)) {
        match &mut self.replay {
            Some(replay) if replay.len() + count <= MAX_REPLAY => add(replay),
            _ => {
                self.replay = None;
                self.unrepeatable = true;
            }
        }
    }
}

/// How far the response's body is.
#[derive(Debug, Default)]
pub struct ResponsePump {
    ended: bool,
    /// Bytes moved.
    pub bytes: u64,
    /// The `grpc-status` of the trailers.
    pub grpc_status: Option<u16>,
}

impl ResponsePump {
    /// Moves what can be moved; ready when all of the response was sent.
    pub fn poll<D: Downstream, U: Upstream>(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut D,
        up: &mut U,
        moved: &mut bool,
    ) -> Poll<Result<(), PumpError>> {
        while !self.ended {
            if down.queued() >= HIGH_WATER {
                ready!(down.poll_flush(cx)).map_err(PumpError::Sink)?;
                *moved = true;
            }
            match up.poll_body(cx) {
                Poll::Ready(Ok(Piece::Data(data))) => {
                    let count = data.len();
                    down.send_data(data);
                    up.consume(count);
                    self.bytes += count as u64;
                    *moved = true;
                }
                Poll::Ready(Ok(Piece::Trailers(trailers))) => {
                    self.grpc_status = super::call::grpc_status(trailers.known(super::headers::Known::GrpcStatus));
                    down.send_end(Some(trailers));
                    self.ended = true;
                }
                Poll::Ready(Ok(Piece::End)) => {
                    down.send_end(None);
                    self.ended = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(PumpError::Source(error))),
                Poll::Pending => {
                    if down.queued() > 0 {
                        ready!(down.poll_flush(cx)).map_err(PumpError::Sink)?;
                    }
                    return Poll::Pending;
                }
            }
        }
        down.poll_flush(cx).map_err(PumpError::Sink)
    }
}
