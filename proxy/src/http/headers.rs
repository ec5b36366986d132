//! Headers as one store of bytes and places in it.
//!
//! A head is copied once, as it came; names and values are offsets. Nothing is allocated for a header, and the memory of
//! a request serves the next one on the connection.

pub use super::known::{Known, NOT_SENT};
use crate::{config::HeaderOp, telemetry::HeaderLookup};
use std::borrow::Cow;

/// A place in the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    len: u32,
}

/// One header.
#[derive(Debug, Clone, Copy)]
struct Entry {
    name: Span,
    value: Span,
    known: Known,
    /// In the store it is a line as it is written: the name, a colon, a blank, the value, CR LF.
    is_line: bool,
}

impl Entry {
    fn set_value(&mut self, value: Span) {
        self.value = value;
        self.is_line = false;
    }

    /// The place of its line.
    fn line(&self) -> std::ops::Range<usize> {
        self.name.start as usize..(self.value.start + self.value.len) as usize + 2
    }
}

/// The headers of one message, in their order, with their case.
#[derive(Debug, Default, Clone)]
pub struct Headers {
    store: Vec<u8>,
    entries: Vec<Entry>,
    /// The recognised headers that may be there, a bit each: what has no bit is not there, and nobody looks for it.
    seen: u64,
}

/// Says among the recognised headers that one came twice of which there should be one.
const REPEATED: u64 = 1 << 63;

/// Headers of Envoy's own of which there is one, without their common beginning.
const SINGLE_OF_ENVOY: [&str; 26] = [
    "attempt-count",
    "decorator-operation",
    "degraded",
    "downstream-service-cluster",
    "downstream-service-node",
    "expected-rq-timeout-ms",
    "external-address",
    "force-trace",
    "hedge-on-per-try-timeout",
    "immediate-health-check-fail",
    "internal",
    "ip-tags",
    "is-timeout-retry",
    "max-retries",
    "original-host",
    "original-path",
    "ratelimited",
    "retriable-header-names",
    "retriable-status-codes",
    "retry-grpc-on",
    "retry-on",
    "upstream-alt-stat-name",
    "upstream-canary",
    "upstream-healthchecked-cluster",
    "upstream-rq-per-try-timeout-ms",
    "upstream-rq-timeout-ms",
];

/// Memory that is kept for the next message.
const KEEP: usize = 4096;
/// How many unused ones a worker keeps.
const STOCK: usize = 64;

thread_local! {
    static UNUSED: std::cell::RefCell<Vec<Headers>> = const { std::cell::RefCell::new(Vec::new()) };
}

impl Headers {
    /// Empties it and keeps a little memory.
    pub fn clear(&mut self) {
        self.store.clear();
        self.store.shrink_to(KEEP);
        self.entries.clear();
        self.entries.shrink_to(KEEP / 64);
        self.seen = 0;
    }

    /// Gives its memory back.
    pub fn release(&mut self) {
        *self = Self::default();
    }

    /// Empty ones, with memory of a message that is over if there is some.
    pub fn fresh() -> Self {
        UNUSED.with_borrow_mut(Vec::pop).unwrap_or_default()
    }

    /// Leaves its memory to another message.
    pub fn leave(mut self) {
        self.clear();
        if self.store.capacity() > 0 {
            UNUSED.with_borrow_mut(|unused| {
                if unused.len() < STOCK {
                    unused.push(self);
                }
            });
        }
    }

    /// Keeps bytes in the store.
    pub fn keep(&mut self, bytes: &[u8]) -> Span {
        let start = self.store.len() as u32;
        self.store.extend_from_slice(bytes);
        Span { start, len: bytes.len() as u32 }
    }

    /// The bytes of a place.
    pub fn text(&self, span: Span) -> &[u8] {
        &self.store[span.start as usize..(span.start + span.len) as usize]
    }

    /// The place of a part of `original`, whose copy begins at `base` in the store.
    pub(super) fn span_of(base: Span, original: &[u8], part: &[u8]) -> Span {
        let offset = (part.as_ptr() as usize).wrapping_sub(original.as_ptr() as usize);
        debug_assert!(offset + part.len() <= original.len() || part.is_empty());
        Span { start: base.start + if part.is_empty() { 0 } else { offset as u32 }, len: part.len() as u32 }
    }

    /// Adds a header whose name and value are in the store.
    pub(super) fn push_spans(&mut self, name: Span, value: Span) -> Known {
        let (end, start) = ((name.start + name.len) as usize, value.start as usize);
        let is_line = start == end + 2
            && self.store[end..start] == *b": "
            && self.store[start + value.len as usize..].starts_with(b"\r\n");
        let known = Known::of(self.text(name));
        self.add(Entry { name, value, known, is_line });
        known
    }

    /// Adds a header at the end.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let known = Known::of(name);
        self.store.reserve(name.len() + value.len() + 4);
        let name = self.keep(name);
        self.store.extend_from_slice(b": ");
        let value = self.keep(value);
        self.store.extend_from_slice(b"\r\n");
        self.add(Entry { name, value, known, is_line: true });
    }

    fn add(&mut self, entry: Entry) {
        let bit = entry.known.bit();
        if bit & self.seen & (Known::SINGLE_IN_REQUESTS | Known::SINGLE_IN_ANSWERS) != 0 {
            self.seen |= REPEATED;
        }
        self.seen |= bit;
        self.entries.push(entry);
    }

    /// Writes the lines of those that are `wanted`, as HTTP/1 has them.
    pub(super) fn write_lines(&self, out: &mut Vec<u8>, wanted: impl Fn(Known) -> bool) {
        // Lines that follow each other in the store are written in one piece.
        let mut piece = 0..0;
        for entry in self.entries.iter().filter(|entry| wanted(entry.known)) {
            let line = entry.line();
            if entry.is_line && line.start == piece.end {
                piece.end = line.end;
                continue;
            }
            out.extend_from_slice(&self.store[std::mem::take(&mut piece)]);
            if entry.is_line {
                piece = line;
                continue;
            }
            out.extend_from_slice(self.text(entry.name));
            out.extend_from_slice(b": ");
            out.extend_from_slice(self.text(entry.value));
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(&self.store[piece]);
    }

    /// How many headers there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Every header in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8], Known)> {
        self.entries.iter().map(|entry| (self.text(entry.name), self.text(entry.value), entry.known))
    }

    /// The first value of a header; the name in any case.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let named = |entry: &&Entry| {
            entry.name.len as usize == name.len() && self.text(entry.name).eq_ignore_ascii_case(name.as_bytes())
        };
        self.entries.iter().find(named).map(|entry| self.text(entry.value))
    }

    /// Every value of a header.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.entries
            .iter()
            .filter(move |entry| {
                entry.name.len as usize == name.len() && self.text(entry.name).eq_ignore_ascii_case(name.as_bytes())
            })
            .map(|entry| self.text(entry.value))
    }

    /// False when a recognised header is not there; true when it is, or was.
    pub fn may_have(&self, known: Known) -> bool {
        self.seen & known.bit() != 0
    }

    /// The first value of a recognised header.
    pub fn known(&self, known: Known) -> Option<&[u8]> {
        if !self.may_have(known) {
            return None;
        }
        self.entries.iter().find(|entry| entry.known == known).map(|entry| self.text(entry.value))
    }

    /// Every value of a recognised header.
    pub fn known_values(&self, known: Known) -> impl Iterator<Item = &[u8]> {
        self.entries.iter().filter(move |entry| entry.known == known).map(|entry| self.text(entry.value))
    }

    /// Makes several lines of a request's header of which there should be one into one value, as Envoy does.
    pub fn join_of_request(&mut self) {
        self.join(Known::SINGLE_IN_REQUESTS);
    }

    /// The same for an answer.
    pub fn join_of_answer(&mut self) {
        self.join(Known::SINGLE_IN_ANSWERS);
    }

    fn join(&mut self, single: u64) {
        if self.seen & REPEATED == 0 {
            return;
        }
        self.seen &= !REPEATED;
        let mut at = 0;
        while at < self.entries.len() {
            let first = self.entries[at];
            at += 1;
            if first.known.bit() & single == 0 || !self.entries[at..].iter().any(|next| self.is_more_of(&first, next)) {
                continue;
            }
            let mut all = self.text(first.value).to_vec();
            for entry in self.entries[at..].iter().filter(|next| self.is_more_of(&first, next)) {
                let more = self.text(entry.value);
                if !all.is_empty() && !more.is_empty() {
                    all.push(b',');
                }
                all.extend_from_slice(more);
            }
            let mut entries = std::mem::take(&mut self.entries);
            let mut index = 0;
            entries.retain(|next| {
                index += 1;
                index <= at || !self.is_more_of(&first, next)
            });
            entries[at - 1].set_value(self.keep(&all));
            self.entries = entries;
        }
    }

    /// Whether a line belongs to a header of which there should be one.
    fn is_more_of(&self, first: &Entry, next: &Entry) -> bool {
        next.known == first.known
            && (first.known != Known::Envoy || {
                let name = self.text(first.name);
                name.eq_ignore_ascii_case(self.text(next.name))
                    && SINGLE_OF_ENVOY.iter().any(|single| name[8..].eq_ignore_ascii_case(single.as_bytes()))
            })
    }

    /// Removes a header with all its values; whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.entries.len();
        let store = &self.store;
        self.entries.retain(|entry| {
            let at = entry.name.start as usize;
            !(entry.name.len as usize == name.len() && store[at..at + name.len()].eq_ignore_ascii_case(name.as_bytes()))
        });
        before != self.entries.len()
    }

    /// Removes a recognised header with all its values.
    pub fn remove_known(&mut self, known: Known) {
        if self.may_have(known) {
            self.entries.retain(|entry| entry.known != known);
            self.seen &= !known.bit();
        }
    }

    /// Removes headers of which `unwanted` says so, by name and value.
    pub fn remove_if(&mut self, mut unwanted: impl FnMut(&[u8], &[u8], Known) -> bool) {
        let store = &self.store;
        let text = |span: Span| &store[span.start as usize..(span.start + span.len) as usize];
        self.entries.retain(|entry| !unwanted(text(entry.name), text(entry.value), entry.known));
    }

    /// Adds to the last value of a header, with a separator between if it is not empty, or adds the header.
    pub fn append_to(&mut self, name: &str, separator: &[u8], value: &[u8]) {
        let named = |entry: &&mut Entry| {
            let at = entry.name.start as usize;
            entry.name.len as usize == name.len()
                && self.store[at..at + name.len()].eq_ignore_ascii_case(name.as_bytes())
        };
        let Some(entry) = self.entries.iter_mut().rfind(named) else { return self.push(name.as_bytes(), value) };
        let (from, len) = (entry.value.start as usize, entry.value.len as usize);
        let start = self.store.len();
        self.store.extend_from_within(from..from + len);
        self.store.extend_from_slice(if len == 0 { b"" } else { separator });
        self.store.extend_from_slice(value);
        entry.set_value(Span { start: start as u32, len: (self.store.len() - start) as u32 });
    }

    /// Replaces all values of a header with one, or adds it.
    pub fn set(&mut self, name: &str, value: &[u8]) {
        self.remove(name);
        self.push(name.as_bytes(), value);
    }

    /// Removes what concerns one connection only: the fixed names, and with `and_listed` those that `connection` lists.
    /// `te` stays when it says `trailers`, which gRPC needs.
    pub fn remove_hop_by_hop(&mut self, and_listed: bool) {
        self.remove_of_connection(and_listed, false);
    }

    /// As [`Self::remove_hop_by_hop`], of a request for an upgrade: `connection` and `upgrade` stay for whoever judges it by them.
    pub fn remove_hop_by_hop_of_upgrade(&mut self) {
        self.remove_of_connection(true, true);
    }

    fn remove_of_connection(&mut self, and_listed: bool, upgrades: bool) {
        let asks = |known| upgrades && matches!(known, Known::Connection | Known::Upgrade);
        if self.seen & (Known::HOP_BY_HOP | Known::Te.bit()) == 0 {
            return;
        }
        let mut listed = [Span::default(); 32];
        let mut count = 0;
        for entry in &self.entries {
            if and_listed && entry.known == Known::Connection {
                for token in self.text(entry.value).split(|&b| b == b',').map(<[u8]>::trim_ascii) {
                    let framing = Known::of(token);
                    let own = framing.is_hop_by_hop()
                        || matches!(framing, Known::Te | Known::Host | Known::ContentLength | Known::Peer);
                    if !own && !token.is_empty() && !token.eq_ignore_ascii_case(b"close") && count < listed.len() {
                        let offset = (token.as_ptr() as usize).wrapping_sub(self.store.as_ptr() as usize);
                        listed[count] = Span { start: offset as u32, len: token.len() as u32 };
                        count += 1;
                    }
                }
            }
        }
        let kept = if upgrades { Known::Connection.bit() | Known::Upgrade.bit() } else { 0 };
        self.seen &= !Known::HOP_BY_HOP | kept;
        let store = &self.store;
        let text = |span: Span| &store[span.start as usize..(span.start + span.len) as usize];
        self.entries.retain_mut(|entry| {
            if entry.known == Known::Te {
                let whole = text(entry.value);
                let trailers = whole.split(|&b| b == b',').map(<[u8]>::trim_ascii).find(|token| token == b"trailers");
                let Some(token) = trailers else { return false };
                let offset = (token.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
                entry.set_value(Span { start: entry.value.start + offset as u32, len: token.len() as u32 });
            }
            !(entry.known.is_hop_by_hop() && !asks(entry.known)
                || listed[..count].iter().any(|&name| text(name).eq_ignore_ascii_case(text(entry.name))))
        });
    }

    /// Makes a change; `value` is the value that it has for this message.
    pub fn change(&mut self, op: &HeaderOp, value: &[u8]) {
        match op {
            HeaderOp::Set(name, _) => self.set(name, value),
            HeaderOp::Append(name, _) => self.push(name.as_bytes(), value),
            HeaderOp::AddIfAbsent(name, _) => {
                if self.get(name).is_none() {
                    self.push(name.as_bytes(), value);
                }
            }
            HeaderOp::SetIfPresent(name, _) => {
                if self.remove(name) {
                    self.push(name.as_bytes(), value);
                }
            }
            HeaderOp::Remove(name) => {
                self.remove(name);
            }
        }
    }
}

impl HeaderLookup for Headers {
    fn header(&self, lower_case_name: &str) -> Option<&[u8]> {
        self.get(lower_case_name)
    }

    fn joined(&self, lower_case_name: &str) -> Option<Cow<'_, [u8]>> {
        let named = self.iter().filter(|(have, ..)| have.eq_ignore_ascii_case(lower_case_name.as_bytes()));
        let mut values = named.map(|(_, value, _)| value);
        let first = values.next().map(Cow::Borrowed);
        values.fold(first, |sum, value| sum.map(|sum| Cow::Owned([&*sum, b",", value].concat())))
    }

    fn each<'a>(&'a self, lower_case_name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.values(lower_case_name)
    }

    fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| u64::from(entry.name.len) + u64::from(entry.value.len)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::default();
        for (name, value) in list {
            headers.push(name.as_bytes(), value.as_bytes());
        }
        headers
    }

    fn text(headers: &Headers) -> Vec<String> {
        headers
            .iter()
            .map(|(name, value, _)| format!("{}: {}", String::from_utf8_lossy(name), String::from_utf8_lossy(value)))
            .collect()
    }

    #[test]
    fn headers_when_hop_by_hop_then_listed_ones_go_too() {
        let mut all = headers(&[
            ("Host", "a"),
            ("Connection", "keep-alive, X-Secret , host"),
            ("X-Secret", "1"),
            ("Keep-Alive", "5"),
            ("TE", "trailers"),
            ("Upgrade", "h2c"),
            ("X", "y"),
        ]);
        all.remove_hop_by_hop(true);
        assert_eq!(text(&all), ["Host: a", "TE: trailers", "X: y"]);
    }

    #[test]
    fn headers_when_written_then_each_is_a_line_however_it_came() {
        let raw = b"A: 1\r\nb:2\r\nC:\t3\r\nD: 4 \r\nContent-Length: 5\r\nE: 6\r\nF:\r\nG: 7\r\n\r\n";
        let mut slots = [httparse::EMPTY_HEADER; 16];
        let Ok(httparse::Status::Complete((_, parsed))) = httparse::parse_headers(raw, &mut slots) else {
            panic!("not read")
        };
        let mut all = Headers::default();
        all.push(b"before", b"0");
        let base = all.keep(raw);
        for header in parsed {
            let name = Headers::span_of(base, raw, header.name.as_bytes());
            let value = Headers::span_of(base, raw, header.value);
            all.push_spans(name, value);
        }
        all.push(b"h", b"8");
        all.push(b"i", b"");
        all.append_to("g", b", ", b"9");
        let mut out = b"first\r\n".to_vec();
        all.write_lines(&mut out, |known| known != Known::ContentLength);
        let lines = "first\r\nbefore: 0\r\nA: 1\r\nb: 2\r\nC: 3\r\nD: 4\r\nE: 6\r\nF: \r\nG: 7, 9\r\nh: 8\r\ni: \r\n";
        assert_eq!(String::from_utf8_lossy(&out), lines);
    }

    #[test]
    fn headers_when_one_that_is_single_comes_twice_then_it_is_one() {
        let mut all =
            headers(&[("User-Agent", "curl"), ("x", "1"), ("user-agent", "1 curl"), ("x", "2"), ("user-agent", "")]);
        all.join_of_request();
        assert_eq!(text(&all), ["User-Agent: curl,1 curl", "x: 1", "x: 2"]);
    }

    #[test]
    fn headers_when_changed_then_each_operation_does_what_it_says() {
        let mut all = headers(&[("A", "1"), ("a", "2"), ("B", "3")]);
        for (op, value) in [
            (HeaderOp::Set("a".into(), "".into()), "x"),
            (HeaderOp::Append("b".into(), "".into()), "4"),
            (HeaderOp::AddIfAbsent("b".into(), "".into()), "5"),
            (HeaderOp::AddIfAbsent("c".into(), "".into()), "6"),
            (HeaderOp::SetIfPresent("d".into(), "".into()), "7"),
            (HeaderOp::SetIfPresent("c".into(), "".into()), "8"),
        ] {
            all.change(&op, value.as_bytes());
        }
        assert_eq!(text(&all), ["B: 3", "a: x", "b: 4", "c: 8"]);
        all.change(&HeaderOp::Remove("B".into()), b"");
        assert_eq!(text(&all), ["a: x", "c: 8"]);
    }
}
