//! Greedy MAP of a determinantal point process: of the kernel only the picked rows are computed.

use rayon::prelude::*;

use super::rows::zeros;
use super::simd::{max_of, multiversion, sum_of, sum_of2};
use crate::plain::{INVALID, RANK_EPS, TAKEN};

multiversion! {
    /// Squared length of each row.
    fn diagonal(x: &[f32], d: usize, out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x.chunks_exact(d)) {
            *out = sum_of(x, |x| x * x);
        }
    }
}

multiversion! {
    /// Products of every row with one row.
    fn kernel_row(x: &[f32], d: usize, row: &[f32], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x.chunks_exact(d)) {
            *out = sum_of2(x, row, |a, b| a * b);
        }
    }
}

multiversion! {
    fn subtract(row: &mut [f32], factor: &[f32], own: f32) {
        for (row, factor) in row.iter_mut().zip(factor) {
            *row -= own * *factor;
        }
    }
}

multiversion! {
    /// Scales a factor row and takes its square off the residuals that are still open.
    fn reduce(residual: &mut [f32], factor: &mut [f32], diagonal: &[f32], scale: f32) {
        for ((residual, factor), diagonal) in residual.iter_mut().zip(factor).zip(diagonal) {
            *factor *= scale;
            let left = *residual - *factor * *factor;
            let left = if left <= RANK_EPS * *diagonal { 0.0 } else { left };
            *residual = if *residual >= 0.0 { left } else { *residual };
        }
    }
}

multiversion! {
    fn largest(x: &[f32]) -> f32 {
        max_of(x)
    }
}

fn pick(features: &[f32], n: usize, d: usize, picks: &mut [i64]) {
    let mut own = zeros(n);
    diagonal(features, d, &mut own);
    let broken: Vec<usize> = (0..n).filter(|i| own[*i].is_nan()).collect();
    let mut residual = own.clone();
    for i in &broken {
        (own[*i], residual[*i]) = (0.0, INVALID);
    }
    let mut factors = zeros(picks.len() * n);
    for (step, slot) in picks.iter_mut().enumerate() {
        let max = largest(&residual);
        let current = residual.iter().position(|value| *value == max).unwrap_or(0);
        *slot = current as i64;
        let (earlier, rest) = factors.split_at_mut(step * n);
        let row = &mut rest[..n];
        // A row in the span of the picked ones takes nothing off the others.
        if max > 0.0 {
            kernel_row(features, d, &features[current * d..(current + 1) * d], row);
            for i in &broken {
                row[*i] = 0.0;
            }
            for factor in earlier.chunks_exact(n) {
                subtract(row, factor, factor[current]);
            }
            reduce(&mut residual, row, &own, 1.0 / max.sqrt());
        }
        residual[current] = TAKEN;
    }
}

/// `[b, keep]` from `[b, n, d]`.
pub(super) fn greedy_map(features: &[f32], shape: [usize; 3], keep: usize) -> Vec<i64> {
    let [b, n, d] = shape;
    let mut picks = vec![0; b * keep];
    if keep == 0 || n == 0 {
        return picks;
    }
    if d == 0 {
        return (0..b).flat_map(|_| 0..keep as i64).collect();
    }
    picks
        .par_chunks_mut(keep)
        .zip(features.par_chunks(n * d))
        .for_each(|(picks, features)| pick(features, n, d, picks));
    picks
}
