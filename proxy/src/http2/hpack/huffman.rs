//! The Huffman code of RFC 7541, appendix B. It is canonical: the lengths of its words say all.

/// Bits of each byte's word; the last is that of the end of a string, which never occurs in one.
const BITS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26, 30,
];
/// The longest word.
const LONGEST: usize = 30;
/// The end of a string.
const END: u16 = 256;

struct Code {
    /// Symbols in the order of their words.
    symbols: [u16; 257],
    /// The first word of each length.
    first: [u32; LONGEST + 1],
    /// Where its symbol stands.
    start: [u16; LONGEST + 1],
    /// How many words there are of each length.
    count: [u16; LONGEST + 1],
    /// By the next eight bits: symbol and length of words of at most eight.
    short: [(u8, u8); 256],
}

const CODE: Code = code();
static TABLE: Code = CODE;

const fn code() -> Code {
    let mut code = Code {
        symbols: [0; 257],
        first: [0; LONGEST + 1],
        start: [0; LONGEST + 1],
        count: [0; LONGEST + 1],
        short: [(0, 0); 256],
    };
    let (mut word, mut at, mut bits) = (0u32, 0usize, 1usize);
    while bits <= LONGEST {
        code.first[bits] = word;
        code.start[bits] = at as u16;
        let mut symbol = 0;
        while symbol < 257 {
            if BITS[symbol] as usize == bits {
                if bits <= 8 {
                    let mut low = 0;
                    while low < 1 << (8 - bits) {
                        code.short[(word as usize) << (8 - bits) | low] = (symbol as u8, bits as u8);
                        low += 1;
                    }
                }
                code.symbols[at] = symbol as u16;
                code.count[bits] += 1;
                word += 1;
                at += 1;
            }
            symbol += 1;
        }
        word <<= 1;
        bits += 1;
    }
    code
}

/// The symbol at the front of `window` and how many bits it takes; more than 30 when there is none.
fn symbol(window: u32) -> (u16, u32) {
    let (short, bits) = TABLE.short[(window >> 24) as usize];
    if bits > 0 {
        return (short.into(), bits.into());
    }
    for bits in 9..=LONGEST {
        let offset = (window >> (32 - bits)).wrapping_sub(TABLE.first[bits]);
        if offset < TABLE.count[bits].into() {
            return (TABLE.symbols[TABLE.start[bits] as usize + offset as usize], bits as u32);
        }
    }
    (END, LONGEST as u32 + 1)
}

/// Adds what `bytes` mean to `text`; false when they mean nothing (a word of its own for the end, wrong padding).
pub(super) fn decode(bytes: &[u8], text: &mut Vec<u8>) -> bool {
    let (mut held, mut bits) = (0u64, 0u32);
    let mut bytes = bytes.iter();
    loop {
        while bits <= 56
            && let Some(&byte) = bytes.next()
        {
            held |= u64::from(byte) << (56 - bits);
            bits += 8;
        }
        if bits == 0 {
            return true;
        }
        let (symbol, used) = symbol((held >> 32) as u32);
        if used > bits {
            // What is left is padding: less than a byte, the first bits of the end's word, which are ones.
            return bits < 8 && held >> (64 - bits) == (1 << bits) - 1;
        }
        let Ok(byte) = u8::try_from(symbol) else { return false };
        text.push(byte);
        held <<= used;
        bits -= used;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes text in the code.
    pub(in super::super) fn encode(text: &[u8]) -> Vec<u8> {
        let mut bits = String::new();
        for &byte in text {
            let length = BITS[byte as usize] as usize;
            let of_length = &TABLE.symbols[TABLE.start[length] as usize..][..TABLE.count[length] as usize];
            let offset = of_length.iter().position(|&symbol| symbol == u16::from(byte)).unwrap();
            bits += &format!("{:0length$b}", TABLE.first[length] as usize + offset);
        }
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        bits.as_bytes()
            .chunks(8)
            .map(|byte| u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 2).unwrap())
            .collect()
    }

    fn decoded(bytes: &[u8]) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        decode(bytes, &mut text).then_some(text)
    }

    #[test]
    fn code_when_it_is_that_of_the_standard_then_its_examples_read_as_they_should() {
        // RFC 7541, appendix C.4 and C.6.
        for (bytes, text) in [
            (&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff][..], "www.example.com"),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (&[0x64, 0x02], "302"),
            (&[0xae, 0xc3, 0x77, 0x1a, 0x4b], "private"),
        ] {
            assert_eq!(decoded(bytes).unwrap(), text.as_bytes());
            assert_eq!(encode(text.as_bytes()), bytes);
        }
    }

    #[test]
    fn code_when_any_bytes_are_written_then_they_are_read_again() {
        let all: Vec<u8> = (0..=255).collect();
        for length in 0..all.len() {
            let text: Vec<u8> = all.iter().rev().cycle().skip(length * 7).take(length).copied().collect();
            assert_eq!(decoded(&encode(&text)).unwrap(), text);
        }
    }

    #[test]
    fn code_when_it_is_broken_then_it_is_refused() {
        // The end's own word, a whole byte of padding, padding of zeros.
        for bytes in [&[0xff, 0xff, 0xff, 0xff][..], &[0x64, 0x02, 0xff], &[0x00], &[0x1c, 0x64, 0x00]] {
            assert_eq!(decoded(bytes), None, "{bytes:x?}");
        }
    }
}
