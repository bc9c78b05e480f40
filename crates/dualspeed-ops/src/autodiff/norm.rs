//! Nodes of the norms. The row statistics are computed again in the backward pass: it reads the rows anyway.

use burn::tensor::ops::FloatTensor;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops};

use super::{Tracked, constant, node, register};
use crate::Backend;

#[derive(Debug)]
struct RmsNorm;

impl<B: Backend> Backward<B, 2> for RmsNorm {
    type State = (FloatTensor<B>, FloatTensor<B>, f64);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [x, weight] = ops.parents.map(|parent| parent.map(|node| node.id));
        let (saved_x, saved_weight, eps) = ops.state;
        let needs = [x.is_some(), weight.is_some()];
        let out = B::fused_rms_norm_backward(saved_x, saved_weight, eps, grad, needs);
        register::<B>(grads, x, out.x);
        register::<B>(grads, weight, out.weight);
    }
}

pub(super) fn rms_norm<B: Backend, C: CheckpointStrategy>(
    x: Tracked<B, C>,
    weight: Tracked<B, C>,
    eps: f64,
) -> Tracked<B, C> {
    let output = B::fused_rms_norm(x.primitive.clone(), weight.primitive.clone(), eps);
    if !(x.is_tracked() || weight.is_tracked()) {
        return constant::<B, C>(output);
    }
    let state = (x.primitive.clone(), weight.primitive.clone(), eps);
    node::<B, C, _, 2>(RmsNorm, [&x, &weight], state, output)
}

#[derive(Debug)]
struct LayerNorm;

impl<B: Backend> Backward<B, 3> for LayerNorm {
    type State = (FloatTensor<B>, FloatTensor<B>, f64);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [x, weight, bias] = ops.parents.map(|parent| parent.map(|node| node.id));
        let (saved_x, saved_weight, eps) = ops.state;
        let needs = [x.is_some(), weight.is_some(), bias.is_some()];
        let out = B::fused_layer_norm_backward(saved_x, saved_weight, eps, grad, needs);
        register::<B>(grads, x, out.x);
        register::<B>(grads, weight, out.weight);
        register::<B>(grads, bias, out.bias);
    }
}

pub(super) fn layer_norm<B: Backend, C: CheckpointStrategy>(
    x: Tracked<B, C>,
    weight: Tracked<B, C>,
    bias: Tracked<B, C>,
    eps: f64,
) -> Tracked<B, C> {
    let output = B::fused_layer_norm(
        x.primitive.clone(),
        weight.primitive.clone(),
        bias.primitive.clone(),
        eps,
    );
    if !(x.is_tracked() || weight.is_tracked() || bias.is_tracked()) {
        return constant::<B, C>(output);
    }
    let state = (x.primitive.clone(), weight.primitive.clone(), eps);
    node::<B, C, _, 3>(LayerNorm, [&x, &weight, &bias], state, output)
}
