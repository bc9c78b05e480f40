//! AdamW (Loshchilov & Hutter, arXiv 1711.05101, as in PyTorch) tensor by tensor.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Device, Tensor, TensorMetadata};

use super::{cast, primitive, reshape, tensor};
use crate::types::*;

/// Default body of [`Backend::fused_adamw`](crate::Backend::fused_adamw).
pub fn adamw<B: Backend>(tensors: Vec<AdamWTensor<B>>, config: AdamWConfig) -> AdamWOutput<B> {
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
    let updated = tensors.into_iter().map(|entry| update::<B>(entry, &config, &factor)).collect();
    AdamWOutput { updated, norm: primitive(norm) }
}

/// Any shape as one row in f32.
fn flat<B: Backend>(x: FloatTensor<B>) -> Tensor<B, 1> {
    let len = x.shape().num_elements();
    cast(tensor(B::float_reshape(x, [len].into())), DType::F32)
}

fn update<B: Backend>(
    entry: AdamWTensor<B>,
    config: &AdamWConfig,
    factor: &Tensor<B, 1>,
) -> [FloatTensor<B>; 3] {
    let shape = entry.param.shape();
    let (beta1, beta2) = (config.beta1, config.beta2);
    let (step_size, root) = config.corrections(entry.lr, entry.updates);
    let [param, grad, m, v] = [entry.param, entry.grad, entry.m, entry.v].map(flat::<B>);
    let grad = grad * factor.clone();
    let m = m.mul_scalar(beta1) + grad.clone().mul_scalar(1.0 - beta1);
    let v = v.mul_scalar(beta2) + (grad.clone() * grad).mul_scalar(1.0 - beta2);
    let divisor = v.clone().sqrt().mul_scalar(root).add_scalar(config.eps);
    let step = m.clone().mul_scalar(step_size) / divisor;
    let param = param.mul_scalar(1.0 - entry.lr * config.weight_decay) - step;
    [param, m, v].map(|x| reshape(x, shape.clone()))
}
