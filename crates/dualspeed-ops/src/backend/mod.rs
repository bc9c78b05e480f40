//! The extension trait.

mod composed;
pub(crate) mod decoder_block;

use burn::tensor::backend::{AutodiffBackend as BurnAutodiffBackend, Backend as BurnBackend};
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape, TensorData, TensorMetadata, try_read_sync};

use crate::block::{BlockCache, BlockContext, BlockParams, Keep};
use crate::dropout::{self, Dropout};
use crate::plain;
use crate::types::*;

pub(crate) use composed::{add, rotary_attention, rotary_attention_backward};

/// Burn's `Backend` plus the operations that decide the speed of multimodal training.
///
/// Every method has a body in plain Burn ([`plain`]), so an empty `impl` is enough. A forward method and its
/// `*_backward` are separate so that `Autodiff<B>` reaches the fast backward of `B`. Shapes are those of
/// [`functions`](crate::functions), on primitives of any rank. `needs` says which gradients are wanted, in the
/// order of the tensor arguments; the others stay `None` and cost nothing. The prefix keeps the names apart from
/// those of Burn's own traits.
pub trait Backend: BurnBackend {
    /// Runs `f`, which may call operations of this trait and change shapes, but must not call other operations of Burn on
    /// their results: a backend may hold the launches back until the end and send them as one.
    fn batched<R>(f: impl FnOnce() -> R) -> R {
        f()
    }

    /// Whether tensors live in host memory and an operation is done when its call returns: reading one costs nothing then, and
    /// nothing is gained by asking ahead.
    fn computes_on_host() -> bool {
        false
    }

    /// A device's memory, where the backend can tell.
    fn memory(_device: &Self::Device) -> Option<DeviceMemory> {
        None
    }

    /// A tensor from pieces that lie apart on the host, one after the other, little-endian: rows of a cache, pictures of a
    /// batch. The pieces are free again when this returns.
    ///
    /// # Panics
    /// When they do not add up to the shape.
    fn upload(
        parts: &[&[u8]],
        shape: Shape,
        dtype: DType,
        device: &Self::Device,
    ) -> FloatTensor<Self> {
        Self::float_from_data(TensorData::from_bytes_vec(parts.concat(), shape, dtype), device)
    }

    /// Asks for the values of an f32 tensor as they are now; the function that is returned waits for them. What is launched in
    /// between does not delay it where the backend can copy beside its work.
    fn read_later(tensor: FloatTensor<Self>) -> ReadLater {
        Box::new(move || {
            let data = try_read_sync(Self::float_into_data(tensor));
            let data = data.ok_or("the backend cannot read synchronously")?;
            let data = data.map_err(|error| error.to_string())?;
            Ok(data.iter::<f32>().collect())
        })
    }

    /// `x W + bias`: `x` is `[.., d_in]`, `weight` `[d_in, d_out]`, `bias` `[d_out]`.
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        plain::linear::<Self>(x, weight, bias)
    }

    /// Gradients of a linear layer, [`fused_linear`](Backend::fused_linear): that of `x` where the weight was saved, that of the
    /// weight where `x` was, that of the bias where its type was.
    fn fused_linear_backward(
        saved: LinearSaved<Self>,
        grad: FloatTensor<Self>,
    ) -> LinearGrads<Self> {
        plain::linear_backward::<Self>(saved, grad)
    }

    /// `x W + bias + scale (dropout(x) A) B`.
    fn fused_lora_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        adapter: LoraAdapter<Self>,
    ) -> LoraLinearOutput<Self> {
        plain::lora_linear::<Self>(x, weight, bias, adapter)
    }

    /// Gradients of a linear layer with an adapter, [`fused_lora_linear`](Backend::fused_lora_linear), for `x`, `weight`, `a`,
    /// `b`; that of the bias where its type was saved.
    fn fused_lora_linear_backward(
        saved: LoraLinearSaved<Self>,
        grad: FloatTensor<Self>,
        needs: [bool; 4],
    ) -> LoraLinearGrads<Self> {
        plain::lora_linear_backward::<Self>(saved, grad, needs)
    }

    /// `residual + x W + bias`: a linear layer onto a residual stream of its output's shape.
    fn fused_linear_add(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::float_add(residual, Self::fused_linear(x, weight, bias))
    }

    /// `residual + x W + bias + scale (dropout(x) A) B`.
    fn fused_lora_linear_add(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        adapter: LoraAdapter<Self>,
        residual: FloatTensor<Self>,
    ) -> LoraLinearOutput<Self> {
        let out = Self::fused_lora_linear(x, weight, bias, adapter);
        LoraLinearOutput { output: Self::float_add(residual, out.output), ..out }
    }

    /// Gradients of a linear layer with `sum` added to that of `x`: for an input that several layers read.
    fn fused_linear_backward_add(
        saved: LinearSaved<Self>,
        grad: FloatTensor<Self>,
        sum: Option<FloatTensor<Self>>,
    ) -> LinearGrads<Self> {
        let out = Self::fused_linear_backward(saved, grad);
        LinearGrads { x: add::<Self>(sum, out.x), ..out }
    }

    /// Gradients of a linear layer with an adapter, with `sum` added to that of `x`: for an input that several layers read.
    fn fused_lora_linear_backward_add(
        saved: LoraLinearSaved<Self>,
        grad: FloatTensor<Self>,
        needs: [bool; 4],
        sum: Option<FloatTensor<Self>>,
    ) -> LoraLinearGrads<Self> {
        let out = Self::fused_lora_linear_backward(saved, grad, needs);
        LoraLinearGrads { x: add::<Self>(sum, out.x), ..out }
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

    /// Gradients of an RMS norm for `x`, `weight`, with `around`, the gradient that bypasses the norm, added to that of `x`.
    fn fused_rms_norm_backward_add(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
        grad: FloatTensor<Self>,
        around: FloatTensor<Self>,
        needs: [bool; 2],
    ) -> NormGrads<Self> {
        let out = Self::fused_rms_norm_backward(x, weight, eps, grad, needs);
        NormGrads { x: out.x.map(|x| Self::float_add(around, x)), ..out }
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

    /// Attention of queries `[b, hq, s, d]` over keys and values `[b, hkv, s, d]` after the rotation of queries and keys by `cos`
    /// and `sin` `[1 or b, s, d/2]`.
    fn fused_rotary_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        [cos, sin]: [FloatTensor<Self>; 2],
        spec: &AttentionSpec,
    ) -> RotaryAttentionOutput<Self> {
        rotary_attention(q, k, v, [cos, sin], spec)
    }

    /// Gradients of [`fused_rotary_attention`](Backend::fused_rotary_attention) for queries and keys before the rotation, and for
    /// `v`.
    fn fused_rotary_attention_backward(
        v: FloatTensor<Self>,
        [cos, sin]: [FloatTensor<Self>; 2],
        spec: &AttentionSpec,
        forward: RotaryAttentionOutput<Self>,
        grad: FloatTensor<Self>,
    ) -> AttentionGrads<Self> {
        rotary_attention_backward(v, [cos, sin], spec, forward, grad)
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

    /// `x` with dropout, `[.., d]` with as many rows as keys, plus `sum` of the same shape. It is its own backward.
    fn fused_dropout(
        x: FloatTensor<Self>,
        dropout: &Dropout<Self>,
        sum: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        dropout::dropout::<Self>(x, dropout, sum)
    }

    /// The tensors in another floating-point type.
    fn fused_cast(tensors: Vec<FloatTensor<Self>>, dtype: DType) -> Vec<FloatTensor<Self>> {
        let cast = |tensor: FloatTensor<Self>| match tensor.dtype() == dtype {
            true => tensor,
            false => Self::float_cast(tensor, dtype.into()),
        };
        tensors.into_iter().map(cast).collect()
    }

    /// Rows `ids` `[m]` of `x` `[n, d]`, `[m, d]`; a row may be picked any number of times.
    fn fused_select_rows(x: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        Self::float_select(x, 0, ids)
    }

    /// Gradient of [`fused_select_rows`](Backend::fused_select_rows) for `x` of `n` rows.
    fn fused_select_rows_backward(
        ids: IntTensor<Self>,
        n: usize,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        plain::select_rows_backward::<Self>(ids, n, grad)
    }

    /// A whole decoder block, `[rows, d] -> [wanted rows, d]`, made of other operations of this trait. A cache takes the keys
    /// and values.
    fn fused_decoder_block(
        x: FloatTensor<Self>,
        params: BlockParams<FloatTensor<Self>>,
        ctx: &BlockContext<Self>,
        cache: Option<&mut BlockCache<Self>>,
    ) -> FloatTensor<Self> {
        // Without gradients nothing is kept.
        decoder_block::forward(x, &params, ctx, Keep::Input, cache).0
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

    /// One step of AdamW on all tensors at once, after clipping the norm of all gradients together; consumes parameters
    /// and moments, so that they may be updated in place. Where a loss of `guard`, the norm or a new value is not finite,
    /// nothing is changed; the host need not know.
    fn fused_adamw(
        tensors: Vec<AdamWTensor<Self>>,
        guard: AdamWGuard<Self>,
        config: AdamWConfig,
    ) -> AdamWOutput<Self> {
        plain::adamw::<Self>(tensors, guard, config)
    }
}

/// The bound of training code: a [`Backend`] with gradients whose inner backend is a [`Backend`] too.
pub trait AutodiffBackend: Backend + BurnAutodiffBackend<InnerBackend: Backend> {}

impl<B> AutodiffBackend for B where B: Backend + BurnAutodiffBackend<InnerBackend: Backend> {}
