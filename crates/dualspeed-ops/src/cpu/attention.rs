//! Attention in strips of queries: two small products and a softmax that stays in the cache; masked keys are skipped.

use rayon::prelude::*;

use super::gemm::{MatMut, SharedBuffer, Threads, gemm};
use super::rows::zeros;
use super::simd::{exp, max_of, multiversion, sum_of, sum_of2};
use super::view::Heads;
use crate::types::AttentionSpec;

/// Queries per strip.
const STRIP: usize = 64;

multiversion! {
    /// Softmax of each row over its visible keys, zero beyond; `logsumexp` gets the log of the denominator.
    fn softmax_rows(scores: &mut [f32], width: usize, visible: &[usize], logsumexp: &mut [f32]) {
        let rows = scores.chunks_exact_mut(width).zip(visible).zip(logsumexp);
        for ((row, visible), logsumexp) in rows {
            let (row, hidden) = row.split_at_mut(*visible);
            let max = max_of(row);
            for value in row.iter_mut() {
                *value = exp(*value - max);
            }
            let sum = sum_of(row, |x| x);
            let scale = 1.0 / sum;
            for value in row.iter_mut() {
                *value *= scale;
            }
            hidden.fill(0.0);
            *logsumexp = max + sum.ln();
        }
    }
}

multiversion! {
    /// Scores to probabilities.
    fn probability_rows(scores: &mut [f32], width: usize, visible: &[usize], logsumexp: &[f32]) {
        let rows = scores.chunks_exact_mut(width).zip(visible).zip(logsumexp);
        for ((row, visible), logsumexp) in rows {
            let (row, hidden) = row.split_at_mut(*visible);
            for value in row {
                *value = exp(*value - logsumexp);
            }
            hidden.fill(0.0);
        }
    }
}

multiversion! {
    /// Gradient of the probabilities to gradient of the scores.
    fn score_grad_rows(
        grad: &mut [f32],
        probabilities: &[f32],
        width: usize,
        delta: &[f32],
        scale: f32,
    ) {
        let rows = grad.chunks_exact_mut(width).zip(probabilities.chunks_exact(width)).zip(delta);
        for ((grad, probabilities), delta) in rows {
            for (grad, p) in grad.iter_mut().zip(probabilities) {
                *grad = p * (*grad - delta) * scale;
            }
        }
    }
}

multiversion! {
    fn dot(x: &[f32], y: &[f32]) -> f32 {
        sum_of2(x, y, |x, y| x * y)
    }
}

fn scale(dim: usize) -> f32 {
    1.0 / (dim as f32).sqrt()
}

/// Strips of queries: `f(first, visible)` with the visible keys of each query of the strip, which never decrease;
/// strips that see nothing are left out.
fn for_strips(
    spec: &AttentionSpec,
    b: usize,
    sq: usize,
    sk: usize,
    mut f: impl FnMut(usize, &[usize], usize),
) {
    let mut visible = Vec::with_capacity(STRIP);
    for start in (0..sq).step_by(STRIP) {
        visible.clear();
        let end = (start + STRIP).min(sq);
        visible.extend((start..end).map(|i| spec.visible_keys(b, i, sq, sk)));
        let width = visible.last().copied().unwrap_or(0);
        if width > 0 {
            f(start, &visible, width);
        }
    }
}

/// The output in the memory order `[b, sq, hq, d]` and the log-sum-exp `[b, hq, sq]`.
#[allow(unsafe_code)]
pub(super) fn forward(
    q: &Heads<'_>,
    k: &Heads<'_>,
    v: &Heads<'_>,
    spec: &AttentionSpec,
) -> (Vec<f32>, Vec<f32>) {
    let (sq, sk, heads, dim) = (q.len, k.len, q.heads, q.dim);
    let mut out = zeros(q.batch * sq * heads * dim);
    let mut logsumexp = vec![f32::NEG_INFINITY; q.batch * heads * sq];
    if out.is_empty() {
        return (out, logsumexp);
    }
    let group = heads / k.heads;
    let shared = SharedBuffer::new(&mut out);
    logsumexp.par_chunks_mut(sq).enumerate().for_each_init(
        || zeros(STRIP * sk),
        |scratch, (task, logsumexp)| {
            let (b, h) = (task / heads, task % heads);
            let (keys, values) = (k, v);
            for_strips(spec, b, sq, sk, |start, visible, width| {
                let n = visible.len();
                let scores = &mut scratch[..n * width];
                let q = q.mat(b, h, start, n);
                let k = keys.mat(b, h / group, 0, width).t();
                gemm(MatMut::new(scores, n, width), false, scale(dim), q, k, Threads::One);
                softmax_rows(scores, width, visible, &mut logsumexp[start..start + n]);
                let weights = super::gemm::Mat::new(scores, n, width);
                let v = values.mat(b, h / group, 0, width);
                let offset = ((b * sq + start) * heads + h) * dim;
                // SAFETY: a task writes the rows of its own batch row and head, one strip after the other.
                let out = unsafe { shared.mat(offset, n, dim, heads * dim) };
                gemm(out, false, 1.0, weights, v, Threads::One);
            });
            // Queries that see nothing inside a strip that sees something.
            for (i, value) in logsumexp.iter_mut().enumerate() {
                if spec.visible_keys(b, i, sq, sk) == 0 {
                    *value = f32::NEG_INFINITY;
                }
            }
        },
    );
    (out, logsumexp)
}

/// Gradients for `q`, `k`, `v` where needed, in the memory order `[b, s, h, d]`.
#[allow(unsafe_code)]
pub(super) fn backward(
    [q, k, v]: [&Heads<'_>; 3],
    spec: &AttentionSpec,
    [output, grad]: [&Heads<'_>; 2],
    logsumexp: &[f32],
    [needs_q, needs_k, needs_v]: [bool; 3],
) -> [Option<Vec<f32>>; 3] {
    let (sq, sk, heads, kv_heads, dim) = (q.len, k.len, q.heads, k.heads, q.dim);
    let group = heads / kv_heads;
    let buffer = |needed: bool, len: usize| zeros(if needed { len } else { 0 });
    let mut grad_q = buffer(needs_q, q.batch * sq * heads * dim);
    let mut grad_k = buffer(needs_k, k.batch * sk * kv_heads * dim);
    let mut grad_v = buffer(needs_v, k.batch * sk * kv_heads * dim);
    let shared = [&mut grad_q, &mut grad_k, &mut grad_v].map(|x| SharedBuffer::new(x));
    let [shared_q, shared_k, shared_v] = &shared;
    (0..k.batch * kv_heads).into_par_iter().for_each_init(
        || (zeros(STRIP * sk), zeros(STRIP * sk), Vec::with_capacity(STRIP)),
        |(weights, grads, delta), task| {
            let (b, kv) = (task / kv_heads, task % kv_heads);
            let key_offset = (b * sk * kv_heads + kv) * dim;
            for h in kv * group..(kv + 1) * group {
                let logsumexp = &logsumexp[(b * heads + h) * sq..][..sq];
                for_strips(spec, b, sq, sk, |start, visible, width| {
                    let n = visible.len();
                    let weights = &mut weights[..n * width];
                    let queries = q.mat(b, h, start, n);
                    let grad_out = grad.mat(b, h, start, n);
                    let keys = k.mat(b, kv, 0, width);
                    let dst = MatMut::new(weights, n, width);
                    gemm(dst, false, scale(dim), queries, keys.t(), Threads::One);
                    probability_rows(weights, width, visible, &logsumexp[start..start + n]);
                    let weights_mat = super::gemm::Mat::new(weights, n, width);
                    if needs_v {
                        // SAFETY: only this task writes the keys of its batch row and key head.
                        let dst = unsafe { shared_v.mat(key_offset, width, dim, kv_heads * dim) };
                        gemm(dst, true, 1.0, weights_mat.t(), grad_out, Threads::One);
                    }
                    if !needs_q && !needs_k {
                        return;
                    }
                    let grads = &mut grads[..n * width];
                    let values = v.mat(b, kv, 0, width).t();
                    gemm(MatMut::new(grads, n, width), false, 1.0, grad_out, values, Threads::One);
                    delta.clear();
                    delta.extend(
                        (start..start + n).map(|i| dot(grad.row(b, h, i), output.row(b, h, i))),
                    );
                    score_grad_rows(grads, weights, width, delta, scale(dim));
                    let grads = super::gemm::Mat::new(grads, n, width);
                    if needs_q {
                        let offset = ((b * sq + start) * heads + h) * dim;
                        // SAFETY: only this task writes the queries of its batch row and heads.
                        let dst = unsafe { shared_q.mat(offset, n, dim, heads * dim) };
                        gemm(dst, false, 1.0, grads, keys, Threads::One);
                    }
                    if needs_k {
                        // SAFETY: only this task writes the keys of its batch row and key head.
                        let dst = unsafe { shared_k.mat(key_offset, width, dim, kv_heads * dim) };
                        gemm(dst, true, 1.0, grads.t(), queries, Threads::One);
                    }
                });
            }
        },
    );
    [needs_q.then_some(grad_q), needs_k.then_some(grad_k), needs_v.then_some(grad_v)]
}
