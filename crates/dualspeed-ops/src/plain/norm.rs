//! RMSNorm and LayerNorm.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorMetadata};

use super::{cast, primitive, reshape, rows, tensor, widen};
use crate::types::*;

/// Default body of [`Backend::fused_rms_norm`](crate::Backend::fused_rms_norm).
pub fn rms_norm<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>, eps: f64) -> FloatTensor<B> {
    let (shape, dtype) = (x.shape(), x.dtype());
    let x = widen(rows::<B>(x));
    let y = x.clone() / rms(x, eps) * widen(tensor::<B, 1>(weight)).unsqueeze();
    reshape(cast(y, dtype), shape)
}

/// `sqrt(mean(x^2) + eps)`, `[rows, 1]`. A divisor: Burn's reciprocal is an approximation on some backends.
fn rms<B: Backend>(x: Tensor<B, 2>, eps: f64) -> Tensor<B, 2> {
    (x.clone() * x).mean_dim(1).add_scalar(eps).sqrt()
}

/// Default body of [`Backend::fused_rms_norm_backward`](crate::Backend::fused_rms_norm_backward).
pub fn rms_norm_backward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    eps: f64,
    grad: FloatTensor<B>,
    [needs_x, needs_weight]: [bool; 2],
) -> NormGrads<B> {
    let (shape, dtype) = (x.shape(), x.dtype());
    let weight_dtype = weight.dtype();
    let x = widen(rows::<B>(x));
    let grad = widen(rows::<B>(grad));
    let scale = rms(x.clone(), eps);
    let unit = x / scale.clone();
    let grad_x = needs_x.then(|| {
        let grad_unit = grad.clone() * widen(tensor::<B, 1>(weight)).unsqueeze();
        let along = (grad_unit.clone() * unit.clone()).mean_dim(1);
        reshape(cast((grad_unit - unit.clone() * along) / scale, dtype), shape)
    });
    NormGrads {
        x: grad_x,
        weight: needs_weight.then(|| column_sum(grad * unit, weight_dtype)),
        bias: None,
    }
}

/// Default body of [`Backend::fused_layer_norm`](crate::Backend::fused_layer_norm).
pub fn layer_norm<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: FloatTensor<B>,
    eps: f64,
) -> FloatTensor<B> {
    let (shape, dtype) = (x.shape(), x.dtype());
    let (unit, _) = standardise(widen(rows::<B>(x)), eps);
    let weight = widen(tensor::<B, 1>(weight)).unsqueeze();
    let y = unit * weight + widen(tensor::<B, 1>(bias)).unsqueeze();
    reshape(cast(y, dtype), shape)
}

/// `(x - mean) / sqrt(var + eps)` and `sqrt(var + eps)` per row.
fn standardise<B: Backend>(x: Tensor<B, 2>, eps: f64) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let centred = x.clone() - x.mean_dim(1);
    let scale = rms(centred.clone(), eps);
    (centred / scale.clone(), scale)
}

/// Default body of [`Backend::fused_layer_norm_backward`](crate::Backend::fused_layer_norm_backward).
pub fn layer_norm_backward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    eps: f64,
    grad: FloatTensor<B>,
    [needs_x, needs_weight, needs_bias]: [bool; 3],
) -> NormGrads<B> {
    let (shape, dtype) = (x.shape(), x.dtype());
    let weight_dtype = weight.dtype();
    let grad = widen(rows::<B>(grad));
    let (unit, scale) = standardise(widen(rows::<B>(x)), eps);
    let grad_x = needs_x.then(|| {
        let grad_unit = grad.clone() * widen(tensor::<B, 1>(weight)).unsqueeze();
        let along = (grad_unit.clone() * unit.clone()).mean_dim(1);
        let mean = grad_unit.clone().mean_dim(1);
        reshape(cast((grad_unit - mean - unit.clone() * along) / scale, dtype), shape)
    });
    NormGrads {
        x: grad_x,
        weight: needs_weight.then(|| column_sum(grad.clone() * unit, weight_dtype)),
        bias: needs_bias.then(|| column_sum(grad, weight_dtype)),
    }
}

fn column_sum<B: Backend>(x: Tensor<B, 2>, dtype: DType) -> FloatTensor<B> {
    primitive(cast(x.sum_dim(0).squeeze_dim::<1>(0), dtype))
}
