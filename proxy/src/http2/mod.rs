//! HTTP/2, both sides, around the same pipeline as HTTP/1.
//!
//! The protocol itself is ours, for the same reason as HTTP/1: it is the request path. [`mux`] is the state of a connection, both
//! sides; frames and header compression have rooms of their own; the rest makes a stream look like any other side of a request
//! ([`Down`], [`Up`]). Every limit has a value here or in the configuration.
//!
//! A downstream connection is one task: its streams are polled inside it, so that what they wrote in one turn leaves in
//! one write, and whatever ends the connection ends its streams. An upstream connection has a task of its own (it serves
//! streams of many downstream connections of the worker); a stream costs it no further one.

mod down;
mod frame;
mod front;
mod guard;
mod heads;
mod hpack;
mod inlet;
mod keepalive;
mod mux;
mod pause;
mod pool;
mod queue;
mod serve;
#[cfg(test)]
mod tests;
mod up;

pub use down::Down;
pub use front::connection;
pub use guard::Flood;
pub use mux::Trouble;
pub use pool::{Pool, Swept};
pub use serve::{Ending, Event, Settings, serve};
pub use up::{Connection, Up, connect, connect_with};

/// What every client begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Streams that were reset because the peer broke the protocol; more end the connection ("MadeYouReset").
pub const MAX_ERROR_RESET_STREAMS: usize = 100;
/// Largest frame that is taken, and sent.
pub const MAX_FRAME: u32 = 16 * 1024;
/// Bytes of a response's head, counted as RFC 9113, section 6.5.2 does.
pub const MAX_RESPONSE_HEAD: u32 = 60 * 1024;
/// Interim answers of a stream that are passed on; what comes after them is forgotten.
const MAX_INTERIM: u8 = 100;
/// Headers of a response, and trailers of either side.
pub const MAX_HEADERS: usize = 100;
