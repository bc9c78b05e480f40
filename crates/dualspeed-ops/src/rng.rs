//! Randomness as a pure function of its keys: SplitMix64 used as a counter-based generator.

/// The increment of SplitMix64.
pub const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Mixes any number of keys into one well-distributed state.
pub fn mix(keys: &[u64]) -> u64 {
    keys.iter().fold(GOLDEN, |state, key| mix_in(state, *key))
}

/// Mixes one more key into a state: `mix(&[a, b]) == mix_in(mix(&[a]), b)`.
pub fn mix_in(state: u64, key: u64) -> u64 {
    splitmix(state ^ splitmix(key))
}

/// Draw `index` of the stream that starts at `state`.
pub fn draw(state: u64, index: u64) -> u64 {
    finalise(state.wrapping_add((index + 1).wrapping_mul(GOLDEN)))
}

fn splitmix(value: u64) -> u64 {
    finalise(value.wrapping_add(GOLDEN))
}

fn finalise(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
