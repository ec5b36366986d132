//! Random numbers for balancing: fast, good enough for shares, of no use for secrets.

use std::cell::Cell;

/// A worker's generator (xorshift64*, Vigna 2016).
#[derive(Debug)]
pub struct Rng(Cell<u64>);

impl Rng {
    /// Begins at a seed.
    pub fn new(seed: u64) -> Self {
        Self(Cell::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1))
    }

    /// Begins at a place that nobody chose.
    pub fn from_entropy() -> Self {
        Self::new(rand::random())
    }

    /// The next number.
    pub fn next(&self) -> u64 {
        let mut x = self.0.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `bound` (which is at least 1), without a bias that anybody could measure.
    pub fn below(&self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}
