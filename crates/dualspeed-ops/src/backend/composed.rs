//! Default bodies that are made of other operations of [`Backend`].

use burn::tensor::ops::FloatTensor;

use super::Backend;
use crate::types::{AttentionGrads, AttentionSpec, RotaryAttentionOutput};

/// Rotates queries and keys, then attends.
pub(crate) fn rotary_attention<B: Backend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    [cos, sin]: [FloatTensor<B>; 2],
    spec: &AttentionSpec,
) -> RotaryAttentionOutput<B> {
    let q = B::fused_rope(q, cos.clone(), sin.clone());
    let k = B::fused_rope(k, cos, sin);
    let attention = B::fused_attention(q.clone(), k.clone(), v, spec);
    RotaryAttentionOutput { q, k, rotated: true, attention }
}

/// Gradients of [`rotary_attention`] for queries and keys before the rotation, and for values.
pub(crate) fn rotary_attention_backward<B: Backend>(
    v: FloatTensor<B>,
    [cos, sin]: [FloatTensor<B>; 2],
    spec: &AttentionSpec,
    forward: RotaryAttentionOutput<B>,
    grad: FloatTensor<B>,
) -> AttentionGrads<B> {
    let RotaryAttentionOutput { q, k, rotated, attention } = forward;
    let rotate = |x| match rotated {
        true => x,
        false => B::fused_rope(x, cos.clone(), sin.clone()),
    };
    let (q, k) = (rotate(q), rotate(k));
    let grads = B::fused_attention_backward(q, k, v, spec, attention, grad, [true; 3]);
    let back = |grad| B::fused_rope_backward(cos.clone(), sin.clone(), grad);
    AttentionGrads { q: grads.q.map(back), k: grads.k.map(back), v: grads.v }
}

/// `sum + term`, where absent tensors count as zero; `None` where `term`, the gradient that was asked for, is absent.
pub(crate) fn add<B: Backend>(
    sum: Option<FloatTensor<B>>,
    term: Option<FloatTensor<B>>,
) -> Option<FloatTensor<B>> {
    match (sum, term) {
        (Some(sum), Some(term)) => Some(B::float_add(sum, term)),
        (_, term) => term,
    }
}
