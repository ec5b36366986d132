//! How a connection ends: because we leave, because the peer breaks the rules, or because it is gone.

use std::io::{Error, ErrorKind};
use std::rc::Rc;

use super::super::frame::{self, Code};
use super::{Fault, Key, Mux, PING_LEAVE, Reset, Role};
use crate::http::body::SideError;
use crate::http::parse::HeadError;

/// What became of the connection.
#[derive(Debug, Clone)]
pub(super) enum Death {
    /// The peer closed it.
    Ended,
    Broken(ErrorKind, Rc<str>),
    /// It broke a rule that concerns all of it.
    Faulty(&'static str, Rc<str>),
}

/// How far we are with leaving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaving {
    No,
    /// The client is told; what it sent before it heard is still served.
    Told,
    /// Streams above this one are not served.
    Last(u32),
}

impl Mux {
    /// Tells a client to open no more streams; those that are open, and those that it opens before it hears, are served.
    pub(in super::super) fn leave(&mut self) {
        if self.leaving == Leaving::No && self.death.is_none() {
            self.leaving = Leaving::Told;
            self.go_away(0x7fff_ffff, Code::NO_ERROR, "");
            frame::small(&mut self.out.bytes, frame::PING, 0, 0, &PING_LEAVE);
            self.touch();
        }
    }

    /// Whether the client was told, and has not said that it heard.
    pub(in super::super) fn is_told(&self) -> bool {
        self.leaving == Leaving::Told
    }

    /// The client has heard that we leave, or has had time enough to: what it opens now is not served.
    pub(in super::super) fn heard(&mut self) {
        if self.is_told() {
            self.leaving = Leaving::Last(self.last);
            self.go_away(self.last, Code::NO_ERROR, "");
        }
    }

    /// Whether the client was told, has heard it, and has nothing open any more.
    pub(in super::super) fn has_left(&self) -> bool {
        self.ids.is_empty() && self.incoming.is_empty() && matches!(self.leaving, Leaving::Last(_))
    }

    /// Whether we are leaving.
    pub(in super::super) fn is_leaving(&self) -> bool {
        self.leaving != Leaving::No
    }

    pub(super) fn go_away(&mut self, last: u32, code: Code, what: &str) {
        self.trouble.farewells += 1;
        self.tail = None;
        let mut payload = Vec::with_capacity(8 + what.len());
        payload.extend_from_slice(&last.to_be_bytes());
        payload.extend_from_slice(&code.0.to_be_bytes());
        payload.extend_from_slice(what.as_bytes());
        frame::small(&mut self.out.bytes, frame::GOAWAY, 0, 0, &payload);
    }

    /// Ends the connection because of the peer's fault: it is told, and every stream fails.
    pub(in super::super) fn fail(&mut self, fault: Fault) -> Error {
        self.go_away(self.last, fault.code, fault.what);
        let text = format!("{}: {}", fault.code, fault.what);
        self.die(Death::Faulty(fault.what, text.as_str().into()));
        Error::new(ErrorKind::InvalidData, text)
    }

    /// The connection is gone: `None` when the peer closed it. Every stream that is not complete fails.
    pub(in super::super) fn lose(&mut self, error: Option<&Error>) {
        self.die(match error {
            None => Death::Ended,
            Some(error) => Death::Broken(error.kind(), error.to_string().into()),
        });
    }

    pub(super) fn die(&mut self, death: Death) {
        self.death.get_or_insert(death);
        self.sendable.clear();
        for stream in &self.streams {
            stream.wake();
        }
    }

    /// Why a stream cannot go on; what the peer is to blame for in an answer is told apart.
    pub(super) fn error(&self, key: Key) -> Option<SideError> {
        let broken = |kind, text: String| SideError::Broken(Error::new(kind, text));
        let death = || {
            Some(match self.death.as_ref()? {
                Death::Ended => SideError::Ended,
                Death::Broken(kind, text) => broken(*kind, text.to_string()),
                Death::Faulty(what, _) if self.role == Role::Client => SideError::Head(HeadError::Malformed(what)),
                Death::Faulty(_, text) => broken(ErrorKind::InvalidData, text.to_string()),
            })
        };
        let Some(stream) = self.get(key) else { return Some(death().unwrap_or(SideError::Ended)) };
        match stream.reset {
            Some(Reset::Unserved | Reset::Peer(Code::REFUSED_STREAM)) => Some(SideError::Refused),
            Some(Reset::Peer(Code::PROTOCOL_ERROR)) if self.role == Role::Client => {
                Some(SideError::Head(HeadError::Malformed("it says that the protocol was breached")))
            }
            Some(Reset::Peer(code)) => Some(SideError::Reset(code.to_string())),
            Some(Reset::Own(what)) if self.role == Role::Client => Some(SideError::Head(HeadError::Malformed(what))),
            Some(Reset::Own(what)) => Some(broken(ErrorKind::InvalidData, what.to_owned())),
            None => death(),
        }
    }
}
