//! Node of picked rows.

use burn::tensor::TensorMetadata;
use burn::tensor::ops::IntTensor;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops};

use super::{Tracked, constant, node, register};
use crate::Backend;

#[derive(Debug)]
struct SelectRows;

impl<B: Backend> Backward<B, 1> for SelectRows {
    /// The picks, and how many rows there were.
    type State = (IntTensor<B>, usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [x] = ops.parents.map(|parent| parent.map(|node| node.id));
        let (ids, n) = ops.state;
        register::<B>(grads, x, Some(B::fused_select_rows_backward(ids, n, grad)));
    }
}

pub(super) fn select_rows<B: Backend, C: CheckpointStrategy>(
    x: Tracked<B, C>,
    ids: IntTensor<B>,
) -> Tracked<B, C> {
    let n = x.primitive.shape()[0];
    let output = B::fused_select_rows(x.primitive.clone(), ids.clone());
    if !x.is_tracked() {
        return constant::<B, C>(output);
    }
    node::<B, C, _, 1>(SelectRows, [&x], (ids, n), output)
}
