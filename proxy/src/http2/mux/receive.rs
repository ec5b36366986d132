//! What the peer sends.

use bytes::Bytes;

use super::super::frame::{self, Code, HEAD, Head};
use super::super::queue::LARGE;
use super::faults::{Result, fault};
use super::{Block, Key, Mux, PING_ALIVE, PING_LEAVE, Ping, Reset, Role};
use crate::http::body::Chunk;

/// Settings in one frame at most, as in other implementations.
const MAX_SETTINGS: usize = 32;

impl Mux {
    /// Whether a head has begun and not ended.
    pub(in super::super) fn awaits_head(&self) -> bool {
        self.block.is_some() || self.partial.get(frame::KIND) == Some(&frame::HEADERS)
    }

    /// Takes in what came.
    ///
    /// # Errors
    /// When the peer broke a rule that concerns the whole connection.
    pub(in super::super) fn receive(&mut self, came: &Bytes) -> Result {
        let mut bytes: &[u8] = came;
        if self.death.is_some() {
            return Ok(());
        }
        if self.preface > 0 {
            let count = self.preface.min(bytes.len());
            let at = super::super::PREFACE.len() - self.preface;
            if bytes[..count] != super::super::PREFACE[at..at + count] {
                return fault(Code::PROTOCOL_ERROR, "this is no connection preface");
            }
            self.preface -= count;
            bytes = &bytes[count..];
        }
        while !self.partial.is_empty() {
            if !self.complete(&mut bytes, HEAD) {
                return Ok(());
            }
            let head = self.frame_head()?;
            if !self.complete(&mut bytes, HEAD + head.length) {
                return Ok(());
            }
            let whole = std::mem::take(&mut self.partial);
            if head.length >= LARGE {
                let whole = Bytes::from(whole);
                self.frame(head, Chunk::part(&whole, &whole[HEAD..]))?;
            } else {
                self.frame(head, whole[HEAD..].into())?;
                self.partial = whole;
                self.partial.clear();
                self.partial.shrink_to(super::KEEP);
            }
        }
        while let Some(first) = bytes.first_chunk::<HEAD>() {
            let head = self.check_length(Head::read(first))?;
            let Some((payload, rest)) = bytes[HEAD..].split_at_checked(head.length) else { break };
            self.frame(head, Chunk::part(came, payload))?;
            bytes = rest;
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    /// Adds to a frame that is not whole; whether it has `wanted` bytes now.
    fn complete(&mut self, bytes: &mut &[u8], wanted: usize) -> bool {
        let missing = wanted.saturating_sub(self.partial.len());
        self.partial.reserve_exact(missing);
        let (now, later) = bytes.split_at(missing.min(bytes.len()));
        self.partial.extend_from_slice(now);
        *bytes = later;
        now.len() == missing
    }

    fn frame_head(&self) -> Result<Head> {
        match self.partial.first_chunk::<HEAD>() {
            Some(first) => self.check_length(Head::read(first)),
            None => fault(Code::INTERNAL_ERROR, "a frame without a head"),
        }
    }

    fn check_length(&self, head: Head) -> Result<Head> {
        if head.length > super::super::MAX_FRAME as usize {
            return fault(Code::FRAME_SIZE_ERROR, "a frame is larger than was allowed");
        }
        Ok(head)
    }

    fn frame(&mut self, head: Head, payload: Chunk<'_>) -> Result {
        let padding = match (head.kind, head.flags & frame::PADDED, (*payload).first()) {
            (frame::DATA, frame::PADDED, Some(padding)) => 1 + usize::from(*padding),
            _ => 0,
        };
        if let Err(flood) = self.guard.see(head, padding) {
            return self.flooded(flood);
        }
        let Head { kind, flags, stream: id, .. } = head;
        if let Some(block) = &self.block
            && (kind != frame::CONTINUATION || id != block.id)
        {
            return fault(Code::PROTOCOL_ERROR, "a header block is interrupted");
        }
        if !self.greeted {
            if kind != frame::SETTINGS || flags & frame::ACK != 0 {
                return fault(Code::PROTOCOL_ERROR, "the first frame is not SETTINGS");
            }
            self.greeted = true;
            // Without a word about it there is no limit.
            self.max_streams = usize::MAX;
        }
        if matches!(kind, frame::HEADERS | frame::CONTINUATION) {
            self.block_wire += (HEAD + payload.len()) as u64;
        }
        match kind {
            frame::DATA => self.data(id, flags, payload),
            frame::HEADERS => self.headers(id, flags, &payload),
            frame::CONTINUATION => self.continuation(id, flags, &payload),
            frame::PRIORITY => self.priority(id, &payload),
            frame::RST_STREAM => self.rst_stream(id, &payload),
            frame::SETTINGS => self.settings(id, flags, &payload),
            frame::PUSH_PROMISE => fault(Code::PROTOCOL_ERROR, "PUSH_PROMISE was not allowed"),
            frame::PING => self.pinged(id, flags, &payload),
            frame::GOAWAY => self.gone_away(id, &payload),
            frame::WINDOW_UPDATE => self.window_update(id, &payload),
            // What is not known is passed over (section 4.1).
            _ => Ok(()),
        }
    }

    /// Whether a stream was never opened.
    pub(super) fn is_idle(&self, id: u32) -> bool {
        match self.role {
            Role::Server => id > self.last || id.is_multiple_of(2),
            Role::Client => id >= self.next || id.is_multiple_of(2),
        }
    }

    fn data(&mut self, id: u32, flags: u8, payload: Chunk<'_>) -> Result {
        if id == 0 {
            return fault(Code::PROTOCOL_ERROR, "DATA without a stream");
        }
        let length = payload.len() as u32;
        self.recv_window -= i64::from(length);
        if self.recv_window < 0 {
            return fault(Code::FLOW_CONTROL_ERROR, "more DATA than the connection's window");
        }
        let Some(data) = frame::data(flags, payload) else {
            return fault(Code::PROTOCOL_ERROR, "DATA with more padding than payload");
        };
        let Some(key) = self.find(id) else {
            if self.is_idle(id) {
                return fault(Code::PROTOCOL_ERROR, "DATA on a stream that was never opened");
            }
            self.give_back(None, length);
            return self.late(id);
        };
        let client = self.role == Role::Client;
        if self.get(key).is_some_and(|stream| stream.ended && stream.reset.is_none()) {
            if client {
                // The answer is whole, and others share the connection.
                self.give_back(None, length);
                return self.late(id);
            }
            // Each would make us reset a stream that is worked for ("MadeYouReset"): the connection ends, as Envoy's does.
            return fault(Code::STREAM_CLOSED, "DATA after the end of the stream");
        }
        let Some(stream) = self.get_mut(key) else { return Ok(()) };
        if client && !stream.headed && stream.reset.is_none() {
            return fault(Code::PROTOCOL_ERROR, "DATA before the head of an answer");
        }
        let end = flags & frame::END_STREAM != 0;
        stream.recv_window -= i64::from(length);
        stream.wire.received += (HEAD + payload.len()) as u64;
        let wrong = if let Some(reset) = stream.reset {
            self.give_back(None, length);
            return self.after_reset(id, reset);
        } else if stream.recv_window < 0 {
            Some((Code::FLOW_CONTROL_ERROR, "more DATA than the stream's window"))
        } else if stream.promised.is_some_and(|promised| (data.len() as u64) > promised) {
            Some((Code::PROTOCOL_ERROR, "more DATA than the content-length"))
        } else if end && stream.promised.is_some_and(|promised| promised != data.len() as u64) {
            Some((Code::PROTOCOL_ERROR, "less DATA than the content-length"))
        } else {
            None
        };
        if let Some((code, what)) = wrong {
            self.give_back(None, length);
            return self.cut_short(key, code, what);
        }
        if let Some(promised) = &mut stream.promised {
            *promised -= data.len() as u64;
        }
        stream.ended = end;
        stream.data.push(data);
        if end || !data.is_empty() {
            stream.wake();
        }
        let padding = length - data.len() as u32;
        if padding > 0 {
            self.give_back(Some(key), padding);
        }
        Ok(())
    }

    fn headers(&mut self, id: u32, flags: u8, payload: &[u8]) -> Result {
        if id == 0 {
            return fault(Code::PROTOCOL_ERROR, "HEADERS without a stream");
        }
        let Some(mut payload) = frame::unpad(flags, payload) else {
            return fault(Code::PROTOCOL_ERROR, "HEADERS with more padding than payload");
        };
        let mut dependent = false;
        if flags & frame::HAS_PRIORITY != 0 {
            let Some((priority, rest)) = payload.split_at_checked(5) else {
                return fault(Code::FRAME_SIZE_ERROR, "HEADERS are too short for a priority");
            };
            dependent = frame::number(priority) == id;
            payload = rest;
        }
        let end = flags & frame::END_STREAM != 0;
        if flags & frame::END_HEADERS != 0 {
            return self.head(id, end, dependent, payload);
        }
        self.block = Some(Block { id, end, dependent, bytes: payload.to_vec() });
        Ok(())
    }

    fn continuation(&mut self, id: u32, flags: u8, payload: &[u8]) -> Result {
        let Some(mut block) = self.block.take() else {
            return fault(Code::PROTOCOL_ERROR, "CONTINUATION of nothing");
        };
        block.bytes.extend_from_slice(payload);
        // A head that is a little too long is answered; this one is not meant to be read.
        if block.bytes.len() > 2 * self.limits.head_bytes.max(16 * 1024) {
            return fault(Code::ENHANCE_YOUR_CALM, "a header block without end");
        }
        if flags & frame::END_HEADERS != 0 {
            return self.head(id, block.end, block.dependent, &block.bytes);
        }
        self.block = Some(block);
        Ok(())
    }

    fn priority(&mut self, id: u32, payload: &[u8]) -> Result {
        if id == 0 {
            return fault(Code::PROTOCOL_ERROR, "PRIORITY without a stream");
        }
        if payload.len() != 5 {
            return self.fault_of(id, Code::FRAME_SIZE_ERROR, "PRIORITY of a wrong length");
        }
        if frame::number(payload) == id {
            return self.fault_of(id, Code::PROTOCOL_ERROR, "a stream that depends on itself");
        }
        Ok(())
    }

    fn rst_stream(&mut self, id: u32, payload: &[u8]) -> Result {
        if payload.len() != 4 {
            return fault(Code::FRAME_SIZE_ERROR, "RST_STREAM of a wrong length");
        }
        if id == 0 || self.is_idle(id) {
            return fault(Code::PROTOCOL_ERROR, "RST_STREAM of a stream that was never opened");
        }
        let Some(key) = self.find(id) else { return Ok(()) };
        self.trouble.resets_received += 1;
        let (role, code) = (self.role, Code(payload.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))));
        let Some(stream) = self.get_mut(key).filter(|stream| stream.reset.is_none()) else { return Ok(()) };
        stream.end_early(Reset::Peer(code));
        stream.wake();
        if role == Role::Client || !self.incoming.iter().any(|incoming| incoming.key == key) {
            return Ok(());
        }
        // It is taken up all the same: it is counted and has its line.
        self.early_resets += 1;
        self.guard.reset().or_else(|flood| self.flooded(flood))
    }

    fn settings(&mut self, id: u32, flags: u8, payload: &[u8]) -> Result {
        if id != 0 {
            return fault(Code::PROTOCOL_ERROR, "SETTINGS on a stream");
        }
        if flags & frame::ACK != 0 {
            return match payload {
                [] => Ok(()),
                _ => fault(Code::FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS with a payload"),
            };
        }
        let (settings, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() {
            return fault(Code::FRAME_SIZE_ERROR, "SETTINGS of a wrong length");
        }
        // Each may change the windows of all streams; there are not that many to be set.
        if settings.len() > MAX_SETTINGS {
            return fault(Code::ENHANCE_YOUR_CALM, "more settings at a time than there are");
        }
        for &[a, b, c, d, e, f] in settings {
            let value = u32::from_be_bytes([c, d, e, f]);
            match u16::from_be_bytes([a, b]) {
                frame::HEADER_TABLE_SIZE => self.encoder.resize(value as usize),
                frame::ENABLE_PUSH if value > 1 => {
                    return fault(Code::PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1");
                }
                frame::MAX_CONCURRENT_STREAMS => self.max_streams = value as usize,
                frame::INITIAL_WINDOW_SIZE => self.first_window(value)?,
                frame::MAX_FRAME_SIZE if !(16_384..=16_777_215).contains(&value) => {
                    return fault(Code::PROTOCOL_ERROR, "MAX_FRAME_SIZE is out of bounds");
                }
                // Larger frames than we take are not sent either: others would wait behind them.
                _ => {}
            }
        }
        self.owe()?;
        frame::small(&mut self.out.bytes, frame::SETTINGS, frame::ACK, 0, &[]);
        Ok(())
    }

    /// The windows of all streams change by as much as the first one (section 6.9.2).
    fn first_window(&mut self, value: u32) -> Result {
        const MOST: i64 = 0x7fff_ffff;
        if i64::from(value) > MOST {
            return fault(Code::FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is too large");
        }
        let more = i64::from(value) - self.first_send_window;
        self.first_send_window = value.into();
        for at in 0..self.streams.len() {
            let stream = &mut self.streams[at];
            if stream.id == 0 {
                continue;
            }
            stream.send_window += more;
            if stream.send_window > MOST {
                return fault(Code::FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE makes a window too large");
            }
            let key = Key { slot: at as u32, id: stream.id };
            self.enqueue(key);
        }
        Ok(())
    }

    fn pinged(&mut self, id: u32, flags: u8, payload: &[u8]) -> Result {
        if id != 0 {
            return fault(Code::PROTOCOL_ERROR, "PING on a stream");
        }
        let Ok(payload) = <[u8; 8]>::try_from(payload) else {
            return fault(Code::FRAME_SIZE_ERROR, "PING of a wrong length");
        };
        if flags & frame::ACK == 0 {
            self.owe()?;
            frame::small(&mut self.out.bytes, frame::PING, frame::ACK, 0, &payload);
        } else if payload == PING_ALIVE && self.ping == Ping::Sent {
            self.ping = Ping::Answered;
        } else if payload == PING_LEAVE {
            self.heard();
        }
        Ok(())
    }

    fn gone_away(&mut self, id: u32, payload: &[u8]) -> Result {
        if id != 0 {
            return fault(Code::PROTOCOL_ERROR, "GOAWAY on a stream");
        }
        if payload.len() < 8 {
            return fault(Code::FRAME_SIZE_ERROR, "GOAWAY of a wrong length");
        }
        self.peer_leaves = true;
        let last = frame::number(payload);
        if self.role == Role::Client {
            for stream in self.streams.iter_mut().filter(|stream| stream.id > last) {
                stream.reset.get_or_insert(Reset::Unserved);
                stream.wake();
            }
        }
        Ok(())
    }

    fn window_update(&mut self, id: u32, payload: &[u8]) -> Result {
        if payload.len() != 4 {
            return fault(Code::FRAME_SIZE_ERROR, "WINDOW_UPDATE of a wrong length");
        }
        const MOST: i64 = 0x7fff_ffff;
        let more = i64::from(frame::number(payload));
        if id == 0 {
            self.send_window += more;
            return match (more, self.send_window) {
                (0, _) => fault(Code::PROTOCOL_ERROR, "WINDOW_UPDATE of nothing"),
                (_, window) if window > MOST => fault(Code::FLOW_CONTROL_ERROR, "the connection's window is too large"),
                _ => Ok(()),
            };
        }
        if self.is_idle(id) {
            return fault(Code::PROTOCOL_ERROR, "WINDOW_UPDATE on a stream that was never opened");
        }
        if more == 0 {
            return self.fault_of(id, Code::PROTOCOL_ERROR, "WINDOW_UPDATE of nothing");
        }
        let Some(key) = self.find(id) else { return Ok(()) };
        let Some(stream) = self.get_mut(key) else { return Ok(()) };
        stream.send_window += more;
        if stream.send_window > MOST {
            return self.stream_fault(key, Code::FLOW_CONTROL_ERROR, "the stream's window is too large");
        }
        self.enqueue(key);
        Ok(())
    }
}
