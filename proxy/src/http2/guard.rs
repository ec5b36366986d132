//! Counts what a client's frames cost, where the `h2` crate does not: frames that carry nothing, questions that want an answer,
//! priorities, and streams that are reset as fast as they are opened. A client that oversteps is disconnected.
//!
//! Only the nine bytes before each frame are looked at; the payload is passed over.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of the connection preface.
const PREFACE: usize = 24;
/// SETTINGS and PING frames that a client may send at once, and how fast it earns new ones: gRPC measures its connections with
/// pings, a few a second.
const QUESTIONS: u32 = 1000;
const QUESTION_EVERY: Duration = Duration::from_millis(5);
/// So many streams may be reset before it matters how many were not; then at most half of all (as Envoy has it).
const RESETS: u64 = 500;

/// How much a client may send that costs more than it says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance {
    /// Frames without payload that follow each other.
    pub(super) empty: u32,
    /// PRIORITY frames for each stream, and as many for the connection.
    pub(super) priorities: u32,
}

/// A connection whose incoming frames are counted.
pub(super) struct Guard<IO> {
    io: IO,
    allowance: Allowance,
    header: [u8; 9],
    have: usize,
    skip: usize,
    empty: u32,
    opened: u64,
    priorities: u64,
    resets: u64,
    questions: u32,
    since: Option<Instant>,
}

impl<IO> Guard<IO> {
    /// Counts from the connection's first byte on.
    pub(super) fn new(io: IO, allowance: Allowance) -> Self {
        Self {
            io,
            allowance,
            header: [0; 9],
            have: 0,
            skip: PREFACE,
            empty: 0,
            opened: 0,
            priorities: 0,
            resets: 0,
            questions: 0,
            since: None,
        }
    }

    fn scan(&mut self, mut bytes: &[u8]) -> Result<(), &'static str> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let count = self.skip.min(bytes.len());
                self.skip -= count;
                bytes = &bytes[count..];
                continue;
            }
            let count = (self.header.len() - self.have).min(bytes.len());
            self.header[self.have..self.have + count].copy_from_slice(&bytes[..count]);
            self.have += count;
            bytes = &bytes[count..];
            if self.have == self.header.len() {
                self.have = 0;
                let [a, b, c, kind, flags, ..] = self.header;
                self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                self.see(kind, flags)?;
            }
        }
        Ok(())
    }

    fn see(&mut self, kind: u8, flags: u8) -> Result<(), &'static str> {
        const DATA: u8 = 0;
        const HEADERS: u8 = 1;
        const PRIORITY: u8 = 2;
        const RST_STREAM: u8 = 3;
        const SETTINGS: u8 = 4;
        const PING: u8 = 6;
        const CONTINUATION: u8 = 9;
        /// END_STREAM of DATA and HEADERS, ACK of SETTINGS and PING.
        const END_OR_ACK: u8 = 1;
        const END_HEADERS: u8 = 4;
        match kind {
            DATA | HEADERS | CONTINUATION => {
                let ends = if kind == DATA { END_OR_ACK } else { END_HEADERS };
                self.empty = if self.skip == 0 && flags & ends == 0 { self.empty + 1 } else { 0 };
                self.opened += u64::from(kind == HEADERS);
                if self.empty > self.allowance.empty {
                    return Err("frames without payload");
                }
            }
            PRIORITY => {
                self.priorities += 1;
                if self.priorities > u64::from(self.allowance.priorities).saturating_mul(self.opened + 1) {
                    return Err("priorities");
                }
            }
            RST_STREAM => {
                self.resets += 1;
                if self.resets >= RESETS && self.resets * 2 > self.opened {
                    return Err("reset streams");
                }
            }
            SETTINGS | PING if flags & END_OR_ACK == 0 => return self.question(),
            _ => {}
        }
        Ok(())
    }

    fn question(&mut self) -> Result<(), &'static str> {
        self.questions += 1;
        if self.questions <= QUESTIONS / 2 {
            return Ok(());
        }
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        let earned = u32::try_from((now - since).as_millis() / QUESTION_EVERY.as_millis()).unwrap_or(u32::MAX);
        if earned > 0 {
            self.questions = self.questions.saturating_sub(earned);
            self.since = Some(now);
        }
        if self.questions > QUESTIONS { Err("settings and pings") } else { Ok(()) }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Guard<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = out.filled().len();
        let result = Pin::new(&mut this.io).poll_read(cx, out);
        if let Poll::Ready(Ok(())) = &result
            && let Err(what) = this.scan(&out.filled()[before..])
        {
            let text = format!("the client sends too many {what}");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        result
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Guard<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: Allowance = Allowance { empty: 1, priorities: 100 };

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let mut frame = vec![(length >> 16) as u8, (length >> 8) as u8, length as u8, kind, flags, 0, 0, 0, 1];
        frame.resize(9 + length, 7);
        frame
    }

    /// Feeds the preface and frames in pieces of `step` bytes; whether all were taken.
    fn takes(frames: impl IntoIterator<Item = Vec<u8>>, step: usize) -> bool {
        let mut guard = Guard::new((), ALLOWED);
        let mut all = vec![0; PREFACE];
        all.extend(frames.into_iter().flatten());
        all.chunks(step).all(|piece| guard.scan(piece).is_ok())
    }

    #[test]
    fn guard_when_frames_come_in_any_pieces_then_it_counts_the_same() {
        for step in [1, 2, 7, 9, 10, 1000] {
            let fine = [frame(4, 0, 12), frame(1, 4, 20), frame(0, 0, 300), frame(0, 0, 0), frame(0, 1, 0)];
            assert!(takes(fine, step), "{step}");
            assert!(!takes([frame(1, 4, 20), frame(0, 0, 0), frame(0, 0, 0)], step), "{step}");
        }
    }

    #[test]
    fn guard_when_a_client_floods_then_it_is_stopped() {
        for (what, one, few, many) in [
            ("settings", vec![frame(4, 0, 0)], 400, 5000),
            ("pings", vec![frame(6, 0, 8)], 400, 5000),
            ("priorities", vec![frame(2, 0, 5)], 100, 101),
            ("resets", vec![frame(1, 5, 9), frame(3, 0, 4)], 499, 500),
            ("empty continuations", vec![frame(9, 0, 0)], 1, 2),
        ] {
            let flood = |count: usize| takes(std::iter::repeat_n(one.clone(), count).flatten(), 4096);
            assert!(flood(few), "{few} {what}");
            assert!(!flood(many), "{many} {what}");
        }
        let acknowledgements = std::iter::repeat_n(frame(6, 1, 8), 5000);
        assert!(takes(acknowledgements, 4096), "answers are no questions");
        let mixed = (0..5000)
            .flat_map(|n| if n % 3 == 0 { vec![frame(1, 5, 9), frame(3, 0, 4)] } else { vec![frame(1, 5, 9)] });
        assert!(takes(mixed, 4096), "a client that gives up on some streams is served");
    }
}
