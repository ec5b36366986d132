//! Reads header blocks.

use std::collections::VecDeque;

use super::{OVERHEAD, STATIC, TABLE_SIZE, huffman};

/// The block cannot be read, and no later one can be: the connection ends with COMPRESSION_ERROR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken;

/// An entry of the dynamic table: name and value in one piece of memory.
struct Entry {
    text: Box<[u8]>,
    name: usize,
}

impl Entry {
    fn parts(&self) -> (&[u8], &[u8]) {
        self.text.split_at(self.name)
    }

    fn size(&self) -> usize {
        self.text.len() + OVERHEAD
    }
}

/// What a peer's encoder and we know together: at most [`TABLE_SIZE`] bytes.
pub(in super::super) struct Decoder {
    /// The newest first.
    table: VecDeque<Entry>,
    size: usize,
    limit: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

/// Memory for texts that is kept for the next block.
const KEEP: usize = 1024;

impl Decoder {
    pub(in super::super) fn new() -> Self {
        Self { table: VecDeque::new(), size: 0, limit: TABLE_SIZE, name: Vec::new(), value: Vec::new() }
    }

    /// Hands every header of a whole block to `take`, in order. What a block can unpack to is bounded by its length, the table,
    /// and by `take`, which may stop to keep what it is given.
    pub(in super::super) fn decode(&mut self, block: &[u8], mut take: impl FnMut(&[u8], &[u8])) -> Result<(), Broken> {
        let mut rest = block;
        let mut begun = false;
        while let Some(&first) = rest.first() {
            if first & 0x80 != 0 {
                let index = integer(&mut rest, 7)?;
                let (name, value) = entry(&self.table, index)?;
                take(name, value);
            } else if first & 0xe0 == 0x20 {
                // A new size may only be told before the first header.
                let limit = integer(&mut rest, 5)?;
                if begun || limit > TABLE_SIZE {
                    return Err(Broken);
                }
                self.limit = limit;
                self.evict(0);
                continue;
            } else {
                let keep = first & 0x40 != 0;
                let index = integer(&mut rest, if keep { 6 } else { 4 })?;
                self.name.clear();
                match index {
                    0 => string(&mut rest, &mut self.name)?,
                    index => self.name.extend_from_slice(entry(&self.table, index)?.0),
                }
                self.value.clear();
                string(&mut rest, &mut self.value)?;
                take(&self.name, &self.value);
                if keep {
                    self.insert();
                }
            }
            begun = true;
        }
        self.name.shrink_to(KEEP);
        self.value.shrink_to(KEEP);
        Ok(())
    }

    fn insert(&mut self) {
        let size = self.name.len() + self.value.len() + OVERHEAD;
        self.evict(size);
        if size <= self.limit {
            let mut text = Vec::with_capacity(size - OVERHEAD);
            text.extend_from_slice(&self.name);
            text.extend_from_slice(&self.value);
            self.size += size;
            self.table.push_front(Entry { text: text.into_boxed_slice(), name: self.name.len() });
        }
    }

    /// Makes room for `size` bytes.
    fn evict(&mut self, size: usize) {
        while self.size + size > self.limit
            && let Some(oldest) = self.table.pop_back()
        {
            self.size -= oldest.size();
        }
    }
}

/// What an index stands for.
fn entry(table: &VecDeque<Entry>, index: usize) -> Result<(&[u8], &[u8]), Broken> {
    match index.checked_sub(1 + STATIC.len()) {
        Some(index) => table.get(index).map(Entry::parts).ok_or(Broken),
        None => {
            let (name, value) = STATIC.get(index.wrapping_sub(1)).ok_or(Broken)?;
            Ok((name.as_bytes(), value.as_bytes()))
        }
    }
}

/// Reads an integer of which `bits` stand in the first byte (section 5.1).
fn integer(bytes: &mut &[u8], bits: u32) -> Result<usize, Broken> {
    let (&first, mut rest) = bytes.split_first().ok_or(Broken)?;
    let most = (1usize << bits) - 1;
    let mut value = usize::from(first) & most;
    if value == most {
        // Four more bytes say more than any length or index that can be right.
        for shift in [0, 7, 14, 21] {
            let (&byte, after) = rest.split_first().ok_or(Broken)?;
            rest = after;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                *bytes = rest;
                return Ok(value);
            }
        }
        return Err(Broken);
    }
    *bytes = rest;
    Ok(value)
}

/// Reads a text (section 5.2).
fn string(bytes: &mut &[u8], text: &mut Vec<u8>) -> Result<(), Broken> {
    let packed = bytes.first().ok_or(Broken)? & 0x80 != 0;
    let length = integer(bytes, 7)?;
    let (raw, rest) = bytes.split_at_checked(length).ok_or(Broken)?;
    *bytes = rest;
    if !packed {
        text.extend_from_slice(raw);
    } else if !huffman::decode(raw, text) {
        return Err(Broken);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<String>, Broken> {
        let mut all = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        decoder.decode(block, |name, value| all.push(format!("{}: {}", text(name), text(value))))?;
        Ok(all)
    }

    #[test]
    fn blocks_when_they_follow_each_other_then_the_table_serves_the_later_ones() {
        // RFC 7541, appendix C.4.
        let mut decoder = Decoder::new();
        let first =
            [0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        let common = [":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"];
        assert_eq!(decoded(&mut decoder, &first).unwrap(), common);
        let second = [0x82, 0x86, 0x84, 0xbe, 0x58, 0x86, 0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf];
        assert_eq!(decoded(&mut decoder, &second).unwrap(), [&common[..], &["cache-control: no-cache"]].concat());
        assert_eq!(decoder.size, 57 + 53);
        // A smaller table forgets the older entry, none at all both.
        assert_eq!(decoded(&mut decoder, &[0x3f, 0x21, 0xbe]).unwrap(), ["cache-control: no-cache"]);
        assert_eq!(decoded(&mut decoder, &[0xbf]), Err(Broken));
        assert_eq!(decoded(&mut decoder, &[0x20, 0xbe]), Err(Broken));
    }

    #[test]
    fn block_when_broken_then_it_is_refused() {
        for block in [
            &[0x80][..],                           // index 0
            &[0xff, 0x80, 0x80, 0x80, 0x80, 0x01], // an integer without end
            &[0xbe],                               // nothing is there
            &[0x40, 0x05, b'a'],                   // cut
            &[0x40],                               // cut
            &[0x82, 0x3f, 0x21],                   // a size after a header
            &[0x3f, 0xe2, 0x1f],                   // a size beyond ours
            &[0x00, 0x81, 0x00, 0x00],             // padding of zeros
        ] {
            assert_eq!(decoded(&mut Decoder::new(), block), Err(Broken), "{block:x?}");
        }
    }

    #[test]
    fn entry_when_larger_than_the_table_then_it_empties_it() {
        let mut decoder = Decoder::new();
        decoded(&mut decoder, &[0x40, 0x01, b'a', 0x01, b'b']).unwrap();
        let long = [&[0x40, 0x01, b'c', 0x7f, 0x81, 0x20][..], &[b'd'; 4096 + 128]].concat();
        assert_eq!(decoded(&mut decoder, &long).unwrap()[0].len(), 3 + 4096 + 128);
        assert_eq!((decoder.size, decoder.table.len()), (0, 0));
    }
}
