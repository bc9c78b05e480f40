//! Node of the attention.

use burn::tensor::ops::FloatTensor;
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops};

use super::{Tracked, constant, node, register};
use crate::Backend;
use crate::types::*;

#[derive(Debug)]
struct Attention;

#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    spec: AttentionSpec,
    forward: AttentionOutput<B>,
}

impl<B: Backend> Backward<B, 3> for Attention {
    type State = Saved<B>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [q, k, v] = ops.parents.map(|parent| parent.map(|node| node.id));
        let needs = [q.is_some(), k.is_some(), v.is_some()];
        let saved = ops.state;
        let out = B::fused_attention_backward(
            saved.q,
            saved.k,
            saved.v,
            &saved.spec,
            saved.forward,
            grad,
            needs,
        );
        register::<B>(grads, q, out.q);
        register::<B>(grads, k, out.k);
        register::<B>(grads, v, out.v);
    }
}

pub(super) fn attention<B: Backend, C: CheckpointStrategy>(
    q: Tracked<B, C>,
    k: Tracked<B, C>,
    v: Tracked<B, C>,
    spec: &AttentionSpec,
) -> AttentionOutput<Autodiff<B, C>> {
    let forward =
        B::fused_attention(q.primitive.clone(), k.primitive.clone(), v.primitive.clone(), spec);
    let logsumexp = constant::<B, C>(forward.logsumexp.clone());
    if !(q.is_tracked() || k.is_tracked() || v.is_tracked()) {
        return AttentionOutput { output: constant::<B, C>(forward.output), logsumexp };
    }
    let output = forward.output.clone();
    let saved = Saved {
        q: q.primitive.clone(),
        k: k.primitive.clone(),
        v: v.primitive.clone(),
        spec: spec.clone(),
        forward,
    };
    AttentionOutput {
        output: node::<B, C, _, 3>(Attention, [&q, &k, &v], saved, output),
        logsumexp,
    }
}
