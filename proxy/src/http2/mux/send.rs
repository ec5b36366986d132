//! What we send, and what the handles of streams do.

use std::cell::Cell;
use std::task::{Context, Poll};

use super::super::frame::{self, Code, Head};
use super::super::heads;
use super::super::queue::{LARGE, Queue};
use super::{End, Key, Mux, ROOM, Reset, Role};
use crate::http::body::{Chunk, HIGH_WATER, SideError};
use crate::http::head::{BodyLength, RequestHead, ResponseHead};
use crate::http::headers::Headers;

impl Mux {
    /// Opens a stream with a request's head.
    pub(in super::super) fn send_request(&mut self, head: &RequestHead, of_mesh: bool) -> Result<Key, SideError> {
        if self.peer_leaves || self.next > 0x7fff_ffff {
            return Err(SideError::Refused);
        }
        if let Some(error) = self.death.is_some().then(|| self.error(Key { slot: u32::MAX, id: 0 })).flatten() {
            return Err(error);
        }
        let key = self.open(self.next);
        self.next += 2;
        let ended = head.body == BodyLength::Empty && !head.wants_tunnel();
        if let Some(stream) = self.get_mut(key) {
            stream.bodiless = head.method() == b"HEAD";
            stream.tunnel = head.wants_tunnel();
            stream.end = if ended { End::Done } else { End::Open };
        }
        let at = self.begin_head();
        heads::write_request(head, of_mesh, &mut self.encoder, &mut self.out.bytes);
        self.finish_head(at, key, ended);
        self.touch();
        Ok(key)
    }

    /// Answers: the head of a response.
    pub(in super::super) fn send_response(&mut self, key: Key, head: &ResponseHead, to_head: bool, ended: bool) {
        let Some(stream) = self.get_mut(key).filter(|stream| stream.reset.is_none()) else { return };
        stream.end = if ended { End::Done } else { End::Open };
        if self.death.is_some() {
            return;
        }
        let at = self.begin_head();
        heads::write_response(head, to_head, &mut self.encoder, &mut self.out.bytes);
        self.finish_head(at, key, ended);
        self.touch();
    }

    /// An interim response.
    pub(in super::super) fn send_interim(&mut self, key: Key, head: &ResponseHead) {
        if self.get(key).is_none_or(|stream| stream.reset.is_some()) || self.death.is_some() {
            return;
        }
        let at = self.begin_head();
        heads::write_response(head, false, &mut self.encoder, &mut self.out.bytes);
        self.finish_head(at, key, false);
        self.tail = None;
        self.touch();
    }

    fn begin_head(&mut self) -> usize {
        let at = self.out.bytes.len();
        self.out.bytes.extend_from_slice(&[0; frame::HEAD]);
        self.encoder.begin(&mut self.out.bytes);
        at
    }

    /// Gives the header block that was written from `at` on its frames.
    fn finish_head(&mut self, at: usize, key: Key, ended: bool) {
        let id = key.id;
        let end = if ended { frame::END_STREAM } else { 0 };
        let length = self.out.bytes.len() - at - frame::HEAD;
        let first = length.min(self.max_frame);
        let flags = if length == first { end | frame::END_HEADERS } else { end };
        self.out.bytes[at..at + frame::HEAD].copy_from_slice(&Head::bytes(first, frame::HEADERS, flags, id));
        if length > first {
            let rest = self.out.bytes.split_off(at + frame::HEAD + first);
            let mut pieces = rest.chunks(self.max_frame).peekable();
            while let Some(piece) = pieces.next() {
                let flags = if pieces.peek().is_none() { frame::END_HEADERS } else { 0 };
                frame::small(&mut self.out.bytes, frame::CONTINUATION, flags, id, piece);
            }
        }
        self.tail = (!ended).then_some((id, at + 4));
        let bytes = (self.out.bytes.len() - at) as u64;
        let plain = self.encoder.take_plain();
        if let Some(stream) = self.get_mut(key) {
            stream.wire.sent += bytes;
            stream.wire.head_sent += bytes;
            stream.wire.plain_sent += plain;
        }
    }

    /// Sends bytes of a body: at once as far as the windows allow, the rest later.
    pub(in super::super) fn send_data(&mut self, key: Key, mut data: Chunk<'_>) {
        let Some(stream) = self.get(key) else { return };
        if stream.reset.is_some() || !matches!(stream.end, End::Open) || self.death.is_some() {
            return;
        }
        if stream.waits() == 0 {
            let count = self.allowed(key, data.len());
            let mut now = data.first(count);
            while !now.is_empty() {
                self.write_data(key, now.first(self.max_frame), false);
                now = now.after(self.max_frame);
            }
            data = data.after(count);
            if count > 0 {
                self.touch();
            }
        }
        if !data.is_empty()
            && let Some(stream) = self.get_mut(key)
        {
            stream.waiting.push(data);
            self.enqueue(key);
        }
    }

    /// Ends a body.
    pub(in super::super) fn send_end(&mut self, key: Key, trailers: Option<&Headers>) {
        let trailers = trailers.filter(|trailers| !trailers.is_empty());
        let dead = self.death.is_some();
        let Some(stream) = self.get_mut(key) else { return };
        if stream.reset.is_some() || !matches!(stream.end, End::Open) || dead {
            return;
        }
        if stream.waits() > 0 {
            stream.end = End::Due(trailers.map(|trailers| Box::new(trailers.clone())));
            return;
        }
        self.write_end(key, trailers);
        self.touch();
    }

    /// Bytes that wait; the end of the body counts as one.
    pub(in super::super) fn queued(&self, key: Key) -> usize {
        self.get(key).map_or(0, |stream| stream.waits() + usize::from(matches!(stream.end, End::Due(_))))
    }

    /// Ready when nothing waits.
    pub(in super::super) fn poll_sent(&mut self, key: Key, cx: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        let Some(stream) = self.get_mut(key) else { return Poll::Ready(Err(SideError::Ended)) };
        if matches!(stream.reset, Some(Reset::Peer(Code::NO_ERROR))) && stream.ended {
            // The peer has answered and wants no more of the request (RFC 9113, section 8.1).
            return Poll::Ready(Ok(()));
        }
        let waits = stream.waits() > 0 || matches!(stream.end, End::Due(_));
        // What is complete is complete, whatever happened to the connection since.
        if stream.reset.is_some() || waits || matches!(stream.end, End::Open) {
            stream.listen(cx);
            if let Some(error) = self.error(key) {
                return Poll::Ready(Err(error));
            }
        }
        if waits { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    /// Ready when the peer has reset the stream, or the connection is gone.
    pub(in super::super) fn poll_gone(&mut self, key: Key, cx: &mut Context<'_>) -> Poll<()> {
        let dead = self.death.is_some();
        let Some(stream) = self.get_mut(key) else { return Poll::Ready(()) };
        if stream.reset.is_some() || dead && !matches!(stream.end, End::Done) {
            return Poll::Ready(());
        }
        stream.listen(cx);
        Poll::Pending
    }

    /// Takes the head of an answer.
    pub(in super::super) fn poll_answer(
        &mut self,
        key: Key,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(u16, Headers, bool), SideError>> {
        let Some(stream) = self.get_mut(key) else { return Poll::Ready(Err(SideError::Ended)) };
        if let Some((status, headers)) = stream.head.take() {
            let over = stream.ended && stream.data.is_empty() && stream.trailers.is_none();
            return Poll::Ready(Ok((status, headers, over)));
        }
        stream.listen(cx);
        match self.error(key) {
            Some(error) => Poll::Ready(Err(error)),
            None => Poll::Pending,
        }
    }

    /// Takes the head of an interim answer, where one came.
    pub(in super::super) fn take_interim(&mut self, key: Key) -> Option<(u16, Headers)> {
        let waiting = &mut self.get_mut(key)?.interim;
        (!waiting.is_empty()).then(|| waiting.remove(0))
    }

    /// Takes all bytes of the body that came, in exchange for memory; ready without any at its end, with the trailers.
    pub(in super::super) fn poll_body(
        &mut self,
        key: Key,
        cx: &mut Context<'_>,
        bytes: &mut Queue,
    ) -> Poll<Result<Option<Box<Headers>>, SideError>> {
        let Some(stream) = self.get_mut(key) else { return Poll::Ready(Err(SideError::Ended)) };
        if !stream.data.is_empty() {
            bytes.clear(2 * HIGH_WATER);
            std::mem::swap(&mut stream.data, bytes);
            return Poll::Ready(Ok(None));
        }
        if stream.ended {
            return Poll::Ready(Ok(stream.trailers.take()));
        }
        stream.listen(cx);
        match self.error(key) {
            Some(error) => Poll::Ready(Err(error)),
            None => Poll::Pending,
        }
    }

    /// Bytes were used: the peer may send as many more.
    pub(in super::super) fn give_back(&mut self, key: Option<Key>, count: u32) {
        if count == 0 || self.death.is_some() {
            return;
        }
        self.used += count;
        if self.used >= self.window / 2 {
            let used = std::mem::take(&mut self.used);
            let before = self.window;
            let most = before.saturating_add(spare()).min(self.limits.most_connection_window);
            let bounds = (self.limits.first_window(), most);
            let more = regulated(&mut self.window, self.recv_window, used, bounds);
            grew(i64::from(self.window) - i64::from(before));
            self.recv_window += i64::from(more);
            self.write_window(0, more);
        }
        let bounds = (self.limits.stream_window, self.limits.most_stream_window);
        if let Some(key) = key
            && let Some(stream) = self.get_mut(key)
            && !stream.ended
            && stream.reset.is_none()
        {
            stream.used += count;
            if stream.used >= stream.window / 2 {
                let used = std::mem::take(&mut stream.used);
                let more = regulated(&mut stream.window, stream.recv_window, used, bounds);
                stream.recv_window += i64::from(more);
                self.write_window(key.id, more);
            }
        }
    }

    fn write_window(&mut self, id: u32, more: u32) {
        if more == 0 {
            return;
        }
        self.tail = None;
        frame::small(&mut self.out.bytes, frame::WINDOW_UPDATE, 0, id, &more.to_be_bytes());
        self.touch();
    }

    /// Ends a stream before it is complete.
    pub(in super::super) fn reset(&mut self, key: Key, code: Code) {
        if self.get(key).is_some_and(|stream| stream.reset.is_none()) {
            self.refuse(key.id, code);
            self.touch();
            if let Some(stream) = self.get_mut(key) {
                stream.end_early(Reset::Own("the stream was reset"));
            }
        }
    }

    /// The handle is gone, and with it the stream: reset if it is not complete.
    pub(in super::super) fn close(&mut self, key: Key) {
        let Some(stream) = self.get(key) else { return };
        if stream.reset.is_none() {
            match (&stream.end, stream.ended, self.role) {
                (End::Done, true, _) => {}
                // Answered, but the client still sends: it may stop (RFC 9113, section 8.1).
                (End::Done, false, Role::Server) => self.reset(key, Code::NO_ERROR),
                _ => self.reset(key, Code::CANCEL),
            }
        }
        self.forget(key);
        if self.ids.is_empty() {
            // Who waits for the last stream to end is the driver.
            self.touch();
        }
    }

    /// How many of `wanted` bytes a stream may send now.
    fn allowed(&self, key: Key, wanted: usize) -> usize {
        let Some(stream) = self.get(key) else { return 0 };
        let window = stream.send_window.min(self.send_window).max(0);
        let room = ROOM.saturating_sub(self.out.len());
        wanted.min(usize::try_from(window).unwrap_or(0)).min(room)
    }

    fn write_data(&mut self, key: Key, data: Chunk<'_>, end: bool) {
        let at = self.out.bytes.len();
        let flags = if end { frame::END_STREAM } else { 0 };
        self.out.bytes.extend_from_slice(&Head::bytes(data.len(), frame::DATA, flags, key.id));
        match data.share(LARGE) {
            Some(payload) => self.out.push(payload),
            None => self.out.bytes.extend_from_slice(&data),
        }
        self.tail = (!end).then_some((key.id, at + 4));
        self.guard.sends();
        self.send_window -= data.len() as i64;
        if let Some(stream) = self.get_mut(key) {
            stream.send_window -= data.len() as i64;
            stream.wire.sent += (frame::HEAD + data.len()) as u64;
        }
    }

    fn write_end(&mut self, key: Key, trailers: Option<&Headers>) {
        match (trailers, self.tail) {
            (Some(trailers), _) => {
                let at = self.begin_head();
                heads::write_trailers(trailers, &mut self.encoder, &mut self.out.bytes);
                self.finish_head(at, key, true);
            }
            // The last frame was this stream's: it becomes its last.
            (None, Some((id, flags))) if id == key.id => {
                self.out.bytes[flags] |= frame::END_STREAM;
                self.tail = None;
            }
            (None, _) => self.write_data(key, (&[][..]).into(), true),
        }
        if let Some(stream) = self.get_mut(key) {
            stream.end = End::Done;
        }
    }

    /// A stream has bytes or got a window: it may send when it is its turn.
    pub(super) fn enqueue(&mut self, key: Key) {
        let Some(stream) = self.get_mut(key) else { return };
        if !stream.queued && stream.waits() > 0 && stream.send_window > 0 {
            stream.queued = true;
            self.sendable.push_back(key);
            self.touch();
        }
    }

    /// Writes what waits for its turn: a frame of each stream after the other, as far as room and windows go.
    pub(in super::super) fn pump(&mut self) {
        while self.send_window > 0 && self.out.len() < ROOM {
            let Some(key) = self.sendable.pop_front() else { return };
            let Some(stream) = self.get(key) else { continue };
            let waits = stream.waits();
            let count = self.allowed(key, stream.waiting.front().len()).min(self.max_frame);
            let Some(stream) = self.get_mut(key) else { continue };
            stream.queued = false;
            let mut waiting = std::mem::take(&mut stream.waiting);
            if count > 0 {
                self.write_data(key, waiting.front().first(count), false);
                waiting.advance(count);
            }
            if count == waits {
                waiting.clear(2 * HIGH_WATER);
            }
            let Some(stream) = self.get_mut(key) else { continue };
            stream.waiting = waiting;
            if count == waits {
                if matches!(stream.end, End::Due(_))
                    && let End::Due(trailers) = std::mem::replace(&mut stream.end, End::Done)
                {
                    self.write_end(key, trailers.as_deref());
                }
            } else {
                self.enqueue(key);
            }
            if let Some(stream) = self.get(key)
                && stream.waits() < HIGH_WATER / 2
            {
                stream.wake();
            }
        }
    }
}

impl Drop for Mux {
    fn drop(&mut self) {
        grew(i64::from(self.limits.first_window()) - i64::from(self.window));
    }
}

/// Bytes by which the windows of a worker's connections may grow, all together: peers of whom each had much used at once, and then
/// has it used no more, can make it hold no more than that beside what they may send in the beginning.
const MOST_GROWN: i64 = 64 * 1024 * 1024;

thread_local! {
    /// By how much they have grown.
    static GROWN: Cell<i64> = const { Cell::new(0) };
}

/// By how much a window may still grow.
fn spare() -> u32 {
    u32::try_from(MOST_GROWN - GROWN.get()).unwrap_or(0)
}

/// A window has grown, or shrunk.
fn grew(bytes: i64) {
    GROWN.set(GROWN.get() + bytes);
}

/// How many bytes the peer may send more, of which so many were used and `left` is what it may send already: more than that
/// where little waits to be used (the window grows twofold, up to the second of the bounds), less where much does, down to the first.
fn regulated(window: &mut u32, left: i64, used: u32, (least, most): (u32, u32)) -> u32 {
    let waits = i64::from(*window) - left - i64::from(used);
    if waits <= i64::from(*window / 4) {
        let more = (*window).min(most.saturating_sub(*window));
        *window += more;
        used + more
    } else if waits > i64::from(*window / 2) {
        let less = used.min(window.saturating_sub(least));
        *window -= less;
        used - less
    } else {
        used
    }
}

#[cfg(test)]
mod tests {
    use super::regulated;

    #[test]
    fn window_when_all_is_used_at_once_then_grows_and_when_much_waits_then_shrinks() {
        // Half of it was used, and the rest has not come.
        let mut window = 100;
        assert_eq!((regulated(&mut window, 50, 50, (100, 350)), window), (150, 200));
        assert_eq!((regulated(&mut window, 100, 100, (100, 350)), window), (250, 350));
        assert_eq!((regulated(&mut window, 175, 175, (100, 350)), window), (175, 350));
        // All of it has come.
        assert_eq!((regulated(&mut window, 0, 175, (100, 350)), window), (175, 350));
        // More waits than was used.
        assert_eq!((regulated(&mut window, 0, 100, (100, 350)), window), (0, 250));
        assert_eq!((regulated(&mut window, 0, 100, (200, 350)), window), (50, 200));
        assert_eq!((regulated(&mut window, 0, 100, (200, 350)), window), (100, 200));
        // One that was named stays as it is.
        let mut named = 100;
        assert_eq!((regulated(&mut named, 50, 50, (100, 100)), named), (50, 100));
    }
}
