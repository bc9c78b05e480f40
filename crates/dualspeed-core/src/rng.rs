//! Randomness as a pure function of its keys: SplitMix64 used as a counter-based generator.
//!
//! No generator is global: whoever needs randomness names what it is for (seed, step, purpose, index), so the order in
//! which things happen never matters.
//!
//! Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014), and the reference
//! implementation `splitmix64.c` of Vigna.

/// The increment of SplitMix64: 2^64 divided by the golden ratio.
pub const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

const FIRST: u64 = 0xBF58_476D_1CE4_E5B9;
const SECOND: u64 = 0x94D0_49BB_1331_11EB;

/// Mixes all 64 bits of `z` (the output function of SplitMix64); 0 stays 0.
pub fn finalise(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(FIRST);
    z = (z ^ (z >> 27)).wrapping_mul(SECOND);
    z ^ (z >> 31)
}

/// What SplitMix64 returns in state `state`: the increment added, then [`finalise`].
pub fn splitmix64(state: u64) -> u64 {
    finalise(state.wrapping_add(GOLDEN))
}

/// Mixes any number of keys into one well-distributed state.
pub fn mix(keys: &[u64]) -> u64 {
    keys.iter().fold(GOLDEN, |state, key| mix_in(state, *key))
}

/// Mixes one more key into a state: `mix(&[a, b]) == mix_in(mix(&[a]), b)`.
pub fn mix_in(state: u64, key: u64) -> u64 {
    splitmix64(state ^ splitmix64(key))
}

/// Draws number `index` of the stream that starts at `state`.
pub fn draw(state: u64, index: u64) -> u64 {
    finalise(state.wrapping_add((index + 1).wrapping_mul(GOLDEN)))
}

/// Hashes a sequence of words (SplitMix64, chained): another function than [`mix`], which data sets were drawn with.
pub fn hash_words(words: &[u64]) -> u64 {
    words.iter().fold(GOLDEN, |state, word| splitmix64(state ^ word))
}

/// Hashes (seed, step, purpose): what the modes of optimiser steps are drawn with.
pub fn hash_step(seed: u64, step: u64, purpose: u64) -> u64 {
    let state = splitmix64(seed ^ GOLDEN);
    let state = splitmix64(state ^ step.wrapping_add(FIRST));
    splitmix64(state ^ purpose.wrapping_mul(SECOND))
}

/// Hashes a string (64-bit FNV-1a): stable over platforms and releases, unlike `DefaultHasher`.
pub fn hash_str(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

/// The upper 53 bits as a number in [0, 1).
pub fn unit_interval(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// A small, fast generator for bulk use (dropout masks, initial weights): SplitMix64.
#[derive(Clone, Debug)]
pub struct SplitMix(u64);

impl SplitMix {
    /// Makes a generator whose stream is a function of the keys alone.
    pub fn new(keys: &[u64]) -> Self {
        Self(mix(keys))
    }

    /// Draws the next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let value = draw(self.0, 0);
        self.0 = self.0.wrapping_add(GOLDEN);
        value
    }

    /// Draws uniformly from [0, 1), 53 bits.
    pub fn uniform(&mut self) -> f64 {
        unit_interval(self.next_u64())
    }

    /// Draws uniformly from `0..bound`; the bias is below 2^-32 for bounds below 2^32.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next_u64()) * bound as u128) >> 64) as usize
    }

    /// Draws from a standard normal truncated to two standard deviations (Box-Muller, rejected outside).
    pub fn normal(&mut self) -> f64 {
        loop {
            let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
            let value = radius * (std::f64::consts::TAU * self.uniform()).cos();
            if value.abs() <= 2.0 {
                return value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_their_order_matter() {
        assert_ne!(mix(&[1, 2]), mix(&[2, 1]));
        assert_eq!(mix(&[1, 2]), mix_in(mix(&[1]), 2));
        assert_ne!(hash_str("ab"), hash_str("ba"));
        assert_ne!(hash_words(&[1]), hash_words(&[1, 0]));
    }

    /// Literal values of the streams that weights, masks, modes and scenes have been drawn from: to change one is to
    /// change every result.
    #[test]
    fn the_streams_are_what_they_were() {
        assert_eq!(mix(&[]), GOLDEN);
        assert_eq!(mix(&[7]), 0x6e7c_e04a_63ac_7dd2);
        assert_eq!(mix(&[0, 1, u64::MAX]), 0xb251_de87_505e_69dc);
        assert_eq!(mix_in(3, 4), 0x5014_87be_8da2_7526);
        assert_eq!([draw(5, 0), draw(5, 1000)], [0x6303_3b0c_a389_c35a, 0xa5d7_177f_683c_d099]);
        assert_eq!(hash_words(&[]), GOLDEN);
        assert_eq!(hash_words(&[7]), 0xec77_9c36_93f8_8501);
        assert_eq!(hash_words(&[0, 1, u64::MAX]), 0x1fef_deeb_c61c_9e63);
        assert_eq!(hash_step(0, 0, 1), 0x09c8_75ae_de22_3329);
        assert_eq!(hash_step(7, 1000, 2), 0xe05e_c437_4a76_7098);
        assert_eq!(hash_step(u64::MAX, u64::MAX, 1), 0x166a_a35f_b4a1_7ee0);
        assert_eq!(hash_str(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash_str("model.layers.0.q_proj"), 0xf745_6601_9c19_db21);
        let mut rng = SplitMix::new(&[1, 2]);
        assert_eq!(rng.next_u64(), 0xa262_cff0_241a_1f3a);
        assert_eq!((rng.uniform(), rng.below(1000)), (0.9609231170043012, 200));
        // Logarithm and cosine may differ in their last bits between platforms.
        for expected in [1.0854705201219998, -1.0641356172265402] {
            assert!((rng.normal() - expected).abs() < 1e-12);
        }
        assert_eq!(rng.next_u64(), 0x1307_0bad_6228_9eae);
    }

    /// Outputs 1 to 3 of `splitmix64.c` seeded with 1234567.
    #[test]
    fn the_published_generator() {
        let published = [6457827717110365317, 3203168211198807973, 9817491932198370423];
        assert_eq!([0, 1, 2].map(|index| draw(1_234_567, index)), published);
        assert_eq!(splitmix64(1_234_567), published[0]);
    }

    #[test]
    fn normal_has_the_moments_of_a_truncated_normal() {
        let mut rng = SplitMix::new(&[7]);
        let draws: Vec<f64> = (0..20_000).map(|_| rng.normal()).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|x| x * x).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.03, "{mean}");
        // Var of N(0, 1) cut at two sigma is 0.774.
        assert!((variance - 0.774).abs() < 0.03, "{variance}");
        assert!((0..1000).all(|_| rng.below(3) < 3));
    }
}
