//! The backward pass of a block, by hand: what was not kept is computed again, what is not trained costs nothing.

use burn::tensor::TensorMetadata;
use burn::tensor::ops::FloatTensor;

use super::{LowRank, Run, Saved, factors, heads_as_rows, merge_heads, split_heads};
use crate::Backend;
use crate::block::{BlockContext, BlockLinear, BlockParams, Target};
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
    let Saved { x, normed, attended, mid, mid_normed, gated, act, factors: kept, wanted_keys } =
        saved;
    let factors = kept.unwrap_or_else(|| factors::<B>(params, x.dtype()));
    let run = Run { params, ctx, keep: ctx.keep, factors, wanted_keys };
    let mut grads = ParamGrads::<B>::default();

    // A norm costs less than its result in memory until the end: it is computed where it is wanted.
    let (pre_norm, post_norm) = (&params.input_layernorm, &params.post_attention_layernorm);
    let before = |kept: &Option<FloatTensor<B>>, x: &FloatTensor<B>, weight: &FloatTensor<B>| {
        kept.clone().unwrap_or_else(|| run.norm(x, weight))
    };
    let attended = attended.unwrap_or_else(|| run.attend(&before(&normed, &x, pre_norm), None));
    let (mid, o_low_rank) = mid.unwrap_or_else(|| run.mid(&x, &attended));
    let gated = gated.unwrap_or_else(|| run.gate(&before(&mid_normed, &mid, post_norm)));
    let (act, down_low_rank) =
        act.unwrap_or_else(|| (B::fused_swiglu(gated.gate.clone(), gated.up.clone()), None));

    // MLP
    let sum = (grad.clone(), None);
    let (grad_act, down) =
        run.linear_backward(Target::DownProj, act, down_low_rank, sum, true, needs);
    grads.linear.down_proj = down;
    let grad_act = grad_act.expect("asked for");
    let swiglu = B::fused_swiglu_backward(gated.gate, gated.up, grad_act, [true, true]);
    let mid_normed = mid_normed.unwrap_or_else(|| run.norm(&mid, post_norm));
    let mut grad_normed = None;
    for (target, low_rank, grad) in [
        (Target::GateProj, gated.gate_low_rank, swiglu.gate),
        (Target::UpProj, gated.up_low_rank, swiglu.up),
    ] {
        let sum = (grad.expect("asked for"), grad_normed.take());
        let (grad_x, layer) =
            run.linear_backward(target, mid_normed.clone(), low_rank, sum, true, needs);
        grad_normed = grad_x;
        *grads.linear.get_mut(target) = layer;
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
    let trained = |norm: Option<bool>| norm.unwrap_or(false);
    let needs_normed = needs_x || needs.input_layernorm;
    let needs_qkv = needs_normed
        || trained(needs.q_norm)
        || trained(needs.k_norm)
        || [Target::QProj, Target::KProj, Target::VProj]
            .into_iter()
            .any(|target| needs.linear.get(target).any());
    let merged = run.select(merge_heads::<B>(attended.rotary.attention.output.clone()));
    let sum = (grad.clone(), None);
    let (grad_merged, o) =
        run.linear_backward(Target::OProj, merged, o_low_rank, sum, needs_qkv, needs);
    grads.linear.o_proj = o;
    let Some(grad_merged) = grad_merged else { return (None, grads) };
    let rows = x.shape()[0];
    let through = B::fused_rotary_attention_backward(
        attended.v,
        [ctx.cos.clone(), ctx.sin.clone()],
        &ctx.attention,
        attended.rotary,
        split_heads::<B>(run.scatter(grad_merged, rows), ctx.batch, ctx.heads),
    );
    let [grad_q, grad_k, grad_v] =
        [through.q, through.k, through.v].map(|grad| merge_heads::<B>(grad.expect("asked for")));
    let (grad_q, q_norm) = run.head_norm_backward(
        (attended.q_product, params.q_norm.as_ref()),
        ctx.heads,
        grad_q,
        trained(needs.q_norm),
    );
    let (grad_k, k_norm) = run.head_norm_backward(
        (attended.k_product, params.k_norm.as_ref()),
        ctx.kv_heads,
        grad_k,
        trained(needs.k_norm),
    );
    (grads.q_norm, grads.k_norm) = (Some(q_norm), Some(k_norm));
    let normed = normed.unwrap_or_else(|| run.norm(&x, pre_norm));
    let mut grad_normed = None;
    for (target, low_rank, grad) in [
        (Target::QProj, attended.q_low_rank, grad_q),
        (Target::KProj, attended.k_low_rank, grad_k),
        (Target::VProj, attended.v_low_rank, grad_v),
    ] {
        let sum = (grad, grad_normed.take());
        let (grad_x, layer) =
            run.linear_backward(target, normed.clone(), low_rank, sum, needs_normed, needs);
        grad_normed = grad_x;
        *grads.linear.get_mut(target) = layer;
    }
    let Some(grad_normed) = grad_normed else { return (None, grads) };
    let through_norm = B::fused_rms_norm_backward_add(
        x,
        pre_norm.clone(),
        ctx.eps,
        grad_normed,
        run.scatter(grad, rows),
        [needs_x, needs.input_layernorm],
    );
    grads.input_layernorm = through_norm.weight;
    (through_norm.x, grads)
}

impl<B: Backend> Run<'_, B> {
    /// The gradient of all `rows` rows from that of the wanted ones.
    fn scatter(&self, grad: FloatTensor<B>, rows: usize) -> FloatTensor<B> {
        match &self.ctx.rows {
            Some(wanted) => B::fused_select_rows_backward(wanted.on_device.clone(), rows, grad),
            None => grad,
        }
    }

    /// From the gradient of normed heads, `[rows, heads * d_head]`, those of the product before the norm and (if asked for)
    /// of the norm's weight. Without a norm the gradient passes.
    fn head_norm_backward(
        &self,
        (product, weight): (Option<FloatTensor<B>>, Option<&FloatTensor<B>>),
        heads: usize,
        grad: FloatTensor<B>,
        needs_weight: bool,
    ) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
        let (Some(product), Some(weight)) = (product, weight) else { return (grad, None) };
        let shape = product.shape();
        let [product, grad] = [product, grad].map(|x| heads_as_rows::<B>(x, heads));
        let (weight, needs) = (weight.clone(), [true, needs_weight]);
        let out = B::fused_rms_norm_backward(product, weight, self.ctx.eps, grad, needs);
        (B::float_reshape(out.x.expect("asked for"), shape), out.weight)
    }

    /// Gradients of a layer for its input and its parameters; a missing rank-r activation is computed again. What comes with
    /// the gradient of the output is added to that of the input.
    fn linear_backward(
        &self,
        target: Target,
        input: FloatTensor<B>,
        low_rank: Option<LowRank<B>>,
        (grad, sum): (FloatTensor<B>, Option<FloatTensor<B>>),
        needs_x: bool,
        needs: &BlockParams<bool>,
    ) -> (Option<FloatTensor<B>>, LayerGrads<B>) {
        let (layer, needs) = (self.params.linear.get(target), needs.linear.get(target));
        let weight = needs_x.then(|| layer.weight.clone());
        let weight_dtype = layer.weight.dtype();
        let bias = layer.bias.as_ref().filter(|_| needs.bias.unwrap_or(false));
        let bias_dtype = bias.map(|bias| bias.dtype());
        let (Some(adapter), Some((a, b))) = (self.adapter(target), &layer.lora) else {
            let x = needs.weight.then_some(input);
            let saved = LinearSaved { x, weight, weight_dtype, bias_dtype };
            let out = B::fused_linear_backward_add(saved, grad, sum);
            return (out.x, BlockLinear { weight: out.weight, bias: Some(out.bias), lora: None });
        };
        let (needs_a, needs_b) = needs.lora.unwrap_or_default();
        let (x, LowRank { hidden, dropped }) = match (low_rank, &adapter.dropout) {
            (Some(low_rank), _) => (Some(input), low_rank),
            (None, None) => {
                let hidden = B::fused_linear(input.clone(), adapter.a.clone(), None);
                (Some(input), LowRank { hidden, dropped: None })
            }
            (None, Some(dropout)) => {
                // What only the adapter reads may be written over.
                let x = needs.weight.then(|| input.clone());
                let dropped = B::fused_dropout(input, dropout, None);
                let hidden = B::fused_linear(dropped.clone(), adapter.a.clone(), None);
                (x, LowRank { hidden, dropped: Some(dropped) })
            }
        };
        let saved = LoraLinearSaved {
            x: x.filter(|_| needs.weight || (needs_a && dropped.is_none())),
            weight,
            weight_dtype,
            bias_dtype,
            adapter,
            adapter_dtypes: [a.dtype(), b.dtype()],
            hidden,
            dropped,
        };
        let wanted = [needs_x, needs.weight, needs_a, needs_b];
        let out = B::fused_lora_linear_backward_add(saved, grad, wanted, sum);
        let lora = Some((out.a, out.b));
        (out.x, BlockLinear { weight: out.weight, bias: Some(out.bias), lora })
    }
}
