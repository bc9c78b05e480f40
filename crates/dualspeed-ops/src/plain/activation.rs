//! GELU, quick GELU and SwiGLU.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

use super::{cast, reshape, rows, widen};
use crate::types::*;

/// Applies an elementwise function in at least f32.
fn elementwise<B: Backend>(
    x: FloatTensor<B>,
    f: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>,
) -> FloatTensor<B> {
    let (shape, dtype) = (x.shape(), x.dtype());
    reshape(cast(f(widen(rows::<B>(x))), dtype), shape)
}

/// Burn's own sigmoid computes f64 in f32 on some backends, and its reciprocal is an approximation on some.
fn sigmoid<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    x.ones_like() / x.neg().exp().add_scalar(1.0)
}

/// The normal distribution function.
fn phi<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    x.mul_scalar(FRAC_1_SQRT_2).erf().add_scalar(1.0).mul_scalar(0.5)
}

/// Default body of [`Backend::fused_gelu`](crate::Backend::fused_gelu).
pub fn gelu<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    elementwise::<B>(x, |x| x.clone() * phi(x))
}

/// Default body of [`Backend::fused_gelu_backward`](crate::Backend::fused_gelu_backward).
pub fn gelu_backward<B: Backend>(x: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    elementwise::<B>(x, |x| {
        let density = (x.clone() * x.clone()).mul_scalar(-0.5).exp();
        let density = density.mul_scalar(1.0 / (2.0 * PI).sqrt());
        widen(rows::<B>(grad)) * (phi(x.clone()) + x * density)
    })
}

/// Default body of [`Backend::fused_quick_gelu`](crate::Backend::fused_quick_gelu).
pub fn quick_gelu<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    elementwise::<B>(x, |x| x.clone() * sigmoid(x.mul_scalar(1.702)))
}

/// Default body of [`Backend::fused_quick_gelu_backward`](crate::Backend::fused_quick_gelu_backward).
pub fn quick_gelu_backward<B: Backend>(x: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    elementwise::<B>(x, |x| {
        let s = sigmoid(x.clone().mul_scalar(1.702));
        let slope = s.clone() + x.mul_scalar(1.702) * s.clone() * (s.neg().add_scalar(1.0));
        widen(rows::<B>(grad)) * slope
    })
}

/// Default body of [`Backend::fused_swiglu`](crate::Backend::fused_swiglu).
pub fn swiglu<B: Backend>(gate: FloatTensor<B>, up: FloatTensor<B>) -> FloatTensor<B> {
    elementwise::<B>(gate, |gate| gate.clone() * sigmoid(gate) * widen(rows::<B>(up)))
}

/// Default body of [`Backend::fused_swiglu_backward`](crate::Backend::fused_swiglu_backward).
pub fn swiglu_backward<B: Backend>(
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
    grad: FloatTensor<B>,
    [needs_gate, needs_up]: [bool; 2],
) -> SwigluGrads<B> {
    let grad = widen(rows::<B>(grad));
    let grad_up = needs_up.then(|| {
        elementwise::<B>(gate.clone(), |gate| gate.clone() * sigmoid(gate) * grad.clone())
    });
    let grad_gate = needs_gate.then(|| {
        elementwise::<B>(gate, |gate| {
            let s = sigmoid(gate.clone());
            let slope = s.clone() * (gate * (s.neg().add_scalar(1.0))).add_scalar(1.0);
            slope * widen(rows::<B>(up)) * grad
        })
    });
    SwigluGrads { gate: grad_gate, up: grad_up }
}
