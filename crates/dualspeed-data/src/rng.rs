//! Random streams that are pure functions of what they are for.
//!
//! No generator is shared or stored: whoever needs randomness names its coordinates (seed, split, index, purpose)
//! and gets a stream of its own, so the order in which examples are asked for never matters.

use dualspeed_core::rng::hash_words;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

/// Makes a generator seeded by the sequence `coordinates`; other sequences give unrelated streams.
pub fn stream(coordinates: &[u64]) -> Xoshiro256PlusPlus {
    Xoshiro256PlusPlus::seed_from_u64(hash_words(coordinates))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt;

    #[test]
    fn coordinates_decide_the_stream() {
        let draw = |c: &[u64]| stream(c).random_range(0..u64::MAX);
        assert_eq!(draw(&[1, 2]), draw(&[1, 2]));
        assert_ne!(draw(&[1, 2]), draw(&[2, 1]));
        assert_ne!(draw(&[1]), draw(&[1, 0]));
    }
}
