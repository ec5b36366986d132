//! Writes header blocks.
//!
//! What repeats goes through the dynamic table, as a byte or two; what is different with every message is written as it is.
//! Texts are not packed: that would cost both sides more than the bytes are worth inside a cluster.

use std::collections::VecDeque;

use super::{OVERHEAD, STATIC, TABLE_SIZE};

/// An entry of the dynamic table.
struct Entry {
    text: Box<[u8]>,
    name: usize,
    hash: u32,
}

/// Places in the index of the table: more than twice the entries that fit into it.
const PLACES: usize = 256;

/// What a peer's decoder and we know together.
pub(in super::super) struct Encoder {
    /// The newest first.
    table: VecDeque<Entry>,
    size: usize,
    limit: usize,
    /// A smaller or larger table that the peer was not told about yet, and the smallest since it was.
    untold: Option<(usize, usize)>,
    /// Entries since the beginning: the newest has this number.
    newest: u32,
    /// The number of the last entry whose hash led to a place; made with the first entry.
    places: Vec<u32>,
    /// Bytes of names and values since they were last asked for.
    plain: usize,
}

impl Encoder {
    pub(in super::super) fn new() -> Self {
        Self {
            table: VecDeque::new(),
            size: 0,
            limit: TABLE_SIZE,
            untold: None,
            newest: 0,
            places: Vec::new(),
            plain: 0,
        }
    }

    /// The peer's table has so many bytes from now on; more than [`TABLE_SIZE`] are not used.
    pub(in super::super) fn resize(&mut self, limit: usize) {
        let limit = limit.min(TABLE_SIZE);
        if limit == self.limit && self.untold.is_none() {
            return;
        }
        let least = self.untold.map_or(limit, |(least, _)| least.min(limit));
        self.untold = Some((least, limit));
        self.limit = limit;
        self.evict(0);
    }

    /// Begins a block: tells the peer what it must know before the first header.
    pub(in super::super) fn begin(&mut self, out: &mut Vec<u8>) {
        if let Some((least, limit)) = self.untold.take() {
            if least < limit {
                integer(out, 0x20, 5, least);
            }
            integer(out, 0x20, 5, limit);
        }
    }

    /// Bytes of names and values that were written since this was last asked.
    pub(in super::super) fn take_plain(&mut self) -> u64 {
        std::mem::take(&mut self.plain) as u64
    }

    /// Writes `:status`.
    pub(in super::super) fn status(&mut self, status: u16, out: &mut Vec<u8>) {
        self.plain += ":status".len() + 3;
        match status {
            200 => out.push(0x88),
            204 => out.push(0x89),
            206 => out.push(0x8a),
            304 => out.push(0x8b),
            400 => out.push(0x8c),
            404 => out.push(0x8d),
            500 => out.push(0x8e),
            _ => {
                let digits = [status / 100 % 10, status / 10 % 10, status % 10].map(|digit| b'0' + digit as u8);
                self.indexed(8, b":status", &digits, out);
            }
        }
    }

    /// Writes `:method`.
    pub(in super::super) fn method(&mut self, method: &[u8], out: &mut Vec<u8>) {
        self.plain += ":method".len() + method.len();
        match method {
            b"GET" => out.push(0x82),
            b"POST" => out.push(0x83),
            _ => self.indexed(2, b":method", method, out),
        }
    }

    /// Writes `:scheme`.
    pub(in super::super) fn scheme(&mut self, tls: bool, out: &mut Vec<u8>) {
        self.plain += ":schemehttp".len() + usize::from(tls);
        out.push(if tls { 0x87 } else { 0x86 });
    }

    /// Writes `:authority`.
    pub(in super::super) fn authority(&mut self, authority: &[u8], out: &mut Vec<u8>) {
        self.plain += ":authority".len() + authority.len();
        self.indexed(1, b":authority", authority, out);
    }

    /// Writes `:path`.
    pub(in super::super) fn path(&mut self, path: &[u8], out: &mut Vec<u8>) {
        self.plain += ":path".len() + path.len();
        if path == b"/" {
            return out.push(0x84);
        }
        literal(out, 0x00, 4, 4, b":path", path);
    }

    /// Writes a header; letters of its name become small.
    pub(in super::super) fn header(&mut self, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
        self.plain += name.len() + value.len();
        let mut small = [0u8; 64];
        let lowered;
        let name: &[u8] = if !name.iter().any(u8::is_ascii_uppercase) {
            name
        } else if let Some(small) = small.get_mut(..name.len()) {
            small.copy_from_slice(name);
            small.make_ascii_lowercase();
            &*small
        } else {
            lowered = name.to_ascii_lowercase();
            &lowered
        };
        let known = static_name(name);
        match repeats(name, value) {
            Repeats::Often => self.indexed(known, name, value, out),
            Repeats::Rarely => literal(out, 0x00, 4, known, name, value),
            Repeats::Secret => literal(out, 0x10, 4, known, name, value),
        }
    }

    /// Writes a header by its entry in the table, or makes one.
    fn indexed(&mut self, known: usize, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
        let hash = hash(name, value);
        let place = hash as usize % PLACES;
        if let Some(&number) = self.places.get(place)
            && number != 0
        {
            let behind = self.newest.wrapping_sub(number) as usize;
            if let Some(entry) = self.table.get(behind)
                && entry.hash == hash
                && entry.text.split_at(entry.name) == (name, value)
            {
                return integer(out, 0x80, 7, 1 + STATIC.len() + behind);
            }
        }
        let size = name.len() + value.len() + OVERHEAD;
        // What takes much of the table would push out what is worth more.
        if size > self.limit / 4 {
            return literal(out, 0x00, 4, known, name, value);
        }
        literal(out, 0x40, 6, known, name, value);
        self.evict(size);
        let mut text = Vec::with_capacity(size - OVERHEAD);
        text.extend_from_slice(name);
        text.extend_from_slice(value);
        self.size += size;
        self.table.push_front(Entry { text: text.into_boxed_slice(), name: name.len(), hash });
        self.newest = self.newest.wrapping_add(1).max(1);
        if self.places.is_empty() {
            self.places = vec![0; PLACES];
        }
        self.places[place] = self.newest;
    }

    fn evict(&mut self, size: usize) {
        while self.size + size > self.limit
            && let Some(oldest) = self.table.pop_back()
        {
            self.size -= oldest.text.len() + OVERHEAD;
        }
    }
}

/// How often a value comes again.
#[derive(Debug, PartialEq, Eq)]
enum Repeats {
    Often,
    /// It would fill the table in vain.
    Rarely,
    /// No table on the way may hold it (section 7.1.3): it could be guessed.
    Secret,
}

fn repeats(name: &[u8], value: &[u8]) -> Repeats {
    match name {
        b"authorization" | b"proxy-authorization" | b"set-cookie" => Repeats::Secret,
        b"cookie" if value.len() < 20 => Repeats::Secret,
        b"cookie"
        | b"content-length"
        | b"x-request-id"
        | b"etag"
        | b"age"
        | b"location"
        | b"range"
        | b"content-range"
        | b"if-none-match"
        | b"if-modified-since"
        | b"if-match"
        | b"if-range"
        | b"last-modified"
        | b"expires"
        | b"x-forwarded-for"
        | b"traceparent"
        | b"tracestate"
        | b"b3"
        | b"x-b3-traceid"
        | b"x-b3-spanid"
        | b"x-b3-parentspanid"
        | b"x-envoy-upstream-service-time"
        | b"x-envoy-original-path"
        | b"grpc-timeout"
        | b"x-envoy-expected-rq-timeout-ms"
        | b"referer" => Repeats::Rarely,
        _ => Repeats::Often,
    }
}

/// The index of a name in the static table; 0 when it is not there.
fn static_name(name: &[u8]) -> usize {
    let candidates: &[usize] = match name.len() {
        3 => &[21, 60],
        4 => &[33, 34, 37, 38, 45, 59],
        5 => &[22, 50],
        6 => &[19, 32, 35, 54],
        7 => &[36, 51, 52],
        8 => &[39, 42, 46],
        10 => &[55, 58],
        11 => &[53],
        12 => &[31, 47],
        13 => &[18, 23, 24, 30, 41, 44],
        14 => &[15, 28],
        15 => &[16, 17],
        16 => &[26, 27, 29, 61],
        17 => &[40, 57],
        18 => &[48],
        19 => &[25, 43, 49],
        25 => &[56],
        27 => &[20],
        _ => return 0,
    };
    candidates.iter().find(|&&index| STATIC[index - 1].0.as_bytes() == name).copied().unwrap_or(0)
}

fn hash(name: &[u8], value: &[u8]) -> u32 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut hash = (name.len() as u64) << 32 | value.len() as u64;
    for text in [name, value] {
        let (words, rest) = text.as_chunks::<8>();
        for word in words {
            hash = (hash.rotate_left(5) ^ u64::from_le_bytes(*word)).wrapping_mul(FACTOR);
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        hash = (hash.rotate_left(5) ^ u64::from_le_bytes(last)).wrapping_mul(FACTOR);
    }
    (hash >> 32) as u32
}

/// Writes a header as it is: `kind` in the first byte, of which `bits` are the index of the name.
fn literal(out: &mut Vec<u8>, kind: u8, bits: u32, known: usize, name: &[u8], value: &[u8]) {
    integer(out, kind, bits, known);
    if known == 0 {
        integer(out, 0, 7, name.len());
        out.extend_from_slice(name);
    }
    integer(out, 0, 7, value.len());
    out.extend_from_slice(value);
}

/// Writes an integer of which `bits` stand in the first byte, beside `kind` (section 5.1).
fn integer(out: &mut Vec<u8>, kind: u8, bits: u32, value: usize) {
    let most = (1usize << bits) - 1;
    if value < most {
        return out.push(kind | value as u8);
    }
    out.push(kind | most as u8);
    let mut rest = value - most;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::super::Decoder;
    use super::*;

    fn read(decoder: &mut Decoder, block: &[u8]) -> Vec<(String, String)> {
        let mut all = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        decoder.decode(block, |name, value| all.push((text(name), text(value)))).unwrap();
        all
    }

    #[test]
    fn static_name_when_it_is_in_the_table_then_it_is_found() {
        for (at, (name, _)) in STATIC.iter().enumerate().filter(|(_, (name, _))| !name.starts_with(':')) {
            assert_eq!(static_name(name.as_bytes()), at + 1, "{name}");
        }
        assert_eq!(static_name(b"x-other"), 0);
    }

    #[test]
    fn headers_when_written_many_times_then_they_are_read_as_they_were_and_become_short() {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        let mut lengths = Vec::new();
        for round in 0..300 {
            // Tables of other sizes in between, more entries than fit, values that change.
            match round {
                100 => encoder.resize(0),
                101 => encoder.resize(100),
                102 => encoder.resize(1 << 20),
                _ => {}
            }
            let mut out = Vec::new();
            encoder.begin(&mut out);
            encoder.method(b"GET", &mut out);
            encoder.authority(b"reviews:9080", &mut out);
            encoder.status(if round % 2 == 0 { 200 } else { 418 }, &mut out);
            let id = round.to_string();
            let odd = format!("x-{}", round % 70);
            let headers = [
                ("Content-Type", "application/grpc"),
                ("x-request-id", &id),
                (&odd, "a rather long value, so that they cannot all stay"),
                ("authorization", "Bearer 1"),
            ];
            for (name, value) in headers {
                encoder.header(name.as_bytes(), value.as_bytes(), &mut out);
            }
            let expected = [
                (":method", "GET"),
                (":authority", "reviews:9080"),
                (":status", if round % 2 == 0 { "200" } else { "418" }),
                ("content-type", "application/grpc"),
                headers[1],
                headers[2],
                headers[3],
            ];
            let expected: Vec<_> = expected.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
            assert_eq!(read(&mut decoder, &out), expected, "round {round}");
            lengths.push(out.len());
        }
        assert!(lengths[2] < lengths[0], "{} {}", lengths[2], lengths[0]);
    }

    #[test]
    fn secrets_when_written_then_no_table_holds_them() {
        let mut encoder = Encoder::new();
        let mut out = Vec::new();
        encoder.header(b"authorization", b"Bearer 1", &mut out);
        encoder.header(b"cookie", b"a=1", &mut out);
        assert!(encoder.table.is_empty());
        assert_eq!(out[0] & 0xf0, 0x10);
    }
}
