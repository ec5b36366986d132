//! The chunked transfer coding (RFC 9112, 7.1), strictly: no bare line feed, no sign or blank before a size, no more digits than
//! fit, bounded extensions and trailers. What one server reads differently from another is refused. Blanks behind a size and
//! zeros in front of it, which old servers pad with, are taken: everybody reads the same number, and it is written anew.

use super::headers::{Headers, Known};

/// The longest size line with its extensions, in bytes.
const MAX_SIZE_LINE: usize = 1024;
/// The most bytes of trailers.
const MAX_TRAILERS: usize = 60 * 1024;
/// The most trailers; of a request as many as it may have headers.
const MAX_TRAILER_COUNT: usize = 1024;
/// Room for trailers on the stack; where there are more, it is on the heap.
const TRAILER_SLOTS: usize = 32;

/// Where in a chunked body the reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunked {
    /// Before a size line.
    Size,
    /// Inside a chunk with so many bytes to go.
    Data(u64),
    /// After a chunk's data, before its line end.
    DataEnd,
    /// After the last chunk.
    Trailers,
    /// At the end.
    Done,
}

/// What the decoder found.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Framing of so many bytes was read; go on.
    Skip(usize),
    /// So many bytes of data lie at the front.
    Data(usize),
    /// More bytes are needed.
    More,
    /// The body is over; so many bytes of framing lie at the front, and trailers were read or not.
    End(usize, bool),
}

/// Why a chunked body is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// The size is not hexadecimal digits that fit.
    #[error("a chunk size is not a number")]
    Size,
    /// The size line is too long.
    #[error("a chunk size line is longer than 1024 bytes")]
    LongLine,
    /// A line does not end with CR LF.
    #[error("a chunk line does not end with CR LF")]
    LineEnd,
    /// The trailers are malformed.
    #[error("the trailers are malformed")]
    Trailers,
    /// The trailers have too many bytes.
    #[error("the trailers are longer than 60 KiB")]
    LongTrailers,
    /// The trailers are too many.
    #[error("there are more trailers than allowed")]
    ManyTrailers,
}

impl Chunked {
    /// Looks at the bytes at hand. After [`Step::Data`] the caller takes some of them and says so by [`Self::consumed`].
    ///
    /// # Errors
    /// When the framing is not what the standard says.
    pub fn step(&mut self, bytes: &[u8], trailers: &mut Headers) -> Result<Step, ChunkError> {
        match *self {
            Self::Size => {
                let window = &bytes[..bytes.len().min(MAX_SIZE_LINE)];
                let Some(end) = window.iter().position(|&b| b == b'\n') else {
                    // Nothing but digits and an extension may stand here: say so before the line ends.
                    check_size_prefix(window)?;
                    return if bytes.len() >= MAX_SIZE_LINE { Err(ChunkError::LongLine) } else { Ok(Step::More) };
                };
                let line = bytes[..end].strip_suffix(b"\r").ok_or(ChunkError::LineEnd)?;
                let size = parse_size(line)?;
                *self = if size == 0 { Self::Trailers } else { Self::Data(size) };
                Ok(Step::Skip(end + 1))
            }
            Self::Data(left) => Ok(match bytes.len() {
                0 => Step::More,
                have => Step::Data(usize::try_from(left).unwrap_or(usize::MAX).min(have)),
            }),
            Self::DataEnd => match bytes {
                [b'\r', b'\n', ..] => {
                    *self = Self::Size;
                    Ok(Step::Skip(2))
                }
                [] | [b'\r'] => Ok(Step::More),
                _ => Err(ChunkError::LineEnd),
            },
            Self::Trailers => {
                if bytes.starts_with(b"\r\n") {
                    *self = Self::Done;
                    return Ok(Step::End(2, false));
                }
                let mut slots = [httparse::EMPTY_HEADER; TRAILER_SLOTS];
                let mut more = Vec::new();
                let mut parsed = httparse::parse_headers(bytes, &mut slots);
                if matches!(parsed, Err(httparse::Error::TooManyHeaders)) {
                    more.resize(MAX_TRAILER_COUNT, httparse::EMPTY_HEADER);
                    parsed = httparse::parse_headers(bytes, &mut more);
                }
                match parsed {
                    Ok(httparse::Status::Complete((count, list))) if count <= MAX_TRAILERS => {
                        super::parse::refuse_bare_line_feeds(&bytes[..count]).map_err(|_| ChunkError::Trailers)?;
                        for header in list {
                            let known = Known::of(header.name.as_bytes());
                            // What frames or routes a message cannot come after it.
                            let late = matches!(
                                known,
                                Known::ContentLength | Known::Host | Known::Trailer | Known::Te | Known::Peer
                            ) || known.is_hop_by_hop();
                            if !late {
                                trailers.push(header.name.as_bytes(), header.value);
                            }
                        }
                        *self = Self::Done;
                        Ok(Step::End(count, !trailers.is_empty()))
                    }
                    Ok(httparse::Status::Partial) if bytes.len() < MAX_TRAILERS => Ok(Step::More),
                    Ok(_) => Err(ChunkError::LongTrailers),
                    Err(httparse::Error::TooManyHeaders) => Err(ChunkError::ManyTrailers),
                    Err(_) => Err(ChunkError::Trailers),
                }
            }
            Self::Done => Ok(Step::End(0, false)),
        }
    }

    /// Takes `count` bytes of data.
    pub fn consumed(&mut self, count: usize) {
        if let Self::Data(left) = *self {
            let left = left - (count as u64).min(left);
            *self = if left == 0 { Self::DataEnd } else { Self::Data(left) };
        }
    }
}

fn check_size_prefix(line: &[u8]) -> Result<(), ChunkError> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() { Ok(()) } else { parse_size(line).map(drop) }
}

fn parse_size(line: &[u8]) -> Result<u64, ChunkError> {
    let digits = line.iter().position(|&b| !b.is_ascii_hexdigit()).unwrap_or(line.len());
    let zeros = line.iter().position(|&b| b != b'0').unwrap_or(line.len());
    // 16 digits would fit into 64 bits, but sums of them would not: 2^60 bytes are more than anybody sends.
    if digits == 0 || digits - zeros > 15 {
        return Err(ChunkError::Size);
    }
    let blank = |&b: &u8| b == b' ' || b == b'\t';
    let extension = &line[digits..];
    let extension = &extension[extension.iter().position(|b| !blank(b)).unwrap_or(extension.len())..];
    let well_formed = extension.first().is_none_or(|&b| b == b';')
        && extension.iter().all(|&b| b == b'\t' || (b' '..=b'~').contains(&b));
    if !well_formed {
        return Err(ChunkError::Size);
    }
    let size = line[..digits].iter().fold(0u64, |sum, &b| sum * 16 + u64::from((b as char).to_digit(16).unwrap_or(0)));
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Decodes with the input cut at the given places.
    fn decode(input: &[u8], cuts: &[usize]) -> Result<Option<(Vec<u8>, usize, Vec<String>)>, ChunkError> {
        let mut state = Chunked::Size;
        let mut trailers = Headers::default();
        let (mut data, mut at) = (Vec::new(), 0);
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (input.len() + 1)).chain([input.len()]).collect();
        ends.sort_unstable();
        for end in ends {
            loop {
                match state.step(&input[at..end.max(at)], &mut trailers)? {
                    Step::Skip(count) => at += count,
                    Step::Data(count) => {
                        data.extend_from_slice(&input[at..at + count]);
                        state.consumed(count);
                        at += count;
                    }
                    Step::More => break,
                    Step::End(count, _) => {
                        let names =
                            trailers.iter().map(|(n, v, _)| format!("{}={}", n.escape_ascii(), v.escape_ascii()));
                        return Ok(Some((data, at + count, names.collect())));
                    }
                }
            }
        }
        Ok(None)
    }

    #[test]
    fn chunks_when_well_formed_then_data_and_trailers_are_found() {
        let input = b"5;a=b\r\nhello\r\nA\r\n0123456789\r\n0\r\nx: 1\r\ncontent-length: 3\r\n\r\nNEXT";
        let (data, used, trailers) = decode(input, &[]).unwrap().unwrap();
        assert_eq!(data, b"hello0123456789");
        assert_eq!(&input[used..], b"NEXT");
        assert_eq!(trailers, ["x=1"], "what frames a message is not taken from trailers");
    }

    #[test]
    fn chunks_when_their_sizes_are_padded_then_they_are_taken() {
        for size in ["5 ", "5\t \t", "5 ;a=b", "5\t; a", "00000000000000000000005", "0005   "] {
            let input = format!("{size}\r\nhello\r\n0000000000000000000 \r\n\r\n");
            let (data, used, _) = decode(input.as_bytes(), &[1, 2, 3]).unwrap().unwrap();
            assert_eq!((&data[..], used), (&b"hello"[..], input.len()), "{size:?}");
        }
        let many = format!("0{}\r\n", "0".repeat(2000));
        assert_eq!(decode(many.as_bytes(), &[]), Err(ChunkError::LongLine));
        let trailers = format!("0\r\n{}\r\n", "x: 1\r\n".repeat(150));
        assert_eq!(decode(trailers.as_bytes(), &[]).unwrap().unwrap().2.len(), 150);
    }

    #[test]
    fn chunks_when_ambiguous_then_they_are_refused() {
        for input in [
            &b"5\nhello\r\n0\r\n\r\n"[..],
            b"5 5\r\nhello\r\n0\r\n\r\n",
            b"5 x\r\nhello\r\n0\r\n\r\n",
            b"5\x0b\r\nhello\r\n0\r\n\r\n",
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"-1\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"\r\nhello",
            b"5\r\nhelloX\r\n0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5\r\nhelloo0\r\n\r\n",
            b"FFFFFFFFFFFFFFFFF\r\n",
            b"1000000000000000\r\n",
            b"0001000000000000000\r\n",
            b"5;\x00\r\nhello\r\n0\r\n\r\n",
            b"5;a\rb\r\nhello\r\n0\r\n\r\n",
            b"0\r\nx: 1\n\r\n",
            b"0\r\n x: 1\r\n\r\n",
            b"0\r\nx : 1\r\n\r\n",
            b"0\r\nx: 1\r\n folded\r\n\r\n",
            b"0\r\n\nGET",
        ] {
            assert!(decode(input, &[]).is_err(), "{}", input.escape_ascii());
        }
        let mut long = b"5;".to_vec();
        long.resize(4096, b'a');
        assert_eq!(decode(&long, &[]), Err(ChunkError::LongLine));
        let mut trailers = b"0\r\n".to_vec();
        trailers.extend(b"x: 1\r\n".repeat(1025));
        assert_eq!(decode(&trailers, &[]), Err(ChunkError::ManyTrailers));
        let mut trailers = b"0\r\nx: ".to_vec();
        trailers.resize(70_000, b'a');
        assert_eq!(decode(&trailers, &[]), Err(ChunkError::LongTrailers));
    }

    proptest! {
        #[test]
        fn chunks_when_split_anywhere_then_the_same(input in proptest::collection::vec(
            prop_oneof![Just(b"\r\n".to_vec()), Just(b"5\r\nhello".to_vec()), Just(b"0\r\n\r\n".to_vec()), Just(b"0\r\na: b\r\n".to_vec()),
                Just(b"3;x\r\nabc\r\n".to_vec()), proptest::collection::vec(any::<u8>(), 0..4)], 0..12),
            cuts in proptest::collection::vec(any::<usize>(), 0..6)) {
            let input = input.concat();
            let whole = decode(&input, &[]);
            let parts = decode(&input, &cuts);
            prop_assert_eq!(whole.map_err(drop), parts.map_err(drop));
        }
    }
}
