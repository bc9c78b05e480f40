//! AdamW (Loshchilov & Hutter, arXiv 1711.05101, as in PyTorch) tensor by tensor.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Bool, DType, Device, Tensor, TensorMetadata};

use super::{cast, primitive, reshape, tensor};
use crate::types::*;

/// Default body of [`Backend::fused_adamw`](crate::Backend::fused_adamw).
pub fn adamw<B: Backend>(
    tensors: Vec<AdamWTensor<B>>,
    guard: AdamWGuard<B>,
    config: AdamWConfig,
) -> AdamWOutput<B> {
    let squares: Vec<Tensor<B, 1>> = tensors
        .iter()
        .map(|entry| {
            let grad = flat::<B>(entry.grad.clone());
            // Along a dimension: Burn's sum over everything adds with atomics on wgpu, in no fixed order.
            (grad.clone() * grad).sum_dim(0)
        })
        .collect();
    let norm = match squares.is_empty() {
        true => Tensor::<B, 1>::zeros([1], (&Device::<B>::default(), DType::F32)),
        false => Tensor::cat(squares, 0).sum_dim(0).sqrt().mul_scalar(config.grad_scale),
    };
    let factor = match config.max_grad_norm > 0.0 {
        true => {
            let longest = norm.full_like(config.max_grad_norm);
            (longest / norm.clone().add_scalar(1e-6)).clamp_max(1.0)
        }
        false => norm.ones_like(),
    };
    let factor = factor.mul_scalar(config.grad_scale); // [1]
    let mut applied = norm.clone().is_finite(); // [1]
    if let Some(losses) = guard.losses {
        applied = applied.bool_and(all_finite(flat::<B>(losses)));
    }
    let skipped_before = guard.before.map(|before| flat::<B>(before).equal_elem(0.0)); // [1]
    // What must be looked at is computed before anything is decided; else one tensor after the other.
    let all_known = tensors.iter().all(|entry| config.keeps_finite(entry.lr));
    let step = |entry| update::<B>(entry, &config, &factor, skipped_before.as_ref());
    let updated = if all_known {
        let decide = |entry| choose(&applied, step(entry));
        tensors.into_iter().map(decide).collect()
    } else {
        let steps: Vec<Update<B>> = tensors.into_iter().map(step).collect();
        for value in steps.iter().flat_map(|step| &step.new) {
            applied = applied.bool_and(all_finite(value.clone()));
        }
        steps.into_iter().map(|step| choose(&applied, step)).collect()
    };
    let decision = norm.zeros_like().mask_fill(applied, 1.0);
    AdamWOutput { updated, norm: primitive(norm), applied: primitive(decision) }
}

/// Any shape as one row in f32.
fn flat<B: Backend>(x: FloatTensor<B>) -> Tensor<B, 1> {
    let len = x.shape().num_elements();
    cast(tensor(B::float_reshape(x, [len].into())), DType::F32)
}

/// `[1]`
fn all_finite<B: Backend>(x: Tensor<B, 1>) -> Tensor<B, 1, Bool> {
    x.is_finite().all_dim(0)
}

/// Parameter and moments of one tensor, flattened, before and after.
struct Update<B: Backend> {
    like: [FloatTensor<B>; 3],
    new: [Tensor<B, 1>; 3],
}

fn update<B: Backend>(
    entry: AdamWTensor<B>,
    config: &AdamWConfig,
    factor: &Tensor<B, 1>,
    skipped_before: Option<&Tensor<B, 1, Bool>>,
) -> Update<B> {
    let like = [entry.param.clone(), entry.m.clone(), entry.v.clone()];
    let (beta1, beta2) = (config.beta1, config.beta2);
    let [param, grad, m, v] = [entry.param, entry.grad, entry.m, entry.v].map(flat::<B>);
    let grad = grad * factor.clone();
    let m = m.mul_scalar(beta1) + grad.clone().mul_scalar(1.0 - beta1);
    let v = v.mul_scalar(beta2) + (grad.clone() * grad).mul_scalar(1.0 - beta2);
    let (step_size, root) = config.corrections(entry.lr, entry.updates);
    let [length, divisor] = match skipped_before.filter(|_| entry.undecided) {
        None => [m.clone().mul_scalar(step_size), v.clone().sqrt().mul_scalar(root)],
        Some(skipped) => {
            let earlier = config.corrections(entry.lr, entry.updates.saturating_sub(1));
            let choice = |now: f64, before: f64| {
                let [now, before] = [now, before].map(|value| factor.full_like(value));
                now.mask_where(skipped.clone(), before)
            };
            let [step_size, root] = [choice(step_size, earlier.0), choice(root, earlier.1)];
            [m.clone() * step_size, v.clone().sqrt() * root]
        }
    };
    let step = length / divisor.add_scalar(config.eps);
    let param = param.mul_scalar(1.0 - entry.lr * config.weight_decay) - step;
    Update { like, new: [param, m, v] }
}

/// What is new where the update is applied, what was there where it is not.
fn choose<B: Backend>(applied: &Tensor<B, 1, Bool>, update: Update<B>) -> [FloatTensor<B>; 3] {
    let [a, b, c] = update.like;
    let [x, y, z] = update.new;
    [(a, x), (b, y), (c, z)].map(|(old, new)| {
        let shape = old.shape();
        let mask = applied.clone().expand([new.dims()[0]]);
        reshape(flat::<B>(old).mask_where(mask, new), shape)
    })
}
