//! Node that a backward pass starts from with a given gradient.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{FloatDType, Shape, TensorMetadata};
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops};

use super::{Tracked, constant, node, register};
use crate::Backend;

#[derive(Debug)]
struct InnerProduct;

impl<B: Backend> Backward<B, 1> for InnerProduct {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        // The scalar is a root: what arrives is one.
        let _ = grads.consume::<B>(&ops.node);
        let [y] = ops.parents.map(|parent| parent.map(|node| node.id));
        register::<B>(grads, y, Some(ops.state));
    }
}

pub(super) fn inner_product<B: Backend, C: CheckpointStrategy>(
    y: Tracked<B, C>,
    grad: Tracked<B, C>,
) -> Tracked<B, C> {
    let device = B::float_device(&y.primitive);
    let zero = B::float_zeros(Shape::new([1]), &device, FloatDType::from(y.dtype()));
    if !y.is_tracked() {
        return constant::<B, C>(zero);
    }
    node::<B, C, _, 1>(InnerProduct, [&y], grad.primitive, zero)
}
