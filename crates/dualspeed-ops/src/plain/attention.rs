//! Attention through a score matrix, which only this plain body materialises.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Bool, Int, Tensor, TensorData};

use super::{cast, primitive, tensor, widen};
use crate::types::*;

/// Stands for minus infinity: finite, so that a row without visible keys does not become NaN.
const MASKED: f64 = -1e30;

/// Default body of [`Backend::fused_attention`](crate::Backend::fused_attention).
pub fn attention<B: Backend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    spec: &AttentionSpec,
) -> AttentionOutput<B> {
    let (q, k, v) = (tensor::<B, 4>(q), tensor::<B, 4>(k), tensor::<B, 4>(v));
    let [b, hq, sq, d] = q.dims();
    let dtype = q.dtype();
    let (scores, mask) = scores(q, k, spec); // [b, hq, sq, sk]
    let max = scores.clone().max_dim(3);
    let sum = (scores.clone() - max.clone()).exp().sum_dim(3);
    let logsumexp = max + sum.log(); // [b, hq, sq, 1]
    let weights = probabilities(scores, logsumexp.clone(), mask);
    let output = grouped(cast(weights, dtype), &v).matmul(v);
    AttentionOutput {
        output: primitive(output.reshape([b, hq, sq, d])),
        logsumexp: primitive(logsumexp.squeeze_dim::<3>(3)),
    }
}

/// Default body of [`Backend::fused_attention_backward`](crate::Backend::fused_attention_backward).
pub fn attention_backward<B: Backend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    spec: &AttentionSpec,
    forward: AttentionOutput<B>,
    grad: FloatTensor<B>,
    [needs_q, needs_k, needs_v]: [bool; 3],
) -> AttentionGrads<B> {
    let (q, k, v) = (tensor::<B, 4>(q), tensor::<B, 4>(k), tensor::<B, 4>(v));
    let (grad, output) = (tensor::<B, 4>(grad), tensor::<B, 4>(forward.output));
    let (dtype, [b, hq, sq, d]) = (q.dtype(), q.dims());
    let (scores, mask) = scores(q.clone(), k.clone(), spec);
    let sk = k.dims()[2];
    let logsumexp = tensor::<B, 3>(forward.logsumexp).unsqueeze_dim::<4>(3);
    let weights = probabilities(scores, logsumexp, mask); // [b, hq, sq, sk]

    let grad_v = needs_v.then(|| {
        let weights = grouped(cast(weights.clone(), dtype), &v).swap_dims(2, 3);
        primitive(weights.matmul(grouped(grad.clone(), &v)))
    });
    if !needs_q && !needs_k {
        return AttentionGrads { q: None, k: None, v: grad_v };
    }
    let delta = (widen(grad.clone()) * widen(output)).sum_dim(3); // [b, hq, sq, 1]
    let grad_weights = grouped(grad, &v).matmul(v.swap_dims(2, 3)).reshape([b, hq, sq, sk]);
    let grad_scores = weights * (widen(grad_weights) - delta);
    let grad_scores = grouped(cast(grad_scores.mul_scalar(scale(d)), dtype), &k);
    let grad_q =
        needs_q.then(|| primitive(grad_scores.clone().matmul(k.clone()).reshape([b, hq, sq, d])));
    let grad_k = needs_k.then(|| primitive(grad_scores.swap_dims(2, 3).matmul(grouped(q, &k))));
    AttentionGrads { q: grad_q, k: grad_k, v: grad_v }
}

fn scale(d: usize) -> f64 {
    1.0 / (d as f64).sqrt()
}

/// `[b, hq, s, x]` as `[b, hkv, g * s, x]`: the queries that share a key head side by side.
fn grouped<B: Backend>(x: Tensor<B, 4>, keys: &Tensor<B, 4>) -> Tensor<B, 4> {
    let [b, hq, s, last] = x.dims();
    let hkv = keys.dims()[1];
    if hq == hkv { x } else { x.reshape([b, hkv, hq / hkv * s, last]) }
}

/// Masked scores in at least f32, and the mask (true: hidden).
fn scores<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    spec: &AttentionSpec,
) -> (Tensor<B, 4>, Option<Tensor<B, 4, Bool>>) {
    let ([b, hq, sq, d], sk) = (q.dims(), k.dims()[2]);
    let mask = hidden_keys::<B>(spec, [b, hq, sq, sk], &q.device());
    let product = grouped(q.mul_scalar(scale(d)), &k).matmul(k.swap_dims(2, 3));
    let scores = widen(product.reshape([b, hq, sq, sk]));
    match mask {
        Some(mask) => (scores.mask_fill(mask.clone(), MASKED), Some(mask)),
        None => (scores, None),
    }
}

fn probabilities<B: Backend>(
    scores: Tensor<B, 4>,
    logsumexp: Tensor<B, 4>,
    mask: Option<Tensor<B, 4, Bool>>,
) -> Tensor<B, 4> {
    let weights = (scores - logsumexp).exp();
    match mask {
        Some(mask) => weights.mask_fill(mask, 0.0),
        None => weights,
    }
}

fn hidden_keys<B: Backend>(
    spec: &AttentionSpec,
    shape: [usize; 4],
    device: &B::Device,
) -> Option<Tensor<B, 4, Bool>> {
    let [b, _, sq, sk] = shape;
    let (queries, keys) = (sq as i64, sk as i64);
    let key = Tensor::<B, 1, Int>::arange(0..keys, device).reshape([1, 1, 1, sk]);
    let future = spec.causal.then(|| {
        let position = Tensor::<B, 1, Int>::arange(keys - queries..keys, device);
        let position = position.reshape([1, 1, sq, 1]).expand([1, 1, sq, sk]);
        key.clone().expand([1, 1, sq, sk]).greater(position).expand(shape)
    });
    let padding = spec.key_lengths.as_ref().map(|lengths| {
        let lengths: Vec<i64> = lengths.iter().map(|length| *length as i64).collect();
        let lengths = Tensor::<B, 1, Int>::from_data(TensorData::new(lengths, [b]), device);
        let lengths = lengths.reshape([b, 1, 1, 1]).expand([b, 1, 1, sk]);
        key.expand([b, 1, 1, sk]).greater_equal(lengths).expand(shape)
    });
    let foreign = spec.segments.as_ref().map(|lengths| {
        let of_position: Vec<i64> = lengths
            .iter()
            .enumerate()
            .flat_map(|(segment, length)| std::iter::repeat_n(segment as i64, *length))
            .collect();
        let data = TensorData::new(of_position, [sk]);
        let segment = Tensor::<B, 1, Int>::from_data(data, device);
        let of_query = segment.clone().reshape([1, 1, sq, 1]).expand([1, 1, sq, sk]);
        segment.reshape([1, 1, 1, sk]).expand([1, 1, sq, sk]).not_equal(of_query).expand(shape)
    });
    [future, padding, foreign].into_iter().flatten().reduce(Tensor::bool_or)
}
