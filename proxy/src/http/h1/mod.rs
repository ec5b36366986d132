//! HTTP/1.1 and HTTP/1.0: the two sides as state machines over a connection's buffers.

mod body;
pub mod down;
mod serve;
pub mod up;

pub use serve::serve;
