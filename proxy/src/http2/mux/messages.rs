//! Heads and trailers that come: requests that begin, answers, and what either must be like.

use super::super::MAX_INTERIM;
use super::super::frame::Code;
use super::super::heads::{self, Answer, Request};
use super::faults::{Result, fault};
use super::{Incoming, Key, Leaving, Mux, Reset, Role};
use crate::http::headers::Headers;
use crate::http::parse::HeadError;
use crate::telemetry::Wire;

/// So many times what is allowed is no mistake.
const FAR: u64 = 8;
/// What a head costs whatever it holds, and a header whatever its length: about as much as so many bytes.
const EFFORT_OF_HEAD: u64 = 512;
const EFFORT_OF_HEADER: u64 = 32;

impl Mux {
    /// A whole header block. Whatever becomes of it, it is decoded, since later ones build on it.
    pub(super) fn head(&mut self, id: u32, end: bool, dependent: bool, block: &[u8]) -> Result {
        let wire = std::mem::take(&mut self.block_wire);
        if let Some(key) = self.find(id) {
            if let Some(stream) = self.get_mut(key) {
                stream.wire.received += wire;
                stream.wire.head_received += wire;
            }
            let result = match self.role {
                Role::Client if self.get(key).is_some_and(|stream| stream.head.is_none() && !stream.headed) => {
                    self.answer(key, end, block)
                }
                _ => self.trailers(key, end, block),
            };
            let plain = self.block_plain;
            if let Some(stream) = self.get_mut(key) {
                stream.wire.plain_received += plain;
            }
            return result;
        }
        if self.is_idle(id) {
            if self.role == Role::Client || id.is_multiple_of(2) {
                return fault(Code::PROTOCOL_ERROR, "HEADERS on a stream that the peer may not open");
            }
            return self.request(id, end, dependent, block, wire);
        }
        self.decode(block, |_, _| {})?;
        if self.reset_by_us.contains(&id) || self.role == Role::Client {
            return Ok(());
        }
        fault(Code::STREAM_CLOSED, "HEADERS on a stream that is over")
    }

    fn decode(&mut self, block: &[u8], mut take: impl FnMut(&[u8], &[u8])) -> Result {
        let (mut plain, mut count) = (0, 0);
        let counted = |name: &[u8], value: &[u8]| {
            plain += (name.len() + value.len()) as u64;
            count += 1;
            take(name, value);
        };
        let result = self.decoder.decode(block, counted);
        self.block_plain = plain;
        self.effort += EFFORT_OF_HEAD + plain + EFFORT_OF_HEADER * count;
        // A head that is a little too long is answered; this one is not meant to be read.
        if plain > FAR * self.limits.head_bytes as u64 || count > FAR * self.limits.headers as u64 {
            return fault(Code::ENHANCE_YOUR_CALM, "a head far beyond the limits");
        }
        result.or_else(|_| fault(Code::COMPRESSION_ERROR, "headers that cannot be read"))
    }

    fn request(&mut self, id: u32, end: bool, dependent: bool, block: &[u8], wire: u64) -> Result {
        self.last = id;
        let full = self.ids.len().saturating_sub(self.early_resets) >= self.limits.streams as usize;
        if full || matches!(self.leaving, Leaving::Last(last) if id > last) {
            self.decode(block, |_, _| {})?;
            if full {
                self.refuse(id, Code::REFUSED_STREAM);
            }
            return Ok(());
        }
        let mut request = Request::new(self.limits.head_bytes, self.limits.headers, self.limits.connect);
        self.decode(block, |name, value| request.take(name, value))?;
        match request.finish(end) {
            Ok((head, promised)) if !dependent => {
                self.trouble.oversized += u64::from(matches!(head, Err(HeadError::TooLong | HeadError::TooMany)));
                let key = self.open(id);
                let plain_received = self.block_plain;
                if let Some(stream) = self.get_mut(key) {
                    stream.ended = end;
                    stream.promised = promised;
                    stream.wire = Wire { received: wire, head_received: wire, plain_received, ..Wire::default() };
                }
                self.incoming.push_back(Incoming { key, head });
                Ok(())
            }
            malformed => {
                // Whoever serves requests is told, for the log.
                self.trouble.malformed += 1;
                let ends = malformed.is_err() && self.limits.malformed_ends;
                let what = malformed.err().unwrap_or("a stream that depends on itself");
                let key = self.open(id);
                let plain_received = self.block_plain;
                if let Some(stream) = self.get_mut(key) {
                    stream.wire = Wire { received: wire, head_received: wire, plain_received, ..Wire::default() };
                    stream.end_early(Reset::Own(what));
                }
                self.incoming.push_back(Incoming { key, head: Err(HeadError::Malformed(what)) });
                if ends {
                    return fault(Code::PROTOCOL_ERROR, "a malformed request");
                }
                self.refuse(id, Code::PROTOCOL_ERROR);
                self.count_fault()
            }
        }
    }

    /// The head of an answer, or an interim one.
    fn answer(&mut self, key: Key, end: bool, block: &[u8]) -> Result {
        let mut answer = Answer::new(self.limits.head_bytes, self.limits.headers);
        self.decode(block, |name, value| answer.take(name, value))?;
        let Some(stream) = self.get_mut(key) else { return Ok(()) };
        if stream.reset.is_some() {
            return Ok(());
        }
        if answer.is_too_large() {
            // To the request it is as if the endpoint had reset the stream.
            stream.end_early(Reset::Peer(Code::CANCEL));
            stream.wake();
            self.refuse(key.id, Code::CANCEL);
            return self.count_fault();
        }
        let (status, headers, promised) = match answer.finish() {
            Ok(parts) => parts,
            Err(what) => return self.stream_fault(key, Code::PROTOCOL_ERROR, what),
        };
        if (100..200).contains(&status) {
            if end {
                return self.stream_fault(key, Code::PROTOCOL_ERROR, "an interim answer that ends the stream");
            }
            // What is passed on waits for the client without bound but this.
            if stream.interims < MAX_INTERIM {
                stream.interims += 1;
                stream.interim.push((status, headers));
                stream.wake();
            }
            return Ok(());
        }
        let promised = match (stream.bodiless, status) {
            // Whatever it says about its length, nothing may follow.
            (true, _) | (_, 204 | 304) if !stream.tunnel => Some(0),
            _ if stream.tunnel => None,
            _ => promised,
        };
        if end && promised.is_some_and(|promised| promised > 0) {
            return self.stream_fault(key, Code::PROTOCOL_ERROR, "less DATA than the content-length");
        }
        stream.promised = promised;
        stream.ended = end;
        stream.headed = true;
        stream.head = Some((status, headers));
        stream.wake();
        Ok(())
    }

    fn trailers(&mut self, key: Key, end: bool, block: &[u8]) -> Result {
        let mut trailers = Box::<Headers>::default();
        let (mut count, mut bytes, mut malformed) = (0usize, 0usize, false);
        let limits = self.limits;
        self.decode(block, |name, value| {
            (count, bytes) = (count + 1, bytes + name.len() + value.len() + 32);
            // A small block can stand for very much: what is beyond the limits is counted and no more.
            if bytes > limits.head_bytes || count > limits.headers {
                return;
            }
            malformed |= !heads::is_name(name) || !heads::is_value(value) || heads::is_of_a_connection(name, value);
            // What frames the body cannot come after it.
            malformed |= name == b"content-length";
            trailers.push(name, value);
        })?;
        let Some(stream) = self.get_mut(key) else { return Ok(()) };
        let short = stream.promised.is_some_and(|promised| promised > 0);
        let wrong = if let Some(reset) = stream.reset {
            return self.after_reset(key.id, reset);
        } else if short && end && !malformed && !stream.ended {
            return self.cut_short(key, Code::PROTOCOL_ERROR, "less DATA than the content-length");
        } else if stream.ended {
            Some((Code::STREAM_CLOSED, "HEADERS after the end of the stream"))
        } else if !end || malformed {
            Some((Code::PROTOCOL_ERROR, "malformed trailers"))
        } else if bytes > limits.head_bytes || count > limits.headers {
            Some((Code::ENHANCE_YOUR_CALM, "more trailers than allowed"))
        } else {
            None
        };
        if let Some((code, what)) = wrong {
            return self.wrong(key, code, what);
        }
        stream.ended = true;
        stream.trailers = Some(trailers).filter(|trailers| !trailers.is_empty());
        stream.wake();
        Ok(())
    }
}
