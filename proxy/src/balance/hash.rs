//! The hash functions by which consistent hashing places endpoints, bit for bit as Envoy computes them.

const P1: u64 = 0x9E37_79B1_85EB_CA87;
const P2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const P3: u64 = 0x1656_67B1_9E37_79F9;
const P4: u64 = 0x85EB_CA77_C2B2_AE63;
const P5: u64 = 0x27D4_EB2F_1656_67C5;

fn word(bytes: &[u8]) -> u64 {
    // Missing bytes are zero.
    bytes.iter().take(8).rev().fold(0, |value, byte| (value << 8) | u64::from(*byte))
}

fn round(sum: u64, input: u64) -> u64 {
    sum.wrapping_add(input.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1)
}

/// xxHash of 64 bits (XXH64).
pub fn xx_hash(bytes: &[u8], seed: u64) -> u64 {
    let mut rest = bytes;
    let mut hash = if bytes.len() < 32 {
        seed.wrapping_add(P5)
    } else {
        let mut sums = [seed.wrapping_add(P1).wrapping_add(P2), seed.wrapping_add(P2), seed, seed.wrapping_sub(P1)];
        while let Some((stripe, after)) = rest.split_at_checked(32) {
            for (sum, lane) in sums.iter_mut().zip(stripe.chunks_exact(8)) {
                *sum = round(*sum, word(lane));
            }
            rest = after;
        }
        let [a, b, c, d] = sums;
        let mixed = a
            .rotate_left(1)
            .wrapping_add(b.rotate_left(7))
            .wrapping_add(c.rotate_left(12))
            .wrapping_add(d.rotate_left(18));
        sums.iter().fold(mixed, |hash, sum| (hash ^ round(0, *sum)).wrapping_mul(P1).wrapping_add(P4))
    };
    hash = hash.wrapping_add(bytes.len() as u64);
    while let Some((lane, after)) = rest.split_at_checked(8) {
        hash = (hash ^ round(0, word(lane))).rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
        rest = after;
    }
    if let Some((half, after)) = rest.split_at_checked(4) {
        hash = (hash ^ word(half).wrapping_mul(P1)).rotate_left(23).wrapping_mul(P2).wrapping_add(P3);
        rest = after;
    }
    for byte in rest {
        hash = (hash ^ u64::from(*byte).wrapping_mul(P5)).rotate_left(11).wrapping_mul(P1);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(P2);
    hash = (hash ^ (hash >> 29)).wrapping_mul(P3);
    hash ^ (hash >> 32)
}

/// MurmurHash 2 of 64 bits as libstdc++ has it, with its seed.
pub fn murmur_hash(bytes: &[u8]) -> u64 {
    const SEED: u64 = 0xc70f_6907;
    const MUL: u64 = 0xc6a4_a793_5bd1_e995;
    let mix = |value: u64| value ^ (value >> 47);
    let mut hash = SEED ^ (bytes.len() as u64).wrapping_mul(MUL);
    let mut rest = bytes;
    while let Some((lane, after)) = rest.split_at_checked(8) {
        hash = (hash ^ mix(word(lane).wrapping_mul(MUL)).wrapping_mul(MUL)).wrapping_mul(MUL);
        rest = after;
    }
    if !rest.is_empty() {
        hash = (hash ^ word(rest)).wrapping_mul(MUL);
    }
    mix(mix(hash).wrapping_mul(MUL))
}

/// The Mersenne Twister of 32 bits (MT19937): the sequence in which Envoy looks for another endpoint than an overloaded one.
pub(super) struct Twister {
    state: [u32; 624],
    at: usize,
}

impl Twister {
    pub(super) fn new(seed: u32) -> Self {
        let mut state = [0; 624];
        let mut last = seed;
        for (index, place) in state.iter_mut().enumerate() {
            if index > 0 {
                last = 1_812_433_253_u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(index as u32);
            }
            *place = last;
        }
        Self { state, at: 624 }
    }

    pub(super) fn next(&mut self) -> u32 {
        if self.at == 624 {
            for index in 0..624 {
                let joined = (self.state[index] & 0x8000_0000) | (self.state[(index + 1) % 624] & 0x7fff_ffff);
                let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[index] = self.state[(index + 397) % 624] ^ (joined >> 1) ^ odd;
            }
            self.at = 0;
        }
        let mut value = self.state[self.at];
        self.at += 1;
        value ^= value >> 11;
        value ^= (value << 7) & 0x9d2c_5680;
        value ^= (value << 15) & 0xefc6_0000;
        value ^ (value >> 18)
    }

    /// A number below `bound`, which is at least 1.
    pub(super) fn below(&mut self, bound: u32) -> u32 {
        let part = (1_u64 << 32) / u64::from(bound);
        loop {
            let value = u64::from(self.next()) / part;
            if value < u64::from(bound) {
                return value as u32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_when_computed_then_they_are_those_of_envoy() {
        assert_eq!(xx_hash(b"foo", 0), 3_728_699_739_546_630_719);
        assert_eq!(xx_hash(b"bar", 0), 5_234_164_152_756_840_025);
        assert_eq!(xx_hash(b"foo\nbar", 0), 8_917_841_378_505_826_757);
        assert_eq!(xx_hash(b"", 0), 17_241_709_254_077_376_921);
        // From the reference implementation, too.
        assert_eq!(xx_hash(b"a", 0), 0xd24e_c4f1_a98c_6e5b);
        assert_eq!(xx_hash(b"abc", 0), 0x44bc_2cf5_ad77_0999);
        assert_eq!(xx_hash(b"foobar", 0), 0xa2aa_05ed_9085_aaf9);
        // Longer than a stripe, with every kind of rest.
        assert_eq!(xx_hash(b"Nobody inspects the spammish repetition", 0), 0xfbce_a83c_8a37_8bf1);
        assert_eq!(murmur_hash(b"foo"), 9_631_199_822_919_835_226);
        assert_eq!(murmur_hash(b"bar"), 11_474_628_671_133_349_555);
    }

    #[test]
    fn twister_when_seeded_then_it_gives_the_standard_sequence() {
        let mut twister = Twister::new(5489);
        assert_eq!([twister.next(), twister.next()], [3_499_211_612, 581_869_302]);
        let last = (2..10_000).map(|_| twister.next()).last();
        assert_eq!(last, Some(4_123_659_995), "the ten thousandth, as C++ prescribes");
    }
}
