//! [`Backend`] for `Autodiff<B, C>`: every operation is one node of the graph with a hand-written backward.
//!
//! An operation none of whose inputs is tracked runs as on the inner backend and saves nothing. Otherwise it saves
//! what the wanted gradients need, and the backward computes those only: a frozen weight costs no gradient product.

mod attention;
mod block;
mod elementwise;
mod linear;
mod losses;
mod norm;
mod select;

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::{FloatTensor, FloatTensorOps, IntTensor};
use burn::tensor::{DType, Shape};
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, OpsKind};
use burn_autodiff::{Autodiff, NodeId};

use crate::Backend;
use crate::block::{BlockCache, BlockContext, BlockParams};
use crate::dropout::{Dropout, DropoutKeys};
use crate::types::*;

/// A tracked primitive.
type Tracked<B, C> = FloatTensor<Autodiff<B, C>>;

fn constant<B: Backend, C: CheckpointStrategy>(primitive: FloatTensor<B>) -> Tracked<B, C> {
    <Autodiff<B, C> as AutodiffBackend>::from_inner(primitive)
}

/// Registers `op` as the origin of `output`; the caller has checked that one of the parents is tracked.
fn node<B, C, O, const N: usize>(
    op: O,
    parents: [&Tracked<B, C>; N],
    state: O::State,
    output: FloatTensor<B>,
) -> Tracked<B, C>
where
    B: Backend,
    C: CheckpointStrategy,
    O: Backward<B, N>,
{
    let nodes = parents.map(|parent| parent.node.clone());
    match op.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(state, output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    }
}

fn register<B: Backend>(
    grads: &mut Gradients,
    parent: Option<NodeId>,
    grad: Option<FloatTensor<B>>,
) {
    if let (Some(id), Some(grad)) = (parent, grad) {
        grads.register::<B>(id, grad);
    }
}

fn inner_keys<B: Backend, C: CheckpointStrategy>(
    keys: &DropoutKeys<Autodiff<B, C>>,
) -> DropoutKeys<B> {
    DropoutKeys { rows: keys.rows.clone(), on_device: keys.on_device.clone() }
}

fn inner_dropout<B: Backend, C: CheckpointStrategy>(
    dropout: &Dropout<Autodiff<B, C>>,
) -> Dropout<B> {
    Dropout { keys: inner_keys(&dropout.keys), place: dropout.place, p: dropout.p }
}

impl<B: Backend, C: CheckpointStrategy> Backend for Autodiff<B, C> {
    fn upload(
        parts: &[&[u8]],
        shape: Shape,
        dtype: DType,
        device: &Self::Device,
    ) -> FloatTensor<Self> {
        constant::<B, C>(B::upload(parts, shape, dtype, device))
    }

    fn read_later(tensor: FloatTensor<Self>) -> ReadLater {
        B::read_later(tensor.primitive)
    }

    fn computes_on_host() -> bool {
        B::computes_on_host()
    }

    fn memory(device: &Self::Device) -> Option<DeviceMemory> {
        B::memory(device)
    }

    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        linear::linear::<B, C>(x, weight, bias)
    }

    fn fused_linear_add(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let tracked = [Some(&x), Some(&weight), bias.as_ref(), Some(&residual)];
        if tracked.into_iter().flatten().any(|tensor| tensor.is_tracked()) {
            return Self::float_add(residual, Self::fused_linear(x, weight, bias));
        }
        let bias = bias.map(|bias| bias.primitive);
        constant::<B, C>(B::fused_linear_add(
            x.primitive,
            weight.primitive,
            bias,
            residual.primitive,
        ))
    }

    fn fused_lora_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        adapter: LoraAdapter<Self>,
    ) -> LoraLinearOutput<Self> {
        linear::lora_linear::<B, C>(x, weight, bias, adapter)
    }

    fn fused_dropout(
        x: FloatTensor<Self>,
        dropout: &Dropout<Self>,
        sum: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        linear::dropout::<B, C>(x, inner_dropout(dropout), sum)
    }

    fn fused_select_rows(x: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        select::select_rows::<B, C>(x, ids)
    }

    fn fused_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        norm::rms_norm::<B, C>(x, weight, eps)
    }

    fn fused_layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        norm::layer_norm::<B, C>(x, weight, bias, eps)
    }

    fn fused_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        elementwise::gelu::<B, C>(x)
    }

    fn fused_quick_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        elementwise::quick_gelu::<B, C>(x)
    }

    fn fused_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        elementwise::swiglu::<B, C>(gate, up)
    }

    fn fused_rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        elementwise::rope::<B, C>(x, cos, sin)
    }

    fn fused_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spec: &AttentionSpec,
    ) -> AttentionOutput<Self> {
        attention::attention::<B, C>(q, k, v, spec)
    }

    fn fused_token_losses(
        hidden: FloatTensor<Self>,
        lm_head: FloatTensor<Self>,
        targets: IntTensor<Self>,
        teacher: Option<FloatTensor<Self>>,
        tau: f64,
    ) -> FloatTensor<Self> {
        losses::token_losses::<B, C>(hidden, lm_head, targets, teacher, tau)
    }

    fn fused_decoder_block(
        x: FloatTensor<Self>,
        params: BlockParams<FloatTensor<Self>>,
        ctx: &BlockContext<Self>,
        cache: Option<&mut BlockCache<Self>>,
    ) -> FloatTensor<Self> {
        block::decoder_block::<B, C>(x, params, ctx, cache)
    }

    fn fused_farthest_points(features: FloatTensor<Self>, keep: usize) -> IntTensor<Self> {
        B::fused_farthest_points(features.primitive, keep)
    }

    fn fused_greedy_map(features: FloatTensor<Self>, keep: usize) -> IntTensor<Self> {
        B::fused_greedy_map(features.primitive, keep)
    }
}
