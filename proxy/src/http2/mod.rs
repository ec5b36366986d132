//! HTTP/2, both sides, around the same pipeline as HTTP/1.
//!
//! Framing, header compression and flow control are the `h2` crate's; this module gives every limit a value, turns heads
//! into the shared types and back, and makes a stream look like any other side of a request ([`Down`], [`Up`]).
//!
//! A downstream connection is one task: its streams are polled inside it, so that what they wrote in one turn leaves in
//! one write, and whatever ends the connection ends its streams. An upstream connection has a task of its own (it serves
//! streams of many downstream connections of the worker); a stream costs it no further one.

mod convert;
mod down;
mod front;
mod guard;
mod keepalive;
mod pool;
mod serve;
#[cfg(test)]
mod tests;
mod transfer;
mod up;

pub use down::Down;
pub use front::connection;
pub use pool::Pool;
pub use serve::{Settings, serve};
pub use up::{Connection, Up, connect, connect_with};

use std::time::Duration;

/// Streams that a peer reset and of which frames may still come; more end the connection (rapid reset, CVE-2023-44487).
pub const MAX_RESET_STREAMS: usize = 50;
/// Streams that a peer opened and reset before they were taken up; more end the connection (CVE-2023-44487).
pub const MAX_PENDING_RESET_STREAMS: usize = 20;
/// Streams that were reset because the peer broke the protocol; more end the connection ("MadeYouReset").
pub const MAX_ERROR_RESET_STREAMS: usize = 100;
/// How long a stream that was reset is remembered.
pub const RESET_MEMORY: Duration = Duration::from_secs(10);
/// Bytes of one stream that wait inside the connection to be written.
pub const MAX_SEND_BUFFER: usize = 64 * 1024;
/// Largest frame that is taken.
pub const MAX_FRAME: u32 = 16 * 1024;
/// Bytes of a response's head, counted as RFC 9113, section 6.5.2 does.
pub const MAX_RESPONSE_HEAD: u32 = 60 * 1024;
/// Headers of a response, and trailers of either side.
pub const MAX_HEADERS: usize = 128;
