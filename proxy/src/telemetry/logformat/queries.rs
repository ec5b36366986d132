//! The query of a request and its parameters.

use super::value::{Given, foreign};
use crate::telemetry::LogEntry;

/// Appends the query, or the value of one of its parameters.
pub(super) fn query<Q, S>(name: Option<&str>, limit: usize, entry: &LogEntry<'_, Q, S>, out: &mut Vec<u8>) -> Given {
    let Some((_, query)) = entry.path.and_then(|path| path.split_once('?')) else { return Given::Nothing };
    let Some(name) = name else { return foreign(Some(&query.as_bytes()[..query.len().min(limit)]), out) };
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let Some((_, value)) = pairs.into_iter().find(|(key, _)| *key == name) else { return Given::Nothing };
    let value = unescaped(value);
    foreign(Some(&value[..value.len().min(limit)]), out)
}

/// A query with those characters decoded that may stand in one. Of what is no escape the `%` goes, as in Envoy.
pub(super) fn decoded(query: &[u8]) -> Vec<u8> {
    let (mut out, mut at) = (Vec::with_capacity(query.len()), 0);
    let digit = |at: usize| query.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    while let Some(byte) = query.get(at) {
        at += 1;
        match (byte, digit(at), digit(at + 1)) {
            (b'%', Some(high), Some(low)) => {
                match (high * 16 + low) as u8 {
                    decoded @ 0x21..=0x7e if !b"\"<>\\^{|}".contains(&decoded) => out.push(decoded),
                    _ => out.extend_from_slice(&query[at - 1..at + 2]),
                }
                at += 2;
            }
            (b'%', ..) => {}
            _ => out.push(*byte),
        }
    }
    out
}

fn unescaped(text: &str) -> Vec<u8> {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    while at < bytes.len() {
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}
