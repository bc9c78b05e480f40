//! Node of a whole decoder block.

use burn::tensor::ops::FloatTensor;
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops};

use super::{Tracked, constant, inner_keys, node, register};
use crate::Backend;
use crate::backend::decoder_block::{Saved, backward, forward};
use crate::block::{BlockCache, BlockContext, BlockDropout, BlockParams, SLOTS, SelectedRows};

const PARENTS: usize = 1 + SLOTS;

#[derive(Debug)]
struct DecoderBlock;

#[derive(Clone, Debug)]
struct State<B: Backend> {
    saved: Saved<B>,
    params: BlockParams<FloatTensor<B>>,
    ctx: BlockContext<B>,
    needs: BlockParams<bool>,
}

impl<B: Backend> Backward<B, PARENTS> for DecoderBlock {
    type State = State<B>;

    fn backward(self, ops: Ops<Self::State, PARENTS>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let State { saved, params, ctx, needs } = ops.state;
        let mut parents = ops.parents.into_iter().map(|parent| parent.map(|node| node.id));
        let x = parents.next().flatten();
        let (grad_x, param_grads) =
            B::batched(|| backward(saved, &params, &ctx, grad, x.is_some(), &needs));
        register::<B>(grads, x, grad_x);
        for (parent, grad) in parents.zip(param_grads.slots()) {
            register::<B>(grads, parent, grad.flatten());
        }
    }
}

pub(super) fn decoder_block<B: Backend, C: CheckpointStrategy>(
    x: Tracked<B, C>,
    params: BlockParams<Tracked<B, C>>,
    ctx: &BlockContext<Autodiff<B, C>>,
    cache: Option<&mut BlockCache<Autodiff<B, C>>>,
) -> Tracked<B, C> {
    let inner = params.map(|param| param.primitive.clone());
    let needs = params.map(|param| param.is_tracked());
    let ctx = inner_context(ctx);
    if let Some(cache) = cache {
        let mut past = cache.map(|tensor| tensor.primitive.clone());
        let output = B::fused_decoder_block(x.primitive, inner, &ctx, Some(&mut past));
        *cache = past.map(|tensor| constant::<B, C>(tensor.clone()));
        return constant::<B, C>(output);
    }
    if !x.is_tracked() && !needs.any() {
        let output = B::batched(|| B::fused_decoder_block(x.primitive, inner, &ctx, None));
        return constant::<B, C>(output);
    }
    let (output, saved) = B::batched(|| forward(x.primitive.clone(), &inner, &ctx, ctx.keep, None));
    // A parameter that the block does not have has an untracked stand-in as parent.
    let absent = constant::<B, C>(x.primitive.clone());
    let slots = params.slots();
    let parents: [&Tracked<B, C>; PARENTS] = std::array::from_fn(|index| match index {
        0 => &x,
        _ => slots[index - 1].as_ref().unwrap_or(&absent),
    });
    let state = State { saved, params: inner, ctx, needs };
    node::<B, C, _, PARENTS>(DecoderBlock, parents, state, output)
}

fn inner_context<B: Backend, C: CheckpointStrategy>(
    ctx: &BlockContext<Autodiff<B, C>>,
) -> BlockContext<B> {
    BlockContext {
        batch: ctx.batch,
        heads: ctx.heads,
        kv_heads: ctx.kv_heads,
        eps: ctx.eps,
        cos: ctx.cos.primitive.clone(),
        sin: ctx.sin.primitive.clone(),
        attention: ctx.attention.clone(),
        lora_scale: ctx.lora_scale,
        dropout: ctx.dropout.as_ref().map(|dropout| BlockDropout {
            keys: inner_keys(&dropout.keys),
            p: dropout.p,
            places: dropout.places,
        }),
        rows: ctx
            .rows
            .as_ref()
            .map(|rows| SelectedRows { ids: rows.ids.clone(), on_device: rows.on_device.clone() }),
        keep: ctx.keep,
    }
}
