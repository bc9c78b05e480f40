//! RMSNorm and LayerNorm: each row is read once from memory.

use std::ops::Range;

use super::rows::{for_rows, reduce_rows, zeros};
use super::simd::{multiversion, sum_of, sum_of2};

/// Which norm.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Norm {
    /// No mean is subtracted.
    Rms,
    /// The mean is subtracted.
    Layer,
}

/// Mean and `1 / sqrt(var + eps)` of a row; the mean of RMSNorm is 0.
#[inline(always)]
fn statistics(row: &[f32], eps: f32, norm: Norm) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = if norm == Norm::Layer { sum_of(row, |x| x) / n } else { 0.0 };
    let square = sum_of(row, |x| (x - mean) * (x - mean)) / n;
    (mean, 1.0 / (square + eps).sqrt())
}

multiversion! {
    fn forward_kernel(
        x: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
        eps: f32,
        norm: Norm,
        out: &mut [f32],
    ) {
        let d = weight.len();
        for (out, x) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
            let (mean, scale) = statistics(x, eps, norm);
            match bias {
                Some(bias) => {
                    for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                        *out = (x - mean) * scale * weight + bias;
                    }
                }
                None => {
                    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                        *out = (x - mean) * scale * weight;
                    }
                }
            }
        }
    }
}

/// The normed rows.
pub(super) fn forward(
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f64,
    norm: Norm,
) -> Vec<f32> {
    let mut out = zeros(x.len());
    let d = weight.len();
    for_rows(&mut out, d, |start, piece| {
        let x = &x[start * d..start * d + piece.len()];
        forward_kernel(x, weight, bias, eps as f32, norm, piece);
    });
    out
}

multiversion! {
    fn backward_x_kernel(
        x: &[f32],
        weight: &[f32],
        grad: &[f32],
        eps: f32,
        norm: Norm,
        out: &mut [f32],
    ) {
        let d = weight.len();
        let rows = x.chunks_exact(d).zip(grad.chunks_exact(d));
        for (out, (x, grad)) in out.chunks_exact_mut(d).zip(rows) {
            let (mean, scale) = statistics(x, eps, norm);
            for ((out, grad), weight) in out.iter_mut().zip(grad).zip(weight) {
                *out = grad * weight;
            }
            let along = sum_of2(out, x, |g, x| g * ((x - mean) * scale)) / d as f32;
            let constant = if norm == Norm::Layer { sum_of(out, |g| g) / d as f32 } else { 0.0 };
            for (out, x) in out.iter_mut().zip(x) {
                *out = (*out - constant - (x - mean) * scale * along) * scale;
            }
        }
    }
}

/// Gradient for the input.
pub(super) fn backward_x(
    x: &[f32],
    weight: &[f32],
    grad: &[f32],
    eps: f64,
    norm: Norm,
) -> Vec<f32> {
    let mut out = zeros(x.len());
    let d = weight.len();
    for_rows(&mut out, d, |start, piece| {
        let range = start * d..start * d + piece.len();
        backward_x_kernel(&x[range.clone()], weight, &grad[range], eps as f32, norm, piece);
    });
    out
}

multiversion! {
    fn backward_weight_kernel(
        x: &[f32],
        grad: &[f32],
        eps: f32,
        norm: Norm,
        weight: &mut [f32],
        bias: &mut [f32],
    ) {
        let d = weight.len();
        for (x, grad) in x.chunks_exact(d).zip(grad.chunks_exact(d)) {
            let (mean, scale) = statistics(x, eps, norm);
            for ((weight, x), grad) in weight.iter_mut().zip(x).zip(grad) {
                *weight += (x - mean) * scale * grad;
            }
            for (bias, grad) in bias.iter_mut().zip(grad) {
                *bias += grad;
            }
        }
    }
}

/// Gradients for weight and bias, each `[d]`; that of the bias is empty for RMSNorm.
pub(super) fn backward_weight(
    x: &[f32],
    grad: &[f32],
    d: usize,
    eps: f64,
    norm: Norm,
) -> (Vec<f32>, Vec<f32>) {
    let columns = if norm == Norm::Layer { 2 * d } else { d };
    let rows = x.len().checked_div(d).unwrap_or(0);
    let mut weight = reduce_rows(rows, d, columns, |Range { start, end }, partial| {
        let (weight, bias) = partial.split_at_mut(d);
        let range = start * d..end * d;
        backward_weight_kernel(&x[range.clone()], &grad[range], eps as f32, norm, weight, bias);
    });
    let bias = weight.split_off(d);
    (weight, bias)
}
