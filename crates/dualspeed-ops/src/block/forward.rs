//! The forward pass of a block, and what it leaves for the backward pass.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape, TensorMetadata};

use super::{BlockContext, BlockDropout, BlockLinear, BlockParams, Keep};
use crate::Backend;
use crate::dropout::Dropout;
use crate::types::RotaryAttentionOutput;

/// What a layer's adapter leaves for its backward pass.
#[derive(Clone, Debug)]
pub(crate) struct LowRank<B: Backend> {
    /// The rank-r activation.
    pub hidden: FloatTensor<B>,
    /// The input after dropout.
    pub dropped: Option<FloatTensor<B>>,
}

/// Values as the attention took them (`[b, h, s, d]`), its output with queries and keys, and the adapters' rank-r
/// activations.
#[derive(Clone, Debug)]
pub(crate) struct Attended<B: Backend> {
    pub v: FloatTensor<B>,
    pub rotary: RotaryAttentionOutput<B>,
    pub low_rank: [Option<LowRank<B>>; 3],
}

/// The two products before SwiGLU.
#[derive(Clone, Debug)]
pub(crate) struct Gated<B: Backend> {
    pub gate: FloatTensor<B>,
    pub up: FloatTensor<B>,
    pub low_rank: [Option<LowRank<B>>; 2],
}

/// The adapters of the linear layers, in the order of [`BlockParams`]' fields.
pub(crate) type Adapters<B> = [Option<(FloatTensor<B>, FloatTensor<B>)>; 7];

/// What a forward pass keeps.
#[derive(Clone, Debug)]
pub(crate) struct Saved<B: Backend> {
    /// Input, `[rows, d]`.
    pub x: FloatTensor<B>,
    /// After the first norm.
    pub normed: Option<FloatTensor<B>>,
    pub attended: Option<Attended<B>>,
    /// After the attention's residual sum, with the rank-r activation of the output projection.
    pub mid: Option<(FloatTensor<B>, Option<LowRank<B>>)>,
    /// After the second norm.
    pub mid_normed: Option<FloatTensor<B>>,
    pub gated: Option<Gated<B>>,
    /// After SwiGLU, with the rank-r activation of the last projection.
    pub act: Option<(FloatTensor<B>, Option<LowRank<B>>)>,
    /// The adapters in the type of the activations.
    pub adapters: Option<Adapters<B>>,
}

/// All adapters in `dtype`, by one operation.
pub(super) fn adapters<B: Backend>(
    params: &BlockParams<FloatTensor<B>>,
    dtype: DType,
) -> Adapters<B> {
    let layers = params.layers();
    let factors = layers.iter().filter_map(|layer| layer.lora.as_ref());
    let factors = factors.flat_map(|(a, b)| [a.clone(), b.clone()]).collect();
    let mut factors = B::fused_cast(factors, dtype).into_iter();
    layers.map(|layer| layer.lora.as_ref().and_then(|_| factors.next().zip(factors.next())))
}

/// `[rows, d] -> [rows, d]`.
pub(crate) fn forward<B: Backend>(
    x: FloatTensor<B>,
    params: &BlockParams<FloatTensor<B>>,
    ctx: &BlockContext<B>,
) -> (FloatTensor<B>, Saved<B>) {
    let adapters = adapters::<B>(params, x.dtype());
    let params = &params.with_adapters(adapters.clone());
    let normed = B::fused_rms_norm(x.clone(), params.input_layernorm.clone(), ctx.eps);
    let attended = attend(&normed, params, ctx);
    let (mid, o_low_rank) = mid(&x, &attended, params, ctx);
    let mid_normed =
        B::fused_rms_norm(mid.clone(), params.post_attention_layernorm.clone(), ctx.eps);
    let gated = gate(&mid_normed, params, ctx);
    let act = B::fused_swiglu(gated.gate.clone(), gated.up.clone());
    let (y, down_low_rank) = ctx.linear(6, &params.down_proj, act.clone(), Some(mid.clone()));
    let keep = ctx.keep;
    let saved = Saved {
        x,
        normed: (keep >= Keep::Activations).then_some(normed),
        attended: (keep >= Keep::Attention).then_some(attended),
        mid: (keep >= Keep::Attention).then_some((mid, o_low_rank)),
        mid_normed: (keep >= Keep::Activations).then_some(mid_normed),
        gated: (keep >= Keep::Products).then_some(gated),
        act: (keep >= Keep::Activations).then_some((act, down_low_rank)),
        adapters: (keep >= Keep::Products).then_some(adapters),
    };
    (y, saved)
}

/// Projections, rotation, attention: from the normed input.
pub(super) fn attend<B: Backend>(
    normed: &FloatTensor<B>,
    params: &BlockParams<FloatTensor<B>>,
    ctx: &BlockContext<B>,
) -> Attended<B> {
    let (q, q_low) = ctx.linear(0, &params.q_proj, normed.clone(), None);
    let (k, k_low) = ctx.linear(1, &params.k_proj, normed.clone(), None);
    let (v, v_low) = ctx.linear(2, &params.v_proj, normed.clone(), None);
    let q = split_heads::<B>(q, ctx.batch, ctx.heads);
    let k = split_heads::<B>(k, ctx.batch, ctx.kv_heads);
    let v = split_heads::<B>(v, ctx.batch, ctx.kv_heads);
    let tables = [ctx.cos.clone(), ctx.sin.clone()];
    let rotary = B::fused_rotary_attention(q, k, v.clone(), tables, &ctx.attention);
    Attended { v, rotary, low_rank: [q_low, k_low, v_low] }
}

/// Output projection and residual sum.
pub(super) fn mid<B: Backend>(
    x: &FloatTensor<B>,
    attended: &Attended<B>,
    params: &BlockParams<FloatTensor<B>>,
    ctx: &BlockContext<B>,
) -> (FloatTensor<B>, Option<LowRank<B>>) {
    let merged = merge_heads::<B>(attended.rotary.attention.output.clone());
    ctx.linear(3, &params.o_proj, merged, Some(x.clone()))
}

/// The two products before SwiGLU, from the normed sum.
pub(super) fn gate<B: Backend>(
    mid_normed: &FloatTensor<B>,
    params: &BlockParams<FloatTensor<B>>,
    ctx: &BlockContext<B>,
) -> Gated<B> {
    let (gate, gate_low) = ctx.linear(4, &params.gate_proj, mid_normed.clone(), None);
    let (up, up_low) = ctx.linear(5, &params.up_proj, mid_normed.clone(), None);
    Gated { gate, up, low_rank: [gate_low, up_low] }
}

impl<B: Backend> BlockContext<B> {
    /// Linear layer `index` (in the order of the fields), added to the residual stream where one is given, and what its adapter
    /// leaves.
    pub(super) fn linear(
        &self,
        index: usize,
        layer: &BlockLinear<FloatTensor<B>>,
        x: FloatTensor<B>,
        residual: Option<FloatTensor<B>>,
    ) -> (FloatTensor<B>, Option<LowRank<B>>) {
        let weight = layer.weight.clone();
        let Some((a, b)) = layer.lora.clone() else {
            let y = match residual {
                Some(residual) => B::fused_linear_add(x, weight, None, residual),
                None => B::fused_linear(x, weight, None),
            };
            return (y, None);
        };
        let (dropout, scale) = (self.dropout(index), self.lora_scale);
        let out = match residual {
            Some(residual) => B::fused_lora_linear_add(x, weight, a, b, scale, dropout, residual),
            None => B::fused_lora_linear(x, weight, a, b, scale, dropout),
        };
        let dropped = out.dropped.filter(|_| self.keep >= Keep::All);
        (out.output, Some(LowRank { hidden: out.hidden, dropped }))
    }

    /// The dropout of adapter `index`.
    pub(super) fn dropout(&self, index: usize) -> Option<Dropout<B>> {
        let BlockDropout { keys, p, places } = self.dropout.as_ref()?;
        (*p > 0.0).then(|| Dropout { keys: keys.clone(), place: places[index], p: *p })
    }
}

/// `[b * s, h * d] -> [b, h, s, d]`, a view.
pub(super) fn split_heads<B: Backend>(
    x: FloatTensor<B>,
    batch: usize,
    heads: usize,
) -> FloatTensor<B> {
    let shape = x.shape();
    let shape = Shape::new([batch, shape[0] / batch.max(1), heads, shape[1] / heads.max(1)]);
    B::float_swap_dims(B::float_reshape(x, shape), 1, 2)
}

/// `[b, h, s, d] -> [b * s, h * d]`.
pub(super) fn merge_heads<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let shape = x.shape();
    let shape_out = Shape::new([shape[0] * shape[2], shape[1] * shape[3]]);
    B::float_reshape(B::float_swap_dims(x, 1, 2), shape_out)
}
