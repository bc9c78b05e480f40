//! Linear layers on top of matrix products.

use rayon::prelude::*;

use super::gemm::{Mat, MatMut, Threads, gemm};
use super::rows::{for_rows, reduce_rows, zeros};

/// `[m, n]` filled with a bias per column, or zeros.
fn biased(m: usize, n: usize, bias: Option<&[f32]>) -> Vec<f32> {
    let mut out = zeros(m * n);
    if let Some(bias) = bias {
        for_rows(&mut out, n, |_, piece| {
            piece.chunks_exact_mut(n).for_each(|row| row.copy_from_slice(bias));
        });
    }
    out
}

/// `x W + bias`: `[rows, d_in] x [d_in, d_out]`.
pub(super) fn forward(
    x: Mat<'_>,
    weight: Mat<'_>,
    m: usize,
    n: usize,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let mut out = biased(m, n, bias);
    gemm(MatMut::new(&mut out, m, n), bias.is_some(), 1.0, x, weight, Threads::All);
    out
}

/// `alpha a b` as a new `[m, n]`.
pub(super) fn product(a: Mat<'_>, b: Mat<'_>, m: usize, n: usize, alpha: f32) -> Vec<f32> {
    let mut out = zeros(m * n);
    gemm(MatMut::new(&mut out, m, n), false, alpha, a, b, Threads::All);
    out
}

/// `out += alpha a b`.
pub(super) fn add_product(out: &mut [f32], a: Mat<'_>, b: Mat<'_>, m: usize, n: usize, alpha: f32) {
    gemm(MatMut::new(out, m, n), true, alpha, a, b, Threads::All);
}

/// Sum over the rows of `[rows, d]`.
pub(super) fn column_sum(x: &[f32], d: usize) -> Vec<f32> {
    let rows = x.len().checked_div(d).unwrap_or(0);
    reduce_rows(rows, d, d, |range, partial| {
        for row in x[range.start * d..range.end * d].chunks_exact(d) {
            for (sum, value) in partial.iter_mut().zip(row) {
                *sum += value;
            }
        }
    })
}

/// Elementwise product.
pub(super) fn times(x: &[f32], y: &[f32]) -> Vec<f32> {
    x.par_iter().with_min_len(1 << 14).zip(y).map(|(x, y)| x * y).collect()
}

/// `x *= y`.
pub(super) fn times_in_place(x: &mut [f32], y: &[f32]) {
    x.par_iter_mut().with_min_len(1 << 14).zip(y).for_each(|(x, y)| *x *= y);
}

/// `x += y`.
pub(super) fn add_in_place(x: &mut [f32], y: &[f32]) {
    x.par_iter_mut().with_min_len(1 << 14).zip(y).for_each(|(x, y)| *x += y);
}
