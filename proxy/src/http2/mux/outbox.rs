//! What waits to be written to the connection: frames as they are made, and between them large payloads that are not copied.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf as _, Bytes};

use super::KEEP;

/// Pieces that are written at once.
pub(super) const SLICES: usize = 64;

/// Bytes in the order in which they go. Bounded by those who fill it ([`super::ROOM`]).
#[derive(Default)]
pub(super) struct Outbox {
    /// Frames, from `at` on; only added to at the end until all is written.
    pub(super) bytes: Vec<u8>,
    at: usize,
    /// Payloads, and before which of the bytes they go.
    large: VecDeque<(usize, Bytes)>,
    large_bytes: usize,
}

impl Outbox {
    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.at + self.large_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a payload, without copying it.
    pub(super) fn push(&mut self, payload: Bytes) {
        self.large_bytes += payload.len();
        self.large.push_back((self.bytes.len(), payload));
    }

    /// The first pieces of it; how many.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES]) -> usize {
        let (mut at, mut count) = (self.at, 0);
        let mut add = |piece: &'a [u8]| {
            if !piece.is_empty()
                && let Some(slice) = slices.get_mut(count)
            {
                *slice = IoSlice::new(piece);
                count += 1;
            }
        };
        for (before, payload) in self.large.iter().take(SLICES) {
            add(&self.bytes[at..*before]);
            add(payload);
            at = *before;
        }
        if self.large.len() < SLICES {
            add(&self.bytes[at..]);
        }
        count
    }

    /// So many bytes were written.
    pub(super) fn advance(&mut self, mut count: usize) {
        while count > 0 {
            let until = self.large.front().map_or(self.bytes.len(), |(before, _)| *before);
            let now = count.min(until - self.at);
            self.at += now;
            count -= now;
            let Some((_, payload)) = self.large.front_mut().filter(|_| count > 0) else { break };
            let now = count.min(payload.len());
            payload.advance(now);
            self.large_bytes -= now;
            count -= now;
            if payload.is_empty() {
                self.large.pop_front();
            }
        }
        if self.is_empty() {
            self.bytes.clear();
            self.bytes.shrink_to(KEEP);
            self.at = 0;
        }
    }

    /// All of it.
    #[cfg(test)]
    pub(super) fn all(&self) -> Vec<u8> {
        let (mut at, mut all) = (self.at, Vec::new());
        for (before, payload) in &self.large {
            all.extend_from_slice(&self.bytes[at..*before]);
            all.extend_from_slice(payload);
            at = *before;
        }
        all.extend_from_slice(&self.bytes[at..]);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outbox_when_written_in_pieces_of_any_size_then_gives_all_in_order() {
        for size in [1, 2, 3, 5, 7, 100] {
            let mut outbox = Outbox::default();
            for number in 0..20u8 {
                if number % 3 != 0 {
                    outbox.bytes.extend_from_slice(&[number; 4]);
                }
                if number % 2 == 0 {
                    outbox.push(Bytes::from(vec![100 + number; 6]));
                }
            }
            let expected = outbox.all();
            assert_eq!(outbox.len(), expected.len());
            let mut written = Vec::new();
            while !outbox.is_empty() {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = outbox.slices(&mut slices);
                let now: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).take(size).collect();
                outbox.advance(now.len());
                written.extend(now);
            }
            assert_eq!(written, expected, "in pieces of {size}");
        }
    }
}
