//! Node of the token losses.

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops};

use super::{Tracked, constant, node, register};
use crate::Backend;

#[derive(Debug)]
struct TokenLosses;

#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    hidden: FloatTensor<B>,
    lm_head: FloatTensor<B>,
    targets: IntTensor<B>,
    teacher: Option<FloatTensor<B>>,
    tau: f64,
}

impl<B: Backend> Backward<B, 2> for TokenLosses {
    type State = Saved<B>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [hidden, lm_head] = ops.parents.map(|parent| parent.map(|node| node.id));
        let needs = [hidden.is_some(), lm_head.is_some()];
        let saved = ops.state;
        let out = B::fused_token_losses_backward(
            saved.hidden,
            saved.lm_head,
            saved.targets,
            saved.teacher,
            saved.tau,
            grad,
            needs,
        );
        register::<B>(grads, hidden, out.hidden);
        register::<B>(grads, lm_head, out.lm_head);
    }
}

/// The teacher takes no gradient, neither itself nor through `lm_head`.
pub(super) fn token_losses<B: Backend, C: CheckpointStrategy>(
    hidden: Tracked<B, C>,
    lm_head: Tracked<B, C>,
    targets: IntTensor<B>,
    teacher: Option<Tracked<B, C>>,
    tau: f64,
) -> Tracked<B, C> {
    let teacher = teacher.map(|teacher| teacher.primitive);
    let output = B::fused_token_losses(
        hidden.primitive.clone(),
        lm_head.primitive.clone(),
        targets.clone(),
        teacher.clone(),
        tau,
    );
    if !(hidden.is_tracked() || lm_head.is_tracked()) {
        return constant::<B, C>(output);
    }
    let saved = Saved {
        hidden: hidden.primitive.clone(),
        lm_head: lm_head.primitive.clone(),
        targets,
        teacher,
        tau,
    };
    node::<B, C, _, 2>(TokenLosses, [&hidden, &lm_head], saved, output)
}
