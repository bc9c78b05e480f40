//! Normalisation layers.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use dualspeed_ops::Backend;

use super::Init;

/// Layer normalisation.
#[derive(Module, Debug)]
pub struct LayerNorm<B: Backend> {
    /// `[d]`.
    pub weight: Param<Tensor<B, 1>>,
    /// `[d]`.
    pub bias: Param<Tensor<B, 1>>,
    /// Added to the variance.
    pub eps: f64,
}

impl<B: Backend> LayerNorm<B> {
    /// The identity scale, no shift.
    pub fn init(init: &Init<'_, B>, d: usize, eps: f64) -> Self {
        Self {
            weight: init.at("weight").constant([d], 1.0),
            bias: init.at("bias").constant([d], 0.0),
            eps,
        }
    }

    /// `[.., d] -> [.., d]`.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        dualspeed_ops::layer_norm(x, self.weight.val(), self.bias.val(), self.eps)
    }
}

/// Root-mean-square normalisation.
#[derive(Module, Debug)]
pub struct RmsNorm<B: Backend> {
    /// `[d]`.
    pub weight: Param<Tensor<B, 1>>,
    /// Added to the mean square.
    pub eps: f64,
}

impl<B: Backend> RmsNorm<B> {
    /// The identity scale.
    pub fn init(init: &Init<'_, B>, d: usize, eps: f64) -> Self {
        Self { weight: init.at("weight").constant([d], 1.0), eps }
    }

    /// `[.., d] -> [.., d]`.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        dualspeed_ops::rms_norm(x, self.weight.val(), self.eps)
    }
}
