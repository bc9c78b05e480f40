//! Vector code by auto-vectorisation: kernels compiled for several instruction sets, and the functions they use.
//!
//! The functions are branch-free, so that loops over them become vector code. No fused multiply-add is used: results
//! do not depend on the instruction set, only reductions group by [`LANES`].

pub(super) use dualspeed_core::multiversion;

/// Partial sums of a reduction: one AVX-512 register, two of AVX2.
pub(super) const LANES: usize = 16;

/// `e^x` to about 1e-7 relative; below -87 the smallest normal number, NaN stays NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Cody-Waite reduction, then the polynomial of Cephes' expf. Comparisons keep NaN, `clamp` would not vectorise.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    // Adding 1.5 * 2^23 leaves the rounded integer in the low mantissa bits.
    let shifted = x * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = shifted - 12_582_912.0;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_6e-1;
    p = p * r + 0.5;
    let e = p * r * r + r + 1.0;
    e * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The normal distribution function and density. Error of the former below 2e-7 (Abramowitz & Stegun 7.1.26); one
/// exponential serves both.
#[inline(always)]
pub(super) fn normal(x: f32) -> (f32, f32) {
    let gauss = exp(-0.5 * x * x);
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let poly = ((((1.061_405_4 * t - 1.453_152_1) * t + 1.421_413_8) * t - 0.284_496_72) * t
        + 0.254_829_6)
        * t;
    let tail = 0.5 * poly * gauss;
    let cdf = if x < 0.0 { tail } else { 1.0 - tail };
    (cdf, 0.398_942_3 * gauss)
}

#[inline(always)]
fn fold(lanes: [f32; LANES]) -> f32 {
    let mut sum = 0.0;
    for lane in lanes {
        sum += lane;
    }
    sum
}

/// Sum over a row.
#[inline(always)]
pub(super) fn sum_of(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (slot, value) in lanes.iter_mut().zip(chunk) {
            *slot += f(*value);
        }
    }
    let mut total = fold(lanes);
    for value in chunks.remainder() {
        total += f(*value);
    }
    total
}

/// Sum over two rows of one length.
#[inline(always)]
pub(super) fn sum_of2(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (mut xs, mut ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    for (x, y) in (&mut xs).zip(&mut ys) {
        for ((slot, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *slot += f(*x, *y);
        }
    }
    let mut total = fold(lanes);
    for (x, y) in xs.remainder().iter().zip(ys.remainder()) {
        total += f(*x, *y);
    }
    total
}

/// Largest entry; minus infinity for an empty row, NaN is passed over.
#[inline(always)]
pub(super) fn max_of(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (slot, value) in lanes.iter_mut().zip(chunk) {
            *slot = if *value > *slot { *value } else { *slot };
        }
    }
    let mut max = f32::NEG_INFINITY;
    for value in lanes.iter().chain(chunks.remainder()) {
        max = if *value > max { *value } else { max };
    }
    max
}
