//! Nodes of the activations and of the rotary embedding.

use burn::tensor::ops::FloatTensor;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops};

use super::{Tracked, constant, node, register};
use crate::Backend;

macro_rules! unary {
    ($function:ident, $op:ident, $forward:ident, $backward:ident) => {
        #[derive(Debug)]
        struct $op;

        impl<B: Backend> Backward<B, 1> for $op {
            type State = FloatTensor<B>;

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                let [x] = ops.parents.map(|parent| parent.map(|node| node.id));
                register::<B>(grads, x, Some(B::$backward(ops.state, grad)));
            }
        }

        pub(super) fn $function<B: Backend, C: CheckpointStrategy>(
            x: Tracked<B, C>,
        ) -> Tracked<B, C> {
            let output = B::$forward(x.primitive.clone());
            if !x.is_tracked() {
                return constant::<B, C>(output);
            }
            node::<B, C, _, 1>($op, [&x], x.primitive.clone(), output)
        }
    };
}

unary!(gelu, Gelu, fused_gelu, fused_gelu_backward);
unary!(quick_gelu, QuickGelu, fused_quick_gelu, fused_quick_gelu_backward);

#[derive(Debug)]
struct Swiglu;

impl<B: Backend> Backward<B, 2> for Swiglu {
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [gate, up] = ops.parents.map(|parent| parent.map(|node| node.id));
        let (saved_gate, saved_up) = ops.state;
        let needs = [gate.is_some(), up.is_some()];
        let out = B::fused_swiglu_backward(saved_gate, saved_up, grad, needs);
        register::<B>(grads, gate, out.gate);
        register::<B>(grads, up, out.up);
    }
}

pub(super) fn swiglu<B: Backend, C: CheckpointStrategy>(
    gate: Tracked<B, C>,
    up: Tracked<B, C>,
) -> Tracked<B, C> {
    let output = B::fused_swiglu(gate.primitive.clone(), up.primitive.clone());
    if !(gate.is_tracked() || up.is_tracked()) {
        return constant::<B, C>(output);
    }
    let state = (gate.primitive.clone(), up.primitive.clone());
    node::<B, C, _, 2>(Swiglu, [&gate, &up], state, output)
}

#[derive(Debug)]
struct Rope;

impl<B: Backend> Backward<B, 1> for Rope {
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [x] = ops.parents.map(|parent| parent.map(|node| node.id));
        let (cos, sin) = ops.state;
        register::<B>(grads, x, Some(B::fused_rope_backward(cos, sin, grad)));
    }
}

/// `cos` and `sin` are constants of the positions and take no gradient.
pub(super) fn rope<B: Backend, C: CheckpointStrategy>(
    x: Tracked<B, C>,
    cos: Tracked<B, C>,
    sin: Tracked<B, C>,
) -> Tracked<B, C> {
    let (cos, sin) = (cos.primitive, sin.primitive);
    let output = B::fused_rope(x.primitive.clone(), cos.clone(), sin.clone());
    if !x.is_tracked() {
        return constant::<B, C>(output);
    }
    node::<B, C, _, 1>(Rope, [&x], (cos, sin), output)
}
