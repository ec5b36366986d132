//! Access logs that are messages: what a request or connection was, told to a server of Envoy's access log service.
//!
//! Entries are written as protocol buffers at once ([`entry`], [`common`]) and gathered in the worker; a task of the worker sends
//! them over the worker's own pools ([`stream`]). A request never waits for any of that.

mod common;
mod entry;
mod stream;

use crate::config::EntryLog;
use crate::telemetry::{HeaderLookup, LogEntry};
use crate::worker::Worker;
use prost::Message as _;
use std::rc::Rc;

/// The number and kind of the field that holds entries: `log_entry` of both lists of Envoy's.
const LOG_ENTRY: u8 = 1 << 3 | 2;

/// Tells the log's server of a request or connection, soon.
pub fn add<Q: HeaderLookup, S: HeaderLookup>(worker: &Rc<Worker>, log: &EntryLog, entry: &LogEntry<'_, Q, S>) {
    stream::add(worker, &log.stream, |out| {
        out.push(LOG_ENTRY);
        // There is always room in a vector.
        let _ = match log.stream.0.http {
            true => entry::http(log, entry).encode_length_delimited(out),
            false => entry::tcp(log, entry).encode_length_delimited(out),
        };
    });
}
