//! Moves bodies from one side to the other, as far as they go without waiting.

use super::{
    ahead::Ahead,
    body::{Chunk, Downstream, FORGOTTEN, HIGH_WATER, Piece, SideError, Upstream},
    headers::Headers,
    mirror::Feeds,
    pace::Pace,
    recode::{self, Recode},
    trailing::Trailing,
};
use crate::{
    config::{GrpcMessages, HeaderOp},
    tcp::splice::{Moving, Pipe},
};
use std::task::{Context, Poll, ready};

/// From so many bytes on, what is left of a body is worth a pipe.
const LONG: u64 = 16 * 1024;

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
    /// There may be more of it that is not looked at, since the endpoint takes nothing.
    pub blocked: bool,
    /// Bytes moved.
    pub bytes: u64,
    /// What was sent, for another attempt.
    pub kept: Kept,
    /// What filters do to the body.
    pub recode: Option<Box<Recode>>,
    /// What filters do to its trailers.
    trailing: Option<Box<Trailing>>,
    /// Counts the messages in it.
    messages: Option<Box<GrpcMessages>>,
    /// Copies of the request that go elsewhere.
    pub feeds: Option<Box<Feeds>>,
    /// What was read before anybody wanted it.
    ahead: Option<Box<Ahead>>,
    /// Bytes that were read when nobody wanted them any more.
    forgotten: u64,
}

/// What of a request's body is kept for another attempt.
#[derive(Debug, Default)]
pub struct Kept {
    /// What was sent; `None` when it is not kept (or became too long).
    replay: Option<Vec<u8>>,
    /// The trailers behind it.
    trailers: Option<Box<Headers>>,
    /// More than `replay` holds was sent: another attempt cannot be whole.
    pub unrepeatable: bool,
    /// Bytes that `replay` may hold.
    limit: usize,
}

impl Kept {
    /// How much it is.
    pub fn bytes(&self) -> usize {
        self.replay.as_ref().map_or(0, Vec::len)
    }

    fn add(&mut self, data: &[u8]) {
        match &mut self.replay {
            Some(replay) if replay.len() + data.len() <= self.limit => replay.extend_from_slice(data),
            _ => {
                self.replay = None;
                self.unrepeatable = true;
            }
        }
    }

    fn add_trailers(&mut self, trailers: &Headers) {
        match self.replay {
            Some(_) => self.trailers = Some(Box::new(trailers.clone())),
            None => self.unrepeatable = true,
        }
    }
}

impl RequestPump {
    /// At the beginning of a body; `keep` bytes at most are kept for another attempt.
    pub fn new(keep: Option<usize>) -> Self {
        let kept = Kept { replay: keep.map(|_| Vec::new()), limit: keep.unwrap_or(0), ..Kept::default() };
        Self { kept, ..Self::default() }
    }

    /// Whether the client has sent all of it, as far as that was looked at.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Reads the body before anybody wants it; ready when all of it is there. What is held is bounded.
    ///
    /// # Errors
    /// When the client's side fails.
    pub fn poll_ahead<D: Downstream>(&mut self, cx: &mut Context<'_>, down: &mut D) -> Poll<Result<(), SideError>> {
        match self.ended {
            true => Poll::Ready(Ok(())),
            false => self.ahead.get_or_insert_default().poll_fill(cx, down),
        }
    }

    /// Bytes of the body that were read.
    pub fn read(&self) -> u64 {
        self.bytes + self.ahead.as_ref().map_or(0, |ahead| ahead.left() as u64)
    }

    /// The next piece: what was read ahead comes first.
    fn next<'p, D: Downstream>(
        ahead: &'p Option<Box<Ahead>>,
        cx: &mut Context<'_>,
        down: &'p mut D,
    ) -> Poll<Result<Piece<'p>, SideError>> {
        match ahead.as_ref().and_then(|ahead| ahead.piece()) {
            Some(piece) => Poll::Ready(Ok(piece)),
            None => down.poll_body(cx),
        }
    }

    /// Takes bytes of the last piece.
    fn consume<D: Downstream>(&mut self, down: &mut D, count: usize) {
        match &mut self.ahead {
            None => down.consume(count),
            Some(ahead) => {
                if ahead.consume(count) {
                    self.ahead = None;
                }
            }
        }
        self.bytes += count as u64;
    }

    /// Reads the rest of the body for the request's copies alone; ready at its end, or after [`FORGOTTEN`] bytes.
    pub fn poll_forget<D: Downstream>(&mut self, cx: &mut Context<'_>, down: &mut D) -> Poll<Result<(), SideError>> {
        while !self.ended && self.forgotten < FORGOTTEN {
            match ready!(Self::next(&self.ahead, cx, down))? {
                Piece::Data(data) => {
                    let data = part(data, self.recode.is_some());
                    let count = data.len();
                    let made = self.recode.as_mut().map(|recode| recode.data(&data)).transpose()?;
                    if let Some(feeds) = &self.feeds {
                        feeds.data(made.as_deref().unwrap_or(&data));
                    }
                    self.consume(down, count);
                    self.forgotten += count as u64;
                }
                end @ (Piece::Trailers(_) | Piece::End) => {
                    let trailers = Trailing::of(self.trailing.as_deref(), &end);
                    let rest = self.recode.as_mut().map(|recode| recode.end()).transpose()?.unwrap_or_default();
                    if let Some(feeds) = &self.feeds {
                        if !rest.is_empty() {
                            feeds.data(&rest);
                        }
                        feeds.end(Recode::told(self.recode.as_deref(), trailers).as_deref());
                    }
                    self.ended = true;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Keeps what will be sent, up to so many bytes, if nothing was sent yet.
    pub fn keep_for_replay(&mut self, limit: usize) {
        if self.kept.replay.is_none() && !self.kept.unrepeatable && self.bytes == 0 {
            self.kept.replay = Some(Vec::new());
        }
        self.kept.limit = self.kept.limit.max(limit);
    }

    /// Counts the messages in the body as it goes on.
    pub(super) fn count_messages(&mut self, messages: GrpcMessages) {
        self.messages = Some(Box::new(messages));
    }

    /// Changes the trailers, whether they have come or are to come.
    pub(super) fn change_trailers(&mut self, changes: Vec<(HeaderOp, Vec<u8>)>) {
        match (&mut self.kept.trailers, self.ended) {
            (Some(trailers), true) => changes.iter().for_each(|(change, value)| trailers.change(change, value)),
            (None, true) => {}
            (_, false) => self.trailing.get_or_insert_default().add(changes),
        }
    }

    /// Reads the whole body before anything is sent; false when it has more than `limit` bytes.
    ///
    /// # Errors
    /// When the client's side fails.
    pub fn poll_all<D: Downstream>(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut D,
        limit: usize,
    ) -> Poll<Result<bool, SideError>> {
        self.keep_for_replay(limit);
        // It may have come whole before, for another limit.
        if self.kept.bytes() > limit {
            return Poll::Ready(Ok(false));
        }
        while !self.ended {
            match ready!(Self::next(&self.ahead, cx, down))? {
                Piece::Data(data) => {
                    let data = part(data, self.recode.is_some());
                    let count = data.len();
                    let made = self.recode.as_mut().map(|recode| recode.data(&data)).transpose()?;
                    let data = made.as_deref().unwrap_or(&data);
                    let replay = self.kept.replay.get_or_insert_default();
                    if replay.len() + data.len() > limit {
                        self.bytes += count as u64;
                        return Poll::Ready(Ok(false));
                    }
                    replay.extend_from_slice(data);
                    if let Some(messages) = &mut self.messages {
                        messages.pass(data);
                    }
                    self.consume(down, count);
                }
                end @ (Piece::Trailers(_) | Piece::End) => {
                    let trailers = Trailing::of(self.trailing.as_deref(), &end);
                    let rest = self.recode.as_mut().map(|recode| recode.end()).transpose()?.unwrap_or_default();
                    let trailers = Recode::told(self.recode.as_deref(), trailers);
                    self.kept.trailers = trailers.map(|trailers| Box::new(trailers.into_owned()));
                    let replay = self.kept.replay.get_or_insert_default();
                    if replay.len() + rest.len() > limit {
                        return Poll::Ready(Ok(false));
                    }
                    replay.extend_from_slice(&rest);
                    self.ended = true;
                }
            }
        }
        Poll::Ready(Ok(true))
    }

    /// For a request that another was redirected to: it has the body, unless it is `bodiless`, and no trailers. Whether there is
    /// anything in it.
    pub fn redirect(&mut self, bodiless: bool) -> bool {
        self.kept.trailers = None;
        if bodiless && let Some(replay) = &mut self.kept.replay {
            replay.clear();
        }
        self.kept.bytes() > 0
    }

    /// Gives the request's copies what was read before they began, and keeps them.
    pub fn feed(&mut self, feeds: Box<Feeds>) {
        if let Some(replay) = self.kept.replay.as_ref().filter(|replay| !replay.is_empty()) {
            feeds.data(replay);
        }
        if self.ended {
            feeds.end(self.kept.trailers.as_deref());
        }
        self.feeds = Some(feeds);
    }

    /// Begins another attempt: what was sent before is sent again. False when that is not possible.
    pub fn rewind(&mut self, up: &mut impl Upstream) -> bool {
        if self.kept.unrepeatable {
            return false;
        }
        self.done = false;
        if let Some(replay) = &self.kept.replay
            && !replay.is_empty()
        {
            up.send_data(replay.into());
        }
        if self.ended {
            up.send_end(self.kept.trailers.as_deref());
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
        self.blocked = false;
        while !self.ended {
            if up.queued() >= HIGH_WATER {
                let flushed = up.poll_flush(cx);
                self.blocked = flushed.is_pending();
                ready!(flushed).map_err(PumpError::Sink)?;
                *moved = true;
            }
            match Self::next(&self.ahead, cx, down) {
                Poll::Ready(Ok(Piece::Data(data))) => {
                    let data = part(data, self.recode.is_some());
                    let count = data.len();
                    match &mut self.recode {
                        None => Self::give(data, up, &self.feeds, (&mut self.kept, &mut self.messages)),
                        Some(recode) => {
                            let made = recode.data(&data).map_err(PumpError::Source)?;
                            Self::give((&made).into(), up, &self.feeds, (&mut self.kept, &mut self.messages));
                        }
                    }
                    self.consume(down, count);
                    *moved = true;
                }
                Poll::Ready(Ok(end @ (Piece::Trailers(_) | Piece::End))) => {
                    if let Some(recode) = &mut self.recode {
                        let rest = recode.end().map_err(PumpError::Source)?;
                        Self::give((&rest).into(), up, &self.feeds, (&mut self.kept, &mut self.messages));
                    }
                    let trailers = Trailing::of(self.trailing.as_deref(), &end);
                    let trailers = Recode::told(self.recode.as_deref(), trailers);
                    up.send_end(trailers.as_deref());
                    if let Some(feeds) = &self.feeds {
                        feeds.end(trailers.as_deref());
                    }
                    self.ended = true;
                    if let Some(trailers) = trailers.as_deref() {
                        self.kept.add_trailers(trailers);
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(PumpError::Source(error))),
                Poll::Pending => {
                    if let Some(recode) = &mut self.recode {
                        let made = recode.flush().map_err(PumpError::Source)?;
                        Self::give((&made).into(), up, &self.feeds, (&mut self.kept, &mut self.messages));
                    }
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

    /// Sends a part of the body, to its copies as well, and keeps it.
    fn give(
        data: Chunk<'_>,
        up: &mut impl Upstream,
        feeds: &Option<Box<Feeds>>,
        (kept, messages): (&mut Kept, &mut Option<Box<GrpcMessages>>),
    ) {
        if data.is_empty() {
            return;
        }
        if let Some(messages) = messages {
            messages.pass(&data);
        }
        up.send_data(data);
        if let Some(feeds) = feeds {
            feeds.data(&data);
        }
        kept.add(&data);
    }
}

/// What of a piece is taken at once: bounded where it may become more.
fn part(data: Chunk<'_>, recoded: bool) -> Chunk<'_> {
    if recoded { data.first(recode::AT_ONCE) } else { data }
}

/// How far the response's body is.
#[derive(Debug, Default)]
pub struct ResponsePump {
    ended: bool,
    /// Moves long bodies through the kernel, where neither side has anything to do with the bytes.
    pipe: Option<Pipe>,
    /// The kernel cannot, or has no pipe.
    copies: bool,
    recode: Option<Box<Recode>>,
    /// What filters do to the trailers.
    trailing: Option<Box<Trailing>>,
    /// How fast it may go.
    pace: Option<Box<Pace>>,
    /// Counts the messages in it.
    messages: Option<Box<GrpcMessages>>,
    /// Bytes moved.
    pub bytes: u64,
    /// The `grpc-status` of the trailers.
    pub grpc_status: Option<u16>,
    keep: bool,
    /// The trailers, where they are kept.
    pub trailers: Option<Box<Headers>>,
}

impl ResponsePump {
    /// At the beginning of a body, to which filters do this; whether it keeps the trailers.
    pub fn new(keep: bool, recode: Option<Box<Recode>>) -> Self {
        Self { keep, copies: recode.is_some(), recode, ..Self::default() }
    }

    /// No faster than this.
    pub fn paced(mut self, pace: Option<Box<Pace>>) -> Self {
        self.copies |= pace.is_some();
        self.pace = pace;
        self
    }

    /// With messages that are counted.
    pub(super) fn counting(mut self, messages: Option<Box<GrpcMessages>>) -> Self {
        self.copies |= messages.is_some();
        self.messages = messages;
        self
    }

    /// With trailers that filters change.
    pub(super) fn trailing(mut self, trailing: Option<Box<Trailing>>) -> Self {
        self.trailing = trailing;
        self
    }

    /// Whether there is something that the client does not take.
    pub(super) fn waits_for<D: Downstream>(&self, down: &D) -> bool {
        down.queued() > 0 || self.pipe.as_ref().is_some_and(|pipe| !pipe.is_empty())
    }

    /// Moves what can be moved; ready when all of the response was sent.
    pub fn poll<D: Downstream, U: Upstream>(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut D,
        up: &mut U,
        moved: &mut bool,
    ) -> Poll<Result<(), PumpError>> {
        while !self.ended {
            if let Some(result) = self.poll_pipe(cx, down, up, moved) {
                ready!(result)?;
                continue;
            }
            if down.queued() >= HIGH_WATER {
                ready!(down.poll_flush(cx)).map_err(PumpError::Sink)?;
                *moved = true;
            }
            let room = match self.pace.as_mut().map(|pace| pace.poll(cx)) {
                None => usize::MAX,
                Some(Poll::Ready(room)) => room,
                Some(Poll::Pending) => {
                    if down.queued() > 0 {
                        ready!(down.poll_flush(cx)).map_err(PumpError::Sink)?;
                    }
                    return Poll::Pending;
                }
            };
            match up.poll_body(cx) {
                Poll::Ready(Ok(Piece::Data(data))) => {
                    let data = part(data, self.recode.is_some());
                    let data = data.first(room);
                    let count = data.len();
                    if let Some(pace) = &mut self.pace {
                        pace.took(count);
                    }
                    if let Some(messages) = &mut self.messages {
                        messages.pass(&data);
                    }
                    match &mut self.recode {
                        None => {
                            down.send_data(data);
                            self.bytes += count as u64;
                        }
                        Some(recode) => {
                            let made = recode.data(&data).map_err(PumpError::Source)?;
                            down.send_data((&made).into());
                            self.bytes += made.len() as u64;
                        }
                    }
                    up.consume(count);
                    *moved = true;
                }
                Poll::Ready(Ok(end @ (Piece::Trailers(_) | Piece::End))) => {
                    let mut trailers = Trailing::of(self.trailing.as_deref(), &end);
                    let mut framed = false;
                    if let Some(recode) = &mut self.recode {
                        framed = trailers.as_deref().is_some_and(|trailers| recode.take_trailers(trailers));
                        let rest = recode.end().map_err(PumpError::Source)?;
                        down.send_data((&rest).into());
                        self.bytes += rest.len() as u64;
                    }
                    trailers = Recode::told(self.recode.as_deref(), trailers);
                    let trailers = trailers.as_deref();
                    self.grpc_status = trailers.and_then(|trailers| {
                        super::call::grpc_status(trailers.known(super::headers::Known::GrpcStatus))
                    });
                    if self.keep {
                        self.trailers = trailers.map(|trailers| Box::new(trailers.clone()));
                    }
                    down.send_end(trailers.filter(|_| !framed));
                    self.ended = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(PumpError::Source(error))),
                Poll::Pending => {
                    if let Some(recode) = &mut self.recode {
                        let made = recode.flush().map_err(PumpError::Source)?;
                        down.send_data((&made).into());
                        self.bytes += made.len() as u64;
                    }
                    if down.queued() > 0 {
                        ready!(down.poll_flush(cx)).map_err(PumpError::Sink)?;
                    }
                    return Poll::Pending;
                }
            }
        }
        down.poll_flush(cx).map_err(PumpError::Sink)
    }

    /// Moves a piece of a long body from socket to socket; `None` where bytes are copied.
    fn poll_pipe<D: Downstream, U: Upstream>(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut D,
        up: &mut U,
        moved: &mut bool,
    ) -> Option<Poll<Result<(), PumpError>>> {
        let held = self.pipe.as_ref().is_some_and(|pipe| !pipe.is_empty());
        if !held {
            let left = up.plain().map_or(0, |(_, left)| left);
            if left < LONG || self.copies {
                self.pipe = None;
                return None;
            }
            // What waits goes first, then the way is free.
            if down.queued() > 0 {
                match down.poll_flush(cx) {
                    Poll::Ready(Ok(())) => *moved = true,
                    Poll::Ready(Err(error)) => return Some(Poll::Ready(Err(PumpError::Sink(error)))),
                    Poll::Pending => return Some(Poll::Pending),
                }
            }
            down.plain()?;
            if self.pipe.is_none() {
                self.pipe = Pipe::take();
                self.copies = self.pipe.is_none();
            }
            let pipe = self.pipe.as_mut()?;
            let (tcp, left) = up.plain()?;
            match pipe.poll_fill(cx, tcp, usize::try_from(left).unwrap_or(usize::MAX)) {
                Poll::Ready(Ok(Moving::Bytes(count))) => up.passed(count as u64),
                Poll::Ready(Ok(Moving::End)) => {
                    return Some(Poll::Ready(Err(PumpError::Source(SideError::Cut))));
                }
                Poll::Ready(Ok(Moving::Impossible)) => {
                    self.copies = true;
                    return None;
                }
                Poll::Ready(Err(error)) => return Some(Poll::Ready(Err(PumpError::Source(error.into())))),
                Poll::Pending => return Some(Poll::Pending),
            }
            *moved = true;
        }
        let (pipe, tcp) = (self.pipe.as_mut()?, down.plain()?);
        Some(match pipe.poll_drain(cx, tcp) {
            Poll::Ready(Ok(count)) => {
                self.bytes += count;
                down.passed(count);
                *moved = true;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(PumpError::Sink(error.into()))),
            Poll::Pending => Poll::Pending,
        })
    }
}
