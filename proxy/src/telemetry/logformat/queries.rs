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
    while let Some(byte) = query.get(at) {
        let escaped = escape(query, at);
        match escaped {
            Some(decoded @ 0x21..=0x7e) if !b"\"<>\\^{|}".contains(&decoded) => out.push(decoded),
            Some(_) => out.extend_from_slice(&query[at..at + 3]),
            None if *byte == b'%' => {}
            None => out.push(*byte),
        }
        at += if escaped.is_some() { 3 } else { 1 };
    }
    out
}

fn unescaped(text: &str) -> Vec<u8> {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let escaped = escape(bytes, at);
        out.push(escaped.unwrap_or(*byte));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    out
}

/// The byte that an escape (`%2F`) at this place stands for, if there is one.
fn escape(bytes: &[u8], at: usize) -> Option<u8> {
    let &[b'%', high, low] = bytes.get(at..at + 3)? else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    Some((digit(high)? * 16 + digit(low)?) as u8)
}
