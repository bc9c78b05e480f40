//! The body of a decoder block, forward and backward, made of the other operations of [`Backend`].
//!
//! On a backend that overrides none of them it is plain Burn: the reference of every fused block.

mod backward;
mod forward;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape, TensorMetadata};

pub(crate) use backward::backward;
pub(crate) use forward::forward;

use super::Backend;
use crate::block::{
    BlockCache, BlockContext, BlockDropout, BlockParams, Keep, KeysValues, PerTarget, Target,
};
use crate::dropout::{Dropout, DropoutKeys};
use crate::types::{LoraAdapter, RotaryAttentionOutput};

/// What a layer's adapter leaves for its backward pass.
#[derive(Clone, Debug)]
pub(crate) struct LowRank<B: Backend> {
    /// The rank-r activation.
    hidden: FloatTensor<B>,
    /// The input after dropout.
    dropped: Option<FloatTensor<B>>,
}

/// The attention half up to the output projection.
#[derive(Clone, Debug)]
pub(crate) struct Attended<B: Backend> {
    /// The query product, `[rows, h * d_head]`, where a norm follows it.
    q_product: Option<FloatTensor<B>>,
    /// The key product, `[rows, h_kv * d_head]`, where a norm follows it.
    k_product: Option<FloatTensor<B>>,
    /// Values, `[b, h_kv, s, d_head]`.
    v: FloatTensor<B>,
    /// Attention output with its queries and keys.
    rotary: RotaryAttentionOutput<B>,
    q_low_rank: Option<LowRank<B>>,
    k_low_rank: Option<LowRank<B>>,
    v_low_rank: Option<LowRank<B>>,
}

/// The two products before SwiGLU.
#[derive(Clone, Debug)]
pub(crate) struct Gated<B: Backend> {
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
    gate_low_rank: Option<LowRank<B>>,
    up_low_rank: Option<LowRank<B>>,
}

/// The factors of the adapters.
type Factors<B> = PerTarget<Option<(FloatTensor<B>, FloatTensor<B>)>>;

/// What a forward pass keeps; what is `None` the backward pass computes again.
#[derive(Clone, Debug)]
pub(crate) struct Saved<B: Backend> {
    /// Input, `[rows, d]`.
    x: FloatTensor<B>,
    /// After the first norm.
    normed: Option<FloatTensor<B>>,
    attended: Option<Attended<B>>,
    /// After the attention's residual sum, with the rank-r activation of the output projection.
    mid: Option<(FloatTensor<B>, Option<LowRank<B>>)>,
    /// After the second norm.
    mid_normed: Option<FloatTensor<B>>,
    gated: Option<Gated<B>>,
    /// After SwiGLU, with the rank-r activation of the last projection.
    act: Option<(FloatTensor<B>, Option<LowRank<B>>)>,
    /// The adapters in the type of the activations.
    factors: Option<Factors<B>>,
    /// Dropout keys of the wanted rows.
    wanted_keys: Option<DropoutKeys<B>>,
}

/// A block with all that its parts need to run.
struct Run<'a, B: Backend> {
    params: &'a BlockParams<FloatTensor<B>>,
    ctx: &'a BlockContext<B>,
    keep: Keep,
    /// The adapters in the type of the activations.
    factors: Factors<B>,
    /// Dropout keys of the wanted rows, where rows were selected and there is dropout.
    wanted_keys: Option<DropoutKeys<B>>,
}

/// All adapters in `dtype`, by one operation.
fn factors<B: Backend>(params: &BlockParams<FloatTensor<B>>, dtype: DType) -> Factors<B> {
    let pairs = params.linear.iter().filter_map(|(_, layer)| layer.lora.as_ref());
    let flat = pairs.flat_map(|(a, b)| [a.clone(), b.clone()]).collect();
    let mut flat = B::fused_cast(flat, dtype).into_iter();
    params.linear.map(|layer| layer.lora.as_ref().and_then(|_| flat.next().zip(flat.next())))
}

/// Dropout keys of the wanted rows, where rows are selected and there is dropout.
fn wanted_keys<B: Backend>(ctx: &BlockContext<B>) -> Option<DropoutKeys<B>> {
    let dropout = ctx.dropout.as_ref().filter(|dropout| dropout.p > 0.0)?;
    let rows = ctx.rows.as_ref()?;
    Some(dropout.keys.select(&rows.ids, &B::int_device(&rows.on_device)))
}

impl<B: Backend> Run<'_, B> {
    fn norm(&self, x: &FloatTensor<B>, weight: &FloatTensor<B>) -> FloatTensor<B> {
        B::fused_rms_norm(x.clone(), weight.clone(), self.ctx.eps)
    }

    /// The wanted rows of `[rows, d]`.
    fn select(&self, x: FloatTensor<B>) -> FloatTensor<B> {
        match &self.ctx.rows {
            Some(rows) => B::fused_select_rows(x, rows.on_device.clone()),
            None => x,
        }
    }

    /// The adapter of a layer.
    fn adapter(&self, target: Target) -> Option<LoraAdapter<B>> {
        let (a, b) = self.factors.get(target).clone()?;
        Some(LoraAdapter { a, b, scale: self.ctx.lora_scale, dropout: self.dropout(target) })
    }

    /// The dropout of a layer's adapter.
    fn dropout(&self, target: Target) -> Option<Dropout<B>> {
        let BlockDropout { keys, p, places } = self.ctx.dropout.as_ref()?;
        let keys = match target {
            Target::QProj | Target::KProj | Target::VProj => keys,
            // These see the wanted rows only.
            Target::OProj | Target::GateProj | Target::UpProj | Target::DownProj => {
                self.wanted_keys.as_ref().unwrap_or(keys)
            }
        };
        (*p > 0.0).then(|| Dropout { keys: keys.clone(), place: *places.get(target), p: *p })
    }

    /// Projections, rotation, attention: from the normed input.
    fn attend(&self, normed: &FloatTensor<B>, cache: Option<&mut BlockCache<B>>) -> Attended<B> {
        let BlockContext { batch, heads, kv_heads, cos, sin, attention: spec, .. } = self.ctx;
        let (q, q_low_rank) = self.linear(Target::QProj, normed.clone(), None);
        let (k, k_low_rank) = self.linear(Target::KProj, normed.clone(), None);
        let (v, v_low_rank) = self.linear(Target::VProj, normed.clone(), None);
        let (q, q_product) = self.head_norm(q, *heads, self.params.q_norm.as_ref());
        let (k, k_product) = self.head_norm(k, *kv_heads, self.params.k_norm.as_ref());
        let q = split_heads::<B>(q, *batch, *heads);
        let k = split_heads::<B>(k, *batch, *kv_heads);
        let v = split_heads::<B>(v, *batch, *kv_heads);
        let tables = [cos.clone(), sin.clone()];
        let rotary = match cache {
            None => B::fused_rotary_attention(q, k, v.clone(), tables, spec),
            Some(cache) => {
                let [cos, sin] = tables;
                let q = B::fused_rope(q, cos.clone(), sin.clone());
                let new = KeysValues { keys: B::fused_rope(k, cos, sin), values: v.clone() };
                let KeysValues { keys, values } = cache.append(new);
                let attention = B::fused_attention(q.clone(), keys.clone(), values, spec);
                RotaryAttentionOutput { q, k: keys, rotated: true, attention }
            }
        };
        Attended { q_product, k_product, v, rotary, q_low_rank, k_low_rank, v_low_rank }
    }

    /// The norm of every head of `[rows, heads * d_head]`, where there is one: the result, and what it was computed from.
    fn head_norm(
        &self,
        x: FloatTensor<B>,
        heads: usize,
        weight: Option<&FloatTensor<B>>,
    ) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
        let Some(weight) = weight else { return (x, None) };
        let shape = x.shape();
        let normed = self.norm(&heads_as_rows::<B>(x.clone(), heads), weight);
        (B::float_reshape(normed, shape), Some(x))
    }

    /// Output projection and residual sum, at the wanted rows.
    fn mid(
        &self,
        x: &FloatTensor<B>,
        attended: &Attended<B>,
    ) -> (FloatTensor<B>, Option<LowRank<B>>) {
        let merged = merge_heads::<B>(attended.rotary.attention.output.clone());
        self.linear(Target::OProj, self.select(merged), Some(self.select(x.clone())))
    }

    /// The two products before SwiGLU, from the normed sum.
    fn gate(&self, mid_normed: &FloatTensor<B>) -> Gated<B> {
        let (gate, gate_low_rank) = self.linear(Target::GateProj, mid_normed.clone(), None);
        let (up, up_low_rank) = self.linear(Target::UpProj, mid_normed.clone(), None);
        Gated { gate, up, gate_low_rank, up_low_rank }
    }

    /// A linear layer, added to the residual stream where one is given, and what its adapter leaves.
    fn linear(
        &self,
        target: Target,
        x: FloatTensor<B>,
        residual: Option<FloatTensor<B>>,
    ) -> (FloatTensor<B>, Option<LowRank<B>>) {
        let layer = self.params.linear.get(target);
        let (weight, bias) = (layer.weight.clone(), layer.bias.clone());
        let Some(adapter) = self.adapter(target) else {
            let y = match residual {
                Some(residual) => B::fused_linear_add(x, weight, bias, residual),
                None => B::fused_linear(x, weight, bias),
            };
            return (y, None);
        };
        let out = match residual {
            Some(residual) => B::fused_lora_linear_add(x, weight, bias, adapter, residual),
            None => B::fused_lora_linear(x, weight, bias, adapter),
        };
        let dropped = out.dropped.filter(|_| self.keep >= Keep::All);
        (out.output, Some(LowRank { hidden: out.hidden, dropped }))
    }
}

/// `[rows, heads * d_head] -> [rows * heads, d_head]`.
fn heads_as_rows<B: Backend>(x: FloatTensor<B>, heads: usize) -> FloatTensor<B> {
    let shape = x.shape();
    let shape = Shape::new([shape[0] * heads, shape[1] / heads.max(1)]);
    B::float_reshape(x, shape)
}

/// `[b * s, h * d] -> [b, h, s, d]`, a view.
fn split_heads<B: Backend>(x: FloatTensor<B>, batch: usize, heads: usize) -> FloatTensor<B> {
    let shape = x.shape();
    let shape = Shape::new([batch, shape[0] / batch.max(1), heads, shape[1] / heads.max(1)]);
    B::float_swap_dims(B::float_reshape(x, shape), 1, 2)
}

/// `[b, h, s, d] -> [b * s, h * d]`.
fn merge_heads<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let shape = x.shape();
    let shape_out = Shape::new([shape[0] * shape[2], shape[1] * shape[3]]);
    B::float_reshape(B::float_swap_dims(x, 1, 2), shape_out)
}
