//! The inverse transform of blocks, in integers.
//!
//! Source: Loeffler, Ligtenberg and Moschytz 1989 in libjpeg's fixed-point form (jidctint.c): 13 bits for constants, 2 more
//! bits between the passes, sums that do not overflow on sound data.

use dualspeed_core::multiversion;

const CONST_BITS: i32 = 13;
const PASS_BITS: i32 = 2;

/// One pass over the columns of a block: eight transforms side by side, each scaled down by `2^shift`.
#[inline(always)]
fn pass(x: &[[i32; 8]; 8], shift: i32) -> [[i32; 8]; 8] {
    let mut out = [[0i32; 8]; 8];
    let m = i32::wrapping_mul;
    let (add, sub) = (i32::wrapping_add, i32::wrapping_sub);
    for i in 0..8 {
        // Even part.
        let (z2, z3) = (x[2][i], x[6][i]);
        let z1 = m(add(z2, z3), 4433);
        let t2 = add(z1, m(z3, -15137));
        let t3 = add(z1, m(z2, 6270));
        let t0 = m(add(x[0][i], x[4][i]), 1 << CONST_BITS);
        let t1 = m(sub(x[0][i], x[4][i]), 1 << CONST_BITS);
        let (e0, e3) = (add(t0, t3), sub(t0, t3));
        let (e1, e2) = (add(t1, t2), sub(t1, t2));
        // Odd part.
        let (t0, t1, t2, t3) = (x[7][i], x[5][i], x[3][i], x[1][i]);
        let (z1, z2) = (m(add(t0, t3), -7373), m(add(t1, t2), -20995));
        let (z3, z4) = (add(t0, t2), add(t1, t3));
        let z5 = m(add(z3, z4), 9633);
        let (z3, z4) = (add(m(z3, -16069), z5), add(m(z4, -3196), z5));
        let t0 = add(m(t0, 2446), add(z1, z3));
        let t1 = add(m(t1, 16819), add(z2, z4));
        let t2 = add(m(t2, 25172), add(z2, z3));
        let t3 = add(m(t3, 12299), add(z1, z4));
        let half = 1 << (shift - 1);
        let down = |value: i32| add(value, half) >> shift;
        out[0][i] = down(add(e0, t3));
        out[7][i] = down(sub(e0, t3));
        out[1][i] = down(add(e1, t2));
        out[6][i] = down(sub(e1, t2));
        out[2][i] = down(add(e2, t1));
        out[5][i] = down(sub(e2, t1));
        out[3][i] = down(add(e3, t0));
        out[4][i] = down(sub(e3, t0));
    }
    out
}

#[inline(always)]
fn transposed(x: &[[i32; 8]; 8]) -> [[i32; 8]; 8] {
    let mut out = [[0; 8]; 8];
    for i in 0..8 {
        for j in 0..8 {
            out[j][i] = x[i][j];
        }
    }
    out
}

multiversion! {
    /// Blocks of 64 coefficients in natural order, side by side, to 8 rows of samples.
    pub(super) fn inverse_transform(coefficients: &[i16], quantisation: &[u16; 64], samples: &mut [u8], stride: usize) {
        for (at, block) in coefficients.as_chunks::<64>().0.iter().enumerate() {
            let dc = i32::from(block[0]).wrapping_mul(i32::from(quantisation[0]));
            if block[1..].iter().fold(0, |all, value| all | value) == 0 {
                let value = (((dc << PASS_BITS).wrapping_add(16) >> 5) + 128).clamp(0, 255) as u8;
                for row in samples.chunks_exact_mut(stride) {
                    row[at * 8..at * 8 + 8].fill(value);
                }
                continue;
            }
            let mut x = [[0i32; 8]; 8];
            for (row, (values, factors)) in
                x.iter_mut().zip(block.as_chunks::<8>().0.iter().zip(quantisation.as_chunks::<8>().0))
            {
                for (x, (value, factor)) in row.iter_mut().zip(values.iter().zip(factors)) {
                    *x = i32::from(*value).wrapping_mul(i32::from(*factor));
                }
            }
            let x = transposed(&pass(&x, CONST_BITS - PASS_BITS));
            let x = transposed(&pass(&x, CONST_BITS + PASS_BITS + 3));
            for (row, x) in samples.chunks_exact_mut(stride).zip(&x) {
                for (to, x) in row[at * 8..at * 8 + 8].iter_mut().zip(x) {
                    *to = x.wrapping_add(128).clamp(0, 255) as u8;
                }
            }
        }
    }
}
