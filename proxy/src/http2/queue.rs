//! Bytes of a body that wait: large pieces are shared with the memory that they were read into, small ones are copied together.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes};

use crate::http::body::Chunk;

/// From so many bytes on a piece is shared: it keeps what was read with it ([`super::mux::READ`]) from being used again, so that
/// a queue holds at most sixteen times the memory of its bytes.
pub(super) const LARGE: usize = 8 * 1024;

/// Bytes in their order: large pieces, then those that were copied. Bounded by whoever fills it.
#[derive(Default)]
pub(super) struct Queue {
    large: VecDeque<Bytes>,
    large_bytes: usize,
    copied: Vec<u8>,
    at: usize,
}

impl Queue {
    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.large_bytes + self.copied.len() - self.at
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds bytes at the end.
    pub(super) fn push(&mut self, data: Chunk<'_>) {
        if self.at == self.copied.len()
            && let Some(shared) = data.share(LARGE)
        {
            self.large_bytes += shared.len();
            self.large.push_back(shared);
        } else {
            self.copied.extend_from_slice(&data);
        }
    }

    /// The first bytes that lie together; none only when nothing waits.
    pub(super) fn front(&self) -> Chunk<'_> {
        match self.large.front() {
            Some(first) => first.into(),
            None => self.copied[self.at..].into(),
        }
    }

    /// Forgets bytes of [`Queue::front`].
    pub(super) fn advance(&mut self, count: usize) {
        match self.large.front_mut() {
            Some(first) => {
                self.large_bytes -= count;
                first.advance(count);
                if first.is_empty() {
                    self.large.pop_front();
                }
            }
            None => {
                self.at += count;
                if self.at == self.copied.len() {
                    self.copied.clear();
                    self.at = 0;
                }
            }
        }
    }

    /// Forgets everything; memory for `keep` bytes stays.
    pub(super) fn clear(&mut self, keep: usize) {
        self.large = VecDeque::new();
        self.large_bytes = 0;
        self.copied.clear();
        if self.copied.capacity() > keep {
            self.copied = Vec::new();
        }
        self.at = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(queue: &mut Queue, most: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while !queue.is_empty() {
            let count = queue.front().len().min(most);
            all.extend_from_slice(&queue.front()[..count]);
            queue.advance(count);
        }
        all
    }

    #[test]
    fn queue_when_filled_with_large_and_small_pieces_then_gives_them_in_order() {
        let large = Bytes::from((0..LARGE).map(|at| at as u8).collect::<Vec<u8>>());
        for order in 0..32u32 {
            let mut queue = Queue::default();
            let mut expected = Vec::new();
            for bit in 0..5 {
                let piece = if order >> bit & 1 == 1 { large.clone() } else { Bytes::from(vec![bit as u8; 10]) };
                expected.extend_from_slice(&piece);
                queue.push((&piece).into());
            }
            assert_eq!(queue.len(), expected.len());
            assert!(taken(&mut queue, 1000) == expected, "order {order:b}");
            queue.push((&large).into());
            assert!(taken(&mut queue, usize::MAX) == large, "it serves again");
        }
    }

    #[test]
    fn queue_when_a_large_piece_comes_alone_then_shares_its_memory() {
        let large = Bytes::from(vec![1; LARGE]);
        let mut queue = Queue::default();
        queue.push((&large).into());
        assert_eq!(queue.front().as_ptr(), large.as_ptr());
        queue.clear(0);
        assert!(queue.is_empty());
    }
}
