//! Randomness as a pure function of its keys: no global generator, no order dependence.

pub use dualspeed_ops::rng::mix;
use dualspeed_ops::rng::{GOLDEN, draw};

/// 64-bit FNV-1a hash of a string: stable over platforms and releases, unlike `DefaultHasher`.
pub fn hash_str(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

/// A small, fast generator for bulk use (dropout masks, initial weights): SplitMix64.
#[derive(Clone, Debug)]
pub struct SplitMix(u64);

impl SplitMix {
    /// A generator whose stream is a function of the keys alone.
    pub fn new(keys: &[u64]) -> Self {
        Self(mix(keys))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let value = draw(self.0, 0);
        self.0 = self.0.wrapping_add(GOLDEN);
        value
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..bound`; the bias is below 2^-32 for the sizes used here.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next_u64()) * bound as u128) >> 64) as usize
    }

    /// A standard normal truncated to two standard deviations (Box-Muller, rejected outside).
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
        assert_eq!(mix(&[1, 2]), mix(&[1, 2]));
        assert_ne!(mix(&[1, 2]), mix(&[2, 1]));
        assert_ne!(hash_str("ab"), hash_str("ba"));
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
