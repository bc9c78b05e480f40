//! The extension trait.

use burn::tensor::backend::{AutodiffBackend as BurnAutodiffBackend, Backend as BurnBackend};
use burn::tensor::ops::{FloatTensor, IntTensor};

use crate::plain;
use crate::types::*;

/// Burn's `Backend` plus the operations that decide the speed of multimodal training.
///
/// Every method has a body in plain Burn ([`plain`]), so an empty `impl` is enough. A forward method and its
/// `*_backward` are separate so that `Autodiff<B>` reaches the fast backward of `B`. Shapes are those of
/// [`functions`](crate::functions), on primitives of any rank. `needs` says which gradients are wanted, in the
/// order of the tensor arguments; the others stay `None` and cost nothing. The prefix keeps the names apart from
/// those of Burn's own traits.
pub trait Backend: BurnBackend {
    /// `x W + bias`: `x` is `[.., d_in]`, `weight` `[d_in, d_out]`, `bias` `[d_out]`.
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        plain::linear::<Self>(x, weight, bias)
    }

    /// Gradients of [`fused_linear`](Backend::fused_linear): that of `x` where `weight` is given, that of `weight` where `x`
    /// is given.
    fn fused_linear_backward(
        x: Option<FloatTensor<Self>>,
        weight: Option<FloatTensor<Self>>,
        needs_bias: bool,
        grad: FloatTensor<Self>,
    ) -> LinearGrads<Self> {
        plain::linear_backward::<Self>(x, weight, needs_bias, grad)
    }

    /// `x W + scale ((x * mask) A) B`.
    fn fused_lora_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f64,
        dropout_mask: Option<FloatTensor<Self>>,
    ) -> LoraLinearOutput<Self> {
        plain::lora_linear::<Self>(x, weight, a, b, scale, dropout_mask)
    }

    /// Gradients of [`fused_lora_linear`](Backend::fused_lora_linear) for `x`, `weight`, `a`, `b`.
    fn fused_lora_linear_backward(
        saved: LoraLinearSaved<Self>,
        grad: FloatTensor<Self>,
        needs: [bool; 4],
    ) -> LoraLinearGrads<Self> {
        plain::lora_linear_backward::<Self>(saved, grad, needs)
    }

    /// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension.
    fn fused_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        plain::rms_norm::<Self>(x, weight, eps)
    }

    /// Gradients of [`fused_rms_norm`](Backend::fused_rms_norm) for `x`, `weight`.
    fn fused_rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
        grad: FloatTensor<Self>,
        needs: [bool; 2],
    ) -> NormGrads<Self> {
        plain::rms_norm_backward::<Self>(x, weight, eps, grad, needs)
    }

    /// `(x - mean) / sqrt(var + eps) * weight + bias` over the last dimension, biased variance.
    fn fused_layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        plain::layer_norm::<Self>(x, weight, bias, eps)
    }

    /// Gradients of [`fused_layer_norm`](Backend::fused_layer_norm) for `x`, `weight`, `bias`.
    fn fused_layer_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
        grad: FloatTensor<Self>,
        needs: [bool; 3],
    ) -> NormGrads<Self> {
        plain::layer_norm_backward::<Self>(x, weight, eps, grad, needs)
    }

    /// `x Phi(x)`, the erf form.
    fn fused_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        plain::gelu::<Self>(x)
    }

    /// Gradient of [`fused_gelu`](Backend::fused_gelu).
    fn fused_gelu_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        plain::gelu_backward::<Self>(x, grad)
    }

    /// `x sigmoid(1.702 x)`, as in CLIP.
    fn fused_quick_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        plain::quick_gelu::<Self>(x)
    }

    /// Gradient of [`fused_quick_gelu`](Backend::fused_quick_gelu).
    fn fused_quick_gelu_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        plain::quick_gelu_backward::<Self>(x, grad)
    }

    /// `silu(gate) * up`.
    fn fused_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        plain::swiglu::<Self>(gate, up)
    }

    /// Gradients of [`fused_swiglu`](Backend::fused_swiglu) for `gate`, `up`.
    fn fused_swiglu_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        needs: [bool; 2],
    ) -> SwigluGrads<Self> {
        plain::swiglu_backward::<Self>(gate, up, grad, needs)
    }

    /// Rotary embedding of `x` `[b, h, s, d]`, halves paired; `cos`, `sin` `[1 or b, s, d/2]`.
    fn fused_rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        plain::rope::<Self>(x, cos, sin)
    }

    /// Gradient of [`fused_rope`](Backend::fused_rope) for `x`: the rotation backwards.
    fn fused_rope_backward(
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::fused_rope(grad, cos, Self::float_neg(sin))
    }

    /// `softmax(q k^T / sqrt(d)) v` with grouped queries: `q` `[b, hq, sq, d]`, `k`, `v` `[b, hkv, sk, d]`.
    fn fused_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spec: &AttentionSpec,
    ) -> AttentionOutput<Self> {
        plain::attention::<Self>(q, k, v, spec)
    }

    /// Gradients of [`fused_attention`](Backend::fused_attention) for `q`, `k`, `v`; the probabilities are computed again from
    /// `forward.logsumexp`.
    fn fused_attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spec: &AttentionSpec,
        forward: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        needs: [bool; 3],
    ) -> AttentionGrads<Self> {
        plain::attention_backward::<Self>(q, k, v, spec, forward, grad, needs)
    }

    /// `[n, 3]`: cross entropy, `tau^2 KL(teacher || student)` at temperature `tau`, and whether the arg max is the
    /// target, for logits `hidden lm_head` that are never kept.
    fn fused_token_losses(
        hidden: FloatTensor<Self>,
        lm_head: FloatTensor<Self>,
        targets: IntTensor<Self>,
        teacher: Option<FloatTensor<Self>>,
        tau: f64,
    ) -> FloatTensor<Self> {
        plain::token_losses::<Self>(hidden, lm_head, targets, teacher, tau)
    }

    /// Gradients of [`fused_token_losses`](Backend::fused_token_losses) for `hidden`, `lm_head`. `grad` is `[n, 3]`; its last
    /// column has no effect. The teacher's logits are constants.
    fn fused_token_losses_backward(
        hidden: FloatTensor<Self>,
        lm_head: FloatTensor<Self>,
        targets: IntTensor<Self>,
        teacher: Option<FloatTensor<Self>>,
        tau: f64,
        grad: FloatTensor<Self>,
        needs: [bool; 2],
    ) -> TokenLossesGrads<Self> {
        plain::token_losses_backward::<Self>(hidden, lm_head, targets, teacher, tau, grad, needs)
    }

    /// Max-min diverse `keep` rows of each `[n, d]` of `features` `[b, n, d]` by cosine distance, in pick order.
    fn fused_farthest_points(features: FloatTensor<Self>, keep: usize) -> IntTensor<Self> {
        plain::farthest_points::<Self>(features, keep)
    }

    /// Greedy MAP of the determinantal point process with kernel `F F^T` for each `F` `[n, d]` of `features`
    /// `[b, n, d]`: `keep` rows, in pick order.
    fn fused_greedy_map(features: FloatTensor<Self>, keep: usize) -> IntTensor<Self> {
        plain::greedy_map::<Self>(features, keep)
    }
}

/// The bound of training code: a [`Backend`] with gradients whose inner backend is a [`Backend`] too.
pub trait AutodiffBackend: Backend + BurnAutodiffBackend<InnerBackend: Backend> {}

impl<B> AutodiffBackend for B where B: Backend + BurnAutodiffBackend<InnerBackend: Backend> {}
