//! The forward pass of a block.

use burn::tensor::TensorMetadata;
use burn::tensor::ops::FloatTensor;

use super::{Run, Saved, factors, wanted_keys};
use crate::Backend;
use crate::block::{BlockCache, BlockContext, BlockParams, Keep, Target};

/// The block's output at the wanted rows, `[rows, d] -> [wanted, d]`, and what `keep` says of the way there.
///
/// With a cache, which takes the new keys and values, what is kept serves no backward pass.
pub(crate) fn forward<B: Backend>(
    x: FloatTensor<B>,
    params: &BlockParams<FloatTensor<B>>,
    ctx: &BlockContext<B>,
    keep: Keep,
    cache: Option<&mut BlockCache<B>>,
) -> (FloatTensor<B>, Saved<B>) {
    let (factors, wanted_keys) = (factors::<B>(params, x.dtype()), wanted_keys(ctx));
    let run = Run { params, ctx, keep, factors, wanted_keys };
    // What is not kept is let go as soon as it has been read.
    let normed = run.norm(&x, &params.input_layernorm); // [rows, d]
    let attended = run.attend(&normed, cache); // [b, h, s, d_head]
    let normed = (keep >= Keep::Activations).then_some(normed);
    let (mid, o_low_rank) = run.mid(&x, &attended); // [wanted, d]
    let attended = (keep >= Keep::Attention).then_some(attended);
    let mid_normed = run.norm(&mid, &params.post_attention_layernorm); // [wanted, d]
    let gated = run.gate(&mid_normed); // [wanted, d_mlp], twice
    let mid_normed = (keep >= Keep::Activations).then_some(mid_normed);
    let act = B::fused_swiglu(gated.gate.clone(), gated.up.clone()); // [wanted, d_mlp]
    let gated = (keep >= Keep::Products).then_some(gated);
    let (y, down_low_rank) = run.linear(Target::DownProj, act.clone(), Some(mid.clone())); // [wanted, d]
    let Run { factors, wanted_keys, .. } = run;
    let saved = Saved {
        x,
        normed,
        attended,
        mid: (keep >= Keep::Attention).then_some((mid, o_low_rank)),
        mid_normed,
        gated,
        act: (keep >= Keep::Activations).then_some((act, down_low_rank)),
        factors: (keep >= Keep::Products).then_some(factors),
        wanted_keys,
    };
    (y, saved)
}
