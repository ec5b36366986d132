//! What the peer does against the rules: what ends a stream, what ends the connection.

use super::super::frame::{self, Code};
use super::super::guard::Flood;
use super::{Fault, Key, Mux, REMEMBERED, Reset};

pub(super) type Result<T = ()> = std::result::Result<T, Fault>;

pub(super) fn fault<T>(code: Code, what: &'static str) -> Result<T> {
    Err(Fault { code, what })
}

impl Mux {
    /// Something on a stream that was reset: no fault if we did it, since the peer may not have heard of it.
    pub(super) fn after_reset(&mut self, id: u32, reset: Reset) -> Result {
        match reset {
            Reset::Peer(_) if self.reset_by_us.contains(&id) => Ok(()),
            Reset::Peer(_) => {
                self.refuse(id, Code::STREAM_CLOSED);
                self.count_fault()
            }
            Reset::Own(_) | Reset::Unserved => Ok(()),
        }
    }

    /// Something on a stream that is over. What was on its way when we reset it is passed over.
    pub(super) fn late(&mut self, id: u32) -> Result {
        if self.reset_by_us.contains(&id) {
            return Ok(());
        }
        self.refuse(id, Code::STREAM_CLOSED);
        self.count_fault()
    }

    pub(super) fn fault_of(&mut self, id: u32, code: Code, what: &'static str) -> Result {
        match self.find(id) {
            Some(key) => self.stream_fault(key, code, what),
            None => {
                self.refuse(id, code);
                self.count_fault()
            }
        }
    }

    /// The peer broke the rules in one stream: it ends, the others go on.
    pub(super) fn stream_fault(&mut self, key: Key, code: Code, what: &'static str) -> Result {
        self.refuse(key.id, code);
        if self.incoming.iter().any(|incoming| incoming.key == key) {
            self.forget(key);
        } else if let Some(stream) = self.get_mut(key) {
            stream.end_early(Reset::Own(what));
            stream.wake();
        }
        self.count_fault()
    }

    /// The body of one stream is none, its head was fine: whoever serves it, now or soon, is told.
    pub(super) fn cut_short(&mut self, key: Key, code: Code, what: &'static str) -> Result {
        self.trouble.malformed += 1;
        self.refuse(key.id, code);
        if let Some(stream) = self.get_mut(key) {
            stream.end_early(Reset::Own(what));
            stream.wake();
        }
        self.count_fault()
    }

    /// The peer broke the rules in one stream; if that made a message malformed, that may end the whole connection.
    pub(super) fn wrong(&mut self, key: Key, code: Code, what: &'static str) -> Result {
        self.trouble.malformed += 1;
        match code {
            Code::PROTOCOL_ERROR if self.limits.malformed_ends => fault(code, what),
            code => self.stream_fault(key, code, what),
        }
    }

    /// A client reset a stream soon and without an answer. Too many of those end the connection, as soon as its driver looks.
    pub(in super::super) fn count_reset(&mut self) {
        if let Err(flood) = self.guard.reset() {
            self.flood = Some(flood);
            self.overdrawn = true;
            self.touch();
        }
    }

    /// There is too much of something.
    pub(super) fn flooded<T>(&mut self, flood: Flood) -> Result<T> {
        self.flood = Some(flood);
        fault(Code::ENHANCE_YOUR_CALM, flood.as_str())
    }

    /// The peer makes us say something. How much of that waits for it is bounded.
    pub(super) fn owe(&mut self) -> Result {
        self.tail = None;
        self.guard.owes().or_else(|flood| self.flooded(flood))
    }

    /// A peer that makes us reset one stream after the other is told to go ("MadeYouReset").
    pub(super) fn count_fault(&mut self) -> Result {
        self.faults += 1;
        if self.faults > super::super::MAX_ERROR_RESET_STREAMS {
            return fault(Code::ENHANCE_YOUR_CALM, "too many streams break the rules");
        }
        Ok(())
    }

    /// Resets a stream and remembers that what is still on its way is no fault.
    pub(super) fn refuse(&mut self, id: u32, code: Code) {
        if self.death.is_some() {
            return;
        }
        self.trouble.resets_sent += 1;
        self.tail = None;
        frame::small(&mut self.out.bytes, frame::RST_STREAM, 0, id, &code.0.to_be_bytes());
        self.remember(id);
    }

    pub(super) fn remember(&mut self, id: u32) {
        if self.reset_by_us.len() >= REMEMBERED {
            self.reset_by_us.pop_front();
        }
        self.reset_by_us.push_back(id);
    }
}
