//! Activations of the transformers' MLPs.

use burn::tensor::{FloatDType, Tensor};
use dualspeed_ops::Backend;

use crate::config::HiddenAct;
use crate::nn::cast;

/// The activation, element by element: `[rows, width]`.
pub(super) fn activate<B: Backend>(act: HiddenAct, x: Tensor<B, 2>) -> Tensor<B, 2> {
    match act {
        HiddenAct::QuickGelu => dualspeed_ops::quick_gelu(x),
        HiddenAct::Gelu => dualspeed_ops::gelu(x),
        HiddenAct::GeluPytorchTanh => gelu_tanh(x),
    }
}

/// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, computed in 32 bits.
fn gelu_tanh<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let x = x.cast(FloatDType::F32);
    let inner = x.clone() * (x.clone().square() * 0.044715 + 1.0);
    let gate = (inner * (2.0 / std::f64::consts::PI).sqrt()).tanh() + 1.0;
    cast(x * gate * 0.5, dtype.into())
}
