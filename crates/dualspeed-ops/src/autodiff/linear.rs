//! Nodes of the linear layers and of dropout.

use burn::tensor::TensorMetadata;
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops};

use super::{Tracked, constant, inner_dropout, node, register};
use crate::Backend;
use crate::dropout::Dropout;
use crate::types::*;

#[derive(Debug)]
struct Linear;

impl<B: Backend> Backward<B, 3> for Linear {
    type State = LinearSaved<B>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [x, weight, bias] = ops.parents.map(|parent| parent.map(|node| node.id));
        let out = B::fused_linear_backward(ops.state, grad);
        register::<B>(grads, x, out.x);
        register::<B>(grads, weight, out.weight);
        register::<B>(grads, bias, out.bias);
    }
}

pub(super) fn linear<B: Backend, C: CheckpointStrategy>(
    x: Tracked<B, C>,
    weight: Tracked<B, C>,
    bias: Option<Tracked<B, C>>,
) -> Tracked<B, C> {
    let (needs_x, needs_weight) = (x.is_tracked(), weight.is_tracked());
    let needs_bias = bias.as_ref().is_some_and(|bias| bias.is_tracked());
    let output = B::fused_linear(
        x.primitive.clone(),
        weight.primitive.clone(),
        bias.as_ref().map(|bias| bias.primitive.clone()),
    );
    if !(needs_x || needs_weight || needs_bias) {
        return constant::<B, C>(output);
    }
    let state = LinearSaved {
        x: needs_weight.then(|| x.primitive.clone()),
        weight: needs_x.then(|| weight.primitive.clone()),
        weight_dtype: weight.dtype(),
        bias_dtype: bias.as_ref().filter(|bias| bias.is_tracked()).map(|bias| bias.dtype()),
    };
    // A layer without bias has an untracked stand-in as its third parent.
    let bias = bias.unwrap_or_else(|| constant::<B, C>(weight.primitive.clone()));
    node::<B, C, _, 3>(Linear, [&x, &weight, &bias], state, output)
}

#[derive(Debug)]
struct LoraLinear;

impl<B: Backend> Backward<B, 5> for LoraLinear {
    type State = LoraLinearSaved<B>;

    fn backward(self, ops: Ops<Self::State, 5>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [x, weight, bias, a, b] = ops.parents.map(|parent| parent.map(|node| node.id));
        let needs = [x, weight, a, b].map(|parent| parent.is_some());
        let out = B::fused_lora_linear_backward(ops.state, grad, needs);
        register::<B>(grads, x, out.x);
        register::<B>(grads, weight, out.weight);
        register::<B>(grads, bias, out.bias);
        register::<B>(grads, a, out.a);
        register::<B>(grads, b, out.b);
    }
}

pub(super) fn lora_linear<B: Backend, C: CheckpointStrategy>(
    x: Tracked<B, C>,
    weight: Tracked<B, C>,
    bias: Option<Tracked<B, C>>,
    adapter: LoraAdapter<Autodiff<B, C>>,
) -> LoraLinearOutput<Autodiff<B, C>> {
    let LoraAdapter { a, b, scale, dropout } = adapter;
    let [needs_x, needs_weight, needs_a, needs_b] =
        [&x, &weight, &a, &b].map(|tensor| tensor.is_tracked());
    let needs_bias = bias.as_ref().is_some_and(|bias| bias.is_tracked());
    let adapter = LoraAdapter {
        a: a.primitive.clone(),
        b: b.primitive.clone(),
        scale,
        dropout: dropout.as_ref().map(inner_dropout),
    };
    let forward = B::fused_lora_linear(
        x.primitive.clone(),
        weight.primitive.clone(),
        bias.as_ref().map(|bias| bias.primitive.clone()),
        adapter.clone(),
    );
    let hidden = constant::<B, C>(forward.hidden.clone());
    if !(needs_x || needs_weight || needs_bias || needs_a || needs_b) {
        let output = constant::<B, C>(forward.output);
        return LoraLinearOutput { output, hidden, dropped: None };
    }
    let saved = LoraLinearSaved {
        x: (needs_weight || needs_a).then(|| x.primitive.clone()),
        weight: needs_x.then(|| weight.primitive.clone()),
        weight_dtype: weight.dtype(),
        bias_dtype: bias.as_ref().filter(|bias| bias.is_tracked()).map(|bias| bias.dtype()),
        adapter,
        adapter_dtypes: [a.dtype(), b.dtype()],
        hidden: forward.hidden,
        dropped: forward.dropped,
    };
    // A layer without bias has an untracked stand-in as its third parent.
    let bias = bias.unwrap_or_else(|| constant::<B, C>(weight.primitive.clone()));
    let parents = [&x, &weight, &bias, &a, &b];
    let output = node::<B, C, _, 5>(LoraLinear, parents, saved, forward.output);
    LoraLinearOutput { output, hidden, dropped: None }
}

#[derive(Debug)]
struct DropoutSum;

impl<B: Backend> Backward<B, 2> for DropoutSum {
    type State = Dropout<B>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [x, sum] = ops.parents.map(|parent| parent.map(|node| node.id));
        if x.is_some() {
            register::<B>(grads, x, Some(B::fused_dropout(grad.clone(), &ops.state, None)));
        }
        register::<B>(grads, sum, Some(grad));
    }
}

pub(super) fn dropout<B: Backend, C: CheckpointStrategy>(
    x: Tracked<B, C>,
    dropout: Dropout<B>,
    sum: Option<Tracked<B, C>>,
) -> Tracked<B, C> {
    let term = sum.as_ref().map(|sum| sum.primitive.clone());
    let output = B::fused_dropout(x.primitive.clone(), &dropout, term);
    if !(x.is_tracked() || sum.as_ref().is_some_and(|sum| sum.is_tracked())) {
        return constant::<B, C>(output);
    }
    // Without a sum there is an untracked stand-in as the second parent.
    let sum = sum.unwrap_or_else(|| constant::<B, C>(x.primitive.clone()));
    node::<B, C, _, 2>(DropoutSum, [&x, &sum], dropout, output)
}
