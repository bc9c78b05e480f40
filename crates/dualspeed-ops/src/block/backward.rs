//! The backward pass of a block, by hand: what was not kept is computed again, what is not trained costs nothing.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, TensorMetadata};

use super::forward::{LowRank, Saved, adapters, attend, gate, merge_heads, mid, split_heads};
use super::{BlockContext, BlockLinear, BlockParams};
use crate::Backend;
use crate::types::{LinearSaved, LoraLinearSaved};

/// Gradients of the parameters; `None` where not asked for.
type ParamGrads<B> = BlockParams<Option<FloatTensor<B>>>;
type LayerGrads<B> = BlockLinear<Option<FloatTensor<B>>>;

/// Gradients of the input (if `needs_x`) and of the parameters that `needs` names, from that of the output.
pub(crate) fn backward<B: Backend>(
    saved: Saved<B>,
    params: &BlockParams<FloatTensor<B>>,
    ctx: &BlockContext<B>,
    grad: FloatTensor<B>,
    needs_x: bool,
    needs: &BlockParams<bool>,
) -> (Option<FloatTensor<B>>, ParamGrads<B>) {
    let Saved { x, normed, attended, mid: kept_mid, mid_normed, gated, act, adapters: kept } =
        saved;
    let dtypes =
        params.layers().map(|layer| layer.lora.as_ref().map(|(a, b)| [a.dtype(), b.dtype()]));
    let kept = kept.unwrap_or_else(|| adapters::<B>(params, x.dtype()));
    let params = &params.with_adapters(kept);
    let norm = |x: &FloatTensor<B>, weight: &FloatTensor<B>| {
        B::fused_rms_norm(x.clone(), weight.clone(), ctx.eps)
    };
    let mut grads = ParamGrads::<B>::default();

    // A norm costs less than its result in memory until the end: it is computed where it is wanted.
    let before = |kept: &Option<FloatTensor<B>>, x: &FloatTensor<B>, weight: &FloatTensor<B>| {
        kept.clone().unwrap_or_else(|| norm(x, weight))
    };
    let (pre_norm, post_norm) = (&params.input_layernorm, &params.post_attention_layernorm);
    let attended = attended.unwrap_or_else(|| attend(&before(&normed, &x, pre_norm), params, ctx));
    let (mid, o_low_rank) = kept_mid.unwrap_or_else(|| mid(&x, &attended, params, ctx));
    let gated = gated.unwrap_or_else(|| gate(&before(&mid_normed, &mid, post_norm), params, ctx));
    let (act, down_low_rank) =
        act.unwrap_or_else(|| (B::fused_swiglu(gated.gate.clone(), gated.up.clone()), None));

    // MLP
    let (grad_act, down) = ctx.linear_backward(
        (6, dtypes[6]),
        &params.down_proj,
        act,
        down_low_rank,
        (grad.clone(), None),
        true,
        &needs.down_proj,
    );
    grads.down_proj = down;
    let grad_act = grad_act.expect("asked for");
    let swiglu = B::fused_swiglu_backward(gated.gate, gated.up, grad_act, [true, true]);
    let mid_normed = mid_normed.unwrap_or_else(|| norm(&mid, post_norm));
    let [gate_low, up_low] = gated.low_rank;
    let mut grad_normed = None;
    for (index, layer, low_rank, grad, needs, out) in [
        (4, &params.gate_proj, gate_low, swiglu.gate, &needs.gate_proj, &mut grads.gate_proj),
        (5, &params.up_proj, up_low, swiglu.up, &needs.up_proj, &mut grads.up_proj),
    ] {
        let grad = grad.expect("asked for");
        let input = mid_normed.clone();
        let (grad, index) = ((grad, grad_normed.take()), (index, dtypes[index]));
        (grad_normed, *out) = ctx.linear_backward(index, layer, input, low_rank, grad, true, needs);
    }
    drop(mid_normed);
    let through_norm = B::fused_rms_norm_backward_add(
        mid,
        post_norm.clone(),
        ctx.eps,
        grad_normed.expect("two layers added to it"),
        grad,
        [true, needs.post_attention_layernorm],
    );
    grads.post_attention_layernorm = through_norm.weight;
    let grad = through_norm.x.expect("asked for"); // of the sum in the middle

    // Attention
    let needs_normed = needs_x || needs.input_layernorm;
    let trains =
        |layer: &BlockLinear<bool>| layer.weight || layer.lora.is_some_and(|(a, b)| a || b);
    let needs_qkv =
        needs_normed || [&needs.q_proj, &needs.k_proj, &needs.v_proj].into_iter().any(trains);
    let merged = merge_heads::<B>(attended.rotary.attention.output.clone());
    let (grad_merged, o) = ctx.linear_backward(
        (3, dtypes[3]),
        &params.o_proj,
        merged,
        o_low_rank,
        (grad.clone(), None),
        needs_qkv,
        &needs.o_proj,
    );
    grads.o_proj = o;
    let Some(grad_merged) = grad_merged else { return (None, grads) };
    let through = B::fused_rotary_attention_backward(
        attended.v,
        [ctx.cos.clone(), ctx.sin.clone()],
        &ctx.attention,
        attended.rotary,
        split_heads::<B>(grad_merged, ctx.batch, ctx.heads),
    );
    let [q_low, k_low, v_low] = attended.low_rank;
    let normed = normed.unwrap_or_else(|| norm(&x, pre_norm));
    let mut grad_normed = None;
    for (index, layer, low_rank, grad, needs, out) in [
        (0, &params.q_proj, q_low, through.q, &needs.q_proj, &mut grads.q_proj),
        (1, &params.k_proj, k_low, through.k, &needs.k_proj, &mut grads.k_proj),
        (2, &params.v_proj, v_low, through.v, &needs.v_proj, &mut grads.v_proj),
    ] {
        let grad = merge_heads::<B>(grad.expect("asked for"));
        let input = normed.clone();
        let (grad, index) = ((grad, grad_normed.take()), (index, dtypes[index]));
        (grad_normed, *out) =
            ctx.linear_backward(index, layer, input, low_rank, grad, needs_normed, needs);
    }
    let Some(grad_normed) = grad_normed else { return (None, grads) };
    let through_norm = B::fused_rms_norm_backward_add(
        x,
        pre_norm.clone(),
        ctx.eps,
        grad_normed,
        grad,
        [needs_x, needs.input_layernorm],
    );
    grads.input_layernorm = through_norm.weight;
    (through_norm.x, grads)
}

impl<B: Backend> BlockContext<B> {
    /// Gradients of layer `index` (whose adapter's gradients are of `dtypes`) for its input and parameters; a missing rank-r activation is computed again. What comes
    /// with the gradient of the output is added to that of the input.
    fn linear_backward(
        &self,
        (index, dtypes): (usize, Option<[DType; 2]>),
        layer: &BlockLinear<FloatTensor<B>>,
        input: FloatTensor<B>,
        low_rank: Option<LowRank<B>>,
        (grad, sum): (FloatTensor<B>, Option<FloatTensor<B>>),
        needs_x: bool,
        needs: &BlockLinear<bool>,
    ) -> (Option<FloatTensor<B>>, LayerGrads<B>) {
        let weight = needs_x.then(|| layer.weight.clone());
        let Some((a, b)) = &layer.lora else {
            let weight_dtype = layer.weight.dtype();
            let x = needs.weight.then_some(input);
            let saved = LinearSaved { x, weight, weight_dtype, bias_dtype: None };
            let out = B::fused_linear_backward_add(saved, grad, sum);
            return (out.x, BlockLinear { weight: out.weight, lora: None });
        };
        let (needs_a, needs_b) = needs.lora.unwrap_or_default();
        let dropout = self.dropout(index);
        let (x, LowRank { hidden, dropped }) = match (low_rank, &dropout) {
            (Some(low_rank), _) => (Some(input), low_rank),
            (None, None) => {
                let hidden = B::fused_linear(input.clone(), a.clone(), None);
                (Some(input), LowRank { hidden, dropped: None })
            }
            (None, Some(dropout)) => {
                // What only the adapter reads may be written over.
                let x = needs.weight.then(|| input.clone());
                let dropped = B::fused_dropout(input, dropout, None);
                let hidden = B::fused_linear(dropped.clone(), a.clone(), None);
                (x, LowRank { hidden, dropped: Some(dropped) })
            }
        };
        let saved = LoraLinearSaved {
            x: x.filter(|_| needs.weight || (needs_a && dropped.is_none())),
            weight,
            weight_dtype: layer.weight.dtype(),
            a: a.clone(),
            b: b.clone(),
            adapter_dtypes: dtypes.unwrap_or([a.dtype(), b.dtype()]),
            hidden,
            dropped,
            dropout,
            scale: self.lora_scale,
        };
        let wanted = [needs_x, needs.weight, needs_a, needs_b];
        let out = B::fused_lora_linear_backward_add(saved, grad, wanted, sum);
        (out.x, BlockLinear { weight: out.weight, lora: Some((out.a, out.b)) })
    }
}
