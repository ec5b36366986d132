//! Bodies that filters compress, decompress or put into another form while they pass.

use super::{body::SideError, headers::Headers};
use crate::config::{Coding, Library};
use crate::telemetry::counters::Number;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use flate2::FlushCompress;
use std::{
    borrow::Cow,
    io::{self, Write},
    sync::Arc,
};

/// Bytes that are taken in one go; with the ratio of a decompressor that bounds what one go can give.
pub const AT_ONCE: usize = 8 * 1024;
/// The greatest window of zstd that is decompressed, as a logarithm: 8 MiB, which RFC 8878 asks of every decoder.
const ZSTD_WINDOW: u32 = 23;
/// Bytes of the buffers inside of brotli, and by which what comes out of gzip grows.
const BUFFER: usize = 4096;

/// Takes what comes out, and no more than there is room for.
#[derive(Debug)]
struct Out {
    bytes: Vec<u8>,
    room: u64,
}

impl Out {
    fn new() -> Self {
        Self { bytes: Vec::new(), room: u64::MAX }
    }

    fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

impl Write for Out {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = data.len() as u64;
        self.room = self.room.checked_sub(count).ok_or(io::ErrorKind::FileTooLarge)?;
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One step.
enum Stage {
    Gzip(flate2::Compress),
    /// Gone once it has ended.
    Brotli(Option<Box<brotli::CompressorWriter<Out>>>),
    Zstd(zstd::stream::write::Encoder<'static, Out>),
    Gunzip(Box<flate2::write::MultiGzDecoder<Out>>, Ratio),
    Unbrotli(Box<brotli::DecompressorWriter<Out>>, Ratio),
    Unzstd(zstd::stream::write::Decoder<'static, Out>, Ratio),
    /// Out of base64; holds less than 4 bytes.
    Unbase64(Vec<u8>),
    /// What ends the body, and whether all of it is in base64; holds less than 3 bytes.
    Framed {
        last: Vec<u8>,
        text: Option<Vec<u8>>,
    },
    Nothing,
}

/// What a decompressor has taken and given.
#[derive(Debug)]
struct Ratio {
    most: u64,
    taken: u64,
    given: u64,
}

impl Ratio {
    /// How much may come out of what was taken so far and this.
    fn room(&mut self, more: usize) -> u64 {
        self.taken += more as u64;
        self.taken.saturating_mul(self.most).saturating_sub(self.given)
    }

    fn gave(&mut self, out: Vec<u8>) -> Vec<u8> {
        self.given += out.len() as u64;
        out
    }
}

/// What happens after some data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// More may come at once.
    More,
    /// What is there must come out now.
    Flush,
    /// Nothing more comes.
    End,
}

impl Stage {
    fn step(&mut self, data: &[u8], then: Then) -> io::Result<Vec<u8>> {
        /// Writes and flushes.
        fn write(to: &mut impl Write, data: &[u8], then: Then) -> io::Result<()> {
            to.write_all(data)?;
            if then == Then::Flush { to.flush() } else { Ok(()) }
        }
        match self {
            Self::Gzip(state) => gzip(state, data, then),
            Self::Brotli(place) => {
                let Some(encoder) = place else { return Ok(Vec::new()) };
                write(encoder, data, then)?;
                match then {
                    Then::End => Ok(place.take().map(|encoder| encoder.into_inner().take()).unwrap_or_default()),
                    _ => Ok(encoder.get_mut().take()),
                }
            }
            Self::Zstd(encoder) => {
                write(encoder, data, then)?;
                if then == Then::End {
                    encoder.do_finish()?;
                }
                Ok(encoder.get_mut().take())
            }
            Self::Gunzip(decoder, ratio) => {
                decoder.get_mut().room = ratio.room(data.len());
                write(decoder, data, then)?;
                if then == Then::End {
                    decoder.try_finish()?;
                }
                Ok(ratio.gave(decoder.get_mut().take()))
            }
            Self::Unbrotli(decoder, ratio) => {
                decoder.get_mut().room = ratio.room(data.len());
                write(decoder, data, then)?;
                if then == Then::End {
                    decoder.close()?;
                }
                Ok(ratio.gave(decoder.get_mut().take()))
            }
            Self::Unzstd(decoder, ratio) => {
                decoder.get_mut().room = ratio.room(data.len());
                write(decoder, data, if then == Then::End { Then::Flush } else { then })?;
                Ok(ratio.gave(decoder.get_mut().take()))
            }
            Self::Unbase64(held) => unbase64(held, data, then),
            Self::Framed { last, text } => {
                let last = if then == Then::End { std::mem::take(last) } else { Vec::new() };
                let Some(held) = text else { return Ok([data, &last].concat()) };
                held.extend_from_slice(data);
                // Texts that end with padding may follow each other.
                let whole = if then == Then::More { held.len() / 3 * 3 } else { held.len() };
                let rest = held.split_off(whole);
                let mut out = STANDARD.encode(std::mem::replace(held, rest));
                STANDARD.encode_string(last, &mut out);
                Ok(out.into_bytes())
            }
            Self::Nothing => Ok(Vec::new()),
        }
    }
}

fn gzip(state: &mut flate2::Compress, mut data: &[u8], then: Then) -> io::Result<Vec<u8>> {
    let flush = match then {
        Then::More => FlushCompress::None,
        Then::Flush => FlushCompress::Sync,
        Then::End => FlushCompress::Finish,
    };
    let mut out = Vec::new();
    loop {
        out.reserve(BUFFER);
        let taken = state.total_in();
        let status = state.compress_vec(data, &mut out, flush)?;
        data = &data[usize::try_from(state.total_in() - taken).unwrap_or(data.len()).min(data.len())..];
        // With room left everything has come out that there was.
        if status == flate2::Status::StreamEnd || data.is_empty() && then != Then::End && out.len() < out.capacity() {
            return Ok(out);
        }
    }
}

fn unbase64(held: &mut Vec<u8>, data: &[u8], then: Then) -> io::Result<Vec<u8>> {
    held.extend_from_slice(data);
    let rest = held.split_off(held.len() / 4 * 4);
    let text = std::mem::replace(held, rest);
    if then == Then::End && !held.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    // Texts that end with padding may follow each other: each group by itself.
    for group in text.chunks(4) {
        STANDARD.decode_vec(group, &mut out).map_err(|_| io::ErrorKind::InvalidData)?;
    }
    Ok(out)
}

/// Where is counted what goes into a step, and what comes out of it.
pub type Passed = [Arc<Number>; 2];

/// What is told in trailers of a body that was decompressed.
#[derive(Debug)]
struct Told {
    /// The decompressor's name.
    name: Arc<str>,
    taken: u64,
    given: u64,
}

/// A step and what is counted of it.
struct Step {
    stage: Stage,
    passed: Option<Passed>,
    told: Option<Told>,
}

impl Step {
    fn new(stage: Stage, passed: Option<Passed>) -> Self {
        Self { stage, passed, told: None }
    }
}

/// A body's way through all filters that change its coding.
#[derive(Default)]
pub struct Recode {
    stages: Vec<Step>,
    /// Something was taken since what is inside was last brought out.
    holds: bool,
}

impl std::fmt::Debug for Recode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recode({})", self.stages.len())
    }
}

impl Recode {
    /// Compresses what comes out so far.
    ///
    /// # Errors
    /// When the library has no memory.
    pub fn compress(&mut self, library: Library, passed: Option<Passed>) -> io::Result<()> {
        let out = Out::new();
        let stage = match library {
            Library::Gzip(level, window) => {
                let level = flate2::Compression::new(level.min(9));
                Stage::Gzip(flate2::Compress::new_gzip(level, window.clamp(9, 15)))
            }
            Library::Brotli(quality, window) => {
                let encoder = brotli::CompressorWriter::new(out, BUFFER, quality, window);
                Stage::Brotli(Some(Box::new(encoder)))
            }
            Library::Zstd(level, checksum) => {
                let mut encoder = zstd::stream::write::Encoder::new(out, level)?;
                encoder.include_checksum(checksum)?;
                Stage::Zstd(encoder)
            }
        };
        self.stages.push(Step::new(stage, passed));
        Ok(())
    }

    /// Decompresses what comes out so far, up to so many times as much as comes in; trailers tell of it under this name.
    ///
    /// # Errors
    /// When the library has no memory.
    pub fn decompress(
        &mut self,
        coding: Coding,
        max_ratio: u32,
        name: &Arc<str>,
        passed: Option<Passed>,
    ) -> io::Result<()> {
        let (out, ratio) = (Out::new(), Ratio { most: max_ratio.into(), taken: 0, given: 0 });
        let stage = match coding {
            Coding::Gzip => Stage::Gunzip(Box::new(flate2::write::MultiGzDecoder::new(out)), ratio),
            Coding::Brotli => Stage::Unbrotli(Box::new(brotli::DecompressorWriter::new(out, BUFFER)), ratio),
            Coding::Zstd => {
                let mut decoder = zstd::stream::write::Decoder::new(out)?;
                decoder.window_log_max(ZSTD_WINDOW)?;
                Stage::Unzstd(decoder, ratio)
            }
        };
        let told = Some(Told { name: name.clone(), taken: 0, given: 0 });
        self.stages.push(Step { stage, passed, told });
        Ok(())
    }

    /// Takes what comes out so far for base64.
    pub fn take_base64(&mut self) {
        self.stages.push(Step::new(Stage::Unbase64(Vec::new()), None));
    }

    /// Ends the body with its trailers, as gRPC-Web does, all in base64 if it must be `text`.
    pub fn frame_trailers(&mut self, text: bool) {
        self.stages.push(Step::new(Stage::Framed { last: Vec::new(), text: text.then(Vec::new) }, None));
    }

    /// Leaves nothing of what comes out so far.
    pub fn drop_all(&mut self) {
        self.stages.push(Step::new(Stage::Nothing, None));
    }

    /// Takes the trailers into the body, if that is wanted; then they are no trailers any more. The end comes after.
    pub fn take_trailers(&mut self, trailers: &Headers) -> bool {
        let framed = self.stages.iter_mut().find_map(|step| match &mut step.stage {
            Stage::Framed { last, .. } => Some(last),
            _ => None,
        });
        let Some(last) = framed else { return false };
        let mut lines = Vec::new();
        for (name, value, _) in trailers.iter() {
            lines.extend(name.iter().map(u8::to_ascii_lowercase));
            lines.extend_from_slice(&[b":", value, b"\r\n"].concat());
        }
        // A frame's length has 32 bits; heads are far shorter.
        last.push(0x80);
        last.extend_from_slice(&u32::try_from(lines.len()).unwrap_or(u32::MAX).to_be_bytes());
        last.append(&mut lines);
        true
    }

    /// The trailers of the body, which has ended, with what they tell of it.
    pub fn told<'t>(this: Option<&Self>, trailers: Option<Cow<'t, Headers>>) -> Option<Cow<'t, Headers>> {
        let mut told = this.into_iter().flat_map(|this| &this.stages).filter_map(|step| step.told.as_ref()).peekable();
        if told.peek().is_none() {
            return trailers;
        }
        let mut trailers = trailers.unwrap_or_default().into_owned();
        for Told { name, taken, given } in told {
            for (of, bytes) in [("compressed", taken), ("uncompressed", given)] {
                trailers.set(&format!("x-envoy-decompressor-{name}-{of}-bytes"), bytes.to_string().as_bytes());
            }
        }
        Some(Cow::Owned(trailers))
    }

    /// Takes data, at most [`AT_ONCE`], and gives what comes of it.
    ///
    /// # Errors
    /// When it is not what it should be, or would become too long.
    pub fn data(&mut self, data: &[u8]) -> Result<Vec<u8>, SideError> {
        self.holds = true;
        self.run(data, Then::More)
    }

    /// Gives what was held back.
    ///
    /// # Errors
    /// As [`Self::data`].
    pub fn flush(&mut self) -> Result<Vec<u8>, SideError> {
        match std::mem::take(&mut self.holds) {
            true => self.run(b"", Then::Flush),
            false => Ok(Vec::new()),
        }
    }

    /// Gives the last of it.
    ///
    /// # Errors
    /// As [`Self::data`], and when the end is missing.
    pub fn end(&mut self) -> Result<Vec<u8>, SideError> {
        self.run(b"", Then::End)
    }

    /// Takes a whole body.
    ///
    /// # Errors
    /// As [`Self::data`].
    pub fn whole(&mut self, body: &[u8]) -> Result<Vec<u8>, SideError> {
        let mut all = Vec::new();
        for part in body.chunks(AT_ONCE) {
            all.append(&mut self.data(part)?);
        }
        all.append(&mut self.end()?);
        Ok(all)
    }

    fn run(&mut self, data: &[u8], then: Then) -> Result<Vec<u8>, SideError> {
        let mut between: Option<Vec<u8>> = None;
        for Step { stage, passed, told } in &mut self.stages {
            let taken = between.as_deref().unwrap_or(data);
            let of_text = matches!(stage, Stage::Unbase64(_));
            let given = stage.step(taken, then).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof if of_text => SideError::NotBase64("grpc_base_64_decode_failed_bad_size"),
                _ if of_text => SideError::NotBase64("grpc_base_64_decode_failed"),
                io::ErrorKind::FileTooLarge => SideError::Limit("what a compressed body may become"),
                _ => SideError::Limit("what a coding allows"),
            })?;
            if let Some(told) = told {
                told.taken += taken.len() as u64;
                told.given += given.len() as u64;
            }
            if let Some([before, after]) = passed {
                before.add(taken.len() as u64);
                after.add(given.len() as u64);
            }
            between = Some(given);
        }
        Ok(between.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Library; 3] = [Library::Gzip(6, 12), Library::Brotli(3, 18), Library::Zstd(3, true)];

    fn compressed(library: Library, body: &[u8]) -> Vec<u8> {
        let mut recode = Recode::default();
        recode.compress(library, None).unwrap();
        recode.whole(body).unwrap()
    }

    fn decompressed(library: Library, body: &[u8], ratio: u32) -> Result<Vec<u8>, SideError> {
        let mut recode = Recode::default();
        recode.decompress(library.coding(), ratio, &"x".into(), None).unwrap();
        recode.whole(body)
    }

    #[test]
    fn body_when_compressed_and_decompressed_then_it_is_the_same_in_every_coding() {
        let body: Vec<u8> = (0..200_000u32).flat_map(|n| (n % 1000).to_string().into_bytes()).collect();
        for library in ALL {
            let small = compressed(library, &body);
            assert!(small.len() < body.len() / 4, "{library:?}");
            assert!(decompressed(library, &small, 1000).unwrap() == body, "{library:?}");
            let mut both = Recode::default();
            both.decompress(library.coding(), 1000, &"x".into(), None).unwrap();
            both.compress(Library::Gzip(1, 15), None).unwrap();
            let other = both.whole(&small).unwrap();
            assert!(decompressed(Library::Gzip(1, 15), &other, 1000).unwrap() == body, "{library:?} to gzip");
        }
    }

    #[test]
    fn body_when_it_pauses_then_what_was_taken_comes_out() {
        for library in ALL {
            let mut there = Recode::default();
            there.compress(library, None).unwrap();
            let mut back = Recode::default();
            back.decompress(library.coding(), 100, &"x".into(), None).unwrap();
            for part in ["one", "two", "three"] {
                let mut sent = there.data(part.as_bytes()).unwrap();
                sent.append(&mut there.flush().unwrap());
                assert!(there.flush().unwrap().is_empty(), "nothing is held any more");
                let mut got = back.data(&sent).unwrap();
                got.append(&mut back.flush().unwrap());
                assert_eq!(String::from_utf8(got).unwrap(), part, "{library:?}");
            }
        }
    }

    #[test]
    fn body_when_it_is_a_bomb_or_not_in_its_coding_then_it_ends() {
        let bomb = vec![0; 64 << 20];
        for library in ALL {
            let small = compressed(library, &bomb);
            let mut recode = Recode::default();
            recode.decompress(library.coding(), 100, &"x".into(), None).unwrap();
            let mut given = 0;
            let ended = small.chunks(AT_ONCE).find_map(|part| match recode.data(part) {
                Ok(out) => {
                    given += out.len();
                    None
                }
                Err(error) => Some(error),
            });
            assert!(matches!(ended, Some(SideError::Limit(_))), "{library:?}");
            assert!(given <= small.len() * 100, "{library:?} gave {given} of {}", small.len());
            assert!(decompressed(library, b"this is plain text and nothing else", 100).is_err(), "{library:?}");
        }
        let cut = &compressed(Library::Gzip(6, 12), b"a body that is cut off before its end")[..20];
        assert!(decompressed(Library::Gzip(6, 12), cut, 100).is_err());
    }

    #[test]
    fn body_when_it_is_base64_in_pieces_then_it_comes_out_and_what_is_none_ends_it() {
        let mut recode = Recode::default();
        recode.take_base64();
        let out: Vec<u8> = ["aGV", "sbG8", "=d29", "ybGQ", "="]
            .iter()
            .flat_map(|part| recode.data(part.as_bytes()).unwrap())
            .collect();
        assert_eq!((out.as_slice(), recode.end().unwrap().len()), (&b"helloworld"[..], 0));
        for wrong in ["aGVsbG8", "a*Vs", "a==="] {
            let mut recode = Recode::default();
            recode.take_base64();
            assert!(recode.whole(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn body_when_its_trailers_are_framed_then_they_end_it_in_its_own_form() {
        let mut trailers = Headers::default();
        trailers.push(b"grpc-status", b"0");
        let frame = b"\x80\0\0\0\x0fgrpc-status:0\r\n";
        for text in [false, true] {
            let mut recode = Recode::default();
            recode.frame_trailers(text);
            let mut out = recode.data(b"abcd").unwrap();
            out.append(&mut recode.flush().unwrap());
            assert!(recode.take_trailers(&trailers));
            out.append(&mut recode.end().unwrap());
            let wanted = if text {
                format!("YWJjZA=={}", STANDARD.encode(frame)).into_bytes()
            } else {
                [b"abcd", &frame[..]].concat()
            };
            assert_eq!(out, wanted);
        }
        assert!(!Recode::default().take_trailers(&trailers));
    }
}
